"""Pairs of user and item rows, on which a two-tower network is trained."""

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
    """Pairs of users and items; each distinct row of either side is stored once.

    Parameters
    ----------
    users, items : TensorFrame
        Encoded rows of the two sides.
    user_rows, item_rows : torch.Tensor of int64, shape (n_pairs,)
        For each pair, the index of its row in `users` and in `items`.
    user_ids : torch.Tensor of int64, shape (n_pairs,), optional
        Number of the user of each pair, whose rows may differ from pair to pair. By default a user
        is whoever has the same row.

    Notes
    -----
    Used instead of a :class:`~sk_easytensor.tensors.TensorFrame` in
    :class:`~sk_easytensor.training.dataset.EncodedDataset`. A batch is a selection of pairs, and
    the network computes each user and each item in it once.
    """

    def __init__(self, users, items, user_rows, item_rows, user_ids=None):
        self.users = users
        self.items = items
        self.user_rows = user_rows
        self.item_rows = item_rows
        self.user_ids = user_ids

    def __len__(self):
        return len(self.user_rows)

    def take(self, pairs):
        """Return the pairs of the given indices, a slice or an int64 tensor."""
        own = None if self.user_ids is None else self.user_ids[pairs]
        return PairFrame(self.users, self.items, self.user_rows[pairs], self.item_rows[pairs], own)

    def user_numbers(self):
        """Return a number for the user of each pair: its id, or a hash of its row.

        Returns
        -------
        ndarray of int64, shape (n_pairs,)
        """
        if self.user_ids is not None:
            return self.user_ids.cpu().numpy()
        return self.users.to("cpu").row_hashes()[self.user_rows.cpu().numpy()]

    def row_hashes(self):
        """Return a 64-bit hash of the user and the item of each pair, as an int64 array."""
        sides = {
            name: {"hash": torch.from_numpy(frame.to("cpu").row_hashes())[rows.cpu()]}
            for name, frame, rows in (
                ("users", self.users, self.user_rows),
                ("items", self.items, self.item_rows),
            )
        }
        return TensorFrame(sides, len(self)).row_hashes()

    def content(self):
        """Return a list of all tensors of the frame."""
        return [*self.users.content(), *self.items.content(), self.user_rows, self.item_rows]

    def to(self, device):
        """Return the pairs on another device."""
        return PairFrame(
            self.users.to(device),
            self.items.to(device),
            self.user_rows.to(device),
            self.item_rows.to(device),
            None if self.user_ids is None else self.user_ids.to(device),
        )


def distinct_rows(frame):
    """Return the distinct rows of a frame, and the index of each row among them.

    Parameters
    ----------
    frame : TensorFrame
        Encoded rows.

    Returns
    -------
    distinct : TensorFrame
        Distinct rows in the order of first appearance.
    rows : torch.Tensor of int64, shape (len(frame),)
        Index of each row of `frame` in `distinct`.
    """
    _, first, inverse = np.unique(frame.row_hashes(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = torch.from_numpy(rank[inverse.reshape(-1)])
    return frame.take(torch.from_numpy(first[order])), rows


def flat_frame(users, items, user_ids=None):
    """Join the encodings of users and items into one frame, one row for each pair.

    Parameters
    ----------
    users, items : TensorFrame
        Encodings of either side, with the same number of rows.
    user_ids : torch.Tensor of int64, shape (n_pairs,), optional
        Number of the user of each pair.

    Returns
    -------
    TensorFrame
        Blocks are named ``user/<name>`` and ``item/<name>``. Unlike a :class:`PairFrame`, it can be
        written to files. :class:`PairResampling` converts it to pairs, :func:`side_of` returns
        the blocks of one side.
    """
    sides = {"user": users, "item": items}
    blocks = {f"{side}/{name}": entry for side in sides for name, entry in sides[side].items()}
    if user_ids is not None:
        blocks[IDS] = {"id": user_ids[:, None]}
    return TensorFrame(blocks, len(users))


def side_of(frame, side):
    """Return the encodings of one side, ``"user"`` or ``"item"``, of a flat frame."""
    prefix = f"{side}/"
    blocks = {
        name.removeprefix(prefix): entry for name, entry in frame.items() if name.startswith(prefix)
    }
    return TensorFrame(blocks, len(frame))


IDS = "__user_ids"
"""Entry of a flat frame that has the numbers of users."""

NUMBERS = "__numbers"
"""Entry of a frame that has row numbers of the item catalogue instead of encodings. Names of blocks
have no double underscore."""


def numbered_items(numbers):
    """Return a frame of items by their row numbers in the catalogue, int64 of shape (n_pairs,)."""
    return TensorFrame({NUMBERS: {"row": numbers[:, None]}})


def distinct_items(rows):
    """Return the distinct items of flat rows."""
    return distinct_rows(side_of(rows.frame, "item"))[0]


class PairResampling:
    """Converts rows with a flat frame into rows with a :class:`PairFrame`.

    Called with an :class:`EncodedDataset`, it returns an :class:`EncodedDataset`.

    Parameters
    ----------
    items : TensorFrame
        Encodings of all items, which all pairs share.

    Notes
    -----
    The flat frame has either the row numbers of items (:func:`numbered_items`) or their encodings,
    which are then looked up in `items`.
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
        items = side_of(rows.frame, "item")
        if NUMBERS in items:
            item_rows = items[NUMBERS]["row"][:, 0]
        else:
            hashes, order = self._sorted
            item_rows = torch.from_numpy(order[np.searchsorted(hashes, items.row_hashes())])
        user_ids = rows.frame[IDS]["id"][:, 0] if IDS in rows.frame else None
        frame = PairFrame(users, self.items, user_rows, item_rows, user_ids)
        return EncodedDataset(frame, rows.target, rows.weight)


def item_counts(rows):
    """Return the number of pairs of each item, an int64 tensor of shape (n_items,)."""
    return torch.bincount(rows.frame.item_rows, minlength=len(rows.frame.items))
