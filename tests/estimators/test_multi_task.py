"""Several targets of different kinds in one model."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.metrics import log_loss, mean_absolute_error, r2_score, roc_auc_score
from skorch.callbacks import Callback

from sk_easytensor import MLP, BoostedTrees, EasyTensorClassifier, EasyTensorMultiTask
from sk_easytensor.inference import load

TASKS = {"clicked": "binary", "amount": "gamma", "kind": "multiclass"}
QUICK = {
    "trunk": MLP(width=16),
    "max_epochs": 3,
    "n_folds": None,
    "random_state": 0,
    "batch_size": 64,
}


@pytest.fixture(scope="module")
def table():
    """Features of 400 rows, and three targets of which two are missing in some."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)})
    X["c"] = rng.choice(list("xyz"), 400)
    score = X["a"] + (X["c"] == "x")
    y = pd.DataFrame(
        {
            "clicked": score + 0.5 * rng.normal(size=400) > 0.3,
            "amount": 1000 * np.exp(0.5 * score + 0.1 * rng.normal(size=400)),
            "kind": np.where(X["b"] > 0.5, "high", np.where(X["b"] > -0.5, "middle", "low")),
        }
    )
    y.loc[rng.random(400) < 0.5, "amount"] = None
    y.loc[rng.random(400) < 0.1, "kind"] = None
    return X, y


@pytest.fixture(scope="module")
def model(table):
    X, y = table
    model = EasyTensorMultiTask(
        TASKS,
        **{**QUICK, "max_epochs": 25, "trees": BoostedTrees(max_iter=20)},
        eval_metric={"clicked": "auc", "amount": ["mae"]},
        stopping_metric="loss",
    )
    return model.fit(X[:300], y[:300], eval_set=[(X[300:], y[300:])])


def test_each_task_is_learned(model, table):
    X, y = (part[300:] for part in table)
    predicted, proba = model.predict(X), model.predict_proba(X)
    assert list(predicted.columns) == list(TASKS)
    assert list(proba) == ["clicked", "kind"]
    assert roc_auc_score(y["clicked"], proba["clicked"][:, 1]) > 0.85
    known = y["amount"].notna().to_numpy()
    assert r2_score(y["amount"][known], predicted["amount"].to_numpy()[known]) > 0.6
    assert (predicted["kind"].to_numpy() == y["kind"].to_numpy())[y["kind"].notna()].mean() > 0.8
    assert predicted["clicked"].dtype == bool
    assert model.score(X, y) > 0.7


def test_losses_and_metrics_are_those_of_the_tasks(model, table):
    X, y = (part[300:] for part in table)
    found, index = model.evals_result_["valid_0"], model.best_iteration_ - 1
    assert list(found) == [
        "loss",
        "clicked_log_loss",
        "amount_gamma",
        "kind_log_loss",
        "clicked_auc",
        "amount_mae",
    ]
    assert model.best_score_ == min(found["loss"]) == found["loss"][index]
    proba = model.predict_proba(X)
    expected = log_loss(y["clicked"], proba["clicked"])
    assert found["clicked_log_loss"][index] == pytest.approx(expected, rel=2e-3)
    known = y["amount"].notna().to_numpy()
    error = mean_absolute_error(y["amount"][known], model.predict(X)["amount"].to_numpy()[known])
    assert found["amount_mae"][index] == pytest.approx(error, rel=2e-3)


def test_a_metric_of_a_task_decides(table):
    model = EasyTensorMultiTask(TASKS, **QUICK, eval_metric={"clicked": "auc"}, trees=None)
    model.fit(*table)
    assert model.best_score_ == max(model.evals_result_["valid_0"]["clicked_auc"])


def test_each_task_has_trees_of_its_own_weight(model):
    assert list(model.tree_weight_) == list(TASKS)
    assert len(set(model.tree_weight_.values())) > 1
    assert len(model.network_.trees.forests) == 3


