"""Generated interactions of users with items, with a known structure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.utils import Bunch, check_random_state

from sk_easytensor._utils.validation import check_number

__all__ = [
    "make_interactions",
]


def make_interactions(
    n_interactions=5000, *, n_users=200, n_items=100, n_tastes=4, noise=0.1, random_state=None
):
    """Generate interactions of users with items that share a taste.

    Every user and every item has one of several tastes. A user interacts with items of the same
    taste, of which popular ones are chosen more often, and in a fraction `noise` of the
    interactions with random items. The taste is not a column, but follows from the town of a user
    and the genre of an item.

    Parameters
    ----------
    n_interactions : int, default=5000
        Number of rows of the log. A user may interact with an item more than once.
    n_users, n_items : int, default=200, 100
        Numbers of users and items.
    n_tastes : int, default=4
        Number of tastes.
    noise : float, default=0.1
        Fraction of interactions with random items, between 0 and 1.
    random_state : int, RandomState or None, default=None
        Seed of the random numbers; an integer makes results reproducible.

    Returns
    -------
    :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        interactions : DataFrame of shape (n_interactions, 4)
            ``user_id``, ``town``, ``age`` and ``item_id``.
        users : DataFrame of shape (n_users, 3)
            ``user_id``, ``town`` and ``age``.
        catalogue : DataFrame of shape (n_items, 3)
            ``item_id``, ``genre`` and ``price``.
        affinity : ndarray of bool, shape (n_users, n_items)
            Whether user and item share a taste.

    Raises
    ------
    ValueError
        If a number is less than 1, or `noise` is not between 0 and 1.

    Examples
    --------
    >>> data = make_interactions(1000, random_state=0)
    >>> data.interactions.columns.tolist()
    ['user_id', 'town', 'age', 'item_id']
    >>> same = data.affinity[data.interactions["user_id"], data.interactions["item_id"]]
    >>> bool(same.mean() > 0.85)
    True
    """
    for name, value in (
        ("n_interactions", n_interactions),
        ("n_users", n_users),
        ("n_items", n_items),
        ("n_tastes", n_tastes),
    ):
        check_number("make_interactions", name, value, low=1, integer=True)
    check_number("make_interactions", "noise", noise, low=0, high=1)
    random = check_random_state(random_state)
    user_taste = np.arange(n_users) % n_tastes
    item_taste = np.arange(n_items) % n_tastes
    users = pd.DataFrame(
        {
            "user_id": np.arange(n_users),
            "town": np.char.add("town ", user_taste.astype(str)),
            "age": random.randint(18, 80, n_users),
        }
    )
    items = pd.DataFrame(
        {
            "item_id": np.arange(n_items),
            "genre": np.char.add("genre ", item_taste.astype(str)),
            "price": random.uniform(1, 20, n_items).round(2),
        }
    )
    user = random.randint(0, n_users, n_interactions)
    # Zipf's law: the probability of the item of rank r is proportional to 1 / r.
    popularity = 1 / (1 + random.permutation(n_items))
    probability = popularity[None, :] * (user_taste[:, None] == item_taste[None, :])
    without_items = probability.sum(axis=1) == 0
    probability[without_items] = popularity
    cumulative = np.cumsum(probability / probability.sum(axis=1, keepdims=True), axis=1)
    item = (random.uniform(size=n_interactions)[:, None] > cumulative[user]).sum(axis=1)
    item = np.minimum(item, n_items - 1)
    is_noise = random.uniform(size=n_interactions) < noise
    item[is_noise] = random.randint(0, n_items, is_noise.sum())
    return Bunch(
        interactions=users.loc[user].reset_index(drop=True).assign(item_id=item),
        users=users,
        catalogue=items,
        affinity=user_taste[:, None] == item_taste[None, :],
    )
