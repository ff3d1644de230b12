"""Monotonic constraints: of network and trees, in torch and in exported models."""

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from sk_easytensor import EasyTensorClassifier, NumericBlock, PretrainedBlock

N_ROWS = 300
GRID = np.r_[-np.inf, np.linspace(-4, 4, 60), np.inf]


def make_rows(n_rows=N_ROWS, seed=0):
    """Return rows and a number that falls with `a` on the whole, noisily and not everywhere."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=n_rows),
            "b": rng.normal(size=n_rows),
            "c": rng.choice(["x", "y"], n_rows),
        }
    )
    y = -frame["a"] * (1 + (frame["c"] == "x")) + np.sin(6 * frame["a"]) + frame["b"]
    frame.loc[rng.random(n_rows) < 0.1, "a"] = None
    return frame, (y + rng.normal(size=n_rows)).to_numpy()


@pytest.fixture
def rows():
    return make_rows()


def along(frame, row, column="a", grid=GRID):
    """Return copies of a row with other values of a column."""
    frame = frame.iloc[[row] * len(grid)].reset_index(drop=True)
    return frame.assign(**{column: grid})


def assert_falls(values):
    assert (np.diff(values) <= 1e-6 * np.abs(values).max()).all()
    assert values[-1] < values[0]


@pytest.mark.parametrize("trees", ["auto", None])
@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "quantile", "poisson"])
def test_regression_is_monotonic(rows, regressor, loss, trees):
    X, y = rows
    y = np.exp(y / 3) if loss == "poisson" else y
    quantile = 0.8 if loss == "quantile" else None
    params = {"loss": loss, "quantile": quantile, "trees": trees, "monotonic_cst": {"a": -1}}
    model = regressor(**params).fit(X, y)
    assert (model.tree_weight_ > 0) == (trees == "auto" and loss in ("squared_error", "poisson"))
    for row in range(20):
        assert_falls(model.predict(along(X, row)))
    if trees == "auto" and loss == "squared_error":
        free = regressor(loss=loss).fit(X, y)
        assert any(np.diff(free.predict(along(X, row))).max() > 0.01 for row in range(20))


@pytest.fixture(scope="module")
def constrained():
    X, y = make_rows()
    signs = {"a": -1, "b": 1}
    model = EasyTensorClassifier(max_epochs=3, random_state=0, monotonic_cst=signs).fit(X, y > 0)
    assert 0 < model.tree_weight_ < 1
    return model


@settings(max_examples=20, deadline=None)
@given(
    a=st.lists(st.floats(width=32), min_size=2, max_size=20),
    b=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=5),
    c=st.sampled_from(["x", "y", "z", None]),
)
def test_every_row_is_monotonic_in_every_constrained_column(constrained, a, b, c):
    a, b = np.sort([each for each in a if each == each]), np.sort(b)
    if len(a) == 0:
        return
    frame = pd.DataFrame({"a": np.tile(a, len(b)), "b": np.repeat(b, len(a)), "c": c})
    frame["c"] = frame["c"].astype(object)
    values = constrained.decision_function(frame).reshape(len(b), len(a))
    assert (np.diff(values, axis=1) <= 1e-5).all()
    assert (np.diff(values, axis=0) >= -1e-5).all()


def test_constraints_cost_no_accuracy_on_a_monotonic_problem(regressor):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=2000), "b": rng.normal(size=2000)})
    truth = 2 * np.tanh(X["a"]) + np.sin(2 * X["b"])
    y = truth + rng.normal(size=2000)
    errors = []
    for signs in (None, {"a": 1}):
        model = regressor(monotonic_cst=signs, max_epochs=10).fit(X[:1000], y[:1000])
        errors.append(np.sqrt(np.mean((model.predict(X[1000:]) - y[1000:]) ** 2)))
    assert errors[1] < 1.02 * errors[0]


def test_forms_of_constraints(rows, regressor, quick):
    X, y = rows
    quick = {**quick, "max_epochs": 1}
    named = regressor(monotonic_cst={"a": -1, "b": 0}, max_epochs=1).fit(X, y)
    assert list(named.blocks_) == ["category", "numeric", "numeric_monotonic"]
    assert list(named.blocks_["numeric_monotonic"].feature_names_in_) == ["a"]
    expected = named.predict(X)
    for signs in (np.array([-1, 0, 0]), [-1, 0, 0]):
        assert (regressor(monotonic_cst=signs, max_epochs=1).fit(X, y).predict(X) == expected).all()
    assert (
        regressor(max_epochs=1, monotonic_cst=[0, 0, 0]).fit(X, y).predict(X)
        == regressor(max_epochs=1).fit(X, y).predict(X)
    ).all()
    assert clone(named).monotonic_cst == {"a": -1, "b": 0}
    assert (pickle.loads(pickle.dumps(named)).predict(X) == expected).all()
    assert named.feature_importances_[0] > 0


def test_all_columns_may_be_constrained(rows, regressor):
    X, y = rows
    for trees in ("auto", None):
        model = regressor(monotonic_cst=[-1, 1], trees=trees).fit(X[["a", "b"]], y)
        assert_falls(model.predict(along(X[["a", "b"]], 0)))
        assert model.transform(X[["a", "b"]]).shape[0] == N_ROWS
        assert model.score(X[["a", "b"]], y) > 0


def test_further_fits_stay_monotonic(rows, regressor):
    X, y = rows
    partial = regressor(monotonic_cst={"a": -1})
    warm = regressor(monotonic_cst={"a": -1}, warm_start=True)
    for _ in range(2):
        partial.partial_fit(X, y)
        warm.fit(X, y)
    for model in (partial, warm):
        assert_falls(model.predict(along(X, 0)))
    with pytest.raises(ValueError, match="monotonic_cst changed"):
        warm.set_params(monotonic_cst={"a": 1}).fit(X, y)


@pytest.mark.parametrize("trees", ["auto", None])
def test_explanations_with_offsets_and_constraints(rows, regressor, trees):
    X, y = rows
    X = X.assign(start=X["b"] / 2)
    model = regressor(monotonic_cst={"a": -1}, offset="start", trees=trees).fit(X, y)
    found = model.explain(X[:4], background=X[4:20], random_state=0)
    total = found.base_values + found.values.sum(axis=1)
    np.testing.assert_allclose(total, model.predict(X[:4]), atol=1e-4)
    assert np.abs(found.values[:, 0]).max() > 0
    assert_falls(model.predict(along(X, 0)))
    both = EasyTensorClassifier(offset="start", monotonic_cst={"a": -1}, max_epochs=2)
    assert_falls(both.fit(X, y > 0).decision_function(along(X, 0)))


def test_a_representation_leaves_constrained_columns_out(rows, regressor):
    X, y = rows
    model = regressor(monotonic_cst={"a": -1}).fit(X, y)
    vectors = [("model", PretrainedBlock(model), ["b", "c"])]
    other = regressor(vectors, trees=None, max_epochs=1).fit(X[["b", "c"]], y)
    assert other.predict(X[["b", "c"]]).shape == (N_ROWS,)


def test_constraints_in_exported_models(constrained, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from sk_easytensor.inference import load

    X, _ = make_rows(20, seed=1)
    predictor = load(constrained.to_onnx(tmp_path / "model.onnx"))
    np.testing.assert_allclose(predictor.predict_proba(X), constrained.predict_proba(X), atol=1e-5)
    for row in range(20):
        assert_falls(predictor.predict_proba(along(X, row))[:, 1])


def test_constraints_that_make_no_sense_are_refused(rows, regressor, classifier):
    X, y = rows
    for signs, wanted in [
        ({"d": 1}, "names column 'd', which X does not have"),
        ({"a": 2}, r"of column 'a' must be -1 \(decreasing\), 0 or 1 \(increasing\), got 2"),
        ({"c": 1}, "column 'c' is read by block 'category', a CategoryBlock"),
        ([1, 0], r"one sign for each of the 3 columns, got shape \(2,\)"),
        ("a", r"one sign for each of the 3 columns, got shape \(\)"),
    ]:
        with pytest.raises(ValueError, match=wanted):
            regressor(monotonic_cst=signs).fit(X, y)
    named = regressor([("n", NumericBlock(), "b")], remainder="drop", monotonic_cst={"a": 1})
    with pytest.raises(ValueError, match="no block reads column 'a'"):
        named.fit(X, y)
    with pytest.raises(ValueError, match="this one has 2 outputs"):
        regressor(monotonic_cst={"a": 1}).fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="this one has 3 outputs"):
        classifier(monotonic_cst={"a": 1}).fit(X, np.arange(N_ROWS) % 3)
    with pytest.raises(TypeError, match="'monotone_constraints': use monotonic_cst"):
        EasyTensorClassifier(monotone_constraints={"a": 1})
