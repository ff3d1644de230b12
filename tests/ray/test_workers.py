"""Training by worker processes, and what happens when they or the driver are killed."""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from on_workers import (
    SECRET,
    Epochs,
    Killer,
    Mistake,
    Starts,
    embedder,
    fail,
    make_events,
)

from sk_easytensor import EasyTensorClassifier
from sk_easytensor._utils.runtime import with_library_settings

ray_train = pytest.importorskip("sk_easytensor.backends.ray.train")

FEATURES = ["amount", "count", "city", "tags"]


def epochs_begun(path):
    return [int(line) for line in path.read_text().split()]


def test_workers_that_are_killed_are_replaced(classifier, files, shop, tmp_path, quick):
    callbacks = [Epochs(tmp_path / "epochs"), Killer(tmp_path, [2], by=1)]
    how = {"storage_path": tmp_path / "storage"}
    model = classifier(2, callbacks=callbacks, max_epochs=4, how=how).fit(files, "label")
    # The checkpoints from which workers resumed are gone.
    assert os.listdir(tmp_path / "storage") == []
    begun = epochs_begun(tmp_path / "epochs")
    assert model.n_iter_ == 4
    assert {path.name for path in tmp_path.glob("killed-*")} == {"killed-2"}
    # Only the epoch in which a worker was killed is trained twice.
    assert Counter(begun) == {1: 1, 2: 2, 3: 1, 4: 1}
    local = EasyTensorClassifier(**{**quick, "max_epochs": 4}).fit(str(files), "label")
    ours, theirs = (m.evals_result_["valid_0"]["log_loss"][-1] for m in (model, local))
    assert ours == pytest.approx(theirs, abs=0.06)
    assert (model.predict(shop) == shop["label"]).mean() > 0.85
    # All workers have computed their part of the importances, and nobody has kept a row.
    assert model._importance_sample is None
    assert model.feature_names_in_[model.feature_importances_.argmax()] == "score"
    n_rows = len(shop) * model.validation_fraction
    assert model._validation["rows"] == pytest.approx(n_rows, abs=8)
    # The first worker has grown trees, which the driver has as well.
    assert model.tree_weight_ > 0.2
    assert model.best_score_ == min(model.evals_result_["valid_0"]["log_loss"])
    assert model._validation["measures"]["log loss"] == pytest.approx(model.best_score_, rel=0.05)


def test_no_worker_decides_by_its_own_rows(classifier, shop, tmp_path, quick):
    """Each worker has the rows of one class, which do not fit into its memory."""
    rows = shop[[*FEATURES, "label"]]
    for label, part in rows.groupby("label"):
        part.to_parquet(tmp_path / f"{label}.parquet")
    how = {"memory_per_worker": 10_000}
    model = classifier(2, max_epochs=6, how=how).fit(tmp_path, "label")
    local = EasyTensorClassifier(**{**quick, "max_epochs": 6}).fit(rows[FEATURES], rows["label"])
    ours, theirs = (m.evals_result_["valid_0"]["log_loss"][-1] for m in (model, local))
    assert ours == pytest.approx(theirs, abs=0.06)
    assert model.tree_weight_ > 0.2
    # The linear model has seen rows of both as well, without which it could not tell them apart.
    assert model.network_.linear is not None
    difference = model.feature_importances_ - local.feature_importances_
    assert abs(difference).max() < 0.15


def test_a_loss_of_the_user_is_sent_to_tasks(regressor, files):
    factor = 3.0

    def asymmetric(outputs, targets):
        error = targets - outputs
        return torch.where(error > 0, factor * error, -error)

    params = {"trees": None, "max_epochs": 2, "loss": asymmetric}
    model = regressor(0, **params).fit(files, "score")
    first, last = model.evals_result_["valid_0"]["asymmetric"]
    assert last < first
    assert model.best_score_ == last


def test_errors_of_the_user_end_training_at_once(classifier, shop, tmp_path, monkeypatch):
    # The other worker waits then, to send the state of its random numbers.
    by, when = 0, "on_epoch_end"
    starts = Starts(tmp_path / "starts", ray_train.train_worker)
    monkeypatch.setattr(ray_train, "train_worker", starts.__call__)
    # Its workers learn a loss of the user's until then.
    params = {
        "loss": torch.nn.BCEWithLogitsLoss(),
        "callbacks": [Epochs(tmp_path / "epochs"), Mistake(by, when)],
    }
    with pytest.raises(LookupError, match=f"no such thing on worker {by}") as found:
        classifier(2, **params).fit(shop[FEATURES], shop["label"])
    assert when in str(found.value.__cause__)
    assert f"worker {by}:" in str(found.value.__cause__)
    assert f"worker {1 - by}:" not in str(found.value.__cause__)
    assert epochs_begun(tmp_path / "epochs") == [1, 2]
    # No worker was started a second time.
    assert sorted(epochs_begun(tmp_path / "starts")) == [0, 1]
    assert os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S") is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_of_tasks_name_no_password(cluster):
    ray = pytest.importorskip("ray")
    from sk_easytensor.backends.ray.summarize import remote, results

    ref = remote(fail).remote("c")
    # What Ray prints.
    with pytest.raises(ray.exceptions.RayTaskError) as failed:
        ray.get(ref)
    assert "bucket/rows" in str(failed.value)
    assert SECRET not in str(failed.value)
    # Those of others, such as of a function that was applied to a Dataset.
    for each in (ref, ray.remote(fail).remote("c")):
        with pytest.raises(ValueError, match=r"'c' of s3://.*bucket/rows") as failed:
            as_an_estimator(results, each)
        text = "".join(traceback.format_exception(failed.value))
        assert "in fail" in text
        assert SECRET not in text


