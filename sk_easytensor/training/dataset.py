"""Rows for training: read from tables, encoded, in batches and in shards."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pyarrow as pa
import torch
from sklearn.utils import check_consistent_length

from sk_easytensor._utils.digests import array_digest, table_digest
from sk_easytensor._utils.storage import make_temporary_directory, remove_temporary_directory
from sk_easytensor.data.tables import as_table, is_source
from sk_easytensor.data.validation import Sized, check_weight, errors_mention, errors_name
from sk_easytensor.events import collect_sequences
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "BatchIterator",
    "EncodedDataset",
    "MemoryMappedDataset",
    "ResampledDataset",
    "TableDataset",
    "bounded_sample",
    "column_values",
    "hold_out",
    "join_rows",
    "materialize",
    "merge_duplicates",
    "read_dataset",
    "sampled_parts",
    "take_columns",
    "target_columns",
    "validation_rows",
    "without_decimals",
]


class TableDataset:
    """Rows of positive weight, in memory.

    Parameters
    ----------
    table : pyarrow.Table
        The columns to learn from.
    y : ndarray
        Their targets, valid; zeros if there is nothing to learn but the rows themselves.
    weight : ndarray of float64, shape (n_rows,)
        Their weights.
    source : object
        What the user gave, without columns that hold targets or weights.
    kept : ndarray of int64 or None
        Which of the given rows these are; None for all.
    n_given : int or None
        How many were given; None for as many.

    Notes
    -----
    What is asked of the rows is asked in a way that can be answered chunk by chunk, so that the
    estimators need not know whether rows are in memory or on many machines.
    """

    def __init__(self, table, y, weight, source, kept=None, n_given=None):
        self.kept = kept
        self.n_given = n_given
        self.table = table
        self.y = y
        self.weight = weight
        self.source = source

    def __len__(self):
        return len(self.table)

    def content(self):
        """Return a digest of columns, targets and weights."""
        return f"{table_digest(self.table)} {array_digest(self.y, self.weight)}"

    def map_chunks(self, function):
        """Return what a function gives for the targets of each chunk, as a list."""
        return [function(self.y)]

    def sample(self):
        """Return some of the rows, as :class:`TableDataset` in memory."""
        return self

    def select(self, columns):
        """Return the rows with some of the columns only."""
        return TableDataset(self.table.select(columns), self.y, self.weight, self.source)

    def collected(self, by, order_by):
        """Return the sequences of a log, a row for each user.

        Parameters
        ----------
        by : str or list of str
            Columns that name the user.
        order_by : str
            Column of times.

        Returns
        -------
        TableDataset
        """
        lists = as_table(collect_sequences(self.table, by=by, order_by=order_by, prefix=""))
        return TableDataset(lists, np.zeros(len(lists)), np.ones(len(lists)), self.source)

    def encoded(self, maker):
        """Return the rows encoded.

        Parameters
        ----------
        maker : object
            Has ``make_rows(table, y, weight)``, which gives rows such as :class:`EncodedDataset`;
            ``make_targets(table, y, weight)``, which gives them with no more features than the
            table's ``columns`` tell; and ``gather(pieces, memory)``, which joins pieces of them.
        """
        return maker.make_rows(self.table, self.y, self.weight)


def read_dataset(X, y, sample_weight, read, check_target, where=""):
    """Read rows of positive weight into memory.

    Parameters
    ----------
    X : table-like, path of Parquet files or Dataset
        Features.
    y : array-like, or str or list of str
        Targets, or the columns of `X` that hold them; several only if `X` is a path or Dataset.
    sample_weight : array-like, str or None
        Weights, or the column that holds them.
    read : callable
        Makes a table of features.
    check_target : callable
        Returns a valid target as an array; or None for None, if rows may do without.
    where : str, default=""
        Name of the rows, for errors.

    Returns
    -------
    TableDataset
    """
    X, y, sample_weight = take_columns(X, y, sample_weight)
    with errors_name(where):
        table = read(X)
        with errors_mention("y"):
            y = check_target(y)
        y = np.zeros(len(table)) if y is None else y
        check_consistent_length(Sized(len(table)), y)
    name = where.replace("eval_set", "eval_sample_weight")
    with errors_name(name) if where else errors_mention("sample_weight"):
        weight = check_weight(sample_weight, len(table))
    kept, n_given = np.flatnonzero(weight > 0), len(table)
    if len(kept) == n_given:
        return TableDataset(table, y, weight, X)
    return TableDataset(table.take(kept), y[kept], weight[kept], X, kept, n_given)


def take_columns(X, y, sample_weight):
    """Take targets and weights out of a table, if they are given as names of its columns.

    Returns
    -------
    X, y, sample_weight : object
        What was given, or the table without these columns, and their values.
    """
    targets = target_columns(X, y)
    weights = [sample_weight] if isinstance(sample_weight, str) else []
    if targets or weights:
        # A frame that is not changed stays what it is, for callables that select its columns.
        X = as_table(X)
        require_columns(X.column_names, [*targets, *weights])
        y = column_values(X, targets) if targets else y
        sample_weight = column_values(X, weights) if weights else sample_weight
        X = X.drop_columns(list(dict.fromkeys([*targets, *weights])))
    return X, y, sample_weight


def target_columns(X, y):
    """Return the names of the columns that hold the targets, if that is what `y` is."""
    if isinstance(y, str):
        return [y]
    if is_source(X) and isinstance(y, (list, tuple)) and all(isinstance(n, str) for n in y):
        return list(y)
    return []


def require_columns(names, wanted):
    """Raise ``ValueError`` naming the columns that are not there."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"columns are missing: {missing}; X has the columns {list(names)}")


