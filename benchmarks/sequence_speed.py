"""How fast sequences are encoded and trained on.

Encoding is measured on made-up lists, on one thread, in million items a second, where a list column
has so many items in all. Reported are medians over turns.

A training epoch is compared with the plainest loop over the same network: dense batches, padded and
in memory before the clock starts, of the very rows that our batches have, with the same optimizer,
clipping and autocast. What the library adds is the choice of rows for each batch, reading their
lists out of the flat ones, padding them, and the bookkeeping of an epoch. Epochs are measured on
flights, by ``data_sets/sequences.py``; run by itself, this script measures the encoding::

    python benchmarks/sequence_speed.py
    python benchmarks/sequence_speed.py --items 1000000
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional
from turns import median_ratio, time_by_turns

from sk_easytensor import CategorySequenceBlock, EventSequenceBlock, NumericSequenceBlock
from sk_easytensor.compose import TableEncoder
from sk_easytensor.networks import BlockModule, TabM
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.heads import BinaryHead
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import BatchIterator, EncodedDataset
from sk_easytensor.training.net import supports_bfloat16
from sk_easytensor.training.train import TrainingSettings, default_batch_size, train_network

MEAN_LENGTH = 20
RAW, PLAIN, AVERAGED = "bare loop", "EasyTensor", "EasyTensor, weights averaged"
CLIP = 1.0


def main():
    """Measure the encoding and compare it with the target of 20 million items a second."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--items", type=int, default=10_000_000, help="items to encode")
    add("--repeats", type=int, default=3, help="turns of what is timed, after one that is not")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, rate in measure_encoding(options.items, options.repeats):
        print(f"{name:40}{rate:10.1f} million items a second, target 20")


# Encoding


def measure_encoding(n_items, repeats):
    """Print rates of fitting and encoding.

    Parameters
    ----------
    n_items : int
        Items of each list column.
    repeats : int
        Turns.

    Returns
    -------
    list of (str, float)
        Million items a second of the encodings that have a target.
    """
    cases = made_up_lists(n_items)
    encoders, fits, encodes = {}, {}, {}
    for name, (block, table, _) in cases.items():
        encoder = TableEncoder([("lists", block, table.column_names)], n_jobs=1)
        encoders[name] = encoder
        fits[name] = lambda encoder=encoder, table=table: encoder.fit(table)
        encodes[name] = lambda encoder=encoder, table=table: encoder.encode(table)
    rates = {}
    for step, functions in (("fit", fits), ("encode", encodes)):
        seconds = time_by_turns(functions, repeats)
        rates[step] = [
            {name: n_items / 1e6 / statistics.median(times) for name, times in kind.items()}
            for kind in seconds
        ]
    print(f"\nlists of {n_items:,} items, {MEAN_LENGTH} on average, million items/s on one thread")
    print(f"{'':44}{'fit':>10}{'CPU':>10}{'encode':>10}{'CPU':>10}")
    for name in cases:
        figures = [kind[name] for step in ("fit", "encode") for kind in rates[step]]
        print(f"{name:44}" + "".join(f"{figure:10.1f}" for figure in figures), flush=True)
    wall, _ = rates["encode"]
    return [(name, wall[name]) for name, (_, _, has_target) in cases.items() if has_target]


