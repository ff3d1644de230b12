"""Input of every kind, blocks fitted in one pass over chunks: trained in this process."""

import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray
import torch

from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor.backends.base import LocalBackend
from sk_easytensor.backends.ray.chunks import ObjectStoreChunk, Reading
from sk_easytensor.backends.ray.dataset import RayTableDataset, assign_shards, put_dataset
from sk_easytensor.blocks import CategoryBlock, NumericBlock
from sk_easytensor.data.tables import as_table
from sk_easytensor.embedder.objectives import Contrastive, UserEncoder, ViewSettings
from sk_easytensor.tensors import TensorFrame
from sk_easytensor.training.dataset import EncodedDataset
from sk_easytensor.training.table_dataset import BaseRowEncoder, read_dataset

FEATURES = ["amount", "count", "city", "tags"]
TARGETS = ["score", "label", "weight"]


def same_state(ours, theirs, where=""):
    """Assert that two fitted objects are equal, field by field."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            same_state(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            same_state(*pair, f"{where}[{index}]")
    elif isinstance(ours, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    elif isinstance(ours, pa.Array):
        assert ours.equals(theirs), where
    elif hasattr(ours, "__dict__") and not isinstance(ours, type):
        # Without what is made from the rest where it is asked for.
        same_state(ours.__getstate__(), theirs.__getstate__(), where)
    else:
        assert ours == theirs, where


def same_network(ours, theirs, tolerance=0.0):
    for name, tensor in theirs.network_.state_dict().items():
        difference = (ours.network_.state_dict()[name] - tensor).abs().max()
        assert float(difference) <= tolerance, name


def test_a_single_worker_learns_what_the_local_backend_learns(classifier, quick, shop):
    X, y, weight = shop[FEATURES], shop["label"], shop["weight"]
    fit = {"sample_weight": weight, "eval_set": [(X[:300], y[:300])]}
    local = EasyTensorClassifier(class_weight="balanced", **quick).fit(X, y, **fit)
    model = classifier(class_weight="balanced").fit(X, y, **fit)
    same_state(model.blocks_, local.blocks_)
    same_network(model, local, 1e-6)
    assert model.evals_result_["valid_0"]["log_loss"] == pytest.approx(
        local.evals_result_["valid_0"]["log_loss"], abs=1e-6
    )
    np.testing.assert_allclose(model.predict_proba(X), local.predict_proba(X), atol=1e-6)


def test_a_regressor_of_several_outputs(regressor, quick, shop):
    X, y = shop[FEATURES], shop[["score", "count"]].to_numpy()
    fit = {"eval_set": [(X[:300], y[:300])]}
    local = EasyTensorRegressor(**quick).fit(X, y, **fit)
    model = regressor().fit(X, y, **fit)
    same_network(model, local, 1e-6)
    np.testing.assert_allclose(model.predict(X), local.predict(X), atol=1e-5)


@pytest.mark.parametrize("kind", ["directory", "glob", "list", "url", "dataset"])
def test_columns_of_stored_tables(kind, classifier, files, shop):
    ray = pytest.importorskip("ray")
    where = {
        "directory": files,
        "glob": f"{files}/part-*.parquet",
        "list": sorted(files.glob("*.parquet")),
        "url": f"file://{files}",
        "dataset": ray.data.from_pandas(shop) if kind == "dataset" else None,
    }[kind]
    X = where
    params = {"sample_weight": "weight", "eval_set": [(X, "label")]}
    params["eval_sample_weight"] = ["weight"]
    features = [*FEATURES, "score"]
    all_rows = {"validation_fraction": None}
    pair = (shop[features], shop["label"])
    expected = classifier(**all_rows).fit(
        *pair,
        sample_weight=shop["weight"],
        eval_set=[pair],
        eval_sample_weight=[shop["weight"]],
    )
    model = classifier(**all_rows).fit(X, "label", **params)
    assert list(model.feature_names_in_) == features
    assert list(model.classes_) == ["no", "yes"]
    same_state(model.blocks_, expected.blocks_)
    # The rows are in the same order: everything else follows.
    same_network(model, expected, 1e-6)


def test_a_path_on_the_local_backend(classifier, quick, files, shop):
    features = [*FEATURES, "score"]
    expected = EasyTensorClassifier(**quick).fit(
        shop[features], shop["label"], sample_weight=shop["weight"]
    )
    same_network(
        EasyTensorClassifier(**quick).fit(str(files), "label", sample_weight="weight"), expected
    )
    frame = shop[[*features, "label", "weight"]]
    same_network(
        EasyTensorClassifier(**quick).fit(frame, "label", sample_weight="weight"), expected
    )


def test_importances_are_computed_where_rows_are(classifier, files):
    models = [classifier().fit(files, "label", sample_weight="weight") for _ in range(2)]
    first, second = (model.feature_importances_ for model in models)
    np.testing.assert_array_equal(first, second)
    assert models[0].feature_names_in_[first.argmax()] == "score"
    assert first.sum() == pytest.approx(1)
    assert models[0]._importance_sample is None
    assert np.isfinite(models[0]._validation["measures"]["log loss"])


def test_rows_held_out_are_some_of_each_class_and_chunk(regressor, classifier, files):
    model = classifier(validation_fraction=0.25).fit(files, "label", sample_weight="weight")
    assert len(model.evals_result_["valid_0"]["log_loss"]) == 3
    again = classifier(validation_fraction=0.25).fit(files, "label", sample_weight="weight")
    same_network(again, model)
    model = regressor().fit(files, "score")
    assert model.evals_result_["valid_0"]["squared_error"][-1] < 0.8


def test_blocks_of_many_chunks_are_those_of_one(cluster):
    """Chunks enough for three levels of merging, more values than are kept exactly."""
    rng = np.random.default_rng(0)
    n_rows = 150_000
    table = pa.table(
        {
            "x": rng.normal(size=n_rows),
            "k": pa.array(rng.integers(0, 5_000, n_rows)).cast(pa.string()),
        }
    )
    records = read_dataset(table, np.zeros(n_rows), None, as_table, np.asarray)
    chunked = put_dataset(records, 70)
    blocks = {"n": (NumericBlock(), ["x"]), "c": (CategoryBlock(), ["k"])}
    for block, columns in blocks.values():
        block.fit_columns(table.select(columns))
    found = chunked.summarize(blocks, LocalBackend())
    expected = LocalBackend().summarize(table, blocks)
    assert found["n"]["x"].n_rows == n_rows
    counts = [
        dict(zip(s["k"].counts.values.to_pylist(), s["k"].counts.counts.tolist(), strict=True))
        for s in (found["c"], expected["c"])
    ]
    assert counts[0] == counts[1]
    # Both have been compressed, so that ranks are right within the bound they state.
    ranks = np.sort(table["x"].to_numpy())
    edges = found["n"]["x"].quantile_edges(129)
    places = np.searchsorted(ranks, edges[1:-1]) / n_rows
    assert np.abs(places - np.linspace(0, 1, 129)[1:-1]).max() < 2e-3


def test_an_ordinary_estimator_comes_out(classifier, shop, tmp_path):
    model = classifier().fit(shop[FEATURES], shop["label"])
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    shop[FEATURES].head(5).to_parquet(tmp_path / "rows.parquet")
    script = f"""
