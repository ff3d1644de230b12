"""Lock files, so that only one fit at a time writes to a checkpoint directory."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from uuid import uuid4
from weakref import WeakValueDictionary

from sk_easytensor._utils.storage import is_running

__all__ = [
    "LOCK",
    "Lock",
    "is_alive",
    "started_at",
]


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

    Notes
    -----
    The file holds host, id and start time of the process. If that process ran on this host and has
    ended, for whatever reason, the file is replaced. The state of a process on another host is
    unknown, and the error names the file to remove. Releasing the lock in a forked child has no
    effect.
    """

    def __init__(self, store, owner):
        self.store = store
        self.owner = owner
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
                f"{self.owner}: another fit writes checkpoints to {self.store.url}: {process}. "
                "Wait until it has ended, or set another checkpoint_dir. If it has ended, remove "
                f"the file {LOCK} in that directory"
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
