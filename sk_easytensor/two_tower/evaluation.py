"""Ranking metrics of validation pairs over all items, computed after each epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor import ranking
from sk_easytensor.networks.two_tower_network import embed

__all__ = [
    "RankingEvaluation",
    "resolve_ranking_metrics",
]


FUNCTIONS = {
    "ndcg": ranking.ndcg_at_k,
    "recall": ranking.recall_at_k,
    "precision": ranking.precision_at_k,
    "hit_rate": ranking.hit_rate_at_k,
    "mrr": ranking.mrr_at_k,
    "map": ranking.map_at_k,
}
"""Metrics by name; a number of items follows it, as in ``"ndcg@10"``."""

DEFAULT = ("ndcg@10", "recall@10")
"""Metrics of ``eval_metric="auto"``, of which the first decides."""

MAX_USERS = 2_000
"""Largest number of users of a set that are ranked for."""

MIN_USERS = 200
"""Number of users that are ranked for, if there are as many, however many items there are."""

MAX_SCORES = 20_000_000
"""Number of scores of pairs that more users than `MIN_USERS` may take in each epoch."""

FEW_USERS = 50
"""Number of users below which ``"auto"`` leaves the decision to the loss."""

BATCH_SIZE = 4096
"""Number of rows that are embedded at a time."""

BLOCK = 16_000_000
"""Number of scores that are computed at a time."""


@dataclass(frozen=True)
class RankingMetric:
    """A metric of the best items of each user.

    Attributes
    ----------
    name : str
        Name of a function and number of items, such as ``"recall@20"``.
    """

    name: str
    greater_is_better = True
    n_smoothed = 3
    """Number of last epochs whose mean decides. Of few users, a single epoch is ahead by chance."""

    @property
    def entry(self):
        """Entry of ``eval_metric``."""
        return self.name

    @property
    def k(self):
        """Number of items that are recommended."""
        return int(self.name.partition("@")[2])

    def __call__(self, relevant, recommended):
        """Return the mean over users; see the functions of :mod:`sk_easytensor.ranking`."""
        return FUNCTIONS[self.name.partition("@")[0]](relevant, recommended, k=self.k)


def resolve_ranking_metrics(eval_metric, owner):
    """Return the metrics that the parameter ``eval_metric`` stands for.

    Parameters
    ----------
    eval_metric : str, list of str or None
        Value of the parameter; ``"auto"`` for NDCG and recall of ten items.
    owner : str
        Class name of the estimator, for errors.

    Returns
    -------
    list of RankingMetric

    Raises
    ------
    ValueError
        If an entry is not a metric, or is there twice.
    """
    if eval_metric is None:
        return []
    entries = eval_metric
    if isinstance(eval_metric, str):
        entries = DEFAULT if eval_metric == "auto" else [eval_metric]
    form = rf"({'|'.join(FUNCTIONS)})@[1-9][0-9]*"
    if not isinstance(entries, (list, tuple)) or not all(
        isinstance(entry, str) and re.fullmatch(form, entry) for entry in entries
    ):
        raise ValueError(
            f"{owner}: eval_metric must be 'auto', None, or names of ranking metrics with a number "
            f"of items, such as 'ndcg@10', of {list(FUNCTIONS)}; got {eval_metric!r}"
        )
    if len(set(entries)) < len(entries):
        raise ValueError(f"{owner}: eval_metric names a metric more than once: {eval_metric!r}")
    return [RankingMetric(entry) for entry in entries]


class RankingEvaluation:
    """Ranks all items for users of validation pairs, as ``recommend`` does.

    Items of a user's training pairs are not recommended, and are not relevant either. Without ids
    of users, a user is whoever has the same encoded columns. The columns of a user are those of the
    first pair of the set. Pairs count alike, whatever their weights above 0.

    Parameters
    ----------
    metrics : list of RankingMetric
        Metrics to compute.
    rows : TrainingDataset
        Training pairs.
    seed : int
        Seed of the sample of users.

    Attributes
    ----------
    names : list of str
        Names of the metrics.
    """

    def __init__(self, metrics, rows, seed):
        self.metrics = metrics
        self.names = [metric.name for metric in metrics]
        self.seed = seed
        self._known = user_items(rows)
        self._sets = {}

    def is_telling(self, rows):
        """Return whether rankings tell more of validation pairs than their loss does.

        At least 50 users with training pairs must have half of the pairs. Without ids, users whose
        columns differ from pair to pair would be recommended what they know. Weights must be equal,
        because metrics of rankings do not depend on them.
        """
        users = user_items(rows)[:, 0]
        known = np.isin(users, self._known[:, 0])
        weights = torch.cat([part.weight[part.weight > 0] for part in rows.parts()])
        equal = len(weights) > 0 and bool((weights == weights[0]).all())
        return equal and known.mean() >= 0.5 and len(np.unique(users[known])) >= FEW_USERS

    def scores(self, name, network, rows):
        """Return the metrics of a set.

        Parameters
        ----------
        name : str
            Name of the set; all items of ``"training"`` may be recommended.
        network : TwoTowerNetwork
            Network in evaluation mode.
        rows : TrainingDataset
            Pairs of the set, the same ones at each call with this name.

        Returns
        -------
        dict of {str: float}
            Values by name; NaN if no user has an item that is not in its training pairs.
        """
        if name not in self._sets:
            known = self._known if name != "training" else self._known[:0]
            self._sets[name] = RankedUsers(rows, known, self.seed)
        users = self._sets[name]
        if not len(users.relevant.values):
            return dict.fromkeys(self.names, float("nan"))
        recommended = users.recommend(network, max(metric.k for metric in self.metrics))
        return {metric.name: metric(users.relevant, recommended) for metric in self.metrics}


class RankedUsers:
    """Users of validation pairs, their relevant items, and those that are not recommended.

    Parameters
    ----------
    rows : TrainingDataset
        Validation pairs.
    known : ndarray of int64, shape (n_pairs, 2)
        Training pairs, from :func:`user_items`.
    seed : int
        Seed of the sample of users.

    Attributes
    ----------
    users, items : TensorFrame
        Encoded users that are ranked for, and all items.
    relevant : pyarrow.ListArray
        Numbers of the relevant items of each user.
    """

    def __init__(self, rows, known, seed):
        parts = list(rows.parts())
        self.items = parts[0].frame.items
        pairs, n_items = user_items(rows), len(self.items)
        numbers = np.unique(pairs[:, 0])
        largest = max(MIN_USERS, min(MAX_USERS, MAX_SCORES // n_items))
        if len(numbers) > largest:
            chosen = np.random.RandomState(seed).choice(len(numbers), largest, replace=False)
            numbers = np.sort(numbers[chosen])
        # From here on a pair is a number.
        pairs, known = (_pair_numbers(part, numbers, n_items) for part in (pairs, known))
        # A training pair is not recommended and cannot be found.
        pairs = np.setdiff1d(pairs, known)
        counts = np.bincount(pairs // n_items, minlength=len(numbers))
        offsets = np.append(0, np.cumsum(counts)).astype(np.int32)
        self.relevant = pa.ListArray.from_arrays(offsets, pa.array(pairs % n_items))
        self.seen = torch.from_numpy(np.unique(known))
        self.users = _rows_of_users([part.frame for part in parts], numbers)

    @torch.no_grad()
    def recommend(self, network, k):
        """Return the numbers of the best items, -1 where there are too few.

        Returns
        -------
        ndarray of int64, shape (n_users, k)
        """
        users = embed_all(network.user, self.users, network.normalized)
        items = embed_all(network.item, self.items, network.normalized)
        found, best = np.full((len(users), k), -1), min(k, len(items))
        block = max(1, BLOCK // len(items))
        for begin in range(0, len(users), block):
            scores = users[begin : begin + block] @ items.T
            bounds = torch.tensor([begin, begin + block]) * len(items)
            first, last = torch.searchsorted(self.seen, bounds).tolist()
            seen = self.seen[first:last] - bounds[0]
            scores.view(-1)[seen.to(scores.device)] = -torch.inf
            top, numbers = scores.topk(best, dim=1)
            numbers = torch.where(top > -torch.inf, numbers, -1)
            found[begin : begin + block, :best] = numbers.cpu().numpy()
        return found


def embed_all(tower, frame, normalized):
    """Return the embeddings of all rows of a frame."""
    parts = [
        embed(tower, frame.take(slice(begin, begin + BATCH_SIZE)), normalized)
        for begin in range(0, len(frame), BATCH_SIZE)
    ]
    return torch.cat(parts)


def user_items(rows):
    """Return the pairs of positive weight as numbers.

    Parameters
    ----------
    rows : TrainingDataset
        Pairs.

    Returns
    -------
    ndarray of int64, shape (n_pairs, 2)
        Number of the user, and number of the item.
    """
    parts = []
    for part in rows.parts():
        frame = part.frame.take(torch.nonzero(part.weight > 0)[:, 0])
        parts.append(np.column_stack([frame.user_numbers(), frame.item_rows.cpu().numpy()]))
    return np.concatenate(parts)


def _pair_numbers(pairs, users, n_items):
    """Return ``user * n_items + item`` of the pairs of some users, whose numbers are sorted."""
    pairs = pairs[np.isin(pairs[:, 0], users)]
    return np.searchsorted(users, pairs[:, 0]) * n_items + pairs[:, 1]


def _rows_of_users(frames, numbers):
    """Return the row of the first pair of each user, of whom each is in one of the frames."""
    parts, found = [], []
    for frame in frames:
        users, rows = frame.user_numbers(), frame.user_rows.cpu().numpy()
        # Pairs may be in any order, rows of users are in that of the table.
        order = np.lexsort((rows, users))
        own, first = np.unique(users[order], return_index=True)
        wanted = np.isin(own, numbers)
        found.append(own[wanted])
        chosen = torch.from_numpy(rows[order[first[wanted]]])
        parts.append(frame.users.take(chosen.to(frame.user_rows.device)))
    found = np.concatenate(found)
    order = np.argsort(found, kind="stable")
    order = torch.from_numpy(order[np.searchsorted(found[order], numbers)])
    joined = type(parts[0]).concatenate(parts)
    return joined.take(order.to(next(iter(joined.content())).device))
