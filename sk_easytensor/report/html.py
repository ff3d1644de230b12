"""HTML of the report: escaped text, tables, sections, the page, and plots as inline SVG."""

from __future__ import annotations

import math
from html import escape

import numpy as np

__all__ = [
    "SectionNotApplicable",
    "bars",
    "boxes",
    "caption",
    "dots",
    "lines",
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


WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 15, 45
COLORS = ("#2a6496", "#d9772b", "#3c8d5a", "#a3478f", "#8a7a2f", "#777777")


class Axes:
    """Axes of a plot: its frame and ticks, and the conversion of numbers to pixels.

    Parameters
    ----------
    x, y : array-like
        All numbers that are drawn, which determine the ranges of the axes.
    labels : (str, str)
        Labels of the axes.
    title : str
        Title of the drawing, for tooltips and screen readers.
    """

    def __init__(self, x, y, labels, title):
        self.x_range, self.y_range = _range(x), _range(y)
        self.title = title
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        self.parts = [_path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "#999")]
        for tick in _ticks(*self.x_range):
            x = self.x(tick)
            self.parts.append(_path([(x, bottom), (x, bottom + 4)], "#999"))
            self.parts.append(_text(x, bottom + 18, number(tick), "middle"))
        for tick in _ticks(*self.y_range):
            y = self.y(tick)
            self.parts.append(_path([(LEFT - 4, y), (LEFT, y)], "#999"))
            self.parts.append(_text(LEFT - 8, y + 4, number(tick), "end"))
        self.parts.append(_text((LEFT + right) / 2, HEIGHT - 6, labels[0], "middle"))
        middle = (TOP + bottom) / 2
        rotation = f'transform="rotate(-90 14 {middle:.1f})"'
        self.parts.append(_text(14, middle, labels[1], "middle", rotation))

    def x(self, value):
        """Return the distance of a number from the left, in pixels."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        """Return the distance of a number from the top, in pixels."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(self, x, y, color, dashed=False):
        """Add a line through the points that are finite."""
        finite = np.isfinite(x) & np.isfinite(y)
        points = [(self.x(a), self.y(b)) for a, b in zip(x[finite], y[finite], strict=True)]
        self.parts.append(_path(points, color, 'stroke-dasharray="4 4"' if dashed else ""))

    def dot(self, x, y, color):
        """Add a dot."""
        self.parts.append(
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4" fill="{color}"/>'
        )

    def add_to_legend(self, index, text, color):
        """Add a line of text to the legend."""
        self.parts.append(
            _text(WIDTH - RIGHT + 12, TOP + 14 + 18 * index, text, "start", color=color)
        )

    def svg(self):
        """Return the drawing as SVG."""
        return _svg(self.parts, HEIGHT, self.title)


def lines(curves, labels, title, marked=None):
    """Return a plot of curves whose points lie at 1, 2, 3 and so on.

    Parameters
    ----------
    curves : dict of {str: list of float}
        Values of each curve, by name.
    labels : (str, str)
        Labels of the axes.
    title : str
        Title of the drawing.
    marked : int, optional
        Position on the x-axis at which a dashed vertical line is drawn.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    longest = max(len(values) for values in arrays.values())
    axes = Axes([1, longest], np.concatenate(list(arrays.values())), labels, title)
    if marked is not None:
        axes.line(np.array([marked, marked], float), np.array(axes.y_range), "#999", dashed=True)
    for index, (name, values) in enumerate(arrays.items()):
        color = COLORS[index % len(COLORS)]
        steps = np.arange(1.0, len(values) + 1)
        axes.line(steps, values, color)
        if len(values) == 1:
            axes.dot(1, values[0], color)
        axes.add_to_legend(index, name, color)
    return axes.svg()


def dots(x, y, labels, title):
    """Return a plot of frequencies against probabilities, with the diagonal."""
    axes = Axes([0, 1], [0, 1], labels, title)
    axes.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#999", dashed=True)
    finite = np.isfinite(x) & np.isfinite(y)
    axes.line(x, y, COLORS[0])
    for point in zip(x[finite], y[finite], strict=True):
        axes.dot(*point, COLORS[0])
    return axes.svg()


def boxes(x, quantiles, labels, title):
    """Return a plot of a box at each ``x``, from five quantiles, with a dashed line at 0."""
    finite = np.isfinite(x)
    x, quantiles = x[finite], quantiles[finite]
    axes = Axes(x, np.append(quantiles, 0.0), labels, title)
    axes.line(np.array(axes.x_range), np.zeros(2), "#999", dashed=True)
    half = 0.3 * (WIDTH - LEFT - RIGHT) / max(len(x), 1) / 2
    for value, (lowest, lower, middle, upper, highest) in zip(x, quantiles, strict=True):
        left, right = axes.x(value) - half, axes.x(value) + half
        axes.line(np.array([value, value]), np.array([lowest, highest]), COLORS[0])
        top, height = axes.y(upper), axes.y(lower) - axes.y(upper)
        axes.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{2 * half:.1f}" height="{height:.1f}" '
            f'fill="#cfe0ee" stroke="{COLORS[0]}"/>'
        )
        level = axes.y(middle)
        axes.parts.append(_path([(left, level), (right, level)], COLORS[0]))
    return axes.svg()


def bars(names, values, errors, title):
    """Return a plot of a horizontal bar for each number, with a line for its error.

    Parameters
    ----------
    names : list of str
        Name of each bar.
    values, errors : sequence of float
        Lengths, none of which is negative, and their errors; no lines for errors of NaN.
    title : str
        Title of the plot.

    Returns
    -------
    str
    """
    errors = np.nan_to_num(np.asarray(errors, dtype=np.float64))
    largest = max(np.asarray(values) + errors)
    largest = largest if largest > 0 else 1.0
    parts, left = [], 220
    scale = (WIDTH - left - 80) / largest
    for index, (name, value, error) in enumerate(zip(names, values, errors, strict=True)):
        top, length = 8 + 22 * index, value * scale
        short = name if len(name) <= 30 else name[:29] + "…"
        parts.append(_text(left - 8, top + 13, short, "end"))
        parts.append(
            f'<rect x="{left}" y="{top}" width="{length:.1f}" height="16" fill="{COLORS[0]}"/>'
        )
        end = length
        if error > 0:
            begin, end = max(value - error, 0.0) * scale, (value + error) * scale
            parts.append(_path([(left + begin, top + 8), (left + end, top + 8)], COLORS[1]))
        parts.append(_text(left + end + 6, top + 13, number(value), "start"))
    return _svg(parts, 16 + 22 * len(names), title)


def _range(values):
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low, high):
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 6), 10)
    # Rounded, so that a tick at 0.3 is not labelled 0.30000000000000004.
    return np.round(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, 12)


def _text(x, y, text, anchor, extra="", color=None):
    fill = f'style="fill:{color}"' if color else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {fill} {extra}>{escape(text)}</text>'
    )


def _path(points, color, extra=""):
    if not points:
        return ""
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}" fill="none" stroke="{color}" stroke-width="1.5" {extra}/>'


def _svg(parts, height, title):
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
