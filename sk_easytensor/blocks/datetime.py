"""Dates and times: a trend and the cycles of the calendar, in local wall-clock time."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor.blocks._base import Block, unsupported_column
from sk_easytensor.blocks.category import category_keys
from sk_easytensor.blocks.numeric import NumericModule, centers_and_scales, encode_numbers
from sk_easytensor.parameters import check_number
from sk_easytensor.summaries import Quantiles, Summary, SummaryMap
from sk_easytensor.tables import sample_values

__all__ = ["DatetimeBlock", "DatetimeModule"]

CYCLES = ("day", "week", "month", "year")
"""Cycles of the calendar, in the order of their features."""

DAY = 86_400
FIRST, LAST = -62_135_596_800, 253_402_300_799
"""Seconds of the years 1 and 9999: the calendar is not asked about any other year."""

ISO = (
    r"^\s*(?:(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
    r"(?:[T ](?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r" ?(?P<offset>[Zz]|[+-]\d{2}(?::?\d{2})?)?)?)?\s*$"
)
OFFSET = re.compile(r"^([+-])(\d{2}):?(\d{2})?$")


class DatetimeBlock(Block):
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

    Attributes
    ----------
    zones_ : list of str or None
        Time zone of each column; None for columns without one.
    edges_ : list of ndarray of float64
        Increasing bin edges of each column, in seconds since 1970; empty where every value is
        missing.
    center_, scale_ : ndarray of float64, shape (n_features_in_,)
        Median and spread (interquartile range) over the bins.
    cycles_ : ndarray of bool, shape (n_features_in_, 4)
        Which of the cycles day, week, month and year take more than one value in a column. The
        others are left out: pure dates have no time of day.
    missing_fraction_ : ndarray of float64, shape (n_features_in_,)
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
    ([[False, True, True, True]], [1709078400.0, 1709251200.0])
    >>> block.transform({"day": ["2024-02-29"]})["times"].shape
    torch.Size([1, 1, 24])
    """

    kind = "datetime"
    accepted = "dates, timestamps, strings holding ISO 8601 dates or date-times"

    def __init__(self, harmonics=4, *, width=16, bins=64):
        self.harmonics = harmonics
        self.width = width
        self.bins = bins

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
            _parse_strings(sample, "")
        except TypeError:
            return False
        return True

    def check_parameters(self):
        check_number("DatetimeBlock", "harmonics", self.harmonics, low=1, integer=True)
        check_number("DatetimeBlock", "width", self.width, low=1, integer=True)
        check_number("DatetimeBlock", "bins", self.bins, low=1, integer=True)

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
        self.edges_ = [column.instants.quantile_edges(self.bins + 1) for column in columns]
        self.center_, self.scale_ = centers_and_scales(self.edges_)
        self.cycles_ = np.array([column.lowest < column.highest for column in columns])
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
        names = zip(table.column_names, table.columns, strict=True)
        for index, (name, column) in enumerate(names):
            instants, phases = read_times(column, name, self.zones_[index])
            encoded[:, index, :2] = encode_numbers(
                instants, self.edges_[index], self.center_[index], self.scale_[index]
            )
            for place, (cycle, harmonic) in enumerate(waves):
                # A cycle that never varied in this column was never learned: it stays 0.
                if self.cycles_[index, cycle]:
                    angle = (2 * math.pi * harmonic) * phases[:, cycle]
                    encoded[:, index, 2 + 2 * place] = np.sin(angle)
                    encoded[:, index, 3 + 2 * place] = np.cos(angle)
            encoded[np.isnan(instants), index] = np.nan
        return {"times": torch.from_numpy(encoded)}

    def make_module(self):
        n_edges = [len(edges) for edges in self.edges_]
        return DatetimeModule(n_edges, 2 * len(self._waves), self.width)

    def _flat_features(self):
        """Whether an entry of the encoding is a column of :meth:`flatten`, (n_columns, n)."""
        cycles = [cycle for cycle, _ in self._waves for _ in range(2)]
        trend = np.ones((self.n_features_in_, 2), dtype=bool)
        trend[:, 1] = False
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
        zones = _zones(column, name)
        instants, phases = read_times(column, name, _common_zone(zones))
        known = phases[~np.isnan(instants)]
        # Infinite bounds make an empty chunk neutral in a merge, and no cycle vary.
        lowest = known.min(axis=0, initial=np.inf)
        highest = known.max(axis=0, initial=-np.inf)
        return cls(Quantiles.of(instants), lowest, highest, zones)

    @property
    def zone(self):
        """The common time zone of all chunks: UTC where they differ, None where none has one."""
        return _common_zone(self.zones)

    def merge(self, other):
        """Join two chunks."""
        return DatetimeSummary(
            self.instants.merge(other.instants),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            _bounded_zones(self.zones | other.zones),
        )


