"""The values of a column, as users have them, become an Arrow array."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa

from sk_easytensor.sparse import is_sparse, sparse_rows

__all__ = ["UNREADABLE", "column_of", "is_pandas", "pandas_columns"]

UNREADABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for Python values that fit none of its types."""

CALENDAR_UNITS = ("Y", "M", "W", "D", "h", "m")
"""Units of NumPy's dates and durations that Arrow does not have, or (days) not for both."""

PLAIN_NUMBERS = {np.dtype(character) for character in "bhilqBHILQefd"}
"""Types of arrays that become Arrow arrays as they are."""

LISTS = (list, tuple, np.ndarray)

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
            return pa.array(values.to_numpy() if plain else values, from_pandas=True)
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
            return pa.array(values, from_pandas=True)
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
        return pa.array(array, mask=mask, from_pandas=True)
    except UNREADABLE:
        return _mixed_column(array, name)


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
            row = _first_unlike(array)
            hint = ", or lists if all are lists of items of one type"
        kind, shown = type(array[row]).__name__, repr(array[row])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
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
