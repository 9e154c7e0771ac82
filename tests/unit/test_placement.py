"""Placement as a service: real stores and elections, a network in memory, time that is told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chain.errors import UnreachableError
from node.services.placement_plan import Tile, model_key
from tests.kit.placement_net import PlacementNode, QuickDisk, Town

TARGET = 3


def run(directory: Path, body: Callable[[Town], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with Town(directory, **options) as town:
            await body(town)

    asyncio.run(asyncio.wait_for(main(), 120))


def partial(town: Town, count: int, capacity: int = 20) -> list[PlacementNode]:
    return [town.memory_node(i, capacity_tiles=capacity) for i in range(count)]


async def settled(town: Town, *nodes: PlacementNode) -> None:
    """A seed with everything, from which the others take their parts; then it goes."""
    seed = town.memory_node(len(town.chain.validators) - 1, capacity_tiles=1000)
    seed.seed()
    town.connect_all()
    await town.settle(*nodes)
    seed.net.leave()


def test_each_keeps_its_part_and_all_together_the_target(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        seed = town.memory_node(4, capacity_tiles=1000)
        seed.seed()
        nodes = partial(town, 4, capacity=24)
        town.connect_all()
        await town.settle(seed, *nodes)
        assert min(town.holders(seed, *nodes)) >= TARGET
        for node in nodes:
            info = node.placement.info()
            assert 0 < info["kept_tiles"] <= info["capacity_tiles"] == 24
            assert info["missing_tiles"] == 0
            assert node.held() == {t for t in town.model if node.placement.keeps(*t)}
            assert len(node.held()) < len(town.model)
        assert seed.placement.info()["kept_tiles"] == len(town.model)

    run(tmp_path, body)


def test_who_goes_is_replaced_after_the_grace_by_the_next_in_order(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        nodes = partial(town, 6, capacity=26)
        await settled(town, *nodes)
        gone, left = nodes[0], nodes[1:]
        town.pass_time(30)
        await town.settle(*nodes)
        gone.net.leave()
        before = [node.held() for node in left]
        await town.settle(*left)
        assert [node.held() for node in left] == before  # it may come back
        town.pass_time(61)
        await town.settle(*left)
        assert min(town.holders(*left)) >= TARGET
        assert any(len(node.held()) < len(town.model) for node in left)
        for node in left:
            info = node.placement.info()
            assert gone.keys.account.public.hex() in info["gone_custodians"]
            assert info["under_replicated_tiles"] == 0

    run(tmp_path, body, validators=7)


def test_signatures_show_that_a_custodian_is_there_though_it_is_not_connected(
    tmp_path: Path,
) -> None:
    async def body(town: Town) -> None:
        (node,) = partial(town, 1)
        await node.plan()
        for _ in range(4):
            town.pass_time(30)
            town.chain.block()  # signed by all but the last of five
            await node.plan()
        last = town.chain.validators[4].account.public.hex()
        assert node.placement.info()["gone_custodians"] == [last]

    run(tmp_path, body)


def test_the_next_epoch_s_tiles_are_there_before_it_begins(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        node = partial(town, 1, capacity=26)[0]
        seed = town.memory_node(4, capacity_tiles=1000)
        seed.seed()
        town.connect_all()
        await town.settle(node)
        held = node.held()
        while town.chain.state.head.epoch == 0:
            town.chain.block()
        await node.plan()
        ours = {t for t, others in node.placement._plan.before[0].items() if len(others) < TARGET}
        assert ours <= held
        assert len(node.placement._plan.epochs) == 2

    run(tmp_path, body, epoch_blocks=9)


def test_holders_are_asked_in_the_order_of_what_they_say(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        node, empty, full, silent = partial(town, 4)
        for shard in range(3):
            full.tiles.put_shard(shard, town.shards[shard], town.root(shard))
        town.connect_all()
        await node.plan()
        await node.placement.presence.ask(full.net.peer_id)
        await node.placement.presence.ask(empty.net.peer_id)
        root = town.root(0)
        names = [full.net.peer_id, silent.net.peer_id]
        assert list(node.placement.holders(0, root, 0)) == names
        shown = node.placement.tile_info(0, root, 0)
        assert (shown["holders"], shown["peers"]) == (1, [full.net.peer_id])

    run(tmp_path, body)


def test_one_that_says_it_holds_and_does_not_serve_costs_itself(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        node, liar, honest = partial(town, 3)
        honest.seed()
        store = liar.tiles.store

        class Claims:
            """All presence, no bytes."""

            def presence(self, shard: int, root: Any) -> tuple[bool, ...]:
                return (True,) * town.specs[shard].tile_count

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

        liar.placement.presence._store = Claims()  # type: ignore[assignment]
        town.connect_all()
        await town.settle(node)
        assert node.placement.info()["missing_tiles"] == 0
        accused = {peer for peer, reason in node.net.reported if "said it holds" in reason}
        assert accused == {liar.net.peer_id}
        assert node.placement.metrics()["placement_false_claims_total"] > 0
        assert not honest.net.reported

    run(tmp_path, body)


def test_holders_that_are_not_connected_are_found_through_the_chain(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        node, holder = partial(town, 2)
        holder.seed()
        await node.plan()
        await node.hold()  # it knows nobody but the chain's custodians, and where they are
        assert holder.net.peer_id in node.net.links
        assert node.placement.info()["missing_tiles"] == 0

    run(tmp_path, body)


def test_and_through_provider_records(tmp_path: Path) -> None:
    """A node that is no validator holds everything, and says so in the DHT alone."""

    async def body(town: Town) -> None:
        node = partial(town, 1)[0]
        full = town.memory_node(4, capacity_tiles=1000)
        full.net.world["stranger"] = full.net.world.pop(full.net.peer_id)
        full.net.peer_id = "stranger"
        full.seed()
        await full.plan()
        assert full.net.provided == {model_key(town.chain.genesis.chain_id)}
        await node.plan()
        await node.hold()
        assert node.net.links == {"stranger"}
        assert node.placement.info()["missing_tiles"] == 0
        assert not node.net.provided  # the chain says what it holds

    run(tmp_path, body)


def test_without_holders_it_fails_and_does_not_search_all_the_time(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        node, other = partial(town, 2)
        town.connect_all()
        await node.plan()
        with pytest.raises(UnreachableError, match="fetches failed"):
            await node.hold()
        tried = len(node.net.asked)
        with pytest.raises(UnreachableError):
            await node.hold()
        assert not [a for a in node.net.asked[tried:] if a[1] == "reach"]
        town.pass_time(30)
        other.seed()
        await node.hold()
        assert node.placement.info()["missing_tiles"] == 0

    run(tmp_path, body)


# --- room ----------------------------------------------------------------------------------


class FullDisk(QuickDisk):
    """Answers ENOSPC to every new byte while it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False

    def write(self, fd: int, offset: int, data: Any) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(fd, offset, data)


