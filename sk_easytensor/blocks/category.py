"""Categories: a learned or hashed vocabulary and an embedding per column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor._utils.validation import check_number
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
from sk_easytensor.onnx.readers import MISSING_STRING

__all__ = [
    "CategoryBlock",
    "CategoryModule",
    "category_keys",
    "hash_strings",
]


KNOWN = 2
"""The code of the most frequent category."""
MOST_HIDDEN = 0.8
"""Fraction of a category's training rows that are shown as unseen at most, for being rare."""
STRINGS = (pa.string(), pa.large_string())
SCALED_WHOLE = 1024
"""Vectors of columns that are multiplied before they are looked up, where there are no more."""
MOST_EXACT = 2**24
"""Whole numbers up to which single precision holds all."""
FEW = 4
"""With so many times more categories than values, the former are looked up among the latter."""


class CategoryBlock(Block):
    """Strings, integers, booleans and data frame categoricals, each value a category.

    Parameters
    ----------
    min_frequency : int, default=1
        Categories seen less often share the index of unseen ones.
    max_categories : int, default=1_000_000
        At most so many categories a column, the most frequent ones.
    hash_buckets : int or None, default=None
        If given, categories are hashed into so many buckets and no vocabulary is kept: for
        columns whose number of categories is unbounded.
    width : int or None, default=None
        Embedding width; by default it grows, from 2 to 32, with the number of categories, each
        counted by how far it is trusted (see `shrinkage`), unless none occurs twice or `rarity`
        is 0.
    unseen_probability : float, default=0.01
        Fraction of training values shown to the network as unseen, so that categories it has
        never met predict sensibly.
    shrinkage : float, default=50.0
        How many rows it takes to trust a category: the vector of one seen n times starts at
        ``n / (n + shrinkage)`` of the usual distance from the vector common to its column, and
        learns at that fraction of the rate, so that rare categories stay close to what an unseen
        one is. In towers and embedders they only start there.
    rarity : float, default=8.0
        How many rows it takes to be learned by heart: of the training rows of a category seen n
        times, ``rarity / (n + rarity)`` are shown to the network as unseen, at most four in five.
        Towers and embedders, which are to tell users and items apart, do not hide them.

    Attributes
    ----------
    categories_ : list of pyarrow.Array of string
        Categories of each column, the most frequent first. Empty when hashing.
    counts_ : list of ndarray of int64
        How often each occurred.
    types_ : list of dict of {str: str}
        For each column, what its values are ("text", "numbers", "dates", "dates with a time
        zone") and an Arrow type of such values that fit saw.

    Raises
    ------
    TypeError
        At predict, if a column fitted on numbers holds dates or the other way round, or dates with
        a time zone stand for ones without: no value could be known.

    Warns
    -----
    UserWarning
        At predict, if ten rows or more of a column have values, at least two different ones, and
        none is a known category.

    Notes
    -----
    A value has one name, whatever the type of its column. Integers, integral floats and their
    strings are the same category, and so are booleans, 1 and 0, and the strings True and False: a
    column that turns from integers to floats because a value is missing keeps its meaning. Times
    are the same whatever their unit, a date is its midnight, and times with a time zone are
    compared as instants. Otherwise strings are what they are: "01" and "1.0" are not "1".

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
        max_categories=1_000_000,
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
        """Return whether values of a type are categories, whatever they are."""
        # A column without any value may hold anything later, which only categories take.
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
        found = [summary[name] for name in self.feature_names_in_]
        self.types_ = [column.types for column in found]
        for name, types in zip(self.feature_names_in_, self.types_, strict=True):
            if len({NUMBERS, DATES, INSTANTS} & set(types)) > 1:
                raise TypeError(
                    f"column {name!r} holds {' and '.join(types)} (types "
                    f"{', '.join(types.values())}); {type(self).__name__} reads one kind in a "
                    "column: convert them to one type"
                )
        kept = [
            column.counts.most_common(min_count=self.min_frequency, limit=self.max_categories)
            for column in found
            if column.counts is not None
        ]
        self.categories_ = [values for values, _ in kept]
        self.counts_ = [counts for _, counts in kept]
        return self

    @property
    def n_codes(self):
        """Codes of each column, those for missing and unseen included."""
        if self.hash_buckets is not None:
            return [self.hash_buckets + KNOWN] * self.n_features_in_
        return [len(values) + KNOWN for values in self.categories_]

    def known_categories(self, index):
        """Return the categories of a column, the most frequent first; none when hashing."""
        return self.categories_[index] if self.categories_ else pa.array([], pa.string())

    def encode(self, table):
        columns = []
        for index, (field, column) in enumerate(zip(table.schema, table.columns, strict=True)):
            if not self.accepts(field.type) and not self._never_filled(index):
                raise TypeError(unsupported_column(field, type(self).__name__))
            self._check_type(field, index)
            columns.append(self._column_codes(column, index))
        codes = np.empty((table.num_rows, table.num_columns), dtype=np.int32)
        for rows in cached_slices(table.num_rows):
            for index, column in enumerate(columns):
                codes[rows, index] = column[rows]
        return {"codes": torch.from_numpy(codes)}

    def _check_type(self, field, index):
        """Refuse values that are none of what fit saw in a column."""
        types = self.types_[index]
        if types and value_family(field.type) not in types:
            check_family(field.type, types, field.name, type(self).__name__)

    def unseen_columns(self, table, encoding):
        """Return the columns that hold several values, none of which is a known category.

        Parameters
        ----------
        table : pyarrow.Table
            Rows; the block's columns are among its columns.
        encoding : dict
            What :meth:`encode` returned of them.

        Returns
        -------
        list of str
        """
        codes = encoding["codes"]
        if self.hash_buckets is not None or not nothing_known(codes):
            return []
        found = []
        for index in np.flatnonzero(codes.numpy().max(axis=0) == UNSEEN):
            name = self.feature_names_in_[index]
            if len(self.categories_[index]) and has_enough_values(table.column(name)):
                found.append(name)
        return found

    def _never_filled(self, index):
        """Return whether a column had no value at fit, so that values of any type are unseen."""
        return self.hash_buckets is None and len(self.categories_[index]) == 0

    def _column_codes(self, column, index):
        if not self.accepts(column.type):
            missing = column.is_null().to_numpy()
            return np.where(missing, np.int32(MISSING), np.int32(UNSEEN))
        if self.hash_buckets is None and column.type in STRINGS:
            # Looking up every row costs less than finding the distinct ones first.
            codes = self._known_codes(column, index)
            if (codes == UNSEEN).any():
                texts = canonical_texts(column)
                codes = codes if texts is column else self._known_codes(texts, index)
            if column.null_count:
                codes[column.is_null().to_numpy()] = MISSING
            return codes
        keys = category_keys(column)
        dictionary = self._dictionary_codes(keys.dictionary, index)
        # A missing value has no index; give it one past the end.
        lookup = np.append(dictionary, np.int32(MISSING))
        return lookup[filled(keys.indices, len(dictionary))]

    def _dictionary_codes(self, values, index):
        if self.hash_buckets is not None:
            hashed = hash_strings(values) % np.uint64(self.hash_buckets)
            return hashed.astype(np.int32) + np.int32(KNOWN)
        return self._known_codes(values, index)

    def _known_codes(self, values, index):
        known = self.categories_[index]
        if FEW * len(values) < len(known):
            return few_codes(values.cast(known.type), known)
        found = pc.index_in(values, value_set=known.cast(values.type))
        return filled(found, UNSEEN - KNOWN) + np.int32(KNOWN)

    def make_module(self):
        widths = [self.width or default_width(size) for size in self._sizes()]
        return CategoryModule(
            widths, self._shrinkage_factors(), self.unseen_probability, self._rareness()
        )

    def _sizes(self):
        """Return how many categories of each column there are rows enough to learn."""
        if self.hash_buckets is not None or not self.rarity:
            return self.n_codes
        # Where none occurs twice they are identifiers, and rows are no measure of what they mean.
        return [
            size if counts.max(initial=1) <= 1 else float(trust.sum())
            for size, counts, trust in zip(
                self.n_codes, self.counts_, self._shrinkage_factors(), strict=True
            )
        ]

    def _shrinkage_factors(self):
        """How far each code's vector may start from the column's common one, from 0 to 1."""
        if self.hash_buckets is not None:
            return [np.ones(size, dtype=np.float32) for size in self.n_codes]
        return [
            np.concatenate([np.zeros(KNOWN), counts / (counts + self.shrinkage)]).astype(np.float32)
            for counts in self.counts_
        ]

    def _rareness(self):
        """Which fraction of each code's training rows is shown as unseen for being rare."""
        if self.hash_buckets is not None:
            return [np.zeros(size, dtype=np.float32) for size in self.n_codes]
        return [
            np.concatenate(
                [np.zeros(KNOWN), np.minimum(MOST_HIDDEN, self.rarity / (counts + self.rarity))]
            ).astype(np.float32)
            for counts in self.counts_
        ]

    def to_onnx(self, graph):
        codes = []
        for index, name in enumerate(self.feature_names_in_):
            column = graph.column(name, **self.onnx_column(index))
            codes.append(self.onnx_codes(graph, column, index))
        stacked = graph.stack(codes, axis=1)
        watched = map(self._onnx_watched, range(len(codes)), self.feature_names_in_)
        graph.watch(stacked, list(watched))
        return {"codes": stacked}

    def _onnx_watched(self, index, column, inner=None):
        """Return where the values of a column are whose categories are watched, or None."""
        if not len(self.known_categories(index)):
            return None
        name, block = str(self.feature_names_in_[index]), type(self).__name__
        within = {} if inner is None else {"inner": inner}
        return {"name": name, "block": block, "column": str(column), **within}

    def onnx_items(self, graph, values, index, *, column, block, inner=None):
        """Add what turns items of a column of lists into codes, and have these watched."""
        codes = self.onnx_codes(graph, values, index)
        watched = self._onnx_watched(index, column, inner)
        graph.watch(codes, [watched and {**watched, "block": block}], axes=(0, 1))
        return codes

    def onnx_column(self, index=0):
        """Return how an exported graph is given a column: as strings, or hashed."""
        types = self.types_[index]
        if self.hash_buckets is None:
            return {"kind": "category", "types": types}
        return {"kind": "hashed", "buckets": int(self.hash_buckets), "types": types}

    def onnx_codes(self, graph, values, index):
        """Add what turns values of a column into codes to a graph."""
        if self.hash_buckets is None:
            known = self.known_categories(index).to_pylist()
            refused = [value for value in known if set(value) == {MISSING_STRING}]
            if refused:
                raise ValueError(
                    f"column {self.feature_names_in_[index]!r} has the category {refused[0]!r}, "
                    "made of U+FFFF alone, which stands for missing values in ONNX files; replace "
                    "it and fit again, or export with inputs='encoded'"
                )
            values = graph.codes(values, known, also=BOOLEAN_TEXTS)
        return graph.cast(values, np.int32)

    def flatten(self, encoding):
        """Return the codes as numbers: 0 missing, 1 unseen, then by falling frequency."""
        return encoding["codes"].numpy().astype(np.float32)

    def get_feature_names_out(self, input_features=None):
        return np.asarray(self.feature_names_in_, dtype=object)


