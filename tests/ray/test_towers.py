"""Two towers and embeddings of users on a cluster: from tables, files, Datasets and logs."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from on_workers import make_events
from two_towers import BY_KEY, BY_TASTE, KEYS, N_ITEMS, N_USERS, shared_taste, two_tower

from sk_easytensor import CategoryBlock, EasyTensorEmbedder, EasyTensorTwoTower
from sk_easytensor.backends.ray.backend import RayBackend
from sk_easytensor.datasets import make_interactions
from sk_easytensor.events import collect_sequences
from sk_easytensor.ranking import recall_at_k

LOG = {"user": "user", "time": "time"}
QUICK = {"max_epochs": 3, "dropout": 0.0}
ALL_ROWS = {"validation_fraction": None}
"""The training rows are evaluated, and no others are held out."""


def write(frame, where, n_files=3, rows=150):
    """Write a frame as Parquet files of several row groups, and return their directory."""
    where.mkdir()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for index, part in enumerate(np.array_split(np.arange(len(table)), n_files)):
        piece = table.slice(part[0], len(part))
        pq.write_table(piece, where / f"part-{index}.parquet", row_group_size=rows)
    return where


def same_weights(ours, theirs, tolerance=1e-6):
    found, expected = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= tolerance, name


def same_towers(model, expected):
    """Assert that all that two models have learned and kept is the same."""
    same_weights(model.user_tower_.network_, expected.user_tower_.network_)
    same_weights(model.item_tower_.network_, expected.item_tower_.network_)
    for part, losses in expected.evals_result_.items():
        (metric, curve), *_ = losses.items()
        assert model.evals_result_[part][metric] == pytest.approx(curve, abs=1e-6)
    assert list(model.feature_names_in_) == list(expected.feature_names_in_)
    if model._items.keyed:
        np.testing.assert_array_equal(model.item_keys_, expected.item_keys_)
        np.testing.assert_allclose(model.item_embeddings_, expected.item_embeddings_, atol=1e-6)
    if expected._user_key is not None:
        np.testing.assert_array_equal(model.user_keys_, expected.user_keys_)
        np.testing.assert_allclose(model.user_embeddings_, expected.user_embeddings_, atol=1e-6)
        np.testing.assert_array_equal(model._seen.pairs, expected._seen.pairs)


def on_ray(num_workers=0, **how):
    return RayBackend(num_workers=num_workers, **how)


# ---------------------------------------------------------------------- two towers


@pytest.fixture(scope="module")
def data():
    return make_interactions(1000, n_users=N_USERS, n_items=N_ITEMS, random_state=0)


@pytest.fixture(scope="module")
def rated(data):
    """Interactions with the item's columns, ratings, labels and weights."""
    rng = np.random.default_rng(0)
    X = data.interactions.merge(data.catalogue, on="item_id")
    liked = data.affinity[X["user_id"], X["item_id"]]
    return X.assign(
        rating=liked * 3.0 + rng.normal(size=len(X)),
        label=np.where(rng.random(len(X)) < 0.2 + 0.6 * liked, "yes", "no"),
        weight=rng.integers(0, 3, len(X)) / 2,
    )


@pytest.fixture(scope="module")
def stored(rated, tmp_path_factory):
    return write(rated, tmp_path_factory.mktemp("pairs") / "rated")


@pytest.fixture(scope="module")
def choices(data, tmp_path_factory):
    return write(data.interactions, tmp_path_factory.mktemp("pairs") / "choices")


def test_tables_in_memory(cluster, data):
    X = data.interactions
    given = {"items": data.catalogue, "eval_set": [X[:200], X[500:]], **KEYS}
    expected = two_tower(**QUICK).fit(X, **given)
    model = two_tower(**QUICK, backend=on_ray()).fit(X, **given)
    same_towers(model, expected)
    # What comes out needs no cluster.
    found, wanted = (
        model.recommend(X[:9], exclude="seen"),
        expected.recommend(X[:9], exclude="seen"),
    )
    np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.filterwarnings("ignore:.*rows of X are left out")
