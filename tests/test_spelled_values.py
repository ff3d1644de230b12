"""Columns of texts that are numbers or dates are read as such, or named in a warning."""

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import (
    CategoryBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    SpelledValuesWarning,
)
from sk_easytensor.blocks import PretrainedBlock
from sk_easytensor.blocks.detection import detect_blocks
from sk_easytensor.data.spelling import (
    MISSING_MARKERS,
    infer_date_format,
    infer_number_format,
    parse_numbers,
)
from sk_easytensor.inference import load

N = 100
RANDOM = np.random.default_rng(0)
NUMBERS = np.round(RANDOM.normal(size=N) * 1000, 2)
COUNTS = RANDOM.integers(1, 10_000, N)
DAYS = pd.date_range("2013-01-01", periods=N, freq="31h")
QUICK = {"max_epochs": 1, "trees": None, "n_folds": None, "random_state": 0}

NUMERIC = {
    "decimals": ([f"{x:.2f}" for x in NUMBERS], NUMBERS),
    "missing": ([str(n) if n % 13 else "N/A" for n in COUNTS], np.where(COUNTS % 13, COUNTS, None)),
    "unknown": (
        [f"{x:.2f}" if n % 13 else " Unknown " for x, n in zip(NUMBERS, COUNTS, strict=True)],
        np.where(COUNTS % 13, NUMBERS, None),
    ),
    "thousands": ([f"{n:,}" for n in COUNTS * 1000], COUNTS * 1000),
    "european": ([f"{n:,}".replace(",", ".") + ",25" for n in COUNTS], COUNTS + 0.25),
    "commas": ([f"{n},5" for n in COUNTS], COUNTS + 0.5),
    "dollars": ([f"${n:,}.50" for n in COUNTS], COUNTS + 0.5),
    "codes of currencies": ([f"USD {n}" for n in COUNTS], COUNTS),
    "euros": ([f"-€ {n}.99" for n in COUNTS], -COUNTS - 0.99),
    "signs": ([f"€-{n}" for n in COUNTS], -COUNTS),
    "percent": ([f"{n / 100} %" for n in COUNTS], COUNTS / 100),
    "units": ([f"{n:,} mi" for n in COUNTS], COUNTS),
    "euros behind": ([f"{n},50 €" for n in COUNTS], COUNTS + 0.5),
    "narrow spaces": ([f"{n}\u00a0kg" for n in COUNTS], COUNTS),
    "three decimals": ([f"{n / 1000:.3f}" for n in COUNTS], COUNTS / 1000),
    "square metres": ([f"{n}m²" for n in COUNTS], COUNTS),
    "sizes": ([f"{n % 40} XL" for n in COUNTS], COUNTS % 40),
    "exponents": ([f"{n}e-3" for n in COUNTS], COUNTS / 1000),
    "spaces": ([f"  {x:.2f} " for x in NUMBERS], NUMBERS),
    "no digit before": ([f".{n}" for n in COUNTS], [float(f".{n}") for n in COUNTS]),
}
DATES = {
    "american": "%m/%d/%Y %I:%M %p",
    "day first": "%d.%m.%Y",
    "clock": "%d-%m-%Y %H:%M:%S",
    "months": "%d %b %Y",
    "long months": "%B %d, %Y",
    "slashes": "%Y/%m/%d",
}
CATEGORIES = {
    "zip codes": [f"{n:05d}" for n in COUNTS],
    "zip codes and gaps": [f"{n:05d}" if n % 13 else "N/A" for n in COUNTS],
    "ids": [str(n) for n in COUNTS],
    "names": [f"name {n}" for n in COUNTS],
    "a few levels": [["0.5", "1.5", "2.5"][n % 3] for n in COUNTS],
    "several units": [f"{n} {'kg' if n % 2 else 'g'}" for n in COUNTS],
    "half of them": [
        f"{x:.2f}" if n % 2 else f"level {n}" for x, n in zip(NUMBERS, COUNTS, strict=True)
    ],
    "dashes": ["-"] * N,
    "empty": [""] * N,
    "missing": [None] * N,
    "versions": [f"1.{n}.2" for n in COUNTS],
    "addresses": [f"192.168.{100 + n % 100}.{100 + n % 90}" for n in COUNTS],
    "invoices": [f"INV {n}" for n in COUNTS],
    "seats": [f"{n % 40}{'ABC'[n % 3]}" for n in COUNTS],
    "longer versions": [f"{n % 20}.{n % 29}.{n % 31}" for n in COUNTS],
    "social security": [f"{n % 900:03}-{n % 97:02}-{n:04}" for n in COUNTS],
    "scores": [f"{n % 7}/{n % 5}/{n % 3}" for n in COUNTS],
    "decimal codes": [f"{n:05}.{n % 10}" for n in COUNTS],
    "phones": [f"+49 {n} 77" for n in COUNTS],
    "booleans": ["TRUE" if n % 2 else "FALSE" for n in COUNTS],
}
IN_PART = {
    "numbers and words": [f"{x:.2f}" for x in NUMBERS[:-5]] + ["a lot"] * 5,
    "long codes and gaps": [f"{90_000 + n % 10_000}" if n % 13 else "N/A" for n in COUNTS],
    "mixed currencies": [f"{'$' if n % 2 else '€'}{n:,}.50" for n in COUNTS],
    "versions of two parts": [f"3.{n}" for n in range(N)],
    "cells": [f"{n % 40}E{n % 3}" for n in COUNTS],
    "thousands or decimals": [f"{n:,}".replace(",", ".") for n in COUNTS],
    "years of two digits": list(DAYS.strftime("%m/%d/%y")),
    "with a note": [*DAYS.strftime("%d-%m-%y")[:-5], *["not yet"] * 5],
}


