"""Which rows train and which validate."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.training.batches import EncodedRows

__all__ = ["hold_out", "merge_duplicates", "validation_rows"]

MERGE_AT_MOST = 10_000
COPIES_AT_MOST = 4


def validation_rows(strata, fraction, random_state):
    """Split rows into a training and a validation part, evenly over strata.

    Parameters
    ----------
    strata : ndarray of int, shape (n,)
        Group of each row, its class for instance.
    fraction : float
        Of the rows that goes to the validation part, in equal shares from all groups as far as
        whole rows allow. Each group keeps a row to train on.
    random_state : numpy.random.RandomState
        Decides which rows.

    Returns
    -------
    train, valid : ndarray of int64
        Increasing row numbers.

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
    # Going through the groups one after the other, a row is taken whenever the running share
    # reaches a whole number: large groups give their part, small ones take turns.
    place = np.arange(len(strata))
    taken = np.floor((place + 1) * fraction + 0.5) > np.floor(place * fraction + 0.5)
    # The first row of each group stays to train on; the next takes its place if there is one.
    moved = np.flatnonzero(taken & first[:-1]) + 1
    taken[moved[moved < len(strata)]] = True
    taken &= ~first[:-1]
    return np.sort(order[~taken]), np.sort(order[taken])


def hold_out(rows, strata, fraction, random_state):
    """Take a validation part out of encoded rows; see :func:`validation_rows`.

    Returns
    -------
    rows : EncodedRows
        Those left to train on.
    evals : list of EncodedRows
        The validation part; empty if there are too few rows for one.
    """
    train, valid = validation_rows(strata, fraction, random_state)
    if len(valid) == 0:
        return rows, []
    return rows.take(torch.from_numpy(train)), [rows.take(torch.from_numpy(valid))]


def merge_duplicates(rows, batch_size):
    """Merge equal rows, adding their weights, if what is left fits into one batch.

    With one batch a step sees all rows, so that a row of weight two then counts exactly as the
    same row given twice, in whatever order rows come. Other tables are returned as they are, and
    so are those that consist of copies for the most part, more than four a row on average: an
    epoch would be too short.

    Parameters
    ----------
    rows : EncodedRows
        Training rows.
    batch_size : int
        Rows a batch.

    Returns
    -------
    EncodedRows
        In an order that depends on their content only, if merged.
    """
    if len(rows) > MERGE_AT_MOST:
        return rows
    target = rows.target.reshape(len(rows), -1).double().numpy()
    key = np.column_stack([rows.frame.row_hashes().astype(np.float64), target])
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    if len(first) > batch_size or len(rows) > COPIES_AT_MOST * len(first):
        return rows
    weight = np.bincount(inverse.reshape(-1), weights=rows.weight.double().numpy())
    merged = rows.take(torch.from_numpy(first))
    return EncodedRows(merged.frame, merged.target, torch.from_numpy(weight).float())
