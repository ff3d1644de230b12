"""Blocks: preprocessing and network layers of one kind of feature, in one object."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.blocks.base import Block
    from sk_easytensor.blocks.category import CategoryBlock
    from sk_easytensor.blocks.datetime import DatetimeBlock
    from sk_easytensor.blocks.detection import BLOCKS, register_block, unregister_block
    from sk_easytensor.blocks.event_sequence import EventSequenceBlock
    from sk_easytensor.blocks.numeric import NumericBlock
    from sk_easytensor.blocks.numeric_sequence import NumericSequenceBlock
    from sk_easytensor.blocks.pretrained import PretrainedBlock
    from sk_easytensor.blocks.sequences import CategorySequenceBlock
    from sk_easytensor.blocks.text import TextBlock
    from sk_easytensor.blocks.vector import SparseBlock, VectorBlock
    from sk_easytensor.networks.block_module import BlockModule

__all__ = [
    "BLOCKS",
    "Block",
    "BlockModule",
    "CategoryBlock",
    "CategorySequenceBlock",
    "DatetimeBlock",
    "EventSequenceBlock",
    "NumericBlock",
    "NumericSequenceBlock",
    "PretrainedBlock",
    "SparseBlock",
    "TextBlock",
    "VectorBlock",
    "register_block",
    "unregister_block",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".base": ["Block"],
        "..networks.block_module": ["BlockModule"],
        ".detection": ["BLOCKS", "register_block", "unregister_block"],
        ".category": ["CategoryBlock"],
        ".sequences": ["CategorySequenceBlock"],
        ".numeric_sequence": ["NumericSequenceBlock"],
        ".datetime": ["DatetimeBlock"],
        ".event_sequence": ["EventSequenceBlock"],
        ".numeric": ["NumericBlock"],
        ".pretrained": ["PretrainedBlock"],
        ".text": ["TextBlock"],
        ".vector": ["SparseBlock", "VectorBlock"],
    },
)
