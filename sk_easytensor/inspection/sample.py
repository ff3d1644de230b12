"""Samples of rows for importances of columns and for metrics of predictions."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.executor import LocalExecutor
from sk_easytensor.inspection.encoded_model import MANY_COLUMNS, EncodedModel
from sk_easytensor.inspection.importance import draw_orders, permuted_scores
from sk_easytensor.networks.block_network import with_linear
from sk_easytensor.networks.linear import LinearModule
from sk_easytensor.training.dataset import bounded_sample, join_rows
from sk_easytensor.training.distributed import SingleProcess

__all__ = [
    "ImportanceSample",
    "Inspection",
    "calibration",
    "residual_bins",
]


BINS = 10
"""Number of bins of equal numbers of rows."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the residuals of a bin."""


def calibration(probabilities, happened, weight):
    """Compare predicted probabilities with observed frequencies.

    Parameters
    ----------
    probabilities : ndarray of float, shape (n,)
        Predicted probabilities of an event.
    happened : ndarray of bool, shape (n,)
        Whether the event happened.
    weight : ndarray of float, shape (n,)
        Row weights, some of them positive.

    Returns
    -------
    ndarray of float64, shape (10, 2)
        Mean probability and observed frequency, in bins of equal numbers of rows, by increasing
        probability. NaN for a bin without weight.
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
    """Return quantiles of the residuals by prediction.

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
        bins of equal numbers of rows, by increasing prediction. NaN for a bin without weight.
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
    indices = np.searchsorted(mass, np.array(QUANTILES) * mass[-1])
    return values[order][np.minimum(indices, len(order) - 1)]


ROWS, WIDE_TABLE_ROWS = 2048, 256
"""Rows of a sample at most, of tables of up to MANY_COLUMNS columns and of wider ones."""

REPEATS, WIDE_TABLE_REPEATS = 3, 1
"""Shuffles of each column."""

MIN_ROWS = 16
"""Rows of a sample of even the widest table."""

MAX_PASSES = 2**20
"""Rows that pass through the network with a column shuffled, over all columns of a wide table."""

MAX_VALUES = 2**16
"""Values of rows and columns that a pass over all columns of a wide table reads."""

N_ERRORS = 1.0
"""Standard errors that the increase of the loss must exceed, or else it is 0. More would leave out
columns that matter where few rows are held out."""

MIN_VALIDATION_ROWS = 32
"""With fewer validation rows, training rows are sampled."""


class Inspection:
    """Importances of a trained model, computed after training or on first use.

    Parameters
    ----------
    target : Target
        Fitted target.
    encoder : TableEncoder
        Encoder of the rows.
    seed : int
        Seed of the sample and of the permutations.
    n_networks : int, default=1
        Number of networks of an ensemble, each of which is inspected on rows of its own.
    """

    def __init__(self, target, encoder, seed, n_networks=1):
        self.target = target
        self.encoder = encoder
        self.seed = seed
        self.n_networks = n_networks

    def keep_sample(self, rows, evals, linear=None):
        """Return a sample of the rows, from which importances are computed on first use.

        Parameters
        ----------
        rows : TrainingDataset
            Training rows.
        evals : list of TrainingDataset
            Validation rows.
        linear : LinearModule or None, default=None
            Linear model that has not seen the validation rows, if that of the network has.

        Returns
        -------
        dict
            Fitted attributes of the estimator.
        """
        return {"_importance_sample": self._sample(rows, evals, linear=linear)}

    def compute(self, network, rows, evals, group, linear=None):
        """Compute importances from samples of the shards of all workers.

        Parameters
        ----------
        network : BlockNetwork
            Trained network.
        rows : TrainingDataset
            Shard of the training rows.
        evals : list of TrainingDataset
            Shards of the validation rows.
        group : SingleProcess or ProcessGroup
            Workers, all of which call this.
        linear : LinearModule or None, default=None
            As for :meth:`keep_sample`.

        Returns
        -------
        dict
            Fitted attributes of the estimator, which contain no rows. Empty in all workers but the
            first.
        """
        sample = self._sample(rows, evals, group, linear)
        if group.rank > 0:
            return {}
        increases, predicted = sample.measure(network, self.encoder, self.target, LocalExecutor())
        return {
            "increases": increases,
            "_validation": None if predicted is None else validation(self.target, [predicted]),
            "_importance_sample": None,
        }

    def _sample(self, rows, evals, group=None, linear=None):
        n_columns = len(self.encoder.column_names_)
        return ImportanceSample(rows, evals, n_columns, self.seed, group, self.n_networks, linear)

    @staticmethod
    def join(inspected):
        """Return the fitted attributes of an ensemble from those of its networks.

        Parameters
        ----------
        inspected : list of dict
            Results of :meth:`keep_sample` or :meth:`compute` for each network.

        Returns
        -------
        dict
        """
        if not inspected[0]:
            return {}
        if inspected[0]["_importance_sample"] is not None:
            samples = [each["_importance_sample"] for each in inspected]
            return {
                "_importance_sample": samples[0] if len(samples) == 1 else EnsembleSample(samples)
            }
        increases = mean_increases([each["increases"] for each in inspected])
        importances, errors = significant_shares(increases)
        # Workers return no rows, so that metrics cannot be computed over the rows of all networks.
        joined = {name: value for name, value in inspected[0].items() if name != "increases"}
        return {**joined, "_importances": importances, "_importances_std": errors}


