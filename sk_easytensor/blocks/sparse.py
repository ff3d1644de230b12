"""Sparse matrices, such as counts of words or one-hot codes: a weighted sum of learned vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block
from sk_easytensor.blocks.text_encoders import PROJECTED, NgramModule, interleave, project_lists
from sk_easytensor.data.sparse import SparseRows, encode_sparse, is_sparse, read_sparse
from sk_easytensor.data.sparse import sparse_rows as rows_of
from sk_easytensor.data.summaries import Summary, SummaryMap
from sk_easytensor.tensors import Ragged

__all__ = [
    "SparseBlock",
]


FREQUENT = 0.01
"""Features with a value in at least this fraction of the rows, on average, go to the trunk."""


class SparseBlock(Block):
    """Columns that hold one sparse vector a row, as the rows of a sparse matrix.

    Parameters
    ----------
    width : int, default=32
        Size of each column's vector.
    min_frequency : int, default=1
        Features with a value in fewer rows are left out.
    dropout : float, default=0.1
        Fraction of the vector's components zeroed in training.
    wide : bool or "auto", default="auto"
        Whether the vector goes past the trunk, straight to the last layer, as those of n-grams do.
        Rare features overfit in the trunk, and only the trunk finds interactions between features.
        ``"auto"``: past the trunk unless features have a value in at least 1% of the rows, on
        average, as one-hot codes of a few dozen categories do.

    Attributes
    ----------
    lengths_ : list of int
        Number of features of each column's sparse vectors.
    features_ : list of ndarray of int32
        Features of each column that are read, in increasing order.
    scale_ : list of ndarray of float64
        What the values of each of these features are divided by: the root mean square of those
        that are not zero, times the norm of rows, on average.
    wide_ : bool
        Whether the vector goes past the trunk.

    Notes
    -----
    A row becomes the sum of the learned vectors of its features, weighted by their scaled values.
    The matrix is never made dense: time and memory are linear in its stored values. Missing values
    and features that no row of fit had a value of count as zeros. Scaled values beyond ±10 are
    clipped.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> block = SparseBlock().fit(csr_array([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
    >>> block.features_[0].tolist(), block.lengths_
    ([1, 2], [3])
    >>> block.transform(csr_array([[5.0, 2.0, 4.0]]))["ids"].values.tolist()
    [0, 1]
    """

    kind = "sparse"
    accepted = "rows of sparse matrices"

    def __init__(self, width=32, *, min_frequency=1, dropout=0.1, wide="auto"):
        self.width = width
        self.min_frequency = min_frequency
        self.dropout = dropout
        self.wide = wide

    @classmethod
    def accepts(cls, column_type):
        return isinstance(column_type, SparseRows) or pa.types.is_null(column_type)

    @classmethod
    def detects(cls, column):
        return isinstance(column.type, SparseRows)

    def check_parameters(self):
        name = "SparseBlock"
        check_number(name, "width", self.width, low=1, integer=True)
        check_number(name, "min_frequency", self.min_frequency, low=1, integer=True)
        check_number(name, "dropout", self.dropout, low=0, high=1)
        check_choice(name, "wide", self.wide, ("auto", True, False))

    def fit(self, X, y=None):
        """Learn the encoding from a sparse matrix, all of it, or from a table of sparse columns.

        Parameters
        ----------
        X : sparse matrix or table-like
            All its columns are used.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        return super().fit(_whole(X), y)

    def transform(self, X):
        """Encode a sparse matrix, or a table of sparse columns.

        Parameters
        ----------
        X : sparse matrix or table-like
            With as many features as during fit.

        Returns
        -------
        dict of {str: Ragged}
        """
        return super().transform(_whole(X))

    def summarize(self, table):
        columns = zip(table.column_names, table.columns, strict=True)
        return SummaryMap({name: Filled.of(column) for name, column in columns})

    def finish(self, summary):
        self.lengths_, self.features_, self.scale_, counts = [], [], [], []
        for name in self.feature_names_in_:
            filled = summary[name]
            features = np.flatnonzero(filled.count >= self.min_frequency)
            count = filled.count[features]
            self.lengths_.append(len(filled.count))
            self.features_.append(features.astype(np.int32))
            scale = filled.largest[features] * np.sqrt(filled.squares[features] / count)
            # The squares of scaled values are 1 on average, so that a row's norm is this.
            self.scale_.append(scale * np.sqrt(count.sum() / max(filled.n_filled, 1)))
            counts.append(count)
        self.wide_ = self.wide
        if self.wide == "auto":
            counts = np.concatenate(counts)
            n_rows = max(filled.n_rows, 1)
            self.wide_ = bool(len(counts) == 0 or counts.mean() < FREQUENT * n_rows)
        return self

    def encode(self, table):
        ids, weights, first = [], [], 0
        for index, name in enumerate(table.column_names):
            column = table.column(name)
            fitted = self.lengths_[index], self.features_[index], self.scale_[index]
            offsets, found, weight = encode_sparse(column, name, *fitted)
            offsets = torch.from_numpy(offsets)
            ids.append(Ragged(torch.from_numpy(found + np.int32(first)), offsets))
            weights.append(Ragged(torch.from_numpy(weight), offsets))
            first += len(self.features_[index])
        ids, weights = interleave(ids), interleave(weights)
        return {"ids": ids, "weights": Ragged(weights.values, ids.offsets, ids.n_columns)}

    def make_module(self):
        n_ids = sum(map(len, self.features_))
        module = NgramModule(n_ids, self.n_features_in_, self.width, self.dropout)
        if not self.wide_:
            module.wide, module.learning_rate_scale = False, 1.0
        return module

    def to_onnx(self, graph):
        columns = list(map(str, self.feature_names_in_))
        reader = {
            "read": "sparse",
            "columns": columns,
            "n_features": list(self.lengths_),
            "features": [features.tolist() for features in self.features_],
            "scale": [scale.tolist() for scale in self.scale_],
        }
        return graph.weighted_ids(reader, columns)

    def flatten(self, encoding):
        """Return fixed random projections of the scaled values."""
        return project_lists(encoding["ids"], encoding["weights"].values.numpy())

    def get_feature_names_out(self, input_features=None):
        names = [f"{name}_{place}" for name in self.feature_names_in_ for place in range(PROJECTED)]
        return np.asarray(names, dtype=object)

    def feature_shares(self, encoding, effects):
        """Return how much of what the block contributes to a network's outputs each feature does.

        Parameters
        ----------
        encoding : dict
            Rows of a block that reads a single column.
        effects : ndarray of float64, shape (n_ids, n_outputs)
            What a weight of one adds to the outputs.

        Returns
        -------
        ndarray of float64, shape (n_features,)
            Variance over the rows of what each feature adds to the outputs, scaled to sum to 1.
        """
        ids, weights = encoding["ids"].values.numpy(), encoding["weights"].values.numpy()
        n_rows, size = len(encoding["ids"]), len(self.features_[0])
        mean = np.bincount(ids, weights, minlength=size) / n_rows
        squares = np.bincount(ids, weights.astype(np.float64) ** 2, minlength=size) / n_rows
        found = np.maximum(squares - mean**2, 0) * (effects[:size] ** 2).sum(axis=1)
        if found.sum() == 0:
            found = np.ones(size)
        shares = np.zeros(self.lengths_[0])
        shares[self.features_[0]] = found / found.sum() if size else found
        return shares


def _whole(X):
    """Return a sparse matrix as a table of one sparse column, and other tables as they are."""
    return pa.table({"sparse": rows_of(X)}) if is_sparse(X) else X


class Filled(Summary):
    """How the stored values of each feature of a sparse column are distributed.

    Parameters
    ----------
    count : ndarray of int64, shape (n_features,)
        Rows with a value.
    largest, squares : ndarray of float64, shape (n_features,)
        Largest absolute value, and sum of the squares of values divided by it.
    n_filled, n_rows : int
        Rows with a value of any feature, and all rows.
    """

    def __init__(self, count, largest, squares, n_filled, n_rows):
        self.count = count
        self.largest = largest
        self.squares = squares
        self.n_filled = n_filled
        self.n_rows = n_rows

    @classmethod
    def of(cls, column):
        """Summarise a column of sparse vectors."""
        size = getattr(column.type, "n_features", 0)
        offsets, indices, values = read_sparse(column)
        # Infinite values are read, but say nothing of the scale.
        known = np.isfinite(values) & (values != 0)
        indices, values = indices[known], np.abs(values[known])
        largest = np.zeros(size)
        np.maximum.at(largest, indices, values)
        return cls(
            np.bincount(indices, minlength=size),
            largest,
            # Divided, the squares of very small or large values are neither zero nor infinite.
            np.bincount(indices, (values / largest[indices]) ** 2, minlength=size),
            int((np.diff(offsets) > 0).sum()),
            len(column),
        )

    def merge(self, other):
        """Return the summary of both chunks; rows that are all missing may have no features."""
        sizes = [len(self.count), len(other.count)]
        if 0 not in sizes and sizes[0] != sizes[1]:
            raise ValueError(f"holds sparse vectors of {sizes[0]} and of {sizes[1]} features")
        one, two = self._resized(max(sizes)), other._resized(max(sizes))
        largest = np.maximum(one.largest, two.largest)
        some = np.where(largest > 0, largest, 1.0)
        return Filled(
            one.count + two.count,
            largest,
            one.squares * (one.largest / some) ** 2 + two.squares * (two.largest / some) ** 2,
            one.n_filled + two.n_filled,
            one.n_rows + two.n_rows,
        )

    def _resized(self, size):
        """Return the summary for so many features, if it has none."""
        if len(self.count) == size:
            return self
        nothing = np.zeros(size)
        return Filled(np.zeros(size, np.int64), nothing, nothing, self.n_filled, self.n_rows)
