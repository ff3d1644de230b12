"""Which block reads which columns, nested parameters, and the encoder as a transformer."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_html_repr

from sk_easytensor import (
    MLP,
    CategoryBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EasyTensorRegressor,
    NumericBlock,
    NumericSequenceBlock,
    TableEncoder,
    TabM,
    VectorBlock,
)
from sk_easytensor.blocks.detection import select_columns
from sk_easytensor.data.tables import as_table


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "price": rng.normal(size=40),
            "size": rng.normal(size=40),
            "rooms": rng.integers(1, 5, 40),
            "city": rng.choice(["Oslo", "Lima"], 40),
            "sold": pd.date_range("2024-01-01", periods=40),
            "image": list(rng.normal(size=(40, 3))),
        }
    )


def columns_of(encoder):
    return {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()}


# ---------------------------------------------------------------------- selection


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("rooms", ["rooms"]),
        (2, ["rooms"]),
        (np.int64(-4), ["rooms"]),
        (["size", "price"], ["size", "price"]),
        (("size", "price"), ["size", "price"]),
        ([1, 0], ["size", "price"]),
        (["size", 0], ["size", "price"]),
        (np.array(["size", "price"]), ["size", "price"]),
        (pd.Index(["size", "price"]), ["size", "price"]),
        (slice(0, 2), ["price", "size"]),
        (slice(None, 99), ["price", "size", "rooms", "city", "sold", "image"]),
        (slice(None, None, 4), ["price", "sold"]),
        (slice(-6, -4), ["price", "size"]),
        (slice("size", "rooms"), ["size", "rooms"]),
        (slice(None, "size"), ["price", "size"]),
        (slice("image", None), ["image"]),
        ([True, False, True, False, False, False], ["price", "rooms"]),
        (np.array([False, True, False, False, False, False]), ["size"]),
        (pd.Series([False, True, False, False, False, False]), ["size"]),
        (lambda X: ["rooms"], ["rooms"]),
        (lambda X: np.asarray([name.startswith("s") for name in X.columns]), ["size", "sold"]),
        (make_column_selector(dtype_include="float64"), ["price", "size"]),
        (make_column_selector(pattern="s"), ["size", "rooms", "sold"]),
        ([], []),
        (slice(3, 3), []),
    ],
)
def test_selectors(selector, expected, frame):
    assert select_columns(selector, as_table(frame), frame) == expected


@pytest.mark.parametrize("convert", [pd.DataFrame, pl.from_pandas, as_table, dict])
def test_callable_selector_works_with_every_flavour(convert, frame):
    X = convert(frame[["price", "size", "rooms", "city"]])
    numbers = make_column_selector(dtype_include="number")
    encoder = TableEncoder([("number", NumericBlock(), numbers)]).fit(X)
    assert columns_of(encoder) == {"number": ["price", "size", "rooms"], "category": ["city"]}


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("colour", "block 'b' names column 'colour', which X does not have; it has .*'price'"),
        (["price", "colour"], "block 'b' names column 'colour'"),
        (slice("price", "colour"), "block 'b' names column 'colour'"),
        (6, "block 'b' names column 6, but X has 6 columns"),
        ([0, -7], "block 'b' names column -7, but X has 6 columns"),
        (["price", "size", "price"], r"block 'b' names columns more than once: \['price'\]"),
        (["price", 0], r"block 'b' names columns more than once: \['price'\]"),
        ([True, False], "block 'b': the boolean mask has 2 entries for 6 columns"),
        ([True, 1], "block 'b': True is not a column name, position or mask"),
        (None, "block 'b': None is not a column name, position or mask"),
        (1.5, "block 'b': 1.5 is not a column name, position or mask"),
    ],
)
@pytest.mark.parametrize("make", [TableEncoder, EasyTensorRegressor])
def test_bad_selectors(make, selector, message, frame):
    with pytest.raises(ValueError, match=message):
        make([("b", NumericBlock(), selector)]).fit(frame, np.zeros(len(frame)))


# ---------------------------------------------------------------------- detection, remainder


def test_blocks_are_chosen_by_type(frame):
    encoder = TableEncoder().fit(frame)
    assert columns_of(encoder) == {
        "vector": ["image"],
        "datetime": ["sold"],
        "category": ["city"],
        "numeric": ["price", "size", "rooms"],
    }
    assert {name: type(block) for name, block in encoder.blocks_.items()} == {
        "vector": VectorBlock,
        "datetime": DatetimeBlock,
        "category": CategoryBlock,
        "numeric": NumericBlock,
    }


def test_named_blocks_take_their_columns_and_the_rest_is_chosen(frame):
    encoder = TableEncoder([("rooms", CategoryBlock(), "rooms")]).fit(frame)
    assert columns_of(encoder) == {
        "rooms": ["rooms"],
        "vector": ["image"],
        "datetime": ["sold"],
        "category": ["city"],
        "numeric": ["price", "size"],
    }


def test_remainder_drop_leaves_the_rest_out(frame):
    encoder = TableEncoder([("rooms", CategoryBlock(), "rooms")], remainder="drop").fit(frame)
    assert columns_of(encoder) == {"rooms": ["rooms"]}
    assert encoder.n_features_in_ == 6
    assert encoder.transform(frame).shape == (40, 1)


def test_remainder_drop_leaves_unreadable_columns_alone(frame):
    frame["strange"] = [b"x"] * 40
    blocks = [("price", NumericBlock(), "price")]
    assert columns_of(TableEncoder(blocks, remainder="drop").fit(frame)) == {"price": ["price"]}
    with pytest.raises(TypeError, match=r"column 'strange' of type bytes.*no block reads bytes"):
        TableEncoder(blocks).fit(frame)


def test_named_blocks_keep_their_names_beside_chosen_ones(frame):
    blocks = [
        ("numeric", NumericBlock(bins=4), "price"),
        ("numeric_auto", NumericBlock(bins=5), "size"),
        ("category", CategoryBlock(), "rooms"),
    ]
    encoder = TableEncoder(blocks).fit(frame[["price", "size", "rooms", "city"]].assign(more=1.5))
    assert columns_of(encoder) == {
        "numeric": ["price"],
        "numeric_auto": ["size"],
        "category": ["rooms"],
        "category_auto": ["city"],
        "numeric_auto_auto": ["more"],
    }
    assert encoder.blocks_["numeric"].bins == 4
    assert encoder.blocks_["numeric_auto"].bins == 5


def test_two_blocks_may_read_one_column(frame):
    blocks = [("number", NumericBlock(), "rooms"), ("category", CategoryBlock(), "rooms")]
    settings = {"trunk": MLP(width=16), "learning_rate": 0.02, "max_epochs": 20, "random_state": 0}
    model = EasyTensorRegressor(blocks, remainder="drop", **settings)
    model.fit(frame, frame["rooms"])
    assert columns_of(model) == {"number": ["rooms"], "category": ["rooms"]}
    importances = dict(zip(frame.columns, model.feature_importances_, strict=True))
    assert importances["rooms"] == pytest.approx(1)


def test_a_block_without_columns_is_left_out(frame):
    blocks = [("none", NumericBlock(), []), ("price", NumericBlock(), ["price"])]
    assert columns_of(TableEncoder(blocks, remainder="drop").fit(frame)) == {"price": ["price"]}
    with pytest.raises(ValueError, match="no block reads any column"):
        TableEncoder(blocks[:1], remainder="drop").fit(frame)


def test_given_blocks_are_not_changed_by_fit(frame):
    block = NumericBlock()
    encoder = TableEncoder([("price", block, "price")]).fit(frame)
    assert encoder.blocks_["price"] is not block
    assert not hasattr(block, "edges_")


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ("price", TypeError, "blocks must be a list of"),
        (NumericBlock(), TypeError, "blocks must be a list of"),
        ([("price", NumericBlock())], ValueError, "each entry of blocks must be"),
        (["price"], ValueError, "each entry of blocks must be"),
        ([("a__b", NumericBlock(), 0)], ValueError, "strings without '__', got 'a__b'"),
        ([(1, NumericBlock(), 0)], ValueError, "block names must be strings"),
        ([("a", NumericBlock, 0)], TypeError, "block 'a' must be an instance of a Block"),
        ([("a", "numeric", 0)], TypeError, "block 'a' must be an instance of a Block"),
        (
            [("a", NumericBlock(), 0), ("a", NumericBlock(), 1)],
            ValueError,
            "block name 'a' occurs more than once",
        ),
        ([("a", NumericBlock(bins=0), 0)], ValueError, "bins must be an integer at least 1"),
        ([("a", NumericBlock(), "city")], TypeError, "column 'city' .*CategoryBlock"),
    ],
)
@pytest.mark.parametrize("make", [TableEncoder, EasyTensorClassifier])
def test_bad_blocks(make, blocks, error, message, frame):
    with pytest.raises(error, match=message):
        make(blocks).fit(frame, [0, 1] * 20)


# ---------------------------------------------------------------------- parameters


@pytest.fixture(params=[TableEncoder, EasyTensorClassifier, EasyTensorRegressor])
def composed(request):
    blocks = [("number", NumericBlock(bins=8), ["price"]), ("place", CategoryBlock(), "city")]
    return request.param(blocks)


def test_nested_parameters_are_listed(composed):
    params = composed.get_params()
    assert params["blocks__number__bins"] == 8
    assert params["blocks__place__min_frequency"] == 1
    assert params["blocks__number"] is composed.blocks[0][1]
    assert not any("__" in name for name in composed.get_params(deep=False))


def test_nested_parameters_are_set(composed):
    composed.set_params(blocks__number__bins=16, blocks__place__width=3, remainder="drop")
    assert composed.blocks[0][1].bins == 16
    assert composed.blocks[1][1].width == 3
    assert composed.remainder == "drop"


def test_a_block_is_replaced(composed):
    composed.set_params(blocks__number__bins=16, blocks__number=NumericBlock(bins=2, width=5))
    assert composed.blocks[0][:1] + composed.blocks[0][2:] == ("number", ["price"])
    assert composed.blocks[0][1].get_params()["bins"] == 16
    assert composed.blocks[0][1].width == 5


def test_parameters_reach_blocks_given_in_the_same_call(composed):
    composed.set_params(blocks__new__bins=16, blocks=[("new", NumericBlock(), "size")])
    assert composed.blocks[0][1].bins == 16


def test_unknown_nested_parameters_raise(composed):
    with pytest.raises(ValueError, match=r"'blocks__other__bins'.*\['number', 'place'\]"):
        composed.set_params(blocks__other__bins=3)
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        composed.set_params(blocks__number__colour=3)
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        composed.set_params(colour=3)


@pytest.mark.parametrize(
    "columns",
    [
        ["zip", "amount"],
        [1, 2],
        [False, True, True, False],
        np.array([False, True, True, False]),
        slice("zip", "amount"),
        lambda X: [name for name in X if name in ("zip", "amount")],
    ],
    ids=["names", "positions", "mask", "array", "slice", "callable"],
)
def test_categorical_features(columns):
    X = pd.DataFrame(
        {"city": ["a", "b"] * 20, "zip": [1, 2] * 20, "amount": [0.5, 1.5] * 20, "size": 2.0}
    )
    encoder = TableEncoder(categorical_features=columns).fit(X)
    read = {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()}
    assert read == {"category": ["city", "zip", "amount"], "numeric": ["size"]}
    dropped = TableEncoder(categorical_features=columns, remainder="drop").fit(X)
    assert list(dropped.blocks_) == ["category"]
    assert list(dropped.blocks_["category"].feature_names_in_) == ["zip", "amount"]
    named = TableEncoder([("place", CategoryBlock(), "city")], categorical_features=columns).fit(X)
    assert list(named.blocks_["category"].feature_names_in_) == ["zip", "amount"]
    assert clone(encoder).fit(X).transform(X).shape == encoder.transform(X).shape
    if not callable(columns):
        model = EasyTensorClassifier(categorical_features=columns, max_epochs=1, warm_start=True)
        y = [0, 1] * 20
        assert model.fit(X, y).fit(X, y).blocks_["category"].n_features_in_ == 3
        with pytest.raises(ValueError, match="categorical_features changed since the last fit"):
            model.set_params(categorical_features=["zip"]).fit(X, y)


def test_bad_categorical_features(frame):
    blocks = [("number", NumericBlock(), ["price"])]
    for columns, message in (
        (["nope"], "categorical_features names column 'nope', which X does not have"),
        ([99], "categorical_features names column 99, but X has"),
        (["price"], "names column 'price', which block 'number' reads; leave it out of one"),
        ([True], "categorical_features: the boolean mask has 1 entries for"),
    ):
        with pytest.raises(ValueError, match=message):
            TableEncoder(blocks, categorical_features=columns).fit(frame)
    with pytest.raises(TypeError, match=r"column 'items' .* by CategoryBlock"):
        TableEncoder(categorical_features=["items"]).fit({"items": [["a"], ["b"]]})
    assert TableEncoder(categorical_features=[]).fit(frame).blocks_.keys() == (
        TableEncoder().fit(frame).blocks_.keys()
    )


def test_clone_copies_blocks(composed, frame):
    composed.fit(frame, [0, 1] * 20) if isinstance(composed, TableEncoder) else None
    copy = clone(composed.set_params(blocks__number__bins=16))
    assert copy.blocks[0][1].bins == 16
    assert copy.blocks[0][1] is not composed.blocks[0][1]
    copy.set_params(blocks__number__bins=32)
    assert composed.blocks[0][1].bins == 16
    assert not hasattr(copy, "blocks_")


def test_repr_shows_blocks(composed):
    assert "('number', NumericBlock(bins=8), ['price'])" in " ".join(repr(composed).split())


def test_parameters_of_the_default_trunk():
    model = EasyTensorClassifier()
    assert model.trunk is None
    assert model.get_params()["trunk__dropout"] == 0 != TabM().dropout
    assert clone(model).trunk is None
    model.set_params(trunk__dropout=0.3)
    assert isinstance(model.trunk, TabM)
    assert model.get_params()["trunk__dropout"] == clone(model).trunk.dropout == 0.3
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        EasyTensorClassifier().set_params(trunk__colour=1)


def test_parameters_of_a_given_trunk():
    model = EasyTensorClassifier(trunk=MLP(width=8)).set_params(trunk__layers=3)
    assert (model.trunk.width, model.trunk.layers) == (8, 3)
    model = EasyTensorClassifier().set_params(trunk=MLP(), trunk__dropout=0.25)
    assert (type(model.trunk), model.trunk.dropout) == (MLP, 0.25)
    model.set_params(trunk=None, trunk__members=2)
    assert (type(model.trunk), model.trunk.members) == (TabM, 2)


# ---------------------------------------------------------------------- HTML


def test_html_of_an_unfitted_estimator_shows_blocks_and_columns(composed):
    html = estimator_html_repr(composed)
    for text in ("number", "NumericBlock", "price", "place", "CategoryBlock", "city", "remainder"):
        assert text in html
    assert "remainder" not in columns_in_diagram(composed.set_params(remainder="drop"))


def columns_in_diagram(estimator):
    return estimator._sk_visual_block_().names


@pytest.mark.parametrize(
    "make", [TableEncoder, lambda blocks: EasyTensorClassifier(blocks, max_epochs=1)]
)
def test_html_of_a_fitted_estimator_shows_chosen_blocks(make, frame):
    model = make([("number", NumericBlock(), slice(0, 2))]).fit(frame, [0, 1] * 20)
    html = estimator_html_repr(model)
    for name, block in model.blocks_.items():
        assert name in html
        assert type(block).__name__ in html
        for column in block.feature_names_in_:
            assert column in html


def test_html_without_blocks():
    assert "EasyTensorClassifier" in estimator_html_repr(EasyTensorClassifier())
    assert "TableEncoder" in TableEncoder()._repr_html_()


def test_html_inside_a_pipeline(frame):
    html = estimator_html_repr(make_pipeline(TableEncoder([("n", NumericBlock(), "price")])))
    assert "NumericBlock" in html


# ---------------------------------------------------------------------- the encoder alone


def test_transform_names_every_column(frame):
    encoder = TableEncoder().fit(frame)
    names = encoder.get_feature_names_out()
    encoded = encoder.transform(frame)
    assert encoded.dtype == np.float32
    assert encoded.shape == (40, len(names))
    assert len(set(names)) == len(names)
    assert {"category__city", "numeric__price", "numeric__size", "numeric__rooms"} <= set(names)
    assert np.isfinite(encoded).all()


@pytest.mark.parametrize(("library", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_set_output(library, kind, frame):
    encoder = TableEncoder().set_output(transform=library).fit(frame)
    encoded = encoder.transform(frame)
    assert isinstance(encoded, kind)
    assert list(encoded.columns) == list(encoder.get_feature_names_out())
    plain = encoder.set_output(transform="default").transform(frame)
    np.testing.assert_array_equal(encoded.to_numpy(), plain)


def test_rows_are_encoded_alone(frame):
    encoder = TableEncoder().fit(frame)
    together = encoder.transform(frame)
    for row in (0, 17, 39):
        np.testing.assert_array_equal(encoder.transform(frame[row : row + 1])[0], together[row])


def test_encode_gives_tensors(frame):
    encoder = TableEncoder().fit(frame)
    encoded = encoder.encode(frame)
    assert len(encoded) == 40
    assert list(encoded) == list(encoder.blocks_)


def test_inside_a_pipeline(frame):
    y = (frame["price"] > 0).astype(int)
    pipeline = make_pipeline(TableEncoder(), LogisticRegression()).fit(frame, y)
    assert pipeline.score(frame, y) > 0.8
    assert pipeline[:-1].get_feature_names_out()[0].startswith("vector__")


def test_inside_a_column_transformer(frame):
    transformer = ColumnTransformer(
        [("table", TableEncoder(), ["price", "city"]), ("rest", "passthrough", ["rooms"])]
    ).set_output(transform="pandas")
    names = list(transformer.fit_transform(frame).columns)
    assert names == ["table__category__city", "table__numeric__price", "rest__rooms"]


def test_pickled_encoder_encodes_the_same(frame):
    encoder = TableEncoder().fit(frame)
    restored = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(restored.transform(frame), encoder.transform(frame))


def test_unfitted_encoder_raises(frame):
    for method in (TableEncoder().transform, TableEncoder().encode):
        with pytest.raises(NotFittedError):
            method(frame)
    with pytest.raises(NotFittedError):
        TableEncoder().get_feature_names_out()


def test_fit_again_forgets_names(frame):
    encoder = TableEncoder().fit(frame[["price", "size"]])
    encoder.fit(frame[["price", "size"]].to_numpy())
    assert not hasattr(encoder, "feature_names_in_")
    assert columns_of(encoder) == {"numeric": ["x0", "x1"]}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_chunks_and_threads_give_the_same_encoder(n_jobs, frame):
    from sk_easytensor.backends import LocalBackend

    whole = TableEncoder().fit(frame)
    backend = LocalBackend(n_jobs, chunk_rows=1)
    table = as_table(frame)
    chunked = TableEncoder().fit_table(table, frame, partial(backend.summarize, table))
    encoded = chunked.encode_table(as_table(frame), backend)
    assert encoded.equals(whole.encode(frame))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_jobs": 0}, "n_jobs must be an integer other than 0"),
        ({"n_jobs": 1.5}, "n_jobs must be an integer, got 1.5"),
        ({"remainder": "passthrough"}, "remainder must be one of"),
    ],
)
def test_bad_parameters(params, message, frame):
    with pytest.raises(ValueError, match=message):
        TableEncoder(**params).fit(frame)


def test_several_blocks_of_a_kind_are_numbered():
    X = {"a": [[1.0], [1.0, 2.0]], "b": [[1.0, 2.0], [3.0]], "c": [[3.0], [4.0, None]]}
    encoder = TableEncoder().fit(X)
    assert {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()} == {
        "numeric_sequence": ["a", "c"],
        "numeric_sequence_2": ["b"],
    }
    names = encoder.get_feature_names_out()
    assert len(set(names)) == len(names) == encoder.transform(X).shape[1]
    blocks = [("numeric_sequence", NumericSequenceBlock("gru"), "b")]
    encoder = TableEncoder(blocks).fit({**X, "d": [[], [5.0]]})
    assert {name: list(block.feature_names_in_) for name, block in encoder.blocks_.items()} == {
        "numeric_sequence": ["b"],
        "numeric_sequence_auto": ["a", "c"],
        "numeric_sequence_auto_2": ["d"],
    }


def test_types_of_several_parts_are_refused_by_name():
    kind = pa.map_(pa.string(), pa.int64())
    with pytest.raises(
        TypeError, match=r"column 'm' of type map.*row 1 holds \[\('a', 1\)\].*no block reads maps"
    ):
        TableEncoder().fit({"m": pa.array([None, [("a", 1)]], kind)})
    with pytest.raises(TypeError, match=r"column 'l' of type .*row 0 holds .*one level deep"):
        TableEncoder().fit({"l": [[{"a": [1]}]]})
