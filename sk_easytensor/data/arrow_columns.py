"""The values of a column, as users have them, become an Arrow array."""

from __future__ import annotations

import datetime as dt
import decimal
import sys
from enum import Enum
from itertools import chain
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import shortened
from sk_easytensor.data.columns import CAST_ERRORS
from sk_easytensor.data.keys import category_keys, exact_text
from sk_easytensor.data.sparse import is_sparse, sparse_rows
from sk_easytensor.data.types import PLAIN

__all__ = [
    "LISTS",
    "UNREADABLE",
    "check_utf8",
    "column_of",
    "first_unlike",
    "is_pandas",
    "pandas_columns",
]


UNREADABLE = (*CAST_ERRORS, OverflowError)
"""What Arrow raises for Python values that fit none of its types."""

UNLIKE = (*UNREADABLE, TypeError, ValueError)
"""What it raises for Python values of unlike types, some of which it takes for one another."""

NO_TIMES = (TypeError, ValueError, OverflowError)
"""What pandas raises for values that are no dates or durations of any of its units."""

CALENDAR_UNITS = ("Y", "M", "W", "D", "h", "m")
"""Units of NumPy's dates and durations that Arrow does not have, or (days) not for both."""

PLAIN_NUMBERS = {np.dtype(character) for character in "bhilqBHILQefd"}
"""Types of arrays that become Arrow arrays as they are."""

LISTS = (list, tuple, np.ndarray)

DECISIVE = {str, float, bool}
"""Types of Python values after which Arrow looks for no further type and refuses unlike values."""

MISSING = {"NoneType", "NAType", "NaTType"}
"""Names of the types of Python values that say that any value is missing."""

BY_PARTS = {"CategoricalDtype", "DatetimeTZDtype", "IntervalDtype"}
"""Types of pandas of which the parts are given to Arrow."""

KINDS = {
    "boolean": (bool, np.bool_),
    "integer": (int, np.integer),
    "float": (float, np.floating),
    "decimal": decimal.Decimal,
    "text": str,
}
"""Python types of values in columns of several kinds."""

MOST_FLOAT = int(sys.float_info.max)
"""Integers beyond this are infinite as floats."""

ALIKE, FEW = 32, 1_000_000
"""Columns of numbers of a type that are taken out of a data frame at once, at least, and numbers of
which a copy does no harm."""


def is_pandas(X, kind):
    """Tell whether X is of a class of pandas, which it cannot be before pandas is imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(X, getattr(pandas, kind))


def pandas_columns(X, kinds=None):
    """Return the columns of a data frame of pandas.

    Making a series takes pandas longer than all else that is done to read one of few rows, so that
    many columns of a type are taken out at once.

    Parameters
    ----------
    X : pandas.DataFrame
        Of any columns.
    kinds : ndarray of dtypes, optional
        The frame's, if they are known.

    Returns
    -------
    list of pandas.Series or ndarray
    """
    taken = {}
    if X.shape[1] >= ALIKE and X.size <= FEW:
        places = {}
        for place, kind in enumerate(X.dtypes.to_numpy() if kinds is None else kinds):
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
        If a value is neither a string nor a number nor like the others.
    ValueError
        If the values have more than two dimensions, or vectors no entries.
    """
    # The usual kinds first: with few rows, questions cost more than answers.
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype in PLAIN_NUMBERS:
        return pa.array(values, from_pandas=True)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        check_utf8(values, name)
        return values
    if isinstance(values, (list, tuple)):
        # Not by way of NumPy: lists of lists would become a matrix, mixed scalars strings.
        return _python_column(values, name)
    kind = values.dtype if is_pandas(values, "Series") else None
    if isinstance(kind, np.dtype):
        # Arrow asks a series for a dozen attributes.
        if kind in PLAIN_NUMBERS:
            return pa.array(values.to_numpy(), from_pandas=True)
        if kind.kind == "O":
            return _python_column(values.to_numpy(), name)
    try:
        if kind is not None:
            if type(kind).__name__ in BY_PARTS:
                return _series_by_parts(values, kind, name)
            array = pa.array(values, from_pandas=True)
            if type(kind).__name__ == "ArrowDtype":
                check_utf8(array, name)
            return array
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            return pa.chunked_array(values)
        if is_sparse(values):
            return sparse_rows(values)
    except UNREADABLE:
        if hasattr(values, "sparse"):
            return column_of(values.sparse.to_dense(), name)
        if type(values).__module__.startswith("polars."):
            # Of a type that neither Arrow nor NumPy has.
            return _python_column(values.to_list(), name)
    return _array_column(values, name)


