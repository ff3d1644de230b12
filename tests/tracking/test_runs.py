"""What a run holds, where it is, and that the process is left as it was."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow
import mlflow.store.tracking.sqlalchemy_store
import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_easytensor import (
    MLP,
    Block,
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorRegressor,
    EasyTensorTwoTower,
)
from sk_easytensor.tracking import MLflowTracker
from sk_easytensor.tracking.record import (
    MAX_PARAM_LENGTH,
    RunRecord,
    create_run,
    send_datasets,
)

pytestmark = pytest.mark.filterwarnings("error:.*record is missing")


def runs(client, experiment="0"):
    return client.search_runs([experiment], order_by=["attributes.start_time ASC"])


def artifacts(client, run_id, path=None):
    found = []
    for entry in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def read(client, run_id, path, folder):
    return Path(client.download_artifacts(run_id, path, str(folder))).read_text(encoding="utf-8")


# ---------------------------------------------------------------------- what is recorded


def test_a_run_holds_everything(classifier, table, client, work, tmp_path):
    X, y = table
    model = classifier(learning_rate=0.01).fit(X, y)
    (run,) = runs(client)
    assert run.info.run_id == model.run_id_
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    params, tags = run.data.params, run.data.tags
    assert params["learning_rate"] == "0.01"
    assert params["trunk__width"] == "8"
    assert (params["data.rows"], params["data.columns"]) == ("80", "6")
    assert "tracker" not in params
    assert tags["estimator_name"] == "EasyTensorClassifier"
    assert tags["version.torch"].startswith("2.")
    assert {"version.python", "version.sk_easytensor", "mlflow.user"} <= set(tags)
    assert "environment.json" in artifacts(client, model.run_id_)
    about = json.loads(read(client, model.run_id_, "data.json", tmp_path))
    assert about["rows"] == 80
    city = next(column for column in about["columns"] if column["name"] == "city")
    assert city["missing"] == int(X["city"].isna().sum())
    importances = pd.read_csv(client.download_artifacts(run.info.run_id, "importances.csv"))
    expected = pd.Series(model.feature_importances_, X.columns)
    found = importances.set_index("column")["importance"]
    pd.testing.assert_series_equal(found[X.columns], expected, check_names=False)
    for name in ("learning_curves.svg", "importances.svg"):
        drawing = read(client, run.info.run_id, name, tmp_path)
        assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "<h1>EasyTensorClassifier</h1>" in read(client, run.info.run_id, "report.html", tmp_path)


def test_losses_of_each_epoch(classifier, table, client):
    model = classifier(max_epochs=5).fit(*table)
    for part in ("training", "valid_0"):
        history = client.get_metric_history(model.run_id_, f"{part}_log_loss")
        assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
        assert [metric.value for metric in history] == model.evals_result_[part]["log_loss"]
    (run,) = runs(client)
    assert run.data.metrics["best_score"] == model.best_score_
    assert run.data.metrics["best_iteration"] == model.best_iteration_
    assert run.data.metrics["epoch_seconds"] > 0


def test_measures_on_validation_rows_and_weights_of_models(classifier, table, client, work):
    X, y = pd.concat([table[0]] * 4, ignore_index=True), np.tile(table[1], 4)
    model = classifier().fit(X, y)
    (run,) = runs(client)
    metrics = run.data.metrics
    assert metrics["tree_weight"] == model.tree_weight_
    assert metrics["linear_weight"] == model.linear_weight_
    expected = model._validation["measures"]
    prior = "log loss of the frequencies of classes"
    assert list(expected) == ["log loss", "accuracy", "ROC AUC", "average precision", prior]
    assert {name: metrics[name] for name in metrics if name.startswith("validation_")} == {
        "validation_log_loss": pytest.approx(expected["log loss"]),
        "validation_accuracy": pytest.approx(expected["accuracy"]),
        "validation_roc_auc": pytest.approx(expected["ROC AUC"]),
        "validation_average_precision": pytest.approx(expected["average precision"]),
        "validation_log_loss_of_the_frequencies_of_classes": pytest.approx(expected[prior]),
    }
    other = EasyTensorRegressor(tracker="mlflow", max_epochs=1, trees=None, n_folds=None)
    other.fit(X, np.arange(len(X)))
    (metrics,) = (run.data.metrics for run in runs(client) if run.info.run_id == other.run_id_)
    found = {name for name in metrics if name.startswith("validation_")}
    assert found == {
        "validation_r2",
        "validation_mean_absolute_error",
        "validation_root_mean_squared_error",
        "validation_root_mean_squared_error_of_the_mean",
    }


def test_rows_are_inputs_of_the_run(classifier, table, client):
    classifier().fit(*table)
    (run,) = runs(client)
    found = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    rows = {name: json.loads(entry.profile)["num_rows"] for name, entry in found.items()}
    assert sum(rows.values()) == 80
    assert set(rows) == {"training", "validation 0"}
    assert found["training"].digest != found["validation 0"].digest


def test_tracking_changes_nothing_that_is_learned(classifier, table, work):
    tracked, plain = classifier().fit(*table), classifier(tracker=None).fit(*table)
    assert tracked.evals_result_ == plain.evals_result_
    np.testing.assert_array_equal(tracked.feature_importances_, plain.feature_importances_)
    np.testing.assert_array_equal(tracked.predict_proba(table[0]), plain.predict_proba(table[0]))
    assert not hasattr(plain, "run_id_")


def test_names_and_tags_of_ones_own(classifier, table, client):
    tracker = MLflowTracker(
        experiment_name="trials", run_name="first", tags={"stage": 1}, log_model=False
    )
    model = classifier(tracker=tracker).fit(*table)
    experiment = client.get_experiment_by_name("trials")
    (run,) = runs(client, experiment.experiment_id)
    assert run.info.run_name == "first"
    assert run.data.tags["stage"] == "1"
    assert run.outputs.model_outputs == []
    assert classifier(tracker=tracker).fit(*table).run_id_ != model.run_id_
    assert len(runs(client, experiment.experiment_id)) == 2


def test_the_active_experiment(classifier, table, client):
    mlflow.set_experiment("active")
    model = classifier(tracker=MLflowTracker(log_model=False, log_report=False)).fit(*table)
    experiment = client.get_experiment_by_name("active").experiment_id
    assert client.get_run(model.run_id_).info.experiment_id == experiment
    assert "report.html" not in artifacts(client, model.run_id_)


def test_script_and_commit(client, work):
    """Of the script that was started, in a process of its own."""
    script = work / "repository" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import numpy as np\n"
        "from sk_easytensor import EasyTensorRegressor\n"
        "from sk_easytensor.tracking import MLflowTracker\n"
        "X = np.arange(40.0)[:, None]\n"
        "tracker = MLflowTracker(log_model=False, log_report=False)\n"
        "model = EasyTensorRegressor(tracker=tracker, trees=None, max_epochs=1)\n"
        "model.fit(X, X[:, 0])\n"
    )
    git = ["git", "-C", str(script.parent), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    subprocess.run([sys.executable, str(script)], cwd=work, check=True)
    (run,) = runs(client)
    assert run.data.tags["mlflow.source.git.commit"] == commit.stdout.strip()
    assert run.data.tags["mlflow.source.name"] == str(script)
    assert read(client, run.info.run_id, "code/train.py", work) == script.read_text()


def test_what_is_long_or_odd_is_made_to_fit():
    record = RunRecord("1", "sqlite://")
    record.add_params({"blocks__a&b__width": "x" * 9000, "../x": None, "plain": 1})
    assert list(record.params) == ["blocks__a_b__width", "x", "plain"]
    assert len(record.params["blocks__a_b__width"]) == MAX_PARAM_LENGTH
    record.add_metrics({"auc@5": np.float32(0.5)}, 1, 2)
    assert record.metrics == [["auc_5", 0.5, 1, 2]]


# ---------------------------------------------------------------------- fits that fail


def test_a_fit_that_fails(classifier, table, client, tmp_path):
    X, y = table
    with pytest.raises(ValueError, match="learning_rate must be"):
        classifier(learning_rate=-1.0).fit(X, y)
    (run,) = runs(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("ValueError: EasyTensorClassifier: learning_rate")
    assert "Traceback" in read(client, run.info.run_id, "error.txt", tmp_path)


def test_a_fit_that_is_interrupted(classifier, table, client):
    from skorch.callbacks import Callback

    class Stop(Callback):
        def on_epoch_begin(self, net, **kwargs):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        classifier(callbacks=[Stop()]).fit(*table)
    assert [run.info.status for run in runs(client)] == ["KILLED"]


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandb", "tracker must be 'mlflow', an MLflowTracker or None, got 'wandb'"),
        (MLflowTracker(tags=["a"]), "tags must be a dictionary"),
        (MLflowTracker(tracking_uri=7), "tracking_uri must be a string or None, got 7"),
    ],
)
def test_trackers_that_are_none(tracker, message, classifier, table):
    with pytest.raises(ValueError, match=message):
        classifier(tracker=tracker).fit(*table)


def test_without_mlflow(tmp_path):
    """The error comes before any training and says what to install."""
    script = """
