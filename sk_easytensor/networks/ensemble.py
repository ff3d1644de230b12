"""Ensemble of networks that read the same encoded rows, such as those of several folds."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = [
    "NetworkEnsemble",
    "join_networks",
]


class NetworkEnsemble(nn.Module):
    """Networks of the same structure, whose predictions are averaged.

    It has the methods of :class:`~sk_easytensor.networks.block_network.BlockNetwork` that
    estimators call after training.

    Parameters
    ----------
    networks : list of BlockNetwork
        Trained networks. They may differ in whether they have trees and a linear model.

    Notes
    -----
    The average is that of the head: of probabilities for classes, of means for numbers. Breiman,
    "Bagging Predictors" (1996).
    """

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.names = networks[0].names

    @property
    def blocks(self):
        """Block modules of the first network."""
        return self.networks[0].blocks

    @property
    def head(self):
        """Head module of the first network."""
        return self.networks[0].head

    @property
    def representation_features(self):
        """Number of features of :meth:`represent`."""
        return sum(network.representation_features for network in self.networks)

    def average_members(self, frame, head):
        """Return the averaged outputs of the networks, of shape (batch, 1, out_features)."""
        outputs = [network.average_members(frame, head) for network in self.networks]
        return head.average_members(torch.cat(outputs, dim=1))

    def readers(self):
        """Return a callable for the encoding of each block, for :meth:`average_read`."""
        readers = [network.readers() for network in self.networks]
        return {name: JoinedReader([each[name] for each in readers]) for name in self.names}

    def average_read(self, read, head):
        """Return :meth:`average_members` from the outputs of :meth:`readers`."""
        widths = [network.reader_widths() for network in self.networks]
        parts = {
            name: read[name].split([each[name] for each in widths], dim=1) for name in self.names
        }
        outputs = [
            network.average_read({name: parts[name][index] for name in self.names}, head)
            for index, network in enumerate(self.networks)
        ]
        return head.average_members(torch.cat(outputs, dim=1))

    def represent(self, frame):
        """Return the concatenated representations of the networks.

        Returns
        -------
        torch.Tensor of shape (batch, representation_features)
        """
        return torch.cat([network.represent(frame) for network in self.networks], dim=1)

    def forward_all(self, frame, head):
        """Return :meth:`average_members` and :meth:`represent` of encoded rows, as a tuple."""
        pairs = [network.forward_all(frame, head) for network in self.networks]
        outputs, representations = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return head.average_members(outputs), representations

    def padded_lengths(self, frame):
        """Return the length of the longest padded list of each row, or None."""
        return self.networks[0].padded_lengths(frame)

    def effects(self, name):
        """Return the effects of each vector of a block's embedding table in all networks.

        Returns
        -------
        ndarray of float64, shape (n_vectors, n)
        """
        return np.concatenate([network.effects(name) for network in self.networks], axis=1)


class JoinedReader:
    """Callable that concatenates what the readers of a block in several networks return.

    Parameters
    ----------
    readers : list of callable
        Reader of the block in each network.
    """

    def __init__(self, readers):
        self.readers = readers
        self.padded_lengths = readers[0].padded_lengths

    def __call__(self, **encoding):
        """Return the outputs of all readers, of shape (batch, total width)."""
        return torch.cat([reader(**encoding) for reader in self.readers], dim=1)


def join_networks(networks):
    """Return the only network of a list, or the :class:`NetworkEnsemble` of several."""
    return networks[0] if len(networks) == 1 else NetworkEnsemble(networks)
