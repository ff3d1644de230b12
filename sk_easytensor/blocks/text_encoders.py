"""Text encoders: n-grams, and sub-words with a transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from sk_easytensor.data.ngrams import (
    NgramVocabulary,
    Words,
    count_ngrams,
    distinct_texts,
    project,
    weighted_ngrams,
)
from sk_easytensor.data.summaries import ValueCounts
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.block_network import WIDE_RATE
from sk_easytensor.networks.sequences import TransformerLayer
from sk_easytensor.tensors import Padded, Ragged

__all__ = [
    "NgramEncoder",
    "SubwordEncoder",
    "TextEncoder",
    "TransformerModule",
    "count_words",
    "empty_lists",
    "encode_subwords",
    "interleave",
    "load_tokenizer",
    "project_tokens",
    "train_tokenizer",
]


# Number of distinct n-grams or words of a summary, up to which fitting is exact.
CAPACITY = 500_000

# Number of features that flatten returns for each text column.
PROJECTED = 64

# Number of texts at which the shrinkage factor of an n-gram, a square root, is that of 1/2.
SHRINKAGE = 200

# Standard deviation of the initial vectors of n-grams.
INITIAL_SPREAD = 0.01


class TextEncoder(ABC):
    """Base class of text encoders.

    Parameters
    ----------
    block : TextBlock
        Block whose parameters are read and whose fitted attributes are set.
    """

    default_width = 64
    """Embedding dimension of each column if the block's ``width`` is None."""

    def __init__(self, block):
        self.block = block

    @property
    def width(self):
        """Embedding dimension of each column."""
        return self.block.width or self.default_width

    @property
    def n_flat(self):
        """Number of features that :meth:`flatten` returns for each text column."""
        return PROJECTED

    def check_parameters(self):  # noqa: B027 - optional
        """Raise ``ValueError`` for parameters that are invalid for this encoder."""

    @abstractmethod
    def count(self, column):
        """Return the summary of one column."""

    @abstractmethod
    def finish(self, columns):
        """Set the block's fitted attributes from the summaries of its columns."""

    @abstractmethod
    def encode(self, columns):
        """Return the encoding of columns of large strings."""

    @abstractmethod
    def make_module(self):
        """Return a new module that reads the encoding."""

    @abstractmethod
    def flatten(self, encoding):
        """Return an encoding as a matrix of ``n_flat`` columns for each text column."""


class NgramEncoder(TextEncoder):
    """Encode texts as n-grams with TF-IDF weights, for a sum of embeddings."""

    default_width = 32

    def count(self, column):
        block = self.block
        return count_ngrams(
            column,
            tuple(block.ngram_range),
            capacity=max(CAPACITY, 2 * block.max_features),
            n_buckets=block.hash_buckets,
        )

    def finish(self, columns):
        block = self.block
        block._vocabularies = []
        for counts in columns:
            values, frequency = counts.most_common(
                min_count=block.min_frequency, limit=block.max_features
            )
            idf = np.log((1 + counts.n_rows) / (1 + frequency)) + 1
            if block.hash_buckets is None:
                block.ngrams_.append(values)
                block.idf_.append(idf.astype(np.float32))
                block.counts_.append(frequency)
                block._vocabularies.append(NgramVocabulary(values, tuple(block.ngram_range)))
            else:
                block.idf_.append(np.zeros(block.hash_buckets, np.float32))
                block.counts_.append(np.zeros(block.hash_buckets, np.int64))
                block.idf_[-1][values.to_numpy()] = idf
                block.counts_[-1][values.to_numpy()] = frequency

    def encode(self, columns):
        parts = [self._encode_column(column, index) for index, column in enumerate(columns)]
        ids, weights = (interleave(column) for column in zip(*parts, strict=True))
        return {"ids": ids, "weights": Ragged(weights.values, ids.offsets, ids.n_columns)}

    def _encode_column(self, column, index):
        first_id = sum(len(idf) for idf in self.block.idf_[:index])
        block = self.block
        vocabulary = block._vocabularies[index] if block.hash_buckets is None else None
        ids, weights = [empty_lists(torch.int32)], [empty_lists(torch.float32)]
        for texts, rows in distinct_texts(column):
            ngram_ids, weight, offsets = weighted_ngrams(
                texts, block.idf_[index], block.ngram_range, vocabulary
            )
            offsets, rows = torch.from_numpy(offsets), torch.from_numpy(rows)
            ngram_ids = torch.from_numpy((ngram_ids + first_id).astype(np.int32))
            weight = torch.from_numpy(weight.astype(np.float32))
            ids.append(Ragged(ngram_ids, offsets).take(rows))
            weights.append(Ragged(weight, offsets).take(rows))
        return Ragged.concatenate(ids), Ragged.concatenate(weights)

    def make_module(self):
        block, counts = self.block, np.concatenate(self.block.counts_)
        module = NgramModule(len(counts), block.n_features_in_, self.width, block.dropout)
        module.set_shrinkage(np.sqrt(counts / (counts + SHRINKAGE)))
        return module

    def flatten(self, encoding):
        return project_lists(encoding["ids"], encoding["weights"].values.numpy())


