"""Regression on table rows."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import (
    d2_pinball_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from sklearn.utils.validation import (
    assert_all_finite,
    check_array,
    check_is_fitted,
    column_or_1d,
)

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor.data.summaries import WeightedMoments, merge_all, power_of_two
from sk_easytensor.estimators.base import BaseEasyTensor
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.inputs import check_no_missing, check_size, first_text
from sk_easytensor.estimators.rows import bounded_targets, target_range
from sk_easytensor.estimators.stored import Values, of_stored_rows
from sk_easytensor.export.adapters import RegressorAdapter
from sk_easytensor.inspection.sample import residual_bins
from sk_easytensor.losses import describe_loss, resolve_loss
from sk_easytensor.networks.heads import RegressionHead
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "EasyTensorRegressor",
]


SHOWN_OUTPUTS = 8
"""Of a target of more columns, reports show the residuals of the first."""


@documented_like(EasyTensorClassifier)
class EasyTensorRegressor(RegressorMixin, BaseEasyTensor):
    """Regressor for tables of numbers, categories, dates, texts and vectors.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Which block reads which columns, as in :class:`~sklearn.compose.ColumnTransformer`. For a
        sparse `X`, names and positions are those of the columns of the matrix, as in
        :class:`~sk_easytensor.TableEncoder`.
    loss : str, Loss, torch.nn.Module or callable, default="squared_error"
        What is minimized: ``"squared_error"``, ``"absolute_error"``, ``"huber"``, ``"quantile"``,
        ``"expectile"``, ``"poisson"``, ``"gamma"`` or ``"tweedie"``; a loss of
        :mod:`sk_easytensor.losses` with its parameters such as ``Tweedie(power=1.3)``; or a loss of
        your own. ``"poisson"``, ``"gamma"`` and ``"tweedie"`` are for targets that are not negative
        (gamma: positive) and predict through an exponential. ``"huber"`` turns from squared to
        absolute error at one standard deviation of the target. A callable gets raw outputs, which
        are the predictions, and targets, both in units of `y` and of shape (n,), or (n, n_outputs)
        for several columns. It returns a loss for each row or their mean, which is computed of each
        row, and is checked on a few rows before training. Boosted trees are left out beside a
        callable, and beside a loss whose ``tree_loss`` is None, because they cannot learn it.
    quantile : float, list of float or None, default=None
        Which quantile ``loss="quantile"`` estimates, between 0 and 1. With a list of several
        increasing numbers, `predict` returns a column for each, and these never cross; `y` must
        have one column then. None for other losses.
    offset : str, int or None, default=None
        Name or position of a column of `X` whose numbers are added to the raw output: in units of
        `y`, or, with ``loss="poisson"`` and ``"gamma"``, to the logarithm of the mean, so that a
        column with the logarithm of the exposure has the model learn a rate. No feature unless
        `blocks` names it, needed wherever rows are predicted, and never missing. One target only.
        An array can be given to `fit` as ``base_margin`` instead.
    monotonic_cst : dict of {str: int}, array-like of shape (n_features,) or None, default=None
        Columns of numbers along which predictions must not decrease (1) or not increase (-1), as in
        :class:`EasyTensorClassifier`. One target only. With ``"absolute_error"``, ``"huber"`` and
        ``"quantile"`` there are no trees then, because scikit-learn's do not follow constraints for
        these losses.
    remainder, categorical_features, trunk, trees, learning_rate, batch_size, max_epochs
        As in :class:`EasyTensorClassifier`.
    optimizer, weight_decay
        As in :class:`EasyTensorClassifier`.
    early_stopping_rounds
        As in :class:`EasyTensorClassifier`.
    eval_metric : str, callable, list of them or None, default=None
        Metrics that are computed on validation rows after each epoch, beside the loss: names of
        scikit-learn's scorers, LightGBM's and XGBoost's names such as ``"rmse"``, or functions of
        targets and predictions, both in units of `y`, that return a number or, as for LightGBM,
        ``(name, value, greater_is_better)``. A number is to be high if the function's name ends in
        ``_score``, and low otherwise.
    stopping_metric, validation_fraction
        As in :class:`EasyTensorClassifier`.
    warm_start, random_state, n_jobs, device
        As in :class:`EasyTensorClassifier`.
    verbose, callbacks, backend, checkpoint_dir, tracker, inference_engine
        As in :class:`EasyTensorClassifier`.

    Attributes
    ----------
    n_outputs_ : int
        Columns of `y`.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses and metrics by epoch, of network and trees together, in units of `y` (squared ones
        for squared error): ``{"training": {"squared_error": [...]}, "valid_0": {...}}``.
        With several targets they are means over these, whereas epochs are chosen by the mean over
        standardised targets.
    n_features_in_, feature_names_in_, blocks_, network_, best_iteration_, best_score_, n_iter_
        As in :class:`EasyTensorClassifier`.
    tree_weight_, fit_times_
        As in :class:`EasyTensorClassifier`.
    inference_engine_, inference_report_
        As in :class:`EasyTensorClassifier`.
    feature_importances_ : ndarray of shape (n_features,)
        Permutation importance of each column.

    See Also
    --------
    EasyTensorClassifier : The same for classes.

    Notes
    -----
    A column of `y` that is the same in all training rows is predicted exactly. Numbers in `y` may
    be up to 1e150 in size, whatever their unit, and ``loss="poisson"`` needs one above 0. A `y` of
    shape (n_samples, 1) is raveled with a :class:`~sklearn.exceptions.DataConversionWarning`.
    Predictions through an exponential are at most ``exp(88)`` times the mean of `y`.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_easytensor import EasyTensorRegressor
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> model = EasyTensorRegressor(random_state=0).fit(X, 3 * X[:, 0])
    >>> bool(model.score(X, 3 * X[:, 0]) > 0.95)
    True
    """

    _export_adapter = RegressorAdapter
    _loss_kind = "regressor"

    def __init__(
        self,
        blocks=None,
        *,
        loss="squared_error",
        quantile=None,
        remainder="auto",
        categorical_features=None,
        offset=None,
        monotonic_cst=None,
        trunk=None,
        trees="auto",
        learning_rate=2.4e-2,
        batch_size=None,
        max_epochs=None,
        optimizer="adamw",
        weight_decay=5e-2,
        early_stopping_rounds="auto",
        eval_metric=None,
        stopping_metric=None,
        validation_fraction=0.15,
        warm_start=False,
        random_state=None,
        n_jobs=None,
        device="auto",
        verbose=0,
        callbacks=None,
        backend="local",
        checkpoint_dir=None,
        tracker=None,
        inference_engine="torch",
    ):
        super().__init__(
            blocks,
            remainder=remainder,
            categorical_features=categorical_features,
            offset=offset,
            monotonic_cst=monotonic_cst,
            trunk=trunk,
            trees=trees,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_epochs=max_epochs,
            optimizer=optimizer,
            weight_decay=weight_decay,
            early_stopping_rounds=early_stopping_rounds,
            eval_metric=eval_metric,
            stopping_metric=stopping_metric,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            random_state=random_state,
            n_jobs=n_jobs,
            device=device,
            verbose=verbose,
            callbacks=callbacks,
            backend=backend,
            checkpoint_dir=checkpoint_dir,
            tracker=tracker,
            inference_engine=inference_engine,
        )
        self.loss = loss
        self.quantile = quantile

    @with_library_settings
    @of_stored_rows(Values("prediction"), check="_read")
    def predict(self, X, base_margin=None):
        """Return predictions.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to predict.
        base_margin : array-like of shape (n_samples,), optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
            With the precision of float32. Of several quantiles, of shape (n_samples, n_quantiles)
            and increasing in each row.
        """
        values = self._values(self._raw_predict(X, base_margin))
        return values[:, 0] if self._predicts_one else values

    @property
    def _predicts_one(self):
        """Whether predictions have one dimension."""
        return self._one_dimensional and self._head.criterion.n_predictions == 1

    def score(self, X, y, sample_weight=None):
        """Return R², or for several quantiles the mean fraction of pinball loss explained.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.

        Returns
        -------
        float
            :func:`~sklearn.metrics.r2_score`, or the mean of
            :func:`~sklearn.metrics.d2_pinball_score` over the quantiles. At most 1.

        Raises
        ------
        ValueError
            If a loss of your own makes several predictions for each row.
        """
        check_is_fitted(self)
        criterion = self._head.criterion
        if criterion.n_predictions == 1:
            return super().score(X, y, sample_weight)
        levels = getattr(criterion, "quantile", None)
        if levels is None:
            raise ValueError(
                f"{type(self).__name__}: score is not defined for loss={criterion.name!r}, which "
                f"makes {criterion.n_predictions} predictions for each row; give a scoring function"
            )
        scores = [
            d2_pinball_score(y, predicted, sample_weight=sample_weight, alpha=level)
            for predicted, level in zip(self.predict(X).T, levels, strict=True)
        ]
        return float(np.mean(scores))

    def _values(self, outputs):
        scaled = self._head.predict(outputs).numpy().astype(np.float64)
        scale, center = self._unscaling()
        return scaled * scale + center

    def _unscaling(self):
        """Return what the head's predictions are multiplied by, and what is added then."""
        # Models pickled by earlier versions have no such attribute.
        constant = getattr(self, "_constant_target", None)
        if constant is None:
            return self._target_scale, self._target_center
        varies = np.isnan(constant)
        scale = np.where(varies, self._target_scale, 0.0)
        return scale, np.where(varies, self._target_center, constant)

    def _raw_outputs(self, values, base):
        if self._head.log_link:
            base = base + np.log(self._target_scale)
        else:
            scale, center = self._unscaling()
            values, base = values * scale, base * scale + center
        return (values[..., 0], base[0]) if self._predicts_one else (values, base)

    # ------------------------------------------------------------------ target

    def _structure(self):
        return {
            **super()._structure(),
            "loss": describe_loss(self.loss),
            "quantile": repr(self.quantile),
        }

    def _loss(self):
        named = isinstance(self.loss, str) and self.loss == "quantile"
        parameters = {"quantile": self.quantile} if named else {}
        return resolve_loss(self.loss, "EasyTensorRegressor", self._loss_kind, **parameters)

    def _check_loss(self):
        super()._check_loss()
        if self.quantile is not None and not (
            isinstance(self.loss, str) and self.loss == "quantile"
        ):
            raise ValueError(
                f"EasyTensorRegressor: quantile={self.quantile!r} has no effect with "
                f"loss={describe_loss(self.loss)}; set loss='quantile', or leave quantile at None"
            )

    def _check_target(self, y):
        check_no_missing(y)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if y.dtype.kind in "Mm":
            raise ValueError(f"y must be numbers, got {y.dtype}")
        if y.dtype.kind not in "fiub":
            try:
                y = y.astype(np.float64)
            except (TypeError, ValueError) as error:
                found = first_text(y)
                raise ValueError(f"y must be numbers, got {found or y.dtype}") from error
            assert_all_finite(y, input_name="y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_size(y)
        y = y.astype(np.float64)
        self._loss().check_target(y)
        return y

    def _target_sample(self, y):
        # A chunk of a stored table may have no row of positive weight.
        return np.stack([y.min(axis=0), y.max(axis=0)]) if len(y) else y

    def _fit_target(self, y, classes=None):
        self._one_dimensional = y.ndim == 1
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        criterion = self._loss()
        if criterion.n_predictions > 1 and self.n_outputs_ > 1:
            raise ValueError(
                f"loss={describe_loss(self.loss)} makes {criterion.n_predictions} predictions for "
                f"each row, which needs a y of one column, got {self.n_outputs_}"
            )
        names = ["y"] if y.ndim == 1 else [f"column {i} of y" for i in range(y.shape[1])]
        columns = y.reshape(len(y), -1)
        criterion.check_range(columns.min(axis=0), columns.max(axis=0), names)
        return RegressionHead(criterion, self.n_outputs_)

    def _encode_target(self, y):
        y = y.reshape(len(y), -1)
        if y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {y.shape[1]} columns; {self.n_outputs_} were expected")
        return torch.from_numpy(y)

    def _validation_measures(self, outputs, target, weight):
        predicted, weight = self._values(outputs), weight.double().numpy()
        actual = target.double().numpy() * self._target_scale + self._target_center
        if self._head.criterion.n_predictions > 1:
            return self._several_measures(predicted, actual, weight)
        measures = {
            "R²": r2_score(actual, predicted, sample_weight=weight),
            "mean absolute error": mean_absolute_error(actual, predicted, sample_weight=weight),
            "root mean squared error": root_mean_squared_error(
                actual, predicted, sample_weight=weight
            ),
        }
        residuals = [
            residual_bins(*columns, weight)
            for columns in zip(predicted.T[:SHOWN_OUTPUTS], actual.T[:SHOWN_OUTPUTS], strict=True)
        ]
        return {"measures": measures, "residuals": residuals}

    def _several_measures(self, predicted, actual, weight):
        """Return how many targets are below each of several predictions of a row."""
        below = np.average(actual <= predicted, axis=0, weights=weight)
        levels = getattr(self._head.criterion, "quantile", range(len(below)))
        measures = {
            f"rows below prediction {level:g}": share
            for level, share in zip(levels, below, strict=True)
        }
        middle = predicted[:, predicted.shape[1] // 2]
        return {"measures": measures, "residuals": [residual_bins(middle, actual[:, 0], weight)]}

    def _decoded_target(self, target):
        y = target.double().numpy() * self._target_scale + self._target_center
        return y[:, 0] if self._one_dimensional else y

    def _scale_target(self, rows, resuming):
        low, high = target_range(rows)
        block, log_link = self._offset_block, self._head.log_link
        # Beside offsets a constant target is no constant to learn.
        constant = np.where((low == high) & (block is None), low, np.nan)
        if resuming:
            before = getattr(self, "_constant_target", None)
            constant = np.where(constant == before, constant, np.nan)
        # Rounding and dropout would keep a network from saying it exactly.
        self._constant_target = None if np.isnan(constant).all() else constant
        if resuming:
            return
        # Squares of very large or small numbers are not finite, or 0. Powers of two are exact.
        unit = power_of_two(np.maximum(-low, high))
        moments = merge_all(
            rows.map_chunks(partial(_moments, unit=unit, block=block, log_link=log_link))
        )
        # The mean of equal numbers may be rounded.
        mean = np.where(low < high, moments.mean[: len(unit)] * unit, low)
        if self._head.log_link:
            # Dividing by the mean starts the predictions at the right level.
            self._target_center = np.zeros_like(mean)
            self._target_scale = np.where(mean > 0, mean, 1.0)
            self._head.scale, self._head.center = self._target_scale, self._target_center
            if block is not None:
                self._head.offset_center = self._log_of_mean(moments.mean[1])
            return
        squares, varies = moments.squares, low < high
        if block is not None:
            # The spread of what offsets leave of the target, which is not that of rounding.
            squares = np.maximum(squares[2:], 1e-12 * squares[1:2])
            varies = True
        deviation = np.sqrt(squares / moments.weight) * unit
        self._target_center = mean
        self._target_scale = np.where((deviation > 0) & varies, deviation, 1.0)
        self._head.scale, self._head.center = self._target_scale, self._target_center
        if block is not None:
            # With its mean taken out, losses in units are what they are without offsets.
            self._head.offset_center = float(moments.mean[1] * unit[0])
            self._head.offset_scale = float(self._target_scale[0])

    def _log_of_mean(self, factor):
        """Return the logarithm of the mean of the exponentials of offsets, if it is finite."""
        if not np.isfinite(factor) or factor <= 0:
            raise ValueError(
                f"offset: the mean of exp({self._encoder._offset!r}) is {factor:g}; offsets for "
                f"loss={describe_loss(self.loss)} are logarithms, such as np.log(exposure)"
            )
        return float(np.log(factor))

    def _scaled(self, rows):
        with np.errstate(over="ignore"):
            target = (rows.target.numpy() - self._target_center) / self._target_scale
        return EncodedDataset(rows.frame, bounded_targets(torch.from_numpy(target)), rows.weight)


def _moments(rows, unit, block, log_link):
    """Return the moments of targets, and of offsets and what these leave of the targets."""
    target = rows.target.numpy() / unit
    if block is not None:
        offset = rows.frame[block]["values"].double().numpy()
        with np.errstate(over="ignore"):
            others = [np.exp(offset)] if log_link else [offset / unit, target - offset / unit]
        target = np.hstack([target, *others])
    with np.errstate(invalid="ignore"):
        return WeightedMoments.of(target, rows.weight.double().numpy())
