"""Confident models: exported graphs are finite, and equal to torch, far from even odds."""

import re
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from sk_easytensor import BoostedTrees, EasyTensorClassifier, EasyTensorRegressor, TabM
from sk_easytensor.export import onnx
from sk_easytensor.export.adapters import ExportedNetwork, PairAdapter, export_adapter
from sk_easytensor.export.onnx import network_model, traced
from sk_easytensor.export.tensorrt import lower
from sk_easytensor.inference import encoded_arrays, load
from sk_easytensor.losses import BUILT_IN, Loss, Quantile, loss_names
from sk_easytensor.networks.heads import (
    BinaryHead,
    MulticlassHead,
    MultilabelHead,
    RegressionHead,
)
from sk_easytensor.networks.two_tower_network import as_embeddings
from sk_easytensor.onnx.predictor import check_finite


class OwnLoss(Loss):
    """A loss of a user, of which graphs need the link alone."""

    link = "log"


HEADS = {
    "binary": BinaryHead(),
    "multiclass": MulticlassHead(3),
    "multilabel": MultilabelHead(3),
    **{name: RegressionHead(BUILT_IN[name](), 3) for name in loss_names("regressor")},
    "quantiles": RegressionHead(Quantile([0.1, 0.5, 0.9])),
    "own": RegressionHead(OwnLoss(), 3),
}


class Everything(torch.nn.Module):
    """All that is computed of the outputs of a network's members, for every kind of target."""

    def forward(self, *tensors):
        (outputs,), found = tensors, []
        for head in HEADS.values():
            combined = head.normalize(head.average_members(outputs[..., : head.out_features]))[:, 0]
            found += [combined, head.predict(combined), head.predict(combined.double())]
        # What a sum of matrices of logits would be, along two dimensions and none kept.
        found.append(outputs.logsumexp((1, 2)))
        return (*found, *(as_embeddings(outputs, normalized) for normalized in (False, True)))


def extreme_outputs():
    """Return outputs of three members: alike, unlike and opposite, of every size."""
    sizes = [0.0, 1e-3, 1.0, 20.0, 87.0, 89.0, 104.0, 745.0, 1e4]
    values = np.array([sign * size for size in sizes for sign in (-1, 1)])
    pairs = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    first, second = pairs[:, :1], pairs[:, 1:]
    shifts = np.array([[0, 1, -1], [0, -1, 2], [0, -3, -5]])
    members = np.stack([first, second, first], axis=1) + shifts
    return torch.from_numpy(members.astype(np.float32))


@pytest.fixture(scope="module")
def compared():
    """Outputs of torch and of onnxruntime, in pairs."""
    example = SimpleNamespace(example=torch.zeros(5, 3, 3), dynamic={0: "rows"})
    names = [f"{name}.{what}" for name in HEADS for what in ("combined", "single", "double")]
    names += ["sums", "dot", "cosine"]
    model = traced(Everything().eval(), [example], ["outputs"], names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = extreme_outputs()
    found = session.run(None, {"outputs": outputs.numpy()})
    expected = [each.numpy() for each in Everything()(outputs)]
    kinds = {node.op_type for node in model.graph.node}
    return dict(zip(names, zip(expected, found, strict=True), strict=True)), kinds


@pytest.mark.parametrize("kind", [*HEADS, "sums", "dot", "cosine"])
def test_graphs_agree_with_torch_at_any_confidence(compared, kind):
    pairs = {name: pair for name, pair in compared[0].items() if name.partition(".")[0] == kind}
    assert pairs
    for name, (expected, found) in pairs.items():
        assert np.isfinite(expected).all(), name
        assert np.isfinite(found).all(), name
        size = np.maximum(1, np.abs(expected))
        assert (np.abs(found - expected) / size).max() < 1e-5, name


def test_graphs_do_without_operators_that_runtimes_compute_as_they_like(compared):
    assert not compared[1] & {"ReduceLogSumExp", "LogSoftmax", "Softplus"}


def separable(n_rows=240):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=n_rows), "c": rng.choice(list("xyz"), n_rows)})
    X.loc[::5, "a"] = np.nan
    X.loc[::7, "c"] = None
    return X, (X["c"] == "x") | (X["a"] > 0)


def confident(estimator, X, y, factor):
    """Fit, and multiply all that the network and the trees say of a row."""
    trunk, trees = TabM(members=2, width=8), BoostedTrees(max_iter=20)
    quick = {"trunk": trunk, "trees": trees, "n_folds": None}
    model = estimator.set_params(**quick, max_epochs=3, random_state=0).fit(X, y)
    with torch.no_grad():
        for parameter in model.network_.head.parameters():
            parameter *= factor
        for forest in model.network_.trees.forests:
            forest.values *= factor
            forest.base *= factor
    return model


