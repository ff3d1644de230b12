"""Check sample weights, and add the parameter or place to error messages."""

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
"""Errors that other libraries raise for invalid values."""


class Sized:
    """Object with only a length, for scikit-learn's length checks."""

    def __init__(self, length):
        self.shape = (length,)

    def __len__(self):
        return self.shape[0]


def check_weight(sample_weight, n_rows):
    """Return sample weights as a float64 array with a maximum of 1.

    Parameters
    ----------
    sample_weight : array-like, number or None
        Weights passed by the user. A number applies to all rows; None means equal weights.
    n_rows : int
        Number of rows.

    Returns
    -------
    ndarray of float64, shape (n_rows,)

    Raises
    ------
    ValueError
        If the number of weights differs from the number of rows, if a weight is negative or
        missing, or if all weights are zero.
    """
    if sample_weight is None:
        return np.ones(n_rows)
    sized = np.empty((n_rows, 0))
    weight = _check_sample_weight(sample_weight, sized, dtype=np.float64, ensure_non_negative=True)
    if not (weight > 0).any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    # Weights are relative. Scaling keeps tiny weights from underflowing in single precision, where
    # a sum of weights must not be zero. Weights that would still underflow are set to zero.
    weight = weight / weight.max()
    return np.where(weight < np.finfo(np.float32).tiny, 0.0, weight)


@contextmanager
def errors_mention(parameter):
    """Prefix the message of an error within the context with a parameter, unless it names it.

    NumPy, pandas, Arrow and scikit-learn do not name the parameter in their errors about values of
    a target or of weights. Errors of other classes become a ``ValueError`` or a ``TypeError``.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UNUSABLE) and not type(error).__module__.startswith("polars."):
            # Errors of polars do not derive from ValueError or TypeError.
            raise
        if type(error) in (TypeError, ValueError) and re.search(rf"\b{parameter}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{parameter}: {shortened(error, str, 300)}") from error


@contextmanager
def errors_name(prefix):
    """Prefix the message of a TypeError or ValueError within the context, unless it is empty."""
    if not prefix:
        yield
        return
    try:
        yield
    except TypeError as error:
        # Caught first, because RowTypeError is both a TypeError and a ValueError.
        raise TypeError(f"{prefix}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
