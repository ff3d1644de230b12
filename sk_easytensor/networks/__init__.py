"""Trunks, heads and the network they make with the blocks: plain torch modules."""

from sk_easytensor.networks.trunks import MLP, Sum, TabM

__all__ = ["MLP", "Sum", "TabM"]
