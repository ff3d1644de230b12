"""Numbers and dates that are written as text: find the form of a column, and read it."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.columns import decoded, to_float64
from sk_easytensor.data.keys import has_enough_values

__all__ = [
    "CODE_WORDS",
    "DIRECTIVES",
    "describe_non_numbers",
    "first_text",
    "has_code_name",
    "has_numbers",
    "infer_date_format",
    "infer_number_format",
    "is_date_format",
    "is_text",
    "parse_dates",
    "parse_numbers",
    "read_dates",
    "read_numbers",
    "unread_columns",
]


MISSING_MARKERS = frozenset(
    {"", "-", "--", ".", "..", "?", "na", "n/a", "n.a.", "#n/a", "nan", "<na>", "nat", "none"}
    | {"null", "(null)", "missing", "unknown", "tbd", "not available", "not applicable", "no data"}
)
"""Texts that stand for a missing value, in lower case."""

ID_WORDS = frozenset(
    {"id", "ids", "code", "key", "sku", "ean", "isbn", "zip", "zipcode", "postcode", "phone"}
)
"""Last words of names of columns whose integers are categories."""

CODE_WORDS = ID_WORDS | frozenset(
    {"no", "nr", "number", "account", "barcode", "mobile", "tel", "telephone", "ssn", "version"}
)
"""Last words of names of columns whose texts are categories, even if they could be numbers."""

FEWEST_VALUES = 10
"""Number of distinct numbers below which a column of texts has categories."""

FIRST_LOOK = 1_000
"""Number of values that are looked at before all of them are."""

CODE_LENGTH = 5
"""Number of digits from which on integers of equal length are codes."""

CURRENCIES = (
    "USD EUR GBP JPY CHF CAD AUD NZD CNY INR SEK NOK DKK PLN CZK HUF BRL MXN ZAR KRW SGD HKD TRY"
)
"""Codes of currencies that may stand before a number."""

NUMBER = (
    rf"^(?P<sign>[-+]?)\s*(?P<prefix>[$€£¥₹]|(?:{'|'.join(CURRENCIES.split())})\s)?\s*"
    r"(?P<inner>[-+]?)(?P<number>(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d+)?)"
    r"\s*(?P<suffix>[%$€£¥₹]|[A-Za-zµ°][A-Za-zµ°/²³]{0,7})?$"
)
"""A number with a currency before it, or a currency or unit behind it."""

EXPONENT = r"(?:[eE][-+]?\d+)?"
STYLES = {
    (",", "."): rf"^(?:[1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d*)?|\d+\.?\d*{EXPONENT}|\.\d+{EXPONENT})$",
    (".", ","): rf"^(?:[1-9]\d{{0,2}}(?:\.\d{{3}})+(?:,\d*)?|\d+,?\d*{EXPONENT}|,\d+{EXPONENT})$",
}
"""Patterns of numbers by separator of thousands and decimal point."""

PLAIN = rf"^(?:\d+\.?\d*|\.\d+){EXPONENT}$"
INTEGER, LEADING_ZERO = r"^\d+$", r"^0\d"

DOTTED, GROUPED = r"\.", r"^[1-9]\d{0,2}\.\d{3}$"
"""Numbers with a dot, and those whose dot may separate thousands."""

CODED = r"^\d+[eE]\d+$|^\d+\.\d+\.\d+\.\d+$"
"""Codes such as 12E3, and addresses such as 192.168.101.201."""

DIRECTIVES = {
    "%d": r"(?P<day>\d{1,2})",
    "%m": r"\d{1,2}",
    "%Y": r"[12]\d{3}",
    "%y": r"\d{2}",
    "%b": r"[A-Za-z]{3}",
    "%B": r"[A-Za-z]{3,9}",
    "%H": r"\d{1,2}",
    "%I": r"\d{1,2}",
    "%M": r"\d{2}",
    "%S": r"\d{2}",
    "%p": r"[AaPp][Mm]",
}
"""Patterns of the directives of formats of dates."""

DAYS = [
    *["%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%m-%d-%Y", "%d-%m-%Y"],
    *["%d.%m.%Y", "%m.%d.%Y", "%Y.%m.%d", "%d %b %Y", "%d %B %Y", "%d-%b-%Y"],
    *["%b %d, %Y", "%B %d, %Y", "%b %d %Y"],
]
"""Formats of days. Of two that read all values, the first is taken: the month is first, except
before dots. Years of two digits are not recognized: they may be days, or of two centuries."""

ISO_FORMATS = ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"]
"""Formats that are read whatever the format of a column."""

CLOCKS = ["", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "T%H:%M", "T%H:%M:%S"]
"""Formats of times of day after the day."""


def is_text(kind):
    """Return whether an Arrow type is that of texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def has_code_name(name, words=ID_WORDS):
    """Return whether the values of a column are codes by its name, such as ``brand_id``.

    Parameters
    ----------
    name : str
        Name of the column.
    words : set of str
        Last words of the names of codes.

    Examples
    --------
    >>> [has_code_name(name) for name in ("brand_id", "zipCode", "valid", "ID")]
    [True, True, False, True]
    """
    snake_case = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower()
    return re.split(r"[^a-z0-9]+", snake_case)[-1] in words


