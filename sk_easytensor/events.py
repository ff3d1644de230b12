"""Event logs: times of events, and one row of lists for each user."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from numbers import Integral

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.utils import check_scalar

from sk_easytensor.data.columns import CAST_ERRORS, RowError, type_name
from sk_easytensor.data.tables import as_table, is_lazy
from sk_easytensor.data.types import common_type

__all__ = [
    "collect_sequences",
    "comparable",
    "contiguous",
    "decoded",
    "is_scalar",
    "materialize",
    "read_time",
    "read_times",
    "refuse_missing",
]


def refuse_missing(column, name, owner, what):
    """Raise if a column has missing values, naming the first row that does."""
    missing = pc.is_null(column, nan_is_null=True)
    rows = np.flatnonzero(missing.to_numpy())
    if len(rows):
        raise RowError(
            f"column {name!r} of {owner} has no {what} in row {{row}} ({len(rows)} of "
            f"{len(column)} rows); leave such rows out",
            int(rows[0]),
        )


def decoded(column):
    """Return categories as the values they stand for: no two dictionaries need agree."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def read_times(table, name, owner):
    """Return a column of times, none missing, in one of few types."""
    column = decoded(table[name])
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kind = column.type
    calendar = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    # A column without values has the type null, whatever it would have held.
    if not (calendar or _is_number(kind) or pa.types.is_null(kind)):
        raise TypeError(
            f"column {name!r} of {owner} is of type {type_name(kind)} and cannot order "
            "events; it must hold timestamps, dates or numbers"
        )
    refuse_missing(column, name, owner, "time")
    if pa.types.is_date(kind):
        return column.cast(pa.date32())
    if pa.types.is_integer(kind):
        return _cast(column, pa.int64(), name)
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    return column


def is_scalar(at):
    """Tell a single time from a table."""
    if isinstance(at, np.ndarray):
        return at.ndim == 0
    return isinstance(at, (str, bytes, int, float, dt.date, np.generic, pa.Scalar))


def read_time(at, kind, name, rows):
    """Return one time as a column of so many rows, in a type that is compared with `kind`."""
    if isinstance(at, pa.Scalar):
        at = at.as_py()
    if isinstance(at, np.ndarray):
        at = at[()]
    if pd.isna(at):
        raise ValueError(f"at is {at}; it must be a time, a table, or None for all events")
    number = isinstance(at, (int, float, np.integer, np.floating)) and not isinstance(at, bool)
    if number and (_is_number(kind) or pa.types.is_null(kind)):
        whole = isinstance(at, (int, np.integer))
        times = np.full(rows, at, dtype=np.int64 if whole else np.float64)
        return pa.chunked_array([pa.array(times)])
    if isinstance(at, (str, dt.date, np.datetime64)) and not _is_number(kind):
        try:
            time = pd.to_datetime(at, format="ISO8601") if isinstance(at, str) else pd.Timestamp(at)
        except ValueError as error:
            raise ValueError(
                f"at={at!r} is no time in ISO 8601, such as '2025-03-09' or "
                "'2025-03-09T12:30:00+01:00'"
            ) from error
        times = pa.array(np.full(rows, time.asm8))
        zone = None if time.tz is None else "UTC"
        return pa.chunked_array([times.cast(pa.timestamp(times.type.unit, zone))])
    raise TypeError(
        f"at={at!r} cannot be compared with column {name!r} of events, which is of type "
        f"{type_name(kind)}"
    )


def comparable(times, asked, name):
    """Return the times of the log and those asked as integers or floats of one meaning."""
    if asked is None:
        return _as_numpy(times), None
    if pa.types.is_null(times.type):
        times = times.cast(asked.type)
    if pa.types.is_null(asked.type):
        asked = asked.cast(times.type)
    if _family(times.type) != _family(asked.type):
        raise TypeError(
            f"column {name!r} of events holds {_family(times.type)} ({type_name(times.type)}) "
            f"and at holds {_family(asked.type)} ({type_name(asked.type)}); convert one to "
            "the other"
        )
    if pa.types.is_date(times.type) and pa.types.is_timestamp(asked.type):
        # An event known by its day alone may be later than any hour of that day.
        asked = pc.floor_temporal(asked, unit="day").cast(pa.date32(), safe=False)
    elif pa.types.is_date(asked.type) and pa.types.is_timestamp(times.type):
        asked = asked.cast(pa.timestamp("s"))
    # A safe cast fails rather than round. One of the two ways is nearly always exact.
    try:
        asked = asked.cast(times.type)
    except CAST_ERRORS:
        times = _cast(times, asked.type, name)
    return _as_numpy(times), _as_numpy(asked)


