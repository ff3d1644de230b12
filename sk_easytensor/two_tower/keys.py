"""Rows that are named by keys: looked up, and the first or last of each."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor.blocks.category import CategoryBlock, category_keys
from sk_easytensor.data.columns import CAST_ERRORS, RowError, type_name
from sk_easytensor.data.keys import check_family, value_family
from sk_easytensor.data.summaries import Summary

__all__ = [
    "KeyIndex",
    "check_key_type",
    "key_values",
    "rows_of_keys",
]


OWNER = "EasyTensorTwoTower"


class KeyIndex(ArrowStateMixin):
    """Values that name rows, looked up as categories are: 7, 7.0 and "7" are the same.

    Keys of another kind than these, such as dates where these are numbers, are refused.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        One value a row.
    name : str
        Of the column, for errors.
    """

    def __init__(self, column, name):
        self.name = name
        check_key_type(column.type, name)
        family = value_family(column.type)
        self.types = {} if family is None else {family: type_name(column.type)}
        keys = category_keys(column)
        if keys.null_count:
            row = int(np.argmax(column.is_null(nan_is_null=True).to_numpy()))
            raise RowError(f"{OWNER}: key column {name!r} is missing in row {{row}}", row)
        self.codes = keys.indices.to_numpy(zero_copy_only=False)
        self._strings = keys.dictionary
        _, self.first = np.unique(self.codes, return_index=True)
        self._row_of_code = np.full(len(self._strings), -1)
        self._row_of_code[self.codes[self.first]] = self.first

    def check_distinct(self, column):
        """Raise ``ValueError`` if a key of the items is in more than one row."""
        again = np.setdiff1d(np.arange(len(self.codes)), self.first)
        if len(again):
            value, count = column[int(again[0])].as_py(), len(np.unique(self.codes[again]))
            raise ValueError(
                f"{OWNER}: items has {count} keys in more than one row, such as {value!r}, again "
                f"in row {again[0]}; every value of {self.name!r} must be there once"
            )

    def take_first(self):
        """Give the keys numbers in the order of their first rows, which are returned."""
        order = np.sort(self.first)
        place = np.full(len(self._strings), -1)
        place[self.codes[order]] = np.arange(len(order))
        self._row_of_code = place
        return order

    def last(self):
        """Return the last row of each key, in the order of their first ones."""
        last = np.zeros(len(self._strings), dtype=np.int64)
        np.maximum.at(last, self.codes, np.arange(len(self.codes)))
        return last[self.codes[np.sort(self.first)]]

    def rows(self, column):
        """Return the row that each value names, -1 where there is none."""
        check_family(column.type, self.types, self.name, OWNER)
        keys = category_keys(column)
        found = pc.index_in(keys.dictionary, value_set=self._strings)
        found = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        row_of_value = np.append(np.append(self._row_of_code, -1)[found], -1)
        indices = pc.fill_null(keys.indices, len(found)).to_numpy(zero_copy_only=False)
        return row_of_value[indices]

    def forget_rows(self):
        """Drop what is only needed while fitting."""
        del self.codes, self.first


def key_values(column):
    """Return the keys of a column as an array.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        One key a row.

    Returns
    -------
    ndarray
        Decimals that floats may not hold become integers, or strings if 64 bits do not hold them.
    """
    if pa.types.is_decimal(column.type):
        try:
            column = column.cast(pa.int64())
        except CAST_ERRORS:
            column = pa.chunked_array([category_keys(column).dictionary_decode()])
    return column.to_numpy()


def check_key_type(kind, name):
    """Raise ``TypeError`` if keys cannot be of an Arrow type."""
    if not CategoryBlock.accepts(kind):
        raise TypeError(f"{OWNER}: key column {name!r} cannot be of type {type_name(kind)}")


class KeyedRows(Summary):
    """The first or the last row of each key.

    Merging is associative, but not commutative: rows of `other` come later.

    Parameters
    ----------
    table : pyarrow.Table
        A row for each key, in the order in which keys were first met.
    key : str
        Column that names rows.
    keep : {"first", "last"}
        Which row of a key.
    """

    def __init__(self, table, key, keep):
        self.table = table
        self.key = key
        self.keep = keep

    @classmethod
    def of(cls, table, key, keep):
        """Choose among the rows of a table."""
        keys = KeyIndex(table.column(key), key)
        rows = np.sort(keys.first) if keep == "first" else keys.last()
        return cls(table.take(pa.array(rows)), key, keep)

    def merge(self, other):
        """Return the rows of both, `other` being of later ones."""
        return self.of(pa.concat_tables([self.table, other.table]), self.key, self.keep)


def rows_of_keys(dataset, key, columns, executor, keep):
    """Return the first or the last row of each key of a data set.

    Parameters
    ----------
    dataset : BaseTableDataset
        Rows.
    key : str
        Column that names rows.
    columns : list of str
        What to return of each row.
    executor : LocalExecutor
        Reads rows in memory.
    keep : {"first", "last"}
        Which row of a key.

    Returns
    -------
    pyarrow.Table
        In the order in which keys are first met.

    Raises
    ------
    ValueError
        Naming a row whose key is missing.
    TypeError
        If keys cannot be of their type.
    """
    columns = list(dict.fromkeys([key, *columns]))
    reduced = dataset.select(columns).map_reduce(
        partial(KeyedRows.of, key=key, keep=keep), executor
    )
    rows = reduced.table.select([name for name in dataset.column_names if name in columns])
    return rows.unify_dictionaries().combine_chunks()
