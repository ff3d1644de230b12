"""From rows of a table with their targets to rows a network is trained on."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, materialize

__all__ = [
    "RowEncoder",
    "bounded_targets",
    "divided",
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
