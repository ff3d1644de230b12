"""scikit-learn's own checks: all of them, none expected to fail, none skipped by us."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_easytensor import BoostedTrees, EasyTensorClassifier, EasyTensorRegressor, TableEncoder

# The checks fit several hundred times. scikit-learn gives its own estimators few iterations, too.
FEW = {"max_epochs": 10, "trees": BoostedTrees(max_iter=50)}


@parametrize_with_checks([EasyTensorClassifier(**FEW), EasyTensorRegressor(**FEW), TableEncoder()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_scikit_learn_check(estimator, check):
    # Some checks leave the random state open.
    np.random.seed(0)  # noqa: NPY002
    check(estimator)
