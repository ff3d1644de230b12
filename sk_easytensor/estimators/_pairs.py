"""What a two-tower model is given: a catalogue of items, targets of pairs, sets to judge by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.base import clone
from sklearn.utils import check_array

from sk_easytensor.blocks.category import CategoryBlock, category_keys
from sk_easytensor.estimators._inputs import check_no_missing, eval_pairs
from sk_easytensor.networks.heads import BinaryHead, RegressionHead, SampledSoftmaxHead
from sk_easytensor.safe_loading import ArrowStateMixin
from sk_easytensor.summaries import merge_all
from sk_easytensor.tables import as_table
from sk_easytensor.training.batches import EncodedRows

__all__ = [
    "ItemTable",
    "Keys",
    "PairTarget",
    "fit_shared",
    "key_blocks",
    "pair_sets",
    "target_values",
]

OWNER = "EasyTensorTwoTower"


class Keys(ArrowStateMixin):
    """Values that name rows, looked up as categories are: 7, 7.0 and "7" are the same.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        One value a row.
    name : str
        Of the column, for errors.
    """

    def __init__(self, column, name):
        self.name = name
        if not CategoryBlock.accepts(column.type):
            raise TypeError(f"{OWNER}: key column {name!r} cannot be of type {column.type}")
        keys = category_keys(column)
        if keys.null_count:
            row = int(np.argmax(column.is_null(nan_is_null=True).to_numpy()))
            raise ValueError(f"{OWNER}: key column {name!r} is missing in row {row}")
        self.codes = keys.indices.to_numpy(zero_copy_only=False)
        self._strings = keys.dictionary
        _, self.first = np.unique(self.codes, return_index=True)
        self._row_of_code = np.full(len(self._strings), -1)
        self._row_of_code[self.codes[self.first]] = self.first

    def check_distinct(self, column):
        """Raise ``ValueError`` if a key of the items is in more than one row."""
        again = np.setdiff1d(np.arange(len(self.codes)), self.first)
        if len(again):
            value, count = column[int(again[0])].as_py(), len(np.unique(self.codes[again]))
            raise ValueError(
                f"{OWNER}: items has {count} keys in more than one row, such as {value!r}, again "
                f"in row {again[0]}; every value of {self.name!r} must be there once"
            )

    def take_first(self):
        """Give the keys numbers in the order of their first rows, which are returned."""
        order = np.sort(self.first)
        place = np.full(len(self._strings), -1)
        place[self.codes[order]] = np.arange(len(order))
        self._row_of_code = place
        return order

    def rows(self, column):
        """Return the row that each value names, -1 where there is none."""
        keys = category_keys(column)
        found = pc.index_in(keys.dictionary, value_set=self._strings)
        found = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        row_of_value = np.append(np.append(self._row_of_code, -1)[found], -1)
        indices = pc.fill_null(keys.indices, len(found)).to_numpy(zero_copy_only=False)
        return row_of_value[indices]

    def forget_rows(self):
        """Drop what is only needed while fitting."""
        del self.codes, self.first


class ItemTable:
    """The items, once each: a catalogue that is given, or the items of the interactions.

    Parameters
    ----------
    table : pyarrow.Table
        Interactions.
    items : table-like or None
        The catalogue.
    key : str or None
        Column of both that names the item.
    item_blocks : list or None
        Blocks of the item tower.

    Attributes
    ----------
    table : pyarrow.Table or None
        A row for each item; without a key one for each interaction. None after the fit.
    keyed : bool
        Whether items have keys.
    keys : ndarray
        The items' keys.
    lookup : Keys
        Finds an item by its key.
    """

    def __init__(self, table, items, key, item_blocks):
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
        self.lookup = Keys(self.table.column(key), key)
        if self.given:
            self.lookup.check_distinct(self.table.column(key))
        if not self.given:
            self.table = self.table.take(pa.array(self.lookup.take_first()))
        self.keys = self.table.column(key).to_numpy()

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
            raise ValueError(
                f"{OWNER}: column {self.key!r} holds {column[row].as_py()!r} in row {row}, which "
                f"is not the key of an item; there are {len(self.keys)} items"
            )
        return torch.from_numpy(rows.astype(np.int64))

    def forget_rows(self):
        """Drop what is only needed while fitting."""
        self.table = None
        if self.keyed:
            self.lookup.forget_rows()


def key_blocks(blocks, key, width):
    """Return a tower's blocks: those given, or by default its key as a category."""
    if blocks is not None or key is None:
        return blocks
    return [("key", CategoryBlock(width=width), [key])]


