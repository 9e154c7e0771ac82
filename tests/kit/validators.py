"""Validators with real networks, chains and consensus in one process, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

from chain.errors import UnreachableError
from node.net.port import Network
from node.services.consensus import ConsensusService
from node.services.mesh import Mesh
from tests.kit.local_chain import LocalChain
from tests.kit.waiting import TIMEOUT_S, reached

REFUSING = "/ip4/127.0.0.1/tcp/1"  # nobody listens there


class Member:
    """One validator: everything of a node that agreeing on blocks needs, and nothing else."""

    def __init__(
        self, directory: Path, index: int, count: int, *, behind_nat: bool = False, **params: Any
    ) -> None:
        """`behind_nat`: it dials, and what it announces leads nowhere: the others are told an
        address at which every connection is refused, of libp2p and of links alike, since it
        listens at an address of its own that nobody learns (Linux has all of 127/8)."""
        directory.mkdir(exist_ok=True)  # one that is there is gone on from
        self.directory = directory
        self.local = LocalChain(directory, validators=count, **params)
        self.keys = self.local.validators[index]
        places: dict[str, Any] = {}
        if behind_nat:
            places = {"listen": "/ip4/127.0.0.2/tcp/0", "announce": (REFUSING,)}
        chain_id = self.local.genesis.chain_id
        self.net = Network(self.keys.node.seed, chain_id=chain_id, link_port=0, **places)
        self.mesh = Mesh(self.local.chain, self.net)
        self.local.chain.finalized(
            lambda block, done: self.local.pool.committed(done.receipts, done.changes)
        )
        self.synced: list[tuple[str, int]] = []
        self.consensus = ConsensusService(
            self.local.chain,
            self.local.pool,
            self.net,
            self.keys,
            directory / "wal",
            lambda peer, height: self.synced.append((peer, height)),
            lambda report: None,
        )

    @property
    def id(self) -> str:
        return self.net.peer_id

    @property
    def address(self) -> str:
        return self.net.addresses()[0]

    @property
    def height(self) -> int:
        return self.local.chain.tip.height

    @property
    def connected(self) -> set[str]:
        return {p.peer_id for p in self.net.peers() if p.connected}

    def blocks_of(self, proposer: Member) -> int:
        """How many of the blocks that are final here another proposed."""
        store, key = self.local.chain.store, proposer.keys.consensus.public
        found = (store.block(height) for height in range(1, self.height + 1))
        return sum(1 for b in found if b is not None and b.header.proposer == key)

    def shun(self, other: Member) -> None:
        """Have no connection with another from now on, whoever dials: as if both were behind a
        NAT. (It is refused like a peer that was banned, which is how a node refuses.)"""
        self.net._state.book.violations._banned[other.id] = float("inf")


@contextlib.asynccontextmanager
async def validators(
    directory: Path,
    count: int = 4,
    *,
    prepare: Callable[[list[Member]], None] = lambda members: None,
    mesh: bool = True,
    start: bool = True,
    behind_nat: Collection[int] = (),
    **params: Any,
) -> AsyncIterator[list[Member]]:
    """Started networks, each told of the last alone; with `mesh` they find each other, and with
    `start` they agree on blocks. `behind_nat`: indices of those whom nobody can dial. `params`: of
    the genesis."""
    made = [
        Member(directory / f"v{i}", i, count, behind_nat=i in behind_nat, **params)
        for i in range(count)
    ]
    tasks: list[asyncio.Task[None]] = []
    try:
        prepare(made)
        for member in made:
            await member.net.start()
            if start:
                member.consensus.start()
            if mesh:
                tasks.append(asyncio.create_task(member.mesh.run()))
        tasks += [asyncio.create_task(_dial(member, made[-1])) for member in made[:-1]]
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in made:
            member.consensus.stop()
        await asyncio.gather(*(member.net.stop() for member in made))
        for member in made:
            member.local.close()


async def _dial(member: Member, other: Member) -> None:
    with contextlib.suppress(UnreachableError):  # it stays wanted
        await member.net.dial(other.address)


async def until_met(members: list[Member]) -> None:
    """Until each has a connection with every other that it does not shun."""
    everyone = {m.id for m in members}
    await reached(
        lambda: all(everyone - {m.id} <= m.connected for m in members), TIMEOUT_S, "a full mesh"
    )


async def until_linked(members: list[Member]) -> None:
    """Until each has a link, by which votes travel, with every other."""
    most = len(members) - 1
    await reached(
        lambda: all(sum(link.up for link in m.net.link_info()) == most for m in members),
        TIMEOUT_S,
        "links",
    )


async def until_view(members: list[Member], view: int) -> None:
    await reached(
        lambda: all(int(m.consensus.info()["view"]) > view for m in members),
        TIMEOUT_S,
        f"a view after {view} on {len(members)} validators",
    )


async def until_height(members: list[Member], height: int, timeout_s: float = TIMEOUT_S) -> None:
    await reached(
        lambda: all(m.height >= height for m in members),
        timeout_s,
        f"height {height} on {len(members)} validators",
    )
