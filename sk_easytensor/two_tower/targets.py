"""Targets of pairs: that they met, one of two classes, or a number."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.utils import check_array, column_or_1d

from sk_easytensor.data.summaries import power_of_two
from sk_easytensor.data.validation import errors_mention, errors_name
from sk_easytensor.estimators.inputs import (
    check_classes,
    check_labels,
    check_no_missing,
    check_size,
    labels_like,
    plain_labels,
)
from sk_easytensor.estimators.rows import bounded_targets, target_range
from sk_easytensor.networks.heads import BinaryHead, RegressionHead, SampledSoftmaxHead
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "PairTarget",
    "few_values",
    "target_values",
]


OWNER = "EasyTensorTwoTower"


class PairTarget:
    """Targets of pairs: that they met, one of two classes, or a number.

    Parameters
    ----------
    head : Head
        Gives the loss.
    classes : ndarray or None
        The two classes.
    """

    def __init__(self, head, classes=None):
        self.head = head
        self.classes = classes
        self.center, self.scale = 0.0, 1.0

    @classmethod
    def learn(cls, values):
        """Return the target that a `y` of fit is, or None, from its :func:`few_values`."""
        if values is None:
            return cls(SampledSoftmaxHead())
        values = np.unique(values)
        if len(values) == 1:
            raise ValueError(
                f"{OWNER}: y holds nothing but {values.tolist()[0]!r}. Leave it out if every row "
                "is an item that was chosen"
            )
        if values.dtype.kind in "OUSb" or set(values.tolist()) == {0, 1}:
            if len(values) != 2:
                raise ValueError(f"{OWNER}: y must have two classes or numbers, got {values!r}")
            with errors_name(OWNER):
                check_classes(values)
            return cls(BinaryHead(), values)
        return cls(RegressionHead())

    @property
    def is_implicit(self):
        """Whether every pair is an item that was chosen."""
        return isinstance(self.head, SampledSoftmaxHead)

    def check(self, y):
        """Return a `y` of the kind that fit was given, as an array; None if there was none."""
        if self.is_implicit:
            if y is not None:
                raise ValueError(f"{OWNER} was fitted without y, and takes none")
            return None
        if y is None:
            raise ValueError(f"{OWNER} was fitted with y and requires y to be passed")
        y = target_values(y)
        if self.classes is not None:
            y = labels_like(self.classes, y)
        if self.classes is not None and not np.isin(y, self.classes).all():
            value = y[~np.isin(y, self.classes)][0]
            raise ValueError(f"{OWNER}: y holds {value!r}; classes are {self.classes.tolist()}")
        if self.classes is None and y.dtype.kind not in "fiu":
            raise ValueError(f"{OWNER}: y must be numbers, as in fit, got {y.dtype}")
        return y

    def encode(self, y):
        """Return checked targets, or any array if there are none, as the head wants them."""
        if self.is_implicit:
            return torch.zeros(len(y))
        if self.classes is not None:
            return torch.from_numpy(y == self.classes[1]).float()
        return torch.from_numpy(y.astype(np.float64)).reshape(-1, 1)

    def strata(self, target):
        """Return the groups that a validation part is drawn evenly from."""
        if self.classes is None:
            return np.zeros(len(target), dtype=np.int64)
        return target.numpy().astype(np.int64)

    def learn_scale(self, rows):
        """Learn mean and spread of numbers from the training part."""
        if self.is_implicit or self.classes is not None:
            return
        low, high = target_range(rows)
        # Squares of very small numbers would be 0. Powers of two are exact.
        unit = float(power_of_two(np.maximum(-low, high))[0])
        center = float(weighted_mean(rows, unit, 0.0, 1))
        spread = float(weighted_mean(rows, unit, center, 2).sqrt())
        self.center, self.scale = center * unit, spread * unit if spread > 0 else 1.0

    @property
    def scale_of_loss(self):
        """What numbers are divided by, as heads take it; None for choices and classes."""
        number = not self.is_implicit and self.classes is None
        return np.array([self.scale]) if number else None

    def scaled(self, rows):
        """Return rows with targets on the scale the network is trained on."""
        if self.is_implicit or self.classes is not None:
            return rows
        target = bounded_targets((rows.target - self.center) / self.scale)
        return EncodedDataset(rows.frame, target, rows.weight)

    def decode(self, scores):
        """Turn scores of pairs into predictions."""
        if self.classes is not None:
            return self.classes[(scores > 0).astype(np.int64)]
        return scores * self.scale + self.center


def weighted_mean(rows, unit, center, power):
    """Return the mean of a power of the distances from a number of targets over a unit."""
    found = sum(rows.map_chunks(partial(weighted_sums, unit=unit, center=center, power=power)))
    return found[0] / found[1]


def weighted_sums(rows, unit, center, power):
    """Return the sum that :func:`weighted_mean` is a part of, and that of the weights."""
    weight = rows.weight.double()
    values = (rows.target[:, 0].double() / unit - center) ** power
    return torch.stack([(values * weight).sum(), weight.sum()])


def few_values(y, n_values=10):
    """Return the distinct values of a `y` if these are few, otherwise some of them."""
    with errors_mention("y"):
        return np.unique(y)[:n_values]


def target_values(y):
    """Return a `y` as an array of one dimension without missing values, or None for None."""
    if y is None:
        return None
    check_labels(y)
    y = plain_labels(y)
    check_no_missing(y)
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    if y.ndim != 1:
        raise ValueError(f"{OWNER}: y must be 1-D, got shape {y.shape}")
    check_size(y)
    return y
