"""Measure what grows with data on Ray: rows, categories, files, row groups, workers.

    python benchmarks/ray_scale.py
    python benchmarks/ray_scale.py --parts fit --rows 20000000
    python benchmarks/ray_scale.py --parts files,shares

- fit: rows of 10 numbers and 10 categories, of which the largest has a million values; one epoch of
  two workers. Printed are the seconds before the epoch, those of the epoch, the largest private
  memory of a process of each kind, and the largest size of the encoded rows on disk, over what the
  rows take in memory.
- files: the same 60,000 rows in 2,000 files and in 4; seconds of a fit, and the ratio.
- row_group: rows in one row group, and in row groups of 65,536; largest memory of a task.
- shares: files whose row groups differ in size; rows of the largest share over the mean of all.
- step: a step of 4,096 rows with a category of a million values, of one worker and of two; the
  ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray_train import MEGABYTE, cluster, largest_sizes, quick, write_files
from skorch.callbacks import Callback

from sk_easytensor import CategoryBlock, EasyTensorClassifier, NumericBlock
from sk_easytensor.backends.ray.backend import RayBackend

FILE_ROWS = 500_000
PARTS = ["fit", "files", "row_group", "shares", "step"]


def main():
    """Run the parts that were asked for."""
    options = parse_options()
    measures = {
        "fit": measure_fit,
        "files": measure_files,
        "row_group": measure_row_group,
        "shares": measure_shares,
        "step": measure_step,
    }
    for part in options.parts.split(","):
        measures[part](options)


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help="any of them")
    add("--rows", type=int, default=2_000_000, help="rows of the fit")
    add("--store", type=int, default=500_000_000, help="bytes of the object store")
    add("--directory", help="where to put files for the time of the run")
    return parser.parse_args()


def made_up_rows(n_rows, seed, n_numbers=10, n_categories=10):
    """Return a table of numbers and of categories of 10 to a million values, with a label."""
    rng = np.random.default_rng(seed)
    columns = {f"number_{i}": rng.normal(size=n_rows) for i in range(n_numbers)}
    sizes = np.geomspace(10, 1_000_000, n_categories).astype(int)
    effect = np.zeros(n_rows)
    for index, size in enumerate(sizes):
        codes = (size * rng.random(n_rows) ** 2).astype(np.int64)
        columns[f"category_{index}"] = pa.array(codes).cast(pa.string())
        effect += 0.5 * ((codes * 2_654_435_761) % 1_000 / 500 - 1)
    score = columns["number_0"] + columns["number_1"] * columns["number_2"] + effect
    columns["label"] = np.where(score + rng.normal(size=n_rows) > 0, "yes", "no")
    return pa.table(columns)


class EpochBegin(Callback):
    """Writes the time at which the first epoch begins to a file, in each worker."""

    def __init__(self, path):
        self.path = str(path)

    def on_epoch_begin(self, net, **kwargs):
        with open(self.path, "a") as file:
            print(time.time(), file=file)


@contextmanager
def largest_disk_use(directory, seconds=0.5):
    """Look at the space in use on the disk of a directory; give the largest increase, in bytes."""
    over, used = threading.Event(), {"bytes": 0}

    def free():
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize

    before = free()

    def look():
        while not over.wait(seconds):
            used["bytes"] = max(used["bytes"], before - free())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()


def measure_fit(options):
    """Train one epoch on files; print seconds, memory and disk."""
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        size = write_files(f"{directory}/rows", options.rows, made_up_rows, FILE_ROWS)
        print(f"fit: {options.rows:,} rows x 20 columns, {size / MEGABYTE:,.0f} MiB, 2 workers")
        with (
            cluster(options.store),
            largest_sizes() as sizes,
            largest_disk_use(tempfile.gettempdir()) as disk,
        ):
            backend = RayBackend(
                num_workers=2,
                storage_path=f"{directory}/storage",
                memory_per_worker=options.store // 2,
            )
            begin = time.time()
            callbacks = [EpochBegin(f"{directory}/begin")]
            model = quick(1, backend=backend, callbacks=callbacks)
            model.fit(f"{directory}/rows", "label")
            seconds = time.time() - begin
            before = min(map(float, Path(f"{directory}/begin").read_text().split())) - begin
    print(f"before the first epoch {before:8.0f} s")
    print(f"the epoch              {sum(model.fit_times_['epochs']):8.0f} s")
    print(f"in all                 {seconds:8.0f} s")
    for kind in ("driver", "workers", "tasks"):
        print(f"{kind + ', largest':23}{sizes.get(kind, 0) / MEGABYTE:8,.0f} MiB")
    # Objects that Ray spills are on the same disk.
    print(f"disk, largest          {disk['bytes'] / MEGABYTE:8,.0f} MiB")
    print(f"best score             {model.best_score_:8.4f}", flush=True)


def measure_files(options, n_rows=60_000):
    """Print the time of a fit on many small files over that on a few."""
    table, seconds = made_up_rows(n_rows, seed=0), {}
    with cluster(options.store):
        for n_files in (4, 2_000):
            with tempfile.TemporaryDirectory(dir=options.directory) as directory:
                step = n_rows // n_files
                for number in range(n_files):
                    path = f"{directory}/{number:04}.parquet"
                    pq.write_table(table.slice(number * step, step), path)
                begin = time.perf_counter()
                quick(1, backend=RayBackend(num_workers=2), trees=None).fit(directory, "label")
                seconds[n_files] = time.perf_counter() - begin
    ratio = seconds[2_000] / seconds[4]
    told = ", ".join(f"{value:.1f} s in {name:,}" for name, value in seconds.items())
    print(f"files: {n_rows:,} rows, {told} files: {ratio:.2f}", flush=True)


def measure_row_group(options):
    """Print the largest memory of a task that reads one large row group, and small ones."""
    table = made_up_rows(options.rows, seed=0)
    for size in (65_536, options.rows):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            pq.write_table(table, f"{directory}/rows.parquet", row_group_size=size)
            with cluster(options.store), largest_sizes() as sizes:
                backend = RayBackend(num_workers=2, memory_per_worker=options.store // 2)
                begin = time.perf_counter()
                quick(1, backend=backend, trees=None).fit(directory, "label")
                seconds = time.perf_counter() - begin
        task, worker = (sizes.get(kind, 0) / MEGABYTE for kind in ("tasks", "workers"))
        print(
            f"row_group: {options.rows:,} rows in row groups of {size:,}: a task {task:,.0f} MiB, "
            f"a worker {worker:,.0f} MiB, {seconds:.0f} s",
            flush=True,
        )


class ShareRows(Callback):
    """Writes the number of training rows of each worker to a file."""

    def __init__(self, path):
        self.path = str(path)

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        with open(self.path, "a") as file:
            print(len(X), file=file)


def measure_shares(options, n_workers=4):
    """Print the size of the largest share of row groups of different sizes."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory, cluster(options.store):
        Path(f"{directory}/rows").mkdir()
        for number in range(6):
            table = made_up_rows(100_000, seed=number)
            size = int(rng.integers(15_000, 100_000))
            pq.write_table(table, f"{directory}/rows/{number}.parquet", row_group_size=size)
        backend = RayBackend(num_workers=n_workers, resources_per_worker={"CPU": 0.5})
        callbacks = [ShareRows(f"{directory}/shares")]
        model = quick(1, backend=backend, callbacks=callbacks, trees=None)
        model.fit(f"{directory}/rows", "label")
        rows = [int(line) for line in Path(f"{directory}/shares").read_text().split()]
    print(f"shares: {max(rows) / statistics.mean(rows):.3f} of the mean, {n_workers} workers")


