import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from sk_easytensor.backends import LocalBackend
from sk_easytensor.executor import ITEMS, ROW_MULTIPLE, batch_sizes
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.block_network import BlockNetwork
from sk_easytensor.tensors import Ragged, TensorFrame
from sk_easytensor.training.dataset import WINDOW, BatchIterator, EncodedDataset


def rows_of(lengths):
    """Return rows that hold their own number, in lists of some lengths."""
    lengths = torch.as_tensor(lengths)
    numbers = torch.arange(len(lengths))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    lists = Ragged(numbers.repeat_interleave(lengths), offsets)
    frame = TensorFrame({"b": {"lists": lists, "row": numbers[:, None]}})
    return EncodedDataset(frame, numbers, torch.ones(len(lengths)))


def skewed(n_rows=1000, longest=50):
    """Return lengths of which most are short."""
    return torch.from_numpy(1 + np.random.default_rng(0).geometric(0.2, n_rows).clip(max=longest))


def epoch(iterator, seed=0):
    torch.manual_seed(seed)
    return [batch.target for batch in iterator]


def padding(batches, lengths):
    """Return which fraction of padded batches is padding."""
    size = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    return 1 - float(lengths.sum()) / size


@pytest.mark.parametrize("n_rows", [1000, 999, 65, 33])
def test_every_row_comes_once_an_epoch(n_rows):
    lengths = skewed(n_rows)
    iterator = BatchIterator(rows_of(lengths), 32, shuffle=True, lengths=lengths)
    assert iterator.lengths is not None
    for seed in range(3):
        batches = epoch(iterator, seed)
        assert torch.cat(batches).sort().values.tolist() == list(range(n_rows))
        sizes = [len(rows) for rows in batches]
        assert len(batches) == len(iterator) == -(-n_rows // 32)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 32


def test_rows_keep_their_lists():
    lengths = skewed(100)
    for batch in BatchIterator(rows_of(lengths), 16, shuffle=True, lengths=lengths):
        lists = batch.frame["b"]["lists"]
        assert torch.equal(lists.lengths, lengths[batch.target])
        assert torch.equal(lists.values, batch.target.repeat_interleave(lists.lengths))


def test_rows_of_like_length_come_together():
    lengths = skewed()
    rows = rows_of(lengths)
    alike = padding(epoch(BatchIterator(rows, 32, shuffle=True, lengths=lengths)), lengths)
    random = padding(epoch(BatchIterator(rows, 32, shuffle=True)), lengths)
    assert random > 0.5
    assert alike < 0.25


def test_neighbours_differ_from_epoch_to_epoch():
    lengths = skewed()
    iterator = BatchIterator(rows_of(lengths), 32, shuffle=True, lengths=lengths)
    torch.manual_seed(0)
    together = [{frozenset(batch.target.tolist()) for batch in iterator} for _ in range(2)]
    assert not together[0] & together[1]


def test_short_lists_do_not_come_first():
    lengths = skewed(16 * WINDOW)
    batches = epoch(BatchIterator(rows_of(lengths), 16, shuffle=True, lengths=lengths))
    longest = [int(lengths[rows].max()) for rows in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_batches_are_a_function_of_the_seed():
    lengths = skewed()
    iterator = BatchIterator(rows_of(lengths), 32, shuffle=True, lengths=lengths)
    first, again, other = (epoch(iterator, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_windows_are_random():
    """Of many rows, only those of some batches are sorted."""
    lengths = torch.arange(64 * WINDOW) % 97
    batches = epoch(BatchIterator(rows_of(lengths), 16, shuffle=True, lengths=lengths))
    assert len(batches) == 4 * WINDOW
    spans = [int(lengths[rows].max() - lengths[rows].min()) for rows in batches]
    assert 0 < np.mean(spans) < 97 / 4
    # Sorted as a whole, a batch would hold one length or two.
    assert np.mean(spans) > 2


@pytest.mark.parametrize(
    "lengths",
    [
        None,
        torch.full((200,), 7),
        torch.zeros(200, dtype=torch.int64),
        torch.cat([torch.full((199,), 7), torch.tensor([8])]),
        torch.arange(200) % 3 + 18,
        torch.arange(200) % 2,
    ],
    ids=["none", "constant", "empty", "one longer", "alike", "empty or one"],
)
def test_with_little_padding_batches_stay_random(lengths):
    rows = rows_of(torch.ones(200, dtype=torch.int64) if lengths is None else lengths)
    found = epoch(BatchIterator(rows, 32, shuffle=True, lengths=lengths))
    plain = epoch(BatchIterator(rows, 32, shuffle=True))
    assert all(map(torch.equal, found, plain))


def test_without_shuffling_rows_stay_in_order():
    lengths = skewed(100)
    batches = epoch(BatchIterator(rows_of(lengths), 32, lengths=lengths))
    assert torch.cat(batches).tolist() == list(range(100))


def test_a_single_batch_is_all_rows():
    lengths = skewed(20)
    (batch,) = BatchIterator(rows_of(lengths), 32, shuffle=True, lengths=lengths)
    assert batch.target.tolist() == list(range(20))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 4096])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_results_come_in_the_order_of_rows(batch_size, with_lengths):
    lengths = skewed(150)
    frame = rows_of(lengths).frame
    seen = []

    def read(batch):
        seen.append(batch["b"]["lists"].lengths)
        return batch["b"]["row"] * 2

    found = LocalBackend().forward(read, frame, batch_size, lengths if with_lengths else None)
    assert found[:, 0].tolist() == list(range(0, 300, 2))
    assert all(len(batch) % ROW_MULTIPLE == 0 for batch in seen)
    if with_lengths:
        ends = [(int(batch.min()), int(batch.max())) for batch in seen]
        assert all(before[1] <= after[0] for before, after in pairwise(ends))


def test_forward_without_gradients():
    frame = rows_of(skewed(5)).frame
    weight = torch.ones(1, requires_grad=True)
    found = LocalBackend().forward(
        lambda batch: batch["b"]["row"] * weight, frame, lengths=skewed(5)
    )
    assert not found.requires_grad


@pytest.mark.parametrize("longest", [0, 1, 50, 3000, 50_000, 10 * ITEMS])
def test_batches_hold_few_items(longest):
    lengths = torch.linspace(0, longest, 10_000).long()
    sizes = batch_sizes(lengths, 4096)
    assert sum(sizes) == 10_000
    assert max(sizes) <= 4096
    for part in lengths.split(sizes):
        assert len(part) > 0
        assert len(part) * int(part.max()) <= ITEMS or len(part) <= ROW_MULTIPLE
    # Few batches, where the lists are short.
    assert longest > 50 or len(sizes) <= 6


def test_batches_of_few_long_lists():
    assert batch_sizes(torch.tensor([ITEMS * 2]), 4096) == [1]
    assert batch_sizes(torch.full((40,), ITEMS), 4096) == [ROW_MULTIPLE, 8]
    assert batch_sizes(torch.tensor([1, 2, 3]), 4096) == [3]
    assert batch_sizes(torch.zeros(10, dtype=torch.int64), 4) == [4, 4, 2]


def module(**attributes):
    made = BlockModule()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_padded_lengths_are_the_longest_of_padded_blocks():
    def lists(lengths, n_columns=1):
        offsets = torch.tensor([0, *np.cumsum(lengths)])
        return Ragged(torch.zeros(sum(lengths)), offsets, n_columns)

    frame = TensorFrame(
        {
            "events": {"a": lists([1, 0, 5]), "b": lists([1, 0, 5]), "dense": torch.zeros(3, 1)},
            "words": {"c": lists([0, 2, 0, 3, 1, 1], n_columns=2)},
            "text": {"d": lists([9, 9, 9])},
        }
    )
    network = BlockNetwork(
        {"events": module(padded=True), "words": module(padded=True), "text": module()},
        torch.nn.Identity(),
        torch.nn.Identity(),
        None,
    )
    assert network.padded_lengths(frame).tolist() == [2, 3, 5]
    network.blocks[0].padded = network.blocks[1].padded = False
    assert network.padded_lengths(frame) is None


def test_rows_survive_pickling():
    rows = pickle.loads(pickle.dumps(rows_of(skewed(30))))
    assert rows.frame.equals(rows_of(skewed(30)).frame)
    assert torch.equal(rows.target, torch.arange(30))
    assert b"torch" not in pickle.dumps(rows)
