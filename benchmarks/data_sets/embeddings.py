"""What embeddings of users are worth to a model that has few labels, or many.

Users, their events and what is to be predicted of them are in ``embedding_tasks.py``. Embeddings
are learned from the events of all users, without labels; every model then sees the labels of
the training folds alone, all of them or a hundredth or a tenth.

LightGBM on features made by hand stands beside LightGBM on embeddings of either objective, on
both together, and, with ``--peers``, on those of CoLES in pytorch-lifestream (skipped where that is
not installed). Networks read the events themselves: trained from scratch, and with a pre-trained
block, frozen or fine-tuned. Figures are means over folds; ``--plot`` draws them over the share of
labels::

    python benchmarks/data_sets/embeddings.py --data DIR --plot labels.png --peers
    python benchmarks/data_sets/embeddings.py --data DIR --folds 2 --shares 0.1 --sets movies
"""

from __future__ import annotations

import os

os.environ.pop("OMP_WAIT_POLICY", None)  # PASSIVE makes LightGBM several times slower

import argparse
import time
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from embedding_tasks import load
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from sk_easytensor import EasyTensorClassifier, EasyTensorEmbedder, PretrainedBlock
from sk_easytensor.embedder.objectives import Contrastive, SessionPair, ViewSettings
from sk_easytensor.embedder.slices import Sequences

LIGHTGBM = {
    "n_estimators": 100,
    "learning_rate": 0.05,
    "colsample_bytree": 0.3,
    "subsample": 0.8,
    "subsample_freq": 1,
}
DRAWS = 3
"""Of few labels: which ones they are says more than the fold."""


def main():
    """Measure all models on all tasks, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="directory of ev_flights.parquet and rec_ml100k.parquet")
    add("--sets", nargs="+", default=[""], help="only sets of users whose name has one of these")
    add("--folds", type=int, default=5, help="folds to measure, of five")
    add("--shares", nargs="+", type=float, default=[0.01, 0.1, 1.0], help="shares of labels")
    add("--peers", action="store_true", help="also measure pytorch-lifestream")
    add("--plot", help="path of a picture of the figures over the share of labels")
    add(
        "--draws", type=int, default=DRAWS, help="drawings of labels a fold, where not all are used"
    )
    add("--threads", type=int, default=1, help="threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # The newest LightGBM warns of names of features whatever it is given.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    rows = []
    for users in load(options.data):
        if any(part in users.name for part in options.sets):
            rows += compare(users, options)
    figures = pd.DataFrame(rows)
    print_tables(figures, options)
    if options.plot:
        plot(figures, options.plot)
    measure_pairs()


def compare(users, options):
    """Return the figures of each model on the tasks of one set of users, a row a fit."""
    print(f"\n{users.name}: {len(users.table):,} users", flush=True)
    models = make_models(users, options)
    rows = []
    for task in users.tasks:
        for name, fit in models.items():
            begun = time.perf_counter()
            own = [
                {"task": f"{task.name} ({task.metric})", "model": name, "share": share, **figure}
                for share in options.shares
                for figure in measure(task, fit, share, options)
            ]
            rows += own
            shares = pd.DataFrame(own).groupby("share")["score"].mean()
            seconds = time.perf_counter() - begun
            print(
                f"{task.name:12}{name:34}"
                + "".join(f"{score:9.4f}" for score in shares)
                + f"{seconds:9.1f} s",
                flush=True,
            )
    return rows


def measure(task, fit, share, options):
    """Fit a model on a share of the labels of each training part, and measure it on the rest."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(task.rows, task.y)
    for fold, (train, test) in zip(range(options.folds), folds, strict=False):
        for draw in range(options.draws if share < 1 else 1):
            kept = train[sample(task.y[train], share, seed=[fold, draw])]
            predict = fit(task.rows[kept], task.y[kept], draw)
            probability = predict(task.rows[test])
            if task.metric == "AUC":
                score = roc_auc_score(task.y[test], probability[:, 1])
            else:
                score = accuracy_score(task.y[test], probability.argmax(axis=1))
            yield {"fold": fold, "labels": len(kept), "score": score}


def sample(y, share, seed):
    """Return which labels are kept: a share of each class, and one at least."""
    order = np.lexsort((np.random.default_rng(seed).random(len(y)), y))
    counts = np.bincount(y)
    place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < np.maximum(np.round(share * counts), 1)[y[order]]
    return np.sort(order[kept])


def make_models(users, options):
    """Return a function for each model that fits it on rows and labels."""
    embeddings, embedders = {}, {}
    for objective in ("session_pair", "contrastive"):
        begun = time.perf_counter()
        embedders[objective] = make_embedder(users, objective, options)
        embedders[objective].fit(users.table, time=users.time)
        both = np.asarray(embedders[objective].transform(users.table))
        embeddings[objective] = both[:, : embedders[objective].embedding_dim]
        embeddings[f"{objective} with aggregates"] = both
        seconds = time.perf_counter() - begun
        print(f"{objective} embeddings: {seconds:.1f} s", flush=True)
    if options.peers:
        embeddings |= peer_embeddings(users)
    features = {
        "aggregates": users.aggregates,
        **embeddings,
        "aggregates + contrastive": np.hstack([users.aggregates, embeddings["contrastive"]]),
    }
    models = {
        f"LightGBM, {name}": partial(fit_lightgbm, array, options)
        for name, array in features.items()
    }
    for name in ("aggregates", "contrastive with aggregates"):
        models[f"EasyTensor, {name}"] = partial(fit_easytensor, features[name], options)
    embedder = embedders["contrastive"]
    blocks = {
        "from scratch": users.block,
        "pre-trained, frozen": PretrainedBlock(embedder),
        "pre-trained, fine-tuned": PretrainedBlock(embedder, trainable=True),
    }
    return models | {
        name: partial(fit_network, users.table, block, options) for name, block in blocks.items()
    }


