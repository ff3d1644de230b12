"""Engines that run the network of a fitted estimator: torch, onnxruntime, TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from warnings import warn

import numpy as np
import torch

from sk_easytensor._utils.forking import ForkSafeLock
from sk_easytensor._utils.runtime import resolve_threads
from sk_easytensor._utils.validation import check_choice
from sk_easytensor.export.adapters import ExportedNetwork, NetworkAdapter, engine_adapter
from sk_easytensor.export.encoded_inputs import EncodedInputs

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
"""At most so many rows tell whether an engine agrees with torch, and how fast it is."""

RUNNING_ENGINE = "_engine"
"""The attribute that holds what runs the network, and is made anew where it is missing."""


class EngineMixin:
    """Runs a fitted network by torch or by the engine that was chosen for it.

    A subclass has ``blocks_``, ``network_``, ``n_jobs`` and ``_encoder``, and implements
    ``_network_functions()``: for each output of the network, a function of encoded rows.
    """

    _engine_adapter = NetworkAdapter
    """Says what an engine computes of the model."""

    def _run_network(self, output, frame, backend):
        """Return an output of the network for encoded rows, as a tensor."""
        function = self._network_functions()[output]
        engine = self._started_engine()
        if engine is not None:
            function = engine.function(output, function)
        lengths = self.network_.padded_lengths(frame)
        return backend.forward(function, frame, lengths=lengths)

    def _use_torch(self):
        """Forget an engine that was chosen for other weights."""
        for name in (RUNNING_ENGINE, "inference_report_"):
            vars(self).pop(name, None)
        self.inference_engine_, self._program = TORCH, None

    def _choose_engine(self, wanted, table, backend):
        """Set which engine runs the network from now on.

        Parameters
        ----------
        wanted : {"auto", "onnxruntime", "tensorrt"}
            What the user asked for.
        table : pyarrow.Table
            Some of its rows, evenly spread, are what engines are compared and timed with.
        backend : LocalExecutor
            Where forward passes run.
        """
        self._use_torch()
        rows = np.linspace(0, len(table) - 1, min(len(table), ROWS)).astype(np.int64)
        table = self._encoder.read(table.take(rows), owner=type(self).__name__)
        frame = self._encoder.encode_table(table, backend)
        chosen = choose(self, wanted, frame, backend)
        self.inference_report_ = chosen.report
        if chosen.engine is not None:
            self.inference_engine_, self._program = chosen.engine.name, chosen.program
            setattr(self, RUNNING_ENGINE, chosen.engine)

    def _started_engine(self):
        """Return the engine, started if it is not yet; None for torch."""
        # Models that are being fitted have none.
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
"""By how much outputs may differ from torch's, as in :func:`numpy.allclose`."""

WORTHWHILE = 1.1
"""How many times faster than torch an engine has to be for ``"auto"`` to take it."""

REPEATS = 5
"""The least time of so many runs counts."""


class Engine:
    """Base: runs a network that was exported to ONNX, on encoded rows.

    Parameters
    ----------
    program : bytes
        The network, as :func:`~sk_easytensor.export.onnx.network_model` exports it.
    inputs : EncodedInputs
        What it takes.
    threads : int
        Threads at most.
    """

    name = ""
    needs = ()
    """Packages, by what they are imported as and the extra that they come with."""

    supports_bitwise = True
    """Whether it has operators on the bits of integers."""

    def __init__(self, program, inputs, threads):
        self.inputs = inputs
        self.threads = threads

    @classmethod
    def check(cls):
        """Raise ``ImportError`` or ``RuntimeError`` saying what is lacking here."""
        for package, extra in cls.needs:
            if find_spec(package) is None:
                raise ImportError(
                    f"inference_engine={cls.name!r} needs {package}: pip install "
                    f"'sk_easytensor[{extra}]'"
                )

    def function(self, output, otherwise):
        """Return a function of encoded rows.

        Parameters
        ----------
        output : str
            Which output of the network it gives.
        otherwise : callable
            The same computed by torch, for rows that the engine does not take.

        Returns
        -------
        callable
        """

        def run(frame):
            arrays = self.inputs.arrays(frame)
            return self.run(output, arrays) if self.takes(arrays) else otherwise(frame)

        return run

    def takes(self, arrays):
        """Tell whether the engine takes rows of this shape."""
        return True

    def run(self, output, arrays):
        """Return an output, as a tensor; `arrays` are the inputs by name."""
        raise TypeError(f"{type(self).__name__} runs nothing")


