"""Measure the blocks for sequences: what they predict, and an epoch's time, against targets.

Parts, any of which can be chosen with ``--parts``:

- flights: which flights arrive late, from the schedule and what the aircraft did before. Trained on
  the months before October, stopped on October, measured from November on. Beside it stands
  LightGBM on the schedule alone, and with features of the history made by hand; both also with the
  date, month and day, which trees learn by heart.
- biofam: a list of 16 yearly family states for each of 2,000 persons, from which their sex is
  predicted, and from the first eight states a later one. Our classifier with the defaults of its
  block and without aggregates, beside LightGBM on features made by hand.
- japanesevowels, basicmotions: time series of several channels, split as in the UEA archive they
  come from; accuracy of each encoder with the same settings, and of the defaults.
- epoch: a training epoch over a bare loop on the flights; see ``sequence_speed.py``.

``--data`` names a directory with ``ev_flights.parquet``, ``ev_biofam.parquet``,
``seq_japanesevowels.parquet`` and ``seq_basicmotions.parquet``. Figures are means over seeds::

    python benchmarks/data_sets/sequences.py --data DIR
    python benchmarks/data_sets/sequences.py --data DIR --parts flights --seeds 1 --epochs 3
"""

from __future__ import annotations

import os

os.environ.pop("OMP_WAIT_POLICY", None)  # PASSIVE makes LightGBM several times slower

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

from sk_easytensor import (
    MLP,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EventSequenceBlock,
    NumericSequenceBlock,
)
from sk_easytensor.events import collect_sequences

sys.path.append(str(Path(__file__).parents[1]))
from sequence_speed import measure_epoch

PARTS = ["flights", "biofam", "japanesevowels", "basicmotions", "epoch"]

OWN = ["schedule", "carrier", "origin", "dest", "distance"]
PAST = [*OWN, "dep_delay", "arr_delay", "air_time", "cancelled"]
PAST_LISTS = [f"past_{name}" for name in PAST]
EVENTS = 16
VALID, TEST = pd.Timestamp("2013-10-01"), pd.Timestamp("2013-11-01")

ENCODERS = ["conv", "lstm", "gru", "transformer"]


@dataclass
class Target:
    """What is wanted of a figure, and what it is."""

    figure: str
    wanted: float
    measured: float
    at_most: bool = False

    def __str__(self):
        met = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        sign, outcome = "<=" if self.at_most else ">=", "met" if met else "NOT MET"
        return f"{self.figure:66}{sign} {self.wanted:<8g}{self.measured:10.4g}   {outcome}"


def main():
    """Run the parts asked for and print their tables, and then what is met."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    targets = []
    for part in options.parts:
        if part == "flights":
            targets += compare_on_flights(options)
        elif part == "biofam":
            targets += compare_on_biofam(options)
        elif part == "epoch":
            ratio = measure_epoch(
                flights_model(options), all_flights(options.data), options.rows, options.repeats
            )
            targets += [Target("epoch: time over that of a bare loop", 1.3, ratio, at_most=True)]
        else:
            targets += compare_encoders(part, options)
    print(f"\n{'figure':66}{'wanted':11}{'measured':>10}")
    print("\n".join(map(str, targets)))


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="directory of the data sets")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    add("--seeds", type=int, default=3, help="fits of each model")
    add("--threads", type=int, default=1, help="threads each library may use")
    add("--epochs", type=int, default=3, help="epochs on the flights")
    add("--rows", type=int, default=250_000, help="rows of an epoch whose time is taken")
    add("--repeats", type=int, default=3, help="turns of what is timed, after one that is not")
    return parser.parse_args()


def print_means(heading, rows):
    """Print the means over seeds, one line a model.

    Parameters
    ----------
    heading : str
        Above the table.
    rows : list of dict
        One for each fit, with its ``model`` and figures.

    Returns
    -------
    DataFrame
        The means.
    """
    means = pd.DataFrame(rows).groupby("model", sort=False).mean()
    digits = {name: "{:.1f}".format for name in ("fit s", "iterations") if name in means}
    print(f"\n{heading}")
    print(means.to_string(float_format="{:.4f}".format, formatters=digits), flush=True)
    return means


# Flights


@dataclass
class Rows:
    """Flights with what is known of them, and whether they were late."""

    X: pd.DataFrame
    y: np.ndarray


def load_flights(directory):
    """Return flights with the aircraft's history, split by time in three parts."""
    events = pd.read_parquet(Path(directory) / "ev_flights.parquet")
    # What arrived is predicted, but that a flight was cancelled is a part of the history.
    arrived = events[events["late"].notna()]
    asked = arrived[["tailnum", *OWN, "late"]]
    table = collect_sequences(
        events,
        by="tailnum",
        order_by="schedule",
        at=asked,
        columns=PAST,
        max_length=EVENTS,
    )
    parts = np.digitize(table["schedule"].astype("int64"), pd.Series([VALID, TEST]).astype("int64"))
    return [
        Rows(rows.drop(columns=["tailnum", "late"]), rows["late"].to_numpy(dtype=np.int64))
        for rows in (table[parts == part] for part in range(3))
    ]


