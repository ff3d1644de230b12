# ci: quick
"""Training on Ray
===============

The same estimator on Ray: train on Parquet files, predict into Parquet files.

Flights of 2013 are written as Parquet files, one a month, as a cluster would have them. The
estimator is given their path and the name of the target; ``backend`` is all that says where the
work is done. Two workers train, each on its share of the rows, and the predictions for December
are written by those who make them, without passing through this process.

The same lines run on a cluster of many machines: give ``RayBackend`` the ``address`` of one and a
``storage_path`` that all its machines reach. What comes out is an ordinary estimator, which
pickles, and predicts here.

Run it with ``python examples/ray_training.py``; it takes two minutes, mostly to start Ray and
its workers.
"""

import tempfile
import time
from pathlib import Path

import pandas as pd
from sklearn.metrics import roc_auc_score

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.backends import RayBackend
from sk_easytensor.datasets import load_flights


def main():
    """Write the files, train on Ray, predict here and there."""
    with tempfile.TemporaryDirectory() as folder:
        train, valid, test = write_files(Path(folder))
        backend = RayBackend(num_workers=2)
        model = EasyTensorClassifier(backend=backend, max_epochs=5, random_state=0)
        begin = time.perf_counter()
        model.fit(str(train), "late", eval_set=[(str(valid), "late")])
        print(
            f"{len(model.evals_result_['valid_0']['log_loss'])} epochs and all around them in "
            f"{time.perf_counter() - begin:.0f} s"
        )

        # A path gives a Ray Dataset, with a column for each class.
        model.predict_proba(str(test)).write_parquet(f"{folder}/predictions")
        predicted = pd.read_parquet(f"{folder}/predictions")
        print(predicted[["schedule", "origin", "dest", "late", "probability_1"]].head())
        score = roc_auc_score(predicted["late"], predicted["probability_1"])
        print(f"area under the curve in December, predicted by workers: {score:.3f}")

        # A table in memory is predicted in this process.
        rows = pd.read_parquet(test).head(3)
        print(model.set_params(backend="local").predict_proba(rows))


def write_files(folder):
    """Write a file for each month; return where to train, to stop by and to test."""
    flights = load_flights()
    table = flights.data.assign(late=flights.target.to_numpy())
    months = table["schedule"].dt.month
    parts = {"train": months <= 10, "valid": months == 11, "test": months == 12}
    for part, rows in parts.items():
        (folder / part).mkdir()
        for month, group in table[rows].groupby(months[rows]):
            group.to_parquet(folder / part / f"{month:02}.parquet", index=False)
    return [folder / part for part in parts]


if __name__ == "__main__":
    main()
