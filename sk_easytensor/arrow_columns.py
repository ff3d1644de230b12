"""The values of a column, as users have them, become an Arrow array."""

from __future__ import annotations

import datetime as dt
import sys
from enum import Enum
from itertools import chain
from uuid import UUID

import numpy as np
import pyarrow as pa

__all__ = ["UNREADABLE", "column_of", "first_unlike", "is_pandas", "pandas_columns"]

UNREADABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for Python values that fit none of its types."""

UNLIKE = (*UNREADABLE, TypeError, ValueError)
"""What it raises for Python values of unlike types, some of which it takes for one another."""

CALENDAR_UNITS = ("Y", "M", "W", "D", "h", "m")
"""Units of NumPy's dates and durations that Arrow does not have, or (days) not for both."""

PLAIN_NUMBERS = {np.dtype(character) for character in "bhilqBHILQefd"}
"""Types of arrays that become Arrow arrays as they are."""

LISTS = (list, tuple, np.ndarray)

BY_PARTS = {"CategoricalDtype", "DatetimeTZDtype"}
"""Types of pandas of which the parts are given to Arrow."""

PLAIN_KINDS = {str, int, float, bool, type(None)}
"""Types of Python values that Arrow reads as they are."""

ALIKE, FEW = 32, 1_000_000
"""Columns of numbers of a type that are taken out of a data frame at once, at least, and numbers of
which a copy does no harm."""


