"""Parts of sequences: contiguous, of one row, drawn repeatably; sessions; pairs of them."""

import datetime as dt
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.embedder.objectives import (
    OBJECTIVES,
    PairSampler,
    SessionPairBinary,
    UserDataset,
    ViewSettings,
    count_long_histories,
)
from sk_easytensor.embedder.slices import (
    Sequences,
    Slices,
    consecutive_slices,
    cut_sessions,
    gap_seconds,
    random_slices,
)
from sk_easytensor.training.dataset import BatchIterator, EncodedDataset, ResampledDataset


def lists_of(rows, kind=None):
    return pa.array(rows, pa.list_(kind)) if kind else pa.array(rows)


def numbered(lengths):
    """Make sequences whose events have a number each, counted over all rows."""
    stops = np.cumsum(lengths)
    rows = [list(range(stop - length, stop)) for stop, length in zip(stops, lengths, strict=True)]
    return Sequences(pa.table({"event": lists_of(rows, pa.int64())}), "a test"), rows


def events_of(sequences, slices):
    return sequences.cut(slices).column("event").to_pylist()


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


# ---------------------------------------------------------------------- slices


def test_cut_takes_parallel_columns_alike():
    table = pa.table(
        {
            "page": [["a", "b", "c"], None, ["d", "e"]],
            "time": lists_of([[1, 2, 3], [], None], pa.int64()),
            "event": [[{"x": 1.0}, {"x": None}, {"x": 3.0}], [], [{"x": 4.0}, {"x": 5.0}]],
            "nothing": pa.nulls(3),
        }
    )
    sequences = Sequences(table, "a test")
    assert len(sequences) == 3
    assert sequences.lengths.tolist() == [3, 0, 2]
    slices = Slices(np.array([1, 3, 4]), np.array([3, 3, 5]))
    assert sequences.cut(slices).to_pydict() == {
        "page": [["b", "c"], [], ["e"]],
        "time": [[2, 3], [], [None]],
        "event": [[{"x": None}, {"x": 3.0}], [], [{"x": 5.0}]],
        "nothing": [[None, None], [], [None]],
    }


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)]
)
def test_lists_of_every_type_and_in_chunks(kind):
    chunks = [pa.array([["a", "b"], ["c", "d"]], kind), pa.array([["e", "f"]], kind)]
    sequences = Sequences(pa.table({"page": pa.chunked_array(chunks)}), "a test")
    assert sequences.cut(sequences.whole)["page"].to_pylist() == [
        ["a", "b"],
        ["c", "d"],
        ["e", "f"],
    ]


def test_categories_of_other_dictionaries():
    chunks = [pa.array(values).dictionary_encode() for values in (["b", "a"], ["c", "a"])]
    chunks = [pa.ListArray.from_arrays([0, 2], chunk) for chunk in chunks]
    sequences = Sequences(pa.table({"page": pa.chunked_array(chunks)}), "a test")
    assert sequences.cut(sequences.whole)["page"].to_pylist() == [["b", "a"], ["c", "a"]]


def test_lists_of_unlike_length():
    table = pa.table({"one": [[1, 2], [3]], "two": [[1, 2], [3, 4, 5]]})
    with pytest.raises(ValueError, match=r"'two' and 'one' have 3 and 1 items in row 1; a test"):
        Sequences(table, "a test")


