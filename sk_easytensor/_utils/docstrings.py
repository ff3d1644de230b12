"""Parameters and attributes that several classes share are documented once."""

import re
from inspect import cleandoc

__all__ = [
    "documented_like",
]

SECTIONS = ("Parameters", "Attributes")


def documented_like(source):
    """Return a class decorator that fills in what another class documents.

    In the sections "Parameters" and "Attributes" of the decorated class, an entry of names without
    a type, whose text is "As in :class:`Source`.", is replaced by the entries of these names in the
    docstring of the source.

    Parameters
    ----------
    source : type
        The class that documents them, in numpydoc's format.

    Returns
    -------
    callable
        Takes a class and returns it.

    Raises
    ------
    KeyError
        If the source does not document a name.
    """
    pattern = re.compile(rf"\s+As in :class:`~?(\w+\.)*{source.__name__}`\.")

    def decorate(kind):
        # With -OO there are no docstrings.
        if kind.__doc__ and source.__doc__:
            kind.__doc__ = _filled(cleandoc(kind.__doc__), _entries(source), pattern)
        return kind

    return decorate


def _filled(text, entries, pattern):
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
    """Yield each line that is not indented, with the section it is in and the lines below it."""
    lines, section = text.split("\n"), ""
    starts = [at for at, line in enumerate(lines) if line[:1].strip()]
    for at, end in zip([0, *starts[1:]], [*starts[1:], len(lines)], strict=True):
        if end < len(lines) and re.fullmatch("-+", lines[end]):
            section = lines[at]
        body = lines[at + 1 : end]
        rest = []
        while body and not body[-1].strip():
            rest.append(body.pop())
        yield section, lines[at], body
        for line in reversed(rest):
            yield "", line, []
