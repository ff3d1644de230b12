"""Torch's global settings and random numbers while the library computes."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import local

import torch
from joblib import effective_n_jobs

from sk_easytensor._utils.forking import ForkSafeLock, after_fork, is_forked
from sk_easytensor._utils.masking import mask_error

__all__ = [
    "library_settings",
    "limited_threads",
    "resolve_threads",
    "seeded",
    "with_library_settings",
]


CPU = torch.device("cpu")
AUTOCAST = ("cpu", "cuda")


class ProcessSettings:
    """Settings that all threads share: set by the first that needs them, restored by the last."""

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
                    # Not every operator has such an algorithm on every device.
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
        # Only the thread that forked is left to restore the settings.
        before, self.depth = self.depth, getattr(self._own, "depth", 0)
        if before and not self.depth:
            self._restore()


PROCESS = ProcessSettings()


@contextmanager
def library_settings():
    """Have torch's global settings be the ones that the library needs, and restore them.

    Tensors are float32 and on the processor unless the code says otherwise, gradients are
    recorded and nothing is cast automatically. An operator without a deterministic algorithm warns
    instead of raising an error.

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
    """Leave the autocast contexts that are open in this thread, and enter them again at the end.

    Torch empties the cache of cast weights when the outermost of nested contexts ends: steps of
    training within another context would go on with the weights of the first step.
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
    """Return how many threads to use.

    Parameters
    ----------
    n_jobs : int or None
        As in scikit-learn: None means one unless in a joblib context that says otherwise, -1
        means all cores. Limits that joblib puts on its workers are respected.

    Returns
    -------
    int
        1 in a forked process, where pools of threads are those of the parent and wait for ever.
    """
    if is_forked():
        return 1
    threads = max(1, effective_n_jobs(n_jobs))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads


@contextmanager
def limited_threads(n_jobs):
    """Bound torch's threads within the context and restore them after it."""
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


def with_library_settings(function):
    """Have a function compute within :func:`library_settings`, with as many threads as it may use.

    Torch uses at most the threads of the first argument's ``n_jobs``, if it has one, and a single
    thread in a forked process. Errors name no password of a URL.
    """

    @wraps(function)
    def within(*args, **kwargs):
        before = threads = torch.get_num_threads()
        if before > 1:
            if is_forked():
                threads = 1
            elif args and hasattr(args[0], "n_jobs"):
                threads = min(before, resolve_threads(args[0].n_jobs))
        # Contexts cost several microseconds, and hardly any program needs this one.
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
    """Return whether the settings are the library's, and no thread is about to restore others."""
    # Asking for the default device takes ten times as long as making a tensor on it.
    found = torch.empty(())
    return (
        PROCESS.depth == 0
        and found.dtype is torch.float32
        and found.is_cpu
        and not found.is_inference()
        and torch.is_grad_enabled()
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )


@contextmanager
def without_autologging():
    """Keep MLflow's autologging from recording what a fit uses inside, such as the trees."""
    autologging = sys.modules.get("mlflow.utils.autologging_utils")
    # MLflow's context manager enables autologging at its end, whatever it was before.
    if autologging is None or getattr(autologging, "_AUTOLOGGING_GLOBALLY_DISABLED", False):
        yield
        return
    with autologging.disable_autologging():
        yield


LOCK = ForkSafeLock()


@contextmanager
def seeded(seed):
    """Seed torch's global generators within the context and restore them after it.

    Dropout and initial weights draw from generators that all threads share, so that only one
    thread at a time may be in such a context.

    Parameters
    ----------
    seed : int
        What to seed with.

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
