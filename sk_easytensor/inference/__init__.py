"""Predictions by exported models: ONNX files with the preprocessing in them, TensorRT engines."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.export.onnx import encoded_arrays, export_onnx
    from sk_easytensor.export.tensorrt import TensorRTPredictor, build_engine
    from sk_easytensor.onnx.predictor import OnnxPredictor, load

__all__ = [
    "OnnxPredictor",
    "TensorRTPredictor",
    "build_engine",
    "encoded_arrays",
    "export_onnx",
    "load",
]

__getattr__, __dir__ = lazy_names(
    "sk_easytensor",
    {
        ".export.onnx": ["encoded_arrays", "export_onnx"],
        ".onnx.predictor": ["OnnxPredictor", "load"],
        ".export.tensorrt": ["TensorRTPredictor", "build_engine"],
    },
    module=__name__,
)
