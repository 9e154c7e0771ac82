"""The keys of a state tree in byte order, which its paths are not (docs/adr/0020).

A tree in memory has them all; one above a store has what was added and removed since the version
that is stored, whose keys the store lists.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import groupby
from typing import Protocol

from chain.errors import InvariantError
from chain.tree_pages import PageSource

_CHUNK_KEYS = 512  # keys in one chunk of the ordered index; sqrt of a million, roughly


class Keys(Protocol):
    def scan(self, prefix: bytes) -> Iterator[bytes]:
        """The keys that begin with `prefix`, in byte order."""

    def changed(self, inserted: list[bytes], deleted: set[bytes]) -> Keys: ...


class MemoryKeys:
    """All keys, in non-empty sorted chunks: an immutable value that shares unchanged chunks."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: tuple[tuple[bytes, ...], ...] = ()) -> None:
        self.chunks = chunks

    def scan(self, prefix: bytes) -> Iterator[bytes]:
        start = max(0, bisect_right(self.chunks, prefix, key=_first) - 1)
        for chunk in self.chunks[start:]:
            for key in chunk[bisect_left(chunk, prefix) :]:
                if not key.startswith(prefix):
                    return
                yield key

    def changed(self, inserted: list[bytes], deleted: set[bytes]) -> MemoryKeys:
        """Copies only the chunks that change."""
        if not inserted and not deleted:
            return self

        def home(key: bytes) -> int:
            return max(0, bisect_right(self.chunks, key, key=_first) - 1)

        chunks = list(self.chunks) or [()]
        for i, keys in groupby(sorted([*inserted, *deleted]), key=home):
            merged = sorted({*chunks[i], *keys} - deleted)
            chunks[i] = tuple(merged)
        result: list[tuple[bytes, ...]] = []
        for chunk in chunks:
            if result and len(result[-1]) + len(chunk) <= _CHUNK_KEYS // 2:
                result[-1] += chunk  # small neighbours grow together
            elif len(chunk) <= _CHUNK_KEYS:
                result += [chunk] if chunk else []
            else:
                half = _CHUNK_KEYS // 2
                result += [chunk[j : j + half] for j in range(0, len(chunk), half)]
        return MemoryKeys(tuple(result))


class StoredKeys:
    """The keys of a stored version, or what a tree above one added and removed.

    When its tree is stored too, `settle` makes it a version: trees above it see that at once, so
    that what lies between a tree and the newest version is never more than what is not final.
    """

    __slots__ = ("__weakref__", "_changes", "_order", "_parent", "_source", "version")

    def __init__(
        self,
        source: PageSource,
        version: int | None,
        parent: StoredKeys | None = None,
        changes: dict[bytes, bool] | None = None,
    ) -> None:
        self._source, self._parent = source, parent
        self.version = version
        self._changes = changes or {}  # key: whether it is there now
        self._order = sorted(self._changes)

    @property
    def changes(self) -> dict[bytes, bool]:
        """What was added (True) and removed since the tree before."""
        return self._changes

    def changed(self, inserted: list[bytes], deleted: set[bytes]) -> StoredKeys:
        changes = dict.fromkeys(inserted, True) | dict.fromkeys(deleted, False)
        return StoredKeys(self._source, None, self, changes)

    def settle(self, version: int) -> None:
        self.version = version  # before the way to the parent goes: others read without a lock
        self._parent = None
        self._changes, self._order = {}, []

    def scan(self, prefix: bytes) -> Iterator[bytes]:
        changes: dict[bytes, bool] = {}
        at = self
        while True:
            parent, own, order = at._parent, at._changes, at._order
            version = at.version  # after what `settle` clears behind it
            if version is not None:
                break
            for i in range(bisect_left(order, prefix), len(order)):
                if not order[i].startswith(prefix):
                    break
                changes.setdefault(order[i], own[order[i]])
            if parent is None:
                raise InvariantError("only a version has no tree before it")
            at = parent
        stored = self._source.keys(version, prefix)
        return _merged(stored, changes) if changes else stored


def _merged(stored: Iterator[bytes], changes: dict[bytes, bool]) -> Iterator[bytes]:
    waiting = sorted(changes)
    at = 0
    for key in stored:
        while at < len(waiting) and waiting[at] < key:
            if changes[waiting[at]]:
                yield waiting[at]
            at += 1
        if changes.get(key, True):
            yield key
        if at < len(waiting) and waiting[at] == key:
            at += 1
    for key in waiting[at:]:
        if changes[key]:
            yield key


def _first(chunk: tuple[bytes, ...]) -> bytes:
    return chunk[0]