class CategorySummary(Summary):
    """What a chunk of rows says of a column of categories.

    Parameters
    ----------
    types : dict of {str: str}
        The families of types that were seen, see
        :func:`~sk_easytensor.data.keys.value_family`, and a type of each.
    counts : ValueCounts or None
        How often each category occurs; None where categories are hashed.
    """

    def __init__(self, types, counts):
        self.types = types
        self.counts = counts

    @classmethod
    def of(cls, column, capacity):
        """Summarise a column; without a capacity, categories are not counted."""
        family = value_family(column.type)
        # A column without any value may hold anything later.
        empty = family is None or pc.all(column.is_null(nan_is_null=True), min_count=0).as_py()
        types = {} if empty else {family: type_name(column.type)}
        if capacity is None:
            return cls(types, None)
        return cls(types, ValueCounts.of(category_keys(column), capacity=capacity))

    def merge(self, other):
        """Return the summary of both chunks."""
        families = sorted({*self.types, *other.types})
        types = {
            each: min(part.types[each] for part in (self, other) if each in part.types)
            for each in families
        }
        counts = None if self.counts is None else self.counts.merge(other.counts)
        return CategorySummary(types, counts)


def filled(integers, missing):
    """Return an Arrow array of integers as one of NumPy, with a number where it has none."""
    if integers.null_count:
        integers = pc.fill_null(integers, missing)
    return integers.to_numpy(zero_copy_only=False)


