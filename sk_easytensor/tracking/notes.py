"""What is noted of a training while it goes on."""

from __future__ import annotations

from skorch.callbacks import Callback

__all__ = ["EpochNotes"]


class EpochNotes(Callback):
    """Notes the rows of a training and the losses of each epoch.

    Parameters
    ----------
    run : TrackedRun
        Where to.

    Notes
    -----
    It stays in the process that called `fit`. If the network is trained by others, what they tell
    comes in by :meth:`take_notes`.
    """

    def __init__(self, run):
        self.run = run
        self.noted = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Note the rows."""
        self.run.note_rows(self.run.describe_rows(net, X))

    def on_epoch_end(self, net, **kwargs):
        """Note the epoch, and those that a checkpoint brought."""
        complete = [epoch for epoch in net.history if "train_loss" in epoch]
        self.run.note_epochs(complete[self.noted :])
        self.noted = len(complete)

    def on_train_end(self, net, **kwargs):
        """Note what a checkpoint brought, if no epoch was left."""
        self.on_epoch_end(net)

    def take_notes(self, rows, epochs):
        """Note what other processes tell of a training.

        Parameters
        ----------
        rows : dict of {str: str}
            Which rows there are.
        epochs : list of dict
            Those that are new.
        """
        self.run.note_rows(rows)
        self.run.note_epochs(epochs)
