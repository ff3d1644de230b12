"""scikit-learn estimators for tables of numbers, categories, dates, texts and sequences."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor._utils.validation import SpelledValuesWarning
    from sk_easytensor.blocks import (
        Block,
        BlockModule,
        CategoryBlock,
        CategorySequenceBlock,
        DatetimeBlock,
        EventSequenceBlock,
        NumericBlock,
        NumericSequenceBlock,
        PretrainedBlock,
        SparseBlock,
        TextBlock,
        VectorBlock,
        register_block,
    )
    from sk_easytensor.compose import TableEncoder
    from sk_easytensor.estimators import (
        EasyTensorClassifier,
        EasyTensorEmbedder,
        EasyTensorMultiTask,
        EasyTensorRegressor,
        EasyTensorTwoTower,
    )
    from sk_easytensor.networks import MLP, Sum, TabM
    from sk_easytensor.training.net import StopTraining
    from sk_easytensor.trees import BoostedTrees

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Block",
    "BlockModule",
    "BoostedTrees",
    "CategoryBlock",
    "CategorySequenceBlock",
    "DatetimeBlock",
    "EasyTensorClassifier",
    "EasyTensorEmbedder",
    "EasyTensorMultiTask",
    "EasyTensorRegressor",
    "EasyTensorTwoTower",
    "EventSequenceBlock",
    "NumericBlock",
    "NumericSequenceBlock",
    "PretrainedBlock",
    "SparseBlock",
    "SpelledValuesWarning",
    "StopTraining",
    "Sum",
    "TabM",
    "TableEncoder",
    "TextBlock",
    "VectorBlock",
    "register_block",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "._utils.validation": ["SpelledValuesWarning"],
        ".blocks": [name for name in __all__ if "block" in name.lower()],
        ".compose": ["TableEncoder"],
        ".estimators": [name for name in __all__ if name.startswith("EasyTensor")],
        ".networks": ["MLP", "Sum", "TabM"],
        ".training.net": ["StopTraining"],
        ".trees": ["BoostedTrees"],
    },
    subpackages=(
        "backends",
        "blocks",
        "compose",
        "datasets",
        "estimators",
        "events",
        "inference",
        "inspection",
        "losses",
        "metrics",
        "networks",
        "ranking",
        "report",
        "retrieval",
        "safe_loading",
        "search_spaces",
        "serving",
        "testing",
        "tracking",
        "trees",
    ),
)
