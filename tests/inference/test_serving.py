"""The service of an exported model, in a process in which torch cannot be imported."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_easytensor import (
    MLP,
    BoostedTrees,
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EasyTensorClassifier,
    EventSequenceBlock,
    NumericBlock,
    TextBlock,
    VectorBlock,
)

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

# One process of pytest-xdist has the service.
pytestmark = pytest.mark.xdist_group("service")

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("serving", ROOT / "benchmarks" / "serving.py")
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "sklearn", "skorch", "skops"}:
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def served(rows, target, tmp_path_factory):
    """A model and a client of its service."""
    blocks = [
        ("numbers", NumericBlock(), ["amount", "flag"]),
        ("cities", CategoryBlock(), ["city", "code"]),
        ("users", CategoryBlock(hash_buckets=8), ["user"]),
        ("days", DatetimeBlock(), ["day"]),
        ("texts", TextBlock(min_frequency=2), ["title"]),
        ("vectors", VectorBlock(), ["vector"]),
        (
            "clicks",
            CategorySequenceBlock("mean", aggregates=False, pooling="mean", width=8),
            ["clicks"],
        ),
        (
            "events",
            EventSequenceBlock("mean", aggregates=False, pooling="mean", width=8),
            ["events"],
        ),
    ]
    quick = {
        "trees": BoostedTrees(max_iter=10),
        "max_epochs": 2,
        "n_folds": None,
        "random_state": 0,
    }
    model = EasyTensorClassifier(blocks, trunk=MLP(width=8), remainder="drop", **quick)
    model.fit(rows, np.where(target > np.median(target), "yes", "no"))
    folder = tmp_path_factory.mktemp("serve")
    (folder / "sitecustomize.py").write_text(REFUSE, encoding="utf-8")
    path = model.to_onnx(folder / "model.onnx")
    options = ["--port", "0", "--header-seconds", "1", "--body-seconds", "1"]
    command = [sys.executable, "-m", "sk_easytensor.serving", str(path), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            line = server.stdout.readline()
            assert "serving" in line, "the service did not start"
            with httpx.Client(base_url=line.split()[-1], timeout=60) as client:
                client.process = server
                yield model, client
        finally:
            server.terminate()


COLUMNS = ["amount", "flag", "city", "code", "user", "day", "title", "vector", "clicks", "events"]


def as_json(X):
    """Return the rows of a data frame as what JSON has."""
    return json.loads(X[COLUMNS].to_json(orient="records", date_format="iso", date_unit="us"))


def test_probes_and_the_model(served):
    _, client = served
    assert client.get("/health").raise_for_status().json() == {"status": "ok"}
    assert client.get("/ready").raise_for_status().json() == {"status": "ready"}
    found = client.get("/model").raise_for_status().json()
    assert found["estimator"] == "EasyTensorClassifier"
    assert found["classes"] == ["no", "yes"]
    assert found["outputs"] == ["label", "probabilities"]


def test_rows_are_answered_as_the_model_does(served, rows):
    model, client = served
    X = rows[:20]
    found = client.post("/predict", json=as_json(X)).raise_for_status().json()
    assert sorted(found) == ["label", "probabilities"]
    assert found["label"] == model.predict(X).tolist()
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(X), atol=1e-5)


def test_a_row_alone_and_categories_of_any_type(served, rows):
    model, client = served
    row = as_json(rows[3:4])[0]
    expected = model.predict_proba(rows[3:4])
    for code in (row["code"], str(row["code"]), float(row["code"])):
        found = client.post("/predict", json={**row, "code": code, "extra": 1}).json()
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


def test_rows_of_nulls_are_answered(served, rows):
    model, client = served
    row = dict.fromkeys(as_json(rows[:1])[0])
    found = client.post("/predict", json=row).raise_for_status().json()
    expected = model.predict_proba([dict.fromkeys(rows.columns)])
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "status", "message"),
    [
        ("amount", "abc", 422, "must be a number"),
        ("city", ["Oslo"], 422, "must be a string, a number or a boolean"),
        ("day", "yesterday", 422, "ISO 8601"),
        ("day", 20, 422, "ISO 8601"),
        ("title", 5, 422, "valid string"),
        ("vector", [1.0, 2.0], 422, "at least 3 items"),
        ("clicks", "a", 422, "valid list"),
        ("clicks", [["a"]], 422, "must be a string, a number or a boolean"),
        ("events", [{"what": "x", "at": None}], 422, "Field required"),
        ("events", [{"what": "x", "at": {}, "due": None}], 422, "ISO 8601"),
        ("events", [{"what": "x", "at": 2**63, "due": None}], 422, "64 bits"),
        ("events", [{"what": 2**63, "at": None, "due": None}], 422, "64 bits"),
    ],
)
def test_bad_rows_are_refused_by_column(served, rows, column, value, status, message):
    _, client = served
    good = as_json(rows[:2])
    response = client.post("/predict", json=[good[0], {**good[1], column: value}])
    assert response.status_code == status, response.text
    (error,) = response.json()["detail"]
    assert error["loc"][:4] == ["body", "rows", 1, column]
    assert message in error["msg"]


def test_missing_columns_and_empty_requests_are_refused(served, rows):
    _, client = served
    row = as_json(rows[:1])[0]
    del row["city"]
    response = client.post("/predict", json=row)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "row", "city"]
    assert client.post("/predict", json=[]).status_code == 422
    assert client.post("/predict", content="{", headers=JSON).status_code == 422


JSON = {"Content-Type": "application/json"}


def test_what_only_the_model_can_tell_is_refused_by_column(served, rows):
    _, client = served
    row = as_json(rows[:1])[0]
    events = [{"what": "x", "at": "2021-01-01T00:00:00+01:00", "due": "2021-01-01T00:00:00"}, None]
    mixed = {**row, "events": [events[0], {**events[0], "at": 7}]}
    response = client.post("/predict", json=mixed)
    assert response.status_code == 400
    assert "events" in response.json()["detail"]


def test_requests_at_a_time_get_their_own_answers(served, rows):
    model, client = served
    bodies, expected = as_json(rows), model.predict_proba(rows)
    bad = {**bodies[0], "day": "9999-99-99"}

    def send(index):
        return client.post("/predict", json=bad if index % 5 == 4 else bodies[index])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, range(60)))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 422] * 12
    found = [answer.json()["probabilities"][0] for answer in answers if answer.status_code == 200]
    good = [index for index in range(60) if index % 5 != 4]
    np.testing.assert_allclose(found, expected[good], atol=1e-5)


def test_times_are_read_as_the_model_reads_them(served, rows):
    model, client = served
    row = as_json(rows[:1])[0]
    for day in ("2021-06-01", "2021-06-01T12:30:00.5", "0002-03-01T00:00:00"):
        found = client.post("/predict", json={**row, "day": day}).raise_for_status().json()
        X = rows[:1].assign(day=pd.Series([day]))
        np.testing.assert_allclose(found["probabilities"], model.predict_proba(X), atol=1e-5)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes().map(str)
    | st.sampled_from(["\ud800", "0001-01-01T00:00:00+05:00", "2021-W01-1", "9999-12-31T24:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(column=st.sampled_from(COLUMNS), value=VALUES)
def test_no_value_is_an_error_of_the_server(served, rows, column, value):
    _, client = served
    body = json.dumps({**as_json(rows[:1])[0], column: value})
    response = client.post("/predict", content=body, headers=JSON)
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code == 200:
        assert sorted(response.json()) == ["label", "probabilities"]
    else:
        assert isinstance(response.json()["detail"], str | list)


def test_load(served, rows):
    """Good clients get their predictions while others misbehave, and memory stays bounded."""
    model, client = served
    X = rows[:60]
    expected = {"label": model.predict(X).tolist(), "probabilities": model.predict_proba(X)}
    before = memory(client.process)
    load = BENCHMARK.Load(client.base_url.port, as_json(X), expected, seconds=2.5).run(60)
    assert load.failed == []
    assert len(load.seconds) >= 48
    statuses = {kind: set() for kind, _ in load.statuses}
    for kind, status in load.statuses:
        statuses[kind].add(status)
    assert statuses["good"] == {200}
    assert statuses["invalid"] == {422}
    # Who is still sending when the connection ends may miss the answer.
    assert {413} <= statuses["oversize"] <= {413, "closed"}
    assert statuses["slow body"] == {408}
    assert statuses["slow head"] == {"closed"}
    assert memory(client.process) - before < 400_000  # A body has 150 MB.


def memory(process):
    """Return the most KiB that a process has had, 0 where Linux does not say."""
    found = BENCHMARK.peak_memory(process)
    return 0 if found == "unknown" else int(found.split()[0])
