"""Anything tabular becomes a :class:`pyarrow.Table`; columns are then found by name.

Everything behind this module sees one table type, so that no other file knows whether the
user brought pandas, polars, Arrow, a dictionary or a NumPy array.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from warnings import warn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.arrow_columns import UNREADABLE, column_of, is_pandas, pandas_columns
from sk_easytensor.plain_types import plain_types
from sk_easytensor.sparse import (
    NARROW,
    are_sparse,
    compressed,
    dense_table,
    is_sparse,
    sparse_table,
)

__all__ = ["align_table", "as_table", "has_column_names"]


def has_column_names(X):
    """Tell whether a table-like object names its columns.

    Parameters
    ----------
    X : object
        Anything :func:`as_table` takes.

    Returns
    -------
    bool
        ``False`` for arrays, lists of rows and data frames whose labels are not strings.

    Examples
    --------
    >>> import numpy as np
    >>> has_column_names(np.eye(2)), has_column_names({"a": [1, 2]})
    (False, True)
    """
    if is_sparse(X):
        return False
    if is_lazy(X) or is_source(X):
        return True
    if isinstance(X, Mapping):
        labels = list(X)
    elif isinstance(X, (pa.Table, pa.RecordBatch)):
        return True
    elif _is_list_of_mappings(X):
        labels = list(X[0])
    elif hasattr(X, "columns"):
        # Taken one by one, the labels of pandas cost as much as the values of a row.
        labels = X.columns.tolist() if is_pandas(X, "DataFrame") else list(X.columns)
    else:
        return hasattr(X, "__arrow_c_stream__")
    strings = [isinstance(label, str) for label in labels]
    if any(strings) and not all(strings):
        raise TypeError(
            "Column names are of mixed types: some are strings and some are not. Rename the "
            "columns so that all names are strings, for example with "
            "X.columns = X.columns.astype(str)."
        )
    return all(strings) and bool(strings)


def as_table(X, *, minimum_rows=1, densify=False):
    """Convert anything tabular to a :class:`pyarrow.Table`.

    Parameters
    ----------
    X : pyarrow.Table, data frame, mapping of columns, list of mappings, 2-D array-like or path
        Paths, globs and URLs are of Parquet files. Every object that exports the Arrow C stream
        (pandas, polars, DuckDB, pyarrow) is read without copying where its memory layout allows.
        Arrays get the column names ``x0``, ``x1``, ... Sparse matrices, and pandas frames of sparse
        columns only, stay sparse if they are wide: see
        :func:`~sk_easytensor.sparse.sparse_table`.
    minimum_rows : int, default=1
        Fewer rows than this are refused.
    densify : bool, default=False
        Whether all columns of a sparse matrix become dense ones.

    Returns
    -------
    pyarrow.Table
        With string views, decimals, half floats and extension types cast to the plain type
        they stand for; dictionary columns stay dictionaries.

    Raises
    ------
    ValueError
        If there are no rows or no columns, if a column name occurs twice, if the array is not
        2-D or is complex.
    TypeError
        If a column holds Python objects that no column type describes.

    Examples
    --------
    >>> as_table({"age": [31, None], "city": ["Oslo", "Lima"]}).schema.names
    ['age', 'city']
    """
    if is_lazy(X):
        X = X.collect()
    if isinstance(X, pa.Table):
        table = X
    elif is_source(X):
        table = _from_source(X)
    elif isinstance(X, pa.RecordBatch):
        table = pa.Table.from_batches([X])
    elif is_sparse(X):
        _check_size(X.shape, minimum_rows)
        table = dense_table(X) if densify else sparse_table(X)
    elif isinstance(X, Mapping):
        table = _from_mapping(X)
    elif is_pandas(X, "DataFrame"):
        # Column by column, because the stream describes the frame, which takes most of the time
        # that a single row is predicted in.
        table = _from_pandas(X, densify)
    elif hasattr(X, "__arrow_c_stream__"):
        table = _from_arrow_stream(X)
    elif _is_list_of_mappings(X):
        # A key that the first row lacks must not be lost.
        names = list(dict.fromkeys(name for row in X for name in row))
        table = _from_columns(names, [[row.get(name) for row in X] for name in names])
    else:
        table = _from_array(X, minimum_rows)
    _check_shape(table, minimum_rows)
    return plain_types(table)


def align_table(table, names, *, positional=False, owner="the estimator"):
    """Return the columns `names` of a table, in that order.

    Parameters
    ----------
    table : pyarrow.Table
        The table given at prediction time.
    names : sequence of str
        The columns seen during fit.
    positional : bool, default=False
        Whether the table has no names of its own, so that columns are matched by position.
    owner : str
        Who asks, for the error message.

    Returns
    -------
    pyarrow.Table
        With exactly the columns `names`; columns not asked for are left out.

    Raises
    ------
    ValueError
        Naming the columns that are missing, or the two counts when matched by position.
    """
    names = list(names)
    if positional:
        _check_count(table.num_columns, len(names), owner)
        return table.rename_columns(names)
    if table.column_names == names:
        return table
    _check_present(names, table.column_names, owner)
    return table.select(names)


def _check_count(found, expected, owner):
    if found != expected:
        raise ValueError(
            f"X has {found} features, but {owner} is expecting {expected} features as input."
        )


def _check_present(names, found, owner):
    present = set(found)
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(
            f"columns are missing: {missing}. They were there when {owner} was fitted; X has "
            f"the columns {found}."
        )


def _warn_without_names(owner):
    warn(
        f"X does not have valid feature names, but {owner} was fitted with feature names",
        UserWarning,
        stacklevel=4,
    )


def read_like_fit(X, names, *, fitted_with_names, owner, sparse=None):
    """Read `X` for prediction and align it to the columns seen during fit.

    Parameters
    ----------
    X : object
        Anything :func:`as_table` takes.
    names : sequence of str
        Columns seen during fit.
    fitted_with_names : bool
        Whether the data of fit named its columns.
    owner : str
        Class name for messages.
    sparse : SparseLayout, optional
        Of the table seen during fit, if it was made from a sparse matrix.

    Returns
    -------
    pyarrow.Table
    """
    if sparse is not None and not (isinstance(X, pa.Table) and sparse.column in X.column_names):
        return _read_sparse(X, sparse, fitted_with_names=fitted_with_names, owner=owner)
    table = as_table(X, densify=True) if sparse is None else X
    named = has_column_names(X)
    if fitted_with_names and not named:
        _warn_without_names(owner)
    positional = not (named and fitted_with_names)
    table = align_table(table, names, positional=positional, owner=owner)
    for index, column in enumerate(table.columns):
        # Floats are how many tables write that a column of any type is missing altogether.
        if pa.types.is_floating(column.type) and _is_nan(column[0].as_py()):
            missing = pc.is_null(column, nan_is_null=True)
            if pc.all(missing).as_py():
                table = table.set_column(index, names[index], pa.nulls(len(table)))
    return table


def _read_sparse(X, layout, *, fitted_with_names, owner):
    """Read anything tabular with the columns of a sparse matrix that was seen during fit."""
    if is_sparse(X):
        _check_size(X.shape, 1)
        if fitted_with_names:
            _warn_without_names(owner)
        _check_count(X.shape[1], layout.n_features, owner)
        return layout.table(compressed(X))
    if is_pandas(X, "DataFrame") and are_sparse(X.dtypes.to_numpy()) and len(X):
        _check_names(X.columns.tolist())
        if fitted_with_names and has_column_names(X):
            _check_present(layout.features, X.columns.tolist(), owner)
            return layout.table(compressed(X[layout.features]))
        return _read_sparse(
            X.sparse.to_coo(), layout, fitted_with_names=fitted_with_names, owner=owner
        )
    names = layout.features
    table = read_like_fit(X, names, fitted_with_names=fitted_with_names, owner=owner)
    return layout.table_of_dense(table)


def _is_nan(value):
    """Tell whether a value is missing, and a column with it may be: a quick look."""
    return value is None or value != value


def is_lazy(X):
    """Tell whether X is a query that has yet to be collected into a table."""
    return type(X).__name__ == "LazyFrame" and hasattr(X, "collect")


def is_source(X):
    """Tell whether X says where a table is: a path or URL of Parquet files, or a Ray Dataset."""
    return isinstance(X, (str, os.PathLike)) or _is_dataset(X)


def _is_dataset(X):
    return type(X).__module__.startswith("ray.data") and hasattr(X, "to_arrow_refs")


def _from_source(X):
    if _is_dataset(X):
        import ray

        return pa.concat_tables(ray.get(X.to_arrow_refs()), promote_options="permissive")
    from sk_easytensor.backends.chunks import read_parquet

    return read_parquet(X)


def first_rows(X, n_rows):
    """Return the first rows of a stored table, and read no more than is needed for that.

    Parameters
    ----------
    X : str, os.PathLike or Dataset
        A path or URL of Parquet files, or a Ray Dataset.
    n_rows : int
        How many rows, at most.

    Returns
    -------
    pyarrow.Table
    """
    if _is_dataset(X):
        return as_table(_from_source(X.limit(n_rows)))
    from sk_easytensor.backends.chunks import open_parquet

    return as_table(open_parquet(X).head(n_rows, batch_size=n_rows, fragment_readahead=1))


def _is_list_of_mappings(X):
    return isinstance(X, Sequence) and len(X) > 0 and isinstance(X[0], Mapping)


def _check_shape(table, minimum_rows):
    _check_size((table.num_rows, table.num_columns), minimum_rows)
    _check_names(table.column_names)


def _check_size(shape, minimum_rows):
    if len(shape) == 2 and shape[1] == 0:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )
    if shape[0] < minimum_rows:
        raise ValueError(
            f"Found array with {shape[0]} sample(s) (shape={shape}) while a minimum of "
            f"{minimum_rows} is required."
        )


def _check_names(names):
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(f"column names occur more than once: {twice}. Names must be unique.")


def _from_arrow_stream(X):
    try:
        return pa.table(X)
    except UNREADABLE as error:
        # A series exports a stream as well, of values that are not rows.
        kind = type(X).__name__
        raise ValueError(f"Expected 2D array, got 1D array instead: a {kind}") from error


def _from_pandas(X, densify):
    labels = X.columns.tolist()
    _check_names(labels)
    # The types of many columns are needed anyway.
    kinds = X.dtypes.to_numpy() if len(labels) > NARROW else None
    if kinds is not None and are_sparse(kinds):
        names = list(map(str, labels))
        return dense_table(X, names) if densify else sparse_table(X, names)
    return _from_columns(labels, pandas_columns(X, kinds))


def _from_mapping(X):
    columns = dict(X)
    scalars = [name for name, values in columns.items() if np.isscalar(values)]
    if scalars:
        raise ValueError(
            f"columns {scalars} hold a single value instead of a list; write a single row as a "
            "list of one dictionary"
        )
    return _from_columns(list(columns), list(columns.values()))


def _from_columns(names, columns):
    names = list(map(str, names))
    arrays = [column_of(values, name) for name, values in zip(names, columns, strict=True)]
    lengths = list(map(len, arrays))
    if len(set(lengths)) > 1:
        by_name = dict(zip(names, lengths, strict=True))
        raise ValueError(f"columns have different lengths: {by_name}")
    return pa.table(arrays, names=names)


def _from_array(X, minimum_rows):
    # Only arrays need it, and small images that serve an exported model do without.
    from sklearn.utils import check_array

    if isinstance(X, (list, tuple)) and np.asarray(X).dtype.kind == "U":
        # NumPy turns the numbers of a row that holds a string into strings.
        X = np.array(X, dtype=object)
    array = check_array(
        X, dtype=None, ensure_all_finite=False, ensure_min_samples=minimum_rows, order=None
    )
    if np.ma.isMaskedArray(X):
        array = np.ma.array(array, mask=np.ma.getmaskarray(X))
    if array.dtype.kind == "V":
        raise TypeError(f"arrays of dtype {array.dtype} cannot be read; pass a mapping of columns")
    names = [f"x{index}" for index in range(array.shape[1])]
    return pa.table([column_of(array[:, i], name) for i, name in enumerate(names)], names=names)
