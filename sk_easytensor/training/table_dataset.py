"""Rows of tables before they are encoded: features, targets and weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import pyarrow as pa
from sklearn.utils import check_consistent_length

from sk_easytensor._utils.digests import array_digest, table_digest
from sk_easytensor.data.sources import is_source
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.validation import Sized, check_weight, errors_mention, errors_name
from sk_easytensor.events import collect_sequences
from sk_easytensor.training.file_dataset import RowCollector

__all__ = [
    "BaseRowEncoder",
    "BaseTableDataset",
    "TableDataset",
    "column_values",
    "read_dataset",
    "require_columns",
    "take_columns",
    "target_columns",
    "without_decimals",
]


class BaseTableDataset(ABC):
    """Rows of a table with targets and weights, before they are encoded.

    A backend's ``read_dataset`` returns one. Rows are in memory, in files or on many machines;
    estimators call only the methods below. Rows of weight zero are left out.

    Attributes
    ----------
    source : object
        Features as passed by the user, without the columns of targets and weights.
    """

    source = None

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @property
    def column_names(self):
        """Names of the columns to learn from, as a list."""
        return self.sample().table.column_names

    @abstractmethod
    def digest(self):
        """Return a string that differs for different rows; checkpoints compare it."""

    @abstractmethod
    def sample(self):
        """Return a sample of the rows, or all of them.

        Returns
        -------
        TableDataset
            Rows in memory, with all columns. They decide column types and default blocks.
        """

    @abstractmethod
    def select(self, columns):
        """Return the rows with a subset of the columns.

        Parameters
        ----------
        columns : list of str
            Names of columns; values of other columns are not read.

        Returns
        -------
        BaseTableDataset
        """

    @abstractmethod
    def filter(self, columns, function):
        """Return the rows for which a function of some columns is true.

        Parameters
        ----------
        columns : list of str
            Names of the columns that the function reads.
        function : callable
            Takes a :class:`pyarrow.Table` with these columns of some rows, and returns an ndarray
            of bool. It is pickled if rows are in other processes.

        Returns
        -------
        BaseTableDataset
        """

    @abstractmethod
    def map_chunks(self, function):
        """Apply a function to the targets of each chunk of rows.

        Parameters
        ----------
        function : callable
            Takes an ndarray with the checked targets of a chunk. It is pickled if chunks are in
            other processes.

        Returns
        -------
        list
            Results of the function, in the order of the chunks. Each row is in one chunk.
        """

    @abstractmethod
    def summarize(self, blocks, executor):
        """Summarise all rows for blocks in one pass.

        Parameters
        ----------
        blocks : dict of {str: tuple of (Block, list of str)}
            Blocks with their columns assigned, and the columns that each block reads.
        executor : LocalExecutor
            Threads for rows that are in this process.

        Returns
        -------
        Mapping of {str: Summary}
            Result of ``Block.summarize`` for all rows, by name of block. Summaries of chunks are
            merged in the order of the rows.

        Raises
        ------
        RowError
            If a block cannot read a value; the error has the index of the row among all rows.
        """

    @abstractmethod
    def map_reduce(self, function, executor):
        """Apply a function to chunks of the table, and merge the summaries that it returns.

        Parameters
        ----------
        function : callable
            Takes a :class:`pyarrow.Table` with consecutive rows, and returns a
            :class:`~sk_easytensor.data.summaries.Summary`. It is pickled if rows are in other
            processes.
        executor : LocalExecutor
            Threads for rows that are in this process.

        Returns
        -------
        Summary
            Summary of all rows, merged in their order.

        Raises
        ------
        RowError
            If the function raises it; the error has the index of the row among all rows.
        """

    @abstractmethod
    def collect_sequences(self, by, order_by):
        """Return the event sequences of a log, one row for each user.

        Parameters
        ----------
        by : str or list of str
            Columns that identify the user.
        order_by : str
            Column of times.

        Returns
        -------
        BaseTableDataset
            Data set of list columns.

        Raises
        ------
        ValueError, TypeError
            As :func:`~sk_easytensor.events.collect_sequences` raises them, here or when columns
            are selected.
        """

    @abstractmethod
    def encode(self, encoder):
        """Return the encoded rows; they are encoded now or when they are read.

        Parameters
        ----------
        encoder : BaseRowEncoder
            Encodes chunks of rows.

        Returns
        -------
        Dataset
        """


class BaseRowEncoder(ABC):
    """Base class of encoders of table chunks with targets and weights.

    Encoders are picklable, because backends send them to other processes.

    Attributes
    ----------
    columns : list of str
        Columns that :meth:`encode_targets` reads.
    """

    columns = ()

    @abstractmethod
    def encode(self, table, y, weight):
        """Return encoded rows.

        Parameters
        ----------
        table : pyarrow.Table
            All columns of a chunk of rows.
        y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
            Checked targets.
        weight : ndarray of float64, shape (n_rows,)
            Row weights.

        Returns
        -------
        InMemoryDataset
        """

    @abstractmethod
    def encode_targets(self, table, y, weight):
        """Return rows with targets and weights, and only the features made of `columns`.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with at least the columns in `columns`.
        y, weight : ndarray
            Targets and weights, as for :meth:`encode`.

        Returns
        -------
        InMemoryDataset
        """

    def collector(self, memory):
        """Return an object that joins encoded rows of several chunks.

        Parameters
        ----------
        memory : int
            Largest size of the rows in memory, in bytes. Larger data sets are written to files,
            or refused.

        Returns
        -------
        RowCollector
            Or another object with its methods, which takes the results of :meth:`encode`.
        """
        return RowCollector(memory)


class TableDataset(BaseTableDataset):
    """Rows of positive weight, in memory.

    Parameters
    ----------
    table : pyarrow.Table
        Feature columns.
    y : ndarray, optional
        Valid targets; by default zeros, for training without targets.
    weight : ndarray of float64, shape (n_rows,), optional
        Row weights; by default ones.
    source : object, optional
        Features as passed by the user, without the columns of targets and weights.
    retained_rows : ndarray of int64 or None, default=None
        Indices of these rows among those that were passed; None for all.
    n_passed : int or None, default=None
        Number of rows that were passed, those of weight zero included; None if all were retained.
    """

    def __init__(self, table, y=None, weight=None, source=None, retained_rows=None, n_passed=None):
        self.retained_rows = retained_rows
        self.n_passed = n_passed
        self.table = table
        self.y = np.zeros(len(table)) if y is None else y
        self.weight = np.ones(len(table)) if weight is None else weight
        self.source = source

    def __len__(self):
        return len(self.table)

    def digest(self):
        """Return a digest of columns, targets and weights."""
        return f"{table_digest(self.table)} {array_digest(self.y, self.weight)}"

    def map_chunks(self, function):
        """Apply a function to the targets, which form one chunk."""
        return [function(self.y)]

    def sample(self):
        """Return all rows."""
        return self

    def select(self, columns):
        """Return the rows with a subset of the columns."""
        return TableDataset(self.table.select(columns), self.y, self.weight, self.source)

    def filter(self, columns, function):
        """Return the rows for which a function of some columns is true."""
        rows = np.flatnonzero(function(self.table.select(columns)))
        return TableDataset(self.table.take(rows), self.y[rows], self.weight[rows], self.source)

    def summarize(self, blocks, executor):
        """Summarise the table in the threads of this process."""
        return executor.summarize(self.table, blocks)

    def map_reduce(self, function, executor):
        """Apply a function to chunks in the threads of this process, and merge the summaries."""
        return executor.map_reduce(self.table, function)

    def collect_sequences(self, by, order_by):
        """Return the event sequences of a log, one row for each user."""
        lists = collect_sequences(self.table, by=by, order_by=order_by, prefix="")
        return TableDataset(as_table(lists), source=self.source)

    def expanded(self, values):
        """Return values of the rows with NaN for rows of weight zero, which were left out.

        Parameters
        ----------
        values : ndarray of shape (n_rows, ...), or dict of them
            Values in the order of the rows.

        Returns
        -------
        ndarray of shape (n_passed, ...), or dict of them
        """
        if isinstance(values, dict):
            return {name: self.expanded(each) for name, each in values.items()}
        if self.retained_rows is None:
            return values
        expanded = np.full((self.n_passed, *values.shape[1:]), np.nan)
        expanded[self.retained_rows] = values
        return expanded

    def encode(self, encoder):
        """Encode all rows."""
        return encoder.encode(self.table, self.y, self.weight)


def read_dataset(X, y, sample_weight, read, check_target, name=""):
    """Read rows of positive weight into memory.

    Parameters
    ----------
    X : table-like, path of Parquet files or Dataset
        Features.
    y : array-like, str, list of str or None
        Targets, or names of columns of `X`; several names only if `X` is a path or Dataset.
    sample_weight : array-like, str or None
        Row weights, or the name of a column of `X`.
    read : callable
        Makes a :class:`pyarrow.Table` of features from `X`.
    check_target : callable
        Takes targets and returns them as a valid array. Returns None for None if targets are
        optional.
    name : str, default=""
        Name of the data set in error messages, such as ``"eval_set[0]"``.

    Returns
    -------
    TableDataset

    Raises
    ------
    ValueError
        If columns are missing, if lengths differ, if weights are negative or not finite, if no
        row has a positive weight, or if `read` or `check_target` raises it.
    """
    X, y, sample_weight = take_columns(X, y, sample_weight)
    with errors_name(name):
        table = read(X)
        with errors_mention("y"):
            y = check_target(y)
        y = np.zeros(len(table)) if y is None else y
        check_consistent_length(Sized(len(table)), y)
    weight_name = name.replace("eval_set", "eval_sample_weight")
    with errors_name(weight_name) if name else errors_mention("sample_weight"):
        weight = check_weight(sample_weight, len(table))
    rows, n_passed = np.flatnonzero(weight > 0), len(table)
    if len(rows) == n_passed:
        return TableDataset(table, y, weight, X)
    return TableDataset(table.take(rows), y[rows], weight[rows], X, rows, n_passed)


def take_columns(X, y, sample_weight):
    """Take targets and weights out of a table, if they are given as names of its columns.

    Parameters
    ----------
    X : table-like, path of Parquet files or Dataset
        Features.
    y : array-like, str, list of str or None
        Targets, or names of columns of `X`.
    sample_weight : array-like, str or None
        Row weights, or the name of a column of `X`.

    Returns
    -------
    X : object
        `X` unchanged, or a :class:`pyarrow.Table` without the columns of targets and weights.
    y, sample_weight : object
        The arguments unchanged, or the values of the named columns.

    Raises
    ------
    ValueError
        If `X` lacks a named column.
    """
    targets = target_columns(X, y)
    weights = [sample_weight] if isinstance(sample_weight, str) else []
    if targets or weights:
        # Without named columns X keeps its type: user callables may select its columns.
        X = as_table(X)
        require_columns(X.column_names, [*targets, *weights])
        y = column_values(X, targets) if targets else y
        sample_weight = column_values(X, weights) if weights else sample_weight
        X = X.drop_columns(list(dict.fromkeys([*targets, *weights])))
    return X, y, sample_weight


def target_columns(X, y):
    """Return the names of the target columns if `y` consists of names, otherwise ``[]``."""
    if isinstance(y, str):
        return [y]
    if is_source(X) and isinstance(y, (list, tuple)) and all(isinstance(n, str) for n in y):
        return list(y)
    return []


def require_columns(names, required):
    """Raise ``ValueError`` naming the columns that are missing."""
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(f"columns are missing: {missing}; X has the columns {list(names)}")


def column_values(table, names):
    """Return columns of a table as an array: one-dimensional for one name, else two-dimensional."""
    columns = []
    for name in names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns.append(without_decimals(column).to_numpy())
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def without_decimals(column):
    """Return a column of targets or weights, decimals cast to float64."""
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
