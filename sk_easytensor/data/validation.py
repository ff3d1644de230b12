"""Checks of targets and weights, and messages that say where a value was given."""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from sklearn.utils.validation import _check_sample_weight

from sk_easytensor._utils.validation import shortened

__all__ = [
    "Sized",
    "check_weight",
    "errors_mention",
    "errors_name",
]


UNUSABLE = (ValueError, TypeError, OverflowError, pa.ArrowException)
"""What other libraries raise for values that they cannot use."""


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
    # Weights are relative; this keeps tiny ones from vanishing in single precision, where a sum of
    # weights must not be zero. Those that would vanish still are as good as none.
    weight = weight / weight.max()
    return np.where(weight < np.finfo(np.float32).tiny, 0.0, weight)


@contextmanager
def errors_mention(parameter):
    """Begin the message of every error within the context with a parameter, unless it names it.

    What NumPy, pandas, Arrow and scikit-learn raise for values of a target or of weights says
    nothing of where they were given. Errors of other classes become a ``ValueError`` or a
    ``TypeError``.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UNUSABLE) and not type(error).__module__.startswith("polars."):
            # Those of polars have no base class among Python's.
            raise
        if type(error) in (TypeError, ValueError) and re.search(rf"\b{parameter}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{parameter}: {shortened(error, str, 300)}") from error


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
