"""Where work runs."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.backends.local import LocalBackend
    from sk_easytensor.backends.ray.backend import RayBackend

__all__ = ["LocalBackend", "RayBackend", "resolve_backend"]

# Processes that hold no data import its small modules without torch.
__getattr__, __dir__ = lazy_names(__name__, {".local": ["LocalBackend"], ".ray": ["RayBackend"]})


def resolve_backend(backend, n_jobs):
    """Return the backend for a name or object.

    Parameters
    ----------
    backend : "local", "ray", LocalBackend or RayBackend
        What the user asked for.
    n_jobs : int or None
        Threads, if the backend is given by name.

    Returns
    -------
    LocalBackend or RayBackend

    Raises
    ------
    ValueError
        For anything else.
    """
    from sk_easytensor.backends.local import LocalBackend

    if isinstance(backend, LocalBackend):
        return backend
    if backend == "local":
        return LocalBackend(n_jobs)
    if backend == "ray":
        from sk_easytensor.backends.ray.backend import RayBackend

        return RayBackend(n_jobs=n_jobs)
    raise ValueError(
        f"backend must be 'local', 'ray', a LocalBackend or a RayBackend, got {backend!r}"
    )
