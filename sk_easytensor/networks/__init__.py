"""Torch modules: trunks, heads, sequence encoders, and the network of blocks, trunk and head."""

from sk_easytensor.networks.block_module import BlockModule
from sk_easytensor.networks.trunks import MLP, Sum, TabM

__all__ = ["MLP", "BlockModule", "Sum", "TabM"]
