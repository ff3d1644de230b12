import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_easytensor import ranking
from sk_easytensor.data.tables import as_table
from sk_easytensor.ranking import (
    coverage_at_k,
    ranking_report,
    recall_at_k,
    split_interactions,
)

METRICS = {
    "recall": ranking.recall_at_k,
    "precision": ranking.precision_at_k,
    "hit_rate": ranking.hit_rate_at_k,
    "ndcg": ranking.ndcg_at_k,
    "mrr": ranking.mrr_at_k,
    "map": ranking.map_at_k,
}


def naive(relevant, recommended, k):
    """Compute all metrics with loops; None for users without a relevant item."""
    totals = {name: [] for name in METRICS}
    for wanted, offered in zip(relevant, recommended, strict=True):
        wanted = {item for item in wanted or () if item is not None}
        if not wanted:
            continue
        hits, found, gain, precisions = 0, set(), 0.0, 0.0
        first = None
        for place, item in enumerate(offered[:k], start=1):
            if item is None or item not in wanted or item in found:
                continue
            found.add(item)
            hits += 1
            first = first or place
            gain += 1 / math.log2(1 + place)
            precisions += hits / place
        best = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(wanted)) + 1))
        totals["recall"].append(hits / len(wanted))
        totals["precision"].append(hits / k)
        totals["hit_rate"].append(float(hits > 0))
        totals["ndcg"].append(gain / best)
        totals["mrr"].append(1 / first if first else 0.0)
        totals["map"].append(precisions / min(k, len(wanted)))
    return {name: np.mean(values) for name, values in totals.items()} if totals["recall"] else None


ITEMS = st.one_of(st.none(), st.integers(0, 9))


@st.composite
def rankings(draw, items=ITEMS):
    n_users, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    relevant = draw(
        st.lists(
            st.one_of(st.none(), st.lists(items, max_size=5)), min_size=n_users, max_size=n_users
        )
    )
    row = st.lists(items, min_size=width, max_size=width)
    recommended = draw(st.lists(row, min_size=n_users, max_size=n_users))
    return relevant, recommended, draw(st.integers(1, width))


def check(relevant, recommended, k):
    expected = naive(relevant, recommended, k)
    for name, metric in METRICS.items():
        if expected is None:
            with pytest.raises(ValueError, match="no user has a relevant item"):
                metric(relevant, recommended, k=k)
        else:
            assert metric(relevant, recommended, k=k) == pytest.approx(expected[name]), name


@given(rankings())
def test_metrics_are_those_of_loops(example):
    check(*example)


@given(rankings(st.one_of(st.none(), st.sampled_from(["", "a", "b", "c", "ä"]))))
def test_strings(example):
    check(*example)


@given(rankings())
def test_coverage(example):
    _, recommended, k = example
    distinct = {item for row in recommended for item in row[:k]} - {None}
    assert coverage_at_k(recommended, n_items=10, k=k) == pytest.approx(len(distinct) / 10)


def test_report_holds_all_metrics():
    relevant, recommended = [["a", "b"], [], ["c"]], [["b", "x"], ["a", "c"], ["y", "c"]]
    report = ranking_report(relevant, recommended, k=2, n_items=10)
    assert report.pop("coverage") == pytest.approx(0.5)
    assert report == pytest.approx(naive(relevant, recommended, 2))
    assert report == {name: metric(relevant, recommended, k=2) for name, metric in METRICS.items()}


# ---------------------------------------------------------------------- odd input

RELEVANT = [[1, 2], [], [3], None]
RECOMMENDED = np.array([[2, 5, 1], [1, 2, 3], [4, 5, 3], [1, 2, 3]])


@pytest.mark.parametrize(
    "relevant",
    [
        RELEVANT,
        tuple(RELEVANT),
        np.array([np.array([1, 2]), np.array([], int), np.array([3]), None], dtype=object),
        pd.Series(RELEVANT),
        pd.Series(RELEVANT, index=[5, 6, 7, 8], dtype=pd.ArrowDtype(pa.list_(pa.int32()))),
        pl.Series(RELEVANT),
        pl.DataFrame({"items": RELEVANT})["items"],
        pa.array(RELEVANT, pa.list_(pa.int16())),
        pa.array(RELEVANT, pa.large_list(pa.uint64())),
        pa.chunked_array([RELEVANT[:1], RELEVANT[1:]], pa.list_(pa.int64())),
        pa.array([[1, 2], [], [3], None], pa.list_(pa.float64())),
    ],
    ids=lambda relevant: type(relevant).__name__,
)
@pytest.mark.parametrize(
    "recommended",
    [
        RECOMMENDED,
        RECOMMENDED.tolist(),
        RECOMMENDED.astype(np.int8),
        RECOMMENDED.astype(np.uint64),
        RECOMMENDED.astype(float),
        RECOMMENDED.astype(object),
        np.asfortranarray(RECOMMENDED),
        pd.DataFrame(RECOMMENDED),
        pl.DataFrame(RECOMMENDED),
    ],
    ids=lambda recommended: type(recommended).__name__,
)
def test_every_way_to_hold_lists(relevant, recommended):
    expected = naive(RELEVANT, RECOMMENDED.tolist(), 3)
    report = ranking_report(relevant, recommended, k=3)
    assert report == pytest.approx(expected)


@pytest.mark.parametrize("kind", [pl.Series, pd.Series, pa.array, list])
@pytest.mark.parametrize("dtype", [object, str])
def test_columns_of_strings(kind, dtype):
    relevant = kind([["a", "b"], ["c"]])
    recommended = np.array([["a", "x"], ["y", "z"]], dtype=dtype)
    assert recall_at_k(relevant, recommended, k=2) == 0.25


