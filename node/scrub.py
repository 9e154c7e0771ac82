"""What a scrub finds, and a scrub of a home that no node runs on (docs/spec/versions.md, "Repair").

A scrub reads every tile of a store and compares it with its hashes. Damaged tiles become missing;
missing ones are made again where that needs nobody else. The rest is left for a running node.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chain.errors import BlyanError, StorageError
from chain.hashes import Hash32
from tiles.layout import ShardSpec
from tiles.store import Damage, TileStore

MAX_LISTED = 1000  # repairs in one report; more are only counted
CHAIN_STORE = "chain"  # the name of the chain's own model among stores
REBUILT, FETCHED, LEFT = "rebuilt", "fetched", "left"

Place = tuple[int, Hash32, int]  # shard, shard root, tile
Progress = Callable[[int, int], None]  # tiles read, of how many
Remake = Callable[[int, Hash32, int], bytes | None]  # a tile that needs nobody else


@dataclass(frozen=True, slots=True)
class Finding:
    """A tile that is damaged at a subtile, or missing as a whole (None)."""

    place: Place
    subtile: int | None


@dataclass(frozen=True, slots=True)
class Repair:
    """What came of a finding: REBUILT, FETCHED or LEFT; `detail` says why it is left."""

    finding: Finding
    action: str
    detail: str = ""


@dataclass(slots=True)
class ScrubReport:
    """One scrub of one store. Times in Unix milliseconds; `error` if it could not end."""

    store: str
    started_ms: int
    ended_ms: int = 0
    tiles: int = 0
    repairs: list[Repair] = field(default_factory=list)
    error: str = ""

    @property
    def clean(self) -> bool:
        """Whether everything was whole, or is now."""
        return not self.error and all(repair.action != LEFT for repair in self.repairs)

    def to_json(self, specs: Sequence[ShardSpec]) -> dict[str, Any]:
        names = {spec.index: spec.name for spec in specs}
        counts = {
            action: sum(repair.action == action for repair in self.repairs)
            for action in (REBUILT, FETCHED, LEFT)
        }
        return {
            "store": self.store,
            "started_ms": self.started_ms,
            "ended_ms": self.ended_ms,
            "tiles": self.tiles,
            "damaged": len(self.repairs),
            **counts,
            "clean": self.clean,
            "error": self.error,
            "repairs": [
                {
                    "shard": repair.finding.place[0],
                    "name": names.get(repair.finding.place[0], ""),
                    "root": repair.finding.place[1].hex(),
                    "tile": repair.finding.place[2],
                    "subtile": repair.finding.subtile,
                    "action": repair.action,
                    "detail": repair.detail,
                }
                for repair in self.repairs[:MAX_LISTED]
            ],
        }


def begin_report(store: str) -> ScrubReport:
    return ScrubReport(store, time.time_ns() // 1_000_000)


def end_report(report: ScrubReport) -> ScrubReport:
    report.ended_ms = time.time_ns() // 1_000_000
    return report


def read_report(path: Path) -> dict[str, Any] | None:
    """The last report, if there is one that can be read: it only says when, and what was left."""
    try:
        found = json.loads(path.read_text())
        kinds = {"ended_ms": int, "left": int, "error": str}
        sound = all(isinstance(found[name], kind) for name, kind in kinds.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if sound else None


def damaged(damages: Iterable[Damage]) -> list[Finding]:
    """One finding a tile: its first bad subtile."""
    found = {(d.shard, d.shard_root, d.tile): d.subtile for d in reversed(list(damages))}
    return [Finding(place, subtile) for place, subtile in sorted(found.items())]


def absent(missing: Iterable[Place]) -> list[Finding]:
    return [Finding(place, None) for place in missing]


def rebuild(store: TileStore, place: Place, remake: Remake) -> bool:
    """Have a tile from what is here; False if it can only come from elsewhere."""
    shard, root, tile = place
    if not store.has_tile(shard, root, tile):
        data = remake(shard, root, tile)
        if data is None:
            return False
        store.put_tile(shard, root, tile, data)
    try:
        store.read_tile(shard, root, tile)  # steps may lead to it: they are tried
    except StorageError:
        return False
    return True


def scrub_store(
    store: TileStore,
    name: str,
    missing: Callable[[], Iterable[Place]],
    remake: Remake,
    left: str,
    progress: Progress | None = None,
) -> ScrubReport:
    """Scrub a store alone. `left`: what is to become of what cannot be made here."""
    report = begin_report(name)

    def count(done: int, total: int) -> None:
        report.tiles = total
        if progress is not None:
            progress(done, total)

    def mend(found: Iterable[Finding]) -> None:
        for finding in found:
            try:
                mended = rebuild(store, finding.place, remake)
                repair = Repair(finding, REBUILT) if mended else Repair(finding, LEFT, left)
            except BlyanError as error:
                repair = Repair(finding, LEFT, str(error))
            report.repairs.append(repair)

    mend(damaged(store.scrub(count)))
    given_up = {repair.finding.place for repair in report.repairs}
    mend(f for f in absent(missing()) if f.place not in given_up)
    return end_report(report)
