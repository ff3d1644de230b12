"""Base class of targets, and the encoding of rows with their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sk_easytensor.estimators.targets.checks import check_returned_losses
from sk_easytensor.metrics import resolve_metrics, resolve_stopping_metric
from sk_easytensor.report.report import summarize_target
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.table_dataset import BaseRowEncoder

__all__ = [
    "RowEncoder",
    "Target",
    "bounded_targets",
    "target_range",
]


class Target(BaseEstimator, ABC):
    """Base class of targets: all computations of an estimator that concern its `y`.

    A target is small and picklable, and has no reference to the estimator or its features. Where
    rows are on other machines, its methods are sent to them.

    The estimator passes the parameters. The fitted state is in attributes whose names end in an
    underscore. The methods are called in this order:

    1. :meth:`check` and :meth:`sample` get the targets that the user passes, chunk by chunk.
       :meth:`fit` gets the samples and sets `head_`. For a warm start, :meth:`resume` replaces it.
    2. :meth:`learn_class_weights` gets the training rows before they are encoded.
    3. :meth:`encode` converts targets to tensors. Validation rows are held out evenly over the
       :meth:`strata` of these.
    4. :meth:`learn_scale` gets the encoded training rows. The network is trained on :meth:`scaled`
       rows, with the loss of `head_`.
    5. :meth:`metrics` returns what is evaluated, and :meth:`predict` converts raw outputs to
       predictions.

    A subclass defines :meth:`check`, :meth:`fit`, :meth:`encode` and :meth:`predict`. It inherits
    from :class:`~sklearn.base.ClassifierMixin` or :class:`~sklearn.base.RegressorMixin` if
    scikit-learn's scorers apply. To these a target is an estimator whose `X` is raw outputs.

    Parameters
    ----------
    owner : str
        Class name of the estimator, for errors.

    Attributes
    ----------
    head_ : Head
        The last layer of the network and its loss, for the fitted target.
    loss : Loss or None
        Loss that training minimizes; None if parts of the target have different losses.
    """

    loss = None

    def __init__(self, owner):
        self.owner = owner

    # ------------------------------------------------------------------ targets of the user

    @abstractmethod
    def check(self, y):
        """Return a valid target as an array.

        Parameters
        ----------
        y : array-like
            Targets of training or validation rows: of all rows or of a chunk.

        Returns
        -------
        ndarray or sparse matrix of shape (n_rows,) or (n_rows, n_columns)

        Raises
        ------
        ValueError, TypeError
            If `y` is invalid. The message states what is accepted.
        """

    def column_order(self, X, y):
        """Return `y`; names of columns of `X` are put in the order that :meth:`check` expects."""
        return y

    def sample(self, y):
        """Return a few checked targets from which :meth:`fit` can learn the kind of target."""
        return y[:1]

    def join_samples(self, samples):
        """Concatenate the samples of all chunks."""
        return np.concatenate(samples)

    @abstractmethod
    def fit(self, sample):
        """Learn the kind of the target, and set `head_`.

        Parameters
        ----------
        sample : ndarray
            Sample of all training rows, as :meth:`sample` and :meth:`join_samples` return it.

        Returns
        -------
        self
        """

    def resume(self, fitted):
        """Copy the fitted state of another target, for training that resumes.

        Parameters
        ----------
        fitted : Target
            Fitted target of the same class; not changed.

        Returns
        -------
        self
        """
        state = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
        vars(self).update(state)
        return self

    def check_known(self, sample):
        """Raise ``ValueError`` if a sample of validation rows has labels not in training rows."""
        self.encode(sample)

    def fitted_attributes(self):
        """Return the fitted attributes that the estimator gets from its target, by name."""
        return {}

    def summary(self, y):
        """Return the summary of a sample of checked targets for reports, a dictionary or None."""
        return summarize_target(y)

    @abstractmethod
    def encode(self, y):
        """Return checked targets as a tensor, in the form that the head takes.

        Raises
        ------
        ValueError
            If targets are not of the kind of those in :meth:`fit`.
        """

    # ------------------------------------------------------------------ encoded targets

    def learn_class_weights(self, dataset):
        """Learn the weights of classes, for :meth:`class_weights`.

        Parameters
        ----------
        dataset : BaseTableDataset
            Training rows.
        """

    def class_weights(self, target):
        """Return a factor for each row's weight: an ndarray of shape (n_rows,), or a number."""
        return 1.0

    def strata(self, target):
        """Return the stratum of each row, from which validation rows are drawn evenly.

        Returns
        -------
        ndarray of int64, shape (n_rows,)
        """
        return np.zeros(len(target), dtype=np.int64)

    def learn_scale(self, rows, *, resuming=False, offset=None):
        """Learn the scale on which the network is trained.

        Parameters
        ----------
        rows : Dataset
            Training rows.
        resuming : bool, default=False
            Whether the target has a scale from a previous fit, which is kept.
        offset : tuple of (str, str), optional
            Names of the block and the column of offsets.
        """

    def scale(self, target):
        """Return encoded targets on the scale on which the network is trained."""
        return target

    def scaled(self, rows):
        """Return encoded rows with :meth:`scale` applied to their targets."""
        return EncodedDataset(rows.frame, self.scale(rows.target), rows.weight)

    def decode(self, target):
        """Return scaled targets in the form that metrics take.

        Returns
        -------
        ndarray of shape (n_rows,) or (n_rows, n_columns)
            Indices of classes, or numbers in units of `y`.
        """
        return target.numpy()

    def check_loss(self, rows):
        """Check that the network can be trained with the values that a user's loss returns.

        Parameters
        ----------
        rows : Dataset
            Training rows, whose targets are not yet scaled.

        Raises
        ------
        ValueError, TypeError
            If the loss fails, or returns no finite, differentiable number for each row.
        """
        check_returned_losses(self, rows)

    # ------------------------------------------------------------------ evaluation

    def metrics(self, eval_metric, stopping_metric):
        """Return the metrics of validation rows, and the one that decides about early stopping.

        Parameters
        ----------
        eval_metric, stopping_metric : object
            The parameters ``eval_metric`` and ``stopping_metric`` of the estimator.

        Returns
        -------
        metrics : list of Metric
        stopping : Metric or None
            None for the loss.

        Raises
        ------
        ValueError
            If an entry is no metric. The message names it.
        """
        metrics = resolve_metrics(eval_metric, self)
        stopping = resolve_stopping_metric(stopping_metric, metrics, self.loss.name, self.owner)
        return metrics, stopping

    def numbered(self):
        """Return a target with classes 0, 1, 2 and so on, which :meth:`decode` returns."""
        return self

    def validation_measures(self, outputs, target, weight):
        """Return measures of the quality of predictions, for reports.

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
            ``measures`` is a dictionary of numbers. Regression has ``residuals``, a list of tables
            that :func:`~sk_easytensor.inspection.sample.residual_bins` returns. Classification has
            ``calibration``, a table that
            :func:`~sk_easytensor.inspection.sample.calibration` returns, and ``of``, a description
            of the probability.
        """
        return {"measures": {}, "residuals": []}

    def tree_weight(self, trees):
        """Return the weight of the trees' outputs, 0.0 if `trees` is None.

        Parameters
        ----------
        trees : TreesModule or None
            Trees of the network.
        """
        return 0.0 if trees is None else 1.0 - trees.share

    def model_weights(self, networks):
        """Return the weights of the outputs of trees and linear models, means over networks.

        Parameters
        ----------
        networks : list of BlockNetwork
            Trained networks, whose predictions are averaged.

        Returns
        -------
        tree_weight, linear_weight : float
            0.0 for models that no network has.
        """
        shares = [1.0 if each.linear is None else each.linear.share for each in networks]
        trees = [self.tree_weight(each.trees) for each in networks]
        weighted = [weight * share for weight, share in zip(trees, shares, strict=True)]
        return sum(weighted) / len(networks), 1.0 - sum(shares) / len(networks)

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
        """Return contributions and base values in the shape and units of the raw output.

        Parameters
        ----------
        values : ndarray of float64, shape (n_rows, n_features, out_features)
            Contributions of columns to the outputs of the ensemble.
        base : ndarray of float64, shape (out_features,)
            Base values.
        """
        return values, base


