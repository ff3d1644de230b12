"""Compare the default EasyTensor estimators with gradient-boosted trees on few rows.

For each size, rows are drawn once a seed from the training part of each data set, and every model
is measured on up to 10,000 other rows. EasyTensor gets all rows of the draw and holds out its own:
with its default, ``n_folds="auto"``, and with ``n_folds=None``, one split. Other libraries stop
early on 15% of the rows. Losses are means over seeds of their logarithm, relative to LightGBM's.

``--data`` is as for ``tabular.py``, for example::

    python benchmarks/data_sets/small_tables.py --data DIR --sizes 100,500,1000,2000 --seeds 3
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from time import process_time

import numpy as np
import pandas as pd
from peers import PEERS
from problems import Part, load_problem, tabular_names
from sklearn.model_selection import train_test_split
from tabular import EasyTensor, score_and_loss

TEST_ROWS = 10_000
VALID_SHARE = 0.15
REFERENCE = "LightGBM"


class Folds(EasyTensor):
    """EasyTensor with its defaults, which holds out rows itself."""

    def fit(self, problem):
        """Fit on the rows of training and validation."""
        X = pd.concat([problem.train.X, problem.valid.X], ignore_index=True)
        self.model_.fit(X, np.concatenate([problem.train.y, problem.valid.y]))


class OneSplit(Folds):
    """EasyTensor with one split into training and validation rows."""

    def _make(self, problem):
        return super()._make(problem).set_params(n_folds=None)


MODELS = {"EasyTensor": Folds, "EasyTensor, n_folds=None": OneSplit, **PEERS}


def main():
    """Run the comparison and print its tables."""
    options = parse_options()
    models = {name: kind for name, kind in MODELS.items() if kind.installed()}
    records = []
    for size in options.sizes:
        for name in tabular_names(options.data):
            for seed in range(options.seeds):
                problem = draw(options.data, name, size, seed)
                for model, kind in models.items():
                    loss, seconds = measure(kind, problem, options.threads)
                    records.append((size, name, seed, model, loss, *seconds))
            print(f"{size} rows of {name}", flush=True)
    columns = ["rows", "data set", "seed", "model", "loss", "fit", "predict"]
    table = pd.DataFrame(records, columns=columns)
    print(by_data_set(table).to_string(float_format="{:.4g}".format))
    print(summary(table).to_string(float_format="{:.3g}".format))


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="directory of the data sets")
    add("--sizes", default=[100, 500, 1000, 2000], type=lambda s: [int(n) for n in s.split(",")])
    add("--seeds", type=int, default=3, help="number of draws")
    add("--threads", type=int, default=1, help="threads each library may use")
    return parser.parse_args()


def draw(directory, name, size, seed):
    """Return a problem of few rows, the classes of which are all in its training part."""
    problem = load_problem(directory, name, 0, seed)
    rows = np.random.RandomState(seed).permutation(len(problem.train.y))[:size]
    y = problem.train.y[rows]
    classes, counts = np.unique(y, return_counts=True)
    test = np.arange(len(problem.test.y))[:TEST_ROWS]
    strata = None
    if problem.task != "regression":
        # Some libraries cannot learn classes of which a part has no row.
        frequent = classes[counts >= 3]
        rows, test = rows[np.isin(y, frequent)], test[np.isin(problem.test.y[test], frequent)]
        strata = problem.train.y[rows]
    train, valid = train_test_split(rows, test_size=VALID_SHARE, stratify=strata, random_state=seed)

    def part(source, indices):
        target = source.y[indices]
        if problem.task != "regression":
            target = np.searchsorted(frequent, target)
        return Part(source.X.iloc[indices].reset_index(drop=True), target)

    return replace(
        problem,
        n_classes=0 if strata is None else len(frequent),
        train=part(problem.train, train),
        valid=part(problem.train, valid),
        test=part(problem.test, test),
    )


def measure(kind, problem, threads):
    """Return the loss of a model, and CPU seconds of fit and of predictions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(problem, threads, 300)
        begin = process_time()
        model.fit(problem)
        fitted = process_time()
        predicted = model.predict(problem.test.X)
        ended = process_time()
    return score_and_loss(problem, predicted)[1], (fitted - begin, ended - fitted)


def by_data_set(table):
    """Return mean losses by size, data set and model."""
    return table.pivot_table("loss", ["rows", "data set"], "model")


def summary(table):
    """Return ranks, losses relative to the reference, and times, by size and model."""
    losses = by_data_set(table)
    ranks = losses.rank(axis=1).groupby("rows").mean().stack().rename("average rank")
    logs = table.assign(loss=np.log(table["loss"])).pivot_table(
        "loss", ["rows", "data set"], "model"
    )
    relative = logs.sub(logs[REFERENCE], axis=0).groupby("rows").mean().stack() * 100
    times = table.groupby(["rows", "model"])[["fit", "predict"]].median()
    columns = {"average rank": ranks, f"loss over {REFERENCE}'s, %": relative}
    return pd.DataFrame(columns).join(times.add_suffix(", CPU s"))


if __name__ == "__main__":
    main()
