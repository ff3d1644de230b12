"""Estimators work in processes that were forked after they were used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sk_easytensor._utils.runtime import ForkSafeLock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_processes_do_not_hang():
    # With threads of its own number, which the other tests reduce to one.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    script = Path(__file__).with_name("in_forks.py")
    ran = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=500
    )
    assert ran.stdout.splitlines() == [
        f"{name} is right" for name in ("predicted", "explained", "fitted", "locks", "settings")
    ], ran.stderr[-5000:]


def test_locks_are_reentrant_and_kept_by_the_thread_that_holds_them():
    lock = ForkSafeLock()
    with lock:
        before = lock._lock
        lock.renew()
        assert lock._lock is before
        with lock:
            pass
