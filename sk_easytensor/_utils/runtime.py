"""Contexts for torch's global settings, threads and random numbers; locks of forked processes."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import RLock, local
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from joblib import effective_n_jobs

from sk_easytensor._utils.masking import mask_error

if TYPE_CHECKING:
    from sk_easytensor._utils.typing import Method

__all__ = [
    "ForkSafeLock",
    "after_fork",
    "generation",
    "is_forked",
    "library_settings",
    "limited_threads",
    "resolve_threads",
    "seeded",
    "with_library_settings",
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


CPU = torch.device("cpu")
AUTOCAST = ("cpu", "cuda")


class ProcessSettings:
    """Process-wide settings of torch: set by the first thread that enters, restored by the last."""

    def __init__(self):
        self.depth = 0
        self._lock = ForkSafeLock()
        self._before = None
        self._own = local()
        after_fork(self._in_child)

    def __enter__(self):
        with self._lock:
            self._own.depth = getattr(self._own, "depth", 0) + 1
            self.depth += 1
            if self.depth == 1:
                deterministic = (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                )
                self._before = torch.get_default_dtype(), deterministic
                torch.set_default_dtype(torch.float32)
                if deterministic[0]:
                    # Some operators have no deterministic algorithm on some devices.
                    torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *error):
        with self._lock:
            self._own.depth -= 1
            self.depth -= 1
            if self.depth == 0:
                self._restore()

    def _restore(self):
        dtype, (deterministic, warn_only) = self._before
        torch.set_default_dtype(dtype)
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=warn_only)

    def _in_child(self):
        # In the child only the forking thread exists, which has to restore the settings.
        before, self.depth = self.depth, getattr(self._own, "depth", 0)
        if before and not self.depth:
            self._restore()


PROCESS = ProcessSettings()


@contextmanager
def library_settings():
    """Set torch's global settings to those of the library within the context.

    New tensors are float32 and on the CPU by default, gradients are recorded, and autocast is off.
    An operator without a deterministic algorithm warns instead of raising an error.

    Examples
    --------
    >>> with torch.device("meta"), torch.inference_mode(), library_settings():
    ...     torch.ones(1).device.type, torch.is_grad_enabled()
    ('cpu', True)
    """
    with ExitStack() as stack:
        stack.enter_context(PROCESS)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if not torch.empty(()).is_cpu:
            stack.enter_context(CPU)
        if any(map(torch.is_autocast_enabled, AUTOCAST)):
            stack.enter_context(without_autocast())
        yield


@contextmanager
def without_autocast():
    """Suspend the autocast contexts of this thread within the context.

    Torch empties the cache of cast weights only when the outermost autocast context ends, so
    training within another context would use the weights of the first step in all steps.
    """
    enabled = {kind: torch.is_autocast_enabled(kind) for kind in AUTOCAST}
    nested = torch.autocast_increment_nesting()
    for _ in range(nested):
        torch.autocast_decrement_nesting()
    for kind in AUTOCAST:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in AUTOCAST:
            torch.set_autocast_enabled(kind, enabled[kind])
        for _ in range(nested - 1):
            torch.autocast_increment_nesting()


def resolve_threads(n_jobs):
    """Return the number of threads to use.

    Parameters
    ----------
    n_jobs : int or None
        Number of jobs as in scikit-learn: None means 1 unless in a joblib context, -1 means all
        cores. The limits of joblib's workers apply.

    Returns
    -------
    int
        At least 1. Always 1 in a forked process, where thread pools of the parent would block.
    """
    if is_forked():
        return 1
    threads = max(1, effective_n_jobs(n_jobs))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads


@contextmanager
def limited_threads(n_jobs):
    """Set the number of torch's threads to that of `n_jobs` within the context."""
    before = torch.get_num_threads()
    threads = resolve_threads(n_jobs)
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_library_settings(function: Method) -> Method:
    """Decorate a function to run within :func:`library_settings` and a limit of threads.

    Torch uses at most ``n_jobs`` threads, if the first argument has this attribute, and one thread
    in a forked process. Passwords of URLs are masked in errors.
    """

    @wraps(function)
    def within(*args, **kwargs):
        before = threads = torch.get_num_threads()
        if before > 1:
            if is_forked():
                threads = 1
            elif args and hasattr(args[0], "n_jobs"):
                threads = min(before, resolve_threads(args[0].n_jobs))
        # Entering the context takes several microseconds and is rarely necessary.
        call = function if already_set() else within_settings
        if threads != before:
            torch.set_num_threads(threads)
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            mask_error(error)
            raise
        finally:
            if threads != before:
                torch.set_num_threads(before)

    def within_settings(*args, **kwargs):
        with library_settings():
            return function(*args, **kwargs)

    return within


def already_set():
    """Return whether the settings are those of the library, and no thread will restore others."""
    # Querying the default device takes ten times as long as creating a tensor on it.
    tensor = torch.empty(())
    return (
        PROCESS.depth == 0
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and not tensor.is_inference()
        and torch.is_grad_enabled()
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )


@contextmanager
def without_autologging():
    """Turn off MLflow's autologging within the context, for models inside a fit such as trees."""
    autologging = sys.modules.get("mlflow.utils.autologging_utils")
    # MLflow's context manager enables autologging at its end, even if it was disabled before.
    if autologging is None or getattr(autologging, "_AUTOLOGGING_GLOBALLY_DISABLED", False):
        yield
        return
    with autologging.disable_autologging():
        yield


LOCK = ForkSafeLock()


@contextmanager
def seeded(seed):
    """Seed torch's global generators within the context and restore them after it.

    Dropout and initial weights use generators that all threads share, so only one thread at a time
    can be in the context.

    Parameters
    ----------
    seed : int
        Seed of the generators.

    Examples
    --------
    >>> with seeded(0):
    ...     first = torch.rand(1)
    >>> with seeded(0):
    ...     first == torch.rand(1)
    tensor([True])
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with LOCK, torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
