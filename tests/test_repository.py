import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sk_easytensor

ROOT = Path(__file__).parent.parent
OPTIONAL = [
    "faiss",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "onnx",
    "onnxruntime",
    "polars",
    "ray",
    "sentence_transformers",
    "tensorrt",
    "tensorrt_rtx",
    "transformers",
    "usearch",
]


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_import_loads_no_optional_package():
    script = f"import sys, sk_easytensor; print(*sorted(set({OPTIONAL}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_version(pyproject):
    assert sk_easytensor.__version__ == pyproject["project"]["version"]


def test_package_data_is_declared(pyproject):
    declared = set()
    for package, patterns in pyproject["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            files = list(folder.glob(pattern))
            assert files, f"{package}: no file matches {pattern}"
            declared.update(files)
    present = {
        path
        for path in (ROOT / "sk_easytensor").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert present == declared


def test_constraints_are_exact_and_portable():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in lines
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")
    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_constraints_install_no_cuda():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "nvidia" not in text


def test_constraints_cover_dependencies(pyproject):
    def normalise(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalise(line.partition("==")[0]) for line in lines}
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["test"], *extras["bench"], *extras["docs"]]
    names = {
        normalise(re.match(r"[A-Za-z0-9._-]+", requirement)[0])
        for requirement in required
        if "!=" not in requirement
    }
    assert names <= pinned


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")],
    ids=lambda path: path.name,
)
def test_prose_has_lines_of_at_most_100_columns(path):
    text = re.sub(
        r"^(```|<!--).*?(```|-->)$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    long = [
        line
        for line in text.splitlines()
        # Rows of tables and what has no space to break at are as long as they are.
        if len(line) > 100 and not line.startswith("|") and " " in line[:100].strip()
    ]
    assert long == []
