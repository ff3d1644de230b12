"""A fitted model on one page of HTML."""

from __future__ import annotations

import re
from functools import singledispatch

import numpy as np
import pyarrow.compute as pc
import sklearn
import torch
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.storage import write_atomically
from sk_easytensor.blocks import (
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    SparseBlock,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.data.type_names import type_name
from sk_easytensor.report.html import (
    LeftOut,
    caption,
    number,
    page,
    section,
    table,
)
from sk_easytensor.report.svg import bars, boxes, dots, lines

__all__ = [
    "describe_columns",
    "summarize_table",
    "summarize_target",
    "write_report",
]


SHOWN_CATEGORIES, LONGEST_VALUE = 5, 40
MOST_CLASSES = 50


def summarize_table(table):
    """Return what a fit remembers of its table: rows, types and missing values, and no value.

    Parameters
    ----------
    table : pyarrow.Table
        Training rows.

    Returns
    -------
    dict
        ``rows``, and ``columns``: a dictionary of (type, rows without a value) by name.
    """
    columns = {
        name: (type_name(column.type), int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0))
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return {"rows": len(table), "columns": columns}


def summarize_target(y, classes=None):
    """Return what a fit remembers of its target.

    Parameters
    ----------
    y : array of shape (n_samples,) or (n_samples, n_outputs)
        A valid target.
    classes : ndarray, optional
        The classes, if it is of classes; labels in columns of their own are 0 or 1.

    Returns
    -------
    dict
        ``counts`` of at most 50 classes or labels, or ``quantiles`` of each output, at 0%, 25%,
        50%, 75% and 100%.
    """
    if classes is None:
        return {"quantiles": np.quantile(y.reshape(len(y), -1), np.linspace(0, 1, 5), axis=0).T}
    if np.ndim(y) == 2:
        counts = np.asarray(y.sum(axis=0), dtype=np.int64).reshape(-1)
    else:
        counts = np.bincount(np.searchsorted(classes, y), minlength=len(classes))
    return {"counts": counts[:MOST_CLASSES]}


def describe_columns(blocks):
    """Return, for each column, the names of blocks that read it and what they know of it.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.

    Returns
    -------
    dict of {str: list of (str, str)}
    """
    found = {}
    for name, block in blocks.items():
        known = describe(block)
        for column in block.feature_names_in_:
            found.setdefault(column, []).append((name, known.get(column, "")))
    return found


@singledispatch
def describe(block):
    """Return what a fitted block knows of its columns, a dictionary of sentences by column."""
    return {}


@describe.register
def _(block: NumericBlock):
    return _by_column(block, map(_spread, block.edges_))


@describe.register
def _(block: DatetimeBlock):
    return _by_column(block, (_spread(edges, _instant) for edges in block.edges_))


@describe.register
def _(block: CategoryBlock):
    # That of events without categories has no columns.
    if block.hash_buckets is not None:
        return _by_column(block, [f"hashed into {block.hash_buckets:,}"] * block.n_features_in_)
    return _by_column(block, map(_categories, block.categories_, block.counts_))


@describe.register
def _(block: CategorySequenceBlock):
    return _by_column(block, map(_categories, block.categories_, block.counts_))


@describe.register
def _(block: NumericSequenceBlock):
    levels = zip(block.center_, block.scale_, strict=True)
    return _by_column(block, (f"centre {number(a)}, spread {number(b)}" for a, b in levels))


@describe.register
def _(block: EventSequenceBlock):
    # What its inner blocks know goes by the names of their own columns, which are this block's.
    inner = {**describe(block.number_block_), **describe(block.category_block_)}
    return {
        name: "; ".join(filter(None, [f"{kind} of each event", inner.get(name, "")]))
        for name, kind in block.kinds_.items()
    }


@describe.register
def _(block: VectorBlock):
    return _by_column(block, (f"{np.size(mean)} dimensions" for mean in block.mean_))


@describe.register
def _(block: TextBlock):
    return _by_column(block, [f"text, encoder {block.encoder!r}"] * block.n_features_in_)


@describe.register
def _(block: SparseBlock):
    pairs = zip(block.features_, block.lengths_, strict=True)
    return _by_column(
        block, (f"{len(read):,} of {size:,} sparse features are read" for read, size in pairs)
    )


def _by_column(block, sentences):
    return dict(zip(block.feature_names_in_, sentences, strict=False))


def _spread(edges, show=number):
    if len(edges) == 0:
        return "always missing"
    lowest, lower, upper, highest = np.quantile(edges, [0, 0.25, 0.75, 1])
    if lowest == highest:
        return f"always {show(lowest)}"
    return (
        f"from {show(lowest)} to {show(highest)}; half of the {len(edges) - 1:,} bins "
        f"from {show(lower)} to {show(upper)}"
    )


def _instant(seconds):
    return str(np.datetime64(round(seconds), "s")).replace("T", " ")


def _categories(values, counts):
    if len(values) == 0:
        return "always missing"
    shown = [
        f"{value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + '…'} ({count:,})"
        for value, count in zip(
            values[:SHOWN_CATEGORIES].to_pylist(), counts[:SHOWN_CATEGORIES], strict=True
        )
    ]
    more = ", …" if len(values) > SHOWN_CATEGORIES else ""
    noun = "category" if len(values) == 1 else "categories"
    return f"{len(values):,} {noun}: {', '.join(shown)}{more}"


SHOWN_BARS = 20
LONGEST = 300


def write_report(model, path):
    """Write what a fitted model knows of itself as one page of HTML.

    Parameters
    ----------
    model : estimator
        Fitted, of this library.
    path : str or path-like
        The file. It is written under another name and renamed.

    Returns
    -------
    pathlib.Path
        Of the file.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    FileNotFoundError
        If the directory does not exist.
    """
    check_is_fitted(model)
    sections = {
        "data": ("Data", data),
        "parameters": ("Parameters", parameters),
        "blocks": ("Blocks", diagram),
        "learning-curves": ("Learning curves", learning_curves),
        "importances": ("Importances", importances),
        "validation": ("Validation", validation),
        "timings": ("Timings", timings),
    }
    body = "".join(section(name, *about, model) for name, about in sections.items())
    from sk_easytensor import __version__

    versions = {"sk_easytensor": __version__, "torch": torch.__version__}
    versions["scikit-learn"] = sklearn.__version__
    subtitle = "Written with " + ", ".join(f"{name} {value}" for name, value in versions.items())
    links = {name: title for name, (title, _) in sections.items()}
    return write_atomically(path, page(type(model).__name__, subtitle, links, body), "report")


def data(model):
    """Return rows, target and columns."""
    summary = model._data_summary
    counts = {"rows": summary["rows"], "columns": len(summary["columns"])}
    for name in ("n_users_", "n_users_without_pair_"):
        if hasattr(model, name):
            counts[name.strip("_").removeprefix("n_").replace("_", " ")] = getattr(model, name)
    if hasattr(model, "item_keys_"):
        counts["items"] = len(model.item_keys_)
    body = caption("Given to fit: " + ", ".join(f"{value:,} {k}" for k, value in counts.items()))
    body += target(model)
    known = {}
    for side, owner in encoders(model).items():
        for column, readers in describe_columns(owner.blocks_).items():
            known.setdefault(column, []).extend(
                (f"{side}{name}", sentence) for name, sentence in readers
            )
    rows = []
    for column, (kind, n_missing) in summary["columns"].items():
        readers = known.get(column, [])
        share = n_missing / max(summary["rows"], 1)
        rows.append(
            (
                column,
                kind,
                f"{n_missing:,} ({share:.1%})" if n_missing else "none",
                ", ".join(name for name, _ in readers) or "not used",
                "; ".join(sentence for _, sentence in readers if sentence),
            )
        )
    return body + table(["Column", "Type", "Missing", "Block", "Values seen by fit"], rows)


def target(model):
    """Return classes with their counts, or quantiles of numbers."""
    summary = getattr(model, "_target_summary", None)
    if summary is None:
        return ""
    if "counts" in summary:
        rows = zip(
            model.classes_.tolist(), (f"{count:,}" for count in summary["counts"]), strict=False
        )
        more = len(model.classes_) - len(summary["counts"])
        body = table(["Class", "Rows"], rows)
        return body + (caption(f"and {more:,} more classes") if more > 0 else "")
    header = ["Target", "lowest", "25%", "median", "75%", "highest"]
    quantiles = summary["quantiles"]
    names = ["y"] if len(quantiles) == 1 else [f"y[:, {i}]" for i in range(len(quantiles))]
    return table(
        header, [(name, *map(number, row)) for name, row in zip(names, quantiles, strict=True)]
    )


def encoders(model):
    """Return what holds fitted blocks, by what goes before their names."""
    if hasattr(model, "user_tower_"):
        return {"user__": model.user_tower_, "item__": model.item_tower_}
    return {"": model}


def parameters(model):
    """Return the constructor's parameters, and which of them differ from the defaults."""
    defaults = type(model)().get_params(deep=False)
    rows = []
    for name, value in sorted(model.get_params(deep=False).items()):
        shown = repr(value)
        changed = "" if shown == repr(defaults.get(name)) else "changed"
        rows.append((name, shown if len(shown) <= LONGEST else shown[:LONGEST] + "…", changed))
    return table(["Parameter", "Value", ""], rows)


def diagram(model):
    """Return scikit-learn's diagram of the estimator and its blocks."""
    # Without its script, which copies names of parameters and complains where it finds none.
    drawn = re.sub(r"<script\b.*?</script>", "", estimator_html_repr(model), flags=re.DOTALL)
    return re.sub(r'\sonclick="[^"]*"', "", drawn)


def learning_curves(model):
    """Draw losses by epoch."""
    found = model.evals_result_
    metric = next(iter(next(iter(found.values()))))
    curves = {name: losses[metric] for name, losses in found.items()}
    validated = [name for name in curves if name != "training"]
    decided = "validation rows" if validated else "the last epoch"
    said = (
        f"{model.n_iter_} epochs; the weights kept are those of epoch {model.best_iteration_}, as "
        f"{decided} decide: {number(model.best_score_)}. The training loss is of the network alone "
        "and includes dropout"
    )
    shares = getattr(model, "tree_weight_", 0.0)
    shares = shares if isinstance(shares, dict) else {"": shares}
    if any(shares.values()):
        listed = ", ".join(f"{value:.0%} {name}".strip() for name, value in shares.items())
        said += (
            f". Boosted trees count for {listed}; validation losses are of network and "
            "trees together"
        )
    drawn = lines(curves, ("epoch", metric), f"{metric} by epoch", marked=model.best_iteration_)
    return caption(said + ".") + drawn


def importances(model):
    """Draw permutation importances of columns."""
    if not hasattr(type(model), "feature_importances_"):
        raise LeftOut(
            "a model of this kind keeps no rows to evaluate columns on; "
            "sk_easytensor.inspection.permutation_importance takes rows, with a target"
        )
    values, names = model.feature_importances_, model._encoder.features
    if not values.any():
        raise LeftOut("no column raises the loss when its values are shuffled")
    order = np.argsort(-values, kind="stable")[:SHOWN_BARS]
    said = (
        "Share of the loss that shuffling a column adds, on rows held out where there are enough."
    )
    if len(order) < len(values):
        said += f" The {len(order)} largest of {len(values):,}."
    title = "Permutation importance of columns"
    return caption(said) + bars([str(names[i]) for i in order], values[order], title)


def validation(model):
    """Draw the calibration of a classifier, the residuals of a regressor."""
    if not hasattr(type(model), "feature_importances_"):
        raise LeftOut("a model of this kind gives no prediction of its own for a row")
    # Both are found when importances are, from the same rows.
    model.feature_importances_  # noqa: B018
    found = model._validation
    if found is None:
        raise LeftOut(
            "fewer than 32 rows were held out, and training rows would show the model better "
            "than it is"
        )
    body = caption(f"On {found['rows']:,} rows held out.")
    body += table(["Measure", "Value"], [(k, number(v)) for k, v in found["measures"].items()])
    if "calibration" in found:
        body += caption(
            f"Calibration: {found['of']}, in ten bins of as many rows, against how often it "
            "came true."
        )
        labels = ("predicted probability", "share that came true")
        return body + dots(*found["calibration"].T, labels, "Calibration")
    for index, bins in enumerate(found["residuals"]):
        output = "" if len(found["residuals"]) == 1 else f" of output {index}"
        title = f"Residuals{output} by prediction"
        body += caption(
            f"{title}: target minus prediction, in ten bins of as many rows. Boxes hold the middle "
            "half, lines go from the 5% to the 95% quantile."
        )
        body += boxes(bins[:, 0], bins[:, 1:], ("prediction", "residual"), title)
    return body


def timings(model):
    """Return the seconds of the parts of a fit."""
    found = model.fit_times_
    names = {"blocks": "fitting the blocks", "encoding": "encoding", "training": "training"}
    rows = [(text, f"{found[name]:.3g}") for name, text in names.items() if name in found]
    epochs = found.get("epochs", [])
    if epochs:
        rows.append((f"an epoch (median of {len(epochs)})", f"{np.median(epochs):.3g}"))
    return table(["Part of fit", "Seconds"], rows)
