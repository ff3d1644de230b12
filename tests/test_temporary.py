"""Temporary directories of killed processes are removed, and nothing else is."""

import os
import subprocess
import sys
import tempfile
import time

import fsspec
import pytest

from sk_easytensor._utils import storage as temporary
from sk_easytensor._utils.storage import (
    make_temporary_directory,
    name_directory,
    remove_left_behind,
    remove_temporary_directory,
    this_boot,
    this_machine,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no user numbers here")

OLD = time.time() - 2 * temporary.MIN_AGE_SECONDS


@pytest.fixture(scope="module")
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(folder, name, when=OLD):
    path = folder / name
    path.mkdir()
    (path / "rows").write_bytes(b"rows")
    os.utime(path, (when, when))
    return path


def test_directories_of_killed_processes_are_removed(tmp_path, ended, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "_remove_once", lambda process: remove_left_behind())
    left = make(tmp_path, f"sk_easytensor-rows-{this_machine()}-{ended}-ab1_")
    (left / "inner").symlink_to(make(tmp_path, "mine"))
    os.utime(left, (OLD, OLD))
    path = make_temporary_directory("rows")
    assert sorted(os.listdir(tmp_path)) == sorted(["mine", os.path.basename(path)])
    assert os.listdir(tmp_path / "mine") == ["rows"]
    assert temporary.NAME.fullmatch(os.path.basename(path))
    os.utime(path, (OLD, OLD))
    make_temporary_directory("run")
    # This process is there.
    assert os.path.isdir(path)


def test_nothing_else_is_removed(tmp_path, ended, monkeypatch):
    machine = this_machine()
    name = f"sk_easytensor-rows-{machine}-{ended}-"
    mine = make(tmp_path, "mine")
    kept = [
        make(tmp_path, f"{name}young", time.time()),
        make(tmp_path, f"sk_easytensor-rows-{machine}-{os.getppid()}-running"),
        make(tmp_path, f"sk_easytensor-rows-00000000-{ended}-elsewhere"),
        make(tmp_path, f"{name}x.backup"),
        make(tmp_path, f"my-{name}x"),
        make(tmp_path, "sk_easytensor-data"),
        make(tmp_path, "sk_easytensor_rows_x"),
        tmp_path / f"{name}link",
        tmp_path / f"{name}file",
    ]
    kept[-2].symlink_to(mine)
    os.utime(kept[-2], (OLD, OLD), follow_symlinks=False)
    kept[-1].write_bytes(b"")
    os.utime(kept[-1], (OLD, OLD))
    remove_left_behind(tmp_path)
    assert all(path.exists() for path in [mine, *kept])
    # Of another user.
    other = make(tmp_path, f"{name}other")
    monkeypatch.setattr(os, "getuid", lambda: os.stat(other).st_uid + 1)
    remove_left_behind(tmp_path)
    assert other.exists()
    monkeypatch.undo()
    remove_left_behind(tmp_path)
    assert not other.exists()
    remove_left_behind(tmp_path / "nowhere")


def test_forked_processes_remove_no_directory_of_their_parent():
    path = make_temporary_directory("rows")
    child = os.fork()
    if child == 0:
        remove_temporary_directory(path)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.isdir(path)
    remove_temporary_directory(path)
    assert not os.path.exists(path)


def test_all_temporary_directories_are_named_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    from sk_easytensor.tracking.run import TrackedRun, new_record
    from sk_easytensor.tracking.tracker import MLflowTracker

    run = TrackedRun(MLflowTracker(), "Owner", "", None, new_record(tracking_uri=""))
    found = os.listdir(tmp_path)
    assert len(found) == 1
    assert all(map(temporary.NAME.fullmatch, found))
    run.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_what_killed_drivers_left_in_a_shared_directory_is_removed(kind, tmp_path, ended):
    machine = this_boot()
    abandoned = f"sk_easytensor-fit-{machine}-{ended}-ab"
    others = [
        f"sk_easytensor-fit-{machine}-{os.getppid()}-ab",
        f"sk_easytensor-fit-00000000-{ended}-ab",
        "sk_easytensor-data",
    ]
    if kind == "memory":
        url = "memory://shared/fits"
        files = fsspec.filesystem("memory")
        for name in (abandoned, *others):
            files.pipe(f"/shared/fits/{name}/state", b"rows")
    else:
        url = str(tmp_path) if kind == "path" else f"file://{tmp_path}"
        files = fsspec.filesystem("file")
        for name in (abandoned, *others):
            # However new.
            make(tmp_path, name, time.time())
    directory = name_directory(url, "fit")
    assert temporary.NAME.fullmatch(directory.rpartition("/")[2])
    left = files.ls(url.removeprefix("memory:/").removeprefix("file://"), detail=False)
    assert sorted(path.rpartition("/")[2] for path in left) == sorted(others)
    # There may be nothing yet.
    assert name_directory(f"{url}/new", "fit").startswith(f"{url}/new/sk_easytensor-fit-")
