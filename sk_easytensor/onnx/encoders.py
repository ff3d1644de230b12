"""The arithmetic of the blocks' encodings as ONNX operators, in double precision as they do it."""

from __future__ import annotations

import math

import numpy as np

from sk_easytensor.data.bin_edges import usable_edges
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
]


LARGEST = 1e100
"""Scaled numbers beyond this are bounded alike, and their squares are finite."""

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
        Where the operators go.
    values : str
        Double, of shape (..., n_columns); NaN where missing.
    center, scale : ndarray of float64, shape (n_columns,)
        What is subtracted, and what is divided by.

    Returns
    -------
    str
        Double; missing and infinite values as they are.
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
        As for :func:`bounded`.
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
        Where the operators go.
    times : str
        Microseconds since 1970, int64; the least integer where missing.

    Returns
    -------
    str
    """
    missing = graph.op("Equal", times, np.int64(MISSING_TIME))
    converted = graph.op("Div", graph.cast(times, np.float64), np.float64(1e6))
    return graph.op("Where", missing, np.float64(np.nan), converted)


def clock(graph, times, shifts):
    """Return what a clock shows at some times.

    Parameters
    ----------
    graph : Graph
        Where the operators go.
    times : str
        Microseconds since 1970, int64 of shape (rows,).
    shifts : tuple of ndarray of int64, or None
        Seconds at which the clock is turned, the first of them before all others, and how far
        it is ahead from each of them on; None for times that are shown as they are.

    Returns
    -------
    str
        Microseconds; 0 where missing.
    """
    times = graph.op("Where", graph.op("Equal", times, np.int64(MISSING_TIME)), np.int64(0), times)
    if shifts is None:
        return times
    turned, ahead = shifts
    if len(turned) == 1:
        return graph.op("Add", times, np.int64(ahead[0] * 1_000_000))
    column = graph.op("Unsqueeze", times, np.array([1]))
    column = graph.op("Max", column, np.int64(MISSING_SECONDS * 1_000_000))
    place, _ = graph.search(column, [turned * 1_000_000])
    shift = graph.op("Squeeze", graph.op("Gather", ahead * 1_000_000, place), np.array([1]))
    return graph.op("Add", times, shift)


def phases(graph, wall):
    """Return how far the day, the week, the month and the year have run.

    Parameters
    ----------
    graph : Graph
        Where the operators go.
    wall : str
        What a clock shows, microseconds since 1970, int64; within the years 1 to 9999.

    Returns
    -------
    list of str
        Double, from 0 to below 1.

    Notes
    -----
    Years are reckoned from March on, so that the day that is put in comes last. Within 400 years
    the calendar repeats.
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
    # Days from March on, and the months they make: 31, 30, 31, 30, 31 and so on.
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
    """Return sine and cosine of a phase."""
    angle = graph.op("Mul", phase, np.float64(2 * math.pi * harmonic))
    return graph.op("Sin", angle), graph.op("Cos", angle)


def signed_log(graph, values):
    """Return logarithms of seconds, which are 0 for 0 and negative for negative ones."""
    size = graph.op("Log", graph.op("Add", graph.op("Abs", values), np.float64(1)))
    return graph.op("Mul", graph.op("Sign", values), size)


def gaps(graph, times, lengths, now=None):
    """Return the seconds since the previous event, and up to now.

    Parameters
    ----------
    graph : Graph
        Where the operators go.
    times : str
        Seconds, double of shape (rows, longest), NaN where missing.
    lengths : str
        Events of each row.
    now : str, optional
        Seconds, double of shape (rows,); by default the time of the last event.

    Returns
    -------
    previous, to_now : str
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
        Where the operators go.
    lists : Lists
        Items of shape (rows, longest, ...).
    names : dict of {str: str}
        For each entry the field that it is.

    Returns
    -------
    dict of {str: tuple of str}
    """
    lengths = graph.stack([lists.lengths], axis=1)
    return {
        entry: (graph.stack([lists.values[field]], axis=1), lengths)
        for entry, field in names.items()
    }


def read_lists(graph, block, fields, category_codes=None):
    """Read list columns: categories as codes, the others as they are, cut as the block cuts them.

    Parameters
    ----------
    graph : Graph
        Where the operators go.
    block : SequenceBlock
        Whose lists they are.
    fields : dict of {str: dict}
        As for :meth:`Graph.lists`.
    category_codes : dict of {str: callable}, optional
        For each field of categories, what turns strings into codes.

    Returns
    -------
    Lists
    """
    cut = {"max_length": int(block.max_length), "keep": block.keep}
    lists = graph.lists(fields, owner=type(block).__name__, **cut)
    values = {
        name: category_codes[name](value) if name in (category_codes or {}) else value
        for name, value in lists.values.items()
    }
    return graph.cut(Lists(values, lists.lengths), **cut)
