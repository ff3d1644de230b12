"""Chunks of rows on a cluster: in the object store, in a Ray Dataset or in Parquet files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from sk_easytensor._utils.validation import path_list
from sk_easytensor.backends.ray.summarize import remote, results
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
    """Valid rows in the object store.

    Attributes
    ----------
    ref : ray.ObjectRef
        Reference to a tuple of table, targets and weights.
    n_rows : int
        Number of rows.
    first : int
        Index of its first row among all rows.
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
            # Arrays in the object store are read-only, which torch tensors cannot be.
            yield features, y[part].copy(), weight[part].copy()

    def targets(self, columns):
        """Return a table of the given columns, targets and weights."""
        table, y, weight = ray.get(self.ref)
        return table.select(columns), y, weight


@dataclass
class BlockChunk(RowRange):
    """Rows of a block of a Ray Dataset.

    Attributes
    ----------
    ref : ray.ObjectRef
        Reference to the block, a :class:`pyarrow.Table`.
    schema : pyarrow.Schema
        Schema of the whole data set.
    start, stop : int
        Range of rows of the block.
    first : int
        Index of the first of these rows among all rows.
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
    """Reads table, targets and weights from the columns of a chunk.

    Attributes
    ----------
    read : callable or None
        Makes a valid table of the feature columns; None for chunks in the object store, which are
        valid.
    check_target : callable or None
        Returns valid targets; None for chunks in the object store.
    features, targets, weights : list of str
        Names of the columns of each kind. Without names of targets, targets are zeros; without
        names of weights, weights are ones.
    max_weight : float, default=1.0
        Largest weight of all rows, by which weights are divided.
    row_filter : tuple of (tuple of str, callable) or None, default=None
        Names of columns, and a function of a table of them that returns which rows are read.
    """

    read: object
    check_target: object
    features: list
    targets: list
    weights: list
    max_weight: float = 1.0
    row_filter: tuple | None = None

    @classmethod
    def from_object_store(cls, features):
        """Return a reader of :class:`ObjectStoreChunk`."""
        return cls(None, None, features, [], [])

    def pieces(self, chunk, n_rows):
        """Yield table, targets and weights of a chunk, without rows that are left out."""
        if isinstance(chunk, ObjectStoreChunk):
            yield from chunk.pieces(self, n_rows)
            return
        columns = list(dict.fromkeys([*self.features, *self._further()]))
        for table in chunk.tables(columns, n_rows):
            y, weight, rows = self._targets(table)
            features = self.read(table.select(self.features))
            if len(rows) < len(table):
                features, y, weight = features.take(rows), y[rows], weight[rows]
            if len(features):
                yield features, y, weight

    def targets_of(self, chunk, columns=()):
        """Return some columns, targets and weights of a chunk, without rows that are left out."""
        columns = list(columns)
        if isinstance(chunk, ObjectStoreChunk):
            return chunk.targets(columns)
        names = list(dict.fromkeys([*columns, *self._further()]))
        if not names:
            return pa.table({}), np.zeros(len(chunk)), np.ones(len(chunk))
        table = pa.concat_tables(list(chunk.tables(names, len(chunk))))
        y, weight, rows = self._targets(table)
        table = table.select(columns)
        return (table.take(rows) if columns else table), y[rows], weight[rows]

    def _further(self):
        """Return the names of the columns that are read beside the features."""
        filtered = () if self.row_filter is None else self.row_filter[0]
        return [*self.targets, *self.weights, *filtered]

    def _targets(self, table):
        """Return targets and weights of a table, and the indices of the rows to read."""
        y, weight = np.zeros(len(table)), np.ones(len(table))
        if self.targets:
            y = self.check_target(column_values(table, self.targets))
        if self.weights:
            weight = column_values(table, self.weights).astype(np.float64)
            if not (weight >= 0).all() or not np.isfinite(weight).all():
                raise ValueError(f"column {self.weights[0]!r}: weights must be numbers, at least 0")
            weight = weight / self.max_weight
        retained = weight > 0
        if self.row_filter is not None:
            names, function = self.row_filter
            retained &= function(table.select(list(names)))
        return y, weight, np.flatnonzero(retained)


def stored_chunks(X, n_chunks):
    """Return the schema, of plain types, and at least `n_chunks` chunks of a stored table.

    Parameters
    ----------
    X : str, os.PathLike or ray.data.Dataset
        Path of Parquet files, or data set.
    n_chunks : int
        Smallest number of chunks, as far as there are rows.

    Returns
    -------
    schema : pyarrow.Schema
    chunks : list of FragmentChunk or BlockChunk

    Raises
    ------
    ValueError
        If there is no row, if the types of a column cannot be unified, or if files are in the
        memory of this process.
    """
    if not hasattr(X, "to_arrow_refs"):
        for path in path_list(X):
            if path.startswith("memory://"):
                raise ValueError(
                    f"RayBackend: {path!r} is in the memory of this process, where "
                    "workers cannot read it; pass a path or URL that all machines reach"
                )
        schema, chunks = parquet_chunks(X, n_chunks)
        return plain_schema(schema), chunks
    refs = blocks_in_order(X)
    describe = remote(schema_and_rows)
    descriptions = results([describe.remote(ref) for ref in refs])
    schema = unify_schemas([(f"block {i}", part) for i, (part, _) in enumerate(descriptions)])
    chunks, first = [], 0
    for ref, (_, n_rows) in zip(refs, descriptions, strict=True):
        if n_rows:
            chunks.append(BlockChunk(ref, schema, 0, n_rows, first))
        first += n_rows
    if not chunks:
        raise ValueError("the Ray Dataset has no rows")
    return schema, cut_evenly(chunks, n_chunks)


def blocks_in_order(X):
    """Return references to a Dataset's blocks in the order of its rows."""
    options = X.context.execution_options
    previous, options.preserve_order = options.preserve_order, True
    try:
        return X.to_arrow_refs()
    finally:
        options.preserve_order = previous


def named_columns(X, y, sample_weight):
    """Return the names of the columns of targets, and of weights, of a stored table.

    Raises
    ------
    TypeError
        If targets or weights are values: the order of stored rows is not known in advance.
    """
    targets = target_columns(X, y)
    if (y is not None and not targets) or not isinstance(sample_weight, (str, type(None))):
        raise TypeError(
            "for Parquet files or a Ray Dataset, y and sample_weight must be given as names of "
            f"columns, got {type(y).__name__} and {type(sample_weight).__name__}"
        )
    return targets, [] if sample_weight is None else [sample_weight]


def schema_and_rows(block):
    """Task: return the schema and the number of rows of a block."""
    return plain_schema(block.schema), len(block)
