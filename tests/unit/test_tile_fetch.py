"""Tiles from several peers at once, in virtual time: who lies, stalls or dies costs little."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from chain import limits
from chain.errors import UnreachableError
from node.services import tile_fetch
from node.services.tile_fetch import TileFetcher
from tests.kit.fast_time import passes, run_fast
from tests.kit.tile_peers import MemoryPeers, Peer, Tile, make_tile

STEP = limits.SUBTILE_BYTES


async def get(fetcher: TileFetcher, net: MemoryPeers, tile: Tile, timeout_s: float = 600.0) -> None:
    async with fetcher.fetch(tile.want, net.names, timeout_s=timeout_s) as data:
        assert data == tile.data


def play(net: MemoryPeers, act: Callable[[TileFetcher], Awaitable[None]]) -> float:
    """Run `act` on a fetcher over these peers; the virtual seconds that it took."""

    async def main() -> float:
        fetcher = TileFetcher(net)
        await act(fetcher)
        took = asyncio.get_running_loop().time()
        assert not fetcher._tasks
        assert not fetcher._active
        assert not fetcher._waiting
        await fetcher.close()
        return took

    return run_fast(main())


def flip(at: int) -> Callable[[bytearray], None]:
    def spoil(answer: bytearray) -> None:
        answer[min(at, len(answer) - 1)] ^= 1

    return spoil


def test_one_tile_comes_from_several_peers_at_once() -> None:
    net = MemoryPeers(*(Peer(f"p{i}") for i in range(4)))
    tile = make_tile(1)
    net.hold(tile)
    took = play(net, lambda f: get(f, net, tile))
    assert all(peer.ranges for peer in net.by_name.values())
    assert took < 1.2 * limits.TILE_BYTES / (4 * 50e6)
    assert sum(p.sent for p in net.by_name.values()) == limits.TILE_BYTES + 32 * 16


@pytest.mark.parametrize("size", [1, STEP - 1, STEP, STEP + 1, 5 * STEP + 7, limits.TILE_BYTES])
def test_tiles_of_any_length(size: int) -> None:
    net = MemoryPeers(Peer("a"), Peer("b"))
    tile = make_tile(2, size)
    net.hold(tile)
    play(net, lambda f: get(f, net, tile))


def test_many_tiles_are_started_in_order_and_few_at_a_time() -> None:
    net = MemoryPeers(Peer("a"), Peer("b"), Peer("c"))
    tiles = [make_tile(i, tile=i) for i in range(30)]
    net.hold(*tiles)
    most = 0

    async def act(fetcher: TileFetcher) -> None:
        nonlocal most

        async def one(tile: Tile) -> None:
            nonlocal most
            async with fetcher.fetch(tile.want, net.names) as data:
                most = max(most, sum(p.running for p in net.by_name.values()))
                assert data == tile.data

        await asyncio.gather(*(one(tile) for tile in tiles))
        assert fetcher.fetched == 30
        assert len(fetcher._free) <= tile_fetch.IDLE_BUFFERS

    play(net, act)
    assert most <= 3 * tile_fetch.LANES
    asked = [n for p in net.by_name.values() for n, first, _ in p.ranges if first == 0]
    assert {n for p in net.by_name.values() for n, _, _ in p.ranges[:1]} <= set(range(6))
    assert sorted(asked) == list(range(30))


def test_a_liar_is_named_and_costs_little() -> None:
    tiles = [make_tile(i, tile=i) for i in range(24)]

    def took(liars: int) -> float:
        net = MemoryPeers(
            *(
                Peer(f"p{i}", spoil=flip(2 * STEP) if i < liars else lambda a: None)
                for i in range(4)
            )
        )
        net.hold(*tiles)

        async def act(fetcher: TileFetcher) -> None:
            await asyncio.gather(*(get(fetcher, net, tile) for tile in tiles))
            assert fetcher.lies == liars

        seconds = play(net, act)
        assert net.reported == ["p0"] * liars
        assert net.by_name["p0"].asked <= (tile_fetch.LANES if liars else 100)
        return seconds

    honest_three = took(0) * 4 / 3
    assert took(1) < 1.15 * honest_three


@pytest.mark.parametrize("rate", [1.0, 0.0, 20e3])
def test_a_peer_that_drips_costs_little_among_many_tiles(rate: float) -> None:
    tiles = [make_tile(i, tile=i) for i in range(60)]
    drips = Peer("drips", rate=rate or 1.0, stalls_after=None if rate else 0)
    net = MemoryPeers(drips, *(Peer(f"p{i}") for i in range(3)))
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        await asyncio.gather(*(get(fetcher, net, tile) for tile in tiles))

    took = play(net, act)
    assert took < 60 * limits.TILE_BYTES / 150e6 + 1.0
    assert drips.asked <= 4


def test_a_peer_that_was_slow_once_is_tried_again_later() -> None:
    slow = Peer("a", rate=1000.0)
    net = MemoryPeers(slow, Peer("b"))
    tiles = [make_tile(i, tile=i) for i in range(3)]
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        await get(fetcher, net, tiles[0])
        slow.rate = 50e6
        asked = slow.asked
        await get(fetcher, net, tiles[1])
        assert slow.asked == asked
        await passes(60)
        await get(fetcher, net, tiles[2])
        assert slow.asked > asked

    play(net, act)


def test_peers_that_hold_nothing_are_soon_left_alone() -> None:
    tiles = [make_tile(i, tile=i) for i in range(60)]
    empty = [Peer(f"e{i}", holds=lambda request: False, delay_s=0.05) for i in range(20)]
    net = MemoryPeers(*empty, Peer("a", delay_s=0.05), Peer("b", delay_s=0.05))
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        await asyncio.gather(*(get(fetcher, net, tile) for tile in tiles))

    took = play(net, act)
    assert took < 2 * (60 * limits.TILE_BYTES / 100e6)
    assert sum(peer.asked for peer in empty) < 200


def test_hashes_that_do_not_lead_to_the_root_are_a_lie() -> None:
    net = MemoryPeers(Peer("liar", spoil=flip(3)), Peer("honest"))
    tile = make_tile(3)
    net.hold(tile)
    play(net, lambda f: get(f, net, tile))
    assert net.reported == ["liar"]
    assert net.by_name["liar"].sent <= 2 * 64 * 1024


@pytest.mark.parametrize("only_half", [True, False])
def test_a_peer_that_stalls_has_its_rest_taken_over(only_half: bool) -> None:
    net = MemoryPeers(Peer("stalls", stalls_after=STEP * 3 if only_half else 0), Peer("honest"))
    tile = make_tile(4)
    net.hold(tile)
    took = play(net, lambda f: get(f, net, tile))
    assert took < 3.0
    assert net.reported == []
    if only_half:  # what was verified is not fetched again
        assert net.by_name["honest"].sent < limits.TILE_BYTES


def test_a_byte_a_second_is_too_slow() -> None:
    net = MemoryPeers(Peer("drips", rate=1.0), Peer("honest"))
    tile = make_tile(5)
    net.hold(tile)
    assert play(net, lambda f: get(f, net, tile)) < 3.0


def test_a_slow_peer_is_used_if_there_is_no_other() -> None:
    net = MemoryPeers(Peer("slow", rate=100e3))
    tile = make_tile(6)
    net.hold(tile)
    took = play(net, lambda f: get(f, net, tile))
    assert 41 < took < 60


def test_a_peer_that_stalls_alone_is_given_up() -> None:
    net = MemoryPeers(Peer("stalls", stalls_after=0))
    tile = make_tile(7)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        with pytest.raises(UnreachableError, match="stalls: sent no whole subtile in 30 s"):
            await get(fetcher, net, tile)

    assert play(net, act) < 40


def test_a_slower_peer_gives_what_it_can() -> None:
    tiles = [make_tile(i, tile=i) for i in range(40)]
    net = MemoryPeers(Peer("fast", rate=80e6), Peer("slow", rate=20e6))
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        await asyncio.gather(*(get(fetcher, net, tile) for tile in tiles))

    took = play(net, act)
    assert took < 1.25 * 40 * limits.TILE_BYTES / 100e6
    total = sum(p.sent for p in net.by_name.values())
    assert total < 1.1 * 40 * limits.TILE_BYTES
    assert net.by_name["slow"].sent > 0.1 * total


def test_what_a_peer_answers_besides_the_tile() -> None:
    net = MemoryPeers(
        Peer("too much", spoil=lambda a: a.extend(b"x")),
        Peer("too little", spoil=lambda a: a.pop()),
        Peer("nothing", holds=lambda request: False),
        Peer("dies", dies_after=STEP * 2),
        Peer("honest", rate=10e6),
    )
    tile = make_tile(8)
    net.hold(tile)
    play(net, lambda f: get(f, net, tile))
    assert set(net.reported) == {"too little"}


def test_a_busy_peer_is_asked_again() -> None:
    net = MemoryPeers(Peer("busy", busy=2))
    tile = make_tile(9)
    net.hold(tile)
    assert play(net, lambda f: get(f, net, tile)) < 3.0


def test_who_was_asked_and_why_each_failed() -> None:
    net = MemoryPeers(
        Peer("liar", spoil=flip(2 * STEP)),
        Peer("nothing", holds=lambda request: False),
        Peer("busy", busy=100),
    )
    tile = make_tile(10)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        with pytest.raises(UnreachableError) as caught:
            await get(fetcher, net, tile)
        text = str(caught.value)
        for part in ("none of 3", "liar: lied", "nothing: does not hold it", "busy: the peer is"):
            assert part in text

    play(net, act)


def test_nobody_to_ask() -> None:
    net = MemoryPeers()

    async def act(fetcher: TileFetcher) -> None:
        with pytest.raises(UnreachableError, match="none of 0 connected peers"):
            await get(fetcher, net, make_tile(11))

    play(net, act)


def test_verified_subtiles_outlive_a_failure() -> None:
    """A peer that dies midway, and another that comes later: nothing is fetched twice."""
    net = MemoryPeers(Peer("dies", dies_after=9 * STEP))
    tile = make_tile(12)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        with pytest.raises(UnreachableError, match="connection was lost"):
            await get(fetcher, net, tile, timeout_s=0.3)
        net.by_name["honest"] = Peer("honest")
        del net.by_name["dies"]
        await get(fetcher, net, tile)
        assert net.by_name["honest"].sent == 8 * STEP  # the hashes came first

    play(net, act)


def test_a_deadline_ends_the_wait_and_gives_the_buffer_back() -> None:
    net = MemoryPeers(Peer("drips", rate=1000.0))
    tile = make_tile(13)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        for _ in range(20):  # more than there are buffers
            with pytest.raises(UnreachableError, match=r"not within 0\.5 s; drips: has sent"):
                await get(fetcher, net, tile, timeout_s=0.5)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    play(net, act)


def test_a_caller_that_goes_away_ends_its_transfer() -> None:
    net = MemoryPeers(Peer("a", rate=1e6))
    tile = make_tile(14)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        task = asyncio.create_task(get(fetcher, net, tile))
        await passes(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await passes(0.1)
        assert net.by_name["a"].running == 0

    play(net, act)


def test_a_caller_that_comes_back_at_once_loses_nothing() -> None:
    net = MemoryPeers(Peer("a", rate=4e6))
    tile = make_tile(16)
    net.hold(tile)

    async def act(fetcher: TileFetcher) -> None:
        for _ in range(5):
            task = asyncio.create_task(get(fetcher, net, tile))
            await passes(0.2)
            task.cancel()
        await get(fetcher, net, tile)
        cut = 5 * (STEP + 64 * 1024)  # what was under way at each break
        assert net.by_name["a"].sent <= limits.TILE_BYTES + 512 + cut

    play(net, act)


def test_closing_ends_all() -> None:
    net = MemoryPeers(Peer("a", rate=1e6))
    tiles = [make_tile(i, tile=i) for i in range(30)]
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        tasks = [asyncio.create_task(get(fetcher, net, t)) for t in tiles]
        await passes(1)
        await fetcher.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, UnreachableError)
        assert net.by_name["a"].running == 0
        with pytest.raises(UnreachableError, match="stopping"):
            await get(fetcher, net, tiles[0])

    play(net, act)


def test_a_bug_in_the_network_does_not_hold_up_the_tile() -> None:
    class Broken(MemoryPeers):
        async def fetch(self, peer: str, *args: object, **options: object) -> int:  # type: ignore[override]
            if peer == "bad":
                raise ZeroDivisionError
            return await super().fetch(peer, *args, **options)  # type: ignore[arg-type]

    net = Broken(Peer("bad"), Peer("good"))
    tile = make_tile(15)
    net.hold(tile)
    play(net, lambda f: get(f, net, tile))


@pytest.mark.parametrize("seed", range(60))
def test_a_campaign(seed: int) -> None:
    """Random tiles and peers of every character: all arrives, honest peers are never blamed, and
    no two peers ever write to the same subtile at a time."""
    chance = random.Random(seed)
    tiles = [
        make_tile(
            1000 * seed + i, chance.choice([1, STEP, 3 * STEP + 5, limits.TILE_BYTES]), tile=i
        )
        for i in range(chance.randrange(1, 7))
    ]
    honest = Peer("honest", rate=chance.choice([1e6, 20e6, 200e6]), delay_s=chance.random() / 10)
    peers = [honest]
    for i in range(chance.randrange(6)):
        peer = Peer(f"p{i}", rate=10 ** chance.uniform(3, 8.5), delay_s=chance.random() / 5)
        match chance.randrange(7):
            case 0:
                peer.spoil = flip(chance.randrange(limits.TILE_BYTES))
            case 1:
                peer.stalls_after = chance.randrange(limits.TILE_BYTES)
            case 2:
                peer.dies_after = chance.randrange(limits.TILE_BYTES)
            case 3:
                peer.spoil = lambda a: a.extend(b"more")
            case 4:
                peer.spoil = lambda a: a.__delitem__(slice(len(a) // 2, None))
            case 5:
                peer.busy = chance.randrange(5)
        peers.append(peer)
    chance.shuffle(peers)
    net = MemoryPeers(*peers)
    net.hold(*tiles)

    async def act(fetcher: TileFetcher) -> None:
        await asyncio.gather(*(get(fetcher, net, t) for t in tiles))

    assert play(net, act) < 120
    assert "honest" not in net.reported
