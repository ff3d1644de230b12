"""Queue of requests, whose rows are predicted in batches, and Prometheus metrics of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from sk_easytensor.serving.schema import Rows

__all__ = [
    "BaseBatcher",
    "Batcher",
    "InvalidRows",
    "Metrics",
    "PredictionError",
]


BATCH_ROWS, BATCH_BYTES = 1024, 2**18
"""Rows and bytes of JSON from which a batch accepts no further requests. The model runs on no more
of them at once, except for a single row, because some steps, such as the conversion of lists to
arrays, block other threads."""

MESSAGE_LENGTH = 300
"""Characters to which messages about invalid rows are shortened."""

logger = logging.getLogger("sk_easytensor.serving")


class InvalidRows(ValueError):
    """Raised for rows of valid types that the model refuses."""


class PredictionError(RuntimeError):
    """Raised for a prediction that failed for another reason than its rows, which is logged."""


@dataclass
class QueuedRequest:
    """Rows of a request, and the future of its response."""

    rows: Rows
    result: asyncio.Future


class BaseBatcher(ABC):
    """Computes the responses of batches of requests, in a separate thread.

    No request waits for a batch to fill up. While responses are computed, requests are queued, and
    the next batch consists of all of them.

    Parameters
    ----------
    metrics : Metrics
        Metrics that count batches.
    """

    def __init__(self, metrics):
        self.metrics = metrics
        self._queue = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "predict")
        metrics.waiting.set_function(self._queue.qsize)

    @abstractmethod
    def compute(self, requests):
        """Return the response of each request.

        Parameters
        ----------
        requests : list of Rows
            Rows of each request.

        Returns
        -------
        list of bytes
        """

    async def predict(self, rows):
        """Return the response for some rows as JSON.

        Parameters
        ----------
        rows : Rows
            Rows of a request.

        Returns
        -------
        bytes

        Raises
        ------
        InvalidRows
            If the model refuses the rows.
        PredictionError
            If the model fails for another reason.
        """
        request = QueuedRequest(rows, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(request)
        return await request.result

    async def run(self):
        """Predict batches until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._next_batch()
                rows = [request.rows for request in batch]
                responses = await loop.run_in_executor(self._thread, self.responses, rows)
                for request, response in zip(batch, responses, strict=True):
                    if request.result.done():  # The request timed out.
                        continue
                    if isinstance(response, Exception):
                        request.result.set_exception(response)
                    else:
                        request.result.set_result(response)
        finally:
            self._thread.shutdown(wait=False)

    async def _next_batch(self):
        """Return the queued requests, after waiting for the first."""
        batch, n_rows, n_bytes = [], 0, 0
        while not batch or (
            n_rows < BATCH_ROWS and n_bytes < BATCH_BYTES and not self._queue.empty()
        ):
            request = await self._queue.get()
            if not request.result.done():
                batch.append(request)
                n_rows += len(request.rows)
                n_bytes += sum(request.rows.sizes)
        return batch

    def responses(self, requests):
        """Return the response of each request, or the exception that its rows raise.

        Parameters
        ----------
        requests : list of Rows
            Rows of each request.

        Returns
        -------
        list of bytes or Exception
        """
        begin = time.perf_counter()
        try:
            responses = self.compute(requests)
        except Exception as error:
            if len(requests) == 1:
                return [self._as_exception(error)]
            # Halving finds the request that raises the error, so that the others succeed.
            half = len(requests) // 2
            return self.responses(requests[:half]) + self.responses(requests[half:])
        self.metrics.observe_batch(sum(map(len, requests)), time.perf_counter() - begin)
        return responses

    @staticmethod
    def _as_exception(error):
        """Return the exception for a request on whose rows the model failed."""
        if isinstance(error, TypeError | ValueError | OverflowError):
            message = str(error)
            return InvalidRows(message[:MESSAGE_LENGTH] + "..." * (len(message) > MESSAGE_LENGTH))
        logger.error("a prediction failed", exc_info=error)
        failed = PredictionError("the prediction failed")
        failed.__cause__ = error
        return failed


