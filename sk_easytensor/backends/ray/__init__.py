"""Backend that works on a Ray cluster; Ray is imported when the backend is first used."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.backends.ray.backend import RayBackend

__all__ = ["RayBackend"]

# Processes that hold no data import its small modules without torch.
__getattr__, __dir__ = lazy_names(__name__, {".backend": ["RayBackend"]})
