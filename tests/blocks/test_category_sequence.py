import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor.blocks import CategoryBlock, CategorySequenceBlock
from sk_easytensor.blocks.category import MISSING, UNSEEN
from sk_easytensor.data.summaries import merge_all
from sk_easytensor.data.tables import as_table

# Short lists are cut on purpose; test_aggregates.py has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*are cut to their:UserWarning")

VISITS = [["home", "cart", "home"], [], None, ["home", None, "pay"]]

items = st.none() | st.sampled_from(["a", "b", "c", "", "d"])
rows = st.none() | st.lists(items, max_size=5)


def lists_of(block, values):
    """Return the codes of each row."""
    lists = block.transform({"c": values})["codes_0"]
    return [part.tolist() for part in lists.values.split(lists.lengths.tolist())]


def flat(values):
    return [item for items in values for item in items or []]


@pytest.mark.parametrize(
    "values",
    [
        [["b", "a"], None, ["b", None, ""], []],
        [[3, 1], None, [3, None, 2**60], []],
        [[True, False, True], None, [None], []],
        [[0.5, 2.0, 2.0], None, [None, np.inf], []],
        [[dt.date(2024, 1, 1)], None, [None, dt.date(2024, 1, 2), dt.date(2024, 1, 2)], []],
        pa.array([["b", "a"], None, ["b", None]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.array([["b", "a"], None, ["b", None]], pa.list_(pa.string_view())),
        pa.array([[300, 1], None, [300]], pa.large_list(pa.uint16())),
        pl.Series([["b", "a"], None, ["b", None]], dtype=pl.List(pl.Categorical)),
        pl.Series([["b", "a"], None, ["b", None]], dtype=pl.List(pl.Enum(["a", "z", "b"]))),
        pl.Series([["b", "a"], None, ["b", None]], dtype=pl.Array(pl.String, 2))[:2],
    ],
)
def test_items_are_categories_like_any_other(values):
    items = flat(as_table({"c": values})["c"].to_pylist())
    expected = CategoryBlock().fit({"c": items})
    block = CategorySequenceBlock().fit({"c": values})
    assert block.categories_[0].equals(expected.categories_[0])
    assert block.counts_[0].tolist() == expected.counts_[0].tolist()
    assert flat(lists_of(block, values)) == expected.transform({"c": items})["codes"][:, 0].tolist()


@given(values=st.lists(rows, min_size=1, max_size=8), other=st.lists(rows, min_size=1, max_size=4))
def test_codes_are_those_of_the_flat_items(values, other):
    kind = pa.list_(pa.string())
    block = CategorySequenceBlock().fit({"c": pa.array(values, kind)})
    plain = CategoryBlock().fit_columns(pa.table({"c": pa.array([], pa.string())}))
    plain.finish(plain.summarize(pa.table({"c": pa.array(flat(values), pa.string())})))
    assert block.categories_[0].equals(plain.categories_[0])
    expected = plain.encode(pa.table({"c": pa.array(flat(other), pa.string())}))["codes"]
    found = lists_of(block, pa.array(other, kind))
    assert flat(found) == expected[:, 0].tolist()
    assert list(map(len, found)) == [len(items or []) for items in other]


@given(values=st.lists(rows, min_size=1, max_size=8), cut=st.integers(0, 8))
def test_fitting_in_parts(values, cut, assert_same_fit):
    table = pa.table({"c": pa.array(values, pa.list_(pa.string()))})
    whole = CategorySequenceBlock(max_length=3).fit(table)
    parts = CategorySequenceBlock(max_length=3).fit_columns(table)
    chunks = [table.slice(cut), table.slice(0, cut)]
    assert_same_fit(parts.finish(merge_all(parts.summarize(chunk) for chunk in chunks)), whole)


def test_unseen_missing_and_empty():
    block = CategorySequenceBlock().fit({"c": VISITS})
    assert block.categories_[0].to_pylist() == ["home", "cart", "pay"]
    assert block.counts_[0].tolist() == [3, 1, 1]
    assert lists_of(block, [["new", "home", None], [], None]) == [[UNSEEN, 2, MISSING], [], []]
    assert lists_of(block, [[], None, []]) == [[], [], []]


def test_integers_floats_and_strings_are_the_same_items():
    block = CategorySequenceBlock().fit({"c": [[7, 8], [7]]})
    for values in ([[8, 7]], [["8", "7"]], [[8.0, 7.0]], [[8.0, 7.0, np.nan]]):
        assert lists_of(block, values)[0][:2] == [3, 2]
    assert lists_of(block, [[8.0, np.nan]]) == [[3, MISSING]]


def test_rare_and_too_many_categories():
    data = {"c": [["a", "a", "b"], ["a", "b", "c"]]}
    # Counted in items, not in rows.
    block = CategorySequenceBlock(min_frequency=2).fit(data)
    assert block.categories_[0].to_pylist() == ["a", "b"]
    block = CategorySequenceBlock(min_frequency=3).fit(data)
    assert block.categories_[0].to_pylist() == ["a"]
    block = CategorySequenceBlock(max_categories=1).fit(data)
    assert lists_of(block, [["a", "b"]]) == [[2, UNSEEN]]


def test_hashing():
    block = CategorySequenceBlock(hash_buckets=7).fit({"c": VISITS})
    assert block.categories_ == []
    plain = CategoryBlock(hash_buckets=7).fit({"c": ["x"]})
    words = ["home", None, "never seen", "home"]
    assert lists_of(block, [words]) == [plain.transform({"c": words})["codes"][:, 0].tolist()]
    module = block.make_module()
    assert torch.isfinite(module(**block.transform({"c": VISITS}))).all()
    names = block.get_feature_names_out().tolist()
    buckets = [f"c_bucket_{bucket}" for bucket in range(7)]
    assert names == ["c_missing", "c_unseen", *buckets, "c_length"]
    assert block.flatten(block.transform({"c": VISITS})).shape == (4, len(names))


def test_columns_are_independent():
    data = {"a": [["x"], ["x", "y"]], "b": [[1, 2, 3], None]}
    block = CategorySequenceBlock(width=8, aggregates=False).fit(data)
    assert [values.to_pylist() for values in block.categories_] == [["x", "y"], ["1", "2", "3"]]
    encoding = block.transform(data)
    assert [lists.lengths.tolist() for lists in encoding.values()] == [[1, 2], [3, 0]]
    assert block.encoding_columns(encoding) == {"codes_0": ["a"], "codes_1": ["b"]}
    module = block.make_module().eval()
    assert module.out_features == 18
    before = module(**encoding)
    after = module(**block.transform({**data, "b": [[2], [1]]}))
    torch.testing.assert_close(after[:, :9], before[:, :9])
    assert not torch.allclose(after[:, 9:], before[:, 9:])


def test_flatten_counts_the_most_frequent():
    block = CategorySequenceBlock().fit({"c": VISITS})
    names = ["missing", "unseen", "is_home", "is_cart", "is_pay", "length"]
    assert block.get_feature_names_out().tolist() == [f"c_{name}" for name in names]
    rows = [["pay", "new", "home", None, "pay"], [], None]
    matrix = block.flatten(block.transform({"c": rows}))
    assert matrix.tolist() == [[1, 1, 1, 0, 2, 5], [0] * 6, [0] * 6]


def test_flatten_counts_few_of_many():
    values = [[f"w{i}"] * (200 - i) for i in range(100)]
    block = CategorySequenceBlock(max_length=300).fit({"c": values})
    names = block.get_feature_names_out().tolist()
    assert names[2:4] == ["c_is_w0", "c_is_w1"]
    assert names[-2:] == ["c_is_w29", "c_length"]
    matrix = block.flatten(block.transform({"c": values}))
    assert matrix.shape == (100, len(names))
    assert matrix[:, :-1].sum(axis=1).tolist() == [200 - i if i < 30 else 0 for i in range(100)]


def test_module_shows_unseen_codes_in_training_only():
    options = {"pooling": "mean", "aggregates": False, "unseen_probability": 1.0, "dropout": 0}
    block = CategorySequenceBlock("mean", **options).fit({"c": [["a", "b"], ["b"]]})
    module = block.make_module().eval()
    known, unseen = module(**block.transform({"c": [["a", "b"], ["new", "new"]]}))
    assert not torch.allclose(known, unseen)
    shown = module.train()(**block.transform({"c": [["a", "b"]]}))
    torch.testing.assert_close(shown[0], unseen)


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([["a"], None], pa.list_(pa.string()), True),
        ([["a"], None], pa.large_list(pa.large_string()), True),
        ([["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string())), True),
        ([[1], [2]], pa.list_(pa.int64()), True),
        ([[True]], pa.list_(pa.bool_()), True),
        ([[], None], pa.list_(pa.null()), True),
        ([[1.0]], pa.list_(pa.float64()), False),
        ([[dt.date(2024, 1, 1)]], pa.list_(pa.date32()), False),
        ([[["a"]]], pa.list_(pa.list_(pa.string())), False),
        (["a"], pa.string(), False),
        ([None], pa.null(), False),
    ],
    ids=str,
)
def test_detects(values, kind, found):
    assert CategorySequenceBlock.detects(pa.chunked_array([pa.array(values, kind)])) is found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_frequency", 0),
        ("max_categories", 1.5),
        ("hash_buckets", 0),
        ("unseen_probability", 1.5),
        ("shrinkage", -1),
    ],
)
def test_parameter_errors(name, value):
    with pytest.raises(ValueError, match=f"CategoryBlock: {name} must be"):
        CategorySequenceBlock(**{name: value}).fit({"c": VISITS})


def test_a_column_first_seen_empty_takes_lists_of_any_items():
    for nothing in ([None, None], [[], None], [[None], []]):
        block = CategorySequenceBlock().fit({"c": nothing})
        for values in ([["a"], []], [[1.5], []], pd.Series([["a"], None], dtype=object)):
            assert lists_of(block, values) == [[UNSEEN], []]
