"""Cast Arrow's many column types to few plain ones: views, decimals and extension types."""

from __future__ import annotations

import json
import re
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.columns import to_float64
from sk_easytensor.data.keys import category_keys
from sk_easytensor.data.sparse import SparseRows
from sk_easytensor.data.type_names import type_name

__all__ = [
    "common_type",
    "plain_schema",
    "plain_types",
    "register_extensions",
    "source_positions",
]


EXTENSION = b"ARROW:extension:name"
"""Metadata key of a field with the name of an extension type that is not registered in Arrow."""

DIGITS, MOST_DIGITS = 15, 38
"""Largest number of digits that a float represents exactly, and that a 128-bit decimal can have."""

UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
"""Column names that pandas gives to an index without a name."""

PLAIN = frozenset(
    kind.id
    for kind in (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.string(), pa.large_string()),
    )
)
"""Ids of the common types that need no cast."""


def plain_types(table):
    """Cast the columns of a table to types that all blocks support.

    Parameters
    ----------
    table : pyarrow.Table
        Table with columns of any type.

    Returns
    -------
    pyarrow.Table
        Table without extension types other than sparse vectors, and without views, half floats and
        lists of 32-bit offsets, within lists and dictionaries too. Decimals become floats, unless
        they may have more digits than a float represents and are not within lists. A struct
        becomes one column for each field, named ``column.field``, a period its start time, and an
        interval a category. The unnamed index of a pandas data frame is left out.
    """
    if table.schema.metadata is not None:
        table = _with_extensions(table)
        unnamed = filter(UNNAMED_INDEX.fullmatch, index_columns(table.schema))
        table = table.drop_columns(list(unnamed)).replace_schema_metadata()
    for index, field in enumerate(table.schema):
        if field.type.id in PLAIN or isinstance(field.type, SparseRows):
            continue
        if _holds_intervals(field.type):
            table = table.set_column(index, field.name, _named_intervals(table.column(index)))
            continue
        if pa.types.is_struct(getattr(field.type, "storage_type", field.type)):
            return plain_types(_flattened(table))
        plain = _exact_type(field.type) or _plain_type(field.type)
        if plain is None or plain == field.type:
            continue
        column = table.column(index)
        if isinstance(field.type, pa.BaseExtensionType):
            column = _stored(column)
            if field.type.extension_name == "arrow.uuid":
                column = _uuid_text(column)
            if field.type.extension_name == "pandas.period":
                column = _period_starts(column, field.type.freq)
            plain = _exact_type(column.type) or _plain_type(column.type) or column.type
            if field.type.extension_name == "arrow.bool8":
                plain = pa.bool_()
        if pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
            plain = _exact_type(column.type) or _plain_type(column.type) or column.type
        if _is_list_view(column.type):
            column = _lists_of_views(column)
        column = column.cast(plain)
        if pa.types.is_dictionary(plain) and pa.types.is_nested(plain.value_type):
            column = _named_dictionaries(column)
        table = table.set_column(index, field.name, column)
    return table


@cache
def register_extensions():
    """Register the extension types of pandas in Arrow, which pandas does when it converts one."""
    try:
        import pandas as pd
    except ImportError:
        return
    pa.array(pd.interval_range(0, 1).array)


def _with_extensions(table):
    """Return a table with the pandas extension types that were not registered when it was read."""
    if not any(EXTENSION in (field.metadata or {}) for field in table.schema):
        return table
    register_extensions()
    for index, field in enumerate(pa.ipc.read_schema(table.schema.serialize())):
        column = table.column(index)
        if isinstance(field.type, pa.BaseExtensionType) and field.type != column.type:
            chunks = [pa.ExtensionArray.from_storage(field.type, chunk) for chunk in column.chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, field.type))
    return table


def plain_schema(schema):
    """Return the schema of the tables that :func:`plain_types` makes of tables of a schema."""
    return plain_types(schema.empty_table()).schema


def index_columns(schema):
    """Return the names of the columns that hold the index of a pandas data frame."""
    metadata = (schema.metadata or {}).get(b"pandas")
    if metadata is None:
        return []
    try:
        names = json.loads(metadata).get("index_columns", [])
    except ValueError:
        return []
    # A range is described by its bounds, as a dictionary, and has no column.
    return [name for name in names if isinstance(name, str) and name in schema.names]


def source_positions(labels, names):
    """Return the positions of the columns from which plain columns are made.

    Parameters
    ----------
    labels : list
        Labels of the columns before conversion. Their string forms are compared.
    names : sequence of str
        Names of plain columns; fields of structs are named ``column.field``.

    Returns
    -------
    list of int
        Positions in `labels`.
    """
    columns = set(names)
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            columns.add(name)
    return [position for position, label in enumerate(labels) if str(label) in columns]