# ---------------------------------------------------------------------- numbers


def infer_number_format(column):
    """Return how the numbers of a column of texts are written, or None if it is not one of numbers.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of strings
        A sample of the column.

    Returns
    -------
    dict of {str: str} or None
        ``prefix``, such as ``"$"``, ``suffix``, such as ``"%"``, separator of ``thousands`` and
        ``decimal`` point. All values but those that stand for missing ones are written in this
        form. None if one is not.

    Examples
    --------
    >>> prices = pa.chunked_array([[f"${n},500.00" for n in range(1, 12)] + ["N/A"]])
    >>> infer_number_format(prices)
    {'prefix': '$', 'suffix': '', 'thousands': ',', 'decimal': '.'}
    """
    first = _first_texts(column)
    if not len(first):
        # Texts that stand for missing values alone.
        return dict(ANY_FORMAT) if column.null_count < len(column) else None
    found = _number_format(first)
    found = None if found is None else _number_format(column)
    return None if found is None else found[0]


def describe_non_numbers(column):
    """Return why a column of texts has no format of numbers, with examples.

    Examples
    --------
    >>> describe_non_numbers(pa.chunked_array([["1.5", "a lot"]]))
    "it holds 'a lot'"
    >>> describe_non_numbers(pa.chunked_array([["$1.5", "€1.5"]]))
    "it holds numbers in several forms, such as '$1.5' and '€1.5'"
    """
    texts = _without_markers(column)
    others = texts.filter(pc.is_null(pc.extract_regex(texts, pattern=NUMBER)))
    if len(others):
        return f"it holds {others[0].as_py()!r:.60}"
    form = infer_number_format(texts.slice(0, 1)) or ANY_FORMAT
    other = texts.filter(pa.array(np.isnan(_parse_numbers(texts, form))))
    if not len(other):
        return f"it holds {texts[0].as_py()!r:.60}, whose dot may also separate thousands"
    return (
        f"it holds numbers in several forms, such as {texts[0].as_py()!r:.60} and "
        f"{other[0].as_py()!r:.60}"
    )


def has_numbers(column, name=""):
    """Return whether a column of texts holds numbers rather than categories.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of strings
        A sample of the column.
    name : str, default=""
        Name of the column, which may say that its values are codes.

    Returns
    -------
    bool
        False if there is no form in which all numbers are written, if fewer than ten of them are
        distinct, or if they may be codes: numbers with leading zeros, integers without anything
        else in the column, integers of equal length.

    Examples
    --------
    >>> [
    ...     has_numbers(pa.chunked_array([[text.format(n) for n in range(20)] + ["N/A"]]))
    ...     for text in ("{}", "{}.5 kg", "0{}", "room {}")
    ... ]
    [True, True, False, False]
    """
    if has_code_name(name, CODE_WORDS) or _number_format(_first_texts(column)) is None:
        return False
    found = _number_format(column)
    return found is not None and found[1] >= FEWEST_VALUES and not found[2]


