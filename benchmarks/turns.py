"""Time functions by turns, so that a change of the machine's speed meets all of them alike."""

from __future__ import annotations

import statistics
import time


def time_by_turns(functions, repeats):
    """Call functions in turn, once without counting and then `repeats` times.

    Returns the wall seconds and the CPU seconds of each call, both as a dictionary of lists.
    """
    wall, cpu = ({name: [] for name in functions} for _ in range(2))
    for turn in range(1 + repeats):
        for name, function in functions.items():
            before = time.perf_counter(), time.process_time()
            function()
            if turn > 0:
                wall[name].append(time.perf_counter() - before[0])
                cpu[name].append(time.process_time() - before[1])
    return wall, cpu


def median_ratio(numerators, denominators):
    """Median over turns of one time over the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
