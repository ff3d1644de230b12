"""Fits that are gone on with from checkpoints in their run."""

import signal
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sk_easytensor import BoostedTrees, EasyTensorClassifier
from sk_easytensor._utils.storage import DirectoryStore
from sk_easytensor.tracking import MLflowTracker


class Stop(Callback):
    """Raises an error at the begin of some epoch, once it is told to."""

    armed = True

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if Stop.armed and len(net.history) == self.epoch:
            raise RuntimeError("power cut")


@pytest.fixture
def interrupted(classifier, table, monkeypatch):
    """A function that makes classifiers of which the first fit fails in the third epoch."""
    tracker = MLflowTracker(log_report=False, log_model=False)

    def make(**params):
        quick = {"max_epochs": 5, "callbacks": [Stop(3)], "tracker": tracker}
        return classifier(**{**quick, "checkpoint_dir": "mlflow", **params})

    monkeypatch.setattr(Stop, "armed", True)
    with pytest.raises(RuntimeError, match="power cut"):
        make().fit(*table)
    monkeypatch.setattr(Stop, "armed", False)
    return make


def same(model, expected):
    for name, tensor in expected.network_.state_dict().items():
        assert torch.equal(model.network_.state_dict()[name], tensor), name
    assert model.evals_result_ == expected.evals_result_


def test_the_run_is_gone_on_with(interrupted, table, client):
    (first,) = client.search_runs(["0"])
    assert first.info.status == "FAILED"
    model = interrupted().fit(*table)
    same(model, interrupted(tracker=None, checkpoint_dir=None).fit(*table))
    (run,) = client.search_runs(["0"])
    assert run.info.run_id == first.info.run_id == model.run_id_
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(model.run_id_, "valid_0_log_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert [metric.value for metric in history] == model.evals_result_["valid_0"]["log_loss"]


def test_the_newest_two_and_the_best_are_kept(interrupted, table, client):
    model = interrupted().fit(*table)
    names = {entry.path for entry in client.list_artifacts(model.run_id_, "checkpoints")}
    kept = {f"checkpoints/epoch-{epoch:05}.pt" for epoch in {4, 5, model.best_iteration_}}
    assert names == {*kept, "checkpoints/fit.json", "checkpoints/encoder.skops"}


def test_only_the_epochs_that_are_left_are_trained(interrupted, table):
    trained = []

    class Count(Stop):
        def on_epoch_end(self, net, **kwargs):
            trained.append(len(net.history))

    Count.__qualname__ = Count.__name__ = "Stop"
    interrupted(callbacks=[Count(3)]).fit(*table)
    assert trained in ([4, 5], [3, 4, 5])


@pytest.mark.parametrize("change", ["parameters", "data", "finished"])
def test_another_fit_has_a_run_of_its_own(change, interrupted, table, client):
    X, y = table
    if change == "parameters":
        interrupted(learning_rate=0.02).fit(X, y)
    elif change == "data":
        interrupted().fit(X.assign(amount=X["amount"] + 1), y)
    else:
        interrupted().fit(X, y)
        interrupted().fit(X, y)
    assert len(client.search_runs(["0"])) == 2


def test_another_target_is_refused(interrupted, table, client):
    X, y = table
    with pytest.raises(ValueError, match=r"other data: .*training targets was"):
        interrupted().fit(X, y[::-1])


def test_it_needs_a_tracker(classifier, table):
    with pytest.raises(ValueError, match=r"checkpoint_dir='mlflow' .* needs tracker='mlflow'"):
        classifier(tracker=None, checkpoint_dir="mlflow").fit(*table)


def test_a_server_that_is_down(classifier, table, work):
    """Checkpoints are written on this machine, and the fit goes on."""
    tracker = MLflowTracker("http://127.0.0.1:9", log_model=False, log_report=False)
    with pytest.warns(UserWarning, match="The fit continues"):
        model = classifier(tracker=tracker, checkpoint_dir="mlflow").fit(*table)
    same(model, classifier(tracker=None).fit(*table))
    (folder,) = (work / "mlflow-pending").iterdir()
    assert DirectoryStore(folder / "artifacts" / "checkpoints").names()[0] == "encoder.skops"


SCRIPT = """
import sys
import numpy as np
import torch
from sk_easytensor import BoostedTrees, EasyTensorClassifier
from sk_easytensor.tracking import MLflowTracker
from skorch.callbacks import Callback

class Slow(Callback):
    def on_epoch_end(self, net, **kwargs):
        print("epoch", flush=True)
        if len(net.history) == 4:
            sys.stdin.read()

torch.set_num_threads(1)
X = np.random.default_rng(0).normal(size=(80, 3))
tracker = MLflowTracker(sys.argv[1], "killed", log_model=False, log_report=False)
model = EasyTensorClassifier(
    trees=BoostedTrees(max_iter=20), max_epochs=6, n_folds=None, random_state=0,
    callbacks=[Slow()], tracker=tracker, checkpoint_dir="mlflow",
)
model.fit(X, X[:, 0] > 0)
"""


class Slow(Callback):
    """Notes the epochs that are trained, under the name that the callback of the script has."""

    __module__ = "__main__"

    # Of the class, since the estimator trains with a copy.
    epochs = []

    def on_epoch_end(self, net, **kwargs):
        self.epochs.append(len(net.history))


def test_a_killed_process_goes_on_on_another_machine(server, tmp_path, work):
    """With an empty disk, which the other directory stands for."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", server.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **pipes) as first:
        for _ in range(4):
            assert first.stdout.readline() == "epoch\n"
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("killed").experiment_id
    (killed,) = client.search_runs([experiment])
    assert killed.info.status == "RUNNING"
    X = np.random.default_rng(0).normal(size=(80, 3))
    quick = {
        "trees": BoostedTrees(max_iter=20),
        "max_epochs": 6,
        "n_folds": None,
        "random_state": 0,
    }
    second = EasyTensorClassifier(
        callbacks=[Slow()],
        tracker=MLflowTracker(server.uri, "killed", log_model=False, log_report=False),
        checkpoint_dir="mlflow",
        **quick,
    ).fit(X, X[:, 0] > 0)
    # The fourth had not been written.
    assert Slow.epochs == [4, 5, 6]
    same(second, EasyTensorClassifier(**quick).fit(X, X[:, 0] > 0))
    (run,) = client.search_runs([experiment])
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "FINISHED"
