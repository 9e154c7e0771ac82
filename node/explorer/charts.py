"""Charts and drawings as coordinates for inline SVG; the templates write the elements.

The view box is stretched to the box on the page, strokes keep their width, and labels stand
outside in HTML, so a chart reads as well at 328 pixels as at 800.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

WIDTH, HEIGHT = 1000, 400
MOST_TICKS = 5  # grid lines wanted; rounding may add one or two


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart. `ticks` are the labels of evenly spaced grid lines, the highest first."""

    points: list[Point]
    ticks: list[str]
    first: str
    last: str

    @property
    def line(self) -> str:
        return "M" + " L".join(f"{p.x:.1f} {p.y:.1f}" for p in self.points)

    @property
    def area(self) -> str:
        left, right = self.points[0].x, self.points[-1].x
        return f"{self.line} L{right:.1f} {HEIGHT} L{left:.1f} {HEIGHT} Z"

    @property
    def grid(self) -> list[float]:
        return [HEIGHT * i / (len(self.ticks) - 1) for i in range(len(self.ticks))]

    @property
    def half(self) -> float:
        """Half the distance of two points: how wide each one's hover area is."""
        return WIDTH / max(1, len(self.points) - 1) / 2


def loss_chart(losses: Sequence[dict[str, Any]]) -> Chart | None:
    """Holdout loss of the model: before the first round, then after each."""
    values: list[tuple[str, float]] = []
    for row in losses:
        before, after = row["loss_before_nats"], row["loss_after_nats"]
        if before is not None and not values:
            values.append(("start", before))
        if row["rolled_back"] and before is not None:
            values.append((f"round {row['round']}, rolled back", before))
        elif after is not None:
            values.append((f"round {row['round']}", after))
    return line_chart(values) if values else None


def line_chart(values: Sequence[tuple[str, float]]) -> Chart:
    """A chart of (label, value) at even distances."""
    low, high, step = _scale([value for _, value in values])
    span = WIDTH / max(1, len(values) - 1)
    points = [
        Point(
            i * span if len(values) > 1 else WIDTH / 2,
            HEIGHT * (high - value) / (high - low),
            f"{label}: {value:.4f} nats per byte",
        )
        for i, (label, value) in enumerate(values)
    ]
    count = round((high - low) / step)
    digits = next(d for d in range(12) if abs(round(step, d) - step) < step / 1000)
    ticks = [f"{high - i * step:.{digits}f}" for i in range(count + 1)]
    return Chart(points, ticks, values[0][0], values[-1][0])


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, high, step): round numbers around the values, about MOST_TICKS lines."""
    least, most = min(values), max(values)
    reach = max(most - least, abs(most) * 0.02, 1e-6)
    rough = reach / (MOST_TICKS - 1)
    power = 10.0 ** floor(log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    low = floor(least / step) * step
    high = ceil(most / step) * step
    if high - low < step / 2:
        low, high = low - step, high + step
    return low, high, step


@dataclass(frozen=True, slots=True)
class Row:
    """One level of a drawn Merkle tree: its nodes, and lines from the node above."""

    title: str
    nodes: list[tuple[str, bool]]  # hash, whether it is on the path
    parent: float  # centre of the node above, of 100
    what: str = ""

    @property
    def wires(self) -> list[tuple[float, bool]]:
        count = len(self.nodes)
        return [(100 * (i + 0.5) / count, ours) for i, (_, ours) in enumerate(self.nodes)]


def merkle_rows(tile: dict[str, Any]) -> list[Row]:
    """The path of a tile, model root first, its own root last."""
    rows = [Row("", [(tile["model_root"], True)], 50.0, "model root")]
    above, centre = tile["path"]["shard"]["levels"][::-1], 50.0
    for level in above:
        rows.append(_row(level, centre, "shards" if level["level"] == 1 else ""))
        centre = _centre(level)
    rows.append(Row("", [(tile["shard_root"], True)], centre, f"shard {tile['name']}"))
    below, centre = tile["path"]["tile"]["levels"][::-1], 50.0
    for level in below:
        rows.append(_row(level, centre, "tiles" if level["level"] == 1 else ""))
        centre = _centre(level)
    rows.append(Row("", [(tile["root"], True)], centre, f"tile {tile['tile']}"))
    return rows


def _row(level: dict[str, Any], parent: float, title: str) -> Row:
    nodes = [(child, i == level["slot"]) for i, child in enumerate(level["children"])]
    return Row(title, nodes, parent)


def _centre(level: dict[str, Any]) -> float:
    return float(100 * (level["slot"] + 0.5) / len(level["children"]))
