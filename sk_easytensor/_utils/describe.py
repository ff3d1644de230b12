"""Describe callables as texts that are equal in every process, for digests and comparisons."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from types import CodeType, FunctionType

import numpy as np

__all__ = [
    "describe_object",
]


def describe_object(value):
    """Return a text that identifies an object by its behaviour, without memory addresses.

    Parameters
    ----------
    value : object
        The text of a function contains its name and a digest of its code, defaults and closure;
        that of another callable its class and attributes.

    Returns
    -------
    str
        Different texts for objects that behave differently.

    Examples
    --------
    >>> double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
    >>> describe_object(double) == describe_object(triple)
    False
    """
    if isinstance(value, FunctionType):
        enclosed = [enclosed_value(cell) for cell in value.__closure__ or ()]
        parts = [code_text(value.__code__), value.__defaults__, value.__kwdefaults__, enclosed]
        text = "".join(map(describe_object, parts))
        return f"{value.__qualname__} ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
    if isinstance(value, partial):
        return f"partial of {describe_object([value.func, value.args, value.keywords])}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe_object, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {describe_object(item)}' for key, item in value.items())}}}"
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tolist()}"
    if callable(value) and not hasattr(value, "__qualname__"):
        return f"{type(value).__qualname__} {describe_object(getattr(value, '__dict__', {}))}"
    name = getattr(value, "__qualname__", None)
    return name or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def enclosed_value(cell):
    """Return the value of a closure cell, or its code if the value is a function."""
    try:
        value = cell.cell_contents
    except ValueError:
        return None
    return code_text(value.__code__) if isinstance(value, FunctionType) else value


def code_text(code):
    """Return a code object as text, with the code of functions within it."""
    return f"{code.co_code.hex()} {list(map(constant_text, code.co_consts))} {code.co_names}"


def constant_text(value):
    """Return a constant of a code object as text."""
    if isinstance(value, CodeType):
        return code_text(value)
    # The order of a set of strings differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
