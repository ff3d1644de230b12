"""Fits on a cluster that are recorded: once, by the process that called them."""

import os

import numpy as np
import pandas as pd
import pytest
from on_workers import make_shop
from two_towers import KEYS, N_ITEMS, N_USERS, shared_taste, two_tower

from sk_easytensor.backends.ray.backend import RayBackend
from sk_easytensor.datasets import make_interactions
from sk_easytensor.tracking import MLflowTracker

mlflow = pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings("error:.*record is missing")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """Address of a database with MLflow's tables, which take seconds to make."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    for name in ("towers", "shop"):
        client.create_experiment(name, artifact_location=str(folder / name))
    return uri


def the_run(where, name):
    """Return the client and the only run of an experiment."""
    client = mlflow.MlflowClient(tracking_uri=where)
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert run.info.status == "FINISHED"
    return client, run


def test_workers_train_towers_and_one_run_says_so(cluster, where, tmp_path, monkeypatch):
    data = make_interactions(1000, n_users=N_USERS, n_items=N_ITEMS, random_state=0)
    data.interactions.to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    # Would lead elsewhere, if workers heeded it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    model = two_tower(
        max_epochs=10,
        backend=RayBackend(num_workers=2),
        tracker=MLflowTracker(tracking_uri=where, experiment_name="towers"),
    )
    model.fit(tmp_path / "rows.parquet", items=data.catalogue, **KEYS)
    keys, _ = model.recommend(data.users, k=5)
    assert shared_taste(data, data.users["user_id"], keys) > 0.85
    client, run = the_run(where, "towers")
    assert run.info.run_id == model.run_id_
    for part, losses in model.evals_result_.items():
        history = client.get_metric_history(model.run_id_, f"{part}_softmax_loss")
        assert [metric.step for metric in history] == list(range(1, 11))
        assert [metric.value for metric in history] == losses["softmax_loss"]
    counts = {
        entry.dataset.name: int(eval(entry.dataset.profile)["num_rows"])
        for entry in run.inputs.dataset_inputs
    }
    assert set(counts) == {"training", "validation 0"}
    assert sum(counts.values()) == 1000
    assert not (tmp_path / "other.db").exists()


def test_a_model_fitted_on_files_is_recorded_whole(cluster, where, files, classifier):
    tracker = MLflowTracker(tracking_uri=where, experiment_name="shop")
    model = classifier(tracker=tracker).fit(files, "label", sample_weight="weight")
    client, run = the_run(where, "shop")
    importances = pd.read_csv(client.download_artifacts(run.info.run_id, "importances.csv"))
    expected = pd.Series(model.feature_importances_, model.feature_names_in_)
    found = importances.set_index("column")["importance"][model.feature_names_in_]
    np.testing.assert_allclose(found, expected)
    (output,) = run.outputs.model_outputs
    mlflow.set_tracking_uri(where)
    try:
        loaded = mlflow.sklearn.load_model(f"models:/{output.model_id}")
    finally:
        mlflow.set_tracking_uri(None)
    some = make_shop(5)
    np.testing.assert_array_equal(loaded.predict_proba(some), model.predict_proba(some))
    assert loaded.backend.num_workers == 0
