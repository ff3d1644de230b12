"""The names that users import; a change of them is deliberate."""

import importlib
import inspect
import subprocess
import sys

import pytest

import sk_easytensor

MODULES = {
    "sk_easytensor": sk_easytensor.__all__,
    "sk_easytensor.backends": ["Backend", "LocalBackend", "RayBackend", "resolve_backend"],
    "sk_easytensor.blocks": ["BlockModule", "register_block", "unregister_block"],
    "sk_easytensor.compose": ["BlockParametersMixin", "TableEncoder", "select_columns"],
    "sk_easytensor.datasets": ["load_clothing_reviews", "load_flights", "make_interactions"],
    "sk_easytensor.events": ["collect_sequences"],
    "sk_easytensor.inference": [
        "OnnxPredictor",
        "TensorRTPredictor",
        "build_engine",
        "encoded_arrays",
        "export_onnx",
        "load",
    ],
    "sk_easytensor.inspection": ["PermutationImportanceDisplay", "permutation_importance"],
    "sk_easytensor.networks": ["MLP", "Sum", "TabM"],
    "sk_easytensor.ranking": ["ndcg_at_k", "ranking_report", "recall_at_k"],
    "sk_easytensor.retrieval": ["ApproximateIndex", "top_k"],
    "sk_easytensor.safe_loading": ["trusted_types"],
    "sk_easytensor.serving": ["Limits", "make_app", "serve"],
    "sk_easytensor.testing": ["check_block", "registered_block"],
    "sk_easytensor.tracking": ["MLflowTracker", "upload"],
    "sk_easytensor.trees": ["BoostedTrees"],
}
"""For each public module the names that README and guide use."""

NAMES = [
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
WITHOUT_PARAMETERS = ["StopTraining", "SpelledValuesWarning"]
EXTRAS = [
    "ray",
    "mlflow",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "fastapi",
    "usearch",
    "faiss",
    "torch",
]


def test_names_of_the_package():
    assert sorted(sk_easytensor.__all__) == sorted(NAMES)


@pytest.mark.parametrize("module", MODULES)
def test_names_of_modules(module):
    found = importlib.import_module(module)
    for name in MODULES[module]:
        assert getattr(found, name).__doc__, name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_PARAMETERS])
def test_docstrings_have_an_example(name):
    text = inspect.getdoc(getattr(sk_easytensor, name))
    assert "Parameters\n----------" in text or name in ("Block", "BlockModule")
    assert "Examples\n--------" in text or name == "Block"


def test_public_modules_are_attributes_after_a_plain_import():
    """In a fresh process, which has imported none of them, nor any package of the extras."""
    script = f"""
import sys
import sk_easytensor
assert not set({EXTRAS!r}) & set(sys.modules)
for name in {list(MODULES)!r}[1:]:
    part = name.split(".")[1]
    assert part in dir(sk_easytensor)
    getattr(sk_easytensor, part)
assert not set({EXTRAS!r}) - {{"torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