def _bounded_zones(zones):
    """Keep a set of zones small: of several it only matters that there are several."""
    return zones if len(zones) < 2 else frozenset(["UTC", "several"])


def _common_zone(zones):
    if len(zones) > 1:
        return "UTC"
    return next(iter(zones), None)


def _zones(column, name):
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        return frozenset([column.type.tz] if column.type.tz else [])
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return frozenset()
    offsets = np.unique(_parse_strings(column, name)[2])
    return _bounded_zones(frozenset(map(_offset_name, offsets[~np.isnan(offsets)])))


def _offset_name(seconds):
    sign = "-" if seconds < 0 else "+"
    hours, minutes = divmod(round(abs(seconds) / 60), 60)
    return f"{sign}{hours:02}:{minutes:02}" if seconds else "UTC"


def read_times(column, name, zone):
    """Read a column of dates.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Of any type that :class:`DatetimeBlock` accepts.
    name : str
        Its name, for errors.
    zone : str or None
        Time zone to read it in; None for the wall clock.

    Returns
    -------
    instants : ndarray of float64, shape (n,)
        Seconds since 1970, NaN where missing: in UTC, or by the wall clock without a zone.
    phases : ndarray of float64, shape (n, 4)
        Time of day, day of the week, of the month and of the year, from 0 to below 1.
    """
    seconds, fraction, offset, missing = _seconds(column, name)
    aware = ~np.isnan(offset)
    # From here on `wall` is what a clock shows and `seconds` are counted in UTC.
    wall = seconds.copy()
    if zone is None:
        shown = getattr(column.type, "tz", None)
        if shown is not None:
            wall = _local(seconds, shown, name)
        elif aware.any():
            wall[aware] += offset[aware].astype(np.int64)
        seconds = wall
    else:
        if aware.any():
            wall[aware] = _local(seconds[aware], zone, name)
        if not aware.all():
            seconds = seconds.copy()
            seconds[~aware] = _instants(seconds[~aware], zone, name)
    instants = seconds.astype(np.float64) + fraction
    instants[missing] = np.nan
    return instants, _phases(wall, fraction)


