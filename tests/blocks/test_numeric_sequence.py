import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.blocks import NumericBlock, NumericSequenceBlock, numeric_sequence
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.tensors import Ragged

# Short series are cut on purpose; test_sequences.py has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

SERIES = {
    "x": [[1.0, 2.0, 9.0], [], None, [4.0]],
    "y": [[5.0, None, 7.0], None, [], [6.0]],
}

numbers = st.none() | st.floats(-100, 100, width=16)
rows = st.none() | st.lists(numbers, max_size=5)


def encode(block, **data):
    return {name: lists.values.numpy() for name, lists in block.transform(data).items()}


def output_of(block, **data):
    torch.manual_seed(0)
    return block.make_module().eval()(**block.transform(data))


def test_channels_are_scaled_like_numbers():
    rng = np.random.default_rng(0)
    items = rng.normal(3, 10, size=60)
    block = NumericSequenceBlock().fit({"x": np.split(items, [5, 5, 30, 31])})
    plain = NumericBlock(bins=128).fit({"x": items})
    assert block.center_ == pytest.approx(plain.center_)
    assert block.scale_ == pytest.approx(plain.scale_)
    found = encode(block, x=[items[:7], items[7:7], items[7:]])["values_0"]
    np.testing.assert_array_equal(found, plain.transform({"x": items})["values"][:, 0, 0].numpy())


def test_each_channel_has_its_own_scale():
    block = NumericSequenceBlock().fit(SERIES)
    assert block.center_.tolist() == [3, 6]
    assert block.missing_fraction_.tolist() == [0, 0.25]
    encoded = encode(block, x=[[3.0, 3.0 + block.scale_[0]]], y=[[6.0, 6.0 - block.scale_[1]]])
    np.testing.assert_allclose(encoded["values_0"], [0, 1 / np.hypot(1, 1 / 3)])
    np.testing.assert_allclose(encoded["values_1"], [0, -1 / np.hypot(1, 1 / 3)])


def test_encoding_is_parallel():
    block = NumericSequenceBlock().fit(SERIES)
    encoding = block.transform(SERIES)
    assert list(encoding) == ["values_0", "values_1"]
    assert block.encoding_columns(encoding) == {"values_0": ["x"], "values_1": ["y"]}
    assert encoding["values_0"].offsets is encoding["values_1"].offsets
    assert encoding["values_0"].lengths.tolist() == [3, 0, 0, 1]
    assert encoding["values_0"].values.dtype == torch.float32


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3, None], []],
        [[decimal.Decimal(1), 2], [3, None], []],
        [[dt.timedelta(seconds=1), dt.timedelta(seconds=2)], [dt.timedelta(seconds=3), None], []],
        [[dt.time(0, 0, 1), dt.time(0, 0, 2)], [dt.time(0, 0, 3), None], []],
        pa.array([[1.0, 2.0], [3.0, None], []]).cast(pa.list_(pa.float16())),
        pa.array([[1, 2], [3, None], []], pa.list_(pa.uint8())),
        [np.array([1, 2], np.float32), np.array([3, np.nan]), np.array([])],
    ],
)
def test_every_type_of_numbers(values):
    block = NumericSequenceBlock().fit({"x": [[1.0, 2.0], [3.0]]})
    expected = encode(block, x=[[1.0, 2.0], [3.0, None], []])["values_0"]
    np.testing.assert_array_equal(encode(block, x=values)["values_0"], expected)
    assert NumericSequenceBlock().fit({"x": values}).center_.tolist() == [2]


def test_booleans_are_numbers_too():
    block = NumericSequenceBlock().fit({"x": [[True, False], [None]]})
    found = encode(block, x=[[True, False, None], [1]][:1])["values_0"]
    np.testing.assert_array_equal(found, encode(block, x=[[1.0, 0.0, None]])["values_0"])


@given(values=st.lists(rows, min_size=1, max_size=8), cut=st.integers(0, 8))
def test_fitting_in_parts(values, cut, assert_same_fit):
    table = pa.table({"x": pa.array(values, pa.list_(pa.float64()))})
    table = table.append_column("y", table["x"])
    whole = NumericSequenceBlock(max_length=3).fit(table)
    parts = NumericSequenceBlock(max_length=3).fit_columns(table)
    chunks = [table.slice(cut), table.slice(0, cut)]
    assert_same_fit(parts.finish(merge_all(parts.summarize(chunk) for chunk in chunks)), whole)


