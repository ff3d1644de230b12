import datetime as dt
import decimal
import enum
import pickle
import subprocess
import sys
import uuid
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.data.arrow_columns import pandas_columns
from sk_easytensor.data.columns import (
    RowError,
    cast_column,
    row_errors_from,
    sample_values,
    show_value,
    to_float64,
)
from sk_easytensor.data.sources import is_source
from sk_easytensor.data.sparse import SparseRows, layout_of, read_sparse
from sk_easytensor.data.tables import (
    align_table,
    as_table,
    first_rows,
    has_column_names,
    read_like_fit,
)
from sk_easytensor.data.types import plain_types


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "whole": [3, 1, 2, 5],
            "real": [0.5, np.nan, 2.25, -1.75],
            "flag": [True, False, True, True],
            "text": ["a", None, "", "ü"],
            "time": np.array(["2024-01-31T12", "NaT", "1999-12-31T00", "2024-02-29T00"], "M8[us]"),
            "lists": [[1.5, 2.5], [3.5, 4.5], None, [5.5, 6.5]],
        }
    )


def values(table):
    """Return columns as lists of Python values with None for every kind of missing."""
    return {
        name: [None if value is None or value != value else value for value in column.to_pylist()]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def test_every_flavour_holds_the_same(frame, flavour):
    expected = {
        "whole": [3, 1, 2, 5],
        "real": [0.5, None, 2.25, -1.75],
        "flag": [True, False, True, True],
        "text": ["a", None, "", "ü"],
        "time": [
            dt.datetime(2024, 1, 31, 12),
            None,
            dt.datetime(1999, 12, 31),
            dt.datetime(2024, 2, 29),
        ],
        "lists": [[1.5, 2.5], [3.5, 4.5], None, [5.5, 6.5]],
    }
    table = as_table(flavour(frame))
    assert isinstance(table, pa.Table)
    assert values(table) == expected
    assert table.column_names == list(expected)
    assert has_column_names(flavour(frame))
    kinds = [pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean]
    for name, kind in zip(["whole", "real", "flag"], kinds, strict=True):
        assert kind(table.schema.field(name).type)


def test_arrow_and_polars_are_not_copied():
    array = pa.array(np.arange(100.0))
    shared = as_table(pa.table({"a": array})).column("a").chunk(0)
    assert shared.buffers()[1].address == array.buffers()[1].address
    series = pl.Series("a", np.arange(100.0))
    exported = as_table(series.to_frame()).column("a").chunk(0)
    assert exported.buffers()[1].address == series.to_arrow().buffers()[1].address


@pytest.mark.parametrize(
    "labels",
    [
        ["u", "v"],
        pd.Index(["u", "v"], name="a"),
        pd.MultiIndex.from_tuples([("u", 1), ("v", 2)]),
        pd.date_range("2020", periods=2),
    ],
)
def test_an_index_is_no_column(labels):
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=labels)
    assert values(as_table(frame)) == {"a": [1, 2], "b": [3, 4]}


def test_integer_labels_are_matched_by_position():
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=[7, 5])
    assert as_table(frame).column_names == ["7", "5"]
    assert not has_column_names(frame)
    table = read_like_fit(np.array([[8, 9]]), ["7", "5"], fitted_with_names=False, owner="Block")
    assert values(table) == {"7": [8], "5": [9]}


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", ">f8", "i1", ">i4", "u8", "?", "g"])
def test_numpy_dtypes(dtype):
    array = np.array([[1, 0], [0, 1], [1, 1]], dtype=dtype)
    assert values(as_table(array)) == {"x0": [1, 0, 1], "x1": [0, 1, 1]}
    assert values(as_table({"a": array[:, 0]})) == {"a": [1, 0, 1]}
    assert values(as_table({"a": array})) == {"a": [[1, 0], [0, 1], [1, 1]]}
    assert not has_column_names(array)


def test_numpy_views():
    array = np.arange(24).reshape(4, 6)
    assert values(as_table(array[::-2, ::3])) == {"x0": [18, 6], "x1": [21, 9]}
    assert values(as_table({"a": array[::-2, ::3]})) == {"a": [[18, 21], [6, 9]]}


def test_masked_arrays():
    masked = np.ma.array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])
    assert values(as_table(masked)) == {"x0": [1, 3], "x1": [None, 4]}
    assert values(as_table({"a": masked[:, 1], "b": masked})) == {
        "a": [None, 4],
        "b": [[1, None], [3, 4]],
    }


