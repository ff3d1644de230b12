"""Workers that leave: the others notice, whatever they wait for; and what they fit together."""

from datetime import timedelta
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from sk_easytensor import EasyTensorClassifier, NumericBlock, TextBlock
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.distributed import (
    LostWorkerError,
    ProcessGroup,
    SharedCheckpoints,
    SingleProcess,
)
from sk_easytensor.training.ridge import fit_linear
from sk_easytensor.training.train import TrainingSettings

N_WORKERS = 3
WAITING = {
    "gradients": lambda group: group.average_gradients([torch.nn.Parameter(torch.ones(3))], 1),
    "sum": lambda group: group.sum([1.0]),
    "gather": lambda group: group.gather("here"),
    "broadcast": lambda group: [group.broadcast_from_rank0(lambda: 1) for _ in range(3)],
}


def join(path, rank, n_workers):
    """Make this process one of several workers that meet in a file."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=n_workers,
        timeout=timedelta(seconds=30),
    )


def work(rank, where):
    for what, wait in WAITING.items():
        # The last leaves, or where the first has the word the first.
        leaving = 0 if what == "broadcast" else N_WORKERS - 1
        join(f"{where}/{what}", rank, N_WORKERS)
        # As training does, by and by: what it imports keeps the default group for ever.
        import_module("torch.distributed.nn.functional")
        group = ProcessGroup()
        assert group.gather(rank) == [0, 1, 2]
        if rank == leaving:
            assert group.leave()
        else:
            # At once, not when the time is up.
            with pytest.raises(LostWorkerError, match=r"respond: .*onnection (closed|reset)"):
                wait(group)
            # Those that wait for this one notice, too.
            assert group.leave()
        distributed.destroy_process_group()


def test_others_notice_that_a_worker_leaves(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=N_WORKERS)


def fit_linear_models(rank, where):
    """Fit the linear model of texts and numbers, by workers that each have a part of the rows."""
    network, head, encode, settings = linear_case()
    parts = [encode(slice(worker, None, N_LINEAR)) for worker in range(N_LINEAR)]
    rows = encode(slice(None))
    expected, _ = fit_linear(network, head, rows, None, rows, settings)
    join(f"{where}/linear", rank, N_LINEAR)
    settings.group = ProcessGroup()
    for held_out, deciding in ((None, parts[rank]), (parts[rank], parts[rank])):
        found, final = fit_linear(network, head, parts[rank], held_out, deciding, settings)
        assert found.names == ["text", "number"]
        assert (held_out is None) == (
            found is final or final.weight("text").equal(found.weight("text"))
        )
        for name in found.names:
            torch.testing.assert_close(found.weight(name), expected.weight(name), rtol=0, atol=0.02)
    distributed.destroy_process_group()


N_LINEAR = 2


def linear_case():
    """Return a network, its head, a function that encodes rows, and settings."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    words = [" ".join(rng.choice(["red", "blue", "old", "new", f"kind{k}"], 6)) for k in y]
    X = pd.DataFrame({"text": words, "number": rng.normal(size=80)})
    blocks = [
        ("text", TextBlock(min_frequency=1), ["text"]),
        ("number", NumericBlock(), ["number"]),
    ]
    quick = {"max_epochs": 1, "trees": None, "n_folds": None, "random_state": 0}
    model = EasyTensorClassifier(blocks, **quick).fit(X, y)

    def encode(rows):
        frame = model._encoder.encode(X[rows])
        target = torch.from_numpy(y[rows].astype(np.float32))
        return EncodedDataset(frame, target, torch.ones(len(target)))

    settings = TrainingSettings(1e-3, 32, 1, torch.optim.AdamW, 0.0, None, linear=True)
    return model.network_, model._head, encode, settings


def test_workers_fit_the_linear_model_of_all_rows(tmp_path):
    multiprocessing.spawn(fit_linear_models, (str(tmp_path),), nprocs=N_LINEAR)


class SavedState:
    """Checkpoints with a state, written by some workers after two epochs."""

    def __init__(self, **state):
        none = {"random_cuda": None, "position": None, "workers": []}
        self.state = {"history": [{}, {}], "random": torch.zeros(1), **none, **state}
        self.before = {**self.state, "history": [{}], "position": None}

    def latest(self, complete=False):
        return dict(self.before if complete else self.state)


def state_of_this_worker(**state):
    torch.manual_seed(7)
    return SharedCheckpoints(SavedState(**state), SingleProcess(), dict).latest()


def random_state_of_this_worker(**state):
    return state_of_this_worker(**state)["random"]


def test_other_numbers_of_workers_draw_numbers_of_their_own():
    """A state of one worker has no random states of several, or of as many as there are now."""
    known = torch.get_rng_state()
    worker = {"random": known, "random_cuda": None, "position": None}
    assert torch.equal(random_state_of_this_worker(workers=[worker]), known)
    two = random_state_of_this_worker(workers=[worker] * 2)
    none = random_state_of_this_worker()
    assert not torch.equal(two, known)
    assert torch.equal(two, none)
    # Later epochs are drawn in another way, and so are those of other workers.
    assert not torch.equal(two, random_state_of_this_worker(history=[{}] * 3))
    torch.manual_seed(7)
    assert not torch.equal(two, torch.get_rng_state())


def test_other_numbers_of_workers_begin_an_epoch_again():
    """The steps that are left of an epoch are those of the workers that began it."""
    worker = {"random": torch.get_rng_state(), "random_cuda": None, "position": {"steps": 3}}
    one = state_of_this_worker(position={"steps": 2}, workers=[worker])
    assert one["position"] == {"steps": 3}
    assert len(one["history"]) == 2
    two = state_of_this_worker(position={"steps": 2}, workers=[worker] * 2)
    assert two["position"] is None
    assert len(two["history"]) == 1
