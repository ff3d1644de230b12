"""What the service bounds and refuses, with a server in a thread and a model made up."""

# What is not installed is found before the package is imported.
# ruff: noqa: E402

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from prometheus_client.parser import text_string_to_metric_families

from sk_easytensor.serving import Limits, app, limits, make_app, serve
from sk_easytensor.serving.__main__ import api_key
from sk_easytensor.serving.__main__ import main as command_line
from sk_easytensor.serving.app import Server, make_config
from sk_easytensor.serving.batching import (
    BATCH_BYTES,
    BATCH_ROWS,
    Batcher,
    InvalidRows,
    Metrics,
    batch_slices,
)
from sk_easytensor.serving.schema import InvalidRequest, RequestSchema, Rows

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}
ROW = {"size": 1.5, "city": "Oslo", "when": "2026-01-31"}
METADATA = {
    "estimator": "EasyTensorRegressor",
    "version": "0",
    "named": True,
    "sparse": None,
    "features": [{"name": name, "blocks": ["some"]} for name in ROW],
    "readers": [
        {"read": "number", "column": "size"},
        {"read": "category", "column": "city"},
        {"read": "time", "column": "when"},
    ],
    "outputs": {"predictions": "predictions"},
    "answer": {"kind": "numbers"},
}


class Model:
    """Predicts the size, when it may go on."""

    metadata_ = METADATA

    def __init__(self):
        self.runs = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.error = None

    def run(self, rows, *outputs):
        assert self.may_run.wait(20)
        self.runs.append(len(rows))
        if self.error is not None and any(row["city"] == "fail" for row in rows):
            raise self.error
        return [np.array([row["size"] or 0.0 for row in rows])]


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(app, "load", lambda path, **params: made)
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.1)
    yield made
    made.may_run.set()


class Running(httpx.Client):
    """A client of a server that runs in a thread."""

    server = port = None

    def send_bytes(self, data, wait=5.0):
        """Return what the server says to some bytes until it closes or `wait` is over."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            return until_closed(connection)

    def metric(self, name, **labels):
        """Return the value of a metric."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return next(
            (each.value for each in samples if (each.name, each.labels) == (name, labels)), 0
        )


def until_closed(connection):
    """Return what a server sends until it closes the connection."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionError:
        pass
    return found


@contextmanager
def running(api_key=None, **bounds):
    """Run the service of the made up model in a thread; give a client."""
    chosen = Limits(**bounds)
    server = Server(make_config(make_app("no file", limits=chosen, api_key=api_key), chosen), "")
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            with Running(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                client.server, client.port = server, port
                yield client
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition):
    """Wait until a condition holds."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it does not become true"
        time.sleep(0.005)


def head(*headers, path="/predict"):
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# ---------------------------------------------------------------------- bodies and rows


def test_large_bodies_are_refused_before_they_are_read(model):
    with running(max_body_bytes=1000) as client:
        found = client.send_bytes(head("Content-Length: 150000000"))
        assert found.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in found.lower()
        assert b"1000 bytes" in found
        chunk = b"100\r\n" + b" " * 256 + b"\r\n"
        found = client.send_bytes(head("Transfer-Encoding: chunked") + 10 * chunk)
        assert found.startswith(b"HTTP/1.1 413")
        assert client.post("/predict", content=b" " * 1001, headers=JSON).status_code == 413
        assert client.post("/predict", json=[ROW] * 3).json() == {"predictions": [1.5] * 3}
        assert client.send_bytes(head(f"Content-Length: {'9' * 5000}")).startswith(b"HTTP/1.1 4")


def test_bodies_in_memory_are_bounded_together(model):
    body = json.dumps([ROW] * 10).encode()
    with running(max_buffered_bytes=len(body) + 50) as client:
        model.may_run.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/predict", content=body, headers=JSON)
            wait_for(lambda: client.metric("sk_easytensor_requests_in_flight") == 2)
            wait_for(lambda: client.server.config.app.state.waiting == 1)
            second = client.post("/predict", content=body, headers=JSON)
            assert (second.status_code, second.headers["retry-after"]) == (503, "1")
            model.may_run.set()
            assert first.result().status_code == 200
        assert client.post("/predict", content=body, headers=JSON).status_code == 200