def test_object_arrays_and_rows():
    rows = [(1, "a", None, 2.5), (2, None, None, np.nan)]
    expected = {"x0": [1, 2], "x1": ["a", None], "x2": [None, None], "x3": [2.5, None]}
    assert values(as_table(np.array(rows, dtype=object))) == expected
    assert values(as_table(rows)) == expected
    assert values(as_table([[1, "a"], [2, "b"]])) == {"x0": [1, 2], "x1": ["a", "b"]}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, "a", None, 2.5], ["1", "a", None, "2.5"]),
        ([True, "a", np.nan], ["True", "a", None]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([2**70, 1], [float(2**70), 1.0]),
        ([decimal.Decimal("1.5"), None], [1.5, None]),
        # Arrow alone reads these as 0 and -1.
        ([np.float16(0.5), 3], [0.5, 3.0]),
        ([3, None, np.longdouble(0.5)], [3.0, None, 0.5]),
        ([0.5, np.uint64(2**64 - 2**20)], [0.5, float(2**64 - 2**20)]),
        ([[np.float16(0.5)], [3]], [[0.5], [3.0]]),
    ],
)
def test_mixed_columns(column, expected):
    assert values(as_table({"a": column})) == {"a": expected}
    assert values(as_table(pd.DataFrame({"a": pd.Series(column, dtype=object)}))) == {"a": expected}


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"])
def test_numpy_dates(unit):
    date = np.array(["2020-01-02", "NaT"], dtype=f"datetime64[{unit}]")
    expected = pd.Timestamp(date[0]).to_pydatetime()
    assert values(as_table({"a": date})) == {"a": [expected, None]}
    if unit not in "YM":
        span = np.array([3, "NaT"], dtype=f"timedelta64[{unit}]")
        seconds = to_float64(as_table({"a": span}).column("a"), "a", block="Block")
        np.testing.assert_array_equal(seconds, [span[0] / np.timedelta64(1, "s"), np.nan])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array(["x", None], pa.string_view()), pa.large_string()),
        (pa.array([decimal.Decimal("1.5"), None]), pa.float64()),
        # Of more digits than floats hold.
        (pa.array([decimal.Decimal("1.5"), None], pa.decimal128(16, 3)), pa.decimal128(16, 3)),
        (pa.array([decimal.Decimal("1.5"), None], pa.decimal256(60, 3)), pa.decimal256(60, 3)),
        (pa.array([1.5, None]).cast(pa.float16()), pa.float32()),
        (pa.array(["x", None]).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
        (
            pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int8()), ["x"]),
            pa.dictionary(pa.int32(), pa.string()),
        ),
        (pa.array([5, None], pa.duration("ms")), pa.duration("ms")),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 2, 3))),
            pa.list_(pa.float64(), 6),
        ),
        *(
            (pa.array([["x"], None, [], ["y", None]], kind), pa.large_list(plain))
            for kind, plain in [
                (pa.list_(pa.string()), pa.string()),
                (pa.list_(pa.string_view()), pa.large_string()),
                (pa.large_list(pa.string_view()), pa.large_string()),
                (pa.list_view(pa.string()), pa.string()),
                (pa.large_list_view(pa.string_view()), pa.large_string()),
                (
                    pa.list_(pa.dictionary(pa.uint8(), pa.string())),
                    pa.dictionary(pa.int32(), pa.string()),
                ),
            ]
        ),
        *(
            (pa.array([[1, None], None], kind), plain)
            for kind, plain in [
                (pa.list_(pa.decimal128(5, 2)), pa.large_list(pa.float64())),
                (pa.list_(pa.decimal128(5, 2), 2), pa.list_(pa.float64(), 2)),
                (pa.list_view(pa.decimal128(5, 2)), pa.large_list(pa.float64())),
                (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 2)),
                (pa.large_list(pa.int8()), pa.large_list(pa.int8())),
            ]
        ),
        (
            pa.array([[1.5, None], None]).cast(pa.list_(pa.float16())),
            pa.large_list(pa.float32()),
        ),
        (
            pa.array([["x", "y"], None], pa.list_(pa.string_view(), 2)),
            pa.list_(pa.large_string(), 2),
        ),
        (
            pa.array(
                [[{"a": "x", "b": 1}, None], None],
                pa.list_(pa.struct({"a": pa.string_view(), "b": pa.decimal128(3)})),
            ),
            pa.large_list(pa.struct({"a": pa.large_string(), "b": pa.float64()})),
        ),
        (
            pa.array([[["x"]]], pa.list_(pa.list_(pa.string()))),
            pa.large_list(pa.large_list(pa.string())),
        ),
    ],
)
def test_plain_types(array, kind):
    table = as_table(pa.table({"a": array}))
    assert table.schema.field("a").type == kind
    assert table.column("a").null_count == array.null_count
    if pa.types.is_nested(kind) and not isinstance(array, pa.FixedShapeTensorArray):
        assert table.column("a").to_pylist() == array.to_pylist()
    table.validate(full=True)


@pytest.mark.parametrize("kind", [pa.list_view(pa.string()), pa.large_list_view(pa.string())])
def test_views_of_lists_in_any_order(kind):
    make = pa.LargeListViewArray if pa.types.is_large_list_view(kind) else pa.ListViewArray
    offsets, lengths = np.array([2, 0, 1, 3, 0]), np.array([1, 3, 0, 2, 1])
    index = np.int64 if make is pa.LargeListViewArray else np.int32
    array = make.from_arrays(
        offsets.astype(index),
        lengths.astype(index),
        pa.array(list("abcde")),
        mask=pa.array([False, False, False, False, True]),
    )
    expected = [["c"], ["a", "b", "c"], [], ["d", "e"], None]
    assert array.to_pylist() == expected
    for column in (array, pa.chunked_array([array[:2], array[2:2], array[2:]])):
        table = as_table(pa.table({"a": column}))
        table.validate(full=True)
        assert table.schema.field("a").type == pa.large_list(pa.string())
        assert table.column("a").to_pylist() == expected
    assert as_table(pa.table({"a": array[3:]})).column("a").to_pylist() == expected[3:]


@pytest.mark.parametrize(
    ("series", "item"),
    [
        (pl.Series([["x", None], None, []], dtype=pl.List(pl.String)), pa.large_string()),
        (
            pl.Series([["x", None], None, []], dtype=pl.List(pl.Categorical)),
            pa.dictionary(pa.int32(), pa.large_string()),
        ),
        (
            pl.Series([["x", None], None, []], dtype=pl.List(pl.Enum(["y", "x"]))),
            pa.dictionary(pa.int32(), pa.large_string()),
        ),
        (pl.Series([[1, None], None, []], dtype=pl.List(pl.Decimal(9, 2))), pa.float64()),
        (
            pl.Series([[{"a": "x", "b": 1}, None], None, []]),
            pa.struct({"a": pa.large_string(), "b": pa.int64()}),
        ),
    ],
)
def test_lists_of_polars(series, item):
    table = as_table(pl.DataFrame({"a": series}))
    found = table.schema.field("a").type
    assert found.value_type == item or pa.types.is_dictionary(item)
    if pa.types.is_dictionary(item):
        # Whether those of Enum are ordered depends on the version of polars.
        kind = found.value_type
        assert (kind.index_type, kind.value_type) == (item.index_type, item.value_type)
    assert pa.types.is_large_list(found)
    table.validate(full=True)
    first, *rest = table.column("a").to_pylist()
    value = first[0] if isinstance(first[0], dict) else {"a": first[0]}
    assert value["a"] in ("x", 1)
    assert rest == [None, []]
    array = pl.Series([["x", "y"], None], dtype=pl.Array(pl.String, 2))
    assert values(as_table({"a": array})) == {"a": [["x", "y"], None]}


