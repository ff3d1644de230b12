import hashlib

import numpy as np
import pytest
import torch

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    PretrainedBlock,
    Sum,
    TabM,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.export.tensorrt import MAGIC, PACKAGES, read_engine, tensorrt_package
from sk_easytensor.inference import TensorRTPredictor, build_engine

# Short lists are cut on purpose; test_sequences.py of the blocks has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

try:
    tensorrt_package()
except ImportError:
    pytest.skip(f"none of {PACKAGES} is installed", allow_module_level=True)

LOOP = {"max_epochs": 1, "random_state": 0, "remainder": "drop"}
QUICK = {**LOOP, "n_folds": None}
TREES = BoostedTrees(max_iter=10)
SMALL = {"width": 8, "layers": 1, "max_length": 5}


@pytest.fixture(scope="module")
def model(rows, target):
    blocks = [
        ("numbers", NumericBlock(bins=9), ["amount", "flag"]),
        ("cities", CategoryBlock(), ["city"]),
        ("days", DatetimeBlock(), ["day"]),
        ("vectors", VectorBlock(), ["vector"]),
        ("texts", TextBlock(min_frequency=2), ["title"]),
        ("clicks", CategorySequenceBlock("conv", aggregates=False, **SMALL), ["clicks"]),
        (
            "series",
            NumericSequenceBlock("mean", n_kernel_features=84, pooling="mean", width=8),
            ["series"],
        ),
    ]
    trunk = TabM(members=2, width=16)
    model = EasyTensorClassifier(blocks, trunk=trunk, trees=TREES, **QUICK)
    return model.fit(rows, target > np.median(target))


def events(encoder):
    return EventSequenceBlock(encoder, aggregates=False, **SMALL, time="whens")


def built(model, path, **params):
    """Build an engine; return its description."""
    description, engine = read_engine(model.to_tensorrt(path / "model.engine", **params))
    assert len(engine) > 10_000
    return description


def test_classifier(model, tmp_path):
    sizes = (1, 16, 64)
    description = built(model, tmp_path, batch_sizes=sizes)
    assert description["batch_sizes"] == list(sizes)
    assert description["longest"]["clicks.codes_0"] == 5
    assert description["outputs"] == ["probabilities", "representation"]


def test_regressor_with_other_encoders(rows, target, tmp_path):
    known = EasyTensorRegressor([("n", NumericBlock("none"), ["count"])], trees=None, **QUICK)
    blocks = [
        ("known", PretrainedBlock(known.fit(rows, target)), ["count"]),
        ("bins", NumericBlock(bins=9), ["amount"]),
        ("linear", NumericBlock("linear"), ["amount"]),
        ("periodic", NumericBlock("periodic"), ["count"]),
        (
            "gru",
            CategorySequenceBlock("gru", aggregates=False, pooling="last", **SMALL),
            ["clicks"],
        ),
        ("lstm", NumericSequenceBlock("lstm", n_kernel_features=84, **SMALL), ["series"]),
        ("words", TextBlock("transformer", width=8, heads=2, vocabulary_size=300), ["title"]),
    ]
    trunk = TabM(members=2, width=8)
    model = EasyTensorRegressor(blocks, loss="gamma", trunk=trunk, trees=TREES, **QUICK)
    description = built(model.fit(rows, target + 1), tmp_path, precision="bf16")
    assert description["precision"] == "bf16"
    assert description["outputs"] == ["predictions", "representation"]


def test_networks_of_folds(rows, target, tmp_path):
    blocks = [("numbers", NumericBlock(), ["amount", "count"])]
    trunk = TabM(members=2, width=8)
    model = EasyTensorRegressor(blocks, trunk=trunk, trees=TREES, n_folds=2, **LOOP)
    description = built(model.fit(rows, target), tmp_path, precision="fp16")
    assert description["outputs"] == ["predictions", "representation"]


def test_two_towers(rows, tmp_path):
    users = [("user", CategoryBlock(width=8), "user"), ("kinds", events("gru"), ["kinds", "whens"])]
    items = [("city", CategoryBlock(width=8), "city"), ("text", TextBlock(), "body")]
    model = EasyTensorTwoTower(users, items, embedding_dim=8, max_epochs=1, random_state=0)
    model.fit(rows)
    assert isinstance(model.user_tower_.trunk, Sum)
    description = built(model, tmp_path, precision="fp16")
    assert description["precision"] == "fp16"
    assert description["outputs"] == ["scores", "predictions"]


def test_embedder(rows, tmp_path):
    lists = rows[rows["kinds"].map(len) > 1]
    blocks = [("events", events("conv"), ["kinds", "sums", "whens"])]
    model = EasyTensorEmbedder(blocks, embedding_dim=8, trunk=MLP(width=8), **LOOP)
    assert built(model.fit(lists), tmp_path)["outputs"] == ["embedding"]


def test_what_is_no_engine(model, tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="was not written by to_tensorrt"):
        TensorRTPredictor(model, path)
    rest = (2).to_bytes(8, "little") + b"{}engine"
    whole = MAGIC + hashlib.sha256(rest).digest() + rest
    path.write_bytes(whole)
    assert read_engine(path) == ({}, b"engine")
    for changed in (whole[:-1], whole[:-1] + b"E", whole[:30] + b"?" + whole[31:]):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.engine is corrupt or was changed"):
            read_engine(path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"precision": "int8"}, "precision"),
        ({"batch_sizes": (1, 64)}, "batch_sizes must be three integers"),
        ({"batch_sizes": (8, 4, 16)}, r"batch_sizes\[1\]"),
        ({"list_lengths": (0, 4, 16)}, r"list_lengths\[0\]"),
    ],
)
def test_bad_parameters(model, tmp_path, params, message):
    with pytest.raises(ValueError, match=message):
        build_engine(model, tmp_path / "model.engine", **params)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_engine_agrees_with_torch(model, hard_rows, tmp_path):
    predictor = TensorRTPredictor(model, model.to_tensorrt(tmp_path / "model.engine"))
    found = predictor.run(hard_rows)["probabilities"]
    assert np.abs(found - model.predict_proba(hard_rows)).max() < 1e-4
