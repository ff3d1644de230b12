"""Recommendations without training, to compare models with: popularity and EASE."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.key_index import KeyIndex, as_objects, key_values
from sk_easytensor.data.tables import as_table

__all__ = [
    "recommend_ease",
    "recommend_popular",
]


MAX_ITEMS = 20_000
"""Largest number of items of EASE, whose matrix has the square of that many entries."""

USERS = 1_000
"""Users whose scores are in memory at a time."""


def recommend_popular(X, users, *, user, item, k=10, exclude_seen=True):
    """Return the items that most users have.

    Parameters
    ----------
    X : table-like
        A row for each interaction.
    users : array-like of shape (n_users,)
        Keys of the users to recommend to, who need not be in `X`.
    user, item : str
        Columns of `X` with the keys of users and items.
    k : int, default=10
        Number of items for each user.
    exclude_seen : bool, default=True
        Whether the items that a user has in `X` are left out.

    Returns
    -------
    ndarray of shape (n_users, k)
        Keys of items, the most popular first. None where fewer than k remain.

    Examples
    --------
    >>> X = {"user": [1, 1, 2, 3], "film": ["Up", "Heat", "Up", "Alien"]}
    >>> recommend_popular(X, [1, 2], user="user", item="film", k=2).tolist()
    [['Alien', None], ['Heat', 'Alien']]
    """
    interactions = Interactions(X, user, item, "recommend_popular")
    counts = interactions.matrix.sum(axis=0)
    return interactions.best(
        users, lambda seen: np.tile(counts, (seen.shape[0], 1)), k, exclude_seen
    )


def recommend_ease(X, users, *, user, item, k=10, exclude_seen=True, regularization=300.0):
    """Return the items that a linear autoencoder in closed form recommends.

    The method is EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019). On
    dense data of up to some thousand items it is often hard to beat.

    Parameters
    ----------
    X, users, user, item, k, exclude_seen
        As in :func:`recommend_popular`. Users who are not in `X` are recommended what is first.
    regularization : float, default=300.0
        Penalty of the squared weights.

    Returns
    -------
    ndarray of shape (n_users, k)
        Keys of items, the best first. None where fewer than k remain.

    Raises
    ------
    ValueError
        If there are more than 20,000 items, whose matrix would not fit into memory.

    Examples
    --------
    >>> X = {"user": [1, 1, 2, 2, 3, 3], "film": ["Up", "Coco", "Up", "Coco", "Up", "Heat"]}
    >>> recommend_ease({**X}, [3], user="user", item="film", k=1, regularization=1.0).tolist()
    [['Coco']]
    """
    owner = "recommend_ease"
    check_number(owner, "regularization", regularization, low=0, exclusive=True)
    interactions = Interactions(X, user, item, owner)
    n_items = interactions.matrix.shape[1]
    if n_items > MAX_ITEMS:
        raise ValueError(
            f"{owner}: column {item!r} has {n_items} items; EASE inverts a matrix of items by "
            f"items, which is possible for at most {MAX_ITEMS}"
        )
    gram = (interactions.matrix.T @ interactions.matrix).toarray().astype(np.float64)
    gram[np.diag_indices(n_items)] += regularization
    weights = np.linalg.inv(gram)
    weights /= -np.diag(weights)
    weights[np.diag_indices(n_items)] = 0
    return interactions.best(users, lambda seen: seen @ weights, k, exclude_seen)


class Interactions:
    """Which user has which item.

    Parameters
    ----------
    X : table-like
        A row for each interaction.
    user, item : str
        Columns with the keys of users and items.
    owner : str
        Name of the function, for errors.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array of float32, shape (n_users, n_items)
        1 for each pair of a user and an item.
    """

    def __init__(self, X, user, item, owner):
        table = as_table(X)
        for name in (user, item):
            if name not in table.column_names:
                raise ValueError(f"{owner}: X has no column {name!r}; it has {table.column_names}")
        self.users, self.items = (
            KeyIndex(table.column(name), name, owner) for name in (user, item)
        )
        # Users and items are numbered in the order of their first rows.
        rows = self.users.rows(table.column(user)), self.items.rows(table.column(item))
        firsts, numbers = zip(*(np.unique(part, return_inverse=True) for part in rows), strict=True)
        self._user_rows = firsts[0]
        self.keys = key_values(table.column(item).take(pa.array(firsts[1])))
        shape = tuple(map(len, firsts))
        self.matrix = csr_array((np.ones(len(table), dtype=np.float32), numbers), shape=shape)
        self.matrix.sum_duplicates()
        self.matrix.data[:] = 1

    def best(self, users, scores, k, exclude_seen):
        """Return the keys of the items with the highest scores for each user.

        Parameters
        ----------
        users : array-like
            Keys of users.
        scores : callable
            Takes the rows of some users, and returns their scores of all items.
        k : int
            Number of items for each user.
        exclude_seen : bool
            Whether items of a user are left out.

        Returns
        -------
        ndarray of shape (n_users, k)
        """
        check_number("recommend", "k", k, low=1, integer=True)
        name = self.users.name
        rows = self.users.rows(as_table({name: users}).column(name))
        known = rows >= 0
        numbers = np.searchsorted(self._user_rows, rows[known])
        seen = csr_array((len(rows), len(self.keys)), dtype=np.float32)
        if known.any():
            place = csr_array(
                (np.ones(known.sum(), dtype=np.float32), (np.flatnonzero(known), numbers)),
                shape=(len(rows), len(self._user_rows)),
            )
            seen = (place @ self.matrix).tocsr()
        found = np.full((len(rows), k), None)
        for begin in range(0, len(rows), USERS):
            part = seen[begin : begin + USERS]
            values = np.asarray(scores(part), dtype=np.float32)
            if exclude_seen:
                values[part.nonzero()] = -np.inf
            order = np.argsort(-values, axis=1, kind="stable")[:, :k]
            keys = as_objects(self.keys[order])
            keys[np.take_along_axis(values, order, axis=1) == -np.inf] = None
            found[begin : begin + USERS, : keys.shape[1]] = keys
        return found
