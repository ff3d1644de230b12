"""Block of lists of categories, and the base classes of sequence blocks."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.validation import check_choice, check_number, shortened
from sk_easytensor.blocks.aggregates import (
    CATEGORY_AGGREGATES,
    ListAggregates,
    chosen_aggregates,
)
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.category import KNOWN, CategoryBlock, no_category_known
from sk_easytensor.data.columns import (
    is_list,
    list_lengths,
    read_lists,
)
from sk_easytensor.data.summaries import Summary, SummaryMap
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.sequences import ENCODERS, POOLINGS, SequenceEncoder, pad
from sk_easytensor.tensors import Ragged

__all__ = [
    "AggregatedBlock",
    "AggregatedModule",
    "CategorySequenceBlock",
    "ItemsSummary",
    "SequenceBlock",
    "SequenceModule",
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

    encoders = ENCODERS
    """Values of the parameter ``encoder``."""

    @property
    def chosen_encoder(self):
        """Name of the sequence encoder that the parameters select."""
        return self.encoder

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
        check_choice(name, "encoder", self.encoder, self.encoders)
        check_choice(name, "pooling", self.pooling, POOLINGS)
        check_choice(name, "keep", self.keep, KEEP)
        check_choice(name, "bidirectional", self.bidirectional, (True, False))
        for parameter in ("width", "heads", "kernel_size", "max_length"):
            check_number(name, parameter, getattr(self, parameter), low=1, integer=True)
        if self.layers is not None:
            check_number(name, "layers", self.layers, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=0.99)
        encoder = self.chosen_encoder
        if encoder == "conv" and self.kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {self.kernel_size!r}")
        if encoder == "transformer" and self.width % self.heads:
            raise ValueError(
                f"{name}: width must be a multiple of heads, got width={self.width} and "
                f"heads={self.heads}"
            )

    def count_long(self, table):
        """Return the summary of the lengths of lists, for :meth:`warn_of_long`.

        Parameters
        ----------
        table : pyarrow.Table
            A chunk of the training rows, with the columns of lists only.

        Returns
        -------
        LengthSummary
        """
        longest = np.max([list_lengths(column) for column in table.columns], axis=0)
        n_cut = int((longest > self.max_length).sum())
        return LengthSummary(table.num_rows, n_cut, int(longest.max(initial=0)))

    def warn_of_long(self, lengths):
        """Warn if training rows have lists that are truncated.

        Parameters
        ----------
        lengths : LengthSummary
            Merged summary of all chunks.
        """
        if lengths.n_cut:
            warnings.warn(
                f"{type(self).__name__}: the lists of {lengths.n_cut:,} of {lengths.n_rows:,} rows "
                f"in {shortened(list(self.feature_names_in_))} are cut to their {self.keep} "
                f"{self.max_length} items; the longest has {lengths.longest:,}. A larger "
                "max_length reads more of them, in more time and memory",
                UserWarning,
                stacklevel=2,
            )

    def make_encoder(self, in_features, max_length=None):
        """Return a new sequence encoder for lists of at most `max_length` items.

        By default the parameter ``max_length``; items have `in_features` components.
        """
        encoder = self.chosen_encoder
        return SequenceEncoder(
            encoder,
            self.pooling,
            in_features,
            self.width,
            max_length=max_length or self.max_length,
            layers=self.layers or (1 if encoder in ("gru", "lstm") else 2),
            heads=self.heads,
            kernel_size=self.kernel_size,
            bidirectional=self.bidirectional,
            latest_first=self.keep == "last",
            dropout=self.dropout,
        )


class AggregatedBlock(SequenceBlock):
    """Base class of blocks whose lists have aggregates beside the sequence encoder.

    A subclass defines the parameter ``aggregates`` and sets the following class attributes.

    Attributes
    ----------
    known_aggregates : tuple of str
        Names of the aggregates.
    encoder_alone : str
        Sequence encoder by default without aggregates, and in networks of embeddings.
    """

    encoders = ("auto", *ENCODERS)
    known_aggregates: tuple = ()
    encoder_alone = "gru"

    aggregates = False
    """Blocks that were stored before there were aggregates have none."""

    @property
    def chosen_aggregates(self):
        """Names of the aggregates that the parameters select."""
        return chosen_aggregates(type(self).__name__, self.aggregates, self.known_aggregates)

    @property
    def chosen_encoder(self):
        if self.encoder != "auto":
            return self.encoder
        return "mean" if self.chosen_aggregates else self.encoder_alone

    def check_parameters(self):
        _ = self.chosen_aggregates
        super().check_parameters()

    def configure_for_embedding(self):
        """Turn aggregates off, unless they were asked for, and read items in their order."""
        if self.encoder == "auto":
            self.encoder = self.encoder_alone
        if isinstance(self.aggregates, str):
            self.aggregates = False

    @abstractmethod
    def make_aggregates(self, names):
        """Return modules of the aggregates of these names, a :class:`ListAggregates` for each list.

        Parameters
        ----------
        names : list of str
            Some of `known_aggregates`.

        Returns
        -------
        list of ListAggregates
            Modules for the lists of :meth:`AggregatedModule.aggregated_lists`.
        """


class LengthSummary(Summary):
    """Number of rows whose lists are longer than the largest length that is read.

    Parameters
    ----------
    n_rows, n_cut : int
        Number of rows, and of those with a longer list.
    longest : int
        Length of the longest list.
    """

    def __init__(self, n_rows, n_cut, longest):
        self.n_rows = n_rows
        self.n_cut = n_cut
        self.longest = longest

    def merge(self, other):
        """Return the summary of the rows of both summaries."""
        return LengthSummary(
            self.n_rows + other.n_rows,
            self.n_cut + other.n_cut,
            max(self.longest, other.longest),
        )


class ItemsSummary(Summary):
    """Summary of the items of lists, and of the lengths of the lists.

    Parameters
    ----------
    items : SummaryMap
        Summaries of the fields of the items.
    lengths : LengthSummary
        Summary of the lengths.
    """

    def __init__(self, items, lengths):
        self.items = items
        self.lengths = lengths

    def merge(self, other):
        """Return the summary of the rows of both summaries."""
        return ItemsSummary(self.items.merge(other.items), self.lengths.merge(other.lengths))


class SequenceModule(BlockModule):
    """Base class of modules that encode lists; a subclass defines ``item_vectors``."""

    padded = True

    @property
    def sequence_encoders(self):
        """Encoders of the lists of a row, whose outputs are concatenated; by default one."""
        return [self.encoder]

    def item_vectors(self, **encoding):
        """Return the items that each encoder reads.

        Parameters
        ----------
        **encoding : Ragged
            Entries of the block's encoding, by name.

        Returns
        -------
        list of (torch.Tensor of shape (total, n_features), torch.Tensor of int64)
            Vectors of the items of all lists, and the offsets of the lists.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method item_vectors")