def _array_column(values, name):
    """Read an array, or whatever NumPy makes one of, in which each row may be a vector."""
    mask = np.ma.getmaskarray(values).reshape(-1) if np.ma.isMaskedArray(values) else None
    array = np.asarray(values)
    if array.ndim not in (1, 2):
        raise ValueError(f"column {name!r} must be 1-D or 2-D, got {array.ndim} dimensions")
    if array.dtype.names is not None:
        raise TypeError(
            f"column {name!r} is an array of records with the fields {list(array.dtype.names)}; "
            "give each of them as a column of its own"
        )
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
    if array.dtype == object and array.ndim == 1:
        return _python_column(array if mask is None else np.where(mask, None, array), name)
    if array.dtype == object:
        # Arrow reads objects of one dimension only.
        present = array if mask is None else np.where(mask.reshape(array.shape), None, array)
        return _python_column(present.tolist(), name)
    try:
        return pa.array(array, mask=mask, from_pandas=True)
    except UNLIKE:
        return _mixed_column(array, name)


def _series_by_parts(values, kind, name):
    """Return a series of categories, of intervals, or of times with a zone, as an Arrow array.

    By itself, Arrow reads an attribute of these that pandas warns of, as it is to change.
    """
    if type(kind).__name__ == "IntervalDtype":
        return _intervals(values, kind, name)
    if type(kind).__name__ == "DatetimeTZDtype":
        moments = values.dt.tz_convert(None).to_numpy()
        return pa.array(moments, pa.timestamp(kind.unit, pa.lib.tzinfo_to_string(kind.tz)))
    if kind.categories.dtype != np.object_ and type(kind.categories.dtype).__name__ not in BY_PARTS:
        return pa.array(values, from_pandas=True)
    codes = values.cat.codes.to_numpy()
    names = _one_array(column_of(kind.categories.to_series(), name))
    codes = pa.array(codes, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(codes, names, ordered=bool(kind.ordered))


def _intervals(values, kind, name):
    try:
        return pa.array(values, from_pandas=True)
    except TypeError as error:
        # pandas 2 converts none of times with a zone.
        raise ValueError(
            f"column {name!r}: this version of pandas does not convert {kind} to Arrow; give the "
            "intervals as strings, or update pandas to 3.0"
        ) from error


def _one_array(column):
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _python_column(values, name, rows=None):
    """Read Python objects as Arrow does, or better where it would read something wrong.

    Parameters
    ----------
    values : list, tuple or ndarray of object
        Scalars, lists of them, or dictionaries.
    name : str
        Of the column, for messages.
    rows : ndarray of int, optional
        Which rows the values are parts of, if they are items of lists or fields.

    Returns
    -------
    pyarrow.Array or pyarrow.ChunkedArray

    Raises
    ------
    TypeError
        If values are unlike one another.

    Notes
    -----
    Arrow reads numbers among dates as days since 1970, cuts times after a date to days, nanoseconds
    to microseconds, and ignores that some times have a time zone and others not; dates of NumPy
    among its other scalars end the process. Columns with such values, found by their types, are
    taken apart, so that there is one reading of dates, enumerations and UUIDs, within lists and
    dictionaries too. Most columns are read without a look at more than the first value.
    """
    try:
        first = _first_present(values)
        if type(first) in DECISIVE:
            return pa.array(values, from_pandas=True)
        if type(first) in (list, tuple) and type(_first_present(first)) is float:
            return pa.array(values, pa.list_(pa.float64()), from_pandas=True)
    except UnicodeEncodeError:
        raise
    except UNLIKE:
        pass
    if any(map(_is_special, _kinds(values))):
        return _special_column(values, name, rows)
    return _arrow_column(values, name, rows)


def _first_present(values):
    """Return the first value that is neither None nor NaN, or None."""
    return next((v for v in values if v is not None and (type(v) is not float or v == v)), None)


def _kinds(values):
    """Return the types of Python values, and of what they hold."""
    kinds = set(map(type, values))
    if any(map(_shape, kinds)):
        kinds |= _kinds(list(chain.from_iterable(map(_items, values))))
    if np.ndarray in kinds:
        held = {value.dtype.kind for value in values if type(value) is np.ndarray}
        if "M" in held and len(held | {kind.__name__ for kind in kinds} - MISSING) > 2:
            # Only among other values are arrays of dates taken apart.
            kinds.add(np.datetime64)
    return kinds


def _items(value):
    """Return the Python objects that a value holds."""
    if isinstance(value, np.ndarray):
        return value.ravel() if value.dtype == object else ()
    if isinstance(value, (list, tuple)):
        return value
    return value.values() if isinstance(value, dict) else ()


def _shape(kind):
    return "list" if issubclass(kind, LISTS) else "dict" if issubclass(kind, dict) else ""


def _is_special(kind):
    special = _is_date(kind) or _is_name(kind) or _is_interval(kind)
    return special or issubclass(kind, np.timedelta64)


def _is_interval(kind):
    return kind.__name__ == "Interval"


def _is_duration(kind):
    return issubclass(kind, (dt.timedelta, np.timedelta64))


def _is_date(kind):
    # NaT, which is a date-time by its class, is how pandas writes that any value is missing.
    name = kind.__name__
    return name == "Period" or (issubclass(kind, (dt.date, np.datetime64)) and name != "NaTType")


def _is_name(kind):
    """Tell whether values of a type are categories by another name than Arrow reads."""
    return issubclass(kind, UUID) or (
        issubclass(kind, Enum) and not issubclass(kind, (int, float, str))
    )


def _name_of(value):
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name
    return str(value) if isinstance(value, UUID) else value


def _is_missing(value):
    return type(value).__name__ in MISSING or (isinstance(value, float) and value != value)


def _arrow_column(values, name, rows):
    """Read Python objects as Arrow does, or scalars of several types."""
    try:
        return pa.array(values, from_pandas=True)
    except UnicodeEncodeError:
        raise
    except UNLIKE:
        array = _object_array(values)
    if rows is None:
        return _mixed_column(array, name)
    place = first_unlike(array)
    raise TypeError(
        f"column {name!r} holds a {type(array[place]).__name__} ({shortened(array[place])}) in "
        f"row {rows[place]}, which is unlike the values before it; give values of one type"
    )


def _special_column(values, name, rows):
    """Read values of which some, or what some hold, Arrow would not read as they are meant."""
    given = np.arange(len(values)) if rows is None else rows
    present = ~np.fromiter(map(_is_missing, values), dtype=bool, count=len(values))
    places = np.flatnonzero(present)
    found = [values[place] for place in places.tolist()]
    kinds = set(map(type, found))
    shape = _shape(type(found[0]))
    if any(_shape(kind) != shape for kind in kinds):
        raise _unlike(name, found, given[places], lambda kind: _shape(kind) == shape)
    if shape == "list":
        lengths = np.zeros(len(values), dtype=np.int64)
        lengths[places] = list(map(len, found))
        items = list(chain.from_iterable(found))
        flat = _one_array(_python_column(items, name, np.repeat(given, lengths)))
        offsets = pa.array(np.append(0, np.cumsum(lengths)))
        return pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(~present))
    if shape == "dict":
        filled = [value if here else {} for value, here in zip(values, present, strict=True)]
        fields = {
            str(key): [value.get(key) for value in filled]
            for key in dict.fromkeys(chain.from_iterable(found))
        }
        arrays = [
            _one_array(_python_column(column, f"{name}.{field}", given))
            for field, column in fields.items()
        ]
        return pa.StructArray.from_arrays(arrays, list(fields), mask=pa.array(~present))
    if any(map(_is_date, kinds)):
        if not all(map(_is_date, kinds)):
            raise _unlike(name, found, given[places], _is_date)
        return _dates(found, kinds, name, given, places)
    if any(map(_is_duration, kinds)):
        if not all(map(_is_duration, kinds)):
            raise _unlike(name, found, given[places], _is_duration)
        return _durations(values, name, given)
    array = _object_array(values)
    if all(map(_is_interval, kinds)):
        import pandas as pd

        array[~present] = None
        return column_of(pd.Series(pd.arrays.IntervalArray(array)), name)
    array[places] = list(map(_name_of, found))
    return _arrow_column(array, name, rows)


