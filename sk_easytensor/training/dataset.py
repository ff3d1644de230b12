"""Encoded rows: what estimators and the training loop need of them, and rows in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.splits import Folds, complement, validation_rows

__all__ = [
    "BatchIterator",
    "Dataset",
    "EncodedDataset",
    "InMemoryDataset",
    "ResampledDataset",
    "TrainingDataset",
    "bounded_sample",
    "join_rows",
    "n_bytes",
    "sampled_encodings",
    "sampled_parts",
]


MAX_ROWS_TO_MERGE = 10_000
"""Largest data set in which duplicates are merged, in rows."""

MAX_COPIES = 4
"""Largest mean number of copies of a row with which duplicates are merged."""

WINDOW = 16
"""Number of random batches whose rows are sorted by length together."""

MAX_PADDING = 0.2
"""Largest fraction of padding with which batches stay random."""


class Dataset(ABC):
    """Encoded rows with targets and weights, as estimators use them before training.

    Rows are in memory, or where a backend stores or encodes them. Functions that are passed to the
    methods below are pickled if rows are in other processes.
    """

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @abstractmethod
    def map(self, function):
        """Return the rows with a function applied to them.

        Parameters
        ----------
        function : callable
            Takes an :class:`InMemoryDataset` and returns another. It may be applied later, in
            another process, and to a part of the rows at a time.

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
            Takes an :class:`InMemoryDataset` with ``target``, ``weight`` and the features made of
            :attr:`~sk_easytensor.training.table_dataset.BaseRowEncoder.columns`, in most cases
            none.

        Returns
        -------
        list
            Results of the function, in the order of the chunks. Each row is in one chunk.
        """

    @abstractmethod
    def hold_out(self, strata, fraction, random_state):
        """Hold out validation rows; called at most once, before :meth:`map`.

        Parameters
        ----------
        strata : callable
            Takes targets, a tensor of shape (n_rows, ...), and returns the stratum of each row, an
            ndarray of int64 of shape (n_rows,). Validation rows are drawn evenly from the strata.
        fraction : float
            Fraction of the rows that is held out; see :func:`validation_rows`.
        random_state : numpy.random.RandomState or None
            Random generator of the draw; None to hold out the last rows instead of random ones.

        Returns
        -------
        train : Dataset
            Training rows.
        valid : list of Dataset
            Validation rows; empty if there are too few rows to hold one out. Each row is either
            in `train` or in `valid`.
        """

    @abstractmethod
    def folds(self, strata, n_folds, random_state):
        """Hold out each row once; called at most once, before :meth:`map`.

        Parameters
        ----------
        strata : callable
            As for :meth:`hold_out`.
        n_folds : int
            Number of folds, at most the number of rows.
        random_state : numpy.random.RandomState
            Random generator of the draw.

        Returns
        -------
        Folds
        """

    def normalize_weights(self):
        """Return the rows with weights whose mean is 1.

        The learning rate then suits weighted and unweighted rows.
        """
        total = sum(self.map_chunks(_total_weight))
        return self.map(partial(_divide_weights, divisor=total / len(self)))

    def merge_duplicates(self, batch_size):
        """Return the rows, with equal rows merged where that saves time only.

        Parameters
        ----------
        batch_size : int
            Number of rows of a training batch.

        Returns
        -------
        Dataset
            The data set itself by default.
        """
        return self


class TrainingDataset(ABC):
    """Encoded rows of this process as the training loop reads them, in memory or in files."""

    @abstractmethod
    def __len__(self):
        """Return the number of rows."""

    @abstractmethod
    def map(self, function):
        """Return the rows with a function applied to them, now or when they are read.

        Parameters
        ----------
        function : callable
            Takes an :class:`EncodedDataset` and returns another with the same number of rows.

        Returns
        -------
        TrainingDataset
        """

    @abstractmethod
    def parts(self):
        """Return an iterable of :class:`EncodedDataset`, which are all rows in order."""

    @abstractmethod
    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None):
        """Return an iterable of batches, which has a length and can be iterated over repeatedly.

        The order of a pass depends on the state of torch's global generator at its beginning only.

        Parameters
        ----------
        batch_size : int
            Largest number of rows of a batch.
        shuffle : bool, default=False
            Whether each pass is in a random order, drawn from torch's global generator.
        lengths : callable, optional
            Takes a frame and returns the length of each row's lists, an int64 tensor of shape
            (n_rows,), or None. Rows of similar length are put into the same batch.
        n_batches : int, optional
            Number of batches of a shuffled pass; overrides `batch_size`.

        Returns
        -------
        iterable of EncodedDataset
        """

    def to(self, device):
        """Return the rows on another torch device, by default part by part as they are read."""
        return self.map(lambda rows: rows.to(device))

    def for_epoch(self, epoch):
        """Return the rows of an epoch, counted from 0; by default the same for all epochs."""
        return self


class InMemoryDataset(Dataset):
    """Encoded rows in memory, which form one chunk.

    Attributes
    ----------
    target : torch.Tensor of shape (n_rows, ...)
        Targets in the form that the head's loss takes.
    weight : torch.Tensor of float32, shape (n_rows,), or None
        Row weights; None if all are 1.
    """

    target = None
    weight = None

    @abstractmethod
    def take(self, rows):
        """Return the rows of the given indices, a slice or an int64 tensor."""

    def map(self, function):
        """Apply a function to the data set."""
        return function(self)

    def map_chunks(self, function):
        """Apply a function to all rows."""
        return [function(self)]

    def split_rows(self, strata, fraction, random_state):
        """Return the indices of training and validation rows, as :func:`validation_rows` does.

        Rows of weight zero, such as those of a class whose weight is zero, are training rows: a
        validation part of them alone has no loss.
        """
        groups, known = strata(self.target), self._known_rows()
        if random_state is None:
            valid = np.arange(len(known))[len(known) - round(fraction * len(known)) :]
        else:
            _, valid = validation_rows(groups[known], fraction, random_state)
        return complement(known[valid], len(groups))

    def hold_out(self, strata, fraction, random_state):
        """Hold out validation rows; see :meth:`split_rows`."""
        return self._split(*self.split_rows(strata, fraction, random_state))

    def fold_rows(self, strata, n_folds, fold, random_state):
        """Return the indices of the rows that a fold trains on, and of those that it holds out.

        Parameters
        ----------
        strata, n_folds, random_state
            Parameters of :meth:`folds`.
        fold : int
            Number of the fold.

        Returns
        -------
        train, valid : ndarray of int64
            Row indices in increasing order. Rows of weight zero are training rows of all folds.
        """
        groups, known = strata(self.target), self._known_rows()
        shuffled = known[random_state.permutation(len(known))]
        # Rows of one stratum follow each other, so that they are spread evenly over the folds.
        valid = shuffled[np.argsort(groups[shuffled], kind="stable")][fold::n_folds]
        return complement(valid, len(groups))

    def folds(self, strata, n_folds, random_state):
        """Hold out each row once; see :meth:`fold_rows`."""
        seed = random_state.randint(np.iinfo(np.int32).max)
        rows = [
            self.fold_rows(strata, n_folds, fold, np.random.RandomState(seed))
            for fold in range(n_folds)
        ]
        held_out = [valid for _, valid in rows]
        return Folds.of([self._split(*pair) for pair in rows], len(self), held_out)

    def _known_rows(self):
        """Return the indices of the rows of positive weight."""
        if self.weight is None:
            return np.arange(len(self.target))
        return np.flatnonzero(self.weight > 0)

    def _split(self, train, valid):
        if len(valid) == 0:
            return self, []
        return self.take(torch.from_numpy(train)), [self.take(torch.from_numpy(valid))]


class EncodedDataset(InMemoryDataset, TrainingDataset):
    """Encoded rows with targets and weights, in memory.

    Parameters
    ----------
    frame : TensorFrame
        Encoded features.
    target : torch.Tensor of shape (n_rows, ...)
        Targets in the form that the head's loss takes.
    weight : torch.Tensor of float32, shape (n_rows,)
        Row weights.
    """

    def __init__(self, frame, target, weight):
        self.frame = frame
        self.target = target
        self.weight = weight

    def __getstate__(self):
        """Return the pickled state: Arrow and NumPy data, which load with any version of torch."""
        return self.frame.to_arrow(), self.target.numpy(), self.weight.numpy()

    def __setstate__(self, state):
        """Restore the pickled state."""
        frame, target, weight = state
        self.frame = TensorFrame.from_arrow(frame)
        self.target = torch.from_numpy(np.array(target))
        self.weight = torch.from_numpy(np.array(weight))

    def __len__(self):
        return len(self.frame)

    def __iter__(self):
        """Iterate over features and target: skorch's callbacks unpack a batch into the two."""
        return iter((self.frame, self.target))

    def take(self, rows):
        """Return the rows of the given indices, a slice or an int64 tensor."""
        return EncodedDataset(self.frame.take(rows), self.target[rows], self.weight[rows])

    def to(self, device):
        """Return the rows on another device, or features batch by batch if they are too large."""
        target, weight = self.target.to(device), self.weight.to(device)
        if is_too_large(self, device):
            return StreamedDataset(self.frame, target, weight)
        return EncodedDataset(self.frame.to(device), target, weight)

    @property
    def index_device(self):
        """Device of the indices that :meth:`take` takes without waiting for another device."""
        return self.weight.device

    def parts(self):
        """Return a list of one part, the data set itself."""
        return [self]

    def batches(self, batch_size, *, shuffle=False, lengths=None, n_batches=None, generator=None):
        """Return an iterable of batches; see :class:`BatchIterator`."""
        row_lengths = None if lengths is None else lengths(self.frame)
        return BatchIterator(self, batch_size, shuffle, row_lengths, n_batches, generator)

    def merge_duplicates(self, batch_size):
        """Merge equal rows, adding their weights, if the distinct rows fit into one batch.

        With one batch, each step uses all rows. A row of weight two then has exactly the effect of
        the same row passed twice, in any order of the rows. Other data sets are returned
        unchanged. So are those with more than four copies of a row on average, whose epochs would
        become too short.

        Parameters
        ----------
        batch_size : int
            Number of rows of a batch.

        Returns
        -------
        EncodedDataset
            If merged, in an order that depends on the content of the rows only.
        """
        if len(self) > MAX_ROWS_TO_MERGE:
            return self
        target = self.target.reshape(len(self), -1).double().numpy()
        key = np.column_stack([self.frame.row_hashes().astype(np.float64), target])
        _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
        if len(first) > batch_size or len(self) > MAX_COPIES * len(first):
            return self
        weight = np.bincount(inverse.reshape(-1), weights=self.weight.double().numpy())
        merged = self.take(torch.from_numpy(first))
        return EncodedDataset(merged.frame, merged.target, torch.from_numpy(weight).float())


