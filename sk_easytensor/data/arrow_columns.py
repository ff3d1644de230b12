"""Convert the values of a column from Python, NumPy, pandas or polars to an Arrow array."""

from __future__ import annotations

import datetime as dt
import decimal
import sys
from enum import Enum
from itertools import chain
from uuid import UUID

import numpy as np
import pyarrow as pa

from sk_easytensor._utils.validation import shortened
from sk_easytensor.data.columns import CAST_ERRORS
from sk_easytensor.data.keys import SPELLED, exact_text, is_float
from sk_easytensor.data.sparse import is_sparse, sparse_rows
from sk_easytensor.data.utf8 import check_utf8

__all__ = [
    "ARROW_ERRORS",
    "LISTS",
    "arrow_column",
    "first_incompatible",
    "is_pandas",
    "pandas_columns",
]


ARROW_ERRORS = (*CAST_ERRORS, OverflowError)
"""Errors that Arrow raises for Python values that fit none of its types."""

MIXED_TYPE_ERRORS = (*ARROW_ERRORS, TypeError, ValueError)
"""Errors that Arrow raises for Python values of several types."""

TIME_ERRORS = (TypeError, ValueError, OverflowError)
"""Errors that pandas raises for values that are not dates or durations of any of its units."""

CALENDAR_UNITS = ("Y", "M", "W", "D", "h", "m", "generic")
"""Units of NumPy's dates and durations that Arrow does not have, or (days) not for both. Dates
without a unit are all missing."""

UNKNOWN_LENGTHS = {
    "Y": "years, which differ in length",
    "M": "months, which differ in length",
    "generic": "units that are not given",
}
"""Units of NumPy's durations that say no length. pandas counts years and months from 1970 on, and
NumPy takes a mean, so that a column would depend on what holds it."""

PLAIN_NUMBERS = {np.dtype(character) for character in "bhilqBHILQefd"}
"""Types of arrays that become Arrow arrays as they are."""

LISTS = (list, tuple, np.ndarray)

DECISIVE_TYPES = {str, bool}
"""Python types that fix the type of an Arrow array: values of another type are refused."""

MISREAD_TYPES = (np.uint64, np.float16, np.longdouble)
"""Types of numbers that Arrow misreads among numbers of other types: 2**64 - 1 as -1, 0.5 as 0."""

MISSING = {"NoneType", "NAType", "NaTType"}
"""Names of the Python types of missing values."""

CONVERTED_BY_PARTS = {"CategoricalDtype", "DatetimeTZDtype", "IntervalDtype"}
"""pandas dtypes whose parts (codes, times) are converted to Arrow separately."""

KINDS = {
    "boolean": (bool, np.bool_),
    "integer": (int, np.integer),
    "float": (float, np.floating),
    "decimal": decimal.Decimal,
    "text": str,
}
"""Python types of each kind of value in a column of several types."""

MIN_COLUMNS_OF_DTYPE, MAX_COPIED_VALUES = 32, 1_000_000
"""Fewest numeric columns of one dtype that are extracted from a data frame together, and most
values that are copied for it."""


