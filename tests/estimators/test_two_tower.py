"""Two towers: what they learn, how they rank, what they refuse, what is kept of them."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from skorch.callbacks import Callback, EpochScoring

from sk_easytensor import (
    MLP,
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorTwoTower,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    TabM,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.datasets import make_interactions
from sk_easytensor.ranking import recall_at_k

N_USERS, N_ITEMS = 60, 40
KEYS = {"item_key": "item_id", "user_key": "user_id"}


def two_tower(user_blocks=None, item_blocks=None, **params):
    """Make an estimator that learns tastes in a fraction of a second."""
    quick = {"embedding_dim": 8, "learning_rate": 2e-2, "batch_size": 128, "max_epochs": 8}
    return EasyTensorTwoTower(user_blocks, item_blocks, **{**quick, "random_state": 0, **params})


def untrained(*blocks, **params):
    """Make an estimator for tests in which its quality does not matter."""
    return two_tower(*blocks, **{"max_epochs": 1, "batch_size": 512, **params})


@pytest.fixture(scope="module")
def data():
    return make_interactions(2000, n_users=N_USERS, n_items=N_ITEMS, random_state=0)


@pytest.fixture(scope="module")
def X(data):
    return data.interactions


@pytest.fixture(scope="module")
def catalogue(data):
    return data.catalogue


@pytest.fixture(scope="module")
def fitted(data):
    """A model that is not to be changed."""
    return two_tower().fit(data.interactions, items=data.catalogue, **KEYS)


BY_KEY = ([("user", CategoryBlock(), "user_id")], [("item", CategoryBlock(), "item_id")])
BY_TASTE = (
    [("town", CategoryBlock(width=8), "town")],
    [("genre", CategoryBlock(width=8), "genre")],
)


@pytest.fixture(scope="module")
def rated(data):
    """Pairs with the item's columns, and whether user and item share a taste."""
    random = np.random.default_rng(0)
    users = data.users.iloc[random.integers(0, N_USERS, 1500)].reset_index(drop=True)
    items = data.catalogue.iloc[random.integers(0, N_ITEMS, 1500)].reset_index(drop=True)
    y = data.affinity[users["user_id"], items["item_id"]].astype(int)
    return pd.concat([users, items], axis=1), y


class Note(Callback):
    """Notes how popular items are held to be, or after each epoch a value of the history."""

    def __init__(self, noted, name=None):
        self.noted = noted
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        self.noted.append(net.history[-1, self.name] if self.name else net.module_.popularity)


def shared_taste(data, users, keys):
    """Return the fraction of recommendations of the users' own taste."""
    return data.affinity[np.asarray(users)[:, None], keys.astype(int)].mean()


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


# ---------------------------------------------------------------------- what is learned