def made_up_lists(n_items, seed=0):
    """Return blocks with tables of lists, and whether there is a target for them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 2 * MEAN_LENGTH + 1, n_items // MEAN_LENGTH)
    offsets = np.minimum(np.append(0, np.cumsum(lengths)), n_items)
    offsets[-1] = n_items
    offsets = pa.array(offsets.astype(np.int32))

    def lists(items):
        return pa.ListArray.from_arrays(offsets, pa.array(items))

    def strings(size):
        names = pa.array([f"value {number:07d}" for number in rng.permutation(size)])
        return names.take(pa.array(zipf_ranks(rng, size, n_items)))

    few = strings(1000)
    times = 1_600_000_000_000_000 + rng.integers(0, 100_000_000, n_items).cumsum()
    events = {
        "kind": lists(few),
        "amount": lists(rng.lognormal(size=n_items)),
        "when": lists(pa.array(times).cast(pa.timestamp("us"))),
    }

    def category(items):
        return CategorySequenceBlock(), pa.table({"items": lists(items)}), True

    return {
        "CategorySequenceBlock, 1,000 strings": category(few),
        "CategorySequenceBlock, 100,000 strings": category(strings(100_000)),
        "CategorySequenceBlock, 100,000 integers": category(zipf_ranks(rng, 100_000, n_items)),
        "NumericSequenceBlock": (
            NumericSequenceBlock(),
            pa.table({"items": lists(rng.normal(size=n_items))}),
            True,
        ),
        "EventSequenceBlock, string, number and time": (
            EventSequenceBlock(),
            pa.table(events),
            False,
        ),
    }


def zipf_ranks(rng, size, number):
    """Return ranks below `size` whose frequencies fall as one over the rank."""
    return np.minimum((size + 1) ** rng.random(number), size).astype(np.int64) - 1


# An epoch


def measure_epoch(model, train, n_rows, repeats):
    """Print the time of an epoch beside that of a bare loop, and how much of batches is padding.

    Parameters
    ----------
    model : EasyTensorClassifier
        Whose blocks and settings are used; the block named ``history`` reads events.
    train : object
        With a table ``X`` and classes 0 and 1 ``y``.
    n_rows : int
        Rows of the epoch, at most.
    repeats : int
        Turns.

    Returns
    -------
    float
        Wall time over that of the bare loop, median of turns.
    """
    X, y = train.X[:n_rows], train.y[:n_rows]
    encoder = TableEncoder(model.blocks, n_jobs=1).fit(X)
    target = torch.from_numpy(y).float()
    rows = EncodedDataset(encoder.encode(X), target, torch.ones(len(target)))
    batch_size = default_batch_size(len(rows))
    lengths = ours(encoder).padded_lengths(rows.frame)

    iterator = BatchIterator(rows, batch_size, shuffle=True, lengths=lengths)
    contestants = {
        RAW: bare_loop(ours(encoder), [dense(batch) for batch in iterator], model),
        PLAIN: library_loop(ours(encoder), rows, batch_size, model, average_decay=0.0),
        AVERAGED: library_loop(ours(encoder), rows, batch_size, model),
    }
    wall, cpu = time_by_turns(contestants, repeats)
    bfloat16 = "with" if supports_bfloat16("cpu") else "without"
    print(f"\nan epoch of {len(rows):,} flights, batches of {batch_size}, {bfloat16} bfloat16")
    print(f"{'':32}{'s':>8}{'CPU s':>8}{'wall ratio':>12}{'CPU ratio':>12}")
    for name in contestants:
        medians = [statistics.median(times[name]) for times in (wall, cpu)]
        ratios = [median_ratio(times[name], times[RAW]) for times in (wall, cpu)]
        seconds = f"{medians[0]:8.2f}{medians[1]:8.2f}"
        print(f"{name:32}{seconds}{ratios[0]:12.2f}{ratios[1]:12.2f}", flush=True)
    print_padding(lengths, len(rows), batch_size)
    return median_ratio(wall[PLAIN], wall[RAW])


def ours(encoder):
    """Return a new network, with equal weights every time."""
    torch.manual_seed(0)
    return make_network(encoder.blocks_, TabM(), BinaryHead())


def library_loop(network, rows, batch_size, model, **settings):
    """Return a function that trains for an epoch as the estimators do."""
    settings = TrainingSettings(
        learning_rate=model.learning_rate,
        batch_size=batch_size,
        max_epochs=1,
        optimizer=torch.optim.AdamW,
        weight_decay=model.weight_decay,
        early_stopping_rounds=None,
        gradient_clip=CLIP,
        **settings,
    )
    return lambda: train_network(network, BinaryHead(), rows, [], settings)


def bare_loop(network, batches, model):
    """Return a function that trains for an epoch on batches that are dense and in memory."""
    history = network.names.index("history")
    network.blocks[history] = DenseEvents(network.blocks[history])
    parameters = list(network.parameters())

    def train():
        rates = {"lr": model.learning_rate, "weight_decay": model.weight_decay}
        optimizer = torch.optim.AdamW(parameters, fused=True, **rates)
        network.train()
        total = torch.zeros(())
        for index in torch.randperm(len(batches)).tolist():
            frame, target = batches[index]
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=supports_bfloat16("cpu")):
                outputs = network(frame)
            # Members of the ensemble each have a loss.
            targets = target[:, None].expand(outputs.shape[:2])
            loss = functional.binary_cross_entropy_with_logits(outputs.float()[..., 0], targets)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            total += loss.detach()

    return train


def dense(batch):
    """Return a batch as tensors without any list: the events padded, and how many there are."""
    frame = {name: batch.frame[name] for name in batch.frame}
    lists = frame["history"]
    kinds = {
        kind: torch.stack(
            [entry.to_padded() for name, entry in lists.items() if name.startswith(kind)], dim=2
        )
        for kind in ("codes", "values")
    }
    frame["history"] = {**kinds, "lengths": next(iter(lists.values())).lengths}
    return frame, batch.target


class DenseEvents(BlockModule):
    """The network of an :class:`EventSequenceBlock` for events that are padded already."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.out_features = module.out_features

    def forward(self, codes, values, lengths):
        """Return a vector for each row of (n_rows, longest, fields)."""
        embedded = [
            self.module.codes(codes.flatten(0, 1)),
            self.module.values(values.flatten(0, 1)),
        ]
        items = torch.cat(embedded, dim=1).unflatten(0, codes.shape[:2])
        return self.module.encoder.read(items, lengths)


# Padding


def print_padding(flights, n_rows, batch_size):
    """Print which part of batches is padding, for flights and for lists with a long tail."""
    rng = np.random.default_rng(0)
    tail = rng.lognormal(3, 1.2, n_rows).round().clip(1, 1000)
    print(f"\n{'padding of batches':32}{'mean':>8}{'longest':>9}{'random':>9}{'ours':>8}")
    for name, lengths in {
        "flights of an aircraft": flights,
        "made up, log-normal": torch.from_numpy(tail.astype(np.int64)),
    }.items():
        shares = [padding(lengths, batch_size, given) for given in (None, lengths)]
        about = f"{lengths.float().mean():8.1f}{int(lengths.max()):9}"
        print(f"{name:32}{about}{shares[0]:9.1%}{shares[1]:8.1%}", flush=True)


def padding(lengths, batch_size, given):
    """Return which part of an epoch's batches is padding, for batches of like length or not."""
    frame = TensorFrame({"lists": {"length": lengths[:, None]}})
    rows = EncodedDataset(frame, lengths, torch.ones(len(lengths)))
    total = sum(
        len(batch) * int(batch.target.max())
        for batch in BatchIterator(rows, batch_size, shuffle=True, lengths=given)
    )
    return 1 - int(lengths.sum()) / total


if __name__ == "__main__":
    main()
