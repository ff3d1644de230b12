"""Rows of a table with their targets and weights, before they are encoded."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from sklearn.utils import check_consistent_length

from sk_easytensor.digests import array_digest, table_digest
from sk_easytensor.events import collect_sequences
from sk_easytensor.tables import as_table, is_source
from sk_easytensor.validation import Sized, check_weight, errors_mention, errors_name

__all__ = [
    "Records",
    "column_values",
    "read_records",
    "take_columns",
    "target_columns",
    "without_decimals",
]


class Records:
    """Rows of positive weight, in memory.

    Parameters
    ----------
    table : pyarrow.Table
        The columns to learn from.
    y : ndarray
        Their targets, valid; zeros if there is nothing to learn but the rows themselves.
    weight : ndarray of float64, shape (n_rows,)
        Their weights.
    source : object
        What the user gave, without columns that hold targets or weights.
    kept : ndarray of int64 or None
        Which of the given rows these are; None for all.
    n_given : int or None
        How many were given; None for as many.

    Notes
    -----
    What is asked of the rows is asked in a way that can be answered chunk by chunk, so that the
    estimators need not know whether rows are in memory or on many machines.
    """

    def __init__(self, table, y, weight, source, kept=None, n_given=None):
        self.kept = kept
        self.n_given = n_given
        self.table = table
        self.y = y
        self.weight = weight
        self.source = source

    def __len__(self):
        return len(self.table)

    def content(self):
        """Return a digest of columns, targets and weights."""
        return f"{table_digest(self.table)} {array_digest(self.y, self.weight)}"

    def each(self, function):
        """Return what a function gives for the targets of each chunk, as a list."""
        return [function(self.y)]

    def sample(self):
        """Return some of the rows, as :class:`Records` in memory."""
        return self

    def select(self, columns):
        """Return the rows with some of the columns only."""
        return Records(self.table.select(columns), self.y, self.weight, self.source)

    def collected(self, by, order_by):
        """Return the sequences of a log, a row for each user.

        Parameters
        ----------
        by : str or list of str
            Columns that name the user.
        order_by : str
            Column of times.

        Returns
        -------
        Records
        """
        lists = as_table(collect_sequences(self.table, by=by, order_by=order_by, prefix=""))
        return Records(lists, np.zeros(len(lists)), np.ones(len(lists)), self.source)

    def encoded(self, maker):
        """Return the rows encoded.

        Parameters
        ----------
        maker : object
            Has ``make_rows(table, y, weight)``, which gives rows such as :class:`EncodedRows`;
            ``make_targets(table, y, weight)``, which gives them with no more features than the
            table's ``columns`` tell; and ``gather(pieces, memory)``, which joins pieces of them.
        """
        return maker.make_rows(self.table, self.y, self.weight)


def read_records(X, y, sample_weight, read, check_target, where=""):
    """Read rows of positive weight into memory.

    Parameters
    ----------
    X : table-like, path of Parquet files or Dataset
        Features.
    y : array-like, or str or list of str
        Targets, or the columns of `X` that hold them; several only if `X` is a path or Dataset.
    sample_weight : array-like, str or None
        Weights, or the column that holds them.
    read : callable
        Makes a table of features.
    check_target : callable
        Returns a valid target as an array; or None for None, if rows may do without.
    where : str, default=""
        Name of the rows, for errors.

    Returns
    -------
    Records
    """
    X, y, sample_weight = take_columns(X, y, sample_weight)
    with errors_name(where):
        table = read(X)
        with errors_mention("y"):
            y = check_target(y)
        y = np.zeros(len(table)) if y is None else y
        check_consistent_length(Sized(len(table)), y)
    name = where.replace("eval_set", "eval_sample_weight")
    with errors_name(name) if where else errors_mention("sample_weight"):
        weight = check_weight(sample_weight, len(table))
    kept, n_given = np.flatnonzero(weight > 0), len(table)
    if len(kept) == n_given:
        return Records(table, y, weight, X)
    return Records(table.take(kept), y[kept], weight[kept], X, kept, n_given)


def take_columns(X, y, sample_weight):
    """Take targets and weights out of a table, if they are given as names of its columns.

    Returns
    -------
    X, y, sample_weight : object
        What was given, or the table without these columns, and their values.
    """
    targets = target_columns(X, y)
    weights = [sample_weight] if isinstance(sample_weight, str) else []
    if targets or weights:
        # A frame that is not changed stays what it is, for callables that select its columns.
        X = as_table(X)
        require_columns(X.column_names, [*targets, *weights])
        y = column_values(X, targets) if targets else y
        sample_weight = column_values(X, weights) if weights else sample_weight
        X = X.drop_columns(list(dict.fromkeys([*targets, *weights])))
    return X, y, sample_weight


def target_columns(X, y):
    """Return the names of the columns that hold the targets, if that is what `y` is."""
    if isinstance(y, str):
        return [y]
    if is_source(X) and isinstance(y, (list, tuple)) and all(isinstance(n, str) for n in y):
        return list(y)
    return []


def require_columns(names, wanted):
    """Raise ``ValueError`` naming the columns that are not there."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"columns are missing: {missing}; X has the columns {list(names)}")


def column_values(table, names):
    """Return columns of a table as an array of one or two dimensions."""
    columns = []
    for name in names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns.append(without_decimals(column).to_numpy())
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def without_decimals(column):
    """Return a column of targets or weights, with decimals as floats."""
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
