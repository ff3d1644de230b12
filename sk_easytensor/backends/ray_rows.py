"""Rows in chunks on a cluster, encoded by the workers that train on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.columns import RowError
from sk_easytensor.training.splits import validation_rows

__all__ = ["RayRows", "Recipe", "Share"]


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
        recipe = self._recipe()
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
    recipe: Recipe

    def rows(self, memory):
        """Return the encoded rows, in memory if they take at most so many bytes."""
        pieces = (
            piece for number, chunk in self.chunks for piece in self.recipe.pieces(number, chunk)
        )
        return self.recipe.applied(self.recipe.maker.gather(pieces, memory))
