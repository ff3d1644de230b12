"""Rows for training: read from tables, encoded, in batches and in shards."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod

import numpy as np
import pyarrow as pa
import torch
from sklearn.utils import check_consistent_length

from sk_easytensor._utils.digests import array_digest, table_digest
from sk_easytensor._utils.storage import make_temporary_directory, remove_temporary_directory
from sk_easytensor.data.sources import is_source
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.validation import Sized, check_weight, errors_mention, errors_name
from sk_easytensor.events import collect_sequences
from sk_easytensor.tensors import TensorFrame

__all__ = [
    "BaseRowEncoder",
    "BaseTableDataset",
    "BatchIterator",
    "Dataset",
    "EncodedDataset",
    "InMemoryDataset",
    "MemoryMappedDataset",
    "ResampledDataset",
    "TableDataset",
    "TrainingDataset",
    "bounded_sample",
    "column_values",
    "join_rows",
    "materialize",
    "read_dataset",
    "sampled_parts",
    "take_columns",
    "target_columns",
    "validation_rows",
    "without_decimals",
]


# ---------------------------------------------------------------------- rows of tables


class BaseTableDataset(ABC):
    """Rows of a table with targets and weights, before they are encoded.

    What a backend's ``read_dataset`` returns. Rows are in memory, in files or on many machines;
    estimators use no more of them than the methods below. Rows of weight zero are left out.

    Attributes
    ----------
    source : object
        What the user gave, without columns that hold targets or weights.
    """

    source = None

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @property
    def column_names(self):
        """Names of the columns to learn from, as a list."""
        return self.sample().table.column_names

    @abstractmethod
    def digest(self):
        """Return a string that differs for other rows, by which checkpoints are recognized."""

    @abstractmethod
    def sample(self):
        """Return some of the rows, or all of them.

        Returns
        -------
        TableDataset
            In memory, with all columns. Column types and default blocks are chosen by these rows.
        """

    @abstractmethod
    def select(self, columns):
        """Return the rows with some of the columns only.

        Parameters
        ----------
        columns : list of str
            Names of columns; what the others hold is not read.

        Returns
        -------
        BaseTableDataset
        """

    @abstractmethod
    def map_chunks(self, function):
        """Apply a function to the targets of each chunk of rows.

        Parameters
        ----------
        function : callable
            Takes an ndarray with the checked targets of a chunk. It is pickled if chunks are
            elsewhere.

        Returns
        -------
        list
            What the function returned, in the order of the chunks. Each row is in one chunk.
        """

    @abstractmethod
    def summarize(self, blocks, executor):
        """Summarise all rows for blocks in one pass.

        Parameters
        ----------
        blocks : dict of {str: tuple of (Block, list of str)}
            Blocks that know their columns, and the columns each reads.
        executor : LocalExecutor
            Threads for rows that are in this process.

        Returns
        -------
        Mapping of {str: Summary}
            By name of block, what ``Block.summarize`` returns for all rows. Summaries of chunks
            are merged in the order of the rows.

        Raises
        ------
        RowError
            If a block cannot read a value; it has the number of the row among all rows.
        """

    @abstractmethod
    def map_reduce(self, function, executor):
        """Apply a function to chunks of the table, and merge the summaries that it returns.

        Parameters
        ----------
        function : callable
            Takes a :class:`pyarrow.Table` with some consecutive rows, and returns a
            :class:`~sk_easytensor.data.summaries.Summary`. It is pickled if rows are elsewhere.
        executor : LocalExecutor
            Threads for rows that are in this process.

        Returns
        -------
        Summary
            Of all rows, merged in their order.

        Raises
        ------
        RowError
            That the function raised, with the number of the row among all rows.
        """

    @abstractmethod
    def collect_sequences(self, by, order_by):
        """Return the event sequences of a log, a row for each user.

        Parameters
        ----------
        by : str or list of str
            Columns that name the user.
        order_by : str
            Column of times.

        Returns
        -------
        BaseTableDataset
            Of list columns. What :func:`~sk_easytensor.events.collect_sequences` raises is raised
            here, or when columns are selected.
        """

    @abstractmethod
    def encode(self, encoder):
        """Return the rows encoded, now or when they are read.

        Parameters
        ----------
        encoder : BaseRowEncoder
            Encodes chunks of rows.

        Returns
        -------
        Dataset
        """


class BaseRowEncoder(ABC):
    """Encodes chunks of tables with targets and weights; picklable, to be sent to other processes.

    Attributes
    ----------
    columns : list of str
        Columns that :meth:`encode_targets` reads.
    """

    columns = ()

    @abstractmethod
    def encode(self, table, y, weight):
        """Return encoded rows.

        Parameters
        ----------
        table : pyarrow.Table
            All columns of some rows.
        y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
            Checked targets.
        weight : ndarray of float64, shape (n_rows,)
            Row weights.

        Returns
        -------
        InMemoryDataset
        """

    @abstractmethod
    def encode_targets(self, table, y, weight):
        """Return rows with targets and weights, and no more features than `columns` tell.

        Parameters
        ----------
        table : pyarrow.Table
            At least the columns in `columns`.
        y, weight
            As of :meth:`encode`.

        Returns
        -------
        InMemoryDataset
        """

    def concatenate(self, parts, memory):
        """Join encoded rows of several chunks.

        Parameters
        ----------
        parts : iterable of InMemoryDataset
            What :meth:`encode` returned, in the order of the rows.
        memory : int
            Bytes that the rows may take; what needs more is written to files, or refused.

        Returns
        -------
        InMemoryDataset or MemoryMappedDataset
        """
        return materialize(parts, memory)


class TableDataset(BaseTableDataset):
    """Rows of positive weight, in memory.

    Parameters
    ----------
    table : pyarrow.Table
        The columns to learn from.
    y : ndarray, optional
        Their targets, valid; by default zeros, if there is nothing to learn but the rows.
    weight : ndarray of float64, shape (n_rows,), optional
        Their weights; by default ones.
    source : object, optional
        What the user gave, without columns that hold targets or weights.
    kept : ndarray of int64 or None
        Which of the given rows these are; None for all.
    n_given : int or None
        How many were given; None for as many.
    """

    def __init__(self, table, y=None, weight=None, source=None, kept=None, n_given=None):
        self.kept = kept
        self.n_given = n_given
        self.table = table
        self.y = np.zeros(len(table)) if y is None else y
        self.weight = np.ones(len(table)) if weight is None else weight
        self.source = source

    def __len__(self):
        return len(self.table)

    def digest(self):
        """Return a digest of columns, targets and weights."""
        return f"{table_digest(self.table)} {array_digest(self.y, self.weight)}"

    def map_chunks(self, function):
        """Apply a function to the targets, which are one chunk."""
        return [function(self.y)]

    def sample(self):
        """Return all rows."""
        return self

    def select(self, columns):
        """Return the rows with some of the columns only."""
        return TableDataset(self.table.select(columns), self.y, self.weight, self.source)

    def summarize(self, blocks, executor):
        """Summarise the table in the threads of this process."""
        return executor.summarize(self.table, blocks)

    def map_reduce(self, function, executor):
        """Apply a function to chunks in the threads of this process, and merge the summaries."""
        return executor.map_reduce(self.table, function)

    def collect_sequences(self, by, order_by):
        """Return the event sequences of a log, a row for each user."""
        lists = collect_sequences(self.table, by=by, order_by=order_by, prefix="")
        return TableDataset(as_table(lists), source=self.source)

    def encode(self, encoder):
        """Encode all rows."""
        return encoder.encode(self.table, self.y, self.weight)


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


MERGE_AT_MOST = 10_000
"""Rows among which equal ones are looked for."""

COPIES_AT_MOST = 4
"""Rows that are merged into one, on average."""

WINDOW = 16
"""Batches among whose rows those of like length are put together."""

MUCH_PADDING = 0.2
"""Fraction of padding up to which batches are left random."""


# ---------------------------------------------------------------------- encoded rows


class Dataset(ABC):
    """Encoded rows with targets and weights, as estimators see them before training.

    Rows are in memory, or wherever a backend keeps or makes them. Functions that are given to the
    methods below are pickled if rows are elsewhere.
    """

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @abstractmethod
    def map(self, function):
        """Return rows that a function makes of these.

        Parameters
        ----------
        function : callable
            Takes an :class:`InMemoryDataset` and returns another. It may be applied later, in
            another process, and to some rows at a time.

        Returns
        -------
        Dataset
        """

    @abstractmethod
    def map_chunks(self, function):
        """Apply a function to targets and weights of each chunk of rows.

        Parameters
        ----------
        function : callable
            Takes an :class:`InMemoryDataset` with ``target``, ``weight`` and the features that
            :attr:`BaseRowEncoder.columns` tell, which are none in most cases.

        Returns
        -------
        list
            What the function returned, in the order of the chunks. Each row is in one chunk.
        """

    @abstractmethod
    def hold_out(self, strata, fraction, random_state):
        """Take validation rows out, once and before any function is applied by :meth:`map`.

        Parameters
        ----------
        strata : callable
            Takes the targets of some rows, a tensor, and returns the group of each row, an ndarray
            of int64 of shape (n_rows,); validation rows are drawn evenly from the groups.
        fraction : float
            Of the rows that are held out; see :func:`validation_rows`.
        random_state : numpy.random.RandomState
            Decides which rows.

        Returns
        -------
        train : Dataset
            The other rows.
        valid : list of Dataset
            The validation rows; empty if there are too few rows for one. Each row is either in
            `train` or in `valid`.
        """

    def merge_duplicates(self, batch_size):
        """Return the rows, of which equal ones may be merged where only time depends on it.

        Parameters
        ----------
        batch_size : int
            Rows a batch of the training.

        Returns
        -------
        Dataset
            By default the rows as they are.
        """
        return self


class TrainingDataset(ABC):
    """Encoded rows of this process as the training loop reads them, in memory or in files."""

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @abstractmethod
    def map(self, function):
        """Return rows that a function makes of these, now or when they are read.

        Parameters
        ----------
        function : callable
            Takes an :class:`EncodedDataset` and returns another of as many rows.

        Returns
        -------
        TrainingDataset
        """

    @abstractmethod
    def parts(self):
        """Return an iterable of :class:`EncodedDataset`, which together are all rows in order."""

    @abstractmethod
    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches, which has a length and can be iterated over repeatedly.

        Parameters
        ----------
        batch_size : int
            Rows a batch, at most.
        shuffle : bool, default=False
            Whether each pass has an order of its own, drawn from torch's global generator.
        lengths : callable, optional
            Takes a frame and returns how long each row's lists are, an int64 tensor of shape
            (n_rows,), or None. Rows of like length are put together.
        n_batches : int, optional
            Batches of a pass if shuffled, whatever `batch_size`.

        Returns
        -------
        iterable of EncodedDataset
        """

    def to(self, device):
        """Return the rows on another torch device, by default part by part as they are read."""
        return self.map(lambda rows: rows.to(device))

    def for_epoch(self, epoch):
        """Return the rows of an epoch, counted from 0: by default always the same."""
        return self


