"""From rows of a table with their targets to rows a network is trained on."""

from __future__ import annotations

import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, materialize

__all__ = [
    "RowEncoder",
    "divided",
    "total_weight",
]


class RowEncoder:
    """Encodes rows with their targets; picklable, so that any process can do it.

    Parameters
    ----------
    target : Target
        Fitted; encodes targets.
    encoder : TableEncoder
        Fitted; encodes tables.
    backend : LocalBackend
        Where tables are encoded.
    weighted : bool
        Whether weights are multiplied by those of the classes.
    """

    gather = staticmethod(materialize)

    def __init__(self, target, encoder, backend, weighted):
        self.target = target
        self.encoder = encoder
        self.backend = backend
        self.weighted = weighted

    @property
    def columns(self):
        """Columns that :meth:`make_targets` reads: offsets are subtracted from targets."""
        offset = self.encoder.offset_column
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
        rows.frame = self.encoder.encode_table(table, self.backend)
        return rows

    def make_targets(self, table, y, weight):
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
