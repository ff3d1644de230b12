"""Heads: the last layer and the loss for one kind of target.

All heads work on outputs of shape ``(batch, members, out_features)``. ``combine`` reduces the
members to one, still on the scale of the outputs, so that ``loss`` serves both for training
(each member on its own) and for evaluating the ensemble.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional

__all__ = [
    "BinaryHead",
    "EmbeddingHead",
    "Head",
    "MultiTaskHead",
    "MulticlassHead",
    "MultilabelHead",
    "RegressionHead",
    "SampledSoftmaxHead",
]


class Head(BaseEstimator, ABC):
    """Base class: a linear layer a member, and what its outputs mean.

    Attributes
    ----------
    out_features : int
        Outputs of the last layer.
    metric : str
        Name of the loss in ``evals_result_``.
    """

    metric = "loss"
    estimator_type = "classifier"
    zero_init = True
    """Whether what goes past the trunk may count for nothing at first."""

    of_tower = False
    """Whether the network is a tower: ``configure_for_embedding()`` of its modules is called."""

    tree_loss = None
    """What scikit-learn's boosted trees call the loss; None if they know nothing like it."""

    scale = None
    """Of the targets, if they were divided by it: an ndarray of shape (out_features,)."""

    has_offset = False
    """Whether a given number is added to the outputs of each row, those of all members alike."""

    offset_center, offset_scale = 0.0, 1.0
    """What is subtracted from these numbers, and what they are then divided by."""

    def make_module(self, in_features, members):
        """Return the last layer of the network."""
        return MemberLinear(members, in_features, self.out_features)

    @abstractmethod
    def loss(self, outputs, target):
        """Return the loss of each row and member, of shape (batch, members)."""

    filler = 0.0
    """A valid target, in place of one that is missing."""

    def tasks(self, target):
        """Return the targets that are learned side by side, as :class:`Task`; None for one."""

    def encoded(self, column):
        """Return a column of targets of several tasks as :meth:`loss` takes it."""
        return column.float()

    def unit_loss(self, outputs, target):
        """Return :meth:`loss` in units of the target as the user gave it."""
        return self.loss(outputs, target)

    def unit_mean(self, loss):
        """Return the mean of :meth:`loss` over the training rows in units of the one target."""
        return loss

    @abstractmethod
    def average_members(self, outputs):
        """Reduce (batch, members, out_features) to (batch, 1, out_features)."""

    def normalize(self, combined):
        """Bring outputs of shape (batch, 1, out_features) that were averaged into their form."""
        return combined

    def constant(self, target, n_rows):
        """Return the outputs for a target that so many rows have and no other, as an array."""
        raise TypeError(f"{type(self).__name__} has no trees beside its network")

    def without_offset(self, target, weight, offset):
        """Return targets and weights for which outputs without offsets have the same loss.

        Parameters
        ----------
        target : torch.Tensor of shape (batch, out_features)
            As :meth:`loss` takes it.
        weight : torch.Tensor of shape (batch,)
            Row weights.
        offset : torch.Tensor of shape (batch, 1)
            On the scale of the outputs.

        Returns
        -------
        target, weight : torch.Tensor
            The loss is the same but for a constant and a factor of each row.
        """
        raise TypeError(f"{type(self).__name__} has no such targets")

    def likelihood(self, loss):
        """Return what a mean loss says of a row: the negative logarithm of a likelihood."""
        return loss

    @abstractmethod
    def predict(self, combined):
        """Turn combined outputs, of shape (batch, out_features), into predictions."""

    def decide(self, predictions):
        """Turn an array of predictions into encoded targets."""
        return predictions.argmax(axis=1)


