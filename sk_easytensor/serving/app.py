"""ASGI application of the service, and the uvicorn server with limits that runs it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from sk_easytensor.inference import load
from sk_easytensor.retrieval import Recommender
from sk_easytensor.serving.limits import Guard, Limits, prepared_keys

__all__ = [
    "make_app",
    "serve",
]


try:
    from fastapi import FastAPI, Request, Response

    from sk_easytensor.serving.batching import Batcher, InvalidRows, Metrics, PredictionError
    from sk_easytensor.serving.recommendations import (
        METHODS,
        RankingRequest,
        RecommendationBatcher,
    )
    from sk_easytensor.serving.schema import InvalidRequest, RequestSchema, Rows
except ImportError as error:
    raise ImportError(
        f"sk_easytensor.serving needs {error.name}: pip install 'sk_easytensor[serve]'"
    ) from error


VALIDATORS = 2
"""Threads that parse and validate requests, so that a large one does not block the others."""

REFRESH_SECONDS = 60.0
"""Seconds after which a service of a recommender looks for a new version."""

logger = logging.getLogger("sk_easytensor.serving")

ERROR = {"description": "`detail` describes the error."}
STATUSES = {400: ERROR, 401: ERROR, 408: ERROR, 413: ERROR, 415: ERROR, 422: ERROR, 503: ERROR}


def make_app(path, *, limits=None, api_key=None, n_jobs=None):
    """Return the service of an exported model as an ASGI application.

    Parameters
    ----------
    path : str, path-like or bytes
        Path of a file that ``to_onnx`` wrote, or its content; or a directory that
        ``save_recommender`` wrote.
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

    A recommender has the routes ``/recommend``, ``/rank_users`` and ``/similar_items`` instead.
    Their bodies are objects: ``{"users": [...], "k": 10, "exclude": "seen"}``, or with ``items``
    for the other two. Rows have the columns of the tower, or the key alone. Further entries are
    ``min_score``, ``diversity`` and ``where``, conditions by column: a value, a list of values, or
    an object such as ``{"<": 20}``. The response has ``results``, an object with ``keys`` and
    ``scores`` for each row, and ``version``. The service looks for a new version of the directory
    each minute, and at ``POST /refresh``; requests go on meanwhile. Requests that arrive together
    are ranked together.

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
    if not isinstance(path, bytes) and Path(path).is_dir():
        return make_recommender_app(path, limits=limits, api_key=api_key, n_jobs=n_jobs)
    predictor = load(path, n_jobs=n_jobs)
    metadata = predictor.metadata_
    schema = RequestSchema(metadata, limits.max_rows, limits.max_row_bytes)
    metrics = Metrics()
    batcher = Batcher(predictor, metrics)

    async def warm_up():
        # A model that cannot predict fails here rather than at the first request.
        await batcher.predict(Rows([schema.null_row], [0]))

    def describe():
        outputs, classes = batcher.outputs, metadata["answer"].get("classes")
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

    app = base_app(
        metadata["estimator"],
        metadata["version"],
        batcher,
        limits=limits,
        api_key=api_key,
        tasks=[warm_up],
        describe=describe,
    )
    request, definitions = schema.openapi()
    app.openapi = with_schema(app.openapi, app, {"Request": request}, definitions)

    @app.post("/predict", openapi_extra=body_of("Request"), responses=STATUSES)
    async def predict(request: Request):
        """Return the model's outputs for a row or a list of rows."""
        return await respond(app, request, schema.read)

    return app


