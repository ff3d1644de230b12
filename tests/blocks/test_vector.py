import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_easytensor.blocks import NumericSequenceBlock, VectorBlock
from sk_easytensor.blocks import vector as vector_module
from sk_easytensor.blocks.detection import detect_blocks
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table

VECTORS = [[1.0, 10.0, 5.0], [3.0, None, 5.0], None, [5.0, 30.0, 5.0]]
EXPECTED = [[-(1.5**0.5), -1, 0], [0, np.nan, 0], [np.nan] * 3, [1.5**0.5, 1, 0]]


def encode(block, values):
    return block.transform({"v": values})["values_0"][:, 0].numpy()


def layouts():
    float32 = pa.array(VECTORS, pa.list_(pa.float32()))
    return {
        "lists": VECTORS,
        "list": float32,
        "large_list": pa.array(VECTORS, pa.large_list(pa.float64())),
        "fixed_size_list": pa.array(VECTORS, pa.list_(pa.float64(), 3)),
        "half": pa.array(VECTORS, pa.list_(pa.float32(), 3)).cast(pa.list_(pa.float16(), 3)),
        "integers": pa.array(VECTORS, pa.list_(pa.int16(), 3)),
        "sliced": pa.concat_arrays([float32[:1], float32])[1:],
        "sliced_fixed": pa.array([[9, 9, 9], *VECTORS, None], pa.list_(pa.float32(), 3))[1:5],
        "chunks": pa.chunked_array([float32[:2], float32[2:2], float32[2:]]),
        "numpy_objects": pd.Series([None if v is None else np.array(v, float) for v in VECTORS]),
        "polars_list": pl.Series(VECTORS, dtype=pl.List(pl.Float32)),
        "polars_array": pl.Series(VECTORS, dtype=pl.Array(pl.Float64, 3)),
    }


@pytest.mark.parametrize("layout", layouts())
def test_every_layout_encodes_the_same(layout):
    column = layouts()[layout]
    block = VectorBlock().fit({"v": column})
    assert block.mean_[0].tolist() == [3, 20, 5]
    assert block.scale_[0] == pytest.approx([(8 / 3) ** 0.5, 10, 1])
    assert block.missing_fraction_.tolist() == [0.25]
    np.testing.assert_allclose(encode(block, column), EXPECTED, rtol=1e-6)


