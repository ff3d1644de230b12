import datetime as dt
import decimal
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import TableEncoder
from sk_easytensor.blocks import CategoryBlock, CategorySequenceBlock
from sk_easytensor.blocks.category import (
    MISSING,
    UNSEEN,
    category_keys,
    default_embedding_width,
    hash_strings,
)
from sk_easytensor.networks import MLP
from sk_easytensor.networks.block_network import make_network
from sk_easytensor.networks.heads import BinaryHead, EmbeddingHead


def codes(block, values):
    return block.transform({"c": values})["codes"][:, 0].tolist()


def test_every_flavour_encodes_the_same(flavour):
    frame = pd.DataFrame({"c": ["b", None, "a", "b"], "n": [7, 7, 8, 9], "f": [True, False] * 2})
    block = CategoryBlock().fit(flavour(frame))
    assert [values.to_pylist() for values in block.categories_] == [
        ["b", "a"],
        ["7", "8", "9"],
        ["0", "1"],
    ]
    assert block.transform(flavour(frame))["codes"].tolist() == [
        [2, 2, 3],
        [MISSING, 2, 2],
        [3, 3, 3],
        [2, 4, 2],
    ]


@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical(["b", None, "a", "b"], categories=["z", "a", "b"]),
        pl.Series(["b", None, "a", "b"], dtype=pl.Categorical),
        pl.Series(["b", None, "a", "b"], dtype=pl.Enum(["a", "b"])),
        pa.chunked_array(
            [pa.array(["b", None]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()]
        ),
        pa.array(["b", None, "a", "b"], pa.large_string()),
        pa.array(["b", None, "a", "b"], pa.string_view()),
    ],
)
def test_every_layout_of_strings(column):
    block = CategoryBlock().fit({"c": column})
    assert block.categories_[0].to_pylist() == ["b", "a"]
    assert block.counts_[0].tolist() == [2, 1]
    assert codes(block, column) == [2, MISSING, 3, 2]


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=8))
def test_integers_floats_and_strings_are_the_same_category(values):
    block = CategoryBlock().fit({"c": values})
    expected = codes(block, values)
    assert UNSEEN not in expected
    if max(map(abs, values)) < 2**53:
        assert codes(block, [*map(float, values), np.nan]) == [*expected, MISSING]
    assert codes(block, list(map(str, values))) == expected
    assert codes(block, pd.Categorical(values)) == expected


