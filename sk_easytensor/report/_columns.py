"""What is said of columns: types and missing values seen by fit, the rest known by the blocks."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import pyarrow.compute as pc

from sk_easytensor.blocks import (
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    SparseBlock,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.report._page import number
from sk_easytensor.type_names import type_name

__all__ = ["describe_columns", "summarize_table", "summarize_target"]

SHOWN_CATEGORIES, LONGEST_VALUE = 5, 40
MOST_CLASSES = 50


def summarize_table(table):
    """Return what a fit remembers of its table: rows, types and missing values, and no value.

    Parameters
    ----------
    table : pyarrow.Table
        Training rows.

    Returns
    -------
    dict
        ``rows``, and ``columns``: a dictionary of (type, rows without a value) by name.
    """
    columns = {
        name: (type_name(column.type), int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0))
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return {"rows": len(table), "columns": columns}


def summarize_target(y, classes=None):
    """Return what a fit remembers of its target.

    Parameters
    ----------
    y : array of shape (n_samples,) or (n_samples, n_outputs)
        A valid target.
    classes : ndarray, optional
        The classes, if it is of classes; labels in columns of their own are 0 or 1.

    Returns
    -------
    dict
        ``counts`` of at most 50 classes or labels, or ``quantiles`` of each output, at 0%, 25%,
        50%, 75% and 100%.
    """
    if classes is None:
        return {"quantiles": np.quantile(y.reshape(len(y), -1), np.linspace(0, 1, 5), axis=0).T}
    if np.ndim(y) == 2:
        counts = np.asarray(y.sum(axis=0), dtype=np.int64).reshape(-1)
    else:
        counts = np.bincount(np.searchsorted(classes, y), minlength=len(classes))
    return {"counts": counts[:MOST_CLASSES]}


def describe_columns(blocks):
    """Return, for each column, the names of blocks that read it and what they know of it.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.

    Returns
    -------
    dict of {str: list of (str, str)}
    """
    found = {}
    for name, block in blocks.items():
        known = describe(block)
        for column in block.feature_names_in_:
            found.setdefault(column, []).append((name, known.get(column, "")))
    return found


@singledispatch
def describe(block):
    """Return what a fitted block knows of its columns, a dictionary of sentences by column."""
    return {}


@describe.register
def _(block: NumericBlock):
    return _by_column(block, map(_spread, block.edges_))


@describe.register
def _(block: DatetimeBlock):
    return _by_column(block, (_spread(edges, _instant) for edges in block.edges_))


@describe.register
def _(block: CategoryBlock):
    # That of events without categories has no columns.
    if block.hash_buckets is not None:
        return _by_column(block, [f"hashed into {block.hash_buckets:,}"] * block.n_features_in_)
    return _by_column(block, map(_categories, block.categories_, block.counts_))


@describe.register
def _(block: CategorySequenceBlock):
    return _by_column(block, map(_categories, block.categories_, block.counts_))


@describe.register
def _(block: NumericSequenceBlock):
    levels = zip(block.center_, block.scale_, strict=True)
    return _by_column(block, (f"centre {number(a)}, spread {number(b)}" for a, b in levels))


@describe.register
def _(block: EventSequenceBlock):
    # What its inner blocks know goes by the names of their own columns, which are this block's.
    inner = {**describe(block.number_block_), **describe(block.category_block_)}
    return {
        name: "; ".join(filter(None, [f"{kind} of each event", inner.get(name, "")]))
        for name, kind in block.kinds_.items()
    }


@describe.register
def _(block: VectorBlock):
    return _by_column(block, (f"{np.size(mean)} dimensions" for mean in block.mean_))


@describe.register
def _(block: TextBlock):
    return _by_column(block, [f"text, encoder {block.encoder!r}"] * block.n_features_in_)


@describe.register
def _(block: SparseBlock):
    pairs = zip(block.features_, block.lengths_, strict=True)
    return _by_column(
        block, (f"{len(read):,} of {size:,} sparse features are read" for read, size in pairs)
    )


def _by_column(block, sentences):
    return dict(zip(block.feature_names_in_, sentences, strict=False))


def _spread(edges, show=number):
    if len(edges) == 0:
        return "always missing"
    lowest, lower, upper, highest = np.quantile(edges, [0, 0.25, 0.75, 1])
    if lowest == highest:
        return f"always {show(lowest)}"
    return (
        f"from {show(lowest)} to {show(highest)}; half of the {len(edges) - 1:,} bins "
        f"from {show(lower)} to {show(upper)}"
    )


def _instant(seconds):
    return str(np.datetime64(round(seconds), "s")).replace("T", " ")


def _categories(values, counts):
    if len(values) == 0:
        return "always missing"
    shown = [
        f"{value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + '…'} ({count:,})"
        for value, count in zip(
            values[:SHOWN_CATEGORIES].to_pylist(), counts[:SHOWN_CATEGORIES], strict=True
        )
    ]
    more = ", …" if len(values) > SHOWN_CATEGORIES else ""
    noun = "category" if len(values) == 1 else "categories"
    return f"{len(values):,} {noun}: {', '.join(shown)}{more}"
