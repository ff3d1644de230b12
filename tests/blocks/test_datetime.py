import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import SpelledValuesWarning, TableEncoder
from sk_easytensor.blocks import DatetimeBlock
from sk_easytensor.blocks.datetime import CYCLES, read_times
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table

HOURS = pd.date_range("2022-01-01", "2024-12-31", freq="7h")
OSLO = HOURS.tz_localize("UTC").tz_convert("Europe/Oslo")


def encode(block, values):
    return block.transform({"t": values})["times"][:, 0]


def same(block, left, right):
    torch.testing.assert_close(
        encode(block, left), encode(block, right), rtol=0, atol=0, equal_nan=True
    )


def phases(values, zone=None):
    return read_times(as_table({"t": values}).column("t"), "t", zone)[1]


@pytest.fixture(scope="module")
def naive():
    return DatetimeBlock().fit({"t": HOURS})


@pytest.fixture(scope="module")
def aware():
    return DatetimeBlock().fit({"t": OSLO})


def test_every_flavour_encodes_the_same(flavour):
    stamps = pd.Series(HOURS[:9]).where(np.arange(9) != 4)
    frame = pd.DataFrame(
        {
            "naive": stamps,
            "aware": stamps.dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata"),
            "text": stamps.dt.strftime("%Y-%m-%dT%H:%M"),
        }
    )
    block = DatetimeBlock().fit(frame)
    expected = block.transform(frame)["times"]
    # NumPy and Python have no zone for a column; what they hold denotes the same instants.
    held = flavour(frame)
    found = block.transform(held)["times"]
    lists = isinstance(held, dict) and isinstance(held["aware"], np.ndarray)
    columns = [0, 2] if lists else [0, 1, 2]
    torch.testing.assert_close(found[:, columns], expected[:, columns], equal_nan=True)


def test_dates_are_midnights(naive):
    days = [dt.date(2023, 5, 6), None, dt.date(1969, 12, 31)]
    stamps = np.array(["2023-05-06T00", "NaT", "1969-12-31T00"], "M8[s]")
    same(naive, days, stamps)
    same(naive, pa.array(days, pa.date64()), stamps)
    same(naive, pl.Series(days), stamps)
    same(naive, ["2023-05-06", None, "1969-12-31"], stamps)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Oslo"])
def test_the_unit_does_not_matter(unit, zone, naive, aware):
    seconds = pa.array([1_700_000_000, -1, None, -5_000_000_000], pa.int64())
    block = aware if zone else naive
    base = seconds.cast(pa.timestamp("s", zone))
    same(block, base.cast(pa.timestamp(unit, zone)), base)


def test_fractions_count_alike_in_all_units(naive):
    values = [dt.datetime(2023, 1, 1, 5, 0, 0, 250_000), dt.datetime(1960, 1, 1, 5, 0, 0, 250_000)]
    stamps = [pa.array(values, pa.timestamp(unit)) for unit in ("ms", "us", "ns")]
    same(naive, stamps[0], stamps[1])
    same(naive, stamps[0], stamps[2])
    same(naive, stamps[0], ["2023-01-01T05:00:00.25", "1960-01-01 05:00:00.250000000"])


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "+05:30", "-03:00"])
def test_the_same_instants_in_another_zone(zone, aware):
    assert aware.zones_ == ["Europe/Oslo"]
    same(aware, OSLO, OSLO.tz_convert(zone))
    same(aware, OSLO, OSLO.tz_convert(zone).strftime("%Y-%m-%dT%H:%M:%S%z").to_list())


def test_naive_input_is_local_for_an_aware_fit(aware):
    local = OSLO.tz_localize(None)
    ambiguous = local.duplicated(keep=False)
    same(aware, OSLO[~ambiguous], local[~ambiguous])
    same(aware, OSLO[:50], local[:50].strftime("%Y-%m-%d %H:%M:%S").to_list())
    # Skipped and repeated hours exist on no clock or twice; both are read.
    assert torch.isfinite(encode(aware, ["2024-03-31 02:30", "2024-10-27 02:30"])).all()


def test_aware_input_is_wall_clock_for_a_naive_fit(naive):
    assert naive.zones_ == [None]
    same(naive, OSLO, OSLO.tz_localize(None))
    same(naive, ["2024-05-01T10:00+02:00", "2024-05-01T10:00Z"], ["2024-05-01T10:00"] * 2)


