"""How two towers rank: items for users, users for items, exactly and by index."""

import copy

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from two_towers import (
    BY_KEY,
    BY_TASTE,
    KEYS,
    N_ITEMS,
    N_USERS,
    same,
    two_tower,
    untrained,
)

from sk_easytensor import (
    CategoryBlock,
)
from sk_easytensor.ranking import recall_at_k

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
    with pytest.raises(ValueError, match="'seen', which requires the catalogue"):
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
    from sk_easytensor.retrieval import search

    expected = fitted.recommend(data.users, k=7, exclude="seen")
    monkeypatch.setattr(search, "LARGEST_BLOCK", 9)
    monkeypatch.setattr(search, "QUERIES", 7)
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


# ---------------------------------------------------------------------- conditions


def test_only_items_of_a_condition(data, catalogue, fitted):
    first = catalogue["genre"].iloc[0]
    keys, scores = fitted.recommend(data.users, k=5, where=pc.field("genre") == first)
    same((keys, scores), fitted.recommend(data.users, catalogue[catalogue["genre"] == first], k=5))
    keys, _ = fitted.recommend(
        data.users, k=N_ITEMS, where=pc.field("genre") == first, exclude="seen"
    )
    seen = data.interactions.groupby("user_id")["item_id"].agg(set)
    of_genre = set(catalogue["item_id"][catalogue["genre"] == first])
    for user, row in zip(data.users["user_id"], keys, strict=True):
        assert {key for key in row if key is not None} == of_genre - seen.get(user, set())
    keys, _ = fitted.rank_users(catalogue.head(3), k=N_USERS, where=pc.field("age") > 40)
    last = data.interactions.drop_duplicates("user_id", keep="last")
    expected = set(last["user_id"][last["age"] > 40])
    assert all({key for key in row if key is not None} == expected for row in keys)


@pytest.mark.parametrize("where", [pc.field("cost") > 3, "genre = 3", pc.field("genre") + 1])
def test_conditions_that_make_no_sense(where, data, fitted):
    with pytest.raises(ValueError, match=r"where must be a condition on the columns .*'genre'"):
        fitted.recommend(data.users, where=where)


def test_only_scores_from_a_bound(data, fitted):
    keys, scores = fitted.recommend(data.users, k=N_ITEMS)
    bound = float(np.median(scores))
    found, products = fitted.recommend(data.users, k=N_ITEMS, min_score=bound)
    high = scores >= bound
    np.testing.assert_array_equal(found[high], keys[high])
    assert (found[~high] == None).all()  # noqa: E711
    assert np.isneginf(products[~high]).all()


def test_candidates_by_key_alone(data, catalogue, fitted):
    some = catalogue[["item_id"]].iloc[[7, 3, 11, 4]]
    same(
        fitted.recommend(data.users, some, k=3),
        fitted.recommend(data.users, k=3, where=pc.field("item_id").isin([3, 4, 7, 11])),
    )
    assert fitted.recommend(data.users, some, k=9)[0].shape == (N_USERS, 4)
    keys, _ = fitted.rank_users(catalogue.head(2), users={"user_id": [5, 3, 9]}, exclude="seen")
    assert {key for key in keys.ravel() if key is not None} <= {3, 5, 9}
    with pytest.raises(ValueError, match="'item_id' holds 99 in row 1, which was not in fit"):
        fitted.recommend(data.users, {"item_id": [3, 99]})


def test_users_who_have_seen_an_item_are_left_out(X, catalogue, fitted):
    for items in (catalogue, catalogue[["item_id"]]):
        keys, _ = fitted.rank_users(items, k=N_USERS, exclude="seen")
        seen = X.groupby("item_id")["user_id"].agg(set)
        for item, row in zip(catalogue["item_id"], keys, strict=True):
            assert {key for key in row if key is not None} == set(range(N_USERS)) - seen[item]
    lists = [[0, 1, 999]] * N_ITEMS
    keys, _ = fitted.rank_users(catalogue, k=N_USERS, exclude=lists)
    assert all(set(row[:-2]) == set(range(2, N_USERS)) for row in keys)


