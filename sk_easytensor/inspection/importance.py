"""Permutation importances of the columns of tables and of pairs, and their plot."""

from __future__ import annotations

from functools import partial
from inspect import signature
from numbers import Integral

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.utils import Bunch, _safe_indexing, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.tables import as_table
from sk_easytensor.executor import LocalExecutor
from sk_easytensor.inspection.encoded_model import EncodedModel, GivenOutputs
from sk_easytensor.networks.two_tower_network import as_embeddings
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "PermutationImportanceDisplay",
    "draw_orders",
    "pair_model",
    "permutation_importance",
    "permuted_scores",
]


def pair_model(towers, table, score, executor):
    """Return a model of encoded pairs of users and items.

    Parameters
    ----------
    towers : dict of {str: Tower}
        User tower and item tower, by the names of their sides.
    table : pyarrow.Table
        Pairs, with the columns of both sides.
    score : callable
        Function of embeddings of users and of items, tensors of shape (n_pairs, embedding_dim),
        that returns a tensor of shape (n_pairs,).
    executor : LocalExecutor
        Executor of forward passes.

    Returns
    -------
    EncodedModel
        Blocks are named ``side__block``. A column that both towers read is shuffled in both.
    """
    encodings, modules, places = {}, {}, {}
    for side, tower in towers.items():
        frame, network = tower.encode(table, executor), tower.network_
        encodings |= {_joint(side, name): frame[name] for name in network.names}
        pairs = zip(network.names, network.blocks, strict=True)
        modules |= {_joint(side, name): module for name, module in pairs}
        for column, blocks in tower.all_column_positions(frame).items():
            places.setdefault(column, {}).update(
                {_joint(side, name): positions for name, positions in blocks.items()}
            )

    def join(parts):
        embeddings = []
        for side, tower in towers.items():
            own = {name: parts[_joint(side, name)] for name in tower.network_.names}
            embeddings.append(as_embeddings(tower.network_.join(own), tower.normalized))
        return score(*embeddings)[:, None, None]

    frame = TensorFrame(encodings, len(table))
    # In the order of the table's columns. Columns that no tower reads have no positions.
    places = {column: places.get(column, {}) for column in table.column_names}
    return EncodedModel(frame, modules, join, places, executor)


def _joint(side, name):
    return f"{side}__{name}"


OWNER = "permutation_importance"
"""Name used in error messages."""


