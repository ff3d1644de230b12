"""Packages whose names are imported when they are asked for."""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = [
    "lazy_names",
]


def lazy_names(package, modules, subpackages=(), module=None):
    """Return a package's ``__getattr__`` and ``__dir__``.

    Parts that do without torch, such as what serves an exported model, can be imported from a
    package that is lazy without it.

    Parameters
    ----------
    package : str
        Its name.
    modules : dict of {str: list of str}
        For each module, relative to the package, the names that come from it.
    subpackages : sequence of str
        Parts of the package that are names of it themselves.
    module : str, optional
        Whose the names are, if it is another than the package.

    Returns
    -------
    callable, callable

    Examples
    --------
    >>> modules = {"._utils.validation": ["check_number"]}
    >>> __getattr__, __dir__ = lazy_names("sk_easytensor", modules)
    >>> __getattr__("check_number").__module__
    'sk_easytensor._utils.validation'
    """
    owner = package if module is None else module
    places = {name: where for where, names in modules.items() for name in names}

    def get(name):
        if name in subpackages:
            return import_module(f".{name}", package)
        if name not in places:
            raise AttributeError(f"module {owner!r} has no attribute {name!r}")
        value = getattr(import_module(places[name], package), name)
        setattr(sys.modules[owner], name, value)
        return value

    def names():
        return sorted({*vars(sys.modules[owner]), *places, *subpackages})

    return get, names
