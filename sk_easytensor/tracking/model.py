"""Saving of a fitted estimator as an MLflow model that scores as a service."""

from __future__ import annotations

import datetime as dt
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from logging import ERROR, getLogger

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix
from skops.io import dumps, get_untrusted_types

from sk_easytensor._utils.skops import trusted_types
from sk_easytensor.blocks.numeric import BASE_MARGIN
from sk_easytensor.data.sources import is_source
from sk_easytensor.data.sparse import compressed, is_sparse, layout_of
from sk_easytensor.data.tables import align_table, as_table, first_rows, has_column_names

__all__ = [
    "REQUIREMENTS",
    "_load_pyfunc",
    "save_model",
    "versions",
]


def _load_pyfunc(path):
    """Return a saved estimator that has ``transform`` but no ``predict``, for MLflow's pyfunc."""
    from mlflow.sklearn import _load_pyfunc as load

    return load(path).get_raw_model()


EXAMPLE_ROWS = 5
"""Number of rows of the input example."""

SEARCH_CONTEXT = "_parent_callback_ctx"
"""Attribute by which scikit-learn's searches connect an estimator with their callbacks."""

REQUIREMENTS = ("torch", "scikit-learn", "skorch", "skops", "numpy", "pandas", "pyarrow")
"""Packages whose versions are recorded, and that a saved model requires."""


def save_model(estimator, X, folder):
    """Write a fitted estimator as an MLflow model, without pickle.

    Parameters
    ----------
    estimator : estimator
        Fitted estimator.
    X : table-like
        Rows that it was fitted on. The first :data:`EXAMPLE_ROWS` become the input example.
    folder : Path
        Directory to write to, which must not exist.
    """
    import mlflow.sklearn
    from mlflow.models import Model, ModelSignature

    method = "predict" if hasattr(estimator, "predict") else "transform"
    predict = getattr(estimator, method)
    table, rows = table_and_rows(estimator, X)
    predicted = predict(rows)
    inputs, outputs = input_schema(table, rows), output_schema(predicted)
    model = Model()
    with without_hints(), without_search_context(estimator):
        mlflow.sklearn.save_model(
            estimator,
            str(folder),
            mlflow_model=model,
            signature=ModelSignature(inputs, outputs),
            input_example=example_of(rows, predict, predicted),
            serialization_format="skops",
            skops_trusted_types=required_types(estimator),
            pip_requirements=[f"{name}=={number}" for name, number in versions().items()],
            pyfunc_predict_fn=method,
        )
    if method == "transform":
        # MLflow's own loader requires a ``predict`` method.
        model.flavors["python_function"]["loader_module"] = "sk_easytensor.tracking.model"
        model.save(str(folder / "MLmodel"))


def required_types(estimator):
    """Return the names of the types that skops must load, those of custom blocks included."""
    return sorted({*trusted_types(), *get_untrusted_types(data=dumps(estimator))})


def versions():
    """Return the versions of the packages that a model requires, by package."""
    import mlflow

    from sk_easytensor import __version__

    numbers = {"sk_easytensor": __version__, "mlflow": mlflow.__version__}
    for name in REQUIREMENTS:
        try:
            # A local version such as "+cu128" names a build that package indexes do not have.
            numbers[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return numbers


def table_and_rows(estimator, X):
    """Return a table and its first rows, as an array or a data frame.

    Of a stored table only the first rows are read. The columns are those that the estimator was
    fitted on, without targets and weights.
    """
    table = first_rows(X, EXAMPLE_ROWS) if is_source(X) else as_table(X)
    if is_sparse(X):
        example = csr_matrix(compressed(X)[:EXAMPLE_ROWS])
        return as_table(example, densify=True), example
    if layout_of(table) is not None:
        table = as_table(X[:EXAMPLE_ROWS], densify=True)
    if has_column_names(X) and hasattr(estimator, "feature_names_in_"):
        table = align_table(table, estimator.feature_names_in_)
    encoder = getattr(estimator, "_encoder", None)
    if encoder is not None and encoder.with_margin_:
        # Served rows have their offsets in a column, because MLflow passes only the table.
        table = table.append_column(BASE_MARGIN, pa.array(np.zeros(len(table))))
    elif isinstance(X, np.ndarray):
        return table, X[:EXAMPLE_ROWS]
    return table, table.slice(0, EXAMPLE_ROWS).to_pandas()


def example_of(rows, predict, predicted):
    """Return rows with values that JSON can represent, or None if that changes predictions.

    MLflow writes examples as JSON, which has neither dates nor durations. Blocks accept dates as
    strings and durations as seconds, but not within lists.
    """
    if isinstance(rows, np.ndarray):
        return rows
    try:
        columns = {name: [plain_value(value) for value in rows[name]] for name in rows}
        example = pd.DataFrame(columns)
        return example if np.array_equal(predict(example), predicted) else None
    except (TypeError, ValueError):
        return None


def plain_value(value):
    """Return a value that JSON can represent: dates in ISO 8601, durations and times in seconds.

    Raises
    ------
    TypeError
        If the value is of another type.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {name: plain_value(item) for name, item in value.items()}
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, dt.time):
        return pd.Timedelta(value.isoformat()).total_seconds()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


def input_schema(table, X):
    """Return the MLflow schema of the columns, all of which may have missing values.

    Columns are declared with any type unless they are floats. MLflow converts values to the
    declared type: it refuses missing booleans and categoricals, turns missing Arrow strings into
    ``"<NA>"`` and dates in lists into integers. The model itself validates its input.
    """
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    if (isinstance(X, np.ndarray) and X.dtype.kind in "fiub") or is_sparse(X):
        return Schema([TensorSpec(X.dtype, (-1, *X.shape[1:]))])
    named = has_column_names(X)
    # MLflow allows missing values in optional columns only. The model checks that columns exist.
    return Schema(
        [
            ColSpec(
                DataType.double if pa.types.is_floating(field.type) else AnyType(),
                field.name if named else None,
                required=not named,
            )
            for field in table.schema
        ]
    )


def output_schema(predicted):
    """Return the MLflow schema of predictions."""
    from mlflow.models import infer_signature

    if not isinstance(predicted, pd.DataFrame):
        predicted = np.asarray(predicted)
    with warnings.catch_warnings():
        # MLflow warns that integers cannot be missing, which does not concern classes.
        warnings.simplefilter("ignore")
        return infer_signature(predicted, predicted).outputs


@contextmanager
def without_search_context(estimator):
    """Remove the callback context of a scikit-learn search from an estimator while it is saved.

    The context refers to the whole search, in a circle, and is no part of the model.
    """
    context = vars(estimator).pop(SEARCH_CONTEXT, None)
    try:
        yield
    finally:
        if context is not None:
            setattr(estimator, SEARCH_CONTEXT, context)


@contextmanager
def without_hints():
    """Suppress warnings and log messages of MLflow that do not concern the user."""
    loggers = [getLogger(name) for name in ("mlflow.sklearn", "mlflow.models.model")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
