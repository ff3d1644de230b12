"""Cases: one seed is an estimator, what it is fitted on and what it is to predict."""

import datetime as dt
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import torch

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    SparseBlock,
    TabM,
    TextBlock,
    VectorBlock,
)

from . import columns as column_kinds
from . import containers, targets
from .columns import pick

ODD_NAMES = (
    "", " ", "a.b", "a\0b", "\ud800", "x0", "0", "ø", "\uffff", 0, 1, 1.5, None, ("a", "b"),
    np.int64(2),
    "n" * 3000, True, pd.Timestamp("2020"), "__", "y", "X", "%s", "{}", "{0}", "a__b", "'", '"',
    "weight",
    "nan", np.nan, "index", "c0", "C0", "\n", "=1", b"c", np.str_("s"), frozenset(), "length",
    "a/b",
)  # fmt: skip

BLOCKS = (
    NumericBlock, lambda: NumericBlock("periodic"), CategoryBlock,
    lambda: CategoryBlock(hash_buckets=4),
    DatetimeBlock, TextBlock, lambda: TextBlock(ngram_range=(1, 2)), VectorBlock,
    CategorySequenceBlock,
    NumericSequenceBlock, EventSequenceBlock, SparseBlock,
)  # fmt: skip

LOSSES = (
    "squared_error", "absolute_error", "huber", "quantile", "several quantiles", "poisson",
    "gamma", "expectile", "tweedie", torch.nn.L1Loss(reduction="none"),
)  # fmt: skip


@dataclass
class Case:
    """What is done: a fit and predictions.

    Parameters
    ----------
    kind : str
        Of input, by which outcomes are counted.
    model : estimator
        Not fitted.
    fit : dict
        What ``fit`` is given.
    new : dict of {str: object}
        Tables to predict, by a word for each. Those called ``"alike ..."`` hold the rows of
        ``"new"`` in other kinds of tables.
    again : list
        Tables that hold the rows of ``fit["X"]`` in other ways, of which a fit is the same.
    plain : bool
        Whether nothing may be refused.
    named : list
        Names of columns, for errors to name.
    notes : list of str
        What it is made of.
    """

    kind: str
    model: object
    fit: dict
    new: dict
    plain: bool = False
    named: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    again: list = field(default_factory=list)


@dataclass
class Drawn:
    """Columns of one table for training, and of others for prediction."""

    names: list
    kinds: list
    draws: list

    def columns(self, n):
        try:
            return [draw(n) for draw in self.draws]
        except Exception as error:
            # What pandas, polars and Arrow make of such values differs between their versions.
            raise containers.Unbuildable(f"{type(error).__name__}: {error}") from error


def draw(random, kinds, n_columns=None, names=None):
    """Choose kinds of columns."""
    n_columns = n_columns or int(random.integers(1, 5))
    chosen = pick(random, list(kinds), n_columns)
    names = names or [f"c{i}" for i in range(n_columns)]
    return Drawn(names, chosen, [kinds[kind](random) for kind in chosen])


def odd_parts(random, parts):
    """Choose the parts of a case that may be odd: none, one or two of them, seldom all.

    A case of many parts, each of which may be refused, says nothing of what comes after.
    """
    n_odd = [0, 1, 2, len(parts)][random.choice(4, p=[0.4, 0.4, 0.15, 0.05])]
    return {parts[i] for i in random.permutation(len(parts))[:n_odd]}


def one_of(random, ordinary, others, odd):
    """Draw one of the ordinary things or, in an odd part of a case, of all."""
    return pick(random, [*ordinary, *others] if odd else ordinary, 1)[0]


def n_rows(random):
    return int(random.integers(8, 60)) if random.random() < 0.95 else int(random.integers(1, 8))


def model_for(random, kind, **given):
    """Return an estimator whose fit takes little time."""
    params = {
        "max_epochs": 1,
        "trunk": MLP(width=4) if random.random() < 0.8 else TabM(members=2, width=4),
        "trees": BoostedTrees(max_iter=3) if random.random() < 0.15 else None,
        "validation_fraction": [None, 0.15, 0.5][random.integers(3)],
        "random_state": 0,
        **given,
    }
    if kind in (EasyTensorTwoTower, EasyTensorEmbedder):
        params = {**params, "embedding_dim": 4, "trunk": None}
        del params["trees"]
    elif random.random() < 0.3:
        params["n_folds"] = int(random.integers(2, 5))
    return kind(**params)


