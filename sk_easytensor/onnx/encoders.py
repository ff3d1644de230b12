"""Encodings of the blocks as ONNX operators, in double precision as in the blocks."""

from __future__ import annotations

import math

import numpy as np

from sk_easytensor.data.bin_edges import usable_edges
from sk_easytensor.data.datetimes import FIRST, LAST
from sk_easytensor.onnx.graph import Lists
from sk_easytensor.onnx.readers import MISSING_SECONDS, MISSING_TIME

__all__ = [
    "bounded",
    "clock",
    "entries",
    "gaps",
    "numbers",
    "phases",
    "read_lists",
    "seconds",
    "signed_log",
    "waves",
    "within_years",
]


LARGEST = 1e100
"""Scaled numbers are clipped to this size, so that their squares are finite."""

DAY = 86_400
EPOCH = 719_468
"""Days from the first of March of the year 0 to 1970."""
ERA = 146_097
"""Days of 400 years."""


def bounded(graph, values, center, scale):
    """Scale numbers and bound outliers.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    values : str
        Double, of shape (..., n_columns); NaN where missing.
    center, scale : ndarray of float64, shape (n_columns,)
        Subtrahend and divisor of each column.

    Returns
    -------
    str
        Double; missing and infinite values are unchanged.
    """
    scaled = graph.op("Div", graph.op("Sub", values, np.float64(center)), np.float64(scale))
    scaled = graph.op("Clip", scaled, np.float64(-LARGEST), np.float64(LARGEST))
    third = graph.op("Div", scaled, np.float64(3))
    size = graph.op("Sqrt", graph.op("Add", graph.op("Mul", third, third), np.float64(1)))
    special = graph.op("Or", graph.op("IsNaN", values), graph.op("IsInf", values))
    return graph.op("Where", special, values, graph.op("Div", scaled, size))


def numbers(graph, values, edges, center, scale):
    """Encode numbers as :class:`~sk_easytensor.NumericBlock` does.

    Parameters
    ----------
    graph, values, center, scale
        Parameters of :func:`bounded`.
    edges : list of ndarray of float64
        Increasing bin edges of each column.

    Returns
    -------
    str
        Float, of shape (..., n_columns, 2): scaled numbers, and positions among the edges.
    """
    edges = [usable_edges(column) for column in map(np.float64, edges)]
    missing = graph.op("IsNaN", values)
    first = graph.constant(np.array([column[0] for column in edges]))
    last = graph.constant(np.array([column[-1] for column in edges]))
    inside = graph.op("Where", missing, first, values)
    inside = graph.op("Min", graph.op("Max", inside, first), last)
    left, look_up = graph.search(inside, edges)
    # The last edge belongs to the bin before it.
    left = graph.op("Min", left, np.array([max(len(column) - 2, 0) for column in edges]))
    below, above = look_up(left), look_up(graph.op("Add", left, np.int64(1)))
    part = graph.op("Div", graph.op("Sub", inside, below), graph.op("Sub", above, below))
    position = graph.op("Add", graph.cast(left, np.float64), part)
    position = graph.op("Where", missing, np.float64(np.nan), position)
    both = graph.stack([bounded(graph, values, center, scale), position], axis=-1)
    return graph.cast(both, np.float32)


def seconds(graph, times):
    """Return microseconds as seconds in double precision, NaN where missing.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    times : str
        Microseconds since 1970, int64; the least integer where missing.

    Returns
    -------
    str
        Double.
    """
    missing = graph.op("Equal", times, np.int64(MISSING_TIME))
    converted = graph.op("Div", graph.cast(times, np.float64), np.float64(1e6))
    return graph.op("Where", missing, np.float64(np.nan), converted)


def clock(graph, times, shifts):
    """Convert times in UTC to those of a clock in a time zone.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    times : str
        Microseconds since 1970, int64 of shape (rows,); the least integer where missing.
    shifts : tuple of ndarray of int64, or None
        Times at which the offset from UTC changes, in seconds, and the offset from each of them on,
        in seconds. The first time is before all others. None for times without a time zone.

    Returns
    -------
    str
        Microseconds, int64; 0 where missing.
    """
    times = graph.op("Where", graph.op("Equal", times, np.int64(MISSING_TIME)), np.int64(0), times)
    if shifts is None:
        return times
    changes, offsets = shifts
    if len(changes) == 1:
        return graph.op("Add", times, np.int64(offsets[0] * 1_000_000))
    column = graph.op("Unsqueeze", times, np.array([1]))
    column = graph.op("Max", column, np.int64(MISSING_SECONDS * 1_000_000))
    index, _ = graph.search(column, [changes * 1_000_000])
    shift = graph.op("Squeeze", graph.op("Gather", offsets * 1_000_000, index), np.array([1]))
    return graph.op("Add", times, shift)


def within_years(graph, wall):
    """Bound times of a clock, in microseconds, to the years 1 to 9999."""
    wall = graph.op("Max", wall, np.int64(FIRST * 1_000_000))
    return graph.op("Min", wall, np.int64(LAST * 1_000_000 + 999_999))