def test_recommendations_share_the_users_taste(data, fitted):
    keys, scores = fitted.recommend(data.users, k=5)
    assert keys.shape == scores.shape == (N_USERS, 5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.9
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores.dtype == np.float32


def test_new_users_are_known_by_their_town(data, fitted):
    new = data.users.assign(user_id=1000 + data.users["user_id"])
    keys, _ = fitted.recommend(new, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.6


def test_new_items_are_known_by_their_genre(data, X, catalogue):
    """Some items are never met in training, half of them not even in the catalogue."""
    held_out, unlisted = np.arange(12), np.arange(0, 12, 2)
    model = two_tower(*BY_TASTE).fit(
        X[~X["item_id"].isin(held_out)],
        items=catalogue[~catalogue["item_id"].isin(unlisted)],
        item_key="item_id",
    )
    new = catalogue.iloc[held_out]
    keys, _ = model.recommend(data.users, new, k=2)
    assert np.isin(keys, held_out).all()
    assert shared_taste(data, data.users["user_id"], keys) > 0.9
    users, _ = model.rank_users(new, users=data.users, k=10)
    assert data.affinity[users, held_out[:, None]].mean() > 0.9


def test_popular_items_come_first(data, X, fitted):
    """The softmax knows how often an item is chosen, though batches are corrected for it."""
    keys, _ = fitted.recommend(data.users, k=1)
    counts = np.bincount(X["item_id"], minlength=N_ITEMS)
    rank = [
        np.flatnonzero(np.argsort(-counts * data.affinity[user]) == key)[0]
        for user, key in zip(data.users["user_id"], keys[:, 0], strict=True)
    ]
    assert np.mean(rank) < 1.5


@pytest.mark.parametrize(
    "params", [{"n_negatives": 64}, {"similarity": "cosine", "max_epochs": 20}], ids=str
)
def test_variants_of_the_loss_learn_it_too(params, data, X, catalogue):
    model = two_tower(**params).fit(X, items=catalogue, **KEYS)
    keys, scores = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.9
    if "similarity" in params:
        assert (np.abs(scores) <= 1 + 1e-6).all()
        np.testing.assert_allclose(np.linalg.norm(model.item_embeddings_, axis=1), 1, rtol=1e-5)


def test_score_is_the_hit_rate_without_a_target(data, X, fitted):
    keys, _ = fitted.recommend(X, k=10)
    assert fitted.score(X) == pytest.approx((keys == X[["item_id"]].to_numpy()).any(axis=1).mean())
    assert fitted.score(X) > 0.8


def test_the_order_of_the_catalogue_does_not_matter(data, X, catalogue, fitted):
    shuffled = catalogue.sample(frac=1, random_state=1)
    model = two_tower().fit(X, items=shuffled, **KEYS)
    assert model.item_keys_.tolist() == shuffled["item_id"].tolist()
    keys, _ = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.9
    order = np.argsort(model.item_keys_)
    embeddings = fitted.item_tower_.transform(catalogue)
    np.testing.assert_allclose(fitted.item_embeddings_, embeddings, rtol=1e-5, atol=1e-6)
    embeddings = model.item_tower_.transform(catalogue)
    np.testing.assert_allclose(model.item_embeddings_[order], embeddings, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [True, False], ids=["catalogue", "features in X"])
def test_features_of_items_may_be_in_the_interactions(given, data, X, catalogue):
    joined = X.merge(catalogue, on="item_id", validate="many_to_one")
    if given:
        model = two_tower(*BY_TASTE).fit(X, items=catalogue, item_key="item_id")
    else:
        model = two_tower(*BY_TASTE).fit(joined, item_key="item_id")
        first = joined["item_id"].drop_duplicates()
        assert model.item_keys_.tolist() == first.tolist()
    keys, _ = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.9


def test_without_keys_items_are_rows(data, X, catalogue):
    joined = X.merge(catalogue, on="item_id")
    model = two_tower(*BY_TASTE).fit(joined)
    assert not hasattr(model, "item_keys_")
    places, _ = model.recommend(data.users, catalogue[["genre"]], k=5)
    assert shared_taste(data, data.users["user_id"], places) > 0.9
    for call in (lambda: model.recommend(data.users), lambda: model.score(joined)):
        with pytest.raises(ValueError, match="there is no catalogue"):
            call()
    with pytest.raises(ValueError, match="exclude names keys, which items do not have"):
        model.recommend(data.users, catalogue, exclude=[[]] * N_USERS)


# ---------------------------------------------------------------------- targets


def as_strings(y):
    return np.where(y == 1, "yes", "no")


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y,
        lambda y: y.astype(bool),
        lambda y: y.astype(float),
        list,
        as_strings,
        lambda y: pd.Series(as_strings(y)),
        lambda y: pd.Series(as_strings(y), dtype="category"),
        lambda y: pl.Series(as_strings(y)),
        lambda y: pa.chunked_array([as_strings(y)]),
    ],
    ids=["0/1", "bool", "float", "list", "str", "pandas", "categorical", "polars", "arrow"],
)
def test_two_classes(convert, rated):
    X, y = rated
    target = convert(y)
    model = two_tower(*BY_TASTE, max_epochs=8).fit(X, target)
    assert model.classes_.tolist() == np.unique(np.asarray(target)).tolist()
    assert model.score(X, target) > 0.95
    assert np.mean(model.predict(X) == np.asarray(target)) > 0.9
    probability = model.predict_proba(X)
    assert probability.shape == (len(X), 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    log_odds = np.log(probability[:, 1] / probability[:, 0])
    np.testing.assert_allclose(model.decision_function(X), log_odds, rtol=1e-6)
    assert list(model.evals_result_["valid_0"]) == ["log_loss"]


def test_probabilities_are_calibrated(rated):
    """The bias learns how frequent the second class is, which products of zero cannot."""
    X, _ = rated
    y = np.random.default_rng(0).random(len(X)) < 0.2
    model = two_tower(*BY_TASTE, max_epochs=20).fit(X, y)
    assert model.predict_proba(X)[:, 1].mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_numbers(scale, rated):
    X, y = rated
    y = scale * (3 + y + 0.1 * np.random.default_rng(0).normal(size=len(y)))
    model = two_tower(*BY_TASTE, max_epochs=20).fit(X, y)
    assert model.score(X, y) > 0.8
    assert model.predict(X).mean() == pytest.approx(y.mean(), rel=0.1)
    assert not hasattr(model, "classes_")
    assert not hasattr(model, "predict_proba")
    assert list(model.evals_result_["valid_0"]) == ["squared_error"]


def test_predictions_without_a_target_are_products(data, X, fitted):
    pairs = X.head(20)
    users = fitted.transform(pairs).astype(float)
    items = fitted.item_embeddings_[pairs["item_id"]]
    expected = (users * items).sum(axis=1)
    np.testing.assert_allclose(fitted.predict(pairs), expected, rtol=1e-5)
    np.testing.assert_array_equal(fitted.decision_function(pairs), fitted.predict(pairs))
    with pytest.raises(AttributeError, match="predict_proba"):
        fitted.predict_proba(pairs)
    keys, scores = fitted.recommend(data.users, k=N_ITEMS)
    rows = data.users.loc[np.repeat(np.arange(N_USERS), N_ITEMS)].assign(item_id=keys.ravel())
    np.testing.assert_allclose(fitted.predict(rows), scores.ravel(), rtol=1e-4, atol=1e-5)


def test_temperature_divides_products(X, catalogue):
    model = untrained(similarity="cosine", temperature=0.5).fit(X, items=catalogue, **KEYS)
    assert np.abs(model.decision_function(X)).max() <= 2 + 1e-6
    keys, scores = model.recommend(X.head(1), k=1)
    pair = X.head(1).assign(item_id=keys[:, 0])
    np.testing.assert_allclose(model.decision_function(pair), 2 * scores[0], rtol=1e-5)


# ---------------------------------------------------------------------- blocks of any kind


@pytest.fixture(scope="module")
def rich():
    """Users and items described by columns of every kind, all of which tell the taste."""
    random = np.random.default_rng(0)

    def describe(taste, prefix):
        words = [
            f"{'warm soft wool' if t else 'cold hard steel'} {random.integers(9)}" for t in taste
        ]
        frame = {
            f"{prefix}_text": [f"something {word} made for everyone to keep" for word in words],
            f"{prefix}_tags": [
                [f"tag {2 * random.integers(3) + t}" for _ in range(random.integers(1, 4))]
                for t in taste
            ],
            f"{prefix}_series": [(t + random.normal(size=6) / 4).tolist() for t in taste],
            f"{prefix}_vector": [(t + random.normal(size=3) / 4).tolist() for t in taste],
            f"{prefix}_events": [
                [
                    {
                        "kind": f"kind {t}",
                        "amount": float(random.normal()),
                        "time": pd.Timestamp(day, unit="D"),
                    }
                    for day in range(random.integers(1, 4))
                ]
                for t in taste
            ],
            f"{prefix}_now": pd.to_datetime(random.integers(5, 9, len(taste)), unit="D"),
            f"{prefix}_number": taste + random.normal(size=len(taste)) / 4,
        }
        return pd.DataFrame(frame)

    user_taste, item_taste = random.integers(0, 2, 300), random.integers(0, 2, 300)
    X = pd.concat([describe(user_taste, "user"), describe(item_taste, "item")], axis=1)
    return X, (user_taste == item_taste).astype(int)


KINDS = {
    "text": (TextBlock(), ["text"]),
    "tags": (CategorySequenceBlock("mean", width=8), ["tags"]),
    "series": (NumericSequenceBlock(width=8), ["series"]),
    "vector": (VectorBlock(), ["vector"]),
    "events": (EventSequenceBlock(width=8), ["events", "now"]),
    "number": (NumericBlock(), ["number"]),
}


def blocks_of(kind):
    block, columns = KINDS[kind]
    return tuple(
        [(kind, clone(block), [f"{prefix}_{column}" for column in columns])]
        for prefix in ("user", "item")
    )


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_kind_in_both_towers(kind, shared, rich):
    X, y = rich
    # A product of two towers begins near a saddle, where patience would end it.
    how = {"max_epochs": 60, "early_stopping_rounds": None, "dropout": 0.0}
    model = two_tower(*blocks_of(kind), shared_blocks=[kind] if shared else (), **how)
    model.fit(X, y)
    assert model.score(X, y) > 0.7
    columns = [f"item_{column}" for column in KINDS[kind][1]]
    assert list(model.item_tower_.feature_names_in_) == columns
    assert list(model.item_tower_.blocks_[kind].feature_names_in_) == columns
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    names = model.item_tower_.blocks_[kind].get_feature_names_out()
    assert all(name.startswith("item_") for name in names)
    weights = [
        dict(tower.network_.blocks[0].named_parameters())
        for tower in (model.user_tower_, model.item_tower_)
    ]
    if shared:
        assert weights[0].keys() == weights[1].keys()
        assert all(weights[0][name] is weights[1][name] for name in weights[0])


def test_shared_blocks_have_one_vocabulary():
    X = {
        "likes": ["jazz", "jazz", "folk", "rock"] * 10,
        "plays": ["jazz", "folk", "rock", "pop"] * 10,
    }
    model = untrained(
        [("style", CategoryBlock(), "likes")],
        [("style", CategoryBlock(), "plays")],
        shared_blocks=["style"],
    ).fit(X)
    ours, theirs = model.user_tower_.blocks_["style"], model.item_tower_.blocks_["style"]
    assert ours.categories_[0].to_pylist() == theirs.categories_[0].to_pylist()
    assert sorted(ours.categories_[0].to_pylist()) == ["folk", "jazz", "pop", "rock"]
    assert (list(ours.feature_names_in_), list(theirs.feature_names_in_)) == (["likes"], ["plays"])
    user, item = model.user_tower_.network_, model.item_tower_.network_
    codes = torch.tensor([[2], [3], [4]], dtype=torch.int32)
    assert torch.equal(user.blocks[0](codes), item.blocks[0](codes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared_blocks": ["town"]}, "shared_blocks names 'town', which item_blocks lacks"),
        ({"shared_blocks": ["genre"]}, "shared_blocks names 'genre', which user_blocks lacks"),
        ({"shared_blocks": "town"}, "shared_blocks must be a list of names, got 'town'"),
        ({"shared_blocks": [3]}, r"shared_blocks must be a list of names, got \[3\]"),
    ],
)
def test_shared_blocks_that_are_not_there(change, message, X, catalogue):
    with pytest.raises(ValueError, match=message):
        untrained(*BY_TASTE, **change).fit(X, items=catalogue, item_key="item_id")


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (("b", CategoryBlock(), ["town"]), ("b", NumericBlock(), ["price"]), "both must be alike"),
        (
            ("b", CategoryBlock(), ["town"]),
            ("b", CategoryBlock(min_frequency=2), ["genre"]),
            "both must be alike",
        ),
        (
            ("b", CategoryBlock(), ["town", "age"]),
            ("b", CategoryBlock(), ["genre"]),
            r"reads \['town', 'age'\] and \['genre'\]",
        ),
    ],
)
def test_shared_blocks_that_are_not_alike(ours, theirs, message, X, catalogue):
    with pytest.raises(ValueError, match=message):
        untrained([ours], [theirs], shared_blocks=["b"]).fit(X, items=catalogue, item_key="item_id")


