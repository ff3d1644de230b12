"""Export of fitted models as ONNX files and TensorRT engines, and inference by other engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from sk_easytensor._utils.typing import PathLike

__all__ = [
    "ExportMixin",
]


class ExportMixin:
    """Mixin with the methods ``to_onnx`` and ``to_tensorrt`` of fitted models.

    A subclass sets ``_export_adapter``, a class of :mod:`sk_easytensor.export.adapters`.
    """

    _export_adapter = None

    def to_onnx(self, path: PathLike, inputs: Literal["raw", "encoded"] = "raw") -> Path:
        """Write the fitted model as an ONNX file, preprocessing included.

        Parameters
        ----------
        path : str or path-like
            Path of the file. The file is written completely or not at all.
        inputs : {"raw", "encoded"}, default="raw"
            Inputs of the graph: the columns of the table, or the encodings of the blocks. See
            :func:`sk_easytensor.inference.export_onnx`.

        Returns
        -------
        pathlib.Path
            Path of the file, for :func:`sk_easytensor.inference.load`.

        Raises
        ------
        ImportError
            If the extra ``onnx`` is not installed.
        TypeError, RuntimeError
            If a block cannot be exported. The message names the block and a remedy.
        NotFittedError
            If the model is not fitted.
        """
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"to_onnx needs {error.name}: pip install 'sk_easytensor[onnx]'"
            ) from error
        from sk_easytensor.export.onnx import export_onnx
        from sk_easytensor.training.progress import show_phase

        with show_phase("exporting", getattr(self, "verbose", 0)):
            return export_onnx(self, path, inputs)

    def to_tensorrt(
        self,
        path: PathLike,
        precision: Literal["fp32", "fp16", "bf16"] = "fp32",
        batch_sizes: tuple[int, int, int] = (1, 64, 4096),
        list_lengths: tuple[int, int, int] | None = None,
    ) -> Path:
        """Build a TensorRT engine of the fitted network, whose inputs are encoded rows.

        Parameters
        ----------
        path : str or path-like
            Path of the file. The file is written completely or not at all.
        precision : {"fp32", "fp16", "bf16"}, default="fp32"
            Precision of the trunk, the head and the networks over lists.
        batch_sizes : tuple of int, default=(1, 64, 4096)
            Smallest number of rows of a batch, the number the engine is optimized for, and the
            largest.
        list_lengths : tuple of int, optional
            The same numbers for items of lists. See :func:`sk_easytensor.inference.build_engine`
            for this and for the errors raised.

        Returns
        -------
        pathlib.Path
            Path of the file, for :class:`sk_easytensor.inference.TensorRTPredictor`.
        """
        from sk_easytensor.export.tensorrt import build_engine

        return build_engine(self, path, precision, batch_sizes, list_lengths)
