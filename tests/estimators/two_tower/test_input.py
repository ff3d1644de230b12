"""What two towers read, and what they refuse."""

import decimal

import numpy as np
import pandas as pd
import pytest
import skops.io
from two_towers import BY_KEY, BY_TASTE, KEYS, same, untrained

from sk_easytensor import (
    CategoryBlock,
)
from sk_easytensor.safe_loading import trusted_types

# ---------------------------------------------------------------------- input that makes no sense


def no_item(data):
    return data.interactions.drop(columns="item_id")


def with_value(frame, column, row, value):
    changed = frame.astype({column: object})
    changed.loc[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"item_key": None}, "items needs item_key"),
        (lambda d: {"items": None}, "item_blocks is needed .* unless fit is given a catalogue"),
        (lambda d: {"item_key": "sku"}, "item_key names column 'sku', which X does not have"),
        (lambda d: {"item_key": "town"}, "item_key names column 'town', which items does not have"),
        (lambda d: {"user_key": "name"}, "user_key names column 'name', which X does not have"),
        (lambda d: {"X": no_item(d)}, "item_key names column 'item_id', which X does not have"),
        (
            lambda d: {"X": with_value(d.interactions, "item_id", 7, 999)},
            "column 'item_id' holds 999 in row 7, which is not the key of an item; there are 40",
        ),
        (
            lambda d: {"X": with_value(d.interactions, "item_id", 7, None)},
            "column 'item_id' holds None in row 7",
        ),
        (
            lambda d: {"X": with_value(d.interactions, "user_id", 7, None)},
            "key column 'user_id' is missing in row 7",
        ),
        (
            lambda d: {"items": with_value(d.catalogue, "item_id", 3, None)},
            "key column 'item_id' is missing in row 3",
        ),
        (
            lambda d: {"items": with_value(d.catalogue, "item_id", 3, np.nan)},
            "key column 'item_id' is missing in row 3",
        ),
        (
            lambda d: {"items": with_value(d.catalogue, "item_id", 3, 11)},
            "1 keys in more than one row, such as 11, again in row 11",
        ),
        (
            lambda d: {"X": d.catalogue, "user_key": None},
            "X has no column that items does not have",
        ),
        (lambda d: {"X": d.interactions[:0]}, r"0 sample\(s\)"),
        (lambda d: {"y": [0, 1]}, r"inconsistent numbers of samples: \[2000, 2\]"),
        (lambda d: {"y": [1] * 2000}, "y holds nothing but .*1.*. Leave it out if every row"),
        (lambda d: {"y": ["a", "b", "c", "d"] * 500}, "y must have two classes or numbers"),
        (lambda d: {"y": [1.0, np.nan] * 1000}, "Input y contains NaN"),
        (lambda d: {"y": ["a", None] * 1000}, "Input y contains NaN"),
        (lambda d: {"y": np.zeros((2000, 2))}, "y must be 1-D"),
        (lambda d: {"y": np.linspace(0, 1e160, 2000)}, r"y holds 1e\+160, and numbers may be up"),
        (lambda d: {"sample_weight": -np.ones(2000)}, "Negative values"),
        (lambda d: {"sample_weight": np.zeros(2000)}, "at least one non-zero"),
        (lambda d: {"sample_weight": np.ones(3)}, r"expected \(2000,\)"),
        (
            lambda d: {"eval_set": [d.interactions], "eval_sample_weight": [np.ones(3)]},
            r"eval_sample_weight\[0\]: .*expected \(2000,\)",
        ),
        (
            lambda d: {"eval_set": [d.interactions], "eval_sample_weight": [None, None]},
            "2 entries for 1 pairs",
        ),
        (
            lambda d: {"eval_set": [(d.interactions, np.ones(2000))]},
            r"eval_set\[0\]: .*fitted without y; leave y out",
        ),
        (
            lambda d: {"eval_set": [d.interactions], "y": [0, 1] * 1000},
            r"eval_set\[0\]: .*requires y to be passed",
        ),
        (
            lambda d: {"eval_set": [(d.interactions, [0, 2] * 1000)], "y": [0, 1] * 1000},
            r"eval_set\[0\]: .*y holds .*2.*; classes are \[0, 1\]",
        ),
        (
            lambda d: {"eval_set": [d.interactions, no_item(d)]},
            r"eval_set\[1\]: .*columns are missing: \['item_id'\], the key of items",
        ),
        (
            lambda d: {"eval_set": [d.interactions.drop(columns="town")]},
            r"eval_set\[0\]: columns are missing: \['town'\]. They were there when the user tower",
        ),
        (
            lambda d: {"eval_set": [with_value(d.interactions, "item_id", 2, 999)]},
            r"eval_set\[0\]: .*holds 999 in row 2",
        ),
    ],
)
def test_bad_input(change, message, data, recorder):
    params = {"X": data.interactions, "items": data.catalogue, **KEYS, **change(data)}
    with pytest.raises(ValueError, match=message):
        untrained(callbacks=[recorder]).fit(**params)
    assert recorder.epochs == 0
    assert recorder.rates == []


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_keys_of_a_strange_type(column, data, recorder):
    lists = [[value] for value in data.interactions[column]]
    with pytest.raises(TypeError, match=f"key column {column!r} cannot be of type .*list"):
        untrained([("town", CategoryBlock(), "town")], BY_KEY[1], callbacks=[recorder]).fit(
            data.interactions.assign(**{column: lists}), **KEYS
        )


