"""Targets of pairs: implicit choices, one of two classes, or numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.utils import check_array, column_or_1d

from sk_easytensor.data.summaries import power_of_two
from sk_easytensor.data.validation import errors_mention, errors_name
from sk_easytensor.estimators.targets.base import Target, bounded_targets, target_range
from sk_easytensor.estimators.targets.checks import (
    check_classes,
    check_labels,
    check_no_missing,
    check_size,
    labels_like,
    plain_labels,
)
from sk_easytensor.networks.heads import BinaryHead, RegressionHead, SampledSoftmaxHead

__all__ = [
    "PairTarget",
]


FEW_VALUES = 10
"""Number of distinct values of a chunk from which the kind of a target is inferred."""


class PairTarget(Target):
    """Target of pairs: an implicit choice of the user, one of two classes, or a number.

    Parameters
    ----------
    owner : str, default="EasyTensorTwoTower"
        Class name of the estimator, for errors.

    Attributes
    ----------
    classes_ : ndarray or None
        The two classes, sorted; None for other targets.
    center_, scale_ : float
        Mean that is subtracted from numbers in training, and standard deviation that they are then
        divided by; 0.0 and 1.0 for other targets.
    """

    def __init__(self, owner="EasyTensorTwoTower"):
        super().__init__(owner)

    def check(self, y):
        """Return a valid target as an array. A fitted target checks that its kind is the same.

        Returns
        -------
        ndarray of shape (n_pairs,), or None
            None if `y` is None: every pair is an item that the user chose.
        """
        if not hasattr(self, "head_"):
            return self._values(y)
        if self.is_implicit:
            if y is not None:
                raise ValueError(f"{self.owner} was fitted without y; leave y out")
            return None
        if y is None:
            raise ValueError(f"{self.owner} was fitted with y and requires y to be passed")
        y = self._values(y)
        if self.classes_ is None:
            if y.dtype.kind not in "fiu":
                raise ValueError(f"{self.owner}: y must be numbers, as in fit, got {y.dtype}")
            return y
        y = labels_like(self.classes_, y)
        known = np.isin(y, self.classes_)
        if not known.all():
            raise ValueError(
                f"{self.owner}: y holds {y[~known][0]!r}; classes are {self.classes_.tolist()}"
            )
        return y

    def _values(self, y):
        """Return `y` as an array of one dimension without missing values, or None if it is None."""
        if y is None:
            return None
        check_labels(y)
        y = plain_labels(y)
        check_no_missing(y)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.ndim != 1:
            raise ValueError(f"{self.owner}: y must be 1-D, got shape {y.shape}")
        check_size(y)
        return y

    def sample(self, y):
        with errors_mention("y"):
            return np.unique(y)[:FEW_VALUES]

    def fit(self, sample):
        """Learn the kind of the target; the sample is None if `y` is."""
        self.classes_, self.center_, self.scale_ = None, 0.0, 1.0
        if sample is None:
            self.head_ = SampledSoftmaxHead()
            return self
        values = np.unique(sample)
        if len(values) == 1:
            raise ValueError(
                f"{self.owner}: y holds nothing but {values.tolist()[0]!r}. Leave it out if every "
                "row is an item that the user chose"
            )
        if values.dtype.kind not in "OUSb" and set(values.tolist()) != {0, 1}:
            self.head_ = RegressionHead()
            return self
        if len(values) != 2:
            raise ValueError(f"{self.owner}: y must have two classes or numbers, got {values!r}")
        with errors_name(self.owner):
            check_classes(values)
        self.head_, self.classes_ = BinaryHead(), values
        return self

    @property
    def is_implicit(self):
        """Whether there is no `y`, and every pair is an item that the user chose."""
        return self.head_.kind == "choice"

    def fitted_attributes(self):
        return {} if self.classes_ is None else {"classes_": self.classes_}

    def encode(self, y):
        if self.is_implicit:
            return torch.zeros(len(y))
        if self.classes_ is not None:
            return torch.from_numpy(y == self.classes_[1]).float()
        return torch.from_numpy(y.astype(np.float64)).reshape(-1, 1)

    def strata(self, target):
        return super().strata(target) if self.classes_ is None else target.numpy().astype(np.int64)

    def learn_scale(self, rows, *, resuming=False, offset=None):
        if resuming or self.is_implicit or self.classes_ is not None:
            return
        low, high = target_range(rows)
        # Squares of very small numbers would be 0. Powers of two are exact.
        unit = float(power_of_two(np.maximum(-low, high))[0])
        center = float(weighted_mean(rows, unit, 0.0, 1))
        spread = float(weighted_mean(rows, unit, center, 2).sqrt())
        self.center_, self.scale_ = center * unit, spread * unit if spread > 0 else 1.0
        self.head_.scale = np.array([self.scale_])

    def scale(self, target):
        if self.is_implicit or self.classes_ is not None:
            return target
        return bounded_targets((target - self.center_) / self.scale_)

    def predict(self, outputs):
        scores = outputs[:, 0].numpy()
        if self.classes_ is not None:
            return self.classes_[(scores > 0).astype(np.int64)]
        return scores * self.scale_ + self.center_


def weighted_mean(rows, unit, center, power):
    """Return the weighted mean of ``(target / unit - center) ** power`` over all rows."""
    sums = sum(rows.map_chunks(partial(weighted_sums, unit=unit, center=center, power=power)))
    return sums[0] / sums[1]


def weighted_sums(rows, unit, center, power):
    """Return the weighted sum of :func:`weighted_mean` over some rows, and the sum of weights."""
    weight = rows.weight.double()
    values = (rows.target[:, 0].double() / unit - center) ** power
    return torch.stack([(values * weight).sum(), weight.sum()])