def test_cycles_are_those_of_the_wall_clock():
    winter, summer = pd.Timestamp("2024-01-15 08:00"), pd.Timestamp("2024-07-15 08:00")
    clock = pd.DatetimeIndex([winter, summer]).tz_localize("Europe/Oslo").tz_convert("UTC")
    np.testing.assert_allclose(phases(clock, "Europe/Oslo")[:, 0], 8 / 24)
    assert phases(clock, "UTC")[0, 0] != phases(clock, "UTC")[1, 0]


@given(st.datetimes(dt.datetime(1600, 1, 1), dt.datetime(2500, 1, 1)))
def test_phases_are_those_of_the_calendar(value):
    day, week, month, year = phases(pa.array([value], pa.timestamp("us")))[0]
    midnight = value.replace(hour=0, minute=0, second=0, microsecond=0)
    assert day == pytest.approx((value - midnight) / dt.timedelta(days=1))
    assert week == pytest.approx(value.weekday() / 7)
    assert month == pytest.approx((value.day - 1) / pd.Timestamp(value).days_in_month)
    length = 366 if pd.Timestamp(value).is_leap_year else 365
    assert year == pytest.approx((value.timetuple().tm_yday - 1) / length)


def test_weekdays_can_be_told_apart_linearly():
    days = pd.date_range("2024-01-01", periods=70)
    block = DatetimeBlock().fit({"t": days})
    names = block.get_feature_names_out()
    week = [place for place, name in enumerate(names) if "_week_" in name]
    assert len(week) == 6
    features = block.flatten(block.transform({"t": days}))[:, week]
    design = np.column_stack([np.ones(70), features])
    targets = np.eye(7)[days.day_of_week]
    solution, *_ = np.linalg.lstsq(design, targets, rcond=None)
    np.testing.assert_allclose(design @ solution, targets, atol=1e-5)


def test_constant_cycles_are_left_out():
    days = pd.date_range("2024-01-01", periods=70)
    block = DatetimeBlock().fit({"day": days, "same": days[:1].repeat(70), "hour": HOURS[:70]})
    whole_month = [False, True, True, False]
    assert block.cycles_.tolist() == [whole_month, [False] * 4, [True, True, False, False]]
    times = block.transform({"day": HOURS[:9], "same": HOURS[:9], "hour": HOURS[:9]})["times"]
    assert times.shape == (9, 3, 2 + 2 * (4 + 3 + 4))
    assert (times[:, 0, 2:10] == 0).all()
    assert (times[:, 1, 2:] == 0).all()
    assert (times[:, 2, 2:16] != 0).any(dim=0).all()
    assert (times[:, 2, 16:] == 0).all()
    only = DatetimeBlock().fit({"t": days})
    same(only, ["2024-01-05"], ["2024-01-05"])
    assert not [name for name in only.get_feature_names_out() if "_day_" in name]


@pytest.mark.parametrize(
    ("first", "last", "spanned"),
    [
        ("2024-01-01 08:00", "2024-01-01 20:00", []),
        ("2024-01-01 08:00", "2024-01-02 07:00", ["day"]),
        ("2024-01-29", "2024-02-03", []),
        ("2024-01-29", "2024-02-05", ["week"]),
        ("2024-01-25", "2024-02-20", ["week"]),
        ("2024-01-25", "2024-02-25", ["week", "month"]),
        ("2023-06-01", "2024-03-01", ["week", "month"]),
        ("2023-06-01", "2024-06-01", ["week", "month", "year"]),
    ],
)
def test_a_cycle_is_used_only_if_spanned_as_a_whole(first, last, spanned):
    stamps = pd.date_range(first, last, freq="D").append(pd.DatetimeIndex([last]))
    (used,) = DatetimeBlock().fit({"t": stamps}).cycles_
    assert [cycle for cycle, one in zip(CYCLES, used, strict=True) if one] == spanned


def test_the_span_is_that_of_all_chunks():
    days = pd.date_range("2024-01-01", periods=40)
    tables = [as_table({"t": days[start : start + 5]}) for start in range(0, 40, 5)]
    block = DatetimeBlock().fit_columns(tables[0])
    assert not block.finish(block.summarize(tables[0])).cycles_.any()
    block.finish(merge_all(block.summarize(table) for table in tables))
    assert block.cycles_.tolist() == [[False, True, True, False]]


