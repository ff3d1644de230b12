"""Networks that read lists of vectors: transformer, recurrent, convolutional or none, and pooling.

Lists come flat, as they are kept everywhere; they are padded here, to the longest of the batch.
Items are at the front of a padded list, so that what follows never reaches a recurrent network
that runs forwards; one that runs backwards gets each list turned around.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from sk_easytensor.networks.trunks import FastDropout
from sk_easytensor.tensors import Padded, select_rows

__all__ = [
    "ENCODERS",
    "POOLINGS",
    "SequenceEncoder",
    "TransformerLayer",
]


ENCODERS = ("transformer", "gru", "lstm", "conv", "mean")
POOLINGS = ("attention", "mean", "last", "mean_max")


class SequenceEncoder(nn.Module):
    """Turn lists of vectors into a vector each.

    Parameters
    ----------
    encoder : {"transformer", "gru", "lstm", "conv", "mean"}
        How items see each other; ``"mean"``: not at all.
    pooling : {"attention", "mean", "last", "mean_max"}
        How the items of a list become one vector; ``"mean_max"`` gives two, side by side.
    in_features : int
        Size of an item.
    width : int
        Size of all layers.
    max_length : int
        Longest list.
    layers : int
        Layers of the encoder.
    heads : int
        Attention heads of the transformer; divides `width`.
    kernel_size : int
        Items that a convolution sees at once; odd.
    bidirectional : bool
        Whether a recurrent network runs backwards too.
    latest_first : bool
        Whether positions are counted from the end of a list.
    dropout : float
        Fraction of activations zeroed in training.

    Notes
    -----
    Empty lists get a learned vector. The last feature is the logarithm of a list's length.
    """

    def __init__(
        self,
        encoder,
        pooling,
        in_features,
        width,
        *,
        max_length,
        layers=1,
        heads=4,
        kernel_size=5,
        bidirectional=False,
        latest_first=True,
        dropout=0.0,
    ):
        super().__init__()
        if encoder == "transformer":
            self.reader = Transformer(
                in_features, width, max_length, layers, heads, latest_first, dropout
            )
        elif encoder == "conv":
            self.reader = Convolutions(in_features, width, layers, kernel_size, dropout)
        elif encoder == "mean":
            self.reader = Items(in_features, width)
        else:
            self.reader = Recurrent(encoder, in_features, width, layers, bidirectional, dropout)
        self.pooling = pooling
        features = self.reader.out_features
        self.both_ends = pooling == "last" and getattr(self.reader, "bidirectional", False)
        if pooling == "attention":
            self.score = nn.Linear(features, 1, bias=False)
        pooled = features * (2 if pooling == "mean_max" else 1)
        self.empty = nn.Parameter(torch.zeros(pooled))
        self.longest = math.log1p(max_length)
        self.out_features = pooled + 1

    def forward(self, items, offsets):
        """Return a vector for each list.

        Parameters
        ----------
        items : torch.Tensor of shape (total, in_features)
            The items of all lists, one after the other.
        offsets : torch.Tensor of int64, shape (n_lists + 1,)
            Where each list begins.

        Returns
        -------
        torch.Tensor of shape (n_lists, out_features)
        """
        return self.read(*pad(items, offsets))

    def read(self, padded, lengths):
        """Return a vector for each list that is padded already.

        Parameters
        ----------
        padded : torch.Tensor of shape (n_lists, longest, in_features)
            Items, zeros at the end.
        lengths : torch.Tensor of int64, shape (n_lists,)
            Items of each list.

        Returns
        -------
        torch.Tensor of shape (n_lists, out_features)
        """
        # An empty list is read as one item of zeros: softmax over nothing is not a number.
        filled = lengths.clamp(min=1)
        known = torch.arange(padded.shape[1], device=lengths.device) < filled[:, None]
        hidden = self.reader(padded, filled, known)
        pooled = self._pool(hidden, filled, known)
        pooled = torch.where((lengths > 0)[:, None], pooled, self.empty)
        # Pooling forgets how many items there were.
        length = torch.log1p(lengths.to(pooled.dtype)) / self.longest
        return torch.cat([pooled, length[:, None]], dim=1)

    def _pool(self, hidden, lengths, known):
        known = known[..., None]
        if self.pooling == "attention":
            share = self.score(hidden).masked_fill(~known, -torch.inf).softmax(dim=1)
            return (share * hidden).sum(dim=1)
        if self.pooling == "last":
            last = hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
            if self.both_ends:
                forwards, _ = last.chunk(2, dim=1)
                return torch.cat([forwards, hidden[:, 0].chunk(2, dim=1)[1]], dim=1)
            return last
        mean = hidden.masked_fill(~known, 0).sum(dim=1) / lengths[:, None]
        if self.pooling == "mean":
            return mean
        return torch.cat([mean, hidden.masked_fill(~known, -torch.inf).amax(dim=1)], dim=1)


def pad(items, offsets):
    """Return items as (n_lists, longest, features), zeros at the end, and each list's length."""
    if isinstance(offsets, Padded):
        return offsets.pad(items)
    lengths = offsets.diff()
    longest = max(int(lengths.max()), 1)
    starts = torch.arange(len(lengths), device=lengths.device) * longest
    place = torch.arange(len(items), device=lengths.device)
    place = place + torch.repeat_interleave(starts - offsets[:-1], lengths)
    # Its gradient is a plain look-up, where that of gathering from the items would be a sum.
    padded = items.new_zeros(len(lengths) * longest, items.shape[1])
    padded.index_copy_(0, place, items)
    return padded.unflatten(0, (len(lengths), longest)), lengths


