"""How estimators and towers have their networks run by an engine other than torch."""

from __future__ import annotations

from warnings import warn

import numpy as np

from sk_easytensor.inference._answers import NetworkAnswer
from sk_easytensor.torch_settings import resolve_threads

__all__ = ["EngineMixin"]

TORCH = "torch"

ROWS = 2048
"""At most so many rows tell whether an engine agrees with torch, and how fast it is."""

UNPICKLED = "_engine"
"""The attribute that holds what runs the network, and is made anew where it is missing."""


class EngineMixin:
    """Runs a fitted network by torch or by the engine that was chosen for it.

    A subclass has ``blocks_``, ``network_``, ``n_jobs`` and ``_encoder``, and implements
    ``_network_functions()``: for each output of the network, a function of encoded rows.
    """

    _engine_adapter = NetworkAnswer
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
        for name in (UNPICKLED, "inference_report_"):
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
        backend : LocalBackend
            Where forward passes run.
        """
        from sk_easytensor.inference.engines import choose

        self._use_torch()
        rows = np.linspace(0, len(table) - 1, min(len(table), ROWS)).astype(np.int64)
        table = self._encoder.read(table.take(rows), owner=type(self).__name__)
        frame = self._encoder.encode_table(table, backend)
        chosen = choose(self, wanted, frame, backend)
        self.inference_report_ = chosen.report
        if chosen.engine is not None:
            self.inference_engine_, self._program = chosen.engine.name, chosen.program
            setattr(self, UNPICKLED, chosen.engine)

    def _started_engine(self):
        """Return the engine, started if it is not yet; None for torch."""
        # Models that were pickled by version 0.1.0 or are being fitted have none.
        name = getattr(self, "inference_engine_", TORCH)
        if name == TORCH:
            return None
        threads = resolve_threads(self.n_jobs)
        engine = getattr(self, UNPICKLED, None)
        if hasattr(self, UNPICKLED) and (engine is None or engine.threads == threads):
            return engine
        from sk_easytensor.inference.engines import start

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
        setattr(self, UNPICKLED, engine)
        return engine

    def __getstate__(self):
        """Return what is pickled or copied: no engine that runs."""
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != UNPICKLED}
