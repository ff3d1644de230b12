"""Training by workers of Ray Train."""

from __future__ import annotations

import logging
import math
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
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)

from sk_easytensor._utils.masking import mask_error, masked
from sk_easytensor._utils.runtime import limited_threads
from sk_easytensor._utils.storage import (
    make_temporary_directory,
    name_directory,
    remove_directory,
    remove_temporary_directory,
)
from sk_easytensor.backends.ray.dataset import assign_shards
from sk_easytensor.backends.ray.progress import ErrorCollector, report_progress
from sk_easytensor.backends.ray.summarize import WorkerTracebacks, actor_of_driver, n_threads
from sk_easytensor.training.checkpoint import Checkpoints
from sk_easytensor.training.descriptions import joined_descriptions
from sk_easytensor.training.distributed import (
    LostWorkerError,
    ProcessGroup,
    SharedCheckpoints,
    SingleProcess,
)
from sk_easytensor.training.train import resolve_device, train_network
from sk_easytensor.trees.forest import load_network_state, network_state

__all__ = [
    "check_cluster",
    "train_on_workers",
]


LOGGER = logging.getLogger("sk_easytensor.ray")

OWN_CLUSTER_TIMEOUT = 5
"""Longest time to wait for room in a cluster that the fit started, in seconds."""


@dataclass
class Job:
    """Arguments of the training that the driver sends to workers.

    Attributes
    ----------
    network : torch.nn.Module
        Network before training.
    head : Head
        Defines the loss.
    shards : list of tuple of (list of int, list of Shard)
        Numbers of data sets, and the shard of each worker with their rows. Data set 0 has the
        training rows, the others have validation rows.
    settings : TrainingSettings
        Settings of the training.
    random_state : torch.Tensor
        State of torch's random generator in the driver, with which the first worker trains.
    seed : int
        Seed from which those of the other workers are derived.
    memory : int or None
        Largest size of the encoded rows of a worker in memory, in bytes; None for half of the
        memory of its machine, divided by the workers there.
    threads : int
        Number of threads of a worker.
    inspection : Inspection or None
        Computes attributes for importances from the rows after the training.
    """

    network: torch.nn.Module
    head: object
    shards: list
    settings: object
    random_state: torch.Tensor
    seed: int
    memory: int | None
    threads: int
    inspection: object


# ---------------------------------------------------------------------- in the driver


def train_on_workers(backend, network, head, rows, valid_rows, settings, inspection=None):
    """Train a network in place, by workers of a cluster.

    Parameters
    ----------
    backend : RayBackend
        Backend whose parameters define the number of workers and their resources.
    network, head, settings
        As in :func:`~sk_easytensor.training.train.train_network`.
    rows : RayDataset
        Training rows.
    valid_rows : list of RayDataset
        Validation rows; the first data set decides about early stopping.
    inspection : Inspection, optional
        Computes attributes for importances from the rows of the workers after the training.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If there are fewer rows than workers, if the cluster is too small for the workers or has no
        room for them within `start_timeout`, or if a cluster of several machines is used without
        `storage_path`.
    Exception
        If a worker raises it; its cause has the tracebacks of all workers.
    RuntimeError
        If workers died more often than `max_failures` allows.
    """
    n_workers = max(1, backend.num_workers)
    for name, part in [("training", rows), *[("validation", valid) for valid in valid_rows]]:
        if len(part) < n_workers:
            raise ValueError(
                f"RayBackend: {len(part)} rows for {name} are too few for {n_workers} workers"
            )
    check_room(backend)
    with storage(backend) as path, report_progress(settings) as settings:
        if settings.checkpoints is None and backend.max_failures and backend.num_workers:
            directory = f"{path}/checkpoints-{uuid4().hex}"
            settings = replace(settings, checkpoints=Checkpoints(directory, "fit", {}))
        job = Job(
            network,
            head,
            assign_shards([rows, *valid_rows], n_workers),
            settings,
            torch.get_rng_state(),
            torch.initial_seed(),
            backend.memory_per_worker,
            n_threads(backend),
            inspection,
        )
        state, result = run_workers(backend, job, path)
    load_network_state(network, state)
    network.to("cpu").eval()
    return result