@with_library_settings
def as_an_estimator(results, ref):
    """Get results as a method of an estimator does."""
    return results([ref])


def test_errors_of_workers_name_no_password(monkeypatch):
    class Context:
        def get_world_rank(self):
            return 3

    errors = ray_train.ErrorCollector()
    monkeypatch.setattr(ray_train.ray.train, "get_context", Context)
    monkeypatch.setattr(ray_train.ray, "get", fail)
    assert ray_train.train_worker({"errors": errors, "job": "c"}) is None
    ((rank, data, text),) = errors.read()
    assert rank == 3
    assert "bucket/rows" in str(pickle.loads(data))
    assert "there is nothing" in text
    assert SECRET.encode() not in data
    assert SECRET not in text


def test_the_state_of_a_run_holds_no_password():
    given = ray_train.run_storage(f"s3://KEY:{SECRET}@bucket/fits?region=eu-west-1")
    assert given["storage_path"] == "bucket/fits"
    assert given["storage_filesystem"].region == "eu-west-1"
    assert SECRET not in repr(given)
    assert ray_train.run_storage("s3://bucket/fits") == {"storage_path": "s3://bucket/fits"}
    assert ray_train.run_storage("/tmp/fits") == {"storage_path": "/tmp/fits"}


OWN_CLUSTER = """
import os, signal, sys
from sk_easytensor.backends import RayBackend
assert not any(name.split(".")[0] == "ray" for name in sys.modules)

import pandas as pd, ray
from sk_easytensor import MLP, EasyTensorClassifier

frame = pd.read_parquet(sys.argv[1])
model = EasyTensorClassifier(
    trunk=MLP(width=16), max_epochs=1, random_state=0, backend=RayBackend(num_workers=0)
)
def variables():
    return {k: v for k, v in os.environ.items() if k.startswith("RAY_") or k == "PYTHONBREAKPOINT"}

before = variables()
handler = signal.getsignal(signal.SIGINT)
model.fit(frame[["amount"]], frame["label"])
assert not ray.is_initialized()
assert variables() == before
assert signal.getsignal(signal.SIGINT) is handler
model.predict(sys.argv[1])
assert ray.is_initialized()
address = ray.get_runtime_context().gcs_address
model.fit(frame[["amount"]], frame["label"])
assert ray.get_runtime_context().gcs_address == address
ray.shutdown()
"""


def test_a_cluster_of_its_own(files, tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", OWN_CLUSTER, str(files)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    # Once for the first fit, once for the prediction, which the second fit makes use of.
    said = [line for line in told.stderr.splitlines() if line.startswith("Ray")]
    assert [line.split(":")[0] for line in said] == [
        "Ray is not initialised",
        "Ray",
        "Ray is not initialised",
        "Ray keeps running, because the returned Dataset is computed when it is read; "
        "ray.shutdown() ends it",
    ], told.stderr


SCRIPT = """
import sys
from on_workers import embedder, send_by_value

address, where = sys.argv[1:]
send_by_value()
model = embedder(address, where, pause=4)
model.fit(where + "/log.parquet", user="user", time="time")
"""


def test_users_are_embedded_though_the_driver_is_killed(cluster, tmp_path):
    events = make_events(60)
    events.to_parquet(tmp_path / "log.parquet", row_group_size=150)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, str(script), cluster, str(tmp_path)]
    driver = subprocess.Popen(command, env=environment)
    deadline = time.time() + 240
    begun = tmp_path / "epochs"
    while not begun.exists() or 4 not in epochs_begun(begun):
        assert driver.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    model = embedder(cluster, tmp_path, pause=0)
    model.fit(tmp_path / "log.parquet", user="user", time="time")
    assert Counter(epochs_begun(begun)) == {1: 1, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}
    curve = model.evals_result_["training"]["softmax_loss"]
    assert len(curve) == 8
    assert curve[-1] < curve[0] - 0.1
    assert model.transform(events).shape == (60, 8)
