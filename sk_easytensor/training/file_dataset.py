"""Encoded rows in files that are mapped into memory, for data sets that do not fit."""

from __future__ import annotations

import mmap
import tempfile
from contextlib import suppress
from copy import copy

import pyarrow as pa
import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, TrainingDataset, join_rows, n_bytes

__all__ = [
    "MemoryMappedDataset",
    "RowCollector",
]


ALIGNMENT = 64
"""Bytes by whose multiples record batches in files begin."""

PIECES_IN_MEMORY = 8
"""Pieces of a file that would fit into memory; smaller ones are joined before they are written."""


class RowCollector:
    """Stores pieces of encoded rows: joined in memory, or in files if they are too large.

    Parameters
    ----------
    memory : int
        Largest size of the rows in memory, in bytes. Joining them takes as much memory again,
        which counts.
    """

    def __init__(self, memory):
        self.memory = memory
        self._in_memory = []
        self._size = 0
        self._in_files = None

    def append(self, piece):
        """Add an :class:`EncodedDataset`, whose rows come after those already added."""
        if len(piece) == 0:
            return
        self._in_memory.append(piece)
        self._size += n_bytes(piece)
        # Joining the pieces takes as much memory again.
        if self._in_files is None and 2 * self._size > self.memory:
            self._in_files = MemoryMappedDataset(self.memory)
        while self._in_files is not None and PIECES_IN_MEMORY * self._size > self.memory:
            group = [self._in_memory.pop(0)]
            n_joined = n_bytes(group[0])
            while self._in_memory and PIECES_IN_MEMORY * n_joined <= self.memory:
                group.append(self._in_memory.pop(0))
                n_joined += n_bytes(group[-1])
            self._size -= n_joined
            self._in_files.append(join_rows(group))

    def finish(self):
        """Return all rows, an EncodedDataset or MemoryMappedDataset; None if there are none."""
        # The pieces are not needed beside what is made of them.
        in_memory, self._in_memory = self._in_memory, []
        if self._in_files is None:
            return join_rows(in_memory) if in_memory else None
        if in_memory:
            self._in_files.append(join_rows(in_memory))
        return self._in_files


