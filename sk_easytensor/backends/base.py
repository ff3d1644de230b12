"""The contract of backends: where rows are read, networks trained and stored tables predicted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager

from sk_easytensor.executor import LocalExecutor
from sk_easytensor.training.table_dataset import take_columns
from sk_easytensor.training.train import resolve_device

__all__ = [
    "Backend",
]


class Backend(LocalExecutor, ABC):
    """Base class of backends, which say where work runs.

    A subclass writes :meth:`read_dataset` and :meth:`train`, and overrides what it does elsewhere
    than in this process: its data sets decide where rows are summarised, split and encoded,
    :meth:`map_batches` where stored tables are predicted. Tables in memory are summarised, encoded
    and predicted in threads of this process, as :class:`~sk_easytensor.executor.LocalExecutor` has
    it. An object of a subclass is given to an estimator as ``backend=``.

    Parameters
    ----------
    n_jobs : int or None, default=None
        Threads of this process: None for one (unless in a joblib context), -1 for all cores.
    chunk_rows : int, default=262_144
        Rows that are summarised or encoded at a time; several times more by blocks that work
        column by column.

    Notes
    -----
    A backend is a parameter of estimators: it is copied, pickled with them, and sent to other
    processes if these encode rows. Checkpoints are resumed from if ``repr`` of the backend is the
    same, which names what changes the weights, such as the number of workers.
    """

    distributed = False
    """Whether networks are trained, and stored rows read, by processes other than this one.

    Arrays of offsets beside stored rows, callbacks that need all rows, and checkpoints in a
    directory of this machine only are refused then.
    """

    @abstractmethod
    def read_dataset(self, X, y, sample_weight, read, check_target, where=""):
        """Read rows with targets and weights.

        Parameters
        ----------
        X : table-like, path of Parquet files or Dataset
            Features.
        y : array-like, str, list of str or None
            Targets, or the columns of `X` that hold them; None only if `check_target` allows it.
        sample_weight : array-like, str or None
            Weights of at least 0, or the column that holds them.
        read : callable
            Makes a :class:`pyarrow.Table` of features from some rows of `X`. Picklable if rows are
            read elsewhere.
        check_target : callable
            Takes targets as given and returns them as an array, or raises ``ValueError`` or
            ``TypeError``. Returns None for None if rows may do without. Picklable if rows are read
            elsewhere.
        where : str, default=""
            Name of the rows, such as ``"eval_set[0]"``, which errors begin with.

        Returns
        -------
        BaseTableDataset
            Of the rows of positive weight.

        Raises
        ------
        ValueError, TypeError
            That `read` or `check_target` raised. ``ValueError`` as well if columns are missing, if
            lengths differ, if weights are negative or not finite, or if no row has weight.
        FileNotFoundError
            If there is no Parquet file at a path.
        """

    @abstractmethod
    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network, and wait until it is trained.

        Parameters
        ----------
        network : torch.nn.Module
            Its weights are changed in place. It is on the CPU and in evaluation mode afterwards,
            wherever it was trained.
        head : Head
            Gives the loss.
        rows : Dataset
            Training rows, made of a data set of this backend.
        valid_rows : list of Dataset
            Rows that are evaluated after each epoch; the first decides about early stopping.
        settings : TrainingSettings
            How to train.
        inspection : Inspection, optional
            Says what is kept of the rows for importances: ``inspected`` of the result is what its
            ``later`` returns, or ``now`` where rows do not come to this process.

        Returns
        -------
        TrainingResult
            As :func:`~sk_easytensor.training.train.train_network` returns, which does the work on
            rows that are a :class:`~sk_easytensor.training.dataset.TrainingDataset`.

        Raises
        ------
        Exception
            What a callback, a block or a user's loss raised, wherever that was.
        KeyboardInterrupt
            If the training is interrupted.
        """

    @contextmanager
    def running(self):
        """Have what a fit needs, such as connections, within the context; by default nothing."""
        yield

    def resolve_device(self, device, owner):
        """Return the device to train on, as far as it is known before the training.

        Parameters
        ----------
        device : str or torch.device
            ``"auto"`` or a device of torch.
        owner : str
            Name of the estimator, for errors.

        Returns
        -------
        str
            By default a device of this machine; ``"auto"`` may be left to the workers.

        Raises
        ------
        ValueError
            If there is no such device.
        """
        return resolve_device(device, owner)

    def map_batches(self, call, X):
        """Apply a method of a fitted estimator to a stored table, such as ``predict``.

        Parameters
        ----------
        call : StoredCall
            The method with its other arguments. Called with a table-like, it returns what the
            method returns; ``call.prepared(schema)`` is sent to other processes, whose ``columns``
            makes columns of it.
        X : str, os.PathLike or Dataset
            Where the rows are.

        Returns
        -------
        object
            What the method returns of all rows, read as one table, by default. A backend that
            predicts elsewhere may return a data set of its own, with the columns of `X` and those
            of the results, in the order of the rows.

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
            Rows.
        y : array-like, str or list of str
            Targets, or the columns of a stored table that hold them.
        sample_weight : array-like, str or None
            Weights, or the column that holds them.
        function : callable
            Takes rows, targets, weights or None, a RandomState of the chunk's own, and how many
            rows there are in all, if these are some of them; None otherwise. Picklable if rows are
            read elsewhere.
        random_state : numpy.random.RandomState
            Where those of chunks come from.
        check : callable
            Takes a table of one row without values, and raises ``ValueError`` if columns are
            missing, where that can be known before rows are read.

        Returns
        -------
        list
            What the function returned for each chunk, in the order of the rows; by default there
            is one chunk, read in this process.

        Raises
        ------
        ValueError
            If columns are missing.
        """
        X, y, sample_weight = take_columns(X, y, sample_weight)
        return [function(X, y, sample_weight, random_state, None)]

    def without_secrets(self):
        """Return the backend as it is pickled with a fitted model: without addresses and paths."""
        return self