def test_too_many_rows_are_refused(model):
    with running(max_rows=3) as client:
        assert client.post("/predict", json=[ROW] * 3).status_code == 200
        response = client.post("/predict", content=b"[" + b"{}," * 3 + b"[", headers=JSON)
        assert response.status_code == 422
        response = client.post("/predict", json=[ROW] * 4)
        assert response.json()["detail"] == [
            {"type": "too_long", "loc": ["body", "rows"], "msg": "must have at most 3 rows"}
        ]
    assert model.runs == [1, 3]  # The first warms up.


ROW_BYTES = 100


@pytest.mark.parametrize("form", ["{}", "[{}]", "[{},{}]", " [ {} , {} ]", "[{},\n{},{},{}]"])
@pytest.mark.parametrize("text", ["Oslo", "Łódź😀", '\\"}],{'])
def test_rows_are_bounded_whatever_is_around_them(form, text):
    """However long the rows are, they are read as they are alone, or refused if too long."""
    schema = RequestSchema(METADATA, 10, ROW_BYTES)
    n_rows = form.count("{}")
    for extra in range(80):
        for ensure_ascii in (True, False):
            long = {**ROW, "city": text + "x" * extra}
            rows = [ROW] * (n_rows - 1) + [long]
            texts = [json.dumps(row, ensure_ascii=ensure_ascii) for row in rows]
            body = form.replace("{}", "%s") % tuple(texts)
            sizes = [len(each.encode()) for each in texts]
            if sizes[-1] <= ROW_BYTES:
                found = schema.read(body.encode())
                assert (found, found.sizes) == (rows, sizes)
                continue
            with pytest.raises(InvalidRequest) as failed:
                schema.read(body.encode())
            (error,) = failed.value.errors
            place = ["row"] if form == "{}" else ["rows", n_rows - 1]
            assert (error["type"], error["loc"]) == ("too_large", ["body", *place])


@pytest.mark.parametrize(
    "value", ["nul", "tru", "Infinit", '"\\u12', '"\\ud83d\\ude', "[1,", '{"a":', "1e", "-", "01"]
)
def test_invalid_json_is_told_from_rows_that_are_too_long(value):
    """Where the text ends, JSON is invalid; where only its part ends, the row may go on."""
    schema = RequestSchema(METADATA, 10, ROW_BYTES)
    for before in range(60, 160):
        start = '{"city": "' + "x" * before + '", "size": '
        kinds = []
        for behind in ("", " " * 300):
            with pytest.raises(InvalidRequest) as failed:
                schema.read((start + value + behind).encode())
            kinds.append(failed.value.errors[0]["type"])
        if len(start) + len(value) < ROW_BYTES:
            # Behind a comma or a colon, spaces are a part of the row.
            goes_on = value[-1] in ",:"
            assert kinds == ["json_invalid", "too_large" if goes_on else "json_invalid"]
        if len(start) > ROW_BYTES + 60:
            assert kinds == ["too_large"] * 2


def test_no_more_is_parsed_than_a_row_may_have(monkeypatch):
    schema = RequestSchema(METADATA, 10_000)
    seen = []
    decode = schema._decoder.raw_decode
    monkeypatch.setattr(
        schema._decoder, "raw_decode", lambda part, at: seen.append(len(part)) or decode(part, at)
    )
    for value in ['"' + "x" * 8_000_000 + '"', "[" + "1," * 4_000_000 + "1]"]:
        for form in ('{"city": %s}', '[{"city": %s}]'):
            with pytest.raises(InvalidRequest):
                schema.read((form % value).encode())
    assert len(seen) == 4
    assert max(seen) <= 1.3 * Limits().max_row_bytes
    schema.read(b"[" + b",".join([json.dumps(ROW).encode()] * 10_000) + b"]")


