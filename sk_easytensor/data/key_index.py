"""Lookup of the rows of a table by their keys."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor.data.columns import CAST_ERRORS, RowError
from sk_easytensor.data.keys import category_keys, check_family, value_family
from sk_easytensor.data.type_names import type_name

__all__ = [
    "KeyIndex",
    "as_objects",
    "check_key_type",
    "key_values",
]


FEW_KEYS = 1_000
"""Number of keys up to which a binary search is faster than a hash table of all keys."""


class KeyIndex(ArrowStateMixin):
    """Lookup of rows by key. Keys are compared as categories are: 7, 7.0 and "7" are equal.

    Looking up keys of another kind, such as dates among numbers, raises an error.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Key of each row.
    name : str
        Name of the column, for errors.
    owner : str
        Name of the class that reads the column, for errors.

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

    _order = None

    def __init__(self, column, name, owner):
        self.name = name
        self.owner = owner
        check_key_type(column.type, name, owner)
        family = value_family(column.type)
        self.types = {} if family is None else {family: type_name(column.type)}
        keys = category_keys(column)
        if keys.null_count:
            row = int(np.argmax(column.is_null(nan_is_null=True).to_numpy()))
            raise RowError(f"{owner}: key column {name!r} is missing in row {{row}}", row)
        self.codes = keys.indices.to_numpy(zero_copy_only=False)
        self._strings = keys.dictionary
        _, self.first = np.unique(self.codes, return_index=True)
        self._row_of_code = np.full(len(self._strings), -1)
        self._row_of_code[self.codes[self.first]] = self.first

    @classmethod
    def of_strings(cls, strings, order, name, types, owner):
        """Return a lookup of rows whose keys are known as strings.

        Parameters
        ----------
        strings : pyarrow.Array of string
            Key of each row, as :func:`~sk_easytensor.data.keys.category_keys` writes it.
        order : ndarray of int
            Indices that sort the keys, for binary searches.
        name, owner
            As in the constructor.
        types : dict of {str: str}
            Attribute ``types`` of the lookup that the strings are from.

        Returns
        -------
        KeyIndex
        """
        lookup = object.__new__(cls)
        lookup.name, lookup.owner, lookup.types = name, owner, types
        lookup._strings, lookup._order = strings, order
        lookup._row_of_code = np.arange(len(strings))
        return lookup

    def check_distinct(self, column):
        """Raise ``ValueError`` if a key is in more than one row."""
        repeated = np.setdiff1d(np.arange(len(self.codes)), self.first)
        if len(repeated):
            value, count = column[int(repeated[0])].as_py(), len(np.unique(self.codes[repeated]))
            raise ValueError(
                f"{self.owner}: column {self.name!r} has {count} keys in more than one row, such "
                f"as {value!r}, again in row {repeated[0]}; every key must occur once"
            )

    def last(self):
        """Return the last row of each key, in the order of the keys' first rows."""
        last = np.zeros(len(self._strings), dtype=np.int64)
        np.maximum.at(last, self.codes, np.arange(len(self.codes)))
        return last[self.codes[np.sort(self.first)]]

    @property
    def strings(self):
        """Key of each row as a string, if keys are distinct."""
        codes = np.flatnonzero(self._row_of_code >= 0)
        return self._strings.take(pa.array(codes[np.argsort(self._row_of_code[codes])]))

    def rows(self, column):
        """Return the row of each key of a column, -1 for keys that no row has."""
        check_family(column.type, self.types, self.name, self.owner)
        keys = category_keys(column)
        codes = self._codes(keys.dictionary)
        # Code -1 stands for unknown keys, the last row for missing ones.
        row_of_value = np.append(np.append(self._row_of_code, -1)[codes], -1)
        indices = pc.fill_null(keys.indices, len(codes)).to_numpy(zero_copy_only=False)
        return row_of_value[indices]

    def _codes(self, strings):
        """Return the code of each string, -1 for strings that are not there."""
        if self._order is None or len(strings) > FEW_KEYS:
            codes = pc.index_in(strings, value_set=self._strings)
            return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        codes = np.full(len(strings), -1)
        for place, string in enumerate(strings.to_pylist()):
            rank = bisect_left(self._order, string, key=self._text)
            if rank < len(self._order) and self._text(self._order[rank]) == string:
                codes[place] = self._order[rank]
        return codes

    def _text(self, code):
        return self._strings[int(code)].as_py()

    def joined(self, column):
        """Return a lookup that has further rows after the present ones.

        Parameters
        ----------
        column : pyarrow.ChunkedArray
            Keys of the further rows, which are distinct and have no row yet.

        Returns
        -------
        KeyIndex
        """
        other = KeyIndex(column, self.name, self.owner)
        strings = pa.concat_arrays([self.strings, other.strings])
        types = {**other.types, **self.types}
        return self.of_strings(strings, None, self.name, types, self.owner)

    def taken(self, rows):
        """Return a lookup of some of the rows, which are numbered anew in the given order."""
        strings = self.strings.take(pa.array(rows))
        return self.of_strings(strings, None, self.name, self.types, self.owner)

    def forget_rows(self):
        """Delete the arrays over rows, which are needed in fitting only."""
        del self.codes, self.first


def key_values(column):
    """Return the keys of a column as an array.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
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
            column = category_keys(column).dictionary_decode()
    chunked = isinstance(column, pa.ChunkedArray)
    return column.to_numpy() if chunked else column.to_numpy(zero_copy_only=False)


def as_objects(keys):
    """Return keys as an array of objects, times as datetimes."""
    return (keys.astype("M8[us]") if keys.dtype.kind == "M" else keys).astype(object)


def check_key_type(kind, name, owner):
    """Raise ``TypeError`` if an Arrow type is not one of keys."""
    if value_family(kind) is None and not pa.types.is_null(kind):
        raise TypeError(f"{owner}: key column {name!r} cannot be of type {type_name(kind)}")
