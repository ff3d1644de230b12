"""Columns: each kind is a function of a random generator that returns a function of a row count.

Rows for training and rows for prediction are drawn by the same function, so that they are alike:
categories come from one vocabulary, numbers from one distribution.
"""

import datetime as dt
import decimal
import enum
import fractions
import uuid
import zoneinfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns")
ZONES = ("UTC", "Europe/Oslo", "Asia/Kolkata", "America/New_York")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
EXTREME_FLOATS = (
    np.inf, -np.inf, np.nan, -0.0, 0.0, 5e-324, -5e-324, 1e308, -1e308, 1e-308, 1.0, 3.4e38, 1e39,
)  # fmt: skip
EXTREME_INTEGERS = (
    2**31, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**64),
    10**30, 10**400, 0, 1, -1,
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\t\n", "\0", "a\0b", "\uffff", "\ufffd", "\ud800", "a\udfffb", "\U0001f600",
    "e\u0301", "\u00e9", "\u0130", "\u200b", "nan", "NaN", "None", "<NA>", "null", "NULL", "inf",
    "1", "1.0", "01", "1e3", "-0", "0", "True", "true", "TRUE", "2020-01-01", "a" * 5000,
    "=1+1", "a,b", '"', "'", "<script>", "%s", "{}", "\\", "\r\n", "A", "a", "\x7f", "\x80",
)  # fmt: skip


class Colour(enum.Enum):
    """Values that are categories by their names."""

    RED = 1
    BLUE = "blue"


def pick(random, values, size):
    """Draw values, whatever their types, into a list."""
    return [values[i] for i in random.integers(0, len(values), size)]


def with_missing(random, values, share, missing=None):
    return [missing if random.random() < share else value for value in values]


# ---------------------------------------------------------------- columns that are to be accepted


def normal(random):
    scale, share = 10.0 ** random.integers(-6, 7), random.choice([0.0, 0.2])

    def draw(n):
        values = random.normal(size=n) * scale
        values[random.random(n) < share] = np.nan
        return values

    return draw


def integers(random):
    kind = str(random.choice(INTEGERS))
    return lambda n: random.integers(0, 100, n).astype(kind)


def few_integers(random):
    return lambda n: random.integers(0, 3, n)


def texts(random):
    words = ["oslo", "lima", "Rome", "new york", "ÅLESUND", "x"][: random.integers(1, 7)]
    share = random.choice([0.0, 0.2])
    return lambda n: with_missing(random, pick(random, words, n), share)


def sentences(random):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it"]
    return lambda n: [" ".join(pick(random, words, int(random.integers(1, 12)))) for _ in range(n)]


def booleans(random):
    return lambda n: random.random(n) < 0.5


def times(random):
    start, unit = np.datetime64("2020-01-01"), str(random.choice(["s", "ms", "us", "ns"]))

    def draw(n):
        values = (start + random.integers(0, 1000, n).astype("m8[h]")).astype(f"M8[{unit}]")
        return pd.Series(values)

    return draw


def constant(random):
    value = pick(random, [1, 1.5, "x", True, dt.date(2020, 1, 1)], 1)[0]
    return lambda n: [value] * n


def vectors(random):
    width = int(random.integers(1, 4))
    return lambda n: list(random.normal(size=(n, width)))


def number_lists(random):
    return lambda n: [random.normal(size=random.integers(0, 5)).tolist() for _ in range(n)]


def category_lists(random):
    return lambda n: [pick(random, "abc", int(random.integers(0, 5))) for _ in range(n)]


PLAIN = {
    "normal": normal,
    "integers": integers,
    "few_integers": few_integers,
    "texts": texts,
    "sentences": sentences,
    "booleans": booleans,
    "times": times,
    "constant": constant,
}
"""Columns that all kinds of tables hold alike, so that predictions must be the same from each."""

LISTS = {"vectors": vectors, "number_lists": number_lists, "category_lists": category_lists}


# ------------------------------------------------------------------------------- numbers, nastier