class RecordFile:
    """Temporary file of record batches, which are read by mapping it into memory.

    Notes
    -----
    The file has no name where the operating system supports that, so that it is gone with the
    process, even if the process is killed.
    """

    def __init__(self):
        self._file = self._mapped = None

    def __del__(self):
        # What is left in the buffer does not matter any more.
        with suppress(OSError, AttributeError):
            self._file.close()

    def write(self, batch):
        """Write a record batch, and return its position in the file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="sk_easytensor-rows-")  # noqa: SIM115
        start = self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
        with pa.ipc.new_stream(pa.PythonFile(self._file, "wb"), batch.schema) as writer:
            writer.write_batch(batch)
        self._file.flush()
        return start

    def read(self, start):
        """Return the record batch at a position, which shares the memory of the file."""
        size = self._file.tell()
        if self._mapped is None or self._mapped.size < size:
            mapped = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
            self._mapped = pa.py_buffer(mapped)
        return pa.ipc.open_stream(self._mapped.slice(start)).read_next_batch()


class MemoryMappedDataset(TrainingDataset):
    """Encoded rows in a temporary file, read by mapping it into memory.

    Each piece is shuffled when it is written. Shuffled batches are drawn from windows: a window has
    an equal fraction of the rows of every piece, so that it represents all rows in whatever order
    these came, and its rows are shuffled again.

    Parameters
    ----------
    memory : int
        Largest size of the memory that a window takes, in bytes.
    """

    def __init__(self, memory):
        self.memory = memory
        self.bytes = 0
        self.functions = ()
        self._file = RecordFile()
        self._pieces = []

    def append(self, rows):
        """Write a piece to the file, after those already written.

        Raises
        ------
        OSError
            If the file cannot be written. The message names the directory.
        """
        generator = torch.Generator().manual_seed(len(self._pieces))
        rows = rows.take(torch.randperm(len(rows), generator=generator))
        batch = rows.frame.to_arrow()
        targets = TensorFrame({"y": {"target": rows.target, "weight": rows.weight}}).to_arrow()
        try:
            starts = [self._file.write(part) for part in (batch, targets)]
        except OSError as error:
            raise OSError(
                error.errno,
                "the encoded rows cannot be written into the directory of temporary files, after "
                f"{self.bytes / 1e6:.0f} MB ({error.strerror}). Set the environment variable "
                "TMPDIR to another one, or raise memory_per_worker of RayBackend, up to which rows "
                "stay in memory",
                tempfile.gettempdir(),
            ) from error
        self._pieces.append((len(rows), starts))
        self.bytes += n_bytes(rows)

    def __len__(self):
        return sum(n_rows for n_rows, _ in self._pieces)

    def map(self, function):
        """Return the rows with a function applied to them each time they are read."""
        mapped = copy(self)
        mapped.functions = (*self.functions, function)
        return mapped

    def parts(self):
        """Yield the pieces, one in memory at a time."""
        for piece in self.stored_parts():
            yield self.apply(piece)

    def stored_parts(self):
        """Yield the pieces as they are in the file, without the functions of :meth:`map`."""
        for index in range(len(self._pieces)):
            yield self._read(index)

    def windows(self, generator=None):
        """Yield the windows of an epoch, in random order; together they have all rows once.

        They are as in the file; see :meth:`apply`.

        Parameters
        ----------
        generator : torch.Generator, optional
            Generator of the order; torch's global one by default.
        """
        # A window is in memory three times: as pieces, joined, and as the current batch.
        n_windows = min(-(-3 * self.bytes // self.memory), len(self))
        # Other fractions of the pieces meet in each epoch.
        shifts = torch.randint(n_windows, (len(self._pieces),), generator=generator).tolist()
        for window in torch.randperm(n_windows, generator=generator).tolist():
            parts = []
            for index, (n_rows, _) in enumerate(self._pieces):
                fraction = (window + shifts[index]) % n_windows
                first, end = (n_rows * (fraction + edge) // n_windows for edge in (0, 1))
                if end > first:
                    parts.append(self._read(index).take(slice(first, end)))
            if parts:
                yield join_rows(parts)

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches; see :meth:`TrainingDataset.batches`."""
        return MemoryMappedBatches(self, batch_size, shuffle, lengths, n_batches)

    def _read(self, index):
        """Return a piece, whose tensors share the memory of the file."""
        frame, targets = (
            TensorFrame.from_arrow(self._file.read(start)) for start in self._pieces[index][1]
        )
        return EncodedDataset(frame, targets["y"]["target"], targets["y"]["weight"])

    def apply(self, rows):
        """Return rows of the file with the functions of :meth:`map` applied."""
        for function in self.functions:
            rows = function(rows)
        return rows


class MemoryMappedBatches:
    """Iterable of batches of :class:`MemoryMappedDataset`.

    Parameters
    ----------
    rows : MemoryMappedDataset
        Rows to iterate over.
    batch_size, shuffle, lengths, n_batches
        As in :meth:`TrainingDataset.batches`.
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
        # Steps draw from the global generator, while windows are read between them.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        rows_read, batches_yielded, held = 0, 0, []
        for window in self.rows.windows(generator):
            rows_read += len(window)
            held.append(window)
            # The batches of all windows add up to n_batches, whatever the windows' sizes.
            if rows_read == len(self.rows):
                target = self.n_batches
            else:
                target = min(round(self.n_batches * rows_read / len(self.rows)), self.n_batches - 1)
            # Rows of a window that is much smaller than a batch are in the next one's batches.
            if target > batches_yielded:
                yield from self.rows.apply(join_rows(held)).batches(
                    self.batch_size,
                    shuffle=True,
                    lengths=self.lengths,
                    n_batches=target - batches_yielded,
                    generator=generator,
                )
                batches_yielded, held = target, []