def run_workers(backend, job, path):
    """Run a job in workers, and return the result of the first worker.

    Parameters
    ----------
    backend : RayBackend
        Backend whose parameters define the number of workers and their resources.
    job : Job
        Arguments of the training.
    path : str
        Directory or URL for the state of Ray Train's run.

    Returns
    -------
    state : object
        Result of :func:`~sk_easytensor.trees.forest.network_state`.
    result : TrainingResult
    """
    errors = ErrorCollector() if backend.num_workers == 0 else actor_of_driver(ErrorCollector)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": ray.put(job), "errors": errors},
        scaling_config=ScalingConfig(
            num_workers=backend.num_workers,
            use_gpu=backend.use_gpu,
            resources_per_worker=backend.resources_per_worker,
            placement_strategy=backend.placement_strategy,
        ),
        run_config=RunConfig(
            name=f"fit-{uuid4().hex}",
            **run_storage(path),
            failure_config=FailureConfig(max_failures=backend.max_failures),
        ),
    )
    failed = None
    with frequent_health_checks(), restored_interrupts():
        try:
            returned = trainer.fit().return_value
        except TrainingFailedError as error:
            failed = error
    collected = errors.errors if backend.num_workers == 0 else ray.get(errors.read.remote())
    if collected:
        collected = sorted(collected, key=lambda error: error[0])
        tracebacks = [f"worker {rank}:\n{text}" for rank, _, text in collected]
        raise pickle.loads(collected[0][1]) from WorkerTracebacks(*tracebacks)
    if failed is not None:
        raise RuntimeError(
            f"RayBackend: workers died more than max_failures={backend.max_failures} times; the "
            f"last time: {masked(failed)}"
        ) from failed
    return returned


def run_storage(path):
    """Return the options of a Ray Train run for its storage.

    Ray Train writes the path to its state and logs. A URL with a password is therefore passed as a
    file system and a path without the password.
    """
    if masked(path) == path:
        return {"storage_path": path}
    filesystem, path = FileSystem.from_uri(path)
    return {"storage_path": path, "storage_filesystem": filesystem}


def check_cluster(backend):
    """Raise ``ValueError`` if `storage_path` is missing or a cluster of its own is too small.

    Called before any row is read.
    """
    if backend.num_workers and backend.storage_path is None and n_machines() > 1:
        raise ValueError(
            "RayBackend: on a cluster of several machines, storage_path must be a directory or "
            "URL that all of them reach"
        )
    shortage = lacking(backend)
    if shortage and backend.started_cluster:
        raise ValueError(shortage)
    # A cluster that others started may grow when workers are waiting for room. Trials of Ray Tune
    # may have reserved all processors, for which tasks would wait for ever.
    if shortage or get_current_placement_group() is not None:
        check_room(backend)


def check_room(backend):
    """Wait until the cluster has room for all workers.

    Raises
    ------
    ValueError
        If there is no room within `start_timeout`.
    """
    if not backend.num_workers:
        return
    shortage = lacking(backend)
    if shortage:
        LOGGER.warning("%s; waiting up to %s s for more", shortage, backend.start_timeout)
    # Ray waits for whole seconds. A cluster that the fit started does not grow.
    timeout = max(1, math.ceil(backend.start_timeout))
    if backend.started_cluster:
        timeout = min(timeout, OWN_CLUSTER_TIMEOUT)
    bundles = [worker_resources(backend)] * backend.num_workers
    group = placement_group(bundles, strategy=backend.placement_strategy)
    try:
        if group.wait(timeout):
            return
    finally:
        remove_placement_group(group)
    reason = lacking(backend) or (
        f"RayBackend: the cluster has no room for {backend.num_workers} workers of "
        f"{described(worker_resources(backend))} each with placement_strategy="
        f"{backend.placement_strategy!r}: others use it, or its {n_machines()} machines are too "
        "few or too small"
    )
    raise ValueError(f"{reason}. Waited for {timeout} s (start_timeout={backend.start_timeout})")


def worker_resources(backend):
    """Return the resources that a worker reserves, by name."""
    required = {"CPU": 1.0, **({"GPU": 1.0} if backend.use_gpu else {})}
    return {**required, **(backend.resources_per_worker or {})}