@pytest.mark.parametrize(
    "trunk", [MLP(layers=1, width=64), TabM(layers=1, members=2, width=64)], ids=str
)
def test_trunks(trunk, data, X, catalogue):
    model = two_tower(trunk=trunk, max_epochs=24).fit(X, items=catalogue, **KEYS)
    keys, _ = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.8
    assert model.user_tower_.trunk is not model.item_tower_.trunk


# ---------------------------------------------------------------------- ranking


def test_exclude_what_was_seen(data, X, fitted):
    keys, scores = fitted.recommend(data.users, k=N_ITEMS, exclude="seen")
    met = set(zip(X["user_id"], X["item_id"], strict=True))
    for user, row, products in zip(data.users["user_id"], keys, scores, strict=True):
        offered = [key for key in row if key is not None]
        assert sorted(offered) == [item for item in range(N_ITEMS) if (user, item) not in met]
        assert [key is None for key in row] == np.isneginf(products).tolist()
    same(
        fitted.recommend({"user_id": data.users["user_id"]}, k=N_ITEMS, exclude="seen"),
        (keys, scores),
    )
    new = data.users.assign(user_id=-1 - data.users["user_id"])
    same(fitted.recommend(new, exclude="seen"), fitted.recommend(new))


@pytest.mark.parametrize(
    "convert",
    [
        lambda lists: lists,
        lambda lists: [np.array(items, dtype=float) for items in lists],
        lambda lists: pd.Series(lists, index=range(5, 65)),
        pl.Series,
        lambda lists: pl.DataFrame({"lists": lists})["lists"],
        lambda lists: pa.array(lists, pa.list_(pa.int32())),
        lambda lists: pa.chunked_array([lists[:7], lists[7:]]),
        lambda lists: [[str(item) for item in items] for items in lists],
    ],
    ids=["list", "arrays", "pandas", "polars", "column", "arrow", "chunks", "strings"],
)
def test_exclude_lists_of_keys(convert, data, fitted):
    lists = [[*range(user % 3, user % 17), 999] for user in range(N_USERS)]
    keys, scores = fitted.recommend(data.users, k=N_ITEMS, exclude=convert(lists))
    for row, products, excluded in zip(keys, scores, lists, strict=True):
        offered = [key for key in row if key is not None]
        assert not set(offered) & set(excluded)
        assert len(offered) == N_ITEMS - len(excluded) + 1
        assert np.isfinite(products).sum() == len(offered)