@with_library_settings
def permutation_importance(
    estimator,
    X,
    y,
    *,
    scoring=None,
    n_repeats=5,
    by="column",
    random_state=None,
    sample_weight=None,
    max_samples=1.0,
    n_jobs=None,
):
    """Compute by how much a score decreases when the values of a column are shuffled.

    The results are those of :func:`sklearn.inspection.permutation_importance`, at less cost: the
    table is encoded once and columns are shuffled in the encoding. Blocks that do not read a column
    do not run again, nor do rows that a shuffle leaves unchanged.

    Parameters
    ----------
    estimator : EasyTensorClassifier, EasyTensorRegressor or EasyTensorTwoTower
        Fitted estimator. A two-tower model needs a target, and the columns of both towers in `X`.
    X : table-like of shape (n_samples, n_features), path of Parquet files or Ray Dataset
        Rows to evaluate on, preferably not those of `fit`.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), or str
        Target, or name of the column of `X` that holds it. If the backend of the estimator is Ray,
        a path or Dataset requires a name; a list of names is a target of several outputs.
    scoring : str, callable, list, tuple, set, dict or None, default=None
        Scorer as in scikit-learn: its name, or a function of estimator, rows and target. Several
        scorers give a result each; None uses the estimator's ``score``. A function may call
        ``predict``, ``predict_proba``, ``decision_function`` and ``score`` of the estimator on
        the rows it receives, which are not a table.
    n_repeats : int, default=5
        Number of times that each column is shuffled.
    by : {"column", "block"}, default="column"
        Unit that is shuffled: the values of one input column, or the whole encoding of one block.
        Columns that blocks read together, such as the parts of a vector that is spread over
        columns, can only be shuffled together, and share their importance evenly. This is also true
        of the columns of a sparse matrix that a :class:`~sk_easytensor.SparseBlock` reads, which
        share it by the variance of their contributions, as in ``feature_importances_``: shuffled
        one by one, they would take as many passes as the matrix has columns.
    random_state : int, RandomState or None, default=None
        Seed of the shuffles, which are the same for all columns, and of the sampled rows. With all
        rows, shuffles and results are those of scikit-learn for the same value.
    sample_weight : array-like of shape (n_samples,) or str, optional
        Sample weights for the scorer, or name of the column of `X` that holds them.
    max_samples : int or float, default=1.0
        Number of rows to evaluate on, or the fraction of them. They are drawn once, without
        replacement.
    n_jobs : int or None, default=None
        Number of threads: None for one (unless in a joblib context), -1 for all cores.

    Returns
    -------
    sklearn.utils.Bunch, or dict of {str: Bunch} with several scorers
        ``importances_mean`` and ``importances_std``, ndarrays of float64 of shape (n_features,),
        ``importances``, of shape (n_features, n_repeats), and ``names``, the columns or blocks.

    Raises
    ------
    TypeError
        If the estimator is not one of this library that predicts.
    NotFittedError
        If the estimator is not fitted.
    ValueError
        If a parameter is not valid, or rows and target differ in length.

    Notes
    -----
    Breiman, "Random Forests" (2001). Shuffling a column of the encoding equals shuffling it in
    the table, because a row's encoding depends on that row alone. Lists that are parallel to
    those of other columns keep their lengths.

    With more than 100 columns, only the change that a column makes to the output is computed, so
    that the time is linear in the number of columns. Outputs then equal those for the shuffled
    table up to the rounding of float32. This needs one of the library's trunks ``MLP`` and
    ``TabM``, or one with ``first_layer``, and columns of numbers, categories or dates.

    If the estimator's backend is Ray, a path or Dataset is evaluated by tasks, in chunks of about
    16,000 consecutive rows that do not depend on the number of workers. Values are shuffled and
    scores computed within a chunk, and the result is the mean over the chunks, weighted by their
    rows. Rows of weight zero are left out. `n_jobs` is the number of threads of a task.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorRegressor
    >>> X = {"size": [1.0, 2.0, 3.0, 4.0] * 25, "noise": [0.0, 1.0] * 50}
    >>> y = [10.0, 20.0, 30.0, 40.0] * 25
    >>> model = EasyTensorRegressor(random_state=0).fit(X, y)
    >>> result = permutation_importance(model, X, y, random_state=0)
    >>> result.names[result.importances_mean.argmax()], result.importances.shape
    ('size', (2, 5))
    """
    if not hasattr(estimator, "_encoded_model"):
        raise TypeError(
            f"{OWNER}: estimator must be an EasyTensorClassifier, EasyTensorRegressor or "
            f"EasyTensorTwoTower, got {type(estimator).__name__}; for others, pipelines included, "
            "use sklearn.inspection.permutation_importance"
        )
    check_is_fitted(estimator)
    check_number(OWNER, "n_repeats", n_repeats, low=1, integer=True)
    check_choice(OWNER, "by", by, ("column", "block"))
    random_state = check_random_state(random_state)
    check_scoring(estimator, scoring=scoring)
    evaluate = partial(
        chunk_importances,
        estimator._predict_copy(),
        scoring,
        n_repeats=n_repeats,
        by=by,
        max_samples=max_samples,
        n_jobs=n_jobs,
    )
    backend = resolve_backend(estimator.backend, estimator.n_jobs)
    check = estimator._check_encodable
    return _mean(backend.evaluate(X, y, sample_weight, evaluate, random_state, check))


def chunk_importances(
    estimator,
    scoring,
    X,
    y,
    sample_weight,
    random_state,
    n_rows_of_all,
    *,
    n_repeats,
    by,
    max_samples,
    n_jobs,
):
    """Return the number of rows of a chunk that were evaluated, and their importances.

    Parameters are those of :func:`permutation_importance`, for a chunk of its rows.
    ``n_rows_of_all`` is the number of rows of all chunks; None for a single chunk.
    """
    n_rows = len(as_table(X))
    check_consistent_length(range(n_rows), y, sample_weight)
    rows = sample_rows(n_rows, max_samples, random_state, n_rows_of_all)
    y, weight = (
        None if values is None else _safe_indexing(values, rows) for values in (y, sample_weight)
    )
    weights = {} if weight is None else {"sample_weight": weight}
    scorer = check_scoring(estimator, scoring=scoring)
    model = estimator._encoded_model(X, LocalExecutor(n_jobs), rows)

    def score(outputs):
        return scorer(estimator, GivenOutputs(outputs[:, 0]), y, **weights)

    orders = scikit_learn_orders(len(rows), n_repeats, random_state)
    if by == "column":
        n_shuffled, groups = len(model.places), model.columns()
    else:
        groups = model.blocks()
        n_shuffled = len(groups)
    before, after = permuted_scores(model, groups, orders, score)

    def as_result(before, after):
        importances = score_decreases(n_shuffled, len(orders), groups, before, after)
        if by == "block":
            return as_bunch(importances, list(model.frame))
        return as_bunch(model.by_feature(importances), model.features)

    if not isinstance(before, dict):
        return len(rows), as_result(before, after)
    return len(rows), {
        name: as_result(before[name], [[score[name] for score in scores] for scores in after])
        for name in before
    }


