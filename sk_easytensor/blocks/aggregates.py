"""Aggregates of lists, such as counts and latest items, as inputs of networks and boosted trees."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from sk_easytensor._utils.validation import shortened
from sk_easytensor.blocks.category import KNOWN, LARGEST_EXACT
from sk_easytensor.blocks.numeric import BORDER, FIRST_CODE, MISSING_CODE, TREE_PARTS
from sk_easytensor.data.bin_edges import BOUND

__all__ = [
    "CATEGORY_AGGREGATES",
    "EVENT_AGGREGATES",
    "ListAggregates",
    "NumberField",
    "chosen_aggregates",
]


STATISTICS = ("mean", "min", "max", "std", "sum", "trend")
"""Statistics of the numbers of a list."""

CATEGORY_AGGREGATES = (
    "length",
    "counts",
    "shares",
    "recency",
    "changes",
    "run",
    "distinct",
    "last",
    "first",
)
"""Aggregates of lists of categories."""

EVENT_AGGREGATES = (*CATEGORY_AGGREGATES, "known", *STATISTICS, "recent", "since")
"""Aggregates of lists of events."""

FREQUENT = 10
"""Largest number of categories of a column that have counts, shares and times of their own."""

LATEST = 3
"""Number of items at the end of a list that are read one by one."""

RECENT = 5
"""Number of items at the end of a list over which statistics are computed once more."""

LARGEST_COUNT = 1023
"""Largest count that trees distinguish from larger ones."""

LARGEST_TREND = 3 * BOUND
"""Trends are clipped to this size, which the trend of a list without gaps does not exceed."""


def chosen_aggregates(owner, aggregates, known):
    """Return the names of the aggregates that a parameter selects.

    Parameters
    ----------
    owner : str
        Class name of the block, for error messages.
    aggregates : "auto", bool or list of str
        Value of the parameter ``aggregates``.
    known : tuple of str
        Names of all aggregates of the block.

    Returns
    -------
    list of str
        Names in the order of `known`; empty for no aggregates.

    Raises
    ------
    ValueError
        If the parameter is neither a bool, ``"auto"`` nor a list of known names.
    """
    if isinstance(aggregates, bool) or (isinstance(aggregates, str) and aggregates == "auto"):
        return list(known) if aggregates else []
    listed = isinstance(aggregates, (list, tuple, set, frozenset))
    unknown = [name for name in aggregates if name not in known] if listed else [aggregates]
    if unknown:
        raise ValueError(
            f"{owner}: aggregates must be 'auto', True, False or a list of some of {list(known)}, "
            f"got {shortened(aggregates)}"
        )
    return [name for name in known if name in aggregates]


@dataclass(frozen=True)
class Count:
    """Numbers of items, -1 where there is none.

    Attributes
    ----------
    highest : int
        Largest number, the maximal length of a list.
    """

    highest: int
    by_column: ClassVar = ()

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return min(self.highest, LARGEST_COUNT) + FIRST_CODE + 1, True

    def codes(self, counts):
        """Return the codes for trees: the count plus one, 0 where there is none."""
        return counts.clamp(max=min(self.highest, LARGEST_COUNT)) + FIRST_CODE

    def inputs(self, counts):
        """Return the inputs of a network: logarithms in [0, 1]. None is like the largest."""
        sizes = torch.where(counts < 0, self.highest, counts)
        return torch.log1p(sizes.float()) / math.log1p(self.highest)


@dataclass(frozen=True)
class Level:
    """Numbers from a lowest to a highest one, NaN where missing.

    Attributes
    ----------
    lowest : float
        The lowest number.
    parts : float
        Codes for trees per unit.
    weight : float
        Factor that turns numbers into inputs of a network.
    """

    lowest: float
    parts: float
    weight: float
    by_column: ClassVar = ("lowest", "parts", "weight")

    @classmethod
    def between(cls, lowest, highest):
        """Return the kind of the numbers from `lowest` to `highest`."""
        return cls(lowest, TREE_PARTS / (highest - lowest), BOUND / max(highest, -lowest))

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return FIRST_CODE + TREE_PARTS + 1, True

    def codes(self, numbers):
        """Return the codes for trees: equal parts of the range, 0 where missing."""
        codes = ((numbers - self.lowest) * self.parts).clamp(0, TREE_PARTS)
        return torch.where(torch.isnan(numbers), MISSING_CODE, codes + (FIRST_CODE + BORDER))

    def inputs(self, numbers):
        """Return the inputs of a network, in [-3, 3] and 0 where missing."""
        return torch.where(torch.isnan(numbers), 0.0, numbers) * self.weight


@dataclass(frozen=True)
class Located:
    """Scaled numbers of a field with their positions among its bin edges, NaN where missing.

    Attributes
    ----------
    n_bins : int
        Number of bins of the field.
    parts : int
        Codes for trees per bin.
    missing : float
        Input of a network in place of a missing number.
    """

    n_bins: int
    parts: int
    missing: float
    by_column: ClassVar = ("parts", "missing")

    @classmethod
    def of(cls, field, missing=0.0):
        """Return the kind of the numbers of a :class:`NumberField`."""
        return cls(field.n_bins, max(TREE_PARTS // field.n_bins, 1), missing)

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return FIRST_CODE + self.parts * self.n_bins + 1, True

    def codes(self, numbers):
        """Return the codes for trees: parts of the bins, 0 where missing."""
        positions = numbers[..., 1]
        codes = positions * self.parts + (FIRST_CODE + BORDER)
        return torch.where(torch.isnan(positions), MISSING_CODE, codes)

    def inputs(self, numbers):
        """Return the inputs of a network: the scaled numbers, in [-3, 3]."""
        scaled = numbers[..., 0]
        return torch.where(torch.isnan(scaled), self.missing, scaled.clamp(-BOUND, BOUND))


@dataclass(frozen=True)
class Item:
    """Codes of items, which a network reads as embedded items.

    Attributes
    ----------
    n_codes : int
        Number of codes.
    """

    n_codes: int
    by_column: ClassVar = ()

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return self.n_codes, False

    def codes(self, codes):
        """Return the codes for trees."""
        return codes


@dataclass(frozen=True)
class Aggregate:
    """An aggregate of one field: some columns that have the same kind of value.

    Attributes
    ----------
    name : str
        Name of the aggregate, such as ``"counts"`` or ``"recent mean"``.
    fields : {"codes", "values"} or None
        Fields that the aggregate is computed of: categorical or numeric ones, or None for the
        whole list.
    field : int
        Index of the field among them.
    values : Count, Level, Located or Item
        Kind of the values.
    size : int, default=1
        Number of columns.
    for_network : bool, default=True
        Whether the network reads the columns; trees always do.
    """

    name: str
    fields: str | None
    field: int
    values: object
    size: int = 1
    for_network: bool = True

    @property
    def key(self):
        """Name of the aggregate and its fields."""
        return self.name, self.fields


class Columns(nn.Module):
    """Columns of aggregates, of which those with the same kind of value are computed at once.

    One operation for all columns keeps exported graphs small.

    Parameters
    ----------
    aggregates : list of Aggregate
        Aggregates in the order of their columns.
    shapes : dict of {tuple: (int, int)}
        Number of fields, and of columns that are computed for each of them, by key.
    """

    def __init__(self, aggregates, shapes):
        super().__init__()
        self.groups, order = [], []
        place = dict(zip(aggregates, itertools.accumulate(p.size for p in aggregates), strict=True))
        kinds = dict.fromkeys(type(part.values) for part in aggregates)
        for number, kind in enumerate(kinds):
            parts = [part for part in aggregates if type(part.values) is kind]
            keys = list(dict.fromkeys(part.key for part in parts))
            sizes = [math.prod(shapes[key]) for key in keys]
            starts = dict(zip(keys, [0, *itertools.accumulate(sizes)], strict=False))
            columns = []
            for part in parts:
                first = starts[part.key] + part.field * shapes[part.key][1]
                columns += range(first, first + part.size)
                order += range(place[part] - part.size, place[part])
            # Not part of the state dict, because the block knows the aggregates.
            self.register_buffer(f"columns_{number}", torch.tensor(columns), False)
            for name in kind.by_column:
                vector = [getattr(part.values, name) for part in parts for _ in range(part.size)]
                vector = torch.tensor(vector, dtype=torch.float32)
                self.register_buffer(f"{name}_{number}", vector, False)
            self.groups.append((parts[0].values, keys))
        order = torch.tensor(order, dtype=torch.int64).argsort()
        self.register_buffer("order", order, False)

    def forward(self, found, method):
        """Return the columns as trees or networks read them.

        Parameters
        ----------
        found : dict of {tuple: torch.Tensor}
            Result of :meth:`ListAggregates.compute`.
        method : {"codes", "inputs"}
            Method of the kinds of values.

        Returns
        -------
        torch.Tensor of shape (n_lists, n_columns)
        """
        parts = []
        for number, (kind, keys) in enumerate(self.groups):
            values = torch.cat([found[key].flatten(1, 2) for key in keys], dim=1)
            values = values.index_select(1, self.get_buffer(f"columns_{number}"))
            vectors = {name: self.get_buffer(f"{name}_{number}") for name in kind.by_column}
            parts.append(getattr(replace(kind, **vectors), method)(values))
        return torch.cat(parts, dim=1).index_select(1, self.order)


@dataclass(frozen=True)
class NumberField:
    """A numeric field of a list.

    Attributes
    ----------
    n_edges : int
        Number of its bin edges.
    origin : float
        Scaled value of the number 0, with the opposite sign: its center divided by its scale.
    """

    n_edges: int
    origin: float = 0.0

    @property
    def n_bins(self):
        """Number of bins, at least 1."""
        return max(self.n_edges - 1, 1)


class ListAggregates(nn.Module):
    """Compute aggregates of parallel lists from their encoding, without weights.

    Parameters
    ----------
    names : list of str
        Aggregates to compute, some of `EVENT_AGGREGATES`.
    n_codes : list of int
        Number of codes of each categorical field.
    numbers : list of NumberField, default=()
        The numeric fields.
    max_length : int
        Largest length of a list.
    gap : int or None, default=None
        Index of the numeric field that has the time from each event to the prediction time.

    Attributes
    ----------
    aggregates : list of Aggregate
        Aggregates in the order of their columns.
    out_features : int
        Number of inputs of a network.
    n_items : int
        Number of items that :meth:`items` picks from each list.
    tree_codes : list of (int, bool)
        Number of codes of each column for trees, and whether they are ordered.

    Notes
    -----
    Numbers are scaled and bounded, as :class:`~sk_easytensor.NumericBlock` encodes them. Sums are
    sums of numbers in units of the field's scale, whose outliers are bounded. A trend is the change
    along the list of the line fitted to its numbers by least squares. Reductions are in double
    precision, so that rounding does not depend on the other rows of a batch.
    """

    def __init__(self, names, n_codes, numbers=(), *, max_length, gap=None):
        super().__init__()
        self.names = list(names)
        self.n_codes = list(n_codes)
        self.numbers = list(numbers)
        self.max_length = max_length
        self.gap = gap
        self.counted = [min(size, KNOWN + FREQUENT) for size in self.n_codes]
        self.measured = [index for index in range(len(self.numbers)) if index != gap]
        # Not part of the state dict, because the block knows the fields.
        self.register_buffer("fields", torch.tensor(self.measured, dtype=torch.int64), False)
        origins = [_bounded_origin(self.numbers[index].origin) for index in self.measured]
        self.register_buffer("origins", torch.tensor(origins, dtype=torch.float64), False)
        self.aggregates = [
            *self._list_aggregates(),
            *self._category_aggregates(),
            *self._number_aggregates(),
            *self._gap_aggregates(),
        ]
        for_network, shapes = [p for p in self.aggregates if p.for_network], self._shapes()
        self.for_trees = Columns(self.aggregates, shapes)
        self.for_network = Columns(for_network, shapes)
        self.out_features = sum(part.size for part in for_network)
        self.n_items = LATEST * ("last" in self.names) + ("first" in self.names)
        self.tree_codes = [
            codes for part in self.aggregates for codes in [part.values.tree_codes] * part.size
        ]

    def _list_aggregates(self):
        # The sequence encoder gives the length to the network.
        if "length" in self.names:
            yield Aggregate("length", None, 0, Count(self.max_length), 1, False)

    def _category_aggregates(self):
        count = Count(self.max_length)
        for index, (counted, n_codes) in enumerate(zip(self.counted, self.n_codes, strict=True)):
            parts = {
                "counts": (count, counted),
                "shares": (Level.between(0.0, 1.0), counted),
                "recency": (count, counted - KNOWN),
                "changes": (count, 1),
                "run": (count, 1),
                "distinct": (count, 1),
            }
            for name, (values, size) in parts.items():
                if name in self.names and size:
                    yield Aggregate(name, "codes", index, values, size)
            if n_codes <= LARGEST_EXACT:
                for name, size in (("last", LATEST), ("first", 1)):
                    if name in self.names:
                        yield Aggregate(name, "codes", index, Item(n_codes), size, False)

    def _number_aggregates(self):
        count = Count(self.max_length)
        for index, number in enumerate(self.numbers[place] for place in self.measured):
            located = Located.of(number)
            if "known" in self.names:
                yield Aggregate("known", "values", index, count)
            for name, size in (("last", LATEST), ("first", 1)):
                if name in self.names:
                    yield Aggregate(name, "values", index, located, size, False)
            highest = self.max_length * (BOUND + abs(_bounded_origin(number.origin)))
            kinds = {
                "mean": Level.between(-BOUND, BOUND),
                "min": located,
                "max": located,
                "std": Level.between(0.0, BOUND),
                "sum": Level.between(-math.log1p(highest), math.log1p(highest)),
                "trend": Level.between(-LARGEST_TREND, LARGEST_TREND),
            }
            for window in self._windows:
                for name, values in kinds.items():
                    if name in self.names:
                        yield Aggregate(window + name, "values", index, values)

    def _gap_aggregates(self):
        if self.gap is None or "since" not in self.names:
            return
        located = Located.of(self.numbers[self.gap], BOUND)
        yield Aggregate("since last", None, 0, located, LATEST)
        yield Aggregate("since first", None, 0, located)
        for index, counted in enumerate(self.counted):
            if counted > KNOWN:
                yield Aggregate("since", "codes", index, located, counted - KNOWN)

    @property
    def _windows(self):
        return ["", "recent "] if "recent" in self.names else [""]

    def _shapes(self):
        """Return the number of fields, and of columns that are computed for each, by key."""
        n_fields = {None: 1, "codes": len(self.n_codes), "values": len(self.measured)}
        shapes = {}
        for part in self.aggregates:
            size = max(part.size, shapes.get(part.key, (0, 0))[1])
            shapes[part.key] = n_fields[part.fields], size
        return shapes

    def compute(self, codes, numbers, lengths):
        """Return the values of all aggregates.

        Parameters
        ----------
        codes : torch.Tensor of int, shape (n_lists, longest, n_categorical), or None
            Codes of the items, followed by padding; None without categorical fields.
        numbers : torch.Tensor of float32, shape (n_lists, longest, n_numeric, 2), or None
            Scaled numbers and positions among their edges, NaN where missing, and padding; None
            without numeric fields.
        lengths : torch.Tensor of int64, shape (n_lists,)
            Length of each list.

        Returns
        -------
        dict of {tuple: torch.Tensor}
            By the key of the aggregates: int64 or float32 of shape (n_lists, n_fields, size), or
            (n_lists, n_fields, size, 2) for scaled numbers with positions.
        """
        found = {("length", None): lengths[:, None, None]}
        longest = (numbers if codes is None else codes).shape[1]
        place = torch.arange(longest, device=lengths.device)
        known = place < lengths[:, None]
        if codes is not None:
            latest = self._describe_categories(found, codes.long(), place, known, lengths)
        if self.measured:
            self._describe_numbers(found, numbers, place, known, lengths)
        if self.gap is not None and "since" in self.names:
            gap = numbers[:, :, self.gap]
            found["since last", None] = _items_at(gap, _from_end(lengths), math.nan)[:, None]
            found["since first", None] = _items_at(gap, _firsts(lengths), math.nan)[:, None]
            if codes is not None:
                since = _items_at(gap, latest.flatten(1), math.nan)
                found["since", "codes"] = since.unflatten(1, latest.shape[1:])
        return found

    def value(self, found, aggregate):
        """Return the columns of one aggregate from the result of :meth:`compute`."""
        return found[aggregate.key][:, aggregate.field, : aggregate.size]

    def _describe_categories(self, found, codes, place, known, lengths):
        """Add the aggregates of the categorical fields.

        Returns
        -------
        torch.Tensor of int64, shape (n_lists, n_categorical, n)
            Last place of each known category that is counted, -1 where there is none.
        """
        place, known = place[:, None], known[..., None]
        numbered = torch.arange(max(self.counted), device=codes.device)
        matches = (codes[..., None] == numbered) & known[..., None]
        counts = matches.sum(1)
        found["counts", "codes"] = counts
        found["shares", "codes"] = counts.float() / lengths.clamp(min=1)[:, None, None]
        # Half the memory of int64: there is a number for each item and category.
        latest = torch.where(matches[..., KNOWN:], place[..., None].int(), -1).amax(1).long()
        after = lengths[:, None, None] - 1 - latest
        found["recency", "codes"] = torch.where(latest < 0, -1, after)
        ends = _items_at(codes, _from_end(lengths), MISSING_CODE)
        first = _items_at(codes, _firsts(lengths), MISSING_CODE)
        changed = ((codes[:, 1:] != codes[:, :-1]) & known[:, 1:]).sum(1)
        other = (codes != ends[:, :1]) & known
        run = lengths[:, None] - 1 - torch.where(other, place, -1).amax(1)
        # Padding is read as missing items, which do not count.
        ordered = torch.where(known, codes, MISSING_CODE).sort(1).values
        new = (ordered[:, 1:] != ordered[:, :-1]).sum(1)
        found["last", "codes"] = ends.transpose(1, 2)
        found["first", "codes"] = first.transpose(1, 2)
        found["changes", "codes"] = changed[..., None]
        found["run", "codes"] = run[..., None]
        found["distinct", "codes"] = (new + (ordered[:, 0] != MISSING_CODE))[..., None]
        return latest

    def _describe_numbers(self, found, numbers, place, known, lengths):
        """Add the aggregates of the numeric fields."""
        numbers = numbers.index_select(2, self.fields)
        numbers = torch.where(known[..., None, None], numbers, math.nan)
        found["last", "values"] = _items_at(numbers, _from_end(lengths), math.nan).transpose(1, 2)
        found["first", "values"] = _items_at(numbers, _firsts(lengths), math.nan).transpose(1, 2)
        found["known", "values"] = (~torch.isnan(numbers[..., 1])).sum(1)[..., None]
        if any(name in self.names for name in STATISTICS):
            windows = {"": (numbers, place[:, None].double())}
            if "recent" in self.names:
                places = lengths[:, None] - RECENT + torch.arange(RECENT, device=lengths.device)
                latest = _items_at(numbers, places, math.nan)
                windows["recent "] = latest, places[..., None].double()
            for window, items in windows.items():
                for name, value in self._statistics(*items).items():
                    found[window + name, "values"] = value[:, :, None]

    def _statistics(self, numbers, place):
        """Return the statistics of the numbers that are not missing, by name.

        Parameters
        ----------
        numbers : torch.Tensor of float32, shape (n_lists, n, n_fields, 2)
            Scaled numbers and positions, NaN where missing.
        place : torch.Tensor of float64, shape (n, 1) or (n_lists, n, 1)
            Place of each item in its list.
        """
        missing = torch.isnan(numbers)
        weight = (~missing[..., 1]).double()
        values = torch.where(missing[..., 0], 0.0, numbers[..., 0]).clamp(-BOUND, BOUND).double()
        count = weight.sum(1)
        divisor = count.clamp(min=1)
        total = values.sum(1)
        mean = total / divisor
        deviation = (values - mean[:, None]) * weight
        std = (deviation.square().sum(1) / divisor).sqrt()
        total = total + count * self.origins
        # Places relative to their mean, so that those of missing numbers have no effect.
        middle = (place * weight).sum(1) / divisor
        offset = (place - middle[:, None]) * weight
        spread = offset.square().sum(1).clamp(min=0.5)
        trend = (offset * deviation).sum(1) / spread * (offset.amax(1) - offset.amin(1))
        some = count > 0
        found = {
            "mean": torch.where(some, mean, math.nan),
            "min": torch.where(missing, math.inf, numbers).amin(1),
            "max": torch.where(missing, -math.inf, numbers).amax(1),
            "std": torch.where(some, std, math.nan),
            "sum": torch.where(some, total.sign() * total.abs().log1p(), math.nan),
            "trend": torch.where(count > 1, trend, math.nan).clamp(-LARGEST_TREND, LARGEST_TREND),
        }
        for name in ("min", "max"):
            found[name] = torch.where(some[..., None], found[name], math.nan)
        return {name: value.float() for name, value in found.items()}

    def outputs(self, lists, padded):
        """Return the inputs of a trunk.

        Parameters
        ----------
        lists : tuple
            Inputs of :meth:`compute`.
        padded : torch.Tensor of shape (n_lists, longest, features)
            Embedded items of the same lists.

        Returns
        -------
        list of torch.Tensor of shape (n_lists, n)
            Aggregates and embedded items, ``out_features + n_items * features`` columns in all.
        """
        parts = [self.inputs(self.compute(*lists))] if self.out_features else []
        return [*parts, self.items(padded, lists[2])] if self.n_items else parts

    def inputs(self, found):
        """Return the inputs of a network, float32 of shape (n_lists, out_features)."""
        return self.for_network(found, "inputs")

    def items(self, padded, lengths):
        """Return the last three items and the first, 0 where a list has fewer.

        Parameters
        ----------
        padded : torch.Tensor of shape (n_lists, longest, features)
            Embedded items.
        lengths : torch.Tensor of int64, shape (n_lists,)
            Length of each list.

        Returns
        -------
        torch.Tensor of shape (n_lists, n_items * features)
        """
        places = []
        if "last" in self.names:
            places.append(_from_end(lengths))
        if "first" in self.names:
            places.append(_firsts(lengths))
        return _items_at(padded, torch.cat(places, dim=1), 0.0).flatten(1)

    def codes(self, found):
        """Return the columns for trees, int32 of shape (n_lists, len(tree_codes))."""
        return self.for_trees(found, "codes").int()


def _bounded_origin(origin):
    """Return an origin up to a size at which it does not hide the numbers in single precision."""
    return max(-1000.0, min(1000.0, float(origin)))


def _from_end(lengths):
    """Return the places of the last items, the latest first; negative where there are fewer."""
    return lengths[:, None] - 1 - torch.arange(LATEST, device=lengths.device)


def _firsts(lengths):
    """Return the place of the first item, -1 for empty lists, of shape (n_lists, 1)."""
    return torch.where(lengths > 0, 0, -1)[:, None]


def _items_at(padded, places, missing):
    """Return items (n_lists, n_places, ...) at places; `missing` where a place is negative."""
    shape = (*places.shape, *[1] * (padded.ndim - 2))
    index = places.clamp(min=0).reshape(shape).expand(-1, -1, *padded.shape[2:])
    return torch.where(places.reshape(shape) >= 0, padded.gather(1, index), missing)
