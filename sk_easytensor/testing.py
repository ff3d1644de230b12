"""Checks for custom blocks.

:func:`check_block` checks the contract that :class:`~sk_easytensor.Block` describes, and
:func:`registered_block` makes a block part of the automatic choice during a test.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
import warnings
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_easytensor._utils.runtime import library_settings, seeded
from sk_easytensor._utils.skops import ArrowBytes
from sk_easytensor.blocks.base import Block
from sk_easytensor.blocks.detection import register_block, unregister_block
from sk_easytensor.data.columns import is_list, list_lengths
from sk_easytensor.data.summaries import Summary, merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.networks.block_module import check_module
from sk_easytensor.tensors import Ragged, TensorFrame

__all__ = [
    "check_block",
    "registered_block",
]


MAX_SINGLE_ROWS = 12
"""Largest number of rows that are encoded one by one."""

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Tolerances for differences between outputs of a module for the same rows in other batches."""

MAX_CODES = 2**24
"""Largest number of codes of a column that trees can read."""

FOREIGN_TYPES = (
    pa.binary(),
    pa.map_(pa.string(), pa.int8()),
    pa.date32(),
    pa.float64(),
    pa.string(),
)
"""Types of columns, at least one of which most blocks refuse."""


def check_block(block, table, *, exact=True):
    """Check that a block follows the contract of :class:`~sk_easytensor.Block`.

    The block is cloned and fitted many times, so that a table of 20 to 100 rows suffices. The parts
    of the contract are checked in this order, each named in the error:

    - ``parameters``: ``__init__`` only assigns them, ``fit`` refuses invalid ones by name.
    - ``column types``: ``accepts`` returns True for the columns of the table; columns of other
      types are refused by name.
    - ``fit``: it returns the block, sets ``feature_names_in_`` and has the same result twice.
    - ``summaries``: they merge to the same fit for any split of the rows, in any order.
    - ``encoding``: each entry has the rows of the table and the columns of ``encoding_columns``.
    - ``independent rows``: the encoding of a row does not depend on other rows.
    - ``column positions``: shuffling a column changes its parts of the encoding and nothing else.
    - ``module``: a ``BlockModule`` with finite outputs of the right shape, row by row, gradients,
      and consistent ``tree_inputs`` and ``output_columns``.
    - ``missing values`` and ``unseen values``: both are encoded, and outputs are finite.
    - ``empty tables``: a table without rows is encoded as any other.
    - ``matrix``: ``flatten`` returns finite float32 columns, named by ``get_feature_names_out``.
    - ``pickling``: pickles and deep copies are the same block.
    - ``column names``: columns are matched by name, and ``renamed`` copies read renamed columns.
    - ``saving without pickle``: skops can write the fitted block, and no attribute has tensors.
    - ``ONNX``: the graph of ``to_onnx`` computes the encoding. This is skipped if the block does
      not support it or onnxruntime is not installed.

    Parameters
    ----------
    block : Block
        Block to check, which is not changed.
    table : table-like
        Rows with the columns of the block only. Some values should be missing, and some rows equal.
    exact : bool, default=True
        Whether the same row must have the same encoding bit for bit in every batch. False allows
        for rounding, in blocks that run a network in ``encode``.

    Raises
    ------
    AssertionError
        If the block does not follow the contract. The message names the first part that fails, and
        an error of the block itself is the cause.
    TypeError
        If `block` is not an instance of ``Block``.
    ValueError
        If the table has fewer than four rows or no columns.

    Warns
    -----
    UserWarning
        If skops cannot write the block, or the block has tensors: models with it work, but can only
        be saved by pickle.

    Examples
    --------
    >>> from sk_easytensor import NumericBlock
    >>> from sk_easytensor.testing import check_block
    >>> check_block(NumericBlock(bins=4), {"size": [1.0, None, 3.0, 4.5, 6.0]})
    """
    if not isinstance(block, Block):
        hint = "; create an instance" if isinstance(block, type) else ""
        raise TypeError(f"check_block: block must be a Block, got {block!r:.60}{hint}")
    table = as_table(table)
    if table.num_rows < 4 or table.num_columns == 0:
        raise ValueError(
            f"check_block: table must have at least four rows and one column, got "
            f"{table.num_rows} rows and {table.num_columns} columns"
        )
    owner = type(block).__name__
    with library_settings(), seeded(0):
        with _part(owner, "parameters"):
            case = _Case(block, table, exact)
            _check_parameters(case)
        for part, check in PARTS.items():
            with _part(owner, part):
                check(case)


