"""Time a grid search with one worker and with several.

A search over eight candidates and two folds runs with ``n_jobs=1`` and ``n_jobs=2`` in turn. Each
fit bounds its own threads, so that workers do not fight over cores: with more workers the search
should take less time, never more. Prints the seconds of each run and the median ratio::

    python benchmarks/search.py --rows 4000 --jobs 2 --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV

from sk_easytensor import EasyTensorClassifier, NumericBlock

GRID = {
    "blocks__numbers__bins": [16, 64],
    "trunk__dropout": [0.0, 0.2],
    "learning_rate": [1e-3, 3e-3],
}


def main():
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4000, help="rows of the generated table")
    parser.add_argument("--jobs", type=int, default=2, help="workers to compare with one")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each fit")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    options = parser.parse_args()

    X, y = make_data(options.rows)
    # The workers' start is paid once a session, not once a search.
    search(X[:100], y[:100], options.jobs, epochs=1)
    ratios = []
    for _ in range(options.repeats):
        alone = search(X, y, 1, options.epochs)
        together = search(X, y, options.jobs, options.epochs)
        ratios.append(together / alone)
        print(f"n_jobs=1 {alone:6.1f} s   n_jobs={options.jobs} {together:6.1f} s")
    print(f"n_jobs={options.jobs} over n_jobs=1: {statistics.median(ratios):.2f}")


def make_data(n_rows):
    """Return a table of numbers and categories, and classes that depend on both."""
    random = np.random.default_rng(0)
    X = pd.DataFrame(random.normal(size=(n_rows, 8)), columns=list("abcdefgh"))
    X["kind"] = random.choice(["red", "green", "blue"], n_rows)
    y = (X["a"] * X["b"] + (X["kind"] == "red") + random.normal(size=n_rows) > 0.3).to_numpy()
    return X, y


def search(X, y, n_jobs, epochs):
    """Return the seconds that a grid search takes."""
    model = EasyTensorClassifier(
        [("numbers", NumericBlock(), list("abcdefgh"))], max_epochs=epochs, random_state=0
    )
    start = time.perf_counter()
    GridSearchCV(model, GRID, cv=2, n_jobs=n_jobs, refit=False).fit(X, y)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
