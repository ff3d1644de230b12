"""Limits of the service, and the ASGI middleware that enforces them."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from contextlib import suppress
from dataclasses import dataclass, fields

from sk_easytensor._utils.validation import check_number

__all__ = [
    "Guard",
    "Limits",
    "prepared_keys",
]


OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no API key: orchestrators probe them without one."""

RETRY_AFTER = (b"retry-after", b"1")
CLOSE = (b"connection", b"close")

LINGER_SECONDS = 1.0
"""Time for which the rest of a refused body is read and dropped, in seconds. If the connection were
closed at once, a client that is still sending would see an error instead of the response."""

DISCONNECTED = 499
"""Status in metrics for clients that disconnected before there was a response."""


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Parameters
    ----------
    max_body_bytes : int, default=8 MiB
        Size of the body of a request in bytes. Larger bodies get status 413.
    max_row_bytes : int, default=256 KiB
        Size of the JSON of a row in bytes. Larger rows get 422, and are not parsed to their end.
        The process does nothing else while it parses a row. `max_body_bytes` limits rows as well;
        raise both for larger rows.
    max_buffered_bytes : int, default=64 MiB
        Size of all bodies in memory together in bytes. Further requests get 503.
    max_rows : int, default=10_000
        Number of rows of a request. Requests with more get 422.
    max_waiting : int, default=256
        Number of requests that are validated, queued or predicted. Further requests get 503.
    max_connections : int, default=512
        Number of open connections. Further requests get 503, and connections far beyond the limit
        are closed.
    header_seconds : float, default=10.0
        Time for the head of a request in seconds, from its connection or its first byte.
    body_seconds : float, default=20.0
        Time for the body of a request in seconds. Slower requests get 408.
    request_seconds : float, default=30.0
        Time from the end of the body to the response in seconds. Requests that take longer get 503.
    keep_alive_seconds : float, default=5.0
        Time for which a connection may be idle between requests, and for reading the last response
        of a closing connection, in seconds.
    drain_seconds : float, default=0.0
        Time for which requests are still accepted after SIGTERM, while ``/ready`` responds with
        503, in seconds.
    shutdown_seconds : float, default=20.0
        Time after that until requests in flight are cancelled, in seconds.

    Notes
    -----
    The limits of connections, heads, idle connections and shutdown are those of :func:`serve`.
    Other servers have their own options for these limits.

    Raises
    ------
    ValueError
        If a limit is not a positive number; `drain_seconds` may be 0. The message names the
        parameter.
    """

    max_body_bytes: int = 8 * 2**20
    max_row_bytes: int = 256 * 2**10
    max_buffered_bytes: int = 64 * 2**20
    max_rows: int = 10_000
    max_waiting: int = 256
    max_connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    request_seconds: float = 30.0
    keep_alive_seconds: float = 5.0
    drain_seconds: float = 0.0
    shutdown_seconds: float = 20.0

    def __post_init__(self):
        """Check each limit."""
        for field in fields(self):
            if field.name.startswith("max_"):
                bounds = {"low": 1, "integer": True}
            else:
                bounds = {"low": 0, "exclusive": field.name != "drain_seconds"}
            check_number("Limits", field.name, getattr(self, field.name), **bounds)


def prepared_keys(api_key):
    """Return API keys as bytes.

    Parameters
    ----------
    api_key : str, list of str or None
        One key, several keys, or None for a service without keys.

    Returns
    -------
    list of bytes or None

    Raises
    ------
    ValueError
        If the list is empty, or a key is empty or has whitespace.
    """
    if api_key is None:
        return None
    keys = [api_key] if isinstance(api_key, str) else list(api_key)
    if not keys or not all(isinstance(key, str) and key and len(key.split()) == 1 for key in keys):
        raise ValueError(
            "api_key must be a non-empty string without whitespace, or a list of such strings"
        )
    return [key.strip().encode() for key in keys]


class Refused(Exception):
    """Raised for a request that gets an error response before it reaches the application."""


class Guard:
    """ASGI middleware that checks API keys and enforces limits of bodies and times.

    Parameters
    ----------
    app : ASGI application
        Application that handles accepted requests.
    limits : Limits
        Limits to enforce.
    keys : list of bytes or None
        Valid API keys; None for a service without keys.
    metrics : Metrics
        Metrics that count requests.
    """

    def __init__(self, app, limits, keys, metrics):
        self.app = app
        self.limits = limits
        self.keys = keys
        self.metrics = metrics
        self.buffered = 0

    async def __call__(self, scope, receive, send):
        """Handle an ASGI request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        request = GuardedRequest(scope, receive, send)
        begin = time.perf_counter()
        status = 500
        try:
            with self.metrics.in_flight.track_inprogress():
                await self._handle(path, request)
            status = request.status or DISCONNECTED
        finally:
            self.buffered -= len(request.body)
            self.metrics.observe_request(path, status, time.perf_counter() - begin)

    async def _handle(self, path, request):
        try:
            if self.keys is not None and path not in OPEN_PATHS:
                self._check_key(request)
            if not await self._read_body(request):
                return  # The client has disconnected.
            async with asyncio.timeout(self.limits.request_seconds) as limit:
                await self.app(request.scope, request.replay, request.send)
        except Refused as refused:
            await request.refuse(*refused.args)
        except TimeoutError:
            if request.status is not None or not limit.expired():
                raise
            message = "the request took too long; the service is busy"
            await request.refuse(503, message, RETRY_AFTER)

    def _check_key(self, request):
        scheme, _, credentials = request.header(b"authorization").partition(b" ")
        # All keys are compared, so that the time does not depend on which one matches.
        matches = [hmac.compare_digest(credentials.strip(), key) for key in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            header = (b"www-authenticate", b"Bearer")
            raise Refused(401, "needs the header 'Authorization: Bearer' with an API key", header)

    async def _read_body(self, request):
        """Read the body into memory, and return whether the client is still connected."""
        too_large = Refused(413, f"the body has more than {self.limits.max_body_bytes} bytes")
        length = request.header(b"content-length")
        if length.isdigit() and int(length[:20]) > self.limits.max_body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while not request.complete:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk = message.get("body", b"")
                    if len(request.body) + len(chunk) > self.limits.max_body_bytes:
                        raise too_large
                    if self.buffered + len(chunk) > self.limits.max_buffered_bytes:
                        message = "the service has too many requests in memory"
                        raise Refused(503, message, RETRY_AFTER)
                    self.buffered += len(chunk)
                    request.body += chunk
                    request.complete = not message.get("more_body", False)
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time") from None
        return True


class GuardedRequest:
    """A request whose body is read before the application runs, and the status of its response."""

    def __init__(self, scope, receive, send):
        self.scope = scope
        self.receive = receive
        self.status = None
        self.body = bytearray()
        lengths = self.header(b"content-length"), self.header(b"transfer-encoding")
        self.complete = lengths in {(b"", b""), (b"0", b"")}
        self._send = send
        self._replayed = False

    def header(self, name):
        """Return the value of a header; empty if there is none."""
        return next((value for key, value in self.scope["headers"] if key == name), b"")

    async def replay(self):
        """Receive the body, and then further messages of the server."""
        if self._replayed:
            return await self.receive()
        self._replayed = True
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}

    async def refuse(self, status, detail, *headers):
        """Send an error as JSON, and drop what the client is still sending."""
        body = json.dumps({"detail": detail}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length, *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            # There is no need to wait for a client whose body was too slow.
            async with asyncio.timeout(LINGER_SECONDS if status != 408 else 0):
                while not self.complete:
                    message = await self.receive()
                    self.complete = not message.get("more_body", False)
        await self.send({"type": "http.response.body", "body": b""})

    async def send(self, message):
        """Send a message, and close the connection if the body was not read to its end."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.complete:
                message = {**message, "headers": [*message.get("headers", []), CLOSE]}
        await self._send(message)
