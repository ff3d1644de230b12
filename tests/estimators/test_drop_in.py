"""Where scikit-learn and its friends expect an estimator, ours does."""

import os

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor, StackingClassifier
from sklearn.feature_selection import SelectFromModel
from sklearn.impute import SimpleImputer
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, mean_squared_error
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.multioutput import ClassifierChain
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_easytensor import (
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
)

LEARNS = {"max_epochs": 12, "learning_rate": 0.02}


def test_at_the_end_of_a_pipeline(classifier, labelled):
    frame, y = labelled
    steps = ColumnTransformer(
        [("impute", SimpleImputer(), ["amount"])], remainder="passthrough"
    ).set_output(transform="pandas")
    pipeline = make_pipeline(steps, classifier(**LEARNS)).fit(frame, y)
    assert pipeline.score(frame, y) > 0.7
    assert pipeline[-1].feature_names_in_[0] == "impute__amount"
    assert pipeline.predict_proba(frame).shape == (len(y), 2)


def test_in_the_middle_of_a_pipeline(classifier, labelled):
    frame, y = labelled
    pipeline = make_pipeline(classifier(**LEARNS), StandardScaler(), LogisticRegression())
    assert pipeline.fit(frame, y).score(frame, y) > 0.7
    assert len(pipeline[:-1].get_feature_names_out()) == 16


def test_fit_parameters_go_through_a_pipeline(classifier, labelled):
    frame, y = labelled
    pipeline = make_pipeline(classifier())
    pipeline.fit(
        frame,
        y,
        easytensorclassifier__eval_set=[(frame[:30], y[:30])],
        easytensorclassifier__sample_weight=np.ones(len(y)),
    )
    assert len(pipeline[-1].evals_result_["valid_0"]["log_loss"]) == 3


def test_as_feature_extractor_before_lightgbm(classifier, labelled):
    frame, y = labelled
    embed = ("embed", classifier(**LEARNS), ["city", "grade", "day"])
    features = ColumnTransformer([embed], remainder="passthrough").set_output(transform="pandas")
    gbt = LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1, verbose=-1)
    pipeline = make_pipeline(features, gbt).fit(frame, y)
    names = list(pipeline[0].get_feature_names_out())
    assert names[:2] == ["embed__easytensorclassifier0", "embed__easytensorclassifier1"]
    assert names[-3:] == ["remainder__amount", "remainder__count", "remainder__flag"]
    assert pipeline.score(frame, y) > 0.8


@pytest.mark.parametrize("scoring", ["accuracy", "roc_auc", "neg_log_loss"])
def test_cross_val_score(scoring, classifier, labelled):
    scores = cross_val_score(classifier(**LEARNS), *labelled, cv=3, scoring=scoring)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    assert scoring != "roc_auc" or scores.mean() > 0.6


def test_cross_val_predict(regressor, mixed):
    frame, y = mixed
    assert np.corrcoef(cross_val_predict(regressor(**LEARNS), frame, y, cv=2), y)[0, 1] > 0.3


# ---------------------------------------------------------------------- searches, workers


@pytest.fixture
def searched(classifier):
    blocks = [
        ("numeric", NumericBlock(), ["amount", "count"]),
        ("city", CategoryBlock(), "city"),
    ]
    quick = {"trunk": None, "trees": BoostedTrees(max_iter=20), "max_epochs": 2}
    return classifier(blocks, **quick).set_params(trunk__width=16)


