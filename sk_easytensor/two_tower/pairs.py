"""Pairs of users and items: keys, the catalogue of items, encoding of pairs, pairs seen before."""

from __future__ import annotations

import logging
from copy import copy
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.base import clone

from sk_easytensor._utils.validation import warn_user
from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.data.columns import RowError, show_value
from sk_easytensor.data.key_index import KeyIndex, key_values
from sk_easytensor.data.keys import category_keys, hash_strings
from sk_easytensor.data.spelling import has_code_name
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

__all__ = [
    "ItemCatalogue",
    "ItemIndex",
    "PairEncoder",
    "fit_shared",
    "key_blocks",
    "pair_sets",
    "rows_of_keys",
    "summarize_interactions",
    "summarize_side",
    "without_unknown_items",
]


OWNER = "EasyTensorTwoTower"

logger = logging.getLogger("sk_easytensor")


class KeyedRows(Summary):
    """The first or the last row of each key.

    Merging is associative, but not commutative: rows of `other` come later.

    Parameters
    ----------
    table : pyarrow.Table
        A row for each key, in the order of the keys' first occurrence.
    key : str
        Column of keys.
    keep : {"first", "last"}
        Which row of each key is kept.
    """

    def __init__(self, table, key, keep):
        self.table = table
        self.key = key
        self.keep = keep

    @classmethod
    def of(cls, table, key, keep):
        """Return the rows that are kept of a table."""
        keys = KeyIndex(table.column(key), key, OWNER)
        rows = np.sort(keys.first) if keep == "first" else keys.last()
        return cls(table.take(pa.array(rows)), key, keep)

    def merge(self, other):
        """Return the rows that are kept of both, where those of `other` are later."""
        return self.of(pa.concat_tables([self.table, other.table]), self.key, self.keep)


def rows_of_keys(dataset, key, columns, executor, keep):
    """Return the first or the last row of each key of a data set.

    Parameters
    ----------
    dataset : BaseTableDataset
        Rows.
    key : str
        Column of keys.
    columns : list of str
        Columns to return.
    executor : LocalExecutor
        Executor for rows in memory.
    keep : {"first", "last"}
        Which row of each key is returned.

    Returns
    -------
    pyarrow.Table
        A row for each key, in the order of the keys' first occurrence.

    Raises
    ------
    ValueError
        If a key is missing. The message names the row.
    TypeError
        If the type of the column is not one of keys.
    """
    columns = list(dict.fromkeys([key, *columns]))
    reduced = dataset.select(columns).map_reduce(
        partial(KeyedRows.of, key=key, keep=keep), executor
    )
    rows = reduced.table.select([name for name in dataset.column_names if name in columns])
    return rows.unify_dictionaries().combine_chunks()


