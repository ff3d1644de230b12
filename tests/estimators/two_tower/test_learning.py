"""What two towers learn: of users, of items, of targets, from blocks of any kind."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from skorch.callbacks import Callback, EpochScoring
from two_towers import (
    BY_KEY,
    BY_TASTE,
    KEYS,
    N_ITEMS,
    N_USERS,
    Note,
    same,
    shared_taste,
    two_tower,
    untrained,
)

from sk_easytensor import (
    MLP,
    CategoryBlock,
    CategorySequenceBlock,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    TabM,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.datasets import make_interactions
from sk_easytensor.networks.heads import SampledSoftmaxHead
from sk_easytensor.ranking import recall_at_k
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.two_tower.targets import PairTarget

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
    "params",
    [
        {"n_negatives": 64},
        {"n_negatives": "all"},
        {"temperature": "learned"},
        {"similarity": "cosine", "max_epochs": 20},
    ],
    ids=str,
)
def test_variants_of_the_loss_learn_it_too(params, data, X, catalogue):
    model = two_tower(**params).fit(X, items=catalogue, **KEYS)
    keys, scores = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.9
    if "similarity" in params:
        assert (np.abs(scores) <= 1 + 1e-6).all()
        np.testing.assert_allclose(np.linalg.norm(model.item_embeddings_, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("stored", [True, False], ids=["user_key", "no user_key"])
def test_score_is_the_hit_rate_without_a_target(stored, X, catalogue, fitted, monkeypatch):
    monkeypatch.setattr("sk_easytensor.two_tower.recommend.SCORED_ROWS", 700)
    model, exclude = fitted, None
    if stored:
        # What else the user has is no candidate.
        items = X.groupby("user_id")["item_id"].agg(set)
        pairs = zip(X["user_id"], X["item_id"], strict=True)
        exclude = [sorted(items[user] - {item}) for user, item in pairs]
    else:
        model = two_tower(*BY_KEY).fit(X, items=catalogue, item_key="item_id")
    keys, _ = model.recommend(X, k=10, exclude=exclude)
    hits = (keys == X[["item_id"]].to_numpy()).any(axis=1)
    assert model.score(X) == pytest.approx(hits.mean())
    assert model.score(X) > (0.8 if stored else 0.5)


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
    with pytest.raises(ValueError, match="items have no key column"):
        model.recommend(data.users, catalogue, exclude=[[]] * N_USERS)


def test_items_that_fit_did_not_meet(data, X, catalogue):
    """Their tower embeds them; among the items that can be found they are not."""
    joined = X.merge(catalogue, on="item_id")
    known = joined[joined["item_id"] < 30]
    model = two_tower(*BY_TASTE).fit(known, **KEYS)
    scores = model.decision_function(joined)
    users, items = model.user_tower_.transform(joined), model.item_tower_.transform(joined)
    np.testing.assert_allclose(scores, (users * items).sum(axis=1), rtol=1e-4, atol=1e-5)
    hits = model.score(known) * len(known)
    assert model.score(joined) == pytest.approx(hits / len(joined))
    with pytest.raises(ValueError, match=r"holds 3\d in row .*, which is not the key of an item"):
        model.decision_function(X)


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


@pytest.mark.parametrize("size", [1e-310, 1e-170, 1.0, 1e149])
def test_numbers_of_any_size(size):
    y = size * np.random.default_rng(0).normal(size=200)
    target = PairTarget()
    target.fit(target.sample(target.check(y)))
    rows = EncodedDataset(TensorFrame({}, 200), target.encode(y), torch.ones(200))
    target.learn_scale(rows)
    assert target.scale_ / size == pytest.approx(1, rel=0.1)
    assert target.scaled(rows).target.std().item() == pytest.approx(1, abs=0.01)


def test_a_column_of_numbers_is_raveled_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        assert PairTarget().check(np.ones((5, 1))).shape == (5,)


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

    user_taste, item_taste = random.integers(0, 2, 200), random.integers(0, 2, 200)
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
    how = {"max_epochs": 40, "early_stopping_rounds": None, "dropout": 0.0}
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


# ---------------------------------------------------------------------- weights and validation


def test_weights_matter(data, X, catalogue):
    """Rows of other tastes are many; weights say that they hardly count."""
    random = np.random.default_rng(0)
    noise = X.assign(item_id=random.permutation(X["item_id"]))
    both = pd.concat([X, noise, noise], ignore_index=True)
    weight = np.repeat([1.0, 1e-3, 1e-3], len(X))
    taste = []
    for sample_weight in (None, weight):
        model = two_tower(max_epochs=8).fit(
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


class Batches(Callback):
    """Records the pairs of each batch, drawn from the same seed in any model."""

    def __init__(self):
        self.training, self.validation = [], []

    def on_epoch_begin(self, net, **kwargs):
        torch.manual_seed(len(net.history))

    def on_batch_begin(self, net, batch=None, **kwargs):
        self.training.append(pairs_of(batch))

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if not training:
            self.validation.append(pairs_of(batch))


def pairs_of(batch):
    return torch.stack([batch.frame.user_rows, batch.frame.item_rows], dim=1).tolist()


def with_words(rows, column, seed=0):
    """Add lists of one word, whose lengths are all there is to read, and differ much."""
    keys, row = np.unique(rows[column], return_inverse=True)
    lengths = np.random.default_rng(seed).geometric(0.15, len(keys))
    return rows.assign(words=[["word"] * length for length in lengths[row]])


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("target", [False, True], ids=["chosen", "rated"])
def test_lists_do_not_decide_which_pairs_are_negatives(side, target, X, catalogue, rated):
    """Only where no pair is a negative of another are lists of similar length put together."""
    rows, y = rated if target else (X.merge(catalogue, on="item_id"), None)
    rows = with_words(rows, f"{side}_id")
    users, items = (list(blocks) for blocks in BY_KEY)
    added = ("words", CategorySequenceBlock("mean", pooling="mean"), "words")
    seen = []
    for more in ([], [added]):
        blocks = (users + more, items) if side == "user" else (users, items + more)
        seen.append(Batches())
        two_tower(*blocks, max_epochs=2, callbacks=[seen[-1]], batch_size=64).fit(rows, y)
    plain, listed = seen
    assert len(plain.training) > 40
    assert len(plain.validation) >= 2
    assert (listed.training == plain.training) != target
    assert (listed.validation == plain.validation) != target


def test_lists_without_information_do_not_harm_the_ranking(monkeypatch):
    """With batches of like length, items of unlike length are hardly ever compared."""
    data = make_interactions(4000, n_users=100, n_items=80, random_state=0)
    random = np.random.default_rng(0)
    is_test = random.random(len(data.interactions)) < 0.2
    train, test = data.interactions[~is_test], data.interactions[is_test]
    wanted = test.groupby("user_id")["item_id"].agg(list)
    wanted = [wanted.get(user, []) for user in range(100)]

    def recall(words):
        users, items = (list(blocks) for blocks in BY_KEY)
        catalogue = with_words(data.catalogue, "item_id")
        if words:
            items.append(("words", CategorySequenceBlock("mean", pooling="mean"), "words"))
        model = two_tower(users, items, batch_size=64, max_epochs=8, validation_fraction=None)
        model.fit(train, items=catalogue, **KEYS)
        return recall_at_k(wanted, model.recommend(data.users, k=10)[0])

    plain, listed = recall(words=False), recall(words=True)
    assert listed > plain - 0.02
    monkeypatch.setattr(SampledSoftmaxHead, "in_batch", False)
    assert recall(words=True) < listed - 0.02


def test_evaluation_sets(data, X, catalogue):
    train, valid = X[:1500], X[1500:]
    model = two_tower(early_stopping_rounds=2, max_epochs=30, stopping_metric="loss")
    model.fit(train, items=catalogue, eval_set=[(valid[:100], None), train, valid], **KEYS)
    curves = model.evals_result_
    assert list(curves) == ["training", "valid_0", "valid_2"]
    losses = curves["valid_2"]["softmax_loss"]
    assert model.n_iter_ == len(losses) <= 30
    assert model.best_iteration_ == 1 + int(np.argmin(losses))
    assert model.best_score_ == min(losses)
    assert np.isfinite([curve["softmax_loss"] for curve in curves.values()]).all()


def test_pairs_that_are_the_training_data_never_decide(X, catalogue, rated):
    model = untrained().fit(X, items=catalogue, eval_set=[X.copy()], **KEYS)
    assert list(model.evals_result_) == ["training", "valid_0"]
    pairs, y = rated
    other = np.roll(y, 1)
    model = untrained(*BY_TASTE).fit(pairs, y, eval_set=[(pairs, y.copy()), (pairs, other)])
    assert list(model.evals_result_) == ["training", "valid_1"]


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


def test_scores_of_choices(X):
    with pytest.raises(ValueError, match=r"EpochScoring\('r2'\) compares .* use eval_metric"):
        untrained(*BY_KEY, callbacks=[("r2", EpochScoring("r2"))]).fit(X, item_key="item_id")
    scoring = EpochScoring(lambda net, X, y: len(X), name="rows", lower_is_better=False)
    model = untrained(*BY_KEY, callbacks=[scoring]).fit(X, item_key="item_id")
    assert model.evals_result_["valid_0"]["rows"] == [len(X) // 10]


def test_a_learned_temperature_divides_scores_in_training_and_afterwards(X, catalogue):
    params = {"similarity": "cosine", "temperature": "learned", "max_epochs": 3}
    model = untrained(**params).fit(X, items=catalogue, **KEYS)
    items = model.item_tower_.embed(catalogue)[np.searchsorted(catalogue["item_id"], X["item_id"])]
    cosines = model.user_tower_.embed(X) * items
    ratio = cosines.sum(1) / model.decision_function(X)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert ratio[0] != pytest.approx(0.1, rel=1e-3)
    assert ratio[0] == pytest.approx(0.1, rel=0.5)


def test_a_warm_start_goes_on_from_a_learned_temperature(X, catalogue):
    params = {"similarity": "cosine", "temperature": "learned", "warm_start": True}
    model = untrained(**params, max_epochs=3).fit(X, items=catalogue, **KEYS)
    first = model._temperature
    model.set_params(max_epochs=1, learning_rate=1e-9).fit(X, items=catalogue, **KEYS)
    assert first != pytest.approx(0.1, rel=1e-3)
    assert model._temperature == pytest.approx(first, rel=1e-5)


def test_all_items_as_negatives_are_refused_where_they_take_too_much_memory(
    X, catalogue, monkeypatch
):
    monkeypatch.setattr("sk_easytensor.two_tower.estimator.MAX_BATCH_SCORES", 10_000)
    with pytest.raises(ValueError, match=r"512 pairs and \d+ items, and at most 10,000 are"):
        untrained(n_negatives="all").fit(X, items=catalogue, **KEYS)


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


# ---------------------------------------------------------------------- warm start


def test_a_warm_start_has_the_vectors_of_the_last_fit(X, catalogue, data):
    still = {"max_epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    model = two_tower(validation_fraction=None, random_state=0)
    first = X[(X["item_id"] < 35) & (X["user_id"] < 50)]
    model.fit(first, items=catalogue[catalogue["item_id"] < 35], **KEYS)
    users = data.users[data.users["user_id"] < 50]
    before = model.transform(users), model.item_tower_.transform(catalogue.head(35))
    towers = model.user_tower_, model.item_tower_
    model.set_params(warm_start=True, random_state=1, **still)
    # Other frequencies, so that categories have other codes, and new users and items.
    more = X.sort_values("user_id", ascending=False).iloc[200:]
    model.fit(more, items=catalogue.iloc[::-1], **KEYS)
    assert model.user_tower_ is not towers[0]
    after = model.transform(users), model.item_tower_.transform(catalogue.head(35))
    cold = two_tower(validation_fraction=None, **{**still, "random_state": 1})
    cold.fit(more, items=catalogue.iloc[::-1], **KEYS)
    for side, (old, new) in enumerate(zip(before, after, strict=True)):
        tower = (cold.user_tower_, cold.item_tower_)[side]
        begun = tower.transform(users if side == 0 else catalogue.head(35))
        # Numbers have other bins, everything else is the same.
        assert np.abs(new - old).mean() < 0.4 * np.abs(begun - old).mean()
    np.testing.assert_allclose(
        model.item_tower_.transform(catalogue.head(35)[["item_id", "genre"]].assign(price=np.nan)),
        towers[1].transform(catalogue.head(35)[["item_id", "genre"]].assign(price=np.nan)),
        atol=1e-5,
    )


def test_a_warm_start_needs_fewer_epochs(X, catalogue):
    order = np.random.default_rng(0).permutation(len(X))
    first, later = X.iloc[order[:1500]], X.iloc[order[:1800]]
    test = X.iloc[order[1800:]]
    model = two_tower(max_epochs=30, warm_start=True).fit(first, items=catalogue, **KEYS)
    model.set_params(max_epochs=2).fit(later, items=catalogue, **KEYS)
    cold = two_tower(max_epochs=2).fit(later, items=catalogue, **KEYS)
    assert model.score(test) > cold.score(test)


def test_blocks_that_have_changed_begin_anew(X, catalogue):
    model = untrained(*BY_KEY, warm_start=True).fit(X, items=catalogue, **KEYS)
    for users in (
        [("user", CategoryBlock(width=4), "user_id")],
        [("user", CategoryBlock(hash_buckets=16), "user_id")],
        [("user", NumericBlock(), "user_id")],
        [("town", CategoryBlock(), "town"), ("user", CategoryBlock(), "user_id")],
    ):
        model.set_params(user_blocks=users).fit(X, items=catalogue, **KEYS)
        assert model.recommend(X.head(3))[0].shape == (3, 10)
    with pytest.raises(ValueError, match=r"warm_start must be .*got 'yes'"):
        untrained(warm_start="yes").fit(X, items=catalogue, **KEYS)
