"""The network of a model: block modules, a trunk and a head."""

from __future__ import annotations

import math
from copy import copy, deepcopy

import torch
from torch import nn
from torch.nn import functional

from sk_easytensor.networks.block_module import BlockModule, check_module, max_lengths
from sk_easytensor.networks.heads import MemberLinear

__all__ = [
    "WIDE_RATE",
    "BlockNetwork",
    "copy_network",
    "make_network",
    "with_linear",
]


WIDE_RATE = 0.4
"""Factor of the learning rate of layers that bypass the trunk, because sparse features overfit."""


GATE_OFFSET = math.log(math.e - 1)
"""Offset of the inputs of gates, so that gates are initialized to 1."""


class BlockNetwork(nn.Module):
    """Network of block modules, trunk and head; wide blocks bypass the trunk.

    Parameters
    ----------
    blocks : dict of {str: BlockModule}
        Modules of the blocks. The outputs of modules with ``wide`` are added to those of the head
        through a linear layer. The outputs of modules with ``is_added`` are multiplied by positive
        gates and added to the outputs of the network. The output of a module with ``is_offset`` is
        added to the outputs of the network and of the trees. The others are inputs of the trunk.
    trunk : torch.nn.Module
        Module whose inputs are the outputs of the blocks that are not wide.
    head : torch.nn.Module or None
        Last layer, whose inputs are the outputs of the trunk; None if only :meth:`represent` is
        used.
    wide : torch.nn.Linear or None
        Linear layer from the wide blocks to the outputs.
    gate : torch.nn.Module or None, default=None
        Layer from the outputs of the trunk to the gates of added blocks.

    Attributes
    ----------
    trees : TreesModule or None
        Boosted trees whose outputs are averaged with those of the network in prediction. The
        network is trained and evaluated without them.
    linear : LinearModule or None
        Linear model of fixed features, whose outputs are averaged with those of network and trees
        in prediction.
    aggregates : torch.nn.ModuleList or None
        For each block the :class:`~sk_easytensor.blocks.aggregates.ListAggregates` that follow the
        embeddings of a tower, of which there may be none.
    offset_name : str or None
        Name of the block whose output is added to the outputs, if there is one.
    added_names : list of str
        Names of the blocks whose outputs are added to those of the network, with gates.

    Notes
    -----
    Sparse features bypass the trunk as in Cheng et al., "Wide & Deep Learning for Recommender
    Systems" (2016), because a trunk overfits rare ones.
    """

    def __init__(self, blocks, trunk, head, wide, gate=None):
        super().__init__()
        # Lists rather than dictionaries, because torch refuses some names of modules.
        self.names = list(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.trunk = trunk
        self.head = head
        self.wide = wide
        self.gate = gate
        self.trees = self.linear = self.aggregates = None
        offsets = [name for name, block in blocks.items() if block.is_offset]
        self.offset_name = offsets[0] if offsets else None
        self.added_names = [name for name, block in blocks.items() if block.is_added]

    @property
    def networks(self):
        """The network alone, in a list, as in an ensemble of several."""
        return [self]

    @property
    def representation_features(self):
        """Number of features of :meth:`represent`."""
        wide = [block.out_features for block in self.blocks if block.wide]
        return self.trunk.out_features + sum(wide)

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
        """Return the outputs of every member from the outputs of the block modules.

        Parameters
        ----------
        parts : dict of {str: torch.Tensor of shape (batch, out_features of the block)}
            Outputs of each block module, from :meth:`read`.

        Returns
        -------
        torch.Tensor of shape (batch, members, out_features)
        """
        added, offset = self._added_of(parts), self._offset_of(parts)
        return self._outputs(*self._hidden(parts), added, offset)

    def read(self, frame):
        """Return the outputs of the block modules, for :meth:`join`.

        Parameters
        ----------
        frame : TensorFrame or dict of {str: dict of {str: torch.Tensor or Ragged}}
            Encoded rows.

        Returns
        -------
        dict of {str: torch.Tensor of shape (batch, out_features of the block)}
        """
        parts = {}
        for name, block in zip(self.names, self.blocks, strict=True):
            parts[name] = part = block(**frame[name])
            if part.ndim != 2 or part.shape[1] != block.out_features:
                raise ValueError(
                    f"block {name!r}: {type(block).__name__} returned shape {tuple(part.shape)}, "
                    f"expected (n_rows, out_features) = (n_rows, {block.out_features})"
                )
        return parts

    def average_members(self, frame, head):
        """Return the average of the outputs of all members, blended with those of other models.

        Parameters
        ----------
        frame : TensorFrame or dict of {str: dict of {str: torch.Tensor or Ragged}}
            Encoded rows.
        head : Head
            Head that averages members.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        features = self.tree_features(frame) if self._uses_trees else None
        linear = self.linear_outputs(self.linear, frame) if self._uses_linear else None
        return self._with_other_outputs(
            head, features, linear, self.offset(frame), lambda: self(frame)
        )

    def readers(self):
        """Return a callable for the encoding of each block, for :meth:`average_read`.

        If the network has trees or a linear model, the callable returns the module's outputs, the
        features of the trees and the block's part of the linear model's outputs in one tensor.

        Returns
        -------
        dict of {str: callable}
            Callables by block name.
        """
        readers = {}
        for name, block in zip(self.names, self.blocks, strict=True):
            tree_inputs = self._uses_trees and block.has_tree_inputs
            linear = self.linear if self._is_read_linearly(name) else None
            others = tree_inputs or linear is not None
            readers[name] = WithOtherInputs(block, name, tree_inputs, linear) if others else block
        return readers

    def reader_widths(self):
        """Return the number of columns that each of :meth:`readers` returns, by block name."""
        return {
            name: sum(self._reader_parts(name, block))
            for name, block in zip(self.names, self.blocks, strict=True)
        }

    def _reader_parts(self, name, block):
        """Return the numbers of columns of outputs, tree features and part of the linear model."""
        n_codes = len(block.tree_codes) if self._uses_trees and block.has_tree_inputs else 0
        n_linear = self.linear.out_features if self._is_read_linearly(name) else 0
        return block.out_features, n_codes, n_linear

    def _is_read_linearly(self, name):
        return self._uses_linear and name in self.linear.names

    def average_read(self, read, head):
        """Return :meth:`average_members` from the outputs of :meth:`readers`."""
        parts, columns, contributions = dict(read), [], []
        for name, block in zip(self.names, self.blocks, strict=True):
            widths = self._reader_parts(name, block)
            parts[name], features, contribution = read[name].split(widths, dim=1)
            columns += [features] if widths[1] else []
            contributions += [contribution] if widths[2] else []
        # Codes were concatenated with floats, which represent them exactly.
        features = torch.cat(columns, dim=1).int() if self._uses_trees else None
        linear = self.linear.outputs(contributions) if self._uses_linear else None
        return self._with_other_outputs(
            head, features, linear, self._offset_of(parts), lambda: self.join(parts)
        )

    def represent(self, frame):
        """Return the trunk's outputs, averaged over members, and the outputs of wide blocks.

        Returns
        -------
        torch.Tensor of shape (batch, representation_features)
        """
        return self._represented(*self._hidden(self.read(frame)))

    def forward_all(self, frame, head):
        """Return :meth:`average_members` and :meth:`represent` of encoded rows, as a tuple."""
        features = self.tree_features(frame) if self._uses_trees else None
        linear = self.linear_outputs(self.linear, frame) if self._uses_linear else None
        parts = self.read(frame)
        hidden, wide = self._hidden(parts)
        added, offset = self._added_of(parts), self._offset_of(parts)
        combined = self._with_other_outputs(
            head, features, linear, offset, lambda: self._outputs(hidden, wide, added, offset)
        )
        return combined, self._represented(hidden, wide)

    def offset(self, frame):
        """Return the offset of encoded rows.

        Returns
        -------
        torch.Tensor of shape (batch, 1, 1), or None
            Offset on the scale of the outputs; None without an offset block.
        """
        if self.offset_name is None:
            return None
        module = self.blocks[self.names.index(self.offset_name)]
        return module(**frame[self.offset_name])[:, None, :]

    def tree_outputs(self, trees, frame):
        """Return the outputs of trees for encoded rows, plus the offset.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        return trees.outputs(self.tree_features(frame), self.offset(frame))

    def tree_features(self, frame):
        """Return the features of the trees for encoded rows.

        Returns
        -------
        torch.Tensor of int32, shape (batch, len(tree_feature_codes))
        """
        pairs = zip(self.names, self.blocks, strict=True)
        features = [b.tree_inputs(**frame[name]) for name, b in pairs if b.has_tree_inputs]
        return torch.cat(features, dim=1)

    def other_outputs(self, name, model, frame):
        """Return the outputs of another model for encoded rows: ``"trees"`` or ``"linear"``.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        outputs = {"trees": self.tree_outputs, "linear": self.linear_outputs}
        return outputs[name](model, frame)

    def linear_outputs(self, linear, frame):
        """Return the outputs of a linear model for encoded rows.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        pairs = zip(self.names, self.blocks, strict=True)
        return linear.outputs(
            [
                block.linear_outputs(linear.weight(name), **frame[name])
                for name, block in pairs
                if name in linear.names
            ]
        )

    @property
    def linear_blocks(self):
        """Modules with features of linear models, by name of the block."""
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block for name, block in pairs if block.has_linear_inputs}

    @property
    def tree_feature_names(self):
        """Names of the blocks with features of the trees."""
        pairs = zip(self.names, self.blocks, strict=True)
        return [name for name, block in pairs if block.has_tree_inputs]

    @property
    def tree_feature_signs(self):
        """Monotonicity constraint of each column of :meth:`tree_features`: 1, -1 or 0 for none."""
        all_signs = []
        for block in self.blocks:
            if block.has_tree_inputs:
                signs = block.tree_signs
                all_signs += [0] * len(block.tree_codes) if signs is None else signs
        return all_signs

    @property
    def tree_feature_codes(self):
        """Number of codes of each column of :meth:`tree_features`, and whether they are ordered."""
        blocks = [block for block in self.blocks if block.has_tree_inputs]
        return [codes for block in blocks for codes in block.tree_codes]

    def padded_lengths(self, frame):
        """Return the length of the longest padded list of each row.

        Parameters
        ----------
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        torch.Tensor of int64, shape (n_rows,), or None
            Longest list of the blocks whose modules have ``padded``; None if no module has.
        """
        pairs = zip(self.names, self.blocks, strict=True)
        return max_lengths(block.padded_lengths(frame[name]) for name, block in pairs)

    def effects(self, name):
        """Return the effect of each vector of a block's embedding table.

        Parameters
        ----------
        name : str
            Name of a block with a single embedding table and one column.

        Returns
        -------
        ndarray of float64, shape (n_vectors, n)
            Changes of the outputs for a wide block, those of the linear model included; for other
            blocks, the vectors.
        """
        module = self.blocks[self.names.index(name)]
        vectors = module.table.weight.detach()
        if module.wide and self.wide is not None:
            before = [b for b in self.blocks[: self.names.index(name)] if b.wide]
            first = sum(block.out_features for block in before)
            weight = self.wide.weight.detach()[:, first : first + module.out_features]
            vectors = vectors @ weight.T
            if self.linear is not None and name in self.linear.names:
                vectors = torch.lerp(self.linear.weight(name), vectors, self.linear.share)
        return vectors.double().cpu().numpy()

    @property
    def _uses_trees(self):
        return self.trees is not None and not self.training

    @property
    def _uses_linear(self):
        return self.linear is not None and not self.training

    def _offset_of(self, parts):
        return None if self.offset_name is None else parts[self.offset_name][:, None, :]

    def _added_of(self, parts):
        """Return the outputs of added blocks, of shape (batch, n), or None."""
        if not self.added_names:
            return None
        return torch.cat([parts[name] for name in self.added_names], dim=1)

    def gated_sum(self, hidden, added):
        """Return the sum of the outputs of added blocks, multiplied by gates of each member.

        Gates are positive, so the sum increases with each number of `added`.

        Parameters
        ----------
        hidden : torch.Tensor of shape (batch, members, n_units)
            Outputs of the trunk.
        added : torch.Tensor of shape (batch, n)
            Outputs of the added blocks.

        Returns
        -------
        torch.Tensor of shape (batch, members, 1)
        """
        gates = functional.softplus(self.gate(hidden) + GATE_OFFSET)
        return (gates * added[:, None, :]).sum(2, keepdim=True)

    def _outputs(self, hidden, wide, added, offset):
        outputs = self.head(hidden)
        outputs = outputs if wide is None else outputs + self.wide(wide)[:, None, :]
        outputs = outputs if added is None else outputs + self.gated_sum(hidden, added)
        return outputs if offset is None else outputs + offset

    def _with_other_outputs(self, head, features, linear, offset, outputs):
        """Return averaged outputs, blended with those of trees and linear model, where given."""
        trees, combined = self.trees if features is not None else None, None
        if linear is None or self.linear.needs_others:
            # A network whose weight is 0 is not evaluated.
            if trees is None or trees.needs_network:
                combined = head.average_members(outputs())
            if trees is not None:
                combined = head.normalize(trees.join(combined, features, offset))
        if linear is None:
            return combined
        return head.normalize(self.linear.join_outputs(combined, linear))

    def _represented(self, hidden, wide):
        hidden = hidden.mean(1)
        return hidden if wide is None else torch.cat([hidden, wide], dim=1)

    def _hidden(self, outputs_by_block):
        parts = {False: [], True: []}
        for name, block in zip(self.names, self.blocks, strict=True):
            if name != self.offset_name and name not in self.added_names:
                parts[block.wide].append(outputs_by_block[name])
        wide = torch.cat(parts[True], dim=1) if parts[True] else None
        if parts[False]:
            deep = torch.cat(parts[False], dim=1)
        else:
            outputs = next(iter(outputs_by_block.values()))
            deep = outputs.new_zeros(outputs.shape[0], 1)
        hidden = self.trunk(deep)
        return hidden[:, None, :] if hidden.ndim == 2 else hidden, wide