def _family(kind):
    if _is_number(kind):
        return "numbers"
    aware = pa.types.is_timestamp(kind) and kind.tz is not None
    return "times with a time zone" if aware else "times without a time zone"


def _is_number(kind):
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _cast(column, kind, name):
    try:
        return column.cast(kind)
    except CAST_ERRORS as error:
        raise ValueError(
            f"column {name!r} of events and at cannot be compared exactly: {error}"
        ) from error


def _as_numpy(times):
    if pa.types.is_date(times.type):
        times = times.cast(pa.int32())
    if not pa.types.is_floating(times.type):
        times = times.cast(pa.int64())
    return times.to_numpy()


def collect_sequences(
    events, *, by, order_by, at=None, columns=None, max_length=None, prefix="past_"
):
    """Collect the events of each entity into lists, up to a time and never beyond it.

    Parameters
    ----------
    events : data frame, pyarrow.Table, mapping of columns or list of mappings
        The log, one row for each event, in any order.
    by : str or list of str
        The columns that name the entity, such as a customer.
    order_by : str
        The column of times: timestamps, dates or numbers.
    at : None, scalar or table, default=None
        What to collect the events for.

        - None: one row for each entity, with all its events.
        - One time (a datetime, a date, a string in ISO 8601 or a number): one row for each
          entity, with its events strictly before that time; entities whose events all come
          later are kept, with empty lists.
        - A table with the columns `by` and `order_by`: one row for each of its rows, in its
          order, with the entity's events strictly before the row's time. Entities that the log
          does not know, or that are missing, get empty lists.
    columns : str or list of str, default=None
        The columns of `events` to collect; None for all but those of `by`. Columns that are
        not named may hold anything.
    max_length : int, default=None
        Keep so many of the most recent events; None keeps all.
    prefix : str
        Put before the name of a collected column; by default ``past_``.

    Returns
    -------
    DataFrame or pyarrow.Table
        Of the kind of `at` if that is a table, else of the kind of `events`: pandas, polars, or
        a :class:`pyarrow.Table` for all others. First come the columns of `at` as they are (and
        its index) or, without a table, those of `by` with entities in the order in which they
        first appear in the log. A column of lists follows for each collected column, oldest
        event first, events of the same time in the order of the log. All lists of a row are of
        one length. In pandas they are of :class:`pandas.ArrowDtype`.

    Raises
    ------
    ValueError
        If a column does not exist, a time or an entity of the log is missing, a time of `at` is
        missing, or a collected column would take the name of another.
    TypeError
        If the times are none, or those of the log cannot be compared with those of `at`: numbers
        with dates, or times with a time zone with times without.

    Notes
    -----
    Nothing that happened at or after a row's time enters its lists, so that a model learns from
    what it will have when it predicts. Two things are up to you:

    - An event counts as known from `order_by` on. Where values of a row become known later than
      that (the arrival of a flight, ordered by its departure), order by the time at which they
      were known.
    - An event with a date instead of a time may have happened at any time of that day. It is
      known from the next day on, whatever the hour of the time in `at`. Midnights in a column of
      timestamps are taken literally.

    Without `max_length`, a table `at` with a row for each event takes memory that grows with the
    square of the number of events of an entity.

    Examples
    --------
    What each customer had bought before:

    >>> import pandas as pd
    >>> from sk_easytensor.events import collect_sequences
    >>> orders = pd.DataFrame(
    ...     {
    ...         "customer": ["ann", "bob", "ann", "ann"],
    ...         "day": pd.to_datetime(["2025-03-01", "2025-03-02", "2025-03-05", "2025-03-09"]),
    ...         "amount": [10, 25, 30, 5],
    ...     }
    ... )
    >>> table = collect_sequences(
    ...     orders, by="customer", order_by="day", at=orders, columns="amount"
    ... )
    >>> [list(amounts) for amounts in table["past_amount"]]
    [[], [], [10], [10, 30]]

    What is known of each on one day:

    >>> known = collect_sequences(orders, by="customer", order_by="day", at="2025-03-09")
    >>> known.columns.tolist()
    ['customer', 'past_day', 'past_amount']
    >>> dict(zip(known["customer"], known["past_amount"].map(list)))
    {'ann': [10, 30], 'bob': [25]}
    """
    if max_length is not None:
        check_scalar(max_length, "max_length", Integral, min_val=1)
    by = _names(by, "by")
    (order_by,) = _names(order_by, "order_by")
    if columns is not None:
        columns = _names(columns, "columns")
    events, log = _read(events, None if columns is None else [*by, order_by, *columns])
    _require(log, by, "events")
    _require(log, [order_by], "events")
    if columns is None:
        columns = _names([name for name in log.column_names if name not in by], "columns")
    _require(log, columns, "events")

    times = read_times(log, order_by, "events")
    if at is None or is_scalar(at):
        codes, _ = _entities(log, None, by)
        first = _first_rows(codes)
        owner, taken = _select(events, log, first, by), by
        asked_codes = np.arange(len(first))
        asked = None if at is None else read_time(at, times.type, order_by, len(first))
    else:
        owner, table = _read(at)
        _require(table, [*by, order_by], "at")
        taken = table.column_names
        codes, asked_codes = _entities(log, table, by)
        asked = read_times(table, order_by, "at")
    clash = [prefix + name for name in columns if prefix + name in taken]
    if clash:
        raise ValueError(
            f"collected columns would be named {clash}, as columns that are there already; "
            f"choose another prefix than {prefix!r}"
        )

    times, asked = comparable(times, asked, order_by)
    order, start, stop = _spans(times, codes, asked, asked_codes)
    if max_length is not None:
        start = np.maximum(start, stop - max_length)
    lists = materialize(log.select(columns), order, start, stop)
    return _attach(owner, lists.rename_columns([prefix + name for name in columns]))