class Batcher(BaseBatcher):
    """Runs a model on batches of requests.

    Parameters
    ----------
    predictor : OnnxPredictor
        Predictor of the model.
    metrics : Metrics
        Metrics that count batches.
    """

    def __init__(self, predictor, metrics):
        super().__init__(metrics)
        self.predictor = predictor
        self.outputs = [name for name in predictor.metadata_["outputs"] if name != "representation"]
        self._as_json = as_json
        if predictor.metadata_["answer"]["kind"] == "tasks":
            self._as_json = partial(as_json_by_task, predictor.metadata_["answer"]["tasks"])

    def compute(self, requests):
        """Return the outputs of each request as JSON."""
        rows = [row for request in requests for row in request]
        sizes = [size for request in requests for size in request.sizes]
        parts = [self.predictor.run(rows[part], *self.outputs) for part in batch_slices(sizes)]
        arrays = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        bounds = np.cumsum([len(request) for request in requests])[:-1]
        parts = [np.split(array, bounds) for array in arrays]
        return [self._as_json(self.outputs, part) for part in zip(*parts, strict=True)]


def batch_slices(sizes):
    """Return slices of rows within the limits of a batch, for rows of these sizes in bytes."""
    starts, n_bytes = [0], 0
    for row, size in enumerate(sizes):
        if row - starts[-1] == BATCH_ROWS or (n_bytes and n_bytes + size > BATCH_BYTES):
            starts.append(row)
            n_bytes = 0
        n_bytes += size
    return list(map(slice, starts, [*starts[1:], len(sizes)]))


def as_json(names, arrays):
    """Return arrays as a JSON object by name."""
    return as_object(names, map(as_list, arrays)).encode()


def as_json_by_task(tasks, names, arrays):
    """Return predictions of several tasks as a JSON object of objects by task.

    Parameters
    ----------
    tasks : list of dict
        Metadata of the tasks in the exported file.
    names : list of str
        Names of the outputs.
    arrays : iterable of ndarray
        Probabilities of classes, or predictions.

    Returns
    -------
    bytes
    """
    by_output = dict(zip(names, arrays, strict=True))
    results = {"label": {}, "probabilities": {}, "predictions": {}}
    for task in tasks:
        values, classes = by_output[task["output"]], task["classes"]
        if classes is None:
            results["predictions"][task["name"]] = as_list(values)
            continue
        best = values.argmax(axis=1)
        results["label"][task["name"]] = as_list(np.array(classes, dtype=object)[best])
        results["probabilities"][task["name"]] = as_list(values)
    parts = {
        name: as_object(by_task, by_task.values()) for name, by_task in results.items() if by_task
    }
    return as_object(parts, parts.values()).encode()


def as_list(array):
    """Return an array as a JSON list."""
    # Row by row, because a single call would block other threads until it ends.
    return f"[{','.join(map(json.dumps, array.tolist()))}]"


def as_object(names, texts):
    """Return JSON texts as an object by name."""
    pairs = zip(map(json.dumps, names), texts, strict=True)
    return "{" + ",".join(f"{name}:{text}" for name, text in pairs) + "}"


ROUTES = frozenset(
    {
        "/predict",
        "/recommend",
        "/rank_users",
        "/similar_items",
        "/refresh",
        "/model",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
    }
)
"""Routes with separate metrics. Others are counted together, so that clients add no series."""

# Upper bounds of the buckets of histograms.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)


class Metrics:
    """Counters, gauges and histograms of a service, in a separate registry."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def make(kind, name, text, labels=(), **params):
            return kind(f"sk_easytensor_{name}", text, labels, registry=self.registry, **params)

        by = ("route", "status")
        self.requests = make(Counter, "requests", "Requests by route and status.", by)
        self.seconds = make(
            Histogram,
            "request_seconds",
            "Time from the head of a request to its response.",
            ("route",),
            buckets=SECONDS,
        )
        self.in_flight = make(Gauge, "requests_in_flight", "Requests without a response yet.")
        self.waiting = make(Gauge, "requests_waiting", "Requests whose rows wait for the model.")
        self.rows = make(Counter, "predicted_rows", "Rows that were predicted.")
        self.batch_rows = make(Histogram, "batch_rows", "Rows of a batch.", buckets=ROWS)
        self.batch_seconds = make(
            Histogram, "batch_seconds", "Time of the model for a batch.", buckets=SECONDS
        )

    def observe_request(self, path, status, seconds):
        """Count a request that has ended."""
        route = path if path in ROUTES else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def observe_batch(self, n_rows, seconds):
        """Count a batch that the model has predicted."""
        self.rows.inc(n_rows)
        self.batch_rows.observe(n_rows)
        self.batch_seconds.observe(seconds)

    def text(self):
        """Return all metrics in the text format of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