def make_recommender_app(path, *, limits, api_key=None, n_jobs=None):
    """Return the service of a stored recommender as an ASGI application.

    Parameters
    ----------
    path : str or path-like
        Directory that ``save_recommender`` wrote.
    limits, api_key, n_jobs
        Parameters of :func:`make_app`.

    Returns
    -------
    fastapi.FastAPI
    """
    recommender = Recommender.load(path, n_jobs=n_jobs)
    batcher = RecommendationBatcher(recommender, Metrics())

    async def refresh():
        """Load the current version, and return an error if that is not possible."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(app.state.validators, batcher.refresh)
        except Exception as error:
            # The version that is loaded stays: the new one may be incomplete, or too new.
            logger.exception("version %s stays", batcher.recommender.version)
            return error

    async def refresh_regularly():
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await refresh()

    app = base_app(
        "Recommender",
        recommender.version,
        batcher,
        limits=limits,
        api_key=api_key,
        background=[refresh_regularly],
        describe=batcher.describe,
    )
    app.openapi = with_schema(app.openapi, app, *RankingRequest.schemas())
    for method in METHODS:
        app.post(
            f"/{method}",
            openapi_extra=body_of(f"{method}_request"),
            responses=STATUSES,
            summary=METHODS[method].summary,
        )(ranking_route(app, batcher, method, limits))

    @app.post("/refresh", responses={500: ERROR})
    async def load_current_version():
        """Load the current version of the directory, and return its name."""
        error = await refresh()
        if error is not None:
            version = batcher.recommender.version
            return problem(500, f"the current version cannot be read, {version} stays: {error}")
        return {"version": batcher.recommender.version}

    return app


def ranking_route(app, batcher, method, limits):
    """Return a function that responds to requests of a method of the recommender."""

    async def rank(request: Request):
        def read(body):
            return batcher.read(method, body, limits)

        return await respond(app, request, read)

    return rank


def base_app(title, version, batcher, *, limits, api_key, describe, tasks=(), background=()):
    """Return an application with the routes that all services have.

    Parameters
    ----------
    title, version : str
        Name and version, for the documentation.
    batcher : BaseBatcher
        Computes responses; it is ``app.state.batcher``.
    limits, api_key
        Parameters of :func:`make_app`.
    describe : callable
        Returns the content of ``/model``.
    tasks : sequence of callable, default=()
        Coroutine functions that have to succeed before the service is ready.
    background : sequence of callable, default=()
        Coroutine functions that run while the service does.

    Returns
    -------
    fastapi.FastAPI
    """

    @asynccontextmanager
    async def lifespan(app):
        with ThreadPoolExecutor(VALIDATORS, "validate") as app.state.validators:
            running = [asyncio.create_task(run()) for run in (batcher.run, *background)]
            try:
                for task in tasks:
                    await task()
                app.state.ready = True
                yield
            finally:
                app.state.ready = False
                for task in running:
                    task.cancel()

    app = FastAPI(title=title, version=version, lifespan=lifespan, redoc_url=None)
    app.state.ready = app.state.stopping = False
    app.state.waiting, app.state.batcher, app.state.limits = 0, batcher, limits
    metrics = batcher.metrics
    app.add_middleware(Guard, limits=limits, keys=prepared_keys(api_key), metrics=metrics)

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
        """Return what the service serves: kind, version, and what responses have."""
        return describe()

    @app.get("/metrics", response_class=Response)
    async def show_metrics():
        """Return the metrics in the text format of Prometheus."""
        text, content_type = metrics.text()
        return Response(text, headers={"Content-Type": content_type})

    return app


async def respond(app, request, read):
    """Return the response to a request with rows.

    Parameters
    ----------
    app : fastapi.FastAPI
        Application of :func:`base_app`.
    request : fastapi.Request
        Request.
    read : callable
        Converts the body to :class:`Rows`, in another thread.

    Returns
    -------
    fastapi.Response
    """
    if not is_json(request.headers.get("content-type", "")):
        return problem(415, "the content type must be application/json")
    if app.state.waiting >= app.state.limits.max_waiting:
        return problem(503, "too many requests are waiting", {"Retry-After": "1"})
    app.state.waiting += 1
    try:
        body = await request.body()
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(app.state.validators, read, body)
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


def body_of(schema):
    """Return the description of a route whose body has a schema of the document."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


def with_schema(openapi, app, requests, definitions):
    """Return a method ``openapi`` whose document has the schemas of requests."""

    def document():
        if app.openapi_schema is None:
            schemas = openapi().setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions, **requests)
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


try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("serve needs uvicorn: pip install 'sk_easytensor[serve]'") from error


STARTUP_FAILURE = 3
"""Exit status if the model cannot predict, which is that of uvicorn for a failed startup."""

