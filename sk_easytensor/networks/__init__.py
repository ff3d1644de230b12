"""Trunks, heads and the network they make with the blocks: plain torch modules."""

from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.trunks import MLP, Sum, TabM

__all__ = ["MLP", "BlockModule", "Sum", "TabM"]
