"""Encoded rows that stay where they are in a cluster."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
import torch

from sk_easytensor._utils.digests import table_digest
from sk_easytensor.backends.ray.chunks import (
    ObjectStoreChunk,
    Reading,
    named_columns,
    stored_chunks,
)
from sk_easytensor.backends.ray.progress import collect_users
from sk_easytensor.backends.ray.summarize import summarize_chunks
from sk_easytensor.backends.ray.tasks import n_cpus, remote, results
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.validation import check_weight, errors_name
from sk_easytensor.training.dataset import Dataset, validation_rows
from sk_easytensor.training.table_dataset import BaseTableDataset, TableDataset, require_columns

__all__ = [
    "EncodePlan",
    "RayDataset",
    "RayTableDataset",
    "Shard",
    "hold_dataset",
    "open_dataset",
]


class RayDataset(Dataset):
    """Rows that are encoded by the workers that train on them.

    Parameters
    ----------
    table_dataset : RayTableDataset
        The rows.
    encoder : BaseRowEncoder
        Encodes them.
    """

    def __init__(self, table_dataset, encoder):
        self.table_dataset = table_dataset
        self.encoder = encoder
        self.functions = ()
        self.split = None
        self.counts = table_dataset.counts

    def __len__(self):
        return sum(self.counts)

    def map(self, function):
        """Apply a function from rows to rows when the rows are made."""
        other = copy(self)
        other.functions = (*self.functions, function)
        return other

    def map_chunks(self, function):
        """Apply a function to targets and weights of each chunk in tasks."""
        plan = self._encode_plan()
        found = self.table_dataset.each_chunk(
            lambda number, *targets: function(plan.targets(number, *targets)),
            self.encoder.columns,
        )
        # A chunk may be too small for a validation row.
        return [part for part, count in zip(found, self.counts, strict=True) if count]

    def hold_out(self, strata, fraction, random_state):
        """Take validation rows out of each chunk, evenly from the groups of its rows."""
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        split = partial(chunk_split, strata=strata, fraction=fraction, seed=seed)
        encoder = self.encoder
        sizes = self.table_dataset.each_chunk(
            lambda number, *targets: [
                len(part) for part in split(number, encoder.encode_targets(*targets))
            ],
            encoder.columns,
        )
        if not any(size[1] for size in sizes):
            return self, []
        parts = []
        for part in range(2):
            other = copy(self)
            other.split, other.counts = (split, part), [size[part] for size in sizes]
            parts.append(other)
        return parts[0], parts[1:]

    def shards(self, n_workers):
        """Return each worker's :class:`Shard`: as many rows for each as chunks allow."""
        filled, numbers = [0] * n_workers, [[] for _ in range(n_workers)]
        for number in np.argsort(-np.array(self.counts), kind="stable"):
            worker = int(np.argmin(filled))
            filled[worker] += self.counts[number]
            numbers[worker].append(int(number))
        if not all(filled):
            raise ValueError(
                f"RayBackend: the rows are in {np.count_nonzero(self.counts)} chunks, too few for "
                f"{n_workers} workers"
            )
        return [
            Shard([(n, self.table_dataset.chunks[n]) for n in sorted(own)], self._encode_plan())
            for own in numbers
        ]

    def _encode_plan(self):
        dataset = self.table_dataset
        return EncodePlan(
            dataset.reading, dataset.chunk_rows, self.encoder, self.functions, self.split
        )


def chunk_split(number, rows, strata, fraction, seed):
    """Split a chunk's rows into those to train on and those to validate on."""
    random = np.random.RandomState([seed, number])
    return validation_rows(strata(rows.target), fraction, random)


@dataclass
class EncodePlan:
    """How encoded rows are made of a chunk."""

    reading: object
    chunk_rows: int
    encoder: object
    functions: tuple
    split: tuple | None

    def targets(self, number, table, y, weight):
        """Return rows without features, but for those that a few columns tell."""
        rows = self.encoder.encode_targets(table, y, weight)
        if self.split is not None:
            split, part = self.split
            rows = rows.take(torch.from_numpy(split(number, rows)[part]))
        return self.applied(rows)

    def parts(self, number, chunk):
        """Yield the chunk's rows, encoded, some at a time; no function is applied to them."""
        chosen = self._chosen(number, chunk)
        first = 0
        for table, y, weight in self.reading.pieces(chunk, self.chunk_rows):
            n_rows = len(table)
            if chosen is not None:
                begin, end = np.searchsorted(chosen, [first, first + n_rows])
                rows = chosen[begin:end] - first
                table, y, weight = table.take(pa.array(rows)), y[rows], weight[rows]
            if len(table):
                with row_errors_from(chunk.first + first):
                    encoded = self.encoder.encode(table, y, weight)
                yield encoded
            first += n_rows

    def _chosen(self, number, chunk):
        """Return which of the chunk's rows are asked for; None for all."""
        if self.split is None:
            return None
        targets = self.reading.targets_of(chunk, self.encoder.columns)
        split, part = self.split
        return split(number, self.encoder.encode_targets(*targets))[part]

    def applied(self, rows):
        """Apply the functions to rows, as soon as these are read."""
        for function in self.functions:
            rows = rows.map(function)
        return rows


