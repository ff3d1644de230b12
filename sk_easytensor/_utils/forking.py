"""Forked processes: threads of the parent are gone, and so are those that held its locks.

Thread pools of OpenMP and of onnxruntime wait for ever when they are used in a process that was
forked after the parent used them. Libraries that have such pools do not repair them.
"""

from __future__ import annotations

import os
from threading import RLock
from weakref import WeakSet

__all__ = [
    "ForkSafeLock",
    "after_fork",
    "generation",
    "is_forked",
]


_CALLBACKS = []
_GENERATION = 0
_LOCKS = WeakSet()


def generation():
    """Return how many forks lie between this process and the one that imported the library."""
    return _GENERATION


def is_forked():
    """Return whether this process was forked from one that had imported the library."""
    return _GENERATION > 0


def after_fork(callback):
    """Have a function called, without arguments, in each process that is forked from this one.

    Parameters
    ----------
    callback : callable
        It is kept as long as the process lives.

    Returns
    -------
    callable
        The same.
    """
    _CALLBACKS.append(callback)
    return callback


class ForkSafeLock:
    """A reentrant lock, free in a forked process unless the thread that forked holds it.

    Examples
    --------
    >>> lock = ForkSafeLock()
    >>> with lock, lock:
    ...     pass
    """

    def __init__(self):
        self._lock = RLock()
        _LOCKS.add(self)

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()

    def renew(self):
        """Replace the lock if a thread holds it that is not there any more."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = RLock()


def _in_child():
    global _GENERATION
    _GENERATION += 1
    for lock in list(_LOCKS):
        lock.renew()
    for callback in _CALLBACKS:
        callback()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
