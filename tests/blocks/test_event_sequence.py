import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import TableEncoder
from sk_easytensor.backends import LocalBackend
from sk_easytensor.blocks import (
    CategoryBlock,
    CategorySequenceBlock,
    EventSequenceBlock,
    NumericBlock,
    VectorBlock,
)
from sk_easytensor.blocks.category import MISSING, UNSEEN
from sk_easytensor.blocks.detection import detect_blocks
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.testing import check_block

# Short lists are cut on purpose; test_aggregates.py has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

NAN = np.nan


def at(*seconds, start="2024-01-01"):
    """Return timestamps so many seconds after a start."""
    return [None if s is None else pd.Timestamp(start) + pd.Timedelta(seconds=s) for s in seconds]


EVENTS = {
    "kind": [["view", "buy"], ["view"], None, ["buy", None, "view"]],
    "amount": [[None, 25.0], [3.0], None, [1.0, 2.0, 4.0]],
    "when": [at(0, 60), at(30), None, at(0, None, 3600)],
}
PARALLEL = ("kind", "amount", "when")


def as_structs(events):
    """Return parallel lists as one column of lists of structs."""
    rows = [
        None
        if lists[0] is None
        else [dict(zip(events, items, strict=True)) for items in zip(*lists, strict=True)]
        for lists in zip(*events.values(), strict=True)
    ]
    return {"event": rows}


def frame_of(block, X):
    return TensorFrame({"events": block.transform(X)})


def values_of(encoding, index):
    return encoding[f"values_{index}"].values.numpy()


def assert_numbers(block, encoding, index, expected):
    """Check what a field is encoded as: numbers as NumericBlock encodes them."""
    expected = np.array(expected, dtype=float)
    plain = NumericBlock(bins=block.bins, width=block.number_width).fit({"x": expected})
    found = values_of(encoding, index)
    np.testing.assert_allclose(found, plain.transform({"x": expected})["values"][:, 0], rtol=1e-5)


def test_fields_are_told_apart():
    block = EventSequenceBlock().fit({**EVENTS, "code": [[1, 2], [1], [], [3, None, 1]]})
    assert block.kinds_ == {
        "kind": "category",
        "amount": "number",
        "when": "time",
        "code": "number",
    }
    assert block.now_ is None
    assert {name: one.to_pylist() for name, one in block.categories_.items()} == {
        "kind": ["view", "buy"]
    }


