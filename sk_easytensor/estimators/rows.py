"""From rows of a table with their targets to rows a network is trained on."""

from __future__ import annotations

import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.table_dataset import BaseRowEncoder

__all__ = [
    "RowEncoder",
    "divided",
    "total_weight",
]


class RowEncoder(BaseRowEncoder):
    """Encodes rows with their targets.

    Parameters
    ----------
    target : Target
        Fitted; encodes targets.
    encoder : TableEncoder
        Fitted; encodes tables.
    executor : LocalExecutor
        Encodes tables.
    weighted : bool
        Whether weights are multiplied by those of the classes.
    """

    def __init__(self, target, encoder, executor, weighted):
        self.target = target
        self.encoder = encoder
        self.executor = executor
        self.weighted = weighted

    @property
    def columns(self):
        """The column of offsets, if there is one: these are subtracted from targets."""
        offset = self.encoder.offset_column
        return [] if offset is None else [offset]

    def encode(self, table, y, weight):
        """Return encoded rows."""
        rows = self.encode_targets(table, y, weight)
        rows.frame = self.encoder.encode_table(table, self.executor)
        return rows

    def encode_targets(self, table, y, weight):
        """Return rows without features, but for offsets."""
        target = self.target.encode(y)
        if self.weighted:
            weight = weight * self.target.class_weights(target)
        encoder, frame = self.encoder, {}
        if encoder.offset_block is not None:
            block = encoder.blocks_[encoder.offset_block]
            frame[encoder.offset_block] = block.encode(table.select([encoder.offset_column]))
        return EncodedDataset(
            TensorFrame(frame, len(target)), target, torch.from_numpy(weight).float()
        )


def total_weight(rows):
    """Return the sum of the rows' weights."""
    return float(rows.weight.double().sum())


def divided(rows, by):
    """Return rows with their weights divided by a number."""
    return EncodedDataset(rows.frame, rows.target, rows.weight / torch.tensor(by).float())
