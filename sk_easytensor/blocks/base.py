"""The block contract: one object that learns an encoding and makes the module that reads it.

Writing a block means writing four methods:

``summarize(table)``
    Look at a chunk of rows (a :class:`pyarrow.Table` with the block's columns) and return a
    :class:`~sk_easytensor.summaries.Summary`. Pure: it reads hyper-parameters only and sets
    nothing, so that it can run anywhere and in any order.
``finish(summary)``
    Turn the merged summary of all chunks into fitted attributes (names ending in ``_``, holding
    NumPy arrays, Arrow arrays and plain Python values: they are pickled).
``encode(table)``
    Return the encoding: a dictionary of tensors of shape ``(n_rows, n_columns, ...)`` or
    :class:`~sk_easytensor.tensors.Ragged` with ``n_columns`` lists per row. A row's encoding
    depends on that row alone.
``make_module()``
    Return a new :class:`torch.nn.Module` with an attribute ``out_features`` and a ``forward``
    that takes the encoding's entries as keyword arguments and returns a tensor of shape
    ``(n_rows, out_features)``. Further attributes are heeded where a module has them: a true
    ``wide`` sends the output past the trunk, straight to the head, for sparse features, which a
    trunk would memorise; a true ``padded`` asks for batches of rows whose lists are of like
    length; ``learning_rate_scale`` multiplies the learning rate of its parameters; a method
    ``for_tower()`` is called where the network is to end in an embedding; a method
    ``tree_inputs``, called as ``forward`` is, returns what boosted trees may split on, codes from 0
    for missing as int32 of shape ``(n_rows, k)``, and the attribute ``tree_codes`` then says of
    each of its columns how many there are, which all codes are below, at most 16,777,216, and
    whether they are in order; ``output_columns``, an array of shape ``(out_features,)``, has the
    position of the one input column that each output depends on, and ``tree_columns`` the same for
    ``tree_inputs``: inspection of an encoding with a single entry then replaces a column without
    another forward pass of the module.

Two class attributes complete it: ``kind``, the name it gets when chosen automatically, and
``accepts(type)``, which says which Arrow types it can read. ``detects(column)``,
``groups(table, columns)``, ``takes(table)``, ``flatten`` and ``to_onnx(graph)`` have defaults.
Everything else (reading pandas, polars and the rest, aligning columns, fitting in one pass with
other blocks, training, pickling, importances) is done for the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor._utils.validation import GrowingParametersMixin
from sk_easytensor.data.columns import in_words, show_value, type_name
from sk_easytensor.data.lists import is_list
from sk_easytensor.data.tables import as_table, has_column_names, read_like_fit
from sk_easytensor.tensors import Ragged

__all__ = [
    "Block",
]


class Block(ArrowStateMixin, GrowingParametersMixin, TransformerMixin, BaseEstimator, ABC):
    """Base class of all blocks; see the module's description for what to implement.

    Attributes
    ----------
    feature_names_in_ : ndarray of str
        Columns the block was fitted on.
    n_features_in_ : int
        How many they are.
    """

    kind = "block"
    """Name of the block when it is chosen automatically, and the key in ``blocks_``."""

    accepted = ""
    """The column types it reads, in words, for error messages."""

    column_wise = False
    """Whether summaries are a :class:`~sk_easytensor.data.summaries.SummaryMap` by column and take
    little memory a row. Columns may then be summarised apart, and many rows at a time."""

    entry_a_column = False
    """Whether the encoding has an entry for each column, in their order, rather than entries that
    all columns stand in side by side."""

    feature_shares = None
    """A method ``feature_shares(encoding, effects)`` of blocks that read a sparse matrix as one
    column: which part of the column's importance each feature has."""

    monotonic_cst = None
    """Of each column the sign of its constraint, 1 or -1, as a list of int, where columns have
    one."""

    @classmethod
    @abstractmethod
    def accepts(cls, column_type):
        """Tell whether the block reads columns of this :class:`pyarrow.DataType`."""

    @classmethod
    def detects(cls, column):
        """Tell whether this block is the natural choice for a :class:`pyarrow.ChunkedArray`."""
        return False

    @abstractmethod
    def summarize(self, table):
        """Return the summary of a chunk of rows."""

    @abstractmethod
    def finish(self, summary):
        """Set the fitted attributes from the merged summary and return ``self``."""

    @abstractmethod
    def encode(self, table):
        """Return the encoding of a table with exactly the block's columns."""

    def example(self, n_rows):
        """Return an encoding of rows without values, for its form."""
        names = map(str, self.feature_names_in_)
        return self.encode(pa.table({name: pa.nulls(n_rows) for name in names}))

    @abstractmethod
    def make_module(self):
        """Return a new module that reads the encoding."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = self.accepts(pa.string())
        tags.transformer_tags.preserves_dtype = []
        return tags

    def check_parameters(self):
        """Raise ``ValueError`` naming the first hyper-parameter that makes no sense."""

    @with_library_settings
    def fit(self, X, y=None):
        """Learn the encoding from a table.

        Parameters
        ----------
        X : table-like
            All its columns are used.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        table = as_table(X)
        return self.fit_columns(table, named=has_column_names(X)).finish(self.summarize(table))

    def fit_columns(self, table, *, named=True):
        """Check and remember the columns of the block, before any row is summarised."""
        self.check_parameters()
        for field in table.schema:
            if not self.accepts(field.type):
                column = table.column(field.name)
                raise TypeError(unsupported_column(field, type(self).__name__, column))
        self.feature_names_in_ = np.asarray(table.column_names, dtype=object)
        self.n_features_in_ = table.num_columns
        self._named = named
        return self

    @with_library_settings
    def transform(self, X):
        """Encode a table.

        Parameters
        ----------
        X : table-like
            Holds the columns seen during fit, in any order.

        Returns
        -------
        dict of {str: torch.Tensor or Ragged}
        """
        check_is_fitted(self)
        owner = type(self).__name__
        names = self.feature_names_in_
        return self.encode(read_like_fit(X, names, fitted_with_names=self._named, owner=owner))

    def unseen_columns(self, table, encoding):
        """Return the columns that hold several values, none of which means anything to the block.

        Parameters
        ----------
        table : pyarrow.Table
            Rows; the block's columns are among its columns.
        encoding : dict
            What :meth:`encode` returned of them.

        Returns
        -------
        list of str
            By default none.
        """
        return []

    @classmethod
    def groups(cls, table, columns):
        """Say which columns to read when blocks are chosen automatically.

        Parameters
        ----------
        table : pyarrow.Table
            Rows to look at.
        columns : list of str
            Columns that no other block has taken.

        Returns
        -------
        list of list of str
            A block is made for each list. By default one for all columns it detects.
        """
        found = [name for name in columns if cls.detects(table.column(name))]
        return [found] if found else []

    def takes(self, table):
        """Return which of the columns given to the block the remainder does not get as well."""
        return table.column_names

    def renamed(self, names):
        """Return a copy of the fitted block that reads columns of other names, in this order."""
        other = deepcopy(self)
        other.feature_names_in_ = np.asarray(names, dtype=object)
        return other

    def encoding_columns(self, encoding):
        """Say which input column stands where in each entry of an encoding.

        Parameters
        ----------
        encoding : dict
            What :meth:`encode` returned.

        Returns
        -------
        dict of {str: list of str or of tuple of str}
            For each entry, the column names along its second dimension; a tuple of names for
            what several columns make together.
        """
        names = list(self.feature_names_in_)
        if self.entry_a_column:
            return {entry: [name] for entry, name in zip(encoding, names, strict=True)}
        return {entry: names for entry in encoding}

    def flatten(self, encoding):
        """Return an encoding as one matrix, for use without a network.

        Parameters
        ----------
        encoding : dict
            What :meth:`encode` returned.

        Returns
        -------
        numpy.ndarray of float32, shape (n_rows, len(get_feature_names_out()))
        """
        parts = []
        for name, entry in encoding.items():
            if isinstance(entry, Ragged):
                raise TypeError(
                    f"{type(self).__name__} has a ragged entry {name!r}; a block with ragged "
                    "entries has to define flatten and get_feature_names_out"
                )
            parts.append(entry.numpy().reshape(len(entry), -1))
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def to_onnx(self, graph):
        """Write the encoding into an ONNX graph, for models that are exported with raw columns.

        Parameters
        ----------
        graph : Graph
            Where columns are read and operators added; see
            :class:`~sk_easytensor.onnx.graph.Graph`.

        Returns
        -------
        dict of {str: str or tuple of str}
            For each entry of the encoding the name of its value, of shape ``(rows, n_columns,
            ...)``; of a ragged entry the names of its padded values, of shape ``(rows,
            n_columns, longest, ...)``, and of its lengths, int64 of shape ``(rows, n_columns)``.

        Raises
        ------
        TypeError
            If the block does not say how.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be exported with raw columns, because it has no method "
            "to_onnx that writes its encoding in ONNX operators. Export the model with "
            "inputs='encoded', and encode rows with model.blocks_ before they are given to it"
        )

    @abstractmethod
    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns of :meth:`flatten`, as an ndarray of str."""

    def _sk_visual_block_(self):
        from sklearn.utils._repr_html.estimator import _VisualBlock

        columns = getattr(self, "feature_names_in_", None)
        details = None if columns is None else ", ".join(map(str, columns))
        return _VisualBlock("single", self, names=type(self).__name__, name_details=details)


