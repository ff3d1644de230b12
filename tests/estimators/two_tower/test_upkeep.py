"""Users and items that come and go after `fit`, and stored recommenders."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from two_towers import BY_TASTE, KEYS, N_ITEMS, N_USERS, same, two_tower, untrained

from sk_easytensor import CategoryBlock
from sk_easytensor.retrieval import Recommender


@pytest.fixture
def model(fitted):
    """A model that may be changed."""
    return pickle.loads(pickle.dumps(fitted))


def test_new_items_are_recommended(model, data, catalogue):
    own = catalogue.head(3).assign(item_id=[100, 101, 102])
    before = model.recommend(data.users, k=N_ITEMS)
    assert model.add_items(own) is model
    assert model.item_keys_.tolist() == [*range(N_ITEMS), 100, 101, 102]
    keys, scores = model.recommend(data.users, k=N_ITEMS + 3)
    old = np.isin(keys, range(N_ITEMS))
    np.testing.assert_array_equal(keys[old].reshape(N_USERS, -1), before[0])
    np.testing.assert_allclose(scores[old].reshape(N_USERS, -1), before[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.item_embeddings_[-3:], model.item_tower_.transform(own))
    pairs = data.users.head(3).assign(item_id=[100, 101, 102])
    np.testing.assert_allclose(
        model.decision_function(pairs),
        model.decision_function(pairs[["user_id", "town", "age"]].join(own)),
        rtol=1e-6,
    )
    assert model.similar_items({"item_id": [100]}, k=2)[0].shape == (1, 2)


def test_items_that_are_added_again_are_replaced(model, data, catalogue):
    genres = catalogue["genre"].to_numpy()
    other = genres[genres != genres[0]][0]
    changed = catalogue.head(1).assign(genre=other)
    model.add_items(changed)
    assert len(model.item_keys_) == N_ITEMS
    np.testing.assert_array_equal(model.item_embeddings_[:1], model.item_tower_.transform(changed))
    assert model.item_index_.columns.column("genre")[0].as_py() == other
    found, _ = model.recommend(data.users, k=N_ITEMS, where=pc.field("genre") == genres[0])
    assert 0 not in found


def test_removed_items_are_not_recommended(model, fitted, data, X):
    assert model.remove_items([3, 7, 20]) is model
    left = [key for key in range(N_ITEMS) if key not in {3, 7, 20}]
    assert model.item_keys_.tolist() == left
    keys, scores = model.recommend(data.users, k=N_ITEMS, exclude="seen")
    expected, products = fitted.recommend(
        data.users, k=N_ITEMS, exclude="seen", where=~pc.field("item_id").isin([3, 7, 20])
    )
    np.testing.assert_array_equal(keys, expected[:, : len(left)])
    np.testing.assert_allclose(scores, products[:, : len(left)], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="3 in row 0 of 'item_id' is not a key of the index"):
        model.remove_items([3])
    with pytest.raises(ValueError, match="'item_id' holds 7 in row 0, which is not the key"):
        model.decision_function(X[X["item_id"] == 7][["user_id", "town", "age", "item_id"]])


def test_users_are_updated_and_added(model, data, X):
    latest = X.drop_duplicates("user_id", keep="last").set_index("user_id")
    unseen = sorted(set(range(N_ITEMS)) - set(X["item_id"][X["user_id"] == 5]))
    further = pd.DataFrame(
        {
            "user_id": [5, 900, 5, 900],
            "town": ["town 0", "town 1", latest.loc[5, "town"], "town 2"],
            "age": [20, 30, 77, 40],
            "item_id": [unseen[0], 1, unseen[1], 12345],
        }
    )
    assert model.update_users(further) is model
    assert model.user_keys_.tolist()[-1] == 900
    assert len(model.user_keys_) == N_USERS + 1
    stored = model.recommend({"user_id": [5, 900]}, k=3)
    same(stored, model.recommend(further.iloc[[2, 3]], k=3))
    keys, _ = model.recommend({"user_id": [5, 900]}, k=N_ITEMS, exclude="seen")
    assert {key for key in keys[0] if key is not None} == set(unseen[2:])
    assert {key for key in keys[1] if key is not None} == set(range(N_ITEMS)) - {1}
    keys, _ = model.rank_users({"item_id": [1]}, k=100, exclude="seen")
    assert 900 not in keys
    keys, _ = model.rank_users({"item_id": [1]}, k=100, where=pc.field("age") == 77)
    assert {key for key in keys[0] if key is not None} >= {5}


def test_users_are_updated_without_items(model, data):
    rows = data.users.head(2).assign(age=[99, 98])
    before = model.recommend(data.users[["user_id"]], k=N_ITEMS, exclude="seen")[0]
    model.update_users(pl.from_pandas(rows))
    after = model.recommend(data.users[["user_id"]], k=N_ITEMS, exclude="seen")[0]
    counts = [[sum(key is not None for key in row) for row in keys] for keys in (before, after)]
    assert counts[0] == counts[1]


def test_removed_users_are_forgotten(model, fitted, catalogue):
    model.remove_users([4, 9])
    assert not {4, 9} & {*model.user_keys_}
    keys, _ = model.rank_users(catalogue, k=N_USERS, exclude="seen")
    expected, _ = fitted.rank_users(
        catalogue, k=N_USERS, exclude="seen", where=~pc.field("user_id").isin([4, 9])
    )
    np.testing.assert_array_equal(keys, expected[:, : N_USERS - 2])
    with pytest.raises(ValueError, match="'user_id' holds 4 in row 0, which was not in fit"):
        model.recommend({"user_id": [4]})


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_an_approximate_index_follows(data, catalogue, library):
    model = two_tower(index=library).fit(data.interactions, items=data.catalogue, **KEYS)
    model.add_items(catalogue.head(2).assign(item_id=[100, 101])).remove_items([0, 9])
    exact = model.item_index_.as_type("float32")
    assert exact.approximate is None
    queries = model.transform(data.users)
    found, expected = model.item_index_.search(queries, 5)[0], exact.search(queries, 5)[0]
    assert (found == expected).mean() > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: m.add_items(c.drop(columns="item_id")), "add_items: items lacks the key"),
        (lambda m, c: m.add_items(c.drop(columns="genre")), "genre"),
        (lambda m, c: m.add_items(c.iloc[[1, 1]]), "1 keys in more than one row, such as 1"),
        (lambda m, c: m.update_users({"age": [3], "town": ["a"]}), "update_users: X lacks the key"),
        (lambda m, c: m.update_users({"user_id": [3]}), "columns are missing"),
        (lambda m, c: m.remove_users([3, 999]), "999 in row 1 of 'user_id'"),
        (lambda m, c: m.export_embeddings("a", side="both"), "side must be .*got 'both'"),
        (lambda m, c: m.save_recommender("a", dtype="int4"), "dtype must be .*got 'int4'"),
        (lambda m, c: m.save_recommender("a", towers=["left"]), "towers must be .*got 'left'"),
    ],
)
def test_bad_changes_change_nothing(model, catalogue, call, message):
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=message):
        call(model, catalogue)
    assert pickle.dumps(model) == before


def test_without_keys_nothing_is_stored(X, catalogue, tmp_path):
    blocks = [("town", CategoryBlock(), "town")], [("item", CategoryBlock(), "item_id")]
    model = untrained(*blocks).fit(X)
    for call in (
        lambda: model.add_items(catalogue),
        lambda: model.remove_items([1]),
        lambda: model.export_embeddings(tmp_path / "items.parquet"),
    ):
        with pytest.raises(ValueError, match="there is no catalogue"):
            call()
    for call in (
        lambda: model.update_users(X),
        lambda: model.remove_users([1]),
        lambda: model.export_embeddings(tmp_path / "users.parquet", side="user"),
    ):
        with pytest.raises(ValueError, match="needs the user_key of fit"):
            call()
    with pytest.raises(ValueError, match="neither users nor items are stored"):
        model.save_recommender(tmp_path)


@pytest.mark.parametrize("side", ["user", "item"])
def test_embeddings_are_exported(side, fitted, tmp_path):
    path = fitted.export_embeddings(tmp_path / "embeddings.parquet", side=side)
    table = pq.read_table(path)
    assert table.column_names == [f"{side}_id", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert table.column(f"{side}_id").to_numpy().tolist() == (
        getattr(fitted, f"{side}_keys_").tolist()
    )
    vectors = np.stack(table.column("embedding").to_numpy())
    np.testing.assert_array_equal(vectors, getattr(fitted, f"{side}_embeddings_"))


# ---------------------------------------------------------------------- recommenders


@pytest.fixture(scope="module")
def stored(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("recommender")
    fitted.save_recommender(path)
    return path


def equal(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_recommenders_rank_as_the_model(stored, fitted, data, catalogue):
    recommender = Recommender.load(stored)
    genre = pc.field("genre") == catalogue["genre"].iloc[0]
    new = catalogue.head(2).assign(item_id=[700, 701])
    for options in ({}, {"exclude": "seen"}, {"where": genre}, {"diversity": 0.4}):
        for users in (data.users, data.users[["user_id"]], [{"user_id": 5}]):
            found = recommender.recommend(users, k=7, **options)
            equal(found, fitted.recommend(users, k=7, **options))
    for items in (catalogue, catalogue[["item_id"]], new):
        equal(recommender.rank_users(items, k=7), fitted.rank_users(items, k=7))
        equal(recommender.similar_items(items, k=3), fitted.similar_items(items, k=3))
    equal(recommender.similar_users(data.users, k=3), fitted.similar_users(data.users, k=3))
    own = data.users.assign(user_id=-1)
    equal(recommender.recommend(own, new), fitted.recommend(own, new))


def test_versions_are_replaced_together(model, catalogue, tmp_path):
    first = model.save_recommender(tmp_path, towers=["item"])
    recommender = Recommender.load(tmp_path)
    assert recommender.version == first
    assert recommender.refreshed() is recommender
    model.add_items(catalogue.head(1).assign(item_id=555))
    second = model.save_recommender(tmp_path, towers=["item"], dtype="int8")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([first, second, "CURRENT"])
    new = recommender.refreshed()
    assert new.version == second
    assert 555 in new.items.index.keys
    assert new.items.index.dtype == "int8"
    assert 555 not in recommender.items.index.keys
    recommender.recommend({"user_id": [1]})
    third = model.save_recommender(tmp_path, towers=[])
    assert sorted(os.listdir(tmp_path)) == sorted([second, third, "CURRENT"])
    assert recommender.refreshed().version == third


def test_a_failed_save_leaves_the_version(model, tmp_path, monkeypatch):
    version = model.save_recommender(tmp_path, towers=[])

    def full(*args, **kwargs):
        raise OSError("the disk is full")

    for name in ("retrieval.EmbeddingIndex.save", "_utils.storage.write_atomically"):
        with monkeypatch.context() as context:
            context.setattr(f"sk_easytensor.{name}", full)
            with pytest.raises(OSError, match="the disk is full"):
                model.save_recommender(tmp_path, towers=[])
        assert Recommender.load(tmp_path).version == version
    model.save_recommender(tmp_path, towers=[])
    # What a failed save wrote goes with the next one.
    assert len([file for file in tmp_path.iterdir() if file.is_dir()]) == 2


def test_only_one_process_saves(model, tmp_path, monkeypatch):
    first = model.save_recommender(tmp_path, towers=[])
    write = Recommender._write
    refused = []

    def meanwhile(self, folder, version, towers):
        write(self, folder, version, towers)
        if not refused:
            refused.append(version)
            with pytest.raises(RuntimeError, match="another process writes to"):
                model.save_recommender(tmp_path, towers=[])

    monkeypatch.setattr(Recommender, "_write", meanwhile)
    (tmp_path / "left-behind.tmp").mkdir()
    second = model.save_recommender(tmp_path, towers=[])
    assert refused == [second]
    assert sorted(os.listdir(tmp_path)) == sorted([first, second, "CURRENT"])


def test_without_a_tower_only_stored_rows_are_ranked(model, catalogue, tmp_path):
    model.save_recommender(tmp_path, towers=["item"])
    recommender = Recommender.load(tmp_path)
    assert recommender.rank_users(catalogue).__class__ is tuple
    assert recommender.recommend({"user_id": [5]})[0].shape == (1, 10)
    with pytest.raises(ValueError, match="'user_id' holds 99 in row 0, which is not stored"):
        recommender.recommend({"user_id": [99], "town": ["town 1"], "age": [3]})
    with pytest.raises(ValueError, match=r"no user tower, .* by the column 'user_id'"):
        recommender.recommend({"town": ["town 1"], "age": [3]})
    with pytest.raises(FileNotFoundError, match="has no file 'CURRENT'"):
        Recommender.load(tmp_path / "nothing")


def test_only_one_side_is_stored(X, catalogue, data, tmp_path):
    model = untrained(*BY_TASTE).fit(X, items=catalogue, item_key="item_id")
    model.save_recommender(tmp_path / "items")
    recommender = Recommender.load(tmp_path / "items")
    equal(recommender.recommend(data.users), model.recommend(data.users))
    with pytest.raises(ValueError, match="rank_users needs the user_key of fit"):
        recommender.rank_users(catalogue)
    equal(
        recommender.rank_users(catalogue, data.users),
        model.rank_users(catalogue, users=data.users),
    )


SLIM = """
import sys
NEEDLESS = {"torch", "sklearn", "scipy", "pandas", "usearch", "faiss", "joblib", "fsspec"}
class Absent:
    def find_spec(self, name, *args):
        if name.partition(".")[0] in NEEDLESS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from sk_easytensor.retrieval import Recommender
recommender = Recommender.load(sys.argv[1])
item = [{"item_id": 700, "genre": "genre 1", "price": 3.0}]
print(*recommender.rank_users(item, k=3)[0][0])
"""


def test_recommenders_do_without_torch(stored, fitted):
    command = [sys.executable, "-c", SLIM, str(stored)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    item = {"item_id": [700], "genre": ["genre 1"], "price": [3.0]}
    expected, _ = fitted.rank_users(item, k=3)
    assert run.stdout.split() == [str(key) for key in expected[0]]
