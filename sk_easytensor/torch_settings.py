"""Torch's global settings while the library computes, whatever a program has set them to."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import Lock

import torch

__all__ = ["library_settings", "with_library_settings"]

CPU = torch.device("cpu")
AUTOCAST = ("cpu", "cuda")


class ProcessSettings:
    """Settings that all threads share: set by the first that needs them, restored by the last."""

    def __init__(self):
        self.depth = 0
        self._lock = Lock()
        self._before = None

    def __enter__(self):
        with self._lock:
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
            self.depth -= 1
            if self.depth == 0:
                dtype, (deterministic, warn_only) = self._before
                torch.set_default_dtype(dtype)
                if deterministic:
                    torch.use_deterministic_algorithms(True, warn_only=warn_only)


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


def with_library_settings(function):
    """Have a function compute within :func:`library_settings`."""

    @wraps(function)
    def within(*args, **kwargs):
        # A context costs several microseconds, and hardly any program needs it.
        if already_set():
            return function(*args, **kwargs)
        with library_settings():
            return function(*args, **kwargs)

    return within


def already_set():
    """Tell whether the settings are the library's, and no thread is about to restore others."""
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
