"""Custody events: what was asked of whom, and how it went (docs/spec/custody.md).

The state holds the event in progress; those that have ended come from history.
"""

from __future__ import annotations

from dataclasses import dataclass

from chain import custody
from chain import custody_records as c
from chain.codec import decode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.hashes import ZERO_HASH, Hash32
from chain.types import PubKey
from node.query.base import Json, NotFound, Reader, unhex
from node.query.plain import address

LAST = 2**62  # above every height
KIND, DISPUTES = "custody", "custody_dispute"  # of rows in history


@dataclass(frozen=True, slots=True)
class _Found:
    record: c.CustodyEvent
    closed: int | None  # height at which it ended


class CustodyQueries(Reader):
    def custody(self, before: int | None = None, limit: int | None = None) -> Json:
        """The event in progress, and those that ended below height `before`, newest first."""
        most, state = self.limit(limit), self.state
        params = state.params(self.node.genesis.params)
        below = (LAST if before is None else before, 0)
        rows = self.node.store.history(KIND, limit=most, before=below)
        current = custody.current(state)
        interval = params.custody_interval_blocks
        return {
            "current": self._row(_Found(current, None)) if current is not None else None,
            "next_anchor": (state.head.height // interval + 1) * interval,
            "interval_blocks": interval,
            "replicas": params.custody_replicas,
            "bond": params.custody_bond_grains,
            "slash_permille": params.custody_slash_permille,
            "commit_blocks": params.custody_commit.blocks,
            "commit_ms": params.custody_commit.ms,
            "events": [self._row(_Found(decoded(row.data["record"]), row.height)) for row in rows],
            "next": rows[-1].height if len(rows) == most else None,
        }

    def custody_event(self, which: str) -> Json:
        """One event by its seed, or the `current` one: places, who committed, disputes."""
        found = self._event(which)
        event = found.record
        members = [address(m.account) for m in event.members]
        return {
            **self._row(found),
            "model_root": event.model_root.hex(),
            "phase_height": event.phase_height,
            "deadline_height": event.deadline_height,
            "deadline_ms": event.deadline_ms,
            "place_list": [self._place(found, i, members) for i in range(len(event.places))],
            "members": [
                {
                    "account": members[i],
                    "status": status_name(member.status),
                    "committed": self._committed_at(found, member.account),
                    "places": custody.positions(event, i),
                }
                for i, member in enumerate(event.members)
            ],
            "disputes": self._disputes(event.seed),
        }

    def custodian(self, account: PubKey) -> Json | None:
        """How an account did when it was asked; None if it never was."""
        record = self.state.get(c.CustodianRecord, c.custodian_key(account))
        if record is None:
            return None
        return {
            "asked": record.asked,
            "missed": record.missed,
            "convicted": record.convicted,
            "last_missed": record.last_missed or None,
        }

    def custody_of(self, shard: int, tile: int) -> Json:
        """What custody has to say of a tile: how many keep it, and the event that asks for it."""
        event = custody.current(self.state)
        named = (
            [p.subtile for p in event.places if (p.shard, p.tile) == (shard, tile)] if event else []
        )
        return {
            "replicas": self.state.params(self.node.genesis.params).custody_replicas,
            "event": event.seed.hex() if event is not None and named else None,
            "subtiles": sorted(named),
        }

    def _event(self, which: str) -> _Found:
        current = custody.current(self.state)
        if which == "current":
            if current is None:
                raise NotFound("no custody event is in progress; see /custody for the next")
            return _Found(current, None)
        seed = unhex(which, "custody event (its seed, or `current`)")
        if current is not None and current.seed == seed != ZERO_HASH:
            return _Found(current, None)
        for row in self.node.store.history(KIND, seed, limit=1):
            return _Found(decoded(row.data["record"]), row.height)
        raise NotFound(f"there is no custody event {which}; see /custody for those there were")

    def _row(self, found: _Found) -> Json:
        event = found.record
        counts = [m.status for m in event.members]
        disputes = self._disputes(event.seed)
        return {
            "event": event.seed.hex(),
            "anchor": event.anchor,
            "epoch": event.epoch,
            "phase": "closed" if found.closed else CustodyPhase(event.phase).name.lower(),
            "closed": found.closed,
            "places": len(event.places),
            "custodians": len(event.members),
            "asked": counts.count(CustodyStatus.ASKED),
            "committed": counts.count(CustodyStatus.COMMITTED),
            "missed": counts.count(CustodyStatus.MISSED),
            "convicted": counts.count(CustodyStatus.CONVICTED),
            "disputed": sum(d["what"] == "disputed" for d in disputes),
        }

    def _place(self, found: _Found, position: int, members: list[str]) -> Json:
        event = found.record
        place = event.places[position]
        return {
            "position": position,
            "shard": place.shard,
            "name": self.node.tiles.specs[place.shard].name,
            "tile": place.tile,
            "subtile": place.subtile,
            "tile_bytes": place.tile_bytes,
            "shard_root": place.shard_root.hex(),
            "tile_root": place.tile_root.hex(),
            "custodians": [
                {
                    "rank": rank,
                    "account": members[i],
                    "status": status_name(event.members[i].status),
                    "commitment": self._commitment(found, i, position),
                }
                for rank, i in enumerate(place.custodians)
            ],
        }

    def _commitment(self, found: _Found, member: int, position: int) -> str | None:
        """While the event is in progress; afterwards it stands in the transaction alone."""
        if found.closed is not None:
            return None
        made = custody.committed(self.state, found.record, member, position)
        return made.hex() if made is not None else None

    def _committed_at(self, found: _Found, account: PubKey) -> int | None:
        if found.closed is not None:
            return None
        answer = self.state.get(c.CustodyAnswer, c.custody_answer_key(account))
        return answer.height if answer is not None else None

    def _disputes(self, seed: Hash32) -> list[Json]:
        """What was disputed and opened, oldest first."""
        if seed == ZERO_HASH:
            return []
        listed = []
        for row in reversed(self.node.store.history(DISPUTES, seed)):
            data = row.data
            listed.append(
                {
                    "height": row.height,
                    "what": data["what"],
                    "custodian": _account(data["custodian"]),
                    "position": data["position"],
                    "disputer": _account(data.get("disputer")),
                    "finder": _account(data.get("finder")),
                    "bond": data.get("bond"),
                    "lost": data.get("lost"),
                    "reward": data.get("reward"),
                }
            )
        return listed


def decoded(record: str) -> c.CustodyEvent:
    found: c.CustodyEvent = decode(c.CustodyEvent, bytes.fromhex(record))
    return found


def status_name(status: int) -> str:
    return CustodyStatus(status).name.lower()


def _account(key: str | None) -> str | None:
    return address(PubKey(bytes.fromhex(key))) if key else None
