"""Report of a fitted model as one HTML page."""

from sk_easytensor.report.report import write_report

__all__ = ["write_report"]