import sys
sys.modules["mlflow"] = None
from sk_easytensor import EasyTensorClassifier
EasyTensorClassifier(tracker="mlflow").fit([[0.0], [1.0]], [0, 1])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "ImportError: EasyTensorClassifier: tracker needs MLflow" in result.stderr
    assert "pip install 'sk_easytensor[mlflow]'" in result.stderr


# ---------------------------------------------------------------------- runs within runs


@pytest.fixture
def search(classifier):
    def make(**params):
        tracker = params.pop("tracker", MLflowTracker(log_model=False, log_report=False))
        model = classifier(tracker=tracker, max_epochs=1)
        return GridSearchCV(model, {"learning_rate": [0.01, 0.02]}, cv=2, **params)

    return make


def children(client, parent):
    return [run for run in runs(client) if run.data.tags.get("mlflow.parentRunId") == parent]


def test_folds_have_curves_of_their_own(classifier, table, client):
    model = classifier(n_folds=2, tracker=MLflowTracker(log_model=False)).fit(*table)
    metrics = client.get_run(model.run_id_).data.metrics
    assert {"fold_0/valid_0_log_loss", "fold_1/valid_0_log_loss"} <= set(metrics)
    history = client.get_metric_history(model.run_id_, "fold_1/training_log_loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    means = client.get_metric_history(model.run_id_, "valid_0_log_loss")
    assert [metric.value for metric in means] == model.evals_result_["valid_0"]["log_loss"]


@pytest.mark.parametrize(
    "params", [{}, {"n_jobs": 2}, {"n_jobs": 2, "tracker": "mlflow"}], ids=["1", "2", "named"]
)
def test_a_search_has_a_child_for_each_fit(params, search, table, client):
    X, y = table
    # MLflow 3.9 keeps connections by relative path in the processes of an earlier search.
    get_reusable_executor().shutdown()
    with mlflow.start_run() as parent:
        found = search(**params).fit(X[["amount", "city"]], y)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    fits = children(client, parent.info.run_id)
    assert len(fits) == 5
    assert {run.info.status for run in fits} == {"FINISHED"}
    rates = sorted(run.data.params["learning_rate"] for run in fits)
    assert rates[:2] == ["0.01"] * 2
    assert found.best_estimator_.run_id_ in {run.info.run_id for run in fits}
    assert len(runs(client)) == 6


def test_two_runs_note_the_same_rows_at_once(client, monkeypatch):
    """As two fits of a search do: each finds no such rows, and only one can note them."""
    uri, store = client.tracking_uri, mlflow.store.tracking.sqlalchemy_store
    both_have_looked, turns = threading.Barrier(2, timeout=30), iter(range(2))

    def identifier():
        if next(turns, None) is not None:
            both_have_looked.wait()
        return uuid.uuid4()

    def note(number):
        record = RunRecord(str(number), uri, experiment_id="0", start_time=1)
        rows = {"name": "training", "digest": "abc", "source_type": "local", "source": "{}"}
        record.datasets.append({**rows, "context": "training"})
        create_run(record, client)
        return record

    records = [note(number) for number in range(2)]
    monkeypatch.setattr(store, "uuid", SimpleNamespace(uuid4=identifier))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda record: send_datasets(record, client), records))
    assert both_have_looked.broken is False
    assert next(turns, None) is None
    for record in records:
        (noted,) = client.get_run(record.run_id).inputs.dataset_inputs
        assert noted.dataset.digest == "abc"


