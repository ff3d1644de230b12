"""Permutation importances on encoded columns are those of scikit-learn on the table."""

import builtins

import numpy as np
import pandas as pd
import pytest
import sklearn.inspection
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss, make_scorer, mean_absolute_error

from sk_easytensor import (
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    Sum,
    VectorBlock,
)
from sk_easytensor.backends.base import LocalBackend
from sk_easytensor.inspection import PermutationImportanceDisplay, permutation_importance
from sk_easytensor.inspection import encoded_model as _encoded
from sk_easytensor.inspection import sample as _sample

QUICK = {
    "n_folds": None,
    "trees": BoostedTrees(max_iter=30),
    "max_epochs": 10,
    "learning_rate": 0.02,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 240
    X = pd.DataFrame(
        {
            "size": rng.normal(size=n),
            "noise": rng.normal(size=n),
            "city": rng.choice(["Oslo", "Lima", None], n),
            "flag": rng.random(n) < 0.2,
            "text": rng.choice(["a red house", "a blue boat", "the green hill"], n),
            "items": [list("abc"[: i % 4]) for i in range(n)],
        }
    )
    X.loc[::7, "size"] = np.nan
    return X, 3 * (X["city"] == "Oslo") + X["size"].fillna(0) + X["text"].eq("a red house")


@pytest.fixture(scope="module")
def regressor(table):
    return EasyTensorRegressor(**QUICK).fit(*table)


@pytest.fixture(scope="module")
def classifier(table):
    X, y = table
    return EasyTensorClassifier(**QUICK).fit(X, np.where(y > 1, "high", "low"))


def on_the_table(model, X, y, n_repeats, seed, scoring=None):
    """What scikit-learn gives, which shuffles the table and reads all of it again."""
    return sklearn.inspection.permutation_importance(
        model, X, y, scoring=scoring, n_repeats=n_repeats, random_state=seed
    ).importances


# ---------------------------------------------------------------------- what is computed


def test_shuffling_the_encoding_equals_shuffling_the_table(regressor, table):
    X, y = table
    result = permutation_importance(regressor, X, y, n_repeats=3, random_state=5)
    expected = on_the_table(regressor, X, y, 3, 5)
    np.testing.assert_allclose(result.importances, expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(result.importances_mean, result.importances.mean(axis=1))
    np.testing.assert_array_equal(result.importances_std, result.importances.std(axis=1))
    assert result.names.tolist() == list(X)
    assert result.names[result.importances_mean.argmax()] == "city"


@pytest.mark.parametrize("scoring", ["neg_log_loss", "roc_auc", "balanced_accuracy", None])
def test_scorers_of_every_response(scoring, classifier, table):
    X, y = table[0], np.where(table[1] > 1, "high", "low")
    result = permutation_importance(classifier, X, y, scoring=scoring, n_repeats=2, random_state=1)
    expected = on_the_table(classifier, X, y, 2, 1, scoring)
    np.testing.assert_allclose(result.importances, expected, rtol=0, atol=1e-9)
    assert result.importances.any()


def test_several_scorers_give_one_result_each(classifier, table):
    X, y = table[0], np.where(table[1] > 1, "high", "low")
    names = ["accuracy", "neg_log_loss"]
    several = permutation_importance(classifier, X, y, scoring=names, random_state=0)
    assert list(several) == names
    for name in names:
        alone = permutation_importance(classifier, X, y, scoring=name, random_state=0)
        np.testing.assert_array_equal(several[name].importances, alone.importances)
    given = {"mine": lambda model, X, y: -log_loss(y, model.predict_proba(X))}
    mine = permutation_importance(classifier, X, y, scoring=given, random_state=0)["mine"]
    np.testing.assert_allclose(mine.importances, several["neg_log_loss"].importances)


def test_weights_reach_the_scorer(regressor, table):
    """Rows of weight zero count for nothing: only the others' errors do."""
    X, y = table
    weight = (np.arange(len(X)) % 2).astype(float)
    scorer = make_scorer(mean_absolute_error, greater_is_better=False)
    how = {"scoring": scorer, "random_state": 0}
    weighted = permutation_importance(regressor, X, y, sample_weight=weight, **how)
    spoiled = permutation_importance(
        regressor, X, np.where(weight, y, 1e6), sample_weight=weight, **how
    )
    np.testing.assert_allclose(weighted.importances, spoiled.importances)
    plain = permutation_importance(regressor, X, y, **how)
    assert np.abs(weighted.importances - plain.importances).max() > 1e-3


@pytest.mark.parametrize("target", ["multilabel", "multiclass", "multioutput", "poisson"])
def test_every_kind_of_target(target, table):
    X, y = table
    if target == "multilabel":
        y = np.column_stack([y > 1, y > 2]).astype(int)
        model = EasyTensorClassifier(**QUICK)
    elif target == "multiclass":
        y = pd.cut(y, [-9, 0, 2, 9], labels=["low", "middle", "high"]).astype(str)
        model = EasyTensorClassifier(**QUICK)
    elif target == "multioutput":
        y = np.column_stack([y, -y])
        model = EasyTensorRegressor(**QUICK)
    else:
        y = np.round(np.exp(y / 3))
        model = EasyTensorRegressor(loss="poisson", **QUICK)
    model.fit(X, y)
    result = permutation_importance(model, X, y, n_repeats=2, random_state=3)
    expected = on_the_table(model, X, y, 2, 3)
    np.testing.assert_allclose(result.importances, expected, rtol=0, atol=1e-9)
    assert result.importances.any()


class FixedScore(BaseEstimator):
    """Notes in which order rows come."""

    def __init__(self, orders):
        self.orders = orders

    def fit(self, X, y):
        return self

    def score(self, X, y):
        self.orders.append(X["row"].to_numpy().copy())
        return 0.0


def test_by_block(table):
    X, y = table
    blocks = [("a", NumericBlock(), ["size", "noise"]), ("b", CategoryBlock(), ["city", "flag"])]
    model = EasyTensorRegressor(blocks, remainder="drop", **QUICK).fit(X, y)
    result = permutation_importance(model, X, y, by="block", n_repeats=2, random_state=0)
    assert result.names.tolist() == ["a", "b"]
    numbered = X.assign(row=np.arange(len(X)))
    orders = []
    sklearn.inspection.permutation_importance(
        FixedScore(orders), numbered[["row"]], y, n_repeats=2, random_state=0
    )
    for repeat, order in enumerate(orders[1:]):
        for row, columns in enumerate((["size", "noise"], ["city", "flag"])):
            moved = X.assign(**{name: X[name].to_numpy()[order] for name in columns})
            fall = model.score(X, y) - model.score(moved, y)
            assert result.importances[row, repeat] == pytest.approx(fall, abs=1e-9)


def test_columns_read_as_one_share_what_they_matter():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(200, 4)), columns=["v0", "v1", "v2", "x"])
    y = X["v0"] + X["x"]
    X["v"] = list(X[["v0", "v1", "v2"]].to_numpy())
    blocks = [("v", VectorBlock(), "v"), ("x", NumericBlock(), "x")]
    model = EasyTensorRegressor(blocks, remainder="drop", **QUICK).fit(X, y)
    importances = permutation_importance(model, X, y, random_state=0).importances_mean
    assert (importances[:3] == 0).all()
    assert (importances[3:] > 0.1).all()


