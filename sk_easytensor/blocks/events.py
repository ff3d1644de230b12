"""The fields of events: what each is, how structs are split, and the gaps between times."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.data.columns import RowError, RowTypeError, show_value, to_float64, type_name
from sk_easytensor.data.datetimes import read_instants
from sk_easytensor.data.lists import is_list

__all__ = [
    "check_clocks",
    "choose_kinds",
    "find_now",
    "gaps",
    "is_time",
    "readable_fields",
    "seconds",
    "split_items",
    "struct_fields",
]


BLOCK = "EventSequenceBlock"


def is_time(kind):
    """Return whether a type is of dates or timestamps."""
    return pa.types.is_date(kind) or pa.types.is_timestamp(kind)


def find_now(table, now):
    """Return the name of the column that says when a row is predicted, or None.

    Parameters
    ----------
    table : pyarrow.Table
        All columns of the block.
    now : str or None
        Its name, if the user gave it.

    Raises
    ------
    ValueError
        If there is no such column, or if several could be it.
    """
    names = table.column_names
    if now is not None:
        if now not in names or is_list(table.schema.field(now).type):
            raise ValueError(
                f"{BLOCK}: now must name a column of the block with one value a row, got {now!r}; "
                f"columns are {names}"
            )
        return now
    times = [field.name for field in table.schema if is_time(field.type)]
    if len(times) > 1:
        raise ValueError(
            f"{BLOCK}: {times} each have a time a row; say with now which is when a row is "
            "predicted, and give the others to another block"
        )
    return times[0] if times else None


def struct_fields(table):
    """Return the type of each field, and which column each comes from.

    Parameters
    ----------
    table : pyarrow.Table
        Of lists.

    Returns
    -------
    types : dict of {str: pyarrow.DataType}
        Types of items; fields of structs are named ``column.field``.
    sources : dict of {str: str}
        Columns.
    """
    types, sources = {}, Counter()
    for field in table.schema:
        kind = field.type.value_type if is_list(field.type) else field.type
        if pa.types.is_struct(kind):
            own = {f"{field.name}.{inner.name}": inner.type for inner in kind}
        else:
            own = {field.name: kind}
        for name, inner in own.items():
            if name in types:
                raise ValueError(f"{BLOCK}: two fields are named {name!r}; rename a column")
            types[name], sources[name] = inner, field.name
    return types, dict(sources)


def choose_kinds(types, time, categories):
    """Say what each field of an event is.

    Parameters
    ----------
    types : dict of {str: pyarrow.DataType}
        Types of the fields' items.
    time : str or None
        The field that says when; by default the first of dates or timestamps.
    categories : list of str
        Fields that are categories whatever their type.

    Returns
    -------
    dict of {str: {"category", "number", "time", "date"}}

    Raises
    ------
    ValueError
        Naming a parameter that names no field.
    """
    for name in (*categories, *([] if time is None else [time])):
        if name not in types:
            parameter = "categories" if name in categories else "time"
            raise ValueError(
                f"{BLOCK}: {parameter} names {name!r}, which is no field; fields are {list(types)}"
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
    """Return the items of each field, as a dictionary of chunked arrays.

    Parameters
    ----------
    items : pyarrow.Table
        A column for each list column.
    sources : dict of {str: str}
        Which column each field comes from.

    Raises
    ------
    ValueError
        Naming a field that is not there.
    """
    fields = {}
    for name, source in sources.items():
        column = items.column(source)
        if name != source and not pa.types.is_null(column.type):
            inner = name[len(source) + 1 :]
            known = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
            if inner not in known:
                raise ValueError(
                    f"column {source!r} holds {type_name(column.type)} and lacks the field "
                    f"{inner!r}, which "
                    f"was there when {BLOCK} was fitted"
                )
            column = pc.struct_field(column, inner)
        fields[name] = column
    return fields


def readable_fields(fields, kinds, lists):
    """Return fields as what they are, those without any value as columns of type null.

    Parameters
    ----------
    fields : dict of {str: pyarrow.ChunkedArray}
        A value an event.
    kinds : dict of {str: str}
        From :func:`choose_kinds`.
    lists : FlatLists
        The events.

    Returns
    -------
    dict of {str: pyarrow.ChunkedArray}

    Raises
    ------
    RowTypeError
        Naming a field, and a row, that cannot be read as what it is.
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
            filled = np.flatnonzero(column.is_valid().to_numpy())
            if len(filled):
                value = show_value(column[int(filled[0])])
                raise RowTypeError(
                    f"column {name!r} of items of type {type_name(column.type)} cannot be read by "
                    f"{BLOCK} as a {kinds[name]}; row {{row}} holds {value}",
                    int(lists.owner[filled[0]]),
                )
            column = pa.chunked_array([pa.nulls(len(column))])
        readable[name] = column
    return readable


def check_clocks(types):
    """Raise ``TypeError`` if some of the types that are set off against each other are numbers.

    Parameters
    ----------
    types : dict of {str: pyarrow.DataType}
        Of the time, of further dates, and of now, by column.
    """
    types = {name: kind for name, kind in types.items() if not pa.types.is_null(kind)}
    if len({is_time(kind) for kind in types.values()}) > 1:
        described = ", ".join(f"{name!r} of type {type_name(kind)}" for name, kind in types.items())
        raise TypeError(
            f"{BLOCK} cannot tell how long one is before another of the columns {described}: all "
            "have to be dates or timestamps, or all numbers of seconds"
        )


def seconds(column, name, zone, owner=None):
    """Return dates, timestamps, or numbers of seconds as an array of float64, NaN where missing.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        One value an event, or one a row.
    name : str
        Its name, for errors.
    zone : str or None
        Time zone to read it in.
    owner : ndarray of int64, optional
        The row of each value; by default there is one a row.

    Raises
    ------
    RowError
        Naming a row that holds a negative number.
    """
    if is_time(column.type):
        return read_instants(column, name, zone)
    times = to_float64(column, name, block=BLOCK)
    if (times < 0).any():
        place = int(np.argmax(times < 0))
        raise RowError(
            f"column {name!r} holds {times[place]:g} in row {{row}}; times have to be dates, "
            "timestamps, or seconds counted from 0 on",
            place if owner is None else int(owner[place]),
        )
    return times


def gaps(column, times, lists, name, now=None, now_name=None):
    """Return the seconds since the previous event, and up to now.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        When events happened, as it is shown in errors.
    times : ndarray of float64, shape (total,)
        The same in seconds, NaN where missing.
    lists : FlatLists
        The events.
    name : str
        Of the field, for errors.
    now : ndarray of float64, shape (n_rows,), optional
        When rows are predicted; by default at the time of the last event.
    now_name : str, optional
        Of the column, for errors.

    Returns
    -------
    previous, to_now : ndarray of float64, shape (total,)

    Raises
    ------
    RowError
        Naming the row in which events are not in order of time, or later than now.
    """
    owner, filled = lists.owner, np.diff(lists.offsets) > 0
    previous = np.full(len(times), np.nan)
    previous[1:] = np.diff(times)
    previous[lists.offsets[:-1][filled]] = np.nan
    if now is None:
        now = np.full(len(filled), np.nan)
        now[filled] = times[lists.offsets[1:][filled] - 1]
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