def test_lists_of_pandas():
    lists = [["x", "y"], None, [], ["z", None]]
    for column in (
        pd.Series(lists, dtype=object),
        pd.Series([None if one is None else np.array(one, dtype=object) for one in lists]),
        pd.Series(lists, dtype=pd.ArrowDtype(pa.list_(pa.string()))),
        pd.Series(lists, dtype=pd.ArrowDtype(pa.list_(pa.string_view()))),
    ):
        assert values(as_table(pd.DataFrame({"a": column}))) == {"a": lists}
        assert values(as_table({"a": column})) == {"a": lists}


def test_arrays_without_items_are_lists_of_any_type():
    lists = [np.array([]), np.array(["x", "y"]), None, np.array(["z"]), np.array([])]
    expected = {"a": [[], ["x", "y"], None, ["z"], []]}
    assert values(as_table({"a": lists})) == expected
    assert values(as_table(pd.DataFrame({"a": lists}))) == expected
    assert len(lists[0]) == 0
    assert isinstance(lists[0], np.ndarray)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([["a"], None, "b"], r"column 'a' holds a str \('b'\) in row 2.*or lists if all are lists"),
        ([None, 1, [1]], r"column 'a' holds a list \(\[1\]\) in row 2"),
        ([["a"], [], ["b", 1.5]], r"column 'a' holds a list \(\['b', 1\.5\]\) in row 2"),
        ([["a"], [1]], r"column 'a' holds a list \(\[1\]\) in row 1"),
        ([["a"], {"a": 1}], r"column 'a' holds a dict \(\{'a': 1\}\) in row 1"),
        ([["a"], [["a"]]], r"column 'a' holds a list \(\[\['a'\]\]\) in row 1"),
        ([[1.0], ["a"] * 99], r"column 'a' holds a list \(\['a', .{50,70}\.\.\.\) in row 1"),
        ([np.ones(2), np.array(["a"])], r"column 'a' holds a ndarray \(array\(\['a'\].*in row 1"),
        ([*[["a"]] * 999, [1], *[["a"]] * 999], r"column 'a' holds a list \(\[1\]\) in row 999;"),
        ([1, None, {"a": 1}], r"column 'a' holds a dict \(\{'a': 1\}\) in row 2; .* number$"),
    ],
)
def test_lists_among_other_values_are_refused_by_row(column, message):
    with pytest.raises(TypeError, match=message):
        as_table({"a": column})
    array = np.empty(len(column), dtype=object)
    for row, value in enumerate(column):
        array[row] = value
    with pytest.raises(TypeError, match=message):
        as_table(pd.DataFrame({"a": array}))


def test_categoricals():
    frame = pd.DataFrame(
        {
            "text": pd.Categorical(["b", None, "a"], categories=["a", "b", "c"]),
            "number": pd.Categorical([7, 7, None]),
            "interval": pd.cut([1.0, np.nan, 9.0], 2),
        }
    )
    table = as_table(frame)
    assert all(pa.types.is_dictionary(field.type) for field in table.schema)
    found = values(table)
    assert found["text"] == ["b", None, "a"]
    assert found["number"] == [7, 7, None]
    assert found["interval"] == ["(0.992, 5]", None, "(5, 9]"]
    polars = pl.DataFrame({"a": pl.Series(["x", None], dtype=pl.Enum(["x"]))})
    assert values(as_table(polars)) == {"a": ["x", None]}


@pytest.mark.parametrize(
    ("breaks", "first"),
    [
        ([0.5, 2.0, 4.0], "(0.5, 2]"),
        ([0, 2, 4], "(0, 2]"),
        (pd.date_range("2024-01-01", periods=3, freq="12h"), "(2024-01-01, 2024-01-01 12:00:00]"),
        (
            pd.date_range("2024-01-01", periods=3, tz="UTC").as_unit("ms"),
            "(2024-01-01 00:00:00Z, 2024-01-02 00:00:00Z]",
        ),
        (pd.to_timedelta([0, 1, 2], "h"), "(0, 3600]"),
    ],
)
def test_intervals_are_the_same_categories_whatever_holds_them(breaks, first, tmp_path):
    intervals = pd.Series(pd.arrays.IntervalArray.from_breaks(breaks)).reindex([0, 2, 1, 0])
    frame = intervals.to_frame("a")
    if int(pd.__version__.split(".")[0]) < 3 and getattr(breaks, "tz", None) is not None:
        for X in (frame, frame.astype(object), frame.astype("category")):
            with pytest.raises(ValueError, match="column 'a': this version of pandas"):
                as_table(X)
        return
    tables = {
        "dtype": frame,
        "categories": frame.astype("category"),
        "objects": frame.astype(object),
        "rows": [{"a": value} for value in intervals],
    }
    frame.to_parquet(tmp_path / "a.parquet")
    arrow = pa.Table.from_pandas(frame)
    tables["Parquet"] = tmp_path / "a.parquet"
    tables["Arrow"] = arrow
    tables["Arrow, in parts"] = pa.concat_tables([arrow[:1], arrow[1:]])
    for X in tables.values():
        table = as_table(X)
        assert pa.types.is_dictionary(table.schema.field("a").type)
        assert table["a"].to_pylist()[::3] == [first, first]
        assert table["a"].to_pylist()[1] is None
    closed = pd.Series(pd.arrays.IntervalArray.from_breaks([0, 1], closed="left"))
    assert values(as_table({"a": closed})) == {"a": ["[0, 1)"]}