def unsupported_column(field, block="", column=None):
    """Say that a column cannot be read, and which block would take it.

    Parameters
    ----------
    field : pyarrow.Field
        The column.
    block : str, optional
        Class name of the block that was asked to read it.
    column : pyarrow.ChunkedArray, optional
        Its values, of which the first is shown.

    Returns
    -------
    str
    """
    from sk_easytensor.blocks import BLOCKS

    takers = [cls.__name__ for cls in BLOCKS if cls.accepts(field.type)]
    if is_nested(field.type):
        hint = "Lists are read one level deep; flatten or drop the inner ones."
    elif takers:
        hint = f"It can be read by {' or '.join(takers)}."
    else:
        hint = f"{_remedy(field.type)}, or leave it out: no block reads {in_words(field.type)}."
    owner = f" by {block}" if block else ""
    example, kind = _example(column), type_name(field.type)
    return f"column {field.name!r} of type {kind} cannot be read{owner}{example}. {hint}"


def _remedy(kind):
    """Say what to make of a column that no block reads."""
    values = kind.value_type if is_list(kind) or pa.types.is_dictionary(kind) else kind
    if in_words(values) == "bytes":
        return "Decode it to text, as with X[column].str.decode('utf-8') in pandas"
    if pa.types.is_map(values):
        return "Make a column of each key that matters"
    return "Convert it to numbers, text or dates"


def is_nested(kind):
    """Tell whether a type is of lists that hold lists."""
    if pa.types.is_struct(kind):
        return any(pa.types.is_nested(inner.type) for inner in kind)
    if not pa.types.is_nested(kind):
        return False
    # Other types of more than one part, such as maps, have no inner type of this name.
    inner = getattr(kind, "value_type", pa.null())
    return is_nested(inner) if pa.types.is_struct(inner) else pa.types.is_nested(inner)


def _example(column):
    """Show the first value of a column, other than an empty list, and its row."""
    if column is None:
        return ""
    filled = column.is_valid()
    if is_list(column.type):
        filled = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
    filled = np.flatnonzero(filled.to_numpy())
    return f"; row {filled[0]} holds {show_value(column[int(filled[0])])}" if len(filled) else ""
