"""The benchmark of syncing runs, and gives what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.snapshot_sync import SMALL, syncs


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {row.name: row for row in syncs(SMALL)}
    assert set(rows) == {
        *("replay_block", "replay", "snapshot_size", "snapshot_sync", "snapshot_sync_faster"),
    }
    assert all(row.value > 0 for row in rows.values())
    assert rows["snapshot_sync_faster"].target == 50
    assert not list(tmp_path.iterdir())
