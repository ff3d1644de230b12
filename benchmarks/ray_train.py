"""Train on Parquet files that are larger than memory lent to Ray: memory, time, parity.

    python benchmarks/ray_train.py
    python benchmarks/ray_train.py --parts parity
    python benchmarks/ray_train.py --parts memory --rows 100000 --store 80000000

- memory: files of at least four times the object store's size, and files twice as large. Printed
  are the largest sizes of the driver, of the workers and of the tasks that read (their own memory,
  without what they share with others), which must not grow with the data.
- time: an epoch of two workers over an epoch of the local backend with two threads, on rows that
  fit into memory; what it takes until the first epoch begins is printed apart.
- parity: validation losses of the local backend and of two workers, for several seeds.
- sorted: 40 files sorted by label, and the same rows in random order, both twelve times as large as
  the memory of a worker; AUC of each, by network alone.

Rows have numbers, categories and lists; the network is a small perceptron, so that moving rows is
a large part of the work.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from sk_easytensor import MLP, EasyTensorClassifier
from sk_easytensor.backends.ray.backend import RayBackend

FILE_ROWS = 250_000
MEGABYTE = 1 << 20


def main():
    """Run the parts that were asked for."""
    options = parse_options()
    for part in options.parts.split(","):
        {"memory": memory, "time": epoch_time, "parity": parity, "sorted": sorted_files}[part](
            options
        )


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", default="memory,time,parity,sorted", help="any of them")
    add("--rows", type=int, default=6_000_000, help="rows of the smaller files, for memory")
    add("--store", type=int, default=500_000_000, help="bytes of the object store, for memory")
    add("--seeds", type=int, default=3, help="seeds, for parity")
    add("--directory", help="where to put files for the time of the run")
    return parser.parse_args()


def made_up_rows(n_rows, seed, n_numbers=20, n_categories=10):
    """Return a table of numbers, categories and lists with a label of two classes."""
    rng = np.random.default_rng(seed)
    columns = {f"number_{i}": rng.normal(size=n_rows) for i in range(n_numbers)}
    for index in range(n_categories):
        names = pa.array([f"name {number}" for number in range(10 * 2**index)])
        codes = (len(names) * rng.random(n_rows) ** 3).astype(np.int64)
        columns[f"category_{index}"] = names.take(pa.array(codes))
    lengths = rng.integers(0, 6, n_rows)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    words = pa.array(["a", "b", "c", "d"]).take(pa.array(rng.integers(0, 4, offsets[-1])))
    columns["words"] = pa.ListArray.from_arrays(pa.array(offsets), words)
    score = columns["number_0"] + columns["number_1"] * columns["number_2"] + 0.3 * lengths
    columns["label"] = np.where(score + rng.normal(size=n_rows) > 0.7, "yes", "no")
    return pa.table(columns)


def write_files(directory, n_rows, make=made_up_rows, file_rows=FILE_ROWS):
    """Write rows as Parquet files; return how many bytes they take in memory."""
    Path(directory).mkdir()
    size = 0
    for number, start in enumerate(range(0, n_rows, file_rows)):
        table = make(min(file_rows, n_rows - start), seed=number)
        size += table.nbytes
        pq.write_table(
            table, Path(directory) / f"part-{number:04}.parquet", row_group_size=file_rows // 4
        )
    return size


@contextmanager
def cluster(store):
    """Have Ray with two processors and so many bytes of an object store."""
    import ray

    begin = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=store,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield time.perf_counter() - begin
    ray.shutdown()


def quick(epochs, **params):
    """Return a classifier whose network is small."""
    settings = {"batch_size": 4096, "early_stopping_rounds": None, "random_state": 0}
    return EasyTensorClassifier(trunk=MLP(width=64), max_epochs=epochs, **{**settings, **params})


# ---------------------------------------------------------------------- memory


def memory(options):
    """Train on files and on twice as many; print who needed how much memory."""
    print(f"memory: object store of {options.store / MEGABYTE:,.0f} MiB, 2 workers, MiB at most")
    print(f"{'rows':>12}{'data':>9}{'driver':>9}{'workers':>9}{'tasks':>9}{'fit, s':>9}")
    for n_rows in (options.rows, 2 * options.rows):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            size = write_files(f"{directory}/rows", n_rows)
            with cluster(options.store), largest_sizes() as sizes:
                backend = RayBackend(
                    num_workers=2,
                    storage_path=f"{directory}/storage",
                    chunk_rows=65_536,
                    memory_per_worker=options.store // 2,
                )
                begin = time.perf_counter()
                quick(1, backend=backend).fit(f"{directory}/rows", "label")
                seconds = time.perf_counter() - begin
            figures = [size, *(sizes.get(kind, 0) for kind in ("driver", "workers", "tasks"))]
            told = "".join(f"{figure / MEGABYTE:9,.0f}" for figure in figures)
            print(f"{n_rows:12,}{told}{seconds:9.0f}", flush=True)


@contextmanager
def largest_sizes(seconds=0.5):
    """Look at processes all the time; give the largest size of one of each kind."""
    sizes, over = {}, threading.Event()

    def look():
        driver = psutil.Process()
        while not over.wait(seconds):
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    kind = kind_of(process, driver)
                    size = process.memory_full_info().uss
                except psutil.Error:
                    continue
                sizes[kind] = max(sizes.get(kind, 0), size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def kind_of(process, driver):
    """Name what a process does."""
    if process == driver:
        return "driver"
    title = " ".join(process.cmdline())
    if title.startswith("ray::") and "Train" in title:
        return "workers"
    return "tasks" if title.startswith("ray::") else "Ray"


# ---------------------------------------------------------------------- time


def epoch_time(options, n_rows=400_000, epochs=4):
    """Print the time of an epoch on Ray over that of the local backend."""
    from sk_easytensor.backends import LocalBackend

    X = made_up_rows(n_rows, seed=0)
    y, X = X["label"].to_numpy(), X.drop_columns("label")
    print(f"time: {n_rows:,} rows in memory, {epochs} epochs, batches of 4,096")
    local = quick(epochs, backend=LocalBackend(n_jobs=2), n_jobs=2)
    begin = time.perf_counter()
    local.fit(X, y)
    ours = time.perf_counter() - begin
    with cluster(2_000_000_000) as start:
        distributed = quick(epochs, backend=RayBackend(num_workers=2))
        begin = time.perf_counter()
        distributed.fit(X, y)
        theirs = time.perf_counter() - begin
    # The first epoch also warms caches.
    epoch = [statistics.median(model.fit_times_["epochs"][1:]) for model in (local, distributed)]
    print(f"an epoch, local backend with 2 threads {epoch[0]:8.2f} s")
    print(f"an epoch, 2 workers                    {epoch[1]:8.2f} s, {epoch[1] / epoch[0]:.2f}")
    rest = theirs - sum(distributed.fit_times_["epochs"])
    print(f"besides epochs, local backend          {ours - sum(local.fit_times_['epochs']):8.2f} s")
    print(f"besides epochs, 2 workers              {rest:8.2f} s, and {start:.1f} s to start Ray")


# ---------------------------------------------------------------------- parity


def parity(options, n_rows=20_000, epochs=8):
    """Print validation losses of both backends for several seeds."""
    table, valid = made_up_rows(n_rows, seed=0), made_up_rows(n_rows, seed=1)
    y, X = table["label"].to_numpy(), table.drop_columns("label")
    evals = [(valid.drop_columns("label"), valid["label"].to_numpy())]
    losses = {"local": [], "2 workers": []}
    with cluster(500_000_000):
        for seed in range(options.seeds):
            for name, backend in (("local", "local"), ("2 workers", RayBackend(num_workers=2))):
                model = quick(epochs, backend=backend, random_state=seed, batch_size=256)
                losses[name].append(model.fit(X, y, eval_set=evals).best_score_)
    print(f"parity: validation log loss of {options.seeds} seeds, {n_rows:,} rows")
    for name, found in losses.items():
        each = " ".join(f"{loss:.4f}" for loss in found)
        print(f"{name:12} {each}   mean {statistics.mean(found):.4f}")


# ---------------------------------------------------------------------- sorted files


def sorted_files(options, n_rows=400_000, n_files=40, epochs=4):
    """Print the AUC of a fit on files sorted by label, and on files in random order."""
    valid = made_up_rows(20_000, seed=1)
    X_valid, y_valid = valid.drop_columns("label"), valid["label"].to_numpy()
    print(f"sorted: {n_rows:,} rows in {n_files} files, 1 worker, AUC of {options.seeds} seeds")
    with cluster(500_000_000):
        for kind in ("sorted", "random"):
            found = []
            for seed in range(options.seeds):
                table = made_up_rows(n_rows, seed=2 + seed)
                if kind == "sorted":
                    table = table.sort_by("label")
                with tempfile.TemporaryDirectory(dir=options.directory) as directory:
                    for number in range(n_files):
                        part = table.slice(number * n_rows // n_files, n_rows // n_files)
                        pq.write_table(part, f"{directory}/{number:02}.parquet")
                    # 268 bytes a row.
                    backend = RayBackend(num_workers=1, memory_per_worker=n_rows * 268 // 12)
                    model = quick(epochs, backend=backend, trees=None, random_state=seed)
                    model.fit(directory, "label")
                found.append(roc_auc_score(y_valid, model.predict_proba(X_valid)[:, 1]))
            each = " ".join(f"{auc:.4f}" for auc in found)
            print(f"{kind:12} {each}   mean {statistics.mean(found):.4f}", flush=True)


if __name__ == "__main__":
    main()
