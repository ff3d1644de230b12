"""Trunks: the network between the concatenated block outputs and the head.

A trunk is a clonable parameter object whose ``make_module(in_features)`` returns a
:class:`torch.nn.Module` with an attribute ``out_features``. A trunk that treats the outputs of each
block separately also has ``make_module_for(widths)``, with the widths of the blocks. The module
maps ``(batch, in_features)`` to ``(batch, out_features)``. The module of an ensemble has an
attribute ``members`` and maps to ``(batch, members, out_features)``.

A module that begins with a linear layer may define ``first_layer()``, which returns its weight and
bias, and ``after_first(hidden)``, which computes the rest. Inspection then changes one column
without computing the products of all others again.
"""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator
from torch import nn

from sk_easytensor._utils.validation import ParametersMixin, check_number

__all__ = [
    "MLP",
    "Sum",
    "TabM",
]


class MLP(ParametersMixin, BaseEstimator):
    """Multi-layer perceptron.

    Parameters
    ----------
    layers : int, default=2
        Number of hidden layers.
    width : int, default=256
        Number of units of each layer.
    dropout : float, default=0.1
        Dropout probability after each layer.

    Examples
    --------
    >>> import torch
    >>> module = MLP(layers=1, width=16).make_module(in_features=4)
    >>> module(torch.zeros(3, 4)).shape
    torch.Size([3, 16])
    """

    def __init__(self, *, layers=2, width=256, dropout=0.1):
        self.layers = layers
        self.width = width
        self.dropout = dropout

    def check_parameters(self):
        """Raise ``ValueError`` that names the first invalid parameter and what is accepted."""
        _check_layers(self)

    def make_module(self, in_features):
        """Return a new module with `in_features` inputs."""
        layers = []
        for _ in range(self.layers):
            layers += [nn.Linear(in_features, self.width), nn.ReLU(), FastDropout(self.dropout)]
            in_features = self.width
        module = MLPModule(*layers)
        module.out_features = in_features
        return module


class MLPModule(nn.Sequential):
    """Layers of :class:`MLP`."""

    def first_layer(self):
        """Return weight and bias of the first linear layer, or None without layers."""
        return (self[0].weight, self[0].bias) if len(self) else None

    def after_first(self, hidden):
        """Return the outputs from those of the first layer, of shape (batch, units)."""
        _, *rest = self
        for layer in rest:
            hidden = layer(hidden)
        return hidden


class TabM(ParametersMixin, BaseEstimator):
    """Parameter-efficient ensemble of multi-layer perceptrons.

    Parameters
    ----------
    members : int, default=8
        Number of perceptrons of the ensemble. They share their weight matrices; each has its own
        scaling vector of the inputs and its own head.
    layers : int, default=2
        Number of hidden layers.
    width : int, default=128
        Number of units of each layer.
    dropout : float, default=0.1
        Dropout probability after each layer.

    Notes
    -----
    The variant TabM-mini of Gorishniy, Kotelnikov and Babenko, "TabM: Advancing Tabular Deep
    Learning with Parameter-Efficient Ensembling" (2025). Each member is trained on its own loss;
    predictions are averaged. Training takes little more time than that of one perceptron.

    Examples
    --------
    >>> import torch
    >>> module = TabM(members=4, width=16).make_module(in_features=3)
    >>> module(torch.zeros(5, 3)).shape
    torch.Size([5, 4, 16])
    """

    def __init__(self, *, members=8, layers=2, width=128, dropout=0.1):
        self.members = members
        self.layers = layers
        self.width = width
        self.dropout = dropout

    def check_parameters(self):
        """Raise ``ValueError`` that names the first invalid parameter and what is accepted."""
        check_number("TabM", "members", self.members, low=1, integer=True)
        _check_layers(self)

    def make_module(self, in_features):
        """Return a new module with `in_features` inputs."""
        return TabMModule(self, in_features)


