"""Keys of rows: lookup of rows by key, and the first or last row of each key."""

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
    """Lookup of rows by key. Keys are compared as categories are: 7, 7.0 and "7" are equal.

    Looking up keys of another kind, such as dates among numbers, raises an error.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Key of each row.
    name : str
        Name of the column, for errors.

    Attributes
    ----------
    codes : ndarray of int, shape (n_rows,)
        Code of the key of each row; deleted by :meth:`forget_rows`.
    first : ndarray of int, shape (n_keys,)
        First row of each code; deleted by :meth:`forget_rows`.

    Raises
    ------
    RowError
        If a key is missing. The message names the row.
    TypeError
        If the type of the column is not one of keys.
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
        repeated = np.setdiff1d(np.arange(len(self.codes)), self.first)
        if len(repeated):
            value, count = column[int(repeated[0])].as_py(), len(np.unique(self.codes[repeated]))
            raise ValueError(
                f"{OWNER}: items has {count} keys in more than one row, such as {value!r}, again "
                f"in row {repeated[0]}; every value of {self.name!r} must occur once"
            )

    def last(self):
        """Return the last row of each key, in the order of the keys' first rows."""
        last = np.zeros(len(self._strings), dtype=np.int64)
        np.maximum.at(last, self.codes, np.arange(len(self.codes)))
        return last[self.codes[np.sort(self.first)]]

    def rows(self, column):
        """Return the row of each key of a column, -1 for keys that no row has."""
        check_family(column.type, self.types, self.name, OWNER)
        keys = category_keys(column)
        codes = pc.index_in(keys.dictionary, value_set=self._strings)
        codes = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        # Code -1 stands for unknown keys, the last row for missing ones.
        row_of_value = np.append(np.append(self._row_of_code, -1)[codes], -1)
        indices = pc.fill_null(keys.indices, len(codes)).to_numpy(zero_copy_only=False)
        return row_of_value[indices]

    def forget_rows(self):
        """Delete the arrays over rows, which are needed in fitting only."""
        del self.codes, self.first


def key_values(column):
    """Return the keys of a column as an array.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Key of each row.

    Returns
    -------
    ndarray
        Keys in a type of NumPy. Decimals become integers, or strings if these do not have 64 bits.
    """
    if pa.types.is_decimal(column.type):
        try:
            column = column.cast(pa.int64())
        except CAST_ERRORS:
            column = pa.chunked_array([category_keys(column).dictionary_decode()])
    return column.to_numpy()


def check_key_type(kind, name):
    """Raise ``TypeError`` if an Arrow type is not one of keys."""
    if not CategoryBlock.accepts(kind):
        raise TypeError(f"{OWNER}: key column {name!r} cannot be of type {type_name(kind)}")


class KeyedRows(Summary):
    """The first or the last row of each key.

    Merging is associative, but not commutative: rows of `other` come later.

    Parameters
    ----------
    table : pyarrow.Table
        A row for each key, in the order of the keys' first occurrence.
    key : str
        Column of keys.
    keep : {"first", "last"}
        Which row of each key is kept.
    """

    def __init__(self, table, key, keep):
        self.table = table
        self.key = key
        self.keep = keep

    @classmethod
    def of(cls, table, key, keep):
        """Return the rows that are kept of a table."""
        keys = KeyIndex(table.column(key), key)
        rows = np.sort(keys.first) if keep == "first" else keys.last()
        return cls(table.take(pa.array(rows)), key, keep)

    def merge(self, other):
        """Return the rows that are kept of both, where those of `other` are later."""
        return self.of(pa.concat_tables([self.table, other.table]), self.key, self.keep)


def rows_of_keys(dataset, key, columns, executor, keep):
    """Return the first or the last row of each key of a data set.

    Parameters
    ----------
    dataset : BaseTableDataset
        Rows.
    key : str
        Column of keys.
    columns : list of str
        Columns to return.
    executor : LocalExecutor
        Executor for rows in memory.
    keep : {"first", "last"}
        Which row of each key is returned.

    Returns
    -------
    pyarrow.Table
        A row for each key, in the order of the keys' first occurrence.

    Raises
    ------
    ValueError
        If a key is missing. The message names the row.
    TypeError
        If the type of the column is not one of keys.
    """
    columns = list(dict.fromkeys([key, *columns]))
    reduced = dataset.select(columns).map_reduce(
        partial(KeyedRows.of, key=key, keep=keep), executor
    )
    rows = reduced.table.select([name for name in dataset.column_names if name in columns])
    return rows.unify_dictionaries().combine_chunks()