def test_lists_of_one_length():
    relevant = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    assert recall_at_k(relevant, [[1, 2], [1, 2], [3, 9]], k=2) == 0.75


def test_places_without_a_recommendation():
    recommended = np.array([[2, np.nan], [np.nan, np.nan]])
    assert recall_at_k([[2], [1]], recommended, k=2) == 0.5
    assert recall_at_k([["b"], ["a"]], [["b", None], [None, None]], k=2) == 0.5
    assert coverage_at_k(recommended, 4, k=2) == 0.25


def test_nothing_recommended_to_anyone():
    assert ranking_report([["a"]], [[None, None]], k=2, n_items=3) == dict.fromkeys(
        [*METRICS, "coverage"], 0.0
    )


def test_large_integers_are_told_apart():
    big = 2**53
    assert recall_at_k([[big + 1]], [[big, big + 1]], k=1) == 0.0
    assert recall_at_k([[big + 1]], [[big, big + 1]], k=2) == 1.0


def test_a_relevant_item_counts_once():
    assert recall_at_k([[1, 1, 2]], [[1, 1]], k=2) == 0.5
    assert ranking.precision_at_k([[1, 1, 2]], [[1, 1]], k=2) == 0.5


@pytest.mark.parametrize("relevant", [[[], []], [None, None], [[None], []]])
def test_no_relevant_items(relevant):
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="no user has a relevant item"):
            metric(relevant, [[1], [2]], k=1)


@pytest.mark.parametrize(
    ("relevant", "recommended", "k", "message"),
    [
        ([[1]], [[1, 2]], 3, r"at least k=3\), got \(1, 2\)"),
        ([[1]], [1, 2], 1, r"at least k=1\), got \(2,\)"),
        ([[1], [2]], [[1, 2], [1]], 1, r"at least k=1\), got \(2,\)"),
        ([[1]], [[1], [2]], 1, "relevant has 1 users and recommended has 2"),
        ([1, 2], [[1], [2]], 1, "relevant must have a list for each user, got values of int64"),
        ([["1"]], [[1]], 1, "relevant items are of type string, recommended ones of int64"),
        ([[1]], [[1]], 0, "k must be an integer at least 1"),
        ([[1]], [[1]], 1.0, "k must be an integer at least 1"),
    ],
)
def test_input_that_makes_no_sense(relevant, recommended, k, message):
    for metric in METRICS.values():
        with pytest.raises(ValueError, match=message):
            metric(relevant, recommended, k=k)


def test_the_size_of_a_catalogue():
    with pytest.raises(ValueError, match="n_items must be an integer at least 1"):
        coverage_at_k([[1]], 0, k=1)
    with pytest.raises(ValueError, match="at least k=10"):
        coverage_at_k([[1]], 5)


# ---------------------------------------------------------------------- split of interactions

LOG = pd.DataFrame(
    {
        "user": ["a", "b", "a", "c", "b", "a", "b", "a"],
        "day": pd.to_datetime("2024-01-01") + pd.to_timedelta([5, 1, 2, 9, 1, 7, 3, 4], "D"),
        "item": range(8),
    }
)


def items(part):
    return np.asarray(part["item"]).tolist()


def test_the_latest_rows_of_all_are_split_off():
    train, test = split_interactions(LOG, size=0.25, time="day")
    assert items(test) == [3, 5]
    assert items(train) == [0, 1, 2, 4, 6, 7]


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [5, 6]), (2, [0, 4, 5, 6]), (0.5, [0, 4, 5, 6])]
)
def test_the_latest_rows_of_each_user_are_split_off(size, expected):
    """Rows of the same time keep their order, and each user has a row to train on."""
    train, test = split_interactions(LOG, method="last", size=size, user="user", time="day")
    assert items(test) == expected
    assert set(train["user"]) == {"a", "b", "c"}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.floats(0.01, 0.99) | st.integers(1, 5),
    st.integers(0, 100),
)
def test_random_rows_of_each_user_are_split_off(users, size, seed):
    log = {"user": users, "item": list(range(len(users)))}
    parts = [
        split_interactions(as_table(log), method="random", size=size, user="user", random_state=s)
        for s in (seed, seed)
    ]
    assert parts[0] == parts[1]
    train, test = (part.to_pandas() for part in parts[0])
    assert sorted([*train["item"], *test["item"]]) == log["item"]
    assert train["item"].is_monotonic_increasing
    for user, count in zip(*np.unique(users, return_counts=True), strict=True):
        wanted = size if isinstance(size, int) else round(size * count)
        assert (test["user"] == user).sum() == min(wanted, count - 1)


def test_tables_of_every_kind_are_split(flavour):
    plain = LOG.assign(day=LOG["day"].dt.day)
    train, test = split_interactions(flavour(plain), method="last", size=1, user="user", time="day")
    assert type(train) is type(test) is type(flavour(plain))
    assert as_table(test).column("item").to_pylist() == [5, 6]
    assert as_table(train).num_rows == 6


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "temporal", "time": "day"}, "method must be one of .*got 'temporal'"),
        ({"size": 1.0, "time": "day"}, r"size must be .*got 1\.0"),
        ({"size": 3, "time": "day"}, "size must be .*got 3"),
        ({"method": "last", "size": 0, "user": "user", "time": "day"}, "size must be .*got 0"),
        ({}, "method='time' needs time, the name of a column, got None; there are .*'day'"),
        ({"method": "random", "user": "who"}, "method='random' needs user, .*got 'who'"),
    ],
)
def test_splits_that_are_not_possible(params, message):
    with pytest.raises(ValueError, match=message):
        split_interactions(LOG, **params)
    with pytest.raises(ValueError, match="column 'day' is missing in row 2"):
        split_interactions(LOG.assign(day=LOG["day"].where(LOG["item"] != 2)), time="day")