@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_rows_of_unknown_items_are_left_out(kind, cluster, data, choices):
    X = data.interactions
    some, known = data.catalogue.iloc[5:], X[X["item_id"] >= 5].reset_index(drop=True)
    given = {"items": some, **KEYS}
    expected = two_tower(**QUICK, **ALL_ROWS).fit(known, **given)
    model = two_tower(**QUICK, **ALL_ROWS, unknown_items="drop", backend=on_ray())
    model.fit(X if kind == "memory" else choices, **given)
    same_towers(model, expected)


@pytest.mark.parametrize("kind", ["directory", "dataset"])
def test_stored_choices(kind, cluster, data, choices):
    ray = pytest.importorskip("ray")
    X = choices if kind == "directory" else ray.data.from_pandas(data.interactions)
    given = {"items": data.catalogue, **KEYS}
    params = {**QUICK, **ALL_ROWS, "n_negatives": 8}
    expected = two_tower(**params).fit(data.interactions, eval_set=[data.interactions], **given)
    model = two_tower(**params, backend=on_ray()).fit(X, eval_set=[X], **given)
    same_towers(model, expected)


@pytest.mark.parametrize("y", ["rating", "label"])
def test_stored_targets_and_weights(y, cluster, rated, stored):
    columns = [name for name in rated if name not in {y, "weight"}]
    X = rated[columns]
    expected = two_tower(*BY_TASTE, **QUICK, **ALL_ROWS).fit(
        X,
        rated[y].to_numpy(),
        sample_weight=rated["weight"],
        eval_set=[(X, rated[y].to_numpy())],
        eval_sample_weight=[rated["weight"]],
        **KEYS,
    )
    model = two_tower(*BY_TASTE, **QUICK, **ALL_ROWS, backend=on_ray()).fit(
        stored,
        y,
        sample_weight="weight",
        eval_set=[(stored, y)],
        eval_sample_weight=["weight"],
        **KEYS,
    )
    same_towers(model, expected)
    by_name = two_tower(*BY_TASTE, **QUICK).fit(rated, y, sample_weight="weight", **KEYS)
    assert list(by_name.feature_names_in_) == columns
    some = rated[:20]
    np.testing.assert_array_equal(model.predict(some), expected.predict(some))


def test_items_of_the_interactions(cluster, data, choices):
    """The first row of each key, wherever it is; without keys, each distinct row."""
    given = {"eval_set": [data.interactions[:300]]}
    for keys in (KEYS, {}):
        expected = two_tower(*BY_KEY, **QUICK).fit(data.interactions, **keys, **given)
        model = two_tower(*BY_KEY, **QUICK, backend=on_ray()).fit(choices, **keys, **given)
        same_towers(model, expected)


def test_shared_blocks(cluster, rated, stored):
    blocks = (
        [("place", CategoryBlock(width=8), "town"), ("age", CategoryBlock(width=8), "age")],
        [("place", CategoryBlock(width=8), "genre")],
    )
    given = {"shared_blocks": ["place"], **QUICK, **ALL_ROWS}
    expected = two_tower(*blocks, **given).fit(rated, "label", eval_set=[(rated, "label")])
    model = two_tower(*blocks, **given, backend=on_ray())
    model.fit(stored, "label", eval_set=[(stored, "label")])
    same_towers(model, expected)
    assert model.item_tower_.network_.blocks[0] is model.user_tower_.network_.blocks[0]


def test_pairs_beyond_memory_are_kept_in_files(cluster, data, choices):
    params = {"backend": on_ray(memory_per_worker=10_000), "max_epochs": 10}
    model = two_tower(**params).fit(choices, items=data.catalogue, **KEYS)
    keys, _ = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.85


def test_pairs_held_out_are_the_same_every_time(cluster, data, choices):
    first, again = (
        two_tower(**QUICK, backend=on_ray(), validation_fraction=0.25).fit(
            choices, items=data.catalogue, **KEYS
        )
        for _ in range(2)
    )
    assert len(first.evals_result_["valid_0"]["softmax_loss"]) == 3
    same_towers(again, first)


