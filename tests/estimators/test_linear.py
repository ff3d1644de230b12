"""The linear model of fixed features beside network and trees."""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    NumericSequenceBlock,
    TextBlock,
)
from sk_easytensor.inference import load
from sk_easytensor.networks.heads import RegressionHead
from sk_easytensor.training import ridge

QUICK = {"max_epochs": 2, "n_folds": None, "trunk": MLP(layers=1, width=8), "random_state": 0}
SERIES = [("series", NumericSequenceBlock(width=8, n_kernel_features=504), ["x"])]


def waves(n_rows=160, seed=0):
    """Return series of three frequencies, some empty or with missing steps, and the frequency."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % 3
    lists = []
    for kind in y:
        steps = np.arange(rng.integers(20, 60))
        wave = np.sin(steps * (0.4 + 0.35 * kind) + rng.uniform(0, 6))
        wave += rng.normal(0, 0.5, len(steps))
        lists.append([None if rng.random() < 0.05 else float(value) for value in wave])
    X = pa.table({"x": lists, "size": rng.normal(size=n_rows)})
    return X, y


X, Y = waves()
NEW, NEW_Y = waves(60, seed=1)


def rows_of_a_table(n_rows=200, seed=0):
    """Return columns of four kinds, and a number that is a sum of functions of them."""
    rng = np.random.default_rng(seed)
    days = rng.integers(0, 700, n_rows)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n_rows),
            "city": rng.choice(["Oslo", "Lima", "Rome", "Bonn"], n_rows),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D"),
            "vector": list(rng.normal(size=(n_rows, 5))),
        }
    )
    y = 3 * frame["size"] + 2 * (frame["city"] == "Oslo") + np.sin(days / 365.25 * 2 * np.pi)
    y += np.stack(frame["vector"]) @ [2, 1, 0, 0, -1]
    frame.loc[rng.random(n_rows) < 0.1, "size"] = None
    return frame, (y + 0.1 * rng.normal(size=n_rows)).to_numpy()


TABLE, TARGET = rows_of_a_table()
NEW_TABLE, NEW_TARGET = rows_of_a_table(300, seed=1)


@pytest.fixture(scope="module")
def model():
    return EasyTensorClassifier(SERIES, **QUICK).fit(X, Y)


@pytest.fixture(scope="module")
def of_table():
    return EasyTensorRegressor(**QUICK).fit(TABLE, TARGET)


def test_few_rows_of_a_table_have_it_too(of_table):
    assert {*of_table.network_.linear.names} == {"numeric", "datetime", "category", "vector"}
    network = EasyTensorRegressor(linear=None, **QUICK).fit(TABLE, TARGET)
    ours, theirs = (m.score(NEW_TABLE, NEW_TARGET) for m in (of_table, network))
    assert ours > 0.75 > theirs + 0.2
    assert of_table.linear_weight_ > 0.3
    proba = EasyTensorClassifier(**QUICK).fit(TABLE, TARGET > 0)
    assert proba.linear_weight_ > 0.1
    assert proba.score(NEW_TABLE, NEW_TARGET > 0) > 0.8


def test_many_rows_of_a_table_do_not(monkeypatch):
    monkeypatch.setattr(ridge, "TABLE_ROWS", 150)
    assert EasyTensorRegressor(**QUICK).fit(TABLE, TARGET).network_.linear is None
    # Series do, and only they are read.
    model = EasyTensorClassifier(SERIES, **QUICK).fit(X, Y)
    assert model.network_.linear.names == ["series", "numeric"]
    monkeypatch.setattr(ridge, "TABLE_ROWS", 100)
    model = EasyTensorClassifier(SERIES, **QUICK).fit(X, Y)
    assert model.network_.linear.names == ["series"]
    monkeypatch.undo()
    # Without validation rows, nothing tells how good it is.
    model = EasyTensorRegressor(validation_fraction=None, **QUICK).fit(TABLE, TARGET)
    assert model.network_.linear is None


def texts(n_rows, seed=0):
    """Return texts of which a few words tell the label, and the label."""
    rng = np.random.default_rng(seed)
    words = np.array([f"word{i}" for i in range(300)])
    y = rng.integers(0, 4, n_rows)
    lists = [[*rng.choice(words, 12), f"topic{k}{rng.integers(5)}"] for k in y]
    X = pd.DataFrame({"text": [" ".join(rng.permutation(each)) for each in lists]})
    return X, y


TEXTS = [("text", TextBlock(min_frequency=2), ["text"])]


def test_texts_have_it_for_any_number_of_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(ridge, "TABLE_ROWS", 50)
    X, y = texts(400)
    X_test, y_test = texts(300, seed=1)
    table, table_test = (part.assign(size=0.1 * np.arange(len(part))) for part in (X, X_test))
    model = EasyTensorClassifier(TEXTS, **QUICK).fit(table, y)
    assert model.network_.linear.names == ["text"]
    network = EasyTensorClassifier(TEXTS, linear=None, **QUICK).fit(table, y)
    losses = [log_loss(y_test, each.predict_proba(table_test)) for each in (model, network)]
    assert losses[0] < 0.8 * losses[1]
    exported = load(model.to_onnx(tmp_path / "model.onnx"))
    for rows in (table_test, table_test.head(1), table_test.assign(text="")):
        proba = model.predict_proba(rows)
        np.testing.assert_allclose(exported.predict_proba(rows), proba, atol=1e-5)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(table_test), model.predict_proba(table_test))
    explanation = model.explain(table_test.head(3), background=table.head(20))
    total = explanation.values.sum(axis=1) + explanation.base_values
    np.testing.assert_allclose(total, model.decision_function(table_test.head(3)), atol=1e-4)
    # Beside few rows of other columns, and without validation rows.
    monkeypatch.undo()
    model = EasyTensorClassifier(TEXTS, **QUICK).fit(table, y)
    assert model.network_.linear.names == ["text", "numeric"]
    model = EasyTensorClassifier(TEXTS, validation_fraction=None, **QUICK).fit(table, y)
    assert model.network_.linear is None
    # So many coefficients would take more memory than they are worth.
    monkeypatch.setattr(ridge, "MAX_COEFFICIENTS", 100)
    model = EasyTensorClassifier(TEXTS, **QUICK).fit(X, y)
    assert model.network_.linear is None


def test_numbers_of_texts():
    X, y = texts(400)
    X_test, y_test = texts(300, seed=1)
    model = EasyTensorRegressor(TEXTS, **QUICK).fit(X, 10.0 * y)
    network = EasyTensorRegressor(TEXTS, linear=None, **QUICK).fit(X, 10.0 * y)
    assert model.score(X_test, 10.0 * y_test) > network.score(X_test, 10.0 * y_test) + 0.2
    np.testing.assert_array_equal(
        clone(model).fit(X, 10.0 * y).predict(X_test), model.predict(X_test)
    )


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_sparse_regression_is_that_of_dense_rows(share):
    """Conjugate gradients find the ridge regression of scikit-learn."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 3)).astype(np.float32)
    rare = (rng.random((60, 8)) < 0.3) * rng.random((60, 8))
    rows = ridge.LinearRows(
        {"a": dense, "b": csr_array(rare.astype(np.float32))},
        rng.normal(size=(60, 1)),
        np.where(rng.random(60) < share, 0, rng.uniform(0.5, 2, 60)),
        {"a": np.ones(3, np.float32), "b": np.ones(8, np.float32)},
    )
    module = ridge.SparseRegression.of(rows, RegressionHead()).module(["a", "b"], 0.7, 1.0, share=1)
    known = rows.weight > 0
    weight = rows.weight[known] / rows.weight[known].mean()
    norm = np.sqrt(np.average((rare[known] ** 2).sum(1), weights=weight))
    center = np.average(dense[known], axis=0, weights=weight)
    spread = np.sqrt(np.average((dense[known] - center) ** 2, axis=0, weights=weight))
    spread = np.hypot(spread, 0.1 * np.median(spread))
    matrix = np.c_[(dense - center) / spread, rare / norm]
    expected = Ridge(0.7).fit(matrix[known], rows.target[known], sample_weight=weight)
    parts = [
        torch.from_numpy(features.astype(np.float32)) @ module.weight(name)
        for name, features in (("a", dense), ("b", rare))
    ]
    found = module.outputs(parts)[:, 0, 0]
    np.testing.assert_allclose(found, expected.predict(matrix).ravel(), atol=1e-4)


