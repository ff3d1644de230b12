"""Convert categories of any type to strings, and hash strings.

:func:`category_keys` defines one string for each value, whatever its type. Blocks, keys of
two-tower models, exported files and columns of mixed Python objects all use it:

- integers, and floats without a fraction that 64 bits hold, are written in decimals;
- other floats as Arrow writes them in double precision, and -0.0 as 0.0;
- decimals as the float of the same value, with all their digits where there is none;
- booleans are 1 and 0, and so are the texts ``True`` and ``False``;
- dates, and times at midnight without a time zone, are ``2024-01-31``; other times are
  ``2024-01-31 12:30:00.5``, whatever their unit, and in UTC with a Z if they have a time zone;
- texts are unchanged.
"""

from __future__ import annotations

import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.type_names import type_name

__all__ = [
    "BOOLEAN_TEXTS",
    "MIN_VALUES_TO_WARN",
    "MISSING",
    "SPELLED",
    "UNSEEN",
    "canonical_texts",
    "category_keys",
    "check_family",
    "exact_text",
    "has_enough_values",
    "hash_strings",
    "is_float",
    "value_family",
]


MISSING, UNSEEN = 0, 1
"""Codes of missing values and of categories that were not seen during fit."""

MAX_DIGITS = 76
"""Largest number of digits of Arrow's decimals."""

LARGEST_FLOAT_INTEGER = int(sys.float_info.max)
"""Larger integers overflow to infinity as floats."""

MIN_VALUES_TO_WARN = 10
"""Fewest values, none of them a known category, for which a warning is issued."""

BOOLEAN_TEXTS = {"False": "0", "True": "1"}
"""Texts that stand for booleans, and the keys of these."""

BOOLEANS_OF_TYPE = {
    kind: (pa.array(BOOLEAN_TEXTS, kind), pa.array(BOOLEAN_TEXTS.values(), kind))
    for kind in (pa.string(), pa.large_string())
}
"""The texts and keys of `BOOLEAN_TEXTS` as arrays, by text type."""

TEXT, NUMBERS, DATES, INSTANTS = "text", "numbers", "dates", "dates with a time zone"
"""Families of types. Values of two families never have the same key, except for text."""

DICTIONARY, TIMESTAMP = pa.dictionary(pa.int32(), pa.null()).id, pa.timestamp("s").id
FAMILIES = {
    **dict.fromkeys((pa.string().id, pa.large_string().id), TEXT),
    **dict.fromkeys((pa.date32().id, pa.date64().id), DATES),
    **{
        pa.type_for_alias(alias).id: NUMBERS
        for sign in ("", "u")
        for alias in [f"{sign}int{bits}" for bits in (8, 16, 32, 64)]
    },
    **{pa.type_for_alias(alias).id: NUMBERS for alias in ("bool", "halffloat", "float", "double")},
    **dict.fromkeys((pa.decimal128(1).id, pa.decimal256(1).id), NUMBERS),
}
"""Family of each type, by the id of the type; a look-up is faster than a test for each type."""

ACCEPTED = {
    TEXT: "values of any type that it reads",
    NUMBERS: "integers, floats, booleans or their text",
    DATES: "dates, timestamps without a time zone or their text (2024-01-31 12:30:00)",
    INSTANTS: "timestamps with a time zone or their text in UTC (2024-01-31 12:30:00Z)",
}
"""Values that a column fitted on a family of types accepts, for error messages."""


