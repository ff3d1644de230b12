"""Block of sparse matrices, such as word counts: a weighted sum of the features' embeddings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block
from sk_easytensor.blocks.text_encoders import PROJECTED, NgramModule, interleave, project_lists
from sk_easytensor.data.sparse import SparseRows, encode_sparse, is_sparse, read_sparse, sparse_rows
from sk_easytensor.data.summaries import Summary, SummaryMap
from sk_easytensor.tensors import Ragged

__all__ = [
    "SparseBlock",
]


FREQUENT_FRACTION = 0.01
"""Smallest mean fraction of rows with a value at which features are inputs of the trunk."""


class SparseBlock(Block):
    """Read columns of sparse vectors, such as the rows of a sparse matrix.

    Parameters
    ----------
    width : int, default=32
        Embedding dimension of each column.
    min_frequency : int, default=1
        Smallest number of training rows with a value of a feature; rarer features are left out.
    dropout : float, default=0.1
        Dropout probability of the components of the embedding.
    wide : bool or "auto", default="auto"
        Whether the embedding bypasses the trunk and is an input of the last layer, as that of
        n-grams is. Rare features overfit in the trunk, but only the trunk models interactions.
        ``"auto"``: bypass the trunk unless the mean fraction of rows with a value of a feature is
        at least 1%, as for one-hot codes of a few dozen categories.

    Attributes
    ----------
    lengths_ : list of int
        Number of features of each column's sparse vectors.
    features_ : list of ndarray of int32
        Indices of the features of each column that are read, in increasing order.
    scale_ : list of ndarray of float64
        Divisor of the values of each of these features: the root mean square of its non-zero
        values, times the root mean square of the norm of rows.
    wide_ : bool
        Whether the embedding bypasses the trunk.

    Notes
    -----
    The embedding of a row is the sum of the learned vectors of its features, weighted by their
    scaled values. The matrix is never made dense: time and memory are linear in its stored values.
    Missing values, and values of features without values during fit, count as zeros. Scaled values
    are clipped to [-10, 10].

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
        """Learn the encoding from a sparse matrix or from a table of sparse columns.

        Parameters
        ----------
        X : sparse matrix or table-like
            Training rows; all columns are used.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        return super().fit(_as_sparse_table(X), y)

    def transform(self, X):
        """Encode a sparse matrix, or a table of sparse columns.

        Parameters
        ----------
        X : sparse matrix or table-like
            Rows with the same number of features as during fit.

        Returns
        -------
        dict of {str: Ragged}
            ``"ids"`` of the features of each row, and their ``"weights"``.
        """
        return super().transform(_as_sparse_table(X))

    def summarize(self, table):
        columns = zip(table.column_names, table.columns, strict=True)
        return SummaryMap({name: SparseSummary.of(column) for name, column in columns})

    def finish(self, summary):
        self.lengths_, self.features_, self.scale_, counts = [], [], [], []
        for name in self.feature_names_in_:
            column = summary[name]
            features = np.flatnonzero(column.count >= self.min_frequency)
            count = column.count[features]
            self.lengths_.append(len(column.count))
            self.features_.append(features.astype(np.int32))
            scale = column.largest[features] * np.sqrt(column.squares[features] / count)
            # With squares of mean 1, this is the root mean square of the norm of rows.
            self.scale_.append(scale * np.sqrt(count.sum() / max(column.n_not_empty, 1)))
            counts.append(count)
        self.wide_ = self.wide
        if self.wide == "auto":
            counts = np.concatenate(counts)
            n_rows = max(column.n_rows, 1)
            self.wide_ = bool(len(counts) == 0 or counts.mean() < FREQUENT_FRACTION * n_rows)
        return self

    def encode(self, table):
        ids, weights, first = [], [], 0
        for index, name in enumerate(table.column_names):
            column = table.column(name)
            fitted = self.lengths_[index], self.features_[index], self.scale_[index]
            offsets, feature_ids, weight = encode_sparse(column, name, *fitted)
            offsets = torch.from_numpy(offsets)
            ids.append(Ragged(torch.from_numpy(feature_ids + np.int32(first)), offsets))
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
        names = [f"{name}_{index}" for name in self.feature_names_in_ for index in range(PROJECTED)]
        return np.asarray(names, dtype=object)

    def feature_shares(self, encoding, effects):
        """Return the fraction of the block's contribution to the outputs of each feature.

        Parameters
        ----------
        encoding : dict
            Encoding of a block that reads a single column.
        effects : ndarray of float64, shape (n_ids, n_outputs)
            Change of the outputs for a weight of 1 of each id.

        Returns
        -------
        ndarray of float64, shape (n_features,)
            Variance over the rows of each feature's contribution, scaled to sum to 1.
        """
        ids, weights = encoding["ids"].values.numpy(), encoding["weights"].values.numpy()
        n_rows, size = len(encoding["ids"]), len(self.features_[0])
        mean = np.bincount(ids, weights, minlength=size) / n_rows
        squares = np.bincount(ids, weights.astype(np.float64) ** 2, minlength=size) / n_rows
        variances = np.maximum(squares - mean**2, 0) * (effects[:size] ** 2).sum(axis=1)
        if variances.sum() == 0:
            variances = np.ones(size)
        shares = np.zeros(self.lengths_[0])
        shares[self.features_[0]] = variances / variances.sum() if size else variances
        return shares


def _as_sparse_table(X):
    """Convert a sparse matrix to a table of one sparse column; other tables are unchanged."""
    return pa.table({"sparse": sparse_rows(X)}) if is_sparse(X) else X


class SparseSummary(Summary):
    """Counts and squares of the values of each feature of a sparse column.

    Parameters
    ----------
    count : ndarray of int64, shape (n_features,)
        Number of rows with a value.
    largest, squares : ndarray of float64, shape (n_features,)
        Largest absolute value, and sum of the squares of values divided by it.
    n_not_empty, n_rows : int
        Number of rows with a value of any feature, and number of all rows.
    """

    def __init__(self, count, largest, squares, n_not_empty, n_rows):
        self.count = count
        self.largest = largest
        self.squares = squares
        self.n_not_empty = n_not_empty
        self.n_rows = n_rows

    @classmethod
    def of(cls, column):
        """Summarize a column of sparse vectors."""
        size = getattr(column.type, "n_features", 0)
        offsets, indices, values = read_sparse(column)
        # Infinite values are encoded, but left out of the scale.
        known = np.isfinite(values) & (values != 0)
        indices, values = indices[known], np.abs(values[known])
        largest = np.zeros(size)
        np.maximum.at(largest, indices, values)
        return cls(
            np.bincount(indices, minlength=size),
            largest,
            # Divided, so that squares of very small or large values neither underflow nor overflow.
            np.bincount(indices, (values / largest[indices]) ** 2, minlength=size),
            int((np.diff(offsets) > 0).sum()),
            len(column),
        )

    def merge(self, other):
        """Return the summary of the rows of both; one without features has only missing rows."""
        sizes = [len(self.count), len(other.count)]
        if 0 not in sizes and sizes[0] != sizes[1]:
            raise ValueError(f"holds sparse vectors of {sizes[0]} and of {sizes[1]} features")
        one, two = self._resized(max(sizes)), other._resized(max(sizes))
        largest = np.maximum(one.largest, two.largest)
        divisor = np.where(largest > 0, largest, 1.0)
        return SparseSummary(
            one.count + two.count,
            largest,
            one.squares * (one.largest / divisor) ** 2 + two.squares * (two.largest / divisor) ** 2,
            one.n_not_empty + two.n_not_empty,
            one.n_rows + two.n_rows,
        )

    def _resized(self, size):
        """Return the summary with `size` features, if it has none."""
        if len(self.count) == size:
            return self
        zeros = np.zeros(size)
        return SparseSummary(np.zeros(size, np.int64), zeros, zeros, self.n_not_empty, self.n_rows)
