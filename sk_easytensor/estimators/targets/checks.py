"""Checks of targets and losses that users pass."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.sparse import issparse

from sk_easytensor._utils.validation import shortened
from sk_easytensor.losses import BUILT_IN, LossError, with_checked_mean
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "check_classes",
    "check_flags",
    "check_labels",
    "check_no_missing",
    "check_returned_losses",
    "check_scalars",
    "check_size",
    "describe_non_number",
    "distinct_labels",
    "is_text",
    "labels_like",
    "plain_labels",
]


LARGEST = 1e150
"""Largest absolute value of a target: the sum of its squares over all rows is finite."""


CONTAINERS = (list, tuple, dict, set, frozenset, np.ndarray)
"""Types whose objects are not scalars."""


def is_text(y):
    """Return whether an array or series of one dimension holds nothing but strings."""
    import pandas as pd

    kinds = (np.ndarray, pd.Series, pd.api.extensions.ExtensionArray)
    if not isinstance(y, kinds) or y.ndim != 1 or not len(y):
        return False
    kind = y.dtype
    if isinstance(kind, pd.StringDtype):
        return not y.isna().any()
    is_object = isinstance(kind, np.dtype) and kind.kind == "O"
    return is_object and pd.api.types.infer_dtype(y, skipna=False) == "string"


def distinct_labels(y):
    """Return the sorted distinct values of an array of one dimension, as ``np.unique`` does.

    Strings are looked up in a hash table, which takes a tenth of the time of sorting them.
    """
    import pandas as pd

    return np.unique(pd.unique(y) if is_text(y) else y)


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
        if values.dtype != object or is_text(values):
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
    if len(getattr(y, "shape", ())) > 1 or is_text(y):
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


PROBED_ROWS = 256
"""Maximum number of rows of each chunk on which a user's loss is checked."""


def check_returned_losses(target, rows):
    """Check that a network can be trained with a user's loss, and learn the unit of losses.

    Parameters
    ----------
    target : Target
        Fitted target, with the loss and the scale of `y`.
    rows : Dataset
        Training rows.

    Raises
    ------
    ValueError, TypeError
        If the loss fails, or returns no finite, differentiable number for each row.
    """
    if target.loss is None or type(target.loss) in BUILT_IN.values():
        return
    sums = rows.map_chunks(partial(probe_loss, target=target))
    sums = [chunk for chunk in sums if chunk is not None]
    if sums:
        target.head_.learn_loss_unit(*np.sum(sums, axis=0))


def probe_loss(rows, *, target):
    """Compute a user's loss and its gradient for a few rows, at outputs near the initial ones.

    Returns
    -------
    tuple of (float, float) or None
        Sum of the absolute derivatives of the losses with respect to the outputs, and their number.
        None without rows.
    """
    rows = EncodedDataset(TensorFrame({}, len(rows)), rows.target, rows.weight)
    rows = target.scaled(rows).take(slice(PROBED_ROWS))
    if not len(rows):
        return None
    shape = (len(rows), 1, target.head_.out_features)
    outputs = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        derivative = checked_gradient(target, outputs.requires_grad_(), rows.target)
    return float(derivative.abs().sum()), float(derivative.numel())


def checked_gradient(target, outputs, targets):
    """Return the gradient of the sum of a user's losses with respect to the outputs.

    Parameters
    ----------
    target : Target
        Target with the loss.
    outputs : torch.Tensor of shape (n_rows, 1, out_features)
        Raw outputs, which require gradients.
    targets : torch.Tensor
        Scaled targets.

    Returns
    -------
    torch.Tensor of shape (n_rows, 1, out_features)

    Raises
    ------
    ValueError
        If the loss fails or is not differentiable, or if losses or gradients are not finite.
    """
    head, owner = target.head_, target.owner
    name = f"{owner}: loss {shortened(head.criterion.name)}"
    try:
        losses = head.with_loss(with_checked_mean(head.criterion)).losses(outputs, targets)
    except LossError as error:
        raise ValueError(f"{owner}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"{name} failed for {len(targets)} rows with {head.out_features} outputs: "
            f"{type(error).__name__}: {error}. It takes raw outputs and targets as tensors, and "
            "returns a loss for each row, or a mean that torch.func.vmap can compute of one row"
        ) from error
    if not losses.requires_grad:
        raise ValueError(
            f"{name} is not differentiable: it must compute with torch on the outputs, without "
            "detach() and NumPy"
        )
    wrong = ~losses.detach().isfinite().flatten(1).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"{name} is {losses[row].flatten()[0].item()} for a row with the target "
            f"{target.decode(targets[row : row + 1]).tolist()[0]} and an output near the initial "
            "one; losses must be finite"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    if not gradient.isfinite().all():
        raise ValueError(
            f"{name} has a gradient of NaN or infinity at outputs near the initial ones; clamp "
            "divisors, and the arguments of roots and logarithms"
        )
    return gradient
