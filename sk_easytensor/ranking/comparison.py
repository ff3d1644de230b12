"""Tables that compare recommendations of several models, with intervals, by segments of users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.utils import check_random_state

from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.key_index import KeyIndex
from sk_easytensor.data.tables import as_table
from sk_easytensor.ranking.metrics import coverage_at_k, user_metrics

__all__ = [
    "compare_rankings",
]


DRAWS = 100
"""Bootstrap samples that are drawn at a time."""

POPULAR = 0.1
"""Fraction of the items that count as popular."""


def compare_rankings(
    relevant,
    recommendations,
    *,
    k=10,
    segments=None,
    interactions=None,
    n_items=None,
    confidence=0.95,
    n_bootstrap=1000,
    random_state=0,
):
    """Return a table of ranking metrics of several models, with confidence intervals.

    Parameters
    ----------
    relevant : list of lists, or Arrow, polars or pandas list column, of length n_users
        Relevant items of each user.
    recommendations : dict of {str: array-like of shape (n_users, at least k)}
        Recommended items by name of the model, such as those of ``recommend``,
        :func:`recommend_popular` and :func:`recommend_ease`.
    k : int, default=10
        Number of recommendations that are evaluated.
    segments : array-like of shape (n_users,), optional
        Segment of each user, such as whether a user is new. There are rows for all users and for
        each segment.
    interactions : array-like, optional
        Items of the training interactions, one for each. With them, the table has the novelty, the
        share of popular items, and the recall of cold items.
    n_items : int, optional
        Number of items in the catalogue, for the coverage.
    confidence : float, default=0.95
        Level of the intervals.
    n_bootstrap : int, default=1000
        Number of bootstrap samples of users; 0 for no intervals.
    random_state : int, RandomState instance or None, default=0
        Seed of the samples. Models are compared on the same ones.

    Returns
    -------
    pandas.DataFrame
        A row for each segment and model; that of all users is ``"(all)"``. Columns are ``n_users``
        (those with a relevant item), the metrics of :func:`ranking_report`, and for each of these
        the bounds of the interval, such as ``ndcg_low`` and ``ndcg_high``.

        - ``coverage``: fraction of the catalogue that is recommended to someone
        - ``novelty``: mean of ``-log2`` of the fraction of interactions that a recommended item has
          (items without any count as having one)
        - ``popular``: fraction of recommendations with as many interactions as the items of the
          most popular tenth, or more. Compare it with that of the relevant items, in the row
          ``"(relevant items)"``.
        - ``cold_recall``: recall of relevant items without interactions; NaN without any

    Raises
    ------
    ValueError
        If numbers of users differ, or no user has a relevant item.

    Examples
    --------
    >>> table = compare_rankings(
    ...     [["a"], ["b"], ["c"]],
    ...     {"good": [["a", "x"], ["b", "x"], ["x", "c"]], "bad": [["x", "y"]] * 3},
    ...     k=2,
    ... )
    >>> table["recall"].tolist(), table["ndcg_low"].round(2).tolist()
    ([1.0, 0.0], [0.63, 0.0])
    """
    owner = "compare_rankings"
    check_number(owner, "confidence", confidence, low=0, high=1, exclusive=True)
    check_number(owner, "n_bootstrap", n_bootstrap, low=0, integer=True)
    import pandas as pd

    models = {name: user_metrics(relevant, keys, k) for name, keys in recommendations.items()}
    if not models:
        raise ValueError(f"{owner}: recommendations has no model")
    has_relevant = next(iter(models.values()))[1]
    groups = _groups(segments, len(has_relevant), owner)
    popularity = None if interactions is None else Popularity(interactions, owner)
    rows, names = [], []
    for segment, own in groups.items():
        own = own & has_relevant
        if not own.any():
            continue
        seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
        for name, (values, _) in models.items():
            row = {"n_users": int(own.sum())}
            for metric, each in values.items():
                row[metric] = each[own].mean()
            if n_items is not None:
                keys = np.asarray(recommendations[name], dtype=object)[own]
                row["coverage"] = coverage_at_k(keys, n_items, k=k)
            if popularity is not None:
                row |= popularity.describe(relevant, recommendations[name], own, k)
            if n_bootstrap:
                part = np.column_stack([each[own] for each in values.values()])
                low, high = _intervals(part, n_bootstrap, confidence, seed)
                for metric, *bounds in zip(values, low, high, strict=True):
                    row |= dict(zip((f"{metric}_low", f"{metric}_high"), bounds, strict=True))
            names.append((segment, name))
            rows.append(row)
        if popularity is not None:
            names.append((segment, "(relevant items)"))
            rows.append({"n_users": int(own.sum()), **popularity.of_lists(relevant, own)})
    index = pd.MultiIndex.from_tuples(names, names=["segment", "model"])
    if segments is None:
        index = index.droplevel("segment")
    return pd.DataFrame(rows, index=index)


def _groups(segments, n_users, owner):
    """Return which users are in each segment."""
    groups = {"(all)": np.ones(n_users, dtype=bool)}
    if segments is None:
        return groups
    column = as_table({"segments": segments}).column("segments")
    if len(column) != n_users:
        raise ValueError(f"{owner}: segments has {len(column)} values for {n_users} users")
    labels = np.array(column.to_pylist(), dtype=object)
    for label in sorted(set(labels), key=str):
        groups[label] = labels == label
    return groups


def _intervals(values, n_bootstrap, confidence, seed):
    """Return the bounds of the means of columns over bootstrap samples of the rows."""
    random = np.random.RandomState(seed)
    n_rows, means = len(values), []
    for begin in range(0, n_bootstrap, DRAWS):
        n_draws = min(DRAWS, n_bootstrap - begin)
        counts = random.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_draws)
        means.append(counts @ values / n_rows)
    tail = (1 - confidence) / 2
    return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)


class Popularity:
    """How many interactions each item has.

    Parameters
    ----------
    interactions : array-like
        Items of the interactions.
    owner : str
        Name of the function, for errors.
    """

    def __init__(self, interactions, owner):
        column = as_table({"interactions": interactions}).column("interactions")
        self.index = KeyIndex(column, "interactions", owner)
        counts = np.bincount(self.index.rows(column), minlength=len(column))
        # By the first row of each item; a last entry for items without interactions.
        self.counts = np.append(counts, 0)
        present = np.sort(counts[counts > 0])[::-1]
        self.total = len(column)
        self.popular = present[max(1, int(POPULAR * len(present))) - 1]

    def describe(self, relevant, recommended, users, k):
        """Return the novelty, the share of popular items, and the recall of cold items."""
        array = np.asarray(recommended, dtype=object)[users, :k]
        rows = self._rows(pa.array(array.ravel().tolist(), from_pandas=True))
        present = np.array([key is not None and key == key for key in array.ravel()], dtype=bool)
        cold = self._cold(relevant, recommended, users, k)
        return {**self._of_rows(rows[present]), "cold_recall": cold}

    def of_lists(self, relevant, users):
        """Return novelty and share of popular items of the relevant items."""
        lists = self._lists(relevant).filter(pa.array(users))
        return self._of_rows(self._rows(pc.drop_null(pc.list_flatten(lists))))

    def _of_rows(self, rows):
        counts = self.counts[rows]
        return {
            "novelty": float(np.mean(-np.log2(np.maximum(counts, 1) / self.total))),
            "popular": float(np.mean(counts >= self.popular)),
        }

    def _rows(self, keys):
        return self.index.rows(pa.chunked_array([keys]) if isinstance(keys, pa.Array) else keys)

    @staticmethod
    def _lists(relevant):
        return as_table({"relevant": relevant}).column("relevant").combine_chunks()

    def _cold(self, relevant, recommended, users, k):
        """Return the recall of relevant items that have no interactions."""
        lists = self._lists(relevant)
        owner = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        items = pc.list_flatten(lists)
        cold = (self._rows(items) < 0) & items.is_valid().to_numpy(zero_copy_only=False)
        counts = np.bincount(owner[cold], minlength=len(lists))
        offsets = pa.array(np.append(0, np.cumsum(counts)), pa.int64())
        only = pa.LargeListArray.from_arrays(offsets, items.filter(pa.array(cold)))
        if not counts[users].any():
            return float("nan")
        values, has_cold = user_metrics(only, recommended, k)
        return float(values["recall"][has_cold & users].mean())