def test_an_index_over_stored_interactions(cluster, data, choices):
    model = two_tower(**QUICK, backend=on_ray(), index="faiss")
    model.fit(choices, items=data.catalogue, **KEYS)
    keys, _ = model.recommend(data.users, k=5)
    exact = two_tower(**QUICK, backend=on_ray()).fit(choices, items=data.catalogue, **KEYS)
    assert recall_at_k(exact.recommend(data.users, k=5)[0].tolist(), keys, k=5) >= 0.95


def changed(frame, column, row, value):
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame.astype({column: str if isinstance(value, str) else "Int64"})


@pytest.mark.parametrize(
    ("change", "given", "error", "message"),
    [
        (("item_id", 777, 999), {}, ValueError, "holds 999 in row 777, which is not the key of"),
        (("item_id", 777, None), {}, ValueError, "'item_id' holds None in row 777"),
        (("user_id", 777, None), {}, ValueError, "key column 'user_id' is missing in row 777"),
        (None, {"y": np.ones(1000)}, TypeError, "must be given as names of columns, got ndarray"),
        (None, {"y": "rating"}, ValueError, r"columns are missing: \['rating'\]"),
        (None, {"y": "town"}, ValueError, "y must have two classes or numbers"),
        (None, {"user_key": "name"}, ValueError, "user_key names column 'name', which X does not"),
        (None, {"item_key": "sku"}, ValueError, "item_key names column 'sku', which X does not"),
        (None, {"eval_set": [({"user_id": [1]}, None)]}, ValueError, r"eval_set\[0\]: .*missing"),
    ],
)
def test_bad_pairs(change, given, error, message, cluster, data, choices, tmp_path):
    X = choices
    if change is not None:
        X = write(changed(data.interactions, *change), tmp_path / "changed")
    with pytest.raises(error, match=message):
        two_tower(backend=on_ray()).fit(X, **{"items": data.catalogue, **KEYS, **given})


def test_stored_sets_that_make_no_sense(cluster, data, choices, tmp_path):
    unknown = write(changed(data.interactions, "item_id", 444, 999), tmp_path / "unknown")
    lacking = write(data.interactions.drop(columns="town"), tmp_path / "lacking")
    for valid, message in (
        (unknown, r"eval_set\[1\]: .*holds 999 in row 444"),
        (lacking, r"eval_set\[1\]: columns are missing: \['town'\]"),
        ((choices, "town"), r"eval_set\[1\]: .*fitted without y; leave y out"),
    ):
        with pytest.raises(ValueError, match=message):
            two_tower(backend=on_ray()).fit(
                choices, items=data.catalogue, eval_set=[choices, valid], **KEYS
            )


# ---------------------------------------------------------------------- embeddings of users


def embedder(**params):
    quick = {"embedding_dim": 8, "learning_rate": 2e-2, "max_epochs": 3, "random_state": 0}
    return EasyTensorEmbedder(**{**quick, **params})


@pytest.fixture(scope="module")
def events():
    return make_events(60)


@pytest.fixture(scope="module")
def lists(events):
    return collect_sequences(events, by="user", order_by="time", prefix="")


@pytest.fixture(scope="module")
def log(events, tmp_path_factory):
    return write(events, tmp_path_factory.mktemp("log") / "events")


def same_embedder(model, expected):
    same_weights(model.network_, expected.network_)
    for part, losses in expected.evals_result_.items():
        (metric, curve), *_ = losses.items()
        assert model.evals_result_[part][metric] == pytest.approx(curve, abs=1e-6)
    assert model.n_users_ == expected.n_users_


def test_users_of_a_log_in_memory(cluster, events):
    given = {"eval_set": [events], **LOG}
    expected = embedder(**ALL_ROWS).fit(events, **given)
    same_embedder(embedder(**ALL_ROWS, backend=on_ray()).fit(events, **given), expected)


@pytest.mark.parametrize("kind", ["directory", "dataset"])
def test_stored_lists(kind, cluster, lists, tmp_path):
    ray = pytest.importorskip("ray")
    X = write(lists, tmp_path / "lists", rows=7)
    X = X if kind == "directory" else ray.data.from_arrow(pq.read_table(X))
    sessions = {"objective": "session_pair", "session_gap": "9h", **ALL_ROWS}
    expected = embedder(**sessions).fit(lists, time="time", eval_set=[lists])
    model = embedder(**sessions, backend=on_ray()).fit(X, time="time", eval_set=[X])
    same_embedder(model, expected)


