"""Prometheus metrics of the service."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

__all__ = [
    "Metrics",
]


ROUTES = frozenset(
    {"/predict", "/model", "/health", "/ready", "/metrics", "/docs", "/openapi.json"}
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
