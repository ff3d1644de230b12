"""Ready search spaces, each used by the search it is for."""

import numpy as np
import optuna
import pytest
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline

from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor, search_spaces


@pytest.fixture(scope="module")
def rows():
    X = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    return {"a": X[:, 0], "b": X[:, 1]}, (X[:, 0] > 0).astype(int)


@pytest.fixture
def model():
    return EasyTensorClassifier(max_epochs=1, random_state=0)


def test_grid_search_takes_the_grid(model, rows):
    X, y = rows
    space = search_spaces.grid(["learning_rate"])
    search = GridSearchCV(model, space, scoring="neg_log_loss", cv=2)
    search.fit(np.stack(list(X.values()), axis=1), y)
    assert search.best_params_["learning_rate"] in space["learning_rate"]


def test_randomized_search_of_a_pipeline_takes_the_distributions(model, rows):
    X, y = rows
    space = search_spaces.distributions(prefix="model__")
    pipeline = Pipeline([("model", model)])
    search = RandomizedSearchCV(
        pipeline, space, n_iter=2, cv=2, random_state=0, error_score="raise"
    )
    search.fit(np.stack(list(X.values()), axis=1), y)
    assert set(search.best_params_) == {f"model__{name}" for name in search_spaces.RANGES}


def test_optuna_takes_the_suggestions(rows):
    X, y = rows

    def objective(trial):
        model = EasyTensorClassifier(max_epochs=1, random_state=0)
        model.set_params(**search_spaces.suggest(trial))
        return model.fit(X, y, eval_set=[(X, y)]).best_score_

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert set(study.best_params) == set(search_spaces.RANGES)


@pytest.mark.parametrize("estimator", [EasyTensorClassifier, EasyTensorRegressor])
def test_defaults_lie_within_the_ranges(estimator):
    defaults = estimator().get_params()
    for name, of in search_spaces.RANGES.items():
        assert defaults[name] in of.grid(), name


def test_what_is_drawn_lies_within_the_range():
    for name, of in search_spaces.RANGES.items():
        if isinstance(of, search_spaces.Interval):
            drawn = search_spaces.distributions([name])[name].rvs(1000, random_state=0)
            assert of.low <= drawn.min() < drawn.max() <= of.high
            assert all(of.low <= value <= of.high for value in of.grid())


@pytest.mark.parametrize("function", [search_spaces.grid, search_spaces.distributions])
def test_unknown_names_are_refused(function):
    with pytest.raises(ValueError, match=r"among \['learning_rate'.*got 'depth'"):
        function(["depth"])
