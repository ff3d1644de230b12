"""Objectives of embedders: pairs of parts of event sequences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from sk_easytensor.embedder.slices import Sequences, Slices, cut_sessions, random_slices
from sk_easytensor.networks.heads import BinaryHead, SampledSoftmaxHead
from sk_easytensor.networks.two_tower import TwoTowerNetwork
from sk_easytensor.training.dataset import EncodedDataset, InMemoryDataset, ResampledDataset
from sk_easytensor.training.pairs import PairFrame
from sk_easytensor.training.table_dataset import BaseRowEncoder

__all__ = [
    "AT_LEAST",
    "OBJECTIVES",
    "Objective",
    "PairSampler",
    "PairSampling",
    "SampledPairs",
    "UserDataset",
    "UserEncoder",
    "ViewSettings",
    "count_pairs",
    "count_users",
]


@dataclass
class ViewSettings:
    """How sequences are cut.

    Attributes
    ----------
    min_length, max_length : int, float or None
        Bounds of random slices; see :func:`~sk_easytensor.embedder.slices.random_slices`.
    time, gap, label : str, float and str, or None
        How sessions are cut; see :func:`~sk_easytensor.embedder.slices.cut_sessions`.
    """

    min_length: int | float = 1
    max_length: int | float | None = None
    time: str | None = None
    gap: float | None = None
    label: str | None = None


@dataclass
class SampledPairs:
    """Parts of sequences, and which of them are taken together.

    Attributes
    ----------
    left, right : Slices
        The parts.
    left_rows, right_rows : ndarray of int64, shape (n_pairs,)
        For each pair, which part of either side.
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
        How they are cut.

    Attributes
    ----------
    head : Head
        Gives the loss.
    normalized : bool
        Whether embeddings have length 1.
    temperature : float
        What products are divided by, unless the user says otherwise.
    has_sessions : bool
        Whether sequences are cut into sessions.
    pairs_a_user : int
        Pairs that are drawn of each user that makes one.
    lack : str
        What users have that make no pair, for messages.
    """

    head = None
    normalized = False
    temperature = 1.0
    has_sessions = False
    pairs_a_user = 1
    lack = ""

    def __init__(self, sequences, settings):
        self.sequences = sequences
        self.settings = settings

    @property
    @abstractmethod
    def is_eligible(self):
        """Which users make a pair on their own, bool of shape (n_users,)."""

    @abstractmethod
    def draw(self, users, random):
        """Draw the pairs of some users, always as many for the same ones.

        Parameters
        ----------
        users : ndarray of int64
            Of which two at least make a pair.
        random : numpy.random.Generator
            What is drawn from.

        Returns
        -------
        SampledPairs
        """

    @classmethod
    @abstractmethod
    def make_network(cls, tower, n_pairs, temperature, dropout):
        """Return the network to be trained, whose batches are of :class:`PairFrame`.

        Parameters
        ----------
        tower : BlockNetwork
            Embeds a part of a sequence.
        n_pairs : int
            Pairs of an epoch, or of a validation set if that has more.
        temperature : float
            What products are divided by.
        dropout : float
            Fraction of the embeddings' components dropped in training.

        Returns
        -------
        torch.nn.Module
        """


class Contrastive(Objective):
    """Two random slices of a user, to be found among those of all users of the batch.

    Notes
    -----
    The idea of Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision" (2022). The loss is a softmax over cosines.
    """

    head = SampledSoftmaxHead()
    normalized = True
    temperature = 0.05
    lack = "fewer than two events"

    @property
    def is_eligible(self):
        return self.sequences.lengths > 1

    def draw(self, users, random):
        users = users[self.is_eligible[users]]
        bounds = self.settings.min_length, self.settings.max_length
        left = random_slices(self.sequences, users, *bounds, random)
        right = random_slices(self.sequences, users, *bounds, random)
        own = np.arange(len(users))
        return SampledPairs(left, right, own, own, np.ones(len(users), dtype=np.float32))

    @classmethod
    def make_network(cls, tower, n_pairs, temperature, dropout):
        return TwoTowerNetwork(
            tower,
            tower,
            normalized=cls.normalized,
            temperature=temperature,
            dropout=dropout,
            # The choice is among the users of the batch, who are there for certain.
            popularity=torch.ones(n_pairs),
            n_rows=n_pairs,
        )


class SessionPair(Objective):
    """A user's history with the session after it, to be told from it with another's session.

    Users with a single session, which have no history, lend it to others.

    Notes
    -----
    Each epoch takes another session of a user, and what came before it as the history, rather
    than the latest session only.
    """

    head = BinaryHead()
    has_sessions = True
    pairs_a_user = 2
    lack = "fewer than two sessions"

    def __init__(self, sequences, settings):
        super().__init__(sequences, settings)
        self.sessions = cut_sessions(
            sequences, time=settings.time, gap=settings.gap, label=settings.label
        )

    @property
    def is_eligible(self):
        return self.sessions.counts > 1

    def draw(self, users, random):
        sessions = self.sessions
        lenders = users[sessions.counts[users] > 0]
        counts = sessions.counts[lenders]
        drawn = random.integers(np.minimum(counts - 1, 1), counts)
        session = sessions.part(sessions.offsets[lenders] + drawn)
        own = np.flatnonzero(counts > 1)
        history = Slices(self.sequences.offsets[lenders[own]], session.starts[own])
        # Going on by less than a full turn, one never comes back to oneself.
        other = (own + random.integers(1, len(lenders), len(own))) % len(lenders)
        left_rows, right_rows = np.tile(np.arange(len(own)), 2), np.append(own, other)
        target = np.repeat(np.float32([1, 0]), len(own))
        return SampledPairs(history, session, left_rows, right_rows, target)

    @classmethod
    def make_network(cls, tower, n_pairs, temperature, dropout):
        return TwoTowerNetwork(
            tower, tower, normalized=cls.normalized, temperature=temperature, dropout=dropout
        )


OBJECTIVES = {"contrastive": Contrastive, "session_pair": SessionPair}


class PairSampler:
    """Draws the pairs of an epoch and encodes them.

    Parameters
    ----------
    objective : Objective
        Draws them.
    users : ndarray of int64
        Of whom pairs are drawn.
    encode : callable
        Takes a table of list columns and returns a :class:`TensorFrame`.
    seed : list of int
        Makes draws repeatable.
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
            Of a :class:`PairFrame`.
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


