"""Plots as inline SVG: a few lines, dots and boxes need no plotting package."""

from __future__ import annotations

from html import escape

import numpy as np

from sk_easytensor.report.html import number

__all__ = [
    "bars",
    "boxes",
    "dots",
    "lines",
]


WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 15, 45
COLOURS = ("#2a6496", "#d9772b", "#3c8d5a", "#a3478f", "#8a7a2f", "#777777")


class Axes:
    """Where numbers lie on a drawing, with its frame and ticks.

    Parameters
    ----------
    x, y : array-like
        All numbers that are drawn.
    labels : (str, str)
        Of the axes.
    title : str
        Read out in the place of the picture.
    """

    def __init__(self, x, y, labels, title):
        self.x_range, self.y_range = _range(x), _range(y)
        self.title = title
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        self.parts = [_path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "#999")]
        for tick in _ticks(*self.x_range):
            place = self.x(tick)
            self.parts.append(_path([(place, bottom), (place, bottom + 4)], "#999"))
            self.parts.append(_text(place, bottom + 18, number(tick), "middle"))
        for tick in _ticks(*self.y_range):
            place = self.y(tick)
            self.parts.append(_path([(LEFT - 4, place), (LEFT, place)], "#999"))
            self.parts.append(_text(LEFT - 8, place + 4, number(tick), "end"))
        self.parts.append(_text((LEFT + right) / 2, HEIGHT - 6, labels[0], "middle"))
        middle = (TOP + bottom) / 2
        turned = f'transform="rotate(-90 14 {middle:.1f})"'
        self.parts.append(_text(14, middle, labels[1], "middle", turned))

    def x(self, value):
        """Return where a number lies from the left."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        """Return where a number lies from the top."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(self, x, y, colour, dashed=False):
        """Add a line through points; those that are not finite are passed over."""
        found = np.isfinite(x) & np.isfinite(y)
        points = [(self.x(a), self.y(b)) for a, b in zip(x[found], y[found], strict=True)]
        self.parts.append(_path(points, colour, 'stroke-dasharray="4 4"' if dashed else ""))

    def dot(self, x, y, colour):
        """Add a dot."""
        self.parts.append(
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4" fill="{colour}"/>'
        )

    def name(self, index, text, colour):
        """Add a line to the legend."""
        self.parts.append(
            _text(WIDTH - RIGHT + 12, TOP + 14 + 18 * index, text, "start", colour=colour)
        )

    def svg(self):
        """Return the drawing."""
        return _svg(self.parts, HEIGHT, self.title)


def lines(curves, labels, title, marked=None):
    """Draw curves over 1, 2, 3 and so on.

    Parameters
    ----------
    curves : dict of {str: list of float}
        By name.
    labels : (str, str)
        Of the axes.
    title : str
        Of the drawing.
    marked : int, optional
        Place on the first axis that a dashed line is drawn at.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    longest = max(len(values) for values in arrays.values())
    axes = Axes([1, longest], np.concatenate(list(arrays.values())), labels, title)
    if marked is not None:
        axes.line(np.array([marked, marked], float), np.array(axes.y_range), "#999", dashed=True)
    for index, (name, values) in enumerate(arrays.items()):
        colour = COLOURS[index % len(COLOURS)]
        steps = np.arange(1.0, len(values) + 1)
        axes.line(steps, values, colour)
        if len(values) == 1:
            axes.dot(1, values[0], colour)
        axes.name(index, name, colour)
    return axes.svg()


def dots(x, y, labels, title):
    """Draw shares against probabilities, with the diagonal on which both are equal."""
    axes = Axes([0, 1], [0, 1], labels, title)
    axes.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#999", dashed=True)
    found = np.isfinite(x) & np.isfinite(y)
    axes.line(x, y, COLOURS[0])
    for place in zip(x[found], y[found], strict=True):
        axes.dot(*place, COLOURS[0])
    return axes.svg()


def boxes(x, quantiles, labels, title):
    """Draw a box at each place, from five quantiles, with a line at 0."""
    found = np.isfinite(x)
    x, quantiles = x[found], quantiles[found]
    axes = Axes(x, np.append(quantiles, 0.0), labels, title)
    axes.line(np.array(axes.x_range), np.zeros(2), "#999", dashed=True)
    half = 0.3 * (WIDTH - LEFT - RIGHT) / max(len(x), 1) / 2
    for place, (lowest, lower, middle, upper, highest) in zip(x, quantiles, strict=True):
        left, right = axes.x(place) - half, axes.x(place) + half
        axes.line(np.array([place, place]), np.array([lowest, highest]), COLOURS[0])
        top, height = axes.y(upper), axes.y(lower) - axes.y(upper)
        axes.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{2 * half:.1f}" height="{height:.1f}" '
            f'fill="#cfe0ee" stroke="{COLOURS[0]}"/>'
        )
        level = axes.y(middle)
        axes.parts.append(_path([(left, level), (right, level)], COLOURS[0]))
    return axes.svg()


def bars(names, values, title):
    """Draw a bar for each of some numbers, none of them negative."""
    largest = max(values) if max(values) > 0 else 1.0
    parts, left = [], 220
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        top, length = 8 + 22 * index, value / largest * (WIDTH - left - 80)
        short = name if len(name) <= 30 else name[:29] + "…"
        parts.append(_text(left - 8, top + 13, short, "end"))
        parts.append(
            f'<rect x="{left}" y="{top}" width="{length:.1f}" height="16" fill="{COLOURS[0]}"/>'
        )
        parts.append(_text(left + length + 6, top + 13, number(value), "start"))
    return _svg(parts, 16 + 22 * len(names), title)


def _range(values):
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low, high):
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 6), 10)
    # Rounded, so that 0.3 is not shown as what it is in binary.
    return np.round(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, 12)


def _text(x, y, text, anchor, extra="", colour=None):
    fill = f'style="fill:{colour}"' if colour else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {fill} {extra}>{escape(text)}</text>'
    )


def _path(points, colour, extra=""):
    if not points:
        return ""
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}" fill="none" stroke="{colour}" stroke-width="1.5" {extra}/>'


def _svg(parts, height, title):
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
