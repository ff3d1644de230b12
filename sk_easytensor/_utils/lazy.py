"""Packages that import their public names on first access."""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = [
    "lazy_names",
]


def lazy_names(package, modules, subpackages=(), module=None):
    """Return ``__getattr__`` and ``__dir__`` of a package that imports names on first access.

    Parts of the package that do not need torch, such as those that serve exported models, can then
    be imported without torch.

    Parameters
    ----------
    package : str
        Name of the package.
    modules : dict of {str: list of str}
        Public names of each module, whose name is relative to the package.
    subpackages : sequence of str, default=()
        Subpackages that are attributes of the package.
    module : str, optional
        Name of the module with the two functions; by default that of the package.

    Returns
    -------
    __getattr__, __dir__ : callable
        Functions for the module.

    Examples
    --------
    >>> modules = {"._utils.validation": ["check_number"]}
    >>> __getattr__, __dir__ = lazy_names("sk_easytensor", modules)
    >>> __getattr__("check_number").__module__
    'sk_easytensor._utils.validation'
    """
    owner = package if module is None else module
    sources = {name: source for source, names in modules.items() for name in names}

    def get(name):
        if name in subpackages:
            return import_module(f".{name}", package)
        if name not in sources:
            raise AttributeError(f"module {owner!r} has no attribute {name!r}")
        value = getattr(import_module(sources[name], package), name)
        setattr(sys.modules[owner], name, value)
        return value

    def names():
        return sorted({*vars(sys.modules[owner]), *sources, *subpackages})

    return get, names