def column_values(table, names):
    """Return columns of a table as an array of one or two dimensions."""
    columns = []
    for name in names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns.append(without_decimals(column).to_numpy())
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def without_decimals(column):
    """Return a column of targets or weights, with decimals as floats."""
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


WINDOW = 16
"""Batches among whose rows those of like length are put together."""

MUCH_PADDING = 0.2
"""Fraction of padding up to which batches are left random."""


class EncodedDataset:
    """A table ready for training: encodings, targets and weights.

    Parameters
    ----------
    frame : TensorFrame
        Encoded rows.
    target : torch.Tensor
        Targets as the head wants them.
    weight : torch.Tensor of float32, shape (n,)
        Row weights.
    """

    def __init__(self, frame, target, weight):
        self.frame = frame
        self.target = target
        self.weight = weight

    def __getstate__(self):
        """Return what is pickled: no torch object, so that it loads anywhere."""
        return self.frame.to_arrow(), self.target.numpy(), self.weight.numpy()

    def __setstate__(self, state):
        """Restore what was pickled."""
        frame, target, weight = state
        self.frame = TensorFrame.from_arrow(frame)
        self.target = torch.from_numpy(np.array(target))
        self.weight = torch.from_numpy(np.array(weight))

    def __len__(self):
        return len(self.frame)

    def __iter__(self):
        """Unpack into features and target, as skorch's callbacks do with a batch."""
        return iter((self.frame, self.target))

    def take(self, rows):
        """Return the given rows: a slice or an int64 tensor."""
        return EncodedDataset(self.frame.take(rows), self.target[rows], self.weight[rows])

    def to(self, device):
        """Return the rows on another device."""
        return EncodedDataset(self.frame.to(device), self.target.to(device), self.weight.to(device))

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch, counted from 0: by default always the same."""
        return self

    def map(self, function):
        """Apply a function from rows to rows, which may be done later and piece by piece."""
        return function(self)

    def map_chunks(self, function):
        """Return what a function gives for targets and weights of each piece, as a list."""
        return [function(self)]

    def parts(self):
        """Return the rows as an iterable of rows that are in memory."""
        return [self]

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches; see :class:`BatchIterator`.

        Parameters
        ----------
        lengths : callable, optional
            Takes a frame and returns how long each row's lists are, or None.
        """
        found = None if lengths is None else lengths(self.frame)
        return BatchIterator(self, batch_size, shuffle, found, n_batches)