import sys
sys.modules["ray"] = None
import pickle, pandas as pd
model = pickle.load(open({str(path)!r}, "rb"))
print(model.predict_proba(pd.read_parquet({str(tmp_path / "rows.parquet")!r})).tolist())
assert not any(name.startswith("ray.") for name in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    np.testing.assert_allclose(
        np.array(eval(told.stdout)), model.predict_proba(shop[FEATURES].head(5)), atol=1e-6
    )


def test_rows_beyond_memory_are_kept_in_files(classifier, files):
    kept = classifier(max_epochs=6).fit(files, "label")
    spilled = classifier(max_epochs=6, how={"memory_per_worker": 30_000}).fit(files, "label")
    same_state(spilled.blocks_, kept.blocks_)
    # Batches differ, what is learned does not.
    losses = [min(m.evals_result_["valid_0"]["log_loss"]) for m in (spilled, kept)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


@pytest.mark.parametrize(
    ("X", "y", "weight", "error", "message"),
    [
        ("nowhere/*.parquet", "label", None, FileNotFoundError, "there is no Parquet file at"),
        ("files", "lable", None, ValueError, "columns are missing: ['lable']"),
        ("files", "label", "wait", ValueError, "columns are missing: ['wait']"),
        ("files", ["a"] * 1200, None, ValueError, "columns are missing"),
        ("files", np.zeros(1200), None, TypeError, "must be given as names of columns"),
        ("files", "label", "amount", ValueError, "column 'amount': weights must be numbers"),
        ("files", "tags", None, ValueError, ""),
    ],
)
def test_bad_input(X, y, weight, error, message, classifier, files):
    X = files if X == "files" else X
    with pytest.raises(error) as found:
        classifier().fit(X, y, sample_weight=weight)
    assert message in str(found.value)


def test_files_in_the_memory_of_this_process_are_refused(classifier, shop):
    with fsspec.open("memory://shop/rows.parquet", "wb") as file:
        shop.to_parquet(file)
    with pytest.raises(ValueError, match="'memory://shop' is in the memory of this process"):
        classifier().fit("memory://shop", "label")


def test_missing_labels_of_one_chunk(classifier, shop, tmp_path):
    frame = shop.copy()
    frame.loc[1100, "label"] = None
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=200)
    with pytest.raises(ValueError, match="Input y contains NaN: 1 of its values"):
        classifier().fit(tmp_path, "label")


def test_columns_that_validation_lacks(classifier, files, shop, tmp_path):
    shop.drop(columns="city").to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"eval_set\[0\]: .*'city'"):
        classifier().fit(files, "label", eval_set=[(tmp_path, "label")])


