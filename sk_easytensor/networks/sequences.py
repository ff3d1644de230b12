"""Sequence encoders: transformer, recurrent and convolutional networks, and pooling.

Flat lists are padded here to the length of the longest list of the batch. The padding is at the end
of a list, so that it does not change the outputs of a forward recurrent network for the items. A
backward network reads each list in reversed order.
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
    "pad",
]


ENCODERS = ("transformer", "gru", "lstm", "conv", "mean")
POOLINGS = ("attention", "mean", "last", "mean_max")


class SequenceEncoder(nn.Module):
    """Encode lists of vectors as one vector each.

    Parameters
    ----------
    encoder : {"transformer", "gru", "lstm", "conv", "mean"}
        Network over the items; ``"mean"`` encodes items independently.
    pooling : {"attention", "mean", "last", "mean_max"}
        Reduction of the items to one vector; ``"mean_max"`` concatenates mean and maximum.
    in_features : int
        Number of components of an item.
    width : int
        Width of all layers.
    max_length : int
        Largest length of a list.
    layers : int, default=1
        Number of layers of the encoder.
    heads : int, default=4
        Number of attention heads of the transformer; must divide `width`.
    kernel_size : int, default=5
        Number of items in the kernel of a convolution; must be odd.
    bidirectional : bool, default=False
        Whether a recurrent network reads lists in both directions.
    latest_first : bool, default=True
        Whether positions are counted from the end of a list.
    dropout : float, default=0.0
        Dropout probability.

    Notes
    -----
    Empty lists have a learned vector. The last feature is the scaled logarithm of the length.
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
            Items of all lists, concatenated.
        offsets : torch.Tensor of int64, shape (n_lists + 1,)
            Offset of each list among the items.

        Returns
        -------
        torch.Tensor of shape (n_lists, out_features)
        """
        return self.read(*pad(items, offsets))

    def read(self, padded, lengths):
        """Return a vector for each padded list.

        Parameters
        ----------
        padded : torch.Tensor of shape (n_lists, longest, in_features)
            Items, followed by zeros.
        lengths : torch.Tensor of int64, shape (n_lists,)
            Length of each list.

        Returns
        -------
        torch.Tensor of shape (n_lists, out_features)
        """
        # An empty list is read as one item of zeros, because a softmax over no items is NaN.
        n_items = lengths.clamp(min=1)
        known = torch.arange(padded.shape[1], device=lengths.device) < n_items[:, None]
        hidden = self.reader(padded, n_items, known)
        pooled = self._pool(hidden, n_items, known)
        pooled = torch.where((lengths > 0)[:, None], pooled, self.empty)
        # Pooling discards the number of items, so it is added.
        length = torch.log1p(lengths.to(pooled.dtype)) / self.longest
        return torch.cat([pooled, length[:, None]], dim=1)

    # Lists can also be read in parts, by ``start``, ``advance`` and ``finish``, if the output of an
    # item does not depend on the items after it: by the encoder "mean" and by recurrent ones that
    # are not bidirectional.

    @property
    def state_features(self):
        """Number of components of the state of a list."""
        return len(self.start(1)[0])

    def start(self, n_lists):
        """Return the state of empty lists.

        Parameters
        ----------
        n_lists : int
            Number of lists.

        Returns
        -------
        torch.Tensor of float32, shape (n_lists, state_features)
            State of the reader, number of items, and sums over the items that the pooling needs.
        """
        features = self.reader.out_features
        parts = [torch.zeros(n_lists, self.reader.state_features + 1)]
        if self.pooling == "attention":
            parts += [torch.full((n_lists, 1), -torch.inf), torch.zeros(n_lists, 1 + features)]
        else:
            parts.append(torch.zeros(n_lists, features))
        if self.pooling == "mean_max":
            parts.append(torch.full((n_lists, features), -torch.inf))
        return torch.cat(parts, dim=1)

    def advance(self, state, items, offsets):
        """Return the state of lists after further items.

        Parameters
        ----------
        state : torch.Tensor of float32, shape (n_lists, state_features)
            Result of :meth:`start` or of an earlier call.
        items : torch.Tensor of shape (total, in_features)
            Further items of all lists, concatenated.
        offsets : torch.Tensor of int64, shape (n_lists + 1,)
            Offset of each list among the items. Each list has at least one.

        Returns
        -------
        torch.Tensor of float32, shape (n_lists, state_features)
        """
        padded, lengths = pad(items, offsets)
        known = (torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None])[..., None]
        memory, count, sums = state.tensor_split([self.reader.state_features, memory_end(self)], 1)
        hidden, memory = self.reader.advance(padded, lengths, memory)
        if self.pooling == "attention":
            sums = self._advance_attention(sums, hidden, known)
        elif self.pooling == "last":
            sums = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        else:
            total, maximum = sums.tensor_split([hidden.shape[2]], 1)
            total = total + hidden.masked_fill(~known, 0).sum(dim=1)
            if self.pooling == "mean_max":
                latest = hidden.masked_fill(~known, -torch.inf).amax(dim=1)
                total = torch.cat([total, torch.maximum(maximum, latest)], dim=1)
            sums = total
        return torch.cat([memory, count + lengths[:, None], sums], dim=1)

    def _advance_attention(self, sums, hidden, known):
        """Return the largest score, and the sums of weights and of weighted items."""
        largest, sums = sums[:, :1], sums[:, 1:]
        scores = self.score(hidden).masked_fill(~known, -torch.inf)
        maximum = torch.maximum(largest, scores.amax(dim=1))
        weights = torch.exp(scores - maximum[:, None])
        added = torch.cat([weights, weights * hidden], dim=2).sum(dim=1)
        return torch.cat([maximum, sums * torch.exp(largest - maximum) + added], dim=1)

    def finish(self, state):
        """Return the vector of each list, which :meth:`forward` computes of all items at once.

        Parameters
        ----------
        state : torch.Tensor of float32, shape (n_lists, state_features)
            Result of :meth:`start` or :meth:`advance`.

        Returns
        -------
        torch.Tensor of float32, shape (n_lists, out_features)
        """
        _, count, sums = state.tensor_split([self.reader.state_features, memory_end(self)], 1)
        if self.pooling == "attention":
            pooled = sums[:, 2:] / sums[:, 1:2].clamp(min=1e-30)
        elif self.pooling == "last":
            pooled = sums
        else:
            features = self.reader.out_features
            mean = sums[:, :features] / count.clamp(min=1)
            pooled = torch.cat([mean, sums[:, features:]], dim=1)
        pooled = torch.where(count > 0, pooled, self.empty)
        return torch.cat([pooled, torch.log1p(count) / self.longest], dim=1)

    def _pool(self, hidden, lengths, known):
        known = known[..., None]
        if self.pooling == "attention":
            attention = self.score(hidden).masked_fill(~known, -torch.inf).softmax(dim=1)
            return (attention * hidden).sum(dim=1)
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


def memory_end(encoder):
    """Return the position after the number of items in the state of a sequence encoder."""
    return encoder.reader.state_features + 1


def pad(items, offsets):
    """Return items as (n_lists, longest, features), followed by zeros, and the lengths."""
    if isinstance(offsets, Padded):
        return offsets.pad(items)
    lengths = offsets.diff()
    longest = max(int(lengths.max()), 1)
    starts = torch.arange(len(lengths), device=lengths.device) * longest
    position = torch.arange(len(items), device=lengths.device)
    position = position + torch.repeat_interleave(starts - offsets[:-1], lengths)
    # The gradient of index_copy is a look-up, whereas that of gathering items would be a sum.
    padded = items.new_zeros(len(lengths) * longest, items.shape[1])
    padded.index_copy_(0, position, items)
    return padded.unflatten(0, (len(lengths), longest)), lengths


class Items(nn.Module):
    """Linear layer on each item."""

    state_features = 0

    def __init__(self, in_features, width):
        super().__init__()
        self.out_features = width
        self.project = nn.Linear(in_features, width)

    def forward(self, padded, lengths, known):
        """Map (n_lists, longest, in_features) to (n_lists, longest, out_features)."""
        return self.project(padded)

    def advance(self, padded, lengths, memory):
        """Return the outputs of further items, and the state, which is empty."""
        return self.project(padded), memory


class Convolutions(nn.Module):
    """Convolutions along the list, each followed by layer normalization and ReLU."""

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
            # The padding must be zero for every layer, as it is before the start.
            hidden = self.dropout(hidden * inside)
        return hidden


class Recurrent(nn.Module):
    """Gated recurrent network, forward or in both directions, with a linear layer beside it."""

    def __init__(self, encoder, in_features, width, layers, bidirectional, dropout):
        super().__init__()
        self.bidirectional = bidirectional
        self.out_features = width * (1 + bidirectional)
        make = {"gru": nn.GRU, "lstm": nn.LSTM}[encoder]
        self.forwards = nn.ModuleList()
        self.backwards = nn.ModuleList()
        # Pooling reads the items themselves, too, which a recurrent state mixes with earlier ones.
        self.skip = nn.Linear(in_features, self.out_features)
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
            position = torch.arange(padded.shape[1], device=lengths.device)
            reversed_order = torch.where(known, lengths[:, None] - 1 - position, position)
        for index, forwards in enumerate(self.forwards):
            outputs, _ = forwards(hidden)
            if self.bidirectional:
                backward_outputs, _ = self.backwards[index](reorder(hidden, reversed_order))
                outputs = torch.cat([outputs, reorder(backward_outputs, reversed_order)], dim=2)
            hidden = self.dropout(outputs)
        return self.norm(hidden) + self.skip(padded)

    @property
    def state_features(self):
        """Number of components of the state: of each layer, the hidden state and that of cells."""
        return len(self.forwards) * self.out_features * (1 + self._has_cells)

    @property
    def _has_cells(self):
        return isinstance(self.forwards[0], nn.LSTM)

    def advance(self, padded, lengths, memory):
        """Return the outputs of further items of each list, and the state after them."""
        packed = nn.utils.rnn.pack_padded_sequence(
            padded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        parts = [part.contiguous()[None] for part in memory.split(self.out_features, dim=1)]
        states = []
        for layer in self.forwards:
            if self._has_cells:
                packed, after = layer(packed, (parts.pop(0), parts.pop(0)))
                states += [part[0] for part in after]
            else:
                packed, after = layer(packed, parts.pop(0))
                states.append(after[0])
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            packed, batch_first=True, total_length=padded.shape[1]
        )
        return self.norm(hidden) + self.skip(padded), torch.cat(states, dim=1)


def reorder(padded, order):
    """Reorder the items of each list by the indices `order`."""
    return padded.gather(1, order[..., None].expand(padded.shape))


class Transformer(nn.Module):
    """Transformer layers over items with learned positions."""

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
        position = torch.arange(padded.shape[1], device=lengths.device)
        if self.latest_first:
            position = (lengths[:, None] - 1 - position).clamp(min=0)
        positions = select_rows(self.positions, position)
        hidden = self.dropout(self.project(padded) + positions)
        for layer in self.layers:
            hidden = layer(hidden, known[:, None, None, :])
        return self.norm(hidden)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a norm and with a residual connection.

    Parameters
    ----------
    width : int
        Number of components of an item.
    heads : int
        Number of attention heads; must divide `width`.
    dropout : float
        Dropout probability.

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
        """Return the outputs of the layer; `mask` is False for padding."""
        joined = self.attention_in(self.attention_norm(hidden))
        split = joined.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*split, attn_mask=mask)
        attended = self.attention_out(attended.transpose(1, 2).flatten(2))
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(hidden))