def is_pandas(X, kind):
    """Return whether `X` is an instance of a pandas class, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(X, getattr(pandas, kind))


def pandas_columns(X, kinds=None):
    """Return the columns of a data frame of pandas.

    Creating a pandas series takes longer than every other step of reading a few rows, so many
    numeric columns of one dtype are extracted together.

    Parameters
    ----------
    X : pandas.DataFrame
        Data frame with columns of any dtype.
    kinds : ndarray of dtypes, optional
        Dtypes of the columns, if they are known already.

    Returns
    -------
    list of pandas.Series or ndarray
        One entry for each column, in order.
    """
    columns = {}
    if X.shape[1] >= MIN_COLUMNS_OF_DTYPE and X.size <= MAX_COPIED_VALUES:
        positions = {}
        for position, kind in enumerate(X.dtypes.to_numpy() if kinds is None else kinds):
            if isinstance(kind, np.dtype) and kind in PLAIN_NUMBERS:
                positions.setdefault(kind, []).append(position)
        for same_dtype in positions.values():
            if len(same_dtype) >= MIN_COLUMNS_OF_DTYPE:
                columns.update(zip(same_dtype, X.iloc[:, same_dtype].to_numpy().T, strict=True))
    if not columns:
        return [column for _, column in X.items()]
    rest = [position for position in range(X.shape[1]) if position not in columns]
    if rest:
        series = (column for _, column in X.iloc[:, rest].items())
        columns.update(zip(rest, series, strict=True))
    return [columns[position] for position in range(X.shape[1])]


def arrow_column(values, name):
    """Convert the values of a column to an Arrow array.

    Parameters
    ----------
    values : array-like, pandas.Series, Arrow array or object with Arrow's C interface
        One value for each row.
    name : str
        Name of the column, for error messages.

    Returns
    -------
    pyarrow.Array or pyarrow.ChunkedArray
        The values; NaN of float columns and missing values of pandas are null.

    Raises
    ------
    TypeError
        If values are of types that cannot be combined in one column.
    ValueError
        If the values have more than two dimensions, or are vectors without entries.
    """
    # The usual kinds first: with few rows, type checks cost more than the conversion.
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype in PLAIN_NUMBERS:
        return pa.array(values, from_pandas=True)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        check_utf8(values, name)
        return values
    if isinstance(values, (list, tuple)):
        # Not through NumPy: lists of lists would become a matrix, and mixed scalars strings.
        return _python_column(values, name)
    kind = values.dtype if is_pandas(values, "Series") else None
    if isinstance(kind, np.dtype):
        # Converted from NumPy, because Arrow reads a dozen attributes of a series.
        if kind in PLAIN_NUMBERS:
            return pa.array(values.to_numpy(), from_pandas=True)
        if kind.kind == "O":
            return _python_column(values.to_numpy(), name)
    try:
        if kind is not None:
            if type(kind).__name__ in CONVERTED_BY_PARTS:
                return _series_by_parts(values, kind, name)
            array = pa.array(values, from_pandas=True)
            if type(kind).__name__ == "ArrowDtype":
                check_utf8(array, name)
            return array
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            return pa.chunked_array(values)
        if is_sparse(values):
            return sparse_rows(values)
    except ARROW_ERRORS:
        if hasattr(values, "sparse"):
            return arrow_column(values.sparse.to_dense(), name)
        if type(values).__module__.startswith("polars."):
            # A polars type that neither Arrow nor NumPy has.
            return _python_column(values.to_list(), name)
    return _array_column(values, name)


def _array_column(values, name):
    """Convert an array, or an object that NumPy converts to one; each row may be a vector."""
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
        if array.dtype.kind == "m":
            _check_length(array, name)
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
        # Arrow converts only one-dimensional arrays of objects.
        present = array if mask is None else np.where(mask.reshape(array.shape), None, array)
        return _python_column(present.tolist(), name)
    try:
        return pa.array(array, mask=mask, from_pandas=True)
    except MIXED_TYPE_ERRORS:
        return _mixed_column(array, name)


def _check_length(durations, name, row=None):
    """Raise ``TypeError`` for NumPy's durations in a unit without a length, unless all are NaT."""
    unit = np.datetime_data(durations.dtype)[0]
    if unit not in UNKNOWN_LENGTHS or np.isnat(durations).all():
        return
    row = int(np.argwhere(~np.isnat(durations))[0, 0]) if row is None else row
    raise TypeError(
        f"column {name!r} holds durations in {UNKNOWN_LENGTHS[unit]}, such as that in "
        f"row {row}; convert them, for example with array.astype('timedelta64[D]')"
    )


