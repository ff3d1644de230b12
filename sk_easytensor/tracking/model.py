"""A fitted model in MLflow, and its scoring as a service."""

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
from sk_easytensor.blocks.offset import BASE_MARGIN
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
    """Return a saved estimator; MLflow calls its ``transform``."""
    from mlflow.sklearn import _load_pyfunc as load

    return load(path).get_raw_model()


EXAMPLE_ROWS = 5

SEARCH_CONTEXT = "_parent_callback_ctx"

REQUIREMENTS = ("torch", "scikit-learn", "skorch", "skops", "numpy", "pandas", "pyarrow")
"""Packages whose versions are recorded beside the library's own, and that a model asks for."""


def save_model(estimator, X, folder):
    """Write a fitted estimator as an MLflow model, without pickle.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    X : table-like
        What it was fitted on; the first rows become the example.
    folder : Path
        Where to; must not be there.
    """
    import mlflow.sklearn
    from mlflow.models import Model, ModelSignature

    predicts = "predict" if hasattr(estimator, "predict") else "transform"
    predict = getattr(estimator, predicts)
    table, rows = table_and_rows(estimator, X)
    predicted = predict(rows)
    inputs, outputs = input_schema(table, rows), output_schema(predicted)
    model = Model()
    with quiet(), out_of_search(estimator):
        mlflow.sklearn.save_model(
            estimator,
            str(folder),
            mlflow_model=model,
            signature=ModelSignature(inputs, outputs),
            input_example=example_of(rows, predict, predicted),
            serialization_format="skops",
            skops_trusted_types=types_of(estimator),
            pip_requirements=[f"{name}=={found}" for name, found in versions().items()],
            pyfunc_predict_fn=predicts,
        )
    if predicts == "transform":
        # MLflow's own loader knows of predictions only.
        model.flavors["python_function"]["loader_module"] = "sk_easytensor.tracking.model"
        model.save(str(folder / "MLmodel"))


def types_of(estimator):
    """Return the types that a saved estimator consists of, those of the user's blocks included."""
    known = trusted_types()
    return sorted({*known, *get_untrusted_types(data=dumps(estimator))})


def versions():
    """Return the versions of the packages that a model needs."""
    import mlflow

    from sk_easytensor import __version__

    found = {"sk_easytensor": __version__, "mlflow": mlflow.__version__}
    for name in REQUIREMENTS:
        try:
            # What follows the plus says how it was built.
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def table_and_rows(estimator, X):
    """Return a table and its first rows, as an array or a data frame.

    Of a stored table the first rows have to do, and columns are those that the estimator was
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
    if getattr(getattr(estimator, "_encoder", None), "with_margin", False):
        # Served rows bring offsets in a column: MLflow passes nothing but the table.
        table = table.append_column(BASE_MARGIN, pa.array(np.zeros(len(table))))
    elif isinstance(X, np.ndarray):
        return table, X[:EXAMPLE_ROWS]
    return table, table.slice(0, EXAMPLE_ROWS).to_pandas()


def example_of(rows, predict, predicted):
    """Return rows as what JSON has, or None if they would then be predicted otherwise.

    MLflow writes examples as JSON, which has neither dates nor durations. Blocks read dates as
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
    """Return a value as what JSON has: dates in ISO 8601, durations and times in seconds."""
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
    raise TypeError(f"JSON has no {type(value).__name__}")


def input_schema(table, X):
    """Return the columns as MLflow describes them; missing values are welcome in all of them.

    Columns are of any type unless they are floats. MLflow converts values to the type that is
    declared: it refuses missing booleans and categoricals, turns missing Arrow strings into
    ``"<NA>"`` and dates in lists into integers. The model itself checks what it reads.
    """
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    if (isinstance(X, np.ndarray) and X.dtype.kind in "fiub") or is_sparse(X):
        return Schema([TensorSpec(X.dtype, (-1, *X.shape[1:]))])
    named = has_column_names(X)
    # Only what is not required may be missing. That a column has to be there, the model says.
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
    """Return the shape and type of predictions as MLflow describes them."""
    from mlflow.models import infer_signature

    if not isinstance(predicted, pd.DataFrame):
        predicted = np.asarray(predicted)
    with warnings.catch_warnings():
        # That integers cannot be missing is nothing to say of classes.
        warnings.simplefilter("ignore")
        return infer_signature(predicted, predicted).outputs


@contextmanager
def out_of_search(estimator):
    """Take off what scikit-learn's searches hang on an estimator while they fit it.

    It leads to the whole search, in circles, and is no part of the model.
    """
    hung = vars(estimator).pop(SEARCH_CONTEXT, None)
    try:
        yield
    finally:
        if hung is not None:
            setattr(estimator, SEARCH_CONTEXT, hung)


@contextmanager
def quiet():
    """Keep MLflow from hints that are not for the user."""
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
