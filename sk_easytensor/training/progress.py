"""Progress of a training while it runs: a bar, or a line for each epoch."""

from __future__ import annotations

import sys

from skorch.callbacks import Callback, PrintLog
from tqdm.auto import tqdm

__all__ = [
    "EpochProgress",
    "progress_callbacks",
]


def progress_callbacks(verbose, ignored):
    """Return the callbacks that show the progress of a training.

    Parameters
    ----------
    verbose : int
        0 for none, 1 for a progress bar in terminals and notebooks and a line for each epoch
        elsewhere, more for a line for each epoch.
    ignored : list of str
        Entries of the history that lines leave out.

    Returns
    -------
    list of (str, skorch callback)
    """
    if verbose <= 0:
        return []
    if verbose == 1 and has_moving_output():
        return [("easytensor_progress", EpochProgress())]
    return [("easytensor_print_log", PrintLog(keys_ignored=ignored))]


def has_moving_output():
    """Return whether output is read by a person, and a bar can be drawn over itself."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class EpochProgress(Callback):
    """Progress bar of the epochs, with losses, what decides about the best epoch, and that epoch.

    The time that is left is for all epochs; early stopping may end the training before.
    """

    def on_train_begin(self, net, **kwargs):
        """Draw the bar."""
        self.bar_ = tqdm(total=net.max_epochs, desc="training", unit="epoch", file=sys.stderr)

    def on_epoch_end(self, net, **kwargs):
        """Move the bar, and show the values of the epoch."""
        names = [f"{name}_{net.head.metric}" for name in ("training", *net.plan.names[:1])]
        names += [net.monitor] if net.plan.stopping_metric is not None else []
        entries = net.history[-1]
        shown = {name: f"{entries[name]:.4g}" for name in dict.fromkeys(names) if name in entries}
        if net.monitor != "train_loss":
            values = net.history[:, net.monitor]
            best = min(values) if net.lower_is_better else max(values)
            shown["best"] = values.index(best) + 1
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update(len(net.history) - self.bar_.n)

    def on_train_end(self, net, **kwargs):
        """Leave the bar where it is."""
        self.bar_.close()
