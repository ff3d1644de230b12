"""Data sets on a cluster: rows of tables in chunks, and their encoding by workers."""

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
from sk_easytensor.backends.ray.summarize import n_cpus, remote, results, summarize_chunks
from sk_easytensor.data.columns import row_errors_from
from sk_easytensor.data.validation import check_weight, errors_name
from sk_easytensor.training.dataset import Dataset
from sk_easytensor.training.splits import Folds
from sk_easytensor.training.table_dataset import BaseTableDataset, TableDataset, require_columns

__all__ = [
    "EncodePlan",
    "RayDataset",
    "RayTableDataset",
    "Shard",
    "assign_shards",
    "open_dataset",
    "put_dataset",
]


class RayDataset(Dataset):
    """Rows that are encoded by the workers that train on them.

    Parameters
    ----------
    table_dataset : RayTableDataset
        Rows before encoding.
    encoder : BaseRowEncoder
        Encodes chunks of rows.
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
        """Return the rows with a function applied to them after encoding."""
        mapped = copy(self)
        mapped.functions = (*self.functions, function)
        return mapped

    def map_chunks(self, function):
        """Apply a function to targets and weights of each chunk in tasks."""
        plan = self.encode_plan()
        per_chunk = self.table_dataset.map_targets(
            lambda number, *targets: function(plan.targets(number, *targets)),
            self.encoder.columns,
        )
        # A chunk may be too small for a validation row.
        return [result for result, count in zip(per_chunk, self.counts, strict=True) if count]

    def hold_out(self, strata, fraction, random_state):
        """Hold out rows of each chunk, evenly from the strata of its rows, or the last of all."""
        if random_state is None:
            ends = np.cumsum(self.counts)
            first = int(ends[-1] - round(fraction * ends[-1]))
            starts = first - ends + np.array(self.counts)
            return self._split(partial(chunk_split_last, starts=starts))
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        return self._split(partial(chunk_split, strata=strata, fraction=fraction, seed=seed))

    def folds(self, strata, n_folds, random_state):
        """Hold out each row of each chunk once, evenly from the strata of its rows."""
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        split = partial(chunk_fold, strata=strata, n_folds=n_folds, seed=seed)
        splits = [self._split(partial(split, fold=fold)) for fold in range(n_folds)]
        return Folds.of(splits, len(self))

    def _split(self, split):
        """Return training rows, and validation rows in a list, by a function as `chunk_split`."""
        encoder = self.encoder
        sizes = self.table_dataset.map_targets(
            lambda number, *targets: [
                len(part) for part in split(number, encoder.encode_targets(*targets))
            ],
            encoder.columns,
        )
        if not any(size[1] for size in sizes):
            return self, []
        parts = []
        for part in range(2):
            rows = copy(self)
            rows.split, rows.counts = (split, part), [size[part] for size in sizes]
            parts.append(rows)
        return parts[0], parts[1:]

    def encode_plan(self):
        """Return how workers read and encode the rows, an :class:`EncodePlan`."""
        dataset = self.table_dataset
        return EncodePlan(
            dataset.reading, dataset.chunk_rows, self.encoder, self.functions, self.split
        )


def chunk_split(number, rows, strata, fraction, seed):
    """Return the indices of a chunk's training rows and of its validation rows."""
    random = np.random.RandomState([seed, number])
    return rows.split_rows(strata, fraction, random)


def chunk_split_last(number, rows, starts):
    """Return the indices of a chunk's training rows, and of those from a row on."""
    rows = np.arange(len(rows.target))
    return rows[: max(starts[number], 0)], rows[max(starts[number], 0) :]


def chunk_fold(number, rows, strata, n_folds, fold, seed):
    """Return the indices of a chunk's training rows in a fold, and of its validation rows."""
    # The first rows of chunks are held out by different folds, so that folds have equal sizes.
    fold = (fold + number) % n_folds
    return rows.fold_rows(strata, n_folds, fold, np.random.RandomState([seed, number]))


