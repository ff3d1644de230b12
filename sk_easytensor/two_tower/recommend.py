"""Recommendations and scores of pairs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import limited_threads, resolve_threads, with_library_settings
from sk_easytensor._utils.validation import check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.columns import show_value, type_name
from sk_easytensor.data.lists import is_list
from sk_easytensor.data.tables import as_table
from sk_easytensor.estimators.stored import Ranking, Values, of_stored_rows
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.inspection.importance import pair_model
from sk_easytensor.retrieval import ApproximateIndex, as_tensor, top_k
from sk_easytensor.training.pairs import distinct_rows
from sk_easytensor.two_tower.keys import KeyIndex, key_values, rows_of_keys
from sk_easytensor.two_tower.pairs import summarize_interactions

__all__ = [
    "PairScoringMixin",
    "RecommendingMixin",
]


class PairScoringMixin:
    """Predicts pairs by the product of their embeddings."""

    @with_library_settings
    @of_stored_rows(Values("decision"), check="_check_pair_columns")
    def decision_function(self, X):
        """Return how well users and items fit.

        Parameters
        ----------
        X : table-like
            Pairs: the user's columns, and the item's or its key. Items that `fit` did not meet
            need the item tower's columns.

        Returns
        -------
        ndarray of float64, shape (n_pairs,)
            Products over the temperature; with two classes the log-odds of the second.
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
        """Return the columns of users and items, and those of their keys."""
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
        """Raise ``ValueError`` unless pairs of a table can be evaluated, and columns shuffled."""
        owner = type(self).__name__
        if self._target.is_implicit:
            raise ValueError(
                f"{owner} was fitted without y, so that pairs have no target to be evaluated by; "
                "compare sk_easytensor.ranking.ranking_report with and without a column"
            )
        lacking = set(self.item_tower_.feature_names_in_) - set(table.column_names)
        if lacking:
            raise ValueError(
                f"{owner}: X lacks {sorted(lacking)} of the item tower; join the catalogue to X, "
                "for its columns to be shuffled"
            )
        self.user_tower_.read(table)

    def _encoded_model(self, X, backend, rows):
        """Return both towers with some rows of a table of pairs, for inspection."""
        table = as_table(X)
        self._check_encodable(table)
        towers = {"user": self.user_tower_, "item": self.item_tower_}
        return pair_model(towers, table.take(rows), self._scores, backend)

    def _item_vectors(self, table, backend):
        """Return embeddings, and for each pair which of them is its item's."""
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
    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : table-like
            Pairs.

        Returns
        -------
        ndarray of float64, shape (n_pairs, 2)

        Raises
        ------
        AttributeError
            Unless `fit` was given two classes.
        """
        positive = 1 / (1 + np.exp(-self.decision_function(X)))
        return np.column_stack([1 - positive, positive])

    @with_library_settings
    @of_stored_rows(Values("prediction"), check="_check_pair_columns")
    def predict(self, X):
        """Return the class, the number, or without `y` in `fit` the product of each pair.

        Parameters
        ----------
        X : table-like
            Pairs.

        Returns
        -------
        ndarray of shape (n_pairs,)
        """
        scores = self.decision_function(X)
        return self._target.predict(torch.from_numpy(scores)[:, None])

    @with_library_settings
    def score(self, X, y=None):
        """Return how good predictions are.

        Parameters
        ----------
        X : table-like
            Pairs.
        y : array-like, optional
            What `fit` was given of the kind.

        Returns
        -------
        float
            With two classes the area under the ROC curve, with numbers R². Without `y` the
            fraction of pairs whose item is among the ten of the catalogue that fit its user best;
            a pair whose item `fit` did not meet counts as missed, unless there was a catalogue.
        """
        check_is_fitted(self)
        if self._target.is_implicit:
            return self._hit_rate(X)
        y = self._target.check(y)
        if self._target.classes_ is None:
            return float(r2_score(y, self.predict(X)))
        return float(roc_auc_score(y == self.classes_[1], self.decision_function(X)))


QUERIES, ROWS_OF_QUERIES = 256, 16_384
"""Users whose rankings an approximate index is adjusted by, and rows that they are found in."""


class RecommendingMixin:
    """Ranks the catalogue for users, and users for items."""

    def _check_query(self, users, items=None, k=10, exclude=None):
        """Raise ``ValueError`` if stored users lack columns, or cannot be ranked for as asked."""
        check_number("recommend", "k", k, low=1, integer=True)
        if exclude is not None and not isinstance(exclude, str):
            raise ValueError(
                "recommend: of stored users, exclude must be 'seen' or None, got "
                f"{type(exclude).__name__}"
            )
        if items is None:
            self._check_catalogue()
        if exclude is not None:
            self._check_exclude(exclude, users, catalogue=items is None)
        if not self._are_kept(users):
            self.user_tower_.read(users)

    @with_library_settings
    @of_stored_rows(Ranking("items", "scores"), check="_check_query")
    def recommend(self, users, items=None, *, k=10, exclude=None):
        """Return the items that fit each user best.

        Parameters
        ----------
        users : table-like
            With the user tower's columns, or with the `user_key` of `fit` alone: users are then
            ranked by the embeddings that were kept.
        items : table-like, optional
            Candidates, with the item tower's columns; by default the catalogue.
        k : int, default=10
            Items a user, at most as many as there are.
        exclude : "seen", list of lists or list column, optional
            Items that are not recommended: those of each user in `fit`, which needs its
            `user_key`, or for each user a list of keys. Keys that no item has are ignored.

        Returns
        -------
        keys : ndarray of shape (n_users, k)
            Keys of items, the best first; positions among `items` if they have no key. None
            where a user has fewer than k items left.
        scores : ndarray of float32, shape (n_users, k)
            Products; ``-inf`` where there is no item.
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
            places, scores = self._index.search(queries, k, excluded=excluded, threads=threads)
        else:
            places, scores = self._best(queries, candidates, k, excluded)
        return _named(keys, places), scores

    @with_library_settings
    def rank_users(self, item, *, k=10, users=None):
        """Return the users that fit each item best.

        Parameters
        ----------
        item : table-like
            One item or several, new ones too, with the item tower's columns.
        k : int, default=10
            Users an item, at most as many as there are.
        users : table-like, optional
            Candidates, with the user tower's columns; by default the users whose embeddings
            `fit` kept, which needs its `user_key`.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of users, the best first; positions among `users` if they have no key.
        scores : ndarray of float32, shape (n_items, k)
            Products.
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
        places, scores = self._best(queries, candidates, min(k, len(candidates)))
        return keys[places], scores

    # ------------------------------------------------------------------ kept at the end of fit

    def _read_users(self, dataset, executor):
        """Return each user's last row, and which items each user met, as numbers."""
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

    def _keep_users(self, rows, users, seen, backend):
        """Embed each user's last row, and remember what :meth:`_read_users` found."""
        frame = self.user_tower_.encode(rows, backend)
        self.user_embeddings_ = self.user_tower_.embed_frame(frame, backend).numpy()
        self.user_keys_ = key_values(rows.column(self._user_key))
        self._users, self._seen = users, seen

    def _keep_items(self, frame, users, backend):
        """Embed the encoded catalogue, if there is one; some users help to adjust the index."""
        self._index = None
        if not self._items.keyed:
            return
        self.item_embeddings_ = self.item_tower_.embed_frame(frame, backend).numpy()
        self.item_keys_ = self._items.keys
        if self.index != "exact":
            some = users.take(pa.array(some_places(len(users), ROWS_OF_QUERIES)))
            found, _ = distinct_rows(self.user_tower_.encode(some, backend))
            found = found.take(torch.from_numpy(some_places(len(found), QUERIES)))
            queries = self.user_tower_.embed_frame(found, backend).numpy()
            self._index = ApproximateIndex(self.item_embeddings_, queries)

    # ------------------------------------------------------------------ reading

    def _best(self, queries, candidates, k, excluded=None):
        with limited_threads(self.n_jobs):
            return top_k(queries, candidates, k, excluded=excluded)

    def _user_vectors(self, users):
        if not self._are_kept(users):
            return self.user_tower_.embed(users)
        needed = set(self.user_tower_.feature_names_in_)
        column = users.column(self._user_key)
        rows = self._users.rows(column)
        if (rows < 0).any():
            row = int(np.argmax(rows < 0))
            raise ValueError(
                f"column {self._user_key!r} holds {show_value(column[row])} in row {row}, whose "
                f"embedding was not kept by fit; pass the columns {sorted(needed)}"
            )
        return self.user_embeddings_[rows]

    def _are_kept(self, users):
        """Tell whether users are given by their key alone."""
        needed = set(self.user_tower_.feature_names_in_)
        given = needed & set(users.column_names)
        alone = given != needed and not given - {self._user_key}
        return alone and self._user_key in users.column_names

    def _candidates(self, items):
        vectors = self.item_tower_.embed(items)
        key = self._items.key
        if key is None or key not in items.column_names:
            return vectors, np.arange(len(items)), None
        lookup = KeyIndex(items.column(key), key)
        lookup.check_distinct(items.column(key))
        return vectors, key_values(items.column(key)), lookup

    def _excluded(self, exclude, users, lookup, *, catalogue):
        """Return pairs of user and item that do not count, sorted by user."""
        if exclude is None:
            return None
        if isinstance(exclude, str):
            self._check_exclude(exclude, users, catalogue=catalogue)
            return self._seen_pairs(users)
        if lookup is None:
            raise ValueError("recommend: exclude names keys, which items do not have")
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
        owner = np.repeat(np.arange(len(users)), lengths)
        items = pc.list_flatten(lists)
        items = items if isinstance(items, pa.ChunkedArray) else pa.chunked_array([items])
        rows = lookup.rows(items)
        return owner[rows >= 0], rows[rows >= 0].astype(np.int64)

    def _check_exclude(self, exclude, users, *, catalogue):
        """Raise ``ValueError`` unless it is known what users have seen."""
        if exclude != "seen" or not catalogue:
            raise ValueError(
                "recommend: exclude must be 'seen', which is known of the catalogue only, or "
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
        owner = np.repeat(np.arange(len(rows)), lengths)
        starts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
        return owner, self._seen[places, 1]

    def _check_catalogue(self):
        if not self._items.keyed:
            raise ValueError(
                "there is no catalogue: pass items, or give fit an item_key to make one of"
            )

    def _check_users(self, what):
        if self._user_key is None:
            raise ValueError(f"{what} needs the user_key of fit, by which users are kept")

    def _hit_rate(self, X, k=10):
        """Return the fraction of pairs whose item is among the k best of the catalogue."""
        self._check_catalogue()
        table = as_table(X, columns=self._columns_read())
        # Without a catalogue, items that fit did not meet cannot be found.
        rows = self._items.rows(table, all_known=self._items.given).numpy()
        vectors = self.user_tower_.embed(table)
        places, _ = self._best(vectors, self.item_embeddings_, min(k, len(self.item_embeddings_)))
        return float((places == rows[:, None]).any(axis=1).mean())


def some_places(n_places, size):
    """Return evenly spread places, about `size` of them if there are more."""
    return np.arange(0, n_places, max(1, n_places // size))


def _named(keys, places):
    """Return the keys at some places, None where there is no place."""
    named = keys[places]
    if (places < 0).any():
        named = named.astype(object)
        named[places < 0] = None
    return named