def test_without_a_trend_only_cycles_are_read():
    days = pd.date_range("2024-01-01", periods=70)
    block = DatetimeBlock(trend=False).fit({"t": [*days, None]})
    assert not any("trend" in name for name in block.get_feature_names_out())
    assert block.flatten(block.transform({"t": days[:2]})).shape == (
        2,
        len(block.get_feature_names_out()),
    )
    # The same day of the week and of the month, years apart.
    same(block, ["2024-01-01"], ["2029-01-01"])
    module = block.make_module()
    module.train()
    output = module(**block.transform({"t": ["2024-01-01", "2029-01-01", "2024-01-02", None]}))
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output[0], output[1])
    assert not torch.allclose(output[0], output[2])
    assert not torch.allclose(output[0], output[3])
    with_trend = encode(DatetimeBlock().fit({"t": days}), ["2024-01-01", "2029-01-01"])
    assert with_trend[0, 0] != with_trend[1, 0]


def test_without_trend_and_cycles_dates_are_at_least_told_from_missing_ones():
    block = DatetimeBlock(trend=False).fit({"t": ["2024-01-01", None]})
    assert block.get_feature_names_out().tolist() == ["t_missing"]
    assert block.flatten(block.transform({"t": ["2030-01-01", None]})).tolist() == [[0], [1]]


def test_years_far_away(naive, aware):
    days = [dt.date(1, 1, 1), dt.date(1700, 1, 1), dt.date(2300, 1, 1), dt.date(9999, 12, 31)]
    for block in (naive, aware):
        encoded = encode(block, days)
        assert torch.isfinite(encoded).all()
        assert (encoded[:, 0].diff() > 0).all()
        same(block, days, [day.isoformat() for day in days])
    for zone in (None, "UTC", "Europe/Oslo"):
        extreme = pa.array([2**62, -(2**62), None], pa.timestamp("s", zone))
        for block in (naive, aware, DatetimeBlock().fit({"t": extreme})):
            encoded = encode(block, extreme)
            assert torch.isfinite(encoded[:2]).all()
            assert torch.isnan(encoded[2]).all()
    assert torch.isfinite(encode(naive, pa.array([2**31 - 1, -(2**31)], pa.date32()))).all()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["2024-01-01", None, "2023-12-31T10:00"], True),
        (["2024-01-01 10:00:00.123456789+02:00", ""], True),
        (["2024-01-01T10:00Z"], True),
        (["2024-01-01T10:00:00,5 -0330", "2024-01-01T10:00+02"], True),
        (["2024-01-01", "soon"], False),
        (["2024-13-01"], False),
        (["2023-02-29"], False),
        (["2024-02-29"], True),
        (["2024-01-01T24:00"], False),
        (["2024-01"], False),
        (["20240101"], False),
        (["01/02/2024"], True),
        (["01/02/2024", "2024-02-01"], False),
        (["2024-01-01x"], False),
        (["", "  "], False),
        ([None, None], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_detects_iso_strings(values, found, kind):
    column = pa.chunked_array([pa.array(values, kind), pa.array([], kind)])
    assert DatetimeBlock.detects(column) is found
    assert not DatetimeBlock.detects(column.dictionary_encode())


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("ns", "UTC")])
def test_detects_dates(kind):
    assert DatetimeBlock.detects(pa.chunked_array([], kind))
    assert not DatetimeBlock.detects(pa.chunked_array([], pa.int64()))
    assert not DatetimeBlock.detects(pa.chunked_array([], pa.time32("s")))


@pytest.mark.parametrize("wrong", ["soon", "2024-02-30", "2024-01-01T10:61"])
def test_unreadable_strings_name_column_and_value(wrong, naive):
    with pytest.raises(
        TypeError, match=f"column 't' holds '{wrong}' in row 1, which is not an ISO 8601"
    ):
        naive.transform({"t": ["2024-01-01", wrong, None]})
    with pytest.raises(TypeError, match=f"column 't' holds '{wrong}'"):
        DatetimeBlock().fit({"t": ["2024-01-01", wrong]})


def test_blank_strings_are_missing(naive):
    same(naive, ["2024-01-01", "", " "], ["2024-01-01", None, None])


