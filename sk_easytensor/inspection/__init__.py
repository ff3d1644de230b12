"""Importances of columns over many rows, their plot, and contributions of columns to one row."""

from sk_easytensor.inspection.encoded_model import EncodedModel, GivenOutputs
from sk_easytensor.inspection.explanation import Explanation
from sk_easytensor.inspection.importance import PermutationImportanceDisplay, permutation_importance
from sk_easytensor.inspection.sample import ImportanceSample, Inspection

__all__ = [
    "EncodedModel",
    "Explanation",
    "GivenOutputs",
    "ImportanceSample",
    "Inspection",
    "PermutationImportanceDisplay",
    "permutation_importance",
]
