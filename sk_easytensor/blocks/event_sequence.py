"""Block of event sequences: parallel lists of the fields of events, and a sequence encoder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sk_easytensor._utils.docstrings import documented_like
from sk_easytensor._utils.validation import check_number, shortened
from sk_easytensor.blocks.aggregates import EVENT_AGGREGATES, ListAggregates, NumberField
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
from sk_easytensor.blocks.numeric_sequence import NumericSequenceBlock
from sk_easytensor.blocks.sequences import (
    NUMBER_FEATURES,
    AggregatedBlock,
    AggregatedModule,
    ItemsSummary,
    code_names,
    count_codes,
    describe_numbers,
    ragged,
)
from sk_easytensor.data.columns import is_list, list_lengths, same_lengths
from sk_easytensor.data.datetimes import CYCLES, read_times, zone_shifts
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.data.type_names import type_name
from sk_easytensor.networks.sequences import pad
from sk_easytensor.tensors import Ragged

__all__ = [
    "EventSequenceBlock",
]


HARMONICS = (1, 2, 3)
"""Frequencies of the sines and cosines of a cycle; three distinguish the seven days of a week."""


@documented_like(CategoryBlock)
class EventSequenceBlock(AggregatedBlock):
    """Read event sequences: parallel list columns, or lists of structs, with one item per event.

    Parameters
    ----------
    encoder : {"auto", "mean", "gru", "lstm", "transformer", "conv"}, default="auto"
        Sequence encoder of the events. ``"mean"``: events are encoded independently; ``"gru"`` and
        ``"lstm"``: recurrent; ``"transformer"``: attention with learned positions, whose time and
        memory grow with the square of the length; ``"conv"``: convolutions over neighbouring
        events. ``"auto"``: ``"mean"`` with `aggregates`, otherwise ``"gru"``.
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
        Largest number of events that are read; longer lists are truncated, with a warning in fit.
    keep : {"last", "first"}, default="last"
        Which end of a longer list is read.
    aggregates : "auto", bool or list of str, default="auto"
        Plain features of the events of a row, which the trunk and the boosted trees read: all of
        :class:`~sk_easytensor.CategorySequenceBlock`, for each categorical field. For each numeric
        field ``"known"``, the number of its values, the ``"last"`` three and the ``"first"``, and
        ``"mean"``, ``"min"``, ``"max"``, ``"std"``, ``"sum"`` and ``"trend"``, with ``"recent"``
        also over the last five events. If events have times, ``"since"``: the time from the last
        three events, from the first one and from the last one of each frequent category to the
        prediction time. True selects all, False none. ``"auto"``: all, but none in embedders and
        two-tower models.
    calendar : list of {"day", "week", "month", "year"}, default=()
        Cycles of the wall-clock time of each event that are inputs of the network, as in
        :class:`~sk_easytensor.DatetimeBlock`. Times have to be dates or timestamps.
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

    Aggregates describe the events that are read, at most `max_length`. Numbers enter them scaled,
    with bounded outliers, as they enter the network; a trend is the change along the list of the
    line fitted by least squares.

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
    known_aggregates = EVENT_AGGREGATES
    encoder_alone = "gru"

    calendar = ()
    """Blocks that were stored before there was a calendar read none."""

    def __init__(
        self,
        encoder="auto",
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
        aggregates="auto",
        calendar=(),
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
        self.aggregates = aggregates
        self.calendar = calendar
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
            if is_list(table.schema.field(name).type) and cls.accepts(table.schema.field(name).type)
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
        listed = isinstance(self.calendar, Iterable) and not isinstance(self.calendar, str)
        if not listed or not all(cycle in CYCLES for cycle in self.calendar):
            raise ValueError(
                f"EventSequenceBlock: calendar must be a list of some of {list(CYCLES)}, got "
                f"{shortened(self.calendar)}"
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
        if len(list(self.calendar)):
            self._check_calendar(types)
        return self

    def _check_calendar(self, types):
        """Raise ``ValueError`` if the times of events have no calendar."""
        kind = types.get(self._time)
        # Columns of missing values only are of type null.
        empty = all(map(pa.types.is_null, types.values() if kind is None else [kind]))
        if not empty and (kind is None or not is_time(kind)):
            found = "" if kind is None else f", got {self._time!r} of type {type_name(kind)}"
            raise ValueError(
                f"EventSequenceBlock: calendar={list(self.calendar)} needs the times of events as "
                f"dates or timestamps{found}; fields are {list(types)}"
            )

    @property
    def _cycles(self):
        """Cycles of the calendar that are encoded, in the order of the entries."""
        return [] if self._time is None else [cycle for cycle in CYCLES if cycle in self.calendar]

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

    def _list_columns(self, table):
        """Return the columns of lists of a table."""
        return table.select(list(dict.fromkeys(self._sources.values())))

    def _read_events(self, table):
        """Return tables of categories, of numbers and of the calendar's waves, and the offsets."""
        lists = self.read(self._list_columns(table))
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
        waves = self._waves(fields[self._time]) if self._cycles else []
        return pa.table(categories), pa.table(numbers), waves, lists.offsets

    def _waves(self, times):
        """Return the sines and cosines of each cycle of the calendar, 0 where a time is missing."""
        if pa.types.is_null(times.type):
            return [np.zeros((len(times), 2 * len(HARMONICS)), np.float32) for _ in self._cycles]
        instants, phases = read_times(times, self._time, self._zone)
        waves = []
        for cycle in self._cycles:
            angles = 2 * np.pi * phases[:, CYCLES.index(cycle), None] * np.array(HARMONICS)
            wave = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
            waves.append(np.where(np.isnan(instants)[:, None], 0, wave).astype(np.float32))
        return waves

    def summarize(self, table):
        categories, numbers, _, _ = self._read_events(table)
        blocks = self._item_blocks(categories.column_names, numbers.column_names)
        summary = SummaryMap()
        for block, items in zip(blocks, (categories, numbers), strict=True):
            summary |= block.summarize(items)
        return ItemsSummary(SummaryMap(summary), self.count_long(self._list_columns(table)))

    def finish(self, summary):
        blocks = self._item_blocks(self._of_kind("category"), list(self._number_columns()))
        self.category_block_, self.number_block_ = (block.finish(summary.items) for block in blocks)
        self.warn_of_long(summary.lengths)
        return self

    @property
    def categories_(self):
        """Categories of each categorical field."""
        block = self.category_block_
        return dict(zip(block.feature_names_in_, block.categories_, strict=False))

    def encode(self, table):
        categories, numbers, waves, offsets = self._read_events(table)
        offsets = torch.from_numpy(offsets)
        codes = self.category_block_.encode(categories)["codes"].numpy()
        values = self.number_block_.encode(numbers)["values"].numpy()
        encoding = {
            f"codes_{index}": ragged(codes[:, index], offsets) for index in range(codes.shape[1])
        }
        for index in range(values.shape[1]):
            encoding[f"values_{index}"] = ragged(values[:, index], offsets)
        for cycle, wave in zip(self._cycles, waves, strict=True):
            encoding[f"calendar_{cycle}"] = ragged(wave, offsets)
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
        sources += [self._sources[self._time] for _ in self._cycles]
        return {entry: [source] for entry, source in zip(encoding, sources, strict=True)}

    def make_module(self):
        codes = self.category_block_.make_module() if self._of_kind("category") else None
        values = self.number_block_.make_module() if self._number_columns() else None
        if values is not None:
            # The factor is for one value per row; lists have many.
            values.learning_rate_scale = None
        waves = 2 * len(HARMONICS) * len(self._cycles)
        names = self.chosen_aggregates
        aggregates = self.make_aggregates(names)[0] if names else None
        return EventSequenceModule(codes, values, self.make_encoder, waves, aggregates)

    def make_aggregates(self, names):
        columns, block = list(self._number_columns()), self.number_block_
        fields = zip(block.edges_, block.center_, block.scale_, strict=True)
        numbers = [NumberField(len(edges), center / scale) for edges, center, scale in fields]
        # With now=False no gap to the prediction time is read.
        now = f"{self._time}.now"
        gap = columns.index(now) if now in columns else None
        n_codes = self.category_block_.n_codes if self._of_kind("category") else []
        return [ListAggregates(names, n_codes, numbers, max_length=self.max_length, gap=gap)]

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
        for cycle, wave in self._onnx_waves(graph, lists).items():
            lists.values[f"{cycle} encoded"] = wave
            entries[f"calendar_{cycle}"] = f"{cycle} encoded"
        return encoders.entries(graph, lists, entries)

    def _onnx_waves(self, graph, lists):
        """Return the waves of each cycle of the calendar, of shape (rows, longest, waves)."""
        from sk_easytensor.onnx import encoders

        if not self._cycles:
            return {}
        times = lists.values[self._time]
        missing = graph.op("IsNaN", times)
        known = graph.op("Where", missing, np.float64(0), times)
        microseconds = graph.cast(
            graph.op("Round", graph.op("Mul", known, np.float64(1e6))), np.int64
        )
        flat = graph.op("Reshape", microseconds, np.array([-1]))
        wall = encoders.clock(graph, flat, zone_shifts(self._zone))
        phases = encoders.phases(graph, encoders.within_years(graph, wall))
        found = {}
        for cycle in self._cycles:
            phase = graph.op("Reshape", phases[CYCLES.index(cycle)], graph.op("Shape", times))
            pairs = [encoders.waves(graph, phase, harmonic) for harmonic in HARMONICS]
            parts = [sine for sine, _ in pairs] + [cosine for _, cosine in pairs]
            parts = [graph.op("Where", missing, np.float64(0), part) for part in parts]
            found[cycle] = graph.cast(graph.stack(parts, axis=-1), np.float32)
        return found

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


class EventSequenceModule(AggregatedModule):
    """Embed the fields of each event and encode the lists of events.

    Parameters
    ----------
    codes : CategoryModule or None
        Embedding of the categorical fields, if there are any.
    values : NumericModule or None
        Embedding of the numeric fields, if there are any.
    make_encoder : callable
        Function that returns the :class:`SequenceEncoder` for an item width.
    n_waves : int, default=0
        Number of sines and cosines of the calendar of each event.
    aggregates : ListAggregates or None, default=None
        Aggregates of the lists.
    """

    def __init__(self, codes, values, make_encoder, n_waves=0, aggregates=None):
        super().__init__()
        self.codes = codes
        self.values = values
        self.aggregates = nn.ModuleList([] if aggregates is None else [aggregates])
        parts = [module for module in (codes, values) if module is not None]
        width = sum(module.out_features for module in parts) + n_waves
        self.encoder = make_encoder(width)
        self.out_features = self.encoder.out_features
        if aggregates is not None:
            self.out_features += aggregates.out_features + aggregates.n_items * width

    def forward(self, **fields):
        """Return a vector for each row.

        Parameters
        ----------
        **fields : Ragged, parallel
            ``codes_0``, ``codes_1`` and so on of int32, and ``values_0``, ``values_1`` and so on
            of float32 with shape (total, 2), and ``calendar_day`` and so on of shape (total, n).

        Returns
        -------
        torch.Tensor of shape (batch, out_features)
        """
        ((items, offsets),) = self.item_vectors(**fields)
        padded, lengths = pad(items, offsets)
        encoded = self.encoder.read(padded, lengths)
        if not self.aggregates:
            return encoded
        lists = self.aggregated_lists(fields)[0]
        return torch.cat([encoded, *self.aggregates[0].outputs(lists, padded)], dim=1)

    def item_vectors(self, **fields):
        parts = []
        for module, prefix in ((self.codes, "codes"), (self.values, "values")):
            if module is not None:
                parts.append(module(torch.stack(_values(fields, prefix), dim=1)))
        parts += _values(fields, "calendar")
        offsets = next(iter(fields.values())).offsets
        return [(torch.cat(parts, dim=1), offsets)]

    def aggregated_lists(self, encoding):
        offsets, found = next(iter(encoding.values())).offsets, []
        for module, prefix in ((self.codes, "codes"), (self.values, "values")):
            padded = None
            if module is not None:
                values = torch.stack(_values(encoding, prefix), dim=1)
                padded, lengths = pad(values.flatten(1), offsets)
                padded = padded.unflatten(2, values.shape[1:])
            found.append(padded)
        return [(*found, lengths)]


def _values(fields, prefix):
    """Return the items of the entries whose names begin with a prefix."""
    return [lists.values for name, lists in fields.items() if name.startswith(prefix)]
