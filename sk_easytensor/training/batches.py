"""Encoded rows with their targets, and batches that are slices of them."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame

__all__ = ["BatchIterator", "EncodedRows", "FreshRows"]

WINDOW = 16
"""Batches among whose rows those of like length are put together."""

MUCH_PADDING = 0.2
"""Fraction of padding up to which batches are left random."""


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

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch, counted from 0: by default always the same."""
        return self

    def map(self, function):
        """Apply a function from rows to rows, which may be done later and piece by piece."""
        return function(self)

    def each(self, function):
        """Return what a function gives for targets and weights of each piece, as a list."""
        return [function(self)]

    def parts(self):
        """Return the rows as an iterable of rows that are in memory."""
        return [self]

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches; see :class:`BatchIterator`.

        Parameters
        ----------
        lengths : callable, optional
            Takes a frame and returns how long each row's lists are, or None.
        """
        found = None if lengths is None else lengths(self.frame)
        return BatchIterator(self, batch_size, shuffle, found, n_batches)


class FreshRows(EncodedRows):
    """Rows that are drawn anew for each epoch.

    Parameters
    ----------
    draw : callable
        Takes the epoch, counted from 0, and returns :class:`EncodedRows`, always as many and for
        one epoch always the same. Picklable, if the rows are to be.
    """

    def __init__(self, draw):
        rows = draw(0)
        super().__init__(rows.frame, rows.target, rows.weight)
        self.draw = draw

    def __getstate__(self):
        """Return what is pickled: how to draw, and no row."""
        return self.draw

    def __setstate__(self, draw):
        """Restore what was pickled."""
        self.__init__(draw)

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch, counted from 0."""
        return self if epoch == 0 else self.draw(epoch)


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
    lengths : torch.Tensor of int64, shape (n,), optional
        How long each row's lists are. Shuffled batches then hold rows of like length if that
        saves much padding: among rows of `WINDOW` random batches, those of like length are put
        together, and the batches come in random order.
    n_batches : int, optional
        Batches an epoch if shuffled, whatever `batch_size`.
    """

    def __init__(self, rows, batch_size, shuffle=False, lengths=None, n_batches=None):
        self.n_batches = n_batches
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        worthwhile = lengths is not None and random_padding(lengths, batch_size) > MUCH_PADDING
        self.lengths = lengths.cpu() if worthwhile else None

    def __len__(self):
        return self.n_batches or -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            for start in range(0, len(self.rows), self.batch_size):
                yield self.rows.take(slice(start, start + self.batch_size))
            return
        if len(self) == 1:
            yield self.rows
            return
        device = self.rows.weight.device
        batches = torch.randperm(len(self.rows), device="cpu").tensor_split(len(self))
        if self.lengths is not None:
            batches = self._alike(batches)
        for rows in batches:
            yield self.rows.take(rows.to(device))

    def _alike(self, batches):
        alike = []
        for start in range(0, len(batches), WINDOW):
            window = batches[start : start + WINDOW]
            rows = torch.cat(window)
            rows = rows[self.lengths[rows].argsort(stable=True)]
            alike += rows.split([len(batch) for batch in window])
        return [alike[index] for index in torch.randperm(len(alike)).tolist()]


def random_padding(lengths, batch_size):
    """Return which fraction of random batches is padding, about."""
    # An empty list is read as one item.
    lengths = lengths.clamp(min=1)
    longest = torch.quantile(_sample(lengths), 1 - 1 / min(batch_size, len(lengths)))
    return 1 - float(lengths.float().mean() / longest)


def _sample(lengths, size=100_000):
    """Return a part of the lengths that is small enough to be sorted at once, as floats."""
    return lengths[:: -(-len(lengths) // size)].float()
