"""Predictions of a small model of each estimator, kept to compare changes of the code with.

``python tests/pinned.py`` compares bit for bit with those of ``tests/fixtures/pinned.json``, which
only holds for the kind of processor that wrote them; ``--write`` writes them anew.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    EasyTensorTwoTower,
)

KEPT = Path(__file__).parent / "fixtures" / "pinned.json"
QUICK = {
    "trees": BoostedTrees(max_iter=10),
    "max_epochs": 2,
    "n_folds": None,
    "batch_size": 32,
    "random_state": 0,
}
N_ROWS = 8
"""Rows whose predictions are kept."""


def make_table(n_rows=120):
    """Return columns of every kind and a number that depends on some of them."""
    rng = np.random.default_rng(0)
    words = ["good", "bad", "dress", "fits", "red", "blue"]
    X = pd.DataFrame(
        {
            "amount": rng.normal(size=n_rows),
            "count": rng.integers(0, 9, n_rows),
            "city": rng.choice(["Oslo", "Lima", "Rome"], n_rows),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 500, n_rows), "D"),
            "text": [" ".join(rng.choice(words, 5)) for _ in range(n_rows)],
            "vector": list(rng.normal(size=(n_rows, 3))),
            "items": [list(rng.choice(["a", "b", "c"], k)) for k in rng.integers(0, 5, n_rows)],
            "series": [list(rng.normal(size=k)) for k in rng.integers(1, 7, n_rows)],
        }
    )
    y = (X["amount"] + (X["city"] == "Oslo") + 0.3 * rng.normal(size=n_rows)).to_numpy()
    X.loc[::10, ["amount", "city"]] = None
    return X, y


def predictions():
    """Return the predictions of each estimator, by name."""
    torch.set_num_threads(1)
    X, y = make_table()
    new = X[:N_ROWS]
    found = {}
    model = EasyTensorClassifier(**QUICK).fit(X, np.digitize(y, [0, 1]))
    found["classifier"] = model.predict_proba(new)
    # Not embeddings of the classifier: a unit without a gradient follows rounding, at full rate.
    found["classifier, importances"] = model.feature_importances_
    numbers = X[["amount", "count", "city"]]
    model = EasyTensorRegressor(trunk=MLP(width=16), loss="squared_error", **QUICK).fit(numbers, y)
    found["regressor"] = model.predict(new)
    model = EasyTensorRegressor(loss="quantile", quantile=0.9, **QUICK).fit(numbers, y)
    found["quantile"] = model.predict(new)
    tasks = {"high": "binary", "amount": "squared_error"}
    targets = pd.DataFrame({"high": y > 0, "amount": y})
    model = EasyTensorMultiTask(tasks, **QUICK).fit(numbers, targets)
    found["multi-task"] = model.predict(new).astype(float).to_numpy()
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame({"user": rng.integers(0, 12, 200), "item": rng.integers(0, 9, 200)})
    quick = {"max_epochs": 2, "batch_size": 32, "random_state": 0, "embedding_dim": 8}
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(), "user")], [("item", CategoryBlock(), "item")], **quick
    ).fit(pairs)
    found["two towers"] = model.decision_function(pairs[:N_ROWS])
    log = pd.DataFrame(
        {
            "user": rng.integers(0, 20, 300),
            "time": rng.integers(0, 10**6, 300),
            "kind": rng.choice(["view", "buy", "cart"], 300),
        }
    )
    model = EasyTensorEmbedder(**quick).fit(log, user="user", time="time")
    found["embedder"] = model.transform(log)[:N_ROWS]
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def kept():
    """Return the predictions that are kept, by name."""
    return {name: np.array(values) for name, values in json.loads(KEPT.read_text()).items()}


def main():
    found = predictions()
    if "--write" in sys.argv:
        # The shortest decimals that are read as the same numbers.
        text = json.dumps({name: values.tolist() for name, values in found.items()}, indent=1)
        KEPT.write_text(f"{text}\n")
        return
    expected = kept()
    differ = [name for name in expected if not np.array_equal(found.get(name), expected[name])]
    print(f"other predictions: {differ}" if differ else "all predictions are the same")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
