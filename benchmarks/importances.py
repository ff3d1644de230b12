"""The cost of permutation importances: on encoded columns, against scikit-learn's on the table.

    python benchmarks/importances.py [--rows 4000] [--repeats 5] [--turns 3]

Both shuffle each of 20 columns of one fitted model's table as often and ask the same scorer.
Of the tables, ``numbers`` has numbers and categories only, where nearly all time goes into the
trunk; ``mixed`` has dates, texts and lists too, which scikit-learn's function has read anew for
each shuffle.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.inspection import permutation_importance as on_the_table
from turns import median_ratio, time_by_turns

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.inspection import permutation_importance as on_the_encoding

WORDS = np.array(
    ["sun", "moon", "tea", "cat", "dog", "red", "green", "blue", "cold", "warm", "wool"]
)


def make_table(kind, n_rows, seed=0):
    """Return 20 columns, some of which matter, and two classes."""
    rng = np.random.default_rng(seed)
    mixed = kind == "mixed"
    columns = {f"number_{i}": rng.normal(size=n_rows) for i in range(8 if mixed else 14)}
    for index in range(5 if mixed else 6):
        shares = rng.dirichlet(np.ones(4 + 4 * index))
        columns[f"category_{index}"] = rng.choice(len(shares), n_rows, p=shares).astype(str)
    score = columns["number_0"] + columns["number_1"] * columns["number_2"]
    score += (
        0.5 * columns["number_3"] + (columns["category_0"] == "0") - (columns["category_2"] == "1")
    )
    if mixed:
        days = rng.integers(0, 700, (2, n_rows)).astype("timedelta64[D]")
        columns |= {f"day_{i}": np.datetime64("2023-01-01") + days[i] for i in range(2)}
        texts = WORDS[rng.integers(0, len(WORDS), (2, n_rows, 25))]
        columns |= {f"text_{i}": [" ".join(words) for words in texts[i]] for i in range(2)}
        score += 0.5 * (texts[0] == "tea").sum(1)
        # Not parallel: scikit-learn's cannot shuffle one list column of several of one length.
        for name in ("bought", "seen"):
            columns[name] = make_lists(rng, n_rows, lambda size: rng.choice(list("pqrstuv"), size))
        columns["paid"] = make_lists(rng, n_rows, rng.exponential)
        score += np.array([0.2 * (items == "p").sum() for items in columns["bought"]])
    return pd.DataFrame(columns), score > np.median(score)


def make_lists(rng, n_rows, draw):
    """Return a list of 1 to 29 values for each row."""
    lengths = rng.integers(1, 30, n_rows)
    values = draw(size=lengths.sum())
    return np.split(values, np.cumsum(lengths)[:-1])


def compare(kind, n_rows, n_repeats, turns):
    """Print seconds, their ratio, and how well both agree."""
    X, y = make_table(kind, 2 * n_rows)
    assert X.shape[1] == 20
    model = EasyTensorClassifier(max_epochs=5, random_state=0).fit(X[:n_rows], y[:n_rows])
    X, y, found = X[n_rows:], y[n_rows:], {}

    def timed(name, function):
        how = {"scoring": "neg_log_loss", "n_repeats": n_repeats, "random_state": 0}

        def call():
            found[name] = function(model, X, y, **how).importances_mean

        return call

    functions = {
        "table": timed("table", on_the_table),
        "encoding": timed("encoding", on_the_encoding),
    }
    wall, cpu = time_by_turns(functions, turns)
    print(f"{kind}: {n_rows} rows, {X.shape[1]} columns, {n_repeats} repeats")
    print(f"  scikit-learn, on the table   {np.median(wall['table']):8.2f} s")
    print(f"  sk_easytensor, encoded       {np.median(wall['encoding']):8.2f} s")
    print(f"  times faster (wall)          {median_ratio(wall['table'], wall['encoding']):8.1f}")
    print(f"  times faster (CPU)           {median_ratio(cpu['table'], cpu['encoding']):8.1f}")
    print(f"  rank correlation             {spearmanr(found['table'], found['encoding'])[0]:8.3f}")
    difference = np.abs(found["table"] - found["encoding"]).max()
    print(f"  largest difference           {difference:8.4f} of {found['table'].max():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=["numbers", "mixed"])
    arguments = parser.parse_args()
    for kind in arguments.tables:
        compare(kind, arguments.rows, arguments.repeats, arguments.turns)