def extreme_floats(random):
    chosen = pick(random, EXTREME_FLOATS, int(random.integers(1, 6)))
    kind = str(random.choice(["float64", "float32", "float16", "longdouble"]))

    def draw(n):
        with np.errstate(over="ignore"):
            return np.array(pick(random, chosen, n)).astype(kind)

    return draw


def huge_spread(random):
    return lambda n: random.normal(size=n) * 10.0 ** random.integers(-300, 300, n)


def extreme_integers(random):
    chosen = pick(random, EXTREME_INTEGERS, int(random.integers(1, 6)))
    return lambda n: pick(random, chosen, n)


def edge_integers(random):
    kind = str(random.choice(INTEGERS))
    limits = np.iinfo(kind)
    values = np.array([limits.min, limits.max, limits.max - 1, 0, 1], dtype=kind)
    return lambda n: random.choice(values, n)


def decimals(random):
    chosen = [decimal.Decimal(text) for text in ("1.10", "1E+30", "-0", "0.001", "12345678901")]
    if random.random() < 0.3:
        chosen += [decimal.Decimal(text) for text in ("NaN", "Infinity", "1E-400")]
    return lambda n: pick(random, chosen, n)


def complexes(random):
    return lambda n: random.normal(size=n) + 1j * random.normal(size=n)


def nullable(random):
    kinds = [
        "Int8",
        "Int64",
        "UInt64",
        "Float32",
        "Float64",
        "boolean",
        "string",
        "string[pyarrow]",
    ]
    kind = str(random.choice(kinds))

    def draw(n):
        values = random.integers(0, 2 if kind == "boolean" else 5, n)
        values = values.astype(bool) if kind == "boolean" else values
        series = pd.Series(values.astype(str) if "str" in kind else values, dtype=kind)
        return series.mask(random.random(n) < 0.3)

    return draw


def arrow_backed(random):
    kinds = [
        pa.int16(), pa.float32(), pa.string(), pa.large_string(), pa.bool_(), pa.date32(),
        pa.timestamp("ns"), pa.timestamp("us", "Europe/Oslo"), pa.duration("ms"), pa.time32("s"),
        pa.decimal128(12, 2), pa.binary(), pa.list_(pa.int64()), pa.null(),
        pa.dictionary(pa.int32(), pa.string()),
    ]  # fmt: skip
    kind = kinds[random.integers(len(kinds))]
    return lambda n: pd.Series(
        pd.arrays.ArrowExtensionArray(arrow_values(random, kind, n)), copy=False
    )


def sparse_series(random):
    fill = [0, np.nan, False][random.integers(3)]

    def draw(n):
        values = np.where(random.random(n) < 0.8, fill, 1).astype(type(fill))
        return pd.Series(pd.arrays.SparseArray(values, fill_value=fill))

    return draw


# --------------------------------------------------------------------------------- texts, nastier


def odd_texts(random):
    chosen = pick(random, ODD_TEXTS, int(random.integers(1, 6)))
    return lambda n: pick(random, chosen, n)


def decent_odd_texts(random):
    decent = [text for text in ODD_TEXTS if not any("\ud800" <= c <= "\udfff" for c in text)]
    chosen = pick(random, decent, int(random.integers(2, 9)))
    return lambda n: with_missing(random, pick(random, chosen, n), 0.1)


def number_texts(random):
    form = pick(random, ["{}", "{}.0", " {} ", "{:04d}", "{:,}", "${}", "{}%"], 1)[0]
    return lambda n: [form.format(int(value)) for value in random.integers(0, 3000, n)]


def mixed_case(random):
    return lambda n: pick(random, ["Oslo", "oslo", "OSLO", "oslo "], n)


def byte_strings(random):
    chosen = [b"a", b"", b"\xff\xfe", b"\0", "ø".encode(), b"abc"]
    chosen = chosen if random.random() < 0.5 else chosen[-1:] + chosen[:1]
    return lambda n: pick(random, chosen, n)


def numpy_texts(random):
    kind = str(random.choice(["U5", "S5"]))
    return lambda n: np.array(pick(random, ["a", "bb", "ccc", ""], n), dtype=kind)


