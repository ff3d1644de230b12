"""Several targets of different kinds, learned by one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import check_number
from sk_easytensor.estimators.base import BaseEasyTensor
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.stored import TaskValues, of_stored_rows
from sk_easytensor.estimators.targets.multi_task import CLASSES, NUMBERS, MultiTaskTarget
from sk_easytensor.export.adapters import MultiTaskAdapter
from sk_easytensor.inspection import GivenOutputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal

    import numpy as np
    import pandas as pd

    from sk_easytensor._utils.typing import (
        ArrayLike,
        BackendLike,
        BlockSpec,
        CallbackSpec,
        ColumnSelection,
        EngineName,
        MetricLike,
        OptimizerLike,
        PathLike,
        RandomStateLike,
        TableLike,
        TargetLike,
        Trunk,
    )
    from sk_easytensor.tracking import MLflowTracker
    from sk_easytensor.trees import BoostedTrees

__all__ = [
    "EasyTensorMultiTask",
]


LARGEST_WEIGHT = 10**15
"""Largest weight of a loss. Its products with losses are finite in single precision."""


@documented_like(EasyTensorClassifier)
class EasyTensorMultiTask(BaseEasyTensor):
    """One model for several targets of different kinds, such as a click and a rating.

    Blocks and trunk are shared; each task has its own head, loss and trees. The shared
    representation helps most with targets that are known in few rows.

    Parameters
    ----------
    tasks : dict of {str: str}, default=None
        Kind of each target, by the name of its column in `y`: ``"binary"``, ``"multiclass"``,
        ``"regression"``, or a loss of :class:`EasyTensorRegressor` such as ``"poisson"`` or
        ``"gamma"``.
    blocks
        As in :class:`EasyTensorClassifier`.
    loss_weights : dict of {str: float} or None, default=None
        Factor of the loss of each task; 1 for tasks that are not named. Losses are means over the
        rows in which the task is known, on standardised targets for numbers, so that equal weights
        suit most cases.
    remainder, categorical_features, trunk, trees, learning_rate, batch_size, max_epochs
        As in :class:`EasyTensorClassifier`.
    optimizer, weight_decay, early_stopping_rounds
        As in :class:`EasyTensorClassifier`.
    eval_metric : dict of {str: str, callable or list} or None, default=None
        Metrics of each task, as in :class:`EasyTensorClassifier`. Their names begin with that of
        the task: ``{"clicked": "auc"}`` is ``"clicked_auc"`` in ``evals_result_``.
    stopping_metric : str or None, default=None
        Metric that decides about early stopping, such as ``"clicked_auc"``, or ``"loss"``, the
        weighted sum of the losses. None for the first entry of `eval_metric`, or for ``"loss"``
        without any.
    validation_fraction, n_folds, warm_start, random_state, n_jobs, device
        As in :class:`EasyTensorClassifier`.
    verbose, callbacks, backend, checkpoint_dir, tracker, inference_engine
        As in :class:`EasyTensorClassifier`.

    Attributes
    ----------
    classes_ : dict of {str: ndarray}
        Class labels of each task that has classes.
    evals_result_ : dict of {str: dict of {str: list of float}}
        Losses and metrics by epoch, of network and trees together: the weighted sum of the losses
        as ``"loss"``, and the loss of each task in its units, such as ``"clicked_log_loss"``.
    tree_weight_ : dict of {str: float}
        Weight of the trees' outputs for each task, between 0 and 1.
    oof_prediction_ : dict of {str: ndarray}
        With `n_folds`, probabilities or numbers of each task, as in :class:`EasyTensorClassifier`.
    n_features_in_, feature_names_in_, blocks_, network_, best_iteration_, best_score_, n_iter_
        As in :class:`EasyTensorClassifier`.
    fit_times_, feature_importances_, importances_std_, inference_engine_, inference_report_
        As in :class:`EasyTensorClassifier`.

    See Also
    --------
    EasyTensorClassifier : Several yes/no labels are a multilabel target.
    EasyTensorRegressor : Several numbers under one loss.

    Notes
    -----
    A target may be missing in some rows (NaN or None): its loss leaves these rows out. The method
    is that of Caruana, "Multitask Learning" (1997).

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sk_easytensor import EasyTensorMultiTask
    >>> X = np.linspace(0, 1, 200)[:, None]
    >>> y = pd.DataFrame({"clicked": X[:, 0] > 0.5, "amount": 10 * X[:, 0] + 1})
    >>> tasks = {"clicked": "binary", "amount": "gamma"}
    >>> model = EasyTensorMultiTask(tasks, random_state=0).fit(X, y)
    >>> model.predict([[0.9]])["clicked"].tolist()
    [True]
    >>> model.predict_proba([[0.9]])["clicked"].shape
    (1, 2)
    """

    _export_adapter = MultiTaskAdapter

    def __init__(
        self,
        tasks: Mapping[str, str] | None = None,
        blocks: Sequence[BlockSpec] | None = None,
        *,
        loss_weights: Mapping[str, float] | None = None,
        remainder: Literal["auto", "drop"] = "auto",
        categorical_features: ColumnSelection | None = None,
        trunk: Trunk | None = None,
        trees: BoostedTrees | Literal["auto"] | None = "auto",
        learning_rate: float = 2.4e-2,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        optimizer: OptimizerLike = "adamw",
        weight_decay: float = 5e-2,
        early_stopping_rounds: int | Literal["auto"] | None = "auto",
        eval_metric: Mapping[str, MetricLike | Sequence[MetricLike]] | None = None,
        stopping_metric: str | None = None,
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
        self.tasks = tasks
        self.loss_weights = loss_weights

    # ------------------------------------------------------------------ parameters

    def _structure(self):
        weights = None if self.loss_weights is None else dict(self.loss_weights)
        return {**super()._structure(), "tasks": repr(self.tasks), "loss_weights": repr(weights)}

    def _check_parameters(self):
        owner = type(self).__name__
        kinds = [*CLASSES, *NUMBERS]
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise ValueError(
                f"{owner}: tasks must be a dictionary of columns of y and their kinds, such as "
                f"{{'clicked': 'binary', 'amount': 'gamma'}}, got {self.tasks!r}"
            )
        for name, kind in self.tasks.items():
            if not isinstance(name, str) or kind not in kinds:
                raise ValueError(
                    f"{owner}: tasks[{name!r}] must be one of {kinds}, and its name a string, got "
                    f"{kind!r}"
                )
        weights = {} if self.loss_weights is None else self.loss_weights
        if not isinstance(weights, Mapping) or set(weights) - set(self.tasks):
            raise ValueError(
                f"{owner}: loss_weights must be a dictionary of weights of tasks "
                f"({list(self.tasks)}), got {weights!r}"
            )
        for name, weight in weights.items():
            parameter = f"loss_weights[{name!r}]"
            check_number(owner, parameter, weight, low=0, high=LARGEST_WEIGHT, exclusive=True)
        super()._check_parameters()

    def _make_target(self):
        return MultiTaskTarget(self.tasks, self.loss_weights, type(self).__name__)

    # ------------------------------------------------------------------ predicting

    @with_library_settings
    @of_stored_rows(TaskValues("prediction"), check="_read")
    def predict(self, X: TableLike) -> pd.DataFrame | Any:
        """Return predictions of all tasks.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to predict.

        Returns
        -------
        pandas.DataFrame of shape (n_samples, n_tasks)
            A column for each task: labels, or numbers in units of the target.
        """
        outputs = self._raw_predict(X)
        return self._target.predict(outputs)

    def _predictions(self, outputs):
        predicted = self.predict(GivenOutputs(outputs))
        numbers = {name: predicted[name].to_numpy() for name in predicted}
        return {**numbers, **self.predict_proba(GivenOutputs(outputs))}

    @with_library_settings
    def predict_proba(self, X: TableLike) -> dict[str, np.ndarray]:
        """Return probabilities of the classes of the tasks that have classes.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows to classify.

        Returns
        -------
        dict of {str: ndarray of float64, shape (n_samples, n_classes)}
            Probabilities for each task, in the order of ``classes_[task]``.
        """
        outputs = self._raw_predict(X)
        return self._target.predict_proba(outputs)

    @with_library_settings
    def score(self, X: TableLike, y: TargetLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the mean score over the tasks: accuracy for classes, R² for numbers.

        Parameters
        ----------
        X : table-like of shape (n_samples, n_features)
            Rows.
        y : DataFrame, dict or array-like of shape (n_samples, n_tasks)
            Targets. The score of a task leaves out rows in which it is missing.
        sample_weight : array-like of shape (n_samples,), optional
            Row weights.

        Returns
        -------
        float
            Mean of the scores, at most 1.

        Raises
        ------
        ValueError
            If a task is missing in all rows.
        """
        outputs = self._raw_predict(X)
        return self._target.score(outputs, y, sample_weight)
