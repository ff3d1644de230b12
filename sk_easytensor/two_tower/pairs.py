"""Pairs of users and items: which are drawn, and their rows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import clone

from sk_easytensor.blocks.category import CategoryBlock, category_keys
from sk_easytensor.data.columns import RowError, show_value
from sk_easytensor.data.summaries import Summary, merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.estimators.eval_sets import eval_pairs
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.pairs import (
    distinct_items,
    distinct_rows,
    flat_frame,
    numbered_items,
    side_of,
)
from sk_easytensor.training.table_dataset import BaseRowEncoder, TableDataset
from sk_easytensor.two_tower.keys import KeyIndex, key_values, rows_of_keys

__all__ = [
    "ItemCatalogue",
    "ItemIndex",
    "PairEncoder",
    "fit_shared",
    "key_blocks",
    "pair_sets",
    "summarize_interactions",
    "summarize_side",
]


OWNER = "EasyTensorTwoTower"


class ItemCatalogue:
    """The items, once each: a catalogue that is given, or the items of the interactions.

    Parameters
    ----------
    interactions : BaseTableDataset
        A row for each interaction.
    items : table-like or None
        The catalogue.
    key : str or None
        Column of both that names the item.
    item_blocks : list or None
        Blocks of the item tower.
    executor : LocalExecutor
        Finds the first row of each key among interactions in memory, if there is no catalogue.

    Attributes
    ----------
    dataset : BaseTableDataset
        A row for each item, in memory; without a key the interactions.
    item_columns : list of str
        Columns that may be the item's.
    index : ItemIndex
        Finds the items of pairs.
    """

    def __init__(self, interactions, items, key, item_blocks, executor):
        self.given = items is not None
        if items is not None and key is None:
            raise ValueError(f"{OWNER}: items needs item_key, the column that names an item")
        if items is None and item_blocks is None:
            raise ValueError(
                f"{OWNER}: item_blocks is needed to say which columns are the item's, unless fit "
                "is given a catalogue: fit(X, items=catalogue, item_key=column)"
            )
        self.dataset = TableDataset(as_table(items)) if self.given else interactions
        self.item_columns = self.dataset.column_names
        self.index = ItemIndex()
        if key is None:
            return
        for where, columns in (("X", interactions.column_names), ("items", self.item_columns)):
            if key not in columns:
                raise ValueError(
                    f"{OWNER}: item_key names column {key!r}, which {where} does not have; it has "
                    f"{columns}"
                )
        if not self.given:
            rows = rows_of_keys(interactions, key, self.item_columns, executor, keep="first")
            self.dataset = TableDataset(rows)
        self.index = ItemIndex(key, self.dataset.table.column(key), given=self.given)

    def user_columns(self, interactions):
        """Return the columns of the interactions that are none of the item's."""
        if not self.given:
            raise ValueError(
                f"{OWNER}: user_blocks is needed to say which columns are the user's, unless fit "
                "is given a catalogue: fit(X, items=catalogue, item_key=column)"
            )
        names = [name for name in interactions.column_names if name not in self.item_columns]
        if not names:
            raise ValueError(f"{OWNER}: X has no column that items does not have")
        return names

    def encoded(self, tower, sets, executor):
        """Return all items, encoded.

        Parameters
        ----------
        tower : Tower
            Of the items.
        sets : list of Dataset
            Flat rows of pairs, whose items these are if they have no keys.
        executor : LocalExecutor
            Encodes the catalogue.

        Returns
        -------
        TensorFrame
        """
        if self.index.keyed:
            return tower.encode(self.dataset.table, executor)
        found = [items for rows in sets for items in rows.map_chunks(distinct_items)]
        return distinct_rows(TensorFrame.concatenate(found))[0]


class ItemIndex:
    """Finds the items of pairs by their keys; small, and all that predictions need of them.

    Parameters
    ----------
    key : str or None, default=None
        Column that names the item.
    column : pyarrow.ChunkedArray, optional
        The key of each item.
    given : bool, default=False
        Whether there was a catalogue, whose keys have to be distinct.

    Attributes
    ----------
    keyed : bool
        Whether items have keys.
    keys : ndarray
        The items' keys.
    lookup : KeyIndex
        Finds an item by its key.
    """

    def __init__(self, key=None, column=None, *, given=False):
        self.key = key
        self.keyed = key is not None
        self.given = given
        if self.keyed:
            self.lookup = KeyIndex(column, key)
            if given:
                self.lookup.check_distinct(column)
            self.lookup.forget_rows()
            self.keys = key_values(column)

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


