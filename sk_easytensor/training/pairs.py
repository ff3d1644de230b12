"""Pairs of rows of two frames: what a two-tower network is trained on."""

from __future__ import annotations

import numpy as np
import torch

from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.batches import EncodedRows

__all__ = ["PairFrame", "distinct_rows", "with_common_rows"]


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
    :class:`~sk_easytensor.training.batches.EncodedRows`: a batch is a choice of pairs, and the
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


def with_common_rows(sets, catalogue=None):
    """Give several sets of pairs the same users and items, so that both are kept once.

    Parameters
    ----------
    sets : list of EncodedRows
        Of a :class:`PairFrame` each.
    catalogue : TensorFrame, optional
        The items, if the sets' item rows are its rows already.

    Returns
    -------
    list of EncodedRows
    """
    frames = [pairs.frame for pairs in sets]
    users, user_rows = _common([frame.users for frame in frames])
    if catalogue is None:
        items, item_rows = _common([frame.items for frame in frames])
    else:
        items, item_rows = catalogue, [torch.arange(len(catalogue))] * len(frames)
    return [
        EncodedRows(
            PairFrame(users, items, of_user[pairs.frame.user_rows], of_item[pairs.frame.item_rows]),
            pairs.target,
            pairs.weight,
        )
        for pairs, of_user, of_item in zip(sets, user_rows, item_rows, strict=True)
    ]


def _common(frames):
    """Return the distinct rows of several frames, and where each frame's rows are among them."""
    distinct, rows = distinct_rows(TensorFrame.concatenate(frames))
    return distinct, rows.split([len(frame) for frame in frames])
