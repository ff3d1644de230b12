import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from sk_easytensor.data.tables import as_table
from sk_easytensor.events import collect_sequences

KEYS = {"by": "user", "order_by": "time"}


@pytest.fixture
def log():
    """A log out of order, with a tie of times, missing values and categories."""
    return pd.DataFrame(
        {
            "user": ["b", "a", "b", "a", "b", "c", "b"],
            "time": pd.to_datetime([f"2024-01-0{day}" for day in [3, 5, 1, 2, 3, 9, 7]]),
            "price": [1.0, 2.0, 3.0, np.nan, 5.0, 6.0, 7.0],
            "shop": pd.Categorical(["x", "y", None, "x", "z", "x", "y"]),
        }
    )


def lists(table, name):
    values = as_table(table, minimum_rows=0)[name].to_pylist()
    return [[None if item != item else item for item in row] for row in values]


def stamps(*texts):
    return np.array(texts, dtype="M8[us]")


def test_all_events(log, flavour):
    result = collect_sequences(flavour(log), **KEYS)
    assert list(as_table(result).column_names) == ["user", "past_time", "past_price", "past_shop"]
    assert as_table(result)["user"].to_pylist() == ["b", "a", "c"]
    assert lists(result, "past_price") == [[3, 1, 5, 7], [None, 2], [6]]
    assert lists(result, "past_shop") == [[None, "x", "z", "y"], ["x", "y"], ["x"]]


def test_before_one_time(log, flavour):
    result = collect_sequences(flavour(log), **KEYS, at=dt.datetime(2024, 1, 5))
    assert as_table(result)["user"].to_pylist() == ["b", "a", "c"]
    assert lists(result, "past_price") == [[3, 1, 5], [None], []]


def test_before_each_row(log, flavour):
    result = collect_sequences(flavour(log), **KEYS, at=flavour(log), columns="price")
    expected = [[3], [None], [], [], [3], [], [3, 1, 5]]
    assert lists(result, "past_price") == expected
    assert as_table(result).column_names == [*log.columns, "past_price"]


def test_result_is_of_the_same_kind(log, flavour):
    kinds = (pd.DataFrame, pl.DataFrame)
    events = flavour(log)
    expected = next((kind for kind in kinds if isinstance(events, kind)), pa.Table)
    for at in [None, "2024-01-05", events]:
        assert type(collect_sequences(events, **KEYS, at=at)) is expected
    # The table of prediction times decides, if there is one.
    assert type(collect_sequences(events, **KEYS, at=log)) is pd.DataFrame
    assert type(collect_sequences(events, **KEYS, at=pl.from_pandas(log))) is pl.DataFrame
    arrow = pa.Table.from_pandas(log, preserve_index=False)
    assert type(collect_sequences(events, **KEYS, at=arrow)) is pa.Table


def test_lazy_frames(log):
    lazy = pl.from_pandas(log).lazy()
    assert type(collect_sequences(lazy, **KEYS)) is pl.DataFrame
    result = collect_sequences(lazy, **KEYS, at=lazy)
    assert lists(result, "past_price")[-1] == [3, 1, 5]


@pytest.mark.parametrize("index", [[5, 5, 5, 1, 1, 2, 2], list("ttuuvvw")])
def test_pandas_keeps_index_and_columns(log, index):
    at = log.assign(other=pd.Categorical([1, 2] * 3 + [1])).set_axis(index)
    before = at.copy()
    result = collect_sequences(log, **KEYS, at=at)
    assert_frame_equal(result[at.columns], at)
    assert_frame_equal(at, before)
    for name in ["past_time", "past_price", "past_shop"]:
        assert isinstance(result[name].dtype, pd.ArrowDtype)
    assert lists(result, "past_price")[-1] == [3, 1, 5]


def test_pandas_keeps_key_types(log):
    result = collect_sequences(log.astype({"user": "category"}), **KEYS)
    assert isinstance(result["user"].dtype, pd.CategoricalDtype)
    assert result.index.equals(pd.RangeIndex(3))


