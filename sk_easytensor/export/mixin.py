"""The methods by which estimators and towers are exported."""

from __future__ import annotations

__all__ = [
    "ExportMixin",
]


class ExportMixin:
    """Gives fitted models ``to_onnx`` and ``to_tensorrt``.

    A subclass sets ``_export_adapter``, a class of :mod:`sk_easytensor.export.adapters`.
    """

    _export_adapter = None

    def to_onnx(self, path, inputs="raw"):
        """Write the fitted model as an ONNX file, preprocessing included.

        Parameters
        ----------
        path : str or path-like
            The file. It is there whole or not at all.
        inputs : {"raw", "encoded"}, default="raw"
            What the graph takes: the user's own columns, or what the blocks make of them. See
            :func:`sk_easytensor.inference.export_onnx`.

        Returns
        -------
        pathlib.Path
            Of the file, for :func:`sk_easytensor.inference.load`.

        Raises
        ------
        ImportError
            If the extra ``onnx`` is not installed.
        TypeError, RuntimeError
            Naming a block that cannot be exported, and what can be done.
        """
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"to_onnx needs {error.name}: pip install 'sk_easytensor[onnx]'"
            ) from error
        from sk_easytensor.export.onnx import export_onnx

        return export_onnx(self, path, inputs)

    def to_tensorrt(self, path, precision="fp32", batch_sizes=(1, 64, 4096), list_lengths=None):
        """Build a TensorRT engine of the fitted network, which takes encoded rows.

        Parameters
        ----------
        path : str or path-like
            The file. It is there whole or not at all.
        precision : {"fp32", "fp16", "bf16"}, default="fp32"
            Of the trunk, the head and the networks over lists.
        batch_sizes : tuple of int, default=(1, 64, 4096)
            Fewest rows, those the engine is tuned for, and most.
        list_lengths : tuple of int, optional
            The same of items of lists. See :func:`sk_easytensor.inference.build_engine`.

        Returns
        -------
        pathlib.Path
            Of the file, for :class:`sk_easytensor.inference.TensorRTPredictor`.
        """
        from sk_easytensor.export.tensorrt import build_engine

        return build_engine(self, path, precision, batch_sizes, list_lengths)
