"""Recommendations and scores of pairs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import resolve_threads, with_library_settings
from sk_easytensor._utils.validation import check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.key_index import KeyIndex
from sk_easytensor.data.tables import as_table
from sk_easytensor.estimators.stored import Ranking, Values, of_stored_rows
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.inspection.importance import pair_model
from sk_easytensor.retrieval import EmbeddingIndex, Recommender, top_k
from sk_easytensor.retrieval.recommender import SeenPairs, Side
from sk_easytensor.training.pairs import distinct_rows
from sk_easytensor.two_tower.pairs import OWNER, rows_of_keys, summarize_interactions

if TYPE_CHECKING:
    from typing import Any, Literal

    import pyarrow.compute as pc

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
        items = self._item_vectors(table, backend)
        return self._scores(users[user_rows], items).numpy()

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
        """Return the embedding of the item of each pair."""
        if self._items.keyed and self._items.key in table.column_names:
            has_columns = set(self.item_tower_.feature_names_in_) <= set(table.column_names)
            rows = self._items.rows(table, all_known=not has_columns)
            if (rows >= 0).all():
                return torch.from_numpy(self.item_index_.vectors(rows.numpy()))
        items, rows = distinct_rows(self.item_tower_.encode(table, backend))
        return self.item_tower_.embed_frame(items, backend)[rows]

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
            catalogue, it raises an error, unless ``unknown_items="drop"``.

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

    @property
    def item_keys_(self) -> np.ndarray:
        """Keys of the items."""
        return self.item_index_.keys

    @property
    def item_embeddings_(self) -> np.ndarray:
        """Embeddings of the items."""
        return self.item_index_.vectors()

    @property
    def user_keys_(self) -> np.ndarray:
        """Keys of the users."""
        return self.user_index_.keys

    @property
    def user_embeddings_(self) -> np.ndarray:
        """Embeddings of the users."""
        return self.user_index_.vectors()

    def _check_query(self, users, items=None, k=10, exclude=None, **options):
        """Raise ``ValueError`` if stored users lack columns, or if an argument is invalid."""
        check_number("recommend", "k", k, low=1, integer=True)
        if exclude is not None and not isinstance(exclude, str):
            raise ValueError(
                "recommend: for stored users, exclude must be 'seen' or None, got "
                f"{type(exclude).__name__}"
            )
        recommender = self._recommender()
        recommender.check(users, items, exclude)

    @with_library_settings
    @of_stored_rows(Ranking("items", "scores"), check="_check_query")
    def recommend(
        self,
        users: TableLike,
        items: TableLike | None = None,
        *,
        k: int = 10,
        exclude: Literal["seen"] | ArrayLike | None = None,
        where: pc.Expression | None = None,
        min_score: float | None = None,
        diversity: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray] | Any:
        """Return the items with the highest scores for each user.

        Parameters
        ----------
        users : table-like
            Users, with the columns of the user tower, or with the column `user_key` of `fit` alone.
            In the latter case the embeddings of `fit` are used.
        items : table-like, optional
            Candidates, with the columns of the item tower, or with the column `item_key` of `fit`
            alone, for items of the catalogue; by default the whole catalogue.
        k : int, default=10
            Number of items for each user; all candidates if there are fewer.
        exclude : "seen", list of lists or list column, optional
            Items that are not recommended. ``"seen"`` excludes the items of each user in `fit`,
            which requires `user_key`. A list of keys for each user excludes these; keys of unknown
            items are ignored.
        where : pyarrow.compute.Expression, optional
            Condition on the columns of the candidates, such as ``pc.field("price") < 20``. The
            catalogue has all of its columns but lists. Items for which it is missing are left out.
        min_score : float or None, default=None
            Lowest score of recommended items.
        diversity : float, default=0.0
            From 0 to 1: weight of the likeness of an item to those that are recommended before it,
            by maximal marginal relevance, see
            :meth:`~sk_easytensor.retrieval.EmbeddingIndex.search`. Items are then in the order of
            their selection.

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
            If an argument is invalid, if tables lack columns, or if there is neither a catalogue
            nor `items`.
        """
        check_is_fitted(self)
        return self._recommender().recommend(
            as_table(users, columns=self._columns_read()),
            self._candidate_table(items, where),
            k=k,
            exclude=exclude,
            where=where,
            min_score=min_score,
            diversity=diversity,
        )

    @with_library_settings
    def rank_users(
        self,
        item: TableLike,
        *,
        k: int = 10,
        users: TableLike | None = None,
        exclude: Literal["seen"] | ArrayLike | None = None,
        where: pc.Expression | None = None,
        min_score: float | None = None,
        diversity: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the users with the highest scores for each item.

        Parameters
        ----------
        item : table-like
            One item or several, with the columns of the item tower, which may be new, or with the
            column `item_key` of `fit` alone.
        k : int, default=10
            Number of users for each item; all candidates if there are fewer.
        users : table-like, optional
            Candidates, with the columns of the user tower, or with the column `user_key` of `fit`
            alone; by default the users of `fit`, which requires `user_key`.
        exclude : "seen", list of lists or list column, optional
            Users that are not returned: those who have the item in `fit`, or for each item a list
            of keys.
        where : pyarrow.compute.Expression, optional
            Condition on the columns of the candidates. Users of `fit` have the columns of the user
            tower but lists.
        min_score, diversity
            As in :meth:`recommend`.

        Returns
        -------
        keys : ndarray of shape (n_items, k)
            Keys of users, the best first; positions among `users` if they have no key. None where
            fewer than k users remain for an item.
        scores : ndarray of float32, shape (n_items, k)
            Products of embeddings; ``-inf`` where there is no user.

        Raises
        ------
        ValueError
            If an argument is invalid, if tables lack columns, or if `fit` had no `user_key` and
            `users` is None.
        """
        check_is_fitted(self)
        return self._recommender().rank_users(
            as_table(item, columns=self._columns_read()),
            self._candidate_table(users, where),
            k=k,
            exclude=exclude,
            where=where,
            min_score=min_score,
            diversity=diversity,
        )

    def _candidate_table(self, candidates, where):
        """Return candidates as a table, with all columns if there is a condition on them."""
        if candidates is None:
            return None
        return as_table(candidates, columns=None if where is not None else self._columns_read())

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
            Keys of items, the most similar first. An item is not among its own. None where fewer
            than k remain.
        similarities : ndarray of float32, shape (n_items, k)
            Cosines of embeddings; ``-inf`` where there is no item.

        Raises
        ------
        ValueError
            If `k` is invalid, `fit` had no `item_key`, or columns or items are unknown.
        """
        check_is_fitted(self)
        return self._recommender().similar_items(as_table(items, columns=self._columns_read()), k=k)

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
            Keys of users, the most similar first. A user is not among the own ones. None where
            fewer than k remain.
        similarities : ndarray of float32, shape (n_users, k)
            Cosines of embeddings; ``-inf`` where there is no user.

        Raises
        ------
        ValueError
            If `k` is invalid, `fit` had no `user_key`, or columns or users are unknown.
        """
        check_is_fitted(self)
        return self._recommender().similar_users(as_table(users, columns=self._columns_read()), k=k)

    def _recommender(self):
        """Return the stored embeddings and the towers as a recommender."""
        items = Side("item", self._item_index(), self.item_tower_, self._items.key)
        users = Side("user", self._user_index(), self.user_tower_, self._user_key)
        return Recommender(items, users, self._seen, resolve_threads(self.n_jobs))

    def _item_index(self):
        return self.item_index_ if self._items.keyed else None

    def _user_index(self):
        return None if self._user_key is None else self.user_index_

    # ------------------------------------------------------------------ stored at the end of fit

    def _read_users(self, dataset, executor):
        """Return the last row of each user, and the pairs that were seen."""
        if self._user_key is None:
            return None
        columns = self.user_tower_.feature_names_in_
        rows = rows_of_keys(dataset, self._user_key, columns, executor, keep="last")
        if not self._items.keyed:
            return rows, None
        keys = list(dict.fromkeys([self._user_key, self._items.key]))
        summarize = partial(summarize_interactions, self._user_key, self._items)
        seen = dataset.select(keys).map_reduce(summarize, executor)
        users = KeyIndex(rows.column(self._user_key), self._user_key, OWNER)
        return rows, SeenPairs(seen.numbered(users))

    def _store_users(self, rows, seen, backend):
        """Embed the last row of each user, and store the results of :meth:`_read_users`."""
        frame = self.user_tower_.encode(rows, backend)
        vectors = self.user_tower_.embed_frame(frame, backend).numpy()
        keys = rows.column(self._user_key)
        self.user_index_ = EmbeddingIndex(keys, vectors, rows, key=self._user_key)
        self._seen = seen

    def _store_items(self, frame, catalogue, users, backend):
        """Embed the encoded catalogue, if there is one, and build the approximate index.

        Parameters
        ----------
        frame : TensorFrame
            Encoded items.
        catalogue : ItemCatalogue
            The items.
        users : pyarrow.Table
            Rows of users, with whose rankings an approximate index is tuned.
        backend : Backend
            Executor of forward passes.
        """
        if not self._items.keyed:
            return
        vectors = self.item_tower_.embed_frame(frame, backend).numpy()
        table, key = catalogue.dataset.table, self._items.key
        columns = table
        if not catalogue.has_catalogue:
            # The other columns of interactions are not of the item.
            columns = table.select(list(self.item_tower_.feature_names_in_))
        self.item_index_ = EmbeddingIndex(table.column(key), vectors, columns, key=key)
        if self.index != "exact":
            users = users.take(pa.array(spread_indices(len(users), ROWS_OF_QUERIES)))
            distinct, _ = distinct_rows(self.user_tower_.encode(users, backend))
            distinct = distinct.take(torch.from_numpy(spread_indices(len(distinct), QUERIES)))
            queries = self.user_tower_.embed_frame(distinct, backend).numpy()
            self.item_index_.build_approximate(queries, self.index)

    def _check_catalogue(self):
        if not self._items.keyed:
            raise ValueError(
                "there is no catalogue: pass items, or call fit with an item_key to create one"
            )

    def _hit_rate(self, X, k=10):
        """Return the fraction of pairs whose item is among the k best of the catalogue."""
        self._check_catalogue()
        table = as_table(X, columns=self._columns_read())
        # Without a catalogue, items that were not in fit have no embedding here.
        all_known = self._items.from_catalogue and self.unknown_items == "error"
        rows = self._items.rows(table, all_known=all_known).numpy()
        users = self._recommender().users
        vectors, candidates = self.user_tower_.embed(table), self.item_embeddings_
        known = users.known_rows(table) if self._seen is not None else None
        k, n_hits = min(k, len(candidates)), 0
        for begin in range(0, len(rows), SCORED_ROWS):
            part, excluded = slice(begin, begin + SCORED_ROWS), None
            own = rows[part]
            if known is not None:
                queries, items = self._seen.others(known[part], side=0)
                others = items != own[queries]
                excluded = queries[others], items[others]
            threads = resolve_threads(self.n_jobs)
            found, _ = top_k(vectors[part], candidates, k, excluded=excluded, threads=threads)
            n_hits += int((found == own[:, None]).any(axis=1).sum())
        return n_hits / len(rows)


def spread_indices(length, size):
    """Return evenly spread indices of a sequence: all of them, or about `size` if it is longer."""
    return np.arange(0, length, max(1, length // size))
