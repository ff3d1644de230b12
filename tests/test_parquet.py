"""Parquet files that were not all written alike, read as one table."""

import datetime as dt
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import EasyTensorRegressor
from sk_easytensor.backends.chunks import parquet_chunks
from sk_easytensor.plain_types import plain_schema, plain_types
from sk_easytensor.tables import as_table, first_rows

DAY = dt.datetime(2024, 2, 29)
COLUMNS = {
    "null": pa.nulls(2),
    "bool": pa.array([True, None]),
    "int8": pa.array([-3, None], pa.int8()),
    "int64": pa.array([2**40, None]),
    "long": pa.array([2**53 + 1, None]),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float32": pa.array([0.1, None], pa.float32()),
    "float64": pa.array([0.1, None]),
    "decimal": pa.array([1, None], pa.decimal128(9, 2)),
    "string": pa.array(["x", None]),
    "large_string": pa.array(["y", None], pa.large_string()),
    "category": pa.array(["z", None]).dictionary_encode(),
    "binary": pa.array([b"x", None]),
    "date": pa.array([DAY.date(), None]),
    "ms": pa.array([DAY, None], pa.timestamp("ms")),
    "ns": pa.array([DAY, None], pa.timestamp("ns")),
    "late": pa.array([dt.datetime(9999, 1, 1), None], pa.timestamp("us")),
    "zone": pa.array([DAY, None], pa.timestamp("us", "UTC")),
    "duration": pa.array([dt.timedelta(1), None]),
    "ints": pa.array([[1, 2], None]),
    "floats": pa.array([[0.5], None]),
    "struct": pa.array([{"x": 1}, None]),
    "wider": pa.array([{"x": 0.5, "y": "u"}, None]),
}


def write(where, *parts):
    for number, part in enumerate(parts):
        if isinstance(part, pd.DataFrame):
            part.to_parquet(where / f"part-{number}.parquet")
        else:
            pq.write_table(part, where / f"part-{number}.parquet")
    return str(where)


def read_chunks(where):
    schema, chunks = parquet_chunks(where)
    names = plain_schema(schema).names
    return [part for chunk in chunks for part in chunk.tables(names, 1)]


def spelled(value):
    """Return a value of a table with dates as times, which they may become."""
    if isinstance(value, dt.datetime):
        return pd.Timestamp(value).to_pydatetime().replace(tzinfo=None)
    return dt.datetime(*value.timetuple()[:3]) if isinstance(value, dt.date) else value


@given(st.sampled_from(sorted(COLUMNS)), st.sampled_from(sorted(COLUMNS)))
def test_values_are_the_same_in_a_data_set_or_column_and_file_are_named(
    tmp_path_factory, one, other
):
    tables = [pa.table({"a": COLUMNS[one], "b": [1, 2]}), pa.table({"a": COLUMNS[other]})]
    where = write(tmp_path_factory.mktemp("pair"), *tables)
    try:
        table = as_table(where)
    except TypeError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert one != other
        assert re.search("column 'a' .*part-[01].parquet", refused)
        return
    alone = [row for part in tables for row in plain_types(part).to_pylist()]
    missing = dict.fromkeys(table.column_names)
    assert table.num_rows == 4
    for found, expected in zip(table.to_pylist(), alone, strict=True):
        for name, value in ({**missing, **expected}).items():
            assert spelled(found.get(name)) == spelled(value)
    assert pa.concat_tables(read_chunks(where)).to_pylist() == table.to_pylist()


def test_columns_of_later_files_are_read(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    where = write(tmp_path, frame, frame.assign(b=["x", "y"]), frame.rename(columns={"a": "c"}))
    table = as_table(where)
    assert table.to_pydict() == {
        "a": [1, 2, 1, 2, None, None],
        "b": [None, None, "x", "y", None, None],
        "c": [None] * 4 + [1, 2],
    }
    assert first_rows(where, 1).column_names == ["a", "b", "c"]
    assert as_table(where, columns=["b", "no"]).column_names == ["b"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([True], [2], r"'a' is of type bool in .*part-0.parquet and of type int64 in .*part-1"),
        (["x"], [2], r"'a' is of type string in .*part-0.parquet and of type int64 in .*part-1"),
        ([0.5], [2**53 + 1], r"column 'a' of .*part-1.parquet cannot be read as float64"),
    ],
)
def test_types_that_have_none_in_common(first, second, message, tmp_path):
    where = write(tmp_path, pa.table({"a": first}), pa.table({"a": second}))
    with pytest.raises(TypeError, match=message):
        as_table(where)
    with pytest.raises(TypeError, match=message):
        read_chunks(where)


@pytest.mark.parametrize("index", [[5, 9, 7], pd.Index([5, 9, 7], name="id"), pd.RangeIndex(3)])
def test_the_index_of_a_frame_is_no_column_of_its_file(index, tmp_path):
    frame = pd.DataFrame({"a": [3.0, 1.0, 2.0], "b": [1, 2, 3]}, index=index)
    where = write(tmp_path, frame, frame)
    assert as_table(where).column_names == ["a", "b"]
    assert first_rows(where, 2).column_names == ["a", "b"]
    assert read_chunks(where)[0].column_names == ["a", "b"]
    assert as_table(pa.Table.from_pandas(frame.sort_values("a"))).to_pydict()["a"] == [1, 2, 3]


def test_an_index_that_is_a_column_elsewhere(tmp_path):
    frame = pd.DataFrame({"a": [3, 1]}, index=pd.Index([5, 9], name="id"))
    where = write(tmp_path, frame, frame.reset_index())
    with pytest.raises(
        ValueError, match=r"column 'id' is the index .*part-0.* but not in .*part-1"
    ):
        as_table(where)


def test_a_model_of_a_filtered_frame_in_a_file_predicts_the_frame(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=90), "b": rng.normal(size=90)})
    frame["y"] = frame["a"]
    frame = frame[frame["b"] > -1].sort_values("b")
    where = write(tmp_path, frame)
    model = EasyTensorRegressor(trees=None, max_epochs=1, random_state=0).fit(where, "y")
    assert list(model.feature_names_in_) == ["a", "b"]
    np.testing.assert_array_equal(model.predict(frame), model.predict(where))


def test_files_that_are_none(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "one.parquet")
    (tmp_path / "two.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        as_table(str(tmp_path))


def test_damaged_files_are_named(tmp_path):
    table = pa.table({"a": np.arange(1000.0), "y": np.tile([1.0, 2.0], 500)})
    for name in ("0", "1"):
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="snappy")
    data = bytearray((tmp_path / "1.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "1.parquet").write_bytes(data)
    with pytest.raises(OSError, match=r"1\.parquet cannot be read"):
        EasyTensorRegressor(max_epochs=1).fit(tmp_path, "y")