def test_rows_that_are_too_large_are_refused_over_http(model):
    with running(max_row_bytes=200) as client:
        response = client.post("/predict", json=[ROW, {**ROW, "city": "x" * 200}])
        assert response.status_code == 422
        (error,) = response.json()["detail"]
        assert error == {
            "type": "too_large",
            "loc": ["body", "rows", 1],
            "msg": "must have at most 200 bytes of JSON",
        }
        assert client.post("/predict", json=[ROW, ROW]).status_code == 200


def test_few_errors_and_none_of_the_input(model):
    secret = "hunter2" * 1000
    bad = {"size": secret, "city": [secret], "when": secret, secret: secret}
    with running() as client:
        response = client.post("/predict", json=[bad] * 100)
    assert response.status_code == 422
    errors = response.json()["detail"]
    assert len(errors) == 20
    assert all(sorted(error) == ["loc", "msg", "type"] for error in errors)
    assert "hunter2" not in response.text
    assert len(response.content) < 5000


def test_rows_are_not_parsed_behind_the_last_error(monkeypatch):
    schema = RequestSchema(METADATA, 100_000)
    decoded = []
    decode = schema._decode
    monkeypatch.setattr(schema, "_decode", lambda *args: decoded.append(1) or decode(*args))
    with pytest.raises(InvalidRequest):
        schema.read(b"[" + b"{}," * 13_000 + b"{}]")
    assert len(decoded) == 7  # Three errors each.


def test_one_error_of_a_list():
    events = {"read": "lists", "fields": [{"column": "many", "kind": "category"}]}
    features = [{"name": "many", "blocks": ["some"]}]
    schema = RequestSchema({**METADATA, "features": features, "readers": [events]}, 10)
    with pytest.raises(InvalidRequest) as failed:
        schema.read(json.dumps({"many": ["a", []] + [[]] * 1000}).encode())
    assert [error["loc"] for error in failed.value.errors] == [["body", "row", "many", 1]]


def test_validation_does_not_block_other_requests(model, monkeypatch):
    may_validate = threading.Event()
    read = RequestSchema.read
    monkeypatch.setattr(
        RequestSchema, "read", lambda self, body: may_validate.wait(20) and read(self, body)
    )
    with running() as client, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.post, "/predict", json=ROW)
        wait_for(lambda: client.server.config.app.state.waiting == 1)
        assert client.get("/health").status_code == 200
        may_validate.set()
        assert pending.result().status_code == 200


# ---------------------------------------------------------------------- hostile bodies


HOSTILE = {
    "empty": b"",
    "no rows": b"[]",
    "null": b"null",
    "text": b'"row"',
    "invalid UTF-8": b'{"city":"\xff"}',
    "UTF-16": json.dumps(ROW).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(ROW).encode(),
    "cut": json.dumps(ROW).encode()[:-1],
    "cut list": json.dumps([ROW]).encode()[:-1],
    "comma": json.dumps([ROW]).encode()[:-1] + b",]",
    "two": json.dumps(ROW).encode() * 2,
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep value": json.dumps(ROW).encode()[:-1] + b',"x":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "duplicate": json.dumps(ROW).encode()[:-1] + b',"city":"Rome"}',
    "duplicate within": json.dumps(ROW).encode()[:-1] + b',"x":[{"a":1,"a":2}]}',
    "NaN": json.dumps({**ROW, "size": float("nan")}).encode(),
    "Infinity": json.dumps({**ROW, "size": float("inf")}).encode(),
    "-Infinity": json.dumps({**ROW, "x": float("-inf")}).encode(),
    "overflow": json.dumps(ROW).encode().replace(b"1.5", b"1e999"),
    "overflow category": json.dumps(ROW).encode().replace(b'"Oslo"', b"1e999"),
    "number 2**63": json.dumps({**ROW, "size": 2**63}).encode(),
    "category 2**63": json.dumps({**ROW, "city": 2**63}).encode(),
    "category -2**63 - 1": json.dumps({**ROW, "city": -(2**63) - 1}).encode(),
    "category 2**64": json.dumps({**ROW, "city": 2**64}).encode(),
    "number of 400 digits": json.dumps({**ROW, "size": 10**400}).encode(),
    "number of 5000 digits": json.dumps(ROW).encode().replace(b"1.5", b"9" * 5000),
    "surrogate": json.dumps({**ROW, "city": "\ud800"}).encode(),
    "surrogate, upper case": json.dumps(ROW).encode().replace(b"Oslo", b"\\uDFFF"),
    "surrogate in a key": json.dumps({**ROW, "\ud800": 1}).encode(),
    "surrogate in an unread value": json.dumps({**ROW, "x": [{"a": "\ud800"}]}).encode(),
    "surrogate in a time": json.dumps({**ROW, "when": "\ud800"}).encode(),
    "raw surrogate": json.dumps(ROW).encode().replace(b"Oslo", b"\xed\xa0\x80"),
    "line break": json.dumps(ROW).encode().replace(b"Oslo", b"Os\nlo"),
}


