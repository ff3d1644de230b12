"""Stored tables: Parquet files by path, and data sets of libraries that keep rows in blocks."""

from __future__ import annotations

import os
from functools import lru_cache

import pyarrow as pa

from sk_easytensor.data.types import plain_types

__all__ = [
    "is_source",
    "read_source",
]


def is_source(X):
    """Tell whether X says where a table is, which is read when it is needed.

    Parameters
    ----------
    X : object
        Anything that estimators take.

    Returns
    -------
    bool
        True for paths and URLs of Parquet files, and for objects with the methods ``schema()``,
        ``limit(n_rows)`` and ``iter_batches(batch_size=None, batch_format="pyarrow")`` of
        ``ray.data.Dataset``.
    """
    return isinstance(X, (str, os.PathLike)) or is_dataset(X)


def is_dataset(X):
    """Tell whether X is a data set of another library."""
    return _is_dataset_type(type(X))


@lru_cache(maxsize=128)
def _is_dataset_type(kind):
    # To look for attributes that are not there takes a while, for each single row predicted.
    return all(hasattr(kind, name) for name in ("iter_batches", "limit", "schema"))


def read_source(X, n_rows=None):
    """Read a stored table into memory.

    Parameters
    ----------
    X : str, os.PathLike or Dataset
        For which :func:`is_source` is True.
    n_rows : int, optional
        How many of the first rows, at most; no more is read than is needed for them. By default
        all.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    FileNotFoundError
        If there is no Parquet file at a path.
    ValueError
        If files or blocks have columns of types that do not go together, or a data set no row.
    """
    # Files are opened by packages that take long to import.
    if is_dataset(X):
        return read_dataset_blocks(X if n_rows is None else X.limit(n_rows))
    from sk_easytensor.data.parquet import open_parquet, read_parquet

    if n_rows is None:
        return read_parquet(X)
    return open_parquet(X).head(n_rows, batch_size=n_rows, fragment_readahead=1)


def read_dataset_blocks(X):
    """Join the blocks of a data set, whose columns may be of different but compatible types."""
    from sk_easytensor.data.parquet import unified

    batches = X.iter_batches(batch_size=None, batch_format="pyarrow")
    blocks = [plain_types(block) for block in batches]
    if not blocks:
        raise ValueError(f"the data set holds no row: {type(X).__name__}")
    schema = unified([(f"block {i}", block.schema) for i, block in enumerate(blocks)])
    parts = [pa.schema([schema.field(name) for name in block.column_names]) for block in blocks]
    blocks = [block.cast(part) for block, part in zip(blocks, parts, strict=True)]
    return pa.concat_tables(blocks, promote_options="default").select(schema.names)