class Items(nn.Module):
    """Each item on its own."""

    def __init__(self, in_features, width):
        super().__init__()
        self.out_features = width
        self.project = nn.Linear(in_features, width)

    def forward(self, padded, lengths, known):
        """Map (n_lists, longest, in_features) to (n_lists, longest, out_features)."""
        return self.project(padded)


class Convolutions(nn.Module):
    """Convolutions along the list, each followed by a norm over its channels and a rectifier."""

    def __init__(self, in_features, width, layers, kernel_size, dropout):
        super().__init__()
        self.out_features = width
        sizes = [in_features] + [width] * layers
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, padding=kernel_size // 2)
            for before, after in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = FastDropout(dropout)

    def forward(self, padded, lengths, known):
        """Map (n_lists, longest, in_features) to (n_lists, longest, out_features)."""
        hidden, inside = padded, known[..., None]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(layer(hidden.transpose(1, 2)).transpose(1, 2)).relu()
            # What is beyond the end must be zero for every layer, as it is before the start.
            hidden = self.dropout(hidden * inside)
        return hidden


class Recurrent(nn.Module):
    """A gated recurrent network, forwards only or in both directions."""

    def __init__(self, encoder, in_features, width, layers, bidirectional, dropout):
        super().__init__()
        self.bidirectional = bidirectional
        self.out_features = width * (1 + bidirectional)
        make = {"gru": nn.GRU, "lstm": nn.LSTM}[encoder]
        self.forwards = nn.ModuleList()
        self.backwards = nn.ModuleList()
        for _ in range(layers):
            self.forwards.append(make(in_features, width, batch_first=True))
            if bidirectional:
                self.backwards.append(make(in_features, width, batch_first=True))
            in_features = self.out_features
        self.norm = nn.LayerNorm(self.out_features)
        self.dropout = FastDropout(dropout)

    def forward(self, padded, lengths, known):
        """Map (n_lists, longest, in_features) to (n_lists, longest, out_features)."""
        hidden = padded
        if self.bidirectional:
            place = torch.arange(padded.shape[1], device=lengths.device)
            turned = torch.where(known, lengths[:, None] - 1 - place, place)
        for index, forwards in enumerate(self.forwards):
            ahead, _ = forwards(hidden)
            if self.bidirectional:
                back, _ = self.backwards[index](turn(hidden, turned))
                ahead = torch.cat([ahead, turn(back, turned)], dim=2)
            hidden = self.dropout(ahead)
        return self.norm(hidden)


def turn(padded, turned):
    """Put the items of each list into another order."""
    return padded.gather(1, turned[..., None].expand(padded.shape))


class Transformer(nn.Module):
    """Layers of attention over items with learned positions."""

    def __init__(self, in_features, width, max_length, layers, heads, latest_first, dropout):
        super().__init__()
        self.out_features = width
        self.latest_first = latest_first
        self.project = nn.Linear(in_features, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.1)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = FastDropout(dropout)

    def forward(self, padded, lengths, known):
        """Map (n_lists, longest, in_features) to (n_lists, longest, out_features)."""
        place = torch.arange(padded.shape[1], device=lengths.device)
        if self.latest_first:
            place = (lengths[:, None] - 1 - place).clamp(min=0)
        positions = select_rows(self.positions, place)
        hidden = self.dropout(self.project(padded) + positions)
        for layer in self.layers:
            hidden = layer(hidden, known[:, None, None, :])
        return self.norm(hidden)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to its input.

    Parameters
    ----------
    width : int
        Size of an item.
    heads : int
        Attention heads; divides `width`.
    dropout : float
        Fraction of activations zeroed in training.

    Notes
    -----
    The order of norms is that of Xiong et al., "On Layer Normalization in the Transformer
    Architecture" (2020), which trains without a long warm-up.
    """

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            FastDropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.dropout = FastDropout(dropout)

    def forward(self, hidden, mask):
        """Return the next layer's input; `mask` is False where there is only padding."""
        joined = self.attention_in(self.attention_norm(hidden))
        split = joined.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*split, attn_mask=mask)
        attended = self.attention_out(attended.transpose(1, 2).flatten(2))
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(hidden))
