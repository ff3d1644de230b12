"""Content of the report of a fitted model, section by section."""

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
    SectionNotApplicable,
    bars,
    boxes,
    caption,
    dots,
    lines,
    number,
    page,
    section,
    table,
)

__all__ = [
    "describe_columns",
    "summarize_table",
    "summarize_target",
    "write_report",
]


MAX_CATEGORIES, MAX_VALUE_LENGTH = 5, 40
"""Number of categories that are listed, and characters of each."""

MAX_CLASSES = 50
"""Number of classes whose rows are counted."""


def summarize_table(table):
    """Return the summary of the training rows that a fit stores, which has no values of them.

    Parameters
    ----------
    table : pyarrow.Table
        Training rows.

    Returns
    -------
    dict
        ``"rows"`` is the number of rows, and ``"columns"`` is a dictionary of (type, number of
        missing values) by name of the column.
    """
    columns = {
        name: (type_name(column.type), int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0))
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return {"rows": len(table), "columns": columns}


def summarize_target(y, classes=None):
    """Return the summary of the target that a fit stores.

    Parameters
    ----------
    y : array of shape (n_samples,) or (n_samples, n_outputs)
        Valid target. With several columns and ``classes``, each is a label of 0 or 1.
    classes : ndarray, optional
        Sorted classes of a classifier; None for numbers.

    Returns
    -------
    dict
        ``"counts"`` of at most 50 classes or labels, or ``"quantiles"`` of shape (n_outputs, 5), at
        0%, 25%, 50%, 75% and 100%.
    """
    if classes is None:
        return {"quantiles": np.quantile(y.reshape(len(y), -1), np.linspace(0, 1, 5), axis=0).T}
    if np.ndim(y) == 2:
        counts = np.asarray(y.sum(axis=0), dtype=np.int64).reshape(-1)
    else:
        counts = np.bincount(np.searchsorted(classes, y), minlength=len(classes))
    return {"counts": counts[:MAX_CLASSES]}


def describe_columns(blocks):
    """Return the blocks that read each column, with a description of the column's values.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks by name.

    Returns
    -------
    dict of {str: list of (str, str)}
        Pairs of a block's name and its description, by column.
    """
    result = {}
    for name, block in blocks.items():
        descriptions = describe(block)
        for column in block.feature_names_in_:
            result.setdefault(column, []).append((name, descriptions.get(column, "")))
    return result


@singledispatch
def describe(block):
    """Return a description of the values that a fitted block has seen, by column.

    Kinds of blocks are registered below; those of users have no description.
    """
    return {}


@describe.register
def _(block: NumericBlock):
    return _by_column(block, map(_spread, block.edges_))


@describe.register
def _(block: DatetimeBlock):
    return _by_column(block, (_spread(edges, _instant) for edges in block.edges_))


@describe.register
def _(block: CategoryBlock):
    # The category block of an EventSequenceBlock without categories has no columns.
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
    # The inner blocks have the column names of this block.
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
        block, (f"{len(read):,} of {size:,} sparse features are used" for read, size in pairs)
    )


def _by_column(block, descriptions):
    return dict(zip(block.feature_names_in_, descriptions, strict=False))


def _spread(edges, to_text=number):
    if len(edges) == 0:
        return "always missing"
    lowest, lower, upper, highest = np.quantile(edges, [0, 0.25, 0.75, 1])
    if lowest == highest:
        return f"always {to_text(lowest)}"
    return (
        f"from {to_text(lowest)} to {to_text(highest)}; half of the {len(edges) - 1:,} bins "
        f"from {to_text(lower)} to {to_text(upper)}"
    )


def _instant(seconds):
    return str(np.datetime64(round(seconds), "s")).replace("T", " ")


def _categories(values, counts):
    if len(values) == 0:
        return "always missing"
    most_frequent = zip(values[:MAX_CATEGORIES].to_pylist(), counts[:MAX_CATEGORIES], strict=True)
    listed = [
        f"{_shortened(value, MAX_VALUE_LENGTH)} ({count:,})" for value, count in most_frequent
    ]
    more = ", …" if len(values) > MAX_CATEGORIES else ""
    noun = "category" if len(values) == 1 else "categories"
    return f"{len(values):,} {noun}: {', '.join(listed)}{more}"


def _shortened(text, length):
    return text if len(text) <= length else text[: length - 1] + "…"


MAX_BARS = 20
"""Number of columns in the drawing of the importances."""

MAX_PARAMETER_LENGTH = 300
"""Characters of the value of a parameter."""


