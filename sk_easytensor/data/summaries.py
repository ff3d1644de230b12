"""Mergeable statistics of chunks of rows, from which blocks are fitted.

A summary is small, picklable and of bounded size. ``merge`` is associative and commutative: exactly
while a column has fewer distinct values than the stated capacity, and within the stated error
beyond. A block is fitted in three steps: summarize each chunk, merge the summaries, finish.
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
"""Largest exponent of a finite power of two in double precision."""


class Summary(ABC):
    """Statistics of a chunk of rows that can be merged with those of another chunk."""

    @abstractmethod
    def merge(self, other):
        """Return the summary of the rows of both summaries; neither operand is modified."""


def merge_all(summaries):
    """Merge summaries pairwise, as a balanced tree.

    Parameters
    ----------
    summaries : iterable of Summary
        At least one summary.

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
    """Dictionary of summaries by name, usually of a column, which are merged name by name."""

    def merge(self, other):
        """Return a map of the merged summaries of two maps with the same names."""
        return SummaryMap({name: self._merge_one(name, other[name]) for name in self})

    def _merge_one(self, name, other):
        try:
            return self[name].merge(other)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error


class ValueCounts(Summary):
    """Number of rows with each value of a column.

    Parameters
    ----------
    values : pyarrow.Array of string
        Distinct values.
    counts : numpy.ndarray of int64
        Number of rows with each value.
    n_missing, n_rows : int
        Number of rows without a value, and number of all rows.
    capacity : int, default=1_000_000
        Number of values that are retained once there are more than twice as many; the rarest are
        dropped.
    error : int, default=0
        Upper bound of the amount by which a count is too low; 0 while no value was dropped.

    Notes
    -----
    The most frequent values of a merged stream are retained, as in the SpaceSaving summary
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
        """Count the values of a string array, chunked array or dictionary array."""
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
        """Return the values with at least `min_count` rows, most frequent first.

        Values of equal counts are in sorted order, so that the result does not depend on the order
        in which chunks were merged.

        Parameters
        ----------
        min_count : int, default=1
            Smallest count of a value.
        limit : int or None, default=None
            Largest number of values; None returns all.

        Returns
        -------
        values : pyarrow.Array of string
        counts : numpy.ndarray of int64
        """
        frequent = np.flatnonzero(self.counts >= min_count)
        values, counts = self.values.take(pa.array(frequent)), self.counts[frequent]
        table = pa.table({"value": values, "count": pa.array(counts, pa.int64())})
        order = pc.sort_indices(table, [("count", "descending"), ("value", "ascending")])
        order = order.slice(0, limit)
        return values.take(order), counts[order.to_numpy()]

    def _bounded(self):
        if len(self.values) <= 2 * self.capacity:
            return self
        cut = len(self.counts) - self.capacity
        retained = np.sort(np.argpartition(self.counts, cut)[cut:])
        dropped = int(np.partition(self.counts, cut - 1)[cut - 1])
        return ValueCounts(
            self.values.take(pa.array(retained)),
            self.counts[retained],
            self.n_missing,
            self.n_rows,
            capacity=self.capacity,
            error=self.error + dropped,
        )


class Quantiles(Summary):
    """Distribution of a numeric column as sorted values with counts.

    Parameters
    ----------
    values : numpy.ndarray of float64
        Sorted, distinct, finite values.
    counts : numpy.ndarray of int64
        Number of rows that each value represents.
    n_missing, n_infinite, n_rows : int, default=0
        Number of rows that are NaN or null, number of infinite rows, and number of all rows.

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
        """Summarize a float64 array, NaN where missing."""
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
        """Merge two distributions."""
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
        """Return at most `n_edges` increasing values that split the rows into equal parts.

        A value with many rows would take many edges and leave few for the rest, so the weight of
        each distinct value is first capped at the weight of one part.

        Parameters
        ----------
        n_edges : int
            Largest number of edges; a column with no more distinct values has all of them as edges.

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
        if has_finite_range(self.values):
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
        used, first = np.unique(index, return_index=True)
        counts = np.add.reduceat(np.diff(bounds), first)
        return Quantiles(self.values[used], counts, self.n_missing, self.n_infinite, self.n_rows)


class Moments(Summary):
    """Count, mean and sum of squared deviations of each component of a vector column.

    Parameters
    ----------
    count : numpy.ndarray of int64, shape (n_components,)
        Number of rows in which the component is present.
    mean : numpy.ndarray of float64, shape (n_components,)
        Mean of the component.
    squares : numpy.ndarray of float64, shape (n_components,)
        Sum of squared deviations from the mean, divided by the square of `unit`.
    n_missing, n_rows : int
        Number of rows without any component, and number of all rows.
    unit : numpy.ndarray of float64, shape (n_components,), or float, default=1.0
        Power of two about as large as the largest value of the component, 0 if all values are 0
        or missing. Sums and squares of values divided by it neither overflow nor underflow.

    Notes
    -----
    Merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979): equal to one pass up to rounding. Arrays without components
    describe rows that are all missing, of vectors whose length is not yet known.
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
        """Summarize a float64 matrix of shape (n, n_components), NaN where missing."""
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
        fraction = other.count / np.maximum(count, 1)
        unit = np.maximum(self.unit, other.unit)
        divisor = np.where(unit > 0, unit, 1.0)
        mean = self.mean / divisor
        delta = other.mean / divisor - mean
        squares = sum(moments.squares * (moments.unit / divisor) ** 2 for moments in (self, other))
        squares = squares + delta**2 * self.count * fraction
        return Moments(count, (mean + delta * fraction) * divisor, squares, *rows, unit)

    @property
    def standard_deviation(self):
        """Standard deviation of each component."""
        return np.sqrt(self.squares / np.maximum(self.count, 1)) * self.unit


