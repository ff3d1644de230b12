"""Block of the offset column, whose numbers are added to the outputs of a model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor.blocks.base import Block
from sk_easytensor.data.arrow_columns import arrow_column
from sk_easytensor.data.columns import RowError, show_value, to_float64, type_name
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "BASE_MARGIN",
    "OffsetBlock",
    "margin_column",
]


BASE_MARGIN = "base_margin"
"""Name of the offset column if offsets are passed as an array."""


class OffsetBlock(Block):
    """Read the column of offsets, from the parameter ``offset`` or the array ``base_margin``.

    The output of its module is no input of the network. It is added to the outputs of each member
    of the network, and to those of the trees.

    Raises
    ------
    TypeError
        If the column does not hold numbers.
    ValueError
        If an offset is missing or not finite in single precision. The message names column and
        row.
    """

    kind = "offset"
    accepted = "integers, floats, decimals"
    column_wise = True

    @classmethod
    def accepts(cls, column_type):
        types = pa.types
        # A column without values is accepted here, so that the error of encode names the row.
        tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
        return any(test(column_type) for test in tests)

    def fit_columns(self, table, *, named=True):
        for field, column in zip(table.schema, table.columns, strict=True):
            if not self.accepts(field.type):
                example = f", such as {show_value(column[0])}" if len(column) else ""
                raise TypeError(
                    f"offset: column {field.name!r} is of type {type_name(field.type)}{example}; "
                    "offsets must be numbers"
                )
        return super().fit_columns(table, named=named)

    def summarize(self, table):
        return SummaryMap()

    def finish(self, summary):
        return self

    def encode(self, table):
        name = table.column_names[0]
        values = to_float64(table.column(0), name, block="offset")
        with np.errstate(over="ignore"):
            encoded = values.astype(np.float32)
        finite = np.isfinite(encoded)
        if not finite.all():
            row = int(np.argmin(finite))
            value = "missing" if np.isnan(values[row]) else f"{values[row]:g}"
            raise RowError(
                f"offset: column {name!r} is {value} in row {{row}}; offsets must be finite "
                "numbers up to 3e38 in size (0 changes nothing)",
                row,
            )
        return {"values": torch.from_numpy(encoded[:, None])}

    def example(self, n_rows):
        return {"values": torch.zeros(n_rows, 1)}

    def make_module(self):
        return OffsetModule()

    def to_onnx(self, graph):
        values = graph.column(self.feature_names_in_[0], "number")
        return {"values": graph.cast(graph.op("Unsqueeze", values, np.array([1])), np.float32)}

    def get_feature_names_out(self, input_features=None):
        return self.feature_names_in_


class OffsetModule(BlockModule):
    """Scale offsets to the scale of the network's outputs.

    Attributes
    ----------
    is_offset : bool
        True: the output is added to the outputs of the network.
    """

    out_features = 1
    is_offset = True

    def __init__(self):
        super().__init__()
        # Not part of the state dict, because they are attributes of the head.
        self.register_buffer("center", torch.zeros(()), persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def scale_for(self, head):
        """Set center and scale to those of a head."""
        self.center.fill_(head.offset_center)
        self.scale.fill_(head.offset_scale)

    def forward(self, values):
        """Return the offsets on the scale of the outputs, of shape (batch, 1)."""
        return (values - self.center) / self.scale


def margin_column(base_margin, n_rows):
    """Convert an array of offsets to a column.

    Parameters
    ----------
    base_margin : array-like of shape (n_rows,) or (n_rows, 1), or number
        Offsets passed by the user; a number applies to all rows.
    n_rows : int
        Number of rows.

    Returns
    -------
    pyarrow.Array of float64

    Raises
    ------
    TypeError
        If it does not hold numbers.
    ValueError
        If it is of another shape, or names a column.
    """
    if isinstance(base_margin, str):
        raise ValueError(
            f"base_margin must be an array, got {base_margin!r}; to use a column of X, name it in "
            "the parameter offset of the estimator"
        )
    if np.ndim(base_margin) == 0 and np.isscalar(base_margin):
        base_margin = np.full(n_rows, base_margin)
    shape = np.shape(base_margin)
    if shape == (n_rows, 1):
        base_margin = np.asarray(base_margin)[:, 0]
    elif shape != (n_rows,):
        raise ValueError(
            f"base_margin must have one number for each of the {n_rows} rows, got shape {shape}"
        )
    column = arrow_column(base_margin, BASE_MARGIN)
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(test(column.type) for test in tests):
        raise TypeError(f"base_margin must hold numbers, got {type_name(column.type)}")
    return pa.array(to_float64(column, BASE_MARGIN, block="base_margin"))
