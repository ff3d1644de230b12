"""What the tests of two towers share: small models, and how to look at what they recommend."""

import numpy as np
from skorch.callbacks import Callback

from sk_easytensor import (
    CategoryBlock,
    EasyTensorTwoTower,
)

__all__ = [
    "BY_KEY",
    "BY_TASTE",
    "KEYS",
    "N_ITEMS",
    "N_USERS",
    "Note",
    "same",
    "shared_taste",
    "two_tower",
    "untrained",
]

N_USERS, N_ITEMS = 60, 40
KEYS = {"item_key": "item_id", "user_key": "user_id"}


def two_tower(user_blocks=None, item_blocks=None, **params):
    """Make an estimator that learns tastes in a fraction of a second."""
    quick = {"embedding_dim": 8, "learning_rate": 2e-2, "batch_size": 128, "max_epochs": 8}
    return EasyTensorTwoTower(user_blocks, item_blocks, **{**quick, "random_state": 0, **params})


def untrained(*blocks, **params):
    """Make an estimator for tests in which its quality does not matter."""
    return two_tower(*blocks, **{"max_epochs": 1, "batch_size": 512, **params})


BY_KEY = ([("user", CategoryBlock(), "user_id")], [("item", CategoryBlock(), "item_id")])
BY_TASTE = (
    [("town", CategoryBlock(width=8), "town")],
    [("genre", CategoryBlock(width=8), "genre")],
)


class Note(Callback):
    """Notes how popular items are held to be, or after each epoch a value of the history."""

    def __init__(self, noted, name=None):
        self.noted = noted
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        self.noted.append(net.history[-1, self.name] if self.name else net.module_.popularity)


def shared_taste(data, users, keys):
    """Return the fraction of recommendations of the users' own taste."""
    return data.affinity[np.asarray(users)[:, None], keys.astype(int)].mean()


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
