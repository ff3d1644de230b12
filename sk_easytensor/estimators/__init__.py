"""The scikit-learn estimators."""

from sk_easytensor.estimators.classifier import EasyTensorClassifier
from sk_easytensor.estimators.regressor import EasyTensorRegressor

__all__ = ["EasyTensorClassifier", "EasyTensorRegressor"]
