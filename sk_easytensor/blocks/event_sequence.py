"""Block of event sequences: parallel lists of the fields of events, and a sequence encoder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.validation import check_number
from sk_easytensor.blocks.base import unsupported_column
from sk_easytensor.blocks.category import CategoryBlock, no_category_known
from sk_easytensor.blocks.events import (
    check_fields,
    check_time_types,
    find_now,
    gaps,
    infer_kinds,
    is_time,
    seconds,
    split_items,
    struct_fields,
)
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.sequences import (
    NUMBER_FEATURES,
    NumericSequenceBlock,
    SequenceBlock,
    SequenceModule,
    code_names,
    count_codes,
    describe_numbers,
    ragged,
)
from sk_easytensor.blocks.vector import VectorBlock
from sk_easytensor.data.columns import is_list, list_lengths, same_lengths
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.tensors import Ragged

__all__ = [
    "EventSequenceBlock",
]


@documented_like(CategoryBlock)
class EventSequenceBlock(SequenceBlock):
    """Read event sequences: parallel list columns, or lists of structs, with one item per event.

    Parameters
    ----------
    encoder : {"gru", "lstm", "transformer", "conv", "mean"}, default="gru"
        Sequence encoder of the events. ``"gru"`` and ``"lstm"``: recurrent; ``"transformer"``:
        attention with learned positions; ``"conv"``: convolutions over neighbouring events;
        ``"mean"``: events are encoded independently.
    time : str or None, default=None
        Field with the times of the events: dates, timestamps, or non-negative numbers of seconds.
        By default the first field of dates or timestamps.
    now : str, None or False, default=None
        Column with the prediction time of each row, a date, timestamp or number of seconds. By
        default the block's only column of dates or timestamps that are not lists; if there is
        none, the time of the last event of the list. False to leave out the gaps to the prediction
        time: what is read of an event then does not depend on later events.
    categories : list of str, default=()
        Numeric fields that are read as categories. Strings, dictionaries and booleans are always
        categories.
    pooling : {"attention", "last", "mean", "mean_max"}, default="attention"
        Reduction of the events to one vector: a learned weighted mean, the last event, the mean,
        or the concatenation of mean and maximum.
    width : int, default=48
        Width of all layers.
    layers : int or None, default=None
        Number of layers of the encoder; by default 1 for recurrent encoders and 2 for the others.
    heads : int, default=4
        Number of attention heads of the transformer; must divide `width`.
    kernel_size : int, default=5
        Number of events in the kernel of a convolution; must be odd.
    bidirectional : bool, default=False
        Whether a recurrent encoder reads lists in both directions.
    dropout : float, default=0.1
        Dropout probability.
    max_length : int, default=64
        Largest number of events that are read; longer lists are truncated.
    keep : {"last", "first"}, default="last"
        Which end of a longer list is read.
    number_width : int, default=8
        Embedding dimension of each numeric field.
    bins : int, default=64
        Largest number of quantile bins of a numeric field.
    min_frequency : int, default=1
        Smallest number of events of a category. Rarer categories share the embedding of unseen
        ones.
    max_categories, hash_buckets, unseen_probability, shrinkage
        As in :class:`~sk_easytensor.CategoryBlock`.

    Attributes
    ----------
    kinds_ : dict of {str: {"category", "number", "time", "date"}}
        Kind of each field.
    now_ : str or None
        Column with the prediction time of each row.
    categories_ : dict of {str: pyarrow.Array of string}
        Categories of each categorical field, the most frequent first. Empty if categories are
        hashed.

    Notes
    -----
    A field of structs is named ``column.field``. Categories are embedded as by
    :class:`~sk_easytensor.CategoryBlock`, numbers as by :class:`~sk_easytensor.NumericBlock`. The
    time is read as two gaps, in logarithms of seconds: to the previous event, and to the prediction
    time unless `now` is False. Further fields of dates or timestamps are read as gaps from the time
    of their event. Events must be in order of time, and not later than the prediction time.

    All lists of a row must have the same length; a missing list beside present ones is a list of
    missing items. Missing and empty lists are equivalent and have a learned vector. Other blocks
    read the column `now` too.

    Examples
    --------
    >>> X = {
    ...     "kind": [["view", "buy"], ["view"], None],
    ...     "amount": [[None, 25.0], [None], None],
    ...     "when": [[0.0, 60.0], [30.0], None],
    ... }
    >>> block = EventSequenceBlock(time="when").fit(X)
    >>> block.kinds_
    {'kind': 'category', 'amount': 'number', 'when': 'time'}
    >>> encoding = block.transform(X)
    >>> list(encoding), encoding["codes_0"].values.tolist(), encoding["codes_0"].lengths.tolist()
    (['codes_0', 'values_0', 'values_1', 'values_2'], [2, 3, 2], [2, 1, 0])
    """

    kind = "event_sequence"
    accepted = "lists of strings, numbers, dates, timestamps, or structs of these"

    def __init__(
        self,
        encoder="gru",
        *,
        time=None,
        now=None,
        categories=(),
        pooling="attention",
        width=48,
        layers=None,
        heads=4,
        kernel_size=5,
        bidirectional=False,
        dropout=0.1,
        max_length=64,
        keep="last",
        number_width=8,
        bins=64,
        min_frequency=1,
        max_categories=1_000_000,
        hash_buckets=None,
        unseen_probability=0.01,
        shrinkage=50.0,
    ):
        self.encoder = encoder
        self.time = time
        self.now = now
        self.categories = categories
        self.pooling = pooling
        self.width = width
        self.layers = layers
        self.heads = heads
        self.kernel_size = kernel_size
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.max_length = max_length
        self.keep = keep
        self.number_width = number_width
        self.bins = bins
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.hash_buckets = hash_buckets
        self.unseen_probability = unseen_probability
        self.shrinkage = shrinkage

    @classmethod
    def accepts_items(cls, kind):
        if pa.types.is_struct(kind):
            return len(list(kind)) > 0 and all(
                cls.accepts_items(field.type) and not pa.types.is_struct(field.type)
                for field in kind
            )
        return CategoryBlock.accepts(kind) or NumericBlock.accepts(kind) or is_time(kind)

    @classmethod
    def detects(cls, column):
        """Return whether the items of a column of lists are structs or times."""
        if not is_list(column.type) or not cls.accepts(column.type):
            return False
        return pa.types.is_struct(column.type.value_type) or is_time(column.type.value_type)

    @classmethod
    def assign_columns(cls, table, columns):
        """Group the list columns whose lists have the same length in every row.

        A group of only numeric lists is a time series, read by another block. A single list column
        describes events only if its items are structs or times.
        """
        lists = [
            name
            for name in columns
            if is_list(table.schema.field(name).type)
            and cls.accepts(table.schema.field(name).type)
            and not VectorBlock.detects(table.column(name))
        ]
        groups = same_lengths(table, lists)
        return [group for group in groups if cls._are_events(table.select(group))]

    @classmethod
    def _are_events(cls, table):
        numbers = [NumericSequenceBlock.detects(column) for column in table.columns]
        if len(numbers) > 1 and (list_lengths(table.column(0)) > 0).any() and not all(numbers):
            return True
        return len(numbers) == 1 and cls.detects(table.column(0))

    def check_parameters(self):
        super().check_parameters()
        check_number("EventSequenceBlock", "number_width", self.number_width, low=1, integer=True)
        for block in self._item_blocks([], []):
            block.check_parameters()
        if isinstance(self.categories, str) or not isinstance(self.categories, Iterable):
            kind = "the string " if isinstance(self.categories, str) else ""
            raise ValueError(
                "EventSequenceBlock: categories must be a list of fields, got "
                f"{kind}{self.categories!r}"
            )

    def claimed_columns(self, table):
        now = find_now(table, self.now)
        return [name for name in table.column_names if name != now]

    def fit_columns(self, table, *, named=True):
        self.check_parameters()
        self.now_ = find_now(table, self.now)
        lists = table if self.now_ is None else table.drop_columns([self.now_])
        super().fit_columns(lists, named=named)
        self.feature_names_in_ = np.asarray(table.column_names, dtype=object)
        self.n_features_in_ = table.num_columns
        types, self._sources = struct_fields(lists)
        self.kinds_ = infer_kinds(types, self.time, self.categories)
        if self.now_ is not None:
            kind = table.schema.field(self.now_).type
            if not (is_time(kind) or NumericBlock.accepts(kind)):
                field, column = table.schema.field(self.now_), table.column(self.now_)
                raise TypeError(unsupported_column(field, type(self).__name__, column))
            if self._time is None:
                raise ValueError(
                    f"EventSequenceBlock: now is {self.now_!r}, but no field holds the times of "
                    f"events; name one with time, fields are {list(types)}"
                )
        self._zone = getattr(types.get(self._time), "tz", None)
        return self

    @property
    def _time(self):
        return next((name for name, kind in self.kinds_.items() if kind == "time"), None)

    def _of_kind(self, *kinds):
        return [name for name, kind in self.kinds_.items() if kind in kinds]

    def _number_columns(self):
        """Return the names of the numeric inputs, and the column of each."""
        columns = {name: self._sources[name] for name in self._of_kind("number", "date")}
        if self._time is not None:
            columns[f"{self._time}.previous"] = self._sources[self._time]
            if self.reads_now:
                columns[f"{self._time}.now"] = self.now_ or self._sources[self._time]
        return columns

    @property
    def reads_now(self):
        """Whether the gap from each event to the prediction time is read."""
        return self._time is not None and self.now is not False

    def _item_blocks(self, categories, numbers):
        """Return new blocks that encode the categorical and the numeric fields of events."""
        category = CategoryBlock(
            min_frequency=self.min_frequency,
            max_categories=self.max_categories,
            hash_buckets=self.hash_buckets,
            unseen_probability=self.unseen_probability,
            shrinkage=self.shrinkage,
            rarity=0,
        )
        number = NumericBlock(width=self.number_width, bins=self.bins)
        empty = pa.nulls(0)
        return (
            category.fit_columns(pa.table({name: empty for name in categories})),
            number.fit_columns(pa.table({name: empty for name in numbers})),
        )

    def _read_events(self, table):
        """Return tables of categories and of numbers, one row per event, and the offsets."""
        lists = self.read(table.select(list(dict.fromkeys(self._sources.values()))))
        fields = check_fields(split_items(lists.items, self._sources), self.kinds_, lists)
        numbers = {name: fields[name] for name in self._of_kind("number")}
        if self._time is not None:
            time_types = {name: fields[name].type for name in self._of_kind("time", "date")}
            if self.now_ is not None:
                time_types[self.now_] = table.schema.field(self.now_).type
            check_time_types(time_types)
            times = seconds(fields[self._time], self._time, self._zone, lists.owner)
            for name in self._of_kind("date"):
                numbers[name] = signed_log(seconds(fields[name], name, self._zone) - times)
            now = None
            if self.now_ is not None:
                now = seconds(table.column(self.now_), self.now_, self._zone)
            event_gaps = gaps(fields[self._time], times, lists, self._time, now, self.now_)
            for name, gap in zip(("previous", "now"), event_gaps, strict=True):
                numbers[f"{self._time}.{name}"] = signed_log(gap)
        categories = {name: fields[name] for name in self._of_kind("category")}
        numbers = {name: numbers[name] for name in self._number_columns()}
        return pa.table(categories), pa.table(numbers), lists.offsets

    def summarize(self, table):
        categories, numbers, _ = self._read_events(table)
        blocks = self._item_blocks(categories.column_names, numbers.column_names)
        summary = SummaryMap()
        for block, items in zip(blocks, (categories, numbers), strict=True):
            summary |= block.summarize(items)
        return SummaryMap(summary)

    def finish(self, summary):
        blocks = self._item_blocks(self._of_kind("category"), list(self._number_columns()))
        self.category_block_, self.number_block_ = (block.finish(summary) for block in blocks)
        return self

    @property
    def categories_(self):
        """Categories of each categorical field."""
        block = self.category_block_
        return dict(zip(block.feature_names_in_, block.categories_, strict=False))

    def encode(self, table):
        categories, numbers, offsets = self._read_events(table)
        offsets = torch.from_numpy(offsets)
        codes = self.category_block_.encode(categories)["codes"].numpy()
        values = self.number_block_.encode(numbers)["values"].numpy()
        encoding = {
            f"codes_{index}": ragged(codes[:, index], offsets) for index in range(codes.shape[1])
        }
        for index in range(values.shape[1]):
            encoding[f"values_{index}"] = ragged(values[:, index], offsets)
        return encoding

    def unseen_columns(self, table, encoding):
        """Return the fields with several values, none of which is a known category."""
        names = self._of_kind("category")
        if not names:
            return []
        codes = [encoding[f"codes_{index}"].values for index in range(len(names))]
        codes = {"codes": torch.stack(codes, dim=1)}
        if not no_category_known(codes["codes"]):
            return []
        return self.category_block_.unseen_columns(self._read_events(table)[0], codes)

    def renamed(self, names):
        other = super().renamed(names)
        new = dict(zip(self.feature_names_in_, other.feature_names_in_, strict=True))
        # Fields of structs are named ``column.field``.
        fields = {
            name: new[source] + name.removeprefix(source) for name, source in self._sources.items()
        }
        other.now_ = new.get(self.now_)
        other._sources = {fields[name]: new[source] for name, source in self._sources.items()}
        other.kinds_ = {fields[name]: kind for name, kind in self.kinds_.items()}
        other.category_block_ = self.category_block_.renamed(other._of_kind("category"))
        other.number_block_ = self.number_block_.renamed(list(other._number_columns()))
        return other

    def encoding_columns(self, encoding):
        sources = [self._sources[name] for name in self._of_kind("category")]
        sources += self._number_columns().values()
        return {entry: [source] for entry, source in zip(encoding, sources, strict=True)}

    def make_module(self):
        codes = self.category_block_.make_module() if self._of_kind("category") else None
        values = self.number_block_.make_module() if self._number_columns() else None
        if values is not None:
            # The factor is for one value per row; lists have many.
            values.learning_rate_scale = None
        return EventSequenceModule(codes, values, self.make_encoder)

    def to_onnx(self, graph):
        from sk_easytensor.onnx import encoders

        categories, clock = self.category_block_, {"kind": "seconds", "zone": self._zone}
        fields, codes = {}, {}
        for name, kind in self.kinds_.items():
            source = self._sources[name]
            options = {"kind": "number"} if kind == "number" else clock
            if kind == "category":
                options = categories.onnx_column(len(codes))
            fields[name] = {"column": source, **options}
            if name != source:
                fields[name]["inner"] = name[len(source) + 1 :]
            if kind == "category":
                item_options = {"column": source, "inner": fields[name].get("inner")}
                item_options |= {"index": len(codes), "block": type(self).__name__}
                codes[name] = partial(categories.onnx_items, graph, **item_options)
        lists = encoders.read_lists(graph, self, fields, codes)
        numbers = {name: lists.values[name] for name in self._of_kind("number")}
        if self._time is not None:
            times = lists.values[self._time]
            for name in self._of_kind("date"):
                gap = graph.op("Sub", lists.values[name], times)
                numbers[name] = encoders.signed_log(graph, gap)
            now = None if self.now_ is None else graph.column(self.now_, **clock)
            gaps = encoders.gaps(graph, times, lists.lengths, now)
            for name, gap in zip(("previous", "now"), gaps, strict=True):
                numbers[f"{self._time}.{name}"] = encoders.signed_log(graph, gap)
        entries = {f"codes_{index}": name for index, name in enumerate(codes)}
        columns = list(self._number_columns())
        if columns:
            block = self.number_block_
            values = graph.stack([numbers[name] for name in columns], axis=-1)
            values = encoders.numbers(graph, values, block.edges_, block.center_, block.scale_)
            for index, name in enumerate(columns):
                position = np.int64(index)
                lists.values[f"{name} encoded"] = graph.op("Gather", values, position, axis=2)
                entries[f"values_{index}"] = f"{name} encoded"
        return encoders.entries(graph, lists, entries)

    def flatten(self, encoding):
        """Return counts of categories, statistics of numbers, and the number of events."""
        parts = []
        for index, n_codes in enumerate(self.category_block_.n_codes):
            parts.append(count_codes(encoding[f"codes_{index}"], n_codes)[:, :-1])
        for index in range(len(self._number_columns())):
            lists = encoding[f"values_{index}"]
            parts.append(describe_numbers(Ragged(lists.values[:, 0], lists.offsets)))
        lengths = next(iter(encoding.values())).lengths
        return np.concatenate([*parts, lengths[:, None].float().numpy()], axis=1)

    def get_feature_names_out(self, input_features=None):
        names = []
        block = self.category_block_
        for index, name in enumerate(block.feature_names_in_):
            known = block.known_categories(index)
            names += code_names(name, known, block.n_codes[index])[:-1]
        for name in self._number_columns():
            names += [f"{name}_{feature}" for feature in NUMBER_FEATURES]
        return np.asarray([*names, f"{next(iter(self._sources.values()))}_length"], dtype=object)


def signed_log(numbers):
    """Return ``sign(x) * log(1 + abs(x))``."""
    return np.sign(numbers) * np.log1p(np.abs(numbers))


class EventSequenceModule(SequenceModule):
    """Embed the fields of each event and encode the lists of events.

    Parameters
    ----------
    codes : CategoryModule or None
        Embedding of the categorical fields, if there are any.
    values : NumericModule or None
        Embedding of the numeric fields, if there are any.
    make_encoder : callable
        Function that returns the :class:`SequenceEncoder` for an item width.
    """

    def __init__(self, codes, values, make_encoder):
        super().__init__()
        self.codes = codes
        self.values = values
        parts = [module for module in (codes, values) if module is not None]
        self.encoder = make_encoder(sum(module.out_features for module in parts))
        self.out_features = self.encoder.out_features

    def forward(self, **fields):
        """Return a vector for each row.

        Parameters
        ----------
        **fields : Ragged, parallel
            ``codes_0``, ``codes_1`` and so on of int32, and ``values_0``, ``values_1`` and so on
            of float32 with shape (total, 2).

        Returns
        -------
        torch.Tensor of shape (batch, out_features)
        """
        ((items, offsets),) = self.item_vectors(**fields)
        return self.encoder(items, offsets)

    def item_vectors(self, **fields):
        parts = []
        for module, prefix in ((self.codes, "codes"), (self.values, "values")):
            if module is not None:
                values = [lists.values for name, lists in fields.items() if name.startswith(prefix)]
                parts.append(module(torch.stack(values, dim=1)))
        offsets = next(iter(fields.values())).offsets
        return [(torch.cat(parts, dim=1), offsets)]
