"""Fitted models as ONNX files, with the encoding of raw columns in the same file."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnxscript import opset20 as op

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
    """Return the logarithm of the sum of exponentials, the largest taken out of the sum."""
    axes = op.Constant(value_ints=[dim] if isinstance(dim, int) else list(dim))
    largest = op.ReduceMax(self, axes, keepdims=1)
    total = op.ReduceSum(op.Exp(op.Sub(self, largest)), axes, keepdims=1)
    found = op.Add(largest, op.Log(total))
    return found if keepdim else op.Squeeze(found, axes)


def log_softmax(self, dim, dtype=-1):
    """Return the logarithm of the softmax."""
    if dtype not in (-1, None):
        self = op.Cast(self, to=dtype)
    # The logarithm of the sum would be lost in the digits of a large maximum.
    axes = op.Constant(value_ints=[dim])
    below = op.Sub(self, op.ReduceMax(self, axes, keepdims=1))
    return op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), axes, keepdims=1)))


TRANSLATIONS = {
    torch.ops.aten.log_sigmoid.default: log_sigmoid,
    torch.ops.aten.logsumexp.default: log_sum_exp,
    torch.ops.aten.log_softmax.int: log_softmax,
}
"""For the parameter ``custom_translation_table`` of :func:`torch.onnx.export`."""


TOLERANCE = 1e-4
"""By how much outputs for other sizes than the traced ones may differ from torch's."""


@with_library_settings
def export_onnx(model, path, inputs="raw"):
    """Write a fitted model as an ONNX file.

    Parameters
    ----------
    model : estimator or Tower
        Fitted: a classifier, a regressor, a two-tower model (it becomes a scorer of pairs), one of
        its towers, or an embedder.
    path : str or path-like
        The file. It is there whole or not at all.
    inputs : {"raw", "encoded"}, default="raw"
        What the graph takes: the user's own columns, or what the blocks make of them.

    Returns
    -------
    pathlib.Path
        Of the file.

    Raises
    ------
    TypeError
        Naming a block whose encoding cannot be written in ONNX operators; ``inputs="encoded"``
        can do without.
    RuntimeError
        Naming a block whose network torch cannot export.

    Notes
    -----
    With raw columns the graph has an input for each column. Numbers, integers and booleans are
    float64 with NaN where missing; categories are strings, U+FFFF where missing; dates and
    timestamps are int64, microseconds since 1970, in UTC if the column had a time zone and by the
    wall clock otherwise, and the least integer where missing. Vectors are float64 of shape (rows,
    length). Lists are padded, of shape (rows, longest), with their lengths as an input of its
    own; times within lists are float64, seconds since 1970. Texts cannot be cut into words by
    ONNX operators: their n-grams are found before, from the vocabulary that the file holds, and
    so are categories that are hashed. :class:`~sk_easytensor.inference.OnnxPredictor` does all
    this, without torch.

    Outputs are ``label`` and ``probabilities``, ``predictions``, ``embedding`` or ``scores``, and
    ``representation`` for what ``transform`` gives. The last output, ``highest_codes``, has the
    highest code among the rows for each column of categories, 1 if none of its values was seen
    during fit; :class:`~sk_easytensor.inference.OnnxPredictor` warns of such columns as the model
    does. The numbers of rows and of items of lists may
    be any; before the file is written the network is run with other sizes than it was traced
    with.

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
    # Blocks are asked first: the network takes longer.
    encodings = {}
    if inputs == "raw":
        encodings = {
            prefix: raw_encodings(graph, *tower) for prefix, tower in adapter.towers.items()
        }
    network = ExportedNetwork(adapter)
    program = network_model(network)
    values = {}
    for part, prefix in zip(network.parts, adapter.towers, strict=True):
        for each in part.inputs:
            if inputs == "encoded":
                kind = torch_to_onnx(each.example)
                values[each.name] = graph.input(each.name, kind, shape_of(each))
            elif each.entry:
                made = encodings[prefix][each.block][each.entry]
                values[each.name] = made if each.lengths is None else made[0]
                if each.lengths is not None:
                    values[each.lengths] = made[1]
    outputs = dict(zip(adapter.outputs, graph.append(program, values), strict=True))
    names = {}
    shapes = {output.name: output for output in program.graph.output}
    for name, value in adapter.finish(graph, outputs).items():
        names[name] = graph.output(value, name, *form_of(name, shapes, adapter))
    watched = None
    if graph.watched and adapter.warns_of_unknown:
        # Keys of towers are usually new ones.
        columns = [column for _, _, part in graph.watched for column in part]
        value = graph.output(graph.highest_codes(), "highest_codes", np.int32, [len(columns)])
        watched = {"output": value, "columns": columns}
    metadata = {
        "format": FORMAT,
        "version": sk_easytensor.__version__,
        "estimator": type(model).__name__,
        "inputs": inputs,
        "features": features_of(adapter),
        "named": all(encoder._named for _, _, encoder in adapter.towers.values()),
        "sparse": sparse_layout(adapter),
        "missing_string": MISSING_STRING,
        "missing_time": MISSING_TIME,
        "readers": graph.readers,
        "encoded": [
            {"name": each.name, "block": each.block, "entry": each.entry or "lengths"}
            for each in network.inputs
        ],
        "answer": adapter.described(),
        "outputs": names,
        "watched": watched,
    }
    text = {METADATA: json.dumps(metadata, ensure_ascii=True)}
    whole = graph.model("sk_easytensor", sk_easytensor.__version__, text)
    return write_atomically(path, sealed(whole.SerializeToString()), "to_onnx")


def raw_encodings(graph, blocks, network, encoder):
    """Return what each block's ``to_onnx`` wrote, by block."""
    encodings = {}
    for name, block in blocks.items():
        try:
            encodings[name] = block.to_onnx(graph)
        except TypeError as error:
            raise TypeError(f"block {name!r}: {error}") from error
    return encodings


