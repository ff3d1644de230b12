"""Encoded rows that are too large for memory: shuffled windows, and files that leave nothing."""

import errno
import gc
import os
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest
import torch
from collected import materialize

from sk_easytensor.tensors import Ragged, TensorFrame
from sk_easytensor.training.dataset import EncodedDataset, n_bytes
from sk_easytensor.training.descriptions import describe_data
from sk_easytensor.training.file_dataset import MemoryMappedDataset, RecordFile

ROWS, PIECE = 2_000, 250


def encoded(numbers):
    """Rows with a number, a list of as many items as its last digit, a target and a weight."""
    lengths = numbers % 10
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = numbers.repeat_interleave(lengths)
    frame = {"n": {"value": numbers.float()[:, None], "items": Ragged(items, offsets)}}
    return EncodedDataset(TensorFrame(frame), numbers.double()[:, None], numbers.float() + 1)


def spill(memory, n_rows=ROWS, piece=PIECE):
    numbers = torch.arange(n_rows)
    return materialize((encoded(part) for part in numbers.split(piece)), memory)


def numbers_of(rows):
    return rows.frame["n"]["value"][:, 0].long()


def lengths_of(frame):
    return frame["n"]["items"].lengths


def test_each_row_is_read_once_in_each_epoch():
    rows = spill(memory=20_000)
    assert isinstance(rows, MemoryMappedDataset)
    for _ in range(3):
        batches = [numbers_of(batch) for batch in rows.batches(64, shuffle=True)]
        assert torch.equal(torch.cat(batches).sort()[0], torch.arange(ROWS))
        assert len(batches) == -(-ROWS // 64)
    unshuffled = torch.cat([numbers_of(batch) for batch in rows.batches(64)])
    assert torch.equal(unshuffled.sort()[0], torch.arange(ROWS))


def test_the_order_of_an_epoch_is_drawn_at_its_beginning():
    """Whatever steps draw in between, as dropout does, so that an epoch can be resumed."""
    rows = spill(memory=20_000)
    orders = []
    for n_drawn in (0, 3):
        torch.manual_seed(0)
        order = []
        for batch in rows.batches(32, shuffle=True, lengths=lengths_of):
            torch.rand(n_drawn)
            order.append(numbers_of(batch).tolist())
        orders.append(order)
    assert orders[0] == orders[1]


def test_targets_weights_and_lists_stay_with_their_rows():
    for batch in spill(memory=20_000).batches(100, shuffle=True):
        numbers = numbers_of(batch)
        assert torch.equal(batch.target[:, 0].long(), numbers)
        assert torch.equal(batch.weight.long(), numbers + 1)
        items = batch.frame["n"]["items"]
        assert torch.equal(items.lengths, numbers % 10)
        assert torch.equal(items.values, numbers.repeat_interleave(numbers % 10))


@pytest.mark.parametrize("memory", [5_000, 40_000, 150_000])
def test_windows_of_sorted_rows_represent_all_rows(memory):
    """Rows come in the order of their numbers, as from files that are sorted by label."""
    rows = spill(memory)
    means = [float(numbers_of(window).float().mean()) for window in rows.windows()]
    sizes = [len(window) for window in rows.windows()]
    assert len(means) > 1
    # The mean of random rows has this standard error; a single piece would be off by up to 875.
    error = ROWS / np.sqrt(12 * min(sizes))
    assert np.abs(np.array(means) - ROWS / 2).max() < 4 * error
    assert sum(sizes) == ROWS


def test_windows_differ_from_epoch_to_epoch():
    rows = spill(memory=100_000)
    torch.manual_seed(0)
    first, second = ({tuple(sorted(numbers_of(w).tolist())) for w in rows.windows()} for _ in "ab")
    assert not first & second
    torch.manual_seed(0)
    assert {tuple(sorted(numbers_of(w).tolist())) for w in rows.windows()} == first


def test_small_pieces_are_joined():
    rows = spill(memory=100_000, piece=3)
    assert len(list(rows.parts())) <= 12
    assert len(rows) == ROWS


def test_more_windows_than_rows_of_a_piece():
    rows = spill(memory=1, n_rows=7, piece=1)
    batches = [numbers_of(batch) for batch in rows.batches(2, shuffle=True)]
    assert torch.equal(torch.cat(batches).sort()[0], torch.arange(7))
    assert len(batches) == 4


def test_functions_are_applied_to_what_is_read():
    rows = spill(memory=20_000).map(lambda part: part.take(slice(None, None, 1)))
    doubled = rows.map(lambda part: EncodedDataset(part.frame, part.target * 2, part.weight))
    for batch in doubled.batches(100, shuffle=True):
        assert torch.equal(batch.target[:, 0].long(), 2 * numbers_of(batch))
    assert sum(float(part.target.sum()) for part in rows.parts()) == ROWS * (ROWS - 1) / 2


def test_a_killed_process_leaves_no_rows(tmp_path):
    code = (
        "import os, signal, sys, tempfile\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_rows_in_files import spill\n"
        "rows = spill(memory=20_000)\n"
        "next(iter(rows.windows()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode != 0
    assert os.listdir(tmp_path) == []


def test_checkpoints_know_the_rows_whatever_the_memory():
    """A fit resumes on a machine with less memory, where rows are cut into other pieces."""
    network = torch.nn.Linear(1, 1)

    def described(rows):
        return describe_data(network, rows, [])

    first, second = spill(memory=20_000), spill(memory=31_000, piece=77)
    assert len(list(first.parts())) != len(list(second.parts()))
    assert described(first) == described(second)
    assert described(first) != described(spill(memory=20_000, n_rows=ROWS - 1))
    numbers = torch.arange(ROWS)
    flipped = encoded(numbers)
    flipped.weight = flipped.weight.flip(0)
    parts = [flipped.take(part) for part in numbers.split(PIECE)]
    assert described(first) != described(materialize(parts, memory=20_000))


def test_memory_is_not_exceeded_where_rows_do_not_fit():
    sizes = []

    class Pieces:
        def __iter__(self):
            for part in torch.arange(20_000).split(500):
                yield encoded(part)

    original = MemoryMappedDataset.append

    def append(self, rows):
        sizes.append(n_bytes(rows))
        original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryMappedDataset, "append", append)
        assert len(materialize(Pieces(), memory=400_000)) == 20_000
    # Pieces of an eighth of the memory, but for the last row group of each.
    assert max(sizes) <= 400_000 / 8 + n_bytes(encoded(torch.arange(500)))
    assert len(sizes) > 8


def test_the_file_is_closed_with_the_rows():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = spill(memory=20_000)
        windows = [len(window) for window in rows.windows()]
        del rows
        gc.collect()
    assert sum(windows) == ROWS
    assert caught == []


def test_a_full_directory_is_named(monkeypatch):
    def full(self, batch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordFile, "write", full)
    with pytest.raises(OSError, match=r"TMPDIR.*memory_per_worker") as caught:
        spill(memory=1)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == tempfile.gettempdir()