@contextmanager
def registered_block(block_class, *, before=None):
    """Make a block part of the automatic choice within the context.

    Parameters
    ----------
    block_class, before
        Parameters of :func:`~sk_easytensor.blocks.register_block`.

    Yields
    ------
    type
        The class `block_class`.

    Examples
    --------
    >>> from sk_easytensor import CategoryBlock
    >>> from sk_easytensor.blocks import BLOCKS
    >>> class ColorBlock(CategoryBlock):
    ...     kind = "color"
    >>> with registered_block(ColorBlock):
    ...     BLOCKS[0].__name__
    'ColorBlock'
    >>> ColorBlock in BLOCKS
    False
    """
    register_block(block_class, before=before)
    try:
        yield block_class
    finally:
        unregister_block(block_class)


@contextmanager
def _part(owner, part):
    """Raise errors of the context as an ``AssertionError`` that names a part of the contract."""
    prefix = f"{owner} does not follow the block contract, part {part!r}: "
    try:
        yield
    except AssertionError as error:
        raise AssertionError(prefix + str(error)) from error.__cause__
    except Exception as error:
        raise AssertionError(f"{prefix}{type(error).__name__}: {error}") from error


class _Nonsense:
    """A value that is invalid for any parameter of a block."""

    def __repr__(self):
        return "<nonsense>"


class _Case:
    """A block that is checked, unfitted and fitted, and its table."""

    def __init__(self, block, table, exact):
        self.block, self.table, self.exact = clone(block), table, exact
        self.names = table.column_names
        self._fitted = None

    @property
    def fitted(self):
        """Block, fitted on the whole table."""
        if self._fitted is None:
            self._fitted = self.new().fit(self.table)
        return self._fitted

    def new(self):
        return clone(self.block)

    def missing(self, *, typed=True, n_rows=2):
        kinds = [field.type if typed else pa.null() for field in self.table.schema]
        pairs = zip(self.names, kinds, strict=True)
        return pa.table({name: pa.nulls(n_rows, kind) for name, kind in pairs})

    def check_same(self, actual, expected, message):
        """Check that two frames are equal, up to rounding if the block is not exact."""
        if actual.equals(expected):
            return
        close = not self.exact and _are_close(actual["block"], expected["block"])
        assert close, message


def _encoded(block, table):
    return TensorFrame({"block": block.transform(table)}, table.num_rows)


def _are_close(actual, expected):
    for name, entry in expected.items():
        pairs = [(actual[name], entry)]
        if isinstance(entry, Ragged):
            pairs = [(actual[name].values, entry.values), (actual[name].offsets, entry.offsets)]
        for a, b in pairs:
            if a.shape != b.shape or not torch.allclose(
                a.double(), b.double(), **TOLERANCE, equal_nan=True
            ):
                return False
    return True


def _outputs(block, table, *, training=False):
    """Return a new module of a block, and its outputs for a table."""
    torch.manual_seed(0)
    module = check_module(block.make_module(), type(block).__name__).train(training)
    return module, module(**block.encode(table))


def _check_outputs(module, outputs, n_rows, rows):
    """Check the type, shape, dtype and values of a module's outputs."""
    owner = type(module).__name__
    kind = type(outputs).__name__
    assert isinstance(outputs, torch.Tensor), f"{owner} returned {kind} for {rows}"
    shape = (n_rows, module.out_features)
    assert outputs.shape == shape, (
        f"{owner} returned shape {tuple(outputs.shape)} for {rows}, expected (n_rows, "
        f"out_features) = {shape}"
    )
    assert outputs.dtype == torch.float32, f"{owner} returned {outputs.dtype}, expected float32"
    assert torch.isfinite(outputs).all(), f"{owner} returned NaN or infinity for {rows}"


# ------------------------------------------------------------------ parts of the contract


