"""Parts of event sequences: random slices, sessions, and the tables that are cut from them."""

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
from sk_easytensor.data.columns import RowError, type_name
from sk_easytensor.data.lists import read_lists
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.events import contiguous, decoded, materialize
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
    """Contiguous parts of sequences: the events from a start up to a stop, which is not included.

    Attributes
    ----------
    starts, stops : ndarray of int64, shape (n_slices,)
        Positions among the events of all sequences, one sequence after the other.
    """

    starts: np.ndarray
    stops: np.ndarray

    def __len__(self):
        return len(self.starts)


class Sequences:
    """The events of all rows of a table, one row's after the other.

    Parameters
    ----------
    table : pyarrow.Table
        Of list columns. All lists of a row have one length; a list that is missing beside others
        is one of missing items.
    owner : str
        Who asks, for errors.

    Attributes
    ----------
    items : pyarrow.Table
        A row for each event.
    offsets : ndarray of int64, shape (n_rows + 1,)
        Row ``i`` has the events ``offsets[i]`` up to ``offsets[i + 1]``.

    Raises
    ------
    RowError
        Naming the first row in which two lists differ in length, and both columns.

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
    def joined(cls, several):
        """Join the rows of several sequences of the same columns.

        Parameters
        ----------
        several : list of Sequences
            At least one.

        Returns
        -------
        Sequences
        """
        joined = object.__new__(cls)
        items = pa.concat_tables([sequences.items for sequences in several])
        joined.items = pa.table({name: contiguous(items[name]) for name in items.column_names})
        lengths = np.concatenate([sequences.lengths for sequences in several])
        joined.offsets = np.append(0, np.cumsum(lengths))
        return joined

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self):
        """Events of each row, int64 of shape (n_rows,)."""
        return np.diff(self.offsets)

    @property
    def whole(self):
        """The sequences as they are, as :class:`Slices`."""
        return Slices(self.offsets[:-1], self.offsets[1:])

    def row_of(self, position):
        """Return the row that has the event at a position."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def cut(self, slices):
        """Return a table of list columns with a row for each slice.

        Parameters
        ----------
        slices : Slices
            What each row holds.

        Returns
        -------
        pyarrow.Table
        """
        return materialize(self.items, np.arange(len(self.items)), slices.starts, slices.stops)

    def read(self, slices, function):
        """Call a function with what :meth:`cut` returns; errors name the row that was cut from.

        Parameters
        ----------
        slices : Slices
            What each row of the table holds.
        function : callable
            Takes the table.

        Returns
        -------
        object
            What the function returned.
        """
        try:
            return function(self.cut(slices))
        except RowError as error:
            row = self.row_of(slices.starts[error.row])
            raise type(error)(error.message, row) from None


