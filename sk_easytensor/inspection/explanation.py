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
    "EnsembleParts",
    "Explanation",
    "NetworkParts",
    "shapley_values",
]


ROWS_AT_ONCE = 2048
"""Rows in a batch of the layers behind the first."""

LOOKUPS_AT_ONCE = 2_000_000
"""Entries of a table of trees that are looked up at a time if only some trees change."""

SCATTERED = 8
"""Time to look up single entries of the table, relative to entries of whole rows."""


class NetworkParts:
    """Intermediate results for some rows: outputs of blocks, first layer, trees, linear model.

    Parameters
    ----------
    model : EncodedModel
        Model with the encoded rows.
    network : BlockNetwork
        Network of the model.
    head : Head
        Head of the network.

    Attributes
    ----------
    linear : bool
        Whether the trunk begins with a linear layer.

    Notes
    -----
    The first layer adds up the contributions of the columns, so that it only needs the difference
    that a replaced column makes. Only the trees that split on the column are looked up again. In
    blocks whose modules have ``output_columns``, a replaced column's outputs are those of the row
    that its value comes from. The modules of other blocks run on the changed encoding.
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
                # Its outputs are at these positions of those that gates multiply.
                weight = torch.eye(n_added)[first_added : first_added + width]
                first_added += width
            elif weight is not None:
                weight = weight[starts[wide] : starts[wide] + width].contiguous()
            n_codes = (
                len(module.tree_codes)
                if module.has_tree_inputs and network.trees is not None
                else 0
            )
            block = BlockParts(model, name, module, weight, first_code, n_codes, network.linear)
            self.blocks[name] = block
            if not (block.is_offset or block.is_added):
                starts[wide] += width
            first_code += block.codes.shape[1]
        self.forests = []
        if network.trees is not None:
            codes = torch.cat([block.codes.int() for block in self.blocks.values()], dim=1)
            self.forests = [ForestRows(forest, codes) for forest in network.trees.forests]
        self.hidden = self.wide = self.offset = self.linear_outputs = None
        if network.linear is not None:
            names = network.linear.names
            contributions = [self.blocks[name].contribution for name in names]
            self.linear_outputs = network.linear.outputs(contributions)
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
                wide = block.outputs @ block.weight
                self.wide = wide if self.wide is None else self.wide + wide

    def mixed(self, rows, donors):
        """Return rows in which columns can be replaced by those of other rows.

        Parameters
        ----------
        rows, donors : torch.Tensor of int64, shape (batch,)
            Parameters of :class:`MixedRows`.

        Returns
        -------
        MixedRows
        """
        return MixedRows(self, rows, donors)

    def is_linear(self, max_columns=100):
        """Return whether the time of a replacement does not depend on the number of other columns.

        Parameters
        ----------
        max_columns : int, default=100
            Number of columns that a block may have if its module must run on all of them.
        """
        return self.linear and all(
            block.column_wise or block.n_columns <= max_columns for block in self.blocks.values()
        )

    def members(self, hidden, wide, outputs, added, offset):
        """Return the outputs of the members, of shape (batch, members, out_features).

        Parameters
        ----------
        hidden : torch.Tensor of shape (batch, units) or None
            Outputs of the first layer; None if the trunk has no such layer.
        wide : torch.Tensor of shape (batch, out_features) or None
            Outputs of the wide layer, which bypasses the trunk.
        outputs : dict of {str: torch.Tensor} or None
            Outputs of each block; only needed if `hidden` is None.
        added : torch.Tensor of shape (batch, n) or None
            Outputs of blocks that are multiplied by gates and added to the outputs.
        offset : torch.Tensor of shape (batch, 1) or None
            Offset that is added to the outputs.
        """
        network = self.network
        if hidden is None:
            return network.join(outputs)
        hidden = network.trunk.after_first(hidden)
        hidden = hidden[:, None, :] if hidden.ndim == 2 else hidden
        result = network.head(hidden)
        result = result if wide is None else result + wide[:, None, :]
        result = result if added is None else result + network.gated_sum(hidden, added)
        return result if offset is None else result + offset[:, None, :]

    def join(self, hidden, wide, outputs, added, offset, leaves, linear):
        """Return the ensemble's outputs, of shape (batch, 1, out_features).

        Parameters
        ----------
        hidden, wide, outputs, added, offset
            Parameters of :meth:`members`.
        leaves : list of torch.Tensor of shape (batch, n_trees)
            For each forest, the values of the leaves that the rows are in.
        linear : torch.Tensor of shape (batch, 1, out_features) or None
            Outputs of the linear model.
        """
        trees, model = self.network.trees, self.network.linear
        combined = None
        if model is None or model.needs_others:
            if trees is None or trees.needs_network:
                members = self.members(hidden, wide, outputs, added, offset)
                combined = self.head.average_members(members)
            if trees is not None:
                pairs = zip(self.forests, leaves, strict=True)
                result = torch.cat([forest.outputs(values) for forest, values in pairs], dim=1)
                result = result if offset is None else result + offset
                combined = self.head.normalize(trees.join_outputs(combined, result[:, None, :]))
        if model is None:
            return combined
        return self.head.normalize(model.join_outputs(combined, linear))


class EnsembleParts:
    """Intermediate results of each network of an ensemble, with the methods of one network's.

    Parameters
    ----------
    parts : list of NetworkParts
        Results of each network.
    head : Head
        Head that averages the outputs of the networks.
    """

    def __init__(self, parts, head):
        self.parts, self.head = parts, head

    def mixed(self, rows, donors):
        """Return rows in which columns can be replaced; see :meth:`NetworkParts.mixed`."""
        return EnsembleRows([part.mixed(rows, donors) for part in self.parts], self.head)

    def is_linear(self):
        """Return whether :meth:`NetworkParts.is_linear` is true for each network."""
        return all(part.is_linear() for part in self.parts)


class EnsembleRows:
    """Rows with replaced columns in each network of an ensemble; see :class:`MixedRows`."""

    def __init__(self, rows, head):
        self.rows, self.head = rows, head

    def replaced(self, places):
        """Return the rows with the values at further positions replaced."""
        return EnsembleRows([rows.replaced(places) for rows in self.rows], self.head)

    def combined(self):
        """Return the averaged outputs, of shape (batch, 1, out_features)."""
        outputs = [rows.combined() for rows in self.rows]
        return self.head.average_members(torch.cat(outputs, dim=1))


class BlockParts:
    """Outputs and tree codes of a block, with the positions that belong to each column.

    Parameters
    ----------
    model : EncodedModel
        Model with the encoded rows.
    name : str
        Name of the block.
    module : BlockModule
        Module of the block.
    weight : torch.Tensor of shape (out_features, units) or None
        Weights by which the next layer multiplies the outputs.
    first_code : int
        Position of the block's first code among the codes of all blocks.
    n_codes : int
        Number of the block's codes.
    linear : LinearModule or None
        Linear model of the network.
    """

    def __init__(self, model, name, module, weight, first_code, n_codes, linear):
        self.wide = module.wide
        self.is_added = module.is_added
        self.is_offset = module.is_offset
        self.weight = weight
        self.first_code = first_code
        self.width = module.out_features
        self.n_codes = n_codes
        self.outputs, self.codes, self.contribution = self.split(model.read(name))
        entries = model.frame[name]
        self.n_columns = sum(
            entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]
            for entry in entries.values()
        )
        self.column_wise = module.output_columns is not None and len(entries) == 1
        if self.contribution.shape[1] and module.linear_columns is None:
            self.column_wise = False
        if self.column_wise:
            ((self.entry, entry),) = entries.items()
            self._outputs_of = by_column(module.output_columns, entry.shape[1])
            columns = module.tree_columns if self.codes.shape[1] else []
            self._codes_of = by_column(columns, entry.shape[1])
            if self.contribution.shape[1]:
                features, weight = module.linear_inputs(**entries), linear.weight(name)
                of_column = by_column(module.linear_columns, entry.shape[1])
                self._contributions = [features[:, at] @ weight[at] for at in of_column]

    def contribution_of(self, columns):
        """Return the part of the linear model's outputs that columns make, for each row."""
        return sum(self._contributions[column] for column in columns)

    def split(self, values):
        """Return outputs, codes and the part of the linear model's outputs, as read together."""
        return values.tensor_split([self.width, self.width + self.n_codes], dim=1)

    def outputs_of(self, columns):
        """Return the positions of the columns' outputs in the block, as an int64 tensor."""
        return torch.cat([self._outputs_of[column] for column in columns])

    def codes_of(self, columns):
        """Return the positions of the columns' codes among those of all blocks."""
        return torch.cat([self._codes_of[column] for column in columns]) + self.first_code


