"""Users whose sequences are kept as they are, for pairs to be drawn from in each epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sk_easytensor.training.batches import FreshRows
from sk_easytensor.training.objectives import PairDraw
from sk_easytensor.views import Sequences

__all__ = ["AT_LEAST", "PairDrawing", "UserMaker", "UserRows", "count_pairs", "count_users"]

AT_LEAST = 2
"""Users that make a pair: fewer have nobody to be told from."""


class UserRows:
    """Users with their sequences.

    Has what estimators ask of :class:`~sk_easytensor.training.batches.EncodedRows` until pairs are
    drawn; see :class:`PairDrawing`.

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
        return torch.from_numpy(self.objective.has_pair[self.users].astype(np.int64))

    @property
    def nbytes(self):
        """Bytes of the sequences."""
        return self.objective.sequences.items.nbytes

    def __len__(self):
        return len(self.users)

    def take(self, rows):
        """Return some of the users, given by an int64 tensor."""
        return UserRows(self.objective, self.users[rows.numpy()])

    def map(self, function):
        """Apply a function to the rows."""
        return function(self)

    def each(self, function):
        """Return what a function gives for the rows, as a list."""
        return [function(self)]


class UserMaker:
    """Makes :class:`UserRows` of a table of lists; picklable, so that any process can do it.

    Parameters
    ----------
    objective : type
        An :class:`~sk_easytensor.training.objectives.Objective`.
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

    def make_rows(self, table, y, weight):
        """Return the users of a table of lists; targets and weights have no part in it."""
        return self._rows(Sequences(table, self.owner))

    make_targets = make_rows

    def gather(self, pieces, memory):
        """Join the users of several tables.

        Raises
        ------
        ValueError
            If their sequences take more than half of so many bytes.
        """
        kept, size = [], 0
        for piece in pieces:
            kept.append(piece)
            size += piece.nbytes
            # Joining the pieces takes as much memory again.
            if 2 * size > memory:
                raise ValueError(
                    f"{self.owner}: the sequences of a worker's users take more than half of the "
                    f"{memory:,} bytes it has. They must be in memory, for parts are cut from them "
                    "in every epoch: use more workers, or more memory_per_worker"
                )
        if len(kept) == 1:
            return kept[0]
        return self._rows(Sequences.joined([piece.objective.sequences for piece in kept]))

    def _rows(self, sequences):
        return UserRows(self.objective(sequences, self.settings))


@dataclass
class PairDrawing:
    """Draws pairs of users: called with :class:`UserRows`, it returns rows of pairs.

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
        draw = PairDraw(rows.objective, rows.users, self.encode, self.seed)
        return FreshRows(draw) if self.fresh else draw(0)


def count_users(rows):
    """Return how many users there are, and how many of them make a pair."""
    return np.array([len(rows), int(rows.target.sum())])


def count_pairs(rows):
    """Return how many pairs are drawn of the users."""
    return rows.objective.pairs_a_user * int(rows.target.sum())
