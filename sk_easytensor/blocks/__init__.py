"""Blocks: preprocessing and network layers of one kind of feature, in one object."""

from sk_easytensor.blocks._base import Block
from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.blocks.datetime import DatetimeBlock
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.text import TextBlock
from sk_easytensor.blocks.vector import VectorBlock

BLOCKS = [VectorBlock, DatetimeBlock, TextBlock, CategoryBlock, NumericBlock]
"""Blocks that are chosen automatically; the first whose ``detects`` says yes takes a column."""

__all__ = [
    "BLOCKS",
    "Block",
    "CategoryBlock",
    "DatetimeBlock",
    "NumericBlock",
    "TextBlock",
    "VectorBlock",
]