LARGEST_TARGET = 1e15
"""Largest absolute value of a scaled target: sums of squares over rows and members are finite."""


def bounded_targets(targets):
    """Return scaled targets in single precision, clipped so that their squares stay finite.

    Only targets of rows of negligible weight, or of an evaluation set, reach the bound.
    """
    return targets.clamp(-LARGEST_TARGET, LARGEST_TARGET).float()


def target_range(rows):
    """Return minimum and maximum of the targets of each column, arrays of shape (n_columns,)."""
    lows, highs = zip(*filter(None, rows.map_chunks(_range)), strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _range(rows):
    target = rows.target.numpy()
    return (target.min(axis=0), target.max(axis=0)) if len(target) else None


class RowEncoder(BaseRowEncoder):
    """Encoder of table rows with their targets.

    Parameters
    ----------
    target : Target
        Fitted target, which encodes `y`.
    encoder : TableEncoder
        Fitted encoder of tables.
    executor : LocalExecutor
        Executor that runs the encoding.
    weighted : bool
        Whether row weights are multiplied by the weights of their classes.
    """

    def __init__(self, target, encoder, executor, weighted):
        self.target = target
        self.encoder = encoder
        self.executor = executor
        self.weighted = weighted

    @property
    def columns(self):
        """Columns that targets are encoded with: the name of the offsets' column, if any."""
        offset = self.encoder.offset_column_
        return [] if offset is None else [offset]

    def encode(self, table, y, weight):
        """Return encoded rows."""
        rows = self.encode_targets(table, y, weight)
        rows.frame = self.encoder.encode_table(table, self.executor)
        return rows

    def encode_targets(self, table, y, weight):
        """Return rows whose features are the offsets alone, or none."""
        target = self.target.encode(y)
        if self.weighted:
            weight = weight * self.target.class_weights(target)
        encoder, frame = self.encoder, {}
        if encoder.offset_block is not None:
            block = encoder.blocks_[encoder.offset_block]
            frame[encoder.offset_block] = block.encode(table.select([encoder.offset_column_]))
        return EncodedDataset(
            TensorFrame(frame, len(target)), target, torch.from_numpy(weight).float()
        )
