"""Encoded rows that stay where they are in a cluster."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
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
from sk_easytensor.backends.ray.tasks import n_cpus, remote, results
from sk_easytensor.data.columns import RowError
from sk_easytensor.data.validation import check_weight, errors_name
from sk_easytensor.training.dataset import TableDataset, require_columns, validation_rows

__all__ = [
    "EncodePlan",
    "RayRows",
    "RayTableDataset",
    "Share",
    "hold_dataset",
    "open_dataset",
]


class RayRows:
    """Rows that are encoded by those who train on them.

    Has what estimators ask of :class:`~sk_easytensor.training.dataset.EncodedDataset`.

    Parameters
    ----------
    records : RayTableDataset
        The rows.
    maker : RowEncoder
        Encodes them.
    """

    def __init__(self, records, maker):
        self.records = records
        self.maker = maker
        self.functions = ()
        self.split = None
        self.counts = records.counts

    def __len__(self):
        return sum(self.counts)

    def map(self, function):
        """Apply a function from rows to rows when the rows are made."""
        other = object.__new__(RayRows)
        vars(other).update(vars(self), functions=(*self.functions, function))
        return other

    def map_chunks(self, function):
        """Return what a function gives for targets and weights of each chunk, as a list."""
        recipe = self._encode_plan()
        found = self.records.each_chunk(
            lambda number, *targets: function(recipe.targets(number, *targets)),
            self.maker.columns,
        )
        # A chunk too small for a validation row has nothing to say of them.
        return [part for part, count in zip(found, self.counts, strict=True) if count]

    def hold_out(self, strata, fraction, random_state):
        """Take a part of each chunk's rows out, evenly over strata, for validation.

        Returns
        -------
        rows : RayRows
        evals : list of RayRows
        """
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        split = partial(chunk_split, strata=strata, fraction=fraction, seed=seed)
        recipe = self._encode_plan()
        sizes = self.records.each_chunk(
            lambda number, *targets: [
                len(part) for part in split(number, recipe.maker.make_targets(*targets))
            ],
            self.maker.columns,
        )
        if not any(size[1] for size in sizes):
            return self, []
        parts = []
        for part in range(2):
            other = self.map(_same)
            other.split, other.counts = (split, part), [size[part] for size in sizes]
            parts.append(other)
        return parts[0], parts[1:]

    def shares(self, n_workers):
        """Return each worker's share of the rows: as many rows for each as chunks allow."""
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
            Share([(n, self.records.chunks[n]) for n in sorted(own)], self._encode_plan())
            for own in numbers
        ]

    def _encode_plan(self):
        records = self.records
        return EncodePlan(
            records.reading, records.chunk_rows, self.maker, self.functions, self.split
        )


def _same(rows):
    return rows


def chunk_split(number, rows, strata, fraction, seed):
    """Split a chunk's rows into those to train on and those to validate on."""
    random = np.random.RandomState([seed, number])
    return validation_rows(strata(rows.target), fraction, random)


@dataclass
class EncodePlan:
    """How encoded rows are made of a chunk."""

    reading: object
    chunk_rows: int
    maker: object
    functions: tuple
    split: tuple | None

    def targets(self, number, table, y, weight):
        """Return rows without features, but for those that a few columns tell."""
        rows = self.maker.make_targets(table, y, weight)
        if self.split is not None:
            split, part = self.split
            rows = rows.take(torch.from_numpy(split(number, rows)[part]))
        return self.applied(rows)

    def pieces(self, number, chunk):
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
                try:
                    made = self.maker.make_rows(table, y, weight)
                except RowError as error:
                    raise error.shifted(chunk.first + first) from None
                yield made
            first += n_rows

    def _chosen(self, number, chunk):
        """Return which of the chunk's rows are asked for; None for all."""
        if self.split is None:
            return None
        targets = self.reading.targets_of(chunk, self.maker.columns)
        split, part = self.split
        return split(number, self.maker.make_targets(*targets))[part]

    def applied(self, rows):
        """Apply the functions to rows, as soon as these are read."""
        for function in self.functions:
            rows = rows.map(function)
        return rows


@dataclass
class Share:
    """A worker's chunks, and what it makes of them."""

    chunks: list
    recipe: EncodePlan

    def rows(self, memory):
        """Return the encoded rows, in memory if they take at most so many bytes."""
        pieces = (
            piece for number, chunk in self.chunks for piece in self.recipe.pieces(number, chunk)
        )
        return self.recipe.applied(self.recipe.maker.gather(pieces, memory))


