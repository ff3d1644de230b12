"""Workers that leave: the others notice, whatever they wait for."""

from datetime import timedelta
from importlib import import_module

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from sk_easytensor.training.distributed import LostWorkerError, ProcessGroup

N_WORKERS = 3
WAITING = {
    "gradients": lambda group: group.average_gradients([torch.nn.Parameter(torch.ones(3))], 1),
    "sum": lambda group: group.sum([1.0]),
    "gather": lambda group: group.gather("here"),
    "broadcast": lambda group: [group.broadcast_from_rank0(lambda: 1) for _ in range(3)],
}


def work(rank, where):
    for what, wait in WAITING.items():
        # The last leaves, or where the first has the word the first.
        leaving = 0 if what == "broadcast" else N_WORKERS - 1
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{where}/{what}",
            rank=rank,
            world_size=N_WORKERS,
            timeout=timedelta(seconds=30),
        )
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
