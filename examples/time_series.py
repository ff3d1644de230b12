# ci: quick
"""Time series of unequal length
=============================

Classify time series of several channels and unequal length, without features made by hand.

The series are made up. Each has a load and a temperature, as of a machine that runs for a while,
with a few bursts of both: in one class each burst of the load comes right before one of the
temperature, in the other right after it. What tells the classes apart is thus the order of things,
in noise and on a drift, which means, extremes and correlations do not show.
"""

import time

import lightgbm
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

from sk_easytensor import EasyTensorClassifier, NumericSequenceBlock

CHANNELS = ["load", "temperature"]
BURST = 4


def main():
    """Fit and compare."""
    series, first = make_series(1500)
    steps = series["load"].map(len)
    print(f"{len(series)} made-up series of {steps.min()} to {steps.max()} steps, two channels\n")
    X, X_test, y, y_test = train_test_split(series, first, test_size=500, random_state=0)

    model = EasyTensorClassifier(
        # The channels of one block are read together, step by step.
        [("series", NumericSequenceBlock(), CHANNELS)],
        max_epochs=15,
        random_state=0,
    )
    trees = lightgbm.LGBMClassifier(n_jobs=1, random_state=0, verbose=-1)
    summaries, test_summaries = summarize(X), summarize(X_test)
    results = {
        "EasyTensor on the series": measure(model, X, y, X_test, y_test),
        "LightGBM on summaries": measure(trees, summaries, y, test_summaries, y_test),
    }
    print(pd.DataFrame(results).T.to_string(float_format="{:.3f}".format))


def make_series(n_series, seed=0):
    """Make series up: lists of unequal length in two columns, and the class of each."""
    random = np.random.default_rng(seed)
    loads, temperatures, first = [], [], []
    for _ in range(n_series):
        n_steps = random.integers(40, 160)
        load, temperature = random.normal(0, 0.7, (2, n_steps))
        temperature += np.linspace(0, random.normal(), n_steps)
        order = [load, temperature] if random.integers(2) else [temperature, load]
        for _ in range(random.integers(2, 5)):
            start = random.integers(0, n_steps - 2 * BURST)
            for channel in order:
                channel[start : start + BURST] += random.uniform(1, 3)
                start += BURST
        loads.append(load)
        temperatures.append(temperature)
        first.append("load" if order[0] is load else "temperature")
    return pd.DataFrame({"load": loads, "temperature": temperatures}), np.array(first)


def summarize(series):
    """Return statistics of each channel, as one would make for trees."""
    statistics = {
        "mean": np.mean,
        "deviation": np.std,
        "lowest": np.min,
        "highest": np.max,
        "last": lambda steps: steps[-1],
        "change": lambda steps: steps[-1] - steps[0],
        "roughness": lambda steps: np.abs(np.diff(steps)).mean(),
    }
    columns = {
        f"{channel}_{name}": series[channel].map(function)
        for channel in CHANNELS
        for name, function in statistics.items()
    }
    columns["steps"] = series["load"].map(len)
    columns["correlation"] = [
        np.corrcoef(load, temperature)[0, 1]
        for load, temperature in zip(series["load"], series["temperature"], strict=True)
    ]
    return pd.DataFrame(columns)


def measure(model, X, y, X_test, y_test):
    """Fit a model and measure it on held-out series."""
    begin = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - begin
    return {
        "accuracy": accuracy_score(y_test, model.predict(X_test)),
        "log loss": log_loss(y_test, model.predict_proba(X_test)),
        "fit seconds": seconds,
    }


if __name__ == "__main__":
    main()
