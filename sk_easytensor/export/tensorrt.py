"""TensorRT engines of fitted networks, which run on a GPU."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sk_easytensor
from sk_easytensor._utils.runtime import with_library_settings
from sk_easytensor._utils.storage import write_atomically
from sk_easytensor._utils.validation import check_choice, check_number
from sk_easytensor.export.adapters import ExportedNetwork, export_adapter
from sk_easytensor.export.onnx import encoded_arrays, network_model
from sk_easytensor.networks.sequences import Recurrent, SequenceEncoder
from sk_easytensor.onnx.predictor import check_finite

__all__ = [
    "TensorRTPredictor",
    "build_engine",
]


PACKAGES = ("tensorrt", "tensorrt_rtx")
"""Packages with the same interface, of which the first that is installed is used."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Values of the parameter ``precision``."""

TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "bf16": None}
"""Tolerances of onnxruntime against torch. onnxruntime has no bfloat16 on CPUs."""

BATCH_SIZES = (1, 64, 4096)
"""Rows of a batch: the smallest number, the one that engines are optimized for, the largest."""

LENGTHS = (1, 64, 512)
"""The same numbers for items of lists of a block without ``max_length``."""

MAGIC = b"sk_easytensor engine 2\n"
"""First bytes of a file. A SHA-256, the length of the description, the description and the engine
follow."""


@with_library_settings
def build_engine(model, path, precision="fp32", batch_sizes=BATCH_SIZES, list_lengths=None):
    """Build a TensorRT engine of a fitted model's network and write it to a file.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model.
    path : str or path-like
        Path of the file. The file is written completely or not at all.
    precision : {"fp32", "fp16", "bf16"}, default="fp32"
        Precision of the trunk, the head and the networks over lists. Recurrent networks stay in
        single precision with ``"bf16"``, in which TensorRT cannot parse them. Embeddings and the
        step from the outputs to probabilities always stay in single precision, which positions
        among bins and logarithms need.
    batch_sizes : tuple of int, default=(1, 64, 4096)
        Smallest number of rows of a batch, the number the engine is optimized for, and the largest.
    list_lengths : tuple of int, optional
        The same numbers for items of lists; by default 1, 64 and the block's ``max_length``, or 512
        for n-grams. :class:`TensorRTPredictor` refuses longer lists.

    Returns
    -------
    pathlib.Path
        Path of the file.

    Raises
    ------
    ImportError
        If neither ``tensorrt`` nor ``tensorrt_rtx`` is installed.
    ValueError
        If a parameter is not valid, or `y` was too large or too small for single precision.
    RuntimeError
        If TensorRT cannot parse or build the network. The message includes its errors.

    Notes
    -----
    The inputs of an engine are encoded rows, because TensorRT has neither strings nor look-ups of
    them; :class:`TensorRTPredictor` encodes with the model's blocks. Building needs no GPU with
    ``tensorrt_rtx``; ``tensorrt`` builds for the GPU of the machine.
    """
    check_choice("build_engine", "precision", precision, PRECISIONS)
    check_sizes("batch_sizes", batch_sizes)
    if list_lengths is not None:
        check_sizes("list_lengths", list_lengths)
    trt = tensorrt_package()
    adapter = export_adapter(model)
    adapter.check_single()
    network = ExportedNetwork(adapter, precise=False)
    lower(network, PRECISIONS[precision])
    program = network_model(network, tolerance=TOLERANCES[precision])
    engine, longest = build(
        trt, program.SerializeToString(), network.parts, batch_sizes, list_lengths
    )
    description = {
        "version": sk_easytensor.__version__,
        "package": trt.__name__,
        "package_version": trt.__version__,
        "precision": precision,
        "batch_sizes": list(batch_sizes),
        "longest": longest,
        "outputs": list(adapter.outputs),
        "answer": adapter.metadata(),
    }
    text = json.dumps(description).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(engine)
    data = MAGIC + hashlib.sha256(content).digest() + content
    return write_atomically(path, data, "to_tensorrt")


