"""ONNX graphs: construction, inputs from tables, and predictions without torch."""