def test_evaluation_sets_that_are_no_list(X, catalogue):
    with pytest.raises(TypeError, match="eval_set must be a list"):
        untrained().fit(X, items=catalogue, eval_set=X, **KEYS)


def test_columns_missing_from_a_tower(data, X, catalogue, fitted):
    """The tower is named, and the columns."""
    short = data.users.drop(columns="age")
    for call in (fitted.recommend, fitted.transform, fitted.user_tower_.transform):
        with pytest.raises(ValueError, match=r"\['age'\]. They were there when the user tower"):
            call(short)
    with pytest.raises(ValueError, match=r"\['price'\]. They were there when the item tower"):
        fitted.rank_users(catalogue.drop(columns="price"))
    with pytest.raises(ValueError, match=r"\['genre'\]. They were there when the item tower"):
        fitted.recommend(data.users, catalogue.drop(columns="genre"))
    for blocks, message in (
        (
            ([("b", CategoryBlock(), "city")], None),
            "block 'b' names column 'city', which X does not",
        ),
        ((None, [("b", CategoryBlock(), "kind")]), "names column 'kind', which items does not"),
    ):
        with pytest.raises(ValueError, match=message):
            untrained(*blocks).fit(X, items=catalogue, item_key="item_id")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding_dim", 0, "embedding_dim must be an integer at least 1"),
        ("similarity", "euclid", "similarity must be one of"),
        ("temperature", 0, "temperature must be a number greater than 0"),
        (
            "temperature",
            "warm",
            "temperature must be a number greater than 0, 'learned' or None, got 'warm'",
        ),
        ("n_negatives", -1, "n_negatives must be an integer at least 0"),
        ("n_negatives", "some", "n_negatives must be an integer at least 0 or 'all', got 'some'"),
        ("dropout", 1.0, "dropout must be a number"),
        ("index", "annoy", "index must be one of"),
        ("learning_rate", 0, "learning_rate must be a number greater than 0"),
        ("batch_size", 0, "batch_size must be an integer at least 1"),
        ("trunk", "mlp", "trunk must have make_module"),
        ("validation_fraction", 1.0, "validation_fraction must be a number"),
        ("validation", "first", r"validation must be one of .*'random', 'last'"),
        ("backend", "cloud", "backend must be"),
    ],
)
def test_bad_parameters(name, value, message, X, catalogue, recorder):
    params = {"callbacks": [recorder], name: value}
    with pytest.raises(ValueError, match=message):
        untrained(**params).fit(X, items=catalogue, **KEYS)
    assert recorder.epochs == 0


# ---------------------------------------------------------------------- tables of every kind


def test_fit_on_any_flavour_gives_the_same_model(flavour, data, X, catalogue):
    blocks = (
        [("user", CategoryBlock(), "user_id"), ("town", CategoryBlock(), "town")],
        [("item", CategoryBlock(), "item_id"), ("genre", CategoryBlock(), "genre")],
    )
    expected = untrained(*blocks).fit(X, items=catalogue, **KEYS)
    model = untrained(*blocks).fit(flavour(X), items=flavour(catalogue), **KEYS)
    same(model.recommend(flavour(data.users)), expected.recommend(data.users))
    same(
        model.recommend(flavour(data.users[["user_id"]]), exclude="seen"),
        expected.recommend(data.users, exclude="seen"),
    )
    same(model.rank_users(flavour(catalogue)), expected.rank_users(catalogue))
    np.testing.assert_array_equal(model.predict(flavour(X)), expected.predict(X))
    assert model.item_keys_.tolist() == expected.item_keys_.tolist()


@pytest.mark.parametrize("kind", [float, str, "category", "string"])
def test_keys_are_compared_as_categories_are(kind, data, X, catalogue):
    """7, 7.0 and "7" are the same key; recommendations are of the catalogue's type."""
    expected = untrained(*BY_TASTE).fit(X, items=catalogue, **KEYS)
    changed = catalogue.astype({"item_id": kind})
    model = untrained(*BY_TASTE).fit(X.astype({"user_id": kind}), items=changed, **KEYS)
    keys, scores = model.recommend({"user_id": [3, 5]}, exclude="seen")
    np.testing.assert_array_equal(
        scores, expected.recommend({"user_id": [3, 5]}, exclude="seen")[1]
    )
    assert set(keys.ravel()) <= {*changed["item_id"], None}


def test_columns_are_found_by_name(data, X, fitted):
    wide = data.users.assign(further=1)[["further", "age", "user_id", "town"]]
    same(fitted.recommend(wide), fitted.recommend(data.users))


