"""Few column types instead of Arrow's many: views, decimals and extensions made plain."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.sparse import SparseRows

__all__ = ["plain_types"]

PLAIN = frozenset(
    kind.id
    for kind in (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.string(), pa.large_string()),
    )
)
"""Types that most columns have and that stay as they are."""


def plain_types(table):
    """Cast the columns of a table to types that every block knows.

    Parameters
    ----------
    table : pyarrow.Table
        Of any types.

    Returns
    -------
    pyarrow.Table
        Without extension types other than sparse vectors, views, decimals, half floats and lists
        of 32-bit offsets, on the surface and within lists, structs and dictionaries.
    """
    for index, field in enumerate(table.schema):
        if field.type.id in PLAIN or isinstance(field.type, SparseRows):
            continue
        plain = _plain_type(field.type)
        if plain is None:
            continue
        column = table.column(index)
        if getattr(field.type, "extension_name", None) == "pandas.period":
            column = _period_starts(column)
            plain = column.type
        elif isinstance(field.type, pa.BaseExtensionType):
            storage = [chunk.storage for chunk in column.chunks]
            column = pa.chunked_array(storage, type=field.type.storage_type)
            plain = _plain_type(column.type) or column.type
        if _is_list_view(column.type):
            column = _lists_of_views(column)
        column = column.cast(plain)
        if pa.types.is_dictionary(plain) and pa.types.is_nested(plain.value_type):
            column = _named_dictionaries(column)
        table = table.set_column(index, field.name, column)
    return table


def _period_starts(column):
    """Return periods of pandas as the times they begin at; they are stored as counts of periods."""
    import pandas as pd

    storage = pa.chunked_array([chunk.storage for chunk in column.chunks], type=pa.int64())
    missing = storage.is_null().to_numpy()
    counts = pc.fill_null(storage, 0).to_numpy()
    starts = pd.PeriodIndex.from_ordinals(counts, freq=column.type.freq).to_timestamp()
    return pa.chunked_array([pa.array(starts.to_numpy(), mask=missing)])


def _named_dictionaries(column):
    """Give nested categories, such as the intervals of ``pandas.cut``, strings as names."""
    chunks = []
    for chunk in column.chunks:
        values = chunk.dictionary.to_pylist()
        names = [
            str(list(value.values() if isinstance(value, dict) else value)) for value in values
        ]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(names, pa.string())))
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), pa.string()))


def _plain_type(kind):
    """Return the type a column should be cast to, or None if it is plain already."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_dictionary(kind):
        value = _plain_type(kind.value_type)
        if value is None and kind.index_type == pa.int32():
            return None
        return pa.dictionary(pa.int32(), value or kind.value_type, kind.ordered)
    if pa.types.is_struct(kind):
        return _plain_struct(kind)
    if pa.types.is_fixed_size_list(kind):
        plain = _plain_type(kind.value_type)
        return None if plain is None else pa.list_(plain, kind.list_size)
    if _is_variable_list(kind):
        # Offsets of 64 bits hold any chunk, however long its lists.
        plain = pa.large_list(_plain_type(kind.value_type) or kind.value_type)
        return None if plain == kind else plain
    if kind == pa.string_view():
        return pa.large_string()
    if pa.types.is_decimal(kind):
        return pa.float64()
    if kind == pa.float16():
        return pa.float32()
    return None


def _is_variable_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_list_view(kind)


def _is_list_view(kind):
    return pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)


def _lists_of_views(column):
    """Turn views of lists into lists, for which Arrow's cast gives wrong offsets."""
    chunks = []
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy()
        offsets = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
        lists = pa.LargeListArray.from_arrays(offsets, chunk.flatten(), mask=chunk.is_null())
        chunks.append(lists)
    return pa.chunked_array(chunks, type=pa.large_list(column.type.value_type))


def _plain_struct(kind):
    fields = [pa.field(field.name, _plain_type(field.type) or field.type) for field in kind]
    plain = pa.struct(fields)
    return None if plain == kind else plain