def _series_by_parts(values, kind, name):
    """Return a series of categories, of intervals, or of times with a zone, as an Arrow array.

    Converting such a series directly reads an attribute for which pandas issues a FutureWarning.
    """
    if type(kind).__name__ == "IntervalDtype":
        return _intervals(values, kind, name)
    if type(kind).__name__ == "DatetimeTZDtype":
        instants = values.dt.tz_convert(None).to_numpy()
        return pa.array(instants, pa.timestamp(kind.unit, pa.lib.tzinfo_to_string(kind.tz)))
    if (
        kind.categories.dtype != np.object_
        and type(kind.categories.dtype).__name__ not in CONVERTED_BY_PARTS
    ):
        return pa.array(values, from_pandas=True)
    codes = values.cat.codes.to_numpy()
    names = _one_array(arrow_column(kind.categories.to_series(), name))
    codes = pa.array(codes, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(codes, names, ordered=bool(kind.ordered))


def _intervals(values, kind, name):
    """Return a series of intervals as an Arrow array."""
    try:
        return pa.array(values, from_pandas=True)
    except TypeError as error:
        # pandas 2 does not convert intervals of times with a time zone.
        raise ValueError(
            f"column {name!r}: this version of pandas does not convert {kind} to Arrow; give the "
            "intervals as strings, or update pandas to 3.0"
        ) from error


def _one_array(column):
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _python_column(values, name, rows=None):
    """Convert Python objects with Arrow, or value by value where Arrow would misread them.

    Parameters
    ----------
    values : list, tuple or ndarray of object
        Scalars, lists of scalars, or dictionaries.
    name : str
        Name of the column, for error messages.
    rows : ndarray of int, optional
        Row of each value, if the values are items of lists or fields of dictionaries.

    Returns
    -------
    pyarrow.Array or pyarrow.ChunkedArray

    Raises
    ------
    TypeError
        If the values are of types that cannot be combined in one column.

    Notes
    -----
    Arrow reads numbers among dates as days since 1970. It truncates times after a date to days, and
    nanoseconds to microseconds. It ignores that some times have a time zone and others not. NumPy
    dates among other NumPy scalars crash the process. Columns with values of such types are
    converted value by value, so that dates, enumerations and UUIDs are read in one way, within
    lists and dictionaries too. For most columns only the type of the first value is inspected.
    """
    try:
        first = _first_present(values)
        if type(first) in DECISIVE_TYPES:
            return pa.array(values, from_pandas=True)
        kinds = _kinds(values)
        if type(first) is float and kinds <= {float, type(None)}:
            return pa.array(values, from_pandas=True)
        floats = float in kinds and kinds <= {type(first), float, type(None)}
        if type(first) in (list, tuple) and floats:
            return pa.array(values, pa.list_(pa.float64()), from_pandas=True)
    except UnicodeEncodeError:
        raise
    except MIXED_TYPE_ERRORS:
        kinds = _kinds(values)
    if any(map(_is_special, kinds)):
        return _special_column(values, name, rows)
    if any(issubclass(kind, MISREAD_TYPES) for kind in kinds) and len(kinds) > 1:
        values = _python_numbers(values)
    return _arrow_column(values, name, rows)


def _python_numbers(values):
    """Return values with Python numbers instead of NumPy's, within lists and dictionaries too."""
    return [_python_number(value) for value in values]


def _python_number(value):
    if isinstance(value, (np.number, np.bool_)) and not isinstance(value, np.timedelta64):
        return float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, dict):
        return {key: _python_number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (
        isinstance(value, np.ndarray) and value.dtype == np.object_
    ):
        return _python_numbers(value)
    return value


def _first_present(values):
    """Return the first value that is neither None nor NaN, or None."""
    return next((v for v in values if v is not None and (type(v) is not float or v == v)), None)


def _kinds(values):
    """Return the types of Python values, and of the items of lists and dictionaries."""
    kinds = set(map(type, values))
    if any(map(_shape, kinds)):
        kinds |= _kinds(list(chain.from_iterable(map(_items, values))))
    if np.ndarray in kinds:
        codes = {value.dtype.kind for value in values if type(value) is np.ndarray}
        if "M" in codes and len(codes | {kind.__name__ for kind in kinds} - MISSING) > 2:
            # Arrays of dates are converted item by item only among values of other types.
            kinds.add(np.datetime64)
    return kinds


def _items(value):
    """Return the Python objects within a list, an array or a dictionary."""
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
    # NaT is a subclass of datetime, but pandas uses it for missing values of any type.
    name = kind.__name__
    return name == "Period" or (issubclass(kind, (dt.date, np.datetime64)) and name != "NaTType")


def _is_name(kind):
    """Return whether values of a type are read as category names: UUIDs and enumerations."""
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
    """Convert Python objects with Arrow, or scalars of several types."""
    try:
        return pa.array(values, from_pandas=True)
    except UnicodeEncodeError:
        raise
    except MIXED_TYPE_ERRORS:
        array = _object_array(values)
    if rows is None:
        return _mixed_column(array, name)
    index = first_incompatible(array)
    raise TypeError(
        f"column {name!r} holds a {type(array[index]).__name__} ({shortened(array[index])}) in "
        f"row {rows[index]}, unlike the values before it; give values of one type"
    )


def _special_column(values, name, rows):
    """Convert values that Arrow would misread: lists, dictionaries, dates, durations and names."""
    value_rows = np.arange(len(values)) if rows is None else rows
    present = ~np.fromiter(map(_is_missing, values), dtype=bool, count=len(values))
    positions = np.flatnonzero(present)
    valid = [values[position] for position in positions.tolist()]
    types = set(map(type, valid))
    shape = _shape(type(valid[0]))
    if any(_shape(kind) != shape for kind in types):
        raise _mixed_types_error(
            name, valid, value_rows[positions], lambda kind: _shape(kind) == shape
        )
    if shape == "list":
        lengths = np.zeros(len(values), dtype=np.int64)
        lengths[positions] = list(map(len, valid))
        items = list(chain.from_iterable(valid))
        flat = _one_array(_python_column(items, name, np.repeat(value_rows, lengths)))
        offsets = pa.array(np.append(0, np.cumsum(lengths)))
        return pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(~present))
    if shape == "dict":
        filled = [value if ok else {} for value, ok in zip(values, present, strict=True)]
        fields = {
            str(key): [value.get(key) for value in filled]
            for key in dict.fromkeys(chain.from_iterable(valid))
        }
        arrays = [
            _one_array(_python_column(column, f"{name}.{field}", value_rows))
            for field, column in fields.items()
        ]
        return pa.StructArray.from_arrays(arrays, list(fields), mask=pa.array(~present))
    if any(map(_is_date, types)):
        if not all(map(_is_date, types)):
            raise _mixed_types_error(name, valid, value_rows[positions], _is_date)
        return _dates(valid, types, name, value_rows, positions)
    if any(map(_is_duration, types)):
        if not all(map(_is_duration, types)):
            raise _mixed_types_error(name, valid, value_rows[positions], _is_duration)
        return _durations(values, name, value_rows)
    array = _object_array(values)
    if all(map(_is_interval, types)):
        import pandas as pd

        array[~present] = None
        return arrow_column(pd.Series(pd.arrays.IntervalArray(array)), name)
    array[positions] = list(map(_name_of, valid))
    return _arrow_column(array, name, rows)


