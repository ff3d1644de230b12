"""The example with Ray Tune, Ray Serve and Ray Jobs runs as it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_tune_serve_and_jobs():
    pytest.importorskip("ray.serve")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "ray_cluster.py"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.search(r"best rate: 0.00\d+, validation loss 0.[23]\d+", result.stdout)
    assert re.search(r"probability of a recommendation, served: 0\.\d+", result.stdout)
    assert "the job has succeeded" in result.stdout
    assert re.search(r"validation loss of the job: 0.[23]\d+", result.stdout)