def _seconds(column, name):
    """Return whole seconds, their fraction, the UTC offset (NaN: none given) and the nulls.

    The seconds are UTC where there is an offset or a zone, and by the wall clock elsewhere.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _seconds(column.cast(kind.value_type), name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parse_strings(column, name)
    if pa.types.is_date32(kind):
        per_second, numbers = 1, column.cast(pa.int32()).cast(pa.int64())
    elif pa.types.is_date64(kind):
        per_second, numbers = 1_000, column.cast(pa.int64())
    elif pa.types.is_timestamp(kind):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        numbers = column.cast(pa.int64())
    elif pa.types.is_null(kind):
        per_second, numbers = 1, column.cast(pa.int64())
    else:
        raise TypeError(unsupported_column(pa.field(name, kind), DatetimeBlock()))
    missing = column.is_null().to_numpy()
    numbers = pc.fill_null(numbers, 0).to_numpy()
    seconds, rest = np.divmod(numbers, per_second)
    if pa.types.is_date32(kind):
        seconds = seconds * DAY
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    offset = np.full(len(seconds), np.nan if zone is None else 0.0)
    return seconds, rest / per_second, offset, missing


def _parse_strings(column, name):
    """Parse ISO 8601 dates; blank strings are missing. Returns what :func:`_seconds` does."""
    # Dates repeat, so that parsing the distinct ones is less work.
    keys = category_keys(column)
    values = keys.dictionary
    fields = pc.extract_regex(values, ISO)
    parts = {key: pc.struct_field(fields, key) for key in re.compile(ISO).groupindex}

    def number(key, default=0):
        digits = parts[key]
        digits = pc.if_else(pc.equal(digits, ""), str(default), digits)
        return pc.fill_null(digits.cast(pa.int64()), default).to_numpy()

    month, day = number("month", 1), number("day", 1)
    hour, minute, second = number("hour"), number("minute"), number("second")
    months = (number("year", 1970) - 1970) * 12 + np.clip(month, 1, 12) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    after = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    right = (month >= 1) & (month <= 12) & (day >= 1) & (day <= after - first)
    right &= (hour < 24) & (minute < 60) & (second <= 60) & fields.is_valid().to_numpy(False)
    if not right.all():
        value = values[int(np.argmin(right))].as_py()
        raise TypeError(
            f"column {name!r} holds {value!r}, which is not an ISO 8601 date or date-time as "
            "DatetimeBlock reads them; correct it, make it missing, or give the column to "
            "another block"
        )
    seconds = (first + day - 1) * DAY + hour * 3600 + minute * 60 + second
    fraction = pc.binary_join_element_wise("0.", parts["fraction"], "0", "")
    fraction = pc.fill_null(fraction.cast(pa.float64()), 0.0).to_numpy()
    offset = np.array([_offset_seconds(text) for text in parts["offset"].to_pylist()], dtype=float)
    seconds = seconds - np.nan_to_num(offset).astype(np.int64)
    blank = pc.fill_null(pc.equal(parts["year"], ""), False).to_numpy(zero_copy_only=False)

    indices = pc.fill_null(keys.indices, len(values)).to_numpy(zero_copy_only=False)
    return (
        np.append(seconds, 0)[indices],
        np.append(fraction, 0.0)[indices],
        np.append(offset, np.nan)[indices],
        np.append(blank, True)[indices],
    )


def _offset_seconds(text):
    """Seconds east of UTC of an offset such as ``+05:30``; NaN if there is none."""
    if not text:
        return math.nan
    if text in "Zz":
        return 0.0
    sign, hours, minutes = OFFSET.match(text).groups(default="0")
    seconds = int(hours) * 3600 + int(minutes) * 60
    return -seconds if sign == "-" else seconds


def _local(seconds, zone, name):
    """Return what a clock in a time zone shows at some instants."""
    if OFFSET.match(zone):
        return seconds + _offset_seconds(zone)
    inside = np.clip(seconds, FIRST, LAST)
    array = pa.array(inside).cast(pa.timestamp("s", zone))
    with _naming(name, zone):
        return pc.local_timestamp(array).cast(pa.int64()).to_numpy() + (seconds - inside)


def _instants(wall, zone, name):
    """Return the instants at which a clock in a time zone shows some times."""
    if OFFSET.match(zone):
        return wall - _offset_seconds(zone)
    inside = np.clip(wall, FIRST, LAST)
    array = pa.array(inside).cast(pa.timestamp("s"))
    with _naming(name, zone):
        array = pc.assume_timezone(array, zone, ambiguous="earliest", nonexistent="earliest")
        return array.cast(pa.int64()).to_numpy() + (wall - inside)


class _naming:
    """Turn Arrow's error about an unknown time zone into one that names the column."""

    def __init__(self, name, zone):
        self.name, self.zone = name, zone

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, pa.ArrowInvalid):
            raise ValueError(
                f"column {self.name!r} has the time zone {self.zone!r}, which this machine's time "
                "zone database does not hold"
            ) from error


def _phases(wall, fraction):
    """Return how far each cycle has run, from 0 to below 1, by the wall clock."""
    wall = np.clip(wall, FIRST, LAST)
    days, second = np.divmod(wall, DAY)
    dates = days.astype("datetime64[D]")
    phases = np.empty((len(wall), len(CYCLES)))
    phases[:, 0] = (second + fraction) / DAY
    phases[:, 1] = ((days + 3) % 7) / 7
    for place, unit in ((2, "M"), (3, "Y")):
        period = dates.astype(f"datetime64[{unit}]")
        start = period.astype("datetime64[D]")
        length = (period + 1).astype("datetime64[D]") - start
        phases[:, place] = (dates - start) / length
    return phases


class DatetimeModule(nn.Module):
    """Embed every date column: a trend plus a linear layer over its cycles.

    Parameters
    ----------
    n_edges : list of int
        Bin edges of each column.
    n_waves : int
        Sines and cosines a column.
    width : int
        Size of each column's vector.
    """

    def __init__(self, n_edges, n_waves, width):
        super().__init__()
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