def _mixed_types_error(name, values, rows, test):
    """Return an error that names two values: the first that passes a test, the first that fails."""
    passed = [test(type(value)) for value in values]
    parts = [
        f"{shortened(values[index])} in row {rows[index]}"
        for index in (passed.index(True), passed.index(False))
    ]
    return TypeError(f"column {name!r} holds {' and '.join(parts)}; give values of one type")


def _dates(valid, types, name, rows, indices):
    """Convert dates and times of Python, NumPy and pandas; a period becomes its start time.

    Parameters
    ----------
    valid : list
        Values that are not missing.
    types : set of type
        Types of the values.
    name : str
        Name of the column, for error messages.
    rows : ndarray of int
        Rows of all values, missing ones included.
    indices : ndarray of int
        Indices of the valid values among all values.
    """
    # NaT of NumPy is not equal to itself.
    instants = [pair for pair in zip(indices.tolist(), valid, strict=True) if pair[1] == pair[1]]
    if not instants:
        return pa.nulls(len(rows))
    zoned = [getattr(value, "tzinfo", None) is not None for _, value in instants]
    if len(set(zoned)) > 1:
        index, value = instants[zoned.index(not zoned[0])]
        kind, other = ("without", "with") if zoned[0] else ("with", "without")
        raise TypeError(
            f"column {name!r} holds {shortened(value)} in row {rows[index]}, a time {kind} a time "
            f"zone, among times {other} one; give all of them a time zone or none"
        )
    if zoned[0]:
        _check_one_zone(instants, name, rows)
    values = [None] * len(rows)
    for index, value in instants:
        values[index] = value
    if types in ({dt.date}, {dt.datetime}):
        return pa.array(values)
    import pandas as pd

    zone = getattr(instants[0][1], "tzinfo", None)
    finer = False
    try:
        for index, value in instants:
            stamp = pd.Timestamp(getattr(value, "start_time", value))
            finer = finer or stamp.nanosecond != 0
            values[index] = stamp if zone is None else stamp.tz_convert(zone)
        unit = "ns" if finer else "us"
        for index, _ in instants:
            values[index] = values[index].as_unit(unit)
    except TIME_ERRORS as error:
        raise TypeError(
            f"column {name!r} holds dates that cannot be read, the first of them in row "
            f"{rows[index]}: {error}"
        ) from error
    return arrow_column(pd.Series(pd.DatetimeIndex(values).as_unit(unit)), name)


