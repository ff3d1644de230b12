"""Contract of backends, which read rows, train networks and predict stored tables.

:class:`LocalBackend` does this in the process of the caller, with chunks of rows in threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager

from sk_easytensor._utils.runtime import limited_threads, resolve_threads
from sk_easytensor.executor import LocalExecutor, keep_freed_memory
from sk_easytensor.training.table_dataset import read_dataset, take_columns
from sk_easytensor.training.train import resolve_device, train_network

__all__ = [
    "Backend",
    "LocalBackend",
]


class Backend(LocalExecutor, ABC):
    """Base class of backends, which decide where work runs.

    A subclass implements :meth:`read_dataset` and :meth:`train`, and overrides the methods whose
    work it does outside of this process. The data sets that it returns decide where rows are
    summarised, split and encoded; :meth:`map_batches` decides where stored tables are predicted.
    Tables in memory are summarised, encoded and predicted in threads of this process, by
    :class:`~sk_easytensor.executor.LocalExecutor`. An object of a subclass is passed to an
    estimator as ``backend=``.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Number of threads of this process: None for one (unless in a joblib context), -1 for all
        cores.
    chunk_rows : int, default=262_144
        Number of rows that are summarised or encoded at a time; several times more for blocks
        that work column by column.

    Notes
    -----
    A backend is a parameter of estimators: it is copied and pickled with them, and sent to other
    processes if these encode rows. A fit resumes from checkpoints only if ``repr`` of the backend
    is the same. ``repr`` therefore contains the parameters that change the weights, such as the
    number of workers.
    """

    distributed = False
    """Whether networks are trained, and stored rows read, by processes other than this one.

    If True, estimators refuse arrays of offsets beside stored rows, callbacks that need all rows,
    and checkpoints in a directory of this machine only.
    """

    @abstractmethod
    def read_dataset(self, X, y, sample_weight, read, check_target, name=""):
        """Read rows with targets and weights.

        Parameters
        ----------
        X : table-like, path of Parquet files or Dataset
            Features.
        y : array-like, str, list of str or None
            Targets, or names of columns of `X`; None only if `check_target` allows it.
        sample_weight : array-like, str or None
            Row weights of at least 0, or the name of a column of `X`.
        read : callable
            Makes a :class:`pyarrow.Table` of features from rows of `X`. It is picklable if
            `distributed` is True.
        check_target : callable
            Takes targets as passed by the user and returns them as an array, or raises
            ``ValueError`` or ``TypeError``. Returns None for None if targets are optional. It is
            picklable if `distributed` is True.
        name : str, default=""
            Name of the data set, such as ``"eval_set[0]"``, with which error messages begin.

        Returns
        -------
        BaseTableDataset
            The rows of positive weight.

        Raises
        ------
        ValueError
            If columns are missing, if lengths differ, if weights are negative or not finite, if no
            row has a positive weight, or if `read` or `check_target` raises it.
        TypeError
            If `read` or `check_target` raises it.
        FileNotFoundError
            If there is no Parquet file at a path.
        """

    @abstractmethod
    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network, and wait until it is trained.

        Parameters
        ----------
        network : torch.nn.Module
            Network whose weights are changed in place. Afterwards it is on the CPU and in
            evaluation mode, wherever it was trained.
        head : Head
            Defines the loss.
        rows : Dataset
            Training rows, from a data set of this backend.
        valid_rows : list of Dataset
            Rows that are evaluated after each epoch; the first data set decides about early
            stopping.
        settings : TrainingSettings
            Settings of the training.
        inspection : Inspection, optional
            Computes the fitted attributes for importances. ``inspected`` of the result is what its
            method ``keep_sample`` returns, or ``compute`` if the rows are in other processes.

        Returns
        -------
        TrainingResult
            Result of :func:`~sk_easytensor.training.train.train_network`, which trains on a
            :class:`~sk_easytensor.training.dataset.TrainingDataset`.

        Raises
        ------
        Exception
            If a callback, a block or a user's loss raises it, in any process.
        KeyboardInterrupt
            If the training is interrupted.
        """

    @contextmanager
    def running(self):
        """Provide the resources of a fit, such as connections; by default none."""
        yield

    def resolve_device(self, device, owner):
        """Return the device of the training, as far as it is known before the training.

        Parameters
        ----------
        device : str or torch.device
            ``"auto"`` or a device of torch.
        owner : str
            Class name of the estimator, used in error messages.

        Returns
        -------
        str
            A device of this machine by default. Backends with workers may return ``"auto"``, which
            each worker then resolves.

        Raises
        ------
        ValueError
            If the device does not exist.
        """
        return resolve_device(device, owner)

    def map_batches(self, call, X):
        """Apply a method of a fitted estimator to a stored table, such as ``predict``.

        Parameters
        ----------
        call : StoredCall
            Method with its other arguments. Called with a table-like, it returns the result of the
            method. ``call.prepared(schema)`` is the object to send to other processes; its method
            ``columns`` returns the result as columns of a table.
        X : str, os.PathLike or Dataset
            Path of Parquet files, or data set.

        Returns
        -------
        object
            Result of the method for all rows, read as one table, by default. A backend that
            predicts in other processes may return a data set of its own, with the columns of `X`
            and those of the results, in the order of the rows.

        Raises
        ------
        ValueError
            If columns are missing.
        """
        return call(X)

    def evaluate(self, X, y, sample_weight, function, random_state, check):
        """Apply a function that scores a model to chunks of rows with targets and weights.

        Parameters
        ----------
        X : table-like, path of Parquet files or Dataset
            Features.
        y : array-like, str or list of str
            Targets, or names of columns of `X`.
        sample_weight : array-like, str or None
            Row weights, or the name of a column of `X`.
        function : callable
            Takes features, targets, weights or None, the RandomState of the chunk, and the total
            number of rows if the chunk is a part of them, otherwise None. It is picklable if
            `distributed` is True.
        random_state : numpy.random.RandomState
            Random generator from which those of the chunks are seeded.
        check : callable
            Takes a table of one row without values, and raises ``ValueError`` if columns are
            missing. Backends that know the columns in advance call it before rows are read.

        Returns
        -------
        list
            Result of the function for each chunk, in the order of the rows. By default there is
            one chunk, read in this process.

        Raises
        ------
        ValueError
            If columns are missing.
        """
        X, y, sample_weight = take_columns(X, y, sample_weight)
        return [function(X, y, sample_weight, random_state, None)]

    def without_secrets(self):
        """Return the backend that is saved with a fitted model, without addresses and paths."""
        return self


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
            result.inspected = inspection.keep_sample(rows, valid_rows, result.linear)
        return result