def test_types_that_are_categories():
    data = {
        "flag": [[True, False]],
        "level": pa.array([["a", None]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "empty": [[None, None]],
        "gap": [[dt.timedelta(1), dt.timedelta(2)]],
        "day": [[dt.date(2024, 1, 1), dt.date(2024, 1, 2)]],
        "due": [[dt.datetime(2024, 1, 2), None]],
    }
    assert EventSequenceBlock().fit(data).kinds_ == {
        "flag": "category",
        "level": "category",
        "empty": "category",
        "gap": "number",
        "day": "time",
        "due": "date",
    }


def test_numbers_can_be_named_categories():
    data = {"shop": [[7, 8], [7]], "sum": [[7, 8], [7]]}
    block = EventSequenceBlock(categories=["shop"]).fit(data)
    assert block.kinds_ == {"shop": "category", "sum": "number"}
    assert block.categories_["shop"].to_pylist() == ["7", "8"]
    assert block.transform({"shop": [[8.0, 9.0]], "sum": [[1, 2]]})["codes_0"].values.tolist() == [
        3,
        UNSEEN,
    ]


def test_dates_can_be_named_categories():
    block = EventSequenceBlock(categories=("day",)).fit(
        {"day": [[dt.date(2024, 1, 1)]], "when": [at(0)]}
    )
    assert block.kinds_ == {"day": "category", "when": "time"}


def test_fields_are_encoded_as_columns_are():
    block = EventSequenceBlock().fit(EVENTS)
    encoding = block.transform(EVENTS)
    assert list(encoding) == ["codes_0", "values_0", "values_1", "values_2"]
    kinds = ["view", "buy", "view", "buy", None, "view"]
    plain = CategoryBlock().fit({"kind": kinds})
    assert (
        encoding["codes_0"].values.tolist()
        == plain.transform({"kind": kinds})["codes"][:, 0].tolist()
    )
    assert_numbers(block, encoding, 0, [NAN, 25, 3, 1, 2, 4])
    assert encoding["codes_0"].lengths.tolist() == [2, 1, 0, 3]
    assert len({id(lists.offsets) for lists in encoding.values()}) == 1


def test_gaps_are_logarithms_of_seconds():
    block = EventSequenceBlock().fit(EVENTS)
    encoding = block.transform(EVENTS)
    assert_numbers(block, encoding, 1, [NAN, np.log(61), NAN, NAN, NAN, NAN])
    np.testing.assert_allclose(block.number_block_.edges_[1], [np.log(61)])
    # Without a now, gaps are counted to the last event of the list.
    to_last = [np.log(61), 0, 0, np.log(3601), NAN, 0]
    assert_numbers(block, encoding, 2, to_last)


def test_gaps_to_now_can_be_left_out():
    block = EventSequenceBlock(now=False).fit(EVENTS)
    encoding = block.transform(EVENTS)
    expected = EventSequenceBlock().fit(EVENTS).transform(EVENTS)
    assert list(encoding) == ["codes_0", "values_0", "values_1"]
    assert not any("when.now" in name for name in block.get_feature_names_out())
    assert block.encoding_columns(encoding)["values_1"] == ["when"]
    for name in encoding:
        np.testing.assert_array_equal(encoding[name].values, expected[name].values)
    # An event is read alike whatever comes after it.
    shorter = {name: [rows and rows[:-1] for rows in lists] for name, lists in EVENTS.items()}
    fewer = block.transform(shorter)
    for name in encoding:
        for row in range(len(fewer[name])):
            part = fewer[name].take(torch.tensor([row])).values
            whole = encoding[name].take(torch.tensor([row])).values
            np.testing.assert_array_equal(part, whole[: len(part)])
    check_block(EventSequenceBlock(now=False), EVENTS)
    with pytest.raises(TypeError, match="column 'today'"):
        EventSequenceBlock(now=False).fit({**EVENTS, "today": at(1, 2, 3, 4)})


@pytest.mark.parametrize("now", [None, "now"])
def test_gaps_to_now(now):
    data = {**EVENTS, "now": at(100, 30, None, 7200)}
    block = EventSequenceBlock(now=now).fit(data)
    assert block.now_ == "now"
    assert block.kinds_ == {"kind": "category", "amount": "number", "when": "time"}
    encoding = block.transform(data)
    assert_numbers(
        block, encoding, 2, [np.log(101), np.log(41), 0, np.log(7201), NAN, np.log(3601)]
    )
    assert_numbers(block, encoding, 1, [NAN, np.log(61), NAN, NAN, NAN, NAN])
    unknown = block.transform({**data, "now": at(None, 30, None, 7200)})
    assert np.isnan(values_of(unknown, 2)[:2]).all()
    assert not np.isnan(values_of(unknown, 2)[2:4]).any()
    # A row's now tells nothing without events to set it off against.
    assert frame_of(block, data).equals(frame_of(block, {**data, "now": at(100, 30, 5, 7200)}))


def test_a_now_that_does_not_vary_is_the_same_for_timestamps_and_dates():
    events = {"when": [[dt.date(2024, 1, 1), dt.date(2024, 1, 2)]]}
    stamps = {"when": [[dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)]]}
    day, midnight = {"now": [dt.date(2024, 1, 3)]}, {"now": [dt.datetime(2024, 1, 3)]}
    block = EventSequenceBlock().fit({**events, **day})
    expected = frame_of(block, {**events, **day})
    for X in ({**stamps, **day}, {**events, **midnight}, {**stamps, **midnight}):
        assert frame_of(block, X).equals(expected)
    assert_numbers(block, expected["events"], 1, np.log1p([2 * 86400, 86400]))


def test_times_can_be_numbers_of_seconds():
    data = {"kind": EVENTS["kind"], "t": [[0, 60], [30], None, [0, None, 3600]]}
    block = EventSequenceBlock(time="t").fit(data)
    assert block.kinds_ == {"kind": "category", "t": "time"}
    stamps = {"kind": EVENTS["kind"], "t": EVENTS["when"]}
    expected = frame_of(EventSequenceBlock().fit(stamps), stamps)
    assert frame_of(block, data).equals(expected)
    with_now = {**data, "now": [100.0, 30.0, None, 7200.0]}
    block = EventSequenceBlock(time="t", now="now").fit(with_now)
    assert_numbers(
        block,
        block.transform(with_now),
        1,
        [np.log(101), np.log(41), 0, np.log(7201), NAN, np.log(3601)],
    )


def test_further_dates_are_gaps_from_their_own_event():
    data = {
        "ordered": [at(0, 100), at(50)],
        "due": [at(60, 70), [None]],
        "made": [at(0, 200), at(10, start="2023-12-31 23:59:50")],
    }
    block = EventSequenceBlock().fit(data)
    assert block.kinds_ == {"ordered": "time", "due": "date", "made": "date"}
    encoding = block.transform(data)
    assert_numbers(block, encoding, 0, [np.log(61), -np.log(31), NAN])
    assert_numbers(block, encoding, 1, [0, np.log(101), -np.log(51)])
    # The order of what is due is no concern.
    other = EventSequenceBlock(time="due").fit({**data, "due": [at(60, 70), at(5)]})
    assert other.kinds_ == {"ordered": "date", "due": "time", "made": "date"}


def test_the_gap_before_the_first_event_read_is_unknown():
    data = {"when": [at(0, 10, 30, 70)]}
    block = EventSequenceBlock(max_length=2).fit(data)
    assert_numbers(block, block.transform(data), 0, [NAN, np.log(41)])
    assert_numbers(block, block.transform(data), 1, [np.log(41), 0])
    data["now"] = at(80)
    first = EventSequenceBlock(max_length=2, keep="first").fit(data)
    assert_numbers(first, first.transform(data), 0, [NAN, np.log(11)])
    assert_numbers(first, first.transform(data), 1, [np.log(81), np.log(71)])


def test_time_zones():
    def zoned(zone, values):
        return [
            None if v is None else [pd.Timestamp(x).tz_localize(zone) for x in v] for v in values
        ]

    hours = [["2024-03-30 23:00", "2024-03-31 12:00"], None]
    aware = pa.array(zoned("Europe/Oslo", hours), pa.list_(pa.timestamp("us", "Europe/Oslo")))
    naive = pa.array([[pd.Timestamp(x) for x in hours[0]], None], pa.list_(pa.timestamp("us")))
    now_aware = pa.array(
        [pd.Timestamp("2024-03-31 11:00", tz="UTC"), None], pa.timestamp("ms", "UTC")
    )
    now_naive = pa.array([pd.Timestamp("2024-03-31 13:00"), None], pa.timestamp("ms"))

    block = EventSequenceBlock().fit({"when": aware, "now": now_aware})
    expected = frame_of(block, {"when": aware, "now": now_aware})
    # An hour is skipped that night; 11:00 UTC is 13:00 in Oslo.
    assert_numbers(block, expected["events"], 0, [NAN, np.log(12 * 3600 + 1)])
    assert_numbers(block, expected["events"], 1, np.log1p([13 * 3600, 3600]))
    # Times without a zone are local where fit saw a zone.
    assert frame_of(block, {"when": naive, "now": now_naive}).equals(expected)
    assert frame_of(block, {"when": aware, "now": now_naive}).equals(expected)
    utc = aware.cast(pa.list_(pa.timestamp("us", "UTC")))
    assert frame_of(block, {"when": utc, "now": now_naive}).equals(expected)

    # Where fit saw none, the wall clock counts.
    block = EventSequenceBlock().fit({"when": naive, "now": now_naive})
    expected = frame_of(block, {"when": naive, "now": now_naive})
    assert_numbers(block, expected["events"], 0, [NAN, np.log(13 * 3600 + 1)])
    assert frame_of(block, {"when": aware, "now": now_naive}).equals(expected)
    oslo = now_aware.cast(pa.timestamp("ms", "Europe/Oslo"))
    assert frame_of(block, {"when": aware, "now": oslo}).equals(expected)


@pytest.mark.parametrize("extra", [{}, {"now": at(100, 30, None, 7200)}])
def test_structs_are_parallel_lists(extra):
    block = EventSequenceBlock().fit({**EVENTS, **extra})
    structs = {**as_structs(EVENTS), **extra}
    nested = EventSequenceBlock().fit(structs)
    assert nested.kinds_ == {f"event.{name}": kind for name, kind in block.kinds_.items()}
    assert frame_of(nested, structs).equals(frame_of(block, {**EVENTS, **extra}))
    assert list(nested.categories_) == ["event.kind"]
    columns = nested.encoding_columns(nested.transform(structs))
    *entries, last = columns.values()
    assert entries == [["event"]] * 3
    assert last == (["now"] if extra else ["event"])
    module = nested.make_module()
    assert module(**nested.transform(structs)).shape == (4, module.out_features)


def test_structs_name_their_fields():
    X = as_structs(EVENTS)
    block = EventSequenceBlock(time="event.when", categories=["event.amount"]).fit(X)
    assert block.kinds_ == {
        "event.kind": "category",
        "event.amount": "category",
        "event.when": "time",
    }
    with pytest.raises(ValueError, match=r"time names 'when', which is not a field.*'event\.when'"):
        EventSequenceBlock(time="when").fit(X)


def test_structs_beside_parallel_lists_and_missing_structs():
    X = {
        "event": [[{"kind": "a", "n": 1}, None], [{"kind": None, "n": 2}]],
        "price": [[1.0, 2.0], [3.0]],
    }
    block = EventSequenceBlock().fit(X)
    assert block.kinds_ == {"event.kind": "category", "event.n": "number", "price": "number"}
    encoding = block.transform(X)
    assert encoding["codes_0"].values.tolist() == [2, MISSING, MISSING]
    assert np.isnan(values_of(encoding, 0)[:, 0]).tolist() == [False, True, False]


def test_structs_in_any_order_of_fields_and_with_further_ones():
    block = EventSequenceBlock().fit(as_structs(EVENTS))
    expected = frame_of(block, as_structs(EVENTS))
    other = as_structs({"more": EVENTS["amount"], **dict(reversed(EVENTS.items()))})
    assert frame_of(block, other).equals(expected)
    series = pl.Series("event", as_structs(EVENTS)["event"])
    assert frame_of(block, pl.DataFrame([series])).equals(expected)


def test_a_struct_that_lacks_a_field_is_named():
    block = EventSequenceBlock().fit(as_structs(EVENTS))
    fewer = as_structs({name: EVENTS[name] for name in ("kind", "when")})
    message = (
        r"column 'event' holds struct\[.*without the field 'amount'.*EventSequenceBlock was fitted"
    )
    with pytest.raises(ValueError, match=message):
        block.transform(fewer)
    with pytest.raises(ValueError, match=r"column 'event' holds .*without the field 'kind'"):
        block.transform({"event": [["view"]]})


def test_fields_of_one_name_are_refused():
    X = {"a": [[{"b": 1}]], "a.b": [[2]]}
    with pytest.raises(ValueError, match=r"two fields are named 'a\.b'; rename a column"):
        EventSequenceBlock().fit(X)


def test_missing_lists_beside_filled_ones():
    block = EventSequenceBlock().fit(EVENTS)
    X = {**EVENTS, "kind": [None, None, None, None]}
    encoding = block.transform(X)
    assert encoding["codes_0"].values.tolist() == [MISSING] * 6
    assert encoding["codes_0"].lengths.tolist() == [2, 1, 0, 3]
    X = {**EVENTS, "when": pd.Series([None] * 4, dtype=object)}
    encoding = block.transform(X)
    assert np.isnan(values_of(encoding, 1)[:, 0]).all()
    assert np.isnan(values_of(encoding, 2)[:, 0]).all()
    assert encoding["codes_0"].values.tolist() == block.transform(EVENTS)["codes_0"].values.tolist()


def test_missing_and_empty_lists_get_a_learned_vector():
    block = EventSequenceBlock(width=8, aggregates=False).fit(EVENTS)
    module = block.make_module().eval()
    with torch.no_grad():
        module.encoder.empty.fill_(7.0)
    output = module(
        **block.transform(
            {
                "kind": [None, [], ["buy"], []],
                "amount": [None, [], [1.0], None],
                "when": [None, [], at(0), []],
            }
        )
    )
    assert (output[[0, 1, 3], :-1] == 7).all()
    assert (output[2] != 7).all()


def test_hashing():
    block = EventSequenceBlock(hash_buckets=7).fit(EVENTS)
    assert block.categories_ == {}
    plain = CategoryBlock(hash_buckets=7).fit({"kind": ["x"]})
    codes = block.transform({"kind": [["buy", "new"]], "amount": [None], "when": [None]})["codes_0"]
    assert (
        codes.values.tolist() == plain.transform({"kind": ["buy", "new"]})["codes"][:, 0].tolist()
    )
    assert torch.isfinite(block.make_module()(**block.transform(EVENTS))).all()
    assert block.flatten(block.transform(EVENTS)).shape == (4, len(block.get_feature_names_out()))


def test_rare_and_too_many_categories():
    assert EventSequenceBlock(min_frequency=3).fit(EVENTS).categories_["kind"].to_pylist() == [
        "view"
    ]
    assert len(EventSequenceBlock(max_categories=1).fit(EVENTS).categories_["kind"]) == 1


def test_only_categories_or_only_numbers():
    for data in ({"a": [["x", "y"]], "b": [["y", "x"]]}, {"a": [[1, 2]], "b": [[0.5, NAN]]}):
        block = EventSequenceBlock(width=8).fit(data)
        assert torch.isfinite(block.make_module()(**block.transform(data))).all()
        assert block.flatten(block.transform(data)).shape == (1, len(block.get_feature_names_out()))


def test_number_width_and_bins():
    data = {"x": [[float(i) for i in range(100)]]}
    block = EventSequenceBlock("mean", number_width=3, bins=5, width=8, max_length=100).fit(data)
    assert len(block.number_block_.edges_[0]) == 6
    module = block.make_module()
    assert module.encoder.reader.project.in_features == 3


def test_flatten():
    data = {"now": at(100, 30, None, 7200), **EVENTS}
    block = EventSequenceBlock().fit(data)
    names = block.get_feature_names_out().tolist()
    assert names[:4] == ["kind_missing", "kind_unseen", "kind_is_view", "kind_is_buy"]
    features = ["mean", "deviation", "lowest", "highest", "last"]
    numbers = ("amount", "when.previous", "when.now")
    assert names[4:-1] == [f"{name}_{feature}" for name in numbers for feature in features]
    assert names[-1] == "kind_length"
    matrix = block.flatten(block.transform(data))
    assert matrix.shape == (4, len(names))
    assert np.isfinite(matrix).all()
    assert matrix[:, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0] * 4, [1, 0, 1, 1]]
    assert matrix[:, -1].tolist() == [2, 1, 0, 3]
    assert (matrix[2] == 0).all()
    scaled = block.transform(data)["values_0"].values[3:, 0].numpy()
    np.testing.assert_allclose(matrix[3, 4], scaled.mean(), rtol=1e-6)
    assert matrix[3, 8] == scaled[-1]


