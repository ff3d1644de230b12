"""CPU time and memory of a training step with large embedding tables.

``columns``: a classifier of one column of categories, whose table has more and more rows. Beside it
stands the same fit with dense gradients, as optimizers have them that cannot be updated by row.
``towers``: two towers of identifiers, and the plainest torch loop with the same loss: embeddings
with sparse gradients, ``SparseAdam``, in-batch softmax with the correction of popular items.
``workers``: one process, and two that average their gradients as workers on Ray do.

Reported are CPU milliseconds a step (wall time of workers), and numbers of the optimizer's state a
row of the table.

    python benchmarks/large_tables.py
    python benchmarks/large_tables.py --parts towers --users 10000000 --items 1000000 --no-torch
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from skorch.callbacks import Callback
from torch import nn

from sk_easytensor import CategoryBlock, EasyTensorClassifier, EasyTensorTwoTower
from sk_easytensor.blocks import category
from sk_easytensor.blocks.category import CategoryModule
from sk_easytensor.training.distributed import ProcessGroup, SingleProcess
from sk_easytensor.training.net import clip_gradients
from sk_easytensor.training.row_updates import RowUpdates

PARTS = ["columns", "towers", "workers"]
N_WARM_UP = 5


class Enough(Exception):
    """Raised to end a fit after the steps that are timed."""


class StepTimer(Callback):
    """Measure the CPU time of steps, and end the fit after them."""

    def __init__(self, n_steps):
        self.n_steps = n_steps
        self.steps, self.begun = [], None

    def on_batch_end(self, net, training=False, **kwargs):
        """Record the time since the end of the step before."""
        now = time.process_time()
        if self.begun is not None:
            self.steps.append(now - self.begun)
        self.begun = now
        self.state = sum(
            value.numel() for state in net.optimizer_.state.values() for value in state.values()
        )
        self.n_parameters = sum(parameter.numel() for parameter in net.module_.parameters())
        if len(self.steps) == self.n_steps + N_WARM_UP:
            raise Enough

    @property
    def milliseconds(self):
        """Mean of the steps after the first few, some of which apply weight decay to all rows."""
        return 1e3 * statistics.mean(self.steps[N_WARM_UP:])


def main():
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    add("--categories", nargs="+", type=int, default=[10_000, 1_000_000, 10_000_000])
    add("--dense", type=int, default=1_000_000, help="most categories with dense gradients too")
    add("--users", type=int, default=200_000, help="users of the two towers")
    add("--items", type=int, default=100_000, help="items of the two towers")
    add("--batch-size", type=int, default=4096, help="pairs of a step")
    add("--steps", type=int, default=60, help="steps that are timed")
    add("--repeats", type=int, default=3, help="turns of the two towers")
    add("--no-torch", action="store_true", help="leave out the torch loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        {"columns": compare_columns, "towers": compare_towers, "workers": compare_workers}[part](
            options
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of all of it {peak:.1f} GB")


def compare_columns(options):
    """Print the time of a step for each number of categories."""
    print(f"{'categories':>12}{'by row, ms':>12}{'dense, ms':>12}{'state a row':>13}")
    for n_categories in options.categories:
        timer = time_column(n_categories, options, 1)
        dense = "-"
        if n_categories <= options.dense:
            dense = f"{time_column(n_categories, options, 2**62).milliseconds:.2f}"
        state = f"{timer.state / n_categories:.2f}"
        print(f"{n_categories:12,}{timer.milliseconds:12.2f}{dense:>12}{state:>13}", flush=True)


def time_column(n_categories, options, large):
    """Fit a classifier of a column of categories; return the timer of its steps."""
    random = np.random.default_rng(0)
    # Each category occurs, so that the table has as many rows.
    ids = np.concatenate([np.arange(n_categories), random.integers(n_categories, size=200_000)])
    block = CategoryBlock(width=16, max_categories=n_categories)
    timer = StepTimer(options.steps)
    model = EasyTensorClassifier(
        [("id", block, ["id"])],
        trees=None,
        batch_size=1024,
        n_folds=None,
        validation_fraction=None,
        random_state=0,
        callbacks=[timer],
    )
    before, category.LARGE_TABLE = category.LARGE_TABLE, large
    try:
        model.fit(pa.table({"id": pa.array(ids)}), ids % 2)
    except Enough:
        pass
    finally:
        category.LARGE_TABLE = before
    return timer


def compare_towers(options):
    """Print the time of a step of two towers and of a torch loop, which take turns."""
    random = np.random.default_rng(0)
    n_pairs = max(2 * options.users, options.batch_size * (options.steps + N_WARM_UP + 1))
    users = random.integers(options.users, size=n_pairs)
    items = (random.random(n_pairs) ** 2 * options.items).astype(np.int64)
    own, peers = [], []
    for _ in range(1 if options.no_torch else options.repeats):
        own.append(time_towers(users, items, options))
        if not options.no_torch:
            peers.append(time_torch(users, items, options))
    size = f"{options.users:,} users, {options.items:,} items, batches of {options.batch_size:,}"
    print(f"{size}: two towers {statistics.median(own):.0f} ms a step")
    if peers:
        ratio = statistics.median(a / b for a, b in zip(own, peers, strict=True))
        print(f"torch loop {statistics.median(peers):.0f} ms a step, ratio {ratio:.2f}")


def time_towers(users, items, options):
    """Return milliseconds a step of two towers with tables of 64 columns."""
    timer = StepTimer(options.steps)
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(width=64, max_categories=options.users), "user")],
        [("item", CategoryBlock(width=64, max_categories=options.items), "item")],
        batch_size=options.batch_size,
        eval_metric=None,
        random_state=0,
        callbacks=[timer],
    )
    pairs = pa.table({"user": pa.array(users), "item": pa.array(items)})
    begin = time.perf_counter()
    with suppress(Enough):
        model.fit(pairs, user_key="user", item_key="item")
    spent = sum(timer.steps)
    state = timer.state / timer.n_parameters
    before = time.perf_counter() - begin - spent
    print(f"  {before:.0f} s before training, {state:.2f} numbers of state a parameter", flush=True)
    return timer.milliseconds


def time_torch(users, items, options):
    """Return milliseconds a step of a plain torch loop."""
    user_table = nn.Embedding(options.users, 64, sparse=True)
    item_table = nn.Embedding(options.items, 64, sparse=True)
    tables = [*user_table.parameters(), *item_table.parameters()]
    optimizer = torch.optim.SparseAdam(tables, lr=1e-3)
    users, items = torch.from_numpy(users), torch.from_numpy(items)
    log_probability = (items.bincount(minlength=options.items) / len(items)).clamp(1e-9).log()
    steps = []
    for rows in torch.randperm(len(users)).split(options.batch_size):
        begin = time.process_time()
        batch_items = items[rows]
        logits = user_table(users[rows]) @ item_table(batch_items).T
        logits = logits - log_probability[batch_items]
        # Other pairs of the same item are no negatives.
        same = batch_items[:, None] == batch_items[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        loss = nn.functional.cross_entropy(logits, torch.arange(len(rows)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append(time.process_time() - begin)
        if len(steps) == options.steps + N_WARM_UP:
            break
    return 1e3 * statistics.median(steps[N_WARM_UP:])


def compare_workers(options):
    """Print the wall time of a step of one worker and of two that share a batch."""
    for by_row in (True, False):
        walls = {}
        for n_workers in (1, 2):
            with tempfile.TemporaryDirectory() as directory:
                args = (n_workers, directory, by_row, options)
                multiprocessing.spawn(work, args, nprocs=n_workers)
                walls[n_workers] = float((Path(directory) / "wall").read_text())
        kind = "by row" if by_row else "dense"
        print(
            f"a million categories, {kind}: one worker {walls[1]:.0f} ms a step, two "
            f"{walls[2]:.0f} ms",
            flush=True,
        )


def work(rank, n_workers, directory, by_row, options):
    """Train a network with a table of a million rows; the first worker writes the time of a step.

    Gradients are averaged in between as the training loop does.
    """
    torch.set_num_threads(1)
    store = f"file://{directory}/group"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=n_workers)
    group = ProcessGroup() if n_workers > 1 else SingleProcess()
    torch.manual_seed(0)
    n_rows = 1_000_000
    table = CategoryModule([32], [np.ones(n_rows, "f4")], 0.0, [np.zeros(n_rows, "f4")])
    network = nn.ModuleList(
        [table, nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))]
    )
    parameters = list(network.train().parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True)
    updates = RowUpdates(network, enabled=by_row)
    updates.register(optimizer)
    size, steps = options.batch_size // n_workers, []
    for _ in range(N_WARM_UP + 20):
        begin = time.perf_counter()
        codes = torch.randint(n_rows, (size, 1), dtype=torch.int32)
        optimizer.zero_grad()
        network[1](table(codes)).square().mean().backward()
        updates.coalesce()
        group.average_gradients(parameters, size)
        clip_gradients(parameters, 1.0)
        optimizer.step()
        steps.append(time.perf_counter() - begin)
    if rank == 0:
        wall = 1e3 * statistics.median(steps[N_WARM_UP:])
        (Path(directory) / "wall").write_text(str(wall))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
