"""Old versions on disk: thinned, dropped and compacted in the background (docs/spec/versions.md).

What is to be done follows from the chain and the disk alone (`retention_plan`), so a pass that is
cut short anywhere, by an error or by kill -9, is made up for by the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from chain.custody import custody_roots
from chain.errors import BlyanError, InputError, QuotaError
from chain.hashes import Hash32
from chain.records import RoundPhase
from chain.state import State
from node.services.retention_plan import (
    OPEN_ROUNDS,
    Held,
    Keep,
    RetentionRule,
    retention,
    window,
)
from node.services.versions import VersionHistory
from tiles.store import TileStore

log = logging.getLogger("blyan.versions")

FEWEST = RetentionRule(keep_versions=1, retention_rounds=OPEN_ROUNDS, snapshot_every=1)
LEASE_S = 600.0  # a version stays for so long after somebody asked for it: exports take minutes
MAX_LEASES = 100_000  # roots are asked for that may not even exist
MAX_FILES = 8  # that a whole version may be spread over; each is an extent of every mapping
COMPACT_BYTES = 4 * 1024**3  # written by one pass; what is left waits for the next round
RETRY_S = 600.0  # after a pass that the disk refused

Place = tuple[int, Hash32, int]  # shard, shard root, tile
Record = Callable[[int, Hash32], None]
ShardRoot = tuple[int, Hash32]


class ChainPort(Protocol):
    def state(self) -> State: ...

    def finalized(self, callback: Callable[..., None]) -> object: ...


class Retention:
    """One node's old versions. `run` until cancelled."""

    def __init__(
        self, store: TileStore, history: VersionHistory, chain: ChainPort, rule: RetentionRule
    ) -> None:
        # How a pass records the steps to a version (shard, root) that has none, as far as it can.
        self.recorder: Callable[[], Record] = lambda: lambda shard, root: None
        self._store, self._history, self._chain, self._rule = store, history, chain, rule
        self._leases: dict[ShardRoot, float] = {}
        self._wake = asyncio.Event()
        self._done: tuple[int, int] | None = None  # round and phase of the last pass
        self._shed = -1  # the round in which old versions went for want of room
        self.keeps: Callable[[int, int], bool] = lambda shard, tile: True  # as placement says
        self.thinned = self.dropped = self.compacted = self.failed = 0
        chain.finalized(lambda *_: self._wake.set())

    def used(self, shard: int, root: Hash32) -> None:
        """Somebody asks for a version: it stays for a while."""
        if len(self._leases) < MAX_LEASES or (shard, root) in self._leases:
            self._leases[shard, root] = time.monotonic() + LEASE_S

    def metrics(self) -> Mapping[str, int]:
        return {
            "versions_thinned": self.thinned,
            "versions_dropped": self.dropped,
            "versions_compacted": self.compacted,
            "versions_failed": self.failed,
        }

    async def run(self) -> None:
        self._wake.set()
        pause: float | None = None
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                self._done = None
            self._wake.clear()
            pause = None
            state = self._chain.state()
            current = state.round()
            if self._done == (current.number, current.phase):
                continue
            if current.phase in (RoundPhase.OPEN, RoundPhase.SETTLE):  # a round has ended
                pause = None if await self._pass(state) else RETRY_S
            self._done = (current.number, current.phase)

    async def _pass(self, state: State) -> bool:
        """All shards once; False if the disk refused something that is worth another try."""
        now = time.monotonic()
        for key, until in list(self._leases.items()):
            if until <= now:
                del self._leases[key]
        budget, sound, record = COMPACT_BYTES, True, self.recorder()
        for shard in range(len(self._history.specs)):
            asked = custody_roots(self._chain.state())  # of now: a pass may take minutes
            mine = {root for index, root in asked if index == shard}
            try:
                await asyncio.to_thread(self.catch_up, shard, record)
                budget -= await asyncio.to_thread(
                    self.tidy, shard, state.head.round, mine, max(budget, 0)
                )
            except BlyanError as error:
                self.failed += 1
                sound = False
                log.warning("versions of shard %d stay as they are for now: %s", shard, error)
        return sound

    def missing(self) -> Iterator[Place]:
        """Tiles that should be here and are not: of versions that are kept, the oldest first. Of
        versions of which nothing is here only the newest should be."""
        state = self._chain.state()
        for shard, spec in enumerate(self._history.specs):
            newest = next(iter(self._history.newest_first(shard))).root
            for root, keep in self.plan(shard, state.head.round).items():
                presence = self._store.presence(shard, root)
                if not keep or not (presence or root == newest):
                    continue
                for tile in range(spec.tile_count):
                    if self.keeps(shard, tile) and not (presence and presence[tile]):
                        yield shard, root, tile

    def shed(self) -> bool:
        """Old versions give way to new ones, once a round, in any thread: only what the rounds in
        progress and custody need stays. Whether anything went."""
        state = self._chain.state()
        if self._shed == state.head.round:
            return False
        self._shed = state.head.round
        before, asked = self.dropped, custody_roots(state)
        for shard in range(len(self._history.specs)):
            mine = {root for index, root in asked if index == shard}
            try:
                self.tidy(shard, state.head.round, mine, 0, FEWEST)
            except BlyanError as error:
                log.warning("old versions of shard %d stay: %s", shard, error)
        if self.dropped > before:
            log.warning("no room: %d old versions of shards were dropped", self.dropped - before)
        return self.dropped > before

    # --- one shard --------------------------------------------------------------------------

    def plan(
        self,
        shard: int,
        round_: int,
        pinned: Collection[Hash32] = (),
        rule: RetentionRule | None = None,
    ) -> dict[Hash32, Keep]:
        """How each version of a shard is to be kept; those not named are not."""
        rule = rule or self._rule
        versions = window(self._history.line(shard), round_, rule)
        known = {*self._store.versions(shard), *self._store.partial_versions(shard)}
        here = [v.root for v in versions if v.root in known]
        held = Held(
            {root for root in here if not self._store.is_thin(shard, root)},
            {root for root in here if self._store.has_steps(shard, root)},
        )
        return retention(versions, round_, rule, held, pinned)

    def catch_up(self, shard: int, record: Record) -> None:
        """Steps to the newest versions, if a crash came between tiles and steps."""
        newest = islice(self._history.line(shard), self._rule.keep_versions)
        for version in newest:
            whole = version.root in self._store.versions(shard)
            if version.number and whole and not self._store.has_steps(shard, version.root):
                record(shard, version.root)

    def tidy(
        self,
        shard: int,
        round_: int,
        pinned: Collection[Hash32] = (),
        budget_bytes: int = COMPACT_BYTES,
        rule: RetentionRule | None = None,
    ) -> int:
        """Make the disk what the plan says, in any thread; the bytes that compaction wrote.

        Versions that somebody asked for of late may shrink but are not dropped. Raises StorageError
        if the disk refuses; everything done until then stands.
        """
        store = self._store
        roots = [*store.versions(shard), *store.partial_versions(shard)]
        if len(roots) < 2:
            return 0
        plan = self.plan(shard, round_, pinned, rule)
        for root in roots:
            keep = plan.get(root, Keep.NOTHING)
            if keep == Keep.NOTHING:
                if (shard, root) not in self._leases:
                    store.drop(shard, root)
                    self.dropped += 1
            elif keep == Keep.STEPS and not store.is_thin(shard, root):
                store.thin(shard, root)
                self.thinned += 1
        return self._compact(shard, plan, budget_bytes)

    def _compact(self, shard: int, plan: Mapping[Hash32, Keep], budget_bytes: int) -> int:
        store, written = self._store, 0
        for root in store.versions(shard):
            keep = plan.get(root, Keep.NOTHING)
            scattered = keep == Keep.WHOLE and store.containers(shard, root) > MAX_FILES
            if not scattered and not (keep == Keep.SNAPSHOT and self._shares(shard, root)):
                continue
            size = self._history.specs[shard].data_bytes
            if written + size > budget_bytes:
                break
            try:
                store.compact(shard, root)
            except QuotaError as error:  # it only would have been quicker to read
                log.info("shard %d stays in several files: %s", shard, error)
                break
            self.compacted += 1
            written += size
        return written

    def _shares(self, shard: int, root: Hash32) -> bool:
        """Whether a version is no file of its own."""
        try:
            self._store.path(shard, root)
        except InputError:
            return True
        return False


def retained_from(store: TileStore, history: VersionHistory) -> int | None:
    """The lowest height from which on every model can be had from this disk; None if not even the
    newest can."""
    lowest = 0
    for shard in range(len(history.specs)):
        whole = set(store.versions(shard))
        height = None
        for version in _newest_whole(history, shard, whole):
            height = version
        if height is None:
            return None
        lowest = max(lowest, height)
    return lowest


def _newest_whole(history: VersionHistory, shard: int, whole: Collection[Hash32]) -> Iterable[int]:
    """Heights from which on each version counts, the newest first, as long as they are whole."""
    for version in history.newest_first(shard):
        if version.root not in whole:
            return
        yield version.height
