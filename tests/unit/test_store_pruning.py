"""What a pruned store drops, and that nothing else can be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.codec import encode
from chain.errors import StorageError
from chain.hashes import TX
from chain.state import Event
from chain.store import ChainStore
from chain.types import Height, TxId
from tests.unit.test_store import ALICE, BOB, Chain, make_tx

BLOCKS, TXS = 20, 3


def epoch_end(height: Height) -> bool:
    return height % 5 == 0


def fill(store: ChainStore) -> Chain:
    chain = Chain(store)
    for height in range(BLOCKS):
        txs = (*(make_tx(height * TXS + i) for i in range(TXS - 1)), b"no transaction %d" % height)
        chain.add(txs, events=(Event("phase", b"r", {}), Event("shard", b"s", {"at": height})))
    return chain


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with ChainStore(tmp_path / "chain.db") as store:
        yield fill(store)


def count(path: Path, table: str, where: str = "1") -> int:
    db = sqlite3.connect(path)
    (found,) = db.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()
    db.close()
    return int(found)


def test_what_goes_and_what_stays(chain: Chain, tmp_path: Path) -> None:
    store, path = chain.store, tmp_path / "chain.db"
    old, new = TxId(TX.hash(make_tx(4 * TXS))), TxId(TX.hash(make_tx(15 * TXS)))
    assert store.tx(old) is not None
    assert store.prune(Height(12), 10**6, epoch_end) == 12
    assert store.pruned == (12, 12 * TXS + 1)
    assert (store.first_height(), store.first_body()) == (0, 12)
    assert store.block(Height(11)) is None
    assert store.block_by_hash(chain.blocks[11].hash()) is None
    assert store.height_of(chain.blocks[11].hash()) == 11
    assert [store.header(Height(h)) for h in range(BLOCKS)] == [b.header for b in chain.blocks]
    assert [store.block(Height(h)) for h in range(12, BLOCKS)] == chain.blocks[12:]
    held = [h for h in range(BLOCKS) if store.certificate(Height(h)) is not None]
    assert held == [0, 5, 10, *range(12, BLOCKS)]
    assert store.blocks(Height(3), Height(15), 9) == ()
    assert store.blocks(Height(12), Height(13), 9)[0].block == chain.blocks[12]
    assert store.tx(old) is None
    assert store.tx(new) is not None
    assert store.txs_in(Height(3)) == ()
    assert len(store.txs_of(ALICE, 999)) == len(store.txs_of(BOB, 999)) == 8 * (TXS - 1)
    assert store.tx_total() == BLOCKS * TXS
    assert [e.height for e in store.history("phase")] == list(range(BLOCKS - 1, 11, -1))
    assert [e.height for e in store.history("shard")] == list(range(BLOCKS - 1, -1, -1))
    lines = store.latest_blocks(99)
    assert [line.size_bytes for line in lines] == [len(encode(b)) for b in chain.blocks[::-1]]
    assert count(path, "tx_parties") == 2 * 8 * (TXS - 1)
    assert count(path, "pragma_foreign_key_check") == 0


def test_a_bounded_amount_at_a_time(chain: Chain) -> None:
    store = chain.store
    steps = []
    while dropped := store.prune(Height(12), 2 * (TXS + 1), epoch_end):
        steps.append(dropped)
    assert steps == [2] * 6
    assert store.prune(Height(5), 99, epoch_end) == 0  # it does not grow backwards
    while store.prune(Height(10**9), 10**6, epoch_end):
        pass
    assert store.first_body() == BLOCKS - 1  # the tip stays whole
    assert store.tx_total() == BLOCKS * TXS


def test_it_goes_on_after_pruning_everything(chain: Chain, tmp_path: Path) -> None:
    store = chain.store
    store.prune(Height(10**9), 10**6, epoch_end)
    chain.add((make_tx(999),))
    assert store.latest_txs(1)[0].number == BLOCKS * TXS + 1
    chain.add()
    store.prune(Height(10**9), 10**6, epoch_end)
    assert store.latest_txs(1) == ()
    assert store.tx_total() == BLOCKS * TXS + 1
    chain.add((make_tx(1000),))
    assert store.latest_txs(1)[0].number == BLOCKS * TXS + 2
    store.close()
    with ChainStore(tmp_path / "chain.db") as again:
        assert again.pruned == store.pruned
        tip = again.tip()
        assert tip is not None
        assert tip.height == BLOCKS + 2


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE pruned SET height = 3",
        "UPDATE pruned SET number = 1",
        "UPDATE pruned SET height = 21",
        "DELETE FROM pruned",
        "INSERT OR REPLACE INTO pruned VALUES (1, 0, 0)",
        "DELETE FROM blocks WHERE height = 2",
        "UPDATE blocks SET header = x'00' WHERE height = 2",
        "UPDATE blocks SET size = 0 WHERE height = 2",
        "UPDATE bodies SET body = x'' WHERE height = 12",
        "DELETE FROM bodies WHERE height = 12",
        "INSERT OR REPLACE INTO bodies VALUES (12, x'00')",
        "DELETE FROM txs WHERE height = 12",
        "UPDATE txs SET code = 'ok' WHERE height = 12",
        f"DELETE FROM tx_parties WHERE number = {12 * TXS + 1}",
        "DELETE FROM events WHERE height = 12",
        "UPDATE events SET data = '{}' WHERE height = 2",
        "DELETE FROM certificates WHERE height = 12",
        "UPDATE certificates SET certificate = x'' WHERE height = 5",
    ],
)
def test_nothing_above_the_bound_can_be_dropped(chain: Chain, tmp_path: Path, sql: str) -> None:
    chain.store.prune(Height(12), 10**6, epoch_end)
    db = sqlite3.connect(tmp_path / "chain.db")
    db.execute("PRAGMA recursive_triggers = ON")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(sql)
    db.close()


def test_a_prune_that_fails_leaves_all(chain: Chain, tmp_path: Path) -> None:
    store = chain.store

    def fails(height: Height) -> bool:
        if height == 7:
            raise StorageError("on the way")
        return False

    with pytest.raises(StorageError):
        store.prune(Height(12), 10**6, fails)
    assert store.pruned == (0, 1)
    assert [store.block(Height(h)) for h in range(BLOCKS)] == chain.blocks
    with pytest.raises(StorageError):
        store.add_certificate(Height(99), chain.store.certificate(Height(1)))  # type: ignore[arg-type]
