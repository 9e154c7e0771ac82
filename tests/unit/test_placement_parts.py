"""Who counts as gone, and what is thrown away when there is no room: without clock and disk."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from chain.errors import QuotaError
from chain.hashes import Hash32
from chain.records import EpochRecord, Standing
from chain.standings import REPUTATION_ONE
from chain.types import Epoch, PubKey, Stake, TimeMs, Validator, ValidatorSet
from node.rules import ProtocolRules
from node.services.custodians import REMEMBERED, SPARE, Custodians, Lacking, Standings
from node.services.placement_plan import Tile
from node.services.tile_cache import RESERVE_BYTES, TileCache
from tiles.layout import ShardSpec, TensorSpec

MIB = 1024 * 1024
ROOT, NEWER = Hash32(bytes([1]) * 32), Hash32(bytes([2]) * 32)
SPEC = ShardSpec(0, "s", "dense", (TensorSpec("t", "F32", (8 * MIB,)),))  # 8 tiles of 4 MiB


def account(i: int) -> PubKey:
    return PubKey(i.to_bytes(32, "big"))


OWN, A, B, C = (account(i) for i in range(4))


# --- custodians ----------------------------------------------------------------------------


def test_whoever_is_neither_connected_nor_signs_is_gone_after_the_grace() -> None:
    known = Custodians(OWN, 0.0, grace_s=10.0)
    assert known.gone([OWN, A, B, C], 9.0) == frozenset()
    known.connected([A], 9.0)
    known.signed([B], 11.0)
    assert known.gone([OWN, A, B, C], 12.0) == {C}
    known.signed([B, C], 20.0)
    assert known.gone([OWN, A, B, C], 20.5) == {A}
    known.connected([A], 21.0)
    assert known.gone([OWN, A, B, C], 21.0) == frozenset()


def test_while_the_chain_stands_still_nobody_is_missed_for_not_signing() -> None:
    known = Custodians(OWN, 0.0, grace_s=10.0)
    known.connected([A], 1.0)
    known.signed([B], 12.0)
    assert known.gone([A, B, C], 13.0) == {A, C}
    # No block since: B, known by its signatures alone, stays; A was met, and is judged.
    assert known.gone([A, B, C], 60.0) == {A, C}
    known.connected([A, C], 61.0)
    assert known.gone([A, B, C], 61.0) == frozenset()
    assert known.gone([A, B, C], 80.0) == {A, C}
    known.signed([B], 81.0)
    assert known.gone([A, B, C], 81.0) == {A, C}


def test_what_is_remembered_is_bounded() -> None:
    known = Custodians(OWN, 0.0, grace_s=10.0)
    known.connected([account(i) for i in range(1, REMEMBERED + 100)], 1.0)
    assert len(known._seen) == len(known._met) == REMEMBERED


def test_a_custodian_without_room_is_known_by_what_it_says_for_long() -> None:
    lacking = Lacking(lacking_s=100.0)
    before = {(0, 0): (A, B, C), (0, 1): (A,), (0, 2): (A, B)}
    said: dict[PubKey, bool | None] = {A: True, B: False, C: None}

    def at(now: float) -> dict[Tile, frozenset[PubKey]]:
        return lacking.of(before, 2, lambda account, tile: said[account], now)

    assert at(0.0) == {}
    assert at(99.0) == {}
    said[B] = None  # a new version: it is not known whether it has that
    assert at(101.0) == {(0, 0): {B}, (0, 2): {B}}  # but not where we are a custodian ourselves
    said[B] = True
    assert at(102.0) == {}
    said[B] = False
    assert at(103.0) == {}


def test_the_election_is_computed_once_and_deeper_when_many_are_gone() -> None:
    members = tuple(Validator(account(i), account(i), account(i), "", Stake(1)) for i in range(20))
    epochs = [
        EpochRecord(
            Epoch(e),
            ValidatorSet(members),
            (Standing(600, REPUTATION_ONE, 0),) * 20,
            Hash32(bytes([e]) * 32),
            (),
            TimeMs(0),
        )
        for e in range(3)
    ]
    model = [(0, tile) for tile in range(600)]
    standings = Standings(A, model, lambda: 3, ProtocolRules())

    async def scenario() -> None:
        first, second = await standings.of(epochs[:2], 0)
        assert max(len(others) for others in first.values()) == 3 + SPARE - 1
        again, following = await standings.of(epochs[1:], SPARE)
        assert again is second
        assert following is not first
        (deeper,) = await standings.of(epochs[1:2], SPARE + 1)
        assert max(len(others) for others in deeper.values()) == 3 + 2 * SPARE - 1
        assert second.items() <= deeper.items()

    asyncio.run(scenario())


def test_an_epoch_to_come_is_elected_with_the_cutoffs_that_it_will_have() -> None:
    """Whoever is full takes no more than it has room for, before the chain says who is; and what
    the chain then writes changes nothing."""
    members = tuple(Validator(account(i), account(i), account(i), "", Stake(1)) for i in range(8))
    room = tuple(Standing(3 if i < 2 else 600, REPUTATION_ONE, 0) for i in range(8))
    now, ahead = (
        EpochRecord(Epoch(e), ValidatorSet(members), room, Hash32(bytes([e]) * 32), (), TimeMs(0))
        for e in range(2)
    )
    model, rules = [(0, tile) for tile in range(60)], ProtocolRules()
    standings = Standings(members[0].account, model, lambda: 3, rules)

    async def scenario() -> None:
        _, coming = await standings.of((now, ahead), 0)
        assert sum(1 for others in coming.values() if len(others) < 3) == 3
        written = replace(ahead, cutoffs=rules.cutoffs(ahead, [60], 3))
        assert len(written.cutoffs) == 2
        (begun,) = await standings.of((written,), 0)
        assert begun is coming

    asyncio.run(scenario())


# --- room ----------------------------------------------------------------------------------


class Store:
    """Versions that share their tiles, as the real one's do: a tile gives back its bytes once."""

    def __init__(self) -> None:
        self.held = {ROOT: [True] * 8, NEWER: [True] * 8}
        self.shared = {0, 1}  # the same in both versions
        self.dropped: list[tuple[Hash32, int]] = []

    @property
    def used_bytes(self) -> int:
        old, new = (sum(held) for held in self.held.values())
        both = sum(1 for t in self.shared if self.held[ROOT][t] and self.held[NEWER][t])
        return (old + new - both) * 4 * MIB

    def versions(self, shard: int) -> tuple[Hash32, ...]:
        return tuple(r for r, held in self.held.items() if all(held))

    def partial_versions(self, shard: int) -> tuple[Hash32, ...]:
        return tuple(r for r, held in self.held.items() if not all(held))

    def presence(self, shard: int, shard_root: Hash32) -> tuple[bool, ...]:
        return tuple(self.held[shard_root])

    def drop(self, shard: int, shard_root: Hash32) -> None:
        raise AssertionError("something pinned is in every version")

    def drop_tile(self, shard: int, shard_root: Hash32, tile: int) -> None:
        self.dropped.append((shard_root, tile))
        self.held[shard_root][tile] = False


