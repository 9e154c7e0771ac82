"""Placement without I/O: who keeps what, whoever goes, and that little moves.

The oracle counts holders; it shares nothing with the plan but the election's order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.hashes import Hash32
from chain.types import ChainId, PubKey, ShardIndex, TileIndex
from consensus.custodians import CustodyOrder
from consensus.election import Candidate, tile_subject
from consensus.ranking import Layout, ranks
from node.services.placement_plan import (
    GROUP_TILES,
    Cached,
    Tile,
    evict,
    fetch_order,
    group_key,
    keep,
    model_key,
    provider_keys,
    standing,
)

SEED = Hash32(hashlib.sha256(b"placement").digest())
CHAIN = ChainId(Hash32(bytes(32)))


def account(i: int) -> PubKey:
    return PubKey(hashlib.sha256(b"custodian %d" % i).digest())


def order(seed: Hash32, candidates: Sequence[Candidate], tile: Tile) -> tuple[PubKey, ...]:
    return ranks(seed, tile_subject(ShardIndex(tile[0]), TileIndex(tile[1])), candidates)


class World:
    """Nodes that see who is there and who holds what, after each grace period."""

    def __init__(
        self,
        nodes: int,
        tiles: int,
        target: int,
        stakes: Sequence[int] = (1,),
        depth: int = 1000,
    ) -> None:
        self.target = target
        self.model: list[Tile] = [(i // 16, i % 16) for i in range(tiles)]
        self.candidates = [
            Candidate(account(i), 1000 * stakes[i % len(stakes)]) for i in range(nodes)
        ]
        self.capacity = {c.account: tiles for c in self.candidates}
        self.orders = {t: order(SEED, self.candidates, t) for t in self.model}
        # What `standing` finds with a depth of everyone; the next test says that it does.
        self.before: dict[PubKey, dict[Tile, tuple[PubKey, ...]]] = {
            c.account: {} for c in self.candidates
        }
        for tile, ranked in self.orders.items():
            for place, who in enumerate(ranked[:depth]):
                self.before[who][tile] = ranked[:place]
        self.live = {c.account for c in self.candidates}
        self.held: dict[PubKey, frozenset[Tile]] = {a: frozenset() for a in self.live}
        self.moved = 0

    def settle(self) -> None:
        """Every live node plans and fetches until nobody changes anything."""
        for _ in range(50):
            gone = {c.account for c in self.candidates} - self.live
            # A custodian that has no room for a tile is seen to lack it.
            full = [a for a in self.live if len(self.held[a]) >= self.capacity[a]]
            lacking = {t: {a for a in full if t not in self.held[a]} for t in self.model}
            wanted = {a: self._plan(a, gone, lacking) for a in self.live}
            if wanted == {a: self.held[a] for a in self.live}:
                return
            for who, tiles in wanted.items():
                self.moved += len(tiles - self.held[who])
                self.held[who] = tiles
        raise AssertionError("placement does not come to rest")

    def _plan(
        self, who: PubKey, gone: set[PubKey], lacking: dict[Tile, set[PubKey]]
    ) -> frozenset[Tile]:
        return keep(
            [*self.model, (99, 0)],  # a tile that nobody has: no capacity covers the whole
            self.before[who],
            own=who,
            target=self.target,
            capacity=self.capacity[who],
            gone=gone,
            lacking=lacking,
        ).tiles

    def holders(self, tile: Tile) -> int:
        return sum(1 for a in self.live if tile in self.held[a])


def test_what_standing_finds_is_the_beginning_of_each_order() -> None:
    world = World(12, 48, 3, stakes=(1, 2, 5))
    for who in (account(0), account(7)):
        order = CustodyOrder(Layout(SEED, world.candidates), {})
        found = standing(order, who, world.model, 5)
        expected = {t: b for t, b in world.before[who].items() if len(b) < 5}
        assert {t: set(b) for t, b in found.items()} == {t: set(b) for t, b in expected.items()}


@settings(max_examples=30, deadline=None)
@given(
    nodes=st.integers(1, 10),
    target=st.integers(1, 5),
    leaving=st.lists(st.integers(0, 9), max_size=6),
)
def test_every_tile_has_its_holders_whoever_goes(
    nodes: int, target: int, leaving: list[int]
) -> None:
    world = World(nodes, 32, target)
    world.settle()
    for gone in leaving:
        if len(world.live) > 1:
            world.live.discard(account(gone))
        world.settle()
        for tile in world.model:
            assert world.holders(tile) >= min(target, len(world.live))


def test_a_departure_moves_what_it_held_and_nothing_else() -> None:
    world = World(20, 200, 3)
    world.settle()
    leaver = account(4)
    held, before = world.held[leaver], dict(world.held)
    world.moved = 0
    world.live.discard(leaver)
    world.settle()
    assert world.moved == len(held)
    for who in world.live:
        assert before[who] <= world.held[who]
        assert world.held[who] - before[who] <= held


def test_fifty_nodes_and_two_thousand_tiles_through_departures_and_small_capacities() -> None:
    """The whole at the size of a small network; prints nothing, and takes a few seconds."""
    draw = random.Random(20)
    world = World(50, 2000, 3, stakes=(1, 2, 3), depth=3 + 10 + 5)
    for who in draw.sample(sorted(world.live), 5):
        world.capacity[who] = 40  # a third of their share: others must step in
    world.settle()
    first = world.moved
    assert first <= 2000 * 3 * 1.25
    counts = []
    for _ in range(10):
        leaver = draw.choice(sorted(world.live))
        held = len(world.held[leaver])
        world.live.discard(leaver)
        world.moved = 0
        world.settle()
        counts.append((world.moved, held))
        assert min(map(world.holders, world.model)) >= 3
        assert all(len(world.held[a]) <= world.capacity[a] for a in world.live)
    # Beside what the leaver held, only what nodes at their capacity exchange for better ranks.
    assert sum(moved for moved, _ in counts) <= 1.5 * sum(held for _, held in counts)


def test_a_capacity_for_the_whole_model_needs_no_election() -> None:
    model = [(0, 0), (0, 1)]
    assert keep(model, {}, own=b"", target=3, capacity=2).tiles == frozenset(model)
    assert keep(model, {}, own=b"", target=3, capacity=1).tiles == frozenset()
    short = keep(model, dict.fromkeys(model, ()), own=b"x", target=3, capacity=1)
    assert (len(short.tiles), short.beyond) == (1, 1)


def test_one_s_own_custody_goes_before_standing_in_for_others() -> None:
    model = [(0, i) for i in range(4)]
    first, second = account(1), account(2)
    before = {(0, 0): (first, second), (0, 1): (first,), (0, 2): (), (0, 3): (first, second)}
    kept = keep(model, before, own=b"x", target=2, capacity=2, gone={first, second})
    assert kept.tiles == {(0, 2), (0, 1)}
    assert kept.beyond == 2


def test_rarest_first_and_each_node_begins_elsewhere() -> None:
    model: list[Tile] = [(0, i) for i in range(40)]
    counts = {t: t[1] % 4 for t in model}
    one = fetch_order(model, counts.__getitem__, b"one")
    two = fetch_order(model, counts.__getitem__, b"two")
    assert [counts[t] for t in one] == [1] * 10 + [2] * 10 + [3] * 10 + [0] * 10
    assert one != two
    assert sorted(one) == sorted(two) == model


@given(sizes=st.lists(st.integers(1, 100), max_size=20), need=st.integers(0, 2000))
def test_eviction_takes_the_oldest_and_no_more_than_it_must(sizes: list[int], need: int) -> None:
    root = Hash32(bytes(32))
    cached = [Cached(0, root, i, size, float(i)) for i, size in enumerate(sizes)]
    chosen = evict(reversed(cached), need)
    assert chosen == cached[: len(chosen)]
    freed = sum(c.size_bytes for c in chosen)
    assert freed >= need or chosen == cached
    assert not chosen or freed - chosen[-1].size_bytes < need


def test_records_say_only_what_the_chain_does_not() -> None:
    model: list[Tile] = [(0, i) for i in range(GROUP_TILES * 2)]
    before = {t: (account(1),) * (t[1] % 4) for t in model}
    assert provider_keys(CHAIN, model, model, before, 3) == [model_key(CHAIN)]
    elected = [t for t in model if t[1] % 4 < 3]
    assert provider_keys(CHAIN, model, elected, before, 3) == []
    substitute = [*elected, (0, 3), (0, GROUP_TILES + 3)]
    keys = provider_keys(CHAIN, model, substitute, before, 3)
    assert keys == [group_key(CHAIN, (0, 0)), group_key(CHAIN, (0, GROUP_TILES))]
    assert provider_keys(CHAIN, model, [(0, 5)], {}, 3) == [group_key(CHAIN, (0, 5))]
    assert provider_keys(CHAIN, model, [], {}, 3) == []


@pytest.mark.parametrize("tiles", [[(0, 0), (0, GROUP_TILES), (1, 0)]])
def test_groups_have_keys_of_their_own(tiles: list[Tile]) -> None:
    keys = [model_key(CHAIN), *(group_key(CHAIN, t) for t in tiles)]
    assert all(a != b for a, b in pairwise(sorted(keys)))
    assert group_key(CHAIN, (0, 1)) == group_key(CHAIN, (0, GROUP_TILES - 1))