def is_pandas(X, kind):
    """Tell whether X is of a class of pandas, which it cannot be before pandas is imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(X, getattr(pandas, kind))


def pandas_columns(X):
    """Return the columns of a data frame of pandas.

    Making a series takes pandas longer than all else that is done to read one of few rows, so that
    many columns of a type are taken out at once.

    Parameters
    ----------
    X : pandas.DataFrame
        Of any columns.

    Returns
    -------
    list of pandas.Series or ndarray
    """
    taken = {}
    if X.shape[1] >= ALIKE and X.size <= FEW:
        places = {}
        for place, kind in enumerate(X.dtypes.to_numpy()):
            if isinstance(kind, np.dtype) and kind in PLAIN_NUMBERS:
                places.setdefault(kind, []).append(place)
        for alike in places.values():
            if len(alike) >= ALIKE:
                taken.update(zip(alike, X.iloc[:, alike].to_numpy().T, strict=True))
    if not taken:
        return [column for _, column in X.items()]
    rest = [place for place in range(X.shape[1]) if place not in taken]
    if rest:
        series = (column for _, column in X.iloc[:, rest].items())
        taken.update(zip(rest, series, strict=True))
    return [taken[place] for place in range(X.shape[1])]


def column_of(values, name):
    """Return the values of a column as an Arrow array.

    Parameters
    ----------
    values : array-like, pandas.Series, Arrow array or object with Arrow's C interface
        One for each row.
    name : str
        Of the column, for messages.

    Returns
    -------
    pyarrow.Array or pyarrow.ChunkedArray

    Raises
    ------
    TypeError
        If the column is sparse, or a value is neither a string nor a number nor like the others.
    ValueError
        If the values have more than two dimensions, or vectors no entries.
    """
    # The usual kinds first: with few rows, questions cost more than answers.
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype in PLAIN_NUMBERS:
        return pa.array(values, from_pandas=True)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    try:
        if is_pandas(values, "Series"):
            # Arrow asks a series for a dozen attributes.
            kind = values.dtype
            if isinstance(kind, np.dtype) and kind.kind in "iuf":
                return pa.array(values.to_numpy(), from_pandas=True)
            if type(kind).__name__ in BY_PARTS:
                return _series_by_parts(values, kind)
            if kind != np.object_:
                return pa.array(values, from_pandas=True)
            values = values.to_numpy()
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            return pa.chunked_array(values)
    except UNREADABLE:
        if hasattr(values, "sparse"):
            raise TypeError(
                f"column {name!r} is sparse, which is not supported; convert it with "
                "Series.sparse.to_dense()"
            ) from None
    if isinstance(values, (list, tuple)):
        # Not by way of NumPy: lists of lists would become a matrix, mixed scalars strings.
        values = _python_values(values, name)
        try:
            return pa.array(values, from_pandas=True)
        except UnicodeEncodeError:
            raise
        except UNLIKE:
            return _mixed_column(_object_array(values), name)
    mask = np.ma.getmaskarray(values).reshape(-1) if np.ma.isMaskedArray(values) else None
    array = np.asarray(values)
    if array.ndim not in (1, 2):
        raise ValueError(f"column {name!r} must be 1-D or 2-D, got {array.ndim} dimensions")
    if array.dtype.kind in "US":
        array = array.astype(object)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind in "Mm" and np.datetime_data(array.dtype)[0] in CALENDAR_UNITS:
        array = array.astype(f"{array.dtype.kind}8[s]")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(
            f"column {name!r} is an array of shape {array.shape}, whose vectors have no entries; "
            "leave it out"
        )
    if array.ndim == 2 and array.dtype != object:
        flat = pa.array(np.ascontiguousarray(array).reshape(-1), mask=mask, from_pandas=True)
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    if array.dtype == object:
        array = _python_values(array, name)
    try:
        return pa.array(array, mask=mask, from_pandas=True)
    except UnicodeEncodeError:
        raise
    except UNLIKE:
        return _mixed_column(array, name)


def _series_by_parts(values, kind):
    """Return a series of categories, or of times with a zone, as an Arrow array.

    By itself, Arrow reads an attribute of these that pandas warns of, as it is to change.
    """
    if type(kind).__name__ == "DatetimeTZDtype":
        moments = values.dt.tz_convert(None).to_numpy()
        return pa.array(moments, pa.timestamp(kind.unit, pa.lib.tzinfo_to_string(kind.tz)))
    if kind.categories.dtype != np.object_ and type(kind.categories.dtype).__name__ not in BY_PARTS:
        return pa.array(values, from_pandas=True)
    codes = values.cat.codes.to_numpy()
    names = column_of(kind.categories.to_series(), "categories")
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    codes = pa.array(codes, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(codes, names, ordered=bool(kind.ordered))


def _object_array(values):
    """Return Python values as an array of objects, whatever these are."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def _python_values(values, name):
    """Replace what Arrow reads wrongly, or not at all, by the Python value that it stands for.

    Enumerations and UUIDs become strings. Dates among date-times become date-times, which Arrow
    would cut to dates. Dates of NumPy become Python's if they are days, which Arrow fails to
    read, or if there are scalars of other types as well: Arrow would take these for dates too,
    and the process crashes.

    Parameters
    ----------
    values : list, tuple or ndarray of object
        One for each row.
    name : str
        Of the column, for messages.

    Returns
    -------
    list, tuple or ndarray of object
        The values themselves, if there is nothing to replace.

    Raises
    ------
    TypeError
        If there are numbers among dates, which Arrow would count from 1970.
    """
    if getattr(values, "ndim", 1) != 1:
        return values
    kinds = set(map(type, values))
    if kinds <= PLAIN_KINDS:
        return values
    if not kinds.isdisjoint((*LISTS, dict)):
        kinds.update(map(type, chain.from_iterable(map(_items, values))))
    if any(map(_is_date, kinds)) and any(map(_is_number, kinds)):
        _refuse_numbers_among_dates(values, name)
    replaced = set()
    for kind in kinds:
        if issubclass(kind, UUID) or (issubclass(kind, Enum) and not issubclass(kind, (int, str))):
            replaced.add(kind)
    scalars = {kind for kind in kinds if issubclass(kind, np.generic)}
    if np.datetime64 in scalars and (len(scalars) > 1 or _are_days(values)):
        replaced |= scalars
    if dt.date in kinds and any(issubclass(kind, (dt.datetime, np.datetime64)) for kind in kinds):
        replaced.add(dt.date)
    if not replaced:
        return values
    found = [_python_value(value, replaced) for value in values]
    return _object_array(found) if isinstance(values, np.ndarray) else found


