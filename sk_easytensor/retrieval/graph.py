"""Approximate search for the candidates with the largest products, in a graph of neighbours."""

from __future__ import annotations

import json

import numpy as np

from sk_easytensor._utils.validation import check_choice
from sk_easytensor.retrieval.search import top_k

__all__ = [
    "INDEXES",
    "ApproximateIndex",
    "check_index",
]


INDEXES = ("exact", "usearch")

MIN_RECALL = 0.97
"""Recall of the ten best candidates to which an approximate search is adjusted."""

EXPANSIONS = tuple(32 * 2**power for power in range(8))
"""Sizes of the candidate list of a graph search, of which larger ones increase the recall."""


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
        self._labels = np.empty(0, dtype=np.int64)
        self._n_labels = 0
        self.add(candidates)
        best, _ = top_k(queries, candidates, min(10, len(candidates)))
        for expansion in EXPANSIONS:
            self._index.expansion_search = expansion
            indices, _ = self._search(queries, best.shape[1], 1)
            self.recall = float((indices[:, :, None] == best[:, None, :]).any(1).mean())
            if self.recall >= MIN_RECALL:
                break

    def __len__(self):
        return len(self._labels)

    def __getstate__(self):
        """Return the state, with the graph as bytes."""
        return {
            "dimensions": self._index.ndim,
            "expansion": self._index.expansion_search,
            "recall": self.recall,
            "graph": bytes(self._index.save()),
            "labels": self._labels,
            "n_labels": self._n_labels,
        }

    def __setstate__(self, state):
        """Restore the index from its state."""
        self._index = _new_index(state["dimensions"])
        self._index.load(state["graph"])
        self._index.expansion_search = state["expansion"]
        self.recall = state["recall"]
        self._n_labels = state["n_labels"]
        self._number(state["labels"])

    def to_bytes(self):
        """Return the index as bytes, for :meth:`from_bytes`."""
        state = self.__getstate__()
        graph, labels = state.pop("graph"), state.pop("labels")
        header = json.dumps({**state, "size": len(labels)}).encode()
        return header + b"\n" + labels.tobytes() + graph

    @classmethod
    def from_bytes(cls, data):
        """Return an index from the result of :meth:`to_bytes`."""
        header, _, data = data.partition(b"\n")
        state = json.loads(header)
        labels = np.frombuffer(data, dtype=np.int64, count=state.pop("size"))
        index = object.__new__(cls)
        index.__setstate__({**state, "labels": labels, "graph": data[labels.nbytes :]})
        return index

    def _number(self, labels):
        """Set the labels of the candidates, by which the graph knows them, in their order."""
        self._labels = labels
        self._row_of_label = np.full(self._n_labels, -1)
        self._row_of_label[labels] = np.arange(len(labels))

    def add(self, candidates):
        """Add candidates after the others.

        Parameters
        ----------
        candidates : ndarray of float32, shape (n_candidates, embedding_dim)
            Embeddings of the candidates.
        """
        labels = self._new_labels(candidates)
        self._number(np.append(self._labels, labels))

    def replace(self, rows, candidates):
        """Replace the embeddings of some candidates.

        Parameters
        ----------
        rows : ndarray of int64, shape (n_candidates,)
            Indices of the candidates.
        candidates : ndarray of float32, shape (n_candidates, embedding_dim)
            Their new embeddings.
        """
        self._index.remove(self._labels[rows])
        labels = self._labels.copy()
        labels[rows] = self._new_labels(candidates)
        self._number(labels)

    def remove(self, rows):
        """Remove the candidates at some indices; later ones move up."""
        self._index.remove(self._labels[rows])
        self._number(np.delete(self._labels, rows))

    def _new_labels(self, candidates):
        """Add candidates to the graph, and return their labels, which are never used again."""
        labels = self._n_labels + np.arange(len(candidates))
        # With several threads the graph would depend on which of them is faster.
        self._index.add(labels, candidates, threads=1)
        self._n_labels += len(labels)
        return labels

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
        excluded_pairs = query * len(self) + candidate
        needed = k + np.bincount(query, minlength=len(queries))
        sizes = np.minimum(k * 2 ** np.ceil(np.log2(needed / k)).astype(int), len(self))
        found = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            indices, scores = self._search(queries[rows], int(size), threads)
            is_excluded = np.isin(rows[:, None] * len(self) + indices, excluded_pairs)
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
        indices[filled] = self._row_of_label[keys[filled[:, : keys.shape[1]]].astype(np.int64)]
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
