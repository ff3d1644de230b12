"""Export of fitted models as ONNX files and TensorRT engines, and inference by other engines."""
