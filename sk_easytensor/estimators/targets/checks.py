"""Checks of targets that users pass."""

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
    "describe_non_number",
    "labels_like",
    "plain_labels",
]


LARGEST = 1e150
"""Largest absolute value of a target: the sum of its squares over all rows is finite."""


CONTAINERS = (list, tuple, dict, set, frozenset, np.ndarray)
"""Types whose objects are not scalars."""


def check_no_missing(y):
    """Raise ``ValueError`` for missing values that are not NumPy's NaN, such as None."""
    import pandas as pd

    if issparse(y):
        return
    values = np.asarray(y)
    if values.dtype == object and pd.isna(values).any():
        raise ValueError(f"Input y contains NaN: {pd.isna(values).sum()} of its values are missing")


def check_scalars(y):
    """Check that the values of a target are scalars.

    Parameters
    ----------
    y : array-like
        Target. A list of lists of one length is an array of two dimensions, whose values are
        scalars.

    Raises
    ------
    ValueError
        If a value is a list, tuple, dictionary, set or array. The message names the row.
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
        matches = [index for index, value in enumerate(flat) if isinstance(value, CONTAINERS)]
        if not matches:
            return
        row = matches[0] * len(values) // len(flat)
        values = flat[matches[0] :][:1].repeat(row + 1)
    raise ValueError(
        f"y holds {shortened(values[row])} in row {row}; a target is one number or label for each "
        "row, or several columns of them"
    )


def check_classes(classes):
    """Check that labels are valid text, so that they can be written to files.

    Parameters
    ----------
    classes : ndarray
        Distinct labels.

    Raises
    ------
    ValueError
        If a label has half of a surrogate pair.
    """
    for label in classes.tolist() if classes.dtype.kind in "OU" else ():
        if isinstance(label, str) and label.encode(errors="ignore").decode() != label:
            raise ValueError(
                f"y holds {shortened(label)}, with half of a surrogate pair, which is no valid text"
            )


def check_labels(y):
    """Check that labels are all text, or none of them.

    NumPy would convert all values of a list that holds a text to text.

    Parameters
    ----------
    y : array-like
        Labels of rows.

    Raises
    ------
    ValueError
        If some are text and some are not. The message names a row of each kind.
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
    first, second = sorted([texts.index(True), texts.index(False)])
    raise ValueError(
        f"y holds {shortened(values[first])} in row {first} and {shortened(values[second])} in row "
        f"{second}; labels must be all of them text, or none"
    )


def check_flags(y):
    """Check that an array of several labels for each row holds no text.

    Parameters
    ----------
    y : ndarray of shape (n_rows, n_labels)
        Labels of rows.

    Raises
    ------
    ValueError
        If a value is no number. The message names the row.
    """
    if y.dtype.kind not in "OU":
        return
    value = describe_non_number(y)
    if value is not None:
        raise ValueError(
            f"y has several columns and holds {value}; each of several labels must be 0 or 1"
        )


def describe_non_number(y):
    """Return a description of the first value of an array that is no number, for errors.

    Parameters
    ----------
    y : ndarray of one or two dimensions
        Target.

    Returns
    -------
    str or None
        Value and row; None if all values are numbers.
    """
    for index, value in enumerate(y.reshape(-1)):
        row = index * len(y) // y.size
        try:
            float(value)
        except (TypeError, ValueError):
            value = value.item() if isinstance(value, np.generic) else value
            return f"{shortened(value)} in row {row}"


def check_size(y):
    """Check that sums of squares of numbers are finite.

    Parameters
    ----------
    y : ndarray of numbers
        Target.

    Raises
    ------
    ValueError
        If the absolute value of a number is above 1e150.
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
    """Return labels in NumPy's own types where scikit-learn would convert them to floats.

    Parameters
    ----------
    y : array-like
        Labels, such as a pandas series of nullable or Arrow integers or booleans, of categories of
        these, or a data frame of such series.

    Returns
    -------
    array-like
        An array of integers or booleans if `y` holds nothing else; otherwise `y` itself.
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
        inferred = pd.api.types.infer_dtype(y, skipna=False)
        try:
            return np.asarray(y).astype({"boolean": bool, "integer": np.int64}[inferred])
        except (KeyError, OverflowError):
            return y
    return y


def labels_like(classes, y):
    """Return labels in the type of the classes, if no value changes by the conversion.

    NumPy compares signed with unsigned integers of 64 bits, and integers with floats, as floats, in
    which large integers are not distinct.

    Parameters
    ----------
    classes : ndarray
        Classes of the fitted target.
    y : ndarray
        Labels of rows.

    Returns
    -------
    ndarray
        Labels in the type of `classes`, or `y` itself.
    """
    if y.dtype == classes.dtype or classes.dtype.kind not in "iu" or y.dtype.kind not in "iuf":
        return y
    with np.errstate(invalid="ignore"):
        labels = y.astype(classes.dtype)
    return labels if np.array_equal(labels.astype(object), y.astype(object)) else y
