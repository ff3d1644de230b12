"""Summaries on a cluster: tasks summarise chunks, and tasks merge the summaries."""

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
