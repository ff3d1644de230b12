# ci: quick
"""A service without torch
=======================

Serve an exported model over HTTP: rows as JSON in, predictions out, without torch.

``python -m sk_easytensor.serving model.onnx`` serves a file that ``model.to_onnx("model.onnx")``
wrote. This script fits a small model on real reviews, starts the service in a process of its own,
sends it requests from several clients and prints figures. It needs the extras ``onnx`` and
``serve``: ``pip install 'sk_easytensor[onnx,serve]'``.
"""

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from sk_easytensor import MLP, EasyTensorClassifier
from sk_easytensor.datasets import load_clothing_reviews

JSON = {"Content-Type": "application/json"}
CLIENTS, REQUESTS = 8, 50


def request(connection, method, path, body=None):
    """Return the response to a request; raise if it is an error."""
    connection.request(method, path, body, JSON)
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {text}")
    return text


def client(port, rows):
    """Send requests of one row each, one after the other; return the seconds of each."""
    connection, seconds = HTTPConnection("127.0.0.1", port), []
    for row in rows:
        begin = time.perf_counter()
        request(connection, "POST", "/predict", json.dumps(row))
        seconds.append(time.perf_counter() - begin)
    return seconds


def main():
    """Fit, export, serve and send requests."""
    reviews = load_clothing_reviews()
    columns = ["age", "department_name", "class_name", "title", "review_text"]
    X, y = reviews.data[columns], reviews.target
    model = EasyTensorClassifier(trunk=MLP(width=64), max_epochs=3, random_state=0)
    model.fit(X[:2000], y[:2000])
    rows = json.loads(X[2000 : 2000 + REQUESTS].to_json(orient="records"))

    with tempfile.TemporaryDirectory() as folder:
        path = model.to_onnx(Path(folder) / "model.onnx")
        command = [sys.executable, "-m", "sk_easytensor.serving", str(path), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                line = server.stdout.readline()  # serving model.onnx on http://127.0.0.1:12345
                port = int(line.rpartition(":")[2])
                connection = HTTPConnection("127.0.0.1", port)
                print("GET /model:", request(connection, "GET", "/model"))
                print("a row:", json.dumps(rows[0])[:100], "...")
                print(
                    "POST /predict:", request(connection, "POST", "/predict", json.dumps(rows[0]))
                )

                begin = time.perf_counter()
                with ThreadPoolExecutor(CLIENTS) as pool:
                    seconds = pool.map(client, [port] * CLIENTS, [rows] * CLIENTS)
                    seconds = np.concatenate(list(seconds))
                rate = len(seconds) / (time.perf_counter() - begin)
                median, most = 1e3 * np.quantile(seconds, [0.5, 0.99])
                print(
                    f"{CLIENTS} clients: {rate:.0f} requests a second; milliseconds in the median "
                    f"{median:.1f}, 99% {most:.1f}"
                )
                # The service closes connections that are idle for some seconds.
                connection = HTTPConnection("127.0.0.1", port)
                lines = request(connection, "GET", "/metrics").splitlines()
                print(*(each for each in lines if each.startswith("sk_easytensor_requests_total")))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