@pytest.mark.parametrize("exclude", [[[]] * N_USERS, [None] * N_USERS, [[999]] * N_USERS])
def test_exclude_nothing(exclude, data, fitted):
    same(fitted.recommend(data.users, exclude=exclude), fitted.recommend(data.users))


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([[1]], "exclude has 1 lists for 60 users"),
        (list(range(N_USERS)), "exclude must hold a list of keys for each user, got .* int64"),
        ("all", "exclude must be 'seen'"),
    ],
)
def test_exclude_what_makes_no_sense(exclude, message, data, fitted):
    with pytest.raises(ValueError, match=message):
        fitted.recommend(data.users, exclude=exclude)


def test_seen_needs_users(data, X, catalogue, fitted):
    model = untrained().fit(X, items=catalogue, item_key="item_id")
    for call in (
        lambda: model.recommend(data.users, exclude="seen"),
        lambda: model.rank_users(catalogue),
    ):
        with pytest.raises(ValueError, match="needs the user_key of fit"):
            call()
    with pytest.raises(ValueError, match="'seen', which is known of the catalogue only"):
        fitted.recommend(data.users, catalogue, exclude="seen")


def test_users_are_known_by_their_key(data, X, fitted):
    ids = [3, 0, 3, 59]
    found = fitted.recommend({"user_id": ids}, k=4)
    rows = X.drop_duplicates("user_id", keep="last").set_index("user_id").loc[ids].reset_index()
    same(found, fitted.recommend(rows, k=4))
    np.testing.assert_array_equal(
        fitted.user_embeddings_[[fitted.user_keys_.tolist().index(key) for key in ids]],
        fitted.transform(rows),
    )
    with pytest.raises(
        ValueError, match=r"'user_id' holds 77 in row 1, .* pass the columns \['age"
    ):
        fitted.recommend({"user_id": [3, 77]})