def test_diverse_items_are_less_alike(data, fitted):
    stored = fitted.item_embeddings_ / np.linalg.norm(fitted.item_embeddings_, axis=1)[:, None]

    def likeness(**params):
        keys, _ = fitted.recommend(data.users, k=5, **params)
        vectors = stored[keys.astype(int)]
        return np.mean([(row @ row.T)[np.triu_indices(5, 1)].mean() for row in vectors])

    plain, some, most = (likeness(diversity=weight) for weight in (0.0, 0.3, 0.9))
    assert plain > some > most
    first, _ = fitted.recommend(data.users, k=1)
    np.testing.assert_array_equal(
        fitted.recommend(data.users, k=5, diversity=0.9)[0][:, 0], first[:, 0]
    )
    keys, _ = fitted.recommend(data.users, k=5, diversity=0.5, exclude="seen")
    met = set(zip(data.interactions["user_id"], data.interactions["item_id"], strict=True))
    assert not met & {
        (u, i) for u, row in zip(data.users["user_id"], keys, strict=True) for i in row
    }
    with pytest.raises(ValueError, match="diversity must be a number at least 0 and at most 1"):
        fitted.recommend(data.users, diversity=1.5)


# ---------------------------------------------------------------------- approximate index


@pytest.fixture(scope="module", params=["faiss", "usearch"])
def indexed(data, request):
    return two_tower(index=request.param).fit(data.interactions, items=data.catalogue, **KEYS)


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


@pytest.mark.parametrize("exclude", ["seen", [[0, 1, 2]] * N_USERS])
def test_exclusions_with_an_index(exclude, data, fitted, indexed):
    keys, scores = indexed.recommend(data.users, k=5, exclude=exclude)
    expected, products = fitted.recommend(data.users, k=5, exclude=exclude)
    assert recall_at_k(expected.tolist(), keys, k=5) >= 0.95
    np.testing.assert_allclose(scores, products, rtol=1e-3, atol=1e-4)


def test_candidates_of_ones_own_are_ranked_exactly(data, fitted, indexed):
    found = indexed.recommend(data.users, data.catalogue, k=5)
    same(found, fitted.recommend(data.users, data.catalogue, k=5))


def test_the_index_is_saved_with_the_model(data, indexed, tmp_path):
    joblib.dump(indexed, tmp_path / "model.joblib")
    restored = joblib.load(tmp_path / "model.joblib")
    same(restored.recommend(data.users), indexed.recommend(data.users))
    same(copy.deepcopy(indexed).recommend(data.users), indexed.recommend(data.users))


# ---------------------------------------------------------------------- neighbours


def cosines(vectors, others):
    vectors, others = (part / np.linalg.norm(part, axis=1)[:, None] for part in (vectors, others))
    return vectors @ others.T


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("columns", ["all", "key"])
def test_neighbours_have_the_highest_cosines(side, columns, data, fitted):
    table = data.catalogue if side == "item" else data.users
    key, call = f"{side}_id", getattr(fitted, f"similar_{side}s")
    rows = table.iloc[[3, 0, 7]]
    keys, similar = call(rows if columns == "all" else rows[[key]], k=5)
    assert keys.shape == similar.shape == (3, 5)
    stored, vectors = getattr(fitted, f"{side}_keys_"), getattr(fitted, f"{side}_embeddings_")
    place = [int(np.flatnonzero(stored == value)[0]) for value in rows[key]]
    expected = cosines(vectors[place], vectors)
    expected[np.arange(3), place] = -np.inf
    np.testing.assert_allclose(similar, -np.sort(-expected, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    assert not (keys == rows[[key]].to_numpy()).any()
    if side == "item":
        genre = data.catalogue.set_index("item_id")["genre"]
        near, own = genre.loc[keys[:, 0].astype(int)].tolist(), rows["genre"].tolist()
        assert sum(a == b for a, b in zip(near, own, strict=True)) >= 2


def test_neighbours_of_new_items(data, fitted):
    new = data.catalogue[:2].assign(item_id=[1000, 1001])
    keys, similar = fitted.similar_items(new, k=100)
    assert keys.shape == (2, N_ITEMS)
    assert (np.diff(similar, axis=1) <= 0).all()
    keys, similar = fitted.similar_items(data.catalogue[:1], k=100)
    assert keys.shape == (1, N_ITEMS)
    assert keys[0, -1] is None


def test_neighbours_that_are_not_known(data, X, catalogue, fitted):
    with pytest.raises(ValueError, match=r"'item_id' holds 1000 in row 1, which was not in fit"):
        fitted.similar_items({"item_id": [3, 1000]})
    with pytest.raises(ValueError, match=r"similar_users: k must be .*got 0"):
        fitted.similar_users(data.users, k=0)
    alone = untrained(*BY_KEY).fit(X, items=catalogue, item_key="item_id")
    with pytest.raises(ValueError, match="similar_users needs the user_key"):
        alone.similar_users(data.users)
    without = untrained(*BY_TASTE).fit(X.merge(catalogue, on="item_id"))
    with pytest.raises(ValueError, match="there is no catalogue"):
        without.similar_items(catalogue)