def test_a_full_disk_stops_fetching_and_nothing_else_until_there_is_room(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        disk = FullDisk()
        seed = town.memory_node(4, capacity_tiles=1000)
        seed.seed()
        node = town.memory_node(0, capacity_tiles=20, disk=disk)
        town.connect_all()
        await node.plan()
        disk.is_full = True
        await node.hold()  # no error: nothing is to be done about it
        info = node.placement.info()
        assert info["no_room"] is not None
        assert info["missing_tiles"] == info["kept_tiles"]
        assert node.placement.metrics()["placement_no_room"] == 1
        shard = next(iter(node.placement.missing(town.chain.state)))
        assert node.placement.holds(shard, town.root(shard))  # so no duty is owed
        assert await node.tiles.shard(0, town.root(0)) == town.shards[0]  # a juror still reads
        disk.is_full = False
        town.pass_time(61)
        assert not node.placement.holds(shard, town.root(shard))
        await node.hold()
        info = node.placement.info()
        assert (info["no_room"], info["missing_tiles"]) == (None, 0)

    run(tmp_path, body)


def test_a_quota_lets_cached_tiles_go_before_any_that_is_kept(tmp_path: Path) -> None:
    async def body(town: Town) -> None:
        seed = town.memory_node(4, capacity_tiles=1000)
        seed.seed()
        node = town.memory_node(0, capacity_tiles=15)
        town.connect_all()
        await town.settle(node)
        kept = node.held()
        others = [t for t in town.model if t not in kept]
        assert others
        for shard, _ in others:  # as a juror reads them
            assert await node.tiles.shard(shard, town.root(shard)) == town.shards[shard]
        assert node.held() == set(town.model)
        node.cache.quota_bytes = node.tiles.store.used_bytes  # as it is, and not a byte more
        town.pass_time(1)
        used: Tile = others[0]
        node.cache.touch(used[0], town.root(used[0]))
        node.cache.make_room(1)
        left = node.held()
        assert kept <= left
        assert used in left
        assert len(left) < len(town.model)
        assert node.placement.info()["evicted_tiles"] == len(town.model) - len(left)

    run(tmp_path, body)
