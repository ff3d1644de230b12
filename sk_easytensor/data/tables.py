"""Convert anything tabular to a :class:`pyarrow.Table`, and match its columns by name.

All other modules work with this one table type, whether the user passed pandas, polars, Arrow, a
dictionary or a NumPy array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor._utils.validation import is_path, shortened, warn_user
from sk_easytensor.data.arrow_columns import (
    ARROW_ERRORS,
    LISTS,
    arrow_column,
    first_incompatible,
    is_pandas,
    pandas_columns,
)
from sk_easytensor.data.sources import is_source, read_source
from sk_easytensor.data.sparse import (
    NARROW,
    are_sparse,
    compressed,
    dense_table,
    is_sparse,
    sparse_table,
)
from sk_easytensor.data.types import plain_types, source_positions
from sk_easytensor.data.utf8 import check_name_texts, check_texts

__all__ = [
    "align_table",
    "as_table",
    "column_labels",
    "has_column_names",
]


NUMBERS = frozenset(
    kind.id
    for kind in (
        *(pa.float16(), pa.float32(), pa.float64()),
        *(pa.decimal128(1), pa.decimal256(1)),
    )
)
"""Ids of the Arrow types of floats and decimals."""

NOT_EXPORTED = ("Object", "Int128", "UInt128")
"""polars types without an Arrow type; polars exports objects as memory addresses."""


def has_column_names(X):
    """Return whether the columns of a table-like object have names.

    Parameters
    ----------
    X : object
        Any object that :func:`as_table` accepts.

    Returns
    -------
    bool
        ``False`` for arrays, lists of rows and data frames whose labels are not strings.

    Raises
    ------
    TypeError
        If only some of the labels are strings.

    Examples
    --------
    >>> import numpy as np
    >>> has_column_names(np.eye(2)), has_column_names({"a": [1, 2]})
    (False, True)
    """
    if is_lazy(X) or is_source(X) or isinstance(X, (pa.Table, pa.RecordBatch)):
        return True
    labels = column_labels(X)
    if labels is None:
        return hasattr(X, "__arrow_c_stream__")
    strings = [isinstance(label, str) for label in labels]
    if any(strings) and not all(strings):
        raise TypeError(
            "Column names are of mixed types: some are strings and some are not. Rename the "
            "columns so that all names are strings, for example with "
            "X.columns = X.columns.astype(str)."
        )
    return all(strings) and bool(strings)


def column_labels(X):
    """Return the labels of the columns of a table-like object in memory.

    Parameters
    ----------
    X : object
        Any object that :func:`as_table` accepts.

    Returns
    -------
    list or None
        Labels of any type. None if there are no labels, as for an array, or if `X` has to be read
        first, as for a path.
    """
    if is_pandas(X, "DataFrame"):
        # Iterating over the labels takes as long as reading the values of a row.
        return X.columns.tolist()
    if is_sparse(X) or is_source(X) or is_lazy(X):
        return None
    if isinstance(X, (pa.Table, pa.RecordBatch)):
        return X.schema.names
    if isinstance(X, Mapping):
        return list(X)
    if _is_list_of_mappings(X):
        return _labels_of_rows(X)
    if _is_structured(X):
        return list(X.dtype.names)
    return list(X.columns) if hasattr(X, "columns") else None


def as_table(X, *, minimum_rows=1, columns=None, densify=False):
    """Convert anything tabular to a :class:`pyarrow.Table`.

    Parameters
    ----------
    X : pyarrow.Table, data frame, mapping of columns, list of mappings, 2-D array-like or path
        Paths, globs and URLs refer to Parquet files. An object that exports the Arrow C stream
        (pandas, polars, DuckDB, pyarrow) is read without copying where its memory layout allows.
        Arrays get the column names ``x0``, ``x1``, ... Sparse matrices, and pandas data frames with
        only sparse columns, stay sparse if they are wide: see
        :func:`~sk_easytensor.data.sparse.sparse_table`.
    minimum_rows : int, default=1
        Smallest number of rows.
    columns : list of str, optional
        Columns to convert. Other columns of `X` are left out before the conversion, so that their
        values may be of any type. By default all columns are converted.
    densify : bool, default=False
        Whether all columns of a sparse matrix become dense columns.

    Returns
    -------
    pyarrow.Table
        Table of plain types: string views, half floats, decimals of up to 15 digits and extension
        types are cast, and dictionary columns stay dictionaries. A column of structs becomes one
        column for each field, named ``column.field``. Labels that are not strings become strings.

    Raises
    ------
    ValueError
        If there are no rows or no columns, if a column name occurs twice or holds a null
        character, if text is not valid Unicode, if the array is not 2-D or is complex.
    TypeError
        If a column holds Python objects that no column type describes.

    Examples
    --------
    >>> as_table({"age": [31, None], "city": ["Oslo", "Lima"]}).schema.names
    ['age', 'city']
    """
    if is_lazy(X):
        X = X.collect()
    if columns is not None:
        X = _select_columns(X, columns)
    if isinstance(X, pa.Table):
        table = check_texts(X)
    elif is_source(X):
        table = check_texts(read_source(X))
    elif isinstance(X, pa.RecordBatch):
        table = check_texts(pa.Table.from_batches([X]))
    elif is_sparse(X):
        _check_size(X.shape, minimum_rows)
        table = dense_table(X) if densify else sparse_table(X)
    elif isinstance(X, Mapping):
        table = _from_mapping(X)
    elif is_pandas(X, "DataFrame"):
        # Column by column, because the stream exports metadata of the data frame, which dominates
        # the time of predicting a single row.
        table = _from_pandas(X, densify)
    elif hasattr(X, "__arrow_c_stream__"):
        table = _from_arrow_stream(X)
    elif _is_list_of_mappings(X):
        names = _labels_of_rows(X)
        table = _from_columns(names, [[row.get(name) for row in X] for name in names])
    elif _is_structured(X):
        table = _from_mapping({name: X[name] for name in X.dtype.names})
    else:
        table = _from_array(X, minimum_rows)
    plain = plain_types(table)
    _check_shape(plain, minimum_rows, X, table)
    return plain


def align_table(table, names, *, positional=False, owner="the estimator"):
    """Return the columns `names` of a table, in that order.

    Parameters
    ----------
    table : pyarrow.Table
        Table passed at prediction time.
    names : sequence of str
        Columns seen during fit.
    positional : bool, default=False
        Whether the table has no column names, so that columns are matched by position.
    owner : str, default="the estimator"
        Class name of the estimator, for error messages.

    Returns
    -------
    pyarrow.Table
        Table with exactly the columns `names`; other columns are left out.

    Raises
    ------
    ValueError
        If columns are missing, or their number differs when they are matched by position.
    """
    names = list(names)
    if positional:
        _check_count(table.num_columns, len(names), owner)
        return table.rename_columns(names)
    if table.column_names == names:
        return table
    _check_present(names, table.column_names, owner)
    return table.select(names)


def _check_count(n_columns, expected, owner):
    if n_columns != expected:
        raise ValueError(
            f"X has {n_columns} features, but {owner} is expecting {expected} features as input."
        )


def _check_present(names, available, owner):
    present = set(available)
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(
            f"columns are missing: {missing}. They were there when {owner} was fitted; X has "
            f"the columns {available}."
        )


def read_like_fit(X, names, *, fitted_with_names, owner, sparse=None):
    """Read `X` for prediction and align it to the columns seen during fit.

    Parameters
    ----------
    X : object
        Any object that :func:`as_table` accepts.
    names : sequence of str
        Columns seen during fit.
    fitted_with_names : bool
        Whether the columns had names during fit.
    owner : str
        Class name of the estimator, for error messages.
    sparse : SparseLayout, optional
        Layout of the table seen during fit, if it was made from a sparse matrix.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    ValueError
        If columns are missing, or their number differs when they are matched by position.

    Notes
    -----
    Columns are matched by the string form of their labels: 2020 matches "2020". They are matched
    by position only if one of the two tables has no labels, as arrays and data frames made from
    arrays have none.
    """
    names = list(names)
    if sparse is not None and not (isinstance(X, pa.Table) and sparse.column in X.column_names):
        return _read_sparse(X, sparse, fitted_with_names=fitted_with_names, owner=owner)
    labels = column_labels(X)
    if labels == names:
        table, positional = as_table(X, densify=True), False
    else:
        table = as_table(X, columns=names, densify=True)
        positional = _is_positional(
            X, labels, table.column_names, names, fitted_with_names=fitted_with_names, owner=owner
        )
    table = align_table(table, names, positional=positional, owner=owner)
    for index, column in enumerate(table.columns):
        # Many tables represent a column of any type without values as a column of NaN.
        if column.type.id in NUMBERS and _is_nan(column[0].as_py()):
            missing = pc.is_null(column, nan_is_null=True)
            if pc.all(missing).as_py():
                table = table.set_column(index, names[index], pa.nulls(len(table)))
    return table


def _read_sparse(X, layout, *, fitted_with_names, owner):
    """Read anything tabular in the layout of the sparse matrix seen during fit."""
    names, options = layout.features, {"fitted_with_names": fitted_with_names, "owner": owner}
    if is_pandas(X, "DataFrame") and are_sparse(X.dtypes.to_numpy()) and len(X):
        labels = X.columns.tolist()
        names_of_X = list(map(str, labels))
        _check_names(names_of_X)
        if not _is_positional(X, labels, names_of_X, names, **options):
            _check_present(names, names_of_X, owner)
            positions = {name: position for position, name in enumerate(names_of_X)}
            return layout.table(compressed(X.iloc[:, [positions[name] for name in names]]))
        X = X.sparse.to_coo()
    elif is_sparse(X):
        _check_size(X.shape, 1)
        _is_positional(X, None, [], names, **options)
    else:
        return layout.table_of_dense(read_like_fit(X, names, **options))
    _check_count(X.shape[1], layout.n_features, owner)
    return layout.table(compressed(X))


def _is_positional(X, labels, available, names, *, fitted_with_names, owner):
    """Return whether columns are matched by position, and warn as scikit-learn does.

    Parameters
    ----------
    X : object
        Table passed at prediction time.
    labels : list or None
        Labels of its columns, if it has labels.
    available : list of str
        Names of its columns after conversion.
    names : list of str
        Columns seen during fit.
    fitted_with_names : bool
        Whether the columns had names during fit.
    owner : str
        Class name of the estimator, for the warning.

    Returns
    -------
    bool
    """
    if labels is not None or has_column_names(X):
        if not set(names).isdisjoint(available):
            return False
        if not fitted_with_names:
            return _are_default(names)
        if labels != list(range(len(available))):
            return False
    if fitted_with_names:
        warn_user(f"X does not have valid feature names, but {owner} was fitted with feature names")
    return True


def _are_default(names):
    """Return whether names are the default names of columns without labels."""
    return names in ([f"{prefix}{i}" for i in range(len(names))] for prefix in ("x", ""))


def _select_columns(X, names):
    """Return `X` without the columns that are not among `names`.

    A column of structs is retained if one of its fields is among `names`. `X` is returned whole if
    its columns have no labels, or if none of them is among `names`.
    """
    if is_path(X):
        from sk_easytensor.data.parquet import read_parquet

        return read_parquet(X, names)
    labels = column_labels(X)
    if labels is None or labels == list(names):
        return X
    selected = source_positions(labels, names)
    if not selected:
        return X
    if is_pandas(X, "DataFrame"):
        return X.iloc[:, selected]
    if isinstance(X, (pa.Table, pa.RecordBatch)):
        return X.select(selected)
    if isinstance(X, Mapping) or _is_structured(X):
        return {labels[i]: X[labels[i]] for i in selected}
    if _is_list_of_mappings(X):
        return {labels[i]: [row.get(labels[i]) for row in X] for i in selected}
    if _is_polars(X):
        return X.select([labels[i] for i in selected])
    return X


def _is_nan(value):
    """Return whether a value is None or NaN."""
    return value is None or value != value


def is_lazy(X):
    """Return whether `X` is a lazy query of polars that is not collected yet."""
    return type(X).__name__ == "LazyFrame" and hasattr(X, "collect")


def first_rows(X, n_rows):
    """Read only the first rows of a stored table.

    Parameters
    ----------
    X : str, os.PathLike or Dataset
        A path or URL of Parquet files, or a data set such as ``ray.data.Dataset``.
    n_rows : int
        Largest number of rows.

    Returns
    -------
    pyarrow.Table
    """
    return as_table(read_source(X, n_rows))


def _is_list_of_mappings(X):
    return isinstance(X, Sequence) and len(X) > 0 and isinstance(X[0], Mapping)


def _labels_of_rows(X):
    """Return the keys of all dictionaries, in order of first appearance."""
    for index, row in enumerate(X):
        if not isinstance(row, (dict, Mapping)):
            raise TypeError(
                f"X is a list of dictionaries, and row {index} is a {type(row).__name__}: "
                f"{shortened(row)}"
            )
    return list(dict.fromkeys(chain.from_iterable(X)))


def _is_structured(X):
    """Return whether `X` is a structured array, whose fields have names."""
    return isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.names is not None


def _is_polars(X):
    return type(X).__module__.partition(".")[0] == "polars"


def _check_shape(table, minimum_rows, X, source):
    n_rows = table.num_rows
    if table.num_columns == 0 and hasattr(X, "shape"):
        n_rows = X.shape[0]
    _check_size((n_rows, table.num_columns), minimum_rows)
    _check_names(table.column_names, source.column_names)


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


def _check_names(names, source_names=()):
    """Raise ``ValueError`` for names that occur twice, mentioning the structs among the columns."""
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        structs = [
            name
            for name in dict.fromkeys(source_names)
            if name not in names and any(field.startswith(f"{name}.") for field in twice)
        ]
        fields = f" among the fields of the structs in {structs}" if structs else ""
        raise ValueError(
            f"column names occur more than once: {twice}{fields}. Names must be unique."
        )
    check_name_texts(names)


def _from_arrow_stream(X):
    if _is_polars(X) and hasattr(X, "get_columns"):
        return _from_polars(X)
    if hasattr(X, "columns"):
        check_name_texts(list(map(str, X.columns)))
    try:
        return check_texts(pa.table(X))
    except ARROW_ERRORS as error:
        kind = type(X).__name__
        if hasattr(X, "columns"):
            raise TypeError(f"a {kind} cannot be converted to Arrow: {error}") from error
        # A series exports a stream as well, of values instead of rows.
        raise ValueError(f"Expected 2D array, got 1D array instead: a {kind}") from error


def _from_polars(X):
    names, kinds = X.columns, X.dtypes
    check_name_texts(names)
    check_name_texts([name for kind in kinds if kind.is_nested() for name in _field_names(kind)])
    if all(map(_is_exported, kinds)):
        # polars does not check text that it imports from Arrow.
        return check_texts(pa.table(X))
    columns = [
        series if _is_exported(kind) else series.to_list()
        for series, kind in zip(X.get_columns(), kinds, strict=True)
    ]
    return _from_columns(names, columns)


def _is_exported(kind):
    """Return whether a polars type and all types within it have Arrow types."""
    if not kind.is_nested():
        return type(kind).__name__ not in NOT_EXPORTED
    return all(map(_is_exported, _inner_types(kind)))


def _inner_types(kind):
    """Return the types of the fields, the items, or the keys and values of a nested polars type."""
    fields = getattr(kind, "fields", None)
    if fields is not None:
        return [field.dtype for field in fields]
    return [getattr(kind, name) for name in ("inner", "key", "value") if hasattr(kind, name)]


def _field_names(kind):
    """Return the names of all fields within a polars type."""
    if not kind.is_nested():
        return []
    names = [field.name for field in getattr(kind, "fields", None) or ()]
    return [*names, *chain.from_iterable(map(_field_names, _inner_types(kind)))]


def _from_pandas(X, densify):
    labels = X.columns.tolist()
    # Narrow tables are never sparse; reading their dtypes would take time for nothing.
    kinds = X.dtypes.to_numpy() if len(labels) > NARROW else None
    if kinds is not None and are_sparse(kinds):
        names = list(map(str, labels))
        _check_names(names)
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
    _check_names(names)
    try:
        arrays = [arrow_column(values, name) for name, values in zip(names, columns, strict=True)]
    except UnicodeEncodeError as error:
        raise _invalid_text_error(names, columns) from error
    lengths = list(map(len, arrays))
    if len(set(lengths)) > 1:
        by_name = dict(zip(names, lengths, strict=True))
        raise ValueError(f"columns have different lengths: {by_name}")
    return pa.table(arrays, names=names)


def _invalid_text_error(names, columns):
    """Return an error that names the first value with half of a surrogate pair."""
    for name, values in zip(names, columns, strict=True):
        try:
            arrow_column(values, name)
        except UnicodeEncodeError:
            array = np.empty(len(values), dtype=object)
            array[:] = list(values)
            read = partial(arrow_column, name=name)
            row = first_incompatible(array, (UnicodeEncodeError,), read)
            return ValueError(
                f"column {name!r} holds half of a surrogate pair in row {row}, which is not valid "
                f"text: {shortened(array[row])}. Replace it, for example with "
                "value.encode('utf-8', 'replace').decode()"
            )


def _from_array(X, minimum_rows):
    # Imported here, because images that serve exported models may not have scikit-learn.
    from sklearn.utils import check_array

    if isinstance(X, (list, tuple)):
        try:
            values = np.asarray(X)
        except ValueError:
            return _from_rows(X)
        if values.ndim > 2 and all(isinstance(row, (list, tuple)) for row in X):
            return _from_rows(X)
        if values.dtype.kind == "U":
            # NumPy converts the numbers of a row with a string to strings.
            X = np.array(X, dtype=object)
    elif not isinstance(X, np.ndarray):
        X = _array_of(X)
    array = check_array(
        X, dtype=None, ensure_all_finite=False, ensure_min_samples=minimum_rows, order=None
    )
    if np.ma.isMaskedArray(X):
        array = np.ma.array(array, mask=np.ma.getmaskarray(X))
    if array.dtype.kind == "V":
        raise TypeError(f"arrays of dtype {array.dtype} cannot be read; pass a mapping of columns")
    names = [f"x{index}" for index in range(array.shape[1])]
    return _from_columns(names, list(array.T))


def _array_of(X):
    try:
        return np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X is a {type(X).__name__}, which is not a table: {error}") from error


def _from_rows(X):
    """Convert a list of rows whose values may be lists."""
    n_columns = len(X[0]) if isinstance(X[0], LISTS) else 0
    for index, row in enumerate(X):
        n_values = len(row) if isinstance(row, LISTS) else 0
        if n_values != n_columns or not n_values:
            raise ValueError(
                "Expected 2D array, got rows of different lengths instead: row 0 holds "
                f"{n_columns} values and row {index} {n_values}"
            )
    return _from_columns([f"x{i}" for i in range(n_columns)], list(zip(*X, strict=True)))
