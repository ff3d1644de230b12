"""Progress and errors of workers, stored by actors, and collection of event logs by tasks."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
from skorch.callbacks import Callback

from sk_easytensor.backends.ray.chunks import ObjectStoreChunk
from sk_easytensor.backends.ray.summarize import actor_of_driver, n_cpus, remote, results
from sk_easytensor.data.columns import decoded, row_errors_from
from sk_easytensor.data.keys import hash_strings
from sk_easytensor.data.tables import as_table
from sk_easytensor.events import check_not_missing, collect_sequences
from sk_easytensor.training.descriptions import describe_data, joined_descriptions
from sk_easytensor.training.loop_state import plain
from sk_easytensor.training.progress import DriverProgress, has_moving_output

__all__ = [
    "ErrorCollector",
    "ProgressActor",
    "collect_users",
    "report_progress",
]


SECONDS = 1.0
"""Interval in which the driver fetches epochs, in seconds."""


class ProgressCallback(Callback):
    """Sends the description of the rows and the epochs to an actor, from the first worker.

    Parameters
    ----------
    progress : actor handle
        Handle of a :class:`~sk_easytensor.backends.ray.progress.ProgressActor`.
    """

    def __init__(self, progress):
        self.progress = progress
        self.n_reported = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Send the description of the rows of all workers."""
        rows = net.group.gather(describe_data(net.module_, X, net.valid_rows))
        if net.group.rank == 0:
            self.progress.write_rows.remote(joined_descriptions(rows))

    def on_epoch_end(self, net, **kwargs):
        """Send the epochs that are new, those of a checkpoint included."""
        if net.group.rank == 0:
            complete = [plain(epoch) for epoch in net.history if "train_loss" in epoch]
            self.progress.write_epochs.remote(complete[self.n_reported :])
            self.n_reported = len(complete)

    def on_train_end(self, net, **kwargs):
        """Send the epochs of a checkpoint if none was trained; wait until all are written."""
        self.on_epoch_end(net)
        ray.get(self.progress.read.remote(0))


@contextmanager
def report_progress(settings):
    """Report the progress of workers to the callbacks that run in the driver.

    Parameters
    ----------
    settings : TrainingSettings
        Settings of the training. Callbacks that run in the driver have a method
        ``log_progress(rows, epochs)``.

    Yields
    ------
    TrainingSettings
        Settings for the workers, without these callbacks.
    """
    in_driver = [entry for entry in settings.callbacks if hasattr(_callback(entry), "log_progress")]
    bar = None
    if settings.verbose == 1 and has_moving_output():
        # Workers have no terminal.
        bar = DriverProgress(settings.max_epochs)
        in_driver.append(bar)
        settings = replace(settings, verbose=0)
    if not in_driver:
        yield settings
        return
    in_workers = [entry for entry in settings.callbacks if entry not in in_driver]
    progress = actor_of_driver(ProgressActor)
    in_workers.append(("easytensor_progress", ProgressCallback(progress)))
    reader = Reader(progress, [_callback(entry) for entry in in_driver])
    reader.start()
    try:
        yield replace(settings, callbacks=in_workers)
    finally:
        reader.stop()
        ray.kill(progress)
        if bar is not None:
            bar.close()


class Reader(threading.Thread):
    """Thread that passes new entries of the actor to callbacks at intervals.

    Parameters
    ----------
    progress : actor handle
        Handle of a :class:`~sk_easytensor.backends.ray.progress.ProgressActor`.
    callbacks : list
        Callbacks with a method ``log_progress(rows, epochs)``.
    """

    def __init__(self, progress, callbacks):
        super().__init__(daemon=True)
        self.progress = progress
        self.callbacks = callbacks
        self.last_epoch = 0
        self.ended = threading.Event()

    def run(self):
        """Read at intervals until the training has ended."""
        while not self.ended.wait(SECONDS):
            self.read()

    def stop(self):
        """End the thread and read the remaining entries."""
        self.ended.set()
        self.join()
        self.read()

    def read(self):
        """Pass new entries to the callbacks."""
        rows, epochs = ray.get(self.progress.read.remote(self.last_epoch))
        if epochs:
            self.last_epoch = epochs[-1]["epoch"]
        for callback in self.callbacks:
            callback.log_progress(rows, epochs)


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry


