"""ASGI application of the service: routes and error responses."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from sk_easytensor.inference import load
from sk_easytensor.serving.limits import Guard, Limits, prepared_keys

try:
    from fastapi import FastAPI, Request, Response

    from sk_easytensor.serving.batching import Batcher, InvalidRows, PredictionError
    from sk_easytensor.serving.metrics import Metrics
    from sk_easytensor.serving.schema import InvalidRequest, RequestSchema, Rows
except ImportError as error:
    raise ImportError(
        f"sk_easytensor.serving needs {error.name}: pip install 'sk_easytensor[serve]'"
    ) from error

__all__ = ["make_app"]

VALIDATORS = 2
"""Threads that parse and validate requests, so that a large one does not block the others."""

ERROR = {"description": "`detail` describes the error."}
STATUSES = {400: ERROR, 401: ERROR, 408: ERROR, 413: ERROR, 415: ERROR, 422: ERROR, 503: ERROR}


def make_app(path, *, limits=None, api_key=None, n_jobs=None):
    """Return the service of an exported model as an ASGI application.

    Parameters
    ----------
    path : str, path-like or bytes
        Path of a file that ``to_onnx`` wrote, or its content.
    limits : Limits, optional
        Limits of bodies, rows, time and waiting requests; by default those of ``Limits()``.
    api_key : str or list of str, optional
        API keys, one of which clients send as ``Authorization: Bearer <key>``. With keys, only
        ``/health`` and ``/ready`` are open; ``/metrics`` and ``/docs`` require one as well.
    n_jobs : int or None, default=None
        Number of threads of the model; None for one, -1 for all cores.

    Returns
    -------
    fastapi.FastAPI
        Application, to which routes can be added. With ``app.state.stopping = True``, ``/ready``
        responds with 503.

    Raises
    ------
    ImportError
        If the extra ``serve`` is not installed.
    ValueError
        If the file was not written by ``to_onnx`` with raw columns, if the model reads sparse
        matrices, or if a key is empty.

    Notes
    -----
    ``POST /predict`` accepts a row, which is a JSON object of values by column, or a list of rows.
    The columns are those that the model reads. All of them are required, and missing values are
    null. Times are strings in ISO 8601, vectors and sequences are lists, and events are lists of
    objects. The response is an object of lists with one element a row:

    - classifiers: ``label`` and ``probabilities``, lists in the order of ``classes`` at ``/model``
    - regressors: ``predictions``
    - several tasks: ``label`` and ``probabilities`` of tasks with classes, ``predictions`` of the
      others, each an object by task
    - two towers: rows are pairs, with the columns of user and item in one object; ``scores`` of
      ``decision_function``, with ``label`` and ``probabilities`` for a target of classes and with
      ``predictions`` for others
    - one tower (``model.user_tower_.to_onnx(path)``): ``embedding`` of rows of its columns
    - embedders: ``embedding`` of rows with lists in the order of time, as
      :meth:`EasyTensorEmbedder.collect` returns them for a log

    See Also
    --------
    serve : Run the application by uvicorn, with limits of connections and slow clients.

    Examples
    --------
    A module ``service.py`` for ``uvicorn service:app``::

        from sk_easytensor.serving import make_app

        app = make_app("model.onnx")
    """
    limits = Limits() if limits is None else limits
    predictor = load(path, n_jobs=n_jobs)
    metadata = predictor.metadata_
    schema = RequestSchema(metadata, limits.max_rows, limits.max_row_bytes)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app):
        batcher = app.state.batcher = Batcher(predictor, metrics)
        with ThreadPoolExecutor(VALIDATORS, "validate") as app.state.validators:
            task = asyncio.create_task(batcher.run())
            try:
                # A model that cannot predict fails here rather than at the first request.
                await batcher.predict(Rows([schema.null_row], [0]))
                app.state.ready = True
                yield
            finally:
                app.state.ready = False
                task.cancel()

    app = FastAPI(
        title=metadata["estimator"],
        version=metadata["version"],
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.ready = app.state.stopping = False
    app.state.waiting = 0
    app.add_middleware(Guard, limits=limits, keys=prepared_keys(api_key), metrics=metrics)
    app.openapi = with_schema(app.openapi, app, *schema.openapi())

    @app.get("/health")
    async def health():
        """Return whether the process runs."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: ERROR})
    async def ready():
        """Return whether the service accepts requests."""
        if app.state.stopping or not app.state.ready:
            return problem(503, "the service is starting or stopping")
        return {"status": "ready"}

    @app.get("/model")
    async def model():
        """Return the estimator, version, outputs and classes of the model."""
        outputs, classes = app.state.batcher.outputs, metadata["answer"].get("classes")
        if metadata["answer"]["kind"] == "tasks":
            tasks = metadata["answer"]["tasks"]
            classes = {task["name"]: task["classes"] for task in tasks if task["classes"]}
            outputs = ["label", "probabilities"] if classes else []
            outputs += ["predictions"] if len(classes) < len(tasks) else []
        return {
            "estimator": metadata["estimator"],
            "version": metadata["version"],
            "outputs": outputs,
            "classes": classes,
        }

    @app.get("/metrics", response_class=Response)
    async def show_metrics():
        """Return the metrics in the text format of Prometheus."""
        text, content_type = metrics.text()
        return Response(text, headers={"Content-Type": content_type})

    @app.post("/predict", openapi_extra={"requestBody": REQUEST_BODY}, responses=STATUSES)
    async def predict(request: Request):
        """Return the model's outputs for a row or a list of rows."""
        if not is_json(request.headers.get("content-type", "")):
            return problem(415, "the content type must be application/json")
        if app.state.waiting >= limits.max_waiting:
            return problem(503, "too many requests are waiting", {"Retry-After": "1"})
        app.state.waiting += 1
        try:
            body = await request.body()
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(app.state.validators, schema.read, body)
            outputs = await app.state.batcher.predict(rows)
        except InvalidRequest as error:
            return problem(422, error.errors)
        except InvalidRows as error:
            return problem(400, str(error))
        except PredictionError as error:
            return problem(500, str(error))
        finally:
            app.state.waiting -= 1
        return Response(outputs, media_type="application/json")

    return app


REQUEST_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
}


def with_schema(openapi, app, request, definitions):
    """Return a method ``openapi`` whose document has the schema of requests."""

    def document():
        if app.openapi_schema is None:
            schemas = openapi().setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions, Request=request)
        return app.openapi_schema

    return document


def is_json(content_type):
    """Return whether a content type is JSON, with UTF-8 as its charset if it has one."""
    kind, _, params = content_type.lower().partition(";")
    charset = params.replace(" ", "").replace('"', "")
    return kind.strip() == "application/json" and charset in {"", "charset=utf-8"}


def problem(status, detail, headers=None):
    """Return a response with an error."""
    # In ASCII, because a message may have lone surrogates, which UTF-8 cannot encode.
    return Response(json.dumps({"detail": detail}), status, headers, "application/json")
