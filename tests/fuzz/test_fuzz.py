"""A few cases of the fuzzer: no table is answered wrongly or refused without naming anything."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def fuzz(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--quiet", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_cases():
    done = fuzz("--cases", 200)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = done.stdout.strip().splitlines()[-1].split()
    assert counts[0] == "all"
    assert sum(map(int, counts[1:])) == 200
    assert int(counts[1]) >= 80, "too few cases are taken for the fuzzer to say much"


def test_replay():
    done = fuzz("--seed", 0)
    assert "seed 0: " in done.stdout
    assert "... fit" in done.stdout
