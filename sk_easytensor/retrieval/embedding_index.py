"""Embeddings with their keys: searched, changed by key, and stored in Arrow files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor._utils.validation import check_choice, check_number, warn_user
from sk_easytensor.data.columns import show_value
from sk_easytensor.data.key_index import KeyIndex, as_objects, key_values
from sk_easytensor.data.keys import category_keys
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.retrieval.approximate import MIN_RECALL, ApproximateIndex
from sk_easytensor.retrieval.search import diversified, normalized, quantized, rescored, top_k

__all__ = [
    "DTYPES",
    "EmbeddingIndex",
]


DTYPES = ("float32", "float16", "int8")

FORMAT = 2
"""Version of the files. It is increased when older versions of the library cannot read new ones."""

METADATA, APPROXIMATE = b"sk_easytensor", b"sk_easytensor.approximate"
"""Entries of the schema's metadata: the description of the file, and the approximate index."""

EARLIER_GRAPH = b"sk_easytensor.graph"
"""Entry of the approximate index in files of format 1."""

EMBEDDING, SCALE, STRING, ORDER = RESERVED = ("__embedding", "__scale", "__string", "__order")
"""Columns of the files beside the key and the columns of filters."""

LENGTHS = 1 << 16
"""Rows whose lengths are computed at a time."""

POOL, LARGEST_POOL = 10, 1_000
"""Candidates per result among which diverse ones are selected, and the largest number of them."""