def _number_format(column):
    """Return the format of all numbers, how many there are, and whether they may be codes."""
    values = _normalized(column.drop_null().unique())
    missing = _are_markers(values)
    texts = values.filter(pc.invert(missing)).unique()
    if not len(texts):
        return None
    parts = pc.extract_regex(texts, pattern=NUMBER)
    if parts.null_count:
        return None
    number, suffix, prefix = (_part(parts, name) for name in ("number", "suffix", "prefix"))
    prefixes, suffixes = prefix.unique().to_pylist(), suffix.unique().to_pylist()
    style = _style(number)
    if len(prefixes) > 1 or len(suffixes) > 1 or style is None:
        return None
    signs = [sign for name in ("sign", "inner") for sign in _part(parts, name).unique().to_pylist()]
    bare = not (prefixes[0] or suffixes[0] or "-" in signs) and _all_match(number, INTEGER)
    lengths = pc.utf8_length(number).unique().to_pylist()
    # Integers beside texts such as "N/A" are numbers, which would not be texts otherwise.
    alone = not pc.any(missing).as_py()
    may_be_codes = bare and (alone or (len(lengths) == 1 and lengths[0] >= CODE_LENGTH))
    form = {"prefix": prefixes[0], "suffix": suffixes[0], "thousands": style[0]}
    form["decimal"] = style[1]
    # Of numbers, 3.1 and 3.10 are the same, but not of versions.
    parsed = _parse_numbers(texts, form)
    if np.isnan(parsed).any():
        return None
    n_values = len(np.unique(parsed))
    may_be_codes |= n_values < len(texts)
    may_be_codes |= any(_any_match(number, pattern) for pattern in (LEADING_ZERO, CODED))
    return form, len(texts), may_be_codes


ANY_FORMAT = {"prefix": "", "suffix": "", "thousands": ",", "decimal": "."}
"""Format of a column without numbers."""


def _style(numbers):
    """Return the separator of thousands and the decimal point of all numbers, or None.

    None also where a dot before three digits may be either, as in 1.428 and 12.300.
    """
    if _all_match(numbers, PLAIN):
        dotted = numbers.filter(pc.match_substring_regex(numbers, DOTTED))
        is_ambiguous = len(dotted) and _all_match(dotted, GROUPED)
        # Larger numbers with separators may follow.
        return None if is_ambiguous else (",", ".")
    for style, pattern in STYLES.items():
        if _all_match(numbers, pattern):
            return style
    return None


def parse_numbers(column, form):
    """Return the numbers of a column of texts.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of strings
        Texts.
    form : dict of {str: str}
        Result of :func:`infer_number_format`.

    Returns
    -------
    ndarray of float64
        Numbers; NaN for texts that are not written in this form. Prefix and suffix may be absent.

    Examples
    --------
    >>> form = {"prefix": "$", "suffix": "", "thousands": ",", "decimal": "."}
    >>> parse_numbers(pa.chunked_array([["$1,428.50", "-3", "N/A", None, "5 %"]]), form).tolist()
    [1428.5, -3.0, nan, nan, nan]
    """
    return _by_distinct_value(column, lambda texts: _parse_numbers(texts, form), np.nan)


def _parse_numbers(texts, form):
    parts = pc.extract_regex(_normalized(texts), pattern=NUMBER)
    number = _part(parts, "number")
    valid = pc.is_valid(parts)
    has_two_signs = pc.and_(*(pc.not_equal(_part(parts, name), "") for name in ("sign", "inner")))
    valid = pc.and_(valid, pc.invert(has_two_signs))
    for name in ("prefix", "suffix"):
        options = pa.array(["", form[name]], pa.large_string())
        valid = pc.and_(valid, pc.is_in(_part(parts, name), value_set=options))
    style = STYLES[form["thousands"], form["decimal"]]
    valid = pc.and_(valid, pc.match_substring_regex(number, style))
    number = pc.replace_substring(number, form["thousands"], "")
    number = pc.replace_substring(number, form["decimal"], ".")
    valid = pc.and_(valid, pc.match_substring_regex(number, PLAIN))
    values = pc.if_else(valid, number, "nan").cast(pa.float64()).to_numpy(zero_copy_only=False)
    negative = [pc.equal(_part(parts, name), "-") for name in ("sign", "inner")]
    sign = pc.if_else(pc.xor(*negative), -1.0, 1.0).to_numpy(zero_copy_only=False)
    # Numbers beyond the range of double precision are no numbers either.
    return np.where(np.isfinite(values), values * sign, np.nan)


