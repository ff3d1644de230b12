"""Support for saving and loading estimators with skops, in files without code.

The state of fitted estimators and blocks consists of NumPy arrays, bytes and plain Python values,
which :mod:`skops.io` writes without pickle. Arrow arrays are converted to bytes.
"""

from __future__ import annotations

import importlib
import inspect
import sys

import pyarrow as pa

__all__ = [
    "ArrowBytes",
    "ArrowStateMixin",
    "trusted_types",
]


class ArrowBytes:
    """Arrow array as bytes in Arrow's IPC stream format.

    Parameters
    ----------
    array : pyarrow.Array or pyarrow.ChunkedArray
        Array to store.
    """

    def __init__(self, array):
        self.chunked = isinstance(array, pa.ChunkedArray)
        table = pa.table({"array": array})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self.data = sink.getvalue().to_pybytes()

    def array(self):
        """Return the array."""
        column = pa.ipc.open_stream(self.data).read_all().column("array")
        return column if self.chunked else column.combine_chunks()


class ArrowStateMixin:
    """Pickle Arrow arrays, in lists, tuples and dictionaries too, as :class:`ArrowBytes`."""

    def __getstate__(self):
        """Return the state to pickle, with Arrow arrays as bytes."""
        state = super().__getstate__()
        return _mapped(state, (pa.Array, pa.ChunkedArray), ArrowBytes)

    def __setstate__(self, state):
        """Restore a pickled state."""
        state = _mapped(state, ArrowBytes, ArrowBytes.array)
        if hasattr(super(), "__setstate__"):
            super().__setstate__(state)
        else:
            vars(self).update(state)


def _mapped(value, kind, function):
    """Apply a function to the instances of a class in nested containers."""
    if isinstance(value, kind):
        return function(value)
    if type(value) is dict:
        return {key: _mapped(item, kind, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, kind, function) for item in value)
    return value


def trusted_types():
    """Return the names of the types in saved estimators of this library.

    Returns
    -------
    list of str
        Names for ``skops.io.load(file, trusted=...)`` and for ``skops_trusted_types`` of MLflow,
        without the types of your own blocks.

    Examples
    --------
    >>> "sk_easytensor.blocks.numeric.NumericBlock" in trusted_types()
    True
    """
    package = __name__.partition(".")[0]
    public = importlib.import_module(package)
    # Accessing the public names imports their modules.
    for name in public.__all__:
        getattr(public, name)
    type_names = {
        f"{kind.__module__}.{kind.__qualname__}"
        for name, module in sys.modules.copy().items()
        if name.partition(".")[0] == package
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__.partition(".")[0] == package
    }
    return sorted(type_names)
