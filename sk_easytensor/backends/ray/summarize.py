"""Ray tasks, their results and their errors, and the summaries that tasks compute and merge."""

from __future__ import annotations

from contextlib import suppress
from functools import wraps

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sk_easytensor._utils.masking import masked, masked_errors
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.summaries import SummaryMap, merge_all

__all__ = [
    "Summaries",
    "WorkerTracebacks",
    "actor_of_driver",
    "actor_resources",
    "n_cpus",
    "n_threads",
    "remote",
    "results",
    "summarize_chunks",
]


class WorkerTracebacks(Exception):
    """Tracebacks of workers, as the cause of the error that is raised in the driver."""

    def __str__(self):
        return "\n\n" + "\n\n".join(self.args)


def remote(function):
    """Return a Ray task that calls a function.

    It runs wherever the cluster has room, also if it is called within a task that reserved some,
    such as a trial of Ray Tune. Passwords in its errors are masked in the task: Ray writes errors
    to the logs of the worker and of the driver, where they could not be masked any more.
    """

    @wraps(function)
    def masked_function(*args, **kwargs):
        with masked_errors():
            return function(*args, **kwargs)

    # Otherwise it would run within the reservation of the caller.
    return ray.remote(scheduling_strategy="DEFAULT")(masked_function)


def actor_of_driver(kind):
    """Start an actor on the machine of this process, which may outlive any other machine.

    Parameters
    ----------
    kind : type
        Class whose constructor takes no arguments.

    Returns
    -------
    actor handle
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote()


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


FAN_IN = 8
"""Number of summaries that a task merges."""

PACKS = 16
"""Largest number of packs into which the summaries of a chunk are divided. Each pack is merged by
tasks of its own."""


class Summaries:
    """Merged summaries by name of block or function, fetched when they are accessed.

    Parameters
    ----------
    refs : list of ray.ObjectRef
        References to packs, dictionaries of summaries by name and columns.
    keys : list of list of tuple
        Keys of each pack.
    """

    def __init__(self, refs, keys):
        self.refs = refs
        self.keys = keys

    def __getitem__(self, name):
        summaries = []
        for ref, keys in zip(self.refs, self.keys, strict=True):
            if any(key[0] == name for key in keys):
                pack = results([ref])[0]
                summaries += [pack[key] for key in keys if key[0] == name]
        if len(summaries) == 1:
            return summaries[0]
        return SummaryMap(
            {column: part for summary in summaries for column, part in summary.items()}
        )


def summarize_chunks(dataset, work):
    """Summarise rows in one pass.

    Each task reads a chunk and returns its summaries in at most `PACKS` packs. Packs are merged by
    tasks, in a tree whose shape depends on the number of chunks only, so that the result does not
    depend on which task ends first.

    Parameters
    ----------
    dataset : RayTableDataset
        Rows to summarise.
    work : dict of {str: tuple of (callable, list of list of str)}
        By name, a function from a table to a :class:`~sk_easytensor.data.summaries.Summary`, and
        the groups of columns with which it is called. With several groups, summaries are
        :class:`~sk_easytensor.data.summaries.SummaryMap`.

    Returns
    -------
    Summaries
    """
    keys = [(name, *group) for name, (_, groups) in work.items() for group in groups]
    packs = [keys[start::PACKS] for start in range(min(PACKS, len(keys)))]
    summarize = remote(summarize_chunk).options(num_returns=len(packs))
    merge = remote(merge_packs)
    functions = {name: function for name, (function, _) in work.items()}
    config = ray.put((dataset.reading, functions, packs))
    # References by level of the merge tree and pack, each list shorter than FAN_IN.
    levels, running = [[[] for _ in packs]], []

    def add(level, refs):
        if level == len(levels):
            levels.append([[] for _ in packs])
        for pending, ref in zip(levels[level], refs, strict=True):
            pending.append(ref)
        if len(levels[level][0]) == FAN_IN:
            merged = [merge.remote(*pending) for pending in levels[level]]
            levels[level] = [[] for _ in packs]
            add(level + 1, merged)

    for chunk in dataset.chunks:
        refs = summarize.remote(chunk, config, dataset.chunk_rows)
        refs = refs if isinstance(refs, list) else [refs]
        running.append(refs[0])
        add(0, refs)
        if len(running) > 2 * n_cpus():
            # At most twice as many chunks as processors are read at a time.
            running = ray.wait(running, fetch_local=False)[1]
    # In the order of the chunks: higher levels have the earlier chunks.
    pending = [[r for level in reversed(levels) for r in level[p]] for p in range(len(packs))]
    return Summaries([merge.remote(*refs) for refs in pending], packs)


def summarize_chunk(chunk, config, chunk_rows):
    """Task: apply all functions to a chunk; return packs of summaries."""
    reading, functions, packs = config
    parts = {key: [] for pack in packs for key in pack}
    first = chunk.first
    for table, _, _ in reading.pieces(chunk, chunk_rows):
        with row_errors_from(first):
            for (name, *columns), summaries in parts.items():
                summaries.append(functions[name](table.select(columns)))
                if len(summaries) == FAN_IN:
                    summaries[:] = [merge_all(summaries)]
        first += len(table)
    merged = [{key: merge_all(parts[key]) for key in pack if parts[key]} for pack in packs]
    return merged if len(merged) > 1 else merged[0]


def merge_packs(*packs):
    """Task: merge packs of summaries, key by key."""
    packs = [pack for pack in packs if pack]
    return {key: merge_all([pack[key] for pack in packs]) for key in packs[0]}
