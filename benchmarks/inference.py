"""Time predictions from raw columns: an exported model, engines, LightGBM and CatBoost.

Run with ``python benchmarks/inference.py``; ``--rows 1 --trees 20`` is a quick look. The rows are
made up: 8 numbers, 6 columns of 20 strings. All use one thread. Times are medians; the last column
is the time over LightGBM's for as many rows. "LightGBM, numbers" is the same number of trees on
the numbers alone, which need no preparation.
"""

import argparse
import tempfile
import time

import lightgbm
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.inference import load

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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 100, 100_000])
    parser.add_argument("--trees", type=int, default=500)
    options = parser.parse_args()
    X, y = make_rows(5_000)
    torch_model = EasyTensorClassifier(max_epochs=2, random_state=0).fit(X, y)
    engine_model = EasyTensorClassifier(
        max_epochs=2, random_state=0, inference_engine="onnxruntime"
    ).fit(X, y)
    with tempfile.TemporaryDirectory() as folder:
        predictor = load(torch_model.to_onnx(f"{folder}/model.onnx"))
    categories = dict.fromkeys(STRINGS, "category")
    trees = lightgbm.LGBMClassifier(n_estimators=options.trees, n_jobs=1, verbose=-1)
    numeric = lightgbm.LGBMClassifier(n_estimators=options.trees, n_jobs=1, verbose=-1)
    trees.fit(X.astype(categories), y)
    numeric.fit(X.drop(columns=STRINGS), y)
    known = {name: X[name].astype("category").dtype for name in STRINGS}
    boosted = CatBoostClassifier(
        iterations=options.trees, cat_features=STRINGS, thread_count=1, verbose=False
    ).fit(X, y)
    for n_rows in options.rows:
        repeats = max(3, min(200, 5_000 // n_rows))
        rows = make_rows(n_rows, seed=1)[0]
        numbers = rows.drop(columns=STRINGS)
        timed = {
            "LightGBM": lambda rows=rows: trees.predict_proba(rows.astype(known)),
            "LightGBM, numbers": lambda rows=numbers: numeric.predict_proba(rows),
            "CatBoost": lambda rows=rows: boosted.predict_proba(rows, thread_count=1),
            "EasyTensor, torch": lambda rows=rows: torch_model.predict_proba(rows),
            "EasyTensor, onnxruntime": lambda rows=rows: engine_model.predict_proba(rows),
            "EasyTensor, ONNX": lambda rows=rows: predictor.predict_proba(rows),
        }
        if n_rows == 1:
            records, columns = rows.to_dict("records"), rows.to_dict("list")
            timed |= {
                "EasyTensor, torch, records": lambda X=records: torch_model.predict_proba(X),
                "EasyTensor, ONNX, records": lambda X=records: predictor.predict_proba(X),
                "EasyTensor, ONNX, dict": lambda X=columns: predictor.predict_proba(X),
            }
        found = {name: milliseconds(predict, repeats) for name, predict in timed.items()}
        for name, elapsed in found.items():
            ratio = elapsed / found["LightGBM"]
            print(f"{n_rows:>7} rows  {name:<28}{elapsed:>12.2f} ms{ratio:>8.2f}")


if __name__ == "__main__":
    main()