def test_wide_tables_and_many_classes_are_bounded(monkeypatch):
    monkeypatch.setattr(ridge, "MAX_FEATURES", 5_000)
    model = EasyTensorRegressor(**QUICK).fit(TABLE[["size"]], TARGET)
    assert model.network_.linear.names == ["numeric"]
    assert EasyTensorRegressor(**QUICK).fit(TABLE, TARGET).network_.linear is None
    # Losses are computed part by part, and are the same.
    X, y = texts(200)
    whole = EasyTensorClassifier(TEXTS, **QUICK).fit(X, y)
    monkeypatch.setattr(ridge, "MAX_SCORES", 700)
    monkeypatch.setattr(ridge, "MAX_ROWS", 175)
    parts = EasyTensorClassifier(TEXTS, **QUICK).fit(X, y)
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), atol=0.02)


def test_features_that_hardly_vary_have_small_coefficients():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 4)).astype(np.float32)
    dense[:, 3] *= 1e-4
    rows = ridge.LinearRows(
        {"a": dense, "b": csr_array((rng.random((60, 8)) < 0.3).astype(np.float32))},
        rng.normal(size=(60, 1)),
        np.ones(60),
        {"a": np.ones(4, np.float32), "b": np.ones(8, np.float32)},
    )
    module = ridge.SparseRegression.of(rows, RegressionHead()).module(["a", "b"], 1.0, 1.0, share=1)
    assert abs(module.weight("a")[3, 0]) < 1


