"""Signatures that users call have type hints, which type checkers can resolve."""

import ast
import inspect
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import sk_easytensor
from sk_easytensor import (
    EasyTensorClassifier,
    EasyTensorEmbedder,
    EasyTensorMultiTask,
    EasyTensorRegressor,
    EasyTensorTwoTower,
)
from sk_easytensor._utils import typing as aliases
from sk_easytensor.estimators import Tower

ROOT = Path(sk_easytensor.__file__).parent
KINDS = [
    EasyTensorClassifier,
    EasyTensorRegressor,
    EasyTensorMultiTask,
    EasyTensorTwoTower,
    EasyTensorEmbedder,
    Tower,
]
METHODS = ["__init__", "fit", "partial_fit", "predict", "predict_proba", "transform", "score"]
METHODS += ["decision_function", "recommend", "rank_users", "collect", "explain", "embed", "report"]
METHODS += ["to_onnx", "to_tensorrt"]
SCIKIT_LEARN = {
    ("EasyTensorClassifier", "score"),
}
"""Methods that are inherited from scikit-learn, which has no type hints."""

SIGNATURES = [
    pytest.param(kind, name, id=f"{kind.__name__}.{name}")
    for kind in KINDS
    for name in METHODS
    if inspect.getattr_static(kind, name, None) is not None
    and (kind.__name__, name) not in SCIKIT_LEARN
]


def guarded_names(module):
    """Return the names of a module, and those that it imports for type checkers only."""
    names = dict(vars(module))
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__name__, "exec"), names)
    return names


class Aliases(dict):
    """The types that aliases name, which are strings."""

    def __missing__(self, name):
        if name not in aliases.__all__:
            raise KeyError(name)
        alias = getattr(aliases, name)
        return eval(alias, ALIAS_NAMES, self) if isinstance(alias, str) else alias


ALIAS_NAMES = guarded_names(aliases)


def resolved(hint, names):
    """Return the type that a hint names."""
    return eval(hint, names, Aliases())


def accepts(hint, value):
    """Return whether a value is of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, (int, float))
    if hint is typing.Any or getattr(hint, "_is_protocol", False):
        return hint is typing.Any
    return isinstance(value, origin or hint)


@pytest.mark.parametrize(("kind", "name"), SIGNATURES)
def test_hints_are_complete_and_true_of_defaults(kind, name):
    method = inspect.getattr_static(kind, name)
    method = inspect.unwrap(getattr(method, "fn", method))
    names = guarded_names(sys.modules[method.__module__])
    signature = inspect.signature(method)
    assert resolved(signature.return_annotation, names) is not typing.Any
    for parameter in list(signature.parameters.values())[1:]:
        assert parameter.annotation is not parameter.empty, parameter
        hint = resolved(parameter.annotation, names)
        if parameter.default is not parameter.empty:
            assert accepts(hint, parameter.default), parameter


def test_signatures_of_estimators_keep_their_hints():
    hints = inspect.signature(EasyTensorClassifier).parameters
    assert hints["batch_size"].annotation == "int | None"
    assert inspect.signature(EasyTensorRegressor.fit).return_annotation == "Self"


def test_aliases_import_no_other_library():
    code = (
        "import sys, sk_easytensor._utils.typing\n"
        "print(sorted({'numpy', 'pandas', 'pyarrow', 'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_is_marked_as_typed():
    assert (ROOT / "py.typed").read_bytes() == b""
