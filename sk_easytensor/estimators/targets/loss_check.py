"""Check of a user's loss on a few rows before training."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from sk_easytensor._utils.validation import shortened
from sk_easytensor.losses import BUILT_IN, LossError, with_checked_mean
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "check_returned_losses",
]


PROBED_ROWS = 256
"""Maximum number of rows of each chunk on which a user's loss is checked."""


def check_returned_losses(target, rows):
    """Check that a network can be trained with a user's loss, and learn the unit of losses.

    Parameters
    ----------
    target : Target
        Fitted target, with the loss and the scale of `y`.
    rows : Dataset
        Training rows.

    Raises
    ------
    ValueError, TypeError
        If the loss fails, or returns no finite, differentiable number for each row.
    """
    if target.loss is None or type(target.loss) in BUILT_IN.values():
        return
    sums = rows.map_chunks(partial(probe_loss, target=target))
    sums = [chunk for chunk in sums if chunk is not None]
    if sums:
        target.head_.learn_loss_unit(*np.sum(sums, axis=0))


def probe_loss(rows, *, target):
    """Compute a user's loss and its gradient for a few rows, at outputs near the initial ones.

    Returns
    -------
    tuple of (float, float) or None
        Sum of the absolute derivatives of the losses with respect to the outputs, and their number.
        None without rows.
    """
    rows = EncodedDataset(TensorFrame({}, len(rows)), rows.target, rows.weight)
    rows = target.scaled(rows).take(slice(PROBED_ROWS))
    if not len(rows):
        return None
    shape = (len(rows), 1, target.head_.out_features)
    outputs = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        derivative = checked_gradient(target, outputs.requires_grad_(), rows.target)
    return float(derivative.abs().sum()), float(derivative.numel())


def checked_gradient(target, outputs, targets):
    """Return the gradient of the sum of a user's losses with respect to the outputs.

    Parameters
    ----------
    target : Target
        Target with the loss.
    outputs : torch.Tensor of shape (n_rows, 1, out_features)
        Raw outputs, which require gradients.
    targets : torch.Tensor
        Scaled targets.

    Returns
    -------
    torch.Tensor of shape (n_rows, 1, out_features)

    Raises
    ------
    ValueError
        If the loss fails or is not differentiable, or if losses or gradients are not finite.
    """
    head, owner = target.head_, target.owner
    name = f"{owner}: loss {shortened(head.criterion.name)}"
    try:
        losses = head.with_loss(with_checked_mean(head.criterion)).losses(outputs, targets)
    except LossError as error:
        raise ValueError(f"{owner}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"{name} failed for {len(targets)} rows with {head.out_features} outputs: "
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
            f"{target.decode(targets[row : row + 1]).tolist()[0]} and an output near the initial "
            "one; losses must be finite"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    if not gradient.isfinite().all():
        raise ValueError(
            f"{name} has a gradient of NaN or infinity at outputs near the initial ones; clamp "
            "divisors, and the arguments of roots and logarithms"
        )
    return gradient
