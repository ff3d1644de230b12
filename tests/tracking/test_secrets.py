"""Runs, their artifacts and records that wait hold no password of a URL."""

import sqlite3
import traceback
import warnings

import mlflow
import pytest
from skorch.callbacks import Callback

from sk_easytensor.tracking import MLflowTracker, upload

SECRET = "swordfish42"
WHERE = f"memory://key:{SECRET}@depot77/fit"


class Failing(Callback):
    """Raises an error that quotes an address."""

    def on_train_begin(self, net, **kwargs):
        raise ValueError(f"{WHERE} cannot be reached")


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:Query string argument")
def test_runs_hold_no_secret(work, table, classifier, tmp_path_factory, monkeypatch, capfd):
    X, y = table
    script = tmp_path_factory.mktemp("code") / "train.py"
    script.write_text(f"uri = 'http://u:{SECRET}@host'  # the tracking server's\n")
    monkeypatch.setattr("__main__.__file__", str(script), raising=False)
    tracker = MLflowTracker(f"sqlite:///{work}/mlflow.db?token={SECRET}", tags={"origin": WHERE})
    model = classifier(trees=None, tracker=tracker, checkpoint_dir=f"{WHERE}/run").fit(X, y)
    with pytest.raises(ValueError, match=r"\*\*\*@depot77"):
        model.set_params(callbacks=[Failing()]).fit(X, y)
    client = mlflow.MlflowClient(tracking_uri=tracker.tracking_uri)
    runs = client.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED"}
    assert all("***@depot77" in run.data.params["checkpoint_dir"] for run in runs)
    files = files_in(work)
    names = {path.name for path in files}
    assert {"report.html", "error.txt", script.name} <= names
    assert names & {"model.skops", "model.pkl"}  # MLflow 3.9 has another name for the same file.
    for path, data in files.items():
        assert SECRET.encode() not in data, path
    with sqlite3.connect(work / "mlflow.db") as connection:
        assert SECRET not in "\n".join(connection.iterdump())
    assert SECRET not in "".join(capfd.readouterr())


def test_waiting_records_hold_no_secret(work, table, classifier, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    X, y = table
    uri = f"http://u:{SECRET}@127.0.0.1:9"
    tracker = MLflowTracker(uri, log_model=False, log_report=False)
    model = classifier(trees=None, max_epochs=1, tracker=tracker)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    messages = "".join(str(each.message) for each in caught)
    assert "http://***@127.0.0.1:9" in messages
    assert SECRET not in messages
    for path, data in files_in(work).items():
        assert SECRET.encode() not in data, path
    (folder,) = (work / "mlflow-pending").iterdir()
    with pytest.raises(ValueError, match=r"http://\*\*\*@127.0.0.1:9.*pass tracking_uri"):
        upload(folder)
    with pytest.raises(mlflow.exceptions.MlflowException) as caught:
        upload(folder, uri)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert folder.exists()
