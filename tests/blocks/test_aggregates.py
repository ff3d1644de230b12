"""Aggregates of lists, against a reference in plain Python over each row's encoded items."""

import math
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_easytensor import (
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
    EventSequenceBlock,
)
from sk_easytensor.blocks.aggregates import CATEGORY_AGGREGATES, EVENT_AGGREGATES, FREQUENT
from sk_easytensor.blocks.category import MISSING
from sk_easytensor.data.tables import as_table
from sk_easytensor.testing import check_block

NAN = math.nan


# ------------------------------------------------------------------ reference


def rows_of(entry):
    """Return the items of each row of a ragged entry as Python values."""
    return [part.tolist() for part in entry.values.split(entry.lengths.tolist())]


def padded(values, size, fill):
    return [*values, *[fill] * (size - len(values))]


def describe_codes(items, counted):
    """Return the aggregates of the codes of one row."""
    n = len(items)
    latest = [max((i for i in range(n) if items[i] == c), default=-1) for c in range(counted)]
    run = 0
    while run < n and items[n - 1 - run] == items[-1]:
        run += 1
    return {
        "counts": [items.count(c) for c in range(counted)],
        "shares": [items.count(c) / max(n, 1) for c in range(counted)],
        "recency": [n - 1 - place if place >= 0 else -1 for place in latest[2:]],
        "changes": [sum(items[i] != items[i - 1] for i in range(1, n))],
        "run": [run],
        "distinct": [len({item for item in items if item != MISSING})],
        "last": padded(items[::-1][:3], 3, MISSING),
        "first": padded(items[:1], 1, MISSING),
    }


def statistics(pairs, places, origin):
    """Return the statistics of scaled numbers with positions, at their places in the list."""
    known = [(place, pair) for place, pair in zip(places, pairs, strict=True) if pair[1] == pair[1]]
    if not known:
        return {name: NAN for name in ("mean", "std", "sum", "trend")} | {
            name: [NAN, NAN] for name in ("min", "max")
        }
    numbers = [max(-3.0, min(3.0, pair[0])) for _, pair in known]
    n, mean = len(numbers), sum(numbers) / len(numbers)
    total = sum(number + origin for number in numbers)
    center = sum(place for place, _ in known) / n
    spread = sum((place - center) ** 2 for place, _ in known)
    slope = sum(
        (place - center) * (number - mean)
        for (place, _), number in zip(known, numbers, strict=True)
    )
    trend = NAN if n < 2 else slope / spread * (known[-1][0] - known[0][0])
    return {
        "mean": mean,
        "std": math.sqrt(sum((number - mean) ** 2 for number in numbers) / n),
        "sum": math.copysign(math.log1p(abs(total)), total),
        "trend": trend if trend != trend else max(-9.0, min(9.0, trend)),
        "min": [min(pair[part] for _, pair in known) for part in range(2)],
        "max": [max(pair[part] for _, pair in known) for part in range(2)],
    }


def describe_numbers(pairs, origin):
    """Return the aggregates of a numeric field of one row."""
    n, nothing = len(pairs), [NAN, NAN]
    found = {
        "known": sum(pair[1] == pair[1] for pair in pairs),
        "last": padded(pairs[::-1][:3], 3, nothing),
        "first": padded(pairs[:1], 1, nothing),
        **statistics(pairs, range(n), origin),
    }
    recent = statistics(pairs[-5:], range(n)[-5:], origin)
    return found | {f"recent {name}": value for name, value in recent.items()}


def describe_gaps(pairs, codes, counted):
    """Return the times from events to the prediction time of one row."""
    nothing = [NAN, NAN]
    since = {}
    for field, items in codes.items():
        places = [
            max((i for i in range(len(items)) if items[i] == c), default=None)
            for c in range(2, counted[field])
        ]
        since["since", field] = [nothing if place is None else pairs[place] for place in places]
    return {
        ("since last", None): padded(pairs[::-1][:3], 3, nothing),
        ("since first", None): padded(pairs[:1], 1, nothing),
        **since,
    }