class TabMModule(nn.Module):
    """Ensemble with members in the second dimension; see :class:`TabM`."""

    def __init__(self, trunk, in_features):
        super().__init__()
        self.members = trunk.members
        # Random signs, so that the members differ from the first step on.
        signs = torch.randint(0, 2, (trunk.members, in_features)) * 2.0 - 1.0
        self.scaling = nn.Parameter(signs)
        mlp = MLP(layers=trunk.layers, width=trunk.width, dropout=trunk.dropout)
        self.shared = mlp.make_module(in_features)
        self.out_features = self.shared.out_features

    def forward(self, features):
        """Map (batch, in_features) to (batch, members, out_features)."""
        if len(self.shared) == 0:
            return features[:, None, :] * self.scaling
        return self.after_first(nn.functional.linear(features, *self.first_layer()))

    def first_layer(self):
        """Return weight and bias of the first layer of all members, or None without layers."""
        if len(self.shared) == 0:
            return None
        first = self.shared[0]
        # Scaling the weights for each member is equivalent to scaling its inputs, but needs one
        # product and no copy of the inputs for each member.
        weight = (self.scaling[:, None, :] * first.weight).flatten(0, 1)
        return weight, first.bias.repeat(self.members)

    def after_first(self, hidden):
        """Return the outputs from those of the first layer, of shape (batch, members * units)."""
        hidden = hidden.unflatten(1, (self.members, self.shared[0].out_features))
        return self.shared.after_first(hidden)


class Sum(ParametersMixin, BaseEstimator):
    """Sum of the blocks' outputs, each projected to the same width.

    With a category block for the identifier and other blocks for features this is a factorization
    model, in which the embedding of the identifier describes what the features do not.

    Parameters
    ----------
    width : int, default=64
        Dimension of the sum; outputs of this width are not projected.

    Notes
    -----
    As in Kula, "Metadata Embeddings for User and Item Cold-start Recommendations" (2015).

    Examples
    --------
    >>> import torch
    >>> module = Sum(width=8).make_module_for([8, 3])
    >>> module(torch.zeros(5, 11)).shape
    torch.Size([5, 8])
    """

    def __init__(self, *, width=64):
        self.width = width

    def check_parameters(self):
        """Raise ``ValueError`` that names the first invalid parameter and what is accepted."""
        check_number("Sum", "width", self.width, low=1, integer=True)

    def make_module(self, in_features):
        """Return a new module with `in_features` inputs."""
        return self.make_module_for([in_features])

    def make_module_for(self, widths):
        """Return a new module for the widths of the blocks, in order."""
        return SumModule(widths, self.width)


class SumModule(nn.Module):
    """Project segments of the input and sum them; see :class:`Sum`."""

    def __init__(self, widths, width):
        super().__init__()
        self.widths = list(widths)
        self.out_features = width
        self.projections = nn.ModuleList(
            nn.Identity() if size == width else nn.Linear(size, width) for size in widths
        )

    def forward(self, features):
        """Map (batch, in_features) to (batch, out_features)."""
        parts = features.split(self.widths, dim=1)
        pairs = zip(self.projections, parts, strict=True)
        return torch.stack([project(part) for project, part in pairs]).sum(0)


class FastDropout(nn.Module):
    """Dropout with masks from a pool of random numbers.

    On a CPU, drawing random numbers takes longer than computing a narrow layer. A pool of twice the
    needed size is drawn once for `USES` steps, and each step uses a segment of it that begins at a
    random position.

    Parameters
    ----------
    probability : float
        Dropout probability, rounded to a multiple of 1/256.
    """

    USES = 64

    def __init__(self, probability):
        super().__init__()
        self.dropped = round(probability * 256)
        self.pool = None
        self.uses = 0

    def train(self, mode=True):
        """Set training or evaluation mode, and discard the pool."""
        self.pool = None
        return super().train(mode)

    def forward(self, features):
        """In training, set random units to zero and scale up the others."""
        if not self.training or self.dropped == 0:
            return features
        needed = features.numel()
        pool = self.pool
        if pool is None or self.uses == self.USES or len(pool) < 2 * needed:
            pool = self.pool = self._draw(2 * needed, features)
            self.uses = 0
        self.uses += 1
        start = int(torch.randint(len(pool) - needed + 1, ()))
        return features * pool[start : start + needed].view(features.shape)

    def mask_state(self):
        """Return the masks of the next steps, with which an interrupted epoch is resumed."""
        return {"pool": self.pool, "uses": self.uses}

    def load_mask_state(self, state, device):
        """Load the result of :meth:`mask_state`, after the training mode is set."""
        pool = state["pool"]
        self.pool, self.uses = None if pool is None else pool.to(device), state["uses"]

    def _draw(self, size, like):
        words = torch.empty(-(-size // 8), dtype=torch.int64, device=like.device)
        draws = words.random_(-(2**63), None).view(torch.uint8)
        return (draws >= self.dropped).to(like.dtype) * (256 / (256 - self.dropped))


def _check_layers(trunk):
    owner = type(trunk).__name__
    check_number(owner, "layers", trunk.layers, low=0, integer=True)
    check_number(owner, "width", trunk.width, low=1, integer=True)
    check_number(owner, "dropout", trunk.dropout, low=0, high=0.99)
