"""Rows that importances and measures of predictions are computed from."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.executor import LocalExecutor
from sk_easytensor.inspection.encoded_model import MANY_COLUMNS, EncodedModel
from sk_easytensor.inspection.importance import draw_orders, permuted_scores
from sk_easytensor.training.dataset import bounded_sample
from sk_easytensor.training.distributed import SingleProcess

__all__ = [
    "ImportanceSample",
    "Inspection",
    "calibration",
    "residual_bins",
]


BINS = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def calibration(probabilities, happened, weight):
    """Compare probabilities with how often what they are of happened.

    Parameters
    ----------
    probabilities : ndarray of float, shape (n,)
        Predicted.
    happened : ndarray of bool, shape (n,)
        Whether it did.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (10, 2)
        Mean probability and share that happened, in bins of as many rows, by rising probability.
        NaN where no row of a bin has weight.
    """
    table = np.full((BINS, 2), np.nan)
    for index, rows in enumerate(_bins(probabilities)):
        if weight[rows].sum() > 0:
            table[index] = [
                np.average(values[rows], weights=weight[rows])
                for values in (probabilities, happened)
            ]
    return table


def residual_bins(predicted, actual, weight):
    """Return how far targets are from predictions, by prediction.

    Parameters
    ----------
    predicted, actual : ndarray of float, shape (n,)
        Predictions and targets.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (10, 6)
        Mean prediction, and the 5%, 25%, 50%, 75% and 95% quantiles of target minus prediction, in
        bins of as many rows, by rising prediction. NaN where no row of a bin has weight.
    """
    table = np.full((BINS, 1 + len(QUANTILES)), np.nan)
    for index, rows in enumerate(_bins(predicted)):
        rows = rows[weight[rows] > 0]
        if len(rows):
            table[index, 0] = np.average(predicted[rows], weights=weight[rows])
            table[index, 1:] = _quantiles(actual[rows] - predicted[rows], weight[rows])
    return table


def _bins(values):
    return np.array_split(np.argsort(values, kind="stable"), BINS)


def _quantiles(values, weight):
    order = np.argsort(values, kind="stable")
    mass = weight[order].cumsum()
    places = np.searchsorted(mass, np.array(QUANTILES) * mass[-1])
    return values[order][np.minimum(places, len(order) - 1)]


ROWS, ROWS_OF_MANY = 2048, 256
REPEATS, REPEATS_OF_MANY = 3, 1

FEWEST_ROWS = 16
"""Rows that even the widest table is sampled to."""

MOST_PASSES = 2**20
"""Rows, over all columns of a wide table, that pass through the network with a column shuffled."""

MOST_VALUES = 2**16
"""Values, of the rows and all columns, that a pass reads where it cannot read one column only."""

VALIDATION_ROWS_AT_LEAST = 32


class Inspection:
    """What is kept or computed of a training's rows, before they are forgotten.

    Parameters
    ----------
    target : Target
        Has learned its scale.
    encoder : TableEncoder
        Has encoded the rows.
    seed : int
        Seed of the sample and of the permutations.
    """

    def __init__(self, target, encoder, seed):
        self.target = target
        self.encoder = encoder
        self.seed = seed

    def later(self, rows, evals):
        """Keep a sample for importances that are computed when they are asked for.

        Parameters
        ----------
        rows : TrainingDataset
            Training rows.
        evals : list of TrainingDataset
            Validation rows.

        Returns
        -------
        dict
            Attributes of the estimator.
        """
        return {"_importance_sample": ImportanceSample(rows, evals, self._n_columns, self.seed)}

    def now(self, network, rows, evals, group):
        """Compute importances, each worker its part, from a sample of the rows of all.

        Parameters
        ----------
        network : BlockNetwork
            Trained.
        rows, evals
            A worker's share of the training and validation rows.
        group : SingleProcess or ProcessGroup
            The workers.

        Returns
        -------
        dict
            Attributes of the estimator, none of which holds a row. The validation is None in all
            workers but the first.
        """
        sample = ImportanceSample(rows, evals, self._n_columns, self.seed, group)
        importances, validation = sample.found(
            network, self.encoder, self.target, LocalExecutor(), group
        )
        return {
            "_importances": importances,
            "_validation": validation,
            "_importance_sample": None,
        }

    @property
    def _n_columns(self):
        return len(self.encoder.column_names)


class ImportanceSample:
    """A bounded sample of encoded rows for importances to be computed from.

    Parameters
    ----------
    rows : TrainingDataset
        Training rows.
    evals : list of TrainingDataset
        Validation rows; the first are sampled if they are enough for validation.
    n_columns : int
        Input columns.
    seed : int
        Of the sample and the permutations.
    group : SingleProcess or ProcessGroup, optional
        Workers that have a share of the rows each; the sample is a part of this worker's.

    Attributes
    ----------
    held_out : bool
        Whether these are validation rows.
    """

    def __init__(self, rows, evals, n_columns, seed, group=None):
        group = SingleProcess() if group is None else group
        n_valid = group.sum([len(evals[0])])[0] if evals else 0
        self.held_out = n_valid >= VALIDATION_ROWS_AT_LEAST
        if self.held_out:
            rows = evals[0]
        # Otherwise importances take too long to be computed whenever something is pickled.
        self.quick = n_columns <= MANY_COLUMNS
        # Workers would otherwise all draw the same places of their shares.
        self.seed = seed + group.rank
        size = ROWS if self.quick else bounded_rows(MOST_PASSES // n_columns)
        share = len(rows) / group.sum([len(rows)])[0]
        self.rows = bounded_sample(rows, int(np.ceil(size * share)), self.seed)

    def found(self, network, encoder, target, backend, group=None):
        """Return importances, and how good predictions are if these are validation rows.

        Parameters
        ----------
        network : BlockNetwork
            Is evaluated.
        encoder : TableEncoder
            Has encoded the rows.
        target : Target
            Has the head of the network, and measures its predictions.
        backend : LocalExecutor
            Where forward passes run.
        group : SingleProcess or ProcessGroup, optional
            Workers that have a sample each.

        Returns
        -------
        importances : ndarray of float64, shape (n_features,)
            As of :meth:`importances`.
        validation : dict or None
            Of the rows of all workers, in the first of them.
        """
        group = SingleProcess() if group is None else group
        head = target.head_
        model = EncodedModel.of_network(network, head, encoder, self.rows.frame, backend)
        evaluated, rows = model, self.rows
        if not (self.quick or model.linear):
            few = slice(bounded_rows(MOST_VALUES // len(model.places)))
            rows = rows.take(few)
            evaluated = EncodedModel.of_network(network, head, encoder, rows.frame, backend)
        importances = self.importances(evaluated, rows, head, group)
        importances = encoder.by_feature(importances, network, rows.frame)
        if not self.held_out:
            return importances, None
        told = group.gather((model.outputs[:, 0], self.rows.target, self.rows.weight))
        if group.rank > 0:
            return importances, None
        outputs, actual, weight = (torch.cat(parts) for parts in zip(*told, strict=True))
        found = target.validation_measures(outputs, actual, weight)
        return importances, {"rows": len(weight), **found}

    def importances(self, model, rows, head, group):
        """Permutation importance of each input column.

        Parameters
        ----------
        model : EncodedModel
            Of the rows.
        rows : TrainingDataset
            All rows of the sample, or the first of them.
        head : Head
            Gives the loss.
        group : SingleProcess or ProcessGroup
            Workers whose losses are added up; each shuffles among the rows of its own sample.

        Returns
        -------
        ndarray of float64, shape (n_features,)
            Rise of the loss, at least 0, scaled to sum to 1; all 0 where no column matters.
            Columns that can only be shuffled together share evenly what they matter.
        """
        weight = rows.weight.double()

        def loss(outputs):
            losses = head.loss(outputs, rows.target)[:, 0].double()
            return float((losses * weight).sum())

        repeats = REPEATS if self.quick else REPEATS_OF_MANY
        orders = draw_orders(len(rows), repeats, np.random.RandomState(self.seed))
        groups = model.columns()
        before, after = permuted_scores(model, groups, orders, loss)
        sums = group.sum([float(weight.sum()), before, *(sum_ for each in after for sum_ in each)])
        before, *after = [each / sums[0] for each in sums[1:]]
        importances = np.zeros(len(model.places))
        for place, (indices, _) in enumerate(groups):
            losses = after[place * repeats : (place + 1) * repeats]
            rise = np.mean([loss - before for loss in losses])
            importances[indices] = max(rise, 0.0) / len(indices)
        total = importances.sum()
        return importances / total if total > 0 else importances


def bounded_rows(n_rows):
    """Return how many rows of a wide table are sampled, where time allows for so many."""
    return min(max(n_rows, FEWEST_ROWS), ROWS_OF_MANY)