def classifier_or_regressor(random, n, odd=False, **params):
    """Return an estimator and a target, with a note about it."""
    if random.random() < 0.5:
        note, y = (targets.odd_classes if odd else targets.classes)(random, n)
        if odd and random.random() < 0.3:
            params = {**params, "loss": "focal"}
        return model_for(random, EasyTensorClassifier, **params), y, f"y: {note}"
    note, y = (targets.odd_numbers if odd else targets.numbers)(random, n)
    if odd and random.random() < 0.3:
        params = {**params, "loss": LOSSES[random.integers(len(LOSSES))]}
        if params["loss"] == "quantile":
            params["quantile"] = 0.7
        if params["loss"] == "several quantiles":
            params = {**params, "loss": "quantile", "quantile": [0.1, 0.5, 0.9]}
    return model_for(random, EasyTensorRegressor, **params), y, f"y: {note}"


def container_for(random, drawn):
    """Choose what holds columns: Arrow and polars only for those that end no process."""
    if any(kind in column_kinds.UNKNOWN_TO_ARROW for kind in drawn.kinds):
        return str(random.choice(containers.PYTHON))
    return str(random.choice(list(containers.ALIKE)))


FOREIGN_NAMES = ("z", "further")
"""Names of columns that tables of :func:`foreign` may have."""


def foreign(random, drawn, kinds, n):
    """Hold a table with the same names whose columns are partly of other kinds."""
    draws, chosen = list(drawn.draws), list(drawn.kinds)
    for place in range(len(draws)):
        if random.random() < 0.4:
            chosen[place] = pick(random, list(kinds), 1)[0]
            draws[place] = kinds[chosen[place]](random)
    other = Drawn(list(drawn.names), chosen, draws)
    names, made = list(other.names), other.columns(n)
    fate = random.random()
    if fate < 0.1:
        names, made = names[1:] or [FOREIGN_NAMES[0]], made[1:] or made
    elif fate < 0.3:
        names, made = [*names, FOREIGN_NAMES[1]], [*made, column_kinds.mixed_objects(random)(n)]
        other.kinds.append("mixed_objects")
    return containers.hold(container_for(random, other), names, made)


def simple(random, kind, drawn, n, container, *, odd=False, plain=False, kinds=None, **params):
    """Return a case of a classifier or a regressor on one table."""
    train, new = drawn.columns(n), drawn.columns(7)
    model, y, note = classifier_or_regressor(random, n, odd, **params)
    X = containers.hold(container, drawn.names, train)
    tables = {"new": containers.hold(container, drawn.names, new)}
    again = []
    if plain:
        if container != "arrow_dictionaries":
            # In which numbers and texts are categories.
            other = pick(random, set_apart(containers.ALIKE, "arrow_dictionaries"), 1)[0]
            again.append(containers.hold(other, drawn.names, train))
        for other in sorted(set(pick(random, list(containers.ALIKE), 3))):
            tables[f"alike {other}"] = containers.hold(other, drawn.names, new)
    elif container in containers.PYTHON:
        other = str(random.choice(containers.PYTHON))
        with suppress(containers.Unbuildable):
            tables[f"alike {other}"] = containers.hold(other, drawn.names, new)
    if kinds is not None:
        tables["foreign"] = foreign(random, drawn, kinds, 5)
    columns = ", ".join(
        f"{str(name)[:20]!r}: {held}" for name, held in zip(drawn.names, drawn.kinds, strict=True)
    )
    notes = [f"{n} rows in {container}", columns, note]
    return Case(kind, model, {"X": X, "y": y}, tables, plain, list(drawn.names), notes, again)


def set_apart(names, *others):
    return [name for name in names if name not in others]


# ---------------------------------------------------------------------------------- kinds of input


def plain_tables(random, folder):
    n = int(random.integers(20, 60)) if random.random() < 0.9 else 130
    drawn = draw(random, column_kinds.PLAIN)
    container = str(random.choice(list(containers.ALIKE)))
    return simple(
        random, "plain tables", drawn, n, container, plain=True,
        kinds={**column_kinds.PLAIN, **column_kinds.NASTY},
    )  # fmt: skip


