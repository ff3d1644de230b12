"""Evaluation sets: their forms, names and order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import is_path, path_list, shortened
from sk_easytensor.training.table_dataset import TableDataset

__all__ = [
    "deciding_first",
    "eval_names",
    "eval_pairs",
    "named_eval_set",
    "same_source",
]


def named_eval_set(eval_set, eval_sample_weight, eval_X, eval_y, sample_weight_eval_set):
    """Merge the alternative arguments of ``fit`` that give evaluation sets.

    Parameters
    ----------
    eval_set, eval_sample_weight : object
        Pairs and their weights, in the form that :func:`eval_pairs` takes.
    eval_X, eval_y : object
        Rows and targets of one set, or tuples of those of several, as in LightGBM.
    sample_weight_eval_set : object
        XGBoost's name of `eval_sample_weight`.

    Returns
    -------
    eval_set, eval_sample_weight : object
        Pairs and their weights, in the form that :func:`eval_pairs` takes.

    Raises
    ------
    ValueError
        If sets or weights are given under two names, if one of `eval_X` and `eval_y` is missing, or
        if these two differ in form or length.
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
        raise ValueError(
            "eval_X and eval_y must both be tuples, with an entry for each set, or neither"
        )
    if not isinstance(eval_X, tuple):
        return (eval_X, eval_y), eval_sample_weight
    if len(eval_X) != len(eval_y):
        raise ValueError(f"eval_X has {len(eval_X)} entries, eval_y has {len(eval_y)}")
    return list(zip(eval_X, eval_y, strict=True)), eval_sample_weight


def deciding_first(names):
    """Return the indices of evaluation sets, that of the set that decides first.

    The last set decides about early stopping, as in XGBoost. A set named ``training`` never does.

    Parameters
    ----------
    names : list of str
        Names of the sets.

    Returns
    -------
    list of int
        Indices into `names`; in the given order if no set decides.

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


def eval_names(pairs, X, y=None, datasets=(), training=None):
    """Return the names of evaluation sets in ``evals_result_``.

    Parameters
    ----------
    pairs : list of (object, object)
        Table and target of each set, as passed to ``fit``.
    X, y : object
        Table and target of the training rows, as passed to ``fit``.
    datasets : list of BaseTableDataset
        Rows of each set.
    training : BaseTableDataset, optional
        Training rows. Without them, rows are not compared.

    Returns
    -------
    list of str
        ``valid_0``, ``valid_1`` and so on by position. A set is named ``training`` if it is the
        training data: the same objects, the same path or names of columns, or equal rows in memory.
    """
    names = []
    for index, (X_eval, y_eval) in enumerate(pairs):
        same = same_source(X_eval, X) and same_source(y_eval, y)
        if not same and training is not None:
            same = same_rows(datasets[index], training)
        names.append("training" if same else f"valid_{index}")
    return names


def same_source(left, right):
    """Return whether two arguments of ``fit`` are one object, or the same path or column name."""
    if is_path(left) and is_path(right):
        return path_list(left) == path_list(right)
    return left is right


def same_rows(valid, training):
    """Return whether an evaluation set in memory has the same rows as the training data.

    Parameters
    ----------
    valid : BaseTableDataset
        Rows of the evaluation set.
    training : BaseTableDataset
        Training rows, without those of weight zero.

    Returns
    -------
    bool
        Always False for rows that are not in memory.
    """
    if not (isinstance(valid, TableDataset) and isinstance(training, TableDataset)):
        return False
    table, y = valid.table, valid.y
    if training.retained_rows is not None and len(valid) == training.n_passed:
        table, y = table.take(pa.array(training.retained_rows)), y[training.retained_rows]
    expected = training.table
    if len(table) != len(expected) or table.column_names != expected.column_names:
        return False
    if table.schema.types != expected.schema.types:
        # The same rows may come in another kind of table.
        try:
            table = table.cast(expected.schema)
        except pa.ArrowException:
            return False
    return same_values(y, training.y) and all(map(same_columns, table.columns, expected.columns))


def same_values(left, right):
    """Return whether two arrays of targets are equal; missing values equal each other."""
    if hasattr(left, "toarray") or hasattr(right, "toarray"):
        return left.shape == right.shape and (left != right).nnz == 0
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))


def same_columns(left, right):
    """Return whether two columns are equal; missing values and NaN equal each other."""
    if pa.types.is_floating(left.type):
        left, right = (pc.if_else(pc.is_nan(column), None, column) for column in (left, right))
    return left.equals(right)


def eval_pairs(eval_set, eval_sample_weight):
    """Check the form of ``eval_set`` and name its entries.

    Parameters
    ----------
    eval_set : list of (X, y) pairs, one pair, or None
        Evaluation sets, as passed to ``fit``.
    eval_sample_weight : list of array-like, array-like, or None
        Row weights of each pair; weights of a single pair need not be in a list.

    Returns
    -------
    list of (str, (X, y), weight)
        Name, pair and weights of each set. Names are ``eval_set[0]`` and so on, for errors.

    Raises
    ------
    TypeError
        If `eval_set` is no list.
    ValueError
        If an entry is no pair, or if there are not as many weights as pairs.
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
    if not hasattr(weights, "__len__"):
        raise TypeError(
            "eval_sample_weight must be a list with the weights of each pair in eval_set, got "
            f"{shortened(weights)}"
        )
    if len(weights) != len(eval_set):
        raise ValueError(
            f"eval_sample_weight has {len(weights)} entries for {len(eval_set)} pairs in eval_set"
        )
    names = [f"eval_set[{index}]" for index in range(len(eval_set))]
    return list(zip(names, eval_set, weights, strict=True))


def _holds_weights_of_pairs(weights):
    """Return whether weights are a list with those of each pair, not the weights of one pair."""
    return (
        isinstance(weights, (list, tuple))
        and len(weights) > 0
        and (weights[0] is None or np.ndim(weights[0]) > 0)
    )