def _unlike(name, values, rows, test):
    """Return the error about the first value whose type passes a test and the first of another."""
    passed = [test(type(value)) for value in values]
    parts = [
        f"{shortened(values[place])} in row {rows[place]}"
        for place in (passed.index(True), passed.index(False))
    ]
    return TypeError(f"column {name!r} holds {' and '.join(parts)}; give values of one type")


def _dates(found, kinds, name, rows, places):
    """Read dates and times of Python, NumPy and pandas, and periods by their beginnings.

    Parameters
    ----------
    found : list
        Values that are not None.
    kinds : set of type
        Their types.
    name : str
        Of the column.
    rows : ndarray of int
        Of all values, missing ones too.
    places : ndarray of int
        Places of those found among all.
    """
    # NaT of NumPy differs from itself.
    moments = [pair for pair in zip(places.tolist(), found, strict=True) if pair[1] == pair[1]]
    if not moments:
        return pa.nulls(len(rows))
    zoned = [getattr(value, "tzinfo", None) is not None for _, value in moments]
    if len(set(zoned)) > 1:
        place, value = moments[zoned.index(not zoned[0])]
        own, others = ("without", "with") if zoned[0] else ("with", "without")
        raise TypeError(
            f"column {name!r} holds {shortened(value)} in row {rows[place]}, a time {own} a time "
            f"zone, among times {others} one; give all of them a time zone or none"
        )
    if zoned[0]:
        _check_one_zone(moments, name, rows)
    values = [None] * len(rows)
    for place, value in moments:
        values[place] = value
    if kinds in ({dt.date}, {dt.datetime}):
        return pa.array(values)
    import pandas as pd

    zone = getattr(moments[0][1], "tzinfo", None)
    finer = False
    try:
        for place, value in moments:
            stamp = pd.Timestamp(getattr(value, "start_time", value))
            finer = finer or stamp.nanosecond != 0
            values[place] = stamp if zone is None else stamp.tz_convert(zone)
        unit = "ns" if finer else "us"
        for place, _ in moments:
            values[place] = values[place].as_unit(unit)
    except NO_TIMES as error:
        raise TypeError(
            f"column {name!r} holds dates that cannot be read, the first of them in row "
            f"{rows[place]}: {error}"
        ) from error
    return column_of(pd.Series(pd.DatetimeIndex(values).as_unit(unit)), name)


