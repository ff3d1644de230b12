"""Tables: everything that a user may hold columns in."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse


class Unbuildable(Exception):
    """The library that a table is of does not take these columns either."""


def as_list(values):
    """Return the values of a column as a list of Python objects, or of what it holds."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.to_pylist()
    if isinstance(values, pl.Series):
        return values.to_list()
    if isinstance(values, pd.DataFrame):
        return values.iloc[:, 0].tolist()
    # NumPy's times and durations of some units would become integers.
    keep = getattr(values, "dtype", None) is None or str(values.dtype)[:8] in (
        "datetime",
        "timedelt",
    )
    return list(values) if keep else values.tolist()


def as_series(values):
    if isinstance(values, (pd.Series, pl.Series)):
        return values.to_list() if isinstance(values, pl.Series) else values
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return pd.Series(pd.arrays.ArrowExtensionArray(values))
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return pd.Series(list(values), dtype=object)
    try:
        return pd.Series(values)
    except (ValueError, TypeError, OverflowError):
        return object_series(values)


def object_series(values):
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return pd.Series(array, dtype=object)


def as_arrow(values):
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if isinstance(values, pl.Series):
        return values.to_arrow()
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = values.tolist()
    return pa.array(values, from_pandas=True)


def as_polars(values):
    if isinstance(values, pl.Series):
        return values
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return pl.Series("", values)
    if isinstance(values, pd.Series):
        return pl.from_pandas(values)
    return pl.Series("", values, strict=False)


def pandas_frame(names, columns):
    frame = pd.DataFrame(dict(enumerate(map(as_series, columns))))
    frame.columns = pd.Index(names, dtype=object) if any_odd(names) else names
    return frame


def any_odd(names):
    return not all(isinstance(name, str) for name in names)


def pandas_odd_index(names, columns):
    frame = pandas_frame(names, columns)
    indexes = [
        [0] * len(frame), [f"row{i}" for i in range(len(frame))], list(range(len(frame), 0, -1)),
        pd.MultiIndex.from_arrays([range(len(frame)), ["a"] * len(frame)]),
        pd.date_range("2020", periods=len(frame)), [np.nan] * len(frame),
    ]  # fmt: skip
    return frame.set_axis(indexes[len(frame) % len(indexes)])


def pandas_nullable(names, columns):
    return pandas_frame(names, columns).convert_dtypes()


def pandas_object(names, columns):
    frame = pd.DataFrame({i: object_series(as_list(column)) for i, column in enumerate(columns)})
    return frame.set_axis(names, axis=1)


def pandas_view(names, columns):
    """A frame whose columns are strided views of others."""
    frame = pandas_frame(names, columns)
    return pd.concat([frame, frame]).iloc[: len(frame)][::-1][::-1]


def polars_frame(names, columns):
    made = [as_polars(column).alias(name) for name, column in zip(names, columns, strict=True)]
    return pl.DataFrame(made)


def polars_lazy(names, columns):
    return polars_frame(names, columns).lazy()


def polars_chunks(names, columns):
    frame = polars_frame(names, columns)
    half = len(frame) // 2
    return pl.concat([frame[:half], frame[half:]], rechunk=False)


def arrow_table(names, columns):
    return pa.table(list(map(as_arrow, columns)), names=list(names))


def arrow_chunks(names, columns):
    table = arrow_table(names, columns)
    parts = [table.slice(start, 3) for start in range(0, len(table), 3)]
    return pa.concat_tables([*parts, table.slice(0, 0)])


def arrow_sliced(names, columns):
    table = arrow_table(names, columns)
    return pa.concat_tables([table, table]).combine_chunks().slice(len(table))


def arrow_dictionaries(names, columns):
    table = arrow_table(names, columns)
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type) or pa.types.is_integer(column.type):
            table = table.set_column(place, names[place], column.dictionary_encode())
    return table


def record_batch(names, columns):
    return pa.RecordBatch.from_arrays(list(map(as_arrow, columns)), names=list(names))


def dict_of_columns(names, columns):
    return dict(zip(names, columns, strict=True))


def dict_of_lists(names, columns):
    return dict(zip(names, map(as_list, columns), strict=True))


def dict_of_series(names, columns):
    return dict(zip(names, map(as_series, columns), strict=True))