def category_keys(column, *, boolean_texts=True):
    """Return a column's values as a dictionary array whose dictionary holds strings.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Column of any type that :class:`CategoryBlock` accepts.
    boolean_texts : bool, default=True
        Whether the texts True and False get the keys of booleans.

    Returns
    -------
    pyarrow.DictionaryArray
        Null where the value is missing. The strings are distinct.
    """
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    kind = column.type
    if pa.types.is_null(kind):
        column = column.cast(pa.string())
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        # Otherwise -0.0 would be a value of its own.
        column = pc.add(column, pa.scalar(0.0, kind))
    was_dictionary = pa.types.is_dictionary(kind)
    if not was_dictionary:
        column = column.dictionary_encode()
    elif column.num_chunks > 1:
        if any(chunk.dictionary.null_count for chunk in column.chunks):
            # Arrow does not unify dictionaries that hold a null.
            column = column.cast(kind.value_type).dictionary_encode()
        column = column.unify_dictionaries()
    if column.num_chunks == 1:
        array = column.chunk(0)
    else:
        array = pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
    if was_dictionary and len(array.dictionary) > len(array):
        # Few rows of many levels: only levels in use are converted.
        array = array.dictionary_decode().dictionary_encode()
    indices, texts = array.indices, _spelled(array.dictionary)
    keys = canonical_texts(texts) if boolean_texts and _is_text(array.type.value_type) else texts
    if was_dictionary or keys is not texts:
        # Dictionaries of users may hold a value twice, or several values with the same key.
        distinct = keys.dictionary_encode()
        if distinct.null_count or len(distinct.dictionary) < len(keys):
            indices, keys = distinct.indices.take(indices), distinct.dictionary
    return pa.DictionaryArray.from_arrays(indices, keys)


def has_enough_values(column):
    """Return whether a column has enough values for a warning that none is a known category.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Column of any type that :class:`CategoryBlock` accepts.

    Returns
    -------
    bool
        Whether there are at least `MIN_VALUES_TO_WARN` values, two of them distinct.
    """
    if len(column) - column.null_count < MIN_VALUES_TO_WARN:
        return False
    indices = category_keys(column).indices
    present = len(indices) - indices.null_count
    # Dictionaries may hold values that no row uses.
    return present >= MIN_VALUES_TO_WARN and pc.count_distinct(indices).as_py() > 1


def _spelled(values):
    """Return distinct values of any type as strings."""
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.string())
    if pa.types.is_floating(kind):
        return _spelled_floats(values.cast(pa.float64()))
    if pa.types.is_decimal(kind):
        return _spelled_decimals(values)
    if pa.types.is_timestamp(kind):
        return _spelled_times(values)
    return values.cast(pa.string())


def _spelled_floats(numbers):
    size = pc.abs(numbers)
    is_integer = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(size, 2.0**63))
    integers = pc.if_else(is_integer, numbers, 0.0).cast(pa.int64()).cast(pa.string())
    texts = pc.if_else(is_integer, integers, numbers.cast(pa.string()))
    largest = pc.max(size).as_py()
    if largest is None or largest < 2.0**63:
        return texts
    # Rare: signed and unsigned integers of 64 bits have different bounds.
    exact = [
        text if number is None or not _fits(number) else str(int(number))
        for number, text in zip(numbers.to_pylist(), texts.to_pylist(), strict=True)
    ]
    return pa.array(exact, pa.string())


def _spelled_decimals(values):
    numbers = values.cast(pa.float64())
    texts = _spelled_floats(numbers)
    # Whole numbers up to 2**53, and numbers of up to 15 digits, are exact as floats.
    scale = values.type.scale
    long = pc.greater_equal(pc.abs(numbers), 2.0**53 if scale <= 0 else 10.0 ** (15 - scale))
    if not pc.any(long).as_py():
        return texts
    exact = texts.to_pylist()
    for row in pc.indices_nonzero(pc.fill_null(long, False)).to_pylist():
        value = values[row].as_py()
        # Arrow does not round to the nearest float if there are many digits.
        exact[row] = exact_text(value) or _spelled_floats(pa.array([float(value)]))[0].as_py()
    return pa.array(exact, pa.string())


def exact_text(value):
    """Return a decimal with all its digits, or None if there is a float of the same value.

    None, too, for an infinite number and for one of more digits than Arrow's decimals can have,
    which are read as floats.

    Parameters
    ----------
    value : decimal.Decimal
        Number of any size.

    Returns
    -------
    str or None

    Examples
    --------
    >>> exact_text(Decimal(2**53 + 1)), exact_text(Decimal(2**53)), exact_text(Decimal("0.1"))
    ('9007199254740993', None, None)
    """
    if not value.is_finite() or _n_digits(value) > MAX_DIGITS:
        return None
    number = float(value)
    if value == value.to_integral_value():
        return None if value == Decimal(number) else str(int(value))
    if value == Decimal(repr(number)):
        return None
    return f"{value:f}".rstrip("0")


