"""Requests that wait for the model, predicted in batches."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from sk_easytensor.serving.schema import Rows

__all__ = [
    "Batcher",
    "InvalidRows",
    "PredictionError",
]


BATCH_ROWS, BATCH_BYTES = 1024, 2**18
"""A batch takes no further requests once it has so many rows or bytes of JSON. The model runs on no
more of them at once, except for a single row: some steps, such as those from lists to arrays, keep
other threads waiting for as long as they take."""

MESSAGE_LENGTH = 300
"""Characters of a message about rows that the model refuses; longer ones are cut."""

logger = logging.getLogger("sk_easytensor.serving")


class InvalidRows(ValueError):
    """Rows that have the right types and that the model refuses all the same."""


class PredictionError(RuntimeError):
    """A prediction that failed for a reason that is not in the rows; the log has it."""


@dataclass
class Waiting:
    """Rows of a request, and the future of its response."""

    rows: Rows
    result: asyncio.Future


class Batcher:
    """Runs the model on all requests that wait, in a thread of its own.

    No request waits for others to come: while the model is busy, requests queue up, and the next
    batch is all of them.

    Parameters
    ----------
    predictor : OnnxPredictor
        The model.
    metrics : Metrics
        Where batches are counted.
    """

    def __init__(self, predictor, metrics):
        self.predictor = predictor
        self.metrics = metrics
        self.outputs = [name for name in predictor.metadata_["outputs"] if name != "representation"]
        self._as_json = as_json
        if predictor.metadata_["answer"]["kind"] == "tasks":
            self._as_json = partial(as_json_by_task, predictor.metadata_["answer"]["tasks"])
        self._queue = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "predict")
        metrics.waiting.set_function(self._queue.qsize)

    async def predict(self, rows):
        """Return the outputs for some rows as JSON.

        Raises
        ------
        InvalidRows
            If the model refuses the rows.
        PredictionError
            If it fails otherwise.
        """
        waiting = Waiting(rows, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.result

    async def run(self):
        """Predict batches until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._next_batch()
                rows = [waiting.rows for waiting in batch]
                found = await loop.run_in_executor(self._thread, self.responses, rows)
                for waiting, response in zip(batch, found, strict=True):
                    if waiting.result.done():  # Its time is over.
                        continue
                    if isinstance(response, Exception):
                        waiting.result.set_exception(response)
                    else:
                        waiting.result.set_result(response)
        finally:
            self._thread.shutdown(wait=False)

    async def _next_batch(self):
        """Return requests that wait, at least one."""
        batch, n_rows, n_bytes = [], 0, 0
        while not batch or (
            n_rows < BATCH_ROWS and n_bytes < BATCH_BYTES and not self._queue.empty()
        ):
            waiting = await self._queue.get()
            if not waiting.result.done():
                batch.append(waiting)
                n_rows += len(waiting.rows)
                n_bytes += sum(waiting.rows.sizes)
        return batch

    def responses(self, requests):
        """Return for each request its outputs as JSON, or the exception that its rows raise.

        Parameters
        ----------
        requests : list of Rows
            The rows of each.

        Returns
        -------
        list of bytes or Exception
        """
        rows = [row for each in requests for row in each]
        sizes = [size for each in requests for size in each.sizes]
        try:
            found = [self._run(rows[piece]) for piece in pieces(sizes)]
        except Exception as error:
            if len(requests) == 1:
                return [self._refused(error)]
            # Halving finds the request that the error is about and keeps it from the others.
            half = len(requests) // 2
            return self.responses(requests[:half]) + self.responses(requests[half:])
        arrays = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        bounds = np.cumsum([len(each) for each in requests])[:-1]
        parts = [np.split(array, bounds) for array in arrays]
        return [self._as_json(self.outputs, part) for part in zip(*parts, strict=True)]

    def _run(self, rows):
        begin = time.perf_counter()
        arrays = self.predictor.run(rows, *self.outputs)
        self.metrics.observe_batch(len(rows), time.perf_counter() - begin)
        return arrays

    @staticmethod
    def _refused(error):
        """Return the exception for a request whose rows made the model fail."""
        if isinstance(error, TypeError | ValueError | OverflowError):
            message = str(error)
            return InvalidRows(message[:MESSAGE_LENGTH] + "..." * (len(message) > MESSAGE_LENGTH))
        logger.error("a prediction failed", exc_info=error)
        failed = PredictionError("the prediction failed")
        failed.__cause__ = error
        return failed


def pieces(sizes):
    """Return slices of rows of these sizes that the model runs on, one after the other."""
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
    """Return what tasks predict as a JSON object of objects by task.

    Parameters
    ----------
    tasks : list of dict
        What an exported file says of them.
    names : list of str
        Of outputs.
    arrays : iterable of ndarray
        Probabilities of classes or predictions.
    """
    by_output = dict(zip(names, arrays, strict=True))
    found = {"label": {}, "probabilities": {}, "predictions": {}}
    for task in tasks:
        values, classes = by_output[task["output"]], task["classes"]
        if classes is None:
            found["predictions"][task["name"]] = as_list(values)
            continue
        best = values.argmax(axis=1)
        found["label"][task["name"]] = as_list(np.array(classes, dtype=object)[best])
        found["probabilities"][task["name"]] = as_list(values)
    parts = {name: as_object(each, each.values()) for name, each in found.items() if each}
    return as_object(parts, parts.values()).encode()


def as_list(array):
    """Return an array as a JSON list."""
    # Row by row, because one call would keep other threads waiting until all is written.
    return f"[{','.join(map(json.dumps, array.tolist()))}]"


def as_object(names, texts):
    """Return JSON texts as an object by name."""
    pairs = zip(map(json.dumps, names), texts, strict=True)
    return "{" + ",".join(f"{name}:{text}" for name, text in pairs) + "}"
