"""The scikit-learn estimators."""

from typing import TYPE_CHECKING

from sk_easytensor._utils.lazy import lazy_names

if TYPE_CHECKING:
    from sk_easytensor.embedder.estimator import EasyTensorEmbedder
    from sk_easytensor.embedder.updates import EmbeddingState
    from sk_easytensor.estimators.classifier import EasyTensorClassifier
    from sk_easytensor.estimators.multi_task import EasyTensorMultiTask
    from sk_easytensor.estimators.regressor import EasyTensorRegressor
    from sk_easytensor.two_tower.estimator import EasyTensorTwoTower
    from sk_easytensor.two_tower.tower import Tower

__all__ = [
    "EasyTensorClassifier",
    "EasyTensorEmbedder",
    "EasyTensorMultiTask",
    "EasyTensorRegressor",
    "EasyTensorTwoTower",
    "EmbeddingState",
    "Tower",
]

__getattr__, __dir__ = lazy_names(
    "sk_easytensor",
    {
        ".embedder.estimator": ["EasyTensorEmbedder"],
        ".embedder.updates": ["EmbeddingState"],
        ".estimators.classifier": ["EasyTensorClassifier"],
        ".estimators.multi_task": ["EasyTensorMultiTask"],
        ".estimators.regressor": ["EasyTensorRegressor"],
        ".two_tower.estimator": ["EasyTensorTwoTower"],
        ".two_tower.tower": ["Tower"],
    },
    module=__name__,
)