class BinaryHead(Head):
    """Two classes: one log-odds."""

    metric = "log_loss"
    out_features = 1

    @property
    def tree_loss(self):
        """The loss of boosted trees, which start from one log-odds for all rows."""
        return None if self.has_offset else "log_loss"

    def constant(self, target, n_rows):
        # Half a row of each class more keeps the log-odds finite.
        return np.log([(target * n_rows + 0.5) / ((1 - target) * n_rows + 0.5)])

    def loss(self, outputs, target):
        target = target[:, None].expand(outputs.shape[:2])
        return functional.binary_cross_entropy_with_logits(
            outputs[..., 0], target, reduction="none"
        )

    def average_members(self, outputs):
        if self.has_offset:
            # Of the usual mean, below, what is added to all members would not be the same part.
            return outputs.mean(1, keepdim=True)
        # The log-odds of the mean probability, computed where neither can underflow.
        positive = functional.logsigmoid(outputs).logsumexp(1, keepdim=True)
        negative = functional.logsigmoid(-outputs).logsumexp(1, keepdim=True)
        return positive - negative

    def predict(self, combined):
        positive = probabilities(combined[:, 0])
        return torch.stack([1 - positive, positive], dim=1)

    def log_predict(self, combined):
        return log_probabilities(torch.cat([-combined, combined], dim=1))


def probabilities(log_odds):
    """Return the probabilities of log-odds, each of which depends on its own alone.

    ``torch.sigmoid`` rounds the last numbers of a tensor, which do not fill a processor's register,
    otherwise than those before them.
    """
    return 1 / (1 + torch.exp(-log_odds))


def log_probabilities(log_odds):
    """Return the logarithms of the probabilities of log-odds, finite however small these are."""
    return torch.from_numpy(-np.logaddexp(0.0, -log_odds.numpy()))


class MulticlassHead(Head):
    """Three classes or more: a softmax.

    Parameters
    ----------
    n_classes : int
        How many.
    """

    metric = "log_loss"
    tree_loss = "log_loss"

    def __init__(self, n_classes):
        self.n_classes = n_classes

    @property
    def out_features(self):
        return self.n_classes

    def encoded(self, column):
        return column.long()

    def loss(self, outputs, target):
        members = outputs.shape[1]
        flat = functional.cross_entropy(
            outputs.flatten(0, 1), target.repeat_interleave(members), reduction="none"
        )
        return flat.reshape(-1, members)

    def average_members(self, outputs):
        logs = functional.log_softmax(outputs, dim=-1)
        return logs.logsumexp(1, keepdim=True) - math.log(outputs.shape[1])

    def normalize(self, combined):
        return functional.log_softmax(combined, dim=-1)

    def constant(self, target, n_rows):
        rows = n_rows * (np.arange(self.n_classes) == target) + 0.5
        return np.log(rows / rows.sum())

    def predict(self, combined):
        return torch.softmax(combined, dim=1)

    def log_predict(self, combined):
        return functional.log_softmax(combined, dim=1)


class MultilabelHead(BinaryHead):
    """Several yes/no labels a row: one log-odds each.

    Parameters
    ----------
    n_labels : int
        How many.
    """

    def __init__(self, n_labels):
        self.n_labels = n_labels

    @property
    def out_features(self):
        return self.n_labels

    def loss(self, outputs, target):
        target = target[:, None, :].expand(outputs.shape)
        losses = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return losses.mean(-1)

    def predict(self, combined):
        return probabilities(combined)

    def log_predict(self, combined):
        return log_probabilities(combined)

    def decide(self, predictions):
        return (predictions > 0.5).astype(np.int64)


LARGEST_LOGARITHM = 88.0
"""Of a prediction, at most: its exponential is finite in single precision, in every runtime."""