class Broken:
    """A session that gives NaN for every third row."""

    def run(self, names, given):
        found = np.zeros((len(next(iter(given.values()))), 2))
        found[::3] = np.nan
        return [found for _ in names]


def test_raw_columns_encoded_rows_and_the_graph_for_tensorrt(tmp_path, monkeypatch):
    X, y = separable()
    model = confident(EasyTensorClassifier(), X, y, 1e4)
    expected = model.predict_proba(X)
    assert np.abs(model.decision_function(X)).max() > 1e4
    assert np.isfinite(expected).all()
    program = network_model(ExportedNetwork(export_adapter(model)))
    # Raw columns and encoded rows have the same network, which is traced once.
    monkeypatch.setattr(onnx, "network_model", lambda network: program)
    predictor = load(model.to_onnx(tmp_path / "raw.onnx"))
    network = ExportedNetwork(export_adapter(model), precise=False)
    lower(network, torch.float32)
    files = [
        model.to_onnx(tmp_path / "encoded.onnx", inputs="encoded").read_bytes(),
        network_model(network).SerializeToString(),
    ]
    arrays = encoded_arrays(model, X)
    for found in (
        predictor.predict_proba(X),
        *(onnxruntime.InferenceSession(each).run(["probabilities"], arrays)[0] for each in files),
    ):
        assert np.abs(found - expected).max() < 1e-5

    predictor._session = Broken()
    where = re.escape(str(tmp_path / "raw.onnx"))
    message = f"{where} gives NaN or infinity in output 'probabilities' for 80 of 240 rows"
    for method in (predictor.predict, predictor.predict_proba):
        with pytest.raises(RuntimeError, match=message):
            method(X)
    with pytest.raises(RuntimeError, match="output 'representation' for 80 of 240"):
        predictor.transform(X)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "poisson"])
def test_separable_targets_of_other_kinds(kind, tmp_path, assert_same):
    X, first = separable()
    y = {
        "multiclass": first.astype(int) + (X["a"] > 1),
        "multilabel": np.column_stack([first, X["c"] == "y"]).astype(int),
        "poisson": np.where(first, 1e4, 0.0),
    }[kind]
    regresses = kind == "poisson"
    estimator = EasyTensorRegressor(loss="poisson") if regresses else EasyTensorClassifier()
    model = confident(estimator, X, y, 1e3)
    assert np.abs(model._raw_predict(X).numpy()).max() > 1e3
    predictor = load(model.to_onnx(tmp_path / "model.onnx"))
    assert_same(model, predictor, X, "predict", *([] if regresses else ["predict_proba"]))


def test_pairs_of_two_classes():
    target = SimpleNamespace(classes_=np.array([0, 1]))
    tower = SimpleNamespace(normalized=False, blocks_={}, network_=None, _encoder=None)
    model = SimpleNamespace(
        _target=target, user_tower_=tower, item_tower_=tower, _temperature=1e-4, _bias=0.0
    )
    network = torch.nn.Identity()
    frames = [torch.tensor([[[-1.0]], [[0.0]], [[1.0]]]), torch.ones(3, 1, 1)]
    scores, found = PairAdapter(model).compute([network, network], frames, True)
    np.testing.assert_allclose(scores, [-1e4, 0, 1e4])
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


@pytest.mark.parametrize("loss", ["poisson", "gamma"])
def test_predictions_through_an_exponential_are_finite(loss):
    X, y = separable()
    model = confident(EasyTensorRegressor(loss=loss), X, np.where(y, 1e6, 1e-6), 1e4)
    assert np.abs(model._raw_predict(X).numpy()).max() > 1e4
    assert np.isfinite(model.predict(X)).all()


def test_what_is_finite():
    check_finite("label", np.array(["a"], dtype=object), "the file")
    check_finite("predictions", np.array([1e300, -1e300]), "the file")
    with pytest.raises(RuntimeError, match=r"'predictions' for 1 of 2 rows.* row 1"):
        check_finite("predictions", np.array([1.0, np.inf]), "the file")


def test_engines_refuse_what_single_precision_does_not_reach():
    X = pd.DataFrame({"a": np.arange(30.0)})
    model = EasyTensorRegressor(trees=None, trunk=TabM(width=8), max_epochs=1, n_folds=None)
    model.set_params(random_state=0)
    for factor, found in ((1e60, "e[+]60"), (1e-60, "e-60")):
        adapter = export_adapter(model.fit(X, factor * X["a"]))
        with pytest.raises(ValueError, match=f"y was of the size of [0-9.]+{found}.*divided by"):
            adapter.check_single()
    export_adapter(model.fit(X, 0 * X["a"])).check_single()
