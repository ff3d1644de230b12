"""scikit-learn estimators for tables of numbers, categories, dates, texts and sequences."""

from sk_easytensor.blocks import (
    Block,
    CategoryBlock,
    CategorySequenceBlock,
    DatetimeBlock,
    EventSequenceBlock,
    NumericBlock,
    NumericSequenceBlock,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.compose import TableEncoder
from sk_easytensor.estimators import (
    EasyTensorClassifier,
    EasyTensorRegressor,
    EasyTensorTwoTower,
)
from sk_easytensor.networks import MLP, Sum, TabM

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Block",
    "CategoryBlock",
    "CategorySequenceBlock",
    "DatetimeBlock",
    "EasyTensorClassifier",
    "EasyTensorRegressor",
    "EasyTensorTwoTower",
    "EventSequenceBlock",
    "NumericBlock",
    "NumericSequenceBlock",
    "Sum",
    "TabM",
    "TableEncoder",
    "TextBlock",
    "VectorBlock",
]