class RegressionHead(Head):
    """One number or several, under one of the losses of HistGradientBoosting, or Huber's.

    Parameters
    ----------
    loss_name : str
        ``"squared_error"``, ``"absolute_error"``, ``"huber"``, ``"quantile"``, ``"poisson"`` or
        ``"gamma"``. The last two predict through an exponential.
    n_outputs : int, default=1
        Targets a row.
    quantile : float, default=0.5
        For ``"quantile"``.
    """

    estimator_type = "regressor"
    LOSSES = ("squared_error", "absolute_error", "huber", "quantile", "poisson", "gamma")

    def __init__(self, loss_name="squared_error", n_outputs=1, quantile=0.5):
        self.loss_name = loss_name
        self.n_outputs = n_outputs
        self.quantile = quantile

    @property
    def out_features(self):
        return self.n_outputs

    @property
    def metric(self):
        return self.loss_name

    @property
    def tree_loss(self):
        """The loss of boosted trees; of Huber's, which they do not know, the nearest."""
        return "absolute_error" if self.loss_name == "huber" else self.loss_name

    def constant(self, target, n_rows):
        return np.log([max(target, 1e-6)]) if self.log_link else np.array([target])

    def likelihood(self, loss):
        if self.log_link:
            return loss
        # Of errors with the spread that makes them most likely: normal, or the same on each side.
        power = 0.5 if self.loss_name == "squared_error" else 1.0
        return power * math.log(max(loss, 1e-300))

    def without_offset(self, target, weight, offset):
        if not self.log_link:
            return target - offset, weight
        factor = torch.exp(offset)
        # A rate counts as often as its exposure says, but for gamma's, whose spread grows with it.
        weight = weight * factor[:, 0] if self.loss_name == "poisson" else weight
        return target / factor, weight

    filler = 1.0

    def encoded(self, column):
        return column.float()[:, None]

    @property
    def log_link(self):
        """Whether outputs are logarithms of predictions."""
        return self.loss_name in ("poisson", "gamma")

    def loss(self, outputs, target):
        target = target[:, None, :].expand(outputs.shape)
        return self._losses(outputs, target).mean(-1)

    def unit_loss(self, outputs, target):
        if self.scale is None:
            return self.loss(outputs, target)
        target = target[:, None, :].expand(outputs.shape)
        factor, offset = (torch.from_numpy(part).to(outputs.device) for part in self._units())
        losses = self._losses(outputs, target).double()
        offset = offset * target if self.loss_name == "poisson" else offset
        return (factor * losses + offset).mean(-1)

    def unit_mean(self, loss):
        if self.scale is None:
            return loss
        # Targets that are counts have a weighted mean of one.
        factor, offset = self._units()
        return float(factor[0] * loss + offset[0])

    def _units(self):
        """Return what turns losses on the scale of training into units: a factor and an offset."""
        scale = np.asarray(self.scale, dtype=np.float64).reshape(-1)
        if self.loss_name == "poisson":
            return scale, -scale * np.log(scale)
        if self.loss_name == "gamma":
            return np.ones_like(scale), np.log(scale)
        power = 2 if self.loss_name in ("squared_error", "huber") else 1
        return scale**power, np.zeros_like(scale)

    def _losses(self, outputs, target):
        name = self.loss_name
        if name == "squared_error":
            return (outputs - target) ** 2
        if name == "absolute_error":
            return (outputs - target).abs()
        if name == "huber":
            return functional.huber_loss(outputs, target, reduction="none")
        if name == "quantile":
            error = target - outputs
            return torch.maximum(self.quantile * error, (self.quantile - 1) * error)
        if name == "poisson":
            return torch.exp(outputs) - target * outputs
        return outputs + target * torch.exp(-outputs)

    def average_members(self, outputs):
        if self.log_link:
            return outputs.logsumexp(1, keepdim=True) - math.log(outputs.shape[1])
        return outputs.mean(1, keepdim=True)

    def predict(self, combined):
        if not self.log_link:
            return combined
        return torch.exp(combined.clamp(max=LARGEST_LOGARITHM))

    def decide(self, predictions):
        return predictions


@dataclass
class Task:
    """One target of several, as a :class:`MultiTaskHead` gives it.

    Attributes
    ----------
    head : Head
        Of the target.
    outputs : slice
        Which outputs are its own.
    target : torch.Tensor
        As its head takes it; any valid value where it is missing.
    present : torch.Tensor of float32, shape (batch,)
        1 where the target is known, 0 where it is missing.
    """

    head: Head
    outputs: slice
    target: torch.Tensor
    present: torch.Tensor