class StepTimes(Callback):
    """Writes the median time of a step to a file, in the first worker."""

    def __init__(self, path):
        self.path = str(path)
        self.times = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.times.append(time.perf_counter())

    def on_train_end(self, net, **kwargs):
        if net.group.rank == 0:
            steps = np.diff(self.times)
            Path(self.path).write_text(str(np.median(steps)))


def measure_step(options, n_rows=400_000):
    """Print the time of a step with a large category, of one worker and of two."""
    table = made_up_rows(n_rows, seed=0, n_numbers=10, n_categories=1)
    codes = np.random.default_rng(0).integers(0, 1_000_000, n_rows)
    table = table.set_column(
        table.column_names.index("category_0"), "category_0", pa.array(codes).cast(pa.string())
    )
    seconds = {}
    with cluster(options.store), tempfile.TemporaryDirectory() as directory:
        pq.write_table(table, f"{directory}/rows.parquet", row_group_size=50_000)
        for n_workers in (1, 2):
            path = f"{directory}/step-{n_workers}"
            model = EasyTensorClassifier(
                [
                    (
                        "category",
                        CategoryBlock(width=32, min_frequency=1, max_categories=2_000_000),
                        ["category_0"],
                    ),
                    ("number", NumericBlock(), [f"number_{index}" for index in range(10)]),
                ],
                backend=RayBackend(num_workers=n_workers),
                batch_size=4_096,
                max_epochs=2,
                trees=None,
                random_state=0,
                callbacks=[StepTimes(path)],
            )
            model.fit(f"{directory}/rows.parquet", "label")
            seconds[n_workers] = float(Path(path).read_text())
    told = ", ".join(f"{1000 * value:.1f} ms of {name}" for name, value in seconds.items())
    print(f"step: {told} worker(s): {seconds[2] / seconds[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