def test_zones_of_strings():
    one = ["2024-01-01T10:00+02:00", "2024-07-01T11:00+02:00"]
    assert DatetimeBlock().fit({"t": one}).zones_ == ["+02:00"]
    assert DatetimeBlock().fit({"t": [*one, "2024-07-01T10:00-03:30"]}).zones_ == ["UTC"]
    assert DatetimeBlock().fit({"t": ["2024-07-01T10:00Z"]}).zones_ == ["UTC"]
    assert DatetimeBlock().fit({"t": ["2024-07-01T10:00"]}).zones_ == [None]
    # Their clock shows 10 and 11, not 8 and 9.
    np.testing.assert_allclose(phases(one, "+02:00")[:, 0] * 24, [10, 11])


def test_zones_merge_in_any_order():
    tables = [
        as_table({"t": ["2024-07-01T10:00" + offset]}) for offset in ("", "+02:00", "-03:30", "Z")
    ]
    block = DatetimeBlock().fit_columns(tables[0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        summary = merge_all(block.summarize(tables[i]) for i in order)
        assert block.finish(summary).zones_ == ["UTC"]
        assert len(summary["t"].zones) <= 2
    summary = merge_all(block.summarize(table) for table in tables[:2])
    assert block.finish(summary).zones_ == ["+02:00"]


def test_unknown_zones_name_the_column():
    column = pa.array([0], pa.timestamp("s", "Mars/Olympus"))
    with pytest.raises(ValueError, match="column 't' has the time zone 'Mars/Olympus'"):
        DatetimeBlock().fit({"t": column})


def test_missing_dates_have_a_learned_vector(naive):
    module = naive.make_module()
    with torch.no_grad():
        module.trend.missing.fill_(7.0)
    output = module(**naive.transform({"t": ["2024-01-01", None]}))
    torch.testing.assert_close(output[1], torch.full_like(output[1], 7.0))
    output.sum().backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    # No date is infinite.
    assert gradients.pop("trend.infinite") is None
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name


def test_a_cycle_can_be_learned():
    rng = np.random.default_rng(0)
    stamps = pd.to_datetime(rng.integers(1.6e9, 1.7e9, 2000), unit="s")
    target = torch.tensor((stamps.day_of_week < 2) * 1.0 + np.sin(stamps.hour / 12 * np.pi))
    block = DatetimeBlock().fit({"t": stamps})
    torch.manual_seed(0)
    module = block.make_module()
    encoding = block.transform({"t": stamps})
    with torch.no_grad():
        features = torch.cat([module(**encoding), torch.ones(2000, 1)], dim=1)
    solution = torch.linalg.lstsq(features.double(), target[:, None]).solution
    residual = (features.double() @ solution)[:, 0] - target
    # A fixed random projection to 16 features does not hold all, learning it does better.
    before = residual.square().mean()
    head = torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (head(module(**encoding))[:, 0] - target.float()).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 < before


@pytest.mark.parametrize(
    ("name", "value"), [("harmonics", 0), ("width", 1.5), ("bins", "8"), ("trend", 1.5)]
)
def test_parameter_errors(name, value):
    with pytest.raises(ValueError, match=f"DatetimeBlock: {name} must be"):
        DatetimeBlock(**{name: value}).fit({"t": HOURS})


def test_wrong_type_names_the_block_to_use(naive):
    message = "'t' of type int64 cannot be read by DatetimeBlock.*CategoryBlock or NumericBlock"
    with pytest.raises(TypeError, match=message):
        DatetimeBlock().fit({"t": [1, 2]})
    with pytest.raises(TypeError, match=message):
        naive.transform({"t": [1, 2]})


@pytest.mark.parametrize(
    "bad",
    [
        *["soon", "-1", "2024-13-01", "2024-02-30", "2024-01-01x", "99999-01-01"],
        *["2024-01-01T25:00", "2024-01-01T10:00+24:00", "2024-01-01T10:00+99:99"],
    ],
)
@pytest.mark.parametrize("row", [0, 1, 2999])
def test_one_bad_value_makes_a_column_a_category(bad, row):
    """Also in a row that a sample would leave out."""
    days = [f"2024-01-{1 + i % 28:02}" for i in range(3000)]
    assert list(TableEncoder().fit({"day": days}).blocks_) == ["datetime"]
    days[row] = bad
    with pytest.warns(SpelledValuesWarning, match="'day' .* of 3000 values are dates"):
        encoder = TableEncoder().fit({"day": days})
    assert list(encoder.blocks_) == ["category"]
    assert encoder.transform({"day": ["2024-01-01", bad, "worse"]}).shape == (3, 1)
