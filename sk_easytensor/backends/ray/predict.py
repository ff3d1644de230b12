"""Prediction on a cluster: rows stream past actors that hold the model."""

from __future__ import annotations

import pickle

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from sk_easytensor._utils.masking import masked_errors
from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor.backends.ray.tasks import actor_resources, n_threads
from sk_easytensor.data.parquet import parquet_chunks
from sk_easytensor.executor import forward_on

__all__ = [
    "map_batches",
    "stored_schema",
]


ROWS = 16_384
"""Rows that an actor predicts at a time."""


def map_batches(backend, call, X):
    """Apply a method of a fitted estimator to Parquet files or a Ray Dataset.

    Parameters
    ----------
    backend : RayBackend
        Says how many actors there are and what they get.
    call : StoredCall
        What is done with the rows.
    X : str, os.PathLike or ray.data.Dataset
        Where the rows are.

    Returns
    -------
    ray.data.Dataset
        Lazy, with the columns of `X` and those of the results.
    """
    n_actors = max(1, backend.num_workers)
    if hasattr(X, "to_arrow_refs"):
        call = call.prepared(stored_schema(X))
        rows = X
    else:
        schema, chunks = parquet_chunks(X, n_actors)
        call = call.prepared(schema)
        source = ParquetChunks(schema, chunks)
        rows = ray.data.read_datasource(source, override_num_blocks=len(chunks))
        # The context is this Dataset's own. Predictions come in the order of the files.
        rows.context.execution_options.preserve_order = True
        rows.context.raise_original_map_exception = True
    return rows.map_batches(
        Predictor,
        fn_constructor_args=(ray.put(cloudpickle.dumps(call)), n_threads(backend)),
        batch_size=min(ROWS, backend.chunk_rows),
        batch_format="pyarrow",
        # The first alone may be all that fits while others read.
        compute=ActorPoolStrategy(min_size=1, max_size=n_actors),
        **actor_resources(backend),
    )


def stored_schema(X):
    """Return the schema of a Ray Dataset, for which its first rows may have to be made."""
    schema = X.schema()
    schema = None if schema is None else schema.base_schema
    if not isinstance(schema, pa.Schema):
        # Pandas does not say what its columns of objects hold.
        tables = X.limit(1).iter_batches(batch_format="pyarrow", batch_size=1)
        table = next(iter(tables), None)
        if table is None:
            raise ValueError("the Ray Dataset holds no row")
        schema = table.schema
    return schema.remove_metadata()


class ParquetChunks(Datasource):
    """Parquet files as the blocks are fitted on them: the same files, types and order.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of all files.
    chunks : list of FragmentChunk
        Rows of the files.
    """

    def __init__(self, schema, chunks):
        super().__init__()
        self.schema = schema
        self.chunks = chunks

    def get_name(self):
        """Return what the source is called in Ray's messages."""
        return "Parquet"

    def estimate_inmemory_data_size(self):
        """Return how many bytes the rows take, which is not known."""

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):
        """Return a task for each chunk."""
        return [
            ReadTask(
                ChunkReader(chunk, self.schema.names),
                BlockMetadata(
                    num_rows=len(chunk), size_bytes=None, exec_stats=None, input_files=None
                ),
                schema=self.schema,
                per_task_row_limit=per_task_row_limit,
            )
            for chunk in self.chunks
        ]


class ChunkReader:
    """Reads a chunk, some rows at a time."""

    def __init__(self, chunk, names):
        self.chunk = chunk
        self.names = names

    def __call__(self):
        """Yield the chunk's rows in tables."""
        with masked_errors():
            yield from self.chunk.stored_tables(self.names, ROWS)


class Predictor:
    """Actor that holds a model and adds its results to tables.

    Parameters
    ----------
    call : ray.ObjectRef
        Of a pickled :class:`~sk_easytensor.estimators.stored.StoredCall`.
    threads : int
        How many to use.
    """

    def __init__(self, call, threads):
        # Unpickled from bytes, arrays can be written to, unlike in the object store's memory.
        self.call = pickle.loads(ray.get(call))
        self.call.estimator.n_jobs = self.threads = threads
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        if self.device != "cpu":
            for part in (self.call.estimator, *vars(self.call.estimator).values()):
                # The estimator itself or its towers.
                if "network_" in getattr(part, "__dict__", ()):
                    part.network_.to(self.device)
                    part._use_torch()

    def __call__(self, table):
        """Return a table with the columns of the results."""
        with masked_errors(), limited_threads(self.threads), forward_on(self.device):
            for name, array in self.call.columns(table).items():
                table = table.append_column(name, array)
        return table