class ItemCatalogue:
    """The distinct items: those of a catalogue that the user passes, or of the interactions.

    Parameters
    ----------
    interactions : BaseTableDataset
        A row for each interaction.
    items : table-like or None
        Catalogue, with a row for each item; None to take the items of the interactions.
    key : str or None
        Column of keys of items, in `interactions` and `items`.
    item_blocks : list or None
        Blocks of the item tower.
    executor : LocalExecutor
        Executor that finds the first row of each key among interactions in memory, if there is no
        catalogue.

    Attributes
    ----------
    dataset : BaseTableDataset
        A row for each item, in memory; without a key the interactions.
    has_catalogue : bool
        Whether `items` was passed.
    item_columns : list of str
        Columns that the item tower may read.
    index : ItemIndex
        Lookup of the items of pairs.

    Raises
    ------
    ValueError
        If `items` has no key, if there are neither `items` nor `item_blocks`, or if a table does
        not have the column `key`.
    """

    def __init__(self, interactions, items, key, item_blocks, executor):
        self.has_catalogue = items is not None
        if items is not None and key is None:
            raise ValueError(f"{OWNER}: items needs item_key, the column of keys of items")
        if items is None and item_blocks is None:
            raise ValueError(
                f"{OWNER}: item_blocks is needed to say which columns are the item's, unless fit "
                "is given a catalogue: fit(X, items=catalogue, item_key=column)"
            )
        self.dataset = TableDataset(as_table(items)) if self.has_catalogue else interactions
        self.item_columns = self.dataset.column_names
        self.index = ItemIndex()
        if key is None:
            return
        for table, columns in (("X", interactions.column_names), ("items", self.item_columns)):
            if key not in columns:
                raise ValueError(
                    f"{OWNER}: item_key names column {key!r}, which {table} does not have; it has "
                    f"{columns}"
                )
        if not self.has_catalogue:
            rows = rows_of_keys(interactions, key, self.item_columns, executor, keep="first")
            self.dataset = TableDataset(rows)
        column = self.dataset.table.column(key)
        self.index = ItemIndex(key, column, from_catalogue=self.has_catalogue)

    def user_columns(self, interactions):
        """Return the columns of the interactions that the catalogue does not have."""
        if not self.has_catalogue:
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
            Item tower with fitted blocks.
        sets : list of Dataset
            Flat rows of pairs, from which the items are taken if they have no keys.
        executor : LocalExecutor
            Executor that encodes the catalogue.

        Returns
        -------
        TensorFrame
        """
        if self.index.keyed:
            return tower.encode(self.dataset.table, executor)
        frames = [items for rows in sets for items in rows.map_chunks(distinct_items)]
        return distinct_rows(TensorFrame.concatenate(frames))[0]


class ItemIndex:
    """Lookup of the items of pairs by their keys. Fitted estimators hold it, not the items.

    Parameters
    ----------
    key : str or None, default=None
        Column of keys of items; None if items have no keys.
    column : pyarrow.ChunkedArray, optional
        Key of each item.
    from_catalogue : bool, default=False
        Whether the user passed a catalogue, whose keys must be distinct.

    Attributes
    ----------
    keyed : bool
        Whether items have keys.
    keys : ndarray of shape (n_items,)
        Keys of the items; only if `keyed`.
    lookup : KeyIndex
        Lookup of items by key; only if `keyed`.

    Raises
    ------
    ValueError
        If a key is missing, or if the keys of a catalogue are not distinct.
    """

    def __init__(self, key=None, column=None, *, from_catalogue=False):
        self.key = key
        self.keyed = key is not None
        self.from_catalogue = from_catalogue
        if self.keyed:
            self.lookup = KeyIndex(column, key, OWNER)
            if from_catalogue:
                self.lookup.check_distinct(column)
            self.lookup.forget_rows()
            self.keys = key_values(column)

    def of_index(self, index):
        """Return a lookup of the items of an :class:`EmbeddingIndex` with the same key column."""
        items = copy(self)
        items.lookup, items.keys = index.lookup, index.keys
        return items

    def rows(self, table, *, all_known=True):
        """Return the number of the item of each interaction.

        Parameters
        ----------
        table : pyarrow.Table
            A row for each interaction.
        all_known : bool, default=True
            Whether unknown items raise an error.

        Returns
        -------
        torch.Tensor of int64, shape (n_rows,), or None
            -1 for unknown items; None if items have no keys.

        Raises
        ------
        ValueError
            If `table` lacks the column of keys, or, with `all_known`, if a key is unknown.
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
                f"which is not the key of an item; there are {len(self.keys)} items. Use "
                "unknown_items='drop' to leave such rows out",
                row,
            )
        return torch.from_numpy(rows.astype(np.int64))

    def knows(self, table):
        """Return whether the item of each row of a table is known, bool of shape (n_rows,)."""
        return self.lookup.rows(table.column(self.key)) >= 0


def without_unknown_items(rows, items, name):
    """Return interactions without those of unknown items, with a warning that says how many.

    Parameters
    ----------
    rows : BaseTableDataset
        A row for each interaction.
    items : ItemIndex
        The items.
    name : str
        Name of the rows, for messages.

    Returns
    -------
    BaseTableDataset

    Raises
    ------
    ValueError
        If the item of no row is known.
    """
    if not items.keyed or items.key not in rows.column_names:
        return rows
    known = rows.filter([items.key], items.knows)
    n_dropped = len(rows) - len(known)
    if not n_dropped:
        return rows
    if not len(known):
        raise ValueError(
            f"{OWNER}: no row of {name} has a known item in column {items.key!r}; there are "
            f"{len(items.keys)} items"
        )
    warn_user(
        f"{OWNER}: {n_dropped} of {len(rows)} rows of {name} are left out, because their items in "
        f"column {items.key!r} are unknown"
    )
    return known


