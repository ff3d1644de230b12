"""Parameters of boosted trees, and the preparation of their columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from sk_easytensor._utils.runtime import without_autologging
from sk_easytensor._utils.validation import ParametersMixin, check_number
from sk_easytensor.trees.forest import BITS, TreeTables

__all__ = [
    "BoostedTrees",
    "CodeColumn",
    "TreeColumns",
    "TreeDataset",
    "prepare_columns",
]


MAX_SET_CODES = 26
"""Largest number of codes of a column that is always split by sets of codes."""

MAX_CODES = 254
"""Largest number of codes that scikit-learn can split by sets."""

MISSING, UNSEEN = 0, 1
"""Code of missing values, and code that replaces codes of `MAX_CODES` and more."""

FOLDS, SMOOTHING = 5, 10.0
"""Number of folds of the target encoding, and number of rows that the overall mean counts as."""


@dataclass
class TreeDataset:
    """Rows on which trees are fitted or validated.

    Attributes
    ----------
    columns : ndarray of int32, shape (n_rows, n_columns)
        Codes, 0 where missing.
    target : ndarray, shape (n_rows,) or (n_rows, n_targets)
        Encoded targets of the head.
    weight : ndarray of float32, shape (n_rows,), or None
        Sample weights; None if all are equal.
    """

    columns: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None

    def for_target(self, index):
        """Return the rows with one column of the target."""
        target = self.target if self.target.ndim == 1 else self.target[:, index]
        return TreeDataset(self.columns, target, self.weight)

    def for_task(self, index):
        """Return the rows in which one target of several is present, with this target."""
        target = self.target[:, index]
        known = ~np.isnan(target)
        return TreeDataset(self.columns, target, self.weight)._where(known, target)

    def with_weight(self):
        """Return the rows whose weight is not 0."""
        if self.weight is None or self.weight.all():
            return self
        return self._where(self.weight > 0, self.target)

    def for_classes(self, classes):
        """Return the rows of sorted `classes`, with the index among these as target."""
        index = np.minimum(np.searchsorted(classes, self.target), len(classes) - 1)
        return self._where(classes[index] == self.target, index)

    def _where(self, rows, target):
        weight = None if self.weight is None else self.weight[rows]
        return TreeDataset(self.columns[rows], target[rows], weight)


@dataclass
class CodeColumn:
    """Conversion of the codes of a column to the values that trees read.

    Attributes
    ----------
    known : ndarray of int64 or None
        Sorted codes of the training rows, if the column is split by sets of codes, else None.
    values : ndarray of float64, shape (n_codes,)
        Value of each code: a code, an ordered number (NaN for missing) or the target encoding.
    """

    known: np.ndarray | None
    values: np.ndarray


@dataclass
class TreeColumns:
    """Columns on which trees are fitted.

    Attributes
    ----------
    matrices : list of ndarray of float64
        Values of training and validation rows. Columns that are split by sets are first, because
        scikit-learn would reorder them so.
    sources : list of tuple of (int, CodeColumn)
        For each column, its index among the columns of the rows and its conversion.
    is_category : ndarray of bool
        Whether each column is split by sets of codes.
    """

    matrices: list
    sources: list
    is_category: np.ndarray


def prepare_columns(parts, codes, *, many_outputs, seed):
    """Convert the codes of rows to the values on which trees are fitted.

    Parameters
    ----------
    parts : list of TreeDataset
        Training rows, and validation rows if there are any.
    codes : list of tuple of (int, bool)
        Number of codes of each column, and whether they are ordered.
    many_outputs : bool
        Whether the target has more than two classes, so that its mean is not a number and target
        encoding is not possible.
    seed : int
        Seed of the folds of the target encoding.

    Returns
    -------
    TreeColumns
    """
    rows = parts[0]
    sets, numeric = [], []
    for position, (n_codes, ordered) in enumerate(codes):
        column_codes = rows.columns[:, position]
        if ordered:
            values = np.arange(n_codes, dtype=np.float64)
            values[MISSING] = np.nan
            # scikit-learn cannot bin a column without numbers.
            if column_codes.any():
                numeric.append((position, CodeColumn(None, values), None))
        elif n_codes <= MAX_SET_CODES or many_outputs:
            values = np.arange(n_codes, dtype=np.float64)
            values[MAX_CODES:] = UNSEEN
            known = np.unique(values[column_codes]).astype(np.int64)
            sets.append((position, CodeColumn(known, values), None))
        else:
            encoded, values = cross_fitted_target_encoding(
                column_codes, n_codes, rows.target, rows.weight, seed
            )
            numeric.append((position, CodeColumn(None, values), encoded))
    entries = [*sets, *numeric]
    matrices = [np.empty((len(part.target), len(entries))) for part in parts]
    for index, (position, column, encoded) in enumerate(entries):
        for part, matrix in zip(parts, matrices, strict=True):
            matrix[:, index] = column.values[part.columns[:, position]]
        if encoded is not None:
            matrices[0][:, index] = encoded
    is_category = np.arange(len(entries)) < len(sets)
    return TreeColumns(
        matrices, [(position, column) for position, column, _ in entries], is_category
    )


def cross_fitted_target_encoding(codes, n_codes, target, weight, seed):
    """Return the smoothed mean target of each category, cross-fitted for the training rows.

    Parameters
    ----------
    codes : ndarray of int32, shape (n_rows,)
        Codes of the categories of the training rows.
    n_codes : int
        Number of codes.
    target : ndarray, shape (n_rows,)
        Numbers, or 0 and 1.
    weight : ndarray, shape (n_rows,), or None
        Sample weights; None if all are equal.
    seed : int
        Seed of the folds.

    Returns
    -------
    encoded : ndarray of float64, shape (n_rows,)
        Mean target of the category of each training row over the rows of other folds.
    values : ndarray of float64, shape (n_codes,)
        Mean target of each category over all training rows.
    """
    target = target.astype(np.float64)
    weight = np.ones(len(target)) if weight is None else weight.astype(np.float64)
    fold = np.random.RandomState(seed).permutation(len(codes)) % FOLDS
    cell, shape = codes.astype(np.int64) * FOLDS + fold, (n_codes, FOLDS)
    sums = np.bincount(cell, weight * target, minlength=n_codes * FOLDS).reshape(shape)
    weights = np.bincount(cell, weight, minlength=n_codes * FOLDS).reshape(shape)
    prior = sums.sum() / weights.sum()

    def smoothed(total, rows):
        return (total + SMOOTHING * prior) / (rows + SMOOTHING)

    all_sums, all_weights = sums.sum(1), weights.sum(1)
    other_sums = all_sums[codes] - sums[codes, fold]
    other_weights = all_weights[codes] - weights[codes, fold]
    return smoothed(other_sums, other_weights), smoothed(all_sums, all_weights)


MAX_LEAVES = max(BITS.values())
"""Largest number of leaves of a tree, which are the bits of an integer."""

MANY_ROWS = 5000
"""Number of training rows from which trees have more and larger leaves."""

AUTO_SIZES = {"max_leaf_nodes": (15, 31), "min_samples_leaf": (3, 20)}
"""Values of ``"auto"`` for few rows and for many rows."""

MAX_OUTPUTS = 50
"""Largest number of outputs, each of which has its own trees, for which trees are fitted."""

MAX_TREES = 5_000
"""Largest number of trees of all outputs together."""

MAX_ITER_WITHOUT_VALIDATION = 100
"""Largest number of iterations without validation rows, on which early stopping depends."""


class BoostedTrees(ParametersMixin, BaseEstimator):
    """Gradient-boosted trees whose outputs are averaged with those of the network.

    The trees read numeric, categorical and date columns. Their outputs are on the scale of the
    network's outputs (log-odds, log-probabilities, standardized targets). Predictions are the
    weighted mean of both, with weights that are chosen on validation rows. For classes, the mean is
    divided by a temperature near one that is chosen on the same rows.

    Parameters
    ----------
    learning_rate : float, default=0.1
        Factor of the values of the leaves of each tree.
    max_iter : int, default=1000
        Largest number of trees, for each class if there are more than two. There are at most 5,000
        trees in all, and 100 iterations without validation rows. Half of the trees, or a quarter,
        are retained if their look-up tables would exceed 128 MB, which happens with many classes
        and many numeric columns.
    max_leaf_nodes : int or "auto", default="auto"
        Largest number of leaves of a tree, from 2 to 31. ``"auto"``: 15, or 31 from 5,000 training
        rows on.
    min_samples_leaf : int or "auto", default="auto"
        Smallest number of rows of a leaf. ``"auto"``: 3, or 20 from 5,000 training rows on.
    l2_regularization : float, default=3.0
        L2 penalty of the values of leaves.
    max_features : float, default=0.5
        Fraction of the columns among which each split is chosen.
    n_iter_no_change : int, default=20
        Number of iterations without a better validation loss after which fitting stops. Trees up
        to the best iteration are retained.

    Notes
    -----
    The trees are fitted by scikit-learn's :class:`~sklearn.ensemble.HistGradientBoostingClassifier`
    and :class:`~sklearn.ensemble.HistGradientBoostingRegressor`, whose parameters have the same
    names. Columns with more than 24 categories are read as a smoothed target encoding, cross-fitted
    for the training rows, as in Micci-Barreca, "A preprocessing scheme for high-cardinality
    categorical attributes" (2001). With three classes or more, which a single number does not
    describe, they are split by sets of the 252 most frequent categories. Numbers are read as parts
    of the bins of :class:`~sk_easytensor.NumericBlock`, about 1,024 for a column; dates are read
    likewise and as parts of their cycles.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorRegressor
    >>> model = EasyTensorRegressor(trees=BoostedTrees(learning_rate=0.05))
    >>> model.get_params()["trees__learning_rate"]
    0.05
    """

    def __init__(
        self,
        *,
        learning_rate=0.1,
        max_iter=1000,
        max_leaf_nodes="auto",
        min_samples_leaf="auto",
        l2_regularization=3.0,
        max_features=0.5,
        n_iter_no_change=20,
    ):
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_leaf_nodes = max_leaf_nodes
        self.min_samples_leaf = min_samples_leaf
        self.l2_regularization = l2_regularization
        self.max_features = max_features
        self.n_iter_no_change = n_iter_no_change

    def check_parameters(self):
        """Raise ``ValueError`` that names the first invalid parameter and what is accepted."""
        name = "BoostedTrees"
        check_number(name, "learning_rate", self.learning_rate, low=0, exclusive=True)
        bounds = {
            "max_leaf_nodes": {"low": 2, "high": MAX_LEAVES},
            "min_samples_leaf": {"low": 1},
            "max_iter": {"low": 1},
            "n_iter_no_change": {"low": 1},
        }
        for parameter, limits in bounds.items():
            value = getattr(self, parameter)
            if not (parameter in AUTO_SIZES and isinstance(value, str) and value == "auto"):
                check_number(name, parameter, value, integer=True, **limits)
        check_number(name, "l2_regularization", self.l2_regularization, low=0)
        check_number(name, "max_features", self.max_features, low=1e-9, high=1)

    def grow(self, head, rows, valid, codes, seed, signs=None):
        """Fit trees to a target.

        Parameters
        ----------
        head : Head
            Head of the target.
        rows : TreeDataset
            Training rows.
        valid : TreeDataset or None
            Validation rows for early stopping.
        codes : list of tuple of (int, bool)
            Number of codes of each column, including 0 for missing, and whether they are ordered.
        seed : int
            Seed of the columns of splits and of the folds of the target encoding.
        signs : list of int, optional
            Monotonicity constraint of each column: 1, -1, or 0 for none. Constrained columns must
            be ordered.

        Returns
        -------
        list of TreeTables or None
            Trees of each column of the target; None if there are no trees with splits, or trees do
            not support the loss.
        """
        if head.heads is not None:
            return self._grow_tasks(head, rows, valid, codes, seed)
        if head.tree_loss is None or head.out_features > MAX_OUTPUTS:
            return None
        parts = [rows, *([] if valid is None else [valid])]
        n_targets = 1 if rows.target.ndim == 1 else rows.target.shape[1]
        columns = head.tree_columns(n_targets)
        n_outputs = head.out_features // len(columns)
        fitted = [
            self._grow_one(
                head,
                loss,
                [part.for_target(index) for part in parts],
                n_outputs,
                codes,
                seed,
                signs,
            )
            for index, loss in columns
        ]
        return fitted if any(tables.n_trees for tables in fitted) else None

    def _grow_tasks(self, head, rows, valid, codes, seed):
        """Fit trees to each task, on the rows whose target is present."""
        tables = []
        for index, task_head in enumerate(head.heads):
            parts = [None if part is None else part.for_task(index) for part in (rows, valid)]
            fitted = self.grow(task_head, *parts, codes, seed) if len(parts[0].target) else None
            tables += fitted or [TreeTables.constant(np.zeros(task_head.out_features))]
        return tables if any(part.n_trees for part in tables) else None

    def _grow_one(self, head, loss, parts, n_outputs, codes, seed, signs):
        parts = [part.with_weight() for part in parts]
        rows = parts[0]
        if (rows.target == rows.target[0]).all():
            return TreeTables.constant(head.constant(rows.target[0], len(rows.target)))
        classes = np.arange(n_outputs)
        if head.estimator_type == "classifier":
            classes, target = np.unique(rows.target, return_inverse=True)
            parts = [TreeDataset(rows.columns, target, rows.weight)] + [
                part.for_classes(classes) for part in parts[1:]
            ]
        # All validation rows may be of other classes, or have weight 0.
        parts = [part for part in parts if len(part.target)]
        for part in parts:
            # Small targets may be 0 in single precision, and all validation counts may be 0.
            if head.tree_loss == "gamma" or (head.tree_loss == "poisson" and not part.target.any()):
                part.target = np.maximum(part.target, np.finfo(np.float32).tiny)
        columns = prepare_columns(parts, codes, many_outputs=n_outputs > 1, seed=seed)
        if not columns.sources:
            return TreeTables.constant(np.zeros(n_outputs))
        size = self._size(len(parts[0].target))
        booster = self._booster(head, loss, len(parts) > 1, size, columns.is_category, seed)
        if signs is not None and any(signs):
            booster.set_params(monotonic_cst=[signs[position] for position, _ in columns.sources])
        validation = {}
        if len(parts) > 1:
            validation = {
                "X_val": columns.matrices[1],
                "y_val": parts[1].target,
                "sample_weight_val": parts[1].weight,
            }
        with without_autologging():
            booster.fit(
                columns.matrices[0], parts[0].target, sample_weight=parts[0].weight, **validation
            )
        n_iterations = len(booster._predictors)
        if validation:
            # The first score is that of the baseline without trees.
            n_iterations = int(np.argmax(booster.validation_score_))
        return TreeTables.of(booster, n_iterations, columns, classes, n_outputs)

    def _size(self, n_rows):
        """Return the parameters of the size of trees for a number of training rows."""
        params = {}
        for name, values in AUTO_SIZES.items():
            value = getattr(self, name)
            params[name] = values[n_rows >= MANY_ROWS] if value == "auto" else value
        return params

    def _booster(self, head, loss, validated, size, is_category, seed):
        max_iterations = max(MAX_TREES // head.out_features, 1)
        parameters = {
            "learning_rate": self.learning_rate,
            "max_iter": min(
                self.max_iter, max_iterations, *([] if validated else [MAX_ITER_WITHOUT_VALIDATION])
            ),
            **size,
            "l2_regularization": self.l2_regularization,
            "max_features": self.max_features,
            "early_stopping": validated,
            "n_iter_no_change": self.n_iter_no_change,
            "tol": 0,
            "categorical_features": is_category,
            "random_state": seed,
        }
        if head.estimator_type == "classifier":
            return HistGradientBoostingClassifier(**parameters)
        return HistGradientBoostingRegressor(**loss, **parameters)
