"""Chunks of rows on a cluster: in the object store, in a Ray Dataset, or in Parquet files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from sk_easytensor.backends.ray.tasks import remote, results
from sk_easytensor.data.parquet import RowRange, cut_evenly, parquet_chunks, unify_schemas
from sk_easytensor.data.types import plain_schema, plain_types
from sk_easytensor.training.table_dataset import column_values, target_columns

__all__ = [
    "BlockChunk",
    "ObjectStoreChunk",
    "Reading",
    "named_columns",
    "stored_chunks",
]


@dataclass
class ObjectStoreChunk:
    """Rows that are in the object store, read and checked already.

    Attributes
    ----------
    ref : ray.ObjectRef
        Of table, targets and weights.
    n_rows : int
        How many rows.
    first : int
        Where its first row is among all rows.
    """

    ref: object
    n_rows: int
    first: int

    def __len__(self):
        return self.n_rows

    def pieces(self, reading, n_rows):
        """Yield table, targets and weights of at most `n_rows` rows at a time."""
        table, y, weight = ray.get(self.ref)
        for start in range(0, len(table), n_rows):
            part = slice(start, start + n_rows)
            features = table.slice(start, n_rows).select(reading.features)
            # The object store's memory is read-only, which torch has no word for.
            yield features, y[part].copy(), weight[part].copy()

    def targets(self, columns):
        """Return some columns, targets and weights."""
        table, y, weight = ray.get(self.ref)
        return table.select(columns), y, weight


@dataclass
class BlockChunk(RowRange):
    """Rows of a block of a Ray Dataset.

    Attributes
    ----------
    ref : ray.ObjectRef
        Of the block, a table.
    schema : pyarrow.Schema
        Of the whole data set.
    start, stop, first : int
        Its rows, and where they begin among all rows.
    """

    ref: object
    schema: pa.Schema
    start: int
    stop: int
    first: int

    def tables(self, columns, n_rows):
        """Yield the chunk's rows in tables of at most `n_rows` rows."""
        block = plain_types(ray.get(self.ref).slice(self.start, len(self)))
        fields = [self.schema.field(name) for name in columns]
        arrays = [
            block.column(field.name).cast(field.type)
            if field.name in block.column_names
            else pa.nulls(len(block), field.type)
            for field in fields
        ]
        table = pa.table(arrays, schema=pa.schema(fields))
        for start in range(0, len(table), n_rows):
            yield table.slice(start, n_rows)


@dataclass
class Reading:
    """How rows are made of a chunk's columns.

    Attributes
    ----------
    read, check_target : callable
        Make a valid table and valid targets.
    features, targets, weights : list of str
        Columns of each kind. Without targets, these are zeros.
    most : float
        Largest weight of all rows.
    """

    read: object
    check_target: object
    features: list
    targets: list
    weights: list
    most: float = 1.0

    @classmethod
    def of_held(cls, features):
        """Return how rows are made of chunks that were read and checked already."""
        return cls(None, None, features, [], [])

    def pieces(self, chunk, n_rows):
        """Yield table, targets and weights of a chunk, without rows of weight zero."""
        if isinstance(chunk, ObjectStoreChunk):
            yield from chunk.pieces(self, n_rows)
            return
        columns = [*self.features, *self.targets, *self.weights]
        for table in chunk.tables(columns, n_rows):
            y, weight, kept = self._targets(table)
            features = self.read(table.select(self.features))
            if len(kept) < len(table):
                features, y, weight = features.take(kept), y[kept], weight[kept]
            if len(features):
                yield features, y, weight

    def targets_of(self, chunk, columns=()):
        """Return some columns, targets and weights of a chunk, without rows of weight zero."""
        columns = list(columns)
        if isinstance(chunk, ObjectStoreChunk):
            return chunk.targets(columns)
        wanted = list(dict.fromkeys([*columns, *self.targets, *self.weights]))
        if not wanted:
            return pa.table({}), np.zeros(len(chunk)), np.ones(len(chunk))
        table = pa.concat_tables(list(chunk.tables(wanted, len(chunk))))
        y, weight, kept = self._targets(table)
        table = table.select(columns)
        return (table.take(kept) if columns else table), y[kept], weight[kept]

    def _targets(self, table):
        y, weight = np.zeros(len(table)), np.ones(len(table))
        if self.targets:
            y = self.check_target(column_values(table, self.targets))
        if self.weights:
            weight = column_values(table, self.weights).astype(np.float64)
            if not (weight >= 0).all() or not np.isfinite(weight).all():
                raise ValueError(f"column {self.weights[0]!r}: weights must be numbers, at least 0")
            weight = weight / self.most
        return y, weight, np.flatnonzero(weight > 0)


def stored_chunks(X, n_chunks):
    """Return the schema, of plain types, and the chunks of Parquet files or a Ray Dataset."""
    if not hasattr(X, "to_arrow_refs"):
        schema, chunks = parquet_chunks(X, n_chunks)
        return plain_schema(schema), chunks
    refs = blocks_in_order(X)
    measure = remote(schema_and_rows)
    found = results([measure.remote(ref) for ref in refs])
    schema = unify_schemas([(f"block {i}", part) for i, (part, _) in enumerate(found)])
    chunks, first = [], 0
    for ref, (_, n_rows) in zip(refs, found, strict=True):
        if n_rows:
            chunks.append(BlockChunk(ref, schema, 0, n_rows, first))
        first += n_rows
    if not chunks:
        raise ValueError("the Ray Dataset holds no row")
    return schema, cut_evenly(chunks, n_chunks)


def blocks_in_order(X):
    """Return references to a Dataset's blocks in the order of its rows, whichever ends first."""
    options = X.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        return X.to_arrow_refs()
    finally:
        options.preserve_order = before


def named_columns(X, y, sample_weight):
    """Return the columns of targets, and those of weights, that a stored table is given with.

    Raises
    ------
    TypeError
        If targets or weights are values, whose rows nobody could tell.
    """
    targets = target_columns(X, y)
    if (y is not None and not targets) or not isinstance(sample_weight, (str, type(None))):
        raise TypeError(
            "of Parquet files or a Ray Dataset, y and sample_weight must be given as names of "
            f"columns, got {type(y).__name__} and {type(sample_weight).__name__}"
        )
    return targets, [] if sample_weight is None else [sample_weight]


def schema_and_rows(block):
    """Task: describe a block of a Dataset."""
    return plain_schema(block.schema), len(block)
