"""Cast one column, convert it to floats, or sample its values."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import shortened
from sk_easytensor.data.keys import TEXT, category_keys, value_family
from sk_easytensor.data.type_names import in_words, type_name

__all__ = [
    "RowError",
    "RowTypeError",
    "cast_column",
    "in_words",
    "row_errors_from",
    "sample_values",
    "show_value",
    "to_float64",
    "type_name",
]


CAST_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)

TEXTS = (pa.string(), pa.large_string())
"""Text types; numbers and dates are cast to them as :func:`category_keys` writes them."""


class RowError(ValueError):
    """Error about a row that cannot be read.

    A block reads a chunk of a table and counts rows from its beginning; :func:`row_errors_from`
    converts the number to that of the row in the table.

    Parameters
    ----------
    message : str
        Message in which ``{row}`` stands for the number of the row.
    row : int
        Number of the row in the chunk, from 0.
    """

    def __init__(self, message, row):
        super().__init__(message, row)
        self.message = message
        self.row = row

    def __str__(self):
        return self.message.replace("{row}", str(self.row))

    def __repr__(self):
        return f"{type(self).__name__}({str(self)!r})"


class RowTypeError(RowError, TypeError):
    """Error about a row whose value is of a type that cannot be read."""


@contextmanager
def row_errors_from(first):
    """Convert row numbers of a chunk to those of the table in errors within the context.

    Parameters
    ----------
    first : int
        Number of the first row of the chunk in the table.
    """
    try:
        yield
    except RowError as error:
        raise type(error)(error.message, int(first + error.row)) from None


def show_value(scalar):
    """Return the value of an Arrow scalar as a string of at most 60 characters.

    Some values have no counterpart in Python, such as very long durations and text that is not
    valid UTF-8.
    """
    try:
        return shortened(scalar.as_py())
    except (OverflowError, ValueError):
        if hasattr(scalar, "as_buffer"):
            return shortened(scalar.as_buffer().to_pybytes())
        value = getattr(scalar, "value", None)
        kind = type_name(scalar.type)
        return kind if value is None else shortened(f"{value} ({kind})", str)


def cast_column(column, name, target, *, block, rows=True):
    """Cast a column, or raise an error that names the column and the reason.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column to cast.
    name : str
        Name of the column, for error messages.
    target : pyarrow.DataType
        Type to cast to.
    block : str
        Class name of the block that reads the column, for error messages.
    rows : bool, default=True
        Whether each value belongs to one row, whose number is in the error message.

    Returns
    -------
    pyarrow.ChunkedArray

    Raises
    ------
    TypeError
        If the type of the column cannot be cast to `target`.
    RowTypeError
        If a value cannot be cast to `target`.
    """
    if column.type.equals(target):
        return column
    source = column.type
    if pa.types.is_dictionary(source):
        column = column.cast(source.value_type)
    try:
        if target in TEXTS and value_family(column.type) not in (None, TEXT):
            column = _as_texts(column)
        return _cast(column, target)
    except CAST_ERRORS as error:
        source_words, target_words = in_words(source), in_words(target)
        message = f"column {name!r} holds {source_words} where {block} was fitted to {target_words}"
        row = _first_unlike(column, target)
        if row is None:
            raise TypeError(f"{message}; convert it to {target_words}") from error
        value = show_value(column[row])
        if not rows:
            raise TypeError(f"{message}: {value}") from error
        raise RowTypeError(f"{message}: {value} in row {{row}}", row) from error


def _cast(column, target):
    # Bytes that are not valid text are refused; numbers are rounded to the target type.
    return column.cast(target, safe=target in TEXTS)


def _first_unlike(column, target):
    """Return the first row whose value cannot be cast, or None if no value of the type can."""
    try:
        column.slice(0, 0).cast(target)
    except CAST_ERRORS:
        return None
    readable, unreadable = 0, len(column)
    while unreadable - readable > 1:
        middle = (readable + unreadable) // 2
        try:
            _cast(column.slice(readable, middle - readable), target)
        except CAST_ERRORS:
            unreadable = middle
        else:
            readable = middle
    return readable


def _as_texts(column):
    """Convert numbers and dates to the texts that they have in columns of mixed Python objects."""
    if pa.types.is_boolean(column.type):
        return pc.if_else(column, "True", "False")
    return pa.chunked_array([category_keys(column).dictionary_decode()])


def to_float64(column, name, *, block):
    """Return a numeric, boolean, duration or time column as a float64 array, NaN for missing.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column to convert.
    name : str
        Name of the column, for error messages.
    block : str
        Class name of the block that reads the column, for error messages.

    Returns
    -------
    numpy.ndarray of shape (n,), float64
        Numbers; durations and times of day in seconds.

    Raises
    ------
    TypeError
        If the column or one of its values is not numeric.
    """
    kind = column.type
    if kind.equals(pa.float64()):
        return _numpy(column)
    if pa.types.is_duration(kind):
        per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return _numpy(column.cast(pa.int64()).cast(pa.float64(), safe=False)) / per_second
    if pa.types.is_time(kind):
        microseconds = column.cast(pa.time64("us")).cast(pa.int64())
        return _numpy(microseconds.cast(pa.float64(), safe=False)) / 1e6
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return _numpy(cast_column(column, name, pa.float64(), block=block))


def _numpy(column):
    if column.null_count:
        column = pc.fill_null(column, float("nan"))
    return column.to_numpy()


def sample_values(column, size=1000):
    """Return a sample of the values that are not null, evenly spaced over the rows.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column to sample.
    size : int, default=1000
        Largest number of values.

    Returns
    -------
    pyarrow.ChunkedArray
    """
    present = np.flatnonzero(column.is_valid().to_numpy())
    if len(present) > size:
        present = present[np.linspace(0, len(present) - 1, size).astype(np.int64)]
    return column.take(pa.array(present))
