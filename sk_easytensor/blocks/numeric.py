"""Blocks of numbers: scaling, piecewise-linear and periodic embeddings, and the offset column."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, load_matching
from sk_easytensor.data.arrow_columns import arrow_column
from sk_easytensor.data.bin_edges import BOUND, BinnedMixin
from sk_easytensor.data.columns import RowError, show_value, to_float64
from sk_easytensor.data.spelling import (
    describe_non_numbers,
    infer_number_format,
    is_text,
    read_numbers,
    unread_columns,
)
from sk_easytensor.data.summaries import Quantiles, SummaryMap
from sk_easytensor.data.type_names import type_name
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.linear import indicator_weights

__all__ = [
    "BASE_MARGIN",
    "NumericBlock",
    "OffsetBlock",
    "margin_column",
]


LEARNING_RATE_SCALE = 2.0
"""Factor of the embeddings' learning rate, because each bin occurs in few rows of a batch."""

MIN_ROWS = 8.0
"""Smallest number of rows per bin in the shrinkage factor, so that small data sets are learned."""

TREE_PARTS = 1024
"""Approximate number of ordered codes of a column for trees, an integer number for each bin. Cycles
of dates have exactly this number."""

BORDER = 0.7
"""Offset of the codes, so that frequent values at the edges or in the middle of a bin do not lie on
the boundary of two codes, where rounding would change the code."""

MISSING_CODE, FIRST_CODE = 0, 1
"""Codes for trees: that of missing values, and the first of numbers."""

EMBEDDINGS = ("piecewise", "periodic", "linear", "none")


PIECES = 16
"""Number of linear pieces of a monotonic function; trees have finer steps."""

SLOPE_OFFSET = math.log(math.expm1(1 / PIECES))
"""Offset of the slope parameters; with parameters of 0 a function rises by 1 in total."""


LINEAR_PIECES = 8
"""Number of linear pieces of each number, between quantiles, among the linear model's features."""

LINEAR_WEIGHTS = {"number": 0.4, "quantile": 0.8, "pieces": 0.5}
"""Weights of the features of a number: of itself, of its quantile, and of all pieces together. Over
24 tables of 300 rows, the best average with network and trees had 1.5% less loss, and 1.1% less
with numbers alone."""

LARGEST_NUMBER = 5.0
"""Number of interquartile ranges from the median up to which that model reads numbers as they are.
Larger ones are at most 5.8."""


