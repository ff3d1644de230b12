"""Fields of events: their kinds, the fields of structs, and the gaps between times."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.data.columns import RowError, RowTypeError, is_list, show_value, to_float64
from sk_easytensor.data.datetimes import read_instants
from sk_easytensor.data.type_names import type_name

__all__ = [
    "check_fields",
    "check_time_types",
    "find_now",
    "gaps",
    "infer_kinds",
    "is_time",
    "seconds",
    "split_items",
    "struct_fields",
]


BLOCK = "EventSequenceBlock"


def is_time(kind):
    """Return whether a type is a date or timestamp type."""
    return pa.types.is_date(kind) or pa.types.is_timestamp(kind)


def find_now(table, now):
    """Return the name of the column with the prediction times of rows, or None.

    Parameters
    ----------
    table : pyarrow.Table
        Table of all columns of the block.
    now : str, None or False
        Name of the column, if the user passed it; False if no prediction time is read.

    Returns
    -------
    str or None

    Raises
    ------
    ValueError
        If the column does not exist, or if several columns qualify.
    """
    names = table.column_names
    if now is False:
        return None
    if now is not None:
        if now not in names or is_list(table.schema.field(now).type):
            raise ValueError(
                f"{BLOCK}: now must name a column of the block with one value per row, got "
                f"{now!r}; columns are {names}"
            )
        return now
    times = [field.name for field in table.schema if is_time(field.type)]
    if len(times) > 1:
        raise ValueError(
            f"{BLOCK}: {times} each have one time per row; name the prediction time with now, and "
            "give the others to another block"
        )
    return times[0] if times else None


def struct_fields(table):
    """Return the type and the column of each field.

    Parameters
    ----------
    table : pyarrow.Table
        Table of list columns.

    Returns
    -------
    types : dict of {str: pyarrow.DataType}
        Item type of each field; fields of structs are named ``column.field``.
    sources : dict of {str: str}
        Column of each field.

    Raises
    ------
    ValueError
        If two fields have the same name.
    """
    types, sources = {}, Counter()
    for field in table.schema:
        kind = field.type.value_type if is_list(field.type) else field.type
        if pa.types.is_struct(kind):
            fields = {f"{field.name}.{inner.name}": inner.type for inner in kind}
        else:
            fields = {field.name: kind}
        for name, inner in fields.items():
            if name in types:
                raise ValueError(f"{BLOCK}: two fields are named {name!r}; rename a column")
            types[name], sources[name] = inner, field.name
    return types, dict(sources)


def infer_kinds(types, time, categories):
    """Return the kind of each field of events.

    Parameters
    ----------
    types : dict of {str: pyarrow.DataType}
        Item type of each field.
    time : str or None
        Field with the times of events; by default the first of dates or timestamps.
    categories : list of str
        Fields that are read as categories, whatever their type.

    Returns
    -------
    dict of {str: {"category", "number", "time", "date"}}

    Raises
    ------
    ValueError
        If `time` or `categories` names a field that does not exist.
    """
    for name in (*categories, *([] if time is None else [time])):
        if name not in types:
            parameter = "categories" if name in categories else "time"
            raise ValueError(
                f"{BLOCK}: {parameter} names {name!r}, which is not a field; fields are "
                f"{list(types)}"
            )
    if time is None:
        times = (name for name, kind in types.items() if is_time(kind) and name not in categories)
        time = next(times, None)
    kinds = {}
    for name, kind in types.items():
        if name == time:
            kinds[name] = "time"
        elif name in categories or pa.types.is_boolean(kind) or CategoryBlock.detects_type(kind):
            kinds[name] = "category"
        else:
            kinds[name] = "date" if is_time(kind) else "number"
    return kinds


def split_items(items, sources):
    """Return the items of each field.

    Parameters
    ----------
    items : pyarrow.Table
        Items of each list column, one row per event.
    sources : dict of {str: str}
        Column of each field.

    Returns
    -------
    dict of {str: pyarrow.ChunkedArray}

    Raises
    ------
    ValueError
        If a struct does not have a field that was there during fit.
    """
    fields = {}
    for name, source in sources.items():
        column = items.column(source)
        if name != source and not pa.types.is_null(column.type):
            inner = name[len(source) + 1 :]
            known = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
            if inner not in known:
                raise ValueError(
                    f"column {source!r} holds {type_name(column.type)} without the field "
                    f"{inner!r}, which was there when {BLOCK} was fitted"
                )
            column = pc.struct_field(column, inner)
        fields[name] = column
    return fields


def check_fields(fields, kinds, lists):
    """Check that the type of each field fits its kind; fields without values become type null.

    Parameters
    ----------
    fields : dict of {str: pyarrow.ChunkedArray}
        Values of each field, one per event.
    kinds : dict of {str: str}
        Kind of each field, from :func:`infer_kinds`.
    lists : FlatLists
        The events.

    Returns
    -------
    dict of {str: pyarrow.ChunkedArray}

    Raises
    ------
    RowTypeError
        If a field cannot be read as its kind. The message names the field and a row.
    """
    readers = {
        "category": CategoryBlock.accepts,
        "number": NumericBlock.accepts,
        "time": lambda kind: is_time(kind) or NumericBlock.accepts(kind),
        "date": lambda kind: is_time(kind) or pa.types.is_null(kind),
    }
    readable = {}
    for name, column in fields.items():
        if not readers[kinds[name]](column.type):
            present = np.flatnonzero(column.is_valid().to_numpy())
            if len(present):
                value = show_value(column[int(present[0])])
                raise RowTypeError(
                    f"column {name!r} of items of type {type_name(column.type)} cannot be read by "
                    f"{BLOCK} as a {kinds[name]}; row {{row}} holds {value}",
                    int(lists.owner[present[0]]),
                )
            column = pa.chunked_array([pa.nulls(len(column))])
        readable[name] = column
    return readable


def check_time_types(types):
    """Raise ``TypeError`` unless the columns of times are all numbers or all dates and timestamps.

    Parameters
    ----------
    types : dict of {str: pyarrow.DataType}
        Types of the columns whose differences are computed, by column.
    """
    types = {name: kind for name, kind in types.items() if not pa.types.is_null(kind)}
    if len({is_time(kind) for kind in types.values()}) > 1:
        described = ", ".join(f"{name!r} of type {type_name(kind)}" for name, kind in types.items())
        raise TypeError(
            f"{BLOCK} cannot compute the time between the columns {described}: all have to be "
            "dates or timestamps, or all numbers of seconds"
        )


def seconds(column, name, zone, owner=None):
    """Return dates, timestamps, or numbers of seconds as an array of float64, NaN where missing.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        One value per event, or one per row.
    name : str
        Name of the column, for error messages.
    zone : str or None
        Time zone in which the column is read.
    owner : ndarray of int64, optional
        Row of each value; by default there is one value per row.

    Returns
    -------
    ndarray of float64
        Seconds since 1970, or the numbers of the column.

    Raises
    ------
    RowError
        If a number is negative; the message names the row.
    """
    if is_time(column.type):
        return read_instants(column, name, zone)
    times = to_float64(column, name, block=BLOCK)
    if (times < 0).any():
        index = int(np.argmax(times < 0))
        raise RowError(
            f"column {name!r} holds {times[index]:g} in row {{row}}; times have to be dates, "
            "timestamps, or non-negative numbers of seconds",
            index if owner is None else int(owner[index]),
        )
    return times


def gaps(column, times, lists, name, now=None, now_name=None):
    """Return the seconds since the previous event, and until the prediction time.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Times of the events, for error messages.
    times : ndarray of float64, shape (total,)
        Times of the events in seconds, NaN where missing.
    lists : FlatLists
        The events.
    name : str
        Name of the field, for error messages.
    now : ndarray of float64, shape (n_rows,), optional
        Prediction time of each row in seconds; by default the time of the last event.
    now_name : str, optional
        Name of the column of prediction times, for error messages.

    Returns
    -------
    previous, to_now : ndarray of float64, shape (total,)
        Seconds since the previous event, NaN for the first, and until the prediction time.

    Raises
    ------
    RowError
        If the events of a row are not in order of time, or later than the prediction time. The
        message names the row.
    """
    owner, not_empty = lists.owner, np.diff(lists.offsets) > 0
    previous = np.full(len(times), np.nan)
    previous[1:] = np.diff(times)
    previous[lists.offsets[:-1][not_empty]] = np.nan
    if now is None:
        now = np.full(len(not_empty), np.nan)
        now[not_empty] = times[lists.offsets[1:][not_empty] - 1]
    to_now = lists.take(now) - times
    unsorted = previous < 0
    if unsorted.any():
        event = int(np.argmax(unsorted))
        raise RowError(
            f"column {name!r} is not in order of time in row {{row}}: {column[event]} comes after "
            f"{column[event - 1]}; sort the events of each row by time",
            int(owner[event]),
        )
    late = to_now < 0
    if late.any():
        event = int(np.argmax(late))
        limit = "its last event" if now_name is None else f"its {now_name!r}"
        raise RowError(
            f"column {name!r} holds {column[event]} in row {{row}}, which is later than {limit}; "
            "a row's events have to be known by then",
            int(owner[event]),
        )
    return previous, to_now