def detect(values, name="c", **options):
    found = detect_blocks(pa.table({name: pa.array(values)}), [name], **options)
    return [block for block, _ in found]


def chunked(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


# ---------------------------------------------------------------------- what is recognized


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("name", NUMERIC)
def test_texts_that_are_numbers_are_read_as_these(name, kind):
    texts, expected = NUMERIC[name]
    assert detect(pa.array(texts, kind)) == [NumericBlock]
    column = chunked(texts, kind)
    found = parse_numbers(column, infer_number_format(column))
    np.testing.assert_allclose(found, np.array(expected, dtype=float), rtol=1e-15)
    block = NumericBlock().fit({"c": texts})
    plain = NumericBlock().fit({"c": np.array(expected, dtype=float)})
    np.testing.assert_array_equal(
        block.transform({"c": texts})["values"],
        plain.transform({"c": np.array(expected, dtype=float)})["values"],
    )


@pytest.mark.parametrize("name", DATES)
def test_texts_that_are_dates_are_read_as_these(name):
    texts = [*DAYS.strftime(DATES[name]), "N/A", None]
    expected = [*pd.to_datetime(DAYS.strftime(DATES[name]), format=DATES[name]), pd.NaT, pd.NaT]
    assert detect(texts) == [DatetimeBlock]
    block = DatetimeBlock().fit({"c": texts})
    assert block.formats_ == [DATES[name]]
    plain = DatetimeBlock().fit({"c": expected})
    assert plain.formats_ == [None]
    np.testing.assert_array_equal(
        block.transform({"c": texts})["times"], plain.transform({"c": expected})["times"]
    )


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories_are_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detect(CATEGORIES[name]) == [CategoryBlock]


@pytest.mark.parametrize("name", ["brand_id", "zip", "postCode", "SKU"])
def test_numbers_are_codes_by_the_name_of_their_column(name):
    texts = [str(n) if n % 13 else "N/A" for n in COUNTS]
    assert detect(texts) == [NumericBlock]
    assert detect(texts, name) == [CategoryBlock]


def test_iso_dates_among_markers_of_missing_values_are_dates():
    texts = [*DAYS.strftime("%Y-%m-%d"), "n/a"]
    assert detect(texts) == [DatetimeBlock]
    assert DatetimeBlock().fit({"c": texts}).formats_ == ["%Y-%m-%d"]
    assert DatetimeBlock().fit({"c": texts[:-1]}).formats_ == [None]


def test_one_value_decides_the_order_of_day_and_month(caplog):
    texts = ["01/02/2013"] * 3000
    with caplog.at_level("INFO", "sk_easytensor"):
        block = DatetimeBlock().fit({"c": texts})
    assert block.formats_ == ["%m/%d/%Y"]
    assert "column 'c': dates are read as %m/%d/%Y; DatetimeBlock(format='%d/%m/%Y')" in caplog.text
    texts[2500] = "13/02/2013"
    assert infer_date_format(chunked(texts)) == ("%d/%m/%Y", None)
    # Before dots the day is first.
    assert infer_date_format(chunked(["01.02.2013"])) == ("%d.%m.%Y", "%m.%d.%Y")


def test_a_format_of_dates_may_be_given():
    block = DatetimeBlock(format="%d/%m/%Y").fit({"c": ["01/02/2013", "?"]})
    assert block.edges_[0].tolist() == [pd.Timestamp("2013-02-01").timestamp()]
    assert block.transform({"c": ["02/13/2013"]})["times"].isnan().all()
    assert not block.transform({"c": [pd.Timestamp("2013-02-13")]})["times"].isnan().all()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("%d/%m", r"format must be None or have a day, a month and a year, .* got '%d/%m'"),
        ("%a %d %b %Y", "of the directives %d, %m, .*got '%a %d %b %Y'"),
        (7, "format must be None or have a day"),
        ("%d|%m|%Y*", r"column 'c' has no date in format='.*'; it holds '01/02/2013'"),
    ],
)
def test_bad_formats(form, message):
    with pytest.raises(ValueError, match=message):
        DatetimeBlock(format=form).fit({"c": ["01/02/2013"]})


