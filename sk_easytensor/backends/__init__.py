"""Where work runs."""

from sk_easytensor.backends.local import LocalBackend

__all__ = ["LocalBackend", "RayBackend", "resolve_backend"]


def __getattr__(name):
    # Its modules import the estimators' helpers, which import this package.
    if name == "RayBackend":
        from sk_easytensor.backends.ray import RayBackend

        return RayBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    if isinstance(backend, LocalBackend):
        return backend
    if backend == "local":
        return LocalBackend(n_jobs)
    if backend == "ray":
        from sk_easytensor.backends.ray import RayBackend

        return RayBackend(n_jobs=n_jobs)
    raise ValueError(
        f"backend must be 'local', 'ray', a LocalBackend or a RayBackend, got {backend!r}"
    )