@given(values=st.lists(rows, min_size=1, max_size=8))
def test_any_series(values):
    column = pa.array(values, pa.list_(pa.float64()))
    block = NumericSequenceBlock(width=4).fit({"x": column})
    lists = block.transform({"x": column})["values_0"]
    items = [item for items in values for item in items or []]
    np.testing.assert_array_equal(np.isnan(lists.values.numpy()), [item is None for item in items])
    assert torch.isfinite(output_of(block, x=column)).all()
    matrix = block.flatten(block.transform({"x": column}))
    assert np.isfinite(matrix).all()
    assert matrix[:, -1].tolist() == [len(items or []) for items in values]


def test_missing_steps_count_as_the_median_unless_fit_saw_any():
    block = NumericSequenceBlock().fit({"x": [[1.0, 2.0, 3.0]], "y": [[1.0, None, 5.0]]})
    # x has no indicator, y has one.
    assert block.make_module().encoder.reader.layers[0].in_channels == 3
    gone, median = output_of(block, x=[[1.0, None], [1.0, 2.0]], y=[[2.0, 2.0]] * 2)
    torch.testing.assert_close(gone, median)
    gone, median = output_of(block, x=[[2.0, 2.0]] * 2, y=[[1.0, None], [1.0, 3.0]])
    assert not torch.allclose(gone, median)


def test_infinite_and_extreme_steps():
    block = NumericSequenceBlock().fit({"x": [[1.0, 2.0], [3.0, np.inf]]})
    steps = [[np.inf, -np.inf, 1e300, -1e300]]
    assert encode(block, x=steps)["values_0"].tolist() == [np.inf, -np.inf, 3, -3]
    assert torch.isfinite(output_of(block, x=steps)).all()
    assert block.flatten(block.transform({"x": steps})).tolist() == [[0, 3, -3, 3, -3, 4]]


def test_flatten_describes_each_channel():
    block = NumericSequenceBlock().fit(SERIES)
    features = ["mean", "deviation", "lowest", "highest", "last"]
    names = [f"{name}_{feature}" for name in "xy" for feature in features]
    assert block.get_feature_names_out().tolist() == [*names, "x_length"]
    rows = {"x": [[1.0, 9.0, 2.0], None, [5.0]], "y": [[7.0, 5.0, None], [], [None]]}
    encoded = encode(block, **rows)
    x, y = encoded["values_0"], encoded["values_1"]
    expected = [
        [
            x[:3].mean(),
            x[:3].std(),
            x[0],
            x[1],
            x[2],
            y[:2].mean(),
            y[:2].std(),
            y[1],
            y[0],
            y[1],
            3,
        ],
        [0] * 11,
        [x[3], 0, x[3], x[3], x[3], 0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(block.flatten(block.transform(rows)), expected, atol=1e-6)


def test_long_series_are_read_in_pieces(monkeypatch, assert_same_fit):
    rng = np.random.default_rng(0)
    data = {"x": [rng.normal(size=size).tolist() for size in (7, 0, 30, 3)]}
    whole = NumericSequenceBlock().fit(data)
    expected = encode(whole, **data)["values_0"]
    monkeypatch.setattr(numeric_sequence, "CHUNK", 8)
    parts = NumericSequenceBlock().fit(data)
    assert_same_fit(parts, whole)
    np.testing.assert_array_equal(encode(parts, **data)["values_0"], expected)


def test_channels_of_unlike_lengths_name_columns_and_row():
    block = NumericSequenceBlock().fit(SERIES)
    with pytest.raises(ValueError, match="columns 'x' and 'y' have 2 and 1 items in row 1"):
        block.transform({"x": [[1.0], [1.0, 2.0]], "y": [[1.0], [1.0]]})


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([[1.0], [1.0, 2.0]], pa.list_(pa.float64()), True),
        ([[1.0], [1.0, 2.0]], pa.large_list(pa.float32()), True),
        ([[1]], pa.list_(pa.duration("s")), True),
        ([[1]], pa.list_(pa.time32("s")), True),
        ([[1]], pa.list_(pa.int64()), False),
        ([["a"]], pa.list_(pa.string()), False),
        ([1.0], pa.float64(), False),
        ([None], pa.null(), False),
    ],
    ids=str,
)
def test_detects(values, kind, found):
    assert NumericSequenceBlock.detects(pa.chunked_array([pa.array(values, kind)])) is found