class LendingLists(RegressorMixin, BaseEstimator):
    """A fitted model that is given its list columns beforehand."""

    def __init__(self, model, lists):
        self.model = model
        self.lists = lists

    def fit(self, X, y):
        return self

    def predict(self, X):
        return self.model.predict(X.assign(**self.lists))


def test_parallel_lists_and_two_readers_of_a_column(table):
    X, y = table
    lists = X["items"].map(len)
    X = X.assign(when=[list(np.arange(k, dtype=float)) for k in lists], what=X["items"], y=y).drop(
        columns=["text", "items", "y"]
    )
    blocks = [
        ("events", EventSequenceBlock(), ["when", "what"]),
        ("one", CategoryBlock(), "city"),
        ("two", CategoryBlock(), ["city", "flag"]),
    ]
    y = y + lists
    model = EasyTensorRegressor(blocks, **QUICK).fit(X, y)
    result = permutation_importance(model, X, y, n_repeats=2, random_state=4)
    # scikit-learn's cannot shuffle one of two parallel lists, whose lengths would differ then.
    names = ["size", "noise", "city", "flag"]
    flat = LendingLists(model, X[["when", "what"]])
    expected = on_the_table(flat, X[names], y, 2, 4)
    np.testing.assert_allclose(result.importances[: len(names)], expected, rtol=0, atol=1e-9)
    assert (result.importances_mean[len(names) :] >= 0).all()
    assert (permutation_importance(model, X, y, by="block").importances_mean > 0).any()