def brute_force(events, asked, by, max_length):
    """For each row asked, the numbers of the events before it, in plain Python."""
    expected = []
    for row in asked:
        same = [e for e in events if all(e[name] == row[name] for name in by)]
        before = sorted((e for e in same if e["time"] < row["time"]), key=lambda e: e["time"])
        ids = [e["id"] for e in before]
        expected.append(ids if max_length is None else ids[-max_length:])
    return expected


entities = st.sampled_from(["a", "b", "c"])
rows = st.tuples(entities, st.integers(0, 2), st.integers(-4, 4))


@given(
    events=st.lists(rows, max_size=30),
    asked=st.lists(rows, max_size=12),
    by=st.sampled_from([["user"], ["user", "site"], ["site"]]),
    max_length=st.sampled_from([None, 1, 2, 5]),
    unit=st.sampled_from([None, float, "date32[day]", "timestamp[s]", "timestamp[ns]"]),
    chunk=st.integers(1, 30),
    encoded=st.booleans(),
)
def test_matches_brute_force(events, asked, by, max_length, unit, chunk, encoded):
    names = ["user", "site", "time"]

    def table(rows, unit):
        columns = list(zip(*rows, strict=True)) or [[], [], []]
        types = [pa.string(), pa.int32(), pa.int64()]
        arrays = [pa.array(c, kind) for c, kind in zip(columns, types, strict=True)]
        if unit is float:
            arrays[2] = arrays[2].cast(pa.float64())
        elif unit:
            arrays[2] = pa.array(np.array(columns[2], "M8[D]")).cast(unit)
        made = pa.table(arrays, names=names).append_column("id", pa.array(range(len(rows))))
        return made

    log = pa.Table.from_batches(
        table(events, unit).to_batches(max_chunksize=chunk), table(events, unit).schema
    )
    if encoded:
        column = pa.chunked_array(
            [part.dictionary_encode() for part in log["user"].chunks],
            pa.dictionary(pa.int32(), pa.string()),
        )
        log = log.set_column(0, "user", column)
    # The times asked for are in microseconds, whatever the log is in.
    at = table(asked, "timestamp[us]" if isinstance(unit, str) else unit)
    options = {"by": by, "order_by": "time", "columns": ["id"], "max_length": max_length}

    def records(rows):
        return [{**dict(zip(names, row, strict=True)), "id": i} for i, row in enumerate(rows)]

    result = collect_sequences(log, **options, at=at)
    assert result.drop_columns("past_id").equals(at)
    assert lists(result, "past_id") == brute_force(records(events), records(asked), by, max_length)

    keys = list(dict.fromkeys(tuple(row[name] for name in by) for row in records(events)))
    for time, before in [(None, 99), (2, 2)]:
        result = collect_sequences(
            log, **options, at=np.datetime64(time, "D") if time and isinstance(unit, str) else time
        )
        asked_keys = [{**dict(zip(by, key, strict=True)), "time": before} for key in keys]
        assert [tuple(row[name] for name in by) for row in result.to_pylist()] == keys
        assert lists(result, "past_id") == brute_force(records(events), asked_keys, by, max_length)


def test_what_happens_later_changes_nothing():
    random = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user": random.integers(0, 20, 500),
            "time": random.integers(0, 50, 500),
            "value": random.normal(size=500),
            "shop": random.choice(["x", "y", "z"], 500),
        }
    )
    at = pd.DataFrame({"user": np.arange(22), "time": 25})
    later = log["time"] >= 25
    assert (log["time"] == 25).any()
    changed = log.copy()
    changed.loc[later, "value"] = 1e9
    changed.loc[later, "shop"] = "other"
    changed.loc[later, "time"] = random.integers(25, 90, later.sum())
    changed.loc[later, "user"] = random.integers(0, 40, later.sum())
    changed = pd.concat([changed[later][::-1], changed[~later]])
    expected = collect_sequences(log, **KEYS, at=at)
    assert lists(expected, "past_value") != [[]] * 22
    for other in [changed, log[~later]]:
        result = collect_sequences(other, **KEYS, at=at)
        for name in ["past_time", "past_value", "past_shop"]:
            assert lists(result, name) == lists(expected, name)


