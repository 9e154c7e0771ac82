"""Nodes on loopback keep a model between them, each a part of it; two die, and theirs come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chain.errors import UnreachableError
from node.net.port import Network
from node.services import presence
from tests.kit.placement_net import PlacementNode, Town
from tests.kit.waiting import reached

TARGET, NODES = 3, 6
WAIT_S = 120.0


class Running:
    """A node's placement and the duty that does what it wants."""

    def __init__(self, node: PlacementNode) -> None:
        self.node = node
        self.tasks = [
            asyncio.create_task(node.placement.run()),
            asyncio.create_task(self._duty()),
        ]

    async def _duty(self) -> None:
        """As `Duties` does: whenever something is missing, and again when that failed."""
        while True:
            await reached(self._misses, 3600, "something is missing")
            with contextlib.suppress(UnreachableError):
                await self.node.hold()

    def _misses(self) -> bool:
        town, placement = self.node.town, self.node.placement
        return any(not placement.holds(s.index, town.root(s.index)) for s in town.specs)

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.node.net.stop()


@contextlib.asynccontextmanager
async def network_of(town: Town) -> AsyncIterator[list[Running]]:
    """The first holds everything; the others know only it, and hold nothing."""
    running: list[Running] = []
    first: Network | None = None
    try:
        for i in range(NODES):
            keys = town.chain.validators[i]
            net = Network(keys.node.seed)
            node = PlacementNode(town, keys, net, capacity_tiles=1000 if first is None else 26)
            await net.start()
            if first is None:
                node.seed()
                first = net
            else:
                await net.dial(first.addresses()[0])
            running.append(Running(node))
        yield running
    finally:
        await asyncio.gather(*(one.die() for one in running))


def test_a_node_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "INTERVAL_S", 0.5)

    async def scenario() -> None:
        async with (
            Town(tmp_path, validators=NODES, grace_s=1.0, clock=time.monotonic) as town,
            network_of(town) as running,
        ):
            nodes = [one.node for one in running]

            def settled(*live: PlacementNode) -> bool:
                return all(
                    node.placement.info()["missing_tiles"] == 0
                    and node.placement.info()["under_replicated_tiles"] == 0
                    and node.placement.info()["kept_tiles"] > 0
                    for node in live
                ) and min(town.holders(*live)) >= min(TARGET, len(live))

            await reached(lambda: settled(*nodes), WAIT_S, "the model is spread")
            parts = [len(node.held()) for node in nodes[1:]]
            assert min(parts) < len(town.model)  # not everyone has everything
            # A custodian dies, and so does the only one that has everything.
            for number in (1, 0):
                gone = running.pop(number)
                await gone.die()
                live = [one.node for one in running]
                dead = gone.node.keys.account.public.hex()

                def noticed(dead: str = dead, live: list[PlacementNode] = live) -> bool:
                    return all(dead in n.placement.info()["gone_custodians"] for n in live)

                # What is left may be enough already, before anybody is missed.
                await reached(noticed, WAIT_S, "it is missed")
                await reached(lambda live=live: settled(*live), WAIT_S, "its tiles are back")
            for node in live:
                for shard, data in enumerate(town.shards):
                    assert await node.tiles.shard(shard, town.root(shard)) == data

    asyncio.run(asyncio.wait_for(scenario(), 300))
