from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.tensors import Ragged, TensorFrame


@st.composite
def ragged(draw, min_rows=0):
    """A Ragged and the nested lists it stands for."""
    n_columns = draw(st.integers(1, 3))
    n_rows = draw(st.integers(min_rows, 6))
    lengths = draw(
        st.lists(st.integers(0, 4), min_size=n_rows * n_columns, max_size=n_rows * n_columns)
    )
    width = draw(st.sampled_from([(), (2,)]))
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    total = int(offsets[-1])
    flat = torch.arange(total * int(np.prod(width)), dtype=torch.float32).reshape(total, *width)
    return Ragged(flat, offsets, n_columns)


def nested(entry):
    """Return a Ragged as rows of columns of lists."""
    bounds = entry.offsets.tolist()
    lists = [entry.values[a:b].tolist() for a, b in pairwise(bounds)]
    size = entry.n_columns
    return [lists[i : i + size] for i in range(0, len(lists), size)]


def frames():
    dense = torch.tensor([[1.0, float("nan")], [3.0, 4.0], [5.0, 6.0]])
    codes = torch.tensor([[1], [2], [3]], dtype=torch.int32)
    cube = torch.arange(12.0).reshape(3, 2, 2)
    lists = Ragged(torch.arange(5, dtype=torch.int32), torch.tensor([0, 2, 2, 3, 3, 4, 5]), 2)
    vectors = Ragged(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1, 3]))
    return TensorFrame(
        {"a/b": {"values": dense, "codes": codes}, "c": {"cube": cube, "l": lists, "v": vectors}}
    )


@given(ragged(min_rows=1), st.data())
def test_ragged_take(entry, data):
    rows = data.draw(st.lists(st.integers(0, len(entry) - 1), max_size=8))
    taken = entry.take(torch.tensor(rows, dtype=torch.int64))
    assert nested(taken) == [nested(entry)[row] for row in rows]
    assert len(taken) == len(rows)
    part = data.draw(st.slices(len(entry)))
    assert nested(entry.take(part)) == nested(entry)[part]


def test_ragged_slices_share_memory():
    entry = Ragged(torch.arange(5), torch.tensor([0, 2, 5]))
    assert entry.take(slice(1, 2)).values.data_ptr() == entry.values[2:].data_ptr()


@given(st.lists(ragged(), min_size=1, max_size=4))
def test_ragged_concatenate(parts):
    alike = [
        part
        for part in parts
        if part.n_columns == parts[0].n_columns and part.values.ndim == parts[0].values.ndim
    ]
    joined = Ragged.concatenate(alike)
    assert nested(joined) == [row for part in alike for row in nested(part)]


@given(ragged(min_rows=1), st.data())
def test_ragged_permute_columns(entry, data):
    rows = data.draw(st.permutations(range(len(entry))))
    columns = data.draw(st.lists(st.integers(0, entry.n_columns - 1), unique=True))
    found = nested(entry.permute_columns(columns, torch.tensor(rows)))
    before = nested(entry)
    assert found == [
        [before[rows[i] if j in columns else i][j] for j in range(entry.n_columns)]
        for i in range(len(entry))
    ]


@given(ragged())
def test_to_padded(entry):
    padded = entry.to_padded(fill=-1)
    lists = [one for row in nested(entry) for one in row]
    assert len(padded) == len(lists)
    assert padded.dtype == entry.values.dtype
    for line, expected in zip(padded, lists, strict=True):
        assert line[: len(expected)].tolist() == expected
        assert (line[len(expected) :] == -1).all()


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 0), slice(None), slice(None, None, 2)])
def test_frame_take_slice(rows):
    frame = frames()
    index = torch.arange(3)[rows]
    taken = frame.take(rows)
    assert len(taken) == len(index)
    assert taken.equals(frame.take(index))


def test_frame_slices_are_views():
    frame = frames()
    taken = frame.take(slice(1, 3))
    assert taken["c"]["cube"].data_ptr() == frame["c"]["cube"][1:].data_ptr()


def test_frame_is_a_mapping_of_blocks():
    frame = frames()
    assert list(frame) == ["a/b", "c"]
    assert len(frame) == 3
    assert dict(frame.items())["c"] is frame["c"]
    assert "rows=3" in repr(frame)
    assert len(TensorFrame({}, n_rows=4)) == 4


def test_frame_concatenate():
    frame = frames()
    parts = [frame.take(slice(0, 1)), frame.take(slice(1, 1)), frame.take(slice(1, 3))]
    assert TensorFrame.concatenate(parts).equals(frame)
    assert TensorFrame.concatenate(iter([frame])) is frame


