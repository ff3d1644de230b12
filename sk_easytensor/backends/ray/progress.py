"""Progress of training on a cluster, and logs of events that workers collect."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
from skorch.callbacks import Callback

from sk_easytensor.backends.ray.actors import ProgressActor
from sk_easytensor.backends.ray.chunks import ObjectStoreChunk
from sk_easytensor.backends.ray.tasks import n_cpus, remote, results
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.keys import hash_strings
from sk_easytensor.data.tables import as_table
from sk_easytensor.events import check_not_missing, collect_sequences, decoded
from sk_easytensor.training.checkpoint import describe_data, joined_descriptions, plain

__all__ = [
    "collect_users",
    "noting",
]


SECONDS = 1.0
"""Epochs are fetched so often."""


class ProgressCallback(Callback):
    """Reports rows and epochs to the actor, in the first worker.

    Parameters
    ----------
    progress : actor handle
        Of a :class:`~sk_easytensor.backends.ray.actors.ProgressActor`.
    """

    def __init__(self, progress):
        self.progress = progress
        self.reported = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Report the rows of all workers."""
        rows = net.group.gather(describe_data(net.module_, X, net.valid_rows))
        if net.group.rank == 0:
            self.progress.write_rows.remote(joined_descriptions(rows))

    def on_epoch_end(self, net, **kwargs):
        """Report the epochs that are new, those of a checkpoint included."""
        if net.group.rank == 0:
            complete = [plain(epoch) for epoch in net.history if "train_loss" in epoch]
            self.progress.write_epochs.remote(complete[self.reported :])
            self.reported = len(complete)

    def on_train_end(self, net, **kwargs):
        """Report the epochs of a checkpoint if none was trained; wait until all is written."""
        self.on_epoch_end(net)
        ray.get(self.progress.read.remote(0))


@contextmanager
def noting(settings):
    """Keep the callbacks in this process that belong to it, and tell them of the training.

    Parameters
    ----------
    settings : TrainingSettings
        How to train. Callbacks that belong to this process have ``log_progress(rows, epochs)``.

    Yields
    ------
    TrainingSettings
        For the workers.
    """
    staying = [entry for entry in settings.callbacks if hasattr(_callback(entry), "log_progress")]
    if not staying:
        yield settings
        return
    going = [entry for entry in settings.callbacks if entry not in staying]
    progress = ray.remote(ProgressActor).options(num_cpus=0).remote()
    going.append(("easytensor_progress", ProgressCallback(progress)))
    reader = Reader(progress, [_callback(entry) for entry in staying])
    reader.start()
    try:
        yield replace(settings, callbacks=going)
    finally:
        reader.stop()
        ray.kill(progress)


class Reader(threading.Thread):
    """Passes what the actor holds to callbacks, from time to time.

    Parameters
    ----------
    progress : actor handle
        Of a :class:`~sk_easytensor.backends.ray.actors.ProgressActor`.
    callbacks : list
        Have ``log_progress``.
    """

    def __init__(self, progress, callbacks):
        super().__init__(daemon=True)
        self.progress = progress
        self.callbacks = callbacks
        self.known = 0
        self.ended = threading.Event()

    def run(self):
        """Read until the training has ended."""
        while not self.ended.wait(SECONDS):
            self.read()

    def stop(self):
        """Read what is left."""
        self.ended.set()
        self.join()
        self.read()

    def read(self):
        """Give the callbacks what is new."""
        rows, epochs = ray.get(self.progress.read.remote(self.known))
        if epochs:
            self.known = epochs[-1]["epoch"]
        for callback in self.callbacks:
            callback.log_progress(rows, epochs)


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry


PARTS = 16, 256
"""Parts that users are divided among, at least and at most; otherwise as many as chunks."""


def collect_users(log, by, order_by, columns):
    """Collect the events of each user of a log into lists.

    Parameters
    ----------
    log : RayTableDataset
        A row for each event.
    by : str or list of str
        Columns that name the user.
    order_by : str
        Column of times.
    columns : list of str
        Columns to collect.

    Returns
    -------
    list of ObjectStoreChunk
        Tables with a row for each user, and the columns of lists.

    Notes
    -----
    One task a chunk divides its events by a hash of their users, and one task a part collects
    those of its users. Parts are joined in the order of the chunks, so that events of the same
    time stay in the order of the log, and all is the same in every run. Ray keeps on disk what its
    object store has no room for.
    """
    by = [by] if isinstance(by, str) else list(by)
    log = log.select(list(dict.fromkeys([*by, order_by, *columns])))
    n_parts = min(max(PARTS[0], len(log.chunks)), PARTS[1])
    divide = remote(divide_events).options(num_returns=n_parts)
    collect = remote(collect_part).options(num_returns=2)
    reading, running, divided = ray.put(log.reading), [], []
    for chunk in log.chunks:
        parts = divide.remote(chunk, reading, log.chunk_rows, by, order_by, n_parts)
        divided.append(parts)
        running.append(parts[0])
        if len(running) > 2 * n_cpus():
            # So that no more chunks are read than there are processors to read them.
            running = ray.wait(running, fetch_local=False)[1]
    found = [
        collect.remote(by, order_by, columns, *(parts[part] for parts in divided))
        for part in range(n_parts)
    ]
    chunks, first = [], 0
    for (ref, _), n_users in zip(found, results([count for _, count in found]), strict=True):
        if n_users:
            chunks.append(ObjectStoreChunk(ref, n_users, first))
            first += n_users
    return chunks


def divide_events(chunk, reading, chunk_rows, by, order_by, n_parts):
    """Task: divide a chunk's events among parts by their users."""
    table = pa.concat_tables([piece for piece, _, _ in reading.pieces(chunk, chunk_rows)])
    with row_errors_from(chunk.first):
        for name in by:
            check_not_missing(table[name], name, "events", "entity")
        check_not_missing(table[order_by], order_by, "events", "time")
    part = user_hashes(table, by) % np.uint64(n_parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(n_parts + 1))
    # Rows that are taken share no memory with those of other parts.
    return [
        table.take(pa.array(order[start:stop])).combine_chunks() for start, stop in pairwise(bounds)
    ]


def user_hashes(table, by):
    """Return a hash of each event's user, uint64 of shape (n_events,)."""
    total = np.zeros(len(table), dtype=np.uint64)
    for name in by:
        column = decoded(table[name]).combine_chunks().dictionary_encode()
        names = hash_strings(column.dictionary.cast(pa.string()))
        total = total * np.uint64(31) + names[column.indices.to_numpy()]
    return total


def collect_part(by, order_by, columns, *parts):
    """Task: collect the events of a part's users, and count these."""
    log = pa.concat_tables(parts)
    if len(log) == 0:
        return None, 0
    lists = collect_sequences(log, by=by, order_by=order_by, columns=columns, prefix="")
    table = as_table(lists.select(columns)).combine_chunks()
    return (table, np.zeros(len(table)), np.ones(len(table))), len(table)
