"""A worker's share of the encoded rows: in memory if it fits, else in files that are mapped."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.temporary import make_temporary_directory, remove_temporary_directory
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.batches import EncodedRows

__all__ = ["SpilledRows", "bounded_sample", "gather_rows", "join_rows", "sampled_parts"]


def gather_rows(pieces, memory):
    """Keep pieces of encoded rows: as one in memory, or as files once they are too large.

    Parameters
    ----------
    pieces : iterable of EncodedRows
        In the order of the data.
    memory : int
        Bytes that the rows may take.

    Returns
    -------
    EncodedRows or SpilledRows
    """
    kept, size, spilled = [], 0, None
    for piece in pieces:
        if len(piece) == 0:
            continue
        size += n_bytes(piece)
        kept.append(piece)
        # Joining the pieces takes as much memory again.
        if 2 * size > memory and spilled is None:
            spilled = SpilledRows(memory)
        if spilled is not None:
            for each in kept:
                spilled.append(each)
            kept = []
    if spilled is not None:
        return spilled
    return join_rows(kept) if kept else None


def join_rows(pieces):
    """Join pieces of encoded rows into one."""
    if len(pieces) == 1:
        return pieces[0]
    return EncodedRows(
        TensorFrame.concatenate([piece.frame for piece in pieces]),
        torch.cat([piece.target for piece in pieces]),
        torch.cat([piece.weight for piece in pieces]),
    )


def n_bytes(rows):
    """Return how much memory encoded rows take."""
    return sum(tensor.nbytes for tensor in [*rows.frame.content(), rows.target, rows.weight])


def bounded_sample(rows, size, seed):
    """Return at most `size` of the rows, in memory, evenly from all pieces.

    Of rows in several pieces there may be one more for each piece.
    """
    return join_rows([part.to("cpu") for part in sampled_parts(rows, size, seed)])


def sampled_parts(rows, size, seed):
    """Yield at most `size` of the rows, piece by piece; see :func:`bounded_sample`."""
    random, share = np.random.RandomState(seed), size / max(len(rows), 1)
    for part in rows.parts():
        if share < 1:
            n_rows = min(len(part), int(np.ceil(share * len(part))))
            chosen = random.choice(len(part), n_rows, replace=False)
            part = part.take(torch.from_numpy(np.sort(chosen)).to(part.weight.device))
        yield part


class SpilledRows:
    """Encoded rows in files of a temporary directory, read by mapping them into memory.

    Has what the training loop asks of :class:`~sk_easytensor.training.batches.EncodedRows`.
    Batches are drawn from windows: some pieces, chosen at random, are read and their rows
    shuffled together.

    Parameters
    ----------
    memory : int
        Bytes that a window may take.
    """

    def __init__(self, memory):
        self.memory = memory
        self.directory = make_temporary_directory("rows")
        weakref.finalize(self, remove_temporary_directory, self.directory)
        self.sizes = []
        self.bytes = 0
        self.functions = ()

    def append(self, rows):
        """Write one more piece."""
        batch = rows.frame.to_arrow()
        targets = TensorFrame({"y": {"target": rows.target, "weight": rows.weight}}).to_arrow()
        for name, part in (("frame", batch), ("targets", targets)):
            path = self._path(len(self.sizes), name)
            with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, part.schema) as writer:
                writer.write_batch(part)
        self.sizes.append(len(rows))
        self.bytes += n_bytes(rows)

    def __len__(self):
        return sum(self.sizes)

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch: always the same."""
        return self

    def map(self, function):
        """Return the rows with a function applied to those that are read together."""
        other = object.__new__(SpilledRows)
        # The first keeps the directory alive.
        vars(other).update(vars(self), functions=(*self.functions, function), origin=self)
        return other

    def to(self, device):
        """Return the rows on another device, where each piece comes when it is read."""
        return self.map(lambda rows: rows.to(device))

    def each(self, function):
        """Return what a function gives for each piece, as a list."""
        return [function(piece) for piece in self.parts()]

    def parts(self):
        """Yield the pieces, one at a time."""
        for index in range(len(self.sizes)):
            yield self.read([index])

    def read(self, indices):
        """Return some pieces joined."""
        rows = join_rows([self._read(index) for index in indices])
        for function in self.functions:
            rows = function(rows)
        return rows

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches."""
        return SpilledBatches(self, batch_size, shuffle, lengths, n_batches)

    def window(self):
        """Return how many pieces are read at a time."""
        mean = self.bytes / len(self.sizes)
        # A window is in memory as pieces, joined, and as the batch that is taken.
        return max(1, int(self.memory / 3 / mean))

    def _path(self, index, name):
        return os.path.join(self.directory, f"{index:06}.{name}")

    def _read(self, index):
        with pa.memory_map(self._path(index, "frame")) as file:
            frame = TensorFrame.from_arrow(pa.ipc.open_file(file).get_batch(0))
        with pa.memory_map(self._path(index, "targets")) as file:
            targets = TensorFrame.from_arrow(pa.ipc.open_file(file).get_batch(0))["y"]
        return EncodedRows(frame, targets["target"], targets["weight"])


class SpilledBatches:
    """Batches of spilled rows.

    Parameters
    ----------
    rows : SpilledRows
        The rows.
    batch_size, shuffle, lengths, n_batches
        As of :meth:`EncodedRows.batches`.
    """

    def __init__(self, rows, batch_size, shuffle, lengths, n_batches):
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.lengths = lengths
        self.n_batches = n_batches or -(-len(rows) // batch_size)

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        if not self.shuffle:
            for piece in self.rows.parts():
                yield from piece.batches(self.batch_size, lengths=self.lengths)
            return
        order = torch.randperm(len(self.rows.sizes)).tolist()
        width = self.rows.window()
        windows = [order[start : start + width] for start in range(0, len(order), width)]
        done, given = 0, 0
        for number, window in enumerate(windows):
            rows = self.rows.read(window)
            done += len(rows)
            # As many batches in all as were asked for, whatever the windows' sizes.
            until = (
                self.n_batches
                if number == len(windows) - 1
                else max(
                    given, min(round(self.n_batches * done / len(self.rows)), self.n_batches - 1)
                )
            )
            if until > given:
                yield from rows.batches(
                    self.batch_size, shuffle=True, lengths=self.lengths, n_batches=until - given
                )
            given = until