def test_many_entities_and_long_columns():
    # More entities than one digit of the sort holds.
    n = 70_000
    users = np.random.default_rng(0).permutation(n)
    log = pa.table({"user": np.tile(users, 2), "time": np.repeat([2, 1], n)})
    log = log.append_column("id", pa.array(np.arange(2 * n)))
    past = collect_sequences(log, **KEYS, columns="id")["past_id"]
    expected = np.column_stack([np.arange(n) + n, np.arange(n)])
    np.testing.assert_array_equal(past.combine_chunks().values.to_numpy().reshape(n, 2), expected)


def test_tables_without_rows(log):
    for kind in [lambda frame: frame, pl.from_pandas, pa.Table.from_pandas]:
        nothing = collect_sequences(kind(log[:0]), **KEYS)
        assert as_table(nothing, minimum_rows=0).num_rows == 0
        result = collect_sequences(kind(log[:0]), **KEYS, at=kind(log))
        assert lists(result, "past_price") == [[]] * 7
        result = collect_sequences(kind(log), **KEYS, at=kind(log[:0]))
        assert lists(result, "past_price") == []
    result = collect_sequences({"user": [], "time": [], "x": []}, **KEYS, at=log)
    assert lists(result, "past_x") == [[]] * 7
    result = collect_sequences(log, **KEYS, at={"user": [], "time": []})
    assert lists(result, "past_price") == []
    nothing = collect_sequences({"user": [], "time": [], "x": []}, **KEYS, at=3)
    assert nothing.num_rows == 0


def test_entities_that_the_log_lacks(log):
    at = pd.DataFrame({"user": ["d", None, "b"], "time": pd.to_datetime(["2030"] * 3)})
    assert lists(collect_sequences(log, **KEYS, at=at), "past_price") == [[], [], [3, 1, 5, 7]]
    numbers = log.assign(user=[1, 2, 1, 2, 1, 3, 1])
    at = at.assign(user=[np.nan, 4.0, 1.0])
    assert lists(collect_sequences(numbers, **KEYS, at=at), "past_price") == [[], [], [3, 1, 5, 7]]


def test_categories_with_other_dictionaries(log):
    events = log.astype({"user": "category"})
    at = log.assign(user=pd.Categorical(log["user"], categories=["c", "z", "b", "a"]))
    expected = lists(collect_sequences(log, **KEYS, at=log), "past_price")
    assert lists(collect_sequences(events, **KEYS, at=at), "past_price") == expected
    assert lists(collect_sequences(events, **KEYS, at=log), "past_price") == expected


