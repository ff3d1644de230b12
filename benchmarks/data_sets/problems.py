"""Tabular problems read from a directory of data sets and split for a comparison.

The directory holds one ``NAME.parquet`` a data set and a ``datasets.json`` that describes them::

    {"adult": {"modality": "tabular", "task": "binary", "target": "income",
               "columns": {"age": "numeric", "workclass": "category"}},
     ...}

``task`` is binary, multiclass or regression; ``columns`` names the features, and any other column
is left out. Data sets of another modality or task are skipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

TASKS = ("binary", "multiclass", "regression")
FEWEST_ROWS_OF_A_CLASS = 10
TEST_SHARE = 0.20
VALID_SHARE = 0.16


@dataclass(frozen=True)
class Part:
    """Rows of a data set: features as they are stored, and targets."""

    X: pd.DataFrame
    y: np.ndarray


@dataclass(frozen=True)
class Problem:
    """One data set, sampled and split with one seed."""

    name: str
    task: str
    n_classes: int
    seed: int
    train: Part
    valid: Part
    test: Part

    @property
    def metric(self):
        """Name of the primary metric."""
        return {"binary": "AUC", "multiclass": "accuracy", "regression": "RMSE"}[self.task]


def tabular_names(directory):
    """Names of the tabular data sets in a directory, in alphabetical order."""
    described = json.loads((Path(directory) / "datasets.json").read_text())
    return sorted(
        name
        for name, about in described.items()
        if about["modality"] == "tabular" and about["task"] in TASKS
    )


def load_problem(directory, name, rows, seed):
    """Read a data set, sample `rows` rows and split them 64/16/20, all from one seed.

    Classification is stratified, and classes with fewer than ten rows in the sample are left out.
    `rows` of 0 takes every row.
    """
    about = json.loads((Path(directory) / "datasets.json").read_text())[name]
    table = pd.read_parquet(Path(directory) / f"{name}.parquet")
    task, target = about["task"], about["target"]
    if rows and rows < len(table):
        strata = None if task == "regression" else table[target]
        table, _ = train_test_split(table, train_size=rows, stratify=strata, random_state=seed)
    table = table.reset_index(drop=True)

    n_classes = 0
    if task == "regression":
        y = table[target].to_numpy(dtype=float)
    else:
        counts = table[target].value_counts()
        common = counts.index[counts >= FEWEST_ROWS_OF_A_CLASS]
        table = table[table[target].isin(common)].reset_index(drop=True)
        y, classes = pd.factorize(table[target], sort=True)
        n_classes = len(classes)

    train, valid, test = _split(table[list(about["columns"])], y, task, seed)
    return Problem(name, task, n_classes, seed, train, valid, test)


def _split(X, y, task, seed):
    """Split into training, validation and test parts."""

    def two(rows, share):
        strata = None if task == "regression" else y[rows]
        return train_test_split(rows, test_size=share, stratify=strata, random_state=seed)

    rest, test = two(np.arange(len(y)), TEST_SHARE)
    train, valid = two(rest, VALID_SHARE / (1 - TEST_SHARE))
    parts = (train, valid, test)
    return tuple(Part(X.iloc[rows].reset_index(drop=True), y[rows]) for rows in parts)
