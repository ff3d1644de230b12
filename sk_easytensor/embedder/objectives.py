"""Objectives of embedders: their input, sampling of pairs of parts of sequences, and networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from sk_easytensor._utils.validation import check_number
from sk_easytensor.blocks import EventSequenceBlock
from sk_easytensor.blocks.detection import check_blocks, select_columns
from sk_easytensor.data.columns import is_list
from sk_easytensor.embedder.slices import (
    Sequences,
    Slices,
    cut_sessions,
    gap_seconds,
    random_slices,
)
from sk_easytensor.networks.heads import BinaryHead, SampledSoftmaxHead
from sk_easytensor.networks.two_tower_network import TwoTowerNetwork
from sk_easytensor.training.dataset import EncodedDataset, InMemoryDataset, ResampledDataset
from sk_easytensor.training.pairs import PairFrame
from sk_easytensor.training.table_dataset import BaseRowEncoder

__all__ = [
    "MIN_ELIGIBLE_USERS",
    "OBJECTIVES",
    "SESSION_LOSSES",
    "SESSION_SAMPLING",
    "Objective",
    "PairSampler",
    "PairSampling",
    "SampledPairs",
    "UserDataset",
    "UserEncoder",
    "ViewSettings",
    "check_eligible",
    "check_length",
    "count_long_histories",
    "count_pairs",
    "count_users",
    "eval_tables",
    "list_blocks",
    "list_names",
    "objective_of",
    "view_settings",
]


SESSION_LOSSES = ("softmax", "log_loss")
SESSION_SAMPLING = ("uniform", "latest")


@dataclass
class ViewSettings:
    """Settings by which sequences are cut into parts.

    Attributes
    ----------
    min_length : int or float, default=1
        Minimum length of random slices: a number of events, or a fraction of the sequence. See
        :func:`~sk_easytensor.embedder.slices.random_slices`.
    max_length : int, float or None, default=None
        Maximum length of random slices; None for whole sequences.
    time : str or None, default=None
        Column of times, from which sessions are cut. See
        :func:`~sk_easytensor.embedder.slices.cut_sessions`.
    gap : float or None, default=None
        Seconds without an event after which a new session starts.
    label : str or None, default=None
        Column that identifies the session of each event.
    latest : bool, default=False
        Whether the session that is paired with the events before it is always the user's last one.
    """

    min_length: int | float = 1
    max_length: int | float | None = None
    time: str | None = None
    gap: float | None = None
    label: str | None = None
    latest: bool = False


@dataclass
class SampledPairs:
    """Parts of sequences, and the pairs that they form.

    Attributes
    ----------
    left, right : Slices
        The parts of either side.
    left_rows, right_rows : ndarray of int64, shape (n_pairs,)
        Indices of the two parts of each pair in `left` and `right`.
    target : ndarray of float32, shape (n_pairs,)
        1 where both parts are of one user, else 0.
    """

    left: Slices
    right: Slices
    left_rows: np.ndarray
    right_rows: np.ndarray
    target: np.ndarray


class Objective(ABC):
    """Base class of objectives.

    Parameters
    ----------
    sequences : Sequences
        The events of each user.
    settings : ViewSettings
        Settings by which sequences are cut.

    Attributes
    ----------
    head : Head
        Head with the loss.
    normalized : bool
        Whether embeddings are scaled to length 1.
    temperature : float
        Default of the number that products of embeddings are divided by.
    has_sessions : bool
        Whether sequences are cut into sessions.
    pairs_per_user : int
        Number of pairs that are drawn of each eligible user.
    ineligible_reason : str
        Description of users that are not eligible, for messages.
    """

    head = None
    normalized = False
    temperature = 1.0
    has_sessions = False
    pairs_per_user = 1
    ineligible_reason = ""

    def __init__(self, sequences, settings):
        self.sequences = sequences
        self.settings = settings

    @property
    @abstractmethod
    def is_eligible(self):
        """Whether each user has enough events or sessions for a pair, bool of shape (n_users,)."""

    @abstractmethod
    def draw(self, users, random):
        """Draw pairs of some users. Their number depends on the users only.

        Parameters
        ----------
        users : ndarray of int64
            Indices of users, of whom at least two are eligible.
        random : numpy.random.Generator
            Random number generator.

        Returns
        -------
        SampledPairs
        """

    @classmethod
    def make_network(cls, tower, n_pairs, temperature, dropout):
        """Return the network to be trained, which takes batches of :class:`PairFrame`.

        Parameters
        ----------
        tower : BlockNetwork
            Network that embeds parts of sequences.
        n_pairs : int
            Number of pairs of an epoch, or of a validation set if that has more.
        temperature : float
            Number that products of embeddings are divided by.
        dropout : float
            Fraction of the embeddings' components that are set to zero in training.

        Returns
        -------
        TwoTowerNetwork
        """
        return TwoTowerNetwork(
            tower,
            tower,
            normalized=cls.normalized,
            temperature=temperature,
            dropout=dropout,
            # The softmax is over the users of the batch. Without a larger set that they are a
            # sample of, there is nothing to correct: an infinite popularity stands for probability
            # 1.
            popularity=torch.full((n_pairs,), torch.inf) if cls.head.in_batch else None,
            n_rows=n_pairs,
        )


class Contrastive(Objective):
    """Objective: match two random slices of a user among the slices of all users of the batch.

    Notes
    -----
    The method is that of Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision" (2022). The loss is a softmax over cosines.
    """

    head = SampledSoftmaxHead()
    normalized = True
    temperature = 0.05
    ineligible_reason = "fewer than two events"

    @property
    def is_eligible(self):
        return self.sequences.lengths > 1

    def draw(self, users, random):
        users = users[self.is_eligible[users]]
        bounds = self.settings.min_length, self.settings.max_length
        left = random_slices(self.sequences, users, *bounds, random)
        right = random_slices(self.sequences, users, *bounds, random)
        rows = np.arange(len(users))
        return SampledPairs(left, right, rows, rows, np.ones(len(users), dtype=np.float32))


class SessionPair(Objective):
    """Objective: match a history and the session after it among the sessions of the batch.

    Notes
    -----
    In each epoch a session of each user is drawn among all but the first, or the last one is taken
    if the settings say so. The events before it are the history. The loss is a softmax over
    cosines, as that of :class:`Contrastive`.
    """

    head = SampledSoftmaxHead()
    normalized = True
    temperature = 0.05
    has_sessions = True
    ineligible_reason = "fewer than two sessions"

    def __init__(self, sequences, settings):
        super().__init__(sequences, settings)
        self.sessions = cut_sessions(
            sequences, time=settings.time, gap=settings.gap, label=settings.label
        )

    @property
    def is_eligible(self):
        return self.sessions.counts > 1

    @property
    def longest_histories(self):
        """Number of events before the last session of each user, int64 of shape (n_users,)."""
        lengths = np.zeros(len(self.sequences), dtype=np.int64)
        eligible = np.flatnonzero(self.is_eligible)
        last = self.sessions.offsets[eligible + 1] - 1
        lengths[eligible] = self.sessions.starts[last] - self.sequences.offsets[eligible]
        return lengths

    def draw(self, users, random):
        users = users[self.is_eligible[users]]
        history, session = self._draw_sessions(users, random)
        rows = np.arange(len(users))
        return SampledPairs(history, session, rows, rows, np.ones(len(users), dtype=np.float32))

    def _draw_sessions(self, users, random):
        """Return the events before a session of each user, and the session.

        The session of a user who has only one is that one, and the history is empty.
        """
        sessions = self.sessions
        counts = sessions.counts[users]
        # The first session has no history.
        first = np.minimum(counts - 1, 1)
        drawn = counts - 1 if self.settings.latest else random.integers(first, counts)
        session = sessions.part(sessions.offsets[users] + drawn)
        return Slices(self.sequences.offsets[users], session.starts), session


class SessionPairBinary(SessionPair):
    """Objective: classify whether a session follows a history, or is one of another user.

    Sessions of users with a single session, who have no history, are paired with histories of
    others.
    """

    head = BinaryHead()
    normalized = False
    temperature = 1.0
    pairs_per_user = 2

    def draw(self, users, random):
        users = users[self.sessions.counts[users] > 0]
        history, session = self._draw_sessions(users, random)
        eligible = np.flatnonzero(self.is_eligible[users])
        history = Slices(history.starts[eligible], history.stops[eligible])
        # A shift by 1 to n - 1 positions modulo n never ends at the user itself.
        other = (eligible + random.integers(1, len(users), len(eligible))) % len(users)
        left_rows, right_rows = np.tile(np.arange(len(eligible)), 2), np.append(eligible, other)
        target = np.repeat(np.float32([1, 0]), len(eligible))
        return SampledPairs(history, session, left_rows, right_rows, target)


OBJECTIVES = {"contrastive": Contrastive, "session_pair": SessionPair}


def objective_of(estimator):
    """Return the class of the objective that the parameters of an estimator name."""
    if estimator.objective == "session_pair" and estimator.session_loss == "log_loss":
        return SessionPairBinary
    return OBJECTIVES[estimator.objective]


class PairSampler:
    """Function of the epoch that draws pairs and encodes them.

    Parameters
    ----------
    objective : Objective
        Objective that draws pairs.
    users : ndarray of int64
        Indices of the users of whom pairs are drawn.
    encode : callable
        Function that takes a table of list columns and returns a :class:`TensorFrame`.
    seed : list of int
        Seed; the number of the epoch is appended.
    """

    def __init__(self, objective, users, encode, seed):
        self.objective = objective
        self.users = users
        self.encode = encode
        self.seed = seed

    def __call__(self, epoch):
        """Return the pairs of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 0.

        Returns
        -------
        EncodedDataset
            Pairs, whose frame is a :class:`PairFrame`.
        """
        random = np.random.default_rng([*self.seed, epoch])
        pairs = self.objective.draw(self.users, random)
        read = self.objective.sequences.read
        left, right = read(pairs.left, self.encode), read(pairs.right, self.encode)
        left_rows, right_rows = (
            torch.from_numpy(pairs.left_rows),
            torch.from_numpy(pairs.right_rows),
        )
        frame = PairFrame(left, right, left_rows, right_rows)
        return EncodedDataset(frame, torch.from_numpy(pairs.target), torch.ones(len(frame)))


MIN_ELIGIBLE_USERS = 2
"""Minimum number of eligible users: with one user there is no pair of different users."""


class UserDataset(InMemoryDataset):
    """Users with their sequences, of whom :class:`PairSampling` draws pairs.

    Parameters
    ----------
    objective : Objective
        Objective with the sequences.
    users : ndarray of int64, optional
        Indices of the users; by default of all.

    Attributes
    ----------
    target : torch.Tensor of int64, shape (n_users,)
        1 for eligible users, else 0.
    """

    def __init__(self, objective, users=None):
        self.objective = objective
        self.users = np.arange(len(objective.sequences)) if users is None else users

    @property
    def target(self):
        return torch.from_numpy(self.objective.is_eligible[self.users].astype(np.int64))

    def __len__(self):
        return len(self.users)

    def take(self, rows):
        """Return the users at some rows, a slice or a tensor of indices."""
        rows = rows if isinstance(rows, slice) else rows.numpy()
        return UserDataset(self.objective, self.users[rows])


class UserEncoder(BaseRowEncoder):
    """Encoder of tables of lists, which returns :class:`UserDataset`.

    Parameters
    ----------
    objective : type
        Subclass of :class:`~sk_easytensor.embedder.objectives.Objective`.
    settings : ViewSettings
        Settings by which sequences are cut.
    columns : list of str
        Names of the columns of lists.
    owner : str
        Class name of the estimator, for errors.
    """

    def __init__(self, objective, settings, columns, owner):
        self.objective = objective
        self.settings = settings
        self.columns = columns
        self.owner = owner

    def encode(self, table, y, weight):
        """Return the users of a table of lists; targets and weights are not used."""
        return self.rows(Sequences(table, self.owner))

    encode_targets = encode

    def collector(self, memory):
        """Return a :class:`UserCollector`, which joins the users of several tables."""
        return UserCollector(self, memory)

    def rows(self, sequences):
        """Return a :class:`UserDataset` of some sequences."""
        return UserDataset(self.objective(sequences, self.settings))


class UserCollector:
    """Joins the users of several tables in memory.

    Parameters
    ----------
    encoder : UserEncoder
        Encoder of the tables.
    memory : float
        Bytes that the process may use.
    """

    def __init__(self, encoder, memory):
        self.encoder = encoder
        self.memory = memory
        self._sequences = []
        self._size = 0

    def append(self, users):
        """Add a :class:`UserDataset`.

        Raises
        ------
        ValueError
            If the sequences take more than half of `memory`.
        """
        sequences = users.objective.sequences
        if len(users) < len(sequences):
            # The others are in another data set, such as that of the held-out users.
            sequences = sequences.take(users.users)
        self._sequences.append(sequences)
        self._size += sequences.items.nbytes
        # Joining the parts takes as much memory again.
        if 2 * self._size > self.memory:
            raise ValueError(
                f"{self.encoder.owner}: the sequences of a worker's users take more than half of "
                f"the {self.memory:,} bytes it has. They must be in memory, because parts are cut "
                "from them in every epoch: use more workers, or more memory_per_worker"
            )

    def finish(self):
        """Return the :class:`UserDataset` of all users."""
        sequences, self._sequences = self._sequences, []
        return self.encoder.rows(Sequences.joined(sequences))


@dataclass
class PairSampling:
    """Function that takes a :class:`UserDataset` and returns a data set of pairs.

    Parameters
    ----------
    encode : callable
        Function that takes a table of list columns and returns a :class:`TensorFrame`.
    seed : list of int
        Seed of the draws.
    fresh : bool
        Whether new pairs are drawn in each epoch.
    """

    encode: object
    seed: list
    fresh: bool

    def __call__(self, rows):
        n_eligible = int(rows.target.sum())
        if n_eligible < MIN_ELIGIBLE_USERS:
            raise ValueError(
                f"of the {len(rows)} users that one worker trains or validates on, {n_eligible} "
                f"make a pair, and at least {MIN_ELIGIBLE_USERS} must; use fewer workers or more "
                "users"
            )
        sampler = PairSampler(rows.objective, rows.users, self.encode, self.seed)
        return ResampledDataset(sampler) if self.fresh else sampler(0)


def count_users(rows):
    """Return the number of users and that of eligible users, an array of shape (2,)."""
    return np.array([len(rows), int(rows.target.sum())])


def count_pairs(rows):
    """Return the number of pairs that are drawn of the users."""
    return rows.objective.pairs_per_user * int(rows.target.sum())


def count_long_histories(rows, length):
    """Return the number of users with more than `length` events before their last session."""
    return int((rows.objective.longest_histories[rows.users] > length).sum())


def list_names(table):
    """Return the names of the columns of lists of a table."""
    return [field.name for field in table.schema if is_list(field.type)]


def check_eligible(n_users, n_eligible, ineligible_reason):
    """Raise ``ValueError`` if there are too few users of whom pairs can be drawn."""
    if n_eligible < MIN_ELIGIBLE_USERS:
        raise ValueError(
            f"X: at least {MIN_ELIGIBLE_USERS} users must make a pair to train on, but "
            f"{n_eligible} of {n_users} do: the others have {ineligible_reason}"
        )


def check_length(owner, name, value):
    """Raise ``ValueError`` unless a value is a number of events or a fraction between 0 and 1."""
    is_count = isinstance(value, Integral)
    try:
        check_number(owner, name, value, low=1 if is_count else 0, high=None if is_count else 1)
    except ValueError:
        raise ValueError(
            f"{owner}: {name} must be a number of events, from 1 on, or a fraction between 0.0 and "
            f"1.0, got {value!r}"
        ) from None


def eval_tables(eval_set):
    """Check the form of ``eval_set``, and return its entries as pairs of a name and a table."""
    if eval_set is None:
        return []
    if not isinstance(eval_set, (list, tuple)):
        kind = type(eval_set).__name__
        raise TypeError(f"eval_set must be a list of tables, got a {kind}")
    return [(f"eval_set[{index}]", X) for index, X in enumerate(eval_set)]


def view_settings(estimator, table, time):
    """Return the settings by which sequences are cut, and check their columns.

    Parameters
    ----------
    estimator : EasyTensorEmbedder
        Estimator with the parameters.
    table : pyarrow.Table
        Some of the rows, with columns of lists.
    time : str or None
        Column of times.

    Returns
    -------
    ViewSettings

    Raises
    ------
    ValueError
        If the column of times or sessions is missing, or if the objective needs sessions and there
        is no parameter to cut them by.
    """
    owner = type(estimator).__name__
    sessions = objective_of(estimator).has_sessions
    if sessions and estimator.session is None and estimator.session_gap is None:
        raise ValueError(
            f"{owner}: objective={estimator.objective!r} needs sessions; give session_gap, the "
            "time after which a new one begins, or session, the column of session labels"
        )
    lists = list_names(table)
    for name, value in (("time", time), ("session", estimator.session)):
        if value is not None and value not in lists:
            raise ValueError(
                f"{owner}: {name} names {value!r}, which is no column of lists of X; the "
                f"columns of lists are {lists}"
            )
    if not sessions:
        return ViewSettings(estimator.min_length, estimator.max_length)
    latest = estimator.session_sampling == "latest"
    if estimator.session is not None:
        return ViewSettings(label=estimator.session, latest=latest)
    if time is None:
        raise ValueError(
            f"{owner}: session_gap needs the times of events; name the column of times, as in "
            f"fit(X, time=...); the columns of lists are {lists}"
        )
    gap = gap_seconds(owner, estimator.session_gap)
    return ViewSettings(time=time, gap=gap, latest=latest)


def list_blocks(estimator, table, X, time):
    """Return the blocks with the names of their columns, all of them lists.

    Parameters
    ----------
    estimator : EasyTensorEmbedder
        Estimator with the parameters.
    table : pyarrow.Table
        Some of the rows, with columns of lists.
    X : table-like or None
        Table that the user passed, if it has columns of lists; None for a log.
    time : str or None
        Column of times.

    Returns
    -------
    list of (str, Block, list of str)
        Name, block and columns of each block.

    Raises
    ------
    ValueError
        If there are no columns of lists, if no block reads any, or if a block reads a column that
        is constant for a user.
    """
    owner = type(estimator).__name__
    lists = list_names(table)
    if not lists:
        raise ValueError(
            f"{owner}: X has no column of lists; if it is a log with a row for each event, "
            "give fit its user and time columns"
        )
    specs = []
    for name, block, selector in check_blocks(estimator.blocks):
        columns = select_columns(selector, table, X, owner=f"block {name!r}")
        constant = [column for column in columns if column not in lists]
        if constant:
            raise ValueError(
                f"{owner}: block {name!r} reads {constant}, which hold one value for each user "
                f"and would identify the user of a part; only lists can be read: {lists}"
            )
        specs.append((name, block, columns))
    named = {column for _, _, columns in specs for column in columns} | {estimator.session}
    rest = [column for column in lists if column not in named]
    if estimator.remainder == "auto" and rest:
        name = EventSequenceBlock.kind
        while name in [name for name, _, _ in specs]:
            name += "_auto"
        # Embeddings of this block can be updated with further events.
        block = EventSequenceBlock("mean", time=time if time in rest else None, now=False)
        specs.append((name, block, rest))
    if not any(columns for _, _, columns in specs):
        raise ValueError(
            f"{owner}: no block reads any column of lists: name columns in blocks or use "
            "remainder='auto'"
        )
    return specs