def test_more_workers_than_processors(classifier, shop, caplog):
    message = "3 workers of 1 CPU each are more than the cluster has .*start_timeout=0.5"
    with pytest.raises(ValueError, match=message):
        classifier(3, how={"start_timeout": 0.5}).fit(shop[FEATURES], shop["label"])
    assert "waiting up to 0.5 s for more" in caplog.text


def test_checkpoints_of_a_single_worker(classifier, shop, tmp_path):
    data = shop[FEATURES], shop["label"]
    expected = classifier(max_epochs=4).fit(*data)
    classifier(checkpoint_dir=tmp_path, max_epochs=4).fit(*data)
    (last,) = tmp_path.glob("fit-*/epoch-00004.pt")
    last.unlink()
    same_network(classifier(checkpoint_dir=tmp_path, max_epochs=4).fit(*data), expected)
    assert last.exists()
    local = {**expected.get_params(deep=False), "backend": "local", "checkpoint_dir": tmp_path}
    EasyTensorClassifier(**local).fit(*data)
    assert len(list(tmp_path.iterdir())) == 2


def test_hive_partitions_are_columns(classifier, shop, tmp_path):
    frame = shop[["amount", "city", "label"]]
    frame.to_parquet(tmp_path, partition_cols=["city"])
    model = classifier().fit(tmp_path, "label")
    assert set(model.feature_names_in_) == {"amount", "city"}
    model.predict(pd.DataFrame({"amount": [0.1], "city": ["Oslo"]}))


def test_class_weights_of_stored_labels(classifier, files, shop):
    features = [*FEATURES, "score"]
    params = {"class_weight": "balanced", "validation_fraction": None}
    expected = classifier(**params).fit(shop[features], shop["label"], sample_weight=shop["weight"])
    model = classifier(**params).fit(files, "label", sample_weight="weight")
    same_network(model, expected, 1e-6)
    plain = classifier(validation_fraction=None).fit(files, "label", sample_weight="weight")
    assert plain.evals_result_ != model.evals_result_


def test_several_stored_targets(regressor, files, shop):
    targets = ["score", "count"]
    features = [name for name in shop if name not in targets]
    pair = (shop[features], shop[targets].to_numpy())
    all_rows = {"validation_fraction": None}
    expected = regressor(**all_rows).fit(*pair, eval_set=[pair])
    model = regressor(**all_rows).fit(files, targets, eval_set=[(files, targets)])
    same_network(model, expected, 1e-6)
    assert model.predict(shop[features].head(3)).shape == (3, 2)


def test_training_ends_early(classifier, quick, shop):
    """By the same epochs as on this machine; labels that are noise get worse at once."""
    X, y = shop[FEATURES], np.random.default_rng(0).permutation(shop["label"])
    fit = {"eval_set": [(X[:200], y[200:400])]}
    params = {"max_epochs": 30, "early_stopping_rounds": 3, "learning_rate": 0.02}
    local = EasyTensorClassifier(**{**quick, **params}).fit(X, y, **fit)
    model = classifier(**params).fit(X, y, **fit)
    assert model.n_iter_ == local.n_iter_ < 30
    assert model.best_iteration_ == model.n_iter_ - 3
    same_network(model, local, 1e-5)