class WeightedMoments(Summary):
    """Weighted mean and sum of squared deviations of each column of a matrix.

    Parameters
    ----------
    weight : float
        Sum of the weights of the rows.
    mean, squares : numpy.ndarray of float64, shape (n_columns,)
        Weighted mean, and weighted sum of squared deviations from it.
    """

    def __init__(self, weight, mean, squares):
        self.weight = weight
        self.mean = mean
        self.squares = squares

    @classmethod
    def of(cls, matrix, weight):
        """Summarize a matrix of shape (n, n_columns) with weights of shape (n,)."""
        weight = weight[:, None]
        total = weight.sum()
        mean = (matrix * weight).sum(0) / total
        return cls(total, mean, ((matrix - mean) ** 2 * weight).sum(0))

    def merge(self, other):
        """Pool two sets of moments."""
        weight = self.weight + other.weight
        fraction = other.weight / weight
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta**2 * self.weight * fraction
        return WeightedMoments(weight, self.mean + delta * fraction, squares)


def has_finite_range(values):
    """Return whether the differences of sorted finite values are finite."""
    with np.errstate(over="ignore"):
        return len(values) == 0 or bool(np.isfinite(values[-1] - values[0]))


def power_of_two(sizes):
    """Return the next power of two above each size, at most the largest finite one; 1 for 0.

    Dividing by a power of two and multiplying again is exact, except for relatively tiny numbers.

    Parameters
    ----------
    sizes : ndarray of float64
        Numbers that are not negative.

    Returns
    -------
    ndarray of float64
        Powers of two, finite for finite sizes.
    """
    exponents = np.minimum(np.frexp(sizes)[1], LARGEST_EXPONENT)
    return np.where(sizes > 0, np.ldexp(1.0, exponents), 1.0)


def dictionary_parts(column):
    """Split a column into its distinct values and their index in each non-missing row.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Dictionary column, or column of a type that can be dictionary-encoded.

    Returns
    -------
    values : pyarrow.Array
        Distinct values, some of which may not occur in any row.
    indices : numpy.ndarray of int32
        Index in `values` of each row that is not missing.
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
    """Split rows into slices whose columns stay in the cache while they are interleaved.

    Parameters
    ----------
    n_rows : int
        Number of all rows.
    size : int, default=16_384
        Number of rows of a slice.

    Returns
    -------
    list of slice
    """
    return [slice(start, start + size) for start in range(0, n_rows, size)]