class AggregatedModule(SequenceModule):
    """Base class of modules that read lists with aggregates, which also are features of trees.

    A subclass sets ``aggregates``, modules of :class:`ListAggregates` of which there may be none,
    and defines :meth:`aggregated_lists`.
    """

    @property
    def has_tree_inputs(self):
        """Whether there are aggregates."""
        return len(self.aggregates) > 0

    @property
    def tree_codes(self):
        """Number of codes of each aggregate, and whether they are ordered."""
        if not self.has_tree_inputs:
            return None
        return [codes for aggregates in self.aggregates for codes in aggregates.tree_codes]

    def aggregated_lists(self, encoding):
        """Return the inputs of :meth:`ListAggregates.compute` for each of ``aggregates``."""
        raise NotImplementedError(f"{type(self).__name__} has no method aggregated_lists")

    def tree_inputs(self, **encoding):
        """Return the codes of the aggregates, int32 of shape (batch, len(tree_codes))."""
        lists = self.aggregated_lists(encoding)
        pairs = zip(self.aggregates, lists, strict=True)
        return torch.cat([part.codes(part.compute(*inputs)) for part, inputs in pairs], dim=1)


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


@documented_like(CategoryBlock)
class CategorySequenceBlock(AggregatedBlock):
    """Read columns of lists of categories: strings, integers, booleans.

    Parameters
    ----------
    encoder : {"auto", "mean", "transformer", "gru", "lstm", "conv"}, default="auto"
        Sequence encoder of the items. ``"mean"``: items are encoded independently;
        ``"transformer"``: attention with learned positions, whose time and memory grow with the
        square of the length; ``"gru"`` and ``"lstm"``: recurrent; ``"conv"``: convolutions over
        neighbouring items. ``"auto"``: ``"mean"`` with `aggregates`, otherwise ``"transformer"``.
    pooling : {"attention", "mean", "last", "mean_max"}, default="attention"
        Reduction of the items to one vector: a learned weighted mean, the mean, the last item, or
        the concatenation of mean and maximum.
    width : int, default=32
        Embedding dimension of the items and width of all layers.
    layers : int or None, default=None
        Number of layers of the encoder; by default 1 for recurrent encoders and 2 for the others.
    heads : int, default=4
        Number of attention heads of the transformer; must divide `width`.
    kernel_size : int, default=5
        Number of items in the kernel of a convolution; must be odd.
    bidirectional : bool, default=False
        Whether a recurrent encoder reads lists in both directions.
    dropout : float, default=0.1
        Dropout probability.
    max_length : int, default=128
        Largest number of items that are read; longer lists are truncated, with a warning in fit.
    keep : {"last", "first"}, default="last"
        Which end of a longer list is read. Positions are counted from there.
    aggregates : "auto", bool or list of str, default="auto"
        Plain features of a list, which the trunk and the boosted trees read: its ``"length"``; for
        the most frequent categories their ``"counts"``, their ``"shares"`` of the length and the
        ``"recency"``, the number of items after the last one of the category; the ``"changes"``
        between neighbours, the length of the last ``"run"`` of equal items, the number of
        ``"distinct"`` items, the ``"last"`` three items and the ``"first"``. True selects all,
        False none. ``"auto"``: all, but none in embedders and two-tower models.
    min_frequency : int, default=1
        Smallest number of items of a category. Rarer categories share the embedding of unseen
        ones.
    max_categories, hash_buckets, unseen_probability, shrinkage
        As in :class:`~sk_easytensor.CategoryBlock`.

    Attributes
    ----------
    categories_ : list of pyarrow.Array of string
        Categories of each column, the most frequent first. Empty if categories are hashed.
    counts_ : list of ndarray of int64
        Number of training items of each category.

    Notes
    -----
    Several columns are read independently, each with its own vocabulary and network. For columns
    that describe the same events see :class:`~sk_easytensor.EventSequenceBlock`. Missing and
    empty lists are equivalent and have a learned vector; missing items have an embedding.
    Aggregates describe the items that are read, at most `max_length`; the ten most frequent
    categories of a column, and its missing and unseen items, are counted. Attention is that of
    Vaswani et al., "Attention Is All You Need" (2017).

    Examples
    --------
    >>> block = CategorySequenceBlock(max_length=3)
    >>> block = block.fit({"visits": [["home", "cart", "home"], [], None, ["home", None]]})
    >>> block.categories_[0].to_pylist()
    ['home', 'cart']
    >>> codes = block.transform({"visits": [["home", "home", "cart", "other"], None]})["codes_0"]
    >>> codes.values.tolist(), codes.lengths.tolist()
    ([2, 3, 1], [3, 0])
    """

    kind = "category_sequence"
    accepted = "lists of strings, integers, booleans or categories"
    entry_a_column = True
    known_aggregates = CATEGORY_AGGREGATES
    encoder_alone = "transformer"

    def __init__(
        self,
        encoder="auto",
        *,
        pooling="attention",
        width=32,
        layers=None,
        heads=4,
        kernel_size=5,
        bidirectional=False,
        dropout=0.1,
        max_length=128,
        keep="last",
        aggregates="auto",
        min_frequency=1,
        max_categories=1_000_000,
        hash_buckets=None,
        unseen_probability=0.01,
        shrinkage=50.0,
    ):
        self.encoder = encoder
        self.pooling = pooling
        self.width = width
        self.layers = layers
        self.heads = heads
        self.kernel_size = kernel_size
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.max_length = max_length
        self.keep = keep
        self.aggregates = aggregates
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.hash_buckets = hash_buckets
        self.unseen_probability = unseen_probability
        self.shrinkage = shrinkage

    @classmethod
    def accepts_items(cls, kind):
        return CategoryBlock.accepts(kind)

    @classmethod
    def detects(cls, column):
        if not is_list(column.type):
            return False
        kind = column.type.value_type
        tests = (pa.types.is_integer, pa.types.is_boolean, CategoryBlock.detects_type)
        return any(test(kind) for test in tests)

    def check_parameters(self):
        super().check_parameters()
        self._new_items("items").check_parameters()

    def _new_items(self, name):
        """Return a new block that encodes the items of one column."""
        items = CategoryBlock(
            min_frequency=self.min_frequency,
            max_categories=self.max_categories,
            hash_buckets=self.hash_buckets,
            width=self.width,
            unseen_probability=self.unseen_probability,
            shrinkage=self.shrinkage,
            rarity=0,
        )
        return items.fit_columns(pa.table({name: pa.nulls(0)}))

    def _columns(self, table):
        """Yield the name and the lists of each column, which are read independently."""
        for name in table.column_names:
            yield name, self.read(table.select([name]))

    def summarize(self, table):
        summary = SummaryMap()
        for name, lists in self._columns(table):
            summary |= self._new_items(name).summarize(lists.items)
        return ItemsSummary(SummaryMap(summary), self.count_long(table))

    def finish(self, summary):
        items = summary.items
        self.items_ = [self._new_items(name).finish(items) for name in self.feature_names_in_]
        self.warn_of_long(summary.lengths)
        return self

    @property
    def categories_(self):
        """Categories of each column."""
        return [values for items in self.items_ for values in items.categories_]

    @property
    def counts_(self):
        """Number of training items of each category of each column."""
        return [counts for items in self.items_ for counts in items.counts_]

    def encode(self, table):
        encoding = {}
        for (_, lists), items in zip(self._columns(table), self.items_, strict=True):
            codes = items.encode(lists.items)["codes"][:, 0].numpy()
            encoding[f"codes_{len(encoding)}"] = ragged(codes, torch.from_numpy(lists.offsets))
        return encoding

    def unseen_columns(self, table, encoding):
        """Return the columns with several values, none of which is a known category."""
        unseen = []
        parts = zip(self.feature_names_in_, self.items_, encoding.values(), strict=True)
        for name, items, lists in parts:
            codes = {"codes": lists.values[:, None]}
            if no_category_known(codes["codes"]):
                unseen += items.unseen_columns(self.read(table.select([name])).items, codes)
        return unseen

    def make_module(self):
        names = self.chosen_aggregates
        return CategorySequenceModule(
            [items.make_module() for items in self.items_],
            [self.make_encoder(self.width) for _ in self.items_],
            self.make_aggregates(names) if names else [],
        )

    def make_aggregates(self, names):
        return [
            ListAggregates(names, items.n_codes, max_length=self.max_length)
            for items in self.items_
        ]

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        encoding = {}
        for name, items in zip(self.feature_names_in_, self.items_, strict=True):
            fields = {str(name): {"column": str(name), **items.onnx_column()}}
            options = {"index": 0, "column": name, "block": type(self).__name__}
            codes = {str(name): partial(items.onnx_items, graph, **options)}
            lists = encoders.read_lists(graph, self, fields, codes)
            encoding |= encoders.entries(graph, lists, {f"codes_{len(encoding)}": str(name)})
        return encoding

    def flatten(self, encoding):
        """Return the counts of the most frequent categories and the number of items of each row."""
        parts = [
            count_codes(lists, items.n_codes[0])
            for lists, items in zip(encoding.values(), self.items_, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def get_feature_names_out(self, input_features=None):
        names = [
            feature
            for name, items in zip(self.feature_names_in_, self.items_, strict=True)
            for feature in code_names(name, items.known_categories(0), items.n_codes[0])
        ]
        return np.asarray(names, dtype=object)


class CategorySequenceModule(AggregatedModule):
    """Embed the items of each column and encode the lists.

    Parameters
    ----------
    items : list of CategoryModule
        Embedding of the items of each column.
    encoders : list of SequenceEncoder
        Encoder of the lists of each column.
    aggregates : list of ListAggregates, default=()
        Aggregates of the lists of each column; empty for none.
    """

    def __init__(self, items, encoders, aggregates=()):
        super().__init__()
        self.items = nn.ModuleList(items)
        self.encoders = nn.ModuleList(encoders)
        self.aggregates = nn.ModuleList(aggregates)
        self.out_features = sum(encoder.out_features for encoder in encoders)
        for own, part in zip(items, aggregates, strict=False):
            self.out_features += part.out_features + part.n_items * own.out_features

    def forward(self, **codes):
        """Return the vectors of all columns.

        Parameters
        ----------
        **codes : Ragged of int32
            Codes of the items of each column: ``codes_0``, ``codes_1`` and so on.

        Returns
        -------
        torch.Tensor of shape (batch, out_features)
        """
        parts, found = [], self.aggregated_lists(codes) if self.aggregates else []
        inputs = zip(self.encoders, self.item_vectors(**codes), strict=True)
        for index, (encoder, (items, offsets)) in enumerate(inputs):
            padded, lengths = pad(items, offsets)
            parts.append(encoder.read(padded, lengths))
            if self.aggregates:
                parts += self.aggregates[index].outputs(found[index], padded)
        return torch.cat(parts, dim=1)

    @property
    def sequence_encoders(self):
        return list(self.encoders)

    def item_vectors(self, **codes):
        lists = [codes[f"codes_{index}"] for index in range(len(self.items))]
        return [
            (items(column.values[:, None]), column.offsets)
            for items, column in zip(self.items, lists, strict=True)
        ]

    def aggregated_lists(self, encoding):
        lists = (encoding[f"codes_{index}"] for index in range(len(self.items)))
        padded = (pad(column.values[:, None], column.offsets) for column in lists)
        return [(codes, None, lengths) for codes, lengths in padded]