def phases(graph, wall):
    """Return the elapsed fractions of the day, the week, the month and the year.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    wall : str
        Times of a clock, in microseconds since 1970, int64; within the years 1 to 9999.

    Returns
    -------
    list of str
        Double, from 0 to below 1.

    Notes
    -----
    Years begin in March, so that the leap day is their last day. The calendar repeats after 400
    years.
    """

    def op(kind, *values):
        return graph.op(kind, *[np.int64(v) if isinstance(v, int) else v for v in values])

    def ratio(part, whole):
        whole = graph.cast(whole, np.float64) if isinstance(whole, str) else np.float64(whole)
        return op("Div", graph.cast(part, np.float64), whole)

    length = DAY * 1_000_000
    within = op("Mod", wall, length)
    days = op("Div", op("Sub", wall, within), length)
    shifted = op("Add", days, EPOCH)
    era = op("Div", shifted, ERA)
    day = op("Sub", shifted, op("Mul", era, ERA))
    leaps = op("Sub", op("Div", day, 1460), op("Div", day, 36_524))
    leaps = op("Add", leaps, op("Div", day, 146_096))
    year = op("Div", op("Sub", day, leaps), 365)
    before = op("Add", op("Mul", year, 365), op("Div", year, 4))
    day = op("Sub", day, op("Sub", before, op("Div", year, 100)))
    # Days since the first of March, and months from March on, of 31, 30, 31, 30, 31 days and so on.
    month = op("Div", op("Add", op("Mul", day, 5), 2), 153)
    begin = op("Div", op("Add", op("Mul", month, 153), 2), 5)
    next_year = op("GreaterOrEqual", month, 10)
    calendar = op("Add", year, graph.cast(next_year, np.int64))
    calendar = op("Add", calendar, op("Mul", era, 400))

    def divides(number):
        return op("Equal", op("Mod", calendar, number), 0)

    leap = op("And", divides(4), op("Not", divides(100)))
    leap = graph.cast(op("Or", leap, divides(400)), np.int64)
    sizes = np.array([31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 28])
    size = op("Gather", sizes, month)
    size = op("Add", size, op("Mul", leap, graph.cast(op("Equal", month, 11), np.int64)))
    passed = op("Where", next_year, op("Sub", day, 306), op("Add", op("Add", day, 59), leap))
    return [
        ratio(within, length),
        ratio(op("Mod", op("Add", days, 3), 7), 7),
        ratio(op("Sub", day, begin), size),
        ratio(passed, op("Add", leap, 365)),
    ]


def waves(graph, phase, harmonic):
    """Return sine and cosine of a harmonic of a phase."""
    angle = graph.op("Mul", phase, np.float64(2 * math.pi * harmonic))
    # onnxruntime 1.20 to 1.23 has no cosine of float64.
    return graph.op("Sin", angle), graph.op("Sin", graph.op("Add", angle, np.float64(math.pi / 2)))


def signed_log(graph, values):
    """Return ``sign(x) * log(1 + |x|)``."""
    size = graph.op("Log", graph.op("Add", graph.op("Abs", values), np.float64(1)))
    return graph.op("Mul", graph.op("Sign", values), size)


def gaps(graph, times, lengths, now=None):
    """Return the seconds since the previous event, and from each event to now.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    times : str
        Times of events in seconds, double of shape (rows, longest), NaN where missing.
    lengths : str
        Number of events of each row, int64 of shape (rows,).
    now : str, optional
        Reference time in seconds, double of shape (rows,); by default the time of the last event.

    Returns
    -------
    previous, to_now : str
        Double, of the shape of the times.
    """
    axis = np.array([1])
    later = graph.op("Slice", times, np.array([1]), np.array([2**62]), axis)
    earlier = graph.op("Slice", times, np.array([0]), np.array([-1]), axis)
    first = graph.op("Slice", times, np.array([0]), np.array([1]), axis)
    unknown = graph.op("Add", first, np.float64(np.nan))
    previous = graph.op("Concat", unknown, graph.op("Sub", later, earlier), axis=1)
    if now is None:
        last = graph.op("Max", graph.op("Sub", lengths, np.int64(1)), np.int64(0))
        last = graph.op("Unsqueeze", last, axis)
        now = graph.op("GatherElements", times, last, axis=1)
    else:
        now = graph.op("Unsqueeze", now, axis)
    return previous, graph.op("Sub", now, times)


def entries(graph, lists, names):
    """Return lists as the entries of an encoding that has one column.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    lists : Lists
        Lists with items of shape (rows, longest, ...).
    names : dict of {str: str}
        Field of each entry.

    Returns
    -------
    dict of {str: tuple of str}
        Items and lengths of each entry.
    """
    lengths = graph.stack([lists.lengths], axis=1)
    return {
        entry: (graph.stack([lists.values[field]], axis=1), lengths)
        for entry, field in names.items()
    }


def read_lists(graph, block, fields, category_codes=None):
    """Add inputs of list columns, with categories as codes, truncated as by the block.

    Parameters
    ----------
    graph : Graph
        Graph to add operators to.
    block : SequenceBlock
        Block that reads the lists.
    fields : dict of {str: dict}
        Fields, in the form of :meth:`Graph.lists`.
    category_codes : dict of {str: callable}, optional
        Functions that turn strings into codes, by field of categories.

    Returns
    -------
    Lists
    """
    limits = {"max_length": int(block.max_length), "keep": block.keep}
    lists = graph.lists(fields, owner=type(block).__name__, **limits)
    values = {
        name: category_codes[name](value) if name in (category_codes or {}) else value
        for name, value in lists.values.items()
    }
    return graph.cut(Lists(values, lists.lengths), **limits)