def test_types_of_pandas_that_arrow_does_not_know_yet_are_read_alike(tmp_path):
    # pandas registers its types with Arrow once it writes them, which another process did.
    frame = pd.DataFrame(
        {"cut": pd.interval_range(0, 2), "month": pd.period_range("2024-01", periods=2, freq="M")}
    )
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    code = (
        "import sys, pyarrow.parquet as pq\n"
        "table = pq.read_table(sys.argv[1])\n"
        "from sk_easytensor.data.tables import as_table\n"
        "assert 'struct' in str(table.schema.field('cut').type)\n"
        "print(as_table(table).to_pydict())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(values(as_table(frame))) == str(values(as_table(path)))


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (pd.DataFrame({"a": []}), ValueError, r"0 sample\(s\).*shape=\(0, 1\).*minimum of 1"),
        (np.zeros((0, 2)), ValueError, r"0 sample\(s\)"),
        (pd.DataFrame(index=[0, 1]), ValueError, r"0 feature\(s\).*minimum of 1"),
        (np.zeros((2, 0)), ValueError, r"0 feature\(s\)"),
        ({}, ValueError, r"0 feature\(s\)"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, r"more than once: \['a'\]"),
        (pa.table([[1], [2]], names=["a", "a"]), ValueError, r"more than once: \['a'\]"),
        (pd.DataFrame([[1, 2]], columns=["1", 1]), ValueError, "more than once"),
        (scipy.sparse.csr_matrix((0, 2)), ValueError, r"0 sample\(s\).*shape=\(0, 2\)"),
        (scipy.sparse.csr_array((2, 0)), ValueError, r"0 feature\(s\)"),
        (scipy.sparse.coo_array([1.0, 0.0]), ValueError, "Expected 2D array, got 1D sparse array"),
        (scipy.sparse.csr_array(np.eye(2) * 1j), ValueError, "Complex data not supported"),
        (np.arange(3), ValueError, "Expected 2D array, got 1D"),
        ([1, 2], ValueError, "Expected 2D array, got 1D"),
        (pd.Series([1, 2]), ValueError, "Expected 2D array, got 1D"),
        (pl.Series([1, 2]), ValueError, "Expected 2D array, got 1D"),
        (pa.chunked_array([[1, 2]]), ValueError, "Expected 2D array, got 1D"),
        ("table", FileNotFoundError, "there is no Parquet file at 'table'"),
        (np.zeros((2, 2, 2)), ValueError, "dim 3"),
        (np.zeros((2, 2)) + 1j, ValueError, "Complex data not supported"),
        ({"a": np.zeros(2) + 1j}, TypeError, "column 'a' holds a complex"),
        ({"a": [1], "b": [1, 2]}, ValueError, r"different lengths: \{'a': 1, 'b': 2\}"),
        ({"a": 3, "b": [1]}, ValueError, r"columns \['a'\] .*single value.*list of one dictionary"),
        ({"a": "xyz"}, ValueError, r"columns \['a'\] hold a single value instead of a list"),
        (np.zeros((2, 2), dtype=[("a", int)]), TypeError, "mapping of columns"),
    ],
)
def test_errors(X, error, message):
    with pytest.raises(error, match=message):
        as_table(X)


@pytest.mark.parametrize("other", [3, 3.0, "x", None, True])
def test_python_objects_are_refused(other):
    message = "column '.*argument must be .* string.* number"
    if not isinstance(other, bool | None):
        with pytest.raises(TypeError, match=message):
            as_table(np.array([[{"foo": "bar"}], [other]], dtype=object))
    with pytest.raises(TypeError, match=message):
        as_table({"a": [other, object()]})


def test_mixed_label_types():
    for X in (pd.DataFrame([[1, 2]], columns=["a", 1]), {"a": [1], 1: [2]}):
        with pytest.raises(TypeError, match=r"mixed types.*columns\.astype\(str\)"):
            has_column_names(X)


def test_no_rows_are_allowed_on_demand():
    assert as_table({"a": np.zeros(0)}, minimum_rows=0).num_rows == 0


def test_keys_the_first_row_lacks_are_kept():
    assert values(as_table([{"a": 1}, {"b": "x"}])) == {"a": [1, None], "b": [None, "x"]}


def test_lists_of_mappings_are_read_as_mappings_of_lists():
    rows = [{"a": 3, "b": [1]}, {"a": "3", "b": None}, {"a": float("nan"), "b": []}]
    columns = {name: [row[name] for row in rows] for name in ("a", "b")}
    assert as_table(rows).equals(as_table(columns))
    assert values(as_table(rows)) == {"a": ["3", "3", None], "b": [[1], None, []]}
    with pytest.raises(TypeError, match=r"column 'b' holds a dict .*in row 1"):
        as_table([*rows[:1], {"a": 1, "b": {}}])


def test_a_frame_of_pandas_is_read_as_its_stream_is():
    day = pd.to_datetime(["2020-01-01", None, "2021-01-01"])
    frame = pd.DataFrame(
        {
            "single": np.arange(3, dtype=np.float32),
            "small": np.arange(3, dtype=np.int8),
            "flag": [True, False, True],
            "string": ["a", None, "b"],
            "object": pd.Series(["a", None, np.nan], dtype=object),
            "python": pd.array(["a", None, "b"], dtype="string[python]"),
            "category": pd.Categorical(["x", None, "y"], ordered=True),
            "number": pd.Categorical([1, 2, None]),
            "day": day,
            "zoned": day.tz_localize("Europe/Berlin"),
            "span": pd.to_timedelta([1, None, 3], "s"),
            "Int": pd.array([1, None, 2], dtype="Int64"),
            "Bool": pd.array([True, None, False], dtype="boolean"),
            "arrow": pd.array([[1], None, []], dtype=pd.ArrowDtype(pa.list_(pa.int32()))),
            "lists": [[1, 2], None, []],
            "struct": [{"a": 1}, None, {"a": 2}],
            "period": pd.period_range("2020", periods=3, freq="D"),
        },
        index=["p", "q", "r"],
    )
    with warnings.catch_warnings():
        # Of time zones, pandas warns Arrow.
        warnings.simplefilter("ignore")
        stream = pa.table(frame)
    expected = plain_types(stream)
    assert as_table(frame).equals(expected)