def lacking(backend):
    """Return a message if the cluster as a whole is too small for the workers, or else None."""
    available = ray.cluster_resources()
    for name, amount in worker_resources(backend).items():
        if backend.num_workers * amount > available.get(name, 0):
            return (
                f"RayBackend: {backend.num_workers} workers of {amount:g} {name} each are more "
                f"than the cluster has ({available.get(name, 0):g}); lower num_workers or "
                "resources_per_worker"
            )
    return None


def described(resources):
    """Return resources in words."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def n_machines():
    """Return the number of machines of the cluster."""
    return sum(node["Alive"] for node in ray.nodes())


def worker_memory():
    """Return the largest size of this worker's encoded rows in memory, in bytes.

    Half of the memory that Ray counts for this machine, divided by the workers on it.
    """
    here = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    n_workers = max(1, ray.train.get_context().get_local_world_size())
    return int(resources.get("memory", 4 << 30) / 2 / n_workers)


@contextmanager
def storage(backend):
    """Yield the directory or URL for checkpoints and the state of Ray Train.

    It is in `storage_path`, or else among temporary files, and is removed afterwards. Those of
    processes that were killed on this machine are removed before.
    """
    if backend.storage_path is not None:
        path = os.fspath(backend.storage_path)
        path = path if "://" in path else os.path.abspath(path)
        directory = name_directory(path, "fit")
        try:
            yield directory
        finally:
            remove_directory(directory)
        return
    directory = make_temporary_directory("ray")
    try:
        yield directory
    finally:
        remove_temporary_directory(directory)


@contextmanager
def frequent_health_checks():
    """Set the interval of Ray Train's health checks to 0.1 seconds.

    The default is two seconds, for which each report of a worker waits.
    """
    name = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    previous = os.environ.get(name)
    os.environ.setdefault(name, "0.1")
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop(name, None)


@contextmanager
def restored_interrupts():
    """Restore the handler of SIGINT, which Ray Train replaces, after the context."""
    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)


# ---------------------------------------------------------------------- in a worker


def train_worker(config):
    """Train on a shard of the rows; called by Ray Train in each worker.

    Parameters
    ----------
    config : dict
        ``"job"``, a reference to a :class:`Job`, and ``"errors"``, an :class:`ErrorCollector` or
        the handle of its actor.

    Returns
    -------
    tuple or None
        State of the network and :class:`TrainingResult` in the first worker. None in the other
        workers, and if an error of the user's data or code was collected.
    """
    rank = ray.train.get_context().get_world_rank()
    group = SingleProcess()
    if _collected(config["errors"]):
        # These workers replace others that stopped at an error of the user's data or code, which
        # is not retried.
        return None
    try:
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            group = ProcessGroup("cuda" if distributed.get_backend() == "nccl" else "cpu")
        job = ray.get(config["job"])
        with limited_threads(job.threads):
            return _train(job, group, rank)
    except LostWorkerError:
        if not _collected(config["errors"]) or not group.leave():
            # Another worker died. Ray Train replaces all workers.
            raise
        return None
    except BaseException as error:
        mask_error(error)
        _add(config["errors"], (rank, _pickled(error), traceback.format_exc()))
        if isinstance(group, ProcessGroup) and not group.leave():
            # Other workers may wait for this one. Ray Train stops them when one fails.
            raise
        return None


def _train(job, group, rank):
    settings = replace(
        job.settings,
        device=resolve_device(job.settings.device, "worker"),
        verbose=job.settings.verbose if rank == 0 else 0,
        group=group,
    )
    if settings.checkpoints is not None:
        settings.checkpoints = SharedCheckpoints(settings.checkpoints, group, joined_descriptions)
    memory = worker_memory() if job.memory is None else job.memory
    datasets = {}
    for numbers, shards in job.shards:
        datasets.update(zip(numbers, shards[rank].rows(memory), strict=True))
    rows, *valid_rows = (datasets[number] for number in sorted(datasets))
    if rank == 0:
        torch.set_rng_state(job.random_state)
    else:
        torch.manual_seed(job.seed + 1_000_003 * rank)
    result = train_network(job.network, job.head, rows, valid_rows, settings)
    if job.inspection is not None:
        result.inspected = job.inspection.compute(
            job.network, rows, valid_rows, group, result.linear
        )
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
