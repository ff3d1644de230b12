"""feature_importances_ finds the columns that matter."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from sk_easytensor import CategoryBlock, EasyTensorRegressor, NumericBlock
from sk_easytensor.inspection.sample import significant_shares

FIXTURES = Path(__file__).parents[1] / "fixtures"
LEARNS = {"max_epochs": 20, "learning_rate": 0.02}


@pytest.fixture
def planted():
    """A table in which ``city`` matters most, then ``size``, and nothing else."""
    rng = np.random.default_rng(0)
    n = 300
    X = pd.DataFrame(
        {
            "noise": rng.normal(size=n),
            "size": rng.normal(size=n),
            "letter": rng.choice(list("abc"), n),
            "city": rng.choice(["Oslo", "Lima"], n),
            "empty": np.full(n, np.nan),
        }
    )
    return X, 5 * (X["city"] == "Oslo") + X["size"] + 0.1 * rng.normal(size=n)


@pytest.fixture
def fitted(regressor, planted):
    return regressor(**LEARNS).fit(*planted)


def test_planted_columns_come_first(fitted, planted):
    importances = pd.Series(fitted.feature_importances_, planted[0].columns)
    assert importances.sort_values(ascending=False).index[:2].tolist() == ["city", "size"]
    assert importances["city"] + importances["size"] > 0.9
    assert importances["empty"] == 0


def test_what_is_within_a_standard_error_is_no_importance():
    increases = np.array([[0.3, 0.01], [0.1, 0.05], [0.02, 0.021], [-0.2, 0.01], [0.0, 0.0]])
    importances, errors = significant_shares(increases)
    np.testing.assert_allclose(importances, [0.75, 0.25, 0, 0, 0])
    np.testing.assert_allclose(errors, np.array([0.01, 0.05, 0.021, 0.01, 0]) / 0.4)
    importances, errors = significant_shares(increases[2:])
    assert not importances.any()
    assert not errors.any()


def test_columns_that_say_nothing_have_large_errors(regressor):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(600, 4)), columns=list("abcd"))
    model = regressor(**LEARNS, linear=None, n_folds=3).fit(X, rng.normal(size=600))
    values, errors = model.feature_importances_, model.importances_std_
    assert 0 < model.predict(X).std() < 0.3
    assert (values <= 4 * errors).all()
    assert (values == 0).any()


@pytest.mark.parametrize("n_folds", [None, 3])
def test_importances_have_standard_errors(n_folds, regressor, planted):
    few, many = (
        regressor(**LEARNS, n_folds=n_folds).fit(
            pd.concat([planted[0]] * n), np.tile(planted[1], n)
        )
        for n in (1, 4)
    )
    for model in (few, many):
        values, errors = model.feature_importances_, model.importances_std_
        assert errors.shape == values.shape
        assert errors.dtype == np.float64
        known = values > 0
        assert (values[known] > errors[known]).all()
        # "city" and "size" are told apart from noise, which has an error as well.
        assert known[[1, 3]].all()
        assert errors[0] > 0
    # Four times the rows.
    assert many.importances_std_[3] == pytest.approx(few.importances_std_[3] / 2, rel=0.4)
    restored = pickle.loads(pickle.dumps(few))
    np.testing.assert_array_equal(restored.importances_std_, few.importances_std_)


def test_models_saved_before_have_no_errors():
    model = joblib.load(FIXTURES / "classifier_0_1.joblib")["model"]
    assert np.isnan(model.importances_std_).all()
    assert model.feature_importances_.sum() == pytest.approx(1)


def test_importances_sum_to_one(fitted):
    importances = fitted.feature_importances_
    assert importances.shape == (5,)
    assert importances.dtype == np.float64
    assert (importances >= 0).all()
    assert importances.sum() == pytest.approx(1)


def test_classifiers_have_them_too(classifier, planted):
    X, y = planted
    model = classifier(**LEARNS).fit(X, np.where(y > 2.5, "high", "low"))
    assert X.columns[model.feature_importances_.argmax()] == "city"


def test_unused_columns_have_none(regressor, planted):
    X, y = planted
    blocks = [("size", NumericBlock(), "size"), ("noise", NumericBlock(), "noise")]
    model = regressor(blocks, remainder="drop", **LEARNS).fit(X, y)
    importances = pd.Series(model.feature_importances_, X.columns)
    assert (importances[["letter", "city", "empty"]] == 0).all()
    assert importances["size"] > 0.5


def test_a_column_that_two_blocks_read_counts_once(regressor, planted):
    X, y = planted
    blocks = [("a", CategoryBlock(), "city"), ("b", CategoryBlock(), ["city", "letter"])]
    model = regressor(blocks, **LEARNS).fit(X, y)
    assert X.columns[model.feature_importances_.argmax()] == "city"
    assert model.feature_importances_.shape == (5,)


def test_computed_once(fitted):
    assert fitted.feature_importances_ is fitted.feature_importances_


def test_equal_after_pickling_and_for_equal_fits(fitted, regressor, planted):
    before = pickle.loads(pickle.dumps(regressor(**LEARNS).fit(*planted)))
    np.testing.assert_array_equal(before.feature_importances_, fitted.feature_importances_)


def test_computed_anew_after_training_goes_on(fitted, planted):
    X, _ = planted
    before = fitted.feature_importances_
    fitted.fit(X, 5 * X["noise"])
    assert X.columns[fitted.feature_importances_.argmax()] == "noise"
    fitted.partial_fit(X, X["noise"])
    assert (fitted.feature_importances_ != before).any()


def test_nothing_matters(regressor, planted):
    X, _ = planted
    model = regressor(max_epochs=1).fit(X[["empty"]], np.tile([0.0, 1.0], 150))
    np.testing.assert_array_equal(model.feature_importances_, [0])


@pytest.mark.parametrize("validation_fraction", [None, 0.1, 0.5])
def test_without_many_validation_rows_training_rows_serve(validation_fraction, planted):
    X, y = planted
    model = EasyTensorRegressor(
        validation_fraction=validation_fraction, random_state=0, batch_size=16, **LEARNS
    ).fit(X[:80], y[:80])
    assert X.columns[model.feature_importances_.argmax()] == "city"


def test_an_evaluation_set_is_what_they_are_computed_on(regressor, planted):
    """A column that is constant there cannot matter."""
    X, y = planted
    model = regressor(**LEARNS).fit(X, y, eval_set=[(X.assign(city="Oslo"), y)])
    importances = pd.Series(model.feature_importances_, X.columns)
    assert importances["city"] == pytest.approx(0, abs=1e-6)
    assert importances["size"] > 0.5
