"""Export of fitted models as ONNX files that include the encoding of raw columns."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset20 as op
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

import sk_easytensor
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.storage import write_atomically
from sk_easytensor._utils.validation import check_choice
from sk_easytensor.export.adapters import ExportedNetwork, export_adapter
from sk_easytensor.onnx.graph import IR_VERSION, OPSET, Graph
from sk_easytensor.onnx.predictor import FORMAT, METADATA, sealed
from sk_easytensor.onnx.readers import MISSING_STRING, MISSING_TIME

__all__ = [
    "TRANSLATIONS",
    "encoded_arrays",
    "export_onnx",
    "network_model",
]


def log_sigmoid(self):
    """Return the logarithm of the sigmoid: ``min(x, 0) - log(1 + exp(-|x|))``."""
    zero, one = op.CastLike(0.0, self), op.CastLike(1.0, self)
    return op.Sub(op.Min(self, zero), op.Log(op.Add(one, op.Exp(op.Neg(op.Abs(self))))))


def log_sum_exp(self, dim, keepdim=False):
    """Return the logarithm of the sum of exponentials, computed relative to the maximum."""
    axes = op.Constant(value_ints=[dim] if isinstance(dim, int) else list(dim))
    largest = op.ReduceMax(self, axes, keepdims=1)
    total = op.ReduceSum(op.Exp(op.Sub(self, largest)), axes, keepdims=1)
    result = op.Add(largest, op.Log(total))
    return result if keepdim else op.Squeeze(result, axes)


def log_softmax(self, dim, dtype=-1):
    """Return the logarithm of the softmax."""
    if dtype not in (-1, None):
        self = op.Cast(self, to=dtype)
    # Added to a large maximum, the logarithm of the sum would lose its digits.
    axes = op.Constant(value_ints=[dim])
    below = op.Sub(self, op.ReduceMax(self, axes, keepdims=1))
    return op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), axes, keepdims=1)))


TRANSLATIONS = {
    torch.ops.aten.log_sigmoid.default: log_sigmoid,
    torch.ops.aten.logsumexp.default: log_sum_exp,
    torch.ops.aten.log_softmax.int: log_softmax,
}
"""Operators for the parameter ``custom_translation_table`` of :func:`torch.onnx.export`."""


TOLERANCE = 1e-4
"""Tolerance for differences from the outputs of torch, for other sizes than the traced ones."""


@with_library_settings
def export_onnx(model, path, inputs="raw"):
    """Write a fitted model as an ONNX file.

    Parameters
    ----------
    model : estimator or Tower
        Fitted classifier, regressor, multi-task model, two-tower model, which is exported as a
        scorer of pairs, one of its towers, or embedder.
    path : str or path-like
        Path of the file. The file is written completely or not at all.
    inputs : {"raw", "encoded"}, default="raw"
        Inputs of the graph: the columns of the table, or the encodings of the blocks.

    Returns
    -------
    pathlib.Path
        Path of the file.

    Raises
    ------
    TypeError
        If the encoding of a block cannot be written in ONNX operators, which
        ``inputs="encoded"`` does not need. The message names the block.
    RuntimeError
        If torch cannot export the network of a block. The message names the block.
    ValueError
        If `inputs` is neither ``"raw"`` nor ``"encoded"``.
    NotFittedError
        If the model is not fitted.

    Notes
    -----
    With raw columns the graph has an input for each column. Numbers, integers and booleans are
    float64 with NaN where missing; categories are strings, U+FFFF where missing; dates and
    timestamps are int64, microseconds since 1970, in UTC if the column had a time zone and by the
    wall clock otherwise, and the least integer where missing. Vectors are float64 of shape (rows,
    length). Lists are padded, of shape (rows, longest), with their lengths as a separate input;
    times within lists are float64, seconds since 1970. ONNX operators cannot split texts into
    words: their n-grams are computed before the graph runs, from the vocabulary in the file, and
    so are the codes of hashed categories. :class:`~sk_easytensor.inference.OnnxPredictor` does all
    this, without torch.

    Outputs are ``label`` and ``probabilities``, ``predictions``, ``embedding`` or ``scores``, and
    ``representation`` for the result of ``transform``. The last output, ``highest_codes``, has the
    highest code among the rows for each column of categories, 1 if none of its values was seen
    during fit; :class:`~sk_easytensor.inference.OnnxPredictor` warns of such columns as the model
    does. The numbers of rows and of items of lists may vary. Before the file is written, the
    network is run with other sizes than the traced ones.

    Examples
    --------
    >>> import tempfile
    >>> from sk_easytensor import EasyTensorRegressor
    >>> from sk_easytensor.inference import load
    >>> X = {"size": [1.0, 2.0, 3.0, 4.0], "town": ["Oslo", "Lima", "Oslo", "Lima"]}
    >>> model = EasyTensorRegressor(max_epochs=2, random_state=0).fit(X, [1.0, 2.0, 3.0, 4.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     predictor = load(export_onnx(model, f"{folder}/model.onnx"))
    >>> bool(abs(predictor.predict(X) - model.predict(X)).max() < 1e-5)
    True
    """
    check_choice("export_onnx", "inputs", inputs, ("raw", "encoded"))
    adapter = export_adapter(model)
    graph = Graph()
    # Blocks come first: their errors are found at once, while the network takes longer.
    encodings = {}
    if inputs == "raw":
        encodings = {
            prefix: raw_encodings(graph, *tower) for prefix, tower in adapter.towers.items()
        }
    network = ExportedNetwork(adapter)
    program = network_model(network)
    values = {}
    for part, prefix in zip(network.parts, adapter.towers, strict=True):
        for input_ in part.inputs:
            if inputs == "encoded":
                kind = torch_to_onnx(input_.example)
                values[input_.name] = graph.input(input_.name, kind, shape_of(input_))
            elif input_.entry:
                value = encodings[prefix][input_.block][input_.entry]
                values[input_.name] = value if input_.lengths is None else value[0]
                if input_.lengths is not None:
                    values[input_.lengths] = value[1]
    outputs = dict(zip(adapter.outputs, graph.append(program, values), strict=True))
    names = {}
    shapes = {output.name: output for output in program.graph.output}
    for name, value in adapter.finish(graph, outputs).items():
        names[name] = graph.output(value, name, *output_type(name, shapes, adapter))
    watched = None
    if graph.watched and adapter.warns_of_unknown:
        # Towers are not watched: most keys of new rows were not seen during fit.
        columns = [column for _, _, group in graph.watched for column in group]
        value = graph.output(graph.highest_codes(), "highest_codes", np.int32, [len(columns)])
        watched = {"output": value, "columns": columns}
    metadata = {
        "format": FORMAT,
        "version": sk_easytensor.__version__,
        "estimator": type(model).__name__,
        "inputs": inputs,
        "features": list_features(adapter),
        "named": all(encoder._named for _, _, encoder in adapter.towers.values()),
        "sparse": sparse_layout(adapter),
        "missing_string": MISSING_STRING,
        "missing_time": MISSING_TIME,
        "readers": graph.readers,
        "encoded": [
            {"name": input_.name, "block": input_.block, "entry": input_.entry or "lengths"}
            for input_ in network.inputs
        ],
        "answer": adapter.metadata(),
        "outputs": names,
        "watched": watched,
    }
    text = {METADATA: json.dumps(metadata, ensure_ascii=True)}
    onnx_model = graph.model("sk_easytensor", sk_easytensor.__version__, text)
    return write_atomically(path, sealed(onnx_model.SerializeToString()), "to_onnx")


def raw_encodings(graph, blocks, network, encoder):
    """Add the encodings of all blocks to a graph, and return their values by block and entry."""
    encodings = {}
    for name, block in blocks.items():
        try:
            encodings[name] = block.to_onnx(graph)
        except TypeError as error:
            raise TypeError(f"block {name!r}: {error}") from error
    return encodings


def network_model(network, tolerance=TOLERANCE):
    """Export a network whose inputs are encoded rows, and check it with other sizes.

    Parameters
    ----------
    network : ExportedNetwork
        Network to export.
    tolerance : float or None, default=1e-4
        Tolerance for differences from the outputs of torch; None to skip the check, if onnxruntime
        cannot run the graph.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    RuntimeError
        If torch cannot export a block, if a size of an input would be fixed, or if outputs differ.
        The message names the block, the input or the output.
    """
    names = [input_.name for input_ in network.inputs]
    try:
        model = traced(network, network.inputs, names, list(network.adapter.outputs))
    except Exception as error:
        for part, (blocks, module, _) in zip(
            network.parts, network.adapter.towers.values(), strict=True
        ):
            check_modules(part, blocks, module, error)
        raise RuntimeError(
            f"the network cannot be exported to ONNX: {first_line(error)}"
        ) from error
    check_dynamic(model, network.inputs)
    if tolerance is not None:
        check_other_sizes(model, network, tolerance)
    return model


def traced(module, inputs, input_names, output_names):
    """Export a module with torch, with dynamic sizes of the inputs."""
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis in input_.dynamic} for input_ in inputs)
    with without_messages(), fresh_dispatch(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(input_.example for input_ in inputs),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    simplify(program.model)
    model = program.model_proto
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    return model


SIMPLIFICATIONS = [
    rules.add_0_rule,
    rules.cast_cast_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.div_by_1_rule,
    rules.materialize_reshape_shape_rule,
    rules.max_min_rule,
    rules.min_max_rule,
    rules.mul_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.sub_0_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
]
"""Rewriting rules of onnxscript. Its other default rules find little in exported networks, and one
of them, for slices of equal parts, takes nearly half of the time of an export."""


def simplify(model):
    """Simplify a graph of onnxscript in place, as torch does by default in twice the time."""
    optimizer.inline(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, SIMPLIFICATIONS)
    optimizer.remove_unused_nodes(model)
    for simplification in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        simplification(model)


class OneBlock(torch.nn.Module):
    """Module of a single block with flat inputs, to test whether it can be exported."""

    def __init__(self, module, part, block):
        super().__init__()
        self.module = module
        self.part = part
        self.block = block

    def forward(self, *tensors):
        """Return the vectors of the block for tensors in the order of its inputs."""
        inputs = [input_ for input_ in self.part.inputs if input_.block == self.block]
        by_name = dict(zip([input_.name for input_ in inputs], tensors, strict=True))
        examples = [by_name.get(input_.name, input_.example) for input_ in self.part.inputs]
        return self.module(**self.part.frame(examples)[self.block])


def check_modules(part, blocks, network, cause):
    """Raise ``RuntimeError`` naming the first block whose network cannot be exported, if any."""
    for name, module in zip(network.names, network.blocks, strict=True):
        inputs = [input_ for input_ in part.inputs if input_.block == name]
        try:
            names = [input_.name for input_ in inputs]
            traced(OneBlock(module, part, name).eval(), inputs, names, ["vectors"])
        except Exception as error:
            raise RuntimeError(
                f"block {name!r} ({type(blocks[name]).__name__}) cannot be exported to ONNX: its "
                f"network, {type(module).__name__}, is not one that torch.onnx.export can trace "
                f"for any number of rows and items ({first_line(error)}). Write its forward "
                "without sizes as Python numbers (tensor.shape[0] rather than "
                "len(tensor)), or leave the block out"
            ) from cause


def check_dynamic(model, inputs):
    """Raise ``RuntimeError`` if a size of an input is fixed that should be dynamic."""
    sizes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for input_ in inputs:
        for axis, name in input_.dynamic.items():
            size = sizes[input_.name][axis]
            if not size.dim_param:
                raise RuntimeError(
                    f"input {input_.name!r} of block {input_.block!r} would have the fixed size "
                    f"{size.dim_value} in dimension {axis} ({name})"
                )


def check_other_sizes(model, network, tolerance):
    """Raise ``RuntimeError`` if outputs differ from torch for other sizes than the traced ones."""
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    for rows, longest in ((1, 1), (4, 3)):
        tensors = []
        for input_ in network.inputs:
            shape = list(input_.example.shape)
            for axis in input_.dynamic:
                shape[axis] = longest if axis else rows
            if not input_.entry:
                tensor = torch.randint(0, longest + 1, shape, generator=generator)
            elif input_.example.is_floating_point():
                tensor = torch.rand(shape, generator=generator)
            else:
                tensor = torch.zeros(shape)
            tensors.append(tensor.to(input_.example.dtype))
        names = [input_.name for input_ in network.inputs]
        used = {value.name for value in session.get_inputs()}
        arrays = {n: t.numpy() for n, t in zip(names, tensors, strict=True) if n in used}
        with torch.no_grad():
            expected = network(*tensors)
        actual = session.run(None, arrays)
        for name, of_torch, of_graph in zip(network.adapter.outputs, expected, actual, strict=True):
            size = 1 + np.abs(of_torch.numpy())
            # Comparisons with NaN are false, so that the condition is one of agreement.
            agrees = of_torch.shape == of_graph.shape and np.all(
                np.abs(of_torch.numpy() - of_graph) <= tolerance * size
            )
            if not agrees:
                raise RuntimeError(
                    f"output {name!r} of the exported network differs from that of torch for "
                    f"{rows} rows and lists of {longest} items"
                )


@contextmanager
def fresh_dispatch():
    """Clear torch's dispatch caches of recurrent layers before and after an export.

    The export replaces recurrent layers by loops with a dynamic number of steps. A cached kernel,
    of a forward pass or of a previous export, would fix the number of steps.
    """
    operators = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)
    caches = [getattr(operator, "_dispatch_cache", {}) for operator in operators]
    for cache in caches:
        cache.clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.clear()


@contextmanager
def without_messages():
    """Suppress log messages and warnings of torch's exporter."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@with_library_settings
def encoded_arrays(model, X):
    """Encode rows as the inputs of a graph that was exported with ``inputs="encoded"``.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model that was exported.
    X : table-like
        Rows.

    Returns
    -------
    dict of {str: ndarray}
        Arrays by name of the input.
    """
    from sk_easytensor.data.tables import as_table
    from sk_easytensor.export.adapters import EncodedInputs

    arrays, table = {}, as_table(X)
    for prefix, (blocks, _, encoder) in export_adapter(model).towers.items():
        frame = encoder.encode(table if prefix else X)
        arrays |= EncodedInputs(blocks, prefix).arrays(frame)
    return arrays


def list_features(adapter):
    """Return the columns that the model was fitted on, with the blocks that read them."""
    features = {}
    for prefix, (blocks, _, encoder) in adapter.towers.items():
        for column in encoder.column_names_:
            features.setdefault(str(column), {"name": str(column), "blocks": []})
        for name, block in blocks.items():
            for column in block.feature_names_in_:
                # Offsets that were passed as an array are not a column of the encoder.
                features.setdefault(str(column), {"name": str(column), "blocks": []})
                entry = {"name": f"{prefix}{name}", "kind": block.kind}
                features[str(column)]["blocks"].append(entry)
    return list(features.values())


def sparse_layout(adapter):
    """Return the layout of the sparse matrix that a model was fitted on; None for other tables."""
    layouts = [encoder._sparse for _, _, encoder in adapter.towers.values()]
    return None if layouts[0] is None else dict(vars(layouts[0]))


def shape_of(input_):
    """Return the shape of an encoded input, with names of dynamic sizes."""
    return [input_.dynamic.get(axis, size) for axis, size in enumerate(input_.example.shape)]


def torch_to_onnx(example):
    """Return the ONNX element type of a tensor."""
    return onnx.helper.np_dtype_to_tensor_dtype(example.numpy().dtype)


def output_type(name, shapes, adapter):
    """Return the dtype and shape of an output."""
    if name == "label":
        metadata = adapter.metadata()
        if metadata.get("multilabel"):
            return np.int64, ["rows", len(metadata["classes"])]
        values = np.asarray(metadata["classes"])
        return (object if values.dtype.kind == "U" else values.dtype), ["rows"]
    tensor = shapes[name].type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), ["rows", *sizes[1:]]


def first_line(error):
    """Return the first line of the message of an error's original cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
