import warnings
from contextlib import suppress
from functools import cache, wraps

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import settings

# More threads than cores spin against each other when pytest runs several workers.
torch.set_num_threads(1)


def export_with_kept_tables(export):
    """Return ``torch.onnx.export`` that reads its tables of operators once per process.

    Reading them takes half of the time that a small network needs, and every export does it.
    """

    @wraps(export)
    def first(*args, **params):
        torch.onnx.export = export
        # They are not public: where torch has them elsewhere, it reads them as often as it likes.
        with suppress(ImportError, AttributeError):
            keep_tables()
        return export(*args, **params)

    return first


def keep_tables():
    """Keep torch's translations and decompositions of operators after the first export."""
    from torch.onnx._internal.exporter import _decomp, _registration

    registry = _registration.ONNXRegistry
    translations = cache(registry.from_torchlib)
    decompositions = cache(_decomp.create_onnx_friendly_decomposition_table)

    def from_torchlib(cls, *args, **params):
        kept, copied = translations(*args, **params), cls()
        copied._opset_version = kept._opset_version
        # An export adds translations of its own.
        copied.functions = {target: list(found) for target, found in kept.functions.items()}
        return copied

    registry.from_torchlib = classmethod(from_torchlib)
    _decomp.create_onnx_friendly_decomposition_table = lambda registered: dict(
        decompositions(frozenset(registered))
    )


torch.onnx.export = export_with_kept_tables(torch.onnx.export)

# The first example of a property pays for imports, which is no reason to fail.
settings.register_profile("tests", deadline=None, max_examples=40)
settings.load_profile("tests")


def _converted(convert, frame, **params):
    """Convert a frame by way of a library that pandas warns of reading times with a zone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert(frame, **params)


def _rows(frame):
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


# Every way a user may hold a table, each made from a pandas data frame.
FLAVOURS = {
    "pandas": lambda frame: frame,
    "pandas_index": lambda frame: frame.set_axis([f"row{i}" for i in range(len(frame))]),
    "pandas_nullable": lambda frame: frame.convert_dtypes(dtype_backend="numpy_nullable"),
    "pandas_arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda frame: _converted(pl.from_pandas, frame),
    "arrow_table": lambda frame: _converted(pa.Table.from_pandas, frame, preserve_index=False),
    "arrow_chunks": lambda frame: pa.concat_tables(
        _converted(pa.Table.from_pandas, frame[start : start + 3], preserve_index=False)
        for start in range(0, len(frame), 3)
    ),
    "record_batch": lambda frame: _converted(
        pa.RecordBatch.from_pandas, frame, preserve_index=False
    ),
    "dict_of_arrays": lambda frame: {name: frame[name].to_numpy() for name in frame},
    "dict_of_series": lambda frame: {name: frame[name] for name in frame},
    "dict_of_lists": lambda frame: pd.DataFrame(_rows(frame), dtype=object).to_dict("list"),
    "list_of_dicts": _rows,
}


@pytest.fixture(params=FLAVOURS)
def flavour(request):
    """A function that turns a pandas data frame into one of the table types users hold."""
    return FLAVOURS[request.param]


@pytest.fixture
def quick_fits(monkeypatch):
    """Fits of two epochs and without folds, where both are left to the library."""
    base = "sk_easytensor.estimators.training"
    monkeypatch.setattr(f"{base}.default_table_epochs", lambda n_rows: 2)
    monkeypatch.setattr(f"{base}.FEW_ROWS", 0)
