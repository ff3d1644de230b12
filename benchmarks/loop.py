"""Compare the time of a training epoch with a hand-written torch loop and with skorch's default.

All three train the same network (``NumericBlock(embedding="none")``, an ``MLP``, a ``BinaryHead``)
on made-up rows that are in memory already, with fused AdamW, shuffled batches and the same
autocast; gradient clipping and weight averaging are off.

- EasyTensor: ``train_network``, as the estimators call it, with its schedule of learning rates.
- torch: the plainest loop one would write, indexing the tensors with slices of ``randperm``.
- skorch: ``NeuralNet`` as it is, which collates single rows in a ``DataLoader``.

They take turns, so that a busy machine slows all of them alike. Reported are medians of seconds an
epoch and of the wall and CPU time of each loop over the torch loop's in the same turn.

    python benchmarks/loop.py
    python benchmarks/loop.py --batch-sizes 256 --repeats 15 --no-skorch
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from skorch import NeuralNet
from torch import nn
from torch.nn import functional
from turns import median_ratio, time_by_turns

from sk_easytensor.blocks import NumericBlock
from sk_easytensor.networks import MLP
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.heads import BinaryHead
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.net import supports_bfloat16
from sk_easytensor.training.train import TrainingSettings, train_network

RATE, DECAY = 1e-3, 1e-2
RAW = "torch"


def main():
    """Run the comparison and print a table for each batch size."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    table = made_up_table(options.rows, options.columns)
    size = f"{options.rows:,} rows x {options.columns} columns, MLP of width {options.width}"
    bfloat16 = "with" if supports_bfloat16("cpu") else "without"
    print(f"{size}, {options.threads} threads, {bfloat16} bfloat16, {options.repeats} turns")
    for batch_size in options.batch_sizes:
        contestants = [EasyTensor, RawTorch] + ([] if options.no_skorch else [Skorch])
        loops = {loop.name: loop(table, batch_size, options) for loop in contestants}
        print_comparison(batch_size, loops, options)


def parse_options():
    """Read the command line."""
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=100_000, help="rows of the table")
    add("--columns", type=int, default=40, help="float columns")
    add("--width", type=int, default=128, help="units of each of the two hidden layers")
    add("--batch-sizes", type=int, nargs="+", default=[256, 1024], help="rows a batch")
    add("--threads", type=int, default=1, help="threads torch may use")
    add("--epochs", type=int, default=2, help="epochs in each turn")
    add("--repeats", type=int, default=7, help="turns of each loop, after one that is not timed")
    add("--no-skorch", action="store_true", help="leave out the slowest loop")
    return parser.parse_args()


def made_up_table(n_rows, n_columns):
    """Return a matrix and a binary target that depends on it."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, n_columns))
    noisy = X @ rng.normal(size=n_columns) + rng.normal(size=n_rows)
    return X, torch.from_numpy(noisy > 0).float()


class Loop:
    """A network, its data and a way of training it for an epoch."""

    def __init__(self, table, batch_size, options):
        X, self.target = table
        self.batch_size = batch_size
        self.epochs = options.epochs
        block = NumericBlock(embedding="none").fit(X)
        self.values = block.transform(X)["values"]
        self.head = BinaryHead()
        torch.manual_seed(0)
        trunk = MLP(layers=2, width=options.width, dropout=0.0)
        self.network = make_network({"numeric": block}, trunk, self.head)


class EasyTensor(Loop):
    """The training of the estimators."""

    name = "EasyTensor"

    def train(self):
        """Train for some epochs."""
        frame = TensorFrame({"numeric": {"values": self.values}})
        rows = EncodedDataset(frame, self.target, torch.ones(len(self.target)))
        settings = TrainingSettings(
            learning_rate=RATE,
            batch_size=self.batch_size,
            max_epochs=self.epochs,
            optimizer=torch.optim.AdamW,
            weight_decay=DECAY,
            early_stopping_rounds=None,
            average_decay=0.0,
            gradient_clip=None,
        )
        train_network(self.network, self.head, rows, [], settings)


class RawTorch(Loop):
    """A loop as in torch's tutorials, with slices of tensors for batches."""

    name = RAW

    def train(self):
        """Train for some epochs."""
        settings = {"lr": RATE, "weight_decay": DECAY, "fused": True}
        optimizer = torch.optim.AdamW(self.network.parameters(), **settings)
        self.network.train()
        for _ in range(self.epochs):
            total = torch.zeros(())
            for rows in torch.randperm(len(self.target)).split(self.batch_size):
                optimizer.zero_grad()
                with autocast():
                    outputs = self.network({"numeric": {"values": self.values[rows]}})
                loss = log_loss(outputs, self.target[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach()


class Skorch(Loop):
    """skorch with its default loop and callbacks, of which only printing is off."""

    name = "skorch"

    def train(self):
        """Train for some epochs."""
        NeuralNet(
            OneInput(self.network),
            criterion=LogLoss,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=DECAY,
            optimizer__fused=True,
            lr=RATE,
            batch_size=self.batch_size,
            max_epochs=self.epochs,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        ).fit(self.values, self.target)


class OneInput(nn.Module):
    """The network as a function of one tensor."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, values):
        """Return the log-odds."""
        with autocast():
            return self.network({"numeric": {"values": values}})


class LogLoss(nn.Module):
    """The loss as a module, which is what skorch takes."""

    def forward(self, outputs, target):
        """Return the mean over rows."""
        return log_loss(outputs, target)


def log_loss(outputs, target):
    """Return the mean log loss of outputs of shape (n, 1, 1)."""
    return functional.binary_cross_entropy_with_logits(outputs.float()[:, 0, 0], target)


def autocast():
    """Return the context in which our training runs its network."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=supports_bfloat16("cpu"))


def print_comparison(batch_size, loops, options):
    """Time loops by turns; print seconds an epoch and the ratios to the torch loop."""
    functions = {name: loop.train for name, loop in loops.items()}
    wall, cpu = time_by_turns(functions, options.repeats)
    heading = f"batches of {batch_size}"
    print(f"\n{heading:20}{'s/epoch':>10}{'CPU s/epoch':>14}{'wall ratio':>12}{'CPU ratio':>12}")
    for name in loops:
        medians = [statistics.median(times[name]) / options.epochs for times in (wall, cpu)]
        seconds = f"{medians[0]:10.2f}{medians[1]:14.2f}"
        ratios = [median_ratio(times[name], times[RAW]) for times in (wall, cpu)]
        print(f"{name:20}{seconds}{ratios[0]:12.2f}{ratios[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
