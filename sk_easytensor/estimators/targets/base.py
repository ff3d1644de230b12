"""The contract of targets."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator

from sk_easytensor.estimators.targets.loss_check import check_returned_losses
from sk_easytensor.metrics import resolve_metrics, resolve_stopping_metric
from sk_easytensor.report.report import summarize_target
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "Target",
    "bounded_targets",
    "target_range",
]


class Target(BaseEstimator, ABC):
    """Base class: what an estimator knows of its `y`, and all that is computed of it.

    A target is small and picklable, and knows neither the estimator nor its features. Where rows
    are on other machines, its methods are sent to them.

    Its parameters come from the estimator. What it learns is in attributes that end in an
    underscore, and is learned in this order:

    1. :meth:`check` and :meth:`sample` see the given targets, chunk by chunk. :meth:`fit` gets the
       samples and sets `head_`. For a warm start, :meth:`resume` takes its place.
    2. :meth:`learn_class_weights` sees the training rows before they are encoded.
    3. :meth:`encode` makes tensors of targets, with which validation rows are held out evenly over
       :meth:`strata`.
    4. :meth:`learn_scale` sees the encoded training rows, and :meth:`scaled` rows are trained on,
       by the loss of `head_`.
    5. :meth:`metrics` says what is evaluated, :meth:`predict` makes predictions of raw outputs.

    A subclass defines :meth:`check`, :meth:`fit`, :meth:`encode` and :meth:`predict`. It inherits
    from :class:`~sklearn.base.ClassifierMixin` or :class:`~sklearn.base.RegressorMixin` if
    scikit-learn's scorers apply: to them it is an estimator whose `X` is raw outputs.

    Parameters
    ----------
    owner : str
        Class name of the estimator, for errors.

    Attributes
    ----------
    head_ : Head
        The last layer of the network and its loss, for the target at hand.
    loss : Loss or None
        What is minimized, where it is one for all of the target.
    """

    loss = None

    def __init__(self, owner):
        self.owner = owner

    # ------------------------------------------------------------------ targets as they are given

    @abstractmethod
    def check(self, y):
        """Return a valid target as an array, or raise an error that says what is accepted.

        Parameters
        ----------
        y : array-like
            Of training or validation rows; of all rows or of a chunk.

        Returns
        -------
        ndarray or sparse matrix of shape (n_rows,) or (n_rows, n_columns)

        Raises
        ------
        ValueError, TypeError
            If `y` is no such target.
        """

    def column_order(self, X, y):
        """Return `y`, in the order that :meth:`check` takes columns if it names those of `X`."""
        return y

    def sample(self, y):
        """Return a few checked targets that show what there is to learn of them."""
        return y[:1]

    def join_samples(self, samples):
        """Return the samples of all chunks as one."""
        return np.concatenate(samples)

    @abstractmethod
    def fit(self, sample):
        """Learn what kind of target it is.

        Parameters
        ----------
        sample : ndarray
            Of all training rows, as :meth:`sample` and :meth:`join_samples` return it.

        Returns
        -------
        self
        """

    def resume(self, fitted):
        """Take over what another target has learned, for training that resumes.

        Parameters
        ----------
        fitted : Target
            Of the same class; stays as it is.

        Returns
        -------
        self
        """
        learned = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
        vars(self).update(learned)
        return self

    def check_known(self, sample):
        """Raise ``ValueError`` for a sample of validation rows with what training rows lack."""
        self.encode(sample)

    def fitted_attributes(self):
        """Return what an estimator shows of its target, by the name of the attribute."""
        return {}

    def summary(self, y):
        """Return what reports say of a sample of checked targets, a dictionary or None."""
        return summarize_target(y)

    @abstractmethod
    def encode(self, y):
        """Return checked targets as a tensor, as the head takes them.

        Raises
        ------
        ValueError
            For targets that are not of the kind seen by :meth:`fit`.
        """

    # ------------------------------------------------------------------ encoded targets

    def learn_class_weights(self, dataset):
        """Learn what :meth:`class_weights` needs.

        Parameters
        ----------
        dataset : BaseTableDataset
            Training rows.
        """

    def class_weights(self, target):
        """Return a factor for each row's weight: an ndarray of shape (n_rows,), or a number."""
        return 1.0

    def strata(self, target):
        """Return groups that a validation part is drawn from evenly: integers, (n_rows,)."""
        return np.zeros(len(target), dtype=np.int64)

    def learn_scale(self, rows, *, resuming=False, offset=None):
        """Learn how encoded targets are brought to the scale that a network is trained on.

        Parameters
        ----------
        rows : Dataset
            Training rows.
        resuming : bool, default=False
            Whether the scale is known already and only has to be confirmed.
        offset : tuple of (str, str), optional
            Block and column of the numbers that are added to outputs.
        """

    def scale(self, target):
        """Return encoded targets on the scale that a network is trained on."""
        return target

    def scaled(self, rows):
        """Return encoded rows with :meth:`scale` applied to their targets."""
        return EncodedDataset(rows.frame, self.scale(rows.target), rows.weight)

    def decode(self, target):
        """Return scaled targets as metrics take them: numbered classes, or numbers in their units.

        Returns
        -------
        ndarray of shape (n_rows,) or (n_rows, n_columns)
        """
        return target.numpy()

    def check_loss(self, rows):
        """Raise ``ValueError`` if what a user's loss returns for rows cannot be trained on.

        Parameters
        ----------
        rows : Dataset
            Training rows, whose targets are not yet scaled.
        """
        check_returned_losses(self, rows)

    # ------------------------------------------------------------------ evaluation

    def metrics(self, eval_metric, stopping_metric):
        """Return the metrics of validation rows, and which of them decides about epochs.

        Parameters
        ----------
        eval_metric, stopping_metric : object
            The parameters of the estimator.

        Returns
        -------
        metrics : list of Metric
        stopping : Metric or None
            None for the loss.

        Raises
        ------
        ValueError
            Naming what is no metric.
        """
        metrics = resolve_metrics(eval_metric, self)
        stopping = resolve_stopping_metric(stopping_metric, metrics, self.loss.name, self.owner)
        return metrics, stopping

    def numbered(self):
        """Return the target with classes 0, 1, 2 and so on, as :meth:`decode` returns them."""
        return self

    def validation_measures(self, outputs, target, weight):
        """Return how good predictions are, for reports.

        Parameters
        ----------
        outputs : torch.Tensor of shape (n_rows, out_features)
            Raw outputs.
        target : torch.Tensor
            Scaled targets.
        weight : torch.Tensor of shape (n_rows,)
            Row weights.

        Returns
        -------
        dict
            ``measures``, a dictionary of numbers, and ``residuals``, tables as of
            :func:`~sk_easytensor.inspection.sample.residual_bins`, or ``calibration``, one as of
            :func:`~sk_easytensor.inspection.sample.calibration`, and what it is ``of``.
        """
        return {"measures": {}, "residuals": []}

    def tree_weight(self, trees):
        """Return the weight of the trees beside a network, given as TreesModule or None."""
        return 0.0 if trees is None else 1.0 - trees.share

    # ------------------------------------------------------------------ predictions

    @abstractmethod
    def predict(self, outputs):
        """Return predictions.

        Parameters
        ----------
        outputs : torch.Tensor of shape (n_rows, out_features)
            Raw outputs of the ensemble.
        """

    def explained(self, values, base):
        """Return contributions and base values in the form and units of the raw output.

        Parameters
        ----------
        values : ndarray of float64, shape (n_rows, n_features, out_features)
            Contributions of columns to the outputs of the ensemble.
        base : ndarray of float64, shape (out_features,)
            Base values.
        """
        return values, base


LARGEST_TARGET = 1e15
"""Of a scaled target, in size: sums of squares over rows and members are finite."""


def bounded_targets(targets):
    """Return scaled targets in single precision, in which their squares stay finite.

    Only targets of rows of next to no weight, or of an evaluation set, are as far as the bound.
    """
    return targets.clamp(-LARGEST_TARGET, LARGEST_TARGET).float()


def target_range(rows):
    """Return the least and the largest target of each column, arrays of shape (n_columns,)."""
    lows, highs = zip(*filter(None, rows.map_chunks(_range)), strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _range(rows):
    target = rows.target.numpy()
    return (target.min(axis=0), target.max(axis=0)) if len(target) else None