def _read(X, columns=None):
    """Return `X` (lazy frames collected) and some of its columns, or all, as an Arrow table."""
    if is_lazy(X):
        X = X.collect()
    if columns is not None:
        table = as_table(X, minimum_rows=0, columns=columns)
        if set(columns) <= set(table.column_names):
            return X, table
    return X, as_table(X, minimum_rows=0)


def _names(names, parameter):
    """Return the names of columns that are given as one or several."""
    if not isinstance(names, Iterable):
        raise TypeError(f"{parameter} must be the name of a column or a list, got {names!r}")
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError(f"{parameter} is empty; name at least one column of events")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{parameter} names columns more than once: {twice}")
    if parameter == "order_by" and len(names) > 1:
        raise ValueError(f"order_by must name one column, got {names}")
    return names


def _require(table, names, owner):
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{owner} has no columns {missing}; it has {table.column_names}")


# Entities: numbered in the order in which the log first names them.


def _entities(log, table, by):
    """Return the entity of each row of the log and of the table, as dense integers.

    A missing entity of the table is one that the log does not have.
    """
    codes = None
    for name in by:
        column = decoded(log[name])
        refuse_missing(column, name, "events", "entity")
        if table is not None:
            column = _concatenate(column, decoded(table[name]), name)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        encoded = _encode(column, name)
        if codes is None:
            codes = encoded
            continue
        # Each factor is below the number of rows, so that the product cannot overflow.
        missing = (codes < 0) | (encoded < 0)
        pairs = codes * (encoded.max(initial=0) + 1) + encoded
        codes = _encode(pa.chunked_array([pa.array(pairs, mask=missing)]), name)
    known = codes[: len(log)]
    unknown = codes.max(initial=-1) + 1
    return known, np.where(codes < 0, unknown, codes)[len(log) :]


def _concatenate(column, other, name):
    try:
        kind = common_type(column.type, other.type)
        return pa.chunked_array([*column.cast(kind).chunks, *other.cast(kind).chunks], kind)
    except (*CAST_ERRORS, TypeError) as error:
        raise TypeError(
            f"column {name!r} is of type {type_name(column.type)} in events and of type "
            f"{type_name(other.type)} in at, so that entities cannot be matched; convert one "
            "to the other"
        ) from error


