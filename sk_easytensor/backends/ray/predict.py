"""Prediction on a cluster: actors with a copy of the model predict batches of a stored table."""

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


BATCH_ROWS = 16_384
"""Largest number of rows that an actor predicts at a time."""


def map_batches(backend, call, X):
    """Apply a method of a fitted estimator to Parquet files or a Ray Dataset.

    Parameters
    ----------
    backend : RayBackend
        Backend whose parameters define the number of actors and their resources.
    call : StoredCall
        Method of the estimator with its other arguments.
    X : str, os.PathLike or ray.data.Dataset
        Path of Parquet files, or data set.

    Returns
    -------
    ray.data.Dataset
        Lazy data set with the columns of `X` and those of the results.

    Raises
    ------
    ValueError
        If columns are missing, or have the name of a column of the results.
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
        # The context belongs to this Dataset only. Predictions are in the order of the files.
        rows.context.execution_options.preserve_order = True
        rows.context.raise_original_map_exception = True
    return rows.map_batches(
        Predictor,
        fn_constructor_args=(ray.put(cloudpickle.dumps(call)), n_threads(backend)),
        batch_size=min(BATCH_ROWS, backend.chunk_rows),
        batch_format="pyarrow",
        # While tasks read, there may be processors for a single actor only.
        compute=ActorPoolStrategy(min_size=1, max_size=n_actors),
        **actor_resources(backend),
    )


def stored_schema(X):
    """Return the schema of a Ray Dataset, which may have to compute its first rows."""
    schema = X.schema()
    schema = None if schema is None else schema.base_schema
    if not isinstance(schema, pa.Schema):
        # Schemas of pandas blocks do not have the types of values in object columns.
        tables = X.limit(1).iter_batches(batch_format="pyarrow", batch_size=1)
        table = next(iter(tables), None)
        if table is None:
            raise ValueError("the Ray Dataset has no rows")
        schema = table.schema
    return schema.remove_metadata()


class ParquetChunks(Datasource):
    """Ray data source of Parquet files, with the files, types and order of a fit.

    Parameters
    ----------
    schema : pyarrow.Schema
        Unified schema of all files.
    chunks : list of FragmentChunk
        Chunks of the files.
    """

    def __init__(self, schema, chunks):
        super().__init__()
        self.schema = schema
        self.chunks = chunks

    def get_name(self):
        """Return the name of the source in Ray's messages."""
        return "Parquet"

    def estimate_inmemory_data_size(self):
        """Return None: the size of the rows in memory is not known."""

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
    """Function of a read task: reads a chunk in pieces."""

    def __init__(self, chunk, names):
        self.chunk = chunk
        self.names = names

    def __call__(self):
        """Yield the chunk's rows in tables."""
        with masked_errors():
            yield from self.chunk.stored_tables(self.names, BATCH_ROWS)


class Predictor:
    """Actor with a copy of a model, which appends the columns of its results to tables.

    Parameters
    ----------
    call : ray.ObjectRef
        Reference to a pickled :class:`~sk_easytensor.estimators.stored.StoredCall`.
    threads : int
        Number of threads.
    """

    def __init__(self, call, threads):
        # Arrays unpickled from bytes are writable, unlike those in the object store's memory.
        self.call = pickle.loads(ray.get(call))
        self.call.estimator.n_jobs = self.threads = threads
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        if self.device != "cpu":
            for part in (self.call.estimator, *vars(self.call.estimator).values()):
                # The network is an attribute of the estimator or of its towers.
                if "network_" in getattr(part, "__dict__", ()):
                    part.network_.to(self.device)
                    part._use_torch()

    def __call__(self, table):
        """Return a table with the columns of the results."""
        with masked_errors(), limited_threads(self.threads), forward_on(self.device):
            for name, array in self.call.columns(table).items():
                table = table.append_column(name, array)
        return table
