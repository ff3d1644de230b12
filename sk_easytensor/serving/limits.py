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
"""That the rest of a refused body is read and dropped. If the connection were closed at once, a
client that is still sending would see an error instead of the response."""

DISCONNECTED = 499
"""Status that metrics count for clients that left before there was a response."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the service.

    Parameters
    ----------
    max_body_bytes : int, default=8 MiB
        Of a request; 413 beyond.
    max_row_bytes : int, default=256 KiB
        Of a row as it is in the body; 422 beyond, and no more of the row is parsed. JSON of a row
        is parsed in one go, in which the process does nothing else. `max_body_bytes` bounds a row
        as well: raise both for larger ones.
    max_buffered_bytes : int, default=64 MiB
        Of all bodies that are in memory at once; 503 beyond.
    max_rows : int, default=10_000
        Of a request; 422 beyond.
    max_waiting : int, default=256
        Requests whose rows are validated, wait for the model or are predicted; 503 beyond.
    max_connections : int, default=512
        Open connections; further requests get 503, and connections far beyond are closed.
    header_seconds : float, default=10.0
        For the head of a request, from its connection or its first byte.
    body_seconds : float, default=20.0
        For the body of a request; 408 beyond.
    request_seconds : float, default=30.0
        From the end of the body to the response; 503 beyond.
    keep_alive_seconds : float, default=5.0
        That a connection may be idle between requests, and that a closing one has for reading
        the last response.
    drain_seconds : float, default=0.0
        That requests are still accepted after SIGTERM, while ``/ready`` gives 503.
    shutdown_seconds : float, default=20.0
        Until requests in flight are cancelled after that.

    Notes
    -----
    The limits of connections, heads, idle connections and shutdown are those of :func:`serve`.
    Other servers have options of their own for them.

    Raises
    ------
    ValueError
        Naming the parameter, if a bound is not a positive number (`drain_seconds` may be 0).
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
        """Check each bound."""
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
        One key or several, or none.

    Returns
    -------
    list of bytes or None

    Raises
    ------
    ValueError
        If there is no key among them, or one is empty or has whitespace.
    """
    if api_key is None:
        return None
    keys = [api_key] if isinstance(api_key, str) else list(api_key)
    if not keys or not all(isinstance(key, str) and key and len(key.split()) == 1 for key in keys):
        raise ValueError(
            "api_key must be a string without whitespace, not empty, or a list of them"
        )
    return [key.strip().encode() for key in keys]


class Refused(Exception):
    """A request that gets an error before the application sees it."""


class Guard:
    """Checks keys, reads bodies within the limits, and bounds the time of a request.

    Parameters
    ----------
    app : ASGI application
        What requests go to that pass.
    limits : Limits
    keys : list of bytes or None
        Keys that clients may have; None for a service without keys.
    metrics : Metrics
        Where requests are counted.
    """

    def __init__(self, app, limits, keys, metrics):
        self.app = app
        self.limits = limits
        self.keys = keys
        self.metrics = metrics
        self.buffered = 0

    async def __call__(self, scope, receive, send):
        """Handle a request as ASGI describes it."""
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
                return  # The client is gone.
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
        scheme, _, given = request.header(b"authorization").partition(b" ")
        # All keys are compared, so that the time does not depend on which one fits.
        fits = [hmac.compare_digest(given.strip(), key) for key in self.keys]
        if scheme.lower() != b"bearer" or not any(fits):
            header = (b"www-authenticate", b"Bearer")
            raise Refused(401, "needs the header 'Authorization: Bearer' with an API key", header)

    async def _read_body(self, request):
        """Read the body into memory; return whether the client is still there."""
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
    """A request whose body was read ahead, and what was sent in response."""

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
        """Return the value of a header, empty if there is none."""
        return next((value for key, value in self.scope["headers"] if key == name), b"")

    async def replay(self):
        """Receive the body, and then whatever else the server has to say."""
        if self._replayed:
            return await self.receive()
        self._replayed = True
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}

    async def refuse(self, status, detail, *headers):
        """Send a JSON error, and read what the client has sent by then without keeping it."""
        body = json.dumps({"detail": detail}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length, *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            # A client whose body came too slowly has nothing more under way.
            async with asyncio.timeout(LINGER_SECONDS if status != 408 else 0):
                while not self.complete:
                    message = await self.receive()
                    self.complete = not message.get("more_body", False)
        await self.send({"type": "http.response.body", "body": b""})

    async def send(self, message):
        """Send, and close the connection after a response to a body that was not read."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.complete:
                message = {**message, "headers": [*message.get("headers", []), CLOSE]}
        await self._send(message)
