"""What the state on disk costs: putting it there, opening it, reading, and a block's changes.

A block changes keys that it has read, as executing it does; the root, the pages and the sync are
what is timed, with what else a commit of a block without transactions does.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.measure import Row, at_most, in_turns, seconds
from chain.errors import invariant
from chain.hashes import STATE_KEY, ZERO_HASH, Hash32
from chain.store import ChainStore, FinalBlock
from chain.tree import StateTree, subtree_hash
from chain.types import Block, ChainId, Epoch, Header, Height, PubKey, TimeMs, View, tx_root

TARGET_COMMIT_MS = 60.0
TARGET_OPEN_MS = 2000.0
TARGET_IMPORT_S = 60.0
KEEP = 8  # versions, so that pruning is part of what is measured
SYNC_BYTES = 512 * 1024  # about what a block's pages are


@dataclass(frozen=True, slots=True)
class Amount:
    """How many keys, how many of them a block changes, and how many blocks there are."""

    keys: int = 1_000_000
    changed: int = 1000
    blocks: int = 20
    reads: int = 2000


SMALL = Amount(3000, 50, 3, 100)


def rows(amount: Amount) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        yield from _rows(amount, Path(directory))


def _rows(amount: Amount, directory: Path) -> Iterator[Row]:
    leaves = sorted(
        ((_key(i), _value()) for i in range(amount.keys)),
        key=lambda leaf: STATE_KEY.hash(leaf[0]),
    )
    path = directory / "chain.db"
    first = _block(0, ZERO_HASH, subtree_hash(leaves, 0, 0))
    took = seconds(partial(_import, path, leaves, first))
    yield at_most("state_import", took, "s", TARGET_IMPORT_S)
    del leaves
    opened: list[ChainStore] = []
    took = seconds(lambda: opened.append(ChainStore(path, KEEP)))
    yield at_most("state_open", 1000 * took, "ms", TARGET_OPEN_MS)
    with opened[0] as store:
        yield from _use(amount, store, first, directory)


def _use(amount: Amount, store: ChainStore, first: Block, directory: Path) -> Iterator[Row]:
    state = store.load_state()
    cold = [_key(random.randrange(amount.keys)) for _ in range(amount.reads)]
    yield at_most("state_read_cold", 1e6 * _reads(state, cold), "us", None)
    hot = cold[: amount.reads // 20]
    yield at_most("state_read_hot", 1e6 * min(_reads(state, hot) for _ in range(5)), "us", None)
    writer = _Blocks(amount, store, first)
    sync = partial(_synced, directory / "floor", random.randbytes(SYNC_BYTES))
    for _ in range(KEEP):
        writer.read()
        writer.commit()
    taken, floor = in_turns(amount.blocks, writer.commit, sync, before=writer.read)
    cost, least = 1000 * median(taken), 1000 * median(floor)
    yield at_most("state_commit", cost, "ms", TARGET_COMMIT_MS, least)
    invariant(store.load_state().root == writer.parent.header.state_root, "all blocks are there")


class _Blocks:
    """Blocks that each change some keys."""

    def __init__(self, amount: Amount, store: ChainStore, parent: Block) -> None:
        self.amount, self.store, self.parent = amount, store, parent
        self.changes: dict[bytes, bytes | None] = {}

    def read(self) -> None:
        if not self.changes:
            chosen = (random.randrange(self.amount.keys) for _ in range(self.amount.changed))
            self.changes = {_key(i): _value() for i in chosen}
            state = self.store.load_state()
            for key in self.changes:
                invariant(state.get(key) is not None, "every key is there")

    def commit(self) -> None:
        state = self.store.load_state().set_many(self.changes)
        block = _block(self.parent.header.height + 1, self.parent.hash(), state.root)
        item = FinalBlock(block, block.hash(), None, (), self.changes, (), state)
        self.store.commit_all((item,))
        self.parent, self.changes = block, {}


def _import(path: Path, leaves: list[tuple[bytes, bytes]], block: Block) -> None:
    with ChainStore(path) as store, store.import_state() as load:
        load.add(leaves)
        load.finish(block, block.hash())


def _reads(state: StateTree, keys: list[bytes]) -> float:
    get: Callable[[bytes], object] = state.get
    return seconds(lambda: [get(key) for key in keys]) / len(keys)


def _synced(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _key(number: int) -> bytes:
    return b"acct/" + STATE_KEY.hash(number.to_bytes(8, "big"))


def _value() -> bytes:
    return random.randbytes(30)


def _block(height: int, parent: Hash32, root: Hash32) -> Block:
    header = Header(
        *(1, ChainId(ZERO_HASH), Epoch(0), View(height), Height(height), parent),
        *(TimeMs(1_790_000_000_000 + height), PubKey(bytes(32)), tx_root(()), root),
        *(ZERO_HASH, ZERO_HASH, b"", b"", ZERO_HASH),
    )
    return Block(header, (), ())