def test_wide_frames_are_read_as_narrow_ones(monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"f{i}": rng.normal(size=3) for i in range(40)})
    frame = frame.assign(**{f"i{i}": np.array([1, 2**60 + i, 3]) for i in range(35)})
    frame.insert(7, "few", np.array([1, 2, 3], dtype=np.int8))
    frame.insert(50, "text", ["a", None, "c"])
    frame.loc[1, "f3"] = np.nan
    assert sum(isinstance(column, np.ndarray) for column in pandas_columns(frame)) == 75
    wide = as_table(frame)
    assert wide.column_names == list(frame.columns)
    monkeypatch.setattr("sk_easytensor.data.arrow_columns.MIN_COLUMNS_OF_DTYPE", 1000)
    assert wide.equals(as_table(frame))
    monkeypatch.undo()
    # Copies of large frames would take memory.
    monkeypatch.setattr("sk_easytensor.data.arrow_columns.MAX_COPIED_VALUES", 10)
    assert wide.equals(as_table(frame))
    monkeypatch.undo()
    rows = frame.iloc[:0]
    assert as_table(rows, minimum_rows=0).schema.names == list(frame.columns)


@pytest.mark.parametrize("dtype", ["f2", "f4", "i1", "u8", "g"])
def test_wide_frames_of_any_numbers(dtype):
    values = np.array([[0, 1, 2], [3, 4, 5]]).repeat(12, axis=1)
    values = values.astype(dtype)
    if values.dtype.kind == "f":
        values[1, 4] = np.nan
    frame = pd.DataFrame(values, columns=[f"c{i}" for i in range(36)])
    table = as_table(frame)
    narrow = [as_table(frame.iloc[:, [i]]).column(0) for i in range(36)]
    assert [column.type for column in table.columns] == [column.type for column in narrow]
    np.testing.assert_array_equal(np.stack([c.to_numpy() for c in table.columns], axis=1), values)


def test_align_by_name():
    table = pa.table({"c": [1], "a": [2], "extra": [3], "b": [4]})
    assert align_table(table, ["a", "b", "c"]).to_pydict() == {"a": [2], "b": [4], "c": [1]}
    with pytest.raises(ValueError, match=r"missing: \['x', 'y'\].*when Model was fitted.*'extra'"):
        align_table(table, ["a", "x", "y"], owner="Model")


def test_align_by_position():
    table = as_table(np.ones((2, 2)))
    aligned = align_table(table, ["b", "a"], positional=True)
    assert aligned.column_names == ["b", "a"]
    message = "X has 2 features, but NAME is expecting 4 features as input"
    with pytest.raises(ValueError, match=message):
        align_table(table, list("abcd"), positional=True, owner="NAME")


def test_read_like_fit_warns_about_lost_names():
    with pytest.warns(UserWarning, match="valid feature names, but Model was fitted with"):
        table = read_like_fit(np.eye(2), ["a", "b"], fitted_with_names=True, owner="Model")
    assert table.column_names == ["a", "b"]


def test_cast_column():
    column = pa.chunked_array([["1", "2"]])
    assert cast_column(column, "n", pa.float64(), block="NumericBlock").to_pylist() == [1.0, 2.0]
    encoded = column.dictionary_encode()
    assert cast_column(encoded, "n", pa.int64(), block="NumericBlock").to_pylist() == [1, 2]
    with pytest.raises(TypeError, match=r"column 'n' holds text where NumericBlock.*numbers: 'x'"):
        cast_column(pa.chunked_array([["x"]]), "n", pa.float64(), block="NumericBlock")
    with pytest.raises(TypeError, match=r"column 'n' holds lists where NumericBlock.*numbers"):
        cast_column(pa.chunked_array([[[1]]]), "n", pa.float64(), block="NumericBlock")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pa.array([2**63, None], pa.uint64()), [2.0**63, np.nan]),
        (pa.array([2**60 + 1, None]), [2.0**60, np.nan]),
        (pa.array([dt.timedelta(days=1, milliseconds=5), None]), [86400.005, np.nan]),
        (pa.array([dt.time(1, 0, 0, 500_000), None]), [3600.5, np.nan]),
        (pa.array([3600, None], pa.time32("s")), [3600, np.nan]),
        (pa.array([None, None]), [np.nan, np.nan]),
        (pa.array([], pa.int8()), []),
        (pa.array([1, None, 1], pa.int8()).dictionary_encode(), [1, np.nan, 1]),
    ],
)
def test_to_float64(array, expected):
    found = to_float64(pa.chunked_array([array]), "n", block="NumericBlock")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_sample_values():
    column = pa.chunked_array([[None, 1, 2], [], [3, None, 4, 5]])
    assert sample_values(column).to_pylist() == [1, 2, 3, 4, 5]
    assert sample_values(column, 3).to_pylist() == [1, 3, 5]
    assert len(sample_values(pa.chunked_array([], pa.string()))) == 0
    assert len(sample_values(pa.chunked_array([[None, None]]))) == 0


# ---------------------------------------------------------------------- labels of any type

LABELS = st.lists(
    st.one_of(
        st.integers(-3, 2030),
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9)),
        st.dates(),
        st.floats(allow_nan=False).filter(lambda number: number % 1 != 0),
        st.booleans(),
    ),
    min_size=2,
    max_size=5,
    unique_by=str,
)


@given(LABELS, st.data())
def test_labels_of_any_type_are_matched_in_any_order(labels, data):
    def frame(order):
        columns = pd.Index([labels[i] for i in order], tupleize_cols=False, dtype=object)
        return pd.DataFrame([[10 * i for i in order]], columns=columns)

    fitted = data.draw(st.permutations(range(len(labels))))
    given_ = data.draw(st.permutations(range(len(labels))))
    names = as_table(frame(fitted)).column_names
    table = read_like_fit(frame(given_), names, fitted_with_names=False, owner="Model")
    assert table.column_names == names
    assert [column.to_pylist() for column in table.columns] == [[10 * i] for i in fitted]
    polars = {str(labels[i]): [10 * i] for i in given_}
    assert read_like_fit(polars, names, fitted_with_names=False, owner="Model").equals(table)


