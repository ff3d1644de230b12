"""Imports between the parts of the package go down, and never in a circle."""

import ast
import re
from pathlib import Path

import pytest

import sk_easytensor

ROOT = Path(sk_easytensor.__file__).parent
LAYERS = [
    ["_utils"],
    ["data", "safe_loading"],
    ["events"],
    ["tensors"],
    ["executor", "losses", "onnx"],
    ["networks"],
    ["trees"],
    ["blocks"],
    ["compose", "ranking", "retrieval"],
    ["training"],
    ["backends"],
    ["inspection"],
    ["metrics"],
    ["export"],
    ["report"],
    ["tracking"],
    ["estimators"],
    ["two_tower"],
    ["embedder"],
    ["inference", "search_spaces", "serving", "datasets", "testing"],
]
"""Parts of the package from the lowest to the highest, as docs/architecture.md draws them."""
RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FACADES = {"sk_easytensor", "sk_easytensor.inference", "sk_easytensor.estimators"}
"""Packages that only give names of others a shorter path, and import them when they are used."""


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def for_type_checkers(tree):
    """Return the nodes that are only read by type checkers."""
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and is_guard(n.test)]
    return {id(node) for branch in guarded for node in ast.walk(branch)}


def is_guard(test):
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imported(name):
    """Return the modules of the package that a module imports, within functions too."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    unread, found = for_type_checkers(tree), set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {node.module}
    return {other for other in found if other in MODULES and other not in FACADES} - {name}


IMPORTS = {name: imported(name) for name in MODULES if name not in FACADES}


def part(name):
    return name.split(".")[1]


def circles():
    """Return the groups of modules that import one another, by Tarjan's algorithm."""
    order, lowest, stack, found = {}, {}, [], []

    def visit(name):
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in IMPORTS.get(name, ()):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            place = stack.index(name)
            group = stack[place:]
            del stack[place:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in IMPORTS:
        if name not in order:
            visit(name)
    return found


def test_each_part_has_a_layer():
    assert {part(name) for name in IMPORTS} <= RANKS.keys()


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_go_down(name):
    own = RANKS[part(name)]
    upward = [other for other in IMPORTS[name] if RANKS[part(other)] > own]
    sideways = [
        other for other in IMPORTS[name] if RANKS[part(other)] == own and part(other) != part(name)
    ]
    assert not upward
    assert not sideways


def test_layers_are_those_of_the_documentation():
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.partition("```text\n")[2].partition("```")[0].splitlines()
    drawn = [word for line in reversed(lines) for word in re.split(r"\s{2,}", line)[:3]]
    ranks = [RANKS[word] for word in drawn if word in RANKS]
    assert ranks == sorted(ranks)
    assert len(ranks) == len(RANKS) - len({"safe_loading", "inference"})


def test_no_modules_import_one_another():
    n_imports = sum(map(len, IMPORTS.values()))
    print(f"{len(MODULES)} modules, {n_imports} imports, {len(circles())} circles")
    assert circles() == []


RETIRED = re.compile(
    r"\b(judg\w*|gone on|to be had|heard|mailbox|dictation|notebook|stretch(es)?|torn|"
    r"told_by_others|going_on|Records (of|in) memory|FittedPart|LeftRows|HeldChunk|EncodedRows|"
    r"InPieces|Alone)\b"
)
"""Words that describe no concept of the field, with the ones to use in docs/architecture.md."""


@pytest.mark.parametrize("name", MODULES)
def test_no_word_is_retired(name):
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if RETIRED.search(line)] == []


def test_module_docstrings_name_a_subject():
    first = {name: ast.get_docstring(ast.parse(path.read_text())) for name, path in MODULES.items()}
    assert [name for name, text in first.items() if not text or text.startswith("What ")] == []
