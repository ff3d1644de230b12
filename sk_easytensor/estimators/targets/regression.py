"""Targets of numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.utils.validation import assert_all_finite, check_array, column_or_1d

from sk_easytensor.data.summaries import WeightedMoments, merge_all, power_of_two
from sk_easytensor.estimators.targets.base import Target, bounded_targets, target_range
from sk_easytensor.estimators.targets.checks import (
    check_no_missing,
    check_scalars,
    check_size,
    describe_non_number,
)
from sk_easytensor.inspection.sample import residual_bins
from sk_easytensor.networks.heads import RegressionHead

__all__ = [
    "RegressionTarget",
]


SHOWN_OUTPUTS = 8
"""Maximum number of columns of a target whose residuals are in reports."""


class RegressionTarget(RegressorMixin, Target):
    """Target of one number for each row, or of several.

    Parameters
    ----------
    loss : Loss
        Loss that training minimizes.
    owner : str, default="EasyTensorRegressor"
        Class name of the estimator, for errors.

    Attributes
    ----------
    n_outputs_ : int
        Number of columns of the target.
    one_dimensional_ : bool
        Whether the target is an array of one dimension.
    center_ : ndarray of float64, shape (n_outputs,)
        Number that is subtracted from targets in training; the mean, or 0 with a log link.
    scale_ : ndarray of float64, shape (n_outputs,)
        Number that centered targets are divided by; the standard deviation, or the mean with a log
        link.
    constant_ : ndarray of float64, shape (n_outputs,), or None
        Values of the columns that are constant, which are predicted exactly; NaN for other columns,
        None if no column is constant.
    """

    def __init__(self, loss, owner="EasyTensorRegressor"):
        super().__init__(owner)
        self.loss = loss

    def check(self, y):
        check_scalars(y)
        check_no_missing(y)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if y.dtype.kind in "Mm":
            raise ValueError(f"y must be numbers, got {y.dtype}")
        if y.dtype.kind not in "fiub":
            try:
                y = y.astype(np.float64)
            except (TypeError, ValueError) as error:
                value = describe_non_number(y)
                raise ValueError(f"y must be numbers, got {value or y.dtype}") from error
            assert_all_finite(y, input_name="y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_size(y)
        y = y.astype(np.float64)
        self.loss.check_target(y)
        return y

    def sample(self, y):
        # A chunk of a stored table may have no row of positive weight.
        return np.stack([y.min(axis=0), y.max(axis=0)]) if len(y) else y

    def fit(self, sample):
        self.one_dimensional_ = sample.ndim == 1
        self.n_outputs_ = 1 if sample.ndim == 1 else sample.shape[1]
        if self.loss.n_predictions > 1 and self.n_outputs_ > 1:
            raise ValueError(
                f"loss={self.loss.name!r} makes {self.loss.n_predictions} predictions for each "
                f"row, which needs a y of one column, got {self.n_outputs_}"
            )
        names = ["y"]
        if not self.one_dimensional_:
            names = [f"column {i} of y" for i in range(self.n_outputs_)]
        columns = sample.reshape(len(sample), -1)
        self.loss.check_range(columns.min(axis=0), columns.max(axis=0), names)
        self.head_ = RegressionHead(self.loss, self.n_outputs_)
        return self

    def fitted_attributes(self):
        return {"n_outputs_": self.n_outputs_}

    def encode(self, y):
        y = y.reshape(len(y), -1)
        if y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {y.shape[1]} columns; {self.n_outputs_} were expected")
        return torch.from_numpy(y)

    # ------------------------------------------------------------------ scale

    def learn_scale(self, rows, *, resuming=False, offset=None):
        low, high = target_range(rows)
        # With offsets, a constant target does not make the outputs constant.
        constant = np.where((low == high) & (offset is None), low, np.nan)
        if resuming:
            constant = np.where(constant == self.constant_, constant, np.nan)
        # Because of rounding and dropout, a network would not predict a constant exactly.
        self.constant_ = None if np.isnan(constant).all() else constant
        if not resuming:
            self._learn_center(rows, low, high, offset)

    def _learn_center(self, rows, low, high, offset):
        """Learn the scale of targets, whose range is `low` to `high`, and that of offsets."""
        head, block = self.head_, None if offset is None else offset[0]
        # Squares of very large or small numbers are not finite, or 0. Powers of two are exact.
        unit = power_of_two(np.maximum(-low, high))
        moments = partial(_moments, unit=unit, block=block, log_link=head.log_link)
        moments = merge_all(rows.map_chunks(moments))
        # The mean of equal numbers may be rounded.
        mean = np.where(low < high, moments.mean[: len(unit)] * unit, low)
        if head.log_link:
            # Dividing by the mean starts the predictions at the right level.
            self.center_ = np.zeros_like(mean)
            self.scale_ = np.where(mean > 0, mean, 1.0)
            head.scale, head.center = self.scale_, self.center_
            if offset is not None:
                head.offset_center = self._log_of_mean(moments.mean[1], offset[1])
            return
        squares, varies = moments.squares, low < high
        if offset is not None:
            # The spread of targets minus offsets, at least that of rounding errors.
            squares = np.maximum(squares[2:], 1e-12 * squares[1:2])
            varies = True
        deviation = np.sqrt(squares / moments.weight) * unit
        self.center_ = mean
        self.scale_ = np.where((deviation > 0) & varies, deviation, 1.0)
        head.scale, head.center = self.scale_, self.center_
        if offset is not None:
            # With centered offsets, losses in units of the target are as without offsets.
            head.offset_center = float(moments.mean[1] * unit[0])
            head.offset_scale = float(self.scale_[0])

    def _log_of_mean(self, factor, column):
        """Return the logarithm of the mean of the exponentials of offsets.

        Raises
        ------
        ValueError
            If the mean is 0 or infinite.
        """
        if not np.isfinite(factor) or factor <= 0:
            raise ValueError(
                f"offset: the mean of exp({column!r}) is {factor:g}; offsets for "
                f"loss={self.loss.name!r} are logarithms, such as np.log(exposure)"
            )
        return float(np.log(factor))

    def scale(self, target):
        with np.errstate(over="ignore"):
            scaled = (target.numpy() - self.center_) / self.scale_
        return bounded_targets(torch.from_numpy(scaled))

    def unscaling(self):
        """Return factor and constant by which outputs of the head become predictions."""
        if self.constant_ is None:
            return self.scale_, self.center_
        varies = np.isnan(self.constant_)
        scale = np.where(varies, self.scale_, 0.0)
        return scale, np.where(varies, self.center_, self.constant_)

    def _in_units(self, target):
        return target.double().numpy() * self.scale_ + self.center_

    # ------------------------------------------------------------------ evaluation

    def decode(self, target):
        y = self._in_units(target)
        return y[:, 0] if self.one_dimensional_ else y

    def validation_measures(self, outputs, target, weight):
        predicted, weight = self._values(outputs), weight.double().numpy()
        actual = self._in_units(target)
        if self.loss.n_predictions > 1:
            return self._several_measures(predicted, actual, weight)
        mean = np.average(actual, axis=0, weights=weight) + np.zeros_like(actual)
        measures = {
            "R²": r2_score(actual, predicted, sample_weight=weight),
            "mean absolute error": mean_absolute_error(actual, predicted, sample_weight=weight),
            "root mean squared error": root_mean_squared_error(
                actual, predicted, sample_weight=weight
            ),
            "root mean squared error of the mean": root_mean_squared_error(
                actual, mean, sample_weight=weight
            ),
        }
        residuals = [
            residual_bins(*columns, weight)
            for columns in zip(predicted.T[:SHOWN_OUTPUTS], actual.T[:SHOWN_OUTPUTS], strict=True)
        ]
        return {"measures": measures, "residuals": residuals}

    def _several_measures(self, predicted, actual, weight):
        """Return the fraction of targets below each of several predictions of a row."""
        below = np.average(actual <= predicted, axis=0, weights=weight)
        levels = getattr(self.loss, "quantile", range(len(below)))
        measures = {
            f"rows below prediction {level:g}": fraction
            for level, fraction in zip(levels, below, strict=True)
        }
        middle = predicted[:, predicted.shape[1] // 2]
        return {"measures": measures, "residuals": [residual_bins(middle, actual[:, 0], weight)]}

    # ------------------------------------------------------------------ predictions

    @property
    def predicts_one(self):
        """Whether predictions have one dimension."""
        return self.one_dimensional_ and self.loss.n_predictions == 1

    def predict(self, outputs):
        values = self._values(outputs)
        return values[:, 0] if self.predicts_one else values

    def _values(self, outputs):
        """Return predictions of float64, of shape (n_rows, out_features)."""
        scale, center = self.unscaling()
        return self.head_.predict(outputs).numpy().astype(np.float64) * scale + center

    def explained(self, values, base):
        if self.head_.log_link:
            base = base + np.log(self.scale_)
        else:
            scale, center = self.unscaling()
            values, base = values * scale, base * scale + center
        return (values[..., 0], base[0]) if self.predicts_one else (values, base)


def _moments(rows, unit, block, log_link):
    """Return the moments of targets, of offsets, and of targets minus offsets."""
    target = rows.target.numpy() / unit
    if block is not None:
        offset = rows.frame[block]["values"].double().numpy()
        with np.errstate(over="ignore"):
            columns = [np.exp(offset)] if log_link else [offset / unit, target - offset / unit]
        target = np.hstack([target, *columns])
    with np.errstate(invalid="ignore"):
        return WeightedMoments.of(target, rows.weight.double().numpy())
