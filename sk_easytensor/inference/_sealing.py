"""ONNX files that carry a digest of themselves, checked without the package onnx."""

from __future__ import annotations

import hashlib

__all__ = ["DIGEST", "check_sealed", "sealed"]

DIGEST = "sk_easytensor.sha256"
"""Key of the metadata."""


def sealed(model):
    """Return a serialised model with an entry of its metadata that has its SHA-256.

    Parameters
    ----------
    model : bytes
        As ``SerializeToString`` gives it, without the entry.

    Returns
    -------
    bytes
        The entry comes last. Fields of a protobuf message may come in any order, and one that is
        repeated in several places, so that all readers of ONNX find it among the metadata.
    """
    return model + entry(hashlib.sha256(model).hexdigest())


def check_sealed(data, where):
    """Raise ``ValueError`` unless bytes are those that :func:`sealed` returned.

    Parameters
    ----------
    data : bytes
        What is in a file.
    where : str
        The file, for the message.
    """
    model = memoryview(data)[: -len(entry("0" * 64))]
    if data[len(model) :] != entry(hashlib.sha256(model).hexdigest()):
        raise ValueError(
            f"{where} is torn, was changed after it was exported, or was not written by to_onnx of "
            "this library. Export the model again"
        )


def entry(digest):
    """Return an entry of the metadata of a model (field 14: key is field 1, value field 2)."""
    pair = b"\x0a" + sized(DIGEST.encode()) + b"\x12" + sized(digest.encode())
    return b"\x72" + sized(pair)


def sized(data):
    """Return bytes, fewer than 128, behind their number."""
    return bytes([len(data)]) + data
