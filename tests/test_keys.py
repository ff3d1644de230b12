"""One spelling per value, whatever carries it."""

import datetime as dt
import decimal
import math
import re
import warnings
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_easytensor import (
    CategoryBlock,
    CategorySequenceBlock,
    EventSequenceBlock,
    TableEncoder,
)
from sk_easytensor.blocks.category import MISSING, UNSEEN
from sk_easytensor.data.columns import cast_column
from sk_easytensor.data.key_index import KeyIndex
from sk_easytensor.data.keys import category_keys, value_family
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.onnx.graph import Graph
from sk_easytensor.onnx.readers import readers

UTC = dt.UTC


def arrow(kind):
    return lambda values: pa.array(values, from_pandas=True).cast(kind)


def objects(values):
    return pd.Series(values, dtype=object)


@contextmanager
def suppress_errors(message):
    """Accept an error that names the column and a row, with a message."""
    try:
        yield
    except TypeError as error:
        if not re.search(f"'c' holds .* in row [0-9]+, .*{message}", str(error)):
            raise


def dictionary(values):
    return pa.array(values, from_pandas=True).dictionary_encode()


def mixed(values):
    """Return the values in a column of objects that holds a text of another row as well."""
    return pd.Series([*values, "other"], dtype=object)


def texts(spell):
    return lambda values: [None if value is None else spell(value) for value in values]


COMMON = [list, objects, dictionary, pd.Categorical]

NUMBERS = [
    *COMMON,
    mixed,
    *[arrow(kind) for kind in (pa.int8(), pa.int64(), pa.float16(), pa.float32(), pa.float64())],
    arrow(pa.decimal128(23, 2)),
    lambda values: pd.array(values, dtype="Int64"),
    lambda values: pd.Series(values, dtype="int16[pyarrow]"),
    lambda values: pl.Series(values, dtype=pl.Int32),
    lambda values: pl.Series(values, dtype=pl.Float64),
    lambda values: [None if value is None else float(value) for value in values],
    lambda values: mixed([None if value is None else float(value) for value in values]),
    lambda values: mixed([None if value is None else np.float32(value) for value in values]),
    lambda values: [None if value is None else decimal.Decimal(value) for value in values],
    lambda values: pd.Categorical([None if v is None else float(v) for v in values]),
    texts(str),
    lambda values: pl.Series(texts(str)(values), dtype=pl.Categorical),
]

BOOLEANS = [
    *COMMON,
    mixed,
    arrow(pa.int8()),
    arrow(pa.float64()),
    lambda values: pd.array(values, dtype="boolean"),
    lambda values: pl.Series(values, dtype=pl.Boolean),
    lambda values: [None if value is None else np.bool_(value) for value in values],
    texts(str),
    texts(lambda value: str(int(value))),
    lambda values: pd.Categorical(texts(str)(values)),
    lambda values: pa.array(texts(str)(values), pa.large_string()),
    lambda values: mixed(texts(int)(values)),
]

