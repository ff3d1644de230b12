"""How well users and items fit: scores, classes and numbers of pairs."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.backends import resolve_backend
from sk_easytensor.estimators._stored import Values, of_stored_rows
from sk_easytensor.inspection import GivenOutputs
from sk_easytensor.inspection._pairs import pair_model
from sk_easytensor.retrieval import as_tensor
from sk_easytensor.tables import as_table
from sk_easytensor.torch_settings import with_library_settings
from sk_easytensor.training.pairs import distinct_rows

__all__ = ["PairScoringMixin"]


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
        keys = (self._user_key, self._catalogue.key)
        return list(dict.fromkeys([*towers, *(key for key in keys if key is not None)]))

    def _check_pair_columns(self, table):
        """Raise ``ValueError`` if a table lacks columns of users or items."""
        self.user_tower_.read(table)
        if not (self._catalogue.keyed and self._catalogue.key in table.column_names):
            self.item_tower_.read(table)

    def _scores(self, users, items):
        products = torch.einsum("nd,nd->n", users.double(), items.double())
        return products / self._temperature + self._bias

    def _check_encodable(self, table):
        """Raise ``ValueError`` unless pairs of a table can be judged, and columns shuffled."""
        owner = type(self).__name__
        if self._target.chosen:
            raise ValueError(
                f"{owner} was fitted without y, so that pairs have no target to be judged by; "
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
        if self._catalogue.keyed and self._catalogue.key in table.column_names:
            has_columns = set(self.item_tower_.feature_names_in_) <= set(table.column_names)
            rows = self._catalogue.rows(table, all_known=not has_columns)
            if (rows >= 0).all():
                return as_tensor(self.item_embeddings_), rows
        items, rows = distinct_rows(self.item_tower_.encode(table, backend))
        return self.item_tower_.embed_frame(items, backend), rows

    def _check_classes(self):
        check_is_fitted(self)
        if self._target.classes is None:
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
        return self._target.decode(scores)

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
        if self._target.chosen:
            return self._hit_rate(X)
        y = self._target.check(y)
        if self._target.classes is None:
            return float(r2_score(y, self.predict(X)))
        return float(roc_auc_score(y == self.classes_[1], self.decision_function(X)))