def test_missing_targets_do_not_count(table):
    """What stands for a missing target changes nothing; a task is learned where it is known."""
    X, y = table
    params = {**QUICK, "trees": BoostedTrees(max_iter=5)}
    expected = EasyTensorMultiTask(TASKS, **params).fit(X, y).predict(X)
    other = {
        "kind": y["kind"].astype("string"),
        "amount": y["amount"].astype("Float64"),
        "clicked": y["clicked"].astype("boolean"),
    }
    found = EasyTensorMultiTask(TASKS, **params).fit(X, pd.DataFrame(other)).predict(X)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_flavours_of_targets(table):
    X, y = table
    y = y.fillna({"amount": 1.0, "kind": "low"})
    params = {**QUICK, "trees": None}
    expected = EasyTensorMultiTask(TASKS, **params).fit(X, y).predict(X)
    for other in (y[y.columns[::-1]], pl.from_pandas(y), y.to_dict("list"), y.to_numpy()):
        found = EasyTensorMultiTask(TASKS, **params).fit(X, other).predict(X)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_one_task_is_a_classifier(table):
    X, y = table
    params = {**QUICK, "trees": BoostedTrees(max_iter=10)}
    alone = EasyTensorClassifier(linear=None, **params).fit(X, y["clicked"])
    model = EasyTensorMultiTask({"clicked": "binary"}, **params).fit(X, y[["clicked"]])
    np.testing.assert_array_equal(model.predict_proba(X)["clicked"], alone.predict_proba(X))
    assert model.tree_weight_["clicked"] == alone.tree_weight_


def test_weights_of_losses_matter(table):
    X, y = table
    params = {**QUICK, "max_epochs": 10, "trees": None, "validation_fraction": None}
    scores = []
    for weight in (0.01, 1.0):
        tasks = {"kind": "multiclass", "clicked": "binary"}
        model = EasyTensorMultiTask(tasks, loss_weights={"kind": weight}, **params).fit(X, y)
        known = y["kind"].notna()
        scores.append(log_loss(y["kind"][known], model.predict_proba(X)["kind"][known]))
    assert scores[1] < scores[0] - 0.05


def test_sample_weights_and_importances(table):
    X, y = table
    weight = np.arange(400) % 2
    params = {**QUICK, "trees": None, "validation_fraction": None}
    weighted = EasyTensorMultiTask(TASKS, **params).fit(X, y, sample_weight=weight)
    absent = EasyTensorMultiTask(TASKS, **params).fit(X[1::2], y[1::2])
    pd.testing.assert_frame_equal(weighted.predict(X), absent.predict(X))
    assert absent.feature_importances_.shape == (3,)


def test_exported_pickled_and_cloned(model, table, tmp_path):
    X = table[0][300:]
    expected = model.predict(X)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(model)).predict(X), expected)
    assert clone(model).get_params()["tasks"] == TASKS
    predictor = load(model.to_onnx(tmp_path / "model.onnx"))
    found = predictor.predict(X)
    assert list(found) == list(TASKS)
    np.testing.assert_allclose(found["amount"], expected["amount"], rtol=1e-4)
    assert (found["kind"] == expected["kind"]).all()
    assert (found["clicked"] == expected["clicked"]).all()
    for name, proba in predictor.predict_proba(X).items():
        np.testing.assert_allclose(proba, model.predict_proba(X)[name], atol=1e-5)
    assert "clicked" in model.report(tmp_path / "report.html").read_text(encoding="utf-8")


def test_warm_start_and_partial_fit(table):
    X, y = table
    model = EasyTensorMultiTask(TASKS, **QUICK, trees=None, warm_start=True).fit(X, y)
    score = model.best_score_
    assert model.fit(X, y).best_score_ <= score
    assert model.partial_fit(X, y).n_iter_ == 7