@dataclass
class EncodePlan:
    """Reads and encodes chunks; picklable, to be sent to workers.

    Attributes
    ----------
    reading : Reading
        Reads table, targets and weights of a chunk.
    chunk_rows : int
        Number of rows that are encoded at a time.
    encoder : BaseRowEncoder
        Encodes rows.
    functions : tuple of callable
        Functions that are applied to the encoded rows, in this order.
    split : tuple of (callable, int) or None
        Function that splits a chunk as :func:`chunk_split` does, and the index of the part: 0 for
        training rows, 1 for validation rows. None for all rows.
    """

    reading: object
    chunk_rows: int
    encoder: object
    functions: tuple
    split: tuple | None

    def targets(self, number, table, y, weight):
        """Return rows with targets, weights and the features made of ``encoder.columns``."""
        rows = self.encoder.encode_targets(table, y, weight)
        if self.split is not None:
            split, part = self.split
            rows = rows.take(torch.from_numpy(split(number, rows)[part]))
        return self.applied(rows)

    def encode(self, table, y, weight, first):
        """Encode rows, the first of which has index `first` among all rows."""
        with row_errors_from(first):
            return self.encoder.encode(table, y, weight)

    def selected_rows(self, number, chunk_rows):
        """Return the indices of the rows of a chunk that belong to the part; None for all rows.

        Parameters
        ----------
        number : int
            Number of the chunk.
        chunk_rows : InMemoryDataset
            Rows of the chunk, without features that are not needed to split them.
        """
        if self.split is None:
            return None
        split, part = self.split
        return split(number, chunk_rows)[part]

    def applied(self, rows):
        """Return the rows with the functions applied, now or when they are read."""
        for function in self.functions:
            rows = rows.map(function)
        return rows


@dataclass
class Shard:
    """The chunks of a worker, and the data sets that are made of them.

    Attributes
    ----------
    chunks : list of tuple of (int, chunk)
        Numbers of the chunks and the chunks.
    plans : list of EncodePlan
        Plan of each data set, such as training and validation rows. They read and encode alike, so
        that rows are read and encoded once for all of them.
    """

    chunks: list
    plans: list

    def rows(self, memory):
        """Return the encoded rows of each plan, in files if they take more than `memory` bytes."""
        plan = self.plans[0]
        collectors = [plan.encoder.collector(memory) for _ in self.plans]
        for number, chunk in self.chunks:
            selections, first = self._selections(number, chunk), 0
            for table, y, weight in plan.reading.pieces(chunk, plan.chunk_rows):
                last = first + len(table)
                parts = [within(rows, first, last) for rows in selections]
                # A single data set does not need the rows that it leaves out.
                if len(parts) == 1 and parts[0] is not None:
                    table, y, weight = table.take(pa.array(parts[0])), y[parts[0]], weight[parts[0]]
                    parts = [None]
                if len(table):
                    encoded = plan.encode(table, y, weight, chunk.first + first)
                    for collector, rows in zip(collectors, parts, strict=True):
                        whole = rows is None
                        collector.append(encoded if whole else encoded.take(torch.from_numpy(rows)))
                first = last
        return [
            own.applied(collector.finish())
            for own, collector in zip(self.plans, collectors, strict=True)
        ]

    def _selections(self, number, chunk):
        """Return the indices of the rows of a chunk that each plan selects; None for all rows."""
        plan = self.plans[0]
        if all(own.split is None for own in self.plans):
            return [None] * len(self.plans)
        targets = plan.reading.targets_of(chunk, plan.encoder.columns)
        rows = plan.encoder.encode_targets(*targets)
        return [own.selected_rows(number, rows) for own in self.plans]


def within(rows, first, last):
    """Return the sorted indices from `first` to before `last`, counted from `first`."""
    if rows is None:
        return None
    begin, end = np.searchsorted(rows, [first, last])
    return rows[begin:end] - first


def assign_shards(datasets, n_workers):
    """Assign chunks to workers, so that the shards are balanced.

    Data sets that are parts of the same rows, such as training and held-out rows, have the same
    chunks in each worker, unless a worker would be without rows of one of them.

    Parameters
    ----------
    datasets : list of RayDataset
        Training rows, and data sets of validation rows.
    n_workers : int
        Number of workers.

    Returns
    -------
    list of tuple of (list of int, list of Shard)
        Positions of data sets in `datasets`, and the shard of each worker with their rows.

    Raises
    ------
    ValueError
        If a data set has fewer chunks with rows than there are workers.
    """
    groups = {}
    for position, rows in enumerate(datasets):
        groups.setdefault((id(rows.table_dataset), id(rows.encoder)), []).append(position)
    assigned = []
    for positions in groups.values():
        counts = np.array([datasets[position].counts for position in positions])
        numbers = balanced_chunks(counts.sum(axis=0), n_workers)
        if all(counts[:, own].sum(axis=1).all() for own in numbers):
            assigned.append((positions, numbers))
            continue
        for position, own_counts in zip(positions, counts, strict=True):
            assigned.append(([position], balanced_chunks(own_counts, n_workers)))
    shards = []
    for positions, numbers in assigned:
        plans = [datasets[position].encode_plan() for position in positions]
        chunks = datasets[positions[0]].table_dataset.chunks
        own_shards = [Shard([(n, chunks[n]) for n in own], plans) for own in numbers]
        shards.append((positions, own_shards))
    return shards


