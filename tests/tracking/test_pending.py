"""Servers that are down, or go down: nothing of the fit is lost, nor of its record."""

import os
import time
import warnings

import mlflow
import numpy as np
import pytest
from skorch.callbacks import Callback

from sk_easytensor.tracking import MLflowTracker, upload
from sk_easytensor.tracking.record import SHORT_TIMEOUTS, RunRecord, short_timeouts

from .conftest import free_port


class AtEpoch(Callback):
    """Calls a function at the begin of some epoch."""

    def __init__(self, epoch, function):
        self.epoch, self.function = epoch, function

    def __getstate__(self):
        return {}

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.function()


def waiting(work):
    folder = work / "mlflow-pending"
    return sorted(folder.iterdir()) if folder.exists() else []


def check_run(client, model, X):
    """Assert that a run holds all there is to know of a fit."""
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (run,) = [run for run in found if run.data.tags.get("test") == model.tracker.tags["test"]]
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == str(model.learning_rate)
    history = client.get_metric_history(run.info.run_id, "valid_0_log_loss")
    assert [metric.value for metric in history] == model.evals_result_["valid_0"]["log_loss"]
    assert {"report.html", "data.json"} <= {e.path for e in client.list_artifacts(run.info.run_id)}
    assert len(run.inputs.dataset_inputs) == 2
    (output,) = run.outputs.model_outputs
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    finally:
        mlflow.set_tracking_uri(before)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    return run