class StreamedDataset(EncodedDataset):
    """Rows whose features are moved to the device of their targets batch by batch.

    Parameters
    ----------
    frame : TensorFrame
        Encoded features, in main memory.
    target, weight : torch.Tensor
        As in :class:`EncodedDataset`, on the device.
    """

    index_device = torch.device("cpu")

    def take(self, rows):
        """Return the rows of the given indices, a slice or an int64 tensor, on the device."""
        device = self.weight.device
        frame = self.frame.take(rows if isinstance(rows, slice) else rows.cpu()).to(device)
        rows = rows if isinstance(rows, slice) else rows.to(device)
        return EncodedDataset(frame, self.target[rows], self.weight[rows])


def is_too_large(rows, device):
    """Return whether rows would take more than half of the free memory of a CUDA device."""
    device = torch.device(device)
    # Pairs share the features of users and items, which batches read anyway.
    if device.type != "cuda" or not isinstance(rows.frame, TensorFrame):
        return False
    return 2 * n_bytes(rows) > torch.cuda.mem_get_info(device)[0]


class ResampledDataset(EncodedDataset):
    """Rows that are drawn anew for each epoch.

    Parameters
    ----------
    draw : callable
        Takes the epoch, counted from 0, and returns an :class:`EncodedDataset`. The number of
        rows is the same for all epochs, and the rows of one epoch are always the same. It must be
        picklable if the data set is pickled.
    """

    def __init__(self, draw):
        rows = draw(0)
        super().__init__(rows.frame, rows.target, rows.weight)
        self.draw = draw

    def __getstate__(self):
        """Return the pickled state: the function that draws, without rows."""
        return self.draw

    def __setstate__(self, draw):
        """Restore the pickled state."""
        self.__init__(draw)

    def for_epoch(self, epoch):
        """Return the training rows of an epoch, counted from 0."""
        return self if epoch == 0 else self.draw(epoch)


