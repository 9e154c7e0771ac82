"""The chain's file at the size of years: opening it, appending to it, asking it (issue: chain).

    python -m bench.chain_store [--txs 1000000] [--per-block 1000]

`build_store` writes blocks of real, signed-looking transfers through the store's own rows, many
blocks a transaction and without syncing, which is what makes it quick; what it leaves is a file
that `ChainStore` opens like any other.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Row, at_least, at_most, quantile, report, seconds
from chain import store_schema
from chain.codec import encode
from chain.hashes import TX, ZERO_HASH, Hash32
from chain.receipts import OK, Receipt
from chain.signed import signed
from chain.state import Event
from chain.store import ChainStore, FinalBlock
from chain.store_rows import insert_block, insert_certificate, insert_events, insert_txs, tx_columns
from chain.store_tree import TreeImport
from chain.transactions import Transaction, Transfer
from chain.tree import StateTree
from chain.types import (
    HEADER_VERSION,
    Block,
    Certificate,
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
    VoteKind,
    tx_root,
)

CHAIN_ID = ChainId(b"\x2b" * 32)
ACCOUNTS = 10_000
EPOCH_BLOCKS = 128
VALIDATORS = 4
START_MS = 1_700_000_000_000
BATCH_BLOCKS = 64  # committed at once while building
_SIGNATURE = Signature(bytes(range(64)))
_CHANGES = {b"bench": b"state"}


def account(number: int) -> PubKey:
    return PubKey(TX.hash(b"account", number.to_bytes(8, "big")))


class Maker:
    """Block after block, the same for the same seed and sizes."""

    def __init__(self, txs_per_block: int, seed: int = 1) -> None:
        self._per_block = txs_per_block
        self._chance = random.Random(seed)
        self._accounts = [account(i) for i in range(ACCOUNTS)]
        self._nonces = [0] * ACCOUNTS
        self.root = StateTree.empty().set_many(_CHANGES).root  # of the state after each
        self.height, self.parent = 0, Hash32(ZERO_HASH)

    def block(self) -> FinalBlock:
        made = [self._tx() for _ in range(self._per_block if self.height else 0)]
        txs = tuple(raw for raw, _ in made)
        height = self.height
        proposer = self._accounts[height % VALIDATORS]
        proof = self._chance.randbytes(80)
        header = Header(
            HEADER_VERSION,
            CHAIN_ID,
            Epoch(max(0, height - 1) // EPOCH_BLOCKS),
            View(max(0, height - 1) % EPOCH_BLOCKS + 1),
            Height(height),
            self.parent,
            TimeMs(START_MS + 1000 * height),
            proposer,
            tx_root(txs),
            self.root,
            Hash32(ZERO_HASH),
            Hash32(ZERO_HASH),
            proof[:64],
            proof,
            Hash32(ZERO_HASH),
        )
        block = Block(header, txs, ())
        self.parent, self.height = header.hash(), height + 1
        signatures = (_SIGNATURE,) * (VALIDATORS - 1)
        final = Certificate(
            VoteKind.FINALIZE, header.epoch, header.view, self.parent, b"\x07", signatures
        )
        receipts = [Receipt(tx_id, OK, "") for _, tx_id in made]
        return FinalBlock(block, self.parent, final, receipts, _CHANGES, events(height))

    def _tx(self) -> tuple[bytes, TxId]:
        """Encoded, and known as one whose signature holds, as it is where a block is executed."""
        sender = self._chance.randrange(ACCOUNTS)
        nonce = self._nonces[sender]
        self._nonces[sender] += 1
        to = self._accounts[self._chance.randrange(ACCOUNTS)]
        key = self._accounts[sender]
        payload = Transfer(to, Grains(1 + nonce))
        tx = Transaction(CHAIN_ID, key, key, nonce, Grains(1000), None, payload, _SIGNATURE)
        raw = encode(tx)
        tx_id = TxId(TX.hash(raw))
        signed.add(tx_id, tx, len(raw))
        return raw, tx_id


def events(height: int) -> list[Event]:
    """A phase every tenth block and a custody event every thirty-second, as a network has."""
    found = []
    if height % 10 == 0:
        data = {"phase": ("open", "train", "reveal", "done")[height // 10 % 4]}
        found.append(Event("phase", (height // 40).to_bytes(8, "big"), data))
    if height % 32 == 0:
        found.append(Event("custody", TX.hash(height.to_bytes(8, "big")), {"places": 16}))
    return found


def build_store(path: Path, blocks: int, txs_per_block: int, seed: int = 1) -> Maker:
    """A file with so many blocks above genesis; the maker, which can go on where it stops."""
    with ChainStore(path):
        pass
    maker = Maker(txs_per_block, seed)
    with closing(store_schema.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -262144")
        db.execute("PRAGMA wal_autocheckpoint = 100000")
        for first in range(0, blocks + 1, BATCH_BLOCKS):
            db.execute("BEGIN IMMEDIATE")
            for _ in range(min(BATCH_BLOCKS, blocks + 1 - first)):
                insert(db, maker.block())
            db.execute("COMMIT")
        _put_state(db, maker)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return maker


def _put_state(db: sqlite3.Connection, maker: Maker) -> None:
    """The state after the last block; those before are not kept."""
    db.execute("BEGIN IMMEDIATE")
    load = TreeImport(lambda: nullcontext(db))
    load.add(list(_CHANGES.items()))
    load.finish(db, load.build(), maker.height - 1, START_MS + 1000 * (maker.height - 1))
    db.execute("COMMIT")


def insert(db: sqlite3.Connection, item: FinalBlock) -> None:
    height = item.block.header.height
    insert_block(db, item.block, item.block_hash)
    if item.finalization is not None:
        insert_certificate(db, height, item.finalization)
    rows = zip(item.block.txs, item.receipts, strict=True)
    insert_txs(db, [(height, i, *tx_columns(*pair)) for i, pair in enumerate(rows)])
    insert_events(db, height, item.events)


# --- what is measured --------------------------------------------------------------------------


def append_ms(path: Path, maker: Maker, count: int) -> list[float]:
    """Milliseconds of each durable append, with what made the block left out."""
    with ChainStore(path) as store:
        taken = []
        for _ in range(count):
            item = maker.block()
            taken.append(1000 * seconds(lambda item=item: store.commit_all((item,))))  # type: ignore[misc]
        return taken


def questions(store: ChainStore, chance: random.Random) -> Iterator[Callable[[], object]]:
    """One round of everything that the explorer's pages ask of the store, at random places."""
    tip = store.tip()
    height = 1 + chance.randrange(tip.height if tip else 1)
    number = 1 + chance.randrange(store.tx_total())
    owner = account(chance.randrange(ACCOUNTS))
    rows = store.latest_txs(25, number)
    seed = TX.hash((height // 32 * 32).to_bytes(8, "big"))
    block_hash = store.latest_blocks(1, height + 1)[0].hash
    yield store.tip
    yield store.first_height
    yield store.tx_total
    yield lambda: store.latest_blocks(100)
    yield lambda: store.latest_blocks(100, height)
    yield lambda: store.latest_txs(100)
    yield lambda: store.latest_txs(100, number)
    yield lambda: store.txs_of(owner, 100)
    yield lambda: store.txs_of(owner, 100, number)
    yield lambda: store.header(Height(height))
    yield lambda: store.certificate(Height(height))
    yield lambda: store.height_of(block_hash)
    yield lambda: store.tx(TxId(rows[-1].id) if rows else TxId(Hash32(ZERO_HASH)))
    yield lambda: store.tx(TxId(Hash32(chance.randbytes(32))))
    yield lambda: store.history("phase", limit=100)
    yield lambda: store.history("phase", (height // 40).to_bytes(8, "big"))
    yield lambda: store.history("custody", before=(height, 0), limit=100)
    yield lambda: store.history("custody", seed, limit=1)


def query_ms(path: Path, rounds: int) -> list[float]:
    chance, taken = random.Random(7), list[float]()
    with ChainStore(path) as store:
        for _ in range(rounds):
            taken += [1000 * seconds(ask) for ask in questions(store, chance)]
    return taken


def block_page_ms(path: Path, rounds: int) -> list[float]:
    """The page of a whole block: its body and a line for each transaction. Not among the queries
    of which a page has many: it grows with the block alone."""
    chance, taken = random.Random(8), []
    with ChainStore(path) as store:
        tip = store.tip()
        for _ in range(rounds):
            height = Height(1 + chance.randrange(tip.height if tip else 1))
            taken.append(1000 * seconds(lambda h=height: (store.block(h), store.txs_in(h))))  # type: ignore[misc]
    return taken


@dataclass(frozen=True, slots=True)
class StoreSizes:
    directory: Path
    txs: int = 1_000_000
    per_block: int = 1000
    appends: int = 40


def measured(sizes: StoreSizes) -> Iterator[Row]:
    """All figures, each as soon as it is known."""
    large, per_block = sizes.directory / "large.db", sizes.per_block
    made: list[Maker] = []
    built = seconds(lambda: made.append(build_store(large, sizes.txs // per_block, per_block)))
    yield at_least("store build", sizes.txs / built, "tx/s", 20_000)
    opened = [seconds(lambda: ChainStore(large).close()) for _ in range(3)]
    yield at_most("store open", quantile(opened, 0.5), "s", 2.0)
    yield at_most("store queries p99", quantile(query_ms(large, 100), 0.99), "ms", 20)
    page = quantile(block_page_ms(large, 50), 0.99)
    yield at_most(f"store page of {per_block} txs", page, "ms", None)
    durable = quantile(append_ms(large, made[0], sizes.appends), 0.5)
    yield at_most(f"store append {per_block} txs", durable, "ms", 120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--txs", type=int, default=1_000_000)
    parser.add_argument("--per-block", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sizes = StoreSizes(Path(place), options.txs, options.per_block)
        return report(measured(sizes), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
