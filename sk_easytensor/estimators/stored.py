"""Predictions of stored tables: results of a method as columns beside those of the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps
from inspect import signature, unwrap
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.sources import is_source
from sk_easytensor.inspection import GivenOutputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sk_easytensor._utils.typing import Method

__all__ = [
    "Ranking",
    "StoredCall",
    "TaskValues",
    "Values",
    "Vectors",
    "of_stored_rows",
]


def of_stored_rows(results: object, check: str) -> Callable[[Method], Method]:
    """Return a decorator of methods that lets the backend compute predictions of stored tables.

    Tables in memory are passed to the method unchanged.

    Parameters
    ----------
    results : Values, TaskValues, Vectors or Ranking
        Conversion of the method's results to columns.
    check : str
        Name of a method of the estimator that raises an error if columns are missing. It is called
        with a table of one row of nulls and with the other arguments of the decorated method.

    Returns
    -------
    callable
        Decorator of methods whose first argument is a table.
    """

    def decorate(method):
        first = list(signature(method).parameters)[1]

        @wraps(method)
        def predict_table(self, *args, **params):
            X = args[0] if args else params.get(first)
            if not is_source(X):
                return method(self, *args, **params)
            check_is_fitted(self)
            arguments = signature(method).bind(self, *args, **params).arguments
            # The first two are the estimator and the table.
            remaining = dict(list(arguments.items())[2:])
            call = StoredCall(self, method.__name__, remaining, results, check)
            return resolve_backend(self.backend, self.n_jobs).map_batches(call, X)

        return predict_table

    return decorate


@dataclass
class StoredCall:
    """A method of an estimator with all its arguments other than the table.

    Attributes
    ----------
    estimator : BaseEstimator
        Fitted estimator.
    method : str
        Name of the method.
    params : dict
        Arguments of the method other than the table.
    results : Values, TaskValues, Vectors or Ranking
        Conversion of the method's results to columns.
    check : str
        Name of the estimator's method that checks the columns of the table.
    names : list of str
        Names of the columns of results; empty before :meth:`prepared`.
    """

    estimator: object
    method: str
    params: dict
    results: object
    check: str
    names: list = field(default_factory=list)

    def __call__(self, X):
        """Return the results of the method for a table in memory."""
        # Without the wrappers of scikit-learn and of `of_stored_rows`.
        function = unwrap(getattr(type(self.estimator), self.method))
        return function(self.estimator, X, **self.params)

    def columns(self, table):
        """Return the results for a table in memory, as a dictionary of Arrow arrays."""
        return dict(zip(self.names, self.results.arrays(self, self(table)), strict=True))

    def prepared(self, schema):
        """Check the columns of a stored table, and return the call in a form to send to workers.

        Parameters
        ----------
        schema : pyarrow.Schema
            Schema of the stored table.

        Returns
        -------
        StoredCall
            Call with a copy of the estimator for predictions, and the names of the results.

        Raises
        ------
        ValueError
            If columns are missing, if some have the names of results, or if ``base_margin`` is an
            array.
        """
        if self.params.get("base_margin") is not None:
            raise ValueError(
                f"{type(self.estimator).__name__}.{self.method}: base_margin is an array, but "
                "stored rows are read by many processes; give the offsets as a column "
                "'base_margin' of X, or fit with the parameter offset"
            )
        table = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
        getattr(self.estimator, self.check)(table, **self.params)
        names = self.results.names(self)
        conflicts = [name for name in names if name in schema.names]
        if conflicts:
            raise ValueError(
                f"{type(self.estimator).__name__}.{self.method}: X has columns {conflicts} "
                "already, which are the names of the results; rename them or leave them out"
            )
        estimator = self.estimator._predict_copy()
        return StoredCall(estimator, self.method, self.params, self.results, self.check, names)


# ---------------------------------------------------------------------- kinds of results


@dataclass
class Values:
    """One value for each row, or one for each class, label or output: ``name_<class>``."""

    name: str

    def names(self, call):
        """Return the names of the columns."""
        estimator = call.estimator
        # The head of pairs has no outputs of its own; a pair has one score.
        width = estimator._target.head_.out_features or 1
        example = call(GivenOutputs(torch.zeros(1, width)))
        if example.ndim == 1:
            return [self.name]
        labels = getattr(estimator, "classes_", np.arange(example.shape[1]))
        return [f"{self.name}_{label}" for label in labels.tolist()]

    def arrays(self, call, values):
        """Return the columns."""
        return [pa.array(column) for column in np.atleast_2d(values.T)]


@dataclass
class TaskValues:
    """A value for each of several tasks: ``<task>_<name>``."""

    name: str

    def names(self, call):
        """Return the names of the columns."""
        return [f"{task}_{self.name}" for task in call.estimator.tasks]

    def arrays(self, call, values):
        """Return the columns."""
        return [pa.array(column) for _, column in values.items()]


@dataclass
class Vectors:
    """One vector for each row, as a column of lists of fixed size."""

    name: str

    def names(self, call):
        """Return the name of the column."""
        kind = _get_output_config("transform", call.estimator)["dense"]
        if kind != "default":
            raise ValueError(
                f"{type(call.estimator).__name__}.{call.method}: results of stored rows are a data "
                f"set, which set_output(transform={kind!r}) cannot convert; use "
                "set_output(transform='default')"
            )
        return [self.name]

    def arrays(self, call, values):
        """Return the column."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        return [pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])]


@dataclass
class Ranking:
    """Keys and scores of the best items: two lists for each row."""

    keys: str
    scores: str

    def names(self, call):
        """Return the names of the columns."""
        return [self.keys, self.scores]

    def arrays(self, call, values):
        """Return the columns."""
        keys, scores = values
        # If all items of all users are excluded, `keys` holds None only and has no type.
        has_candidates = call.params.get("items") is not None
        typed_keys = keys.ravel() if has_candidates else call.estimator.item_keys_[:1]
        offsets = np.arange(len(keys) + 1, dtype=np.int32) * keys.shape[1]
        return [
            pa.ListArray.from_arrays(offsets, pa.array(flat, type=item_type))
            for flat, item_type in [
                (keys.ravel(), pa.array(typed_keys).type),
                (scores.ravel(), pa.float32()),
            ]
        ]
