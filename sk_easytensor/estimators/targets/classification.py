"""Targets of classifiers: classes, or several binary labels."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array, column_or_1d

from sk_easytensor._utils.validation import check_number, shortened
from sk_easytensor.data.summaries import power_of_two
from sk_easytensor.estimators.targets.base import Target
from sk_easytensor.estimators.targets.checks import (
    check_classes,
    check_flags,
    check_labels,
    check_no_missing,
    distinct_labels,
    is_text,
    labels_like,
    plain_labels,
)
from sk_easytensor.inspection.sample import calibration
from sk_easytensor.losses import LogLoss
from sk_easytensor.networks.heads import BinaryHead, MulticlassHead, MultilabelHead
from sk_easytensor.report.report import summarize_target

__all__ = [
    "ClassificationTarget",
]


ROC_POINTS = 25
"""Number of points of a ROC curve, at most."""


def frequency_loss(target, weight):
    """Return the log loss of predicting the frequency of each class, which a model should beat."""
    totals = np.bincount(target.astype(np.int64).ravel(), weights=weight)
    frequencies = totals[totals > 0] / totals.sum()
    return max(0.0, float(-(frequencies * np.log(frequencies)).sum()))


def roc_points(happened, probabilities, weight):
    """Return false and true positive rates, an ndarray of shape (n_points, 2)."""
    false, true, _ = roc_curve(
        happened, probabilities, sample_weight=weight, drop_intermediate=False
    )
    # Evenly along the curve.
    along = np.linspace(0, 2, ROC_POINTS)
    points = np.unique(np.searchsorted(false + true, along).clip(max=len(true) - 1))
    return np.column_stack([false, true])[points]


def at_thresholds(happened, probabilities, weight):
    """Return what decisions at thresholds of the probability would be.

    Parameters
    ----------
    happened : ndarray of bool, shape (n,)
        Whether the event happened.
    probabilities : ndarray of float, shape (n,)
        Predicted probabilities.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (9, 5)
        Threshold, fraction of the rows at or above it, precision, recall and F1 score, for
        thresholds from 0.1 to 0.9. Precision is NaN where no row is above.
    """
    rows = []
    for threshold in np.arange(1, 10) / 10:
        decided = probabilities >= threshold
        n_above = weight[decided].sum()
        n_true = weight[decided & happened].sum()
        precision = n_true / n_above if n_above > 0 else np.nan
        recall = n_true / weight[happened].sum()
        f1 = 2 * n_true / (n_above + weight[happened].sum())
        rows.append((threshold, n_above / weight.sum(), precision, recall, f1))
    return np.array(rows)


class ClassificationTarget(ClassifierMixin, Target):
    """Target of one class for each row, or of several binary labels.

    Parameters
    ----------
    loss : Loss
        Loss that training minimizes.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as in :class:`~sk_easytensor.EasyTensorClassifier`.
    classes : array-like or None, default=None
        All classes that occur in any call; None for those of the training rows.
    owner : str, default="EasyTensorClassifier"
        Class name of the estimator, for errors.

    Attributes
    ----------
    classes_ : ndarray
        Class labels, sorted; ``arange(n_labels)`` for several labels.
    class_weights_ : ndarray of float64, shape (n_classes,), or None
        Factor of the weights of the rows of each class; None for equal factors.
    """

    def __init__(self, loss, class_weight=None, classes=None, owner="EasyTensorClassifier"):
        super().__init__(owner)
        self.loss = loss
        self.class_weight = class_weight
        self.classes = classes

    def check(self, y):
        check_labels(y)
        y = plain_labels(y)
        check_no_missing(y)
        if is_text(y):
            return column_or_1d(y)
        shape = getattr(y, "shape", ())
        if len(shape) == 2 and shape[1] == 0:
            raise ValueError(f"y has the shape {shape}; it must have at least one column")
        if len(shape) == 2 and shape[1] > 1 and not issparse(y):
            check_flags(np.asarray(y))
        # NaN and infinity raise an error, but NumPy would warn about them first.
        with np.errstate(invalid="ignore"):
            check_classification_targets(y)
            kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind.startswith("multilabel"):
            y = check_array(y, accept_sparse="csr", dtype=None, input_name="y")
            values = y.data if issparse(y) else y
            wrong = values[(values != 0) & (values != 1)]
            if len(wrong):
                raise ValueError(
                    f"y has several columns and holds {wrong[0]}; each of several labels must "
                    "be 0 or 1, or False or True"
                )
            return y
        if kind == "multiclass-multioutput":
            raise ValueError(
                "y has several columns with more than two classes; each of several labels must "
                "be 0 or 1"
            )
        return column_or_1d(y, warn=True)

    def sample(self, y):
        if np.ndim(y) == 2:
            return y[:1].toarray() if hasattr(y, "toarray") else y[:1]
        return distinct_labels(y)

    def fit(self, sample):
        self.class_weights_ = None
        if np.ndim(sample) == 2:
            self.classes_ = np.arange(sample.shape[1])
            head = MultilabelHead(sample.shape[1])
        else:
            labels = sample if self.classes is None else plain_labels(self.classes)
            self.classes_ = np.unique(labels)
            check_classes(self.classes_)
            n_classes = len(self.classes_)
            if n_classes == 1:
                raise ValueError(
                    "Classifier can't train when only one class is present: y (where "
                    f"sample_weight is positive) holds only {self.classes_.tolist()[0]!r}; at "
                    "least two classes are needed"
                )
            head = BinaryHead() if n_classes == 2 else MulticlassHead(n_classes)
        self.loss.check_classes(head.kind, len(self.classes_))
        self.head_ = head.with_loss(self.loss)
        return self

    def resume(self, fitted):
        if self.classes is not None:
            classes = np.unique(np.asarray(plain_labels(self.classes)))
            if not np.array_equal(classes, fitted.classes_):
                raise ValueError(
                    f"{self.owner}: classes={classes.tolist()[:20]} differs from the first call "
                    f"of partial_fit, which had {fitted.classes_.tolist()[:20]}"
                )
        return super().resume(fitted)

    def fitted_attributes(self):
        return {"classes_": self.classes_}

    def summary(self, y):
        return summarize_target(y, self.classes_)

    def encode(self, y):
        if self.head_.kind == "multilabel":
            y = y.toarray() if hasattr(y, "toarray") else y
            if np.ndim(y) != 2 or y.shape[1] != len(self.classes_):
                raise ValueError(f"y must have {len(self.classes_)} columns, one for each label")
            return torch.from_numpy(np.asarray(y, dtype=np.float32))
        if np.ndim(y) == 2:
            raise ValueError("y has several columns, but the classifier was fitted on one")
        y = labels_like(self.classes_, y)
        codes = np.searchsorted(self.classes_, y)
        codes[codes == len(self.classes_)] = 0
        unseen = self.classes_[codes] != y
        if unseen.any():
            raise ValueError(
                f"y holds labels that were not seen before: {np.unique(y[unseen]).tolist()[:5]}; "
                f"the classes are {self.classes_.tolist()[:20]}"
            )
        return self.head_.encoded(torch.from_numpy(codes))

    # ------------------------------------------------------------------ weights

    def learn_class_weights(self, dataset):
        self.class_weights_ = None
        if self.class_weight is None:
            return
        if self.head_.kind == "multilabel":
            raise ValueError(
                "class_weight is not defined for multilabel targets; use sample_weight"
            )
        if isinstance(self.class_weight, dict):
            for label, weight in self.class_weight.items():
                check_number(self.owner, f"class_weight[{label!r}]", weight, low=0)
        counts = sum(dataset.map_chunks(self._count))
        present = counts > 0
        labels = self.classes_[present]
        if self.class_weight == "balanced":
            weights = counts.sum() / (len(labels) * counts[present])
        else:
            weights = self._weights_of(labels.tolist())
        if not (weights > 0).any():
            raise ValueError(f"class_weight is zero for every row: {self.class_weight}")
        self.class_weights_ = np.ones(len(self.classes_))
        # Only ratios matter. Scaled by a power of two, products with row weights stay finite.
        self.class_weights_[present] = weights / power_of_two(np.max(weights))

    def _weights_of(self, classes):
        """Return the weights of classes in the dictionary `class_weight`, 1 for other classes."""
        weights = self.class_weight
        if not isinstance(weights, dict):
            raise ValueError(
                f"{self.owner}: class_weight must be a dictionary, 'balanced' or None, got "
                f"{shortened(weights)}"
            )
        unknown = [label for label in weights if label not in classes]
        # The rows of a cross-validation fold may lack a class that has a weight.
        if unknown and not set(classes) <= set(weights):
            raise ValueError(
                f"{self.owner}: class_weight has keys that are no class: {shortened(unknown)}; "
                f"the classes are {shortened(classes)}"
            )
        return np.array([weights.get(label, 1.0) for label in classes], dtype=np.float64)

    def _count(self, y):
        """Return the number of checked targets of each class, int64 of shape (n_classes,)."""
        codes = self.encode(y).numpy().astype(np.int64)
        return np.bincount(codes, minlength=len(self.classes_))

    def class_weights(self, target):
        if self.class_weights_ is None:
            return 1.0
        return self.class_weights_[target.numpy().astype(np.int64)]

    def strata(self, target):
        return target.numpy().astype(np.int64) if target.ndim == 1 else super().strata(target)

    # ------------------------------------------------------------------ evaluation

    def decode(self, target):
        return target.numpy().astype(np.int64)

    def numbered(self):
        numbered = copy(self)
        numbered.classes_ = np.arange(len(self.classes_))
        return numbered

    def validation_measures(self, outputs, target, weight):
        losses = self.head_.with_loss(LogLoss()).loss(outputs[:, None], target)[:, 0]
        losses = losses.double().numpy()
        probabilities = self.predict_proba(outputs)
        target, weight = target.numpy(), weight.double().numpy()
        hits = self.head_.decide(probabilities) == target
        hits_all = hits.reshape(len(hits), -1).all(axis=1)
        measures = {
            "log loss": np.average(losses, weights=weight),
            "accuracy": np.average(hits_all, weights=weight),
        }
        if self.head_.kind == "multilabel":
            of, happened = "the probability of each label", target == 1
            weight = np.repeat(weight, target.shape[1])
        elif self.head_.kind == "binary":
            of, happened = f"the probability of {self.classes_.tolist()[1]!r}", target == 1
            probabilities = probabilities[:, 1]
            known = weight > 0
            if len(np.unique(happened[known])) == 2:
                rows = happened[known], probabilities[known]
                measures |= {
                    "ROC AUC": roc_auc_score(*rows, sample_weight=weight[known]),
                    "average precision": average_precision_score(
                        *rows, sample_weight=weight[known]
                    ),
                }
        else:
            of, happened = "the probability of the class predicted", hits
            probabilities = probabilities.max(axis=1)
        if self.head_.kind != "multilabel":
            measures["log loss of the frequencies of classes"] = frequency_loss(target, weight)
        table = calibration(probabilities.ravel(), happened.ravel(), weight)
        results = {"measures": measures, "of": of, "calibration": table}
        if "ROC AUC" in measures:
            results["roc"] = roc_points(happened, probabilities, weight)
            results["thresholds"] = at_thresholds(happened, probabilities, weight)
        return results

    # ------------------------------------------------------------------ predictions

    def predict(self, outputs):
        """Return the most probable class of each row, or 0 or 1 for each of several labels."""
        decided = self.head_.decide(self.predict_proba(outputs))
        return decided if decided.ndim == 2 else self.classes_[decided]

    def predict_proba(self, outputs):
        """Return probabilities, an ndarray of float64 of shape (n_rows, n_classes)."""
        # In double precision, because in single precision probabilities near 1 round to 1.
        return self.head_.predict(outputs.double()).numpy()

    def predict_log_proba(self, outputs):
        """Return logarithms of probabilities, finite where :meth:`predict_proba` rounds to 0."""
        return self.head_.log_predict(outputs.double()).numpy()

    def decision_function(self, outputs):
        """Return log-odds, or log-probabilities for three classes or more."""
        values = outputs.numpy()
        return values[:, 0] if self.head_.single_output else values

    def explained(self, values, base):
        return (values[..., 0], base[0]) if self.head_.single_output else (values, base)