def test_series_of_one_length_are_one_block():
    columns = {"a": [[1.0], [1.0, 2.0]], "b": [[1.0, 2.0], [3.0]], "c": [[3.0], [4.0, None]]}
    columns |= {"d": [["x"], ["x", "y"]], "e": [None, [1.0]]}
    table = as_table(columns)
    assert NumericSequenceBlock.assign_columns(table, list("abcde")) == [["a", "c"], ["b", "e"]]
    assert NumericSequenceBlock.assign_columns(table, ["b", "c", "d"]) == [["b"], ["c"]]
    assert NumericSequenceBlock.assign_columns(table, ["d"]) == []


def sample_of(lists):
    flat = np.concatenate([np.zeros(0), *map(np.asarray, lists)])
    offsets = torch.tensor(np.cumsum([0, *map(len, lists)]))
    return numeric_sequence.SeriesSample.of([Ragged(torch.from_numpy(flat), offsets)])


def held(sample):
    return [
        part.tolist() for part in sample.lists[0].values.split(sample.lists[0].lengths.tolist())
    ]


@given(st.lists(st.lists(st.floats(-9, 9), max_size=6), min_size=3, max_size=30), st.data())
def test_a_sample_does_not_depend_on_how_rows_are_divided(lists, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numeric_sequence, "MAX_SERIES", 5)
        patch.setattr(numeric_sequence, "MAX_STEPS", 12)
        whole = sample_of(lists)
        first, second = sorted(data.draw(st.tuples(*[st.integers(0, len(lists))] * 2)))
        parts = [sample_of(part) for part in (lists[:first], lists[first:second], lists[second:])]
        for order in (parts, parts[::-1]):
            merged = merge_all(order)
            assert held(merged) == held(whole)
            assert merged.hashes.tolist() == whole.hashes.tolist()
    assert all(held(whole))
    assert len(held(whole)) <= 5
    assert sum(map(len, held(whole))) <= 12 or len(held(whole)) == 1


def test_features_of_the_linear_model():
    block = NumericSequenceBlock(n_kernel_features=400).fit(SERIES)
    module = block.make_module().eval()
    features = module.linear_inputs(**block.transform(SERIES))
    # 336 of convolutions, six statistics of each of two channels, and the length.
    assert features.shape == (4, 336 + 13)
    statistics = features[:, 336:].numpy()
    x = (np.array(SERIES["x"][0]) - block.center_[0]) / block.scale_[0]
    x = x / np.sqrt(1 + (x / 3) ** 2)
    expected = [x.mean(), x.std(), x.min(), x.max(), x[0], x[-1]]
    np.testing.assert_allclose(statistics[0, [0, 2, 4, 6, 8, 10]], expected, rtol=1e-5)
    np.testing.assert_allclose(statistics[:, 12], np.log1p([3, 0, 0, 1]), rtol=1e-6)
    assert (statistics[1] == 0).all()
    assert module.linear_weights[0] == 1
    total = (module.linear_weights[336:] ** 2).sum() / 336
    assert total == pytest.approx(0.1)


def test_no_features_of_the_linear_model():
    block = NumericSequenceBlock(n_kernel_features=0).fit(SERIES)
    assert block.convolutions_ == []
    assert not block.make_module().has_linear_inputs
    with pytest.raises(ValueError, match=r"n_kernel_features must be .*integer.*, got -1"):
        NumericSequenceBlock(n_kernel_features=-1).fit(SERIES)


def test_long_series_are_read_as_means_of_steps():
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=length).tolist() for length in (25, 0, 7, 10)]
    block = NumericSequenceBlock("mean", width=4, max_steps=10).fit({"x": lists})
    assert block.stride_ == 3
    scaled = block.transform({"x": lists})["values_0"]
    padded = scaled.to_padded()[:, :, None]
    means, lengths = numeric_sequence.means_of_steps(padded, scaled.lengths, 3)
    assert lengths.tolist() == [9, 0, 3, 4]
    for row, values in enumerate(scaled.values.split(scaled.lengths.tolist())):
        expected = [part.mean() for part in values.split(3)] if len(values) else []
        np.testing.assert_allclose(means[row, : len(expected), 0], expected, rtol=1e-5)
        assert (means[row, len(expected) :] == 0).all()
    module = block.make_module().eval()
    together = module(**block.transform({"x": lists}))
    alone = torch.cat([module(**block.transform({"x": [items]})) for items in lists])
    torch.testing.assert_close(together, alone)
    assert NumericSequenceBlock(max_steps=25).fit({"x": lists}).stride_ == 1
