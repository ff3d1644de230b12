"""Event logs: read times of events, and collect the events of each entity into lists."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from numbers import Integral

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.utils import check_scalar

from sk_easytensor.data.columns import CAST_ERRORS, RowError, decoded
from sk_easytensor.data.tables import as_table, is_lazy
from sk_easytensor.data.type_names import type_name
from sk_easytensor.data.types import common_type

__all__ = [
    "check_not_missing",
    "collect_sequences",
    "comparable",
    "contiguous",
    "entity_codes",
    "is_scalar",
    "materialize",
    "read_time",
    "read_times",
]


def check_not_missing(column, name, owner, noun):
    """Raise :class:`RowError` if a column has missing values, with the first such row."""
    missing = pc.is_null(column, nan_is_null=True)
    rows = np.flatnonzero(missing.to_numpy())
    if len(rows):
        raise RowError(
            f"column {name!r} of {owner} has no {noun} in row {{row}} ({len(rows)} of "
            f"{len(column)} rows); leave such rows out",
            int(rows[0]),
        )


def read_times(table, name, owner):
    """Return a column of times without missing values, in one of few types.

    Returns
    -------
    pyarrow.ChunkedArray
        Column of type date32, timestamp, int64, float64 or null.

    Raises
    ------
    TypeError
        If the column does not hold timestamps, dates or numbers.
    RowError
        If a time is missing.
    """
    column = decoded(table[name])
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kind = column.type
    calendar = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    # A column without values has the type null.
    if not (calendar or _is_number(kind) or pa.types.is_null(kind)):
        raise TypeError(
            f"column {name!r} of {owner} is of type {type_name(kind)} and cannot order "
            "events; it must hold timestamps, dates or numbers"
        )
    check_not_missing(column, name, owner, "time")
    if pa.types.is_date(kind):
        return column.cast(pa.date32())
    if pa.types.is_integer(kind):
        return _cast(column, pa.int64(), name)
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    return column


def is_scalar(at):
    """Return whether `at` is a single time rather than a table."""
    if isinstance(at, np.ndarray):
        return at.ndim == 0
    return isinstance(at, (str, bytes, int, float, dt.date, np.generic, pa.Scalar))


def read_time(at, kind, name, rows):
    """Return one time as a column of `rows` rows, in a type that is comparable with `kind`."""
    if isinstance(at, pa.Scalar):
        at = at.as_py()
    if isinstance(at, np.ndarray):
        at = at[()]
    if pd.isna(at):
        raise ValueError(f"at is {at}; it must be a time, a table, or None for all events")
    number = isinstance(at, (int, float, np.integer, np.floating)) and not isinstance(at, bool)
    if number and (_is_number(kind) or pa.types.is_null(kind)):
        is_integer = isinstance(at, (int, np.integer))
        times = np.full(rows, at, dtype=np.int64 if is_integer else np.float64)
        return pa.chunked_array([pa.array(times)])
    if isinstance(at, (str, dt.date, np.datetime64)) and not _is_number(kind):
        try:
            time = pd.to_datetime(at, format="ISO8601") if isinstance(at, str) else pd.Timestamp(at)
        except ValueError as error:
            raise ValueError(
                f"at={at!r} is not a time in ISO 8601, such as '2025-03-09' or "
                "'2025-03-09T12:30:00+01:00'"
            ) from error
        times = pa.array(np.full(rows, time.asm8))
        zone = None if time.tz is None else "UTC"
        return pa.chunked_array([times.cast(pa.timestamp(times.type.unit, zone))])
    raise TypeError(
        f"at={at!r} cannot be compared with column {name!r} of events, which is of type "
        f"{type_name(kind)}"
    )


def comparable(times, cutoffs, name):
    """Convert the times of the log and the cutoff times to comparable integers or floats."""
    if cutoffs is None:
        return _as_numpy(times), None
    if pa.types.is_null(times.type):
        times = times.cast(cutoffs.type)
    if pa.types.is_null(cutoffs.type):
        cutoffs = cutoffs.cast(times.type)
    if _family(times.type) != _family(cutoffs.type):
        raise TypeError(
            f"column {name!r} of events holds {_family(times.type)} ({type_name(times.type)}) "
            f"and at holds {_family(cutoffs.type)} ({type_name(cutoffs.type)}); convert one to "
            "the other"
        )
    if pa.types.is_date(times.type) and pa.types.is_timestamp(cutoffs.type):
        # An event with a date may be later than any hour of that day.
        cutoffs = pc.floor_temporal(cutoffs, unit="day").cast(pa.date32(), safe=False)
    elif pa.types.is_date(cutoffs.type) and pa.types.is_timestamp(times.type):
        cutoffs = cutoffs.cast(pa.timestamp("s"))
    # A safe cast fails instead of rounding. One of the two directions is nearly always exact.
    try:
        cutoffs = cutoffs.cast(times.type)
    except CAST_ERRORS:
        times = _cast(times, cutoffs.type, name)
    return _as_numpy(times), _as_numpy(cutoffs)


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
        Event log with one row for each event, in any order.
    by : str or list of str
        Columns that identify the entity, such as a customer.
    order_by : str
        Column of times: timestamps, dates or numbers.
    at : None, scalar or table, default=None
        Times before which events are collected.

        - None: one row for each entity, with all its events.
        - One time (a datetime, a date, a string in ISO 8601 or a number): one row for each
          entity, with its events strictly before that time; entities whose events all come
          later are kept, with empty lists.
        - A table with the columns `by` and `order_by`: one row for each of its rows, in its
          order, with the entity's events strictly before the row's time. Entities that are not in
          the log, or are missing, have empty lists.
    columns : str or list of str, default=None
        Columns of `events` to collect; None collects all but those of `by`. Other columns may hold
        values of any type.
    max_length : int, default=None
        Largest number of events of a list; the most recent ones are retained. None retains all.
    prefix : str, optional
        Prefix of the names of collected columns, ``"past_"`` by default.

    Returns
    -------
    DataFrame or pyarrow.Table
        Table of the kind of `at` if that is a table, else of the kind of `events`: pandas, polars,
        or a :class:`pyarrow.Table` for all others. The first columns are those of `at`, unchanged
        (with its index), or else those of `by`, with entities in the order of their first
        appearance in the log. They are followed by a list column for each collected column, with
        the oldest event first and events of the same time in the order of the log. All lists of a
        row have the same length. In pandas they are of :class:`pandas.ArrowDtype`.

    Raises
    ------
    ValueError
        If a column does not exist, a time or an entity of the log is missing, a time of `at` is
        missing, or a collected column would take the name of another.
    TypeError
        If the times are of another type, or those of the log cannot be compared with those of
        `at`: numbers with dates, or times with a time zone with times without.

    Notes
    -----
    Events at or after the time of a row are not in its lists, so that a model learns only from
    values that are available at prediction. Two things depend on your data:

    - An event is available from its time in `order_by` on. If its values become available later
      (the arrival of a flight, ordered by its departure), order by the time at which they do.
    - An event with a date instead of a time may have happened at any time of that day. It is
      available from the next day on, whatever the hour of the time in `at`. Midnights in a column
      of timestamps are exact times.

    Without `max_length`, a table `at` with a row for each event takes memory that grows with the
    square of the number of events of an entity.

    Examples
    --------
    The previous purchases of each customer, for each order:

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

    The purchases of each customer before one day:

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
        codes, _ = entity_codes(log, None, by)
        first = _first_rows(codes)
        owner, result_names = _select(events, log, first, by), by
        cutoff_codes = np.arange(len(first))
        cutoffs = None if at is None else read_time(at, times.type, order_by, len(first))
    else:
        owner, table = _read(at)
        _require(table, [*by, order_by], "at")
        result_names = table.column_names
        codes, cutoff_codes = entity_codes(log, table, by)
        cutoffs = read_times(table, order_by, "at")
    clash = [prefix + name for name in columns if prefix + name in result_names]
    if clash:
        raise ValueError(
            f"collected columns would be named {clash}, as columns that are there already; "
            f"choose another prefix than {prefix!r}"
        )

    times, cutoffs = comparable(times, cutoffs, order_by)
    order, start, stop = _spans(times, codes, cutoffs, cutoff_codes)
    if max_length is not None:
        start = np.maximum(start, stop - max_length)
    lists = materialize(log.select(columns), order, start, stop)
    return _attach(owner, lists.rename_columns([prefix + name for name in columns]))


def _read(X, columns=None):
    """Return `X`, with lazy frames collected, and an Arrow table of `columns` or all columns."""
    if is_lazy(X):
        X = X.collect()
    if columns is not None:
        table = as_table(X, minimum_rows=0, columns=columns)
        if set(columns) <= set(table.column_names):
            return X, table
    return X, as_table(X, minimum_rows=0)


def _names(names, parameter):
    """Return one name or several names of columns as a list, and check them."""
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


# Entities are numbered in the order of their first appearance in the log.


def entity_codes(log, table, by, owners=("events", "at")):
    """Return the entity of each row of a log and of a table, as consecutive integers.

    Parameters
    ----------
    log : pyarrow.Table
        Table with columns that identify the entity of each row.
    table : pyarrow.Table or None
        Table with the same columns.
    by : list of str
        Names of the columns.
    owners : tuple of (str, str), default=("events", "at")
        Names of the two tables, for errors.

    Returns
    -------
    known, codes : ndarray of int64
        Entities of the rows of the log, numbered in the order of their first appearance, and of
        those of the table. Entities that are not in the log have larger integers; missing entities
        of the table have an integer of their own.

    Raises
    ------
    ValueError, TypeError
        If an entity of the log is missing, or if the columns have types that do not match.
    """
    codes = None
    for name in by:
        column = decoded(log[name])
        check_not_missing(column, name, owners[0], "entity")
        if table is not None:
            column = _concatenate(column, decoded(table[name]), name, owners)
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


def _concatenate(column, other, name, owners):
    try:
        kind = common_type(column.type, other.type)
        return pa.chunked_array([*column.cast(kind).chunks, *other.cast(kind).chunks], kind)
    except (*CAST_ERRORS, TypeError) as error:
        raise TypeError(
            f"column {name!r} is of type {type_name(column.type)} in {owners[0]} and of type "
            f"{type_name(other.type)} in {owners[1]}, so that entities cannot be matched; convert "
            "one to the other"
        ) from error


def _encode(column, name):
    """Return the distinct values of a column as 0, 1, ... in order of appearance, -1 for null."""
    try:
        encoded = column.dictionary_encode()
    except CAST_ERRORS as error:
        raise TypeError(
            f"column {name!r} of type {type_name(column.type)} cannot identify entities"
        ) from error
    indices = [chunk.indices.fill_null(-1) for chunk in encoded.chunks]
    return pa.chunked_array(indices, type=pa.int32()).to_numpy().astype(np.int64)


def _first_rows(codes):
    """Return the row in which each entity first appears."""
    highest_before = np.maximum.accumulate(np.concatenate([[-1], codes]))[:-1]
    return np.flatnonzero(codes > highest_before)


# Lists: after one stable sort by entity and time, each list is a range of the sorted events.


def _spans(times, codes, cutoffs, cutoff_codes):
    """Return the order of events by entity and time, and the range of each row in this order."""
    counts = np.bincount(codes, minlength=cutoff_codes.max(initial=-1) + 1)
    starts = np.cumsum(counts) - counts
    if cutoffs is None:
        return _sort(times, codes), starts[cutoff_codes], (starts + counts)[cutoff_codes]
    # Cutoffs precede the events and the sort is stable, so among equal times the events are last.
    # Events that precede a cutoff in this order are therefore strictly earlier.
    order = _sort(np.concatenate([cutoffs, times]), np.concatenate([cutoff_codes, codes]))
    is_event = order >= len(cutoffs)
    earlier = np.cumsum(is_event)
    stop = np.empty(len(cutoffs), dtype=np.int64)
    stop[order[~is_event]] = earlier[~is_event]
    return order[is_event] - len(cutoffs), starts[cutoff_codes], stop


def _sort(times, codes):
    """Return the stable order by entity, then time."""
    order = np.argsort(times, kind="stable")
    # Radix sort by digits of 16 bits, the lowest first, which NumPy sorts in linear time.
    for shift in range(0, int(codes.max(initial=0)).bit_length(), 16):
        digit = ((codes >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def materialize(table, order, start, stop):
    """Return a table of lists: row i holds the rows ``order[start[i]:stop[i]]``."""
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
    # If lists overlap, sorting the events first makes the memory access sequential.
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
    """Return a column as one array, with 64-bit offsets that repeated rows cannot overflow."""
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


# Results are of the same kind of table as the input.


def _select(X, table, rows, names):
    """Return rows and columns of the user's table; `table` is the same in Arrow."""
    if isinstance(X, pd.DataFrame):
        labels = list(map(str, X.columns))
        positions = [labels.index(name) for name in names]
        return X.iloc[rows, positions].reset_index(drop=True)
    if _is_polars(X):
        return X.select(names)[rows]
    return table.select(names).take(pa.array(rows))


def _attach(owner, lists):
    """Return the user's table with the lists as additional columns."""
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
