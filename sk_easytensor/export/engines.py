"""Inference engines of the network of a fitted estimator: torch, onnxruntime, TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from warnings import warn

import numpy as np
import torch

from sk_easytensor._utils.runtime import ForkSafeLock, resolve_threads
from sk_easytensor._utils.validation import check_choice
from sk_easytensor.export.adapters import (
    EncodedInputs,
    ExportedNetwork,
    NetworkAdapter,
    engine_adapter,
)

__all__ = [
    "ENGINES",
    "Engine",
    "EngineChoice",
    "EngineMixin",
    "check_engine",
    "choose",
    "start",
]


TORCH = "torch"

ROWS = 2048
"""Largest number of rows by which engines are compared with torch and timed."""

RUNNING_ENGINE = "_engine"
"""Attribute with the running engine. It is not pickled, and created again if it is missing."""


class EngineMixin:
    """Mixin that runs a fitted network by torch or by the engine that was chosen for it.

    A subclass has ``blocks_``, ``network_``, ``n_jobs`` and ``_encoder``, and implements
    ``_network_functions()``, which returns a function of encoded rows for each output of the
    network.
    """

    _engine_adapter = NetworkAdapter
    """Adapter with the outputs that an engine computes."""

    def _run_network(self, output, frame, backend):
        """Return an output of the network for encoded rows, as a tensor."""
        function = self._network_functions()[output]
        engine = self._started_engine()
        if engine is not None:
            function = engine.function(output, function)
        lengths = self.network_.padded_lengths(frame)
        return backend.forward(function, frame, lengths=lengths)

    def _use_torch(self):
        """Run the network by torch, and remove an engine that was chosen for other weights."""
        for name in (RUNNING_ENGINE, "inference_report_"):
            vars(self).pop(name, None)
        self.inference_engine_, self._program = TORCH, None

    def _choose_engine(self, requested, table, backend):
        """Choose the engine that runs the network, and set the attributes that describe it.

        Parameters
        ----------
        requested : {"auto", "onnxruntime", "tensorrt"}
            Value of the parameter ``inference_engine``.
        table : pyarrow.Table
            Table of which at most :data:`ROWS` evenly spread rows serve to compare and time
            engines.
        backend : LocalExecutor
            Executor of forward passes.
        """
        self._use_torch()
        rows = np.linspace(0, len(table) - 1, min(len(table), ROWS)).astype(np.int64)
        table = self._encoder.read(table.take(rows), owner=type(self).__name__)
        frame = self._encoder.encode_table(table, backend)
        choice = choose(self, requested, frame, backend)
        self.inference_report_ = choice.report
        if choice.engine is not None:
            self.inference_engine_, self._program = choice.engine.name, choice.program
            setattr(self, RUNNING_ENGINE, choice.engine)

    def _started_engine(self):
        """Return the engine, which is started on first use; None for torch."""
        # Estimators that are being fitted do not have the attribute.
        name = getattr(self, "inference_engine_", TORCH)
        if name == TORCH:
            return None
        threads = resolve_threads(self.n_jobs)
        engine = getattr(self, RUNNING_ENGINE, None)
        if hasattr(self, RUNNING_ENGINE) and (engine is None or engine.threads == threads):
            return engine
        try:
            engine = start(name, self._program, self.blocks_, threads)
        except Exception as error:
            engine = None
            warn(
                f"{type(self).__name__} was fitted to predict with {name}, which cannot be started "
                f"here: {error}. It predicts with torch",
                UserWarning,
                stacklevel=2,
            )
        setattr(self, RUNNING_ENGINE, engine)
        return engine


RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerances for differences from the outputs of torch, as in :func:`numpy.allclose`."""

MIN_SPEED_UP = 1.1
"""Speed relative to torch from which ``"auto"`` chooses an engine."""

REPEATS = 5
"""Number of timed runs, of which the fastest counts."""