@pytest.fixture(scope="module")
def service():
    """A service that several tests use."""
    with pytest.MonkeyPatch.context() as patch:
        made = Model()
        patch.setattr(app, "load", lambda path, **params: made)
        with running() as client:
            yield client


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_refused(service, body):
    response = service.post("/predict", content=body, headers=JSON)
    assert response.status_code == 422, response.text
    errors = response.json()["detail"]
    assert errors
    assert all(error["loc"][0] == "body" and error["msg"] for error in errors)
    assert len(response.content) < 500
    assert "Traceback" not in response.text
    assert ".py" not in response.text


@pytest.mark.parametrize(
    ("value", "column"), [({"city": 2**63}, "city"), ({"city": "\ud800"}, "city")]
)
def test_errors_name_the_column(service, value, column):
    body = json.dumps([ROW, {**ROW, **value}])
    errors = service.post("/predict", content=body, headers=JSON).json()["detail"]
    assert [error["loc"] for error in errors] == [["body", "rows", 1, column]]


def test_unusual_bodies_that_are_valid(service):
    surrogates = '{"size": 2, "city": "\\ud83d\\ude00 \\\\ud800", "when": null}'
    largest = json.dumps({**ROW, "city": 2**63 - 1, "x": 2**70, "y": [{"a": 1}, {"a": 2}]})
    for body in (surrogates, largest, f" [\n{largest} , {surrogates}\t] \r\n"):
        response = service.post("/predict", content=body, headers=JSON)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ('Application/JSON; charset="UTF-8"', 200),
        ("application/json; charset=latin-1", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
def test_content_types(service, kind, status):
    body = json.dumps(ROW)
    response = service.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status


def test_broken_http_is_refused(service):
    for data in (b"\x00\x01\x02\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10**6):
        assert service.send_bytes(data).startswith((b"HTTP/1.1 4", b""))
    assert service.get("/health").status_code == 200


def test_errors_of_the_model_do_not_appear(model, caplog):
    model.error = RuntimeError("/home/user/model.onnx gives NaN")
    with caplog.at_level(logging.CRITICAL), running() as client:
        response = client.post("/predict", json={**ROW, "city": "fail"})
        assert response.status_code == 500
        assert response.json() == {"detail": "the prediction failed"}
        model.error = ValueError("column 'city': " + "x" * 10_000)
        response = client.post("/predict", json={**ROW, "city": "fail"})
        assert response.status_code == 400
        assert response.json()["detail"].startswith("column 'city'")
        assert len(response.content) < 500
        model.error = ValueError("\ud800")
        assert client.post("/predict", json={**ROW, "city": "fail"}).status_code == 400
        assert client.post("/predict", json=ROW).status_code == 200


# ---------------------------------------------------------------------- slow and many clients


def test_slow_heads_are_closed(model):
    with running(header_seconds=0.2) as client:
        assert client.send_bytes(b"") == b""
        assert client.send_bytes(b"POST /predict HTTP/1.1\r\nHost: x\r\n") == b""
        with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
            # The second request of a connection as well as the first, and byte by byte.
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            with ThreadPoolExecutor(1) as pool:
                closed = pool.submit(until_closed, connection)
                while not closed.done():
                    with suppress(ConnectionError):
                        connection.sendall(b"G")
                    time.sleep(0.02)
        wait_for(lambda: not client.server.server_state.connections)


def test_slow_bodies_are_refused(model):
    with running(body_seconds=0.2) as client:
        found = client.send_bytes(head("Content-Length: 100") + b"[")
        assert found.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in found.lower()
        # One that leaves is forgotten.
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head("Content-Length: 100") + b"[")
        wait_for(lambda: client.metric("sk_easytensor_requests_in_flight") == 1)
        assert client.metric("sk_easytensor_requests_total", route="/predict", status="408") == 1
        assert client.post("/predict", json=ROW).status_code == 200


def test_responses_that_nobody_reads_are_dropped(model):
    model.run = lambda rows, *outputs: [np.array(["x" * 2**24] * len(rows), dtype=object)]
    with running(keep_alive_seconds=0.2) as client:
        body = json.dumps(ROW).encode()
        for last in ("Connection: close", "Connection: keep-alive"):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", client.port))
                connection.sendall(head(f"Content-Length: {len(body)}", last) + body)
                wait_for(lambda: client.server.server_state.connections)
                wait_for(lambda: not client.server.server_state.connections)


def test_open_connections_are_capped(model):
    with running(max_connections=4) as client:
        connections = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(3)]
        wait_for(lambda: len(client.server.server_state.connections) == 3)
        assert client.get("/health").status_code == 200  # Under the cap, and kept open.
        found = client.send_bytes(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 503")
        connections.pop().close()
        wait_for(lambda: len(client.server.server_state.connections) == 3)
        with httpx.Client(base_url=client.base_url) as other:
            assert other.get("/health").status_code == 200
        many = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(80)]
        wait_for(lambda: len(client.server.server_state.connections) <= 4 + 64)
        for connection in connections + many:
            connection.close()
        wait_for(lambda: len(client.server.server_state.connections) <= 1)
        assert client.get("/health").status_code == 200


