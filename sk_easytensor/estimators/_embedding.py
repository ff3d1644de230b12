"""Embeddings of users from tables of lists or from logs."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
from sklearn.base import TransformerMixin
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.columns import type_name
from sk_easytensor.estimators._event_tables import list_names
from sk_easytensor.estimators._stored import Vectors, of_stored_rows
from sk_easytensor.events import collect_sequences
from sk_easytensor.tables import as_table
from sk_easytensor.torch_settings import with_library_settings

__all__ = ["EmbeddingMixin"]


class EmbeddingMixin(TransformerMixin):
    """Embeds users by the tower that was fitted."""

    def collect(self, events):
        """Return the sequences of a log, a row for each user.

        Parameters
        ----------
        events : table-like
            A log with the columns of the one that `fit` was given.

        Returns
        -------
        DataFrame or pyarrow.Table
            The user's columns and columns of lists, named as in the log. Users are in the order
            of their first event in the log, as in what :meth:`transform` returns; it takes this
            table, too, and gives the same.

        Raises
        ------
        AttributeError
            If `fit` was given no log.
        """
        check_is_fitted(self)
        if self._user is None:
            raise AttributeError("collect needs a log in fit, with its user and time columns")
        return collect_sequences(
            events,
            by=self._user,
            order_by=self._time,
            columns=list(self.tower_.feature_names_in_),
            prefix="",
        )

    def _check_lists(self, table):
        """Raise ``ValueError`` if a stored table lacks columns of lists, or is a log."""
        lists = set(list_names(table))
        for field in self.tower_.read(table).schema:
            if field.name not in lists and not pa.types.is_null(field.type):
                raise ValueError(
                    f"{type(self).__name__}: column {field.name!r} holds "
                    f"{type_name(field.type)}, not lists; "
                    "events of a user may be anywhere in a stored log, so that only a stored table "
                    "with a row for each user can be embedded, such as collect makes"
                )

    @with_library_settings
    @of_stored_rows(Vectors("embedding"), check="_check_lists")
    def transform(self, X):
        """Return embeddings.

        Parameters
        ----------
        X : table-like
            Columns of lists, a row for each user; or a log, if `fit` was given one.

        Returns
        -------
        ndarray of float32, shape (n_users, embedding_dim)
            For a log, users are in the order of their first event; as pandas data frames, if
            ``set_output`` asks for these, they have the users as index.
        """
        check_is_fitted(self)
        table = as_table(X, columns=self._read_columns())
        if not self._is_log(table):
            return self.tower_.embed(table)
        sequences = self.collect(table)
        embeddings = self.tower_.embed(sequences)
        if _get_output_config("transform", self)["dense"] != "pandas":
            return embeddings
        # Left to itself, scikit-learn would take over the index of the events.
        users = self._user_names()
        users = sequences.select(users).to_pandas().set_index(users).index
        return pd.DataFrame(embeddings, index=users, columns=self.get_feature_names_out())

    def _read_columns(self):
        """Return the names of the columns that are read of a table of lists or a log."""
        times = [] if self._time is None else [self._time]
        return list(dict.fromkeys([*self.tower_.feature_names_in_, *self._user_names(), *times]))

    def _user_names(self):
        """Return the columns that name the user in a log; none if `fit` was given no log."""
        return [self._user] if isinstance(self._user, str) else list(self._user or ())

    def _is_log(self, table):
        read = set(self.tower_.feature_names_in_).intersection(table.column_names)
        return self._user is not None and not read.intersection(list_names(table))
