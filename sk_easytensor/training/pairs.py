"""Pairs of rows of two frames: what a two-tower network is trained on."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset

__all__ = [
    "PairFrame",
    "PairResampling",
    "distinct_items",
    "distinct_rows",
    "flat_frame",
    "item_counts",
    "numbered_items",
    "side_of",
]


class PairFrame:
    """Users and items that met, each row of either side kept once.

    Parameters
    ----------
    users, items : TensorFrame
        Encoded rows of the two sides.
    user_rows, item_rows : torch.Tensor of int64, shape (n_pairs,)
        For each pair, the row of either side.

    Notes
    -----
    Takes the place of a :class:`~sk_easytensor.tensors.TensorFrame` in
    :class:`~sk_easytensor.training.dataset.EncodedDataset`: a batch is a choice of pairs, and the
    network reads each user and each item in it once.
    """

    def __init__(self, users, items, user_rows, item_rows):
        self.users = users
        self.items = items
        self.user_rows = user_rows
        self.item_rows = item_rows

    def __len__(self):
        return len(self.user_rows)

    def take(self, pairs):
        """Return some of the pairs: a slice or an int64 tensor."""
        return PairFrame(self.users, self.items, self.user_rows[pairs], self.item_rows[pairs])

    def content(self):
        """Return all the tensors it is made of."""
        return [*self.users.content(), *self.items.content(), self.user_rows, self.item_rows]

    def to(self, device):
        """Return the pairs on another device."""
        return PairFrame(
            self.users.to(device),
            self.items.to(device),
            self.user_rows.to(device),
            self.item_rows.to(device),
        )


def distinct_rows(frame):
    """Keep each distinct row of a frame once.

    Parameters
    ----------
    frame : TensorFrame
        Encoded rows.

    Returns
    -------
    distinct : TensorFrame
        In the order of first appearance.
    rows : torch.Tensor of int64, shape (len(frame),)
        For each row, where it stands among the distinct ones.
    """
    _, first, inverse = np.unique(frame.row_hashes(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = torch.from_numpy(rank[inverse.reshape(-1)])
    return frame.take(torch.from_numpy(first[order])), rows


def flat_frame(users, items):
    """Put the encodings of users and items side by side, a row for each pair.

    Parameters
    ----------
    users, items : TensorFrame
        As many rows of either side.

    Returns
    -------
    TensorFrame
        It can be kept in files, as a :class:`PairFrame` cannot. :class:`PairResampling` makes
        pairs of it, and :func:`side_of` takes it apart.
    """
    sides = {"user": users, "item": items}
    blocks = {f"{side}/{name}": entry for side in sides for name, entry in sides[side].items()}
    return TensorFrame(blocks, len(users))


def side_of(frame, side):
    """Return the encodings of ``"user"`` or ``"item"`` that a flat frame has."""
    prefix = f"{side}/"
    found = {
        name.removeprefix(prefix): entry for name, entry in frame.items() if name.startswith(prefix)
    }
    return TensorFrame(found, len(frame))


NUMBERS = "__numbers"
"""In the place of a block's name, which has no underscores: items are given by numbers."""


def numbered_items(numbers):
    """Return items of a catalogue by their numbers, int64 of shape (n_pairs,), as a frame."""
    return TensorFrame({NUMBERS: {"row": numbers[:, None]}})


def distinct_items(rows):
    """Return the distinct items of flat rows."""
    return distinct_rows(side_of(rows.frame, "item"))[0]


class PairResampling:
    """Makes pairs of flat rows: called with :class:`EncodedDataset`, it returns the same.

    Parameters
    ----------
    items : TensorFrame
        All items, which pairs share.

    Notes
    -----
    Rows have either the numbers of items (:func:`numbered_items`) or their encodings, which are
    then looked up among those of `items`.
    """

    def __init__(self, items):
        self.items = items

    @cached_property
    def _sorted(self):
        hashes = self.items.row_hashes()
        order = np.argsort(hashes)
        return hashes[order], order

    def __call__(self, rows):
        users, user_rows = distinct_rows(side_of(rows.frame, "user"))
        found = side_of(rows.frame, "item")
        if NUMBERS in found:
            item_rows = found[NUMBERS]["row"][:, 0]
        else:
            hashes, order = self._sorted
            item_rows = torch.from_numpy(order[np.searchsorted(hashes, found.row_hashes())])
        frame = PairFrame(users, self.items, user_rows, item_rows)
        return EncodedDataset(frame, rows.target, rows.weight)


def item_counts(rows):
    """Return how many pairs have each item, int64 of shape (n_items,)."""
    return torch.bincount(rows.frame.item_rows, minlength=len(rows.frame.items))
