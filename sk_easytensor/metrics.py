"""Metrics of validation rows, by their names in scikit-learn, LightGBM and XGBoost."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.metrics import get_scorer, get_scorer_names

from sk_easytensor.losses import LogLoss

__all__ = [
    "Metric",
    "MetricScores",
    "resolve_metrics",
    "resolve_stopping_metric",
]


LOSS_NAMES = frozenset(
    ["log_loss", "logloss", "binary_logloss", "multi_logloss", "mlogloss", "cross_entropy"]
)
"""Names of log loss, the default loss of classifiers."""

ALIASES = {
    "acc": "accuracy",
    "aucpr": "average_precision",
    "error": "accuracy",
    "binary_error": "accuracy",
    "multi_error": "accuracy",
    "merror": "accuracy",
    "l1": "neg_mean_absolute_error",
    "mae": "neg_mean_absolute_error",
    "mean_absolute_error": "neg_mean_absolute_error",
    "l2": "neg_mean_squared_error",
    "mse": "neg_mean_squared_error",
    "mean_squared_error": "neg_mean_squared_error",
    "rmse": "neg_root_mean_squared_error",
    "l2_root": "neg_root_mean_squared_error",
    "root_mean_squared_error": "neg_root_mean_squared_error",
    "rmsle": "neg_root_mean_squared_log_error",
    "mape": "neg_mean_absolute_percentage_error",
    "mean_absolute_percentage_error": "neg_mean_absolute_percentage_error",
}
"""Names of LightGBM, XGBoost and others, with the scorers of scikit-learn."""

ERRORS = frozenset(["error", "binary_error", "multi_error", "merror"])
"""Names of one minus the accuracy."""


@dataclass
class Metric:
    """A metric that is computed on validation rows after each epoch.

    Attributes
    ----------
    name : str
        Name in ``evals_result_``.
    function : callable
        Function of target, outputs, true values and weights that returns a number, or a tuple of
        name, number and whether greater is better.
    greater_is_better : bool
        Whether a greater value is better.
    entry : object
        Entry of ``eval_metric``; None for a loss that is always reported.
    """

    name: str
    function: Callable
    greater_is_better: bool
    entry: object = None

    n_smoothed = 1
    """Number of last epochs whose mean decides about early stopping."""

    def __call__(self, target, outputs, y, weight):
        """Return the metric as a float.

        Parameters
        ----------
        target : Target
            Fitted target, which predicts from outputs. Its classes are 0, 1, 2 and so on.
        outputs : torch.Tensor of shape (n_rows, out_features)
            Outputs of the model.
        y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
            Targets: indices of classes, or numbers in their units.
        weight : ndarray of shape (n_rows,) or None
            Row weights; None for equal weights.
        """
        value = self.function(target, outputs, y, weight)
        if isinstance(value, tuple):
            # A function for LightGBM returns name, value, and whether greater is better.
            self.name, value, self.greater_is_better = value
        return float(value)


def resolve_metrics(eval_metric, target):
    """Return the metrics that the parameter ``eval_metric`` stands for.

    Parameters
    ----------
    eval_metric : str, callable, list of them, or None
        Value of the parameter.
    target : Target
        Target of the estimator, which also has the class name used in error messages.

    Returns
    -------
    list of Metric

    Raises
    ------
    ValueError
        If an entry is not a metric, or a name occurs twice. The message has the entry.
    """
    if eval_metric is None:
        return []
    entries = eval_metric if isinstance(eval_metric, (list, tuple)) else [eval_metric]
    metrics = [_metric(entry, target) for entry in entries]
    names = [metric.name for metric in metrics]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{target.owner}: eval_metric names {duplicates} more than once")
    return metrics


def resolve_stopping_metric(stopping_metric, metrics, loss_name, owner):
    """Return the metric by which early stopping chooses the epoch, or None for the loss.

    Parameters
    ----------
    stopping_metric : str, callable or None
        Value of the parameter; None for the first metric, or for the loss if there is none.
    metrics : list of Metric
        Metrics of ``eval_metric``.
    loss_name : str
        Name of the loss.
    owner : str
        Class name of the estimator, used in error messages.

    Returns
    -------
    Metric or None

    Raises
    ------
    ValueError
        If the value is neither a metric of `metrics` nor the loss.
    """
    if stopping_metric is None:
        return metrics[0] if metrics else None
    for metric in metrics:
        if stopping_metric is metric.entry or stopping_metric == metric.name:
            return metric
    if isinstance(stopping_metric, str) and stopping_metric in ("loss", loss_name):
        return None
    names = ["loss", *[metric.name for metric in metrics]]
    raise ValueError(
        f"{owner}: stopping_metric must be one of {names}, 'loss' or an entry of eval_metric, got "
        f"{stopping_metric!r}"
    )


def _metric(entry, target):
    owner = target.owner
    if callable(entry):
        name = getattr(entry, "__name__", type(entry).__name__)
        # In sklearn.metrics, greater is better for scores, and less for errors and losses.
        return Metric(name, MetricFunction(entry), name.endswith("_score"), entry)
    if not isinstance(entry, str):
        raise ValueError(
            f"{owner}: eval_metric must be a name, a callable or a list of them, got {entry!r}"
        )
    if entry in LOSS_NAMES and is_classifier(target):
        return Metric(entry, log_loss, False, entry)
    if entry == "auc":
        return Metric(entry, area_under_curve, True, entry)
    scorer = ALIASES.get(entry, entry)
    if scorer not in get_scorer_names():
        raise ValueError(
            f"{owner}: eval_metric {entry!r} is unknown; pass a name of "
            f"sklearn.metrics.get_scorer_names(), one of {sorted(['auc', *LOSS_NAMES, *ALIASES])}, "
            "or a function of targets and predictions"
        )
    # Scorers of scikit-learn negate errors, so that greater is better. The aliases do not.
    sign = -1 if entry != scorer and scorer.startswith("neg_") else 1
    if entry in ERRORS:
        return Metric(entry, Scorer(scorer, -1, 1.0), False, entry)
    return Metric(entry, Scorer(scorer, sign, 0.0), sign > 0, entry)


@dataclass
class Scorer:
    """Scorer of scikit-learn, whose score is multiplied by a factor and added to a constant."""

    name: str
    factor: float
    constant: float

    def __call__(self, target, outputs, y, weight):
        """Return the score."""
        weights = {} if weight is None else {"sample_weight": weight}
        score = get_scorer(self.name)(target, outputs, y, **weights)
        return self.constant + self.factor * score


@dataclass
class MetricFunction:
    """A user's function of targets, predictions and, if it accepts them, weights."""

    function: Callable

    def __call__(self, target, outputs, y, weight):
        """Return the result of the function."""
        if is_classifier(target):
            predicted = target.predict_proba(outputs)
            if y.ndim == 1 and predicted.shape[1] == 2:
                predicted = predicted[:, 1]
        else:
            predicted = target.predict(outputs)
        if weight is None:
            return self.function(y, predicted)
        names = list(inspect.signature(self.function).parameters)
        if "sample_weight" in names:
            return self.function(y, predicted, sample_weight=weight)
        if len(names) > 2 and names[2] in ("weight", "w"):
            return self.function(y, predicted, weight)
        raise TypeError("it accepts no sample_weight, but the rows have weights")


