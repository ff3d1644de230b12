"""Work on this machine: chunks of rows in threads."""

from __future__ import annotations

from sk_easytensor._utils.runtime import limited_threads, resolve_threads
from sk_easytensor.executor import LocalExecutor, keep_freed_memory
from sk_easytensor.training.dataset import hold_out, merge_duplicates, read_dataset, take_columns
from sk_easytensor.training.train import resolve_device, train_network

__all__ = [
    "LocalBackend",
]


ROWS_A_THREAD = 128
"""Rows of a training batch that keep one thread busy."""


class LocalBackend(LocalExecutor):
    """Runs the library's verbs on this machine.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Threads; see :func:`resolve_threads`.
    chunk_rows : int, default=262_144
        Rows that are summarised or encoded at a time; several times more by blocks that work
        column by column.
    """

    def device(self, device, owner):
        """Check a device for training, as far as it can be known before."""
        return resolve_device(device, owner)

    def records(self, X, y, sample_weight, read, check_target, where=""):
        """Read rows with targets and weights.

        Parameters
        ----------
        X, y, sample_weight, read, check_target, where
            As of :func:`~sk_easytensor.training.dataset.read_dataset`.

        Returns
        -------
        TableDataset
        """
        return read_dataset(X, y, sample_weight, read, check_target, where)

    def merged(self, rows, batch_size):
        """Merge equal rows where that changes nothing but time."""
        return merge_duplicates(rows, batch_size)

    def hold_out(self, rows, strata, fraction, random_state):
        """Take a validation part out of rows.

        Parameters
        ----------
        rows : EncodedDataset
            All rows.
        strata : callable
            Takes targets and returns the group of each row.
        fraction, random_state
            As of :func:`~sk_easytensor.training.dataset.hold_out`.
        """
        return hold_out(rows, strata(rows.target), fraction, random_state)

    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network.

        Parameters
        ----------
        network, head, rows, valid_rows, settings
            As of :func:`~sk_easytensor.training.train.train_network`.
        inspection : Inspection, optional
            Says what to keep of the rows, or to compute from them, for importances.

        Returns
        -------
        TrainingResult
        """
        keep_freed_memory()
        # With few rows a step, threads spend their time waiting for each other.
        useful = max(1, settings.batch_size // ROWS_A_THREAD)
        with limited_threads(min(resolve_threads(self.n_jobs), useful)):
            result = train_network(network, head, rows, valid_rows, settings)
        if inspection is not None:
            result.inspected = inspection.later(rows, valid_rows)
        return result

    def map_rows(self, call, X):
        """Predict a stored table.

        Parameters
        ----------
        call : StoredCall
            What to do with tables.
        X : str, os.PathLike or Dataset
            Where the rows are; here they are read as one table.

        Returns
        -------
        object
            What the estimator's method returns.
        """
        return call(X)

    def map_chunks(self, X, y, sample_weight, function, random_state, check):
        """Apply a function to chunks of rows with targets and weights; here there is one chunk.

        Parameters
        ----------
        X : table-like
            Rows.
        y : array-like, str or list of str
            Targets, or the columns of a stored table that hold them.
        sample_weight : array-like, str or None
            Weights, or the column that holds them.
        function : callable
            Takes rows, targets, weights or None, a RandomState of the chunk's own, and how many
            rows there are in all, if these are some of them; None otherwise.
        random_state : RandomState
            Where those of chunks come from.
        check : callable
            Takes a table of one row without values, and raises an error if columns are missing,
            where that can be known before rows are read.

        Returns
        -------
        list
            What the function returned for each chunk.
        """
        X, y, sample_weight = take_columns(X, y, sample_weight)
        return [function(X, y, sample_weight, random_state, None)]
