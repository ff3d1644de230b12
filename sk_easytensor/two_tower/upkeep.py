"""Upkeep of the stored users and items of a fitted two-tower model, and files for services."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.storage import write_atomically
from sk_easytensor._utils.validation import check_choice
from sk_easytensor.data.tables import as_table
from sk_easytensor.retrieval.embedding_index import DTYPES
from sk_easytensor.two_tower.pairs import KeyedRows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, Self

    from sk_easytensor._utils.typing import ArrayLike, PathLike, TableLike

__all__ = [
    "UpkeepMixin",
]


class UpkeepMixin:
    """Methods that change the stored users and items without training, and that write them."""

    @with_library_settings
    def add_items(self, items: TableLike) -> Self:
        """Add items to the catalogue, or replace those whose keys it has.

        Parameters
        ----------
        items : table-like
            Items, with the columns of the item tower and `item_key`, each key once. Further
            columns of the catalogue are missing where they are not passed.

        Returns
        -------
        self : object
            The estimator, whose network and blocks are unchanged.

        Raises
        ------
        ValueError
            If `fit` had no `item_key`, or if `items` lacks columns or has a key twice.

        Notes
        -----
        A new item has the embedding that the item tower computes of its columns. Where the tower
        reads nothing but the key, all new items have the embedding of an unseen category until the
        next fit.
        """
        check_is_fitted(self)
        self._check_catalogue()
        table = as_table(items)
        key = self._require_key(table, self._items.key, "add_items", "items")
        vectors = self.item_tower_.embed(table)
        self.item_index_.add(table.column(key), vectors, table)
        self._items = self._items.of_index(self.item_index_)
        return self

    def remove_items(self, keys: ArrayLike) -> Self:
        """Remove items from the catalogue.

        Parameters
        ----------
        keys : array-like
            Keys of items.

        Returns
        -------
        self : object
            The estimator.

        Raises
        ------
        ValueError
            If `fit` had no `item_key`, or if a key is unknown.
        """
        check_is_fitted(self)
        self._check_catalogue()
        removed = self.item_index_.remove(keys)
        self._items = self._items.of_index(self.item_index_)
        if self._seen is not None:
            self._seen = self._seen.without(removed, side=1)
        return self

    @with_library_settings
    def update_users(self, X: TableLike) -> Self:
        """Compute the embeddings of users anew after further interactions, and add new users.

        Parameters
        ----------
        X : table-like
            Interactions, or rows of users: the columns of the user tower and `user_key`. The last
            row of each user counts. If there is a column `item_key`, its items are seen by the
            user; those that are not in the catalogue are ignored.

        Returns
        -------
        self : object
            The estimator, whose network and blocks are unchanged.

        Raises
        ------
        ValueError
            If `fit` had no `user_key`, or if `X` lacks columns.
        """
        check_is_fitted(self)
        self._check_users("update_users")
        table = as_table(X, columns=self._columns_read())
        key = self._require_key(table, self._user_key, "update_users", "X")
        rows = KeyedRows.of(table, key, "last").table
        rows = rows.select(
            [key, *(name for name in self.user_tower_.read(rows).column_names if name != key)]
        )
        self.user_index_.add(rows.column(key), self.user_tower_.embed(rows), rows)
        if self._seen is not None and self._items.key in table.column_names:
            users = self.user_index_.lookup.rows(table.column(key))
            items = self._items.rows(table, all_known=False).numpy()
            pairs = np.column_stack([users, items])[items >= 0]
            self._seen = self._seen.joined(pairs)
        return self

    def remove_users(self, keys: ArrayLike) -> Self:
        """Remove stored users, and the items that they have seen.

        Parameters
        ----------
        keys : array-like
            Keys of users.

        Returns
        -------
        self : object
            The estimator. Its blocks may still have the keys as categories.

        Raises
        ------
        ValueError
            If `fit` had no `user_key`, or if a key is unknown.
        """
        check_is_fitted(self)
        self._check_users("remove_users")
        removed = self.user_index_.remove(keys)
        if self._seen is not None:
            self._seen = self._seen.without(removed, side=0)
        return self

    def export_embeddings(self, path: PathLike, side: Literal["user", "item"] = "item") -> Path:
        """Write the stored embeddings with their keys to a Parquet file.

        Parameters
        ----------
        path : str or path-like
            Path of the file. It is written completely or not at all.
        side : {"user", "item"}, default="item"
            Whose embeddings to write.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        ValueError
            If `fit` had no key of this side.

        Notes
        -----
        The file has the column of keys, and ``embedding``, lists of ``embedding_dim`` float32.
        """
        check_is_fitted(self)
        check_choice("export_embeddings", "side", side, ("user", "item"))
        self._check_side(side)
        index = self.user_index_ if side == "user" else self.item_index_
        with tempfile.TemporaryFile() as file:
            pq.write_table(index.to_arrow(), file)
            file.seek(0)
            return write_atomically(path, file.read(), "export_embeddings")

    def save_recommender(
        self,
        path: PathLike,
        *,
        dtype: Literal["float32", "float16", "int8"] = "float32",
        towers: Sequence[str] = ("user", "item"),
    ) -> str:
        """Write the stored users and items, and the towers as ONNX files, for a service.

        Parameters
        ----------
        path : str or path-like
            Directory, to which a new version is added. It is created if it does not exist.
        dtype : {"float32", "float16", "int8"}, default="float32"
            Type in which embeddings are stored; ``"int8"`` takes a quarter of the memory.
        towers : list of str, default=("user", "item")
            Towers to export, so that users or items that are not stored can be embedded. This
            requires the extra ``onnx``.

        Returns
        -------
        str
            Version that :meth:`~sk_easytensor.retrieval.Recommender.load` reads from now on.

        Raises
        ------
        ValueError
            If `fit` had neither key, or an argument is invalid.
        TypeError, RuntimeError
            If a block of a tower cannot be exported. The message names the block.

        Notes
        -----
        Embeddings, seen items and towers are one version: they are replaced together, when all
        files are complete. An approximate index is part of it with ``"float32"`` only.
        :class:`~sk_easytensor.retrieval.Recommender` needs neither torch nor scikit-learn. ``python
        -m sk_easytensor.serving path`` serves it.
        """
        check_is_fitted(self)
        check_choice("save_recommender", "dtype", dtype, DTYPES)
        for side in towers:
            check_choice("save_recommender", "towers", side, ("user", "item"))
        if not self._items.keyed and self._user_key is None:
            raise ValueError(
                "save_recommender: neither users nor items are stored; call fit with an item_key "
                "or a user_key"
            )
        recommender = self._recommender()
        for side in (recommender.users, recommender.items):
            if side.index is not None and dtype != "float32":
                side.index = side.index.as_type(dtype)
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            for side in towers:
                tower = self.user_tower_ if side == "user" else self.item_tower_
                files[side] = tower.to_onnx(Path(folder) / f"{side}.onnx").read_bytes()
        return recommender.save(path, files)

    def _check_side(self, side):
        if side == "user":
            self._check_users("side='user'")
        else:
            self._check_catalogue()

    def _check_users(self, usage):
        if self._user_key is None:
            raise ValueError(f"{usage} needs the user_key of fit, with which users are stored")

    def _require_key(self, table, key, method, name):
        """Return the name of a key column; raise ``ValueError`` if a table lacks it."""
        if key not in table.column_names:
            raise ValueError(f"{method}: {name} lacks the key {key!r}; it has {table.column_names}")
        return key
