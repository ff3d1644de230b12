"""Logs on a cluster: the events of each user brought together by tasks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray

from sk_easytensor.backends.ray_chunks import HeldChunk
from sk_easytensor.backends.ray_tasks import n_cpus, remote, results
from sk_easytensor.columns import RowError
from sk_easytensor.event_times import decoded, refuse_missing
from sk_easytensor.events import collect_sequences
from sk_easytensor.keys import hash_strings
from sk_easytensor.tables import as_table

__all__ = ["collect_users"]

PARTS = 16, 256
"""Parts that users are divided among, at least and at most; otherwise as many as chunks."""


def collect_users(log, by, order_by, columns):
    """Collect the events of each user of a log into lists.

    Parameters
    ----------
    log : RayRecords
        A row for each event.
    by : str or list of str
        Columns that name the user.
    order_by : str
        Column of times.
    columns : list of str
        Columns to collect.

    Returns
    -------
    list of HeldChunk
        Tables with a row for each user, and the columns of lists.

    Notes
    -----
    One task a chunk divides its events by a hash of their users, and one task a part collects
    those of its users. Parts are joined in the order of the chunks, so that events of the same
    time stay in the order of the log, and all is the same in every run. Ray keeps on disk what its
    object store has no room for.
    """
    by = [by] if isinstance(by, str) else list(by)
    log = log.select(list(dict.fromkeys([*by, order_by, *columns])))
    n_parts = min(max(PARTS[0], len(log.chunks)), PARTS[1])
    divide = remote(divide_events).options(num_returns=n_parts)
    collect = remote(collect_part).options(num_returns=2)
    reading, running, divided = ray.put(log.reading), [], []
    for chunk in log.chunks:
        parts = divide.remote(chunk, reading, log.chunk_rows, by, order_by, n_parts)
        divided.append(parts)
        running.append(parts[0])
        if len(running) > 2 * n_cpus():
            # So that no more chunks are read than there are processors to read them.
            running = ray.wait(running, fetch_local=False)[1]
    found = [
        collect.remote(by, order_by, columns, *(parts[part] for parts in divided))
        for part in range(n_parts)
    ]
    chunks, first = [], 0
    for (ref, _), n_users in zip(found, results([count for _, count in found]), strict=True):
        if n_users:
            chunks.append(HeldChunk(ref, n_users, first))
            first += n_users
    return chunks


def divide_events(chunk, reading, chunk_rows, by, order_by, n_parts):
    """Task: divide a chunk's events among parts by their users."""
    table = pa.concat_tables([piece for piece, _, _ in reading.pieces(chunk, chunk_rows)])
    try:
        for name in by:
            refuse_missing(table[name], name, "events", "entity")
        refuse_missing(table[order_by], order_by, "events", "time")
    except RowError as error:
        raise error.shifted(chunk.first) from None
    part = user_hashes(table, by) % np.uint64(n_parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(n_parts + 1))
    # Rows that are taken share no memory with those of other parts.
    return [
        table.take(pa.array(order[start:stop])).combine_chunks() for start, stop in pairwise(bounds)
    ]


def user_hashes(table, by):
    """Return a hash of each event's user, uint64 of shape (n_events,)."""
    total = np.zeros(len(table), dtype=np.uint64)
    for name in by:
        column = decoded(table[name]).combine_chunks().dictionary_encode()
        names = hash_strings(column.dictionary.cast(pa.string()))
        total = total * np.uint64(31) + names[column.indices.to_numpy()]
    return total


def collect_part(by, order_by, columns, *parts):
    """Task: collect the events of a part's users, and count these."""
    log = pa.concat_tables(parts)
    if len(log) == 0:
        return None, 0
    lists = collect_sequences(log, by=by, order_by=order_by, columns=columns, prefix="")
    table = as_table(lists.select(columns)).combine_chunks()
    return (table, np.zeros(len(table)), np.ones(len(table))), len(table)
