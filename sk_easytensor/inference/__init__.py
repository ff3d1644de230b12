"""Fitted models outside training: ONNX files with the preprocessing in them, TensorRT engines."""

from typing import TYPE_CHECKING

from sk_easytensor._lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.inference.onnx import encoded_arrays, export_onnx
    from sk_easytensor.inference.predictor import OnnxPredictor, load
    from sk_easytensor.inference.tensorrt import TensorRTPredictor, build_engine

__all__ = [
    "OnnxPredictor",
    "TensorRTPredictor",
    "build_engine",
    "encoded_arrays",
    "export_onnx",
    "load",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".onnx": ["encoded_arrays", "export_onnx"],
        ".predictor": ["OnnxPredictor", "load"],
        ".tensorrt": ["TensorRTPredictor", "build_engine"],
    },
)
