"""Where work runs."""

from sk_easytensor.backends.local import LocalBackend

__all__ = ["LocalBackend", "resolve_backend"]


def resolve_backend(backend, n_jobs):
    """Return the backend for a name or object.

    Parameters
    ----------
    backend : "local" or LocalBackend
        What the user asked for.
    n_jobs : int or None
        Threads, if the backend is given by name.

    Returns
    -------
    LocalBackend

    Raises
    ------
    ValueError
        For anything else.
    """
    if isinstance(backend, LocalBackend):
        return backend
    if backend == "local":
        return LocalBackend(n_jobs)
    raise ValueError(f"backend must be 'local' or a LocalBackend, got {backend!r}")
