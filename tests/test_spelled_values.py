"""Columns of texts that are numbers or dates are not read as categories without a word."""

import re
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sk_easytensor import CategoryBlock, EasyTensorClassifier, SpelledValuesWarning
from sk_easytensor.blocks.detection import detect_blocks

N = 100
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=N) * 1000
COUNTS = RANDOM.integers(1, 10_000, N)
DAYS = pd.date_range("2013-01-01", periods=N, freq="31h")

NUMERIC = {
    "decimals": [f"{x:.2f}" for x in NUMBERS],
    "missing": [str(n) if n % 13 else "N/A" for n in COUNTS],
    "unknown": [f"{x:.1f}" if n % 13 else "unknown" for x, n in zip(NUMBERS, COUNTS, strict=True)],
    "thousands": [f"{n:,}" for n in COUNTS * 1000],
    "dollars": [f"${n:,}.50" for n in COUNTS],
    "euros": [f"-€ {n}.99" for n in COUNTS],
    "percent": [f"{n / 100} %" for n in COUNTS],
    "exponents": [f"{x:.3e}" for x in NUMBERS],
    "spaces": [f"  {x:.2f} " for x in NUMBERS],
    "no digit before": [f".{n}" for n in COUNTS],
}
DATES = {
    "american": list(DAYS.strftime("%m/%d/%Y %I:%M %p")),
    "european": list(DAYS.strftime("%d.%m.%Y")),
    "with a note": [*DAYS.strftime("%d-%m-%y")[:-5], *["not yet"] * 5],
}
CATEGORIES = {
    "zip codes": [f"{n:05d}" for n in COUNTS],
    "zip codes and gaps": [f"{n:05d}" if n % 13 else "N/A" for n in COUNTS],
    "ids": [str(n) for n in COUNTS],
    "names": [f"name {n}" for n in COUNTS],
    "sizes": [f"{n % 40} XL" for n in COUNTS],
    "a few levels": [["0.5", "1.5", "2.5"][n % 3] for n in COUNTS],
    "half of them": [
        f"{x:.2f}" if n % 2 else f"level {n}" for x, n in zip(NUMBERS, COUNTS, strict=True)
    ],
    "dashes": ["-"] * N,
    "empty": [""] * N,
    "missing": [None] * N,
    "versions": [f"1.{n}.2" for n in COUNTS],
    "longer versions": [f"{n % 20}.{n % 29}.{n % 31}" for n in COUNTS],
    "social security": [f"{n % 900:03}-{n % 97:02}-{n:04}" for n in COUNTS],
    "scores": [f"{n % 7}/{n % 5}/{n % 3}" for n in COUNTS],
    "decimal codes": [f"{n:05}.{n % 10}" for n in COUNTS],
    "phones": [f"+49 {n} 77" for n in COUNTS],
    "numbers": list(NUMBERS),
}


def detect(values, **options):
    return detect_blocks(pa.table({"c": pa.array(values)}), ["c"], **options)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        *[("numbers", name, values) for name, values in NUMERIC.items()],
        *[("dates", name, values) for name, values in DATES.items()],
    ],
)
def test_spelled_numbers_and_dates_are_named(kind, name, values):
    convert = {"numbers": "to_numeric", "dates": "to_datetime"}[kind]
    with pytest.warns(SpelledValuesWarning, match=rf"column 'c' .* are {kind}, .*{convert}"):
        detect(values)
    with pytest.warns(SpelledValuesWarning):
        detect(pa.array(values).cast(pa.large_string()))


@pytest.mark.parametrize("name", NUMERIC | DATES)
def test_the_line_that_converts_keeps_the_values(name):
    values = (NUMERIC | DATES)[name]
    with pytest.warns(SpelledValuesWarning) as caught:
        detect(values)
    (line,) = re.findall(r"convert it: (pandas\..*\))\. If it has", str(caught[0].message))
    converted = eval(line, {"pandas": pd, "X": pd.DataFrame({"c": values})})
    assert converted.dtype.kind in "fiM"
    assert converted.notna().mean() >= 0.9


def test_columns_are_reported_in_their_order():
    names = [f"column {index}" for index in range(8)]
    table = pa.table({name: pa.array(NUMERIC["decimals"]) for name in names})
    with pytest.warns(SpelledValuesWarning) as caught:
        detect_blocks(table, names)
    assert [re.search("column [0-9]", str(each.message))[0] for each in caught] == names


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories_are_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detect(CATEGORIES[name])


def test_the_message_has_examples_of_both():
    expected = r"9\d of 100 values are numbers, such as '\d+' \(the others are such as 'N/A'\)"
    with pytest.warns(SpelledValuesWarning, match=expected):
        detect(NUMERIC["missing"])


def test_a_column_that_is_named_is_not_reported():
    X = pd.DataFrame({"price": NUMERIC["decimals"], "x": NUMBERS})
    y = COUNTS % 2
    quick = {"max_epochs": 1, "trees": None, "n_folds": None}
    with pytest.warns(SpelledValuesWarning, match="'price'") as caught:
        EasyTensorClassifier(**quick).fit(X, y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpelledValuesWarning)
        EasyTensorClassifier(categorical_features=["price"], **quick).fit(X, y)
        EasyTensorClassifier([("p", CategoryBlock(), "price")], **quick).fit(X, y)
        X["price"] = pd.to_numeric(X["price"], errors="coerce")
        EasyTensorClassifier(**quick).fit(X, y)
