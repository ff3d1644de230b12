"""Categories as strings, and hashes of strings: one spelling per value, whatever its type.

:func:`category_keys` owns it. Blocks, keys of two-tower models, exported files and columns
of mixed Python objects all use it:

- integers, and floats without a fraction that 64 bits hold, are written in decimals;
- other floats as Arrow writes them in double precision, and -0.0 as 0.0;
- decimals as the float of the same value, with all their digits where there is none;
- booleans are 1 and 0, and so are the texts ``True`` and ``False``;
- dates, and times at midnight without a time zone, are ``2024-01-31``; other times are
  ``2024-01-31 12:30:00.5``, whatever their unit, and in UTC with a Z if they have a time zone;
- texts are what they are.
"""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.type_names import type_name

__all__ = [
    "BOOLEAN_TEXTS",
    "MISSING",
    "SEVERAL",
    "UNSEEN",
    "are_several",
    "canonical_texts",
    "category_keys",
    "check_family",
    "exact_text",
    "hash_strings",
    "value_family",
]


MISSING, UNSEEN = 0, 1
"""Codes of missing values and of categories that fit did not see."""

SEVERAL = 10
"""Rows with a value of which not one is known before a warning says so."""

BOOLEAN_TEXTS = {"False": "0", "True": "1"}
"""Texts that stand for booleans, and how these are spelled."""

BOOLEANS_OF_TYPE = {
    kind: (pa.array(BOOLEAN_TEXTS, kind), pa.array(BOOLEAN_TEXTS.values(), kind))
    for kind in (pa.string(), pa.large_string())
}
"""The same as arrays, by the type of text."""

TEXT, NUMBERS, DATES, INSTANTS = "text", "numbers", "dates", "dates with a time zone"
"""What the values of a type are; only text can be spelled as the others are."""

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
"""By the numbers of types; looking one up takes less time than testing for each."""

ACCEPTED = {
    TEXT: "values of any kind that it reads",
    NUMBERS: "integers, floats, booleans or their text",
    DATES: "dates, timestamps without a time zone or their text (2024-01-31 12:30:00)",
    INSTANTS: "timestamps with a time zone or their text in UTC (2024-01-31 12:30:00Z)",
}
"""What a column fitted on a family of types accepts."""


