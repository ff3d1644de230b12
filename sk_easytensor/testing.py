"""Checks for blocks of your own.

:func:`check_block` runs the contract that :class:`~sk_easytensor.Block` describes, and
:func:`registered_block` makes a block part of the automatic choice for the time of a test.
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
from sk_easytensor.data.lists import is_list, list_lengths
from sk_easytensor.data.summaries import Summary, merge_all
from sk_easytensor.data.tables import as_table
from sk_easytensor.data.type_names import type_name
from sk_easytensor.networks.block_module import check_module
from sk_easytensor.tensors import Ragged, TensorFrame

__all__ = [
    "check_block",
    "registered_block",
]


ALONE = 12
"""Rows that are encoded one by one, at most."""

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Differences between outputs of a module for the same rows in other batches, at most."""

MOST_CODES = 2**24
"""Trees read at most so many codes of a column."""

FOREIGN = (pa.binary(), pa.map_(pa.string(), pa.int8()), pa.date32(), pa.float64(), pa.string())
"""Types of which a block refuses one, usually."""


def check_block(block, table, *, exact=True):
    """Check that a block follows the contract of :class:`~sk_easytensor.Block`.

    The block is cloned and fitted many times, so that a table of 20 to 100 rows suffices. The parts
    of the contract are checked in this order, each named in the error:

    - ``parameters``: ``__init__`` only assigns them, ``fit`` refuses invalid ones by name.
    - ``column types``: ``accepts`` is true of the table's columns; others are refused by name.
    - ``fit``: it returns the block, sets ``feature_names_in_`` and gives the same twice.
    - ``summaries``: they merge to the same fit wherever the rows are split, in any order.
    - ``encoding``: each entry has the rows of the table and the columns of ``encoding_columns``.
    - ``independent rows``: a row's encoding is the same alone as among other rows.
    - ``column positions``: shuffling a column changes its parts of the encoding and nothing else.
    - ``module``: a ``BlockModule`` with finite outputs of the right shape, row by row, gradients,
      and consistent ``tree_inputs`` and ``output_columns``.
    - ``missing values`` and ``unseen values``: both are encoded, and outputs are finite.
    - ``empty tables``: a table without rows is encoded as any other.
    - ``matrix``: ``flatten`` gives finite float32 columns, named by ``get_feature_names_out``.
    - ``pickling``: pickles and deep copies are the same block.
    - ``column names``: columns are found by name, and ``renamed`` copies read others.
    - ``saving without pickle``: skops can write the fitted block, and no attribute holds tensors.
    - ``ONNX``: the graph of ``to_onnx`` gives the encoding. Left out where the block does not
      support it or onnxruntime is not installed.

    Parameters
    ----------
    block : Block
        An instance; it stays as it is.
    table : table-like
        Rows with the columns of the block only. Some values should be missing, and some rows alike.
    exact : bool, default=True
        Whether the same row has the same encoding bit for bit in every batch. False is for blocks
        that run a network in ``encode``, which allows for differences by rounding.

    Raises
    ------
    AssertionError
        Naming the first part of the contract that the block does not follow, and how. Errors that
        the block itself raises become its cause.
    TypeError
        If `block` is no instance of ``Block``.
    ValueError
        If the table has fewer than four rows or no columns.

    Warns
    -----
    UserWarning
        If skops cannot write the block, or it holds tensors: models with it work, but can only be
        saved by pickle.

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
            f"check_block: table must have four rows and one column at least, got "
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
        As for :func:`~sk_easytensor.blocks.register_block`.

    Yields
    ------
    type
        `block_class`.

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
    """Raise errors within as an ``AssertionError`` that names the part of the contract."""
    start = f"{owner} does not follow the block contract, part {part!r}: "
    try:
        yield
    except AssertionError as error:
        raise AssertionError(start + str(error)) from error.__cause__
    except Exception as error:
        raise AssertionError(f"{start}{type(error).__name__}: {error}") from error


class _Nonsense:
    """A value that is no valid parameter of any block."""

    def __repr__(self):
        return "<nonsense>"


class _Case:
    """A block that is checked, not fitted and fitted, and its table."""

    def __init__(self, block, table, exact):
        self.block, self.table, self.exact = clone(block), table, exact
        self.names = table.column_names
        self._fitted = None

    @property
    def fitted(self):
        """The block, fitted on the whole table."""
        if self._fitted is None:
            self._fitted = self.new().fit(self.table)
        return self._fitted

    def new(self):
        return clone(self.block)

    def missing(self, *, typed=True, n_rows=2):
        kinds = [field.type if typed else pa.null() for field in self.table.schema]
        pairs = zip(self.names, kinds, strict=True)
        return pa.table({name: pa.nulls(n_rows, kind) for name, kind in pairs})

    def check_same(self, found, expected, message):
        """Check that two frames hold the same, up to rounding where the block is not exact."""
        if found.equals(expected):
            return
        close = not self.exact and _are_close(found["block"], expected["block"])
        assert close, message


def _encoded(block, table):
    return TensorFrame({"block": block.transform(table)}, table.num_rows)


def _are_close(found, expected):
    for name, entry in expected.items():
        pairs = [(found[name], entry)]
        if isinstance(entry, Ragged):
            pairs = [(found[name].values, entry.values), (found[name].offsets, entry.offsets)]
        for one, other in pairs:
            if one.shape != other.shape or not torch.allclose(
                one.double(), other.double(), **TOLERANCE, equal_nan=True
            ):
                return False
    return True


def _outputs(block, table, *, training=False):
    """Return a new module of a block, and its outputs for a table."""
    torch.manual_seed(0)
    module = check_module(block.make_module(), type(block).__name__).train(training)
    return module, module(**block.encode(table))


def _check_outputs(module, outputs, n_rows, rows):
    """Check shape, type and values of what a module returned."""
    owner = type(module).__name__
    assert isinstance(outputs, torch.Tensor), f"{owner} returned {type(outputs).__name__} of {rows}"
    shape = (n_rows, module.out_features)
    assert outputs.shape == shape, (
        f"{owner} returned shape {tuple(outputs.shape)} of {rows}, expected (n_rows, out_features) "
        f"= {shape}"
    )
    assert outputs.dtype == torch.float32, f"{owner} returned {outputs.dtype}, expected float32"
    assert torch.isfinite(outputs).all(), f"{owner} returned NaN or infinity of {rows}"


# ------------------------------------------------------------------ parts of the contract


def _check_parameters(case):
    parameters = case.block.get_params(deep=False)
    more = sorted(vars(case.block).keys() - parameters.keys())
    assert not more, f"__init__ sets {', '.join(more)}, which are not among its parameters"
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
    """Return the error that a call raises, or None."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _check_types(case):
    for field in case.table.schema:
        assert case.block.accepts(field.type) in (True, False), "accepts must return True or False"
        assert case.block.accepts(field.type), (
            f"accepts is false of column {field.name!r} of type {type_name(field.type)}"
        )
    foreign = [kind for kind in FOREIGN if not case.block.accepts(kind)]
    if foreign:
        error = _error_of(case.new().fit, pa.table({"foreign": pa.nulls(2, foreign[0])}))
        assert error is not None, f"fit reads a column of {foreign[0]}, of which accepts is false"
        assert isinstance(error, TypeError) and "foreign" in str(error), (  # noqa: PT018
            "a column of which accepts is false must raise a TypeError that names it, got "
            f"{type(error).__name__}: {error}"
        )


