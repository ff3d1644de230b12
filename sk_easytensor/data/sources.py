"""Stored tables: Parquet files by path, and data sets of other libraries such as Ray."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from sk_easytensor._utils.validation import is_path
from sk_easytensor.data.types import plain_types

__all__ = [
    "is_source",
    "read_source",
]


def is_source(X):
    """Return whether `X` refers to a stored table, which is read only when it is needed.

    Parameters
    ----------
    X : object
        Any object that estimators accept.

    Returns
    -------
    bool
        True for paths and URLs of Parquet files and lists of them, and for objects with the methods
        ``schema()``, ``limit(n_rows)`` and ``iter_batches(batch_size=None,
        batch_format="pyarrow")`` of ``ray.data.Dataset``.
    """
    return is_path(X) or is_dataset(X)


def is_dataset(X):
    """Return whether `X` is a data set of another library, by its methods."""
    return _is_dataset_type(type(X))


@lru_cache(maxsize=128)
def _is_dataset_type(kind):
    # Cached, because looking for missing attributes takes a while compared with a single row.
    return all(hasattr(kind, name) for name in ("iter_batches", "limit", "schema"))


def read_source(X, n_rows=None):
    """Read a stored table into memory.

    Parameters
    ----------
    X : str, os.PathLike or Dataset
        Stored table, for which :func:`is_source` is True.
    n_rows : int, optional
        Largest number of rows to read from the beginning; by default all are read.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    FileNotFoundError
        If there is no Parquet file at a path.
    ValueError
        If files cannot be read as Parquet, or a data set has no rows.
    TypeError
        If the types of a column in two files or blocks have no common type.
    """
    # Imported here, because packages that open files take long to import.
    if is_dataset(X):
        return read_dataset_blocks(X if n_rows is None else X.limit(n_rows))
    from sk_easytensor.data.parquet import open_parquet, read_parquet

    if n_rows is None:
        return read_parquet(X)
    return open_parquet(X).head(n_rows, batch_size=n_rows, fragment_readahead=1)


def read_dataset_blocks(X):
    """Concatenate the blocks of a data set, whose columns may have different compatible types."""
    from sk_easytensor.data.parquet import unify_schemas

    batches = X.iter_batches(batch_size=None, batch_format="pyarrow")
    blocks = [plain_types(block) for block in batches]
    if not blocks:
        raise ValueError(f"the data set holds no row: {type(X).__name__}")
    schema = unify_schemas([(f"block {i}", block.schema) for i, block in enumerate(blocks)])
    parts = [pa.schema([schema.field(name) for name in block.column_names]) for block in blocks]
    blocks = [block.cast(part) for block, part in zip(blocks, parts, strict=True)]
    return pa.concat_tables(blocks, promote_options="default").select(schema.names)
