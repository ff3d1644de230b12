"""Categories as strings, and hashes of strings: what a value is called, whatever its type."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["category_keys", "hash_strings"]


def category_keys(column):
    """Return a column's values as a dictionary array whose dictionary holds strings.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Of any type that :class:`CategoryBlock` accepts.

    Returns
    -------
    pyarrow.DictionaryArray
        Null where the value is missing. Integral floats are written as integers.
    """
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    elif column.num_chunks > 1:
        column = column.unify_dictionaries()
    if column.num_chunks == 1:
        array = column.chunk(0)
    else:
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    keys = _as_strings(array.dictionary)
    return pa.DictionaryArray.from_arrays(array.indices, keys)


def _as_strings(values):
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.string())
    if not pa.types.is_floating(kind):
        return values.cast(pa.string())
    numbers = values.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), float(2**53)))
    integers = pc.if_else(whole, numbers, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, integers, numbers.cast(pa.string()))


def hash_strings(values):
    """Return a stable 64-bit hash of each string of an Arrow array, as an array of uint64."""
    from pandas.util import hash_array

    return hash_array(values.to_numpy(zero_copy_only=False).astype(object), categorize=False)