def key_blocks(blocks, key, width, table):
    """Return the blocks of a tower.

    Parameters
    ----------
    blocks : list or None
        Blocks of the user; None to choose them.
    key : str or None
        Column of keys.
    width : int
        Width of the vectors of keys.
    table : pyarrow.Table
        Columns of which some may be chosen.

    Returns
    -------
    list or None
        `blocks`, or category blocks for the key and for integers that are codes by their names,
        such as ``brand_id``. Blocks of other columns are chosen by their types.
    """
    if blocks is not None:
        return blocks
    own = [] if key is None else [("key", CategoryBlock(width=width), [key])]
    codes = [
        field.name
        for field in table.schema
        if pa.types.is_integer(field.type) and field.name != key and has_code_name(field.name)
    ]
    if codes:
        logger.info("integers that are categories by their names: %s", codes)
        own.append(("codes", CategoryBlock(), codes))
    return own or None


def pair_sets(eval_set, eval_sample_weight):
    """Check the form of ``eval_set``, whose entries need no target.

    Parameters
    ----------
    eval_set : list of (X, y) pairs or of X, or None
        Evaluation sets, as passed to ``fit``.
    eval_sample_weight : list of array-like or None
        Row weights of each entry.

    Returns
    -------
    list of (str, X, y, weight)
        Name, pairs, target and weights of each set. Names are ``eval_set[0]`` and so on.
    """
    if isinstance(eval_set, list):
        eval_set = [
            entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (entry, None)
            for entry in eval_set
        ]
    pairs = eval_pairs(eval_set, eval_sample_weight)
    return [(name, *pair, weight) for name, pair, weight in pairs]


def summarize_side(dataset, executor, blocks):
    """Summarise the rows of one side for blocks, reading only the columns of these.

    Parameters
    ----------
    dataset : BaseTableDataset
        Rows of the side, which may have other columns.
    executor : LocalExecutor
        Executor for rows in memory.
    blocks : dict of {str: tuple of (Block, list of str)}
        Blocks and the columns of each, as in
        :meth:`~sk_easytensor.training.table_dataset.BaseTableDataset.summarize`.

    Returns
    -------
    Mapping of {str: Summary}
        Summaries by name of the block.
    """
    names = {column for _, columns in blocks.values() for column in columns}
    columns = [name for name in dataset.column_names if name in names]
    return dataset.select(columns).summarize(blocks, executor)


def fit_shared(names, user_tower, users, item_tower, items, executor):
    """Fit the blocks that two towers share on the columns of both.

    Parameters
    ----------
    names : list of str
        Names of the shared blocks.
    user_tower, item_tower : Tower
        Towers with fitted blocks.
    users, items : BaseTableDataset
        Rows of either side.
    executor : LocalExecutor
        Executor for rows in memory.

    Raises
    ------
    ValueError
        If a tower lacks a block, or if the two blocks of a name differ in type, parameters or
        number of columns. The message names the block.
    """
    for name in names:
        for tower, parameter in ((user_tower, "user_blocks"), (item_tower, "item_blocks")):
            if name not in tower.blocks_:
                raise ValueError(f"{OWNER}: shared_blocks names {name!r}, which {parameter} lacks")
        user_block, item_block = user_tower.blocks_[name], item_tower.blocks_[name]
        same_type = type(user_block) is type(item_block)
        if not same_type or user_block.get_params() != item_block.get_params():
            raise ValueError(
                f"{OWNER}: shared block {name!r} is {user_block!r} in user_blocks and "
                f"{item_block!r} in item_blocks; both must be alike"
            )
        columns = list(user_block.feature_names_in_), list(item_block.feature_names_in_)
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{OWNER}: shared block {name!r} reads {columns[0]} and {columns[1]}")
        sample = users.sample().table.select(columns[0])
        other = items.sample().table.select(columns[1]).rename_columns(columns[0])
        if other.schema == sample.schema:
            # The forms of texts are those of both sides.
            sample = pa.concat_tables([sample, other])
        block = clone(user_block).fit_columns(sample)
        summarize = partial(summarize_renamed, block, columns[0])
        summaries = [
            dataset.select(side_columns).map_reduce(summarize, executor)
            for dataset, side_columns in zip((users, items), columns, strict=True)
        ]
        block.finish(merge_all(summaries))
        user_tower.replace_block(name, block)
        item_tower.replace_block(name, block.renamed(columns[1]))