def test_a_day_that_does_not_exist_is_no_date():
    assert infer_date_format(chunked(["02/28/2013", "02/30/2013"])) == (None, None)


def test_a_block_of_numbers_reads_texts_where_it_is_named():
    """Also codes, which are categories otherwise."""
    block = NumericBlock().fit({"c": ["07", "3"]})
    assert block.edges_[0].tolist() == [3, 7]
    assert NumericBlock().fit({"c": ["N/A", "unknown"]}).missing_fraction_.tolist() == [1]
    for texts, reason in (
        (["07", "three"], "it holds 'three'"),
        (["$1.5", "€2.5"], "several forms, such as '\\$1.5' and '€2.5'"),
        (["1.428", "2.500"], "'1.428', whose dot may also separate thousands"),
    ):
        message = f"column 'c' of type string cannot be read by NumericBlock: .*{reason}"
        with pytest.raises(TypeError, match=message):
            NumericBlock().fit({"c": texts})


@pytest.mark.parametrize("text", ["--1.5", "-$-1.5", "1" * 400 + ".5", "1.5e400"])
def test_what_is_no_number_makes_a_column_one_of_categories(text):
    texts = [text, *NUMERIC["dollars"][0]] if "$" in text else [text, *NUMERIC["decimals"][0]]
    assert infer_number_format(chunked(texts)) is None
    form = infer_number_format(chunked(texts[1:]))
    assert np.isnan(parse_numbers(chunked([text]), form)).all()


def test_larger_numbers_may_have_separators_later():
    block = NumericBlock().fit({"c": [f"${n}.50" for n in range(20)]})
    assert block._numbers(pa.table({"c": ["$1,000.50", "$2000.5"]}))[0].tolist() == [1000.5, 2000.5]


def test_missing_values_may_come_first():
    for first in ([None] * 1500, ["N/A"] * 1500):
        assert detect([*first, *NUMERIC["dollars"][0]]) == [NumericBlock]
        assert detect([*first, *DAYS.strftime("%d.%m.%Y")]) == [DatetimeBlock]


