"""Blocks fitted on a cluster: chunks are summarised by tasks, summaries merged by tasks."""

from __future__ import annotations

import ray

from sk_easytensor.backends.ray.tasks import n_cpus, remote, results
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.summaries import SummaryMap, merge_all

__all__ = [
    "Summaries",
    "summarize_chunks",
]


FAN_IN = 8
"""Summaries that a task merges."""

PACKS = 16
"""Parts that the summary of a chunk comes in at most; different parts are merged apart."""


class Summaries:
    """Merged summaries by name of block or function, fetched when they are asked for.

    Parameters
    ----------
    refs : list of ray.ObjectRef
        Of dictionaries of summaries by name and columns.
    keys : list of list of tuple
        What each holds.
    """

    def __init__(self, refs, keys):
        self.refs = refs
        self.keys = keys

    def __getitem__(self, name):
        found = {}
        for ref, keys in zip(self.refs, self.keys, strict=True):
            if any(key[0] == name for key in keys):
                pack = results([ref])[0]
                found.update({key: pack[key] for key in keys if key[0] == name})
        parts = list(found.values())
        if len(parts) == 1:
            return parts[0]
        return SummaryMap({column: part for each in parts for column, part in each.items()})


def summarize_chunks(dataset, work):
    """Summarise rows in one pass.

    Each task reads a chunk and returns its summaries in a few packs. Packs are merged by tasks, as
    a tree whose shape depends on the number of chunks only, so that the result does not depend on
    which task ends first.

    Parameters
    ----------
    dataset : RayTableDataset
        The rows.
    work : dict of {str: tuple of (callable, list of list of str)}
        Functions from a table to a :class:`~sk_easytensor.data.summaries.Summary`, and the groups
        of columns that each is called with; those of several groups are
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
    how = ray.put((dataset.reading, functions, packs))
    levels, running = [[[] for _ in packs]], []

    def add(level, found):
        if level == len(levels):
            levels.append([[] for _ in packs])
        for waiting, ref in zip(levels[level], found, strict=True):
            waiting.append(ref)
        if len(levels[level][0]) == FAN_IN:
            merged = [merge.remote(*waiting) for waiting in levels[level]]
            levels[level] = [[] for _ in packs]
            add(level + 1, merged)

    for chunk in dataset.chunks:
        found = summarize.remote(chunk, how, dataset.chunk_rows)
        found = found if isinstance(found, list) else [found]
        running.append(found[0])
        add(0, found)
        if len(running) > 2 * n_cpus():
            # So that no more chunks are read than there are processors to read them.
            running = ray.wait(running, fetch_local=False)[1]
    # In the order of the chunks: those that wait on lower levels are of the last ones.
    rest = [[r for level in reversed(levels) for r in level[p]] for p in range(len(packs))]
    refs = [merge.remote(*waiting) for waiting in rest]
    return Summaries(refs, packs)


def summarize_chunk(chunk, how, chunk_rows):
    """Task: summarise a chunk by all functions, in packs."""
    reading, functions, packs = how
    parts = {key: [] for pack in packs for key in pack}
    first = chunk.first
    for table, _, _ in reading.pieces(chunk, chunk_rows):
        with row_errors_from(first):
            for (name, *columns), found in parts.items():
                found.append(functions[name](table.select(columns)))
                if len(found) == FAN_IN:
                    found[:] = [merge_all(found)]
        first += len(table)
    merged = [{key: merge_all(parts[key]) for key in pack if parts[key]} for pack in packs]
    return merged if len(merged) > 1 else merged[0]


def merge_packs(*packs):
    """Task: merge packs of summaries key by key."""
    packs = [pack for pack in packs if pack]
    return {key: merge_all([pack[key] for pack in packs]) for key in packs[0]}
