"""Workers that train one network together: what they tell each other."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.distributed as distributed

__all__ = [
    "LostWorkerError",
    "ProcessGroup",
    "SharedCheckpoints",
    "SingleProcess",
]


class LostWorkerError(RuntimeError):
    """Another worker did not answer: it died, or it gave up."""


class SingleProcess:
    """A worker that trains on its own."""

    rank = 0
    size = 1

    def steps(self, n_rows, batch_size):
        """Return how many batches an epoch has."""
        return -(-n_rows // batch_size)

    def average_gradients(self, parameters, n_rows):
        """Replace the gradients by their mean over all workers' rows of this step."""

    def sum(self, values):
        """Return each number's sum over all workers."""
        return values

    def gather(self, value):
        """Return the values of all workers, in the order of their ranks."""
        return [value]

    def broadcast_from_rank0(self, make):
        """Return what a function gives on the first worker."""
        return make()


class ProcessGroup:
    """One of several workers, joined by ``torch.distributed``.

    Every worker calls the same methods in the same order.

    Parameters
    ----------
    device : str, default="cpu"
        Where tensors have to be for the workers to exchange them: the GPU with NCCL.

    Attributes
    ----------
    rank, size : int
        Which worker this is, and how many there are.
    """

    def __init__(self, device="cpu"):
        # The default one cannot be left: functions of torch keep it in their default arguments.
        self._group = distributed.new_group()
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self.device = device

    def leave(self):
        """Have the others' exchanges fail, now and later, and tell whether that is possible."""
        if distributed.get_backend(self._group) != "gloo":
            # With NCCL, others would wait for a worker that has gone until their time is up.
            return False
        group, self._group = self._group, None
        # Connections are closed when nobody has the group any more.
        distributed.destroy_process_group(group)
        return True

    def steps(self, n_rows, batch_size):
        """Return how many batches an epoch has: as many for each worker.

        Parameters
        ----------
        n_rows : int
            Rows of this worker.
        batch_size : int
            Rows that all workers together read in a step.
        """
        counts = self.gather(n_rows)
        # A worker cannot take part in more steps than it has rows.
        return min(-(-sum(counts) // batch_size), min(counts))

    def average_gradients(self, parameters, n_rows):
        """Replace the gradients by their mean over all workers' rows of this step.

        Parameters
        ----------
        parameters : list of torch.nn.Parameter
            Those with a gradient on no worker keep none.
        n_rows : int
            Rows this worker's gradients are the mean of.
        """
        present = [0.0 if parameter.grad is None else 1.0 for parameter in parameters]
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float() * n_rows
            for p in parameters
        ]
        told = torch.tensor([*present, float(n_rows)], device=parts[0].device)
        flat = torch.cat([told, *parts])
        with _communication_errors():
            distributed.all_reduce(flat, group=self._group)
        total = flat[len(present)]
        gradients = flat[len(told) :].div_(total).split([len(part) for part in parts])
        for parameter, gradient, anyone in zip(
            parameters, gradients, flat[: len(present)].tolist(), strict=True
        ):
            if anyone:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)

    def sum(self, values):
        """Return each number's sum over all workers."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _communication_errors():
            distributed.all_reduce(summed, group=self._group)
        return summed.tolist()

    def gather(self, value):
        """Return the values of all workers, in the order of their ranks."""
        values = [None] * self.size
        with _communication_errors():
            distributed.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_from_rank0(self, make):
        """Return what a function gives on the first worker; its error is raised on all.

        Parameters
        ----------
        make : callable
            Called without arguments, by the first worker only.
        """
        told = [None, None]
        if self.rank == 0:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = error
        with _communication_errors():
            distributed.broadcast_object_list(told, src=0, group=self._group)
        value, error = told
        if error is not None:
            raise error
        return value


@contextmanager
def _communication_errors():
    """Tell errors of the exchange from others."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorkerError(f"another worker does not answer: {error}") from error


class SharedCheckpoints:
    """Checkpoints of a group: the first worker reads and writes them for all.

    Parameters
    ----------
    checkpoints : Checkpoints
        Where states are kept.
    group : ProcessGroup
        The workers.
    """

    def __init__(self, checkpoints, group):
        self.checkpoints = checkpoints
        self.group = group

    def begin(self, data):
        """Note or compare the data of the fit, each worker's share of it."""
        described = {
            f"{name} of worker {rank}" if self.group.size > 1 else name: value
            for rank, share in enumerate(self.group.gather(data))
            for name, value in share.items()
        }
        self.group.broadcast_from_rank0(lambda: self.checkpoints.begin(described))

    def latest(self):
        """Return the state after the last complete epoch, with this worker's random state."""
        state = self.group.broadcast_from_rank0(self.checkpoints.latest)
        if state is not None:
            state["random"], state["random_cuda"] = state["random_of_workers"][self.group.rank]
        return state

    def write(self, epoch, state, best):
        """Write the state after an epoch, with the random states of all workers."""
        random = self.group.gather([state["random"], state["random_cuda"]])
        state = {**state, "random_of_workers": random}
        self.group.broadcast_from_rank0(lambda: self.checkpoints.write(epoch, state, best))
