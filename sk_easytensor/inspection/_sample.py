"""What ``feature_importances_`` is computed from: a sample of rows kept after a fit."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.inspection._importance import draw_orders, permuted_scores

__all__ = ["ImportanceSample"]

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

    Attributes
    ----------
    held_out : bool
        Whether these are validation rows.
    """

    held_out = False

    def __init__(self, rows, evals, n_columns, seed):
        self.held_out = bool(evals) and len(evals[0]) >= VALIDATION_ROWS_AT_LEAST
        if self.held_out:
            rows = evals[0]
        self.quick = n_columns <= MANY_COLUMNS
        self.seed = seed
        self.rows = bounded_sample(rows, ROWS if self.quick else ROWS_OF_MANY, seed)

    def importances(self, model, head):
        """Permutation importance of each input column.

        Parameters
        ----------
        model : EncodedModel
            Of the sample's rows.
        head : Head
            Gives the loss.

        Returns
        -------
        ndarray of float64, shape (n_features,)
            Rise of the loss, at least 0, scaled to sum to 1; all 0 where no column matters.
            Columns that can only be shuffled together share evenly what they matter.
        """
        rows = self.rows
        weight = rows.weight.double()

        def loss(outputs):
            losses = head.loss(outputs, rows.target)[:, 0].double()
            return float((losses * weight).sum() / weight.sum())

        repeats = REPEATS if self.quick else REPEATS_OF_MANY
        orders = draw_orders(len(rows), repeats, np.random.RandomState(self.seed))
        groups = model.columns()
        before, after = permuted_scores(model, groups, orders, loss)
        importances = np.zeros(len(model.places))
        for (indices, _), losses in zip(groups, after, strict=True):
            rise = np.mean([loss - before for loss in losses])
            importances[indices] = max(rise, 0.0) / len(indices)
        total = importances.sum()
        return importances / total if total > 0 else importances


def bounded_sample(rows, size, seed):
    """Return at most `size` of the rows."""
    if len(rows) <= size:
        return rows
    chosen = np.random.RandomState(seed).choice(len(rows), size, replace=False)
    return rows.take(torch.from_numpy(np.sort(chosen)))