class WithOtherInputs:
    """Callable that concatenates the outputs of a block module and inputs of other models.

    Parameters
    ----------
    module : BlockModule
        Module of the block.
    name : str
        Name of the block.
    trees : bool
        Whether the features of trees are appended.
    linear : LinearModule or None
        Linear model to whose outputs the block's part is appended.
    """

    def __init__(self, module, name, trees, linear):
        self.module, self.name, self.trees, self.linear = module, name, trees, linear
        self.padded_lengths = module.padded_lengths

    def __call__(self, **encoding):
        """Return outputs, codes and the part of the linear model's outputs."""
        parts = [self.module(**encoding)]
        if self.trees:
            parts.append(self.module.tree_inputs(**encoding).float())
        if self.linear is not None:
            weight = self.linear.weight(self.name)
            parts.append(self.module.linear_outputs(weight, **encoding))
        return torch.cat(parts, dim=1)


def copy_network(network):
    """Return a copy of a network with its own weights; tables of trees and coefficients are shared.

    Parameters
    ----------
    network : BlockNetwork
        Network to copy.

    Returns
    -------
    BlockNetwork
    """
    others = network.trees, network.linear
    network.trees = network.linear = None
    try:
        copied = deepcopy(network)
    finally:
        network.trees, network.linear = others
    # Tables of trees may be large, and only the weights of the models change.
    copied.trees, copied.linear = map(copy, others)
    return copied


def with_linear(network, linear):
    """Return a network with another linear model, which shares all else with the given one."""
    other = copy(network)
    other._modules = {**network._modules, "linear": linear}
    return other


def make_network(blocks, trunk, head=None):
    """Build the network of fitted blocks.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks.
    trunk : object
        Trunk with a method ``make_module(in_features)``.
    head : Head, optional
        Head of the target. Without a head, the network only computes representations.

    Returns
    -------
    BlockNetwork

    Raises
    ------
    TypeError
        If a block returns a module that does not fulfil the contract.
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
    # Without deep blocks, the input of the trunk is a constant and its output a bias.
    deep, wide_features = widths[False] or [1], sum(widths[True])
    if hasattr(trunk, "make_module_for"):
        trunk_module = trunk.make_module_for(deep)
    else:
        trunk_module = trunk.make_module(max(sum(deep), 1))
    members = getattr(trunk_module, "members", 1)
    if head is None:
        return BlockNetwork(modules, trunk_module, None, None)
    if head.is_embedding:
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
