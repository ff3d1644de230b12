"""Encoder of a table: assigns columns to blocks and fits all blocks in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.validation import ParametersMixin, check_choice, warn_of_unseen
from sk_easytensor.blocks.detection import (
    BLOCKS,
    check_blocks,
    detect_blocks,
    format_names,
    resolve_columns,
    select_columns,
    selectable_names,
)
from sk_easytensor.blocks.numeric import BASE_MARGIN, NumericBlock, OffsetBlock, margin_column
from sk_easytensor.data.arrow_columns import is_pandas
from sk_easytensor.data.sparse import compressed, is_sparse, layout_of
from sk_easytensor.data.tables import as_table, has_column_names, read_like_fit
from sk_easytensor.executor import LocalExecutor

__all__ = [
    "BlockParametersMixin",
    "TableEncoder",
    "select_columns",
]


MAX_NAMED_FEATURES = 1024
"""Largest number of features of a wide sparse matrix that become dense columns by being named."""


class BlockParametersMixin:
    """Mixin for nested parameters of named blocks: ``blocks__<name>__<parameter>``."""

    block_parameters = ("blocks",)
    """Names of the parameters that hold lists of named blocks."""

    def get_params(self, deep=True):
        """Return the parameters, including those of named blocks.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include ``blocks__<name>`` and ``blocks__<name>__<parameter>``.

        Returns
        -------
        dict
            Values by parameter name.
        """
        params = super().get_params(deep=deep)
        if deep:
            # A subclass may not have the parameter.
            for parameter in filter(params.__contains__, self.block_parameters):
                for name, block in self._named_blocks(parameter).items():
                    params[f"{parameter}__{name}"] = block
                    for key, value in block.get_params(deep=True).items():
                        params[f"{parameter}__{name}__{key}"] = value
        return params

    def set_params(self, **params):
        """Set parameters, including those of named blocks.

        Parameters
        ----------
        **params : dict
            Values by parameter name, as :meth:`get_params` returns them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or a named block does not exist.
        """
        prefixes = tuple(f"{parameter}__" for parameter in self.block_parameters)
        direct = {key: value for key, value in params.items() if not key.startswith(prefixes)}
        super().set_params(**direct)
        nested = {key: value for key, value in params.items() if key not in direct}
        # Blocks are set before their parameters, so that parameters apply to the new blocks.
        for key in sorted(nested, key=lambda key: key.count("__")):
            parameter, name, *rest = key.split("__", 2)
            blocks = self._named_blocks(parameter)
            if name not in blocks:
                kinds = {block.kind: block.__name__ for block in BLOCKS}
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}. Named blocks "
                    f"are: {sorted(blocks)}. Name the block first: "
                    f"{parameter}=[({name!r}, {kinds.get(name, 'Block')}(), columns)]"
                )
            if rest:
                blocks[name].set_params(**{rest[0]: nested[key]})
            else:
                specs = [
                    (spec[0], nested[key], *spec[2:]) if spec[0] == name else spec
                    for spec in getattr(self, parameter)
                ]
                setattr(self, parameter, specs)
        return self

    def _named_blocks(self, parameter):
        specs = getattr(self, parameter)
        if not isinstance(specs, (list, tuple)):
            return {}
        specs = [spec for spec in specs if isinstance(spec, (list, tuple)) and len(spec) == 3]
        return {spec[0]: spec[1] for spec in specs if hasattr(spec[1], "get_params")}


class TableEncoder(BlockParametersMixin, ParametersMixin, TransformerMixin, BaseEstimator):
    """Encode a table with blocks, as a transformer or as the first step of the estimators.

    Parameters
    ----------
    blocks : list of (str, Block, columns) or None, default=None
        Named blocks and their columns, as in :class:`~sklearn.compose.ColumnTransformer`. An entry
        has a name, an unfitted block, and a column name, position, list of either, slice, boolean
        mask or callable. For a sparse `X`, names and positions are those of the columns of the
        matrix (``x0``, ``x1``, ... if it has no names), which are then read as dense columns. The
        remaining sparse columns are selected together as ``"sparse"``.
    remainder : {"auto", "drop"}, default="auto"
        Treatment of columns that `blocks` does not name: ``"auto"`` chooses a block for each by
        its type, ``"drop"`` leaves them out.
    categorical_features : str, int, list, slice, mask, callable or None, default=None
        Columns that are read as categories whatever their type, such as numeric labels. They are
        selected as in `blocks`, and read by a :class:`~sk_easytensor.CategoryBlock`, even with
        ``remainder="drop"``.
    n_jobs : int or None, default=None
        Number of threads for tables of several chunks, as in scikit-learn.

    Attributes
    ----------
    blocks_ : dict of {str: Block}
        Fitted blocks by name; ``blocks_[name].feature_names_in_`` are the columns of a block.
    n_features_in_ : int
        Number of columns seen during fit.
    feature_names_in_ : ndarray of str
        Names of the columns, if they had names.
    column_names_ : list of str
        Names of the columns of the converted table; by default ``x0``, ``x1`` and so on.

    Examples
    --------
    >>> encoder = TableEncoder().fit({"age": [20.0, 30.0, 40.0], "city": ["Oslo", "Lima", "Oslo"]})
    >>> encoder.blocks_
    {'category': CategoryBlock(), 'numeric': NumericBlock()}
    >>> encoder.transform({"age": [30.0], "city": ["Rome"]})
    array([[1., 0.]], dtype=float32)
    """

    _sparse = None

    offset_column_ = None
    """Name of the offset column, or None."""

    with_margin_ = False
    """Whether offsets were passed as an array, so that their column is not a feature."""

    def __init__(self, blocks=None, *, remainder="auto", categorical_features=None, n_jobs=None):
        self.blocks = blocks
        self.remainder = remainder
        self.categorical_features = categorical_features
        self.n_jobs = n_jobs

    @with_library_settings
    def fit(self, X, y=None):
        """Choose and fit the blocks.

        Parameters
        ----------
        X : table-like
            Training rows.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        table = self.read_training(X)
        return self.fit_table(table, X, partial(LocalExecutor(self.n_jobs).summarize, table))

    def read_training(self, X, offset=None, monotonic_cst=None):
        """Read the training table; named features of a sparse matrix become dense columns.

        Parameters
        ----------
        X : table-like
            Training rows.
        offset : str or int, optional
            Name or position of the offset column.
        monotonic_cst : dict or array-like, optional
            Monotonicity constraints: see :func:`constraint_signs`.

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        ValueError
            If more than `MAX_NAMED_FEATURES` features of a sparse matrix are named.
        """
        table = as_table(X)
        layout = layout_of(table)
        if layout is None or not (is_sparse(X) or is_pandas(X, "DataFrame")):
            return table
        present, features = set(table.column_names), set(layout.features)
        more = set()
        for owner, selector in self._selectors(table, offset, monotonic_cst):
            selected = resolve_columns(selector, table, X, owner=owner)
            more.update(name for name in selected if name in features and name not in present)
            if len(more) > MAX_NAMED_FEATURES:
                raise ValueError(
                    f"{owner}: {len(more)} features in the sparse part of X are named; at most "
                    f"{MAX_NAMED_FEATURES} can be read as dense columns. A SparseBlock reads the "
                    f"whole sparse part, column {layout.column!r}"
                )
        return layout.with_dense(more).table(compressed(X), store_layout=True) if more else table

    def _selectors(self, table, offset, monotonic_cst):
        """Yield each column selector after its name in error messages."""
        for name, _, columns in check_blocks(self.blocks):
            yield f"block {name!r}", columns
        if self.categorical_features is not None:
            yield "categorical_features", self.categorical_features
        if offset is not None:
            yield "offset", [offset]
        if monotonic_cst is not None:
            yield "monotonic_cst", list(constraint_signs(monotonic_cst, *selectable_names(table)))

    def fit_table(
        self,
        sample,
        X,
        summarize,
        offset=None,
        *,
        with_margin=False,
        monotonic_cst=None,
        for_embedding=False,
    ):
        """Fit on a table already read.

        Parameters
        ----------
        sample : pyarrow.Table
            Sample of the training rows, or all of them, with all columns.
        X : table-like
            Training rows as the user passed them, for callables that select columns.
        summarize : callable
            Function of a dictionary of {str: (Block, list of str)}, blocks and their columns by
            name. It returns the summaries of the blocks over all training rows by name.
        offset : str or int, optional
            Name or position of the offset column. It is a feature only if `blocks` names it.
        with_margin : bool, default=False
            Whether the table has a column `BASE_MARGIN` of offsets, which is not a feature.
        monotonic_cst : dict or array-like, optional
            Monotonicity constraints: see :func:`constraint_signs`. Constrained columns are read by
            separate blocks.
        for_embedding : bool, default=False
            Whether the network computes embeddings: see
            :meth:`~sk_easytensor.Block.configure_for_embedding`.

        Returns
        -------
        self
        """
        self._named = has_column_names(X)
        self.column_names_ = [
            name for name in sample.column_names if not (with_margin and name == BASE_MARGIN)
        ]
        self._sparse = layout_of(sample)
        self.n_features_in_ = len(self.features)
        if self._named:
            self.feature_names_in_ = np.asarray(self.features, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        features = sample.select(self.column_names_)
        self.with_margin_ = with_margin
        self.offset_column_ = BASE_MARGIN if with_margin else None
        if offset is not None:
            self.offset_column_ = select_columns([offset], features, X, owner="offset")[0]
        chosen = self._choose(features, X, monotonic_cst)
        for block, columns in chosen.values():
            if for_embedding:
                block.configure_for_embedding()
            block.fit_columns(sample.select(columns), named=self._named)
        summaries = summarize(chosen)
        self.blocks_ = {name: block.finish(summaries[name]) for name, (block, _) in chosen.items()}
        return self

    @with_library_settings
    def transform(self, X):
        """Encode a table as one matrix.

        Parameters
        ----------
        X : table-like
            Rows to encode.

        Returns
        -------
        ndarray of float32, shape (n_rows, len(get_feature_names_out()))
        """
        frame = self.encode(X)
        parts = [block.flatten(frame[name]) for name, block in self.blocks_.items()]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    @with_library_settings
    def encode(self, X):
        """Encode a table for a network.

        Parameters
        ----------
        X : table-like
            Rows to encode.

        Returns
        -------
        TensorFrame
        """
        return self.encode_table(self.read(X), LocalExecutor(self.n_jobs))

    def read(self, X, owner=None, base_margin=None):
        """Read a table and align it to the columns seen during fit.

        Parameters
        ----------
        X : table-like
            Rows to read.
        owner : str, optional
            Class name for error messages; by default that of the encoder.
        base_margin : array-like of shape (n_rows,) or number, optional
            Offsets, if they were an array during fit; by default the column `BASE_MARGIN` of `X`.

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        ValueError
            If columns or offsets are missing, or offsets are passed but were not used in fit.
        """
        check_is_fitted(self)
        owner = owner or type(self).__name__
        column = None
        if base_margin is not None or self.with_margin_:
            X, column = self._take_margin(X, owner, base_margin)
        table = read_like_fit(
            X, self.column_names_, fitted_with_names=self._named, owner=owner, sparse=self._sparse
        )
        if base_margin is not None:
            column = margin_column(base_margin, len(table))
        return table if column is None else table.append_column(BASE_MARGIN, column)

    def _take_margin(self, X, owner, base_margin):
        """Return a table without its offset column, and that column."""
        if not self.with_margin_:
            offset = self.offset_column_
            named = f", but with offset={offset!r}" if offset is not None else ""
            raise ValueError(f"{owner} was fitted without base_margin{named}")
        if base_margin is not None:
            return X, None
        table = as_table(X) if has_column_names(X) else None
        if table is None or BASE_MARGIN not in table.column_names:
            raise ValueError(
                f"{owner} was fitted with base_margin, and needs base_margin=... for the rows "
                f"to predict, or a column {BASE_MARGIN!r} in X"
            )
        return table.drop_columns([BASE_MARGIN]), table.column(BASE_MARGIN)

    @property
    def features(self):
        """Names of the features: of the columns of the table, or of the sparse matrix."""
        return self.column_names_ if self._sparse is None else self._sparse.features

    def encode_table(self, table, executor, *, new_values=False):
        """Encode an aligned table.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with the columns seen during fit.
        executor : LocalExecutor
            Executor that encodes the table.
        new_values : bool, default=False
            Whether no warning is issued for columns without known categories, which are usual for
            the keys of new users.

        Returns
        -------
        TensorFrame

        Warns
        -----
        UserWarning
            If no value of a column is a known category.
        """
        frame = executor.encode(table, self.block_columns())
        if new_values:
            return frame
        for name, block in self.blocks_.items():
            for column in block.unseen_columns(table, frame[name]):
                warn_of_unseen(column, len(table), type(block).__name__, block.noun)
        return frame

    def block_columns(self):
        """Return each fitted block and the list of columns it reads, by block name."""
        return {
            name: (block, list(block.feature_names_in_)) for name, block in self.blocks_.items()
        }

    def column_positions(self, column, frame):
        """Return the positions of an input column in an encoded frame.

        Parameters
        ----------
        column : str
            Name of the column.
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        dict of {str: dict of {str: list of int}}
            Positions in the second dimension of each entry, by block name and entry name.
        """
        return self.all_column_positions(frame)[column]

    def all_column_positions(self, frame):
        """Return :meth:`column_positions` of all input columns, by column."""
        positions = {column: {} for column in self.column_names_}
        for name, block in self.blocks_.items():
            if self.with_margin_ and name == self.offset_block:
                continue
            for column in block.feature_names_in_:
                positions[column][name] = {}
            for entry, sources in block.encoding_columns(frame[name]).items():
                for index, source in enumerate(sources):
                    for column in dict.fromkeys(source if isinstance(source, tuple) else (source,)):
                        positions[column][name].setdefault(entry, []).append(index)
        return positions

    def by_feature(self, importances, network, frame):
        """Divide the importance of the sparse column among its features.

        Parameters
        ----------
        importances : ndarray of float64, shape (n_columns,) or (n_columns, n_repeats)
            Importances of the columns of the table.
        network : BlockNetwork
            Trained network.
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        ndarray of float64, shape (n_features,) or (n_features, n_repeats)
            Importances of all features. That of a feature of the sparse column is proportional to
            the variance of its contribution to the outputs, or to the inputs of the trunk.
        """
        layout = self._sparse
        if layout is None:
            return importances
        result = np.zeros((layout.n_features, *importances.shape[1:]))
        result[layout.dense] = importances[:-1]
        readers = [
            (block.feature_shares(frame[name], network.effects(name)), name)
            for name, block in self.blocks_.items()
            if block.feature_shares is not None and layout.column in block.feature_names_in_
        ]
        for shares, _ in readers:
            result += np.multiply.outer(shares, importances[-1]) / len(readers)
        return result

    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns of :meth:`transform`, ``block__column``.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        ndarray of str
        """
        check_is_fitted(self)
        names = [
            f"{name}__{feature}"
            for name, block in self.blocks_.items()
            for feature in block.get_feature_names_out()
        ]
        return np.asarray(names, dtype=object)

    def _choose(self, table, X, monotonic_cst):
        """Return unfitted blocks and the columns of each, by block name."""
        check_choice(type(self).__name__, "remainder", self.remainder, ("auto", "drop"))
        chosen, used = {}, set()
        for name, block, columns in check_blocks(self.blocks):
            columns = select_columns(columns, table, X, owner=f"block {name!r}")
            if columns:
                chosen[name] = (clone(block), columns)
                used.update(block.claimed_columns(table.select(columns)))
        categories = self._categories(table, X, chosen)
        used.update(categories)
        if self.remainder == "auto" or categories:
            rest = [n for n in table.column_names if n not in used and n != self.offset_column_]
            named = set(chosen)
            rest = rest if self.remainder == "auto" else []
            for block_class, columns in detect_blocks(table, rest, categories):
                kind = block_class.kind
                while kind in named:
                    kind += "_auto"
                name, count = kind, 1
                while name in chosen:
                    count += 1
                    name = f"{kind}_{count}"
                chosen[name] = (block_class(), columns)
        if not chosen:
            raise ValueError(
                "no block reads any column: name columns in blocks or use remainder='auto'"
            )
        # These blocks are last, so that the names of the other blocks do not depend on them.
        if monotonic_cst is not None:
            signs = constraint_signs(monotonic_cst, *selectable_names(table))
            select_columns(list(signs), table, owner="monotonic_cst")
            chosen = constrained_blocks(chosen, signs)
        if self.offset_column_ is not None:
            chosen[free_name(OffsetBlock.kind, chosen)] = (OffsetBlock(), [self.offset_column_])
        return chosen

    def _categories(self, table, X, chosen):
        """Return the columns that `categorical_features` selects."""
        if self.categorical_features is None:
            return []
        columns = select_columns(self.categorical_features, table, X, owner="categorical_features")
        for name, (_, used) in chosen.items():
            twice = [column for column in columns if column in used]
            if twice:
                raise ValueError(
                    f"categorical_features names column {twice[0]!r}, which block {name!r} reads; "
                    "leave it out of one of them"
                )
        return columns

    @property
    def offset_block(self):
        """Name of the offset block, or None."""
        return None if self.offset_column_ is None else list(self.blocks_)[-1]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sk_visual_block_(self):
        return blocks_diagram(self)


def constraint_signs(monotonic_cst, names, others=()):
    """Return the monotonicity constraints of columns.

    Parameters
    ----------
    monotonic_cst : dict of {str: int} or array-like of int, shape (n_columns,)
        1 (increasing), -1 (decreasing) or 0 (none), by column name or for all columns in order.
    names : list of str
        Names of the columns, in the order of their positions.
    others : list of str, default=()
        Names of further columns that have no position.

    Returns
    -------
    dict of {str: int}
        Signs of the columns with a constraint.

    Raises
    ------
    ValueError
        If a column does not exist, or a value is not -1, 0 or 1.
    """
    if not isinstance(monotonic_cst, Mapping):
        if np.shape(monotonic_cst) != (len(names),):
            raise ValueError(
                f"monotonic_cst must be a dict of columns, or have one sign for each of the "
                f"{len(names)} columns, got shape {np.shape(monotonic_cst)}"
            )
        monotonic_cst = dict(zip(names, monotonic_cst, strict=True))
    known = {*names, *others}
    for name, sign in monotonic_cst.items():
        if name not in known:
            raise ValueError(
                f"monotonic_cst names column {name!r}, which X does not have; it has "
                f"{format_names(names)}"
            )
        if sign not in (-1, 0, 1):
            raise ValueError(
                f"monotonic_cst of column {name!r} must be -1 (decreasing), 0 or 1 (increasing), "
                f"got {sign!r}"
            )
    return {name: int(sign) for name, sign in monotonic_cst.items() if sign}


def constrained_blocks(chosen, signs):
    """Assign columns with monotonicity constraints to separate blocks.

    Parameters
    ----------
    chosen : dict of {str: tuple of (Block, list of str)}
        Unfitted blocks and the columns of each.
    signs : dict of {str: int}
        Constraints from :func:`constraint_signs`.

    Returns
    -------
    dict of {str: tuple of (Block, list of str)}
        Blocks and columns; the new blocks, ``<name>_monotonic``, are last.

    Raises
    ------
    ValueError
        If a column with a constraint is not read by a :class:`NumericBlock`.
    """
    result, constrained = {}, {}
    for name, (block, columns) in chosen.items():
        with_sign = [column for column in columns if column in signs]
        if with_sign and type(block) is not NumericBlock:
            raise ValueError(
                f"monotonic_cst: column {with_sign[0]!r} is read by block {name!r}, a "
                f"{type(block).__name__}; only columns that a NumericBlock reads can have a "
                "constraint. Convert the column to numbers"
            )
        rest = [column for column in columns if column not in signs]
        if rest:
            result[name] = (block, rest)
        if with_sign:
            other = clone(block)
            other.monotonic_cst = [signs[column] for column in with_sign]
            constrained[name] = (other, with_sign)
    constrained_columns = {column for _, columns in constrained.values() for column in columns}
    unread = [column for column in signs if column not in constrained_columns]
    if unread:
        raise ValueError(f"monotonic_cst: no block reads column {unread[0]!r}")
    for name, entry in constrained.items():
        result[free_name(f"{name}_monotonic", result)] = entry
    return result


def free_name(name, taken):
    """Return `name`, with a number appended if it is taken."""
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free


def blocks_diagram(estimator):
    """Return the blocks and their columns for scikit-learn's HTML representation."""
    from sklearn.utils._repr_html.estimator import _VisualBlock

    fitted = getattr(estimator, "blocks_", None)
    if fitted is not None:
        names, blocks = list(fitted), list(fitted.values())
        details = [list(block.feature_names_in_) for block in blocks]
    else:
        specs = check_blocks(estimator.blocks)
        names = [name for name, _, _ in specs]
        blocks = [block for _, block, _ in specs]
        details = [columns for _, _, columns in specs]
        if estimator.remainder == "auto":
            names, blocks, details = [*names, "remainder"], [*blocks, "auto"], [*details, ""]
    return _VisualBlock("parallel", blocks, names=names, name_details=details)


def describe_selector(columns):
    """Return a column selector in a form that can be compared with another, even if unpickled."""
    if callable(columns):
        return "callable"
    return columns.tolist() if isinstance(columns, np.ndarray) else columns
