"""Copy the documentation of shared parameters and attributes from one class to others."""

import re
from inspect import cleandoc

__all__ = [
    "documented_like",
]

SECTIONS = ("Parameters", "Attributes")


def documented_like(source):
    """Return a class decorator that copies entries of the docstring of another class.

    In the sections "Parameters" and "Attributes" of the decorated class, an entry of names without
    a type, whose text is "As in :class:`Source`.", is replaced by the entries of these names in the
    docstring of the source.

    Parameters
    ----------
    source : type
        Class whose docstring documents the names, in numpydoc format.

    Returns
    -------
    callable
        Decorator that changes the docstring of a class and returns the class.

    Raises
    ------
    KeyError
        If the source does not document a name.
    """
    pattern = re.compile(rf"\s+As in :class:`~?(\w+\.)*{source.__name__}`\.")

    def decorate(kind):
        # With -OO there are no docstrings.
        if kind.__doc__ and source.__doc__:
            kind.__doc__ = _with_entries(cleandoc(kind.__doc__), _entries(source), pattern)
        return kind

    return decorate


def _with_entries(text, entries, pattern):
    """Return a docstring in which references are replaced by the entries of the source."""
    lines = []
    for section, header, body in _parts(text):
        names = header.split(", ")
        if section in SECTIONS and " : " not in header and pattern.fullmatch("\n".join(body)):
            for name in names:
                lines += entries[section][name]
        else:
            lines += [header, *body]
    return "\n".join(lines)


def _entries(source):
    """Return the lines of the entry of each name, by section."""
    entries = {section: {} for section in SECTIONS}
    for section, header, body in _parts(cleandoc(source.__doc__)):
        if section in SECTIONS and " : " in header:
            names, kind = header.split(" : ", 1)
            for name in names.split(", "):
                entries[section][name] = [f"{name} : {kind}", *body]
    return entries


def _parts(text):
    """Yield the section, the text and the indented lines below each line that is not indented."""
    lines, section = text.split("\n"), ""
    starts = [start for start, line in enumerate(lines) if line[:1].strip()]
    for start, end in zip([0, *starts[1:]], [*starts[1:], len(lines)], strict=True):
        if end < len(lines) and re.fullmatch("-+", lines[end]):
            section = lines[start]
        body = lines[start + 1 : end]
        rest = []
        while body and not body[-1].strip():
            rest.append(body.pop())
        yield section, lines[start], body
        for line in reversed(rest):
            yield "", line, []
