"""Evaluation on a cluster: tasks that each score a model on some rows with their targets."""

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


ROWS = 16_384
"""Rows that a task sees, about: encoded and read by all blocks, they are in memory at once."""


def evaluate_chunks(backend, X, y, sample_weight, function, random_state, check):
    """Apply a function to chunks of stored rows.

    Parameters
    ----------
    backend : RayBackend
        Says how many tasks run at a time and what they get.
    X : str, os.PathLike or ray.data.Dataset
        Where the rows are.
    y : str or list of str
        Columns of targets.
    sample_weight : str or None
        Column of weights.
    function, random_state, check
        As of :meth:`~sk_easytensor.backends.Backend.evaluate`.

    Returns
    -------
    list
        What the function returned for each chunk, in the order of the rows. Which rows a chunk has
        does not depend on the number of workers.
    """
    targets, weights = named_columns(X, y, sample_weight)
    if not targets:
        raise ValueError("y must be the name of a column of X, or a list of them, got None")
    schema, chunks = stored_chunks(X, 1)
    require_columns(schema.names, [*targets, *weights])
    features = [name for name in schema.names if name not in {*targets, *weights}]
    check(pa.table([pa.nulls(1, schema.field(name).type) for name in features], names=features))
    reading = Reading(as_it_is, as_it_is, features, targets, weights)
    how = ray.put((reading, cloudpickle.dumps(function), n_threads(backend)))
    seed = int(random_state.randint(np.iinfo(np.int32).max))
    evaluate = remote(evaluate_run).options(**actor_resources(backend))
    n_rows, refs, running = sum(map(len, chunks)), [], []
    for number, run in enumerate(runs(chunks)):
        if len(running) == max(1, backend.num_workers):
            done, running = ray.wait(running, fetch_local=False)
            results(done)
        running.append(evaluate.remote(run, how, [seed, number], n_rows))
        refs.append(running[-1])
    found = [part for part in results(refs) if part is not None]
    if not found:
        raise ValueError(f"no row has a positive weight in column {sample_weight!r}")
    return found


def as_it_is(values):
    """Return tables and targets as they were read: the model reads them once more."""
    return values


def runs(chunks):
    """Cut and join chunks to lists of chunks with about `ROWS` consecutive rows each."""
    found, size = [[]], 0
    for chunk in chunks:
        for part in chunk.cut(-(-len(chunk) // ROWS)):
            if size and size + len(part) > ROWS:
                found.append([])
                size = 0
            found[-1].append(part)
            size += len(part)
    if len(found) > 1 and size < ROWS // 2:
        # Few rows tell little, such as those of one class only.
        last = found.pop()
        found[-1] += last
    return found


def evaluate_run(chunks, how, seed, n_rows):
    """Task: read some rows and evaluate a model on them; None if none has weight."""
    reading, function, threads = how
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
