"""Files that are written whole or not at all."""

import os

import pytest

from sk_easytensor._utils.storage import write_atomically


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    assert write_atomically(path, "é", "test") == path
    assert write_atomically(path, b"new", "test").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_if_writing_fails(function, error, tmp_path, monkeypatch):
    def fail(*args):
        raise error

    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / ".file.mine").write_text("mine")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new", "test")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".file.mine", "file"]


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test: directory '.*missing' does not exist"):
        write_atomically(tmp_path / "missing" / "file", b"", "test")