def _items(value):
    """Return the Python objects that a value holds."""
    if isinstance(value, np.ndarray):
        return value.ravel() if value.dtype == object else ()
    if isinstance(value, (list, tuple)):
        return value
    return value.values() if isinstance(value, dict) else ()


def _are_days(values):
    """Tell whether dates of NumPy have a unit that Arrow does not read one by one."""
    items = (item for value in values for item in (value, *_items(value)))
    units = {np.datetime_data(item.dtype)[0] for item in items if type(item) is np.datetime64}
    return not units.isdisjoint((*CALENDAR_UNITS, "generic"))


def _is_date(kind):
    # NaT, which is a date-time by its class, is how pandas writes that any value is missing.
    return issubclass(kind, (dt.date, np.datetime64)) and kind.__name__ != "NaTType"


def _is_number(kind):
    return issubclass(kind, (int, float, np.number, np.bool_)) and kind is not np.timedelta64


def _refuse_numbers_among_dates(values, name):
    found = {}
    for row, value in enumerate(values):
        items = _items(value) if isinstance(value, LISTS) else [value]
        for item in items:
            if _is_date(type(item)):
                found.setdefault("date", (row, item))
            elif _is_number(type(item)) and item == item:
                found.setdefault("number", (row, item))
        if len(found) == 2:
            (row, date), (other, number) = found["date"], found["number"]
            raise TypeError(
                f"column {name!r} holds dates and numbers: {_shown(date)} in row {row} and "
                f"{_shown(number)} in row {other}; give values of one type"
            )


def _shown(value, longest=60):
    """Return a value as it is written in Python, shortened."""
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _python_value(value, replaced):
    kind = type(value)
    if kind in (list, tuple) or (kind is np.ndarray and value.dtype == object):
        return [_python_value(item, replaced) for item in value]
    if kind is dict:
        return {name: _python_value(item, replaced) for name, item in value.items()}
    if kind not in replaced:
        return value
    if issubclass(kind, UUID):
        return str(value)
    if issubclass(kind, Enum):
        return value.value if isinstance(value.value, str) else value.name
    if kind is dt.date:
        return dt.datetime(value.year, value.month, value.day)
    return value.astype("M8[us]").item() if kind is np.datetime64 else value.item()


def _mixed_column(array, name):
    """Read a column of unlike scalars: as numbers if all are, else as strings."""
    import pandas as pd

    series = pd.Series(array, dtype=object)
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind in {"integer", "floating", "mixed-integer-float", "decimal"}:
        return pa.array(series.astype("float64").to_numpy(), from_pandas=True)
    unlike = series.map(lambda value: not isinstance(value, (str, int, float, np.generic)))
    unlike &= series.notna()
    if unlike.any():
        row = int(np.argmax(unlike))
        hint = ""
        if isinstance(array[row], LISTS):
            array, emptied = _without_empty_arrays(array)
            if emptied:
                return column_of(array, name)
            row = first_unlike(array)
            hint = ", or lists if all are lists of items of one type"
        kind, shown = type(array[row]).__name__, _shown(array[row])
        raise TypeError(
            f"column {name!r} holds a {kind} ({shown}) in row {row}; each value given as an "
            f"argument must be a string or a number{hint}"
        )
    text = series.astype(str).where(series.notna(), None)
    return pa.array(text.to_numpy(dtype=object), type=pa.string(), from_pandas=True)


def _without_empty_arrays(array):
    """Replace arrays without items, whose type says nothing, by empty lists, if there are any."""
    empty = [isinstance(value, np.ndarray) and value.size == 0 for value in array]
    if any(empty):
        array = array.copy()
        for row in np.flatnonzero(empty):
            array[row] = []
    return array, any(empty)


def first_unlike(array, errors=UNLIKE):
    """Return the first row whose value fits no type that those before it have."""
    readable, unreadable = 0, len(array)
    while unreadable - readable > 1:
        middle = (readable + unreadable) // 2
        try:
            pa.array(array[:middle], from_pandas=True)
        except errors:
            unreadable = middle
        else:
            readable = middle
    return readable