class EmbeddingIndex(ArrowStateMixin):
    """Embeddings of users or items, which are found by key or by the largest products.

    Fitted two-tower models have one for items (``item_index_``) and one for users
    (``user_index_``). It needs NumPy and pyarrow only.

    Parameters
    ----------
    keys : array-like or pyarrow array of shape (n_rows,)
        Distinct keys: numbers, strings or dates. 7, 7.0 and "7" are the same key.
    embeddings : array-like of float, shape (n_rows, embedding_dim)
        Embedding of each key.
    columns : table-like, optional
        Columns of the rows, which filters may name. Lists are left out.
    key : str, default="key"
        Name of the column of keys.
    dtype : {"float32", "float16", "int8"}, default="float32"
        Type in which embeddings are stored. Rows of ``"int8"`` have a scale each; they take a
        quarter of the memory.

    Attributes
    ----------
    keys : ndarray, shape (n_rows,)
        Keys.
    embeddings : ndarray of float32, float16 or int8, shape (n_rows, embedding_dim)
        Stored embeddings.
    scales : ndarray of float32, shape (n_rows,), or None
        Numbers that rows of int8 have to be multiplied by.
    lookup : KeyIndex
        Lookup of rows by key.
    columns : pyarrow.Table
        Columns that filters may name, the first of which has the keys.

    Raises
    ------
    ValueError
        If keys are missing or not distinct, if the embeddings are not finite, or if the numbers of
        rows differ.

    Examples
    --------
    >>> import pyarrow.compute as pc
    >>> index = EmbeddingIndex(
    ...     ["Alien", "Heat", "Up"],
    ...     [[1.0, 0.0], [0.8, 0.5], [0.0, 1.0]],
    ...     {"year": [1979, 1995, 2009]},
    ... )
    >>> keys, scores = index.search([[1.0, 0.0]], 2, where=pc.field("year") > 1990)
    >>> keys.tolist(), scores.round(2).tolist()
    ([['Heat', 'Up']], [[0.800000011920929, 0.0]])
    """

    approximate = None
    _lengths = None

    def __init__(self, keys, embeddings, columns=None, *, key="key", dtype="float32"):
        check_choice(type(self).__name__, "dtype", dtype, DTYPES)
        self._check_names([key])
        column = as_table({key: keys}, minimum_rows=0).column(key)
        self.lookup = self._distinct(column, key)
        embeddings = self._checked(embeddings, len(column))
        self._keys = _plain(column)
        self.dtype = dtype
        self.embeddings, self.scales = self._stored(embeddings)
        self._columns = self._flat(columns, len(column))

    # ------------------------------------------------------------------ reading of arguments

    def _check_names(self, names):
        reserved = sorted(set(names) & set(RESERVED))
        if reserved:
            raise ValueError(f"{type(self).__name__}: columns cannot be named {reserved}")

    def _distinct(self, column, key):
        lookup = KeyIndex(column, key, type(self).__name__)
        lookup.check_distinct(column)
        lookup.forget_rows()
        return lookup

    def _checked(self, embeddings, n_rows, width=None):
        """Return embeddings as an array of float32; raise ``ValueError`` if they are invalid."""
        owner = type(self).__name__
        embeddings = np.asarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or len(embeddings) != n_rows:
            raise ValueError(
                f"{owner}: embeddings have the shape {embeddings.shape} for {n_rows} keys; they "
                "must have a row for each key"
            )
        if width is not None and embeddings.shape[1] != width:
            raise ValueError(
                f"{owner}: embeddings have {embeddings.shape[1]} columns, those of the index "
                f"{width}"
            )
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            raise ValueError(f"{owner}: the embedding in row {np.argmin(finite)} is not finite")
        return embeddings

    def _stored(self, embeddings):
        """Return embeddings in the type of the index, and the scales of int8."""
        if self.dtype == "int8":
            return quantized(embeddings)
        largest = np.abs(embeddings).max(initial=0)
        if self.dtype == "float16" and largest > np.finfo(np.float16).max:
            raise ValueError(
                f"{type(self).__name__}: embeddings of up to {largest:.3g} are too large for "
                "float16; use int8, whose rows have a scale each"
            )
        return embeddings.astype(self.dtype, copy=False), None

    def _flat(self, columns, n_rows):
        """Return the columns that filters may name beside the key as a dictionary."""
        if columns is None:
            return {}
        table = as_table(columns, minimum_rows=0)
        if len(table) != n_rows:
            raise ValueError(
                f"{type(self).__name__}: columns has {len(table)} rows for {n_rows} keys"
            )
        flat = {
            field.name: table.column(field.name)
            for field in table.schema
            if not pa.types.is_nested(field.type) and field.name != self.lookup.name
        }
        self._check_names(flat)
        return flat

    # ------------------------------------------------------------------ properties

    def __len__(self):
        return len(self.embeddings)

    def __repr__(self):
        shape = f"{len(self)} rows of {self.embedding_dim} {self.dtype}"
        return f"{type(self).__name__}({self.lookup.name!r}, {shape})"

    @property
    def keys(self):
        """Keys, as an array."""
        return key_values(self._keys)

    @property
    def columns(self):
        """Columns that filters may name, the first of which has the keys."""
        return pa.table({self.lookup.name: self._keys, **self._columns})

    @property
    def embedding_dim(self):
        """Size of the embeddings."""
        return self.embeddings.shape[1]

    def vectors(self, rows=slice(None)):
        """Return the embeddings of some rows as float32.

        Parameters
        ----------
        rows : ndarray of int64 or slice, optional
            Indices of rows; all of them by default.

        Returns
        -------
        ndarray of float32, shape (n_rows, embedding_dim)
            Read-only if it shares the memory of the index.
        """
        vectors = self.embeddings[rows].astype(np.float32, copy=False)
        if self.scales is not None:
            return vectors * self.scales[rows][..., None]
        if isinstance(rows, slice):
            vectors = vectors.view()
            vectors.flags.writeable = False
        return vectors

    def rows(self, keys, *, all_known=True):
        """Return the rows of keys.

        Parameters
        ----------
        keys : array-like or pyarrow array
            Keys.
        all_known : bool, default=True
            Whether unknown keys raise an error.

        Returns
        -------
        ndarray of int64, shape (n_keys,)
            -1 for unknown keys.

        Raises
        ------
        ValueError
            If a key is unknown. The message names the first one.
        """
        name = self.lookup.name
        column = as_table({name: keys}, minimum_rows=0).column(name)
        rows = self.lookup.rows(column)
        if all_known and (rows < 0).any():
            row = int(np.argmax(rows < 0))
            raise ValueError(
                f"{type(self).__name__}: {show_value(column[row])} in row {row} of {name!r} is not "
                f"a key of the index, which has {len(self)}"
            )
        return rows.astype(np.int64)

    # ------------------------------------------------------------------ searching

    def search(
        self,
        queries,
        k=10,
        *,
        where=None,
        candidates=None,
        excluded=None,
        min_score=None,
        diversity=0.0,
        threads=1,
    ):
        """Return the keys with the largest products of embeddings for each query.

        Parameters
        ----------
        queries : array-like of float, shape (n_queries, embedding_dim)
            Embeddings of the queries.
        k : int, default=10
            Number of keys for each query; all if there are fewer.
        where : pyarrow.compute.Expression, optional
            Condition on the columns, such as ``pc.field("price") < 20``. Rows for which it is
            missing are left out.
        candidates : array-like of int64, optional
            Rows that may be found; all of them by default.
        excluded : tuple of ndarray of int64, optional
            Indices of the queries and rows of excluded pairs, sorted by query.
        min_score : float or None, default=None
            Lowest product of results.
        diversity : float, default=0.0
            Weight of the likeness of results to those before them, from 0 to 1, see Notes.
        threads : int, default=1
            Number of threads.

        Returns
        -------
        keys : ndarray of shape (n_queries, k)
            The best first. None where fewer than k rows remain.
        scores : ndarray of float32, shape (n_queries, k)
            Products; ``-inf`` where there is no key.

        Raises
        ------
        ValueError
            If an argument is invalid, or `where` names a column that the index does not have.

        Notes
        -----
        With a `diversity`, k of ten times as many results are selected by maximal marginal
        relevance (Carbonell and Goldstein, 1998). The next result has the largest
        ``(1 - diversity) * relevance - diversity * likeness``: the relevance is the score, scaled
        to between 0 and 1, the likeness the largest cosine to a result before it.
        """
        owner = "search"
        check_number(owner, "k", k, low=1, integer=True)
        check_number(owner, "diversity", diversity, low=0, high=1)
        if min_score is not None:
            check_number(owner, "min_score", min_score)
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embedding_dim:
            raise ValueError(
                f"search: queries have the shape {queries.shape}; they must have "
                f"{self.embedding_dim} columns"
            )
        k = min(k, len(self))
        if k == 0:
            return no_results(len(queries))
        n_found = min(max(k, min(POOL * k, LARGEST_POOL)), len(self)) if diversity else k
        allowed = self._allowed(where, candidates)
        if self.approximate is not None and allowed is None:
            indices, _ = self.approximate.search(
                queries, n_found, excluded=excluded, threads=threads
            )
            # The library's products are rounded.
            indices, scores = rescored(queries, indices, self.vectors)
        else:
            indices, scores = top_k(
                queries,
                self.embeddings,
                n_found,
                scales=self.scales,
                allowed=allowed,
                excluded=excluded,
                threads=threads,
            )
        if min_score is not None:
            low = scores < min_score
            indices[low], scores[low] = -1, -np.inf
        if diversity:
            indices, scores = diversified(
                indices, scores, lambda rows: normalized(self.vectors(rows)), k, diversity
            )
        return self.take(indices), scores

    def take(self, rows):
        """Return the keys of rows.

        Parameters
        ----------
        rows : ndarray of int64
            Indices of rows, of any shape; negative ones have no key.

        Returns
        -------
        ndarray
            Keys, None for negative indices.
        """
        missing = rows < 0
        if missing.all():
            return np.full(rows.shape, None)
        present = pa.array(np.where(missing, 0, rows).ravel())
        keys = key_values(self._keys.take(present)).reshape(rows.shape)
        if missing.any():
            keys = as_objects(keys)
            keys[missing] = None
        return keys

    def nearest(self, vectors, k=10, *, excluded=None, threads=1):
        """Return the keys with the largest cosines to each vector.

        Parameters
        ----------
        vectors : array-like of float, shape (n_queries, embedding_dim)
            Vectors of any length.
        k : int, default=10
            Number of keys for each vector; all if there are fewer.
        excluded : tuple of ndarray of int64, optional
            Indices of the vectors and rows of excluded pairs, sorted by vector.
        threads : int, default=1
            Number of threads.

        Returns
        -------
        keys : ndarray of shape (n_queries, k)
            The nearest first. None where fewer than k rows remain.
        cosines : ndarray of float32, shape (n_queries, k)
            ``-inf`` where there is no key.
        """
        check_number("nearest", "k", k, low=1, integer=True)
        if not len(self):
            return no_results(len(vectors))
        rows, cosines = top_k(
            normalized(np.asarray(vectors, dtype=np.float32)),
            self.embeddings,
            min(k, len(self)),
            scales=self._inverse_lengths(),
            excluded=excluded,
            threads=threads,
        )
        return self.take(rows), cosines

    def _inverse_lengths(self):
        """Return what stored rows are multiplied by to have length 1, computed once."""
        if self._lengths is None:
            inverse = np.ones(len(self), dtype=np.float32)
            for start in range(0, len(self), LENGTHS):
                part = slice(start, start + LENGTHS)
                lengths = np.linalg.norm(self.embeddings[part].astype(np.float32), axis=1)
                inverse[part] = 1 / np.where(lengths > 0, lengths, 1)
            self._lengths = inverse
        return self._lengths

    def __getstate__(self):
        """Return the state to pickle, without what can be computed again."""
        return {name: value for name, value in super().__getstate__().items() if name != "_lengths"}

    def _allowed(self, where, candidates):
        """Return whether each row may be found, None if all may."""
        if where is None and candidates is None:
            return None
        allowed = np.ones(len(self), dtype=bool)
        if candidates is not None:
            allowed[:] = False
            allowed[np.asarray(candidates)] = True
        if where is not None:
            allowed &= self._matches(where)
        return allowed

    def _matches(self, where):
        from pyarrow.dataset import dataset

        columns = self.columns
        try:
            matches = dataset(columns).to_table(columns={"matches": where}).column("matches")
            if not pa.types.is_boolean(matches.type):
                raise TypeError(f"it is of type {type_name(matches.type)}")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, AttributeError) as error:
            raise ValueError(
                f"where must be a condition on the columns {columns.column_names}, such as "
                f"pc.field({columns.column_names[0]!r}) != 0, got {str(where)[:200]}: "
                f"{str(error)[:200]}"
            ) from error
        return pc.fill_null(matches, False).to_numpy()

    # ------------------------------------------------------------------ changing

    def add(self, keys, embeddings, columns=None):
        """Add rows, or replace those of keys that are present.

        Parameters
        ----------
        keys : array-like or pyarrow array of shape (n_rows,)
            Distinct keys. New ones are added at the end.
        embeddings : array-like of float, shape (n_rows, embedding_dim)
            Embedding of each key.
        columns : table-like, optional
            Columns of the rows. Those of the index that are not passed are missing.

        Returns
        -------
        self : object
            The index.
        """
        column = as_table({self.lookup.name: keys}).column(self.lookup.name)
        self._distinct(column, self.lookup.name)
        embeddings = self._checked(embeddings, len(column), self.embedding_dim)
        rows = self.lookup.rows(column)
        is_new = rows < 0
        values, scales = self._stored(embeddings)
        order = _order_of(rows, len(self))
        further = [self._like(column, self._keys, self.lookup.name)]
        self._check_spelling(column, further[0])
        given = self._flat(columns, len(column))
        for name, own in self._columns.items():
            further.append(self._like(given.get(name), own, name, len(column)))
        table = pa.concat_tables([self.columns, pa.table(further, names=self.columns.column_names)])
        table = table.unify_dictionaries().take(pa.array(order))
        state = {**self._columns_of(table), "_lengths": None}
        state["embeddings"] = _put(self.embeddings, rows, values)
        if scales is not None:
            state["scales"] = _put(self.scales, rows, scales)
        if is_new.any():
            state["lookup"] = self.lookup.joined(column.filter(pa.array(is_new)))
        if self.approximate is not None:
            self.approximate.replace(rows[~is_new], embeddings[~is_new])
            self.approximate.add(embeddings[is_new])
        vars(self).update(state)
        return self

    def _check_spelling(self, column, stored):
        """Raise ``ValueError`` if a key is another one in the type of the index."""
        spelled = [category_keys(keys).dictionary_decode() for keys in (column, stored)]
        differ = pc.not_equal(*spelled).to_numpy(zero_copy_only=False)
        if differ.any():
            row = int(np.argmax(differ))
            raise ValueError(
                f"{type(self).__name__}: key {show_value(column[row])} in row {row} of "
                f"{self.lookup.name!r} is not of the type of the index, "
                f"{type_name(self._keys.type)}"
            )

    def _like(self, column, own, name, n_rows=0):
        """Return a column in the type of that of the index, missing values for None."""
        if column is None:
            return pa.nulls(n_rows, own.type)
        if name == self.lookup.name and pa.types.is_string(own.type):
            # Other types have spellings of their own.
            return category_keys(column).dictionary_decode()
        try:
            return column.cast(own.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{type(self).__name__}: column {name!r} of type {type_name(column.type)} cannot "
                f"be converted to {type_name(own.type)}, the type of the index: {error}"
            ) from error

    def _columns_of(self, table):
        """Return the attributes that hold keys and columns."""
        keys, *columns = table.columns
        names = table.column_names[1:]
        return {"_keys": _contiguous(keys), "_columns": dict(zip(names, columns, strict=True))}

    def remove(self, keys):
        """Remove rows; later ones move up.

        Parameters
        ----------
        keys : array-like or pyarrow array
            Keys.

        Returns
        -------
        ndarray of int64
            Indices of the rows that were removed, sorted.

        Raises
        ------
        ValueError
            If a key is unknown.
        """
        removed = np.unique(self.rows(keys))
        kept = np.delete(np.arange(len(self)), removed)
        state = {
            **self._columns_of(self.columns.take(pa.array(kept))),
            "embeddings": self.embeddings[kept],
            "scales": None if self.scales is None else self.scales[kept],
            "lookup": self.lookup.taken(kept),
            "_lengths": None,
        }
        if self.approximate is not None:
            self.approximate.remove(removed)
        vars(self).update(state)
        return removed

    def as_type(self, dtype):
        """Return the index with embeddings of another type, without an approximate index.

        Parameters
        ----------
        dtype : {"float32", "float16", "int8"}
            Type in which embeddings are stored.

        Returns
        -------
        EmbeddingIndex
        """
        check_choice(type(self).__name__, "dtype", dtype, DTYPES)
        other = object.__new__(type(self))
        vars(other).update(vars(self), dtype=dtype, approximate=None, _lengths=None)
        if dtype != self.dtype:
            other.embeddings, other.scales = other._stored(self.vectors())
        return other

    def build_approximate(self, queries, library="faiss"):
        """Build an index by which searches without filters are approximate.

        Parameters
        ----------
        queries : array-like of float32, shape (n_queries, embedding_dim)
            Some hundred typical queries, see :class:`ApproximateIndex`.
        library : {"faiss", "usearch"}, default="faiss"
            Library that searches, see :class:`ApproximateIndex`.

        Returns
        -------
        self : object
            The index. An empty one stays exact.

        Warns
        -----
        UserWarning
            If even the longest search finds less than 97% of the best ten: searches stay exact.
        """
        if not len(self):
            return self
        approximate = ApproximateIndex(
            self.vectors(), np.asarray(queries, dtype=np.float32), library
        )
        if approximate.recall < MIN_RECALL:
            warn_user(
                f"{type(self).__name__}: {library} finds {approximate.recall:.0%} of the ten best "
                f"of {len(queries)} queries, less than {MIN_RECALL:.0%}; searches stay exact"
            )
            return self
        self.approximate = approximate
        return self

    # ------------------------------------------------------------------ files

    def to_arrow(self):
        """Return keys and embeddings as a table.

        Returns
        -------
        pyarrow.Table
            The column of keys, and ``embedding``, lists of float32 of a fixed size.

        Raises
        ------
        ValueError
            If the column of keys is named ``embedding``.
        """
        if self.lookup.name == "embedding":
            raise ValueError(
                "to_arrow: the column of keys is named 'embedding', as that of vectors"
            )
        vectors = pa.array(self.vectors().ravel())
        lists = pa.FixedSizeListArray.from_arrays(vectors, self.embedding_dim)
        return pa.table({self.lookup.name: self._keys, "embedding": lists})

    def save(self, path):
        """Write the index to a file, which :meth:`load` maps into memory.

        Parameters
        ----------
        path : str or path-like
            Path of the file. An existing file is replaced at once when the new one is complete.

        Returns
        -------
        pathlib.Path

        Notes
        -----
        The file is an Arrow IPC file with the columns of keys, embeddings and filters. It has the
        order of the keys too, by which a single one is found without a hash table of all of them.
        """
        path = Path(path)
        strings = self.lookup.strings
        arrays = {self.lookup.name: self._keys, **self._columns}
        flat = pa.array(np.ascontiguousarray(self.embeddings).ravel())
        arrays[EMBEDDING] = pa.FixedSizeListArray.from_arrays(flat, self.embedding_dim)
        if self.scales is not None:
            arrays[SCALE] = pa.array(self.scales)
        arrays[STRING], arrays[ORDER] = strings, pc.sort_indices(strings)
        description = {
            "format": FORMAT,
            "key": self.lookup.name,
            "types": self.lookup.types,
            "dtype": self.dtype,
            "columns": list(self._columns),
        }
        metadata = {METADATA: json.dumps(description).encode()}
        if self.approximate is not None:
            metadata[APPROXIMATE] = self.approximate.to_bytes()
        table = pa.table(arrays).combine_chunks().replace_schema_metadata(metadata)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
        try:
            with (
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_file(file, table.schema) as out,
            ):
                # Whole columns in one batch, so that they are contiguous in the file.
                out.write_table(table, max_chunksize=max(len(table), 1))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path, *, mmap=True):
        """Read an index that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            Path of the file.
        mmap : bool, default=True
            Whether the file is mapped into memory, where processes share it and rows are read when
            they are needed.

        Returns
        -------
        EmbeddingIndex

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file was not written by :meth:`save`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{cls.__name__}.load: there is no file {str(path)!r}")
        opened = pa.memory_map(str(path)) if mmap else pa.OSFile(str(path))
        try:
            table = pa.ipc.open_file(opened).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{cls.__name__}.load: {path} is no Arrow file: {error}") from error
        metadata = table.schema.metadata or {}
        if METADATA not in metadata:
            raise ValueError(f"{cls.__name__}.load: {path} was not written by {cls.__name__}.save")
        description = json.loads(metadata[METADATA])
        if description["format"] > FORMAT:
            raise ValueError(f"{cls.__name__}.load: {path} is of a newer version of the library")
        index = object.__new__(cls)
        index.dtype, key = description["dtype"], description["key"]
        lists = _contiguous(table.column(EMBEDDING))
        index.embeddings = lists.flatten().to_numpy(zero_copy_only=True)
        index.embeddings = index.embeddings.reshape(len(table), lists.type.list_size)
        index.scales = None
        if SCALE in table.column_names:
            index.scales = _contiguous(table.column(SCALE)).to_numpy(zero_copy_only=True)
        order = _contiguous(table.column(ORDER)).to_numpy(zero_copy_only=True)
        index.lookup = KeyIndex.of_strings(
            _contiguous(table.column(STRING)), order, key, description["types"], cls.__name__
        )
        index._keys = _contiguous(table.column(key))
        index._columns = {name: table.column(name) for name in description["columns"]}
        if EARLIER_GRAPH in metadata:
            warn_user(
                f"{cls.__name__}.load: the approximate index in {path} is of an earlier version; "
                "searches are exact until build_approximate makes a new one"
            )
        if APPROXIMATE in metadata:
            index.approximate = ApproximateIndex.from_bytes(metadata[APPROXIMATE])
        return index


def no_results(n_queries):
    """Return no keys and no scores for some queries."""
    return np.empty((n_queries, 0), dtype=object), np.empty((n_queries, 0), dtype=np.float32)


def _contiguous(column):
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _plain(column):
    """Return keys as one array, decimals as integers or strings."""
    column = _contiguous(column)
    if pa.types.is_decimal(column.type):
        return pa.array(key_values(pa.chunked_array([column])))
    return column


def _put(array, rows, values):
    """Return an array with some rows replaced, and those of row -1 appended, in one copy."""
    known = rows >= 0
    joined = np.concatenate([array, values[~known]])
    joined[rows[known]] = values[known]
    return joined


def _order_of(rows, n_rows):
    """Return the order in which present and further rows become the new ones.

    Parameters
    ----------
    rows : ndarray of int64
        The present row that each further row replaces, -1 for new ones.
    n_rows : int
        Number of present rows.

    Returns
    -------
    ndarray of int64
        Indices among the present rows, followed by the further ones.
    """
    order = np.arange(n_rows)
    further = n_rows + np.arange(len(rows))
    order[rows[rows >= 0]] = further[rows >= 0]
    return np.append(order, further[rows < 0])
