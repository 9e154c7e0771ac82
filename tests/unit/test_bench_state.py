"""The benchmark of the state on disk: every row, of a small state."""

from __future__ import annotations

from bench.chain_state import SMALL, rows


def test_every_row() -> None:
    found = {row.name: row for row in rows(SMALL)}
    assert list(found) == [
        *("state_import", "state_open", "state_read_cold", "state_read_hot", "state_commit"),
    ]
    assert found["state_read_hot"].value < found["state_read_cold"].value
    assert all(row.value > 0 for row in found.values())
