"""The values of a column, as users have them, become an Arrow array."""

from __future__ import annotations

import datetime as dt
import decimal
import sys

import numpy as np
import pyarrow as pa

from sk_easytensor.keys import category_keys
from sk_easytensor.sparse import is_sparse, sparse_rows

__all__ = ["UNREADABLE", "column_of", "is_pandas", "pandas_columns"]

UNREADABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for Python values that fit none of its types."""

CALENDAR_UNITS = ("Y", "M", "W", "D", "h", "m")
"""Units of NumPy's dates and durations that Arrow does not have, or (days) not for both."""

PLAIN_NUMBERS = {np.dtype(character) for character in "bhilqBHILQefd"}
"""Types of arrays that become Arrow arrays as they are."""

LISTS = (list, tuple, np.ndarray)

TIMES = frozenset(each.id for each in (pa.date32(), pa.date64(), pa.timestamp("s")))
NESTED = frozenset(each.id for each in (pa.list_(pa.null()), pa.large_list(pa.null())))
"""Types of columns, and of lists, that are looked at again if they are read from objects."""

KINDS = {
    "boolean": (bool, np.bool_),
    "integer": (int, np.integer),
    "float": (float, np.floating),
    "decimal": decimal.Decimal,
    "text": str,
    "date": dt.date,
    "datetime64": np.datetime64,
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
        If the values have more than two dimensions.
    """
    # The usual kinds first: with few rows, questions cost more than answers.
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype in PLAIN_NUMBERS:
        return pa.array(values, from_pandas=True)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    try:
        if is_pandas(values, "Series"):
            # Arrow asks a series for a dozen attributes.
            plain = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf"
            if plain:
                return pa.array(values.to_numpy(), from_pandas=True)
            if values.dtype == object:
                return _python_column(values.to_numpy(), name)
            return pa.array(values, from_pandas=True)
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            return pa.chunked_array(values)
        if is_sparse(values):
            return sparse_rows(values)
    except UNREADABLE:
        if hasattr(values, "sparse"):
            return column_of(values.sparse.to_dense(), name)
    if isinstance(values, (list, tuple)):
        # Not by way of NumPy: lists of lists would become a matrix, mixed scalars strings.
        try:
            return _python_column(values, name)
        except UNREADABLE:
            array = np.empty(len(values), dtype=object)
            for row, value in enumerate(values):
                array[row] = value
            return _mixed_column(array, name)
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
    if array.ndim == 2 and array.dtype != object:
        flat = pa.array(np.ascontiguousarray(array).reshape(-1), mask=mask, from_pandas=True)
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    try:
        if array.dtype == object and array.ndim == 1:
            return _python_column(array if mask is None else np.where(mask, None, array), name)
        return pa.array(array, mask=mask, from_pandas=True)
    except UNREADABLE:
        return _mixed_column(array, name)


def _python_column(values, name):
    """Read Python objects as Arrow does, unless Arrow would read them by the first of them.

    Raises
    ------
    TypeError
        If times with and without a time zone are mixed.
    """
    try:
        array = pa.array(values, from_pandas=True)
    except UNREADABLE:
        raise
    except TypeError as error:
        # Days of NumPy among Python objects: Arrow takes them for integers.
        raise pa.ArrowTypeError(str(error)) from error
    kind = array.type
    if kind.id in TIMES:
        return _calendar_column(values, name, array)
    if kind.id in NESTED and kind.value_type.id in TIMES:
        items = [
            (row, item)
            for row, found in enumerate(values)
            if isinstance(found, LISTS)
            for item in found
        ]
        _check_zones(_moments(items), name)
    return array


def _moments(rows):
    """Return those of pairs of a row and a value that hold a date or time of Python."""
    # NaT is a time too, which differs from itself.
    return [pair for pair in rows if isinstance(pair[1], dt.date) and pair[1] == pair[1]]


def _check_zones(moments, name):
    """Raise ``TypeError`` naming the first row whose time has a zone and others not, or not."""
    zoned = [getattr(value, "tzinfo", None) is not None for _, value in moments]
    if len(set(zoned)) < 2:
        return
    row, value = moments[zoned.index(not zoned[0])]
    own, others = ("without", "with") if zoned[0] else ("with", "without")
    raise TypeError(
        f"column {name!r} holds {_shown(value)} in row {row}, a time {own} a time zone, among "
        f"times {others} one; give all of them a time zone or none"
    )


def _calendar_column(values, name, array=None):
    """Read dates and times of Python: Arrow cuts times after a date to days, and nanoseconds."""
    moments = _moments(enumerate(values))
    _check_zones(moments, name)
    unlike = len({isinstance(value, dt.datetime) for _, value in moments}) > 1
    finer = any(getattr(value, "nanosecond", 0) for _, value in moments)
    if array is not None and not unlike and not finer:
        return array
    import pandas as pd

    stamps = [pd.NaT] * len(values)
    zone = getattr(moments[0][1], "tzinfo", None)
    for row, value in moments:
        stamp = pd.Timestamp(value)
        stamps[row] = stamp if zone is None else stamp.tz_convert(zone)
    times = pd.DatetimeIndex(stamps).as_unit("ns" if finer else "us")
    return pa.array(times, from_pandas=True)


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
    if found <= {"date", "datetime64", "period"}:
        return _mixed_times(array, present, name)
    unlike = np.flatnonzero(~np.isin(kinds, list(SPELLED)))
    if len(unlike):
        row = int(present[unlike[0]])
        hint = ""
        if isinstance(array[row], LISTS):
            array, emptied = _without_empty_arrays(array)
            if emptied:
                return column_of(array, name)
            row = _first_unlike(array)
            hint = ", or lists if all are lists of items of one type"
        raise TypeError(
            f"column {name!r} holds a {type(array[row]).__name__} ({_shown(array[row])}) in row "
            f"{row}; each value given as an argument must be a string or a number{hint}"
        )
    texts = np.full(len(array), None, dtype=object)
    for kind in found:
        rows = present[kinds == kind]
        texts[rows] = SPELLED[kind](array[rows])
    return pa.array(texts, type=pa.string())


def _kind_of(value):
    """Return what a value that is not missing is, for columns of several kinds."""
    for kind, types in KINDS.items():
        if isinstance(value, types):
            return kind
    return "period" if type(value).__name__ == "Period" else "other"


def _mixed_times(array, present, name):
    """Read dates and times of several Python types, and periods, by their beginnings."""
    import pandas as pd

    times = np.full(len(array), None, dtype=object)
    for row in present:
        value = array[row]
        if not isinstance(value, dt.date):
            value = getattr(value, "start_time", value)
            value = pd.Timestamp(value)
        times[row] = value
    return _calendar_column(times, name)


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
                f"column {name!r} holds the integer {_shown(value)} in row {row}, of which 64 bits "
                "and double precision would lose digits; give the column as floats if these are "
                "numbers, or as strings if they are names"
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


SPELLED = {
    "boolean": lambda values: [str(bool(value)) for value in values],
    "integer": _spelled_integers,
    "float": _spelled_floats,
    "decimal": _spelled_floats,
    "text": lambda values: [str(value) for value in values],
}
"""How values of each kind are written in a column of strings."""


def _shown(value, longest=60):
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _without_empty_arrays(array):
    """Replace arrays without items, whose type says nothing, by empty lists, if there are any."""
    empty = [isinstance(value, np.ndarray) and value.size == 0 for value in array]
    if any(empty):
        array = array.copy()
        for row in np.flatnonzero(empty):
            array[row] = []
    return array, any(empty)


def _first_unlike(array):
    """Return the first row whose value fits no type that those before it have."""
    readable, unreadable = 0, len(array)
    while unreadable - readable > 1:
        middle = (readable + unreadable) // 2
        try:
            pa.array(array[:middle], from_pandas=True)
        except UNREADABLE:
            unreadable = middle
        else:
            readable = middle
    return readable