def test_waiting_requests_are_bounded(model):
    with running(max_waiting=3) as client, ThreadPoolExecutor(3) as pool:
        model.may_run.clear()
        pending = [pool.submit(client.post, "/predict", json=ROW) for _ in range(3)]
        wait_for(lambda: client.server.config.app.state.waiting == 3)
        response = client.post("/predict", json=ROW)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert client.get("/health").status_code == 200
        model.may_run.set()
        assert [each.result().status_code for each in pending] == [200] * 3
        assert client.post("/predict", json=ROW).status_code == 200


def test_requests_have_a_time_limit(model):
    with running(request_seconds=0.2) as client:
        model.may_run.clear()
        responses = [client.post("/predict", json=ROW) for _ in range(2)]
        assert [each.status_code for each in responses] == [503, 503]
        assert responses[0].headers["retry-after"] == "1"
        model.may_run.set()
        assert client.post("/predict", json={**ROW, "size": 4.0}).json() == {"predictions": [4.0]}
    # The second of those that were late was never predicted.
    assert sum(model.runs) == 3


# ---------------------------------------------------------------------- batches


def test_one_request_that_fails_costs_few_runs_of_the_model(model):
    model.error = ValueError("no such city")
    requests = [Rows([{**ROW, "size": float(size)}], [60]) for size in range(64)]
    requests[37][0]["city"] = "fail"
    found = Batcher(model, Metrics()).responses(requests)
    assert isinstance(found[37], InvalidRows)
    others = [json.loads(each) for index, each in enumerate(found) if index != 37]
    sizes = [float(size) for size in range(64) if size != 37]
    assert others == [{"predictions": [size]} for size in sizes]
    assert len(model.runs) == 13


