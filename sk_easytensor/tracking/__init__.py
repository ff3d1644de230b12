"""Records of fits in MLflow; MLflow itself is imported when a fit is tracked, and not before."""

from sk_easytensor.tracking.record import upload
from sk_easytensor.tracking.tracker import MLflowTracker, tracked

__all__ = ["MLflowTracker", "tracked", "upload"]