def common_type(one, other):
    """Return the type to which values of two types can be cast without a change.

    Parameters
    ----------
    one, other : pyarrow.DataType
        Types of two columns with the same name.

    Returns
    -------
    pyarrow.DataType

    Raises
    ------
    TypeError
        If there is no common type, as for numbers and strings.
    """
    if one == other:
        return one
    both = (one, other)
    if any(map(pa.types.is_decimal, both)) and any(map(pa.types.is_floating, both)):
        return pa.float64()
    if pa.types.is_dictionary(one) != pa.types.is_dictionary(other):
        values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in both]
        if not any(map(pa.types.is_null, both)):
            return common_type(*values)
    if any(map(_is_text, both)) and any(map(_is_binary, both)):
        raise TypeError(f"{type_name(one)} and {type_name(other)} have no type in common")
    if pa.types.is_date(one) and pa.types.is_timestamp(other):
        both = (pa.timestamp("s"), other)
    if pa.types.is_timestamp(one) and pa.types.is_date(other):
        both = (one, pa.timestamp("s"))
    schemas = [pa.schema({"column": kind}) for kind in both]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _is_binary(kind):
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _stored(column):
    """Return the storage of a column of an extension type."""
    storage = [chunk.storage for chunk in column.chunks]
    return pa.chunked_array(storage, type=column.type.storage_type)


def _flattened(table):
    """Return a table with the fields of structs as columns."""
    for index, field in enumerate(table.schema):
        kind = field.type
        if isinstance(kind, pa.BaseExtensionType) and pa.types.is_struct(kind.storage_type):
            table = table.set_column(index, field.name, _stored(table.column(index)))
    return table.flatten()


def _uuid_text(column):
    """Convert UUIDs, stored as 16 bytes, to text."""
    digits = np.array([b"%02x" % byte for byte in range(256)])
    chunks = []
    for chunk in column.chunks:
        missing = chunk.is_null()
        filled = chunk.fill_null(bytes(16))
        stored = np.frombuffer(filled.buffers()[1], np.uint8)
        stored = stored[16 * filled.offset :][: 16 * len(filled)].reshape(-1, 16)
        text = np.full((len(stored), 36), b"-", dtype="S1")
        positions = [position for position in range(36) if position not in (8, 13, 18, 23)]
        text[:, positions] = digits[stored].view("S1").reshape(-1, 32)
        strings = pa.array(text.view("S36").ravel()).cast(pa.string())
        chunks.append(pc.if_else(missing, None, strings))
    return pa.chunked_array(chunks, type=pa.string())


def _period_starts(counts, freq):
    """Convert pandas periods, stored as ordinals, to their start times."""
    import pandas as pd

    missing = counts.is_null().to_numpy()
    counts = pc.fill_null(counts, 0).to_numpy()
    starts = pd.PeriodIndex.from_ordinals(counts, freq=freq).to_timestamp()
    return pa.chunked_array([pa.array(starts.to_numpy(), mask=missing)])


def _holds_intervals(kind):
    """Return whether values of a type are pandas intervals, or categories of intervals."""
    kind = getattr(kind, "value_type", kind) if pa.types.is_dictionary(kind) else kind
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "pandas.interval"


def _named_intervals(column):
    """Convert intervals to categories, such as ``(0.5, 2]``."""
    chunks = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            names = _interval_names(chunk.dictionary)
            chunk = pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), names)
        else:
            chunk = _interval_names(chunk).dictionary_encode()
        chunks.append(chunk)
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), pa.string()))


def _interval_names(intervals):
    """Convert intervals to strings; the bounds are written as :func:`category_keys` writes them."""
    bounds = []
    # Unlike ``field``, ``flatten`` gives nulls where the struct is null.
    for bound in intervals.storage.flatten():
        if pa.types.is_duration(bound.type):
            bound = pa.array(to_float64(pa.chunked_array([bound]), "", block=""))
        bounds.append(category_keys(bound).dictionary_decode())
    closed = intervals.type.closed
    opening = "[" if closed in ("left", "both") else "("
    closing = "]" if closed in ("right", "both") else ")"
    inside = pc.binary_join_element_wise(*bounds, ", ")
    return pc.binary_join_element_wise(opening, inside, closing, "")


def _named_dictionaries(column):
    """Convert nested categories, such as lists, to categories of strings."""
    chunks = []
    for chunk in column.chunks:
        values = chunk.dictionary.to_pylist()
        names = [None if value is None else _name_of(value) for value in values]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(names, pa.string())))
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), pa.string()))


def _name_of(value):
    return str(list(value.values() if isinstance(value, dict) else value))


def _exact_type(kind):
    """Return the type of a decimal with more digits than a float represents, or None."""
    if pa.types.is_dictionary(kind):
        value = _exact_type(kind.value_type)
        return value and pa.dictionary(pa.int32(), value, kind.ordered)
    if not pa.types.is_decimal(kind) or kind.precision <= DIGITS:
        return None
    large = kind.precision > MOST_DIGITS or pa.types.is_decimal256(kind)
    return (pa.decimal256 if large else pa.decimal128)(kind.precision, kind.scale)


def _plain_type(kind):
    """Return the type to which a column is cast, or None if its type is plain already."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_dictionary(kind):
        value = _plain_type(kind.value_type)
        if value is None and kind.index_type == pa.int32():
            return None
        return pa.dictionary(pa.int32(), value or kind.value_type, kind.ordered)
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type) or kind.value_type
    if pa.types.is_struct(kind):
        return _plain_struct(kind)
    if pa.types.is_fixed_size_list(kind):
        plain = _plain_type(kind.value_type)
        return None if plain is None else pa.list_(plain, kind.list_size)
    if _is_variable_list(kind):
        # Offsets of 64 bits do not overflow, however long the lists of a chunk.
        plain = pa.large_list(_plain_type(kind.value_type) or kind.value_type)
        return None if plain == kind else plain
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
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
    """Convert list views to lists, for which Arrow's own cast gives wrong offsets."""
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
