"""Atomic writing of files, lock files, temporary directories, and directories behind URLs."""

from __future__ import annotations

import hashlib
import json
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
from weakref import WeakValueDictionary

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = [
    "LOCK",
    "DirectoryStore",
    "Lock",
    "check_store",
    "is_alive",
    "is_running",
    "make_temporary_directory",
    "name_directory",
    "open_store",
    "remove_directory",
    "remove_left_behind",
    "remove_temporary_directory",
    "started_at",
    "write_atomically",
]


def write_atomically(path, data, owner):
    """Write a file atomically: under a temporary name that is then renamed.

    Parameters
    ----------
    path : str or path-like
        Path of the file, whose directory must exist.
    data : bytes or str
        Content; strings are encoded as UTF-8.
    owner : str
        Name of the function that writes, for error messages.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        If the directory does not exist.
    OSError
        If the file cannot be written; an existing file is unchanged then.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{owner}: directory {str(path.parent)!r} does not exist")
    if isinstance(data, str):
        data = data.encode("utf-8", errors="backslashreplace")
    DirectoryStore(path.parent).write(path.name, data)
    return path


MIN_AGE_SECONDS = 3600.0
"""Seconds since the last change of an abandoned directory after which it may be removed."""

NAME = re.compile(r"sk_easytensor-(?:[a-z]+)-([0-9a-f]{8})-(\d{1,10})-\w+")
"""Names of temporary directories: purpose, machine, id of the process, and a random suffix."""


def make_temporary_directory(purpose):
    """Create a temporary directory, and remove old ones of processes that have ended.

    Parameters
    ----------
    purpose : str
        Part of the name, in lower-case letters.

    Returns
    -------
    str
        Path of the directory, for :func:`remove_temporary_directory`.
    """
    _remove_once(os.getpid())
    prefix = f"sk_easytensor-{purpose}-{this_machine()}-{os.getpid()}-"
    return tempfile.mkdtemp(prefix=prefix)


def name_directory(url, purpose):
    """Return a new directory in another one, and remove those of killed processes of this machine.

    Parameters
    ----------
    url : str
        Absolute path or URL, which other machines may use too.
    purpose : str
        Part of the name, in lower-case letters.

    Returns
    -------
    str
        Path or URL, which does not exist yet, for :func:`remove_directory`.
    """
    with suppress(Exception):
        files, root = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        for path in files.ls(root, detail=False):
            match = NAME.fullmatch(path.rstrip("/").rpartition("/")[2])
            if match and match[1] == this_boot() and not is_running(int(match[2])):
                with suppress(Exception):
                    files.rm(path, recursive=True)
    return f"{url.rstrip('/')}/sk_easytensor-{purpose}-{this_boot()}-{os.getpid()}-{uuid4().hex}"


@cache
def this_boot():
    """Return a digest that identifies the machine since it was started, and its process ids.

    Machines that share a directory may have the same host name; of what an earlier start left,
    the ids of the processes say nothing. Without such a number of the system it is random, so that
    nothing is removed.
    """
    try:
        number = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        number = uuid4().hex
    return hashlib.sha256(f"{this_machine()} {number}".encode()).hexdigest()[:8]


def remove_temporary_directory(path):
    """Remove a temporary directory if this process created it, not a process it was forked from.

    Parameters
    ----------
    path : str or Path
        Path from :func:`make_temporary_directory`.
    """
    match = NAME.fullmatch(os.path.basename(path))
    if match is not None and int(match[2]) == os.getpid():
        shutil.rmtree(path, ignore_errors=True)


def remove_left_behind(folder=None):
    """Remove the temporary directories of processes that were killed.

    A directory is removed only if its name matches the library's pattern, it belongs to this user,
    it has not changed for an hour, and its process ran on this machine and has ended. Symbolic
    links are not followed.

    Parameters
    ----------
    folder : str or None, default=None
        Parent of the directories; by default the system's folder of temporary files.
    """
    # Other platforms have no owner of a directory, or are open to symbolic link attacks.
    if not (hasattr(os, "getuid") and shutil.rmtree.avoids_symlink_attacks):
        return
    try:
        with os.scandir(tempfile.gettempdir() if folder is None else folder) as entries:
            abandoned = [entry.path for entry in entries if _is_left_behind(entry)]
    except OSError:
        return
    for path in abandoned:
        shutil.rmtree(path, ignore_errors=True)


def _is_left_behind(entry):
    match = NAME.fullmatch(entry.name)
    if match is None or match[1] != this_machine():
        return False
    try:
        status = entry.stat(follow_symlinks=False)
        return (
            entry.is_dir(follow_symlinks=False)
            and status.st_uid == os.getuid()
            and time.time() - status.st_mtime > MIN_AGE_SECONDS
            and not is_running(int(match[2]))
        )
    except OSError:
        return False


@cache
def _remove_once(process):
    remove_left_behind()


@cache
def this_machine():
    """Return a digest that identifies the host and the namespace of process ids."""
    try:
        # Containers that share a directory may have the same host name.
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def is_running(process):
    """Return whether a process of this machine exists; POSIX only.

    Parameters
    ----------
    process : int
        Id of the process.

    Returns
    -------
    bool
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove_directory(url):
    """Remove a directory with all files, if it exists and the file system allows it.

    Parameters
    ----------
    url : str
        Path or URL.
    """
    # fsspec's file systems raise errors of their own, and may not be installed.
    with suppress(Exception):
        files, root = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        files.rm(root, recursive=True)


TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")
"""Temporary names of files that are written and then renamed."""


class DirectoryStore:
    """Files of a directory on any file system that fsspec supports.

    Parameters
    ----------
    url : str or os.PathLike
        Path, or URL such as ``s3://bucket/fits/7`` or ``memory://fit``.
    """

    def __init__(self, url):
        self.url = os.fspath(url)
        self._files, self._root = fsspec.core.url_to_fs(self.url)

    def inside(self, name):
        """Return the store of a subdirectory, which need not exist yet."""
        other = copy(self)
        other.url = f"{self.url.rstrip('/')}/{name}"
        other._root = f"{self._root.rstrip('/')}/{name}"
        return other

    def names(self):
        """Return the sorted names of the files, without hidden ones."""
        return [name for name in self._all_names() if not name.startswith(".")]

    def read(self, name):
        """Return the content of a file."""
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name, data):
        """Write a file atomically; if it fails, an existing file is unchanged.

        Parameters
        ----------
        name : str
            Name of the file.
        data : bytes or list of bytes
            Content, or parts of it that are written one after another.
        """
        with self._written(name, data) as temporary:
            if self._local:
                os.replace(temporary, f"{self._root}/{name}")
            else:
                self._files.mv(temporary, f"{self._root}/{name}")

    def create(self, name, data):
        """Write a file that does not exist yet.

        Raises
        ------
        FileExistsError
            If the file exists.

        Notes
        -----
        If two processes create a file at once, exactly one succeeds on a local disk and on file
        systems that support mode ``"xb"``. On others the existence is checked before the file is
        written, and another process may create it in between.
        """
        path = f"{self._root}/{name}"
        if self._local:
            with self._written(name, data) as temporary:
                try:
                    # A hard link, so that the file never exists without its content.
                    os.link(temporary, path)
                    self._discard(temporary)
                    return
                except FileExistsError:
                    raise
                except OSError:
                    # This file system has no hard links.
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

    def remove_if(self, name, is_expected):
        """Remove a file if a function returns True for its content.

        On a local disk, exactly one of several processes that remove a file at once succeeds.

        Parameters
        ----------
        name : str
            Name of the file.
        is_expected : callable
            Function of the content, as bytes.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
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
                # Another process has replaced the file, which is restored.
                with suppress(FileExistsError):
                    os.link(moved, path)
        finally:
            self._discard(moved)

    def remove(self, name):
        """Remove an existing file."""
        self._files.rm_file(f"{self._root}/{name}")

    def remove_temporary(self, is_own):
        """Remove the temporary files of writers that were killed.

        Parameters
        ----------
        is_own : callable
            Function that returns whether a name is one of those written here. Temporary files of
            other names are not removed.
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
            entries = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        paths = [entry["name"] for entry in entries if entry["type"] == "file"]
        return sorted(path.rsplit("/", 1)[-1] for path in paths)

    def _temporary(self, name):
        return f"{self._root}/.{name}.{uuid4().hex}"

    @contextmanager
    def _written(self, name, data):
        """Write content under a temporary name, which is removed if the context fails."""
        temporary = self._temporary(name)
        self._files.makedirs(self._root, exist_ok=True)
        try:
            with self._files.open(temporary, "wb") as file:
                for part in data if isinstance(data, list) else [data]:
                    file.write(part)
                if self._local:
                    # Otherwise renamed files may be empty after a power failure.
                    file.flush()
                    os.fsync(file.fileno())
            yield temporary
        except BaseException:
            self._discard(temporary)
            raise

    def _discard(self, path):
        # A temporary file that cannot be removed is harmless, because it is never read.
        with suppress(OSError):
            self._files.rm_file(path)


