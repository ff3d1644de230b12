"""Fitted models as ONNX files, TensorRT engines and programs of other engines."""