class NumericBlock(BinnedMixin, Block):
    """Read numbers, booleans and durations, and texts that are numbers.

    Parameters
    ----------
    embedding : {"piecewise", "periodic", "linear", "none"}, default="piecewise"
        Embedding of numbers. ``"piecewise"``: a piecewise-linear function over quantile bins plus
        a linear function; ``"periodic"``: learned sines and cosines; ``"linear"``: a linear
        function; ``"none"``: the scaled number.
    width : int, default=6
        Embedding dimension of each column.
    bins : int, default=128
        Largest number of quantile bins of a column, for ``"piecewise"``. Boosted trees split
        numbers at equal parts of these bins, whatever the embedding; with few bins, splits of a
        skewed column are coarse.
    frequencies : int, default=16
        Number of sine and cosine pairs of each column, for ``"periodic"``.
    frequency_scale : float, default=0.1
        Standard deviation of the initial frequencies, for ``"periodic"``.
    shrinkage : float, default=40.0
        Number of rows per bin at which the shrinkage factor of a column is 1/2, for
        ``"piecewise"``. With n rows per bin, the differences between neighbouring bins learn at
        ``n**2 / (n**2 + shrinkage**2)`` of the rate, so that functions are smooth unless there
        are many rows. Two-tower models and embedders do not shrink.

    Attributes
    ----------
    edges_ : list of ndarray of float64
        Increasing bin edges of each column; empty where every value is missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and interquartile range of the bin edges.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of rows without a number.
    rows_per_bin_ : ndarray of float64, shape (n_features,)
        Number of rows with a finite number, divided by the number of bins.
    formats_ : list of dict or None
        For each column, how its numbers are written if it holds texts: ``prefix``, ``suffix``,
        separator of ``thousands`` and ``decimal`` point. None for a column of numbers.

    Notes
    -----
    Embeddings are those of Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical
    Features in Tabular Deep Learning" (2022). The encoding of a column is the scaled number and
    its position among the bin edges, so that a training step looks up two rows and interpolates.
    NaN and infinite values have learned vectors.

    A column of texts is read if all of them are numbers in one form, such as ``"$1,428.50"`` or
    ``"12 %"``, or stand for a missing value, such as ``"N/A"``; the sample of the training rows
    decides. Later texts that are no numbers are missing.

    Examples
    --------
    >>> block = NumericBlock().fit({"age": [20.0, 30.0, None, 50.0]})
    >>> block.edges_[0].tolist(), block.missing_fraction_.tolist()
    ([20.0, 30.0, 50.0], [0.25])
    >>> block.transform({"age": [25.0]})["values"].shape
    torch.Size([1, 1, 2])
    >>> prices = NumericBlock().fit({"price": [f"${n},000" for n in range(1, 21)] + ["N/A"]})
    >>> prices.formats_[0]["prefix"], prices.edges_[0][:2].tolist()
    ('$', [1000.0, 2000.0])
    """

    kind = "numeric"
    noun = "number"
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

    def fit_columns(self, table, *, named=True):
        self.formats_ = []
        for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            is_spelled = is_text(column.type) and not self.accepts(column.type)
            form = infer_number_format(column) if is_spelled else None
            if is_spelled and form is None and column.null_count < len(column):
                raise TypeError(
                    f"column {name!r} of type {type_name(column.type)} cannot be read by "
                    f"NumericBlock: {describe_non_numbers(column)}. Texts are read if all are "
                    "numbers in one form, such as '$1,428.50', or stand for a missing value, such "
                    "as 'N/A'; any texts can be read by TextBlock or CategoryBlock"
                )
            if form is not None:
                # The type decides no more whether the column can be read.
                table = table.set_column(index, name, pa.nulls(len(table), pa.float64()))
            self.formats_.append(form)
        return super().fit_columns(table, named=named)

    @property
    def _formats(self):
        """Formats of all columns; blocks that were stored before there were formats have none."""
        return getattr(self, "formats_", [None] * self.n_features_in_)

    def reads(self, field):
        formats = dict(zip(self.feature_names_in_, self._formats, strict=True))
        is_spelled = is_text(field.type) and formats.get(field.name) is not None
        return is_spelled or super().reads(field)

    def unseen_columns(self, table, encoding):
        """Return the columns of texts with several values, none of which is a number."""
        is_missing = np.isnan(encoding["values"][:, :, 0].numpy())
        return unread_columns(table, self.feature_names_in_, self._formats, is_missing)

    def _numbers(self, table):
        """Return the numbers of each column as float64 arrays, NaN where missing."""
        return [
            read_numbers(column, name, form)
            for name, column, form in zip(
                table.column_names, table.columns, self._formats_of(table), strict=True
            )
        ]

    def _formats_of(self, table):
        """Return the formats of some of the block's columns."""
        formats = dict(zip(self.feature_names_in_, self._formats, strict=True))
        return [formats[name] for name in table.column_names]

    def summarize(self, table):
        numbers = zip(table.column_names, self._numbers(table), strict=True)
        return SummaryMap({name: Quantiles.of(values) for name, values in numbers})

    def finish(self, summary):
        columns = [summary[name] for name in self.feature_names_in_]
        self._set_edges([column.quantile_edges(self.bins + 1) for column in columns])
        self.missing_fraction_ = np.array(
            [column.n_missing / max(column.n_rows, 1) for column in columns]
        )
        finite = [column.n_rows - column.n_missing - column.n_infinite for column in columns]
        bins = [max(len(edges) - 1, 1) for edges in self.edges_]
        self.rows_per_bin_ = np.array(finite, dtype=np.float64) / bins
        return self

    def encode(self, table):
        encoded = np.empty((table.num_rows, table.num_columns, 2), dtype=np.float32)
        self._write_positions(self._numbers(table), encoded)
        return {"values": torch.from_numpy(encoded)}

    def copy_weights(self, module, previous, previous_module):
        """Copy all weights, if both fits have as many bins: these are quantiles in either."""
        return load_matching(module, previous_module)

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
            step_factors=self._shrinkage_factors(),
            missing_fractions=self.missing_fraction_,
        )
        module.learning_rate_scale = LEARNING_RATE_SCALE
        return module

    def _shrinkage_factors(self):
        """Return the factor of the differences between the bins of each column, in [0, 1]."""
        rows = np.maximum(self.rows_per_bin_, MIN_ROWS)
        return rows**2 / (rows**2 + self.shrinkage**2)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        values = [
            graph.column(name, "number", **({} if form is None else {"format": form}))
            for name, form in zip(self.feature_names_in_, self._formats, strict=True)
        ]
        values = graph.stack(values, axis=1)
        edges, center, scale = self.edges_, self.center_, self.scale_
        return {"values": encoders.numbers(graph, values, edges, center, scale)}

    def flatten(self, encoding):
        """Return scaled numbers, 0 where missing, and indicators of columns with missing values."""
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
    """Base class of modules that read numbers: the codes for trees.

    Parameters
    ----------
    n_edges : list of int
        Number of bin edges of each column.

    Attributes
    ----------
    tree_codes : list of tuple of (int, bool)
        Number of codes of each column, and True because codes are ordered.
    """

    def __init__(self, n_edges):
        super().__init__()
        # Not part of the state dict, because the block computes it again.
        n_bins = torch.tensor([max(count - 1, 1) for count in n_edges])
        parts = (TREE_PARTS // n_bins).clamp(min=1)
        self.tree_codes = [(FIRST_CODE + size + 1, True) for size in (parts * n_bins).tolist()]
        self.register_buffer("parts", parts.float(), persistent=False)

    @property
    def output_columns(self):
        """Column of each output, an ndarray of int64 of shape (out_features,)."""
        n_columns = len(self.tree_codes)
        return np.repeat(np.arange(n_columns), self.out_features // max(n_columns, 1))

    @property
    def tree_columns(self):
        """Column of each feature of :meth:`tree_inputs`."""
        return np.arange(len(self.tree_codes))

    def tree_inputs(self, values):
        """Return the code of each number; infinite numbers have the outermost codes."""
        codes = values[..., 1] * self.parts + (FIRST_CODE + BORDER)
        return torch.nan_to_num(codes, nan=MISSING_CODE).int()


class MonotonicModule(NumericCodes):
    """Monotonic functions of columns, which are added to the outputs of the network.

    The functions are linear between quantiles, with slopes that are positive by construction.

    Parameters
    ----------
    n_edges : list of int
        Number of bin edges of each column.
    signs : list of int
        1 for an increasing function, -1 for a decreasing one.

    Attributes
    ----------
    is_added : bool
        True: the outputs are multiplied by positive gates and added to those of the network.
    tree_signs : list of int
        Signs of the monotonicity constraints of the trees.
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
        # Approximately the logarithm of the slope; weight decay pulls it to the initial slope.
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
        position = values[..., 1] * self.pieces
        missing = torch.isnan(position)
        fraction_passed = (torch.nan_to_num(position)[..., None] - self.starts).clamp(0, 1)
        rises = nn.functional.softplus(self.slope + SLOPE_OFFSET)
        rise = (fraction_passed * rises).sum(-1) - rises.sum(-1) / 2
        return torch.where(missing, self.missing, self.signs * rise)


class NumericModule(NumericCodes):
    """Embed all numeric columns at once.

    Parameters
    ----------
    embedding : {"piecewise", "periodic", "linear", "none"}
        Embedding of numbers: see :class:`NumericBlock`.
    n_edges : list of int
        Number of bin edges of each column.
    width : int
        Embedding dimension of each column.
    frequencies : int, default=16
        Number of sine and cosine pairs of each column.
    frequency_scale : float, default=0.1
        Standard deviation of the initial frequencies.
    step_factors : ndarray of float64, shape (n_columns,), optional
        Factor of the differences between the bins of each column; by default 1.
    missing_fractions : ndarray of float64, shape (n_columns,), optional
        Fraction of rows without a value of each column, by default 0.

    Notes
    -----
    A difference that few rows determine is learned from noise as fast as from signal, because Adam
    divides a gradient by its usual size; the factor compensates for it.
    """

    def __init__(
        self,
        embedding,
        n_edges,
        width,
        frequencies=16,
        frequency_scale=0.1,
        step_factors=None,
        missing_fractions=None,
    ):
        super().__init__(n_edges)
        n_columns = len(n_edges)
        self._set_linear_weights(
            n_edges, np.zeros(n_columns) if missing_fractions is None else missing_fractions
        )
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
            step_factors = (
                torch.ones(n_columns)
                if step_factors is None
                else torch.from_numpy(step_factors).float()
            )
            self.register_buffer("step_factors", step_factors[:, None, None], persistent=False)
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

    def _set_linear_weights(self, n_edges, missing_fractions):
        n_columns = len(n_edges)
        last_edges = torch.tensor([max(count - 1, 1) for count in n_edges], dtype=torch.float32)
        self.register_buffer("last_edges", last_edges, persistent=False)
        with_missing = torch.from_numpy(np.flatnonzero(missing_fractions > 0))
        self.register_buffer("with_missing", with_missing, persistent=False)
        weights = LINEAR_WEIGHTS
        self.linear_weights = np.concatenate(
            [
                np.full(n_columns, weights["number"]),
                np.full(n_columns, weights["quantile"]),
                np.full(n_columns * LINEAR_PIECES, weights["pieces"] / LINEAR_PIECES**0.5),
                indicator_weights(missing_fractions[missing_fractions > 0]),
            ],
            dtype=np.float32,
        )

    @property
    def linear_columns(self):
        """Column of each feature of :meth:`linear_inputs`."""
        columns = np.arange(len(self.last_edges))
        pieces = np.repeat(columns, LINEAR_PIECES)
        return np.concatenate([columns, columns, pieces, self.with_missing.cpu().numpy()])

    def linear_inputs(self, values):
        """Return numbers, their quantiles, pieces between quantiles, and missing indicators."""
        scaled, position = values.unbind(-1)
        missing = torch.isnan(scaled)
        bent = torch.nan_to_num(scaled, nan=0.0, posinf=BOUND, neginf=-BOUND) / BOUND
        # Numbers were bounded smoothly, which a linear model would have to undo.
        least = 1 / (1 + (LARGEST_NUMBER / BOUND) ** 2)
        numbers = BOUND * bent * (1 - bent.square()).clamp(min=least).rsqrt()
        quantiles = torch.nan_to_num(position / self.last_edges, nan=0.5)
        steps = torch.arange(LINEAR_PIECES, device=values.device)
        pieces = (quantiles[..., None] * LINEAR_PIECES - steps).clamp(0, 1).flatten(1)
        indicators = missing.index_select(1, self.with_missing).to(numbers.dtype)
        return torch.cat([numbers, quantiles, pieces, indicators], dim=1)

    def configure_for_embedding(self):
        """Turn off shrinkage and the higher learning rate: bins occur in many pairs of a batch."""
        self.learning_rate_scale = 1.0
        if self.embedding == "piecewise":
            self.step_factors.fill_(1.0)

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
        # The check takes a fraction of the time it saves, but cannot be compiled to a graph.
        checks_values = values.is_cpu and not torch.compiler.is_compiling()
        if checks_values and bool(torch.isfinite(scaled.sum())):
            return self._embed(scaled, position).flatten(1)
        missing, infinite = torch.isnan(scaled), torch.isinf(scaled)
        scaled = torch.nan_to_num(scaled, nan=0.0, posinf=3.0, neginf=-3.0)
        position = torch.nan_to_num(position, nan=0.0)
        embedded = self._embed(scaled, position, missing)
        if not checks_values or bool(infinite.any()):
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
        # A linear layer over piecewise-linear encodings interpolates between its cumulative sums,
        # which needs two look-ups per number instead of a product over all bins.
        table = (self.steps * self.step_factors).cumsum(1).flatten(0, 1)
        left = torch.minimum(position.floor(), self.last_bin)
        fraction = (position - left).reshape(-1, 1)
        index = left.long() + self.first_knot
        if missing is not None:
            # One more row for each column, the missing vector minus the linear function at 0. A
            # last row is needed because the row after each is looked up too, with weight 0.
            table = torch.cat([table, self.missing - self.bias, torch.zeros_like(table[:1])])
            index = torch.where(missing, self.missing_row, index)
        index = index.reshape(-1)
        # index_select, because the gradient of nn.Embedding is several times slower on a CPU.
        below, above = table.index_select(0, index), table.index_select(0, index + 1)
        line = self._line(scaled)
        return line + torch.lerp(below, above, fraction).view_as(line)


BASE_MARGIN = "base_margin"
"""Name of the offset column if offsets are passed as an array."""


class OffsetBlock(Block):
    """Read the column of offsets, from the parameter ``offset`` or the array ``base_margin``.

    The output of its module is no input of the network. It is added to the outputs of each member
    of the network, and to those of the trees.

    Raises
    ------
    TypeError
        If the column does not hold numbers.
    ValueError
        If an offset is missing or not finite in single precision. The message names column and
        row.
    """

    kind = "offset"
    accepted = "integers, floats, decimals"
    column_wise = True

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        # A column without values is accepted here, so that the error of encode names the row.
        tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
        return any(test(column_type) for test in tests)

    def fit_columns(self, table, *, named=True):
        for field, column in zip(table.schema, table.columns, strict=True):
            if not self.accepts(field.type):
                example = f", such as {show_value(column[0])}" if len(column) else ""
                raise TypeError(
                    f"offset: column {field.name!r} is of type {type_name(field.type)}{example}; "
                    "offsets must be numbers"
                )
        return super().fit_columns(table, named=named)

    def summarize(self, table):
        return SummaryMap()

    def finish(self, summary):
        return self

    def encode(self, table):
        name = table.column_names[0]
        values = to_float64(table.column(0), name, block="offset")
        with np.errstate(over="ignore"):
            encoded = values.astype(np.float32)
        finite = np.isfinite(encoded)
        if not finite.all():
            row = int(np.argmin(finite))
            value = "missing" if np.isnan(values[row]) else f"{values[row]:g}"
            raise RowError(
                f"offset: column {name!r} is {value} in row {{row}}; offsets must be finite "
                "numbers up to 3e38 in size (0 changes nothing)",
                row,
            )
        return {"values": torch.from_numpy(encoded[:, None])}

    def example(self, n_rows):
        return {"values": torch.zeros(n_rows, 1)}

    def make_module(self):
        return OffsetModule()

    def to_onnx(self, graph):
        values = graph.column(self.feature_names_in_[0], "number")
        return {"values": graph.cast(graph.op("Unsqueeze", values, np.array([1])), np.float32)}

    def get_feature_names_out(self, input_features=None):
        return self.feature_names_in_


class OffsetModule(BlockModule):
    """Scale offsets to the scale of the network's outputs.

    Attributes
    ----------
    is_offset : bool
        True: the output is added to the outputs of the network.
    """

    out_features = 1
    is_offset = True

    def __init__(self):
        super().__init__()
        # Not part of the state dict, because they are attributes of the head.
        self.register_buffer("center", torch.zeros(()), persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def scale_for(self, head):
        """Set center and scale to those of a head."""
        self.center.fill_(head.offset_center)
        self.scale.fill_(head.offset_scale)

    def forward(self, values):
        """Return the offsets on the scale of the outputs, of shape (batch, 1)."""
        return (values - self.center) / self.scale


def margin_column(base_margin, n_rows):
    """Convert an array of offsets to a column.

    Parameters
    ----------
    base_margin : array-like of shape (n_rows,) or (n_rows, 1), or number
        Offsets passed by the user; a number applies to all rows.
    n_rows : int
        Number of rows.

    Returns
    -------
    pyarrow.Array of float64

    Raises
    ------
    TypeError
        If it does not hold numbers.
    ValueError
        If it is of another shape, or names a column.
    """
    if isinstance(base_margin, str):
        raise ValueError(
            f"base_margin must be an array, got {base_margin!r}; to use a column of X, name it in "
            "the parameter offset of the estimator"
        )
    if np.ndim(base_margin) == 0 and np.isscalar(base_margin):
        base_margin = np.full(n_rows, base_margin)
    shape = np.shape(base_margin)
    if shape == (n_rows, 1):
        base_margin = np.asarray(base_margin)[:, 0]
    elif shape != (n_rows,):
        raise ValueError(
            f"base_margin must have one number for each of the {n_rows} rows, got shape {shape}"
        )
    column = arrow_column(base_margin, BASE_MARGIN)
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(test(column.type) for test in tests):
        raise TypeError(f"base_margin must hold numbers, got {type_name(column.type)}")
    return pa.array(to_float64(column, BASE_MARGIN, block="base_margin"))
