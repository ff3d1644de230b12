"""The best of many candidates for each query, by product of embeddings: exact or approximate."""

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
"""Products held at a time."""

RECALL = 0.97
"""Fraction of the best that an approximate search is set to find, measured on some queries."""

EXPANSIONS = tuple(32 * 2**power for power in range(8))
"""Candidates that a search of the graph keeps at hand: more of them find more of the best."""


@with_library_settings
def top_k(queries, candidates, k, *, excluded=None):
    """Return the k candidates with the largest products for each query.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings.
    candidates : ndarray of float32, shape (n_candidates, embedding_dim)
        Embeddings.
    k : int
        How many, at most `n_candidates`.
    excluded : tuple of ndarray of int64, optional
        Queries and candidates of the pairs that do not count, sorted by query.

    Returns
    -------
    places : ndarray of int64, shape (n_queries, k)
        The best first; -1 where all others are excluded.
    scores : ndarray of float32, shape (n_queries, k)
        Products; ``-inf`` where there is no candidate left.

    Notes
    -----
    Products are computed for as many queries at a time as fit into 64 MB.
    """
    queries, candidates = as_tensor(queries), as_tensor(candidates)
    rows = max(1, BLOCK // max(len(candidates), 1))
    places = torch.empty(len(queries), k, dtype=torch.int64)
    scores = torch.empty(len(queries), k)
    products = torch.empty(min(rows, len(queries)), len(candidates))
    with torch.inference_mode():
        for start in range(0, len(queries), rows):
            part = queries[start : start + rows]
            product = torch.mm(part, candidates.T, out=products[: len(part)])
            if excluded is not None:
                first, last = np.searchsorted(excluded[0], [start, start + len(part)])
                own = torch.from_numpy(excluded[0][first:last] - start)
                product[own, torch.from_numpy(excluded[1][first:last])] = -torch.inf
            best = torch.topk(product, k, dim=1)
            scores[start : start + len(part)] = best.values
            places[start : start + len(part)] = best.indices
    places[scores == -torch.inf] = -1
    return places.numpy(), scores.numpy()


def as_tensor(array):
    """Return an array as a tensor that shares its memory and is not to be written to."""
    with catch_warnings():
        # Arrays that joblib maps into memory cannot be written to, of which torch warns.
        simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class ApproximateIndex:
    """A graph of candidates in which near neighbours are found without looking at all.

    Parameters
    ----------
    candidates : ndarray of float32, shape (n_candidates, embedding_dim)
        Embeddings.
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Some hundred queries of the kind that will be asked. How far a search goes is the least
        that finds 97% of the ten best candidates of these.

    Attributes
    ----------
    recall : float
        Fraction of the ten best that is found for `queries`.

    Notes
    -----
    Hierarchical navigable small worlds (Malkov and Yashunin, 2018), by the package usearch.
    Pickles hold the graph.
    """

    def __init__(self, candidates, queries):
        self._index = _new_index(candidates.shape[1])
        # With several threads the graph would depend on which of them is faster.
        self._index.add(np.arange(len(candidates)), candidates, threads=1)
        best, _ = top_k(queries, candidates, min(10, len(candidates)))
        for expansion in EXPANSIONS:
            self._index.expansion_search = expansion
            found, _ = self._search(queries, best.shape[1], 1)
            self.recall = float((found[:, :, None] == best[:, None, :]).any(1).mean())
            if self.recall >= RECALL:
                break

    def __getstate__(self):
        """Return what is pickled."""
        return {
            "dimensions": self._index.ndim,
            "expansion": self._index.expansion_search,
            "recall": self.recall,
            "graph": bytes(self._index.save()),
        }

    def __setstate__(self, state):
        """Restore what was pickled."""
        self._index = _new_index(state["dimensions"])
        self._index.load(state["graph"])
        self._index.expansion_search = state["expansion"]
        self.recall = state["recall"]

    def search(self, queries, k, *, excluded=None, threads=1):
        """Return places and scores of about the k best candidates, as :func:`top_k` does.

        As many more are looked up as are excluded for any query, so that k are left.
        """
        if excluded is None:
            return self._search(queries, k, threads)
        query, candidate = excluded
        most = np.bincount(query).max(initial=0)
        places, scores = self._search(queries, min(k + most, len(self._index)), threads)
        pairs = np.arange(len(queries))[:, None] * len(self._index) + places
        out = np.isin(pairs, query * len(self._index) + candidate)
        places[out], scores[out] = -1, -np.inf
        first = np.argsort(out, axis=1, kind="stable")[:, :k]
        return (np.take_along_axis(values, first, axis=1) for values in (places, scores))

    def _search(self, queries, k, threads):
        found = self._index.search(queries, k, threads=threads)
        keys, distances = (
            np.asarray(values).reshape(len(queries), -1) for values in (found.keys, found.distances)
        )
        # Of a single query, only what was found is returned.
        counts = np.asarray(getattr(found, "counts", [keys.shape[1]]))
        filled = np.zeros((len(queries), k), dtype=bool)
        filled[:, : keys.shape[1]] = np.arange(keys.shape[1]) < counts[:, None]
        places = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        places[filled] = keys[filled[:, : keys.shape[1]]]
        # The distance of the inner product metric is one minus the product.
        scores[filled] = 1 - distances[filled[:, : keys.shape[1]]]
        return places, scores


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
