# ci: quick
"""Serve an exported model over HTTP: rows as JSON in, predictions out, without torch.

Write a model with ``model.to_onnx("model.onnx")`` and serve it with::

    python examples/serve.py model.onnx --port 8000
    curl localhost:8000/predict -d '{"age": 31, "department": "Tops", "review": "Fits"}'

What a row has to look like is known from the file: ``/docs`` shows it, and rows that do not are
answered with 422 or 400 and the column's name. ``/predict`` takes a row or a list of rows,
``/health`` says what is served.

Requests are put together without waiting for any: while the model is busy with a batch, those that
arrive queue up, and the next batch is all of them. One request alone is answered at once, and many
at a time share what a run of the model costs.

Without arguments the script fits a small model on real reviews, serves it on this machine and
sends it requests, as ``--load`` with ``--rows`` does for a model of yours. It needs the extra
``serve``: ``pip install 'sk_easytensor[serve]'``.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, create_model

from sk_easytensor.inference import load
from sk_easytensor.keys import category_keys

BATCH_ROWS = 1024
"""The model is given no further requests once a batch has so many rows."""

REQUEST_ROWS = 10_000
"""At most so many rows a request."""


# ---------------------------------------------------------------------- what a row looks like


def number(value):
    """Refuse strings, which would otherwise be read as numbers."""
    if isinstance(value, str):
        raise ValueError("must be a number")
    return value


def category(value):
    """Return a category as the model knows it: 3, 3.0 and "3" are the same."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float):
        raise ValueError("must be a string, a number or a truth value")
    return category_keys(pa.array([value], from_pandas=True)).to_pylist()[0]


def iso_time(value):
    """Check a time and leave it to the model to read."""
    if not isinstance(value, str):
        raise ValueError("must be a date or time in ISO 8601, such as '2026-01-31T12:00:00'")
    datetime.fromisoformat(value)
    return value


def event_time(zone):
    """Return what reads times of events, of one kind for all: in UTC, or by the wall clock."""

    def read(value):
        if not isinstance(value, str):
            return float(value)
        moment = datetime.fromisoformat(value)
        if zone is None:
            return moment.replace(tzinfo=None)
        if moment.tzinfo is None:
            raise ValueError(f"must say its offset, as '{moment.isoformat()}+00:00' does")
        return moment.astimezone(UTC)

    return Annotated[Any, BeforeValidator(read, str | float)]


KINDS = {
    "number": Annotated[float, BeforeValidator(number)],
    "category": Annotated[str | None, BeforeValidator(category, str | float | bool)],
    "time": Annotated[str, BeforeValidator(iso_time)],
}
KINDS["hashed"] = KINDS["category"]


def column_types(readers):
    """Return the type of each column that a model reads, from what its file says."""
    types = {}
    for reader in readers:
        if reader["read"] == "ngrams":
            types.update(dict.fromkeys(reader["columns"], str))
        elif reader["read"] == "vector":
            size = Field(min_length=reader["length"], max_length=reader["length"])
            types[reader["column"]] = Annotated[list[KINDS["number"] | None], size]
        elif reader["read"] == "lists":
            types.update(list_types(reader["fields"]))
        elif types.get(reader["column"]) is not KINDS["number"]:
            # A column that is read twice, as a number too, has to be one.
            types[reader["column"]] = value_type(reader["read"], reader)
    return types


def value_type(kind, spec):
    """Return the type of a value that is read in a certain way."""
    return event_time(spec.get("zone")) if kind == "seconds" else KINDS[kind]


def list_types(fields):
    """Return the types of columns of lists; those of events are lists of objects."""
    types, structs = {}, {}
    for field in fields:
        item = value_type(field["kind"], field) | None
        if "inner" in field:
            structs.setdefault(field["column"], {})[field["inner"]] = item
        else:
            types[field["column"]] = list[item]
    for column, inner in structs.items():
        types[column] = list[row_model(f"event of {column}", inner) | None]
    return types


def row_model(name, types):
    """Return a model of objects with these keys, all of them required and any of them null."""
    # Columns may have names that Python or pydantic would not accept.
    fields = {
        f"column_{index}": (kind | None, Field(alias=column))
        for index, (column, kind) in enumerate(types.items())
    }
    return create_model(name, **fields)


def request_type(metadata):
    """Return the type of a request: a row, or a list of rows."""
    known = column_types(metadata["readers"])
    features = metadata["features"]
    # Without names, columns are told by their places, so that all have to be there.
    names = [each["name"] for each in features if each["blocks"] or not metadata["named"]]
    row = row_model("Row", {name: known.get(name, Any) for name in names})
    rows = Annotated[list[row], Field(min_length=1, max_length=REQUEST_ROWS)]
    several = Discriminator(lambda body: "rows" if isinstance(body, list) else "row")
    return Annotated[Annotated[row, Tag("row")] | Annotated[rows, Tag("rows")], several]


# ---------------------------------------------------------------------- batches


