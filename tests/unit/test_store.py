"""The chain's file: what goes in comes out, nothing is ever changed, and damage is found."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chain import limits
from chain.codec import encode, tag_of
from chain.errors import InvariantError, StorageError
from chain.hashes import TX, ZERO_HASH, Hash32
from chain.receipts import Receipt
from chain.state import Event
from chain.store import ChainStore
from chain.store_schema import SCHEMA_VERSION
from chain.transactions import Transaction, Transfer
from chain.tree import StateTree
from chain.types import (
    Block,
    Certificate,
    CertifiedBlock,
    ChainId,
    Epoch,
    Grains,
    Header,
    Height,
    PubKey,
    Signature,
    TimeMs,
    TxId,
    View,
    tx_root,
)

CHAIN = ChainId(b"\x01" * 32)
ALICE, BOB = PubKey(b"\xa1" * 32), PubKey(b"\xb0" * 32)


def make_tx(nonce: int, to: PubKey = BOB, sender: PubKey = ALICE) -> bytes:
    payload = Transfer(to, Grains(1))
    unsigned = Signature(bytes(64))
    return encode(Transaction(CHAIN, sender, sender, nonce, Grains(0), None, payload, unsigned))


def make_block(height: int, parent: Hash32, root: Hash32, txs: tuple[bytes, ...] = ()) -> Block:
    header = Header(
        version=1,
        chain_id=CHAIN,
        epoch=Epoch(0),
        view=View(height + 2),
        height=Height(height),
        parent=parent,
        time_ms=TimeMs(1_700_000_000_000 + height),
        proposer=BOB,
        tx_root=tx_root(txs),
        state_root=root,
        validators_hash=ZERO_HASH,
        next_validators_hash=ZERO_HASH,
        vrf_output=b"",
        vrf_proof=b"",
        evidence_root=ZERO_HASH,
    )
    return Block(header, txs, ())


def make_certificate(block: Block) -> Certificate:
    return Certificate(3, Epoch(0), block.header.view, block.hash(), b"\x07", ())


def receipts_of(txs: tuple[bytes, ...], code: str = "ok") -> tuple[Receipt, ...]:
    return tuple(Receipt(TxId(TX.hash(raw)), code, "" if code == "ok" else "no") for raw in txs)


class Chain:
    """Grows a store by blocks that each write a few keys."""

    def __init__(self, store: ChainStore) -> None:
        self.store, self.tree = store, StateTree.empty()
        self.blocks: list[Block] = []

    def add(
        self,
        txs: tuple[bytes, ...] = (),
        changes: dict[bytes, bytes | None] | None = None,
        code: str = "ok",
        events: tuple[Event, ...] = (),
        certified: bool = True,
    ) -> Block:
        height = len(self.blocks)
        changes = {b"height": b"%d" % height} if changes is None else changes
        self.tree = self.tree.set_many(changes)
        parent = self.blocks[-1].hash() if self.blocks else ZERO_HASH
        block = make_block(height, parent, self.tree.root, txs)
        certificate = make_certificate(block) if certified else None
        self.store.commit(block, block.hash(), certificate, receipts_of(txs, code), changes, events)
        self.blocks.append(block)
        return block


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain.db"


@pytest.fixture
def chain(path: Path) -> Iterator[Chain]:
    with ChainStore(path) as store:
        yield Chain(store)


def test_empty(chain: Chain) -> None:
    store = chain.store
    assert store.tip() is None
    assert store.first_height() is None
    assert store.block(Height(0)) is None
    assert store.block_by_hash(ZERO_HASH) is None
    assert store.header(Height(0)) is None
    assert store.tx(TxId(ZERO_HASH)) is None
    assert store.blocks(Height(0), Height(9), 9) == ()
    assert store.latest_blocks(9) == store.latest_txs(9) == store.txs_of(ALICE, 9) == ()
    assert store.tx_total() == 0
    assert store.load_state().root == ZERO_HASH


def test_blocks_and_certificates(chain: Chain) -> None:
    blocks = [chain.add(certified=i != 1) for i in range(4)]
    store = chain.store
    tip = store.tip()
    assert tip is not None
    assert (tip.height, tip.hash) == (3, blocks[3].hash())
    assert store.first_height() == 0
    assert [store.block(Height(i)) for i in range(4)] == blocks
    assert store.block_by_hash(blocks[2].hash()) == blocks[2]
    assert store.header(Height(2)) == blocks[2].header
    assert store.certificate(Height(0)) == make_certificate(blocks[0])
    assert store.certificate(Height(1)) is None
    store.add_certificate(Height(1), make_certificate(blocks[1]))
    store.add_certificate(Height(1), make_certificate(blocks[0]))
    assert store.certificate(Height(1)) == make_certificate(blocks[1])
    with pytest.raises(StorageError):
        store.add_certificate(Height(9), make_certificate(blocks[1]))
    expected = tuple(CertifiedBlock(b, make_certificate(b)) for b in blocks)
    assert store.blocks(Height(1), Height(2), 9) == expected[1:3]
    assert store.blocks(Height(0), Height(3), 2) == expected[:2]
    assert store.blocks(Height(0), Height(3), 9, most_bytes=1) == expected[:1]
    size = len(encode(expected[0]))
    assert len(store.blocks(Height(0), Height(3), 9, most_bytes=2 * size + 64)) == 2
    rows = store.latest_blocks(2)
    assert [(r.height, r.hash, r.view, r.tx_count) for r in rows] == [
        (3, blocks[3].hash(), 5, 0),
        (2, blocks[2].hash(), 4, 0),
    ]
    assert rows[0].size_bytes == len(encode(blocks[3]))
    assert [r.height for r in store.latest_blocks(9, before=rows[1].height)] == [1, 0]


def test_transactions_and_receipts(chain: Chain) -> None:
    first, second = make_tx(0), make_tx(2**64 - 1, to=ALICE)
    chain.add((first, second))
    chain.add((make_tx(2),), code="bad_nonce")
    store = chain.store
    assert store.tx(TxId(TX.hash(second))) == (second, 0, 1, "ok", "")
    failed = store.tx(TxId(TX.hash(make_tx(2))))
    assert failed is not None
    assert (failed.height, failed.code, failed.reason) == (1, "bad_nonce", "no")
    rows = store.latest_txs(9)
    assert [(r.number, r.height, r.position, r.nonce) for r in rows] == [
        (3, 1, 0, 2),
        (2, 0, 1, 2**64 - 1),
        (1, 0, 0, 0),
    ]
    assert rows[0].sender == ALICE
    assert rows[0].kind == tag_of(Transfer)
    assert rows[0].time_ms == chain.blocks[1].header.time_ms
    assert store.txs_in(Height(0)) == (rows[2], rows[1])
    assert store.txs_of(ALICE, 9) == rows
    assert store.txs_of(BOB, 9) == (rows[2],)  # what failed does not reach the receiver
    assert store.txs_of(ALICE, 1, before=rows[0].number) == (rows[1],)
    assert store.latest_txs(1, before=3) == (rows[1],)
    assert store.tx_total() == 3


def test_bytes_that_are_no_transaction_and_repeats(chain: Chain) -> None:
    good = make_tx(0)
    chain.add((b"garbage", good), code="bad_encoding")
    chain.add((good,))
    chain.add((good,), code="bad_nonce")
    row = chain.store.txs_in(Height(0))[0]
    assert (row.sender, row.kind, row.nonce, row.code) == (None, 0, None, "bad_encoding")
    found = chain.store.tx(TxId(TX.hash(good)))
    assert found is not None
    assert (found.height, found.code) == (1, "ok")


def test_history(chain: Chain) -> None:
    for i in range(3):
        events = (
            Event("delta", b"d%d" % i, {"score": i}),
            Event("tile", b"t", {"version": i, "by": "ä"}),
        )
        chain.add(events=events)
    store = chain.store
    assert [(e.height, e.position, e.data["score"]) for e in store.history("delta")] == [
        (2, 0, 2),
        (1, 0, 1),
        (0, 0, 0),
    ]
    rows = store.history("tile", b"t", limit=2)
    assert [e.data for e in rows] == [{"version": 2, "by": "ä"}, {"version": 1, "by": "ä"}]
    older = store.history("tile", b"t", before=(rows[-1].height, rows[-1].position))
    assert [e.height for e in older] == [0]
    assert store.history("tile", b"other") == ()


def test_state_survives_reopening(path: Path) -> None:
    with ChainStore(path) as store:
        chain = Chain(store)
        chain.add(changes={b"a": b"1", b"b": b"2", b"empty": b""})
        chain.add(changes={b"a": b"3", b"b": None, b"never": None})
        root = chain.tree.root
        assert store.load_state().root == root
    with ChainStore(path) as store:
        for _ in range(2):
            tree = store.load_state()
            assert tree.root == root
            assert list(tree.items()) == [(b"a", b"3"), (b"empty", b"")]
        again = Chain(store)
        again.tree, again.blocks = tree, chain.blocks
        again.add(changes={b"c": b"4"})
        assert store.load_state().get(b"c") == b"4"


def test_a_store_may_begin_with_a_snapshot(chain: Chain) -> None:
    tree = StateTree.empty().set_many({b"a": b"1"})
    block = make_block(500, Hash32(b"\x09" * 32), tree.root)
    chain.store.commit(block, block.hash(), None, (), {b"a": b"1"})
    assert chain.store.first_height() == 500
    assert chain.store.load_state().root == tree.root


def test_commit_refuses_what_does_not_follow(chain: Chain) -> None:
    tip = chain.add()
    root = chain.tree.root
    for height, parent in ((0, tip.hash()), (2, tip.hash()), (1, ZERO_HASH)):
        block = make_block(height, parent, root)
        with pytest.raises(InvariantError):
            chain.store.commit(block, block.hash(), None, (), {})
    block = make_block(1, tip.hash(), root, (make_tx(0),))
    with pytest.raises(InvariantError):
        chain.store.commit(block, ZERO_HASH, None, receipts_of(block.txs), {})
    for receipts in ((), receipts_of((make_tx(1),))):
        with pytest.raises(InvariantError):
            chain.store.commit(block, block.hash(), None, receipts, {})
    assert chain.store.latest_blocks(9)[0].height == 0
    chain.add()


def test_a_failed_commit_leaves_nothing(chain: Chain) -> None:
    chain.add()
    bad = Event("kind", b"key", {"not json": b"bytes"})
    with pytest.raises(TypeError):
        chain.add((make_tx(0),), {b"x": b"1"}, events=(bad,))
    assert chain.store.tx_total() == 0
    tip = chain.store.tip()
    assert tip is not None
    assert tip.height == 0
    assert chain.store.load_state().get(b"x") is None


@pytest.mark.parametrize("table", ["blocks", "certificates", "txs", "tx_parties", "events"])
def test_nothing_final_can_be_changed(chain: Chain, path: Path, table: str) -> None:
    chain.add((make_tx(0),), events=(Event("kind", b"key", {}),))
    db = sqlite3.connect(path)
    db.execute("PRAGMA recursive_triggers = ON")
    column = db.execute(f"SELECT name FROM pragma_table_info('{table}') LIMIT 1").fetchone()[0]
    for sql in (
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append"):
            db.execute(sql)
    db.close()


def test_readers_in_other_threads_while_blocks_come(chain: Chain) -> None:
    chain.add((make_tx(0),))
    stop, wrong = threading.Event(), list[str]()

    def read() -> None:
        while not stop.is_set():
            tip = chain.store.tip()
            if tip is None or chain.store.block(tip.height) is None:
                wrong.append("a tip without its block")
            if len(chain.store.latest_txs(1)) != 1:
                wrong.append("no transaction")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(1, 30):
        chain.add((make_tx(i),))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert chain.store.tx_total() == 30


def test_numbers_beyond_sqlite_are_just_absent(chain: Chain) -> None:
    chain.add((make_tx(0),))
    assert chain.store.block(Height(2**64)) is None
    assert chain.store.blocks(Height(0), Height(2**64), 5) == ()
    assert chain.store.latest_blocks(5, before=2**70) == ()
    assert chain.store.latest_blocks(-1) == ()
    assert len(chain.store.latest_blocks(10**30)) == 1


# --- damage ------------------------------------------------------------------------


def _closed_chain(path: Path) -> None:
    with ChainStore(path) as store:
        chain = Chain(store)
        for i in range(3):
            chain.add((make_tx(i),), {b"k%d" % i: b"v" * 50})


def _sql(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["UPDATE state_pages SET data = x'00'"], "checksum.*doctor"),
        (["DELETE FROM state_pages"], "page 3 of the state tree is missing"),
        (["UPDATE state_versions SET page = 2 WHERE height = 2"], "not the one that belongs here"),
        (["UPDATE state_versions SET root = zeroblob(32)"], "state's root"),
        (["DELETE FROM state_versions WHERE height = 2"], "state's root"),
        (
            [
                "DROP TRIGGER blocks_no_UPDATE",
                "UPDATE blocks SET hash = zeroblob(32) WHERE height=2",
            ],
            "block 2",
        ),
        (
            ["DROP TRIGGER bodies_no_UPDATE", "UPDATE bodies SET body = x'00' WHERE height=2"],
            "Block",
        ),
        (["DROP TABLE state_pages"], "no such table"),
        ([f"PRAGMA user_version = {SCHEMA_VERSION + 1}"], f"version {SCHEMA_VERSION + 1}"),
        (["PRAGMA application_id = 7"], "another program"),
    ],
)
def test_damage_is_found_on_opening(path: Path, statements: list[str], says: str) -> None:
    _closed_chain(path)
    _sql(path, *statements)
    with pytest.raises(StorageError, match=says) as caught:
        ChainStore(path)
    assert caught.value.exit_code == 65


def test_files_that_are_no_store(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database at all " * 100)
    with pytest.raises(StorageError, match="not a database"):
        ChainStore(garbage)
    with pytest.raises(StorageError, match="cannot be opened"):
        ChainStore(tmp_path / "no such directory" / "chain.db")
    other = tmp_path / "other.db"
    _sql(other, "CREATE TABLE t (x)")
    with pytest.raises(StorageError, match="another program"):
        ChainStore(other)


def test_truncated_file(path: Path) -> None:
    _closed_chain(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError):
        ChainStore(path)


WRITER = """
import sys
from pathlib import Path
from chain.store import ChainStore
from tests.unit.test_store import Chain, make_tx
chain = Chain(ChainStore(Path(sys.argv[1])))
i = 0
while True:
    chain.add((make_tx(i),), {b"k%d" % (i % 7): b"%d" % i})
    print(i, flush=True)
    i += 1
"""


def test_kill_9_leaves_whole_blocks(path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        for _ in range(20):
            reported = int(lines.readline())
        process.send_signal(signal.SIGKILL)
        rest = lines.read().split()
    reported = int(rest[-1]) if rest else reported
    with ChainStore(path) as store:
        tip = store.tip()
        assert tip is not None
        assert tip.height in (reported, reported + 1)  # what was reported is there
        assert store.tx_total() == tip.height + 1


def test_limits_of_a_page(chain: Chain) -> None:
    txs = tuple(make_tx(i) for i in range(1005))
    chain.add(txs)
    assert len(chain.store.latest_txs(5000)) == 1000
    assert len(chain.store.txs_in(Height(0))) == 1005
    assert len(encode(replace(chain.blocks[0], evidence=()))) < limits.MAX_BLOCK_BYTES
