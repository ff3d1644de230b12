"""Summaries, encodings and forward passes of chunks of rows, in the threads of one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import numpy as np
import torch

from sk_easytensor._utils.runtime import limited_threads, resolve_threads
from sk_easytensor._utils.validation import check_number
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.summaries import SummaryMap, merge_all
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "LocalExecutor",
    "forward_on",
    "keep_freed_memory",
]


COLUMN_WISE = 16
"""Factor of the chunk size for blocks that work column by column."""

ROW_MULTIPLE = 32
"""Batches are padded to a multiple of this number of rows for predictions."""

ITEMS = 131_072
"""Largest number of items of lists in a batch, padding included."""

ONCE_FREED = 31_000_000
"""Size of the memory that :func:`keep_freed_memory` frees, in bytes. A size above 32 MB would have
no effect."""

FORWARD_DEVICE = ContextVar("FORWARD_DEVICE", default="cpu")
"""Device of the networks in forward passes; see :func:`forward_on`."""


class LocalExecutor:
    """Summarizes, encodes and predicts chunks of rows in threads.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Number of threads; see :func:`resolve_threads`.
    chunk_rows : int, default=262_144
        Rows that are summarized or encoded at a time; up to 16 times more for blocks that work
        column by column.

    Raises
    ------
    ValueError
        If `n_jobs` is 0 or not an integer, or `chunk_rows` is less than 1.
    """

    def __init__(self, n_jobs=None, chunk_rows=262_144):
        if n_jobs is not None:
            check_number(type(self).__name__, "n_jobs", n_jobs, integer=True)
            if n_jobs == 0:
                raise ValueError(
                    f"{type(self).__name__}: n_jobs must be an integer other than 0, or None"
                )
        check_number(type(self).__name__, "chunk_rows", chunk_rows, low=1, integer=True)
        self.n_jobs = n_jobs
        self.chunk_rows = chunk_rows

    def summarize(self, table, blocks):
        """Summarize a table for all blocks in one pass.

        Parameters
        ----------
        table : pyarrow.Table
            Table with the columns of all blocks.
        blocks : dict of {str: tuple of (Block, list of str)}
            Blocks with the columns that they read, by name.

        Returns
        -------
        dict of {str: Summary}
            Summary of each block, merged in the order of the rows.

        Raises
        ------
        RowError
            Error of a block, with the number of the row in `table`.
        """
        work = {}
        for name, (block, columns) in blocks.items():
            groups = [[column] for column in columns] if block.column_wise else [columns]
            chunk_rows = self._chunk_rows(table, block, len(groups))
            for group in groups:
                chunks = slices(table.select(group), chunk_rows)
                work[name, *group] = (block.summarize, chunks)
        merged = {key: merge_all(parts) for key, parts in self._run(table, work).items()}
        summaries = {}
        for (name, *_), summary in merged.items():
            if name in summaries:
                summary = SummaryMap(summaries[name] | summary)
            summaries[name] = summary
        return summaries

    def map_reduce(self, table, function):
        """Apply a function to chunks of a table, and merge the summaries that it returns.

        Parameters
        ----------
        table : pyarrow.Table
            Table to summarize.
        function : callable
            Function of consecutive rows, a table, that returns a
            :class:`~sk_easytensor.data.summaries.Summary`.

        Returns
        -------
        Summary
            Summary of all rows, merged in their order.

        Raises
        ------
        RowError
            Error of the function, with the number of the row in `table`.
        """
        chunks = slices(table, self.chunk_rows)
        return merge_all(self._run(table, {"": (function, chunks)})[""])

    def encode(self, table, blocks):
        """Encode a table with fitted blocks.

        Parameters
        ----------
        table : pyarrow.Table
            Table with the columns of all blocks.
        blocks : dict of {str: tuple of (Block, list of str)}
            Fitted blocks with the columns that they read, by name.

        Returns
        -------
        TensorFrame
            Encoding of each block, with the rows of the table.

        Raises
        ------
        RowError
            Error of a block, with the number of the row in `table`.
        """
        work = {}
        for name, (block, columns) in blocks.items():
            chunks = slices(table.select(columns), self._chunk_rows(table, block))
            work[name] = (block.encode, chunks)
        # A block may run a pretrained model.
        with limited_threads(self.n_jobs):
            encoded = self._run(table, work)
        encodings = {
            name: TensorFrame.concatenate([TensorFrame({name: part}) for part in parts])[name]
            for name, parts in encoded.items()
        }
        return TensorFrame(encodings, len(table))

    def forward(self, function, frame, batch_size=2048, lengths=None):
        """Apply a function to batches of a frame, without gradients, and join the results.

        Parameters
        ----------
        function : callable
            Function of a :class:`TensorFrame` that returns a tensor with a row for each of its
            rows.
        frame : TensorFrame
            Encoded rows.
        batch_size : int, default=2048
            Largest number of rows of a batch. The outputs of a layer for a batch should fit into
            the cache of a processor.
        lengths : torch.Tensor of int64, shape (n_rows,), optional
            Length of the lists of each row. With lengths, batches consist of rows of similar
            length, and of fewer rows if their lists are long.

        Returns
        -------
        torch.Tensor
            Results in the order of the rows, on the CPU.
        """
        keep_freed_memory()
        if lengths is None:
            order = None
            batches = [slice(i, i + batch_size) for i in range(0, len(frame), batch_size)]
        else:
            order = lengths.argsort(stable=True)
            batches = order.split(batch_sizes(lengths[order], batch_size))
        with limited_threads(self.n_jobs), torch.inference_mode():
            parts, device = [], FORWARD_DEVICE.get()
            for rows in batches:
                batch = frame.take(rows)
                full = padded(batch)
                full = full if device == "cpu" else full.to(device)
                parts.append(function(full)[: len(batch)].cpu())
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            return joined if order is None else joined[order.argsort()]

    def _chunk_rows(self, table, block, n_groups=1):
        """Return the number of rows of a chunk for a block."""
        if not block.column_wise:
            return self.chunk_rows
        # Every chunk costs look-ups in whole vocabularies and a merge, so that chunks are as large
        # as they can be while every thread has one.
        chunk_rows = COLUMN_WISE * self.chunk_rows
        threads = resolve_threads(self.n_jobs)
        while chunk_rows > self.chunk_rows and n_groups * -(-len(table) // chunk_rows) < threads:
            chunk_rows //= 2
        return chunk_rows

    def _run(self, table, work):
        """Call functions on chunks of a table, and return lists of results by key of ``work``."""
        tasks = []
        for key, (function, chunks) in work.items():
            starts = np.cumsum([0] + [len(chunk) for chunk in chunks])
            tasks += [(key, function, *pair) for pair in zip(chunks, starts, strict=False)]
        # Threads only save time if the table has more than one chunk.
        threads = resolve_threads(self.n_jobs) if len(table) > self.chunk_rows else 1
        if threads == 1:
            results = [_apply(*task) for _, *task in tasks]
        else:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(lambda task: _apply(*task[1:]), tasks))
        parts = {key: [] for key in work}
        for (key, *_), result in zip(tasks, results, strict=True):
            parts[key].append(result)
        return parts


def _apply(function, chunk, start):
    """Call a function on the chunk of a table that begins at row `start`."""
    with row_errors_from(start):
        return function(chunk)


def slices(table, n_rows):
    """Return slices of at most `n_rows` rows of a table, at least one slice."""
    return [table.slice(start, n_rows) for start in range(0, max(len(table), 1), n_rows)]


def padded(frame):
    """Repeat the last row up to a multiple of `ROW_MULTIPLE` rows.

    Matrix products of a single row take other code paths, with other rounding, than those of many.
    With padding, predictions do not depend on the number of rows that are predicted together.
    """
    size = -(-len(frame) // ROW_MULTIPLE) * ROW_MULTIPLE
    if size == len(frame):
        return frame
    return frame.take(torch.arange(size).clamp(max=len(frame) - 1))


def batch_sizes(lengths, batch_size):
    """Divide rows, sorted by the length of their lists, into batches of at most `ITEMS` items.

    Parameters
    ----------
    lengths : torch.Tensor of int64, shape (n_rows,)
        Increasing lengths.
    batch_size : int
        Largest number of rows of a batch.

    Returns
    -------
    list of int
        Number of rows of each batch.
    """
    sizes, start = [], 0
    while start < len(lengths):
        rows = lengths[start : start + batch_size].clamp(min=1)
        items = rows * torch.arange(1, len(rows) + 1)
        sizes.append(max(int((items <= ITEMS).sum()), min(ROW_MULTIPLE, len(rows))))
        start += sizes[-1]
    return sizes


@cache
def keep_freed_memory():
    """Make the C library keep freed memory for later computations.

    The C library of Linux returns memory to the system once more of it is free than twice the
    largest block that was ever freed, and the system clears it page by page when it is allocated
    again. For two batches of 22 columns this is 9 MB, and a third to a half of the time of a
    prediction.
    """
    # The tensor is never written to, so that it takes no physical memory.
    torch.empty(ONCE_FREED, dtype=torch.uint8)


@contextmanager
def forward_on(device):
    """Run forward passes on a device within the context, with networks that are already there."""
    token = FORWARD_DEVICE.set(device)
    try:
        yield
    finally:
        FORWARD_DEVICE.reset(token)
