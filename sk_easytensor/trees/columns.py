"""What trees are grown on: codes in order as numbers, categories as codes or what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["CodeColumn", "LeftRows", "TreeColumns", "read_columns"]

FEW_CODES = 26
"""Columns of at most so many codes are split by sets of codes."""

MOST_CODES = 254
"""Codes that scikit-learn can split by sets of, at most."""

MISSING, UNSEEN = 0, 1
"""The code for missing, and the one that stands for those beyond."""

FOLDS, SMOOTHING = 5, 10.0
"""Parts of the rows that do not tell of each other; rows that the mean of all counts as."""


@dataclass
class LeftRows:
    """Rows for trees.

    Attributes
    ----------
    columns : ndarray of int32, shape (n_rows, n_columns)
        Codes, 0 where missing.
    target : ndarray, shape (n_rows,) or (n_rows, n_targets)
        As the head wants it.
    weight : ndarray of float32, shape (n_rows,), or None
        None where all are alike.
    """

    columns: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None

    def of_target(self, index):
        """Return the rows with one column of the target."""
        target = self.target if self.target.ndim == 1 else self.target[:, index]
        return LeftRows(self.columns, target, self.weight)

    def of_task(self, index):
        """Return the rows of which one of several targets is known, with that target."""
        target = self.target[:, index]
        known = ~np.isnan(target)
        return LeftRows(self.columns, target, self.weight)._where(known, target)

    def of_weight(self):
        """Return the rows that have any weight."""
        if self.weight is None or self.weight.all():
            return self
        return self._where(self.weight > 0, self.target)

    def of_classes(self, classes):
        """Return the rows of some classes, which are numbered anew."""
        place = np.minimum(np.searchsorted(classes, self.target), len(classes) - 1)
        return self._where(classes[place] == self.target, place)

    def _where(self, rows, target):
        weight = None if self.weight is None else self.weight[rows]
        return LeftRows(self.columns[rows], target[rows], weight)


@dataclass
class CodeColumn:
    """A column of codes.

    Attributes
    ----------
    known : ndarray of int64 or None
        Codes that the trees' sets are of, in order; None if the trees read `values`.
    values : ndarray of float64, shape (n_codes,)
        What takes the place of each code: another code, a number that is in order, NaN where
        missing, or what the target is for it.
    """

    known: np.ndarray | None
    values: np.ndarray


@dataclass
class TreeColumns:
    """What trees are grown on.

    Attributes
    ----------
    matrices : list of ndarray of float64
        Of training and validation rows. Sets of codes come first, as scikit-learn would have it.
    read : list of tuple of (int, CodeColumn)
        For each column of these, where it stands among those of the rows, and what became of it.
    is_category : ndarray of bool
        For each column, whether it is split by sets.
    """

    matrices: list
    read: list
    is_category: np.ndarray


def read_columns(parts, codes, *, many_outputs, seed):
    """Prepare rows for trees.

    Parameters
    ----------
    parts : list of LeftRows
        Training rows, and validation rows if there are any.
    codes : list of tuple of (int, bool)
        For each column how many codes there are, and whether they are in order.
    many_outputs : bool
        Whether the target has more than two classes: no single number tells then what it is for a
        category.
    seed : int
        Of the folds.

    Returns
    -------
    TreeColumns
    """
    rows = parts[0]
    sets, others = [], []
    for position, (n_codes, in_order) in enumerate(codes):
        own = rows.columns[:, position]
        if in_order:
            values = np.arange(n_codes, dtype=np.float64)
            values[MISSING] = np.nan
            # scikit-learn cannot bin a column without any number.
            if own.any():
                others.append((position, CodeColumn(None, values), None))
        elif n_codes <= FEW_CODES or many_outputs:
            values = np.arange(n_codes, dtype=np.float64)
            values[MOST_CODES:] = UNSEEN
            known = np.unique(values[own]).astype(np.int64)
            sets.append((position, CodeColumn(known, values), None))
        else:
            inside, values = told_by_others(own, n_codes, rows.target, rows.weight, seed)
            others.append((position, CodeColumn(None, values), inside))
    found = [*sets, *others]
    matrices = [np.empty((len(part.target), len(found))) for part in parts]
    for index, (position, column, inside) in enumerate(found):
        for part, matrix in zip(parts, matrices, strict=True):
            matrix[:, index] = column.values[part.columns[:, position]]
        if inside is not None:
            matrices[0][:, index] = inside
    is_category = np.arange(len(found)) < len(sets)
    return TreeColumns(matrices, [(position, column) for position, column, _ in found], is_category)


def told_by_others(codes, n_codes, target, weight, seed):
    """Return the mean target of each category, smoothed, and for each row that of other rows.

    Parameters
    ----------
    codes : ndarray of int32, shape (n_rows,)
        Categories.
    n_codes : int
        How many there may be.
    target : ndarray, shape (n_rows,)
        Numbers, or 0 and 1.
    weight : ndarray, shape (n_rows,), or None
        Of the rows.
    seed : int
        Of the folds: a row's number is the mean over the rows of other folds.

    Returns
    -------
    inside : ndarray of float64, shape (n_rows,)
    values : ndarray of float64, shape (n_codes,)
    """
    target = target.astype(np.float64)
    weight = np.ones(len(target)) if weight is None else weight.astype(np.float64)
    fold = np.random.RandomState(seed).permutation(len(codes)) % FOLDS
    place, shape = codes.astype(np.int64) * FOLDS + fold, (n_codes, FOLDS)
    sums = np.bincount(place, weight * target, minlength=n_codes * FOLDS).reshape(shape)
    weights = np.bincount(place, weight, minlength=n_codes * FOLDS).reshape(shape)
    prior = sums.sum() / weights.sum()

    def smoothed(total, rows):
        return (total + SMOOTHING * prior) / (rows + SMOOTHING)

    all_sums, all_weights = sums.sum(1), weights.sum(1)
    other_sums = all_sums[codes] - sums[codes, fold]
    other_weights = all_weights[codes] - weights[codes, fold]
    return smoothed(other_sums, other_weights), smoothed(all_sums, all_weights)
