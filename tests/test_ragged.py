import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.tensors import Ragged, TensorFrame
from sk_easytensor.training.dataset import EncodedDataset

LISTS = [[1, 2, 3], [], [4], [5, 6]]
NAN = float("nan")


def ragged_of(lists, dtype=torch.int32, offsets=None):
    flat = [item for items in lists for item in items]
    if offsets is None:
        offsets = torch.tensor([0, *np.cumsum([len(items) for items in lists])])
    return Ragged(torch.tensor(flat, dtype=dtype), offsets)


def lists_of(entry):
    return [part.tolist() for part in entry.values.split(entry.lengths.tolist())]


def parallel_frame():
    """Return a frame of two parallel entries, one of other lengths, and a dense one."""
    codes = ragged_of(LISTS)
    values = Ragged(torch.arange(12.0).reshape(6, 2), codes.offsets)
    other = ragged_of([[7], [8, 9], [], []])
    dense = torch.arange(4.0)[:, None]
    return TensorFrame(
        {"events": {"codes": codes, "values": values}, "words": {"codes": other, "x": dense}}
    )


def assert_parallel(frame):
    codes, values = frame["events"].values()
    assert codes.offsets is values.offsets
    assert frame["words"]["codes"].offsets is not codes.offsets


WAYS = {
    "take": lambda frame: frame.take(torch.tensor([2, 0, 0, 3])),
    "take none": lambda frame: frame.take(torch.tensor([], dtype=torch.int64)),
    "slice": lambda frame: frame.take(slice(1, 3)),
    "step": lambda frame: frame.take(slice(None, None, 2)),
    "empty slice": lambda frame: frame.take(slice(2, 2)),
    "to": lambda frame: frame.to("cpu"),
    "concatenate": lambda frame: TensorFrame.concatenate([frame, frame.take(slice(1, 3)), frame]),
    "arrow": lambda frame: TensorFrame.from_arrow(frame.to_arrow()),
    "part of arrow": lambda frame: TensorFrame.from_arrow(frame.to_arrow().slice(1, 2)),
    "permute": lambda frame: frame.permute_column(
        "events", {"codes": [0], "values": [0]}, torch.tensor([3, 2, 1, 0])
    ),
    "permute one": lambda frame: frame.permute_column(
        "events", {"codes": [0]}, torch.tensor([3, 2, 1, 0])
    ),
    "pickle": lambda frame: (
        pickle.loads(pickle.dumps(EncodedDataset(frame, torch.zeros(4), torch.ones(4)))).frame
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_parallel_lists_stay_parallel(way):
    frame = parallel_frame()
    assert_parallel(frame)
    assert_parallel(WAYS[way](frame))
    assert frame.equals(parallel_frame())


@pytest.mark.parametrize("way", ["take", "slice", "step", "concatenate", "arrow", "part of arrow"])
def test_sharing_gives_what_each_entry_would_alone(way):
    frame = parallel_frame()
    found = WAYS[way](frame)
    for block in frame:
        for name, entry in frame[block].items():
            alone = WAYS[way](TensorFrame({block: {name: entry}}))
            assert TensorFrame({block: {name: found[block][name]}}).equals(alone)


def test_offsets_are_worked_on_once():
    frame = parallel_frame()
    codes, values = frame["events"].values()
    shared = {}
    first = codes.take(torch.tensor([3, 0]), shared)
    assert values.take(torch.tensor([3, 0]), shared).offsets is first.offsets
    assert len(shared) == 1
    assert codes.take(torch.tensor([3, 0])).offsets is not first.offsets


def test_equal_lengths_alone_do_not_make_lists_parallel():
    frame = TensorFrame({"b": {"x": ragged_of(LISTS), "y": ragged_of(LISTS)}})
    back = TensorFrame.from_arrow(frame.to_arrow())
    assert back["b"]["x"].offsets is not back["b"]["y"].offsets


def test_names_with_slashes_are_found_again():
    lists = ragged_of(LISTS)
    frame = TensorFrame({"a/b": {"x": lists}, "a": {"y": ragged_of(LISTS, offsets=lists.offsets)}})
    back = TensorFrame.from_arrow(frame.to_arrow())
    assert back["a/b"]["x"].offsets is back["a"]["y"].offsets


def test_entries_without_any_item_are_equal():
    frame = TensorFrame({"b": {"x": ragged_of([[], []], torch.float32)}})
    assert frame.equals(TensorFrame({"b": {"x": ragged_of([[], []], torch.float32)}}))
    empty = Ragged(torch.from_numpy(np.broadcast_to(np.float32(0), (0,))), torch.zeros(3).long())
    assert frame.equals(TensorFrame({"b": {"x": empty}}))


def test_refill_takes_the_last_items_of_other_rows():
    lists = ragged_of(LISTS)
    found = lists.refill(torch.tensor([3, 0, 0, 2]))
    # 0 stands for what is missing.
    assert lists_of(found) == [[0, 5, 6], [], [3], [0, 4]]
    assert found.offsets is lists.offsets
    assert lists_of(lists) == LISTS


def test_refill_marks_missing_floats_as_nan():
    lists = ragged_of(LISTS, torch.float32)
    vectors = Ragged(torch.stack([lists.values, -lists.values], dim=1), lists.offsets)
    rows = torch.tensor([1, 1, 3, 0])
    torch.testing.assert_close(
        lists.refill(rows).values,
        torch.tensor([NAN, NAN, NAN, 6.0, 2.0, 3.0]),
        equal_nan=True,
    )
    assert torch.isnan(vectors.refill(rows).values[:3]).all()
    assert vectors.refill(rows).values[3:].tolist() == [[6, -6], [2, -2], [3, -3]]


@given(st.lists(st.lists(st.integers(1, 99), max_size=4), min_size=1, max_size=6), st.data())
def test_refill(lists, data):
    rows = data.draw(
        st.lists(st.integers(0, len(lists) - 1), min_size=len(lists), max_size=len(lists))
    )
    found = ragged_of(lists).refill(torch.tensor(rows))
    expected = [
        ([0] * len(own) + lists[row])[-len(own) :] if own else []
        for own, row in zip(lists, rows, strict=True)
    ]
    assert lists_of(found) == expected


def test_refilling_with_its_own_rows_changes_nothing():
    lists = ragged_of(LISTS)
    assert torch.equal(lists.refill(torch.arange(4)).values, lists.values)
    nothing = ragged_of([[], []])
    assert lists_of(nothing.refill(torch.tensor([1, 0]))) == [[], []]


def test_permuting_one_of_parallel_columns_keeps_lengths():
    frame = parallel_frame()
    rows = torch.tensor([3, 2, 1, 0])
    found = frame.permute_column("events", {"codes": [0]}, rows)
    assert lists_of(found["events"]["codes"]) == [[0, 5, 6], [], [0], [2, 3]]
    assert found["events"]["values"] is frame["events"]["values"]
    assert found["words"] is frame["words"]


def test_permuting_lists_that_stand_alone_swaps_them_whole():
    frame = parallel_frame()
    rows = torch.tensor([3, 2, 1, 0])
    found = frame.permute_column("words", {"codes": [0]}, rows)
    assert lists_of(found["words"]["codes"]) == [[], [], [8, 9], [7]]
    both = frame.permute_column("events", {"codes": [0], "values": [0]}, rows)
    assert lists_of(both["events"]["codes"]) == LISTS[::-1]
    assert both["events"]["values"].values[:2].tolist() == [[8, 9], [10, 11]]
    # Entries of which no part is the column's are not its own.
    part = frame.permute_column("events", {"codes": [0], "values": []}, rows)
    assert part.equals(frame.permute_column("events", {"codes": [0]}, rows))


def test_docstring_shapes():
    lists = ragged_of(LISTS)
    assert (len(lists), lists.lengths.tolist()) == (4, [3, 0, 1, 2])
    assert repr(lists) == "Ragged(rows=4, columns=1, values=6)"
    assert lists.to_padded(fill=-1).tolist() == [[1, 2, 3], [-1] * 3, [4, -1, -1], [5, 6, -1]]
