"""Splits of interactions into training and test rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.utils import _safe_indexing, check_random_state

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.data.tables import as_table

__all__ = [
    "split_interactions",
]


SPLITS = ("time", "last", "random")


def split_interactions(X, *, method="time", size=0.2, user=None, time=None, random_state=None):
    """Split interactions into training and test rows, as recommendations will be used.

    Parameters
    ----------
    X : table-like
        A row for each interaction.
    method : {"time", "last", "random"}, default="time"
        ``"time"``: the latest rows of all are for the test. ``"last"``: the latest rows of each
        user. ``"random"``: rows of each user drawn at random. A random split tells the model what
        is liked later, which no use of it will; figures are then too good.
    size : float or int, default=0.2
        Fraction of the rows, for ``"last"`` and ``"random"`` of each user's rows, or for these two
        an integer, the number of rows of each user. At least one row of each user is for training.
    user : str, optional
        Column of users; required for ``"last"`` and ``"random"``.
    time : str, optional
        Column of times, of any type that can be sorted; required for ``"time"`` and ``"last"``.
        Rows of the same time keep their order.
    random_state : int, RandomState instance or None, default=None
        Seed of ``"random"``.

    Returns
    -------
    train, test : table-like
        Rows of `X` in their order, in tables of the same type.

    Raises
    ------
    ValueError
        If a parameter is invalid, a column is missing or a value of one is.

    Examples
    --------
    >>> import pandas as pd
    >>> log = pd.DataFrame({"user": ["ann", "bob", "ann", "ann"], "day": [1, 2, 3, 4]})
    >>> train, test = split_interactions(log, method="last", size=1, user="user", time="day")
    >>> train["day"].tolist(), test["day"].tolist()
    ([1, 2, 3], [4])
    """
    owner = "split_interactions"
    check_choice(owner, "method", method, SPLITS)
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and method != "time":
        check_number(owner, "size", size, low=1, integer=True)
    else:
        check_number(owner, "size", size, low=0, high=1, exclusive=True)
    table = as_table(X)
    n_rows, order = len(table), np.arange(len(table))
    if method == "random":
        order = check_random_state(random_state).permutation(n_rows)
    else:
        order = order[np.argsort(_split_codes(table, "time", time, method), kind="stable")]
    if method == "time":
        is_test = np.arange(n_rows) >= n_rows - round(size * n_rows)
    else:
        users = _split_codes(table, "user", user, method)[order]
        by_user = np.argsort(users, kind="stable")
        order, counts = order[by_user], np.bincount(users)
        place = np.arange(n_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        if isinstance(size, (int, np.integer)):
            held = np.minimum(size, counts - 1)
        else:
            held = np.minimum(np.round(size * counts).astype(int), counts - 1)
        is_test = place >= np.repeat(counts - held, counts)
    return tuple(_take_rows(X, np.sort(order[part])) for part in (~is_test, is_test))


def _take_rows(X, rows):
    """Return rows of a table or values of a column, in the type that it has."""
    if isinstance(X, Mapping):
        return {name: _take_rows(column, rows) for name, column in X.items()}
    if isinstance(X, (pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray)):
        return X.take(pa.array(rows))
    return _safe_indexing(X, rows)


def _split_codes(table, parameter, name, method):
    """Return numbers of the values of a column, in the order of the values."""
    if name is None or name not in table.column_names:
        raise ValueError(
            f"split_interactions: method={method!r} needs {parameter}, the name of a column, got "
            f"{name!r}; there are {table.column_names}"
        )
    column = table.column(name)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise ValueError(f"split_interactions: column {name!r} is missing in row {row}")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.rank(column, sort_keys="ascending", tiebreaker="dense").to_numpy() - 1
