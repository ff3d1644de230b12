"""Recommendations and scores of pairs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import normalize
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import limited_threads, resolve_threads, with_library_settings
from sk_easytensor._utils.validation import check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.columns import is_list, show_value
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.estimators.stored import Ranking, Values, of_stored_rows
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.inspection.importance import pair_model
from sk_easytensor.retrieval import ApproximateIndex, as_tensor, top_k
from sk_easytensor.training.pairs import distinct_rows
from sk_easytensor.two_tower.pairs import KeyIndex, key_values, rows_of_keys, summarize_interactions

if TYPE_CHECKING:
    from typing import Any, Literal

    from sk_easytensor._utils.typing import ArrayLike, Predictions, TableLike, TargetLike

__all__ = [
    "PairScoringMixin",
    "RecommendingMixin",
]


class PairScoringMixin:
    """Methods that score and predict pairs by the product of their embeddings."""

    @with_library_settings
    @of_stored_rows(Values("decision"), check="_check_pair_columns")
    def decision_function(self, X: TableLike) -> Predictions:
        """Return a score of each pair of user and item.

        Parameters
        ----------
        X : table-like
            Pairs: the user's columns, and the item's columns or its key. Items that were not in
            `fit` need the item tower's columns.

        Returns
        -------
        ndarray of float64, shape (n_pairs,)
            Products of embeddings, divided by the temperature; with two classes the log-odds of the
            second.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `X` lacks columns, or has the key of an unknown item and not its columns.
        """
        check_is_fitted(self)
        if isinstance(X, GivenOutputs):
            return X.values[:, 0].numpy()
        table = as_table(X, columns=self._columns_read())
        backend = resolve_backend("local", self.n_jobs)
        users, user_rows = distinct_rows(self.user_tower_.encode(table, backend))
        users = self.user_tower_.embed_frame(users, backend)
        items, rows = self._item_vectors(table, backend)
        return self._scores(users[user_rows], items[rows]).numpy()

    def _columns_read(self):
        """Return the names of the columns of users and items, and of their keys."""
        towers = (*self.user_tower_.feature_names_in_, *self.item_tower_.feature_names_in_)
        keys = (self._user_key, self._items.key)
        return list(dict.fromkeys([*towers, *(key for key in keys if key is not None)]))

    def _check_pair_columns(self, table):
        """Raise ``ValueError`` if a table lacks columns of users or items."""
        self.user_tower_.read(table)
        if not (self._items.keyed and self._items.key in table.column_names):
            self.item_tower_.read(table)

    def _scores(self, users, items):
        products = torch.einsum("nd,nd->n", users.double(), items.double())
        return products / self._temperature + self._bias

    def _check_encodable(self, table):
        """Raise ``ValueError`` unless a table of pairs can be evaluated with shuffled columns."""
        owner = type(self).__name__
        if self._target.is_implicit:
            raise ValueError(
                f"{owner} was fitted without y, so that pairs have no target to evaluate with; "
                "compare sk_easytensor.ranking.ranking_report with and without a column"
            )
        missing = set(self.item_tower_.feature_names_in_) - set(table.column_names)
        if missing:
            raise ValueError(
                f"{owner}: X lacks {sorted(missing)} of the item tower; join the catalogue to X, "
                "so that its columns can be shuffled"
            )
        self.user_tower_.read(table)

    def _encoded_model(self, X, backend, rows):
        """Return both towers with the given rows of a table of pairs, encoded, for inspection."""
        table = as_table(X)
        self._check_encodable(table)
        towers = {"user": self.user_tower_, "item": self.item_tower_}
        return pair_model(towers, table.take(rows), self._scores, backend)

    def _item_vectors(self, table, backend):
        """Return embeddings of items, and for each pair the index of its item among these."""
        if self._items.keyed and self._items.key in table.column_names:
            has_columns = set(self.item_tower_.feature_names_in_) <= set(table.column_names)
            rows = self._items.rows(table, all_known=not has_columns)
            if (rows >= 0).all():
                return as_tensor(self.item_embeddings_), rows
        items, rows = distinct_rows(self.item_tower_.encode(table, backend))
        return self.item_tower_.embed_frame(items, backend), rows

    def _check_classes(self):
        check_is_fitted(self)
        if self._target.classes_ is None:
            raise AttributeError(
                "predict_proba needs a y of two classes in fit; use decision_function"
            )
        return True

    @available_if(_check_classes)
    @with_library_settings
    @of_stored_rows(Values("probability"), check="_check_pair_columns")
    def predict_proba(self, X: TableLike) -> Predictions:
        """Return the probability of each class.

        Parameters
        ----------
        X : table-like
            Pairs, as in :meth:`decision_function`.

        Returns
        -------
        ndarray of float64, shape (n_pairs, 2)
            Probabilities, in the order of ``classes_``.

        Raises
        ------
        AttributeError
            If `y` in `fit` did not have two classes.
        """
        positive = 1 / (1 + np.exp(-self.decision_function(X)))
        return np.column_stack([1 - positive, positive])

    @with_library_settings
    @of_stored_rows(Values("prediction"), check="_check_pair_columns")
    def predict(self, X: TableLike) -> Predictions:
        """Return the predicted class or number of each pair.

        Parameters
        ----------
        X : table-like
            Pairs, as in :meth:`decision_function`.

        Returns
        -------
        ndarray of shape (n_pairs,)
            Classes, or numbers in units of `y`. Without `y` in `fit`, the scores of
            :meth:`decision_function`.
        """
        scores = self.decision_function(X)
        return self._target.predict(torch.from_numpy(scores)[:, None])

    @with_library_settings
    def score(self, X: TableLike, y: TargetLike | None = None) -> float:
        """Return a measure of the quality of predictions.

        Parameters
        ----------
        X : table-like
            Pairs, as in :meth:`decision_function`.
        y : array-like of shape (n_pairs,), optional
            Targets, of the same kind as in `fit`.

        Returns
        -------
        float
            The area under the ROC curve for two classes, R² for numbers. Without `y` in `fit`, the
            fraction of pairs whose item is among the ten of the catalogue that have the highest
            scores for the user. If `fit` had a `user_key`, other items that the user has in `fit`
            are left out. A pair whose item was not in `fit` counts as missed; if `fit` had a
            catalogue, it raises an error.

        Raises
        ------
        ValueError
            If `y` is invalid, or without `y` in `fit` if there is no `item_key`.
        """
        check_is_fitted(self)
        if self._target.is_implicit:
            return self._hit_rate(X)
        y = self._target.check(y)
        if self._target.classes_ is None:
            return float(r2_score(y, self.predict(X)))
        return float(roc_auc_score(y == self.classes_[1], self.decision_function(X)))


SCORED_ROWS = 16_384
"""Number of pairs whose items are ranked at a time by ``score``."""

QUERIES, ROWS_OF_QUERIES = 256, 16_384
"""Number of users with whose rankings an approximate index is tuned, and of rows they are from."""


class RecommendingMixin:
    """Methods that rank the catalogue for users, and users for items."""

    def _check_query(self, users, items=None, k=10, exclude=None):
        """Raise ``ValueError`` if stored users lack columns, or if an argument is invalid."""
        check_number("recommend", "k", k, low=1, integer=True)
        if exclude is not None and not isinstance(exclude, str):
            raise ValueError(
                "recommend: for stored users, exclude must be 'seen' or None, got "
                f"{type(exclude).__name__}"
            )
        if items is None:
            self._check_catalogue()
        if exclude is not None:
            self._check_exclude(exclude, users, catalogue=items is None)
        if not self._have_key_only(users):
            self.user_tower_.read(users)

    @with_library_settings
    @of_stored_rows(Ranking("items", "scores"), check="_check_query")
    def recommend(
        self,
        users: TableLike,
        items: TableLike | None = None,
        *,
        k: int = 10,
        exclude: Literal["seen"] | ArrayLike | None = None,
    ) -> tuple[np.ndarray, np.ndarray] | Any:
        """Return the items with the highest scores for each user.

        Parameters
        ----------
        users : table-like
            Users, with the columns of the user tower, or with the column `user_key` of `fit` alone.
            In the latter case the embeddings of `fit` are used.
        items : table-like, optional
            Candidates, with the columns of the item tower; by default the catalogue.
        k : int, default=10
            Number of items for each user; all candidates if there are fewer.
        exclude : "seen", list of lists or list column, optional
            Items that are not recommended. ``"seen"`` excludes the items of each user in `fit`,
            which requires `user_key`. A list of keys for each user excludes these; keys of unknown
            items are ignored.

        Returns
        -------
        keys : ndarray of shape (n_users, k)
            Keys of items, the best first; positions among `items` if they have no key. None
            where fewer than k items remain for a user.
        scores : ndarray of float32, shape (n_users, k)
            Products of embeddings; ``-inf`` where there is no item.

        Raises
        ------
        ValueError
            If `k` or `exclude` is invalid, if tables lack columns, or if there is neither a
            catalogue nor `items`.
        """
        check_is_fitted(self)
        check_number("recommend", "k", k, low=1, integer=True)
        users = as_table(users, columns=self._columns_read())
        queries = self._user_vectors(users)
        if items is None:
            self._check_catalogue()
            candidates, keys = self.item_embeddings_, self.item_keys_
            lookup = self._items.lookup
        else:
            candidates, keys, lookup = self._candidates(
                as_table(items, columns=self._columns_read())
            )
        excluded = self._excluded(exclude, users, lookup, catalogue=items is None)
        k = min(k, len(candidates))
        if items is None and self._index is not None:
            threads = resolve_threads(self.n_jobs)
            indices, scores = self._index.search(queries, k, excluded=excluded, threads=threads)
        else:
            indices, scores = self._top_k(queries, candidates, k, excluded)
        return _take_keys(keys, indices), scores

    @with_library_settings
    def rank_users(
        self, item: TableLike, *, k: int = 10, users: TableLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the users with the highest scores for each item.

        Parameters
        ----------
        item : table-like
            One item or several, with the columns of the item tower. They may be new.
        k : int, default=10
            Number of users for each item; all candidates if there are fewer.
        users : table-like, optional
            Candidates, with the columns of the user tower; by default the users of `fit`, which
            requires `user_key`.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of users, the best first; positions among `users` if they have no key.
        scores : ndarray of float32, shape (n_items, k)
            Products of embeddings.

        Raises
        ------
        ValueError
            If `k` is invalid, if tables lack columns, or if `fit` had no `user_key` and `users` is
            None.
        """
        check_is_fitted(self)
        check_number("rank_users", "k", k, low=1, integer=True)
        if users is None:
            self._check_users("rank_users without users")
            candidates, keys = self.user_embeddings_, self.user_keys_
        else:
            users = as_table(users, columns=self._columns_read())
            candidates, keys = self.user_tower_.embed(users), np.arange(len(users))
            if self._user_key in users.column_names:
                keys = key_values(users.column(self._user_key))
        queries = self.item_tower_.embed(as_table(item, columns=self._columns_read()))
        indices, scores = self._top_k(queries, candidates, min(k, len(candidates)))
        return keys[indices], scores

    @with_library_settings
    def similar_items(self, items: TableLike, *, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of the catalogue that are most similar to each item.

        Parameters
        ----------
        items : table-like
            Items, with the columns of the item tower, or with the column `item_key` of `fit` alone.
            In the latter case the embeddings of `fit` are used.
        k : int, default=10
            Number of items to return for each item.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of items, the most similar first. An item is not among its own.
        similarities : ndarray of float32, shape (n_items, k)
            Cosines of embeddings. Shorter if the catalogue has fewer items.

        Raises
        ------
        ValueError
            If `k` is invalid, `fit` had no `item_key`, or columns or items are unknown.
        """
        check_is_fitted(self)
        check_number("similar_items", "k", k, low=1, integer=True)
        self._check_catalogue()
        table = as_table(items, columns=self._columns_read())
        vectors = self._catalogue_vectors(table)
        own = _known_rows(self._items.lookup, table)
        return self._most_similar(vectors, own, self.item_embeddings_, self.item_keys_, k)

    @with_library_settings
    def similar_users(self, users: TableLike, *, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the users of `fit` that are most similar to each user.

        Parameters
        ----------
        users : table-like
            Users, with the columns of the user tower, or with the column `user_key` of `fit` alone.
            In the latter case the embeddings of `fit` are used.
        k : int, default=10
            Number of users to return for each user.

        Returns
        -------
        keys : ndarray of shape (n_users, k)
            Keys of users, the most similar first. A user is not among the own ones.
        similarities : ndarray of float32, shape (n_users, k)
            Cosines of embeddings. Shorter if there were fewer users.

        Raises
        ------
        ValueError
            If `k` is invalid, `fit` had no `user_key`, or columns or users are unknown.
        """
        check_is_fitted(self)
        check_number("similar_users", "k", k, low=1, integer=True)
        self._check_users("similar_users")
        table = as_table(users, columns=self._columns_read())
        vectors, own = self._user_vectors(table), _known_rows(self._users, table)
        return self._most_similar(vectors, own, self.user_embeddings_, self.user_keys_, k)

    def _most_similar(self, vectors, own, candidates, keys, k):
        """Return keys and cosines of the candidates nearest to vectors, without their own rows."""
        k = min(k, len(candidates) - bool((own >= 0).any()))
        queries = np.flatnonzero(own >= 0)
        excluded = queries, own[queries]
        vectors, candidates = (normalize(part) for part in (vectors, candidates))
        indices, cosines = self._top_k(vectors, candidates, k, excluded)
        return _take_keys(keys, indices), cosines

    # ------------------------------------------------------------------ stored at the end of fit

    def _read_users(self, dataset, executor):
        """Return the last row of each user, an index of users, and the pairs that were seen."""
        if self._user_key is None:
            return None
        columns = self.user_tower_.feature_names_in_
        rows = rows_of_keys(dataset, self._user_key, columns, executor, keep="last")
        users = KeyIndex(rows.column(self._user_key), self._user_key)
        users.forget_rows()
        if not self._items.keyed:
            return rows, users, None
        keys = list(dict.fromkeys([self._user_key, self._items.key]))
        summarize = partial(summarize_interactions, self._user_key, self._items)
        seen = dataset.select(keys).map_reduce(summarize, executor)
        return rows, users, seen.numbered(users)

    def _store_users(self, rows, users, seen, backend):
        """Embed the last row of each user, and store the results of :meth:`_read_users`."""
        frame = self.user_tower_.encode(rows, backend)
        self.user_embeddings_ = self.user_tower_.embed_frame(frame, backend).numpy()
        self.user_keys_ = key_values(rows.column(self._user_key))
        self._users, self._seen = users, seen

    def _store_items(self, frame, users, backend):
        """Embed the encoded catalogue, if there is one, and build the index.

        Parameters
        ----------
        frame : TensorFrame
            Encoded items.
        users : pyarrow.Table
            Rows of users, with whose rankings an approximate index is tuned.
        backend : Backend
            Executor of forward passes.
        """
        self._index = None
        if not self._items.keyed:
            return
        self.item_embeddings_ = self.item_tower_.embed_frame(frame, backend).numpy()
        self.item_keys_ = self._items.keys
        if self.index != "exact":
            users = users.take(pa.array(spread_indices(len(users), ROWS_OF_QUERIES)))
            distinct, _ = distinct_rows(self.user_tower_.encode(users, backend))
            distinct = distinct.take(torch.from_numpy(spread_indices(len(distinct), QUERIES)))
            queries = self.user_tower_.embed_frame(distinct, backend).numpy()
            self._index = ApproximateIndex(self.item_embeddings_, queries)

    # ------------------------------------------------------------------ reading

    def _top_k(self, queries, candidates, k, excluded=None):
        with limited_threads(self.n_jobs):
            return top_k(queries, candidates, k, excluded=excluded)

    def _user_vectors(self, users):
        if not self._have_key_only(users):
            return self.user_tower_.embed(users)
        return self._stored_vectors(users, self.user_tower_, self._users, self.user_embeddings_)

    def _catalogue_vectors(self, items):
        if not _has_key_only(items, self.item_tower_, self._items.key):
            return self.item_tower_.embed(items)
        lookup = self._items.lookup
        return self._stored_vectors(items, self.item_tower_, lookup, self.item_embeddings_)

    def _stored_vectors(self, table, tower, lookup, embeddings):
        """Return the embeddings of `fit` for the keys of a table."""
        column = table.column(lookup.name)
        rows = lookup.rows(column)
        if (rows < 0).any():
            row = int(np.argmax(rows < 0))
            needed = sorted(tower.feature_names_in_)
            raise ValueError(
                f"column {lookup.name!r} holds {show_value(column[row])} in row {row}, which was "
                f"not in fit; pass the columns {needed}"
            )
        return embeddings[rows]

    def _have_key_only(self, users):
        """Return whether a table has the key of users, but not the columns of the user tower."""
        return _has_key_only(users, self.user_tower_, self._user_key)

    def _candidates(self, items):
        vectors = self.item_tower_.embed(items)
        key = self._items.key
        if key is None or key not in items.column_names:
            return vectors, np.arange(len(items)), None
        lookup = KeyIndex(items.column(key), key)
        lookup.check_distinct(items.column(key))
        return vectors, key_values(items.column(key)), lookup

    def _excluded(self, exclude, users, lookup, *, catalogue):
        """Return the pairs of user and item that are excluded, as two arrays sorted by user."""
        if exclude is None:
            return None
        if isinstance(exclude, str):
            self._check_exclude(exclude, users, catalogue=catalogue)
            return self._seen_pairs(users)
        if lookup is None:
            raise ValueError("recommend: exclude has keys of items, but items have no key column")
        lists = exclude
        if not isinstance(lists, (pa.Array, pa.ChunkedArray)):
            lists = as_table({"exclude": exclude}).column("exclude")
        if not (is_list(lists.type) or pa.types.is_null(lists.type)):
            raise ValueError(
                "exclude must hold a list of keys for each user, got values of "
                f"{type_name(lists.type)}"
            )
        if len(lists) != len(users):
            raise ValueError(f"exclude has {len(lists)} lists for {len(users)} users")
        if pa.types.is_null(lists.type):
            lists = lists.cast(pa.list_(pa.null()))
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
        user_rows = np.repeat(np.arange(len(users)), lengths)
        items = pc.list_flatten(lists)
        items = items if isinstance(items, pa.ChunkedArray) else pa.chunked_array([items])
        rows = lookup.rows(items)
        return user_rows[rows >= 0], rows[rows >= 0].astype(np.int64)

    def _check_exclude(self, exclude, users, *, catalogue):
        """Raise ``ValueError`` unless `exclude` is ``"seen"`` and seen items are known."""
        if exclude != "seen" or not catalogue:
            raise ValueError(
                "recommend: exclude must be 'seen', which requires the catalogue as items, or "
                f"a list of keys for each user, got {exclude!r}"
            )
        self._check_users("exclude='seen'")
        if self._user_key not in users.column_names:
            raise ValueError(f"exclude='seen' needs the column {self._user_key!r} of users")

    def _seen_pairs(self, users):
        rows = self._users.rows(users.column(self._user_key))
        first = np.searchsorted(self._seen[:, 0], rows)
        last = np.where(rows < 0, first, np.searchsorted(self._seen[:, 0], rows, side="right"))
        lengths = last - first
        user_rows = np.repeat(np.arange(len(rows)), lengths)
        starts = np.cumsum(lengths) - lengths
        pairs = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
        return user_rows, self._seen[pairs, 1]

    def _check_catalogue(self):
        if not self._items.keyed:
            raise ValueError(
                "there is no catalogue: pass items, or call fit with an item_key to create one"
            )

    def _check_users(self, usage):
        if self._user_key is None:
            raise ValueError(f"{usage} needs the user_key of fit, with which users are stored")

    def _hit_rate(self, X, k=10):
        """Return the fraction of pairs whose item is among the k best of the catalogue."""
        self._check_catalogue()
        table = as_table(X, columns=self._columns_read())
        # Without a catalogue, items that were not in fit have no embedding here.
        rows = self._items.rows(table, all_known=self._items.from_catalogue).numpy()
        vectors = self.user_tower_.embed(table)
        k, n_hits = min(k, len(self.item_embeddings_)), 0
        masks = self._user_key is not None and self._user_key in table.column_names
        for begin in range(0, len(rows), SCORED_ROWS):
            part, excluded = slice(begin, begin + SCORED_ROWS), None
            own = rows[part]
            if masks:
                users, items = self._seen_pairs(table.slice(begin, SCORED_ROWS))
                others = items != own[users]
                excluded = users[others], items[others]
            indices, _ = self._top_k(vectors[part], self.item_embeddings_, k, excluded)
            n_hits += int((indices == own[:, None]).any(axis=1).sum())
        return n_hits / len(rows)


def _has_key_only(table, tower, key):
    """Return whether a table has a key, but not the columns of a tower."""
    needed = set(tower.feature_names_in_)
    present = needed & set(table.column_names)
    return present != needed and not present - {key} and key in table.column_names


def _known_rows(lookup, table):
    """Return the rows of `fit` with the keys of a table, -1 for unknown keys and without keys."""
    if lookup.name not in table.column_names:
        return np.full(len(table), -1)
    return lookup.rows(table.column(lookup.name))


def spread_indices(length, size):
    """Return evenly spread indices of a sequence: all of them, or about `size` if it is longer."""
    return np.arange(0, length, max(1, length // size))


def _take_keys(keys, indices):
    """Return the keys at some indices, None for negative ones."""
    taken = keys[indices]
    if (indices < 0).any():
        taken = taken.astype(object)
        taken[indices < 0] = None
    return taken
