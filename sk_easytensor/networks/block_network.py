"""The whole network: block modules side by side, a trunk and a head."""

from __future__ import annotations

import math
from copy import copy, deepcopy

import torch
from torch import nn
from torch.nn import functional

from sk_easytensor.networks.block_module import BlockModule, check_module, longest_of
from sk_easytensor.networks.heads import MemberLinear

__all__ = [
    "WIDE_RATE",
    "BlockNetwork",
    "copy_network",
    "make_network",
]


WIDE_RATE = 0.4
"""Learning rate of what goes past the trunk, over that of the rest: sparse features overfit."""


FIRST_GATE = math.log(math.e - 1)
"""What the parameters of gates are counted from, so that these are 1 at first."""


class BlockNetwork(nn.Module):
    """Blocks, then trunk, then head; wide blocks go past the trunk.

    Parameters
    ----------
    blocks : dict of {str: BlockModule}
        Modules made by the blocks. Those with a true attribute ``wide`` are joined to the head
        by a linear layer; those with a true attribute ``is_added`` are multiplied by gates, which
        are positive, and added to the outputs; one with a true attribute ``is_offset`` is added to
        these and to the outputs of the trees; the others go through the trunk.
    trunk : torch.nn.Module
        Made by the trunk for the blocks that are not wide.
    head : torch.nn.Module or None
        Made by the head for the trunk; None if the network is only asked to :meth:`represent`.
    wide : torch.nn.Linear or None
        From the wide blocks to the outputs.
    gate : torch.nn.Module or None
        From the trunk to the parameters of the gates of blocks that are added.

    Attributes
    ----------
    trees : TreesModule or None
        Stand beside the network once it is trained: it is trained and evaluated without them.
    offset_name : str or None
        Name of the block whose output is added to the outputs, if there is one.
    added_names : list of str
        Names of the blocks whose outputs are added to those of the network, with gates.

    Notes
    -----
    Joining sparse features past the trunk is the idea of Cheng et al., "Wide & Deep Learning for
    Recommender Systems" (2016): a trunk memorises rare ones.
    """

    def __init__(self, blocks, trunk, head, wide, gate=None):
        super().__init__()
        # Lists rather than dictionaries, because torch refuses some names that users choose.
        self.names = list(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.trunk = trunk
        self.head = head
        self.wide = wide
        self.gate = gate
        self.trees = None
        offsets = [name for name, block in blocks.items() if block.is_offset]
        self.offset_name = offsets[0] if offsets else None
        self.added_names = [name for name, block in blocks.items() if block.is_added]

    @property
    def representation_features(self):
        """Width of :meth:`represent`."""
        past = [block.out_features for block in self.blocks if block.wide]
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
        return self.join(self.read(frame))

    def join(self, parts):
        """Return the outputs, given what each block's module gave.

        Parameters
        ----------
        parts : dict of {str: torch.Tensor of shape (batch, out_features of the block)}

        Returns
        -------
        torch.Tensor of shape (batch, members, out_features)
        """
        added, offset = self._added_of(parts), self._offset_of(parts)
        return self._outputs(*self._hidden(parts), added, offset)

    def read(self, frame):
        """Return what each block's module gives of encoded rows, for :meth:`join`.

        Returns
        -------
        dict of {str: torch.Tensor}
        """
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(**frame[name]) for name, block in pairs}

    def average_members(self, frame, head):
        """Return the outputs of all members, and of the trees, as one.

        Parameters
        ----------
        frame : TensorFrame or dict of {str: dict of {str: torch.Tensor or Ragged}}
            Encoded rows.
        head : Head
            Says how.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        shown = self.tree_features(frame) if self._with_trees else None
        return self._joined(head, shown, self.offset(frame), lambda: self(frame))

    def readers(self):
        """Return what reads each block's encoding, by the block's name, for :meth:`combine_read`.

        With trees beside the network, what the block shows them follows its module's output.
        """
        pairs = zip(self.names, self.blocks, strict=True)
        if not self._with_trees:
            return dict(pairs)
        return {name: Showing(block) if block.has_tree_inputs else block for name, block in pairs}

    def average_read(self, read, head):
        """Return what :meth:`average_members` does, given what each of :meth:`readers` gave."""
        shown, parts = None, dict(read)
        if self._with_trees:
            columns = []
            for name, block in zip(self.names, self.blocks, strict=True):
                if block.has_tree_inputs:
                    parts[name], each = read[name].tensor_split([block.out_features], dim=1)
                    columns.append(each)
            # They came beside floats, which hold them exactly.
            shown = torch.cat(columns, dim=1).int()
        return self._joined(head, shown, self._offset_of(parts), lambda: self.join(parts))

    def represent(self, frame):
        """Return the trunk's output, averaged over members, beside the wide blocks' outputs.

        Returns
        -------
        torch.Tensor of shape (batch, representation_features)
        """
        return self._represented(*self._hidden(self.read(frame)))

    def forward_all(self, frame, head):
        """Return :meth:`average_members` and :meth:`represent` of the same rows, as a tuple."""
        shown = self.tree_features(frame) if self._with_trees else None
        parts = self.read(frame)
        hidden, wide = self._hidden(parts)
        added, offset = self._added_of(parts), self._offset_of(parts)
        combined = self._joined(
            head, shown, offset, lambda: self._outputs(hidden, wide, added, offset)
        )
        return combined, self._represented(hidden, wide)

    def offset(self, frame):
        """Return what is added to the outputs for encoded rows.

        Returns
        -------
        torch.Tensor of shape (batch, 1, 1), or None
            On the scale of the outputs.
        """
        if self.offset_name is None:
            return None
        module = self.blocks[self.names.index(self.offset_name)]
        return module(**frame[self.offset_name])[:, None, :]

    def tree_outputs(self, trees, frame):
        """Return the outputs of trees for encoded rows, offsets included.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        return trees.outputs(self.tree_features(frame), self.offset(frame))

    def tree_features(self, frame):
        """Return what the blocks show trees of encoded rows.

        Returns
        -------
        torch.Tensor of int32, shape (batch, len(tree_feature_codes))
        """
        pairs = zip(self.names, self.blocks, strict=True)
        found = [b.tree_inputs(**frame[name]) for name, b in pairs if b.has_tree_inputs]
        return torch.cat(found, dim=1)

    @property
    def tree_feature_names(self):
        """Names of the blocks that show trees anything."""
        pairs = zip(self.names, self.blocks, strict=True)
        return [name for name, block in pairs if block.has_tree_inputs]

    @property
    def tree_feature_signs(self):
        """For each column of :meth:`shown` its monotonic constraint: 1, -1 or 0 for none."""
        found = []
        for block in self.blocks:
            if block.has_tree_inputs:
                signs = block.tree_signs
                found += [0] * len(block.tree_codes) if signs is None else signs
        return found

    @property
    def tree_feature_codes(self):
        """For each column of :meth:`shown` how many codes there are, and if they are in order."""
        showing = [block for block in self.blocks if block.has_tree_inputs]
        return [codes for block in showing for codes in block.tree_codes]

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
        return longest_of(block.padded_lengths(frame[name]) for name, block in pairs)

    def effects(self, name):
        """Return what each vector of a block's embedding table does to the network.

        Parameters
        ----------
        name : str
            Of a block with a single embedding table, and one column.

        Returns
        -------
        ndarray of float64, shape (n_vectors, n)
            What a wide block's vectors add to the outputs; for other blocks, the vectors.
        """
        module = self.blocks[self.names.index(name)]
        vectors = module.table.weight.detach()
        if module.wide and self.wide is not None:
            before = [b for b in self.blocks[: self.names.index(name)] if b.wide]
            first = sum(block.out_features for block in before)
            weight = self.wide.weight.detach()[:, first : first + module.out_features]
            vectors = vectors @ weight.T
        return vectors.double().cpu().numpy()

    @property
    def _with_trees(self):
        return self.trees is not None and not self.training

    def _offset_of(self, parts):
        return None if self.offset_name is None else parts[self.offset_name][:, None, :]

    def _added_of(self, parts):
        """Return what gates multiply, of shape (batch, n), or None."""
        if not self.added_names:
            return None
        return torch.cat([parts[name] for name in self.added_names], dim=1)

    def gated(self, hidden, added):
        """Return what is added to the outputs of members, given what gates multiply.

        Gates are positive: the sum rises with each number in `added`.

        Parameters
        ----------
        hidden : torch.Tensor of shape (batch, members, n_units)
            Outputs of the trunk.
        added : torch.Tensor of shape (batch, n)
            Outputs of the blocks that are added.

        Returns
        -------
        torch.Tensor of shape (batch, members, 1)
        """
        gates = functional.softplus(self.gate(hidden) + FIRST_GATE)
        return (gates * added[:, None, :]).sum(2, keepdim=True)

    def _outputs(self, hidden, wide, added, offset):
        outputs = self.head(hidden)
        outputs = outputs if wide is None else outputs + self.wide(wide)[:, None, :]
        outputs = outputs if added is None else outputs + self.gated(hidden, added)
        return outputs if offset is None else outputs + offset

    def _joined(self, head, shown, offset, outputs):
        """Return outputs as one, with the trees' for what is shown to them, if anything is."""
        if shown is None:
            return head.average_members(outputs())
        # A network that counts for nothing need not be asked.
        combined = head.average_members(outputs()) if self.trees.needs_network else None
        return head.normalize(self.trees.join(combined, shown, offset))

    def _represented(self, hidden, wide):
        hidden = hidden.mean(1)
        return hidden if wide is None else torch.cat([hidden, wide], dim=1)

    def _hidden(self, read):
        parts = {False: [], True: []}
        for name, block in zip(self.names, self.blocks, strict=True):
            if name != self.offset_name and name not in self.added_names:
                parts[block.wide].append(read[name])
        wide = torch.cat(parts[True], dim=1) if parts[True] else None
        if parts[False]:
            deep = torch.cat(parts[False], dim=1)
        else:
            some = next(iter(read.values()))
            deep = some.new_zeros(some.shape[0], 1)
        hidden = self.trunk(deep)
        return hidden[:, None, :] if hidden.ndim == 2 else hidden, wide


