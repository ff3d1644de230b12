"""Block of categories: a learned or hashed vocabulary and an embedding per column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn import functional

from sk_easytensor._utils.validation import check_number, warn_user
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.data.keys import (
    BOOLEAN_TEXTS,
    DATES,
    INSTANTS,
    MIN_VALUES_TO_WARN,
    MISSING,
    NUMBERS,
    UNSEEN,
    canonical_texts,
    category_keys,
    check_family,
    has_enough_values,
    hash_strings,
    value_family,
)
from sk_easytensor.data.summaries import Summary, SummaryMap, ValueCounts, cached_slices
from sk_easytensor.data.type_names import type_name
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.linear import indicator_weights
from sk_easytensor.onnx.readers import MISSING_STRING

__all__ = [
    "CategoryBlock",
    "CategoryModule",
    "category_keys",
    "hash_strings",
]


KNOWN = 2
"""Code of the most frequent category, the first after those for missing and unseen."""
MAX_CATEGORIES = 1_000_000
"""Default of ``max_categories``; a limit that the user did not choose warns where it matters."""
MAX_MASKED = 0.8
"""Largest fraction of a rare category's training rows that are masked as unseen."""
STRINGS = (pa.string(), pa.large_string())
MAX_SCALED_ROWS = 1024
"""Embedding tables with at most this many rows are scaled as a whole before the look-up."""
LARGE_TABLE = 1_000_000
"""Number of entries from which on the gradients of a table are sparse."""
LARGEST_EXACT = 2**24
"""Largest integer up to which single precision represents all integers."""
REVERSE_LOOKUP_RATIO = 4
"""Smallest ratio of categories to values at which categories are looked up among the values."""


MAX_INDICATORS = 100
"""Largest number of categories of a column whose indicators the linear model reads."""

FEWEST_ROWS = 3
"""Smallest number of training rows of such a category."""