class SubwordEncoder(TextEncoder):
    """Encode texts as sub-words, for a small transformer that is trained from scratch."""

    def check_parameters(self):
        heads = self.block.heads
        if self.width % heads:
            raise ValueError(
                f"TextBlock: width must be a multiple of heads, got width={self.width} and "
                f"heads={heads}"
            )

    def count(self, column):
        return count_words(column, capacity=max(CAPACITY, 2 * self.block.max_features))

    def finish(self, columns):
        counts = columns[0]
        for other in columns[1:]:
            counts = counts.merge(other)
        self.block.tokenizer_ = train_tokenizer(counts, self.block.vocabulary_size)

    def encode(self, columns):
        return {"tokens": interleave([self._encode_column(column) for column in columns])}

    def _encode_column(self, column):
        tokenizer = load_tokenizer(self.block.tokenizer_)
        tokens = [empty_lists(torch.int32)]
        for texts, rows in distinct_texts(column):
            lists = encode_subwords(tokenizer, Words(texts), self.block.max_length)
            tokens.append(lists.take(torch.from_numpy(rows)))
        return Ragged.concatenate(tokens)

    def make_module(self):
        block = self.block
        return TransformerModule(
            n_tokens=load_tokenizer(block.tokenizer_).get_vocab_size(),
            n_columns=block.n_features_in_,
            max_length=block.max_length,
            width=self.width,
            layers=block.layers,
            heads=block.heads,
            dropout=block.dropout,
        )

    def flatten(self, encoding):
        return project_tokens(encoding["tokens"])


def empty_lists(dtype):
    """Return a :class:`~sk_easytensor.tensors.Ragged` without lists."""
    return Ragged(torch.empty(0, dtype=dtype), torch.zeros(1, dtype=torch.int64))


def interleave(columns):
    """Combine ragged columns of one list per row into one with a list per row and column."""
    n_columns, n_rows = len(columns), len(columns[0])
    if n_columns == 1:
        return columns[0]
    order = torch.arange(n_columns * n_rows).reshape(n_columns, n_rows).T.reshape(-1)
    lists = Ragged.concatenate(columns).take(order)
    return Ragged(lists.values, lists.offsets, n_columns)


def project_lists(ids, weights):
    """Return a fixed random projection of weighted lists, those of a row concatenated."""
    projected = project(ids.offsets.numpy(), ids.values.numpy(), weights, PROJECTED)
    return projected.reshape(len(ids), ids.n_columns * PROJECTED)


def project_tokens(tokens):
    """Return a fixed random projection of the sub-word counts of each list."""
    # Dividing by the root of the length makes long and short texts comparable.
    lengths = tokens.lengths.numpy()
    return project_lists(tokens, np.repeat(lengths, lengths) ** -0.5)


