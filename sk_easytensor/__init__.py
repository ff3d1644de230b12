"""scikit-learn estimators for tables of numbers, categories, dates, texts and vectors."""

from sk_easytensor.blocks import (
    Block,
    CategoryBlock,
    DatetimeBlock,
    NumericBlock,
    TextBlock,
    VectorBlock,
)
from sk_easytensor.compose import TableEncoder
from sk_easytensor.estimators import EasyTensorClassifier, EasyTensorRegressor
from sk_easytensor.networks import MLP, TabM

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Block",
    "CategoryBlock",
    "DatetimeBlock",
    "EasyTensorClassifier",
    "EasyTensorRegressor",
    "NumericBlock",
    "TabM",
    "TableEncoder",
    "TextBlock",
    "VectorBlock",
]