class OnnxRuntimeEngine(Engine):
    """onnxruntime, on the processor."""

    name = "onnxruntime"
    needs = (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx"))

    def __init__(self, program, inputs, threads):
        from sk_easytensor.onnx.predictor import open_session

        super().__init__(program, inputs, threads)
        self._session = open_session(program, threads)
        self._taken = [each.name for each in self._session.get_inputs()]

    def run(self, output, arrays):
        """Return an output, as a tensor; `arrays` are the inputs by name."""
        (found,) = self._session.run([output], {name: arrays[name] for name in self._taken})
        return torch.from_numpy(found)


class TensorRTEngine(Engine):
    """TensorRT, on a GPU."""

    name = "tensorrt"
    supports_bitwise = False
    needs = (("onnx", "onnx"), ("onnxscript", "onnx"))

    def __init__(self, program, inputs, threads):
        from sk_easytensor.export.tensorrt import EngineRunner, build, tensorrt_package

        super().__init__(program, inputs, threads)
        trt = tensorrt_package()
        built, self._longest = build(trt, program, [inputs])
        self._runner = EngineRunner(trt, built)
        # A context runs one batch at a time.
        self._lock = ForkSafeLock()

    @classmethod
    def check(cls):
        """Raise ``ImportError`` or ``RuntimeError`` saying what is lacking here."""
        from sk_easytensor.export.tensorrt import tensorrt_package

        super().check()
        tensorrt_package()
        if not torch.cuda.is_available():
            raise RuntimeError("inference_engine='tensorrt' needs a GPU, and torch finds none")

    def takes(self, arrays):
        """Tell whether no list is longer than the engine was built for."""
        return all(arrays[name].shape[2] <= most for name, most in self._longest.items())

    def run(self, output, arrays):
        """Return an output, as a tensor; `arrays` are the inputs by name."""
        with self._lock:
            return torch.from_numpy(self._runner.run(arrays, [output])[output])


ENGINES = {engine.name: engine for engine in (OnnxRuntimeEngine, TensorRTEngine)}
"""What can run a network besides torch."""


@dataclass
class EngineChoice:
    """What is to run a network.

    Attributes
    ----------
    engine : Engine or None
        None for torch.
    program : bytes or None
        The exported network, if it is needed.
    report : dict
        What was found of each engine.
    """

    engine: Engine | None
    program: bytes | None
    report: dict


def check_engine(owner, name):
    """Raise an error unless `name` is an engine that there is on this machine.

    Parameters
    ----------
    owner : str
        Class name for messages.
    name : {"torch", "auto", "onnxruntime", "tensorrt"}
        The parameter ``inference_engine``.

    Raises
    ------
    ValueError
        If it is none of these.
    ImportError, RuntimeError
        If a package or the GPU is missing that an engine given by name needs.
    """
    check_choice(owner, "inference_engine", name, (TORCH, "auto", *ENGINES))
    if name in ENGINES:
        ENGINES[name].check()


def start(name, program, blocks, threads):
    """Return a started engine.

    Parameters
    ----------
    name : str
        Of the engine.
    program : bytes
        The exported network.
    blocks : dict of {str: Block}
        Those that encode its inputs.
    threads : int
        Threads at most.

    Returns
    -------
    Engine
    """
    return ENGINES[name](program, EncodedInputs(blocks), threads)


def choose(model, wanted, frame, backend):
    """Choose what runs a fitted network.

    Parameters
    ----------
    model : estimator or Tower
        Fitted, with torch as its engine.
    wanted : {"auto", "onnxruntime", "tensorrt"}
        An engine by name is taken if its outputs agree with torch's; ``"auto"`` takes the
        fastest that agrees.
    frame : TensorFrame
        Encoded rows by which engines are compared and timed.
    backend : LocalExecutor
        Where forward passes run.

    Returns
    -------
    EngineChoice

    Warns
    -----
    UserWarning
        If the network cannot be exported, or an engine fails or disagrees. Engines that are not
        on this machine are passed over by ``"auto"`` in silence; the report names them.
    """
    owner, rest = type(model).__name__, "the model predicts with torch"
    expected, seconds = timed(model, None, frame, backend)
    found = {TORCH: {"seconds": seconds, "speed_up": 1.0}}
    report = {"rows": len(frame), "relative": RELATIVE, "absolute": ABSOLUTE, "engines": found}
    candidates = []
    for name in ENGINES if wanted == "auto" else [wanted]:
        try:
            ENGINES[name].check()
            candidates.append(name)
        except (ImportError, RuntimeError) as error:
            found[name] = {"unavailable": str(error)}
    try:
        programs = {
            bits: exported(model, bits)
            for bits in {ENGINES[name].supports_bitwise for name in candidates}
        }
    except Exception as error:
        found.update({name: {"failed": str(error)} for name in candidates})
        warn(f"{owner}: {error}; {rest}", UserWarning, stacklevel=2)
        return EngineChoice(None, None, report)
    best, threads = None, resolve_threads(model.n_jobs)
    for name in candidates:
        program = programs[ENGINES[name].supports_bitwise]
        try:
            engine = start(name, program, model.blocks_, threads)
            outputs, seconds = timed(model, engine, frame, backend)
        except Exception as error:
            found[name] = {"failed": str(error)}
            warn(f"{owner}: {name} failed: {error}; {rest}", UserWarning, stacklevel=2)
            continue
        difference, agrees = compared(outputs, expected)
        speed_up = found[TORCH]["seconds"] / seconds
        found[name] = {"seconds": seconds, "speed_up": speed_up, "difference": difference}
        if not agrees:
            warn(
                f"{owner}: outputs of {name} differ from torch's by up to {difference:.3g}, which "
                f"is more than {ABSOLUTE} and {RELATIVE} of their size; {rest}",
                UserWarning,
                stacklevel=2,
            )
        elif wanted == name or speed_up > max(WORTHWHILE, best[0] if best else 0):
            best = (speed_up, engine, program)
    if best is None:
        return EngineChoice(None, None, report)
    return EngineChoice(*best[1:], report)


def exported(model, bits=True):
    """Return the network of a model as a program that takes encoded rows.

    Parameters
    ----------
    model : estimator or Tower
        Fitted.
    bits : bool, default=True
        Whether the program may have operators on bits.
    """
    from sk_easytensor.export.onnx import network_model

    network = ExportedNetwork(engine_adapter(model), precise=False)
    if not bits:
        network.unpack_trees()
    return network_model(network).SerializeToString()


def timed(model, engine, frame, backend):
    """Return all outputs of an engine, torch if there is none, and the seconds for the first."""
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


def compared(outputs, expected):
    """Return the largest difference of arrays, and whether all are within the tolerance."""
    pairs = list(zip(outputs, expected, strict=True))
    difference = max(float(np.abs(ours - theirs).max(initial=0)) for ours, theirs in pairs)
    agrees = all(
        ours.shape == theirs.shape and np.allclose(ours, theirs, RELATIVE, ABSOLUTE)
        for ours, theirs in pairs
    )
    return difference, agrees