def test_a_positional_selector(data, X, catalogue):
    model = untrained([("user", CategoryBlock(), [0, 1])], [("item", CategoryBlock(), slice(0, 2))])
    model.fit(X, items=catalogue, item_key="item_id")
    assert model.user_tower_.feature_names_in_.tolist() == ["user_id", "town"]
    assert model.item_tower_.feature_names_in_.tolist() == ["item_id", "genre"]


def test_arrays_have_positions():
    array = np.random.default_rng(0).integers(0, 5, (60, 3))
    blocks = ([("user", CategoryBlock(), 0)], [("item", CategoryBlock(), [2])])
    model = untrained(*blocks).fit(array)
    assert model.n_features_in_ == 3
    assert not hasattr(model, "feature_names_in_")
    frame = pd.DataFrame(array, columns=["a", "b", "c"])
    by_name = untrained([("user", CategoryBlock(), "a")], [("item", CategoryBlock(), "c")]).fit(
        frame
    )
    np.testing.assert_array_equal(model.predict(array), by_name.predict(frame))
    np.testing.assert_array_equal(model.transform(array), by_name.transform(frame))


def test_columns_that_no_tower_reads_may_hold_anything(fitted, X, catalogue):
    users, odd = X[:5], X[:5].assign(odd=[object()] * 5)
    np.testing.assert_array_equal(fitted.decision_function(odd), fitted.decision_function(users))
    np.testing.assert_array_equal(fitted.transform(odd), fitted.transform(users))
    np.testing.assert_array_equal(fitted.recommend(odd, k=2)[0], fitted.recommend(users, k=2)[0])


@pytest.mark.parametrize("first", [2**53, 10**25])
def test_keys_that_are_decimals_have_all_their_digits(first):
    keys = [decimal.Decimal(first + place) for place in range(6)]
    catalogue = pd.DataFrame({"item": keys, "price": np.arange(6.0)})
    X = pd.DataFrame({"user": np.arange(60) % 10, "item": keys * 10})
    model = untrained().fit(X, items=catalogue, item_key="item", user_key="user")
    assert [int(key) for key in model.item_keys_] == keys
    restored = skops.io.loads(skops.io.dumps(model), trusted=sorted(trusted_types()))
    assert {*restored.recommend({"user": [1]}, k=6)[0].ravel()} == {*model.item_keys_}


# ---------------------------------------------------------------------- unknown items


def test_rows_of_unknown_items_are_left_out(X, catalogue, data):
    some = catalogue.iloc[5:]
    known = X[X["item_id"] >= 5]
    with pytest.raises(ValueError, match="unknown_items='drop' to leave such rows out"):
        untrained().fit(X, items=some, **KEYS)
    n_dropped = len(X) - len(known)
    model = untrained(unknown_items="drop")
    with pytest.warns(UserWarning, match=f"{n_dropped} of {len(X)} rows of X are left out"):
        model.fit(X, items=some, **KEYS)
    expected = untrained().fit(known.reset_index(drop=True), items=some, **KEYS)
    same(
        model.recommend(data.users, exclude="seen"), expected.recommend(data.users, exclude="seen")
    )
    assert model.score(X) == pytest.approx(expected.score(known) * len(known) / len(X))


def test_rows_of_items_that_only_the_evaluation_set_has_are_left_out(X):
    train, valid = X[X["item_id"] >= 5], X.iloc[:300]
    model = untrained(*BY_KEY, unknown_items="drop")
    n_dropped = int((valid["item_id"] < 5).sum())
    with pytest.warns(UserWarning, match=rf"{n_dropped} of 300 rows of eval_set\[0\] are left out"):
        model.fit(train, **KEYS, eval_set=[valid])
    with pytest.raises(ValueError, match=r"no row of eval_set\[0\] has a known item"):
        model.fit(train, **KEYS, eval_set=[X[X["item_id"] < 5]])
    with pytest.raises(ValueError, match=r"unknown_items must be .*got 'ignore'"):
        untrained(unknown_items="ignore").fit(X, **KEYS)


def test_integers_that_are_codes_by_their_names_are_categories(X, catalogue, caplog):
    items = catalogue.assign(brandId=np.arange(len(catalogue)) % 7, width=3, zip_code=0, grid=1)
    with caplog.at_level("INFO", "sk_easytensor"):
        model = untrained().fit(X.assign(shop_id=4), items=items, **KEYS)
    kinds = {
        name: block.kind
        for tower in (model.item_tower_, model.user_tower_)
        for block in tower.blocks_.values()
        for name in block.feature_names_in_
    }
    codes = {name for name, kind in kinds.items() if kind == "category"}
    assert codes == {"item_id", "user_id", "town", "genre", "brandId", "zip_code", "shop_id"}
    assert {kinds[name] for name in ("width", "grid", "price", "age")} == {"numeric"}
    assert "['brandId', 'zip_code']" in caplog.text