def by_column(columns, n_columns):
    """Return the positions of each column in a list of columns, as a list of int64 tensors."""
    columns = torch.as_tensor(np.asarray(columns, dtype=np.int64))
    counts = torch.bincount(columns, minlength=n_columns).tolist()
    return list(columns.argsort(stable=True).split(counts))


class ForestRows:
    """Trees of one output column of the target, and rows of their table for some encoded rows.

    Parameters
    ----------
    forest : ForestModule
        Trees.
    codes : torch.Tensor of int32, shape (n_rows, n_columns)
        Codes of the rows, which are the inputs of the trees.

    Attributes
    ----------
    values : torch.Tensor of float32, shape (n_rows, n_trees)
        Values of the leaves that the rows are in.
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
        self.column_index = {column: i for i, column in enumerate(forest.columns.tolist())}
        self.trees_of = [torch.from_numpy(np.flatnonzero(is_used)) for is_used in uses]
        # The columns of each tree. Trees that split on fewer columns are padded with a column that
        # leaves every leaf open.
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
        open_leaves = self.table.index_select(0, rows[0])
        of_column = torch.empty_like(open_leaves)
        for column_rows in rows[1:-1]:
            torch.index_select(self.table, 0, column_rows, out=of_column)
            open_leaves &= of_column
        return self._values(open_leaves, torch.arange(self.n_trees)[None])

    def of_trees(self, trees, replaced, donors, rows):
        """Return the values of the leaves of some trees after some columns were replaced.

        Parameters
        ----------
        trees : torch.Tensor of int64, shape (k,)
            Indices of the trees.
        replaced : torch.Tensor of bool, shape (n_columns + 1,)
            Whether a column's values come from `donors`, rather than from `rows`.
        donors, rows : torch.Tensor of int64, shape (batch,)
            Indices of encoded rows.

        Returns
        -------
        torch.Tensor of float32, shape (batch, k)
        """
        parts = []
        n_at_once = max(1, LOOKUPS_AT_ONCE // self.columns_of.shape[1] // len(rows))
        for batch in trees.split(n_at_once):
            columns = self.columns_of[batch].t()[:, :, None]
            source = torch.where(replaced[columns], donors, rows)
            row = self.rows.take(columns * self.rows.shape[1] + source)
            open_leaves = self.table.take(row * self.n_trees + batch[:, None])
            while len(open_leaves) > 1:
                half = (len(open_leaves) + 1) // 2
                open_leaves[: len(open_leaves) - half] &= open_leaves[half:]
                open_leaves = open_leaves[:half]
            parts.append(self._values(open_leaves[0], batch[:, None]).t())
        return torch.cat(parts, dim=1)

    def _values(self, open_leaves, trees):
        leaf = bit_positions(open_leaves).long() + trees * self.forest.n_leaves
        return self.forest.values.reshape(-1)[leaf]


class MixedRows:
    """Rows in which some columns have the values of other rows.

    Parameters
    ----------
    parts : NetworkParts
        Intermediate results for the encoded rows.
    rows : torch.Tensor of int64, shape (batch,)
        Indices of the encoded rows whose columns are replaced.
    donors : torch.Tensor of int64, shape (batch,)
        Index of the encoded row that each row's replaced values come from.
    """

    def __init__(self, parts, rows, donors):
        self.parts, self.rows, self.donors = parts, rows, donors
        self.hidden = None if parts.hidden is None else parts.hidden[rows]
        self.wide = None if parts.wide is None else parts.wide[rows]
        self.added = None if parts.added is None else parts.added[rows]
        self.offset = None if parts.offset is None else parts.offset[rows]
        self.linear = None if parts.linear_outputs is None else parts.linear_outputs[rows]
        self.outputs = None
        if not parts.linear:
            self.outputs = {name: block.outputs[rows] for name, block in parts.blocks.items()}
        self.leaves = [forest.values[rows] for forest in parts.forests]
        self.replaced_codes = [self._none_replaced(forest) for forest in parts.forests]
        # For blocks that run on a changed encoding: replaced positions, outputs and tree codes.
        self.positions, self.read, self.codes, self.contributions = {}, {}, {}, {}

    @staticmethod
    def _none_replaced(forest):
        return torch.zeros(0 if forest.n_trees == 0 else forest.n_columns + 1, dtype=torch.bool)

    def replaced(self, places):
        """Return the rows with the values at further positions replaced.

        Parameters
        ----------
        places : dict of {str: dict of {str: list of int}}
            Positions by block and entry, in the form of :meth:`EncodedModel.columns`.

        Returns
        -------
        MixedRows
        """
        other = object.__new__(MixedRows)
        vars(other).update(vars(self))
        codes = [other._replace(name, positions) for name, positions in places.items()]
        if self.parts.forests and codes:
            other._replace_leaves(torch.cat(codes))
        return other

    def combined(self):
        """Return the ensemble's outputs, of shape (batch, 1, out_features)."""
        results = []
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            batch = slice(start, start + ROWS_AT_ONCE)
            outputs = self.outputs and {
                name: values[batch] for name, values in self.outputs.items()
            }
            hidden, wide, added, offset, linear = (
                values if values is None else values[batch]
                for values in (self.hidden, self.wide, self.added, self.offset, self.linear)
            )
            leaves = [values[batch] for values in self.leaves]
            results.append(self.parts.join(hidden, wide, outputs, added, offset, leaves, linear))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _replace(self, name, positions):
        """Replace a block's outputs, and return the positions of the tree codes that change."""
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
        if block.contribution.shape[1]:
            part = block.contribution_of(columns)
            self.linear = self.linear + (part[self.donors] - part[self.rows])[:, None, :]
        return block.codes_of(columns)

    def _read_again(self, name, block, positions):
        model = self.parts.model
        merged = dict(self.positions.get(name, {}))
        for entry, columns in positions.items():
            merged[entry] = sorted({*merged.get(entry, []), *columns})
        self.positions = {**self.positions, name: merged}
        if model.is_whole(name, merged):
            values = model.read(name)[self.donors]
        else:
            values = model.read_mixed(name, merged, self.rows, self.donors)
        outputs, codes, contribution = block.split(values)
        if contribution.shape[1]:
            before = self.contributions.get(name, block.contribution[self.rows])
            self.linear = self.linear + (contribution - before)[:, None, :]
            self.contributions = {**self.contributions, name: contribution}
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
        """Look up the trees that read the codes at some positions."""
        leaves, all_replaced = [], []
        for forest, values, replaced in zip(
            self.parts.forests, self.leaves, self.replaced_codes, strict=True
        ):
            columns = []
            if forest.n_trees > 0:
                index = forest.column_index
                columns = [index[code] for code in codes.tolist() if code in index]
            if columns:
                replaced = replaced.index_fill(0, torch.tensor(columns), True)
                values = self._leaves(forest, values, replaced, columns)
            leaves.append(values)
            all_replaced.append(replaced)
        self.leaves, self.replaced_codes = leaves, all_replaced

    def _leaves(self, forest, values, replaced, columns):
        trees = torch.cat([forest.trees_of[column] for column in columns])
        trees = trees.unique() if len(columns) > 1 else trees
        cost = SCATTERED * len(trees) * forest.columns_of.shape[1]
        if not self.codes and cost < forest.n_columns * forest.n_trees:
            changed = forest.of_trees(trees, replaced, self.donors, self.rows)
            return values.index_copy(1, trees, changed)
        rows = torch.where(
            replaced[:, None], forest.rows[:, self.donors], forest.rows[:, self.rows]
        )
        for name, codes in self.codes.items():
            first = self.parts.blocks[name].first_code
            for position, column_codes in enumerate(codes.int().unbind(1), start=first):
                if position in forest.column_index:
                    column = forest.column_index[position]
                    index = column_codes + forest.forest.first_code[column]
                    rows[column] = forest.forest.code_rows[index.long()].long()
        return forest.of_rows(rows)


