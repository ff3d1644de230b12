"""Tensors of encoded rows: frames of dense entries and of ragged lists without padding."""

from __future__ import annotations

from warnings import catch_warnings, simplefilter

import numpy as np
import pyarrow as pa
import torch

__all__ = [
    "Padded",
    "Ragged",
    "TensorFrame",
    "select_rows",
]


class Ragged:
    """Ragged tensor: lists of different lengths, stored flat.

    Parameters
    ----------
    values : torch.Tensor of shape (total, ...)
        Items of all lists, concatenated.
    offsets : torch.Tensor of int64, shape (n_rows * n_columns + 1,)
        List ``i`` is ``values[offsets[i]:offsets[i + 1]]``; the lists of a row are consecutive.
    n_columns : int, default=1
        Number of lists per row.

    Notes
    -----
    Lists that describe the same items, such as the kind and the amount of each event, are
    parallel: their ragged tensors share one `offsets` object. Methods with a parameter `shared`
    preserve this, and compute new offsets only once, if they are called with the same dictionary
    for all parallel tensors.

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
        """Return a selection of rows.

        Parameters
        ----------
        rows : slice or torch.Tensor of int64
            Rows to select; a slice with step 1 returns views.
        shared : dict, optional
            Cache of new offsets: see the notes of the class.

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
        """Return a copy in which the lists of `columns` are those of other `rows`."""
        source = torch.arange(len(self.offsets) - 1).reshape(len(self), self.n_columns)
        source[:, columns] = source[rows][:, columns]
        return self._take_lists(source.reshape(-1), shared)

    def refill(self, rows):
        """Return lists of the same lengths with the last items of the lists of other rows.

        Parameters
        ----------
        rows : torch.Tensor of int64
            Row from which the items of each row are taken.

        Returns
        -------
        Ragged
            Lists parallel to these. If the other list is shorter, the first items are missing:
            0 for integers and NaN for floats, as in the encodings of blocks.
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
        """Return a dense tensor of shape (n_lists, longest, ...), padded with `fill`."""
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        shape = (len(lengths), longest, *self.values.shape[1:])
        padded = self.values.new_full(shape, fill)
        padded[torch.arange(longest, device=lengths.device) < lengths[:, None]] = self.values
        return padded

    def to(self, device, shared=None):
        """Return the lists on another device."""
        offsets = _once(shared, self.offsets, lambda: self.offsets.to(device))
        return Ragged(self.values.to(device), offsets, self.n_columns)

    @staticmethod
    def concatenate(parts, shared=None):
        """Concatenate the rows of ragged tensors."""

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
        span = slice(start * self.n_columns, stop * self.n_columns + 1)
        first, last = int(self.offsets[span.start]), int(self.offsets[span.stop - 1])
        offsets = _once(shared, self.offsets, lambda: self.offsets[span] - first)
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
    """Padded lists and their lengths, the inputs of exported networks.

    It replaces a :class:`Ragged` in modules, with values that include the padding, so that no shape
    depends on the values of the lists.

    Parameters
    ----------
    padded : torch.Tensor of shape (n_rows, n_columns, longest, ...)
        Items, followed by arbitrary padding.
    lengths : torch.Tensor of int64, shape (n_rows, n_columns)
        Length of each list.
    """

    def __init__(self, padded, lengths):
        self.n_rows, self.n_columns, self.longest = padded.shape[:3]
        self.values = padded.flatten(0, 2)
        self.lengths = lengths.flatten()

    @property
    def offsets(self):
        """The object itself, which modules pass on in place of offsets."""
        return self

    def pad(self, items):
        """Return flat items as (n_lists, longest, ...), followed by zeros, and the lengths."""
        padded = items.unflatten(0, (-1, self.longest))
        known = torch.arange(self.longest, device=items.device) < self.lengths[:, None]
        known = known.reshape(known.shape + (1,) * (padded.ndim - 2))
        return torch.where(known, padded, torch.zeros_like(padded)), self.lengths

    def to_padded(self):
        """Return a tensor of shape (n_lists, longest, ...), with zeros as padding."""
        return self.pad(self.values)[0]


def _once(shared, offsets, make):
    """Return ``make()``, computed once for all ragged tensors that share an offsets object."""
    if shared is None:
        return make()
    # The caller holds a reference to the offsets, so their id is not reused.
    if id(offsets) not in shared:
        shared[id(offsets)] = make()
    return shared[id(offsets)]


class TensorFrame:
    """Encodings of a table by all blocks.

    Parameters
    ----------
    encodings : dict of {str: dict of {str: torch.Tensor or Ragged}}
        Tensors by block name and entry name.
    n_rows : int, optional
        Number of rows; required only if there are no entries.

    Notes
    -----
    Iteration and indexing are by block name; ``len`` is the number of rows.

    Examples
    --------
    >>> frame = TensorFrame({"numeric": {"values": torch.arange(6.0).reshape(3, 2)}})
    >>> len(frame), frame.take(torch.tensor([2]))["numeric"]["values"].tolist()
    (3, [[4.0, 5.0]])
    >>> TensorFrame.from_arrow(frame.to_arrow()).equals(frame)
    True
    """

    def __init__(self, encodings, n_rows=None):
        self.encodings = encodings
        if n_rows is None:
            n_rows = next(
                len(entry) for encoding in encodings.values() for entry in encoding.values()
            )
        self.n_rows = n_rows

    def __getitem__(self, name):
        return self.encodings[name]

    def __iter__(self):
        return iter(self.encodings)

    def items(self):
        """Return pairs of block name and encoding."""
        return self.encodings.items()

    def __len__(self):
        return self.n_rows

    def __repr__(self):
        return f"TensorFrame(rows={self.n_rows}, blocks={list(self.encodings)})"

    def map(self, function, n_rows=None):
        """Return a frame of ``function(entry)`` for every entry."""
        encodings = {
            block: {name: function(entry) for name, entry in encoding.items()}
            for block, encoding in self.encodings.items()
        }
        return TensorFrame(encodings, self.n_rows if n_rows is None else n_rows)

    def take(self, rows):
        """Return a selection of rows, by a slice (views) or an int64 tensor (copies)."""
        n_rows = len(range(*rows.indices(self.n_rows))) if isinstance(rows, slice) else len(rows)
        shared = {}
        return self.map(lambda entry: _take(entry, rows, shared), n_rows)

    def to(self, device):
        """Return the frame on another device."""
        shared = {}
        return self.map(lambda entry: _to(entry, device, shared))

    def permute_column(self, block, positions, rows):
        """Return a frame in which the values of one input column are those of other rows.

        Parameters
        ----------
        block : str
            Name of the block that reads the column.
        positions : dict of {str: list of int}
            Positions of the column in the second dimension of each entry of the encoding.
        rows : torch.Tensor of int64
            Row from which the value of each row is taken.

        Returns
        -------
        TensorFrame

        Notes
        -----
        Lists that are parallel to those of other columns keep their lengths: a row has the same
        number of events, and the column's values of the latest events are those of another row.
        """
        encoding = dict(self.encodings[block])
        positions = {name: columns for name, columns in positions.items() if columns}
        fixed = {
            id(entry.offsets)
            for name, entry in encoding.items()
            if isinstance(entry, Ragged) and name not in positions
        }
        shared = {}
        for name, columns in positions.items():
            entry = encoding[name]
            if isinstance(entry, Ragged) and id(entry.offsets) in fixed:
                encoding[name] = entry.refill(rows)
            elif isinstance(entry, Ragged):
                encoding[name] = entry.permute_columns(columns, rows, shared)
            else:
                entry = entry.clone()
                entry[:, columns] = entry[rows][:, columns]
                encoding[name] = entry
        return TensorFrame({**self.encodings, block: encoding}, self.n_rows)

    def content(self):
        """Return all tensors of the frame, including offsets."""
        entries = [entry for encoding in self.encodings.values() for entry in encoding.values()]
        return [
            tensor
            for entry in entries
            for tensor in ((entry.values, entry.offsets) if isinstance(entry, Ragged) else (entry,))
        ]

    def row_hashes(self):
        """Return a 64-bit hash of the content of each row, as an int64 array.

        Equal rows have equal hashes. Among n different rows there is a collision with a probability
        of about ``n**2 / 2**64``.
        """
        total = np.zeros(self.n_rows, dtype=np.uint64)
        seed = 0
        for encoding in self.encodings.values():
            for entry in encoding.values():
                seed += 1
                total = _mix(total * np.uint64(31) + _hash_entry(entry, seed))
        return total.view(np.int64)

    @staticmethod
    def concatenate(frames):
        """Concatenate the rows of frames of the same blocks."""
        frames = list(frames)
        if len(frames) == 1:
            return frames[0]
        first, shared = frames[0], {}
        encodings = {
            block: {
                name: _concatenate([frame[block][name] for frame in frames], shared)
                for name in first[block]
            }
            for block in first
        }
        return TensorFrame(encodings, sum(len(frame) for frame in frames))

    def to_arrow(self):
        """Return the frame as a record batch that shares its memory.

        Returns
        -------
        pyarrow.RecordBatch
            One column per entry, named ``block/entry``.
        """
        arrays, fields, first = [], [], {}
        for block, encoding in self.encodings.items():
            for name, entry in encoding.items():
                array, metadata = _entry_to_arrow(entry)
                if isinstance(entry, Ragged):
                    metadata["parallel"] = first.setdefault(id(entry.offsets), f"{block}/{name}")
                arrays.append(array)
                fields.append(pa.field(f"{block}/{name}", array.type, metadata=metadata))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    @staticmethod
    def from_arrow(batch):
        """Return the frame of a record batch from :meth:`to_arrow`, sharing its memory."""
        encodings = {}
        for field, array in zip(batch.schema, batch.columns, strict=True):
            block, name = field.name.rsplit("/", 1)
            entry = _entry_from_arrow(array, field.metadata)
            encodings.setdefault(block, {})[name] = entry
            if isinstance(entry, Ragged):
                other, other_name = field.metadata[b"parallel"].decode().rsplit("/", 1)
                entry.offsets = encodings[other][other_name].offsets
        return TensorFrame(encodings, batch.num_rows)

    def equals(self, other):
        """Return whether two frames have bit-identical tensors, with NaN equal to NaN."""
        if self.to_arrow().schema != other.to_arrow().schema or len(self) != len(other):
            return False
        return all(
            torch.equal(_bits(a), _bits(b))
            for block in self
            for name in self[block]
            for a, b in zip(_parts(self[block][name]), _parts(other[block][name]), strict=True)
        )


def select_rows(table, index):
    """Select rows of a matrix, with a deterministic gradient.

    On a CPU, threads sum the gradient of ``table[index]`` in an arbitrary order. The gradient of
    ``index_select`` is summed in the order of the index, and takes half the time. On a GPU it is
    the other way round.

    Parameters
    ----------
    table : torch.Tensor of shape (n, size)
        Matrix whose rows are selected.
    index : torch.Tensor of int64, of any shape
        Indices of rows, which may be repeated.

    Returns
    -------
    torch.Tensor of shape (*index.shape, size)

    Examples
    --------
    >>> select_rows(torch.eye(2), torch.tensor([[1, 1]])).tolist()
    [[[0.0, 1.0], [0.0, 1.0]]]
    """
    if not table.is_cpu:
        return table[index]
    rows = table.index_select(0, index.reshape(-1))
    return rows if index.ndim == 1 else rows.unflatten(0, index.shape)


def _take(entry, rows, shared):
    if isinstance(entry, Ragged):
        return entry.take(rows, shared)
    return entry[rows] if isinstance(rows, slice) else entry.index_select(0, rows)


def _to(entry, device, shared):
    return entry.to(device, shared) if isinstance(entry, Ragged) else entry.to(device)


def _concatenate(entries, shared):
    if isinstance(entries[0], Ragged):
        return Ragged.concatenate(entries, shared)
    return torch.cat(entries)


def _parts(entry):
    return (entry.values, entry.offsets) if isinstance(entry, Ragged) else (entry,)


def _bits(tensor):
    # A tensor without elements may have strides that cannot be viewed as bytes.
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else torch.empty(tensor.shape)


def _mix(state):
    """Hash 64-bit integers (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _hash_values(values, seed):
    """Hash each row of a tensor of shape (n, ...)."""
    array = values.numpy()
    array = array.reshape(len(array), int(np.prod(array.shape[1:])))
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(np.uint64)
    column_hash = _mix(np.arange(words.shape[1], dtype=np.uint64) + np.uint64(seed << 32))
    return _mix(words + column_hash).sum(axis=1, dtype=np.uint64)


def _hash_entry(entry, seed):
    if not isinstance(entry, Ragged):
        return _hash_values(entry, seed)
    n_lists = len(entry.offsets) - 1
    lengths = entry.lengths.numpy()
    owner = np.repeat(np.arange(n_lists), lengths)
    position = np.arange(len(owner)) - entry.offsets.numpy()[owner]
    element = _mix(_hash_values(entry.values, seed) + _mix(position.astype(np.uint64)))
    total = np.zeros(n_lists, dtype=np.uint64)
    np.add.at(total, owner, element)
    lists = _mix(total + lengths.astype(np.uint64)).reshape(len(entry), entry.n_columns)
    return _hash_values(torch.from_numpy(lists.view(np.int64)), seed)


def _entry_to_arrow(entry):
    if isinstance(entry, Ragged):
        values = _fixed_lists(entry.values)
        lists = pa.LargeListArray.from_arrays(pa.array(entry.offsets.numpy()), values)
        shape = [entry.n_columns, *entry.values.shape[1:]]
        array = pa.FixedSizeListArray.from_arrays(lists, entry.n_columns)
        return array, {"ragged": ",".join(map(str, shape))}
    array = _fixed_lists(entry)
    return array, {"dense": ",".join(map(str, entry.shape[1:]))}


def _fixed_lists(tensor):
    array = pa.array(tensor.contiguous().numpy().reshape(-1))
    if tensor.ndim == 1:
        return array
    return pa.FixedSizeListArray.from_arrays(array, int(np.prod(tensor.shape[1:])))


def _entry_from_arrow(array, metadata):
    kind = b"dense" if b"dense" in metadata else b"ragged"
    shape = [int(size) for size in metadata[kind].decode().split(",") if size]
    if kind == b"dense":
        return _to_tensor(array).reshape(len(array), *shape)
    lists = array.flatten()
    offsets = _torch_view(lists.offsets)
    values = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return Ragged(_to_tensor(values).reshape(-1, *shape[1:]), offsets - offsets[0], shape[0])


def _to_tensor(array):
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return _torch_view(array)


def _torch_view(array):
    with catch_warnings():
        # Torch warns of read-only memory such as Arrow's; the tensor is never written to.
        simplefilter("ignore", UserWarning)
        return torch.from_numpy(array.to_numpy(zero_copy_only=True))