class CategoryBlock(Block):
    """Read strings, integers, booleans and categoricals, with an embedding for each category.

    Parameters
    ----------
    min_frequency : int, default=1
        Smallest number of training rows of a category. Rarer categories have the code of unseen
        ones.
    max_categories : int, default=1_000_000
        Largest number of categories of a column; the most frequent ones are retained. If the
        default leaves out categories, a warning says of how many rows.
    hash_buckets : int or None, default=None
        Number of buckets into which categories are hashed, without a vocabulary. Use it for
        columns with an unbounded number of categories. None learns a vocabulary.
    width : int or None, default=None
        Embedding dimension. By default it grows from 2 to 32 with the number of categories, where
        each category counts with its shrinkage factor (see `shrinkage`), unless no category occurs
        twice or `rarity` is 0.
    unseen_probability : float, default=0.01
        Probability with which a training value is masked as unseen, so that the network learns to
        predict for unseen categories.
    shrinkage : float, default=50.0
        Number of rows at which the shrinkage factor of a category is 1/2. The embedding of a
        category with n rows is initialized at ``n / (n + shrinkage)`` of the usual distance from
        the common vector of its column, and learns at that fraction of the rate. Embeddings of
        rare categories thus stay close to that of unseen ones. In two-tower models and embedders
        the factor applies only to the initialization.
    rarity : float, default=8.0
        Strength of the masking of rare categories, which prevents memorizing their rows: a
        training row of a category with n rows is masked as unseen with probability
        ``rarity / (n + rarity)``, at most 0.8. Two-tower models and embedders do not mask,
        because they have to distinguish rare users and items.

    Attributes
    ----------
    categories_ : list of pyarrow.Array of string
        Categories of each column, the most frequent first. Empty if categories are hashed.
    counts_ : list of ndarray of int64
        Number of training rows of each category.
    types_ : list of dict of {str: str}
        For each column, the families of its values ("text", "numbers", "dates", "dates with a time
        zone") and the name of an Arrow type of each family, seen during fit.

    Raises
    ------
    TypeError
        At predict, if a column fitted on numbers holds dates or the other way round, or if only
        one of the dates of fit and predict have a time zone: no value could be a known category.

    Warns
    -----
    UserWarning
        At predict, if at least ten rows of a column have values, at least two of them distinct,
        and none is a known category.

    Notes
    -----
    A value belongs to one category, whatever the type of its column. Integers, integral floats and
    their strings are the same category, and so are booleans, 1 and 0, and the strings True and
    False. A column that is read as floats instead of integers because a value is missing has the
    same categories. Times are the same whatever their unit, a date is its midnight, and times with
    a time zone are compared as instants. Otherwise strings are compared literally: "01" and "1.0"
    are not "1".

    Examples
    --------
    >>> block = CategoryBlock().fit({"city": ["Oslo", "Lima", "Oslo", None]})
    >>> block.categories_[0].to_pylist()
    ['Oslo', 'Lima']
    >>> block.transform({"city": ["Lima", "Rome", None]})["codes"].tolist()
    [[3], [1], [0]]
    """

    kind = "category"
    accepted = "strings, integers, booleans, dictionary (categorical) columns"
    column_wise = True

    def __init__(
        self,
        *,
        min_frequency=1,
        max_categories=MAX_CATEGORIES,
        hash_buckets=None,
        width=None,
        unseen_probability=0.01,
        shrinkage=50.0,
        rarity=8.0,
    ):
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.hash_buckets = hash_buckets
        self.width = width
        self.unseen_probability = unseen_probability
        self.shrinkage = shrinkage
        self.rarity = rarity

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        if types.is_dictionary(column_type):
            return cls.accepts(column_type.value_type)
        tests = (
            types.is_string,
            types.is_large_string,
            types.is_integer,
            types.is_floating,
            types.is_decimal,
            types.is_boolean,
            types.is_null,
            types.is_date,
            types.is_timestamp,
        )
        return any(test(column_type) for test in tests)

    @classmethod
    def detects(cls, column):
        return cls.detects_type(column.type)

    @classmethod
    def detects_type(cls, kind):
        """Return whether all columns of a type are read as categories."""
        # A column without values may hold any type later, which only this block accepts.
        return (
            pa.types.is_null(kind)
            or pa.types.is_dictionary(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
        )

    def check_parameters(self):
        name = "CategoryBlock"
        check_number(name, "min_frequency", self.min_frequency, low=1, integer=True)
        check_number(name, "max_categories", self.max_categories, low=1, integer=True)
        check_number(name, "unseen_probability", self.unseen_probability, low=0, high=1)
        check_number(name, "shrinkage", self.shrinkage, low=0)
        check_number(name, "rarity", self.rarity, low=0)
        if self.hash_buckets is not None:
            check_number(name, "hash_buckets", self.hash_buckets, low=1, integer=True)
        if self.width is not None:
            check_number(name, "width", self.width, low=1, integer=True)

    def summarize(self, table):
        capacity = None if self.hash_buckets is not None else self.max_categories
        return SummaryMap(
            {
                name: CategorySummary.of(column, capacity)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def finish(self, summary):
        summaries = [summary[name] for name in self.feature_names_in_]
        self.types_ = [column.types for column in summaries]
        for name, types in zip(self.feature_names_in_, self.types_, strict=True):
            if len({NUMBERS, DATES, INSTANTS} & set(types)) > 1:
                raise TypeError(
                    f"column {name!r} holds {' and '.join(types)} (types "
                    f"{', '.join(types.values())}); {type(self).__name__} reads one kind per "
                    "column: convert them to one type"
                )
        retained = [
            column.counts.most_common(min_count=self.min_frequency, limit=self.max_categories)
            for column in summaries
            if column.counts is not None
        ]
        if self.hash_buckets is None and self.max_categories >= MAX_CATEGORIES:
            for name, column, (values, counts) in zip(
                self.feature_names_in_, summaries, retained, strict=False
            ):
                if len(values) >= self.max_categories:
                    self._warn_of_dropped(name, column.counts, int(counts.sum()))
        self.categories_ = [values for values, _ in retained]
        self.counts_ = [counts for _, counts in retained]
        return self

    def _warn_of_dropped(self, name, counts, n_retained):
        """Warn if the limit of categories, which nobody chose, left out those of many rows."""
        n_known = counts.n_rows - counts.n_missing
        if n_known > n_retained:
            warn_user(
                f"{type(self).__name__}: column {name!r} has more categories than "
                f"max_categories={self.max_categories}; {n_known - n_retained} of {n_known} rows "
                "have a rarer one, and share the vector of unseen categories: raise "
                "max_categories, or set hash_buckets"
            )

    @property
    def n_codes(self):
        """Number of codes of each column, those for missing and unseen included."""
        if self.hash_buckets is not None:
            return [self.hash_buckets + KNOWN] * self.n_features_in_
        return [len(values) + KNOWN for values in self.categories_]

    def known_categories(self, index):
        """Return the categories of a column, most frequent first; empty if they are hashed."""
        return self.categories_[index] if self.categories_ else pa.array([], pa.string())

    def encode(self, table):
        columns = []
        for index, (field, column) in enumerate(zip(table.schema, table.columns, strict=True)):
            if not self.accepts(field.type) and not self._was_empty(index):
                raise TypeError(unsupported_column(field, type(self).__name__))
            self._check_type(field, index)
            columns.append(self._column_codes(column, index))
        codes = np.empty((table.num_rows, table.num_columns), dtype=np.int32)
        for rows in cached_slices(table.num_rows):
            for index, column in enumerate(columns):
                codes[rows, index] = column[rows]
        return {"codes": torch.from_numpy(codes)}

    def _check_type(self, field, index):
        """Raise ``TypeError`` if a column's family of types differs from those seen during fit."""
        types = self.types_[index]
        if types and value_family(field.type) not in types:
            check_family(field.type, types, field.name, type(self).__name__)

    def unseen_columns(self, table, encoding):
        """Return the columns with several values, none of which is a known category.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with the block's columns, and possibly others.
        encoding : dict
            Encoding of the rows, from :meth:`encode`.

        Returns
        -------
        list of str
            Names of columns.
        """
        codes = encoding["codes"]
        if self.hash_buckets is not None or not no_category_known(codes):
            return []
        unseen = []
        for index in np.flatnonzero(codes.numpy().max(axis=0) == UNSEEN):
            name = self.feature_names_in_[index]
            if len(self.categories_[index]) and has_enough_values(table.column(name)):
                unseen.append(name)
        return unseen

    def _was_empty(self, index):
        """Return whether a column had no values during fit, so that all values are unseen."""
        return self.hash_buckets is None and len(self.categories_[index]) == 0

    def _column_codes(self, column, index):
        if not self.accepts(column.type):
            missing = column.is_null().to_numpy()
            return np.where(missing, np.int32(MISSING), np.int32(UNSEEN))
        if self.hash_buckets is None and column.type in STRINGS:
            # Looking up every row is faster than finding the distinct values first.
            codes = self._known_codes(column, index)
            if (codes == UNSEEN).any():
                texts = canonical_texts(column)
                codes = codes if texts is column else self._known_codes(texts, index)
            if column.null_count:
                codes[column.is_null().to_numpy()] = MISSING
            return codes
        keys = category_keys(column)
        dictionary = self._dictionary_codes(keys.dictionary, index)
        # Missing values, which have no index, get the index after the last.
        lookup = np.append(dictionary, np.int32(MISSING))
        return lookup[fill_nulls(keys.indices, len(dictionary))]

    def _dictionary_codes(self, values, index):
        if self.hash_buckets is not None:
            hashed = hash_strings(values) % np.uint64(self.hash_buckets)
            return hashed.astype(np.int32) + np.int32(KNOWN)
        return self._known_codes(values, index)

    def _known_codes(self, values, index):
        known = self.categories_[index]
        if REVERSE_LOOKUP_RATIO * len(values) < len(known):
            return reverse_lookup(values.cast(known.type), known)
        indices = pc.index_in(values, value_set=known.cast(values.type))
        return fill_nulls(indices, UNSEEN - KNOWN) + np.int32(KNOWN)

    def make_module(self):
        widths = [self.width or default_embedding_width(size) for size in self._effective_sizes()]
        return CategoryModule(
            widths,
            self._shrinkage_factors(),
            self.unseen_probability,
            self._masking_rates(),
            self.counts_,
        )

    def _effective_sizes(self):
        """Return the effective number of categories of each column, which sets its dimension."""
        if self.hash_buckets is not None or not self.rarity:
            return self.n_codes
        # If no category occurs twice, they are identifiers, and counts say nothing about them.
        return [
            size if counts.max(initial=1) <= 1 else float(factors.sum())
            for size, counts, factors in zip(
                self.n_codes, self.counts_, self._shrinkage_factors(), strict=True
            )
        ]

    def _shrinkage_factors(self):
        """Return the shrinkage factor of each code of each column, in [0, 1]."""
        if self.hash_buckets is not None:
            return [np.ones(size, dtype=np.float32) for size in self.n_codes]
        return [
            np.concatenate([np.zeros(KNOWN), counts / (counts + self.shrinkage)]).astype(np.float32)
            for counts in self.counts_
        ]

    def _masking_rates(self):
        """Return the probability with which a row of each code is masked for being rare."""
        if self.hash_buckets is not None:
            return [np.zeros(size, dtype=np.float32) for size in self.n_codes]
        return [
            np.concatenate(
                [np.zeros(KNOWN), np.minimum(MAX_MASKED, self.rarity / (counts + self.rarity))]
            ).astype(np.float32)
            for counts in self.counts_
        ]

    def copy_weights(self, module, previous, previous_module):
        """Copy the vectors of categories that both fits know, and those of missing and unseen."""
        if len(self.n_codes) != len(previous.n_codes) or (
            self.hash_buckets != previous.hash_buckets
        ):
            return False
        copied = False
        for index in range(len(self.n_codes)):
            own, earlier = np.arange(KNOWN), np.arange(KNOWN)
            if self.hash_buckets is not None:
                own = earlier = np.arange(self.n_codes[index])
            else:
                places = pc.index_in(
                    self.known_categories(index), value_set=previous.known_categories(index)
                )
                known = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
                own = np.append(own, KNOWN + known)
                earlier = np.append(earlier, KNOWN + places.drop_null().to_numpy())
            copied |= module.copy_column(previous_module, index, own, earlier)
        return copied

    def to_onnx(self, graph):
        codes = []
        for index, name in enumerate(self.feature_names_in_):
            column = graph.column(name, **self.onnx_column(index))
            codes.append(self.onnx_codes(graph, column, index))
        stacked = graph.stack(codes, axis=1)
        watched = map(self._watched_column, range(len(codes)), self.feature_names_in_)
        graph.watch(stacked, list(watched))
        return {"codes": stacked}

    def _watched_column(self, index, column, inner=None):
        """Return the description of a column whose unseen categories are reported, or None."""
        if not len(self.known_categories(index)):
            return None
        name, block = str(self.feature_names_in_[index]), type(self).__name__
        nested = {} if inner is None else {"inner": inner}
        return {"name": name, "block": block, "column": str(column), **nested}

    def onnx_items(self, graph, values, index, *, column, block, inner=None):
        """Add operators that convert list items to codes, and report unseen ones."""
        codes = self.onnx_codes(graph, values, index)
        watched = self._watched_column(index, column, inner)
        graph.watch(codes, [watched and {**watched, "block": block}], axes=(0, 1))
        return codes

    def onnx_column(self, index=0):
        """Return the options of a column as a graph input: as strings, or hashed."""
        types = self.types_[index]
        if self.hash_buckets is None:
            return {"kind": "category", "types": types}
        return {"kind": "hashed", "buckets": int(self.hash_buckets), "types": types}

    def onnx_codes(self, graph, values, index):
        """Add operators that convert values of a column to codes."""
        if self.hash_buckets is None:
            known = self.known_categories(index).to_pylist()
            invalid = [value for value in known if set(value) == {MISSING_STRING}]
            if invalid:
                raise ValueError(
                    f"column {self.feature_names_in_[index]!r} has the category {invalid[0]!r}, "
                    "made of U+FFFF alone, which stands for missing values in ONNX files; replace "
                    "it and fit again, or export with inputs='encoded'"
                )
            values = graph.codes(values, known, also=BOOLEAN_TEXTS)
        return graph.cast(values, np.int32)

    def flatten(self, encoding):
        """Return the codes as numbers: 0 missing, 1 unseen, then by decreasing frequency."""
        return encoding["codes"].numpy().astype(np.float32)

    def get_feature_names_out(self, input_features=None):
        return np.asarray(self.feature_names_in_, dtype=object)


class CategorySummary(Summary):
    """Summary of a column of categories.

    Parameters
    ----------
    types : dict of {str: str}
        Families of types that occur, see :func:`~sk_easytensor.data.keys.value_family`, and the
        name of one type of each.
    counts : ValueCounts or None
        Number of rows of each category; None if categories are hashed.
    """

    def __init__(self, types, counts):
        self.types = types
        self.counts = counts

    @classmethod
    def of(cls, column, capacity):
        """Summarize a column; categories are not counted if `capacity` is None."""
        family = value_family(column.type)
        # A column without values may hold values of any type later.
        empty = family is None or pc.all(column.is_null(nan_is_null=True), min_count=0).as_py()
        types = {} if empty else {family: type_name(column.type)}
        if capacity is None:
            return cls(types, None)
        return cls(types, ValueCounts.of(category_keys(column), capacity=capacity))

    def merge(self, other):
        """Return the summary of the rows of both summaries."""
        families = sorted({*self.types, *other.types})
        types = {
            family: min(part.types[family] for part in (self, other) if family in part.types)
            for family in families
        }
        counts = None if self.counts is None else self.counts.merge(other.counts)
        return CategorySummary(types, counts)


def fill_nulls(integers, missing):
    """Convert an Arrow array of integers to NumPy, with `missing` in place of nulls."""
    if integers.null_count:
        integers = pc.fill_null(integers, missing)
    return integers.to_numpy(zero_copy_only=False)


def no_category_known(codes):
    """Return whether a column has enough rows for a warning and no known category.

    Parameters
    ----------
    codes : torch.Tensor of int32, shape (n_values, n_columns)
        Codes from :class:`CategoryBlock`.

    Returns
    -------
    bool
        True if it holds for any of the columns.
    """
    return len(codes) >= MIN_VALUES_TO_WARN and bool((codes.amax(0) == UNSEEN).any())


def reverse_lookup(values, known):
    """Return the codes of a few values among many categories.

    The categories are looked up among the values, because building a hash table of all categories
    dominates the time of predicting a row: 0.17 s for a million categories.

    Parameters
    ----------
    values : pyarrow.Array or ChunkedArray
        Strings to look up.
    known : pyarrow.Array
        Categories in the order of their codes.

    Returns
    -------
    ndarray of int32
    """
    distinct = values.unique().drop_null()
    matches = pc.index_in(known, value_set=distinct)
    positions = np.flatnonzero(matches.is_valid().to_numpy(zero_copy_only=False))
    codes = np.full(len(distinct) + 1, UNSEEN, dtype=np.int32)
    codes[matches.take(pa.array(positions)).to_numpy()] = positions + KNOWN
    return codes[fill_nulls(pc.index_in(values, value_set=distinct), len(distinct))]


def default_embedding_width(n_categories):
    """Return the embedding dimension for a number of categories: a power of two from 2 to 32."""
    for limit, width in ((4, 2), (16, 4), (128, 8), (2048, 16)):
        if n_categories <= limit:
            return width
    return 32


def is_large(table):
    """Return whether a step should touch only those rows of a table that its batch contains."""
    return len(table) > MAX_SCALED_ROWS and table.numel() >= LARGE_TABLE


class CategoryModule(BlockModule):
    """Look up the embeddings of all columns, with one gather for each embedding dimension.

    Parameters
    ----------
    widths : list of int
        Embedding dimension of each column.
    shrinkage_factors : list of ndarray of float32
        Factor of the embedding of each code of each column, in [0, 1].
    unseen_probability : float
        Probability with which a code is masked as unseen during training.
    masking_rates : list of ndarray of float32
        Smallest probability with which each code of each column is masked as unseen.
    counts : list of ndarray of int64, default=()
        Number of training rows of each category of each column, the most frequent first, which
        have the codes from 2 on. The linear model reads indicators of the most frequent ones;
        without counts there are none.

    Attributes
    ----------
    masks_rare : bool
        Whether `masking_rates` applies.

    Notes
    -----
    The embedding of a code is its row of the table times its shrinkage factor, plus the common
    vector of the column. Adam divides gradients by their usual size, and so moves a row that few
    batches contain much further per training row than one that all batches contain; the factor
    compensates for it.
    """

    def __init__(self, widths, shrinkage_factors, unseen_probability, masking_rates, counts=()):
        super().__init__()
        self._set_linear_weights(counts)
        self.unseen_probability = unseen_probability
        self.masks_rare = any(column_rates.any() for column_rates in masking_rates)
        # Not part of the state dict, because the block computes it again.
        rates = torch.from_numpy(np.concatenate(masking_rates))
        self.register_buffer("masking_rate", rates, persistent=False)
        self.n_codes = [len(column_rates) for column_rates in masking_rates]
        sizes = torch.tensor(self.n_codes)
        self.register_buffer("first_code", sizes.cumsum(0) - sizes, persistent=False)
        self.out_features = sum(widths)
        self.tables = nn.ParameterList()
        self.common = nn.ParameterList()
        for size in sorted(set(widths)):
            columns = [index for index, value in enumerate(widths) if value == size]
            sizes = torch.tensor([len(shrinkage_factors[index]) for index in columns])
            factors = torch.from_numpy(
                np.concatenate([shrinkage_factors[index] for index in columns])
            )
            table = torch.randn(int(sizes.sum()), size) * size**-0.5
            # Rows with factor 0 receive no gradient, only weight decay.
            table[factors == 0] = 0
            self.tables.append(nn.Parameter(table))
            self.common.append(nn.Parameter(torch.randn(len(columns) * size) * size**-0.5))
            group = len(self.tables) - 1
            self.register_buffer(f"shrinkage_{group}", factors[:, None].clone())
            self.register_buffer(f"columns_{group}", torch.tensor(columns))
            self.register_buffer(f"starts_{group}", torch.cumsum(sizes, 0) - sizes)

    def _set_linear_weights(self, counts):
        parts = [[np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)]]
        for index, rows in enumerate(counts):
            frequent = rows[:MAX_INDICATORS]
            frequent = frequent[frequent >= FEWEST_ROWS]
            fractions = frequent / rows.sum()
            codes = KNOWN + np.arange(len(frequent), dtype=np.int32)
            parts.append([np.full(len(codes), index), codes, indicator_weights(fractions)])
        columns, codes, weights = map(np.concatenate, zip(*parts, strict=True))
        self.register_buffer("indicator_columns", torch.from_numpy(columns), persistent=False)
        self.register_buffer("indicator_codes", torch.from_numpy(codes), persistent=False)
        self.linear_weights = weights.astype(np.float32)

    @property
    def has_linear_inputs(self):
        """Whether a column has a frequent category."""
        return len(self.linear_weights) > 0

    @property
    def linear_columns(self):
        """Column of each feature of :meth:`linear_inputs`."""
        return self.indicator_columns.cpu().numpy()

    def linear_inputs(self, codes):
        """Return indicators of the frequent categories of each column."""
        return (codes.index_select(1, self.indicator_columns) == self.indicator_codes).float()

    def configure_for_embedding(self):
        """Turn off masking and shrinkage, so that rare users and items are distinguished."""
        self.masks_rare = False
        self._remove_shrinkage()

    @torch.no_grad()
    def _remove_shrinkage(self):
        """Multiply the factors into the tables, so that all rows learn at the full rate."""
        for group, table in enumerate(self.tables):
            factors = getattr(self, f"shrinkage_{group}")
            table *= factors
            factors.fill_(1.0)

    def forward(self, codes):
        """Return the embeddings of all columns.

        Parameters
        ----------
        codes : torch.Tensor of int32, shape (batch, n_columns)
            Codes from :meth:`CategoryBlock.encode`.

        Returns
        -------
        torch.Tensor of shape (batch, sum of widths)
        """
        if self.training and (self.masks_rare or self.unseen_probability > 0):
            codes = self._mask_rare(codes)
        parts = []
        for group, table in enumerate(self.tables):
            columns = getattr(self, f"columns_{group}")
            starts = getattr(self, f"starts_{group}")
            rows = (codes.index_select(1, columns) + starts).reshape(-1)
            factors = getattr(self, f"shrinkage_{group}")
            if len(table) <= MAX_SCALED_ROWS:
                vectors = (table * factors).index_select(0, rows)
            else:
                vectors = self._look_up(table, rows) * factors.index_select(0, rows)
            vectors = vectors.reshape(codes.shape[0], self.common[group].numel())
            parts.append(vectors + self.common[group])
        return torch.cat(parts, dim=1)

    def _look_up(self, table, rows):
        if self.sparse and torch.is_grad_enabled() and is_large(table):
            return functional.embedding(rows, table, sparse=True)
        # index_select, because the gradient of embedding is several times slower on a CPU.
        return table.index_select(0, rows)

    def large_tables(self):
        return [table for table in self.tables if is_large(table)]

    @torch.no_grad()
    def copy_column(self, previous, index, codes, previous_codes):
        """Copy the vectors of some codes of a column, and the common vector.

        Parameters
        ----------
        previous : CategoryModule
            Module to copy from.
        index : int
            Index of the column in both modules.
        codes, previous_codes : ndarray of int64, shape (n,)
            Codes in this module and in `previous` that stand for the same.

        Returns
        -------
        bool
            Whether the vectors have the same width, so that they were copied.
        """
        (group, place), (other, other_place) = self._place(index), previous._place(index)
        table, other_table = self.tables[group], previous.tables[other]
        width = table.shape[1]
        if width != other_table.shape[1]:
            return False
        start = getattr(self, f"starts_{group}")[place]
        other_start = getattr(previous, f"starts_{other}")[other_place]
        rows = other_table[other_start + torch.from_numpy(previous_codes)]
        table[start + torch.from_numpy(codes)] = rows
        common = previous.common[other][other_place * width : (other_place + 1) * width]
        self.common[group][place * width : (place + 1) * width] = common
        return True

    def _place(self, index):
        """Return the group of a column, and its place among the columns of the group."""
        for group in range(len(self.tables)):
            columns = getattr(self, f"columns_{group}").tolist()
            if index in columns:
                return group, columns.index(index)
        raise IndexError(index)

    @property
    def output_columns(self):
        """Column of each output, an ndarray of int64 of shape (out_features,)."""
        groups = [
            np.repeat(getattr(self, f"columns_{group}").cpu().numpy(), table.shape[1])
            for group, table in enumerate(self.tables)
        ]
        return np.concatenate(groups)

    @property
    def tree_columns(self):
        """Column of each feature of :meth:`tree_inputs`."""
        return np.flatnonzero(np.array(self.n_codes) <= LARGEST_EXACT)

    @property
    def tree_codes(self):
        """Number of codes of each feature of the trees, and False because codes have no order."""
        return [(size, False) for size in self.n_codes if size <= LARGEST_EXACT]

    def tree_inputs(self, codes):
        """Return the codes of the columns whose codes are exact in single precision."""
        columns = [index for index, size in enumerate(self.n_codes) if size <= LARGEST_EXACT]
        return codes if len(columns) == codes.shape[1] else codes[:, columns]

    def _mask_rare(self, codes):
        probability = self.unseen_probability
        if self.masks_rare:
            probability = self.masking_rate[codes + self.first_code].clamp(min=probability)
        masked = torch.rand(codes.shape, device=codes.device) < probability
        return codes.masked_fill(masked & (codes != MISSING), UNSEEN)
