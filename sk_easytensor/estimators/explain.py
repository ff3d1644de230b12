"""Importances of columns and explanations of rows, as methods of estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor.backends import resolve_backend
from sk_easytensor.inspection import EncodedModel
from sk_easytensor.inspection.explanation import Explanation, shapley_values
from sk_easytensor.training.progress import show_phase

if TYPE_CHECKING:
    from sk_easytensor._utils.typing import RandomStateLike, TableLike

__all__ = [
    "ExplainMixin",
]


class ExplainMixin:
    """Importances of columns over many rows, and contributions of columns to single rows.

    A subclass has ``network_``, ``backend``, ``n_jobs``, ``_encoder``, ``_target`` and
    ``_importance_sample``, and implements ``_read(X)``.
    """

    @property
    def feature_importances_(self) -> np.ndarray:
        """Permutation importance of each input column, an ndarray of shape (n_features,).

        The importance of a column is the increase of the loss when the column's values are
        shuffled among validation rows. Increases of less than one standard error are noise and
        become 0; the others are scaled to sum to 1. :attr:`importances_std_` has their errors. At
        most 2,048 validation rows are used, or training rows if there are fewer than 32. Shuffling
        the encoded rows costs forward passes only. Importances are computed on the first access, or
        when the estimator is pickled, because pickles hold no rows. With more than 100 columns, a
        single shuffle of 256 rows is made, and pickling does not compute them: the pickle then
        holds those rows, encoded. On Ray, the workers compute importances at the end of a fit, each
        by shuffling among a sample of its own rows. The features of a sparse matrix that are read
        by a :class:`~sk_easytensor.SparseBlock` are shuffled together, and their importance is
        divided among them by the variance of what each adds.

        The time is linear in the number of columns, because only the change that a column makes is
        computed. It is bounded as well: over all columns at most 1,048,576 rows are evaluated, so
        that more than 4,096 columns get fewer rows each, but at least 16. A trunk without
        ``first_layer``, or a block of texts or lists with more than 100 columns, needs a whole pass
        for each column. All columns of the rows then have at most 65,536 values, with at least 16
        rows.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        """
        self._compute_importances()
        return self._importances

    @property
    def importances_std_(self) -> np.ndarray:
        """Standard error of each importance, an ndarray of shape (n_features,).

        It is that of the mean over the rows on which :attr:`feature_importances_` was computed, on
        their scale, also for the columns whose importance is 0. All are 0 if no importance is above
        0, and NaN in models that an earlier version of the library has saved.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        """
        self._compute_importances()
        return getattr(self, "_importances_std", self._importances * np.nan)

    @with_library_settings
    def _compute_importances(self):
        """Compute importances, their errors and the measures of validation rows, once."""
        check_is_fitted(self)
        if hasattr(self, "_importances"):
            return
        backend = resolve_backend(self.backend, self.n_jobs)
        with show_phase("computing importances", self.verbose):
            self._importances, self._importances_std, self._validation = (
                self._importance_sample.compute(self.network_, self._encoder, self._target, backend)
            )
        self._importance_sample = None

    @with_library_settings
    def explain(
        self,
        X: TableLike,
        *,
        background: TableLike | None = None,
        n_permutations: int = 4,
        max_background: int = 50,
        random_state: RandomStateLike | None = None,
    ) -> Explanation:
        """Return the contribution of each column to the difference of each output to a base value.

        The contributions are Shapley values of the columns. A row's contributions and its base
        value add up to the raw output of the whole model, trees included: ``decision_function(X)``
        of a classifier, which is the log-odds of two classes or of each label and the
        log-probabilities of more classes, and ``predict(X)`` of a regressor, before the exponential
        where the loss has one (``np.log(predict(X))`` for ``"poisson"`` and ``"gamma"``).

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to explain.
        background : table-like of shape (n_background, n_features), optional
            Rows whose mean output is the base value, such as training rows. By default the rows of
            `X`, which must then have at least two.
        n_permutations : int, default=4
            Number of random orders in which columns are replaced. Each is used forwards and
            backwards, and all rows share them. If the columns have no more orders than twice this
            number, all are used and the Shapley values are exact for the background rows.
        max_background : int, default=50
            Maximum number of background rows; from more rows, this number is sampled.
        random_state : int, RandomState or None, default=None
            Seed of the orders and of the sample of background rows. With an int, results are
            reproducible.

        Returns
        -------
        Explanation
            Its ``values`` are an ndarray of float64 of shape (n_samples, n_features), or
            (n_samples, n_features, n_outputs) where the raw output has several columns. Its
            ``base_values``, of shape (n_samples,) or (n_samples, n_outputs), are the same for all
            rows, and its ``feature_names`` are the columns. For a sparse `X` of many columns, the
            columns are those that are read as dense ones, followed by one for all others, the
            sparse part. A row's features there are read as one vector, and the contribution of one
            of them depends on the others, so that values for each would take as many evaluations as
            there are features. :attr:`feature_importances_` and
            :func:`~sk_easytensor.inspection.permutation_importance` have one entry for each
            column of the matrix; a model that is fitted on ``X.toarray()`` explains each.
            ``shap.Explanation(**vars(explanation))`` makes plots of the package ``shap`` possible.

        Raises
        ------
        ValueError
            If a parameter is invalid, if a table lacks columns, or if `X` has fewer than two rows
            and `background` is None.
        NotFittedError
            If the estimator is not fitted.

        Notes
        -----
        Sampled by antithetic permutations, as in Mitchell, Cooper, Frank and Holmes, "Sampling
        Permutations for Shapley Value Estimation" (2022). The encoded columns of a background row
        are replaced by those of the row to explain, one after another; a column's contribution is
        the mean change of the output. Columns are taken as independent of each other. Sums are
        exact to the precision of float32, however few the permutations.

        The model is evaluated ``2 * n_permutations * n_columns * n_background`` times for each row;
        a processor core does some hundred thousand evaluations a second with the default trunk.
        With the library's trunks ``MLP`` and ``TabM``, the time of an evaluation does not depend on
        the number of columns, as long as these are numbers, categories and dates; a block of texts
        or lists is read again for each of its columns. Columns that a block reads as one share
        their contribution evenly. Lists that are parallel to those of other columns keep the
        background row's lengths until all of them are replaced.

        Examples
        --------
        >>> from sk_easytensor import EasyTensorRegressor
        >>> X = {"size": [1.0, 2.0, 3.0, 4.0] * 25, "noise": [0.0, 1.0] * 50}
        >>> y = [10.0, 20.0, 30.0, 40.0] * 25
        >>> model = EasyTensorRegressor(random_state=0).fit(X, y)
        >>> row = {"size": [4.0], "noise": [1.0]}
        >>> explanation = model.explain(row, background=X, random_state=0)
        >>> explanation.values.shape, explanation.feature_names[abs(explanation.values[0]).argmax()]
        ((1, 2), 'size')
        >>> total = explanation.base_values + explanation.values.sum(axis=1)
        >>> bool(abs(total - model.predict(row)).max() < 1e-3)
        True
        """
        check_is_fitted(self)
        values, base = shapley_values(
            self, X, background, n_permutations, max_background, random_state
        )
        return Explanation.of(*self._target.explained(values, base), self._encoder.column_names_)

    def _check_encodable(self, table):
        """Raise ``ValueError`` if a table lacks columns."""
        self._read(table)

    def _encoded_model(self, X, backend, rows):
        """Return the network with the given rows of a table, encoded, for inspection."""
        table = self._read(X)
        if len(rows) < len(table):
            table = table.take(rows)
        return self._inspection_model(self._encoder.encode_table(table, backend), backend)

    def _inspection_model(self, frame, backend):
        """Return the network with encoded rows, for inspection."""
        return EncodedModel.of_network(
            self.network_, self._target.head_, self._encoder, frame, backend
        )