TIMES = [
    *COMMON,
    *[arrow(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")],
    lambda values: pd.Series(values, dtype="datetime64[ns]"),
    lambda values: objects([None if value is None else pd.Timestamp(value) for value in values]),
    lambda values: pl.Series(values, dtype=pl.Datetime("ms")),
    lambda values: pa.array(values).cast(pa.timestamp("ns")).dictionary_encode(),
    lambda values: pd.Series(values, dtype="datetime64[us]").dt.to_period("s"),
]

DATES = [
    *COMMON,
    *[arrow(kind) for kind in (pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns"))],
    lambda values: pl.Series(values, dtype=pl.Date),
    lambda values: pd.Series(values, dtype="datetime64[us]"),
    lambda values: pd.Series(values, dtype="datetime64[us]").dt.to_period("D"),
    lambda values: [None if v is None else dt.datetime(v.year, v.month, v.day) for v in values],
    texts(str),
]

INSTANTS = [
    *COMMON,
    *[arrow(pa.timestamp(unit, "UTC")) for unit in ("s", "ms", "us", "ns")],
    arrow(pa.timestamp("us", "Europe/Berlin")),
    lambda values: pl.Series(values, dtype=pl.Datetime("us", "UTC")),
    lambda values: pd.Series(values, dtype="datetime64[ns, Asia/Kolkata]"),
]

second = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)).map(
    lambda time: time.replace(microsecond=0)
)

FAMILIES = {
    "numbers": (NUMBERS, st.integers(-100, 100)),
    "booleans": (BOOLEANS, st.booleans()),
    "dates": (DATES, st.dates(dt.date(1900, 1, 1), dt.date(2200, 1, 1))),
    "times": (TIMES, second | st.just(dt.datetime(2024, 1, 31))),
    "instants": (INSTANTS, second.map(lambda time: time.replace(tzinfo=UTC))),
}


def codes(block, values):
    return block.transform({"c": values})["codes"][:, 0].tolist()


def session_of(block):
    """Return what encodes a table as an exported graph does, without a network."""
    graph = Graph()
    for entry, value in block.to_onnx(graph).items():
        graph.output(value, entry, np.int32, ["rows", "columns"])
    model = graph.model("test", "1", {}).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = readers(graph.readers)

    def encode(values):
        table, given = as_table({"c": values}), {}
        for read in found:
            given.update(read(table))
        return session.run(["codes"], given)[0][:, 0].tolist()

    return encode


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_value_has_one_name_whatever_carries_it(family, data):
    carriers, values = FAMILIES[family]
    fitted = data.draw(st.lists(values, min_size=1, max_size=6))
    given = data.draw(st.lists(st.none() | st.sampled_from(fitted) | values, max_size=4))
    given = [*given, fitted[0]]
    one, other = (carriers[data.draw(st.integers(0, len(carriers) - 1))] for _ in range(2))
    block = CategoryBlock().fit({"c": one(fitted)})
    expected = [MISSING if v is None else UNSEEN if v not in fitted else None for v in given]
    found = codes(block, other(given))[: len(given)]
    assert len(block.categories_[0]) == len(set(fitted)) + (len(one(fitted)) > len(fitted))
    assert [code if code < 2 else None for code in found] == expected
    assert found == codes(block, one(given))[: len(given)]
    alone = [codes(block, other([value]))[0] for value in given if value is not None]
    assert alone == [code for code, value in zip(found, given, strict=True) if value is not None]
    assert session_of(block)(other(given))[: len(given)] == found
    hashed = CategoryBlock(hash_buckets=10**6).fit({"c": one(fitted)})
    assert codes(hashed, other(given))[: len(given)] == codes(hashed, one(given))[: len(given)]
    keys = KeyIndex(as_table({"c": one(fitted)}).column("c"), "c", "an example")
    rows = keys.rows(as_table({"c": other(fitted)}).column("c"))[: len(fitted)]
    assert rows.tolist() == [fitted.index(value) for value in fitted]
    lists = CategorySequenceBlock().fit({"c": [as_table({"c": one(fitted)})["c"].to_pylist()]})
    assert lists.categories_[0].to_pylist() == block.categories_[0].to_pylist()


@pytest.mark.parametrize(
    "values",
    [
        [True, False, "unknown"],
        [1.0, 2.0, "A"],
        [1.0, 2, 3.5, "A"],
        [True, 2, 0.5],
        [1e300, 2**65, -(2.0**63), -(2**63), 2**64 - 1, 2.0**60, "A"],
        [decimal.Decimal("1"), decimal.Decimal("0.5"), "A"],
        [2**63, 2**63 + 1, 1],
        [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 12)],
        [dt.datetime(2024, 1, 1, 12), dt.date(2024, 1, 1)],
        [pd.Timestamp("2024-01-01T00:00:00.000000001"), pd.Timestamp("2024-01-01")],
        [np.datetime64("2024-01-01"), np.datetime64("2024-01-01T12:00:00")],
    ],
)
def test_rows_of_mixed_columns_mean_the_same_alone(values):
    block = CategoryBlock().fit({"c": values})
    together = codes(block, values)
    assert min(together) > UNSEEN
    assert len(set(together)) == len(set(map(str, block.categories_[0].to_pylist())))
    assert [codes(block, [value])[0] for value in values] == together
    encode = session_of(block)
    assert encode(values) == together
    assert [encode([value])[0] for value in values] == together


def test_spelling():
    def spelled(array):
        return category_keys(array).dictionary_decode().to_pylist()

    floats = [0.0, -0.0, 7.0, 0.5, 2.0**53, 2.0**63, -(2.0**63), 2.0**64, np.nan, None]
    assert spelled(pa.array(floats)) == [
        *["0", "0", "7", "0.5", "9007199254740992", "9223372036854775808"],
        *["-9223372036854775808", "1.8446744073709552e+19", None, None],
    ]
    assert category_keys(pa.array([0.0, -0.0])).dictionary.to_pylist() == ["0"]
    times = [0, 86_400_000, 500, None]
    naive = ["1970-01-01", "1970-01-02", "1970-01-01 00:00:00.5", None]
    assert spelled(pa.array(times, pa.timestamp("ms"))) == naive
    assert spelled(pa.array(times, pa.timestamp("ms")).cast(pa.timestamp("ns"))) == naive
    aware = pa.array(times, pa.timestamp("ms", "Europe/Berlin"))
    assert spelled(aware)[1:3] == ["1970-01-02 00:00:00Z", "1970-01-01 00:00:00.5Z"]
    assert spelled(pa.array(["True", "1", "true", "01", "1.0"])) == ["1", "1", "true", "01", "1.0"]


def test_dictionaries_of_users_may_repeat_and_miss_values():
    column = pa.DictionaryArray.from_arrays([0, 1, 2, 3, 0, None], ["a", "b", "a", None])
    keys = category_keys(column)
    assert keys.to_pylist() == ["a", "b", "a", None, "a", None]
    assert keys.dictionary.to_pylist() == ["a", "b"]
    block = CategoryBlock().fit({"c": column})
    assert block.categories_[0].to_pylist() == ["a", "b"]
    assert block.counts_[0].tolist() == [3, 1]
    assert codes(block, column) == [2, 3, 2, MISSING, 2, MISSING]
    other = pa.DictionaryArray.from_arrays([1, 0], [None, "b"])
    assert category_keys(pa.chunked_array([column, other])).to_pylist() == [
        *keys.to_pylist(),
        "b",
        None,
    ]
    # Few rows of many levels need few of them.
    levels = pa.DictionaryArray.from_arrays([7, 3], [str(level) for level in range(99)])
    assert category_keys(levels).dictionary.to_pylist() == ["7", "3"]


EXAMPLES = {
    "numbers": ([1, 2], pa.int64()),
    "dates": ([dt.datetime(2024, 1, 1)], pa.timestamp("us")),
    "dates with a time zone": ([dt.datetime(2024, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")),
}


@pytest.mark.parametrize("fitted", EXAMPLES)
@pytest.mark.parametrize("given", EXAMPLES)
def test_values_of_another_kind_are_refused(fitted, given):
    (one, kind), (other, other_kind) = EXAMPLES[fitted], EXAMPLES[given]
    assert (value_family(kind), value_family(other_kind)) == (fitted, given)
    block = CategoryBlock().fit({"c": one})
    hashed = CategoryBlock(hash_buckets=9).fit({"c": one})
    lists = CategorySequenceBlock().fit({"c": [one]})
    events = EventSequenceBlock(categories=["c"]).fit({"c": [one], "n": [[1.0] * len(one)]})
    keys = KeyIndex(as_table({"c": one})["c"], "c", "an example")
    uses = [
        lambda: codes(block, other),
        lambda: codes(hashed, other),
        lambda: session_of(block)(other),
        lambda: session_of(hashed)(other),
        lambda: lists.transform({"c": [other]}),
        lambda: events.transform({"c": [other], "n": [[1.0] * len(other)]}),
        lambda: keys.rows(as_table({"c": other})["c"]),
    ]
    for use in uses:
        if fitted == given:
            use()
        else:
            with pytest.raises(TypeError) as error:
                use()
            names = type_name(kind), type_name(other_kind)
            for part in ("'c'", *names, fitted, given, "accepts"):
                assert part in str(error.value)
    # Text is spelled as any value is, and columns without a value hold any kind.
    for column in (["x"], [None], pa.nulls(1)):
        codes(block, column)
        codes(CategoryBlock().fit({"c": column}), other)


def test_kinds_mixed_in_parts_of_a_fit_are_refused():
    block = CategoryBlock()
    parts = [pa.table({"c": [1]}), pa.table({"c": [dt.date(2024, 1, 1)]})]
    block.fit_columns(parts[0])
    one, other = (block.summarize(part) for part in parts)
    with pytest.raises(TypeError, match=r"'c' holds dates and numbers \(types date, int64\)"):
        block.finish(one.merge(other))


def test_naive_and_aware_times_in_one_column_are_refused():
    naive, aware = dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC)
    cases = [
        ([None, naive, aware], r"row 2, a time with a time zone, among times without one"),
        ([aware, None, naive], r"row 2, a time without a time zone, among times with one"),
        ([dt.date(2024, 1, 1), aware], r"row 1, a time with"),
        ([pd.Timestamp(naive), pd.Timestamp(aware)], r"row 1, a time with"),
        ([[naive], None, [naive, aware]], r"row 2, a time with"),
    ]
    for column, message in cases:
        for values in (column, objects(column)):
            with pytest.raises(TypeError, match=f"column 'when' holds .* in {message}"):
                as_table({"when": values})


def test_large_python_integers_keep_their_digits_or_are_refused():
    table = as_table({"id": [2**63, 2**63 + 1, None]})
    assert table["id"].to_pylist() == [2**63, 2**63 + 1, None]
    assert codes(CategoryBlock().fit({"c": [2**63, 2**63 + 1]}), [2**63 + 1, 2**63]) == [3, 2]
    for values in ([1, 2**64 + 1], [-1, 2**63 + 1], [10**400]):
        with pytest.raises(TypeError, match=r"'id' holds the integer \d+.* in row \d.*as strings"):
            as_table({"id": values})


LONG = [
    [2**53 + 1, 2**53],
    [2**60, 2**60 + 24, 2**60 + 1],
    [10**20, 10**20 + 1],
    [decimal.Decimal("9007199254740993.50"), decimal.Decimal("9007199254740993.51")],
    [decimal.Decimal("0.12345678901234567890"), decimal.Decimal("0.12345678901234567891")],
    [decimal.Decimal("0.1"), decimal.Decimal.from_float(0.1)],
]


@pytest.mark.parametrize("values", LONG)
def test_decimals_are_categories_with_all_their_digits(values):
    column = [None, *map(decimal.Decimal, values)]
    block = CategoryBlock().fit({"c": column})
    expected = codes(block, column)
    assert expected[0] == MISSING
    assert sorted(expected[1:]) == [*range(2, len(values) + 2)]
    for make in (pd.Categorical, dictionary, mixed):
        assert codes(block, make(column))[: len(column)] == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.decimals(-(10**22), 10**22, allow_nan=False, places=3)
        # More than 76 digits in one column are no decimals for Arrow.
        | st.floats(-1e22, 1e22).map(lambda value: repr(round(value, 3))),
        min_size=1,
        max_size=6,
    )
)
def test_decimals_are_one_category_if_they_are_equal(values):
    values = list(map(decimal.Decimal, values))
    spelled = category_keys(as_table({"c": values})["c"]).dictionary_decode().to_pylist()
    assert len(set(spelled)) == len(set(values))


SCALARS = [
    *map(decimal.Decimal, ("0.001", "0.1", "1E+30", "1E-400", "1E+400", "Infinity", "-0")),
    *map(decimal.Decimal, ("9007199254740993", "12345678901234567890.5")),
    decimal.Decimal.from_float(0.1),
    *(2**53 + 1, 2**60, 2**63, 2**64, np.int8(3), True),
    *(0.5, 1e30, 1e-320, math.inf, np.float32(0.1)),
    *(np.uint64(2**64 - 1), np.float16(0.5), np.longdouble(1.5)),
    "a",
]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
@pytest.mark.parametrize("other", SCALARS, ids=repr)
def test_values_are_one_category_alone_and_beside_values_of_other_types(value, other):
    def keys(*values):
        return category_keys(as_table({"c": objects(values)})["c"]).to_pylist()

    alone = [*keys(value), *keys(other)]
    with suppress_errors("loses digits in"):
        assert keys(value, other) == alone


def test_numbers_that_lose_digits_beside_others_are_refused():
    for other in (decimal.Decimal("Infinity"), 0.5, decimal.Decimal("1E-400")):
        for value in (decimal.Decimal("1E+30"), decimal.Decimal(2**53 + 1)):
            with pytest.raises(TypeError, match=r"'id' holds Decimal.* in row 1, .* as strings"):
                as_table({"id": [other, value]})
    table = as_table({"id": [2**53 + 1, decimal.Decimal("0.1")]})
    assert category_keys(table["id"]).to_pylist() == ["9007199254740993", "0.1"]


@given(st.integers(-(2**63), 2**64 - 1) | st.integers(-(2**53), 2**53).map(lambda n: n * 2**20))
def test_decimals_are_the_integers_and_floats_of_their_value(number):
    column = pa.array([decimal.Decimal(number)], pa.decimal128(30, 2))
    spelled = category_keys(column).to_pylist()
    if -(2**63) <= number < 2**64:
        assert spelled == [str(number)]
    if float(number) == number:
        assert spelled == category_keys(pa.array([float(number)])).to_pylist()


def test_periods_are_dates_whatever_their_frequency():
    months = pd.Series(pd.PeriodIndex(["2024-01", "NaT", "2024-03"], freq="M"))
    expected = [dt.datetime(2024, 1, 1), None, dt.datetime(2024, 3, 1)]
    for column in (months, months.dt.asfreq("D", "start"), months.astype(object), list(months)):
        assert as_table({"p": column})["p"].to_pylist() == expected
    assert as_table(pd.DataFrame({"p": months}))["p"].to_pylist() == expected
    assert list(TableEncoder().fit({"p": months}).blocks_) == ["datetime"]


def test_a_column_without_a_known_category_is_warned_of():
    cities = {"city": ["Oslo", "Lima"] * 30, "x": np.arange(60.0)}
    encoder = TableEncoder().fit(cities)
    message = r"column 'city': no value of its 12 rows is a category that CategoryBlock saw"
    with pytest.warns(UserWarning, match=message):
        encoder.encode({"city": ["oslo", "lima"] * 6, "x": np.arange(12.0)})
    silent = [
        ["oslo"] * 12,  # A new category.
        ["oslo", "lima"] * 4,
        ["oslo", "lima"] * 5 + ["Oslo"],
        ["oslo", "lima"] * 4 + [None] * 4,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for column in silent:
            encoder.encode({"city": column, "x": np.arange(float(len(column)))})


@pytest.mark.parametrize(
    "block",
    [CategorySequenceBlock(), EventSequenceBlock(categories=["c"])],
    ids=["categories", "events"],
)
def test_lists_without_a_known_category_are_warned_of(block):
    def lists(one, other):
        return {"c": [[one, other]] * 6, "n": [[1.0, 2.0]] * 6, "x": np.arange(6.0)}

    names = ["c"] if isinstance(block, CategorySequenceBlock) else ["c", "n"]
    encoder = TableEncoder([("b", block, names)], remainder="drop").fit(lists("a", "b"))
    with pytest.warns(UserWarning, match=f"'c': no value .*{type(block).__name__}"):
        encoder.encode(lists("A", "B"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(lists("A", "b"))


def test_the_sign_of_missing_strings_is_no_category_in_exported_graphs():
    block = CategoryBlock().fit({"c": ["a", "b"]})
    assert (
        session_of(block)(["\uffff", None, "a"]) == codes(block, ["\uffff", None, "a"]) == [1, 0, 2]
    )
    for value in ("\uffff", "\uffff\uffff"):
        with pytest.raises(ValueError, match=r"column 'c' has the category .*U\+FFFF alone"):
            session_of(CategoryBlock().fit({"c": ["a", value]}))


def test_numbers_read_as_text_are_written_as_in_mixed_columns():
    values = [1.0, 2.5, True, 2.0**60, "words"]
    together = as_table({"c": values})["c"]
    assert together.to_pylist() == ["1", "2.5", "True", "1152921504606846976", "words"]
    alone = [as_table({"c": [value]})["c"] for value in values]
    texts = [cast_column(one, "c", pa.large_string(), block="TextBlock") for one in alone]
    assert [text.to_pylist() for text in texts] == [[text] for text in together.to_pylist()]


def test_dictionaries_of_any_type_without_rows():
    for kind in (pa.timestamp("ns"), pa.date32(), pa.decimal128(20, 2), pa.large_string()):
        column = pa.chunked_array([], pa.dictionary(pa.int32(), kind))
        assert len(category_keys(column)) == 0
