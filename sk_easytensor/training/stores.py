"""Where checkpoints lie: named byte strings that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["DirectoryStore", "check_store", "open_store"]


class DirectoryStore:
    """Files in a directory of any file system that fsspec knows.

    Parameters
    ----------
    url : str or os.PathLike
        Path, or URL such as ``s3://bucket/fits/7`` or ``memory://fit``.
    """

    def __init__(self, url):
        self.url = os.fspath(url)
        self._files, self._root = fsspec.core.url_to_fs(self.url)

    def names(self):
        """Return the names there are, sorted."""
        if not self._files.exists(self._root):
            return []
        self._files.invalidate_cache()
        paths = self._files.ls(self._root, detail=False)
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
        return sorted(name for name in names if not name.startswith("."))

    def read(self, name):
        """Return the bytes of a name."""
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name, data):
        """Write bytes under a name, which has them all or, should anything fail, what it had."""
        temporary = f"{self._root}/.{name}.{uuid4().hex}"
        self._files.makedirs(self._root, exist_ok=True)
        try:
            with self._files.open(temporary, "wb") as file:
                file.write(data)
                if self._local:
                    # Renamed files may be empty after a power cut otherwise.
                    file.flush()
                    os.fsync(file.fileno())
            if self._local:
                os.replace(temporary, f"{self._root}/{name}")
            else:
                self._files.mv(temporary, f"{self._root}/{name}")
        except BaseException:
            self._discard(temporary)
            raise

    def remove(self, name):
        """Remove a name that is there."""
        self._files.rm_file(f"{self._root}/{name}")

    def tidy(self):
        """Remove what writers that were killed left half-written."""
        if self._files.exists(self._root):
            for path in self._files.ls(self._root, detail=False):
                if path.rsplit("/", 1)[-1].startswith("."):
                    self._discard(path)

    @property
    def _local(self):
        return isinstance(self._files, LocalFileSystem)

    def _discard(self, path):
        # What cannot be written cannot always be removed; it is never read.
        with suppress(OSError):
            self._files.rm_file(path)


def check_store(where, owner):
    """Raise ``ValueError`` unless checkpoints can be kept there."""
    if where is None or hasattr(where, "names"):
        return
    if not isinstance(where, (str, os.PathLike)) or not os.fspath(where):
        raise ValueError(
            f"{owner}: checkpoint_dir must be a path, a URL such as 's3://bucket/fit' or None, got "
            f"{where!r}"
        )
    try:
        fsspec.core.url_to_fs(os.fspath(where))
    except (ValueError, ImportError) as error:
        raise ValueError(f"{owner}: checkpoint_dir {where!r} cannot be used: {error}") from error


def open_store(where):
    """Return a store: `where` itself if it is one already, else a directory."""
    return where if hasattr(where, "names") else DirectoryStore(where)