SAMPLE_CHUNKS, SAMPLE_ROWS = 8, 8_192
"""What is looked at to choose blocks: so many chunks, so many rows of each."""


class RayTableDataset:
    """Rows of positive weight in chunks; see :class:`~sk_easytensor.training.dataset.TableDataset`.

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

    @property
    def table(self):
        """The columns to learn from, as a table of this backend."""
        return self

    @property
    def column_names(self):
        """Names of the columns."""
        return self.sample().table.column_names

    @property
    def num_columns(self):
        """How many columns there are."""
        return len(self.column_names)

    def __len__(self):
        return sum(self.counts)

    def content(self):
        """Return a digest by which other rows can mostly be told, of what is known of them.

        Of rows that no process has, that is their number, columns and the first of them.
        """
        if self.memory is not None:
            return self.memory.content()
        columns = [*self.reading.features, *self.reading.targets, *self.reading.weights]
        first = table_digest(self.sample().table.slice(0, 1))
        return f"{len(self)} rows of {columns}, the first {first}"

    def map_chunks(self, function):
        """Return what a function gives for the targets of each chunk, as a list."""
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

    def collected(self, by, order_by):
        """Return the sequences of a log, as ``TableDataset.collected`` does."""
        if self.memory is not None:
            return hold_dataset(self.memory.collected(by, order_by), len(self.chunks))
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

    def encoded(self, maker):
        """Return the rows as :class:`RayRows`, which are encoded by those who train on them."""
        return RayRows(self, maker)


class RayLog:
    """The users of a log in chunks, to be collected once their columns are known.

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
        self._sample = log.sample().collected(by, order_by)

    @property
    def table(self):
        """The sequences, as a table of this backend."""
        return self

    def content(self):
        """Return what :meth:`RayTableDataset.content` does of the log."""
        return f"{self.log.content()} by {self.by} in the order of {self.order_by}"

    def sample(self):
        """Return some rows as a :class:`TableDataset` in memory; their lists are not whole."""
        return self._sample

    def select(self, columns):
        """Collect the columns of all users, and return them as :class:`RayTableDataset`."""
        chunks = collect_users(self.log, self.by, self.order_by, list(columns))
        reading = Reading.of_held(list(columns))
        records = RayTableDataset(chunks, reading, self.log.source, None, max(map(len, chunks)))
        records._sample = self._sample.select(columns)
        return records


def hold_dataset(records, n_chunks):
    """Put rows that are in memory into the object store.

    Parameters
    ----------
    records : TableDataset
        The rows.
    n_chunks : int
        How many chunks to make.

    Returns
    -------
    RayTableDataset
    """
    n_chunks = min(n_chunks, len(records))
    bounds = [len(records) * part // n_chunks for part in range(n_chunks + 1)]
    chunks = []
    for start, stop in pairwise(bounds):
        # Rows that are taken share no memory with those of other chunks.
        table = records.table.take(pa.array(np.arange(start, stop))).combine_chunks()
        ref = ray.put((table, records.y[start:stop], records.weight[start:stop]))
        chunks.append(ObjectStoreChunk(ref, stop - start, start))
    reading = Reading.of_held(records.table.column_names)
    return RayTableDataset(chunks, reading, records.source, records, len(records))


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
        As of :func:`~sk_easytensor.training.dataset.read_dataset`.
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
        records = RayTableDataset(chunks, reading, X, None, chunk_rows)
        found = records.each_chunk(lambda number, table, y, w: (len(y), w.max(initial=0)))
        records.counts = [count for count, _ in found]
        if len(records) == 0:
            check_weight(np.zeros(1), 1)
        reading.most = max(most for _, most in found)
        # Columns that are missing are noticed here.
        records.sample()
    return records


def look_at_targets(chunks, reading, function, columns):
    """Task: apply a function to number, some columns, targets and weights of chunks."""
    return [
        apply_to_targets(function[0], number, chunk, reading.targets_of(chunk, columns))
        for number, chunk in chunks
    ]


def apply_to_targets(function, number, chunk, targets):
    """Call a function with what is known of a chunk; errors name the row among all rows."""
    try:
        return function(number, *targets)
    except RowError as error:
        raise error.shifted(chunk.first) from None


def first_rows(chunk, reading, n_rows):
    """Task: return the first rows of a chunk."""
    for table, y, weight in reading.pieces(chunk, n_rows):
        return table, y, weight
    table = next(iter(chunk.tables(reading.features, 1)))
    return table.slice(0, 0), np.empty(0), np.empty(0)
