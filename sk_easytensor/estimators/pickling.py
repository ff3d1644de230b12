"""Pickles that load anywhere: arrays in place of torch objects, and hardly a row of the data."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor._utils.runtime import seeded, with_library_settings
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.trees.forest import TreesModule

__all__ = [
    "PortablePickleMixin",
]


class PortablePickleMixin:
    """Pickle a fitted estimator's network as NumPy arrays and rebuild it on loading.

    The optimizer's state is left out unless ``warm_start`` asks to go on from it.
    """

    def __getstate__(self):
        """Return what is pickled."""
        sample = getattr(self, "_importance_sample", None)
        if sample is not None and sample.quick:
            self.feature_importances_  # noqa: B018 - so that no training row is pickled
        state = super().__getstate__()
        if "network_" in state:
            state = dict(state)
            network = state.pop("network_")
            state["_weights"] = {k: v.numpy() for k, v in network.state_dict().items()}
            state["_trees"] = None if network.trees is None else network.trees.state()
            optimizer_state = state.pop("_optimizer_state", None)
            if getattr(self, "warm_start", False):
                state["_optimizer_state"] = to_numpy(optimizer_state)
        return state

    @with_library_settings
    def __setstate__(self, state):
        """Restore what was pickled."""
        state = dict(state)
        weights, trees = state.pop("_weights", None), state.pop("_trees", None)
        super().__setstate__(state)
        if weights is None:
            return
        if getattr(self, "_optimizer_state", None) is not None:
            self._optimizer_state = to_torch(self._optimizer_state)
        with seeded(0):
            network = make_network(self.blocks_, self._network_trunk, self._head)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        network.load_state_dict(tensors)
        if trees is not None:
            network.trees = TreesModule.of_state(trees)
        self.network_ = network.eval()


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
