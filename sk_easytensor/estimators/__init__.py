"""The scikit-learn estimators."""

from sk_easytensor.estimators._tower import Tower
from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.embedder import EasyTensorEmbedder
from sk_easytensor.estimators.multi_task import EasyTensorMultiTask
from sk_easytensor.estimators.regressor import EasyTensorRegressor
from sk_easytensor.estimators.two_tower import EasyTensorTwoTower

__all__ = [
    "EasyTensorClassifier",
    "EasyTensorEmbedder",
    "EasyTensorMultiTask",
    "EasyTensorRegressor",
    "EasyTensorTwoTower",
    "Tower",
]
