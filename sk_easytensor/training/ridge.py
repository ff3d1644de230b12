"""Linear model beside a network: ridge regressions on features of blocks that are not trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from sk_easytensor.networks.linear import LinearModule
from sk_easytensor.training.dataset import BatchIterator, sampled_encodings
from sk_easytensor.training.distributed import gather_rows, stack_rows

__all__ = [
    "fit_linear",
    "linear_blocks",
    "prefers_linear",
    "reduced_epochs",
]


MAX_ROWS = 2_500
"""Largest number of rows on which the model is fitted; larger data sets are sampled."""

MIN_ROWS = 10
"""Smallest number of training rows with which the model is fitted."""

BATCH_SIZE = 256
"""Number of rows whose features are computed at a time."""

PENALTIES = np.logspace(-1, 6, 15)
"""Candidates of the penalty of squared coefficients."""

TEMPERATURES = np.logspace(-1, 2, 25)
"""Candidates of the factor by which scores of classes are multiplied."""

SPREAD = 1e-6
"""Smallest standard deviation by which a feature is divided."""

LEAST_SPREAD = 0.1
"""Part of the median deviation of a block's features that is added to each, as squares are."""

EQUAL_ROWS = 400
"""Number of rows at which the prior weight of a network is half of that of equal weights. Over 12
sets of 20 to 300 series, network weights of 0, 0.1, 0.2, 0.3 and 0.5 had accuracies of 0.934,
0.932, 0.931, 0.931 and 0.926; only the set with 270 training series was best with 0.2 to 0.5."""

TABLE_ROWS = 2_500
"""Largest number of rows with which a linear model reads blocks that do not prefer it."""

TABLE_SHARE = 0.7
"""Prior weight of network and trees beside a linear model of such blocks alone. Over 24 tables of
300 rows, fixed weights of 0.9, 0.8 and 0.7 had 0.5%, 0.8% and 0.9% less loss than no such model."""

FEW_VALIDATION_ROWS = 200
"""Number of validation rows below which a blend with blocks that prefer the linear model is kept
near its prior weight."""

FEW_ROWS = 250
"""Largest number of rows with which a network has no weight beside a linear model of all columns,
unless its number of epochs was chosen."""

MAX_SPARSE_ROWS = 50_000
"""Largest number of rows on which a model of sparse features is fitted; larger data sets are
sampled."""

MAX_COEFFICIENTS = 4_000_000
"""Largest number of coefficients of a block of sparse features; larger blocks are not read."""

MAX_SCORES = 1_000_000
"""Largest number of scores, rows times outputs, on which a model of sparse features is fitted, and
of which losses are computed at a time."""

MAX_FEATURES = 5_000_000
"""Largest number of rows times features of a table's blocks; wider ones are not read."""

SPARSE_PENALTIES = (0.3, 1.0, 3.0)
"""Candidates of the penalty beside sparse features, whose rows have a mean square norm of 1. On
texts of 300 to 17,000 rows, 0.3 or 1 was best."""

SPARSE_ITERATIONS = 30
"""Largest number of iterations of conjugate gradients."""

MIN_EPOCHS = 1
"""Smallest number of epochs of a network beside a linear model."""

LOSSES = ("log_loss", "squared_error")
"""Losses beside which the model is fitted, by the names that trees have for them."""


