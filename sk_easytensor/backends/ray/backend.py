"""Backend of Ray: chunks of rows in tasks, training in workers of Ray Train."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from copy import copy

import torch

from sk_easytensor._utils.masking import MaskedUrl, masked, with_mask
from sk_easytensor._utils.validation import check_choice, check_number, is_path
from sk_easytensor.backends.base import Backend
from sk_easytensor.training.table_dataset import read_dataset

__all__ = [
    "RayBackend",
]


LOGGER = logging.getLogger("sk_easytensor.ray")

PLACEMENT_STRATEGIES = ("SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK")

CHUNKS_PER_WORKER = 4
"""Number of chunks, per worker, into which rows in memory are cut."""


class RayBackend(Backend):
    """Reads, trains and predicts on a Ray cluster.

    Blocks are fitted and rows encoded chunk by chunk in Ray tasks; the network is trained by
    workers of Ray Train, each with its shard of the rows. A worker that dies is replaced, and
    training resumes from the last checkpoint: after each epoch, and every ten minutes within one.

    Parameters
    ----------
    num_workers : int, default=2
        Number of workers that train together; 0 trains in this process.
    resources_per_worker : dict of {str: float} or None, default=None
        Resources of the cluster that each worker reserves, such as ``{"CPU": 2}``. By default one
        CPU, and one GPU with `use_gpu`.
    use_gpu : bool, default=False
        Whether each worker trains on a GPU.
    storage_path : str, os.PathLike or None, default=None
        Directory or URL that all machines reach, for the checkpoints from which replaced workers
        resume. Each fit has a directory of its own there, which is removed after it; to keep
        checkpoints, use an estimator's ``checkpoint_dir``. By default a temporary directory, which
        works on a single machine only.
    max_failures : int, default=2
        Number of times that workers are replaced after one died. Errors of the data or the code
        are not retried.
    address : str or None, default=None
        Address of the cluster to connect to if Ray has not been initialised, as for ``ray.init``.
        Without an address, a cluster is started on this machine. It is stopped after the fit. If a
        Dataset is returned that is computed later, it runs as long as this process.
    memory_per_worker : int or None, default=None
        Size of the encoded rows that a worker stores in memory, in bytes; larger shards are stored
        in files on its machine. By default half of the memory that Ray counts for its machine,
        divided by the workers there.
    placement_strategy : {"SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK"}, default="SPREAD"
        Whether workers are on as many machines as possible or on as few, as in Ray Train.
    start_timeout : float, default=300
        Seconds to wait until the cluster has room for all workers, such as machines that an
        autoscaler adds. A cluster that the fit starts itself is not waited for.
    n_jobs : int or None, default=None
        Number of threads for work in this process: None for one, -1 for all cores.
    chunk_rows : int, default=262_144
        Number of rows that are summarised or encoded at a time.

    Notes
    -----
    A step of training has ``batch_size`` rows, which the workers divide among them. Gradients are
    averaged over rows, so that the number of workers changes only the order of rows and the draws
    of dropout. Validation losses are computed over the rows of all workers, so that all workers
    stop after the same epoch. Callbacks are called in every worker with its shard of the rows;
    their state stays in the worker.

    Parquet files and Ray Datasets are predicted by ``num_workers`` actors with the same resources,
    each with a copy of the model. The result is a Ray Dataset, with the columns of the rows and
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
        placement_strategy="SPREAD",
        start_timeout=300,
        n_jobs=None,
        chunk_rows=262_144,
    ):
        super().__init__(n_jobs, chunk_rows)
        check_number("RayBackend", "num_workers", num_workers, low=0, integer=True)
        check_number("RayBackend", "max_failures", max_failures, low=0, integer=True)
        if memory_per_worker is not None:
            check_number("RayBackend", "memory_per_worker", memory_per_worker, low=1, integer=True)
        check_number("RayBackend", "start_timeout", start_timeout, low=0)
        check_choice("RayBackend", "placement_strategy", placement_strategy, PLACEMENT_STRATEGIES)
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
        self.placement_strategy = placement_strategy
        self.start_timeout = start_timeout
        self.started_cluster = False

    def __repr__(self):
        return f"RayBackend(num_workers={self.num_workers})"

    def checkpoint_description(self):
        """Return what checkpoints compare: a fit may be resumed by other numbers of workers."""
        return "RayBackend"

    def without_secrets(self):
        """Return the backend that is saved with a fitted model.

        It has no `storage_path`, which only a training uses, and no `address` with a password.
        """
        saved = copy(self)
        saved.storage_path = None
        saved.started_cluster = False
        if isinstance(with_mask(self.address), MaskedUrl):
            saved.address = None
        return saved

    @contextmanager
    def running(self):
        """Initialise Ray for the context, unless it is initialised already."""
        previous = ray_variables()
        closing_message = self._initialize()
        try:
            yield
        finally:
            if closing_message:
                import_ray().shutdown()
                self.started_cluster = False
                for name in ray_variables():
                    del os.environ[name]
                os.environ.update(previous)
                LOGGER.warning("Ray: %s", closing_message)

    def _initialize(self):
        """Initialise Ray; return the message for its shutdown, or None if it was initialised."""
        ray = import_ray()
        if ray.is_initialized():
            return None
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address in (None, "local"):
            LOGGER.warning("Ray is not initialised: starting a cluster on this machine")
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
            self.started_cluster = True
            return "cluster stopped"
        LOGGER.warning("Ray is not initialised: connecting to %s", masked(address))
        ray.init(address=address)
        return "disconnected"

    def resolve_device(self, device, owner):
        """Check the name of a device; each worker checks whether its machine has it."""
        if device == "auto":
            return device
        try:
            return str(torch.device(device))
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{owner}: device must be 'auto' or a torch device of the workers, got "
                f"{device!r}: {error}"
            ) from error

    def read_dataset(self, X, y, sample_weight, read, check_target, name=""):
        """Read rows with targets and weights, as chunks of a stored table or the object store."""
        from sk_easytensor.backends.ray.dataset import open_dataset, put_dataset
        from sk_easytensor.backends.ray.train import check_cluster

        check_cluster(self)
        n_chunks = CHUNKS_PER_WORKER * max(1, self.num_workers)
        if has_chunks(X):
            return open_dataset(
                X,
                y,
                sample_weight,
                read,
                check_target,
                name,
                n_chunks=max(1, self.num_workers),
                chunk_rows=self.chunk_rows,
            )
        dataset = read_dataset(X, y, sample_weight, read, check_target, name)
        return put_dataset(dataset, max(n_chunks, -(-len(dataset) // self.chunk_rows)))

    def map_batches(self, call, X):
        """Apply a method to a stored table in actors, as a lazy ``ray.data.Dataset``."""
        if not has_chunks(X):
            return super().map_batches(call, X)
        if self._initialize():
            LOGGER.warning(
                "Ray keeps running, because the returned Dataset is computed when it is read; "
                "ray.shutdown() ends it"
            )
        from sk_easytensor.backends.ray.predict import map_batches

        return map_batches(self, call, X)

    def evaluate(self, X, y, sample_weight, function, random_state, check):
        """Apply a function to chunks of stored rows in tasks, to rows in memory in this process."""
        if not has_chunks(X):
            return super().evaluate(X, y, sample_weight, function, random_state, check)
        with self.running():
            from sk_easytensor.backends.ray.predict import evaluate_chunks

            return evaluate_chunks(self, X, y, sample_weight, function, random_state, check)

    def train(self, network, head, rows, valid_rows, settings, inspection=None):
        """Train a network in workers, which then inspect their shards of the rows."""
        from sk_easytensor.backends.ray.train import train_on_workers

        return train_on_workers(self, network, head, rows, valid_rows, settings, inspection)


def has_chunks(X):
    """Return whether X is a stored table: the path of Parquet files, or a Ray Dataset."""
    # Ray is not imported for tables in memory.
    return is_path(X) or hasattr(X, "to_arrow_refs")


def ray_variables():
    """Return the environment variables that ``ray.init`` may set."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"
    }


def import_ray():
    """Return the module ``ray``; raise ``ImportError`` naming the extra if it is missing."""
    try:
        import ray
        import ray.data
        import ray.train
    except ImportError as error:
        raise ImportError("backend='ray' needs Ray: pip install 'sk_easytensor[ray]'") from error
    return ray