@given(
    lengths=LENGTHS,
    low=st.one_of(st.integers(1, 12), st.floats(0, 1)),
    more=st.one_of(st.none(), st.integers(0, 5), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_slices_are_contiguous_and_of_their_row(lengths, low, more, seed):
    sequences, rows = numbered(lengths)
    filled = np.flatnonzero(sequences.lengths > 0)
    high = None if more is None else type(low)(low + more)
    if isinstance(high, float):
        high = min(high, 1.0)
    drawn = random_slices(sequences, filled, low, high, np.random.default_rng(seed))
    for row, part in zip(filled, events_of(sequences, drawn), strict=True):
        first = rows[row].index(part[0])
        assert part == rows[row][first : first + len(part)]
        shortest = min(low, len(rows[row])) if isinstance(low, int) else low * len(rows[row])
        assert len(part) >= shortest - 1e-9
        if high is not None:
            longest = high if isinstance(high, int) else high * len(rows[row])
            assert len(part) <= max(longest, shortest + 1, 1)


def test_random_slices_are_even():
    """All lengths are as frequent as each other, and so are all places of a length."""
    sequences, _ = numbered([4])
    rows = np.zeros(12_000, dtype=np.int64)
    drawn = random_slices(sequences, rows, 2, 3, np.random.default_rng(0))
    pairs, counts = np.unique(
        [drawn.starts, drawn.stops - drawn.starts], axis=1, return_counts=True
    )
    assert pairs.T.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [2, 2]]
    np.testing.assert_allclose(counts / len(rows), [1 / 6, 1 / 4, 1 / 6, 1 / 4, 1 / 6], atol=0.02)


@given(lengths=LENGTHS, length=st.integers(1, 10))
def test_consecutive_slices_hold_every_event_once(lengths, length):
    sequences, rows = numbered(lengths)
    parts = events_of(sequences, consecutive_slices(sequences, length))
    assert list(chain(*parts)) == list(chain(*rows))
    assert all(len(part) <= length for part in parts)
    assert sum(not part for part in parts) == lengths.count(0)


# ---------------------------------------------------------------------- sessions


def sessions_of(sequences, sessions, name):
    parts = sequences.cut(Slices(sessions.starts, sessions.stops))[name].to_pylist()
    bounds = sessions.offsets
    return [parts[bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)]


TIMES = [[0, 5, 15, 26], [], [30], [2, 2]]


@pytest.mark.parametrize("unit", ["number", "float", "date", "timestamp", "zone", "null"])
def test_sessions_by_gap(unit):
    """A gap of exactly ten does not end a session, and rows are apart however close in time."""
    scale = 1
    if unit in ("number", "float", "null"):
        values = TIMES
        kind = {"number": pa.int64(), "float": pa.float64(), "null": pa.int32()}[unit]
    elif unit == "date":
        scale = 86400
        values = [[dt.date(2025, 1, 1) + dt.timedelta(days=t) for t in row] for row in TIMES]
        kind = pa.date32()
    else:
        values = [[dt.datetime(2025, 1, 1) + dt.timedelta(seconds=t) for t in row] for row in TIMES]
        kind = pa.timestamp("us", "Europe/Oslo" if unit == "zone" else None)
    if unit == "null":
        values = [row or None for row in values]
    table = pa.table({"time": lists_of(values, kind), "t": lists_of(TIMES, pa.int64())})
    sequences = Sequences(table, "a test")
    sessions = cut_sessions(sequences, time="time", gap=10 * scale)
    assert sessions.counts.tolist() == [2, 0, 1, 1]
    assert sessions_of(sequences, sessions, "t") == [[[0, 5, 15], [26]], [], [[30]], [[2, 2]]]


def test_sessions_by_label():
    labels = [["a", "a", "b", "a"], ["a"], [], ["b", "b"]]
    for column in (labels, lists_of([[ord(x) for x in row] for row in labels], pa.int64())):
        sequences = Sequences(pa.table({"session": column}), "a test")
        sessions = cut_sessions(sequences, label="session")
        assert sessions.counts.tolist() == [3, 1, 0, 1]
        assert sessions.starts.tolist() == [0, 2, 3, 4, 5]


def test_what_sessions_cannot_be_cut_by():
    def cut(values, kind, **how):
        table = pa.table({"when": lists_of(values, kind)})
        return cut_sessions(Sequences(table, "a test"), **how)

    by_gap, by_label = {"time": "when", "gap": 1.0}, {"label": "when"}
    missing = r"'when' has a missing value in row 2 \(1 of 4 events\)"
    with pytest.raises(ValueError, match=missing):
        cut([[1.0, 2.0], [], [3.0, None]], pa.float64(), **by_gap)
    with pytest.raises(ValueError, match=missing):
        cut([[1.0, 2.0], [], [np.nan, 3.0]], pa.float64(), **by_gap)
    with pytest.raises(ValueError, match=missing):
        cut([["a", "a"], [], [None, "b"]], pa.string(), **by_label)
    with pytest.raises(ValueError, match=r"not in order of time in row 1: 4 comes after 7"):
        cut([[9], [7, 4]], pa.int64(), **by_gap)
    with pytest.raises(TypeError, match="'when' holds lists of string, from which"):
        cut([["1"]], pa.string(), **by_gap)


@pytest.mark.parametrize(
    "gap", [21600, 21600.0, "6h", dt.timedelta(hours=6), pd.Timedelta("6h"), np.timedelta64(6, "h")]
)
def test_gaps(gap):
    assert gap_seconds("Owner", gap) == 21600.0


@pytest.mark.parametrize("gap", [0, -1, np.nan, "-6h", "soon", [1], True, pd.NaT])
def test_gaps_that_are_none(gap):
    with pytest.raises(ValueError, match="Owner: session_gap must be a number of seconds"):
        gap_seconds("Owner", gap)


# ---------------------------------------------------------------------- pairs


@st.composite
def logs(draw):
    """Sequences whose events are numbered over all rows, and some of the rows."""
    sizes = draw(
        st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=2, max_size=8).filter(
            lambda rows: sum(len(row) > 1 for row in rows) > 1
        )
    )
    lengths = [sum(row) for row in sizes]
    stops = np.cumsum(lengths)
    events = [list(range(b - n, b)) for b, n in zip(stops, lengths, strict=True)]
    labels = [np.repeat(np.arange(len(row)), row).tolist() for row in sizes]
    table = {"event": lists_of(events, pa.int64()), "session": lists_of(labels, pa.int64())}
    sequences = Sequences(pa.table(table), "a test")
    counts = np.array([len(row) for row in sizes])
    some = draw(st.permutations(range(len(sizes))))
    kept = draw(st.integers(2, len(sizes)))
    users = np.array(some[:kept])
    if (counts[users] > 1).sum() < 2:
        users = np.array(some)
    return sequences, sizes, users


