"""How results look: data on stdout, progress on stderr; colour only on a terminal (NO_COLOR)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from chain.types import GRAINS_PER_BLY
from node.cli.session import Session


def emit(session: Session, data: Any, human: Callable[[Any], str] | None = None) -> None:
    """`data` as JSON with --json, else as `human` writes it (a plain listing by default)."""
    text = json.dumps(data, indent=1) if session.json else (human or listing)(data)
    click.echo(text, color=_color())


def progress(text: str) -> None:
    """A line for whoever watches; never on stdout."""
    click.echo(text, err=True, color=_color())


def _color() -> bool | None:
    """None lets click look for a terminal; NO_COLOR (no-color.org) switches colour off."""
    return False if os.environ.get("NO_COLOR") else None


def table(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    if not rows:
        return "none"
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(heading), *(len(row[i]) for row in cells)) for i, heading in enumerate(headings)
    ]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(headings))]

    def line(values: Sequence[str]) -> str:
        padded = (
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([click.style(line(headings), bold=True), *map(line, cells)])


def listing(data: Any, indent: int = 0) -> str:
    """Any JSON as indented `name  value` lines."""
    space = "  " * indent
    if isinstance(data, dict):
        width = max((len(str(name)) for name in data), default=0)
        lines = []
        for name, value in data.items():
            if isinstance(value, dict | list) and value:
                lines += [f"{space}{name}", listing(value, indent + 1)]
            else:
                lines.append(f"{space}{name!s:{width}}  {_cell(value)}")
        return "\n".join(lines)
    if isinstance(data, list):
        return "\n".join(
            listing(value, indent) if isinstance(value, dict | list) else f"{space}{_cell(value)}"
            for value in data
        )
    return f"{space}{_cell(data)}"


def _cell(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def bly(grains: int) -> str:
    """Grains as BLY with no more decimals than needed: 150000000 is `1.5`."""
    whole, rest = divmod(abs(grains), GRAINS_PER_BLY)
    text = f"{whole:,}" + (f".{rest:08}".rstrip("0") if rest else "")
    return f"-{text}" if grains < 0 else text


def short(text: str | None, length: int = 12) -> str:
    """The beginning of a hash, enough to tell it from others by eye."""
    if not text:
        return "-"
    return text if len(text) <= length else text[:length] + "…"


def when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, yes: bool) -> None:
    """Ask where somebody can answer; a script says --yes."""
    if yes:
        return
    if not on_terminal():
        raise click.UsageError("this needs a confirmation: add --yes")
    click.confirm(question, abort=True, err=True)


def size(count: int) -> str:
    """Bytes for people: `2.15 GB`, in steps of a thousand as disks and networks have it."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{value:.2f} {unit}"
