"""Encoded tables: named tensors whose first dimension is the row.

Every entry of an encoding is either a dense tensor of shape ``(n_rows, n_columns, ...)`` or a
:class:`Ragged` of ``n_rows x n_columns`` lists. The second dimension always counts the block's
input columns, which is what lets one column be permuted without encoding the table again.
"""

from __future__ import annotations

from warnings import catch_warnings, simplefilter

import numpy as np
import pyarrow as pa
import torch

__all__ = ["Ragged", "TensorFrame"]


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

    def take(self, rows):
        """Return the given rows (a slice or an int64 tensor)."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self.take(torch.tensor(range(start, stop, step), dtype=torch.int64))
            offsets = self.offsets[start * self.n_columns : max(stop, start) * self.n_columns + 1]
            values = self.values[int(offsets[0]) : int(offsets[-1])]
            return Ragged(values, offsets - offsets[0], self.n_columns)
        if self.n_columns > 1:
            columns = torch.arange(self.n_columns, device=rows.device)
            rows = (rows[:, None] * self.n_columns + columns).reshape(-1)
        return self._take_lists(rows)

    def permute_columns(self, columns, rows):
        """Return a copy in which the lists of some columns come from other rows."""
        source = torch.arange(len(self.offsets) - 1).reshape(len(self), self.n_columns)
        source[:, columns] = source[rows][:, columns]
        return self._take_lists(source.reshape(-1))

    def _take_lists(self, lists):
        starts = self.offsets[lists]
        lengths = self.offsets[lists + 1] - starts
        offsets = starts.new_zeros(len(lists) + 1)
        torch.cumsum(lengths, 0, out=offsets[1:])
        positions = torch.arange(int(offsets[-1]), device=offsets.device)
        positions += torch.repeat_interleave(starts - offsets[:-1], lengths)
        return Ragged(self.values[positions], offsets, self.n_columns)

    def to_padded(self, fill=0):
        """Return a dense tensor of shape (n_lists, longest list, ...), filled at the end."""
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        shape = (len(lengths), longest, *self.values.shape[1:])
        padded = self.values.new_full(shape, fill)
        padded[torch.arange(longest, device=lengths.device) < lengths[:, None]] = self.values
        return padded

    def to(self, device):
        """Return the same lists on another device."""
        return Ragged(self.values.to(device), self.offsets.to(device), self.n_columns)

    @staticmethod
    def concatenate(parts):
        """Join the rows of several ragged tensors."""
        shifts = np.cumsum([0] + [len(part.values) for part in parts])
        offsets = [
            part.offsets[:-1] + int(shift) for part, shift in zip(parts, shifts, strict=False)
        ]
        offsets.append(torch.tensor([int(shifts[-1])]))
        values = torch.cat([part.values for part in parts])
        return Ragged(values, torch.cat(offsets), parts[0].n_columns)


class TensorFrame:
    """The encodings of all blocks of a table.

    Parameters
    ----------
    encodings : dict of {str: dict of {str: torch.Tensor or Ragged}}
        Block name to entry name to tensor.
    n_rows : int, optional
        Needed only when there are no entries.

    Notes
    -----
    Iterates over block names and is indexed by them; its ``len`` is the number of rows.

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
        """Apply a function to every entry."""
        encodings = {
            block: {name: function(entry) for name, entry in encoding.items()}
            for block, encoding in self.encodings.items()
        }
        return TensorFrame(encodings, self.n_rows if n_rows is None else n_rows)

    def take(self, rows):
        """Return the given rows: a slice (views) or an int64 tensor (copies)."""
        n_rows = len(range(*rows.indices(self.n_rows))) if isinstance(rows, slice) else len(rows)
        return self.map(lambda entry: _take(entry, rows), n_rows)

    def to(self, device):
        """Return the frame on another device."""
        return self.map(lambda entry: entry.to(device))

    def permute_column(self, block, positions, rows):
        """Return a frame in which one input column's values come from other rows.

        Parameters
        ----------
        block : str
            Name of the block that reads the column.
        positions : dict of {str: list of int}
            For each entry of the encoding, where the column stands in its second dimension.
        rows : torch.Tensor of int64
            Row that each row's value is taken from.
        """
        encoding = dict(self.encodings[block])
        for name, columns in positions.items():
            entry = encoding[name]
            if isinstance(entry, Ragged):
                encoding[name] = entry.permute_columns(columns, rows)
            else:
                entry = entry.clone()
                entry[:, columns] = entry[rows][:, columns]
                encoding[name] = entry
        return TensorFrame({**self.encodings, block: encoding}, self.n_rows)

    def row_hashes(self):
        """Return a 64-bit hash of each row's content, as an int64 array.

        Equal rows have equal hashes; unlike rows collide with probability about ``n**2 / 2**64``.
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
        """Join the rows of several frames of the same blocks."""
        frames = list(frames)
        if len(frames) == 1:
            return frames[0]
        first = frames[0]
        encodings = {
            block: {
                name: _concatenate([frame[block][name] for frame in frames])
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
        arrays, fields = [], []
        for block, encoding in self.encodings.items():
            for name, entry in encoding.items():
                array, metadata = _entry_to_arrow(entry)
                arrays.append(array)
                fields.append(pa.field(f"{block}/{name}", array.type, metadata=metadata))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    @staticmethod
    def from_arrow(batch):
        """Read what :meth:`to_arrow` wrote, sharing its memory."""
        encodings = {}
        for field, array in zip(batch.schema, batch.columns, strict=True):
            block, name = field.name.rsplit("/", 1)
            entry = _entry_from_arrow(array, field.metadata)
            encodings.setdefault(block, {})[name] = entry
        return TensorFrame(encodings, batch.num_rows)

    def equals(self, other):
        """Tell whether two frames hold the same tensors, NaN equal to NaN."""
        ours, theirs = self.to_arrow(), other.to_arrow()
        if ours.schema != theirs.schema or len(self) != len(other):
            return False
        return all(
            torch.equal(_bits(a), _bits(b))
            for block in self
            for name in self[block]
            for a, b in zip(_parts(self[block][name]), _parts(other[block][name]), strict=True)
        )


def _take(entry, rows):
    if isinstance(entry, Ragged):
        return entry.take(rows)
    return entry[rows] if isinstance(rows, slice) else entry.index_select(0, rows)


def _concatenate(entries):
    if isinstance(entries[0], Ragged):
        return Ragged.concatenate(entries)
    return torch.cat(entries)


def _parts(entry):
    return (entry.values, entry.offsets) if isinstance(entry, Ragged) else (entry,)


def _bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def _mix(state):
    """Finaliser of the splitmix64 generator (Steele, Lea and Flood, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _hash_values(values, seed):
    """Hash each row of a tensor of shape (n, ...)."""
    array = values.numpy()
    array = array.reshape(len(array), int(np.prod(array.shape[1:])))
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(np.uint64)
    place = _mix(np.arange(words.shape[1], dtype=np.uint64) + np.uint64(seed << 32))
    return _mix(words + place).sum(axis=1, dtype=np.uint64)


def _hash_entry(entry, seed):
    if not isinstance(entry, Ragged):
        return _hash_values(entry, seed)
    n_lists = len(entry.offsets) - 1
    lengths = entry.lengths.numpy()
    owner = np.repeat(np.arange(n_lists), lengths)
    place = np.arange(len(owner)) - entry.offsets.numpy()[owner]
    element = _mix(_hash_values(entry.values, seed) + _mix(place.astype(np.uint64)))
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
    (kind, shape), *_ = metadata.items()
    shape = [int(size) for size in shape.decode().split(",") if size]
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
        # Arrow memory is read-only and torch has no read-only tensors; nothing writes to it.
        simplefilter("ignore", UserWarning)
        return torch.from_numpy(array.to_numpy(zero_copy_only=True))
