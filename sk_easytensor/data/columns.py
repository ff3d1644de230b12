"""Cast one column, convert it to floats, sample its values, or flatten its lists."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import shortened
from sk_easytensor.data.keys import TEXT, category_keys, value_family
from sk_easytensor.data.type_names import in_words, type_name

__all__ = [
    "FlatLists",
    "RowError",
    "RowTypeError",
    "cast_column",
    "decoded",
    "is_list",
    "list_lengths",
    "read_lists",
    "read_vectors",
    "row_errors_from",
    "same_lengths",
    "sample_values",
    "show_value",
    "to_float64",
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


def decoded(column):
    """Return a dictionary column as its values, because dictionaries may differ."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


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


@dataclass
class FlatLists:
    """Parallel lists as a table of all items and the offsets of the lists.

    Attributes
    ----------
    items : pyarrow.Table
        One row for each item, one column for each list column.
    offsets : ndarray of int64, shape (n_rows + 1,)
        List ``i`` is ``items[offsets[i]:offsets[i + 1]]``.
    """

    items: pa.Table
    offsets: np.ndarray

    @property
    def owner(self):
        """Row of each item, as an array of int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, values):
        """Repeat the value of each row for the items of its list."""
        return np.repeat(values, np.diff(self.offsets))


def is_list(kind):
    """Return whether a column type is a list type."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def list_lengths(column):
    """Return the length of each list of a column, -1 where the list is missing."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1)
    lengths = pc.fill_null(pc.list_value_length(column), -1)
    return lengths.to_numpy().astype(np.int64)


def same_lengths(table, names):
    """Group list columns whose lists have the same length in every row, missing lists aside.

    Parameters
    ----------
    table : pyarrow.Table
        Table that holds the columns.
    names : list of str
        Names of the columns to group.

    Returns
    -------
    list of list of str
        Names of the columns of each group.
    """
    groups = []
    for name in names:
        lengths = list_lengths(table.column(name))
        for group in groups:
            if _lengths_match(lengths, group[0]):
                group[0] = np.maximum(lengths, group[0])
                group[1].append(name)
                break
        else:
            groups.append([lengths, [name]])
    return [columns for _, columns in groups]


def _lengths_match(one, other):
    """Return whether lengths, -1 where missing, are equal where both lists are present.

    At least one such row must have items, unless all lists are empty.
    """
    both = (one >= 0) & (other >= 0)
    equal = np.array_equal(one[both], other[both])
    empty = max(one.max(initial=0), other.max(initial=0)) == 0
    return equal and (empty or bool((one[both] > 0).any()))


def read_lists(table, *, max_length=None, keep="last", block=""):
    """Flatten the list columns of a table, whose lists in a row describe the same items.

    Parameters
    ----------
    table : pyarrow.Table
        Table of list columns, or columns of type null.
    max_length : int, optional
        Largest number of items of a list; longer lists are truncated. By default all are read.
    keep : {"last", "first"}, default="last"
        Which items of a longer list are read.
    block : str
        Class name of the block that reads the columns, for error messages.

    Returns
    -------
    FlatLists
        A missing list beside present ones is a list of missing items.

    Raises
    ------
    RowError
        If two lists of a row differ in length. The message names the first such row and both
        columns.
    """
    lengths = [list_lengths(column) for column in table.columns]
    longest = np.maximum(np.max(lengths, axis=0), 0)
    for name, own in zip(table.column_names, lengths, strict=True):
        differs = (own >= 0) & (own != longest)
        if differs.any():
            row = int(np.argmax(differs))
            other = table.column_names[int(np.argmax([n[row] for n in lengths]))]
            raise RowError(
                f"columns {other!r} and {name!r} have {longest[row]} and "
                f"{own[row]} items in row {{row}}; {block} reads them as one sequence, so that "
                "lists of a row must have one length",
                row,
            )
    retained = longest if max_length is None else np.minimum(longest, max_length)
    offsets = np.append(0, np.cumsum(retained))
    columns = [
        _flat(column, own, longest, offsets, keep)
        for column, own in zip(table.columns, lengths, strict=True)
    ]
    return FlatLists(pa.table(columns, names=table.column_names), offsets)


def _flat(column, lengths, longest, offsets, keep):
    """Return the retained items of one column, null where a list is missing."""
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(offsets[-1])])
    # Missing lists have no items.
    items = pc.list_flatten(column)
    present_lengths = np.maximum(lengths, 0)
    if len(items) == offsets[-1] and np.array_equal(present_lengths, np.diff(offsets)):
        return items
    retained = np.diff(offsets)
    starts = np.cumsum(present_lengths) - present_lengths
    if keep == "last":
        starts += np.maximum(longest - retained, 0)
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], retained)
    missing = np.repeat(lengths < 0, retained)
    return items.take(pa.array(positions, mask=missing if missing.any() else None))


def read_vectors(column, name, length, cast, first_row=0):
    """Return a list column of numbers as a matrix.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Lists, all of them of one length.
    name : str
        Name of the column, for the error.
    length : int
        Length of the vectors.
    cast : callable
        Takes the items of the lists and returns them as float64.
    first_row : int, default=0
        Number of the first row, for the error.

    Returns
    -------
    ndarray of float64, shape (n_rows, length)
        NaN where a vector or a component is missing.

    Raises
    ------
    RowError
        If a vector has another length.
    """
    vectors = np.full((len(column), length), np.nan)
    lengths = pc.list_value_length(column)
    differs = pc.fill_null(pc.not_equal(lengths, length), False).to_numpy(zero_copy_only=False)
    if differs.any():
        row = int(np.argmax(differs))
        raise RowError(
            f"column {name!r} has a vector of length {lengths[row].as_py()} in row {{row}}; all of "
            f"them must have the length {length}",
            first_row + row,
        )
    items = cast(pc.list_flatten(column))
    present = column.is_valid().to_numpy(zero_copy_only=False)
    vectors[present] = pc.fill_null(items, np.nan).to_numpy().reshape(present.sum(), length)
    return vectors
