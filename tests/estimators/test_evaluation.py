"""What validation rows decide, and what is reported of them."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    d2_tweedie_score,
    log_loss,
    mean_absolute_error,
    mean_pinball_loss,
    mean_poisson_deviance,
    mean_squared_error,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring

from sk_easytensor import MLP, BoostedTrees, EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor.training.blend import fit_blend

CLOSE = 2e-3
"""Relative error of a loss that was evaluated in half precision, where that is fast."""


@pytest.fixture
def table():
    """Training and validation rows: noisy labels that a network overfits."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=320), "c": rng.choice(list("xyz"), 320)})
    y = np.where(X["a"] + (X["c"] == "x") + rng.normal(size=320) > 0.5, "yes", "no")
    return X[:200], y[:200], X[200:], y[200:]


@pytest.fixture
def with_trees(quick):
    """Parameters of models of network and trees."""
    return {**quick, "trees": BoostedTrees(max_iter=10), "max_epochs": 6}


# ---------------------------------------------------------------------- which set decides


@pytest.mark.parametrize("copy", [lambda values: values, lambda values: values.copy()])
def test_the_training_data_are_reported_and_never_decide(copy, classifier, table):
    X, y, X_valid, y_valid = table
    alone = classifier().fit(X, y, eval_set=[(X_valid, y_valid)])
    both = classifier().fit(X, y, eval_set=[(copy(X), copy(y)), (X_valid, y_valid)])
    np.testing.assert_array_equal(both.predict_proba(X_valid), alone.predict_proba(X_valid))
    assert list(both.evals_result_) == ["training", "valid_1"]
    assert both.evals_result_["valid_1"] == alone.evals_result_["valid_0"]
    index = both.best_iteration_ - 1
    # Evaluated as validation rows are: of the whole model, without dropout.
    expected = log_loss(y, both.predict_proba(X))
    assert both.evals_result_["training"]["log_loss"][index] == pytest.approx(expected, rel=CLOSE)


def test_copies_of_weighted_training_rows_are_the_training_data(classifier, table):
    """Rows of weight zero are no training rows, but part of what was given."""
    X, y, X_valid, y_valid = table
    X = X.assign(a=X["a"].where(np.arange(200) % 7 > 0))
    weight = np.arange(200) % 3
    model = classifier(max_epochs=2)
    model.fit(X, y, sample_weight=weight, eval_set=[(X.copy(), y.copy()), (X_valid, y_valid)])
    assert list(model.evals_result_) == ["training", "valid_1"]
    other = np.where(np.arange(200) == 5, "yes", y)
    other[5] = "no" if y[5] == "yes" else "yes"
    model.fit(X, y, eval_set=[(X, other)])
    assert list(model.evals_result_) == ["training", "valid_0"]


def test_curves_of_a_warm_start_are_as_long_as_its_epochs(classifier, table):
    X, y, X_valid, y_valid = table
    pair = {"eval_set": [(X_valid, y_valid)]}
    model = classifier(warm_start=True, max_epochs=2).partial_fit(X, y).fit(X, y, **pair)
    model.set_params(eval_metric="auc").fit(X, y, **pair)
    found = model.evals_result_["valid_0"]
    assert {len(curve) for curve in found.values()} == {model.n_iter_} == {5}
    assert np.isnan(found["auc"][:3]).all()
    assert np.isnan(found["log_loss"][0])


def test_with_the_training_data_alone_rows_are_held_out(classifier, table):
    X, y, *_ = table
    expected = classifier().fit(X, y)
    model = classifier().fit(X, y, eval_set=[(X, y)])
    assert list(model.evals_result_) == ["training", "valid_0"]
    assert model.evals_result_["valid_0"] == expected.evals_result_["valid_0"]


def test_the_training_data_never_decide_where_nothing_does(classifier, table):
    X, y, *_ = table
    model = classifier(validation_fraction=None, eval_metric="auc").fit(X, y, eval_set=[(X, y)])
    assert model.best_iteration_ == model.n_iter_ == 3
    found = model.evals_result_["training"]["auc"]
    assert found[-1] == pytest.approx(roc_auc_score(y == "yes", model.predict_proba(X)[:, 1]))


def test_the_last_of_several_sets_decides(classifier, table):
    X, y, X_valid, y_valid = table
    halves = [(X_valid[:60], y_valid[:60]), (X_valid[60:], y_valid[60:])]
    model = classifier(max_epochs=8).fit(X, y, eval_set=halves)
    last = classifier(max_epochs=8).fit(X, y, eval_set=halves[1:])
    np.testing.assert_array_equal(model.predict_proba(X), last.predict_proba(X))
    curve = model.evals_result_["valid_1"]["log_loss"]
    assert model.best_score_ == min(curve) == curve[model.best_iteration_ - 1]


