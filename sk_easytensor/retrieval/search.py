"""Exact search for the candidates with the largest products, and diverse selections of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock

import numpy as np

__all__ = [
    "diversified",
    "normalized",
    "quantized",
    "rescored",
    "top_k",
]


QUERIES = 256
"""Queries that are searched for at a time."""

BLOCK = 1 << 20
"""Products in memory at a time."""

LARGEST_BLOCK = 1 << 16
"""Candidates that are read at a time by few queries."""

MIN_BLOCK = 4
"""Candidates of the first block per result. Fewer would say little of the largest products."""

FEW_QUERIES = 4
"""Queries up to which numkong's products of small types are faster than a conversion to float32."""

LARGEST_INT8 = 127


def top_k(queries, candidates, k, *, scales=None, allowed=None, excluded=None, threads=1):
    """Return the k candidates with the largest products for each query.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of the queries.
    candidates : ndarray of float32, float16 or int8, shape (n_candidates, embedding_dim)
        Embeddings of the candidates, in memory or mapped from a file.
    k : int
        Number of candidates to return.
    scales : ndarray of float32, shape (n_candidates,), optional
        Numbers that candidates are multiplied by, see :func:`quantized`.
    allowed : ndarray of bool, shape (n_candidates,), optional
        Candidates to search; all of them by default.
    excluded : tuple of ndarray of int64, optional
        Indices of the queries and candidates of excluded pairs, sorted by query.
    threads : int, default=1
        Number of threads.

    Returns
    -------
    indices : ndarray of int64, shape (n_queries, k)
        Indices of the candidates, the best first and the first of equal ones first; -1 if no
        candidate is left.
    scores : ndarray of float32, shape (n_queries, k)
        Products; ``-inf`` if no candidate is left.

    Notes
    -----
    Products are computed for blocks of candidates. Only those that are larger than the k-th
    largest so far are sorted, which takes less time than to select from all products of a query.

    Examples
    --------
    >>> candidates = np.eye(3, dtype=np.float32)
    >>> indices, scores = top_k(np.float32([[1, 3, 2]]), candidates, 2)
    >>> indices.tolist(), scores.tolist()
    ([[1, 2]], [[3.0, 2.0]])
    """
    queries = np.asarray(queries, dtype=np.float32)
    indices = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    with blas_threads(threads):
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            blocks = Blocks(queries[part], candidates, scales, allowed, k)
            if excluded is not None:
                blocks.exclude(*_part_of(excluded, start, start + QUERIES))
            best = Best(len(blocks.queries), k)
            for rows, products in blocks.products(threads):
                best.add(rows, products)
            best.write(indices[part], scores[part])
    return indices, scores


def _part_of(excluded, start, stop):
    """Return the excluded pairs of some queries, which are counted from 0."""
    first, last = np.searchsorted(excluded[0], [start, stop])
    return excluded[0][first:last] - start, excluded[1][first:last]