def test_a_run_that_is_over_is_no_parent(classifier, table, client):
    tracker = MLflowTracker(log_model=False, log_report=False)
    with mlflow.start_run():
        model = clone(classifier(tracker=tracker))
    model.fit(*table)
    assert "mlflow.parentRunId" not in client.get_run(model.run_id_).data.tags


def test_another_server_has_another_parent(classifier, table, client, work, server):
    tracker = MLflowTracker(server.uri, log_model=False, log_report=False)
    with mlflow.start_run():
        model = classifier(tracker=tracker).fit(*table)
    found = mlflow.MlflowClient(server.uri).get_run(model.run_id_)
    assert "mlflow.parentRunId" not in found.data.tags


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_left_as_it_was(fails, classifier, table, work):
    before = dict(os.environ), mlflow.get_tracking_uri()
    model = classifier(learning_rate=-1.0 if fails else 0.1)
    if fails:
        with pytest.raises(ValueError, match="learning_rate"):
            model.fit(*table)
    else:
        model.fit(*table)
    assert mlflow.active_run() is None
    assert (dict(os.environ), mlflow.get_tracking_uri()) == before
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert not hasattr(model, "_tracked_run")
    assert not (work / "mlflow-pending").exists()


# ---------------------------------------------------------------------- models


LOADED = """
import sys
import mlflow, numpy as np, pandas as pd
for name in sys.argv[1:]:
    method, run = pd.read_pickle(f"{name}.pickle")
    X = pd.read_pickle(f"{name}-X.pickle")
    model = mlflow.sklearn.load_model(f"runs:/{run}/model")
    served = mlflow.pyfunc.load_model(f"runs:/{run}/model")
    np.savez(f"{name}.npz", model=getattr(model, method)(X), served=served.predict(X))
    example = served.input_example
    assert len(served.predict(example)) == len(example) == 5
    for column in X.select_dtypes(exclude=["number", "datetime"]):
        X[column] = None
    assert len(served.predict(X)) == len(X)
"""


