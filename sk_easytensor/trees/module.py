"""The torch module that reads grown trees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sk_easytensor.networks.heads import weighted_mean
from sk_easytensor.trees.tables import TreeTables

__all__ = ["TreesModule"]

MOST_NUMBERS = 256_000_000
"""Leaves over all rows of a table, as numbers instead of bits, at most: a gigabyte."""

AT_ONCE = 1_000_000
"""Entries of a table that are looked up at once, at most: many calls cost more than they do."""


class TreesModule(nn.Module):
    """Trees beside a network: their outputs, and how they are joined with the network's.

    Parameters
    ----------
    grown : list of TreeTables
        One for each column of the target.
    share : float or list of float
        Weight of the network, from 0 to 1; the trees have the rest. For several tasks, one for
        each output.
    temperature : float or list of float, default=1.0
        What the mean is divided by.
    """

    def __init__(self, grown, share, temperature=1.0):
        super().__init__()
        self.grown = grown
        self.forests = nn.ModuleList(ForestModule(tables) for tables in grown)
        self.share = share
        self.temperature = temperature

    @classmethod
    def of_state(cls, state):
        """Return the module that had a :meth:`state`."""
        grown = [TreeTables.of_state(tables) for tables in state["grown"]]
        return cls(grown, state["share"], state["temperature"])

    def state(self):
        """Return what is pickled: arrays and numbers."""
        grown = [tables.state() for tables in self.grown]
        return {"grown": grown, "share": self.share, "temperature": self.temperature}

    def forward(self, columns):
        """Return the outputs of the trees.

        Parameters
        ----------
        columns : torch.Tensor of int32, shape (batch, n_columns)
            Codes, 0 where missing.

        Returns
        -------
        torch.Tensor of shape (batch, out_features)
        """
        return torch.cat([forest(columns) for forest in self.forests], dim=1)

    def outputs(self, columns, offset):
        """Return :meth:`forward` plus what is added to it, of shape (batch, 1, out_features).

        Parameters
        ----------
        columns : torch.Tensor of int32, shape (batch, n_columns)
            As in :meth:`forward`.
        offset : torch.Tensor of shape (batch, 1, 1), or None
            Numbers to add.
        """
        outputs = self(columns)[:, None, :]
        return outputs if offset is None else outputs + offset

    def join(self, combined, columns, offset=None):
        """Return the weighted mean of a network's combined outputs and the trees', scaled.

        Parameters
        ----------
        combined : torch.Tensor of shape (batch, 1, out_features), or None
            Of the network; None where its share is 0.
        columns : torch.Tensor of int32, shape (batch, n_columns)
            As in :meth:`forward`.
        offset : torch.Tensor of shape (batch, 1, 1), or None
            Is added to the outputs of the trees; those of the network have it already.
        """
        return self.join_outputs(combined, self.outputs(columns, offset))

    def join_outputs(self, combined, outputs):
        """Return what :meth:`join` does, given the trees' outputs, of shape of `combined`."""
        if combined is None:
            combined = outputs
        return weighted_mean(combined, outputs, self.share, self.temperature)

    @property
    def needs_network(self):
        """Whether the network has any weight."""
        return bool(np.any(np.asarray(self.share) > 0))

    def unpack(self):
        """Give each leaf a number instead of a bit, for runtimes that cannot look at bits."""
        for forest in self.forests:
            forest.unpack()


class ForestModule(nn.Module):
    """Trees for one column of the target; see :class:`~sk_easytensor.trees.tables.TreeTables`."""

    def __init__(self, tables):
        super().__init__()
        self.packed = True
        self.n_trees, self.n_leaves = tables.values.shape
        self.n_outputs = len(tables.base)
        kept = {name: torch.from_numpy(np.array(value)) for name, value in vars(tables).items()}
        kept["first_value"] = torch.arange(self.n_trees, dtype=torch.int32) * self.n_leaves
        for name, value in kept.items():
            # They are rebuilt from the tables, and no part of what is trained.
            self.register_buffer(name, value, persistent=False)

    def forward(self, columns):
        """Return the outputs, of shape (batch, n_outputs)."""
        if self.n_trees == 0:
            # A length would fix the number of rows of an exported graph.
            return self.base.expand(columns.shape[0], self.n_outputs)
        left = self._left(self._rows(columns))
        if not self.packed:
            return left @ self.values + self.base
        leaf = places_of_bits(left).add_(self.first_value)
        found = self.values.reshape(-1).index_select(0, leaf.reshape(-1))
        return found.reshape(-1, self.n_trees // self.n_outputs, self.n_outputs).sum(1) + self.base

    def _left(self, rows):
        """Return the leaves that all columns leave open, of shape (batch, trees), or a bit each."""
        # A graph is for any number of rows.
        looks = self.packed and not torch.compiler.is_compiling()
        if looks and rows.numel() * self.n_trees <= AT_ONCE:
            left = self.open_leaves.index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)
            while len(left) > 1:
                half = (len(left) + 1) // 2
                left[: len(left) - half] &= left[half:]
                left = left[:half]
            return left[0]
        first, *others = rows
        left = self.open_leaves.index_select(0, first)
        # Memory for each look-up would cost more than the look-up.
        found = torch.empty_like(left)
        for of_column in others:
            torch.index_select(self.open_leaves, 0, of_column, out=found)
            left = left.bitwise_and_(found) if self.packed else left.mul_(found)
        return left

    def _rows(self, columns):
        """Return the rows of the table that codes stand for, of shape (n_columns, batch)."""
        places = columns.index_select(1, self.columns).t() + self.first_code[:, None]
        return self.code_rows.index_select(0, places.reshape(-1)).view_as(places)

    def unpack(self):
        """Give each leaf a number instead of a bit."""
        if self.n_trees == 0:
            return
        if self.open_leaves.numel() * self.n_leaves > MOST_NUMBERS:
            raise RuntimeError(
                f"{self.n_trees} trees over {len(self.open_leaves)} groups of codes are too "
                "many for a runtime without operators on bits; lower trees__max_leaf_nodes or "
                "trees__max_iter, or set trees=None"
            )
        bits = torch.arange(self.n_leaves)
        spread = (self.open_leaves.long()[:, :, None] >> bits) & 1
        self.open_leaves = spread.flatten(1).float()
        outputs = torch.eye(self.n_outputs).repeat(self.n_trees // self.n_outputs, 1)
        self.values = (self.values[:, :, None] * outputs[:, None, :]).flatten(0, 1)
        self.packed = False


def places_of_bits(numbers):
    """Return which bit is set in each number, of which one is."""
    if torch.compiler.is_compiling():
        # Runtimes round logarithms as they like.
        return (torch.log2(numbers.float()) + 0.5).int()
    # The exponent of a float, a third of the time of a logarithm.
    exponents = numbers.float().view(torch.int32)
    return exponents.bitwise_right_shift_(23).sub_(127)
