"""Work on a cluster: chunks of rows in Ray tasks, training in Ray Train workers."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from copy import copy

import torch

from sk_easytensor._utils.masking import MaskedUrl, masked, with_mask
from sk_easytensor._utils.validation import check_number
from sk_easytensor.backends.base import Backend
from sk_easytensor.training.table_dataset import read_dataset

__all__ = [
    "RayBackend",
]


LOGGER = logging.getLogger("sk_easytensor.ray")

CHUNKS_A_WORKER = 4
"""Chunks that rows in memory are cut into, for each worker."""


class RayBackend(Backend):
    """Reads, trains and predicts on a Ray cluster.

    Blocks are fitted and rows encoded chunk by chunk in Ray tasks; the network is trained by
    workers of Ray Train, each with its share of the rows. A worker that dies is replaced, and
    training goes on after the last complete epoch.

    Parameters
    ----------
    num_workers : int, default=2
        Workers that train together; 0 trains in this process.
    resources_per_worker : dict of {str: float} or None, default=None
        What each worker takes of the cluster; one CPU, and one GPU with `use_gpu`, unless said
        otherwise.
    use_gpu : bool, default=False
        Whether each worker trains on a GPU.
    storage_path : str, os.PathLike or None, default=None
        Directory or URL that all machines reach, for checkpoints that serve workers which are
        replaced. By default a temporary directory, which does on one machine only. What an
        estimator's ``checkpoint_dir`` says comes first.
    max_failures : int, default=2
        How often workers that die are replaced. Errors of the data or the code are not retried.
    address : str or None, default=None
        Cluster to connect to if Ray has not been initialised, as ``ray.init`` takes it. Without
        one, a cluster on this machine is started for the time of a fit, or for as long as this
        process runs if a Dataset is returned that has yet to be computed.
    memory_per_worker : int or None, default=None
        Bytes of encoded rows that a worker keeps in memory; more are kept in files on its
        machine. By default half of the cluster's memory, shared evenly.
    n_jobs : int or None, default=None
        Threads for what is done in this process.
    chunk_rows : int, default=262_144
        Rows that are summarised or encoded at a time.

    Notes
    -----
    A step of training sees ``batch_size`` rows, shared by the workers, whose gradients are
    averaged over rows: the number of workers does not change what is learned, but for the order
    of rows and the draws of dropout. Validation losses are those of all workers' rows together, so
    that training ends in all workers at once. Callbacks are called in every worker, and see its
    share of the rows; what they learn stays there.

    Parquet files and Ray Datasets are predicted where they are, by ``num_workers`` actors with the
    same resources that hold the model; a Ray Dataset is returned, with the columns of the rows and
    those of the results. Tables in memory are predicted in this process.

    Examples
    --------
    >>> from sk_easytensor import EasyTensorClassifier
    >>> model = EasyTensorClassifier(backend=RayBackend(num_workers=4))
    >>> model.fit("s3://bucket/clicks/*.parquet", "clicked")  # doctest: +SKIP
    """

    distributed = True

    def __init__(
        self,
        num_workers=2,
        resources_per_worker=None,
        use_gpu=False,
        storage_path=None,
        max_failures=2,
        address=None,
        *,
        memory_per_worker=None,
        n_jobs=None,
        chunk_rows=262_144,
    ):
        super().__init__(n_jobs, chunk_rows)
        check_number("RayBackend", "num_workers", num_workers, low=0, integer=True)
        check_number("RayBackend", "max_failures", max_failures, low=0, integer=True)
        if memory_per_worker is not None:
            check_number("RayBackend", "memory_per_worker", memory_per_worker, low=1, integer=True)
        if resources_per_worker is not None and not isinstance(resources_per_worker, dict):
            raise ValueError(
                "RayBackend: resources_per_worker must be a dictionary such as {'CPU': 2}, got "
                f"{resources_per_worker!r}"
            )
        if storage_path is not None and not isinstance(storage_path, (str, os.PathLike)):
            raise ValueError(f"RayBackend: storage_path must be a path, got {storage_path!r}")
        self.num_workers = num_workers
        self.resources_per_worker = resources_per_worker
        self.use_gpu = use_gpu
        self.storage_path = storage_path
        self.max_failures = max_failures
        self.address = address
        self.memory_per_worker = memory_per_worker

    def __repr__(self):
        # What checkpoints compare: with other workers, training cannot go on as it was.
        return f"RayBackend(num_workers={self.num_workers})"

    def without_secrets(self):
        """Return the backend as it is stored with a fitted model.

        Where a training left its files is of no use to it; an address with a password is left out.
        """
        other = copy(self)
        other.storage_path = None
        if isinstance(with_mask(self.address), MaskedUrl):
            other.address = None
        return other

    @contextmanager
    def running(self):
        """Have a cluster within the context: the one there is, or one that ends with it."""
        before = ray_variables()
        begun = self._begin()
        try:
            yield
        finally:
            if begun:
                import_ray().shutdown()
                for name in ray_variables():
                    del os.environ[name]
                os.environ.update(before)
                LOGGER.warning("Ray: %s", begun)

    def _begin(self):
        """Initialise Ray unless it is; return what ending that will be, or None."""
        ray = import_ray()
        if ray.is_initialized():
            return None
        where = self.address or os.environ.get("RAY_ADDRESS")
        if where in (None, "local"):
            LOGGER.warning("Ray is not initialised: starting a cluster on this machine")
            # Rows and networks go through the object store; half of the default does.
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
            return "cluster stopped"
        LOGGER.warning("Ray is not initialised: connecting to %s", masked(where))
        ray.init(address=where)
        return "disconnected"

    def resolve_device(self, device, owner):
        """Check the name of a device; whether a worker has it, only the worker knows."""
        if device == "auto":
            return device
        try:
            return str(torch.device(device))
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{owner}: device must be 'auto' or a torch device of the workers, got "
                f"{device!r}: {error}"
            ) from error

    def read_dataset(self, X, y, sample_weight, read, check_target, where=""):
        """Read rows with targets and weights: chunks in the object store, or where they lie."""
        from sk_easytensor.backends.ray.dataset import hold_dataset, open_dataset

        n_chunks = CHUNKS_A_WORKER * max(1, self.num_workers)
        if has_chunks(X):
            return open_dataset(
                X,
                y,
                sample_weight,
                read,
                check_target,
                where,
                n_chunks=max(1, self.num_workers),
                chunk_rows=self.chunk_rows,
            )
        dataset = read_dataset(X, y, sample_weight, read, check_target, where)
        return hold_dataset(dataset, max(n_chunks, -(-len(dataset) // self.chunk_rows)))

    def map_batches(self, call, X):
        """Apply a method to a stored table where its rows are, as a lazy ``ray.data.Dataset``."""
        if not has_chunks(X):
            return super().map_batches(call, X)
        if self._begin():
            LOGGER.warning(
                "Ray is left running, for the Dataset that is returned is computed when it is "
                "read; ray.shutdown() ends it"
            )
        from sk_easytensor.backends.ray.predict import map_batches

        return map_batches(self, call, X)

    def evaluate(self, X, y, sample_weight, function, random_state, check):
        """Apply a function to chunks of stored rows in tasks, to others in this process."""
        if not has_chunks(X):
            return super().evaluate(X, y, sample_weight, function, random_state, check)
        with self.running():
            from sk_easytensor.backends.ray.evaluate import evaluate_chunks

            return evaluate_chunks(self, X, y, sample_weight, function, random_state, check)

    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network, by workers that then inspect their shares of the rows."""
        from sk_easytensor.backends.ray.train import train_on_workers

        return train_on_workers(self, network, head, rows, valid_rows, settings, inspection)


def has_chunks(X):
    """Tell whether X is read where it is, in chunks: Parquet files by path, or a Ray Dataset."""
    # Ray is not imported for tables in memory.
    return isinstance(X, (str, os.PathLike)) or hasattr(X, "to_arrow_refs")


def ray_variables():
    """Return the environment variables that ``ray.init`` may set."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"
    }


def import_ray():
    """Import Ray, or say how to install it."""
    try:
        import ray
        import ray.data
        import ray.train
    except ImportError as error:
        raise ImportError("backend='ray' needs Ray: pip install 'sk_easytensor[ray]'") from error
    return ray
