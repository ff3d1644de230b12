"""Resolve column selectors, and choose a block for each column automatically."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pyarrow.compute as pc

from sk_easytensor._utils.validation import SpelledValuesWarning, warn_user
from sk_easytensor.blocks.base import Block, unsupported_column
from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.blocks.datetime import DatetimeBlock
from sk_easytensor.blocks.event_sequence import EventSequenceBlock
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.numeric_sequence import NumericSequenceBlock
from sk_easytensor.blocks.sequences import CategorySequenceBlock
from sk_easytensor.blocks.text import TextBlock
from sk_easytensor.blocks.vector import SparseBlock, VectorBlock
from sk_easytensor.data.sparse import compressed, is_sparse, layout_of
from sk_easytensor.data.spelling import CODE_WORDS, has_code_name, has_numbers, is_text

__all__ = [
    "check_blocks",
    "detect_blocks",
    "format_names",
    "register_block",
    "resolve_columns",
    "select_columns",
    "selectable_names",
    "unregister_block",
    "warn_of_spelled_values",
]


BLOCKS = [
    SparseBlock,
    VectorBlock,
    EventSequenceBlock,
    NumericSequenceBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    TextBlock,
    CategoryBlock,
    NumericBlock,
]
"""Blocks of the automatic choice. A column is read by the first whose ``assign_columns`` returns
it."""

BUILT_IN = tuple(BLOCKS)


logger = logging.getLogger("sk_easytensor")

BOOLS = (bool, np.bool_)

LISTED = 20
"""Largest number of names that a message lists."""


def check_blocks(blocks):
    """Check the parameter ``blocks`` and return it as a list of triples.

    Raises
    ------
    ValueError, TypeError
        If an entry is not ``(name, Block, columns)``, or if a name occurs twice.
    """
    if blocks is None:
        return []
    if not isinstance(blocks, Iterable) or isinstance(blocks, str):
        raise TypeError(f"blocks must be a list of (name, block, columns), got {blocks!r}")
    blocks = list(blocks)
    names = set()
    for spec in blocks:
        if not isinstance(spec, (tuple, list)) or len(spec) != 3:
            raise ValueError(f"each entry of blocks must be (name, block, columns), got {spec!r}")
        name, block, _ = spec
        if not isinstance(name, str) or "__" in name or not name:
            raise ValueError(f"block names must be strings without '__', got {name!r}")
        if name in names:
            raise ValueError(f"block name {name!r} occurs more than once; names must be unique")
        if not isinstance(block, Block):
            raise TypeError(
                f"block {name!r} must be an instance of a Block, such as NumericBlock(), "
                f"got {block!r}"
            )
        names.add(name)
    return blocks


def register_block(block_class=None, *, before=None):
    """Add a block to the automatic choice in this process.

    Each column is read by the first block whose ``detects`` returns True. Registered blocks precede
    the built-in ones, in the order of their registration.

    Parameters
    ----------
    block_class : type
        Subclass of :class:`~sk_easytensor.Block` that defines ``detects`` (or ``assign_columns``)
        and a unique ``kind``. It is created without arguments. A class of the same module and name
        that was registered earlier is replaced.
    before : type, optional
        Class of the automatic choice directly before which the block is inserted.

    Returns
    -------
    type
        `block_class`, so that the function can decorate it.

    Raises
    ------
    TypeError
        If `block_class` is not a subclass of ``Block``, is abstract (the message names the methods
        that are missing), or cannot be created without arguments.
    ValueError
        If it defines neither ``detects`` nor ``assign_columns``, if another block has its ``kind``,
        or if `before` is not part of the automatic choice.

    See Also
    --------
    sk_easytensor.blocks.unregister_block : Removes a block from the automatic choice.
    sk_easytensor.testing.check_block : Checks that a block fulfils the contract.

    Notes
    -----
    Blocks are chosen only in ``fit``, by the process that calls it. Fitted models hold the blocks:
    pickling, cloning, loading and predicting need the module that defines the class, but no
    registration. The same holds for the workers of a Ray backend. Other processes that call
    ``fit``, such as those of ``GridSearchCV(n_jobs=2)``, have to register the block too. This is
    not necessary if the block is passed in the parameter ``blocks`` of the estimator.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from sk_easytensor import CategoryBlock, EasyTensorRegressor
    >>> from sk_easytensor.blocks import register_block, unregister_block
    >>> @register_block
    ... class CodeBlock(CategoryBlock):
    ...     kind = "code"
    ...
    ...     @classmethod
    ...     def detects(cls, column):
    ...         return pa.types.is_int8(column.type)
    >>> table = pa.table({"code": pa.array([1, 2, 1, 2] * 5, pa.int8())})
    >>> model = EasyTensorRegressor(max_epochs=1, trees=None).fit(table, list(range(20)))
    >>> list(model.blocks_)
    ['code']
    >>> unregister_block(CodeBlock)
    """
    if block_class is None:
        return partial(register_block, before=before)
    _check_registrable(block_class)
    previous = [cls for cls in BLOCKS if _full_name(cls) == _full_name(block_class)]
    if before is not None and (before not in BLOCKS or before in previous):
        names = ", ".join(cls.__name__ for cls in BLOCKS if cls not in previous)
        raise ValueError(
            f"register_block: before must be one of {names}, "
            f"got {getattr(before, '__name__', before)!r:.60}"
        )
    if previous and before is None:
        BLOCKS[BLOCKS.index(previous[0])] = block_class
        return block_class
    for cls in previous:
        BLOCKS.remove(cls)
    BLOCKS.insert(BLOCKS.index(before or BUILT_IN[0]), block_class)
    return block_class


def unregister_block(block_class):
    """Remove a block from the automatic choice.

    Parameters
    ----------
    block_class : type
        Class that was registered with :func:`register_block`.

    Raises
    ------
    ValueError
        If it is not registered, or is one of the built-in blocks.
    """
    if block_class in BUILT_IN or block_class not in BLOCKS:
        names = [cls.__name__ for cls in BLOCKS if cls not in BUILT_IN]
        raise ValueError(
            f"unregister_block: {getattr(block_class, '__name__', block_class)!r:.60} is not "
            f"registered; registered are {', '.join(names) or 'none'}"
        )
    BLOCKS.remove(block_class)


def _check_registrable(block_class):
    """Raise an error if a class cannot be registered."""
    if not isinstance(block_class, type) or not issubclass(block_class, Block):
        hint = (
            "; register the class rather than an instance" if isinstance(block_class, Block) else ""
        )
        raise TypeError(
            "register_block: block_class must be a subclass of sk_easytensor.Block, "
            f"got {block_class!r:.60}{hint}"
        )
    name = block_class.__name__
    if block_class in BUILT_IN:
        raise ValueError(f"register_block: {name} is built in and always part of the choice")
    missing = sorted(block_class.__abstractmethods__)
    if missing:
        raise TypeError(f"register_block: {name} has to define {', '.join(missing)}")
    required = [
        parameter.name
        for parameter in inspect.signature(block_class).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise TypeError(
            f"register_block: {name} is created without arguments when it is chosen, so that each "
            f"parameter needs a default; {required[0]!r} has none"
        )
    detects = block_class.detects.__func__ is not Block.detects.__func__
    if not detects and block_class.assign_columns.__func__ is Block.assign_columns.__func__:
        raise ValueError(
            f"register_block: {name} defines neither detects nor assign_columns, and so would "
            "never be chosen. Define a class method detects(column), true of its columns"
        )
    kind = block_class.kind
    if not isinstance(kind, str) or not kind or "__" in kind or kind == Block.kind:
        raise ValueError(
            f"register_block: {name}.kind must be a unique name, a string without '__' such as "
            f"'color', got {kind!r:.60}"
        )
    for cls in BLOCKS:
        if cls.kind == kind and _full_name(cls) != _full_name(block_class):
            raise ValueError(
                f"register_block: {name}.kind is {kind!r}, which {cls.__name__} has already; "
                "choose another one"
            )


def _full_name(cls):
    return cls.__module__, cls.__qualname__


def detect_blocks(table, columns, categories=()):
    """Choose a block for each column by its type and values.

    Parameters
    ----------
    table : pyarrow.Table
        A sample of the training rows.
    columns : list of str
        Columns for which blocks are chosen.
    categories : list of str, default=()
        Columns that are read as categories, whatever their type.

    Returns
    -------
    list of tuple of (type, list of str)
        Block classes and the columns of each block, in the order of
        ``sk_easytensor.blocks.BLOCKS``.

    Raises
    ------
    TypeError
        If no block reads a column; the message names the column.
    """
    chosen, rest = [], list(columns)
    numbers = {name for name in rest if is_spelled_number(table, name)}
    for block_class in tuple(BLOCKS):
        offered = rest
        if block_class in (CategoryBlock, TextBlock):
            offered = [name for name in rest if name not in numbers]
        groups = list(block_class.assign_columns(table, offered))
        if block_class is NumericBlock and numbers:
            groups = with_spelled_numbers(groups, [name for name in rest if name in numbers], rest)
        rest = [name for name in rest if not any(name in group for group in groups)]
        if block_class is CategoryBlock and categories:
            known = {*categories, *(name for group in groups for name in group)}
            groups = [[name for name in table.column_names if name in known]]
        chosen += [(block_class, group) for group in groups]
    if rest:
        raise TypeError(unsupported_column(table.schema.field(rest[0]), "", table.column(rest[0])))
    for block_class, group in chosen:
        if block_class in (CategoryBlock, TextBlock):
            for name in group:
                if name not in categories:
                    warn_of_spelled_values(name, table.column(name))
    return chosen


def is_spelled_number(table, name):
    """Return whether a column holds texts that are numbers rather than categories."""
    column = table.column(name)
    return is_text(column.type) and has_numbers(column, name)


def with_spelled_numbers(groups, spelled, names):
    """Return the groups of columns of numbers, with columns of texts that are numbers.

    Parameters
    ----------
    groups : list of list of str
        Columns of numbers, at most one group.
    spelled : list of str
        Columns of texts that are numbers.
    names : list of str
        All columns, in the order of the table.
    """
    if not spelled:
        return groups
    logger.info("texts that are numbers: %s", spelled)
    known = {*spelled, *(name for group in groups for name in group)}
    return [[name for name in names if name in known]]


MEASURE = r"^[-+]?[$€£¥]?\s?(\d{1,3}(,\d{3})+(\.\d+)?|\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s?[%$€£¥]?$"
"""Numbers as people write them: with separators of thousands, currencies, percent."""

PLAIN = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
INTEGER = r"^[-+]?\d+$"
CODE = r"^[-+]?0\d"
"""Numbers with leading zeros, which are codes."""

MONTH, DAY, YEAR = r"(0?[1-9]|1[0-2])", r"(0?[1-9]|[12]\d|3[01])", r"((19|20)\d\d)"
DAY_FIRST = r"^(1[3-9]|2\d|3[01])[-/.]"
DATE = "|".join(
    rf"^({date})([ T].*)?$"
    for date in (
        rf"{YEAR}[-/.]{MONTH}[-/.]{DAY}",
        rf"({MONTH}[-/.]{DAY}|{DAY}[-/.]{MONTH})[-/.]{YEAR}",
        # Dots and two digits are more often versions.
        rf"({MONTH}[-/]{DAY}|{DAY}[-/]{MONTH})[-/]\d\d",
    )
)

MOST = 0.9
"""Smallest fraction of values that are numbers or dates with which a column seems to be one."""

FEWEST_VALUES, SAMPLED_VALUES = 10, 10_000
"""Distinct values of a column that is looked at, at least, and values at most."""


def warn_of_spelled_values(name, column):
    """Warn if the texts of a column that is read as categories or text are numbers or dates.

    Parameters
    ----------
    name : str
        Name of the column.
    column : pyarrow.ChunkedArray
        A sample of its values.
    """
    if not is_text(column.type):
        return
    values = pc.utf8_trim_whitespace(column.drop_null().slice(0, SAMPLED_VALUES))
    values = values.filter(pc.not_equal(values, ""))
    if len(values.unique()) < FEWEST_VALUES:
        return

    def matching(pattern):
        return pc.match_substring_regex(values, pattern)

    is_code = has_code_name(name, CODE_WORDS)
    integers, measures, dates = (matching(pattern) for pattern in (INTEGER, MEASURE, DATE))
    n_integers, n_measures, n_dates = (pc.sum(each).as_py() for each in (integers, measures, dates))
    # Integers alone may be codes; beside "N/A" they are numbers.
    seem_numbers = n_measures >= MOST * len(values) and (
        n_measures > n_integers or n_measures < len(values)
    )
    if n_dates >= MOST * len(values):
        kind, found = "dates", dates
        first = ", dayfirst=True" if pc.any(matching(DAY_FIRST)).as_py() else ""
        convert = f"pandas.to_datetime(X[{name!r}], format='mixed'{first}, errors='coerce')"
    elif seem_numbers and not (is_code or pc.any(matching(CODE)).as_py()):
        kind, found = "numbers", measures
        texts = f"X[{name!r}]"
        if not pc.all(pc.equal(measures, matching(PLAIN))).as_py():
            texts += r".str.replace(r'[$€£¥,%\s]', '', regex=True)"
        convert = f"pandas.to_numeric({texts}, errors='coerce')"
    else:
        return
    others = values.filter(pc.invert(found))
    also = f" (the others are such as {others[0].as_py()!r:.40})" if len(others) else ""
    example = values.filter(found)[0].as_py()
    share = f"{len(values) - len(others)} of {len(values)} values"
    warn_user(
        f"column {name!r} holds texts and is not read as {kind}, but {share} are {kind}, such as "
        f"{example!r}{also}. If it has {kind}, convert it: {convert}. If it has categories, name "
        "it in categorical_features, or give it a block",
        SpelledValuesWarning,
    )


def select_columns(columns, table, X=None, *, owner="blocks", source="X"):
    """Resolve a column selector to names.

    Parameters
    ----------
    columns : str, int, list, slice, boolean mask or callable
        Selector, as in :class:`~sklearn.compose.ColumnTransformer`.
    table : pyarrow.Table
        Table whose columns are selected.
    X : table-like, optional
        Table of the user. A callable selector is called with it if it is a pandas data frame, else
        with `table` converted to one.
    owner : str, default="blocks"
        Name of the parameter that holds the selector, for error messages.
    source : str, default="X"
        Name of the table, for error messages.

    Returns
    -------
    list of str
        Names of the selected columns.

    Raises
    ------
    ValueError
        If a column does not exist, is selected twice, or is a feature of the sparse part of a
        matrix.

    Notes
    -----
    In a table that was made from a sparse matrix, positions, masks and slices refer to the
    features of the matrix. The column that holds the sparse part is selected by its name.
    """
    selected = resolve_columns(columns, table, X, owner=owner, source=source)
    present = set(table.column_names)
    for name in selected:
        if name not in present:
            column = layout_of(table).column
            raise ValueError(
                f"{owner} names feature {name!r}, which is in the sparse part of {source}: its "
                f"column {column!r} is read as one. Name {column!r}, or make the feature a dense "
                "column of a table"
            )
    return selected


def selectable_names(table):
    """Return the names that a selector can contain.

    Parameters
    ----------
    table : pyarrow.Table
        Table whose columns are selected.

    Returns
    -------
    names : list of str
        Names of the features, in the order of their positions: all columns of the table, or of the
        sparse matrix from which the table was made.
    others : list of str
        Names of other columns of the table, such as the one that holds the sparse part.
    """
    layout = layout_of(table)
    if layout is None:
        return table.column_names, []
    names = layout.features
    known = set(names)
    return names, [name for name in table.column_names if name not in known]


def resolve_columns(columns, table, X=None, *, owner="blocks", source="X"):
    """Resolve a selector as :func:`select_columns` does, but allow features in the sparse part."""
    names, others = selectable_names(table)
    if isinstance(columns, Callable):
        # Labels that are not strings would be read as positions, and structs are one column.
        has_same_columns = hasattr(X, "select_dtypes") and list(X.columns) == names
        columns = columns(X if has_same_columns else _frame(table, X, names, owner))
    if isinstance(columns, slice):
        bounds = [
            _position(bound, names, owner, source) if isinstance(bound, str) else bound
            for bound in (columns.start, columns.stop)
        ]
        if isinstance(columns.stop, str):
            bounds[1] += 1  # As in pandas, a slice of labels includes its end.
        return names[slice(*bounds, columns.step)]
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        columns = [columns]
    columns = list(columns)
    if columns and all(isinstance(item, BOOLS) for item in columns):
        if len(columns) != len(names):
            raise ValueError(
                f"{owner}: the boolean mask has {len(columns)} entries for {len(names)} columns"
            )
        return [name for name, keep in zip(names, columns, strict=True) if keep]
    selected = [
        item
        if isinstance(item, str) and item in others
        else names[_position(item, names, owner, source)]
        for item in columns
    ]
    twice = {name for name, count in Counter(selected).items() if count > 1}
    if twice:
        raise ValueError(f"{owner} names columns more than once: {sorted(twice)}")
    return selected


def format_names(names):
    """Return names as a message lists them, at most `LISTED` of them."""
    if len(names) <= LISTED:
        return str(list(names))
    return f"{len(names)} columns: {', '.join(map(repr, names[:LISTED]))} and so on"


def _frame(table, X, names, owner):
    """Convert a table to a pandas data frame for a callable selector."""
    if layout_of(table) is None:
        return table.to_pandas()
    if not is_sparse(X) and not hasattr(X, "sparse"):
        raise ValueError(f"{owner}: a callable can only select columns of the sparse matrix itself")
    from pandas import DataFrame

    return DataFrame.sparse.from_spmatrix(compressed(X), columns=names)


def _position(item, names, owner, source):
    if isinstance(item, str):
        if item not in names:
            raise ValueError(
                f"{owner} names column {item!r}, which {source} does not have; it has "
                f"{format_names(names)}"
            )
        return names.index(item)
    if not isinstance(item, (int, np.integer)) or isinstance(item, BOOLS):
        raise ValueError(f"{owner}: {item!r} is not a column name, position or mask")
    if not -len(names) <= item < len(names):
        raise ValueError(f"{owner} names column {item}, but {source} has {len(names)} columns")
    return int(item)
