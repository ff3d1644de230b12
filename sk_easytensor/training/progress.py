"""Progress of a fit while it runs: its phase, and a bar or a line for each epoch."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from skorch.callbacks import Callback, PrintLog
from tqdm.auto import tqdm

__all__ = [
    "DriverProgress",
    "EpochProgress",
    "has_moving_output",
    "progress_callbacks",
    "show_phase",
]


@contextmanager
def show_phase(name, verbose):
    """Show the name of a phase of a fit within the context, in terminals and notebooks.

    Parameters
    ----------
    name : str
        Name of the phase, such as ``"fitting blocks"``.
    verbose : int
        The phase is shown for 1, as the bar of the epochs is.
    """
    if verbose != 1 or not has_moving_output():
        yield
        return
    bar = tqdm(desc=name, bar_format="{desc} ...", leave=False, file=sys.stderr)
    try:
        yield
    finally:
        bar.close()


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
        self.bar_ = epoch_bar(net.max_epochs)

    def on_epoch_end(self, net, **kwargs):
        """Move the bar, and show the values of the epoch."""
        names = [f"{name}_{net.head.metric}" for name in ("training", *net.plan.names[:1])]
        names += [net.monitor] if net.plan.stopping_metric is not None else []
        shown = formatted(net.history[-1], dict.fromkeys(names))
        if net.monitor != "train_loss":
            values = net.history[:, net.monitor]
            best = min(values) if net.lower_is_better else max(values)
            shown["best"] = values.index(best) + 1
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update(len(net.history) - self.bar_.n)

    def on_train_end(self, net, **kwargs):
        """Leave the bar where it is."""
        self.bar_.close()


class DriverProgress:
    """Progress bar of the epochs of workers, in the process that waits for them.

    Parameters
    ----------
    max_epochs : int
        Number of epochs, unless the training ends before.
    """

    def __init__(self, max_epochs):
        self.max_epochs = max_epochs
        self.bar = None

    def log_progress(self, rows, epochs):
        """Move the bar by epochs that have ended."""
        if self.bar is None:
            self.bar = epoch_bar(self.max_epochs)
        if epochs:
            shown = [name for name in epochs[-1] if is_metric(name)]
            self.bar.set_postfix(formatted(epochs[-1], shown), refresh=False)
            self.bar.update(len(epochs))

    def close(self):
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()


def epoch_bar(max_epochs):
    """Draw a bar of epochs."""
    return tqdm(total=max_epochs, desc="training", unit="epoch", file=sys.stderr)


def is_metric(name):
    """Return whether an entry of the history is a metric of training rows or of the first set."""
    return name.startswith(("training_", "valid_0_")) and not name.endswith("_best")


def formatted(entries, names):
    """Return entries of the history by name, as texts of four digits."""
    return {name: f"{entries[name]:.4g}" for name in names if name in entries}
