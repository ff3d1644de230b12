"""Engines that run the network of a fitted estimator; torch is what they are compared with."""

import copy
import pickle
import sys
import warnings

import numpy as np
import pytest
import skops.io
import torch
from packaging.version import Version
from sklearn.base import clone

from sk_easytensor import (
    MLP,
    BlockModule,
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    NumericSequenceBlock,
    TextBlock,
)
from sk_easytensor.export import engines
from sk_easytensor.safe_loading import trusted_types

# One process of pytest-xdist fits the model.
# Short lists are cut on purpose.
pytestmark = [
    pytest.mark.xdist_group("engines"),
    pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning"),
]

LOOP = {"max_epochs": 2, "batch_size": 64, "random_state": 0, "remainder": "drop"}
QUICK = {**LOOP, "n_folds": None}
TREES = BoostedTrees(max_iter=10)
BLOCKS = [("numbers", NumericBlock(bins=9), ["amount", "flag"]), ("city", CategoryBlock(), "city")]


@pytest.fixture(scope="module")
def labels(target):
    return np.where(target > np.median(target), "yes", "no")


@pytest.fixture(scope="module")
def model(rows, labels):
    """A classifier run by onnxruntime."""
    blocks = [
        *BLOCKS,
        ("texts", TextBlock(min_frequency=2), ["title"]),
        (
            "series",
            NumericSequenceBlock("conv", n_kernel_features=84, width=8, layers=1, max_length=5),
            ["series"],
        ),
    ]
    model = EasyTensorClassifier(
        blocks, trunk=MLP(width=8), trees=TREES, inference_engine="onnxruntime", **QUICK
    )
    return model.fit(rows, labels)


def by_torch(model):
    """Return a copy that torch runs."""
    other = copy.deepcopy(model)
    other._use_torch()
    return other


def test_outputs_agree_with_torch(model, hard_rows):
    assert model.inference_engine_ == "onnxruntime"
    other = by_torch(model)
    assert other.inference_engine_ == "torch"
    for method in ("predict_proba", "decision_function", "transform"):
        found, expected = (getattr(each, method)(hard_rows) for each in (model, other))
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert 0 < np.abs(found - expected).max() < 1e-5, method
    assert model.predict(hard_rows).tolist() == other.predict(hard_rows).tolist()


def test_a_row_is_predicted_alone_as_among_others(model, hard_rows):
    together = model.predict_proba(hard_rows)
    for row in range(5):
        alone = model.predict_proba(hard_rows[row : row + 1])
        # onnxruntime multiplies matrices of other sizes in another order.
        np.testing.assert_allclose(alone, together[[row]], rtol=0, atol=1e-7)


def test_report(model, rows):
    report = model.inference_report_
    assert report["rows"] == len(rows)
    found = report["engines"]["onnxruntime"]
    assert 0 < found["difference"] < 1e-5
    seconds = report["engines"]["torch"]["seconds"]
    assert found["speed_up"] == seconds / found["seconds"]
    assert model.fit_times_["engine"] > found["seconds"]


def test_pickles_are_portable(model, hard_rows):
    expected = model.predict_proba(hard_rows)
    assert not any("onnxruntime" in type(value).__module__ for value in vars(model).values())
    state = model.__getstate__()
    assert "_engine" in vars(model)
    assert "_engine" not in state
    trusted = trusted_types()
    for other in (
        pickle.loads(pickle.dumps(model)),
        skops.io.loads(skops.io.dumps(model), trusted=trusted),
        copy.deepcopy(model),
    ):
        assert other.inference_engine_ == "onnxruntime"
        assert other.predict_proba(hard_rows).tolist() == expected.tolist()


def test_torch_steps_in_where_the_engine_is_missing(model, hard_rows, monkeypatch):
    other = pickle.loads(pickle.dumps(model))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match="with onnxruntime, which cannot be started here.*install"):
        found = other.predict_proba(hard_rows)
    assert found.tolist() == by_torch(model).predict_proba(hard_rows).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert other.predict_proba(hard_rows).tolist() == found.tolist()
    # Where the model is taken next, the engine may be there.
    assert other.inference_engine_ == "onnxruntime"
    assert pickle.loads(pickle.dumps(other)).inference_engine_ == "onnxruntime"


