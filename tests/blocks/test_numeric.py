import datetime as dt
import decimal
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.blocks import NumericBlock
from sk_easytensor.data.bin_edges import BinEdges, centers_and_scales

EMBEDDINGS = ["piecewise", "periodic", "linear", "none"]


def encode(block, values):
    return block.transform({"x": values})["values"][:, 0].numpy()


def test_every_flavour_encodes_the_same(flavour):
    frame = pd.DataFrame(
        {"x": [0.5, np.nan, 2.25, -1.75], "n": [3, 1, 2, 5], "b": [True, False] * 2}
    )
    block = NumericBlock().fit(frame)
    found = NumericBlock().fit(flavour(frame)).transform(flavour(frame))["values"]
    torch.testing.assert_close(found, block.transform(frame)["values"], equal_nan=True)


def test_scaled_numbers_are_robust_and_ordered():
    values = np.arange(-500.0, 501.0)
    block = NumericBlock().fit({"x": values})
    scaled, position = encode(block, np.append(values, [1e300, -1e300])).T
    assert scaled[500] == 0
    assert np.abs(scaled).max() <= 3.0001
    assert (np.diff(scaled[:1001]) > 0).all()
    assert (scaled[1001], scaled[1002]) == (pytest.approx(3), pytest.approx(-3))
    assert (position[1001], position[1002]) == (len(block.edges_[0]) - 1, 0)


def test_encoding_leaves_the_block_as_it_is():
    block = NumericBlock().fit({"x": [10.0, 20.0, 40.0]})
    before = dict(vars(block))
    block.transform({"x": [1.0]})
    assert vars(block) == before
    # A pickle holds nothing that is made from the rest at once.
    assert "_bin_edges" not in block.__getstate__()
    again = pickle.loads(pickle.dumps(block))
    np.testing.assert_array_equal(encode(again, [15.0]), encode(block, [15.0]))


def test_positions_are_places_among_the_edges():
    block = NumericBlock().fit({"x": [10.0, 20.0, 40.0]})
    np.testing.assert_allclose(encode(block, [10, 15, 30, 40, 50, 0])[:, 1], [0, 0.5, 1.5, 2, 2, 0])


def edges_of(kind, size, rng):
    """Distinct numbers of very different sizes and distances, in order."""
    numbers = {
        "normal": lambda: rng.normal(size=size) * 10.0 ** rng.integers(-300, 300),
        "skewed": lambda: np.exp(rng.normal(size=size) * rng.choice([1, 10, 100])),
        "whole": lambda: rng.integers(-50, 50, size),
        "large": lambda: 1e15 + rng.integers(0, 100, size),
        "clustered": lambda: np.append(1e-9 * rng.normal(size=size), 5),
    }
    return np.unique(numbers[kind]().astype(float))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["normal", "skewed", "whole", "large", "clustered"]),
            st.integers(0, 200),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 99),
)
def test_places_among_any_edges_are_those_of_an_interpolation(columns, seed):
    rng = np.random.default_rng(seed)
    edges = [edges_of(kind, size, rng) for kind, size in columns]
    values = []
    for column in edges:
        known = rng.choice(column, 100) if len(column) else np.zeros(100)
        between = known + rng.normal(size=100) * (
            np.ptp(column) / len(column) if known.any() else 1
        )
        values.append(np.concatenate([known, between, [np.nan, np.inf, -np.inf, 1e308, -1e308]]))
    bins = BinEdges(edges, *centers_and_scales(edges))
    _, places = bins.locate(np.array(values))
    for column, numbers, found in zip(edges, values, places, strict=True):
        expected = np.where(np.isnan(numbers), np.nan, 0.0)
        if len(column) > 1:
            expected = np.interp(numbers, column, np.arange(len(column)))
        np.testing.assert_allclose(found, expected, atol=1e-9)


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_any_float(values):
    block = NumericBlock().fit({"x": np.array(values)})
    encoded = encode(block, np.array(values))
    finite = np.isfinite(values)
    assert np.isfinite(encoded[finite, 0]).all()
    np.testing.assert_array_equal(np.isnan(encoded[:, 0]), np.isnan(values))
    torch.manual_seed(0)
    output = block.make_module()(**block.transform({"x": np.array(values)}))
    assert torch.isfinite(output).all()


def test_integers_above_2_53_and_unsigned():
    values = np.array([2**53 + 1, 2**63 - 1, -(2**63)])
    assert np.isfinite(encode(NumericBlock().fit({"x": values}), values)).all()
    large = np.array([2**64 - 1, 0], dtype=np.uint64)
    assert np.isfinite(encode(NumericBlock().fit({"x": large}), large)).all()


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([True, False, None], [1.0, 0.0, np.nan]),
        ([1, 0, None], [1.0, 0.0, np.nan]),
        ([decimal.Decimal("1"), decimal.Decimal("0"), None], [1.0, 0.0, np.nan]),
        ([dt.timedelta(seconds=1), dt.timedelta(0), None], [1.0, 0.0, np.nan]),
        ([dt.time(0, 0, 1), dt.time(0), None], [1.0, 0.0, np.nan]),
    ],
)
def test_all_kinds_of_numbers(values, same):
    block = NumericBlock().fit({"x": values})
    assert block.edges_[0].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(encode(block, values), encode(block, same))


def test_the_unit_of_a_duration_does_not_matter():
    spans = np.array([5, 60, 7200], dtype="timedelta64[s]")
    block = NumericBlock().fit({"x": spans})
    for unit in ("ms", "us", "ns"):
        other = encode(block, spans.astype(f"timedelta64[{unit}]"))
        np.testing.assert_array_equal(other, encode(block, spans))