def _n_digits(value):
    _, digits, exponent = value.as_tuple()
    return len(digits) + exponent if exponent > 0 else max(len(digits), -exponent)


def _fits(number):
    """Return whether a float is an integer of 64 bits."""
    return -(2**63) <= number < 2**64 and number.is_integer()


def _spelled_times(times):
    kind = times.type
    # Without its zone, a time is written in UTC.
    texts = times.cast(pa.timestamp(kind.unit)).cast(pa.string())
    if kind.unit != "s":
        texts = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    if kind.tz is not None:
        return pc.binary_join_element_wise(texts, "Z", "")
    return pc.replace_substring_regex(texts, " 00:00:00$", "")


def canonical_texts(texts):
    """Return the keys of texts; the array itself if all texts are their own keys.

    Parameters
    ----------
    texts : pyarrow.Array or ChunkedArray of string or large_string
        Texts, null where missing.

    Returns
    -------
    pyarrow.Array or ChunkedArray
    """
    texts_of_booleans, keys = BOOLEANS_OF_TYPE[texts.type]
    indices = pc.index_in(texts, value_set=texts_of_booleans)
    if indices.null_count == len(indices):
        return texts
    return pc.coalesce(keys.take(indices), texts)


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def value_family(kind):
    """Return the family of an Arrow type, or None for the null type and unsupported types.

    Parameters
    ----------
    kind : pyarrow.DataType
        Type of a column.

    Returns
    -------
    {"text", "numbers", "dates", "dates with a time zone"} or None

    Examples
    --------
    >>> import pyarrow as pa
    >>> value_family(pa.bool_()), value_family(pa.date32()), value_family(pa.null())
    ('numbers', 'dates', None)
    """
    if kind.id == DICTIONARY:
        return value_family(kind.value_type)
    if kind.id == TIMESTAMP:
        return DATES if kind.tz is None else INSTANTS
    return FAMILIES.get(kind.id)


def check_family(kind, fitted, name, owner):
    """Raise an error if values are of another family of types than during fit.

    Parameters
    ----------
    kind : pyarrow.DataType
        Type of the column.
    fitted : dict of {str: str} or None
        Families of types seen during fit, each with the name of one type. All are accepted if there
        are none.
    name : str
        Name of the column, for error messages.
    owner : str
        Class name of the estimator or block, for error messages.

    Raises
    ------
    TypeError
        If the families differ and none is text. The message names the column, both types and
        what is accepted.
    """
    family = value_family(kind)
    if family is None or not fitted or family in fitted or TEXT in (family, *fitted):
        return
    accepted = " or ".join(ACCEPTED[other] for other in fitted)
    raise TypeError(
        f"column {name!r} is of type {type_name(kind)} ({family}), but {owner} was fitted on "
        f"{', '.join(fitted.values())} ({', '.join(fitted)}); it accepts {accepted}"
    )


def hash_strings(values):
    """Return a stable 64-bit hash of each string of an Arrow array, as an array of uint64."""
    from pandas.util import hash_array

    return hash_array(values.to_numpy(zero_copy_only=False).astype(object), categorize=False)


def _integer_texts(values):
    """Return integers as the strings that they have as categories in a column of their own."""
    return [
        str(int(value))
        if -(2**63) <= value < 2**64 or not is_float(int(value))
        else _float_texts(np.array([value]))[0]
        for value in values
    ]


def is_float(value):
    """Return whether an integer has the same value in double precision."""
    value = int(value)
    return abs(value) <= LARGEST_FLOAT_INTEGER and int(float(value)) == value


def _float_texts(values):
    """Return floats as the strings that they have as categories."""
    numbers = pa.array(values.astype(np.float64))
    return category_keys(numbers).dictionary_decode().to_numpy(zero_copy_only=False)


def _decimal_texts(values):
    """Return decimals as the strings that they have as categories."""
    texts = _float_texts(values)
    return [exact_text(value) or text for value, text in zip(values, texts, strict=True)]


SPELLED = {
    "boolean": lambda values: [str(bool(value)) for value in values],
    "integer": _integer_texts,
    "float": _float_texts,
    "decimal": _decimal_texts,
    "text": lambda values: [str(value) for value in values],
}
"""Functions that convert Python values of each kind to their texts as categories."""