def summarize_renamed(block, names, table):
    """Return a block's summary of a table whose columns are first renamed to `names`."""
    return block.summarize(table.rename_columns(names))


class PairEncoder(BaseRowEncoder):
    """Encoder of pairs for both towers.

    Parameters
    ----------
    user_tower, item_tower : Tower
        Towers with fitted blocks.
    items : ItemIndex
        Lookup of items, if these have keys.
    target : PairTarget
        Fitted target, which encodes `y`.
    executor : LocalExecutor
        Executor that runs the encoding.
    user_key : str or None, default=None
        Column of keys of users, by which pairs of one user are recognized; None to recognize them
        by their columns.

    Attributes
    ----------
    columns : list of str
        Columns that identify the item of a pair: the key, or the columns of the item tower.
    """

    def __init__(self, user_tower, item_tower, items, target, executor, user_key=None):
        self.encode_users = user_tower.encoding(executor)
        self.encode_items = item_tower.encoding(executor)
        self.items = items
        self.target = target
        self.user_key = user_key
        self.columns = [items.key] if items.keyed else list(item_tower.feature_names_in_)

    def encode(self, table, y, weight):
        """Return encoded pairs, as flat rows. Without targets, `y` is an array of any values."""
        users = self.encode_users(table)
        rows = self.encode_targets(table, y, weight)
        ids = None
        if self.user_key is not None:
            keys = category_keys(table.column(self.user_key))
            # The last one is for rows without a key.
            hashes = np.append(hash_strings(keys.dictionary).view(np.int64), 0)
            indices = pc.fill_null(keys.indices, len(hashes) - 1).to_numpy(zero_copy_only=False)
            ids = torch.from_numpy(hashes[indices])
        rows.frame = flat_frame(users, side_of(rows.frame, "item"), ids)
        return rows

    def encode_targets(self, table, y, weight):
        """Return encoded pairs without the features of users."""
        numbers = self.items.rows(table)
        items = self.encode_items(table) if numbers is None else numbered_items(numbers)
        frame = flat_frame(TensorFrame({}, len(items)), items)
        return EncodedDataset(frame, self.target.encode(y), torch.from_numpy(weight).float())


class InteractionSet(Summary):
    """The distinct pairs of a user's key and an item's number.

    Parameters
    ----------
    table : pyarrow.Table
        Pairs, in the columns ``user`` (keys as strings) and ``item`` (numbers of items).
    """

    def __init__(self, table):
        self.table = table.group_by(["user", "item"], use_threads=False).aggregate([])

    def merge(self, other):
        """Return the pairs of both."""
        return InteractionSet(pa.concat_tables([self.table, other.table]))

    def numbered(self, users):
        """Return the pairs as numbers.

        Parameters
        ----------
        users : KeyIndex
            Lookup of the numbers of users.

        Returns
        -------
        ndarray of int64, shape (n_pairs, 2)
            Numbers of user and item of each pair, sorted.
        """
        pairs = [users.rows(self.table.column("user")), self.table.column("item").to_numpy()]
        return np.unique(np.column_stack(pairs), axis=0)


def summarize_interactions(user_key, items, table):
    """Return the :class:`InteractionSet` of some interactions.

    Parameters
    ----------
    user_key : str
        Column of keys of users.
    items : ItemIndex
        Lookup of the numbers of items.
    table : pyarrow.Table
        A row for each interaction, with the keys of user and item.

    Returns
    -------
    InteractionSet
    """
    users = category_keys(table.column(user_key)).dictionary_decode()
    numbers = pa.array(items.rows(table).numpy())
    return InteractionSet(pa.table({"user": users, "item": numbers}))
