"""ONNX graphs: how they are built, what they read, and predictions by them without torch."""