def test_stored_tables(table, tmp_path):
    X, y = table
    path = tmp_path / "table.parquet"
    X.join(y).to_parquet(path)
    params = {**QUICK, "trees": None}
    model = EasyTensorMultiTask(TASKS, **params).fit(path, ["kind", "clicked", "amount"])
    expected = EasyTensorMultiTask(TASKS, **params).fit(X, y)
    pd.testing.assert_frame_equal(model.predict(X), expected.predict(X))
    with pytest.raises(ValueError, match=r"y names the columns \['clicked'\], but tasks are"):
        EasyTensorMultiTask(TASKS, **params).fit(path, ["clicked"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tasks": None}, "tasks must be a dictionary"),
        ({"tasks": {"clicked": "yes/no"}}, r"tasks\['clicked'\] must be one of"),
        ({"tasks": {"kind": "binary"}}, "has 3 classes, but tasks"),
        ({"tasks": {"kind": "regression"}}, r"y\['kind'\]: y must be numbers"),
        ({"tasks": {"nothing": "binary"}}, r"y has no column \['nothing'\]"),
        ({"loss_weights": {"other": 1}}, "loss_weights must be a dictionary"),
        ({"loss_weights": {"clicked": 0}}, r"loss_weights\['clicked'\]"),
        ({"eval_metric": "auc"}, "eval_metric must be a dictionary of metrics of tasks"),
        ({"stopping_metric": "amount_mae"}, "stopping_metric must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(params, message, table):
    with pytest.raises(ValueError, match=message):
        EasyTensorMultiTask(**{"tasks": TASKS, **QUICK, **params}).fit(*table)


def test_targets_that_validation_rows_alone_have_are_refused(table):
    X, y = table
    other = y.assign(kind="unheard of")
    with pytest.raises(ValueError, match=r"eval_set\[0\].*not seen before"):
        EasyTensorMultiTask(TASKS, **QUICK).fit(X, y, eval_set=[(X, other)])
    empty = y.assign(amount=None)
    with pytest.raises(ValueError, match=r"y\['amount'\] has no value"):
        EasyTensorMultiTask(TASKS, **QUICK).fit(X, empty)


def test_a_function_tells_its_direction(table):
    X, y = table

    def hits(y_true, y_pred):
        return "hits", np.mean((y_pred > 0.5) == y_true), True

    params = {**QUICK, "trees": None, "max_epochs": 8}
    model = EasyTensorMultiTask(TASKS, eval_metric={"clicked": hits}, **params).fit(X, y)
    assert model.best_score_ == max(model.evals_result_["valid_0"]["clicked_hits"])


def test_targets_that_few_rows_have(table):
    X, y = table
    y = y.assign(amount=np.where(np.arange(400) < 2, 5.0, np.nan))
    for seed in range(3):
        model = EasyTensorMultiTask(TASKS, **{**QUICK, "random_state": seed}, trees=None)
        assert np.isfinite(model.fit(X, y).best_score_)
    with pytest.raises(ValueError, match=r"y\['amount'\] has no value, so that it has no score"):
        model.score(X[2:], y[2:])


def test_a_fit_that_fails_changes_nothing(table):
    X, y = table
    constant = y.assign(amount=5.0)

    class Fail(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise OSError("the disk is full")

    model = EasyTensorMultiTask(TASKS, **QUICK, trees=None).partial_fit(X, constant)
    before = model.predict(X)
    assert set(before["amount"]) == {5.0}
    with pytest.raises(OSError, match="the disk is full"):
        model.set_params(callbacks=[Fail()]).partial_fit(X, y)
    pd.testing.assert_frame_equal(model.predict(X), before)


def test_weights_of_losses_cannot_change_in_a_warm_start(table):
    model = EasyTensorMultiTask(TASKS, **QUICK, trees=None).partial_fit(*table)
    with pytest.raises(ValueError, match="loss_weights changed"):
        model.set_params(loss_weights={"kind": 2.0}).partial_fit(*table)


def test_targets_of_a_dictionary_are_named_and_of_any_kind(table):
    X, y = table
    columns = {name: y[name].tolist() for name in y}
    params = {**QUICK, "max_epochs": 1, "trees": None}
    expected = EasyTensorMultiTask(TASKS, **params).fit(X, columns).predict(X)
    arrow = {name: pa.array(y[name], from_pandas=True) for name in y}
    found = EasyTensorMultiTask(TASKS, **params).fit(X, arrow).predict(X)
    pd.testing.assert_frame_equal(found, expected)
    for odd in (np.ones((400, 1)), 1.0, [[1.0], [1.0, 2.0]] * 200, y):
        with pytest.raises(ValueError, match=r"y\['amount'\]: "):
            EasyTensorMultiTask(TASKS, **params).fit(X, {**columns, "amount": odd})