class InMemoryDataset(Dataset):
    """Encoded rows that are one chunk in memory.

    Attributes
    ----------
    target : torch.Tensor
        Targets as the head wants them, a row for each.
    """

    target = None

    @abstractmethod
    def take(self, rows):
        """Return the given rows: a slice or an int64 tensor."""

    def map(self, function):
        """Apply a function from rows to rows."""
        return function(self)

    def map_chunks(self, function):
        """Apply a function to all rows."""
        return [function(self)]

    def hold_out(self, strata, fraction, random_state):
        """Take validation rows out; see :func:`validation_rows`."""
        train, valid = validation_rows(strata(self.target), fraction, random_state)
        if len(valid) == 0:
            return self, []
        return self.take(torch.from_numpy(train)), [self.take(torch.from_numpy(valid))]


class EncodedDataset(InMemoryDataset, TrainingDataset):
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

    def parts(self):
        """Return the rows, which are one part."""
        return [self]

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches; see :class:`BatchIterator`."""
        found = None if lengths is None else lengths(self.frame)
        return BatchIterator(self, batch_size, shuffle, found, n_batches)

    def merge_duplicates(self, batch_size):
        """Merge equal rows, adding their weights, if what is left fits into one batch.

        With one batch a step sees all rows, so that a row of weight two then counts exactly as the
        same row given twice, in whatever order rows come. Other tables are returned as they are,
        and so are those that consist of copies for the most part, more than four a row on average:
        an epoch would be too short.

        Parameters
        ----------
        batch_size : int
            Rows a batch.

        Returns
        -------
        EncodedDataset
            In an order that depends on their content only, if merged.
        """
        if len(self) > MERGE_AT_MOST:
            return self
        target = self.target.reshape(len(self), -1).double().numpy()
        key = np.column_stack([self.frame.row_hashes().astype(np.float64), target])
        _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
        if len(first) > batch_size or len(self) > COPIES_AT_MOST * len(first):
            return self
        weight = np.bincount(inverse.reshape(-1), weights=self.weight.double().numpy())
        merged = self.take(torch.from_numpy(first))
        return EncodedDataset(merged.frame, merged.target, torch.from_numpy(weight).float())


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

    def for_epoch(self, epoch):
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


class MemoryMappedDataset(TrainingDataset):
    """Encoded rows in files of a temporary directory, read by mapping them into memory.

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

    def map(self, function):
        """Return the rows with a function applied to those that are read together."""
        other = object.__new__(MemoryMappedDataset)
        # The first keeps the directory alive.
        vars(other).update(vars(self), functions=(*self.functions, function), origin=self)
        return other

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
