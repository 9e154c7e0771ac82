"""The benchmark of tiles in small: that every row is measured, not what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import tiles

ROWS = {
    "load_warm": {"load_warm_p95", "open_p95"},
    "load_cold": {"load_cold_p95", "verify_speed"},
    "expert": {"expert_open_p95", "expert_private", "expert_mapped"},
    "transfer": {"transfer_speed", "transfer_of_bare", "transfer_of_hashed", "transfer_links"},
    "peers": {"peers_one_lying", "peers_liar_named", "peers_wrongly_named"},
    "import": {"import_speed", "import_memory"},
    "reroot": {"reroot_scattered", "reroot_run"},
    "aggregate": {"aggregate_durable"},
    "version": {"version_5pct_tiles", "version_of_copy"},
    "proof": {"proof_bytes", "proof_verify", "proof_climb", "proof_decode"},
}


@pytest.mark.parametrize("group", ROWS)
def test_every_row_is_measured(group: str, tmp_path: Path) -> None:
    told: list[str] = []
    rows = tiles.measure(tiles.small(tmp_path), [group], lambda row: told.append(row.name))
    assert {row.name for row in rows} == set(told) == ROWS[group]
    assert all(row.value >= 0 for row in rows)
    facts = {row.name: row.met for row in rows}
    for certain in ("peers_liar_named", "peers_wrongly_named", "transfer_links", "proof_bytes"):
        assert facts.get(certain, True), certain
    assert set(ROWS) == set(tiles.GROUPS)


def test_as_a_program(tmp_path: Path) -> None:
    program = Path(tiles.__file__)
    command = [sys.executable, str(program), "--small", "--json", "--dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "proof_bytes"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert list(row) == ["name", "value", "unit", "target", "floor", "met"]
    wrong = subprocess.run([*command, "--only", "no"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "groups: load_warm" in wrong.stderr
    assert not any(tmp_path.iterdir())
