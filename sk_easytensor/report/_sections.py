"""The sections of a report, from what a fitted model knows."""

from __future__ import annotations

import re

import numpy as np
import sklearn
import torch
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.files import write_whole
from sk_easytensor.report._columns import describe_columns
from sk_easytensor.report._page import (
    LeftOut,
    caption,
    number,
    page,
    section,
    table,
)
from sk_easytensor.report._plots import bars, boxes, dots, lines

__all__ = ["write_report"]

SHOWN_BARS = 20
LONGEST = 300
EARLIER = "the model was fitted by an earlier version, which did not record it"


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
    return write_whole(path, page(type(model).__name__, subtitle, links, body), "report")


def data(model):
    """Return rows, target and columns."""
    summary = getattr(model, "_data_summary", None)
    if summary is None:
        raise LeftOut(EARLIER)
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
    shares = getattr(model, "trees_share_", 0.0)
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
            "a model of this kind keeps no rows to judge columns by; "
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
    if not hasattr(model, "_validation"):
        raise LeftOut(EARLIER)
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
    found = getattr(model, "fit_times_", None)
    if not found:
        raise LeftOut(EARLIER)
    names = {"blocks": "fitting the blocks", "encoding": "encoding", "training": "training"}
    rows = [(text, f"{found[name]:.3g}") for name, text in names.items() if name in found]
    epochs = found.get("epochs", [])
    if epochs:
        rows.append((f"an epoch (median of {len(epochs)})", f"{np.median(epochs):.3g}"))
    return table(["Part of fit", "Seconds"], rows)
