"""Encoding of table rows with their targets, for training."""

from __future__ import annotations

import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.table_dataset import BaseRowEncoder

__all__ = [
    "RowEncoder",
    "scale_weights",
    "total_weight",
]


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


def total_weight(rows):
    """Return the sum of the rows' weights."""
    return float(rows.weight.double().sum())


def scale_weights(rows, divisor):
    """Return rows with their weights divided by a number."""
    return EncodedDataset(rows.frame, rows.target, rows.weight / torch.tensor(divisor).float())
