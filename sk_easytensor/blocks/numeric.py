"""Numbers: robust scaling, piecewise-linear and periodic embeddings, missing indicators."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block
from sk_easytensor.data.bin_edges import BinnedMixin
from sk_easytensor.data.columns import to_float64
from sk_easytensor.data.summaries import Quantiles, SummaryMap
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "NumericBlock",
]


RATE = 2.0
"""Learning rate of the embeddings over that of the network: a bin's vector is seldom looked up."""

FEWEST_ROWS = 8.0
"""Rows that a bin counts as having at least, so that the fewest rows can be learned, too."""

TREE_PARTS = 1024
"""Parts of a column that trees can tell apart, about: a whole number of them for each bin. Of a
cycle of dates there are as many."""

BORDER = 0.7
"""What is added before parts are counted, so that none begins where numbers are likely to be, at
even places of a bin: rounding would move them across."""

MISSING_CODE, FIRST_CODE = 0, 1
"""Codes for trees: missing, and the first part."""

EMBEDDINGS = ("piecewise", "periodic", "linear", "none")


PIECES = 16
"""Linear pieces of a monotonic function; trees see finer steps."""

FIRST_SLOPE = math.log(math.expm1(1 / PIECES))
"""What the slopes' parameters are counted from: a function then rises by 1 in all."""


