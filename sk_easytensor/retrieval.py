"""Exact and approximate search for the candidates with the largest products of embeddings."""

from __future__ import annotations

from warnings import catch_warnings, simplefilter

import numpy as np
import torch

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import check_choice

__all__ = [
    "INDEXES",
    "ApproximateIndex",
    "as_tensor",
    "check_index",
    "top_k",
]


INDEXES = ("exact", "usearch")

BLOCK = 1 << 24
"""Products in memory at a time."""

MIN_RECALL = 0.97
"""Recall of the ten best candidates to which an approximate search is adjusted."""

EXPANSIONS = tuple(32 * 2**power for power in range(8))
"""Sizes of the candidate list of a graph search, of which larger ones increase the recall."""


@with_library_settings
def top_k(queries, candidates, k, *, excluded=None):
    """Return the k candidates with the largest products for each query.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of the queries.
    candidates : ndarray of float32, shape (n_candidates, embedding_dim)
        Embeddings of the candidates.
    k : int
        Number of candidates to return, at most `n_candidates`.
    excluded : tuple of ndarray of int64, optional
        Indices of the queries and candidates of excluded pairs, sorted by query.

    Returns
    -------
    indices : ndarray of int64, shape (n_queries, k)
        Indices of the candidates, the best first; -1 if no candidate is left.
    scores : ndarray of float32, shape (n_queries, k)
        Products; ``-inf`` if no candidate is left.

    Notes
    -----
    Products are computed for as many queries at a time as fit into 64 MB.
    """
    queries, candidates = as_tensor(queries), as_tensor(candidates)
    rows = max(1, BLOCK // max(len(candidates), 1))
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    scores = torch.empty(len(queries), k)
    products = torch.empty(min(rows, len(queries)), len(candidates))
    with torch.inference_mode():
        for start in range(0, len(queries), rows):
            part = queries[start : start + rows]
            product = torch.mm(part, candidates.T, out=products[: len(part)])
            if excluded is not None:
                first, last = np.searchsorted(excluded[0], [start, start + len(part)])
                query = torch.from_numpy(excluded[0][first:last] - start)
                product[query, torch.from_numpy(excluded[1][first:last])] = -torch.inf
            best = torch.topk(product, k, dim=1)
            scores[start : start + len(part)] = best.values
            indices[start : start + len(part)] = best.indices
    indices[scores == -torch.inf] = -1
    return indices.numpy(), scores.numpy()


def as_tensor(array):
    """Return an array as a tensor that shares its memory, and must not be written to."""
    with catch_warnings():
        # torch warns of read-only arrays, such as those that joblib maps into memory.
        simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class ApproximateIndex:
    """Approximate nearest-neighbour index of candidates.

    Parameters
    ----------
    candidates : ndarray of float32, shape (n_candidates, embedding_dim)
        Embeddings of the candidates.
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of some hundred typical queries. The search is as fast as a recall of 97% of
        their ten best candidates allows.

    Attributes
    ----------
    recall : float
        Recall of the ten best candidates of `queries`.

    Raises
    ------
    ImportError
        If usearch is not installed.

    Notes
    -----
    The index is a graph of hierarchical navigable small worlds (Malkov and Yashunin, 2018), by the
    package usearch. Pickles include the graph.
    """

    def __init__(self, candidates, queries):
        self._index = _new_index(candidates.shape[1])
        # With several threads the graph would depend on which of them is faster.
        self._index.add(np.arange(len(candidates)), candidates, threads=1)
        best, _ = top_k(queries, candidates, min(10, len(candidates)))
        for expansion in EXPANSIONS:
            self._index.expansion_search = expansion
            indices, _ = self._search(queries, best.shape[1], 1)
            self.recall = float((indices[:, :, None] == best[:, None, :]).any(1).mean())
            if self.recall >= MIN_RECALL:
                break

    def __getstate__(self):
        """Return the state, with the graph as bytes."""
        return {
            "dimensions": self._index.ndim,
            "expansion": self._index.expansion_search,
            "recall": self.recall,
            "graph": bytes(self._index.save()),
        }

    def __setstate__(self, state):
        """Restore the index from its state."""
        self._index = _new_index(state["dimensions"])
        self._index.load(state["graph"])
        self._index.expansion_search = state["expansion"]
        self.recall = state["recall"]

    def search(self, queries, k, *, excluded=None, threads=1):
        """Return indices and scores of approximately the k best candidates.

        Parameters
        ----------
        queries, k, excluded
            Parameters of :func:`top_k`.
        threads : int, default=1
            Number of threads.

        Returns
        -------
        indices : ndarray of int64, shape (n_queries, k)
        scores : ndarray of float32, shape (n_queries, k)

        Notes
        -----
        With excluded pairs, the search is for more candidates, so that k are left. Queries are
        searched for in groups that need about the same number: one with many excluded candidates
        does not slow down the others.
        """
        if excluded is None:
            return self._search(queries, k, threads)
        query, candidate = excluded
        excluded_pairs = query * len(self._index) + candidate
        needed = k + np.bincount(query, minlength=len(queries))
        sizes = np.minimum(k * 2 ** np.ceil(np.log2(needed / k)).astype(int), len(self._index))
        found = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            indices, scores = self._search(queries[rows], int(size), threads)
            is_excluded = np.isin(rows[:, None] * len(self._index) + indices, excluded_pairs)
            indices[is_excluded], scores[is_excluded] = -1, -np.inf
            first = np.argsort(is_excluded, axis=1, kind="stable")[:, :k]
            for own, values in zip(found, (indices, scores), strict=True):
                own[rows, : first.shape[1]] = np.take_along_axis(values, first, axis=1)
        return found

    def _search(self, queries, k, threads):
        matches = self._index.search(queries, k, threads=threads)
        keys, distances = (
            np.asarray(values).reshape(len(queries), -1)
            for values in (matches.keys, matches.distances)
        )
        # Matches of a single query have no counts.
        counts = np.asarray(getattr(matches, "counts", [keys.shape[1]]))
        filled = np.zeros((len(queries), k), dtype=bool)
        filled[:, : keys.shape[1]] = np.arange(keys.shape[1]) < counts[:, None]
        indices = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        indices[filled] = keys[filled[:, : keys.shape[1]]]
        # The distance of the inner product metric is one minus the product.
        scores[filled] = 1 - distances[filled[:, : keys.shape[1]]]
        return indices, scores


def _new_index(dimensions):
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError(
            "index='usearch' needs the package usearch: pip install 'sk_easytensor[retrieval]'"
        ) from error
    return Index(ndim=dimensions, metric="ip", dtype="f32")


def check_index(owner, index):
    """Raise ``ValueError`` unless `index` is the name of an index."""
    check_choice(owner, "index", index, INDEXES)
