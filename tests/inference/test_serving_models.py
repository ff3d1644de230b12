"""What the service gives for every kind of model: what the estimator does."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from sk_easytensor.serving import make_app


def request_and_describe(path, rows):
    """Return the response of the service to rows, and what it says of its model."""
    with TestClient(make_app(path)) as client:
        response = client.post("/predict", json=rows)
        assert response.status_code == 200, response.text
        incomplete = client.post("/predict", json=[{**rows[0]}, {}])
        assert incomplete.status_code == 422
        missing = {error["loc"][3] for error in incomplete.json()["detail"]}
        assert missing == set(rows[0])
        alone = client.post("/predict", json=dict.fromkeys(rows[0]))
        assert alone.status_code == 200, alone.text
        return response.json(), client.get("/model").json()


def as_rows(X, columns):
    return json.loads(X[columns].to_json(orient="records", date_format="iso", date_unit="us"))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


USER, ITEM = ["user", "amount"], ["city", "body"]


@pytest.mark.parametrize("kind", ["pairs of classes", "pairs of numbers"])
def test_pairs(rows, exported, kind):
    model, path = exported(kind)
    X = rows[:30]
    found, about = request_and_describe(path, as_rows(X, USER + ITEM))
    assert about["estimator"] == "EasyTensorTwoTower"
    assert sorted(about["outputs"]) == sorted(found)
    assert_close(found["scores"], model.decision_function(X))
    if kind == "pairs of numbers":
        assert sorted(found) == ["predictions", "scores"]
        assert about["classes"] is None
        assert_close(found["predictions"], model.predict(X))
        return
    assert sorted(found) == ["label", "probabilities", "scores"]
    assert about["classes"] == ["hates", "likes"]
    assert found["label"] == model.predict(X).tolist()
    assert_close(found["probabilities"], model.predict_proba(X))


@pytest.mark.parametrize(("kind", "columns"), [("user tower", USER), ("item tower", ITEM)])
def test_one_tower_reads_its_own_columns(rows, exported, kind, columns):
    tower, path = exported(kind)
    found, about = request_and_describe(path, as_rows(rows[:30], columns))
    assert about["outputs"] == ["embedding"] == list(found)
    assert_close(found["embedding"], tower.transform(rows[:30]))


def test_embeddings_of_both_towers_give_the_scores(rows, exported):
    _, path = exported("pairs of numbers")
    X = rows[:30]
    pairs, _ = request_and_describe(path, as_rows(X, USER + ITEM))
    both = [
        request_and_describe(exported(kind)[1], as_rows(X, columns))[0]["embedding"]
        for kind, columns in (("user tower", USER), ("item tower", ITEM))
    ]
    products = np.sum(np.multiply(*both), axis=1)
    # Scores are products with a scale and an offset.
    assert_close(np.corrcoef(products, pairs["scores"])[0, 1], 1.0)


def test_tasks(rows, exported):
    model, path = exported("tasks")
    X = rows[:30]
    found, about = request_and_describe(path, as_rows(X, ["amount", "count"]))
    predicted, probabilities = model.predict(X), model.predict_proba(X)
    classes = {name: values.tolist() for name, values in model.classes_.items()}
    assert (about["estimator"], about["classes"]) == ("EasyTensorMultiTask", classes)
    assert about["outputs"] == list(found) == ["label", "probabilities", "predictions"]
    assert list(found["label"]) == list(found["probabilities"]) == list(probabilities)
    for name, values in found["probabilities"].items():
        assert_close(values, probabilities[name])
        assert found["label"][name] == predicted[name].tolist()
    assert list(found["predictions"]) == ["total"]
    assert_close(found["predictions"]["total"], predicted["total"])


def test_an_embedder_reads_lists_of_events(log, exported):
    model, path = exported("embedder")
    lists = model.collect(log)
    table = lists if isinstance(lists, pa.Table) else pa.table(pd.DataFrame(lists))
    table = table.select(["what", "price", "when"])
    rows = json.loads(json.dumps(table.to_pylist(), default=lambda moment: moment.isoformat()))
    found, about = request_and_describe(path, rows)
    assert about["outputs"] == ["embedding"] == list(found)
    assert_close(found["embedding"], model.transform(log))