class ResampledDataset(EncodedDataset):
    """Rows that are drawn anew for each epoch.

    Parameters
    ----------
    draw : callable
        Takes the epoch, counted from 0, and returns :class:`EncodedDataset`, always as many and for
        one epoch always the same. Picklable, if the rows are to be.
    """

    def __init__(self, draw):
        rows = draw(0)
        super().__init__(rows.frame, rows.target, rows.weight)
        self.draw = draw

    def __getstate__(self):
        """Return what is pickled: how to draw, and no row."""
        return self.draw

    def __setstate__(self, draw):
        """Restore what was pickled."""
        self.__init__(draw)

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch, counted from 0."""
        return self if epoch == 0 else self.draw(epoch)


class BatchIterator:
    """Iterate over batches of :class:`EncodedDataset`.

    Parameters
    ----------
    rows : EncodedDataset
        All rows.
    batch_size : int
        Rows a batch, at most; the batches of an epoch differ in size by one row at most.
    shuffle : bool, default=False
        Whether each epoch has an order of its own, drawn from torch's global generator.
    lengths : torch.Tensor of int64, shape (n,), optional
        How long each row's lists are. Shuffled batches then hold rows of like length if that
        saves much padding: among rows of `WINDOW` random batches, those of like length are put
        together, and the batches come in random order.
    n_batches : int, optional
        Batches an epoch if shuffled, whatever `batch_size`.
    """

    def __init__(self, rows, batch_size, shuffle=False, lengths=None, n_batches=None):
        self.n_batches = n_batches
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        worthwhile = lengths is not None and random_padding(lengths, batch_size) > MUCH_PADDING
        self.lengths = lengths.cpu() if worthwhile else None

    def __len__(self):
        return self.n_batches or -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            for start in range(0, len(self.rows), self.batch_size):
                yield self.rows.take(slice(start, start + self.batch_size))
            return
        if len(self) == 1:
            yield self.rows
            return
        device = self.rows.weight.device
        batches = torch.randperm(len(self.rows), device="cpu").tensor_split(len(self))
        if self.lengths is not None:
            batches = self._alike(batches)
        for rows in batches:
            yield self.rows.take(rows.to(device))

    def _alike(self, batches):
        alike = []
        for start in range(0, len(batches), WINDOW):
            window = batches[start : start + WINDOW]
            rows = torch.cat(window)
            rows = rows[self.lengths[rows].argsort(stable=True)]
            alike += rows.split([len(batch) for batch in window])
        return [alike[index] for index in torch.randperm(len(alike)).tolist()]


def random_padding(lengths, batch_size):
    """Return which fraction of random batches is padding, about."""
    # An empty list is read as one item.
    lengths = lengths.clamp(min=1)
    longest = torch.quantile(_sample(lengths), 1 - 1 / min(batch_size, len(lengths)))
    return 1 - float(lengths.float().mean() / longest)


def _sample(lengths, size=100_000):
    """Return a part of the lengths that is small enough to be sorted at once, as floats."""
    return lengths[:: -(-len(lengths) // size)].float()


def materialize(pieces, memory):
    """Keep pieces of encoded rows: as one in memory, or as files once they are too large.

    Parameters
    ----------
    pieces : iterable of EncodedDataset
        In the order of the data.
    memory : int
        Bytes that the rows may take.

    Returns
    -------
    EncodedDataset or MemoryMappedDataset
    """
    kept, size, spilled = [], 0, None
    for piece in pieces:
        if len(piece) == 0:
            continue
        size += n_bytes(piece)
        kept.append(piece)
        # Joining the pieces takes as much memory again.
        if 2 * size > memory and spilled is None:
            spilled = MemoryMappedDataset(memory)
        if spilled is not None:
            for each in kept:
                spilled.append(each)
            kept = []
    if spilled is not None:
        return spilled
    return join_rows(kept) if kept else None


def join_rows(pieces):
    """Join pieces of encoded rows into one."""
    if len(pieces) == 1:
        return pieces[0]
    return EncodedDataset(
        TensorFrame.concatenate([piece.frame for piece in pieces]),
        torch.cat([piece.target for piece in pieces]),
        torch.cat([piece.weight for piece in pieces]),
    )


def n_bytes(rows):
    """Return how much memory encoded rows take."""
    return sum(tensor.nbytes for tensor in [*rows.frame.content(), rows.target, rows.weight])


def bounded_sample(rows, size, seed):
    """Return at most `size` of the rows, in memory, evenly from all pieces.

    Of rows in several pieces there may be one more for each piece.
    """
    return join_rows([part.to("cpu") for part in sampled_parts(rows, size, seed)])


def sampled_parts(rows, size, seed):
    """Yield at most `size` of the rows, piece by piece; see :func:`bounded_sample`."""
    random, share = np.random.RandomState(seed), size / max(len(rows), 1)
    for part in rows.parts():
        if share < 1:
            n_rows = min(len(part), int(np.ceil(share * len(part))))
            chosen = random.choice(len(part), n_rows, replace=False)
            part = part.take(torch.from_numpy(np.sort(chosen)).to(part.weight.device))
        yield part


class MemoryMappedDataset:
    """Encoded rows in files of a temporary directory, read by mapping them into memory.

    Has what the training loop asks of :class:`~sk_easytensor.training.dataset.EncodedDataset`.
    Batches are drawn from windows: some pieces, chosen at random, are read and their rows
    shuffled together.

    Parameters
    ----------
    memory : int
        Bytes that a window may take.
    """

    def __init__(self, memory):
        self.memory = memory
        self.directory = make_temporary_directory("rows")
        weakref.finalize(self, remove_temporary_directory, self.directory)
        self.sizes = []
        self.bytes = 0
        self.functions = ()

    def append(self, rows):
        """Write one more piece."""
        batch = rows.frame.to_arrow()
        targets = TensorFrame({"y": {"target": rows.target, "weight": rows.weight}}).to_arrow()
        for name, part in (("frame", batch), ("targets", targets)):
            path = self._path(len(self.sizes), name)
            with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, part.schema) as writer:
                writer.write_batch(part)
        self.sizes.append(len(rows))
        self.bytes += n_bytes(rows)

    def __len__(self):
        return sum(self.sizes)

    def refreshed(self, epoch):
        """Return the rows to train on in an epoch: always the same."""
        return self

    def map(self, function):
        """Return the rows with a function applied to those that are read together."""
        other = object.__new__(MemoryMappedDataset)
        # The first keeps the directory alive.
        vars(other).update(vars(self), functions=(*self.functions, function), origin=self)
        return other

    def to(self, device):
        """Return the rows on another device, where each piece comes when it is read."""
        return self.map(lambda rows: rows.to(device))

    def map_chunks(self, function):
        """Return what a function gives for each piece, as a list."""
        return [function(piece) for piece in self.parts()]

    def parts(self):
        """Yield the pieces, one at a time."""
        for index in range(len(self.sizes)):
            yield self.read([index])

    def read(self, indices):
        """Return some pieces joined."""
        rows = join_rows([self._read(index) for index in indices])
        for function in self.functions:
            rows = function(rows)
        return rows

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches."""
        return MemoryMappedBatches(self, batch_size, shuffle, lengths, n_batches)

    def window(self):
        """Return how many pieces are read at a time."""
        mean = self.bytes / len(self.sizes)
        # A window is in memory as pieces, joined, and as the batch that is taken.
        return max(1, int(self.memory / 3 / mean))

    def _path(self, index, name):
        return os.path.join(self.directory, f"{index:06}.{name}")

    def _read(self, index):
        with pa.memory_map(self._path(index, "frame")) as file:
            frame = TensorFrame.from_arrow(pa.ipc.open_file(file).get_batch(0))
        with pa.memory_map(self._path(index, "targets")) as file:
            targets = TensorFrame.from_arrow(pa.ipc.open_file(file).get_batch(0))["y"]
        return EncodedDataset(frame, targets["target"], targets["weight"])


