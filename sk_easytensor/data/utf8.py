"""Check that texts of columns and their names are valid UTF-8."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.types import PLAIN

__all__ = [
    "check_name_texts",
    "check_texts",
    "check_utf8",
]


def check_texts(table):
    """Return a table unchanged, or raise ``ValueError`` for text that is not valid UTF-8."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        check_utf8(column, name)
    return table


def check_name_texts(names):
    """Raise ``ValueError`` for names that crash the process in Arrow's C interface."""
    try:
        joined = "".join(names).encode()
    except UnicodeEncodeError:
        joined = b"\0"
    if b"\0" in joined:
        for name in names:
            if "\0" in name or name.encode(errors="ignore").decode() != name:
                raise ValueError(
                    f"the column name {name!r} holds a null character or half of a surrogate "
                    "pair, which is not valid text; rename the column"
                )


def check_utf8(column, name):
    """Raise ``ValueError`` if an Arrow column holds text that is not valid UTF-8."""
    if not _holds_text(column.type) or _is_utf8(column):
        return
    valid, invalid = 0, len(column)
    while invalid - valid > 1:
        middle = (valid + invalid) // 2
        if _is_utf8(column.slice(valid, middle - valid)):
            valid = middle
        else:
            invalid = middle
    raise ValueError(
        f"column {name!r} holds text in row {valid} that is not valid UTF-8; decode it with its "
        "own encoding, or with errors='replace'"
    )


def _holds_text(kind):
    """Return whether values of a type are texts, or contain texts."""
    if kind.id in PLAIN or pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
        value = getattr(kind, "value_type", kind)
        return any(
            is_text(value)
            for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        )
    if pa.types.is_struct(kind):
        return any(_holds_text(field.type) for field in kind)
    return _is_list(kind) and _holds_text(kind.value_type)


def _is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _decoded(column):
    """Return a dictionary column of texts as its values; Arrow casts no dictionary of views."""
    if not pa.types.is_string_view(column.type.value_type):
        return column.cast(column.type.value_type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    texts = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()))
        for chunk in chunks
    ]
    return pa.chunked_array([text.dictionary_decode() for text in texts], pa.large_string())


def _is_utf8(column):
    kind = column.type
    if pa.types.is_struct(kind):
        return all(_is_utf8(part) for part in column.flatten() if _holds_text(part.type))
    if _is_list(kind):
        return _is_utf8(pc.list_flatten(column))
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # The invalid text may be a category that no row uses.
        return pa.types.is_dictionary(kind) and _is_utf8(_decoded(column))
    return True
