"""The Python code of a Markdown document, to be executed as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

PIECE = re.compile(
    r"^## (?P<heading>[^\n]*)$"
    # What a reader has before the code below it: `<!-- python`, code, `-->`.
    r"|^<!-- python(?P<marks>[ \w]*)\n(?P<hidden>.*?)^-->"
    r"|^```(?P<language>\w+)[ \t]*\n(?P<block>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Section:
    """The code of a section, executed in one namespace.

    Parameters
    ----------
    path : Path
        Of the document.
    heading : str
        Of the section.
    """

    def __init__(self, path, heading):
        self.path, self.name = path, f"{path.stem}: {heading}"
        self.pieces, self.marks, self.blocks = [], set(), 0

    def run(self, substitutes=()):
        """Execute the code; errors have the line of the document in their traceback."""
        namespace = {"__name__": f"__{self.path.stem}__"}
        for line, source in self.pieces:
            for text, other in substitutes:
                source = source.replace(text, other)
            # Line numbers are those of the document.
            exec(compile("\n" * line + source, str(self.path), "exec"), namespace)


def sections(document):
    """Return the sections of a document that have Python code.

    Invisible comments that begin with ``<!-- python`` are executed as well, those before the first
    section in each of them. Words after ``python`` mark the section.
    """
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    found = [Section(path, "")]
    for match in PIECE.finditer(text):
        if match["heading"]:
            found.append(Section(path, match["heading"]))
            found[-1].pieces.extend(found[0].pieces)
            continue
        code = match["hidden"] if match["hidden"] is not None else match["block"]
        if match["language"] in (None, "python"):
            start = match.start("hidden" if match["hidden"] is not None else "block")
            found[-1].pieces.append((text.count("\n", 0, start), code))
            found[-1].marks.update((match["marks"] or "").split())
            found[-1].blocks += match["hidden"] is None
    return [section for section in found if section.blocks]
