"""The cost of records in MLflow and of checkpoints, as fractions of the time of a fit.

    python benchmarks/tracking.py [--rows 20000] [--epochs 100] [--turns 3]

One fit of 20 columns without early stopping, by turns: plain, with checkpoints in a directory, with
a run of losses and parameters only, with a whole run in an SQLite database, and with checkpoints in
it. The first turn, which imports MLflow and makes the tables, is not counted.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from pathlib import Path
from uuid import uuid4

import mlflow
import numpy as np
import pandas as pd
from turns import median_ratio, time_by_turns

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.tracking import MLflowTracker


def make_table(n_rows, seed=0):
    """Return 14 columns of numbers, 6 of categories, and two classes."""
    rng = np.random.default_rng(seed)
    columns = {f"number_{i}": rng.normal(size=n_rows) for i in range(14)}
    for index in range(6):
        columns[f"category_{index}"] = rng.integers(0, 4 + 4 * index, n_rows).astype(str)
    score = columns["number_0"] + columns["number_1"] * columns["number_2"]
    score += columns["category_0"] == "0"
    return pd.DataFrame(columns), score + 0.5 * rng.normal(size=n_rows) > 0


def main(n_rows, n_epochs, n_turns):
    """Time the fits and print what each takes beside the plain one."""
    X, y = make_table(n_rows)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("benchmark", artifact_location=f"{folder}/artifacts")
        mlflow.set_experiment("benchmark")
        bare = MLflowTracker(log_model=False, log_report=False)
        ways = {
            "plain": dict,
            "checkpoints": lambda: {"checkpoint_dir": Path(folder) / uuid4().hex},
            "losses and parameters": lambda: {"tracker": bare},
            "whole run": lambda: {"tracker": "mlflow"},
            "whole run, checkpoints in it": lambda: {
                "tracker": "mlflow",
                "checkpoint_dir": "mlflow",
            },
        }

        def fit(way):
            params = {"max_epochs": n_epochs, "early_stopping_rounds": None, "random_state": 0}
            EasyTensorClassifier(**params, **ways[way]()).fit(X, y)

        functions = {way: lambda way=way: fit(way) for way in ways}
        wall, cpu = time_by_turns(functions, n_turns)
    print(f"{n_rows} rows, {X.shape[1]} columns, {n_epochs} epochs, median of {n_turns} turns")
    print(f"{'':30} {'wall, s':>8} {'more':>7} {'CPU, s':>8} {'more':>7}")
    for way in ways:
        seconds = [statistics.median(times[way]) for times in (wall, cpu)]
        more = [median_ratio(times[way], times["plain"]) - 1 for times in (wall, cpu)]
        print(f"{way:30} {seconds[0]:8.2f} {more[0]:7.1%} {seconds[1]:8.2f} {more[1]:7.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    main(arguments.rows, arguments.epochs, arguments.turns)
