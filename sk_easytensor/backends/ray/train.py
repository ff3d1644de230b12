"""Training by workers of Ray Train: what is sent to them, what they do, what comes back."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import ray
import ray.train
import torch
import torch.distributed as distributed
from pyarrow.fs import FileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from sk_easytensor._utils.masking import mask_error, masked
from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor._utils.storage import make_temporary_directory, remove_temporary_directory
from sk_easytensor.backends.ray.actors import ErrorCollector
from sk_easytensor.backends.ray.progress import noting
from sk_easytensor.backends.ray.tasks import WorkerTracebacks, n_threads
from sk_easytensor.training.checkpoint import Checkpoints
from sk_easytensor.training.distributed import (
    LostWorkerError,
    ProcessGroup,
    SharedCheckpoints,
    SingleProcess,
)
from sk_easytensor.training.train import resolve_device, train_network
from sk_easytensor.trees.forest import load_network_state, network_state

__all__ = [
    "train_on_workers",
]


@dataclass
class Job:
    """All that workers need to know."""

    network: torch.nn.Module
    head: object
    shards: list
    valid_shards: list
    settings: object
    random: torch.Tensor
    seed: int
    memory: int
    threads: int
    inspection: object


# ---------------------------------------------------------------------- in the driver


def train_on_workers(backend, network, head, rows, valid_rows, settings, inspection=None):
    """Train a network in place, by workers of a cluster.

    Parameters
    ----------
    backend : RayBackend
        Says how many workers there are and what they get.
    network, head, rows, valid_rows, settings
        As of :func:`~sk_easytensor.training.train.train_network`.
    inspection : Inspection, optional
        What the workers compute from their rows after the training.

    Returns
    -------
    TrainingResult

    Raises
    ------
    Exception
        What a worker raised; its cause has the tracebacks of all workers.
    RuntimeError
        If workers died more often than `max_failures` allows.
    """
    n_workers = max(1, backend.num_workers)
    for name, part in [("training", rows), *[("validation", valid) for valid in valid_rows]]:
        if len(part) < n_workers:
            raise ValueError(
                f"RayBackend: {len(part)} rows for {name} are too few for {n_workers} workers"
            )
    check_resources(backend)
    with storage(backend) as place, noting(settings) as settings:
        if settings.checkpoints is None and backend.max_failures and backend.num_workers:
            where = f"{place}/checkpoints-{uuid4().hex}"
            settings = replace(settings, checkpoints=Checkpoints(where, "fit", {}))
        job = Job(
            network,
            head,
            rows.shards(n_workers),
            [valid.shards(n_workers) for valid in valid_rows],
            settings,
            torch.get_rng_state(),
            torch.initial_seed(),
            worker_memory(backend),
            n_threads(backend),
            inspection,
        )
        state, result = run_workers(backend, job, place)
    load_network_state(network, state)
    network.to("cpu").eval()
    return result


def run_workers(backend, job, place):
    """Have workers do a job and return what the first of them returns."""
    if backend.num_workers == 0:
        errors = ErrorCollector()
    else:
        errors = ray.remote(ErrorCollector).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": ray.put(job), "errors": errors},
        scaling_config=ScalingConfig(
            num_workers=backend.num_workers,
            use_gpu=backend.use_gpu,
            resources_per_worker=backend.resources_per_worker,
        ),
        run_config=RunConfig(
            name=f"fit-{uuid4().hex}",
            **run_storage(place),
            failure_config=FailureConfig(max_failures=backend.max_failures),
        ),
    )
    failed = None
    with quick_health_checks(), own_interrupts():
        try:
            returned = trainer.fit().return_value
        except TrainingFailedError as error:
            failed = error
    found = errors.errors if backend.num_workers == 0 else ray.get(errors.read.remote())
    if found:
        found = sorted(found, key=lambda error: error[0])
        told = [f"worker {rank}:\n{text}" for rank, _, text in found]
        raise pickle.loads(found[0][1]) from WorkerTracebacks(*told)
    if failed is not None:
        raise RuntimeError(
            f"RayBackend: workers died more than max_failures={backend.max_failures} times; the "
            f"last time: {masked(failed)}"
        ) from failed
    return returned


def run_storage(place):
    """Return the storage of a run of Ray Train, whose state and logs hold the path."""
    if masked(place) == place:
        return {"storage_path": place}
    filesystem, path = FileSystem.from_uri(place)
    return {"storage_path": path, "storage_filesystem": filesystem}


def check_resources(backend):
    """Raise ``ValueError`` if a cluster that cannot grow is too small for the workers."""
    needed = {"CPU": 1.0, **({"GPU": 1.0} if backend.use_gpu else {})}
    needed.update(backend.resources_per_worker or {})
    there = ray.cluster_resources()
    for name, amount in needed.items():
        if backend.num_workers * amount > there.get(name, 0) and len(ray.nodes()) == 1:
            raise ValueError(
                f"RayBackend: {backend.num_workers} workers of {amount:g} {name} each are more "
                f"than the cluster has ({there.get(name, 0):g}); lower num_workers or "
                "resources_per_worker"
            )


def worker_memory(backend):
    """Return the bytes of encoded rows that a worker keeps in memory."""
    if backend.memory_per_worker is not None:
        return backend.memory_per_worker
    memory = ray.cluster_resources().get("memory", 4 << 30)
    return int(memory / 2 / max(1, backend.num_workers))


@contextmanager
def storage(backend):
    """Give the place for what a training leaves, which is removed if nobody asked for it."""
    if backend.storage_path is not None:
        where = os.fspath(backend.storage_path)
        yield where if "://" in where else os.path.abspath(where)
        return
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        raise ValueError(
            "RayBackend: on a cluster of several machines, storage_path must be a directory or "
            "URL that all of them reach"
        )
    where = make_temporary_directory("ray")
    try:
        yield where
    finally:
        remove_temporary_directory(where)


@contextmanager
def quick_health_checks():
    """Have Ray Train look after its workers ten times a second.

    By default it does every two seconds, for which each report of a worker waits.
    """
    name = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    before = os.environ.get(name)
    os.environ.setdefault(name, "0.1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextmanager
def own_interrupts():
    """Put back what Ctrl-C does, which Ray Train changes for good."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- in a worker


