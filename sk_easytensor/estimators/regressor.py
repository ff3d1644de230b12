"""Regression on table rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import d2_pinball_score
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor.estimators.base import BaseEasyTensor
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.stored import Values, of_stored_rows
from sk_easytensor.estimators.targets.regression import RegressionTarget
from sk_easytensor.export.adapters import RegressorAdapter
from sk_easytensor.losses import describe_loss, resolve_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from sk_easytensor._utils.typing import (
        ArrayLike,
        BackendLike,
        BlockSpec,
        CallbackSpec,
        ColumnSelection,
        EngineName,
        LossLike,
        MetricLike,
        MonotonicConstraints,
        OptimizerLike,
        PathLike,
        Predictions,
        RandomStateLike,
        TableLike,
        TargetLike,
        Trunk,
    )
    from sk_easytensor.tracking import MLflowTracker
    from sk_easytensor.trees import BoostedTrees

__all__ = [
    "EasyTensorRegressor",
]


@documented_like(EasyTensorClassifier)
class EasyTensorRegressor(RegressorMixin, BaseEasyTensor):
    """Regressor for tables of numbers, categories, dates, texts and vectors.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Name, block and columns of each block, as in
        :class:`~sklearn.compose.ColumnTransformer`. For a sparse `X`, names and positions are those
        of the columns of the matrix, as in :class:`~sk_easytensor.TableEncoder`. None chooses a
        block for each column by its type.
    loss : str, Loss, torch.nn.Module or callable, default="squared_error"
        Loss that training minimizes: ``"squared_error"``, ``"absolute_error"``, ``"huber"``,
        ``"quantile"``, ``"expectile"``, ``"poisson"``, ``"gamma"`` or ``"tweedie"``; a loss of
        :mod:`sk_easytensor.losses` with its parameters such as ``Tweedie(power=1.3)``; or a loss of
        your own. ``"poisson"``, ``"gamma"`` and ``"tweedie"`` are for targets that are not negative
        (gamma: positive), and predictions are exponentials of raw outputs. ``"huber"`` changes from
        squared to absolute error at one standard deviation of the target. A callable takes raw
        outputs, which are the predictions, and targets, both in units of `y` and of shape (n,), or
        (n, n_outputs) for several columns. It returns a loss for each row, or a mean, which is then
        computed for each row alone, and is checked on a few rows before training. Boosted trees are
        not used with a callable or with a loss whose ``tree_loss`` is None, because they do not
        support it.
    quantile : float, list of float or None, default=None
        Quantile that ``loss="quantile"`` estimates, between 0 and 1. With a list of several
        increasing numbers, `predict` returns a column for each, and these never cross; `y` must
        have one column then. Must be None with other losses.
    offset : str, int or None, default=None
        Name or position of a column of `X` whose numbers are added to the raw output: in units of
        `y`, or, with ``loss="poisson"`` and ``"gamma"``, to the logarithm of the mean, so that a
        column with the logarithm of the exposure makes the model learn a rate. The column is not a
        feature unless `blocks` names it. It is required wherever rows are predicted, and must not
        have missing values. Offsets are for a single target only. An array can be given to `fit` as
        ``base_margin`` instead.
    monotonic_cst : dict of {str: int}, array-like of shape (n_features,) or None, default=None
        Columns of numbers along which predictions must not decrease (1) or not increase (-1), as in
        :class:`EasyTensorClassifier`. Constraints are for a single target only. With
        ``"absolute_error"``, ``"huber"`` and ``"quantile"`` there are no trees then, because
        scikit-learn's trees do not follow constraints for these losses.
    remainder, categorical_features, trunk, trees, linear, learning_rate, batch_size, max_epochs
        As in :class:`EasyTensorClassifier`.
    optimizer, weight_decay
        As in :class:`EasyTensorClassifier`.
    early_stopping_rounds
        As in :class:`EasyTensorClassifier`.
    eval_metric : str, callable, list of them or None, default=None
        Metrics that are computed on validation rows after each epoch, beside the loss: names of
        scikit-learn's scorers, LightGBM's and XGBoost's names such as ``"rmse"``, or functions of
        targets and predictions, both in units of `y`, that return a number or, as for LightGBM,
        ``(name, value, greater_is_better)``. A higher number is better if the function's name ends
        in ``_score``; otherwise a lower one is.
    stopping_metric, validation_fraction, n_folds
        As in :class:`EasyTensorClassifier`.
    warm_start, random_state, n_jobs, device
        As in :class:`EasyTensorClassifier`.
    verbose, callbacks, backend, checkpoint_dir, tracker, inference_engine
        As in :class:`EasyTensorClassifier`.

    Attributes
    ----------
    n_outputs_ : int
        Number of columns of `y`.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses and metrics by epoch, of network and trees together, in units of `y` (squared ones
        for squared error): ``{"training": {"squared_error": [...]}, "valid_0": {...}}``.
        With several targets they are means over these, whereas epochs are chosen by the mean over
        standardised targets.
    n_features_in_, feature_names_in_, blocks_, network_, best_iteration_, best_score_, n_iter_
        As in :class:`EasyTensorClassifier`.
    tree_weight_, linear_weight_, fit_times_
        As in :class:`EasyTensorClassifier`.
    oof_prediction_ : ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
        With `n_folds`, prediction of each row of `X` by the models of the fold that held it out;
        NaN for rows of weight zero. Not available if rows are in other processes, as on Ray.
    inference_engine_, inference_report_
        As in :class:`EasyTensorClassifier`.
    feature_importances_ : ndarray of shape (n_features,)
        Permutation importance of each column, scaled to sum to 1; 0 within one standard error.
    importances_std_ : ndarray of shape (n_features,)
        Standard error of each importance.

    See Also
    --------
    EasyTensorClassifier : Classifier with the same parameters.

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

    def __init__(
        self,
        blocks: Sequence[BlockSpec] | None = None,
        *,
        loss: LossLike = "squared_error",
        quantile: float | Sequence[float] | None = None,
        remainder: Literal["auto", "drop"] = "auto",
        categorical_features: ColumnSelection | None = None,
        offset: str | int | None = None,
        monotonic_cst: MonotonicConstraints | None = None,
        trunk: Trunk | None = None,
        trees: BoostedTrees | Literal["auto"] | None = "auto",
        linear: Literal["auto"] | None = "auto",
        learning_rate: float = 2.4e-2,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        optimizer: OptimizerLike = "adamw",
        weight_decay: float = 5e-2,
        early_stopping_rounds: int | Literal["auto"] | None = "auto",
        eval_metric: MetricLike | Sequence[MetricLike] | None = None,
        stopping_metric: MetricLike | None = None,
        validation_fraction: float | None = 0.15,
        n_folds: int | Literal["auto"] | None = "auto",
        warm_start: bool = False,
        random_state: RandomStateLike | None = None,
        n_jobs: int | None = None,
        device: str = "auto",
        verbose: int = 0,
        callbacks: Sequence[CallbackSpec] | None = None,
        backend: BackendLike = "local",
        checkpoint_dir: PathLike | None = None,
        tracker: MLflowTracker | Literal["mlflow"] | None = None,
        inference_engine: EngineName = "torch",
    ) -> None:
        super().__init__(
            blocks,
            remainder=remainder,
            categorical_features=categorical_features,
            offset=offset,
            monotonic_cst=monotonic_cst,
            trunk=trunk,
            trees=trees,
            linear=linear,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_epochs=max_epochs,
            optimizer=optimizer,
            weight_decay=weight_decay,
            early_stopping_rounds=early_stopping_rounds,
            eval_metric=eval_metric,
            stopping_metric=stopping_metric,
            validation_fraction=validation_fraction,
            n_folds=n_folds,
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
    def predict(self, X: TableLike, base_margin: ArrayLike | None = None) -> Predictions:
        """Return predictions.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to predict.
        base_margin : array-like of shape (n_samples,) or number, optional
            Offsets of the rows, if `fit` was given ``base_margin``.

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
            Predictions in units of `y`, with the precision of float32. For several quantiles the
            shape is (n_samples, n_quantiles), and numbers increase along each row.
        """
        outputs = self._raw_predict(X, base_margin)
        return self._target.predict(outputs)

    def score(self, X: TableLike, y: TargetLike, sample_weight: ArrayLike | None = None) -> float:
        """Return R², or for several quantiles the mean fraction of pinball loss explained.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets of the rows.
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
        NotFittedError
            If the estimator is not fitted.
        """
        check_is_fitted(self)
        criterion = self._target.loss
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

    def _structure(self):
        return {
            **super()._structure(),
            "loss": describe_loss(self.loss),
            "quantile": repr(self.quantile),
        }

    def _make_target(self):
        owner = type(self).__name__
        is_quantile = isinstance(self.loss, str) and self.loss == "quantile"
        params = {"quantile": self.quantile} if is_quantile else {}
        loss = resolve_loss(self.loss, owner, "regressor", **params)
        if self.quantile is not None and not is_quantile:
            raise ValueError(
                f"{owner}: quantile={self.quantile!r} has no effect with "
                f"loss={describe_loss(self.loss)}; set loss='quantile', or leave quantile at None"
            )
        return RegressionTarget(loss, owner)