def unique_texts(random):
    return lambda n: [f"id{value}" for value in random.integers(0, 2**60, n)]


# --------------------------------------------------------------------------------- pandas' types


def categories(random):
    odd = [
        [1, 2, 3],
        [1.5, np.inf],
        ["b", "a"],
        [True, False],
        [(1, 2), "x"],
        [b"a", b"b"],
        [0.0, 7],
    ]
    kinds = [
        *odd, pd.date_range("2020", periods=3), pd.interval_range(0, 3), pd.period_range("2020",
        periods=3),
        pd.timedelta_range("1h", periods=3), ["a", 1, None], ["x", "\ud800"], list("abcdefgh"),
    ]  # fmt: skip
    known = [value for value in kinds[random.integers(len(kinds))] if value is not None]
    if "\ud800" in known:
        known = pd.Index(known, dtype=object)
    ordered = bool(random.random() < 0.3)

    def draw(n):
        codes = random.integers(-1, len(known), n)
        return pd.Series(pd.Categorical.from_codes(codes, known, ordered=ordered))

    return draw


def periods(random):
    return lambda n: pd.Series(
        pd.period_range("2020", periods=5, freq="M")[random.integers(0, 5, n)]
    )


def intervals(random):
    return lambda n: pd.Series(pd.interval_range(0, 5)[random.integers(0, 5, n)])


# ------------------------------------------------------------------------------------------ times


def unit_times(random):
    unit, letter = str(random.choice(UNITS)), str(random.choice(["M", "M", "m"]))

    def draw(n):
        values = random.integers(-40, 40, n).astype(f"{letter}8[{unit}]")
        values[random.random(n) < 0.1] = "NaT"
        return values

    return draw


def extreme_times(random):
    values = ["0001-01-01", "9999-12-31", "1677-09-22", "2262-04-11", "1970-01-01"]
    held = [np.datetime64(value, "us") for value in values]
    if random.random() < 0.5:
        return lambda n: np.array(pick(random, held, n))
    days = [dt.date.fromisoformat(value) for value in values]
    return lambda n: with_missing(random, pick(random, days, n), 0.1)


def extreme_stamps(random):
    edges = np.array([-(2**63) + 1, 2**63 - 1, 0, 1, 2**62], dtype=np.int64)
    unit = str(random.choice(["s", "ms", "us", "ns"]))
    return lambda n: random.choice(edges, n).view(f"M8[{unit}]")


def zoned_times(random):
    zone = str(random.choice(ZONES))

    def draw(n):
        hours = random.integers(0, 24 * 365, n)
        return pd.Series(
            pd.Timestamp("2020", tz="UTC") + pd.to_timedelta(hours, "h")
        ).dt.tz_convert(zone)

    return draw


def python_times(random):
    zones = [None, dt.UTC, zoneinfo.ZoneInfo("Europe/Oslo"), dt.timezone(dt.timedelta(hours=5))]
    chosen = pick(random, zones, int(random.integers(1, 3)))
    values = [dt.datetime(2020, 1, 1 + i, 3, tzinfo=zone) for i in range(5) for zone in chosen]
    return lambda n: pick(random, values, n)


def mixed_times(random):
    values = [
        dt.datetime(2020, 1, 1), dt.date(2020, 1, 2), np.datetime64("2020-01-03"), pd.NaT, None,
        pd.Timestamp("2020-01-04"), pd.Timestamp("2020-01-04", tz="UTC"), "2020-01-05", 18000,
        np.datetime64("NaT"), dt.time(3), pd.Period("2020-01", "M"),
    ]  # fmt: skip
    chosen = pick(random, values, int(random.integers(2, 5)))
    return lambda n: pick(random, chosen, n)


def time_texts(random):
    form = pick(random, ["%Y-%m-%d", "%d/%m/%Y", "%Y-%m-%dT%H:%M:%SZ", "%H:%M"], 1)[0]
    start = dt.datetime(2020, 1, 1)
    return lambda n: [
        (start + dt.timedelta(hours=int(hours))).strftime(form)
        for hours in random.integers(0, 9999, n)
    ]


