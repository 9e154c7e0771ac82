"""The store of a running node is read through now and then, so that damage is found before it is
needed, and mended while somebody still has the right bytes (docs/spec/versions.md, "Repair").

In the background it reads slowly; on request as fast as the disk goes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from chain.errors import BlyanError
from chain.hashes import Hash32
from node import scrub
from node.home import write_private
from node.scrub import Finding, Place, Remake, Repair, ScrubReport
from tiles.layout import ShardSpec
from tiles.store import TileStore

log = logging.getLogger("blyan.scrub")

BACKGROUND_BYTES_PER_S = 32 * 1024 * 1024  # a hundredth of what a disk can, and others use it
FIRST_AFTER_S = 60.0  # a node that was just started has peers to find first
AT_ONCE = 4  # tiles that are mended at a time


class TilePort(Protocol):
    @property
    def store(self) -> TileStore: ...

    @property
    def specs(self) -> Sequence[ShardSpec]: ...

    async def ensure(self, index: int, root: Hash32, tiles: Iterable[int] | None = None) -> None:
        """Fetch tiles of a version. UnreachableError if nobody has one."""


class ScrubService:
    """One node's scrubs, one at a time. `run` until cancelled, then `close`."""

    def __init__(
        self,
        tiles: TilePort,
        missing: Callable[[], Iterable[Place]],
        remake: Remake,
        record: Path,
        interval_s: float,
    ) -> None:
        """`missing` names tiles that should be here, in any thread; `record` keeps the last
        report; an interval of 0 is never."""
        self._tiles, self._missing, self._remake = tiles, missing, remake
        self._record, self._interval_s = record, interval_s
        self._last = scrub.read_report(record)
        self._running: ScrubReport | None = None
        self._done = 0
        self._wake = asyncio.Event()
        self._stop = threading.Event()
        self.damaged = self.mended = 0

    # --- asking -------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is going on, and the last report."""
        running = self._running
        return {
            "running": running is not None or self._wake.is_set(),
            "done_tiles": self._done,
            "total_tiles": running.tiles if running else 0,
            "last": self._last,
        }

    def start(self) -> dict[str, Any]:
        """Scrub now, unless that is under way."""
        self._wake.set()
        return self.info()

    def metrics(self) -> Mapping[str, int]:
        return {"scrub_damaged": self.damaged, "scrub_mended": self.mended}

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        asked = await self._asked_within(FIRST_AFTER_S)
        if not asked:
            try:
                await self._mend_absent(set())
            except BlyanError as error:  # versions come and go: the next scrub looks again
                log.warning("what is missing was not looked for: %s", error)
        while True:
            asked = asked or await self._asked_within(self._due_s())
            await self.scrub(None if asked else BACKGROUND_BYTES_PER_S)
            asked = False

    def close(self) -> None:
        """End a scrub in progress: its thread stops at the next tile."""
        self._stop.set()

    async def scrub(self, bytes_per_s: int | None) -> ScrubReport:
        """Read everything, mend what can be mended, and keep the report."""
        report = scrub.begin_report(scrub.CHAIN_STORE)
        self._running, self._done = report, 0
        try:
            found = await asyncio.to_thread(self._read_all, report, bytes_per_s)
            report.repairs += await self._mend(found, AT_ONCE)
            report.repairs += await self._mend_absent({r.finding.place for r in report.repairs})
        except BlyanError as error:
            report.error = str(error)
            log.warning("the scrub did not end: %s", error)
        finally:
            self._running = None
            self._wake.clear()
        scrub.end_report(report)
        self._last = report.to_json(self._tiles.specs)
        try:
            await asyncio.to_thread(write_private, self._record, json.dumps(self._last) + "\n")
        except OSError as error:  # a full disk is what brought us here, perhaps
            log.warning("the report of the scrub is not kept: %s", error)
        say = log.info if not report.repairs and report.clean else log.warning
        say("scrubbed %d tiles, %d of them damaged", report.tiles, len(report.repairs))
        return report

    # --- inside -------------------------------------------------------------------------------

    async def _asked_within(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def _due_s(self) -> float | None:
        """Seconds to the next scrub in the background; None: there is none."""
        if not self._interval_s:
            return None
        ended = self._last["ended_ms"] / 1000 if self._last else 0.0
        return max(0.0, ended + self._interval_s - time.time())

    def _read_all(self, report: ScrubReport, bytes_per_s: int | None) -> list[Finding]:
        store = self._tiles.store
        began, size = time.monotonic(), store.used_bytes

        def progress(done: int, total: int) -> None:
            report.tiles, self._done = total, done
            early = 0.0
            if bytes_per_s is not None and not self._wake.is_set():
                due = began + size * done / max(total, 1) / bytes_per_s
                early = max(0.0, due - time.monotonic())
            if self._stop.wait(early):
                raise StopScrub

        return scrub.damaged(store.scrub(progress))

    async def _mend_absent(self, tried: set[Place]) -> list[Repair]:
        """What is missing, one after the other: with an old tile those made from it are back."""
        missing = await asyncio.to_thread(lambda: list(self._missing()))
        return await self._mend(scrub.absent(p for p in missing if p not in tried), 1)

    async def _mend(self, found: Sequence[Finding], at_once: int) -> list[Repair]:
        """Make or fetch each tile; what became of them, in order. Of a lost disk there are more
        than there may be tasks."""
        done: dict[int, Repair] = {}
        queue = iter(enumerate(found))

        async def work() -> None:
            for place, finding in queue:
                done[place] = await self._mend_one(finding)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
        repairs = [done[place] for place in range(len(found))]
        self.damaged += len(repairs)
        self.mended += sum(repair.action != scrub.LEFT for repair in repairs)
        return repairs

    async def _mend_one(self, finding: Finding) -> Repair:
        shard, root, tile = finding.place
        store = self._tiles.store
        try:
            if await asyncio.to_thread(scrub.rebuild, store, finding.place, self._remake):
                return Repair(finding, scrub.REBUILT)
            await self._tiles.ensure(shard, root, [tile])
        except BlyanError as error:
            log.warning("tile %d of shard %d is left damaged: %s", tile, shard, error)
            return Repair(finding, scrub.LEFT, str(error))
        return Repair(finding, scrub.FETCHED)


class StopScrub(BlyanError):
    """The node ends."""

    def __init__(self) -> None:
        super().__init__("the node was stopped before the scrub had ended")
