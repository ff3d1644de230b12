"""Locks and callbacks for forked processes, in which the threads of the parent do not exist.

Locks held by other threads of the parent are never released in the child. Thread pools of OpenMP
and onnxruntime block forever if the parent used them before the fork, and these libraries do not
repair them.
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
    """Return the number of forks since the process that imported the library."""
    return _GENERATION


def is_forked():
    """Return whether this process was forked after the library was imported."""
    return _GENERATION > 0


def after_fork(callback):
    """Register a function that is called in each process that is forked from this one.

    Parameters
    ----------
    callback : callable
        Function without arguments; it cannot be unregistered.

    Returns
    -------
    callable
        `callback`, so that the function can be used as a decorator.
    """
    _CALLBACKS.append(callback)
    return callback


class ForkSafeLock:
    """Reentrant lock that is free in a forked process unless the forking thread holds it.

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
        """Replace the lock if it is held by a thread that does not exist in this process."""
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