kinds = st.none() | st.sampled_from(["a", "b", "c"])
amounts = st.none() | st.floats(-10, 10, width=16)
events = st.lists(st.tuples(kinds, amounts, st.integers(0, 10**6)), max_size=5)


@given(rows=st.lists(st.none() | events, min_size=1, max_size=8), cut=st.integers(0, 8))
def test_fitting_in_parts(rows, cut, assert_same_fit):
    columns = {"kind": [], "amount": [], "when": [], "now": []}
    for row in rows:
        ordered = None if row is None else sorted(row, key=lambda event: event[2])
        for place, name in enumerate(["kind", "amount", "when"]):
            columns[name].append(None if row is None else [event[place] for event in ordered])
        columns["now"].append(ordered[-1][2] + 5 if ordered else None)
    types = [pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.timestamp("s"))]
    types.append(pa.timestamp("s"))
    table = pa.table(
        [pa.array(values, kind) for values, kind in zip(columns.values(), types, strict=True)],
        names=list(columns),
    )
    whole = EventSequenceBlock(max_length=3, width=4).fit(table)
    parts = EventSequenceBlock(max_length=3, width=4).fit_columns(table)
    summary = merge_all(parts.summarize(chunk) for chunk in [table.slice(cut), table.slice(0, cut)])
    assert_same_fit(parts.finish(summary), whole)
    frame = frame_of(whole, table)
    joined = [frame_of(whole, table.slice(i, 1)) for i in range(len(rows))]
    assert TensorFrame.concatenate(joined).equals(frame)
    assert torch.isfinite(whole.make_module()(**frame["events"])).all()