class Batches:
    """Runs the model on requests that wait, all of them at a time."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.outputs = [name for name in predictor.metadata_["outputs"] if name != "representation"]
        self.waiting = asyncio.Queue()

    async def predict(self, rows):
        """Return the outputs for some rows, by name."""
        answer = asyncio.get_running_loop().create_future()
        await self.waiting.put((rows, answer))
        return await answer

    async def run(self):
        """Answer requests until cancelled."""
        while True:
            batch = [await self.waiting.get()]
            n_rows = len(batch[0][0])
            while n_rows < BATCH_ROWS and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
                n_rows += len(batch[-1][0])
            requests = [rows for rows, _ in batch]
            for (_, answer), found in zip(
                batch, await asyncio.to_thread(self.answers, requests), strict=True
            ):
                if answer.cancelled():  # The client is gone.
                    continue
                if isinstance(found, Exception):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)

    def answers(self, requests):
        """Return for each request its outputs, or the error that its rows raise."""
        try:
            arrays = self.predictor.run([row for rows in requests for row in rows], *self.outputs)
        except Exception as error:
            if len(requests) == 1:
                return [error]
            # Nobody shall be answered with somebody else's error.
            return [self.answers([rows])[0] for rows in requests]
        bounds = np.cumsum([len(rows) for rows in requests])[:-1]
        parts = [np.split(array, bounds) for array in arrays]
        return [
            {name: part.tolist() for name, part in zip(self.outputs, found, strict=True)}
            for found in zip(*parts, strict=True)
        ]


# ---------------------------------------------------------------------- the service


def make_app(path):
    """Return the service of a model in a file."""
    predictor = load(path)
    metadata = predictor.metadata_
    body = request_type(metadata)
    classes = metadata["answer"].get("classes")

    @asynccontextmanager
    async def lifespan(app):
        app.state.batches = Batches(predictor)
        task = asyncio.create_task(app.state.batches.run())
        yield
        task.cancel()

    app = FastAPI(title=metadata["estimator"], version=metadata["version"], lifespan=lifespan)

    @app.get("/health")
    async def health():
        return {
            "status": "ok",
            "estimator": metadata["estimator"],
            "version": metadata["version"],
            "outputs": app.state.batches.outputs,
            "classes": classes,
        }

    @app.post("/predict")
    async def predict(request: body):
        rows = request if isinstance(request, list) else [request]
        try:
            return await app.state.batches.predict([as_row(row) for row in rows])
        except (TypeError, ValueError) as error:
            # What the columns' types do not tell, such as a time that no calendar has.
            raise HTTPException(400, str(error)) from error

    return app


def as_row(row: BaseModel):
    """Return a row as a dictionary by column."""
    return row.model_dump(by_alias=True)


def serve(path, host, port):
    """Serve a model until interrupted."""
    app = make_app(path)
    # Told the protocol, asyncio sends answers without waiting for more to send.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()  # Clients that read the next line may connect at once.
    print(f"serving {path} on http://{host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


# ---------------------------------------------------------------------- trying it


def send_requests(host, port, rows, n_requests, clients):
    """Send requests of one row each, from several clients at a time, and print how it went."""

    def client(number):
        connection, seconds = HTTPConnection(host, port), []
        for index in range(number, n_requests, clients):
            text = json.dumps(rows[index % len(rows)])
            begin = time.perf_counter()
            connection.request("POST", "/predict", text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            seconds.append(time.perf_counter() - begin)
            if response.status != 200:
                raise SystemExit(f"{response.status}: {answer.decode()}")
        return seconds

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = np.concatenate(list(pool.map(client, range(clients))))
    elapsed = time.perf_counter() - begin
    quantiles = 1e3 * np.quantile(seconds, [0.5, 0.9, 0.99])
    print(
        f"{len(seconds)} requests of a row, {clients} clients: {len(seconds) / elapsed:.0f} a "
        "second; milliseconds in the median {:.1f}, 90% {:.1f}, 99% {:.1f}".format(*quantiles)
    )


def try_out(path, rows, n_requests, clients):
    """Serve a model in a process of its own, and send it requests."""
    command = [sys.executable, __file__, str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            host, _, port = server.stdout.readline().strip().rpartition("//")[2].rpartition(":")
            for number in sorted({1, clients}):
                send_requests(host, int(port), rows, n_requests, number)
        finally:
            server.terminate()


def demo(n_requests, clients):
    """Fit a small model, write it, and try its service."""
    from sk_easytensor import MLP, EasyTensorClassifier
    from sk_easytensor.datasets import load_clothing_reviews

    reviews = load_clothing_reviews()
    columns = ["age", "department_name", "class_name", "title", "review_text"]
    X, y = reviews.data[columns], reviews.target
    model = EasyTensorClassifier(trunk=MLP(width=64), max_epochs=3, random_state=0)
    model.fit(X[:2000], y[:2000])
    rows = json.loads(X[2000:2200].to_json(orient="records"))
    with tempfile.TemporaryDirectory() as folder:
        path = model.to_onnx(Path(folder) / "model.onnx")
        print(f"a row: {json.dumps(rows[0])[:150]}...")
        print(f"what the model answers: {load(path).predict_proba(rows[:1]).round(3).tolist()}")
        try_out(path, rows, n_requests, clients)


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="file that to_onnx wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--load", type=int, metavar="N", help="send so many requests and end")
    parser.add_argument("--rows", help="file of a JSON list of rows to send")
    parser.add_argument("--clients", type=int, default=8, help="that send at a time")
    options = parser.parse_args()
    if options.model is None:
        demo(options.load or 500, options.clients)
    elif options.load is None:
        serve(options.model, options.host, options.port)
    elif options.rows is None:
        parser.error("--load needs --rows, a file of rows that this model takes")
    else:
        rows = json.loads(Path(options.rows).read_text(encoding="utf-8"))
        try_out(options.model, rows, options.load, options.clients)


if __name__ == "__main__":
    main()
