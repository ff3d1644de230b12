"""Mergeable statistics: what one chunk of rows tells a block.

A summary is small, picklable and bounded. ``merge`` is associative and commutative: exactly so
while a column has fewer distinct values than the stated capacity, and within the stated error
beyond. Fitting is: summarise every chunk, merge, finish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "Moments",
    "Quantiles",
    "Summary",
    "SummaryMap",
    "ValueCounts",
    "WeightedMoments",
    "merge_all",
]


LARGEST_EXPONENT = np.finfo(np.float64).maxexp - 1
"""Of a power of two that is finite."""


class Summary(ABC):
    """What a chunk of rows tells a block."""

    @abstractmethod
    def merge(self, other):
        """Return the summary of both chunks; neither operand is changed."""


def merge_all(summaries):
    """Merge many summaries pairwise, as a balanced tree.

    Parameters
    ----------
    summaries : iterable of Summary
        At least one.

    Returns
    -------
    Summary

    Examples
    --------
    >>> import pyarrow as pa
    >>> merge_all([ValueCounts.of(pa.array(["a", "b"])), ValueCounts.of(pa.array(["a"]))]).n_rows
    3
    """
    level = list(summaries)
    while len(level) > 2:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [reduce(lambda a, b: a.merge(b), pair) for pair in pairs]
    return reduce(lambda a, b: a.merge(b), level)


class SummaryMap(dict, Summary):
    """Summaries by name (a column, usually), merged name by name."""

    def merge(self, other):
        """Return the map of merged summaries; both maps have the same names."""
        return SummaryMap({name: self._merge_one(name, other[name]) for name in self})

    def _merge_one(self, name, other):
        try:
            return self[name].merge(other)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error


class ValueCounts(Summary):
    """How often each value of a column occurs.

    Parameters
    ----------
    values : pyarrow.Array of string
        Distinct values.
    counts : numpy.ndarray of int64
        How often each occurs.
    n_missing, n_rows : int
        Rows without a value, and all rows.
    capacity : int
        With more than twice as many distinct values the rarest are dropped.
    error : int
        No count is too low by more than this. 0 while nothing has been dropped.

    Notes
    -----
    Keeping the top values of a merged stream is the SpaceSaving idea of mergeable summaries
    (Agarwal et al., "Mergeable summaries", 2012).
    """

    def __init__(self, values, counts, n_missing, n_rows, *, capacity=1_000_000, error=0):
        self.values = values
        self.counts = counts
        self.n_missing = n_missing
        self.n_rows = n_rows
        self.capacity = capacity
        self.error = error

    @classmethod
    def of(cls, column, *, capacity=1_000_000):
        """Count the values of one string array, chunked array or dictionary array."""
        values, indices = dictionary_parts(column)
        n_missing = len(column) - len(indices)
        counts = np.bincount(indices, minlength=len(values))
        return cls(values, counts, n_missing, len(column), capacity=capacity)._bounded()

    def merge(self, other):
        """Add the counts of two summaries."""
        values = pa.concat_arrays([self.values, other.values])
        encoded = values.dictionary_encode()
        weights = np.concatenate([self.counts, other.counts])
        # Weights are exact in float64 up to 2**53 rows.
        counts = np.bincount(encoded.indices.to_numpy(), weights=weights).astype(np.int64)
        return ValueCounts(
            encoded.dictionary,
            counts,
            self.n_missing + other.n_missing,
            self.n_rows + other.n_rows,
            capacity=min(self.capacity, other.capacity),
            error=self.error + other.error,
        )._bounded()

    def most_common(self, *, min_count=1, limit=None):
        """Return the values seen at least `min_count` times, most frequent first.

        Ties are in the order of the values, so that the result does not depend on the order in
        which chunks were merged.

        Returns
        -------
        values : pyarrow.Array of string
        counts : numpy.ndarray of int64
        """
        kept = np.flatnonzero(self.counts >= min_count)
        values, counts = self.values.take(pa.array(kept)), self.counts[kept]
        table = pa.table({"value": values, "count": pa.array(counts, pa.int64())})
        order = pc.sort_indices(table, [("count", "descending"), ("value", "ascending")])
        order = order.slice(0, limit)
        return values.take(order), counts[order.to_numpy()]

    def _bounded(self):
        if len(self.values) <= 2 * self.capacity:
            return self
        cut = len(self.counts) - self.capacity
        kept = np.sort(np.argpartition(self.counts, cut)[cut:])
        dropped = int(np.partition(self.counts, cut - 1)[cut - 1])
        return ValueCounts(
            self.values.take(pa.array(kept)),
            self.counts[kept],
            self.n_missing,
            self.n_rows,
            capacity=self.capacity,
            error=self.error + dropped,
        )


class Quantiles(Summary):
    """The distribution of a numeric column as sorted values with counts.

    Parameters
    ----------
    values : numpy.ndarray of float64
        Sorted, distinct, finite.
    counts : numpy.ndarray of int64
        How many rows each value stands for.
    n_missing, n_infinite, n_rows : int
        Rows that are NaN or null, rows that are infinite, and all rows.

    Notes
    -----
    Exact up to `EXACT` distinct values. Beyond, the rows are represented by `POINTS` values of
    equal rank distance, which bounds the rank error of one compression by ``0.5 / POINTS``
    (Greenwald and Khanna's mergeable summaries use the same representation).
    """

    EXACT = 65_536
    POINTS = 16_384
    CHUNK = 262_144

    def __init__(self, values, counts, n_missing=0, n_infinite=0, n_rows=0):
        self.values = values
        self.counts = counts
        self.n_missing = n_missing
        self.n_infinite = n_infinite
        self.n_rows = n_rows

    @classmethod
    def of(cls, array):
        """Summarise a float64 array in which NaN means missing."""
        parts = [
            cls._of_chunk(array[start : start + cls.CHUNK])
            for start in range(0, max(len(array), 1), cls.CHUNK)
        ]
        return merge_all(parts)

    @classmethod
    def _of_chunk(cls, array):
        finite = array[np.isfinite(array)]
        n_missing = int(np.isnan(array).sum())
        n_infinite = len(array) - len(finite) - n_missing
        values, counts = np.unique(finite, return_counts=True)
        return cls(values, counts, n_missing, n_infinite, len(array))._bounded()

    def merge(self, other):
        """Join two distributions."""
        values, inverse = np.unique(
            np.concatenate([self.values, other.values]), return_inverse=True
        )
        weights = np.concatenate([self.counts, other.counts])
        counts = np.bincount(inverse, weights=weights, minlength=len(values)).astype(np.int64)
        return Quantiles(
            values,
            counts,
            self.n_missing + other.n_missing,
            self.n_infinite + other.n_infinite,
            self.n_rows + other.n_rows,
        )._bounded()

    def quantile_edges(self, n_edges):
        """Return at most `n_edges` increasing values that cut the column into even parts.

        A value that holds many rows would take many edges and leave few for the rest, so the
        weight of each distinct value is capped at one part's share first.

        Parameters
        ----------
        n_edges : int
            Columns with no more distinct values than this get all of them as edges.

        Returns
        -------
        numpy.ndarray of float64
            Empty for a column without finite values.
        """
        if len(self.values) <= n_edges:
            return self.values.copy()
        weights = self.counts.astype(np.float64)
        for _ in range(20):
            capped = np.minimum(self.counts, max(weights.sum() / (n_edges - 1), 1.0))
            if np.array_equal(capped, weights):
                break
            weights = capped
        middle = np.cumsum(weights) - 0.5 * weights
        targets = np.linspace(middle[0], middle[-1], n_edges)
        if spans_finitely(self.values):
            return np.unique(np.interp(targets, middle, self.values))
        return np.unique(4 * np.interp(targets, middle, self.values / 4))

    def _bounded(self):
        if len(self.values) <= self.EXACT:
            return self
        cumulative = np.cumsum(self.counts)
        total = int(cumulative[-1])
        bounds = np.linspace(0, total, self.POINTS + 1).round().astype(np.int64)
        middle = (bounds[:-1] + bounds[1:]) // 2
        index = np.searchsorted(cumulative, middle, side="right")
        index[0], index[-1] = 0, len(self.values) - 1
        kept, first = np.unique(index, return_index=True)
        counts = np.add.reduceat(np.diff(bounds), first)
        return Quantiles(self.values[kept], counts, self.n_missing, self.n_infinite, self.n_rows)


class Moments(Summary):
    """Count, mean and sum of squared deviations of each component of a vector column.

    Parameters
    ----------
    count : numpy.ndarray of int64, shape (n_components,)
        Rows that have the component.
    mean : numpy.ndarray of float64, shape (n_components,)
        Mean.
    squares : numpy.ndarray of float64, shape (n_components,)
        Sum of squared deviations from the mean, over the square of the unit.
    n_missing, n_rows : int
        Rows without any component, and all rows.
    unit : numpy.ndarray of float64, shape (n_components,), or float, default=1.0
        Powers of two about as large as the largest component, 0 where all are 0 or missing:
        neither sums nor squares of what was divided by it are infinite or 0.

    Notes
    -----
    Merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979): equal to one pass up to rounding. Without components it
    stands for rows that are all missing, of a length not yet known.
    """

    def __init__(self, count, mean, squares, n_missing, n_rows, unit=1.0):
        self.count = count
        self.mean = mean
        self.squares = squares
        self.n_missing = n_missing
        self.n_rows = n_rows
        self.unit = unit

    @classmethod
    def of(cls, matrix):
        """Summarise a float64 matrix of shape (n, n_components) in which NaN means missing."""
        present = ~np.isnan(matrix)
        count = present.sum(axis=0)
        largest = np.abs(matrix).max(axis=0, where=present, initial=0.0)
        divisor = power_of_two(largest)
        matrix = np.where(present, matrix, 0.0) / divisor
        mean = matrix.sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(present, matrix - mean, 0.0) ** 2).sum(axis=0)
        n_missing = len(matrix) - int(present.any(axis=1).sum())
        unit = np.where(largest > 0, divisor, 0.0)
        return cls(count, mean * divisor, squares, n_missing, len(matrix), unit)

    def merge(self, other):
        """Pool two sets of moments."""
        rows = self.n_missing + other.n_missing, self.n_rows + other.n_rows
        for known, unknown in ((self, other), (other, self)):
            if len(unknown.mean) == 0:
                return Moments(known.count, known.mean, known.squares, *rows, known.unit)
        if len(self.mean) != len(other.mean):
            lengths = sorted([len(self.mean), len(other.mean)])
            raise ValueError(
                f"vectors of length {lengths[0]} and {lengths[1]}; expected one length"
            )
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        unit = np.maximum(self.unit, other.unit)
        divisor = np.where(unit > 0, unit, 1.0)
        mean = self.mean / divisor
        delta = other.mean / divisor - mean
        squares = sum(each.squares * (each.unit / divisor) ** 2 for each in (self, other))
        squares = squares + delta**2 * self.count * share
        return Moments(count, (mean + delta * share) * divisor, squares, *rows, unit)

    @property
    def standard_deviation(self):
        """Standard deviation of each component."""
        return np.sqrt(self.squares / np.maximum(self.count, 1)) * self.unit


class WeightedMoments(Summary):
    """Weighted mean and sum of squared deviations of each column of a matrix.

    Parameters
    ----------
    weight : float
        Sum of the rows' weights.
    mean, squares : numpy.ndarray of float64, shape (n_columns,)
        Mean and weighted sum of squared deviations from it.
    """

    def __init__(self, weight, mean, squares):
        self.weight = weight
        self.mean = mean
        self.squares = squares

    @classmethod
    def of(cls, matrix, weight):
        """Summarise a matrix of shape (n, n_columns) with weights of shape (n,)."""
        weight = weight[:, None]
        total = weight.sum()
        mean = (matrix * weight).sum(0) / total
        return cls(total, mean, ((matrix - mean) ** 2 * weight).sum(0))

    def merge(self, other):
        """Pool two sets of moments."""
        weight = self.weight + other.weight
        share = other.weight / weight
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta**2 * self.weight * share
        return WeightedMoments(weight, self.mean + delta * share, squares)


def spans_finitely(values):
    """Tell whether all differences of sorted finite values are finite."""
    with np.errstate(over="ignore"):
        return len(values) == 0 or bool(np.isfinite(values[-1] - values[0]))


def power_of_two(sizes):
    """Return powers of two just above some sizes, 1 for 0; the largest one if there is none above.

    Dividing by them and multiplying again rounds nothing but numbers that are tiny beside them.

    Parameters
    ----------
    sizes : ndarray of float64
        Not negative.

    Returns
    -------
    ndarray of float64
        Finite for finite sizes.
    """
    exponents = np.minimum(np.frexp(sizes)[1], LARGEST_EXPONENT)
    return np.where(sizes > 0, np.ldexp(1.0, exponents), 1.0)


def dictionary_parts(column):
    """Split a column into its distinct values and, per non-missing row, their index.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Any type that can be dictionary-encoded, or a dictionary column.

    Returns
    -------
    values : pyarrow.Array
        Distinct values; entries that no row uses may be among them.
    indices : numpy.ndarray of int32
        Index into `values` for each row that has one.
    """
    if isinstance(column, pa.ChunkedArray):
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
        else:
            column = column.dictionary_encode()
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    elif not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    indices = column.indices
    if indices.null_count:
        indices = indices.drop_null()
    return column.dictionary, indices.to_numpy(zero_copy_only=False)


def cached_slices(n_rows, size=16_384):
    """Cut rows into slices whose columns stay in a processor's cache while they are interleaved.

    Parameters
    ----------
    n_rows : int
        All rows.
    size : int, default=16_384
        Rows a slice.

    Returns
    -------
    list of slice
    """
    return [slice(start, start + size) for start in range(0, n_rows, size)]