def test_columns_of_several_levels_are_matched():
    columns = pd.MultiIndex.from_product([["a", "b"], [2020, 2021]])
    frame = pd.DataFrame([[1, 2, 3, 4]], columns=columns)
    names = as_table(frame).column_names
    assert names[1] == "('a', 2021)"
    turned = frame[columns[::-1]]
    table = read_like_fit(turned, names, fitted_with_names=False, owner="Model")
    assert values(table) == values(as_table(frame))


def test_labels_that_were_not_fitted_are_missing():
    frame = pd.DataFrame([[1, 2]], columns=[2020, 2021])
    with pytest.raises(ValueError, match=r"columns are missing: \['2019', '2022'\]"):
        read_like_fit(frame, ["2019", "2022"], fitted_with_names=False, owner="Model")
    # Some labels are those of fit, so that the order means nothing.
    with pytest.raises(ValueError, match=r"columns are missing: \['0'\]"):
        read_like_fit(
            pd.DataFrame([[1, 2]], columns=[1, 2]), ["0", "1"], fitted_with_names=False, owner="M"
        )


@pytest.mark.parametrize("names", [["x0", "x1"], ["0", "1"]])
def test_tables_without_labels_of_their_own_are_matched_by_position(names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for X in (np.array([[8, 9]]), [[8, 9]], pd.DataFrame([[8, 9]]), {"p": [8], "q": [9]}):
            table = read_like_fit(X, names, fitted_with_names=False, owner="Model")
            assert values(table) == dict(zip(names, [[8], [9]], strict=True))
        turned = {names[1]: [9], names[0]: [8]}
        table = read_like_fit(turned, names, fitted_with_names=False, owner="Model")
        assert values(table) == dict(zip(names, [[8], [9]], strict=True))
    with pytest.warns(UserWarning, match="X does not have valid feature names, but Model"):
        read_like_fit(pd.DataFrame([[8, 9]]), ["a", "b"], fitted_with_names=True, owner="Model")


def test_labels_that_selectors_return_are_no_positions(frame):
    from sk_easytensor.blocks.detection import select_columns

    frame = frame.set_axis([5, 4, 3, 2, 1, 0], axis=1)
    chosen = select_columns(lambda X: list(X.select_dtypes(float)), as_table(frame), frame)
    assert chosen == ["4"]


@pytest.mark.parametrize(
    "further",
    [
        pd.Series(pd.arrays.SparseArray([0.0, 1.0])),
        pd.Series([object(), object()]),
        pd.Series([1, {"a": 1}], dtype=object),
        pd.Series(["\ud800", "x"], dtype=object),
    ],
)
def test_columns_that_were_not_fitted_may_hold_anything(further):
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4], "further": further})
    expected = {"b": [3, 4], "a": [1, 2]}
    twice = pd.concat([frame, frame[["further"]]], axis=1)
    for X in (frame, twice, dict(frame.items()), frame.astype(object).to_dict("records")):
        table = read_like_fit(X, ["b", "a"], fitted_with_names=True, owner="Model")
        assert values(table) == expected
    with pytest.raises(ValueError, match=r"more than once: \['a'\]"):
        read_like_fit(
            pd.concat([frame, frame[["a"]]], axis=1), ["b", "a"], fitted_with_names=True, owner="M"
        )


def test_columns_of_polars_that_were_not_fitted_may_have_any_name():
    frame = pl.DataFrame({"a\0": [1], "a": [2], "o": pl.Series([object()], dtype=pl.Object)})
    table = read_like_fit(frame, ["a"], fitted_with_names=True, owner="Model")
    assert values(table) == {"a": [2]}


# ---------------------------------------------------------------------- what ended the process


@pytest.mark.parametrize(
    "X",
    [
        pl.DataFrame({"a\0b": [1]}),
        pl.DataFrame({"s": [{"a\0b": 1}]}),
        pl.DataFrame({"s": [[{"a\0b": 1}]]}),
        {"a\0b": [1]},
        pd.DataFrame({"a\0b": [1]}),
        {"a\ud800b": [1]},
    ],
)
def test_names_that_are_no_text(X):
    with pytest.raises(ValueError, match=r"the column name 'a\\(x00|ud800)b' holds .*rename"):
        as_table(X)


SCALARS = [
    np.datetime64("2020-01-01"),
    np.datetime64("NaT"),
    np.datetime64("2020-01-01T03", "us"),
    np.int8(1),
    np.float32(0.5),
    np.bool_(True),
    np.longdouble(1),
    np.str_("x"),
    np.void(b"x"),
    dt.date(2020, 1, 1),
    dt.datetime(2020, 1, 1, 3),
    1,
    0.5,
    None,
    float("nan"),
]


@given(st.lists(st.sampled_from(SCALARS), min_size=2, max_size=4), st.booleans())
def test_scalars_of_several_types_do_not_end_the_process(column, nested):
    dates = [type(v) for v in column if isinstance(v, (dt.date, np.datetime64))]
    numbers = [v for v in column if isinstance(v, (int, float, np.number)) and v == v]
    array = np.empty(len(column), dtype=object)
    array[:] = column
    for X in ({"a": [column] if nested else column}, {"a": [list(array)] if nested else array}):
        try:
            table = as_table(X)
        except TypeError as error:
            message = str(error)
        else:
            # Numbers are no dates of 1970.
            assert not (dates and numbers)
            assert table.num_rows == (1 if nested else len(column))
            continue
        assert message.startswith("column 'a' holds")


