"""Artifacts of a run: files that describe the fit, and its checkpoints."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sk_easytensor._utils.digests import table_digest
from sk_easytensor._utils.masking import masked
from sk_easytensor._utils.storage import DirectoryStore
from sk_easytensor.data.tables import as_table
from sk_easytensor.report.html import bars, lines
from sk_easytensor.tracking.model import versions
from sk_easytensor.training.net import LOSS_NAME

__all__ = [
    "FOLDER",
    "MLflowStore",
    "data_description",
    "data_digest",
    "digest_of",
    "draw_curves",
    "is_in_mlflow",
    "metric_values",
    "parameters",
    "validation_metrics",
    "write_csv",
    "write_environment",
    "write_importances",
    "write_source",
]


FOLDER = "checkpoints"


class MLflowStore(DirectoryStore):
    """A directory of checkpoints whose files are also artifacts of an MLflow run.

    Parameters
    ----------
    run : TrackedRun
        Run of the fit. Checkpoints that an interrupted fit left among the artifacts of the run are
        downloaded first, so that another machine can resume the fit.

    Notes
    -----
    While the server is unreachable, checkpoints are written on this machine only. They are sent
    with the rest of the record at the end of the fit.
    """

    def __init__(self, run):
        self._run = run
        local = run.artifacts / FOLDER
        local.mkdir(parents=True, exist_ok=True)
        run.fetch(FOLDER)
        super().__init__(local)
        self.url = f"artifact {FOLDER!r} of run {run.record.run_id} at {masked(run.uri)}"

    def inside(self, name):
        """Return the store itself, because a run belongs to a single fit."""
        return self

    def write(self, name, data):
        """Write a file, on this machine and among the artifacts of the run."""
        super().write(name, data)
        self._run.send_file(f"{FOLDER}/{name}")

    def remove(self, name):
        """Remove an existing name, on this machine and from the artifacts of the run."""
        super().remove(name)
        self._run.remove_file(f"{FOLDER}/{name}")


def is_in_mlflow(checkpoint_dir):
    """Return whether ``checkpoint_dir`` stores checkpoints among the artifacts of the run."""
    return isinstance(checkpoint_dir, str) and checkpoint_dir == "mlflow"


MAX_SOURCE_BYTES = 1_000_000
"""Size of the largest calling script that is recorded."""

MAX_BARS = 20
"""Number of columns in the drawing of the importances."""

FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which spreadsheets recognize a formula."""

UNRECORDED = frozenset(["epoch", "blend_loss"])
"""Entries of a history that are not recorded, besides losses on the scale of training."""


def parameters(estimator):
    """Return all parameters of an estimator but its tracker, nested ones included, as strings."""
    return {
        name: to_text(value)
        for name, value in estimator.get_params().items()
        if name.partition("__")[0] != "tracker"
    }


def to_text(value):
    """Return a value as a string without memory addresses and passwords."""
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", masked(re.sub(r"\s+", " ", text)))


def metric_values(epoch):
    """Return the metrics that are recorded for an epoch, by name.

    Parameters
    ----------
    epoch : dict
        Entry of the history of a skorch net.

    Returns
    -------
    dict of {str: float}
        ``training_log_loss``, ``valid_0_log_loss`` and so on, named as in ``evals_result_``,
        ``epoch_seconds``, and numbers that callbacks added to the history.
    """
    values = {}
    for name, value in epoch.items():
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or name in UNRECORDED or name.endswith("_best") or LOSS_NAME.fullmatch(name):
            continue
        values["epoch_seconds" if name == "dur" else name] = float(value)
    return values


def write_environment(folder):
    """Write the platform and the versions of Python and packages, and return the versions."""
    python, packages = platform.python_version(), versions()
    environment = {"python": python, "platform": platform.platform(), **packages}
    (folder / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    return {"python": python, **packages}


def write_source(folder):
    """Write the calling script, if it is a file, with the passwords of URLs masked."""
    source = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(source) if source else None
    if path is not None and path.is_file() and path.stat().st_size <= MAX_SOURCE_BYTES:
        (folder / "code").mkdir(exist_ok=True)
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        data = masked(text).encode("utf-8", "surrogateescape")
        (folder / "code" / path.name).write_bytes(data)


def data_description(estimator):
    """Return the number of rows and the columns of ``X``, with types and missing counts."""
    summary = estimator._data_summary
    columns = [
        {"name": name, "type": kind, "missing": missing}
        for name, (kind, missing) in summary["columns"].items()
    ]
    return {"rows": summary["rows"], "columns": columns}


def draw_curves(estimator, folder):
    """Write the learning curves as SVG."""
    results = estimator.evals_result_
    metric = next(iter(next(iter(results.values()))))
    curves = {name: losses[metric] for name, losses in results.items()}
    title = f"{metric} by epoch"
    drawing = lines(curves, ("epoch", metric), title, marked=estimator.best_iteration_)
    write_svg(folder / "learning_curves.svg", drawing)


def validation_metrics(estimator):
    """Return the measures of the report on validation rows, such as ``validation_roc_auc``.

    Importances have been computed, with which they are made.
    """
    results = getattr(estimator, "_validation", None) or {"measures": {}}
    return {
        "validation_" + re.sub(r"\W+", "_", name.lower().replace("²", "2")): value
        for name, value in results["measures"].items()
    }


def write_importances(estimator, folder):
    """Write the importances of columns as a table and as SVG, if the estimator has any."""
    if not hasattr(type(estimator), "feature_importances_"):
        return
    names = list(map(str, estimator._encoder.features))
    values, errors = estimator.feature_importances_, estimator.importances_std_
    order = np.argsort(-values, kind="stable")
    names, values, errors = [names[index] for index in order], values[order], errors[order]
    table = pd.DataFrame({"column": names, "importance": values, "std": errors})
    write_csv(table, folder / "importances.csv")
    title = "Permutation importance of columns"
    drawing = bars(names[:MAX_BARS], values[:MAX_BARS], errors[:MAX_BARS], title)
    write_svg(folder / "importances.svg", drawing)


def write_csv(frame, path):
    """Write a data frame as CSV in which spreadsheets find no formulas.

    Strings that begin like a formula are prefixed with an apostrophe. Numbers are unchanged.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns of strings or of numbers.
    path : Path
        Path of the CSV file.
    """

    def escaped(value):
        is_formula = isinstance(value, str) and value.startswith(FORMULA_PREFIXES)
        return f"'{value}" if is_formula else value

    frame.rename(columns=escaped).map(escaped).to_csv(path, index=False)


def write_svg(path, drawing):
    """Write a drawing of an HTML page as a standalone SVG file."""
    style = "<style>text { font: 12px system-ui, sans-serif; fill: #444; }</style>"
    drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(drawing.replace(">", f">{style}", 1), encoding="utf-8")


def digest_of(*texts):
    """Return a digest of strings: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


def data_digest(X):
    """Return a digest of all values of a table."""
    return table_digest(as_table(X))