def write_report(model, path, test=None):
    """Write the report of a fitted model as one HTML page.

    Parameters
    ----------
    model : estimator
        Fitted estimator of this library.
    test : dict or None, default=None
        Measures of further rows, from :func:`~sk_easytensor.inspection.sample.validation`.
    path : str or path-like
        Path of the file. It is written under a temporary name and renamed, so that it is never
        incomplete.

    Returns
    -------
    pathlib.Path
        Path of the file.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    FileNotFoundError
        If the directory of ``path`` does not exist.
    """
    check_is_fitted(model)
    sections = {
        "data": ("Data", data),
        "parameters": ("Parameters", parameters),
        "blocks": ("Blocks", diagram),
        "learning-curves": ("Learning curves", learning_curves),
        "importances": ("Importances", importances),
        "validation": ("Validation", validation),
    }
    if test is not None:
        sections["test"] = ("Test", lambda model: measures(test, "test rows"))
    sections["timings"] = ("Timings", timings)
    body = "".join(section(name, *entry, model) for name, entry in sections.items())
    from sk_easytensor import __version__

    versions = {"sk_easytensor": __version__, "torch": torch.__version__}
    versions["scikit-learn"] = sklearn.__version__
    subtitle = "Written with " + ", ".join(f"{name} {value}" for name, value in versions.items())
    links = {name: title for name, (title, _) in sections.items()}
    return write_atomically(path, page(type(model).__name__, subtitle, links, body), "report")


def data(model):
    """Return numbers of rows and columns, the target, and a table of the columns."""
    summary = model._data_summary
    counts = {"rows": summary["rows"], "columns": len(summary["columns"])}
    for name in ("n_users_", "n_users_without_pair_"):
        if hasattr(model, name):
            counts[name.strip("_").removeprefix("n_").replace("_", " ")] = getattr(model, name)
    if hasattr(model, "item_keys_"):
        counts["items"] = len(model.item_keys_)
    body = caption("Data of fit: " + ", ".join(f"{value:,} {k}" for k, value in counts.items()))
    body += target(model)
    descriptions = {}
    for prefix, encoder in encoders(model).items():
        for column, blocks in describe_columns(encoder.blocks_).items():
            descriptions.setdefault(column, []).extend(
                (f"{prefix}{name}", description) for name, description in blocks
            )
    rows = []
    for column, (type_, n_missing) in summary["columns"].items():
        blocks = descriptions.get(column, [])
        fraction = n_missing / max(summary["rows"], 1)
        rows.append(
            (
                column,
                type_,
                f"{n_missing:,} ({fraction:.1%})" if n_missing else "none",
                ", ".join(name for name, _ in blocks) or "not used",
                "; ".join(description for _, description in blocks if description),
            )
        )
    return body + table(["Column", "Type", "Missing", "Block", "Values seen by fit"], rows)


def target(model):
    """Return a table of the classes with their counts, or of the quantiles of each output."""
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
    """Return the objects with fitted blocks, by the prefix of the blocks' names."""
    if hasattr(model, "user_tower_"):
        return {"user__": model.user_tower_, "item__": model.item_tower_}
    return {"": model}


def parameters(model):
    """Return a table of the parameters, with the values that were used for None and "auto"."""
    defaults = type(model)().get_params(deep=False)
    chosen = dict(getattr(model, "_chosen_parameters", {}))
    if hasattr(model, "n_folds"):
        n_networks = len(model.network_.networks)
        chosen["n_folds"] = n_networks if n_networks > 1 else None
    rows = []
    for name, value in sorted(model.get_params(deep=False).items()):
        text = repr(value)
        changed = "" if text == repr(defaults.get(name)) else "changed"
        used = repr(chosen[name]) if value in (None, "auto") and name in chosen else ""
        rows.append((name, _shortened(text, MAX_PARAMETER_LENGTH), used, changed))
    return table(["Parameter", "Value", "Used", ""], rows)


def diagram(model):
    """Return scikit-learn's diagram of the estimator and its blocks."""
    # Its script is removed: it copies names of parameters and fails on a page without buttons.
    drawing = re.sub(r"<script\b.*?</script>", "", estimator_html_repr(model), flags=re.DOTALL)
    return re.sub(r'\sonclick="[^"]*"', "", drawing)


def learning_curves(model):
    """Return a drawing of the losses by epoch."""
    results = model.evals_result_
    metric = next(iter(next(iter(results.values()))))
    curves = {name: losses[metric] for name, losses in results.items()}
    is_validated = any(name != "training" for name in curves)
    criterion = "validation loss" if is_validated else "training loss"
    text = (
        f"{model.n_iter_} epochs. The weights are those of epoch {model.best_iteration_}, with "
        f"a {criterion} of {number(model.best_score_)}. The training loss is that of the network "
        "alone and includes dropout"
    )
    others = []
    for attribute, other in (("tree_weight_", "boosted trees"), ("linear_weight_", "linear model")):
        weights = getattr(model, attribute, 0.0)
        weights = weights if isinstance(weights, dict) else {"": weights}
        if any(weights.values()):
            listed = ", ".join(f"{value:.0%} {name}".strip() for name, value in weights.items())
            others.append(f"the weight of the {other} is {listed}")
    if others:
        described = " and ".join(others)
        text += (
            f". {described[0].upper()}{described[1:]}; validation losses are those of all models "
            "together"
        )
    drawing = lines(curves, ("epoch", metric), f"{metric} by epoch", marked=model.best_iteration_)
    return caption(text + ".") + drawing


