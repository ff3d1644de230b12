"""The state of fitted estimators: pickling, copying, sending to workers, restoring."""

from __future__ import annotations

from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np
import torch

from sk_easytensor._utils.runtime import seeded, with_library_settings
from sk_easytensor.backends import Backend
from sk_easytensor.export.engines import RUNNING_ENGINE
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.ensemble import join_networks
from sk_easytensor.tracking.tracker import RUN, with_active_run
from sk_easytensor.trees.forest import load_network_state, network_state

if TYPE_CHECKING:
    from sk_easytensor._utils.typing import Method

__all__ = [
    "FittedStateMixin",
    "restored_on_error",
    "to_numpy",
]


LOCATIONS = ("checkpoint_dir", "tracker")
"""Parameters that name places where a fit writes, which pickles of fitted models do not hold."""

ONLY_TRAINING = ("_importance_sample", "_optimizer_state", RUN)
"""Attributes that predictions do not need."""


class FittedStateMixin:
    """Pickling and copying of estimators with a network.

    A pickle holds arrays in place of torch objects, and no rows of data other than the encoded
    sample for importances, if there are many columns. It loads on any machine. A pickle of a fitted
    model holds neither the tracker nor locations of files. It holds the optimizer's state only with
    ``warm_start=True``. The network is rebuilt on loading, and an inference engine is started again
    when it is needed.
    """

    def __getstate__(self):
        """Return the state to be pickled."""
        sample = getattr(self, "_importance_sample", None)
        if sample is not None and sample.quick:
            # So that no training row is pickled.
            self._compute_importances()
        state = dict(with_active_run(super().__getstate__()))
        state.pop(RUNNING_ENGINE, None)
        if "network_" in state:
            networks = state.pop("network_").networks
            state["_networks"] = [network_state(network) for network in networks]
            optimizer_state = state.pop("_optimizer_state", None)
            if getattr(self, "warm_start", False):
                state["_optimizer_state"] = to_numpy(optimizer_state)
        if "n_iter_" in state:
            state.update(dict.fromkeys(LOCATIONS))
            if isinstance(state.get("backend"), Backend):
                state["backend"] = state["backend"].without_secrets()
        return state

    @with_library_settings
    def __setstate__(self, state):
        """Restore a pickled state."""
        state = dict(state)
        states = state.pop("_networks", None)
        super().__setstate__(state)
        if "checkpoint_dir" in vars(self):
            # Formats other than pickle support plain strings only.
            self.checkpoint_dir = vars(self)["checkpoint_dir"]
        if states is None:
            return
        if getattr(self, "_optimizer_state", None) is not None:
            self._optimizer_state = to_torch(self._optimizer_state)
        networks = []
        for saved in states:
            with seeded(0):
                network = make_network(self.blocks_, self._network_trunk, self._head)
            load_network_state(network, saved)
            networks.append(network)
        self.network_ = join_networks(networks).eval()

    def __copy__(self):
        return self._copied(lambda value: value)

    def __deepcopy__(self, memo):
        return self._copied(lambda value: deepcopy(value, memo), memo)

    def _copied(self, copy_of, memo=None):
        """Return a copy, which keeps the parameters that pickles leave out."""
        copied = object.__new__(type(self))
        if memo is not None:
            memo[id(self)] = copied
        copied.__setstate__(copy_of(self.__getstate__()))
        for name in (*LOCATIONS, "backend"):
            if name in vars(self):
                vars(copied)[name] = copy_of(vars(self)[name])
        return copied

    def _predict_copy(self):
        """Return a copy of the fitted estimator for predictions in another process."""
        copied = object.__new__(type(self))
        vars(copied).update({k: v for k, v in vars(self).items() if k not in ONLY_TRAINING})
        copied.backend = "local"
        copied.callbacks = copied.checkpoint_dir = copied.tracker = None
        return copied

    def _clear_state(self):
        """Delete the fitted attributes of a previous fit."""
        for name in [name for name in vars(self) if name.endswith("_") and name[0] != "_"]:
            delattr(self, name)


def restored_on_error(fit: Method) -> Method:
    """Decorate a ``fit`` so that the estimator is unchanged if it raises an error.

    A fitted estimator then keeps its previous fit, and one that was not fitted stays so. The
    decorated method must replace fitted attributes and change none in place.
    """

    @wraps(fit)
    def restoring(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return restoring


def to_numpy(state):
    """Replace the tensors in nested dictionaries and lists by arrays."""
    if isinstance(state, dict):
        return {key: to_numpy(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_numpy(value) for value in state]
    return state.cpu().numpy() if isinstance(state, torch.Tensor) else state


def to_torch(state):
    """Replace the arrays in nested dictionaries and lists by tensors."""
    if isinstance(state, dict):
        return {key: to_torch(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_torch(value) for value in state]
    return torch.from_numpy(np.array(state)) if isinstance(state, np.ndarray) else state
