"""Networks of embeddings: the outputs of a tower, and two towers that are trained on pairs."""

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
    "embed_with_aggregates",
]


def embed(tower, frame, normalized):
    """Return the embeddings of encoded rows.

    Parameters
    ----------
    tower : BlockNetwork
        Network with an :class:`~sk_easytensor.networks.heads.EmbeddingHead`.
    frame : TensorFrame
        Encoded rows.
    normalized : bool
        Whether embeddings are scaled to unit length.

    Returns
    -------
    torch.Tensor of float32, shape (n_rows, embedding_dim)
    """
    return as_embeddings(tower(frame), normalized)


def embed_with_aggregates(tower, frame, normalized):
    """Return embeddings, followed by aggregates of lists if the tower has any.

    Parameters
    ----------
    tower, frame, normalized
        As in :func:`embed`.

    Returns
    -------
    torch.Tensor of float32, shape (n_rows, embedding_dim + n_aggregates)
    """
    parts = [embed(tower, frame, normalized)]
    if tower.aggregates is None:
        return parts[0]
    for name, block, own in zip(tower.names, tower.blocks, tower.aggregates, strict=True):
        if own:
            lists = zip(own, block.aggregated_lists(frame[name]), strict=True)
            parts += [part.inputs(part.compute(*inputs)) for part, inputs in lists]
    return torch.cat(parts, dim=1)


def as_embeddings(outputs, normalized):
    """Convert a tower's outputs, of shape (n_rows, members, embedding_dim), to embeddings."""
    embeddings = outputs.mean(1).float()
    return functional.normalize(embeddings, dim=1) if normalized else embeddings


class TwoTowerNetwork(nn.Module):
    """User tower and item tower, trained on pairs.

    Parameters
    ----------
    user, item : BlockNetwork
        Towers with an :class:`~sk_easytensor.networks.heads.EmbeddingHead`.
    normalized : bool, default=False
        Whether embeddings are scaled to unit length, so that their product is a cosine.
    temperature : float, default=1.0
        Divisor of products.
    dropout : float, default=0.0
        Dropout probability of the components of embeddings.
    popularity : torch.Tensor of float32, shape (n_items,), optional
        Probability of each item in a training pair. If it is passed, the outputs are logits of a
        softmax over the items of a batch; by default there is one output for each pair.
    n_rows : int, default=1_000_000
        Number of training pairs.
    n_negatives : int, default=0
        Number of items added to each training batch, drawn uniformly from all items.

    Notes
    -----
    The softmax over all items is estimated from the items of the batch, where the weight of each is
    divided by its probability of being in the batch. Subtracting the logarithm of that probability
    from the logits is the correction of Yi et al., "Sampling-Bias-Corrected Neural Modeling for
    Large Corpus Item Recommendations" (2019). Adding uniformly drawn items is the idea of Yang et
    al., "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations" (2020).
    Each item occurs once in a batch, so that no item is its own negative.
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
        """Return the length of the longest padded list of each pair, or None."""
        sides = [
            (self.user.padded_lengths(pairs.users), pairs.user_rows),
            (self.item.padded_lengths(pairs.items), pairs.item_rows),
        ]
        lengths = [lengths[rows] for lengths, rows in sides if lengths is not None]
        return torch.stack(lengths).amax(0) if lengths else None

    def forward(self, pairs):
        """Return the products of pairs, or the terms of a softmax over the batch's items.

        Parameters
        ----------
        pairs : PairFrame
            Encoded users and items, and the rows of each pair.

        Returns
        -------
        torch.Tensor of shape (n_pairs, 1, 1) or (n_pairs, 1, 2)
            The product; or the logit of the pair's item, and the logarithm of the sum of the
            exponentials of the other items' logits.
        """
        present_users, user_index = pairs.user_rows.unique(return_inverse=True)
        users = self._embed(self.user, pairs.users.take(present_users))
        if self.popularity is None:
            present, item_index = pairs.item_rows.unique(return_inverse=True)
            items = self._embed(self.item, pairs.items.take(present))
            product = select_rows(users, user_index) * select_rows(items, item_index)
            product = product.sum(1) / self.temperature
            return (product + self.bias)[:, None, None]
        n_pairs, n_items = len(pairs), len(self.popularity)
        rows, n_negatives = pairs.item_rows, self.n_negatives if self.training else 0
        if n_negatives:
            negatives = torch.randint(n_items, (n_negatives,)).to(rows.device)
            rows = torch.cat([rows, negatives])
        present, index = rows.unique(return_inverse=True)
        items = self._embed(self.item, pairs.items.take(present))
        with torch.autocast(users.device.type, enabled=False):
            logits = users @ items.T / self.temperature
        # The pair's item among the logits of all users and items.
        own = user_index * len(present) + index[:n_pairs]
        absent = self.popularity[present] * self._log_absent(n_pairs)
        if n_negatives:
            absent = absent + n_negatives * torch.log1p(torch.tensor(-1.0 / max(n_items, 2)))
        corrected = logits - torch.log(-torch.expm1(absent))
        others = log_sum_of_others(corrected, user_index, own)
        return torch.stack([select_rows(logits.flatten(), own), others], dim=1)[:, None, :]

    def _log_absent(self, n_pairs):
        """Return the log-probability that an item is not in a batch, divided by its popularity.

        Batches are drawn without replacement: an item with n of N rows is not in a batch of B rows
        with a probability of about ``(1 - B / N) ** n``.
        """
        fraction = min(n_pairs / self.n_rows, 1 - 1e-6)
        return self.n_rows * math.log1p(-fraction)

    def _embed(self, tower, frame):
        return self.dropout(embed(tower, frame, self.normalized))


def log_sum_of_others(logits, user_index, own):
    """Return the log-sum-exp of a user's logits without that of one item, for each pair.

    The exponentials of a user are summed once, however many pairs the user has, in double
    precision, from which the own one can be subtracted.

    Parameters
    ----------
    logits : torch.Tensor of shape (n_users, n_items)
        Logits of the items for each user.
    user_index : torch.Tensor of int64, shape (n_pairs,)
        User of each pair.
    own : torch.Tensor of int64, shape (n_pairs,)
        Position of the pair among the flattened logits.

    Returns
    -------
    torch.Tensor of shape (n_pairs,)
        Far below any logit where there is no other item.

    Examples
    --------
    >>> log_sum_of_others(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([2])).exp()
    tensor([2.])
    """
    highest = logits.detach().amax(1, keepdim=True)
    weights = (logits - highest).exp()
    totals = select_rows(weights.sum(1, dtype=torch.float64), user_index)
    others = totals - select_rows(weights.flatten(), own)
    # Without another item, the gradient of a logarithm of 0 would not be finite.
    logarithm = others.clamp(min=1e-300).log().to(logits.dtype)
    return logarithm + highest[user_index, 0]