def reference(block, encoding):
    """Return the values of all aggregates of an encoding, by name and field, one entry a row."""
    lists = {name: rows_of(entry) for name, entry in encoding.items()}
    if isinstance(block, CategorySequenceBlock):
        n_codes = {f"codes_{i}": items.n_codes[0] for i, items in enumerate(block.items_)}
        origins, gap = {}, None
    else:
        n_codes = {f"codes_{i}": n for i, n in enumerate(block.category_block_.n_codes)}
        numbers = block.number_block_
        origins = {
            f"values_{i}": max(-1000.0, min(1000.0, c / s))
            for i, (c, s) in enumerate(zip(numbers.center_, numbers.scale_, strict=True))
        }
        columns = list(block._number_columns())
        gap = next((f"values_{i}" for i, n in enumerate(columns) if n.endswith(".now")), None)
    counted = {name: min(n, 2 + FREQUENT) for name, n in n_codes.items()}
    rows = []
    for row in range(len(next(iter(lists.values())))):
        items = {name: values[row] for name, values in lists.items()}
        found = {("length", None): [len(next(iter(items.values())))]}
        for name, size in counted.items():
            described = describe_codes(items[name], size)
            found |= {(key, name): value for key, value in described.items()}
        for name, origin in origins.items():
            if name != gap:
                described = describe_numbers(items[name], origin)
                found |= {(key, name): value for key, value in described.items()}
        if gap is not None:
            codes = {name: items[name] for name in counted}
            found |= describe_gaps(items[gap], codes, counted)
        rows.append(found)
    return rows


def computed(block, encoding):
    """Return what the modules of a block compute: the value of each aggregate, and all modules."""
    module = block.make_module().eval()
    lists = module.aggregated_lists(encoding)
    found = [part.compute(*inputs) for part, inputs in zip(module.aggregates, lists, strict=True)]
    return module, found


def assert_like_reference(block, encoding):
    module, found = computed(block, encoding)
    if isinstance(block, CategorySequenceBlock):
        # Each column has a module of its own.
        columns = [{"codes_0": entry} for entry in encoding.values()]
        blocks = [one_column(block, index) for index in range(len(columns))]
    else:
        columns, blocks = [encoding], [block]
    checked = 0
    for part, values, own, column in zip(module.aggregates, found, blocks, columns, strict=True):
        rows = reference(own, column)
        for aggregate in part.aggregates:
            fields = aggregate.fields
            key = aggregate.name, None if fields is None else f"{fields}_{aggregate.field}"
            expected = np.array([row[key] for row in rows], dtype=np.float64)
            value = part.value(values, aggregate).double().numpy()
            np.testing.assert_allclose(
                value.reshape(len(rows), -1), expected.reshape(len(rows), -1), rtol=2e-5, atol=2e-6
            )
            assert value.shape[1] == aggregate.size
            checked += 1
    assert checked
    return checked


def one_column(block, index):
    other = CategorySequenceBlock()
    other.items_ = [block.items_[index]]
    return other


# ------------------------------------------------------------------ values of lists


WORDS = st.none() | st.sampled_from(["a", "b", "c", "", "d"])
LISTS = st.none() | st.lists(WORDS, max_size=7)