def nasty_columns(random, folder):
    n = n_rows(random)
    kinds = {**column_kinds.NASTY, **column_kinds.LISTS}
    nasty = draw(random, kinds, 1)
    rest = draw(random, {**column_kinds.PLAIN, **column_kinds.LISTS}, int(random.integers(1, 3)))
    if random.random() < 0.2:
        rest = draw(random, kinds, 2)
    names = [f"c{i}" for i in range(len(rest.names) + 1)]
    drawn = Drawn(names, nasty.kinds + rest.kinds, nasty.draws + rest.draws)
    return simple(random, "nasty columns", drawn, n, container_for(random, drawn), kinds=kinds)


def explicit_blocks(random, folder):
    n = n_rows(random)
    kinds = {**column_kinds.PLAIN, **column_kinds.LISTS, **column_kinds.NASTY}
    drawn = draw(random, kinds, int(random.integers(1, 4)))
    columns = drawn.names[: random.integers(1, 3)]
    block = BLOCKS[random.integers(len(BLOCKS))]()
    params = {"blocks": [("b", block, columns)]}
    if random.random() < 0.2:
        params = {"categorical_features": columns}
    if random.random() < 0.1:
        params = {"monotonic_cst": dict.fromkeys(columns, 1)}
    if random.random() < 0.1:
        params = {"offset": columns[0]}
    case = simple(
        random, "explicit blocks", drawn, n, container_for(random, drawn), kinds=kinds, **params
    )
    case.notes.append(str(params))
    return case


def names(random, folder):
    n, drawn = n_rows(random), draw(random, column_kinds.PLAIN, int(random.integers(1, 5)))
    drawn.names = pick(random, ODD_NAMES, len(drawn.names))
    if random.random() < 0.6:
        drawn.names = list(dict.fromkeys(map(str, drawn.names)))
        drawn.draws = drawn.draws[: len(drawn.names)]
        drawn.kinds = drawn.kinds[: len(drawn.names)]
    container = str(random.choice(list(containers.ALIKE)))
    return simple(random, "names", drawn, n, container)


def arrays(random, folder):
    n = n_rows(random)
    numeric = {
        key: column_kinds.PLAIN[key] for key in ("normal", "integers", "few_integers", "booleans")
    }
    odd = {**column_kinds.PLAIN, **column_kinds.LISTS, **column_kinds.NASTY}
    container = pick(random, [*containers.NAMELESS, *containers.FURTHER], 1)[0]
    some = random.random() < 0.4 and container in (
        "list_of_lists",
        "object_array",
        "structured_array",
    )
    drawn = draw(random, odd if some else numeric, int(random.integers(1, 6)))
    return simple(random, "arrays", drawn, n, container)