SPARE_CONNECTIONS = 64
"""Connections beyond the limit that get a response, 503. Further ones are closed at once."""


def serve(
    path,
    *,
    host="127.0.0.1",
    port=8000,
    limits=None,
    api_key=None,
    n_jobs=None,
    log_level="warning",
):
    """Serve an exported model until SIGTERM or SIGINT.

    After the signal, ``/ready`` responds with 503. After ``limits.drain_seconds`` no further
    request is accepted, those in flight get their responses, and the function returns.

    Parameters
    ----------
    path, limits, api_key, n_jobs
        Parameters of :func:`make_app`.
    host : str, default="127.0.0.1"
        Address to listen at; ``"0.0.0.0"`` for all addresses of the machine.
    port : int, default=8000
        Port to listen at; 0 for any free port. The address is printed once the service is ready.
    log_level : str, default="warning"
        Log level of uvicorn; ``"info"`` logs each request.

    Raises
    ------
    SystemExit
        If the model cannot predict a row of nulls; uvicorn logs the reason.
    OSError
        If the address is in use.
    ImportError, ValueError
        Errors of :func:`make_app`.
    """
    limits = Limits() if limits is None else limits
    app = make_app(path, limits=limits, api_key=api_key, n_jobs=n_jobs)
    config = make_config(app, limits, log_level)
    # With the protocol set, asyncio turns off Nagle's algorithm.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, proto=socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        port = listener.getsockname()[1]
        address = f"[{host}]" if ":" in host else host
        server = Server(config, f"serving {path} on http://{address}:{port}")
        server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


def make_config(app, limits, log_level="warning"):
    """Return the configuration of uvicorn for an application of :func:`make_app`."""
    return uvicorn.Config(
        app,
        http=type("Protocol", (TimedProtocol,), {"limits": limits}),
        ws="none",
        log_level=log_level,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.max_connections + 1,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.shutdown_seconds,
    )


class Server(uvicorn.Server):
    """A server that is not ready after the signal, and stops after the drain time.

    Parameters
    ----------
    config : uvicorn.Config
        Configuration with the application of :func:`make_app`.
    message : str
        Message that is printed when the service is ready.
    """

    def __init__(self, config, message):
        super().__init__(config)
        self.message = message
        self.limits = config.http.limits

    async def startup(self, sockets=None):
        """Start, and print the message."""
        await super().startup(sockets=sockets)
        if self.started:
            # Objects that are loaded by now stay. Garbage collections, during which requests
            # wait, then only examine later objects.
            gc.collect()
            gc.freeze()
            print(self.message, flush=True)

    def handle_exit(self, sig, frame):
        """Begin to stop, at once on a second signal."""
        state = self.config.app.state
        first, state.stopping = not state.stopping, True
        if first and self.limits.drain_seconds:
            stop = super().handle_exit
            timer = threading.Timer(self.limits.drain_seconds, stop, (sig, frame))
            timer.daemon = True
            timer.start()
        else:
            super().handle_exit(sig, frame)


class TimedProtocol(H11Protocol):
    """HTTP connections with time limits for heads of requests and for closing.

    uvicorn only limits the time of idle connections between requests. A client could send the head
    of a request byte by byte, or never read the response of a connection that is closing.
    """

    limits = Limits()
    _deadline = None

    def connection_made(self, transport):
        """Start the time for the first head, or close if there are far too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections + SPARE_CONNECTIONS:
            transport.abort()
        self._limit_head()

    def data_received(self, data):
        """Handle data, and limit the time until the head of a request is complete."""
        super().data_received(data)
        self._limit_head()

    def connection_lost(self, exc):
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_response_complete(self):
        """Limit the time of a closing connection; uvicorn limits that until the next request."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self):
        """Close an idle connection, and limit the time for that."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _limit_head(self):
        """Run the timer while the head of a request is awaited, and only then."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _abort_later(self):
        """Abort the connection if the client does not read the rest of the response in time."""
        self._stop_timer()
        seconds = self.limits.keep_alive_seconds
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _stop_timer(self):
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
