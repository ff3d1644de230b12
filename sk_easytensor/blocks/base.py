"""Base class of blocks: preprocessing and network layers of one kind of feature in one object.

A block needs three methods:

``accepts(column_type)``, a class method
    Return whether the block reads columns of a :class:`pyarrow.DataType`. The type null is that of
    a column without any value.
``encode(table)``
    Return the encoding of a :class:`pyarrow.Table` with the block's columns: a dictionary of
    tensors of shape ``(n_rows, n_columns, ...)`` or :class:`~sk_easytensor.tensors.Ragged` with
    ``n_columns`` lists per row. A row's encoding depends on that row alone. Numbers are float32, as
    the weights of modules are; a missing value may be NaN, or a code of its own.
``make_module()``
    Return a new :class:`~sk_easytensor.BlockModule`. Its ``forward`` takes the entries of the
    encoding as keyword arguments and returns a tensor of shape ``(n_rows, out_features)``, which is
    finite for missing values too. Boosted trees beside the network see the block's columns only if
    the module defines ``tree_inputs``.

A block that learns from training rows, as most do, has two more:

``summarize(table)``
    Return the :class:`~sk_easytensor.data.summaries.Summary` of a chunk of rows. It reads only
    parameters and sets nothing, so that chunks are summarized anywhere and in any order.
``finish(summary)``
    Set the fitted attributes from the merged summary of all chunks and return ``self``. Their
    names end in ``_``; they hold NumPy arrays, Arrow arrays and plain Python values, because they
    are pickled.

:mod:`sk_easytensor.data.summaries` has summaries of categories (``ValueCounts``), of numbers
(``Quantiles``) and of vectors (``Moments``), and ``SummaryMap`` to have one for each column.
:func:`~sk_easytensor.data.columns.to_float64` and :func:`~sk_easytensor.data.columns.cast_column`
read columns of any numeric, or given, type.

Everything else has a default:

- ``check_parameters()`` raises ``ValueError`` for the first parameter that is invalid, by name. A
  block with parameters defines it.
- ``fit_columns(table)`` is extended by a block that reads a certain number of columns, or some by
  name: it calls ``super().fit_columns`` and raises ``ValueError``.
- ``kind`` and ``detects(column)``, or ``assign_columns(table, columns)``, make a block part of the
  automatic choice: see :func:`~sk_easytensor.blocks.register_block`.
- ``flatten(encoding)`` and ``get_feature_names_out()`` give the encoding as one matrix of finite
  numbers, for use without a network. A block with ragged entries defines both, one whose entries
  have NaN for missing values ``flatten``.
- ``encoding_columns(encoding)`` names the input column of each part of the encoding. A block
  defines it if its entries do not have one position for each of its columns, in their order. A
  position that several columns make together, such as a point of latitude and longitude, is named
  by their tuple: ``{"points": [("latitude", "longitude")]}``.
- ``renamed(names)`` is extended by a block that stores names of columns.
- ``configure_for_embedding()`` sets parameters that depend on whether the block is that of an
  embedder or a two-tower model.
- ``claimed_columns(table)`` returns the columns that no other block reads, by default all of them.
- ``unseen_columns(table, encoding)`` lists the columns for which a warning is issued.
- ``to_onnx(graph)`` writes the encoding in the operators of a
  :class:`~sk_easytensor.onnx.graph.Graph`, for export with raw columns.

The base class and the estimators read pandas, polars and other tables, align columns, fit all
blocks in one pass, train, pickle and compute importances. :func:`sk_easytensor.testing.check_block`
checks the contract.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from copy import deepcopy

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.skops import ArrowStateMixin
from sk_easytensor._utils.validation import ParametersMixin
from sk_easytensor.data.columns import is_list, show_value
from sk_easytensor.data.summaries import SummaryMap
from sk_easytensor.data.tables import as_table, has_column_names, read_like_fit
from sk_easytensor.data.type_names import in_words, type_name
from sk_easytensor.tensors import Ragged

__all__ = [
    "Block",
]


class Block(ArrowStateMixin, ParametersMixin, TransformerMixin, BaseEstimator, ABC):
    """Base class of all blocks.

    A subclass defines :meth:`accepts`, :meth:`encode` and :meth:`make_module`; one that learns from
    training rows also :meth:`summarize` and :meth:`finish`. Parameters are the keywords of
    ``__init__``, which only assigns them, as for every estimator of scikit-learn.

    Attributes
    ----------
    feature_names_in_ : ndarray of str
        Names of the columns seen during fit.
    n_features_in_ : int
        Number of these columns.

    See Also
    --------
    BlockModule : Base class of the modules that blocks make.
    sk_easytensor.blocks.register_block : Adds a block to the automatic choice.
    sk_easytensor.testing.check_block : Checks that a block fulfils the contract.

    Examples
    --------
    A block that encodes the lengths of strings and learns nothing from training rows:

    >>> import pyarrow as pa
    >>> import pyarrow.compute as pc
    >>> import torch
    >>> from sk_easytensor import Block, BlockModule
    >>> class LengthBlock(Block):
    ...     @classmethod
    ...     def accepts(cls, column_type):
    ...         return pa.types.is_string(column_type) or pa.types.is_null(column_type)
    ...
    ...     def encode(self, table):
    ...         columns = [pc.fill_null(pc.utf8_length(c.cast("str")), 0) for c in table.columns]
    ...         lengths = [torch.tensor(column.to_numpy()) for column in columns]
    ...         return {"lengths": torch.stack(lengths, dim=1)}
    ...
    ...     def make_module(self):
    ...         return LengthModule(self.n_features_in_)
    >>> class LengthModule(BlockModule):
    ...     def __init__(self, n_columns):
    ...         super().__init__()
    ...         self.out_features = 4
    ...         self.linear = torch.nn.Linear(n_columns, 4)
    ...
    ...     def forward(self, lengths):
    ...         return self.linear(lengths.float().log1p())
    >>> block = LengthBlock().fit({"title": ["one", "three", None, ""]})
    >>> block.transform({"title": ["four", None]})["lengths"].tolist()
    [[4], [0]]
    >>> block.get_feature_names_out().tolist()
    ['title']
    """

    kind = "block"
    """Name of the block when it is chosen automatically, and the key in ``blocks_``."""

    accepted = ""
    """Accepted column types in words, for error messages."""

    column_wise = False
    """Whether summaries are a :class:`~sk_easytensor.data.summaries.SummaryMap` by column that
    takes little memory per row. Columns are then summarized separately, and many rows at a time."""

    entry_a_column = False
    """Whether the encoding has one entry for each column, in order, rather than entries whose
    second dimension is the columns."""

    feature_shares = None
    """Method ``feature_shares(encoding, effects)`` of a block that reads a sparse matrix as one
    column. It returns the fraction of the column's importance that belongs to each feature."""

    monotonic_cst = None
    """Signs of the monotonicity constraints of the columns, a list of 1 (increasing) or -1
    (decreasing); None for a block without constraints."""

    noun = "category"
    """What the values of a column are, in the warning about :meth:`unseen_columns`."""

    @classmethod
    @abstractmethod
    def accepts(cls, column_type):
        """Return whether the block reads columns of a type.

        Parameters
        ----------
        column_type : pyarrow.DataType
            Type of a column in fit. It is null if all values of the column are missing: a block
            that does not accept it cannot be fitted to such a column.

        Returns
        -------
        bool
        """

    @classmethod
    def detects(cls, column):
        """Return whether a column is assigned to this block when blocks are chosen automatically.

        Parameters
        ----------
        column : pyarrow.ChunkedArray
            Values of the column in a sample of the training rows.

        Returns
        -------
        bool
            By default False.
        """
        return False

    def summarize(self, table):
        """Return the summary of a chunk of rows.

        Parameters
        ----------
        table : pyarrow.Table
            A chunk of the training rows, with exactly the block's columns; it may be empty.

        Returns
        -------
        Summary
            By default an empty map, for blocks that learn nothing.
        """
        return SummaryMap()

    def finish(self, summary):
        """Set the fitted attributes from the merged summary.

        Parameters
        ----------
        summary : Summary
            Merged summary of all chunks.

        Returns
        -------
        self

        Raises
        ------
        NotImplementedError
            If a subclass defines :meth:`summarize` but not this method.
        """
        if summary:
            raise NotImplementedError(
                f"{type(self).__name__} defines summarize, and so has to define finish(summary), "
                "which sets the fitted attributes and returns self"
            )
        return self

    @abstractmethod
    def encode(self, table):
        """Return the encoding of rows.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with exactly the block's columns, in the order of fit. Columns may be of another
            type than in fit, of type null if all their values are missing, and have any chunks.

        Returns
        -------
        dict of {str: torch.Tensor or Ragged}
            Tensors of shape (n_rows, n_columns, ...), or ragged entries with ``n_columns`` lists
            per row. A row's encoding depends on that row alone. What a module multiplies by its
            weights is float32, codes are integers.
        """

    def example(self, n_rows):
        """Return the encoding of `n_rows` rows of missing values, for its shapes and dtypes."""
        names = map(str, self.feature_names_in_)
        return self.encode(pa.table({name: pa.nulls(n_rows) for name in names}))

    @abstractmethod
    def make_module(self):
        """Return a new module that reads the encoding.

        Returns
        -------
        BlockModule
            Module with newly initialized weights.
        """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = self.accepts(pa.string())
        tags.transformer_tags.preserves_dtype = []
        return tags

    def check_parameters(self):
        """Raise ``ValueError`` that names the first invalid parameter and what is accepted."""

    def configure_for_embedding(self):
        """Set parameters that are ``"auto"`` to their values for a network of embeddings.

        Embedders and two-tower models call it for their copy of the block, before it is fitted. By
        default nothing changes.
        """

    @with_library_settings
    def fit(self, X, y=None):
        """Learn the encoding from a table.

        Parameters
        ----------
        X : table-like
            Training rows; all columns are used.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is invalid.
        TypeError
            If the block does not read a column of this type.
        """
        table = as_table(X)
        return self.fit_columns(table, named=has_column_names(X)).finish(self.summarize(table))

    def fit_columns(self, table, *, named=True):
        """Check parameters and columns and store the columns' names, before rows are summarized.

        Parameters
        ----------
        table : pyarrow.Table
            Table with exactly the block's columns.
        named : bool, default=True
            Whether the input had column names.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If the block does not accept the type of a column. The message names the column.
        ValueError
            If a parameter is invalid.
        """
        self.check_parameters()
        for field in table.schema:
            if not self.accepts(field.type):
                column = table.column(field.name)
                raise TypeError(unsupported_column(field, type(self).__name__, column))
        self.feature_names_in_ = np.asarray(table.column_names, dtype=object)
        self.n_features_in_ = table.num_columns
        self._named = named
        return self

    def reads(self, field):
        """Return whether the fitted block reads a column, a ``pyarrow.Field``; see `accepts`."""
        return self.accepts(field.type)

    @with_library_settings
    def transform(self, X):
        """Encode a table.

        Parameters
        ----------
        X : table-like
            Rows with the columns seen during fit, in any order.

        Returns
        -------
        dict of {str: torch.Tensor or Ragged}
            The encoding: see :meth:`encode`.
        """
        check_is_fitted(self)
        owner = type(self).__name__
        names = self.feature_names_in_
        return self.encode(read_like_fit(X, names, fitted_with_names=self._named, owner=owner))

    def unseen_columns(self, table, encoding):
        """Return the columns with several values, none of which the block has seen during fit.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with the block's columns, and possibly others.
        encoding : dict
            Encoding of the rows, from :meth:`encode`.

        Returns
        -------
        list of str
            Names of columns; by default none.
        """
        return []

    @classmethod
    def assign_columns(cls, table, columns):
        """Return the columns to read when blocks are chosen automatically.

        Parameters
        ----------
        table : pyarrow.Table
            A sample of the training rows.
        columns : list of str
            Columns that are not assigned to a block yet.

        Returns
        -------
        list of list of str
            Columns of each block to create. By default one block reads all columns it detects.
        """
        detected = [name for name in columns if cls.detects(table.column(name))]
        return [detected] if detected else []

    def claimed_columns(self, table):
        """Return the names of the columns that the blocks of the remainder do not read too."""
        return table.column_names

    def copy_weights(self, module, previous, previous_module):
        """Copy what an earlier fit has learned into the module of this one.

        Parameters
        ----------
        module : BlockModule
            New module of this block.
        previous : Block
            Block of the same type that was fitted earlier, on other rows.
        previous_module : BlockModule
            Its trained module.

        Returns
        -------
        bool
            Whether anything was copied. By default all weights are, if the fitted attributes of
            both blocks are equal. Subclasses may know which of their weights are for the same.
        """
        if not _are_alike(self, previous):
            return False
        return load_matching(module, previous_module)

    def renamed(self, names):
        """Return a copy of the fitted block in which `names` replace the column names, in order."""
        other = deepcopy(self)
        other.feature_names_in_ = np.asarray(names, dtype=object)
        return other

    def encoding_columns(self, encoding):
        """Return the input column of each part of an encoding.

        Parameters
        ----------
        encoding : dict
            Encoding from :meth:`encode`.

        Returns
        -------
        dict of {str: list of str or of tuple of str}
            For each entry, the column names along its second dimension; a tuple of names for a
            part that depends on several columns.
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
            Encoding from :meth:`encode`.

        Returns
        -------
        numpy.ndarray of float32, shape (n_rows, len(get_feature_names_out()))
            Finite values. A block that encodes missing values as NaN has to replace them.

        Raises
        ------
        TypeError
            If the encoding has ragged entries.
        """
        self._check_dense(encoding)
        parts = [entry.numpy().reshape(len(entry), -1) for entry in encoding.values()]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _check_dense(self, encoding):
        for name, entry in encoding.items():
            if isinstance(entry, Ragged):
                raise TypeError(
                    f"{type(self).__name__} has a ragged entry {name!r}; a block with ragged "
                    "entries has to define flatten and get_feature_names_out"
                )

    def to_onnx(self, graph):
        """Write the encoding into an ONNX graph, for models that are exported with raw columns.

        Parameters
        ----------
        graph : Graph
            Graph whose inputs are columns and to which operators are added; see
            :class:`~sk_easytensor.onnx.graph.Graph`.

        Returns
        -------
        dict of {str: str or tuple of str}
            For each dense entry of the encoding, the name of its value of shape ``(rows,
            n_columns, ...)``. For each ragged entry, the name of its padded values of shape
            ``(rows, n_columns, longest, ...)``, and of its lengths, int64 of shape ``(rows,
            n_columns)``.

        Raises
        ------
        TypeError
            If the block does not define this method.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be exported with raw columns, because it has no method "
            "to_onnx that writes its encoding in ONNX operators. Export the model with "
            "inputs='encoded', and pass it rows that were encoded with model.blocks_"
        )

    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns of :meth:`flatten`.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        ndarray of str
            By default the input column, the entry of the encoding if there are several entries,
            and a number if the entry has several values for a column, joined by ``_``.
        """
        check_is_fitted(self)
        encoding = self.example(1)
        self._check_dense(encoding)
        several, names = len(encoding) > 1 and not self.entry_a_column, []
        for entry, sources in self.encoding_columns(encoding).items():
            size = encoding[entry].shape[2:].numel()
            for source in sources:
                parts = [*(source if isinstance(source, tuple) else (source,))]
                name = "_".join([*parts, entry] if several else parts)
                names += [name] if size == 1 else [f"{name}_{index}" for index in range(size)]
        return np.asarray(names, dtype=object)

    def _sk_visual_block_(self):
        from sklearn.utils._repr_html.estimator import _VisualBlock

        columns = getattr(self, "feature_names_in_", None)
        details = None if columns is None else ", ".join(map(str, columns))
        return _VisualBlock("single", self, names=type(self).__name__, name_details=details)


