"""Pairs of users and items as rows of encodings, and which pairs there were."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.blocks.category import category_keys
from sk_easytensor.summaries import Summary
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.batches import EncodedRows
from sk_easytensor.training.pairs import flat_frame, numbered_items, side_of
from sk_easytensor.training.shards import gather_rows

__all__ = ["PairMaker", "SeenReading"]


class PairMaker:
    """Encodes pairs for both towers; picklable, so that any process can do it.

    Parameters
    ----------
    user_tower, item_tower : Tower
        With fitted blocks.
    catalogue : ItemTable
        Gives the number of an item, if items have keys.
    target : PairTarget
        Encodes targets.
    backend : LocalBackend
        Encodes tables.

    Attributes
    ----------
    columns : list of str
        Those that say which item is a pair's.
    """

    gather = staticmethod(gather_rows)

    def __init__(self, user_tower, item_tower, catalogue, target, backend):
        self.user_tower = user_tower.without_network()
        self.item_tower = item_tower.without_network()
        self.catalogue = catalogue.without_rows()
        self.target = target
        self.backend = backend
        keyed = catalogue.keyed
        self.columns = [catalogue.key] if keyed else list(item_tower.feature_names_in_)

    def make_rows(self, table, y, weight):
        """Return encoded pairs, as flat rows.

        Parameters
        ----------
        table : pyarrow.Table
            Interactions.
        y : ndarray
            Valid targets, or anything of their length.
        weight : ndarray of float64, shape (n_pairs,)
            Weights of the pairs.

        Returns
        -------
        EncodedRows
        """
        users = self.user_tower.encode(table, self.backend)
        rows = self.make_targets(table, y, weight)
        rows.frame = flat_frame(users, side_of(rows.frame, "item"))
        return rows

    def make_targets(self, table, y, weight):
        """Return pairs without the users' features."""
        numbers = self.catalogue.rows(table)
        if numbers is None:
            items = self.item_tower.encode(table, self.backend)
        else:
            items = numbered_items(numbers)
        frame = flat_frame(TensorFrame({}, len(items)), items)
        return EncodedRows(frame, self.target.encode(y), torch.from_numpy(weight).float())


class SeenPairs(Summary):
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
        return SeenPairs(pa.concat_tables([self.table, other.table]))

    def numbered(self, users):
        """Return the pairs as numbers, sorted.

        Parameters
        ----------
        users : Keys
            Gives the users' numbers.

        Returns
        -------
        ndarray of int64, shape (n_pairs, 2)
        """
        pairs = [users.rows(self.table.column("user")), self.table.column("item").to_numpy()]
        return np.unique(np.column_stack(pairs), axis=0)


class SeenReading:
    """Summarises interactions as :class:`SeenPairs`.

    Parameters
    ----------
    user_key : str
        Column that names the user.
    catalogue : ItemTable
        Gives the numbers of items.
    """

    column_wise = False

    def __init__(self, user_key, catalogue):
        self.user_key = user_key
        self.catalogue = catalogue.without_rows()

    def summarize(self, table):
        """Return the summary of a chunk of rows."""
        users = category_keys(table.column(self.user_key)).dictionary_decode()
        items = pa.array(self.catalogue.rows(table).numpy())
        return SeenPairs(pa.table({"user": users, "item": items}))