@settings(max_examples=30)
@given(
    values=st.lists(LISTS, min_size=1, max_size=8), other=st.lists(LISTS, min_size=1, max_size=6)
)
def test_category_aggregates_of_random_lists(values, other):
    kind = pa.list_(pa.string())
    block = CategorySequenceBlock(max_length=6, aggregates=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        block.fit({"c": pa.array(values, kind)})
    assert_like_reference(block, block.transform({"c": pa.array(other, kind)}))


def test_category_aggregates_by_hand():
    block = CategorySequenceBlock().fit({"c": [["a", "a", "b"], ["a", "b", "c"], ["a"]]})
    assert block.categories_[0].to_pylist() == ["a", "b", "c"]
    rows = [["b", "a", None, "new", "a", "a"], ["c"], [], None]
    _, found = computed(block, block.transform({"c": rows}))
    found = {name: values[:, 0].tolist() for (name, _), values in found[0].items()}
    assert found["length"] == [[6], [1], [0], [0]]
    assert found["counts"] == [[1, 1, 3, 1, 0], [0, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert found["shares"][0] == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6, 0])
    assert found["shares"][2] == [0.0] * 5
    assert found["recency"] == [[0, 5, -1], [-1, -1, 0], [-1] * 3, [-1] * 3]
    assert found["changes"] == [[4], [0], [0], [0]]
    assert found["run"] == [[2], [1], [0], [0]]
    assert found["distinct"] == [[3], [1], [0], [0]]
    assert found["last"] == [[2, 2, 1], [4, 0, 0], [0] * 3, [0] * 3]
    assert found["first"] == [[3], [4], [0], [0]]


TIMES = st.lists(st.integers(0, 10**6), max_size=7).map(sorted)
NUMBERS = st.none() | st.floats(-1e4, 1e4) | st.sampled_from([0.0, 1.0, math.inf, -math.inf])


@st.composite
def event_rows(draw, max_rows=6):
    rows = []
    for _ in range(draw(st.integers(1, max_rows))):
        times = draw(st.none() | TIMES)
        n = 0 if times is None else len(times)
        rows.append(
            {
                "kind": draw(st.lists(WORDS, min_size=n, max_size=n)),
                "amount": draw(st.lists(NUMBERS, min_size=n, max_size=n)),
                "when": times,
                "now": 10**6 + draw(st.integers(0, 10**5)),
            }
        )
    return rows


def event_table(rows):
    kinds = {"kind": pa.string(), "amount": pa.float64(), "when": pa.int64()}
    columns = {name: pa.array([r[name] for r in rows], pa.list_(k)) for name, k in kinds.items()}
    columns["kind"] = pa.array(
        [row["kind"] if row["when"] is not None else None for row in rows], pa.list_(pa.string())
    )
    return pa.table({**columns, "now": pa.array([row["now"] for row in rows], pa.int64())})


@settings(max_examples=30)
@given(rows=event_rows(), other=event_rows(), has_now=st.booleans())
def test_event_aggregates_of_random_lists(rows, other, has_now):
    names = ["kind", "amount", "when", *(["now"] if has_now else [])]
    now = "now" if has_now else None
    block = EventSequenceBlock(time="when", now=now, max_length=6, aggregates=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        block.fit(event_table(rows).select(names))
    assert_like_reference(block, block.transform(event_table(other).select(names)))


def test_event_aggregates_by_hand():
    X = {
        "kind": [["view", "buy", "view"], ["view"], None],
        "when": [[0.0, 60.0, 90.0], [30.0], None],
        "now": [100.0, 100.0, 100.0],
    }
    block = EventSequenceBlock(time="when", now="now").fit(X)
    encoding = block.transform(X)
    _, found = computed(block, encoding)
    columns = list(block._number_columns())
    edges = block.number_block_.edges_[columns.index("when.now")]

    def seconds(positions):
        inside = np.interp(positions, np.arange(len(edges)), edges)
        return np.expm1(inside).round(3).tolist()

    since = {key: v[:, 0, :, 1] for key, v in found[0].items() if key[0].startswith("since")}
    assert seconds(since["since last", None][0]) == [10, 40, 100]
    assert seconds(since["since first", None][0]) == [100]
    # The last view and the last purchase.
    assert seconds(since["since", "codes"][0]) == [10, 40]
    assert seconds(since["since", "codes"][1][0]) == 70
    assert since["since", "codes"][1].isnan().tolist() == [False, True]
    assert since["since last", None][2].isnan().all()


def test_trend_and_recent_statistics():
    X = {"x": [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 0.0]], "k": [["a"] * 7, ["a"] * 2]}
    block = EventSequenceBlock().fit(X)
    _, found = computed(block, block.transform(X))
    trend = found[0]["trend", "values"][:, 0, 0]
    assert trend[0] > 0 > trend[1]
    lowest = [found[0][name, "values"][0, 0, 0, 1] for name in ("min", "recent min")]
    # Edges are the seven numbers, of which the last five begin with 2.
    assert [float(value) for value in lowest] == [0, 2]


# ------------------------------------------------------------------ contracts


def events(n_rows=24, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 6, n_rows)
    start = np.datetime64("2024-03-29T20:00") + rng.integers(0, 10**5, n_rows).astype("m8[s]")
    whens = [
        (begin + np.sort(rng.integers(0, 10**6, size)).astype("m8[s]")).tolist()
        for begin, size in zip(start, sizes, strict=True)
    ]
    columns = {
        "kind": [rng.choice(["view", "buy", "back"], size).tolist() for size in sizes],
        "price": [rng.normal(size=size).tolist() for size in sizes],
        "when": whens,
    }
    for row, size in enumerate(sizes):
        if size and row % 5 == 0:
            columns["kind"][row][0] = None
            columns["price"][row][-1] = NAN
    for values in columns.values():
        values[3] = None
    columns["now"] = (start + np.timedelta64(20, "D")).tolist()
    return as_table(pd.DataFrame(columns))


@pytest.mark.parametrize("names", [True, ["last"], ["length", "counts"], ["recent", "mean"]])
def test_events_with_aggregates_follow_the_contract(names):
    table = events().drop_columns(["now"])
    check_block(EventSequenceBlock(aggregates=names, calendar=["day", "week"]), table)


@pytest.mark.parametrize("names", [True, ["first", "run"], ["distinct"]])
def test_lists_with_aggregates_follow_the_contract(names):
    check_block(CategorySequenceBlock(aggregates=names), events().select(["kind"]))


def test_aggregates_do_not_change_the_encoding():
    table = events()
    encodings = [EventSequenceBlock(aggregates=a).fit_transform(table) for a in (True, False)]
    assert encodings[0].keys() == encodings[1].keys()
    for name, entry in encodings[0].items():
        other = encodings[1][name]
        assert torch.equal(entry.offsets, other.offsets)
        torch.testing.assert_close(entry.values, other.values, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("block", [CategorySequenceBlock, EventSequenceBlock])
@pytest.mark.parametrize("aggregates", ["all", ["means"], 3, None, "counts"])
def test_unknown_aggregates_are_named(block, aggregates):
    with pytest.raises(ValueError, match=r"aggregates must be 'auto', True, False or a list.*got"):
        block(aggregates=aggregates).fit({"c": [["a"]]})


def test_names_of_aggregates():
    block = EventSequenceBlock(aggregates=["mean", "counts"]).fit(events())
    names = {part.name for part in block.make_module().aggregates[0].aggregates}
    assert names == {"mean", "counts"}
    assert set(CATEGORY_AGGREGATES) < set(EVENT_AGGREGATES)
    everything = EventSequenceBlock(aggregates=list(EVENT_AGGREGATES)).fit(events()).make_module()
    assert everything.tree_codes == EventSequenceBlock().fit(events()).make_module().tree_codes


def test_codes_of_many_categories_are_counted_for_the_frequent_only():
    words = [[f"w{i}"] * (60 - i) for i in range(40)]
    block = CategorySequenceBlock().fit({"c": words})
    module, found = computed(block, block.transform({"c": [["w0", "w39", "w9"]]}))
    assert found[0]["counts", "codes"].tolist() == [[[0, 0, 1, *[0] * 8, 1]]]
    assert found[0]["last", "codes"].tolist() == [[[11, 41, 2]]]
    assert len(module.tree_codes) == sum(a.size for a in module.aggregates[0].aggregates)


# ------------------------------------------------------------------ models


QUICK = {"max_epochs": 2, "random_state": 0, "batch_size": 64}
QUICK_TABLE = {**QUICK, "n_folds": None}


def counted_rows(n_rows=400, seed=0):
    """Return lists of letters, and whether a list has more than three times the letter a."""
    rng = np.random.default_rng(seed)
    lists = [rng.choice(list("abcd"), size).tolist() for size in rng.integers(4, 20, n_rows)]
    return pd.DataFrame({"items": lists}), np.array([row.count("a") > 3 for row in lists], int)


def test_trees_read_aggregates():
    X, y = counted_rows()
    new, truth = counted_rows(200, seed=1)
    blocks = [("items", CategorySequenceBlock(), "items")]
    model = EasyTensorClassifier(blocks, trees=BoostedTrees(max_iter=50), **QUICK_TABLE).fit(X, y)
    assert model.network_.trees is not None
    assert (model.predict(new) == truth).mean() > 0.97
    alone = [("items", CategorySequenceBlock(aggregates=False), "items")]
    assert EasyTensorClassifier(alone, **QUICK_TABLE).fit(X, y).network_.trees is None


def test_the_network_reads_aggregates():
    X, y = counted_rows(1500)
    new, truth = counted_rows(300, seed=1)
    scores = {}
    for aggregates in (["counts"], ["first"]):
        blocks = [("items", CategorySequenceBlock("mean", aggregates=aggregates), "items")]
        params = {"trees": None, "n_folds": None, "max_epochs": 15, "random_state": 0}
        model = EasyTensorClassifier(blocks, **params).fit(X, y)
        scores[aggregates[0]] = (model.predict(new) == truth).mean()
    assert scores["counts"] > max(0.85, scores["first"] + 0.05)


def test_importances_of_lists_with_aggregates():
    X, y = counted_rows()
    rng = np.random.default_rng(0)
    X["other"] = [rng.choice(list("xyz"), size).tolist() for size in rng.integers(1, 9, len(X))]
    model = EasyTensorClassifier(trees=BoostedTrees(max_iter=50), **QUICK_TABLE).fit(X, y)
    importances = dict(zip(X.columns, model.feature_importances_, strict=True))
    assert importances["items"] > 10 * max(importances["other"], 1e-3)


def test_events_are_predicted_alike_after_pickling_and_in_any_batch():
    import pickle

    table = events(80)
    y = np.arange(80) % 3
    blocks = [("events", EventSequenceBlock(), table.column_names)]
    model = EasyTensorRegressor(blocks, trees=BoostedTrees(max_iter=5), **QUICK_TABLE).fit(table, y)
    expected = model.predict(table)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(model)).predict(table), expected)
    one_by_one = [model.predict(table.slice(row, 1))[0] for row in range(0, 80, 7)]
    np.testing.assert_allclose(one_by_one, expected[::7], rtol=1e-5, atol=1e-6)


