"""Prediction and evaluation on a cluster, of batches of a stored table, by copies of the model."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from sk_easytensor._utils.masking import masked_errors
from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor.backends.ray.chunks import Reading, named_columns, stored_chunks
from sk_easytensor.backends.ray.summarize import actor_resources, n_threads, remote, results
from sk_easytensor.data.parquet import parquet_chunks
from sk_easytensor.executor import forward_on
from sk_easytensor.training.table_dataset import require_columns

__all__ = [
    "evaluate_chunks",
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


ROWS_PER_TASK = 16_384
"""Approximate number of rows of a task, which are in memory together with their encodings."""


def evaluate_chunks(backend, X, y, sample_weight, function, random_state, check):
    """Apply a function to chunks of stored rows.

    Parameters
    ----------
    backend : RayBackend
        Backend whose parameters define the number of tasks at a time and their resources.
    X : str, os.PathLike or ray.data.Dataset
        Path of Parquet files, or data set.
    y : str or list of str
        Names of the target columns.
    sample_weight : str or None
        Name of the column of weights.
    function, random_state, check
        As in :meth:`~sk_easytensor.backends.Backend.evaluate`.

    Returns
    -------
    list
        Results of the function for each chunk, in the order of the rows. The rows of a chunk do
        not depend on the number of workers.

    Raises
    ------
    ValueError
        If `y` is None, if columns are missing, or if no row has a positive weight.
    TypeError
        If `y` or `sample_weight` are values instead of names.
    """
    targets, weights = named_columns(X, y, sample_weight)
    if not targets:
        raise ValueError("y must be the name of a column of X, or a list of them, got None")
    schema, chunks = stored_chunks(X, 1)
    require_columns(schema.names, [*targets, *weights])
    features = [name for name in schema.names if name not in {*targets, *weights}]
    check(pa.table([pa.nulls(1, schema.field(name).type) for name in features], names=features))
    reading = Reading(identity, identity, features, targets, weights)
    config = ray.put((reading, cloudpickle.dumps(function), n_threads(backend)))
    seed = int(random_state.randint(np.iinfo(np.int32).max))
    evaluate = remote(evaluate_group).options(**actor_resources(backend))
    n_rows, refs, running = sum(map(len, chunks)), [], []
    for number, group in enumerate(chunk_groups(chunks)):
        if len(running) == max(1, backend.num_workers):
            done, running = ray.wait(running, fetch_local=False)
            results(done)
        running.append(evaluate.remote(group, config, [seed, number], n_rows))
        refs.append(running[-1])
    scores = [score for score in results(refs) if score is not None]
    if not scores:
        raise ValueError(f"no row has a positive weight in column {sample_weight!r}")
    return scores


def identity(values):
    """Return tables and targets unchanged: the model itself validates them."""
    return values


def chunk_groups(chunks):
    """Cut chunks and group them, with about `ROWS_PER_TASK` consecutive rows in each group."""
    groups, size = [[]], 0
    for chunk in chunks:
        for part in chunk.cut(-(-len(chunk) // ROWS_PER_TASK)):
            if size and size + len(part) > ROWS_PER_TASK:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += len(part)
    if len(groups) > 1 and size < ROWS_PER_TASK // 2:
        # Scores of few rows are noisy, or undefined if the rows are of one class.
        last = groups.pop()
        groups[-1] += last
    return groups


def evaluate_group(chunks, config, seed, n_rows):
    """Task: read a group of chunks and evaluate a model; None if no row has a positive weight."""
    reading, function, threads = config
    pieces = [piece for chunk in chunks for piece in reading.pieces(chunk, len(chunk))]
    if not pieces:
        return None
    tables, y, weight = zip(*pieces, strict=True)
    table = pa.concat_tables(tables).unify_dictionaries()
    weight = np.concatenate(weight) if reading.weights else None
    with limited_threads(threads):
        random_state = np.random.RandomState(seed)
        function = pickle.loads(function)
        return function(table, np.concatenate(y), weight, random_state, n_rows)
