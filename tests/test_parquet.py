"""Parquet files that were not all written alike, read as one table."""

import datetime as dt
import decimal
import re
from itertools import chain, pairwise
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import MLP, CategoryBlock, EasyTensorRegressor, NumericBlock
from sk_easytensor.data.parquet import parquet_chunks, read_parquet
from sk_easytensor.data.tables import as_table, first_rows
from sk_easytensor.data.types import plain_schema, plain_types

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


N_ROWS = 6


def half(value, kind=None):
    """Return an array in which every other value is missing."""
    return pa.array([value, None] * (N_ROWS // 2), kind)


def extension(kind, storage):
    return pa.ExtensionArray.from_storage(kind, storage)


PLAIN = pa.table(
    {
        "x": np.arange(float(N_ROWS)),
        "c": ["a", "b"] * (N_ROWS // 2),
        "y": np.arange(float(N_ROWS)),
    }
)
INVALID = pa.StringArray.from_buffers(
    N_ROWS,
    pa.py_buffer(np.arange(N_ROWS + 1, dtype=np.int32)),
    pa.py_buffer(b"\xff" * N_ROWS),
)
DROPPED = {
    "map": half([("k", 1)], pa.map_(pa.string(), pa.int64())),
    "map of maps": half(
        [("k", [("j", 1)])], pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))
    ),
    "struct": half({"a": 1, "b": "x"}),
    "struct of structs": half({"a": {"b": {"c": 1}}}),
    "decimal of 76 digits": half(decimal.Decimal("9" * 76), pa.decimal256(76, 0)),
    "decimal of 38 digits": half(decimal.Decimal("9" * 38), pa.decimal128(38, 0)),
    "fixed size binary": half(b"abc", pa.binary(3)),
    "binary": half(b"\xff\0"),
    "null": pa.nulls(N_ROWS),
    "nested lists": half([[1], [2, 3]]),
    "lists of structs of lists": half([{"a": [{"b": 1}]}]),
    "lists of maps": half([[("k", 1)]], pa.list_(pa.map_(pa.string(), pa.int64()))),
    "fixed size lists": pa.array([[1.0, 2.0]] * N_ROWS, pa.list_(pa.float64(), 2)),
    "times": half(dt.time(1)),
    "nanoseconds of the day": half(1, pa.time64("ns")),
    "durations": half(dt.timedelta(1)),
    "late times": half(dt.datetime(9999, 1, 1), pa.timestamp("us")),
    "half floats": pa.array(np.ones(N_ROWS, np.float16)),
    "string views": half("x", pa.string_view()),
    "list views": half([1], pa.list_view(pa.int64())),
    "categories": half("x").dictionary_encode(),
    "uuids": extension(pa.uuid(), half(b"0" * 16, pa.binary(16))),
    "json": extension(pa.json_(), half("{}")),
    "tensors": extension(
        pa.fixed_shape_tensor(pa.float32(), [2]),
        pa.array([[1.0, 2.0]] * N_ROWS, pa.list_(pa.float32(), 2)),
    ),
    "small booleans": extension(pa.bool8(), half(1, pa.int8())),
}
"""Columns of Parquet files that no block reads."""

FURTHER = {
    **DROPPED,
    "struct of one name": half({"a.b": 1, "a": {"b": 2}}),
    "struct with a null character": half({"a\0b": 1}),
    "fixed size lists with missing ones": half([1.0, 2.0], pa.list_(pa.float64(), 2)),
    "invalid UTF-8": INVALID,
}
"""Columns that are not those of fit: there are some among them that cannot be read."""


def make_model():
    blocks = [("x", NumericBlock(), ["x"]), ("c", CategoryBlock(), ["c"])]
    params = {"remainder": "drop", "trunk": MLP(width=4), "trees": None, "max_epochs": 1}
    return EasyTensorRegressor(blocks, validation_fraction=None, random_state=0, **params)


@pytest.fixture(scope="module")
def of_plain_columns(tmp_path_factory):
    """A model of the two columns, and what it predicts for them."""
    where = write(tmp_path_factory.mktemp("plain"), PLAIN)
    model = make_model().fit(where, "y")
    return model, model.predict(where)


@pytest.mark.parametrize("kind", DROPPED)
def test_fit_on_files_with_columns_that_no_block_reads(kind, of_plain_columns, tmp_path):
    _, expected = of_plain_columns
    where = write(tmp_path, PLAIN.add_column(1, "z", DROPPED[kind]))
    model = make_model().fit(where, "y")
    assert model.blocks_.keys() == {"x", "c"}
    assert (model.predict(where) == expected).all()


@pytest.mark.parametrize("name", ["z", "", "a\0b", "x.y", "\uffff"])
@pytest.mark.parametrize("kind", FURTHER)
def test_further_columns_of_files_are_not_read(kind, name, of_plain_columns, tmp_path):
    model, expected = of_plain_columns
    where = write(tmp_path, PLAIN.add_column(1, name, FURTHER[kind]))
    assert (model.predict(where) == expected).all()


def test_further_columns_may_occur_twice_and_be_of_several_types(of_plain_columns, tmp_path):
    model, expected = of_plain_columns
    one = PLAIN.append_column("z", DROPPED["map"]).append_column("z", DROPPED["binary"])
    other = PLAIN.add_column(0, "z", DROPPED["struct"]).append_column("w", DROPPED["null"])
    where = write(tmp_path, one, other, PLAIN.append_column("w", FURTHER["invalid UTF-8"]))
    assert (model.predict(where) == np.tile(expected, 3)).all()
    assert as_table(where, columns=["x", "c"]).column_names == ["x", "c"]
    for columns in (None, ["x", "z"]):
        with pytest.raises(ValueError, match=r"more than once in .*part-0.parquet: \['z'\]"):
            as_table(where, columns=columns)
    lacking = tmp_path / "lacking.parquet"
    pq.write_table(one.drop_columns(["c"]), lacking)
    with pytest.raises(ValueError, match=r"columns are missing: \['c'\]"):
        model.predict(lacking)


def test_a_column_that_occurs_twice_in_a_later_file(of_plain_columns, tmp_path):
    model, expected = of_plain_columns
    twice = PLAIN.append_column("z", DROPPED["map"]).append_column("z", DROPPED["binary"])
    where = write(tmp_path, PLAIN, twice)
    assert (model.predict(where) == np.tile(expected, 2)).all()
    with pytest.raises(ValueError, match=r"more than once in .*part-1.parquet: \['x'\]"):
        model.predict(write(tmp_path, PLAIN, twice.append_column("x", DROPPED["null"])))
    with pytest.raises(ValueError, match=r"more than once in .*part-1.parquet: \['z'\]"):
        make_model().fit(write(tmp_path, PLAIN, twice), "y")


def write_partitions(folder):
    """Write a file for each of four months, with a page beside them."""
    for number, (year, month) in enumerate([(2023, 1), (2023, 2), (2024, 1), (2024, 2)]):
        part = folder / f"year={year}" / f"month={month}"
        part.mkdir(parents=True)
        pq.write_table(pa.table({"a": [number]}), part / "rows.parquet")
    (folder / "README.md").write_text("About these rows.")
    return folder


def test_a_page_beside_the_files_is_not_read(tmp_path):
    found = read_parquet(write_partitions(tmp_path))
    assert found.column("a").to_pylist() == [0, 1, 2, 3]
    assert found.column("year").to_pylist() == [2023, 2023, 2024, 2024]
    alone = tmp_path / "alone"
    alone.mkdir()
    pq.write_table(pa.table({"a": [1]}), alone / "part-0000")
    # Without a file that ends in .parquet, all files are read.
    assert read_parquet(alone).column("a").to_pylist() == [1]


def test_globs_have_partition_columns(tmp_path):
    folder = write_partitions(tmp_path)
    found = read_parquet(f"{folder}/year=2024/*/*.parquet")
    assert found.to_pydict() == {"a": [2, 3], "year": [2024, 2024], "month": [1, 2]}
    found = read_parquet(f"{folder}/*/month=1/*.parquet")
    assert found.to_pydict() == {"a": [0, 2], "year": [2023, 2024], "month": [1, 1]}


@pytest.mark.parametrize("kind", [str, Path])
def test_lists_of_paths_are_read_in_their_order(kind, tmp_path):
    folder = write_partitions(tmp_path)
    paths = [kind(folder / f"year={year}/month=2/rows.parquet") for year in (2024, 2023)]
    expected = {"a": [3, 1], "year": [2024, 2023], "month": [2, 2]}
    assert read_parquet(paths).to_pydict() == expected
    assert as_table(paths).to_pydict() == expected
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet"):
        read_parquet([*paths, kind("nowhere.parquet")])


def test_files_evaluate_a_fit_on_rows_in_memory(tmp_path):
    frame = pd.DataFrame({"a": range(40), "y": [0.0, 1.0] * 20})
    path = tmp_path / "rows.parquet"
    frame.to_parquet(path)
    for files in (str(path), path, [path]):
        model = EasyTensorRegressor(max_epochs=1, trees=None)
        model.fit(frame[["a"]], frame["y"], eval_set=[(files, "y")])
        assert "valid_0" in model.evals_result_
        # The same files, given twice, are training rows.
        other = EasyTensorRegressor(max_epochs=1, trees=None)
        other.fit(files, "y", eval_set=[([path] if files != path else str(path), "y")])
        assert list(other.evals_result_) == ["training", "valid_0"]


def test_lists_of_texts_are_no_paths():
    with pytest.raises(ValueError, match="Expected 2D array"):
        as_table(["a text", "another one"])


def test_paths_of_a_list_are_on_one_file_system(tmp_path):
    folder = write_partitions(tmp_path)
    with fsspec.open("memory://rows.parquet", "wb") as file:
        pq.write_table(pa.table({"a": [1]}), file)
    paths = [str(folder / "year=2024/month=2/rows.parquet"), "memory://rows.parquet"]
    with pytest.raises(ValueError, match="are on different file systems"):
        read_parquet(paths)


@pytest.mark.parametrize("n_rows", [1, 7, 100])
@pytest.mark.parametrize("at_least", [1, 3, 30])
def test_small_files_are_read_together(n_rows, at_least, tmp_path):
    """Chunks of many small files have the rows of the files, in their order."""
    random, numbers = np.random.default_rng(0), np.arange(500)
    bounds = [0, *np.sort(random.integers(0, 500, 199)), 500]
    for index, (begin, end) in enumerate(pairwise(bounds)):
        pq.write_table(pa.table({"a": numbers[begin:end]}), tmp_path / f"{index:03}.parquet")
    _, chunks = parquet_chunks(tmp_path, at_least)
    assert len(chunks) < 200 if at_least < 10 else len(chunks) >= at_least
    assert [chunk.first for chunk in chunks] == list(np.cumsum([0, *map(len, chunks)])[:-1])
    tables = [list(chunk.tables(["a"], n_rows)) for chunk in chunks]
    assert all(0 < len(table) <= n_rows for parts in tables for table in parts)
    joined = pa.concat_tables(chain.from_iterable(tables))
    assert joined.column("a").to_pylist() == numbers.tolist()
    for chunk, parts in zip(chunks, tables, strict=True):
        assert sum(map(len, parts)) == len(chunk)
        cut = [table for part in chunk.cut(3) for table in part.tables(["a"], n_rows)]
        assert pa.concat_tables(cut).equals(pa.concat_tables(parts))


def test_parts_of_paths_above_the_files_are_no_columns(tmp_path):
    folder = tmp_path / "exp=3" / "data"
    write_partitions(folder)
    names = ["a", "year", "month"]
    globs = [f"{folder}/*/*/*.parquet", f"{folder}/year=2024/*/*.parquet"]
    paths = [sorted(folder.glob("*/*/*.parquet"))]
    for path in [folder, *globs, *paths]:
        assert read_parquet(path).column_names == names
    (alone,) = folder.glob("year=2024/month=1/*.parquet")
    flat = tmp_path / "exp=3" / "flat"
    flat.mkdir()
    pq.write_table(pa.table({"a": [1]}), flat / "rows.parquet")
    for path in [alone, [flat / "rows.parquet"], f"{flat}/*.parquet"]:
        assert read_parquet(path).column_names == (names if path == [alone] else ["a"])


@pytest.mark.parametrize("kind", ["directory", "glob", "list"])
def test_columns_of_the_files_precede_parts_of_their_paths(kind, tmp_path):
    for index, key in enumerate(["x", "y"]):
        folder = tmp_path / f"g={index}"
        folder.mkdir()
        pq.write_table(pa.table({"a": [index], "g": [key]}), folder / "rows.parquet")
    paths = {
        "directory": tmp_path,
        "glob": f"{tmp_path}/g=*/rows.parquet",
        "list": sorted(tmp_path.glob("*/rows.parquet")),
    }
    assert read_parquet(paths[kind]).to_pydict() == {"a": [0, 1], "g": ["x", "y"]}


def test_lists_of_directories_and_globs(tmp_path):
    folder = write_partitions(tmp_path)
    expected = read_parquet(folder)
    for paths in (
        [f"{folder}/year=2023", f"{folder}/year=2024"],
        [f"{folder}/year=2023/*/*.parquet", folder / "year=2024"],
    ):
        assert as_table(paths).equals(expected)


def test_lists_of_web_addresses_are_texts():
    with pytest.raises(ValueError, match="Expected 2D array"):
        as_table(["http://127.0.0.1:9/a", "https://127.0.0.1:9/b"])