def all_flights(directory):
    """Return all flights with the aircraft's history."""
    parts = load_flights(directory)
    X = pd.concat([part.X for part in parts], ignore_index=True)
    return Rows(X, np.concatenate([part.y for part in parts]))


def compare_on_flights(options):
    """Fit our classifier and LightGBM; return the targets."""
    train, valid, test = load_flights(options.data)
    models = {
        "EasyTensor": fit_ours,
        "EasyTensor, no aggregates": partial(fit_ours, aggregates=False),
        "EasyTensor, calendar": partial(fit_ours, calendar=["day", "week"]),
        "LightGBM, schedule": partial(fit_lightgbm, schedule_features),
        "LightGBM, schedule and date": partial(fit_lightgbm, with_date(schedule_features)),
        "LightGBM, history by hand": partial(fit_lightgbm, history_features),
        "LightGBM, history by hand and date": partial(fit_lightgbm, with_date(history_features)),
    }
    rows = []
    for seed in range(options.seeds):
        for name, fit in models.items():
            begin = time.perf_counter()
            predict, iterations = fit(train, valid, seed, options)
            row = {"model": name, "fit s": time.perf_counter() - begin, "iterations": iterations}
            for part, label in ((valid, "October"), (test, "test")):
                probability = predict(part.X)[:, 1]
                row[f"{label} AUC"] = roc_auc_score(part.y, probability)
                row[f"{label} log loss"] = log_loss(part.y, probability)
            rows.append(row)
    sizes = ", ".join(f"{len(part.y):,}" for part in (train, valid, test))
    means = print_means(f"flights ({sizes} rows), {options.seeds} seeds", rows)
    ours = means.loc["EasyTensor"]
    return [
        Target("flights: AUC", 0.655, ours["test AUC"]),
        Target("flights: log loss", 0.54, ours["test log loss"], at_most=True),
    ]


def flights_model(options, seed=0, **params):
    """Return our classifier, with the defaults of its blocks but for some of the history."""
    return EasyTensorClassifier(
        [
            ("history", EventSequenceBlock(now="schedule", **params), [*PAST_LISTS, "schedule"]),
            # The test follows the training in time, where neither a trend nor what happened on
            # each day of a month is of any use.
            ("schedule", DatetimeBlock(cycles=["day", "week"], trend=False), "schedule"),
        ],
        max_epochs=options.epochs,
        random_state=seed,
        n_jobs=options.threads,
    )


def fit_ours(train, valid, seed, options, **params):
    """Fit on the columns as they are."""
    model = flights_model(options, seed, **params).fit(
        train.X, train.y, eval_set=[(valid.X, valid.y)]
    )
    return model.predict_proba, model.best_iteration_


def fit_lightgbm(features, train, valid, seed, options):
    """Fit LightGBM on features made of the columns, stopping early on October."""
    import lightgbm

    model = lightgbm.LGBMClassifier(
        n_estimators=2000, n_jobs=options.threads, random_state=seed, verbose=-1
    )
    stopping = lightgbm.early_stopping(50, verbose=False)
    with warnings.catch_warnings():
        # The newest LightGBM has another name for eval_set, which older ones do not know.
        warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")
        model.fit(
            features(train.X),
            train.y,
            eval_set=[(features(valid.X), valid.y)],
            callbacks=[stopping],
        )
    return lambda X: model.predict_proba(features(X)), model.best_iteration_


def schedule_features(X):
    """Return what the schedule says of a flight, but for the date; no later flight shares it."""
    schedule = X["schedule"].dt
    table = X[["carrier", "origin", "dest", "distance"]].copy()
    table["hour"] = schedule.hour + schedule.minute / 60
    table["weekday"] = schedule.day_of_week
    return table


def with_date(features):
    """Return a function that adds month and day to features."""

    def dated(X):
        return features(X).assign(month=X["schedule"].dt.month, day=X["schedule"].dt.day)

    return dated


def history_features(X):
    """Return the features of the schedule and some of the last flights."""
    table = schedule_features(X)
    departure = latest(X["past_dep_delay"], 3)
    arrival = latest(X["past_arr_delay"], 10)
    when = latest(X["past_schedule"], 3)
    schedule = X["schedule"].to_numpy()[:, None]
    gaps = (schedule - when) / np.timedelta64(1, "h")
    for back in range(3):
        table[f"dep_delay_{back + 1}"] = departure[:, back]
        table[f"arr_delay_{back + 1}"] = arrival[:, back]
        table[f"hours_since_{back + 1}"] = gaps[:, back]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        table["mean_arr_delay"] = np.nanmean(arrival, axis=1)
    return table


def latest(lists, number):
    """Return the last items of each list, the latest first, as a matrix with gaps."""
    items = lists.list.flatten().to_numpy()
    stop = lists.list.len().to_numpy(dtype=np.int64)
    start, stop = np.cumsum(stop) - stop, np.cumsum(stop)
    places = stop[:, None] - 1 - np.arange(number)
    known = places >= start[:, None]
    nothing = np.datetime64("NaT") if items.dtype.kind == "M" else np.nan
    return np.where(known, items[np.where(known, places, 0)], nothing)


