"""Sparse matrices as columns of a :class:`pyarrow.Table`, without making them dense.

A matrix in compressed sparse row format consists of two flat arrays and the offsets of its rows.
An Arrow column of lists has the same layout, so the rows of a matrix become one column without a
copy for each row. The type of the column holds the number of features, so that slices, chunks and
pickles of a table keep it. The module imports neither torch nor scikit-learn nor SciPy.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import numpy as np
import pyarrow as pa

from sk_easytensor.data.columns import to_float64
from sk_easytensor.data.type_names import in_words

__all__ = [
    "NARROW",
    "SparseLayout",
    "SparseRows",
    "are_sparse",
    "compressed",
    "dense_table",
    "encode_sparse",
    "is_sparse",
    "layout_of",
    "read_sparse",
    "sparse_rows",
    "sparse_table",
]


NARROW = 64
"""Matrices of at most this many columns are read as dense columns, and at most this many columns of
a wider matrix."""

DENSE = 0.3
"""Columns with non-zero values in at least this fraction of the rows are read as dense columns."""

BOUND = 10.0
"""Scaled values beyond this are clipped."""

COLUMN = "sparse"
"""Name of the column that holds the rows of a matrix."""


class SparseRows(pa.ExtensionType):
    """Arrow type of a column of sparse vectors of one length.

    Parameters
    ----------
    n_features : int
        Length of the vectors.
    layout : dict or None, default=None
        Parameters of the :class:`SparseLayout`, if a sparse matrix was given as the whole table.
    """

    def __init__(self, n_features, layout=None):
        self.n_features = n_features
        self.layout = layout
        item = pa.struct([("index", pa.int32()), ("value", pa.float64())])
        super().__init__(pa.large_list(item), "sk_easytensor.data.sparse")

    def __arrow_ext_serialize__(self):
        return json.dumps([self.n_features, self.layout]).encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(*json.loads(serialized))


# Registered so that a table that another process reads from Arrow's IPC format keeps the type.
with suppress(pa.ArrowKeyError):
    pa.register_extension_type(SparseRows(0))


class SparseLayout:
    """Layout of a sparse matrix as a table: dense columns, and one sparse column of the rest.

    Parameters
    ----------
    n_features : int
        Number of columns of the matrix.
    names : list of str or None
        Names of the columns, if the matrix was given as a data frame.
    dense : list of int
        Indices of the columns that are read as dense numeric columns.
    """

    def __init__(self, n_features, names, dense):
        self.n_features = n_features
        self.names = names
        self.dense = dense

    @classmethod
    def of(cls, matrix, names=None):
        """Choose the layout for a matrix in compressed sparse row format."""
        n_present = np.bincount(matrix.indices, minlength=matrix.shape[1])
        most_filled = np.argsort(-n_present, kind="stable")[:NARROW]
        dense = np.sort(most_filled[n_present[most_filled] >= DENSE * matrix.shape[0]])
        return cls(matrix.shape[1], names, dense.tolist())

    @property
    def features(self):
        """Names of the columns of the matrix, by default ``x0``, ``x1`` and so on."""
        return self.names or [f"x{index}" for index in range(self.n_features)]

    @property
    def column(self):
        """Name of the sparse column, different from the names of all features."""
        column, taken = COLUMN, self.names or ()
        while column in taken:
            column += "_"
        return column

    @property
    def column_names(self):
        """Names of the table's columns."""
        return [*self.dense_names, self.column]

    @property
    def dense_names(self):
        """Names of the dense columns."""
        return [f"x{index}" if self.names is None else self.names[index] for index in self.dense]

    def with_dense(self, features):
        """Return a layout in which more features, given by name, are dense columns."""
        features = set(features)
        more = [index for index, name in enumerate(self.features) if name in features]
        return type(self)(self.n_features, self.names, sorted({*self.dense, *more}))

    def table(self, matrix, store_layout=False):
        """Return a matrix in compressed sparse row format as a table of this layout.

        Parameters
        ----------
        matrix : sparse matrix
            Matrix in canonical format.
        store_layout : bool, default=False
            Whether the type of the sparse column stores the layout, for :func:`layout_of`.

        Returns
        -------
        pyarrow.Table
        """
        dense = dense_columns(matrix, self.dense)
        rest = np.ones(self.n_features, dtype=bool)
        rest[self.dense] = False
        rest = rest[matrix.indices]
        offsets = np.append(0, np.cumsum(rest))[matrix.indptr]
        indices, values = matrix.indices[rest], matrix.data[rest]
        layout = vars(self) if store_layout else None
        rows = _rows(offsets, indices, values, self.n_features, layout)
        return pa.table([*dense, rows], names=self.column_names)

    def table_of_dense(self, table):
        """Convert a table with one dense column for each feature to a table of this layout."""
        row_parts, index_parts, value_parts = [], [], []
        dense = set(self.dense)
        for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if index in dense:
                continue
            numbers = to_float64(column, name, block="SparseBlock")
            rows = np.flatnonzero(numbers)
            row_parts.append(rows)
            index_parts.append(np.full(len(rows), index, np.int32))
            value_parts.append(numbers[rows])
        rows, indices, values = map(np.concatenate, (row_parts, index_parts, value_parts))
        order = np.argsort(rows, kind="stable")
        offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=len(table))))
        sparse = _rows(offsets, indices[order], values[order], self.n_features)
        columns = [table.column(index) for index in self.dense]
        return pa.table([*columns, sparse], names=self.column_names)


