"""A fitted estimator as an MLflow model: its signature, an example of its input, its files."""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from logging import ERROR, getLogger

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix
from skops.io import dumps, get_untrusted_types

from sk_easytensor.safe_loading import trusted_types
from sk_easytensor.sparse import compressed, is_sparse, layout_of
from sk_easytensor.tables import align_table, as_table, first_rows, has_column_names, is_source

__all__ = ["REQUIREMENTS", "column_types", "save_model", "table_and_example", "versions"]

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
    table, example = table_and_example(estimator, X)
    inputs = input_schema(table, X)
    outputs = output_schema(getattr(estimator, predicts)(example))
    model = Model()
    with quiet(), out_of_search(estimator):
        mlflow.sklearn.save_model(
            estimator,
            str(folder),
            mlflow_model=model,
            signature=ModelSignature(inputs, outputs),
            input_example=example,
            serialization_format="skops",
            skops_trusted_types=types_of(estimator),
            pip_requirements=[f"{name}=={found}" for name, found in versions().items()],
            pyfunc_predict_fn=predicts,
        )
    if predicts == "transform":
        # MLflow's own loader knows of predictions only.
        model.flavors["python_function"]["loader_module"] = "sk_easytensor.tracking.serving"
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


def table_and_example(estimator, X):
    """Return a table and its first rows, as what MLflow writes examples of.

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
    if isinstance(X, np.ndarray):
        return table, X[:EXAMPLE_ROWS]
    return table, table.slice(0, EXAMPLE_ROWS).to_pandas()


def input_schema(table, X):
    """Return the columns as MLflow describes them; missing values are welcome in all of them."""
    from mlflow.types import ColSpec, Schema, TensorSpec

    if (isinstance(X, np.ndarray) and X.dtype.kind in "fiub") or is_sparse(X):
        return Schema([TensorSpec(X.dtype, (-1, *X.shape[1:]))])
    named = has_column_names(X)
    # Only what is not required may be missing. That a column has to be there, the model says.
    return Schema(
        [
            ColSpec(column_type(field.type), field.name if named else None, required=not named)
            for field in table.schema
        ]
    )


def column_types(table):
    """Return columns and types as the JSON that MLflow shows."""
    from mlflow.types import ColSpec, Schema

    columns = [ColSpec(column_type(field.type), field.name) for field in table.schema]
    return json.dumps({"mlflow_colspec": Schema(columns).to_dict()})


def column_type(kind):
    """Return the type in MLflow for a type of Arrow.

    Where MLflow would refuse what the estimators read, such as categoricals or a column of integers
    of which one is missing, it is told that anything goes.
    """
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array, Object, Property

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = column_type(kind.value_type)
        return AnyType() if isinstance(item, AnyType) else Array(item)
    if pa.types.is_struct(kind) and kind.num_fields:
        fields = [(field.name, column_type(field.type)) for field in kind]
        if any(isinstance(item, AnyType) for _, item in fields):
            return AnyType()
        return Object([Property(name, item, required=False) for name, item in fields])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return DataType.string
    if pa.types.is_floating(kind):
        return DataType.double
    if pa.types.is_boolean(kind):
        return DataType.boolean
    if pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None):
        return DataType.datetime
    return AnyType()


def output_schema(predicted):
    """Return the shape and type of predictions as MLflow describes them."""
    from mlflow.models import infer_signature

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
