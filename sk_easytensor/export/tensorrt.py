"""TensorRT engines of fitted networks: built anywhere, run where there is a GPU."""

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
"""Packages with the same interface, the first that is there is used."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "bf16": None}
"""By how much onnxruntime may differ from torch; it knows no bfloat16 on a processor."""

BATCH_SIZES = (1, 64, 4096)
"""Rows that an engine takes: the fewest, those it is tuned for, and the most."""

LENGTHS = (1, 64, 512)
"""Items of lists that an engine takes where the block does not say."""

MAGIC = b"sk_easytensor engine 2\n"
"""What a file begins with; the length of its description and the description follow."""


@with_library_settings
def build_engine(model, path, precision="fp32", batch_sizes=BATCH_SIZES, list_lengths=None):
    """Build a TensorRT engine of a fitted model's network and write it to a file.

    Parameters
    ----------
    model : estimator or Tower
        Fitted.
    path : str or path-like
        The file. It is there whole or not at all.
    precision : {"fp32", "fp16", "bf16"}, default="fp32"
        Of the trunk, the head and the networks over lists (in bfloat16 not of recurrent ones, which
        TensorRT cannot parse then). Embeddings and the step from the
        outputs to probabilities stay in single precision: positions among bins and logarithms
        would suffer.
    batch_sizes : tuple of int, default=(1, 64, 4096)
        Fewest rows, those the engine is tuned for, and most.
    list_lengths : tuple of int, optional
        The same of items of lists; by default one, 64 and the block's ``max_length``, or 512 for
        n-grams. :class:`TensorRTPredictor` refuses longer ones.

    Returns
    -------
    pathlib.Path
        Of the file.

    Raises
    ------
    ImportError
        If neither ``tensorrt`` nor ``tensorrt_rtx`` is installed.
    ValueError
        If `y` was too large or too small for single precision.
    RuntimeError
        If TensorRT cannot parse or build the network, with its own words.

    Notes
    -----
    An engine takes encoded rows, because TensorRT knows neither strings nor look-ups of them;
    :class:`TensorRTPredictor` encodes with the model's blocks. Building needs no GPU with
    ``tensorrt_rtx``; ``tensorrt`` builds for the GPU it finds.
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
        "answer": adapter.described(),
    }
    text = json.dumps(description).encode()
    rest = len(text).to_bytes(8, "little") + text + bytes(engine)
    return write_atomically(path, MAGIC + hashlib.sha256(rest).digest() + rest, "to_tensorrt")


def build(trt, program, parts, batch_sizes=BATCH_SIZES, list_lengths=None):
    """Return an engine of an exported network, and the longest lists that each input takes.

    Parameters
    ----------
    trt : module
        What :func:`tensorrt_package` returns.
    program : bytes
        The network, in ONNX.
    parts : list of EncodedInputs
        What it takes.
    batch_sizes, list_lengths : tuple of int
        As of :func:`build_engine`.

    Returns
    -------
    engine : bytes
    longest : dict of {str: int}
    """
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, messages.logger)
    if not parser.parse(program):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError(f"TensorRT cannot parse the network: {'; '.join(errors)}")
    taken = {definition.get_input(index).name for index in range(definition.num_inputs)}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    longest = {}
    for each, block in [(each, part.blocks[each.block]) for part in parts for each in part.inputs]:
        lengths = list_lengths or own_lengths(block)
        if each.lengths is not None:
            longest[each.name] = int(lengths[2])
        if each.name in taken:
            profile.set_shape(each.name, *shapes(each, batch_sizes, lengths))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(definition, config)
    if engine is None:
        raise RuntimeError(f"TensorRT cannot build the network: {'; '.join(messages.errors)}")
    return bytes(engine), longest


def tensorrt_package():
    """Return the first of TensorRT's packages that is installed.

    Raises
    ------
    ImportError
        Naming what can be installed.
    """
    for name in PACKAGES:
        try:
            package = import_module(name)
        except ImportError:
            continue
        # The package of that name on PyPI may be a stub without its libraries.
        if hasattr(package, "Builder"):
            return package
    raise ImportError(
        "TensorRT engines need tensorrt (datacenter GPUs) or tensorrt-rtx: "
        "pip install 'sk_easytensor[tensorrt]'"
    )


def check_sizes(name, sizes):
    """Raise ``ValueError`` unless sizes are three increasing positive integers."""
    try:
        least, usual, most = sizes
    except (TypeError, ValueError):
        raise ValueError(
            f"build_engine: {name} must be three integers, the fewest, the usual and the most, "
            f"got {sizes!r}"
        ) from None
    check_number("build_engine", f"{name}[0]", least, low=1, integer=True)
    check_number("build_engine", f"{name}[1]", usual, low=least, integer=True)
    check_number("build_engine", f"{name}[2]", most, low=usual, integer=True)


def own_lengths(block):
    """Return fewest, usual and most items of the lists that a block encodes."""
    ngrams = getattr(block, "encoder", None) == "ngrams"
    most = LENGTHS[2] if ngrams else getattr(block, "max_length", LENGTHS[2])
    return 1, min(LENGTHS[1], most), most