def list_of_dicts(names, columns):
    rows = zip(*map(as_list, columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def list_of_lists(names, columns):
    return list(map(list, zip(*map(as_list, columns), strict=True)))


def object_array(names, columns):
    array = np.empty((len(columns[0]), len(columns)), dtype=object)
    for place, column in enumerate(columns):
        for row, value in enumerate(as_list(column)):
            array[row, place] = value
    return array


def structured_array(names, columns):
    arrays = [np.asarray(column) for column in columns]
    kinds = [
        (name, array.dtype, array.shape[1:]) for name, array in zip(names, arrays, strict=True)
    ]
    made = np.empty(len(arrays[0]), dtype=kinds)
    for name, array in zip(names, arrays, strict=True):
        made[name] = array
    return made


def number_array(names, columns):
    return np.column_stack([np.asarray(as_list(column), dtype=float) for column in columns])


def number_array_in_columns(names, columns):
    return np.asfortranarray(number_array(names, columns))


def masked_array(names, columns):
    array = number_array(names, columns)
    return np.ma.masked_invalid(array)


def csr(names, columns):
    return scipy.sparse.csr_matrix(np.nan_to_num(number_array(names, columns)))


def csc_array(names, columns):
    return scipy.sparse.csc_array(np.nan_to_num(number_array(names, columns)))


def coo(names, columns):
    made = scipy.sparse.coo_matrix(np.nan_to_num(number_array(names, columns)))
    # Entries that occur twice are summed.
    rows, places = np.append(made.row, made.row[:1]), np.append(made.col, made.col[:1])
    data = np.append(made.data, made.data[:1])
    return scipy.sparse.coo_matrix((data, (rows, places)), shape=made.shape)


def sparse_frame(names, columns):
    return pd.DataFrame.sparse.from_spmatrix(csr(names, columns), columns=list(names))


ALIKE = {
    function.__name__: function
    for function in (
        pandas_frame, pandas_odd_index, pandas_nullable, pandas_object, pandas_view, polars_frame,
        polars_lazy, polars_chunks, arrow_table, arrow_chunks, arrow_sliced, arrow_dictionaries,
        record_batch, dict_of_columns, dict_of_lists, dict_of_series, list_of_dicts,
    )
}  # fmt: skip
"""Tables with names, of which the same plain columns are read as the same."""

PYTHON = ("pandas_frame", "pandas_odd_index", "pandas_object", "dict_of_columns", "dict_of_lists",
          "dict_of_series", "list_of_dicts")  # fmt: skip
"""Those that Arrow has not read before the library does."""

NAMELESS = {
    function.__name__: function
    for function in (
        list_of_lists, object_array, number_array, number_array_in_columns, masked_array, csr,
        csc_array, coo,
    )
}  # fmt: skip

FURTHER = {"structured_array": structured_array, "sparse_frame": sparse_frame}
ALL = {**ALIKE, **NAMELESS, **FURTHER}


def hold(container, names, columns):
    """Hold columns in a table.

    Raises
    ------
    Unbuildable
        If the table's own library does not take them.
    """
    try:
        return ALL[container](names, columns)
    except Exception as error:
        raise Unbuildable(f"{container}: {type(error).__name__}: {error}") from error
    except BaseException as error:  # panics of polars are no exceptions
        if type(error).__name__ != "PanicException":
            raise
        raise Unbuildable(f"{container}: {type(error).__name__}: {error}") from error


def attempted(change, X, *args):
    """Change a table, or return None if its own library cannot."""
    try:
        return change(X, *args)
    except BaseException as error:  # panics of polars are no exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None


def taken(X, rows):
    """Return rows of a table, in the same kind of table, or None where that has no meaning."""
    rows = list(rows)
    if isinstance(X, pd.DataFrame):
        return X.iloc[rows]
    if isinstance(X, pl.DataFrame):
        return X[rows]
    if isinstance(X, (pa.Table, pa.RecordBatch)):
        return X.take(pa.array(rows))
    if isinstance(X, np.ndarray) or scipy.sparse.issparse(X):
        return X.tocsr()[rows] if scipy.sparse.issparse(X) else X[rows]
    if isinstance(X, dict):
        columns = {name: taken_values(values, rows) for name, values in X.items()}
        return None if any(values is None for values in columns.values()) else columns
    return [X[row] for row in rows] if isinstance(X, list) else None


def taken_values(values, rows):
    if isinstance(values, pd.Series):
        return values.iloc[rows]
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.take(pa.array(rows))
    if isinstance(values, (np.ndarray, pl.Series)):
        return values[rows]
    return [values[row] for row in rows] if isinstance(values, (list, tuple)) else None


def reordered(X):
    """Return a table with its columns in the opposite order, or None where order has a meaning."""
    if isinstance(X, (pd.DataFrame, pl.DataFrame)):
        order = list(range(X.shape[1]))[::-1]
        return X.iloc[:, order] if isinstance(X, pd.DataFrame) else X[:, order]
    if isinstance(X, pa.Table):
        return X.select(X.column_names[::-1])
    if isinstance(X, dict) and not scipy.sparse.issparse(X):
        return dict(list(X.items())[::-1])
    if isinstance(X, list) and X and isinstance(X[0], dict):
        return [dict(list(row.items())[::-1]) for row in X]
    return None


def fingerprint(value):
    """Return what a table holds, to tell whether anything has changed it.

    Of tables that their own library cannot read, such as those with invalid UTF-8, only the type.
    """
    found = attempted(_fingerprint, value)
    return type(value).__name__ if found is None else found


def _fingerprint(value):
    if isinstance(value, pd.DataFrame):
        columns = [fingerprint(value.iloc[:, place]) for place in range(value.shape[1])]
        return repr(value.columns), repr(value.index), columns
    if isinstance(value, (pd.Series, pl.Series)):
        return str(value.dtype), [fingerprint(each) for each in value.to_list()]
    if isinstance(value, pl.DataFrame):
        return [(column.name, fingerprint(column)) for column in value.get_columns()]
    if isinstance(value, (pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray)):
        return repr(value.schema if hasattr(value, "schema") else value.type), value.nbytes
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, fingerprint(value.tolist())
    if scipy.sparse.issparse(value):
        return value.format, value.shape, [fingerprint(part) for part in sparse_parts(value)]
    if isinstance(value, dict):
        return [(repr(key), fingerprint(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [fingerprint(each) for each in value]
    return repr(value)


def sparse_parts(matrix):
    names = ("data", "indices", "indptr", "row", "col")
    return [getattr(matrix, name) for name in names if hasattr(matrix, name)]


# ------------------------------------------------------------------------------------------ files


PARQUET = ("one", "several", "hive", "empty among", "reordered", "pathlib", "glob")
ODD_PARQUET = ("other type", "lacking", "corrupt", "cut", "text", "none")


def parquet(random, folder, names, columns, odd):
    """Write a table as Parquet files, of which something may be odd."""
    try:
        table = arrow_table(names, columns)
        form = str(random.choice([*PARQUET, *ODD_PARQUET] if odd else PARQUET))
        folder.mkdir(parents=True, exist_ok=True)
        path, half = folder / "part-0.parquet", len(table) // 2
        if form in ("one", "corrupt", "cut", "pathlib"):
            pq.write_table(table, path, row_group_size=max(1, half))
            spoil(path, form)
            return form, path if form == "pathlib" else str(path)
        if form == "none":
            return form, str(folder / "none.parquet")
        if form == "text":
            path.write_text("a,b\n1,2\n")
            return form, str(path)
        second = table.slice(half)
        if form == "reordered":
            second = second.select(names[::-1])
        elif form == "lacking":
            second = second.drop_columns([names[0]])
        elif form == "other type":
            second = second.set_column(0, names[0], pa.array(["x"] * len(second)))
        elif form == "empty among":
            pq.write_table(table.slice(0, 0), folder / "part-00.parquet")
        pq.write_table(table.slice(0, half), path)
        place = folder / "k=1" / "part.parquet" if form == "hive" else folder / "part-1.parquet"
        place.parent.mkdir(exist_ok=True)
        pq.write_table(second, place)
        return form, f"{folder}/*.parquet" if form == "glob" else str(folder)
    except Exception as error:
        raise Unbuildable(f"parquet: {type(error).__name__}: {error}") from error


def spoil(path, form):
    data = bytearray(path.read_bytes())
    if form == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif form == "corrupt":
        data[len(data) // 3] ^= 255
        path.write_bytes(data)
