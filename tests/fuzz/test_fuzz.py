"""A few cases of the fuzzer: no table is answered wrongly or refused without naming anything."""

import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fuzz import misbehaving
from fuzz.cases import build
from fuzz.checks import Run
from fuzz.containers import Unbuildable
from fuzz.outcomes import classify
from fuzz.runner import Counts, Pool
from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor.data.tables import column_labels

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
    done = fuzz("--cases", 120)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = done.stdout.strip().splitlines()[-1].split()
    assert counts[0] == "all"
    assert sum(map(int, counts[1:])) == 120
    assert int(counts[1]) >= 48, "too few cases are taken for the fuzzer to say much"
    for kind in ("two towers", "embedder", "parquet"):
        row = next(line for line in done.stdout.splitlines() if line.startswith(kind))
        ok, refused = map(int, row[16:].split()[:2])
        assert ok >= refused, f"too few cases of {kind} are taken: {row}"


def test_crashes_and_hangs_are_counted():
    counts = Counts()
    Pool(1, 1.0, 0.0, counts.add, work=misbehaving.work, patience=60).run(range(6))
    assert counts.total("ok") == 4
    assert [seeds for (outcome, _), seeds in counts.faults.items()] == [[2], [4]]
    assert [outcome for outcome, _ in counts.faults] == ["crash", "hang"]


class Raising(list):
    """A table that raises an error as soon as it is read."""

    def __init__(self, error):
        super().__init__([[1.0]])
        self.error = error

    def __len__(self):
        raise self.error


@pytest.mark.parametrize(
    ("X", "y", "outcome"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, [1.0, 2.0], "refused"),
        ({"a": [1.0, 2.0]}, [1.0], "refused"),
        (Raising(KeyError("a")), [1.0], "unnamed"),
        (Raising(ValueError("column 'a'")), [1.0], "unnamed"),
    ],
)
def test_errors_are_sorted(X, y, outcome):
    """Those of the library that name something are in order, those of others are not."""
    with pytest.raises((ValueError, KeyError)) as caught:
        EasyTensorRegressor(max_epochs=1).fit(X, y)
    assert classify(caught.value, ["a", "b"]) == outcome


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """The seed of a case of a classifier whose rows are in pandas and in other tables."""
    for seed in range(1000):
        with suppress(Unbuildable):
            case = build(seed, tmp_path_factory.mktemp("fuzz"))
            X = case.new.get("new")
            kinds = {type(X) for X in case.new.values()}
            plain = case.kind == "plain tables" and isinstance(case.model, EasyTensorClassifier)
            if plain and isinstance(X, pd.DataFrame) and len(kinds) > 2 and X.shape[1] > 1:
                return seed
    raise AssertionError


CALLS = count()


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        ("not finite", lambda found, X: found * np.nan),
        ("some rows", lambda found, X: found + len(found)),
        ("permuted rows", lambda found, X: found + np.arange(len(found))[:, None]),
        ("reordered", lambda found, X: found + (column_labels(X)[0] == "c0")),
        ("alike table", lambda found, X: found + isinstance(X, pd.DataFrame)),
        ("pickle", lambda found, X: found + next(CALLS)),
        ("changed X", lambda found, X: found + (X.__setitem__("further", 1) or 0)),
    ],
)
def test_wrong_predictions_are_found(monkeypatch, seed, wrong, change):
    original = EasyTensorClassifier.predict_proba
    monkeypatch.setattr(
        EasyTensorClassifier,
        "predict_proba",
        lambda self, X, margin=None: change(original(self, X), X),
    )
    result = Run(seed, "").result()
    assert result.outcome == "wrong", result.details
    assert wrong in result.signature