# States


EARLY, LATER = 8, 12
"""Number of states that are known, and index of the state that is predicted."""


def compare_on_biofam(options):
    """Fit our classifier and LightGBM to states at yearly ages; return no targets."""
    table = pd.read_parquet(Path(options.data) / "ev_biofam.parquet")
    states = np.array(table["states"].tolist())
    tasks = {
        "sex": (states, table["sex"].to_numpy()),
        "the state at a later age": (states[:, :EARLY], states[:, LATER]),
    }
    models = {
        "EasyTensor": partial(fit_states, {}),
        "EasyTensor, no aggregates": partial(fit_states, {"aggregates": False}),
        "EasyTensor, aggregates and transformer": partial(fit_states, {"encoder": "transformer"}),
        "LightGBM, features by hand": fit_lightgbm_to_states,
    }
    for task, (known, target) in tasks.items():
        rows = []
        for seed in range(options.seeds):
            train, test = train_test_split(np.arange(len(known)), random_state=seed)
            # One person has a state that nobody else has.
            test = test[np.isin(target[test], target[train])]
            for name, fit in models.items():
                begin, used = time.perf_counter(), time.process_time()
                model, probability = fit(known, target, train, test, seed, options)
                row = {"model": name, "fit s": time.perf_counter() - begin}
                row["CPU s"] = time.process_time() - used
                row["log loss"] = log_loss(target[test], probability, labels=model.classes_)
                rows.append(row)
        print_means(f"biofam: {task} ({len(train):,} rows), {options.seeds} seeds", rows)
    return []


def fit_states(params, states, target, train, test, seed, options):
    """Fit our classifier to the lists as they are."""
    X = pd.DataFrame({"states": states.tolist()})
    block = CategorySequenceBlock(**params)
    model = EasyTensorClassifier(
        [("states", block, "states")], random_state=seed, n_jobs=options.threads
    )
    model.fit(X.iloc[train], target[train])
    return model, model.predict_proba(X.iloc[test])


def fit_lightgbm_to_states(states, target, train, test, seed, options):
    """Fit LightGBM to counts, latest states and changes, stopping early on a part of the rows."""
    import lightgbm

    X = state_features(states)
    fitted, valid = train_test_split(train, test_size=0.15, random_state=seed)
    model = lightgbm.LGBMClassifier(
        n_estimators=2000, n_jobs=options.threads, random_state=seed, verbose=-1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")
        model.fit(
            X.iloc[fitted],
            target[fitted],
            eval_set=[(X.iloc[valid], target[valid])],
            callbacks=[lightgbm.early_stopping(50, verbose=False)],
        )
    return model, model.predict_proba(X.iloc[test])


def state_features(states):
    """Return how long each state lasted, the last three, the changes and the length of the last."""
    known = sorted(set(states.ravel()))
    table = pd.DataFrame({f"n_{state}": (states == state).sum(1) for state in known})
    for back in range(3):
        table[f"last_{back}"] = pd.Categorical(states[:, -1 - back], known)
    table["changes"] = (states[:, 1:] != states[:, :-1]).sum(1)
    table["distinct"] = (table[[f"n_{state}" for state in known]] > 0).sum(1)
    other = states[:, ::-1] != states[:, -1:]
    table["run"] = np.where(other.any(1), other.argmax(1), states.shape[1])
    return table


# Time series


def compare_encoders(name, options):
    """Fit a classifier with each encoder to a data set of the archive; return the targets."""
    table = pd.read_parquet(Path(options.data) / f"seq_{name}.parquet")
    channels = [column for column in table if column not in ("label", "split")]
    train, test = (table[table["split"] == split] for split in ("train", "test"))
    same = {
        "trunk": MLP(layers=0),
        "learning_rate": 1e-3,
        "validation_fraction": None,
        "max_epochs": 60,
    }
    models = {encoder: (NumericSequenceBlock(encoder), same) for encoder in ENCODERS}
    models["defaults"] = (NumericSequenceBlock(), {})
    rows = []
    for seed in range(options.seeds):
        for model, (block, settings) in models.items():
            classifier = EasyTensorClassifier(
                [("series", block, channels)],
                random_state=seed,
                n_jobs=options.threads,
                **settings,
            )
            begin = time.perf_counter()
            classifier.fit(train[channels], train["label"])
            seconds = time.perf_counter() - begin
            accuracy = accuracy_score(test["label"], classifier.predict(test[channels]))
            rows.append({"model": model, "fit s": seconds, "accuracy": accuracy})
    sizes = f"{len(train)} and {len(test)} rows, {len(channels)} channels"
    means = print_means(f"{name} ({sizes}), {options.seeds} seeds", rows)["accuracy"]
    best = f"{name}: accuracy of the best encoder"
    if name == "basicmotions":
        return [Target(best, 0.95, means[ENCODERS].max())]
    return [
        Target(f"{name}: accuracy of lstm", 0.97, means["lstm"]),
        Target(best, 0.99, means[ENCODERS].max()),
    ]


if __name__ == "__main__":
    main()