def check_store(location, owner):
    """Raise ``ValueError`` unless checkpoints can be stored at a location."""
    if location is None or hasattr(location, "names"):
        return
    if not isinstance(location, (str, os.PathLike)) or not os.fspath(location):
        raise ValueError(
            f"{owner}: checkpoint_dir must be a path, a URL such as 's3://bucket/fit' or None, got "
            f"{location!r}"
        )
    try:
        fsspec.core.url_to_fs(os.fspath(location))
    except (ValueError, ImportError) as error:
        raise ValueError(f"{owner}: checkpoint_dir {location!r} cannot be used: {error}") from error


def open_store(location):
    """Return the store of a path or URL, or `location` itself if it is a store."""
    return location if hasattr(location, "names") else DirectoryStore(location)


LOCK = "fit.lock"
"""Name of the lock file."""

ATTEMPTS = 10
"""Attempts to create the lock file, which other processes may create and remove in between."""

_held = WeakValueDictionary()
"""Locks held by this process, by token."""


class Lock:
    """File that identifies the process that writes to a directory.

    Parameters
    ----------
    store : DirectoryStore
        Directory to lock.
    owner : str
        Class name of the estimator, for error messages.
    other : str, default="another fit writes checkpoints"
        What the owner of the lock does, for error messages.

    Notes
    -----
    The file holds host, id and start time of the process. If that process ran on this host and has
    ended, for whatever reason, the file is replaced. The state of a process on another host is
    unknown, and the error names the file to remove. Releasing the lock in a forked child has no
    effect.
    """

    def __init__(self, store, owner, other="another fit writes checkpoints"):
        self.store = store
        self.owner = owner
        self.other = other
        self.token = uuid4().hex
        self.process = os.getpid()

    def acquire(self):
        """Create the lock file.

        Raises
        ------
        RuntimeError
            If another fit writes to the directory. The message names directory, host and process.
        OSError
            If the directory is not writable.
        """
        content = {
            "host": socket.gethostname(),
            "pid": self.process,
            "started": started_at(self.process),
            "token": self.token,
        }
        _held[self.token] = self
        try:
            for attempt in reversed(range(ATTEMPTS)):
                try:
                    self.store.create(LOCK, json.dumps(content).encode())
                    return
                except FileExistsError:
                    if not attempt:
                        raise
                    self._take_over()
        except BaseException:
            _held.pop(self.token, None)
            raise

    def release(self):
        """Remove the lock file, if this lock still owns it."""
        if self.process != os.getpid():
            return
        _held.pop(self.token, None)
        with suppress(OSError):
            if self._read().get("token") == self.token:
                self.store.remove(LOCK)

    def _take_over(self):
        """Remove the file of a process that has ended, or raise ``RuntimeError``."""
        try:
            content = self._read()
        except FileNotFoundError:
            return
        if not is_abandoned(content):
            process = "a process that the file does not name"
            if content:
                process = f"process {content['pid']} on host {content['host']!r}"
            raise RuntimeError(
                f"{self.owner}: {self.other} to {self.store.url}: {process}. Wait until it has "
                "ended, or use another directory (the checkpoint_dir of a fit). If it has ended, "
                f"remove the file {LOCK} in that directory"
            )
        with suppress(FileNotFoundError):
            self.store.remove_if(LOCK, lambda data: parse_lock(data) == content)

    def _read(self):
        return parse_lock(self.store.read(LOCK))


def parse_lock(data):
    """Return the content of a lock file as a dictionary, empty if the file is corrupt."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    complete = isinstance(content, dict) and {"host", "pid", "started", "token"} <= set(content)
    return content if complete and isinstance(content["pid"], int) else {}


def is_abandoned(content):
    """Return whether the process that wrote a lock has ended or released it; False if unknown."""
    if not content or content["host"] != socket.gethostname():
        return False
    if content["pid"] == os.getpid() and content["started"] == started_at(os.getpid()):
        # An interrupt may occur between the creation of a lock and the code that releases it.
        return content["token"] not in _held
    return not is_alive(content["pid"], content["started"])


def is_alive(process, started=None):
    """Return whether a process of this machine is running.

    Parameters
    ----------
    process : int
        Id of the process.
    started : str or None, default=None
        Start time from :func:`started_at`, because ids are reused; None accepts any.

    Returns
    -------
    bool
        True if it is unknown.
    """
    if os.name != "posix":
        return True
    if not is_running(process):
        return False
    now = _status(process)
    if now is None:
        return True
    state, begun = now
    return state not in "ZX" and started in (None, begun)


def started_at(process):
    """Return the start time of a process in clock ticks since boot; None if unknown."""
    now = _status(process)
    return None if now is None else now[1]


def _status(process):
    """Return state and start time of a process, or None if unknown."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
