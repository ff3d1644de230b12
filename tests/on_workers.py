"""Data and callbacks that Ray's workers get by value, because they cannot import tests."""

import os
import signal
import sys
import time

import numpy as np
import pandas as pd
import torch.distributed as distributed
from skorch.callbacks import Callback

from sk_easytensor import MLP, BoostedTrees, EasyTensorEmbedder
from sk_easytensor.backends.ray.backend import RayBackend


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


def make_events(n_users, seed=0):
    """Return a log, in no order, of users who like either the odd or the even things."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), rng.integers(8, 16, n_users))
    liked = np.where(rng.random(len(user)) < 0.9, user % 2, 1 - user % 2)
    frame = pd.DataFrame(
        {
            "user": np.char.add("user ", user.astype(str)),
            # Several events of a user have the same time.
            "time": pd.Timestamp("2025-01-01")
            + pd.to_timedelta(rng.integers(0, 99, len(user)), "h"),
            "kind": np.char.add("kind ", (liked + 2 * rng.integers(0, 6, len(user))).astype(str)),
            "amount": rng.normal(size=len(user)).round(3),
        }
    )
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def quick_settings(**others):
    """Return parameters of estimators that train for a moment."""
    settings = {
        "trunk": MLP(width=16),
        "trees": BoostedTrees(max_iter=30),
        "max_epochs": 3,
        "batch_size": 64,
        "random_state": 0,
    }
    return {**settings, **others}


SECRET = "swordfish42"


def fail(column):
    """Raise an error of which the cause and the attributes hold a URL with a password."""
    url = f"s3://key:{SECRET}@bucket/rows"
    try:
        raise FileNotFoundError(2, "there is nothing", f"{url}/{column}")
    except OSError as error:
        raise ValueError(f"column {column!r} of {url} cannot be read") from error


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


class Pause(Callback):
    """Waits for ever in an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, net, training=False, **kwargs):
        while len(net.history) == self.epoch:
            time.sleep(0.1)


class Killer(Callback):
    """Kills its process in the middle of some epochs, once each, after some steps."""

    def __init__(self, directory, epochs, by, steps=1):
        self.directory = str(directory)
        self.epochs = epochs
        self.by = by
        self.steps = steps
        self.n_done = 0

    def on_epoch_begin(self, net, **kwargs):
        self.n_done = 0

    def on_batch_end(self, net, training=False, **kwargs):
        epoch = len(net.history)
        self.n_done += 1
        if self.n_done < self.steps:
            return
        done = f"{self.directory}/killed-{epoch}"
        if training and rank() == self.by and epoch in self.epochs and not os.path.exists(done):
            open(done, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)


class CheckpointsWithinEpochs(Callback):
    """Writes checkpoints within epochs as often as possible, and counts steps in a file."""

    def __init__(self, path):
        self.path = str(path)

    def on_train_begin(self, net, **kwargs):
        from sk_easytensor.training import net as module

        module.CHECKPOINT_SECONDS = 0.0

    def on_train_end(self, net, **kwargs):
        from sk_easytensor.training import net as module

        module.CHECKPOINT_SECONDS = 600.0

    def on_batch_end(self, net, training=False, **kwargs):
        if rank() == 0 and training:
            with open(self.path, "a") as file:
                print(len(net.history), file=file)


class Mistake(Callback):
    """Raises an error of the user's in one of the workers, while training or at an epoch's end."""

    def __init__(self, by, when="on_batch_end"):
        self.by = by
        self.when = when

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.make("on_batch_end", net)

    def on_epoch_end(self, net, **kwargs):
        self.make("on_epoch_end", net)

    def make(self, when, net):
        if when == self.when and rank() == self.by and len(net.history) == 2:
            raise LookupError(f"no such thing on worker {self.by}")


class Starts:
    """Does what a worker does, after a line in a file."""

    def __init__(self, path, work):
        self.path = str(path)
        self.work = work

    def __call__(self, config):
        with open(self.path, "a") as file:
            print(rank(), file=file)
        return self.work(config)


def embedder(address, where, pause):
    """Make an embedder with checkpoints that two workers train, who wait for ever in an epoch."""
    return EasyTensorEmbedder(
        backend=RayBackend(num_workers=2, address=address),
        embedding_dim=8,
        learning_rate=0.02,
        max_epochs=8,
        batch_size=16,
        validation_fraction=None,
        random_state=0,
        checkpoint_dir=f"{where}/checkpoints",
        callbacks=[Epochs(f"{where}/epochs"), Pause(epoch=pause)],
    )


def send_by_value():
    """Have Ray send what is defined here, not the name of this module."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Machine(Callback):
    """Writes the rank and the machine of each worker to a file."""

    def __init__(self, path):
        self.path = str(path)

    def on_train_begin(self, net, **kwargs):
        import ray

        with open(self.path, "a") as file:
            print(f"{rank()}:{ray.get_runtime_context().get_node_id()}", file=file)


class Wait(Callback):
    """Waits in an epoch until there is a file."""

    def __init__(self, path, epoch):
        self.path = str(path)
        self.epoch = epoch

    def on_batch_begin(self, net, training=False, **kwargs):
        while len(net.history) == self.epoch and not os.path.exists(self.path):
            time.sleep(0.1)