def nothing_known(codes):
    """Return whether a column of codes has rows enough to warn of and no known category.

    Parameters
    ----------
    codes : torch.Tensor of int32, shape (n_values, n_columns)
        As :class:`CategoryBlock` encodes them.

    Returns
    -------
    bool
    """
    return len(codes) >= MIN_VALUES_TO_WARN and bool((codes.amax(0) == UNSEEN).any())


def few_codes(values, known):
    """Return the codes of a few values among many known ones.

    The known ones are looked up among the few, for hashing them all takes most of the time in
    which a row is predicted: of a million, 0.17 s.

    Parameters
    ----------
    values : pyarrow.Array or ChunkedArray
        Strings.
    known : pyarrow.Array
        Categories, in the order of their codes.

    Returns
    -------
    ndarray of int32
    """
    distinct = values.unique().drop_null()
    found = pc.index_in(known, value_set=distinct)
    places = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    codes = np.full(len(distinct) + 1, UNSEEN, dtype=np.int32)
    codes[found.take(pa.array(places)).to_numpy()] = places + KNOWN
    return codes[filled(pc.index_in(values, value_set=distinct), len(distinct))]


def default_width(n_categories):
    """Embedding width of a column: a power of two that grows with the cardinality."""
    for limit, width in ((4, 2), (16, 4), (128, 8), (2048, 16)):
        if n_categories <= limit:
            return width
    return 32


