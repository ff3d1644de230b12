"""Base class of sequence blocks: parameters, the sequence encoder, and flat features."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.category import KNOWN
from sk_easytensor.data.lists import is_list, read_lists
from sk_easytensor.networks.sequences import ENCODERS, POOLINGS, SequenceEncoder
from sk_easytensor.tensors import Ragged

__all__ = [
    "SequenceBlock",
    "code_names",
    "count_codes",
    "describe_numbers",
    "ragged",
]


KEEP = ("last", "first")

FLAT_CODES = 32
"""Largest number of codes that are counted in the flat features of lists."""

NUMBER_FEATURES = ("mean", "deviation", "lowest", "highest", "last")


class SequenceBlock(Block):
    """Base class of blocks that read lists; subclasses define the parameters checked here."""

    @classmethod
    def accepts(cls, column_type):
        if is_list(column_type):
            return cls.accepts_items(column_type.value_type)
        return pa.types.is_null(column_type)

    @classmethod
    @abstractmethod
    def accepts_items(cls, kind):
        """Return whether the block reads lists whose items have this type."""

    def read(self, table):
        """Flatten list columns that describe the same items.

        Parameters
        ----------
        table : pyarrow.Table
            Table of list columns.

        Returns
        -------
        FlatLists
            At most ``max_length`` items of each list.

        Raises
        ------
        TypeError
            If the block does not read a column. The message names the column and a row.
        RowError
            If two lists of a row differ in length. The message names both columns and the row.
        """
        owner = type(self).__name__
        for field in table.schema:
            if not self.accepts(field.type):
                raise TypeError(unsupported_column(field, owner, table.column(field.name)))
        return read_lists(table, max_length=self.max_length, keep=self.keep, block=owner)

    def check_parameters(self):
        name = type(self).__name__
        check_choice(name, "encoder", self.encoder, ENCODERS)
        check_choice(name, "pooling", self.pooling, POOLINGS)
        check_choice(name, "keep", self.keep, KEEP)
        check_choice(name, "bidirectional", self.bidirectional, (True, False))
        for parameter in ("width", "heads", "kernel_size", "max_length"):
            check_number(name, parameter, getattr(self, parameter), low=1, integer=True)
        if self.layers is not None:
            check_number(name, "layers", self.layers, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=0.99)
        if self.encoder == "conv" and self.kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {self.kernel_size!r}")
        if self.encoder == "transformer" and self.width % self.heads:
            raise ValueError(
                f"{name}: width must be a multiple of heads, got width={self.width} and "
                f"heads={self.heads}"
            )

    def make_encoder(self, in_features):
        """Return a new sequence encoder for items with `in_features` components."""
        return SequenceEncoder(
            self.encoder,
            self.pooling,
            in_features,
            self.width,
            max_length=self.max_length,
            layers=self.layers or (1 if self.encoder in ("gru", "lstm") else 2),
            heads=self.heads,
            kernel_size=self.kernel_size,
            bidirectional=self.bidirectional,
            latest_first=self.keep == "last",
            dropout=self.dropout,
        )


def ragged(values, offsets):
    """Return lists as a :class:`~sk_easytensor.tensors.Ragged`.

    Parameters
    ----------
    values : ndarray of shape (total, ...)
        Items of all lists.
    offsets : torch.Tensor of int64, shape (n_lists + 1,)
        Offset of each list among the items; parallel lists share one object.

    Returns
    -------
    Ragged
    """
    return Ragged(torch.from_numpy(np.ascontiguousarray(values)), offsets)


def count_codes(lists, n_codes):
    """Count the items of each code in each list, and all items.

    Parameters
    ----------
    lists : Ragged of int32
        Codes of the items.
    n_codes : int
        Number of codes, of which at most `FLAT_CODES` are counted.

    Returns
    -------
    ndarray of float32, shape (n_lists, n_counted + 1)
        Number of items of each counted code, and length of the list.
    """
    counted = min(n_codes, FLAT_CODES)
    owner = torch.repeat_interleave(lists.lengths)
    is_counted = lists.values < counted
    cell = owner[is_counted] * counted + lists.values[is_counted]
    counts = torch.bincount(cell, minlength=len(lists) * counted).reshape(len(lists), counted)
    return torch.cat([counts, lists.lengths[:, None]], dim=1).float().numpy()


def code_names(name, categories, n_codes):
    """Return the names of the features of :func:`count_codes`.

    Parameters
    ----------
    name : str
        Name of the column.
    categories : pyarrow.Array of string
        Categories in the order of their codes; empty if categories are hashed.
    n_codes : int
        Number of codes.

    Returns
    -------
    list of str
    """
    known = categories[: FLAT_CODES - KNOWN].to_pylist()
    buckets = range(len(known), min(n_codes, FLAT_CODES) - KNOWN)
    counted = ["missing", "unseen", *(f"is_{category}" for category in known)]
    counted += [f"bucket_{bucket}" for bucket in buckets]
    return [f"{name}_{feature}" for feature in [*counted, "length"]]


def describe_numbers(lists):
    """Return the statistics `NUMBER_FEATURES` of each list, 0 for lists without numbers.

    Parameters
    ----------
    lists : Ragged of float32, shape (total,)
        Scaled numbers, NaN where missing; infinite numbers are replaced by ±3.

    Returns
    -------
    ndarray of float32, shape (n_lists, 5)
        Mean, standard deviation, minimum, maximum and last number.
    """
    owner = torch.repeat_interleave(lists.lengths)
    known = ~torch.isnan(lists.values)
    values = torch.nan_to_num(lists.values[known].double(), posinf=3.0, neginf=-3.0)
    owner = owner[known]
    count = torch.bincount(owner, minlength=len(lists)).clamp(min=1)
    mean = torch.bincount(owner, weights=values, minlength=len(lists)) / count
    square = torch.bincount(owner, weights=(values - mean[owner]) ** 2, minlength=len(lists))
    empty = torch.zeros(len(lists), dtype=torch.float64)
    lowest = empty.scatter_reduce(0, owner, values, "amin", include_self=False)
    highest = empty.scatter_reduce(0, owner, values, "amax", include_self=False)
    last_index = empty.long().scatter_reduce(0, owner, torch.arange(len(owner)), "amax")
    last = values[last_index] if len(values) else empty
    last = torch.where(torch.bincount(owner, minlength=len(lists)) > 0, last, empty)
    columns = [mean, (square / count).sqrt(), lowest, highest, last]
    return torch.stack(columns, dim=1).float().numpy()