class Showing:
    """Reads a block's encoding as its module does, and puts what it shows trees behind.

    Parameters
    ----------
    module : BlockModule
        Made by the block.
    """

    def __init__(self, module):
        self.module = module
        self.padded_lengths = module.padded_lengths

    def __call__(self, **encoding):
        return torch.cat([self.module(**encoding), self.module.tree_inputs(**encoding)], dim=1)


def copy_network(network):
    """Return a copy of a network whose weights can be trained; it shares the grown trees.

    Parameters
    ----------
    network : BlockNetwork
        Stays as it is.

    Returns
    -------
    BlockNetwork
    """
    trees, network.trees = network.trees, None
    try:
        copied = deepcopy(network)
    finally:
        network.trees = trees
    # Tables of trees may be large, and nothing but their weight ever changes.
    copied.trees = copy(trees)
    return copied


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
    modules = {
        name: check_module(block.make_module(), f"block {name!r} ({type(block).__name__})")
        for name, block in blocks.items()
    }
    widths = {False: [], True: []}
    for module in modules.values():
        if module.is_offset:
            module.scale_for(head)
        elif not module.is_added:
            widths[module.wide].append(module.out_features)
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
            if isinstance(module, BlockModule):
                module.configure_for_embedding()
    head_module = head.make_module(trunk_module.out_features, members)
    wide = None
    if wide_features:
        wide = nn.Linear(wide_features, head.out_features, bias=False)
        wide.learning_rate_scale = WIDE_RATE
        if head.zero_init:
            nn.init.zeros_(wide.weight)
    gate = None
    n_added = sum(module.out_features for module in modules.values() if module.is_added)
    if n_added:
        gate = MemberLinear(members, trunk_module.out_features, n_added)
        nn.init.zeros_(gate.weight)
    return BlockNetwork(modules, trunk_module, head_module, wide, gate)
