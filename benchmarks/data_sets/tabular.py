"""Compare the default EasyTensor estimators with gradient-boosted trees on tabular data sets.

Each data set is sampled (``--rows``), split 64/16/20 and given to every model, which stops early on
the 16% and is measured on the 20%, once a seed. EasyTensor gets the table as it is stored; what the
other libraries need is in ``peers.py`` and ``neural_peers.py``. Times are in seconds and include
all preparation; they mean something only on a machine that does nothing else, because waiting
threads spin.

``--data`` names a directory with one ``NAME.parquet`` a data set and a ``datasets.json``::

    {"adult": {"modality": "tabular", "task": "binary", "target": "income",
               "columns": {"age": "numeric", "workclass": "category"}},
     ...}

For example, all models on everything, and then only ours beside the others' earlier results::

    python benchmarks/data_sets/tabular.py --data DIR --cache peers.json
    python benchmarks/data_sets/tabular.py --data DIR --cache peers.json --datasets adult,california
"""

from __future__ import annotations

import os

os.environ.pop("OMP_WAIT_POLICY", None)  # PASSIVE makes LightGBM several times slower

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from dataclasses import asdict

import numpy as np
from neural_peers import NEURAL_PEERS
from peers import PEERS, Peer
from problems import load_problem, tabular_names
from records import Cache, Record, dataset_table, record_key, summary_table
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, root_mean_squared_error

OURS = "EasyTensor"
DEFAULT_MODELS = f"{OURS},LightGBM,XGBoost,CatBoost,HistGB"

PREDICT_REPEATS, PREDICT_SECONDS = 5, 0.25
"""The test part is predicted so often, and for so long, at least."""


class EasyTensor(Peer):
    """EasyTensor on the table as it is."""

    library = "sk_easytensor"

    def _make(self, problem):
        from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor

        kind = EasyTensorRegressor if problem.task == "regression" else EasyTensorClassifier
        return kind(random_state=problem.seed, n_jobs=self.threads, verbose=0)

    def fit(self, problem):
        valid = (problem.valid.X, problem.valid.y)
        self.model_.fit(problem.train.X, problem.train.y, eval_set=[valid])

    def _prepare(self, X):
        return X

    def iterations(self):
        return int(self.model_.best_iteration_)


MODELS = {OURS: EasyTensor} | PEERS | NEURAL_PEERS


def main():
    """Run the comparison and print its tables."""
    options = parse_options()
    names = chosen(options.datasets, tabular_names(options.data), "data set")
    models = [m for m in chosen(options.models, list(MODELS), "model") if is_installed(m)]
    cache = Cache(options.cache)
    records = []
    warm_up(models, options)
    for name in names:
        runs = [
            run(model, name, seed, options, cache)
            for seed in range(options.seeds)
            for model in models
            if (model, name) not in options.skip
        ]
        if runs:
            records += runs
            print_dataset(name, runs)
    if records:
        print(f"\nall ({len(names)} data sets; ranks of means over {options.seeds} seeds)")
        print(summary_table(records).to_string(float_format="{:.3f}".format))
        others = {r.model for r in records if r.threads != options.threads}
        if others:
            print(f"cached from runs with another number of threads: {', '.join(sorted(others))}")
    if options.output:
        write_output(options, records)


def warm_up(models, options):
    """Fit each model once on few rows, so that no first fit pays for what libraries import."""
    name = tabular_names(options.data)[0]
    for model in models:
        problem = load_problem(options.data, name, 200, 0)
        measure(model, MODELS[model].version(), problem, options)


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="directory of the data sets")
    add("--datasets", default="all", help="names, comma-separated")
    add("--models", default=DEFAULT_MODELS, help=f"any of {','.join(MODELS)}")
    add("--rows", type=int, default=10_000, help="rows sampled from each data set; 0 for all")
    add("--seeds", type=int, default=3, help="number of samples and splits")
    add("--threads", type=int, default=2, help="threads each library may use")
    add("--skip", default="", help="MODEL:DATASET pairs to leave out, comma-separated")
    add("--time-limit", type=float, default=300, help="seconds after which CatBoost stops")
    add("--cache", help="JSON file with the peers' results, read and added to")
    add("--output", help="JSON file to write all results to")
    options = parser.parse_args()
    options.skip = {tuple(pair.split(":")) for pair in options.skip.split(",") if pair}
    return options