def fit_linear(network, head, rows, held_out, deciding, settings):
    """Fit ridge regressions to the linear features of a network's blocks.

    Classes are regressed as 1 and -1, one against the rest, and scores are multiplied by a factor
    to become log-odds. Penalty and factor minimize the leave-one-out loss of the training rows,
    which has a closed form. Beside sparse features, which are many more, they minimize the loss of
    the validation rows.

    Parameters
    ----------
    network : BlockNetwork
        Network whose blocks define the features.
    head : Head
        Defines the target.
    rows : TrainingDataset
        Training rows.
    held_out : TrainingDataset or None
        Validation rows that were held out of the training rows. The model that is used in the end
        is fitted on them as well.
    deciding : TrainingDataset or None
        Validation rows, which choose the weight of the model. Without any, only blocks that prefer
        the model are read.
    settings : TrainingSettings
        Seed of the sample, and the group of workers. The first worker fits the model on rows of all
        workers.

    Returns
    -------
    model : LinearModule or None
        Model of the training rows alone, whose outputs for validation rows show how good it is;
        None if there is no such model: if no block has features, the loss is not log loss or
        squared error, or there are too few rows.
    final : LinearModule or None
        Model of training rows and held-out rows, with the same penalty and factor.
    """
    group = settings.group
    names, n_rows = linear_blocks(network, head, rows, deciding, settings)
    if not names:
        return None, None
    blocks = [network.linear_blocks[name] for name in names]
    is_sparse = any(block.has_sparse_linear_inputs for block in blocks)
    is_long = is_sparse and not any(block.prefers_linear for block in blocks)
    max_rows = MAX_ROWS
    if is_long:
        max_rows = min(MAX_SPARSE_ROWS, max(MAX_ROWS, MAX_SCORES // head.out_features))
    train = linear_rows(network, names, rows, max_rows, settings.seed, group)
    n_held_out = 0 if held_out is None else int(group.sum([len(held_out)])[0])
    rest = tuning = None
    if n_held_out:
        # The same part of the rows as of the training rows, so that both count alike.
        n_rest = min(max_rows, max(1, round(n_held_out * min(1, max_rows / n_rows))))
        rest = linear_rows(network, names, held_out, n_rest, settings.seed, group)
        tuning = rest
    elif is_sparse:
        tuning = linear_rows(network, names, deciding, max_rows, settings.seed, group)

    def fit():
        prior = {
            "share": prior_share(network, n_rows, settings.automatic_epochs),
            "few_rows": FEW_VALIDATION_ROWS if _any_prefers(network) else 0,
        }
        if not (train.weight > 0).any():
            return None, None
        kind = SparseRegression if is_sparse else Regression
        regression = kind.of(train, head)
        chosen = regression.choose(head, tuning) if is_sparse else regression.choose(head)
        model = regression.module(names, *chosen, **prior)
        if rest is None:
            return model, model
        return model, kind.of(train.joined(rest), head).module(names, *chosen, **prior)

    return group.broadcast_from_rank0(fit)


def linear_blocks(network, head, rows, deciding, settings):
    """Return what :func:`fit_linear` reads.

    Returns
    -------
    names : list of str
        Names of blocks, none if there is no linear model.
    n_rows : int
        Number of rows of all workers.
    """
    blocks = network.linear_blocks
    if not (settings.linear and is_supported(head) and blocks):
        return [], 0
    n_rows = int(settings.group.sum([len(rows)])[0])
    if n_rows < MIN_ROWS:
        return [], n_rows
    of_tables = {
        name: len(block.linear_weights)
        for name, block in blocks.items()
        if not (block.prefers_linear or block.has_sparse_linear_inputs)
    }
    few = deciding is not None and n_rows <= TABLE_ROWS
    few &= n_rows * sum(of_tables.values()) <= MAX_FEATURES

    def is_read(name, block):
        if name in of_tables:
            return few
        if block.prefers_linear:
            return True
        n_coefficients = len(block.linear_weights) * head.out_features
        return deciding is not None and n_coefficients <= MAX_COEFFICIENTS

    return [name for name, block in blocks.items() if is_read(name, block)], n_rows


def prior_share(network, n_rows, automatic_epochs):
    """Return the weight of the other models that few validation rows hardly change.

    `TABLE_SHARE` without blocks that prefer the linear model or have sparse features for it, and
    one half if there are others beside them. Otherwise it grows with the number of rows, because a
    network of few series is much the worse model. It is 0 for the fewest rows, so that predictions
    do not evaluate the network.
    """
    if any(block.has_sparse_linear_inputs for block in network.blocks):
        return 0.5
    if not _any_prefers(network):
        return TABLE_SHARE
    if not _all_prefer(network):
        return 0.5
    if automatic_epochs and n_rows <= FEW_ROWS:
        return 0.0
    return 0.5 * n_rows / (n_rows + EQUAL_ROWS)


def reduced_epochs(network, n_rows, max_epochs):
    """Return the number of epochs beside a linear model, fewer where the network weighs little."""
    factor = (2 * prior_share(network, n_rows, automatic_epochs=True)) ** 2
    return min(max_epochs, max(MIN_EPOCHS, round(max_epochs * factor)))


def prefers_linear(network, head):
    """Return whether linear models can be fitted, and all blocks prefer them."""
    return is_supported(head) and _all_prefer(network)


def _any_prefers(network):
    return any(block.prefers_linear for block in network.blocks)


def _all_prefer(network):
    return all(block.prefers_linear for block in network.blocks)


def is_supported(head):
    """Return whether ridge regressions can be fitted to the target of a head."""
    return head.heads is None and not head.has_offset and head.tree_loss in LOSSES


@dataclass
class LinearRows:
    """Features, targets and weights of rows.

    Attributes
    ----------
    features : dict of {str: ndarray or scipy.sparse.csr_array of float32}
        Features of each block, of shape (n_rows, n_features).
    target : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Encoded targets of the head.
    weight : ndarray of float64, shape (n_rows,)
        Row weights.
    feature_weights : dict of {str: ndarray of float32, shape (n_features,)}
        Weights of the features of each block.
    """

    features: dict
    target: np.ndarray
    weight: np.ndarray
    feature_weights: dict

    def known(self):
        """Return the rows of positive weight."""
        rows = np.flatnonzero(self.weight > 0)
        features = {name: part[rows] for name, part in self.features.items()}
        return LinearRows(features, self.target[rows], self.weight[rows], self.feature_weights)

    def joined(self, other):
        """Return these rows and others after them, with a mean weight of 1 of either part."""
        if not (other.weight > 0).any():
            return self
        # Weights of training rows were divided by their mean, those of validation rows were not.
        parts = [
            [*rows.features.values(), rows.target, rows.weight / rows.weight.mean()]
            for rows in (self, other)
        ]
        *features, target, weight = stack_rows(parts)
        features = dict(zip(self.features, features, strict=True))
        return LinearRows(features, target, weight, self.feature_weights)


@torch.no_grad()
def linear_rows(network, names, rows, max_rows, seed, group):
    """Return the linear features, targets and weights of a data set, or of a sample of it.

    Returns
    -------
    LinearRows or None
        Rows of all workers; None in all workers but the first.
    """
    blocks = {name: network.linear_blocks[name] for name in names}

    def features_of(name, frame):
        if blocks[name].has_sparse_linear_inputs:
            return blocks[name].sparse_linear_inputs(**frame[name])
        return blocks[name].linear_inputs(**frame[name]).cpu().numpy()

    parts = [
        [
            *[features_of(name, batch.frame) for name in names],
            batch.target.cpu().numpy(),
            batch.weight.double().cpu().numpy(),
        ]
        for part in sampled_encodings(rows, names, max_rows, seed, group)
        for batch in BatchIterator(part, BATCH_SIZE)
    ]
    arrays = gather_rows(group, parts)
    if arrays is None:
        return None
    *features, target, weight = arrays
    weights = {name: block.linear_weights for name, block in blocks.items()}
    return LinearRows(dict(zip(names, features, strict=True)), target, weight, weights)


class Regression:
    """Ridge regressions of several targets on the same features, for any penalty.

    Parameters
    ----------
    rows : LinearRows
        Rows of positive weight.
    target : ndarray of float64, shape (n_rows, n_targets)
        Targets.

    Notes
    -----
    With the eigenvectors of the matrix of products of rows, a solution and its leave-one-out
    residuals take a product of matrices for each penalty (Rifkin and Lippert, "Notes on Regularized
    Least Squares", 2007). Where features are fewer than rows, those of the matrix of products of
    features give the eigenvectors with positive eigenvalues; all others have the eigenvalue 0.
    """

    def __init__(self, rows, target):
        self.root = np.sqrt(rows.weight / rows.weight.mean())[:, None]
        share = rows.weight / rows.weight.sum()
        self.centers, self.scales, parts = {}, {}, []
        for name, features in rows.features.items():
            center, scale = center_and_scale(features, share, rows.feature_weights[name])
            self.centers[name], self.scales[name] = center, scale
            parts.append((features - center) * scale)
        self.mean = share @ target
        self.target = target
        self.features = self.root * np.concatenate(parts, axis=1)
        # Threads that wait for each other on a busy machine take a hundred times as long.
        with threadpool_limits(1, user_api="blas"):
            self.values, self.vectors = row_eigenvectors(self.features)
        self.centered = self.root * (target - self.mean)
        self.projected = self.vectors.T @ self.centered

    @classmethod
    def of(cls, rows, head):
        """Return the regressions of rows on the target of a head."""
        rows = rows.known()
        rows.features = {name: part.astype(np.float64) for name, part in rows.features.items()}
        regression = cls(rows, regression_target(rows.target, head))
        regression.encoded, regression.weight = rows.target, rows.weight
        return regression

    def dual(self, penalty):
        """Return the coefficients of the rows times the penalty, of shape (n_rows, n_targets)."""
        shrunk = self.projected * (self.values / (self.values + penalty))[:, None]
        return self.centered - self.vectors @ shrunk

    def left_out(self, penalty):
        """Return the prediction for each row of the regression on all other rows."""
        leverage = 1 - self.vectors**2 @ (self.values / (self.values + penalty))
        # The mean of the targets is a parameter as well, whose leverage is the share of the row.
        leverage -= self.root[:, 0] ** 2 / len(self.root)
        residual = self.dual(penalty) / np.maximum(leverage, 1e-9)[:, None]
        return self.target - residual / self.root

    def choose(self, head):
        """Return the penalty and the factor with the smallest leave-one-out loss.

        One more row, an average one whose scores have the wrong sign, keeps the factor finite where
        all rows are on the right side.
        """
        losses = MeanLosses(head, self.encoded, self.weight)
        candidates = []
        for penalty in PENALTIES:
            scores = self.left_out(penalty)
            found = losses(scores)
            if losses.is_class:
                found += losses(-scores) / len(scores)
            candidates += [(*pair, penalty) for pair in zip(found, losses.factors, strict=True)]
        return best_candidate(candidates)

    def module(self, names, penalty, factor, **prior):
        """Return the model for one penalty and factor, with a prior of its weight."""
        coefficients = self.features.T @ self.dual(penalty) / penalty
        return make_module(self, names, coefficients, self.mean, factor, prior)


class SparseRegression:
    """Ridge regressions on features of which most are 0, by conjugate gradients.

    Parameters
    ----------
    rows : LinearRows
        Rows of positive weight.
    target : ndarray of float64, shape (n_rows, n_targets)
        Targets.
    """

    def __init__(self, rows, target):
        self.target = target
        self.weight = rows.weight / rows.weight.mean()
        share = rows.weight / rows.weight.sum()
        self.centers, self.scales = {}, {}
        for name, features in rows.features.items():
            weights = rows.feature_weights[name]
            if sparse.issparse(features):
                norm = np.sqrt(share @ np.asarray(features.power(2).sum(axis=1)).ravel())
                center, scale = np.zeros(len(weights)), weights / max(norm, SPREAD)
            else:
                center, scale = center_and_scale(features, share, weights)
            self.centers[name], self.scales[name] = center, scale
        self.matrix = self.scaled(rows)
        self.solutions = {}

    @classmethod
    def of(cls, rows, head):
        """Return the regressions of rows on the target of a head."""
        rows = rows.known()
        return cls(rows, regression_target(rows.target, head))

    def scaled(self, rows):
        """Return the scaled features of all blocks as one scipy.sparse.csr_matrix of float64."""
        parts = []
        for name, features in rows.features.items():
            if not sparse.issparse(features):
                features = sparse.csr_array(features - self.centers[name])
            parts.append(features * self.scales[name])
        return sparse.csr_matrix(sparse.hstack(parts, format="csr").astype(np.float64))

    def solve(self, penalty):
        """Return coefficients of shape (n_features, n_targets), and intercepts."""
        if penalty in self.solutions:
            return self.solutions[penalty]
        ridge = Ridge(penalty, solver="sparse_cg", max_iter=SPARSE_ITERATIONS, tol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ridge.fit(self.matrix, self.target, sample_weight=self.weight)
        coefficients = ridge.coef_.reshape(self.target.shape[1], -1).T
        self.solutions[penalty] = coefficients, np.atleast_1d(ridge.intercept_)
        return self.solutions[penalty]

    def choose(self, head, rows):
        """Return the penalty and the factor with the smallest loss of other rows."""
        rows = rows.known()
        matrix = self.scaled(rows)
        losses = MeanLosses(head, rows.target, rows.weight)
        candidates = []
        for penalty in SPARSE_PENALTIES:
            coefficients, intercept = self.solve(penalty)
            found = losses(matrix @ coefficients + intercept)
            candidates += [(*pair, penalty) for pair in zip(found, losses.factors, strict=True)]
        return best_candidate(candidates)

    def module(self, names, penalty, factor, **prior):
        """Return the model for one penalty and factor, with a prior of its weight."""
        return make_module(self, names, *self.solve(penalty), factor, prior)


def make_module(regression, names, coefficients, intercept, factor, prior):
    """Return the linear model of features that are not scaled.

    Parameters
    ----------
    regression : Regression or SparseRegression
        Has the centre and scale of each feature.
    names : list of str
        Names of the blocks, in the order of their features.
    coefficients : ndarray of float64, shape (n_features, n_targets)
        Coefficients of scaled features.
    intercept : ndarray of float64, shape (n_targets,)
        Intercepts.
    factor : float
        Factor of the scores.
    prior : dict
        Further parameters of :class:`~sk_easytensor.networks.linear.LinearModule`.

    Returns
    -------
    LinearModule
    """
    intercept, parts, begin = intercept * factor, [], 0
    for name in names:
        scale = regression.scales[name]
        part = coefficients[begin : begin + len(scale)] * scale[:, None] * factor
        intercept = intercept - regression.centers[name] @ part
        parts.append(part)
        begin += len(scale)
    return LinearModule(names, parts, intercept, **prior)


def center_and_scale(features, share, weights):
    """Return the mean of each feature, and its weight divided by its standard deviation.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features)
        Features.
    share : ndarray of float64, shape (n_rows,)
        Row weights, the sum of which is 1.
    weights : ndarray of float32, shape (n_features,)
        Weight of each feature.

    Returns
    -------
    center, scale : ndarray of float64, shape (n_features,)
    """
    center = share @ features
    spread = np.sqrt(np.maximum(share @ (features - center) ** 2, 0))
    # A feature that is constant but for rounding has no coefficient.
    known = spread > SPREAD
    # Other rows may vary where these hardly do, and would get huge scores.
    least = LEAST_SPREAD * np.median(spread[known]) if known.any() else 1.0
    return center, np.where(known, weights / np.hypot(spread, least), 0)


class MeanLosses:
    """Mean losses of scores, multiplied by each of several factors.

    Parameters
    ----------
    head : Head
        Defines the loss. There is only the factor 1 but for classes.
    target : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Encoded targets.
    weight : ndarray of float64, shape (n_rows,)
        Row weights.
    """

    def __init__(self, head, target, weight):
        self.head = head
        self.is_class = head.estimator_type == "classifier"
        self.factors = TEMPERATURES if self.is_class else np.ones(1)
        self.target = torch.from_numpy(target)
        self.weight = torch.from_numpy(weight / weight.sum())

    def __call__(self, scores):
        """Return the mean loss with each factor.

        Parameters
        ----------
        scores : ndarray of float64, shape (n_rows, n_outputs)
            Scores.

        Returns
        -------
        ndarray of float64, shape (n_factors,)
        """
        scores = torch.from_numpy(scores).float()
        factors = torch.from_numpy(self.factors).float()
        step = max(1, MAX_SCORES // (scores.shape[1] * len(factors)))
        total = torch.zeros(len(factors), dtype=torch.float64)
        for begin in range(0, len(scores), step):
            part = slice(begin, begin + step)
            scaled = (factors[:, None, None] * scores[part]).flatten(0, 1)
            target = self.target[part]
            repeated = target.repeat(len(factors), *[1] * (target.ndim - 1))
            losses = self.head.loss(self.head.normalize(scaled[:, None, :]), repeated)[:, 0]
            total += losses.double().view(len(factors), -1) @ self.weight[part]
        return total.numpy()


def best_candidate(candidates):
    """Return the penalty and the factor of the smallest finite loss.

    Parameters
    ----------
    candidates : list of (float, float, float)
        Loss, factor and penalty of each candidate.
    """
    candidates = [candidate for candidate in candidates if np.isfinite(candidate[0])]
    _, factor, penalty = min(candidates, default=(0.0, 1.0, PENALTIES[-1]))
    return float(penalty), float(factor)


def row_eigenvectors(features):
    """Return eigenvalues and eigenvectors of the matrix of products of rows.

    Parameters
    ----------
    features : ndarray of float64, shape (n_rows, n_features)
        Features.

    Returns
    -------
    values : ndarray of shape (n,)
        Eigenvalues of at least 0. Those that are left out are 0.
    vectors : ndarray of shape (n_rows, n)
        Orthonormal eigenvectors.
    """
    n_rows, n_features = features.shape
    if n_rows <= n_features:
        values, vectors = np.linalg.eigh(features @ features.T)
        return np.maximum(values, 0), vectors
    values, directions = np.linalg.eigh(features.T @ features)
    # Smaller ones are rounding errors.
    positive = values > values.max(initial=0) * n_rows * np.finfo(np.float64).eps
    values, directions = values[positive], directions[:, positive]
    return values, features @ directions / np.sqrt(values)


def regression_target(target, head):
    """Return targets as numbers: 1 and -1 for classes and labels.

    Parameters
    ----------
    target : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Encoded targets of the head.
    head : Head
        Head of the target.

    Returns
    -------
    ndarray of float64, shape (n_rows, out_features)
    """
    if head.kind == "multiclass":
        return np.where(target[:, None] == np.arange(head.out_features), 1.0, -1.0)
    numbers = target.astype(np.float64).reshape(len(target), -1)
    return 2 * numbers - 1 if head.estimator_type == "classifier" else numbers