# ---------------------------------------------------------------------- rows and repeats


def test_one_seed_gives_one_result(regressor, table):
    first, second, other = (
        permutation_importance(regressor, *table, random_state=seed, max_samples=0.5).importances
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_a_part_of_the_rows(regressor, table):
    X, y = table
    chosen = np.sort(np.random.RandomState(2).choice(len(X), 60, replace=False))
    part = permutation_importance(regressor, X, y, max_samples=60, random_state=2)
    fraction = permutation_importance(regressor, X, y, max_samples=0.25, random_state=2)
    np.testing.assert_array_equal(part.importances, fraction.importances)
    rest = np.setdiff1d(np.arange(len(X)), chosen)
    spoiled = y.copy()
    spoiled.iloc[rest] = 1e6
    again = permutation_importance(regressor, X, spoiled, max_samples=60, random_state=2)
    np.testing.assert_array_equal(part.importances, again.importances)


def test_every_table_is_read(regressor, table, flavour):
    X, y = table
    expected = permutation_importance(regressor, X[:40], y[:40], random_state=0, n_repeats=1)
    result = permutation_importance(regressor, flavour(X[:40]), y[:40], random_state=0, n_repeats=1)
    np.testing.assert_allclose(result.importances, expected.importances, atol=1e-6)


def test_arrays_and_lists():
    X = np.random.default_rng(0).normal(size=(120, 3))
    y = X[:, 1].tolist()
    model = EasyTensorRegressor(**QUICK).fit(X, y)
    result = permutation_importance(model, X, y, random_state=0)
    assert result.importances_mean.argmax() == 1
    assert result.importances.shape == (3, 5)


def test_what_does_not_matter_has_none(table):
    X, y = table
    X = X.assign(empty=np.nan, same=1.0)
    model = EasyTensorRegressor(
        [("n", NumericBlock(), ["size", "empty", "same"])], remainder="drop"
    )
    model.set_params(**QUICK).fit(X, y)
    result = permutation_importance(model, X, y, random_state=0)
    unread = [name not in ("size",) for name in result.names]
    assert (result.importances[unread] == 0).all()
    assert result.importances_mean[0] > 0


# ---------------------------------------------------------------------- wide tables


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(0)
    n, n_columns = 240, 110
    X = pd.DataFrame(rng.normal(size=(n, n_columns))).add_prefix("x")
    X["x3"] = X["x3"].where(X["x3"] < 1)
    X["city"] = rng.choice(["Oslo", "Lima", None], n)
    X["day"] = pd.date_range("2024-01-01", periods=n, freq="17h")
    return X, np.select([X["x0"] > 0.5, X["city"] == "Oslo"], ["a", "b"], "c")


def count_calls(monkeypatch, owner, name):
    """Return a list that gets an entry whenever a method is called."""
    calls, method = [], getattr(owner, name)

    def counted(*args, **params):
        calls.append(args)
        return method(*args, **params)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_importances_of_wide_tables_need_no_pass_for_each_column(wide, monkeypatch):
    X, y = wide
    trees = BoostedTrees(max_iter=10)
    model = EasyTensorClassifier(max_epochs=3, trees=trees, n_folds=None, random_state=0).fit(X, y)
    sample = model._importance_sample
    # With both, whatever the validation rows say.
    model.network_.trees.share = 0.5
    trunk = count_calls(monkeypatch, type(model.network_.trunk), "forward")
    numbers = count_calls(monkeypatch, type(model.network_.blocks[-1]), "forward")
    sources = count_calls(monkeypatch, NumericBlock, "encoding_columns")
    importances = model.feature_importances_
    assert len(trunk) == len(sources) == 1
    assert len(numbers) <= 2
    # The same with a pass of all columns for each.
    monkeypatch.setattr(_encoded, "MANY_COLUMNS", 1000)
    passes, _, _ = sample.compute(model.network_, model._encoder, model._target, LocalBackend())
    np.testing.assert_allclose(importances, passes, rtol=0, atol=1e-5)
    assert {model.feature_names_in_[place] for place in passes.argsort()[-2:]} == {"x0", "city"}


def test_rows_of_wide_tables_are_bounded(wide, monkeypatch):
    assert [_sample.bounded_rows(_sample.MAX_PASSES // n) for n in (101, 4096, 8192, 10**6)] == [
        256,
        256,
        128,
        16,
    ]
    X, y = wide
    model = EasyTensorClassifier(max_epochs=1, trees=None, trunk=Sum(width=4), n_folds=None)
    model.set_params(random_state=0)
    model.fit(X, y)
    monkeypatch.setattr(_sample, "MAX_VALUES", 20 * X.shape[1])
    drawn = count_calls(monkeypatch, _sample, "draw_orders")
    assert model.feature_importances_.shape == (X.shape[1],)
    assert [args[:2] for args in drawn] == [(20, 1)]
    assert model._validation["rows"] == 36


def test_selection_from_a_wide_table(wide):
    X, y = wide
    model = EasyTensorClassifier(max_epochs=3, trees=None, n_folds=None, random_state=0)
    selector = SelectFromModel(model, max_features=2).set_output(transform="pandas")
    assert "x0" in selector.fit_transform(X, y)


# ---------------------------------------------------------------------- two towers


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    n = 600
    X = pd.DataFrame(
        {
            "user": rng.integers(0, 20, n),
            "taste": rng.choice(["sweet", "salty"], n),
            "kind": rng.choice(["sweet", "salty"], n),
            "price": rng.normal(size=n),
        }
    )
    y = (X["taste"] == X["kind"]).astype(int)
    blocks = {
        "user_blocks": [("c", CategoryBlock(), "taste"), ("id", CategoryBlock(), "user")],
        "item_blocks": [("c", CategoryBlock(), "kind"), ("n", NumericBlock(), "price")],
    }
    return X, y, EasyTensorTwoTower(**blocks, embedding_dim=8, max_epochs=20, random_state=0)


def test_two_towers(pairs):
    X, y, model = pairs
    model.fit(X, y)
    result = permutation_importance(model, X, y, n_repeats=2, random_state=0)
    expected = on_the_table(model, X, y, 2, 0)
    np.testing.assert_allclose(result.importances, expected, atol=1e-6)
    assert set(result.names[result.importances_mean > 0.2]) == {"taste", "kind"}
    blocks = permutation_importance(model, X, y, by="block", random_state=0)
    assert blocks.names.tolist() == ["user__c", "user__id", "item__c", "item__n"]


def test_two_towers_that_cannot_be_judged(pairs):
    X, y, model = pairs
    model.fit(X)
    with pytest.raises(ValueError, match="was fitted without y"):
        permutation_importance(model, X, y)
    items = pd.DataFrame({"film": [0, 1], "kind": ["sweet", "salty"]})
    X = X.assign(film=X["kind"].eq("salty").astype(int)).drop(columns=["kind", "price"])
    model = EasyTensorTwoTower(
        user_blocks=[("c", CategoryBlock(), "taste")],
        item_blocks=[("c", CategoryBlock(), "kind")],
        max_epochs=1,
        random_state=0,
    ).fit(X, y, items=items, item_key="film")
    with pytest.raises(ValueError, match=r"X lacks \['kind'\] of the item tower"):
        permutation_importance(model, X, y)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("estimator", [LinearRegression(), EasyTensorEmbedder()])
def test_other_estimators_are_refused(estimator, table):
    with pytest.raises(TypeError, match=f"got {type(estimator).__name__}"):
        permutation_importance(estimator, *table)


def test_unfitted(table):
    with pytest.raises(sklearn.exceptions.NotFittedError):
        permutation_importance(EasyTensorRegressor(), *table)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_repeats": 0}, "n_repeats must be an integer at least 1, got 0"),
        ({"by": "row"}, r"by must be one of \['column', 'block'\], got 'row'"),
        ({"max_samples": 1000}, "max_samples must be an integer at least 1 and at most 240"),
        ({"max_samples": 1.5}, "max_samples must be a number at least 0 and at most 1, got 1.5"),
        ({"max_samples": 1e-9}, "max_samples must leave a row"),
        ({"scoring": "no such"}, "no such"),
        ({"sample_weight": [1.0]}, "inconsistent numbers of samples"),
    ],
)
def test_parameters_that_make_no_sense(params, message, regressor, table):
    with pytest.raises(ValueError, match=message):
        permutation_importance(regressor, *table, **params)


