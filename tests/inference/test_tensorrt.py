import numpy as np
import pytest
import torch

from sk_easytensor import (
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    TabM,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.inference import TensorRTPredictor, build_engine
from sk_easytensor.inference.tensorrt import PACKAGES, read_engine, tensorrt_package

try:
    tensorrt_package()
except ImportError:
    pytest.skip(f"none of {PACKAGES} is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def model(rows, target):
    blocks = [
        ("numbers", NumericBlock(bins=9), ["amount", "flag"]),
        ("cities", CategoryBlock(), ["city"]),
        ("days", DatetimeBlock(), ["day"]),
        ("vectors", VectorBlock(), ["vector"]),
        ("texts", TextBlock(min_frequency=2), ["title"]),
        ("clicks", CategorySequenceBlock(width=8, layers=1, max_length=5), ["clicks"]),
        ("series", NumericSequenceBlock(width=8, max_length=5), ["series"]),
    ]
    trunk = TabM(members=2, width=16)
    model = EasyTensorClassifier(blocks, trunk=trunk, max_epochs=1, remainder="drop")
    return model.fit(rows, target > np.median(target))


def test_every_network_is_built(model, tmp_path):
    sizes = (1, 16, 64)
    path = model.to_tensorrt(tmp_path / "model.engine", batch_sizes=sizes)
    description, engine = read_engine(path)
    assert description["batch_sizes"] == list(sizes)
    assert description["longest"]["clicks.codes_0"] == 5
    assert description["outputs"] == ["probabilities", "representation"]
    assert len(engine) > 10_000


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precisions_are_built(rows, target, tmp_path, precision):
    blocks = [("n", NumericBlock(bins=9), ["amount"]), ("e", events(), ["kinds", "whens"])]
    model = EasyTensorClassifier(blocks, trunk=TabM(width=16), max_epochs=1, remainder="drop")
    model.fit(rows, target > np.median(target))
    path = model.to_tensorrt(tmp_path / "model.engine", precision)
    description, engine = read_engine(path)
    assert description["precision"] == precision
    assert len(engine) > 10_000


def events():
    return EventSequenceBlock(width=8, time="whens", max_length=5)


def test_running_needs_a_gpu(model, tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="was not written by to_tensorrt"):
        TensorRTPredictor(model, path)


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
