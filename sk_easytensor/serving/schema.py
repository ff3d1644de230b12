"""Types of requests, made of what an exported file says of its columns, and their validation."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sk_easytensor.data.keys import category_keys
from sk_easytensor.serving.limits import Limits

__all__ = [
    "InvalidRequest",
    "RequestSchema",
    "Rows",
]


MAX_ERRORS = 20
"""A response describes at most so many errors."""

MESSAGE_LENGTH = 200
"""Characters of a message; longer ones are cut."""

LONGEST_TOKEN = 16
"""Characters that a JSON token other than a string or a number has at most, an escape included."""

WHITESPACE = re.compile(r"[ \t\n\r]*")

INTEGERS = range(-(2**63), 2**63)


class InvalidRequest(Exception):
    """A request that does not hold rows of the model.

    Parameters
    ----------
    errors : list of dict
        Each with ``type``, ``loc`` (where in the body) and ``msg``, as in FastAPI's responses, but
        without the input.
    """

    def __init__(self, errors):
        super().__init__("invalid request")
        self.errors = errors

    @classmethod
    def at(cls, location, kind, message):
        """Return an exception with one error."""
        return cls([{"type": kind, "loc": ["body", *location], "msg": message}])


# ---------------------------------------------------------------------- types of values


def number(value):
    """Refuse strings, which pydantic would read as numbers, and integers beyond 64 bits."""
    if isinstance(value, str):
        raise ValueError("must be a number")
    if isinstance(value, int) and value not in INTEGERS:
        raise ValueError("must be an integer of at most 64 bits or a float")
    return value


def category(value):
    """Return the string that stands for a category: 3, 3.0 and "3" are the same."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(int(number(value)))
    if not isinstance(value, float):
        raise ValueError("must be a string, a number or a truth value")
    if value - value != 0:
        raise ValueError("must be finite")
    return category_keys(pa.array([value])).to_pylist()[0]