def test_weights_of_held_out_rows_may_all_be_zero():
    weight = np.zeros(len(TARGET))
    weight[:3] = 1
    for X in (TABLE, TABLE.assign(text="red blue")):
        model = EasyTensorRegressor(**QUICK).fit(X, TARGET, sample_weight=weight)
        assert np.isfinite(model.predict(X)).all()


def test_hashed_categories_are_not_read():
    block = CategoryBlock(hash_buckets=8)
    model = EasyTensorRegressor([("city", block, ["city"])], **QUICK).fit(TABLE[["city"]], TARGET)
    assert model.network_.linear is None


def test_exported_models_of_tables_have_it(of_table, tmp_path):
    exported = load(of_table.to_onnx(tmp_path / "model.onnx"))
    expected = of_table.predict(NEW_TABLE)
    np.testing.assert_allclose(exported.predict(NEW_TABLE), expected, atol=1e-4)


def test_importances_of_tables_include_it(of_table):
    """What is computed of each column alone equals what is computed of all again."""
    rows = NEW_TABLE.head(40)
    explanation = of_table.explain(rows.head(3), background=rows)
    total = explanation.values.sum(axis=1) + explanation.base_values
    np.testing.assert_allclose(total, of_table.predict(rows.head(3)), atol=1e-4)
    shuffled = rows.assign(city=rows["city"].to_numpy()[::-1])
    assert np.abs(of_table.predict(shuffled) - of_table.predict(rows)).max() > 0.1


def test_validation_rows_weigh_as_much_as_training_rows():
    """Whatever the scale of the weights: the model is fitted on both in the end."""
    weight = np.linspace(1, 2, len(TARGET))
    first, second = (
        EasyTensorRegressor(**QUICK).fit(TABLE, TARGET, sample_weight=w).network_.linear.state()
        for w in (weight, weight * 1.7)
    )
    for ours, theirs in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_few_series_are_enough_for_the_linear_model(model):
    network = EasyTensorClassifier(SERIES, linear=None, **QUICK).fit(X, Y)
    assert model.score(NEW, NEW_Y) > 0.95 > network.score(NEW, NEW_Y) + 0.2
    assert network.linear_weight_ == 0
    assert 0.4 < model.linear_weight_ <= 1
    assert model.tree_weight_ + model.linear_weight_ <= 1


def test_validation_loss_is_that_of_all_models(model):
    network = EasyTensorClassifier(SERIES, linear=None, **QUICK).fit(X, Y)
    assert model.best_score_ < network.best_score_ / 2
    # Some labels are wrong, so that the loss is not 0.
    labels = np.where(np.arange(len(NEW_Y)) % 10 == 0, 2 - NEW_Y, NEW_Y)
    explicit = clone(model).fit(X, Y, eval_set=[(NEW, labels)])
    proba = explicit.predict_proba(NEW)
    loss = -np.log(proba[np.arange(len(labels)), labels]).mean()
    assert loss > 0.01
    assert explicit.best_score_ == pytest.approx(loss, rel=1e-3)


def test_copies_predict_the_same(model):
    expected = model.predict_proba(NEW)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(NEW), expected)
    np.testing.assert_array_equal(clone(model).fit(X, Y).predict_proba(NEW), expected)
    alone = [model.predict_proba(NEW.slice(row, 1)) for row in range(5)]
    np.testing.assert_allclose(np.concatenate(alone), expected[:5], rtol=1e-5, atol=1e-7)


