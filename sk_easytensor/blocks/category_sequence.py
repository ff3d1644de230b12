"""Block of lists of categories: a vocabulary and a sequence encoder for each column."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor.blocks.category import CategoryBlock, no_category_known
from sk_easytensor.blocks.sequences import SequenceBlock, code_names, count_codes, ragged
from sk_easytensor.data.lists import is_list
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "CategorySequenceBlock",
]


@documented_like(CategoryBlock)
class CategorySequenceBlock(SequenceBlock):
    """Read columns of lists of categories: strings, integers, booleans.

    Parameters
    ----------
    encoder : {"transformer", "gru", "lstm", "conv", "mean"}, default="transformer"
        Sequence encoder of the items. ``"transformer"``: attention with learned positions;
        ``"gru"`` and ``"lstm"``: recurrent; ``"conv"``: convolutions over neighbouring items;
        ``"mean"``: items are encoded independently.
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
        Largest number of items that are read; longer lists are truncated.
    keep : {"last", "first"}, default="last"
        Which end of a longer list is read. Positions are counted from there.
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
    Attention is that of Vaswani et al., "Attention Is All You Need" (2017).

    Examples
    --------
    >>> block = CategorySequenceBlock(max_length=2)
    >>> block = block.fit({"visits": [["home", "cart", "home"], [], None, ["home", None]]})
    >>> block.categories_[0].to_pylist()
    ['home', 'cart']
    >>> codes = block.transform({"visits": [["home", "cart", "other"], None]})["codes_0"]
    >>> codes.values.tolist(), codes.lengths.tolist()
    ([3, 1], [2, 0])
    """

    kind = "category_sequence"
    accepted = "lists of strings, integers, booleans or categories"
    entry_a_column = True

    def __init__(
        self,
        encoder="transformer",
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
        return SummaryMap(summary)

    def finish(self, summary):
        self.items_ = [self._new_items(name).finish(summary) for name in self.feature_names_in_]
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
        return CategorySequenceModule(
            [items.make_module() for items in self.items_],
            [self.make_encoder(self.width) for _ in self.items_],
        )

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


class CategorySequenceModule(BlockModule):
    """Embed the items of each column and encode the lists.

    Parameters
    ----------
    items : list of CategoryModule
        Embedding of the items of each column.
    encoders : list of SequenceEncoder
        Encoder of the lists of each column.
    """

    padded = True

    def __init__(self, items, encoders):
        super().__init__()
        self.items = nn.ModuleList(items)
        self.encoders = nn.ModuleList(encoders)
        self.out_features = sum(encoder.out_features for encoder in encoders)

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
        parts = []
        for index, (items, encoder) in enumerate(zip(self.items, self.encoders, strict=True)):
            lists = codes[f"codes_{index}"]
            parts.append(encoder(items(lists.values[:, None]), lists.offsets))
        return torch.cat(parts, dim=1)