def network_model(network, tolerance=TOLERANCE):
    """Export a network that reads encoded rows, checked with sizes it was not traced with.

    Parameters
    ----------
    network : ExportedNetwork
        What is exported.
    tolerance : float or None
        By how much outputs may differ from torch's; None if onnxruntime cannot run the graph.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    RuntimeError
        Naming the block that torch cannot export, or the input of which a size would be fixed.
    """
    names = [each.name for each in network.inputs]
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
    """Export a module with torch, all sizes that may vary kept open."""
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis in each.dynamic} for each in inputs)
    with quiet(), no_kept_kernels(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(each.example for each in inputs),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    model = program.model_proto
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    return model


class OneBlock(torch.nn.Module):
    """The network of one block alone, to find out whether it can be exported."""

    def __init__(self, module, part, block):
        super().__init__()
        self.module = module
        self.part = part
        self.block = block

    def forward(self, *tensors):
        """Return the block's vectors."""
        inputs = [each for each in self.part.inputs if each.block == self.block]
        given = dict(zip([each.name for each in inputs], tensors, strict=True))
        examples = [given.get(each.name, each.example) for each in self.part.inputs]
        return self.module(**self.part.frame(examples)[self.block])


def check_modules(part, blocks, network, cause):
    """Raise ``RuntimeError`` naming the block whose network cannot be exported, if there is one."""
    for name, module in zip(network.names, network.blocks, strict=True):
        inputs = [each for each in part.inputs if each.block == name]
        try:
            names = [each.name for each in inputs]
            traced(OneBlock(module, part, name).eval(), inputs, names, ["vectors"])
        except Exception as error:
            raise RuntimeError(
                f"block {name!r} ({type(blocks[name]).__name__}) cannot be exported to ONNX: its "
                f"network, {type(module).__name__}, is not one that torch.onnx.export can trace "
                f"for any number of rows and items ({first_line(error)}). Write its forward "
                "without sizes taken as Python numbers (tensor.shape[0] rather than "
                "len(tensor)), or leave the block out"
            ) from cause


def check_dynamic(model, inputs):
    """Raise ``RuntimeError`` if a size of an input that should be open is fixed."""
    given = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for each in inputs:
        for axis, name in each.dynamic.items():
            if not given[each.name][axis].dim_param:
                raise RuntimeError(
                    f"input {each.name!r} of block {each.block!r} would have the fixed size "
                    f"{given[each.name][axis].dim_value} in dimension {axis} ({name})"
                )


def check_other_sizes(model, network, tolerance):
    """Raise ``RuntimeError`` unless the graph gives what torch does for other numbers of rows."""
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
        for each in network.inputs:
            shape = list(each.example.shape)
            for axis in each.dynamic:
                shape[axis] = longest if axis else rows
            if not each.entry:
                tensor = torch.randint(0, longest + 1, shape, generator=generator)
            elif each.example.is_floating_point():
                tensor = torch.rand(shape, generator=generator)
            else:
                tensor = torch.zeros(shape)
            tensors.append(tensor.to(each.example.dtype))
        names = [each.name for each in network.inputs]
        known = {value.name for value in session.get_inputs()}
        given = {n: t.numpy() for n, t in zip(names, tensors, strict=True) if n in known}
        with torch.no_grad():
            expected = network(*tensors)
        found = session.run(None, given)
        for name, one, other in zip(network.adapter.outputs, expected, found, strict=True):
            size = 1 + np.abs(one.numpy())
            # Not the other way round: every comparison with NaN is false.
            agrees = one.shape == other.shape and np.all(
                np.abs(one.numpy() - other) <= tolerance * size
            )
            if not agrees:
                raise RuntimeError(
                    f"the exported network gives other {name} than torch for {rows} rows and "
                    f"lists of {longest} items"
                )


@contextmanager
def no_kept_kernels():
    """Let torch look up anew how recurrent layers are traced, before and after it exports.

    While it exports it puts loops in their place whose number of steps is open. What it looked up
    before, or in an export before, would otherwise be taken, and fix the number of steps.
    """
    operators = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)
    kept = [getattr(operator, "_dispatch_cache", {}) for operator in operators]
    for cache in kept:
        cache.clear()
    try:
        yield
    finally:
        for cache in kept:
            cache.clear()