class BatchIterator:
    """Iterate over batches of :class:`EncodedDataset`.

    Parameters
    ----------
    rows : EncodedDataset
        Rows to iterate over.
    batch_size : int
        Largest number of rows of a batch. Shuffled batches differ in size by one row at most.
    shuffle : bool, default=False
        Whether each epoch is in a random order, drawn from torch's global generator.
    lengths : torch.Tensor of int64, shape (n_rows,), optional
        Length of each row's lists. Shuffled batches then have rows of similar length, if more
        than `MAX_PADDING` of random batches would be padding: the rows of `WINDOW` random batches
        are sorted by length and cut into batches, which are iterated over in random order.
    n_batches : int, optional
        Number of batches of a shuffled epoch; overrides `batch_size`.
    generator : torch.Generator, optional
        Generator of the random order, instead of torch's global one.
    """

    def __init__(
        self, rows, batch_size, shuffle=False, lengths=None, n_batches=None, generator=None
    ):
        self.n_batches = n_batches
        self.generator = generator
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        sort = lengths is not None and random_padding(lengths, batch_size) > MAX_PADDING
        self.lengths = lengths.cpu() if sort else None

    def __len__(self):
        return self.n_batches or -(-len(self.rows) // self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            for start in range(0, len(self.rows), self.batch_size):
                yield self.rows.take(slice(start, start + self.batch_size))
            return
        if len(self) == 1:
            yield self.rows.take(slice(None))
            return
        device = self.rows.index_device
        order = torch.randperm(len(self.rows), device="cpu", generator=self.generator)
        if self.lengths is None:
            # Copied to the device once.
            batches = order.to(device).tensor_split(len(self))
        else:
            batches = self._length_buckets(order.tensor_split(len(self)))
        for rows in batches:
            yield self.rows.take(rows.to(device))

    def _length_buckets(self, batches):
        """Return batches of rows of similar length, made of the rows of random batches."""
        buckets = []
        for start in range(0, len(batches), WINDOW):
            window = batches[start : start + WINDOW]
            rows = torch.cat(window)
            rows = rows[self.lengths[rows].argsort(stable=True)]
            buckets += rows.split([len(batch) for batch in window])
        order = torch.randperm(len(buckets), generator=self.generator)
        return [buckets[index] for index in order.tolist()]


def random_padding(lengths, batch_size):
    """Return the approximate fraction of padding in random batches."""
    # The network reads an empty list as one item.
    lengths = lengths.clamp(min=1)
    longest = torch.quantile(_sample(lengths), 1 - 1 / min(batch_size, len(lengths)))
    return 1 - float(lengths.float().mean() / longest)


def _sample(lengths, size=100_000):
    """Return at most `size` of the lengths, evenly spaced, as floats; quantiles sort them."""
    return lengths[:: -(-len(lengths) // size)].float()


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
    """Return the size of encoded rows in memory, in bytes."""
    return sum(tensor.nbytes for tensor in [*rows.frame.content(), rows.target, rows.weight])


def bounded_sample(rows, size, seed):
    """Return a sample of at most `size` rows on the CPU, drawn evenly from all parts.

    The sample size of each part is rounded up, so that several parts may give one row more each.
    """
    return join_rows([part.to("cpu") for part in sampled_parts(rows, size, seed)])


def sampled_parts(rows, size, seed):
    """Yield a sample of at most `size` rows, part by part; see :func:`bounded_sample`."""
    random, fraction = np.random.RandomState(seed), size / max(len(rows), 1)
    for part in rows.parts():
        if fraction < 1:
            n_rows = min(len(part), int(np.ceil(fraction * len(part))))
            sample = random.choice(len(part), n_rows, replace=False)
            part = part.take(torch.from_numpy(np.sort(sample)).to(part.weight.device))
        yield part


def sampled_encodings(rows, names, max_rows, seed, group):
    """Yield a sample of rows as :func:`sampled_parts` does, with the encodings of some blocks only.

    Other encodings are not brought into memory.

    Parameters
    ----------
    rows : TrainingDataset
        Rows, of which each worker has a shard.
    names : list of str
        Names of the blocks.
    max_rows : int
        Largest number of rows of all workers together, in proportion to their shards.
    seed : int
        Seed of the sample, if there are more rows.
    group : SingleProcess or ProcessGroup
        Workers.

    Yields
    ------
    EncodedDataset
    """
    n_rows = int(group.sum([len(rows)])[0])
    size = -(-max_rows * len(rows) // max(n_rows, 1))

    def select(part):
        frame = TensorFrame({name: part.frame[name] for name in names}, len(part))
        return EncodedDataset(frame, part.target, part.weight)

    return sampled_parts(rows.map(select), size, seed + group.rank)


def _total_weight(rows):
    return float(rows.weight.double().sum())


def _divide_weights(rows, divisor):
    return EncodedDataset(rows.frame, rows.target, rows.weight / torch.tensor(divisor).float())
