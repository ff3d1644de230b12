"""Early stopping, with the best weights kept."""

from __future__ import annotations

from copy import deepcopy

from skorch.callbacks import EarlyStopping

__all__ = ["BestEpoch"]


class BestEpoch(EarlyStopping):
    """skorch's early stopping by the loss or metric that the net monitors.

    Parameters
    ----------
    patience : int
        Epochs without a better value after which training ends.
    load_best : bool, default=True
        Whether the weights of the best epoch are restored at the end.
    """

    def __init__(self, patience, load_best=True):
        super().__init__(patience=patience, threshold=0, load_best=load_best, sink=_silent)

    def on_train_begin(self, net, **kwargs):
        """Forget earlier trainings."""
        self.monitor, self.lower_is_better = net.monitor, net.lower_is_better
        super().on_train_begin(net, **kwargs)

    def start_from(self, net, scores):
        """Take the initial weights for epoch 0, which has the given scores."""
        self.dynamic_threshold_ = scores[self.monitor]
        if self.load_best:
            self.best_model_weights_ = deepcopy(net.module_.state_dict())


def _silent(text):
    """Keep skorch's early stopping from printing."""