def test_models_are_loaded_elsewhere(classifier, table, client, work):
    """In a process that knows nothing else."""
    X, y = table
    events = pd.DataFrame(
        {
            "what": [list("abcab"[: 2 + i % 4]) for i in range(30)],
            "paid": [[float(i), None, 3.0, 4.0, 5.0][: 2 + i % 4] for i in range(30)],
        }
    )
    embedder = EasyTensorEmbedder(embedding_dim=4, max_epochs=1, random_state=0, tracker="mlflow")
    models = {
        "classifier": (classifier().fit(X, y), X, "predict"),
        "embedder": (embedder.fit(events), events, "transform"),
    }
    for name, (model, rows, method) in models.items():
        pd.to_pickle((method, model.run_id_), work / f"{name}.pickle")
        rows.to_pickle(work / f"{name}-X.pickle")
    command = [sys.executable, "-c", LOADED, *models]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    assert result.returncode == 0, result.stderr
    for name, (model, rows, method) in models.items():
        found, expected = np.load(work / f"{name}.npz"), getattr(model, method)(rows)
        np.testing.assert_array_equal(found["model"], expected)
        np.testing.assert_array_equal(found["served"], expected)

    run_id = models["classifier"][0].run_id_
    info = mlflow.models.get_model_info(f"runs:/{run_id}/model")
    assert info.signature.inputs.input_names() == list(X)
    assert info.run_id == run_id
    requirements = Path(client.download_artifacts(run_id, "model")) / "requirements.txt"
    assert "sk_easytensor==" in requirements.read_text()


def test_two_towers_are_loaded_elsewhere(client, work):
    X = pd.DataFrame({"user": np.arange(60.0) % 7, "film": list("abcde") * 12})
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(), "user")],
        [("film", CategoryBlock(), "film")],
        embedding_dim=4,
        max_epochs=2,
        random_state=0,
        tracker="mlflow",
    ).fit(X)
    expected = model.decision_function(X)
    loaded = mlflow.sklearn.load_model(f"runs:/{model.run_id_}/model")
    np.testing.assert_array_equal(loaded.decision_function(X), expected)
    (metric,) = model.evals_result_["training"]
    assert len(client.get_metric_history(model.run_id_, f"training_{metric}")) == 2


def test_arrays_without_names(client, work):
    X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    model = EasyTensorRegressor(max_epochs=2, random_state=0, tracker="mlflow").fit(X, X[:, 0])
    served = mlflow.pyfunc.load_model(f"runs:/{model.run_id_}/model")
    np.testing.assert_array_equal(served.predict(X), model.predict(X))


class Doubled(CategoryBlock):
    """A block of one's own."""

    kind = "doubled"


def test_a_block_of_ones_own_is_recorded(classifier, table, work):
    assert issubclass(Doubled, Block)
    model = classifier(blocks=[("city", Doubled(), "city")]).fit(*table)
    loaded = mlflow.sklearn.load_model(f"runs:/{model.run_id_}/model")
    assert type(loaded.blocks_["city"]).__name__ == "Doubled"
    np.testing.assert_array_equal(loaded.predict(table[0]), model.predict(table[0]))


def test_a_model_that_skops_cannot_write_is_left_out(classifier, table, client):
    blocks = [("numbers", CategoryBlock(), lambda X: ["count"])]
    with pytest.warns(UserWarning, match="record is missing: save model"):
        model = classifier(blocks=blocks).fit(*table)
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.outputs.model_outputs == []
    assert len(model.predict(table[0])) == 80


@pytest.fixture
def autologging(work):
    mlflow.sklearn.autolog(log_models=False, log_datasets=False, silent=True)
    yield
    mlflow.sklearn.autolog(disable=True, silent=True)


@pytest.mark.usefixtures("autologging")
def test_autologging_records_no_trees(client):
    X = np.random.default_rng(0).normal(size=(140, 2))
    model = EasyTensorClassifier(max_epochs=1, n_folds=None, random_state=0, trunk=MLP(width=4))
    model.fit(X, X[:, 0] > 0)
    assert model.tree_weight_ > 0
    assert runs(client) == []
    make_pipeline(model).fit(X, X[:, 0] > 0)
    (run,) = runs(client)
    assert run.data.tags["estimator_name"] == "Pipeline"
    with mlflow.utils.autologging_utils.disable_autologging():
        model.fit(X, X[:, 0] > 0)
        assert mlflow.utils.autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
