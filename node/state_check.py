"""Whether the state tables of chain.db hold together: every version that is kept, and what pruning
will take away (docs/spec/storage.md, "Doctor").

The newest version is read through; from it each older one by what the two do not share. So every
page is read about once, and what a version says of itself is compared with its tree: `state_stale`
with the pages that only the older one has, `state_keys` and `state_gone` with the keys.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from struct import pack
from typing import Any, NamedTuple

from chain import records as r
from chain.codec import decode
from chain.errors import DecodeError, StorageError
from chain.store_tree import TreeFile
from chain.tree import StateTree
from chain.tree_codec import check_page
from chain.tree_pages import PAGE_BITS, SLOTS, Bucket, Leaf, Node, Page, Ref, load
from chain.types import Header, ValidatorSet


class Version(NamedTuple):
    """A row of `state_versions`."""

    height: int
    time_ms: int
    root: bytes
    page: int
    keys: int


@dataclass(slots=True)
class _Part:
    """What a part of a tree has: numbers of rows in `state_pages`, and keys."""

    numbers: set[int] = field(default_factory=set)
    keys: set[bytes] = field(default_factory=set)


class StateCheck:
    """Reads over one connection, in a transaction of the caller. After `problems`, `sets` are the
    validators of the epochs that the newest state remembers."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._file = TreeFile(self._ask, StorageError)
        self.sets: dict[int, ValidatorSet] = {}

    def problems(self, tip: int) -> Iterator[tuple[str, str]]:
        """Where and what, of the state up to the block `tip`, the last."""
        versions = [Version(*row) for row in self._ask("SELECT * FROM state_versions ORDER BY 1")]
        heights = [version.height for version in versions]
        if not versions or heights != list(range(heights[0], tip + 1)):
            yield "state", f"its versions are not those of consecutive blocks up to {tip}"
            return
        for version in versions:
            if (wrong := self._beside(version)) is not None:
                yield f"state after block {version.height}", wrong
        try:
            self._file.start()
            yield from self._trees(versions)
        except (StorageError, DecodeError) as error:
            yield "state", str(error)

    def _ask(self, sql: str, *values: object) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def _beside(self, version: Version) -> str | None:
        """What its row says otherwise than the block."""
        rows = self._ask("SELECT header FROM blocks WHERE height = ?", version.height)
        if not rows:
            return "there is no such block"
        try:
            header: Header = decode(Header, rows[0][0])
        except DecodeError:
            return None  # told of the block
        if version.root != header.state_root:
            return "its root is not its header's"
        if version.time_ms != header.time_ms:
            return "its time is not its header's"
        return None

    # --- trees ------------------------------------------------------------------------------

    def _trees(self, versions: list[Version]) -> Iterator[tuple[str, str]]:
        newest = self._tree(versions[-1])
        rows, keys = self._newest(newest)
        yield from self._listed(versions[-1], newest, keys)
        for _, raw in newest.items(b"epch/"):
            record: r.EpochRecord = decode(r.EpochRecord, raw)
            self.sets[record.epoch] = record.validators
        oldest = versions[0].height
        added = _by_height(
            self._db,
            "SELECT added, key FROM state_keys WHERE added > :oldest UNION ALL"
            " SELECT added, key FROM state_gone WHERE added > :oldest ORDER BY 1 DESC",
            oldest,
        )
        removed = _by_height(
            self._db,
            "SELECT removed, key FROM state_gone WHERE removed > :oldest ORDER BY 1 DESC",
            oldest,
        )
        for older, newer in zip(versions[-2::-1], versions[:0:-1], strict=True):
            tree = self._tree(older)
            gone, come = self._differ(tree.top, newest.top)
            where = f"state after block {newer.height}"
            if added.of(newer.height) != come.keys - gone.keys:
                yield where, "the keys that are listed as added with it are others"
            if removed.of(newer.height) != gone.keys - come.keys:
                yield where, "the keys that are listed as removed with it are others"
            stale = sorted(gone.numbers - come.numbers)
            if self._stale(newer.height) != [(pack(f"<{len(stale)}q", *stale),)]:
                yield where, "the pages that it replaced are others than those noted"
            keys += len(gone.keys - come.keys) - len(come.keys - gone.keys)
            if older.keys != keys:
                yield f"state after block {older.height}", f"it has {keys} keys, not {older.keys}"
            rows += len(stale)
            newest = tree
        yield from self._strays(oldest, versions[-1].height, rows)

    def _strays(self, oldest: int, tip: int, rows: int) -> Iterator[tuple[str, str]]:
        ((stored,),) = self._ask("SELECT count(*) FROM state_pages")
        if stored != rows:
            yield "state_pages", f"{stored} rows, and the states have {rows}"
        asked = {
            "state_stale": "height > :tip OR height <= :oldest AND length(pages)",
            "state_keys": "added > :tip",
            "state_gone": "removed > :tip OR removed <= :oldest OR added >= removed",
        }
        for table, which in asked.items():
            sql = f"SELECT count(*) FROM {table} WHERE {which}"
            (count,) = self._db.execute(sql, {"tip": tip, "oldest": oldest}).fetchone()
            if count:
                yield table, f"{count} rows of states that are not there"

    def _stale(self, height: int) -> list[Any]:
        return self._ask("SELECT pages FROM state_stale WHERE height = ?", height)

    def _tree(self, version: Version) -> StateTree:
        tree = self._file.open(version.height)
        if tree is None:
            raise StorageError(f"the state after block {version.height} is missing")
        return tree

    def _newest(self, tree: StateTree) -> tuple[int, int]:
        """How many rows and keys it has, all of them read and checked."""
        rows = keys = 0
        for part in self._walk(tree.top, 0, 0):
            rows += len(part.numbers)
            keys += len(part.keys)
        return rows, keys

    def _listed(self, version: Version, tree: StateTree, keys: int) -> Iterator[tuple[str, str]]:
        where = f"state after block {version.height}"
        if version.keys != keys:
            yield where, f"it has {keys} keys, not {version.keys}"
        listed = 0
        for key in tree.keys(b""):
            listed += 1
            if key not in tree:
                yield where, f"key {key.hex()} is listed but is not in the state"
        if listed != keys:
            yield where, f"{listed} keys of the state are listed, of {keys}"

    # --- pages ------------------------------------------------------------------------------

    def _walk(self, ref: Ref, level: int, prefix: int) -> Iterator[_Part]:
        """All of a page and what is below it, page by page."""
        part = _Part()
        for slot, node in enumerate(self._slots(ref, level, prefix, part)):
            if type(node) is Ref:
                yield from self._walk(node, level + 1, prefix << PAGE_BITS | slot)
            else:
                self._leaves(node, part)
        yield part

    def _differ(self, old: Ref, new: Ref) -> tuple[_Part, _Part]:
        """What an older tree and a newer one have in the pages that they do not share. The newer
        one's are checked already."""
        gone, come = _Part(), _Part()
        self._compare(old, new, 0, 0, gone, come)
        return gone, come

    def _compare(
        self, old: Node, new: Node, level: int, prefix: int, gone: _Part, come: _Part
    ) -> None:
        if type(old) is Ref and type(new) is Ref:
            if old.number == new.number and old.hash == new.hash:
                return
            before = self._slots(old, level, prefix, gone)
            after = self._page(new, come)[SLOTS:]
            for slot, (one, two) in enumerate(zip(before, after, strict=True)):
                self._compare(one, two, level + 1, prefix << PAGE_BITS | slot, gone, come)
            return
        for node, into in ((old, gone), (new, come)):
            if type(node) is Ref:
                for part in self._walk(node, level, prefix):
                    into.numbers |= part.numbers
                    into.keys |= part.keys
            else:
                self._leaves(node, into)

    def _slots(self, ref: Ref, level: int, prefix: int, part: _Part) -> list[Node]:
        page = self._page(ref, part)
        check_page(page, level, prefix)
        return page[SLOTS:]

    def _page(self, ref: Ref, part: _Part) -> Page:
        page = load(ref, self._file)
        part.numbers.update(n for n in (ref.number, ref.base) if n is not None)
        return page

    def _leaves(self, node: Node, part: _Part) -> None:
        leaves: Iterable[Leaf] = ()
        if type(node) is Leaf:
            leaves = (node,)
        elif type(node) is Bucket:
            leaves = node.leaves
        for leaf in leaves:
            part.keys.add(leaf.key)
            if leaf.number is not None:
                self._file.value(leaf)
                part.numbers.add(leaf.number)


class _ByHeight:
    """Keys by the heights they are noted with, read from the highest down as they are asked for."""

    def __init__(self, rows: Iterator[tuple[int, bytes]]) -> None:
        self._groups = groupby(rows, key=lambda row: row[0])
        self._next = next(self._groups, None)

    def of(self, height: int) -> set[bytes]:
        found: set[bytes] = set()
        while self._next is not None and self._next[0] >= height:
            at, rows = self._next
            if at == height:
                found = {key for _, key in rows}
            self._next = next(self._groups, None)
        return found


def _by_height(db: sqlite3.Connection, sql: str, oldest: int) -> _ByHeight:
    return _ByHeight(iter(db.execute(sql, {"oldest": oldest})))