def test_the_model_runs_on_a_bounded_part_of_large_requests(model):
    rows = [{**ROW, "size": float(size)} for size in range(3000)]
    requests = [Rows(rows, [60] * 3000), Rows(rows[:5], [BATCH_BYTES] * 5), Rows(rows[:1], [60])]
    found = Batcher(model, Metrics()).responses(requests)
    sizes = [[row["size"] for row in each] for each in requests]
    assert [json.loads(each)["predictions"] for each in found] == sizes
    assert sum(model.runs) == 3006
    assert max(model.runs) <= BATCH_ROWS
    assert model.runs[-5:] == [1, 1, 1, 1, 1]


def test_batch_slices():
    half = BATCH_BYTES // 2
    assert batch_slices([3, 4]) == [slice(0, 2)]
    assert batch_slices([half, half, 1]) == [slice(0, 2), slice(2, 3)]
    assert batch_slices([3 * half, 1, 3 * half]) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert batch_slices([0] * (BATCH_ROWS + 1)) == [slice(0, BATCH_ROWS), slice(BATCH_ROWS, 1025)]


# ---------------------------------------------------------------------- keys, probes, metrics


def test_api_keys(model):
    with running(api_key=["first", "zweiter-schlüssel"]) as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        closed = ["/model", "/metrics", "/docs", "/openapi.json", "/health/", "/nothing"]
        for path in closed:
            response = client.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        wrong = ["", "Bearer", "Bearer second", "Basic first", "first", "Bearer firs"]
        for value in wrong:
            headers = {"Authorization": value}
            assert client.post("/predict", json=ROW, headers=headers).status_code == 401
        for value in ("Bearer first", "bearer first", "Bearer zweiter-schlüssel"):
            headers = {"Authorization": value.encode()}
            assert client.post("/predict", json=ROW, headers=headers).status_code == 200
        # Without a key, no body is read.
        found = client.send_bytes(head("Content-Length: 1000"))
        assert found.startswith(b"HTTP/1.1 401")


def test_keys_of_files_and_the_environment(tmp_path, monkeypatch, capsys):
    variable = "SK_EASYTENSOR_API_KEY"
    monkeypatch.delenv(variable, raising=False)
    assert api_key(None) is None
    monkeypatch.setenv(variable, "some")
    assert api_key(None) == "some"
    (tmp_path / "keys").write_text("one\ntwo\n\n")
    assert api_key(tmp_path / "keys") == ["one", "two"]
    # A key that is missing by mistake does not open the service.
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "words").write_text("two words\n")
    for name in ("empty", "words", "none"):
        arguments = ["--api-key-file", str(tmp_path / name)]
        with pytest.raises(SystemExit):
            command_line(["model.onnx", *arguments])
    monkeypatch.setenv(variable, "")
    with pytest.raises(SystemExit):
        command_line(["model.onnx"])
    assert variable in capsys.readouterr().err


@pytest.mark.parametrize("keys", ["", " ", "two words", [], ["good", ""], [b"bytes"]])
def test_keys_that_are_none_are_refused(model, keys):
    with pytest.raises(ValueError, match="api_key"):
        make_app("no file", api_key=keys)


def test_limits_are_checked():
    for name, value in [("max_rows", 0), ("max_rows", 1.5), ("body_seconds", 0)]:
        with pytest.raises(ValueError, match=name):
            Limits(**{name: value})
    assert Limits(drain_seconds=0).drain_seconds == 0


def test_metrics(model):
    with running() as client:
        client.post("/predict", json=[ROW] * 3)
        client.post("/predict", json={})
        for path in ("/x", "/y"):
            client.get(path)
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
        name = "sk_easytensor_requests_total"
        assert client.metric(name, route="/predict", status="200") == 1
        assert client.metric(name, route="/predict", status="422") == 1
        assert client.metric(name, route="other", status="404") == 2
        assert client.metric("sk_easytensor_request_seconds_count", route="/predict") == 2
        assert client.metric("sk_easytensor_predicted_rows_total") == 4
        assert client.metric("sk_easytensor_batch_rows_bucket", le="1.0") == 1
        assert client.metric("sk_easytensor_batch_rows_bucket", le="4.0") == 2
        assert client.metric("sk_easytensor_batch_seconds_count") == 2
        assert client.metric("sk_easytensor_requests_waiting") == 0
        assert client.metric("sk_easytensor_requests_in_flight") == 1


