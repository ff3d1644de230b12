"""Which columns a fitted model relies on: numbers, and a plot of them."""

from sk_easytensor.inspection._display import PermutationImportanceDisplay
from sk_easytensor.inspection._encoded import EncodedModel, GivenOutputs
from sk_easytensor.inspection._importance import permutation_importance
from sk_easytensor.inspection._sample import ImportanceSample, Inspection

__all__ = [
    "EncodedModel",
    "GivenOutputs",
    "ImportanceSample",
    "Inspection",
    "PermutationImportanceDisplay",
    "permutation_importance",
]
