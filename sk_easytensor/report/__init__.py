"""A fitted model on one page of HTML."""

from sk_easytensor.report._sections import write_report

__all__ = ["write_report"]
