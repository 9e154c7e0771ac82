"""One bit of a chain's file at a time: whether the doctor finds it, and what it does otherwise.

The chain has what a real one has in each table: transfers that were done and refused, events,
keys that went, versions of the state that were let go, certificates of several epochs. It is the
same in every run, so a seed replays.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.errors import StorageError
from chain.store import ChainStore
from chain.transactions import Transfer
from chain.types import CertifiedBlock, Grains, Height
from node.chain_check import Problem, check_chain
from node.chain_repair import NEW, rebuild, remove
from node.genesis import GenesisChain, build_genesis
from node.rules import ProtocolRules
from node.services.chain import ChainService
from tests.kit.custody_chain import CUSTODY_PARAMS, troubled_event
from tests.kit.local_chain import LocalChain

EPOCH_BLOCKS = 4
KEPT_VERSIONS = 9
PRUNED_BELOW = Height(10)
HEADER_BYTES = 100  # of an SQLite file
PAGE_BYTES = 4096
UNPROVABLE = {"txs", "events", "certificates"}  # where there is no replay
_MORE = 3  # blocks that a store goes on with


@dataclass(frozen=True, slots=True)
class Made:
    """A chain in one file, and the blocks that come after it."""

    start: GenesisChain
    genesis_text: str
    data: bytes
    height: Height
    more: tuple[CertifiedBlock, ...]


def make(directory: Path, *, pruned: bool = False) -> Made:
    directory.mkdir(exist_ok=True)
    with LocalChain(directory, epoch_blocks=EPOCH_BLOCKS, **CUSTODY_PARAMS) as chain:
        _pay(chain, 5)
        troubled_event(chain)
        _pay(chain, 4)
        genesis, text = chain.genesis, chain.genesis_text
        found = chain.store.blocks(Height(1), chain.chain.tip.height, 1000)
    start = build_genesis(genesis)
    path = directory / "made.db"
    with ChainStore(path, KEPT_VERSIONS) as store:
        append(store, start, found[:-_MORE])
        if pruned:
            store.prune(PRUNED_BELOW, 10**6, _is_kept)
        tip = store.tip()
    assert tip is not None
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Made(start, text, path.read_bytes(), tip.height, found[-_MORE:])


def _pay(chain: LocalChain, blocks: int) -> None:
    for i in range(blocks):
        payer, payee = chain.learners[i % 3], chain.learners[(i + 1) % 3]
        chain.send(Transfer(payee.public, Grains(5)), payer)
        chain.block(*[b"no transaction"] * (i == 1))


def append(store: ChainStore, start: GenesisChain, blocks: tuple[CertifiedBlock, ...]) -> None:
    service = ChainService(start, store, ProtocolRules())
    for item in blocks:
        service.execute(service.tip, item.block)
        service.commit((item.block,), item.finalization)


def _is_kept(height: Height) -> bool:
    return height % EPOCH_BLOCKS == 0


# --- what a file holds ---------------------------------------------------------------------------


def rows(path: Path) -> list[tuple[Any, ...]]:
    """Every row there is with its types, whatever the pages look like. When a key was added counts
    only after the oldest version: before, it was there."""
    found: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path)) as db:
        (oldest,) = db.execute("SELECT min(height) FROM state_versions").fetchone()
        for (table,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        ).fetchall():
            columns = ["*"]
            if table in ("state_keys", "state_gone"):
                columns = ["key", f"max(added, {oldest})"] + ["removed"] * (table == "state_gone")
            sql = f"SELECT {', '.join(columns)} FROM {table}"
            if table == "state_stale":  # of what a state came with, nothing was ever stale
                sql += f" WHERE height > {oldest} OR length(pages)"
            lines = [[table, *((type(v).__name__, v) for v in row)] for row in db.execute(sql)]
            found += map(tuple, sorted(lines, key=repr))
        found += db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
        for pragma in ("user_version", "application_id"):
            found += db.execute(f"PRAGMA {pragma}")
    return found


def answers(path: Path) -> list[Any]:
    """What the API of a node might ask. StorageError is an answer, anything else is a bug."""
    found: list[Any] = []
    with ChainStore(path, KEPT_VERSIONS) as store:
        tip = store.tip()
        for height in map(Height, range((tip.height if tip else 0) + 1)):
            found += [store.block(height), store.header(height), store.certificate(height)]
            found.append(store.txs_in(height))
        lines = store.latest_txs(100)
        for line in lines:
            if line.height >= store.pruned.height:
                found.append(store.tx(line.id))
            if line.sender is not None:
                found.append(store.txs_of(line.sender, 100))
        for kind in ("custody", "custody_dispute", "slash", "shard", "model"):
            events = store.history(kind)
            found += [events, *(store.history(kind, event.key) for event in events)]
        found += [lines, store.latest_blocks(100), store.tx_total()]
        found.append(store.blocks(Height(0), Height(99), 100))
        for version in range(store.oldest_state(), tip.height + 1 if tip else 0):
            tree = store.tree_at(version)
            found.append(None)
            if tree is not None:
                found.append((tree.root, [*tree.keys(b"")], [*tree.subtree(0, 0).leaves()]))
    return found


# --- one bit -------------------------------------------------------------------------------------


class Flips:
    """Works in a directory of its own. What is found damaged is built anew as well."""

    def __init__(self, made: Made, directory: Path, *, pruned: bool) -> None:
        self.made, self.pruned = made, pruned
        self._path = directory / "chain.db"
        self._put(made.data)
        self._rows, self._answers = rows(self._path), answers(self._path)
        self._gone_on = self._goes_on()
        self._put(made.data)
        with closing(sqlite3.connect(self._path)) as db:
            self._owners = dict(db.execute("SELECT pageno, name FROM dbstat"))

    def bits(self, dice: random.Random, count: int) -> Iterator[int]:
        """By turns anywhere, and in a table, an index or the header, all as likely: what is large
        has the least that nothing checks."""
        pages: dict[str, list[int]] = {"header": [1]}
        for page, owner in self._owners.items():
            pages.setdefault(owner, []).append(page)
        for number in range(count):
            if number % 2:
                yield dice.randrange(len(self.made.data) * 8)
                continue
            owner = dice.choice(sorted(pages))
            start = (dice.choice(pages[owner]) - 1) * PAGE_BYTES
            ends = HEADER_BYTES if owner == "header" else PAGE_BYTES
            used = [at for at in range(start, start + ends) if self._is_used(at)]
            yield dice.choice(used) * 8 + dice.randrange(8)

    def _is_used(self, at: int) -> bool:
        return at < HEADER_BYTES or any(self.made.data[max(0, at - 4) : at + 5])

    def flip(self, bit: int) -> str:
        """How it came out. AssertionError if it was not noticed and is not harmless."""
        flipped = bytearray(self.made.data)
        flipped[bit // 8] ^= 1 << bit % 8
        data = bytes(flipped)
        self._put(data)
        how, problems = self._look()
        if how == "refused":
            return how
        said, is_same = "", False
        try:
            is_same = answers(self._path) == self._answers
        except StorageError as error:
            said = str(error)
        assert problems or not said, (
            f"bit {bit}: the doctor finds nothing, and reading says: {said}"
        )
        if problems:
            return f"{how}, {self._mended(data)}"
        self._put(data)
        changed = set(rows(self._path)) ^ set(self._rows)
        if self.pruned and {row[0] for row in changed} <= UNPROVABLE:
            return "nobody can tell" if changed else "harmless"
        assert not changed, f"bit {bit}: rows differ: {changed}"
        assert is_same, f"bit {bit}: answers differ"
        assert self._goes_on() == self._gone_on, f"bit {bit}: what comes next differs"
        return "harmless"

    def owner(self, bit: int) -> str:
        """Whose page it is in."""
        at = bit // 8
        return "header" if at < HEADER_BYTES else self._owners.get(at // PAGE_BYTES + 1, "free")

    def _look(self) -> tuple[str, list[Problem]]:
        try:
            if problems := check_chain(self._path, self.made.start):
                return "found", problems
        except StorageError:
            return "refused", []
        if self.pruned:
            return "unnoticed", []
        return "found by replay", check_chain(self._path, self.made.start, replay=True)

    def _mended(self, data: bytes) -> str:
        self._put(data)
        new = self._path.with_name(NEW)
        try:
            done = rebuild(self._path, self.made.start, lambda done, total: None)
        except StorageError:
            assert self.pruned, "a whole chain can be built anew"
            return "not to be mended"
        try:  # what was executed to build it needs no replay
            assert (problems := check_chain(new, self.made.start)) == [], problems
        finally:
            remove(new)
        is_whole = done.height == self.made.height
        return "mended" if is_whole else "mended up to where it is damaged"

    def _goes_on(self) -> list[tuple[Any, ...]]:
        """What the file holds after the blocks that follow, and after more was pruned."""
        with ChainStore(self._path, KEPT_VERSIONS) as store:
            append(store, self.made.start, self.made.more)
            store.prune(Height(PRUNED_BELOW + 2), 10**6, _is_kept)
        return rows(self._path)

    def _put(self, data: bytes) -> None:
        remove(self._path)
        self._path.write_bytes(data)


def run(flips: Flips, seed: int, count: int) -> Counter[str]:
    """How many came out how; the seed and the number of the first that is a bug are printed."""
    dice, came_out = random.Random(seed), Counter[str]()
    for number, bit in enumerate(flips.bits(dice, count)):
        try:
            came_out[flips.flip(bit)] += 1
        except BaseException:
            print(f"flip {number} of seed {seed}: bit {bit}, {flips.owner(bit)}")
            raise
    return came_out
