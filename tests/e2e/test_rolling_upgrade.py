"""Four nodes of an earlier format become nodes of today, and two of them are upgraded once more,
one after the other, under load. All four, any number of times: `python -m tests.e2e.rolling`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chain.store_schema import SCHEMA_VERSION
from tests.e2e.rolling import roll
from tests.kit.old_homes import kinds

BUSY = 0.1  # of all views may be lost for another reason on a machine that does other things


@pytest.mark.parametrize("kind", kinds()[:1])  # of the others: python -m tests.e2e.rolling
def test_a_network_is_upgraded_node_by_node(kind: str, tmp_path: Path) -> None:
    report, homes = roll(tmp_path, 1, kind, each=2)
    assert report.transfers > 0
    assert report.lost_of_others <= BUSY * report.blocks, report
    assert len(report.down_s) == 2
    for old in homes:
        with closing(sqlite3.connect(old.home.chain_db)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
        assert version == SCHEMA_VERSION
        log = (old.home.logs / "node.log").read_text()
        assert ("to 2" in log) == (kind == "schema-1")
        assert "ERROR" not in log
        assert "signs nothing" not in log