def test_now_is_left_to_the_remainder():
    data = {**EVENTS, "now": at(100, 30, None, 7200), "x": [1.0, 2.0, 3.0, 4.0]}
    blocks = [("events", EventSequenceBlock(), ["kind", "amount", "when", "now"])]
    encoder = TableEncoder(blocks).fit(data)
    found = {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()}
    assert found == {
        "events": ["kind", "amount", "when", "now"],
        "datetime": ["now"],
        "numeric": ["x"],
    }
    assert list(TableEncoder(blocks, remainder="drop").fit(data).blocks_) == ["events"]
    named = [("events", EventSequenceBlock(time="when", now="x"), ["kind", "x"])]
    assert named[0][1].claimed_columns(as_table({"kind": [["a"]], "x": [1.0]})) == ["kind"]
    places = encoder.column_positions("now", encoder.encode(data))
    assert {name: list(entries) for name, entries in places.items()} == {
        "events": ["values_2"],
        "datetime": ["times"],
    }


def test_events_are_chosen_for_parallel_lists():
    data = {**EVENTS, "other": [["a"], [], ["b"], ["c"]], "channel": [[1.0], [], [2.0], [3.0]]}
    data |= {"alone": [["a", "b"], ["c", "d"], [], ["e"]], "city": list("abcd")}
    groups = EventSequenceBlock.assign_columns(as_table(data), list(data))
    assert groups == [["kind", "amount", "when"], ["other", "channel"]]
    encoder = TableEncoder().fit(data)
    assert {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()} == {
        "event_sequence": ["kind", "amount", "when"],
        "event_sequence_2": ["other", "channel"],
        "category_sequence": ["alone"],
        "category": ["city"],
    }


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"when": [at(0), at(0, 1)]}, True),
        ({"event": [[{"a": 1}], []]}, True),
        ({"a": [["x"], ["x", "y"]]}, False),
        ({"a": [[1], [1, 2]]}, False),
        ({"a": [[1.0], [1.0, 2.0]]}, False),
        ({"a": [[1.0], [1.0, 2.0]], "b": [[3.0], [1.0, 2.0]]}, False),
        ({"a": [[1.0], [1.0, 2.0]], "b": [[3], [1, 2]]}, True),
        ({"a": [[1.0], [1.0, 2.0]], "b": [["x"], None]}, True),
        ({"a": [[1.0], [1.0, 2.0]], "b": [["x"], ["x"]]}, False),
        ({"a": [[], []], "b": [[], []]}, False),
        ({"event": [[{"a": [1]}], []]}, False),
    ],
    ids=str,
)
def test_what_is_chosen(columns, chosen):
    table = as_table(columns)
    assert EventSequenceBlock.assign_columns(table, list(columns)) == (
        [list(columns)] if chosen else []
    )


