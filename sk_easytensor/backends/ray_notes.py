"""What workers tell the driver while they train, for callbacks that stay with it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

import ray
from skorch.callbacks import Callback

from sk_easytensor.training.checkpoints import describe_data, joined_descriptions
from sk_easytensor.training.resuming import plain

__all__ = ["noting"]

SECONDS = 1.0
"""Epochs are fetched so often."""


class Notebook:
    """Where the first worker writes, and the driver reads.

    Attributes
    ----------
    rows : dict
        What rows the workers train on.
    epochs : dict of {int: dict}
        What the history of the net holds, by number of epoch.
    """

    def __init__(self):
        self.rows, self.epochs = {}, {}

    def write_rows(self, rows):
        """Note the rows, of which workers that replace others tell again."""
        self.rows = rows

    def write_epochs(self, epochs):
        """Note epochs."""
        self.epochs.update({epoch["epoch"]: epoch for epoch in epochs})

    def read(self, known):
        """Return rows, and the epochs after so many that are known."""
        epochs = [self.epochs[number] for number in sorted(self.epochs) if number > known]
        return self.rows, epochs


class Dictation(Callback):
    """Tells a notebook of rows and epochs, in the first worker.

    Parameters
    ----------
    notebook : actor handle
        Of a :class:`Notebook`.
    """

    def __init__(self, notebook):
        self.notebook = notebook
        self.told = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Tell of all workers' rows."""
        rows = net.group.gather(describe_data(net.module_, X, net.valid_rows))
        if net.group.rank == 0:
            self.notebook.write_rows.remote(joined_descriptions(rows))

    def on_epoch_end(self, net, **kwargs):
        """Tell of the epochs that are new, those of a checkpoint included."""
        if net.group.rank == 0:
            complete = [plain(epoch) for epoch in net.history if "train_loss" in epoch]
            self.notebook.write_epochs.remote(complete[self.told :])
            self.told = len(complete)

    def on_train_end(self, net, **kwargs):
        """Tell what a checkpoint brought, if no epoch was left, and wait until all is written."""
        self.on_epoch_end(net)
        ray.get(self.notebook.read.remote(0))


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
    notebook = ray.remote(Notebook).options(num_cpus=0).remote()
    going.append(("easytensor_dictation", Dictation(notebook)))
    reader = Reader(notebook, [_callback(entry) for entry in staying])
    reader.start()
    try:
        yield replace(settings, callbacks=going)
    finally:
        reader.stop()
        ray.kill(notebook)


class Reader(threading.Thread):
    """Reads a notebook to callbacks from time to time.

    Parameters
    ----------
    notebook : actor handle
        Of a :class:`Notebook`.
    callbacks : list
        Have ``take_notes``.
    """

    def __init__(self, notebook, callbacks):
        super().__init__(daemon=True)
        self.notebook = notebook
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
        """Tell the callbacks what is new."""
        rows, epochs = ray.get(self.notebook.read.remote(self.known))
        if epochs:
            self.known = epochs[-1]["epoch"]
        for callback in self.callbacks:
            callback.take_notes(rows, epochs)


def _callback(entry):
    return entry[1] if isinstance(entry, tuple) else entry
