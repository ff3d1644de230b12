"""Digests of tables, arrays and parameters, which are equal for equal data in every process."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from types import CodeType, FunctionType

import joblib
import numpy as np
import pyarrow as pa

__all__ = [
    "Digest",
    "array_digest",
    "describe_object",
    "table_digest",
]


def table_digest(table):
    """Return a digest of the schema and all values of a table.

    Parameters
    ----------
    table : pyarrow.Table
        Table; its division into chunks does not change the digest.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> import pyarrow as pa
    >>> table = pa.table({"a": [1, 2, None]})
    >>> table_digest(table) == table_digest(pa.concat_tables([table[:1], table[1:]]))
    True
    >>> table_digest(table) == table_digest(table[:2])
    False
    """
    hasher = hashlib.sha256()
    # The metadata of the schema contain the version of pandas.
    table = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(HashingFile(hasher), "w"), table.schema) as writer:
        writer.write_table(table)
    return hasher.hexdigest()[:16]


def array_digest(*arrays):
    """Return a digest of arrays of any type.

    Parameters
    ----------
    *arrays : ndarray
        Arrays; those of objects must be picklable.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    contiguous = [np.ascontiguousarray(array) for array in arrays]
    return joblib.hash(contiguous, hash_name="sha1")[:16]


class Digest:
    """Incremental digest of arrays and tensors; ``str`` returns 16 hexadecimal digits."""

    def __init__(self):
        self._hasher = hashlib.sha256()

    def add(self, *arrays):
        """Update the digest with arrays or tensors, and return self."""
        for array in arrays:
            if hasattr(array, "detach"):
                array = array.detach().cpu().numpy()
            self._hasher.update(str((array.dtype, array.shape)).encode())
            self._hasher.update(np.ascontiguousarray(array))
        return self

    def __str__(self):
        return self._hasher.hexdigest()[:16]


class HashingFile:
    """File that passes the bytes that are written to a hash object.

    Parameters
    ----------
    hasher : hashlib hash object
        Hash that is updated.
    """

    closed = False

    def __init__(self, hasher):
        self.hasher = hasher

    def write(self, data):
        """Update the hash and return the number of bytes."""
        self.hasher.update(data)
        return len(data)

    def flush(self):
        """Do nothing, because nothing is buffered."""

    def close(self):
        """Do nothing, because no file is open."""


def describe_object(value):
    """Return a text that identifies an object by its behaviour, without memory addresses.

    Parameters
    ----------
    value : object
        The text of a function contains its name and a digest of its code, defaults and closure;
        that of another callable its class and attributes.

    Returns
    -------
    str
        Different texts for objects that behave differently.

    Examples
    --------
    >>> double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
    >>> describe_object(double) == describe_object(triple)
    False
    """
    if isinstance(value, FunctionType):
        enclosed = [enclosed_value(cell) for cell in value.__closure__ or ()]
        parts = [code_text(value.__code__), value.__defaults__, value.__kwdefaults__, enclosed]
        text = "".join(map(describe_object, parts))
        return f"{value.__qualname__} ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
    if isinstance(value, partial):
        return f"partial of {describe_object([value.func, value.args, value.keywords])}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe_object, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {describe_object(item)}' for key, item in value.items())}}}"
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tolist()}"
    if callable(value) and not hasattr(value, "__qualname__"):
        return f"{type(value).__qualname__} {describe_object(getattr(value, '__dict__', {}))}"
    name = getattr(value, "__qualname__", None)
    return name or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def enclosed_value(cell):
    """Return the value of a closure cell, or its code if the value is a function."""
    try:
        value = cell.cell_contents
    except ValueError:
        return None
    return code_text(value.__code__) if isinstance(value, FunctionType) else value


def code_text(code):
    """Return a code object as text, with the code of functions within it."""
    return f"{code.co_code.hex()} {list(map(constant_text, code.co_consts))} {code.co_names}"


def constant_text(value):
    """Return a constant of a code object as text."""
    if isinstance(value, CodeType):
        return code_text(value)
    # The order of a set of strings differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
