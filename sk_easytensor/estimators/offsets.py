"""Checks of offsets and of monotonic constraints, which need a single output."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import numpy as np

from sk_easytensor.blocks.numeric import BASE_MARGIN, margin_column
from sk_easytensor.data.sources import is_source

__all__ = [
    "add_offset",
    "check_margin",
    "check_monotonic",
    "check_offset",
    "eval_margins",
    "read_with_margin",
]


def check_offset(owner, offset):
    """Raise ``ValueError`` unless the parameter ``offset`` names a column, or is None."""
    named = isinstance(offset, (str, Integral)) and not isinstance(offset, bool)
    if offset is not None and not named:
        raise ValueError(
            f"{owner}: offset must be the name of a column of X, its position or None, got "
            f"{offset!r}; arrays are given to fit as base_margin"
        )


def check_margin(owner, offset, base_margin, X, backend):
    """Check that an array of offsets can be used.

    Parameters
    ----------
    owner : str
        Class name of the estimator, for errors.
    offset : str, int or None
        The parameter ``offset``, which excludes an array.
    base_margin : array-like or None
        Offsets.
    X : table-like
        Rows that the offsets belong to.
    backend : Backend
        Backend that reads the rows.

    Raises
    ------
    ValueError
        If `offset` is given as well, or if many processes read the rows.
    """
    if base_margin is None:
        return
    if offset is not None:
        raise ValueError(f"{owner}: give either offset={offset!r} or base_margin")
    if backend.distributed and is_source(X):
        raise ValueError(
            f"{owner}: base_margin is an array, but stored rows are read by many processes; "
            "name a column of X in the parameter offset"
        )


def add_offset(head, owner, name):
    """Prepare a head for offsets.

    Parameters
    ----------
    head : Head
        Head of the target; changed in place.
    owner : str
        Class name of the estimator, for errors.
    name : str
        Name of the parameter that gives the offsets, for errors.

    Raises
    ------
    ValueError
        If the target has several outputs.
    """
    if not head.single_output:
        raise ValueError(
            f"{owner}: {name} needs two classes or a target of one column; this one has "
            f"{head.out_features} outputs, to which one number for each row cannot be added"
        )
    head.has_offset = True


def check_monotonic(head, owner, monotonic_cst):
    """Check that a target with monotonic constraints has a single output.

    Parameters
    ----------
    head : Head
        Head of the target.
    owner : str
        Class name of the estimator, for errors.
    monotonic_cst : dict, array-like or None
        The parameter ``monotonic_cst``.

    Raises
    ------
    ValueError
        If a column is constrained and the head has several outputs.
    """
    if monotonic_cst is None:
        return
    by_name = isinstance(monotonic_cst, Mapping)
    constraints = list(monotonic_cst.values()) if by_name else monotonic_cst
    if np.any(constraints) and not head.single_output:
        raise ValueError(
            f"{owner}: monotonic_cst needs two classes or a target of one column; this one has "
            f"{head.out_features} outputs"
        )


def read_with_margin(X, read, base_margin):
    """Read a table and append a column of offsets.

    Parameters
    ----------
    X : table-like
        Rows.
    read : callable
        Function that takes `X` and returns a :class:`pyarrow.Table`.
    base_margin : array-like or None
        Offsets of the rows; None appends no column.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    ValueError
        If `X` has a column ``base_margin`` already.
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
        Offsets of the training rows.
    base_margin_eval_set : list of array-like, array-like, or None
        Offsets of each set, as passed to ``fit``; those of a single set need not be in a list.
    names : list of str
        Names of the sets, for errors.

    Returns
    -------
    list of array-like or None

    Raises
    ------
    ValueError
        If there are not as many offsets as sets, or if only training rows or only evaluation sets
        have offsets.
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
            missing = "base_margin" if base_margin is None else "base_margin_eval_set"
            raise ValueError(
                f"{name}: base_margin and base_margin_eval_set must be given together, but "
                f"{missing} is missing"
            )
    return list(margins)
