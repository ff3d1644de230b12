"""Types of requests, which follow from the metadata of an exported file, and their validation."""

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
"""Largest number of errors in a response."""

MESSAGE_LENGTH = 200
"""Characters to which messages are shortened."""

MAX_TOKEN_LENGTH = 16
"""Upper bound of the characters of a JSON token other than a string or number, or of an escape."""

WHITESPACE = re.compile(r"[ \t\n\r]*")

INTEGERS = range(-(2**63), 2**63)


class InvalidRequest(Exception):
    """Raised for a request without valid rows of the model.

    Parameters
    ----------
    errors : list of dict
        Errors with ``type``, ``loc`` (location in the body) and ``msg``, as in responses of
        FastAPI, but without the input.
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
    """Return a category as a string: 3, 3.0 and "3" are the same."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(int(number(value)))
    if not isinstance(value, float):
        raise ValueError("must be a string, a number or a boolean")
    if value - value != 0:
        raise ValueError("must be finite")
    return category_keys(pa.array([value])).to_pylist()[0]


def parse_time(value):
    """Return a time in ISO 8601 as a datetime; the error does not contain the value."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date or time in ISO 8601, such as '2026-01-31T12:00:00'")


def iso_time(value):
    """Check a time in ISO 8601, and return the string, which the model parses."""
    parse_time(value)
    return value


def event_time(zone):
    """Return the type of times of events, which are in UTC for a column with a zone."""

    def read(value):
        if isinstance(value, int | float):
            value = float(number(value))
            if value - value != 0:
                raise ValueError("must be finite")
            return value
        time = parse_time(value)
        if zone is None:
            return time.replace(tzinfo=None)
        if time.tzinfo is None:
            raise ValueError("must have an offset, such as '2026-01-31T12:00:00+00:00'")
        try:
            return time.astimezone(UTC)
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
"""Lists are validated up to their first error, because each of a million items could have one."""

UNREAD = Annotated[None, BeforeValidator(lambda value: None, Any)]
"""Type of a required column that no block reads."""


# ---------------------------------------------------------------------- types of columns


def spelled(form):
    """Return a function that writes numbers as the texts of a column are written."""

    def write(value):
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            raise ValueError("must be a string or a finite number")
        return repr(value).replace(".", form["decimal"])

    return write


def column_types(readers):
    """Return the type of each column that a model reads, from the specifications of its readers."""
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
            # A column that is read as a number and as another kind must be a number.
            types[reader["column"]] = value_type(reader["read"], reader)
    return types


def value_type(kind, spec):
    """Return the type of a value by the kind of its reader."""
    if spec.get("format") is not None:
        # Texts, as in fit, which the model parses.
        return str if kind == "time" else Annotated[str, BeforeValidator(spelled(spec["format"]))]
    return event_time(spec.get("zone")) if kind == "seconds" else KINDS[kind]


def list_types(fields):
    """Return the types of columns of lists. Events are lists of objects."""
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
    """Return the type of objects with these keys, all of which are required and may be null."""
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
    """Consecutive parts of a text, so that the decoder of a value is not passed all of it.

    Parameters
    ----------
    text : str
        Text of a body.
    length : int
        Largest number of characters of a value.
    """

    def __init__(self, text, length):
        self.text, self.length = text, length
        self._move(0)

    def at(self, index):
        """Return a part with `length` characters from an index on, and the index in the part."""
        if self.is_cut and index - self.start + self.length > len(self.part):
            self._move(index)
        return self.part, index - self.start

    def _move(self, index):
        # A quarter longer than needed, so that not every small value costs a copy.
        end = index + self.length + self.length // 4
        self.start, self.part = index, self.text[index:end]
        self.is_cut = end < len(self.text)


class RequestSchema:
    """Schema of the bodies of requests: a row as a JSON object, or a list of rows.

    Parameters
    ----------
    metadata : dict
        Metadata of an exported file.
    max_rows : int
        Largest number of rows of a request.
    max_row_bytes : int, default=256 KiB
        Largest size of a row in bytes.

    Raises
    ------
    ValueError
        If the model was fitted on a sparse matrix, for which JSON rows have no form.
    """

    def __init__(self, metadata, max_rows, max_row_bytes=Limits.max_row_bytes):
        sparse = [reader for reader in metadata["readers"] if reader["read"] == "sparse"]
        if sparse or metadata.get("sparse") is not None:
            raise ValueError(
                "the model reads a sparse matrix; the service accepts JSON rows of numbers, "
                "strings, times, vectors and lists"
            )
        types = column_types(metadata["readers"])
        # Without names, columns are identified by their positions, so that all are required.
        names = [
            feature["name"]
            for feature in metadata["features"]
            if feature["blocks"] or not metadata["named"]
        ]
        row = row_type("Row", {name: types.get(name, UNREAD) for name in names})
        self.null_row = dict.fromkeys(names)
        self.max_rows = max_rows
        self.max_row_bytes = max_row_bytes
        self._row = TypeAdapter(row)
        rows = Annotated[list[row], Field(min_length=1, max_length=max_rows)]
        self._body = TypeAdapter(row | rows)
        self._decoder = json.JSONDecoder(
            object_pairs_hook=unique_keys, parse_constant=refuse_constant
        )

    def openapi(self):
        """Return the schema of a body and those that it refers to, for an OpenAPI document."""
        schema = self._body.json_schema(ref_template="#/components/schemas/{model}")
        return schema, schema.pop("$defs", {})

    def read(self, body):
        """Return the rows of a body.

        Rows are parsed and validated one after the other. A body with too many rows or errors is
        not read to its end, and neither is a row that is too large.

        Parameters
        ----------
        body : bytes
            JSON in UTF-8.

        Returns
        -------
        Rows
            Values by column, in the form that the model reads.

        Raises
        ------
        InvalidRequest
            If the body is not valid, with at most 20 errors.
        """
        try:
            text = bytes(body).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest.at([error.start], "unicode", "invalid UTF-8") from None
        # pydantic does not validate surrogates that were escaped, which may also be in a key.
        escaped = "\\ud" in text or "\\uD" in text
        rows, errors = Rows(), []
        for location, value, size in self._values(text):
            if escaped:
                self._check_unicode(value, location)
            try:
                rows.append(self._row.validate_python(value))
                rows.sizes.append(size)
            except ValidationError as error:
                errors.extend(describe_errors(error, location))
            if len(errors) >= MAX_ERRORS:
                break
        if errors:
            raise InvalidRequest(errors[:MAX_ERRORS])
        return rows

    def values(self, rows, location):
        """Return the values of parsed rows in the form that the model reads.

        Parameters
        ----------
        rows : list of dict
            Values by column, as JSON has them. Others than those of the model are left out.
        location : str
            Location of the rows in the body, for errors.

        Returns
        -------
        list of dict

        Raises
        ------
        InvalidRequest
            If a value is not valid, with at most 20 errors.
        """
        values, errors = [], []
        for number, row in enumerate(rows):
            try:
                values.append(self._row.validate_python(row))
            except ValidationError as error:
                errors.extend(describe_errors(error, [location, number]))
        if errors:
            raise InvalidRequest(errors[:MAX_ERRORS])
        return values

    def _check_unicode(self, row, location):
        """Refuse lone surrogates in the values and keys of a row."""
        if is_unicode(row):
            return
        columns = row.items() if isinstance(row, dict) else ()
        invalid = [key for key, value in columns if not is_unicode([key, value])]
        location = location + [key for key in invalid[:1] if key in self.null_row]
        message = "a string has a surrogate without its pair"
        raise InvalidRequest.at(location, "string_unicode", message)

    def _values(self, text):
        """Yield the location, the parsed value and the size in bytes of each row of a JSON text."""
        window = Window(text, self.max_row_bytes + MAX_TOKEN_LENGTH)
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
            raise InvalidRequest.at([index], "json_invalid", "unexpected text after the rows")

    def _decode(self, window, index, location):
        """Return a JSON value, its size in bytes and the index after it."""
        part, begin = window.at(index)
        too_large = InvalidRequest.at(
            location, "too_large", f"must have at most {self.max_row_bytes} bytes of JSON"
        )
        try:
            value, end = self._decoder.raw_decode(part, begin)
        except json.JSONDecodeError as error:
            near_end = error.pos > len(part) - MAX_TOKEN_LENGTH
            at_end = near_end or error.msg.startswith("Unterminated")
            if window.is_cut and at_end:
                raise too_large from None
            message = error.msg[:MESSAGE_LENGTH]
            position = window.start + error.pos
            raise InvalidRequest.at([position], "json_invalid", message) from None
        except RecursionError:
            raise InvalidRequest.at(location, "json_invalid", "nested too deeply") from None
        except UnacceptableJSON as error:
            raise InvalidRequest.at(location, "json_invalid", str(error)) from None
        except ValueError:  # Python limits the digits of integers.
            message = "an integer has too many digits"
            raise InvalidRequest.at(location, "json_invalid", message) from None
        size = end - begin if part.isascii() else len(part[begin:end].encode())
        if size > self.max_row_bytes:
            raise too_large
        return value, size, window.start + end


class UnacceptableJSON(ValueError):
    """Raised for JSON that Python's decoder accepts and the service refuses."""


def unique_keys(pairs):
    """Return a dictionary of pairs, and refuse duplicate keys."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise UnacceptableJSON("an object has a key twice")
    return result


def refuse_constant(name):
    """Refuse NaN, Infinity and -Infinity, which are not JSON."""
    raise UnacceptableJSON(f"{name} is not JSON; missing values are null")


def after_space(text, index):
    """Return the index after whitespace."""
    return WHITESPACE.match(text, index).end()


def is_unicode(value):
    """Return whether no string of a parsed JSON value has a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def describe_errors(error, location):
    """Return the errors of a row, without its values."""
    return [
        {
            "type": detail["type"],
            "loc": ["body", *location, *detail["loc"]],
            "msg": detail["msg"][:MESSAGE_LENGTH],
        }
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]