def balanced_chunks(counts, n_workers):
    """Return the sorted numbers of the chunks of each worker, by the number of rows of chunks."""
    n_rows, numbers = [0] * n_workers, [[] for _ in range(n_workers)]
    for number in np.argsort(-np.array(counts), kind="stable"):
        worker = int(np.argmin(n_rows))
        n_rows[worker] += int(counts[number])
        numbers[worker].append(int(number))
    if not all(n_rows):
        raise ValueError(
            f"RayBackend: the rows are in {np.count_nonzero(counts)} chunks, too few for "
            f"{n_workers} workers"
        )
    return [sorted(own) for own in numbers]


SAMPLE_CHUNKS, SAMPLE_ROWS = 8, 8_192
"""Number of chunks in the sample by which blocks are chosen, and of rows of each chunk."""


class RayTableDataset(BaseTableDataset):
    """Rows of positive weight in chunks: in the object store, a Ray Dataset or Parquet files.

    Parameters
    ----------
    chunks : list of ObjectStoreChunk, BlockChunk or FragmentChunk
        Chunks of the rows.
    reading : Reading
        Reads table, targets and weights of a chunk.
    source : object
        Features as passed by the user.
    memory : TableDataset or None
        The same rows in memory, if this process has them.
    chunk_rows : int
        Number of rows that are read at a time.
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
        """Return a digest of the rows; checkpoints compare it.

        The digest of stored rows covers their number, their columns and the first row only.
        """
        if self.memory is not None:
            return self.memory.digest()
        columns = [*self.reading.features, *self.reading.targets, *self.reading.weights]
        first = table_digest(self.sample().table.slice(0, 1))
        return f"{len(self)} rows of {columns}, the first {first}"

    def map_chunks(self, function):
        """Apply a function to the targets of each chunk, in tasks unless these are in memory."""
        return self.map_targets(lambda number, table, y, weight: function(y))

    def map_targets(self, function, columns=()):
        """Apply a function to number, some columns, targets and weights of each chunk.

        Parameters
        ----------
        function : callable
            Takes the number of the chunk, a table of the columns, targets and weights.
        columns : sequence of str, default=()
            Names of the columns that are read.

        Returns
        -------
        list
            Results of the function, in the order of the chunks.
        """
        if self.memory is not None:
            return [
                apply_to_chunk(function, number, chunk, self._targets_in_memory(chunk, columns))
                for number, chunk in enumerate(self.chunks)
            ]
        numbers = np.array_split(np.arange(len(self.chunks)), min(len(self.chunks), 4 * n_cpus()))
        task = remote(map_chunk_targets)
        function, reading = ray.put([function]), ray.put(self.reading)
        refs = [
            task.remote([(int(n), self.chunks[n]) for n in part], reading, function, columns)
            for part in numbers
        ]
        return [result for part in results(refs) for result in part]

    def _targets_in_memory(self, chunk, columns):
        part = slice(chunk.first, chunk.first + len(chunk))
        table = self.memory.table.select(list(columns)).slice(chunk.first, len(chunk))
        return table, self.memory.y[part], self.memory.weight[part]

    def select(self, columns):
        """Return the rows with a subset of the columns."""
        selected = copy(self)
        selected.reading = replace(self.reading, features=list(columns))
        selected.memory = None if self.memory is None else self.memory.select(columns)
        selected._sample = self.sample().select(columns)
        return selected

    def filter(self, columns, function):
        """Return the rows for which a function of some columns is true."""
        if self.memory is not None:
            return put_dataset(self.memory.filter(columns, function), len(self.chunks))
        filtered = copy(self)
        filtered.reading = replace(self.reading, row_filter=(tuple(columns), function))
        filtered._sample = None
        filtered.counts = filtered.map_targets(lambda number, table, y, weight: len(y))
        return filtered

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
        """Return the event sequences of a log, one row for each user."""
        if self.memory is not None:
            return put_dataset(self.memory.collect_sequences(by, order_by), len(self.chunks))
        return RayLog(self, by, order_by)

    def sample(self):
        """Return a sample of the rows, as :class:`TableDataset` in memory."""
        if self._sample is None:
            numbers = np.unique(np.linspace(0, len(self.chunks) - 1, SAMPLE_CHUNKS).astype(int))
            head = remote(first_rows)
            reading = ray.put(self.reading)
            parts = results([head.remote(self.chunks[n], reading, SAMPLE_ROWS) for n in numbers])
            tables, targets, weights = zip(*parts, strict=True)
            table = pa.concat_tables(tables).unify_dictionaries()
            self._sample = TableDataset(
                table, np.concatenate(targets), np.concatenate(weights), self.source
            )
        return self._sample

    def encode(self, encoder):
        """Return the rows as :class:`RayDataset`, which the workers encode."""
        return RayDataset(self, encoder)


class RayLog(BaseTableDataset):
    """The users of a log in chunks, with their event sequences, which are collected when needed.

    Only selected columns are collected, so that selecting columns first saves time.

    Parameters
    ----------
    log : RayTableDataset
        Log with one row for each event.
    by : str or list of str
        Columns that identify the user.
    order_by : str
        Column of times.
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
        """Return the digest of the log, with the columns by which it is collected."""
        return f"{self.log.digest()} by {self.by} in the order of {self.order_by}"

    def sample(self):
        """Return a sample of users in memory; their lists may lack events."""
        return self._sample

    def select(self, columns):
        """Collect the columns of all users, and return them as :class:`RayTableDataset`."""
        chunks = collect_users(self.log, self.by, self.order_by, list(columns))
        reading = Reading.from_object_store(list(columns))
        dataset = RayTableDataset(chunks, reading, self.source, None, max(map(len, chunks)))
        dataset._sample = self._sample.select(columns)
        return dataset

    def filter(self, columns, function):
        """Return the users for which a function of some columns of lists is true."""
        return self._collected.filter(columns, function)

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