def train_worker(config):
    """Train with a shard of the rows: what each worker does.

    Returns
    -------
    tuple or None
        State of the network and :class:`TrainingResult`, of the first worker.
        None if an error of the user's data or code was collected.
    """
    rank = ray.train.get_context().get_world_rank()
    group = SingleProcess()
    if _collected(config["errors"]):
        # These workers were started in place of those that left it: there is nothing to try again.
        return None
    try:
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            group = ProcessGroup("cuda" if distributed.get_backend() == "nccl" else "cpu")
        job = ray.get(config["job"])
        with limited_threads(job.threads):
            return _train(job, group, rank)
    except LostWorkerError:
        if not _collected(config["errors"]) or not group.leave():
            # The other one died. Ray Train puts new workers in the place of all.
            raise
        return None
    except BaseException as error:
        mask_error(error)
        _add(config["errors"], (rank, _pickled(error), traceback.format_exc()))
        if isinstance(group, ProcessGroup) and not group.leave():
            # Others may wait for this worker. Ray Train ends them when one fails.
            raise
        return None


def _train(job, group, rank):
    settings = replace(
        job.settings,
        device=resolve_device(job.settings.device, "worker"),
        verbose=job.settings.verbose if rank == 0 else 0,
        group=group,
    )
    if isinstance(group, ProcessGroup) and settings.checkpoints is not None:
        settings.checkpoints = SharedCheckpoints(settings.checkpoints, group)
    rows = job.shards[rank].rows(job.memory)
    evals = [shards[rank].rows(job.memory) for shards in job.valid_shards]
    if rank == 0:
        torch.set_rng_state(job.random)
    else:
        torch.manual_seed(job.seed + 1_000_003 * rank)
    result = train_network(job.network, job.head, rows, evals, settings)
    if job.inspection is not None:
        result.inspected = job.inspection.compute(job.network, rows, evals, group)
    if rank > 0:
        return None
    return network_state(job.network), result


def _pickled(error):
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))


def _add(errors, error):
    if isinstance(errors, ErrorCollector):
        errors.add(error)
    else:
        ray.get(errors.add.remote(error))


def _collected(errors):
    return errors.read() if isinstance(errors, ErrorCollector) else ray.get(errors.read.remote())