def _mean(parts):
    """Return the mean of the importances of several chunks, weighted by their rows."""
    sizes, results = zip(*parts, strict=True)
    if len(results) == 1:
        return results[0]
    if "importances" not in results[0]:
        return {
            name: _mean([(size, result[name]) for size, result in parts]) for name in results[0]
        }
    importances = np.average([result.importances for result in results], axis=0, weights=sizes)
    return as_bunch(importances, results[0].names)


def permuted_scores(model, groups, orders, score):
    """Score the outputs of a model for unchanged rows, and after each group was shuffled.

    Parameters
    ----------
    model : EncodedModel
        Model with the encoded rows.
    groups : list of (list of int, dict)
        Groups of columns, in the form of :meth:`EncodedModel.columns`.
    orders : ndarray of int64, shape (n_repeats, n_rows)
        Permutations of the rows.
    score : callable
        Function of outputs of shape (n_rows, 1, out_features) that returns a score.

    Returns
    -------
    before : object
        Score of the unchanged rows.
    after : list of list of object
        Scores by group and repeat.
    """
    before = score(model.outputs)
    after = [[score(outputs) for outputs in model.permuted(places, orders)] for _, places in groups]
    return before, after


def draw_orders(n_rows, n_repeats, random_state):
    """Draw permutations of the rows, an array of int64 of shape (n_repeats, n_rows)."""
    return np.stack([random_state.permutation(n_rows) for _ in range(n_repeats)])


def scikit_learn_orders(n_rows, n_repeats, random_state):
    """Draw the permutations that ``sklearn.inspection.permutation_importance`` draws."""
    random_state = np.random.RandomState(random_state.randint(np.iinfo(np.int32).max + 1))
    shuffle, order = np.arange(n_rows), np.arange(n_rows)
    orders = []
    for _ in range(n_repeats):
        # scikit-learn shuffles the order of the previous shuffle, and the shuffled column with it.
        random_state.shuffle(shuffle)
        order = order[shuffle]
        orders.append(order)
    return np.stack(orders)


