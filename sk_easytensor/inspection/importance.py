"""Permutation importances of encoded columns, of single models and of pairs."""

from __future__ import annotations

from functools import partial
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
from sk_easytensor.networks.two_tower import as_embeddings
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "draw_orders",
    "pair_model",
    "permutation_importance",
    "permuted_scores",
]


def pair_model(towers, table, score, executor):
    """Encode pairs for both towers.

    Parameters
    ----------
    towers : dict of {str: Tower}
        The user tower and the item tower, by the names of their sides.
    table : pyarrow.Table
        Pairs, with the columns of both.
    score : callable
        Takes users and items, tensors of shape (n_pairs, embedding_dim), and returns tensors of
        shape (n_pairs,).
    executor : LocalExecutor
        Where forward passes run.

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
        for column, found in tower.places(frame).items():
            places.setdefault(column, {}).update(
                {_joint(side, name): positions for name, positions in found.items()}
            )

    def join(parts):
        embeddings = []
        for side, tower in towers.items():
            own = {name: parts[_joint(side, name)] for name in tower.network_.names}
            embeddings.append(as_embeddings(tower.network_.join(own), tower.normalized))
        return score(*embeddings)[:, None, None]

    frame = TensorFrame(encodings, len(table))
    # In the order of the table's columns; those that no tower reads are in no place.
    places = {column: places.get(column, {}) for column in table.column_names}
    return EncodedModel(frame, modules, join, places, executor)


def _joint(side, name):
    return f"{side}__{name}"


OWNER = "permutation_importance"


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
    """How much a score falls when the values of a column are shuffled among the rows.

    What :func:`sklearn.inspection.permutation_importance` computes, for less: the table is
    encoded once and columns are shuffled in the encoding, blocks that do not read a column are
    not asked again, and neither are rows that a shuffle leaves as they were.

    Parameters
    ----------
    estimator : EasyTensorClassifier, EasyTensorRegressor or EasyTensorTwoTower
        Fitted. Two towers need a target, and the columns of both in `X`.
    X : table-like of shape (n_samples, n_features), path of Parquet files or Ray Dataset
        Rows to evaluate on, best not those of `fit`.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), or str
        Target, or the column of `X` that holds it. For an estimator whose backend is Ray, a path
        or Dataset needs the latter; a list of columns names several targets.
    scoring : str, callable, list, tuple, set, dict or None, default=None
        As in scikit-learn: the name of a scorer, or a function of estimator, rows and target;
        several for one result each; None for the estimator's ``score``. A function may call
        ``predict``, ``predict_proba``, ``decision_function`` and ``score`` of the estimator on
        the rows, which are no table here.
    n_repeats : int, default=5
        Shuffles a column.
    by : {"column", "block"}, default="column"
        What is shuffled: the values of one input column, or all that one block makes of its
        columns. Columns that blocks read as one, such as the parts of a vector that is spread over
        columns, can only be shuffled together and share evenly what they matter. So can the
        columns of a sparse matrix that a :class:`~sk_easytensor.SparseBlock` reads, which share it
        by the variance of what each adds, as in ``feature_importances_``: shuffled one by one, they
        would take as many passes as the matrix has columns.
    random_state : int, RandomState or None, default=None
        Of the shuffles, which are the same for all columns, and of the rows chosen. With all rows
        the shuffles are scikit-learn's for the same value, and so are the results.
    sample_weight : array-like of shape (n_samples,) or str, optional
        Given to the scorer, or the column of `X` that holds it.
    max_samples : int or float, default=1.0
        Rows to evaluate on, or the fraction of them; they are drawn once.
    n_jobs : int or None, default=None
        Threads: None for one (unless in a joblib context), -1 for all cores.

    Returns
    -------
    sklearn.utils.Bunch, or dict of {str: Bunch} with several scorers
        ``importances_mean`` and ``importances_std``, ndarrays of float64 of shape (n_features,),
        ``importances``, of shape (n_features, n_repeats), and ``names``, the columns or blocks.

    Raises
    ------
    TypeError
        If the estimator is none of this library's that predicts.
    ValueError
        If a parameter makes no sense, or rows and target differ in length.

    Notes
    -----
    Breiman, "Random Forests" (2001). Shuffling a column of the encoding equals shuffling it in
    the table, because a row's encoding depends on that row alone. Lists that are parallel to
    those of other columns stay as long as they are.

    With more than 100 columns, only the change that a column makes to the output is computed, so
    that the time is linear in the number of columns. Outputs then equal those for the shuffled
    table up to the rounding of float32. This needs one of the library's trunks ``MLP`` and
    ``TabM``, or one with ``first_layer``, and columns of numbers, categories or dates.

    If the estimator's backend is Ray, a path or Dataset is evaluated by tasks, in chunks of about
    16,000 consecutive rows that do not depend on the number of workers. Values are shuffled within
    a chunk, scores are of a chunk, and the result is their mean, weighted by the chunks' rows. Rows
    of weight zero are left out. `n_jobs` are the threads of a task.

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
            "there is sklearn.inspection.permutation_importance"
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
    """Return the importances that some rows show, and how many rows have been evaluated."""
    n_rows = len(as_table(X))
    check_consistent_length(range(n_rows), y, sample_weight)
    rows = chosen_rows(n_rows, max_samples, random_state, n_rows_of_all)
    y, weight = (
        None if each is None else _safe_indexing(each, rows) for each in (y, sample_weight)
    )
    weights = {} if weight is None else {"sample_weight": weight}
    scorer = check_scoring(estimator, scoring=scoring)
    model = estimator._encoded_model(X, LocalExecutor(n_jobs), rows)

    def score(outputs):
        return scorer(estimator, GivenOutputs(outputs[:, 0]), y, **weights)

    orders = scikit_learns_orders(len(rows), n_repeats, random_state)
    if by == "column":
        n_shuffled, groups = len(model.places), model.columns()
    else:
        groups = model.blocks()
        n_shuffled = len(groups)
    before, after = permuted_scores(model, groups, orders, score)

    def found(before, after):
        importances = falls(n_shuffled, len(orders), groups, before, after)
        if by == "block":
            return bunch(importances, list(model.frame))
        return bunch(model.by_feature(importances), model.features)

    if not isinstance(before, dict):
        return len(rows), found(before, after)
    return len(rows), {
        name: found(before[name], [[each[name] for each in scores] for scores in after])
        for name in before
    }


