"""Ray tasks and actors: their results, the errors of user code in them, and their resources."""

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
    """Tracebacks of workers, as the cause of the error that is raised in the driver."""

    def __str__(self):
        return "\n\n" + "\n\n".join(self.args)


def remote(function):
    """Return a Ray task that calls a function.

    Passwords in its errors are masked in the task: Ray writes errors to the logs of the worker and
    of the driver, where they could not be masked any more.
    """

    @wraps(function)
    def masked_function(*args, **kwargs):
        with masked_errors():
            return function(*args, **kwargs)

    return ray.remote(masked_function)


def results(refs):
    """Return the results of tasks, or raise the first error of the user's data or code."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        for ref in refs:
            # Ray prints errors whose references were never resolved.
            with suppress(Exception):
                ray.get(ref)
        if error.cause is None:
            raise
        cause, text = error.cause, masked(error)
    # Raised outside of the except clause, so that Ray's error is not its context.
    raise cause from WorkerTracebacks(text)


def n_cpus():
    """Return the number of processors of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def n_threads(backend):
    """Return the number of threads of a worker."""
    return max(1, int((backend.resources_per_worker or {}).get("CPU", 1)))


def actor_resources(backend):
    """Return the resources of a worker as options of Ray tasks and actors."""
    resources = {"CPU": 1, "GPU": int(backend.use_gpu), **(backend.resources_per_worker or {})}
    named = {"num_cpus": resources.pop("CPU"), "num_gpus": resources.pop("GPU")}
    return {**named, "resources": resources} if resources else named
