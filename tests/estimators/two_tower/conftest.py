import numpy as np
import pandas as pd
import pytest
from two_towers import KEYS, N_ITEMS, N_USERS, two_tower

from sk_easytensor.datasets import make_interactions


@pytest.fixture(scope="module")
def data():
    return make_interactions(2000, n_users=N_USERS, n_items=N_ITEMS, random_state=0)


@pytest.fixture(scope="module")
def X(data):
    return data.interactions


@pytest.fixture(scope="module")
def catalogue(data):
    return data.catalogue


@pytest.fixture(scope="module")
def fitted(data):
    """A model that is not to be changed."""
    return two_tower().fit(data.interactions, items=data.catalogue, **KEYS)


@pytest.fixture(scope="module")
def rated(data):
    """Pairs with the item's columns, and whether user and item share a taste."""
    random = np.random.default_rng(0)
    users = data.users.iloc[random.integers(0, N_USERS, 1500)].reset_index(drop=True)
    items = data.catalogue.iloc[random.integers(0, N_ITEMS, 1500)].reset_index(drop=True)
    y = data.affinity[users["user_id"], items["item_id"]].astype(int)
    return pd.concat([users, items], axis=1), y
