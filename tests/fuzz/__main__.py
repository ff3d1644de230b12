"""Command line of the fuzzer: see ``python -m tests.fuzz --help``."""

import argparse
import os
import sys
import time
import traceback

from .outcomes import FAULTS
from .runner import Counts, Pool, run_one


def main():
    """Run cases and print what came of them; the exit status says whether there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a step may take")
    parser.add_argument("--onnx", type=float, default=0.0, help="share of cases that are exported")
    parser.add_argument(
        "--seed", type=int, nargs="+", help="replay cases in this process and print them"
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    given = parser.parse_args()
    if given.seed is not None:
        return max([replay(seed, given.onnx) for seed in given.seed])
    start = time.monotonic()

    def progress(counts, seed, result):
        if given.quiet:
            return
        if result.outcome in FAULTS and counts.is_new(result):
            last = result.details.strip().splitlines()[-1:]
            print(f"seed {seed}: {result.outcome}, {result.signature}\n   ", *last, flush=True)
        if counts.n % 500 == 0:
            faults = sum(map(counts.total, FAULTS))
            rate = counts.n / (time.monotonic() - start)
            print(f"{counts.n} cases, {faults} faults, {rate:.1f} a second", flush=True)

    counts = Counts(progress)
    pool = Pool(given.jobs, given.limit, given.onnx, counts.add)
    try:
        pool.run(range(given.first, given.first + given.cases))
    except KeyboardInterrupt:
        # What is known so far is of use; processes end with this one.
        print(f"{counts.table()}\n\n{counts.fault_list(details=True)}", flush=True)
        os._exit(130)
    print(counts.table())
    if counts.n != given.cases:
        print(f"only {counts.n} of {given.cases} cases were run", file=sys.stderr)
        return 1
    if counts.faults:
        print(f"\n{counts.fault_list(details=True)}")
        print("\nReplay one with: python -m tests.fuzz --seed SEED --onnx 1")
    return int(bool(counts.faults))


def replay(seed, onnx):
    """Run one case and print what it is made of, its steps and its error."""
    import numpy as np

    def say(step):
        print(f"... {step}", flush=True)

    result, run = run_one(seed, onnx, say)
    if run.case is not None:
        print(f"seed {seed}: {run.case.kind}, {run.case.model}")
        for note in run.case.notes:
            print(f"  {note}")
        with np.printoptions(threshold=20):
            for name, value in {**run.case.fit, **run.case.new}.items():
                show(name, value)
    print(f"{result.outcome}: {result.signature}\n{result.details}")
    return int(result.outcome in FAULTS)


def show(name, value):
    """Print a table, or what there is to say of one that cannot be printed."""
    try:
        text = str(value)[:1000]
    except BaseException:
        text = traceback.format_exc(limit=1)[-300:]
    kind = f"{type(value).__module__}.{type(value).__name__}"
    print(f"--- {name}: {kind}\n{text.encode(errors='backslashreplace').decode()}")


if __name__ == "__main__":
    sys.exit(main())