def unsupported_column(field, block="", column=None):
    """Return an error message about a column that a block cannot read, with a remedy.

    Parameters
    ----------
    field : pyarrow.Field
        Name and type of the column.
    block : str, optional
        Class name of the block that cannot read it; by default the message names no block.
    column : pyarrow.ChunkedArray, optional
        Values of the column; the message shows the first.

    Returns
    -------
    str
        Message that names the column, its type and the blocks that accept it.
    """
    from sk_easytensor.blocks import BLOCKS

    readers = [cls.__name__ for cls in BLOCKS if cls.accepts(field.type)]
    if is_nested(field.type):
        hint = "Lists are read one level deep; flatten or drop the inner ones."
    elif pa.types.is_null(field.type) and readers:
        hint = (
            "All its values are missing. Leave it out or use a block that accepts the type null, "
            f"such as {readers[-1]}."
        )
    elif readers:
        hint = f"It can be read by {' or '.join(readers)}."
    else:
        hint = f"{_remedy(field.type)}, or leave it out: no block reads {in_words(field.type)}."
    owner = f" by {block}" if block else ""
    example, kind = _example(column), type_name(field.type)
    return f"column {field.name!r} of type {kind} cannot be read{owner}{example}. {hint}"


def _remedy(kind):
    """Return advice on how to convert a column that no block reads."""
    values = kind.value_type if is_list(kind) or pa.types.is_dictionary(kind) else kind
    if in_words(values) == "bytes":
        return "Decode it to text, as with X[column].str.decode('utf-8') in pandas"
    if pa.types.is_map(values):
        return "Make a column of each key that matters"
    return "Convert it to numbers, text or dates"


