"""Readers of columns as arrays for an exported graph, without torch and scikit-learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sk_easytensor.data.columns import cast_column, is_list, read_lists, read_vectors, to_float64
from sk_easytensor.data.datetimes import read_instants
from sk_easytensor.data.keys import category_keys, check_family, hash_strings
from sk_easytensor.data.ngrams import NgramVocabulary, distinct_texts, weighted_ngrams
from sk_easytensor.data.sparse import encode_sparse
from sk_easytensor.data.spelling import read_dates, read_numbers
from sk_easytensor.data.type_names import type_name

__all__ = [
    "MISSING_STRING",
    "MISSING_TIME",
    "category_values",
    "readers",
]


MISSING_STRING = "\uffff"
"""Missing string: a code point that is not a character."""

MISSING_TIME = -(2**63)
"""Missing time: the least int64."""

MISSING_SECONDS = -(2**62) // 1_000_000
"""Earlier than any time, in seconds."""

FIRST_BUCKET = 2
"""Code of the first bucket of hashed categories."""


def readers(specs):
    """Return the readers of a graph's inputs.

    Parameters
    ----------
    specs : list of dict
        Specifications of the readers, from the metadata of the file.

    Returns
    -------
    list of callable
        Functions of a table that return a dictionary of arrays by name of the input.
    """
    return [READERS[spec["read"]](spec) for spec in specs]


class Column:
    """Reader of a column with one value a row."""

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, table):
        """Return a dictionary with the array of the input."""
        values = READ[self.spec["read"]](table.column(self.spec["column"]), self.spec)
        return {self.spec["name"]: values}


def numbers(column, spec):
    """Return numbers, float64, NaN where missing."""
    return read_numbers(column, spec["column"], spec.get("format"))


def strings(column, spec):
    """Return categories as an array of strings, U+FFFF where missing."""
    check_family(column.type, spec.get("types"), spec["column"], "CategoryBlock")
    # The graph has the spellings of booleans.
    keys = category_keys(column, boolean_texts=False)
    words = keys.dictionary.to_numpy(zero_copy_only=False).astype(object)
    if MISSING_STRING in words.tolist():
        # No category consists of this character, so that a string of two is unknown as well.
        words[words == MISSING_STRING] = 2 * MISSING_STRING
    words = np.append(words, MISSING_STRING)
    return words[pc.fill_null(keys.indices, len(keys.dictionary)).to_numpy(zero_copy_only=False)]


def times(column, spec):
    """Return microseconds since 1970, in UTC for a column with a zone, else by the wall clock."""
    column = read_dates(column, spec.get("format"))
    instants = read_instants(column, spec["column"], spec.get("zone"))
    missing = np.isnan(instants)
    whole = np.floor(np.where(missing, 0, instants))
    rest = np.where(missing, 0, instants) - whole
    microseconds = whole.astype(np.int64) * 1_000_000 + np.rint(rest * 1e6).astype(np.int64)
    return np.where(missing, MISSING_TIME, microseconds)


def clock_seconds(column, spec):
    """Return times of events in seconds, float64, NaN where missing."""
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return read_instants(column, spec["column"], spec.get("zone"))
    return to_float64(column, spec["column"], block="EventSequenceBlock")


def vectors(column, spec):
    """Return vectors, float64 of shape (rows, length), NaN where missing."""
    name, length = spec["column"], spec["length"]
    # With length 0, all vectors were missing during fit.
    if length == 0 or pa.types.is_null(column.type):
        return np.full((len(column), length), np.nan)
    if not is_list(column.type):
        raise TypeError(
            f"column {name!r} is of type {type_name(column.type)}; it must hold vectors"
        )
    return read_vectors(
        column,
        name,
        length,
        lambda items: cast_column(items, name, pa.float64(), block="VectorBlock", rows=False),
    )


def hashed(column, spec):
    """Return the codes of hashed categories, int64, 0 where missing."""
    check_family(column.type, spec.get("types"), spec["column"], "CategoryBlock")
    keys = category_keys(column)
    codes = hash_strings(keys.dictionary) % np.uint64(spec["buckets"])
    codes = np.append(codes.astype(np.int64) + FIRST_BUCKET, 0)
    return codes[pc.fill_null(keys.indices, len(codes) - 1).to_numpy(zero_copy_only=False)]


READ = {
    "number": numbers,
    "category": strings,
    "time": times,
    "seconds": clock_seconds,
    "vector": vectors,
    "hashed": hashed,
}
"""Functions from columns to arrays, by kind."""

FILL = {"number": np.nan, "category": "", "time": MISSING_TIME, "seconds": np.nan, "hashed": 0}
"""Padding of lists, by kind."""


class ListColumns:
    """Reader of parallel columns of lists."""

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, table):
        """Return a dictionary with the padded items of each field and the lengths."""
        spec = self.spec
        columns = list(dict.fromkeys(field["column"] for field in spec["fields"]))
        for name in columns:
            kind = table.schema.field(name).type
            if not (is_list(kind) or pa.types.is_null(kind)):
                raise TypeError(f"column {name!r} is of type {type_name(kind)}; it must hold lists")
        limits = {"max_length": spec["max_length"], "keep": spec["keep"]}
        lists = read_lists(table.select(columns), block=spec["owner"], **limits)
        lengths = np.diff(lists.offsets)
        longest = max(int(lengths.max(initial=0)), 1)
        inside = np.arange(longest) < lengths[:, None]
        arrays = {spec["lengths"]: lengths}
        for field in spec["fields"]:
            items = lists.items.column(field["column"])
            if "inner" in field and not pa.types.is_null(items.type):
                items = pc.struct_field(items, field["inner"])
            values = READ[field["kind"]](items, field)
            padded = np.full(inside.shape, FILL[field["kind"]], values.dtype)
            padded[inside] = values
            arrays[field["name"]] = padded
        return arrays


def category_values(table, watched):
    """Return the values of a column of categories, or the items of a column of lists of them.

    Parameters
    ----------
    table : pyarrow.Table
        Rows.
    watched : dict
        Column, in the form of :meth:`Graph.watch`.

    Returns
    -------
    pyarrow.ChunkedArray
    """
    column = table.column(watched["column"])
    if is_list(column.type):
        column = pc.list_flatten(column)
    inner = watched.get("inner")
    absent = inner is None or pa.types.is_null(column.type)
    return column if absent else pc.struct_field(column, inner)


class Ngrams:
    """Reader of text columns: ids and weights of their n-grams."""

    def __init__(self, spec):
        self.spec = spec
        self.ngram_range = tuple(spec["ngram_range"])
        self.idf = [np.float32(column) for column in spec["idf"]]
        self.first = np.cumsum([0, *map(len, self.idf)])
        self.vocabularies = [
            NgramVocabulary(pa.array(column, pa.large_string()), self.ngram_range)
            for column in spec["ngrams"]
        ]

    def __call__(self, table):
        """Return a dictionary with ids, weights and lengths."""
        columns = [self._column(table, index) for index in range(len(self.idf))]
        return padded_ids(columns, self.spec["names"])

    def _column(self, table, index):
        """Return ids, weights and offsets of one column."""
        name = self.spec["columns"][index]
        column = cast_column(table.column(name), name, pa.large_string(), block="TextBlock")
        vocabulary = self.vocabularies[index] if self.vocabularies else None
        ids, weights, lengths = [], [], []
        for texts, rows in distinct_texts(column):
            ngrams, weight, offsets = weighted_ngrams(
                texts, self.idf[index], self.ngram_range, vocabulary
            )
            counts = np.diff(offsets)[rows]
            position = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            position += np.repeat(offsets[:-1][rows], counts)
            ids.append(ngrams[position] + self.first[index])
            weights.append(weight[position])
            lengths.append(counts)
        offsets = np.append(0, np.cumsum(np.concatenate(lengths)))
        return np.concatenate(ids), np.concatenate(weights), offsets


class SparseVectors:
    """Reader of columns of sparse vectors."""

    def __init__(self, spec):
        self.spec = spec
        features = [np.array(column, np.int32) for column in spec["features"]]
        self.first = np.cumsum([0, *map(len, features)])
        scales = map(np.float64, spec["scale"])
        self.fitted = list(zip(spec["n_features"], features, scales, strict=True))

    def __call__(self, table):
        """Return a dictionary with ids, weights and lengths."""
        columns = []
        for index, name in enumerate(self.spec["columns"]):
            fitted = self.fitted[index]
            offsets, ids, weights = encode_sparse(table.column(name), name, *fitted)
            columns.append((ids + self.first[index], weights, offsets))
        return padded_ids(columns, self.spec["names"])


def padded_ids(columns, names):
    """Return lists of ids and weights as padded arrays for the inputs of a graph.

    Parameters
    ----------
    columns : list of (ids, weights, offsets)
        Arrays of each column.
    names : dict of {str: str}
        Names of the inputs ``ids``, ``weights`` and ``lengths``.

    Returns
    -------
    dict of {str: ndarray}
        Arrays by name of the input.
    """
    lengths = np.stack([np.diff(offsets) for _, _, offsets in columns], axis=1)
    longest = max(int(lengths.max(initial=0)), 1)
    inside = np.arange(longest) < lengths[..., None]
    ids = np.zeros(inside.shape, np.int32)
    weights = np.zeros(inside.shape, np.float32)
    for index, (column_ids, column_weights, _) in enumerate(columns):
        ids[:, index][inside[:, index]] = column_ids
        weights[:, index][inside[:, index]] = column_weights
    return {names["ids"]: ids, names["weights"]: weights, names["lengths"]: lengths}


READERS = {
    **dict.fromkeys(READ, Column),
    "lists": ListColumns,
    "ngrams": Ngrams,
    "sparse": SparseVectors,
}
"""Classes of readers, by kind."""
