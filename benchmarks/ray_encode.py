"""Fit encoders to Parquet files on Ray: one pass, a pass a column, Ray's preprocessors, polars.

The files are made up: strings whose columns have from 10 to 1,000,000 values of Zipf-like
frequencies, numbers of several distributions, and some missing values in each column.

- one pass: what ``backend="ray"`` does. Tasks read chunks and summarise all columns, and other
  tasks merge the summaries.
- a pass a column: the same blocks, each column by a Ray Dataset of its own.
- ray.data.preprocessors: ``OrdinalEncoder`` on strings and ``StandardScaler`` on numbers, which
  learns less than quantiles. Missing values, which it does not take, are filled in by the same
  pipeline. Some columns of each kind are timed, spread over the cardinalities, and the time is
  scaled up to all of them.
- polars: the counts and quantiles of all columns in one streaming query of one process.

All read the files anew. Each is timed once after the cluster is up, because the times are long::

    python benchmarks/ray_encode.py
    python benchmarks/ray_encode.py --rows 200000 --strings 4 --numbers 4
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from encode import QUANTILES, column_kinds, made_up_table

FILE_ROWS = 500_000


def main():
    """Make the files, time each way and print the ratios."""
    options = parse_options()
    os.environ["POLARS_MAX_THREADS"] = str(options.cpus)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        strings, numbers = write_files(directory, options)
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        print(
            f"{options.rows:,} rows, {len(strings)} string and {len(numbers)} float columns, "
            f"{size / 1e9:.1f} GB of Parquet, {options.cpus} processors"
        )
        import ray

        begin = time.perf_counter()
        ray.init(
            address="local",
            num_cpus=options.cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        # The first task waits for a worker process to start.
        ray.get(ray.remote(lambda: __import__("sk_easytensor.backends.ray.backend")).remote())
        quiet(ray)
        print(f"start of Ray: {time.perf_counter() - begin:.1f} s")
        compare(directory, strings, numbers, options)
        ray.shutdown()


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=8_000_000, help="rows in all files")
    add("--strings", type=int, default=20, help="string columns")
    add("--numbers", type=int, default=20, help="float columns")
    add("--cpus", type=int, default=2, help="processors of the cluster, threads of polars")
    add("--preprocessor-columns", type=int, default=2, help="columns of each kind for Ray's own")
    add("--skip", default="", help="ways to leave out, of columns,preprocessors,polars")
    add("--directory", help="where to put the files for the time of the run")
    return parser.parse_args()


def write_files(directory, options):
    """Write the files; return the names of string and of float columns."""
    starts = range(0, options.rows, FILE_ROWS)
    for number, start in enumerate(starts):
        n_rows = min(FILE_ROWS, options.rows - start)
        table = made_up_table(n_rows, options.strings, options.numbers, seed=number)
        pq.write_table(table, Path(directory) / f"part-{number:03}.parquet", row_group_size=250_000)
    return column_kinds(table)


def quiet(ray):
    """Keep Ray Data from drawing and logging."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def compare(directory, strings, numbers, options):
    """Time each way and print it beside the first."""
    ways = {"one pass": partial(one_pass, directory, strings, numbers)}
    skipped = options.skip.split(",")
    if "columns" not in skipped:
        ways["a pass a column"] = partial(pass_a_column, directory, strings, numbers)
    if "preprocessors" not in skipped:
        count = options.preprocessor_columns
        ways["ray.data.preprocessors"] = partial(preprocessors, directory, strings, numbers, count)
    if "polars" not in skipped:
        ways["polars, one process"] = partial(one_query, directory, strings, numbers)
    print(f"{'':28}{'seconds':>10}{'over one pass':>16}")
    first = None
    for name, fit in ways.items():
        begin = time.perf_counter()
        scale = fit() or 1.0
        seconds = scale * (time.perf_counter() - begin)
        first = first or seconds
        scaled = f" (columns timed: one in {scale:g})" if scale > 1 else ""
        print(f"{name:28}{seconds:10.1f}{seconds / first:16.2f}{scaled}", flush=True)


