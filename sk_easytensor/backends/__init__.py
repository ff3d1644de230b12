"""Backends: execution of fits and predictions in this process or on a Ray cluster."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.backends.base import Backend, LocalBackend
    from sk_easytensor.backends.ray.backend import RayBackend

__all__ = ["Backend", "LocalBackend", "RayBackend", "resolve_backend"]

# Actors without data import the small modules of this package without importing torch.
__getattr__, __dir__ = lazy_names(
    __name__, {".base": ["Backend", "LocalBackend"], ".ray": ["RayBackend"]}
)


def resolve_backend(backend, n_jobs):
    """Return the backend for a name or object.

    Parameters
    ----------
    backend : "local", "ray" or Backend
        Parameter ``backend`` of an estimator.
    n_jobs : int or None
        Number of threads, if `backend` is a name.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        If `backend` is anything else.
    """
    from sk_easytensor.backends.base import Backend

    if isinstance(backend, Backend):
        return backend
    if isinstance(backend, str) and backend == "local":
        from sk_easytensor.backends.base import LocalBackend

        return LocalBackend(n_jobs)
    if isinstance(backend, str) and backend == "ray":
        from sk_easytensor.backends.ray.backend import RayBackend

        return RayBackend(n_jobs=n_jobs)
    raise ValueError(
        "backend must be 'local', 'ray' or a Backend, such as LocalBackend() or RayBackend(), got "
        f"{backend!r}"
    )