def sample_rows(n_rows, max_samples, random_state, n_rows_of_all=None):
    """Return the sorted indices of the rows to evaluate on, in proportion for a chunk.

    Raises
    ------
    ValueError
        If ``max_samples`` is out of range or leaves no row.
    """
    all_rows = n_rows if n_rows_of_all is None else n_rows_of_all
    if isinstance(max_samples, Integral):
        check_number(OWNER, "max_samples", max_samples, low=1, high=all_rows, integer=True)
        size = -(-max_samples * n_rows // all_rows)
    else:
        check_number(OWNER, "max_samples", max_samples, low=0, high=1)
        size = int(max_samples * n_rows)
        if size == 0 and n_rows_of_all is not None and max_samples > 0:
            size = 1
        if size == 0:
            raise ValueError(
                f"{OWNER}: max_samples must leave a row, got {max_samples!r} of {n_rows} rows"
            )
    if size == n_rows:
        return np.arange(n_rows)
    return np.sort(random_state.choice(n_rows, size, replace=False))


def score_decreases(n_shuffled, n_repeats, groups, before, after):
    """Return the decrease of the score by column and repeat, shared evenly within groups."""
    importances = np.zeros((n_shuffled, n_repeats))
    for (indices, _), scores in zip(groups, after, strict=True):
        importances[indices] = (before - np.asarray(scores, dtype=np.float64)) / len(indices)
    return importances


def as_bunch(importances, names):
    """Return importances of shape (n_features, n_repeats) in the form of scikit-learn."""
    return Bunch(
        importances_mean=importances.mean(axis=1),
        importances_std=importances.std(axis=1),
        importances=importances,
        names=np.asarray(names, dtype=object),
    )


class PermutationImportanceDisplay:
    """Box plot of permutation importances, with the most important columns or blocks on top.

    Each box shows the repeats of one column or block. Use :meth:`from_estimator` or
    :meth:`from_importances` to create a display. Plotting requires matplotlib.

    Parameters
    ----------
    importances : array-like of shape (n_features, n_repeats)
        Decrease of the score in each repeat.
    names : sequence of str
        Names of the columns or blocks.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.
    boxes_ : dict of {str: list}
        Artists that :meth:`matplotlib.axes.Axes.boxplot` returned.

    Raises
    ------
    ValueError
        If the number of names is not that of the importances.

    Examples
    --------
    >>> display = PermutationImportanceDisplay([[0.1, 0.3], [0.5, 0.6]], ["size", "city"])
    >>> display.plot().ax_.get_yticklabels()[-1].get_text()
    'city'
    """

    def __init__(self, importances, names):
        self.importances = np.asarray(importances, dtype=np.float64)
        self.names = [str(name) for name in names]
        if self.importances.ndim != 2 or len(self.importances) != len(self.names):
            raise ValueError(
                f"{type(self).__name__}: importances must have shape (n_features, n_repeats) for "
                f"{len(self.names)} names, got shape {self.importances.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        scoring=None,
        n_repeats=5,
        by="column",
        random_state=None,
        sample_weight=None,
        max_samples=1.0,
        n_jobs=None,
        max_features=20,
        ax=None,
        **boxplot_kwargs,
    ):
        """Compute the importances and plot them.

        Parameters
        ----------
        estimator, X, y, n_repeats, by, random_state, sample_weight, max_samples, n_jobs
            Parameters of :func:`permutation_importance`.
        scoring : str, callable or None, default=None
            Single scorer; None for the ``score`` of the estimator.
        max_features, ax, **boxplot_kwargs
            Parameters of :meth:`plot`.

        Returns
        -------
        PermutationImportanceDisplay
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        result = permutation_importance(
            estimator,
            X,
            y,
            scoring=scoring,
            n_repeats=n_repeats,
            by=by,
            random_state=random_state,
            sample_weight=sample_weight,
            max_samples=max_samples,
            n_jobs=n_jobs,
        )
        return cls.from_importances(result, max_features=max_features, ax=ax, **boxplot_kwargs)

    @classmethod
    def from_importances(cls, result, *, names=None, max_features=20, ax=None, **boxplot_kwargs):
        """Plot importances that were computed before.

        Parameters
        ----------
        result : Bunch
            Result of :func:`permutation_importance` or
            :func:`sklearn.inspection.permutation_importance`, for one scorer.
        names : sequence of str, optional
            Names of the columns. They are required if the result has no ``names``, as that of
            scikit-learn.
        max_features, ax, **boxplot_kwargs
            Parameters of :meth:`plot`.

        Returns
        -------
        PermutationImportanceDisplay

        Raises
        ------
        ValueError
            If the result is that of several scorers, or has no names and `names` is None.
        """
        if "importances" not in result:
            raise ValueError(
                f"{cls.__name__}: result must be of one scorer, got one for each of {list(result)}"
            )
        names = result.get("names") if names is None else names
        if names is None:
            raise ValueError(f"{cls.__name__}: result has no names; pass the parameter names")
        display = cls(result["importances"], names)
        return display.plot(max_features=max_features, ax=ax, **boxplot_kwargs)

    def plot(self, *, max_features=20, ax=None, **boxplot_kwargs):
        """Draw the boxes.

        Parameters
        ----------
        max_features : int or None, default=20
            Number of columns or blocks to draw, those with the largest mean importances; None for
            all.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.
        **boxplot_kwargs
            Keyword arguments of :meth:`matplotlib.axes.Axes.boxplot`.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `max_features` is neither an integer of at least 1 nor None.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if max_features is not None:
            check_number(type(self).__name__, "max_features", max_features, low=1, integer=True)
        # Stable, so that columns of equal importance keep their order from the top down.
        order = np.argsort(-self.importances.mean(axis=1), kind="stable")[:max_features][::-1]
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 1 + 0.3 * len(order)), layout="constrained")
        # matplotlib before 3.10 has the parameter vert.
        has_orientation = "orientation" in signature(ax.boxplot).parameters
        horizontal = {"orientation": "horizontal"} if has_orientation else {"vert": False}
        self.boxes_ = ax.boxplot(self.importances[order].T, **{**horizontal, **boxplot_kwargs})
        ax.set_yticks(np.arange(1, len(order) + 1), [self.names[index] for index in order])
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel="Decrease of the score")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_matplotlib(caller):
    """Raise ``ImportError`` naming the caller if matplotlib is not installed."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib; install it with: pip install "matplotlib>=3.9"'
        ) from error
