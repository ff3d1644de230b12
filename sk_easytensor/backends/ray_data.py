"""Rows in chunks on a cluster: read, summarised and encoded by tasks, never all in one process."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from sk_easytensor.backends.chunks import cut_evenly, parquet_chunks
from sk_easytensor.columns import RowError
from sk_easytensor.estimators._inputs import check_weight, errors_name
from sk_easytensor.plain_types import plain_types
from sk_easytensor.summaries import SummaryMap, merge_all
from sk_easytensor.training.records import (
    Records,
    column_values,
    require_columns,
    target_columns,
)
from sk_easytensor.training.shards import gather_rows, join_rows
from sk_easytensor.training.splits import validation_rows

__all__ = ["RayRecords", "RayRows", "hold_records", "open_records", "results", "summarize_chunks"]

FAN_IN = 8
"""Summaries that a task merges."""

PACKS = 16
"""Parts that the summary of a chunk comes in at most; different parts are merged apart."""

SAMPLE_CHUNKS, SAMPLE_ROWS = 8, 8_192
"""What is looked at to choose blocks: so many chunks, so many rows of each."""


# ---------------------------------------------------------------------- chunks


@dataclass
class HeldChunk:
    """Rows that are in the object store, read and checked already.

    Attributes
    ----------
    ref : ray.ObjectRef
        Of table, targets and weights.
    n_rows : int
        How many rows.
    first : int
        Where its first row is among all rows.
    """

    ref: object
    n_rows: int
    first: int

    def __len__(self):
        return self.n_rows

    def pieces(self, reading, n_rows):
        """Yield table, targets and weights of at most `n_rows` rows at a time."""
        table, y, weight = ray.get(self.ref)
        for start in range(0, len(table), n_rows):
            part = slice(start, start + n_rows)
            # The object store's memory is read-only, which torch has no word for.
            yield table.slice(start, n_rows), y[part].copy(), weight[part].copy()

    def targets(self, reading):
        """Return targets and weights."""
        return ray.get(self.ref)[1:]


@dataclass
class BlockChunk:
    """Rows of a block of a Ray Dataset.

    Attributes
    ----------
    ref : ray.ObjectRef
        Of the block, a table.
    schema : pyarrow.Schema
        Of the whole data set.
    start, stop, first : int
        Its rows, and where they begin among all rows.
    """

    ref: object
    schema: pa.Schema
    start: int
    stop: int
    first: int

    def __len__(self):
        return self.stop - self.start

    def tables(self, columns, n_rows):
        """Yield the chunk's rows in tables of at most `n_rows` rows."""
        block = ray.get(self.ref).slice(self.start, len(self))
        fields = [self.schema.field(name) for name in columns]
        arrays = [
            block.column(field.name).cast(field.type)
            if field.name in block.column_names
            else pa.nulls(len(block), field.type)
            for field in fields
        ]
        table = pa.table(arrays, schema=pa.schema(fields))
        for start in range(0, len(table), n_rows):
            yield plain_types(table.slice(start, n_rows))

    def cut(self, n_parts):
        """Return the chunk in at most `n_parts` parts of about as many rows."""
        n_parts = max(1, min(n_parts, len(self)))
        bounds = [self.start + len(self) * part // n_parts for part in range(n_parts + 1)]
        return [
            replace(self, start=start, stop=stop, first=self.first + start - self.start)
            for start, stop in pairwise(bounds)
        ]


@dataclass
class Reading:
    """How rows are made of a chunk's columns.

    Attributes
    ----------
    read, check_target : callable
        Make a valid table and valid targets.
    features, targets, weights : list of str
        Columns of each kind.
    most : float
        Largest weight of all rows.
    """

    read: object
    check_target: object
    features: list
    targets: list
    weights: list
    most: float = 1.0

    def pieces(self, chunk, n_rows):
        """Yield table, targets and weights of a chunk, without rows of weight zero."""
        if isinstance(chunk, HeldChunk):
            yield from chunk.pieces(self, n_rows)
            return
        columns = [*self.features, *self.targets, *self.weights]
        for table in chunk.tables(columns, n_rows):
            y, weight, kept = self._targets(table)
            features = self.read(table.select(self.features))
            if len(kept) < len(table):
                features, y, weight = features.take(kept), y[kept], weight[kept]
            if len(features):
                yield features, y, weight

    def targets_of(self, chunk):
        """Return targets and weights of a chunk, without rows of weight zero."""
        if isinstance(chunk, HeldChunk):
            return chunk.targets(self)
        parts = list(chunk.tables([*self.targets, *self.weights], len(chunk)))
        y, weight, kept = self._targets(pa.concat_tables(parts))
        return y[kept], weight[kept]

    def _targets(self, table):
        y = self.check_target(column_values(table, self.targets))
        weight = np.ones(len(table))
        if self.weights:
            weight = column_values(table, self.weights).astype(np.float64)
            if not (weight >= 0).all() or not np.isfinite(weight).all():
                raise ValueError(f"column {self.weights[0]!r}: weights must be numbers, at least 0")
            weight = weight / self.most
        return y, weight, np.flatnonzero(weight > 0)


# ---------------------------------------------------------------------- records


class RayRecords:
    """Rows of positive weight in chunks; see :class:`~sk_easytensor.training.records.Records`.

    Parameters
    ----------
    chunks : list
        Where the rows are.
    reading : Reading
        How they are read.
    source : object
        What the user gave.
    memory : Records or None
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

    def each(self, function):
        """Return what a function gives for the targets of each chunk, as a list."""
        return self.each_chunk(lambda number, y, weight: function(y))

    def each_chunk(self, function):
        """Return what a function gives for number, targets and weights of each chunk."""
        if self.memory is not None:
            bounds = np.cumsum([0, *self.counts])
            return [
                function(number, self.memory.y[start:stop], self.memory.weight[start:stop])
                for number, (start, stop) in enumerate(pairwise(bounds))
            ]
        numbers = np.array_split(np.arange(len(self.chunks)), min(len(self.chunks), 4 * n_cpus()))
        look = ray.remote(look_at_targets)
        function, reading = ray.put([function]), ray.put(self.reading)
        refs = [
            look.remote([(int(n), self.chunks[n]) for n in part], reading, function)
            for part in numbers
        ]
        return [found for part in results(refs) for found in part]

    def sample(self):
        """Return some of the rows, as :class:`Records` in memory."""
        if self._sample is None:
            few = np.unique(np.linspace(0, len(self.chunks) - 1, SAMPLE_CHUNKS).astype(int))
            head = ray.remote(first_rows)
            reading = ray.put(self.reading)
            parts = results([head.remote(self.chunks[n], reading, SAMPLE_ROWS) for n in few])
            tables, targets, weights = zip(*parts, strict=True)
            table = pa.concat_tables(tables).unify_dictionaries()
            self._sample = Records(
                table, np.concatenate(targets), np.concatenate(weights), self.source
            )
        return self._sample

    def encoded(self, maker):
        """Return the rows as :class:`RayRows`, which are encoded by those who train on them."""
        return RayRows(self, maker)


def hold_records(records, n_chunks):
    """Put rows that are in memory into the object store.

    Parameters
    ----------
    records : Records
        The rows.
    n_chunks : int
        How many chunks to make.

    Returns
    -------
    RayRecords
    """
    n_chunks = min(n_chunks, len(records))
    bounds = [len(records) * part // n_chunks for part in range(n_chunks + 1)]
    chunks = []
    for start, stop in pairwise(bounds):
        # Rows that are taken share no memory with those of other chunks.
        table = records.table.take(pa.array(np.arange(start, stop))).combine_chunks()
        ref = ray.put((table, records.y[start:stop], records.weight[start:stop]))
        chunks.append(HeldChunk(ref, stop - start, start))
    return RayRecords(chunks, None, records.source, records, len(records))


def open_records(X, y, sample_weight, read, check_target, where, *, n_chunks, chunk_rows):
    """Find the chunks of Parquet files or a Ray Dataset, and check their targets and weights.

    Parameters
    ----------
    X : str, os.PathLike or ray.data.Dataset
        Where the rows are.
    y : str or list of str
        Columns of targets.
    sample_weight : str or None
        Column of weights.
    read, check_target, where
        As of :func:`~sk_easytensor.training.records.read_records`.
    n_chunks : int
        Chunks to make at least, where rows allow.
    chunk_rows : int
        Rows that are read at a time.

    Returns
    -------
    RayRecords
    """
    targets = target_columns(X, y)
    if not targets or not (sample_weight is None or isinstance(sample_weight, str)):
        raise TypeError(
            "of Parquet files or a Ray Dataset, y and sample_weight must be given as names of "
            f"columns, got {type(y).__name__} and {type(sample_weight).__name__}"
        )
    weights = [] if sample_weight is None else [sample_weight]
    with errors_name(where):
        schema, chunks = stored_chunks(X, n_chunks)
        require_columns(schema.names, [*targets, *weights])
        features = [name for name in schema.names if name not in {*targets, *weights}]
        reading = Reading(read, check_target, features, targets, weights)
        records = RayRecords(chunks, reading, X, None, chunk_rows)
        found = records.each_chunk(lambda number, y, weight: (len(y), weight.max(initial=0)))
        records.counts = [count for count, _ in found]
        if len(records) == 0:
            check_weight(np.zeros(1), 1)
        reading.most = max(most for _, most in found)
        # Columns that are missing are noticed here.
        records.sample()
    return records


def stored_chunks(X, n_chunks):
    """Return schema and chunks of Parquet files or a Ray Dataset."""
    if not hasattr(X, "to_arrow_refs"):
        return parquet_chunks(X, n_chunks)
    refs = X.to_arrow_refs()
    measure = ray.remote(schema_and_rows)
    found = results([measure.remote(ref) for ref in refs])
    schema = pa.unify_schemas([part for part, _ in found], promote_options="permissive")
    chunks, first = [], 0
    for ref, (_, n_rows) in zip(refs, found, strict=True):
        if n_rows:
            chunks.append(BlockChunk(ref, schema, 0, n_rows, first))
        first += n_rows
    if not chunks:
        raise ValueError("the Ray Dataset holds no row")
    return schema.remove_metadata(), cut_evenly(chunks, n_chunks)


# ---------------------------------------------------------------------- encoded rows


class RayRows:
    """Rows that are encoded by those who train on them.

    Has what estimators ask of :class:`~sk_easytensor.training.batches.EncodedRows`.

    Parameters
    ----------
    records : RayRecords
        The rows.
    maker : RowMaker
        Encodes them.
    """

    def __init__(self, records, maker):
        self.records = records
        self.maker = maker
        self.functions = ()
        self.split = None
        self.counts = records.counts
        self.remembered = None

    def __len__(self):
        return sum(self.counts)

    def map(self, function):
        """Apply a function from rows to rows when the rows are made."""
        other = object.__new__(RayRows)
        vars(other).update(vars(self), functions=(*self.functions, function))
        return other

    def each(self, function):
        """Return what a function gives for targets and weights of each chunk, as a list."""
        recipe = self._recipe()
        found = self.records.each_chunk(
            lambda number, y, weight: function(recipe.targets(number, y, weight))
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
        recipe = self._recipe()
        sizes = self.records.each_chunk(
            lambda number, y, weight: [
                len(part) for part in split(number, recipe.targets(number, y, weight))
            ]
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
        return [
            Share([(n, self.records.chunks[n]) for n in sorted(own)], self._recipe())
            for own in numbers
        ]

    def _recipe(self):
        records = self.records
        return Recipe(records.reading, records.chunk_rows, self.maker, self.functions, self.split)


def _same(rows):
    return rows


def chunk_split(number, rows, strata, fraction, seed):
    """Split a chunk's rows into those to train on and those to validate on."""
    random = np.random.RandomState([seed, number])
    return validation_rows(strata(rows.target), fraction, random)


@dataclass
class Recipe:
    """How encoded rows are made of a chunk."""

    reading: object
    chunk_rows: int
    maker: object
    functions: tuple
    split: tuple | None

    def targets(self, number, y, weight):
        """Return rows without features."""
        return self._applied(self._part(number, self.maker.make_targets(y, weight)))

    def pieces(self, number, chunk):
        """Yield the chunk's rows, encoded, some at a time."""
        chosen = self._chosen(number, chunk)
        reading = self.reading or Reading(None, None, [], [], [])
        first = 0
        for table, y, weight in reading.pieces(chunk, self.chunk_rows):
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
                yield self._applied(made)
            first += n_rows

    def _chosen(self, number, chunk):
        """Return which of the chunk's rows are asked for; None for all."""
        if self.split is None:
            return None
        reading = self.reading or Reading(None, None, [], [], [])
        y, weight = reading.targets_of(chunk)
        split, part = self.split
        return split(number, self.maker.make_targets(y, weight))[part]

    def _part(self, number, rows):
        if self.split is None:
            return rows
        import torch

        split, part = self.split
        return rows.take(torch.from_numpy(split(number, rows)[part]))

    def _applied(self, rows):
        for function in self.functions:
            rows = function(rows)
        return rows


@dataclass
class Share:
    """A worker's chunks, and what it makes of them."""

    chunks: list
    recipe: Recipe

    def rows(self, memory):
        """Return the encoded rows, in memory if they take at most so many bytes."""
        pieces = (
            piece for number, chunk in self.chunks for piece in self.recipe.pieces(number, chunk)
        )
        return gather_rows(pieces, memory)


# ---------------------------------------------------------------------- summaries


class Summaries:
    """Merged summaries by name of block, fetched when they are asked for.

    Parameters
    ----------
    refs : list of ray.ObjectRef
        Of dictionaries of summaries by block and columns.
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


def summarize_chunks(records, blocks):
    """Summarise rows for all blocks in one pass.

    Each task reads a chunk and returns its summaries in a few packs. Packs are merged by tasks, as
    a tree whose shape depends on the number of chunks only, so that the result does not depend on
    which task ends first.

    Parameters
    ----------
    records : RayRecords
        The rows.
    blocks : dict of {str: tuple of (Block, list of str)}
        Blocks and the columns each reads.

    Returns
    -------
    Summaries
    """
    keys = [
        (name, *group)
        for name, (block, columns) in blocks.items()
        for group in ([[c] for c in columns] if block.column_wise else [columns])
    ]
    packs = [keys[start::PACKS] for start in range(min(PACKS, len(keys)))]
    summarize = ray.remote(summarize_chunk).options(num_returns=len(packs))
    merge = ray.remote(merge_packs)
    how = ray.put((records.reading, {name: block for name, (block, _) in blocks.items()}, packs))
    levels, running = [[] for _ in packs], []
    levels = [[[] for _ in packs]]

    def add(level, found):
        if level == len(levels):
            levels.append([[] for _ in packs])
        for waiting, ref in zip(levels[level], found, strict=True):
            waiting.append(ref)
        if len(levels[level][0]) == FAN_IN:
            merged = [merge.remote(*waiting) for waiting in levels[level]]
            levels[level] = [[] for _ in packs]
            add(level + 1, merged)

    for chunk in records.chunks:
        found = summarize.remote(chunk, how, records.chunk_rows)
        found = found if isinstance(found, list) else [found]
        running.append(found[0])
        add(0, found)
        if len(running) > 2 * n_cpus():
            # So that no more chunks are read than there are processors to read them.
            running = ray.wait(running, fetch_local=False)[1]
    # Those that wait on lower levels come first: they are of the last chunks.
    rest = [[ref for level in levels for ref in level[place]] for place in range(len(packs))]
    refs = [merge.remote(*waiting) for waiting in rest]
    return Summaries(refs, packs)


# ---------------------------------------------------------------------- tasks


def schema_and_rows(block):
    """Task: describe a block of a Dataset."""
    return plain_types(block.slice(0, 0)).schema.remove_metadata(), len(block)


def look_at_targets(chunks, reading, function):
    """Task: apply a function to number, targets and weights of chunks."""
    return [function[0](number, *reading.targets_of(chunk)) for number, chunk in chunks]


def first_rows(chunk, reading, n_rows):
    """Task: return the first rows of a chunk."""
    for table, y, weight in reading.pieces(chunk, n_rows):
        return table, y, weight
    table = next(iter(chunk.tables(reading.features, 1)))
    return table.slice(0, 0), np.empty(0), np.empty(0)


def summarize_chunk(chunk, how, chunk_rows):
    """Task: summarise a chunk for all blocks, in packs."""
    reading, blocks, packs = how
    reading = reading or Reading(None, None, [], [], [])
    parts = {key: [] for pack in packs for key in pack}
    first = chunk.first
    for table, _, _ in reading.pieces(chunk, chunk_rows):
        try:
            for (name, *columns), found in parts.items():
                found.append(blocks[name].summarize(table.select(columns)))
                if len(found) == FAN_IN:
                    found[:] = [merge_all(found)]
        except RowError as error:
            raise error.shifted(first) from None
        first += len(table)
    merged = [{key: merge_all(parts[key]) for key in pack if parts[key]} for pack in packs]
    return merged if len(merged) > 1 else merged[0]


def merge_packs(*packs):
    """Task: merge packs of summaries key by key."""
    packs = [pack for pack in packs if pack]
    return {key: merge_all([pack[key] for pack in packs]) for key in packs[0]}


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


def sampled_rows(rows, size, seed=0):
    """Return some rows of a worker's share, in memory."""
    parts = []
    total = len(rows)
    random = np.random.RandomState(seed)
    for part in rows.parts():
        import torch

        n_rows = min(len(part), -(-size * len(part) // total))
        chosen = np.sort(random.choice(len(part), n_rows, replace=False))
        parts.append(part.take(torch.from_numpy(chosen)).to("cpu"))
    return join_rows(parts)