def _mean(parts):
    """Return the mean of the importances of several chunks, weighted by their rows."""
    sizes, found = zip(*parts, strict=True)
    if len(found) == 1:
        return found[0]
    if "importances" not in found[0]:
        return {name: _mean([(size, each[name]) for size, each in parts]) for name in found[0]}
    importances = np.average([each.importances for each in found], axis=0, weights=sizes)
    return bunch(importances, found[0].names)


def permuted_scores(model, groups, orders, score):
    """Score the outputs of a model as they are, and after each of several groups was shuffled.

    Parameters
    ----------
    model : EncodedModel
        Gives the outputs.
    groups : list of (list of int, dict)
        As of :meth:`EncodedModel.columns`.
    orders : ndarray of int64, shape (n_repeats, n_rows)
        Of the rows.
    score : callable
        Takes outputs, of shape (n_rows, 1, out_features).

    Returns
    -------
    before : object
        What `score` gave of the outputs as they are.
    after : list of list of object
        For each group and repeat what it gave.
    """
    before = score(model.outputs)
    after = [[score(outputs) for outputs in model.permuted(places, orders)] for _, places in groups]
    return before, after


def draw_orders(n_rows, n_repeats, random_state):
    """Draw permutations of the rows, an array of int64 of shape (n_repeats, n_rows)."""
    return np.stack([random_state.permutation(n_rows) for _ in range(n_repeats)])


def scikit_learns_orders(n_rows, n_repeats, random_state):
    """Draw the permutations that scikit-learn's function draws for each column."""
    random_state = np.random.RandomState(random_state.randint(np.iinfo(np.int32).max + 1))
    shuffle, order = np.arange(n_rows), np.arange(n_rows)
    orders = []
    for _ in range(n_repeats):
        # It shuffles both the order of the last shuffle and the column as that left it.
        random_state.shuffle(shuffle)
        order = order[shuffle]
        orders.append(order)
    return np.stack(orders)


def chosen_rows(n_rows, max_samples, random_state, n_rows_of_all=None):
    """Return the rows to evaluate on, in order; of a chunk, its share of them."""
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


def falls(n_shuffled, n_repeats, groups, before, after):
    """Return how much scores fell, shared evenly within groups."""
    importances = np.zeros((n_shuffled, n_repeats))
    for (indices, _), scores in zip(groups, after, strict=True):
        importances[indices] = (before - np.asarray(scores, dtype=np.float64)) / len(indices)
    return importances


def bunch(importances, names):
    """Return importances of several repeats in scikit-learn's form."""
    return Bunch(
        importances_mean=importances.mean(axis=1),
        importances_std=importances.std(axis=1),
        importances=importances,
        names=np.asarray(names, dtype=object),
    )