def read_numbers(column, name, form, *, block="NumericBlock"):
    """Return a column as float64, which holds numbers, or texts if there is a format for them.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Column to read.
    name : str
        Name of the column, for error messages.
    form : dict of {str: str} or None
        Result of :func:`infer_number_format` for the rows of fit.
    block : str, default="NumericBlock"
        Class name of the block that reads the column, for error messages.

    Returns
    -------
    ndarray of float64
        Numbers, NaN where missing.

    Raises
    ------
    TypeError
        If the column is of another type.
    """
    texts = column if form is None else decoded(column)
    if form is not None and is_text(texts.type):
        return parse_numbers(texts, form)
    return to_float64(column, name, block=block)


# ---------------------------------------------------------------------- dates


def is_date_format(form):
    """Return whether a value is a format of dates: known directives, a day, a month and a year.

    Examples
    --------
    >>> [is_date_format(form) for form in ("%d.%m.%Y", "%H:%M", "%Q %Y", 3)]
    [True, False, False, False]
    """
    if not isinstance(form, str):
        return False
    directives = set(re.findall("%.?", form))
    has_all = all(directives & one for one in ({"%d"}, {"%m", "%b", "%B"}, {"%Y", "%y"}))
    return has_all and directives <= DIRECTIVES.keys()


def infer_date_format(column):
    """Return the format of the dates of a column of texts, or None if it is not one of dates.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of strings
        A sample of the column.

    Returns
    -------
    format : str or None
        Format as of :func:`time.strptime`. It reads all values but those that stand for missing
        ones.
    other : str or None
        Another format that reads them all, with day and month exchanged.

    Examples
    --------
    >>> infer_date_format(pa.chunked_array([["05/17/2013 06:00 PM", "N/A", "1/2/2014 12:30 AM"]]))
    ('%m/%d/%Y %I:%M %p', None)
    >>> infer_date_format(pa.chunked_array([["1/2/2013", "3/4/2013"]]))
    ('%m/%d/%Y', '%d/%m/%Y')
    """
    first = _first_texts(column)
    if not len(first) or not _any_match(first, r"^(\d{1,4}[-/. ]|[A-Za-z]{3,9} \d)"):
        return None, None
    formats = [day + clock for day in DAYS for clock in CLOCKS]
    formats = [form for form in formats if _all_dates(first.slice(0, 1), form)]
    formats = [form for form in formats if _all_dates(first, form)]
    if formats:
        values = _without_markers(column)
        formats = [form for form in formats if _all_dates(values, form)]
    if not formats:
        return None, None
    exchanged = {"%d": "%m", "%m": "%d"}
    swapped = re.sub("%[dm]", lambda found: exchanged[found[0]], formats[0])
    return formats[0], swapped if swapped in formats[1:] else None


def _all_dates(texts, form):
    return not pc.any(pc.is_null(_parse_dates(texts, form))).as_py()


def parse_dates(column, form):
    """Return the dates of a column of texts.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of strings
        Texts.
    form : str
        Format as of :func:`time.strptime`.

    Returns
    -------
    pyarrow.ChunkedArray of timestamp[s]
        Wall-clock times; null for texts that are neither in this format nor in ISO 8601, and for
        days that do not exist.

    Examples
    --------
    >>> parse_dates(pa.chunked_array([["17.05.2013", "30.02.2013", "?"]]), "%d.%m.%Y").to_pylist()
    [datetime.datetime(2013, 5, 17, 0, 0), None, None]
    """
    missing = np.iinfo(np.int64).min
    seconds = _by_distinct_value(
        column,
        lambda texts: pc.fill_null(_parse_any(texts, form).cast(pa.int64()), missing).to_numpy(),
        missing,
    )
    times = pa.array(seconds, mask=seconds == missing).cast(pa.timestamp("s"))
    return pa.chunked_array([times])


