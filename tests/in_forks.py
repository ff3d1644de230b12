"""Fits and predicts in this process, forks, and does it again in the children; run as a script.

It prints a line for each child: what it did, and how it ended.
"""

import faulthandler
import os
import pickle
import signal
import sys
import time
import warnings
from threading import Event, Thread

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from sk_easytensor import (
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    NumericSequenceBlock,
    TableEncoder,
    TextBlock,
    VectorBlock,
)
from sk_easytensor._utils.runtime import PROCESS, library_settings, resolve_threads, seeded

SECONDS = 60
"""Until a child counts as one that hangs."""

rng = np.random.default_rng(0)


def table(n_rows):
    """Return numbers, categories, texts, vectors, and lists of categories and of numbers."""
    words = pa.array(["good", "bad", "tea", "cup", "fine", "of", "the", "best"])
    ends = np.append(0, np.cumsum(rng.integers(0, 4, n_rows)))
    return pa.table(
        {
            "n": rng.normal(size=n_rows),
            "c": pa.array(list("xyz")).take(rng.integers(0, 3, n_rows)),
            "t": pc.binary_join_element_wise(
                *(words.take(rng.integers(0, 8, n_rows)) for _ in range(5)), " "
            ),
            "v": pa.FixedSizeListArray.from_arrays(rng.normal(size=3 * n_rows), 3),
            "lc": pa.ListArray.from_arrays(ends, words.take(rng.integers(0, 8, ends[-1]))),
            "ln": pa.ListArray.from_arrays(ends, rng.normal(size=ends[-1])),
        }
    )


BLOCKS = [
    ("n", NumericBlock(), ["n"]),
    ("c", CategoryBlock(), ["c"]),
    ("t", TextBlock(), ["t"]),
    ("v", VectorBlock(), ["v"]),
    ("lc", CategorySequenceBlock("mean", width=4), ["lc"]),
    ("ln", NumericSequenceBlock("gru", width=4, layers=1), ["ln"]),
]


def in_child(name, function):
    """Call a function in a forked process, which is killed when it takes too long."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.dump_traceback_later(SECONDS - 5)
            status = 0 if function() else 3
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            print(name, "is right" if code == 0 else f"ended with {code}")
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(name, "hangs")


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    X, some, big = table(120), table(6000), table(20_000)
    n = X["n"].to_numpy()
    y = n > 0
    quick = {"max_epochs": 1, "random_state": 0}
    alone = {**quick, "n_folds": None}
    one = EasyTensorClassifier(BLOCKS, trees=BoostedTrees(max_iter=3), **alone).fit(X, y)
    two = EasyTensorClassifier(n_jobs=2, trees=None, **alone).fit(X, X["c"])
    several = EasyTensorRegressor(BLOCKS, trees=None, **alone).fit(X, np.stack([n, n], axis=1))
    sides = [("c", CategoryBlock(width=4), "c")], [("n", NumericBlock(), "n")]
    towers = EasyTensorTwoTower(*sides, embedding_dim=4, n_jobs=2, **quick).fit(X, y)
    users = EasyTensorEmbedder(embedding_dim=4, **quick).fit(X.select(["v"]))
    # Torch's threads are there, and wait.
    torch.exp(torch.zeros(1_000_000)).sum()
    pickled = pickle.dumps(one)

    def predicted():
        return [
            one.predict_proba(big),
            one.predict_log_proba(some),
            pickle.loads(pickled).decision_function(some),
            two.predict_proba(some),
            several.predict(some),
            towers.predict_proba(some),
            towers.recommend(big.slice(0, 3000), items=big.slice(0, 2000), k=5)[1],
            users.transform(some),
        ]

    texts = some.select(["t"])

    def explained():
        return [
            one.explain(X.slice(0, 2), background=X.slice(0, 5), random_state=0).values,
            TableEncoder(n_jobs=2).fit(some).transform(some),
            TextBlock().fit(texts).transform(texts)["ids"].values.numpy(),
        ]

    def fitted():
        trees = BoostedTrees(max_iter=3)
        again = EasyTensorClassifier(n_jobs=2, trees=trees, **alone).fit(X, y)
        return [again.predict_proba(X)]

    for function in (predicted, explained, fitted):
        wanted = function()

        def same(function=function, wanted=wanted):
            return all(map(np.array_equal, function(), wanted))

        in_child(function.__name__, same)

    # Another thread computes while this one forks.
    entered, leave = Event(), Event()

    def computing():
        with library_settings(), seeded(0):
            entered.set()
            leave.wait(SECONDS)

    torch.set_default_dtype(torch.float64)
    thread = Thread(target=computing)
    thread.start()
    entered.wait(SECONDS)

    def unlocked():
        with seeded(0):
            return PROCESS.depth == 0 and torch.get_default_dtype() is torch.float64

    in_child("locks", unlocked)
    leave.set()
    thread.join()

    with library_settings(), seeded(0):
        in_child("settings", lambda: PROCESS.depth == 1 and resolve_threads(2) == 1)
    assert resolve_threads(2) == 2


if __name__ == "__main__":
    main()