def random_slices(sequences, rows, shortest, longest, random):
    """Draw a slice of each of some rows: first its length, then where it begins, both evenly.

    Parameters
    ----------
    sequences : Sequences
        Of which the rows are.
    rows : ndarray of int64, shape (n,)
        Rows with at least one event.
    shortest, longest : int, float or None
        Bounds of the length: so many events, or a fraction of the row's. Rows of fewer events
        give what they have. None, for `longest`, is all events.
    random : numpy.random.Generator
        What is drawn from.

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
    """Return a bound, a number of events or a fraction of them, as events of each row."""
    if bound is None:
        return lengths
    if isinstance(bound, Integral):
        return np.minimum(lengths, bound)
    return rounded(lengths * bound).astype(np.int64)


def consecutive_slices(sequences, length):
    """Cut all sequences into slices of a length, the last of each row being what is left.

    Parameters
    ----------
    sequences : Sequences
        What to cut.
    length : int
        Events of a slice, at most.

    Returns
    -------
    Slices
        At least one a row, which is empty if the row is.
    """
    counts = np.maximum(-(-sequences.lengths // length), 1)
    first = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) - np.repeat(first, counts)
    starts = np.repeat(sequences.offsets[:-1], counts) + place * length
    return Slices(starts, np.minimum(starts + length, np.repeat(sequences.offsets[1:], counts)))


@dataclass
class Sessions:
    """Sequences cut into sessions, which follow each other.

    Attributes
    ----------
    starts, stops : ndarray of int64, shape (n_sessions,)
        Positions among all events.
    offsets : ndarray of int64, shape (n_rows + 1,)
        Row ``i`` has the sessions ``offsets[i]`` up to ``offsets[i + 1]``; none if it is empty.
    """

    starts: np.ndarray
    stops: np.ndarray
    offsets: np.ndarray

    @property
    def counts(self):
        """Sessions of each row, int64 of shape (n_rows,)."""
        return np.diff(self.offsets)

    def part(self, sessions):
        """Return some of the sessions, given by their numbers, as :class:`Slices`."""
        return Slices(self.starts[sessions], self.stops[sessions])


def cut_sessions(sequences, *, time=None, gap=None, label=None):
    """Cut sequences into sessions, where time passes or where a label changes.

    Parameters
    ----------
    sequences : Sequences
        What to cut.
    time : str, optional
        The column of times: dates, timestamps, or numbers of seconds.
    gap : float, optional
        A session ends where the next event is more than so many seconds later.
    label : str, optional
        Instead of times: the column that names the session of each event.

    Returns
    -------
    Sessions

    Raises
    ------
    ValueError
        Naming a column and a row with a missing value, or whose times are not in order.
    TypeError
        If the times are none.
    """
    column = sequences.items.column(label or time)
    refuse_missing_items(sequences, column, label or time)
    if label is not None:
        codes = decoded(column).dictionary_encode().combine_chunks().indices.to_numpy()
        parted = codes[1:] != codes[:-1]
    else:
        passed = np.diff(read_seconds(sequences, column, time))
        parted = passed > gap
    is_start = np.ones(len(column), dtype=bool)
    is_start[1:] = parted
    begins = sequences.offsets[:-1][sequences.lengths > 0]
    is_start[begins] = True
    if label is None:
        backwards = np.append(False, passed < 0)
        backwards[begins] = False
        refuse_disorder(sequences, column, time, backwards)
    starts = np.flatnonzero(is_start)
    stops = np.append(starts[1:], len(column))
    return Sessions(starts, stops, np.searchsorted(starts, sequences.offsets))


def read_seconds(sequences, column, name):
    """Return times as seconds."""
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not (is_time(column.type) or numbers):
        raise TypeError(
            f"column {name!r} holds lists of {type_name(column.type)} and cannot tell when "
            "sessions end; it must hold timestamps, dates or numbers of seconds"
        )
    if numbers:
        return column.to_numpy().astype(np.float64)
    return seconds(column, name, getattr(column.type, "tz", None))


def refuse_missing_items(sequences, column, name):
    """Raise ``ValueError`` if an event lacks what sessions are cut by."""
    missing = np.flatnonzero(pc.is_null(column, nan_is_null=True).to_numpy())
    if len(missing):
        raise RowError(
            f"column {name!r} has a missing value in row {{row}} ({len(missing)} of {len(column)} "
            "events), so that sessions cannot be cut; leave such events out",
            sequences.row_of(missing[0]),
        )


def refuse_disorder(sequences, column, name, backwards):
    """Raise ``ValueError`` if an event is earlier than the one before it."""
    if backwards.any():
        event = int(np.argmax(backwards))
        raise RowError(
            f"column {name!r} is not in order of time in row {{row}}: {column[event]} comes after "
            f"{column[event - 1]}; sort the events of each row by time",
            sequences.row_of(event),
        )


def gap_seconds(owner, gap):
    """Return a gap between sessions, a number of seconds or a duration, in seconds.

    Raises
    ------
    ValueError
        Unless it is one, and greater than 0.
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
"""Users whose windows say which types there are."""


def sample_windows(table, length, owner):
    """Return the windows of the sequences of some users.

    Parameters
    ----------
    table : pyarrow.Table
        Some users, with columns of lists, those that decide about the length of a row included.
    length : int or None
        Events of a window; None for sequences as they are.
    owner : str
        Name of the estimator, for errors.

    Returns
    -------
    pyarrow.Table
        Of the same columns.
    """
    return read_windows(table.slice(0, SAMPLED_USERS), length, owner, lambda windows: windows)


def summarize_windows(dataset, length, owner, executor, blocks):
    """Summarise the windows of all sequences for blocks.

    Blocks read one end of long lists, whereas parts are cut from anywhere: in windows as short as
    that, they see all events.

    Parameters
    ----------
    dataset : BaseTableDataset
        A row for each user, with columns of lists.
    length, owner
        As of :func:`sample_windows`.
    executor : LocalExecutor
        Says how many threads there are, and how many rows a block gets at a time.
    blocks : dict of {str: tuple of (Block, list of str)}
        Blocks and the columns each reads.

    Returns
    -------
    SummaryMap of {str: Summary}
        By name of block.
    """
    inner = LocalExecutor(executor.n_jobs, executor.chunk_rows)
    summarize = partial(_summarize_chunk, length, owner, inner, blocks)
    return dataset.map_reduce(summarize, executor)


def _summarize_chunk(length, owner, executor, blocks, table):
    return SummaryMap(
        read_windows(table, length, owner, partial(executor.summarize, blocks=blocks))
    )


def read_windows(table, length, owner, function):
    """Call a function with a table of the windows of sequences; errors name rows of `table`."""
    sequences = Sequences(table, owner)
    whole = sequences.whole
    windows = whole if length is None else consecutive_slices(sequences, length)
    return sequences.read(windows, function)
