import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sk_easytensor.data.summaries import (
    Moments,
    Quantiles,
    SummaryMap,
    ValueCounts,
    dictionary_parts,
    merge_all,
)

words = st.lists(st.sampled_from(["a", "b", "", "ä", None]), max_size=12)
numbers = st.floats(width=32) | st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf])
arrays = st.lists(numbers, max_size=12).map(lambda values: np.array(values, dtype=np.float64))


def counts_of(summary):
    return {
        "counts": dict(zip(summary.values.to_pylist(), summary.counts.tolist(), strict=True)),
        "rows": (summary.n_missing, summary.n_rows, summary.error),
    }


def fields(summary):
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(summary).items()
    }


def count(values, **options):
    return ValueCounts.of(pa.array(values, pa.string()), **options)


@given(st.lists(words, min_size=1, max_size=6), st.randoms())
def test_value_counts_of_chunks(chunks, random):
    whole = counts_of(count([value for chunk in chunks for value in chunk]))
    parts = [count(chunk) for chunk in chunks]
    random.shuffle(parts)
    assert counts_of(merge_all(parts)) == whole
    before = [counts_of(part) for part in parts]
    left = parts[0]
    for part in parts[1:]:
        left = left.merge(part)
    assert counts_of(left) == whole
    assert [counts_of(part) for part in parts] == before


@given(words)
def test_value_counts_of_every_layout(values):
    array = pa.array(values, pa.string())
    expected = counts_of(ValueCounts.of(array))
    chunks = pa.chunked_array([array[:2], array[2:]], pa.string())
    used = {key: value for key, value in expected["counts"].items() if value}
    for column in (array.dictionary_encode(), chunks, chunks.dictionary_encode()):
        found = counts_of(ValueCounts.of(column))
        assert {key: value for key, value in found["counts"].items() if value} == used
        assert found["rows"] == expected["rows"]


def test_most_common():
    summary = count(["b", "a", "c", "b", "c", None, "d", "c"])
    values, counts = summary.most_common()
    assert values.to_pylist() == ["c", "b", "a", "d"]
    assert counts.tolist() == [3, 2, 1, 1]
    assert summary.most_common(min_count=2)[0].to_pylist() == ["c", "b"]
    assert summary.most_common(limit=3)[0].to_pylist() == ["c", "b", "a"]
    assert summary.most_common(min_count=9)[0].to_pylist() == []


def test_most_common_does_not_depend_on_the_order_of_chunks():
    parts = [count(["a", "b"]), count(["c", "b"]), count(["d"])]
    there = merge_all(parts).most_common()[0]
    back = merge_all(parts[::-1]).most_common()[0]
    assert there.equals(back)


def test_unused_categories_are_not_common():
    column = pa.DictionaryArray.from_arrays(pa.array([1, None, 1]), ["unused", "used"])
    values, counts = ValueCounts.of(column).most_common()
    assert (values.to_pylist(), counts.tolist()) == (["used"], [2])


def test_value_counts_over_capacity():
    rng = np.random.default_rng(0)
    capacity, n_chunks = 1000, 20
    chunks = [rng.zipf(1.3, 20_000) % 1_000_000 for _ in range(n_chunks)]
    parts = [count(chunk.astype(str), capacity=capacity) for chunk in chunks]
    assert all(len(part.values) <= 2 * capacity for part in parts)
    merged = merge_all(parts)
    assert len(merged.values) <= 2 * capacity
    assert merged.n_rows == 400_000
    true = dict(
        zip(*np.unique(np.concatenate(chunks).astype(str), return_counts=True), strict=True)
    )
    top = sorted(true, key=true.get)[-200:]
    values, counts = merged.most_common(limit=200)
    found = dict(zip(values.to_pylist(), counts.tolist(), strict=True))
    assert len(set(top) & set(found)) >= 198
    for value, number in found.items():
        assert true[value] - merged.error <= number <= true[value]


def test_value_counts_stay_within_capacity_when_all_are_equal():
    summary = count([str(i) for i in range(50)], capacity=10)
    assert len(summary.values) == 10
    assert summary.error == 1


@given(st.lists(arrays, min_size=1, max_size=6), st.randoms())
def test_quantiles_of_chunks(chunks, random):
    whole = fields(Quantiles.of(np.concatenate(chunks)))
    parts = [Quantiles.of(chunk) for chunk in chunks]
    before = [fields(part) for part in parts]
    random.shuffle(parts)
    assert fields(merge_all(parts)) == whole
    assert sorted(map(str, before)) == sorted(str(fields(part)) for part in parts)


def test_quantiles_count_what_is_not_a_number():
    summary = Quantiles.of(np.array([1.0, np.nan, np.inf, -np.inf, 1.0, 2.0]))
    assert summary.values.tolist() == [1, 2]
    assert summary.counts.tolist() == [2, 1]
    assert (summary.n_missing, summary.n_infinite, summary.n_rows) == (1, 2, 6)


