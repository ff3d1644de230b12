"""scikit-learn's checks that apply to estimators which cannot be fitted on a matrix of numbers.

Of all checks, those that fit an estimator pass it a single such matrix. Two towers need to be told
which columns are the user's and which the item's, and embedders need sequences, so that both refuse
it. What does not fit, or has nothing to do with the data, applies.
"""

from sklearn.utils import estimator_checks

__all__ = ["CHECKS"]

CHECKS = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_estimators_unfitted,
    estimator_checks.check_mixin_order,
]
