import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array, csc_matrix, csr_array, csr_matrix, lil_array

from sk_easytensor import SparseBlock
from sk_easytensor.data.sparse import NARROW, SparseRows, layout_of, sparse_rows
from sk_easytensor.data.tables import as_table
from sk_easytensor.tensors import TensorFrame

WIDE = NARROW + 6


def matrix(n_rows=30, n_columns=WIDE, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n_rows, n_columns)) * (rng.random((n_rows, n_columns)) < density)
    return csr_array(dense)


def frame_of(block, X):
    return TensorFrame({"block": block.transform(X)}, X.shape[0])


def test_values_are_divided_by_their_root_mean_square():
    block = SparseBlock().fit(csr_array([[3.0, 0, 0], [4.0, 0, 0.2], [0, 0, 0], [0, 0, 0.2]]))
    assert block.lengths_ == [3]
    assert block.features_[0].tolist() == [0, 2]
    # Four values in the three rows that have any.
    expected = np.sqrt([12.5, 0.04]) * np.sqrt(4 / 3)
    np.testing.assert_allclose(block.scale_[0], expected)
    encoding = block.transform(csr_array([[0, 7.0, 0.2], [0, 7.0, 0], [1e9, 0, np.inf]]))
    assert encoding["ids"].lengths.tolist() == [1, 0, 2]
    assert encoding["ids"].values.tolist() == [1, 0, 1]
    np.testing.assert_allclose(encoding["weights"].values, [np.sqrt(3 / 4), 10, 10], rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_the_unit_of_values_does_not_matter(factor):
    X = csr_array([[3.0, 0.0], [4.0, 0.2]])
    one, other = SparseBlock().fit(X), SparseBlock().fit(X * factor)
    for entry in ("ids", "weights"):
        found = other.transform(X * factor)[entry].values
        torch.testing.assert_close(found, one.transform(X)[entry].values)


def test_rare_features_are_left_out():
    X = csr_array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert SparseBlock(min_frequency=2).fit(X).features_[0].tolist() == [0]


def test_frequent_features_go_through_the_trunk():
    rare, frequent = matrix(200, density=0.005), matrix(200, density=0.05)
    assert SparseBlock().fit(rare).make_module().wide
    module = SparseBlock().fit(frequent).make_module()
    assert not module.wide
    assert module.learning_rate_scale == 1
    assert SparseBlock(wide=True).fit(frequent).make_module().wide
    assert not SparseBlock(wide=False).fit(rare).make_module().wide


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 0}, "width must be"),
        ({"min_frequency": 0}, "min_frequency must be"),
        ({"dropout": 1.5}, "dropout must be"),
        ({"wide": "yes"}, "wide must be"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=f"SparseBlock: {message}"):
        SparseBlock(**params).fit(matrix())


def test_another_number_of_features_is_refused():
    block = SparseBlock().fit(matrix())
    with pytest.raises(ValueError, match=rf"'sparse' has sparse vectors of 5 .* {WIDE} features"):
        block.transform(matrix(n_columns=5))
    parts = {"a": pa.chunked_array([sparse_rows(matrix())])}
    assert SparseBlock().fit(parts).lengths_ == [WIDE]


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("make", [csr_array, csr_matrix, csc_matrix, coo_array, lil_array])
def test_every_format_is_read_alike(make):
    X = matrix()
    block = SparseBlock().fit(X)
    assert frame_of(block, make(X)).equals(frame_of(block, X))


def test_unsorted_doubled_and_stored_zeros_are_read_and_left_as_they_are():
    data, indices = np.array([2.0, 1.0, 1.0, 0.0]), np.array([2, 0, 2, 1])
    X = csr_array((data, indices, [0, 3, 4]), shape=(2, WIDE))
    assert X.data.tolist() == [2.0, 1.0, 1.0, 0.0]
    assert X.indices.tolist() == [2, 0, 2, 1]
    rows = sparse_rows(X).storage.to_pylist()
    assert rows == [[{"index": 0, "value": 1.0}, {"index": 2, "value": 3.0}], []]


def test_narrow_matrices_are_dense_columns():
    X = matrix(n_columns=NARROW)
    assert as_table(X).equals(as_table(X.toarray()))
    assert layout_of(as_table(X)) is None


def test_columns_with_many_values_are_dense():
    X = matrix().tolil()
    X[:, [3, 7]] = 1 + np.arange(60).reshape(30, 2)
    table = as_table(X)
    assert table.column_names == ["x3", "x7", "sparse"]
    assert table.column("x7").to_pylist() == X.toarray()[:, 7].tolist()
    assert isinstance(table.schema.field("sparse").type, SparseRows)
    layout = layout_of(table)
    assert (layout.n_features, layout.names, layout.dense) == (WIDE, None, [3, 7])
    indices = {item["index"] for row in table["sparse"].to_pylist() for item in row}
    assert not indices & {3, 7}


def test_at_most_so_many_columns_are_dense():
    X = csr_array(np.ones((3, WIDE)))
    assert as_table(X).num_columns == NARROW + 1


def test_a_dense_column_may_have_the_name_of_the_sparse_one():
    X = pd.DataFrame.sparse.from_spmatrix(coo_array(matrix()))
    X.columns = ["sparse", *map(str, range(WIDE - 1))]
    X["sparse"] = pd.arrays.SparseArray(np.ones(30), fill_value=0)
    assert as_table(X).column_names == ["sparse", "sparse_"]


def test_sparse_columns_of_frames():
    dense = pd.DataFrame({"a": [0.0, 2.0, 0.0], "b": [1, 0, 0], "c": ["x", "y", "z"]})
    sparse = dense.assign(a=dense["a"].astype("Sparse[float]"), b=dense["b"].astype("Sparse[int]"))
    assert as_table(sparse).equals(as_table(dense))
    missing = pd.DataFrame({"a": pd.arrays.SparseArray([np.nan, 1.0, np.nan])})
    assert as_table(missing)["a"].to_pylist() == [None, 1.0, None]
    # With another value left out than zero, columns are dense.
    wide = pd.DataFrame(np.nan, index=range(3), columns=[f"c{i}" for i in range(WIDE)])
    assert as_table(wide.astype("Sparse[float]")).num_columns == WIDE


def test_tables_keep_the_type_in_arrows_format():
    table = as_table(matrix())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert found.schema.field("sparse").type.n_features == WIDE
    assert vars(layout_of(found)) == vars(layout_of(table))


@given(seed=st.integers(0, 1000), density=st.floats(0, 1), rows=st.integers(1, 9))
def test_dense_and_sparse_rows_become_one_table(seed, density, rows):
    X = matrix(rows, density=density, seed=seed)
    layout = layout_of(as_table(matrix(density=0.3)))
    assert layout.table(X).equals(layout.table_of_dense(as_table(X.toarray())))


@pytest.mark.parametrize("column", [["a", "b"], [1.0, 2.0], [[1.0], [2.0]]])
def test_columns_that_are_not_sparse(column):
    random = np.random.default_rng(0)
    table = as_table(csr_matrix(random.random((20, 90)) * (random.random((20, 90)) < 0.05)))
    name = table.column_names[-1]
    block = SparseBlock().fit(table.select([name]))
    with pytest.raises(TypeError, match=rf"'{name}' holds .* but SparseBlock was fitted to"):
        block.encode(pa.table({name: column}))
