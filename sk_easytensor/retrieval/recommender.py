"""Recommendations of items for users, and of users for items, from stored embeddings."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.columns import is_list, show_value
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.onnx.predictor import OnnxPredictor
from sk_easytensor.retrieval.embedding_index import EmbeddingIndex

__all__ = [
    "Recommender",
    "SeenPairs",
    "Side",
]


class SeenPairs:
    """The distinct pairs of users and items in the interactions.

    Parameters
    ----------
    pairs : ndarray of int64, shape (n_pairs, 2)
        Numbers of user and item of each pair, sorted.
    """

    def __init__(self, pairs):
        self.pairs = pairs

    def others(self, rows, side):
        """Return the pairs of some users, or of some items.

        Parameters
        ----------
        rows : ndarray of int64, shape (n_rows,)
            Numbers of users or items; -1 has no pairs.
        side : {0, 1}
            0 for users, 1 for items.

        Returns
        -------
        tuple of ndarray of int64
            Index into `rows`, sorted, and number on the other side, of each pair.
        """
        pairs = self.pairs
        if side == 1:
            # Sorting all pairs by item would take longer.
            pairs = pairs[np.isin(pairs[:, 1], rows)]
            pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        own, other = pairs[:, side], pairs[:, 1 - side]
        first = np.searchsorted(own, rows)
        last = np.where(rows < 0, first, np.searchsorted(own, rows, side="right"))
        lengths = last - first
        starts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
        return np.repeat(np.arange(len(rows)), lengths), other[places]

    def joined(self, pairs):
        """Return the pairs with further ones, which may be present already."""
        return SeenPairs(np.unique(np.concatenate([self.pairs, pairs]), axis=0))

    def without(self, removed, side):
        """Return the pairs after some users or items, of sorted numbers, have been removed."""
        own = self.pairs[:, side]
        kept = self.pairs[~np.isin(own, removed)].copy()
        kept[:, side] -= np.searchsorted(removed, kept[:, side])
        return SeenPairs(kept)


@dataclass
class Side:
    """The users or the items of a :class:`Recommender`.

    Attributes
    ----------
    name : {"user", "item"}
        Which of them they are.
    index : EmbeddingIndex or None, default=None
        Their keys and embeddings; None if they are not stored.
    tower : object or None, default=None
        Computes embeddings: it has ``feature_names_in_`` and a method ``embed``. None if there are
        stored embeddings only.
    key : str or None, default=None
        Column of keys.
    """

    name: str
    index: EmbeddingIndex | None = None
    tower: object = None
    key: str | None = None

    def has_key_only(self, table):
        """Return whether a table has the key, but not the columns of the tower."""
        if self.key not in table.column_names or self.tower is None:
            return self.tower is None
        needed = set(self.tower.feature_names_in_)
        present = needed & set(table.column_names)
        return present != needed and not present - {self.key}

    def vectors(self, table):
        """Return the embeddings of the rows of a table: stored ones if it has the key only."""
        if not self.has_key_only(table) or self.index is None:
            return self._embed(table)
        return self.index.vectors(self.stored_rows(table))

    def _embed(self, table):
        if self.tower is None:
            raise ValueError(f"there is no {self.name} tower, and no {self.name} is stored")
        return self.tower.embed(table)

    def stored_rows(self, table):
        """Return the rows in the index of the keys of a table, all of which must be there."""
        if self.key not in table.column_names:
            raise ValueError(
                f"there is no {self.name} tower, so that stored embeddings of {self.name}s are "
                f"found by the column {self.key!r}, which the table lacks; it has "
                f"{table.column_names}"
            )
        column = table.column(self.key)
        rows = self.index.lookup.rows(column)
        if (rows < 0).any():
            row = int(np.argmax(rows < 0))
            missing = f"column {self.key!r} holds {show_value(column[row])} in row {row}, which "
            if self.tower is None:
                raise ValueError(f"{missing}is not stored")
            needed = sorted(self.tower.feature_names_in_)
            raise ValueError(f"{missing}was not in fit; pass the columns {needed}")
        return rows

    def known_rows(self, table):
        """Return the rows in the index of the keys of a table, -1 for others and without keys."""
        if self.index is None or self.key not in table.column_names:
            return np.full(len(table), -1)
        return self.index.lookup.rows(table.column(self.key))

    def candidates(self, table):
        """Return the index of candidates, and their rows in it, None for all of them.

        Parameters
        ----------
        table : pyarrow.Table or None
            Candidates; None for those that are stored.

        Returns
        -------
        index : EmbeddingIndex
            Without a key, keys are the positions in the table.
        rows : ndarray of int64 or None
        """
        if table is None:
            return self.index, None
        if self.index is not None and self.has_key_only(table):
            return self.index, self.stored_rows(table)
        vectors = self._embed(table)
        if self.key is None or self.key not in table.column_names:
            # A name that no column has.
            key = "".join(["position", *(f" {name}" for name in table.column_names)])
            return EmbeddingIndex(np.arange(len(table)), vectors, table, key=key), None
        return EmbeddingIndex(table.column(self.key), vectors, table, key=self.key), None


class Recommender:
    """Recommendations from stored embeddings, without the estimator that computed them.

    :meth:`EasyTensorTwoTower.save_recommender` writes one, :meth:`load` reads it. It needs NumPy
    and pyarrow, and onnxruntime for users and items that are not stored.

    Parameters
    ----------
    items, users : Side
        Keys, embeddings and towers.
    seen : SeenPairs or None, default=None
        Items of each user in the interactions.
    n_jobs : int, default=1
        Number of threads.

    Attributes
    ----------
    version : str or None
        Version in the directory that was loaded.

    Examples
    --------
    >>> items = EmbeddingIndex(["Alien", "Heat"], [[1.0, 0.0], [0.0, 1.0]], key="film")
    >>> users = EmbeddingIndex(["ann", "bob"], [[0.2, 0.9], [0.8, 0.1]], key="user")
    >>> recommender = Recommender(Side("item", items, key="film"), Side("user", users, key="user"))
    >>> keys, scores = recommender.rank_users({"film": ["Alien"]}, k=1)
    >>> keys.tolist(), recommender.recommend({"user": ["ann"]}, k=1)[0].tolist()
    ([['bob']], [['Heat']])
    """

    version = None
    _path = None
    _mmap = True

    def __init__(self, items, users, seen=None, n_jobs=1):
        self.items = items
        self.users = users
        self.seen = seen
        self.n_jobs = n_jobs

    # ------------------------------------------------------------------ ranking

    def recommend(
        self,
        users,
        items=None,
        *,
        k=10,
        exclude=None,
        where=None,
        min_score=None,
        diversity=0.0,
    ):
        """Return the items with the highest scores for each user.

        Parameters
        ----------
        users : table-like
            Users, with the columns of the user tower, or with their key alone.
        items : table-like, optional
            Candidates, with the columns of the item tower, or with the keys of stored items alone;
            by default all stored items.
        k : int, default=10
            Number of items for each user; all candidates if there are fewer.
        exclude : "seen", list of lists or list column, optional
            Items that are not recommended. ``"seen"`` excludes the items of each user in the
            interactions. A list of keys for each user excludes these; unknown keys are ignored.
        where : pyarrow.compute.Expression, optional
            Condition on the columns of items, such as ``pc.field("price") < 20``.
        min_score : float or None, default=None
            Lowest score of recommended items.
        diversity : float, default=0.0
            From 0 to 1: weight of the likeness of an item to those that are recommended before it,
            see :meth:`EmbeddingIndex.search`.

        Returns
        -------
        keys : ndarray of shape (n_users, k)
            Keys of items, the best first; positions among `items` if they have no key. None
            where fewer than k items remain for a user.
        scores : ndarray of float32, shape (n_users, k)
            Products of embeddings; ``-inf`` where there is no item.
        """
        options = {"k": k, "exclude": exclude, "where": where}
        options |= {"min_score": min_score, "diversity": diversity}
        return self._rank("recommend", self.users, users, self.items, items, **options)

    def rank_users(
        self,
        items,
        users=None,
        *,
        k=10,
        exclude=None,
        where=None,
        min_score=None,
        diversity=0.0,
    ):
        """Return the users with the highest scores for each item.

        Parameters
        ----------
        items : table-like
            Items, with the columns of the item tower, or with their key alone. They may be new.
        users : table-like, optional
            Candidates, with the columns of the user tower, or with the keys of stored users alone;
            by default all stored users.
        k : int, default=10
            Number of users for each item; all candidates if there are fewer.
        exclude : "seen", list of lists or list column, optional
            Users that are not returned. ``"seen"`` excludes the users of each item in the
            interactions. A list of keys for each item excludes these; unknown keys are ignored.
        where : pyarrow.compute.Expression, optional
            Condition on the columns of users.
        min_score, diversity
            As in :meth:`recommend`.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of users, the best first; positions among `users` if they have no key. None
            where fewer than k users remain for an item.
        scores : ndarray of float32, shape (n_items, k)
            Products of embeddings; ``-inf`` where there is no user.
        """
        options = {"k": k, "exclude": exclude, "where": where}
        options |= {"min_score": min_score, "diversity": diversity}
        return self._rank("rank_users", self.items, items, self.users, users, **options)

    def _rank(self, method, own, table, other, candidates, *, k, exclude, **options):
        """Return the best candidates of one side for the rows of the other."""
        check_number(method, "k", k, low=1, integer=True)
        table = as_table(table)
        candidates = None if candidates is None else as_table(candidates)
        self._check_stored(method, other, candidates)
        queries = own.vectors(table)
        index, rows = other.candidates(candidates)
        excluded = None
        if isinstance(exclude, str):
            self._check_seen(method, own, other, table, exclude, is_stored=index is other.index)
            excluded = self.seen.others(own.known_rows(table), int(own.name == "item"))
        elif exclude is not None:
            if candidates is not None and other.key not in candidates.column_names:
                raise ValueError(
                    f"{method}: exclude has keys of {other.name}s, but {other.name}s have no key "
                    "column"
                )
            excluded = listed_pairs(exclude, index.lookup, len(table), own.name)
        if rows is not None:
            k = min(k, len(np.unique(rows)))
        return index.search(
            queries, k, candidates=rows, excluded=excluded, threads=self.n_jobs, **options
        )

    def check(self, users, items, exclude):
        """Raise ``ValueError`` if :meth:`recommend` cannot rank items for such users.

        Parameters
        ----------
        users : pyarrow.Table
            Table with the columns of the users.
        items : table-like or None
            Candidates.
        exclude : str or None
            Items that are not recommended.
        """
        self._check_stored("recommend", self.items, items)
        if exclude is not None:
            is_stored = items is None
            sides = self.users, self.items
            self._check_seen("recommend", *sides, users, exclude, is_stored=is_stored)
        if not self.users.has_key_only(users):
            self.users.tower.read(users)

    def _check_stored(self, method, side, candidates):
        if side.index is None and candidates is None:
            if side.name == "item":
                raise ValueError(
                    "there is no catalogue: pass items, or call fit with an item_key to create one"
                )
            raise ValueError(
                f"{method} needs the user_key of fit, with which users are stored, or users"
            )

    def _check_seen(self, method, own, other, table, exclude, *, is_stored):
        """Raise ``ValueError`` unless `exclude` is ``"seen"`` and seen pairs are known."""
        if exclude != "seen" or not is_stored:
            raise ValueError(
                f"{method}: exclude must be 'seen', which requires the "
                f"{'catalogue as items' if other.name == 'item' else 'users of fit'}, or a list of "
                f"keys for each {own.name}, got {exclude!r}"
            )
        if self.seen is None:
            raise ValueError(
                "exclude='seen' needs the user_key of fit, with which users are stored"
            )
        if own.key not in table.column_names:
            raise ValueError(f"exclude='seen' needs the column {own.key!r} of {own.name}s")

    def similar_items(self, items, *, k=10):
        """Return the stored items that are most similar to each item.

        Parameters
        ----------
        items : table-like
            Items, with the columns of the item tower, or with their key alone.
        k : int, default=10
            Number of items to return for each item.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of items, the most similar first. An item is not among its own. None where fewer
            than k remain.
        similarities : ndarray of float32, shape (n_items, k)
            Cosines of embeddings; ``-inf`` where there is no item.
        """
        return self._most_similar("similar_items", self.items, items, k)

    def similar_users(self, users, *, k=10):
        """Return the stored users that are most similar to each user.

        Parameters
        ----------
        users : table-like
            Users, with the columns of the user tower, or with their key alone.
        k : int, default=10
            Number of users to return for each user.

        Returns
        -------
        keys : ndarray of shape (n_users, k)
            Keys of users, the most similar first. A user is not among the own ones. None where
            fewer than k remain.
        similarities : ndarray of float32, shape (n_users, k)
            Cosines of embeddings; ``-inf`` where there is no user.
        """
        return self._most_similar("similar_users", self.users, users, k)

    def _most_similar(self, method, side, table, k):
        """Return keys and cosines of the nearest stored rows, without the own ones."""
        check_number(method, "k", k, low=1, integer=True)
        self._check_stored(method, side, None)
        table = as_table(table)
        vectors, own = side.vectors(table), side.known_rows(table)
        queries = np.flatnonzero(own >= 0)
        excluded = queries, own[queries]
        return side.index.nearest(vectors, k, excluded=excluded, threads=self.n_jobs)

    # ------------------------------------------------------------------ files

    def save(self, path, towers=()):
        """Write a new version into a directory, and make it the current one.

        Parameters
        ----------
        path : str or path-like
            Directory; it is created if it does not exist.
        towers : dict of {str: bytes}
            ONNX files of the towers by side, ``"user"`` and ``"item"``.

        Returns
        -------
        str
            The version.

        Notes
        -----
        The files of a version are in a directory of their own. The file ``CURRENT`` names the
        version to load; it is replaced when all other files are complete. The version before it
        is retained, because a process may be about to load it; older ones are removed. Meanwhile a
        lock file refuses other processes that save to the directory.
        """
        # Needed here only: services load what others have saved.
        from sk_easytensor._utils.storage import DirectoryStore, Lock, write_atomically

        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(DirectoryStore(path), "save_recommender", "another process writes")
        lock.acquire()
        try:
            for folder in path.glob("*.tmp"):
                # Of a process that was killed, because nobody else holds the lock.
                shutil.rmtree(folder, ignore_errors=True)
            version = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid4().hex[:8]}"
            temporary = path / f"{version}.tmp"
            try:
                self._write(temporary, version, towers)
                os.rename(temporary, path / version)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            before = current_version(path)
            write_atomically(path / CURRENT, version, "save_recommender")
            remove_versions(path, {version, before})
        finally:
            lock.release()
        return version

    def _write(self, folder, version, towers):
        """Write the files of a version."""
        folder.mkdir()
        description = {"format": FORMAT, "version": version, "sides": {}}
        for side in (self.users, self.items):
            description["sides"][side.name] = {"key": side.key, "is_stored": False}
            if side.index is not None:
                side.index.save(folder / f"{side.name}s.arrow")
                description["sides"][side.name]["is_stored"] = True
        for name, data in dict(towers).items():
            (folder / f"{name}_tower.onnx").write_bytes(data)
        if self.seen is not None:
            np.save(folder / "seen.npy", self.seen.pairs)
        (folder / "recommender.json").write_text(json.dumps(description), encoding="utf-8")

    @classmethod
    def load(cls, path, *, n_jobs=None, mmap=True):
        """Read the current version of a directory that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
            Directory.
        n_jobs : int or None, default=None
            Number of threads; None for one, -1 for all cores.
        mmap : bool, default=True
            Whether embeddings are mapped into memory, where processes share them.

        Returns
        -------
        Recommender

        Raises
        ------
        FileNotFoundError
            If there is no current version.
        ValueError
            If it was written by a newer version of the library.
        ImportError
            If there are towers, and onnxruntime is not installed.
        """
        path = Path(path)
        version = current_version(path)
        if version is None:
            raise FileNotFoundError(
                f"{cls.__name__}.load: {str(path)!r} has no file {CURRENT!r}; "
                "EasyTensorTwoTower.save_recommender writes such a directory"
            )
        folder = path / version
        description = json.loads((folder / "recommender.json").read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise ValueError(f"{cls.__name__}.load: {path} is of a newer version of the library")
        sides = {}
        for name, side in description["sides"].items():
            index, tower = None, folder / f"{name}_tower.onnx"
            if side["is_stored"]:
                index = EmbeddingIndex.load(folder / f"{name}s.arrow", mmap=mmap)
            tower = OnnxTower(tower, n_jobs) if tower.is_file() else None
            sides[name] = Side(name, index, tower, side["key"])
        seen, pairs = None, folder / "seen.npy"
        if pairs.is_file():
            seen = SeenPairs(np.load(pairs, mmap_mode="r" if mmap else None))
        threads = os.cpu_count() if n_jobs == -1 else n_jobs or 1
        recommender = cls(sides["item"], sides["user"], seen, threads)
        recommender.version, recommender._path, recommender._mmap = version, path, mmap
        return recommender

    def refreshed(self):
        """Return the current version of the directory, or this object if it is that version.

        Returns
        -------
        Recommender
            This object does not change, so that requests that use it are not disturbed.
        """
        if self._path is None or current_version(self._path) in (None, self.version):
            return self
        return type(self).load(self._path, n_jobs=self.n_jobs, mmap=self._mmap)


FORMAT = 1
"""Version of the directories. It is increased when older versions cannot read new ones."""

CURRENT = "CURRENT"
"""Name of the file that has the current version."""


def current_version(path):
    """Return the current version of a directory, None without one."""
    try:
        return (path / CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def remove_versions(path, retained):
    """Remove the versions of a directory that are not retained."""
    for description in path.glob("*/recommender.json"):
        if description.parent.name not in retained:
            shutil.rmtree(description.parent, ignore_errors=True)


class OnnxTower:
    """A tower in an ONNX file, with the methods of a fitted tower that a :class:`Side` calls.

    Parameters
    ----------
    path : path-like
        Path of the file.
    n_jobs : int or None
        Number of threads.
    """

    def __init__(self, path, n_jobs):
        self.predictor = OnnxPredictor(path, n_jobs=n_jobs)
        self.feature_names_in_ = self.predictor.feature_names_in_

    def embed(self, table):
        """Return the embeddings of the rows of a table."""
        return self.predictor.transform(table)


def listed_pairs(lists, lookup, n_rows, noun):
    """Return the pairs of rows and of the keys in the lists of each, as two sorted arrays.

    Parameters
    ----------
    lists : list of lists or list column
        Keys for each row. Unknown ones are left out.
    lookup : KeyIndex
        Lookup of the keys.
    n_rows : int
        Number of rows that there must be.
    noun : str
        What a row is, for errors.

    Returns
    -------
    tuple of ndarray of int64
        Index of the row, and row of the key, of each pair.
    """
    if not isinstance(lists, (pa.Array, pa.ChunkedArray)):
        lists = as_table({"exclude": lists}).column("exclude")
    if not (is_list(lists.type) or pa.types.is_null(lists.type)):
        raise ValueError(
            f"exclude must hold a list of keys for each {noun}, got values of "
            f"{type_name(lists.type)}"
        )
    if len(lists) != n_rows:
        raise ValueError(f"exclude has {len(lists)} lists for {n_rows} {noun}s")
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(n_rows), lengths)
    keys = pc.list_flatten(lists)
    keys = keys if isinstance(keys, pa.ChunkedArray) else pa.chunked_array([keys])
    found = lookup.rows(keys)
    return rows[found >= 0], found[found >= 0].astype(np.int64)