class PairTarget:
    """What is learned of pairs: that they met, one of two classes, or a number.

    Parameters
    ----------
    head : Head
        Gives the loss.
    classes : ndarray or None
        The two classes.
    """

    def __init__(self, head, classes=None):
        self.head = head
        self.classes = classes
        self.center, self.scale = 0.0, 1.0

    @classmethod
    def learn(cls, y):
        """Return the target that a `y` of fit is, after :func:`target_values`."""
        if y is None:
            return cls(SampledSoftmaxHead())
        values = np.unique(y)
        if len(values) == 1:
            raise ValueError(
                f"{OWNER}: y holds nothing but {values[0]!r}. Leave it out if every row is an item "
                "that was chosen"
            )
        if y.dtype.kind in "OUSb" or set(values.tolist()) == {0, 1}:
            if len(values) != 2:
                raise ValueError(f"{OWNER}: y must have two classes or numbers, got {values!r}")
            return cls(BinaryHead(), values)
        return cls(RegressionHead())

    @property
    def chosen(self):
        """Whether every pair is an item that was chosen."""
        return isinstance(self.head, SampledSoftmaxHead)

    def check(self, y):
        """Return a `y` of the kind that fit was given, as an array."""
        if y is None:
            raise ValueError(f"{OWNER} was fitted with y and requires y to be passed")
        y = target_values(y)
        if self.classes is not None and not np.isin(y, self.classes).all():
            value = y[~np.isin(y, self.classes)][0]
            raise ValueError(f"{OWNER}: y holds {value!r}; classes are {self.classes.tolist()}")
        if self.classes is None and y.dtype.kind not in "fiu":
            raise ValueError(f"{OWNER}: y must be numbers, as in fit, got {y.dtype}")
        return y

    def encode(self, y, n_pairs):
        """Return targets as the head wants them."""
        if self.chosen:
            if y is not None:
                raise ValueError(f"{OWNER} was fitted without y, and takes none")
            return torch.zeros(n_pairs)
        y = self.check(y)
        if self.classes is not None:
            return torch.from_numpy(y == self.classes[1]).float()
        return torch.from_numpy(y.astype(np.float64)).reshape(-1, 1)

    def strata(self, target):
        """Return the groups that a validation part is drawn evenly from."""
        if self.classes is None:
            return np.zeros(len(target), dtype=np.int64)
        return target.numpy().astype(np.int64)

    def learn_scale(self, rows):
        """Learn mean and spread of numbers from the training part."""
        if self.chosen or self.classes is not None:
            return
        values, weight = rows.target[:, 0].double(), rows.weight.double()
        self.center = float((values * weight).sum() / weight.sum())
        spread = float((((values - self.center) ** 2 * weight).sum() / weight.sum()).sqrt())
        self.scale = spread if spread > 0 else 1.0

    def scaled(self, rows):
        """Return rows with targets on the scale the network is trained on."""
        if self.chosen or self.classes is not None:
            return rows
        target = ((rows.target - self.center) / self.scale).float()
        return EncodedRows(rows.frame, target, rows.weight)

    def decode(self, scores):
        """Turn scores of pairs into predictions."""
        if self.classes is not None:
            return self.classes[(scores > 0).astype(np.int64)]
        return scores * self.scale + self.center


def target_values(y):
    """Return a `y` as an array of one dimension without missing values."""
    check_no_missing(y)
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    if y.ndim != 1:
        raise ValueError(f"{OWNER}: y must be 1-D, got shape {y.shape}")
    return y


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
        block = clone(ours).fit_columns(users.select(columns[0]))
        renamed = items.select(columns[1]).rename_columns(columns[0])
        both = [
            backend.summarize(table, {name: (block, columns[0])})[name]
            for table in (users, renamed)
        ]
        block.finish(merge_all(both))
        user_tower.replace_block(name, block)
        item_tower.replace_block(name, block.renamed(columns[1]))
