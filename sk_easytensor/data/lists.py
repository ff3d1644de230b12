"""Read list columns: flat values and offsets, parallel columns checked against each other."""

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
    "same_lengths",
]


@dataclass
class FlatLists:
    """Parallel lists without their bounds: a table of all items, and where each list begins.

    Attributes
    ----------
    items : pyarrow.Table
        A row for each item, a column for each list column.
    offsets : ndarray of int64, shape (n_rows + 1,)
        List ``i`` is ``items[offsets[i]:offsets[i + 1]]``.
    """

    items: pa.Table
    offsets: np.ndarray

    @property
    def owner(self):
        """The row that each item belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, values):
        """Return what each list's row has, repeated for its items."""
        return np.repeat(values, np.diff(self.offsets))


def is_list(kind):
    """Tell whether a column type is a list of anything."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def list_lengths(column):
    """Return the length of each list of a column, -1 where it is missing."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1)
    lengths = pc.fill_null(pc.list_value_length(column), -1)
    return lengths.to_numpy().astype(np.int64)


def same_lengths(table, names):
    """Group columns of lists whose lists have one length in every row, unless one is missing.

    Parameters
    ----------
    table : pyarrow.Table
        Holds the columns.
    names : list of str
        Columns to group.

    Returns
    -------
    list of list of str
    """
    groups = []
    for name in names:
        own = list_lengths(table.column(name))
        for group in groups:
            if _go_together(own, group[0]):
                group[0] = np.maximum(own, group[0])
                group[1].append(name)
                break
        else:
            groups.append([own, [name]])
    return [columns for _, columns in groups]


def _go_together(one, other):
    """Tell whether lengths, -1 where missing, are alike and not so by being missing only."""
    both = (one >= 0) & (other >= 0)
    alike = np.array_equal(one[both], other[both])
    empty = max(one.max(initial=0), other.max(initial=0)) == 0
    return alike and (empty or bool((one[both] > 0).any()))


def read_lists(table, *, max_length=None, keep="last", block=""):
    """Flatten the list columns of a table, which describe the same items.

    Parameters
    ----------
    table : pyarrow.Table
        Of list columns, or columns of type null.
    max_length : int, optional
        Items kept of each list.
    keep : {"last", "first"}, default="last"
        Which those are.
    block : str
        Who asks, for errors.

    Returns
    -------
    FlatLists
        A missing list beside others that are not is a list of missing items.

    Raises
    ------
    RowError
        Naming the first row in which two lists differ in length, and both columns.
    """
    lengths = [list_lengths(column) for column in table.columns]
    longest = np.maximum(np.max(lengths, axis=0), 0)
    for name, own in zip(table.column_names, lengths, strict=True):
        unlike = (own >= 0) & (own != longest)
        if unlike.any():
            row = int(np.argmax(unlike))
            full = int(np.argmax([other[row] for other in lengths]))
            raise RowError(
                f"columns {table.column_names[full]!r} and {name!r} have {longest[row]} and "
                f"{own[row]} items in row {{row}}; {block} reads them as one sequence, so that "
                "lists of a row must have one length",
                row,
            )
    kept = longest if max_length is None else np.minimum(longest, max_length)
    offsets = np.append(0, np.cumsum(kept))
    columns = [
        _flat(column, own, longest, offsets, keep)
        for column, own in zip(table.columns, lengths, strict=True)
    ]
    return FlatLists(pa.table(columns, names=table.column_names), offsets)


def _flat(column, lengths, longest, offsets, keep):
    """Return the kept items of one column, null where a list is missing."""
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(offsets[-1])])
    # Lists that are missing have no items among these.
    items = pc.list_flatten(column)
    held = np.maximum(lengths, 0)
    if len(items) == offsets[-1] and np.array_equal(held, np.diff(offsets)):
        return items
    kept = np.diff(offsets)
    starts = np.cumsum(held) - held
    if keep == "last":
        starts += np.maximum(longest - kept, 0)
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], kept)
    missing = np.repeat(lengths < 0, kept)
    return items.take(pa.array(positions, mask=missing if missing.any() else None))
