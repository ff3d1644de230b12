"""Compare the speed of fitting and applying encoders with polars and scikit-learn.

The data are made up: strings whose columns have from 10 to 1,000,000 values of Zipf-like
frequencies, numbers of several distributions, and some missing values in each column. What is
timed starts from a table in memory, in the layout each library prefers:

- EasyTensor: ``TableEncoder.fit`` and ``encode`` (``CategoryBlock`` and ``NumericBlock``).
- polars: the counts of every string column and the quantiles of every number column in one query,
  which is the work that fitting needs; there is nothing to compare ``encode`` with.
- scikit-learn: ``OrdinalEncoder`` and ``QuantileTransformer`` (or ``StandardScaler``, which learns
  less), on a part of the rows if so asked.

The libraries take turns, so that a busy machine slows all of them alike. Reported are medians of
rows a second, and of the wall and CPU time a row of EasyTensor over that of each library in the
same turn: below 1 EasyTensor is faster.

    python benchmarks/encode.py
    python benchmarks/encode.py --rows 500000 --threads 1 --sklearn-rows 500000
"""

from __future__ import annotations

import argparse
import os
import statistics

import numpy as np
import pyarrow as pa
from turns import median_ratio, time_by_turns

OURS = "EasyTensor"
LARGEST_CARDINALITY = 1_000_000
MISSING = 0.02
QUANTILES = 129  # edges of the default number of bins


def main():
    """Run the comparison and print its tables."""
    options = parse_options()
    # Both are read when the libraries are imported.
    os.environ["POLARS_MAX_THREADS"] = str(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    table = made_up_table(options.rows, options.strings, options.numbers)
    size = f"{options.strings} string and {options.numbers} float columns"
    print(f"{options.rows:,} rows, {size}, {options.threads} threads, medians of turns")
    fits, transforms = {}, {}
    for library in (EasyTensor, Polars, SklearnQuantiles, SklearnStandard):
        fitted = library(table, options)
        fits[fitted.name] = (fitted.fit, fitted.n_rows)
        if hasattr(fitted, "transform"):
            transforms[fitted.name] = (fitted.transform, fitted.n_rows)
    print_comparison("fit", fits, options.repeats)
    print_comparison("transform", transforms, options.repeats)


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=2_000_000, help="rows of the table")
    add("--strings", type=int, default=10, help="string columns")
    add("--numbers", type=int, default=10, help="float columns")
    add("--threads", type=int, default=2, help="threads each library may use")
    add("--repeats", type=int, default=5, help="turns of each library, after one that is not timed")
    add("--sklearn-rows", type=int, default=100_000, help="rows given to scikit-learn")
    return parser.parse_args()


def made_up_table(n_rows, n_strings, n_numbers, seed=0):
    """Return an Arrow table of strings and numbers with missing values.

    Tables of different seeds have other rows with the same categories.
    """
    rng = np.random.default_rng(seed)
    columns = {}
    for index, size in enumerate(np.geomspace(10, LARGEST_CARDINALITY, n_strings).astype(int)):
        order = np.random.default_rng(index).permutation(size)
        names = pa.array([f"value {number:07d}" for number in order])
        # The logarithm of the rank is uniform, so that frequencies fall as one over the rank.
        rank = np.minimum((size + 1) ** rng.random(n_rows), size).astype(np.int64) - 1
        columns[f"string_{index}"] = names.take(pa.array(rank, mask=missing(rng, n_rows)))
    draws = [rng.normal, rng.lognormal, rng.exponential, rng.random]
    for index in range(n_numbers):
        values = draws[index % len(draws)](size=n_rows)
        if index % 5 == 4:
            values = values.round(2)
        columns[f"number_{index}"] = pa.array(values, mask=missing(rng, n_rows))
    return pa.table(columns)


def missing(rng, n_rows):
    """Return a mask of the values that are missing."""
    return rng.random(n_rows) < MISSING


class EasyTensor:
    """Our encoder on the Arrow table."""

    name = OURS

    def __init__(self, table, options):
        from sk_easytensor.blocks import CategoryBlock, NumericBlock
        from sk_easytensor.compose import TableEncoder

        strings, numbers = column_kinds(table)
        blocks = [("category", CategoryBlock(), strings), ("numeric", NumericBlock(), numbers)]
        self.encoder = TableEncoder(blocks, n_jobs=options.threads)
        self.table = table
        self.n_rows = len(table)

    def fit(self):
        """Learn vocabularies and bin edges."""
        self.encoder.fit(self.table)

    def transform(self):
        """Look up codes and positions among the edges."""
        self.encoder.encode(self.table)


class Polars:
    """The counting that fitting needs, as one query."""

    def __init__(self, table, options):
        import polars as pl

        strings, numbers = column_kinds(table)
        shares = np.linspace(0, 1, QUANTILES).tolist()
        self.query = (
            pl.DataFrame(table)
            .lazy()
            .select(
                *[pl.col(name).value_counts(sort=True).implode() for name in strings],
                *[pl.col(name).quantile(shares) for name in numbers],
            )
        )
        self.n_rows = len(table)
        self.name = f"polars {pl.__version__}"

    def fit(self):
        """Count values and find quantiles."""
        self.query.collect()


class Sklearn:
    """An encoder of the strings and one of the numbers, in a ``ColumnTransformer``."""

    def __init__(self, table, options, scaler):
        from sklearn import __version__
        from sklearn.compose import ColumnTransformer
        from sklearn.preprocessing import OrdinalEncoder

        strings, numbers = column_kinds(table)
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        transformers = [("strings", encoder, strings), ("numbers", scaler, numbers)]
        self.transformer = ColumnTransformer(transformers)
        self.X = table.slice(0, options.sklearn_rows).to_pandas()
        self.n_rows = len(self.X)
        self.name = f"scikit-learn {__version__}, {type(scaler).__name__}"

    def fit(self):
        """Learn categories and the scale of numbers."""
        self.transformer.fit(self.X)

    def transform(self):
        """Encode strings and scale numbers."""
        self.transformer.transform(self.X)


class SklearnQuantiles(Sklearn):
    """With a scaler that learns the distribution, on a sample of the rows as by default."""

    def __init__(self, table, options):
        from sklearn.preprocessing import QuantileTransformer

        super().__init__(table, options, QuantileTransformer(n_quantiles=QUANTILES))


class SklearnStandard(Sklearn):
    """With a scaler that learns mean and standard deviation."""

    def __init__(self, table, options):
        from sklearn.preprocessing import StandardScaler

        super().__init__(table, options, StandardScaler())


def column_kinds(table):
    """Return the names of the string columns and those of the float columns."""
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    return strings, numbers


def print_comparison(step, contestants, repeats):
    """Time contestants by turns; print rows a second and EasyTensor's time over each one's."""
    functions = {name: function for name, (function, _) in contestants.items()}
    wall, cpu = time_by_turns(functions, repeats)
    for name, (_, n_rows) in contestants.items():
        wall[name] = [seconds / n_rows for seconds in wall[name]]
        cpu[name] = [seconds / n_rows for seconds in cpu[name]]
    print(f"\n{step:40}{'rows/s':>12}{'our wall / its':>16}{'our CPU / its':>16}")
    for name in contestants:
        speed = 1 / statistics.median(wall[name])
        ratios = [median_ratio(seconds[OURS], seconds[name]) for seconds in (wall, cpu)]
        print(f"{name:40}{speed:12,.0f}{ratios[0]:16.2f}{ratios[1]:16.2f}", flush=True)


if __name__ == "__main__":
    main()