class NgramModule(BlockModule):
    """Sum the weighted embeddings of the n-grams of each list.

    Parameters
    ----------
    n_ids : int
        Number of n-grams of all columns.
    n_columns : int
        Number of text columns.
    width : int
        Embedding dimension of each column.
    dropout : float, default=0.0
        Dropout probability of the components of the vectors.
    """

    wide = True
    """True: n-grams bypass the trunk, which would overfit rare ones."""

    learning_rate_scale = WIDE_RATE

    def __init__(self, n_ids, n_columns, width, dropout=0.0):
        super().__init__()
        self.out_features = n_columns * width
        self.table = nn.EmbeddingBag(max(n_ids, 1), width, mode="sum")
        # Small, so that the learned part outweighs the random one even for rare n-grams.
        nn.init.normal_(self.table.weight, std=INITIAL_SPREAD)
        self.empty = nn.Parameter(torch.zeros(n_columns, width))
        self.dropout = nn.Dropout(dropout)
        self.linear_weights = np.ones(n_ids, dtype=np.float32)
        self.register_buffer("shrinkage", None, persistent=False)

    def set_shrinkage(self, factors):
        """Set the factors of the vectors, so that those of rare n-grams learn at a lower rate.

        Parameters
        ----------
        factors : ndarray of float64, shape (n_ids,)
            Factor of each n-gram, in [0, 1].
        """
        self.shrinkage = torch.from_numpy(factors.astype(np.float32))

    def configure_for_embedding(self):
        """Turn off the shrinkage."""
        self.shrinkage = None

    @property
    def has_linear_inputs(self):
        """Whether there is an n-gram."""
        return len(self.linear_weights) > 0

    def sparse_linear_inputs(self, ids, weights):
        """Return the weight of each n-gram."""
        n_rows, offsets = len(ids), ids.offsets.cpu().numpy()
        parts = weights.values.cpu().numpy(), ids.values.cpu().numpy(), offsets[:: ids.n_columns]
        return sparse.csr_array(parts, shape=(n_rows, len(self.linear_weights)))

    def linear_outputs(self, weight, ids, weights):
        """Return the sums of the coefficients of the n-grams, times their weights."""
        sums = self._sum(ids, weights.values, weight)
        return sums.reshape(-1, len(self.empty), weight.shape[1]).sum(1)

    def forward(self, ids, weights):
        """Return the vectors of all columns.

        Parameters
        ----------
        ids : Ragged of int32
            N-grams of each text.
        weights : Ragged of float32
            Weight of each n-gram.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        values = weights.values
        if self.shrinkage is not None:
            values = values * self.shrinkage.index_select(0, ids.values)
        empty = (ids.lengths == 0).reshape(-1, len(self.empty), 1)
        bags = self._sum(ids, values, self.table.weight).reshape(-1, *self.empty.shape)
        return self.dropout((bags + empty * self.empty).flatten(1))

    @staticmethod
    def _sum(ids, values, table):
        """Return the weighted sum of the rows of a table for each list."""
        if isinstance(ids, Padded):
            vectors = table.index_select(0, ids.values) * values[:, None]
            return ids.pad(vectors)[0].sum(1)
        offsets = ids.offsets[:-1].to(ids.values.dtype)
        return functional.embedding_bag(
            ids.values, table, offsets, mode="sum", per_sample_weights=values
        )


# Approximate number of words from which the sub-word vocabulary is learned: the distinct ones, each
# repeated in proportion to its count.
TRAINING_WORDS = 500_000


def count_words(column, *, capacity):
    """Count the occurrences of each word of a column, from which sub-words are learned."""
    kind = pa.large_string()
    total = ValueCounts(pa.array([], kind), np.zeros(0, np.int64), 0, 0, capacity=capacity)
    for texts, rows in distinct_texts(column):
        copies = np.bincount(rows, minlength=len(texts) + 1)
        words = Words(texts)
        counts = np.bincount(
            words.codes, weights=copies[words.owner], minlength=len(words.distinct)
        ).astype(np.int64)
        n_missing = int(copies[len(texts)])
        part = ValueCounts(words.distinct, counts, n_missing, len(rows), capacity=capacity)
        total = total.merge(part)
    return total


def load_tokenizer(text):
    """Load a tokenizer from JSON; the package tokenizers is imported only here."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def train_tokenizer(counts, vocabulary_size):
    """Learn byte pairs from word counts and return the tokenizer as JSON.

    Parameters
    ----------
    counts : ValueCounts
        Counts of words.
    vocabulary_size : int
        Largest number of sub-words.

    Returns
    -------
    str
        Tokenizer as JSON.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words, frequency = counts.most_common()
    fraction = min(TRAINING_WORDS / max(int(frequency.sum()), 1), 1.0)
    copies = np.maximum(np.rint(frequency * fraction), 1).astype(np.int64)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    repeated = (
        f"{word} " * count for word, count in zip(words.to_pylist(), copies.tolist(), strict=True)
    )
    tokenizer.train_from_iterator(repeated, trainer)
    return tokenizer.to_str()


def encode_subwords(tokenizer, words, max_length):
    """Encode texts as sub-words; only their distinct words are split.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Tokenizer of words.
    words : Words
        Words of the texts.
    max_length : int
        Largest number of sub-words of a text.

    Returns
    -------
    Ragged of int32
        A list for each text, and an empty one for missing texts.
    """
    # Each word has at least one sub-word, so words after the first `max_length` are not needed.
    starts = np.searchsorted(words.owner, np.arange(words.n_texts))
    is_read = np.arange(len(words.owner)) - starts[words.owner] < max_length
    codes, owner = words.codes[is_read], words.owner[is_read]
    used, codes = np.unique(codes, return_inverse=True)
    distinct = words.distinct.take(pa.array(used)).to_pylist()
    split = [item.ids for item in tokenizer.encode_batch_fast(distinct)]
    sizes = np.fromiter(map(len, split), np.int64, len(split))
    offsets = torch.from_numpy(np.append(0, np.cumsum(sizes)))
    pieces = torch.tensor([piece for item in split for piece in item], dtype=torch.int32)
    lists = Ragged(pieces, offsets).take(torch.from_numpy(codes))
    # The words of a text are consecutive: its list extends from its first word to its last.
    bounds = lists.offsets[np.searchsorted(owner, np.arange(words.n_texts + 2))]
    text = torch.repeat_interleave(bounds.diff())
    is_read = torch.arange(len(text)) - bounds[text] < max_length
    offsets = torch.zeros_like(bounds)
    torch.cumsum(bounds.diff().clamp(max=max_length), 0, out=offsets[1:])
    return Ragged(lists.values[is_read], offsets)


class TransformerModule(BlockModule):
    """Encode each text with a small pre-norm transformer and attention pooling.

    Parameters
    ----------
    n_tokens : int
        Number of sub-words.
    n_columns : int
        Number of text columns; they share all parameters but the start vector.
    max_length : int
        Largest number of sub-words of a text.
    width : int
        Embedding dimension of each column and width of all layers.
    layers, heads : int
        Number of layers and of attention heads.
    dropout : float, default=0.0
        Dropout probability.
    """

    padded = True

    def __init__(self, n_tokens, n_columns, max_length, width, layers, heads, dropout=0.0):
        super().__init__()
        self.out_features = n_columns * width
        self.n_columns = n_columns
        self.tokens = nn.Embedding(n_tokens, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.1)
        nn.init.normal_(self.tokens.weight, std=0.3)
        # Precedes each text, so that attention is defined for empty texts.
        self.start = nn.Parameter(torch.randn(n_columns, width) * 0.3)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, tokens):
        """Return the vectors of all columns.

        Parameters
        ----------
        tokens : Ragged of int32
            Sub-words of each text.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        padded = tokens.to_padded()
        start = self.start.repeat(padded.shape[0] // self.n_columns, 1)
        longest = padded.shape[1]
        position = torch.arange(longest + 1, device=padded.device)
        known = position <= tokens.lengths[:, None]
        embedded = self.tokens(padded) + self.positions[:longest]
        hidden = self.dropout(torch.cat([start[:, None], embedded], dim=1))
        for layer in self.layers:
            hidden = layer(hidden, known[:, None, None, :])
        hidden = self.norm(hidden)
        attention = self.score(hidden).masked_fill(~known[..., None], -torch.inf).softmax(dim=1)
        return (attention * hidden).sum(dim=1).reshape(-1, self.out_features)