def test_numbers_as_strings_are_read_at_predict():
    block = NumericBlock().fit({"x": [1.0, 2.0]})
    np.testing.assert_array_equal(encode(block, ["1.0", "2"]), encode(block, [1.0, 2.0]))
    with pytest.raises(
        TypeError, match=r"column 'x' holds text where NumericBlock .* numbers: 'abc' in row 1"
    ):
        encode(block, ["1.0", "abc"])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_gradients_are_finite(embedding):
    values = np.array([0.0, 1.0, np.nan, np.inf, -np.inf, 1e300])
    block = NumericBlock(embedding, width=4).fit({"x": values, "y": values[::-1].copy()})
    module = block.make_module()
    output = module(**block.transform({"x": values, "y": values[::-1].copy()}))
    assert output.shape == (6, module.out_features) == (6, 2 if embedding == "none" else 8)
    output.square().sum().backward()
    for name, weight in module.named_parameters():
        assert torch.isfinite(weight.grad).all(), name


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_missing_and_infinite_have_vectors_of_their_own(embedding):
    block = NumericBlock(embedding).fit({"x": np.arange(9.0)})
    module = block.make_module()
    with torch.no_grad():
        module.missing.fill_(7.0)
        module.infinite.fill_(100.0)
        missing, infinite, known = module(**block.transform({"x": [np.nan, np.inf, 4.0]}))
    assert (missing == 7).all()
    assert (infinite > 50).all()
    assert (known.abs() < 50).all()


def test_piecewise_is_a_linear_layer_over_the_bins():
    values = np.random.default_rng(0).normal(size=300)
    block = NumericBlock(bins=5, width=3, shrinkage=20).fit({"x": values})
    module = block.make_module()
    edges = torch.from_numpy(block.edges_[0]).float()
    x = torch.linspace(-4, 4, 50)
    with torch.no_grad():
        module.steps.normal_()
        module.slope.zero_()
        module.bias.zero_()
        found = module(**block.transform({"x": x.numpy()}))
    encoded = ((x[:, None] - edges[:-1]) / edges.diff()).clamp(0, 1)
    # 60 rows a bin, trusted as far as 60**2 / (60**2 + 20**2).
    expected = 0.9 * (encoded @ module.steps[0, 1:] + module.steps[0, 0])
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)


def test_shrinkage_factors_grow_with_the_rows_of_a_bin():
    columns = {"x": np.arange(1000.0), "y": np.arange(1000) % 5, "z": [np.inf] * 400 + [1.0] * 600}
    block = NumericBlock(bins=10).fit(columns)
    np.testing.assert_array_equal(block.rows_per_bin_, [100, 250, 600])
    trust = block.make_module().step_factors[:, 0, 0]
    np.testing.assert_allclose(trust, [25 / 29, 625 / 641, 225 / 226], rtol=1e-6)
    few = NumericBlock().fit({"x": np.arange(100.0)}).make_module().step_factors
    assert few.item() == pytest.approx(1 / 26)
    assert NumericBlock(shrinkage=0).fit(columns).make_module().step_factors.eq(1).all()


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("training", [True, False])
def test_a_special_value_changes_nothing_for_other_rows(special, training):
    block = NumericBlock(bins=4).fit({"x": np.arange(20.0), "y": np.arange(20.0)})
    module = block.make_module().train(training)
    torch.nn.init.normal_(module.steps)
    torch.nn.init.normal_(module.infinite)
    alone = module(**block.transform({"x": [3.0, 4.0], "y": [1.0, 2.0]}))
    beside = module(**block.transform({"x": [3.0, 4.0, 5.0], "y": [1.0, 2.0, special]}))
    torch.testing.assert_close(alone, beside[:2])


def test_columns_with_unlike_numbers_of_edges():
    block = NumericBlock(bins=8).fit(
        {"x": np.arange(100.0), "y": [0.0, 1.0] * 50, "z": [None] * 100}
    )
    assert [len(edges) for edges in block.edges_] == [9, 2, 0]
    output = block.make_module()(**block.transform({"x": [3.0], "y": [2.0], "z": [1.0]}))
    assert torch.isfinite(output).all()


def test_flatten_marks_missing_values():
    block = NumericBlock().fit({"x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]})
    matrix = block.flatten(block.transform({"x": [None, 2.0], "y": [2.0, None]}))
    assert block.get_feature_names_out().tolist() == ["x", "y", "x_missing"]
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding", "cubic"),
        ("width", 0),
        ("width", 2.5),
        ("bins", True),
        ("frequencies", -1),
        ("frequency_scale", 0),
        ("frequency_scale", np.nan),
    ],
)
def test_parameter_errors(name, value):
    with pytest.raises(ValueError, match=f"NumericBlock: {name} must be"):
        NumericBlock(**{name: value}).fit({"x": [1.0]})


def test_wrong_type_names_the_block_to_use():
    with pytest.raises(
        TypeError, match=r"'x' of type .*string cannot be read by Nu.*CategoryBlock"
    ):
        NumericBlock().fit({"x": ["a"]})
    with pytest.raises(TypeError, match=r"'x' of type list\[.*read by VectorBlock"):
        NumericBlock().fit({"x": [[1.0, 2.0]]})
    with pytest.raises(TypeError, match=r"'x' of type datetime64.*DatetimeBlock"):
        NumericBlock().fit({"x": pa.array([0], pa.timestamp("s"))})
