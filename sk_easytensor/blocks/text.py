"""Free text: weighted n-grams in an embedding bag, or sub-words in a small transformer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor.blocks._base import Block
from sk_easytensor.blocks._ngrams import (
    NgramVocabulary,
    Words,
    count_ngrams,
    distinct_texts,
    hashed_ngrams,
    project,
)
from sk_easytensor.blocks._subwords import (
    TransformerModule,
    count_words,
    encode_subwords,
    load_tokenizer,
    train_tokenizer,
)
from sk_easytensor.columns import cast_column, sample_values
from sk_easytensor.parameters import check_choice, check_number
from sk_easytensor.summaries import SummaryMap
from sk_easytensor.tensors import Ragged

__all__ = ["TextBlock"]

ENCODERS = ("ngrams", "transformer")

# A column of strings is taken for text by its sample of so many values, each cut to a length:
SAMPLE, SAMPLE_LENGTH = 20_000, 1_000
# short texts if most of them differ, as titles do and names of products or airports do not;
SHORT_WORDS, SHORT_DISTINCT = 2.5, 0.5
# long ones unless they come from a short list, as the answers of a questionnaire do.
LONG_WORDS, LONG_DISTINCT, LONG_MINIMUM = 8.0, 0.02, 50
# What counts as a word there: between two spaces it holds two letters in a row, so that dates,
# codes and numbers have none and an address of a web page is one.
COUNTED_WORD = r"\s\S*?\p{L}{2}|[\p{Han}\p{Hiragana}\p{Katakana}]"

# Distinct n-grams or words a summary holds on to; up to here fitting is exact.
CAPACITY = 500_000

# Columns that flatten gives for each text column.
PROJECTED = 64

# Standard deviation of the initial vectors of n-grams.
INITIAL_SPREAD = 0.01


class TextBlock(Block):
    """Free text.

    Parameters
    ----------
    encoder : {"ngrams", "transformer"}, default="ngrams"
        How a text becomes a vector. ``"ngrams"``: the sum of the learned vectors of its words
        and word sequences, weighted by TF-IDF; fast, and hard to beat on a few thousand rows.
        ``"transformer"``: a small transformer over sub-words, learned from scratch.
    ngram_range : tuple of two int, default=(1, 2)
        Fewest and most words of an n-gram.
    min_frequency : int, default=3
        N-grams found in fewer rows are left out.
    max_features : int, default=30_000
        At most so many n-grams a column, those found in most rows.
    hash_buckets : int or None, default=None
        If given, n-grams are hashed into so many buckets a column and no vocabulary is kept.
    width : int or None, default=None
        Size of each column's vector; by default 32 for n-grams and 64 for the transformer.
    dropout : float, default=0.1
        Fraction of vector components (n-grams) or activations (transformer) zeroed in training.
    vocabulary_size : int, default=8192
        Sub-words, for the transformer.
    max_length : int, default=128
        Sub-words read of each text, for the transformer.
    layers : int, default=2
        Layers of the transformer.
    heads : int, default=4
        Attention heads of the transformer; divides `width`.

    Attributes
    ----------
    ngrams_ : list of pyarrow.Array of large_string
        N-grams of each column, the most frequent first, words separated by a space. Empty when
        hashing and for the transformer.
    idf_ : list of ndarray of float32
        Inverse document frequency of each n-gram or bucket; 0 for a bucket that is not used.
    tokenizer_ : str
        The sub-word tokenizer as JSON, for the transformer.

    Notes
    -----
    Texts are brought to Unicode's NFKC form and lower case. Apostrophes are dropped, symbols
    and emoji are words of their own, as is each character of Chinese, Japanese and Thai.

    Weights are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``. Summing weighted
    vectors of n-grams is the classifier of Joulin et al., "Bag of Tricks for Efficient Text
    Classification" (2016); the sub-words are byte-level byte pairs (Sennrich, Haddow and Birch,
    "Neural Machine Translation of Rare Words with Subword Units", 2016; Radford et al., 2019),
    so that every string can be written in them.

    Examples
    --------
    >>> block = TextBlock(min_frequency=2).fit({"text": ["Not bad!", "not BAD?", "Good", None]})
    >>> block.ngrams_[0].to_pylist()
    ['bad', 'not', 'not bad']
    >>> block.transform({"text": ["bad", "", "bad bad"]})["ids"].lengths.tolist()
    [1, 0, 1]
    """

    kind = "text"
    accepted = "strings, dictionary columns of strings"

    def __init__(
        self,
        encoder="ngrams",
        *,
        ngram_range=(1, 2),
        min_frequency=3,
        max_features=30_000,
        hash_buckets=None,
        width=None,
        dropout=0.1,
        vocabulary_size=8192,
        max_length=128,
        layers=2,
        heads=4,
    ):
        self.encoder = encoder
        self.ngram_range = ngram_range
        self.min_frequency = min_frequency
        self.max_features = max_features
        self.hash_buckets = hash_buckets
        self.width = width
        self.dropout = dropout
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.layers = layers
        self.heads = heads

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        if types.is_dictionary(column_type):
            return cls.accepts(column_type.value_type)
        return (
            types.is_string(column_type)
            or types.is_large_string(column_type)
            or types.is_null(column_type)
        )

    @classmethod
    def detects(cls, column):
        """Tell whether a column is of free text rather than of names, codes or categories."""
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return False
        sample = sample_values(column, SAMPLE)
        if len(sample) == 0:
            return False
        sample = pc.utf8_slice_codeunits(sample, 0, SAMPLE_LENGTH)
        blank = pa.scalar(" ", sample.type)
        spaced = pc.binary_join_element_wise(blank, sample, pa.scalar("", sample.type))
        words = pc.mean(pc.count_substring_regex(spaced, COUNTED_WORD)).as_py()
        n_distinct = pc.count_distinct(sample).as_py()
        distinct = n_distinct / len(sample)
        if words >= LONG_WORDS and distinct >= LONG_DISTINCT and n_distinct >= LONG_MINIMUM:
            return True
        return words >= SHORT_WORDS and distinct >= SHORT_DISTINCT

    def check_parameters(self):
        name = "TextBlock"
        check_choice(name, "encoder", self.encoder, ENCODERS)
        try:
            lowest, highest = self.ngram_range
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}: ngram_range must be a pair of integers, got {self.ngram_range!r}"
            ) from None
        check_number(name, "ngram_range[0]", lowest, low=1, integer=True)
        check_number(name, "ngram_range[1]", highest, low=lowest, integer=True)
        check_number(name, "min_frequency", self.min_frequency, low=1, integer=True)
        check_number(name, "max_features", self.max_features, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=1)
        # The 256 bytes are always among the sub-words.
        check_number(name, "vocabulary_size", self.vocabulary_size, low=256, integer=True)
        check_number(name, "max_length", self.max_length, low=1, integer=True)
        check_number(name, "layers", self.layers, low=1, integer=True)
        check_number(name, "heads", self.heads, low=1, integer=True)
        for parameter in ("hash_buckets", "width"):
            if getattr(self, parameter) is not None:
                check_number(name, parameter, getattr(self, parameter), low=1, integer=True)
        if self.encoder == "transformer" and self._width() % self.heads:
            raise ValueError(
                f"{name}: width must be a multiple of heads, got width={self._width()} and "
                f"heads={self.heads}"
            )

    def _width(self):
        return self.width or (32 if self.encoder == "ngrams" else 64)

    def summarize(self, table):
        return SummaryMap(
            {
                name: self._count(_as_text(column, name))
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def _count(self, column):
        capacity = max(CAPACITY, 2 * self.max_features)
        if self.encoder == "transformer":
            return count_words(column, capacity=capacity)
        return count_ngrams(
            column, tuple(self.ngram_range), capacity=capacity, n_buckets=self.hash_buckets
        )

    def finish(self, summary):
        self.ngrams_, self.idf_ = [], []
        columns = [summary[name] for name in self.feature_names_in_]
        if self.encoder == "transformer":
            counts = columns[0]
            for other in columns[1:]:
                counts = counts.merge(other)
            self.tokenizer_ = train_tokenizer(counts, self.vocabulary_size)
            return self
        self._vocabularies = []
        for counts in columns:
            values, frequency = counts.most_common(
                min_count=self.min_frequency, limit=self.max_features
            )
            idf = np.log((1 + counts.n_rows) / (1 + frequency)) + 1
            if self.hash_buckets is None:
                self.ngrams_.append(values)
                self.idf_.append(idf.astype(np.float32))
                self._vocabularies.append(NgramVocabulary(values, tuple(self.ngram_range)))
            else:
                self.idf_.append(np.zeros(self.hash_buckets, np.float32))
                self.idf_[-1][values.to_numpy()] = idf
        return self

    def encode(self, table):
        columns = [
            _as_text(column, name)
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        if self.encoder == "transformer":
            tokens = [self._encode_tokens(column) for column in columns]
            return {"tokens": _interleave(tokens, table.num_rows)}
        parts = [self._encode_ngrams(column, index) for index, column in enumerate(columns)]
        ids, weights = zip(*parts, strict=True)
        return {
            "ids": _interleave(ids, table.num_rows),
            "weights": _interleave(weights, table.num_rows),
        }

    def _encode_ngrams(self, column, index):
        first_id = sum(len(idf) for idf in self.idf_[:index])
        idf = self.idf_[index]
        ids, weights = [_empty(torch.int32)], [_empty(torch.float32)]
        for texts, rows in distinct_texts(column):
            owner, found, occurrences = self._find(Words(texts), index)
            weight = (1 + np.log(occurrences)) * idf[found]
            norm = np.sqrt(np.bincount(owner, weights=weight**2, minlength=len(texts)))
            weight /= norm[owner]
            # One list more, empty, stands for missing texts.
            offsets = np.searchsorted(owner, np.arange(len(texts) + 2))
            offsets, rows = torch.from_numpy(offsets), torch.from_numpy(rows)
            found = torch.from_numpy((found + first_id).astype(np.int32))
            weight = torch.from_numpy(weight.astype(np.float32))
            ids.append(Ragged(found, offsets).take(rows))
            weights.append(Ragged(weight, offsets).take(rows))
        return Ragged.concatenate(ids), Ragged.concatenate(weights)

    def _find(self, words, index):
        if self.hash_buckets is None:
            return self._vocabularies[index].count(words)
        owner, found, occurrences = hashed_ngrams(words, self.ngram_range, self.hash_buckets)
        used = self.idf_[index][found] > 0
        return owner[used], found[used], occurrences[used]

    def _encode_tokens(self, column):
        tokenizer = load_tokenizer(self.tokenizer_)
        tokens = [_empty(torch.int32)]
        for texts, rows in distinct_texts(column):
            lists = encode_subwords(tokenizer, Words(texts), self.max_length)
            tokens.append(lists.take(torch.from_numpy(rows)))
        return Ragged.concatenate(tokens)

    def make_module(self):
        if self.encoder == "ngrams":
            n_ids = sum(len(idf) for idf in self.idf_)
            return NgramModule(n_ids, self.n_features_in_, self._width(), self.dropout)
        return TransformerModule(
            n_tokens=load_tokenizer(self.tokenizer_).get_vocab_size(),
            n_columns=self.n_features_in_,
            max_length=self.max_length,
            width=self._width(),
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
        )

    def flatten(self, encoding):
        """Return a fixed random projection of each text's TF-IDF weights or sub-word counts."""
        if self.encoder == "ngrams":
            ids, weights = encoding["ids"], encoding["weights"].values.numpy()
        else:
            ids = encoding["tokens"]
            # Dividing by the root of the length keeps long texts comparable to short ones.
            lengths = ids.lengths.numpy()
            weights = np.repeat(lengths, lengths) ** -0.5
        projected = project(ids.offsets.numpy(), ids.values.numpy(), weights, PROJECTED)
        return projected.reshape(len(ids), -1)

    def get_feature_names_out(self, input_features=None):
        names = [f"{name}_{index}" for name in self.feature_names_in_ for index in range(PROJECTED)]
        return np.asarray(names, dtype=object)