def test_a_users_last_row_is_kept():
    X = pd.DataFrame({"user": [1, 2, 1], "mood": ["low", "low", "high"], "film": ["a", "b", "c"]})
    blocks = [("mood", CategoryBlock(), "mood")], [("film", CategoryBlock(), "film")]
    model = untrained(*blocks, validation_fraction=None).fit(X, item_key="film", user_key="user")
    assert model.user_keys_.tolist() == [1, 2]
    expected = model.transform({"mood": ["high", "low"]})
    np.testing.assert_array_equal(model.user_embeddings_, expected)
    assert model.item_keys_.tolist() == ["a", "b", "c"]


def test_candidates_of_ones_own(data, catalogue, fitted):
    some = catalogue.iloc[[7, 3, 11, 4]]
    keys, scores = fitted.recommend(data.users, some, k=9)
    assert keys.shape == (N_USERS, 4)
    assert (np.sort(keys, axis=1) == [3, 4, 7, 11]).all()
    everything, products = fitted.recommend(data.users, k=N_ITEMS)
    wanted = np.isin(everything, some["item_id"])
    np.testing.assert_array_equal(everything[wanted].reshape(keys.shape), keys)
    np.testing.assert_allclose(products[wanted].reshape(keys.shape), scores, rtol=1e-4, atol=1e-5)
    keys, _ = fitted.recommend(data.users, some, k=4, exclude=[[7, 3]] * N_USERS)
    assert (keys[:, 2:] == None).all()  # noqa: E711
    with pytest.raises(ValueError, match="1 keys in more than one row, such as 7, again in row 1"):
        fitted.recommend(data.users, catalogue.iloc[[7, 7]])


def test_blocks_of_users_do_not_change_what_is_found(data, fitted, monkeypatch):
    from sk_easytensor import retrieval

    expected = fitted.recommend(data.users, k=7, exclude="seen")
    monkeypatch.setattr(retrieval, "BLOCK", 3 * N_ITEMS)
    keys, scores = fitted.recommend(data.users, k=7, exclude="seen")
    np.testing.assert_array_equal(keys, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5, atol=1e-6)


def test_rank_users_for_new_items(data, X, catalogue, fitted):
    new = catalogue.head(4).assign(item_id=[101, 102, 103, 104])
    model = two_tower(*BY_TASTE).fit(X, items=catalogue, **KEYS)
    keys, scores = model.rank_users(new, k=10)
    assert keys.shape == scores.shape == (4, 10)
    assert data.affinity[keys, np.arange(4)[:, None]].mean() > 0.9
    keys, scores = fitted.rank_users(new, k=100)
    assert keys.shape == scores.shape == (4, N_USERS)
    assert (np.diff(scores, axis=1) <= 0).all()
    last = X.drop_duplicates("user_id", keep="last")
    again, products = fitted.rank_users(new, users=pl.from_pandas(last), k=100)
    np.testing.assert_array_equal(again, keys)
    np.testing.assert_allclose(products, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0, 1.5, None, True])
def test_bad_numbers_of_recommendations(k, data, catalogue, fitted):
    for call in (fitted.recommend, fitted.rank_users):
        with pytest.raises(ValueError, match="k must be an integer at least 1"):
            call(data.users, k=k)


# ---------------------------------------------------------------------- approximate index


@pytest.fixture(scope="module")
def indexed(data):
    return two_tower(index="usearch").fit(data.interactions, items=data.catalogue, **KEYS)


