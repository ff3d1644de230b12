"""What a two-tower model is given: a catalogue of items, shared blocks, sets to judge by."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from sklearn.base import clone

from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.columns import RowError, show_value
from sk_easytensor.estimators._inputs import eval_pairs
from sk_easytensor.estimators._keys import Keys, key_values, rows_of_keys
from sk_easytensor.summaries import merge_all
from sk_easytensor.tables import as_table
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.pairs import distinct_items, distinct_rows

__all__ = ["ItemTable", "fit_shared", "key_blocks", "pair_sets"]

OWNER = "EasyTensorTwoTower"


class ItemTable:
    """The items, once each: a catalogue that is given, or the items of the interactions.

    Parameters
    ----------
    table : pyarrow.Table or table of a backend
        Interactions.
    items : table-like or None
        The catalogue.
    key : str or None
        Column of both that names the item.
    item_blocks : list or None
        Blocks of the item tower.
    backend : LocalBackend
        Where the first row of each key is found, if there is no catalogue.

    Attributes
    ----------
    table : pyarrow.Table, table of a backend or None
        A row for each item; without a key one for each interaction. None after the fit.
    keyed : bool
        Whether items have keys.
    keys : ndarray
        The items' keys.
    lookup : Keys
        Finds an item by its key.
    """

    def __init__(self, table, items, key, item_blocks, backend):
        self.key = key
        self.keyed = key is not None
        self.given = items is not None
        if items is not None and key is None:
            raise ValueError(f"{OWNER}: items needs item_key, the column that names an item")
        if items is None and item_blocks is None:
            raise ValueError(
                f"{OWNER}: item_blocks is needed to say which columns are the item's, unless fit "
                "is given a catalogue: fit(X, items=catalogue, item_key=column)"
            )
        self.table = as_table(items) if self.given else table
        self.item_columns = self.table.column_names
        if not self.keyed:
            return
        for where, columns in (("X", table.column_names), ("items", self.item_columns)):
            if key not in columns:
                raise ValueError(
                    f"{OWNER}: item_key names column {key!r}, which {where} does not have; it has "
                    f"{columns}"
                )
        if not self.given:
            self.table = rows_of_keys(table, key, self.item_columns, backend, keep="first")
        self.lookup = Keys(self.table.column(key), key)
        if self.given:
            self.lookup.check_distinct(self.table.column(key))
        self.lookup.forget_rows()
        self.keys = key_values(self.table.column(key))

    def user_columns(self, table):
        """Return the columns of the interactions that are none of the item's."""
        if not self.given:
            raise ValueError(
                f"{OWNER}: user_blocks is needed to say which columns are the user's, unless fit "
                "is given a catalogue: fit(X, items=catalogue, item_key=column)"
            )
        names = [name for name in table.column_names if name not in self.item_columns]
        if not names:
            raise ValueError(f"{OWNER}: X has no column that items does not have")
        return names

    def rows(self, table, *, all_known=True):
        """Return the item of each interaction as a tensor; None if items have no keys.

        Items that are not known are at -1, unless all must be.

        Raises
        ------
        ValueError
            Naming a key that no item has.
        """
        if not self.keyed:
            return None
        if self.key not in table.column_names:
            raise ValueError(
                f"{OWNER}: columns are missing: [{self.key!r}], the key of items; there are "
                f"{table.column_names}"
            )
        column = table.column(self.key)
        rows = self.lookup.rows(column)
        if all_known and (rows < 0).any():
            row = int(np.argmax(rows < 0))
            raise RowError(
                f"{OWNER}: column {self.key!r} holds {show_value(column[row])} in row {{row}}, "
                f"which is not the key of an item; there are {len(self.keys)} items",
                row,
            )
        return torch.from_numpy(rows.astype(np.int64))

    def encoded(self, tower, sets, backend):
        """Return all items, encoded.

        Parameters
        ----------
        tower : Tower
            Of the items.
        sets : list of EncodedRows
            Flat rows of pairs, whose items these are if they have no keys.
        backend : LocalBackend
            Encodes the catalogue.

        Returns
        -------
        TensorFrame
        """
        if self.keyed:
            return tower.encode(self.table, backend)
        found = [items for rows in sets for items in rows.each(distinct_items)]
        return distinct_rows(TensorFrame.concatenate(found))[0]

    def without_rows(self):
        """Return a copy without what is only needed while fitting."""
        other = copy(self)
        other.table = None
        return other


def key_blocks(blocks, key, width):
    """Return a tower's blocks: those given, or by default its key as a category."""
    if blocks is not None or key is None:
        return blocks
    return [("key", CategoryBlock(width=width), [key])]


def pair_sets(eval_set, eval_sample_weight):
    """Check the form of ``eval_set``, whose entries may do without a target.

    Returns
    -------
    list of (str, X, y, weight)
    """
    if isinstance(eval_set, list):
        eval_set = [
            entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (entry, None)
            for entry in eval_set
        ]
    pairs = eval_pairs(eval_set, eval_sample_weight)
    return [(where, *pair, weight) for where, pair, weight in pairs]


def fit_shared(names, user_tower, users, item_tower, items, backend):
    """Fit the blocks that two towers share on the columns of both.

    Raises
    ------
    ValueError
        Naming a block that only one tower has, or that is of two kinds.
    """
    for name in names:
        for tower, parameter in ((user_tower, "user_blocks"), (item_tower, "item_blocks")):
            if name not in tower.blocks_:
                raise ValueError(f"{OWNER}: shared_blocks names {name!r}, which {parameter} lacks")
        ours, theirs = user_tower.blocks_[name], item_tower.blocks_[name]
        if type(ours) is not type(theirs) or ours.get_params() != theirs.get_params():
            raise ValueError(
                f"{OWNER}: shared block {name!r} is {ours!r} in user_blocks and {theirs!r} in "
                "item_blocks; both must be alike"
            )
        columns = list(ours.feature_names_in_), list(theirs.feature_names_in_)
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{OWNER}: shared block {name!r} reads {columns[0]} and {columns[1]}")
        block = clone(ours).fit_columns(backend.some_rows(users).select(columns[0]))
        both = [
            backend.summarize(table, {name: (Renamed(block, columns[0]), own)})[name]
            for table, own in zip((users, items), columns, strict=True)
        ]
        block.finish(merge_all(both))
        user_tower.replace_block(name, block)
        item_tower.replace_block(name, block.renamed(columns[1]))


class Renamed:
    """A block that reads columns which have other names.

    Parameters
    ----------
    block : Block
        Reads the columns.
    names : list of str
        What it takes them for.
    """

    column_wise = False

    def __init__(self, block, names):
        self.block = block
        self.names = names

    def summarize(self, table):
        """Return the block's summary of a chunk of rows."""
        return self.block.summarize(table.rename_columns(self.names))