def test_offsets_on_a_cluster(regressor, files, shop):
    params = {"loss": "poisson", "offset": "score", "validation_fraction": None, "max_epochs": 1}
    model = regressor(**params).fit(files, "count")
    assert model._head.offset_center == pytest.approx(np.log(np.exp(shop["score"]).mean()))
    twice = model.predict(shop.assign(score=shop["score"] + np.log(2)))
    np.testing.assert_allclose(twice, 2 * model.predict(shop), rtol=1e-5)
    margin = shop["score"].to_numpy()
    with pytest.raises(ValueError, match="name a column of X in the parameter offset"):
        regressor(loss="poisson").fit(files, "count", base_margin=margin)
    with pytest.raises(ValueError, match="give the offsets as a column"):
        model.predict(files, base_margin=margin)


def test_files_that_were_not_written_alike(regressor, shop, tmp_path):
    frame = shop[["amount", "city", "score"]].sort_values("score")
    parts = [frame[:400], frame[400:800].assign(place=lambda X: X[["city"]].to_dict("records"))]
    for number, part in enumerate(parts):
        part.to_parquet(tmp_path / f"part-{number}.parquet")
    model = regressor().fit(str(tmp_path), "score")
    assert list(model.feature_names_in_) == ["amount", "city", "place.city"]
    local = model.set_params(backend="local").predict(str(tmp_path))
    found = model.set_params(backend=regressor().backend).predict(str(tmp_path))
    np.testing.assert_allclose(found.to_pandas()["prediction"], local, rtol=1e-5, atol=1e-6)


class Rows(BaseRowEncoder):
    """Encoder of the columns ``x`` and ``y`` that counts how many rows it encodes."""

    def __init__(self):
        self.n_encoded = 0

    def encode(self, table, y, weight):
        self.n_encoded += len(table)
        values = torch.tensor(table["x"].to_numpy())[:, None]
        return self.encode_targets({"n": {"values": values}}, y, weight)

    def encode_targets(self, table, y, weight):
        entries = table if isinstance(table, dict) else {}
        y, weight = np.array(y), np.array(weight)
        frame = TensorFrame(entries, len(y))
        return EncodedDataset(frame, torch.from_numpy(y), torch.from_numpy(weight).float())


def held_out_in_chunks(sizes, random_state):
    """Return an encoder, and training and validation rows in chunks of some sizes.

    Features and targets are the numbers from 0 on. They are read 7 rows at a time.
    """
    numbers = np.arange(float(sum(sizes)))
    records = read_dataset(pa.table({"x": numbers}), numbers, None, as_table, np.asarray)
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    chunks = [
        ObjectStoreChunk(
            ray.put((pa.table({"x": own}), own, np.ones(len(own)))), len(own), int(own[0])
        )
        for own in parts
    ]
    chunked = RayTableDataset(chunks, Reading.from_object_store(["x"]), None, records, 7)
    encoder = Rows()
    train, valid = chunked.encode(encoder).hold_out(
        lambda y: np.zeros(len(y), dtype=np.int64), 0.25, random_state
    )
    return encoder, [train, *valid]


@pytest.mark.parametrize("memory", [2**30, 1_000], ids=["in memory", "in files"])
def test_training_and_validation_rows_are_read_and_encoded_once(memory, cluster):
    encoder, datasets = held_out_in_chunks([50] * 8, np.random.RandomState(0))
    datasets[0] = datasets[0].map(lambda rows: rows)
    found = {0: [], 1: []}
    for numbers, shards in assign_shards(datasets, 3):
        assert numbers == [0, 1]
        for shard in shards:
            for number, rows in zip(numbers, shard.rows(memory), strict=True):
                found[number] += [part for part in rows.parts()]
    assert encoder.n_encoded == 400
    values = {number: torch.cat([part.target for part in parts]) for number, parts in found.items()}
    assert {number: len(own) for number, own in values.items()} == {0: 296, 1: 104}
    assert sorted(torch.cat(list(values.values())).tolist()) == list(range(400))
    for parts in found.values():
        for part in parts:
            np.testing.assert_array_equal(part.frame["n"]["values"][:, 0], part.target)