def clock_times(random):
    return lambda n: [dt.time(int(hour), 30) for hour in random.integers(0, 24, n)]


def durations(random):
    values = [dt.timedelta(hours=1), dt.timedelta.max, dt.timedelta(0), pd.Timedelta("1s"), None]
    chosen = values if random.random() < 0.3 else values[:1] + values[2:]
    return lambda n: pick(random, chosen, n)


# -------------------------------------------------------------------------------- Python objects


def mixed_objects(random):
    values = [
        1, 1.5, "x", None, np.nan, pd.NA, pd.NaT, True, b"x", np.int8(3), np.float32(2.5),
        np.str_("y"),
        np.bool_(True), np.datetime64("2020-01-01"), np.timedelta64(1, "D"), dt.date(2020, 1, 1),
        decimal.Decimal("1.5"), 2**70, uuid.UUID(int=1), Colour.RED, Colour.BLUE, (1, 2), [1],
        {"a": 1},
        {1, 2}, 1j, fractions.Fraction(1, 3), np.float64("nan"), np.array([1, 2]), np.longdouble(1),
        "\ud800", float("inf"), 1 << 63, np.uint64(2**64 - 1), frozenset(), range(3), object,
        len, ...,
    ]  # fmt: skip
    chosen = pick(random, values, int(random.integers(2, 5)))
    return lambda n: pick(random, chosen, n)


def number_objects(random):
    values = [
        1,
        2.5,
        np.int8(3),
        np.float32(0.5),
        np.int64(7),
        True,
        np.bool_(False),
        None,
        np.nan,
        pd.NA,
    ]
    chosen = pick(random, values, int(random.integers(2, 6)))
    return lambda n: pick(random, chosen, n)


def same_numbers(random):
    values = [1, 1.0, True, np.int64(1), "1", "1.0", 0, -0.0, 0.0, "0"]
    chosen = pick(random, values, int(random.integers(2, 5)))
    return lambda n: pick(random, chosen, n)


def named_objects(random):
    values = [[uuid.UUID(int=i) for i in range(4)], [*Colour, None], [object(), object()]]
    chosen = values[random.integers(3)]
    return lambda n: pick(random, chosen, n)


def missing(random):
    value = pick(random, [None, np.nan, pd.NA, pd.NaT, np.datetime64("NaT")], 1)[0]
    return lambda n: [value] * n


def missing_mix(random):
    return lambda n: pick(random, [None, np.nan, pd.NA, pd.NaT], n)


# ------------------------------------------------------------------------------ lists and structs


def odd_lists(random):
    values = [
        [], None, [None], [1, None], [1.5, np.nan], ["a", None], ["\ud800"], [[1], [2, 3]],
        [[]], [1, "a"],
        (1, 2), np.array([1.0, 2.0]), np.array([]), [dt.datetime(2020, 1, 1)], [np.inf],
        [2**63], {},
        [{"a": 1}], [pd.NaT], [True, False], np.array(["a", None], dtype=object),
        [np.datetime64("2020")],
        [10**400], [dt.date(2020, 1, 1), None], [b"x"], np.array(["2020"], "M8[ns]"), [1, 2.5],
    ]  # fmt: skip
    chosen = pick(random, values, int(random.integers(1, 4)))
    return lambda n: pick(random, chosen, n)


def empty_lists(random):
    value = [[], None, [None]][random.integers(3)]
    return lambda n: [value] * n


def ragged_vectors(random):
    kind = str(random.choice(["float32", "int64", "bool", "M8[ns]"]))
    return lambda n: [np.zeros(random.integers(0, 4)).astype(kind) for _ in range(n)]


def matrix(random):
    shape = [(0,), (1,), (3,), (2, 2)][random.integers(4)]
    return lambda n: random.normal(size=(n, *shape))


