"""Block of time series: lists of numbers, an encoder, and features of fixed convolutions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from sk_easytensor._utils.validation import check_number
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.sequences import (
    NUMBER_FEATURES,
    SequenceBlock,
    SequenceModule,
    describe_numbers,
    ragged,
)
from sk_easytensor.data.bin_edges import bounded_numbers, centers_and_scales
from sk_easytensor.data.columns import (
    is_list,
    same_lengths,
    to_float64,
)
from sk_easytensor.data.summaries import Quantiles, Summary, SummaryMap, merge_all
from sk_easytensor.networks.random_convolutions import (
    N_KERNELS,
    RandomConvolutions,
    differences,
    fit_random_convolutions,
)
from sk_easytensor.networks.sequences import pad
from sk_easytensor.tensors import Ragged, TensorFrame

__all__ = [
    "NumericSequenceBlock",
    "SeriesSample",
    "means_of_steps",
]


CHUNK = 1 << 20
"""Number of items that are converted to double precision at a time, which bounds memory."""

EDGES = 129
"""Number of quantiles from which median and interquartile range are computed."""


N_FEATURES = 4 * N_KERNELS
"""Number of features for each bias of all kernels: proportions and means, of steps and of their
differences."""

MAX_SERIES, MAX_STEPS = 128, 1_000_000
"""Largest number of series of a sample, and of its numbers."""


class SeriesSample(Summary):
    """Sample of the different series of a chunk of rows: those with the smallest hashes.

    Parameters
    ----------
    hashes : ndarray of int64, shape (n_series,)
        Hash of each series, in increasing order.
    lists : list of Ragged of float64
        Channels of the series, parallel.
    bound : int, default=2**63
        Hash from which on series are not part of the sample, because it would be too large.
    """

    def __init__(self, hashes, lists, bound=2**63):
        self.hashes = hashes
        self.lists = lists
        self.bound = bound

    @classmethod
    def of(cls, lists):
        """Return the sample of parallel lists, of which empty ones are left out."""
        present = torch.nonzero(lists[0].lengths)[:, 0]
        frame = TensorFrame({"": {str(index): part for index, part in enumerate(lists)}})
        return cls(frame.row_hashes(), lists)._select(present.numpy())

    def merge(self, other):
        """Return the sample of both chunks."""
        shared = {}
        lists = [
            Ragged.concatenate(pair, shared) for pair in zip(self.lists, other.lists, strict=True)
        ]
        hashes = np.concatenate([self.hashes, other.hashes])
        merged = SeriesSample(hashes, lists, min(self.bound, other.bound))
        return merged._select(np.arange(len(hashes)))

    def _select(self, rows):
        """Return the series of `rows` with the smallest hashes, up to the limits of a sample."""
        hashes, first = np.unique(self.hashes[rows], return_index=True)
        order = rows[first[hashes < self.bound]]
        n_numbers = self.lists[0].lengths.numpy()[order].cumsum() * len(self.lists)
        n_kept = min(MAX_SERIES, max(1, int((n_numbers <= MAX_STEPS).sum())))
        bound = self.bound
        if n_kept < len(order):
            bound, order = int(self.hashes[order[n_kept]]), order[:n_kept]
        shared, selected = {}, torch.from_numpy(order)
        lists = [part.take(selected, shared) for part in self.lists]
        return SeriesSample(self.hashes[order], lists, bound)


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
    max_length : int, default=4096
        Largest number of steps that are read; longer series are truncated.
    max_steps : int, default=256
        Number of steps at which the sequence encoder reads the longest series: where series are
        longer during `fit`, it reads means of as many neighbouring steps as needed.
    keep : {"last", "first"}, default="last"
        Which end of a longer series is read. A transformer's positions are counted from there.
    n_kernel_features : int, default=6048
        Number of features of convolutions with fixed kernels, which the linear model of an
        estimator reads (see its parameter ``linear``), rounded to a multiple of 336; 0 for none.

    Attributes
    ----------
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and interquartile range of the quantiles of each channel, in which no single value
        has more weight than one bin.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of steps without a number.
    stride_ : int
        Number of neighbouring steps whose mean is one step of the sequence encoder.
    convolutions_ : list of dict
        Dilations, channels and biases of the fixed kernels for series and for their differences;
        empty if there are none.

    Notes
    -----
    All columns of the block are channels of one series, so the lists of a row must have the same
    length; independent series need a block each. Missing steps are replaced by the median, and
    channels with missing steps during fit have a missing indicator. Missing and empty series are
    equivalent and have a learned vector.

    Convolutions with pooling over time are those of Wang, Yan and Oates, "Time Series
    Classification from Scratch with Deep Neural Networks" (2017). The convolutions with fixed
    kernels are those of Dempster, Schmidt and Webb, "MiniRocket: A Very Fast (Almost) Deterministic
    Transform for Time Series Classification" (2021), with two ideas of Tan et al., "MultiRocket"
    (2022): mean excesses over the biases, and the differences of neighbouring steps as further
    series. They read scaled channels; their biases are quantiles of a sample of 128 series.
    Statistics of each channel and the logarithm of the length are further features of the linear
    model.

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
        max_length=4096,
        max_steps=256,
        keep="last",
        n_kernel_features=6048,
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
        self.max_steps = max_steps
        self.n_kernel_features = n_kernel_features

    def check_parameters(self):
        super().check_parameters()
        check_number(type(self).__name__, "max_steps", self.max_steps, low=1, integer=True)
        check_number(
            type(self).__name__, "n_kernel_features", self.n_kernel_features, low=0, integer=True
        )

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
        lists = self.read(table)
        names, items = lists.items.column_names, lists.items.columns
        quantiles = SummaryMap(
            {
                name: merge_all(Quantiles.of(numbers) for numbers in _number_chunks(column, name))
                for name, column in zip(names, items, strict=True)
            }
        )
        summary = SummaryMap({"quantiles": quantiles, "lengths": self.count_long(table)})
        if self.n_kernel_features:
            offsets = torch.from_numpy(lists.offsets)
            series = [
                ragged(np.concatenate(list(_number_chunks(column, name))), offsets)
                for name, column in zip(names, items, strict=True)
            ]
            summary["sample"] = SeriesSample.of(series)
        return summary

    def finish(self, summary):
        channels = [summary["quantiles"][name] for name in self.feature_names_in_]
        edges = [channel.quantile_edges(EDGES) for channel in channels]
        self.center_, self.scale_ = centers_and_scales(edges)
        self.missing_fraction_ = np.array(
            [channel.n_missing / max(channel.n_rows, 1) for channel in channels]
        )
        self.warn_of_long(summary["lengths"])
        longest = min(summary["lengths"].longest, self.max_length)
        self.stride_ = max(1, -(-longest // self.max_steps))
        self.convolutions_ = []
        if self.n_kernel_features:
            lists = summary["sample"].lists
            scaled = [
                self._scaled(index, part.values.numpy(), part.offsets)
                for index, part in enumerate(lists)
            ]
            if len(scaled[0]):
                series, lengths = as_series(scaled)
            else:
                series, lengths = torch.zeros(0, len(scaled), 1), torch.zeros(0, dtype=torch.int64)
            n_biases = max(1, round(self.n_kernel_features / N_FEATURES))
            names = ("dilations", "subsets", "biases")
            for seed, part in enumerate([(series, lengths), differences(series, lengths)]):
                chosen = fit_random_convolutions(*part, n_biases, seed)
                self.convolutions_.append(dict(zip(names, map(list, chosen), strict=True)))
        return self

    def _scaled(self, index, numbers, offsets):
        """Return the numbers of a channel as scaled lists."""
        scaled = bounded_numbers(numbers, self.center_[index], self.scale_[index])
        return ragged(scaled.astype(np.float32), offsets)

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
        convolutions = [RandomConvolutions(**chosen) for chosen in self.convolutions_]
        return NumericSequenceModule(
            self.missing_fraction_ > 0,
            partial(self.make_encoder, max_length=-(-self.max_length // self.stride_)),
            convolutions,
            self.stride_,
        )

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


def as_series(lists):
    """Return parallel lists as padded series, with 0 for missing steps.

    Parameters
    ----------
    lists : list of Ragged of float32
        Scaled channels.

    Returns
    -------
    series : torch.Tensor of float32, shape (n_rows, n_channels, longest)
        Steps, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_rows,)
        Number of steps of each row.
    """
    values = torch.stack([channel.values for channel in lists], dim=1)
    padded, lengths = pad(finite_steps(values), lists[0].offsets)
    return padded.transpose(1, 2), lengths


def finite_steps(values):
    """Return scaled numbers, with 0 for missing ones and 3 for infinite ones."""
    return torch.nan_to_num(values, nan=0.0, posinf=3.0, neginf=-3.0)


N_STATISTICS = 6
"""Number of columns of :func:`series_statistics` for each channel."""

STATISTICS_SHARE = 0.1
"""Variance of all statistics of series together, relative to that of the convolutions."""


def series_statistics(series, lengths):
    """Return statistics of each channel, and the logarithm of the length.

    Parameters
    ----------
    series : torch.Tensor of float32, shape (n_rows, n_channels, longest)
        Steps, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_rows,)
        Number of steps of each row.

    Returns
    -------
    torch.Tensor of float32, shape (n_rows, 6 * n_channels + 1)
        Mean, standard deviation, minimum, maximum, first and last step of each channel, 0 for
        series without steps.
    """
    number = lengths.clamp(min=1)
    step = torch.arange(series.shape[2], device=lengths.device)
    inside = (step < number[:, None])[:, None, :]
    mean = series.sum(2) / number[:, None]
    centered = torch.where(inside, series - mean[:, :, None], 0.0)
    deviation = (centered.square().sum(2) / number[:, None]).sqrt()
    lowest = torch.where(inside, series, torch.inf).amin(2)
    highest = torch.where(inside, series, -torch.inf).amax(2)
    position = (number - 1)[:, None, None].expand(-1, series.shape[1], 1)
    last = series.gather(2, position)[:, :, 0]
    columns = [mean, deviation, lowest, highest, series[:, :, 0], last]
    return torch.cat([*columns, torch.log1p(lengths.to(mean.dtype))[:, None]], dim=1)


def means_of_steps(padded, lengths, stride):
    """Return the means of neighbouring steps.

    Parameters
    ----------
    padded : torch.Tensor of shape (n_rows, longest, n_features)
        Steps, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_rows,)
        Number of steps of each row.
    stride : int
        Number of steps of each mean; the last one may have fewer.

    Returns
    -------
    means : torch.Tensor of shape (n_rows, ceil(longest / stride), n_features)
        Means, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_rows,)
        Number of means of each row.
    """
    inside = (torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None])[:, None, :]

    def pooled(values):
        return functional.avg_pool1d(functional.pad(values, (0, stride - 1)), stride)

    # Both means are over the padding as well, which their ratio leaves out.
    share = pooled(inside.to(padded.dtype))
    means = pooled(padded.transpose(1, 2)) / share.clamp(min=0.5 / stride)
    return means.transpose(1, 2), torch.div(lengths + stride - 1, stride, rounding_mode="floor")


class NumericSequenceModule(SequenceModule):
    """Encode the channels of a series together.

    Parameters
    ----------
    has_missing : ndarray of bool, shape (n_channels,)
        Which channels have missing steps and therefore a missing indicator.
    make_encoder : callable
        Function that returns the :class:`SequenceEncoder` for an item width.
    convolutions : list of RandomConvolutions, default=()
        Convolutions of the series and of their differences, whose features the linear model reads.
    stride : int, default=1
        Number of neighbouring steps whose mean is one step of the encoder.
    """

    def __init__(self, has_missing, make_encoder, convolutions=(), stride=1):
        super().__init__()
        self.stride = stride
        self.register_buffer("has_missing", torch.from_numpy(np.flatnonzero(has_missing)))
        self.encoder = make_encoder(len(has_missing) + len(self.has_missing))
        self.out_features = self.encoder.out_features
        self.convolutions = nn.ModuleList(convolutions)
        self.prefers_linear = len(convolutions) > 0
        if convolutions:
            n_features = sum(part.out_features for part in convolutions)
            n_statistics = N_STATISTICS * len(has_missing) + 1
            self.linear_weights = np.ones(n_features + n_statistics, dtype=np.float32)
            weight = (STATISTICS_SHARE * n_features / n_statistics) ** 0.5
            self.linear_weights[n_features:] = weight

    @property
    def has_linear_inputs(self):
        """Whether there are convolutions."""
        return self.prefers_linear

    def linear_inputs(self, **channels):
        """Return the features of the convolutions, and statistics of the channels.

        Parameters
        ----------
        **channels : Ragged of float32, parallel
            ``values_0``, ``values_1`` and so on, NaN where missing.

        Returns
        -------
        torch.Tensor of float32, shape (batch, n_features)
        """
        series, lengths = as_series([channels[f"values_{i}"] for i in range(len(channels))])
        of_steps, of_differences = self.convolutions
        parts = [
            of_steps(series, lengths),
            of_differences(*differences(series, lengths)),
            series_statistics(series, lengths),
        ]
        return torch.cat(parts, dim=1)

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
        ((steps, offsets),) = self.item_vectors(**channels)
        if self.stride == 1:
            return self.encoder(steps, offsets)
        return self.encoder.read(*means_of_steps(*pad(steps, offsets), self.stride))

    def item_vectors(self, **channels):
        lists = [channels[f"values_{index}"] for index in range(len(channels))]
        values = torch.stack([channel.values for channel in lists], dim=1)
        missing = torch.isnan(values).to(values.dtype).index_select(1, self.has_missing)
        return [(torch.cat([finite_steps(values), missing], dim=1), lists[0].offsets)]
