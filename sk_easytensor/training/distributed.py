"""Communication between the workers that train one network: gradients, sums, checkpoints."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as distributed
from scipy import sparse
from torch.nn import functional

__all__ = [
    "LostWorkerError",
    "ProcessGroup",
    "SharedCheckpoints",
    "SingleProcess",
    "gather_rows",
    "sparse_rows",
    "stack_rows",
]


class LostWorkerError(RuntimeError):
    """Raised when the communication with another worker failed: it died, or it stopped."""


class SingleProcess:
    """Group of one worker, with the methods of :class:`ProcessGroup`."""

    rank = 0
    size = 1

    def steps(self, n_rows, batch_size):
        """Return the number of batches of an epoch."""
        return -(-n_rows // batch_size)

    def average_gradients(self, parameters, n_rows):
        """Replace the gradients by their mean over all workers' rows of this step."""

    def sum(self, values):
        """Return the sum of each number over all workers."""
        return values

    def gather(self, value):
        """Return the values of all workers, in the order of their ranks."""
        return [value]

    def gather_at_rank0(self, value):
        """Return the values of all workers in the first worker, None in the others."""
        return [value]

    def broadcast_from_rank0(self, make):
        """Return the result of a function that the first worker calls."""
        return make()


class ProcessGroup:
    """Group of several workers that communicate by ``torch.distributed``.

    Every worker calls the same methods in the same order. Each method raises
    :class:`LostWorkerError` if the communication fails.

    Parameters
    ----------
    device : str, default="cpu"
        Device of the tensors that workers exchange: ``"cuda"`` with NCCL, ``"cpu"`` with Gloo.

    Attributes
    ----------
    rank : int
        Index of this worker, from 0.
    size : int
        Number of workers.
    """

    def __init__(self, device="cpu"):
        # torch keeps references to the default group, which therefore cannot be destroyed.
        self._group = distributed.new_group()
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self.device = device

    def leave(self):
        """Close the connections, so that pending and later calls of other workers fail.

        Returns
        -------
        bool
            Whether the backend supports this, which Gloo does.
        """
        if distributed.get_backend(self._group) != "gloo":
            # With NCCL, the other workers would wait until their timeout.
            return False
        group, self._group = self._group, None
        # Connections are closed once the last reference to the group is gone.
        distributed.destroy_process_group(group)
        return True

    def steps(self, n_rows, batch_size):
        """Return the number of batches of an epoch, which is the same for all workers.

        Parameters
        ----------
        n_rows : int
            Number of rows of this worker.
        batch_size : int
            Number of rows of a step, of all workers together.
        """
        counts = self.gather(n_rows)
        # A worker cannot take part in more steps than it has rows.
        return min(-(-sum(counts) // batch_size), min(counts))

    def average_gradients(self, parameters, n_rows):
        """Replace the gradients by their mean over all workers' rows of this step.

        Parameters
        ----------
        parameters : list of torch.nn.Parameter
            Parameters of the network, the same on all workers. One without a gradient on any
            worker stays without. Sparse gradients are coalesced, and sparse on all workers.
        n_rows : int
            Number of rows over which this worker's gradients are the mean.
        """
        by_row = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
        left_out = {id(parameter) for parameter in by_row}
        parameters = [parameter for parameter in parameters if id(parameter) not in left_out]
        lengths = [len(parameter.grad.values()) for parameter in by_row]
        total, lengths = self._average_dense(parameters, n_rows, lengths)
        for parameter, of_workers in zip(by_row, lengths, strict=True):
            self._average_sparse(parameter, n_rows, total, of_workers)

    def _average_dense(self, parameters, n_rows, lengths):
        """Average dense gradients, and tell the lengths of the sparse ones.

        Parameters
        ----------
        parameters, n_rows
            As in :meth:`average_gradients`, without sparse gradients.
        lengths : list of int
            Numbers of rows of this worker's sparse gradients.

        Returns
        -------
        total : torch.Tensor of float32, shape ()
            Number of all workers' rows.
        lengths : list of list of int
            Numbers of rows of the sparse gradients, each by worker.
        """
        present = [0.0 if parameter.grad is None else 1.0 for parameter in parameters]
        # Each worker has a place of its own, so that the sums are the numbers of all of them.
        places = [[0.0] * self.size for _ in lengths]
        for place, length in zip(places, lengths, strict=True):
            place[self.rank] = float(length)
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float() * n_rows
            for p in parameters
        ]
        counts = [*present, float(n_rows), *itertools.chain.from_iterable(places)]
        flat = torch.cat([torch.tensor(counts, device=self.device), *parts])
        with _communication_errors():
            distributed.all_reduce(flat, group=self._group)
        total = flat[len(present)]
        gradients = flat[len(counts) :].div_(total).split([len(part) for part in parts])
        if not all(present):
            # Of the others' gradients too. Reading them waits for the device.
            present = flat[: len(present)].tolist()
        for parameter, gradient, n_present in zip(parameters, gradients, present, strict=True):
            if n_present:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        if not lengths:
            return total, []
        found = flat[len(present) + 1 : len(counts)].int().reshape(len(lengths), self.size)
        return total, found.tolist()

    def _average_sparse(self, parameter, n_rows, total, lengths):
        """Average a sparse gradient: workers exchange only the rows that occur in their batches."""
        rows, values = parameter.grad.indices()[0], parameter.grad.values()
        # The bits of the indices travel with the values: a message takes longer than its content.
        bits = rows.int().view(torch.float32)[:, None]
        own = torch.cat([bits, values.float() * n_rows], dim=1)
        own = functional.pad(own, (0, 0, 0, max(lengths) - len(rows)))
        parts = self._gather_tensors(own)
        joined = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
        rows = joined[:, 0].contiguous().view(torch.int32).long()
        values = (joined[:, 1:] / total).to(parameter.dtype)
        parameter.grad = sparse_rows(rows[None], values, parameter.shape).coalesce()

    def _gather_tensors(self, tensor):
        """Return the tensors of all workers, which have the same shape."""
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        with _communication_errors():
            distributed.all_gather(tensors, tensor.contiguous(), group=self._group)
        return tensors

    def sum(self, values):
        """Return the sum of each number over all workers."""
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

    def gather_at_rank0(self, value):
        """Return the values of all workers in the first worker, None in the others."""
        values = [None] * self.size if self.rank == 0 else None
        with _communication_errors():
            distributed.gather_object(value, values, dst=0, group=self._group)
        return values

    def broadcast_from_rank0(self, make):
        """Return the result of a function that the first worker calls; its error is raised on all.

        Parameters
        ----------
        make : callable
            Called without arguments, by the first worker only.
        """
        message = [None, None]
        if self.rank == 0:
            try:
                message[0] = make()
            except Exception as error:
                message[1] = error
        with _communication_errors():
            distributed.broadcast_object_list(message, src=0, group=self._group)
        value, error = message
        if error is not None:
            raise error
        return value


def gather_rows(group, parts):
    """Return arrays of the rows of all workers in the first worker, None in the others.

    Parameters
    ----------
    group : SingleProcess or ProcessGroup
        Workers.
    parts : iterable of sequence of ndarray or scipy.sparse.csr_array
        Parts of the rows of this worker: the same number of arrays for each part.

    Returns
    -------
    list of ndarray or scipy.sparse.csr_array, or None
        Rows of the workers in the order of their ranks.
    """
    shards = group.gather_at_rank0(stack_rows(parts))
    return None if shards is None else stack_rows(shards)


def stack_rows(parts):
    """Return the arrays of several parts of rows, those of each position one below the other.

    Parameters
    ----------
    parts : iterable of sequence of ndarray or scipy.sparse.csr_array
        The same number of arrays for each part.

    Returns
    -------
    list of ndarray or scipy.sparse.csr_array
    """
    return [_stack(arrays) for arrays in zip(*parts, strict=True)]


def _stack(arrays):
    """Return arrays or sparse matrices, one below the other."""
    if sparse.issparse(arrays[0]):
        return sparse.vstack(arrays, format="csr")
    return np.concatenate(arrays)


def sparse_rows(rows, values, shape):
    """Return a sparse matrix that consists of some rows.

    Parameters
    ----------
    rows : torch.Tensor of int64, shape (1, n)
        Indices of the rows, which may be repeated.
    values : torch.Tensor of shape (n, width)
        The rows.
    shape : tuple of int
        Shape of the matrix.

    Returns
    -------
    torch.Tensor of shape `shape`, sparse
    """
    return torch.sparse_coo_tensor(rows, values, shape, check_invariants=False)


@contextmanager
def _communication_errors():
    """Raise errors of the communication as :class:`LostWorkerError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorkerError(f"another worker does not respond: {error}") from error


class SharedCheckpoints:
    """Checkpoints of a group, which the first worker reads and writes for all.

    Parameters
    ----------
    checkpoints : Checkpoints
        Checkpoints of the fit.
    group : SingleProcess or ProcessGroup
        Workers of the fit.
    join : callable
        Function that joins the descriptions of the workers' data, so that those of other numbers
        of workers are equal.
    """

    def __init__(self, checkpoints, group, join):
        self.checkpoints = checkpoints
        self.group = group
        self.join = join

    def begin(self, data):
        """Store or compare the descriptions of all workers' data; see :class:`Checkpoints`."""
        description = self.join(self.group.gather(data))
        self.group.broadcast_from_rank0(lambda: self.checkpoints.begin(description))

    def latest(self):
        """Return the newest state, with this worker's random state and position within the epoch.

        If there were other workers, the state is that after the last complete epoch, and each
        worker has a new random state, which depends on the epoch.
        """
        state = self.group.broadcast_from_rank0(self.checkpoints.latest)
        if state is None:
            return None
        if len(state["workers"]) != self.group.size and state["position"] is not None:
            state = self.group.broadcast_from_rank0(lambda: self.checkpoints.latest(complete=True))
            if state is None:
                return None
        if len(state["workers"]) == self.group.size:
            state.update(state["workers"][self.group.rank])
        else:
            generator = torch.Generator().manual_seed(torch.initial_seed())
            seeds = torch.randint(2**62, (len(state["history"]) + 1,), generator=generator)
            torch.manual_seed(int(seeds[-1]))
            state["random"], state["random_cuda"] = torch.get_rng_state(), None
        return state

    def write(self, epoch, state, best):
        """Write the state after an epoch, with the random states of all workers."""
        state = self._joined(state)
        self.group.broadcast_from_rank0(lambda: self.checkpoints.write(epoch, state, best))

    def write_within(self, epoch, state):
        """Write the state within an epoch, with random states and positions of all workers."""
        state = self._joined(state)
        self.group.broadcast_from_rank0(lambda: self.checkpoints.write_within(epoch, state))

    def _joined(self, state):
        own = {name: state[name] for name in ("random", "random_cuda", "position")}
        return {**state, "workers": self.group.gather(own)}