def build(trt, program, parts, batch_sizes=BATCH_SIZES, list_lengths=None):
    """Build an engine of an exported network.

    Parameters
    ----------
    trt : module
        Package that :func:`tensorrt_package` returned.
    program : bytes
        Network as a serialized ONNX model.
    parts : list of EncodedInputs
        Inputs of the network.
    batch_sizes, list_lengths : tuple of int
        Parameters of :func:`build_engine`.

    Returns
    -------
    engine : bytes
        Serialized engine.
    longest : dict of {str: int}
        Length of the longest lists that each input with lists accepts.

    Raises
    ------
    RuntimeError
        If TensorRT cannot parse or build the network. The message includes its errors.
    """
    log = ErrorLog(trt)
    builder = trt.Builder(log.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, log.logger)
    if not parser.parse(program):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError(f"TensorRT cannot parse the network: {'; '.join(errors)}")
    used = {definition.get_input(index).name for index in range(definition.num_inputs)}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    longest = {}
    for part in parts:
        for input_ in part.inputs:
            lengths = list_lengths or default_lengths(part.blocks[input_.block])
            if input_.lengths is not None:
                longest[input_.name] = int(lengths[2])
            if input_.name in used:
                profile.set_shape(input_.name, *shapes(input_, batch_sizes, lengths))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(definition, config)
    if engine is None:
        raise RuntimeError(f"TensorRT cannot build the network: {'; '.join(log.errors)}")
    return bytes(engine), longest


def tensorrt_package():
    """Return the first of TensorRT's packages that is installed.

    Raises
    ------
    ImportError
        If none is installed. The message has the command that installs one.
    """
    for name in PACKAGES:
        try:
            package = import_module(name)
        except ImportError:
            continue
        # The package on PyPI may be a stub without the libraries.
        if hasattr(package, "Builder"):
            return package
    raise ImportError(
        "TensorRT engines need tensorrt (datacenter GPUs) or tensorrt-rtx: "
        "pip install 'sk_easytensor[tensorrt]'"
    )


def check_sizes(name, sizes):
    """Raise ``ValueError`` unless sizes are three increasing positive integers."""
    try:
        smallest, optimal, largest = sizes
    except (TypeError, ValueError):
        raise ValueError(
            f"build_engine: {name} must be three integers, the smallest, the optimal and the "
            f"largest size, got {sizes!r}"
        ) from None
    check_number("build_engine", f"{name}[0]", smallest, low=1, integer=True)
    check_number("build_engine", f"{name}[1]", optimal, low=smallest, integer=True)
    check_number("build_engine", f"{name}[2]", largest, low=optimal, integer=True)


def default_lengths(block):
    """Return smallest, optimal and largest numbers of items of the lists that a block encodes."""
    ngrams = getattr(block, "encoder", None) == "ngrams"
    largest = LENGTHS[2] if ngrams else getattr(block, "max_length", LENGTHS[2])
    return 1, min(LENGTHS[1], largest), largest


def shapes(input_, batch_sizes, lengths):
    """Return the smallest, the optimal and the largest shape of an input."""
    result = []
    for rows, items in zip(batch_sizes, lengths, strict=True):
        shape = list(input_.example.shape)
        for axis in input_.dynamic:
            shape[axis] = items if axis else rows
        result.append(tuple(map(int, shape)))
    return result


class Lowered(nn.Module):
    """A module that computes in another precision than the modules around it."""

    def __init__(self, module, dtype):
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, features, *others):
        """Return the module's output in single precision."""
        return self.module(features.to(self.dtype), *others).float()


def lower(network, dtype):
    """Set the precision of trunks, heads and networks over lists, and unpack trees.

    Trees are unpacked because TensorRT has no bitwise operators.
    """
    network.unpack_trees()
    if dtype == torch.float32:
        return
    for part in (part for tower in network.networks for part in tower.networks):
        for name in ("trunk", "head", "wide"):
            module = getattr(part, name)
            if module is not None:
                setattr(part, name, Lowered(module, dtype))
        for module in list(part.modules()):
            # TensorRT's parser gives recurrent layers constants of another type than bfloat16.
            if isinstance(module, SequenceEncoder) and not (
                dtype == torch.bfloat16 and isinstance(module.reader, Recurrent)
            ):
                module.reader = LoweredReader(module.reader, dtype)


class LoweredReader(Lowered):
    """A lowered network over lists, with the attribute ``bidirectional`` that pooling reads."""

    def __init__(self, reader, dtype):
        super().__init__(reader, dtype)
        self.bidirectional = getattr(reader, "bidirectional", False)


class ErrorLog:
    """Logger of TensorRT that collects the messages of errors."""

    def __init__(self, trt):
        self.errors = errors = []

        class Logger(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)

            def log(self, severity, message):
                if severity <= trt.ILogger.ERROR:
                    errors.append(message)

        self.logger = Logger()