def make_embedder(users, objective, options):
    """Return the embedder of an objective, with its defaults."""
    return EasyTensorEmbedder(
        [("events", users.block, list(users.table))],
        objective=objective,
        aggregates=True,
        session_gap=users.session_gap if objective == "session_pair" else None,
        random_state=0,
        n_jobs=options.threads,
    )


def fit_lightgbm(features, options, rows, y, seed):
    """Fit LightGBM to some rows of features, with leaves that a few labels can fill."""
    import lightgbm

    model = lightgbm.LGBMClassifier(
        **LIGHTGBM,
        min_child_samples=int(np.clip(len(rows) // 20, 1, 20)),
        n_jobs=options.threads,
        random_state=seed,
        verbose=-1,
    ).fit(features[rows], y)
    return lambda rows: model.predict_proba(features[rows])


def fit_easytensor(features, options, rows, y, seed):
    """Fit our classifier, with its defaults, to some rows of features."""
    model = EasyTensorClassifier(random_state=seed, n_jobs=options.threads)
    model.fit(features[rows], y)
    return lambda rows: model.predict_proba(features[rows])


def fit_network(table, block, options, rows, y, seed):
    """Fit a classifier with one block on the events of some users."""
    model = EasyTensorClassifier(
        [("events", block, list(table))],
        # A part of a few labels tells little, and they are needed for training.
        validation_fraction=0.15 if len(rows) >= 500 else None,
        random_state=seed,
        n_jobs=options.threads,
    ).fit(table.iloc[rows], y)
    return lambda rows: model.predict_proba(table.iloc[rows])


def peer_embeddings(users):
    """Return the embeddings of pytorch-lifestream, by the name of the row, if it is there."""
    try:
        from embedding_peers import coles
    except ImportError as error:
        print(f"pytorch-lifestream is skipped: {error}")
        return {}
    begun = time.perf_counter()
    vectors = coles(users)
    print(f"CoLES of pytorch-lifestream: {time.perf_counter() - begun:.1f} s", flush=True)
    return {"CoLES of pytorch-lifestream": vectors}


def print_tables(figures, options):
    """Print the mean score of each model on each task, a table for each share of labels."""
    for share in sorted(options.shares, reverse=True):
        part = figures[figures["share"] == share]
        tasks = list(dict.fromkeys(part["task"]))
        means = part.pivot_table(index="model", columns="task", values="score", sort=False)[tasks]
        labels = part.groupby("task")["labels"].mean()[tasks]
        means.loc["labels to train on"] = labels
        print(f"\n{share:.0%} of the labels, means of {options.folds} folds")
        print(means.to_string(float_format="{:.4g}".format), flush=True)


def plot(figures, path):
    """Draw the scores over the share of labels, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(figures["task"]))
    size = 4 * len(tasks) + 4, 4.5
    figure, axes = pyplot.subplots(1, len(tasks), figsize=size, squeeze=False, layout="constrained")
    for task, axis in zip(tasks, axes[0], strict=True):
        part = figures[figures["task"] == task]
        for model, own in part.groupby("model", sort=False):
            means = own.groupby("share")["score"].mean()
            axis.plot(means.index, means, marker="o", label=model)
        axis.set(title=task, xlabel="share of labels", xscale="log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def measure_pairs(n_users=20_000, mean_length=100, repeats=5):
    """Print how many events a second become parts of pairs, before blocks read them."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 2 * mean_length - 1, n_users)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    gaps = random.exponential(3600.0, offsets[-1])
    events = {
        "time": np.cumsum(gaps),
        "kind": pa.array(np.array(["view", "basket", "buy"])[random.integers(0, 3, offsets[-1])]),
        "amount": random.normal(size=offsets[-1]),
    }
    table = pa.table(
        {name: pa.ListArray.from_arrays(offsets, column) for name, column in events.items()}
    )
    settings = ViewSettings(0.1, 0.5, time="time", gap=4 * 3600.0)
    print(f"\npairs of {n_users:,} users with {offsets[-1]:,} events of 3 columns")
    for kind in (Contrastive, SessionPair):
        rates = []
        for turn in range(repeats):
            begun = time.perf_counter()
            objective = kind(Sequences(table, "the benchmark"), settings)
            pairs = objective.draw(np.arange(n_users), np.random.default_rng(turn))
            parts = [objective.sequences.cut(part) for part in (pairs.left, pairs.right)]
            seconds = time.perf_counter() - begun
            rates.append(
                sum(len(part["kind"].combine_chunks().flatten()) for part in parts) / seconds
            )
        print(
            f"{kind.__name__:24}{np.median(rates) / 1e6:8.1f} million events a second", flush=True
        )


if __name__ == "__main__":
    main()
