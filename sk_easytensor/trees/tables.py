"""Grown trees as tables: which leaves each value of a column leaves open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["TreeTables"]

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
