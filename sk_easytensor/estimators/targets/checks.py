"""Checks of targets as users give them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import issparse

from sk_easytensor._utils.validation import shortened

__all__ = [
    "check_classes",
    "check_flags",
    "check_labels",
    "check_no_missing",
    "check_scalars",
    "check_size",
    "first_text",
    "labels_like",
    "plain_labels",
]


LARGEST = 1e150
"""Of a target that is a number: the sum of its squares over all rows is finite in any case."""


CONTAINERS = (list, tuple, dict, set, frozenset, np.ndarray)
"""Types of values that are no scalars."""


def check_no_missing(y):
    """Raise ``ValueError`` for missing values that NumPy has no NaN for, such as None."""
    import pandas as pd

    if issparse(y):
        return
    values = np.asarray(y)
    if values.dtype == object and pd.isna(values).any():
        raise ValueError(f"Input y contains NaN: {pd.isna(values).sum()} of its values are missing")


def check_scalars(y):
    """Raise ``ValueError`` for a target whose values are lists, tuples or arrays, naming a row.

    Parameters
    ----------
    y : array-like
        A list of lists of one length is an array of two dimensions, whose values are no lists.
    """
    if issparse(y):
        return
    if isinstance(y, (list, tuple)):
        values = y
        lengths = [len(value) if isinstance(value, CONTAINERS) else None for value in y]
        if len(set(lengths)) < 2:
            return
        row = next(row for row, length in enumerate(lengths) if length is not None)
    else:
        values = np.asarray(y)
        if values.dtype != object:
            return
        flat = values.reshape(-1)
        found = [index for index, value in enumerate(flat) if isinstance(value, CONTAINERS)]
        if not found:
            return
        row = found[0] * len(values) // len(flat)
        values = flat[found[0] :][:1].repeat(row + 1)
    raise ValueError(
        f"y holds {shortened(values[row])} in row {row}; a target is one number or label a row, or "
        "several columns of them"
    )


def check_classes(classes):
    """Raise ``ValueError`` for a class that is no valid text, which no file could hold.

    Parameters
    ----------
    classes : ndarray
        Distinct labels.
    """
    for label in classes.tolist() if classes.dtype.kind in "OU" else ():
        if isinstance(label, str) and label.encode(errors="ignore").decode() != label:
            raise ValueError(
                f"y holds {shortened(label)}, with half of a surrogate pair, which is no valid text"
            )


def check_labels(y):
    """Raise ``ValueError`` for labels of which some are texts and some are not, naming two rows.

    Parameters
    ----------
    y : array-like
        NumPy makes texts of all values of a list that holds a text.
    """
    check_scalars(y)
    if not isinstance(y, (list, tuple)) and getattr(getattr(y, "dtype", None), "kind", "") != "O":
        return
    if len(getattr(y, "shape", ())) > 1:
        return
    values = list(y)
    texts = [isinstance(value, str) for value in values]
    if not any(texts) or all(texts):
        return
    array = np.empty(len(values), dtype=object)
    array[:] = values
    check_no_missing(array)
    one, other = sorted([texts.index(True), texts.index(False)])
    raise ValueError(
        f"y holds {shortened(values[one])} in row {one} and {shortened(values[other])} in row "
        f"{other}; labels must be all of them text, or none"
    )


def check_flags(y):
    """Raise ``ValueError`` for text in an array of several labels a row, naming the row."""
    if y.dtype.kind not in "OU":
        return
    found = first_text(y)
    if found is not None:
        raise ValueError(
            f"y has several columns and holds {found}; several labels a row must each be 0 or 1"
        )


def first_text(y):
    """Return in words which value of an array of one or two dimensions is no number, or None."""
    for index, value in enumerate(y.reshape(-1)):
        row = index * len(y) // y.size
        try:
            float(value)
        except (TypeError, ValueError):
            value = value.item() if isinstance(value, np.generic) else value
            return f"{shortened(value)} in row {row}"


def check_size(y):
    """Raise ``ValueError`` for numbers of which squares would not be finite.

    Parameters
    ----------
    y : ndarray of numbers
        Target.
    """
    if y.dtype.kind != "f" or not len(y):
        return
    largest = max(float(y.max()), -float(y.min()))
    if largest > LARGEST:
        value = y.max() if y.max() == largest else y.min()
        raise ValueError(
            f"y holds {value:.3g}, and numbers may be up to {LARGEST:.0e} in size; divide y by a "
            "constant"
        )


def plain_labels(y):
    """Return labels in NumPy's own types where scikit-learn would make floats of them.

    Parameters
    ----------
    y : array-like
        Such as a series of pandas of nullable or Arrow's integers or booleans, of categories of
        these, or a frame of such series.

    Returns
    -------
    array-like
        An array of integers or booleans if `y` holds nothing else; otherwise what was given.
    """
    import pandas as pd

    if isinstance(y, pd.DataFrame):
        columns = [plain_labels(column) for _, column in y.items()]
        plain = columns and all(isinstance(column, np.ndarray) for column in columns)
        return np.column_stack(columns) if plain else y
    kind = getattr(y, "dtype", None)
    if isinstance(kind, pd.CategoricalDtype):
        codes = np.asarray(y.cat.codes if isinstance(y, pd.Series) else y.codes)
        labels = plain_labels(kind.categories)
        plain = isinstance(labels, np.ndarray) and (codes >= 0).all()
        return labels[codes] if plain else y
    if isinstance(kind, pd.api.extensions.ExtensionDtype):
        whole = kind.kind in "iub" and not y.isna().any()
        return y.to_numpy(dtype=kind.numpy_dtype) if whole else y
    if isinstance(kind, np.dtype) and kind.kind in "iub" and np.ndim(y) == 1:
        return np.asarray(y)
    if isinstance(kind, np.dtype) and kind.kind == "O" and np.ndim(y) == 1:
        found = pd.api.types.infer_dtype(y, skipna=False)
        try:
            return np.asarray(y).astype({"boolean": bool, "integer": np.int64}[found])
        except (KeyError, OverflowError):
            return y
    return y


def labels_like(classes, y):
    """Return labels in the type of the classes if that changes none of them.

    NumPy compares integers of 64 bits with and without a sign, or with floats, as floats, in which
    large ones merge.

    Parameters
    ----------
    classes, y : ndarray
        Known labels, and others.

    Returns
    -------
    ndarray
    """
    if y.dtype == classes.dtype or classes.dtype.kind not in "iu" or y.dtype.kind not in "iuf":
        return y
    with np.errstate(invalid="ignore"):
        labels = y.astype(classes.dtype)
    return labels if np.array_equal(labels.astype(object), y.astype(object)) else y