@given(logs(), st.integers(0, 1000))
def test_a_session_follows_its_history_and_the_other_user_is_another(data, seed):
    sequences, sizes, users = data
    objective = SessionPairBinary(sequences, ViewSettings(label="session"))
    pairs = objective.draw(users, np.random.default_rng(seed))
    owner = np.repeat(np.arange(len(sizes)), [sum(row) for row in sizes])
    label = np.concatenate([np.repeat(np.arange(len(row)), row) for row in sizes])
    left, right = events_of(sequences, pairs.left), events_of(sequences, pairs.right)
    made = np.flatnonzero(objective.is_eligible)
    expected = sum(user in made for user in users)
    assert objective.is_eligible.tolist() == [len(row) > 1 for row in sizes]
    assert len(pairs.target) == 2 * expected
    assert pairs.target.sum() == expected
    users_met = []
    rows = zip(pairs.left_rows, pairs.right_rows, pairs.target, strict=True)
    for history, session, target in ((left[i], right[j], y) for i, j, y in rows):
        assert history
        assert session
        assert not set(history) & set(session)
        user, other = owner[history[0]], owner[session[0]]
        assert {user, other} <= set(users)
        assert set(owner[history]) == {user}
        # One whole session, whose owner is the same user or another.
        assert set(owner[session]) == {other}
        assert len(set(label[session])) == 1
        assert len(session) == sizes[other][label[session[0]]]
        assert (user == other) == bool(target)
        if target:
            # The history is all that came before, from the user's very first event on.
            first = np.flatnonzero(owner == user)[0]
            assert history == list(range(first, session[0]))
            users_met.append(user)
    assert sorted(users_met) == sorted(set(users) & set(made))


@given(logs(), st.integers(0, 1000), st.booleans())
def test_a_history_is_matched_with_the_session_after_it(data, seed, latest):
    sequences, sizes, users = data
    settings = ViewSettings(label="session", latest=latest)
    objective = OBJECTIVES["session_pair"](sequences, settings)
    pairs = objective.draw(users, np.random.default_rng(seed))
    kept = [user for user in users if len(sizes[user]) > 1]
    assert pairs.left_rows.tolist() == pairs.right_rows.tolist() == list(range(len(kept)))
    assert pairs.target.tolist() == [1.0] * len(kept)
    left, right = events_of(sequences, pairs.left), events_of(sequences, pairs.right)
    for user, history, session in zip(kept, left, right, strict=True):
        start = int(sequences.offsets[user])
        stops = start + np.cumsum(sizes[user])
        # The history is all that came before, and the session is whole and not the first.
        number = stops.tolist().index(session[-1] + 1)
        assert number == len(stops) - 1 if latest else number > 0
        assert history == list(range(start, session[0]))
        assert session == list(range(stops[number - 1], stops[number]))
    longest = objective.longest_histories
    expected = [sum(row[:-1]) for row in sizes]
    assert longest.tolist() == expected
    rows = UserDataset(objective, users)
    for length in range(5):
        longer = [user for user in users if expected[user] > length]
        assert count_long_histories(rows, length) == len(longer)


