"""Ranking metrics: how well the top of a list of recommendations holds what a user wanted.

All take the same two arguments. `relevant` is a list column: for each user, the items wanted.
`recommended` is a matrix: for each user, the items recommended, the best first. Items are any
values that can be compared, such as keys or positions in a catalogue. Users without a relevant
item are left out of every mean.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.lists import is_list
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
]


def recall_at_k(relevant, recommended, *, k=10):
    """Return the mean fraction of a user's relevant items that are among the first k.

    Parameters
    ----------
    relevant : list of lists, or Arrow, polars or pandas list column, of length n_users
        Items each user wanted.
    recommended : array-like of shape (n_users, at least k)
        Items recommended to each user, the best first. Missing values (None, NaN) stand for
        places that nothing was recommended for.
    k : int, default=10
        Recommendations that count.

    Returns
    -------
    float

    Examples
    --------
    >>> recall_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.25
    """
    hits, wanted = _hits(relevant, recommended, k)
    return _mean(hits.sum(axis=1) / np.maximum(wanted, 1), wanted)


def precision_at_k(relevant, recommended, *, k=10):
    """Return the mean fraction of the first k recommendations that are relevant.

    Parameters
    ----------
    relevant, recommended, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> precision_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.25
    """
    hits, wanted = _hits(relevant, recommended, k)
    return _mean(hits.sum(axis=1) / k, wanted)


def hit_rate_at_k(relevant, recommended, *, k=10):
    """Return the fraction of users with a relevant item among the first k.

    Parameters
    ----------
    relevant, recommended, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> hit_rate_at_k([["a", "b"], ["c"]], [["a", "x"], ["y", "z"]], k=2)
    0.5
    """
    hits, wanted = _hits(relevant, recommended, k)
    return _mean(hits.any(axis=1).astype(float), wanted)


def ndcg_at_k(relevant, recommended, *, k=10):
    """Return the mean normalised discounted cumulative gain of the first k.

    Each relevant item counts ``1 / log2(1 + place)``, over what the best order would give
    (Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", 2002).

    Parameters
    ----------
    relevant, recommended, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> ndcg_at_k([["a"], ["c"]], [["x", "a", "b"], ["c", "d", "e"]], k=3)
    0.815
    """
    hits, wanted = _hits(relevant, recommended, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.append(0, np.cumsum(discount))[np.minimum(wanted, k)]
    return _mean(hits @ discount / np.maximum(best, discount[0]), wanted)


def mrr_at_k(relevant, recommended, *, k=10):
    """Return the mean of one over the place of the first relevant item, 0 if not among k.

    Parameters
    ----------
    relevant, recommended, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> mrr_at_k([["a"], ["c"]], [["x", "a"], ["c", "d"]], k=2)
    0.75
    """
    hits, wanted = _hits(relevant, recommended, k)
    first = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)
    return _mean(first, wanted)


def map_at_k(relevant, recommended, *, k=10):
    """Return the mean average precision of the first k.

    The precision at each relevant item's place, summed and divided by the relevant items that
    k places can hold.

    Parameters
    ----------
    relevant, recommended, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float

    Examples
    --------
    >>> map_at_k([["a", "b"]], [["a", "x", "b"]], k=3)
    0.833
    """
    hits, wanted = _hits(relevant, recommended, k)
    precision = hits.cumsum(axis=1) / np.arange(1, k + 1)
    return _mean((precision * hits).sum(axis=1) / np.clip(wanted, 1, k), wanted)


def coverage_at_k(recommended, n_items, *, k=10):
    """Return the fraction of a catalogue that is recommended to anyone.

    Parameters
    ----------
    recommended : array-like of shape (n_users, at least k)
        Items recommended to each user, the best first.
    n_items : int
        Items in the catalogue.
    k : int, default=10
        Recommendations that count.

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
        As for :func:`recall_at_k`.
    n_items : int, optional
        Items in the catalogue, for the coverage.

    Returns
    -------
    dict of {str: float}

    Examples
    --------
    >>> report = ranking_report([["a"], ["c"]], [["x", "a"], ["c", "d"]], k=2)
    >>> {name: round(value, 3) for name, value in report.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'recall': 1.0, 'ndcg': 0.815, 'mrr': 0.75, 'hit_rate': 1.0, 'map': 0.75, 'precision': 0.5}
    """
    report = {
        "recall": recall_at_k(relevant, recommended, k=k),
        "ndcg": ndcg_at_k(relevant, recommended, k=k),
        "mrr": mrr_at_k(relevant, recommended, k=k),
        "hit_rate": hit_rate_at_k(relevant, recommended, k=k),
        "map": map_at_k(relevant, recommended, k=k),
        "precision": precision_at_k(relevant, recommended, k=k),
    }
    if n_items is not None:
        report["coverage"] = coverage_at_k(recommended, n_items, k=k)
    return report


def _mean(values, wanted):
    if not (wanted > 0).any():
        raise ValueError("no user has a relevant item, so that there is nothing to rank for")
    return float(values[wanted > 0].mean())


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
    """Return which recommendations are relevant, (n_users, k), and how many items are wanted."""
    items = _matrix(recommended, k)
    lists = as_table({"relevant": relevant}).column("relevant").combine_chunks()
    n_users = len(items) // k
    if len(lists) != n_users:
        raise ValueError(f"relevant has {len(lists)} users and recommended has {n_users}")
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    if not is_list(lists.type):
        found = type_name(lists.type)
        raise ValueError(f"relevant must hold a list for each user, got values of {found}")
    owner = np.repeat(np.arange(n_users), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    wanted_items = pc.list_flatten(lists)
    known = wanted_items.is_valid()
    owner = owner[known.to_numpy(zero_copy_only=False)]
    codes = _codes(wanted_items.filter(known), items)
    n_codes = codes.max(initial=0) + 1
    wanted = np.unique(owner * n_codes + codes[: len(owner)])
    places = np.repeat(np.arange(n_users), k) * n_codes + codes[len(owner) :]
    hits = np.isin(places, wanted) & (codes[len(owner) :] >= 0)
    # An item recommended twice is found once.
    first = np.zeros(len(places), dtype=bool)
    first[np.unique(places, return_index=True)[1]] = True
    return (hits & first).reshape(n_users, k), np.bincount(wanted // n_codes, minlength=n_users)


def _comparable(array):
    """Cast integers, floats and strings each to the type that holds them all."""
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


def _codes(wanted, recommended):
    """Return a number for each distinct value of both arrays, -1 for missing ones."""
    wanted, recommended = _comparable(wanted), _comparable(recommended)
    types = {part.type for part in (wanted, recommended) if not pa.types.is_null(part.type)}
    common = types.pop() if types else pa.null()
    if types:
        kinds = {common, *types}
        if kinds != {pa.int64(), pa.float64()}:
            raise ValueError(
                f"relevant items are of type {type_name(wanted.type)}, recommended ones of "
                f"{type_name(recommended.type)}"
            )
        common = pa.float64()
    both = pa.chunked_array([wanted.cast(common), recommended.cast(common)]).combine_chunks()
    codes = both.dictionary_encode().indices
    return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
