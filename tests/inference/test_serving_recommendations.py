"""The service of a stored recommender, in a process in which torch cannot be imported."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sk_easytensor import CategoryBlock, DatetimeBlock, EasyTensorTwoTower, NumericBlock
from sk_easytensor.retrieval import Recommender

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

# One process of pytest-xdist has the services.
pytestmark = pytest.mark.xdist_group("service")

ROOT = Path(__file__).parents[2]
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "sklearn", "pandas", "scipy"}:
            raise ModuleNotFoundError(f"{name} is not to be imported", name=name)

sys.meta_path.insert(0, Refuse())
"""
N_USERS, N_ITEMS = 30, 12


@pytest.fixture(scope="module")
def tables():
    random = np.random.default_rng(0)
    users = pd.DataFrame({"user": [f"u{row}" for row in range(N_USERS)]})
    users["age"] = random.integers(20, 60, N_USERS)
    users["since"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(N_USERS), "D")
    items = pd.DataFrame({"item": np.arange(N_ITEMS), "kind": random.choice(["a", "b"], N_ITEMS)})
    items["price"] = np.arange(N_ITEMS) * 2.0
    pairs = users.iloc[random.integers(0, N_USERS, 300)].reset_index(drop=True)
    return pairs.assign(item=random.integers(0, N_ITEMS, 300)), users, items


def fit(tables, seed=0):
    X, _, items = tables
    users = [
        ("user", CategoryBlock(), "user"),
        ("age", NumericBlock(), "age"),
        ("since", DatetimeBlock(), "since"),
    ]
    kinds = [("kind", CategoryBlock(width=4), "kind"), ("price", NumericBlock(), "price")]
    model = EasyTensorTwoTower(users, kinds, embedding_dim=8, max_epochs=1, random_state=seed)
    return model.fit(X, items=items, item_key="item", user_key="user")


@pytest.fixture(scope="module")
def served(tables, tmp_path_factory):
    """A model, its directory, and a client of the service."""
    model, folder = fit(tables), tmp_path_factory.mktemp("service")
    model.save_recommender(folder / "stored")
    (folder / "sitecustomize.py").write_text(REFUSE, encoding="utf-8")
    command = [sys.executable, "-m", "sk_easytensor.serving", str(folder / "stored"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            line = server.stdout.readline()
            assert "serving" in line, "the service did not start"
            with httpx.Client(base_url=line.split()[-1], timeout=60) as client:
                yield model, folder / "stored", client
        finally:
            server.terminate()


def rows(frame):
    return json.loads(frame.to_json(orient="records", date_format="iso"))


def results(client, route, body, status=200):
    response = client.post(route, json=body)
    assert response.status_code == status, response.text
    return response.json()["results"] if status == 200 else response.json()["detail"]


def same(found, expected):
    keys, scores = expected
    assert [row["keys"] for row in found] == [
        [key for key in row if key is not None] for row in keys.tolist()
    ]
    for row, products in zip(found, scores, strict=True):
        np.testing.assert_allclose(
            row["scores"], products[np.isfinite(products)], rtol=1e-4, atol=1e-5
        )


def test_items_are_recommended(served, tables):
    model, _, client = served
    _, users, _ = tables
    for frame in (users, users[["user"]], users.assign(user="new")):
        body = {"users": rows(frame), "k": 4}
        same(results(client, "/recommend", body), model.recommend(frame, k=4))
    seen = {"users": [{"user": "u3"}], "k": 50, "exclude": "seen"}
    same(
        results(client, "/recommend", seen),
        model.recommend({"user": ["u3"]}, k=50, exclude="seen"),
    )
    ages = [row["age"] for row in rows(users)]
    assert all(isinstance(age, int) for age in ages)


def test_users_are_ranked_for_new_items(served):
    model, _, client = served
    item = {"item": 77, "kind": "a", "price": 3.5}
    for body in ({"items": [item]}, {"items": [{key: item[key] for key in ("kind", "price")}]}):
        same(results(client, "/rank_users", body), model.rank_users([item]))
    same(results(client, "/rank_users", {"items": [{"item": 3}]}), model.rank_users({"item": [3]}))
    same(
        results(client, "/similar_items", {"items": [{"item": 3}], "k": 2}),
        model.similar_items({"item": [3]}, k=2),
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"price": {"<": 6}}, {0, 1, 2}),
        ({"price": {">=": 6, "<=": 8}}, {3, 4}),
        ({"price": [2.0, 10.0]}, {1, 5}),
        ({"item": {"in": [4, 5]}}, {4, 5}),
        ({"price": 4.0}, {2}),
        ({"price": {"!=": 4.0, "<": 5}}, {0, 1}),
        ({}, set(range(N_ITEMS))),
    ],
)
def test_conditions_are_json(served, where, expected):
    _, _, client = served
    body = {"users": [{"user": "u1"}], "k": 50, "where": where}
    assert {*results(client, "/recommend", body)[0]["keys"]} == expected


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/recommend", {"users": [{"user": "nobody"}]}, 400, "'nobody' in row 0"),
        ("/recommend", {"users": [{"user": "u1", "age": "old", "since": None}]}, 422, "age"),
        ("/recommend", {"users": [{"user": "u1"}, {"age": 3, "since": None}]}, 422, "same columns"),
        ("/recommend", {"users": []}, 422, "at least 1 item"),
        ("/recommend", {"users": [{"user": "u1"}], "k": 0}, 422, "greater than or equal to 1"),
        ("/recommend", {"users": [{"user": "u1"}], "top": 3}, 422, "Extra inputs"),
        ("/recommend", {"users": [{"user": "u1"}], "where": {"cost": 3}}, 400, "the columns"),
        ("/recommend", {"users": [{"user": "u1"}], "where": {"price": {"~": 3}}}, 422, "price"),
        ("/recommend", {"users": [{"user": "u1"}], "exclude": "all"}, 422, "'seen'"),
        ("/similar_items", {"items": [{"item": 3}], "diversity": 0.5}, 422, "Extra inputs"),
        ("/recommend", {"users": [{"user": [1]}]}, 422, "key must be a string"),
        ("/recommend", {"users": [{"user": "u1"}] * 30, "k": 10_000}, 422, "at most 200000"),
        (
            "/recommend",
            {"users": [{"user": "u1"}] * 30, "k": 1_000, "diversity": 0.1},
            422,
            "at most 20000",
        ),
        (
            "/recommend",
            {"users": [{"user": "u1"}], "where": dict.fromkeys(map(str, range(20_000)), 1)},
            422,
            "at most 100 items",
        ),
        (
            "/recommend",
            {"users": [{"user": "u1"}], "where": {"a": [[]] * 1_000}},
            422,
            "errors",
        ),
        ("/rank_users", {"items": [{"kind": "a"}]}, 422, "price"),
        ("/rank_users", {"users": [{"user": "u1"}]}, 422, "items"),
    ],
)
def test_bad_requests_say_why(served, route, body, status, message):
    _, _, client = served
    assert message in json.dumps(results(client, route, body, status))