def test_vectors_of_one_length_are_no_events():
    table = as_table({"v": [[1.0, 2.0], [3.0, 4.0]], "kind": [["a", "b"], ["c", "d"]]})
    expected = [(VectorBlock, ["v"]), (CategorySequenceBlock, ["kind"])]
    assert detect_blocks(table, ["v", "kind"]) == expected


# Errors name the column and the row.


def late(row, value):
    """Return events of four rows, of which one is changed."""
    when = [at(0, 60), at(30), at(5), at(0, 5, 3600)]
    when[row] = value
    return {"when": when, "now": at(100, 100, 100, 7200)}


BAD_ROWS = [
    (
        late(3, at(0, 9, 8)),
        "column 'when' is not in order of time in row 3: 2024-01-01 00:00:08.* comes after "
        r"2024-01-01 00:00:09.*; sort the events",
    ),
    (
        late(2, at(101)),
        "column 'when' holds 2024-01-01 00:01:41.* in row 2, which is later than its 'now'",
    ),
    (
        {"when": [at(0), at(1), at(5, None, 3), at(0)]},
        "column 'when' holds 2024-01-01 00:00:05.* in row 2, which is later than its last event",
    ),
]


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize(("data", "message"), BAD_ROWS, ids=["unsorted", "late", "gap"])
def test_unusable_times(data, message, chunk_rows):
    table = as_table(data)
    with pytest.raises(ValueError, match=message):
        EventSequenceBlock().fit(table)
    block = EventSequenceBlock().fit(table.slice(0, 2))
    backend = LocalBackend(chunk_rows=chunk_rows)
    for work in (backend.encode, backend.summarize):
        with pytest.raises(ValueError, match=message):
            work(table, {"events": (block, table.column_names)})


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"t": [[1.0], [2.0], None, [5.0, -1.0]], "now": [3.0, 4.0, 5.0, 6.0]},
            "column 't' holds -1 in row 3; times have to be dates, timestamps, or non-negative",
        ),
        (
            {"t": [[1.0], [2.0], None, [5.0]], "now": [3.0, 4.0, -2.5, 6.0]},
            "column 'now' holds -2.5 in row 2; times have to be",
        ),
        (
            {"t": [[1.0], [2.0], [7.0, 6.0], [5.0]], "now": [3.0, 4.0, 9.0, 6.0]},
            r"column 't' is not in order of time in row 2: 6\.0 comes after 7\.0",
        ),
    ],
    ids=["negative", "negative now", "unsorted"],
)
def test_unusable_numbers_of_seconds(data, message, chunk_rows):
    table = as_table(data)
    block = EventSequenceBlock(time="t", now="now")
    with pytest.raises(ValueError, match=message):
        block.fit(table)
    block.fit(table.slice(0, 2))
    with pytest.raises(ValueError, match=message):
        LocalBackend(chunk_rows=chunk_rows).encode(table, {"events": (block, ["t", "now"])})