def _check_parameters(case):
    parameters = case.block.get_params(deep=False)
    additional = sorted(vars(case.block).keys() - parameters.keys())
    assert not additional, f"__init__ sets {', '.join(additional)}, which are not its parameters"
    for name in parameters:
        try:
            other = type(case.block)(**{**parameters, name: _Nonsense()})
        except Exception as error:
            raise AssertionError(
                f"__init__ must only assign {name!r}; check it in check_parameters, which fit "
                f"calls. It raised {type(error).__name__}: {error}"
            ) from error
        remedy = (
            f"define check_parameters to raise ValueError or TypeError that names {name!r} and "
            "the value"
        )
        error = _error_of(other.fit, case.table)
        assert error is not None, f"fit accepts {name}=<nonsense>; {remedy}"
        assert isinstance(error, (TypeError, ValueError)) and name in str(error), (  # noqa: PT018
            f"the error about an invalid {name!r} does not name it "
            f"({type(error).__name__}: {error}); {remedy}"
        )


def _error_of(function, *arguments):
    """Return the error that a call raises; None if it raises none."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _check_types(case):
    for field in case.table.schema:
        assert case.block.accepts(field.type) in (True, False), "accepts must return True or False"
        assert case.block.accepts(field.type), (
            f"accepts returns False for column {field.name!r} of type {type_name(field.type)}"
        )
    foreign = [kind for kind in FOREIGN_TYPES if not case.block.accepts(kind)]
    if foreign:
        # The other columns stay, for blocks that read a certain number of them or some by name.
        name, rows = case.names[0], case.table.slice(0, 2)
        error = _error_of(case.new().fit, rows.set_column(0, name, pa.nulls(2, foreign[0])))
        assert error is not None, (
            f"fit reads a column of {foreign[0]}, for which accepts returns False"
        )
        assert isinstance(error, TypeError) and name in str(error), (  # noqa: PT018
            f"a column for which accepts returns False must raise a TypeError that names it, "
            f"{name!r}, got {type(error).__name__}: {error}"
        )


def _check_fit(case):
    block, table = case.new(), case.table
    assert isinstance(_error_of(block.transform, table), NotFittedError), (
        "transform before fit must raise NotFittedError"
    )
    _check_summary(block.fit_columns(table).summarize(table))
    returned = block.fit(table)
    assert returned is block, "fit and finish must return self"
    assert list(block.feature_names_in_) == case.names, (
        "feature_names_in_ differs from the columns of the table"
    )
    assert block.n_features_in_ == len(case.names), "n_features_in_ is not the number of columns"
    assert_same_fit(block, case.fitted, "fitted a second time on the same rows")
    half = table.slice(0, len(table) // 2)
    assert_same_fit(block.fit(half), case.new().fit(half), "fitted on other rows before")


def _check_summary(summary):
    assert isinstance(summary, Summary), (
        "summarize must return a Summary, as those in sk_easytensor.data.summaries, got "
        f"{type(summary).__name__}"
    )


def _check_summaries(case):
    table, n, random = case.table, case.table.num_rows, np.random.default_rng(0)
    for cuts in ([], [1], [n // 2], [n - 1], [0, n], [1, n // 3, n // 3, n - 2], range(1, n)):
        bounds = list(zip([0, *cuts], [*cuts, n], strict=True))
        parts = [table.slice(start, stop - start) for start, stop in bounds]
        block = case.new().fit_columns(table)
        before = vars(block).copy()
        # Chunks are summarized in any order and in other processes.
        parts = [parts[index] for index in random.permutation(len(parts))]
        summaries = [pickle.loads(pickle.dumps(block.summarize(part))) for part in parts]
        changed = [k for k, v in vars(block).items() if k not in before or before[k] is not v]
        assert not changed, f"summarize sets {', '.join(changed)}; it must set no attributes"
        assert block.finish(merge_all(summaries)) is block, "finish must return self"
        assert_same_fit(block, case.fitted, f"rows summarized in {len(parts)} chunks, shuffled")
    if case.block.column_wise:
        block = case.new().fit_columns(table)
        parts = [block.summarize(table.select([name])) for name in case.names]
        merged = type(parts[0])({name: column for part in parts for name, column in part.items()})
        message = "columns summarized separately (column_wise)"
        assert_same_fit(block.finish(merged), case.fitted, message)


def _check_encoding(case):
    block, n = case.fitted, case.table.num_rows
    attributes = set(vars(block))
    encoding = block.transform(case.table)
    assert isinstance(encoding, dict), "encode must return a dictionary"
    assert encoding, "encode must return at least one entry"
    assert set(vars(block)) == attributes, "encode must set no attributes"
    columns = block.encoding_columns(encoding)
    assert columns.keys() == encoding.keys(), "encoding_columns must name the entries of encode"
    for name, entry in encoding.items():
        assert isinstance(name, str), f"names of entries must be strings, got {name!r}"
        assert isinstance(entry, (torch.Tensor, Ragged)), (
            f"entry {name!r} must be a tensor or Ragged, got {type(entry).__name__}"
        )
        assert len(entry) == n, f"entry {name!r} has {len(entry)} rows, the table has {n}"
        assert isinstance(entry, Ragged) or entry.ndim > 1, (
            f"entry {name!r} must have the shape (n_rows, n_columns, ...), got {tuple(entry.shape)}"
        )
        width = entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]
        assert width == len(columns[name]), (
            f"entry {name!r} has {width} columns, encoding_columns names {len(columns[name])}: "
            f"{columns[name]!r:.60}. The second dimension of an entry is that of columns; what "
            "several columns make together is one, named by a tuple of their names"
        )
        for source in columns[name]:
            unknown = {*source} if isinstance(source, tuple) else {source}
            unknown -= {*case.names}
            assert not unknown, (
                f"encoding_columns of {name!r} names {unknown}, which are not columns"
            )
    example = block.example(2)
    assert example.keys() == encoding.keys(), (
        "rows of columns of type null must have the same entries as others"
    )
    for name, entry in example.items():
        kinds = [e.values if isinstance(e, Ragged) else e for e in (entry, encoding[name])]
        assert kinds[0].dtype == kinds[1].dtype, (
            f"entry {name!r} is {kinds[1].dtype}, but {kinds[0].dtype} where values are missing"
        )


def _check_rows(case):
    block, table, n = case.fitted, case.table, case.table.num_rows
    whole = _encoded(block, table)
    kinds = {"in reverse order": range(n)[::-1], "twice": [0, 0, *range(n), n - 1]}
    single_rows = np.linspace(0, n - 1, min(n, MAX_SINGLE_ROWS)).astype(int)
    kinds |= {f"alone (row {row})": [row] for row in single_rows}
    for kind, rows in kinds.items():
        actual = _encoded(block, table.take(pa.array(rows)))
        expected = whole.take(torch.tensor([*map(int, rows)]))
        message = f"rows that are encoded {kind} differ from the same rows in the whole table"
        case.check_same(actual, expected, message)
    chunks = pa.concat_tables([table.slice(0, n // 2), table.slice(0, 0), table.slice(n // 2)])
    case.check_same(_encoded(block, chunks), whole, "columns in several chunks differ")


def _check_positions(case):
    block, table = case.fitted, case.table
    frame = _encoded(block, table)
    rows = _order(frame["block"], table)
    for index, name in enumerate(case.names):
        positions = _positions(block, frame["block"], name)
        if positions is None:
            # Parts of the encoding that come from several columns change with each of them.
            continue
        shuffled = table.set_column(index, name, table.column(name).take(pa.array(rows)))
        case.check_same(
            frame.permute_column("block", positions, torch.from_numpy(rows)),
            _encoded(block, shuffled),
            f"shuffling column {name!r} does not change the parts of the encoding that "
            "encoding_columns names, or changes others",
        )


def _positions(block, encoding, name):
    """Return the positions of a column in each entry; None if a part comes from several columns."""
    positions = {}
    for entry, sources in block.encoding_columns(encoding).items():
        if any(isinstance(source, tuple) and name in source for source in sources):
            return None
        positions[entry] = [index for index, source in enumerate(sources) if source == name]
    return positions


def _order(encoding, table):
    """Return a permutation of the rows in which parallel lists keep their lengths."""
    rng, n = np.random.default_rng(1), table.num_rows
    lists = [column for column in table.columns if is_list(column.type)]
    ragged = [entry for entry in encoding.values() if isinstance(entry, Ragged)]
    if not lists or len({id(entry.offsets) for entry in ragged}) == len(ragged) > 0:
        return rng.permutation(n)
    lengths = np.max([list_lengths(column) for column in lists], axis=0)
    rows = np.arange(n)
    for length in np.unique(lengths):
        rows[lengths == length] = rng.permutation(np.flatnonzero(lengths == length))
    return rows


def _check_missing(case):
    block, table = case.fitted, case.table
    _check_finite(case.fitted, case.missing(), "rows whose values are all missing")
    frame = _encoded(block, case.missing())
    swapped = frame.take(torch.tensor([1, 0]))
    case.check_same(swapped, frame, "two rows whose values are all missing differ")
    untyped = _encoded(block, case.missing(typed=False))
    case.check_same(untyped, frame, "columns of type null differ from typed missing values")
    tables = [case.missing()]
    if case.block.accepts(pa.null()):
        tables.append(case.missing(typed=False))
    for missing in tables:
        block = case.new().fit(missing)
        for rows in (missing, table):
            _check_finite(block, rows, "a table, after a fit on missing values only")


def _check_unseen(case):
    table, n = case.table, case.table.num_rows
    first = table.take(pa.array([0] * 5))
    parts = {"one row": table.slice(0, 1), "half of the rows": table.slice(0, n // 2)}
    for kind, rows in {**parts, "one row, five times": first}.items():
        _check_finite(case.new().fit(rows), table, f"a table, after a fit on {kind}")


def _check_finite(block, table, rows):
    with torch.no_grad():
        _check_outputs(*_outputs(block, table), table.num_rows, rows)
    matrix = block.flatten(block.transform(table))
    assert np.isfinite(matrix).all(), f"flatten returns NaN or infinity for {rows}"


def _check_module(case):
    block, table, n = case.fitted, case.table, case.table.num_rows
    for training in (False, True):
        for size in (1, 2, n):
            module, outputs = _outputs(block, table.slice(0, size), training=training)
            mode = "training" if training else "evaluation"
            _check_outputs(module, outputs, size, f"{size} rows in {mode} mode")
    _check_gradients(module, outputs)
    second = block.make_module()
    second.load_state_dict(module.state_dict())
    shared = {id(p) for p in module.parameters()} & {id(p) for p in second.parameters()}
    assert not shared, "make_module must return a new module that shares no parameters"
    module, outputs = _outputs(block, table)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: min(n, 5)]
    frame = _encoded(block, table)
    part = module(**frame.take(rows)["block"])
    assert torch.allclose(part, outputs[rows], **TOLERANCE), (
        "the output of a row depends on other rows of the batch in evaluation mode"
    )
    lengths = module.padded_lengths(frame["block"])
    assert lengths is None or lengths.shape == (n,), "padded_lengths must have one number a row"
    if module.has_tree_inputs:
        _check_tree_inputs(module, frame)
    if module.has_linear_inputs:
        _check_linear_inputs(module, frame)
    if module.output_columns is not None:
        _check_output_columns(block, module, frame, _order(frame["block"], table))


def _check_gradients(module, outputs):
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    if not weights or not outputs.numel():
        return
    assert outputs.requires_grad, "no gradient flows from the outputs to the parameters"
    outputs.square().sum().backward()
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    assert any(gradient.any() for gradient in gradients.values()), (
        "all gradients of the outputs are 0 or missing"
    )
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), f"the gradient of {name} has NaN or infinity"


def _check_tree_inputs(module, frame):
    codes = module.tree_inputs(**frame["block"])
    shape = (len(frame), len(module.tree_codes))
    assert codes.dtype == torch.int32, f"tree_inputs must be int32, got {codes.dtype}"
    assert codes.shape == shape, (
        f"tree_inputs has shape {tuple(codes.shape)}, expected (n_rows, len(tree_codes)) = {shape}"
    )
    counts = [count for count, _ in module.tree_codes]
    assert all(0 < count <= MAX_CODES for count in counts), (
        f"tree_codes has counts that are not from 1 to {MAX_CODES}"
    )
    inside = (codes >= 0) & (codes < torch.tensor(counts))
    assert inside.all(), "tree_inputs has codes that are not from 0 to the count in tree_codes"
    rows = torch.arange(len(frame)).flip(0)
    assert torch.equal(module.tree_inputs(**frame.take(rows)["block"]), codes[rows]), (
        "tree_inputs of a row depend on other rows"
    )


def _check_linear_inputs(module, frame):
    shape = (len(frame), len(module.linear_weights))
    if module.has_sparse_linear_inputs:
        features = module.sparse_linear_inputs(**frame["block"])
        assert features.shape == shape, (
            f"sparse_linear_inputs has shape {features.shape}, expected (n_rows, "
            f"len(linear_weights)) = {shape}"
        )
        weight = torch.randn(shape[1], 2, generator=torch.Generator().manual_seed(0))
        outputs = module.linear_outputs(weight, **frame["block"])
        expected = torch.from_numpy(features @ weight.numpy())
        assert torch.allclose(outputs, expected, **TOLERANCE), (
            "linear_outputs are not the products of sparse_linear_inputs and coefficients"
        )
        return
    features = module.linear_inputs(**frame["block"])
    assert features.dtype == torch.float32, f"linear_inputs must be float32, got {features.dtype}"
    assert features.shape == shape, (
        f"linear_inputs has shape {tuple(features.shape)}, expected (n_rows, "
        f"len(linear_weights)) = {shape}"
    )
    assert torch.isfinite(features).all(), "linear_inputs has NaN or infinity"
    rows = torch.arange(len(frame)).flip(0)
    flipped = module.linear_inputs(**frame.take(rows)["block"])
    assert torch.allclose(flipped, features[rows], **TOLERANCE), (
        "linear_inputs of a row depend on other rows"
    )


def _check_output_columns(block, module, frame, rows):
    """Check that outputs only depend on the columns that the module states."""
    encoding = frame["block"]
    assert len(encoding) == 1, "output_columns is for modules that read a single entry"
    attributes = {"output_columns": (module, module.output_columns, module.out_features)}
    if module.has_tree_inputs:
        assert module.tree_columns is not None, (
            "a module with tree_inputs and output_columns needs tree_columns"
        )
        size = len(module.tree_codes)
        attributes["tree_columns"] = (module.tree_inputs, module.tree_columns, size)
    if module.has_linear_inputs and not module.has_sparse_linear_inputs:
        assert module.linear_columns is not None, (
            "a module with linear_inputs and output_columns needs linear_columns"
        )
        size = len(module.linear_weights)
        attributes["linear_columns"] = (module.linear_inputs, module.linear_columns, size)
    for name, (function, columns, size) in attributes.items():
        columns = np.asarray(columns)
        assert columns.shape == (size,), f"{name} has shape {columns.shape}, expected ({size},)"
        before = function(**encoding)
        for index, column in enumerate(block.feature_names_in_):
            positions = _positions(block, encoding, column)
            if positions is None:
                continue
            changed = frame.permute_column("block", positions, torch.from_numpy(rows))
            others = torch.from_numpy(columns != index)
            after = function(**changed["block"])
            assert torch.equal(after[:, others], before[:, others]), (
                f"{name} is wrong: column {column!r} changes outputs of other columns"
            )


def _check_empty(case):
    empty = case.table.slice(0, 0)
    # transform refuses tables without rows, but a backend may encode a chunk without rows.
    for name, entry in case.fitted.encode(empty).items():
        assert len(entry) == 0, f"entry {name!r} of a table without rows has {len(entry)} rows"


def _check_matrix(case):
    block, n = case.fitted, case.table.num_rows
    matrix, names = block.flatten(block.transform(case.table)), block.get_feature_names_out()
    assert isinstance(matrix, np.ndarray), "flatten must return an ndarray"
    assert matrix.dtype == np.float32, f"flatten returns {matrix.dtype}, expected float32"
    assert matrix.shape == (n, len(names)), (
        f"flatten has shape {matrix.shape}, expected (n_rows, len(get_feature_names_out())) = "
        f"{(n, len(names))}"
    )
    assert np.isfinite(matrix).all(), "flatten returns NaN or infinity"
    assert all(isinstance(name, str) for name in names), "get_feature_names_out must be strings"
    assert len(set(names)) == len(names), "get_feature_names_out has a name twice"


def _check_names(case):
    block, table, names = case.fitted, case.table, case.names
    expected = _encoded(block, table)
    reordered = table.select(names[::-1])
    reordered = reordered.append_column("another", pa.nulls(len(table), pa.int8()))
    case.check_same(_encoded(block, reordered), expected, "columns are not matched by their names")
    new = [f"other {name}" for name in names]
    before = block.get_feature_names_out().tolist()
    renamed = block.renamed(new)
    assert list(renamed.feature_names_in_) == new, "renamed must change feature_names_in_"
    actual = _encoded(renamed, table.rename_columns(new))
    case.check_same(actual, expected, "a renamed block encodes the same rows differently")
    sources = [
        column
        for columns in renamed.encoding_columns(actual["block"]).values()
        for source in columns
        for column in (source if isinstance(source, tuple) else (source,))
    ]
    assert {*sources} <= {*new}, "encoding_columns of a renamed block has the previous names"
    assert len(renamed.get_feature_names_out()) == len(before), (
        "a renamed block has another number of columns in get_feature_names_out"
    )
    unchanged = list(block.feature_names_in_) == names
    assert unchanged and block.get_feature_names_out().tolist() == before, (  # noqa: PT018
        "renamed must return a copy and not change the block"
    )


def _check_pickle(case):
    expected = _encoded(case.fitted, case.table)
    copies = {
        "a pickle": pickle.loads(pickle.dumps(case.fitted)),
        "a deep copy": copy.deepcopy(case.fitted),
    }
    for kind, copied in copies.items():
        assert_same_fit(copied, case.fitted, kind)
        case.check_same(_encoded(copied, case.table), expected, f"{kind} encodes differently")
    cloned = clone(case.fitted)
    assert vars(cloned).keys() == cloned.get_params(deep=False).keys(), "clones must be unfitted"


def _check_saving(case):
    from skops.io import dumps

    owner, problem = type(case.fitted).__name__, None
    if b"torch" in pickle.dumps(case.fitted):
        problem = "it has objects of torch; use NumPy arrays instead"
    else:
        try:
            dumps(case.fitted)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        warnings.warn(
            f"{owner}: models with this block can only be saved by pickle, because skops cannot "
            f"write its fitted attributes ({problem:.200})",
            UserWarning,
            stacklevel=3,
        )


def _check_onnx(case):
    block = case.fitted
    if type(block).to_onnx is Block.to_onnx or not importlib.util.find_spec("onnxruntime"):
        return
    from sk_easytensor.onnx.graph import Graph
    from sk_easytensor.onnx.predictor import open_session
    from sk_easytensor.onnx.readers import readers

    graph = Graph()
    try:
        exported = block.to_onnx(graph)
    except TypeError:
        # The block does not support ONNX with these parameters.
        return
    encoding = block.transform(case.table)
    assert exported.keys() == encoding.keys(), (
        f"to_onnx writes entries {sorted(exported)}, the encoding has {sorted(encoding)}"
    )
    outputs = []
    for name, value in exported.items():
        ragged = isinstance(encoding[name], Ragged)
        values = encoding[name].values if ragged else encoding[name]
        kinds = [values.numpy().dtype, np.dtype(np.int64)]
        shapes = [[None] * (values.ndim + 2 * ragged), [None, None]]
        for part, kind, shape in zip(value if ragged else [value], kinds, shapes, strict=False):
            outputs.append(graph.output(part, f"{name}.{len(outputs)}", kind, shape))
    model = graph.model("sk_easytensor", "", {})
    inputs = {}
    for read in readers(graph.readers):
        inputs.update(read(case.table))
    session = open_session(model.SerializeToString())
    used = {input_.name for input_ in session.get_inputs()}
    inputs = {name: value for name, value in inputs.items() if name in used}
    results = dict(zip(outputs, session.run(outputs, inputs), strict=True))
    arrays = iter(results.values())
    for name, entry in encoding.items():
        values = next(arrays)
        if isinstance(entry, Ragged):
            lengths = next(arrays)
            expected = entry.lengths.numpy().reshape(len(entry), -1)
            assert np.array_equal(lengths, expected), f"lengths of entry {name!r} differ in ONNX"
            inside = np.arange(values.shape[2]) < lengths[..., None]
            values, entry = values[inside], entry.values
        expected = entry.numpy()
        assert values.shape == expected.shape, (
            f"entry {name!r} has shape {values.shape} in ONNX, expected {expected.shape}"
        )
        same = (
            np.allclose(values, expected, **TOLERANCE, equal_nan=True)
            if expected.dtype.kind == "f"
            else np.array_equal(values, expected)
        )
        assert same, _other_values(name, values, expected)


def _other_values(name, found, expected):
    """Say where the values of an entry in ONNX differ first."""
    if expected.dtype.kind == "f":
        alike = np.isclose(found, expected, **TOLERANCE, equal_nan=True)
    else:
        alike = found == expected
    place = tuple(int(index[0]) for index in np.nonzero(~alike))
    return (
        f"the graph of to_onnx computes other values of entry {name!r}: {found[place]} rather than "
        f"{expected[place]} at {list(place)}, of {int((~alike).sum())} that differ"
    )


PARTS = {
    "column types": _check_types,
    "fit": _check_fit,
    "summaries": _check_summaries,
    "encoding": _check_encoding,
    "independent rows": _check_rows,
    "column positions": _check_positions,
    "module": _check_module,
    "missing values": _check_missing,
    "unseen values": _check_unseen,
    "empty tables": _check_empty,
    "matrix": _check_matrix,
    "pickling": _check_pickle,
    "column names": _check_names,
    "saving without pickle": _check_saving,
    "ONNX": _check_onnx,
}


# ------------------------------------------------------------------ comparisons


def assert_same_fit(actual, expected, description="fitted blocks"):
    """Check that two fitted blocks have the same state, with floats equal up to rounding.

    Parameters
    ----------
    actual, expected : Block
        Fitted blocks.
    description : str, default="fitted blocks"
        Description of the first block, used in the message.

    Raises
    ------
    AssertionError
        If an attribute differs. The message names the attribute.
    """
    # The state has no cached attributes.
    actual, expected = actual.__getstate__(), expected.__getstate__()
    assert actual.keys() == expected.keys(), (
        f"{description}: attributes are {sorted(actual)}, expected {sorted(expected)}"
    )
    for name in actual:
        difference = _difference(actual[name], expected[name])
        assert difference is None, f"{description}: attribute {name!r} differs ({difference})"


def _difference(actual, expected):
    """Return a description of the difference of two values; None if they are equal."""
    if actual is expected:
        return None
    if type(actual) is not type(expected):
        return f"{type(actual).__name__} rather than {type(expected).__name__}"
    if isinstance(actual, ArrowBytes):
        actual, expected = actual.array(), expected.array()
    if isinstance(actual, dict):
        if list(actual) != list(expected):
            return f"keys {list(actual)!r:.60} rather than {list(expected)!r:.60}"
        actual, expected = list(actual.values()), list(expected.values())
    if isinstance(actual, (list, tuple)):
        if len(actual) != len(expected):
            return f"{len(actual)} items rather than {len(expected)}"
        pairs = zip(actual, expected, strict=True)
        return next(filter(None, (_difference(*pair) for pair in pairs)), None)
    if isinstance(actual, (float, np.floating)) or (
        isinstance(actual, np.ndarray) and actual.dtype.kind == "f"
    ):
        close = np.shape(actual) == np.shape(expected) and np.allclose(
            actual, expected, rtol=1e-9, atol=1e-12, equal_nan=True
        )
        same = bool(close)
    elif isinstance(actual, torch.Tensor):
        same = torch.equal(actual, expected)
    elif isinstance(actual, np.ndarray):
        same = actual.shape == expected.shape and bool((actual == expected).all())
    elif isinstance(actual, (pa.Array, pa.ChunkedArray)):
        same = actual.equals(expected)
    elif hasattr(actual, "__dict__") and type(actual).__eq__ is object.__eq__:
        return _difference(actual.__getstate__(), expected.__getstate__())
    else:
        same = bool(actual == expected)
    return None if same else f"{_short(actual)} rather than {_short(expected)}"


def _short(value):
    value = value.to_pylist() if isinstance(value, (pa.Array, pa.ChunkedArray)) else value
    return f"{value!r:.60}"
