"""Block of dates and times: a trend and the cycles of the calendar in local wall-clock time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor._utils.validation import check_choice, check_number, shortened
from sk_easytensor.blocks.base import Block, load_matching, unsupported_column
from sk_easytensor.blocks.numeric import FIRST_CODE, MISSING_CODE, TREE_PARTS, NumericModule
from sk_easytensor.data.bin_edges import BinnedMixin
from sk_easytensor.data.columns import decoded, sample_values
from sk_easytensor.data.datetimes import (
    CYCLES,
    PERIODS,
    NoTimesError,
    bounded_zones,
    common_zone,
    parse_strings,
    read_times,
    time_zones,
    zone_shifts,
)
from sk_easytensor.data.spelling import (
    DIRECTIVES,
    first_text,
    infer_date_format,
    is_date_format,
    is_text,
    parse_dates,
    read_dates,
    unread_columns,
)
from sk_easytensor.data.summaries import Quantiles, Summary, SummaryMap
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "DatetimeBlock",
    "DatetimeModule",
]


logger = logging.getLogger("sk_easytensor")

BORDER = 0.3
"""Shift of the parts of a cycle, as a fraction of a part, so that rounding does not move midnights
to another part."""

SPANNED = 0.95
"""Smallest range of the dates, as a fraction of a cycle, at which the cycle is used."""


class DatetimeBlock(BinnedMixin, Block):
    """Read dates, timestamps, and strings of both in ISO 8601 or another format.

    Parameters
    ----------
    harmonics : int, default=4
        Number of sine and cosine pairs of each cycle, with frequencies of 1 to `harmonics` per
        cycle. The week has at most 3, which suffice to distinguish its seven days.
    width : int, default=16
        Embedding dimension of each column.
    bins : int, default=64
        Largest number of quantile bins of a column, for the trend.
    cycles : list of {"day", "week", "month", "year"}, default=("day", "week", "month", "year")
        Cycles that may be used. Fewer cycles reduce overfitting: if the data span few months, the
        network can memorize what happened on each day of the month.
    trend : bool, default=True
        Whether the instant is an input of the network, in addition to the cycles. A trend does not
        extrapolate beyond the training data: turn it off for rows that are predicted later.
    format : str or None, default=None
        Format of strings, as of :func:`time.strptime`. None for ISO 8601, or a common format that
        reads all strings of the sample of the training rows, such as ``"%d.%m.%Y"`` or
        ``"%m/%d/%Y %I:%M %p"``. If the month may be first or second, it is first, except before
        dots; the logger ``sk_easytensor`` says so.

    Attributes
    ----------
    zones_ : list of str or None
        Time zone of each column; None for a column without a time zone.
    edges_ : list of ndarray of float64
        Increasing bin edges of each column, in seconds since 1970; empty where every value is
        missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and interquartile range of the bin edges.
    cycles_ : ndarray of bool, shape (n_features, 4)
        Which of the cycles day, week, month and year are used for a column. A cycle is used if its
        phase varies (the time of day of pure dates does not) and if the column spans the whole
        cycle. Within a part of a cycle the network would learn a trend and repeat it periodically.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of rows without a date.
    formats_ : list of str or None
        Format of the strings of each column; None for ISO 8601 and for dates and timestamps.

    Notes
    -----
    The trend is the instant, encoded as numbers are by :class:`~sk_easytensor.blocks.NumericBlock`;
    the cycles are sines and cosines of the time of day, the day of the week, of the month and of
    the year, in the wall-clock time of the column's time zone. The column seen during fit
    determines how later columns are read:

    - a column with a time zone is read in that zone, so that the same instant written in
      another zone has the same encoding, and a time without a zone is assumed to be local;
    - a column without a time zone is read by the wall clock, whatever the zone of later columns.

    Strings with UTC offsets are read in their offset if it is always the same, else in UTC. The
    unit of a timestamp does not matter, and years outside the range of nanoseconds are read too.
    A missing date has a learned vector. With a format other than ISO 8601, strings that are no
    dates in it are missing.

    Examples
    --------
    >>> block = DatetimeBlock().fit({"day": ["2024-02-28", "2024-03-01", None]})
    >>> block.cycles_.tolist(), block.edges_[0].tolist()
    ([[False, False, False, False]], [1709078400.0, 1709251200.0])
    >>> block = DatetimeBlock().fit({"day": ["2024-02-28", "2024-02-29", "2024-03-20"]})
    >>> block.cycles_.tolist(), block.transform({"day": ["2024-03-01"]})["times"].shape
    ([[False, True, False, False]], torch.Size([1, 1, 8]))
    """

    kind = "datetime"
    noun = "date"
    accepted = "dates, timestamps, strings holding ISO 8601 dates or date-times"

    def __init__(self, harmonics=4, *, width=16, bins=64, cycles=CYCLES, trend=True, format=None):
        self.harmonics = harmonics
        self.width = width
        self.bins = bins
        self.cycles = cycles
        self.trend = trend
        self.format = format

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        if types.is_dictionary(column_type):
            return cls.accepts(column_type.value_type)
        tests = (
            types.is_date,
            types.is_timestamp,
            types.is_string,
            types.is_large_string,
            types.is_null,
        )
        return any(test(column_type) for test in tests)

    @classmethod
    def detects(cls, column):
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return True
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return False
        sample = sample_values(column)
        if not pc.any(pc.not_equal(pc.utf8_trim_whitespace(sample), "")).as_py():
            return False
        return is_iso(column) or infer_date_format(column)[0] is not None

    def check_parameters(self):
        check_number("DatetimeBlock", "harmonics", self.harmonics, low=1, integer=True)
        check_number("DatetimeBlock", "width", self.width, low=1, integer=True)
        check_number("DatetimeBlock", "bins", self.bins, low=1, integer=True)
        listed = isinstance(self.cycles, Iterable) and not isinstance(self.cycles, str)
        if not listed or not all(cycle in CYCLES for cycle in self.cycles):
            raise ValueError(
                f"DatetimeBlock: cycles must be a list of some of {list(CYCLES)}, got "
                f"{self.cycles!r}"
            )
        check_choice("DatetimeBlock", "trend", self.trend, (True, False))
        if self.format is not None and not is_date_format(self.format):
            raise ValueError(
                "DatetimeBlock: format must be None or have a day, a month and a year, such as "
                f"'%d.%m.%Y', of the directives {', '.join(DIRECTIVES)}, got {self.format!r}"
            )

    def fit_columns(self, table, *, named=True):
        super().fit_columns(table, named=named)
        texts = [(name, decoded(table.column(name))) for name in table.column_names]
        self.formats_ = [
            self._infer_format(column, name) if is_text(column.type) else None
            for name, column in texts
        ]
        return self

    def _infer_format(self, column, name):
        """Return the format of the texts of a column, None for ISO 8601."""
        if self.format is None and is_iso(column):
            return None
        if self.format is None:
            found, other = infer_date_format(column)
            if other is not None:
                logger.info(
                    "column %r: dates are read as %s; DatetimeBlock(format=%r) reads them with "
                    "day and month exchanged",
                    name,
                    found,
                    other,
                )
            return found
        first = first_text(column)
        if first is not None and not parse_dates(column, self.format).drop_null():
            raise ValueError(
                f"DatetimeBlock: column {name!r} has no date in format={self.format!r}; it holds "
                f"{shortened(first)}"
            )
        return self.format

    @property
    def _formats(self):
        """Formats of all columns; blocks that were stored before there were formats have none."""
        return getattr(self, "formats_", [None] * self.n_features_in_)

    def unseen_columns(self, table, encoding):
        """Return the columns of texts with several values, none of which is a date."""
        is_missing = np.isnan(encoding["times"][:, :, 0].numpy())
        return unread_columns(table, self.feature_names_in_, self._formats, is_missing)

    def _times(self, table):
        """Return the name of each column and its values, texts in a format read as timestamps."""
        formats = dict(zip(self.feature_names_in_, self._formats, strict=True))
        columns = zip(table.column_names, table.columns, strict=True)
        return [(name, read_dates(column, formats[name])) for name, column in columns]

    def summarize(self, table):
        return SummaryMap(
            {name: DatetimeSummary.of(column, name) for name, column in self._times(table)}
        )

    def finish(self, summary):
        columns = [summary[name] for name in self.feature_names_in_]
        self.zones_ = [column.zone for column in columns]
        self._set_edges([column.instants.quantile_edges(self.bins + 1) for column in columns])
        selected = [cycle in self.cycles for cycle in CYCLES]
        self.cycles_ = np.array([column.cycles & selected for column in columns])
        self.missing_fraction_ = np.array(
            [column.instants.n_missing / max(column.instants.n_rows, 1) for column in columns]
        )
        return self

    @property
    def _waves(self):
        """Pairs of the index of a cycle and a harmonic, one for each sine and cosine pair."""
        used = self.cycles_.any(axis=0)
        return [
            (index, harmonic)
            for index, cycle in enumerate(CYCLES)
            if used[index]
            for harmonic in range(1, min(self.harmonics, 3 if cycle == "week" else 99) + 1)
        ]

    def encode(self, table):
        waves = self._waves
        encoded = np.zeros((table.num_rows, table.num_columns, 2 + 2 * len(waves)), np.float32)
        columns = []
        for index, (name, column) in enumerate(self._times(table)):
            instants, phases = _read(column, name, self.zones_[index])
            columns.append(instants)
            for wave, (cycle, harmonic) in enumerate(waves):
                # A cycle that is not used for this column stays 0.
                if self.cycles_[index, cycle]:
                    # In single precision, in which sines take a twelfth of the time.
                    angle = (2 * math.pi * harmonic * phases[:, cycle]).astype(np.float32)
                    encoded[:, index, 2 + 2 * wave] = np.sin(angle)
                    encoded[:, index, 3 + 2 * wave] = np.cos(angle)
        if self.trend:
            self._write_positions(columns, encoded)
        for index, instants in enumerate(columns):
            encoded[np.isnan(instants), index] = np.nan
        return {"times": torch.from_numpy(encoded)}

    def copy_weights(self, module, previous, previous_module):
        """Copy all weights, if both fits have the same features of times."""
        return load_matching(module, previous_module)

    def make_module(self):
        n_edges = [len(edges) for edges in self.edges_]
        sines = [2 * wave for wave, (_, harmonic) in enumerate(self._waves) if harmonic == 1]
        return DatetimeModule(n_edges, 2 * len(self._waves), self.width, sines)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        times = [
            graph.column(name, "time", zone=zone, **({} if form is None else {"format": form}))
            for name, zone, form in zip(
                self.feature_names_in_, self.zones_, self._formats, strict=True
            )
        ]
        wall = [
            encoders.clock(graph, column, zone_shifts(zone))
            for column, zone in zip(times, self.zones_, strict=True)
        ]
        wall = encoders.within_years(graph, graph.stack(wall, axis=1))
        instants = encoders.seconds(graph, graph.stack(times, axis=1))
        phases = encoders.phases(graph, wall)
        missing = graph.cast(graph.op("IsNaN", instants), np.float32)
        absent = graph.op("Where", graph.op("IsNaN", instants), np.float32(np.nan), missing)
        edges, center, scale = self.edges_, self.center_, self.scale_
        trend = encoders.numbers(graph, instants, edges, center, scale)
        if not self.trend:
            trend = graph.stack([absent, absent], axis=-1)
        parts = [trend]
        for cycle, harmonic in self._waves:
            used = self.cycles_[:, cycle].astype(np.float64)
            waves = encoders.waves(graph, phases[cycle], harmonic)
            waves = [graph.cast(graph.op("Mul", wave, used), np.float32) for wave in waves]
            parts.append(graph.stack([graph.op("Add", wave, absent) for wave in waves], axis=-1))
        return {"times": graph.op("Concat", *parts, axis=2)}

    def _flat_features(self):
        """Return which values of the encoding :meth:`flatten` returns, bool (n_columns, n)."""
        cycles = [cycle for cycle, _ in self._waves for _ in range(2)]
        trend = np.zeros((self.n_features_in_, 2), dtype=bool)
        trend[:, 0] = self.trend
        return np.concatenate([trend, self.cycles_[:, cycles]], axis=1)

    def flatten(self, encoding):
        """Return scaled trends, sines and cosines, 0 where missing, and missing indicators."""
        times = encoding["times"].numpy()
        missing = np.isnan(times[:, self.missing_fraction_ > 0, 0])
        features = times[:, self._flat_features()]
        return np.concatenate([np.nan_to_num(features), missing], axis=1, dtype=np.float32)

    def get_feature_names_out(self, input_features=None):
        waves = [
            f"{CYCLES[cycle]}_{function}{harmonic}"
            for cycle, harmonic in self._waves
            for function in ("sin", "cos")
        ]
        features = np.array(["trend", "position", *waves], dtype=object)
        names = [
            f"{name}_{feature}"
            for name, used in zip(self.feature_names_in_, self._flat_features(), strict=True)
            for feature in features[used]
        ]
        names += [f"{name}_missing" for name in self.feature_names_in_[self.missing_fraction_ > 0]]
        return np.asarray(names, dtype=object)


class DatetimeSummary(Summary):
    """Summary of one column of dates.

    Parameters
    ----------
    instants : Quantiles
        Distribution of the instants, in seconds since 1970.
    lowest, highest : ndarray of float64, shape (4,)
        Smallest and largest phase of each cycle.
    zones : frozenset of str
        Time zones that occur, at most two of them.
    """

    def __init__(self, instants, lowest, highest, zones):
        self.instants = instants
        self.lowest = lowest
        self.highest = highest
        self.zones = zones

    @classmethod
    def of(cls, column, name):
        """Summarize one column."""
        zones = time_zones(column, name)
        instants, phases = _read(column, name, common_zone(zones))
        known = phases[~np.isnan(instants)]
        # With infinite bounds, an empty chunk changes nothing in a merge and no cycle varies.
        lowest = known.min(axis=0, initial=np.inf)
        highest = known.max(axis=0, initial=-np.inf)
        return cls(Quantiles.of(instants), lowest, highest, zones)

    @property
    def zone(self):
        """Time zone of all chunks: UTC if there are several, None if there is none."""
        return common_zone(self.zones)

    @property
    def cycles(self):
        """Whether each cycle varies and is spanned by the dates, bool of shape (4,)."""
        known = self.instants.values
        span = known[-1] - known[0] if len(known) else 0.0
        return (self.lowest < self.highest) & (span >= SPANNED * np.array(PERIODS))

    def merge(self, other):
        """Return the summary of the rows of both summaries."""
        return DatetimeSummary(
            self.instants.merge(other.instants),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            bounded_zones(self.zones | other.zones),
        )


class DatetimeModule(BlockModule):
    """Embed all columns: a trend plus a linear layer over the cycles.

    Parameters
    ----------
    n_edges : list of int
        Number of bin edges of each column.
    n_waves : int
        Number of sines and cosines of each column.
    width : int
        Embedding dimension of each column.
    sines : list of int, default=()
        Indices of the sines of the first harmonic of each cycle; a cosine follows each.
    """

    def __init__(self, n_edges, n_waves, width, sines=()):
        super().__init__()
        # Not part of the state dict, because the block computes it again.
        self.register_buffer("sines", torch.tensor(sines, dtype=torch.int64) + 2, persistent=False)
        self.out_features = len(n_edges) * width
        self.trend = NumericModule("piecewise", n_edges, width)
        # Not the instants themselves: a line through them would be far off in other years.
        quantiles = self.trend.linear_weights[len(n_edges) :]
        n_waves_in_all = len(n_edges) * n_waves
        waves = np.full(n_waves_in_all, (n_waves_in_all or 1) ** -0.5)
        self.linear_weights = np.concatenate([quantiles, waves], dtype=np.float32)
        bound = 1 / math.sqrt(max(n_waves, 1))
        weight = torch.empty(len(n_edges), n_waves, width).uniform_(-bound, bound)
        self.waves = nn.Parameter(weight)

    def forward(self, times):
        """Return the embeddings of all columns.

        Parameters
        ----------
        times : torch.Tensor of shape (batch, n_columns, 2 + n_waves)
            Scaled instant, position among the edges, sines and cosines.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        # A missing date has no waves: its vector is the learned missing vector of the trend.
        waves = torch.nan_to_num(times[..., 2:], nan=0.0)
        cycles = torch.einsum("bcf,cfw->bcw", waves, self.waves)
        return self.trend(times[..., :2]) + cycles.flatten(1)

    @property
    def linear_columns(self):
        """Column of each feature of :meth:`linear_inputs`."""
        n_columns, n_waves = self.waves.shape[:2]
        return np.concatenate(
            [self.trend.linear_columns[n_columns:], np.repeat(np.arange(n_columns), n_waves)]
        )

    def linear_inputs(self, times):
        """Return quantiles of the instants, pieces between quantiles, sines and cosines."""
        trend = self.trend.linear_inputs(times[..., :2])[:, times.shape[1] :]
        return torch.cat([trend, torch.nan_to_num(times[..., 2:], nan=0.0).flatten(1)], dim=1)

    @property
    def output_columns(self):
        """Column of each output, an ndarray of int64 of shape (out_features,)."""
        return self.trend.output_columns

    @property
    def tree_columns(self):
        """Column of each feature of :meth:`tree_inputs`."""
        return np.tile(self.trend.tree_columns, 1 + len(self.sines))

    @property
    def tree_codes(self):
        """Number of codes of each feature of the trees, and True because codes are ordered."""
        instants = self.trend.tree_codes
        return instants + [(TREE_PARTS + 1, True)] * (len(instants) * len(self.sines))

    def tree_inputs(self, times):
        """Return the codes of the instants and of their phases in each cycle."""
        sine, cosine = times.index_select(2, self.sines), times.index_select(2, self.sines + 1)
        # The phase along a square instead of a circle, which needs no arc tangent.
        along = cosine / (sine.abs() + cosine.abs())
        part = torch.where(sine >= 0, 1 - along, 3 + along) * (TREE_PARTS / 4) + BORDER
        # Midnight may be rounded to just before the end of the cycle.
        codes = FIRST_CODE + torch.where(part >= TREE_PARTS, part - TREE_PARTS, part)
        codes = torch.nan_to_num(codes, nan=MISSING_CODE).int().transpose(1, 2).flatten(1)
        return torch.cat([self.trend.tree_inputs(times[..., :2]), codes], dim=1)


def is_iso(column):
    """Return whether all texts of a column are dates or date-times in ISO 8601."""
    try:
        parse_strings(sample_values(column), "")
        parse_strings(column, "")
    except TypeError:
        return False
    return True


def _read(column, name, zone):
    """Read times, or raise a ``TypeError`` that names the blocks that accept the column's type."""
    try:
        return read_times(column, name, zone)
    except NoTimesError as error:
        message = unsupported_column(pa.field(name, column.type), "DatetimeBlock")
        raise TypeError(message) from error