def test_integers_above_2_53_are_told_apart():
    values = [2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
    block = CategoryBlock().fit({"c": values})
    assert len(set(codes(block, values))) == 4
    assert codes(block, list(map(str, values))) == codes(block, values)


def test_floats():
    values = np.array([0.5, -0.0, 0.0, np.inf, np.nan, 1e300, 2.0**60])
    block = CategoryBlock().fit({"c": values})
    found = codes(block, values)
    assert found[4] == MISSING
    assert found[1] == found[2]
    assert len({*found}) == 6
    assert codes(block, ["0.5", "0"]) == [found[0], found[1]]


def test_float_precisions_are_the_same_category():
    values = np.array([0.1, 0.5, 3.0, 1e10])
    block = CategoryBlock().fit({"c": values.astype(np.float32)})
    assert UNSEEN not in codes(block, values.astype(np.float32))
    assert codes(block, values)[1:3] == codes(block, values.astype(np.float32))[1:3]


def test_unseen_missing_and_empty():
    block = CategoryBlock().fit({"c": ["a", "", None, "a"]})
    assert codes(block, ["", "new", None, "a"]) == [3, UNSEEN, MISSING, 2]
    assert codes(block, pa.array([None, None], pa.string())) == [MISSING, MISSING]


def test_rare_and_too_many_categories():
    data = {"c": ["a"] * 3 + ["b"] * 2 + ["c"]}
    assert CategoryBlock(min_frequency=2).fit(data).categories_[0].to_pylist() == ["a", "b"]
    limited = CategoryBlock(max_categories=1).fit(data)
    assert limited.categories_[0].to_pylist() == ["a"]
    assert codes(limited, ["a", "b"]) == [2, UNSEEN]


def test_unused_levels_are_no_categories():
    column = pd.Categorical(["a", "b"], categories=["a", "b", "never"])
    assert CategoryBlock().fit({"c": column}).categories_[0].to_pylist() == ["a", "b"]


def test_hashing():
    block = CategoryBlock(hash_buckets=7).fit({"c": ["a", "b"]})
    assert block.categories_ == []
    found = codes(block, ["a", "b", None, "new", "a"])
    assert found[2] == MISSING
    assert found[0] == found[4]
    assert all(2 <= code < 9 for code in (found[0], found[1], found[3]))
    assert codes(block, [1, 2]) == codes(block, [1.0, 2.0]) == codes(block, ["1", "2"])
    module = block.make_module()
    assert module(**block.transform({"c": ["a", None]})).shape == (2, module.out_features)


def test_hashes_are_stable():
    # Saved models depend on these: another process or version must not change them.
    expected = [13950350942979735504, 1760245841805064774, 6689755093696353227]
    assert hash_strings(pa.array(["a", "", "ü"])).tolist() == expected
    assert hash_strings(pa.array(["a", "", "ü"], pa.large_string())).tolist() == expected


def test_keys_of_nothing():
    for column in (pa.chunked_array([], pa.string()), pa.array([], pa.int64()), pa.nulls(0)):
        assert len(category_keys(column)) == 0


def test_module_shows_unseen_codes_in_training_only():
    block = CategoryBlock(unseen_probability=1.0).fit({"c": ["a", "b"]})
    module = block.make_module()
    unseen, missing = module(**block.transform({"c": ["new", None]}))
    encoding = block.transform({"c": ["a", None]})
    # Known categories look unseen, missing ones stay missing.
    torch.testing.assert_close(module.train()(**encoding), torch.stack([unseen, missing]))
    known, still = module.eval()(**encoding)
    assert not torch.allclose(known, unseen)
    torch.testing.assert_close(still, missing)


@pytest.mark.parametrize(("rarity", "shares"), [(8.0, [0.1, 0.5, 0.8]), (0, [0.0, 0.0, 0.0])])
def test_rare_categories_are_mostly_shown_as_unseen(rarity, shares):
    data = {"c": ["often"] * 72 + ["seldom"] * 8 + ["once"]}
    block = CategoryBlock(rarity=rarity, unseen_probability=0).fit(data)
    module = block.make_module()
    unseen = module.eval()(**block.transform({"c": ["new"]}))
    torch.manual_seed(0)
    for value, share in zip(["often", "seldom", "once"], shares, strict=True):
        shown = module.train()(**block.transform({"c": [value] * 4000}))
        hidden = (shown == unseen).all(dim=1).float().mean()
        assert abs(hidden - share) < 0.03, value


def test_towers_do_not_hide_rare_categories():
    block = CategoryBlock(unseen_probability=0).fit({"c": ["once", "twice", "twice"]})
    once = block.transform({"c": ["once"] * 100})
    for head, hidden in ((BinaryHead(), True), (EmbeddingHead(4), False)):
        network = make_network({"block": block}, MLP(), head)
        (module,) = network.blocks
        rows = module.train()(**once)
        assert (len(rows.unique(dim=0)) > 1) == hidden


def test_rare_categories_learn_slower_but_not_in_towers():
    data = {"c": ["often"] * 950 + ["seldom"] * 50}
    block = CategoryBlock(rarity=0, unseen_probability=0, shrinkage=50).fit(data)
    both = block.transform({"c": ["often", "seldom"]})
    for head, trust in ((BinaryHead(), [0.95, 0.5]), (EmbeddingHead(4), [1.0, 1.0])):
        (module,) = make_network({"block": block}, MLP(), head).blocks
        before = module(**both)
        with torch.no_grad():
            for table in module.tables:
                table += 1
        moved = (module(**both) - before).detach()
        torch.testing.assert_close(moved, torch.tensor(trust)[:, None].expand_as(moved))


def test_towers_start_rare_categories_close_to_unseen_ones():
    names = [f"often {index}" for index in range(50)] + [f"once {index}" for index in range(50)]
    block = CategoryBlock().fit({"c": names[:50] * 100 + names[50:]})
    (module,) = make_network({"block": block}, MLP(), EmbeddingHead(4)).blocks
    module.eval()
    away = module(**block.transform({"c": names})) - module(**block.transform({"c": ["new"]}))
    often, once = away[:50].std().item(), away[50:].std().item()
    assert once == pytest.approx(often * (1 / 51) / (100 / 150), rel=0.3)


def test_module_keeps_columns_apart():
    rng = np.random.default_rng(0)
    data = {f"c{size}": rng.permutation(500) % size for size in (3, 200, 2, 60)}
    block = CategoryBlock().fit(data)
    module = block.make_module().eval()
    trusted = {3: 3 * 167 / 217, 200: 200 * 2.5 / 52.5, 2: 2 * 250 / 300, 60: 60 * 8.4 / 58.4}
    widths = [default_embedding_width(size) for size in trusted.values()]
    assert module.out_features == sum(widths)
    full = module(**block.transform(data))
    assert full.shape == (500, sum(widths))
    for name, width in zip(data, widths, strict=True):
        other = {**data, name: data[name][::-1]}
        changed = (module(**block.transform(other)) != full).any(dim=0)
        assert 0 < changed.sum() <= width


def test_width():
    block = CategoryBlock(width=5).fit({"a": ["x"], "b": ["y"]})
    assert block.make_module().out_features == 10
    widths = [default_embedding_width(size) for size in (2, 10, 100, 1000, 10**6)]
    assert widths == sorted(widths)
    # Two rows do not tell what 200 categories mean; identifiers have no more anyway.
    for values, width in ((np.arange(400) % 200, 4), (np.arange(200), 16)):
        assert CategoryBlock().fit({"c": values}).make_module().out_features == width


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_frequency", 0),
        ("max_categories", 1.5),
        ("hash_buckets", 0),
        ("width", 0),
        ("rarity", -1),
        ("unseen_probability", 1.5),
        ("unseen_probability", "0"),
    ],
)
def test_parameter_errors(name, value):
    with pytest.raises(ValueError, match=f"CategoryBlock: {name} must be"):
        CategoryBlock(**{name: value}).fit({"c": ["a"]})


