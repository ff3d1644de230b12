"""Offsets given as arrays: they become a column of the table."""

from __future__ import annotations

import numpy as np

from sk_easytensor.blocks.offset import BASE_MARGIN, margin_column

__all__ = ["eval_margins", "read_with_margin"]


def read_with_margin(X, read, base_margin):
    """Read a table and put offsets behind its columns.

    Parameters
    ----------
    X : table-like
        Rows.
    read : callable
        Makes a table of them.
    base_margin : array-like or None
        Offsets; None if there are none.

    Returns
    -------
    pyarrow.Table
    """
    table = read(X)
    if base_margin is None:
        return table
    if BASE_MARGIN in table.column_names:
        raise ValueError(
            f"X has a column {BASE_MARGIN!r} and base_margin is given as well; set "
            f"offset={BASE_MARGIN!r} to use the column, or rename it"
        )
    return table.append_column(BASE_MARGIN, margin_column(base_margin, len(table)))


def eval_margins(base_margin, base_margin_eval_set, names):
    """Return the offsets of each evaluation set.

    Parameters
    ----------
    base_margin : array-like or None
        Those of the training rows.
    base_margin_eval_set : list of array-like, array-like, or None
        What the user gave; those of the only set need not be in a list.
    names : list of str
        Of the sets, for errors.

    Returns
    -------
    list of array-like or None

    Raises
    ------
    ValueError
        If they are not as many as the sets, or only some rows have offsets.
    """
    margins = base_margin_eval_set
    if margins is None:
        margins = [None] * len(names)
    elif len(names) == 1 and not (isinstance(margins, (list, tuple)) and np.ndim(margins[0]) > 0):
        margins = [margins]
    if len(margins) != len(names):
        raise ValueError(
            f"base_margin_eval_set has {len(margins)} entries for {len(names)} sets of rows in "
            "eval_set"
        )
    for name, margin in zip(names, margins, strict=True):
        if (margin is None) != (base_margin is None):
            lacking = "base_margin" if base_margin is None else "base_margin_eval_set"
            raise ValueError(
                f"{name}: base_margin and base_margin_eval_set belong together, but "
                f"{lacking} is missing"
            )
    return list(margins)