def blocks_for(strings, numbers):
    """Return a block for the string columns and one for the numbers."""
    from sk_easytensor.blocks import CategoryBlock, NumericBlock

    found = [("category", CategoryBlock(), strings), ("numeric", NumericBlock(), numbers)]
    return [entry for entry in found if entry[2]]


def one_pass(directory, strings, numbers):
    """Fit all blocks as an estimator on Ray does."""
    from sk_easytensor.backends.ray.backend import RayBackend
    from sk_easytensor.compose import TableEncoder
    from sk_easytensor.data.tables import as_table

    # The first number stands in for a target, which is read apart.
    target, *rest = numbers
    backend = RayBackend(num_workers=2)
    dataset = backend.read_dataset(directory, target, None, as_table, np.asarray)
    encoder = TableEncoder(blocks_for(strings, rest), remainder="drop")
    encoder.fit_table(
        dataset.sample().table, dataset.source, partial(dataset.summarize, executor=backend)
    )


def pass_a_column(directory, strings, numbers):
    """Fit a block to each column, which a Ray Dataset reads."""
    import ray

    from sk_easytensor.data.summaries import merge_all

    for names, kind in ((strings, 0), (numbers, 1)):
        for name in names:
            columns = ([name], []) if kind == 0 else ([], [name])
            ((_, block, _),) = blocks_for(*columns)
            dataset = ray.data.read_parquet(directory).select_columns([name])
            found = dataset.map_batches(
                Summarize(block), batch_format="pyarrow", batch_size=FILE_ROWS, zero_copy_batch=True
            )
            rows = found.take_all()
            block.feature_names_in_, block.n_features_in_ = np.array([name], dtype=object), 1
            block.finish(merge_all([unpickled(row["summary"]) for row in rows]))


class Summarize:
    """What a block tells of a batch, pickled."""

    def __init__(self, block):
        self.block = block

    def __call__(self, batch):
        """Return a table of one row."""
        import pickle

        import pyarrow as pa

        from sk_easytensor.data.types import plain_types

        summary = self.block.summarize(plain_types(batch))
        return pa.table({"summary": pa.array([pickle.dumps(summary)], pa.large_binary())})


def unpickled(data):
    """Return what was pickled."""
    import pickle

    return pickle.loads(data)


def preprocessors(directory, strings, numbers, count):
    """Fit Ray's encoders to some columns; return all columns over those."""
    import ray
    from ray.data.preprocessors import OrdinalEncoder, StandardScaler

    def chosen(names):
        return [names[place] for place in np.linspace(0, len(names) - 1, count).astype(int)]

    some_strings, some_numbers = chosen(strings), chosen(numbers)
    dataset = ray.data.read_parquet(directory).select_columns([*some_strings, *some_numbers])
    dataset = dataset.map_batches(filled, batch_format="pyarrow")
    OrdinalEncoder(columns=some_strings).fit(dataset)
    StandardScaler(columns=some_numbers).fit(dataset)
    return (len(strings) + len(numbers)) / (2 * count)


def filled(batch):
    """Return a batch without missing values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fill = {name: "" if pa.types.is_string(kind) else 0.0 for name, kind in types_of(batch)}
    return pa.table({name: pc.fill_null(batch[name], fill[name]) for name in fill})


def types_of(batch):
    """Return names and types of columns."""
    return [(field.name, field.type) for field in batch.schema]


def one_query(directory, strings, numbers):
    """Count values and find quantiles by polars."""
    import polars as pl

    shares = np.linspace(0, 1, QUANTILES).tolist()
    query = pl.scan_parquet(f"{directory}/*.parquet").select(
        *[pl.col(name).value_counts(sort=True).implode() for name in strings],
        *[pl.col(name).quantile(shares) for name in numbers],
    )
    query.collect(engine="streaming")


if __name__ == "__main__":
    main()