@pytest.mark.parametrize(
    "column",
    [
        [np.array(["2024-01-01"], "M8[D]"), np.array([1])],
        [np.array(["2024-01-01"], "M8[D]"), [np.int8(1)]],
        [["x"], [np.datetime64("2024-01-01"), np.int8(1)]],
        ["x", [np.datetime64("2024-01-01"), np.int8(1)]],
        [[[np.datetime64("2024-01-01")]], [[np.int8(1)]]],
        [[{"b": np.datetime64("2024-01-01")}, {"b": np.int8(1)}]],
    ],
)
def test_dates_of_numpy_among_other_values_at_any_depth(column):
    for X in ({"a": column}, pd.DataFrame({"a": pd.Series(column, dtype=object)})):
        with pytest.raises(
            TypeError, match=r"column 'a(\.b)?' holds .* in row \d and .* in row \d"
        ):
            as_table(X)


def test_fields_and_items_are_read_as_columns_are():
    day, time = dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 3)
    lists = [[{"when": day, "kind": Plain.RED, "n": 1}, {"when": time, "n": 2}], None, []]
    table = as_table({"lists": lists, "structs": [{"when": day, "none": {}}, None, {"when": time}]})
    midnight = dt.datetime(2024, 1, 1)
    events = [
        {"when": midnight, "kind": "RED", "n": 1},
        {"when": time, "kind": None, "n": 2},
    ]
    assert values(table) == {
        "lists": [events, None, []],
        "structs.when": [midnight, None, time],
    }
    mixed = values(as_table({"a": [Plain.RED, 1, "x", uuid.UUID(int=1)]}))["a"]
    assert mixed == ["RED", "1", "x", str(uuid.UUID(int=1))]


def test_dates_among_times_keep_the_times():
    column = [dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, 3), None]
    expected = [dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 3), None]
    assert values(as_table({"a": column})) == {"a": expected}
    assert values(as_table({"a": column[::-1]})) == {"a": expected[::-1]}


@pytest.mark.parametrize(
    ("column", "row"),
    [(["x", "\ud83d"], 1), ([["x"], ["y"], ["\ud83d"]], 2), ([{"b": "\ud83d"}], 0)],
)
def test_half_of_a_surrogate_pair(column, row):
    message = rf"column 'a' holds half of a surrogate pair in row {row}.*ud83d.*Replace it"
    array = np.empty(len(column), dtype=object)
    array[:] = column
    for X in ({"a": column}, {"a": array}, pd.DataFrame({"a": pd.Series(array, dtype=object)})):
        with pytest.raises(ValueError, match=message):
            as_table(X)
    with pytest.raises(ValueError, match=message.replace("'a'", "'x0'")):
        as_table(array[:, None])


# ---------------------------------------------------------------------- one obvious reading


class Plain(enum.Enum):
    RED = 1
    BLUE = "blue"


class Whole(enum.IntEnum):
    ONE = 1


def test_enumerations_and_uuids_are_categories():
    first, second = uuid.UUID(int=1), uuid.UUID(int=2**128 - 5)
    columns = {
        "enum": [Plain.RED, None, Plain.BLUE],
        "whole": [Whole.ONE, None, Whole.ONE],
        "uuid": [first, None, second],
        "lists": [[first], None, [Plain.RED, second]],
    }
    expected = {
        "enum": ["RED", None, "blue"],
        "whole": [1, None, 1],
        "uuid": [str(first), None, str(second)],
        "lists": [[str(first)], None, ["RED", str(second)]],
    }
    assert values(as_table(columns)) == expected
    assert values(as_table(pd.DataFrame(columns, dtype=object))) == expected
    categories = pd.DataFrame({"enum": pd.Categorical(columns["enum"])})
    assert values(as_table(categories)) == {"enum": expected["enum"]}
    objects = pl.DataFrame({"uuid": pl.Series(columns["uuid"], dtype=pl.Object)})
    assert values(as_table(objects)) == {"uuid": expected["uuid"]}
    if hasattr(pa, "uuid"):
        stored = [None if one is None else one.bytes for one in columns["uuid"]]
        array = pa.array([b"0" * 16, *stored], pa.uuid())
        assert values(as_table(pa.table({"uuid": array[1:]}))) == {"uuid": expected["uuid"]}


def test_fields_of_structs_are_columns():
    column = [{"x": 1, "inner": {"y": "u", "z": [1, 2]}}, None, {"x": None, "inner": None}]
    expected = {"n": [1, 2, 3], "s.x": [1, None, None], "s.inner.y": ["u", None, None]}
    expected["s.inner.z"] = [[1, 2], None, None]
    columns = {"n": [1, 2, 3], "s": column}
    for X in (columns, pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        assert values(as_table(X)) == expected
        table = read_like_fit(X, ["s.inner.y", "n"], fitted_with_names=True, owner="Model")
        assert table.column_names == ["s.inner.y", "n"]
    events = as_table({"events": [[{"x": 1}], None]})
    assert pa.types.is_struct(events.schema.field("events").type.value_type)
    with pytest.raises(ValueError, match=r"more than once: \['s.x'\]"):
        as_table({"s": [{"x": 1}], "s.x": [1]})
    twice = {"n": [1, 2], "s": [{"a.b": 1, "a": {"b": 2}}, None]}
    for X in (twice, pd.DataFrame(twice), pl.DataFrame(twice), pa.table(twice)):
        with pytest.raises(
            ValueError, match=r"\['s.a.b'\] among the fields of the structs in \['s'\]"
        ):
            as_table(X)
        assert as_table(X, columns=["n"]).column_names == ["n"]


def test_run_end_encoding_and_small_booleans_are_decoded():
    runs = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None]))
    assert values(as_table(pa.table({"a": runs}))) == {"a": ["a", "a", None]}
    if hasattr(pa, "bool8"):
        flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8()))
        assert as_table(pa.table({"a": flags})).column("a").to_pylist() == [True, None]


def test_integers_of_128_bits():
    if hasattr(pl, "Int128"):
        frame = pl.DataFrame({"a": pl.Series([1, None, 3], dtype=pl.Int128), "b": ["x", "y", None]})
        assert values(as_table(frame)) == {"a": [1, None, 3], "b": ["x", "y", None]}