def _encode(column, name):
    """Return the distinct values of a column as 0, 1, ... in order of appearance, -1 for null."""
    try:
        encoded = column.dictionary_encode()
    except CAST_ERRORS as error:
        raise TypeError(
            f"column {name!r} of type {type_name(column.type)} cannot name entities"
        ) from error
    indices = [chunk.indices.fill_null(-1) for chunk in encoded.chunks]
    return pa.chunked_array(indices, type=pa.int32()).to_numpy().astype(np.int64)


def _first_rows(codes):
    """Return the row in which each entity first appears."""
    highest_before = np.maximum.accumulate(np.concatenate([[-1], codes]))[:-1]
    return np.flatnonzero(codes > highest_before)


# Lists: one stable sort puts each entity's events in a row, then every list is a range of it.


def _spans(times, codes, asked, asked_codes):
    """Return the order of events by entity and time, and the range in it of each row asked."""
    counts = np.bincount(codes, minlength=asked_codes.max(initial=-1) + 1)
    starts = np.cumsum(counts) - counts
    if asked is None:
        return _sort(times, codes), starts[asked_codes], (starts + counts)[asked_codes]
    # What is asked comes before the events, and the sort is stable: of the rows of one time, the
    # events therefore come last, and those counted before a row asked are strictly earlier.
    order = _sort(np.concatenate([asked, times]), np.concatenate([asked_codes, codes]))
    is_event = order >= len(asked)
    earlier = np.cumsum(is_event)
    stop = np.empty(len(asked), dtype=np.int64)
    stop[order[~is_event]] = earlier[~is_event]
    return order[is_event] - len(asked), starts[asked_codes], stop


def _sort(times, codes):
    """Return the stable order by entity, then time."""
    order = np.argsort(times, kind="stable")
    # Digits of 16 bits, the lowest first: NumPy sorts these in linear time.
    for shift in range(0, int(codes.max(initial=0)).bit_length(), 16):
        digit = ((codes >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def materialize(table, order, start, stop):
    """Return a table of lists: row i holds the rows ``order[start[i]:stop[i]]``."""
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
    # Where lists overlap, reading neighbours is faster than jumping about the log.
    steps = [order, rows] if len(rows) > len(order) else [order[rows]]
    steps = [pa.array(step) for step in steps]
    offsets = pa.array(offsets, pa.int64())
    lists = {}
    for name in table.column_names:
        values = contiguous(table[name])
        for step in steps:
            values = values.take(step)
        lists[name] = pa.LargeListArray.from_arrays(offsets, values)
    return pa.table(lists)


def contiguous(column):
    """Return a column as one array, of a type whose offsets cannot overflow when repeated."""
    kind = column.type
    if pa.types.is_string(kind):
        column = column.cast(pa.large_string())
    elif pa.types.is_binary(kind):
        column = column.cast(pa.large_binary())
    elif pa.types.is_list(kind):
        column = column.cast(pa.large_list(kind.value_field))
    elif pa.types.is_dictionary(kind):
        column = column.unify_dictionaries()
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


# Results: of the kind that the user brought.


def _select(X, table, rows, names):
    """Return rows and columns of what the user brought, `table` being the same in Arrow."""
    if isinstance(X, pd.DataFrame):
        labels = list(map(str, X.columns))
        positions = [labels.index(name) for name in names]
        return X.iloc[rows, positions].reset_index(drop=True)
    if _is_polars(X):
        return X.select(names)[rows]
    return table.select(names).take(pa.array(rows))


def _attach(owner, lists):
    """Return what the user brought with the lists as further columns."""
    if isinstance(owner, pd.DataFrame):
        arrays = {name: pd.arrays.ArrowExtensionArray(lists[name]) for name in lists.column_names}
        return pd.concat([owner, pd.DataFrame(arrays, index=owner.index)], axis=1)
    if _is_polars(owner):
        import polars as pl

        return owner.hstack(pl.from_arrow(lists).get_columns())
    table = owner if isinstance(owner, pa.Table) else as_table(owner, minimum_rows=0)
    for name in lists.column_names:
        table = table.append_column(name, lists[name])
    return table


def _is_polars(X):
    return type(X).__module__.partition(".")[0] == "polars"
