"""Numbers scaled, bounded and placed among the bin edges of their columns."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sk_easytensor.data.summaries import cached_slices, spans_finitely

__all__ = [
    "BinEdges",
    "BinnedMixin",
    "bounded_numbers",
    "centers_and_scales",
    "usable_edges",
]


LARGEST = 1e150
"""Scaled numbers are cut here, whose square is finite."""

WIDEST = np.finfo(np.float64).max / 2
"""Edges are cut here, whose distance is finite."""

SMALLEST = np.finfo(np.float64).tiny
"""Of a scale: the reciprocal of a smaller one, which a graph may multiply by, is infinite."""

BOUND = 3.0
"""What the size of scaled numbers stays below."""

CELLS = 512
"""Cells of equal width that scaled numbers fall into."""

CACHED, FEWEST_CACHED = 16_384, 64
"""Numbers that are encoded at a time, about, and rows of them at least: larger arrays are given
memory of their own each time, which takes longer than what is computed."""


class BinnedMixin:
    """A block that knows the bin edges of its columns.

    Attributes
    ----------
    edges_ : list of ndarray of float64
        Increasing edges of each column; empty where every value is missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and spread (interquartile range) over the bins.
    """

    def _keep_edges(self, edges):
        self.edges_ = edges
        self.center_, self.scale_ = centers_and_scales(edges)
        self._bin_edges = BinEdges(edges, self.center_, self.scale_)

    def _place(self, columns, encoded):
        """Write what :meth:`BinEdges.place` makes of columns of numbers into an encoding.

        Parameters
        ----------
        columns : list of ndarray of float64, shape (n,)
            NaN where missing.
        encoded : ndarray of float32, shape (n, n_columns, 2 or more)
            Gets scaled numbers and positions.
        """
        # All columns at a time, because a call a column is most of the time that one row takes.
        at_a_time = max(CACHED // max(len(columns), 1), FEWEST_CACHED)
        for rows in cached_slices(len(encoded), at_a_time) if columns else ():
            values = np.stack([column[rows] for column in columns])
            scaled, positions = self._bin_edges.place(values)
            encoded[rows, :, 0], encoded[rows, :, 1] = scaled.T, positions.T

    @cached_property
    def _bin_edges(self):
        # Where the block was unpickled.
        return BinEdges(self.edges_, self.center_, self.scale_)

    def __getstate__(self):
        """Return what is pickled: not what is made from the rest at once."""
        state = super().__getstate__()
        state.pop("_bin_edges", None)
        return state


class BinEdges:
    """Bin edges of some columns, among which numbers are placed.

    A number is first looked up among cells of equal width, which tells near which edges it is, and
    then searched for among these: a third of the time that ``numpy.interp`` takes.

    Parameters
    ----------
    edges : list of ndarray of float64
        Increasing edges of each column; empty where every value was missing.
    center, scale : ndarray of float64, shape (n_columns,)
        As :func:`centers_and_scales` returns them.

    Examples
    --------
    >>> edges = [np.array([0.0, 1.0, 5.0])]
    >>> scaled, positions = BinEdges(edges, *centers_and_scales(edges)).place(
    ...     np.array([[3.0, -1.0]])
    ... )
    >>> positions.tolist()
    [[1.5, 0.0]]
    """

    def __init__(self, edges, center, scale):
        self.center, self.scale = center[:, None], scale[:, None]
        bounds = [usable_edges(column) for column in edges]
        # The last edge belongs to the bin before it.
        begins = [column[: max(len(column) - 1, 1)] for column in bounds]
        cells = [
            np.maximum.accumulate(_cells(bounded_numbers(column, *of)))
            for column, *of in zip(begins, center, scale, strict=True)
        ]
        cell = np.arange(CELLS)
        # One cell more on either side, for scaled numbers are rounded.
        before = [np.searchsorted(column, cell - 1) for column in cells]
        until = [np.searchsorted(column, cell + 1, side="right") for column in cells]
        near = max((int((u - b).max()) for b, u in zip(before, until, strict=True)), default=0)
        self.steps = [2**power for power in reversed(range(near.bit_length()))]
        most = max((len(column) for column in begins), default=0) + sum(self.steps)
        lower, width = np.full((len(edges), most), np.inf), np.ones((len(edges), most))
        for index, column in enumerate(bounds):
            lower[index, : len(begins[index])] = begins[index]
            width[index, : len(column) - 1] = np.diff(column)
        self.lower, self.width = lower.ravel(), width.ravel()
        self.first = np.arange(len(edges))[:, None] * most
        nearest = np.array(before, dtype=np.int64).reshape(len(edges), CELLS) - 1
        self.nearest = (np.maximum(nearest, 0) + self.first).ravel()
        self.first_cell = np.arange(len(edges))[:, None] * CELLS
        self.low = np.array([column[0] for column in bounds])[:, None]
        self.high = np.array([column[-1] for column in bounds])[:, None]

    def place(self, values):
        """Return what :class:`~sk_easytensor.blocks.numeric.NumericModule` reads.

        Parameters
        ----------
        values : ndarray of float64, shape (n_columns, n)
            NaN where missing.

        Returns
        -------
        scaled : ndarray of float64, shape (n_columns, n)
            As :func:`bounded_numbers` returns them.
        positions : ndarray of float64, shape (n_columns, n)
            Where the numbers stand among the edges, from 0 for the first of them or less to one
            less than their number; NaN where missing.
        """
        scaled = bounded_numbers(values, self.center, self.scale)
        inside = np.clip(values, self.low, self.high)
        place = self.nearest.take(_cells(scaled) + self.first_cell)
        for step in self.steps:
            place += step * (self.lower.take(place + step) <= inside)
        inside -= self.lower.take(place)
        inside /= self.width.take(place)
        inside += place - self.first
        return scaled, inside


def usable_edges(edges):
    """Return edges, at least one, whose distances are finite and not zero."""
    if len(edges) == 0:
        return np.zeros(1)
    return edges if spans_finitely(edges) else np.unique(np.clip(edges, -WIDEST, WIDEST))


def _cells(scaled):
    """Return the cells of scaled numbers; of NaN, any."""
    # These take the other number in place of NaN.
    inside = np.fmax(np.fmin(scaled, BOUND), -BOUND)
    inside += BOUND
    inside *= (CELLS - 1) / (2 * BOUND)
    return inside.astype(np.int64)


def centers_and_scales(edges):
    """Return median and spread over the bin edges of each column, as two arrays."""
    spreads = [_center_and_scale(column) for column in edges]
    return np.array(spreads, dtype=np.float64).reshape(-1, 2).T


def _center_and_scale(edges):
    """Median and interquartile range over the bin edges, with a usable scale in any case."""
    if len(edges) == 0:
        return 0.0, 1.0
    if not spans_finitely(edges):
        # Dividing by a power of two rounds nothing, since the edges are not tiny.
        center, scale = _center_and_scale(edges / 4)
        return 4 * center, 4 * min(scale, WIDEST / 2)
    lower, center, upper = np.quantile(edges, [0.25, 0.5, 0.75])
    for scale in (upper - lower, (edges[-1] - edges[0]) / 2):
        if np.isfinite(scale) and scale >= SMALLEST:
            return center, scale
    return center, max(abs(center), 1.0)


def bounded_numbers(values, center, scale):
    """Scale numbers and bound outliers, as an array of float64; NaN and infinite ones stay.

    Parameters
    ----------
    values : ndarray of float64
        NaN where missing.
    center, scale : float or ndarray of float64
        What is subtracted from the values, and what they are divided by then.

    Returns
    -------
    ndarray of float64
    """
    with np.errstate(over="ignore"):
        scaled = (values - center) / scale
    # A finite value that is too large to be scaled is an outlier, not an infinite one. Bounds them
    # smoothly, as RealMLP does (Holzmueller et al., 2024).
    np.clip(scaled, -LARGEST, LARGEST, out=scaled)
    divisor = np.square(scaled / BOUND)
    divisor += 1
    scaled /= np.sqrt(divisor, out=divisor)
    infinite = np.isinf(values)
    scaled[infinite] = values[infinite]
    return scaled
