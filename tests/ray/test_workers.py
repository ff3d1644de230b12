"""Training by worker processes, and what happens when they or the driver are killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from on_workers import Epochs, Killer, Mistake

from sk_easytensor import EasyTensorClassifier

FEATURES = ["amount", "count", "city", "tags"]


def epochs_begun(path):
    return [int(line) for line in path.read_text().split()]


def test_workers_that_are_killed_are_replaced(classifier, files, shop, tmp_path, quick):
    callbacks = [Epochs(tmp_path / "epochs"), Killer(tmp_path, [3, 5], by=1)]
    model = classifier(2, callbacks=callbacks, max_epochs=6).fit(files, "label")
    begun = epochs_begun(tmp_path / "epochs")
    assert model.n_iter_ == 6
    assert {path.name for path in tmp_path.glob("killed-*")} == {"killed-3", "killed-5"}
    # Only epochs in which a worker was killed are trained twice.
    assert Counter(begun) == {1: 1, 2: 1, 3: 2, 4: 1, 5: 2, 6: 1}
    local = EasyTensorClassifier(**{**quick, "max_epochs": 6}).fit(str(files), "label")
    ours, theirs = (m.evals_result_["valid_0"]["log_loss"][-1] for m in (model, local))
    assert ours == pytest.approx(theirs, abs=0.06)
    assert (model.predict(shop) == shop["label"]).mean() > 0.85


def test_errors_of_the_user_end_training_at_once(classifier, shop, tmp_path):
    callbacks = [Epochs(tmp_path / "epochs"), Mistake(by=1)]
    with pytest.raises(LookupError, match="no such thing on worker 1") as found:
        classifier(2, callbacks=callbacks).fit(shop[FEATURES], shop["label"])
    assert "on_batch_end" in str(found.value.__cause__)
    assert "worker 1:" in str(found.value.__cause__)
    assert epochs_begun(tmp_path / "epochs") == [1, 2]
    assert os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S") is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


SCRIPT = """
import pickle, sys
from on_workers import Epochs, make_shop, send_by_value
from sk_easytensor import MLP, EasyTensorClassifier
from sk_easytensor.backends.ray import RayBackend

address, files, where = sys.argv[1:]
send_by_value()
model = EasyTensorClassifier(
    backend=RayBackend(num_workers=2, address=address),
    trunk=MLP(width=16), max_epochs=20, early_stopping_rounds=20, batch_size=16, random_state=0,
    callbacks=[Epochs(where + "/epochs")], checkpoint_dir=where + "/checkpoints",
)
model.fit(files, "label")
pickle.dump(model, open(where + "/model", "wb"))
"""


def test_a_driver_that_is_killed_goes_on(cluster, files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, str(script), cluster, str(files), str(tmp_path)]
    driver = subprocess.Popen(command, env=environment)
    deadline = time.time() + 120
    while not (tmp_path / "checkpoints" / "epoch-00003.pt").exists():
        assert driver.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1)
    before = epochs_begun(tmp_path / "epochs")
    assert before[-1] < 20
    subprocess.run(command, env=environment, check=True)
    begun = epochs_begun(tmp_path / "epochs")
    assert set(begun) == set(range(1, 21))
    assert sum(count - 1 for count in Counter(begun).values()) <= 1
    import pickle

    model = pickle.loads((tmp_path / "model").read_bytes())
    assert model.n_iter_ == 20
    assert np.isfinite(model.best_score_)
