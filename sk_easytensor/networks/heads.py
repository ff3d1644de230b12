"""Heads: the last layer and the loss for one kind of target.

All heads work on outputs of shape ``(batch, members, out_features)``. ``average_members`` reduces
the members to one, still on the scale of the outputs, so that ``loss`` serves both for training
(each member on its own) and for evaluating the ensemble.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional

from sk_easytensor.data.summaries import power_of_two
from sk_easytensor.losses import LogLoss, SquaredError, row_losses

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
    """Base class: the last layer, and what its outputs mean for one kind of target.

    A head says of which form a target is: numbers, two classes, several. Its :class:`Loss` says
    what is minimized.

    Attributes
    ----------
    out_features : int
        Outputs of the last layer.
    metric : str
        Name of the loss in ``evals_result_``.
    """

    metric = "loss"
    estimator_type = "classifier"
    kind = None
    """Kind of the target: ``"numbers"``, ``"binary"``, ``"multiclass"`` or ``"multilabel"``, or
    ``"choice"`` of an item among those of a batch."""

    single_output = False
    """Whether the target has one output, to which offsets and monotonic functions can be added."""

    zero_init = True
    """Whether what goes past the trunk may count for nothing at first."""

    of_tower = False
    """Whether the network is a tower: ``configure_for_embedding()`` of its modules is called."""

    tree_loss = None
    """What scikit-learn's boosted trees call the loss; None if they know nothing like it."""

    heads = None
    """Heads of several tasks; None for one target."""

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

    def tree_columns(self, n_targets):
        """Return for each column of trees which target they learn, and their parameters.

        Parameters
        ----------
        n_targets : int
            Columns of the target.

        Returns
        -------
        list of (int, dict)
            Parameters of ``HistGradientBoostingRegressor``, empty for classes.
        """
        return [(index, {}) for index in range(n_targets)]

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


class LossHead(Head):
    """Base class of heads whose loss is a :class:`~sk_easytensor.losses.Loss`.

    Parameters
    ----------
    criterion : Loss
        What is minimized.
    """

    def __init__(self, criterion):
        self.criterion = criterion

    @property
    def metric(self):
        return self.criterion.name

    @property
    def tree_loss(self):
        """The loss of boosted trees; None if they know none like it."""
        return self.criterion.tree_loss

    def losses(self, outputs, target):
        """Return losses of rows and members.

        Parameters
        ----------
        outputs : torch.Tensor of shape (batch, members, out_features)
            Outputs of the network.
        target : torch.Tensor of shape (batch,) or (batch, n_targets)
            Targets.

        Returns
        -------
        torch.Tensor of shape (batch, members) or (batch, members, n_targets)
        """
        batch, members = outputs.shape[:2]
        outputs = outputs.flatten(0, 1)
        if outputs.shape[1] == 1:
            outputs = outputs[:, 0]
        if members > 1:
            target = target.repeat_interleave(members, dim=0)
        if target.ndim == 2 and target.shape[1] == 1 and self.kind == "numbers":
            target = target[:, 0]
        elif self.kind == "multilabel":
            outputs = outputs.reshape(target.shape)
        found = row_losses(self.criterion, outputs, target)
        return found.reshape(batch, members, *found.shape[1:])

    def loss(self, outputs, target):
        return mean_of_targets(self.losses(outputs, target))

    def likelihood(self, loss):
        return self.criterion.likelihood(loss)

    def learn_loss_unit(self, total, count):
        """Learn what losses are divided by in training from a sum of derivatives of so many."""

    def with_loss(self, criterion):
        """Return a copy with another loss."""
        other = copy(self)
        other.criterion = criterion
        return other


def mean_of_targets(losses):
    """Return the mean over targets of losses of shape (batch, members[, n_targets])."""
    return losses if losses.ndim == 2 else losses.mean(-1)


class BinaryHead(LossHead):
    """Two classes: one log-odds.

    Parameters
    ----------
    criterion : Loss or None, default=None
        Loss of log-odds; None for log loss.
    """

    kind = "binary"
    single_output = True
    out_features = 1

    def __init__(self, criterion=None):
        super().__init__(LogLoss() if criterion is None else criterion)

    @property
    def tree_loss(self):
        """The loss of boosted trees, which start from one log-odds for all rows."""
        return None if self.has_offset else self.criterion.tree_loss

    def constant(self, target, n_rows):
        # Half a row of each class more keeps the log-odds finite.
        return np.log([(target * n_rows + 0.5) / ((1 - target) * n_rows + 0.5)])

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