def test_texts_of_categoricals_are_read_later():
    texts = NUMERIC["dollars"][0]
    days = DAYS.strftime("%d.%m.%Y")
    coded = {"n": pd.Categorical(texts), "d": pd.Categorical(days)}
    for name, block in (("n", NumericBlock()), ("d", DatetimeBlock())):
        plain = pd.DataFrame({"n": texts, "d": days})[[name]]
        (entry,) = block.fit(plain).transform(plain).values()
        (found,) = block.transform(pd.DataFrame(coded)[[name]]).values()
        np.testing.assert_array_equal(found, entry)
    block = DatetimeBlock(format="%d.%m.%Y").fit(pd.DataFrame(coded)[["d"]])
    assert block.formats_ == ["%d.%m.%Y"]


def test_iso_dates_are_read_whatever_the_format():
    block = DatetimeBlock().fit({"c": ["05/17/2013", "05/18/2013"]})
    texts = {"c": ["2013-05-17", "2013-05-17T00:00:00"]}
    expected = block.transform({"c": ["05/17/2013", "05/17/2013"]})["times"]
    np.testing.assert_array_equal(block.transform(texts)["times"], expected)


@given(st.lists(st.floats(-1e15, 1e15), min_size=1))
def test_numbers_survive_as_texts(values):
    column = chunked([repr(value) for value in values])
    form = infer_number_format(column)
    assert parse_numbers(column, form).tolist() == values


@given(st.lists(st.text(max_size=12), min_size=1))
def test_any_texts_are_read_or_not(texts):
    texts = [text.encode(errors="ignore").decode() for text in texts]
    column = chunked(texts, pa.string())
    form = infer_number_format(column)
    if form is not None:
        found = parse_numbers(column, form)
        missing = [text.strip().lower() in MISSING_MARKERS for text in texts]
        assert (np.isnan(found) == missing).all()
    infer_date_format(column)


# ---------------------------------------------------------------------- in models


def messy_table(n_rows=240):
    """Return twenty columns of texts, and what they say of a target."""
    random = np.random.default_rng(1)
    repeats = -(-n_rows // N)
    columns = {name: texts for name, (texts, _) in NUMERIC.items()}
    columns |= {name: list(DAYS.strftime(form)) for name, form in DATES.items()}
    table = pd.DataFrame({name: (values * repeats)[:n_rows] for name, values in columns.items()})
    order = random.permutation(n_rows)
    table = table.iloc[order].reset_index(drop=True)
    target = np.tile(NUMBERS / 500, repeats)[:n_rows][order]
    return table, target


@pytest.fixture(scope="module")
def fitted():
    X, y = messy_table()
    model = EasyTensorRegressor(**{**QUICK, "max_epochs": 12}, linear=None).fit(X, y)
    return model, X, y


def test_a_table_of_texts_is_a_table_of_numbers_and_dates(fitted):
    model, X, y = fitted
    assert list(model.blocks_) == ["datetime", "numeric"]
    assert list(model.blocks_["datetime"].feature_names_in_) == list(DATES)
    assert list(model.blocks_["numeric"].feature_names_in_) == list(NUMERIC)
    assert model.score(X, y) > 0.8


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.astype(object),
        lambda X: X.astype("str"),
        lambda X: pl.from_pandas(X),
        lambda X: pa.Table.from_pandas(X, preserve_index=False),
        lambda X: X.to_dict("records"),
    ],
    ids=["objects", "strings", "polars", "Arrow", "records"],
)
def test_texts_of_all_flavours_are_read_alike(convert, fitted):
    model, X, _ = fitted
    np.testing.assert_array_equal(model.predict(convert(X)), model.predict(X))


def test_numbers_and_dates_may_follow_texts(fitted):
    model, X, _ = fitted
    converted = X.copy()
    for name, form in DATES.items():
        converted[name] = pd.to_datetime(X[name], format=form)
    texts = chunked(X["dollars"].tolist())
    converted["dollars"] = parse_numbers(texts, infer_number_format(texts))
    np.testing.assert_allclose(model.predict(converted), model.predict(X), rtol=1e-6)


