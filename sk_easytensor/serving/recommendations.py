"""Requests and responses of the service of a stored recommender."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, reduce
from operator import and_
from typing import Any, Literal

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sk_easytensor.serving.batching import BaseBatcher
from sk_easytensor.serving.schema import (
    MAX_ERRORS,
    InvalidRequest,
    RequestSchema,
    Rows,
    describe_errors,
)

__all__ = [
    "METHODS",
    "RankingRequest",
    "RecommendationBatcher",
]


MAX_CONDITIONS = 100
"""Largest number of columns that conditions may name."""

MAX_RESULTS, MAX_DIVERSE_RESULTS = 200_000, 20_000
"""Largest number of results of a request: its rows times k."""


@dataclass(frozen=True)
class Method:
    """A method of a recommender that a route offers.

    Attributes
    ----------
    rows : {"users", "items"}
        Name of the rows in the body.
    options : bool
        Whether the body may have the options of rankings.
    summary : str
        Description of the route.
    """

    rows: str
    options: bool
    summary: str

    @property
    def side(self):
        """Name of the side that the rows are of."""
        return self.rows.removesuffix("s")


METHODS = {
    "recommend": Method("users", True, "Return the items with the highest scores for each user."),
    "rank_users": Method("items", True, "Return the users with the highest scores for each item."),
    "similar_items": Method("items", False, "Return the items most similar to each item."),
}
"""Methods by name, which is that of the route."""

OPERATORS = {
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
    "==": lambda field, value: field == value,
    "!=": lambda field, value: field != value,
    "in": lambda field, value: field.isin(value),
}
"""Comparisons of conditions."""

Scalar = str | int | float | bool
Comparison = dict[Literal["<", "<=", ">", ">=", "==", "!=", "in"], Scalar | list[Scalar]]


class RankingRequest(BaseModel):
    """Body of a request, without its rows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    k: int = Field(10, ge=1, le=10_000)

    @classmethod
    @cache
    def of(cls, method, max_rows=10_000):
        """Return the type of the bodies of a method."""
        rows = (list[dict[str, Any]], Field(min_length=1, max_length=max_rows))
        options = {}
        if method.options:
            options = {
                "exclude": (Literal["seen"] | None, None),
                "where": (
                    dict[str, Scalar | list[Scalar] | Comparison] | None,
                    Field(None, max_length=MAX_CONDITIONS),
                ),
                "min_score": (float | None, None),
                "diversity": (float, Field(0.0, ge=0, le=1)),
            }
        return create_model("Request", __base__=cls, **{method.rows: rows}, **options)

    @classmethod
    def schemas(cls):
        """Return the schemas of the bodies by name, and those that they refer to."""
        schemas, definitions = {}, {}
        for name, method in METHODS.items():
            schema = cls.of(method).model_json_schema(ref_template="#/components/schemas/{model}")
            definitions |= schema.pop("$defs", {})
            schemas[f"{name}_request"] = schema
        return schemas, definitions


class RankedRows(Rows):
    """Rows of a request, with the method that ranks for them and its options.

    Parameters
    ----------
    rows : list of dict
        Values by column.
    size : int
        Bytes of the body.
    method : str
        Name of the method of the recommender.
    k : int
        Number of results for each row.
    options : dict
        Other options.
    """

    def __init__(self, rows, size, method, k, options):
        super().__init__(rows, [size] + [0] * (len(rows) - 1))
        self.method = method
        self.k = k
        self.options = options

    @property
    def group(self):
        """Requests of one group are ranked together: those of one method, options and columns."""
        # Diverse results are selected from a number of candidates that depends on k. Others are
        # the first of those for a larger k, but not for a far larger one.
        k = self.k if self.options.get("diversity") else self.k.bit_length()
        return self.method, k, json.dumps(self.options, sort_keys=True), frozenset(self[0])


