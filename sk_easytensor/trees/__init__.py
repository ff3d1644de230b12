"""Boosted trees that are blended with the network: fitted by scikit-learn, evaluated by torch."""

from sk_easytensor.trees.boosting import BoostedTrees

__all__ = ["BoostedTrees"]