def put_dataset(dataset, n_chunks):
    """Put rows that are in memory into the object store.

    Parameters
    ----------
    dataset : TableDataset
        Rows in memory.
    n_chunks : int
        Number of chunks; at most one per row.

    Returns
    -------
    RayTableDataset
    """
    n_chunks = min(n_chunks, len(dataset))
    bounds = [len(dataset) * part // n_chunks for part in range(n_chunks + 1)]
    chunks = []
    for start, stop in pairwise(bounds):
        # A slice would be stored with the memory of the whole table.
        table = dataset.table.take(pa.array(np.arange(start, stop))).combine_chunks()
        ref = ray.put((table, dataset.y[start:stop], dataset.weight[start:stop]))
        chunks.append(ObjectStoreChunk(ref, stop - start, start))
    reading = Reading.from_object_store(dataset.table.column_names)
    return RayTableDataset(chunks, reading, dataset.source, dataset, len(dataset))


def open_dataset(X, y, sample_weight, read, check_target, name, *, n_chunks, chunk_rows):
    """Return the chunks of Parquet files or a Ray Dataset with valid targets and weights.

    Parameters
    ----------
    X : str, os.PathLike or ray.data.Dataset
        Path of Parquet files, or data set.
    y : str, list of str or None
        Names of the target columns; None if `check_target` allows it.
    sample_weight : str or None
        Name of the column of weights.
    read, check_target, name
        As in :func:`~sk_easytensor.training.table_dataset.read_dataset`.
    n_chunks : int
        Smallest number of chunks, as far as there are rows.
    chunk_rows : int
        Number of rows that are read at a time.

    Returns
    -------
    RayTableDataset

    Raises
    ------
    TypeError
        If `y` or `sample_weight` are values instead of names.
    ValueError
        As in :func:`~sk_easytensor.training.table_dataset.read_dataset`.
    """
    targets, weights = named_columns(X, y, sample_weight)
    with errors_name(name):
        if y is None:
            check_target(y)
        schema, chunks = stored_chunks(X, n_chunks)
        require_columns(schema.names, [*targets, *weights])
        features = [name for name in schema.names if name not in {*targets, *weights}]
        reading = Reading(read, check_target, features, targets, weights)
        dataset = RayTableDataset(chunks, reading, X, None, chunk_rows)
        sizes = dataset.map_targets(lambda number, table, y, w: (len(y), w.max(initial=0)))
        dataset.counts = [count for count, _ in sizes]
        if len(dataset) == 0:
            # Raises the error for weights without a positive one.
            check_weight(np.zeros(1), 1)
        reading.max_weight = max(max_weight for _, max_weight in sizes)
        # Reads feature columns, and so raises the errors of `read` before training.
        dataset.sample()
    return dataset


def map_chunk_targets(chunks, reading, function, columns):
    """Task: apply a function to number, some columns, targets and weights of chunks."""
    return [
        apply_to_chunk(function[0], number, chunk, reading.targets_of(chunk, columns))
        for number, chunk in chunks
    ]


def apply_to_chunk(function, number, chunk, targets):
    """Call a function with a chunk's number and targets; errors name the row among all rows."""
    with row_errors_from(chunk.first):
        return function(number, *targets)


def first_rows(chunk, reading, n_rows):
    """Task: return the first rows of a chunk."""
    for table, y, weight in reading.pieces(chunk, n_rows):
        return table, y, weight
    table = next(iter(chunk.tables(reading.features, 1)))
    return table.slice(0, 0), np.empty(0), np.empty(0)
