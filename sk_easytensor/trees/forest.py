"""Fitted trees: their tables, and the torch module that reads rows with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sk_easytensor.networks.heads import weighted_mean

__all__ = [
    "TreeTables",
    "TreesModule",
    "load_network_state",
    "network_state",
]


MUCH_LESS = 5.0
"""By how much the logarithm of a class that no training row has is less than any other's."""

MOST_BYTES = 128_000_000
"""Size of a table at most; with more, half of the trees have to do."""

BITS = {np.int16: 15, np.int32: 31}
"""Kinds of a table's entries, and leaves that they have bits for: all but the sign."""


@dataclass
class TreeTables:
    """Trees in a form that is read by look-ups.

    A row ends in the one leaf of a tree that each of its values leaves open. The table has a row
    for all codes of a column that the splits do not tell apart; its entries have a bit for each
    leaf.

    Attributes
    ----------
    columns : ndarray of int64, shape (n_columns,)
        Which of the columns given to the trees they read.
    first_code : ndarray of int32, shape (n_columns,)
        Where the codes of each begin in `code_rows`.
    code_rows : ndarray of int32
        The row of the table for each code.
    open_leaves : ndarray of int16 or int32, shape (n_rows, n_trees)
        The table, of int16 where no tree has more than 15 leaves. Trees of one iteration, one for
        each output, stand side by side.
    values : ndarray of float32, shape (n_trees, n_leaves)
        Of the leaves.
    base : ndarray of float32, shape (n_outputs,)
        What the outputs are without any tree.
    """

    columns: np.ndarray
    first_code: np.ndarray
    code_rows: np.ndarray
    open_leaves: np.ndarray
    values: np.ndarray
    base: np.ndarray

    @property
    def n_trees(self):
        """How many trees there are."""
        return len(self.values)

    def state(self):
        """Return what is pickled: neighbours among the codes that share a row are counted."""
        begins = np.flatnonzero(np.diff(self.code_rows, prepend=-1))
        lengths = np.diff(begins, append=len(self.code_rows)).astype(np.int32)
        return {**vars(self), "code_rows": (self.code_rows[begins], lengths)}

    @classmethod
    def of_state(cls, state):
        """Return the tables that had a :meth:`state`."""
        return cls(**{**state, "code_rows": np.repeat(*state["code_rows"])})

    @classmethod
    def constant(cls, base):
        """Return tables without a tree, of outputs that are always the same."""
        return _Builder().tables(np.empty((0, 1)), base)

    @classmethod
    def of(cls, booster, kept, columns, classes, n_outputs):
        """Return what scikit-learn's booster has grown.

        Parameters
        ----------
        booster : HistGradientBoostingClassifier or HistGradientBoostingRegressor
            Fitted.
        kept : int
            How many of its iterations to keep.
        columns : TreeColumns
            What it was fitted on.
        classes : ndarray of int
            Which outputs its own stand for, in order.
        n_outputs : int
            How many there are.
        """
        trees = [tree for trees in booster._predictors[:kept] for tree in trees]
        base = np.asarray(booster._baseline_prediction, dtype=np.float64).ravel()
        if n_outputs == 1:
            classes = np.zeros(1, dtype=np.int64)
        elif len(base) == 1:
            # Two of more classes occur: one output tells them apart.
            base = np.array([0.0, base[0]])
            trees = [tree for each in trees for tree in (None, each)]
        if len(classes) < n_outputs:
            widened = np.full(n_outputs, base.min() - MUCH_LESS)
            widened[classes] = base
            base = widened
            found = iter(trees)
            present = np.isin(np.arange(n_outputs), classes)
            trees = [
                next(found) if there else None
                for _ in range(len(trees) // len(classes))
                for there in present
            ]
        while trees:
            forest = Forest.of(trees)
            if not len(forest.tree):
                break
            builder = _Builder(forest)
            for index, (position, codes) in enumerate(columns.read):
                builder.add(index, position, codes)
                if builder.n_rows * forest.all_leaves.nbytes > MOST_BYTES:
                    break
            else:
                return builder.tables(forest.values, base)
            trees = trees[: len(trees) // n_outputs // 2 * n_outputs]
        # Trees of a single leaf tell nothing.
        return cls.constant(base)


@dataclass
class Forest:
    """The nodes of all trees that split, side by side, and the values of all leaves.

    Attributes
    ----------
    tree, column, threshold, missing_left, by_set : ndarray, shape (n_splits,)
        Of each split: its tree, the column it looks at, the largest number that goes left, whether
        missing goes left, and whether it is by a set of codes.
    lefts : ndarray of uint32, shape (n_splits, 8)
        The sets, 32 codes a number, that go left.
    if_left, if_right : ndarray of int16 or int32, shape (n_splits,)
        Leaves that are left open.
    all_leaves : ndarray of int16 or int32, shape (n_trees,)
        A bit for each leaf.
    values : ndarray of float32, shape (n_trees, n_leaves)
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
        """Read scikit-learn's trees; None is a tree of one leaf that gives 0."""
        there = [tree for tree in trees if tree is not None]
        kind = there[0].nodes.dtype
        single = np.zeros(1, dtype=kind)
        single["is_leaf"] = True
        nodes = [single if tree is None else tree.nodes for tree in trees]
        sizes = np.array([len(each) for each in nodes])
        grid = np.zeros((len(trees), sizes.max()), dtype=kind)
        grid["is_leaf"] = True
        inside = np.arange(sizes.max()) < sizes[:, None]
        grid[inside] = np.concatenate(nodes)
        leaf = (grid["is_leaf"] == 1) & inside
        number = np.where(leaf, leaf.cumsum(1) - 1, 0)
        tree_of = np.arange(len(trees))
        # Children stand behind their parents, so that going backwards meets them first.
        n_leaves = int(leaf.sum(1).max())
        bits = next(kind for kind, most in BITS.items() if n_leaves <= most)
        below = np.where(leaf, bits(1) << number.astype(bits), bits(0))
        for place in range(sizes.max() - 1, -1, -1):
            left, right = grid["left"][:, place], grid["right"][:, place]
            joined = below[tree_of, left] | below[tree_of, right]
            splits = inside[:, place] & ~leaf[:, place]
            below[:, place] = np.where(splits, joined, below[:, place])
        tree, place = np.nonzero(inside & ~leaf)
        found = grid[tree, place]
        # The numbers of sets count from 0 in each tree.
        sets = [np.zeros((0, 8), np.uint32) if t is None else t.raw_left_cat_bitsets for t in trees]
        starts = np.cumsum([0] + [len(each) for each in sets])[:-1]
        lefts = np.zeros((len(tree), 8), dtype=np.uint32)
        by_set = found["is_categorical"] == 1
        if by_set.any():
            joined = np.concatenate(sets)
            lefts[by_set] = joined[(starts[tree] + found["bitset_idx"])[by_set]]
        values = np.zeros((len(trees), n_leaves), dtype=np.float32)
        rows, places = np.nonzero(leaf)
        values[rows, number[rows, places]] = grid["value"][rows, places]
        everything = below[:, 0]
        return cls(
            tree,
            found["feature_idx"].astype(np.int64),
            found["num_threshold"],
            found["missing_go_to_left"] == 1,
            by_set,
            lefts,
            everything[tree] & ~below[tree, found["right"]],
            everything[tree] & ~below[tree, found["left"]],
            everything,
            values,
        )


class _Builder:
    """Fills the table column by column."""

    def __init__(self, forest=None):
        self.forest = forest
        self.parts = []
        self.n_rows = 0
        self.columns, self.first_code, self.code_rows = [], [], []

    def add(self, index, position, codes):
        """Add a column, if any split looks at it."""
        splits = np.flatnonzero(self.forest.column == index)
        if not len(splits):
            return
        if codes.known is not None:
            # Codes that trees cannot tell apart share a row.
            values, place = np.unique(codes.values, return_inverse=True)
            lefts = self._sets(splits, codes.known, values)
        else:
            ends, end = np.unique(self.forest.threshold[splits], return_inverse=True)
            lefts = np.arange(len(ends) + 2) <= end[:, None]
            lefts[:, -1] = self.forest.missing_left[splits]
            place = np.searchsorted(ends, codes.values)
            place[np.isnan(codes.values)] = len(ends) + 1
        self.columns.append(position)
        self.first_code.append(sum(map(len, self.code_rows)))
        self.code_rows.append(self.n_rows + place)
        self._add_rows(splits, lefts)

    def _sets(self, splits, codes, values):
        """For each split, which of some values go left; its sets are of the codes."""
        place = np.minimum(np.searchsorted(codes, values), len(codes) - 1)
        known = codes[place] == values
        lefts = self.forest.lefts[splits][:, place // 32] >> (place % 32).astype(np.uint32) & 1
        return np.where(known, lefts == 1, self.forest.missing_left[splits][:, None])

    def _add_rows(self, splits, lefts):
        forest = self.forest
        left, right = forest.if_left[splits][:, None], forest.if_right[splits][:, None]
        tree = forest.tree[splits]
        begins = np.flatnonzero(np.diff(tree, prepend=-1))
        still = np.bitwise_and.reduceat(np.where(lefts, left, right), begins, axis=0)
        rows = np.tile(forest.all_leaves, (lefts.shape[1], 1))
        rows[:, tree[begins]] &= still.T
        self.parts.append(rows)
        self.n_rows += len(rows)

    def tables(self, values, base):
        """Return what was filled in."""
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


def network_state(network):
    """Return the weights of a network and the trees beside it, as arrays and numbers.

    Parameters
    ----------
    network : torch.nn.Module
        On the CPU.

    Returns
    -------
    dict
        For :func:`load_network_state`, in any process.
    """
    trees = getattr(network, "trees", None)
    return {
        "weights": {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        "trees": None if trees is None else trees.state(),
    }


def load_network_state(network, state):
    """Give a network of the same structure the weights and trees of another.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    state : dict
        What :func:`network_state` returned; nothing of it is shared.
    """
    weights = state["weights"].items()
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights})
    if state["trees"] is not None:
        network.trees = TreesModule.of_state(state["trees"])


class ForestModule(nn.Module):
    """Trees for one column of the target; see :class:`~sk_easytensor.trees.forest.TreeTables`."""

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
