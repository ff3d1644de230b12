"""Scale and bound numbers, and compute their positions among the bin edges of their columns."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sk_easytensor.data.summaries import cached_slices, has_finite_range

__all__ = [
    "BinEdges",
    "BinnedMixin",
    "bounded_numbers",
    "centers_and_scales",
    "usable_edges",
]


LARGEST = 1e150
"""Scaled numbers are clipped to this size, so that their squares are finite."""

WIDEST = np.finfo(np.float64).max / 2
"""Edges are clipped to this size, so that their differences are finite."""

SMALLEST = np.finfo(np.float64).tiny
"""Smallest scale whose reciprocal, by which an exported graph may multiply, is finite."""

BOUND = 3.0
"""Upper bound of the absolute value of scaled numbers."""

CELLS = 512
"""Number of cells of equal width in the lookup table of scaled numbers."""

CACHED, FEWEST_CACHED = 16_384, 64
"""Approximate number of values, and least number of rows, that are encoded at a time. For larger
arrays, allocating memory takes longer than the computation."""


class BinnedMixin:
    """Mixin of a block with bin edges of its columns.

    Attributes
    ----------
    edges_ : list of ndarray of float64
        Increasing edges of each column; empty where every value is missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and spread (interquartile range) over the bins.
    """

    def _set_edges(self, edges):
        self.edges_ = edges
        self.center_, self.scale_ = centers_and_scales(edges)
        self._bin_edges = BinEdges(edges, self.center_, self.scale_)

    def _write_positions(self, columns, encoded):
        """Write the scaled numbers and bin positions of numeric columns into an encoding.

        Parameters
        ----------
        columns : list of ndarray of float64, shape (n,)
            NaN where missing.
        encoded : ndarray of float32, shape (n, n_columns, 2 or more)
            Its first two components are overwritten with scaled numbers and positions.
        """
        # All columns at once, because one call per column dominates the time of a single row.
        at_a_time = max(CACHED // max(len(columns), 1), FEWEST_CACHED)
        for rows in cached_slices(len(encoded), at_a_time) if columns else ():
            values = np.stack([column[rows] for column in columns])
            scaled, positions = self._bin_edges.locate(values)
            encoded[rows, :, 0], encoded[rows, :, 1] = scaled.T, positions.T

    @cached_property
    def _bin_edges(self):
        # Rebuilt after unpickling.
        return BinEdges(self.edges_, self.center_, self.scale_)

    def __getstate__(self):
        """Return the state to pickle, without the cached lookup table."""
        state = super().__getstate__()
        state.pop("_bin_edges", None)
        return state


class BinEdges:
    """Bin edges of several columns, and the positions of numbers among them.

    A lookup table of cells of equal width narrows the search to a few edges, and a binary search
    finds the bin among these: a third of the time of ``numpy.interp``.

    Parameters
    ----------
    edges : list of ndarray of float64
        Increasing edges of each column; empty where every value was missing.
    center, scale : ndarray of float64, shape (n_columns,)
        Center and scale of each column, from :func:`centers_and_scales`.

    Examples
    --------
    >>> edges = [np.array([0.0, 1.0, 5.0])]
    >>> scaled, positions = BinEdges(edges, *centers_and_scales(edges)).locate(
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
            np.maximum.accumulate(_cells(bounded_numbers(column, *params)))
            for column, *params in zip(begins, center, scale, strict=True)
        ]
        cell = np.arange(CELLS)
        # One cell more on either side, because scaled numbers are rounded.
        before = [np.searchsorted(column, cell - 1) for column in cells]
        until = [np.searchsorted(column, cell + 1, side="right") for column in cells]
        max_edges = max(
            (int((u - b).max()) for b, u in zip(before, until, strict=True)),
            default=0,
        )
        self.steps = [2**power for power in reversed(range(max_edges.bit_length()))]
        stride = max((len(column) for column in begins), default=0) + sum(self.steps)
        lower, width = (
            np.full((len(edges), stride), np.inf),
            np.ones((len(edges), stride)),
        )
        for index, column in enumerate(bounds):
            lower[index, : len(begins[index])] = begins[index]
            width[index, : len(column) - 1] = np.diff(column)
        self.lower, self.width = lower.ravel(), width.ravel()
        self.first = np.arange(len(edges))[:, None] * stride
        nearest = np.array(before, dtype=np.int64).reshape(len(edges), CELLS) - 1
        self.nearest = (np.maximum(nearest, 0) + self.first).ravel()
        self.first_cell = np.arange(len(edges))[:, None] * CELLS
        self.low = np.array([column[0] for column in bounds])[:, None]
        self.high = np.array([column[-1] for column in bounds])[:, None]

    def locate(self, values):
        """Return the inputs of :class:`~sk_easytensor.blocks.numeric.NumericModule`.

        Parameters
        ----------
        values : ndarray of float64, shape (n_columns, n)
            NaN where missing.

        Returns
        -------
        scaled : ndarray of float64, shape (n_columns, n)
            Scaled and bounded numbers, from :func:`bounded_numbers`.
        positions : ndarray of float64, shape (n_columns, n)
            Fractional index among the edges: 0 at the first edge or below it, the number of
            edges minus 1 at the last edge or above it; NaN where missing.
        """
        scaled = bounded_numbers(values, self.center, self.scale)
        inside = np.clip(values, self.low, self.high)
        bins = self.nearest.take(_cells(scaled) + self.first_cell)
        for step in self.steps:
            bins += step * (self.lower.take(bins + step) <= inside)
        inside -= self.lower.take(bins)
        inside /= self.width.take(bins)
        inside += bins - self.first
        return scaled, inside


