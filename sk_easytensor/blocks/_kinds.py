"""The blocks that are chosen automatically."""

from sk_easytensor.blocks.category import CategoryBlock
from sk_easytensor.blocks.category_sequence import CategorySequenceBlock
from sk_easytensor.blocks.datetime import DatetimeBlock
from sk_easytensor.blocks.event_sequence import EventSequenceBlock
from sk_easytensor.blocks.numeric import NumericBlock
from sk_easytensor.blocks.numeric_sequence import NumericSequenceBlock
from sk_easytensor.blocks.sparse import SparseBlock
from sk_easytensor.blocks.text import TextBlock
from sk_easytensor.blocks.vector import VectorBlock

BLOCKS = [
    SparseBlock,
    VectorBlock,
    EventSequenceBlock,
    NumericSequenceBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    TextBlock,
    CategoryBlock,
    NumericBlock,
]
"""Blocks that are chosen automatically; the first whose ``groups`` names a column takes it."""