@pytest.mark.parametrize("chunk_rows", [1, 100])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("amount", ["x"], "column 'amount' of items of type string .*as a number; row 2 holds 'x'"),
        ("amount", [dt.date(2024, 1, 1)], "type date .*as a number; row 2 holds datetime.date"),
        ("when", ["noon"], "column 'when' of items of type string .*as a time; row 2 holds 'noon'"),
        ("due", [5], "column 'due' of items of type int64 .*as a date; row 2 holds 5"),
        (
            "kind",
            [dt.timedelta(1)],
            "column 'kind' of .*as a category; row 2 holds datetime.timedel",
        ),
        ("kind", [["a"]], r"column 'kind' of type .*; row 2 holds \[\['a'\]\].*one level deep"),
        ("kind", [{"a": 1}], "column 'kind' of items of type struct.*as a category; row 2 holds"),
    ],
)
def test_items_of_other_types(name, value, message, chunk_rows):
    data = {**EVENTS, "due": EVENTS["when"]}
    block = EventSequenceBlock().fit(data)
    lists = {other: [None, [], [values[1][0]]] for other, values in data.items()}
    with pytest.raises(TypeError, match=message):
        LocalBackend(chunk_rows=chunk_rows if value != [["a"]] else 100).encode(
            as_table({**lists, name: [None, [], value]}), {"events": (block, list(data))}
        )


