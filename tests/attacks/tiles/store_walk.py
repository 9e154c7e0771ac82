"""A random program on a store, and what must hold wherever it is cut short.

A walk does to a store all that can be done to it, in random order, with tiles from a small pool,
so that versions share tiles, hold one twice, come back and are led to by steps in circles. It
tells a ledger before and after each act; the ledger says what a store must have at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from tests.kit.small_tiles import TILE, leaves
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.steps import TileStep
from tiles.store import Disk, TileReader, TileStore

SPEC = ShardSpec(0, "s", "dense", (TensorSpec("w", "U8", (3 * TILE + 5000,)),))
TILES = 4
POOL = 8  # different tiles
MOST_VERSIONS = 7
Entry = tuple[str, list[str]]  # an act and the roots, in hexadecimal, that it is about
Note = Callable[[Entry, bool], None]  # told of an act before (False) and after it (True)


def content(kind: int, tile: int) -> bytes:
    """A tile of the pool as it stands at a place. Tiles differ by what a step can add."""
    base = np.random.default_rng(7).integers(0, 256, TILE, "u1")
    return (base[: TILE if tile < TILES - 1 else 5000] ^ kind).tobytes()


@cache
def pool() -> dict[Hash32, tuple[int, int]]:
    """Of each tile root its kind, and a place that it fits at. Needs small tiles."""
    roots = (
        (merkle.tile_root_of(leaves(content(k, t)), len(content(k, t))), k, t) for k, t in _all()
    )
    return {root: (kind, tile) for root, kind, tile in roots}


def _all() -> Iterable[tuple[int, int]]:
    return ((kind, tile) for kind in range(POOL) for tile in (0, TILES - 1))


@cache
def root_of(kind: int, tile: int) -> Hash32:
    place = 0 if tile < TILES - 1 else tile
    return next(root for root, found in pool().items() if found == (kind, place))


def bytes_of(root: Hash32) -> bytes:
    return content(*pool()[root])


# --- what must hold -------------------------------------------------------------------------


@dataclass
class Ledger:
    """What was acknowledged. `held`: of each version that must be here the tiles it must have."""

    roots: dict[Hash32, tuple[Hash32, ...]] = field(default_factory=dict)
    held: dict[Hash32, set[int]] = field(default_factory=dict)
    gone: set[Hash32] = field(default_factory=set)
    steps: dict[Hash32, set[Hash32]] = field(default_factory=dict)  # of a tile, those made of it

    def note(self, entry: Entry, done: bool) -> None:
        """An act is about to begin, or has been acknowledged."""
        act, names = entry
        roots = [Hash32(bytes.fromhex(name)) for name in names]
        if act in ("put", "begin", "tile"):
            self._enter(act, roots, done)
        elif act == "step" and not done:
            self.steps.setdefault(roots[0], set()).add(roots[1])
        elif act == "drop":
            for root in roots:
                self.held.pop(root, None)
                if done:
                    self.gone.add(root)
        elif act == "drop_tile" and not done:
            lost = self._made_of(roots[0])
            for root, tiles in self.held.items():
                tiles -= {t for t, tile_root in enumerate(self.roots[root]) if tile_root in lost}

    def _enter(self, act: str, roots: list[Hash32], done: bool) -> None:
        """(version, its tile roots), and for `tile` the tile root that has come, for all."""
        root, tile_roots = roots[0], tuple(roots[1 : TILES + 1])
        self.roots[root] = tile_roots
        self.gone.discard(root)
        if done:
            here = self.held.setdefault(root, set())
            if act == "put":
                here.update(range(TILES))
            elif act == "tile":
                here.update(t for t in range(TILES) if tile_roots[t] == roots[-1])

    def _made_of(self, root: Hash32) -> set[Hash32]:
        """A tile, and all that steps ever led to from it."""
        found, left = {root}, [root]
        while left:
            new = self.steps.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    def check(self, directory: Path, disk: Disk, *, alone: bool = True) -> None:
        """Open the store: it has what it must have, and claims nothing that is not so.

        Unless `alone`, somebody has mapped what is dropped, and its room cannot be given back.
        """
        with TileStore(directory, [SPEC], disk=disk) as store:
            known = self.check_open(store)
            assert not self.gone & known, "a version that was dropped is here"
            reader = TileReader(directory, [SPEC], disk=disk)
            assert {*reader.versions(0), *reader.partial_versions(0)} == known
            for root in known:
                presence = store.presence(0, root)
                assert reader.presence(0, root) == presence
                self.held[root] = {t for t, here in enumerate(presence) if here}
            assert not list(directory.rglob("*.tmp"))
            before = state(store, alone)
        with TileStore(directory, [SPEC], disk=disk) as store:
            assert state(store, alone) == before, "it had not been tidied"
        self.roots = {root: self.roots[root] for root in known}
        self.gone.clear()

    def check_open(self, store: TileStore) -> set[Hash32]:
        """What an open store must have at any time; the versions that it has."""
        assert store.scrub() == [], "damage"
        known = {*store.versions(0), *store.partial_versions(0)}
        assert known <= set(self.roots), "a version that nobody put"
        assert set(self.held) <= known, "a version was lost"
        for root in known:
            presence = store.presence(0, root)
            lost = self.held.get(root, set()) - {t for t, here in enumerate(presence) if here}
            assert not lost, f"tiles {lost} were lost"
            self._check_bytes(store, root, presence)
        return known

    def _check_bytes(self, store: TileStore, root: Hash32, presence: Sequence[bool]) -> None:
        assert store.tile_roots(0, root) == self.roots[root]
        for tile, here in enumerate(presence):
            if here:
                assert store.read_tile(0, root, tile) == bytes_of(self.roots[root][tile])
        if all(presence):
            data = store.open(0, root).data
            assert data == b"".join(bytes_of(r) for r in self.roots[root]), "other bytes"


def state(store: TileStore, with_room: bool) -> tuple[object, ...]:
    """All that can be seen of a store, with the room that it takes or without."""
    known = sorted({*store.versions(0), *store.partial_versions(0)})
    names = sorted((p.name, p.stat().st_size) for p in store.directory.glob("*/*"))
    room = store.used_bytes if with_room else 0
    return names, room, [(root, store.presence(0, root)) for root in known]


# --- acting ---------------------------------------------------------------------------------


class Walk:
    """Random acts on an open store, each told to `note` before and after."""

    def __init__(self, store: TileStore, random: Random, note: Note) -> None:
        self._store, self._random, self._note = store, random, note

    def step(self) -> None:
        """One act, whichever is possible."""
        known = self._known()
        acts: list[Callable[[], None]] = [self._put, self._write, self._begin]
        if known:
            acts += [self._fill, self._apply, self._apply, self._steps, self._steps, self._thin]
            acts += [self._thin, self._compact, self._drop_tile, self._scrub, self._drop]
        if len(known) > MOST_VERSIONS:
            acts = [self._drop, self._retain]
        self._random.choice(acts)()

    def _known(self) -> list[Hash32]:
        return sorted({*self._store.versions(0), *self._store.partial_versions(0)})

    def _any(self, roots: Sequence[Hash32]) -> Hash32:
        return self._random.choice(roots)

    def _version(self) -> tuple[Hash32, list[Hash32]]:
        """A version, new or not: some tiles of one that is here, the others from the pool."""
        roots = [root_of(self._random.randrange(POOL), tile) for tile in range(TILES)]
        if (known := self._known()) and self._random.random() < 0.7:
            base = self._store.tile_roots(0, self._any(known))
            roots = [self._random.choice((a, a, b)) for a, b in zip(base, roots, strict=True)]
        return merkle.shard_root(roots, SPEC.data_bytes), roots

    def _do(self, act: str, roots: Iterable[Hash32], action: Callable[[], object]) -> None:
        entry = act, [root.hex() for root in roots]
        self._note(entry, False)
        action()
        self._note(entry, True)

    def _put(self) -> None:
        root, roots = self._version()
        data = b"".join(map(bytes_of, roots))
        self._do("put", [root, *roots], lambda: self._store.put_shard(0, data, root))

    def _write(self) -> None:
        root, roots = self._version()
        data = b"".join(map(bytes_of, roots))

        def write() -> None:
            with self._store.writer(0) as writer:
                for at in range(0, len(data), 50_000):
                    writer.write(data[at : at + 50_000])
                if self._random.random() < 0.9:
                    assert writer.finish() == root
                else:
                    writer.abort()
                    self._store.put_shard(0, data, root)

        self._do("put", [root, *roots], write)

    def _begin(self) -> None:
        root, roots = self._version()
        self._do("begin", [root, *roots], lambda: self._store.begin(0, root, roots))

    def _fill(self) -> None:
        root = self._any(self._known())
        roots = self._store.tile_roots(0, root)
        missing = [t for t, here in enumerate(self._store.presence(0, root)) if not here]
        for tile in missing[: self._random.randint(1, TILES)]:
            data = bytes_of(roots[tile])
            note = [root, *roots, roots[tile]]
            self._do("tile", note, lambda d=data, t=tile: self._store.put_tile(0, root, t, d))  # type: ignore[misc]

    def _apply(self) -> None:
        base = self._any(self._known())
        old = self._store.tile_roots(0, base)
        roots = list(old)
        changed = self._random.sample(range(TILES), self._random.randint(1, 3))
        for tile in changed:
            roots[tile] = root_of(self._random.randrange(POOL), tile)
        root = merkle.shard_root(roots, SPEC.data_bytes)
        tiles = {tile: bytes_of(roots[tile]) for tile in changed}
        act = "put" if all(self._store.presence(0, base)) else "begin"
        self._do(act, [root, *roots], lambda: self._store.apply(0, base, tiles))

    def _steps(self) -> None:
        known = self._known()
        root, base = self._any(known), self._any(known)
        new, old = (self._store.tile_roots(0, r) for r in (root, base))
        differ = [t for t in range(TILES) if new[t] != old[t]]
        steps = []
        for tile in self._random.sample(differ, self._random.randint(0, len(differ))):
            weight = pool()[new[tile]][0] ^ pool()[old[tile]][0]
            at = ShardIndex(0), TileIndex(tile)
            steps.append(TileStep(*at, old[tile], new[tile], (1,), (weight,), ((b"x" * 900,),)))
            self._note(("step", [old[tile].hex(), new[tile].hex()]), False)
        if steps:
            self._do("steps", [root], lambda: self._store.put_steps(0, root, base, steps))

    def _thin(self) -> None:
        if roots := [root for root in self._known() if self._store.has_steps(0, root)]:
            root = self._any(roots)
            self._do("thin", [root], lambda: self._store.thin(0, root))

    def _compact(self) -> None:
        if whole := self._store.versions(0):
            root = self._any(whole)
            self._do("compact", [root], lambda: self._store.compact(0, root))
            assert self._store.path(0, root).stat().st_size == 4096 + SPEC.data_bytes

    def _drop_tile(self) -> None:
        if self._random.random() < 0.5:
            root, tile = self._any(self._known()), self._random.randrange(TILES)
            lost = self._store.tile_roots(0, root)[tile]
            self._do("drop_tile", [lost], lambda: self._store.drop_tile(0, root, tile))

    def _scrub(self) -> None:
        assert self._store.scrub() == []

    def _drop(self) -> None:
        root = self._any(self._known())
        self._do("drop", [root], lambda: self._store.drop(0, root))

    def _retain(self) -> None:
        known = self._known()
        kept = self._random.sample(known, self._random.randint(1, 4))
        gone = [root for root in known if root not in kept]
        self._do("drop", gone, lambda: self._store.retain(0, kept))
