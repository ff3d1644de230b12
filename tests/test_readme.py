"""Every python block of the README runs as it stands, each in a namespace of its own."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks():
    text = README.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        yield pytest.param(line, match[1], id=f"line{line + 1}")


@pytest.mark.parametrize(("line", "source"), list(blocks()))
def test_readme_block(line, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * line + source, str(README), "exec")
    exec(code, {"__name__": "__readme__"})
