"""Evaluation on a cluster: tasks that score a model on consecutive rows of a stored table."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle

from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor.backends.ray.chunks import Reading, named_columns, stored_chunks
from sk_easytensor.backends.ray.tasks import actor_resources, n_threads, remote, results
from sk_easytensor.training.table_dataset import require_columns

__all__ = [
    "evaluate_chunks",
]


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