def read_engine(path):
    """Return the description, a dictionary, and the bytes of the engine in a file.

    Raises
    ------
    ValueError
        If the file was not written by :func:`build_engine`, is corrupt or was changed.
    """
    data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError(f"{path} was not written by to_tensorrt of this version of the library")
    start = len(MAGIC) + 32
    if hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        raise ValueError(f"{path} is corrupt or was changed after it was built; build it again")
    stop = start + 8 + int.from_bytes(data[start : start + 8], "little")
    return json.loads(data[start + 8 : stop]), data[stop:]


class TensorRTPredictor:
    """Predictor that runs an engine on a GPU, after the model's blocks encoded the rows.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model that the engine was built from.
    path : str or path-like
        Path of a file that ``to_tensorrt(path)`` wrote.

    Raises
    ------
    RuntimeError
        If there is no GPU, or the engine was built for another one.
    ValueError
        If the file was not written by ``to_tensorrt``, is corrupt or was changed.

    Notes
    -----
    An engine is loaded by the version of TensorRT that built it. Building engines is part of
    this library's tests; running them has not been tried yet on any GPU.
    """

    def __init__(self, model, path):
        self.model = model
        self.description, engine = read_engine(path)
        self._runner = EngineRunner(import_module(self.description["package"]), engine)

    def run(self, X):
        """Return the engine's outputs by name.

        Parameters
        ----------
        X : table-like
            Rows, in the form that the model accepts.

        Returns
        -------
        dict of {str: ndarray}
            Arrays whose first dimension is the row, by name of the output.

        Raises
        ------
        ValueError
            If lists are longer than the engine accepts.
        RuntimeError
            If an output has NaN or infinity. The message has the output and the number of rows.
        """
        arrays = encoded_arrays(self.model, X)
        for name, values in arrays.items():
            longest = self.description["longest"].get(name)
            if longest is not None and values.shape[2] > longest:
                raise ValueError(
                    f"{name} has lists of {values.shape[2]} items, but the engine accepts at most "
                    f"{longest}; build it with larger list_lengths"
                )
        n_rows, batch_size = len(next(iter(arrays.values()))), self.description["batch_sizes"][2]
        outputs = self.description["outputs"]
        parts = [
            self._runner.run(
                {name: values[start : start + batch_size] for name, values in arrays.items()},
                outputs,
            )
            for start in range(0, n_rows, batch_size)
        ]
        results = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        for name, values in results.items():
            check_finite(name, values, "the engine")
        return results


class EngineRunner:
    """Engine on a GPU, from arrays to arrays.

    Parameters
    ----------
    trt : module
        TensorRT, of the version that built the engine.
    engine : bytes
        Serialized engine.

    Raises
    ------
    RuntimeError
        If there is no GPU, or the engine was built for another one.
    """

    def __init__(self, trt, engine):
        if not torch.cuda.is_available():
            raise RuntimeError("running a TensorRT engine needs a GPU, and torch finds none")
        self._log = ErrorLog(trt)
        self._trt = trt
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise RuntimeError(
                f"the engine cannot be run here: {'; '.join(self._log.errors)}. It must be "
                f"run by the version of {trt.__name__} that built it; this is {trt.__version__}"
            )
        self._context = self._engine.create_execution_context()

    def run(self, arrays, outputs):
        """Return outputs by name.

        Parameters
        ----------
        arrays : dict of {str: ndarray}
            Arrays by name of the input.
        outputs : list of str
            Names of the outputs to return.

        Returns
        -------
        dict of {str: ndarray}

        Raises
        ------
        RuntimeError
            If the engine fails. The message includes the errors of TensorRT.
        """
        trt, stream = self._trt, torch.cuda.Stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = {
            name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        }
        # Tensors are referenced until the engine has run.
        input_tensors, output_tensors = [], {}
        for name in inputs:
            tensor = torch.from_numpy(np.ascontiguousarray(arrays[name])).cuda()
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
            input_tensors.append(tensor)
        # Every output needs a buffer, also those that are not returned.
        for name in set(names) - inputs:
            shape = tuple(self._context.get_tensor_shape(name))
            output_tensors[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, output_tensors[name].data_ptr())
        # Copies are made on the default stream.
        torch.cuda.current_stream().synchronize()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed: {'; '.join(self._log.errors)}")
        stream.synchronize()
        return {name: output_tensors[name].cpu().numpy() for name in outputs}
