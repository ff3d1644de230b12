"""Names of types for the signatures of public classes.

Aliases are strings, so that importing them imports no other library. Type checkers resolve them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import datetime as dt
    import os
    from collections.abc import Mapping, Sequence
    from typing import Literal

    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa
    import torch
    from scipy import sparse
    from skorch.callbacks import Callback

    from sk_easytensor.backends import Backend
    from sk_easytensor.blocks import Block
    from sk_easytensor.losses import Loss

__all__ = [
    "ArrayLike",
    "BackendLike",
    "BlockSpec",
    "CallbackSpec",
    "ColumnSelection",
    "Dataset",
    "Duration",
    "EngineName",
    "EvalSet",
    "LossLike",
    "Method",
    "MetricLike",
    "MonotonicConstraints",
    "OptimizerLike",
    "PathLike",
    "Predictions",
    "RandomStateLike",
    "SparseMatrix",
    "TableLike",
    "TargetLike",
    "Trunk",
]


Method = TypeVar("Method", bound=Callable[..., Any])
"""A method that a decorator returns with the same signature."""


class ArrowStream(Protocol):
    """A data frame or a column that exports the Arrow stream interface, as those of polars do."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class LazyFrame(Protocol):
    """A query, such as a ``LazyFrame`` of polars, that returns a data frame."""

    def collect(self) -> Any:
        """Run the query."""
        ...


class Dataset(Protocol):
    """A stored table that is read in batches, such as a ``ray.data.Dataset``."""

    def schema(self) -> Any:
        """Return the names and types of the columns."""
        ...

    def limit(self, limit: int, /) -> Any:
        """Return a data set of the first rows."""
        ...

    def iter_batches(self, *, batch_size: int | None = ..., batch_format: str = ...) -> Any:
        """Iterate over tables of rows."""
        ...


class Trunk(Protocol):
    """A network between blocks and head, such as ``TabM()``."""

    def make_module(self, in_features: int) -> torch.nn.Module:
        """Return a module that has ``out_features``."""
        ...


PathLike: TypeAlias = "str | os.PathLike[str]"

ArrayLike: TypeAlias = "npt.ArrayLike | pd.Series | pa.Array | pa.ChunkedArray | ArrowStream"
"""One value for each row, or one row of numbers for each row."""

SparseMatrix: TypeAlias = "sparse.spmatrix | sparse.sparray"

TableLike: TypeAlias = (
    "pd.DataFrame | pa.Table | pa.RecordBatch | Mapping[str, Any] | Sequence[Mapping[str, Any]] "
    "| Sequence[Sequence[Any]] | np.ndarray | SparseMatrix | ArrowStream | LazyFrame | PathLike "
    "| Dataset"
)
"""Rows in memory, paths or URLs of Parquet files, or data sets of other libraries."""

TargetLike: TypeAlias = (
    "ArrayLike | pd.DataFrame | pa.Table | Mapping[str, Any] | SparseMatrix | str | Sequence[str]"
)
"""Targets of rows, or the names of the columns of a stored table that hold them."""

EvalSet: TypeAlias = (
    "Sequence[tuple[TableLike, TargetLike] | list[Any]] | tuple[TableLike, TargetLike]"
)
"""Pairs of rows and targets, or a single pair."""

Predictions: TypeAlias = "np.ndarray | Any"
"""An array; for stored rows, a backend may return a data set of its own."""

ColumnSelection: TypeAlias = (
    "str | int | slice | Sequence[str] | Sequence[int] | Sequence[bool] | np.ndarray "
    "| Callable[[Any], Any]"
)
"""Columns by name, position, slice or mask, or a function of the table that returns these."""

BlockSpec: TypeAlias = "tuple[str, Block, ColumnSelection]"
"""Name, block and columns."""

LossLike: TypeAlias = (
    "str | Loss | torch.nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
)

MetricLike: TypeAlias = "str | Callable[..., Any]"

MonotonicConstraints: TypeAlias = "Mapping[str, int] | ArrayLike"

OptimizerLike: TypeAlias = "str | type[torch.optim.Optimizer]"

CallbackSpec: TypeAlias = "Callback | type[Callback] | tuple[str, Callback | type[Callback]]"

BackendLike: TypeAlias = 'Literal["local", "ray"] | Backend'

EngineName: TypeAlias = 'Literal["torch", "auto", "onnxruntime", "tensorrt"]'

RandomStateLike: TypeAlias = "int | np.random.RandomState"

Duration: TypeAlias = "float | str | dt.timedelta | np.timedelta64"
"""A number of seconds, or a duration such as ``"6h"``."""