def test_the_index_finds_the_same(data, fitted, indexed):
    np.testing.assert_array_equal(indexed.item_embeddings_, fitted.item_embeddings_)
    keys, scores = indexed.recommend(data.users, k=5)
    expected, products = fitted.recommend(data.users, k=5)
    assert recall_at_k(expected.tolist(), keys, k=5) >= 0.95
    np.testing.assert_allclose(scores, products, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_users", [1, N_USERS])
def test_all_of_the_catalogue_by_index(n_users, data, indexed):
    keys, _ = indexed.recommend(data.users.head(n_users), k=100)
    assert (np.sort(keys, axis=1) == np.arange(N_ITEMS)).all()


def test_exclusions_are_exact_with_an_index(data, fitted, indexed):
    for items, exclude in ((None, "seen"), (data.catalogue, None)):
        found = indexed.recommend(data.users, items, k=5, exclude=exclude)
        same(found, fitted.recommend(data.users, items, k=5, exclude=exclude))


def test_the_index_is_saved_with_the_model(data, indexed, tmp_path):
    joblib.dump(indexed, tmp_path / "model.joblib")
    restored = joblib.load(tmp_path / "model.joblib")
    same(restored.recommend(data.users), indexed.recommend(data.users))
    same(copy.deepcopy(indexed).recommend(data.users), indexed.recommend(data.users))


# ---------------------------------------------------------------------- weights and validation


def test_weights_matter(data, X, catalogue):
    """Rows of other tastes are many; weights say that they hardly count."""
    random = np.random.default_rng(0)
    noise = X.assign(item_id=random.permutation(X["item_id"]))
    both = pd.concat([X, noise, noise], ignore_index=True)
    weight = np.repeat([1.0, 1e-3, 1e-3], len(X))
    taste = []
    for sample_weight in (None, weight):
        model = two_tower(max_epochs=6).fit(
            both, sample_weight=sample_weight, items=catalogue, **KEYS
        )
        keys, _ = model.recommend(data.users, k=5)
        taste.append(shared_taste(data, data.users["user_id"], keys))
    assert taste[0] < 0.8 < 0.9 < taste[1]


@pytest.mark.parametrize("target", [False, True])
def test_rows_of_weight_zero_are_as_good_as_absent(target, data, X, catalogue, rated):
    random = np.random.default_rng(0)
    pairs, y = rated if target else (X, None)
    fit_params = {} if target else {"items": catalogue, **KEYS}
    weight = random.integers(0, 3, len(pairs)).astype(float)
    kept = weight > 0
    blocks = BY_TASTE if target else ()
    model = untrained(*blocks).fit(pairs, y, sample_weight=weight, **fit_params)
    fewer = untrained(*blocks).fit(
        pairs[kept], y if y is None else y[kept], sample_weight=weight[kept], **fit_params
    )
    np.testing.assert_array_equal(model.decision_function(pairs), fewer.decision_function(pairs))
    assert model.evals_result_ == fewer.evals_result_


def test_weights_do_not_change_how_often_items_are_drawn(X, catalogue):
    """The correction is for the batches, which are drawn whatever the weights."""
    popularity = []
    for weight in (None, np.where(X["item_id"] < 20, 5.0, 0.1)):
        untrained(callbacks=[Note(popularity)]).fit(
            X, sample_weight=weight, items=catalogue, **KEYS
        )
    assert torch.equal(popularity[0], popularity[1])


def test_evaluation_sets(data, X, catalogue):
    train, valid = X[:1500], X[1500:]
    model = two_tower(early_stopping_rounds=2, max_epochs=30)
    model.fit(train, items=catalogue, eval_set=[valid, (valid[:100], None)], **KEYS)
    curves = model.evals_result_
    assert list(curves) == ["training", "valid_0", "valid_1"]
    losses = curves["valid_0"]["softmax_loss"]
    assert model.n_iter_ == len(losses) <= 30
    assert model.best_iteration_ == 1 + int(np.argmin(losses))
    assert model.best_score_ == min(losses)
    assert np.isfinite([curve["softmax_loss"] for curve in curves.values()]).all()


def test_evaluation_on_items_that_were_never_chosen(X, catalogue):
    known = X["item_id"] < 30
    model = untrained().fit(X[known], items=catalogue, eval_set=[X[~known]], **KEYS)
    assert np.isfinite(model.best_score_)
    assert model.best_score_ < 20


def test_evaluation_with_a_target(rated):
    X, y = rated
    train, valid = (X[:1000], y[:1000]), (X[1000:], y[1000:])
    in_a_list = untrained(*BY_TASTE).fit(*train, eval_set=[valid])
    alone = untrained(*BY_TASTE).fit(*train, eval_set=valid)
    assert in_a_list.evals_result_ == alone.evals_result_
    weight = np.random.default_rng(0).random(500)
    weighted = untrained(*BY_TASTE).fit(*train, eval_set=[valid], eval_sample_weight=[weight])
    probability = weighted.predict_proba(valid[0])[np.arange(500), valid[1]]
    expected = -np.average(np.log(probability), weights=weight)
    assert weighted.best_score_ == pytest.approx(expected, rel=1e-4)


def test_scores_of_callbacks(rated):
    X, y = rated
    scoring = EpochScoring("roc_auc", lower_is_better=False, name="area")
    model = two_tower(*BY_TASTE, max_epochs=8, callbacks=[scoring, Note(areas := [], "area")])
    model.fit(X[:1000], y[:1000], eval_set=[(X[1000:], y[1000:])])
    assert areas[-1] > 0.9


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
            r"eval_set\[0\]: .*fitted without y, and takes none",
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
        (([("b", CategoryBlock(), "city")], None), "user_blocks: block 'b' names column 'city'"),
        ((None, [("b", CategoryBlock(), "kind")]), "item_blocks: block 'b' names column 'kind'"),
    ):
        with pytest.raises(ValueError, match=message):
            untrained(*blocks).fit(X, items=catalogue, item_key="item_id")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding_dim", 0, "embedding_dim must be an integer at least 1"),
        ("similarity", "euclid", "similarity must be one of"),
        ("temperature", 0, "temperature must be a number greater than 0"),
        ("n_negatives", -1, "n_negatives must be an integer at least 0"),
        ("dropout", 1.0, "dropout must be a number"),
        ("index", "faiss", "index must be one of"),
        ("learning_rate", 0, "learning_rate must be a number greater than 0"),
        ("batch_size", 0, "batch_size must be an integer at least 1"),
        ("trunk", "mlp", "trunk must have make_module"),
        ("validation_fraction", 1.0, "validation_fraction must be a number"),
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