def test_a_validation_pair_decides_about_trees_too(table, with_trees):
    """Training rows in front of the validation rows change nothing of network, trees and blend."""
    X, y, X_valid, y_valid = table
    alone = EasyTensorClassifier(**with_trees).fit(X, y, eval_set=[(X_valid, y_valid)])
    both = EasyTensorClassifier(**with_trees).fit(X, y, eval_set=[(X, y), (X_valid, y_valid)])
    assert both.tree_weight_ == alone.tree_weight_ > 0
    np.testing.assert_array_equal(both.predict_proba(X_valid), alone.predict_proba(X_valid))


# ---------------------------------------------------------------------- names of the sets


def test_sets_by_the_names_of_lightgbm_and_xgboost(classifier, table):
    X, y, X_valid, y_valid = table
    weight = np.linspace(0, 2, len(y_valid))
    expected = classifier().fit(X, y, eval_set=[(X_valid, y_valid)], eval_sample_weight=[weight])
    for names in (
        {"eval_X": X_valid, "eval_y": y_valid, "eval_sample_weight": weight},
        {"eval_X": (X_valid,), "eval_y": (y_valid,), "eval_sample_weight": [weight]},
        {"eval_set": [(X_valid, y_valid)], "sample_weight_eval_set": [weight]},
    ):
        assert classifier().fit(X, y, **names).evals_result_ == expected.evals_result_
    two = classifier().fit(X, y, eval_X=(X, X_valid), eval_y=(y, y_valid))
    assert list(two.evals_result_) == ["training", "valid_1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_X": 1}, "eval_X and eval_y must be given together, eval_y is None"),
        ({"eval_y": 1}, "eval_X and eval_y must be given together, eval_X is None"),
        ({"eval_X": (1,), "eval_y": 1}, "must both be tuples"),
        ({"eval_X": (1, 2), "eval_y": (1,)}, "eval_X has 2 entries, eval_y has 1"),
        ({"eval_X": 1, "eval_y": 1, "eval_set": []}, "give one of them"),
        ({"eval_sample_weight": [1], "sample_weight_eval_set": [1]}, "give one of them"),
    ],
)
def test_sets_that_make_no_sense_are_refused(given, message, classifier, table):
    with pytest.raises(ValueError, match=message):
        classifier().fit(*table[:2], **given)


def test_a_pipeline_transforms_the_validation_rows(classifier, table):
    X, y, X_valid, y_valid = table
    numbers, valid = X[["a"]], X_valid[["a"]]
    with config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(eval_X=True, eval_y=True)
        pipeline = make_pipeline(StandardScaler(), model, transform_input=["eval_X"])
        pipeline.fit(numbers, y, eval_X=valid, eval_y=y_valid)
    loss = log_loss(y_valid, pipeline.predict_proba(valid))
    assert pipeline[-1].best_score_ == pytest.approx(loss, rel=CLOSE)


# ---------------------------------------------------------------------- metrics


def test_metrics_are_of_network_and_trees(table, with_trees):
    X, y, X_valid, y_valid = table
    metrics = ["auc", "accuracy", "neg_brier_score", "error"]
    model = EasyTensorClassifier(eval_metric=metrics, **with_trees)
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    assert model.tree_weight_ > 0
    found, index = model.evals_result_["valid_0"], model.best_iteration_ - 1
    assert list(found) == ["log_loss", *metrics]
    proba = model.predict_proba(X_valid)
    auc, accuracy = (
        roc_auc_score(y_valid, proba[:, 1]),
        accuracy_score(y_valid, model.predict(X_valid)),
    )
    assert found["auc"][index] == pytest.approx(auc, rel=CLOSE)
    assert found["accuracy"][index] == pytest.approx(accuracy, rel=0.02)
    assert found["error"][index] == pytest.approx(1 - found["accuracy"][index])
    brier = -np.mean((proba[:, 1] - (y_valid == "yes")) ** 2)
    assert found["neg_brier_score"][index] == pytest.approx(brier, rel=CLOSE)
    assert found["log_loss"][index] == pytest.approx(log_loss(y_valid, proba), rel=CLOSE)


