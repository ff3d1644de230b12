"""ONNX translations of torch operators whose usual translations overflow or underflow.

The exporter's own translation of ``logsigmoid`` is the logarithm of a sigmoid, which is infinite
below -104 in single precision. Runtimes also differ in how they compute ``ReduceLogSumExp`` and
``LogSoftmax``: some take exponentials without subtracting the maximum. The translations here are
finite wherever torch is, in every runtime, because they use elementary operators only.
"""

from __future__ import annotations

import torch
from onnxscript import opset20 as op

__all__ = ["TRANSLATIONS"]


def log_sigmoid(self):
    """Return the logarithm of the sigmoid: ``min(x, 0) - log(1 + exp(-|x|))``."""
    zero, one = op.CastLike(0.0, self), op.CastLike(1.0, self)
    return op.Sub(op.Min(self, zero), op.Log(op.Add(one, op.Exp(op.Neg(op.Abs(self))))))


def log_sum_exp(self, dim, keepdim=False):
    """Return the logarithm of the sum of exponentials, the largest taken out of the sum."""
    axes = op.Constant(value_ints=[dim] if isinstance(dim, int) else list(dim))
    largest = op.ReduceMax(self, axes, keepdims=1)
    total = op.ReduceSum(op.Exp(op.Sub(self, largest)), axes, keepdims=1)
    found = op.Add(largest, op.Log(total))
    return found if keepdim else op.Squeeze(found, axes)


def log_softmax(self, dim, dtype=-1):
    """Return the logarithm of the softmax."""
    if dtype not in (-1, None):
        self = op.Cast(self, to=dtype)
    # The logarithm of the sum would be lost in the digits of a large maximum.
    axes = op.Constant(value_ints=[dim])
    below = op.Sub(self, op.ReduceMax(self, axes, keepdims=1))
    return op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), axes, keepdims=1)))


TRANSLATIONS = {
    torch.ops.aten.log_sigmoid.default: log_sigmoid,
    torch.ops.aten.logsumexp.default: log_sum_exp,
    torch.ops.aten.log_softmax.int: log_softmax,
}
"""For the parameter ``custom_translation_table`` of :func:`torch.onnx.export`."""