def structs(random):
    values = [
        {"a": 1, "b": "x"}, {"a": 2}, {"b": None}, {}, None, {"a": None, "c": 1.5}, {"a": {"b": 1}},
        {"a": [1, 2]}, {"": 1}, {1: 2}, {"a.b": 1}, {"a": dt.date(2020, 1, 1)}, {"a": "\ud800"},
    ]  # fmt: skip
    chosen = pick(random, values, int(random.integers(1, 4)))
    return lambda n: pick(random, chosen, n)


def events(random):
    """Lists of events, each of which several things are known of."""
    start = dt.datetime(2026, 1, 1)

    def event():
        return {
            "time": start + dt.timedelta(hours=int(random.integers(0, 1000))),
            "item": pick(random, ["tea", "cup", "pot", None], 1)[0],
            "amount": float(random.normal()),
        }

    def draw(n):
        made = [[event() for _ in range(random.integers(0, 5))] for _ in range(n)]
        return [sorted(row, key=lambda each: each["time"]) for row in made]

    return draw


def odd_events(random):
    values = [
        [{"t": 1.0, "v": "a"}], [], None, [{"t": None, "v": None}], [None], [{}], [{"t": 2.0}],
        [{"v": [1]}], [{"t": 1.0, "v": "a"}, {"t": 0.5, "v": "\uffff"}],
        [{"t": dt.datetime(2020, 1, 1)}],
    ]  # fmt: skip
    chosen = pick(random, values, int(random.integers(1, 4)))
    return lambda n: pick(random, chosen, n)


NASTY = {
    function.__name__: function
    for function in (
        extreme_floats, huge_spread, extreme_integers, edge_integers, decimals, complexes, nullable,
        arrow_backed, sparse_series, odd_texts, decent_odd_texts, number_texts, mixed_case,
        byte_strings, numpy_texts, unique_texts, categories, periods, intervals, unit_times,
        extreme_times, extreme_stamps, zoned_times, python_times, mixed_times, time_texts,
        clock_times, durations, mixed_objects, number_objects, same_numbers, named_objects, missing,
        missing_mix, odd_lists, empty_lists, ragged_vectors, matrix, structs, events, odd_events,
    )
}  # fmt: skip

UNKNOWN_TO_ARROW = {
    "mixed_objects",
    "mixed_times",
    "odd_lists",
    "structs",
    "odd_events",
    "missing_mix",
}
"""Kinds that Arrow's own conversion may end the process on: generating must not."""


# -------------------------------------------------------------------------------- Arrow and polars


def arrow_kinds():
    item = pa.struct([("a", pa.int64()), ("b", pa.string())])
    return [
        pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.string(),
        pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
        pa.binary(3), pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.timestamp("s"),
        pa.timestamp("ns", "America/New_York"), pa.duration("us"), pa.month_day_nano_interval(),
        pa.decimal128(20, 3), pa.decimal256(50, 3), pa.list_(pa.float32()),
        pa.large_list(pa.string()),
        pa.list_view(pa.int64()), pa.list_(pa.float64(), 2), pa.list_(pa.list_(pa.int64())), item,
        pa.list_(item), pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.int32(), pa.date32()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.run_end_encoded(pa.int32(),
        pa.string()),
        pa.list_(pa.timestamp("ns")), pa.list_(pa.null()), pa.struct([]),
    ]  # fmt: skip


def arrow_value(random, kind):
    """Draw a Python value that Arrow reads as a type."""
    types = pa.types
    number = int(random.integers(0, 5))
    if types.is_nested(kind) and not types.is_map(kind):
        if types.is_struct(kind):
            return {field.name: arrow_value(random, field.type) for field in kind}
        length = kind.list_size if types.is_fixed_size_list(kind) else number
        return [arrow_value(random, kind.value_type) for _ in range(length)]
    if types.is_map(kind):
        return [("k", number)]
    if types.is_dictionary(kind):
        return arrow_value(random, kind.value_type)
    if types.is_null(kind):
        return None
    if types.is_boolean(kind):
        return number < 2
    if types.is_integer(kind):
        return number
    if types.is_decimal(kind):
        return decimal.Decimal(number)
    if types.is_floating(kind):
        return np.float16(number) if types.is_float16(kind) else float(number)
    if types.is_fixed_size_binary(kind):
        return b"abc"
    if "binary" in str(kind):
        return [b"a", b"", b"\xff"][number % 3]
    if types.is_date(kind):
        return dt.date(2020, 1, 1 + number)
    if types.is_time(kind):
        return dt.time(number)
    if types.is_timestamp(kind):
        return dt.datetime(2020, 1, 1 + number)
    if types.is_duration(kind):
        return dt.timedelta(hours=number)
    if types.is_interval(kind):
        return pa.MonthDayNano([number, 0, 0])
    return "abcde"[number]