def test_exported_models_have_aggregates(tmp_path):
    pytest.importorskip("onnxruntime")
    from sk_easytensor.inference import export_onnx, load

    table = events(80)
    y = np.arange(80) % 3
    blocks = [
        ("events", EventSequenceBlock(calendar=["week"]), ["kind", "price", "when", "now"]),
    ]
    model = EasyTensorRegressor(blocks, trees=BoostedTrees(max_iter=20), **QUICK_TABLE).fit(
        table, y
    )
    new = events(60, seed=1)
    exported = load(export_onnx(model, tmp_path / "model.onnx"))
    np.testing.assert_allclose(exported.predict(new), model.predict(new), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ defaults


def test_embedders_and_towers_have_aggregates_only_if_asked():
    rng = np.random.default_rng(0)
    users = {"user": np.repeat(np.arange(20), 15), "time": rng.integers(0, 10**6, 300)}
    log = pd.DataFrame({**users, "kind": rng.choice(["view", "buy"], 300)})
    model = EasyTensorEmbedder(**QUICK, embedding_dim=8).fit(log, user="user", time="time")
    (block,) = model.tower_.blocks_.values()
    assert (block.encoder, block.aggregates) == ("mean", False)
    asked = [("events", EventSequenceBlock(aggregates=["length"]), ["kind"])]
    model = EasyTensorEmbedder(asked, **QUICK, embedding_dim=8).fit(log, user="user", time="time")
    block = model.tower_.blocks_["events"]
    assert (block.encoder, block.aggregates) == ("gru", ["length"])
    assert asked[0][1].encoder == "auto"
    pairs = pd.DataFrame({"items": [["a", "b"], ["b"]] * 50, "item": rng.integers(0, 5, 100)})
    model = EasyTensorTwoTower(
        [("items", CategorySequenceBlock(), "items")], [("item", CategoryBlock(), "item")], **QUICK
    ).fit(pairs)
    block = model.user_tower_.blocks_["items"]
    assert (block.encoder, block.aggregates) == ("transformer", False)


def test_the_encoder_follows_the_aggregates():
    encoders = [
        (CategorySequenceBlock, "auto", "mean"),
        (CategorySequenceBlock, False, "transformer"),
        (EventSequenceBlock, True, "mean"),
        (EventSequenceBlock, False, "gru"),
        (EventSequenceBlock, ["counts"], "mean"),
        (EventSequenceBlock, [], "gru"),
    ]
    for block, aggregates, encoder in encoders:
        assert block(aggregates=aggregates).chosen_encoder == encoder
    assert EventSequenceBlock("lstm").chosen_encoder == "lstm"


@pytest.mark.parametrize("kind", ["events", "lists"])
def test_blocks_without_aggregates_are_those_of_their_encoder(kind):
    """A block without aggregates draws and computes what it did before there were any."""
    table = events() if kind == "events" else events().select(["kind"])
    block = {"events": EventSequenceBlock, "lists": CategorySequenceBlock}[kind]
    block = block(aggregates=False).fit(table)
    encoding = block.transform(table)
    torch.manual_seed(0)
    module = block.make_module().eval()
    assert not module.has_tree_inputs
    assert module.tree_codes is None
    torch.manual_seed(0)
    if kind == "lists":
        items, encoder = block.items_[0].make_module().eval(), None
        encoder = block.make_encoder(block.width).eval()
        lists = encoding["codes_0"]
        expected = encoder(items(lists.values[:, None]), lists.offsets)
    else:
        codes, values = block.category_block_.make_module(), block.number_block_.make_module()
        encoder = block.make_encoder(codes.out_features + values.out_features)
        for part in (codes, values, encoder):
            part.eval()
        numbers = torch.stack([encoding[f"values_{i}"].values for i in range(3)], dim=1)
        items = [codes(encoding["codes_0"].values[:, None]), values(numbers)]
        expected = encoder(torch.cat(items, dim=1), encoding["codes_0"].offsets)
    torch.testing.assert_close(module(**encoding), expected, rtol=0, atol=0)


# ------------------------------------------------------------------ calendar


def test_calendar_is_the_wall_clock_of_the_column():
    when = pd.to_datetime(["2024-03-30 12:00", "2024-03-31 12:00"]).tz_localize("Europe/Oslo")
    X = pd.DataFrame({"when": [list(when)], "kind": [["a", "b"]]})
    block = EventSequenceBlock(calendar=["day", "week"]).fit(X)
    encoding = block.transform(X)
    day, week = (encoding[f"calendar_{cycle}"].values.numpy() for cycle in ("day", "week"))
    # Noon by the clock of Oslo, on both sides of the change to summer time.
    angle = 2 * np.pi * np.array([1, 2, 3])
    expected = np.concatenate([np.sin(angle / 2), np.cos(angle / 2)])
    np.testing.assert_allclose(day, [expected, expected], atol=1e-6)
    saturday, sunday = ([*np.sin(angle * d / 7), *np.cos(angle * d / 7)] for d in (5, 6))
    np.testing.assert_allclose(week, [saturday, sunday], atol=1e-6)
    assert block.encoding_columns(encoding)["calendar_day"] == ["when"]
    assert block.make_module()(**encoding).shape[0] == 1


def test_calendar_of_missing_times_is_zero():
    when = pa.array([[None, pd.Timestamp("2024-01-01T06:00")], None], pa.list_(pa.timestamp("s")))
    table = pa.table({"when": when, "kind": [["a", "b"], None]})
    block = EventSequenceBlock(calendar=["day"]).fit(table)
    waves = block.transform(table)["calendar_day"].values
    assert waves[0].tolist() == [0] * 6
    assert waves[1, 0] == pytest.approx(1)


@pytest.mark.parametrize("calendar", ["day", ["hour"], 3])
def test_unknown_cycles_are_named(calendar):
    with pytest.raises(ValueError, match=r"calendar must be a list of some of \['day'.*got"):
        EventSequenceBlock(calendar=calendar).fit(events())


def test_a_calendar_needs_dates():
    X = {"when": [[0.0, 1.0]], "kind": [["a", "b"]]}
    with pytest.raises(ValueError, match=r"calendar=\['day'\] needs .* got 'when' of type float64"):
        EventSequenceBlock(time="when", calendar=["day"]).fit(X)
    with pytest.raises(ValueError, match=r"calendar=\['day'\] needs the times of events"):
        EventSequenceBlock(calendar=["day"]).fit({"kind": [["a", "b"]], "x": [[1.0, 2.0]]})