class MemoryMappedBatches:
    """Batches of spilled rows.

    Parameters
    ----------
    rows : MemoryMappedDataset
        The rows.
    batch_size, shuffle, lengths, n_batches
        As of :meth:`EncodedDataset.batches`.
    """

    def __init__(self, rows, batch_size, shuffle, lengths, n_batches):
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.lengths = lengths
        self.n_batches = n_batches or -(-len(rows) // batch_size)

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        if not self.shuffle:
            for piece in self.rows.parts():
                yield from piece.batches(self.batch_size, lengths=self.lengths)
            return
        order = torch.randperm(len(self.rows.sizes)).tolist()
        width = self.rows.window()
        windows = [order[start : start + width] for start in range(0, len(order), width)]
        done, given = 0, 0
        for number, window in enumerate(windows):
            rows = self.rows.read(window)
            done += len(rows)
            # As many batches in all as were asked for, whatever the windows' sizes.
            until = (
                self.n_batches
                if number == len(windows) - 1
                else max(
                    given, min(round(self.n_batches * done / len(self.rows)), self.n_batches - 1)
                )
            )
            if until > given:
                yield from rows.batches(
                    self.batch_size, shuffle=True, lengths=self.lengths, n_batches=until - given
                )
            given = until


MERGE_AT_MOST = 10_000
COPIES_AT_MOST = 4


def validation_rows(strata, fraction, random_state):
    """Split rows into a training and a validation part, evenly over strata.

    Parameters
    ----------
    strata : ndarray of int, shape (n,)
        Group of each row, its class for instance.
    fraction : float
        Of the rows that goes to the validation part, in equal shares from all groups as far as
        whole rows allow. Each group keeps a row to train on.
    random_state : numpy.random.RandomState
        Decides which rows.

    Returns
    -------
    train, valid : ndarray of int64
        Increasing row numbers.

    Examples
    --------
    >>> train, valid = validation_rows(np.zeros(10, int), 0.2, np.random.RandomState(0))
    >>> len(train), len(valid)
    (8, 2)
    """
    shuffled = random_state.permutation(len(strata))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, sizes = np.unique(strata, return_counts=True)
    first = np.zeros(len(strata) + 1, dtype=bool)
    first[np.cumsum(sizes) - sizes] = True
    # Going through the groups one after the other, a row is taken whenever the running share
    # reaches a whole number: large groups give their part, small ones take turns.
    place = np.arange(len(strata))
    taken = np.floor((place + 1) * fraction + 0.5) > np.floor(place * fraction + 0.5)
    # The first row of each group stays to train on; the next takes its place if there is one.
    moved = np.flatnonzero(taken & first[:-1]) + 1
    taken[moved[moved < len(strata)]] = True
    taken &= ~first[:-1]
    return np.sort(order[~taken]), np.sort(order[taken])


def hold_out(rows, strata, fraction, random_state):
    """Take a validation part out of encoded rows; see :func:`validation_rows`.

    Returns
    -------
    rows : EncodedDataset
        Those left to train on.
    evals : list of EncodedDataset
        The validation part; empty if there are too few rows for one.
    """
    train, valid = validation_rows(strata, fraction, random_state)
    if len(valid) == 0:
        return rows, []
    return rows.take(torch.from_numpy(train)), [rows.take(torch.from_numpy(valid))]


def merge_duplicates(rows, batch_size):
    """Merge equal rows, adding their weights, if what is left fits into one batch.

    With one batch a step sees all rows, so that a row of weight two then counts exactly as the
    same row given twice, in whatever order rows come. Other tables are returned as they are, and
    so are those that consist of copies for the most part, more than four a row on average: an
    epoch would be too short.

    Parameters
    ----------
    rows : EncodedDataset
        Training rows.
    batch_size : int
        Rows a batch.

    Returns
    -------
    EncodedDataset
        In an order that depends on their content only, if merged.
    """
    if len(rows) > MERGE_AT_MOST:
        return rows
    target = rows.target.reshape(len(rows), -1).double().numpy()
    key = np.column_stack([rows.frame.row_hashes().astype(np.float64), target])
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    if len(first) > batch_size or len(rows) > COPIES_AT_MOST * len(first):
        return rows
    weight = np.bincount(inverse.reshape(-1), weights=rows.weight.double().numpy())
    merged = rows.take(torch.from_numpy(first))
    return EncodedDataset(merged.frame, merged.target, torch.from_numpy(weight).float())
