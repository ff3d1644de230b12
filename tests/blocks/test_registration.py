"""Blocks of users in the automatic choice."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone

from sk_easytensor import MLP, Block, CategoryBlock, EasyTensorClassifier, NumericBlock
from sk_easytensor.blocks import BLOCKS, register_block, unregister_block
from sk_easytensor.testing import registered_block

QUICK = {"trunk": MLP(width=4), "trees": None, "max_epochs": 1, "n_jobs": 1, "random_state": 0}


class PercentBlock(NumericBlock):
    """Strings such as "12%"."""

    kind = "percent"

    def summarize(self, table):
        return super().summarize(numbers_of(table))

    def encode(self, table):
        return super().encode(numbers_of(table))

    @classmethod
    def accepts(cls, column_type):
        return pa.types.is_string(column_type) or pa.types.is_null(column_type)

    @classmethod
    def detects(cls, column):
        return pa.types.is_string(column.type) and str(column[0]).endswith("%")


class OtherBlock(PercentBlock):
    kind = "other"


def numbers_of(table):
    columns = [pa.array([v and float(v[:-1]) for v in c.to_pylist()]) for c in table.columns]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "share": [f"{value}%" for value in rng.integers(0, 100, 40)],
            "town": rng.choice(["Oslo", "Rome"], 40).tolist(),
        }
    )


@pytest.fixture(autouse=True)
def choice():
    before = list(BLOCKS)
    yield
    assert before == BLOCKS


def kinds(table, model=None):
    y = np.arange(table.num_rows) % 2
    model = EasyTensorClassifier(**QUICK) if model is None else model
    return {
        name: (type(block), list(block.feature_names_in_))
        for name, block in model.fit(table, y).blocks_.items()
    }


@pytest.mark.filterwarnings("ignore::sk_easytensor.SpelledValuesWarning")
def test_registered_blocks_are_chosen(table):
    assert list(kinds(table)) == ["category", "numeric"]
    with registered_block(PercentBlock):
        model = EasyTensorClassifier(**QUICK)
        expected = {"percent": (PercentBlock, ["share"]), "category": (CategoryBlock, ["town"])}
        assert kinds(table, model) == expected
        assert kinds(table, clone(model)) == expected
        probabilities = model.predict_proba(table)
    # Fitted models hold the block itself.
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.predict_proba(table), probabilities)
    assert list(kinds(table, clone(model))) == ["category", "numeric"]


@pytest.mark.filterwarnings("ignore::sk_easytensor.SpelledValuesWarning")
def test_the_order_is_that_of_registration(table):
    with registered_block(PercentBlock), registered_block(OtherBlock):
        assert BLOCKS[:2] == [PercentBlock, OtherBlock]
        assert next(iter(kinds(table))) == "percent"
    with registered_block(PercentBlock), registered_block(OtherBlock, before=PercentBlock):
        assert next(iter(kinds(table))) == "other"
    with registered_block(PercentBlock, before=NumericBlock):
        assert BLOCKS[-2:] == [PercentBlock, NumericBlock]
        # Texts that are numbers are not offered to the block of categories before.
        assert list(kinds(table)) == ["category", "percent"]


def test_it_decorates_and_may_be_repeated():
    def define(name="AgainBlock", **options):
        return register_block(type(name, (PercentBlock,), {"kind": "again"}), **options)

    first = define()
    assert BLOCKS[0] is first
    second = define()
    assert BLOCKS[0] is second
    assert first not in BLOCKS
    third = register_block(before=NumericBlock)(type("AgainBlock", (second,), {}))
    assert BLOCKS[-2:] == [third, NumericBlock]
    unregister_block(third)
    with pytest.raises(ValueError, match="'AgainBlock' is not registered; registered are none"):
        unregister_block(third)


class Unfinished(Block):
    kind = "unfinished"


class Needy(PercentBlock):
    kind = "needy"

    def __init__(self, size):
        self.size = size


class Undetected(NumericBlock):
    kind = "undetected"
    detects = Block.detects
    assign_columns = Block.assign_columns


Undetected.detects = classmethod(Block.detects.__func__)
Undetected.assign_columns = classmethod(Block.assign_columns.__func__)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (int, TypeError, "must be a subclass of sk_easytensor.Block, got <class 'int'>"),
        (PercentBlock(), TypeError, "register the class rather than an instance"),
        (Unfinished, TypeError, "Unfinished has to define accepts, .*encode"),
        (Needy, TypeError, "each parameter needs a default; 'size' has none"),
        (Undetected, ValueError, "Undetected defines neither detects nor assign_columns"),
        (type("Same", (PercentBlock,), {"kind": "text"}), ValueError, "'text', which T"),
        (type("Nameless", (PercentBlock,), {"kind": "block"}), ValueError, "must be a unique name"),
        (type("Odd", (PercentBlock,), {"kind": "a__b"}), ValueError, "got 'a__b'"),
        (NumericBlock, ValueError, "NumericBlock is built in"),
    ],
    ids=str,
)
def test_what_cannot_be_registered_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        register_block(wrong)


def test_before_must_be_part_of_the_choice():
    with pytest.raises(ValueError, match=r"before must be one of SparseBlock, .*got 'OtherBlock'"):
        register_block(PercentBlock, before=OtherBlock)
    with pytest.raises(ValueError, match="is not registered"):
        unregister_block(NumericBlock)
