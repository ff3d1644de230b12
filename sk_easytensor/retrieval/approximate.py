"""Approximate search for the candidates with the largest products, by FAISS or usearch."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from sk_easytensor._utils.validation import check_choice
from sk_easytensor.retrieval.search import top_k

__all__ = [
    "INDEXES",
    "ApproximateIndex",
    "check_index",
]


INDEXES = ("exact", "faiss", "usearch")

MIN_RECALL = 0.97
"""Recall of the ten best candidates to which an approximate search is adjusted."""

EXPANSIONS = tuple(32 * 2**power for power in range(8))
"""Sizes of the candidate list of a graph search, of which larger ones increase the recall."""

LARGEST_HALF = float(np.finfo(np.float16).max)

ROWS_PER_CELL = 40
"""Candidates that a cell of FAISS has on average at least."""


class ApproximateIndex:
    """Approximate nearest-neighbour index of candidates.

    Parameters
    ----------
    candidates : ndarray of float32, shape (n_candidates, embedding_dim)
        Embeddings of the candidates.
    queries : ndarray of float32, shape (n_queries, embedding_dim)
        Embeddings of some hundred typical queries. The search is as fast as a recall of 97% of
        their ten best candidates allows.
    library : {"faiss", "usearch"}, default="faiss"
        ``"faiss"``: candidates are divided into cells by k-means, and a search looks at those of
        the nearest cells (Sivic and Zisserman, 2003), stored in half precision. ``"usearch"``: a
        graph of hierarchical navigable small worlds (Malkov and Yashunin, 2018), which takes some
        twenty times as long to build. Cells are those of these candidates: build the index again
        when their number has doubled.

    Attributes
    ----------
    recall : float
        Recall of the ten best candidates of `queries`.

    Raises
    ------
    ImportError
        If the library is not installed.
    ValueError
        If there are no candidates or no queries.

    Examples
    --------
    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> items, users = (random.normal(size=(n, 8)).astype("float32") for n in (2_000, 100))
    >>> index = ApproximateIndex(items, users)
    >>> rows, scores = index.search(users, 10)
    >>> rows.shape, index.recall >= 0.97
    ((100, 10), True)
    """

    def __init__(self, candidates, queries, library="faiss"):
        if not (len(candidates) and len(queries)):
            raise ValueError(
                f"{type(self).__name__}: there must be candidates and queries, got "
                f"{len(candidates)} and {len(queries)}"
            )
        self.library = library
        self._backend = LIBRARIES[library].trained_on(candidates)
        self._labels = np.empty(0, dtype=np.int64)
        self._n_labels = 0
        self.add(candidates)
        best, _ = top_k(queries, candidates, min(10, len(candidates)))
        for effort in self._backend.efforts():
            self._backend.effort = int(effort)
            indices, _ = self._search(queries, best.shape[1], 1)
            self.recall = float((indices[:, :, None] == best[:, None, :]).any(1).mean())
            if self.recall >= MIN_RECALL:
                break

    def __len__(self):
        return len(self._labels)

    def __getstate__(self):
        """Return the state, with the index of the library as bytes."""
        return {
            "library": self.library,
            "effort": self._backend.effort,
            "recall": self.recall,
            "content": self._backend.to_bytes(),
            "labels": self._labels,
            "n_labels": self._n_labels,
        }

    def __setstate__(self, state):
        """Restore the index from its state."""
        self.library = state["library"]
        self._backend = LIBRARIES[self.library].from_bytes(state["content"])
        self._backend.effort = state["effort"]
        self.recall = state["recall"]
        self._n_labels = state["n_labels"]
        self._number(state["labels"])

    def to_bytes(self):
        """Return the index as bytes, for :meth:`from_bytes`."""
        state = self.__getstate__()
        content, labels = state.pop("content"), state.pop("labels")
        header = json.dumps({**state, "size": len(labels)}).encode()
        return header + b"\n" + labels.tobytes() + content

    @classmethod
    def from_bytes(cls, data):
        """Return an index from the result of :meth:`to_bytes`."""
        header, _, data = data.partition(b"\n")
        state = json.loads(header)
        labels = np.frombuffer(data, dtype=np.int64, count=state.pop("size"))
        index = object.__new__(cls)
        index.__setstate__({**state, "labels": labels, "content": data[labels.nbytes :]})
        return index

    def _number(self, labels):
        """Set the labels of the candidates, by which the library knows them, in their order."""
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
        self._backend.remove(self._labels[rows])
        labels = self._labels.copy()
        labels[rows] = self._new_labels(candidates)
        self._number(labels)

    def remove(self, rows):
        """Remove the candidates at some indices; later ones move up."""
        self._backend.remove(self._labels[rows])
        self._number(np.delete(self._labels, rows))

    def _new_labels(self, candidates):
        """Add candidates to the index, and return their labels, which are never used again."""
        labels = self._n_labels + np.arange(len(candidates))
        self._backend.add(labels, candidates)
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
            Products, rounded to half precision by FAISS.

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
        labels, scores = self._backend.search(queries, k, threads)
        found = labels >= 0
        indices = np.full(labels.shape, -1)
        indices[found] = self._row_of_label[labels[found]]
        return indices, np.where(found, scores, np.float32(-np.inf))


class FaissCells:
    """Candidates in cells of FAISS, of which a search visits the nearest.

    Parameters
    ----------
    index : faiss.IndexIVF
        Trained index.
    scale : float
        Number that candidates are divided by, so that half precision can hold them.
    """

    def __init__(self, index, scale):
        self.index = index
        self.scale = scale
        self.effort = 1

    @classmethod
    def trained_on(cls, candidates):
        """Return an empty index whose cells are made for some candidates."""
        faiss = import_library("faiss")
        n_cells = max(1, min(int(np.sqrt(len(candidates))), len(candidates) // ROWS_PER_CELL))
        index = _empty_cells(faiss, candidates.shape[1], n_cells)
        # Below 39 rows a cell it would print a warning, which does not apply to small catalogues.
        index.cp.min_points_per_centroid = 1
        scale = float(np.abs(candidates).max(initial=0)) or 1.0
        # With several threads the cells would depend on their number.
        with threads_of(faiss, 1):
            index.train(candidates / np.float32(scale))
        return cls(index, scale)

    def efforts(self):
        """Return the numbers of cells that a search may visit, the smallest first."""
        halves = np.arange(2 * self.index.nlist.bit_length() + 1)
        return np.unique(np.minimum(np.round(2 ** (halves / 2)), self.index.nlist)).astype(int)

    def add(self, labels, candidates):
        """Add candidates under labels."""
        scaled = np.clip(candidates / np.float32(self.scale), -LARGEST_HALF, LARGEST_HALF)
        with threads_of(import_library("faiss"), 1):
            self.index.add_with_ids(scaled, labels)

    def remove(self, labels):
        """Remove the candidates of some labels."""
        self.index.remove_ids(np.ascontiguousarray(labels))

    def search(self, queries, k, threads):
        """Return labels and products of the best candidates, label -1 where there is none."""
        faiss = import_library("faiss")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        effort, k_found = self.effort, min(k, self.index.ntotal)
        labels = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        missing = np.arange(len(queries) if k_found else 0)
        while len(missing):
            parameters = faiss.SearchParametersIVF(nprobe=effort)
            with threads_of(faiss, threads):
                products, found = self.index.search(queries[missing], k_found, params=parameters)
            labels[missing, :k_found], scores[missing, :k_found] = found, products
            # The nearest cells may hold fewer candidates than are wanted.
            missing = missing[(found < 0).any(axis=1)] if effort < self.index.nlist else []
            effort = min(2 * effort, self.index.nlist)
        found = labels >= 0
        scores[found] *= np.float32(self.scale)
        return labels, scores

    def to_bytes(self):
        """Return the index as bytes of arrays, which are read without FAISS's own formats."""
        faiss = import_library("faiss")
        lists, dimensions = self.index.invlists, self.index.d
        sizes = np.array([lists.list_size(cell) for cell in range(self.index.nlist)])
        labels, vectors = [np.empty(0, np.int64)], [np.empty(0, np.float16)]
        for cell in np.flatnonzero(sizes).tolist():
            n_rows = int(sizes[cell])
            labels.append(faiss.rev_swig_ptr(lists.get_ids(cell), n_rows).copy())
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), 2 * n_rows * dimensions)
            vectors.append(codes.copy().view(np.float16))
        arrays = {
            "scale": np.float64(self.scale),
            "centers": self.index.quantizer.reconstruct_n(0, self.index.nlist),
            "sizes": sizes,
            "labels": np.concatenate(labels),
            "vectors": np.concatenate(vectors).reshape(-1, dimensions),
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data):
        """Return an index from the result of :meth:`to_bytes`.

        Raises
        ------
        ValueError
            If the arrays are not those of an index.
        """
        faiss = import_library("faiss")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            centers, sizes, labels, vectors = (
                np.ascontiguousarray(arrays[name], dtype)
                for name, dtype in (
                    ("centers", np.float32),
                    ("sizes", np.int64),
                    ("labels", np.int64),
                    ("vectors", np.float16),
                )
            )
            scale = float(arrays["scale"])
        n_cells, dimensions = centers.shape
        fits = sizes.shape == (n_cells,) and (sizes >= 0).all() and sizes.sum() == len(labels)
        if not (fits and vectors.shape == (len(labels), dimensions)):
            raise ValueError("the approximate index is corrupt: its arrays do not fit each other")
        index = _empty_cells(faiss, dimensions, n_cells)
        index.quantizer.add(centers)
        index.is_trained = True
        starts = np.cumsum(sizes) - sizes
        for cell in np.flatnonzero(sizes).tolist():
            part = slice(starts[cell], starts[cell] + sizes[cell])
            own, codes = labels[part], vectors[part].view(np.uint8)
            index.invlists.add_entries(
                cell, len(own), faiss.swig_ptr(own), faiss.swig_ptr(codes.ravel())
            )
        index.ntotal = len(labels)
        return cls(index, scale)