def test_exported_models_have_it(model, tmp_path):
    exported = load(model.to_onnx(tmp_path / "model.onnx"))
    np.testing.assert_allclose(exported.predict_proba(NEW), model.predict_proba(NEW), atol=1e-5)
    empty = pa.table({"x": pa.array([[], None], X["x"].type), "size": [0.0, 1.0]})
    np.testing.assert_allclose(exported.predict_proba(empty), model.predict_proba(empty), atol=1e-5)


def test_exported_models_read_means_of_steps(tmp_path):
    blocks = [("series", NumericSequenceBlock(width=8, n_kernel_features=84, max_steps=20), ["x"])]
    model = EasyTensorClassifier(blocks, **QUICK).fit(X, Y)
    assert model.blocks_["series"].stride_ == 3
    exported = load(model.to_onnx(tmp_path / "model.onnx"))
    for rows in (NEW, NEW.slice(3, 1), NEW.slice(7, 2)):
        expected = model.predict_proba(rows)
        np.testing.assert_allclose(exported.predict_proba(rows), expected, atol=1e-5)


def test_importances_and_contributions_include_it(model):
    series, size = model.feature_importances_
    assert series > 0.3 > size
    explanation = model.explain(NEW.slice(0, 4))
    total = explanation.values.sum(axis=1) + explanation.base_values
    np.testing.assert_allclose(total, model.decision_function(NEW.slice(0, 4)), atol=1e-4)


def test_checkpoints_resume_with_it(model, tmp_path):
    stopped = EasyTensorClassifier(SERIES, checkpoint_dir=tmp_path, **QUICK).fit(X, Y)
    again = clone(stopped).fit(X, Y)
    for other in (stopped, again):
        np.testing.assert_array_equal(other.predict_proba(NEW), model.predict_proba(NEW))


def test_a_warm_start_keeps_it():
    model = EasyTensorClassifier(SERIES, warm_start=True, **QUICK).fit(X, Y)
    before, weight = model.network_.linear.state(), model.linear_weight_
    model.fit(X, Y)
    after = model.network_.linear.state()
    np.testing.assert_array_equal(before["weights"][0], after["weights"][0])
    assert model.linear_weight_ == weight


def test_numbers():
    target = 3 * Y + np.random.default_rng(2).normal(0, 0.1, len(Y))
    model = EasyTensorRegressor(SERIES, **QUICK).fit(X, target)
    network = EasyTensorRegressor(SERIES, linear=None, **QUICK).fit(X, target)
    assert model.score(NEW, 3 * NEW_Y) > 0.8 > network.score(NEW, 3 * NEW_Y) + 0.2
    assert model.linear_weight_ > 0.5


@pytest.mark.parametrize(
    ("make", "y"),
    [
        (lambda: EasyTensorRegressor(SERIES, loss="poisson", **QUICK), Y),
        (lambda: EasyTensorRegressor(SERIES, loss="quantile", quantile=0.9, **QUICK), Y),
        (lambda: EasyTensorClassifier(SERIES, offset="size", **QUICK), Y > 0),
        (lambda: EasyTensorClassifier(SERIES, linear=None, **QUICK), Y),
    ],
)
def test_there_is_none_where_it_does_not_fit(make, y):
    model = make().fit(X, y)
    assert model.linear_weight_ == 0
    assert model.network_.linear is None


def test_rows_without_weight_do_not_count():
    weight = np.where(Y == 2, 0.0, 1.0)
    rows = np.flatnonzero(weight)
    weighted = EasyTensorClassifier(SERIES, **QUICK).fit(X, Y, sample_weight=weight)
    fewer = clone(weighted).fit(X.take(rows), Y[rows])
    ours, theirs = (m.network_.linear.state() for m in (weighted, fewer))
    np.testing.assert_array_equal(ours["intercept"], theirs["intercept"])
    for own, other in zip(ours["weights"], theirs["weights"], strict=True):
        np.testing.assert_array_equal(own, other)


def test_several_tasks_have_none():
    y = {"kind": Y.astype(str), "number": Y.astype(float)}
    model = EasyTensorMultiTask({"kind": "multiclass", "number": "regression"}, SERIES, **QUICK)
    assert model.fit(X, y).network_.linear is None


def test_invalid_values_are_named():
    with pytest.raises(
        ValueError, match=r"EasyTensorClassifier: linear must be .*'auto'.*got 'on'"
    ):
        EasyTensorClassifier(linear="on").fit(X, Y)