def test_a_server(server, classifier, table, work):
    tracker = MLflowTracker(server.uri, tags={"test": "a server"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = classifier(tracker=tracker).fit(*table)
    check_run(mlflow.MlflowClient(server.uri), model, table[0])
    assert waiting(work) == []
    assert not (work / "mlruns").exists()


def test_a_server_that_is_down(server, classifier, table, work):
    """Its record waits, whole, and is sent later."""
    uri = f"http://ann:secret@127.0.0.1:{free_port()}"
    tracker = MLflowTracker(uri, tags={"test": "down"})
    expected = classifier(tracker=None).fit(*table)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="The fit continues") as caught:
        model = classifier(tracker=tracker).fit(*table)
    assert time.monotonic() - begin < 30
    (message,) = [str(w.message) for w in caught if "MLflow at" in str(w.message)]
    (folder,) = waiting(work)
    assert f"MLflow at {uri.replace('ann:secret', '***')} failed" in message
    assert f"mlflow-pending/{folder.name}" in message
    assert "secret" not in message
    assert model.evals_result_ == expected.evals_result_
    assert model.run_id_ is None
    record = RunRecord.load(folder)
    assert record.status == "FINISHED"
    assert [value for name, value, *_ in record.metrics if name == "training_log_loss"] == (
        model.evals_result_["training"]["log_loss"]
    )
    begun = record.start_time
    run_id = upload(folder, server.uri)
    run = check_run(mlflow.MlflowClient(server.uri), model, table[0])
    assert (run.info.run_id, run.info.start_time) == (run_id, begun)
    assert not folder.exists()


@pytest.fixture(scope="module")
def mortal(make_server):
    """A server that tests stop, and start again."""
    return [make_server()]


def test_a_server_that_is_killed(mortal, make_server, classifier, table, work):
    """In the middle of a fit; the run that was begun is completed later."""
    server = mortal[-1]
    tracker = MLflowTracker(server.uri, tags={"test": "killed"})
    model = classifier(tracker=tracker, callbacks=[AtEpoch(2, server.stop)])
    with pytest.warns(UserWarning, match=f"MLflow at {server.uri} failed"):
        model.fit(*table)
    (folder,) = waiting(work)
    mortal.append(make_server(server))
    client = mlflow.MlflowClient(server.uri)
    assert client.get_run(model.run_id_).info.status == "RUNNING"
    assert upload(folder) == model.run_id_
    model.set_params(callbacks=None)
    check_run(client, model, table[0])


def test_a_server_that_comes_back(mortal, make_server, classifier, table, work, monkeypatch):
    """Before the fit is over: nothing has to wait."""
    monkeypatch.setattr("sk_easytensor.tracking.run.FLUSH_SECONDS", 0.0)
    server = mortal[-1]
    tracker = MLflowTracker(server.uri, tags={"test": "back"}, log_model=False)
    callbacks = [AtEpoch(1, server.stop), AtEpoch(3, lambda: make_server(server))]
    model = classifier(tracker=tracker, callbacks=callbacks, max_epochs=4)
    with pytest.warns(UserWarning, match="failed") as caught:
        model.fit(*table)
    assert len([w for w in caught if "MLflow at" in str(w.message)]) == 1
    assert waiting(work) == []
    client = mlflow.MlflowClient(server.uri)
    history = client.get_metric_history(model.run_id_, "training_log_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_a_database_that_cannot_be_written(classifier, table, work):
    (work / "file").write_text("")
    tracker = MLflowTracker(f"sqlite:///{work}/file/mlflow.db", log_model=False)
    with pytest.warns(UserWarning, match="The fit continues"):
        model = classifier(tracker=tracker).fit(*table)
    assert len(model.predict(table[0])) == 80
    assert len(waiting(work)) == 1


def test_neither_server_nor_disk(classifier, table, work):
    """Even then the fit is not lost."""
    (work / "file").write_text("")
    tracker = MLflowTracker(
        f"http://127.0.0.1:{free_port()}", pending_dir=str(work / "file" / "x"), log_model=False
    )
    with (
        pytest.warns(UserWarning, match="failed .* The fit continues"),
        pytest.warns(UserWarning, match="cannot be written to .* either"),
    ):
        model = classifier(tracker=tracker).fit(*table)
    assert len(model.predict(table[0])) == 80


def test_a_failed_fit_waits_too(classifier, table, work):
    tracker = MLflowTracker(f"http://127.0.0.1:{free_port()}")
    with (
        pytest.warns(UserWarning, match="failed"),
        pytest.raises(ValueError, match="learning_rate"),
    ):
        classifier(tracker=tracker, learning_rate=-1.0).fit(*table)
    (folder,) = waiting(work)
    assert RunRecord.load(folder).status == "FAILED"
    assert (folder / "artifacts" / "error.txt").exists()


def test_an_upload_that_fails_may_be_repeated(classifier, table, work, server):
    tracker = MLflowTracker(f"http://127.0.0.1:{free_port()}", tags={"test": "repeated"})
    with pytest.warns(UserWarning, match="failed"):
        model = classifier(tracker=tracker).fit(*table)
    (folder,) = waiting(work)
    with short_timeouts(), pytest.raises(mlflow.MlflowException):
        upload(folder)
    upload(folder, server.uri)
    check_run(mlflow.MlflowClient(server.uri), model, table[0])


@pytest.fixture
def pending(classifier, table, work):
    """The folder of a record that waits, of a fit without a model."""
    tracker = MLflowTracker(f"http://127.0.0.1:{free_port()}", log_model=False, log_report=False)
    with pytest.warns(UserWarning, match="The fit continues"):
        classifier(tracker=tracker).fit(*table)
    (folder,) = waiting(work)
    return folder


def test_foreign_files_beside_a_record_stay(pending, work):
    foreign = [pending / "notes.txt", pending / "artifacts" / "code" / "mine.py"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    uri = f"sqlite:///{work}/mlflow.db"
    client, run_id = mlflow.MlflowClient(uri), upload(pending, uri)
    names = {entry.path for entry in client.list_artifacts(run_id, "code")}
    assert "code/mine.py" not in names
    assert sorted(path for path in pending.rglob("*") if path.is_file()) == sorted(foreign)
    assert {path.read_text() for path in foreign} == {"mine"}


def test_a_torn_record_is_refused_by_name(pending):
    def files():
        return {each: each.read_bytes() for each in pending.rglob("*") if each.is_file()}

    for name in ("record.json", "artifacts/data.json"):
        path = pending / name
        whole = path.read_bytes()
        for content in (b"", b"[]", b"{}", b"{", whole[:-1], whole.replace(b"a", b"b", 1)):
            path.write_bytes(content)
            before = files()
            with pytest.raises(ValueError, match=rf"{name}' is corrupt, was changed"):
                upload(pending)
            assert before == files()
        path.write_bytes(whole)


def test_upload_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no record\.json"):
        upload(tmp_path)


def test_retries_of_ones_own_are_kept(monkeypatch):
    name, other, *_ = SHORT_TIMEOUTS
    monkeypatch.setenv(name, "3")
    monkeypatch.delenv(other, raising=False)
    with short_timeouts(), short_timeouts():
        assert os.environ[name] == "3"
        assert os.environ[other] == SHORT_TIMEOUTS[other]
    assert os.environ[name] == "3"
    assert other not in os.environ
