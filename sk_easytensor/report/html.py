"""HTML of the report: escaped text, tables, sections and the page."""

from __future__ import annotations

import math
from html import escape

__all__ = [
    "SectionNotApplicable",
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


class SectionNotApplicable(Exception):
    """Raised when a section does not apply to a model; the message says why."""


def number(value):
    """Return a number as text, with four significant digits unless it is an integer."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def table(header, rows):
    """Return an HTML table, with all text escaped.

    Parameters
    ----------
    header : list of str
        Names of the columns.
    rows : iterable of sequence
        Cells of each row, which are converted to strings.
    """
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<table class="report-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def caption(text):
    """Return a line of text as a paragraph, escaped."""
    return f'<p class="caption">{escape(text)}</p>'


def section(name, title, render, *arguments):
    """Return a section with its content, or with the reason why it is left out.

    Parameters
    ----------
    name : str
        ``id`` of the section.
    title : str
        Heading of the section.
    render : callable
        Function of the arguments that returns the content as HTML or raises
        :class:`SectionNotApplicable`.
    *arguments : object
        Arguments of ``render``.
    """
    try:
        body = render(*arguments)
    except SectionNotApplicable as reason:
        body = f'<p class="left-out">Left out: {escape(str(reason))}.</p>'
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>\n'


def page(title, subtitle, links, body):
    """Return a page that loads nothing from elsewhere."""
    menu = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        # Browsers must not load anything or run scripts, whatever the strings of the data contain.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        # Otherwise browsers request an icon from the server.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{caption(subtitle)}\n<nav>{menu}</nav>\n{body}</body></html>\n"
    )
