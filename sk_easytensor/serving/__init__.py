"""HTTP service of an exported model for rows in JSON, without torch and scikit-learn.

``python -m sk_easytensor.serving model.onnx`` starts it. :func:`make_app` returns the ASGI
application, for deployments with another server. It requires the extra ``serve``.
"""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.serving.app import make_app, serve
    from sk_easytensor.serving.limits import Limits

__all__ = ["Limits", "make_app", "serve"]

__getattr__, __dir__ = lazy_names(__name__, {".app": ["make_app", "serve"], ".limits": ["Limits"]})