def test_rows_that_hold_lists():
    for rows in (
        [[1, [1, 2]], [2, [3]]],
        [[1, [1, 2]], [2, [3, 4]]],
        [(1, np.array([1, 2])), (2, np.array([3]))],
    ):
        table = values(as_table(rows))
        assert table["x0"] == [1, 2]
        assert table["x1"][0] == [1, 2]
    assert values(as_table([[[1, 2], ["a"]], [[3, 4], ["b"]]]))["x1"] == [["a"], ["b"]]
    with pytest.raises(ValueError, match="row 0 holds 2 values and row 1 1"):
        as_table([[1, 2], [3]])


def test_arrays_of_records_have_named_columns():
    array = np.array([(1, "x"), (2, "y")], dtype=[("a", "i4"), ("b", "U3")])
    for X in (array, array.view(np.recarray)):
        assert values(as_table(X)) == {"a": [1, 2], "b": ["x", "y"]}
        assert has_column_names(X)
        table = read_like_fit(X, ["b", "a"], fitted_with_names=True, owner="Model")
        assert table.column_names == ["b", "a"]


def test_tables_without_columns_say_how_many_rows_they_have():
    for X in (pd.DataFrame(index=range(3)), np.zeros((3, 0))):
        with pytest.raises(ValueError, match=r"0 feature\(s\) \(shape=\(3, 0\)\)"):
            as_table(X)
    with pytest.raises(ValueError, match=r"column 'a' is an array of shape \(3, 0\)"):
        as_table({"a": np.zeros((3, 0))})


# ---------------------------------------------------------------------- stored data sets


class Blocks:
    """Blocks of rows, with the methods by which data sets such as Ray's are read."""

    def __init__(self, *blocks):
        self.blocks = blocks

    def schema(self):
        return self.blocks[0].schema

    def limit(self, n_rows):
        return Blocks(self.blocks[0].slice(0, n_rows))

    def iter_batches(self, *, batch_size, batch_format):
        assert (batch_size, batch_format) == (None, "pyarrow")
        yield from self.blocks


def test_data_sets_of_other_libraries_are_read_block_by_block():
    blocks = Blocks(pa.table({"a": [1, 2], "b": ["x", "y"]}), pa.table({"a": [0.5]}))
    assert is_source(blocks)
    assert has_column_names(blocks)
    assert as_table(blocks).to_pydict() == {"a": [1.0, 2.0, 0.5], "b": ["x", "y", None]}
    assert first_rows(blocks, 1).to_pydict() == {"a": [1], "b": ["x"]}


def test_data_sets_without_rows_and_other_objects_are_no_source():
    with pytest.raises(ValueError, match="the data set holds no row"):
        as_table(Blocks())
    for X in (pd.DataFrame({"limit": [1]}), pl.LazyFrame({"a": [1]}), pa.table({"a": [1]}), None):
        assert not is_source(X)


# ---------------------------------------------------------------------- messages


def test_errors_of_rows_are_what_they_say():
    with pytest.raises(RowError) as raised, row_errors_from(10):
        raise RowError("row {row} is wrong", 3)
    error = raised.value
    assert repr(error) == "RowError('row 13 is wrong')"
    assert str(pickle.loads(pickle.dumps(error))) == "row 13 is wrong"


def test_a_value_that_cannot_be_cast_is_named_with_its_row():
    column = pa.chunked_array([["1"] * 5, ["2", "x" * 100, "y"]])
    with pytest.raises(RowError, match=r"holds text .*numbers: 'xxx.{50,56}\.\.\. in row 6$"):
        cast_column(column, "n", pa.float64(), block="NumericBlock")


def test_labels_of_sparse_frames_are_matched_in_any_order():
    matrix = scipy.sparse.random(9, 100, 0.1, format="csr", random_state=0)
    frame = pd.DataFrame.sparse.from_spmatrix(matrix, columns=range(2000, 2100))
    fitted = as_table(frame)
    given = {"fitted_with_names": False, "owner": "Model", "sparse": layout_of(fitted)}
    turned = read_like_fit(frame[frame.columns[::-1]], fitted.column_names, **given)
    for one, other in zip(turned.columns, fitted.columns, strict=True):
        for mine, theirs in zip(read_parts(one), read_parts(other), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match=r"columns are missing: \['2000'\]"):
        read_like_fit(frame.rename(columns={2000: 7}), fitted.column_names, **given)


def read_parts(column):
    return read_sparse(column) if isinstance(column.type, SparseRows) else [column.to_numpy()]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (pa.scalar("x" * 100), "'" + "x" * 56 + "..."),
        (pa.scalar(2**62, pa.duration("s")), f"{2**62} (timedelta64[s])"),
        (pa.scalar(2**62, pa.timestamp("s")), f"{2**62} (datetime64[s])"),
        (pa.array([b"\xff"]).view(pa.string())[0], r"b'\xff'"),
        (pa.scalar([2**62], pa.list_(pa.duration("s"))), "list[timedelta64[s]]"),
        (pa.scalar(None), "None"),
    ],
)
def test_values_that_python_has_not_are_written(value, written):
    assert show_value(value) == written


@pytest.mark.parametrize("values", [[[1.5], [None]], [["a", "b"], ["c", None]]])
def test_matrices_of_objects_are_lists(values):
    table = as_table({"a": np.array(values, dtype=object)})
    assert table["a"].to_pylist() == values
    with pytest.raises(TypeError, match="column 'a' holds"):
        as_table({"a": np.array([[1], ["x"]], dtype=object)})


def test_objects_that_are_no_table():
    groups = pd.DataFrame({"a": [1, 2]}).groupby("a")
    with pytest.raises(ValueError, match="X is a DataFrameGroupBy, which is not a table"):
        as_table(groups)


def test_maps_of_polars():
    maps = pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64()))
    frame = pl.from_arrow(pa.table({"m": maps, "x": [1.0, 2.0]}))
    assert as_table(frame)["x"].to_pylist() == [1.0, 2.0]
    assert len(as_table(frame)["m"]) == 2
