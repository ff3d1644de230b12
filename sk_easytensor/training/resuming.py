"""The state of a training loop as plain values, and a loop that goes on from it."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["capture", "restore"]


def capture(net, average, ended):
    """Return all that the rest of a training depends on.

    Parameters
    ----------
    net : TensorNet
        After an epoch, with the averaged weights in its module.
    average : WeightAverage
        Of the weights.
    ended : bool
        Whether a callback ended the training.

    Returns
    -------
    dict
        Nested dictionaries and lists of tensors, numbers and strings. Of callbacks, attributes
        whose names end in an underscore are kept if they are such values, or objects with a
        ``state_dict``.
    """
    cuda = torch.device(net.device).type == "cuda"
    return {
        "history": [plain(epoch) for epoch in net.history],
        "network": net.module_.state_dict(),
        "average": {"shadow": average.shadow, "steps": average.steps},
        "optimizer": net.optimizer_.state_dict(),
        "callbacks": {name: callback_state(callback) for name, callback in net.callbacks_},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(net.device) if cuda else None,
        "ended": ended,
    }


def restore(net, average, state):
    """Bring a net that is about to train to a state that was captured.

    Parameters
    ----------
    net : TensorNet
        Initialised, its callbacks begun.
    average : WeightAverage
        Of its weights.
    state : dict
        What :func:`capture` returned.
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
    for name, callback in net.callbacks_:
        restore_callback(callback, state["callbacks"].get(name, {}))
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"], net.device)


def callback_state(callback):
    """Return what a callback has learned so far."""
    learned = {name: value for name, value in vars(callback).items() if name.endswith("_")}
    state = {"values": plain(learned), "objects": {}}
    for name, value in learned.items():
        if hasattr(value, "state_dict") and not isinstance(value, type):
            state["objects"][name] = plain(value.state_dict())
    return state


def restore_callback(callback, state):
    """Give a callback what it had learned."""
    vars(callback).update(state.get("values", {}))
    for name, value in state.get("objects", {}).items():
        getattr(callback, name).load_state_dict(value)


def plain(values):
    """Return those of some named values that are numbers, strings, tensors or made of them."""
    converted = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in converted.items() if value is not OTHER}


OTHER = object()


def _plain(value):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return OTHER if any(item is OTHER for item in items.values()) else items
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return OTHER if any(item is OTHER for item in items) else type(value)(items)
    return OTHER
