"""Lists of unequal length, kept flat: values and offsets."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["Padded", "Ragged"]


class Ragged:
    """Lists of unequal length, kept flat.

    Parameters
    ----------
    values : torch.Tensor of shape (total, ...)
        All lists, one after the other.
    offsets : torch.Tensor of int64, shape (n_rows * n_columns + 1,)
        List ``i`` is ``values[offsets[i]:offsets[i + 1]]``; the lists of a row are neighbours.
    n_columns : int, default=1
        Lists per row.

    Notes
    -----
    Lists that describe the same items, such as the kind and the amount of each event, are
    parallel: their ragged tensors share one `offsets` object. Methods that take a `shared`
    dictionary keep it so, and do the work on the offsets once, if all are given the same one.

    Examples
    --------
    >>> lists = Ragged(torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2, 3]))
    >>> len(lists), lists.take(torch.tensor([2, 0])).values.tolist()
    (3, [7, 5, 6])
    >>> lists.to_padded(fill=0).tolist()
    [[5, 6], [0, 0], [7, 0]]
    """

    def __init__(self, values, offsets, n_columns=1):
        self.values = values
        self.offsets = offsets
        self.n_columns = n_columns

    def __len__(self):
        return (len(self.offsets) - 1) // self.n_columns

    def __repr__(self):
        return f"Ragged(rows={len(self)}, columns={self.n_columns}, values={len(self.values)})"

    @property
    def lengths(self):
        """Length of each list, int64 of shape (n_rows * n_columns,)."""
        return self.offsets[1:] - self.offsets[:-1]

    def take(self, rows, shared=None):
        """Return the given rows.

        Parameters
        ----------
        rows : slice or torch.Tensor of int64
            Which; a slice gives views.
        shared : dict, optional
            See the class.

        Returns
        -------
        Ragged
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._slice(start, max(stop, start), shared)
            rows = torch.tensor(range(start, stop, step), dtype=torch.int64)
        if self.n_columns > 1:
            columns = torch.arange(self.n_columns, device=rows.device)
            lists = (rows[:, None] * self.n_columns + columns).reshape(-1)
        else:
            lists = rows
        return self._take_lists(lists, shared)

    def permute_columns(self, columns, rows, shared=None):
        """Return a copy in which the lists of some columns come from other rows."""
        source = torch.arange(len(self.offsets) - 1).reshape(len(self), self.n_columns)
        source[:, columns] = source[rows][:, columns]
        return self._take_lists(source.reshape(-1), shared)

    def refill(self, rows):
        """Return lists as long as these that hold the last items of other rows' lists.

        Parameters
        ----------
        rows : torch.Tensor of int64
            Row that each row's items are taken from.

        Returns
        -------
        Ragged
            Parallel to this one. Where the other list is shorter, the first items are missing:
            0 for integers, NaN for floats, as blocks encode it.
        """
        lengths = self.lengths
        owner = torch.repeat_interleave(lengths)
        from_end = self.offsets[1:][owner] - torch.arange(len(owner))
        source = self.offsets[1:][rows][owner] - from_end
        known = source >= self.offsets[:-1][rows][owner]
        values = self.values[source.clamp(min=0)]
        values[~known] = float("nan") if values.is_floating_point() else 0
        return Ragged(values, self.offsets, self.n_columns)

    def to_padded(self, fill=0):
        """Return a dense tensor of shape (n_lists, longest list, ...), filled at the end."""
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        shape = (len(lengths), longest, *self.values.shape[1:])
        padded = self.values.new_full(shape, fill)
        padded[torch.arange(longest, device=lengths.device) < lengths[:, None]] = self.values
        return padded

    def to(self, device, shared=None):
        """Return the same lists on another device."""
        offsets = _once(shared, self.offsets, lambda: self.offsets.to(device))
        return Ragged(self.values.to(device), offsets, self.n_columns)

    @staticmethod
    def concatenate(parts, shared=None):
        """Join the rows of several ragged tensors."""

        def join():
            shifts = np.cumsum([0] + [len(part.values) for part in parts])
            offsets = [
                part.offsets[:-1] + int(shift) for part, shift in zip(parts, shifts, strict=False)
            ]
            offsets.append(torch.tensor([int(shifts[-1])]))
            return torch.cat(offsets)

        values = torch.cat([part.values for part in parts])
        return Ragged(values, _once(shared, parts[0].offsets, join), parts[0].n_columns)

    def _slice(self, start, stop, shared):
        stretch = slice(start * self.n_columns, stop * self.n_columns + 1)
        first, last = int(self.offsets[stretch.start]), int(self.offsets[stretch.stop - 1])
        offsets = _once(shared, self.offsets, lambda: self.offsets[stretch] - first)
        return Ragged(self.values[first:last], offsets, self.n_columns)

    def _take_lists(self, lists, shared):
        def plan():
            starts = self.offsets[lists]
            lengths = self.offsets[lists + 1] - starts
            offsets = starts.new_zeros(len(lists) + 1)
            torch.cumsum(lengths, 0, out=offsets[1:])
            positions = torch.arange(int(offsets[-1]), device=offsets.device)
            positions += torch.repeat_interleave(starts - offsets[:-1], lengths)
            return positions, offsets

        positions, offsets = _once(shared, self.offsets, plan)
        return Ragged(self.values.index_select(0, positions), offsets, self.n_columns)


class Padded:
    """Lists as a network that was exported is given them: padded, beside their lengths.

    It stands in for a :class:`Ragged` whose values include the padding, so that modules read
    both alike; no shape depends on what the lists hold.

    Parameters
    ----------
    padded : torch.Tensor of shape (n_rows, n_columns, longest, ...)
        Items, anything at the end.
    lengths : torch.Tensor of int64, shape (n_rows, n_columns)
        Items of each list.
    """

    def __init__(self, padded, lengths):
        self.n_rows, self.n_columns, self.longest = padded.shape[:3]
        self.values = padded.flatten(0, 2)
        self.lengths = lengths.flatten()

    @property
    def offsets(self):
        """The lists themselves, which say where each one is, as offsets do."""
        return self

    def pad(self, items):
        """Return flat items as (n_lists, longest, ...), zeros at the end, and the lengths."""
        padded = items.unflatten(0, (-1, self.longest))
        known = torch.arange(self.longest, device=items.device) < self.lengths[:, None]
        known = known.reshape(known.shape + (1,) * (padded.ndim - 2))
        return torch.where(known, padded, torch.zeros_like(padded)), self.lengths

    def to_padded(self):
        """Return a tensor of shape (n_lists, longest, ...), zeros at the end."""
        return self.pad(self.values)[0]


def _once(shared, offsets, make):
    """Make something of a tensor of offsets, once for all ragged tensors that share it."""
    if shared is None:
        return make()
    # The caller holds on to the offsets meanwhile, so that their identity is theirs alone.
    if id(offsets) not in shared:
        shared[id(offsets)] = make()
    return shared[id(offsets)]