def parse_time(value):
    """Return a time in ISO 8601 as a datetime; the error does not repeat the value."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date or time in ISO 8601, such as '2026-01-31T12:00:00'")


def iso_time(value):
    """Check a time, and leave the string to the model."""
    parse_time(value)
    return value


def event_time(zone):
    """Return the type of times of events, of one kind for all: in UTC, or without a zone."""

    def read(value):
        if isinstance(value, int | float):
            value = float(number(value))
            if value - value != 0:
                raise ValueError("must be finite")
            return value
        moment = parse_time(value)
        if zone is None:
            return moment.replace(tzinfo=None)
        if moment.tzinfo is None:
            raise ValueError("must have an offset, as '2026-01-31T12:00:00+00:00' has")
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("must be within the years 1 to 9999 in UTC") from None

    return Annotated[Any, BeforeValidator(read, str | float)]


NUMBER = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(number)]
CATEGORY = Annotated[str | None, BeforeValidator(category, str | float | bool)]
KINDS = {
    "number": NUMBER,
    "category": CATEGORY,
    "hashed": CATEGORY,
    "time": Annotated[str, BeforeValidator(iso_time)],
}

FIRST_ERROR = Field(fail_fast=True)
"""Lists are validated up to their first error: a million items could have as many errors."""

UNREAD = Annotated[None, BeforeValidator(lambda value: None, Any)]
"""Type of a column that has to be there, and that no block reads."""


# ---------------------------------------------------------------------- types of columns


def column_types(readers):
    """Return the type of each column that a model reads, from what its file says."""
    types = {}
    for reader in readers:
        if reader["read"] == "ngrams":
            types.update(dict.fromkeys(reader["columns"], str))
        elif reader["read"] == "vector":
            size = reader["length"]
            length = Field(min_length=size, max_length=size, fail_fast=True)
            types[reader["column"]] = Annotated[list[NUMBER | None], length]
        elif reader["read"] == "lists":
            types.update(list_types(reader["fields"]))
        elif types.get(reader["column"]) is not NUMBER:
            # A column that is read twice, as a number too, has to be one.
            types[reader["column"]] = value_type(reader["read"], reader)
    return types


def value_type(kind, spec):
    """Return the type of a value by how it is read."""
    return event_time(spec.get("zone")) if kind == "seconds" else KINDS[kind]


def list_types(fields):
    """Return the types of columns of lists; those of events are lists of objects."""
    types, structs = {}, {}
    for field in fields:
        item = value_type(field["kind"], field) | None
        if "inner" in field:
            structs.setdefault(field["column"], {})[field["inner"]] = item
        else:
            types[field["column"]] = Annotated[list[item], FIRST_ERROR]
    for column, inner in structs.items():
        event = row_type(f"Event of {column}", inner)
        types[column] = Annotated[list[event | None], FIRST_ERROR]
    return types


def row_type(name, types):
    """Return the type of objects with these keys, all of them required and any of them null."""
    return TypedDict(name, {key: kind | None for key, kind in types.items()})


# ---------------------------------------------------------------------- requests


class Rows(list):
    """Rows of a request.

    Parameters
    ----------
    rows : iterable of dict
        Values by column.
    sizes : iterable of int
        Bytes of JSON of each row.
    """

    def __init__(self, rows=(), sizes=()):
        super().__init__(rows)
        self.sizes = list(sizes)


class Window:
    """Parts of a text, one after the other, so that what reads a value never sees all of it.

    Parameters
    ----------
    text : str
        The text.
    length : int
        Characters that a value may have.
    """

    def __init__(self, text, length):
        self.text, self.length = text, length
        self._move(0)

    def at(self, index):
        """Return a part that goes on for `length` characters, if the text does, and the index."""
        if self.is_cut and index - self.start + self.length > len(self.part):
            self._move(index)
        return self.part, index - self.start

    def _move(self, index):
        # A quarter more than is needed: small values do not cost a copy each.
        end = index + self.length + self.length // 4
        self.start, self.part = index, self.text[index:end]
        self.is_cut = end < len(self.text)


class RequestSchema:
    """Reads the bodies of requests: a row as a JSON object, or a list of them.

    Parameters
    ----------
    metadata : dict
        What an exported file says of itself.
    max_rows : int
        Rows of a request.
    max_row_bytes : int, default=256 KiB
        Bytes of a row.

    Raises
    ------
    ValueError
        If the model was fitted on a sparse matrix, which JSON rows do not hold.
    """

    def __init__(self, metadata, max_rows, max_row_bytes=Limits.max_row_bytes):
        sparse = [each for each in metadata["readers"] if each["read"] == "sparse"]
        if sparse or metadata.get("sparse") is not None:
            raise ValueError(
                "the model reads a sparse matrix; the service takes JSON rows, which hold numbers, "
                "strings, times, vectors and lists"
            )
        known = column_types(metadata["readers"])
        features = metadata["features"]
        # Without names, columns are known by their positions, so that all have to be there.
        names = [each["name"] for each in features if each["blocks"] or not metadata["named"]]
        row = row_type("Row", {name: known.get(name, UNREAD) for name in names})
        self.null_row = dict.fromkeys(names)
        self.max_rows = max_rows
        self.max_row_bytes = max_row_bytes
        self._row = TypeAdapter(row)
        several = Annotated[list[row], Field(min_length=1, max_length=max_rows)]
        self._body = TypeAdapter(row | several)
        self._decoder = json.JSONDecoder(
            object_pairs_hook=unique_keys, parse_constant=refuse_constant
        )

    def openapi(self):
        """Return the schema of a body and those that it refers to, for an OpenAPI document."""
        schema = self._body.json_schema(ref_template="#/components/schemas/{model}")
        return schema, schema.pop("$defs", {})

    def read(self, body):
        """Return the rows of a body.

        Rows are parsed and validated one after the other, so that neither a body of too many rows
        nor one of many errors is read to its end, and none of a row beyond its bound.

        Parameters
        ----------
        body : bytes
            JSON in UTF-8.

        Returns
        -------
        Rows
            Values by column, as the model reads them.

        Raises
        ------
        InvalidRequest
            With at most 20 errors.
        """
        try:
            text = bytes(body).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest.at([error.start], "unicode", "invalid UTF-8") from None
        # What escapes of surrogates make is not validated by pydantic, and may be in a key.
        escaped = "\\ud" in text or "\\uD" in text
        rows, errors = Rows(), []
        for location, value, size in self._values(text):
            if escaped:
                self._check_unicode(value, location)
            try:
                rows.append(self._row.validate_python(value))
                rows.sizes.append(size)
            except ValidationError as error:
                errors.extend(described(error, location))
            if len(errors) >= MAX_ERRORS:
                break
        if errors:
            raise InvalidRequest(errors[:MAX_ERRORS])
        return rows

    def _check_unicode(self, row, location):
        """Refuse lone surrogates in the values and keys of a row."""
        if is_unicode(row):
            return
        columns = row.items() if isinstance(row, dict) else ()
        wrong = [key for key, value in columns if not is_unicode([key, value])]
        location = location + [key for key in wrong[:1] if key in self.null_row]
        message = "a string holds a surrogate without its pair"
        raise InvalidRequest.at(location, "string_unicode", message)

    def _values(self, text):
        """Yield the rows of a JSON text as they were parsed, each with its location and size."""
        window = Window(text, self.max_row_bytes + LONGEST_TOKEN)
        index = after_space(text, 0)
        if text.startswith("{", index):
            value, size, index = self._decode(window, index, ["row"])
            yield ["row"], value, size
        elif text.startswith("[", index):
            index = after_space(text, index + 1)
            if text.startswith("]", index):
                raise InvalidRequest.at(["rows"], "too_short", "must have at least one row")
            for row in range(self.max_rows + 1):
                if row == self.max_rows:
                    message = f"must have at most {self.max_rows} rows"
                    raise InvalidRequest.at(["rows"], "too_long", message)
                value, size, index = self._decode(window, index, ["rows", row])
                yield ["rows", row], value, size
                index = after_space(text, index)
                if not text.startswith(",", index):
                    break
                index = after_space(text, index + 1)
            if not text.startswith("]", index):
                raise InvalidRequest.at([index], "json_invalid", "expected ',' or ']'")
            index += 1
        else:
            raise InvalidRequest.at([index], "json_invalid", "must be a JSON object or a list")
        index = after_space(text, index)
        if index < len(text):
            raise InvalidRequest.at([index], "json_invalid", "unexpected text behind the rows")

    def _decode(self, window, index, location):
        """Return a JSON value, its size in bytes and the index behind it."""
        part, begin = window.at(index)
        too_large = InvalidRequest.at(
            location, "too_large", f"must have at most {self.max_row_bytes} bytes of JSON"
        )
        try:
            value, end = self._decoder.raw_decode(part, begin)
        except json.JSONDecodeError as error:
            at_end = error.pos > len(part) - LONGEST_TOKEN or error.msg.startswith("Unterminated")
            if window.is_cut and at_end:
                raise too_large from None
            message = error.msg[:MESSAGE_LENGTH]
            position = window.start + error.pos
            raise InvalidRequest.at([position], "json_invalid", message) from None
        except RecursionError:
            raise InvalidRequest.at(location, "json_invalid", "nested too deeply") from None
        except UnacceptableJSON as error:
            raise InvalidRequest.at(location, "json_invalid", str(error)) from None
        except ValueError:  # Python's bound on the digits of integers.
            message = "an integer has too many digits"
            raise InvalidRequest.at(location, "json_invalid", message) from None
        size = end - begin if part.isascii() else len(part[begin:end].encode())
        if size > self.max_row_bytes:
            raise too_large
        return value, size, window.start + end


class UnacceptableJSON(ValueError):
    """What Python's decoder accepts and the service does not."""


def unique_keys(pairs):
    """Return a dictionary of pairs; refuse keys that occur twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnacceptableJSON("an object has a key twice")
    return found


def refuse_constant(name):
    """Refuse NaN, Infinity and -Infinity, which are not JSON."""
    raise UnacceptableJSON(f"{name} is not JSON; missing values are null")


def after_space(text, index):
    """Return the index behind whitespace."""
    return WHITESPACE.match(text, index).end()


def is_unicode(value):
    """Return whether no string of a parsed JSON value has a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def described(error, location):
    """Return the errors of a row without its values."""
    return [
        {
            "type": each["type"],
            "loc": ["body", *location, *each["loc"]],
            "msg": each["msg"][:MESSAGE_LENGTH],
        }
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
