"""Time the ranking of all items for many users: exact, approximate, and by ``torch.topk`` alone.

The embeddings are made up. Exact search takes products and the best of each row, as the bare
``torch.topk`` does over the same blocks of users; ``usearch`` searches a graph. They take turns.
Printed are medians of seconds, ratios over the bare loop, and the recall of the graph::

    python benchmarks/ranking.py
    python benchmarks/ranking.py --users 1000 --items 10000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from turns import median_ratio, time_by_turns

from sk_easytensor.retrieval import ApproximateIndex, top_k


def main():
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, default=10_000, help="users to rank items for")
    add("--items", type=int, default=100_000, help="items to rank")
    add("--width", type=int, default=64, help="size of the embeddings")
    add("--threads", type=int, default=1, help="threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure_ranking(options.users, options.items, options.width)


def measure_ranking(n_users, n_items, width):
    """Print the time to rank all items for many users, and that of the approximate index."""
    random = np.random.default_rng(0)
    # Embeddings that are learned are not spread evenly: they lie about a few tastes.
    tastes = random.normal(size=(50, width))
    users, items = (
        (tastes[random.integers(0, 50, n)] + random.normal(size=(n, width))).astype(np.float32)
        for n in (n_users, n_items)
    )

    def bare():
        left, right = torch.from_numpy(users), torch.from_numpy(items).T
        for part in left.split((1 << 24) // n_items):
            torch.topk(part @ right, 10, dim=1)

    contestants = {"bare torch.topk": bare, "exact": lambda: top_k(users, items, 10)}
    wall, _ = time_by_turns(contestants, 3)
    print(f"\nranking {n_items:,} items for {n_users:,} users, width {width}")
    for name, times in wall.items():
        ratio = median_ratio(times, wall["bare torch.topk"])
        print(f"{name:24}{np.median(times):8.2f} s{ratio:8.2f}", flush=True)
    begun = time.perf_counter()
    index = ApproximateIndex(items, users[::40])
    built = time.perf_counter() - begun
    begun = time.perf_counter()
    found, _ = index.search(users, 10)
    seconds = time.perf_counter() - begun
    exact, _ = top_k(users, items, 10)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
    ratio = np.median(wall["exact"]) / seconds
    print(
        f"{'usearch':24}{seconds:8.2f} s  {ratio:.1f} times as fast as exact, recall {recall:.3f}"
    )
    print(f"{'building its graph':24}{built:8.2f} s")


if __name__ == "__main__":
    main()
