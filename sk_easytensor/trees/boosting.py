"""How boosted trees are fitted: their parameters, and the columns that they read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from sk_easytensor._utils.runtime import without_autologging
from sk_easytensor._utils.validation import ParametersMixin, check_number
from sk_easytensor.networks.heads import MultiTaskHead
from sk_easytensor.trees.forest import BITS, TreeTables

__all__ = [
    "BoostedTrees",
    "CodeColumn",
    "TreeColumns",
    "TreeDataset",
    "read_columns",
]


FEW_CODES = 26
"""Columns of at most so many codes are split by sets of codes."""

MOST_CODES = 254
"""Codes that scikit-learn can split by sets of, at most."""

MISSING, UNSEEN = 0, 1
"""The code for missing, and the one that stands for those beyond."""

FOLDS, SMOOTHING = 5, 10.0
"""Parts of the rows that do not tell of each other; rows that the mean of all counts as."""


@dataclass
class TreeDataset:
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
        return TreeDataset(self.columns, target, self.weight)

    def of_task(self, index):
        """Return the rows of which one of several targets is known, with that target."""
        target = self.target[:, index]
        known = ~np.isnan(target)
        return TreeDataset(self.columns, target, self.weight)._where(known, target)

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
        return TreeDataset(self.columns[rows], target[rows], weight)


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
    parts : list of TreeDataset
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
            inside, values = cross_fitted_target_encoding(
                own, n_codes, rows.target, rows.weight, seed
            )
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


def cross_fitted_target_encoding(codes, n_codes, target, weight, seed):
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


MOST_LEAVES = max(BITS.values())
"""Leaves of a tree at most: so many bits of an integer tell which of them are left."""

MANY_ROWS = 5000
"""Training rows from which on trees have more leaves, of more rows."""

AUTOMATIC = {"max_leaf_nodes": (15, 31), "min_samples_leaf": (3, 20)}
"""Parameters that ``"auto"`` sets: for few rows and for many."""

MOST_OUTPUTS = 50
"""Classes or targets at most: each takes trees of its own."""

MOST_TREES = 5_000
"""Trees at most, of all classes or targets together."""

MAX_ITER_WITHOUT_VALIDATION = 100
"""Iterations at most where no validation rows tell when to stop."""


class BoostedTrees(ParametersMixin, BaseEstimator):
    """Gradient-boosted trees whose outputs are averaged with the network's.

    They see the columns of the blocks that show them: numbers, categories and dates. What they give
    is on the scale of the network's outputs (log-odds, log-probabilities, standardised targets),
    and the two are joined by weights that add up to one and that validation rows decide. These
    decide as well what the outputs for classes are divided by, a temperature near one.

    Parameters
    ----------
    learning_rate : float, default=0.1
        What the values of a tree's leaves are multiplied by.
    max_iter : int, default=1000
        Trees at most, for each class where there are more than two, but no more than 5,000 in all;
        100 without validation rows. Half of them, or a quarter, are kept where the tables they are
        read from would take more than 128 MB: with many classes and many columns of numbers.
    max_leaf_nodes : int or "auto", default="auto"
        Leaves of a tree at most, from 2 to 31. ``"auto"``: 15, or 31 from 5,000 training rows on.
    min_samples_leaf : int or "auto", default="auto"
        Rows of a leaf at least. ``"auto"``: 3, or 20 from 5,000 training rows on.
    l2_regularization : float, default=3.0
        Penalty on the values of leaves.
    max_features : float, default=0.5
        Fraction of the columns that each split may choose from.
    n_iter_no_change : int, default=20
        Trees without a better validation loss after which no more are grown. Those up to the best
        are kept.

    Notes
    -----
    Grown by scikit-learn's :class:`~sklearn.ensemble.HistGradientBoostingClassifier` and
    :class:`~sklearn.ensemble.HistGradientBoostingRegressor`, whose names the parameters have.
    Categories of columns with more than 24 go in as what the other rows of the category say of the
    target, smoothed, as in Micci-Barreca, "A preprocessing scheme for high-cardinality categorical
    attributes" (2001); with three classes or more, where no single number says it, as sets of the
    252 most frequent ones. Numbers go in as parts of the bins of
    :class:`~sk_easytensor.NumericBlock`, about 1,024 of a column, dates as well and as parts of
    cycles.

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
        """Raise ``ValueError`` naming the first hyper-parameter that makes no sense."""
        name = "BoostedTrees"
        check_number(name, "learning_rate", self.learning_rate, low=0, exclusive=True)
        bounds = {
            "max_leaf_nodes": {"low": 2, "high": MOST_LEAVES},
            "min_samples_leaf": {"low": 1},
            "max_iter": {"low": 1},
            "n_iter_no_change": {"low": 1},
        }
        for parameter, of in bounds.items():
            value = getattr(self, parameter)
            if not (parameter in AUTOMATIC and isinstance(value, str) and value == "auto"):
                check_number(name, parameter, value, integer=True, **of)
        check_number(name, "l2_regularization", self.l2_regularization, low=0)
        check_number(name, "max_features", self.max_features, low=1e-9, high=1)

    def grow(self, head, rows, valid, codes, seed, signs=None):
        """Grow trees for a target.

        Parameters
        ----------
        head : Head
            Says what the target is.
        rows : TreeDataset
            Training rows.
        valid : TreeDataset or None
            Validation rows, which decide how many trees there are.
        codes : list of tuple of (int, bool)
            For each column how many codes there are, 0 for missing, and whether they are in order.
        seed : int
            Of the columns that splits may choose from and the folds of categories.
        signs : list of int, optional
            For each column its monotonic constraint: 1, -1, or 0 for none. Those with one are in
            order.

        Returns
        -------
        list of TreeTables or None
            One for each column of the target; None if no tree can tell anything.
        """
        if isinstance(head, MultiTaskHead):
            return self._grow_tasks(head, rows, valid, codes, seed)
        if head.tree_loss is None or head.out_features > MOST_OUTPUTS:
            return None
        parts = [rows, *([] if valid is None else [valid])]
        n_targets = 1 if rows.target.ndim == 1 else rows.target.shape[1]
        n_outputs = head.out_features // n_targets
        grown = [
            self._grow_one(
                head, [part.of_target(index) for part in parts], n_outputs, codes, seed, signs
            )
            for index in range(n_targets)
        ]
        return grown if any(tables.n_trees for tables in grown) else None

    def _grow_tasks(self, head, rows, valid, codes, seed):
        """Grow trees for each of several tasks, on the rows whose target is known."""
        found = []
        for index, own in enumerate(head.heads):
            parts = [None if part is None else part.of_task(index) for part in (rows, valid)]
            grown = self.grow(own, *parts, codes, seed) if len(parts[0].target) else None
            found.append(grown or [TreeTables.constant(np.zeros(own.out_features))])
        tables = [each for grown in found for each in grown]
        return tables if any(each.n_trees for each in tables) else None

    def _grow_one(self, head, parts, n_outputs, codes, seed, signs):
        parts = [part.of_weight() for part in parts]
        rows = parts[0]
        if (rows.target == rows.target[0]).all():
            return TreeTables.constant(head.constant(rows.target[0], len(rows.target)))
        classes = np.arange(n_outputs)
        if head.estimator_type == "classifier":
            classes, target = np.unique(rows.target, return_inverse=True)
            parts = [TreeDataset(rows.columns, target, rows.weight)] + [
                part.of_classes(classes) for part in parts[1:]
            ]
        # Validation rows may all be of other classes, or of no weight.
        parts = [part for part in parts if len(part.target)]
        for part in parts:
            # Small targets may have become 0 in single precision, and validation rows count none.
            if head.tree_loss == "gamma" or (head.tree_loss == "poisson" and not part.target.any()):
                part.target = np.maximum(part.target, np.finfo(np.float32).tiny)
        columns = read_columns(parts, codes, many_outputs=n_outputs > 1, seed=seed)
        if not columns.read:
            return TreeTables.constant(np.zeros(n_outputs))
        size = self._size(len(parts[0].target))
        booster = self._booster(head, len(parts) > 1, size, columns.is_category, seed)
        if signs is not None and any(signs):
            booster.set_params(monotonic_cst=[signs[position] for position, _ in columns.read])
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
        kept = len(booster._predictors)
        if validation:
            # The first score is of no tree at all.
            kept = int(np.argmax(booster.validation_score_))
        return TreeTables.of(booster, kept, columns, classes, n_outputs)

    def _size(self, n_rows):
        """Return the parameters of the size of trees for so many training rows."""
        found = {}
        for name, values in AUTOMATIC.items():
            value = getattr(self, name)
            found[name] = values[n_rows >= MANY_ROWS] if value == "auto" else value
        return found

    def _booster(self, head, validated, size, is_category, seed):
        most = max(MOST_TREES // head.out_features, 1)
        parameters = {
            "learning_rate": self.learning_rate,
            "max_iter": min(
                self.max_iter, most, *([] if validated else [MAX_ITER_WITHOUT_VALIDATION])
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
        quantile = head.quantile if head.tree_loss == "quantile" else None
        return HistGradientBoostingRegressor(loss=head.tree_loss, quantile=quantile, **parameters)