class CategoryModule(BlockModule):
    """Look up all category columns, one gather for each embedding width.

    Parameters
    ----------
    widths : list of int
        Width of each column.
    trust : list of ndarray of float32
        For each code of each column, how far its vector starts from the column's common one.
    unseen_probability : float
        Fraction of codes replaced by the code for unseen while training.
    rareness : list of ndarray of float32
        For each code of each column, which fraction of its rows is shown as unseen besides.

    Attributes
    ----------
    hides_rare : bool
        Whether `rareness` is heeded.

    Notes
    -----
    What is learned of a category is multiplied by `trust`. An optimizer that divides gradients by
    their usual size, as Adam does, moves a vector that few batches hold many times as far for each
    of its rows as one that all hold; the factor makes up for it.
    """

    def __init__(self, widths, trust, unseen_probability, rareness):
        super().__init__()
        self.unseen_probability = unseen_probability
        self.hides_rare = any(each.any() for each in rareness)
        # Made anew by the block, and so not part of a saved state.
        hidden = torch.from_numpy(np.concatenate(rareness))
        self.register_buffer("hidden", hidden, persistent=False)
        self.n_codes = [len(each) for each in rareness]
        sizes = torch.tensor(self.n_codes)
        self.register_buffer("first_code", sizes.cumsum(0) - sizes, persistent=False)
        self.out_features = sum(widths)
        self.tables = nn.ParameterList()
        self.common = nn.ParameterList()
        for size in sorted(set(widths)):
            columns = [index for index, value in enumerate(widths) if value == size]
            sizes = torch.tensor([len(trust[index]) for index in columns])
            spread = torch.from_numpy(np.concatenate([trust[index] for index in columns]))
            table = torch.randn(int(sizes.sum()), size) * size**-0.5
            # Codes that are trusted in nothing would only take up the weight decay.
            table[spread == 0] = 0
            self.tables.append(nn.Parameter(table))
            self.common.append(nn.Parameter(torch.randn(len(columns) * size) * size**-0.5))
            group = len(self.tables) - 1
            self.register_buffer(f"trust_{group}", spread[:, None].clone())
            self.register_buffer(f"columns_{group}", torch.tensor(columns))
            self.register_buffer(f"starts_{group}", torch.cumsum(sizes, 0) - sizes)

    def configure_for_embedding(self):
        """Hide and slow down nothing: towers are to tell rare users and items apart."""
        self.hides_rare = False
        self._trust_all()

    @torch.no_grad()
    def _trust_all(self):
        """Keep all vectors where they are, and let them move at the full learning rate."""
        for group, table in enumerate(self.tables):
            trust = getattr(self, f"trust_{group}")
            table *= trust
            trust.fill_(1.0)

    def _load_from_state_dict(self, state, prefix, *arguments):
        # Version 0.1 kept vectors as they are read.
        for group in range(len(self.tables)):
            name = f"trust_{group}"
            state.setdefault(prefix + name, torch.ones_like(getattr(self, name)))
        super()._load_from_state_dict(state, prefix, *arguments)

    def forward(self, codes):
        """Return the embeddings of all columns.

        Parameters
        ----------
        codes : torch.Tensor of int32, shape (batch, n_columns)

        Returns
        -------
        torch.Tensor of shape (batch, sum of widths)
        """
        if self.training and (self.hides_rare or self.unseen_probability > 0):
            codes = self._mask_rare(codes)
        parts = []
        for group, table in enumerate(self.tables):
            columns = getattr(self, f"columns_{group}")
            starts = getattr(self, f"starts_{group}")
            rows = (codes.index_select(1, columns) + starts).reshape(-1)
            # index_select, because the gradient of an embedding is several times slower on a CPU.
            trust = getattr(self, f"trust_{group}")
            if len(table) <= SCALED_WHOLE:
                found = (table * trust).index_select(0, rows)
            else:
                found = table.index_select(0, rows) * trust.index_select(0, rows)
            found = found.reshape(codes.shape[0], self.common[group].numel())
            parts.append(found + self.common[group])
        return torch.cat(parts, dim=1)

    @property
    def output_columns(self):
        """Which column each output is of, an ndarray of int64 of shape (out_features,)."""
        groups = [
            np.repeat(getattr(self, f"columns_{group}").cpu().numpy(), table.shape[1])
            for group, table in enumerate(self.tables)
        ]
        return np.concatenate(groups)

    @property
    def tree_columns(self):
        """Which column each of :meth:`tree_inputs` is of."""
        return np.flatnonzero(np.array(self.n_codes) <= MOST_EXACT)

    @property
    def tree_codes(self):
        """Trees see so many codes of each column, which are in no order."""
        return [(size, False) for size in self.n_codes if size <= MOST_EXACT]

    def tree_inputs(self, codes):
        """Return the codes, of columns whose codes a float would hold exactly."""
        shown = [index for index, size in enumerate(self.n_codes) if size <= MOST_EXACT]
        return codes if len(shown) == codes.shape[1] else codes[:, shown]

    def _mask_rare(self, codes):
        probability = self.unseen_probability
        if self.hides_rare:
            probability = self.hidden[codes + self.first_code].clamp(min=probability)
        hidden = torch.rand(codes.shape, device=codes.device) < probability
        return codes.masked_fill(hidden & (codes != MISSING), UNSEEN)
