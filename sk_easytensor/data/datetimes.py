"""Convert dates and times to instants and to phases of the cycles of the calendar."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import shortened
from sk_easytensor.data.columns import RowTypeError
from sk_easytensor.data.keys import category_keys
from sk_easytensor.data.type_names import in_words

CYCLES = ("day", "week", "month", "year")
"""Cycles of the calendar, in the order of their phases."""

DAY = 86_400
PERIODS = (DAY, 7 * DAY, 30 * DAY, 365 * DAY)
"""Approximate length of each cycle in seconds."""

FIRST, LAST = -62_135_596_800, 253_402_300_799
"""First and last second of the years 1 to 9999, to which calendar computations are limited."""

ISO = (
    r"^\s*(?:(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
    r"(?:[T ](?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r" ?(?P<offset>[Zz]|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?)?\s*$"
)
OFFSET = re.compile(r"^([+-])(\d{2}):?(\d{2})?$")


def bounded_zones(zones):
    """Return a set of at most two zones; with several zones, only their number matters."""
    return zones if len(zones) < 2 else frozenset(["UTC", "several"])


def common_zone(zones):
    """Return the zone in which all chunks are read: the only one, UTC for several, or None."""
    if len(zones) > 1:
        return "UTC"
    return next(iter(zones), None)


def time_zones(column, name):
    """Return the time zones or UTC offsets that a column names."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        return frozenset([column.type.tz] if column.type.tz else [])
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return frozenset()
    offsets = np.unique(parse_strings(column, name)[2])
    return bounded_zones(frozenset(map(_offset_name, offsets[~np.isnan(offsets)])))


def _offset_name(seconds):
    sign = "-" if seconds < 0 else "+"
    hours, minutes = divmod(round(abs(seconds) / 60), 60)
    return f"{sign}{hours:02}:{minutes:02}" if seconds else "UTC"


def read_times(column, name, zone):
    """Read a column of dates as instants and phases.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column of any type that :class:`DatetimeBlock` accepts.
    name : str
        Name of the column, for error messages.
    zone : str or None
        Time zone in which the column is read; None for the wall clock.

    Returns
    -------
    instants : ndarray of float64, shape (n,)
        Seconds since 1970, as :func:`read_instants` returns them.
    phases : ndarray of float64, shape (n, 4)
        Time of day, and day of the week, of the month and of the year, each in [0, 1).
    """
    instants, wall, fraction = _read(column, name, zone)
    return instants, _phases(wall, fraction)


def read_instants(column, name, zone):
    """Read a column of dates as seconds since 1970.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column of any type that :class:`DatetimeBlock` accepts.
    name : str
        Name of the column, for error messages.
    zone : str or None
        Time zone in which the column is read; None for the wall clock.

    Returns
    -------
    ndarray of float64, shape (n,)
        Seconds since 1970, NaN where missing. They are counted in UTC if there is a zone, else by
        the wall clock.

    Raises
    ------
    NoTimesError
        If the column is of a type that holds neither dates nor times.
    RowTypeError
        If a string is not an ISO 8601 date.
    ValueError
        If the time zone is unknown on this machine.
    """
    return _read(column, name, zone)[0]


def _read(column, name, zone):
    """Return instants, and the wall clock time in whole seconds and their fraction."""
    seconds, fraction, offset, missing = _seconds(column, name)
    aware = ~np.isnan(offset)
    # From here on `wall` is the wall clock time and `seconds` are counted in UTC.
    wall = seconds.copy()
    if zone is None:
        column_zone = getattr(column.type, "tz", None)
        if column_zone is not None:
            wall = _local(seconds, column_zone, name)
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
    return instants, wall, fraction


class NoTimesError(TypeError):
    """Error about a column whose type holds neither dates nor times."""