@dataclass
class Shard:
    """A worker's chunks, and how it encodes them."""

    chunks: list
    plan: EncodePlan

    def rows(self, memory):
        """Return the encoded rows, in memory if they take at most so many bytes."""
        parts = (part for number, chunk in self.chunks for part in self.plan.parts(number, chunk))
        return self.plan.applied(self.plan.encoder.concatenate(parts, memory))


SAMPLE_CHUNKS, SAMPLE_ROWS = 8, 8_192
"""What is looked at to choose blocks: so many chunks, so many rows of each."""


class RayTableDataset(BaseTableDataset):
    """Rows of positive weight in chunks: in the object store, a Ray Dataset or Parquet files.

    Parameters
    ----------
    chunks : list
        Where the rows are.
    reading : Reading
        How they are read.
    source : object
        What the user gave.
    memory : TableDataset or None
        The rows, if this process has them anyway.
    chunk_rows : int
        Rows that are read at a time.
    """

    def __init__(self, chunks, reading, source, memory, chunk_rows):
        self.chunks = chunks
        self.reading = reading
        self.source = source
        self.memory = memory
        self.chunk_rows = chunk_rows
        self.counts = [len(chunk) for chunk in chunks]
        self._sample = memory

    def __len__(self):
        return sum(self.counts)

    def digest(self):
        """Return a digest that differs for other rows, as far as these are known.

        Of rows that no process has, that is their number, columns and the first of them.
        """
        if self.memory is not None:
            return self.memory.digest()
        columns = [*self.reading.features, *self.reading.targets, *self.reading.weights]
        first = table_digest(self.sample().table.slice(0, 1))
        return f"{len(self)} rows of {columns}, the first {first}"

    def map_chunks(self, function):
        """Apply a function to the targets of each chunk, in tasks unless these are in memory."""
        return self.each_chunk(lambda number, table, y, weight: function(y))

    def each_chunk(self, function, columns=()):
        """Return what a function gives for number, columns, targets and weights of each chunk.

        Parameters
        ----------
        function : callable
            Takes the number, a table of the columns, and two arrays.
        columns : sequence of str
            The columns that are read.

        Returns
        -------
        list
        """
        if self.memory is not None:
            return [
                apply_to_targets(function, number, chunk, self._remembered(chunk, columns))
                for number, chunk in enumerate(self.chunks)
            ]
        numbers = np.array_split(np.arange(len(self.chunks)), min(len(self.chunks), 4 * n_cpus()))
        look = remote(look_at_targets)
        function, reading = ray.put([function]), ray.put(self.reading)
        refs = [
            look.remote([(int(n), self.chunks[n]) for n in part], reading, function, columns)
            for part in numbers
        ]
        return [found for part in results(refs) for found in part]

    def _remembered(self, chunk, columns):
        part = slice(chunk.first, chunk.first + len(chunk))
        table = self.memory.table.select(list(columns)).slice(chunk.first, len(chunk))
        return table, self.memory.y[part], self.memory.weight[part]

    def select(self, columns):
        """Return the rows with some of the columns only."""
        other = copy(self)
        other.reading = replace(self.reading, features=list(columns))
        other.memory = None if self.memory is None else self.memory.select(columns)
        other._sample = self.sample().select(columns)
        return other

    def summarize(self, blocks, executor):
        """Summarise chunks for blocks in tasks."""
        return summarize_chunks(
            self,
            {
                name: (block.summarize, [[c] for c in columns] if block.column_wise else [columns])
                for name, (block, columns) in blocks.items()
            },
        )

    def map_reduce(self, function, executor):
        """Apply a function to chunks in tasks, and merge the summaries in tasks."""
        return summarize_chunks(self, {"": (function, [self.column_names])})[""]

    def collect_sequences(self, by, order_by):
        """Return the event sequences of a log, a row for each user."""
        if self.memory is not None:
            return hold_dataset(self.memory.collect_sequences(by, order_by), len(self.chunks))
        return RayLog(self, by, order_by)

    def sample(self):
        """Return some of the rows, as :class:`TableDataset` in memory."""
        if self._sample is None:
            few = np.unique(np.linspace(0, len(self.chunks) - 1, SAMPLE_CHUNKS).astype(int))
            head = remote(first_rows)
            reading = ray.put(self.reading)
            parts = results([head.remote(self.chunks[n], reading, SAMPLE_ROWS) for n in few])
            tables, targets, weights = zip(*parts, strict=True)
            table = pa.concat_tables(tables).unify_dictionaries()
            self._sample = TableDataset(
                table, np.concatenate(targets), np.concatenate(weights), self.source
            )
        return self._sample

    def encode(self, encoder):
        """Return the rows as :class:`RayDataset`, which are encoded by the workers."""
        return RayDataset(self, encoder)


