"""State of the training loop, from which a training can be resumed."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice
from time import perf_counter, time

import numpy as np
import torch

__all__ = [
    "EpochPosition",
    "load_callback_states",
    "load_loop_state",
    "loop_state",
    "plain",
]


class EpochPosition:
    """How far a training is within an epoch, and the sums of its loss so far.

    Parameters
    ----------
    state : dict or None, default=None
        Result of :meth:`state_dict` at which the epoch is resumed; None for its beginning.

    Attributes
    ----------
    steps : int
        Number of steps.
    n_rows : int
        Number of rows in these steps.
    loss, unit_loss : float or torch.Tensor
        Sums over these rows, on the scale of training and in the units of the targets.
    random : torch.Tensor or None
        State of torch's random generator at the beginning of the epoch; None before the first step.
    seconds : float
        Duration of these steps.
    ends : bool
        Whether a callback of this worker ends the training after the epoch.
    masks : dict of {str: dict}
        Dropout masks of the next steps, by the name of the module.
    """

    def __init__(self, state=None):
        self.steps = self.n_rows = 0
        self.loss = self.unit_loss = self.seconds = 0.0
        self.random, self.ends, self.masks = None, False, {}
        vars(self).update({} if state is None else state)
        self._begin = perf_counter() - self.seconds

    def state_dict(self, network, ends):
        """Return the position and the masks of a network as numbers and tensors on the CPU.

        Workers exchange their positions, and may not have the devices of each other.
        """
        self.seconds, self.ends = perf_counter() - self._begin, ends
        self.masks = {name: module.mask_state() for name, module in _masked(network)}
        return {name: _on_cpu(value) for name, value in vars(self).items() if name[0] != "_"}

    def remaining(self, batches, network):
        """Yield the batches of the epoch that are left.

        Dropout masks of the network, and the random state of torch, are the same as if one process
        had yielded all batches.
        """
        if self.random is None:
            self.random = torch.get_rng_state()
            yield from batches
            return
        device = next(network.parameters()).device
        for name, module in _masked(network):
            module.load_mask_state(self.masks[name], device)
        now = torch.get_rng_state()
        torch.set_rng_state(self.random)
        batches = islice(batches, self.steps - 1, None)
        next(batches)
        torch.set_rng_state(now)
        yield from batches

    def add(self, n_rows, loss, unit_loss):
        """Count a step over some rows, with its mean losses."""
        self.steps += 1
        self.n_rows += n_rows
        self.loss = self.loss + loss * n_rows
        self.unit_loss = self.unit_loss + unit_loss * n_rows


def _on_cpu(value):
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return value


def _masked(network):
    """Return names and modules that hold dropout masks of several steps."""
    return [pair for pair in network.named_modules() if hasattr(pair[1], "mask_state")]


def loop_state(net, average, ended, position=None):
    """Return the state that the rest of a training depends on.

    Parameters
    ----------
    net : TensorNet
        Net after an epoch, or within one, with the averaged weights in its module.
    average : WeightAverage
        Moving average of the weights.
    ended : bool
        Whether a callback ended the training.
    position : EpochPosition, optional
        Position within an epoch.

    Returns
    -------
    dict
        Nested dictionaries and lists of tensors, numbers and strings. The state of a callback
        consists of its attributes whose names end in an underscore, if they are such values or
        objects with a ``state_dict``.
    """
    cuda = torch.device(net.device).type == "cuda"
    return {
        "history": [plain(epoch) for epoch in net.history if "train_loss" in epoch],
        "network": net.module_.state_dict(),
        "average": {"shadow": average.shadow, "steps": average.steps},
        "optimizer": net.optimizer_.state_dict(),
        "callbacks": {name: callback_state(callback) for name, callback in net.callbacks_},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(net.device) if cuda else None,
        # Within an epoch it is completed first.
        "ended": ended and position is None,
        "pending_decays": net.row_updates.pending_decays,
        "position": None if position is None else position.state_dict(net.module_, ended),
    }


def load_loop_state(net, average, state):
    """Load a state into a net that is about to train, and return the position within an epoch.

    Parameters
    ----------
    net : TensorNet
        Initialised net whose callbacks were notified of ``on_train_begin``.
    average : WeightAverage
        Moving average of its weights.
    state : dict
        Result of :func:`loop_state`.

    Returns
    -------
    EpochPosition or None
        None at the end of an epoch.
    """
    for epoch in state["history"]:
        net.history.new_epoch()
        for name, value in epoch.items():
            net.history.record(name, value)
    net.module_.load_state_dict(state["network"])
    for shadow, saved in zip(average.shadow, state["average"]["shadow"], strict=True):
        shadow.copy_(saved)
    average.steps, average.swapped = state["average"]["steps"], True
    net.optimizer_.load_state_dict(state["optimizer"])
    net.row_updates.pending_decays = state["pending_decays"]
    load_callback_states(net, state)
    return None if state["position"] is None else EpochPosition(state["position"])


def load_callback_states(net, state):
    """Load states of callbacks and of random generators, also those of an epoch that has begun."""
    for name, callback in net.callbacks_:
        load_callback_state(callback, state["callbacks"].get(name, {}))
        if state["position"] is not None and hasattr(callback, "epoch_start_time_"):
            # The epoch has taken as long as its steps did, however long ago they were.
            callback.epoch_start_time_ = time() - state["position"]["seconds"]
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"], net.device)


def callback_state(callback):
    """Return the state of a callback, the attributes whose names end in an underscore."""
    attributes = {name: value for name, value in vars(callback).items() if name.endswith("_")}
    state = {"values": plain(attributes), "objects": {}}
    for name, value in attributes.items():
        if hasattr(value, "state_dict") and not isinstance(value, type):
            state["objects"][name] = plain(value.state_dict())
    return state


def load_callback_state(callback, state):
    """Load the result of :func:`callback_state` into a callback."""
    # The state is loaded again where an epoch is resumed, and must not be changed by the callback.
    vars(callback).update(deepcopy(state.get("values", {})))
    for name, value in state.get("objects", {}).items():
        getattr(callback, name).load_state_dict(value)


def plain(values):
    """Return the entries that are numbers, strings, tensors, or lists and dictionaries of them."""
    converted = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in converted.items() if value is not NOT_PLAIN}


NOT_PLAIN = object()


def _plain(value):
    """Return a value with NumPy scalars as numbers; `NOT_PLAIN` for values of other types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return NOT_PLAIN if any(item is NOT_PLAIN for item in items.values()) else items
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return NOT_PLAIN if any(item is NOT_PLAIN for item in items) else type(value)(items)
    return NOT_PLAIN
