"""From rows of a table with their targets to rows a network is trained on."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor._utils.validation import shortened
from sk_easytensor.losses import LossError, with_checked_mean
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, materialize

__all__ = [
    "RowEncoder",
    "bounded_targets",
    "divided",
    "probe_loss",
    "target_range",
    "total_weight",
]


LARGEST_TARGET = 1e15
"""Of a scaled target, in size: sums of squares over rows and members are finite."""


class RowEncoder:
    """Encodes rows for an estimator; picklable, so that any process can do it.

    Parameters
    ----------
    estimator : BaseEasyTensor
        Has learned target and blocks.
    backend : LocalBackend
        Encodes tables.
    weighted : bool
        Whether weights are multiplied by those of the classes.
    """

    gather = staticmethod(materialize)

    def __init__(self, estimator, backend, weighted):
        self.estimator = estimator
        self.backend = backend
        self.weighted = weighted

    @property
    def columns(self):
        """Of which :meth:`make_targets` wants a table: offsets are subtracted from targets."""
        offset = self.estimator._encoder._offset
        return [] if offset is None else [offset]

    def make_rows(self, table, y, weight):
        """Return encoded rows.

        Parameters
        ----------
        table : pyarrow.Table
            Features.
        y : ndarray
            Valid targets.
        weight : ndarray of float64, shape (n_rows,)
            Row weights.

        Returns
        -------
        EncodedDataset
        """
        rows = self.make_targets(table, y, weight)
        rows.frame = self.estimator._encoder.encode_table(table, self.backend)
        return rows

    def make_targets(self, table, y, weight):
        """Return rows without features, but for offsets."""
        target = self.estimator._encode_target(y)
        if self.weighted:
            weight = weight * self.estimator._class_weights(target)
        encoder, frame = self.estimator._encoder, {}
        if encoder.offset_block is not None:
            block = encoder.blocks_[encoder.offset_block]
            frame[encoder.offset_block] = block.encode(table.select([encoder._offset]))
        return EncodedDataset(
            TensorFrame(frame, len(target)), target, torch.from_numpy(weight).float()
        )


def bounded_targets(targets):
    """Return scaled targets in single precision, in which their squares stay finite.

    Only targets of rows of next to no weight, or of an evaluation set, are as far as the bound.
    """
    return targets.clamp(-LARGEST_TARGET, LARGEST_TARGET).float()


PROBED_ROWS = 256
"""Rows of each chunk at most that a user's loss is tried on before training."""


def probe_loss(rows, *, bare, head, owner):
    """Compute a user's loss and its gradient for a few rows, at outputs near the initial ones.

    Parameters
    ----------
    rows : EncodedDataset
        Training rows.
    bare : BaseEasyTensor
        Knows the scale of the targets.
    head : LossHead
        Has the loss.
    owner : str
        Name of the estimator, for errors.

    Returns
    -------
    tuple of (float, float) or None
        Sum of the absolute derivatives of the losses by the outputs, and how many there are. None
        without rows.

    Raises
    ------
    ValueError, TypeError
        If the loss fails, or returns no finite, differentiable number for each row.
    """
    few = slice(PROBED_ROWS)
    rows = bare._scaled(EncodedDataset(TensorFrame({}, len(rows)), rows.target, rows.weight)).take(
        few
    )
    if not len(rows):
        return None
    generator = torch.Generator().manual_seed(0)
    outputs = 0.1 * torch.randn(len(rows), 1, head.out_features, generator=generator)
    with torch.enable_grad():
        derivative = checked_gradient(
            head, outputs.requires_grad_(), rows.target, owner, bare._decoded_target
        )
    return float(derivative.abs().sum()), float(derivative.numel())


def checked_gradient(head, outputs, target, owner, decode):
    """Return the gradient of a user's loss; see :func:`probe_loss`."""
    name = f"{owner}: loss {shortened(head.criterion.name)}"
    try:
        losses = head.with_loss(with_checked_mean(head.criterion)).losses(outputs, target)
    except LossError as error:
        raise ValueError(f"{owner}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"{name} failed for {len(target)} rows with {head.out_features} outputs: "
            f"{type(error).__name__}: {error}. It takes raw outputs and targets as tensors, and "
            "returns a loss for each row, or a mean that torch.func.vmap can compute of one row"
        ) from error
    if not losses.requires_grad:
        raise ValueError(
            f"{name} is not differentiable: it must compute with torch on the outputs, without "
            "detach() and NumPy"
        )
    wrong = ~losses.detach().isfinite().flatten(1).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"{name} is {losses[row].flatten()[0].item()} for a row with the target "
            f"{decode(target[row : row + 1]).tolist()[0]} and an output near the initial one; "
            "losses must be finite"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    if not gradient.isfinite().all():
        raise ValueError(
            f"{name} has a gradient of NaN or infinity at outputs near the initial ones; clamp "
            "what is divided by, or what a root or logarithm is taken of"
        )
    return gradient


def total_weight(rows):
    """Return the sum of the rows' weights."""
    return float(rows.weight.double().sum())


def divided(rows, by):
    """Return rows with their weights divided by a number."""
    return EncodedDataset(rows.frame, rows.target, rows.weight / torch.tensor(by).float())


def target_range(rows):
    """Return the least and the largest target of each column, arrays of shape (n_columns,)."""
    lows, highs = zip(*filter(None, rows.map_chunks(_range)), strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _range(rows):
    target = rows.target.numpy()
    return (target.min(axis=0), target.max(axis=0)) if len(target) else None
