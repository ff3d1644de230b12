"""uvicorn with limits of slow clients and open connections, and with a graceful shutdown."""

from __future__ import annotations

import gc
import socket
import threading

from sk_easytensor.serving.app import make_app
from sk_easytensor.serving.limits import Limits

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("serve needs uvicorn: pip install 'sk_easytensor[serve]'") from error

__all__ = ["serve"]

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