def test_rows_and_target_must_go_together(regressor, table):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        permutation_importance(regressor, table[0], table[1][:-1])
    with pytest.raises(ValueError, match="noise"):
        permutation_importance(regressor, table[0].drop(columns="noise"), table[1])


# ---------------------------------------------------------------------- display


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_display_sorts_by_mean(plt, regressor, table):
    result = permutation_importance(regressor, *table, random_state=0)
    display = PermutationImportanceDisplay.from_importances(result)
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels[::-1] == list(result.names[np.argsort(-result.importances_mean, kind="stable")])
    assert len(display.boxes_["boxes"]) == len(table[0].columns)
    medians = [line.get_xdata()[0] for line in display.boxes_["medians"]]
    assert medians[-1] == pytest.approx(np.median(result.importances.max(axis=0)))
    assert display.figure_ is display.ax_.figure


def test_display_of_an_estimator_on_given_axes(plt, regressor, table):
    _, ax = plt.subplots()
    display = PermutationImportanceDisplay.from_estimator(
        regressor, *table, random_state=0, n_repeats=2, max_features=2, by="block", ax=ax
    )
    assert display.ax_ is ax
    assert len(display.boxes_["boxes"]) == 2
    assert display.plot(max_features=None).ax_ is not ax


def test_display_of_scikit_learns_result(plt, regressor, table):
    result = sklearn.inspection.permutation_importance(regressor, *table, n_repeats=2)
    display = PermutationImportanceDisplay.from_importances(result, names=table[0].columns)
    assert "city" in [label.get_text() for label in display.ax_.get_yticklabels()]
    with pytest.raises(ValueError, match="pass the parameter names"):
        PermutationImportanceDisplay.from_importances(result)
    with pytest.raises(ValueError, match="one for each of"):
        PermutationImportanceDisplay.from_importances({"r2": result}, names=table[0].columns)
    with pytest.raises(ValueError, match=r"got shape \(6, 2\)"):
        PermutationImportanceDisplay(result.importances, ["a"])


def test_display_without_matplotlib(monkeypatch, regressor, table):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r"from_estimator needs matplotlib; install it with"):
        PermutationImportanceDisplay.from_estimator(regressor, *table)
    with pytest.raises(ImportError, match=r"plot needs matplotlib"):
        PermutationImportanceDisplay([[1.0]], ["a"]).plot()