def chosen(wanted, known, what):
    """Select names from a comma-separated list, in the order of the known ones."""
    if wanted == "all":
        return known
    wanted = wanted.split(",")
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"unknown {what}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [name for name in known if name in wanted]


def is_installed(model):
    """Whether a model's library can be imported; says so if not."""
    installed = MODELS[model].installed()
    if not installed:
        print(f"{model} is not installed and left out")
    return installed


def run(model, name, seed, options, cache):
    """Take one result from the cache, or fit and measure; ours is always measured."""
    version = MODELS[model].version()
    key = record_key(model, version, name, options.rows, seed)
    record = None if model == OURS else cache.get(key)
    if record is None:
        problem = load_problem(options.data, name, options.rows, seed)
        record = measure(model, version, problem, options)
        if model != OURS:
            cache.add(record)
    return record


def measure(model, version, problem, options):
    """Fit one model on one problem and measure it on the test part."""
    fitted = MODELS[model](problem, options.threads, options.time_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        fitted.fit(problem)
        fit_seconds = time.perf_counter() - begin
        predict_seconds = []
        while len(predict_seconds) < PREDICT_REPEATS or sum(predict_seconds) < PREDICT_SECONDS:
            begin = time.perf_counter()
            predicted = fitted.predict(problem.test.X)
            predict_seconds.append(time.perf_counter() - begin)
    score, loss = score_and_loss(problem, predicted)
    calibration = math.nan
    if problem.task != "regression":
        calibration = calibration_error(problem.test.y, predicted)
    return Record(
        model=model,
        version=version,
        dataset=problem.name,
        rows=options.rows,
        seed=problem.seed,
        threads=options.threads,
        metric=problem.metric,
        score=score,
        loss=loss,
        fit_seconds=fit_seconds,
        predict_seconds=statistics.median(predict_seconds),
        iterations=fitted.iterations(),
        note=fitted.note,
        calibration=calibration,
    )


def score_and_loss(problem, predicted):
    """Primary metric, and log loss or RMSE."""
    y = problem.test.y
    if problem.task == "regression":
        error = float(root_mean_squared_error(y, predicted))
        return error, error
    loss = float(log_loss(y, predicted, labels=np.arange(problem.n_classes)))
    if problem.task == "binary":
        return float(roc_auc_score(y, predicted[:, 1])), loss
    return float(accuracy_score(y, predicted.argmax(axis=1))), loss


def calibration_error(y, probabilities, bins=15):
    """Expected calibration error of the predicted class (Guo et al., 2017), over equal bins."""
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == y
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def print_dataset(name, records):
    """Print the table of one data set, and what is to be said of single runs."""
    table = dataset_table(records)
    formats = dict.fromkeys(["fit s", "fit ratio", "predict ratio"], "{:.2f}".format)
    digits = "{:.1f}" if records[0].score > 100 else "{:.4f}"
    print(f"\n{name}")
    print(table.to_string(float_format=digits.format, formatters=formats), flush=True)
    for record in records:
        if record.note:
            print(f"{record.model}, seed {record.seed}: {record.note}", flush=True)


def write_output(options, records):
    """Write settings, single results and the summary as JSON."""
    settings = {"rows": options.rows, "seeds": options.seeds, "threads": options.threads}
    summary = json.loads(summary_table(records).to_json(orient="index")) if records else {}
    content = {"settings": settings, "summary": summary, "records": [asdict(r) for r in records]}
    with open(options.output, "w") as file:
        json.dump(content, file, indent=1)


if __name__ == "__main__":
    main()
