"""Encoded rows as an exported network takes them: dense arrays and lengths of lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sk_easytensor.tensors import Padded, Ragged

__all__ = [
    "EncodedInputs",
]


ROWS, LONGEST = 5, 7
"""Sizes of the example that is traced: unlike, so that one is not taken for the other."""


@dataclass
class EncodedInput:
    """One input of an exported network.

    Attributes
    ----------
    name : str
        Of the input in the graph.
    block, entry : str
        What it is of the encoding.
    example : torch.Tensor
        Rows of the right shape.
    dynamic : dict of {int: str}
        Which dimensions vary, and what they are called.
    lengths : str or None
        Name of the input that holds the lengths of these lists.
    """

    name: str
    block: str
    entry: str
    example: torch.Tensor
    dynamic: dict
    lengths: str | None = None


class EncodedInputs:
    """The inputs that the encodings of fitted blocks are.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted.
    prefix : str, default=""
        What the names begin with.
    """

    def __init__(self, blocks, prefix=""):
        self.blocks = blocks
        self.inputs = []
        for block_name, block in blocks.items():
            encoding = block.example(ROWS)
            groups = {id(e.offsets) for e in encoding.values() if isinstance(e, Ragged)}
            known = {}
            for entry, value in encoding.items():
                name = f"{prefix}{block_name}.{entry}"
                if not isinstance(value, Ragged):
                    example = torch.zeros_like(value)
                    self.inputs.append(EncodedInput(name, block_name, entry, example, {0: "rows"}))
                    continue
                group = id(value.offsets)
                alone = len(groups) == 1
                lengths = f"{prefix}{block_name}.lengths" if alone else f"{name}.lengths"
                longest = lengths.removesuffix(".lengths") + ".longest"
                shape = (ROWS, value.n_columns, LONGEST, *value.values.shape[1:])
                example = torch.zeros(shape, dtype=value.values.dtype)
                dynamic = {0: "rows", 2: longest}
                lengths = known.get(group, lengths)
                self.inputs.append(EncodedInput(name, block_name, entry, example, dynamic, lengths))
                if group not in known:
                    known[group] = lengths
                    example = torch.arange(ROWS * value.n_columns).reshape(ROWS, -1) % LONGEST
                    self.inputs.append(EncodedInput(lengths, block_name, "", example, {0: "rows"}))

    @property
    def names(self):
        """Names of the inputs, in their order."""
        return [each.name for each in self.inputs]

    def frame(self, tensors):
        """Return what a network reads of tensors in the order of :attr:`names`."""
        given = dict(zip(self.names, tensors, strict=True))
        frame = {}
        for each in self.inputs:
            if not each.entry:
                continue
            value = given[each.name]
            if each.lengths is not None:
                value = Padded(value, given[each.lengths])
            frame.setdefault(each.block, {})[each.entry] = value
        return frame

    def arrays(self, frame):
        """Return encoded rows as the arrays that the inputs take.

        Parameters
        ----------
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        dict of {str: ndarray}
        """
        arrays = {}
        for each in self.inputs:
            if not each.entry:
                continue
            value = frame[each.block][each.entry]
            if each.lengths is not None:
                padded = value.to_padded()
                if padded.shape[1] == 0:
                    padded = padded.new_zeros(len(padded), 1, *padded.shape[2:])
                shape = (len(value), value.n_columns)
                arrays[each.lengths] = value.lengths.reshape(shape).cpu().numpy()
                value = padded.unflatten(0, shape)
            arrays[each.name] = np.ascontiguousarray(value.cpu().numpy())
        return arrays
