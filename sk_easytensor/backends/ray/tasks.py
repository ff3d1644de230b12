"""Ray tasks and actors: what they return, or the user's error; what they get of the cluster."""

from __future__ import annotations

from contextlib import suppress
from functools import wraps

import ray
from ray.exceptions import RayTaskError

from sk_easytensor._utils.masking import masked, masked_errors

__all__ = [
    "WorkerTracebacks",
    "actor_resources",
    "n_cpus",
    "n_threads",
    "remote",
    "results",
]


class WorkerTracebacks(Exception):
    """What the workers' tracebacks say; the cause of the error that is raised."""

    def __str__(self):
        return "\n\n" + "\n\n".join(self.args)


def remote(function):
    """Return a Ray task of a function.

    Its errors are masked where they are raised: Ray writes them to the logs of the worker and of
    the driver, and what an error of a task is displayed as cannot be changed any more.
    """

    @wraps(function)
    def within(*args, **kwargs):
        with masked_errors():
            return function(*args, **kwargs)

    return ray.remote(within)


def results(refs):
    """Return the results of tasks, or raise the error of the user's data or code."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        for ref in refs:
            # Ray prints the errors that nobody asked for.
            with suppress(Exception):
                ray.get(ref)
        if error.cause is None:
            raise
        cause, text = error.cause, masked(error)
    # Outside of the context of Ray's own error.
    raise cause from WorkerTracebacks(text)


def n_cpus():
    """Return how many processors the cluster has."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def n_threads(backend):
    """Return how many threads a worker may use."""
    return max(1, int((backend.resources_per_worker or {}).get("CPU", 1)))


def actor_resources(backend):
    """Return what a worker gets, in the words of tasks and actors."""
    resources = {"CPU": 1, "GPU": int(backend.use_gpu), **(backend.resources_per_worker or {})}
    named = {"num_cpus": resources.pop("CPU"), "num_gpus": resources.pop("GPU")}
    return {**named, "resources": resources} if resources else named
