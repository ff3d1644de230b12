"""The times of a log and the times asked for, read and compared exactly."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.columns import CAST_ERRORS, RowError, type_name

__all__ = ["comparable", "decoded", "is_scalar", "read_time", "read_times", "refuse_missing"]


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
