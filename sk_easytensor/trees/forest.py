"""Fitted trees as look-up tables, and the torch module that evaluates them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sk_easytensor.networks.heads import weighted_mean
from sk_easytensor.networks.linear import LinearModule

__all__ = [
    "TreeTables",
    "TreesModule",
    "load_network_state",
    "network_state",
]


ABSENT_CLASS_MARGIN = 5.0
"""Difference of the baseline of a class without training rows below the smallest of the others."""

MAX_TABLE_BYTES = 128_000_000
"""Largest size of a table in bytes; above it, half of the trees are dropped."""

BITS = {np.int16: 15, np.int32: 31}
"""Types of a table's entries, and number of leaves that their bits without the sign represent."""


@dataclass
class TreeTables:
    """Trees as look-up tables, as in QuickScorer (Lucchese et al., 2015).

    Each value of a row excludes some leaves of a tree, and the row ends in the only leaf that no
    value excludes. Entries of the table have a bit for each leaf that is not excluded. Codes of a
    column that no split separates share a row of the table.

    Attributes
    ----------
    columns : ndarray of int64, shape (n_columns,)
        Indices of the columns that the trees read, among the features of trees.
    first_code : ndarray of int32, shape (n_columns,)
        Offset of the codes of each column in `code_rows`.
    code_rows : ndarray of int32
        Row of the table for each code.
    open_leaves : ndarray of int16 or int32, shape (n_rows, n_trees)
        Bits of the leaves that are not excluded; int16 if no tree has more than 15 leaves. The
        trees of one iteration, one for each output, are consecutive.
    values : ndarray of float32, shape (n_trees, n_leaves)
        Values of the leaves.
    base : ndarray of float32, shape (n_outputs,)
        Outputs without trees.
    """

    columns: np.ndarray
    first_code: np.ndarray
    code_rows: np.ndarray
    open_leaves: np.ndarray
    values: np.ndarray
    base: np.ndarray

    @property
    def n_trees(self):
        """Number of trees."""
        return len(self.values)

    def state(self):
        """Return the state to pickle, in which `code_rows` is run-length encoded."""
        begins = np.flatnonzero(np.diff(self.code_rows, prepend=-1))
        lengths = np.diff(begins, append=len(self.code_rows)).astype(np.int32)
        return {**vars(self), "code_rows": (self.code_rows[begins], lengths)}

    @classmethod
    def of_state(cls, state):
        """Return the tables of a :meth:`state`."""
        return cls(**{**state, "code_rows": np.repeat(*state["code_rows"])})

    @classmethod
    def constant(cls, base):
        """Return tables without trees, whose outputs are constant."""
        return _Builder().tables(np.empty((0, 1)), base)

    @classmethod
    def of(cls, booster, n_iterations, columns, classes, n_outputs):
        """Convert the trees of a scikit-learn booster.

        Parameters
        ----------
        booster : HistGradientBoostingClassifier or HistGradientBoostingRegressor
            Fitted booster.
        n_iterations : int
            Number of its iterations to convert.
        columns : TreeColumns
            Columns on which it was fitted.
        classes : ndarray of int
            Index among all outputs of each output of the booster, in increasing order.
        n_outputs : int
            Number of all outputs.

        Returns
        -------
        TreeTables
        """
        trees = [tree for trees in booster._predictors[:n_iterations] for tree in trees]
        base = np.asarray(booster._baseline_prediction, dtype=np.float64).ravel()
        if n_outputs == 1:
            classes = np.zeros(1, dtype=np.int64)
        elif len(base) == 1:
            # Only two of more classes occur, for which the booster has one output.
            base = np.array([0.0, base[0]])
            trees = [item for tree in trees for item in (None, tree)]
        if len(classes) < n_outputs:
            widened = np.full(n_outputs, base.min() - ABSENT_CLASS_MARGIN)
            widened[classes] = base
            base = widened
            remaining = iter(trees)
            present = np.isin(np.arange(n_outputs), classes)
            trees = [
                next(remaining) if is_present else None
                for _ in range(len(trees) // len(classes))
                for is_present in present
            ]
        while trees:
            forest = Forest.of(trees)
            if not len(forest.tree):
                break
            builder = _Builder(forest)
            for index, (position, codes) in enumerate(columns.sources):
                builder.add(index, position, codes)
                if builder.n_rows * forest.all_leaves.nbytes > MAX_TABLE_BYTES:
                    break
            else:
                return builder.tables(forest.values, base)
            trees = trees[: len(trees) // n_outputs // 2 * n_outputs]
        # Trees with a single leaf do not depend on the row.
        return cls.constant(base)


@dataclass
class Forest:
    """Splits and leaves of all trees as arrays.

    Attributes
    ----------
    tree, column, threshold, missing_left, by_set : ndarray, shape (n_splits,)
        For each split: index of its tree, index of its column, largest number that goes left,
        whether missing values go left, and whether it is by a set of codes.
    lefts : ndarray of uint32, shape (n_splits, 8)
        Bits of the codes that go left, 32 codes per number.
    if_left, if_right : ndarray of int16 or int32, shape (n_splits,)
        Bits of the leaves that are not excluded if a row goes left, and if it goes right.
    all_leaves : ndarray of int16 or int32, shape (n_trees,)
        Bits of all leaves of each tree.
    values : ndarray of float32, shape (n_trees, n_leaves)
        Values of the leaves.
    """

    tree: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    by_set: np.ndarray
    lefts: np.ndarray
    if_left: np.ndarray
    if_right: np.ndarray
    all_leaves: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, trees):
        """Convert scikit-learn's trees; None is a tree with one leaf of value 0."""
        kind = next(tree for tree in trees if tree is not None).nodes.dtype
        single = np.zeros(1, dtype=kind)
        single["is_leaf"] = True
        nodes = [single if tree is None else tree.nodes for tree in trees]
        sizes = np.array(list(map(len, nodes)))
        grid = np.zeros((len(trees), sizes.max()), dtype=kind)
        grid["is_leaf"] = True
        inside = np.arange(sizes.max()) < sizes[:, None]
        grid[inside] = np.concatenate(nodes)
        leaf = (grid["is_leaf"] == 1) & inside
        number = np.where(leaf, leaf.cumsum(1) - 1, 0)
        tree_of = np.arange(len(trees))
        # Children have higher indices than their parents, so nodes are visited in reversed order.
        n_leaves = int(leaf.sum(1).max())
        bits = next(kind for kind, max_leaves in BITS.items() if n_leaves <= max_leaves)
        below = np.where(leaf, bits(1) << number.astype(bits), bits(0))
        for node in range(sizes.max() - 1, -1, -1):
            left, right = grid["left"][:, node], grid["right"][:, node]
            combined = below[tree_of, left] | below[tree_of, right]
            splits = inside[:, node] & ~leaf[:, node]
            below[:, node] = np.where(splits, combined, below[:, node])
        tree, node = np.nonzero(inside & ~leaf)
        split_nodes = grid[tree, node]
        # Indices of sets begin at 0 in each tree.
        sets = [np.zeros((0, 8), np.uint32) if t is None else t.raw_left_cat_bitsets for t in trees]
        starts = np.cumsum([0, *map(len, sets)])[:-1]
        lefts = np.zeros((len(tree), 8), dtype=np.uint32)
        by_set = split_nodes["is_categorical"] == 1
        if by_set.any():
            combined = np.concatenate(sets)
            lefts[by_set] = combined[(starts[tree] + split_nodes["bitset_idx"])[by_set]]
        values = np.zeros((len(trees), n_leaves), dtype=np.float32)
        rows, leaf_nodes = np.nonzero(leaf)
        values[rows, number[rows, leaf_nodes]] = grid["value"][rows, leaf_nodes]
        all_bits = below[:, 0]
        return cls(
            tree,
            split_nodes["feature_idx"].astype(np.int64),
            split_nodes["num_threshold"],
            split_nodes["missing_go_to_left"] == 1,
            by_set,
            lefts,
            all_bits[tree] & ~below[tree, split_nodes["right"]],
            all_bits[tree] & ~below[tree, split_nodes["left"]],
            all_bits,
            values,
        )


class _Builder:
    """Builder of the table, column by column."""

    def __init__(self, forest=None):
        self.forest = forest
        self.parts = []
        self.n_rows = 0
        self.columns, self.first_code, self.code_rows = [], [], []

    def add(self, index, position, codes):
        """Add a column if any split depends on it."""
        splits = np.flatnonzero(self.forest.column == index)
        if not len(splits):
            return
        if codes.known is not None:
            # Codes that trees cannot separate share a row.
            values, row = np.unique(codes.values, return_inverse=True)
            lefts = self._sets(splits, codes.known, values)
        else:
            ends, end = np.unique(self.forest.threshold[splits], return_inverse=True)
            lefts = np.arange(len(ends) + 2) <= end[:, None]
            lefts[:, -1] = self.forest.missing_left[splits]
            row = np.searchsorted(ends, codes.values)
            row[np.isnan(codes.values)] = len(ends) + 1
        self.columns.append(position)
        self.first_code.append(sum(map(len, self.code_rows)))
        self.code_rows.append(self.n_rows + row)
        self._add_rows(splits, lefts)

    def _sets(self, splits, codes, values):
        """Return which values go left at each split by sets of codes, of shape (n_splits, n)."""
        index = np.minimum(np.searchsorted(codes, values), len(codes) - 1)
        known = codes[index] == values
        lefts = self.forest.lefts[splits][:, index // 32] >> (index % 32).astype(np.uint32) & 1
        return np.where(known, lefts == 1, self.forest.missing_left[splits][:, None])

    def _add_rows(self, splits, lefts):
        forest = self.forest
        left, right = forest.if_left[splits][:, None], forest.if_right[splits][:, None]
        tree = forest.tree[splits]
        begins = np.flatnonzero(np.diff(tree, prepend=-1))
        remaining = np.bitwise_and.reduceat(np.where(lefts, left, right), begins, axis=0)
        rows = np.tile(forest.all_leaves, (lefts.shape[1], 1))
        rows[:, tree[begins]] &= remaining.T
        self.parts.append(rows)
        self.n_rows += len(rows)

    def tables(self, values, base):
        """Return the tables of all added columns."""
        trees = len(values)
        rows = np.concatenate(self.parts) if self.parts else np.zeros((0, trees), np.int16)
        code_rows = np.concatenate(self.code_rows) if self.code_rows else np.zeros(0)
        return TreeTables(
            np.array(self.columns, dtype=np.int64),
            np.array(self.first_code, dtype=np.int32),
            code_rows.astype(np.int32),
            rows,
            values.astype(np.float32),
            np.asarray(base, dtype=np.float32),
        )


MAX_UNPACKED_VALUES = 256_000_000
"""Largest number of leaves over all rows of an unpacked table, which takes a gigabyte."""

MAX_LOOKUP_ENTRIES = 1_000_000
"""Largest number of table entries that are looked up in one call, which is faster for few."""


class TreesModule(nn.Module):
    """Trees of a network: their outputs, and the blend with those of the network.

    Parameters
    ----------
    grown : list of TreeTables
        Trees of each column of the target.
    share : float or list of float
        Weight of the network, in [0, 1]; the trees have the rest. For several tasks, the weight of
        each output.
    temperature : float or list of float, default=1.0
        Divisor of the weighted mean, or of each output.
    """

    is_final = False
    """Whether the weights are not chosen again in later fits."""

    few_rows = 0
    """Number of validation rows below which the penalty of weights grows."""

    prior_share = 0.5
    """Weight of the network to which the penalty keeps its weight near."""

    def __init__(self, grown, share, temperature=1.0):
        super().__init__()
        self.grown = grown
        self.forests = nn.ModuleList(ForestModule(tables) for tables in grown)
        self.share = share
        self.temperature = temperature

    @classmethod
    def of_state(cls, state):
        """Return the module of a :meth:`state`."""
        grown = [TreeTables.of_state(tables) for tables in state["grown"]]
        return cls(grown, state["share"], state["temperature"])

    def state(self):
        """Return the state to pickle, of arrays and numbers."""
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
        """Return the outputs of the trees plus an offset.

        Parameters
        ----------
        columns : torch.Tensor of int32, shape (batch, n_columns)
            Codes, 0 where missing.
        offset : torch.Tensor of shape (batch, 1, 1), or None
            Offset on the scale of the outputs.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        outputs = self(columns)[:, None, :]
        return outputs if offset is None else outputs + offset

    def join(self, combined, columns, offset=None):
        """Return the blend of the outputs of the network and of the trees.

        Parameters
        ----------
        combined : torch.Tensor of shape (batch, 1, out_features), or None
            Averaged outputs of the network; None if its weight is 0.
        columns : torch.Tensor of int32, shape (batch, n_columns)
            Codes, 0 where missing.
        offset : torch.Tensor of shape (batch, 1, 1), or None, default=None
            Offset that is added to the outputs of the trees; those of the network include it.

        Returns
        -------
        torch.Tensor of shape (batch, 1, out_features)
        """
        return self.join_outputs(combined, self.outputs(columns, offset))

    def join_outputs(self, combined, outputs):
        """Return the blend as :meth:`join` does, from the outputs of the trees."""
        if combined is None:
            combined = outputs
        return weighted_mean(combined, outputs, self.share, self.temperature)

    @property
    def needs_network(self):
        """Whether the weight of the network is above 0 for any output."""
        return bool(np.any(np.asarray(self.share) > 0))

    def unpack(self):
        """Represent each leaf by a number, for runtimes without bitwise operators."""
        for forest in self.forests:
            forest.unpack()


def network_state(network):
    """Return the weights, trees and linear model of a network, as arrays and numbers.

    Parameters
    ----------
    network : torch.nn.Module
        Network on the CPU.

    Returns
    -------
    dict
        State for :func:`load_network_state`, in any process.
    """
    others = {name: getattr(network, name, None) for name in ("trees", "linear")}
    return {
        "weights": {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        **{name: None if model is None else model.state() for name, model in others.items()},
    }


def load_network_state(network, state):
    """Load the weights, trees and linear model of another network of the same structure.

    Parameters
    ----------
    network : torch.nn.Module
        Network that is modified in place.
    state : dict
        State from :func:`network_state`, which is copied.
    """
    weights = state["weights"].items()
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights})
    for name, kind in (("trees", TreesModule), ("linear", LinearModule)):
        if state.get(name) is not None:
            setattr(network, name, kind.of_state(state[name]))


class ForestModule(nn.Module):
    """Trees of one column of the target; see :class:`~sk_easytensor.trees.forest.TreeTables`."""

    def __init__(self, tables):
        super().__init__()
        self.packed = True
        self.n_trees, self.n_leaves = tables.values.shape
        self.n_outputs = len(tables.base)
        buffers = {name: torch.from_numpy(np.array(value)) for name, value in vars(tables).items()}
        buffers["first_value"] = torch.arange(self.n_trees, dtype=torch.int32) * self.n_leaves
        for name, value in buffers.items():
            # Not part of the state dict, because they are rebuilt from the tables.
            self.register_buffer(name, value, persistent=False)

    def forward(self, columns):
        """Return the outputs, of shape (batch, n_outputs)."""
        if self.n_trees == 0:
            # With len() an exported graph would have a fixed number of rows.
            return self.base.expand(columns.shape[0], self.n_outputs)
        open_leaves = self._open_leaves(self._rows(columns))
        if not self.packed:
            return open_leaves @ self.values + self.base
        leaf = bit_positions(open_leaves).add_(self.first_value)
        leaf_values = self.values.reshape(-1).index_select(0, leaf.reshape(-1))
        return (
            leaf_values.reshape(-1, self.n_trees // self.n_outputs, self.n_outputs).sum(1)
            + self.base
        )

    def _open_leaves(self, rows):
        """Return the leaves that no column excludes, as bits (batch, n_trees) or numbers."""
        # A graph must work for any number of rows.
        in_one_call = self.packed and not torch.compiler.is_compiling()
        if in_one_call and rows.numel() * self.n_trees <= MAX_LOOKUP_ENTRIES:
            open_leaves = self.open_leaves.index_select(0, rows.reshape(-1)).unflatten(
                0, rows.shape
            )
            while len(open_leaves) > 1:
                half = (len(open_leaves) + 1) // 2
                open_leaves[: len(open_leaves) - half] &= open_leaves[half:]
                open_leaves = open_leaves[:half]
            return open_leaves[0]
        first, *other_rows = rows
        open_leaves = self.open_leaves.index_select(0, first)
        # Allocating memory for each look-up would take longer than the look-up.
        column_leaves = torch.empty_like(open_leaves)
        for column_rows in other_rows:
            torch.index_select(self.open_leaves, 0, column_rows, out=column_leaves)
            open_leaves = (
                open_leaves.bitwise_and_(column_leaves)
                if self.packed
                else open_leaves.mul_(column_leaves)
            )
        return open_leaves

    def _rows(self, columns):
        """Return the rows of the table for codes, of shape (n_columns, batch)."""
        positions = columns.index_select(1, self.columns).t() + self.first_code[:, None]
        return self.code_rows.index_select(0, positions.reshape(-1)).view_as(positions)

    def unpack(self):
        """Represent each leaf by a number instead of a bit."""
        if self.n_trees == 0:
            return
        if self.open_leaves.numel() * self.n_leaves > MAX_UNPACKED_VALUES:
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


def bit_positions(numbers):
    """Return the index of the only bit that is set in each number."""
    if torch.compiler.is_compiling():
        # Runtimes round logarithms differently.
        return (torch.log2(numbers.float()) + 0.5).int()
    # The exponent of a float takes a third of the time of a logarithm.
    exponents = numbers.float().view(torch.int32)
    return exponents.bitwise_right_shift_(23).sub_(127)