def read_dates(column, form):
    """Return a column as it is, or the timestamps of its texts if there is a format for them."""
    texts = column if form is None else decoded(column)
    return parse_dates(texts, form) if form is not None and is_text(texts.type) else column


def _parse_any(texts, form):
    """Return the dates of texts in a format or in ISO 8601."""
    times = _parse_dates(texts, form)
    for other in ISO_FORMATS if times.null_count else ():
        times = pc.coalesce(times, _parse_dates(texts, other))
    return times


def _parse_dates(texts, form):
    """Return an array of timestamps, null where a text is no date in a format."""
    texts = _normalized(texts)
    parts = re.split("(%.)", form)
    pattern = "".join(DIRECTIVES.get(part) or re.escape(part) for part in parts)
    day = pc.struct_field(pc.extract_regex(texts, pattern=f"^{pattern}$"), "day")
    times = pc.strptime(texts, format=form, unit="s", error_is_null=True)
    # strptime reads February 30 as a day of March.
    day = pc.fill_null(day, "0").cast(pa.int64())
    exists = pc.fill_null(pc.equal(pc.day(times), day), False)
    return pc.if_else(exists, times, pa.scalar(None, times.type))


# ---------------------------------------------------------------------- texts


def unread_columns(table, names, formats, is_missing):
    """Return the columns of texts with several values, none of which could be read.

    Parameters
    ----------
    table : pyarrow.Table
        Rows.
    names : list of str
        Names of columns.
    formats : list of dict or str
        Format of the texts of each column; None for a column of another kind.
    is_missing : ndarray of bool, shape (n_rows, n_columns)
        Which values could not be read.

    Returns
    -------
    list of str
    """
    none_read = is_missing.all(axis=0)
    return [
        name
        for name, form, none in zip(names, formats, none_read, strict=True)
        if none
        and form is not None
        and is_text(decoded(table.column(name).slice(0, 0)).type)
        and has_enough_values(table.column(name))
    ]


def _are_markers(texts):
    markers = pa.array(sorted(MISSING_MARKERS), texts.type)
    return pc.is_in(pc.utf8_lower(texts), value_set=markers)


def _first_texts(column):
    """Return some distinct texts of a column that do not stand for a missing value."""
    for n_rows in (FIRST_LOOK, len(column)):
        first = _without_markers(column.slice(0, n_rows))
        if len(first):
            return first.slice(0, FIRST_LOOK)
    return first


def first_text(column):
    """Return a text of a column that does not stand for a missing value, None if there is none."""
    first = _first_texts(column)
    return first[0].as_py() if len(first) else None


def _without_markers(column):
    """Return the distinct texts that do not stand for a missing value."""
    values = _normalized(column.drop_null().unique())
    return values.filter(pc.invert(_are_markers(values))).unique()


def _normalized(texts):
    """Return texts without spaces around them, and with plain spaces within."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, "[\u00a0\u2009\u202f]", " "))


def _part(parts, name):
    """Return a group of a pattern, empty where it is absent."""
    return pc.fill_null(pc.struct_field(parts, name), "").cast(pa.large_string())


def _all_match(texts, pattern):
    return pc.all(pc.match_substring_regex(texts, pattern)).as_py()


def _any_match(texts, pattern):
    return pc.any(pc.match_substring_regex(texts, pattern)).as_py()


def _by_distinct_value(column, read, missing):
    """Apply a function to the distinct texts of a column; return an array of all rows."""
    # With 64-bit offsets, all chunks fit into one array.
    column = column.cast(pa.large_string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    values = np.append(read(encoded.dictionary), missing)
    indices = pc.fill_null(encoded.indices, len(values) - 1).to_numpy(zero_copy_only=False)
    return values[indices]
