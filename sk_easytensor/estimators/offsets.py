"""Offsets and monotonic constraints: checks of what is added to one output."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import numpy as np

from sk_easytensor.blocks.offset import BASE_MARGIN, margin_column
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
    """Raise ``ValueError`` for an array of offsets that cannot be used.

    Parameters
    ----------
    owner : str
        Class name of the estimator, for errors.
    offset : str, int or None
        The parameter, which takes the place of an array.
    base_margin : array-like or None
        Offsets.
    X : table-like
        Rows that they belong to.
    backend : Backend
        Reads the rows.
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
        Of the target; changed in place.
    owner : str
        Class name of the estimator, for errors.
    name : str
        What the offsets were given as.

    Raises
    ------
    ValueError
        If the target has several outputs.
    """
    if not head.single_output:
        raise ValueError(
            f"{owner}: {name} needs two classes or a target of one column; this one has "
            f"{head.out_features} outputs, to which one number a row cannot be added"
        )
    head.has_offset = True


def check_monotonic(head, owner, monotonic_cst):
    """Raise ``ValueError`` for monotonic constraints on several outputs.

    Parameters
    ----------
    head : Head
        Of the target.
    owner : str
        Class name of the estimator, for errors.
    monotonic_cst : dict, array-like or None
        The parameter.
    """
    if monotonic_cst is None:
        return
    given = isinstance(monotonic_cst, Mapping)
    constrained = np.any(list(monotonic_cst.values()) if given else monotonic_cst)
    if constrained and not head.single_output:
        raise ValueError(
            f"{owner}: monotonic_cst needs two classes or a target of one column; this one has "
            f"{head.out_features} outputs"
        )


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
