"""The state tree in the chain's file: pages, versions and the order of keys (docs/adr/0020).

A block's commit adds the pages that its tree has and the one before has not, and notes which that
one had and this has no longer: those go when the last version that has them does. So a version is
the number of its root page, and costs what the block changed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from struct import pack, unpack
from typing import Any
from weakref import WeakSet

from chain.errors import DecodeError, InvariantError, StorageError
from chain.hashes import Hash32
from chain.tree import StateTree
from chain.tree_build import TreeBuilder
from chain.tree_codec import PageWriter, base_of, check_page, decode_page, unseal
from chain.tree_keys import StoredKeys
from chain.tree_pages import (
    PAGE_BITS,
    SLOTS,
    STATE_VALUE,
    Bucket,
    Leaf,
    Page,
    Ref,
    empty_root,
    hash_of,
)

CACHE_PAGES = 8192  # in memory, of some 3 to 8 KB each
_PRUNED_VERSIONS = 64  # with one commit
PRUNED_PAGES = 8192  # deleted with one commit, until which no further version is begun
_KEPT_VALUE_BYTES = 4096  # of a long value that stays in memory with its page
_KEYS = 1024  # read at once
NONE = -1  # the version of a store without blocks

TREE_TABLES = ("state_pages", "state_versions", "state_stale", "state_keys", "state_gone")

TREE_SCHEMA = """
CREATE TABLE state_pages (number INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE state_versions (
  height INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, root BLOB NOT NULL,
  page INTEGER NOT NULL, keys INTEGER NOT NULL
);
CREATE TABLE state_stale (height INTEGER PRIMARY KEY, pages BLOB NOT NULL);
CREATE TABLE state_keys (key BLOB PRIMARY KEY, added INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE state_gone (
  key BLOB NOT NULL, added INTEGER NOT NULL, removed INTEGER NOT NULL, PRIMARY KEY (key, removed)
) WITHOUT ROWID;
CREATE INDEX state_gone_by_height ON state_gone (removed);
"""

Transaction = Callable[[], AbstractContextManager[sqlite3.Connection]]
Ask = Callable[..., list[Any]]  # (sql, *values) -> rows, over the calling thread's connection


class TreeFile:
    """Reads pages, values and keys for the trees above it (a `PageSource`), from any thread; what
    writes is called within the store's transaction, then `settle` or `undo`."""

    def __init__(
        self,
        ask: Ask,
        broken: Callable[[str], StorageError],
        keep_versions: int | None = None,
        keep_ms: int = 0,
        cache_pages: int = CACHE_PAGES,
    ) -> None:
        self.keep_versions, self.keep_ms = keep_versions, keep_ms
        self._ask, self._broken, self._cache_pages = ask, broken, cache_pages
        self._loaded: deque[Ref] = deque()  # those whose pages are in memory and need not be
        self._released = 0  # of them, since the last look, that have none any more
        self._lock = threading.Lock()
        self._held: WeakSet[StoredKeys] = WeakSet()  # of trees that someone has
        self._newest = self._begun = NONE
        self._floor = NONE  # below it versions are gone, or going
        self._kept_floor = NONE  # as of the last commit
        self._next = 1
        self._pending: list[tuple[StateTree, int, PageWriter]] = []

    # --- what trees ask ----------------------------------------------------------------

    def page(self, ref: Ref) -> Page:
        number = ref.number
        if number is None:
            raise InvariantError("a page that is not in memory has a number")
        payload = self._payload(number)
        try:
            ref.base = base_of(payload)
            base = None if ref.base is None else (ref.base, self._payload(ref.base))
            page = decode_page(number, payload, base)
        except DecodeError as error:
            raise self._broken(str(error)) from None
        if hash_of(page[1]) != ref.hash:
            raise self._broken(f"page {number} of the state tree is not the one that belongs here")
        ref.page = page
        self._admit(ref)
        return page

    def value(self, leaf: Leaf) -> bytes:
        value = self._payload(leaf.number or 0)
        if STATE_VALUE.hash(value) != leaf.value_hash:
            raise self._broken(f"value {leaf.number} of the state is not the one that belongs here")
        if len(value) <= _KEPT_VALUE_BYTES:
            leaf.value = value
        return value

    def keys(self, version: int, prefix: bytes) -> Iterator[bytes]:
        low, high = prefix, _after(prefix)
        while True:
            found = self._some_keys(version, low, high)
            yield from found
            if len(found) < _KEYS:
                return
            low = found[-1] + b"\0"

    def _some_keys(self, version: int, low: bytes, high: bytes | None) -> list[bytes]:
        within = (
            "key >= ? AND added <= ?" if high is None else "key >= ? AND added <= ? AND key < ?"
        )
        values = (low, version) if high is None else (low, version, high)
        order = f"ORDER BY key LIMIT {_KEYS}"
        if version >= self._begun:
            rows = self._ask(f"SELECT key FROM state_keys WHERE {within} {order}", *values)
            if version >= self._begun:  # nothing was removed meanwhile
                return [key for (key,) in rows]
        rows = self._ask(
            f"SELECT key FROM state_keys WHERE {within} UNION ALL"
            f" SELECT key FROM state_gone WHERE {within} AND removed > ? {order}",
            *(*values, *values, version),
        )
        return [key for (key,) in rows]

    def _payload(self, number: int) -> bytes:
        rows = self._ask("SELECT data FROM state_pages WHERE number = ?", number)
        if not rows:
            raise self._broken(f"page {number} of the state tree is missing")
        try:
            return unseal(number, rows[0][0])
        except DecodeError as error:
            raise self._broken(str(error)) from None

    def _admit(self, ref: Ref) -> None:
        """Count a page that can be let go; let others go that were not used for long."""
        loaded = self._loaded
        loaded.append(ref)
        while len(loaded) > self._cache_pages:
            try:
                old = loaded.popleft()
            except IndexError:  # others were quicker
                return
            if old.used:
                old.used = False
                loaded.append(old)
            else:
                old.page = None

    def _release(self, replaced: Iterable[Ref | Leaf]) -> None:
        """Let go of pages that only older versions have: the new ones take their room."""
        for old in replaced:
            if type(old) is Ref and old.number is not None:
                old.page = None
                self._released += 1
        if self._released < self._cache_pages // 4:
            return
        self._released = 0
        loaded = self._loaded
        for _ in range(len(loaded)):
            try:
                ref = loaded.popleft()
            except IndexError:  # others were quicker
                return
            if ref.page is not None:
                loaded.append(ref)

    # --- versions ----------------------------------------------------------------------

    def start(self) -> None:
        """Read where the file stands."""
        ((newest, oldest),) = self._ask("SELECT max(height), min(height) FROM state_versions")
        ((last,),) = self._ask("SELECT max(number) FROM state_pages")
        self._next = (last or 0) + 1
        if newest is not None:
            self._newest = self._begun = newest
            self._floor = self._kept_floor = oldest

    def empty(self) -> StateTree:
        """What the first block of a new file is made from."""
        return StateTree.stored(empty_root(), StoredKeys(self, NONE), 0, self)

    def oldest(self) -> int:
        """The lowest height whose state is kept."""
        return self._floor

    def open(self, height: int) -> StateTree | None:
        """The state after a height; None where it is not kept, or not yet. It stays as long as the
        tree is held."""
        keys = StoredKeys(self, height)
        with self._lock:
            if not self._floor <= height:
                return None
            self._held.add(keys)
        rows = self._ask("SELECT root, page, keys FROM state_versions WHERE height = ?", height)
        if not rows:
            return None
        ((root, page, count),) = rows
        return StateTree.stored(Ref(Hash32(root), None, page), keys, count, self)

    def check_top(self, tree: StateTree) -> None:
        """That the root page gives the root, by all its hashes."""
        self._check(self.page(tree.top), 0, 0)

    def numbers(self, height: int) -> Iterator[int]:
        """Everything that a version has in `state_pages`, once each; all of it is checked."""
        tree = self.open(height)
        if tree is not None:
            yield from self._below(tree.top, 0, 0)

    def check(self, height: int) -> int:
        """Everything that a version has: its pages and values, and which keys it lists."""
        for _ in self.numbers(height):
            pass
        tree = self.open(height)
        if tree is None:
            raise self._broken(f"the state after block {height} is missing")
        listed = 0
        for key in tree.keys(b""):
            listed += 1
            if key not in tree:
                raise self._broken(f"key {key.hex()} is listed but is not in the state")
        if listed != len(tree) or listed != sum(1 for _ in tree.subtree(0, 0).leaves()):
            raise self._broken(f"{listed} keys of the state are listed, of {len(tree)}")
        return listed

    def _below(self, ref: Ref, level: int, prefix: int) -> Iterator[int]:
        page = self.page(ref)
        self._check(page, level, prefix)
        for slot, node in enumerate(page[SLOTS:]):
            leaves: Sequence[Leaf] = ()
            if type(node) is Ref:
                yield from self._below(node, level + 1, prefix << PAGE_BITS | slot)
            elif type(node) is Leaf:
                leaves = (node,)
            elif type(node) is Bucket:
                leaves = node.leaves
            for leaf in leaves:
                if leaf.number is not None:
                    self.value(leaf)
                    yield leaf.number
        yield ref.number or 0
        if ref.base is not None:
            yield ref.base

    def _check(self, page: Page, level: int, prefix: int) -> None:
        try:
            check_page(page, level, prefix)
        except DecodeError as error:
            raise self._broken(str(error)) from None

    # --- writing -----------------------------------------------------------------------

    def write(self, db: sqlite3.Connection, tree: StateTree, height: int, time_ms: int) -> None:
        """Add a version: what of `tree`, which follows the newest one, is not stored yet."""
        writer = PageWriter(self._next)
        self._pending.append((tree, height, writer))
        is_new = tree.top.number is None  # not where a block changes nothing
        if is_new:
            writer.write(tree.top)
        self._next = writer.next_number
        self._begun = height
        if self._floor == NONE:
            self._floor = height
        db.executemany("INSERT INTO state_pages VALUES (?, ?)", writer.rows)
        replaced = tree.replaced if is_new else ()
        numbers = {x.number for x in replaced} | {x.base for x in replaced if type(x) is Ref}
        stale = sorted(n for n in numbers - writer.bases if n is not None)
        db.execute(
            "INSERT INTO state_stale VALUES (?, ?)",
            (height, _packed(stale)),
        )
        changes = tree.stored_keys.changes if is_new else {}
        removed = [(key,) for key, is_there in changes.items() if not is_there]
        db.executemany(
            f"INSERT INTO state_gone SELECT key, added, {height:d} FROM state_keys WHERE key = ?",
            removed,
        )
        db.executemany("DELETE FROM state_keys WHERE key = ?", removed)
        db.executemany(
            "INSERT INTO state_keys VALUES (?, ?)",
            sorted((key, height) for key, is_there in changes.items() if is_there),
        )
        db.execute(
            "INSERT INTO state_versions VALUES (?, ?, ?, ?, ?)",
            (height, time_ms, tree.root, tree.top.number, len(tree)),
        )
        writer.rows.clear()

    def prune(self, db: sqlite3.Connection, height: int, time_ms: int) -> None:
        """Let versions go that are older than what is kept, if nobody holds them: at most a few,
        so that it takes a block no longer than those that made them."""
        if self.keep_versions is None:
            return
        with self._lock:
            held = [keys.version for keys in self._held if keys.version is not None]
            limit = min(height - self.keep_versions, *held, height)
            rows = db.execute(
                "SELECT height, time_ms FROM state_versions WHERE height < ? ORDER BY height"
                f" LIMIT {_PRUNED_VERSIONS}",
                (limit,),
            ).fetchall()
            latest = time_ms - self.keep_ms
            going = self._choose(db, [old for old, _ in takewhile(lambda r: r[1] < latest, rows)])
            if going:
                self._floor = going[-1] + 1
        for old in going:
            # What the next version no longer had, only this one and older ones did.
            row = db.execute("SELECT pages FROM state_stale WHERE height = ?", (old + 1,))
            ((pages,),) = row.fetchall()
            db.executemany(
                "DELETE FROM state_pages WHERE number = ?", ((n,) for n in _numbers(pages))
            )
            db.execute("DELETE FROM state_stale WHERE height = ?", (old + 1,))
            db.execute("DELETE FROM state_gone WHERE removed = ?", (old + 1,))
            db.execute("DELETE FROM state_versions WHERE height = ?", (old,))

    def _choose(self, db: sqlite3.Connection, olds: Sequence[int]) -> list[int]:
        going: list[int] = []
        pages = 0
        for old in olds:
            if pages >= PRUNED_PAGES:
                break
            sql = "SELECT length(pages) FROM state_stale WHERE height = ?"
            pages += db.execute(sql, (old + 1,)).fetchone()[0] // 8
            going.append(old)
        return going

    def settle(self) -> None:
        """What was written is committed."""
        for tree, height, writer in self._pending:
            self._release(tree.replaced)
            tree.settle(height)
            with self._lock:
                self._held.add(tree.stored_keys)
            for ref in writer.pages:
                self._admit(ref)
            self._newest = height
        self._kept_floor = self._floor
        self._pending.clear()

    def undo(self) -> None:
        """What was written is rolled back."""
        for _, _, writer in reversed(self._pending):
            writer.undo()
        self._pending.clear()
        self._begun, self._floor = self._newest, self._kept_floor


def clear(db: sqlite3.Connection) -> None:
    for table in TREE_TABLES:
        db.execute(f"DELETE FROM {table}")


class TreeImport:
    """Puts a whole tree into a file that has none, from its leaves in the order of their paths.
    What it stores before `finish` belongs to no version yet."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._writer = PageWriter(1)
        self._builder = TreeBuilder(self._writer, self._flush)
        self._keys: list[tuple[bytes]] = []
        with transaction() as db:
            clear(db)
            db.execute("CREATE TEMP TABLE IF NOT EXISTS import_keys (key BLOB NOT NULL)")
            db.execute("DELETE FROM import_keys")

    @property
    def count(self) -> int:
        return self._builder.count

    def add(self, leaves: Iterable[tuple[bytes, bytes]]) -> None:
        """VerifyError if they do not go on in order."""
        for key, value in leaves:
            self._builder.add(key, value)
            self._keys.append((key,))

    def _flush(self) -> None:
        with self._transaction() as db:
            self._store(db)

    def _store(self, db: sqlite3.Connection) -> None:
        db.executemany("INSERT INTO state_pages VALUES (?, ?)", self._writer.rows)
        db.executemany("INSERT INTO import_keys VALUES (?)", self._keys)
        self._writer.rows.clear()
        self._keys.clear()

    def build(self) -> Ref:
        """The root page, when all leaves are there."""
        return self._builder.finish()

    def finish(self, db: sqlite3.Connection, top: Ref, height: int, time_ms: int) -> None:
        """Writes the rest, and makes it a version."""
        self._store(db)
        db.execute("INSERT INTO state_keys SELECT key, ? FROM import_keys ORDER BY key", (height,))
        db.execute(
            "INSERT INTO state_versions VALUES (?, ?, ?, ?, ?)",
            (height, time_ms, top.hash, top.number, self.count),
        )
        db.execute("INSERT INTO state_stale VALUES (?, x'')", (height,))
        db.execute("DROP TABLE import_keys")


def _packed(numbers: list[int]) -> bytes:
    return pack(f"<{len(numbers)}q", *numbers)


def _numbers(pages: bytes) -> tuple[int, ...]:
    return unpack(f"<{len(pages) // 8}q", pages)


def _after(prefix: bytes) -> bytes | None:
    """The first key after all that begin with `prefix`; None if there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes((short[-1] + 1,)) if short else None