def test_unreadable_columns_are_refused_at_fit():
    with pytest.raises(
        TypeError, match=r"'e' of type .*EventSequenceBlock; row 1 holds \[\{'a': \["
    ):
        EventSequenceBlock().fit({"e": [[], [{"a": [1]}]]})
    with pytest.raises(TypeError, match=r"'x' of type float64 .*row 0 holds 1\.0.*NumericBlock"):
        EventSequenceBlock().fit({"x": [1.0], "kind": [["a"]]})
    with pytest.raises(TypeError, match=r"'now' of type string .*row 0 holds 'noon'"):
        EventSequenceBlock(now="now").fit({"now": ["noon"], "when": [at(0)]})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"time": "then"},
            r"time names 'then', which is not a field; fields are \['kind', 'amount'",
        ),
        ({"categories": ["shop"]}, "categories names 'shop', which is not a field"),
        ({"categories": "kind"}, "categories must be a list of fields, got the string 'kind'"),
        ({"now": "then"}, r"now must name a column .*got 'then'; columns are \['kind'"),
        ({"now": "when"}, "now must name a column of the block with one value per row, got 'when'"),
        ({"number_width": 0}, "width must be"),
        ({"bins": 0}, "bins must be"),
        ({"min_frequency": 0}, "min_frequency must be"),
        ({"hash_buckets": 0}, "hash_buckets must be"),
    ],
)
def test_parameter_errors(params, message):
    with pytest.raises(ValueError, match=message):
        EventSequenceBlock(**params).fit(EVENTS)