class NumericBlock(BinnedMixin, Block):
    """Numbers, booleans and durations.

    Parameters
    ----------
    embedding : {"piecewise", "periodic", "linear", "none"}, default="piecewise"
        How a number becomes a vector. ``"piecewise"``: piecewise-linear over quantile bins plus
        a linear term; ``"periodic"``: learned sines and cosines; ``"linear"``: a learned line;
        ``"none"``: the scaled number itself.
    width : int, default=6
        Size of each column's vector.
    bins : int, default=128
        At most so many quantile bins a column, for ``"piecewise"``. Boosted trees split numbers at
        even parts of these bins, whatever the embedding: few bins of a skewed column are coarse.
    frequencies : int, default=16
        Sines and cosines a column, for ``"periodic"``.
    frequency_scale : float, default=0.1
        Standard deviation of the initial frequencies, for ``"periodic"``.
    shrinkage : float, default=40.0
        How many rows it takes to trust a bin, for ``"piecewise"``: with n rows a bin, the steps
        from bin to bin are learned at ``n**2 / (n**2 + shrinkage**2)`` of the rate. Few rows then
        give smooth curves, and many rows any. In towers and embedders all bins are trusted.

    Attributes
    ----------
    edges_ : list of ndarray of float64
        Increasing bin edges of each column; empty where every value is missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and spread (interquartile range) over the bins.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of rows without a number.
    rows_per_bin_ : ndarray of float64, shape (n_features,)
        Rows with a finite number over the number of bins.

    Notes
    -----
    Embeddings are those of Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical
    Features in Tabular Deep Learning" (2022). The encoding holds, per column, the scaled number
    and its position among the bin edges, so that a training step looks up two rows and
    interpolates. NaN and infinite values get learned vectors of their own.

    Examples
    --------
    >>> block = NumericBlock().fit({"age": [20.0, 30.0, None, 50.0]})
    >>> block.edges_[0].tolist(), block.missing_fraction_.tolist()
    ([20.0, 30.0, 50.0], [0.25])
    >>> block.transform({"age": [25.0]})["values"].shape
    torch.Size([1, 1, 2])
    """

    kind = "numeric"
    accepted = "integers, floats, decimals, booleans, durations, times of day"
    column_wise = True

    def __init__(
        self,
        embedding="piecewise",
        *,
        width=6,
        bins=128,
        frequencies=16,
        frequency_scale=0.1,
        shrinkage=40.0,
    ):
        self.embedding = embedding
        self.width = width
        self.bins = bins
        self.frequencies = frequencies
        self.frequency_scale = frequency_scale
        self.shrinkage = shrinkage

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        tests = (
            types.is_integer,
            types.is_floating,
            types.is_boolean,
            types.is_duration,
            types.is_time,
            types.is_null,
            types.is_decimal,
        )
        return any(test(column_type) for test in tests)

    @classmethod
    def detects(cls, column):
        return cls.accepts(column.type)

    def check_parameters(self):
        check_choice("NumericBlock", "embedding", self.embedding, EMBEDDINGS)
        check_number("NumericBlock", "width", self.width, low=1, integer=True)
        check_number("NumericBlock", "bins", self.bins, low=1, integer=True)
        check_number("NumericBlock", "frequencies", self.frequencies, low=1, integer=True)
        check_number("NumericBlock", "frequency_scale", self.frequency_scale, low=0, exclusive=True)
        check_number("NumericBlock", "shrinkage", self.shrinkage, low=0)

    def summarize(self, table):
        return SummaryMap(
            {
                name: Quantiles.of(to_float64(column, name, block="NumericBlock"))
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def finish(self, summary):
        columns = [summary[name] for name in self.feature_names_in_]
        self._keep_edges([column.quantile_edges(self.bins + 1) for column in columns])
        self.missing_fraction_ = np.array(
            [column.n_missing / max(column.n_rows, 1) for column in columns]
        )
        finite = [column.n_rows - column.n_missing - column.n_infinite for column in columns]
        bins = [max(len(edges) - 1, 1) for edges in self.edges_]
        self.rows_per_bin_ = np.array(finite, dtype=np.float64) / bins
        return self

    def encode(self, table):
        columns = [
            to_float64(column, name, block="NumericBlock")
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        encoded = np.empty((table.num_rows, table.num_columns, 2), dtype=np.float32)
        self._place(columns, encoded)
        return {"values": torch.from_numpy(encoded)}

    def make_module(self):
        n_edges = [len(edges) for edges in self.edges_]
        if self.monotonic_cst is not None:
            return MonotonicModule(n_edges, self.monotonic_cst)
        module = NumericModule(
            embedding=self.embedding,
            n_edges=n_edges,
            width=self.width,
            frequencies=self.frequencies,
            frequency_scale=self.frequency_scale,
            trust=self._shrinkage_factors(),
        )
        module.learning_rate_scale = RATE
        return module

    def _shrinkage_factors(self):
        """How far the steps between the bins of each column are trusted, from 0 to 1."""
        if not hasattr(self, "rows_per_bin_"):
            # Fitted by version 0.1, which trusted them all.
            return None
        rows = np.maximum(self.rows_per_bin_, FEWEST_ROWS)
        return rows**2 / (rows**2 + self.shrinkage**2)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        values = [graph.column(name, "number") for name in self.feature_names_in_]
        values = graph.stack(values, axis=1)
        edges, center, scale = self.edges_, self.center_, self.scale_
        return {"values": encoders.numbers(graph, values, edges, center, scale)}

    def flatten(self, encoding):
        """Return the scaled numbers; missing ones are 0, with an indicator where fit saw any."""
        scaled = encoding["values"][:, :, 0].numpy()
        missing = ~np.isfinite(scaled[:, self.missing_fraction_ > 0])
        return np.concatenate([np.nan_to_num(scaled, nan=0, posinf=3, neginf=-3), missing], axis=1)

    def get_feature_names_out(self, input_features=None):
        names = list(self.feature_names_in_)
        names += [
            f"{name}_missing"
            for name, fraction in zip(names, self.missing_fraction_, strict=True)
            if fraction > 0
        ]
        return np.asarray(names, dtype=object)


class NumericCodes(BlockModule):
    """Base of modules that read numbers: the codes that trees see.

    Parameters
    ----------
    n_edges : list of int
        Bin edges of each column.

    Attributes
    ----------
    tree_codes : list of tuple of (int, bool)
        Trees see so many codes of each column, which are in order.
    """

    def __init__(self, n_edges):
        super().__init__()
        # Made anew by the block, and so not part of a saved state.
        n_bins = torch.tensor([max(count - 1, 1) for count in n_edges])
        parts = (TREE_PARTS // n_bins).clamp(min=1)
        self.tree_codes = [(FIRST_CODE + size + 1, True) for size in (parts * n_bins).tolist()]
        self.register_buffer("parts", parts.float(), persistent=False)

    @property
    def output_columns(self):
        """Which column each output is of, an ndarray of int64 of shape (out_features,)."""
        n_columns = len(self.tree_codes)
        return np.repeat(np.arange(n_columns), self.out_features // max(n_columns, 1))

    @property
    def tree_columns(self):
        """Which column each of :meth:`tree_inputs` is of."""
        return np.arange(len(self.tree_codes))

    def tree_inputs(self, values):
        """Return in which part of its column each number is; infinite ones are in the outermost."""
        codes = values[..., 1] * self.parts + (FIRST_CODE + BORDER)
        return torch.nan_to_num(codes, nan=MISSING_CODE).int()


class MonotonicModule(NumericCodes):
    """Monotonic functions of columns, which are added to the outputs of the network.

    The functions are linear between quantiles, with slopes that are positive by construction.

    Parameters
    ----------
    n_edges : list of int
        Bin edges of each column.
    signs : list of int
        1 for functions that increase, -1 for functions that decrease.

    Attributes
    ----------
    is_added : bool
        Has the outputs multiplied by positive gates and added to those of the network.
    tree_signs : list of int
        The same signs, for trees.
    """

    is_added = True

    def __init__(self, n_edges, signs):
        super().__init__(n_edges)
        self.out_features = len(n_edges)
        self.tree_signs = list(signs)
        pieces = torch.tensor([PIECES / max(count - 1, 1) for count in n_edges])
        self.register_buffer("pieces", pieces, persistent=False)
        self.register_buffer("signs", torch.tensor(signs).float(), persistent=False)
        self.register_buffer("starts", torch.arange(PIECES).float(), persistent=False)
        # Of the logarithm of a slope, about; weight decay makes for small slopes.
        self.slope = nn.Parameter(torch.zeros(len(n_edges), PIECES))
        self.missing = nn.Parameter(torch.zeros(len(n_edges)))

    def forward(self, values):
        """Return the values of the functions.

        Parameters
        ----------
        values : torch.Tensor of shape (batch, n_columns, 2)
            Scaled number and position among the edges.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns)
        """
        place = values[..., 1] * self.pieces
        missing = torch.isnan(place)
        passed = (torch.nan_to_num(place)[..., None] - self.starts).clamp(0, 1)
        rises = nn.functional.softplus(self.slope + FIRST_SLOPE)
        rise = (passed * rises).sum(-1) - rises.sum(-1) / 2
        return torch.where(missing, self.missing, self.signs * rise)


class NumericModule(NumericCodes):
    """Embed every numeric column in one pass.

    Parameters
    ----------
    embedding : str
        As in :class:`NumericBlock`.
    n_edges : list of int
        Bin edges of each column.
    width : int
        Size of each column's vector.
    frequencies : int
        Sines and cosines a column.
    frequency_scale : float
        Spread of the initial frequencies.
    trust : ndarray of float64, shape (n_columns,), optional
        What the steps between a column's bins are multiplied by; 1 by default.

    Notes
    -----
    A step that few rows determine is learned from noise as fast as from signal, because Adam
    divides a gradient by its usual size; what multiplies the step makes up for it.
    """

    def __init__(self, embedding, n_edges, width, frequencies=16, frequency_scale=0.1, trust=None):
        super().__init__(n_edges)
        n_columns = len(n_edges)
        self.embedding = embedding
        width = 1 if embedding == "none" else width
        self.out_features = n_columns * width
        self.missing = nn.Parameter(torch.zeros(n_columns, width))
        self.infinite = nn.Parameter(torch.zeros(n_columns, width))
        if embedding in ("linear", "piecewise"):
            bound = 1 / math.sqrt(width)
            self.slope = nn.Parameter(torch.empty(n_columns, width).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(n_columns, width).uniform_(-bound, bound))
        if embedding == "piecewise":
            knots = max([*n_edges, 2])
            self.steps = nn.Parameter(torch.zeros(n_columns, knots, width))
            last_bin = torch.tensor([max(count - 2, 0) for count in n_edges], dtype=torch.float32)
            self.register_buffer("last_bin", last_bin)
            trust = torch.ones(n_columns) if trust is None else torch.from_numpy(trust).float()
            self.register_buffer("trust", trust[:, None, None], persistent=False)
            self.register_buffer("first_knot", torch.arange(n_columns) * knots)
            missing_row = n_columns * knots + torch.arange(n_columns)
            self.register_buffer("missing_row", missing_row, persistent=False)
        if embedding == "periodic":
            bound = 1 / math.sqrt(2 * frequencies)
            frequency = torch.randn(n_columns, frequencies) * frequency_scale
            self.frequency = nn.Parameter(
                frequency.clamp(-3 * frequency_scale, 3 * frequency_scale)
            )
            self.mix = nn.Parameter(torch.empty(n_columns, 2 * frequencies, width))
            nn.init.uniform_(self.mix, -bound, bound)
            self.bias = nn.Parameter(torch.zeros(n_columns, width))

    def configure_for_embedding(self):
        """Learn at the common rate: pairs look a tower's bins up many times a step."""
        self.learning_rate_scale = 1.0
        if self.embedding == "piecewise":
            self.trust.fill_(1.0)

    def forward(self, values):
        """Return the embeddings of all columns.

        Parameters
        ----------
        values : torch.Tensor of shape (batch, n_columns, 2)
            Scaled number and position among the edges.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        scaled, position = values.unbind(-1)
        # Looking costs a fraction of what it saves, but has no place in a graph.
        looks = values.is_cpu and not torch.compiler.is_compiling()
        if looks and bool(torch.isfinite(scaled.sum())):
            return self._embed(scaled, position).flatten(1)
        missing, infinite = torch.isnan(scaled), torch.isinf(scaled)
        scaled = torch.nan_to_num(scaled, nan=0.0, posinf=3.0, neginf=-3.0)
        position = torch.nan_to_num(position, nan=0.0)
        embedded = self._embed(scaled, position, missing)
        if not looks or bool(infinite.any()):
            embedded = embedded + infinite[..., None] * self.infinite
        return embedded.flatten(1)

    def _embed(self, scaled, position, missing=None):
        if self.embedding == "piecewise":
            return self._interpolated(scaled, position, missing)
        embedded = self._line_or_waves(scaled)
        if missing is None:
            return embedded
        return torch.where(missing[..., None], self.missing, embedded)

    def _line_or_waves(self, scaled):
        if self.embedding == "none":
            return scaled[..., None]
        if self.embedding == "linear":
            return self._line(scaled)
        angle = 2 * math.pi * scaled[..., None] * self.frequency
        waves = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        mixed = torch.einsum("bcf,cfw->bcw", waves, self.mix)
        return torch.relu(mixed + self.bias)

    def _line(self, scaled):
        return torch.addcmul(self.bias, scaled[..., None], self.slope)

    def _interpolated(self, scaled, position, missing):
        # A linear layer over piecewise-linear encodings is an interpolation between its running
        # sums, which needs two look-ups a number instead of a product over all bins.
        table = (self.steps * self.trust).cumsum(1).flatten(0, 1)
        left = torch.minimum(position.floor(), self.last_bin)
        fraction = (position - left).reshape(-1, 1)
        index = left.long() + self.first_knot
        if missing is not None:
            # One more row for each column, of what makes up for the line at 0. Another row follows,
            # for the next one is looked up as well, of which nothing is taken.
            table = torch.cat([table, self.missing - self.bias, torch.zeros_like(table[:1])])
            index = torch.where(missing, self.missing_row, index)
        index = index.reshape(-1)
        # index_select, because the gradient of an embedding is several times slower on a CPU.
        below, above = table.index_select(0, index), table.index_select(0, index + 1)
        line = self._line(scaled)
        return line + torch.lerp(below, above, fraction).view_as(line)