MIN_PARTS, MAX_PARTS = 16, 256
"""Limits of the number of parts into which users are divided, which is otherwise that of chunks."""


def collect_users(log, by, order_by, columns):
    """Collect the events of each user of a log into lists.

    Parameters
    ----------
    log : RayTableDataset
        Log with one row for each event.
    by : str or list of str
        Columns that identify the user.
    order_by : str
        Column of times.
    columns : list of str
        Columns to collect.

    Returns
    -------
    list of ObjectStoreChunk
        Tables with one row for each user, and the columns of lists.

    Raises
    ------
    ValueError
        If a user or a time is missing.

    Notes
    -----
    One task per chunk divides its events among parts by a hash of their users. One task per part
    collects the events of its users. Events of a part are joined in the order of the chunks, so
    that events of the same time stay in the order of the log, and every run gives the same result.
    Ray spills objects to disk that do not fit into its object store.
    """
    by = [by] if isinstance(by, str) else list(by)
    log = log.select(list(dict.fromkeys([*by, order_by, *columns])))
    n_parts = min(max(MIN_PARTS, len(log.chunks)), MAX_PARTS)
    divide = remote(divide_events).options(num_returns=n_parts)
    collect = remote(collect_part).options(num_returns=2)
    reading, running, divided = ray.put(log.reading), [], []
    for chunk in log.chunks:
        parts = divide.remote(chunk, reading, log.chunk_rows, by, order_by, n_parts)
        divided.append(parts)
        running.append(parts[0])
        if len(running) > 2 * n_cpus():
            # At most twice as many chunks as processors are read at a time.
            running = ray.wait(running, fetch_local=False)[1]
    collected = [
        collect.remote(by, order_by, columns, *(parts[part] for parts in divided))
        for part in range(n_parts)
    ]
    chunks, first = [], 0
    counts = results([count for _, count in collected])
    for (ref, _), n_users in zip(collected, counts, strict=True):
        if n_users:
            chunks.append(ObjectStoreChunk(ref, n_users, first))
            first += n_users
    return chunks


def divide_events(chunk, reading, chunk_rows, by, order_by, n_parts):
    """Task: divide a chunk's events among parts by a hash of their users."""
    table = pa.concat_tables([piece for piece, _, _ in reading.pieces(chunk, chunk_rows)])
    with row_errors_from(chunk.first):
        for name in by:
            check_not_missing(table[name], name, "events", "entity")
        check_not_missing(table[order_by], order_by, "events", "time")
    part = user_hashes(table, by) % np.uint64(n_parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(n_parts + 1))
    # A slice would be stored with the memory of the whole table.
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
    """Task: collect the events of a part's users; return table, targets, weights and user count."""
    log = pa.concat_tables(parts)
    if len(log) == 0:
        return None, 0
    lists = collect_sequences(log, by=by, order_by=order_by, columns=columns, prefix="")
    table = as_table(lists.select(columns)).combine_chunks()
    return (table, np.zeros(len(table)), np.ones(len(table))), len(table)


class ProgressActor:
    """Progress of a training, which the first worker writes and the driver reads.

    Attributes
    ----------
    rows : dict
        Description of the rows of all workers.
    epochs : dict of {int: dict}
        Entries of the net's history, by epoch, counted from 1.
    """

    def __init__(self):
        self.rows, self.epochs = {}, {}

    def write_rows(self, rows):
        """Store the description of the rows; workers that replace others write it again."""
        self.rows = rows

    def write_epochs(self, epochs):
        """Store a list of entries of the history."""
        self.epochs.update({epoch["epoch"]: epoch for epoch in epochs})

    def read(self, last_epoch):
        """Return the description of the rows, and the entries of the epochs after `last_epoch`."""
        epochs = [self.epochs[number] for number in sorted(self.epochs) if number > last_epoch]
        return self.rows, epochs


class ErrorCollector:
    """Errors of the user's data or code in all workers."""

    def __init__(self):
        self.errors = []

    def add(self, error):
        """Store an error: a tuple of the worker's rank, the pickled error and its traceback."""
        self.errors.append(error)

    def read(self):
        """Return the list of stored errors."""
        return self.errors