def _check_one_zone(instants, name, rows):
    """Raise ``TypeError`` for times in several zones, because an Arrow type has only one."""
    first, zone = instants[0][0], instants[0][1].tzinfo
    for index, value in instants:
        if value.tzinfo is not zone and str(value.tzinfo) != str(zone):
            raise TypeError(
                f"column {name!r} holds times in several time zones, {zone} in row {rows[first]} "
                f"and {value.tzinfo} in row {rows[index]}; convert all of them to one, for "
                "example with pandas.to_datetime(..., utc=True)"
            )


def _durations(values, name, rows):
    """Convert durations of Python, NumPy and pandas."""
    import pandas as pd

    array = _object_array(values)
    for position, value in enumerate(values):
        if isinstance(value, np.timedelta64):
            _check_length(value, name, int(rows[position]))
            if np.isnat(value):
                # pandas refuses missing ones of such units, too.
                array[position] = None
    try:
        return arrow_column(pd.Series(pd.to_timedelta(array)), name)
    except TIME_ERRORS as error:
        row = rows[first_incompatible(array, TIME_ERRORS, pd.to_timedelta)]
        raise TypeError(
            f"column {name!r} holds durations that cannot be read, such as that in row {row}: "
            f"{error}"
        ) from error


def _object_array(values):
    """Return Python values as a one-dimensional array of objects, even if they are sequences."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def _mixed_column(array, name):
    """Convert scalars of several types: to numbers if all are numbers, else to strings.

    A value becomes the string that it has as a category in a column of its own type, so that a row
    has the same meaning alone and among other rows.
    """
    present = np.flatnonzero(_is_present(array))
    kinds = np.array([_kind_of(value) for value in array[present]], dtype=object)
    present_kinds = set(kinds)
    if present_kinds == {"integer"}:
        return _large_integers(array, present, name)
    if present_kinds <= {"integer", "float", "decimal"}:
        return _mixed_numbers(array, present, kinds, name)
    unsupported = np.flatnonzero(~np.isin(kinds, list(SPELLED)))
    if len(unsupported):
        row = int(present[unsupported[0]])
        hint = ""
        if isinstance(array[row], LISTS):
            array, replaced = _without_empty_arrays(array)
            if replaced:
                return arrow_column(array, name)
            row = first_incompatible(array)
            hint = ", or lists if all are lists of items of one type"
        elif all(isinstance(value, dict) for value in array[present]):
            row = first_incompatible(array)
            hint = ", or dictionaries if all are, with fields of one type"
        raise TypeError(
            f"column {name!r} holds a {type(array[row]).__name__} ({shortened(array[row])}) in row "
            f"{row}; each value given as an argument must be a string or a number{hint}"
        )
    texts = np.full(len(array), None, dtype=object)
    for kind in present_kinds:
        rows = present[kinds == kind]
        texts[rows] = SPELLED[kind](array[rows])
    return pa.array(texts, type=pa.string())


def _is_present(array):
    """Return whether each of the Python values of an array is not missing."""
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        return pandas.Series(array, dtype=object).notna().to_numpy()
    # Without pandas there are no missing values of its own.
    numbers = (float, np.floating, decimal.Decimal, np.datetime64, np.timedelta64)
    return np.array(
        [not (value is None or (isinstance(value, numbers) and value != value)) for value in array],
        dtype=bool,
    )


def _kind_of(value):
    """Return the kind of a value that is not missing: a key of `KINDS`, or "other"."""
    if isinstance(value, np.timedelta64):
        # A subclass of integers in NumPy.
        return "other"
    for kind, types in KINDS.items():
        if isinstance(value, types):
            return kind
    return "other"


def _mixed_numbers(array, present, kinds, name):
    """Convert numbers of several types: to decimals if there are no floats, else to floats."""
    if "float" not in kinds:
        exact = np.full(len(array), None, dtype=object)
        for row, kind in zip(present, kinds, strict=True):
            exact[row] = array[row] if kind == "decimal" else decimal.Decimal(int(array[row]))
        try:
            return pa.array(exact, from_pandas=True)
        except MIXED_TYPE_ERRORS:
            # Infinite numbers, or more digits than decimals can have.
            pass
    for row, kind in zip(present, kinds, strict=True):
        value = array[row]
        if (kind == "decimal" and exact_text(value)) or (kind == "integer" and not is_float(value)):
            raise TypeError(
                f"column {name!r} holds {shortened(value)} in row {row}, which loses digits in "
                "double precision, the type of columns with floats, infinite numbers or more than "
                "76 digits; give the column as floats if these are numbers, or as strings if they "
                "are names"
            )
    return _as_floats(array, present)


def _as_floats(array, present):
    numbers = np.full(len(array), np.nan)
    numbers[present] = array[present].astype(np.float64)
    return pa.array(numbers, from_pandas=True)


def _large_integers(array, present, name):
    """Convert integers, some of which exceed signed 64 bits, without loss of digits."""
    values = [int(value) for value in array[present]]
    if min(values) >= 0 and max(values) < 2**64:
        numbers = np.zeros(len(array), dtype=np.uint64)
        numbers[present] = values
        return pa.array(numbers, mask=~np.isin(np.arange(len(array)), present))
    for row, value in zip(present, values, strict=True):
        if not is_float(value):
            raise TypeError(
                f"column {name!r} holds the integer {shortened(value)} in row {row}, which loses "
                "digits in 64 bits and in double precision; give the column as floats if these "
                "are numbers, or as strings if they are names"
            )
    return _as_floats(array, present)


def _without_empty_arrays(array):
    """Return the array with empty arrays replaced by empty lists, and whether there were any."""
    empty = [isinstance(value, np.ndarray) and value.size == 0 for value in array]
    if any(empty):
        array = array.copy()
        for row in np.flatnonzero(empty):
            array[row] = []
    return array, any(empty)


def first_incompatible(array, errors=MIXED_TYPE_ERRORS, read=None):
    """Return the first row whose value cannot be converted together with those before it.

    Parameters
    ----------
    array : ndarray of object
        Values that cannot be converted together.
    errors : tuple of type
        Exceptions that `read` raises for such values.
    read : callable, optional
        Function that converts an array of values; by default ``pyarrow.array``.

    Returns
    -------
    int
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
