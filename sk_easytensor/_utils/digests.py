"""Digests of tables and arrays, which are equal for equal data in every process."""

from __future__ import annotations

import hashlib

import joblib
import numpy as np
import pyarrow as pa

__all__ = [
    "Digest",
    "array_digest",
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
