"""Fits on several machines, some of which are switched off, and rows and checkpoints on S3."""

import threading
import time
from collections import Counter

import pytest
import torch
from on_workers import CheckpointsWithinEpochs, Epochs, Killer, Machine, Wait

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.backends.ray.backend import RayBackend


def same_network(model, expected):
    """Assert that two networks are equal, bit for bit."""
    theirs = expected.network_.state_dict()
    for name, ours in model.network_.state_dict().items():
        assert torch.equal(ours, theirs[name]), name


def lines(path):
    return path.read_text().split()


def test_workers_are_spread_over_machines(machines, files, shop, quick, tmp_path):
    backend = RayBackend(num_workers=3, storage_path=tmp_path / "storage")
    callbacks = [Machine(tmp_path / "machines")]
    model = EasyTensorClassifier(backend=backend, callbacks=callbacks, **quick)
    model.fit(files, "label")
    assert {line.partition(":")[2] for line in lines(tmp_path / "machines")} == {*machines.nodes}
    assert (model.predict(shop) == shop["label"]).mean() > 0.85
    found = model.predict(str(files)).to_pandas()
    assert (found["prediction"] == found["label"]).mean() > 0.85
    assert list((tmp_path / "storage").iterdir()) == []


def test_a_machine_that_is_switched_off_in_an_epoch(machines, files, shop, quick, tmp_path):
    backend = RayBackend(num_workers=2, storage_path=tmp_path / "storage")
    callbacks = [
        Machine(tmp_path / "machines"),
        Epochs(tmp_path / "epochs"),
        Wait(tmp_path / "switched off", epoch=3),
    ]
    switched_off = []

    def switch_off():
        while not (tmp_path / "epochs").exists() or "3" not in lines(tmp_path / "epochs"):
            time.sleep(0.1)
        of_rank = dict(line.split(":") for line in lines(tmp_path / "machines"))
        switched_off.append(of_rank["1"])
        machines.switch_off(of_rank["1"])
        (tmp_path / "switched off").touch()

    thread = threading.Thread(target=switch_off)
    thread.start()
    model = EasyTensorClassifier(backend=backend, callbacks=callbacks, **quick)
    model.fit(files, "label")
    thread.join()
    assert Counter(lines(tmp_path / "epochs")) == {"1": 1, "2": 1, "3": 2, "4": 1}
    later = [line.partition(":")[2] for line in lines(tmp_path / "machines")][2:]
    assert len({*later} - {*switched_off}) == 2
    assert (model.predict(shop) == shop["label"]).mean() > 0.85
    undisturbed = EasyTensorClassifier(backend=backend, **quick).fit(files, "label")
    same_network(model, undisturbed)


def test_workers_go_on_within_an_epoch(machines, files, quick, tmp_path):
    backend = RayBackend(2, storage_path=tmp_path / "storage", memory_per_worker=10_000)
    params = {**quick, "max_epochs": 2, "batch_size": 20, "n_folds": None, "backend": backend}
    expected = EasyTensorClassifier(**params).fit(files, "label")
    callbacks = [
        CheckpointsWithinEpochs(tmp_path / "steps"),
        Killer(tmp_path, [2], by=1, steps=40),
    ]
    model = EasyTensorClassifier(callbacks=callbacks, **params).fit(files, "label")
    assert (tmp_path / "killed-2").exists()
    steps = Counter(lines(tmp_path / "steps"))
    # Steps after the last checkpoint within the epoch are repeated, not the epoch.
    assert 0 < steps["2"] - steps["1"] <= 16
    same_network(model, expected)
    assert model.evals_result_ == expected.evals_result_


def test_a_machine_that_is_switched_off_while_rows_are_read(
    machines, files, shop, quick, tmp_path, monkeypatch
):
    """Tasks that look at columns run again on another machine."""
    from sk_easytensor.backends.ray import dataset

    thread = threading.Thread(target=lambda: machines.switch_off(next(iter(machines.nodes))))
    opened = dataset.open_dataset

    def opened_then_disturbed(*args, **kwargs):
        result = opened(*args, **kwargs)
        thread.start()
        return result

    monkeypatch.setattr(dataset, "open_dataset", opened_then_disturbed)
    backend = RayBackend(num_workers=2, storage_path=tmp_path / "storage", chunk_rows=50)
    model = EasyTensorClassifier(backend=backend, **quick).fit(files, "label")
    thread.join()
    assert len(machines.nodes) == 2
    local = EasyTensorClassifier(**quick).fit(str(files), "label")
    assert (model.predict(shop) == shop["label"]).mean() > 0.85
    for name, block in local.blocks_.items():
        assert repr(model.blocks_[name]) == repr(block)


def test_a_storage_path_is_asked_for_at_once(machines, files, quick):
    begin = time.perf_counter()
    model = EasyTensorClassifier(backend=RayBackend(num_workers=2), **quick)
    with pytest.raises(ValueError, match="on a cluster of several machines, storage_path must be"):
        model.fit(files, "label")
    assert time.perf_counter() - begin < 30


def test_rows_checkpoints_and_storage_on_s3(machines_on_s3, parts, shop, quick):
    import pyarrow.parquet as pq
    import s3fs

    bucket = machines_on_s3
    files = s3fs.S3FileSystem()
    for index, part in enumerate(parts):
        with files.open(f"{bucket}/shop/part-{index:02}.parquet", "wb") as file:
            pq.write_table(part, file)
    backend = RayBackend(num_workers=2, storage_path=f"{bucket}/storage")
    params = {**quick, "checkpoint_dir": f"{bucket}/fits", "backend": backend}
    model = EasyTensorClassifier(**params).fit(f"{bucket}/shop", "label")
    assert (model.predict(shop) == shop["label"]).mean() > 0.85
    # Nothing but the marker of the directory.
    assert files.find(f"{bucket}/storage") in ([], ["bucket/storage/"])
    (fit,) = files.ls(f"{bucket}/fits")
    kept = {path.rpartition("/")[2] for path in files.ls(fit)}
    assert {"fit.json", "encoder.skops", "epoch-00004.pt"} <= kept
    # The last epoch is lost.
    files.rm(f"{fit}/epoch-00004.pt")
    again = EasyTensorClassifier(**params).fit(f"{bucket}/shop", "label")
    same_network(again, model)


@pytest.fixture
def machines_on_s3(bucket, machines):
    """Machines whose processes know the server."""
    return bucket
