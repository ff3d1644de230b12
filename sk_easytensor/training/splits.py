"""Division of rows into training and validation rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "Folds",
    "complement",
    "validation_rows",
]


@dataclass
class Folds:
    """Divisions of rows into training and validation rows.

    Attributes
    ----------
    parts : list of (Dataset, Dataset)
        Training rows and validation rows of each fold.
    n_rows : int
        Number of all rows.
    rows : list of ndarray of int64, or None
        Indices of the validation rows of each fold; None if rows are in other processes.
    """

    parts: list
    n_rows: int
    rows: list | None = None

    @classmethod
    def of(cls, splits, n_rows, rows=None):
        """Return the folds of training rows and lists of validation rows.

        Raises
        ------
        ValueError
            If a fold has no validation rows.
        """
        if not all(held_out for _, held_out in splits):
            raise ValueError(
                f"n_folds={len(splits)} leaves a fold without rows to hold out; there are {n_rows} "
                "rows, those of weight zero included"
            )
        return cls([(train, valid) for train, (valid,) in splits], n_rows, rows)


def complement(rows, n_rows):
    """Return the other indices of `n_rows` rows, and `rows`, both in increasing order."""
    is_chosen = np.zeros(n_rows, dtype=bool)
    is_chosen[rows] = True
    return np.flatnonzero(~is_chosen), np.flatnonzero(is_chosen)


def validation_rows(strata, fraction, random_state):
    """Split rows into a training and a validation part, evenly over strata.

    Parameters
    ----------
    strata : ndarray of int, shape (n_rows,)
        Stratum of each row, for instance its class.
    fraction : float
        Fraction of the rows that goes to the validation part, the same in all strata as far as
        whole rows allow. At least one row of each stratum stays in the training part.
    random_state : numpy.random.RandomState
        Random generator of the draw.

    Returns
    -------
    train, valid : ndarray of int64
        Row indices in increasing order.

    Examples
    --------
    >>> train, valid = validation_rows(np.zeros(10, int), 0.2, np.random.RandomState(0))
    >>> len(train), len(valid)
    (8, 2)
    """
    shuffled = random_state.permutation(len(strata))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, sizes = np.unique(strata, return_counts=True)
    first = np.zeros(len(strata) + 1, dtype=bool)
    first[np.cumsum(sizes) - sizes] = True
    # Rows are ordered by stratum, and a row is held out whenever the cumulative number of
    # validation rows reaches the next integer. Large strata contribute in proportion, small ones
    # by turns.
    position = np.arange(len(strata))
    held_out = np.floor((position + 1) * fraction + 0.5) > np.floor(position * fraction + 0.5)
    # The first row of each stratum stays in the training part; the next one replaces it.
    moved = np.flatnonzero(held_out & first[:-1]) + 1
    held_out[moved[moved < len(strata)]] = True
    held_out &= ~first[:-1]
    return np.sort(order[~held_out]), np.sort(order[held_out])
