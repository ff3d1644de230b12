"""Sub-words of texts, and the transformer that reads them.

Words are split, not texts: the tokenizer sees each distinct word of a chunk once, and everything
that grows with the number of rows is array arithmetic.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor.blocks._ngrams import Words, distinct_texts
from sk_easytensor.networks.sequences import TransformerLayer
from sk_easytensor.summaries import ValueCounts
from sk_easytensor.tensors import Ragged

__all__ = [
    "TransformerModule",
    "count_words",
    "encode_subwords",
    "load_tokenizer",
    "train_tokenizer",
]

# The sub-word vocabulary is learned from so many words at most: the distinct ones, each
# repeated in proportion to its count.
TRAINING_WORDS = 500_000


def count_words(column, *, capacity):
    """Count how often each word occurs in a column, for learning sub-words from."""
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
    """Read a tokenizer from JSON; the package is loaded only where it is needed."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def train_tokenizer(counts, vocabulary_size):
    """Learn byte pairs from word counts and return the tokenizer as JSON.

    Parameters
    ----------
    counts : ValueCounts
        Of words.
    vocabulary_size : int
        At most so many sub-words.

    Returns
    -------
    str
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words, frequency = counts.most_common()
    share = min(TRAINING_WORDS / max(int(frequency.sum()), 1), 1.0)
    copies = np.maximum(np.rint(frequency * share), 1).astype(np.int64)
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
    """Write texts in sub-words; only their distinct words are split.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    words : Words
    max_length : int
        Sub-words kept of each text.

    Returns
    -------
    Ragged of int32
        A list for each text and an empty one for missing texts.
    """
    # Each word has at least one sub-word, so that later words cannot matter.
    starts = np.searchsorted(words.owner, np.arange(words.n_texts))
    kept = np.arange(len(words.owner)) - starts[words.owner] < max_length
    codes, owner = words.codes[kept], words.owner[kept]
    used, codes = np.unique(codes, return_inverse=True)
    distinct = words.distinct.take(pa.array(used)).to_pylist()
    split = [item.ids for item in tokenizer.encode_batch_fast(distinct)]
    sizes = np.fromiter(map(len, split), np.int64, len(split))
    offsets = torch.from_numpy(np.append(0, np.cumsum(sizes)))
    pieces = torch.tensor([piece for item in split for piece in item], dtype=torch.int32)
    lists = Ragged(pieces, offsets).take(torch.from_numpy(codes))
    # The words of a text are neighbours: its list runs from its first word to its last.
    bounds = lists.offsets[np.searchsorted(owner, np.arange(words.n_texts + 2))]
    text = torch.repeat_interleave(bounds.diff())
    kept = torch.arange(len(text)) - bounds[text] < max_length
    offsets = torch.zeros_like(bounds)
    torch.cumsum(bounds.diff().clamp(max=max_length), 0, out=offsets[1:])
    return Ragged(lists.values[kept], offsets)


class TransformerModule(nn.Module):
    """Read each text with a small pre-norm transformer and pool it by attention.

    Parameters
    ----------
    n_tokens : int
        Sub-words.
    n_columns : int
        Text columns; they share all parameters but one vector each.
    max_length : int
        Longest list.
    width : int
        Size of each column's vector and of all layers.
    layers, heads : int
        Layers and attention heads.
    dropout : float
        Fraction of activations zeroed in training.
    """

    padded = True

    def __init__(self, n_tokens, n_columns, max_length, width, layers, heads, dropout=0.0):
        super().__init__()
        self.out_features = n_columns * width
        self.n_columns = n_columns
        self.tokens = nn.Embedding(n_tokens, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.1)
        nn.init.normal_(self.tokens.weight, std=0.3)
        # Stands before every text, so that there is always something to attend to.
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

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        padded = tokens.to_padded()
        start = self.start.repeat(padded.shape[0] // self.n_columns, 1)
        longest = padded.shape[1]
        place = torch.arange(longest + 1, device=padded.device)
        known = place <= tokens.lengths[:, None]
        embedded = self.tokens(padded) + self.positions[:longest]
        hidden = self.dropout(torch.cat([start[:, None], embedded], dim=1))
        for layer in self.layers:
            hidden = layer(hidden, known[:, None, None, :])
        hidden = self.norm(hidden)
        share = self.score(hidden).masked_fill(~known[..., None], -torch.inf).softmax(dim=1)
        return (share * hidden).sum(dim=1).reshape(-1, self.out_features)