# ---------------------------------------------------------------------- towers


def test_towers_are_transformers(data, X, catalogue, fitted):
    user, item = fitted.user_tower_, fitted.item_tower_
    assert user.feature_names_in_.tolist() == ["user_id", "town", "age"]
    assert item.feature_names_in_.tolist() == ["item_id", "genre", "price"]
    assert (user.n_features_in_, item.n_features_in_) == (3, 3)
    embeddings = user.transform(data.users)
    assert embeddings.shape == (N_USERS, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, fitted.transform(data.users))
    np.testing.assert_array_equal(item.transform(catalogue), fitted.item_embeddings_)
    assert user.get_feature_names_out().tolist() == [f"tower{i}" for i in range(8)]
    pipeline = make_pipeline(FrozenEstimator(user), StandardScaler()).fit(data.users)
    assert pipeline.transform(data.users).shape == (N_USERS, 8)
    assert user.fit(data.users) is user


def test_towers_heed_set_output(data, X, catalogue):
    model = untrained().fit(X, items=catalogue, **KEYS)
    expected, embeddings = model.recommend(data.users), model.transform(data.users)
    score = model.score(X)
    users = data.users.set_axis([f"row {i}" for i in range(N_USERS)])
    model.user_tower_.set_output(transform="pandas")
    model.item_tower_.set_output(transform="polars")
    frame = model.user_tower_.transform(users)
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.equals(users.index)
    assert isinstance(model.item_tower_.transform(catalogue), pl.DataFrame)
    same(model.recommend(data.users), expected)
    with config_context(transform_output="pandas"):
        frame = model.transform(users)
        assert frame.columns.tolist() == [f"easytensortwotower{i}" for i in range(8)]
        same(model.recommend(data.users), expected)
        model.rank_users(catalogue, users=data.users)
        assert model.score(X) == score
    np.testing.assert_array_equal(frame, embeddings)


def test_towers_are_pickled_alone(data, catalogue, fitted, tmp_path):
    for tower, frame in ((fitted.user_tower_, data.users), (fitted.item_tower_, catalogue)):
        joblib.dump(tower, tmp_path / "tower.joblib")
        restored = joblib.load(tmp_path / "tower.joblib")
        np.testing.assert_array_equal(restored.transform(frame), tower.transform(frame))
        weights = sum(value.numpy().nbytes for value in tower.network_.state_dict().values())
        assert (tmp_path / "tower.joblib").stat().st_size < weights + 15_000
    assert b"genre" not in pickle.dumps(fitted.user_tower_)
    assert b"town" not in pickle.dumps(fitted.item_tower_)


def test_a_cloned_tower_is_not_fitted(data, fitted):
    with pytest.raises(NotFittedError):
        clone(fitted.user_tower_).fit(data.users)
    with pytest.raises(NotFittedError):
        clone(fitted.user_tower_).transform(data.users)


# ---------------------------------------------------------------------- pickles


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [through_pickle, copy.deepcopy, copy.copy])
def test_copies_rank_the_same(through, data, X, catalogue, fitted):
    restored = through(fitted)
    same(
        restored.recommend(data.users, exclude="seen"), fitted.recommend(data.users, exclude="seen")
    )
    same(restored.recommend({"user_id": [1]}), fitted.recommend({"user_id": [1]}))
    same(restored.rank_users(catalogue), fitted.rank_users(catalogue))
    for method in ("predict", "decision_function", "transform"):
        np.testing.assert_array_equal(getattr(restored, method)(X), getattr(fitted, method)(X))
    assert restored.score(X) == fitted.score(X)
    assert restored.evals_result_ == fitted.evals_result_


