"""Ray tasks and actors: what they return, or the user's error; what they get of the cluster."""

from __future__ import annotations

from contextlib import suppress

import ray
from ray.exceptions import RayTaskError

__all__ = ["actor_resources", "n_cpus", "n_threads", "results"]


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
        raise error.cause from error


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
