"""Names of column types in messages, as in pandas and NumPy rather than Arrow."""

from __future__ import annotations

import pyarrow as pa

from sk_easytensor._utils.validation import shortened

__all__ = [
    "in_words",
    "type_name",
]


LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
"""Predicates of list types."""


def in_words(kind):
    """Describe the values of a column type in words, such as "text" or "numbers"."""
    types = pa.types
    if types.is_dictionary(kind):
        return in_words(kind.value_type)
    words = {
        "text": (types.is_string, types.is_large_string, types.is_string_view),
        "numbers": (types.is_integer, types.is_floating, types.is_decimal),
        "booleans": (types.is_boolean,),
        "dates": (types.is_date, types.is_timestamp),
        "times of day": (types.is_time,),
        "durations": (types.is_duration,),
        "bytes": (types.is_binary, types.is_large_binary, types.is_fixed_size_binary),
        "maps": (types.is_map,),
        "lists": LISTS,
        "structs": (types.is_struct,),
        "missing values": (types.is_null,),
    }
    return next((word for word, tests in words.items() if any(t(kind) for t in tests)), str(kind))


def type_name(kind):
    """Return the name of a type as pandas and NumPy would write it.

    Parameters
    ----------
    kind : pyarrow.DataType
        Type of a column.

    Returns
    -------
    str
        Name of at most 60 characters.

    Examples
    --------
    >>> import pyarrow as pa
    >>> type_name(pa.large_list(pa.timestamp("ns"))), type_name(pa.float64())
    ('list[datetime64[ns]]', 'float64')
    """
    return shortened(kind, _type_name)


def _type_name(kind):
    types = pa.types
    if types.is_dictionary(kind):
        return f"category[{_type_name(kind.value_type)}]"
    if types.is_map(kind):
        return f"map[{_type_name(kind.key_type)}, {_type_name(kind.item_type)}]"
    if any(test(kind) for test in LISTS):
        return f"list[{_type_name(kind.value_type)}]"
    if types.is_struct(kind):
        fields = ", ".join(f"{field.name}: {_type_name(field.type)}" for field in kind)
        return f"struct[{fields}]"
    if types.is_timestamp(kind):
        return f"datetime64[{kind.unit}{'' if kind.tz is None else f', {kind.tz}'}]"
    if types.is_duration(kind):
        return f"timedelta64[{kind.unit}]"
    if types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name
    bytes_types = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    plain = {
        "string": (types.is_string, types.is_large_string, types.is_string_view),
        "bytes": (*bytes_types, types.is_binary_view),
        "date": (types.is_date,),
        "time": (types.is_time,),
        "float64": (types.is_float64,),
        "float32": (types.is_float32,),
        "float16": (types.is_float16,),
    }
    return next((name for name, tests in plain.items() if any(t(kind) for t in tests)), str(kind))