@pytest.mark.xdist_group("joblib")  # Which keeps the processes that it starts.
def test_grid_search_in_two_processes(searched, labelled):
    frame, y = labelled
    grid = {"blocks__numeric__bins": [4, 16], "trunk__dropout": [0.0, 0.2]}
    search = GridSearchCV(searched, grid, n_jobs=2, cv=2, error_score="raise").fit(frame, y)
    assert len(search.cv_results_["params"]) == 4
    best = search.best_params_
    model = search.best_estimator_
    assert model.blocks_["numeric"].bins == best["blocks__numeric__bins"]
    assert len(model.blocks_["numeric"].edges_[0]) == best["blocks__numeric__bins"] + 1
    assert model.trunk.dropout == best["trunk__dropout"]
    assert searched.blocks[0][1].bins == NumericBlock().bins
    here = GridSearchCV(searched, grid, cv=2, error_score="raise").fit(frame, y)
    np.testing.assert_allclose(
        here.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"], atol=0.03
    )


@pytest.mark.xdist_group("joblib")
def test_threads_are_bounded_in_workers(regressor, mixed):
    """All workers together use no more threads than there are cores."""

    def fit(model, X, y):
        from skorch.callbacks import Callback

        seen = []

        class Threads(Callback):
            def on_batch_end(self, net, **kwargs):
                seen.append(torch.get_num_threads())

        model.set_params(callbacks=[Threads()]).fit(X, y).predict(X)
        return max(seen)

    limit = max(1, joblib.cpu_count() // 2)
    for n_jobs in (None, -1, 8):
        jobs = [joblib.delayed(fit)(regressor(n_jobs=n_jobs), *mixed) for _ in range(2)]
        assert max(joblib.Parallel(n_jobs=2)(jobs)) <= (1 if n_jobs is None else limit)


def test_grid_search_over_whole_blocks_and_trunks(searched, labelled):
    from sk_easytensor import MLP, TabM

    grid = {
        "blocks__city": [CategoryBlock(), CategoryBlock(hash_buckets=8)],
        "trunk": [MLP(width=8), TabM(members=2, width=8)],
    }
    search = GridSearchCV(searched, grid, cv=2, error_score="raise").fit(*labelled)
    assert search.best_estimator_.n_iter_ == 2


def test_randomized_search_over_the_default_trunk(regressor, mixed):
    space = {"trunk__dropout": [0.0, 0.1, 0.2], "trunk__width": [8, 16], "weight_decay": [0, 0.1]}
    model = regressor(trunk=None, max_epochs=1)
    search = RandomizedSearchCV(model, space, n_iter=3, cv=2, random_state=0, error_score="raise")
    assert search.fit(*mixed).best_estimator_.trunk.width in (8, 16)


# ---------------------------------------------------------------------- meta-estimators


def test_stacking(classifier, labelled):
    frame, y = labelled
    second = make_pipeline(
        ColumnTransformer([("impute", SimpleImputer(), ["amount"])]), LogisticRegression()
    )
    stack = StackingClassifier([("net", classifier(**LEARNS)), ("linear", second)], cv=2)
    assert stack.fit(frame, y).score(frame, y) > 0.7


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration(method, classifier, labelled):
    frame, y = labelled
    estimator = classifier(validation_fraction=None, **LEARNS)
    model = CalibratedClassifierCV(estimator, cv=2, method=method).fit(frame, y)
    np.testing.assert_allclose(model.predict_proba(frame).sum(1), 1)
    assert model.score(frame, y) > 0.75


def test_calibration_takes_weights(classifier, labelled):
    frame, y = labelled
    model = CalibratedClassifierCV(classifier(), cv=2)
    assert model.fit(frame, y, sample_weight=np.ones(len(y))).predict(frame).shape == (len(y),)


def test_permutation_importance(regressor, mixed):
    frame, y = mixed
    model = regressor(**LEARNS).fit(frame, y)
    found = permutation_importance(model, frame, y, n_repeats=2, random_state=0)
    assert frame.columns[found.importances_mean.argmax()] == "amount"
    assert frame.columns[model.feature_importances_.argmax()] == "amount"


def test_partial_dependence(regressor, mixed):
    frame, y = mixed
    frame = frame.assign(amount=frame["amount"].fillna(0))
    model = regressor(**LEARNS).fit(frame, y)
    curve = partial_dependence(model, frame, ["amount"], grid_resolution=5)["average"][0]
    assert curve[-1] > curve[0]


@pytest.mark.parametrize("prefit", [False, True])
def test_select_from_model(prefit, regressor):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = 3 * X[:, 2] + 0.1 * rng.normal(size=200)
    model = regressor(**LEARNS)
    selector = SelectFromModel(model.fit(X, y) if prefit else model, prefit=prefit)
    selector.fit(X, y)
    assert selector.get_support().tolist() == [False, False, True, False]
    assert selector.transform(X).shape == (200, 1)


def test_bagging_transformed_targets_and_chains(regressor, classifier):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    bag = BaggingRegressor(regressor(), n_estimators=2, random_state=0).fit(X, X[:, 0])
    assert bag.predict(X).shape == (60,)
    logs = TransformedTargetRegressor(regressor(), func=np.log1p, inverse_func=np.expm1)
    assert (logs.fit(X, np.exp(X[:, 0])).predict(X) > -1).all()
    labels = (X > 0).astype(int)
    assert ClassifierChain(classifier()).fit(X, labels).predict(X).shape == (60, 2)


# ---------------------------------------------------------------------- metadata routing


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_weights_are_routed_through_a_search(regressor):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 1)), np.tile([0.0, 1.0], 60)
    weight = np.where(y > 0, 9.0, 1.0)
    params = {**LEARNS, "validation_fraction": None}
    score = make_scorer(mean_squared_error, greater_is_better=False)
    score.set_score_request(sample_weight=True)
    levels = []
    for wanted in (True, False):
        model = regressor(**params).set_fit_request(sample_weight=wanted)
        grid = {"weight_decay": [0.0, 0.01]}
        search = GridSearchCV(model, grid, cv=2, scoring=score, error_score="raise")
        levels.append(search.fit(X, y, sample_weight=weight).predict(X).mean())
    assert levels[0] == pytest.approx(0.9, abs=0.1)
    assert levels[1] == pytest.approx(0.5, abs=0.2)


