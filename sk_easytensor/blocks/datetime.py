"""Dates and times: a trend and the cycles of the calendar, in local wall-clock time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.numeric import FIRST_CODE, MISSING_CODE, TREE_PARTS, NumericModule
from sk_easytensor.data.bin_edges import BinnedMixin
from sk_easytensor.data.columns import sample_values
from sk_easytensor.data.datetimes import (
    CYCLES,
    FIRST,
    LAST,
    PERIODS,
    NoTimesError,
    bounded_zones,
    common_zone,
    parse_strings,
    read_times,
    time_zones,
    zone_shifts,
)
from sk_easytensor.data.summaries import Quantiles, Summary, SummaryMap
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "DatetimeBlock",
    "DatetimeModule",
]


BORDER = 0.3
"""How much of a part of a cycle lies before its begin, so that rounding moves midnights across no
border."""

SPANNED = 0.95
"""Part of a cycle that dates have to span for it to be one."""


class DatetimeBlock(BinnedMixin, Block):
    """Dates, times on a date, and strings that hold them in ISO 8601.

    Parameters
    ----------
    harmonics : int, default=4
        Sines and cosines of each cycle: one period, two periods and so on up to so many. The
        week has at most 3, which tell its seven days apart.
    width : int, default=16
        Size of each column's vector.
    bins : int, default=64
        At most so many quantile bins a column for the trend.
    cycles : list of {"day", "week", "month", "year"}, default=("day", "week", "month", "year")
        Cycles that may be used. Fewer leave less to learn by heart: in few months every day of
        the month is known by what happened on it.
    trend : bool, default=True
        Whether the network sees the instant, beside the cycles. What it learns of the trend ends
        with the training data: turn it off for rows that are predicted later.

    Attributes
    ----------
    zones_ : list of str or None
        Time zone of each column; None for columns without one.
    edges_ : list of ndarray of float64
        Increasing bin edges of each column, in seconds since 1970; empty where every value is
        missing.
    center_, scale_ : ndarray of float64, shape (n_features,)
        Median and spread (interquartile range) over the bins.
    cycles_ : ndarray of bool, shape (n_features, 4)
        Which of the cycles day, week, month and year are used for a column: those that take more
        than one value, as the time of day does not for pure dates, and that the column spans as
        a whole. A part of a cycle is a trend, and would be taken to repeat.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of rows without a date.

    Notes
    -----
    The trend is the instant, encoded as a number is by
    :class:`~sk_easytensor.blocks.NumericBlock`; the cycles are sines and cosines of the time of
    day, the day of the week, of the month and of the year, in the wall-clock time of the
    column's time zone. What was fitted decides:

    - a column with a time zone is read in that zone, so that the same instant written in
      another zone has the same encoding, and a time without a zone is taken to be local;
    - a column without a time zone is read by the wall clock, whatever zone is given later.

    Strings with UTC offsets are read in their offset if it is always the same, else in UTC. The
    unit of a timestamp does not matter, and years outside the range of nanoseconds are read too.
    A missing date gets a learned vector.

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
    accepted = "dates, timestamps, strings holding ISO 8601 dates or date-times"

    def __init__(self, harmonics=4, *, width=16, bins=64, cycles=CYCLES, trend=True):
        self.harmonics = harmonics
        self.width = width
        self.bins = bins
        self.cycles = cycles
        self.trend = trend

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
        try:
            parse_strings(sample, "")
            parse_strings(column, "")
        except TypeError:
            return False
        return True

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

    def summarize(self, table):
        return SummaryMap(
            {
                name: DatetimeSummary.of(column, name)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def finish(self, summary):
        columns = [summary[name] for name in self.feature_names_in_]
        self.zones_ = [column.zone for column in columns]
        self._keep_edges([column.instants.quantile_edges(self.bins + 1) for column in columns])
        wanted = [cycle in self.cycles for cycle in CYCLES]
        self.cycles_ = np.array([column.cycles & wanted for column in columns])
        self.missing_fraction_ = np.array(
            [column.instants.n_missing / max(column.instants.n_rows, 1) for column in columns]
        )
        return self

    @property
    def _waves(self):
        """Pairs of a cycle's index and a harmonic, one per sine and cosine of the encoding."""
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
        names = zip(table.column_names, table.columns, strict=True)
        for index, (name, column) in enumerate(names):
            instants, phases = _read(column, name, self.zones_[index])
            columns.append(instants)
            for place, (cycle, harmonic) in enumerate(waves):
                # A cycle that never varied in this column was never learned: it stays 0.
                if self.cycles_[index, cycle]:
                    # In single precision, as it is kept: sines take a twelfth of the time then.
                    angle = (2 * math.pi * harmonic * phases[:, cycle]).astype(np.float32)
                    encoded[:, index, 2 + 2 * place] = np.sin(angle)
                    encoded[:, index, 3 + 2 * place] = np.cos(angle)
        if self.trend:
            self._place(columns, encoded)
        for index, instants in enumerate(columns):
            encoded[np.isnan(instants), index] = np.nan
        return {"times": torch.from_numpy(encoded)}

    def make_module(self):
        n_edges = [len(edges) for edges in self.edges_]
        sines = [2 * place for place, (_, harmonic) in enumerate(self._waves) if harmonic == 1]
        return DatetimeModule(n_edges, 2 * len(self._waves), self.width, sines)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        zones = zip(self.feature_names_in_, self.zones_, strict=True)
        times = [graph.column(name, "time", zone=zone) for name, zone in zones]
        wall = [
            encoders.clock(graph, column, zone_shifts(zone))
            for column, zone in zip(times, self.zones_, strict=True)
        ]
        wall = graph.op("Max", graph.stack(wall, axis=1), np.int64(FIRST * 1_000_000))
        wall = graph.op("Min", wall, np.int64(LAST * 1_000_000 + 999_999))
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
        """Whether an entry of the encoding is a column of :meth:`flatten`, (n_columns, n)."""
        cycles = [cycle for cycle, _ in self._waves for _ in range(2)]
        trend = np.zeros((self.n_features_in_, 2), dtype=bool)
        trend[:, 0] = self.trend
        return np.concatenate([trend, self.cycles_[:, cycles]], axis=1)

    def flatten(self, encoding):
        """Return scaled trends, sines and cosines; missing ones are 0, with an indicator."""
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
            for name, kept in zip(self.feature_names_in_, self._flat_features(), strict=True)
            for feature in features[kept]
        ]
        names += [f"{name}_missing" for name in self.feature_names_in_[self.missing_fraction_ > 0]]
        return np.asarray(names, dtype=object)


class DatetimeSummary(Summary):
    """What a chunk tells about one column of dates.

    Parameters
    ----------
    instants : Quantiles
        Seconds since 1970.
    lowest, highest : ndarray of float64, shape (4,)
        Least and greatest phase of each cycle.
    zones : frozenset of str
        Time zones seen, at most two of them.
    """

    def __init__(self, instants, lowest, highest, zones):
        self.instants = instants
        self.lowest = lowest
        self.highest = highest
        self.zones = zones

    @classmethod
    def of(cls, column, name):
        """Summarise one column."""
        zones = time_zones(column, name)
        instants, phases = _read(column, name, common_zone(zones))
        known = phases[~np.isnan(instants)]
        # Infinite bounds make an empty chunk neutral in a merge, and no cycle vary.
        lowest = known.min(axis=0, initial=np.inf)
        highest = known.max(axis=0, initial=-np.inf)
        return cls(Quantiles.of(instants), lowest, highest, zones)

    @property
    def zone(self):
        """The common time zone of all chunks: UTC where they differ, None where none has one."""
        return common_zone(self.zones)

    @property
    def cycles(self):
        """Which cycles vary and are spanned as a whole, bool of shape (4,)."""
        known = self.instants.values
        span = known[-1] - known[0] if len(known) else 0.0
        return (self.lowest < self.highest) & (span >= SPANNED * np.array(PERIODS))

    def merge(self, other):
        """Join two chunks."""
        return DatetimeSummary(
            self.instants.merge(other.instants),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            bounded_zones(self.zones | other.zones),
        )


class DatetimeModule(BlockModule):
    """Embed every date column: a trend plus a linear layer over its cycles.

    Parameters
    ----------
    n_edges : list of int
        Bin edges of each column.
    n_waves : int
        Sines and cosines a column.
    width : int
        Size of each column's vector.
    sines : list of int
        Which waves are the sines that go round once in a cycle; their cosines follow them.
    """

    def __init__(self, n_edges, n_waves, width, sines=()):
        super().__init__()
        # Made anew by the block, and so not part of a saved state.
        self.register_buffer("sines", torch.tensor(sines, dtype=torch.int64) + 2, persistent=False)
        self.out_features = len(n_edges) * width
        self.trend = NumericModule("piecewise", n_edges, width)
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
        # A missing date has no waves, so that the trend's learned missing vector stands alone.
        waves = torch.nan_to_num(times[..., 2:], nan=0.0)
        cycles = torch.einsum("bcf,cfw->bcw", waves, self.waves)
        return self.trend(times[..., :2]) + cycles.flatten(1)

    @property
    def output_columns(self):
        """Which column each output is of, an ndarray of int64 of shape (out_features,)."""
        return self.trend.output_columns

    @property
    def tree_columns(self):
        """Which column each of :meth:`tree_inputs` is of."""
        return np.tile(self.trend.tree_columns, 1 + len(self.sines))

    @property
    def tree_codes(self):
        """Trees see codes of the instants, and of each cycle from its begin to its end."""
        instants = self.trend.tree_codes
        return instants + [(TREE_PARTS + 1, True)] * (len(instants) * len(self.sines))

    def tree_inputs(self, times):
        """Return in which part of its column, and of each cycle, each instant is."""
        sine, cosine = times.index_select(2, self.sines), times.index_select(2, self.sines + 1)
        # Goes round a square in place of a circle, which needs no arc tangent.
        along = cosine / (sine.abs() + cosine.abs())
        part = torch.where(sine >= 0, 1 - along, 3 + along) * (TREE_PARTS / 4) + BORDER
        # Midnight may be rounded to just before.
        codes = FIRST_CODE + torch.where(part >= TREE_PARTS, part - TREE_PARTS, part)
        codes = torch.nan_to_num(codes, nan=MISSING_CODE).int().transpose(1, 2).flatten(1)
        return torch.cat([self.trend.tree_inputs(times[..., :2]), codes], dim=1)


def _read(column, name, zone):
    """Read times, or say which block reads a column of this type."""
    try:
        return read_times(column, name, zone)
    except NoTimesError as error:
        message = unsupported_column(pa.field(name, column.type), "DatetimeBlock")
        raise TypeError(message) from error