def _check_fit(case):
    block, table = case.new(), case.table
    assert isinstance(_error_of(block.transform, table), NotFittedError), (
        "transform before fit must raise NotFittedError"
    )
    returned = block.fit(table)
    assert returned is block, "fit and finish must return self"
    assert list(block.feature_names_in_) == case.names, "feature_names_in_ are not the columns"
    assert block.n_features_in_ == len(case.names), "n_features_in_ is not the number of columns"
    assert_same_fit(block, case.fitted, "fitted a second time on the same rows")
    half = table.slice(0, len(table) // 2)
    assert_same_fit(block.fit(half), case.new().fit(half), "fitted on other rows before")


def _check_summaries(case):
    table, n, random = case.table, case.table.num_rows, np.random.default_rng(0)
    for cuts in ([], [1], [n // 2], [n - 1], [0, n], [1, n // 3, n // 3, n - 2], range(1, n)):
        bounds = list(zip([0, *cuts], [*cuts, n], strict=True))
        parts = [table.slice(start, stop - start) for start, stop in bounds]
        block = case.new().fit_columns(table)
        before = vars(block).copy()
        # Neither the order of the chunks nor the process that summarises them is known beforehand.
        parts = [parts[index] for index in random.permutation(len(parts))]
        summaries = [pickle.loads(pickle.dumps(block.summarize(part))) for part in parts]
        changed = [k for k, v in vars(block).items() if k not in before or before[k] is not v]
        assert not changed, f"summarize sets {', '.join(changed)}; it must set nothing"
        assert all(isinstance(summary, Summary) for summary in summaries), (
            "summarize must return a Summary, as those in sk_easytensor.data.summaries"
        )
        assert block.finish(merge_all(summaries)) is block, "finish must return self"
        assert_same_fit(block, case.fitted, f"rows summarised in {len(parts)} chunks, shuffled")
    if case.block.column_wise:
        block = case.new().fit_columns(table)
        parts = [block.summarize(table.select([name])) for name in case.names]
        whole = type(parts[0])({name: part for each in parts for name, part in each.items()})
        assert_same_fit(block.finish(whole), case.fitted, "columns summarised apart (column_wise)")


def _check_encoding(case):
    block, n = case.fitted, case.table.num_rows
    attributes = set(vars(block))
    encoding = block.transform(case.table)
    assert isinstance(encoding, dict), "encode must return a dictionary"
    assert encoding, "encode must return one entry at least"
    assert set(vars(block)) == attributes, "encode must set no attributes"
    columns = block.encoding_columns(encoding)
    assert columns.keys() == encoding.keys(), "encoding_columns must name the entries of encode"
    for name, entry in encoding.items():
        assert isinstance(name, str), f"entry {name!r} must have a string for a name"
        assert isinstance(entry, (torch.Tensor, Ragged)), (
            f"entry {name!r} must be a tensor or Ragged, got {type(entry).__name__}"
        )
        assert len(entry) == n, f"entry {name!r} has {len(entry)} rows, the table has {n}"
        assert isinstance(entry, Ragged) or entry.ndim > 1, (
            f"entry {name!r} must have the shape (n_rows, n_columns, ...), got {tuple(entry.shape)}"
        )
        width = entry.n_columns if isinstance(entry, Ragged) else entry.shape[1]
        assert width == len(columns[name]), (
            f"entry {name!r} has {width} columns, encoding_columns names {len(columns[name])}"
        )
        for source in columns[name]:
            unknown = {*source} if isinstance(source, tuple) else {source}
            unknown -= {*case.names}
            assert not unknown, (
                f"encoding_columns of {name!r} names {unknown}, which are no columns"
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
    kinds |= {
        f"alone (row {row})": [row] for row in np.linspace(0, n - 1, min(n, ALONE)).astype(int)
    }
    for kind, rows in kinds.items():
        found = _encoded(block, table.take(pa.array(rows)))
        expected = whole.take(torch.tensor([*map(int, rows)]))
        message = f"rows that are encoded {kind} differ from the same rows in the whole table"
        case.check_same(found, expected, message)
    chunks = pa.concat_tables([table.slice(0, n // 2), table.slice(0, 0), table.slice(n // 2)])
    case.check_same(_encoded(block, chunks), whole, "columns in several chunks differ")


def _check_positions(case):
    block, table = case.fitted, case.table
    frame = _encoded(block, table)
    rows = _order(frame["block"], table)
    for index, name in enumerate(case.names):
        positions = _positions(block, frame["block"], name)
        if positions is None:
            # What several columns make together changes with each of them.
            continue
        shuffled = table.set_column(index, name, table.column(name).take(pa.array(rows)))
        case.check_same(
            frame.permute_column("block", positions, torch.from_numpy(rows)),
            _encoded(block, shuffled),
            f"shuffling column {name!r} does not change the parts of the encoding that "
            "encoding_columns names, or changes others",
        )


def _positions(block, encoding, name):
    """Return where a column is in each entry; None if some part is of several columns."""
    found = {}
    for entry, sources in block.encoding_columns(encoding).items():
        if any(isinstance(source, tuple) and name in source for source in sources):
            return None
        found[entry] = [index for index, source in enumerate(sources) if source == name]
    return found


def _order(encoding, table):
    """Return rows in another order, in which lists that are read together keep their lengths."""
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
    both = frame.take(torch.tensor([1, 0]))
    case.check_same(both, frame, "two rows whose values are all missing differ")
    untyped = _encoded(block, case.missing(typed=False))
    case.check_same(untyped, frame, "columns of type null differ from typed missing values")
    tables = [case.missing()]
    if case.block.accepts(pa.null()):
        tables.append(case.missing(typed=False))
    for nothing in tables:
        other = case.new().fit(nothing)
        for rows in (nothing, table):
            _check_finite(other, rows, "a table, where all values of fit were missing")


def _check_unseen(case):
    table, n = case.table, case.table.num_rows
    first = table.take(pa.array([0] * 5))
    parts = {"one row": table.slice(0, 1), "half of them": table.slice(0, n // 2)}
    for kind, rows in {**parts, "one row, five times": first}.items():
        _check_finite(case.new().fit(rows), table, f"a table, where fit saw only {kind}")


def _check_finite(block, table, rows):
    with torch.no_grad():
        _check_outputs(*_outputs(block, table), table.num_rows, rows)
    matrix = block.flatten(block.transform(table))
    assert np.isfinite(matrix).all(), f"flatten returns NaN or infinity of {rows}"


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
    assert not shared, "make_module must return a new module, which shares no parameters"
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
    if module.output_columns is not None:
        _check_output_columns(block, module, frame, _order(frame["block"], table))


def _check_gradients(module, outputs):
    weights = {name: each for name, each in module.named_parameters() if each.requires_grad}
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
    assert all(0 < count <= MOST_CODES for count in counts), (
        f"tree_codes has counts that are not from 1 to {MOST_CODES}"
    )
    inside = (codes >= 0) & (codes < torch.tensor(counts))
    assert inside.all(), "tree_inputs has codes that are not from 0 to the count in tree_codes"
    rows = torch.arange(len(frame)).flip(0)
    assert torch.equal(module.tree_inputs(**frame.take(rows)["block"]), codes[rows]), (
        "tree_inputs of a row depend on other rows"
    )


def _check_output_columns(block, module, frame, rows):
    """Check that outputs depend on the columns that the module names alone."""
    encoding = frame["block"]
    assert len(encoding) == 1, "output_columns is for modules that read a single entry"
    named = {"output_columns": (module, module.output_columns, module.out_features)}
    if module.has_tree_inputs:
        assert module.tree_columns is not None, (
            "tree_inputs beside output_columns need tree_columns"
        )
        named["tree_columns"] = (module.tree_inputs, module.tree_columns, len(module.tree_codes))
    for name, (read, columns, size) in named.items():
        columns = np.asarray(columns)
        assert columns.shape == (size,), f"{name} has shape {columns.shape}, expected ({size},)"
        before = read(**encoding)
        for index, column in enumerate(block.feature_names_in_):
            positions = _positions(block, encoding, column)
            if positions is None:
                continue
            changed = frame.permute_column("block", positions, torch.from_numpy(rows))
            others = torch.from_numpy(columns != index)
            after = read(**changed["block"])
            assert torch.equal(after[:, others], before[:, others]), (
                f"{name} is wrong: column {column!r} changes outputs that are of other columns"
            )


def _check_empty(case):
    empty = case.table.slice(0, 0)
    # transform refuses them, but a backend may encode a chunk without rows.
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
    other = table.select(names[::-1])
    more = other.append_column("another", pa.nulls(len(table), pa.int8()))
    case.check_same(_encoded(block, more), expected, "columns are not found by their names")
    new = [f"other {name}" for name in names]
    before = block.get_feature_names_out().tolist()
    renamed = block.renamed(new)
    assert list(renamed.feature_names_in_) == new, "renamed must change feature_names_in_"
    found = _encoded(renamed, table.rename_columns(new))
    case.check_same(found, expected, "a renamed block encodes the same rows differently")
    sources = [
        column
        for columns in renamed.encoding_columns(found["block"]).values()
        for source in columns
        for column in (source if isinstance(source, tuple) else (source,))
    ]
    assert {*sources} <= {*new}, "encoding_columns of a renamed block names columns of before"
    assert len(renamed.get_feature_names_out()) == len(before), (
        "a renamed block has another number of columns in get_feature_names_out"
    )
    unchanged = list(block.feature_names_in_) == names
    assert unchanged and block.get_feature_names_out().tolist() == before, (  # noqa: PT018
        "renamed must return a copy and leave the block as it is"
    )


def _check_pickle(case):
    expected = _encoded(case.fitted, case.table)
    others = {
        "a pickle": pickle.loads(pickle.dumps(case.fitted)),
        "a deep copy": copy.deepcopy(case.fitted),
    }
    for kind, other in others.items():
        assert_same_fit(other, case.fitted, kind)
        case.check_same(_encoded(other, case.table), expected, f"{kind} encodes differently")
    cloned = clone(case.fitted)
    assert vars(cloned).keys() == cloned.get_params(deep=False).keys(), "clones must be unfitted"


def _check_saving(case):
    from skops.io import dumps

    owner, problem = type(case.fitted).__name__, None
    if b"torch" in pickle.dumps(case.fitted):
        problem = "it holds objects of torch; keep NumPy arrays instead"
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
        written = block.to_onnx(graph)
    except TypeError:
        # Not with these parameters.
        return
    encoding = block.transform(case.table)
    assert written.keys() == encoding.keys(), (
        f"to_onnx writes entries {sorted(written)}, the encoding has {sorted(encoding)}"
    )
    outputs = []
    for name, value in written.items():
        ragged = isinstance(encoding[name], Ragged)
        values = encoding[name].values if ragged else encoding[name]
        kinds = [values.numpy().dtype, np.dtype(np.int64)]
        shapes = [[None] * (values.ndim + 2 * ragged), [None, None]]
        for part, kind, shape in zip(value if ragged else [value], kinds, shapes, strict=False):
            outputs.append(graph.output(part, f"{name}.{len(outputs)}", kind, shape))
    model = graph.model("sk_easytensor", "", {})
    given = {}
    for read in readers(graph.readers):
        given.update(read(case.table))
    session = open_session(model.SerializeToString())
    needed = {each.name for each in session.get_inputs()}
    given = {name: value for name, value in given.items() if name in needed}
    found = dict(zip(outputs, session.run(outputs, given), strict=True))
    arrays = iter(found.values())
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
        assert same, f"the graph of to_onnx computes other values of entry {name!r}"


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


def assert_same_fit(found, expected, how="fitted blocks"):
    """Check that two fitted blocks have the same state, floats up to rounding.

    Parameters
    ----------
    found, expected : Block
        Fitted.
    how : str
        What was done to get the first, for the message.

    Raises
    ------
    AssertionError
        Naming the attribute that differs.
    """
    # Without what is made from the rest when it is needed.
    found, expected = found.__getstate__(), expected.__getstate__()
    assert found.keys() == expected.keys(), (
        f"{how}: attributes are {sorted(found)}, expected {sorted(expected)}"
    )
    for name in found:
        difference = _difference(found[name], expected[name])
        assert difference is None, f"{how}: attribute {name!r} differs ({difference})"


def _difference(found, expected):
    """Return in words how two values differ, or None."""
    if found is expected:
        return None
    if type(found) is not type(expected):
        return f"{type(found).__name__} rather than {type(expected).__name__}"
    if isinstance(found, ArrowBytes):
        found, expected = found.array(), expected.array()
    if isinstance(found, dict):
        if list(found) != list(expected):
            return f"keys {list(found)!r:.60} rather than {list(expected)!r:.60}"
        found, expected = list(found.values()), list(expected.values())
    if isinstance(found, (list, tuple)):
        if len(found) != len(expected):
            return f"{len(found)} items rather than {len(expected)}"
        pairs = zip(found, expected, strict=True)
        return next(filter(None, (_difference(*pair) for pair in pairs)), None)
    if isinstance(found, (float, np.floating)) or (
        isinstance(found, np.ndarray) and found.dtype.kind == "f"
    ):
        close = np.shape(found) == np.shape(expected) and np.allclose(
            found, expected, rtol=1e-9, atol=1e-12, equal_nan=True
        )
        same = bool(close)
    elif isinstance(found, torch.Tensor):
        same = torch.equal(found, expected)
    elif isinstance(found, np.ndarray):
        same = found.shape == expected.shape and bool((found == expected).all())
    elif isinstance(found, (pa.Array, pa.ChunkedArray)):
        same = found.equals(expected)
    elif hasattr(found, "__dict__") and type(found).__eq__ is object.__eq__:
        return _difference(found.__getstate__(), expected.__getstate__())
    else:
        same = bool(found == expected)
    return None if same else f"{_short(found)} rather than {_short(expected)}"


def _short(value):
    value = value.to_pylist() if isinstance(value, (pa.Array, pa.ChunkedArray)) else value
    return f"{value!r:.60}"