class MulticlassHead(LossHead):
    """Three classes or more: a softmax.

    Parameters
    ----------
    n_classes : int
        How many.
    criterion : Loss or None, default=None
        Loss of logits; None for log loss.
    """

    kind = "multiclass"

    def __init__(self, n_classes, criterion=None):
        self.n_classes = n_classes
        super().__init__(LogLoss() if criterion is None else criterion)

    @property
    def out_features(self):
        return self.n_classes

    def encoded(self, column):
        return column.long()

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
    criterion : Loss or None, default=None
        Loss of log-odds; None for log loss.
    """

    kind = "multilabel"
    single_output = False

    def __init__(self, n_labels, criterion=None):
        self.n_labels = n_labels
        super().__init__(criterion)

    @property
    def out_features(self):
        return self.n_labels

    def predict(self, combined):
        return probabilities(combined)

    def log_predict(self, combined):
        return log_probabilities(combined)

    def decide(self, predictions):
        return (predictions > 0.5).astype(np.int64)


LARGEST_LOGARITHM = 88.0
"""Of a prediction, at most: its exponential is finite in single precision, in every runtime."""


class RegressionHead(LossHead):
    """One number or several.

    Parameters
    ----------
    criterion : Loss or None, default=None
        Loss of numbers; None for squared error.
    n_outputs : int, default=1
        Targets a row.
    """

    estimator_type = "regressor"
    kind = "numbers"
    filler = 1.0

    center = None
    """What was subtracted from the targets before they were divided by `scale`."""

    loss_unit = 1.0
    """What losses are divided by in training, if they are computed in units of the target."""

    def __init__(self, criterion=None, n_outputs=1):
        super().__init__(SquaredError() if criterion is None else criterion)
        self.n_outputs = n_outputs

    @property
    def out_features(self):
        return self.n_outputs * self.criterion.n_predictions

    @property
    def single_output(self):
        return self.out_features == 1

    @property
    def log_link(self):
        """Whether outputs are logarithms of predictions."""
        return self.criterion.link == "log"

    def tree_columns(self, n_targets):
        parameters = self.criterion.tree_parameters()
        return [(index, each) for index in range(n_targets) for each in parameters]

    def constant(self, target, n_rows):
        return np.log([max(target, 1e-6)]) if self.log_link else np.array([target])

    def without_offset(self, target, weight, offset):
        return self.criterion.without_offset(target, weight, offset)

    def encoded(self, column):
        return column.float()[:, None]

    def losses(self, outputs, target):
        if self.criterion.standardized or self.scale is None:
            return super().losses(outputs, target)
        return (self._unit_losses(outputs, target) / self.loss_unit).float()

    def unit_loss(self, outputs, target):
        if self.scale is None:
            return self.loss(outputs, target)
        if not self.criterion.standardized:
            return mean_of_targets(self._unit_losses(outputs, target))
        losses = self.losses(outputs, target).double()
        scale = torch.from_numpy(self._scale).to(outputs.device)
        target = target[:, None, :].expand(*outputs.shape[:2], target.shape[1])
        if losses.ndim == 2:
            target, scale = target[..., 0], scale[0]
        return mean_of_targets(self.criterion.in_units(losses, target, scale))

    def unit_mean(self, loss):
        if self.scale is None:
            return loss
        if not self.criterion.standardized:
            return loss * self.loss_unit
        # Targets that are counts have a weighted mean of one.
        return float(self.criterion.in_units(loss, 1.0, float(self._scale[0])))

    def learn_loss_unit(self, total, count):
        # Gradients are clipped at a norm, which a unit of the target must not decide about.
        if not self.criterion.standardized and total > 0:
            self.loss_unit = float(power_of_two(np.array(total / count)))

    @property
    def _scale(self):
        # A copy, because arrays that Ray sends are not writable, of which torch warns.
        return np.array(self.scale, dtype=np.float64).reshape(-1)

    def _unit_losses(self, outputs, target):
        """Return losses in units of the target, of a loss that is defined in these alone."""
        scale = torch.from_numpy(self._scale).to(outputs.device)
        target = target.double() * scale
        if self.log_link:
            outputs = outputs.double() + torch.log(scale)
        else:
            center = torch.from_numpy(np.array(self.center, dtype=np.float64).reshape(-1))
            center = center.to(outputs.device)
            outputs, target = outputs.double() * scale + center, target + center
        return super().losses(outputs, target)

    def average_members(self, outputs):
        if self.log_link:
            combined = outputs.logsumexp(1, keepdim=True) - math.log(outputs.shape[1])
        else:
            combined = outputs.mean(1, keepdim=True)
        return self.normalize(combined)

    def normalize(self, combined):
        return self.criterion.normalize(combined)

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
    kind = "choice"
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
