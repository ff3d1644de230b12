# ci: quick
"""User embeddings without labels
==============================

Embeddings learned from events without labels, and what they are worth where labels are few.

The log of flights tells what 1,347 aircraft did in 2013. An embedder learns from it, up to
November, to tell aircraft apart by parts of their sequences; nobody tells it what for. Two things
are then to be predicted of an aircraft, from the labels of a tenth of them: its airline, and
whether it is late more often than others in December. The airline is not in the sequences, nor are
the routes, which would give it away: only when the aircraft flew and how late it was.

With the labels alone, a network has to learn to read sequences from a hundred of them. With a
``PretrainedBlock`` it starts from what the embedder learned. The embeddings are of use elsewhere,
too: in a pipeline before LightGBM, and in a picture.

Run it with ``python examples/user_embeddings.py``; it takes two minutes.
"""

import time
import warnings

import lightgbm
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sk_easytensor import (
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EventSequenceBlock,
    PretrainedBlock,
)
from sk_easytensor.datasets import load_flights

CUT = pd.Timestamp("2013-12-01")
COLUMNS = ["schedule", "hour", "weekday", "dep_delay", "arr_delay", "cancelled"]
PICTURE = "user_embeddings.png"


def main():
    """Learn embeddings, use them for two tasks, draw them."""
    past, airline, late = load_log()
    block = EventSequenceBlock("mean", max_length=64, now=False)
    embedder = EasyTensorEmbedder([("events", block, COLUMNS)], random_state=0)
    begin = time.perf_counter()
    embedder.fit(past, user="tailnum", time="schedule")
    print(f"embeddings of {embedder.n_users_} aircraft in {time.perf_counter() - begin:.0f} s")

    aircraft = embedder.collect(past).set_index("tailnum")
    models = {
        "from scratch": network(block),
        "pre-trained, frozen": network(PretrainedBlock(embedder)),
        "pre-trained, fine-tuned": network(PretrainedBlock(embedder, trainable=True)),
        "LightGBM on embeddings": make_pipeline(
            FrozenEstimator(embedder),
            lightgbm.LGBMClassifier(min_child_samples=5, n_jobs=1, random_state=0, verbose=-1),
        ),
    }
    tasks = {"airline": airline, "late in December": late}
    results = {
        task: {name: judge(model, aircraft, labels) for name, model in models.items()}
        for task, labels in tasks.items()
    }
    print("\nArea under the ROC curve, from the labels of a tenth of the aircraft:")
    print(pd.DataFrame(results).to_string(float_format="{:.3f}".format))
    draw(embedder.transform(aircraft), airline.reindex(aircraft.index))


def load_log():
    """Return the flights before December, the airline of each aircraft, and which were late."""
    flights = load_flights().events
    flights = flights.assign(
        hour=flights["schedule"].dt.hour + flights["schedule"].dt.minute / 60,
        weekday=flights["schedule"].dt.day_name(),
    )
    past, future = flights[flights["schedule"] < CUT], flights[flights["schedule"] >= CUT]
    airline = past.groupby("tailnum")["carrier"].agg(lambda names: names.mode()[0]).astype(str)
    airline = airline[airline.map(airline.value_counts()) >= 50]
    delays = future.groupby("tailnum")["arr_delay"].agg(["mean", "count"])
    delays = delays["mean"][(delays["count"] >= 3) & delays.index.isin(past["tailnum"])]
    return past[["tailnum", *COLUMNS]], airline, delays > delays.median()


def network(block):
    """Return a classifier that reads the events by a block."""
    return EasyTensorClassifier(
        [("events", block, COLUMNS)], validation_fraction=None, random_state=0
    )


def judge(model, aircraft, labels):
    """Return the area under the curve of a model fitted to a tenth of the labels, three times."""
    areas = []
    for seed in range(3):
        train, test = train_test_split(labels, train_size=0.1, stratify=labels, random_state=seed)
        with warnings.catch_warnings():
            # LightGBM notes that embeddings come without names.
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            fitted = clone(model).fit(aircraft.loc[train.index], train.to_numpy())
            probability = fitted.predict_proba(aircraft.loc[test.index])
        if probability.shape[1] == 2:
            probability = probability[:, 1]
        areas.append(roc_auc_score(test, probability, multi_class="ovr"))
    return np.mean(areas)


def draw(embeddings, airline):
    """Draw the embeddings in the plane of their largest spread, coloured by airline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plane = PCA(2).fit_transform(embeddings)
    figure, axis = pyplot.subplots(figsize=(7, 6))
    for name in airline.value_counts().index:
        own = (airline == name).to_numpy()
        axis.scatter(*plane[own].T, s=8, alpha=0.6, label=name)
    axis.set(title="Aircraft, by when and how late they flew", xticks=[], yticks=[])
    axis.legend(title="airline", markerscale=2)
    figure.savefig(PICTURE, dpi=100, bbox_inches="tight")
    print(f"\nthe embeddings, coloured by airline: {PICTURE}")


if __name__ == "__main__":
    main()
