"""feature_importances_ finds the columns that matter."""

import pickle

import numpy as np
import pandas as pd
import pytest

from sk_easytensor import CategoryBlock, EasyTensorRegressor, NumericBlock

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
