"""Recording of fits in MLflow, which is imported only when a fit is tracked."""

from sk_easytensor.tracking.record import upload
from sk_easytensor.tracking.tracker import MLflowTracker, tracked

__all__ = ["MLflowTracker", "tracked", "upload"]
