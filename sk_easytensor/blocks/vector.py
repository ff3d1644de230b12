"""Blocks of vectors: dense ones of one length, and sparse matrices such as word counts."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.text_encoders import PROJECTED, NgramModule, interleave, project_lists
from sk_easytensor.data.columns import is_list, read_vectors, sample_values
from sk_easytensor.data.sparse import SparseRows, encode_sparse, is_sparse, read_sparse, sparse_rows
from sk_easytensor.data.summaries import Moments, Summary, SummaryMap, merge_all
from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.tensors import Ragged

__all__ = [
    "SparseBlock",
    "UnitScale",
    "VectorBlock",
    "VectorModule",
    "VectorProjection",
]


LOGGER = logging.getLogger("sk_easytensor.blocks")


class VectorProjection(BlockModule):
    """Normalize vectors and project them linearly, column by column.

    Parameters
    ----------
    dimension : int
        Dimension of the vectors.
    n_columns : int
        Number of vectors per row.
    width : int
        Dimension of each column's projection.
    dropout : float, default=0.0
        Dropout probability of the projected components.
    norm : torch.nn.Module, optional
        Normalization before the projection; by default layer normalization.
    """

    def __init__(self, dimension, n_columns, width, dropout=0.0, norm=None):
        super().__init__()
        self.dimension = dimension
        self.out_features = n_columns * width
        # The components of unit vectors are small, and smaller the larger the dimension.
        self.norm = nn.LayerNorm(dimension) if norm is None else norm
        self.projections = nn.ModuleList(nn.Linear(dimension, width) for _ in range(n_columns))
        self.missing = nn.Parameter(torch.zeros(n_columns, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors):
        """Return the projections of all columns.

        Parameters
        ----------
        vectors : torch.Tensor of shape (batch, n_columns, dimension)
            Vectors, NaN where missing.

        Returns
        -------
        torch.Tensor of shape (batch, n_columns * width)
        """
        absent = vectors[..., :1].isnan()
        hidden = self.norm(vectors.masked_fill(absent, 0.0)).unbind(1)
        pairs = zip(self.projections, hidden, strict=True)
        projected = torch.stack([projection(column) for projection, column in pairs], dim=1)
        return self.dropout(torch.where(absent, self.missing, projected).flatten(1))


class UnitScale(nn.Module):
    """Divide by one number, so that components of the first batch have root mean square 1.

    Notes
    -----
    Unlike a normalization of each vector or component, a common factor retains the information in
    directions and lengths. Learning a scale from the first batch is the idea of Salimans and
    Kingma, "Weight Normalization" (2016). The factor is part of the state dict.
    """

    def __init__(self):
        super().__init__()
        # Zero before the first batch.
        self.register_buffer("factor", torch.zeros(()))

    def forward(self, vectors):
        """Return the vectors times the factor."""
        if self.training and self.factor == 0:
            size = vectors.detach().float().square().mean().sqrt()
            self.factor.copy_(torch.where(size > 0, 1 / size, 0.0))
        return vectors * torch.where(self.factor > 0, self.factor, 1.0)


CHUNK = 65_536
"""Number of rows that are converted to double precision at a time, which bounds memory."""

SHORTEST_SERIES = 9
"""Smallest number of steps of a time series whose vectors have one length."""

ORDER_ROWS, ORDER_LENGTH, N_ORDERS = 200, 1024, 200
"""Largest number of vectors, and of components, that are tested for their order, and the number of
orders that are compared."""

ORDER_SCORE = 5.0
"""Number of standard deviations from the mean of random orders at which the order matters. The
series of the UCR archive that were tried have 7 and more, and tables and embeddings at most 3."""

BOUND = 10.0
"""Standardized components are clipped to this number of standard deviations."""


class VectorBlock(Block):
    """Read columns of numeric vectors of one length.

    Parameters
    ----------
    width : int or None, default=None
        Dimension to which each column's vector is projected; by default its length, at most 64.

    Attributes
    ----------
    mean_, scale_ : list of ndarray of float64
        Mean and standard deviation of the components of each column. Constant components have the
        scale 1.
    missing_fraction_ : ndarray of float64, shape (n_features,)
        Fraction of rows without a vector.

    Notes
    -----
    Vectors of different columns may differ in length, so each column is an entry of the encoding.
    Missing components are replaced by the mean, and a missing vector by a learned one. Lists whose
    length differs between rows are sequences, not vectors, and are refused.

    Examples
    --------
    >>> block = VectorBlock().fit({"image": [[0.0, 1.0], [2.0, 1.0], None]})
    >>> block.mean_[0].tolist(), block.scale_[0].tolist()
    ([1.0, 1.0], [1.0, 1.0])
    >>> block.transform({"image": [[3.0, 1.0]]})["values_0"].tolist()
    [[[2.0, 0.0]]]
    """

    kind = "vector"
    accepted = "lists of numbers that all have one length"
    entry_a_column = True

    def __init__(self, width=None):
        self.width = width

    @classmethod
    def accepts(cls, column_type):
        return pa.types.is_null(column_type) or (
            is_list(column_type) and _holds_numbers(column_type)
        )

    @classmethod
    def detects(cls, column):
        kind = column.type
        if not (is_list(kind) and _holds_numbers(kind)):
            return False
        if pa.types.is_fixed_size_list(kind):
            return True
        if not _holds_floats(kind):
            return False
        lengths = pc.unique(pc.list_value_length(sample_values(column)))
        return len(lengths) == 1 and lengths[0].as_py() > 1

    @classmethod
    def assign_columns(cls, table, columns):
        """Return the columns of vectors, without those of time series.

        Both are numbers of one length. In a series the order of the numbers matters: neighbours are
        more alike, or less, than other pairs. If one column is a series, all columns that have its
        length are. What was decided is logged.
        """
        detected = [name for name in columns if cls.detects(table.column(name))]
        lengths = {name: _vector_length(table.column(name)) for name in detected}
        series = {n for name, n in lengths.items() if _is_series(table.column(name), n)}
        floats = [name for name in detected if _holds_floats(table.schema.field(name).type)]
        floats = [name for name in floats if lengths[name] in series]
        if floats:
            LOGGER.info(
                "columns %s are read as time series, because the order of their numbers matters; "
                "name a VectorBlock to read them as vectors",
                floats,
            )
        vectors = [name for name in detected if name not in floats]
        return [vectors] if vectors else []

    def check_parameters(self):
        if self.width is not None:
            check_number("VectorBlock", "width", self.width, low=1, integer=True)

    def summarize(self, table):
        return SummaryMap(
            {
                name: _moments(column, name)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def finish(self, summary):
        columns = [summary[name] for name in self.feature_names_in_]
        self.mean_ = [column.mean for column in columns]
        self.scale_ = [_scale(column) for column in columns]
        self.missing_fraction_ = np.array(
            [column.n_missing / max(column.n_rows, 1) for column in columns]
        )
        return self

    @property
    def _lengths(self):
        """Length of each entry, at least 1, even if all vectors of a column were missing."""
        return [max(len(mean), 1) for mean in self.mean_]

    def encode(self, table):
        encoding = {}
        names = zip(table.column_names, table.columns, strict=True)
        for index, (name, column) in enumerate(names):
            mean, scale = self.mean_[index], self.scale_[index]
            encoded = np.full((table.num_rows, 1, self._lengths[index]), np.nan, np.float32)
            # A column without vectors during fit has no scale and is encoded as missing.
            for rows, vectors in _chunks(column, name, len(mean)) if len(mean) else ():
                with np.errstate(over="ignore"):
                    scaled = (vectors - mean) / scale
                encoded[rows, 0] = np.clip(scaled, -BOUND, BOUND)
            encoding[f"values_{index}"] = torch.from_numpy(encoded)
        return encoding

    def make_module(self):
        return VectorModule(self._lengths, self.width)

    def to_onnx(self, graph):
        encoding = {}
        columns = zip(self.feature_names_in_, self.mean_, self.scale_, strict=True)
        for index, (name, mean, scale) in enumerate(columns):
            vectors = graph.vector(name, len(mean))
            if len(mean):
                scaled = graph.op("Div", graph.op("Sub", vectors, mean), scale)
                bounded = graph.op("Clip", scaled, np.float64(-BOUND), np.float64(BOUND))
                scaled = graph.op("Where", graph.op("IsNaN", scaled), scaled, bounded)
            else:
                none = graph.op("ReduceSum", vectors, np.array([1]), keepdims=1)
                scaled = graph.op("Add", none, np.float64(np.nan))
            encoding[f"values_{index}"] = graph.cast(graph.stack([scaled], axis=1), np.float32)
        return encoding

    def flatten(self, encoding):
        """Return the standardized components, 0 where missing, and missing indicators."""
        entries = [entry.numpy()[:, 0] for entry in encoding.values()]
        parts = [np.nan_to_num(entry) for entry in entries]
        for entry, fraction in zip(entries, self.missing_fraction_, strict=True):
            if fraction > 0:
                parts.append(np.isnan(entry).all(axis=1, keepdims=True))
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def get_feature_names_out(self, input_features=None):
        names = [
            f"{name}_{index}"
            for name, length in zip(self.feature_names_in_, self._lengths, strict=True)
            for index in range(length)
        ]
        names += [f"{name}_missing" for name in self.feature_names_in_[self.missing_fraction_ > 0]]
        return np.asarray(names, dtype=object)


def _vector_length(column):
    """Return the length of the vectors of a column, 0 if all are missing and no type says it."""
    lengths = pc.drop_null(pc.list_value_length(column)) if is_list(column.type) else []
    return lengths[0].as_py() if len(lengths) else getattr(column.type, "list_size", 0)


def _is_series(column, length):
    """Return whether the order of the components of vectors matters, as in time series.

    The ratio of von Neumann, "Distribution of the Ratio of the Mean Square Successive Difference to
    the Variance" (1941), is compared with its values in random orders of the components, which are
    standardized, so that their scales do not matter.
    """
    if length < SHORTEST_SERIES or not _holds_floats(column.type):
        return False
    vectors = read_vectors(sample_values(sample_values(column), ORDER_ROWS), "", length, as_floats)
    start = max(0, (length - ORDER_LENGTH) // 2)
    vectors = vectors[:, start : start + ORDER_LENGTH]
    vectors[~np.isfinite(vectors)] = np.nan
    moments = Moments.of(vectors)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.clip(np.nan_to_num((vectors - moments.mean) / _scale(moments)), -BOUND, BOUND)
    scaled -= scaled.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled /= np.where(norms > 0, norms, 1)
    products = scaled.T @ scaled
    # The squared difference of each pair of components, summed over rows.
    pairs = np.diagonal(products)[:, None] + np.diagonal(products) - 2 * products
    random = np.random.default_rng(0)
    orders = np.stack([random.permutation(len(pairs)) for _ in range(N_ORDERS)])
    by_chance = pairs[orders[:, :-1], orders[:, 1:]].mean(axis=1)
    own = np.diagonal(pairs, 1).mean()
    return bool(abs(own - by_chance.mean()) > ORDER_SCORE * by_chance.std())


def _holds_floats(kind):
    return pa.types.is_floating(kind.value_type)


def _holds_numbers(kind):
    return _holds_floats(kind) or pa.types.is_integer(kind.value_type)


def _scale(moments):
    """Return the standard deviations, or 1 for components that are constant up to rounding."""
    deviation = moments.standard_deviation
    return np.where(deviation > 1e-12 * np.abs(moments.mean), deviation, 1.0)


def _moments(column, name):
    length = _vector_length(column)
    parts = (
        Moments.of(np.where(np.isfinite(vectors), vectors, np.nan))
        for _, vectors in _chunks(column, name, length)
    )
    return merge_all(parts)


def _chunks(column, name, length):
    """Yield slices of rows and their vectors, float64 of shape (n, length), NaN where missing."""
    if not VectorBlock.accepts(column.type):
        raise TypeError(unsupported_column(pa.field(name, column.type), "VectorBlock"))
    for start in range(0, max(len(column), 1), CHUNK):
        chunk = column.slice(start, CHUNK)
        if is_list(column.type):
            vectors = read_vectors(chunk, name, length, as_floats, start)
        else:
            vectors = np.full((len(chunk), length), np.nan)
        yield slice(start, start + len(chunk)), vectors


def as_floats(items):
    """Return numbers of any type as float64, rounded where it holds fewer digits."""
    return items.cast(pa.float64(), safe=False)


class VectorModule(BlockModule):
    """Project each vector column linearly.

    Parameters
    ----------
    lengths : list of int
        Length of the vectors of each column.
    width : int or None, default=None
        Dimension of the projections; by default the length, at most 64.
    """

    def __init__(self, lengths, width=None):
        super().__init__()
        widths = [width or min(length, 64) for length in lengths]
        self.out_features = sum(widths)
        pairs = zip(lengths, widths, strict=True)
        self.projections = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        self.missing = nn.ParameterList(torch.zeros(size) for size in widths)
        # A long vector counts more than a number, but not as much as so many numbers.
        weights = [np.full(length, length**-0.25, dtype=np.float32) for length in lengths]
        self.linear_weights = np.concatenate(weights)

    def linear_inputs(self, **vectors):
        """Return the components of all vectors, 0 where missing."""
        parts = [vectors[f"values_{index}"][:, 0] for index in range(len(self.projections))]
        return torch.nan_to_num(torch.cat(parts, dim=1), nan=0.0)

    def forward(self, **vectors):
        """Return the projections of all columns.

        Parameters
        ----------
        **vectors : torch.Tensor of shape (batch, 1, length)
            ``values_0``, ``values_1`` and so on, standardized, NaN where missing.

        Returns
        -------
        torch.Tensor of shape (batch, sum of widths)
        """
        parts = []
        for index, projection in enumerate(self.projections):
            values = vectors[f"values_{index}"][:, 0]
            absent = torch.isnan(values)
            projected = projection(values.masked_fill(absent, 0.0))
            all_absent = absent.all(dim=1, keepdim=True)
            parts.append(torch.where(all_absent, self.missing[index], projected))
        return torch.cat(parts, dim=1)


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