def test_two_candidates_for_now():
    data = {**EVENTS, "then": at(9, 9, 9, 9), "now": at(100, 100, 100, 7200)}
    with pytest.raises(ValueError, match=r"\['then', 'now'\] each have one time per row; name"):
        EventSequenceBlock().fit(data)
    with pytest.raises(TypeError, match=r"column 'then' of type datetime64.*DatetimeBlock"):
        EventSequenceBlock(now="now").fit(data)


def test_a_now_needs_a_time():
    with pytest.raises(ValueError, match="now is 'now', but no field holds the times of events"):
        EventSequenceBlock().fit({"kind": [["a"]], "now": at(0)})


def test_times_and_numbers_are_not_set_off_against_each_other():
    message = "cannot compute the time between the columns .*'now' of type"
    with pytest.raises(TypeError, match=message):
        EventSequenceBlock(time="t").fit({"t": [[1.0, 2.0]], "now": at(5)})
    with pytest.raises(TypeError, match=message):
        EventSequenceBlock(now="now").fit({"when": [at(1)], "now": [5.0]})
    with pytest.raises(TypeError, match="'t' of type float64, 'due' of type datetime64"):
        EventSequenceBlock(time="t").fit({"t": [[1.0]], "due": [at(5)]})
    data = {"when": [at(1)], "now": at(5)}
    with pytest.raises(TypeError, match=message):
        EventSequenceBlock().fit(data).transform({**data, "when": [[1.0]]})