def arrow_values(random, kind, n):
    """Draw an array of a type, missing values among its values."""
    if pa.types.is_run_end_encoded(kind):
        return pa.RunEndEncodedArray.from_arrays(pa.array([n], pa.int32()), pa.array(["a"]))
    values = [None if random.random() < 0.15 else arrow_value(random, kind) for _ in range(n)]
    if pa.types.is_dictionary(kind) and random.random() < 0.5:
        held = [*dict.fromkeys(value for value in values if value is not None), None]
        codes = pa.array([held.index(value) for value in values], kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, pa.array(held, kind.value_type))
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def arrow_column(random):
    kinds = arrow_kinds()
    kind = kinds[random.integers(len(kinds))]
    return lambda n: arrow_values(random, kind, n)


def invalid_utf8(random):
    """Text that other programs wrote without a check."""

    def draw(n):
        offsets = pa.array(np.arange(n + 1, dtype=np.int32)).buffers()[1]
        data = pa.py_buffer(bytes(pick(random, [65, 66, 255], n)))
        return pa.StringArray.from_buffers(n, offsets, data)

    return draw


def polars_column(random):
    kinds = [
        pl.Int128, pl.Int8, pl.UInt64, pl.Float32, pl.Boolean, pl.String, pl.Categorical,
        pl.Enum(["0", "1", "2", "3", "4", "unused"]), pl.Date, pl.Datetime("ms"),
        pl.Datetime("ns", "Europe/Oslo"), pl.Time, pl.Duration("ms"), pl.Decimal(10, 2), pl.Binary,
        pl.Null, pl.Object, pl.List(pl.Int64), pl.Array(pl.Float64, 2), pl.List(pl.String),
        pl.Struct({"a": pl.Int64, "b": pl.String}), pl.List(pl.Struct({"t": pl.Float64})),
    ]  # fmt: skip
    kind = kinds[random.integers(len(kinds))]

    def draw(n):
        numbers = [None if random.random() < 0.1 else int(random.integers(0, 5)) for _ in range(n)]
        return polars_series(numbers, kind)

    return draw


def named_time(number):
    return {"t": float(number)}


def polars_series(numbers, kind):
    forms = {
        pl.Object: lambda i: uuid.UUID(int=i),
        pl.Null: lambda i: None,
        pl.Date: lambda i: dt.date(2020, 1, 1 + i),
        pl.Datetime: lambda i: dt.datetime(2020, 1, 1 + i),
        pl.Time: dt.time,
        pl.Duration: lambda i: dt.timedelta(hours=i),
        pl.Decimal: decimal.Decimal,
        pl.Binary: lambda i: bytes([i + 65]),
        pl.Array: lambda i: [float(i), 0.0],
        pl.Struct: lambda i: {"a": i, "b": str(i)},
    }
    form = forms.get(
        kind.base_type(), str if kind.base_type() in (pl.String, pl.Categorical, pl.Enum) else int
    )
    if isinstance(kind, pl.List):
        inner = kind.inner
        items = int if inner == pl.Int64 else str if inner == pl.String else named_time
        form = lambda i: [items(j) for j in range(i)]  # noqa: E731
    if isinstance(kind, pl.Datetime) and kind.time_zone:
        zone = zoneinfo.ZoneInfo(kind.time_zone)
        form = lambda i: dt.datetime(2020, 1, 1 + i, tzinfo=zone)  # noqa: E731
    values = [None if i is None else form(i) for i in numbers]
    return pl.Series("", values, dtype=kind)
