"""Ray actors that store the progress and the errors of workers.

Each actor has a process of its own. This module imports nothing, so that the process starts fast.
"""

from __future__ import annotations

__all__ = [
    "ErrorCollector",
    "ProgressActor",
]


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