def test_models_are_mapped_into_memory(data, X, fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "model.joblib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
        same(mapped.recommend(data.users), fitted.recommend(data.users))
        np.testing.assert_array_equal(mapped.predict(X), fitted.predict(X))


def test_models_with_a_target_are_pickled(rated):
    X, y = rated
    for target in (as_strings(y), y + 0.5):
        model = untrained(*BY_TASTE).fit(X, target)
        restored = through_pickle(model)
        np.testing.assert_array_equal(restored.predict(X), model.predict(X))
        assert restored.score(X, target) == model.score(X, target)


def test_no_training_row_is_pickled(X, catalogue):
    """Without a user_key nothing of the interactions is left; with one, who met what."""
    blocks = ([("town", CategoryBlock(), "town"), ("age", NumericBlock(), "age")], BY_TASTE[1])
    secret = X.assign(note=[f"secret {row}" for row in range(len(X))])

    def pickled(n_rows, **keys):
        model = untrained(*blocks).fit(secret[:n_rows], items=catalogue, item_key="item_id", **keys)
        return pickle.dumps(model)

    few, many = pickled(400), pickled(2000)
    assert abs(len(many) - len(few)) < 200
    assert b"secret" not in many + pickled(2000, user_key="user_id")
    assert b"torch._utils" not in many


def test_a_second_fit_forgets_the_first(data, X, catalogue):
    model = untrained(index="usearch").fit(X, items=catalogue, **KEYS)
    model.set_params(index="exact").fit(X, items=catalogue, item_key="item_id")
    assert not hasattr(model, "user_embeddings_")
    fresh = untrained().fit(X, items=catalogue, item_key="item_id")
    assert abs(len(pickle.dumps(model)) - len(pickle.dumps(fresh))) < 50
    same(model.recommend(data.users), fresh.recommend(data.users))


# ---------------------------------------------------------------------- repeatable


def test_random_state(data, X, catalogue):
    params = {"n_negatives": 8, "max_epochs": 2}
    first, again = (two_tower(**params).fit(X, items=catalogue, **KEYS) for _ in range(2))
    same(first.recommend(data.users), again.recommend(data.users))
    np.testing.assert_array_equal(first.item_embeddings_, again.item_embeddings_)
    assert first.evals_result_ == again.evals_result_
    other = two_tower(**{**params, "random_state": 1}).fit(X, items=catalogue, **KEYS)
    assert not np.array_equal(other.item_embeddings_, first.item_embeddings_)


def test_fit_leaves_the_random_state_of_torch(X, catalogue):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    untrained(n_negatives=8).fit(X, items=catalogue, **KEYS)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------- scikit-learn

# Of scikit-learn's checks, those that fit an estimator pass it a single matrix of numbers. Two
# towers need to be told which columns are the user's and which the item's, by blocks or by a
# catalogue, so that fit refuses what they pass; the same goes for their targets, which may be
# left out here. What does not fit, or has nothing to do with the data, applies.
CHECKS = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_estimators_unfitted,
    estimator_checks.check_mixin_order,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scikit_learn_check(check):
    check("EasyTensorTwoTower", EasyTensorTwoTower())


@pytest.mark.parametrize("method", ["predict", "recommend", "rank_users", "transform", "score"])
def test_unfitted(method, X):
    with pytest.raises(NotFittedError):
        getattr(EasyTensorTwoTower(), method)(X)
    with pytest.raises(NotFittedError):
        EasyTensorTwoTower().get_feature_names_out()
    assert not hasattr(EasyTensorTwoTower(), "predict_proba")


def test_a_fit_that_failed_is_no_fit(X, catalogue):
    model = untrained()
    with pytest.raises(ValueError, match=r"eval_set\[0\]"):
        model.fit(X, items=catalogue, eval_set=[X[["town"]]], **KEYS)
    with pytest.raises(NotFittedError):
        model.recommend(X)


def test_clone_and_parameters(fitted):
    model = two_tower(*BY_TASTE)
    copied = clone(model)
    assert repr(copied) == repr(model)
    assert not hasattr(clone(fitted), "item_embeddings_")
    copied.set_params(user_blocks__town__width=3, trunk=MLP(), trunk__layers=1, embedding_dim=5)
    assert copied.user_blocks[0][1].width == 3
    assert copied.trunk.layers == 1
    assert model.user_blocks[0][1].width == 8
    copied.set_params(item_blocks__genre=CategoryBlock(width=7))
    assert copied.get_params()["item_blocks__genre__width"] == 7
    with pytest.raises(ValueError, match=r"Named blocks are: .*'town'"):
        copied.set_params(user_blocks__city__width=3)


def test_fit_does_not_change_parameters(X, catalogue):
    model = untrained(*BY_TASTE, trunk=MLP(width=8))
    before = repr(model.get_params())
    model.fit(X, items=catalogue, item_key="item_id")
    assert repr(model.get_params()) == before
    assert not hasattr(model.user_blocks[0][1], "feature_names_in_")


def test_grid_search(data, X, catalogue):
    grid = {"user_blocks__town__width": [1, 4], "embedding_dim": [2, 8]}
    search = GridSearchCV(two_tower(*BY_TASTE, max_epochs=3), grid, cv=2, error_score="raise")
    search.fit(X, items=catalogue, item_key="item_id")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert (
        best.embedding_dim == best.item_embeddings_.shape[1] == search.best_params_["embedding_dim"]
    )
    assert search.score(X) == best.score(X)


def test_a_catalogue_of_as_many_rows_as_there_are_pairs(X, catalogue):
    """scikit-learn would cut it with the rows; a dictionary of columns it leaves alone."""
    search = GridSearchCV(untrained(*BY_TASTE), {"dropout": [0.0]}, cv=2, error_score="raise")
    columns = catalogue.to_dict("list")
    search.fit(X[:N_ITEMS], items=columns, item_key="item_id")
    assert len(search.best_estimator_.item_keys_) == N_ITEMS


def test_grid_search_with_a_target(rated):
    X, y = rated
    search = GridSearchCV(two_tower(*BY_TASTE), {"dropout": [0.0, 0.3]}, cv=2, scoring="roc_auc")
    assert search.fit(X, y).best_score_ > 0.7


def test_fit_transform(X, catalogue):
    embeddings = untrained().fit_transform(X, items=catalogue, **KEYS)
    assert embeddings.shape == (len(X), 8)
