"""Errors of input name the column and the row, and quote at most 60 characters."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sk_easytensor import (
    CategoryBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    NumericBlock,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.data.tables import as_table
from sk_easytensor.inference import load

BYTES = pa.py_buffer(b"ab\xff\xfe")
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 4], np.int32)), BYTES]
)


@pytest.mark.parametrize(
    "column",
    [
        NOT_UTF8,
        pa.chunked_array([["a"], NOT_UTF8])[1:],
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), NOT_UTF8),
        pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), NOT_UTF8),
        pa.StructArray.from_arrays([NOT_UTF8], ["name"]),
    ],
    ids=["text", "chunks", "categories", "lists", "structs"],
)
def test_text_that_is_not_utf8(column):
    tables = [pa.table({"x": column}), {"x": column}]
    if isinstance(column, pa.Array):
        tables.append(pd.DataFrame({"x": pd.arrays.ArrowExtensionArray(column)}))
    for table in tables:
        with pytest.raises(ValueError, match="'x' holds text in row 2 that is not valid UTF-8"):
            as_table(table)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary", pa.string_view()]
)
def test_bytes_that_are_no_text_where_texts_were_fitted(kind):
    values = ["quick brown foxes", "a lazy dog", "the fox"] * 10
    block = TextBlock(min_frequency=1).fit({"x": values})
    column = pa.array([b"ab", None, b"\xff\xfe"])
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind == pa.string_view():
        column = column.cast(pa.binary_view()).view(kind)
    else:
        column = column.cast(kind)
    with pytest.raises((TypeError, ValueError), match=r"'x' holds .* in row 2"):
        block.transform({"x": column})


def test_integers_of_128_bits_in_a_dictionary():
    column = pl.Series([2**100, None], dtype=pl.Int128)
    assert as_table({"x": column})["x"].to_pylist() == [float(2**100), None]


def test_durations_among_python_objects():
    found = as_table({"x": [np.timedelta64(1, "D"), None]})
    assert pa.types.is_duration(found["x"].type)
    with pytest.raises(TypeError, match=r"'x' holds .*timedelta64.* in row 0 and 7 in row 1"):
        as_table({"x": [np.timedelta64(1, "D"), 7]})


@pytest.mark.parametrize("unit", ["W", "h", "D"])
def test_durations_of_numpy_in_arrays_and_lists(unit):
    array = np.array([1, 20], f"m8[{unit}]")
    expected = as_table({"x": array})["x"].to_pylist()
    objects = np.empty(2, dtype=object)
    objects[:] = list(array)
    for values in (list(array), objects):
        assert as_table({"x": values})["x"].to_pylist() == expected


@pytest.mark.parametrize("kind", ["m8[Y]", "m8[M]", "m8"])
def test_durations_without_a_length_are_refused(kind):
    array = np.array(["NaT", 20, 3], kind)
    message = r"column 'x' holds durations in .*, such as that in row 1; convert them, for example"
    objects = np.empty(3, dtype=object)
    objects[:] = list(array)
    for values in (array, list(array), objects, np.array([array, array]).T):
        with pytest.raises(TypeError, match=message):
            as_table({"x": values})


@pytest.mark.parametrize("kind", ["M8", "m8", "m8[M]"])
def test_missing_times_without_a_length(kind):
    array = np.array(["NaT", "NaT"], kind)
    records = np.zeros(2, dtype=[("x", kind)])
    records["x"] = array
    for table in ({"x": array}, {"x": list(array)}, records):
        assert as_table(table)["x"].to_pylist() == [None, None]


def test_durations_beyond_every_unit():
    with pytest.raises(TypeError, match=r"'x' holds durations .* such as that in row 1"):
        as_table({"x": [np.timedelta64(1, "ns"), np.timedelta64(2**62, "W"), None]})


def test_dates_beyond_every_unit():
    far = np.datetime64(2**62, "s")
    with pytest.raises(TypeError, match=r"'x' holds dates .* the first of them in row 1"):
        as_table({"x": [dt.date(2020, 1, 1), far, None]})


def test_wide_integers_within_lists_and_structs():
    for values, kind in (([[1], [2]], pl.List(pl.Int128)), ([{"f": 1}] * 2, {"f": pl.Int128})):
        kind = pl.Struct(kind) if isinstance(kind, dict) else kind
        assert as_table(pl.DataFrame({"x": pl.Series(values, dtype=kind)})).num_rows == 2
    big = pl.DataFrame({"x": pl.Series([[1], [2**100]], dtype=pl.List(pl.Int128))})
    with pytest.raises(TypeError, match=r"column 'x' holds a list .* in row 1"):
        as_table(big)


def test_records_within_columns():
    records = np.zeros(3, dtype=[("a", "f8")])
    with pytest.raises(
        TypeError, match=r"column 'x' is an array of records with the fields \['a'\]"
    ):
        as_table({"x": records})
    with pytest.raises(TypeError, match="column 'b' is an array of records"):
        as_table(np.zeros(3, dtype=[("b", [("c", "f4")])]))


def test_categories_that_are_structs_may_be_missing():
    for values in ([{"left": 1}, None], [[1], None]):
        array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(values))
        assert as_table(pa.table({"x": array}))["x"].to_pylist() == ["[1]", None, "[1]"]


def test_labels_of_two_kinds():
    X = {"x": [1.0, 2.0] * 10}
    for y in ([1, "1"] * 10, np.array([1, "1"] * 10, dtype=object)):
        with pytest.raises(ValueError, match="y holds 1 in row 0 and '1' in row 1"):
            EasyTensorClassifier().fit(X, y)
    with pytest.raises(ValueError, match=r"y has the shape \(20, 0\)"):
        EasyTensorClassifier().fit(X, np.zeros((20, 0)))


def test_dates_are_quoted_in_part():
    block = DatetimeBlock().fit({"x": ["2024-01-01"]})
    with pytest.raises(TypeError, match=r"column 'x' holds '999.* in row 1, which") as found:
        block.transform({"x": ["2024-01-01", "9" * 1_000_000]})
    assert len(str(found.value)) < 300


def test_types_have_names_of_pandas():
    times = pa.array([[1], [2]], pa.list_(pa.timestamp("ns")))
    with pytest.raises(TypeError, match=r"column 'x' of type list\[datetime64\[ns\]\] cannot"):
        VectorBlock().fit(pa.table({"x": times}))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        load(str(tmp_path / "none.onnx"))
    (tmp_path / "torn.onnx").write_bytes(b"torn" * 50)
    with pytest.raises(ValueError, match=r"torn\.onnx is corrupt, was changed"):
        load(tmp_path / "torn.onnx")


def test_labels_that_are_no_text():
    half, X = "\ud800", {"x": [1.0, 2.0] * 10, "z": ["a", "b"] * 10}
    message = r"y holds '\\ud800', with half of a surrogate pair"
    for y in ([half, "b"] * 10, np.array([half, "b"] * 10)):
        with pytest.raises(ValueError, match=message):
            EasyTensorClassifier().fit(X, y)
    sides = [("x", NumericBlock(), "x")], [("z", CategoryBlock(), "z")]
    with pytest.raises(ValueError, match=message):
        EasyTensorTwoTower(*sides).fit(X, [half, "b"] * 10)
    with pytest.raises(ValueError, match=r"y\['kind'\]: .*surrogates not allowed"):
        EasyTensorMultiTask({"kind": "binary"}).fit(X, {"kind": [half, "b"] * 10})


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.mark.parametrize("kind", [EasyTensorClassifier, EasyTensorRegressor, EasyTensorTwoTower])
@pytest.mark.parametrize(
    "y",
    [
        objects([1, 2, *[(3, 4), (1, 2)] * 9]),
        [1, 2, *[[3], [1, 2]] * 9],
        pd.Series([1, 2, *[[3], [1, 2]] * 9]),
    ],
    ids=["tuples", "ragged lists", "lists in a series"],
)
def test_targets_of_lists(kind, y):
    X = {"x": [1.0, 2.0] * 10, "z": ["a", "b"] * 10}
    sides = [("x", NumericBlock(), "x")], [("z", CategoryBlock(), "z")]
    model = kind(*sides) if kind is EasyTensorTwoTower else kind()
    with pytest.raises(ValueError, match=r"y holds [\[(]3.* in row 2; a target is one number or"):
        model.fit(X, y)


def test_texts_among_the_columns_of_a_target_are_named():
    X, y = {"x": [1.0, 2.0] * 10}, pd.DataFrame({"u": [0.5, 1.0] * 10, "v": [1, "b"] * 10})
    with pytest.raises(ValueError, match="y must be numbers, got 'b' in row 1"):
        EasyTensorRegressor().fit(X, y)
    with pytest.raises(ValueError, match="y has several columns and holds 'b' in row 1; each of"):
        EasyTensorClassifier().fit(X, y)


def test_times_of_several_zones_in_one_column_name_two_rows():
    utc, east = (dt.timezone(dt.timedelta(hours=hours)) for hours in (0, 1))
    values = [dt.datetime(2024, 1, 1, tzinfo=zone) for zone in (utc, utc, east)]
    message = r"column 'x' holds times in several time zones, UTC in row 0 and UTC\+01:00 in row 2"
    for X in ({"x": values}, pd.DataFrame({"x": pd.Series(values, dtype=object)})):
        with pytest.raises(TypeError, match=message):
            as_table(X)
    # The offset of one zone changes with the season.
    berlin = pd.Timestamp("2024-01-01", tz="Europe/Berlin")
    stamps = [berlin.to_pydatetime(), (berlin + pd.Timedelta("200D")).to_pydatetime()]
    assert as_table({"x": stamps}).schema.field("x").type.tz == "Europe/Berlin"


def test_polars_holding_text_that_is_not_utf8():
    frame = pl.DataFrame({"x": pl.from_arrow(NOT_UTF8)})
    with pytest.raises(ValueError, match=r"column 'x' holds text in row 2 that is not valid UTF-8"):
        as_table(frame)
