"""A short form of the long run (`python -m tests.e2e.odd_rounds`): real nodes, real learners."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.odd_rounds import SHORT, odd_round
from tests.e2e.verdict import all_ok

SEED = 12


def test_a_round_outlives_a_cut_in_two(tmp_path: Path) -> None:
    told: list[str] = []
    checks = odd_round(SHORT, SEED, tmp_path, told.append)
    assert all_ok(checks), "\n".join([*told, *(check.line() for check in checks)])
