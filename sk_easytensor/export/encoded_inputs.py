"""Encoded rows in the form of an exported network's inputs: dense arrays and lengths of lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sk_easytensor.tensors import Padded, Ragged

__all__ = [
    "EncodedInputs",
]


ROWS, LONGEST = 5, 7
"""Rows and list lengths of the traced example. They differ, so that tracing separates them."""


@dataclass
class EncodedInput:
    """One input of an exported network.

    Attributes
    ----------
    name : str
        Name of the input in the graph.
    block, entry : str
        Block, and entry of its encoding. The entry of an input with lengths of lists is empty.
    example : torch.Tensor
        Example with the dtype and number of dimensions of the input.
    dynamic : dict of {int: str}
        Names of the dimensions whose sizes vary.
    lengths : str or None
        Name of the input with the lengths of the lists; None if the input has no lists.
    """

    name: str
    block: str
    entry: str
    example: torch.Tensor
    dynamic: dict
    lengths: str | None = None


class EncodedInputs:
    """Inputs of an exported network: the encodings of fitted blocks.

    Parameters
    ----------
    blocks : dict of {str: Block}
        Fitted blocks by name.
    prefix : str, default=""
        Prefix of the inputs' names.

    Attributes
    ----------
    inputs : list of EncodedInput
        Inputs in the order of the network's arguments.
    """

    def __init__(self, blocks, prefix=""):
        self.blocks = blocks
        self.inputs = []
        for block_name, block in blocks.items():
            encoding = block.example(ROWS)
            groups = {id(e.offsets) for e in encoding.values() if isinstance(e, Ragged)}
            lengths_of = {}
            for entry, value in encoding.items():
                name = f"{prefix}{block_name}.{entry}"
                if not isinstance(value, Ragged):
                    example = torch.zeros_like(value)
                    self.inputs.append(EncodedInput(name, block_name, entry, example, {0: "rows"}))
                    continue
                group = id(value.offsets)
                lengths = f"{name}.lengths"
                if len(groups) == 1:
                    lengths = f"{prefix}{block_name}.lengths"
                longest = lengths.removesuffix(".lengths") + ".longest"
                shape = (ROWS, value.n_columns, LONGEST, *value.values.shape[1:])
                example = torch.zeros(shape, dtype=value.values.dtype)
                dynamic = {0: "rows", 2: longest}
                lengths = lengths_of.get(group, lengths)
                self.inputs.append(EncodedInput(name, block_name, entry, example, dynamic, lengths))
                if group not in lengths_of:
                    lengths_of[group] = lengths
                    example = torch.arange(ROWS * value.n_columns).reshape(ROWS, -1) % LONGEST
                    self.inputs.append(EncodedInput(lengths, block_name, "", example, {0: "rows"}))

    @property
    def names(self):
        """Names of the inputs, in their order."""
        return [input_.name for input_ in self.inputs]

    def frame(self, tensors):
        """Return the encoding, by block and entry, for tensors in the order of :attr:`names`."""
        by_name = dict(zip(self.names, tensors, strict=True))
        frame = {}
        for input_ in self.inputs:
            if not input_.entry:
                continue
            value = by_name[input_.name]
            if input_.lengths is not None:
                value = Padded(value, by_name[input_.lengths])
            frame.setdefault(input_.block, {})[input_.entry] = value
        return frame

    def arrays(self, frame):
        """Return encoded rows as arrays for the inputs.

        Parameters
        ----------
        frame : TensorFrame
            Encoded rows.

        Returns
        -------
        dict of {str: ndarray}
            Arrays by name of the input.
        """
        arrays = {}
        for input_ in self.inputs:
            if not input_.entry:
                continue
            value = frame[input_.block][input_.entry]
            if input_.lengths is not None:
                padded = value.to_padded()
                if padded.shape[1] == 0:
                    padded = padded.new_zeros(len(padded), 1, *padded.shape[2:])
                shape = (len(value), value.n_columns)
                arrays[input_.lengths] = value.lengths.reshape(shape).cpu().numpy()
                value = padded.unflatten(0, shape)
            arrays[input_.name] = np.ascontiguousarray(value.cpu().numpy())
        return arrays
