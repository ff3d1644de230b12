"""Evaluation sets: their forms, names and order."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.training.table_dataset import TableDataset

__all__ = [
    "deciding_first",
    "eval_names",
    "eval_pairs",
    "named_eval_set",
    "same_source",
]


def named_eval_set(eval_set, eval_sample_weight, eval_X, eval_y, sample_weight_eval_set):
    """Return evaluation pairs and their weights, under whichever names they were given.

    Parameters
    ----------
    eval_set, eval_sample_weight : object
        As of :func:`eval_pairs`.
    eval_X, eval_y : object
        Rows and targets of one set, or tuples of those of several, as in LightGBM.
    sample_weight_eval_set : object
        XGBoost's name of `eval_sample_weight`.

    Returns
    -------
    eval_set, eval_sample_weight : object
        As of :func:`eval_pairs`.

    Raises
    ------
    ValueError
        If something is given under two names, or one of `eval_X` and `eval_y` is missing.
    """
    if sample_weight_eval_set is not None:
        if eval_sample_weight is not None:
            raise ValueError(
                "eval_sample_weight and sample_weight_eval_set are the same; give one of them"
            )
        eval_sample_weight = sample_weight_eval_set
    if eval_X is None and eval_y is None:
        return eval_set, eval_sample_weight
    if eval_set is not None:
        raise ValueError("eval_set and eval_X, eval_y are the same; give one of them")
    if eval_X is None or eval_y is None:
        missing = "eval_X" if eval_X is None else "eval_y"
        raise ValueError(f"eval_X and eval_y must be given together, {missing} is None")
    if isinstance(eval_X, tuple) != isinstance(eval_y, tuple):
        raise ValueError("eval_X and eval_y must both be tuples, with an entry a set, or neither")
    if not isinstance(eval_X, tuple):
        return (eval_X, eval_y), eval_sample_weight
    if len(eval_X) != len(eval_y):
        raise ValueError(f"eval_X has {len(eval_X)} entries, eval_y has {len(eval_y)}")
    return list(zip(eval_X, eval_y, strict=True)), eval_sample_weight


def deciding_first(names):
    """Return positions of evaluation sets, with the one that decides in front.

    Of several sets the last one decides, as in XGBoost. One named ``training`` never does.

    Parameters
    ----------
    names : list of str
        Of the sets.

    Returns
    -------
    list of int
        Without any set that decides, the order stays.

    Examples
    --------
    >>> deciding_first(["training", "valid_1", "valid_2"])
    [2, 0, 1]
    """
    order = list(range(len(names)))
    candidates = [index for index in order if names[index] != "training"]
    if candidates:
        order.remove(candidates[-1])
        order.insert(0, candidates[-1])
    return order


def eval_names(pairs, X, y=None, found=(), records=None):
    """Return the names of evaluation sets in ``evals_result_``.

    Parameters
    ----------
    pairs : list of (object, object)
        Table and target of each set, as the user gave them.
    X, y : object
        Table and target of the training rows, as the user gave them.
    found : list of BaseTableDataset
        What was read of each set.
    records : BaseTableDataset, optional
        What was read of the training rows.

    Returns
    -------
    list of str
        ``valid_0``, ``valid_1`` and so on by position; ``training`` for the training data: the same
        objects, path or names of columns, or the same rows in memory.
    """
    names = []
    for index, (X_eval, y_eval) in enumerate(pairs):
        same = same_source(X_eval, X) and same_source(y_eval, y)
        if not same and records is not None:
            same = same_rows(found[index], records)
        names.append("training" if same else f"valid_{index}")
    return names


def same_source(given, other):
    """Return whether two arguments of ``fit`` are one object, or the same path or column name."""
    if isinstance(given, (str, os.PathLike)) and isinstance(other, (str, os.PathLike)):
        return os.fspath(given) == os.fspath(other)
    return given is other


def same_rows(found, records):
    """Return whether a set of rows in memory has the content of the training rows.

    Parameters
    ----------
    found, records : BaseTableDataset
        Of the set and of the training rows, which lack those of weight zero.
    """
    if not (isinstance(found, TableDataset) and isinstance(records, TableDataset)):
        return False
    tables = [found.table, records.table]
    y = found.y
    if records.retained_rows is not None and len(found) == records.n_passed:
        rows = records.retained_rows
        tables[0], y = tables[0].take(pa.array(rows)), y[rows]
    one, other = tables
    if len(one) != len(other) or one.column_names != other.column_names:
        return False
    if one.schema.types != other.schema.types:
        # The same rows may come in another kind of table.
        try:
            one = one.cast(other.schema)
        except pa.ArrowException:
            return False
    return same_values(y, records.y) and all(map(same_columns, one.columns, other.columns))


def same_values(one, other):
    """Return whether two arrays of targets are equal, where missing ones are alike."""
    if hasattr(one, "toarray") or hasattr(other, "toarray"):
        return one.shape == other.shape and (one != other).nnz == 0
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def same_columns(one, other):
    """Return whether two columns are equal, where missing values are alike."""
    if pa.types.is_floating(one.type):
        one, other = (pc.if_else(pc.is_nan(each), None, each) for each in (one, other))
    return one.equals(other)


def eval_pairs(eval_set, eval_sample_weight):
    """Check the form of ``eval_set`` and name its entries.

    Parameters
    ----------
    eval_set : list of (X, y) pairs, one pair, or None
        What the user gave.
    eval_sample_weight : list of array-like, array-like, or None
        Weights for each pair, or those of the only pair if it is not in a list.

    Returns
    -------
    list of (str, (X, y), weight)
        The first is ``eval_set[0]`` and so on.
    """
    if eval_set is None:
        return []
    if not isinstance(eval_set, (list, tuple)):
        kind = type(eval_set).__name__
        raise TypeError(f"eval_set must be a list of (X, y) pairs, got a {kind}")
    if isinstance(eval_set, tuple) and len(eval_set) == 2:
        eval_set = [eval_set]
        if not _holds_weights_of_pairs(eval_sample_weight):
            eval_sample_weight = [eval_sample_weight]
    for index, pair in enumerate(eval_set):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            kind = type(pair).__name__
            raise ValueError(f"eval_set[{index}] must be a pair (X, y), got a {kind}")
    weights = [None] * len(eval_set) if eval_sample_weight is None else eval_sample_weight
    if len(weights) != len(eval_set):
        raise ValueError(
            f"eval_sample_weight has {len(weights)} entries for {len(eval_set)} pairs in eval_set"
        )
    names = [f"eval_set[{index}]" for index in range(len(eval_set))]
    return list(zip(names, eval_set, weights, strict=True))


def _holds_weights_of_pairs(weights):
    """Tell a list with the weights of each pair from the weights of a single one."""
    return (
        isinstance(weights, (list, tuple))
        and len(weights) > 0
        and (weights[0] is None or np.ndim(weights[0]) > 0)
    )
