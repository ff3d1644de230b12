"""Time the ranking of all items for many users, and of many users for an item or several.

The embeddings are made up. Exact search takes products and the best of each row, as the bare
``torch.topk`` does over blocks of users; FAISS and usearch search approximately. Printed are
medians of seconds, ratios over the bare loop, and the recall of the ten best. Then stored users are
ranked for one item and for 50, in each type of embeddings, and a service does so for clients at
once::

    python benchmarks/ranking.py
    python benchmarks/ranking.py --users 1000 --items 10000 --stored 200000
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from turns import median_ratio, time_by_turns

from sk_easytensor import EasyTensorTwoTower
from sk_easytensor.datasets import make_interactions
from sk_easytensor.retrieval import ApproximateIndex, EmbeddingIndex, top_k


def main():
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, default=10_000, help="users to rank items for")
    add("--items", type=int, default=100_000, help="items to rank")
    add("--width", type=int, default=64, help="size of the embeddings")
    add("--stored", type=int, default=2_000_000, help="stored users to rank for an item")
    add("--clients", type=int, default=50, help="clients of the service at once")
    add("--threads", type=int, default=1, help="threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure_ranking(options.users, options.items, options.width)
    measure_stored(options.stored, options.width, options.threads)
    measure_service(options.stored, options.clients, options.threads)


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
    exact, _ = top_k(users, items, 10)
    for library in ("faiss", "usearch"):
        begun = time.perf_counter()
        index = ApproximateIndex(items, users[::40], library)
        built = time.perf_counter() - begun
        begun = time.perf_counter()
        found, _ = index.search(users, 10)
        seconds = time.perf_counter() - begun
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        ratio = np.median(wall["exact"]) / seconds
        print(
            f"{library:24}{seconds:8.2f} s  {ratio:.1f} times as fast as exact, "
            f"recall {recall:.3f}, {built:.2f} s to build",
            flush=True,
        )


def measure_stored(n_users, width, threads):
    """Print the time to rank stored users for one item and for 50, in each type."""
    random = np.random.default_rng(0)
    users = random.normal(size=(n_users, width)).astype(np.float32)
    items = random.normal(size=(50, width)).astype(np.float32)
    whole = EmbeddingIndex(np.arange(n_users), users)
    indexes = {dtype: whole.as_type(dtype) for dtype in ("float32", "float16", "int8")}
    expected, _ = whole.search(items, 1000, threads=threads)
    print(f"\nranking {n_users:,} stored users, width {width}, {threads} threads")
    for n_items in (1, 50):
        part = items[:n_items]
        contestants = {"bare product": lambda part=part: part @ users.T}
        contestants |= {
            dtype: lambda index=index, part=part: index.search(part, 100, threads=threads)
            for dtype, index in indexes.items()
        }
        wall, _ = time_by_turns(contestants, 5)
        for name, times in wall.items():
            note = ""
            if name in indexes:
                found, _ = indexes[name].search(part, 1000, threads=threads)
                overlap = np.mean(
                    [np.isin(*rows).mean() for rows in zip(expected, found, strict=False)]
                )
                note = (
                    f"  {indexes[name].embeddings.nbytes / 1e6:.0f} MB, overlap@1000 {overlap:.3f}"
                )
            print(
                f"{n_items:3} items, {name:16}{1000 * np.median(times):9.1f} ms{note}", flush=True
            )


def measure_service(n_users, n_clients, threads, seconds=10):
    """Print the latency of a service that ranks stored users for one item of each client."""
    data = make_interactions(20_000, n_users=2_000, n_items=200, random_state=0)
    model = EasyTensorTwoTower(max_epochs=2, random_state=0)
    model.fit(data.interactions, items=data.catalogue, item_key="item_id", user_key="user_id")
    random = np.random.default_rng(0)
    vectors = model.user_embeddings_[random.integers(0, len(model.user_keys_), n_users)]
    noise = random.normal(scale=vectors.std(), size=vectors.shape).astype(np.float32)
    model.user_index_ = EmbeddingIndex(np.arange(n_users), vectors + noise, key="user_id")
    body = {"items": data.catalogue.sample(1, random_state=0).to_dict("records"), "k": 100}
    body = json.dumps(body)
    for dtype in ("float32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            model.save_recommender(folder, dtype=dtype, towers=["item"])
            command = [sys.executable, "-m", "sk_easytensor.serving", folder, "--port", "0"]
            command += ["--n-jobs", str(threads)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                port = int(process.stdout.readline().rpartition(":")[2])
                for clients in (1, n_clients):
                    times = latencies(port, body, clients, seconds)
                    middle, late = 1000 * np.percentile(times, [50, 95])
                    print(
                        f"service, {dtype}, {clients:3} clients: {middle:7.1f} ms, 95% within "
                        f"{late:7.1f} ms, {len(times) / seconds:7.1f} requests a second",
                        flush=True,
                    )
                process.terminate()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"most memory of a service: {peak:.2f} GB, of which the files are shared")


def latencies(port, body, n_clients, seconds):
    """Return the seconds of each request that clients send one after the other."""
    until = time.perf_counter() + seconds

    def client(number):
        connection, times = http.client.HTTPConnection("127.0.0.1", port), []
        while time.perf_counter() < until:
            begun = time.perf_counter()
            connection.request("POST", "/rank_users", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(content.decode())
            times.append(time.perf_counter() - begun)
        return times

    with ThreadPoolExecutor(n_clients) as pool:
        return np.concatenate(list(pool.map(client, range(n_clients))))


if __name__ == "__main__":
    main()