@pytest.mark.parametrize(
    ("times", "at", "expected"),
    [
        # Other units: exact either way, and out of the range of nanoseconds.
        (stamps("2024-01-01", "2024-01-02"), np.datetime64("2024-01-01T00:00:00.000000001"), [0]),
        (stamps("2024-01-01").astype("M8[ns]"), np.datetime64("2024-01-01", "s"), []),
        (stamps("2024-01-01").astype("M8[s]"), stamps("2024-01-01T00:00:00.000001"), [0]),
        (stamps("2024-01-01", "9999-12-31"), np.datetime64("2024-01-02", "ns"), [0]),
        # A day is over at its end.
        (stamps("2024-01-01", "2024-01-02").astype("M8[D]"), "2024-01-02T18:00", [0]),
        (stamps("1960-01-01", "1960-01-02").astype("M8[D]"), "1960-01-02T18:00", [0]),
        (stamps("2024-01-01T23", "2024-01-02T00"), dt.date(2024, 1, 2), [0]),
        (stamps("2024-01-01", "2024-01-02").astype("M8[D]"), dt.date(2024, 1, 3), [0, 1]),
        # Numbers, whole or not.
        ([1, 2, 3], 2.5, [0, 1]),
        ([1, 2, 3], np.inf, [0, 1, 2]),
        ([1.5, 2.5, -np.inf], 2, [2, 0]),
        ([2**62, 2**62 + 1], 2**62 + 1, [0]),
        (np.array([1.5, 2.0], "f4"), 2.0, [0]),
        ([1, 2], np.int8(2), [0]),
    ],
)
def test_times_of_other_types(times, at, expected):
    column = pa.array(times)
    if isinstance(at, np.ndarray):
        at = at[0]
    log = pa.table({"user": ["a"] * len(column), "time": column, "id": range(len(column))})
    result = collect_sequences(log, **KEYS, at=at)
    assert lists(result, "past_id") == [expected]
    if not isinstance(at, str):
        table = {"user": ["a"], "time": pa.array(np.array([at]))}
        assert lists(collect_sequences(log, **KEYS, at=table), "past_id") == [expected]


def test_zones_are_converted(log):
    log = log.assign(time=log["time"].dt.tz_localize("UTC"))
    zoned = log.assign(time=log["time"].dt.tz_convert("Asia/Tokyo"))
    expected = lists(collect_sequences(log, **KEYS, at=log), "past_price")
    assert lists(collect_sequences(log, **KEYS, at=zoned), "past_price") == expected
    at = "2024-01-03T09:00+09:00"
    assert lists(collect_sequences(zoned, **KEYS, at=at), "past_price") == [[3], [None], []]
    at = pd.Timestamp("2024-01-03T00:00:01Z")
    assert lists(collect_sequences(log, **KEYS, at=at), "past_price") == [[3, 1, 5], [None], []]


@pytest.mark.parametrize("at", ["2024-01-05", "table"])
@pytest.mark.parametrize("zoned", ["events", "at"])
def test_zones_are_not_guessed(log, at, zoned):
    aware = log.assign(time=log["time"].dt.tz_localize("UTC"))
    if at == "table":
        at = log if zoned == "events" else aware
    elif zoned == "at":
        at += "T00:00Z"
    with pytest.raises(TypeError, match=r"'time' of events holds times with.* time zone.*convert"):
        collect_sequences(aware if zoned == "events" else log, **KEYS, at=at)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"by": "who"}, ValueError, r"events has no columns \['who'\]; it has \['user', 'time'"),
        ({"order_by": "when"}, ValueError, r"events has no columns \['when'\]"),
        ({"columns": ["price", "x"]}, ValueError, r"events has no columns \['x'\]"),
        ({"columns": ["price", "price"]}, ValueError, r"columns names .* once: \['price'\]"),
        ({"by": []}, ValueError, "by is empty"),
        ({"order_by": ["time", "price"]}, ValueError, "order_by must name one column"),
        ({"order_by": "shop"}, TypeError, "'shop' of events is of type .*timestamps, dates or"),
        ({"max_length": 0}, ValueError, "max_length == 0"),
        ({"max_length": 2.0}, TypeError, "max_length"),
        ({"at": {"time": [1]}}, ValueError, r"at has no columns \['user'\]; it has \['time'\]"),
        ({"at": {"user": ["a"]}}, ValueError, r"at has no columns \['time'\]"),
        ({"at": pd.NaT}, ValueError, "at is NaT"),
        ({"at": np.nan}, ValueError, "at is nan"),
        ({"at": "yesterday"}, ValueError, "at='yesterday' is not a time in ISO 8601"),
        ({"at": 3}, TypeError, "at=3 cannot be compared with column 'time' of events"),
        ({"at": True}, TypeError, "at=True cannot be compared"),
        ({"at": "2024", "order_by": "price"}, TypeError, "at='2024' cannot .*'price'.* float64"),
        (
            {"at": {"user": ["a"], "time": [1]}},
            TypeError,
            r"events holds times without a time zone .* and at holds numbers \(int64\)",
        ),
        (
            {"at": {"user": [1], "time": stamps("2024-01-01")}},
            TypeError,
            "'user' is of type .*string in events and of type int64 in at",
        ),
        (
            {"at": {"user": ["a", "b"], "time": stamps("2024-01-01", "NaT")}},
            ValueError,
            r"'time' of at has no time in row 1 \(1 of 2 rows\)",
        ),
        (
            {"at": {"user": ["a"], "time": stamps("2024-01-01"), "past_shop": [1]}},
            ValueError,
            r"would be named \['past_shop'\].*another prefix than 'past_'",
        ),
    ],
)
def test_errors(log, change, error, message):
    log = log.fillna({"price": 0.0})
    with pytest.raises(error, match=message):
        collect_sequences(log, **{**KEYS, **change})


