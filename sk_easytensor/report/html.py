"""The page: escaped text, tables, sections, and a file that is there whole or not at all."""

from __future__ import annotations

import math
from html import escape

__all__ = [
    "LeftOut",
    "caption",
    "number",
    "page",
    "section",
    "table",
]


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 60rem;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .5rem 0; }
.report-table td, .report-table th { text-align: left; vertical-align: top;
       padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #e4e4e4; }
.report-table td { max-width: 26rem; overflow-wrap: break-word; }
.report-table th { color: #555; font-weight: 600; white-space: nowrap; }
.left-out { color: #777; font-style: italic; }
.caption { color: #555; margin: .2rem 0; }
svg.plot { max-width: 100%; height: auto; }
svg.plot text { font: 12px system-ui, sans-serif; fill: #444; }
nav a { margin-right: 1rem; color: #2a6496; }
"""


class LeftOut(Exception):
    """Says why a section does not apply to a model."""


def number(value):
    """Show a number with four digits."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def table(header, rows):
    """Return a table of text, all of it escaped.

    Parameters
    ----------
    header : list of str
        Names of the columns.
    rows : iterable of sequence
        Cells, shown as strings.
    """
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<table class="report-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def caption(text):
    """Return a line of text."""
    return f'<p class="caption">{escape(text)}</p>'


def section(name, title, make, *arguments):
    """Return a section, or the sentence why it is left out.

    Parameters
    ----------
    name : str
        The section's ``id``.
    title : str
        Its heading.
    make : callable
        Called with the arguments; returns HTML or raises :class:`LeftOut`.
    """
    try:
        body = make(*arguments)
    except LeftOut as reason:
        body = f'<p class="left-out">Left out: {escape(str(reason))}.</p>'
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>\n'


def page(title, subtitle, links, body):
    """Return a page that asks for nothing outside itself."""
    menu = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        # No browser may ask for anything or run a script, whatever the strings of the data are.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        # Otherwise a browser asks the server for an icon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{caption(subtitle)}\n<nav>{menu}</nav>\n{body}</body></html>\n"
    )