def test_a_stored_log(cluster, events, lists, log):
    """Users come in another order, and each with all events in their order."""
    model = embedder(backend=on_ray()).fit(log, **LOG)
    assert model.n_users_ == 60
    assert model.n_features_in_ == 4
    expected = embedder().fit(lists, time="time")
    ours, theirs = (m.blocks_["event_sequence"] for m in (model, expected))
    assert ours.categories_["kind"].to_pylist() == theirs.categories_["kind"].to_pylist()
    again = embedder(backend=on_ray()).fit(log, **LOG)
    same_weights(again.network_, model.network_, tolerance=0.0)
    assert len(model.evals_result_["valid_0"]["softmax_loss"]) == 3
    np.testing.assert_allclose(model.transform(lists), model.transform(events), atol=1e-6)


def test_events_of_a_user_are_brought_together(cluster, events, log):
    from sk_easytensor.backends.ray.dataset import open_dataset
    from sk_easytensor.data.tables import as_table

    records = open_dataset(log, None, None, as_table, lambda y: y, "", n_chunks=1, chunk_rows=100)
    found = records.collect_sequences(["user"], "time").select(["time", "kind", "amount"])
    assert len(found.chunks) > 8
    rows = pd.concat(
        [
            table.to_pandas()
            for chunk in found.chunks
            for table, _, _ in found.reading.pieces(chunk, 1000)
        ]
    )
    expected = collect_sequences(events, by="user", order_by="time", prefix="")

    def known(frame):
        # Amounts are unlike those of all other users.
        return sorted(
            (list(a), list(k)) for a, k in zip(frame["amount"], frame["kind"], strict=True)
        )

    assert known(rows) == known(expected)


def test_sequences_beyond_memory(cluster, log):
    with pytest.raises(ValueError, match=r"must be in memory, .* use more workers, or more memory"):
        embedder(backend=on_ray(memory_per_worker=5_000)).fit(log, **LOG)


def test_bad_events(cluster, events, lists, tmp_path):
    late = events.copy()
    late.loc[555, "time"] = pd.NaT
    with pytest.raises(ValueError, match="'time' of events has no time in row 555"):
        embedder(backend=on_ray()).fit(write(late, tmp_path / "late"), **LOG)
    times = [list(value) for value in lists["time"]]
    times[44] = times[44][::-1]
    mixed = write(lists.assign(time=times), tmp_path / "mixed", rows=9)
    sessions = {"objective": "session_pair", "session_gap": "9h"}
    with pytest.raises(ValueError, match="'time' is not in order of time in row 44"):
        embedder(**sessions, backend=on_ray()).fit(mixed, time="time")
    short = write(events[["user", "time"]], tmp_path / "short")
    with pytest.raises(ValueError, match=r"eval_set\[0\]: columns are missing: \['kind', 'amount'"):
        embedder(backend=on_ray()).fit(events, eval_set=[short], **LOG)


# ---------------------------------------------------------------------- workers, checkpoints


def test_fits_that_are_gone_on_with(cluster, data, choices, log, tmp_path):
    fits = {
        "towers": lambda **params: two_tower(**{**QUICK, **params}, backend=on_ray()).fit(
            choices, items=data.catalogue, **KEYS
        ),
        "users": lambda **params: embedder(**params, backend=on_ray()).fit(log, **LOG),
    }
    for name, fit in fits.items():
        expected = fit()
        fit(checkpoint_dir=tmp_path / name)
        (last,) = (tmp_path / name).glob("fit-*/epoch-00003.pt")
        last.unlink()
        model = fit(checkpoint_dir=tmp_path / name)
        assert model.evals_result_ == expected.evals_result_


def test_checkpoints_in_a_run_are_refused(cluster, data):
    model = EasyTensorTwoTower(backend="ray", checkpoint_dir="mlflow", tracker="mlflow")
    with pytest.raises(ValueError, match="which workers of 'ray' do not reach; give a directory"):
        model._check_parameters()