def shapes(each, batch_sizes, lengths):
    """Return the least, usual and largest shape of an input."""
    found = []
    for rows, items in zip(batch_sizes, lengths, strict=True):
        shape = list(each.example.shape)
        for axis in each.dynamic:
            shape[axis] = items if axis else rows
        found.append(tuple(map(int, shape)))
    return found


class Lowered(nn.Module):
    """A module that computes in another precision than what is before and behind it."""

    def __init__(self, module, dtype):
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, features, *others):
        """Return the module's output in single precision."""
        return self.module(features.to(self.dtype), *others).float()


def lower(network, dtype):
    """Let trunks, heads and networks over lists compute in another precision, and trees in floats.

    TensorRT does not know operators on bits.
    """
    network.unpack_trees()
    if dtype == torch.float32:
        return
    for part in network.networks:
        for name in ("trunk", "head", "wide"):
            module = getattr(part, name)
            if module is not None:
                setattr(part, name, Lowered(module, dtype))
        for module in list(part.modules()):
            # TensorRT's parser gives recurrent layers constants that bfloat16 does not go with.
            if isinstance(module, SequenceEncoder) and not (
                dtype == torch.bfloat16 and isinstance(module.reader, Recurrent)
            ):
                module.reader = LoweredReader(module.reader, dtype)


class LoweredReader(Lowered):
    """A network over lists, of which the pooling asks whether it reads both ways."""

    def __init__(self, reader, dtype):
        super().__init__(reader, dtype)
        self.bidirectional = getattr(reader, "bidirectional", False)


class Messages:
    """Collects what TensorRT says."""

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
    """Return the description and the engine in a file.

    Raises
    ------
    ValueError
        If the file is not one that :func:`build_engine` wrote, or not as it was written.
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
    """Runs an engine on a GPU; rows are encoded by the model's blocks.

    Parameters
    ----------
    model : estimator or Tower
        The fitted model that the engine was built of.
    path : str or path-like
        A file that ``to_tensorrt(path)`` wrote.

    Raises
    ------
    RuntimeError
        If there is no GPU, or it is not one that the engine can be run on.

    Notes
    -----
    The engine has to be read by the version of TensorRT that built it. Building engines is part of
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
            Rows, as the model takes them.

        Returns
        -------
        dict of {str: ndarray}

        Raises
        ------
        RuntimeError
            If the engine gives NaN or infinity, with the output and the number of rows.
        """
        arrays = encoded_arrays(self.model, X)
        for name, values in arrays.items():
            most = self.description["longest"].get(name)
            if most is not None and values.shape[2] > most:
                raise ValueError(
                    f"{name} has lists of {values.shape[2]} items and the engine takes {most}; "
                    "build it with larger list_lengths"
                )
        n_rows, most = len(next(iter(arrays.values()))), self.description["batch_sizes"][2]
        outputs = self.description["outputs"]
        parts = [
            self._runner.run(
                {name: values[start : start + most] for name, values in arrays.items()}, outputs
            )
            for start in range(0, n_rows, most)
        ]
        found = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        for name, values in found.items():
            check_finite(name, values, "the engine")
        return found


class EngineRunner:
    """Runs an engine on a GPU, from arrays to arrays.

    Parameters
    ----------
    trt : module
        TensorRT, of the version that built the engine.
    engine : bytes
        What it built.

    Raises
    ------
    RuntimeError
        If there is no GPU, or it is not one that the engine can be run on.
    """

    def __init__(self, trt, engine):
        if not torch.cuda.is_available():
            raise RuntimeError("running a TensorRT engine needs a GPU, and torch finds none")
        self._messages = Messages(trt)
        self._trt = trt
        self._runtime = trt.Runtime(self._messages.logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise RuntimeError(
                f"the engine cannot be run here: {'; '.join(self._messages.errors)}. It has to be "
                f"read by the version of {trt.__name__} that built it; this is {trt.__version__}"
            )
        self._context = self._engine.create_execution_context()

    def run(self, arrays, outputs):
        """Return outputs by name.

        Parameters
        ----------
        arrays : dict of {str: ndarray}
            By input.
        outputs : list of str
            Which of the engine's outputs to return.

        Returns
        -------
        dict of {str: ndarray}
        """
        trt, stream = self._trt, torch.cuda.Stream()
        held, found = [], {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = {
            name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        }
        for name in given:
            tensor = torch.from_numpy(np.ascontiguousarray(arrays[name])).cuda()
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
            held.append(tensor)
        # Every output needs a place, asked for or not.
        for name in set(names) - given:
            shape = tuple(self._context.get_tensor_shape(name))
            found[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, found[name].data_ptr())
        # Copies are made on the default stream.
        torch.cuda.current_stream().synchronize()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed: {'; '.join(self._messages.errors)}")
        stream.synchronize()
        return {name: found[name].cpu().numpy() for name in outputs}