class MultiTaskHead(Head):
    """Several targets of different kinds, each with a head of its own, side by side.

    Parameters
    ----------
    heads : list of Head
        One for each column of the target.
    weights : list of float
        What the loss of each is multiplied by.

    Notes
    -----
    A target is a matrix with a column for each task: numbers of classes, or standardised numbers,
    and NaN where it is missing. The loss is the weighted sum of the losses of the tasks that are
    known.
    """

    estimator_type = None

    def __init__(self, heads, weights):
        self.heads = heads
        self.weights = weights

    @property
    def out_features(self):
        return sum(head.out_features for head in self.heads)

    @property
    def tree_loss(self):
        """Names of the losses of boosted trees, of each task."""
        return [head.tree_loss for head in self.heads]

    def columns(self):
        """Return which outputs are each task's, as slices."""
        ends = np.cumsum([head.out_features for head in self.heads]).tolist()
        return [
            slice(end - head.out_features, end) for head, end in zip(self.heads, ends, strict=True)
        ]

    def tasks(self, target):
        found = []
        for head, columns, known in zip(self.heads, self.columns(), target.T, strict=True):
            present = (~known.isnan()).float()
            found.append(Task(head, columns, head.encoded(known.nan_to_num(head.filler)), present))
        return found

    def loss(self, outputs, target):
        total = 0.0
        for weight, task in zip(self.weights, self.tasks(target), strict=True):
            losses = task.head.loss(outputs[..., task.outputs], task.target)
            total = total + losses * (weight * task.present)[:, None]
        return total

    def average_members(self, outputs):
        return self._joined(lambda head, own: head.average_members(own), outputs)

    def normalize(self, combined):
        return self._joined(lambda head, own: head.normalize(own), combined)

    def predict(self, combined):
        """Return the predictions of all tasks side by side."""
        return self._joined(lambda head, own: head.predict(own), combined)

    def _joined(self, function, outputs):
        pairs = zip(self.heads, self.columns(), strict=True)
        return torch.cat([function(head, outputs[..., own]) for head, own in pairs], dim=-1)


def weighted_mean(network_outputs, tree_outputs, share, temperature):
    """Return the outputs of a blend before they are normalised.

    Parameters
    ----------
    network_outputs, tree_outputs : torch.Tensor of shape (n_rows, 1, out_features)
        What is averaged.
    share, temperature : float or list of float
        As of :class:`Blend`.

    Returns
    -------
    torch.Tensor of shape (n_rows, 1, out_features)
    """
    if isinstance(share, list):
        share = torch.tensor(share, dtype=tree_outputs.dtype, device=tree_outputs.device)
        temperature = torch.tensor(temperature, dtype=share.dtype, device=share.device)
        return torch.lerp(tree_outputs, network_outputs, share) / temperature
    mean = torch.lerp(tree_outputs, network_outputs, share)
    return mean if temperature == 1 else mean / temperature


class EmbeddingHead(BaseEstimator):
    """The last layer of a tower, which has no loss of its own.

    Parameters
    ----------
    embedding_dim : int
        Size of the embedding.
    projected : bool
        Whether there is a layer at all, rather than the trunk's output as it is.
    """

    # A product of two zeros has no gradient.
    zero_init = False
    of_tower = True

    def __init__(self, embedding_dim, projected=True):
        self.embedding_dim = embedding_dim
        self.projected = projected

    @property
    def out_features(self):
        return self.embedding_dim

    def make_module(self, in_features, members):
        """Return the last layer of the network."""
        if self.projected:
            return MemberLinear(members, in_features, self.out_features)
        return nn.Identity()


class SampledSoftmaxHead(Head):
    """The right item among those of a batch: its logit comes first in the outputs."""

    metric = "softmax_loss"
    out_features = None

    def loss(self, outputs, target):
        return outputs.logsumexp(-1) - outputs[..., 0]

    def average_members(self, outputs):
        return outputs

    def predict(self, combined):
        return combined


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble.

    Parameters
    ----------
    members, in_features, out_features : int
        Its sizes.
    """

    def __init__(self, members, in_features, out_features):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(members, out_features))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features):
        """Map (batch, members, in_features) to (batch, members, out_features)."""
        if self.weight.shape[2] == 1:
            # Multiplying and adding up takes a fifth of the time of a batch of products with
            # vectors, and half of that of one product with a block-diagonal matrix.
            weight = self.weight.squeeze(2).to(features.dtype)
            return (features * weight).sum(2, keepdim=True) + self.bias
        products = torch.bmm(features.transpose(0, 1), self.weight)
        return products.transpose(0, 1) + self.bias
