"""Embeddings that are updated with further events equal those of all events together."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_easytensor import (
    CategorySequenceBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EventSequenceBlock,
    NumericSequenceBlock,
    PretrainedBlock,
)
from sk_easytensor.embedder.updates import EmbeddingState

# Short lists are cut on purpose; test_sequences.py of the blocks has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

USERS = ["ann", "bob", "cid", "dan", "eve"]
LOG = {"user": "user", "time": "time"}


def make_log(n_events=60, seed=0):
    """A log in order of time, with events of the same time and missing values."""
    random = np.random.default_rng(seed)
    kinds = random.choice(["view", "buy", None], n_events, p=[0.6, 0.3, 0.1])
    seconds = np.cumsum(random.integers(0, 3, n_events) * 600)
    return pd.DataFrame(
        {
            "user": random.choice(USERS, n_events, p=[0.4, 0.3, 0.15, 0.1, 0.05]),
            "time": pd.Timestamp("2025-01-01") + pd.to_timedelta(seconds, unit="s"),
            "kind": kinds,
            "amount": random.normal(size=n_events).round(3),
        }
    )


def events_block(encoder="mean", **params):
    block = EventSequenceBlock(encoder, **{"now": False, "width": 6, **params})
    return ("events", block, ["time", "kind", "amount"])


BLOCKS = {
    "mean": [events_block()],
    "mean of mean": [events_block(pooling="mean")],
    "mean_max": [events_block(pooling="mean_max")],
    "gru": [events_block("gru", layers=2)],
    "gru, last": [events_block("gru", pooling="last")],
    "lstm": [events_block("lstm", pooling="mean_max", keep="first", layers=2)],
    "several": [
        ("kind", CategorySequenceBlock("gru", width=4), ["kind"]),
        ("amount", NumericSequenceBlock("lstm", bidirectional=False, width=4), ["amount"]),
        events_block(),
    ],
}


def fit(blocks, X=None, **params):
    # Embeddings of few components may be short, and scaling them to length 1 scales their rounding.
    params = {"embedding_dim": 16, "max_epochs": 1, "validation_fraction": None, **params}
    model = EasyTensorEmbedder(blocks, remainder="drop", random_state=0, **params)
    return model.fit(make_log() if X is None else X, **LOG)


@pytest.fixture(scope="module")
def models():
    return {name: fit(blocks) for name, blocks in BLOCKS.items()}


def assert_equal_to_all(model, state, events):
    users = pd.unique(events["user"])
    assert state.users.column_names == ["user"]
    assert state.users["user"].to_pylist() == list(users)
    assert state.n_events.tolist() == events["user"].value_counts()[users].tolist()
    assert state.embeddings.dtype == np.float32
    np.testing.assert_allclose(state.embeddings, model.transform(events), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- what is exact


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", BLOCKS)
def test_updates_at_any_split_equal_one_computation(name, models, data):
    seed = data.draw(st.integers(0, 20))
    cuts = sorted(data.draw(st.lists(st.integers(1, 59), max_size=5, unique=True)))
    # The rest of the log has users, kinds and times that the fit had not.
    events = make_log(seed=seed)
    model, state = models[name], None
    for first, last in zip([0, *cuts], [*cuts, 60], strict=True):
        state = model.update(state, events[first:last])
    assert_equal_to_all(model, state, events)


@pytest.mark.parametrize("name", ["mean", "gru", "several"])
def test_one_event_at_a_time(name, models):
    events, state = make_log(30, seed=3), None
    for row in range(30):
        state = models[name].update(state, events[row : row + 1])
    assert_equal_to_all(models[name], state, events)


def test_the_order_within_a_call_does_not_matter(models):
    events = make_log(40, seed=5).drop_duplicates("time")
    mixed = [part.sample(frac=1, random_state=0) for part in (events[:15], events[15:])]
    state = models["gru"].update(models["gru"].update(None, mixed[0]), mixed[1])
    np.testing.assert_allclose(
        state.embeddings, models["gru"].transform(pd.concat(mixed)), rtol=0, atol=1e-6
    )


def test_a_state_is_not_changed_and_can_be_pickled(models):
    events, model = make_log(seed=1), models["several"]
    state = model.update(None, events[:20])
    before = pickle.dumps(state)
    after = model.update(pickle.loads(before), events[20:])
    assert pickle.dumps(state) == before
    assert isinstance(after, EmbeddingState)
    assert_equal_to_all(model, after, events)
    copied = pickle.loads(pickle.dumps(model)).update(state, events[20:])
    np.testing.assert_array_equal(copied.embeddings, after.embeddings)
    # No event but the last one of each user is kept.
    assert len(state.last_events) == len(state) == len(state.users)


def test_users_without_new_events_keep_their_embeddings(models):
    events, model = make_log(seed=2), models["gru"]
    state = model.update(None, events[:40])
    others = events[40:][events[40:]["user"] != "ann"]
    after = model.update(state, others)
    row = state.users["user"].to_pylist().index("ann")
    np.testing.assert_array_equal(after.embeddings[row], state.embeddings[row])
    assert not np.array_equal(after.embeddings, state.embeddings)
    same = model.update(after, others[:0])
    np.testing.assert_array_equal(same.embeddings, after.embeddings)
    assert len(model.update(None, events[:0])) == 0


@pytest.mark.parametrize(
    "convert",
    [
        pl.from_pandas,
        lambda log: pa.Table.from_pandas(log, preserve_index=False),
        lambda log: log.astype({"kind": "category", "user": "category"}),
        lambda log: log.to_dict("list"),
    ],
    ids=["polars", "arrow", "categorical", "dict"],
)
def test_logs_of_every_kind(convert, models):
    events, model = make_log(), models["mean"]
    state = model.update(model.update(None, events[:25]), convert(events[25:]))
    np.testing.assert_allclose(state.embeddings, model.transform(events), rtol=0, atol=1e-6)


def test_users_of_two_columns_and_times_that_are_not_read():
    events = make_log().assign(shop=lambda log: log["user"].str[0], till=1)
    events["till"] = np.arange(60) % 2
    blocks = [("kind", CategorySequenceBlock("gru", width=4), ["kind"])]
    model = EasyTensorEmbedder(
        blocks, remainder="drop", embedding_dim=4, max_epochs=1, random_state=0
    ).fit(events.drop(columns="user"), user=["shop", "till"], time="time")
    state = None
    for first, last in ((0, 7), (7, 31), (31, 60)):
        state = model.update(state, events[first:last])
    assert state.users.column_names == ["shop", "till"]
    expected = model.set_output(transform="pandas").transform(events)
    assert state.users.to_pandas().apply(tuple, axis=1).tolist() == expected.index.tolist()
    np.testing.assert_allclose(state.embeddings, expected, rtol=0, atol=1e-6)


def test_numbers_of_another_width(models):
    events, model = make_log(), models["mean"]
    narrow = pa.Table.from_pandas(events[:25], preserve_index=False)
    amount = narrow.schema.get_field_index("amount")
    narrow = narrow.set_column(amount, "amount", narrow["amount"].cast(pa.float32()))
    expected = model.transform(pa.concat_tables(
        [narrow, pa.Table.from_pandas(events[25:], preserve_index=False)],
        promote_options="permissive",
    ))  # fmt: skip
    state = model.update(model.update(None, narrow), events[25:])
    np.testing.assert_allclose(state.embeddings, expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- what is refused


def pretrained():
    events = {"kind": [["a", "b"], ["b"]] * 10}
    model = EasyTensorClassifier(
        [("kind", CategorySequenceBlock("mean", width=4), "kind")], max_epochs=1, random_state=0
    ).fit(events, [0, 1] * 10)
    return ("pretrained", PretrainedBlock(model), ["kind"])


REFUSED = {
    "transformer": (lambda: events_block("transformer", heads=2), "encoder='transformer'"),
    "conv": (lambda: events_block("conv"), "encoder='conv'"),
    "bidirectional": (lambda: events_block("gru", bidirectional=True), "bidirectional=True"),
    "now": (lambda: events_block(now=None), r"the time from each event .*now=False"),
    "steps": (
        lambda: ("amount", NumericSequenceBlock("mean", max_steps=1), ["amount"]),
        "max_steps=1 and averages",
    ),
    "pretrained": (pretrained, "is a PretrainedBlock"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_blocks_whose_updates_would_not_be_exact(case):
    make, message = REFUSED[case]
    block = make()
    model = fit([block])
    with pytest.raises(ValueError, match=f"update: block '{block[0]}' .*{message}"):
        model.update(None, make_log())


def test_more_events_than_a_block_reads():
    model = fit([events_block(max_length=9)], make_log(20))
    first = make_log(20, seed=4)
    n_events = first["user"].value_counts()
    assert n_events.max() == 8
    user = n_events.index[0]
    state = model.update(None, first)
    later = first[first["user"] == user].tail(1)
    state = model.update(state, later)
    assert state.n_events.max() == 9
    message = f"user '{user}' has 10 events .*block 'events' reads max_length=9 .*raise max_length"
    with pytest.raises(ValueError, match=message):
        model.update(state, later)


def test_events_that_come_too_late(models):
    events = make_log(seed=1)
    state = models["mean"].update(None, events[20:])
    user = events["user"][0]
    with pytest.raises(ValueError, match=f"an event of user '{user}' at 2025.* is earlier than"):
        models["mean"].update(state, events[:1])


def test_other_states_and_other_events(models):
    events, model = make_log(), models["mean"]
    state = model.update(None, events[:20])
    with pytest.raises(ValueError, match="state is of another fit"):
        fit(BLOCKS["mean"], max_epochs=2).update(state, events[20:])
    with pytest.raises(TypeError, match=r"column 'amount' is of type .*string.* float64"):
        model.update(state, events[20:].assign(amount="much"))
    with pytest.raises(TypeError, match=r"'user' is of type .* in state and of .* in events"):
        model.update(state, events[20:].assign(user=pd.Timestamp("2025-01-01")))
    with pytest.raises(ValueError, match="events must be a log with a row for each event"):
        model.update(state, model.collect(events))
    with pytest.raises(ValueError, match=r"events has no columns \['kind'\]"):
        model.update(state, events.drop(columns="kind"))
    lists = EasyTensorEmbedder(max_epochs=1, random_state=0).fit({"k": [["a", "b"], ["b", "a"]]})
    with pytest.raises(AttributeError, match="update needs a log in fit"):
        lists.update(None, events)