def wide_sparse(random, folder):
    n, width = n_rows(random), int(random.integers(60, 400))
    import scipy.sparse

    def matrix(rows):
        values = (random.random((rows, width)) < 0.05) * random.normal(size=(rows, width))
        kind = str(random.choice(["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]))
        with warnings.catch_warnings():
            # Matrices of other than diagonals are inefficient as DIA.
            warnings.simplefilter("ignore", scipy.sparse.SparseEfficiencyWarning)
            made = getattr(scipy.sparse, f"{kind}_{random.choice(['matrix', 'array'])}")(values)
        odd = random.random()
        if odd < 0.1 and hasattr(made, "data") and kind in ("csr", "csc", "coo") and made.nnz:
            made.data[0] = [np.nan, np.inf, 1e308, 0.0][random.integers(4)]
        elif odd < 0.2:
            made = made.astype(str(random.choice(["bool", "int8", "float32", "complex128"])))
        elif odd < 0.3:
            made = pd.DataFrame.sparse.from_spmatrix(made.tocsr())
        return made

    model, y, note = classifier_or_regressor(random, n)
    new = {"new": matrix(6), "foreign": matrix(4)}
    if random.random() < 0.2:
        new["foreign"] = np.zeros((4, width - int(random.integers(0, 2))))
    return Case("sparse", model, {"X": matrix(n), "y": y}, new, notes=[note])


def arrow_types(random, folder):
    n = n_rows(random)
    kinds = {"arrow_column": column_kinds.arrow_column, "normal": column_kinds.normal}
    if random.random() < 0.3:
        kinds["invalid_utf8"] = column_kinds.invalid_utf8
    drawn = draw(random, kinds, int(random.integers(1, 4)))
    containers_of_arrow = ["arrow_table", "arrow_chunks", "record_batch", "arrow_sliced",
                           "arrow_dictionaries", "dict_of_columns"]  # fmt: skip
    return simple(random, "arrow", drawn, n, str(random.choice(containers_of_arrow)), kinds=kinds)


def polars_types(random, folder):
    n = n_rows(random)
    kinds = {"polars_column": column_kinds.polars_column, "normal": column_kinds.normal,
             "odd_texts": column_kinds.decent_odd_texts}  # fmt: skip
    drawn = draw(random, kinds, int(random.integers(1, 4)))
    container = str(
        random.choice(["polars_frame", "polars_lazy", "polars_chunks", "dict_of_columns"])
    )
    return simple(random, "polars", drawn, n, container, kinds=kinds)


def odd_targets(random, folder):
    n, drawn = n_rows(random), draw(random, column_kinds.PLAIN, 2)
    container = str(
        random.choice(["pandas_frame", "polars_frame", "dict_of_columns", "list_of_dicts"])
    )
    return simple(random, "targets", drawn, n, container, odd=True)


def row_weights(random, folder):
    n, drawn = n_rows(random), draw(random, column_kinds.PLAIN, 2)
    case = simple(random, "weights", drawn, n, "pandas_frame")
    note, case.fit["sample_weight"] = targets.weights(random, n)
    case.notes.append(f"sample_weight: {note}")
    if random.random() < 0.2 and isinstance(case.model, EasyTensorClassifier):
        weights = [
            "balanced",
            {0: 1.0},
            {"no": 2.0, "yes": 0.0},
            "other",
            {0: -1.0},
            {0: np.nan},
            3,
        ]
        case.model.class_weight = weights[random.integers(len(weights))]
    return case


def eval_sets(random, folder):
    n, drawn = n_rows(random), draw(random, column_kinds.PLAIN, 3)
    case = simple(random, "eval_set", drawn, n, "pandas_frame")
    X, y, m = case.fit["X"], case.fit["y"], int(random.integers(1, 20))
    rows = containers.hold("pandas_frame", drawn.names, drawn.columns(m))
    kinds = {**column_kinds.PLAIN, **column_kinds.NASTY}
    tables = {
        "alike": rows,
        "itself": X,
        "lacking": rows.iloc[:, 1:],
        "empty": rows.iloc[:0],
        "foreign": foreign(random, drawn, kinds, m),
        "a list": rows.to_numpy().tolist(),
        "polars": pl.from_pandas(rows) if "constant" not in drawn.kinds else rows,
        "none": None,
        "a text": "validation",
    }
    ordinary = random.random() < 0.5
    table = str(random.choice(["alike", "itself", "polars"] if ordinary else list(tables)))
    values = containers.as_list(y) if not isinstance(y, list) else y
    known = [values[i % len(values)] for i in range(len(X) if table == "itself" else m)]
    goals = {"alike": known, "itself": y if table == "itself" else known, "unknown": ["?"] * m,
             "short": known[:-1], "missing": [None] * m, "nan": [np.nan] * m, "huge": [1e300] * m,
             "one": known[:1] * len(known)}  # fmt: skip
    goal = "alike" if ordinary else str(random.choice(["alike", "alike", "itself", *goals]))
    pair = (tables[table], goals[goal])
    forms = {"list": [pair], "pair": pair, "two": [(X, y), pair], "lists": [list(pair)],
    "dict": {"v": pair},
             "triple": [(*pair, None)], "bare": tables[table], "empty": [],
             "nested": [[pair]]}  # fmt: skip
    form = "list" if ordinary else str(random.choice(["list", "list", "list", *forms]))
    case.fit["eval_set"] = forms[form]
    if random.random() < 0.2:
        note, weight = targets.weights(random, len(known))
        case.fit["eval_sample_weight"] = [weight] if random.random() < 0.8 else weight
        case.notes.append(f"eval_sample_weight: {note}")
    case.notes.append(f"eval_set: {table}, y {goal}, as {form}")
    return case


def multi_task(random, folder):
    n, drawn = n_rows(random), draw(random, column_kinds.PLAIN, 2)
    container = str(
        random.choice(["pandas_frame", "polars_frame", "arrow_table", "dict_of_columns"])
    )
    kinds = ("binary", "multiclass", "regression", "poisson", "gamma", "absolute_error", "huber")
    tasks = {f"t{i}": str(random.choice(kinds)) for i in range(random.integers(1, 4))}
    columns = {}
    for task, kind in tasks.items():
        if random.random() < 0.25:
            make = targets.odd_classes if kind in ("binary", "multiclass") else targets.odd_numbers
            columns[task] = make(random, n)[1]
            continue
        if kind in ("binary", "multiclass"):
            columns[task] = targets.every(random, ["a", "b"], n)
        else:
            columns[task] = np.exp(random.normal(size=n)).tolist()
        if random.random() < 0.3:
            columns[task] = column_kinds.with_missing(random, columns[task], 0.3)
    y = columns
    try:
        if random.random() < 0.7:
            y = pd.DataFrame(columns)
        elif random.random() < 0.5:
            y = pl.DataFrame(columns, strict=False)
    except Exception:
        y = columns
    X = containers.hold(container, drawn.names, drawn.columns(n))
    model = model_for(random, EasyTensorMultiTask, tasks=tasks)
    if random.random() < 0.1:
        model.tasks = {**tasks, "other": "binary"}
    new = {"new": containers.hold(container, drawn.names, drawn.columns(6))}
    notes = [f"{n} rows in {container}: {drawn.kinds}", f"tasks: {tasks}", f"y: {type(y).__name__}"]
    return Case("multi-task", model, {"X": X, "y": y}, new, False, [*drawn.names, *tasks], notes)


ORDINARY_KEYS = ("texts", "integers", "huge", "dates")


def keys(random, n_keys, odd):
    """Return values that name users or items."""
    forms = {
        "texts": [f"k{i}" for i in range(n_keys)],
        "integers": list(range(n_keys)),
        "huge": [2**62 + i for i in range(n_keys)],
        "floats": [i + 0.5 for i in range(n_keys)],
        "dates": [dt.date(2020, 1, 1) + dt.timedelta(days=i) for i in range(n_keys)],
        "missing": [None if i == 0 else f"k{i}" for i in range(n_keys)],
        "nan": [np.nan if i == 0 else float(i) for i in range(n_keys)],
        "mixed": ["1" if i == 0 else i for i in range(n_keys)],
        "odd texts": [*column_kinds.ODD_TEXTS[:n_keys], *map(str, range(n_keys))][:n_keys],
        "booleans": [i % 2 == 0 for i in range(n_keys)],
        "beyond": [2**63 + i for i in range(n_keys)],
        "lists": [[i] for i in range(n_keys)],
    }
    name = one_of(random, ORDINARY_KEYS, forms, odd)
    return name, forms[name]


def two_towers(random, folder):
    n, n_items = int(random.integers(6, 50)), int(random.integers(2, 9))
    parts = ["users", "items", "column", "rows of items", "item_key", "y", "weight", "eval_set"]
    odd = odd_parts(random, parts)
    user_form, users = keys(random, int(random.integers(2, 9)), "users" in odd)
    item_form, items = keys(random, n_items, "items" in odd)
    of_user = draw(random, {**column_kinds.PLAIN, **column_kinds.LISTS}, 1, ["u0"])
    of_item = draw(random, {**column_kinds.PLAIN, **column_kinds.LISTS}, 1, ["i0"])
    if "column" in odd:
        of_item = draw(random, column_kinds.NASTY, 1, ["i0"])
    names = ["user", "item", "u0"]
    container = container_for(random, of_item)
    if "mixed" in (user_form, item_form):
        container = str(random.choice(containers.PYTHON))

    def pairs(rows):
        columns = [pick(random, users, rows), pick(random, items, rows), *of_user.columns(rows)]
        return containers.hold(container, names, columns)

    catalogue = [items, *of_item.columns(n_items)]
    if "rows of items" in odd and random.random() < 0.7:
        catalogue = [[*items, items[0]], *of_item.columns(n_items + 1)]
    elif "rows of items" in odd:
        catalogue = [items[:1], *of_item.columns(1)]
    fit = {"X": pairs(n), "y": None, "item_key": "item"}
    if random.random() < 0.8:
        fit["items"] = containers.hold(container, ["item", "i0"], catalogue)
    params = {}
    if "items" not in fit or random.random() < 0.2:
        params = {"user_blocks": [("user", CategoryBlock(), "user")],
                  "item_blocks": [("item", CategoryBlock(), "item")]}  # fmt: skip
    if random.random() < 0.5:
        fit["user_key"] = "user"
    if "item_key" in odd:
        fit["item_key"] = ["items", 1, None, "u0", ""][random.integers(5)]
    note = "none"
    if random.random() < 0.5:
        make = [targets.classes, targets.numbers]
        if "y" in odd:
            make = [targets.odd_classes, targets.odd_numbers]
        note, fit["y"] = make[random.integers(2)](random, n)
    if "weight" in odd or random.random() < 0.1:
        weight, fit["sample_weight"] = targets.weights(random, n, "weight" in odd)
        note = f"{note}, sample_weight: {weight}"
    if random.random() < 0.2:
        known = fit["y"]
        fit["eval_set"] = [pairs(5)]
        if known is not None and hasattr(known, "__len__"):
            fit["eval_set"] = [(pairs(5), containers.as_list(known)[:5])]
        if "eval_set" in odd:
            odd_sets = [pairs(5), [pairs(0)], [(pairs(5), None)], [None], [(pairs(5), [1] * 4)]]
            fit["eval_set"] = odd_sets[random.integers(5)]
    similarity = str(random.choice(["dot", "cosine"]))
    model = model_for(random, EasyTensorTwoTower, similarity=similarity, **params)
    notes = [f"{n} pairs in {container}", f"users: {user_form}, items: {item_form}",
             f"columns: {of_user.kinds}, {of_item.kinds}", f"y: {note}"]  # fmt: skip
    return Case("two towers", model, fit, {"new": pairs(5)}, False, [*names, "i0"], notes)


ORDINARY_TIMES = ("seconds", "floats", "times", "dates", "zoned")


def embedders(random, folder):
    n = int(random.integers(12, 60))
    parts = ["users", "time", "columns", "session_gap", "user", "eval_set"]
    odd = odd_parts(random, parts)
    form, users = keys(random, int(random.integers(2, 9)), "users" in odd)
    moments = {
        "seconds": lambda m: random.integers(0, 10**6, m).tolist(),
        "floats": lambda m: (random.random(m) * 1e5).tolist(),
        "negative": lambda m: (random.normal(size=m) * 1e5).tolist(),
        "times": column_kinds.times(random),
        "dates": lambda m: [dt.date(2020, 1, int(day)) for day in random.integers(1, 28, m)],
        "zoned": column_kinds.zoned_times(random),
        "missing": lambda m: with_none(random, random.integers(0, 10**6, m).tolist()),
        "nan": lambda m: [float("nan") if random.random() < 0.2 else 1.0 for _ in range(m)],
        "infinite": lambda m: [float("inf") if random.random() < 0.2 else 1.0 for _ in range(m)],
        "texts": lambda m: pick(random, ["2020-01-01", "2020-01-02"], m),
        "same": lambda m: [5] * m,
        "huge": lambda m: random.integers(-(2**62), 2**62, m).tolist(),
    }
    moment = one_of(random, ORDINARY_TIMES, moments, "time" in odd)
    drawn = draw(random, column_kinds.PLAIN, int(random.integers(1, 3)))
    if "columns" in odd:
        nasty = draw(random, column_kinds.NASTY, 1)
        drawn = Drawn(drawn.names, nasty.kinds + drawn.kinds[1:], nasty.draws + drawn.draws[1:])
        if random.random() < 0.2:
            drawn = draw(random, column_kinds.NASTY, 2)
    container = container_for(random, drawn)
    if form == "mixed":
        container = str(random.choice(containers.PYTHON))
    names = ["user", "time", *drawn.names]

    def log(rows):
        columns = [pick(random, users, rows), moments[moment](rows), *drawn.columns(rows)]
        return containers.hold(container, names, columns)

    params = {"objective": str(random.choice(["contrastive", "session_pair"]))}
    if params["objective"] == "session_pair":
        others = ["6h", 0, -1, "soon"]
        params["session_gap"] = one_of(
            random, [3600, 600.5, dt.timedelta(days=1)], others, "session_gap" in odd
        )
        params["session_loss"] = str(random.choice(["softmax", "log_loss"]))
        params["session_sampling"] = str(random.choice(["uniform", "latest"]))
    fit = {"X": log(n), "user": "user", "time": "time"}
    if random.random() < 0.1 or "eval_set" in odd:
        fit["eval_set"] = [log(12)]
    if "user" in odd:
        fit["user"] = [None, "nobody", ["user", "c0"], 0][random.integers(4)]
    model = model_for(random, EasyTensorEmbedder, **params)
    notes = [f"{n} events in {container}", f"users: {form}, time: {moment}",
    f"columns: {drawn.kinds}",
             str(params)]  # fmt: skip
    return Case("embedder", model, fit, {"new": log(10)}, False, names, notes)


def with_none(random, values):
    return column_kinds.with_missing(random, values, 0.2)


def event_lists(random, folder):
    n = n_rows(random)
    kinds = {key: column_kinds.NASTY[key] for key in ("events", "odd_events")} | column_kinds.LISTS
    drawn = draw(random, kinds, int(random.integers(1, 3)))
    if random.random() < 0.4:
        chosen = {"aggregates": ["auto", False, ["last", "mean", "since"]][random.integers(3)]}
        if random.random() < 0.2:
            chosen["calendar"] = ["day", "week"]
        params = {"blocks": [("b", EventSequenceBlock(**chosen), drawn.names)]}
        return simple(
            random, "event lists", drawn, n, str(random.choice(containers.PYTHON)), **params
        )
    if random.random() < 0.5:
        return simple(
            random, "event lists", drawn, n, str(random.choice(containers.PYTHON)), kinds=kinds
        )
    container = str(random.choice(containers.PYTHON))
    tables = [containers.hold(container, drawn.names, drawn.columns(m)) for m in (n, 6)]
    model = model_for(random, EasyTensorEmbedder)
    notes = [f"{n} rows in {container}: {drawn.kinds}"]
    return Case(
        "event lists", model, {"X": tables[0]}, {"new": tables[1]}, False, drawn.names, notes
    )


def parquet_files(random, folder):
    n = int(random.integers(10, 50))
    odd = odd_parts(random, ["column", "files", "new files", "y", "weight"])
    drawn = draw(random, column_kinds.PLAIN, int(random.integers(1, 4)))
    if "column" in odd:
        nasty = draw(random, {"arrow_column": column_kinds.arrow_column}, 1)
        drawn = Drawn(drawn.names, nasty.kinds + drawn.kinds[1:], nasty.draws + drawn.draws[1:])
    number, label = random.normal(size=n).tolist(), targets.every(random, ["a", "b"], n)
    weight = random.integers(0, 3, n).tolist()
    names = [*drawn.names, "number", "label", "weight"]
    columns = [*drawn.columns(n), number, label, weight]
    form, path = containers.parquet(random, Path(folder) / "train", names, columns, "files" in odd)
    new_names, new_columns = names, [*drawn.columns(6), number[:6], label[:6], weight[:6]]
    new_form, new = containers.parquet(
        random, Path(folder) / "new", new_names, new_columns, "new files" in odd
    )
    y = one_of(random, ["label", "number"], ["nothing", None, number], "y" in odd)
    kind = EasyTensorRegressor if y == "number" else EasyTensorClassifier
    if "y" in odd and random.random() < 0.3:
        kind = EasyTensorRegressor
    fit = {"X": path, "y": y}
    if random.random() < 0.2 or "weight" in odd:
        fit["sample_weight"] = one_of(
            random, ["weight"], ["number", "label", "c0", "nothing"], "weight" in odd
        )
    notes = [f"{n} rows: {drawn.kinds}", f"train: {form}, new: {new_form}", f"y: {str(y)[:20]}"]
    tables = {"new": new, "rows": containers.hold("arrow_table", names, new_columns)}
    case = Case("parquet", model_for(random, kind), fit, tables, False, names, notes)
    case.named += [str(folder), "nothing"]
    return case


def junk(random, folder):
    n = n_rows(random)
    things = {
        "none": None,
        "a number": 3,
        "a text": "table",
        "bytes": b"table",
        "empty list": [],
        "empty dict": {},
        "empty dicts": [{}] * n,
        "no rows": pd.DataFrame({"a": []}),
        "no columns": pd.DataFrame(index=range(n)),
        "(n, 0)": np.empty((n, 0)),
        "(0, n)": np.empty((0, 3)),
        "one axis": np.arange(n),
        "three axes": np.zeros((n, 2, 2)),
        "a series": pd.Series(range(n)),
        "polars series": pl.Series(range(n)),
        "a scalar in a dict": {"a": 1},
        "lengths differ": {"a": list(range(n)), "b": [1]},
        "rows differ": [[1] * (i % 3 + 1) for i in range(n)],
        "dicts among lists": [{"a": 1} if i % 2 == 0 else [1] for i in range(n)],
        "none among dicts": [{"a": 1} if i % 2 == 0 else None for i in range(n)],
        "nested dict": {"a": {"b": list(range(n))}},
        "a set": {1, 2, 3},
        "a generator": (i for i in range(n)),
        "range": range(n),
        "object": object(),
        "a class": dict,
        "a scalar array": np.array(1),
        "text array": np.array(["a"] * n),
        "records": np.rec.array([(1, "a")] * n, dtype=[("p", int), ("q", "U2")]),
        "complex": np.ones((n, 2)) * 1j,
        "times array": np.full((n, 2), np.datetime64("2020-01-01")),
        "columns of columns": pd.DataFrame(np.zeros((n, 2)),
        columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
        "duplicate names": pd.DataFrame(np.zeros((n, 2)), columns=["a", "a"]),
        "tuples": [(1, "a")] * n,
        "named rows": [{"a": i, f"b{i}": 1} for i in range(n)],
        "pandas row": pd.DataFrame({"a": [1], "b": ["x"]}).iloc[0],
        "group by": pd.DataFrame({"a": [1, 2]}).groupby("a"),
        "masked": np.ma.masked_all((n, 2)),
        "wide": np.zeros((n, 300)),
        "read only": read_only(n),
        "byte order": np.arange(n, dtype=">f8")[:, None],
        "matrix": np.asmatrix(np.ones((n, 2))),
        "memoryview": memoryview(bytes(n)),
    }  # fmt: skip
    thing = str(random.choice(list(things)))
    model, y, note = classifier_or_regressor(random, n)
    good = pd.DataFrame({"a": np.arange(n) * 1.0, "b": ["x"] * n})
    if random.random() < 0.5:
        fit, new = {"X": things[thing], "y": y}, {"new": things[thing]}
    else:
        fit, new = {"X": good, "y": y}, {"new": good[:4], "junk": things[thing]}
    return Case("junk", model, fit, new, False, ["a", "b", "table"], [f"{thing}, {n} rows", note])


def read_only(n):
    array = np.zeros((n, 2))
    array.flags.writeable = False
    return array


SHARES = {
    plain_tables: 15,
    nasty_columns: 25,
    explicit_blocks: 10,
    names: 5,
    arrays: 6,
    wide_sparse: 2,
    arrow_types: 7,
    polars_types: 4,
    odd_targets: 8,
    row_weights: 4,
    eval_sets: 5,
    multi_task: 5,
    two_towers: 8,
    embedders: 8,
    event_lists: 4,
    parquet_files: 4,
    junk: 4,
}
"""How often each kind of input is drawn."""


def build(seed, folder):
    """Return the case of a seed.

    Parameters
    ----------
    seed : int
    folder : str
        Empty directory for the files of the case.

    Raises
    ------
    Unbuildable
        If a table cannot be made by the library that it is of.
    """
    random = np.random.default_rng(seed)
    shares = np.array(list(SHARES.values()), dtype=float)
    make = list(SHARES)[random.choice(len(shares), p=shares / shares.sum())]
    case = make(random, folder)
    if case.fit.get("y", 0) is None and isinstance(case.model, EasyTensorTwoTower):
        del case.fit["y"]
    return case