def category_keys(column, *, boolean_texts=True):
    """Return a column's values as a dictionary array whose dictionary holds strings.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Of any type that :class:`CategoryBlock` accepts.
    boolean_texts : bool, default=True
        Whether the texts True and False are spelled as booleans are.

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
    given = pa.types.is_dictionary(kind)
    if not given:
        column = column.dictionary_encode()
    elif column.num_chunks > 1:
        if any(chunk.dictionary.null_count for chunk in column.chunks):
            # Arrow unifies no dictionaries that hold a null.
            column = column.cast(kind.value_type).dictionary_encode()
        column = column.unify_dictionaries()
    if column.num_chunks == 1:
        array = column.chunk(0)
    else:
        array = pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
    if given and len(array.dictionary) > len(array):
        # Few rows of many levels: only those in use need a spelling.
        array = array.dictionary_decode().dictionary_encode()
    indices, spelled = array.indices, _spelled(array.dictionary)
    keys = (
        canonical_texts(spelled) if boolean_texts and _is_text(array.type.value_type) else spelled
    )
    if given or keys is not spelled:
        # Dictionaries of users may hold a value twice, or values of one spelling.
        distinct = keys.dictionary_encode()
        if distinct.null_count or len(distinct.dictionary) < len(keys):
            indices, keys = distinct.indices.take(indices), distinct.dictionary
    return pa.DictionaryArray.from_arrays(indices, keys)


def are_several(column):
    """Tell whether a column has values enough to warn of when none of them is a known category.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Of any type that :class:`CategoryBlock` accepts.

    Returns
    -------
    bool
        Whether at least ten values are there, two different ones among them.
    """
    if len(column) - column.null_count < SEVERAL:
        return False
    indices = category_keys(column).indices
    present = len(indices) - indices.null_count
    # Dictionaries may hold more than is in use.
    return present >= SEVERAL and pc.count_distinct(indices).as_py() > 1


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
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(size, 2.0**63))
    integers = pc.if_else(whole, numbers, 0.0).cast(pa.int64()).cast(pa.string())
    texts = pc.if_else(whole, integers, numbers.cast(pa.string()))
    largest = pc.max(size).as_py()
    if largest is None or largest < 2.0**63:
        return texts
    # Rare: integers of 64 bits with and without a sign end at different bounds.
    found = [
        text if number is None or not _fits(number) else str(int(number))
        for number, text in zip(numbers.to_pylist(), texts.to_pylist(), strict=True)
    ]
    return pa.array(found, pa.string())


def _spelled_decimals(values):
    numbers = values.cast(pa.float64())
    texts = _spelled_floats(numbers)
    # Whole numbers up to 2**53, and others of 15 digits, are those of a float.
    scale = values.type.scale
    long = pc.greater_equal(pc.abs(numbers), 2.0**53 if scale <= 0 else 10.0 ** (15 - scale))
    if not pc.any(long).as_py():
        return texts
    found = texts.to_pylist()
    for row in pc.indices_nonzero(pc.fill_null(long, False)).to_pylist():
        found[row] = exact_text(values[row].as_py()) or found[row]
    return pa.array(found, pa.string())


def exact_text(value):
    """Return a decimal with all its digits, or None if there is a float of the same value.

    Parameters
    ----------
    value : decimal.Decimal
        Of any size.

    Returns
    -------
    str or None

    Examples
    --------
    >>> exact_text(Decimal(2**53 + 1)), exact_text(Decimal(2**53)), exact_text(Decimal("0.1"))
    ('9007199254740993', None, None)
    """
    if not value.is_finite():
        return None
    number = float(value)
    if value == value.to_integral_value():
        return None if value == Decimal(number) else str(int(value))
    if value == Decimal(repr(number)):
        return None
    return f"{value:f}".rstrip("0")


def _fits(number):
    """Tell whether a float is an integer of 64 bits."""
    return -(2**63) <= number < 2**64 and number.is_integer()


def _spelled_times(times):
    kind = times.type
    # Without its zone, a time is shown in UTC.
    texts = times.cast(pa.timestamp(kind.unit)).cast(pa.string())
    if kind.unit != "s":
        texts = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    if kind.tz is not None:
        return pc.binary_join_element_wise(texts, "Z", "")
    return pc.replace_substring_regex(texts, " 00:00:00$", "")


def canonical_texts(texts):
    """Return texts as :func:`category_keys` spells them; the same array if none changes.

    Parameters
    ----------
    texts : pyarrow.Array or ChunkedArray of string or large_string
        With nulls where missing.

    Returns
    -------
    pyarrow.Array or ChunkedArray
    """
    written, spelled = BOOLEANS_OF_TYPE[texts.type]
    places = pc.index_in(texts, value_set=written)
    if places.null_count == len(places):
        return texts
    return pc.coalesce(spelled.take(places), texts)


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def value_family(kind):
    """Return what values of an Arrow type are, or None of a type without values, or another type.

    Parameters
    ----------
    kind : pyarrow.DataType
        Of a column.

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
    """Refuse values that differ in kind from those of fit, whatever they are spelled like.

    Parameters
    ----------
    kind : pyarrow.DataType
        Of the column.
    fitted : dict of {str: str}
        The families that fit saw and a type of each.
    name : str
        Of the column.
    owner : str
        Class name for messages.

    Raises
    ------
    TypeError
        Naming the column, both types and what would be accepted.
    """
    family = value_family(kind)
    if family is None or not fitted or family in fitted or TEXT in (family, *fitted):
        return
    accepted = " or ".join(ACCEPTED[each] for each in fitted)
    raise TypeError(
        f"column {name!r} is of type {type_name(kind)} ({family}), but {owner} was fitted on "
        f"{', '.join(fitted.values())} ({', '.join(fitted)}); it accepts {accepted}"
    )


def hash_strings(values):
    """Return a stable 64-bit hash of each string of an Arrow array, as an array of uint64."""
    from pandas.util import hash_array

    return hash_array(values.to_numpy(zero_copy_only=False).astype(object), categorize=False)
