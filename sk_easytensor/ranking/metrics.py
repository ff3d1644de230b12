"""Ranking metrics of recommendations.

Metrics have two common parameters. `relevant` is a list column with the relevant items of each
user. `recommended` is a matrix with the items recommended to each user, the best first. Items are
any values that can be compared, such as keys or positions in a catalogue. Users without a relevant
item are left out of every mean.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.columns import is_list
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name

__all__ = [
    "coverage_at_k",
    "hit_rate_at_k",
    "map_at_k",
    "mrr_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "ranking_report",
    "recall_at_k",
    "user_metrics",
]


def recall_at_k(relevant, recommended, *, k=10):
    """Return the mean fraction of a user's relevant items that are among the first k.

    Parameters
    ----------
    relevant : list of lists, or Arrow, polars or pandas list column, of length n_users
        Relevant items of each user.
    recommended : array-like of shape (n_users, at least k)
        Items recommended to each user, the best first. Missing values (None, NaN) stand for
        positions without a recommendation.
    k : int, default=10
        Number of recommendations that are evaluated.

    Returns
    -------
    float

    Examples
    --------
    >>> recall_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.25
    """
    return _mean_of("recall", relevant, recommended, k)


def precision_at_k(relevant, recommended, *, k=10):
    """Return the mean fraction of the first k recommendations that are relevant.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> precision_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.25
    """
    return _mean_of("precision", relevant, recommended, k)


def hit_rate_at_k(relevant, recommended, *, k=10):
    """Return the fraction of users with a relevant item among the first k.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> hit_rate_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.5
    """
    return _mean_of("hit_rate", relevant, recommended, k)


def ndcg_at_k(relevant, recommended, *, k=10):
    """Return the mean normalised discounted cumulative gain of the first k.

    The gain of a relevant item is ``1 / log2(1 + rank)``, and the sum is divided by that of the
    best order (Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", 2002).

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> ndcg_at_k([["a"], ["c"]], [["x", "a", "b"], ["c", "d", "e"]], k=3)
    0.815
    """
    return _mean_of("ndcg", relevant, recommended, k)


def mrr_at_k(relevant, recommended, *, k=10):
    """Return the mean reciprocal rank of the first relevant item, 0 if it is not among the first k.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> mrr_at_k([["a"], ["c"]], [["x", "a"], ["c", "d"]], k=2)
    0.75
    """
    return _mean_of("mrr", relevant, recommended, k)


def map_at_k(relevant, recommended, *, k=10):
    """Return the mean average precision of the first k.

    The average precision of a user is the sum of the precisions at the ranks of relevant items,
    divided by the number of relevant items or by k, whichever is less.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> map_at_k([["a", "b"]], [["a", "x", "b"]], k=3)
    0.833
    """
    return _mean_of("map", relevant, recommended, k)


def coverage_at_k(recommended, n_items, *, k=10):
    """Return the fraction of a catalogue that is recommended to at least one user.

    Parameters
    ----------
    recommended : array-like of shape (n_users, at least k)
        Items recommended to each user, the best first.
    n_items : int
        Number of items in the catalogue.
    k : int, default=10
        Number of recommendations that are evaluated.

    Returns
    -------
    float

    Examples
    --------
    >>> coverage_at_k([["a", "b"], ["a", "c"]], n_items=4, k=1)
    0.25
    """
    check_number("coverage_at_k", "n_items", n_items, low=1, integer=True)
    recommended = _matrix(recommended, k)
    return len(pc.unique(pc.drop_null(recommended))) / n_items


def ranking_report(relevant, recommended, *, k=10, n_items=None):
    """Return all metrics.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.
    n_items : int, optional
        Number of items in the catalogue, for the coverage.

    Returns
    -------
    dict of {str: float}

    Examples
    --------
    >>> report = ranking_report([["a"], ["c"]], [["x", "a"], ["c", "d"]], k=2)
    >>> {name: round(value, 3) for name, value in report.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'recall': 1.0, 'ndcg': 0.815, 'mrr': 0.75, 'hit_rate': 1.0, 'map': 0.75, 'precision': 0.5}
    """
    values, has_relevant = user_metrics(relevant, recommended, k)
    report = {name: float(value[has_relevant].mean()) for name, value in values.items()}
    if n_items is not None:
        report["coverage"] = coverage_at_k(recommended, n_items, k=k)
    return report


def user_metrics(relevant, recommended, k=10):
    """Return all metrics of each user.

    Parameters
    ----------
    relevant, recommended, k
        Parameters of :func:`recall_at_k`.

    Returns
    -------
    values : dict of {str: ndarray of float64, shape (n_users,)}
        Values by name of the metric.
    has_relevant : ndarray of bool, shape (n_users,)
        Users with a relevant item; the values of others mean nothing.

    Raises
    ------
    ValueError
        If no user has a relevant item.

    Examples
    --------
    >>> values, _ = user_metrics([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    >>> values["recall"].tolist(), values["mrr"].tolist()
    ([0.5, 0.0], [1.0, 0.0])
    """
    hits, n_relevant = _hits(relevant, recommended, k)
    if not (n_relevant > 0).any():
        raise ValueError("no user has a relevant item, so that there is nothing to evaluate")
    return {name: metric(hits, n_relevant) for name, metric in METRICS.items()}, n_relevant > 0


def _mean_of(name, relevant, recommended, k):
    hits, n_relevant = _hits(relevant, recommended, k)
    return _mean(METRICS[name](hits, n_relevant), n_relevant)


def _recall(hits, n_relevant):
    return hits.sum(axis=1) / np.maximum(n_relevant, 1)


def _ndcg(hits, n_relevant):
    k = hits.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.append(0, np.cumsum(discount))[np.minimum(n_relevant, k)]
    return hits @ discount / np.maximum(best, discount[0])


def _mrr(hits, n_relevant):
    return np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)


def _map(hits, n_relevant):
    k = hits.shape[1]
    precision = hits.cumsum(axis=1) / np.arange(1, k + 1)
    return (precision * hits).sum(axis=1) / np.clip(n_relevant, 1, k)


METRICS = {
    "recall": _recall,
    "ndcg": _ndcg,
    "mrr": _mrr,
    "hit_rate": lambda hits, n_relevant: hits.any(axis=1).astype(float),
    "map": _map,
    "precision": lambda hits, n_relevant: hits.mean(axis=1),
}
"""Functions that return a metric of each user from hits and numbers of relevant items."""


def _mean(values, n_relevant):
    if not (n_relevant > 0).any():
        raise ValueError("no user has a relevant item, so that there is nothing to evaluate")
    return float(values[n_relevant > 0].mean())


def _matrix(recommended, k):
    """Return the first k recommendations of all users as one Arrow array, row by row."""
    check_number("ranking metrics", "k", k, low=1, integer=True)
    array = recommended if hasattr(recommended, "shape") else np.array(list(recommended), object)
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] < k:
        raise ValueError(
            f"recommended must be of shape (n_users, at least k={k}), got {array.shape}"
        )
    return pa.array(np.ascontiguousarray(array[:, :k]).reshape(-1), from_pandas=True)


def _hits(relevant, recommended, k):
    """Return whether recommendations are relevant, by user and rank, and counts of relevant items.

    Returns
    -------
    hits : ndarray of bool, shape (n_users, k)
    n_relevant : ndarray of int64, shape (n_users,)
    """
    items = _matrix(recommended, k)
    lists = as_table({"relevant": relevant}).column("relevant").combine_chunks()
    n_users = len(items) // k
    if len(lists) != n_users:
        raise ValueError(f"relevant has {len(lists)} users and recommended has {n_users}")
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    if not is_list(lists.type):
        kind = type_name(lists.type)
        raise ValueError(f"relevant must have a list for each user, got values of {kind}")
    user = np.repeat(np.arange(n_users), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    relevant_items = pc.list_flatten(lists)
    valid = relevant_items.is_valid()
    user = user[valid.to_numpy(zero_copy_only=False)]
    codes = _codes(relevant_items.filter(valid), items)
    n_codes = codes.max(initial=0) + 1
    # Pairs of a user and an item, as one number each.
    relevant_pairs = np.unique(user * n_codes + codes[: len(user)])
    pairs = np.repeat(np.arange(n_users), k) * n_codes + codes[len(user) :]
    hits = np.isin(pairs, relevant_pairs) & (codes[len(user) :] >= 0)
    # An item that is recommended twice counts once.
    first = np.zeros(len(pairs), dtype=bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    n_relevant = np.bincount(relevant_pairs // n_codes, minlength=n_users)
    return (hits & first).reshape(n_users, k), n_relevant


def _comparable(array):
    """Return an array with integers, floats and strings cast to the largest type of their kind."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64())
    if pa.types.is_large_string(kind):
        return array.cast(pa.string())
    return array


def _codes(relevant, recommended):
    """Return a number for each distinct value of both arrays, -1 for missing values."""
    relevant, recommended = _comparable(relevant), _comparable(recommended)
    types = {part.type for part in (relevant, recommended) if not pa.types.is_null(part.type)}
    common = types.pop() if types else pa.null()
    if types:
        kinds = {common, *types}
        if kinds != {pa.int64(), pa.float64()}:
            raise ValueError(
                f"relevant items are of type {type_name(relevant.type)}, recommended ones of "
                f"{type_name(recommended.type)}"
            )
        common = pa.float64()
    both = pa.chunked_array([relevant.cast(common), recommended.cast(common)]).combine_chunks()
    codes = both.dictionary_encode().indices
    return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