def usable_edges(edges):
    """Return at least one edge, clipped so that differences of edges are finite and not zero."""
    if len(edges) == 0:
        return np.zeros(1)
    return edges if has_finite_range(edges) else np.unique(np.clip(edges, -WIDEST, WIDEST))


def _cells(scaled):
    """Return the cells of scaled numbers; the cell of NaN is arbitrary."""
    # fmin and fmax return the other operand in place of NaN.
    inside = np.fmax(np.fmin(scaled, BOUND), -BOUND)
    inside += BOUND
    inside *= (CELLS - 1) / (2 * BOUND)
    return inside.astype(np.int64)


def centers_and_scales(edges):
    """Return the median and the interquartile range of the bin edges of each column."""
    pairs = [_center_and_scale(column) for column in edges]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T


def _center_and_scale(edges):
    """Return the median and the interquartile range of bin edges; the scale is never zero."""
    if len(edges) == 0:
        return 0.0, 1.0
    if not has_finite_range(edges):
        # Dividing by a power of two rounds nothing, since the edges are not tiny.
        center, scale = _center_and_scale(edges / 4)
        return 4 * center, 4 * min(scale, WIDEST / 2)
    lower, center, upper = np.quantile(edges, [0.25, 0.5, 0.75])
    for scale in (upper - lower, (edges[-1] - edges[0]) / 2):
        if np.isfinite(scale) and scale >= SMALLEST:
            return center, scale
    return center, max(abs(center), 1.0)


def bounded_numbers(values, center, scale):
    """Scale numbers and bound outliers smoothly; NaN and infinite values are unchanged.

    Parameters
    ----------
    values : ndarray of float64
        NaN where missing.
    center, scale : float or ndarray of float64
        Number subtracted from the values, and divisor of the difference.

    Returns
    -------
    ndarray of float64
    """
    with np.errstate(over="ignore"):
        scaled = (values - center) / scale
    # A finite value that overflows when it is scaled is an outlier, not an infinite value. The
    # bound is smooth, as in RealMLP (Holzmueller et al., 2024).
    np.clip(scaled, -LARGEST, LARGEST, out=scaled)
    divisor = np.square(scaled / BOUND)
    divisor += 1
    scaled /= np.sqrt(divisor, out=divisor)
    infinite = np.isinf(values)
    scaled[infinite] = values[infinite]
    return scaled