class RecommendationBatcher(BaseBatcher):
    """Ranks for batches of requests.

    Parameters
    ----------
    recommender : Recommender
        The version that is current.
    metrics : Metrics
        Metrics that count batches.
    """

    def __init__(self, recommender, metrics):
        super().__init__(metrics)
        self._use(recommender)

    def _use(self, recommender):
        schemas = {}
        for side in (recommender.users, recommender.items):
            if side.tower is not None:
                schemas[side.name] = RequestSchema(side.tower.predictor.metadata_, 1)
        self.recommender, self._schemas = recommender, schemas

    def refresh(self):
        """Load the current version, unless it is loaded already."""
        recommender = self.recommender.refreshed()
        if recommender is not self.recommender:
            self._use(recommender)

    def describe(self):
        """Return the version, and what is stored of each side."""
        recommender = self.recommender
        content = {"estimator": "Recommender", "version": recommender.version}
        for side in (recommender.users, recommender.items):
            content[f"{side.name}s"] = {
                "key": side.key,
                "stored": 0 if side.index is None else len(side.index),
                "columns": [] if side.tower is None else list(side.tower.feature_names_in_),
            }
        return content

    def read(self, name, body, limits):
        """Return the rows and options of a body.

        Parameters
        ----------
        name : str
            Name of the method.
        body : bytes
            JSON in UTF-8.
        limits : Limits
            Limits of the service.

        Returns
        -------
        RankedRows

        Raises
        ------
        InvalidRequest
            If the body is not valid.
        """
        method = METHODS[name]
        try:
            request = RankingRequest.of(method, limits.max_rows).model_validate_json(body)
        except ValidationError as error:
            if error.error_count() > 10 * MAX_ERRORS:
                message = f"there are {error.error_count()} errors"
                raise InvalidRequest.at([], "too_many_errors", message) from None
            raise InvalidRequest(describe_errors(error, [])[:MAX_ERRORS]) from None
        n_results = request.k * len(getattr(request, method.rows))
        limit = MAX_DIVERSE_RESULTS if getattr(request, "diversity", 0) else MAX_RESULTS
        if n_results > limit:
            message = f"{method.rows} times k must be at most {limit}, they are {n_results}"
            raise InvalidRequest.at(["k"], "too_many_results", message)
        options = request.model_dump(exclude={method.rows, "k"})
        rows = self._rows(method, getattr(request, method.rows))
        return RankedRows(rows, len(body), name, request.k, options)

    def _rows(self, method, rows):
        """Return rows in the form that the tower reads, with their keys."""
        if any(row.keys() != rows[0].keys() for row in rows):
            message = "all rows must have the same columns"
            raise InvalidRequest.at([method.rows], "columns", message)
        schema = self._schemas.get(method.side)
        key = getattr(self.recommender, method.rows).key
        for number, row in enumerate(rows):
            value = row.get(key, "")
            if not isinstance(value, Scalar) or value != value:
                message = "the key must be a string, a number or a boolean"
                raise InvalidRequest.at([method.rows, number, key], "key", message)
        if schema is None or set(rows[0]) == {key}:
            return rows
        values = schema.values(rows, method.rows)
        if key in rows[0]:
            values = [{key: row[key], **value} for row, value in zip(rows, values, strict=True)]
        return values

    def compute(self, requests):
        """Return the keys and scores for each request as JSON."""
        groups, recommender = {}, self.recommender
        for number, request in enumerate(requests):
            groups.setdefault(request.group, []).append(number)
        responses = [None] * len(requests)
        for numbers in groups.values():
            own = [requests[number] for number in numbers]
            parts = rank(recommender, own)
            for number, results in zip(numbers, parts, strict=True):
                content = {"results": results, "version": recommender.version}
                responses[number] = json.dumps(content).encode()
        return responses


def rank(recommender, requests):
    """Return the results of requests of one group: for each row its keys and their scores."""
    first = requests[0]
    options = dict(first.options)
    where = options.pop("where", None)
    if where is not None:
        options["where"] = condition(where)
    k = max(request.k for request in requests)
    rows = [row for request in requests for row in request]
    keys, scores = getattr(recommender, first.method)(rows, k=k, **options)
    results, begin = [], 0
    for request in requests:
        part = slice(begin, begin + len(request))
        begin = part.stop
        found = [
            [(key, score) for key, score in zip(*row, strict=True) if score > -float("inf")]
            for row in zip(as_json_keys(keys[part]), scores[part].tolist(), strict=True)
        ]
        results.append(
            [
                {
                    "keys": [key for key, _ in row[: request.k]],
                    "scores": [score for _, score in row[: request.k]],
                }
                for row in found
            ]
        )
    return results


def as_json_keys(keys):
    """Return keys as lists; those that JSON has no type for as strings."""
    if keys.dtype.kind in "iufbOU":
        keys = keys.tolist()
        return [
            [key if isinstance(key, Scalar | None) else str(key) for key in row] for row in keys
        ]
    return keys.astype(str).tolist()


def condition(where):
    """Return the Arrow expression of conditions by column.

    Parameters
    ----------
    where : dict
        For each column a value, a list of values, or an object of comparisons.

    Returns
    -------
    pyarrow.compute.Expression

    Examples
    --------
    >>> condition({"price": {"<": 20}, "genre": ["drama", "crime"]})
    <pyarrow.compute.Expression ((price < 20) and is_in(genre, {value_set=string:[
      "drama",
      "crime"
    ], null_matching_behavior=MATCH}))>
    """
    parts = [pc.scalar(True)]
    for name, value in where.items():
        if isinstance(value, list):
            value = {"in": value}
        elif not isinstance(value, dict):
            value = {"==": value}
        parts += [OPERATORS[operator](pc.field(name), each) for operator, each in value.items()]
    return reduce(and_, parts[1:] or parts)
