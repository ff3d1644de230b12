"""Large embedding tables: sparse gradients, row-wise Adam, several workers, checkpoints."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from skorch.callbacks import Callback, GradientNormClipping

from sk_easytensor import CategoryBlock, EasyTensorClassifier, EasyTensorTwoTower
from sk_easytensor.blocks import category
from sk_easytensor.blocks.category import CategoryModule
from sk_easytensor.training import row_updates
from sk_easytensor.training.distributed import ProcessGroup
from sk_easytensor.training.net import WeightAverage, clip_gradients
from sk_easytensor.training.row_updates import RowUpdates

N_CODES, WIDTH = 12, 4


@pytest.fixture
def all_large(monkeypatch):
    """Treat all tables as large."""
    monkeypatch.setattr(category, "LARGE_TABLE", 1)
    monkeypatch.setattr(category, "MAX_SCALED_ROWS", 0)


def make_module(n_codes=N_CODES, seed=0):
    torch.manual_seed(seed)
    ones, zeros = [np.ones(n_codes, np.float32)], [np.zeros(n_codes, np.float32)]
    return CategoryModule([WIDTH], ones, 0.0, zeros).train()


def train(module, batches, rate=0.1, weight_decay=0.0):
    """Take a step for each batch of codes; return the gradients of the table as dense tensors."""
    updates = RowUpdates(module, enabled=True)
    made = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay)
    updates.register(made)
    gradients = []
    for codes in batches:
        made.zero_grad()
        loss = (module(codes) * torch.arange(1.0, 1 + WIDTH)).square().sum()
        loss.backward()
        updates.coalesce()
        gradients.append(module.tables[0].grad.to_dense())
        made.step()
    updates.end_epoch()
    return gradients, made


def draw(n_steps, n_codes=N_CODES, size=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n_codes, (n_steps, size, 1), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("limit", [1e6, 1.004])
def test_steps_are_those_of_row_wise_adam(limit, all_large, monkeypatch):
    # With a low limit, the stored moments are scaled back every few steps.
    monkeypatch.setattr(row_updates, "LARGEST_SCALE", limit)
    module = make_module()
    table = module.tables[0].detach().clone()
    gradients, _ = train(module, draw(30))
    moments = torch.zeros(N_CODES)
    for step, gradient in enumerate(gradients, start=1):
        moments = 0.999 * moments + 0.001 * gradient.square().mean(1)
        corrected = moments / (1 - 0.999**step)
        table -= 0.1 * gradient / (corrected.sqrt()[:, None] + 1e-8)
    torch.testing.assert_close(module.tables[0].detach(), table, rtol=1e-4, atol=1e-5)


def test_rows_that_no_batch_contains_do_not_change(all_large):
    module = make_module()
    before = module.tables[0].detach().clone()
    train(module, draw(5, n_codes=3))
    changed = (module.tables[0] != before).any(1)
    assert changed.tolist() == [True] * 3 + [False] * (N_CODES - 3)


def test_the_state_is_one_number_a_row(all_large):
    module = make_module()
    _, optimizer = train(module, draw(2))
    state = optimizer.state[module.tables[0]]
    assert sum(value.numel() for value in state.values()) == N_CODES + 2
    # The state can be stored and loaded as that of any optimizer.
    copy = torch.optim.AdamW(module.parameters(), lr=0.1)
    copy.load_state_dict(optimizer.state_dict())
    assert torch.equal(copy.state[module.tables[0]]["row_moments"], state["row_moments"])


def test_weight_decay_of_all_steps_is_applied_at_the_end_of_an_epoch(all_large):
    module = make_module()
    before = module.tables[0].detach().clone()
    train(module, draw(6, n_codes=1), rate=0.1, weight_decay=0.5)
    expected = before[1:] * (1 - 0.1 * 0.5) ** 6
    torch.testing.assert_close(module.tables[0].detach()[1:], expected)


def test_weight_decay_of_long_epochs_is_not_applied_at_once(all_large):
    """Tables are at most a tenth larger than with a decay in each step, at any step of an epoch."""
    module = make_module()
    before = module.tables[0].detach().clone()
    sizes = []

    class Recording(torch.optim.AdamW):
        def step(self):
            super().step()
            sizes.append(float((module.tables[0].detach()[1:] / before[1:]).mean()))

    updates = RowUpdates(module, enabled=True)
    optimizer = Recording(module.parameters(), lr=0.1, weight_decay=0.2)
    updates.register(optimizer)
    for codes in draw(100, n_codes=1):
        optimizer.zero_grad()
        module(codes).square().sum().backward()
        updates.coalesce()
        optimizer.step()
    expected = 0.98 ** np.arange(1, 101)
    assert (np.array(sizes) / expected).max() < 1.12
    updates.end_epoch()
    torch.testing.assert_close(module.tables[0].detach()[1:], before[1:] * 0.98**100)


def test_tables_that_a_batch_does_not_read(all_large):
    module = make_module()
    updates = RowUpdates(module, enabled=True)
    before = module.tables[0].detach().clone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.0)
    updates.register(optimizer)
    updates.coalesce()
    assert module.tables[0].grad.is_sparse
    optimizer.step()
    assert torch.equal(module.tables[0], before)
    # A callback may have the modules evaluated with dense gradients, as custom modules may.
    module.sparse = False
    module(draw(1)[0]).square().sum().backward()
    updates.coalesce()
    assert module.tables[0].grad.is_sparse
    optimizer.step()
    assert not torch.equal(module.tables[0], before)


def test_sparse_gradients_are_those_of_dense_tables(all_large):
    results = []
    for sparse in (False, True):
        module = make_module()
        updates = RowUpdates(module, enabled=sparse)
        module(draw(1, size=20)[0]).square().sum().backward()
        updates.coalesce()
        clip_gradients(list(module.parameters()), 0.1)
        gradient = module.tables[0].grad
        assert gradient.is_sparse is sparse
        results.append(gradient.to_dense())
    torch.testing.assert_close(*results)


def test_small_tables_have_dense_gradients():
    module = make_module()
    assert RowUpdates(module, enabled=True).tables == []
    assert module.large_tables() == []
    module = make_module(n_codes=category.LARGE_TABLE // WIDTH)
    assert RowUpdates(module, enabled=True).tables == list(module.tables)


def test_large_tables_are_not_averaged(all_large):
    module = make_module()
    average = WeightAverage(module, 0.9, module.large_tables())
    assert [parameter.shape for parameter in average.parameters] == [module.common[0].shape]


class Kinds(Callback):
    """Record whether tables are updated by row, and their values after each step."""

    def __init__(self):
        self.by_row, self.tables = [], []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.by_row.append(bool(net.row_updates.tables))
            self.tables.append(net.module_.blocks[0].tables[0].detach().clone())


def fit_ids(callbacks=(), **params):
    random = np.random.default_rng(0)
    ids = random.integers(60, size=600)
    y = np.where(random.random(600) < 0.9, ids % 2, 1 - ids % 2)
    model = EasyTensorClassifier(
        blocks=[("id", CategoryBlock(width=8, rarity=0), ["id"])],
        trees=None,
        n_folds=None,
        max_epochs=8,
        random_state=0,
        callbacks=list(callbacks),
        **params,
    )
    X = {"id": ids.astype(str)}
    return model.fit(X, y), model.predict_proba(X)[:, 1], ids


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_fit_learns_large_tables(optimizer, all_large):
    kinds = Kinds()
    model, predictions, ids = fit_ids([kinds], optimizer=optimizer)
    assert all(kinds.by_row)
    assert any(not torch.equal(first, second) for first, second in pairwise(kinds.tables))
    assert ((predictions > 0.5) == ids % 2).mean() == 1
    _, again, _ = fit_ids(optimizer=optimizer)
    assert (predictions == again).all()
    assert not model.network_.training


@pytest.mark.parametrize(
    "params",
    [
        {"optimizer": "sgd"},
        {"optimizer": torch.optim.NAdam},
        {"callbacks": [GradientNormClipping(1.0)]},
    ],
    ids=["sgd", "class", "callback"],
)
def test_tables_are_dense_for_other_optimizers_and_callbacks_that_read_gradients(params, all_large):
    kinds = Kinds()
    fit_ids([kinds, *params.pop("callbacks", [])], **params)
    assert not any(kinds.by_row)


def test_a_fit_resumes_with_large_tables(all_large, tmp_path):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise RuntimeError("stopped here")

    _, expected, _ = fit_ids()
    with pytest.raises(RuntimeError, match="stopped here"):
        fit_ids([Interrupt()], checkpoint_dir=str(tmp_path))
    _, resumed, _ = fit_ids(checkpoint_dir=str(tmp_path))
    assert (resumed == expected).all()


def test_partial_fit_continues_with_tables_updated_by_row_or_not(all_large):
    model, _, ids = fit_ids(warm_start=True)
    X, y = {"id": ids.astype(str)}, ids % 2
    assert "row_moments" in repr(model._optimizer_state)
    # A callback that reads gradients gets dense ones, of the same table.
    for readers, by_row in (([GradientNormClipping(1.0)], False), ([], True)):
        kinds = Kinds()
        model.set_params(callbacks=[kinds, *readers]).partial_fit(X, y)
        assert set(kinds.by_row) == {by_row}
    assert not model.network_.blocks[0].sparse


def test_two_towers_have_large_tables(all_large):
    kinds = []

    class ByRow(Callback):
        def on_batch_end(self, net, **kwargs):
            kinds.append(len(net.row_updates.tables))

    random = np.random.default_rng(0)
    X = {"user": random.integers(30, size=400), "item": random.integers(20, size=400)}
    X["item"] = np.where(random.random(400) < 0.9, X["user"] % 20, X["item"])
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(width=8), "user")],
        [("item", CategoryBlock(width=8), "item")],
        max_epochs=100,
        learning_rate=1e-2,
        validation_fraction=None,
        random_state=0,
        callbacks=[ByRow()],
    ).fit(X, user_key="user", item_key="item")
    assert set(kinds) == {2}
    found, _ = model.recommend({"user": np.arange(20)}, k=1)
    assert (found[:, 0] == np.arange(20)).mean() > 0.7


def work(rank, where, n_workers):
    category.LARGE_TABLE, category.MAX_SCALED_ROWS = 1, 0
    distributed.init_process_group(
        "gloo", init_method=f"file://{where}/group", rank=rank, world_size=n_workers
    )
    module = make_module()
    updates = RowUpdates(module, enabled=True)
    codes = draw(1, size=9)[0]
    # Shards of different numbers of rows.
    shard = codes[:2] if rank == 0 else codes[2:]
    module(shard).square().sum(1).mean().backward()
    updates.coalesce()
    ProcessGroup().average_gradients(list(module.parameters()), len(shard))
    torch.save([p.grad for p in module.parameters()], f"{where}/{rank}.pt")
    distributed.destroy_process_group()


def test_workers_average_the_rows_of_their_batches(all_large, tmp_path):
    multiprocessing.spawn(work, (str(tmp_path), 2), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    module = make_module()
    module(draw(1, size=9)[0]).square().sum(1).mean().backward()
    for one, other, parameter in zip(first, second, module.parameters(), strict=True):
        assert one.is_sparse == (parameter is module.tables[0])
        dense, other_dense = (g.to_dense() if g.is_sparse else g for g in (one, other))
        assert torch.equal(dense, other_dense)
        torch.testing.assert_close(dense, parameter.grad)