def test_texts_that_are_no_numbers_are_missing_later(fitted):
    model, X, _ = fitted
    spoilt, missing = X[:1].assign(dollars="a lot"), X[:1].assign(dollars=None)
    np.testing.assert_array_equal(model.predict(spoilt), model.predict(missing))
    others = X[:40].assign(dollars=[f"price {n}" for n in range(40)])
    with pytest.warns(UserWarning, match="'dollars': no value of its 40 rows is a number in the"):
        model.predict(others)
    others = X[:40].assign(american=[f"day {n}" for n in range(40)])
    with pytest.warns(UserWarning, match="'american': no value of its 40 rows is a date in the"):
        model.predict(others)


def test_texts_are_read_by_exported_models(fitted, tmp_path):
    model, X, _ = fitted
    exported = load(model.to_onnx(tmp_path / "model.onnx"))
    for rows in (X, X[:2].to_dict("records")):
        np.testing.assert_allclose(exported.predict(rows), model.predict(rows), rtol=1e-5)
    converted = X.assign(american=pd.to_datetime(X["american"], format=DATES["american"]))
    np.testing.assert_allclose(exported.predict(converted), model.predict(X), rtol=1e-5)


def test_a_pretrained_block_reads_texts_as_its_model_does(fitted):
    model, X, y = fitted
    block = PretrainedBlock(model).fit(X)
    np.testing.assert_array_equal(block.transform(X)["vectors"][:, 0], model.transform(X))
    other = EasyTensorRegressor([("before", PretrainedBlock(model), list(X.columns))], **QUICK)
    assert np.isfinite(other.fit(X, y).predict(X)).all()


# ---------------------------------------------------------------------- in part


@pytest.mark.parametrize("name", IN_PART)
def test_columns_that_are_numbers_or_dates_in_part_are_named(name):
    is_date = "note" in name or "years" in name
    kind, convert = ("dates", "to_datetime") if is_date else ("numbers", "to_numeric")
    with pytest.warns(SpelledValuesWarning, match=rf"column 'c' .* are {kind}, .*{convert}"):
        assert detect(IN_PART[name]) == [CategoryBlock]


@pytest.mark.parametrize("name", IN_PART)
def test_the_line_that_converts_keeps_the_values(name):
    with pytest.warns(SpelledValuesWarning) as caught:
        detect(IN_PART[name])
    (line,) = re.findall(r"convert it: (pandas\..*\))\. If it has", str(caught[0].message))
    converted = eval(line, {"pandas": pd, "X": pd.DataFrame({"c": IN_PART[name]})})
    assert converted.dtype.kind in "fiM"
    assert converted.notna().mean() >= 0.9


def test_columns_are_reported_in_their_order():
    names = [f"column {index}" for index in range(8)]
    table = pa.table({name: pa.array(IN_PART["numbers and words"]) for name in names})
    with pytest.warns(SpelledValuesWarning) as caught:
        detect_blocks(table, names)
    assert [re.search("column [0-9]", str(each.message))[0] for each in caught] == names


def test_the_message_has_examples_of_both():
    expected = r"95 of 100 values are numbers, such as '[-.\d]+' \(the others are such as 'a lot'\)"
    with pytest.warns(SpelledValuesWarning, match=expected):
        detect(IN_PART["numbers and words"])


def test_a_column_that_is_named_is_not_reported():
    X = pd.DataFrame({"price": IN_PART["numbers and words"], "x": NUMBERS})
    y = COUNTS % 2
    with pytest.warns(SpelledValuesWarning, match="'price'") as caught:
        EasyTensorClassifier(**QUICK).fit(X, y)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpelledValuesWarning)
        EasyTensorClassifier(categorical_features=["price"], **QUICK).fit(X, y)
        EasyTensorClassifier([("p", CategoryBlock(), "price")], **QUICK).fit(X, y)
        X["price"] = pd.to_numeric(X["price"], errors="coerce")
        EasyTensorClassifier(**QUICK).fit(X, y)


def test_numbers_as_texts_may_be_categories():
    X = pd.DataFrame({"price": NUMERIC["dollars"][0], "x": NUMBERS})
    model = EasyTensorClassifier(categorical_features=["price"], **QUICK).fit(X, COUNTS % 2)
    assert list(model.blocks_["category"].feature_names_in_) == ["price"]
