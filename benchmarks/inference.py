"""Time predictions from raw columns: an exported model, torch, LightGBM and CatBoost.

Run with ``python benchmarks/inference.py``. The rows are made up: 8 numbers, 6 columns of 20
strings. All use one thread. Times are medians; the last column is the time over LightGBM's for as
many rows.
"""

import tempfile
import time

import lightgbm
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.inference import load

TREES = 500
STRINGS = [f"c{index}" for index in range(6)]


def make_rows(n_rows, seed=0):
    rng = np.random.default_rng(seed)
    numbers = {f"x{index}": rng.normal(size=n_rows) for index in range(8)}
    values = [f"v{value}" for value in range(20)]
    frame = pd.DataFrame({**numbers, **{name: rng.choice(values, n_rows) for name in STRINGS}})
    score = frame["x0"] + (frame["c0"] > "v2") + rng.normal(size=n_rows)
    return frame, (score > score.median()).to_numpy()


def milliseconds(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def main():
    X, y = make_rows(5_000)
    torch_model = EasyTensorClassifier(max_epochs=2, random_state=0).fit(X, y)
    with tempfile.TemporaryDirectory() as folder:
        predictor = load(torch_model.to_onnx(f"{folder}/model.onnx"))
    categories = dict.fromkeys(STRINGS, "category")
    trees = lightgbm.LGBMClassifier(n_estimators=TREES, n_jobs=1, verbose=-1)
    trees.fit(X.astype(categories), y)
    known = {name: X[name].astype("category").dtype for name in STRINGS}
    boosted = CatBoostClassifier(
        iterations=TREES, cat_features=STRINGS, thread_count=1, verbose=False
    ).fit(X, y)
    for n_rows, repeats in ((1, 200), (100, 50), (100_000, 3)):
        rows = make_rows(n_rows, seed=1)[0]
        records = rows.to_dict("records")
        timed = {
            "LightGBM": lambda rows=rows: trees.predict_proba(rows.astype(known)),
            "CatBoost": lambda rows=rows: boosted.predict_proba(rows, thread_count=1),
            "EasyTensor, torch": lambda rows=rows: torch_model.predict_proba(rows),
            "EasyTensor, ONNX": lambda rows=rows: predictor.predict_proba(rows),
        }
        if n_rows == 1:
            timed["EasyTensor, ONNX, dict"] = lambda rows=records: predictor.predict_proba(rows)
        found = {name: milliseconds(predict, repeats) for name, predict in timed.items()}
        for name, elapsed in found.items():
            ratio = elapsed / found["LightGBM"]
            print(f"{n_rows:>7} rows  {name:<24}{elapsed:>12.2f} ms{ratio:>8.2f}")


if __name__ == "__main__":
    main()
