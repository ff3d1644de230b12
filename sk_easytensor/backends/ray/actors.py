"""Actors that hold what workers report while they train.

A process is started for each of them. This module imports nothing, so that it starts at once.
"""

from __future__ import annotations

__all__ = [
    "ErrorCollector",
    "ProgressActor",
]


class ProgressActor:
    """Rows and epochs that the first worker reports and the driver reads.

    Attributes
    ----------
    rows : dict
        Descriptions of the rows that the workers train on.
    epochs : dict of {int: dict}
        What the history of the net holds, by number of epoch.
    """

    def __init__(self):
        self.rows, self.epochs = {}, {}

    def write_rows(self, rows):
        """Store the descriptions of the rows; workers that replace others write them again."""
        self.rows = rows

    def write_epochs(self, epochs):
        """Store epochs."""
        self.epochs.update({epoch["epoch"]: epoch for epoch in epochs})

    def read(self, known):
        """Return the rows, and the epochs after the first `known`."""
        epochs = [self.epochs[number] for number in sorted(self.epochs) if number > known]
        return self.rows, epochs


class ErrorCollector:
    """Errors of the user's data or code, of all workers."""

    def __init__(self):
        self.errors = []

    def add(self, error):
        """Store the rank, the pickled error and the traceback of a worker."""
        self.errors.append(error)

    def read(self):
        """Return what was stored."""
        return self.errors