def test_missing_in_the_log(log):
    for name, value, what in [("time", None, "time"), ("user", None, "entity")]:
        broken = log.copy()
        broken.loc[[2, 4], name] = value
        message = rf"column '{name}' of events has no {what} in row 2 \(2 of 7 rows\)"
        with pytest.raises(ValueError, match=message):
            collect_sequences(broken, **KEYS)
    with pytest.raises(ValueError, match=r"'time' of events has no time in row 0 \(7 of 7"):
        collect_sequences({**log, "time": [None] * 7}, **KEYS)
    with pytest.raises(ValueError, match="'price' of events has no time in row 3"):
        collect_sequences(log, by="user", order_by="price")
    with pytest.raises(ValueError, match="'price' of events has no entity in row 3"):
        collect_sequences(log, by="price", order_by="time")


def test_prefix(log):
    with pytest.raises(ValueError, match=r"\['time', 'price', 'shop'\]"):
        collect_sequences(log, **KEYS, at=log, prefix="")
    assert list(collect_sequences(log, **KEYS, prefix="")) == ["user", "time", "price", "shop"]
    result = collect_sequences(log, **KEYS, columns=["user", "price"], prefix="all_")
    assert list(result) == ["user", "all_user", "all_price"]


def test_numbers_that_floats_cannot_tell_apart():
    log = {"user": ["a"], "time": [2**53 + 1]}
    with pytest.raises(ValueError, match=r"'time' of events and at cannot be compared exactly"):
        collect_sequences(log, **KEYS, at=0.5)


def test_vectors_as_values():
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2)
    log = pa.table({"user": ["a", "b", "a"], "time": [2, 1, 1], "vector": vectors})
    log = log.append_column("tags", pa.array([["x"], None, ["y", "z"]]))
    result = collect_sequences(log, **KEYS, columns=["vector", "tags"])
    assert result["past_vector"].to_pylist() == [[[4, 5], [0, 1]], [[2, 3]]]
    assert result["past_tags"].to_pylist() == [[["y", "z"], ["x"]], [None]]


def test_views_of_bytes_are_collected():
    log = pa.table(
        {"user": [1, 1], "time": [2, 1], "hash": pa.array([b"a", b"b"], pa.binary_view())}
    )
    assert as_table(collect_sequences(log, **KEYS))["past_hash"].to_pylist() == [[b"b", b"a"]]


def test_parameters_that_name_no_column(log):
    with pytest.raises(TypeError, match="by must be the name of a column or a list, got 3"):
        collect_sequences(log, by=3, order_by="time")


def test_names_of_columns_may_be_any_iterable():
    log = pd.DataFrame({"user": [1, 2, 1], "time": [3.0, 1.0, 2.0], "kind": list("abc")})
    expected = collect_sequences(log, by=["user"], order_by="time", columns=["kind"])
    for make in (pd.Index, np.array, iter):
        given = {"by": make(["user"]), "order_by": make(["time"]), "columns": make(["kind"])}
        pd.testing.assert_frame_equal(collect_sequences(log, **given), expected)
