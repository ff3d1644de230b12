"""Parts of event sequences: random slices, sessions, windows, and tables of these parts."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import check_number
from sk_easytensor.blocks.events import is_time, seconds
from sk_easytensor.data.columns import RowError, decoded, read_lists, type_name
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.events import contiguous, materialize
from sk_easytensor.executor import LocalExecutor

__all__ = [
    "Sequences",
    "Sessions",
    "Slices",
    "consecutive_slices",
    "cut_sessions",
    "gap_seconds",
    "random_slices",
    "sample_windows",
    "summarize_windows",
]


@dataclass
class Slices:
    """Contiguous parts of sequences, each with the events from a start up to a stop.

    Attributes
    ----------
    starts : ndarray of int64, shape (n_slices,)
        Position of the first event of each part among the events of all sequences, which follow
        each other.
    stops : ndarray of int64, shape (n_slices,)
        Position after the last event of each part.
    """

    starts: np.ndarray
    stops: np.ndarray

    def __len__(self):
        return len(self.starts)


class Sequences:
    """The events of all rows of a table, row after row.

    Parameters
    ----------
    table : pyarrow.Table
        Table of list columns. All lists of a row have the same length; a missing list beside others
        is read as a list of missing items.
    owner : str
        Class name of the estimator, for errors.

    Attributes
    ----------
    items : pyarrow.Table
        Table with a row for each event.
    offsets : ndarray of int64, shape (n_rows + 1,)
        Row ``i`` has the events from ``offsets[i]`` up to ``offsets[i + 1]``.

    Raises
    ------
    RowError
        If two lists of a row differ in length. The message names the first such row and both
        columns.

    Examples
    --------
    >>> sequences = Sequences(pa.table({"page": [["a", "b", "c"], ["d"]]}), "an example")
    >>> last_two = Slices(np.array([1]), np.array([3]))
    >>> sequences.cut(last_two).to_pydict()
    {'page': [['b', 'c']]}
    """

    def __init__(self, table, owner):
        lists = read_lists(table, block=owner)
        items = {name: contiguous(lists.items[name]) for name in table.column_names}
        self.items = pa.table(items)
        self.offsets = lists.offsets

    @classmethod
    def joined(cls, sequences):
        """Concatenate the rows of several objects with the same columns.

        Parameters
        ----------
        sequences : list of Sequences
            At least one object.

        Returns
        -------
        Sequences
        """
        joined = object.__new__(cls)
        items = pa.concat_tables([part.items for part in sequences])
        joined.items = pa.table({name: contiguous(items[name]) for name in items.column_names})
        lengths = np.concatenate([part.lengths for part in sequences])
        joined.offsets = np.append(0, np.cumsum(lengths))
        return joined

    def take(self, rows):
        """Return the sequences of some rows.

        Parameters
        ----------
        rows : ndarray of int64
            Indices of the rows.

        Returns
        -------
        Sequences
        """
        slices = Slices(self.offsets[rows], self.offsets[rows + 1])
        return Sequences(self.cut(slices), type(self).__name__)

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self):
        """Number of events of each row, int64 of shape (n_rows,)."""
        return np.diff(self.offsets)

    @property
    def whole(self):
        """Whole sequences, as :class:`Slices`."""
        return Slices(self.offsets[:-1], self.offsets[1:])

    def row_of(self, position):
        """Return the index of the row that has the event at a position."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def cut(self, slices):
        """Return a table of list columns with a row for each slice.

        Parameters
        ----------
        slices : Slices
            Events of each row of the table.

        Returns
        -------
        pyarrow.Table
        """
        return materialize(self.items, np.arange(len(self.items)), slices.starts, slices.stops)

    def read(self, slices, function):
        """Call a function with the table of :meth:`cut`, and translate rows in its errors.

        Parameters
        ----------
        slices : Slices
            Events of each row of the table.
        function : callable
            Function that takes the table.

        Returns
        -------
        object
            Result of the function.

        Raises
        ------
        RowError
            If the function raises one. The row is then that of the sequence.
        """
        try:
            return function(self.cut(slices))
        except RowError as error:
            row = self.row_of(slices.starts[error.row])
            raise type(error)(error.message, row) from None