def _check_one_zone(moments, name, rows):
    """Raise ``TypeError`` for times of several zones, whose wall clocks no column can hold."""
    first, zone = moments[0][0], moments[0][1].tzinfo
    for index, value in moments:
        if value.tzinfo is not zone and str(value.tzinfo) != str(zone):
            raise TypeError(
                f"column {name!r} holds times in several time zones, {zone} in row {rows[first]} "
                f"and {value.tzinfo} in row {rows[index]}; convert all of them to one, for "
                "example with pandas.to_datetime(..., utc=True)"
            )


def _durations(values, name, rows):
    """Read durations of Python, NumPy and pandas; years and months have NumPy's mean lengths."""
    import pandas as pd

    array = _object_array(values)
    for place, value in enumerate(values):
        if isinstance(value, np.timedelta64) and np.datetime_data(value.dtype)[0] in ("Y", "M"):
            array[place] = value.astype("m8[s]")
    try:
        return column_of(pd.Series(pd.to_timedelta(array)), name)
    except NO_TIMES as error:
        row = rows[first_unlike(array, NO_TIMES, pd.to_timedelta)]
        raise TypeError(
            f"column {name!r} holds durations that cannot be read, such as that in row {row}: "
            f"{error}"
        ) from error


def _object_array(values):
    """Return Python values as an array of objects, whatever these are."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def _mixed_column(array, name):
    """Read a column of unlike scalars: as numbers if all are, else as strings.

    A value has the spelling that it has as a category in a column of its own type, so that a row
    means the same alone and among others.
    """
    import pandas as pd

    present = np.flatnonzero(pd.Series(array, dtype=object).notna())
    kinds = np.array([_kind_of(value) for value in array[present]], dtype=object)
    found = set(kinds)
    if found == {"integer"}:
        return _large_integers(array, present, name)
    if found <= {"integer", "float", "decimal"}:
        return _as_floats(array, present)
    unlike = np.flatnonzero(~np.isin(kinds, list(SPELLED)))
    if len(unlike):
        row = int(present[unlike[0]])
        hint = ""
        if isinstance(array[row], LISTS):
            array, emptied = _without_empty_arrays(array)
            if emptied:
                return column_of(array, name)
            row = first_unlike(array)
            hint = ", or lists if all are lists of items of one type"
        elif all(isinstance(value, dict) for value in array[present]):
            row = first_unlike(array)
            hint = ", or dictionaries if all are, with fields of one type"
        raise TypeError(
            f"column {name!r} holds a {type(array[row]).__name__} ({shortened(array[row])}) in row "
            f"{row}; each value given as an argument must be a string or a number{hint}"
        )
    texts = np.full(len(array), None, dtype=object)
    for kind in found:
        rows = present[kinds == kind]
        texts[rows] = SPELLED[kind](array[rows])
    return pa.array(texts, type=pa.string())


def _kind_of(value):
    """Return what a value that is not missing is, for columns of several kinds."""
    if isinstance(value, np.timedelta64):
        # An integer by its class.
        return "other"
    for kind, types in KINDS.items():
        if isinstance(value, types):
            return kind
    return "other"


def _as_floats(array, present):
    numbers = np.full(len(array), np.nan)
    numbers[present] = array[present].astype(np.float64)
    return pa.array(numbers, from_pandas=True)


def _large_integers(array, present, name):
    """Read integers, of which some are beyond 64 bits with a sign, without loss of digits."""
    values = [int(value) for value in array[present]]
    if min(values) >= 0 and max(values) < 2**64:
        numbers = np.zeros(len(array), dtype=np.uint64)
        numbers[present] = values
        return pa.array(numbers, mask=~np.isin(np.arange(len(array)), present))
    for row, value in zip(present, values, strict=True):
        if not _is_float(value):
            raise TypeError(
                f"column {name!r} holds the integer {shortened(value)} in row {row}, of which 64 "
                "bits and double precision would lose digits; give the column as floats if these "
                "are numbers, or as strings if they are names"
            )
    return _as_floats(array, present)


def _spelled_integers(values):
    """Return integers as strings, as the columns are spelled that they have on their own."""
    return [
        str(int(value))
        if -(2**63) <= value < 2**64 or not _is_float(int(value))
        else _spelled_floats(np.array([value]))[0]
        for value in values
    ]


def _is_float(value):
    return abs(value) <= MOST_FLOAT and int(float(value)) == value


def _spelled_floats(values):
    """Return floats as strings, as categories are spelled."""
    numbers = pa.array(values.astype(np.float64))
    return category_keys(numbers).dictionary_decode().to_numpy(zero_copy_only=False)


def _spelled_decimals(values):
    """Return decimals as strings, as categories are spelled."""
    texts = _spelled_floats(values)
    return [exact_text(value) or text for value, text in zip(values, texts, strict=True)]


SPELLED = {
    "boolean": lambda values: [str(bool(value)) for value in values],
    "integer": _spelled_integers,
    "float": _spelled_floats,
    "decimal": _spelled_decimals,
    "text": lambda values: [str(value) for value in values],
}
"""How values of each kind are written in a column of strings."""


def _without_empty_arrays(array):
    """Replace arrays without items, whose type says nothing, by empty lists, if there are any."""
    empty = [isinstance(value, np.ndarray) and value.size == 0 for value in array]
    if any(empty):
        array = array.copy()
        for row in np.flatnonzero(empty):
            array[row] = []
    return array, any(empty)


def first_unlike(array, errors=UNLIKE, read=None):
    """Return the first row whose value cannot be read together with those before it.

    Parameters
    ----------
    array : ndarray of object
        Values that cannot be read.
    errors : tuple of type
        What is raised then.
    read : callable, optional
        What reads them, Arrow by default.
    """
    read = read or (lambda values: pa.array(values, from_pandas=True))
    readable, unreadable = 0, len(array)
    while unreadable - readable > 1:
        middle = (readable + unreadable) // 2
        try:
            read(array[:middle])
        except errors:
            unreadable = middle
        else:
            readable = middle
    return readable


# ---------------------------------------------------------------------- text


def check_utf8(column, name):
    """Raise ``ValueError`` if a column of Arrow holds text that is not UTF-8."""
    if not _holds_text(column.type) or _is_utf8(column):
        return
    valid, invalid = 0, len(column)
    while invalid - valid > 1:
        middle = (valid + invalid) // 2
        if _is_utf8(column.slice(valid, middle - valid)):
            valid = middle
        else:
            invalid = middle
    raise ValueError(
        f"column {name!r} holds text in row {valid} that is not valid UTF-8; decode it with its "
        "own encoding, or with errors='replace'"
    )


def _holds_text(kind):
    """Tell whether values of a type are texts, or hold texts that are checked."""
    if kind.id in PLAIN or pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
        value = getattr(kind, "value_type", kind)
        return any(
            is_text(value)
            for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        )
    if pa.types.is_struct(kind):
        return any(_holds_text(field.type) for field in kind)
    return _is_list(kind) and _holds_text(kind.value_type)


def _is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _decoded(column):
    """Return categories that are text as text; Arrow takes none from a dictionary of views."""
    if not pa.types.is_string_view(column.type.value_type):
        return column.cast(column.type.value_type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    texts = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()))
        for chunk in chunks
    ]
    return pa.chunked_array([text.dictionary_decode() for text in texts], pa.large_string())


def _is_utf8(column):
    kind = column.type
    if pa.types.is_struct(kind):
        return all(_is_utf8(part) for part in column.flatten() if _holds_text(part.type))
    if _is_list(kind):
        return _is_utf8(pc.list_flatten(column))
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Categories that no row has may be what is wrong.
        return pa.types.is_dictionary(kind) and _is_utf8(_decoded(column))
    return True