def test_shards_have_chunks_of_their_own_where_a_worker_would_lack_validation_rows(cluster):
    """The last rows are in two small chunks, which the same worker has besides a large one."""
    encoder, datasets = held_out_in_chunks([200, 100, 50, 50], None)
    assigned = assign_shards(datasets, 2)
    assert [numbers for numbers, _ in assigned] == [[0], [1]]
    values = [
        torch.cat([rows.target for shard in shards for rows in shard.rows(2**30)])
        for _, shards in assigned
    ]
    assert [sorted(own.tolist()) for own in values] == [list(range(300)), list(range(300, 400))]
    # What a data set leaves out is not encoded for it.
    assert encoder.n_encoded == 400


def test_too_few_chunks_for_the_workers(cluster):
    _, datasets = held_out_in_chunks([20, 20], np.random.RandomState(0))
    with pytest.raises(ValueError, match="the rows are in 2 chunks, too few for 3 workers"):
        assign_shards(datasets, 3)


def test_texts_that_are_numbers_and_dates_in_files(regressor, tmp_path):
    rng = np.random.default_rng(0)
    for part in range(2):
        days = pd.date_range("2024-01-01", periods=60) + pd.Timedelta(part, "D")
        price = rng.integers(1_000, 9_000, 60)
        rows = {"price": [f"${n:,}" for n in price], "day": days.strftime("%d.%m.%Y"), "y": price}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{part}.parquet")
    model = regressor().fit(str(tmp_path), "y")
    assert list(model.blocks_) == ["datetime", "numeric"]
    assert model.blocks_["datetime"].formats_ == ["%d.%m.%Y"]
    assert model.blocks_["numeric"].edges_[0][0] >= 1_000
    rows = pd.read_parquet(tmp_path)
    assert len(np.unique(model.predict(rows))) > 50


def test_the_bar_of_the_epochs_is_in_the_process_that_has_a_terminal(
    classifier, files, capsys, monkeypatch
):
    monkeypatch.setattr("sk_easytensor.backends.ray.progress.has_moving_output", lambda: True)
    model = classifier(verbose=1, max_epochs=2).fit(files, "label")
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert "training: 100%" in last
    assert "2/2" in last
    for name in ("training", "valid_0"):
        assert f"{name}_log_loss={model.evals_result_[name]['log_loss'][-1]:.4g}" in last


def test_a_fit_is_resumed_by_another_number_of_workers(classifier, files, tmp_path):
    """Machines of a cluster may be gone when an interrupted fit is run again."""
    params = {"checkpoint_dir": tmp_path, "max_epochs": 4, "early_stopping_rounds": None}
    first = classifier(2, **params).fit(files, "label", sample_weight="weight")
    (last,) = tmp_path.glob("fit-*/epoch-00004.pt")
    last.unlink()
    second = classifier(1, **params).fit(files, "label", sample_weight="weight")
    # In the same directory, and only the last epoch again.
    assert last.exists()
    losses, others = (model.evals_result_["training"]["log_loss"] for model in (first, second))
    assert others[:3] == losses[:3]
    assert others[3] != losses[3]
    assert others[3] < losses[1]


def test_users_that_are_held_out_are_not_trained_on(cluster):
    """Users of several pieces, of each of which some are held out."""
    names = [[f"user {user}"] * 3 for user in range(40)]
    encoder = UserEncoder(Contrastive, ViewSettings(), ["kind"], "an embedder")
    records = read_dataset(pa.table({"kind": names}), np.zeros(40), None, as_table, np.asarray)
    chunked = put_dataset(records, 2)
    chunked.chunk_rows = 5
    train, valid = chunked.encode(encoder).hold_out(
        lambda y: np.zeros(len(y), dtype=np.int64), 0.2, np.random.RandomState(0)
    )
    found = []
    for numbers, shards in assign_shards([train, *valid], 2):
        assert numbers == [0, 1]
        for rows in zip(*(shard.rows(2**30) for shard in shards), strict=True):
            users = [part.objective.sequences.items["kind"].unique().to_pylist() for part in rows]
            assert [len(part) for part in rows] == [len(each) for each in users]
            found.append({name for part in users for name in part})
    assert [len(part) for part in found] == [32, 8]
    assert not found[0] & found[1]
