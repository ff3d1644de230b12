"""Random numbers that depend on a seed only, and leave no trace."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from sk_easytensor.forking import ForkSafeLock

__all__ = ["seeded"]

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