MIXED_ROWS = 4096
"""Pairs of a row and a background row in a batch."""


@dataclass
class Explanation:
    """Contributions of columns to the raw outputs for rows.

    ``shap.Explanation(**vars(explanation))`` converts it to an object of the package ``shap``.

    Attributes
    ----------
    values : ndarray of float64, shape (n_samples, n_features) or (n_samples, n_features, n_outputs)
        Contributions of each column.
    base_values : ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
        Mean raw output of the background rows, the same for all rows.
    feature_names : list of str
        Names of the columns.
    """

    values: np.ndarray
    base_values: np.ndarray
    feature_names: list

    @classmethod
    def of(cls, values, base, names):
        """Return an explanation whose base values are repeated for all rows.

        Parameters
        ----------
        values : ndarray of float64, shape (n_samples, n_features[, n_outputs])
            Contributions of each column.
        base : float or ndarray of float64, shape (n_outputs,)
            Mean raw output of the background rows, or one for each output.
        names : sequence of str
            Names of the columns.

        Returns
        -------
        Explanation
        """
        return cls(values, np.repeat(np.asarray(base)[None], len(values), axis=0), list(names))


def shapley_values(estimator, X, background, n_permutations, max_background, random_state):
    """Return the contributions of columns to the raw outputs of rows.

    Parameters
    ----------
    estimator : EasyTensorClassifier or EasyTensorRegressor
        Fitted estimator.
    X, background, n_permutations, max_background, random_state
        Parameters of the estimator's ``explain``.

    Returns
    -------
    values : ndarray of float64, shape (n_samples, n_features, out_features)
        Contributions to the network's outputs.
    base : ndarray of float64, shape (out_features,)
        Mean outputs of the background rows.

    Raises
    ------
    ValueError
        If a parameter is not valid, if the estimator was fitted with ``base_margin``, or if `X` has
        one row and there is no background.
    """
    owner = f"{type(estimator).__name__}.explain"
    check_number(owner, "n_permutations", n_permutations, low=1, integer=True)
    check_number(owner, "max_background", max_background, low=1, integer=True)
    random_state = check_random_state(random_state)
    if estimator._encoder.with_margin_:
        raise ValueError(
            f"{owner}: offsets passed as base_margin are not a column, so that their contribution "
            "has no entry; fit with the parameter offset, which names a column"
        )
    backend = resolve_backend(estimator.backend, estimator.n_jobs)
    table = estimator._read(X)
    if background is None and len(table) < 2:
        raise ValueError(
            f"{owner}: X of {len(table)} rows cannot be its own background; pass background, a "
            "table of rows that contributions are differences from, such as training rows"
        )
    background = table if background is None else estimator._read(background)
    if len(background) > max_background:
        sample = random_state.choice(len(background), max_background, replace=False)
        background = background.take(np.sort(sample))
    rows, background = (
        estimator._encoder.encode_table(part, backend) for part in (table, background)
    )
    orders, values = None, []
    step = max(1, MIXED_ROWS // len(background))
    for start in range(0, len(rows), step):
        batch = rows.take(slice(start, start + step))
        model = estimator._inspection_model(TensorFrame.concatenate([batch, background]), backend)
        groups = model.columns()
        if orders is None:
            orders = draw_orders(len(groups), n_permutations, random_state)
        base = model.outputs[len(batch) :, 0].double().mean(0)
        of_groups = contributions(model, groups, orders, len(batch))
        values.append(by_columns(of_groups, groups, len(model.places)))
    return np.concatenate(values), base.numpy()


def draw_orders(n_groups, n_permutations, random_state):
    """Return orders in which columns are replaced: all orders, or drawn ones with their reverses.

    Parameters
    ----------
    n_groups : int
        Number of groups of columns.
    n_permutations : int
        Number of orders to draw, without the reverses.
    random_state : RandomState
        Source of the orders.

    Returns
    -------
    list of list of int
    """
    if n_groups <= 10 and factorial(n_groups) <= 2 * n_permutations:
        return [list(order) for order in permutations(range(n_groups))]
    drawn = [random_state.permutation(n_groups).tolist() for _ in range(n_permutations)]
    return [order for forward in drawn for order in (forward, forward[::-1])]


def contributions(model, groups, orders, n_rows):
    """Return the changes of the outputs as the columns of background rows are replaced.

    Parameters
    ----------
    model : EncodedModel
        Model with the rows to explain, followed by the background rows.
    groups : list of (list of int, dict)
        Groups of columns, in the form of :meth:`EncodedModel.columns`.
    orders : list of list of int
        Orders in which the groups are replaced.
    n_rows : int
        Number of rows to explain.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_groups, out_features)
        Means over background rows and orders.
    """
    n_background = len(model.frame) - n_rows
    rows = torch.arange(n_background).repeat(n_rows) + n_rows
    donors = torch.arange(n_rows).repeat_interleave(n_background)
    outputs = model.outputs[:, 0].double()
    values = torch.zeros(n_rows, len(groups), outputs.shape[1], dtype=torch.float64)
    with model.running():
        first = model.network_parts.mixed(rows, donors)
        for order in orders:
            mixed, before = first, outputs[rows]
            for group in order[:-1]:
                mixed = mixed.replaced(groups[group][1])
                after = mixed.combined()[:, 0].double()
                values[:, group] += (after - before).unflatten(0, (n_rows, n_background)).mean(1)
                before = after
            # With every column replaced, the row is the one to explain, whose output is known.
            for group in order[-1:]:
                change = outputs[donors] - before
                values[:, group] += change.unflatten(0, (n_rows, n_background)).mean(1)
    return (values / max(len(orders), 1)).numpy()


def by_columns(of_groups, groups, n_columns):
    """Divide the contributions of groups evenly among their columns."""
    values = np.zeros((len(of_groups), n_columns, of_groups.shape[2]))
    for group, (indices, _) in enumerate(groups):
        values[:, indices] = of_groups[:, group, None] / len(indices)
    return values