class RayLog(BaseTableDataset):
    """The users of a log in chunks, whose events are collected when they are needed.

    Only the columns that are selected are collected: selecting some first saves time.

    Parameters
    ----------
    log : RayTableDataset
        A row for each event.
    by, order_by
        As of :func:`~sk_easytensor.events.collect_sequences`.
    """

    def __init__(self, log, by, order_by):
        self.log = log
        self.by = by
        self.order_by = order_by
        self.source = log.source
        self._sample = log.sample().collect_sequences(by, order_by)

    @cached_property
    def _collected(self):
        return self.select(self.column_names)

    def __len__(self):
        return len(self._collected)

    def digest(self):
        """Return the digest of the log, with the columns that say how it is collected."""
        return f"{self.log.digest()} by {self.by} in the order of {self.order_by}"

    def sample(self):
        """Return some users in memory; their lists are not whole."""
        return self._sample

    def select(self, columns):
        """Collect the columns of all users, and return them as :class:`RayTableDataset`."""
        chunks = collect_users(self.log, self.by, self.order_by, list(columns))
        reading = Reading.of_held(list(columns))
        dataset = RayTableDataset(chunks, reading, self.source, None, max(map(len, chunks)))
        dataset._sample = self._sample.select(columns)
        return dataset

    def map_chunks(self, function):
        """Apply a function to the users' targets, which are zeros."""
        return self._collected.map_chunks(function)

    def summarize(self, blocks, executor):
        """Summarise the users' sequences for blocks in tasks."""
        return self._collected.summarize(blocks, executor)

    def map_reduce(self, function, executor):
        """Apply a function to chunks of users in tasks, and merge the summaries."""
        return self._collected.map_reduce(function, executor)

    def collect_sequences(self, by, order_by):
        """Collect the users' rows into lists."""
        return self._collected.collect_sequences(by, order_by)

    def encode(self, encoder):
        """Return the users as :class:`RayDataset`."""
        return self._collected.encode(encoder)


def hold_dataset(dataset, n_chunks):
    """Put rows that are in memory into the object store.

    Parameters
    ----------
    dataset : TableDataset
        The rows.
    n_chunks : int
        How many chunks to make.

    Returns
    -------
    RayTableDataset
    """
    n_chunks = min(n_chunks, len(dataset))
    bounds = [len(dataset) * part // n_chunks for part in range(n_chunks + 1)]
    chunks = []
    for start, stop in pairwise(bounds):
        # Rows that are taken share no memory with those of other chunks.
        table = dataset.table.take(pa.array(np.arange(start, stop))).combine_chunks()
        ref = ray.put((table, dataset.y[start:stop], dataset.weight[start:stop]))
        chunks.append(ObjectStoreChunk(ref, stop - start, start))
    reading = Reading.of_held(dataset.table.column_names)
    return RayTableDataset(chunks, reading, dataset.source, dataset, len(dataset))


def open_dataset(X, y, sample_weight, read, check_target, where, *, n_chunks, chunk_rows):
    """Find the chunks of Parquet files or a Ray Dataset, and check their targets and weights.

    Parameters
    ----------
    X : str, os.PathLike or ray.data.Dataset
        Where the rows are.
    y : str, list of str or None
        Columns of targets; None if `check_target` says that rows may do without.
    sample_weight : str or None
        Column of weights.
    read, check_target, where
        As of :func:`~sk_easytensor.training.table_dataset.read_dataset`.
    n_chunks : int
        Chunks to make at least, where rows allow.
    chunk_rows : int
        Rows that are read at a time.

    Returns
    -------
    RayTableDataset
    """
    targets, weights = named_columns(X, y, sample_weight)
    with errors_name(where):
        if y is None:
            check_target(y)
        schema, chunks = stored_chunks(X, n_chunks)
        require_columns(schema.names, [*targets, *weights])
        features = [name for name in schema.names if name not in {*targets, *weights}]
        reading = Reading(read, check_target, features, targets, weights)
        dataset = RayTableDataset(chunks, reading, X, None, chunk_rows)
        found = dataset.each_chunk(lambda number, table, y, w: (len(y), w.max(initial=0)))
        dataset.counts = [count for count, _ in found]
        if len(dataset) == 0:
            check_weight(np.zeros(1), 1)
        reading.most = max(most for _, most in found)
        # Columns that are missing are noticed here.
        dataset.sample()
    return dataset


def look_at_targets(chunks, reading, function, columns):
    """Task: apply a function to number, some columns, targets and weights of chunks."""
    return [
        apply_to_targets(function[0], number, chunk, reading.targets_of(chunk, columns))
        for number, chunk in chunks
    ]


def apply_to_targets(function, number, chunk, targets):
    """Call a function with what is known of a chunk; errors name the row among all rows."""
    with row_errors_from(chunk.first):
        return function(number, *targets)


def first_rows(chunk, reading, n_rows):
    """Task: return the first rows of a chunk."""
    for table, y, weight in reading.pieces(chunk, n_rows):
        return table, y, weight
    table = next(iter(chunk.tables(reading.features, 1)))
    return table.slice(0, 0), np.empty(0), np.empty(0)