class ImportanceSample:
    """A bounded sample of encoded rows, from which importances are computed.

    Parameters
    ----------
    rows : TrainingDataset
        Training rows.
    evals : list of TrainingDataset
        Validation rows. The first of them are sampled if they have at least 32 rows, otherwise the
        training rows.
    n_columns : int
        Number of input columns.
    seed : int
        Seed of the sample and of the permutations.
    group : SingleProcess or ProcessGroup, optional
        Workers, each with a shard of the rows. The sample is drawn from all shards, and is in the
        first worker only.
    n_networks : int, default=1
        Number of networks with a sample of their own, by which the size is divided.
    linear : LinearModule or None, default=None
        Linear model that has not seen the validation rows, if that of the network has.

    Attributes
    ----------
    held_out : bool
        Whether the sample consists of validation rows.
    quick : bool
        Whether the table has at most ``MANY_COLUMNS`` columns.
    rows : TrainingDataset
        Sampled rows.
    linear_state : dict or None
        State of `linear`, if the sample consists of validation rows.
    """

    linear_state = None
    """Samples that were stored before had none."""

    def __init__(self, rows, evals, n_columns, seed, group=None, n_networks=1, linear=None):
        group = SingleProcess() if group is None else group
        n_valid = group.sum([len(evals[0])])[0] if evals else 0
        self.held_out = n_valid * n_networks >= MIN_VALIDATION_ROWS
        if self.held_out:
            rows = evals[0]
            self.linear_state = None if linear is None else linear.state()
        # Pickling computes importances. Those of wide tables take long, and get a smaller sample.
        self.quick = n_columns <= MANY_COLUMNS
        self.seed = seed
        size = ROWS if self.quick else bounded_rows(MAX_PASSES // n_columns)
        size = max(size // n_networks, MIN_ROWS)
        fraction = len(rows) / group.sum([len(rows)])[0]
        # Otherwise all workers would draw the same positions of their shards.
        own = bounded_sample(rows, int(np.ceil(size * fraction)), seed + group.rank)
        samples = group.gather_at_rank0(own)
        self.rows = None if samples is None else join_rows(samples)

    def compute(self, network, encoder, target, backend):
        """Compute importances, and metrics of the predictions of validation rows.

        Parameters
        ----------
        network : BlockNetwork
            Trained network.
        encoder : TableEncoder
            Encoder of the rows.
        target : Target
            Fitted target, with the head of the network and the metrics of predictions.
        backend : LocalExecutor
            Executor of forward passes.

        Returns
        -------
        importances : ndarray of float64, shape (n_features,)
            Importance of each feature, at least 0.
        errors : ndarray of float64, shape (n_features,)
            Their standard errors.
        validation : dict or None
            Metrics for the sample. None for training rows.
        """
        increases, predicted = self.measure(network, encoder, target, backend)
        metrics = None if predicted is None else validation(target, [predicted])
        return *significant_shares(increases), metrics

    def measure(self, network, encoder, target, backend):
        """Measure increases of the loss, and outputs of validation rows, as :meth:`compute` does.

        Returns
        -------
        increases : ndarray of float64, shape (n_features, 2)
            Increase of the loss by each feature, and its standard error.
        predicted : tuple of torch.Tensor, or None
            Outputs, targets and weights of the sample. None for training rows.
        """
        head = target.head_
        if self.linear_state is not None:
            network = with_linear(network, LinearModule.of_state(self.linear_state))
        model = EncodedModel.of_network(network, head, encoder, self.rows.frame, backend)
        evaluated, rows = model, self.rows
        if not (self.quick or model.linear):
            rows = rows.take(slice(bounded_rows(MAX_VALUES // len(model.places))))
            evaluated = EncodedModel.of_network(network, head, encoder, rows.frame, backend)
        increases = self.increases(evaluated, rows, head)
        increases = encoder.by_feature(increases, network, rows.frame)
        if not self.held_out:
            return increases, None
        return increases, (model.outputs[:, 0], self.rows.target, self.rows.weight)

    def increases(self, model, rows, head):
        """Return by how much the loss increases when each input column is shuffled.

        Parameters
        ----------
        model : EncodedModel
            Model with the encoded rows.
        rows : TrainingDataset
            All rows of the sample, or the first of them.
        head : Head
            Head that computes the loss.

        Returns
        -------
        ndarray of float64, shape (n_columns, 2)
            Mean increase of the loss, and the standard error of this mean over the rows. Columns
            that can only be shuffled together share both evenly.
        """
        weight = rows.weight.double().numpy()
        weight = weight / weight.sum()

        def loss(outputs):
            return head.loss(outputs, rows.target)[:, 0].double().numpy()

        repeats = REPEATS if self.quick else WIDE_TABLE_REPEATS
        orders = draw_orders(len(rows), repeats, np.random.RandomState(self.seed))
        groups = model.columns()
        before, after = permuted_scores(model, groups, orders, loss)
        increases = np.zeros((len(model.places), 2))
        for (columns, _), losses in zip(groups, after, strict=True):
            of_rows = np.mean(losses, axis=0) - before
            mean = weight @ of_rows
            error = np.sqrt(weight**2 @ (of_rows - mean) ** 2)
            increases[columns] = mean / len(columns), error / len(columns)
        return increases


class EnsembleSample:
    """Samples of rows for each network of an ensemble, such as those that its fold held out.

    Parameters
    ----------
    samples : list of ImportanceSample
        Sample of each network.
    """

    def __init__(self, samples):
        self.samples = samples
        self.quick = samples[0].quick

    def compute(self, network, encoder, target, backend):
        """Compute the mean importances, and metrics of the predictions of all validation rows.

        Parameters and results are those of :meth:`ImportanceSample.compute`. Each network predicts
        its own rows, which it was not trained on.
        """
        measured = [
            sample.measure(one, encoder, target, backend)
            for sample, one in zip(self.samples, network.networks, strict=True)
        ]
        increases = mean_increases([each for each, _ in measured])
        parts = [predicted for _, predicted in measured if predicted is not None]
        return *significant_shares(increases), validation(target, parts) if parts else None


def validation(target, predicted):
    """Return the metrics of predictions that reports show.

    Parameters
    ----------
    target : Target
        Fitted target.
    predicted : list of tuple of torch.Tensor
        Outputs, targets and weights of rows.

    Returns
    -------
    dict
    """
    outputs, actual, weight = (torch.cat(parts) for parts in zip(*predicted, strict=True))
    return {"rows": len(weight), **target.validation_measures(outputs, actual, weight)}


def bounded_rows(n_rows):
    """Return a number of rows of a wide table, limited to the range of its samples."""
    return min(max(n_rows, MIN_ROWS), WIDE_TABLE_ROWS)


def significant_shares(increases):
    """Return importances that sum to 1, and their standard errors.

    Parameters
    ----------
    increases : ndarray of float64, shape (n_features, 2)
        Increases of the loss, and their standard errors.

    Returns
    -------
    importances, errors : ndarray of float64, shape (n_features,)
        An increase of less than one standard error is noise: its importance is 0. All are 0 if
        every increase is.
    """
    means, errors = increases.T
    importances = np.where(means > N_ERRORS * errors, means, 0.0)
    total = importances.sum()
    if total == 0:
        return importances, np.zeros(len(errors))
    return importances / total, errors / total


def mean_increases(parts):
    """Return the mean of the increases of several networks, with its standard errors.

    Parameters
    ----------
    parts : list of ndarray of float64, shape (n_features, 2)
        Increases of the loss of each network, on rows of its own, and their standard errors.

    Returns
    -------
    ndarray of float64, shape (n_features, 2)
    """
    means, errors = np.moveaxis(np.asarray(parts), 2, 0)
    return np.column_stack([means.mean(0), np.sqrt((errors**2).sum(0)) / len(parts)])