@pytest.mark.parametrize("shape", ["normal", "lognormal", "sorted"])
def test_quantile_error_over_capacity(shape):
    rng = np.random.default_rng(0)
    values = {"normal": rng.normal, "lognormal": rng.lognormal, "sorted": rng.random}[shape](
        size=1_600_000
    )
    if shape == "sorted":
        values.sort()
    merged = merge_all(Quantiles.of(chunk) for chunk in np.array_split(values, 16))
    assert len(merged.values) <= Quantiles.EXACT
    assert merged.counts.sum() == len(values)
    ordered = np.sort(values)
    assert merged.values[[0, -1]].tolist() == ordered[[0, -1]].tolist()
    ranks = np.searchsorted(ordered, merged.values, side="right") / len(values)
    estimated = np.cumsum(merged.counts) / len(values)
    assert np.abs(ranks - estimated).max() < 1e-3
    targets = np.linspace(0, 1, 65)
    edges = merged.quantile_edges(65)
    assert np.abs(np.searchsorted(ordered, edges) / len(values) - targets).max() < 1e-3


@given(
    npst.arrays(
        np.float64, st.integers(0, 200), elements=st.floats(-1e6, 1e6) | st.integers(-3, 3)
    ),
    st.integers(2, 20),
)
def test_quantile_edges(values, n_edges):
    edges = Quantiles.of(values).quantile_edges(n_edges)
    distinct = np.unique(values)
    assert len(edges) <= max(n_edges, 0)
    assert (np.diff(edges) > 0).all()
    if len(distinct) <= n_edges:
        np.testing.assert_array_equal(edges, distinct)
    else:
        assert edges[0] == distinct[0]
        assert edges[-1] == distinct[-1]


def test_a_spike_does_not_eat_the_edges():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(9_000), rng.random(1_000)])
    edges = Quantiles.of(values).quantile_edges(33)
    assert len(edges) >= 30
    # The rest is cut as evenly as it would be alone.
    assert np.diff(edges).max() < 0.1


def matrices():
    elements = st.floats(-1e3, 1e3, width=32) | st.just(np.nan)
    return npst.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(2)), elements=elements)


@given(st.lists(matrices(), min_size=1, max_size=5), st.randoms())
def test_moments_of_chunks(chunks, random):
    whole = Moments.of(np.concatenate(chunks))
    parts = [Moments.of(chunk) for chunk in chunks]
    random.shuffle(parts)
    merged = merge_all(parts)
    np.testing.assert_array_equal(merged.count, whole.count)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9, atol=1e-6)
    assert (merged.n_missing, merged.n_rows) == (whole.n_missing, whole.n_rows)


@pytest.mark.parametrize("empty", [0.0, np.nan])
def test_moments_of_tiny_values_beside_chunks_of_none(empty):
    values = np.array([[1e-200], [3e-200]])
    merged = merge_all([Moments.of(np.full((2, 1), empty)), Moments.of(values)])
    expected = np.nanstd(np.concatenate([[[empty]] * 2, values]) * 1e200) * 1e-200
    np.testing.assert_allclose(merged.standard_deviation, [expected])


def test_moments_are_stable_far_from_zero():
    values = 1e9 + np.random.default_rng(0).normal(size=(10_000, 1))
    merged = merge_all(Moments.of(chunk) for chunk in np.array_split(values, 50))
    assert merged.standard_deviation == pytest.approx(values.std(axis=0), rel=1e-6)


def test_moments_of_unknown_and_other_lengths():
    known, unknown = Moments.of(np.ones((3, 2))), Moments.of(np.ones((4, 0)))
    for merged in (known.merge(unknown), unknown.merge(known)):
        assert merged.mean.tolist() == [1, 1]
        assert (merged.n_missing, merged.n_rows) == (4, 7)
    maps = [SummaryMap(image=known), SummaryMap(image=Moments.of(np.ones((1, 5))))]
    with pytest.raises(ValueError, match="column 'image': vectors of length 2 and 5"):
        maps[0].merge(maps[1])


def test_summary_maps_merge_by_name():
    left = SummaryMap(a=count(["x"]), b=count(["y"]))
    right = SummaryMap(b=count(["y", None]), a=count(["z"]))
    merged = pickle.loads(pickle.dumps(left)).merge(pickle.loads(pickle.dumps(right)))
    assert counts_of(merged["a"])["counts"] == {"x": 1, "z": 1}
    assert counts_of(merged["b"])["rows"] == (1, 3, 0)


def test_merge_all_of_many():
    assert merge_all(count(["a"]) for _ in range(101)).n_rows == 101


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", None, "y", "x"]),
        pa.array(["x", None, "y", "x"]).dictionary_encode(),
        pa.chunked_array([["x", None], ["y", "x"]]),
        pa.chunked_array([["x", None], [], ["y", "x"]]).dictionary_encode(),
    ],
)
def test_dictionary_parts(column):
    values, indices = dictionary_parts(column)
    assert [values[index].as_py() for index in indices.tolist()] == ["x", "y", "x"]


def test_dictionary_parts_of_nothing():
    for column in (pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        values, indices = dictionary_parts(column)
        assert len(values) == len(indices) == 0