def is_sparse(X):
    """Return whether `X` is a sparse matrix or array, without importing SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(X)


def are_sparse(kinds):
    """Return whether all pandas dtypes are sparse with the fill value 0."""
    sparse = sys.modules["pandas"].SparseDtype
    return len(kinds) > 0 and all(isinstance(k, sparse) and k.fill_value == 0 for k in kinds)


def compressed(X):
    """Convert a sparse matrix or data frame to canonical compressed sparse row format in float64.

    Raises
    ------
    ValueError
        If `X` is not two-dimensional, has complex values or more than 2147483647 features.
    """
    matrix = X if is_sparse(X) else X.sparse.to_coo()
    if matrix.ndim != 2:
        raise ValueError(f"Expected 2D array, got {matrix.ndim}D sparse array instead")
    if matrix.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X is sparse and of dtype {matrix.dtype}")
    if matrix.shape[1] > np.iinfo(np.int32).max:
        raise ValueError(f"X has {matrix.shape[1]} features; at most 2147483647 can be read")
    result = matrix.tocsr().astype(np.float64, copy=False)
    if not result.has_canonical_format:
        result = result.copy() if result is matrix else result
        result.sum_duplicates()
    if (result.data == 0).any():
        result = result.copy() if result is matrix else result
        result.eliminate_zeros()
    return result


def sparse_rows(X):
    """Return the rows of a sparse matrix as an Arrow array of type :class:`SparseRows`."""
    matrix = compressed(X)
    return _rows(matrix.indptr, matrix.indices, matrix.data, matrix.shape[1])


def sparse_table(X, names=None):
    """Convert a sparse matrix or data frame to a table.

    Parameters
    ----------
    X : sparse matrix, sparse array or pandas.DataFrame
        Real numbers.
    names : list of str, optional
        Names of the columns, if `X` has names.

    Returns
    -------
    pyarrow.Table
        Dense columns if there are at most `NARROW` features. Otherwise features that are non-zero
        in at least the fraction `DENSE` of the rows are dense columns, and one sparse column holds
        the rest.
    """
    matrix = compressed(X)
    if matrix.shape[1] <= NARROW:
        return dense_table(matrix, names)
    return SparseLayout.of(matrix, names).table(matrix, store_layout=True)


def dense_table(X, names=None):
    """Convert a sparse matrix or data frame to a table of dense columns."""
    matrix = compressed(X)
    names = names or [f"x{index}" for index in range(matrix.shape[1])]
    return pa.table(dense_columns(matrix, range(matrix.shape[1])), names=names)


def dense_columns(matrix, columns):
    """Return columns of a matrix in compressed sparse row format as dense arrays."""
    part = matrix[:, list(columns)].tocsc()
    arrays = []
    for first, last in zip(part.indptr[:-1], part.indptr[1:], strict=True):
        dense = np.zeros(matrix.shape[0])
        dense[part.indices[first:last]] = part.data[first:last]
        arrays.append(pa.array(dense, from_pandas=True))
    return arrays


def layout_of(table):
    """Return the layout of a table that was made from a sparse matrix, or None for other tables."""
    for kind in table.schema.types:
        if isinstance(kind, SparseRows) and kind.layout is not None:
            return SparseLayout(**kind.layout)
    return None


def read_sparse(column):
    """Return offsets, indices and values of a column of sparse vectors.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column of type :class:`SparseRows`, or of type null.

    Returns
    -------
    offsets : ndarray of int64, shape (n_rows + 1,)
        Offset of each row among the entries; missing rows have no entries.
    indices : ndarray of int32
        Feature of each entry.
    values : ndarray of float64
        Value of each entry; missing values are left out.
    """
    if pa.types.is_null(column.type):
        return np.zeros(len(column) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0)
    lengths, indices, values = [np.zeros(1, np.int64)], [], []
    for chunk in column.chunks:
        lists = chunk.storage
        own_lengths = np.diff(lists.offsets.to_numpy())
        if lists.null_count:
            own_lengths = np.where(lists.is_valid().to_numpy(zero_copy_only=False), own_lengths, 0)
        items = lists.flatten()
        lengths.append(own_lengths)
        indices.append(items.field(0).to_numpy())
        values.append(items.field(1).to_numpy())
    lengths = np.concatenate(lengths)
    indices = np.concatenate(indices) if indices else np.zeros(0, np.int32)
    values = np.concatenate(values) if values else np.zeros(0)
    missing = np.isnan(values)
    if missing.any():
        owner = np.repeat(np.arange(len(lengths)), lengths)
        lengths = lengths - np.bincount(owner[missing], minlength=len(lengths))
        indices, values = indices[~missing], values[~missing]
    return np.cumsum(lengths), indices, values


def encode_sparse(column, name, n_features, features, scale):
    """Encode a column of sparse vectors as weighted ids.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column of type :class:`SparseRows`, or of type null.
    name : str
        Name of the column, for error messages.
    n_features : int
        Number of features during fit; 0 if all rows were missing.
    features : ndarray of int32
        Features to encode, in increasing order.
    scale : ndarray of float64
        Divisor of the values of each encoded feature.

    Returns
    -------
    offsets : ndarray of int64, shape (n_rows + 1,)
        Offset of each row among the ids.
    ids : ndarray of int32
        Indices in `features`.
    weights : ndarray of float32
        Scaled values, clipped to [-`BOUND`, `BOUND`].

    Raises
    ------
    TypeError
        If the column does not hold sparse vectors.
    ValueError
        If the vectors have another number of features than during fit.
    """
    if not isinstance(column.type, SparseRows) and not pa.types.is_null(column.type):
        raise TypeError(
            f"column {name!r} holds {in_words(column.type)}, but SparseBlock was fitted to sparse "
            "vectors; give the rows of a sparse matrix"
        )
    size = getattr(column.type, "n_features", n_features)
    if n_features and size != n_features:
        raise ValueError(
            f"column {name!r} has sparse vectors of {size} features; "
            f"SparseBlock is expecting {n_features} features"
        )
    offsets, indices, values = read_sparse(column)
    ids = np.searchsorted(features, indices)
    known = np.zeros(len(ids), dtype=bool)
    if len(features):
        known = features[np.minimum(ids, len(features) - 1)] == indices
    ids = ids[known].astype(np.int32)
    weights = np.clip(values[known] / scale[ids], -BOUND, BOUND).astype(np.float32)
    return np.append(0, np.cumsum(known))[offsets], ids, weights


def _rows(offsets, indices, values, n_features, layout=None):
    """Return an array of type :class:`SparseRows` from the arrays of a sparse matrix."""
    items = pa.StructArray.from_arrays(
        [pa.array(indices.astype(np.int32, copy=False)), pa.array(values)], names=["index", "value"]
    )
    lists = pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), items)
    return pa.ExtensionArray.from_storage(SparseRows(n_features, layout), lists)
