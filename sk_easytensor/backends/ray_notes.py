"""Progress that workers report to the driver, for callbacks that run there."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

import ray
from skorch.callbacks import Callback

from sk_easytensor.backends.ray_actors import ProgressActor
from sk_easytensor.training.checkpoints import describe_data, joined_descriptions
from sk_easytensor.training.resuming import plain

__all__ = ["noting"]

SECONDS = 1.0
"""Epochs are fetched so often."""


class ProgressCallback(Callback):
    """Reports rows and epochs to the actor, in the first worker.

    Parameters
    ----------
    progress : actor handle
        Of a :class:`~sk_easytensor.backends.ray_actors.ProgressActor`.
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
        How to train. Callbacks that belong to this process have ``take_notes(rows, epochs)``.

    Yields
    ------
    TrainingSettings
        For the workers.
    """
    staying = [entry for entry in settings.callbacks if hasattr(_callback(entry), "take_notes")]
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
        Of a :class:`~sk_easytensor.backends.ray_actors.ProgressActor`.
    callbacks : list
        Have ``take_notes``.
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
            callback.take_notes(rows, epochs)


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry
