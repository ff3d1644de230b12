"""Which columns a fitted network relies on."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.training.batches import EncodedRows

__all__ = ["ImportanceSample", "column_importances"]

MANY_COLUMNS = 100
"""With more, importances take too long to be computed whenever something is pickled."""

ROWS, ROWS_OF_MANY = 2048, 256
REPEATS, REPEATS_OF_MANY = 3, 1
VALIDATION_ROWS_AT_LEAST = 32


class ImportanceSample:
    """A bounded sample of encoded rows, kept after a fit for importances to be computed from.

    Parameters
    ----------
    rows : EncodedRows
        Training rows.
    evals : list of EncodedRows
        Validation rows; the first are sampled if they are enough to judge by.
    n_columns : int
        Input columns.
    seed : int
        Of the sample and the permutations.
    """

    def __init__(self, rows, evals, n_columns, seed):
        if evals and len(evals[0]) >= VALIDATION_ROWS_AT_LEAST:
            rows = evals[0]
        self.quick = n_columns <= MANY_COLUMNS
        self.seed = seed
        self.rows = bounded_sample(rows, ROWS if self.quick else ROWS_OF_MANY, seed)

    def importances(self, network, head, encoder, backend):
        """Return the permutation importance of each column; see :func:`column_importances`."""
        repeats = REPEATS if self.quick else REPEATS_OF_MANY
        return column_importances(network, head, encoder, self.rows, self.seed, repeats, backend)


def column_importances(network, head, encoder, rows, seed, repeats, backend):
    """Permutation importance of each input column, computed on encoded rows.

    Parameters
    ----------
    network : BlockNetwork
        Fitted.
    head : Head
        Gives the loss.
    encoder : TableEncoder
        Knows where each column stands in the encoding.
    rows : EncodedRows
        Rows to judge on.
    seed : int
        Of the permutations.
    repeats : int
        Permutations a column.
    backend : LocalBackend
        Where forward passes run.

    Returns
    -------
    ndarray of float64, shape (n_features,)
        Rise of the loss, at least 0, scaled to sum to 1; all 0 where no column matters.

    Notes
    -----
    Breiman, "Random Forests" (2001). Shuffling a column of the encoding equals shuffling it in
    the table, because a row's encoding depends on that row alone.
    """
    random_state = np.random.RandomState(seed)
    orders = [torch.from_numpy(random_state.permutation(len(rows))) for _ in range(repeats)]
    before = _loss(network, head, rows, backend)
    importances = np.zeros(encoder.n_features_in_)
    for index, column in enumerate(encoder._columns):
        places = encoder.column_positions(column, rows.frame)
        if not places:
            continue
        rises = [
            _loss(network, head, _shuffled(rows, places, order), backend) - before
            for order in orders
        ]
        importances[index] = max(np.mean(rises), 0.0)
    total = importances.sum()
    return importances / total if total > 0 else importances


def _shuffled(rows, places, order):
    frame = rows.frame
    for block, positions in places.items():
        frame = frame.permute_column(block, positions, order)
    return EncodedRows(frame, rows.target, rows.weight)


def _loss(network, head, rows, backend):
    combined = backend.forward(
        lambda frame: head.combine(network(frame)),
        rows.frame,
        lengths=network.padded_lengths(rows.frame),
    )
    losses = head.loss(combined, rows.target)[:, 0].double()
    weight = rows.weight.double()
    return float((losses * weight).sum() / weight.sum())


def bounded_sample(rows, size, seed):
    """Return at most `size` of the rows."""
    if len(rows) <= size:
        return rows
    chosen = np.random.RandomState(seed).choice(len(rows), size, replace=False)
    return rows.take(torch.from_numpy(np.sort(chosen)))