class Engine:
    """Base class of engines that run a network on encoded rows, from its export to ONNX.

    Parameters
    ----------
    program : bytes
        Network as exported by :func:`~sk_easytensor.export.onnx.network_model`, serialized.
    inputs : EncodedInputs
        Inputs of the network.
    threads : int
        Largest number of threads.
    """

    name = ""
    """Value of the parameter ``inference_engine``."""

    requires = ()
    """Pairs of a required package, by its import name, and the extra that installs it."""

    supports_bitwise = True
    """Whether the engine has bitwise operators."""

    def __init__(self, program, inputs, threads):
        self.inputs = inputs
        self.threads = threads

    @classmethod
    def check(cls):
        """Check that the engine can run on this machine.

        Raises
        ------
        ImportError
            If a package is not installed. The message has the command that installs it.
        RuntimeError
            If there is no GPU for an engine that needs one.
        """
        for package, extra in cls.requires:
            if find_spec(package) is None:
                raise ImportError(
                    f"inference_engine={cls.name!r} needs {package}: pip install "
                    f"'sk_easytensor[{extra}]'"
                )

    def function(self, output, fallback):
        """Return a function of encoded rows that computes an output of the network.

        Parameters
        ----------
        output : str
            Name of the output.
        fallback : callable
            Function that computes the same output by torch, for rows that the engine does not
            accept.

        Returns
        -------
        callable
            Function of a TensorFrame that returns a tensor.
        """

        def run(frame):
            arrays = self.inputs.arrays(frame)
            return self.run(output, arrays) if self.accepts(arrays) else fallback(frame)

        return run

    def accepts(self, arrays):
        """Return whether the engine accepts arrays of these shapes."""
        return True

    def run(self, output, arrays):
        """Return an output as a tensor; `arrays` are the inputs by name."""
        raise TypeError(f"{type(self).__name__} does not implement run")


