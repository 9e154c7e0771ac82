"""The bench of long chains fills its file as real blocks would."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bench.chain_heights import Heights, growth
from bench.chain_store import build_store
from chain.store import ChainStore

HEIGHT = 700


def shape(path: Path) -> dict[str, tuple[int, float]]:
    """Of each table and index of the chain: how many entries, and their bytes."""
    with closing(sqlite3.connect(path)) as db:
        names = db.execute("SELECT DISTINCT name FROM dbstat WHERE name NOT LIKE '%state%'")
        return {
            name: db.execute(
                "SELECT sum(ncell), sum(payload) FROM dbstat WHERE name = ? AND pagetype = 'leaf'",
                (name,),
            ).fetchone()
            for (name,) in names
            if not name.startswith("sqlite_sch")
        }


def test_what_is_filled_is_like_what_is_made(tmp_path: Path) -> None:
    rows = list(growth(Heights(tmp_path, low=50, high=HEIGHT - 1, blocks=1)))
    assert [row.unit for row in rows] == ["s", "ms", "ms", "ms", "x", "x"]
    assert all(row.value > 0 for row in rows)
    path = tmp_path / f"height-{HEIGHT - 1}.db"
    with ChainStore(path) as store:
        tip = store.tip()
        assert tip is not None
        assert tip.height == HEIGHT
        assert HEIGHT - store.oldest_state() < 300
        assert store.check_state() == 10_000
    build_store(tmp_path / "made.db", HEIGHT, 1)
    made, filled = shape(tmp_path / "made.db"), shape(path)
    assert made.keys() == filled.keys()
    assert {"blocks", "bodies", "txs", "txs_by_id", "tx_parties", "certificates"} < made.keys()
    for name, (count, size) in made.items():
        assert abs(filled[name][0] - count) <= max(4, 0.01 * count), name
        assert abs(filled[name][1] - size) <= max(16, 0.02 * size), name