def importances(model):
    """Return a drawing of the permutation importances of columns.

    Raises
    ------
    SectionNotApplicable
        If the estimator has no importances, or all of them are 0.
    """
    if not hasattr(type(model), "feature_importances_"):
        raise SectionNotApplicable(
            "a model of this kind keeps no validation rows; "
            "sk_easytensor.inspection.permutation_importance takes rows, with a target"
        )
    values, names = model.feature_importances_, model._encoder.features
    if not values.any():
        raise SectionNotApplicable("no column raises the loss when its values are shuffled")
    order = np.argsort(-values, kind="stable")[:MAX_BARS]
    text = (
        "Increase of the loss when a column is shuffled, as a share of all increases, on "
        "validation rows if there are enough. Lines are standard errors; what is within one of "
        "0 is shown as 0."
    )
    if len(order) < len(values):
        text += f" The {len(order)} largest of {len(values):,}."
    title = "Permutation importance of columns"
    return caption(text) + bars(
        [str(names[i]) for i in order], values[order], model.importances_std_[order], title
    )


def validation(model):
    """Return a drawing of the calibration of a classifier or the residuals of a regressor.

    Raises
    ------
    SectionNotApplicable
        If the estimator predicts no rows, or had fewer than 32 validation rows.
    """
    if not hasattr(type(model), "feature_importances_"):
        raise SectionNotApplicable("a model of this kind has no predictions of single rows")
    # Computing importances sets model._validation, from the same rows.
    model._compute_importances()
    results = model._validation
    if results is None:
        raise SectionNotApplicable(
            "fewer than 32 rows were held out, and metrics of training rows would be too optimistic"
        )
    return measures(results, "validation rows")


def measures(results, rows):
    """Return a table of metrics with drawings of calibration, ROC curve or residuals.

    Parameters
    ----------
    results : dict
        Result of :func:`~sk_easytensor.inspection.sample.validation`.
    rows : str
        What the rows are called.
    """
    body = caption(f"On {results['rows']:,} {rows}.")
    body += table(["Metric", "Value"], [(k, number(v)) for k, v in results["measures"].items()])
    if "calibration" in results:
        body += caption(
            f"Calibration: {results['of']} against the observed frequency, in ten bins of equal "
            "numbers of rows."
        )
        labels = ("predicted probability", "observed frequency")
        body += dots(*results["calibration"].T, labels, "Calibration")
        if "roc" in results:
            body += caption("ROC curve: rows of either class above a threshold of the probability.")
            labels = ("false positive rate", "true positive rate")
            body += dots(*results["roc"].T, labels, "ROC curve")
        if "thresholds" in results:
            body += caption(f"Decisions by a threshold of {results['of']}.")
            header = ["Threshold", "Rows above", "Precision", "Recall", "F1"]
            body += table(header, [list(map(number, row)) for row in results["thresholds"]])
        return body
    for index, bins in enumerate(results["residuals"]):
        output = "" if len(results["residuals"]) == 1 else f" of output {index}"
        title = f"Residuals{output} by prediction"
        body += caption(
            f"{title}: target minus prediction, in ten bins of equal numbers of rows. Boxes go "
            "from the 25% to the 75% quantile, lines from the 5% to the 95% quantile."
        )
        body += boxes(bins[:, 0], bins[:, 1:], ("prediction", "residual"), title)
    return body


def timings(model):
    """Return a table of the seconds that the parts of the fit took."""
    times = model.fit_times_
    names = {"blocks": "fitting the blocks", "encoding": "encoding"}
    networks = getattr(getattr(model, "network_", None), "networks", [])
    for name, text in (("trees", "boosted trees"), ("linear", "linear model")):
        if any(getattr(network, name) is not None for network in networks):
            names[name] = f"fitting the {text}"
    names["training"] = "training"
    rows = [(text, f"{times[name]:.3g}") for name, text in names.items() if name in times]
    epochs = times.get("epochs", [])
    if epochs:
        rows.append((f"an epoch (median of {len(epochs)})", f"{np.median(epochs):.3g}"))
    return table(["Part of fit", "Seconds"], rows)