class Blocks:
    """Products of queries with blocks of candidates.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of the queries.
    candidates, scales, allowed, k
        Parameters of :func:`top_k`.
    """

    def __init__(self, queries, candidates, scales, allowed, k):
        self.queries = queries
        self.candidates = candidates
        self.scales = scales
        self.allowed = allowed
        self.size = max(MIN_BLOCK * k, min(LARGEST_BLOCK, BLOCK // len(queries)))
        self.pairs = None
        self.multiply = _multiplication(queries, candidates.dtype)

    def exclude(self, query, candidate):
        """Exclude pairs of a query and a candidate."""
        order = np.argsort(candidate, kind="stable")
        self.pairs = query[order], candidate[order]

    def products(self, threads):
        """Yield the indices of each block's candidates, and their products with all queries."""
        starts = range(0, len(self.candidates), self.size)
        if threads == 1 or self.candidates.dtype == np.float32:
            yield from map(self._block, starts)
            return
        # BLAS has threads of its own, conversions have none.
        with ThreadPoolExecutor(threads) as pool:
            for begin in range(0, len(starts), threads):
                yield from pool.map(self._block, starts[begin : begin + threads])

    def _block(self, start):
        part = slice(start, min(start + self.size, len(self.candidates)))
        rows = np.arange(part.start, part.stop)
        if self.allowed is not None:
            rows = rows[self.allowed[part]]
        whole = len(rows) == part.stop - part.start
        taken = part if whole else rows
        products = self.multiply(self.candidates[taken])
        if self.scales is not None:
            products *= self.scales[taken]
        if self.pairs is not None:
            first, last = np.searchsorted(self.pairs[1], [part.start, part.stop])
            query, candidate = self.pairs[0][first:last], self.pairs[1][first:last]
            if not whole:
                present = self.allowed[candidate]
                query, candidate = query[present], candidate[present]
            products[query, np.searchsorted(rows, candidate)] = -np.inf
        return rows, products


def _multiplication(queries, dtype):
    """Return a function that multiplies queries by candidates of a type."""
    if dtype != np.float32 and len(queries) <= FEW_QUERIES and numkong() is not None:
        return PackedQueries(queries, dtype)
    return lambda part: queries @ part.astype(np.float32, copy=False).T


@cache
def numkong():
    """Return the module of products of small numbers that usearch brings along, or None."""
    try:
        import numkong
    except ImportError:
        return None
    return numkong if hasattr(numkong, "dots_packed") else None


class PackedQueries:
    """Products of float32 queries with int8 or float16 candidates, without a conversion of these.

    A query is written as the sum of two vectors of the candidates' type. What is left of it is less
    than 1/30,000 of its largest component.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of the queries.
    dtype : numpy.dtype
        Type of the candidates.
    """

    def __init__(self, queries, dtype):
        parts, weights, rest = [], [], queries
        for _ in range(2):
            if dtype == np.int8:
                values, scales = quantized(rest)
            else:
                scales = np.abs(rest).max(axis=1, initial=0)
                scales = np.where(scales > np.finfo(np.float32).tiny, scales, 1)
                values = (rest / scales[:, None]).astype(dtype)
            rest = rest - values * scales[:, None]
            parts.append(values)
            weights.append(np.diag(scales))
        self.packed = numkong().dots_pack(np.concatenate(parts))
        self.weights = np.concatenate(weights, dtype=np.float32)

    def __call__(self, part):
        """Return the products with some candidates, of shape (n_queries, n_candidates)."""
        products = np.asarray(numkong().dots_packed(np.ascontiguousarray(part), self.packed))
        return np.ascontiguousarray((products.astype(np.float32) @ self.weights).T)


class Best:
    """The best candidates of each query so far.

    Parameters
    ----------
    n_queries, k : int
        Number of queries, and of candidates to find for each.
    """

    def __init__(self, n_queries, k):
        self.n_queries = n_queries
        self.k = k
        self.thresholds = None
        self.parts = []
        self.n_held = 0

    def add(self, rows, products):
        """Add candidates, which follow those before, with their products with all queries."""
        if not products.size:
            return
        if self.thresholds is None:
            rank = max(products.shape[1] - self.k, 0)
            # Later candidates have to be better, those of this block may be equal.
            self.thresholds = np.partition(products, rank, axis=1)[:, rank]
            chosen = (products >= self.thresholds[:, None]) & (products > -np.inf)
        else:
            chosen = products > self.thresholds[:, None]
        places = _nonzero(chosen.ravel())
        query, column = np.divmod(places, products.shape[1])
        self.parts.append((query, rows[column], products.ravel()[places]))
        self.n_held += len(places)
        if len(self.parts) == 1 or self.n_held > 8 * self.n_queries * self.k:
            self._select()

    def _select(self):
        """Retain the k best of each query, in order."""
        query, row, score = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        order = np.lexsort((row, -score, query))
        query, row, score = query[order], row[order], score[order]
        first = np.searchsorted(query, np.arange(self.n_queries))
        lengths = np.diff(first, append=len(query))
        rank = np.arange(len(query)) - first[query]
        full = lengths >= self.k
        self.thresholds = np.full(self.n_queries, -np.inf, dtype=np.float32)
        self.thresholds[full] = score[first[full] + self.k - 1]
        kept = rank < self.k
        self.parts = [(query[kept], row[kept], score[kept])]
        self.n_held = int(kept.sum())
        self.ranks = rank[kept]

    def write(self, indices, scores):
        """Write the best candidates into arrays of shape (n_queries, k)."""
        if self.parts:
            self._select()
            query, row, score = self.parts[0]
            indices[query, self.ranks], scores[query, self.ranks] = row, score


def _nonzero(mask):
    """Return the indices of few true values, eight of which are looked at at a time."""
    length = len(mask) // 8 * 8
    words = np.flatnonzero(mask[:length].view(np.uint64))
    places = (words[:, None] * 8 + np.arange(8)).ravel()
    return np.append(places[mask[places]], length + np.flatnonzero(mask[length:]))


def quantized(embeddings):
    """Return embeddings as int8, and the number that each row has to be multiplied by.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n_rows, embedding_dim)
        Embeddings.

    Returns
    -------
    values : ndarray of int8, shape (n_rows, embedding_dim)
        Between -127 and 127.
    scales : ndarray of float32, shape (n_rows,)
        A 127th of the largest absolute value of each row.

    Examples
    --------
    >>> values, scales = quantized(np.float32([[2.54, -1.27]]))
    >>> values.tolist(), scales.round(4).tolist()
    ([[127, -64]], [0.02])
    """
    scales = np.abs(embeddings).max(axis=1, initial=0).astype(np.float32) / LARGEST_INT8
    # Rows of zeros, and of numbers that are too small to be divided by, become zeros.
    divisors = np.where(scales > np.finfo(np.float32).tiny, scales, np.inf)
    values = np.rint(embeddings / divisors[:, None]).astype(np.int8)
    return values, scales


def normalized(vectors):
    """Return vectors divided by their lengths; those of length 0 stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def rescored(queries, indices, vectors):
    """Compute the products of candidates that were found, and sort them again.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of the queries.
    indices : ndarray of int64, shape (n_queries, n_found)
        Indices of the candidates of each query; -1 where there is none.
    vectors : callable
        Takes indices of candidates, of any shape, and returns their embeddings.

    Returns
    -------
    indices : ndarray of int64, shape (n_queries, n_found)
        The candidates, the best first. None are left for a query that is not finite.
    scores : ndarray of float32, shape (n_queries, n_found)
        Their products; ``-inf`` where there is no candidate.
    """
    scores = np.empty(indices.shape, dtype=np.float32)
    size = max(1, BLOCK // max(indices.shape[1], 1) // 16)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        np.einsum("qd,qkd->qk", queries[part], vectors(indices[part]), out=scores[part])
    indices = np.where(np.isfinite(scores), indices, -1)
    scores[indices < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)


def diversified(indices, scores, vectors, k, diversity):
    """Select candidates of high scores that are not much like each other.

    Parameters
    ----------
    indices : ndarray of int64, shape (n_queries, n_found)
        Indices of the candidates of each query, the best first; -1 where there is none.
    scores : ndarray of float32, shape (n_queries, n_found)
        Scores of the candidates.
    vectors : callable
        Takes indices of candidates, of any shape, and returns their embeddings, of length 1.
    k : int
        Number of candidates to select.
    diversity : float
        Weight of the likeness, from 0 for none to 1.

    Returns
    -------
    indices : ndarray of int64, shape (n_queries, k)
        Selected candidates in the order of their selection; -1 where there is none.
    scores : ndarray of float32, shape (n_queries, k)
        Their scores.

    Notes
    -----
    The method is maximal marginal relevance (Carbonell and Goldstein, "The Use of MMR,
    Diversity-Based Reranking for Reordering Documents and Producing Summaries", 1998): the next
    candidate has the largest ``(1 - diversity) * relevance - diversity * likeness``, where the
    relevance is the score, scaled to between 0 and 1 among the candidates of the query, and the
    likeness the largest cosine to a selected candidate.
    """
    n_queries, n_found = indices.shape
    found = np.full((n_queries, k), -1), np.full((n_queries, k), -np.inf, dtype=np.float32)
    size = max(1, BLOCK // max(n_found, 1) // 16)
    for start in range(0, n_queries, size):
        part = slice(start, start + size)
        selected = _diversified(indices[part], scores[part], vectors(indices[part]), k, diversity)
        for whole, values in zip(found, selected, strict=True):
            whole[part] = values
    return found


def _diversified(indices, scores, vectors, k, diversity):
    """Select candidates for some queries, whose vectors are in memory."""
    present = indices >= 0
    lowest = np.where(present, scores, np.inf).min(axis=1, keepdims=True)
    spread = np.where(present, scores, -np.inf).max(axis=1, keepdims=True) - lowest
    relevance = np.where(present, scores, lowest) - np.where(present.any(1)[:, None], lowest, 0)
    relevance /= np.where(spread > 0, spread, 1)
    left = present.copy()
    likeness = np.zeros_like(scores)
    queries = np.arange(len(indices))
    order = np.zeros((len(indices), k), dtype=np.int64)
    for step in range(k):
        gain = np.where(left, (1 - diversity) * relevance - diversity * likeness, -np.inf)
        order[:, step] = chosen = gain.argmax(axis=1)
        left[queries, chosen] = False
        cosines = np.matmul(vectors, vectors[queries, chosen][:, :, None])[:, :, 0]
        # Whatever is unlike the first one is not better than what is neither like nor unlike it.
        likeness = np.maximum(likeness, cosines)
    taken = np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)
    missing = np.arange(k) >= present.sum(axis=1, keepdims=True)
    return np.where(missing, -1, taken[0]), np.where(missing, -np.inf, taken[1])


@cache
def _blas():
    """Return threadpoolctl's controller of the loaded libraries, or None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


class BlasThreads:
    """Number of threads of BLAS in searches, which all threads of the process share.

    The first search that begins sets it, the last one that ends restores it.
    """

    def __init__(self):
        self._free()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._free)

    def _free(self):
        self.lock, self.depth, self.limit = Lock(), 0, None

    @contextmanager
    def __call__(self, threads):
        """Set the number of threads within the context, where threadpoolctl is installed."""
        controller = _blas()
        if controller is None:
            yield
            return
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.limit = controller.limit(limits=threads, user_api="blas")
        try:
            yield
        finally:
            with self.lock:
                self.depth -= 1
                if self.depth == 0:
                    self.limit.restore_original_limits()
                    self.limit = None


blas_threads = BlasThreads()
