"""Two towers that meet in a product of their embeddings."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from sk_easytensor.tensors import select_rows

__all__ = [
    "TwoTowerNetwork",
    "as_embeddings",
    "embed",
]


def embed(tower, frame, normalized):
    """Return the embeddings that a tower gives of encoded rows.

    Parameters
    ----------
    tower : BlockNetwork
        With an :class:`~sk_easytensor.networks.heads.EmbeddingHead`.
    frame : TensorFrame
        Encoded rows.
    normalized : bool
        Whether embeddings have length 1.

    Returns
    -------
    torch.Tensor of float32, shape (n_rows, embedding_dim)
    """
    return as_embeddings(tower(frame), normalized)


def as_embeddings(outputs, normalized):
    """Return the embeddings that a tower's outputs, of shape (n_rows, members, size), are."""
    embeddings = outputs.mean(1).float()
    return functional.normalize(embeddings, dim=1) if normalized else embeddings


class TwoTowerNetwork(nn.Module):
    """A user tower and an item tower, trained on pairs.

    Parameters
    ----------
    user, item : BlockNetwork
        Towers with an :class:`~sk_easytensor.networks.heads.EmbeddingHead`.
    normalized : bool
        Whether embeddings have length 1, so that their product is a cosine.
    temperature : float
        What products are divided by.
    dropout : float
        Fraction of the embeddings' components dropped in training.
    popularity : torch.Tensor of float32, shape (n_items,), optional
        Probability that a pair has the item. If given, outputs are those of a softmax over the
        items of a batch, else each pair has one.
    n_rows : int
        Training pairs.
    n_negatives : int
        Items added to each training batch, drawn evenly from all.

    Notes
    -----
    The softmax over all items is estimated from the items of the batch: each stands for those
    like it that were not drawn, so that its weight is divided by its probability of being in the
    batch. Subtracting the logarithm of that probability from the logits is the correction of Yi
    et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"
    (2019); adding evenly drawn items is the idea of Yang et al., "Mixed Negative Sampling for
    Learning Two-tower Neural Networks in Recommendations" (2020). Every item is there once, so
    that no item is its own negative.
    """

    def __init__(
        self,
        user,
        item,
        *,
        normalized=False,
        temperature=1.0,
        dropout=0.0,
        popularity=None,
        n_rows=1_000_000,
        n_negatives=0,
    ):
        super().__init__()
        self.user = user
        self.item = item
        self.normalized = normalized
        self.temperature = temperature
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("popularity", popularity)
        self.n_rows = n_rows
        self.n_negatives = n_negatives
        if popularity is None:
            self.bias = nn.Parameter(torch.zeros(()))

    def padded_lengths(self, pairs):
        """Return how long each pair's lists become where they are padded, or None."""
        found = [
            (self.user.padded_lengths(pairs.users), pairs.user_rows),
            (self.item.padded_lengths(pairs.items), pairs.item_rows),
        ]
        lengths = [lengths[rows] for lengths, rows in found if lengths is not None]
        return torch.stack(lengths).amax(0) if lengths else None

    def forward(self, pairs):
        """Return the products of pairs, or the logits of a softmax over the batch's items.

        Parameters
        ----------
        pairs : PairFrame

        Returns
        -------
        torch.Tensor of shape (n_pairs, 1, 1) or (n_pairs, 1, 1 + distinct items)
            The logit of the pair's own item comes first; it is masked among the others.
        """
        present_users, user_place = pairs.user_rows.unique(return_inverse=True)
        users = self._embed(self.user, pairs.users.take(present_users))
        if self.popularity is None:
            present, item_place = pairs.item_rows.unique(return_inverse=True)
            items = self._embed(self.item, pairs.items.take(present))
            product = select_rows(users, user_place) * select_rows(items, item_place)
            product = product.sum(1) / self.temperature
            return (product + self.bias)[:, None, None]
        n_pairs, n_items = len(pairs), len(self.popularity)
        rows, n_negatives = pairs.item_rows, self.n_negatives if self.training else 0
        if n_negatives:
            drawn = torch.randint(n_items, (n_negatives,)).to(rows.device)
            rows = torch.cat([rows, drawn])
        present, place = rows.unique(return_inverse=True)
        items = self._embed(self.item, pairs.items.take(present))
        with torch.autocast(users.device.type, enabled=False):
            logits = users @ items.T / self.temperature
        own = place[:n_pairs, None]
        positive = select_rows(logits, user_place).gather(1, own)
        absent = self.popularity[present] * self._log_absent(n_pairs)
        if n_negatives:
            absent = absent + n_negatives * torch.log1p(torch.tensor(-1.0 / max(n_items, 2)))
        others = logits - torch.log(-torch.expm1(absent))
        others = select_rows(others, user_place).scatter(1, own, -torch.inf)
        return torch.cat([positive, others], dim=1)[:, None, :]

    def _log_absent(self, n_pairs):
        """Return the logarithm of the probability that no row of an item is drawn, over its share.

        Batches are drawn without replacement: an item with n of N rows stays out of a batch of B
        with probability ``(1 - B / N) ** n``, about.
        """
        drawn = min(n_pairs / self.n_rows, 1 - 1e-6)
        return self.n_rows * math.log1p(-drawn)

    def _embed(self, tower, frame):
        return self.dropout(embed(tower, frame, self.normalized))