def _as_text(column, name):
    return cast_column(column, name, pa.large_string(), block="TextBlock")


def _empty(dtype):
    return Ragged(torch.empty(0, dtype=dtype), torch.zeros(1, dtype=torch.int64))


def _interleave(columns, n_rows):
    """Make ragged columns of one list per row into one with a list per row and column."""
    n_columns = len(columns)
    if n_columns == 1:
        return columns[0]
    order = torch.arange(n_columns * n_rows).reshape(n_columns, n_rows).T.reshape(-1)
    lists = Ragged.concatenate(columns).take(order)
    return Ragged(lists.values, lists.offsets, n_columns)


class NgramModule(nn.Module):
    """Sum the weighted vectors of each list's n-grams.

    Parameters
    ----------
    n_ids : int
        N-grams of all columns.
    n_columns : int
        Text columns.
    width : int
        Size of each column's vector.
    dropout : float
        Fraction of the vectors' components zeroed in training.
    """

    wide = True
    """N-grams go past the trunk, which would memorise rare ones."""

    def __init__(self, n_ids, n_columns, width, dropout=0.0):
        super().__init__()
        self.out_features = n_columns * width
        self.table = nn.EmbeddingBag(max(n_ids, 1), width, mode="sum")
        # Small, so that what is learned outweighs what was drawn even for rare n-grams.
        nn.init.normal_(self.table.weight, std=INITIAL_SPREAD)
        self.empty = nn.Parameter(torch.zeros(n_columns, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids, weights):
        """Return the vectors of all columns.

        Parameters
        ----------
        ids : Ragged of int32
        weights : Ragged of float32

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        offsets = ids.offsets[:-1].to(ids.values.dtype)
        bags = self.table(ids.values, offsets, per_sample_weights=weights.values)
        empty = (ids.lengths == 0).reshape(len(ids), -1, 1)
        bags = bags.reshape(len(ids), *self.empty.shape) + empty * self.empty
        return self.dropout(bags.flatten(1))
