"""Contributions of columns to the output for one row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import torch
from sklearn.utils import check_random_state

from sk_easytensor._utils.validation import check_number
from sk_easytensor.backends import resolve_backend
from sk_easytensor.tensors import Ragged, TensorFrame
from sk_easytensor.trees.forest import bit_positions

__all__ = [
    "Explanation",
    "MixedRows",
    "NetworkParts",
    "shapley_values",
]


ROWS_AT_ONCE = 2048
"""Rows that pass through the layers behind the first at a time."""

LOOKUPS_AT_ONCE = 2_000_000
"""Entries of a table of trees that are looked up at a time where only some trees are concerned."""

SCATTERED = 8
"""How many times as long it takes to look up an entry as one of a whole row of them."""


class NetworkParts:
    """What each block gives of some rows, and what the first layer and the trees make of it.

    Parameters
    ----------
    model : EncodedModel
        Of the rows.
    network : BlockNetwork
        Of the model.
    head : Head
        Of the network.

    Attributes
    ----------
    linear : bool
        Whether the trunk begins with a linear layer.

    Notes
    -----
    The first layer adds up the contributions of the columns, so that it only needs the difference
    that a replaced column makes. Only those trees are looked up again that split on the column. In
    blocks whose modules have ``output_columns``, a replaced column's outputs are those of the row
    that its value comes from. Other blocks read the changed encoding.
    """

    def __init__(self, model, network, head):
        self.model, self.network, self.head = model, network, head
        layer = network.trunk.first_layer() if hasattr(network.trunk, "first_layer") else None
        self.linear = layer is not None
        starts, first_code = {False: 0, True: 0}, 0
        weights = {
            False: layer[0].t() if self.linear else None,
            True: None if network.wide is None else network.wide.weight.t(),
        }
        self.blocks, first_added = {}, 0
        added = [module.out_features for module in network.blocks if module.is_added]
        n_added = sum(added)
        for name, module in zip(network.names, network.blocks, strict=True):
            wide, width = module.wide, module.out_features
            weight = weights[wide]
            if module.is_offset:
                weight = torch.ones(1, 1)
            elif module.is_added:
                # Where its outputs stand among those that gates multiply.
                weight = torch.eye(n_added)[first_added : first_added + width]
                first_added += width
            elif weight is not None:
                weight = weight[starts[wide] : starts[wide] + width].contiguous()
            block = BlockParts(model, name, module, weight, first_code)
            self.blocks[name] = block
            if not (block.is_offset or block.is_added):
                starts[wide] += width
            first_code += block.codes.shape[1]
        self.forests = []
        if network.trees is not None:
            codes = torch.cat([block.codes.int() for block in self.blocks.values()], dim=1)
            self.forests = [ForestRows(forest, codes) for forest in network.trees.forests]
        self.hidden = self.wide = self.offset = None
        if network.offset_name is not None:
            self.offset = self.blocks[network.offset_name].outputs
        self.added = None
        if n_added:
            outputs = [self.blocks[name].outputs for name in network.added_names]
            self.added = torch.cat(outputs, dim=1)
        if self.linear:
            self.hidden = layer[1].repeat(len(model.frame), 1)
            for block in self.blocks.values():
                if not (block.wide or block.is_offset or block.is_added):
                    self.hidden += block.outputs @ block.weight
        for block in self.blocks.values():
            if block.wide:
                found = block.outputs @ block.weight
                self.wide = found if self.wide is None else self.wide + found

    def is_linear(self, most=100):
        """Tell whether the time of a replacement does not depend on the number of other columns.

        Parameters
        ----------
        most : int, default=100
            Columns of a block that is read again as a whole, at most.
        """
        return self.linear and all(
            block.column_wise or block.n_columns <= most for block in self.blocks.values()
        )

    def members(self, hidden, wide, outputs, added, offset):
        """Return the outputs of the members, of shape (batch, members, out_features).

        Parameters
        ----------
        hidden : torch.Tensor of shape (batch, units) or None
            Outputs of the first layer; None where the trunk has no such layer.
        wide : torch.Tensor of shape (batch, out_features) or None
            Outputs of the layer past the trunk.
        outputs : dict of {str: torch.Tensor} or None
            What each block gives; only needed without `hidden`.
        added : torch.Tensor of shape (batch, n) or None
            What is multiplied by gates and added to the outputs.
        offset : torch.Tensor of shape (batch, 1) or None
            What is added to the outputs.
        """
        network = self.network
        if hidden is None:
            return network.join(outputs)
        hidden = network.trunk.after_first(hidden)
        hidden = hidden[:, None, :] if hidden.ndim == 2 else hidden
        found = network.head(hidden)
        found = found if wide is None else found + wide[:, None, :]
        found = found if added is None else found + network.gated_sum(hidden, added)
        return found if offset is None else found + offset[:, None, :]

    def join(self, hidden, wide, outputs, added, offset, leaves):
        """Return the ensemble's outputs, of shape (batch, 1, out_features).

        Parameters
        ----------
        hidden, wide, outputs, added, offset
            As of :meth:`members`.
        leaves : list of torch.Tensor of shape (batch, n_trees)
            For each forest the values of the leaves that the rows are in.
        """
        trees = self.network.trees
        combined = None
        if trees is None or trees.needs_network:
            combined = self.head.average_members(self.members(hidden, wide, outputs, added, offset))
        if trees is None:
            return combined
        pairs = zip(self.forests, leaves, strict=True)
        found = torch.cat([forest.outputs(values) for forest, values in pairs], dim=1)
        found = found if offset is None else found + offset
        return self.head.normalize(trees.join_outputs(combined, found[:, None, :]))


class BlockParts:
    """A block's outputs and codes for trees, and which of them belong to each column.

    Parameters
    ----------
    model : EncodedModel
        Of the rows.
    name : str
        Name of the block.
    module : torch.nn.Module
        Its module.
    weight : torch.Tensor of shape (out_features, units) or None
        Of the layer that reads the outputs.
    first_code : int
        Position of the block's first column among all that trees read.
    """

    def __init__(self, model, name, module, weight, first_code):
        self.wide = module.wide
        self.is_added = module.is_added
        self.is_offset = module.is_offset
        self.weight = weight
        self.first_code = first_code
        self.width = module.out_features
        self.outputs, self.codes = model.read(name).tensor_split([self.width], dim=1)
        entries = model.frame[name]
        self.n_columns = sum(
            entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]
            for entry in entries.values()
        )
        self.column_wise = module.output_columns is not None and len(entries) == 1
        if self.column_wise:
            ((self.entry, entry),) = entries.items()
            self._outputs_of = by_column(module.output_columns, entry.shape[1])
            columns = module.tree_columns if self.codes.shape[1] else []
            self._codes_of = by_column(columns, entry.shape[1])

    def outputs_of(self, columns):
        """Return the positions of the outputs of some columns, as an int64 tensor."""
        return torch.cat([self._outputs_of[column] for column in columns])

    def codes_of(self, columns):
        """Return the positions of their codes among those of all blocks."""
        return torch.cat([self._codes_of[column] for column in columns]) + self.first_code


def by_column(columns, n_columns):
    """Return for each column where it stands in a list of columns, as a list of int64 tensors."""
    columns = torch.as_tensor(np.asarray(columns, dtype=np.int64))
    counts = torch.bincount(columns, minlength=n_columns).tolist()
    return list(columns.argsort(stable=True).split(counts))


class ForestRows:
    """Trees of one output column of the target, and rows of their table for some encoded rows.

    Parameters
    ----------
    forest : ForestModule
        The trees.
    codes : torch.Tensor of int32, shape (n_rows, n_columns)
        What trees read of the rows.

    Attributes
    ----------
    values : torch.Tensor of float32, shape (n_rows, n_trees)
        Of the leaves that the rows are in.
    """

    def __init__(self, forest, codes):
        self.forest = forest
        self.n_trees = forest.n_trees
        if self.n_trees == 0:
            self.values = torch.zeros(len(codes), 0)
            return
        table = forest.open_leaves.numpy()
        every_leaf = np.bitwise_or.reduce(table, axis=0)
        code_rows, first_code = forest.code_rows.numpy(), forest.first_code.numpy()
        begins = np.minimum.reduceat(code_rows, first_code)
        uses = np.logical_or.reduceat(table != every_leaf, begins, axis=0)
        n_columns = len(begins)
        self.place = {column: place for place, column in enumerate(forest.columns.tolist())}
        self.trees_of = [torch.from_numpy(np.flatnonzero(each)) for each in uses]
        # The columns of each tree; those that split on fewer columns have further ones that leave
        # every leaf open.
        self.columns_of = np.full((self.n_trees, max(uses.sum(0).max(), 1)), n_columns)
        tree, column = np.nonzero(uses.T)
        counts = np.bincount(tree, minlength=self.n_trees)
        position = np.arange(len(tree)) - np.repeat(counts.cumsum() - counts, counts)
        self.columns_of[tree, position] = column
        self.columns_of = torch.from_numpy(self.columns_of)
        self.table = torch.from_numpy(np.concatenate([table, every_leaf[None]]))
        rows = forest._rows(codes).long()
        self.rows = torch.cat([rows, torch.full_like(rows[:1], len(table))])
        self.n_columns = n_columns
        self.values = self.of_rows(self.rows)

    def outputs(self, values):
        """Return the outputs, of shape (batch, n_outputs), from the values of leaves."""
        n_outputs = self.forest.n_outputs
        return values.unflatten(1, (self.n_trees // n_outputs, n_outputs)).sum(1) + self.forest.base

    def of_rows(self, rows):
        """Return the values of the leaves of all trees.

        Parameters
        ----------
        rows : torch.Tensor of int64, shape (n_columns + 1, batch)
            Rows of the table.
        """
        left = self.table.index_select(0, rows[0])
        found = torch.empty_like(left)
        for of_column in rows[1:-1]:
            torch.index_select(self.table, 0, of_column, out=found)
            left &= found
        return self._values(left, torch.arange(self.n_trees)[None])

    def of_trees(self, trees, replaced, donors, rows):
        """Return the values of the leaves of some trees, where some columns are replaced.

        Parameters
        ----------
        trees : torch.Tensor of int64, shape (k,)
            Numbers of the trees.
        replaced : torch.Tensor of bool, shape (n_columns + 1,)
            Whether a column's values come from `donors`, rather than from `rows`.
        donors, rows : torch.Tensor of int64, shape (batch,)
            Which of the encoded rows.

        Returns
        -------
        torch.Tensor of float32, shape (batch, k)
        """
        parts = []
        for some in trees.split(max(1, LOOKUPS_AT_ONCE // self.columns_of.shape[1] // len(rows))):
            columns = self.columns_of[some].t()[:, :, None]
            source = torch.where(replaced[columns], donors, rows)
            row = self.rows.take(columns * self.rows.shape[1] + source)
            left = self.table.take(row * self.n_trees + some[:, None])
            while len(left) > 1:
                half = (len(left) + 1) // 2
                left[: len(left) - half] &= left[half:]
                left = left[:half]
            parts.append(self._values(left[0], some[:, None]).t())
        return torch.cat(parts, dim=1)

    def _values(self, left, trees):
        leaf = bit_positions(left).long() + trees * self.forest.n_leaves
        return self.forest.values.reshape(-1)[leaf]


class MixedRows:
    """Rows, some of whose columns have the values of other rows.

    Parameters
    ----------
    parts : NetworkParts
        Of the encoded rows.
    rows : torch.Tensor of int64, shape (batch,)
        Which of the encoded rows these are at first.
    donors : torch.Tensor of int64, shape (batch,)
        The encoded row that each row's replaced values come from.
    """

    def __init__(self, parts, rows, donors):
        self.parts, self.rows, self.donors = parts, rows, donors
        self.hidden = None if parts.hidden is None else parts.hidden[rows]
        self.wide = None if parts.wide is None else parts.wide[rows]
        self.added = None if parts.added is None else parts.added[rows]
        self.offset = None if parts.offset is None else parts.offset[rows]
        self.outputs = None
        if not parts.linear:
            self.outputs = {name: block.outputs[rows] for name, block in parts.blocks.items()}
        self.leaves = [forest.values[rows] for forest in parts.forests]
        self.replaced_codes = [self._none_replaced(forest) for forest in parts.forests]
        # Of blocks that read a changed encoding: where it is replaced, and what they make of it.
        self.positions, self.read, self.codes = {}, {}, {}

    @staticmethod
    def _none_replaced(forest):
        return torch.zeros(0 if forest.n_trees == 0 else forest.n_columns + 1, dtype=torch.bool)

    def replaced(self, places):
        """Return the rows with the values at some more places replaced.

        Parameters
        ----------
        places : dict
            Block to entry to positions, as of :meth:`EncodedModel.columns`.

        Returns
        -------
        MixedRows
        """
        other = object.__new__(MixedRows)
        vars(other).update(vars(self))
        codes = [other._replace(*each) for each in places.items()]
        if self.parts.forests and codes:
            other._replace_leaves(torch.cat(codes))
        return other

    def combined(self):
        """Return the ensemble's outputs, of shape (batch, 1, out_features)."""
        found = []
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            outputs = self.outputs and {name: each[some] for name, each in self.outputs.items()}
            hidden, wide, added, offset = (
                each if each is None else each[some]
                for each in (self.hidden, self.wide, self.added, self.offset)
            )
            leaves = [each[some] for each in self.leaves]
            found.append(self.parts.join(hidden, wide, outputs, added, offset, leaves))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _replace(self, name, positions):
        """Replace a block's outputs, and return which columns of the trees change."""
        block = self.parts.blocks[name]
        if not block.column_wise:
            return self._read_again(name, block, positions)
        columns = positions.get(block.entry, [])
        if not columns:
            return torch.zeros(0, dtype=torch.int64)
        own = block.outputs_of(columns)
        values = block.outputs[:, own]
        if self.outputs is not None:
            changed = self.outputs[name].index_copy(1, own, values[self.donors])
            self.outputs = {**self.outputs, name: changed}
        if block.weight is not None:
            projected = values @ block.weight[own]
            self._add(block, projected[self.donors] - projected[self.rows])
        return block.codes_of(columns)

    def _read_again(self, name, block, positions):
        model = self.parts.model
        merged = dict(self.positions.get(name, {}))
        for entry, columns in positions.items():
            merged[entry] = sorted({*merged.get(entry, []), *columns})
        self.positions = {**self.positions, name: merged}
        if model.is_whole(name, merged):
            found = model.read(name)[self.donors]
        else:
            found = model.read_mixed(name, merged, self.rows, self.donors)
        outputs, codes = found.tensor_split([block.width], dim=1)
        if self.outputs is not None:
            self.outputs = {**self.outputs, name: outputs}
        if block.weight is not None:
            before = self.read.get(name)
            before = block.outputs[self.rows] if before is None else before
            self._add(block, (outputs - before) @ block.weight)
        self.read = {**self.read, name: outputs}
        if codes.shape[1]:
            self.codes = {**self.codes, name: codes}
        return torch.arange(codes.shape[1]) + block.first_code

    def _add(self, block, change):
        if block.is_offset:
            self.offset = self.offset + change
        elif block.is_added:
            self.added = self.added + change
        elif block.wide:
            self.wide = self.wide + change
        elif self.hidden is not None:
            self.hidden = self.hidden + change

    def _replace_leaves(self, codes):
        """Look up the trees that read some columns of codes."""
        leaves, all_replaced = [], []
        for forest, values, replaced in zip(
            self.parts.forests, self.leaves, self.replaced_codes, strict=True
        ):
            places = (
                []
                if forest.n_trees == 0
                else [forest.place[code] for code in codes.tolist() if code in forest.place]
            )
            if places:
                replaced = replaced.index_fill(0, torch.tensor(places), True)
                values = self._leaves(forest, values, replaced, places)
            leaves.append(values)
            all_replaced.append(replaced)
        self.leaves, self.replaced_codes = leaves, all_replaced

    def _leaves(self, forest, values, replaced, places):
        trees = torch.cat([forest.trees_of[place] for place in places])
        trees = trees.unique() if len(places) > 1 else trees
        few = SCATTERED * len(trees) * forest.columns_of.shape[1]
        if not self.codes and few < forest.n_columns * forest.n_trees:
            found = forest.of_trees(trees, replaced, self.donors, self.rows)
            return values.index_copy(1, trees, found)
        rows = torch.where(
            replaced[:, None], forest.rows[:, self.donors], forest.rows[:, self.rows]
        )
        for name, codes in self.codes.items():
            first = self.parts.blocks[name].first_code
            for position, of_column in enumerate(codes.int().unbind(1), start=first):
                if position in forest.place:
                    place = forest.place[position]
                    index = of_column + forest.forest.first_code[place]
                    rows[place] = forest.forest.code_rows[index.long()].long()
        return forest.of_rows(rows)