class OnnxRuntimeEngine(Engine):
    """onnxruntime on the CPU."""

    name = "onnxruntime"
    requires = (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx"))

    def __init__(self, program, inputs, threads):
        from sk_easytensor.onnx.predictor import open_session

        super().__init__(program, inputs, threads)
        self._session = open_session(program, threads)
        # The session has only inputs that the graph uses.
        self._input_names = [input_.name for input_ in self._session.get_inputs()]

    def run(self, output, arrays):
        """Return an output as a tensor; `arrays` are the inputs by name."""
        inputs = {name: arrays[name] for name in self._input_names}
        (values,) = self._session.run([output], inputs)
        return torch.from_numpy(values)


class TensorRTEngine(Engine):
    """TensorRT on a GPU."""

    name = "tensorrt"
    supports_bitwise = False
    requires = (("onnx", "onnx"), ("onnxscript", "onnx"))

    def __init__(self, program, inputs, threads):
        from sk_easytensor.export.tensorrt import EngineRunner, build, tensorrt_package

        super().__init__(program, inputs, threads)
        trt = tensorrt_package()
        engine, self._longest = build(trt, program, [inputs])
        self._runner = EngineRunner(trt, engine)
        # A context runs one batch at a time.
        self._lock = ForkSafeLock()

    @classmethod
    def check(cls):
        """Check that TensorRT is installed and that there is a GPU; see :meth:`Engine.check`."""
        from sk_easytensor.export.tensorrt import tensorrt_package

        super().check()
        tensorrt_package()
        if not torch.cuda.is_available():
            raise RuntimeError("inference_engine='tensorrt' needs a GPU, and torch finds none")

    def accepts(self, arrays):
        """Return whether no list is longer than the engine was built for."""
        return all(arrays[name].shape[2] <= longest for name, longest in self._longest.items())

    def run(self, output, arrays):
        """Return an output as a tensor; `arrays` are the inputs by name."""
        with self._lock:
            return torch.from_numpy(self._runner.run(arrays, [output])[output])


ENGINES = {engine.name: engine for engine in (OnnxRuntimeEngine, TensorRTEngine)}
"""Engines besides torch, by name."""


@dataclass
class EngineChoice:
    """Engine that was chosen for a network, with the comparison of engines.

    Attributes
    ----------
    engine : Engine or None
        Running engine; None for torch.
    program : bytes or None
        Exported network of the engine; None for torch.
    report : dict
        ``"rows"``, ``"relative"`` and ``"absolute"`` describe the comparison. ``"engines"`` has a
        dictionary by name of the engine, with ``"seconds"``, ``"speed_up"`` and ``"difference"``
        or with ``"unavailable"`` or ``"failed"`` and the reason.
    """

    engine: Engine | None
    program: bytes | None
    report: dict


def check_engine(owner, name):
    """Check the parameter ``inference_engine``.

    Parameters
    ----------
    owner : str
        Class name used in error messages.
    name : {"torch", "auto", "onnxruntime", "tensorrt"}
        Value of the parameter.

    Raises
    ------
    ValueError
        If the value is none of these.
    ImportError, RuntimeError
        If a package or the GPU is missing that the named engine needs.
    """
    check_choice(owner, "inference_engine", name, (TORCH, "auto", *ENGINES))
    if name in ENGINES:
        ENGINES[name].check()


def start(name, program, blocks, threads):
    """Return a started engine.

    Parameters
    ----------
    name : str
        Name of the engine.
    program : bytes
        Exported network.
    blocks : dict of {str: Block}
        Fitted blocks that encode the inputs of the network.
    threads : int
        Largest number of threads.

    Returns
    -------
    Engine
    """
    return ENGINES[name](program, EncodedInputs(blocks), threads)


def choose(model, requested, frame, backend):
    """Choose the engine of a fitted network.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model, with torch as its engine.
    requested : {"auto", "onnxruntime", "tensorrt"}
        A named engine is chosen if its outputs agree with those of torch. ``"auto"`` chooses the
        fastest engine that agrees and is at least :data:`MIN_SPEED_UP` times as fast as torch.
    frame : TensorFrame
        Encoded rows by which engines are compared and timed.
    backend : LocalExecutor
        Executor of forward passes.

    Returns
    -------
    EngineChoice

    Warns
    -----
    UserWarning
        If the network cannot be exported, or an engine fails or disagrees. With ``"auto"`` there is
        no warning of engines that are not installed; the report names them.
    """
    owner, consequence = type(model).__name__, "the model predicts with torch"
    expected, seconds = timed_outputs(model, None, frame, backend)
    results = {TORCH: {"seconds": seconds, "speed_up": 1.0}}
    report = {"rows": len(frame), "relative": RELATIVE, "absolute": ABSOLUTE, "engines": results}
    candidates = []
    for name in ENGINES if requested == "auto" else [requested]:
        try:
            ENGINES[name].check()
            candidates.append(name)
        except (ImportError, RuntimeError) as error:
            results[name] = {"unavailable": str(error)}
    try:
        programs = {
            bitwise: exported(model, bitwise)
            for bitwise in {ENGINES[name].supports_bitwise for name in candidates}
        }
    except Exception as error:
        results.update({name: {"failed": str(error)} for name in candidates})
        warn(f"{owner}: {error}; {consequence}", UserWarning, stacklevel=2)
        return EngineChoice(None, None, report)
    best, threads = None, resolve_threads(model.n_jobs)
    for name in candidates:
        program = programs[ENGINES[name].supports_bitwise]
        try:
            engine = start(name, program, model.blocks_, threads)
            outputs, seconds = timed_outputs(model, engine, frame, backend)
        except Exception as error:
            results[name] = {"failed": str(error)}
            warn(f"{owner}: {name} failed: {error}; {consequence}", UserWarning, stacklevel=2)
            continue
        difference, agrees = compare(outputs, expected)
        speed_up = results[TORCH]["seconds"] / seconds
        results[name] = {"seconds": seconds, "speed_up": speed_up, "difference": difference}
        if not agrees:
            warn(
                f"{owner}: outputs of {name} differ from torch's by up to {difference:.3g}, which "
                f"is more than {ABSOLUTE} and {RELATIVE} of their size; {consequence}",
                UserWarning,
                stacklevel=2,
            )
        elif requested == name or speed_up > max(MIN_SPEED_UP, best[0] if best else 0):
            best = (speed_up, engine, program)
    if best is None:
        return EngineChoice(None, None, report)
    return EngineChoice(*best[1:], report)


def exported(model, bitwise=True):
    """Return the network of a model as a serialized ONNX model whose inputs are encoded rows.

    Parameters
    ----------
    model : estimator or Tower
        Fitted model.
    bitwise : bool, default=True
        Whether the model may have bitwise operators.
    """
    from sk_easytensor.export.onnx import network_model

    network = ExportedNetwork(engine_adapter(model), precise=False)
    if not bitwise:
        network.unpack_trees()
    return network_model(network).SerializeToString()


def timed_outputs(model, engine, frame, backend):
    """Return all outputs of an engine, or of torch for None, and the seconds of the first one."""
    lengths = model.network_.padded_lengths(frame)
    functions = {
        output: function if engine is None else engine.function(output, function)
        for output, function in model._network_functions().items()
    }

    def run(function):
        return backend.forward(function, frame, lengths=lengths).numpy()

    outputs, seconds = [run(function) for function in functions.values()], []
    first = next(iter(functions.values()))
    for _ in range(REPEATS):
        begin = perf_counter()
        run(first)
        seconds.append(perf_counter() - begin)
    return outputs, min(seconds)


def compare(outputs, expected):
    """Return the largest difference of arrays, and whether all are within the tolerance."""
    pairs = list(zip(outputs, expected, strict=True))
    difference = max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)
    agrees = all(a.shape == b.shape and np.allclose(a, b, RELATIVE, ABSOLUTE) for a, b in pairs)
    return difference, agrees
