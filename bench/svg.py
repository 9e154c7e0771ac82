"""Curves as a small SVG file: what a page of `docs/` shows, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 30, 42  # margins; names stand in the right one
COLOURS = ("#1b1b1b", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
TICKS = 5


def chart(title: str, x_name: str, y_name: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Values of each curve at 0, 1, 2 …; readable on light and on dark pages."""
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    most = max(1, max(len(curve) for curve in curves.values()) - 1)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / most

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _text(LEFT, 18, title, "start", 'font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle"),
        _text(LEFT, TOP + 8, y_name, "start", 'fill="#666666"', dx=6),
    ]
    for tick in _ticks(low, high):
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:.4g}", "end"))
    parts += [
        _text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:.0f}", "middle")
        for tick in _ticks(0, most)
        if tick == round(tick)
    ]
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if i >= len(COLOURS) else ""
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in enumerate(curve))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
        )
        row = TOP + 14 + 17 * i
        edge = WIDTH - RIGHT + 12
        parts.append(
            f'<path d="M{edge} {row - 4}h18" stroke="{colour}" stroke-width="2"{dash} fill="none"/>'
        )
        parts.append(_text(edge + 24, row, name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about TICKS of them."""
    rough = (high - low) / TICKS
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    first = -floor(-low / step)
    return [round(step * i, 10) for i in range(first, floor(high / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "", dx: int = 0) -> str:
    place = f'x="{x + dx:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {more}>{escape(text)}</text>".replace(" >", ">")
