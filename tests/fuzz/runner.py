"""Worker processes that run cases, so that a crash or a hang is one more outcome."""

import faulthandler
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections import Counter

from .outcomes import FAULTS, OUTCOMES, Result

CHUNK = 200
"""Seeds that a process is given at once."""


def run_one(seed, onnx=0.0, say=lambda step: None):
    """Run a case in this process.

    Returns
    -------
    Result
    Run
    """
    from .checks import Run

    folder = tempfile.mkdtemp(prefix="fuzz-")
    try:
        run = Run(seed, folder, onnx, say)
        return run.result(), run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def work(connection, seeds, onnx, log):
    """Run cases and say before each step which it is: the body of a process."""
    import torch

    # Processes that crash write where they were to a file; what polars panics of is known anyway.
    file = open(log, "w")  # noqa: SIM115
    os.dup2(file.fileno(), sys.stderr.fileno())
    faulthandler.enable(file)
    torch.set_num_threads(1)
    for seed in seeds:
        kind = ""

        def say(step, seed=seed):
            connection.send((seed, step, None))

        try:
            result, run = run_one(seed, onnx, say)
            kind = run.case.kind if run.case else ""
        except Exception as error:
            import traceback

            details = traceback.format_exc()
            line = traceback.extract_tb(error.__traceback__)[-1]
            name = f"fuzzer: {type(error).__name__} at {line.name}:{line.lineno}"
            result = Result("wrong", kind, name, details)
        connection.send((seed, "done", result))
    connection.close()


class Pool:
    """Runs cases in processes of their own.

    Parameters
    ----------
    jobs : int
        Processes at once.
    seconds : float
        What a case may take.
    onnx : float
        Share of cases that are exported.
    report : callable
        Given each seed and its result.
    work : callable, default=work
        The body of a process.
    patience : float, default=120
        Seconds that a process may take to import the library.
    """

    def __init__(self, jobs, seconds, onnx, report, work=work, patience=120):
        self.jobs, self.seconds, self.onnx, self.report = jobs, seconds, onnx, report
        self.work, self.patience = work, patience
        self.context = multiprocessing.get_context("spawn")
        self.lock = threading.Lock()

    def run(self, seeds):
        chunks = queue.SimpleQueue()
        seeds = list(seeds)
        size = max(1, min(CHUNK, -(-len(seeds) // self.jobs)))
        for start in range(0, len(seeds), size):
            chunks.put(seeds[start : start + size])
        threads = [threading.Thread(target=self.serve, args=(chunks,)) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def serve(self, chunks):
        while True:
            try:
                left = chunks.get_nowait()
            except queue.Empty:
                return
            while left:
                left = self.run_process(left)

    def run_process(self, seeds):
        """Run cases in one process until all are done or one has ended it; return the others."""
        here, there = self.context.Pipe(duplex=False)
        log = tempfile.NamedTemporaryFile(prefix="fuzz-", suffix=".log", delete=False)  # noqa: SIM115
        log.close()
        arguments = (there, seeds, self.onnx, log.name)
        process = self.context.Process(target=self.work, args=arguments, daemon=True)
        process.start()
        there.close()
        left, step, first = list(seeds), "start", True
        try:
            while left:
                # The first case waits for imports.
                if not here.poll(self.seconds + (self.patience if first else 0)):
                    result = Result(
                        "hang", "", f"hang in {step}", f"no end within {self.seconds} s"
                    )
                    break
                try:
                    seed, step, result = here.recv()
                except (EOFError, OSError):
                    process.join()
                    details = read(log.name)
                    name = f"exit code {process.exitcode} in {step}"
                    result = Result("crash", "", name, details)
                    break
                first = False
                if result is not None:
                    self.done(seed, result)
                    left.remove(seed)
            else:
                return []
        finally:
            process.kill()
            process.join()
            here.close()
            os.unlink(log.name)
        if step == "build":
            result = Result("unbuildable", "unbuildable", result.signature)
        self.done(left[0], result)
        return left[1:]

    def done(self, seed, result):
        with self.lock:
            self.report(seed, result)


def read(path):
    with open(path, errors="replace") as file:
        return file.read()[-4000:]


class Counts:
    """Outcomes by kind of input, and faults by what is at fault."""

    def __init__(self, progress=None):
        self.outcomes, self.faults, self.examples = {}, {}, {}
        self.progress, self.n = progress, 0

    def add(self, seed, result):
        self.n += 1
        self.outcomes.setdefault(result.kind or "?", Counter())[result.outcome] += 1
        if result.outcome in FAULTS:
            key = (result.outcome, result.signature)
            self.faults.setdefault(key, []).append(seed)
            self.examples.setdefault(key, result.details)
        if self.progress is not None:
            self.progress(self, seed, result)

    def is_new(self, result):
        """Tell whether the fault of the latest result is the first of its signature."""
        return len(self.faults[result.outcome, result.signature]) == 1

    def total(self, outcome):
        return sum(counter[outcome] for counter in self.outcomes.values())

    def table(self):
        """Return a table of kinds of input and outcomes."""
        lines = [f"{'':16}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES)]
        for kind in sorted(self.outcomes):
            row = "".join(f"{self.outcomes[kind][outcome]:>12}" for outcome in OUTCOMES)
            lines.append(f"{kind:16}{row}")
        lines.append(f"{'all':16}" + "".join(f"{self.total(outcome):>12}" for outcome in OUTCOMES))
        return "\n".join(lines)

    def fault_list(self, details=False):
        """Return each fault once, the most frequent first, with seeds that replay it."""
        lines = []
        order = sorted(self.faults, key=lambda key: (FAULTS.index(key[0]), -len(self.faults[key])))
        for outcome, name in order:
            seeds = self.faults[outcome, name]
            lines.append(f"{outcome:8} {len(seeds):5} x {name}  seeds {sorted(seeds)[:6]}")
            if details:
                last = self.examples[outcome, name].strip().splitlines()[-1:] or [""]
                lines.append(f"    {last[0][:300]}")
        return "\n".join(lines)
