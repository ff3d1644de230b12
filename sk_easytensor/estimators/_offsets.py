"""Offsets given as arrays: they become a column of the table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sk_easytensor.arrow_columns import column_of
from sk_easytensor.columns import to_float64, type_name
from sk_easytensor.compose import BASE_MARGIN

__all__ = ["eval_margins", "margin_column", "read_with_margin"]


def margin_column(base_margin, n_rows):
    """Return an array of offsets as a column.

    Parameters
    ----------
    base_margin : array-like of shape (n_rows,) or (n_rows, 1), or number
        What the user gave.
    n_rows : int
        How many are needed.

    Returns
    -------
    pyarrow.Array of float64

    Raises
    ------
    TypeError
        If it does not hold numbers.
    ValueError
        If it is of another shape, or names a column.
    """
    if isinstance(base_margin, str):
        raise ValueError(
            f"base_margin must be an array, got {base_margin!r}; a column of X is named in the "
            "parameter offset of the estimator"
        )
    if np.ndim(base_margin) == 0 and np.isscalar(base_margin):
        base_margin = np.full(n_rows, base_margin)
    shape = np.shape(base_margin)
    if shape == (n_rows, 1):
        base_margin = np.asarray(base_margin)[:, 0]
    elif shape != (n_rows,):
        raise ValueError(
            f"base_margin must have one number for each of the {n_rows} rows, got shape {shape}"
        )
    column = column_of(base_margin, BASE_MARGIN)
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(test(column.type) for test in tests):
        raise TypeError(f"base_margin must hold numbers, got {type_name(column.type)}")
    return pa.array(to_float64(column, BASE_MARGIN, block="base_margin"))


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