class Room:
    def __init__(self, quota_bytes: int = 0, free_bytes: int = 1 << 40) -> None:
        self.now, self.free, self.store = 0.0, free_bytes, Store()
        self.cache = TileCache(
            self.store,
            [SPEC],
            quota_bytes=quota_bytes,
            free_bytes=lambda: self.free,
            clock=self.clock,
        )
        self.cache.pinned = frozenset({(0, 6), (0, 7)})

    def clock(self) -> float:
        self.now += 1.0
        return self.now


def test_without_need_nothing_is_dropped() -> None:
    room = Room(quota_bytes=14 * 4 * MIB + 8 * MIB)
    room.cache.make_room(8 * MIB)
    assert not room.store.dropped


def test_the_least_recently_used_goes_first_and_what_is_pinned_stays() -> None:
    room = Room(quota_bytes=14 * 4 * MIB)
    for tile in (5, 4, 3, 2):
        room.cache.touch(0, ROOT, tile)
    room.cache.touch(0, NEWER)
    room.cache.make_room(16 * MIB)
    assert set(room.store.dropped[:2]) == {(ROOT, 0), (ROOT, 1)}  # never used; shared: no gain
    assert room.store.dropped[2:] == [(ROOT, 5), (ROOT, 4), (ROOT, 3), (ROOT, 2)]
    assert room.cache.room() == 16 * MIB
    with pytest.raises(QuotaError, match="store_quota allows"):
        room.cache.make_room(1000 * MIB)
    assert {t for _, t in room.store.dropped} == set(range(6))
    assert all(held[6] and held[7] for held in room.store.held.values())


def test_uses_of_versions_that_come_and_go_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.services.tile_cache.REMEMBERED", 3)
    cache = Room().cache
    for tile in (1, 2, 3, 1, 4, 5):
        cache.touch(0, ROOT, tile)
    assert [tile for _, _, tile in cache._used] == [1, 4, 5]


def test_the_chain_keeps_its_reserve_on_a_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(free_bytes=RESERVE_BYTES + 4 * MIB)
    room.cache.make_room(4 * MIB)
    room.cache.pinned = None  # before there is a plan nothing is dropped
    with pytest.raises(QuotaError, match="kept for the chain") as refused:
        room.cache.make_room(5 * MIB)
    logging.getLogger("blyan").propagate = True
    with caplog.at_level(logging.INFO, "blyan.placement"):
        for _ in range(5):
            room.cache.note_full(refused.value)
        room.free += 1 << 30
        room.cache.make_room(5 * MIB)
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert room.cache.full is None


def test_old_versions_give_way_when_nothing_cached_is_left() -> None:
    room, asked = Room(quota_bytes=14 * 4 * MIB), []

    def shed() -> bool:
        asked.append(set(room.store.dropped))
        room.cache.quota_bytes += 80 * MIB  # as if so much had gone
        return len(asked) == 1

    room.cache.shed = shed
    room.cache.make_room(room.cache.room() + 4 * MIB)
    assert not asked
    room.cache.make_room(room.cache.room() + 100 * MIB)
    assert len(asked) == 1
    assert {tile for _, tile in asked[0]} == set(range(6))  # first all that is only cached
    with pytest.raises(QuotaError):
        room.cache.make_room(1000 * MIB)
    assert len(asked) == 2