def log_loss(target, outputs, y, weight):
    """Return the log loss of a classifier, which may be trained with another loss."""
    head = target.head_.with_loss(LogLoss())
    codes = torch.from_numpy(y)
    codes = codes if outputs.shape[1] > 1 and y.ndim == 1 else codes.to(outputs.dtype)
    return np.average(head.loss(outputs[:, None], codes)[:, 0].double().numpy(), weights=weight)


def area_under_curve(target, outputs, y, weight):
    """Return the area under the ROC curve, averaged over one-vs-rest for several classes."""
    several = y.ndim == 1 and outputs.shape[1] > 1
    return Scorer("roc_auc_ovr" if several else "roc_auc", 1.0, 0.0)(target, outputs, y, weight)


class MetricScores:
    """Computes metrics of a model from the outputs of its network and trees.

    Parameters
    ----------
    target : Target
        Fitted target, which predicts from outputs.
    metrics : list of Metric
        Metrics to compute.
    """

    def __init__(self, target, metrics):
        # Targets that are evaluated are numbers of classes.
        self.target = target.numbered()
        self.metrics = metrics

    def __call__(self, outputs, target, weight):
        """Return the metrics by name.

        Parameters
        ----------
        outputs : torch.Tensor of shape (n_rows, out_features)
            Outputs of the model.
        target : torch.Tensor
            Targets in the form of the head.
        weight : torch.Tensor of shape (n_rows,)
            Row weights.

        Returns
        -------
        dict of {str: float}

        Raises
        ------
        ValueError
            If a metric cannot be computed. The message names the metric.
        """
        y = self.target.decode(target)
        weight = weight.numpy()
        weight = None if (weight == weight[0]).all() else weight
        values = {}
        for metric in self.metrics:
            try:
                value = metric(self.target, outputs, y, weight)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"eval_metric {metric.name!r} cannot be computed on the validation rows: "
                    f"{error}"
                ) from error
            values[metric.name] = value
        return values
