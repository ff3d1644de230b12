"""Backend that works in this process: chunks of rows in threads."""

from __future__ import annotations

from sk_easytensor._utils.runtime import limited_threads, resolve_threads
from sk_easytensor.backends.base import Backend
from sk_easytensor.executor import keep_freed_memory
from sk_easytensor.training.table_dataset import read_dataset
from sk_easytensor.training.train import train_network

__all__ = [
    "LocalBackend",
]


ROWS_PER_THREAD = 128
"""Number of rows of a training batch that keep one thread busy."""


class LocalBackend(Backend):
    """Reads, trains and predicts in this process; rows are in memory.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Number of threads: None for one (unless in a joblib context), -1 for all cores.
    chunk_rows : int, default=262_144
        Number of rows that are summarised or encoded at a time; several times more for blocks
        that work column by column.
    """

    def read_dataset(self, X, y, sample_weight, read, check_target, name=""):
        """Read rows with targets and weights into memory, as a :class:`TableDataset`."""
        return read_dataset(X, y, sample_weight, read, check_target, name)

    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network in the threads of this process."""
        keep_freed_memory()
        # With few rows per step, threads spend their time waiting for each other.
        n_useful = max(1, settings.batch_size // ROWS_PER_THREAD)
        with limited_threads(min(resolve_threads(self.n_jobs), n_useful)):
            result = train_network(network, head, rows, valid_rows, settings)
        if inspection is not None:
            result.inspected = inspection.keep_sample(rows, valid_rows)
        return result
