"""The benchmark of elections in small: that every row is measured, not what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import election
from bench.measure import Row

ROWS = {
    "elect": {
        *("elect_all", "elect_departure", "elect_departure_overflow"),
        *("elect_bounded", "elect_bounded_over", "elect_bounded_full"),
        *("elect_bounded_departure", "elect_bounded_overflow"),
    },
    "share": {"share_average_error", "share_one_seed", "share_all_seeds"},
    "vrf": {"vrf_prove", "vrf_verify"},
}


@pytest.mark.parametrize("group", ROWS)
def test_every_row_is_measured(group: str) -> None:
    told: list[Row] = []
    rows = election.measure(election.SMALL, [group], told.append)
    assert told == rows
    assert {row.name for row in rows} == ROWS[group]
    assert all(row.value >= 0 for row in rows)
    facts = {row.name: row.met for row in rows}
    for certain in ("elect_departure_overflow", "elect_bounded_over", "elect_bounded_overflow"):
        assert facts.get(certain, True), certain
    assert set(ROWS) == set(election.GROUPS)


def test_as_a_program() -> None:
    program = [sys.executable, "-m", "bench.election", "--small", "--json"]
    root = Path(election.__file__).parent.parent
    one = subprocess.run(
        [*program, "--only", "elect_bounded_over"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 0, one.stderr
    (row,) = json.loads(one.stdout)
    assert list(row) == ["name", "value", "unit", "target", "floor", "met"]
    wrong = subprocess.run(
        [*program, "--only", "no"], cwd=root, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "groups: elect" in wrong.stderr