@contextmanager
def quiet():
    """Keep what torch says of its own while exporting from the user."""
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
        The one that was exported.
    X : table-like
        Rows.

    Returns
    -------
    dict of {str: ndarray}
        By input.
    """
    from sk_easytensor.data.tables import as_table
    from sk_easytensor.export.encoded_inputs import EncodedInputs

    arrays, table = {}, as_table(X)
    for prefix, (blocks, _, encoder) in export_adapter(model).towers.items():
        frame = encoder.encode(table if prefix else X)
        arrays |= EncodedInputs(blocks, prefix).arrays(frame)
    return arrays


def features_of(adapter):
    """Return the columns of fit with the kinds of the blocks that read them."""
    features = {}
    for prefix, (blocks, _, encoder) in adapter.towers.items():
        for column in encoder.column_names:
            features.setdefault(str(column), {"name": str(column), "blocks": []})
        for name, block in blocks.items():
            for column in block.feature_names_in_:
                # Offsets that were an array are none of the encoder's columns.
                features.setdefault(str(column), {"name": str(column), "blocks": []})
                read = {"name": f"{prefix}{name}", "kind": block.kind}
                features[str(column)]["blocks"].append(read)
    return list(features.values())


def sparse_layout(adapter):
    """Return the layout of the sparse matrix that a model was fitted on, if it was, or None."""
    layouts = [encoder._sparse for _, _, encoder in adapter.towers.values()]
    return None if layouts[0] is None else dict(vars(layouts[0]))


def shape_of(each):
    """Return the shape of an encoded input, with names for what varies."""
    return [each.dynamic.get(axis, size) for axis, size in enumerate(each.example.shape)]


def torch_to_onnx(example):
    """Return the ONNX element type of a tensor."""
    return onnx.helper.np_dtype_to_tensor_dtype(example.numpy().dtype)


def form_of(name, shapes, adapter):
    """Return dtype and shape of an output."""
    if name == "label":
        described = adapter.described()
        if described.get("multilabel"):
            return np.int64, ["rows", len(described["classes"])]
        values = np.asarray(described["classes"])
        return (object if values.dtype.kind == "U" else values.dtype), ["rows"]
    tensor = shapes[name].type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), ["rows", *sizes[1:]]


def first_line(error):
    """Return the first line of what an error came of."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
