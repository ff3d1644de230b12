"""Which columns a fitted model relies on, over many rows and for one: numbers, and a plot."""

from sk_easytensor.inspection._display import PermutationImportanceDisplay
from sk_easytensor.inspection._encoded import EncodedModel, GivenOutputs
from sk_easytensor.inspection._explanation import Explanation
from sk_easytensor.inspection._importance import permutation_importance
from sk_easytensor.inspection._sample import ImportanceSample, Inspection

__all__ = [
    "EncodedModel",
    "Explanation",
    "GivenOutputs",
    "ImportanceSample",
    "Inspection",
    "PermutationImportanceDisplay",
    "permutation_importance",
]