MIXED_ROWS = 4096
"""Pairs of a row and a background row that are computed at a time."""


@dataclass
class Explanation:
    """Contributions of columns to the raw outputs for rows.

    ``shap.Explanation(**vars(explanation))`` makes an object of the package ``shap`` of it.

    Attributes
    ----------
    values : ndarray of float64, shape (n_samples, n_features) or (n_samples, n_features, n_outputs)
        Contributions.
    base_values : ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
        Mean raw output of the background rows, the same for all rows.
    feature_names : list of str
        Columns.
    """

    values: np.ndarray
    base_values: np.ndarray
    feature_names: list

    @classmethod
    def of(cls, values, base, names):
        """Return an explanation with a base value, or one for each output, repeated for all rows.

        Parameters
        ----------
        values : ndarray
            Contributions.
        base : float or ndarray of float64, shape (n_outputs,)
            Base value.
        names : sequence of str
            Columns.
        """
        return cls(values, np.repeat(np.asarray(base)[None], len(values), axis=0), list(names))


def shapley_values(estimator, X, background, n_permutations, max_background, random_state):
    """Return the contributions of columns to the raw outputs of rows.

    Parameters
    ----------
    estimator : EasyTensorClassifier or EasyTensorRegressor
        Fitted.
    X, background, n_permutations, max_background, random_state
        As of the estimator's ``explain``.

    Returns
    -------
    values : ndarray of float64, shape (n_samples, n_features, out_features)
        Contributions to the network's outputs.
    base : ndarray of float64, shape (out_features,)
        Mean outputs of the background rows.
    """
    owner = f"{type(estimator).__name__}.explain"
    check_number(owner, "n_permutations", n_permutations, low=1, integer=True)
    check_number(owner, "max_background", max_background, low=1, integer=True)
    random_state = check_random_state(random_state)
    if estimator._encoder.with_margin:
        raise ValueError(
            f"{owner}: offsets given as base_margin are no column, so that their contribution has "
            "no entry; fit with the parameter offset, which names a column"
        )
    backend = resolve_backend(estimator.backend, estimator.n_jobs)
    table = estimator._read(X)
    if background is None and len(table) < 2:
        raise ValueError(
            f"{owner}: X of {len(table)} rows cannot be its own background; give background, a "
            "table of rows that contributions are differences from, such as training rows"
        )
    others = table if background is None else estimator._read(background)
    if len(others) > max_background:
        chosen = random_state.choice(len(others), max_background, replace=False)
        others = others.take(np.sort(chosen))
    rows, others = (estimator._encoder.encode_table(each, backend) for each in (table, others))
    orders, values = None, []
    step = max(1, MIXED_ROWS // len(others))
    for start in range(0, len(rows), step):
        some = rows.take(slice(start, start + step))
        model = estimator._inspection_model(TensorFrame.concatenate([some, others]), backend)
        groups = model.columns()
        if orders is None:
            orders = draw_orders(len(groups), n_permutations, random_state)
        base = model.outputs[len(some) :, 0].double().mean(0)
        found = contributions(model, groups, orders, len(some))
        values.append(by_columns(found, groups, len(model.places)))
    return np.concatenate(values), base.numpy()


def draw_orders(n_groups, n_permutations, random_state):
    """Return orders in which columns are replaced: all there are, or some, each with its reverse.

    Parameters
    ----------
    n_groups : int
        Columns.
    n_permutations : int
        Orders to draw.
    random_state : RandomState
        Source of the orders.

    Returns
    -------
    list of list of int
    """
    if n_groups <= 10 and factorial(n_groups) <= 2 * n_permutations:
        return [list(order) for order in permutations(range(n_groups))]
    drawn = [random_state.permutation(n_groups).tolist() for _ in range(n_permutations)]
    return [order for each in drawn for order in (each, each[::-1])]


def contributions(model, groups, orders, n_rows):
    """Return by how much outputs change as the columns of background rows are replaced.

    Parameters
    ----------
    model : EncodedModel
        Of the rows to explain, followed by the background rows.
    groups : list of (list of int, dict)
        As of :meth:`EncodedModel.columns`.
    orders : list of list of int
        In which they are replaced.
    n_rows : int
        Rows to explain.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_groups, out_features)
        Mean over background rows and orders.
    """
    n_others = len(model.frame) - n_rows
    rows = torch.arange(n_others).repeat(n_rows) + n_rows
    donors = torch.arange(n_rows).repeat_interleave(n_others)
    outputs = model.outputs[:, 0].double()
    values = torch.zeros(n_rows, len(groups), outputs.shape[1], dtype=torch.float64)
    with model.running():
        first = MixedRows(model.network_parts, rows, donors)
        for order in orders:
            mixed, before = first, outputs[rows]
            for group in order[:-1]:
                mixed = mixed.replaced(groups[group][1])
                after = mixed.combined()[:, 0].double()
                values[:, group] += (after - before).unflatten(0, (n_rows, n_others)).mean(1)
                before = after
            # With every column replaced it is the row to explain: its output is exact.
            for group in order[-1:]:
                change = outputs[donors] - before
                values[:, group] += change.unflatten(0, (n_rows, n_others)).mean(1)
    return (values / max(len(orders), 1)).numpy()


def by_columns(found, groups, n_columns):
    """Share the contributions of groups evenly among their columns."""
    values = np.zeros((len(found), n_columns, found.shape[2]))
    for place, (indices, _) in enumerate(groups):
        values[:, indices] = found[:, place, None] / len(indices)
    return values