def is_nested(kind):
    """Return whether values of a type are lists of lists."""
    if pa.types.is_struct(kind):
        return any(pa.types.is_nested(inner.type) for inner in kind)
    if not pa.types.is_nested(kind):
        return False
    # Other nested types, such as maps, have no attribute ``value_type``.
    inner = getattr(kind, "value_type", pa.null())
    return is_nested(inner) if pa.types.is_struct(inner) else pa.types.is_nested(inner)


def _example(column):
    """Return a phrase with the first value of a column that is not an empty list, and its row."""
    if column is None:
        return ""
    present = column.is_valid()
    if is_list(column.type):
        present = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
    present = np.flatnonzero(present.to_numpy())
    return f"; row {present[0]} holds {show_value(column[int(present[0])])}" if len(present) else ""


def _are_alike(block, other):
    """Return whether two fitted blocks have equal attributes."""
    own, others = vars(block), vars(other)
    return own.keys() == others.keys() and pickle.dumps(own) == pickle.dumps(others)


def load_matching(module, previous):
    """Copy all weights of a module into another one, if they have the same names and shapes.

    Parameters
    ----------
    module, previous : torch.nn.Module
        Module to change, and the one that is copied.

    Returns
    -------
    bool
        Whether the weights were copied.
    """
    own, state = module.state_dict(), previous.state_dict()
    shapes = [{name: value.shape for name, value in part.items()} for part in (own, state)]
    if shapes[0] != shapes[1]:
        return False
    module.load_state_dict(state)
    return True
