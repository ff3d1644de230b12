# ci: quick
"""Events: late flights from a log
===============================

Predict from a log of events: which flights arrive late, by what the aircraft did before.

The log has one row for each flight. ``collect_sequences`` gives every flight the aircraft's earlier
ones, as columns of lists, and ``EventSequenceBlock`` reads them as they are: when, where, how late.
Beside it stand gradient-boosted trees that know the schedule alone, as one would have without the
history or features made of it by hand.

Run it with ``python examples/event_sequences.py``; it takes half a minute.
"""

import time
import warnings

import lightgbm
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

from sk_easytensor import DatetimeBlock, EasyTensorClassifier, EventSequenceBlock
from sk_easytensor.datasets import load_flights
from sk_easytensor.events import collect_sequences

OWN = ["schedule", "carrier", "origin", "dest", "distance"]
PAST = [*OWN, "dep_delay", "arr_delay", "air_time", "cancelled"]
VALID, TEST = pd.Timestamp("2013-10-01"), pd.Timestamp("2013-11-01")


def main():
    """Fit both, print the comparison and what our model relies on."""
    X, y = load_histories()
    train, valid, test = (
        X["schedule"] < VALID,
        (X["schedule"] >= VALID) & (X["schedule"] < TEST),
        X["schedule"] >= TEST,
    )
    print(f"{train.sum()} flights to train on, {valid.sum()} to stop on, {test.sum()} held out")
    example = X[train].iloc[-1]
    print(f"a flight of {example['schedule']} to {example['dest']}; the aircraft's last ones:")
    shown = ["schedule", "origin", "dest", "dep_delay", "arr_delay"]
    print(pd.DataFrame({name: list(example[f"past_{name}"])[-4:] for name in shown}), "\n")

    history = [f"past_{name}" for name in PAST]
    model = EasyTensorClassifier(
        [
            # The schedule says how long ago the events were, ...
            ("history", EventSequenceBlock(now="schedule"), [*history, "schedule"]),
            # ... and the hour and weekday of the flight. What is predicted is later than all that
            # was learned from, so that trend and date would lead astray.
            ("schedule", DatetimeBlock(cycles=["day", "week"], trend=False), "schedule"),
        ],
        max_epochs=2,
        random_state=0,
        verbose=1,
    )
    results = {}
    begin = time.perf_counter()
    model.fit(X[train], y[train], eval_set=[(X[valid], y[valid])])
    seconds = time.perf_counter() - begin
    results["EasyTensor, with the history"] = measure(model, X[test], y[test], seconds)

    begin = time.perf_counter()
    schedule = schedule_features(X)
    trees = fit_lightgbm(schedule[train], y[train], schedule[valid], y[valid])
    seconds = time.perf_counter() - begin
    results["LightGBM, without it"] = measure(trees, schedule[test], y[test], seconds)

    print("\nFrom November on:")
    print(pd.DataFrame(results).T.to_string(float_format="{:.4f}".format))
    importances = pd.Series(model.feature_importances_, index=model.feature_names_in_)
    print("\nWhat the model relies on:")
    print(importances[importances > 0].sort_values(ascending=False).to_string())


def load_histories():
    """Return flights, each with the aircraft's last sixteen as lists, and whether it was late."""
    flights = load_flights()
    X = collect_sequences(
        flights.events,
        by="tailnum",
        order_by="schedule",
        at=flights.data[["tailnum", *OWN]],
        columns=PAST,
        max_length=16,
    )
    # The aircraft itself is left out: its history says what there is to know.
    return X.drop(columns="tailnum"), flights.target


def schedule_features(X):
    """Return what the schedule says of a flight, categories as LightGBM takes them."""
    table = X[["carrier", "origin", "dest"]].astype("category")
    schedule = X["schedule"].dt
    hour = schedule.hour + schedule.minute / 60
    return table.assign(distance=X["distance"], hour=hour, weekday=schedule.day_of_week)


def fit_lightgbm(X, y, X_valid, y_valid):
    """Fit LightGBM with early stopping."""
    model = lightgbm.LGBMClassifier(n_estimators=2000, n_jobs=1, random_state=0, verbose=-1)
    stopping = lightgbm.early_stopping(50, verbose=False)
    with warnings.catch_warnings():
        # The newest LightGBM has another name for eval_set, which older ones do not know.
        warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")
        return model.fit(X, y, eval_set=[(X_valid, y_valid)], callbacks=[stopping])


def measure(model, X, y, seconds):
    """Metrics on held-out flights."""
    probability = model.predict_proba(X)[:, 1]
    return {
        "AUC": roc_auc_score(y, probability),
        "log loss": log_loss(y, probability),
        "fit seconds": seconds,
    }


if __name__ == "__main__":
    main()
