"""Stored tables are predicted where they are, by actors; importances by tasks."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from two_towers import two_tower

from sk_easytensor import (
    MLP,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
)
from sk_easytensor.backends import RayBackend
from sk_easytensor.inspection import permutation_importance

FEATURES = ["amount", "count", "city", "tags"]


@pytest.fixture(scope="module")
def fitted(shop):
    """A classifier that has learned on this machine, without Ray."""
    model = EasyTensorClassifier(trunk=MLP(width=16), max_epochs=12, random_state=0)
    return model.fit(shop[FEATURES], shop["label"])


@pytest.fixture
def spread(cluster):
    """A function that has an estimator predict on the cluster."""

    def spread(model, num_workers=1, **how):
        return model.set_params(backend=RayBackend(num_workers, **how))

    return spread


@pytest.fixture
def on_ray(fitted, spread):
    yield spread(fitted, 2)
    fitted.set_params(backend="local")


def stored(frame, where, **how):
    where.mkdir(exist_ok=True)
    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame)
    pq.write_table(table, where / "rows.parquet", **how)
    return where


def test_files_are_predicted_as_in_one_process(on_ray, files, shop):
    expected = on_ray.predict_proba(shop)
    found = on_ray.predict_proba(files).to_pandas()
    # In the order of the files, bit for bit; the columns of the files come first.
    np.testing.assert_array_equal(found[["probability_no", "probability_yes"]], expected)
    assert (found["weight"].to_numpy() == shop["weight"]).all()
    assert list(found) == [*shop.columns, "probability_no", "probability_yes"]


def test_datasets_of_categories_lists_and_missing_values(on_ray, shop):
    ray = pytest.importorskip("ray")
    frame = shop.assign(
        id=np.arange(len(shop)), city=shop["city"].where(shop.index % 7 > 0).astype("category")
    )
    frame.loc[::5, "tags"] = None
    found = on_ray.predict(ray.data.from_pandas(frame[frame.columns[::-1]])).to_pandas()
    found = found.sort_values("id")
    assert (found["prediction"].to_numpy() == on_ray.predict(frame)).all()
    assert (found["label"].to_numpy() == shop["label"]).all()


def test_representations_are_lists_of_one_size(on_ray, files, shop, tmp_path):
    on_ray.transform(files).select_columns(["count", "embedding"]).write_parquet(tmp_path)
    table = pq.read_table(tmp_path)
    # One representation of each of five folds.
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 5 * 16)
    found = np.stack(table["embedding"].to_numpy())
    order, expected = np.lexsort(found.T), on_ray.transform(shop)
    np.testing.assert_array_equal(found[order], expected[np.lexsort(expected.T)])


def test_names_of_results(shop, spread, cluster):
    from sk_easytensor.estimators.stored import StoredCall, Values

    def columns(model, method, name):
        call = StoredCall(model, method, {}, Values(name), "_read")
        table = pa.Table.from_pandas(shop[FEATURES].head(40), preserve_index=False)
        found = call.prepared(table.schema).columns(table)
        expected = getattr(model, method)(table)
        joined = np.column_stack([column.to_numpy() for column in found.values()])
        np.testing.assert_array_equal(joined, expected.reshape(40, -1))
        return list(found)

    quick = {"trunk": MLP(width=8), "trees": None, "max_epochs": 1, "n_folds": None}
    quick["random_state"] = 0
    X, cities = shop[FEATURES], ["Lima", "Oslo", "Rome"]
    model = EasyTensorClassifier(**quick).fit(X, shop["city"])
    assert columns(model, "decision_function", "decision") == [f"decision_{c}" for c in cities]
    labels = np.column_stack([shop["city"] == city for city in cities]).astype(int)
    model = EasyTensorClassifier(**quick).fit(X, labels)
    wanted = [f"probability_{index}" for index in range(3)]
    assert columns(model, "predict_proba", "probability") == wanted
    model = EasyTensorClassifier(**quick).fit(X, shop["label"])
    assert columns(model, "decision_function", "decision") == ["decision"]
    model = EasyTensorRegressor(**quick).fit(X, shop[["score", "count"]])
    assert columns(model, "predict", "prediction") == ["prediction_0", "prediction_1"]
    model = EasyTensorRegressor(**quick).fit(X, shop["score"])
    assert columns(model, "predict", "prediction") == ["prediction"]


def test_what_is_refused_before_any_task_starts(on_ray, files, shop, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray.data.Dataset, "map_batches", None)
    where = stored(shop.drop(columns="city"), tmp_path)
    with pytest.raises(ValueError, match=r"columns are missing: \['city'\]"):
        on_ray.predict(where)
    with pytest.raises(ValueError, match=r"columns are missing: \['city'\]"):
        on_ray.transform(ray.data.from_pandas(shop.drop(columns="city")))
    with pytest.raises(ValueError, match=r"columns \['prediction'\] already"):
        on_ray.predict(stored(shop.assign(prediction=1), tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no Parquet file"):
        on_ray.predict(X="nowhere/*.parquet")
    on_ray.set_output(transform="pandas")
    try:
        with pytest.raises(ValueError, match=r"set_output\(transform='pandas'\) cannot"):
            on_ray.transform(files)
    finally:
        on_ray.set_output(transform="default")


def test_values_that_a_block_cannot_read(on_ray, shop, tmp_path):
    where = stored(shop.assign(amount="much"), tmp_path)
    with pytest.raises(Exception, match="column 'amount'"):
        on_ray.predict(where).materialize()


def test_two_towers(spread, tmp_path):
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        {"user": rng.integers(0, 20, 400), "item": rng.choice(list("abcdefgh"), 400)}
    )
    pairs["liked"] = np.where((pairs["user"] % 2 == 0) == (pairs["item"] < "e"), "yes", "no")
    model = two_tower(
        [("user", CategoryBlock(), "user")], [("item", CategoryBlock(), "item")], max_epochs=3
    )
    model.fit(pairs[["user", "item"]], pairs["liked"], item_key="item", user_key="user")
    users = pd.DataFrame({"user": range(20)})
    predicted, recommended = model.predict(pairs), model.recommend(users, k=6, exclude="seen")
    spread(model)
    found = model.predict(stored(pairs, tmp_path / "pairs", row_group_size=100)).to_pandas()
    assert (found["prediction"].to_numpy() == predicted).all()
    where = stored(users, tmp_path / "users")
    found = model.recommend(users=where, k=6, exclude="seen").to_pandas()
    np.testing.assert_array_equal(np.stack(found["items"]), recommended[0])
    np.testing.assert_array_equal(np.stack(found["scores"]), recommended[1])
    with pytest.raises(ValueError, match=r"columns are missing: \['user'\]"):
        model.predict(stored(pairs[["item"]], tmp_path / "items"))
    with pytest.raises(ValueError, match="exclude must be 'seen' or None, got list"):
        model.recommend(where, exclude=[["a"]] * 20)
    with pytest.raises(ValueError, match="k must be"):
        model.recommend(where, k=0)


def test_embeddings_of_stored_sequences(spread, tmp_path):
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"who": rng.integers(0, 40, 600), "day": np.arange(600.0)})
    log["kind"] = rng.choice(["a", "b", "c"], 600)
    model = EasyTensorEmbedder(embedding_dim=8, max_epochs=1, random_state=0)
    model.fit(log, user="who", time="day")
    sequences = model.collect(log)
    expected = model.transform(sequences)
    spread(model)
    found = model.transform(stored(pa.table(sequences), tmp_path / "sequences")).to_pandas()
    np.testing.assert_allclose(np.stack(found["embedding"]), expected, atol=1e-6)
    with pytest.raises(ValueError, match="events of a user may be anywhere in a stored log"):
        model.transform(stored(log, tmp_path / "log"))


def test_importances_of_stored_rows(fitted, on_ray, spread, files, shop, monkeypatch):
    from sk_easytensor.backends.ray import predict as ray_predict

    how = {"sample_weight": "weight", "n_repeats": 3, "random_state": 0}
    whole = permutation_importance(on_ray, files, "label", **how)
    X, y, weight = shop[FEATURES], shop["label"], shop["weight"]
    expected = permutation_importance(fitted, X, y, sample_weight=weight, n_repeats=3)
    assert whole.names.tolist() == FEATURES
    assert whole.importances.shape == (4, 3)
    np.testing.assert_allclose(whole.importances_mean, expected.importances_mean, atol=0.05)
    # Chunks of 300 rows, the mean of which does not depend on who computes them.
    monkeypatch.setattr(ray_predict, "ROWS_PER_TASK", 300)
    parts = permutation_importance(on_ray, files, "label", **how)
    alone = permutation_importance(spread(fitted, 0), files, "label", **how)
    np.testing.assert_array_equal(parts.importances, alone.importances)
    assert (parts.importances != whole.importances).any()
    np.testing.assert_allclose(parts.importances_mean, expected.importances_mean, atol=0.08)


def test_importances_by_several_scorers_of_some_rows(on_ray, files, cluster):
    ray = pytest.importorskip("ray")
    found = permutation_importance(
        on_ray,
        ray.data.read_parquet(str(files)),
        "label",
        scoring=["neg_log_loss", "accuracy"],
        by="block",
        max_samples=100,
        n_repeats=2,
        random_state=0,
    )
    assert list(found) == ["neg_log_loss", "accuracy"]
    assert set(found["accuracy"].names) == set(on_ray.blocks_)
    # Accuracy among a hundred rows rises and falls by hundredths.
    hundredths = found["accuracy"].importances * 100
    np.testing.assert_allclose(hundredths, hundredths.round(), atol=1e-9)


@pytest.mark.parametrize(
    ("y", "weight", "error", "message"),
    [
        ("lable", None, ValueError, r"columns are missing: \['lable'\]"),
        (np.zeros(1200), None, TypeError, "must be given as names of columns"),
        (None, None, ValueError, "y must be the name of a column"),
        ("label", "score", ValueError, "column 'score': weights must be numbers"),
    ],
)
def test_importances_of_bad_input(y, weight, error, message, on_ray, files):
    with pytest.raises(error, match=message):
        permutation_importance(on_ray, files, y, sample_weight=weight)


def test_importances_of_a_path_on_this_machine(fitted, files, shop):
    found = permutation_importance(fitted, str(files), "label", random_state=0)
    expected = permutation_importance(fitted, shop[FEATURES], shop["label"], random_state=0)
    np.testing.assert_array_equal(found.importances, expected.importances)
