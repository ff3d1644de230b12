"""Checks of what users pass to fit: weights, evaluation pairs, missing targets."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.validation import _check_sample_weight

__all__ = ["Sized", "check_no_missing", "check_weight", "errors_name", "eval_pairs"]


class Sized:
    """Something with a length, for scikit-learn's length checks."""

    def __init__(self, length):
        self.shape = (length,)

    def __len__(self):
        return self.shape[0]


def check_weight(sample_weight, n_rows):
    """Return sample weights as a float64 array with a maximum of 1.

    Parameters
    ----------
    sample_weight : array-like, number or None
        What the user gave.
    n_rows : int
        How many weights are needed.

    Returns
    -------
    ndarray of float64, shape (n_rows,)

    Raises
    ------
    ValueError
        If there are too few or too many, if one is negative or missing, if all are zero.
    """
    if sample_weight is None:
        return np.ones(n_rows)
    sized = np.empty((n_rows, 0))
    weight = _check_sample_weight(sample_weight, sized, dtype=np.float64, ensure_non_negative=True)
    if not (weight > 0).any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    # Weights are relative; this keeps tiny ones from vanishing in single precision.
    return weight / weight.max()


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


def check_no_missing(y):
    """Raise ``ValueError`` for missing values that NumPy has no NaN for, such as None."""
    import pandas as pd

    if issparse(y):
        return
    values = np.asarray(y)
    if values.dtype == object and pd.isna(values).any():
        raise ValueError(f"Input y contains NaN: {pd.isna(values).sum()} of its values are missing")


@contextmanager
def errors_name(where):
    """Begin the message of every error within the context with where it occurred, if named."""
    if not where:
        yield
        return
    try:
        yield
    except TypeError as error:
        # First, as a value of a wrong type in some row is an error of both classes.
        raise TypeError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