def test_wrong_type_names_the_block_to_use():
    with pytest.raises(TypeError, match=r"'c' of type list\[.*by CategoryBlock.*VectorBlock"):
        CategoryBlock().fit({"c": [[1.0, 2.0]]})
    with pytest.raises(TypeError, match=r"'c' of type timedelta64.*NumericBlock"):
        CategoryBlock().fit({"c": pa.array([1], pa.duration("s"))})
    block = CategoryBlock().fit({"c": ["a"]})
    with pytest.raises(TypeError, match=r"column 'c'.*list"):
        block.transform({"c": [[1.0, 2.0]]})


BOOLEANS = [
    [True, False, None, True],
    [1, 0, None, 1],
    [1.0, 0.0, np.nan, 1.0],
    ["1", "0", None, "1"],
    np.array([1, 0, np.nan, 1], dtype=np.float32),
    pd.array([True, False, None, True], dtype="boolean"),
    pd.Series([True, False, None, True], dtype=object),
    pd.Categorical([True, False, None, True]),
    pd.Categorical([1.0, 0.0, None, 1.0]),
    pl.Series([True, False, None, True]),
]


@pytest.mark.parametrize("options", [{}, {"hash_buckets": 99}])
@pytest.mark.parametrize("fitted", BOOLEANS)
def test_booleans_zeros_and_ones_are_the_same_categories(fitted, options):
    block = CategoryBlock(**options).fit({"c": fitted})
    expected = codes(block, fitted)
    assert len({*expected, UNSEEN}) == 4
    assert all(codes(block, column) == expected for column in BOOLEANS)


@pytest.mark.parametrize(
    "value",
    [
        *[1, 1.5, "a", b"a", True, dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.time(1)],
        *[dt.timedelta(1), decimal.Decimal("1.5"), [1.0, 2.0]],
    ],
)
def test_a_column_first_seen_empty_takes_any_type(value):
    encoder = TableEncoder().fit({"c": [None, None]})
    assert list(encoder.blocks_) == ["category"]
    assert encoder.transform({"c": [value, None]}).tolist() == [[UNSEEN], [MISSING]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_few_values_have_the_codes_they_have_among_many(kind):
    block = CategoryBlock().fit({"user": [f"u{number}" for number in range(50)]})
    known = block.categories_[0].to_pylist()
    values = pa.array(["u7", "nobody", None, "u7", "", known[-1], *known], kind)
    among_many = block.transform({"user": values})["codes"]
    seven = known.index("u7") + 2
    assert among_many[:6, 0].tolist() == [seven, UNSEEN, MISSING, seven, UNSEEN, 51]
    for rows in (slice(0, 1), slice(2, 3), slice(0, 6)):
        few = block.transform({"user": values[rows]})["codes"]
        assert few.tolist() == among_many[rows].tolist()


def test_a_limit_that_nobody_chose_warns(monkeypatch):
    monkeypatch.setattr("sk_easytensor.blocks.category.MAX_CATEGORIES", 3)
    X = {"user": list("aabbccddef")}
    message = (
        "CategoryBlock: column 'user' has more categories than max_categories=3; 4 of 10 rows have "
        "a rarer one, and share the vector of unseen categories: raise max_categories, or set "
        "hash_buckets"
    )
    with pytest.warns(UserWarning, match=message):
        CategoryBlock(max_categories=3).fit(X)
    with pytest.warns(UserWarning, match="'user'"):
        CategorySequenceBlock(max_categories=3).fit({"user": [list("aabbccddef")]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CategoryBlock(max_categories=2).fit(X)  # A smaller limit was chosen.
        CategoryBlock(max_categories=6).fit(X)
        CategoryBlock(max_categories=3).fit({"user": list("aabbc")})