def random_slices(sequences, rows, shortest, longest, random):
    """Draw a random slice of each of some rows: first its length, then its start, both uniformly.

    Parameters
    ----------
    sequences : Sequences
        Sequences of all rows.
    rows : ndarray of int64, shape (n,)
        Indices of rows with at least one event.
    shortest, longest : int, float or None
        Bounds of the length: a number of events, or a fraction of the row's events. Slices of rows
        with fewer events have all of them. None, for `longest`, is all events.
    random : numpy.random.Generator
        Random number generator.

    Returns
    -------
    Slices
    """
    lengths = sequences.lengths[rows]
    low = np.maximum(events_of(shortest, lengths, np.ceil), 1)
    high = np.maximum(events_of(longest, lengths, np.floor), low)
    size = random.integers(low, high + 1)
    starts = sequences.offsets[rows] + random.integers(0, lengths - size + 1)
    return Slices(starts, starts + size)


def events_of(bound, lengths, rounded):
    """Return a bound of the length, an int or a fraction, as a number of events of each row."""
    if bound is None:
        return lengths
    if isinstance(bound, Integral):
        return np.minimum(lengths, bound)
    return rounded(lengths * bound).astype(np.int64)


def consecutive_slices(sequences, length):
    """Cut all sequences into slices of a length; the last one of each row has the rest.

    Parameters
    ----------
    sequences : Sequences
        Sequences to cut.
    length : int
        Maximum number of events of a slice.

    Returns
    -------
    Slices
        At least one for each row, which is empty if the row is.
    """
    counts = np.maximum(-(-sequences.lengths // length), 1)
    first = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(first, counts)
    starts = np.repeat(sequences.offsets[:-1], counts) + index * length
    return Slices(starts, np.minimum(starts + length, np.repeat(sequences.offsets[1:], counts)))


@dataclass
class Sessions:
    """Sequences cut into consecutive sessions.

    Attributes
    ----------
    starts, stops : ndarray of int64, shape (n_sessions,)
        Positions of each session among all events; the stop is excluded.
    offsets : ndarray of int64, shape (n_rows + 1,)
        Row ``i`` has the sessions from ``offsets[i]`` up to ``offsets[i + 1]``.
    """

    starts: np.ndarray
    stops: np.ndarray
    offsets: np.ndarray

    @property
    def counts(self):
        """Number of sessions of each row, int64 of shape (n_rows,)."""
        return np.diff(self.offsets)

    def part(self, sessions):
        """Return the sessions at some indices, as :class:`Slices`."""
        return Slices(self.starts[sessions], self.stops[sessions])


def cut_sessions(sequences, *, time=None, gap=None, label=None):
    """Cut sequences into sessions, at gaps in time or where a label changes.

    Parameters
    ----------
    sequences : Sequences
        Sequences to cut.
    time : str, optional
        Column of times: dates, timestamps, or numbers of seconds.
    gap : float, optional
        Seconds. A session ends if the next event is later by more than this.
    label : str, optional
        Column that identifies the session of each event, an alternative to `time` and `gap`.

    Returns
    -------
    Sessions

    Raises
    ------
    RowError
        If a value is missing, or if the times of a row are not in order. The message names the
        column and the row.
    TypeError
        If `time` is no column of times.
    """
    column = sequences.items.column(label or time)
    check_no_missing_items(sequences, column, label or time)
    if label is not None:
        codes = decoded(column).dictionary_encode().combine_chunks().indices.to_numpy()
        is_break = codes[1:] != codes[:-1]
    else:
        elapsed = np.diff(read_seconds(column, time))
        is_break = elapsed > gap
    is_start = np.ones(len(column), dtype=bool)
    is_start[1:] = is_break
    first_events = sequences.offsets[:-1][sequences.lengths > 0]
    is_start[first_events] = True
    if label is None:
        is_earlier = np.append(False, elapsed < 0)
        is_earlier[first_events] = False
        check_order(sequences, column, time, is_earlier)
    starts = np.flatnonzero(is_start)
    stops = np.append(starts[1:], len(column))
    return Sessions(starts, stops, np.searchsorted(starts, sequences.offsets))


def read_seconds(column, name):
    """Return the times of a column as seconds; raise ``TypeError`` if it has no times."""
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not (is_time(column.type) or numbers):
        raise TypeError(
            f"column {name!r} holds lists of {type_name(column.type)}, from which sessions cannot "
            "be cut; it must hold timestamps, dates or numbers of seconds"
        )
    if numbers:
        return column.to_numpy().astype(np.float64)
    return seconds(column, name, getattr(column.type, "tz", None))


def check_no_missing_items(sequences, column, name):
    """Raise :class:`RowError` if an event has no time or session label."""
    missing = np.flatnonzero(pc.is_null(column, nan_is_null=True).to_numpy())
    if len(missing):
        raise RowError(
            f"column {name!r} has a missing value in row {{row}} ({len(missing)} of {len(column)} "
            "events), so that sessions cannot be cut; leave such events out",
            sequences.row_of(missing[0]),
        )


def check_order(sequences, column, name, is_earlier):
    """Raise :class:`RowError` if an event is earlier than the one before it."""
    if is_earlier.any():
        event = int(np.argmax(is_earlier))
        raise RowError(
            f"column {name!r} is not in order of time in row {{row}}: {column[event]} comes after "
            f"{column[event - 1]}; sort the events of each row by time",
            sequences.row_of(event),
        )


def gap_seconds(owner, gap):
    """Return a gap between sessions in seconds.

    Parameters
    ----------
    owner : str
        Class name of the estimator, for errors.
    gap : float, str or timedelta
        Number of seconds, or a duration such as ``"6h"``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If `gap` is neither, or not greater than 0.
    """
    duration = isinstance(gap, (str, dt.timedelta, np.timedelta64))
    try:
        number = pd.Timedelta(gap).total_seconds() if duration else gap
        check_number(owner, "session_gap", number, low=0, exclusive=True)
    except ValueError:
        raise ValueError(
            f"{owner}: session_gap must be a number of seconds greater than 0 or a duration, such "
            f"as datetime.timedelta(hours=6) or '6h', got {gap!r}"
        ) from None
    return float(number)


SAMPLED_USERS = 1000
"""Number of users whose windows are read to learn the types of columns."""


def sample_windows(table, length, owner):
    """Return the windows of the sequences of some users.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of some users, with columns of lists.
    length : int or None
        Maximum number of events of a window; None for whole sequences.
    owner : str
        Class name of the estimator, for errors.

    Returns
    -------
    pyarrow.Table
        Table of the same columns, with a row for each window.
    """
    return read_windows(table.slice(0, SAMPLED_USERS), length, owner, lambda windows: windows)


def summarize_windows(dataset, length, owner, executor, blocks):
    """Summarise the windows of all sequences for blocks.

    Blocks read only one end of long lists, whereas parts for training are cut at any position. From
    windows that are short enough, blocks read all events.

    Parameters
    ----------
    dataset : BaseTableDataset
        A row for each user, with columns of lists.
    length : int or None
        Maximum number of events of a window; None for whole sequences.
    owner : str
        Class name of the estimator, for errors.
    executor : LocalExecutor
        Executor, with the number of threads and of the rows that a block gets at a time.
    blocks : dict of {str: tuple of (Block, list of str)}
        Blocks and the columns of each.

    Returns
    -------
    SummaryMap of {str: Summary}
        Summaries by name of the block.
    """
    inner = LocalExecutor(executor.n_jobs, executor.chunk_rows)
    summarize = partial(_summarize_chunk, length, owner, inner, blocks)
    return dataset.map_reduce(summarize, executor)


def _summarize_chunk(length, owner, executor, blocks, table):
    return SummaryMap(
        read_windows(table, length, owner, partial(executor.summarize, blocks=blocks))
    )


def read_windows(table, length, owner, function):
    """Call a function with a table of the windows of sequences; its errors name rows of `table`."""
    sequences = Sequences(table, owner)
    whole = sequences.whole
    windows = whole if length is None else consecutive_slices(sequences, length)
    return sequences.read(windows, function)
