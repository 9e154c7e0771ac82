"""Every question that is asked of the chain's file goes by an index: none reads a table through."""

from __future__ import annotations

import inspect
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.chain_store import account, build_store, query_ms
from chain.hashes import Hash32
from chain.store import ChainStore
from chain.types import Height, TxId

BLOCKS, TXS = 60, 20
# Of these a query may look at everything: they have few rows, or one a version of the state.
SMALL = ("sqlite_master", "pruned", "state_versions", "state_stale")
# Reading methods that ask nothing, or are meant to read all (the doctor's).
NOT_ASKED = {"load_state", "check_state", "close", "import_state"}
WRITING = {"commit", "commit_all", "add_certificate", "prune"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "chain.db"
    build_store(path, BLOCKS, TXS)
    with closing(sqlite3.connect(path)) as db:
        db.execute("ANALYZE")  # plans as for a file whose sizes are known
    return path


def asked(store: ChainStore) -> dict[str, list[Callable[[], Any]]]:
    """Each reading method with all forms of its arguments."""
    row = store.latest_txs(1)[0]
    block_hash = store.latest_blocks(1)[0].hash
    owner, far = account(3), 2**62
    return {
        "tip": [store.tip],
        "first_height": [store.first_height],
        "first_body": [store.first_body],
        "block": [lambda: store.block(Height(7))],
        "block_by_hash": [lambda: store.block_by_hash(block_hash)],
        "height_of": [lambda: store.height_of(block_hash)],
        "header": [lambda: store.header(Height(7))],
        "certificate": [lambda: store.certificate(Height(7))],
        "blocks": [lambda: store.blocks(Height(3), Height(50), 20)],
        "latest_blocks": [lambda: store.latest_blocks(10), lambda: store.latest_blocks(10, 30)],
        "tx": [lambda: store.tx(TxId(row.id)), lambda: store.tx(TxId(Hash32(bytes(32))))],
        "txs_in": [lambda: store.txs_in(Height(7))],
        "txs_of": [lambda: store.txs_of(owner, 10), lambda: store.txs_of(owner, 10, far)],
        "latest_txs": [lambda: store.latest_txs(10), lambda: store.latest_txs(10, 100)],
        "tx_total": [store.tx_total],
        "history": [
            lambda: store.history("phase"),
            lambda: store.history("phase", bytes(8)),
            lambda: store.history("custody", limit=3, before=(40, 0)),
            lambda: store.history("phase", bytes(8), limit=3, before=(40, 0)),
        ],
        "tree_at": [lambda: store.tree_at(BLOCKS), lambda: store.tree_at(3)],
        "oldest_state": [store.oldest_state],
    }


def statements(path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every SQL text that a run of all reading methods, opening and an append issue."""
    seen: set[str] = set()
    real = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = real(*arguments, **options)
        db.set_trace_callback(seen.add)
        return db

    monkeypatch.setattr(sqlite3, "connect", connect)
    with ChainStore(path) as store:
        for forms in asked(store).values():
            for ask in forms:
                ask()
        tree = store.load_state()
        list(tree.items())
        tree.get(b"bench")
    monkeypatch.undo()
    return {s for s in seen if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", s, re.IGNORECASE)}


def plans(path: Path, sql: str) -> Iterator[str]:
    with closing(sqlite3.connect(path)) as db:
        for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {sql}"):
            yield detail


def reads_through(detail: str) -> bool:
    """Whether a step of a plan goes through a table, or through an index of it."""
    return detail.startswith("SCAN") and detail.split()[1] not in SMALL


def test_every_reading_method_is_asked(path: Path) -> None:
    public = {
        name
        for name, value in inspect.getmembers(ChainStore)
        if not name.startswith("_") and callable(value)
    }
    with ChainStore(path) as store:
        assert set(asked(store)) | NOT_ASKED | WRITING == public


def test_no_query_reads_a_table_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = statements(path, monkeypatch)
    assert len(found) > 20
    wrong = [
        f"{sql}: {detail}"
        for sql in sorted(found)
        for detail in plans(path, sql)
        if reads_through(detail) and not _is_bounded(sql)
    ]
    assert wrong == []


def _is_bounded(sql: str) -> bool:
    """A walk down an index that ends after so many rows, or looks only at one end of it; or one
    over the keys of a state, all of which were asked for."""
    ends = re.search(r"LIMIT \d+\s*$", sql) and "ORDER BY" in sql
    edge = re.match(r"SELECT (min|max|coalesce\(max)\(\w+\)(, 0\))? FROM \w+$", sql)
    return bool(ends or edge) or "FROM state_keys" in sql


def test_nothing_is_sorted_that_has_an_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 25 must not sort a million rows first. A lookup by id sorts the few that it has."""
    wrong = [
        f"{sql}: {detail}"
        for sql in sorted(statements(path, monkeypatch))
        for detail in plans(path, sql)
        if "TEMP B-TREE" in detail and "WHERE id =" not in sql
    ]
    assert wrong == []


def test_the_check_would_find_a_scan(path: Path) -> None:
    for sql in ("SELECT * FROM txs WHERE code = 'no'", "SELECT count(*) FROM tx_parties"):
        assert any(map(reads_through, plans(path, sql)))
        assert not _is_bounded(sql)


def test_the_bench_asks_what_the_explorer_asks(path: Path) -> None:
    assert len(query_ms(path, 3)) > 50
