"""The whole network: block modules side by side, a trunk and a head."""

from __future__ import annotations

import torch
from torch import nn

from sk_easytensor.ragged import Ragged

__all__ = ["WIDE_RATE", "BlockNetwork", "make_network", "padded_lengths"]

WIDE_RATE = 0.4
"""Learning rate of what goes past the trunk, over that of the rest: sparse features overfit."""


class BlockNetwork(nn.Module):
    """Blocks, then trunk, then head; wide blocks go past the trunk.

    Parameters
    ----------
    blocks : dict of {str: torch.nn.Module}
        Modules made by the blocks. Those with a true attribute ``wide`` are joined to the head
        by a linear layer; the others go through the trunk.
    trunk : torch.nn.Module
        Made by the trunk for the blocks that are not wide.
    head : torch.nn.Module or None
        Made by the head for the trunk; None if the network is only asked to :meth:`represent`.
    wide : torch.nn.Linear or None
        From the wide blocks to the outputs.

    Notes
    -----
    Joining sparse features past the trunk is the idea of Cheng et al., "Wide & Deep Learning for
    Recommender Systems" (2016): a trunk memorises rare ones.
    """

    def __init__(self, blocks, trunk, head, wide):
        super().__init__()
        # Lists rather than dictionaries, because torch refuses some names that users choose.
        self.names = list(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.trunk = trunk
        self.head = head
        self.wide = wide

    @property
    def representation_features(self):
        """Width of :meth:`represent`."""
        past = [block.out_features for block in self.blocks if is_wide(block)]
        return self.trunk.out_features + sum(past)

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
        return self.join(self._read(frame))

    def join(self, parts):
        """Return the outputs, given what each block's module gave.

        Parameters
        ----------
        parts : dict of {str: torch.Tensor of shape (batch, out_features of the block)}

        Returns
        -------
        torch.Tensor of shape (batch, members, out_features)
        """
        hidden, wide = self._hidden(parts)
        outputs = self.head(hidden)
        return outputs if wide is None else outputs + self.wide(wide)[:, None, :]

    def represent(self, frame):
        """Return the trunk's output, averaged over members, beside the wide blocks' outputs.

        Returns
        -------
        torch.Tensor of shape (batch, representation_features)
        """
        hidden, wide = self._hidden(self._read(frame))
        hidden = hidden.mean(1)
        return hidden if wide is None else torch.cat([hidden, wide], dim=1)

    def padded_lengths(self, frame):
        """Return how long each row's lists become where they are padded.

        Parameters
        ----------
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        torch.Tensor of int64, shape (n_rows,), or None
            The longest list among the entries of blocks whose modules have a true attribute
            ``padded``; None without any.
        """
        pairs = zip(self.names, self.blocks, strict=True)
        return longest_of(padded_lengths(block, frame[name]) for name, block in pairs)

    def _read(self, frame):
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(**frame[name]) for name, block in pairs}

    def _hidden(self, read):
        parts = {False: [], True: []}
        for name, block in zip(self.names, self.blocks, strict=True):
            parts[is_wide(block)].append(read[name])
        wide = torch.cat(parts[True], dim=1) if parts[True] else None
        deep = torch.cat(parts[False], dim=1) if parts[False] else wide.new_zeros(wide.shape[0], 1)
        hidden = self.trunk(deep)
        return hidden[:, None, :] if hidden.ndim == 2 else hidden, wide


def is_wide(module):
    """Tell whether a block's module goes past the trunk."""
    return getattr(module, "wide", False)


def padded_lengths(module, encoding):
    """Return how long each row's lists become where a block's module pads them.

    Parameters
    ----------
    module : torch.nn.Module
        Made by a block. One that pads some entries only has a method ``padded_lengths(encoding)``.
    encoding : dict of {str: torch.Tensor or Ragged}
        The block's encoding.

    Returns
    -------
    torch.Tensor of int64, shape (n_rows,), or None
    """
    if not getattr(module, "padded", False):
        return None
    if hasattr(module, "padded_lengths"):
        return module.padded_lengths(encoding)
    return longest_of(
        entry.lengths.reshape(len(entry), -1).amax(1)
        for entry in encoding.values()
        if isinstance(entry, Ragged)
    )


def longest_of(lengths):
    """Return the largest of several lengths of each row, or None where there are none."""
    found = [each for each in lengths if each is not None]
    return torch.stack(found).amax(0) if found else None


def make_network(blocks, trunk, head=None):
    """Build the network of fitted blocks.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.
    trunk : object
        With ``make_module(in_features)``.
    head : Head, optional
        For the target at hand. Without one the network ends in its representation.

    Returns
    -------
    BlockNetwork
    """
    modules = {name: block.make_module() for name, block in blocks.items()}
    widths = {False: [], True: []}
    for module in modules.values():
        widths[is_wide(module)].append(module.out_features)
    # Without any deep block the trunk reads a constant: it is then a bias.
    deep, wide_features = widths[False] or [1], sum(widths[True])
    if hasattr(trunk, "make_module_for"):
        trunk_module = trunk.make_module_for(deep)
    else:
        trunk_module = trunk.make_module(max(sum(deep), 1))
    members = getattr(trunk_module, "members", 1)
    if head is None:
        return BlockNetwork(modules, trunk_module, None, None)
    if head.of_tower:
        for module in nn.ModuleList(modules.values()).modules():
            if hasattr(module, "for_tower"):
                module.for_tower()
    head_module = head.make_module(trunk_module.out_features, members)
    wide = None
    if wide_features:
        wide = nn.Linear(wide_features, head.out_features, bias=False)
        wide.learning_rate_scale = WIDE_RATE
        if head.begins_at_zero:
            nn.init.zeros_(wide.weight)
    return BlockNetwork(modules, trunk_module, head_module, wide)
