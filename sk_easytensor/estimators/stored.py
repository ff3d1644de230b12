"""Predictions of stored tables: what a method returns, as columns beside those of the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps
from inspect import signature, unwrap

import numpy as np
import pyarrow as pa
import torch
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from sk_easytensor.backends import resolve_backend
from sk_easytensor.data.sources import is_source
from sk_easytensor.inspection import GivenOutputs

__all__ = [
    "Ranking",
    "StoredCall",
    "TaskValues",
    "Values",
    "Vectors",
    "of_stored_rows",
]


def of_stored_rows(results, check):
    """Have a method predict a stored table where the backend would have it done.

    Tables in memory go to the method as they are.

    Parameters
    ----------
    results : Values, Vectors or Ranking
        How the columns are made of what the method returns.
    check : str
        Name of the estimator's method that is given a table of one row without values, and the
        method's other arguments. It raises an error if columns are missing.

    Returns
    -------
    callable
        A decorator of methods whose first argument is a table.
    """

    def decorate(method):
        first = list(signature(method).parameters)[1]

        @wraps(method)
        def of_rows(self, *args, **params):
            X = args[0] if args else params.get(first)
            if not is_source(X):
                return method(self, *args, **params)
            check_is_fitted(self)
            # But for the estimator and the rows.
            others = dict(list(signature(method).bind(self, *args, **params).arguments.items())[2:])
            call = StoredCall(self, method.__name__, others, results, check)
            return resolve_backend(self.backend, self.n_jobs).map_batches(call, X)

        return of_rows

    return decorate


@dataclass
class StoredCall:
    """A method of an estimator with its arguments, but for the table.

    Attributes
    ----------
    estimator : BaseEstimator
        Fitted.
    method : str
        Name of the method.
    params : dict
        Its other arguments.
    results : Values, Vectors or Ranking
        Makes columns of what it returns.
    check : str
        Name of the method that checks which columns there are.
    names : list of str
        Names of the columns, once they are known.
    """

    estimator: object
    method: str
    params: dict
    results: object
    check: str
    names: list = field(default_factory=list)

    def __call__(self, X):
        """Return what the method returns of a table."""
        # As it was written: without what scikit-learn and `of_stored_rows` put around it.
        function = unwrap(getattr(type(self.estimator), self.method))
        return function(self.estimator, X, **self.params)

    def columns(self, table):
        """Return the columns for a table, as a dictionary of Arrow arrays."""
        return dict(zip(self.names, self.results.arrays(self, self(table)), strict=True))

    def prepared(self, schema):
        """Return the call in a form that can be sent, after a look at the columns there are.

        Parameters
        ----------
        schema : pyarrow.Schema
            Of the stored table.

        Returns
        -------
        StoredCall

        Raises
        ------
        ValueError
            If columns are missing, or have the names of results.
        """
        if self.params.get("base_margin") is not None:
            raise ValueError(
                f"{type(self.estimator).__name__}.{self.method}: base_margin is an array, but "
                "stored rows are read by many processes; give the offsets as a column "
                "'base_margin' of X, or fit with the parameter offset"
            )
        table = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
        getattr(self.estimator, self.check)(table, **self.params)
        results = self.results.names(self)
        taken = [name for name in results if name in schema.names]
        if taken:
            raise ValueError(
                f"{type(self.estimator).__name__}.{self.method}: X has columns {taken} already, "
                "which is what the results are called; rename them or leave them out"
            )
        light = self.estimator._predict_copy()
        return StoredCall(light, self.method, self.params, self.results, self.check, results)


# ---------------------------------------------------------------------- kinds of results


@dataclass
class Values:
    """A value a row, or one for each class, label or output: ``name`` or ``name_<class>``."""

    name: str

    def names(self, call):
        """Return the names of the columns."""
        estimator = call.estimator
        # Of pairs there is a score, whatever the head compares it with.
        width = estimator._target.head_.out_features or 1
        example = call(GivenOutputs(torch.zeros(1, width)))
        if example.ndim == 1:
            return [self.name]
        labels = getattr(estimator, "classes_", np.arange(example.shape[1]))
        return [f"{self.name}_{label}" for label in labels.tolist()]

    def arrays(self, call, found):
        """Return the columns."""
        return [pa.array(column) for column in np.atleast_2d(found.T)]


@dataclass
class TaskValues:
    """A value for each of several tasks: ``<task>_<name>``."""

    name: str

    def names(self, call):
        """Return the names of the columns."""
        return [f"{task}_{self.name}" for task in call.estimator.tasks]

    def arrays(self, call, found):
        """Return the columns."""
        return [pa.array(column) for _, column in found.items()]


@dataclass
class Vectors:
    """A vector a row: lists of one size."""

    name: str

    def names(self, call):
        """Return the name of the column."""
        kind = _get_output_config("transform", call.estimator)["dense"]
        if kind != "default":
            raise ValueError(
                f"{type(call.estimator).__name__}.{call.method}: stored rows are returned as a "
                f"data set, of which set_output cannot make {kind!r}; use "
                "set_output(transform='default')"
            )
        return [self.name]

    def arrays(self, call, found):
        """Return the column."""
        flat = np.ascontiguousarray(found, dtype=np.float32).reshape(-1)
        return [pa.FixedSizeListArray.from_arrays(pa.array(flat), found.shape[1])]


@dataclass
class Ranking:
    """KeyIndex and scores of the best: two lists a row."""

    keys: str
    scores: str

    def names(self, call):
        """Return the names of the columns."""
        return [self.keys, self.scores]

    def arrays(self, call, found):
        """Return the columns."""
        keys, scores = found
        # Where a user has nothing left, only these still know of which type keys are.
        given = call.params.get("items") is not None
        known = keys.ravel() if given else call.estimator.item_keys_[:1]
        offsets = np.arange(len(keys) + 1, dtype=np.int32) * keys.shape[1]
        return [
            pa.ListArray.from_arrays(offsets, pa.array(flat, type=kind))
            for flat, kind in [
                (keys.ravel(), pa.array(known).type),
                (scores.ravel(), pa.float32()),
            ]
        ]