def test_a_network_of_few_series_has_no_weight_and_few_epochs():
    X, y = waves(60)
    alone = X.select(["x"])
    quick = {name: value for name, value in QUICK.items() if name != "max_epochs"}
    model = EasyTensorClassifier(SERIES, **quick).fit(alone, y)
    assert model.n_iter_ == 1
    assert model.linear_weight_ == 1
    assert not model.network_.linear.needs_others
    longer = EasyTensorClassifier(SERIES, max_epochs=7, **quick).fit(alone, y)
    assert longer.n_iter_ == 7
    assert 0.8 < longer.linear_weight_ < 1
    # The network alone reads the other column.
    both = EasyTensorClassifier(SERIES, **quick).fit(X, y)
    assert both.n_iter_ > 10
    assert both.linear_weight_ < 0.8


def test_a_network_without_a_linear_model_has_all_epochs():
    X, y = waves(9)
    quick = {name: value for name, value in QUICK.items() if name != "max_epochs"}
    model = EasyTensorClassifier(SERIES, validation_fraction=None, **quick)
    model.fit(X.select(["x"]), y)
    assert model.linear_weight_ == 0
    assert model.n_iter_ > 50


# ---------------------------------------------------------------------- rows that were held out


def reviews_of_chance(n_rows=400):
    """Return texts of random words, and labels that one of them says half of the time."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{index}" for index in range(300)])
    texts = [" ".join(rng.choice(words, 30)) for _ in range(n_rows)]
    y = rng.random(n_rows) < 0.5
    return pd.DataFrame({"text": texts, "x": rng.normal(size=n_rows) + y}), y


@pytest.mark.parametrize("kind", ["texts", "numbers", "series"])
def test_measures_of_held_out_rows_are_of_a_model_that_has_not_seen_them(kind):
    """The linear model is fitted again with these rows, and knows them by heart."""
    frame, y = reviews_of_chance()
    params = {**QUICK, "validation_fraction": 0.25}
    if kind == "texts":
        model = EasyTensorClassifier(**params).fit(frame, y)
    elif kind == "series":
        model = EasyTensorClassifier(SERIES, **params).fit(X, Y)
    else:
        rng = np.random.default_rng(0)
        wide = rng.normal(size=(400, 60))
        y = wide.sum(axis=1) + 8 * rng.normal(size=400) > 0
        model = EasyTensorClassifier(**params).fit(wide, y)
    assert model.linear_weight_ > 0
    model.feature_importances_.sum()
    assert model._validation["measures"]["log loss"] == pytest.approx(model.best_score_, rel=1e-4)
    copied = pickle.loads(pickle.dumps(model))
    assert copied._validation["measures"] == model._validation["measures"]


def test_a_warm_start_evaluates_a_model_that_has_not_seen_held_out_rows():
    frame, y = reviews_of_chance()
    params = {**QUICK, "validation_fraction": 0.25, "warm_start": True}
    model = EasyTensorClassifier(**params).fit(frame, y)
    assert model.linear_weight_ > 0
    first, linear = model.best_score_, model.network_.networks[0].linear
    model.set_params(learning_rate=1e-12)
    for other in (pickle.loads(pickle.dumps(model)), model):
        other.fit(frame, y)
        assert other.best_score_ == pytest.approx(first, rel=1e-3)
        np.testing.assert_array_equal(other.network_.networks[0].linear.arrays[0], linear.arrays[0])
        other.feature_importances_.sum()
        assert other._validation["measures"]["log loss"] == pytest.approx(first, rel=1e-3)


def test_a_warm_start_that_was_not_announced_fits_the_model_again_without_these_rows():
    frame, y = reviews_of_chance()
    model = EasyTensorClassifier(**QUICK, validation_fraction=0.25).fit(frame, y)
    first, linear = model.best_score_, model.network_.networks[0].linear
    assert model.linear_weight_ > 0
    model.set_params(warm_start=True, learning_rate=1e-12).fit(frame, y)
    assert model.best_score_ == pytest.approx(first, rel=1e-2)
    np.testing.assert_array_equal(model.network_.networks[0].linear.arrays[0], linear.arrays[0])


def test_wide_tables_keep_the_model_that_has_not_seen_held_out_rows():
    """Their importances are computed after pickling."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(300, 101))
    y = wide.sum(axis=1) > 0
    model = EasyTensorClassifier(**QUICK, validation_fraction=0.25).fit(wide, y)
    assert model.linear_weight_ > 0
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.feature_importances_, model.feature_importances_)
    assert model._validation["measures"]["log loss"] == pytest.approx(model.best_score_, rel=1e-4)
    np.testing.assert_array_equal(copied.predict_proba(wide), model.predict_proba(wide))
