"""Validators find and keep each other, whatever the limits on other connections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chain.records import NodeRecord, node_key
from node.net import limits
from node.services.mesh import Mesh
from tests.kit.local_chain import LocalChain
from tests.kit.net import Station
from tests.kit.validators import until_met, validators
from tests.kit.waiting import reached


class Ports:
    """The network port, remembering what is asked of it."""

    def __init__(self, own: str) -> None:
        self.peer_id = own
        self.pinned: dict[str, tuple[str, ...]] = {}
        self.reached: list[str] = []

    def pin(self, peers: Mapping[str, Sequence[str]]) -> None:
        self.pinned = {name: tuple(addresses) for name, addresses in peers.items()}

    def peers(self) -> list[object]:
        return []

    async def reach(self, peer: str, addresses: tuple[str, ...] = ()) -> None:
        self.reached.append(peer)


@pytest.fixture
def few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers learned from others are not dialled, and strangers find no place."""
    monkeypatch.setattr(limits, "WANTED_CONNECTIONS", 0)
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 0)


@pytest.mark.usefixtures("few_connections")
def test_validators_who_know_one_of_them_find_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with validators(tmp_path, start=False) as members:
            await until_met(members)
            stranger = Station("stranger")
            await stranger.net.start()
            try:
                dialled = asyncio.create_task(stranger.net.dial(members[3].address))
                await reached(
                    lambda: members[3].net.metrics().get("connections_refused"), 120, "a refusal"
                )
                dialled.cancel()
                await asyncio.gather(dialled, return_exceptions=True)
                assert members[3].id not in stranger.connected
                assert all(len(m.connected) == 3 for m in members)
            finally:
                await stranger.net.stop()

    asyncio.run(main())


@pytest.mark.usefixtures("few_connections")
def test_without_a_mesh_they_would_not(tmp_path: Path) -> None:
    """What the test above rests on: nothing else connects them under these limits."""

    async def main() -> None:
        async with validators(tmp_path, mesh=False, start=False) as members:
            *others, first = members
            await reached(lambda: first.net.metrics().get("connections_refused"), 120, "a refusal")
            assert not any(m.connected & {o.id for o in others} for m in others)

    asyncio.run(main())


def test_members_are_pinned_at_the_addresses_they_announced(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as local:
        members = local.state.epoch(0).validators.members
        own, other = members[0], members[1]
        record = local.state.need(NodeRecord, node_key(other.account))
        address = f"/ip4/192.0.2.7/tcp/9000/p2p/{other.node_id}"
        changed = replace(record, addresses=(address,))
        state = local.state

        class Chain:
            genesis, tip = local.genesis, local.chain.tip

            def state(self) -> object:
                return state

            def finalized(self, callback: object) -> None: ...

        state.put(node_key(other.account), changed)
        net = Ports(own.node_id)
        mesh = Mesh(Chain(), net, lambda: 0.0)  # type: ignore[arg-type]
        asyncio.run(mesh.look())
        assert set(net.pinned) == {m.node_id for m in members} - {own.node_id}
        assert net.pinned[other.node_id] == (address,)
        assert sorted(net.reached) == sorted(net.pinned)
        asyncio.run(mesh.look())  # searched for lately: left to the dialler
        assert len(net.reached) == len(net.pinned)


def test_a_node_that_is_no_validator_pins_nobody(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as local:
        net = Ports("12D3KooWStranger")
        asyncio.run(Mesh(local.chain, net).look())  # type: ignore[arg-type]
        assert net.pinned == {}
        assert net.reached == []