@pytest.mark.usefixtures("routing")
def test_unrequested_weights_are_an_error(regressor):
    X, y = np.zeros((20, 1)), np.arange(20.0)
    search = GridSearchCV(regressor(), {"weight_decay": [0.0]}, cv=2)
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="sample_weight"):
        search.fit(X, y, sample_weight=np.ones(20))


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("make", [EasyTensorClassifier, EasyTensorRegressor])
def test_requests_of_every_method(make):
    model = make().set_fit_request(sample_weight=True, eval_set=True, eval_sample_weight=True)
    model.set_partial_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    requests = model.get_metadata_routing().fit.requests
    requested = {name for name, request in requests.items() if request}
    assert requested == {"sample_weight", "eval_set", "eval_sample_weight"}


@pytest.mark.usefixtures("routing")
def test_an_evaluation_set_is_routed_through_a_pipeline(classifier, labelled):
    frame, y = labelled
    model = classifier().set_fit_request(eval_set=True)
    pipeline = make_pipeline(model).fit(frame, y, eval_set=[(frame[:30], y[:30])])
    assert "valid_0" in pipeline[-1].evals_result_


def test_cross_validate_keeps_estimators(classifier, labelled):
    kept = cross_validate(classifier(), *labelled, cv=2, return_estimator=True, params={})
    assert [model.n_features_in_ for model in kept["estimator"]] == [6, 6]


def test_polars_and_pandas_output_config(classifier, labelled):
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(classifier().fit(*labelled).transform(labelled[0]), pd.DataFrame)


def test_environment_is_left_alone(classifier, labelled):
    before = dict(os.environ)
    classifier().fit(*labelled)
    # pytest itself notes the running test there.
    ignored = {"PYTEST_CURRENT_TEST"}
    assert {k: v for k, v in os.environ.items() if k not in ignored} == {
        k: v for k, v in before.items() if k not in ignored
    }
