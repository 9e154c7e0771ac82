"""The bench of costs runs, and has a row for every kind; what it says of a machine is its own."""

from __future__ import annotations

import json

import pytest

from bench.cost_cases import all_cases
from bench.costs import main


def test_every_kind_and_every_full_block_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--json", "--repeats", "1", "--accounts", "1000", "--validators", "4"]
    assert main(asked) in (0, 1)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = {row["name"] for row in rows}
    assert names >= {case.name for case in all_cases(4)}
    assert sum(name.startswith("block of") for name in names) >= 2 * len(list(all_cases(4)))
    assert all(row["value"] > 0 for row in rows)
