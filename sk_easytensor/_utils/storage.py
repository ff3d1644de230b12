"""Files that are written whole or not at all, temporary directories, and stores behind URLs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager, suppress
from copy import copy
from functools import cache
from pathlib import Path
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = [
    "DirectoryStore",
    "check_store",
    "is_running",
    "make_temporary_directory",
    "open_store",
    "remove_left_behind",
    "remove_temporary_directory",
    "write_whole",
]


def write_whole(path, data, owner):
    """Write a file under another name and rename it, so that no half of it is ever there.

    Parameters
    ----------
    path : str or path-like
        The file; its directory has to exist.
    data : bytes or str
        Strings are written as UTF-8.
    owner : str
        What writes, for the error.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        If the directory does not exist.
    OSError
        If it cannot be written; what the file had is still there then.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{owner}: directory {str(path.parent)!r} does not exist")
    if isinstance(data, str):
        data = data.encode("utf-8", errors="backslashreplace")
    DirectoryStore(path.parent).write(path.name, data)
    return path


OLD_ENOUGH = 3600.0
"""Seconds without a change of a directory after which it may be removed."""

NAME = re.compile(r"sk_easytensor-(?:[a-z]+)-([0-9a-f]{8})-(\d{1,10})-\w+")
"""What it is for, the machine, the process that made it, and something at random."""


def make_temporary_directory(purpose):
    """Make a temporary directory, and remove old ones of processes that are not there any more.

    Parameters
    ----------
    purpose : str
        Lower-case letters; a part of the name.

    Returns
    -------
    str
        Path, for :func:`remove_temporary_directory`.
    """
    _remove_once(os.getpid())
    prefix = f"sk_easytensor-{purpose}-{this_machine()}-{os.getpid()}-"
    return tempfile.mkdtemp(prefix=prefix)


def remove_temporary_directory(path):
    """Remove a temporary directory, unless a process made it that this one was forked from.

    Parameters
    ----------
    path : str or Path
        As :func:`make_temporary_directory` returned it.
    """
    match = NAME.fullmatch(os.path.basename(path))
    if match is not None and int(match[2]) == os.getpid():
        shutil.rmtree(path, ignore_errors=True)


def remove_left_behind(folder=None):
    """Remove the temporary directories that were left behind when processes were killed.

    Only directories are removed whose name is of the library's own pattern, that belong to this
    user, that have not changed for an hour, and whose process ran on this machine and has ended.
    Symbolic links are not followed.

    Parameters
    ----------
    folder : str or None, default=None
        Where to look; by default where temporary directories are made.
    """
    # Elsewhere nothing tells whose a directory is, or a link may take its place meanwhile.
    if not (hasattr(os, "getuid") and shutil.rmtree.avoids_symlink_attacks):
        return
    try:
        with os.scandir(tempfile.gettempdir() if folder is None else folder) as entries:
            left = [entry.path for entry in entries if _is_left_behind(entry)]
    except OSError:
        return
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _is_left_behind(entry):
    match = NAME.fullmatch(entry.name)
    if match is None or match[1] != this_machine():
        return False
    try:
        about = entry.stat(follow_symlinks=False)
        return (
            entry.is_dir(follow_symlinks=False)
            and about.st_uid == os.getuid()
            and time.time() - about.st_mtime > OLD_ENOUGH
            and not is_running(int(match[2]))
        )
    except OSError:
        return False


@cache
def _remove_once(process):
    remove_left_behind()


@cache
def this_machine():
    """Return a digest of what tells where process numbers are those of this process."""
    try:
        # Containers with a common directory may have the same name.
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def is_running(process):
    """Return whether there is a process of some number on this machine; POSIX only.

    Parameters
    ----------
    process : int
        Its number.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")
"""Names under which files are written before they are renamed."""


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

    def inside(self, name):
        """Return the store of a subdirectory, which need not exist."""
        other = copy(self)
        other.url = f"{self.url.rstrip('/')}/{name}"
        other._root = f"{self._root.rstrip('/')}/{name}"
        return other

    def names(self):
        """Return the names of the files there are, sorted."""
        return [name for name in self._all_names() if not name.startswith(".")]

    def read(self, name):
        """Return the bytes of a name."""
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name, data):
        """Write bytes under a name, which has them all or, should anything fail, what it had."""
        with self._written(name, data) as temporary:
            if self._local:
                os.replace(temporary, f"{self._root}/{name}")
            else:
                self._files.mv(temporary, f"{self._root}/{name}")

    def create(self, name, data):
        """Write bytes under a name that there is not yet.

        Raises
        ------
        FileExistsError
            If there is one.

        Notes
        -----
        Of two processes that create a name at once, one succeeds on a local disk, and on file
        systems that open files with mode ``"xb"``. On others the name is looked up first, between
        which and the writing another process may create it.
        """
        path = f"{self._root}/{name}"
        if self._local:
            with self._written(name, data) as temporary:
                try:
                    # The file is never there without its content.
                    os.link(temporary, path)
                    self._discard(temporary)
                    return
                except FileExistsError:
                    raise
                except OSError:
                    # This file system knows no second name of a file.
                    self._discard(temporary)
        self._files.makedirs(self._root, exist_ok=True)
        self._files.invalidate_cache()
        if self._files.exists(path):
            raise FileExistsError(path)
        try:
            with self._files.open(path, "xb") as file:
                file.write(data)
        except (NotImplementedError, ValueError, TypeError, AttributeError):
            self._files.pipe_file(path, data)

    def take(self, name, is_expected):
        """Remove a name if its content is what a function accepts.

        On a local disk, one of several processes that take a name succeeds.
        """
        path = f"{self._root}/{name}"
        if not self._local:
            if is_expected(self.read(name)):
                self.remove(name)
            return
        moved = self._temporary(name)
        os.rename(path, moved)
        try:
            with open(moved, "rb") as file:
                expected = is_expected(file.read())
            if not expected:
                # Another process was faster, and this is its file.
                with suppress(FileExistsError):
                    os.link(moved, path)
        finally:
            self._discard(moved)

    def remove(self, name):
        """Remove a name that is there."""
        self._files.rm_file(f"{self._root}/{name}")

    def tidy(self, is_own):
        """Remove what writers that were killed left half-written.

        Parameters
        ----------
        is_own : callable
            Tells whether a name is one of those that are written here. Files of other names,
            and what is left of them, are not touched.
        """
        for name in self._all_names():
            match = TEMPORARY.fullmatch(name)
            if match and is_own(match[1]):
                self._discard(f"{self._root}/{name}")

    @property
    def _local(self):
        return isinstance(self._files, LocalFileSystem)

    def _all_names(self):
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        paths = [each["name"] for each in found if each["type"] == "file"]
        return sorted(path.rsplit("/", 1)[-1] for path in paths)

    def _temporary(self, name):
        return f"{self._root}/.{name}.{uuid4().hex}"

    @contextmanager
    def _written(self, name, data):
        """Write bytes under a temporary name, which is removed should anything fail."""
        temporary = self._temporary(name)
        self._files.makedirs(self._root, exist_ok=True)
        try:
            with self._files.open(temporary, "wb") as file:
                file.write(data)
                if self._local:
                    # Renamed files may be empty after a power cut otherwise.
                    file.flush()
                    os.fsync(file.fileno())
            yield temporary
        except BaseException:
            self._discard(temporary)
            raise

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
