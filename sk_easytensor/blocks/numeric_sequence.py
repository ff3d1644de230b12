"""Block of time series: lists of numbers, scaled robustly, and a sequence encoder."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.sequences import (
    NUMBER_FEATURES,
    SequenceBlock,
    describe_numbers,
    ragged,
)
from sk_easytensor.data.bin_edges import bounded_numbers, centers_and_scales
from sk_easytensor.data.columns import to_float64
from sk_easytensor.data.lists import is_list, same_lengths
from sk_easytensor.data.summaries import Quantiles, SummaryMap, merge_all
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "NumericSequenceBlock",
]


CHUNK = 1 << 20
"""Number of items that are converted to double precision at a time, which bounds memory."""

EDGES = 129
"""Number of quantiles from which median and interquartile range are computed."""


class NumericSequenceBlock(SequenceBlock):
    """Read columns of lists of numbers: the channels of one time series per row.

    Parameters
    ----------
    encoder : {"conv", "gru", "lstm", "transformer", "mean"}, default="conv"
        Sequence encoder of the steps. ``"conv"``: convolutions over neighbouring steps; ``"gru"``
        and ``"lstm"``: recurrent; ``"transformer"``: attention with learned positions;
        ``"mean"``: steps are encoded independently.
    pooling : {"mean_max", "attention", "mean", "last"}, default="mean_max"
        Reduction of the steps to one vector: the concatenation of mean and maximum, a learned
        weighted mean, the mean, or the last step.
    width : int, default=64
        Width of all layers.
    layers : int or None, default=None
        Number of layers of the encoder; by default 1 for recurrent encoders and 2 for the others.
    heads : int, default=4
        Number of attention heads of the transformer; must divide `width`.
    kernel_size : int, default=5
        Number of steps in the kernel of a convolution; must be odd.
    bidirectional : bool, default=True
        Whether a recurrent encoder reads series in both directions.
    dropout : float, default=0.1
        Dropout probability.
    max_length : int, default=1024
        Largest number of steps that are read; longer series are truncated.
    keep : {"last", "first"}, default="last"
        Which end of a longer series is read. A transformer's positions are counted from there.

    Attributes
    ----------
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and interquartile range of the quantiles of each channel, in which no single value
        has more weight than one bin.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of steps without a number.

    Notes
    -----
    All columns of the block are channels of one series, so the lists of a row must have the same
    length; independent series need a block each. Missing steps are replaced by the median, and
    channels with missing steps during fit have a missing indicator. Missing and empty series are
    equivalent and have a learned vector.

    Convolutions with pooling over time are those of Wang, Yan and Oates, "Time Series
    Classification from Scratch with Deep Neural Networks" (2017).

    Examples
    --------
    >>> block = NumericSequenceBlock().fit({"x": [[1.0, 2.0], [3.0]], "y": [[5.0, None], [7.0]]})
    >>> block.center_.tolist(), block.missing_fraction_.round(2).tolist()
    ([2.0, 6.0], [0.0, 0.33])
    >>> block.transform({"x": [[2.0, 2.0], None], "y": [[6.0, 6.0], []]})["values_1"].values
    tensor([0., 0.])
    """

    kind = "numeric_sequence"
    accepted = "lists of numbers"
    entry_a_column = True

    def __init__(
        self,
        encoder="conv",
        *,
        pooling="mean_max",
        width=64,
        layers=None,
        heads=4,
        kernel_size=5,
        bidirectional=True,
        dropout=0.1,
        max_length=1024,
        keep="last",
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

    @classmethod
    def accepts_items(cls, kind):
        return NumericBlock.accepts(kind)

    @classmethod
    def detects(cls, column):
        if not is_list(column.type):
            return False
        tests = (pa.types.is_floating, pa.types.is_duration, pa.types.is_time)
        return any(test(column.type.value_type) for test in tests)

    @classmethod
    def assign_columns(cls, table, columns):
        """Group the columns whose lists have the same length in every row."""
        return same_lengths(table, [name for name in columns if cls.detects(table.column(name))])

    def summarize(self, table):
        items = self.read(table).items
        return SummaryMap(
            {
                name: merge_all(Quantiles.of(numbers) for numbers in _number_chunks(column, name))
                for name, column in zip(items.column_names, items.columns, strict=True)
            }
        )

    def finish(self, summary):
        channels = [summary[name] for name in self.feature_names_in_]
        edges = [channel.quantile_edges(EDGES) for channel in channels]
        self.center_, self.scale_ = centers_and_scales(edges)
        self.missing_fraction_ = np.array(
            [channel.n_missing / max(channel.n_rows, 1) for channel in channels]
        )
        return self

    def encode(self, table):
        lists = self.read(table)
        offsets = torch.from_numpy(lists.offsets)
        encoding = {}
        names = zip(lists.items.column_names, lists.items.columns, strict=True)
        for index, (name, column) in enumerate(names):
            scaled = [
                bounded_numbers(numbers, self.center_[index], self.scale_[index])
                for numbers in _number_chunks(column, name)
            ]
            encoding[f"values_{index}"] = ragged(np.concatenate(scaled, dtype=np.float32), offsets)
        return encoding

    def make_module(self):
        return NumericSequenceModule(self.missing_fraction_ > 0, self.make_encoder)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        names = list(map(str, self.feature_names_in_))
        fields = {name: {"column": name, "kind": "number"} for name in names}
        lists = encoders.read_lists(graph, self, fields)
        for name, center, scale in zip(names, self.center_, self.scale_, strict=True):
            scaled = encoders.bounded(graph, lists.values[name], center, scale)
            lists.values[name] = graph.cast(scaled, np.float32)
        entries = {f"values_{index}": name for index, name in enumerate(names)}
        return encoders.entries(graph, lists, entries)

    def flatten(self, encoding):
        """Return statistics of each channel, and the number of steps."""
        entries = list(encoding.values())
        parts = [describe_numbers(lists) for lists in entries]
        lengths = entries[0].lengths[:, None].float().numpy()
        return np.concatenate([*parts, lengths], axis=1)

    def get_feature_names_out(self, input_features=None):
        names = [
            f"{name}_{feature}" for name in self.feature_names_in_ for feature in NUMBER_FEATURES
        ]
        return np.asarray([*names, f"{self.feature_names_in_[0]}_length"], dtype=object)


def _number_chunks(column, name):
    """Yield the numbers of a column as float64 arrays of at most `CHUNK` items, NaN if missing."""
    for start in range(0, max(len(column), 1), CHUNK):
        yield to_float64(column.slice(start, CHUNK), name, block="NumericSequenceBlock")


class NumericSequenceModule(BlockModule):
    """Encode the channels of a series together.

    Parameters
    ----------
    has_missing : ndarray of bool, shape (n_channels,)
        Which channels have missing steps and therefore a missing indicator.
    make_encoder : callable
        Function that returns the :class:`SequenceEncoder` for an item width.
    """

    padded = True

    def __init__(self, has_missing, make_encoder):
        super().__init__()
        self.register_buffer("has_missing", torch.from_numpy(np.flatnonzero(has_missing)))
        self.encoder = make_encoder(len(has_missing) + len(self.has_missing))
        self.out_features = self.encoder.out_features

    def forward(self, **channels):
        """Return a vector for each row.

        Parameters
        ----------
        **channels : Ragged of float32, parallel
            ``values_0``, ``values_1`` and so on, NaN where missing.

        Returns
        -------
        torch.Tensor of shape (batch, out_features)
        """
        lists = [channels[f"values_{index}"] for index in range(len(channels))]
        values = torch.stack([channel.values for channel in lists], dim=1)
        missing = torch.isnan(values).to(values.dtype).index_select(1, self.has_missing)
        values = torch.nan_to_num(values, nan=0.0, posinf=3.0, neginf=-3.0)
        return self.encoder(torch.cat([values, missing], dim=1), lists[0].offsets)