def _empty_cells(faiss, dimensions, n_cells):
    return faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimensions),
        dimensions,
        n_cells,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        # Residuals of short vectors would be lost in half precision: centers have length 1.
        False,
    )


class UsearchGraph:
    """Candidates in a graph of usearch.

    Parameters
    ----------
    index : usearch.index.Index
        Index.
    """

    def __init__(self, index):
        self.index = index

    @classmethod
    def trained_on(cls, candidates):
        """Return an empty index for candidates of the same size."""
        return cls._empty(candidates.shape[1])

    @classmethod
    def _empty(cls, dimensions=0):
        usearch = import_library("usearch.index")
        return cls(usearch.Index(ndim=dimensions, metric="ip", dtype="f32"))

    @property
    def effort(self):
        """Size of the list of candidates of a search."""
        return self.index.expansion_search

    @effort.setter
    def effort(self, effort):
        self.index.expansion_search = effort

    def efforts(self):
        """Return the sizes that the list of a search may have, the smallest first."""
        return EXPANSIONS

    def add(self, labels, candidates):
        """Add candidates under labels."""
        # With several threads the graph would depend on which of them is faster.
        self.index.add(labels, candidates, threads=1)

    def remove(self, labels):
        """Remove the candidates of some labels."""
        self.index.remove(labels)

    def search(self, queries, k, threads):
        """Return labels and products of the best candidates, label -1 where there is none."""
        matches = self.index.search(queries, k, threads=threads)
        keys, distances = (
            np.asarray(values).reshape(len(queries), -1)
            for values in (matches.keys, matches.distances)
        )
        # Matches of a single query have no counts.
        counts = np.asarray(getattr(matches, "counts", [keys.shape[1]]))
        filled = np.zeros((len(queries), k), dtype=bool)
        filled[:, : keys.shape[1]] = np.arange(keys.shape[1]) < counts[:, None]
        labels = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        labels[filled] = keys[filled[:, : keys.shape[1]]].astype(np.int64)
        # The distance of the inner product metric is one minus the product.
        scores[filled] = 1 - distances[filled[:, : keys.shape[1]]]
        return labels, scores

    def to_bytes(self):
        """Return the index as bytes."""
        return bytes(self.index.save())

    @classmethod
    def from_bytes(cls, data):
        """Return an index from the result of :meth:`to_bytes`."""
        graph = cls._empty()
        graph.index.load(data)
        return graph


LIBRARIES = {"faiss": FaissCells, "usearch": UsearchGraph}


@contextmanager
def threads_of(faiss, number):
    """Let FAISS use some threads, for a context."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def import_library(name):
    """Return a module of FAISS or usearch; raise ``ImportError`` if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise ImportError(
            f"index={library!r} needs the package {library}: pip install 'sk_easytensor[retrieval]'"
        ) from error


def check_index(owner, index):
    """Raise ``ValueError`` unless `index` is the name of an index."""
    check_choice(owner, "index", index, INDEXES)
