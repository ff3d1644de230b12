"""scikit-learn's own checks: all of them, none expected to fail, none skipped by us."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_easytensor import EasyTensorClassifier, EasyTensorRegressor, TableEncoder


@parametrize_with_checks([EasyTensorClassifier(), EasyTensorRegressor(), TableEncoder()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_scikit_learn_check(estimator, check):
    # Some checks leave the random state open.
    np.random.seed(0)  # noqa: NPY002
    check(estimator)