def test_matrices_and_tensors():
    matrix = np.arange(12.0).reshape(4, 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(matrix.reshape(4, 3, 1))
    block = VectorBlock().fit({"v": matrix})
    np.testing.assert_array_equal(encode(block, tensors), encode(block, matrix))
    assert encode(block, matrix).mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert encode(block, matrix).std(axis=0) == pytest.approx(1, abs=1e-6)


def test_every_flavour_encodes_the_same(flavour):
    frame = pd.DataFrame({"v": VECTORS, "w": [[0.5, 1.5], None, [2.5, 0.5], [1.5, 1.5]]})
    block = VectorBlock().fit(frame)
    encoding = VectorBlock().fit(flavour(frame)).transform(flavour(frame))
    for name, entry in block.transform(frame).items():
        torch.testing.assert_close(encoding[name], entry, equal_nan=True)


def test_columns_of_unlike_lengths():
    data = {"a": np.ones((5, 2)), "b": np.ones((5, 100))}
    block = VectorBlock().fit(data)
    encoding = block.transform(data)
    assert {name: entry.shape for name, entry in encoding.items()} == {
        "values_0": (5, 1, 2),
        "values_1": (5, 1, 100),
    }
    assert block.encoding_columns(encoding) == {"values_0": ["a"], "values_1": ["b"]}
    assert block.make_module().out_features == 2 + 64
    assert VectorBlock(width=7).fit(data).make_module().out_features == 14


def test_long_columns_are_read_in_chunks(monkeypatch):
    matrix = np.random.default_rng(0).normal(size=(50, 4))
    column = pa.array([None if i % 7 == 0 else row for i, row in enumerate(matrix.tolist())])
    whole = VectorBlock().fit({"v": column})
    expected = encode(whole, column)
    monkeypatch.setattr(vector_module, "CHUNK", 8)
    parts = VectorBlock().fit({"v": column})
    np.testing.assert_allclose(parts.scale_[0], whole.scale_[0], rtol=1e-12)
    np.testing.assert_allclose(encode(parts, column), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="column 'v' has a vector of length 3 in row 21"):
        parts.transform({"v": [[1.0] * 4] * 21 + [[1.0] * 3] * 2})


def test_infinite_and_extreme_components():
    matrix = np.array([[1.0, 1.0], [2.0, np.inf], [3.0, -np.inf], [4.0, 2.0]])
    block = VectorBlock().fit({"v": matrix})
    assert block.mean_[0].tolist() == [2.5, 1.5]
    encoded = encode(block, [[1e300, np.inf], [-1e300, -np.inf]])
    assert encoded.tolist() == [[10, 10], [-10, -10]]


def test_constant_components_keep_the_scale_1():
    block = VectorBlock().fit({"v": np.full((1000, 1), 0.1)})
    assert block.scale_[0].tolist() == [1]
    np.testing.assert_allclose(encode(block, [[0.3]]), [[0.2]], rtol=1e-6)


def test_other_lengths_are_refused():
    block = VectorBlock().fit({"v": VECTORS})
    message = "column 'v' has a vector of length 2 in row 1; .*length 3"
    with pytest.raises(ValueError, match=message):
        block.transform({"v": [[1.0] * 3, [1.0] * 2]})
    with pytest.raises(ValueError, match=r"length 4 in row 0; .*length 3"):
        block.transform({"v": np.ones((2, 4))})
    with pytest.raises(
        ValueError, match=r"column 'v' has a vector of length 1 in row 2; .*length 2"
    ):
        VectorBlock().fit({"v": [None, [1.0, 2.0], [1.0]]})


def test_chunks_of_other_lengths_are_refused():
    tables = [as_table({"v": np.ones((2, size))}) for size in (3, 4)]
    block = VectorBlock().fit_columns(tables[0])
    with pytest.raises(ValueError, match="column 'v': vectors of length 3 and 4"):
        merge_all(block.summarize(table) for table in tables)


def test_a_chunk_without_vectors_knows_no_length():
    kind = pa.list_(pa.float64())
    tables = [pa.table({"v": pa.array(v, kind)}) for v in ([None, None], VECTORS, [None])]
    block = VectorBlock().fit_columns(tables[0])
    block.finish(merge_all(block.summarize(table) for table in tables))
    assert block.mean_[0].tolist() == [3, 20, 5]
    assert block.missing_fraction_[0] == pytest.approx(4 / 7)


def test_vectors_never_seen_at_fit_are_missing():
    block = VectorBlock().fit({"v": pa.array([None, None], pa.list_(pa.float64()))})
    assert np.isnan(encode(block, VECTORS)).all()
    output = block.make_module()(**block.transform({"v": VECTORS}))
    assert torch.isfinite(output).all()


def test_missing_vectors_and_components():
    block = VectorBlock().fit({"v": VECTORS})
    module = block.make_module()
    with torch.no_grad():
        module.missing[0].fill_(7.0)
    output = module(**block.transform({"v": [None, [3.0, None, None], [3.0, 20.0, 5.0]]}))
    assert (output[0] == 7).all()
    torch.testing.assert_close(output[1], output[2])
    output.sum().backward()
    for name, weight in module.named_parameters():
        assert torch.isfinite(weight.grad).all(), name


def test_flatten_marks_missing_vectors():
    block = VectorBlock().fit({"v": VECTORS, "w": np.ones((4, 2))})
    assert block.get_feature_names_out().tolist() == [
        "v_0",
        "v_1",
        "v_2",
        "w_0",
        "w_1",
        "v_missing",
    ]
    matrix = block.flatten(block.transform({"v": VECTORS, "w": np.ones((4, 2))}))
    assert matrix[:, -1].tolist() == [0, 0, 1, 0]
    assert matrix[2].tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([[1.0, 2.0], None], pa.list_(pa.float64(), 2), True),
        ([[1, 2], None], pa.list_(pa.uint8(), 2), True),
        ([], pa.list_(pa.float32(), 1), True),
        ([["a", "b"]], pa.list_(pa.string(), 2), False),
        ([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32()), True),
        ([[1.0, 2.0], None, [3.0, 4.0]], pa.large_list(pa.float64()), True),
        ([[1.0, 2.0], [3.0]], pa.list_(pa.float64()), False),
        ([[1.0], [3.0]], pa.list_(pa.float64()), False),
        ([[1, 2], [3, 4]], pa.list_(pa.int64()), False),
        ([None, None], pa.list_(pa.float64()), False),
        ([], pa.list_(pa.float64()), False),
        ([1.0], pa.float64(), False),
    ],
)
def test_detects(values, kind, found):
    assert VectorBlock.detects(pa.chunked_array([pa.array(values, kind)])) is found


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "8"])
def test_parameter_errors(value):
    with pytest.raises(ValueError, match="VectorBlock: width must be an integer"):
        VectorBlock(width=value).fit({"v": VECTORS})


