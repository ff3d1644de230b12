"""Data and callbacks that Ray's workers get by value, because they cannot import tests."""

import os
import signal
import sys

import numpy as np
import pandas as pd
import torch.distributed as distributed
from skorch.callbacks import Callback


def make_shop(n_rows, seed=0):
    """Return rows of numbers, categories and lists, with labels and weights."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "city": rng.choice(["Oslo", "Lima", "Rome"], n_rows),
            "tags": [list(rng.choice(["a", "b", "c"], k)) for k in rng.integers(0, 4, n_rows)],
        }
    )
    score = frame["amount"] + (frame["city"] == "Oslo") + 0.1 * rng.normal(size=n_rows)
    frame.loc[rng.random(n_rows) < 0.1, "amount"] = None
    frame["score"] = score
    frame["label"] = np.where(score > 0.3, "yes", "no")
    frame["weight"] = rng.integers(0, 3, n_rows) / 2
    return frame


def rank():
    return distributed.get_rank() if distributed.is_initialized() else 0


class Epochs(Callback):
    """Writes the number of each epoch that begins to a file, in the first worker."""

    def __init__(self, path):
        self.path = str(path)

    def on_epoch_begin(self, net, **kwargs):
        if rank() == 0:
            with open(self.path, "a") as file:
                print(len(net.history), file=file)


class Killer(Callback):
    """Kills its process in the middle of some epochs, once each."""

    def __init__(self, directory, epochs, by):
        self.directory = str(directory)
        self.epochs = epochs
        self.by = by

    def on_batch_end(self, net, training=False, **kwargs):
        epoch = len(net.history)
        done = f"{self.directory}/killed-{epoch}"
        if training and rank() == self.by and epoch in self.epochs and not os.path.exists(done):
            open(done, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)


class Mistake(Callback):
    """Raises an error of the user's in one of the workers."""

    def __init__(self, by):
        self.by = by

    def on_batch_end(self, net, training=False, **kwargs):
        if training and rank() == self.by and len(net.history) == 2:
            raise LookupError(f"no such thing on worker {self.by}")


def send_by_value():
    """Have Ray send what is defined here, not the name of this module."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
