"""Boosted trees beside the network: grown by scikit-learn, read by torch."""

from sk_easytensor.trees.boosting import BoostedTrees

__all__ = ["BoostedTrees"]
