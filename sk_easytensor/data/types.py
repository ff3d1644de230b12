"""Few column types instead of Arrow's many: views, decimals and extensions made plain."""

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
    "needed",
    "plain_schema",
    "plain_types",
    "register_extensions",
]


EXTENSION = b"ARROW:extension:name"
"""Key of a field's metadata that holds the name of an extension type that Arrow does not know."""

DIGITS, MOST_DIGITS = 15, 38
"""Digits that any number may have and be a float, and that a decimal of 128 bits may have."""

UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
"""How pandas calls the index of a frame, where it has no name, among the columns of a table."""

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
        Without extension types other than sparse vectors, views, half floats and lists of 32-bit
        offsets, on the surface and within lists and dictionaries. Decimals are floats, unless
        they may have more digits than floats hold and are not within lists. Structs have a column
        for each field, named ``column.field``, periods are the times they begin at, and intervals
        are categories. The index of a frame of pandas is no column, if it has no name.
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
    """Have Arrow read the extension types of pandas, which pandas registers when it writes one."""
    try:
        import pandas as pd
    except ImportError:
        return
    pa.array(pd.interval_range(0, 1).array)


def _with_extensions(table):
    """Return a table with the extension types of pandas that were not known when it was read."""
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
    """Return the schema that :func:`plain_types` gives the tables of a schema."""
    return plain_types(schema.empty_table()).schema


def index_columns(schema):
    """Return the columns that hold the index of the frame of pandas that a table was made of."""
    described = (schema.metadata or {}).get(b"pandas")
    if described is None:
        return []
    try:
        names = json.loads(described).get("index_columns", [])
    except ValueError:
        return []
    # A range is described by its bounds, as a dictionary, and has no column.
    return [name for name in names if isinstance(name, str) and name in schema.names]


def needed(labels, names):
    """Return the positions of the columns that plain columns are made of.

    Parameters
    ----------
    labels : list
        Labels of the columns as they are. If they are no strings, they become strings.
    names : sequence of str
        Plain columns; those of structs are named ``column.field``.

    Returns
    -------
    list of int
    """
    wanted = set(names)
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            wanted.add(name)
    return [position for position, label in enumerate(labels) if str(label) in wanted]


def common_type(one, other):
    """Return the type that the values of two types can be cast to, and are the same in.

    Parameters
    ----------
    one, other : pyarrow.DataType
        Of columns of one name.

    Returns
    -------
    pyarrow.DataType

    Raises
    ------
    TypeError
        If there is none, as for numbers and strings.
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
    """Return what a column of an extension type is stored as."""
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
    """Return UUIDs, stored as 16 bytes, as text."""
    digits = np.array([b"%02x" % byte for byte in range(256)])
    chunks = []
    for chunk in column.chunks:
        missing = chunk.is_null()
        filled = chunk.fill_null(bytes(16))
        stored = np.frombuffer(filled.buffers()[1], np.uint8)
        stored = stored[16 * filled.offset :][: 16 * len(filled)].reshape(-1, 16)
        text = np.full((len(stored), 36), b"-", dtype="S1")
        places = [place for place in range(36) if place not in (8, 13, 18, 23)]
        text[:, places] = digits[stored].view("S1").reshape(-1, 32)
        strings = pa.array(text.view("S36").ravel()).cast(pa.string())
        chunks.append(pc.if_else(missing, None, strings))
    return pa.chunked_array(chunks, type=pa.string())


def _period_starts(counts, freq):
    """Return periods of pandas, stored as counts of periods, as the times they begin at."""
    import pandas as pd

    missing = counts.is_null().to_numpy()
    counts = pc.fill_null(counts, 0).to_numpy()
    starts = pd.PeriodIndex.from_ordinals(counts, freq=freq).to_timestamp()
    return pa.chunked_array([pa.array(starts.to_numpy(), mask=missing)])


def _holds_intervals(kind):
    """Tell whether values of a type are intervals of pandas, or categories that are."""
    kind = getattr(kind, "value_type", kind) if pa.types.is_dictionary(kind) else kind
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "pandas.interval"


def _named_intervals(column):
    """Return intervals as categories, such as ``(0.5, 2]``."""
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
    """Return intervals as strings, with bounds that are spelled as categories are."""
    bounds = []
    # Unlike its fields, what a struct is flattened to is missing where the struct is.
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
    """Give nested categories, such as lists, strings as names."""
    chunks = []
    for chunk in column.chunks:
        values = chunk.dictionary.to_pylist()
        names = [None if value is None else _name_of(value) for value in values]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(names, pa.string())))
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), pa.string()))


def _name_of(value):
    return str(list(value.values() if isinstance(value, dict) else value))


def _exact_type(kind):
    """Return the type of decimals that may have more digits than floats hold, or None."""
    if pa.types.is_dictionary(kind):
        value = _exact_type(kind.value_type)
        return value and pa.dictionary(pa.int32(), value, kind.ordered)
    if not pa.types.is_decimal(kind) or kind.precision <= DIGITS:
        return None
    large = kind.precision > MOST_DIGITS or pa.types.is_decimal256(kind)
    return (pa.decimal256 if large else pa.decimal128)(kind.precision, kind.scale)


def _plain_type(kind):
    """Return the type a column should be cast to, or None if it is plain already."""
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
        # Offsets of 64 bits hold any chunk, however long its lists.
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