def test_wrong_type_names_the_block_to_use():
    message = "'v' of type float64 cannot be read by VectorBlock.*NumericBlock"
    with pytest.raises(TypeError, match=message):
        VectorBlock().fit({"v": [1.0]})
    with pytest.raises(TypeError, match=message):
        VectorBlock().fit({"v": VECTORS}).transform({"v": [1.0]})


# ---------------------------------------------------------------------- vectors or time series


def walks(n_rows=60, n_steps=40, seed=0):
    """Return series whose neighbouring steps are alike."""
    return np.random.default_rng(seed).normal(size=(n_rows, n_steps)).cumsum(axis=1)


def chosen(**columns):
    """Return the classes of the automatic choice with the names of their columns."""
    table = as_table({name: list(rows) for name, rows in columns.items()})
    found = detect_blocks(table, table.column_names)
    return {tuple(names): block.__name__ for block, names in found}


def test_series_of_one_length_are_told_from_vectors(caplog):
    noise = np.random.default_rng(0).normal(size=(60, 40))
    with caplog.at_level("INFO", "sk_easytensor.blocks"):
        found = chosen(
            load=walks(), embedding=noise[:, :32], sawtooth=walks() * (-1.0) ** np.arange(40)
        )
    assert found == {("embedding",): "VectorBlock", ("load", "sawtooth"): "NumericSequenceBlock"}
    assert "['load', 'sawtooth'] are read as time series" in caplog.text


def test_columns_with_the_length_of_a_series_are_its_channels():
    noise = np.random.default_rng(0).normal(size=(60, 40))
    assert chosen(x=walks(), noise=noise) == {("x", "noise"): "NumericSequenceBlock"}
    assert chosen(noise=noise) == {("noise",): "VectorBlock"}


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_order_does_not_depend_on_the_scale(scale):
    assert list(chosen(x=walks() * scale).values()) == ["NumericSequenceBlock"]
    noise = np.random.default_rng(0).normal(size=(60, 40)) * np.logspace(0, 6, 40)
    assert list(chosen(x=noise * scale).values()) == ["VectorBlock"]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n_rows=st.integers(1, 300), length=st.integers(2, 64))
def test_vectors_in_random_order_are_vectors(seed, n_rows, length):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_rows, 8)) @ rng.normal(size=(8, length))
    assert list(chosen(x=mixed).values()) == ["VectorBlock"]


def test_short_constant_and_missing_vectors_are_vectors():
    assert list(chosen(x=walks(n_steps=8)).values()) == ["VectorBlock"]
    assert list(chosen(x=np.ones((20, 30))).values()) == ["VectorBlock"]
    assert list(chosen(x=np.full((20, 30), np.nan)).values()) == ["VectorBlock"]
    assert list(chosen(x=[[1.0] * 12, None]).values()) == ["VectorBlock"]
    absent = pa.table({"x": pa.nulls(3, pa.list_(pa.float64(), 12))})
    assert [block for block, _ in detect_blocks(absent, ["x"])] == [VectorBlock]


def test_fixed_size_lists_of_integers_are_vectors():
    steps = walks().round().astype(np.int16)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(steps.ravel(), steps.shape[1])})
    assert [block for block, _ in detect_blocks(table, ["x"])] == [VectorBlock]
    table = pa.table({"x": table["x"].cast(pa.list_(pa.float32(), steps.shape[1]))})
    assert [block for block, _ in detect_blocks(table, ["x"])] == [NumericSequenceBlock]