def test_every_session_but_the_first_is_drawn_unless_only_the_latest_is():
    labels = [[0, 0, 1, 2, 3], [0, 1]]
    sequences = Sequences(pa.table({"session": lists_of(labels, pa.int64())}), "a test")
    for latest, expected in ((False, {2, 3, 4}), (True, {4})):
        settings = ViewSettings(label="session", latest=latest)
        objective = OBJECTIVES["session_pair"](sequences, settings)
        draws = (objective.draw(np.arange(2), np.random.default_rng(seed)) for seed in range(60))
        assert {int(pairs.right.starts[0]) for pairs in draws} == expected


@given(logs(), st.integers(0, 1000))
def test_contrastive_pairs_are_parts_of_one_user(data, seed):
    sequences, sizes, users = data
    objective = OBJECTIVES["contrastive"](sequences, ViewSettings(0.25, 0.75))
    assert objective.is_eligible.tolist() == [sum(row) > 1 for row in sizes]
    pairs = objective.draw(users, np.random.default_rng(seed))
    owner = np.repeat(np.arange(len(sizes)), [sum(row) for row in sizes])
    kept = [user for user in users if objective.is_eligible[user]]
    for side, rows in ((pairs.left, pairs.left_rows), (pairs.right, pairs.right_rows)):
        parts = events_of(sequences, side)
        for user, part in zip(kept, (parts[row] for row in rows), strict=True):
            assert part == list(range(part[0], part[-1] + 1))
            assert set(owner[part]) == {user}


def test_every_other_user_is_drawn_and_users_of_one_session_lend_theirs():
    labels = [[0, 1], [0], [0, 1], [0], []]
    sequences = Sequences(pa.table({"session": lists_of(labels, pa.int64())}), "a test")
    objective = SessionPairBinary(sequences, ViewSettings(label="session"))
    owner = np.array([0, 0, 1, 2, 2, 3])
    met = set()
    for seed in range(200):
        pairs = objective.draw(np.arange(5), np.random.default_rng(seed))
        left = owner[pairs.left.starts[pairs.left_rows]]
        right = owner[pairs.right.starts[pairs.right_rows]]
        met |= set(zip(left.tolist(), right.tolist(), strict=True))
    assert met == {(0, 0), (2, 2), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 3)}


def drawing(seed=0):
    random = np.random.default_rng(0)
    sequences, _ = numbered(random.integers(2, 30, 50))
    objective = OBJECTIVES["contrastive"](sequences, ViewSettings(0.25, 0.75))
    taken = []

    def encode(table):
        from sk_easytensor import NumericSequenceBlock, TableEncoder

        taken.append(table.column("event").to_pylist())
        return TableEncoder([("event", NumericSequenceBlock(), "event")]).fit(table).encode(table)

    return PairSampler(objective, np.arange(40), encode, [seed, 7]), taken


def test_draws_repeat_for_a_seed_and_an_epoch():
    draw, taken = drawing()
    rows = draw(3)
    assert isinstance(rows, EncodedDataset)
    assert len(rows) == 40
    draw(3)
    assert taken[:2] == taken[2:4]
    draw(4)
    assert taken[0] not in taken[4:]
    other, taken_by_other = drawing(seed=1)
    other(3)
    assert taken[0] != taken_by_other[0]
    assert taken[0] != taken[1]


def test_fresh_rows_are_drawn_for_each_epoch():
    drawn = []

    def draw(epoch):
        drawn.append(epoch)
        return drawing()[0](epoch)

    rows = ResampledDataset(draw)
    assert rows.for_epoch(0) is rows
    assert rows.for_epoch(1) is not rows
    assert drawn == [0, 1]
    assert len(list(BatchIterator(rows, 10))) == 4
    plain = rows.take(slice(0, 5))
    assert plain.for_epoch(3) is plain