def summarize_side(dataset, executor, blocks):
    """Summarise the rows of one side for blocks, of whose columns no others are read.

    Parameters
    ----------
    dataset : BaseTableDataset
        Rows of the side, with other columns too.
    executor : LocalExecutor
        Summarises rows in memory.
    blocks : dict of {str: tuple of (Block, list of str)}
        As of :meth:`~sk_easytensor.training.table_dataset.BaseTableDataset.summarize`.

    Returns
    -------
    Mapping of {str: Summary}
    """
    read = {column for _, columns in blocks.values() for column in columns}
    columns = [name for name in dataset.column_names if name in read]
    return dataset.select(columns).summarize(blocks, executor)


def fit_shared(names, user_tower, users, item_tower, items, executor):
    """Fit the blocks that two towers share on the columns of both.

    Parameters
    ----------
    names : list of str
        The blocks.
    user_tower, item_tower : Tower
        With fitted blocks.
    users, items : BaseTableDataset
        Rows of either side.
    executor : LocalExecutor
        Summarises rows in memory.

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
        block = clone(ours).fit_columns(users.sample().table.select(columns[0]))
        summarize = partial(summarize_renamed, block, columns[0])
        both = [
            dataset.select(own).map_reduce(summarize, executor)
            for dataset, own in zip((users, items), columns, strict=True)
        ]
        block.finish(merge_all(both))
        user_tower.replace_block(name, block)
        item_tower.replace_block(name, block.renamed(columns[1]))


def summarize_renamed(block, names, table):
    """Return a block's summary of columns that have other names."""
    return block.summarize(table.rename_columns(names))


class PairEncoder(BaseRowEncoder):
    """Encodes pairs for both towers.

    Parameters
    ----------
    user_tower, item_tower : Tower
        With fitted blocks.
    items : ItemIndex
        Gives the number of an item, if items have keys.
    target : PairTarget
        Encodes targets.
    executor : LocalExecutor
        Encodes tables.

    Attributes
    ----------
    columns : list of str
        Those that say which item is a pair's.
    """

    def __init__(self, user_tower, item_tower, items, target, executor):
        self.encode_users = user_tower.encoding(executor)
        self.encode_items = item_tower.encoding(executor)
        self.items = items
        self.target = target
        self.columns = [items.key] if items.keyed else list(item_tower.feature_names_in_)

    def encode(self, table, y, weight):
        """Return encoded pairs, as flat rows; there need not be targets, but an array."""
        users = self.encode_users(table)
        rows = self.encode_targets(table, y, weight)
        rows.frame = flat_frame(users, side_of(rows.frame, "item"))
        return rows

    def encode_targets(self, table, y, weight):
        """Return pairs without the users' features."""
        numbers = self.items.rows(table)
        items = self.encode_items(table) if numbers is None else numbered_items(numbers)
        frame = flat_frame(TensorFrame({}, len(items)), items)
        return EncodedDataset(frame, self.target.encode(y), torch.from_numpy(weight).float())


class InteractionSet(Summary):
    """The distinct pairs of a user's key and an item's number.

    Parameters
    ----------
    table : pyarrow.Table
        Columns ``user``, strings, and ``item``.
    """

    def __init__(self, table):
        self.table = table.group_by(["user", "item"], use_threads=False).aggregate([])

    def merge(self, other):
        """Return the pairs of both."""
        return InteractionSet(pa.concat_tables([self.table, other.table]))

    def numbered(self, users):
        """Return the pairs as numbers, sorted.

        Parameters
        ----------
        users : KeyIndex
            Gives the users' numbers.

        Returns
        -------
        ndarray of int64, shape (n_pairs, 2)
        """
        pairs = [users.rows(self.table.column("user")), self.table.column("item").to_numpy()]
        return np.unique(np.column_stack(pairs), axis=0)


def summarize_interactions(user_key, items, table):
    """Return the :class:`InteractionSet` of some interactions.

    Parameters
    ----------
    user_key : str
        Column that names the user.
    items : ItemIndex
        Gives the numbers of items.
    table : pyarrow.Table
        A row for each interaction, with the keys of both.
    """
    users = category_keys(table.column(user_key)).dictionary_decode()
    numbers = pa.array(items.rows(table).numpy())
    return InteractionSet(pa.table({"user": users, "item": numbers}))
