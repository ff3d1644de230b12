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
from sk_easytensor.report.svg import bars, lines
from sk_easytensor.tracking.model import versions
from sk_easytensor.training.net import LOSS_NAME

__all__ = [
    "FOLDER",
    "MLflowStore",
    "data_digest",
    "data_of",
    "digest_of",
    "draw_curves",
    "is_in_mlflow",
    "metric_values",
    "parameters",
    "write_csv",
    "write_environment",
    "write_importances",
    "write_source",
]


FOLDER = "checkpoints"


class MLflowStore(DirectoryStore):
    """A directory whose files are artifacts of a run too.

    Parameters
    ----------
    run : TrackedRun
        Of the fit. What an interrupted fit left among its artifacts is fetched first, so that
        the machine that goes on needs nothing on its disk.

    Notes
    -----
    While the server does not answer, checkpoints are written on this machine only, and sent with
    the rest of the record.
    """

    def __init__(self, run):
        self._run = run
        local = run.artifacts / FOLDER
        local.mkdir(parents=True, exist_ok=True)
        run.fetch(FOLDER)
        super().__init__(local)
        self.url = f"artifact {FOLDER!r} of run {run.record.run_id} at {masked(run.uri)}"

    def inside(self, name):
        """Return the store itself: a run is that of one fit."""
        return self

    def write(self, name, data):
        """Write bytes under a name, here and among the artifacts."""
        super().write(name, data)
        self._run.send_file(f"{FOLDER}/{name}")

    def remove(self, name):
        """Remove a name that is there."""
        super().remove(name)
        self._run.remove_file(f"{FOLDER}/{name}")


def is_in_mlflow(checkpoint_dir):
    """Tell whether checkpoints are to be kept among a run's artifacts."""
    return isinstance(checkpoint_dir, str) and checkpoint_dir == "mlflow"


LARGEST_SOURCE = 1_000_000
SHOWN_BARS = 20
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What texts begin with that spreadsheets compute."""

UNRECORDED = frozenset(["epoch", "blend_loss"])
"""Entries of a history that runs leave out, beside losses on the scale of training."""


def parameters(estimator):
    """Return all parameters, nested ones included, as strings."""
    return {
        name: shown(value)
        for name, value in estimator.get_params().items()
        if name.partition("__")[0] != "tracker"
    }


def shown(value):
    """Return a value as a string that does not change from process to process."""
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", masked(re.sub(r"\s+", " ", text)))


def metric_values(epoch):
    """Return what is recorded of an epoch of a net's history, by name.

    Parameters
    ----------
    epoch : dict
        Of the history.

    Returns
    -------
    dict of {str: float}
        ``training_log_loss``, ``valid_0_log_loss`` and so on, named as in ``evals_result_``,
        ``epoch_seconds``, and numbers that callbacks recorded.
    """
    values = {}
    for name, value in epoch.items():
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or name in UNRECORDED or name.endswith("_best") or LOSS_NAME.fullmatch(name):
            continue
        values["epoch_seconds" if name == "dur" else name] = float(value)
    return values


def write_environment(folder):
    """Write the versions of what the fit ran with, and return those of the packages."""
    found = versions()
    about = {"python": platform.python_version(), "platform": platform.platform(), **found}
    (folder / "environment.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return {"python": about["python"], **found}


def write_source(folder):
    """Write the script that called `fit`, if it is a file, without the passwords of its URLs."""
    source = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(source) if source else None
    if path is not None and path.is_file() and path.stat().st_size <= LARGEST_SOURCE:
        (folder / "code").mkdir(exist_ok=True)
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        data = masked(text).encode("utf-8", "surrogateescape")
        (folder / "code" / path.name).write_bytes(data)


def data_of(estimator):
    """Return rows and columns that `fit` was given, with types and missing values."""
    summary = estimator._data_summary
    columns = [
        {"name": name, "type": kind, "missing": missing}
        for name, (kind, missing) in summary["columns"].items()
    ]
    return {"rows": summary["rows"], "columns": columns}


def draw_curves(estimator, folder):
    """Write the learning curves as SVG."""
    found = estimator.evals_result_
    metric = next(iter(next(iter(found.values()))))
    curves = {name: losses[metric] for name, losses in found.items()}
    title = f"{metric} by epoch"
    drawing = lines(curves, ("epoch", metric), title, marked=estimator.best_iteration_)
    write_svg(folder / "learning_curves.svg", drawing)


def write_importances(estimator, folder):
    """Write the importances of columns as a table and as SVG, if the estimator has any."""
    if not hasattr(type(estimator), "feature_importances_"):
        return
    names = list(map(str, estimator._encoder.features))
    values = estimator.feature_importances_
    order = np.argsort(-values, kind="stable")
    names, values = [names[index] for index in order], values[order]
    table = pd.DataFrame({"column": names, "importance": values})
    write_csv(table, folder / "importances.csv")
    drawing = bars(names[:SHOWN_BARS], values[:SHOWN_BARS], "Permutation importance of columns")
    write_svg(folder / "importances.svg", drawing)


def write_csv(frame, path):
    """Write a data frame as CSV whose texts spreadsheets do not take for formulas.

    An apostrophe goes before texts that begin as formulas do; numbers are written as they are.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns of strings or of numbers.
    path : Path
        The file.
    """

    def guarded(value):
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    frame.rename(columns=guarded).map(guarded).to_csv(path, index=False)


def write_svg(path, drawing):
    """Write a drawing that was made for a page as a file of its own."""
    style = "<style>text { font: 12px system-ui, sans-serif; fill: #444; }</style>"
    drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(drawing.replace(">", f">{style}", 1), encoding="utf-8")


def digest_of(*texts):
    """Return a digest of strings."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


def data_digest(X):
    """Return a digest of all values of a table."""
    return table_digest(as_table(X))
