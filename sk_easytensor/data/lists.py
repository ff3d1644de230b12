"""Flatten list columns to values and offsets, and check that parallel lists have one length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.columns import RowError

__all__ = [
    "FlatLists",
    "is_list",
    "list_lengths",
    "read_lists",
    "read_vectors",
    "same_lengths",
]


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
