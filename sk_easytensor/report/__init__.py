"""A fitted model on one page of HTML."""

from sk_easytensor.report.report import write_report

__all__ = ["write_report"]