def test_losses_and_scores_are_of_the_same_model(table, with_trees):
    X, y, X_valid, y_valid = table
    model = EasyTensorClassifier(**with_trees).fit(X, y, eval_set=[(X_valid, y_valid)])
    curve = model.evals_result_["valid_0"]["log_loss"]
    assert model.tree_weight_ > 0
    assert model.best_score_ == curve[model.best_iteration_ - 1] == min(curve)
    expected = log_loss(y_valid, model.predict_proba(X_valid))
    assert model.best_score_ == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize("metric", ["auc", "neg_log_loss", "binary_error"])
def test_the_first_metric_decides(metric, classifier, table):
    X, y, X_valid, y_valid = table
    model = classifier(max_epochs=12, eval_metric=[metric, "accuracy"])
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    curve = model.evals_result_["valid_0"][metric]
    best = min(curve) if metric == "binary_error" else max(curve)
    assert model.best_score_ == best == curve[model.best_iteration_ - 1]
    assert model.best_iteration_ == curve.index(best) + 1


@pytest.mark.parametrize("stopping", ["loss", "log_loss", "accuracy"])
def test_another_metric_may_decide(stopping, classifier, table):
    X, y, X_valid, y_valid = table
    model = classifier(eval_metric=["auc", "accuracy"], stopping_metric=stopping, max_epochs=12)
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    curve = model.evals_result_["valid_0"]["log_loss" if stopping == "loss" else stopping]
    assert model.best_score_ == (max(curve) if stopping == "accuracy" else min(curve))


def test_metrics_do_not_change_what_the_loss_decides(classifier, table):
    X, y, X_valid, y_valid = table
    plain = classifier().fit(X, y, eval_set=[(X_valid, y_valid)])
    model = classifier(eval_metric="auc", stopping_metric="loss")
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))


def test_functions_are_metrics(classifier, table):
    X, y, X_valid, y_valid = table

    def hits(y_true, y_pred):
        return "hit rate", np.mean((y_pred > 0.5) == y_true), True

    def misses(y_true, y_pred, sample_weight=None):
        return np.average((y_pred > 0.5) != y_true, weights=sample_weight)

    weight = np.linspace(0, 2, len(y_valid))
    model = classifier(eval_metric=[misses, roc_auc_score])
    model.fit(X, y, eval_set=[(X_valid, y_valid)], eval_sample_weight=[weight])
    found = model.evals_result_["valid_0"]
    assert model.best_score_ == min(found["misses"])
    expected = roc_auc_score(y_valid, model.predict_proba(X_valid)[:, 1], sample_weight=weight)
    at_best = found["roc_auc_score"][model.best_iteration_ - 1]
    assert at_best == pytest.approx(expected, rel=CLOSE)
    model = classifier(eval_metric=hits).fit(X, y, eval_set=[(X_valid, y_valid)])
    assert model.best_score_ == max(model.evals_result_["valid_0"]["hit rate"])


def test_metrics_of_several_classes(classifier, table):
    X, _, X_valid, _ = table
    y, y_valid = (np.digitize(part["a"], [-0.5, 0.5]) for part in (X, X_valid))
    model = classifier(eval_metric=["auc", "multi_logloss", "f1_macro"])
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    found = model.evals_result_["valid_0"]
    assert found["multi_logloss"] == pytest.approx(found["log_loss"])
    proba = model.predict_proba(X_valid)
    expected = roc_auc_score(y_valid, proba, multi_class="ovr")
    assert found["auc"][model.best_iteration_ - 1] == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("gini", "eval_metric 'gini' is unknown"),
        (3, "must be a name, a callable or a list"),
        (["auc", "auc"], "more than once"),
        (lambda y_true: 0.0, "cannot be computed on the validation rows"),
        (lambda y_true, y_pred: np.nan, "is nan on the 120 rows"),
    ],
)
def test_metrics_that_cannot_be_are_refused_before_training(metric, message, classifier, table):
    X, y, X_valid, y_valid = table
    model = classifier(eval_metric=metric, callbacks=[Untrained()])
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, eval_set=[(X_valid, y_valid)])


