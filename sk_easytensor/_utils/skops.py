"""Files that hold no code: what is needed to save and load estimators with skops.

Fitted estimators and blocks consist of NumPy arrays, bytes and plain Python values, so that
:mod:`skops.io` writes them without pickle. Arrow arrays become bytes on the way.
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
    """An Arrow array as bytes.

    Parameters
    ----------
    array : pyarrow.Array or pyarrow.ChunkedArray
        What is kept, in the format of Arrow's streams.
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
        """Return what is pickled."""
        state = super().__getstate__()
        return _mapped(state, (pa.Array, pa.ChunkedArray), ArrowBytes)

    def __setstate__(self, state):
        """Restore what was pickled."""
        state = _mapped(state, ArrowBytes, ArrowBytes.array)
        if hasattr(super(), "__setstate__"):
            super().__setstate__(state)
        else:
            vars(self).update(state)


def _mapped(value, kind, function):
    """Apply a function to values of a kind in nested containers."""
    if isinstance(value, kind):
        return function(value)
    if type(value) is dict:
        return {key: _mapped(item, kind, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, kind, function) for item in value)
    return value


def trusted_types():
    """Return the names of the types that a saved estimator consists of.

    Returns
    -------
    list of str
        For ``skops.io.load(file, trusted=...)`` and for the ``skops_trusted_types`` of MLflow. The
        types of blocks of your own are not among them.

    Examples
    --------
    >>> "sk_easytensor.blocks.numeric.NumericBlock" in trusted_types()
    True
    """
    package = __name__.partition(".")[0]
    public = importlib.import_module(package)
    # Their modules are imported with them.
    for name in public.__all__:
        getattr(public, name)
    found = {
        f"{kind.__module__}.{kind.__qualname__}"
        for name, module in sys.modules.copy().items()
        if name.partition(".")[0] == package
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__.partition(".")[0] == package
    }
    return sorted(found)
