"""Digests of tables and arrays, by which the same data are recognised in another process."""

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
        However it is cut into chunks.

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
    summed = hashlib.sha256()
    # Metadata of the schema name the version of pandas.
    table = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(HashingFile(summed), "w"), table.schema) as writer:
        writer.write_table(table)
    return summed.hexdigest()[:16]


def array_digest(*arrays):
    """Return a digest of arrays of any type, 16 hexadecimal digits.

    Parameters
    ----------
    *arrays : ndarray
        Of objects as well, if they can be pickled.
    """
    whole = [np.ascontiguousarray(array) for array in arrays]
    return joblib.hash(whole, hash_name="sha1")[:16]


class Digest:
    """A short digest of arrays and tensors, some after the others."""

    def __init__(self):
        self._summed = hashlib.sha256()

    def add(self, *arrays):
        """Take in some more."""
        for array in arrays:
            if hasattr(array, "detach"):
                array = array.detach().cpu().numpy()
            self._summed.update(str((array.dtype, array.shape)).encode())
            self._summed.update(np.ascontiguousarray(array))
        return self

    def __str__(self):
        return self._summed.hexdigest()[:16]


class HashingFile:
    """A file that keeps nothing of what is written but its digest.

    Parameters
    ----------
    summed : hashlib hash object
        Is updated.
    """

    closed = False

    def __init__(self, summed):
        self.summed = summed

    def write(self, data):
        """Take in some bytes."""
        self.summed.update(data)
        return len(data)

    def flush(self):
        """Nothing is held back."""

    def close(self):
        """Nothing is open."""
