"""Baselines of recommendations, and tables that compare models."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sk_easytensor.ranking import (
    compare_rankings,
    ranking_report,
    recommend_ease,
    recommend_popular,
)

RANDOM = np.random.default_rng(0)
LOG = pd.DataFrame({"user": RANDOM.integers(0, 40, 600), "film": RANDOM.integers(0, 15, 600) ** 2})
KEYS = {"user": "user", "item": "film"}


def matrix(log):
    met = pd.crosstab(log["user"], log["film"]).clip(upper=1)
    return met.astype(float)


@pytest.mark.parametrize("convert", [lambda log: log, pl.from_pandas, lambda log: log.astype(str)])
def test_popular_items_are_those_of_most_users(convert):
    users = [7, 3, 999]
    keys = recommend_popular(convert(LOG), users, **KEYS, k=5)
    met = matrix(LOG)
    first = LOG.drop_duplicates("film")["film"].tolist()
    for user, row in zip(users, keys, strict=True):
        seen = set(LOG["film"][LOG["user"] == user])
        order = sorted(first, key=lambda film: (-met[film].sum(), first.index(film)))
        expected = [film for film in order if film not in seen][:5]
        assert [int(key) for key in row if key is not None] == expected
    everyone = recommend_popular(LOG, users, **KEYS, k=20, exclude_seen=False)
    assert (everyone[0] == everyone[2]).all()
    assert [key is None for key in everyone[0]] == [False] * 15 + [True] * 5


def test_ease_is_that_of_the_paper():
    met = matrix(LOG)[LOG.drop_duplicates("film")["film"]]
    inverse = np.linalg.inv(met.T @ met + 50 * np.eye(15))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = pd.DataFrame(met.to_numpy() @ weights, index=met.index, columns=met.columns)
    keys = recommend_ease(LOG, [3, 11], **KEYS, k=3, regularization=50.0)
    for user, row in zip([3, 11], keys, strict=True):
        own = scores.loc[user][met.loc[user] == 0].sort_values(ascending=False)
        assert [key for key in row if key is not None] == own.index.tolist()[:3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recommend_popular(LOG, [1], user="who", item="film"), "X has no column 'who'"),
        (lambda: recommend_popular(LOG, [1], **KEYS, k=0), "k must be an integer at least 1"),
        (lambda: recommend_ease(LOG, [1], **KEYS, regularization=0), "regularization must be"),
        (lambda: compare_rankings([[1]], {}), "recommendations has no model"),
        (lambda: compare_rankings([[1]], {"a": [[1]]}, k=1, confidence=1), "confidence must be"),
        (lambda: compare_rankings([[1]], {"a": [[1]]}, k=1, segments=[1, 2]), "2 values for 1"),
        (lambda: compare_rankings([[]], {"a": [[1]]}, k=1), "no user has a relevant item"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ease_refuses_too_many_items(monkeypatch):
    monkeypatch.setattr("sk_easytensor.ranking.baselines.MAX_ITEMS", 14)
    with pytest.raises(ValueError, match=r"'film' has 15 items; .* at most 14"):
        recommend_ease(LOG, [1], **KEYS)


# ---------------------------------------------------------------------- comparison


def random_lists(seed, n_users=200):
    random = np.random.default_rng(seed)
    return [random.choice(30, 3, replace=False).tolist() for _ in range(n_users)]


@pytest.fixture
def models():
    relevant = random_lists(0)
    good = [[*row, *range(30, 37)] for row in random_lists(0)]
    return relevant, {"good": good, "random": [row * 4 for row in random_lists(5)]}


def test_values_are_those_of_the_report(models):
    relevant, recommended = models
    table = compare_rankings(relevant, recommended, n_items=40)
    for name, keys in recommended.items():
        report = ranking_report(relevant, keys, n_items=40)
        found = table.loc[name]
        assert {metric: found[metric] for metric in report} == pytest.approx(report)
        for metric in set(report) - {"coverage"}:
            assert found[f"{metric}_low"] <= found[metric] <= found[f"{metric}_high"]
    assert table["n_users"].tolist() == [200, 200]
    assert table.equals(compare_rankings(relevant, recommended, n_items=40))
    plain = compare_rankings(relevant, recommended, n_bootstrap=0)
    assert plain.columns.tolist() == ["n_users", *list(report)[:-1]]


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    relevant, held = [[1]] * 100, 0
    for seed in range(200):
        keys = np.where(random.random(100) < 0.3, 1, 2)[:, None]
        row = compare_rankings(
            relevant, {"a": keys}, k=1, confidence=0.8, n_bootstrap=200, random_state=seed
        ).loc["a"]
        held += row["recall_low"] <= 0.3 <= row["recall_high"]
    assert 0.7 < held / 200 < 0.9


def test_segments_are_evaluated_alone(models):
    relevant, recommended = models
    new = np.arange(200) % 4 == 0
    table = compare_rankings(relevant, recommended, segments=np.where(new, "new", "known"))
    assert table.index.names == ["segment", "model"]
    assert [*dict.fromkeys(table.index.get_level_values(0))] == ["(all)", "known", "new"]
    part = compare_rankings(
        [relevant[row] for row in np.flatnonzero(new)],
        {name: np.array(keys)[new] for name, keys in recommended.items()},
    )
    for name in recommended:
        assert table.loc[("new", name), "ndcg"] == pytest.approx(part.loc[name, "ndcg"])
        assert table.loc[("new", name), "n_users"] == 50


def test_popularity_of_what_is_recommended():
    # Item 0 has 8 of 20 interactions, item 9 has none.
    interactions = [0] * 8 + [1] * 4 + [2] * 2 + [3, 4, 5, 6, 7, 8]
    table = compare_rankings(
        [[0, 9], [9]],
        {"popular": [[0, 1], [0, 1]], "rare": [[9, 8], [8, None]]},
        k=2,
        interactions=interactions,
    )
    novelty = -np.log2([8 / 20, 4 / 20, 1 / 20])
    assert table.loc["popular", "novelty"] == pytest.approx(novelty[:2].mean())
    assert table.loc["rare", "novelty"] == pytest.approx(novelty[2])
    assert table["popular"].tolist() == [0.5, 0.0, pytest.approx(1 / 3)]
    assert table["cold_recall"].tolist()[:2] == [0.0, 0.5]
    assert table.index[2] == "(relevant items)"
    warm = compare_rankings([[0]], {"a": [[0, 1]]}, k=2, interactions=interactions)
    assert np.isnan(warm.loc["a", "cold_recall"])


def test_missing_items_and_segments_of_any_name():
    table = compare_rankings(
        [["a", None], ["b"]],
        {"m": [["a"], ["c"]]},
        k=1,
        interactions=["a", "b"],
        segments=["all", "x"],
    )
    assert table.loc[("(all)", "m"), "n_users"] == 2
    assert table.loc[("all", "m"), "recall"] == 1
    assert np.isnan(table.loc[("(all)", "m"), "cold_recall"])
    days = pd.DataFrame(
        {"user": [1, 2, 2], "day": pd.to_datetime(["2024-01-01", "2024-01-01", "2024-01-02"])}
    )
    keys = recommend_popular(days, [1, 2], user="user", item="day", k=1, exclude_seen=False)
    assert [str(key)[:10] for key in keys[:, 0]] == ["2024-01-01"] * 2
