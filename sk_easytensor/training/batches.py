"""Encoded rows with their targets, and batches that are slices of them."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame

__all__ = ["BatchIterator", "EncodedRows"]


class EncodedRows:
    """A table ready for training: encodings, targets and weights.

    Parameters
    ----------
    frame : TensorFrame
        Encoded rows.
    target : torch.Tensor
        Targets as the head wants them.
    weight : torch.Tensor of float32, shape (n,)
        Row weights.
    """

    def __init__(self, frame, target, weight):
        self.frame = frame
        self.target = target
        self.weight = weight

    def __getstate__(self):
        """Return what is pickled: no torch object, so that it loads anywhere."""
        return self.frame.to_arrow(), self.target.numpy(), self.weight.numpy()

    def __setstate__(self, state):
        """Restore what was pickled."""
        frame, target, weight = state
        self.frame = TensorFrame.from_arrow(frame)
        self.target = torch.from_numpy(np.array(target))
        self.weight = torch.from_numpy(np.array(weight))

    def __len__(self):
        return len(self.frame)

    def __iter__(self):
        """Unpack into features and target, as skorch's callbacks do with a batch."""
        return iter((self.frame, self.target))

    def take(self, rows):
        """Return the given rows: a slice or an int64 tensor."""
        return EncodedRows(self.frame.take(rows), self.target[rows], self.weight[rows])

    def to(self, device):
        """Return the rows on another device."""
        return EncodedRows(self.frame.to(device), self.target.to(device), self.weight.to(device))


class BatchIterator:
    """Iterate over batches of :class:`EncodedRows`.

    Parameters
    ----------
    rows : EncodedRows
        All rows.
    batch_size : int
        Rows a batch, at most; the batches of an epoch differ in size by one row at most.
    shuffle : bool, default=False
        Whether each epoch has an order of its own, drawn from torch's global generator.
    """

    def __init__(self, rows, batch_size, shuffle=False):
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            for start in range(0, len(self.rows), self.batch_size):
                yield self.rows.take(slice(start, start + self.batch_size))
            return
        if len(self) == 1:
            yield self.rows
            return
        device = self.rows.weight.device
        order = torch.randperm(len(self.rows), device="cpu").to(device)
        for rows in order.tensor_split(len(self)):
            yield self.rows.take(rows)