def test_equals_tells_differences():
    frame = frames()
    assert frame.equals(frames())
    assert not frame.equals(frame.take(torch.tensor([0, 2, 1])))
    assert not frame.equals(frame.take(slice(0, 2)))
    changed = frames()
    changed["c"]["l"].values[0] = 9
    assert not frame.equals(changed)


def test_permute_column():
    frame = frames()
    rows = torch.tensor([2, 0, 1])
    found = frame.permute_column("c", {"cube": [1], "l": [1]}, rows)
    cube = frame["c"]["cube"]
    assert torch.equal(found["c"]["cube"][:, 0], cube[:, 0])
    assert torch.equal(found["c"]["cube"][:, 1], cube[rows, 1])
    before = nested(frame["c"]["l"])
    after = nested(found["c"]["l"])
    assert after == [[before[i][0], before[j][1]] for i, j in enumerate(rows.tolist())]
    assert found["c"]["v"] is frame["c"]["v"]
    assert found["a/b"] is frame["a/b"]
    assert frame.equals(frames())


def test_arrow_round_trip_shares_memory():
    frame = frames()
    batch = frame.to_arrow()
    assert batch.num_rows == 3
    back = TensorFrame.from_arrow(batch)
    assert back.equals(frame)
    for block, encoding in frame.items():
        for name, entry in encoding.items():
            other = back[block][name]
            if isinstance(entry, Ragged):
                assert other.values.data_ptr() == entry.values.data_ptr()
            else:
                assert other.data_ptr() == entry.data_ptr()
                assert other.dtype == entry.dtype


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(2, 2)])
def test_sliced_record_batches(rows):
    frame = frames()
    batch = frame.to_arrow()
    part = batch.slice(rows.start, rows.stop - rows.start)
    assert TensorFrame.from_arrow(part).equals(frame.take(rows))


def test_arrow_survives_a_file(tmp_path):
    frame = frames()
    batch = frame.to_arrow()
    path = str(tmp_path / "frame.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(frame.take(slice(1, 3)).to_arrow())
    reader = pa.ipc.open_file(pa.memory_map(path))
    parts = [TensorFrame.from_arrow(reader.get_batch(i)) for i in range(2)]
    assert parts[0].equals(frame)
    assert parts[1].equals(frame.take(slice(1, 3)))


def test_arrow_empty_rows():
    frame = frames().take(slice(0, 0))
    assert TensorFrame.from_arrow(frame.to_arrow()).equals(frame)


@given(ragged(min_rows=1), st.data())
def test_row_hashes_follow_rows(entry, data):
    frame = TensorFrame({"b": {"lists": entry, "row": torch.arange(len(entry)) % 2}})
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(entry) - 1), min_size=1, max_size=8)))
    hashes = frame.row_hashes()
    assert hashes.dtype == np.int64
    np.testing.assert_array_equal(frame.take(rows).row_hashes(), hashes[rows.numpy()])


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=3)), min_size=1))
def test_row_hashes_tell_rows_apart(rows):
    lengths = [len(values) for _, values in rows]
    lists = Ragged(
        torch.tensor([value for _, values in rows for value in values], dtype=torch.int32),
        torch.tensor([0, *np.cumsum(lengths)]),
    )
    frame = TensorFrame({"b": {"code": torch.tensor([code for code, _ in rows]), "lists": lists}})
    distinct = {(code, *values) for code, values in rows}
    assert len(set(frame.row_hashes().tolist())) == len(distinct)


def test_row_hashes_depend_on_place():
    def hashes(*entries):
        names = "abc"[: len(entries)]
        return TensorFrame({"b": dict(zip(names, entries, strict=True))}).row_hashes().tolist()

    left, right = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    assert hashes(left) != hashes(right)
    assert hashes(left, right) != hashes(right, left)
    # The same values in lists of other lengths, columns and rows.
    flat = torch.tensor([1, 2])
    two = Ragged(flat, torch.tensor([0, 2, 2]), 2)
    one = Ragged(flat, torch.tensor([0, 1, 2]), 2)
    swapped = Ragged(flat, torch.tensor([0, 0, 2]), 2)
    assert len({*hashes(two), *hashes(one), *hashes(swapped)}) == 3
    many = TensorFrame({"b": {"n": torch.arange(100_000)}}).row_hashes()
    assert len(np.unique(many)) == 100_000


def test_to_device():
    frame = frames().to("cpu")
    assert frame.equals(frames())
