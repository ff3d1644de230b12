"""Directories that one fit at a time writes to."""

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
"""Name of the file."""

ATTEMPTS = 10
"""Other processes may create and remove the file in between."""

_held = WeakValueDictionary()
"""Locks that this process holds, by token."""


class Lock:
    """A file that says which process writes to a directory.

    Parameters
    ----------
    store : DirectoryStore
        The directory.
    owner : str
        Name of the estimator, for errors.

    Notes
    -----
    The file holds host, number and starting time of the process. It is taken over if the process
    was of this host and has ended, however it did. Of a process of another host nobody can know
    from here, and the error says which file to remove. A lock that is released in a forked child
    stays that of the parent.
    """

    def __init__(self, store, owner):
        self.store = store
        self.owner = owner
        self.token = uuid4().hex
        self.process = os.getpid()

    def acquire(self):
        """Create the file.

        Raises
        ------
        RuntimeError
            Naming directory, host and process, if another fit writes to the directory.
        OSError
            If the directory cannot be written to.
        """
        about = {
            "host": socket.gethostname(),
            "pid": self.process,
            "started": started_at(self.process),
            "token": self.token,
        }
        _held[self.token] = self
        try:
            for attempt in reversed(range(ATTEMPTS)):
                try:
                    self.store.create(LOCK, json.dumps(about).encode())
                    return
                except FileExistsError:
                    if not attempt:
                        raise
                    self._take_over()
        except BaseException:
            _held.pop(self.token, None)
            raise

    def release(self):
        """Remove the file, if it is still this lock's."""
        if self.process != os.getpid():
            return
        _held.pop(self.token, None)
        with suppress(OSError):
            if self._read().get("token") == self.token:
                self.store.remove(LOCK)

    def _take_over(self):
        """Remove the file of a process that has ended; refuse that of one that has not."""
        try:
            found = self._read()
        except FileNotFoundError:
            return
        if not is_abandoned(found):
            who = "a process that the file does not name"
            if found:
                who = f"process {found['pid']} on host {found['host']!r}"
            raise RuntimeError(
                f"{self.owner}: another fit writes checkpoints to {self.store.url}: {who}. Wait "
                f"until it has ended, or set another checkpoint_dir. If it has ended, remove the "
                f"file {LOCK} in that directory"
            )
        with suppress(FileNotFoundError):
            self.store.take(LOCK, lambda data: described(data) == found)

    def _read(self):
        return described(self.store.read(LOCK))


def described(data):
    """Return what a lock's file says of the process; nothing if it is corrupt."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    complete = isinstance(found, dict) and {"host", "pid", "started", "token"} <= set(found)
    return found if complete and isinstance(found["pid"], int) else {}


def is_abandoned(found):
    """Return whether the process that wrote a lock can be known to have ended or left it."""
    if not found or found["host"] != socket.gethostname():
        return False
    if found["pid"] == os.getpid() and found["started"] == started_at(os.getpid()):
        # An interrupt may come between a lock's creation and the code that releases it.
        return found["token"] not in _held
    return not is_alive(found["pid"], found["started"])


def is_alive(process, started=None):
    """Return whether a process of this machine goes on.

    Parameters
    ----------
    process : int
        Its number.
    started : str or None
        What :func:`started_at` returned of it: numbers are used again.

    Returns
    -------
    bool
        True if it cannot be known.
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
    """Return when a process started, as Linux counts it; None if it cannot be known."""
    now = _status(process)
    return None if now is None else now[1]


def _status(process):
    """Return state and starting time of a process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