def test_two_services_have_metrics_of_their_own(model):
    with running() as one, running() as other:
        one.post("/predict", json=ROW)
        rows = "sk_easytensor_predicted_rows_total"
        assert (one.metric(rows), other.metric(rows)) == (2, 1)


def test_a_model_that_cannot_predict_is_not_served(model, caplog):
    def fail(rows, *outputs):
        raise ImportError("no pandas")

    model.run = fail
    with pytest.raises(SystemExit), caplog.at_level(logging.CRITICAL):
        serve("no file", port=0, log_level="critical")


def test_sparse_models_are_refused(model):
    model.metadata_ = {**METADATA, "sparse": {"features": ["a"]}}
    with pytest.raises(ValueError, match="sparse matrix"):
        make_app("no file")


def test_the_schema_of_requests_is_documented(service):
    document = service.get("/openapi.json").json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/Request"}
    schemas = document["components"]["schemas"]
    assert sorted(schemas["Row"]["properties"]) == sorted(ROW)
    assert sorted(schemas["Row"]["required"]) == sorted(ROW)
    references = set(re.findall(r'"#/components/schemas/([^"]*)"', json.dumps(document)))
    assert references <= set(schemas)


SLOW = """
import sys, time
import numpy as np
from sk_easytensor.serving import Limits, app, serve

class Model:
    metadata_ = {metadata}

    def run(self, rows, *outputs):
        if rows[0]["city"] is not None:
            print("running", flush=True)
            time.sleep(1.5)
        return [np.zeros(len(rows))]

app.load = lambda path, **params: Model()
serve("no file", port=0, limits=Limits(drain_seconds=0.5))
"""


def test_sigterm_lets_requests_end_and_takes_no_new_ones():
    script = SLOW.format(metadata=METADATA)
    with (
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        ) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            port = int(server.stdout.readline().rpartition(":")[2])
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                assert client.get("/ready").status_code == 200
                pending = pool.submit(client.post, "/predict", json=ROW)
                assert server.stdout.readline() == "running\n"
                server.send_signal(signal.SIGTERM)
                wait_for(lambda: client.get("/ready").status_code == 503)
                assert client.get("/health").status_code == 200
                assert not pending.done()
                wait_for(lambda: refused(port))
                response = pending.result()
            assert (response.status_code, response.json()) == (200, {"predictions": [0.0]})
            assert server.wait(20) in (0, -signal.SIGTERM)
        finally:
            server.kill()


def refused(port):
    """Return whether nothing listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionError:
        return True
    return False


# ---------------------------------------------------------------------- the image

DOCKERFILE = ROOT / "docker" / "serving" / "Dockerfile"


def requirements():
    """Return the requirements that the Dockerfile installs."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    return set(re.findall(r'^ +"([a-z0-9-]+>=[0-9.]+)" *\\$', text, re.MULTILINE))


def test_the_image_has_what_serving_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = set(project["optional-dependencies"]["serve"])
    base = {each for each in project["dependencies"] if each.startswith(("numpy", "pyarrow"))}
    assert requirements() == extra | base
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert "--no-deps" in text
    assert re.search(r"^USER (?!0|root)\w+", text, re.MULTILINE)
    assert "HEALTHCHECK" in text


def test_serving_imports_nothing_else():
    """With every other dependency of the package out of reach, as in the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[a-z-]+", each)[0] for each in project["dependencies"]}
    blocked = sorted({"sklearn", *names} - {"numpy", "pyarrow", "scikit-learn"})
    script = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
import sk_easytensor.serving.app, sk_easytensor.serving.__main__
from sk_easytensor.serving import Limits, make_app, serve
"""
    assert {"torch", "pandas", "scipy", "sklearn"} <= set(blocked)
    subprocess.run([sys.executable, "-c", script], check=True)
