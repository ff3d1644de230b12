"""Aggregates of lists, such as counts and latest items, as inputs of networks and boosted trees."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    lowest, highest : float
        Bounds of the numbers.
    """

    lowest: float
    highest: float

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return FIRST_CODE + TREE_PARTS + 1, True

    def codes(self, numbers):
        """Return the codes for trees: equal parts of the range, 0 where missing."""
        parts = (numbers - self.lowest) * (TREE_PARTS / (self.highest - self.lowest))
        codes = parts.clamp(0, TREE_PARTS) + (FIRST_CODE + BORDER)
        return torch.nan_to_num(codes, nan=MISSING_CODE)

    def inputs(self, numbers):
        """Return the inputs of a network, in [-3, 3] and 0 where missing."""
        return torch.nan_to_num(numbers, nan=0.0) * (BOUND / max(self.highest, -self.lowest))


@dataclass(frozen=True)
class Located:
    """Scaled numbers of a field with their positions among its bin edges, NaN where missing.

    Attributes
    ----------
    n_bins : int
        Number of bins of the field.
    missing : float, default=0.0
        Input of a network in place of a missing number.
    """

    n_bins: int
    missing: float = 0.0

    @property
    def tree_codes(self):
        """Number of codes for trees, and whether they are ordered."""
        return FIRST_CODE + self._parts * self.n_bins + 1, True

    @property
    def _parts(self):
        return max(TREE_PARTS // self.n_bins, 1)

    def codes(self, numbers):
        """Return the codes for trees: parts of the bins, 0 where missing."""
        codes = numbers[..., 1] * self._parts + (FIRST_CODE + BORDER)
        return torch.nan_to_num(codes, nan=MISSING_CODE)

    def inputs(self, numbers):
        """Return the inputs of a network: the scaled numbers."""
        return torch.nan_to_num(numbers[..., 0], nan=self.missing, posinf=BOUND, neginf=-BOUND)


@dataclass(frozen=True)
class Item:
    """Codes of items, which a network reads as embedded items.

    Attributes
    ----------
    n_codes : int
        Number of codes.
    """

    n_codes: int

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
    field : str or None
        Entry of the encoding that has the field, such as ``"codes_0"``; None for the whole list.
    values : Count, Level, Located or Item
        Kind of the values.
    size : int, default=1
        Number of columns.
    for_network : bool, default=True
        Whether the network reads the columns; trees always do.
    """

    name: str
    field: str | None
    values: object
    size: int = 1
    for_network: bool = True


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
        self.fields = measured = [index for index in range(len(self.numbers)) if index != gap]
        # Not part of the state dict, because the block knows the fields.
        self.register_buffer("measured", torch.tensor(measured, dtype=torch.int64), False)
        origins = [_bounded_origin(self.numbers[index].origin) for index in measured]
        self.register_buffer("origins", torch.tensor(origins, dtype=torch.float64), False)
        self.aggregates = [
            *self._list_aggregates(),
            *self._category_aggregates(),
            *self._number_aggregates(measured),
            *self._gap_aggregates(),
        ]
        self.out_features = sum(part.size for part in self.aggregates if part.for_network)
        self.n_items = LATEST * ("last" in self.names) + ("first" in self.names)
        self.tree_codes = [
            codes for part in self.aggregates for codes in [part.values.tree_codes] * part.size
        ]

    def _list_aggregates(self):
        # The sequence encoder gives the length to the network.
        count = Count(self.max_length)
        return [Aggregate("length", None, count, 1, False)] if "length" in self.names else []

    def _category_aggregates(self):
        count = Count(self.max_length)
        for index, (counted, n_codes) in enumerate(zip(self.counted, self.n_codes, strict=True)):
            field = f"codes_{index}"
            parts = {
                "counts": (count, counted),
                "shares": (Level(0.0, 1.0), counted),
                "recency": (count, counted - KNOWN),
                "changes": (count, 1),
                "run": (count, 1),
                "distinct": (count, 1),
            }
            for name, (values, size) in parts.items():
                if name in self.names and size:
                    yield Aggregate(name, field, values, size)
            if n_codes <= LARGEST_EXACT:
                for name, size in (("last", LATEST), ("first", 1)):
                    if name in self.names:
                        yield Aggregate(name, field, Item(n_codes), size, False)

    def _number_aggregates(self, measured):
        count = Count(self.max_length)
        for index in measured:
            number, field = self.numbers[index], f"values_{index}"
            located = Located(number.n_bins)
            if "known" in self.names:
                yield Aggregate("known", field, count)
            for name, size in (("last", LATEST), ("first", 1)):
                if name in self.names:
                    yield Aggregate(name, field, located, size, False)
            highest = self.max_length * (BOUND + abs(_bounded_origin(number.origin)))
            kinds = {
                "mean": Level(-BOUND, BOUND),
                "min": located,
                "max": located,
                "std": Level(0.0, BOUND),
                "sum": Level(-math.log1p(highest), math.log1p(highest)),
                "trend": Level(-LARGEST_TREND, LARGEST_TREND),
            }
            for window in self._windows:
                for name, values in kinds.items():
                    if name in self.names:
                        yield Aggregate(window + name, field, values)

    def _gap_aggregates(self):
        if self.gap is None or "since" not in self.names:
            return
        located = Located(self.numbers[self.gap].n_bins, BOUND)
        yield Aggregate("since last", None, located, LATEST)
        yield Aggregate("since first", None, located)
        for index, counted in enumerate(self.counted):
            if counted > KNOWN:
                yield Aggregate("since", f"codes_{index}", located, counted - KNOWN)

    @property
    def _windows(self):
        return ["", "recent "] if "recent" in self.names else [""]

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
        dict of {(str, str or None): torch.Tensor}
            By the name and the field of each aggregate: int64 or float32 of shape (n_lists, size),
            or (n_lists, size, 2) for scaled numbers with positions.
        """
        found = {("length", None): lengths[:, None]}
        longest = (numbers if codes is None else codes).shape[1]
        place = torch.arange(longest, device=lengths.device)
        known = place < lengths[:, None]
        latest = [
            self._describe_categories(found, index, codes[..., index], place, known, lengths)
            for index in range(len(self.n_codes))
        ]
        if self.fields:
            self._describe_numbers(found, numbers, place, known, lengths)
        if self.gap is not None and "since" in self.names:
            gap = numbers[:, :, self.gap]
            ends = _from_end(lengths)
            found["since last", None] = _items_at(gap, ends, math.nan)
            found["since first", None] = _items_at(gap, _firsts(lengths), math.nan)
            for index, places in enumerate(latest):
                found["since", f"codes_{index}"] = _items_at(gap, places[:, KNOWN:], math.nan)
        return found

    def _describe_categories(self, found, index, codes, place, known, lengths):
        """Add the aggregates of a categorical field; return the last place of each code."""
        codes, field = codes.long(), f"codes_{index}"
        numbered = torch.arange(self.counted[index], device=codes.device)
        matches = (codes[..., None] == numbered) & known[..., None]
        counts = matches.sum(1)
        found["counts", field] = counts
        found["shares", field] = counts.float() / lengths.clamp(min=1)[:, None]
        latest = torch.where(matches, place[:, None], -1).amax(1)
        after = lengths[:, None] - 1 - latest[:, KNOWN:]
        found["recency", field] = torch.where(latest[:, KNOWN:] < 0, -1, after)
        ends = _items_at(codes, _from_end(lengths), MISSING_CODE)
        found["last", field] = ends
        found["first", field] = _items_at(codes, _firsts(lengths), MISSING_CODE)
        changed = (codes[:, 1:] != codes[:, :-1]) & known[:, 1:]
        found["changes", field] = changed.sum(1, keepdim=True)
        other = (codes != ends[:, :1]) & known
        found["run", field] = lengths[:, None] - 1 - torch.where(other, place, -1).amax(1, True)
        if "distinct" in self.names:
            # Padding is read as missing items, which do not count.
            ordered = torch.where(known, codes, MISSING_CODE).sort(1).values
            new = (ordered[:, 1:] != ordered[:, :-1]).sum(1, keepdim=True)
            found["distinct", field] = new + (ordered[:, :1] != MISSING_CODE)
        return latest

    def _describe_numbers(self, found, numbers, place, known, lengths):
        """Add the aggregates of the numeric fields."""
        numbers = numbers.index_select(2, self.measured)
        numbers = torch.where(known[..., None, None], numbers, math.nan)
        ends = _items_at(numbers, _from_end(lengths), math.nan)
        first = _items_at(numbers, _firsts(lengths), math.nan)
        statistics = self._statistics(numbers, place[:, None].double())
        if "recent" in self.names:
            places = lengths[:, None] - RECENT + torch.arange(RECENT, device=lengths.device)
            recent = _items_at(numbers, places, math.nan)
            recent = self._statistics(recent, places[..., None].double())
            statistics |= {f"recent {name}": value for name, value in recent.items()}
        n_known = (~torch.isnan(numbers[..., 1])).sum(1)
        for index, field in enumerate(f"values_{number}" for number in self.fields):
            found["known", field] = n_known[:, index, None]
            found["last", field] = ends[:, :, index]
            found["first", field] = first[:, :, index]
            for name, value in statistics.items():
                found[name, field] = value[:, index, None]

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
        values = torch.nan_to_num(numbers[..., 0], nan=0.0, posinf=BOUND, neginf=-BOUND).double()
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
        parts = [
            part.values.inputs(found[part.name, part.field])
            for part in self.aggregates
            if part.for_network
        ]
        return torch.cat(parts, dim=1)

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
        parts = [part.values.codes(found[part.name, part.field]).int() for part in self.aggregates]
        return torch.cat(parts, dim=1)


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
