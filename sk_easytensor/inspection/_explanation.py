"""Contributions of columns to the output for a row: sampled Shapley values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import torch
from sklearn.utils import check_random_state

from sk_easytensor.backends import resolve_backend
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.inspection._mixed import MixedRows
from sk_easytensor.parameters import check_number
from sk_easytensor.tensors import TensorFrame

__all__ = ["Explanation", "shapley_values"]

MIXED_ROWS = 4096
"""Pairs of a row and a background row that are computed at a time."""


@dataclass
class Explanation:
    """Contributions of columns to the raw outputs for rows.

    ``shap.Explanation(**vars(explanation))`` makes an object of the package ``shap`` of it.

    Attributes
    ----------
    values : ndarray of float64, shape (n_samples, n_features) or (n_samples, n_features, n_outputs)
        Contributions.
    base_values : ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
        Mean raw output of the background rows, the same for all rows.
    feature_names : list of str
        Columns.
    """

    values: np.ndarray
    base_values: np.ndarray
    feature_names: list

    @classmethod
    def of(cls, values, base, names):
        """Return an explanation with a base value, or one for each output, repeated for all rows.

        Parameters
        ----------
        values : ndarray
            Contributions.
        base : float or ndarray of float64, shape (n_outputs,)
            Base value.
        names : sequence of str
            Columns.
        """
        return cls(values, np.repeat(np.asarray(base)[None], len(values), axis=0), list(names))


def shapley_values(estimator, X, background, n_permutations, max_background, random_state):
    """Return the contributions of columns to the raw outputs of rows.

    Parameters
    ----------
    estimator : EasyTensorClassifier or EasyTensorRegressor
        Fitted.
    X, background, n_permutations, max_background, random_state
        As of the estimator's ``explain``.

    Returns
    -------
    values : ndarray of float64, shape (n_samples, n_features, out_features)
        Contributions to the network's outputs.
    base : ndarray of float64, shape (out_features,)
        Mean outputs of the background rows.
    """
    owner = f"{type(estimator).__name__}.explain"
    check_number(owner, "n_permutations", n_permutations, low=1, integer=True)
    check_number(owner, "max_background", max_background, low=1, integer=True)
    random_state = check_random_state(random_state)
    if estimator._encoder._with_margin:
        raise ValueError(
            f"{owner}: offsets given as base_margin are no column, so that their contribution has "
            "no entry; fit with the parameter offset, which names a column"
        )
    resolved = resolve_backend(estimator.backend, estimator.n_jobs)
    backend = LocalExecutor(estimator.n_jobs) if resolved.distributed else resolved
    table = estimator._read(X)
    if background is None and len(table) < 2:
        raise ValueError(
            f"{owner}: X of {len(table)} rows cannot be its own background; give background, a "
            "table of rows that contributions are differences from, such as training rows"
        )
    others = table if background is None else estimator._read(background)
    if len(others) > max_background:
        chosen = random_state.choice(len(others), max_background, replace=False)
        others = others.take(np.sort(chosen))
    rows, others = (estimator._encoder.encode_table(each, backend) for each in (table, others))
    orders, values = None, []
    step = max(1, MIXED_ROWS // len(others))
    for start in range(0, len(rows), step):
        some = rows.take(slice(start, start + step))
        model = estimator._judged_model(TensorFrame.concatenate([some, others]), backend)
        groups = model.columns()
        if orders is None:
            orders = draw_orders(len(groups), n_permutations, random_state)
        base = model.outputs[len(some) :, 0].double().mean(0)
        found = contributions(model, groups, orders, len(some))
        values.append(by_columns(found, groups, len(model.places)))
    return np.concatenate(values), base.numpy()


def draw_orders(n_groups, n_permutations, random_state):
    """Return orders in which columns are replaced: all there are, or some, each with its reverse.

    Parameters
    ----------
    n_groups : int
        Columns.
    n_permutations : int
        Orders to draw.
    random_state : RandomState
        Source of the orders.

    Returns
    -------
    list of list of int
    """
    if n_groups <= 10 and factorial(n_groups) <= 2 * n_permutations:
        return [list(order) for order in permutations(range(n_groups))]
    drawn = [random_state.permutation(n_groups).tolist() for _ in range(n_permutations)]
    return [order for each in drawn for order in (each, each[::-1])]


def contributions(model, groups, orders, n_rows):
    """Return by how much outputs change as the columns of background rows are replaced.

    Parameters
    ----------
    model : EncodedModel
        Of the rows to explain, followed by the background rows.
    groups : list of (list of int, dict)
        As of :meth:`EncodedModel.columns`.
    orders : list of list of int
        In which they are replaced.
    n_rows : int
        Rows to explain.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_groups, out_features)
        Mean over background rows and orders.
    """
    n_others = len(model.frame) - n_rows
    rows = torch.arange(n_others).repeat(n_rows) + n_rows
    donors = torch.arange(n_rows).repeat_interleave(n_others)
    outputs = model.outputs[:, 0].double()
    values = torch.zeros(n_rows, len(groups), outputs.shape[1], dtype=torch.float64)
    with model.running():
        first = MixedRows(model.network_parts, rows, donors)
        for order in orders:
            mixed, before = first, outputs[rows]
            for group in order[:-1]:
                mixed = mixed.replaced(groups[group][1])
                after = mixed.combined()[:, 0].double()
                values[:, group] += (after - before).unflatten(0, (n_rows, n_others)).mean(1)
                before = after
            # With every column replaced it is the row to explain: its output is exact.
            for group in order[-1:]:
                change = outputs[donors] - before
                values[:, group] += change.unflatten(0, (n_rows, n_others)).mean(1)
    return (values / max(len(orders), 1)).numpy()


def by_columns(found, groups, n_columns):
    """Share the contributions of groups evenly among their columns."""
    values = np.zeros((len(found), n_columns, found.shape[2]))
    for place, (indices, _) in enumerate(groups):
        values[:, indices] = found[:, place, None] / len(indices)
    return values
