"""What one run of one model gave, kept in a JSON file, and the tables made of many."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

FOREIGN = ("LightGBM", "XGBoost", "CatBoost", "HistGB")
REFERENCE = "LightGBM"


@dataclass(frozen=True)
class Record:
    """Result of one model on one problem."""

    model: str
    version: str
    dataset: str
    rows: int
    seed: int
    threads: int
    metric: str
    score: float
    loss: float
    fit_seconds: float
    predict_seconds: float
    iterations: int
    note: str = ""
    calibration: float = math.nan

    @property
    def key(self):
        """What makes a run the same run."""
        return record_key(self.model, self.version, self.dataset, self.rows, self.seed)


def record_key(model, version, dataset, rows, seed):
    """Key of a run in the cache."""
    return f"{model} {version} | {dataset}, {rows} rows, seed {seed}"


class Cache:
    """Records of earlier runs, by key, in a JSON file that each new one is written to.

    Parameters
    ----------
    path : path-like or None
        Where the file is; None keeps nothing.
    """

    def __init__(self, path):
        self.path = Path(path) if path else None
        known = self.path and self.path.exists()
        self.records = json.loads(self.path.read_text()) if known else {}

    def get(self, key):
        """Return the record under a key, or None."""
        return Record(**self.records[key]) if key in self.records else None

    def add(self, record):
        """Remember a record."""
        if self.path:
            self.records[record.key] = asdict(record)
            self.path.write_text(json.dumps(self.records, indent=1))


def dataset_table(records):
    """One row a model for the records of one data set: mean metrics and median times over seeds."""
    frame = pd.DataFrame([asdict(record) for record in records])
    models = frame.groupby("model", sort=False)
    table = pd.DataFrame({frame["metric"].iloc[0]: models["score"].mean()})
    if frame["metric"].iloc[0] != "RMSE":
        table["log loss"] = models["loss"].mean()
        table["calibration error"] = models["calibration"].mean()
    table["fit s"] = models["fit_seconds"].median()
    times = models[["fit_seconds", "predict_seconds"]].median()
    if REFERENCE in times.index:
        table["fit ratio"] = times["fit_seconds"] / times.loc[REFERENCE, "fit_seconds"]
        table["predict ratio"] = times["predict_seconds"] / times.loc[REFERENCE, "predict_seconds"]
    table["iterations"] = models["iterations"].median().astype(int)
    return table


def summary_table(records):
    """One row a model over all data sets: ranks, time ratios, and the worst gap to the best GBT.

    Metrics are averaged over seeds and then ranked within each data set. The gap is that of the
    log loss or RMSE, relative to the best of the foreign libraries.
    """
    frame = pd.DataFrame([asdict(record) for record in records])
    frame["cost"] = frame["score"].where(frame["metric"] == "RMSE", -frame["score"])
    loss = frame.pivot_table("loss", "dataset", "model")
    cost = frame.pivot_table("cost", "dataset", "model")
    table = pd.DataFrame(
        {
            "sets": loss.count(),
            "rank by loss": loss.rank(axis=1).mean(),
            "rank by metric": cost.rank(axis=1).mean(),
        }
    )
    calibration = frame.pivot_table("calibration", "dataset", "model")
    if len(calibration):
        table["calibration error"] = calibration.mean()
    for name in ("fit", "predict"):
        times = frame.pivot_table(f"{name}_seconds", "dataset", "model", aggfunc="median")
        if REFERENCE in times:
            ratios = times.div(times[REFERENCE], axis=0)
            table[f"median {name} ratio"] = ratios.median()
            table[f"largest {name} ratio"] = ratios.max()
    foreign = [name for name in FOREIGN if name in loss]
    if foreign:
        gaps = loss.div(loss[foreign].min(axis=1), axis=0) - 1
        table["worst gap"] = gaps.max()
        table["on"] = gaps.idxmax()
    return table.sort_values("rank by loss")
