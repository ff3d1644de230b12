"""Where work runs."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.backends.base import Backend
    from sk_easytensor.backends.local import LocalBackend
    from sk_easytensor.backends.ray.backend import RayBackend

__all__ = ["Backend", "LocalBackend", "RayBackend", "resolve_backend"]

# Processes that hold no data import its small modules without torch.
__getattr__, __dir__ = lazy_names(
    __name__, {".base": ["Backend"], ".local": ["LocalBackend"], ".ray": ["RayBackend"]}
)


def resolve_backend(backend, n_jobs):
    """Return the backend for a name or object.

    Parameters
    ----------
    backend : "local", "ray" or Backend
        What the user gave.
    n_jobs : int or None
        Threads, if the backend is given by name.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        For anything else.
    """
    from sk_easytensor.backends.base import Backend

    if isinstance(backend, Backend):
        return backend
    if isinstance(backend, str) and backend == "local":
        from sk_easytensor.backends.local import LocalBackend

        return LocalBackend(n_jobs)
    if isinstance(backend, str) and backend == "ray":
        from sk_easytensor.backends.ray.backend import RayBackend

        return RayBackend(n_jobs=n_jobs)
    raise ValueError(
        "backend must be 'local', 'ray' or a Backend, such as LocalBackend() or RayBackend(), got "
        f"{backend!r}"
    )
