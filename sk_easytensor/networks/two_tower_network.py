"""Networks of embeddings: the outputs of a tower, and two towers that are trained on pairs."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from sk_easytensor.tensors import select_rows

__all__ = [
    "InBatchSoftmax",
    "TwoTowerNetwork",
    "as_embeddings",
    "embed",
    "embed_with_aggregates",
]


SMALLEST_SUM = 1e-300
"""Least sum of exponentials of other items."""


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
    learned_temperature : bool, default=False
        Whether the divisor is trained, from `temperature` on.
    dropout : float, default=0.0
        Dropout probability of the components of embeddings.
    popularity : torch.Tensor of float32, shape (n_items,), optional
        Probability of each item in a training pair. If it is passed, the outputs are logits of a
        softmax over the items of a batch; by default there is one output for each pair.
    n_rows : int, default=1_000_000
        Number of training pairs.
    n_negatives : int or "all", default=0
        Number of items added to each training batch, drawn uniformly from all items; ``"all"`` for
        a softmax over all items, in training and in evaluation.

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
        learned_temperature=False,
        dropout=0.0,
        popularity=None,
        n_rows=1_000_000,
        n_negatives=0,
    ):
        super().__init__()
        self.user = user
        self.item = item
        self.normalized = normalized
        self.initial_temperature = temperature
        # Weight decay draws the temperature to the one it starts from.
        self.log_temperature = nn.Parameter(torch.zeros(())) if learned_temperature else None
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("popularity", popularity)
        self.n_rows = n_rows
        self.n_negatives = n_negatives
        if popularity is None:
            self.bias = nn.Parameter(torch.zeros(()))

    @property
    def temperature(self):
        """Divisor of products, a number or a tensor."""
        if self.log_temperature is None:
            return self.initial_temperature
        return self.initial_temperature * self.log_temperature.exp()

    @property
    def final_temperature(self):
        """Divisor of products after training, a float."""
        return float(torch.as_tensor(self.temperature).detach())

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
        items, index, correction = self._candidates(pairs)
        with torch.autocast(users.device.type, enabled=False):
            terms = InBatchSoftmax.apply(
                users / self.temperature, items, correction.to(users.dtype), user_index, index
            )
        return torch.stack(terms, dim=1)[:, None, :]

    def _candidates(self, pairs):
        """Return the embeddings of the items of the softmax.

        Parameters
        ----------
        pairs : PairFrame
            Pairs of a batch.

        Returns
        -------
        items : torch.Tensor of shape (n_candidates, embedding_dim)
            Embeddings.
        index : torch.Tensor of int64, shape (n_pairs,)
            Candidate of each pair.
        correction : torch.Tensor of shape (n_candidates,)
            Logarithm of the probability that an item is a candidate.
        """
        if self.n_negatives == "all":
            items = self._embed(self.item, pairs.items)
            return items, pairs.item_rows, items.new_zeros(len(items))
        n_pairs, n_items = len(pairs), len(self.popularity)
        rows, n_negatives = pairs.item_rows, self.n_negatives if self.training else 0
        if n_negatives:
            negatives = torch.randint(n_items, (n_negatives,)).to(rows.device)
            rows = torch.cat([rows, negatives])
        present, index = rows.unique(return_inverse=True)
        absent = self.popularity[present] * self._log_absent(n_pairs)
        if n_negatives:
            absent = absent + n_negatives * torch.log1p(torch.tensor(-1.0 / max(n_items, 2)))
        items = self._embed(self.item, pairs.items.take(present))
        return items, index[:n_pairs], torch.log(-torch.expm1(absent))

    def _log_absent(self, n_pairs):
        """Return the log-probability that an item is not in a batch, divided by its popularity.

        Batches are drawn without replacement: an item with n of N rows is not in a batch of B rows
        with a probability of about ``(1 - B / N) ** n``.
        """
        fraction = min(n_pairs / self.n_rows, 1 - 1e-6)
        return self.n_rows * math.log1p(-fraction)

    def _embed(self, tower, frame):
        return self.dropout(embed(tower, frame, self.normalized))


class InBatchSoftmax(torch.autograd.Function):
    """Terms of a softmax over the items of a batch, for each pair of a user and an item.

    ``apply(users, items, correction, user_index, item_index)`` returns, for each pair, the logit of
    its item and the log-sum-exp of the corrected logits of the user's other items.

    Notes
    -----
    The exponentials of a user are summed once, however many pairs the user has: those of the items
    of no pair in single precision, and those of its pairs in double precision, from which the own
    one can be subtracted. The matrix of users and items is written
    once in the forward and once in the backward pass: the operators of torch would make eight
    matrices of its size, which takes most of the time of a step.

    Examples
    --------
    >>> users, items = torch.zeros(1, 2), torch.zeros(3, 2)
    >>> index = torch.tensor([0])
    >>> logit, others = InBatchSoftmax.apply(users, items, torch.zeros(3), index, index + 2)
    >>> logit, others.exp()
    (tensor([0.]), tensor([2.]))
    """

    @staticmethod
    def forward(ctx, users, items, correction, user_index, item_index):
        """Return the logit and the log-sum-exp of each pair, two tensors of shape (n_pairs,).

        Parameters
        ----------
        ctx : object
            Keeps what the gradient needs.
        users : torch.Tensor of shape (n_users, size)
            Embeddings of the users of the batch, divided by the temperature.
        items : torch.Tensor of shape (n_items, size)
            Embeddings of the items of the batch.
        correction : torch.Tensor of shape (n_items,)
            Number that is subtracted from the logits of an item where it is another user's.
        user_index, item_index : torch.Tensor of int64, shape (n_pairs,)
            User and item of each pair.
        """
        columns = [users, torch.ones_like(users[:, :1])]
        corrected = [items, -correction[:, None]]
        weights = torch.cat(columns, dim=1) @ torch.cat(corrected, dim=1).T
        own = user_index * len(items) + item_index
        distinct, inverse = own.unique(return_inverse=True)
        own_users = distinct // len(items)
        logits = weights.view(-1).index_select(0, own) + correction.index_select(0, item_index)
        highest = weights.amax(1, keepdim=True)
        weights.sub_(highest).exp_()
        # Sums of the items of no pair, to which the user's other pairs are added.
        own_weights = weights.view(-1).index_select(0, distinct).double()
        weights.view(-1).index_fill_(0, distinct, 0.0)
        sums = weights.sum(1).double().index_add(0, own_users, own_weights)
        others = sums.index_select(0, user_index) - own_weights.index_select(0, inverse)
        ctx.save_for_backward(
            users, items, weights, others, user_index, distinct, inverse, own_users, own_weights
        )
        # Without another item, the logarithm of 0 would not be finite.
        logarithm = others.clamp(min=SMALLEST_SUM).log().to(logits.dtype)
        return logits, logarithm + highest[:, 0].index_select(0, user_index)

    @staticmethod
    def backward(ctx, logit_gradient, others_gradient):
        """Return the gradients of users and items, and None for the other arguments."""
        users, items, weights, others, user_index, distinct, inverse, own_users, own_weights = (
            ctx.saved_tensors
        )
        rate = (others_gradient / others.clamp(min=SMALLEST_SUM)) * (others > SMALLEST_SUM)
        scale = rate.new_zeros(len(users)).index_add(0, user_index, rate)
        # The own item has its own gradient, and none of the sum. The difference is taken in double
        # precision, because it is small where the own item has nearly all of the weight.
        own_rate, own_gradient = (
            rate.new_zeros(len(distinct)).index_add(0, inverse, values.double())
            for values in (rate, logit_gradient)
        )
        values = own_weights * (scale.index_select(0, own_users) - own_rate) + own_gradient
        # In place, after which torch refuses to use the graph again.
        gradient = weights.mul_(scale[:, None].to(weights.dtype))
        gradient.view(-1).index_copy_(0, distinct, values.to(gradient.dtype))
        return gradient @ items, gradient.T @ users, None, None, None
