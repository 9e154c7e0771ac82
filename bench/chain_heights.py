"""Whether a block costs more where the chain is long: the same blocks on files of two heights.

    python -m bench.chain_heights [--high 1000000] [--blocks 1000] [--json]

Making a million blocks one by one takes ten minutes. `fill` writes the rows that such
blocks leave, table by table: as many, as long, with the same kinds of keys (random hashes, accounts
that come again), so that tables and indexes are as large and as deep and as loosely packed as they
would be; only what stands in headers and bodies repeats, which SQLite does not look at. The last
`SETTLED_BLOCKS` below the measured ones are real commits: states come and go as on a node that has
run for long.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.chain_store import (
    ACCOUNTS,
    EPOCH_BLOCKS,
    START_MS,
    VALIDATORS,
    Maker,
    account,
    events,
    insert,
    query_ms,
)
from bench.measure import Row, at_most, quantile, report, seconds
from chain import store_schema
from chain.codec import encode, tag_of
from chain.hashes import STATE_KEY
from chain.receipts import OK
from chain.store import ChainStore, FinalBlock
from chain.store_rows import insert_events
from chain.store_tree import TreeImport
from chain.transactions import Transfer
from chain.tree import StateTree
from chain.types import Height

KEPT_VERSIONS = 256  # of the state, at both heights
SETTLED_BLOCKS = 320  # enough that as many versions go as come
_CHUNK = 2000  # heights whose rows of a table are written together
_CACHE_KIB = 512 * 1024
COLUMNS = {"blocks": 9, "bodies": 2, "certificates": 2, "txs": 9, "tx_parties": 2}


@dataclass(frozen=True, slots=True)
class Heights:
    """Heights between which the cost of a block may not grow, and how many blocks are measured."""

    directory: Path
    low: int = 1000
    high: int = 1_000_000
    blocks: int = 1000


def growth(sizes: Heights) -> Iterator[Row]:
    """With one transaction in each block, in turns, so that what else the machine does meets both.
    The mean has the checkpoints in it, of which only some blocks have one."""
    took: list[float] = []
    chains = []
    for height in (sizes.low, sizes.high):
        path = sizes.directory / f"height-{height}.db"
        took.append(seconds(lambda p=path, h=height: chains.append(Chain(p, h))))  # type: ignore[misc]
    yield at_most(f"store fill of {sizes.high}", took[1], "s", None)
    asked = query_ms(sizes.directory / f"height-{sizes.high}.db", 100)
    yield at_most(f"store queries at {sizes.high}", quantile(asked, 0.99), "ms", 20)
    samples: list[list[float]] = [[], []]
    try:
        for number in range(sizes.blocks):
            for which in (0, 1) if number % 2 else (1, 0):
                samples[which].append(1000 * chains[which].append())
    finally:
        for chain in chains:
            chain.close()
    low, high = (quantile(taken, 0.5) for taken in samples)
    low_mean, high_mean = (sum(taken) / len(taken) for taken in samples)
    yield at_most(f"store block at {sizes.low}", low, "ms", None)
    yield at_most(f"store block at {sizes.high}", high, "ms", None)
    yield at_most("store block, growth", high / low, "x", 1.1)
    yield at_most("store block, growth of mean", high_mean / low_mean, "x", None)


class Chain:
    """A file with a chain of `height` blocks above genesis, which goes on."""

    def __init__(self, path: Path, height: int) -> None:
        self._maker, self._chance = Maker(1), random.Random(2)
        with ChainStore(path):
            pass
        with closing(store_schema.connect(path)) as db:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF"):
                db.execute(f"PRAGMA {pragma}")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.execute("BEGIN")
            fill(db, self._maker, max(0, height - SETTLED_BLOCKS))
            self._begin(db)
            db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
        with ChainStore(path, KEPT_VERSIONS, synced=False) as self._store:
            while self._maker.height <= height:
                self.append()
        with path.open("rb") as file:
            os.fsync(file.fileno())  # or the kernel would still write it when blocks are measured
        self._store = ChainStore(path, KEPT_VERSIONS)

    def append(self) -> float:
        """Seconds of one more block's state root and commit."""
        state, changes = self._store.load_state(), dict(self._changes())
        self._maker.root = state.set_many(changes).root
        item = replace(self._maker.block(), state_changes=changes)
        return seconds(lambda: self._commit(item, state.set_many(changes)))

    def _commit(self, item: FinalBlock, tree: StateTree) -> None:
        self._store.commit_all((replace(item, tree=tree),))

    def _begin(self, db: sqlite3.Connection) -> None:
        """The first block that is no filling, and the state after it."""
        leaves = [(_key(i), self._value()) for i in range(ACCOUNTS)]
        load = TreeImport(lambda: nullcontext(db))
        load.add(sorted(leaves, key=lambda leaf: STATE_KEY.hash(leaf[0])))
        top = load.build()
        self._maker.root = top.hash
        item = self._maker.block()
        insert(db, item)
        load.finish(db, top, item.block.header.height, item.block.header.time_ms)

    def _changes(self) -> Iterator[tuple[bytes, bytes]]:
        """What a transfer changes, and a record that changes with every block."""
        for number in (*self._chance.sample(range(1, ACCOUNTS), 2), 0):
            yield _key(number), self._value()

    def _value(self) -> bytes:
        return self._chance.randbytes(30)

    def close(self) -> None:
        self._store.close()


def _key(number: int) -> bytes:
    return b"acct/" + account(number)


def fill(db: sqlite3.Connection, maker: Maker, height: int) -> None:
    """The rows of all blocks below `height`, of which `maker` then makes the next."""
    maker.height = height  # what repeats has the length that it has there
    model = maker.block()
    maker.height = height
    rows = _Rows(model, random.Random(3))
    for first in range(0, height, _CHUNK):
        heights = range(first, min(first + _CHUNK, height))
        for table, some in rows.of(heights):
            marks = ", ".join("?" * COLUMNS[table])
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", some)
        for h in heights:
            if found := events(h):
                insert_events(db, Height(h), found)


class _Rows:
    """Rows like those of `model`, at other heights."""

    def __init__(self, model: FinalBlock, chance: random.Random) -> None:
        self._chance = chance
        self._accounts = [account(i) for i in range(ACCOUNTS)]
        self._header, self._body = encode(model.block.header), encode(model.block)
        self._certificate = encode(model.finalization)

    def of(self, heights: range) -> Iterator[tuple[str, Iterable[tuple[Any, ...]]]]:
        """By table. A block has one transaction, whose number is one above its height."""
        chance, size, kind = self._chance.randbytes, len(self._body), tag_of(Transfer)
        pairs = [self._chance.sample(self._accounts, 2) for _ in heights]
        yield (
            "blocks",
            (
                (
                    *(h, chance(32), self._header, START_MS + 1000 * h),
                    *(self._accounts[h % VALIDATORS], h % EPOCH_BLOCKS + 1, h // EPOCH_BLOCKS),
                    *(1, size),
                )
                for h in heights
            ),
        )
        yield "bodies", ((h, self._body) for h in heights)
        yield "certificates", ((h, self._certificate) for h in heights)
        yield (
            "txs",
            (
                (h + 1, h, 0, chance(32), sender, kind, h.to_bytes(8, "big"), OK, "")
                for h, (sender, _) in zip(heights, pairs, strict=True)
            ),
        )
        parties = ((who, h + 1) for h, pair in zip(heights, pairs, strict=True) for who in pair)
        yield "tx_parties", parties


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--high", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=1000, help="measured at each height")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as place:
        sizes = Heights(Path(place), high=options.high, blocks=options.blocks)
        return report(growth(sizes), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