def test_metrics_that_vary_with_predictions_alone(regressor, classifier, table):
    """A correlation is not defined for predictions that are all alike."""

    def correlation(y_true, y_pred):
        return "correlation", np.corrcoef(y_true, y_pred)[0, 1], True

    X, y, X_valid, y_valid = table
    pair = (X_valid, X_valid["a"])
    model = regressor(eval_metric=correlation).fit(X, X["a"], eval_set=[pair])
    assert model.best_score_ == max(model.evals_result_["valid_0"]["correlation"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndefinedMetricWarning)
        classifier(eval_metric="precision").fit(
            X, y == "yes", eval_set=[(X_valid, y_valid == "yes")]
        )


def test_a_metric_of_rows_of_one_class_is_refused(classifier, table):
    X, y, X_valid, y_valid = table
    same = y_valid == "yes"
    with pytest.raises(ValueError, match=r"eval_metric 'auc'.*'valid_0'"):
        classifier(eval_metric="auc", callbacks=[Untrained()]).fit(
            X, y, eval_set=[(X_valid[same], y_valid[same])]
        )


def test_a_stopping_metric_must_be_there(classifier, table):
    with pytest.raises(ValueError, match=r"stopping_metric must be one of \['loss', 'auc'\]"):
        classifier(eval_metric="auc", stopping_metric="f1").fit(*table[:2])


class Untrained(Callback):
    """Raises as soon as training begins."""

    def on_batch_begin(self, net, **kwargs):
        raise AssertionError("training has begun")


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("params", "metric"),
    [
        ({}, mean_squared_error),
        ({"loss": "absolute_error"}, mean_absolute_error),
        ({"loss": "quantile", "quantile": 0.8}, lambda y, p: mean_pinball_loss(y, p, alpha=0.8)),
        (
            {"loss": "poisson"},
            lambda y, p: mean_poisson_deviance(y, p) / 2 - np.mean(y * np.log(y) - y),
        ),
        ({"loss": "gamma"}, lambda y, p: np.mean(np.log(p) + y / p)),
    ],
)
def test_losses_are_in_units_of_the_target(params, metric, regressor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = 1000 * np.exp(0.3 * X[:, 0] + 0.1 * rng.normal(size=200))
    model = regressor(max_epochs=5, learning_rate=0.01, **params)
    model.fit(X[:150], y[:150], eval_set=[(X[150:], y[150:])])
    assert model.best_score_ == pytest.approx(metric(y[150:], model.predict(X[150:])), rel=CLOSE)
    # Nothing is learned, so that the mean over the epoch is the loss of the final model.
    still = {"learning_rate": 1e-9, "trunk": MLP(width=16, dropout=0), "trees": None}
    model = regressor(max_epochs=1, **still, validation_fraction=None, **params).fit(X, y)
    assert model.best_score_ == pytest.approx(metric(y, model.predict(X)), rel=CLOSE)


def test_losses_of_several_targets_are_in_their_units(regressor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = np.column_stack([1e4 * X[:, 0] + 7, 0.01 * X[:, 1]])
    model = regressor(max_epochs=6, eval_metric="rmse", stopping_metric="loss")
    model.fit(X[:150], y[:150], eval_set=[(X[150:], y[150:])])
    expected = mean_squared_error(y[150:], model.predict(X[150:]))
    assert model.best_score_ == pytest.approx(expected, rel=CLOSE)
    training = model.evals_result_["training"]["squared_error"]
    assert 1e5 < training[-1] < training[0] < 1e9


def test_units_follow_a_target_that_is_scaled(regressor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=120)
    one = regressor(eval_metric=["mae", "r2", "rmse"]).fit(X, y).evals_result_
    thousand = regressor(eval_metric=["mae", "r2", "rmse"]).fit(X, 1024 * y).evals_result_
    for name, power in {"squared_error": 2, "mae": 1, "rmse": 1, "r2": 0}.items():
        scaled = 1024.0**power * np.array(one["valid_0"][name])
        assert thousand["valid_0"][name] == pytest.approx(scaled)
    training = 1024.0**2 * np.array(one["training"]["squared_error"])
    assert thousand["training"]["squared_error"] == pytest.approx(training)


# ---------------------------------------------------------------------- callbacks of skorch


def test_scores_of_callbacks_are_recorded(classifier, table):
    scoring = [
        ("valid", EpochScoring("accuracy", lower_is_better=False, name="valid_acc")),
        ("train", EpochScoring("accuracy", False, on_train=True, name="train_acc")),
    ]
    model = classifier(callbacks=scoring).fit(*table[:2])
    assert len(model.evals_result_["valid_0"]["valid_acc"]) == 3
    assert len(model.evals_result_["training"]["train_acc"]) == 3


@pytest.mark.parametrize("kind", [EarlyStopping, Checkpoint])
def test_weights_that_a_callback_restores_are_kept(kind, classifier, table, tmp_path):
    """Whatever the validation loss says: here the epoch of the highest loss is kept."""
    X, y, X_valid, y_valid = table
    if kind is EarlyStopping:
        own = EarlyStopping(lower_is_better=False, load_best=True, patience=20, sink=lambda _: None)
    else:
        own = Checkpoint(
            monitor=lambda net: len(net.history) == 2, load_best=True, dirname=str(tmp_path)
        )
    states = []

    class States(Callback):
        def on_epoch_end(self, net, **kwargs):
            states.append({name: each.clone() for name, each in net.module_.state_dict().items()})

    model = classifier(callbacks=[States(), own], max_epochs=9, early_stopping_rounds=1)
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    curve = model.evals_result_["valid_0"]["log_loss"]
    best = 2 if kind is Checkpoint else int(np.argmax(curve)) + 1
    kept = model.network_.state_dict()
    assert all(torch.equal(kept[name], each) for name, each in states[best - 1].items())
    if kind is EarlyStopping:
        assert model.best_iteration_ == best
        assert model.best_score_ == curve[best - 1]


def test_early_stopping_of_a_callback_replaces_the_automatic_one(classifier, table):
    X, y, X_valid, y_valid = table
    own = EarlyStopping(patience=30, sink=lambda _: None)
    model = classifier(callbacks=[own], max_epochs=25, learning_rate=0.1)
    model.fit(X, y, eval_set=[(X_valid, y_valid)])
    assert model.n_iter_ == 25
    assert model.best_iteration_ < 20


# ---------------------------------------------------------------------- warm start


@pytest.mark.parametrize("trees", [None, BoostedTrees(max_iter=10)])
def test_a_warm_start_never_gets_worse(trees, quick, table):
    X, y, X_valid, y_valid = table
    model = EasyTensorClassifier(**{**quick, "trees": trees, "warm_start": True})
    model.set_params(learning_rate=0.5)
    scores, epochs = [], []
    for _ in range(4):
        model.fit(X, y, eval_set=[(X_valid, y_valid)])
        scores.append(model.best_score_)
        epochs.append(model.best_iteration_)
        found = log_loss(y_valid, model.predict_proba(X_valid))
        assert model.best_score_ == pytest.approx(found, rel=CLOSE)
    assert scores == sorted(scores, reverse=True)
    assert len(set(epochs)) < 4, "no epoch was worse than the weights before it"
    assert model.n_iter_ == 12
    assert len(model.evals_result_["valid_0"]["log_loss"]) == 12


def test_a_warm_start_validates_on_the_same_rows(classifier, table):
    seen = []

    class Rows(Callback):
        def on_train_begin(self, net, **kwargs):
            seen.append(net.valid_rows[0].target.clone())

    model = classifier(callbacks=[Rows()], warm_start=True, random_state=None)
    model.fit(*table[:2]).fit(*table[:2])
    assert torch.equal(*seen)


def test_other_classes_in_a_later_call_are_refused(classifier, table):
    X, y, *_ = table
    model = classifier().partial_fit(X, y, classes=["no", "yes", "maybe"])
    model.partial_fit(X, y).partial_fit(X, y, classes=["maybe", "no", "yes"])
    with pytest.raises(ValueError, match=r"classes=\['no', 'yes'\] differs from the first call"):
        model.partial_fit(X, y, classes=["no", "yes"])


def test_early_stopping_without_validation_warns(regressor, classifier, table):
    X, y, *_ = table
    with pytest.warns(UserWarning, match="early_stopping_rounds=5 has no effect"):
        classifier(early_stopping_rounds=5, validation_fraction=None).fit(X, y)
    with pytest.warns(UserWarning, match="early_stopping_rounds=5 has no effect"):
        regressor(early_stopping_rounds=5).fit([[1.0], [2.0]], [1.0, 2.0])


def test_d2_is_a_metric_function(regressor, table):
    X, _, X_valid, _ = table
    y, y_valid = X["a"] ** 2, X_valid["a"] ** 2
    model = EasyTensorRegressor(
        loss="poisson", eval_metric=d2_tweedie_score, trees=None, max_epochs=2, random_state=0
    ).fit(X, y, eval_set=[(X_valid, y_valid)])
    assert model.best_score_ == max(model.evals_result_["valid_0"]["d2_tweedie_score"])


def test_a_blend_follows_the_better_part():
    head = EasyTensorRegressor(max_epochs=1).fit([[1.0], [2.0], [3.0]], [1.0, 2.0, 4.0])._head
    target = torch.linspace(-1, 1, 500)[:, None]
    noise = torch.randn(500, 1, 1, generator=torch.Generator().manual_seed(0))
    good, bad = target[:, None] + 0.01 * noise, target[:, None] + noise
    weight = torch.ones(500, dtype=torch.float64)
    from sk_easytensor.training.distributed import SingleProcess

    assert fit_blend(head, good, bad, target, weight, SingleProcess()).share == 1.0
    assert fit_blend(head, bad, good, target, weight, SingleProcess()).share == 0.0
