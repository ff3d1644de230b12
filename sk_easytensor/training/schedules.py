"""Learning-rate schedules, stepped once a batch."""

from __future__ import annotations

import math

from skorch.callbacks import Callback

__all__ = ["StepSchedule"]


class StepSchedule(Callback):
    """Warm up, hold, and anneal to a small fraction over the planned number of epochs.

    Parameters
    ----------
    max_epochs : int
        Epochs the whole schedule takes.
    warm_up : float, default=0.02
        Fraction of the steps with a rising rate.
    hold : float, default=0.1
        Fraction of the steps before annealing begins.
    final : float, default=0.02
        Last rate over the first.
    """

    def __init__(self, max_epochs, warm_up=0.02, hold=0.1, final=0.02):
        self.max_epochs = max_epochs
        self.warm_up = warm_up
        self.hold = hold
        self.final = final

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.total_ = self.max_epochs * net.group.steps(len(X), net.batch_size)
        self.step_ = 0
        self.rates_ = [group["lr"] for group in net.optimizer_.param_groups]

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        factor = self.factor(self.step_ / max(self.total_, 1))
        for group, rate in zip(net.optimizer_.param_groups, self.rates_, strict=True):
            group["lr"] = rate * factor
        self.step_ += 1

    def on_train_end(self, net, X=None, y=None, **kwargs):
        for group, rate in zip(net.optimizer_.param_groups, self.rates_, strict=True):
            group["lr"] = rate

    def factor(self, progress):
        """Return the rate at some progress, from 0 to 1, over the full rate."""
        if progress < self.warm_up:
            return (progress + 1e-3) / (self.warm_up + 1e-3)
        if progress < self.hold:
            return 1.0
        fraction = min((progress - self.hold) / (1 - self.hold), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fraction))