def test_threads_follow_the_parameter(model, hard_rows, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    other = copy.deepcopy(model).set_params(n_jobs=2)
    found = other.predict_proba(hard_rows)
    assert other._engine.threads == 2
    np.testing.assert_allclose(found, model.predict_proba(hard_rows), atol=1e-6)


def test_partial_fit_goes_back_to_torch(model, rows, labels):
    other = copy.deepcopy(model).partial_fit(rows, labels)
    assert other.inference_engine_ == "torch"
    assert not hasattr(other, "inference_report_")
    assert other.predict_proba(rows).tolist() == by_torch(other).predict_proba(rows).tolist()


def quick_regressor(engine):
    trunk = MLP(width=8)
    return EasyTensorRegressor(BLOCKS, trunk=trunk, trees=None, inference_engine=engine, **QUICK)


def test_torch_is_the_default_and_reports_nothing(rows, target):
    model = EasyTensorRegressor(BLOCKS, trees=None, **QUICK).fit(rows, target)
    assert model.inference_engine == model.inference_engine_ == "torch"
    assert not hasattr(model, "inference_report_")
    assert "engine" not in model.fit_times_


def test_auto_takes_what_is_worthwhile(rows, target, monkeypatch):
    model = clone(quick_regressor("auto"))
    for factor, engine in ((0.0, "onnxruntime"), (np.inf, "torch")):
        monkeypatch.setattr(engines, "MIN_SPEED_UP", factor)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.fit(rows, target)
        assert model.inference_engine_ == engine
        assert set(model.inference_report_["engines"]) == {"torch", "onnxruntime", "tensorrt"}
        assert model.inference_report_["engines"]["onnxruntime"]["speed_up"] > 0


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_an_engine_that_disagrees_is_not_taken(rows, target, monkeypatch, engine):
    monkeypatch.setattr(engines, "ABSOLUTE", -1.0)
    model = quick_regressor(engine)
    with pytest.warns(UserWarning, match=r"onnxruntime differ from torch's by up to .*with torch"):
        model.fit(rows, target)
    assert model.inference_engine_ == "torch"
    assert model.inference_report_["engines"]["onnxruntime"]["difference"] < 1e-5
    assert model._program is None


def test_what_is_missing_is_told_before_training(rows, target, monkeypatch):
    with pytest.raises(ValueError, match="EasyTensorRegressor: inference_engine must be one of"):
        quick_regressor("fastest").fit(rows, target)
    if not torch.cuda.is_available():
        with pytest.raises((ImportError, RuntimeError), match="need"):
            quick_regressor("tensorrt").fit(rows, target)
    monkeypatch.setattr(engines.OnnxRuntimeEngine, "requires", (("no_such_package", "onnx"),))
    model = quick_regressor("onnxruntime")
    with pytest.raises(
        ImportError, match=r"needs no_such_package: pip install 'sk_easytensor\[onnx"
    ):
        model.fit(rows, target)
    assert not hasattr(model, "network_")
    model.set_params(inference_engine="auto").fit(rows, target)
    assert "unavailable" in model.inference_report_["engines"]["onnxruntime"]
    assert model.inference_engine_ == "torch"


class Unruly(BlockModule):
    """Does one thing or another, whatever the numbers are."""

    out_features = 1

    def forward(self, values):
        return values[:, :1, 0].nan_to_num() * (2.0 if values.sum() > 0 else 1.0)


class UnrulyBlock(NumericBlock):
    """A block with that module."""

    def make_module(self):
        return Unruly()


def test_a_network_that_cannot_be_exported_is_run_by_torch(rows, target):
    model = EasyTensorRegressor(
        [("odd", UnrulyBlock(), ["count"])], inference_engine="auto", **QUICK
    )
    message = r"block 'odd' .* cannot be exported.*with torch"
    if Version(torch.__version__) < Version("2.9"):
        # Only the comparison with torch finds the fault.
        message = r"differs from that of torch.*with torch"
    with pytest.warns(UserWarning, match=message):
        model.fit(rows, target)
    assert model.inference_engine_ == "torch"
    assert "odd" in model.inference_report_["engines"]["onnxruntime"]["failed"]


def test_two_towers(rows, hard_rows):
    users = [("user", CategoryBlock(width=8), "user"), ("amount", NumericBlock(), "amount")]
    items = [("city", CategoryBlock(width=8), "city")]
    model = EasyTensorTwoTower(
        users, items, embedding_dim=8, max_epochs=1, random_state=0, inference_engine="onnxruntime"
    )
    model.fit(rows)
    for tower in (model.user_tower_, model.item_tower_):
        assert tower.inference_engine_ == "onnxruntime"
        other = by_torch(tower)
        assert np.abs(tower.transform(hard_rows) - other.transform(hard_rows)).max() < 1e-5
    plain = copy.deepcopy(model)
    plain.user_tower_, plain.item_tower_ = by_torch(model.user_tower_), by_torch(model.item_tower_)
    difference = model.decision_function(hard_rows) - plain.decision_function(hard_rows)
    assert np.abs(difference).max() < 1e-5


def test_embedder(rows):
    lists = rows[rows["kinds"].map(len) > 1]
    blocks = [
        (
            "kinds",
            CategorySequenceBlock("mean", aggregates=False, pooling="mean", width=8),
            ["kinds"],
        )
    ]
    model = EasyTensorEmbedder(
        blocks, embedding_dim=8, inference_engine="onnxruntime", **{**LOOP, "max_epochs": 1}
    )
    model.fit(lists)
    assert model.tower_.inference_engine_ == "onnxruntime"
    expected = by_torch(model.tower_).transform(lists)
    assert np.abs(model.transform(lists) - expected).max() < 1e-5