def _seconds(column, name):
    """Return whole seconds, their fraction, the UTC offset (NaN if unknown) and a mask of nulls.

    Seconds are counted in UTC where there is an offset or a zone, else by the wall clock.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _seconds(column.cast(kind.value_type), name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return parse_strings(column, name)
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
        raise NoTimesError(
            f"column {name!r} holds {in_words(kind)} instead of dates and times; convert it to "
            "dates"
        )
    missing = column.is_null().to_numpy()
    numbers = pc.fill_null(numbers, 0).to_numpy()
    seconds, rest = np.divmod(numbers, per_second)
    if pa.types.is_date32(kind):
        seconds = seconds * DAY
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    offset = np.full(len(seconds), np.nan if zone is None else 0.0)
    return seconds, rest / per_second, offset, missing


def parse_strings(column, name):
    """Parse ISO 8601 dates; blank strings are missing. Returns the same as :func:`_seconds`."""
    # Dates repeat, so only distinct strings are parsed.
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
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= after - first)
    valid &= (hour < 24) & (minute < 60) & (second <= 60) & fields.is_valid().to_numpy(False)
    if not valid.all():
        invalid = int(np.argmin(valid))
        row = pc.index(keys.indices, pa.scalar(invalid, keys.indices.type)).as_py()
        raise RowTypeError(
            f"column {name!r} holds {shortened(values[invalid].as_py())} in row {{row}}, which is "
            "not an ISO 8601 date or date-time that DatetimeBlock reads; correct it, make it "
            "missing, or give the column to another block",
            row,
        )
    seconds = (first + day - 1) * DAY + hour * 3600 + minute * 60 + second
    fraction = pc.binary_join_element_wise("0.", parts["fraction"], "0", "")
    fraction = pc.fill_null(fraction.cast(pa.float64()), 0.0).to_numpy()
    # A column has many dates but few offsets.
    offsets = parts["offset"].dictionary_encode()
    offset_values = [math.nan, *map(_offset_seconds, offsets.dictionary.to_pylist())]
    offset = np.array(offset_values)[pc.fill_null(offsets.indices, -1).to_numpy() + 1]
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
    """Return the seconds east of UTC of an offset such as ``+05:30``; NaN for an empty string."""
    if not text:
        return math.nan
    if text in "Zz":
        return 0.0
    sign, hours, minutes = OFFSET.match(text).groups(default="0")
    seconds = int(hours) * 3600 + int(minutes) * 60
    return -seconds if sign == "-" else seconds


def _local(seconds, zone, name):
    """Convert instants to the wall clock time of a zone, both in seconds."""
    if OFFSET.match(zone):
        return seconds + _offset_seconds(zone)
    inside = np.clip(seconds, FIRST, LAST)
    array = pa.array(inside).cast(pa.timestamp("s", zone))
    with _naming(name, zone):
        return pc.local_timestamp(array).cast(pa.int64()).to_numpy() + (seconds - inside)


def zone_shifts(zone):
    """Return the transitions of a time zone, such as those to and from summer time.

    Parameters
    ----------
    zone : str or None
        Name of the zone, or a UTC offset such as ``+05:30``.

    Returns
    -------
    transitions : ndarray of int64
        Seconds since 1970 from which a new UTC offset holds; the first is before any date.
    offsets : ndarray of int64
        UTC offset in seconds from each transition on.

    Notes
    -----
    Without a zone, None is returned instead of the two arrays.
    """
    if zone is None:
        return None
    days = np.arange(FIRST, LAST, DAY)
    offsets = _local(days, zone, "zone") - days
    changes = np.flatnonzero(np.diff(offsets))
    # Bisect the days with a transition down to one second.
    early, late, before = days[changes], days[changes + 1], offsets[changes]
    while len(early) and (late - early).max() > 1:
        middle = (early + late) // 2
        same = _local(middle, zone, "zone") - middle == before
        early, late = np.where(same, middle, early), np.where(same, late, middle)
    return np.append(np.int64(-(2**62) // 1_000_000), late), np.append(
        offsets[:1], offsets[changes + 1]
    )


def _instants(wall, zone, name):
    """Convert the wall clock time of a zone to instants, both in seconds."""
    if OFFSET.match(zone):
        return wall - _offset_seconds(zone)
    inside = np.clip(wall, FIRST, LAST)
    array = pa.array(inside).cast(pa.timestamp("s"))
    with _naming(name, zone):
        array = pc.assume_timezone(array, zone, ambiguous="earliest", nonexistent="earliest")
        return array.cast(pa.int64()).to_numpy() + (wall - inside)


class _naming:
    """Context that makes Arrow's error about an unknown time zone name the column."""

    def __init__(self, name, zone):
        self.name, self.zone = name, zone

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, pa.ArrowInvalid):
            raise ValueError(
                f"column {self.name!r} has the time zone {self.zone!r}, which is not in the time "
                "zone database of this machine"
            ) from error


def _phases(wall, fraction):
    """Return the elapsed fraction of each cycle, in [0, 1), by the wall clock."""
    wall = np.clip(wall, FIRST, LAST)
    days, second = np.divmod(wall, DAY)
    dates = days.astype("datetime64[D]")
    phases = np.empty((len(wall), len(CYCLES)))
    phases[:, 0] = (second + fraction) / DAY
    phases[:, 1] = ((days + 3) % 7) / 7
    for column, unit in ((2, "M"), (3, "Y")):
        period = dates.astype(f"datetime64[{unit}]")
        start = period.astype("datetime64[D]")
        length = (period + 1).astype("datetime64[D]") - start
        phases[:, column] = (dates - start) / length
    return phases
