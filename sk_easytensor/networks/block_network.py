"""The whole network: block modules side by side, a trunk and a head."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BlockNetwork", "make_network"]


class BlockNetwork(nn.Module):
    """Blocks, concatenated, then trunk, then head.

    Parameters
    ----------
    blocks : dict of {str: torch.nn.Module}
        Modules made by the blocks.
    trunk, head : torch.nn.Module
        Made by the trunk and the head.
    """

    def __init__(self, blocks, trunk, head):
        super().__init__()
        # ModuleDict refuses names with dots and names of its own methods.
        self.names = list(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.trunk = trunk
        self.head = head

    def forward(self, frame):
        """Return the outputs of every member.

        Parameters
        ----------
        frame : TensorFrame or dict of {str: dict of {str: torch.Tensor or Ragged}}
            Encoded rows.

        Returns
        -------
        torch.Tensor of shape (batch, members, out_features)
        """
        return self.head(self.represent(frame))

    def represent(self, frame):
        """Return the trunk's output, of shape (batch, members, width)."""
        parts = [
            block(**frame[name]) for name, block in zip(self.names, self.blocks, strict=True)
        ]
        hidden = self.trunk(torch.cat(parts, dim=1))
        return hidden[:, None, :] if hidden.ndim == 2 else hidden


def make_network(blocks, trunk, head):
    """Build the network of fitted blocks.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.
    trunk : object
        With ``make_module(in_features)``.
    head : Head
        For the target at hand.

    Returns
    -------
    BlockNetwork
    """
    modules = {name: block.make_module() for name, block in blocks.items()}
    trunk_module = trunk.make_module(sum(module.out_features for module in modules.values()))
    members = getattr(trunk_module, "members", 1)
    return BlockNetwork(modules, trunk_module, head.make_module(trunk_module.out_features, members))
