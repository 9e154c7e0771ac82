"""A short form of `python -m tests.e2e.kill_loop`: a few kills, the same checks."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.kill_loop import kill_loop

SEED = 5  # one of single nodes


def test_nothing_acknowledged_is_lost_over_kills(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = kill_loop(3, SEED, tmp_path, lines.append)
    assert outcome.ok, "\n".join([*lines, *outcome.lines()])
    assert outcome.acknowledged > 10
    assert outcome.kills >= 3
