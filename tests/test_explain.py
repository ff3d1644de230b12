"""Contributions of columns are Shapley values, and add up to the raw output."""

from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
import torch

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    EventSequenceBlock,
    Sum,
    TabM,
    VectorBlock,
)
from sk_easytensor.backends.base import LocalBackend
from sk_easytensor.inspection import encoded_model as _encoded
from sk_easytensor.inspection import permutation_importance
from sk_easytensor.inspection.explanation import MixedRows

TREES = BoostedTrees(max_iter=8)
QUICK = {"max_epochs": 2, "n_folds": None, "trees": TREES, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 160
    X = pd.DataFrame(
        {
            "size": rng.normal(size=n),
            "city": rng.choice(["Oslo", "Lima", None], n),
            "day": pd.date_range("2024-01-01", periods=n),
            "flag": rng.random(n) < 0.2,
        }
    )
    X.loc[::7, "size"] = np.nan
    y = X["size"].fillna(0) * (1 + 3 * (X["city"] == "Oslo")) + X["flag"]
    return X, y


@pytest.fixture(scope="module")
def every_kind(table):
    X, y = table
    n = len(X)
    rng = np.random.default_rng(1)
    X = X.assign(
        text=rng.choice(["a red house", "a blue boat", "the green hill"], n),
        items=[list("abc"[: i % 4]) for i in range(n)],
        when=[list(np.arange(i % 3, dtype=float)) for i in range(n)],
        what=[list("xyz"[: i % 3]) for i in range(n)],
        v0=rng.normal(size=n),
        v1=rng.normal(size=n),
        v=list(rng.normal(size=(n, 3))),
        unread=1.0,
    )
    blocks = [
        ("events", EventSequenceBlock(), ["when", "what"]),
        ("vector", VectorBlock(), "v"),
        ("again", CategoryBlock(), ["city", "flag"]),
    ]
    return X, y + X["text"].eq("a red house"), blocks


def shapley(predict, rows, background):
    """Shapley values by all subsets of the columns."""
    names = list(rows)
    weight = [
        factorial(size) * factorial(len(names) - size - 1) / factorial(len(names))
        for size in range(len(names))
    ]
    subsets = [s for size in range(len(names) + 1) for s in combinations(names, size)]
    values = []
    for row in range(len(rows)):
        mean = {}
        for subset in subsets:
            mixed = background.copy()
            for name in subset:
                mixed[name] = rows[name].iloc[[row] * len(background)].set_axis(background.index)
            mean[subset] = predict(mixed).mean(axis=0)
        values.append(
            [
                sum(
                    weight[len(s)] * (mean[tuple(n for n in names if n in {*s, name})] - mean[s])
                    for s in subsets
                    if name not in s
                )
                for name in names
            ]
        )
    return np.array(values)


def models(y):
    """Return models of every kind of output, each with its raw output."""
    classes = pd.cut(y, [-99, 0, 1, 99], labels=["low", "middle", "high"]).astype(str)
    decide = EasyTensorClassifier.decision_function
    return {
        "regression": (EasyTensorRegressor(**QUICK), y, EasyTensorRegressor.predict),
        "outputs": (
            EasyTensorRegressor(**QUICK),
            np.column_stack([y, -(y**2)]),
            EasyTensorRegressor.predict,
        ),
        "poisson": (
            EasyTensorRegressor(loss="poisson", **QUICK),
            np.exp(y / 3).round(),
            lambda model, X: np.log(model.predict(X)),
        ),
        "binary": (EasyTensorClassifier(**QUICK), y > 0, decide),
        "multiclass": (EasyTensorClassifier(**QUICK), classes, decide),
        "multilabel": (
            EasyTensorClassifier(**QUICK),
            np.column_stack([y > 0, y > 1]).astype(int),
            decide,
        ),
    }


TARGETS = ["regression", "outputs", "poisson", "binary", "multiclass", "multilabel"]


@pytest.mark.parametrize("target", TARGETS)
def test_all_orders_give_exact_shapley_values(table, target):
    X, y = table
    model, y, raw = models(y)[target]
    names = ["size", "city", "flag"]
    X = X[names]
    model.fit(X, y)
    assert model.tree_weight_ > 0
    rows, background = X[:3], X[20:29]
    found = model.explain(rows, background=background, n_permutations=3)
    expected = shapley(lambda mixed: raw(model, mixed), rows, background)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.1
    total = found.base_values + found.values.sum(axis=1)
    np.testing.assert_allclose(total, raw(model, rows), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.base_values[0], raw(model, background).mean(0), atol=1e-5)
    assert found.feature_names == names


def test_few_orders_are_near_and_add_up(table):
    X, y = table
    model = EasyTensorRegressor(**QUICK).fit(X, y)
    rows, background = X[:3], X[20:50]
    exact = model.explain(rows, background=background, n_permutations=12).values
    np.testing.assert_allclose(exact, shapley(model.predict, rows, background), atol=1e-5)
    few = model.explain(rows, background=background, n_permutations=1, random_state=0)
    assert np.abs(few.values - exact).max() < 0.2 * np.abs(exact).max()
    total = few.base_values + few.values.sum(axis=1)
    np.testing.assert_allclose(total, model.predict(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("trunk", "trees"),
    [
        (None, TREES),
        (None, None),
        (MLP(width=8), TREES),
        (Sum(width=8), TREES),
        (TabM(layers=0), None),
        (MLP(layers=0), TREES),
    ],
)
def test_every_kind_of_column_and_trunk(every_kind, trunk, trees, monkeypatch):
    X, y, blocks = every_kind
    model = EasyTensorRegressor(blocks, **{**QUICK, "trunk": trunk, "trees": trees}).fit(X, y)
    if trees is not None:
        # Validation rows may leave the network without weight after so few epochs.
        model.network_.trees.share = 0.5
    model.network_.linear.share = 0.6
    rows, background = X[:5], X[50:57]
    found = model.explain(rows, background=background, n_permutations=1, random_state=0)
    total = found.base_values + found.values.sum(axis=1)
    np.testing.assert_allclose(total, model.predict(rows), atol=1e-6)
    used = dict(zip(found.feature_names, np.abs(found.values).max(axis=0), strict=True))
    assert min(used[name] for name in ("size", "city", "text", "items", "when", "v")) > 1e-5
    # With every column replaced, rows are those that the values come from.
    encoded = model._inspection_model(model._encoder.encode(X), LocalBackend())
    ours, theirs = torch.arange(0, 40), torch.arange(60, 100)
    with encoded.running():
        mixed = MixedRows(encoded.network_parts, ours, theirs)
        torch.testing.assert_close(mixed.combined(), encoded.outputs[ours], rtol=0, atol=1e-5)
        for _, places in encoded.columns():
            mixed = mixed.replaced(places)
        torch.testing.assert_close(mixed.combined(), encoded.outputs[theirs], rtol=0, atol=1e-5)
    # What is computed of a change equals what is computed of the changed rows.
    narrow = permutation_importance(model, X, y, n_repeats=1, random_state=0).importances
    monkeypatch.setattr(_encoded, "MANY_COLUMNS", 0)
    wide = permutation_importance(model, X, y, n_repeats=1, random_state=0).importances
    np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-5)


def test_one_seed_gives_one_explanation(table):
    X, y = table
    model = EasyTensorRegressor(**QUICK).fit(X, y)
    how = {"n_permutations": 1, "max_background": 5}
    first, second, other = (model.explain(X, **how, random_state=s).values for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    alone = model.explain(X[:1], background=X, **how, random_state=0).values
    np.testing.assert_allclose(alone, first[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_permutations": 0}, "explain: n_permutations must be an integer at least 1, got 0"),
        ({"max_background": 0}, "explain: max_background must be an integer at least 1, got 0"),
        ({}, "explain: X of 1 rows cannot be its own background; pass background"),
    ],
)
def test_invalid_parameters(table, params, message):
    X, y = table
    model = EasyTensorRegressor(max_epochs=1, trees=None).fit(X, y)
    with pytest.raises(ValueError, match=message):
        model.explain(X[:1], **params)
    with pytest.raises(ValueError, match="size"):
        model.explain(X, background=X.drop(columns="size"))


# ---------------------------------------------------------------------- the package shap


def test_frames_of_objects_predict_the_same(table):
    """shap makes frames of ``X.values``, whose columns all hold Python objects."""
    X, _ = table
    X = X.assign(
        kind=pd.Categorical(X["city"].fillna("none")),
        count=pd.array(np.arange(len(X)) % 5, dtype="Int64"),
    )
    model = EasyTensorClassifier(**QUICK).fit(X, X["flag"])
    expected = model.predict_proba(X)
    objects = X.to_numpy(dtype=object)
    np.testing.assert_array_equal(
        model.predict_proba(pd.DataFrame(objects, columns=list(X))), expected
    )
    with pytest.warns(UserWarning, match="valid feature names"):
        np.testing.assert_array_equal(model.predict_proba(objects), expected)
    for row in range(3):
        alone = pd.DataFrame(objects[row : row + 1], columns=list(X))
        np.testing.assert_allclose(model.predict_proba(alone), expected[row : row + 1], atol=1e-6)


def test_explainers_of_shap(table):
    shap = pytest.importorskip("shap")
    X, y = table
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(len(X), 4)), columns=list("abcd"))
    model = EasyTensorClassifier(**QUICK).fit(numbers, numbers["a"] * numbers["b"] > 0)
    rows, background = numbers[:2], numbers[20:24]
    ours = model.explain(rows, background=background, n_permutations=12)
    assert shap.Explanation(**vars(ours)).shape == (2, 4)
    for algorithm, tolerance in (("exact", 1e-5), ("permutation", 0.05)):
        explainer = shap.Explainer(model.decision_function, background, algorithm=algorithm, seed=0)
        theirs = explainer(rows, max_evals=400)
        np.testing.assert_allclose(ours.values, theirs.values, atol=tolerance)
        np.testing.assert_allclose(ours.base_values, theirs.base_values, atol=1e-6)
    theirs = shap.Explainer(model.predict_proba, background)(rows)
    total = theirs.values.sum(axis=1) + theirs.base_values
    np.testing.assert_allclose(total, model.predict_proba(rows), atol=1e-6)

    model = EasyTensorRegressor(**QUICK).fit(X, y)
    background = X[20:23]

    def masked(mask, row):
        mixed = background.to_numpy(dtype=object, copy=True)
        mixed[:, mask] = row[mask]
        return (pd.DataFrame(mixed, columns=background.columns),)

    explainer = shap.Explainer(model.predict, masked, algorithm="permutation", seed=0)
    with pytest.warns(UserWarning, match="valid feature names"):
        theirs = explainer(X[:1], max_evals=300).values
    ours = model.explain(X[:1], background=background, n_permutations=12).values
    np.testing.assert_allclose(ours, theirs, atol=0.05)