AT_LEAST = 2
"""Users that make a pair: fewer have nobody to be told from."""


class UserDataset(InMemoryDataset):
    """Users with their sequences, of whom :class:`PairSampling` draws pairs.

    Parameters
    ----------
    objective : Objective
        Has the sequences.
    users : ndarray of int64, optional
        Some of them; by default all.

    Attributes
    ----------
    target : torch.Tensor of int64, shape (n_users,)
        1 for users that make a pair, else 0.
    """

    def __init__(self, objective, users=None):
        self.objective = objective
        self.users = np.arange(len(objective.sequences)) if users is None else users

    @property
    def target(self):
        return torch.from_numpy(self.objective.is_eligible[self.users].astype(np.int64))

    @property
    def nbytes(self):
        """Bytes of the sequences."""
        return self.objective.sequences.items.nbytes

    def __len__(self):
        return len(self.users)

    def take(self, rows):
        """Return some of the users."""
        rows = rows if isinstance(rows, slice) else rows.numpy()
        return UserDataset(self.objective, self.users[rows])


class UserEncoder(BaseRowEncoder):
    """Makes :class:`UserDataset` of a table of lists.

    Parameters
    ----------
    objective : type
        An :class:`~sk_easytensor.embedder.objectives.Objective`.
    settings : ViewSettings
        How sequences are cut.
    columns : list of str
        The columns of lists.
    owner : str
        Who asks, for errors.
    """

    def __init__(self, objective, settings, columns, owner):
        self.objective = objective
        self.settings = settings
        self.columns = columns
        self.owner = owner

    def encode(self, table, y, weight):
        """Return the users of a table of lists; targets and weights have no part in it."""
        return self._rows(Sequences(table, self.owner))

    encode_targets = encode

    def concatenate(self, parts, memory):
        """Join the users of several tables.

        Raises
        ------
        ValueError
            If their sequences take more than half of so many bytes.
        """
        kept, size = [], 0
        for part in parts:
            kept.append(part)
            size += part.nbytes
            # Joining the parts takes as much memory again.
            if 2 * size > memory:
                raise ValueError(
                    f"{self.owner}: the sequences of a worker's users take more than half of the "
                    f"{memory:,} bytes it has. They must be in memory, for parts are cut from them "
                    "in every epoch: use more workers, or more memory_per_worker"
                )
        if len(kept) == 1:
            return kept[0]
        return self._rows(Sequences.joined([part.objective.sequences for part in kept]))

    def _rows(self, sequences):
        return UserDataset(self.objective(sequences, self.settings))


@dataclass
class PairSampling:
    """Draws pairs of users: called with :class:`UserDataset`, it returns rows of pairs.

    Parameters
    ----------
    encode : callable
        Takes a table of list columns and returns a :class:`TensorFrame`.
    seed : list of int
        Makes draws repeatable.
    fresh : bool
        Whether each epoch has pairs of its own.
    """

    encode: object
    seed: list
    fresh: bool

    def __call__(self, rows):
        usable = int(rows.target.sum())
        if usable < AT_LEAST:
            raise ValueError(
                f"of the {len(rows)} users that one worker trains or validates on, {usable} make a "
                f"pair, and {AT_LEAST} at least have to; use fewer workers or more users"
            )
        draw = PairSampler(rows.objective, rows.users, self.encode, self.seed)
        return ResampledDataset(draw) if self.fresh else draw(0)


def count_users(rows):
    """Return how many users there are, and how many of them make a pair."""
    return np.array([len(rows), int(rows.target.sum())])


def count_pairs(rows):
    """Return how many pairs are drawn of the users."""
    return rows.objective.pairs_a_user * int(rows.target.sum())