def test_requests_at_once_get_what_they_get_alone(served):
    _, _, client = served
    bodies = [
        {"users": [{"user": f"u{n % N_USERS}"}], "k": 1 + n % 5, "diversity": (n % 3) / 4}
        for n in range(60)
    ]
    bodies[7] = {"users": [{"user": "nobody"}]}

    def status_and_keys(body):
        response = client.post("/recommend", json=body)
        return response.status_code, [row["keys"] for row in response.json().get("results", [])]

    alone = [status_and_keys(body) for body in bodies]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(status_and_keys, bodies)) == alone
    assert [status for status, _ in alone].count(200) == 59
    text = client.get("/metrics").text
    assert 'sk_easytensor_requests_total{route="/recommend",status="200"}' in text


def test_probes_and_the_document(served):
    _, _, client = served
    assert client.get("/ready").json() == {"status": "ready"}
    described = client.get("/model").json()
    assert described["users"]["stored"] == N_USERS
    assert described["items"]["columns"] == ["kind", "price"]
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"recommend_request", "rank_users_request", "similar_items_request"} <= {*schemas}
    assert "users" in schemas["recommend_request"]["properties"]
    assert client.post("/predict", json={}).status_code == 404


def test_a_new_version_replaces_the_old_one(served, tables):
    model, path, client = served
    before = client.get("/model").json()["version"]
    other = fit(tables, seed=1)
    with ThreadPoolExecutor(1) as pool:
        requests = pool.submit(
            lambda: [client.post("/recommend", json={"users": [{"user": "u1"}]}) for _ in range(50)]
        )
        version = other.save_recommender(path, dtype="int8")
        assert client.post("/refresh").json() == {"version": version}
        responses = requests.result()
    assert {response.status_code for response in responses} == {200}
    assert {response.json()["version"] for response in responses} <= {before, version}
    keys, scores = Recommender.load(path).recommend({"user": ["u1"]})
    body = {"users": [{"user": "u1"}]}
    same(results(client, "/recommend", body), (keys, scores))
    # A version that cannot be read leaves the present one.
    model.save_recommender(path)
    current = (path / "CURRENT").read_text(encoding="utf-8")
    (path / current / "recommender.json").unlink()
    response = client.post("/refresh")
    assert response.status_code == 500
    assert f"cannot be read, {version} stays: " in response.json()["detail"]
    assert client.get("/model").json()["version"] == version
    same(results(client, "/recommend", body), (keys, scores))
