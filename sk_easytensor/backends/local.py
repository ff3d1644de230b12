"""Work on this machine: chunks of rows in threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from joblib import effective_n_jobs

from sk_easytensor.parameters import check_number
from sk_easytensor.summaries import merge_all
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.fitting import train_network

__all__ = ["LocalBackend", "limited_threads", "resolve_threads"]


class LocalBackend:
    """Runs the library's verbs on this machine.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Threads; see :func:`resolve_threads`.
    chunk_rows : int, default=262_144
        Rows that are summarised or encoded at a time.
    """

    def __init__(self, n_jobs=None, chunk_rows=262_144):
        if n_jobs is not None:
            check_number("LocalBackend", "n_jobs", n_jobs, integer=True)
            if n_jobs == 0:
                raise ValueError("LocalBackend: n_jobs must be an integer other than 0, or None")
        check_number("LocalBackend", "chunk_rows", chunk_rows, low=1, integer=True)
        self.n_jobs = n_jobs
        self.chunk_rows = chunk_rows

    def summarize(self, table, blocks):
        """Summarise a table for all blocks in one pass.

        Parameters
        ----------
        table : pyarrow.Table
            All columns.
        blocks : dict of {str: tuple of (Block, list of str)}
            Blocks and the columns each reads.

        Returns
        -------
        dict of {str: Summary}
        """
        parts = self._map_chunks(
            table, lambda chunk, block, columns: block.summarize(chunk.select(columns)), blocks
        )
        return {name: merge_all(summaries) for name, summaries in parts.items()}

    def encode(self, table, blocks):
        """Encode a table with fitted blocks.

        Returns
        -------
        TensorFrame
        """
        parts = self._map_chunks(
            table, lambda chunk, block, columns: block.encode(chunk.select(columns)), blocks
        )
        if len(table) <= self.chunk_rows:
            return TensorFrame({name: part[0] for name, part in parts.items()}, len(table))
        chunks = [
            TensorFrame({name: part[index] for name, part in parts.items()})
            for index in range(len(next(iter(parts.values()))))
        ]
        return TensorFrame.concatenate(chunks)

    def train(self, network, head, rows, valid_rows, settings):
        """Train a network; see :func:`~sk_easytensor.training.fitting.train_network`."""
        with limited_threads(self.n_jobs):
            return train_network(network, head, rows, valid_rows, settings)

    def forward(self, function, frame, batch_size=4096):
        """Apply a function to batches of a frame, without gradients, and join the results.

        Parameters
        ----------
        function : callable
            Takes a :class:`TensorFrame`, returns a tensor with a row for each of its rows.
        frame : TensorFrame
            Encoded rows.
        batch_size : int, default=4096
            Rows at a time.

        Returns
        -------
        torch.Tensor
        """
        with limited_threads(self.n_jobs), torch.inference_mode():
            parts = [
                function(frame.take(slice(start, start + batch_size))).cpu()
                for start in range(0, len(frame), batch_size)
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _map_chunks(self, table, function, blocks):
        starts = range(0, max(len(table), 1), self.chunk_rows)
        tasks = [
            (name, table.slice(start, self.chunk_rows), block, columns)
            for start in starts
            for name, (block, columns) in blocks.items()
        ]
        # Threads only pay where there is more than one chunk's worth of work.
        threads = resolve_threads(self.n_jobs) if len(starts) > 1 else 1
        if threads == 1:
            results = [function(*task[1:]) for task in tasks]
        else:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(lambda task: function(*task[1:]), tasks))
        parts = {name: [] for name in blocks}
        for (name, *_), result in zip(tasks, results, strict=True):
            parts[name].append(result)
        return parts


def resolve_threads(n_jobs):
    """Return how many threads to use.

    Parameters
    ----------
    n_jobs : int or None
        As in scikit-learn: None means one unless in a joblib context that says otherwise, -1
        means all cores. Limits that joblib puts on its workers are respected.

    Returns
    -------
    int
    """
    threads = max(1, effective_n_jobs(n_jobs))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads


@contextmanager
def limited_threads(n_jobs):
    """Bound torch's threads within the context and restore them after it."""
    before = torch.get_num_threads()
    threads = resolve_threads(n_jobs)
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
