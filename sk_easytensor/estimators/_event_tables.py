"""What an embedder is given: logs, tables of lists, and checks of both."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from sk_easytensor.blocks._lists import is_list
from sk_easytensor.events import collect_sequences
from sk_easytensor.parameters import check_number
from sk_easytensor.tables import as_table

__all__ = [
    "all_users",
    "check_length",
    "check_pairs",
    "collected",
    "eval_tables",
    "list_names",
]

AT_LEAST = 2
"""Users that make a pair: fewer have nobody to be told from."""


def collected(events, user, time):
    """Return the sequences of a log as a table."""
    return as_table(collect_sequences(as_table(events), by=user, order_by=time, prefix=""))


def list_names(table):
    """Return the names of the columns of lists."""
    return [field.name for field in table.schema if is_list(field.type)]


def all_users(objective):
    """Return the numbers of all users."""
    return np.arange(len(objective.has_pair))


def check_pairs(objective):
    """Raise ``ValueError`` unless enough users make a pair."""
    usable = int(objective.has_pair.sum())
    if usable < AT_LEAST:
        raise ValueError(
            f"at least {AT_LEAST} users have to make a pair to train on, and {usable} of "
            f"{len(objective.has_pair)} do: the others have {objective.lack}"
        )


def check_length(owner, name, value):
    """Raise ``ValueError`` unless a value is a number of events or a fraction of them."""
    whole = isinstance(value, Integral)
    try:
        check_number(owner, name, value, low=1 if whole else 0, high=None if whole else 1)
    except ValueError:
        raise ValueError(
            f"{owner}: {name} must be a number of events, from 1 on, or a fraction between 0.0 and "
            f"1.0, got {value!r}"
        ) from None


def eval_tables(eval_set):
    """Check the form of ``eval_set`` and name its entries."""
    if eval_set is None:
        return []
    if not isinstance(eval_set, (list, tuple)):
        kind = type(eval_set).__name__
        raise TypeError(f"eval_set must be a list of tables, got a {kind}")
    return [(f"eval_set[{index}]", X) for index, X in enumerate(eval_set)]
