"""Validators find and keep each other: every one has a connection with every other.

Votes travel directly, and nobody else dials a validator for us. The chain names each
member's peer id, and addresses if its account has announced any; the peer exchange and the DHT know
the rest. Whoever cannot be reached is redialled for ever; what it must hear is flooded meanwhile
(`node.services.flood`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from chain import records as r
from chain.errors import BlyanError
from chain.execute import epoch_of
from chain.params import Genesis
from chain.state import State
from chain.types import Epoch, Header
from node.net.info import PeerInfo

log = logging.getLogger("blyan.mesh")
LOOK_S = 2.0  # members are compared with connections this often
SEEK_S = 20.0  # a member that is not connected is searched for in the DHT this often
SEEK_AT_ONCE = 3  # such searches at a time; the port allows four lookups in all


class MeshChain(Protocol):
    """What the mesh needs of the chain."""

    @property
    def genesis(self) -> Genesis: ...

    @property
    def tip(self) -> Header: ...

    def state(self) -> State: ...

    def finalized(self, callback: Callable[..., None]) -> object: ...


class MeshNet(Protocol):
    """What the mesh needs of the network port."""

    @property
    def peer_id(self) -> str: ...

    def pin(self, peers: Mapping[str, Sequence[str]]) -> None: ...

    def peers(self) -> Sequence[PeerInfo]: ...

    async def reach(self, peer: str, addresses: Sequence[str] = ()) -> None: ...


class Mesh:
    def __init__(
        self, chain: MeshChain, net: MeshNet, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._chain, self._net, self._clock = chain, net, clock
        self._sought: dict[str, float] = {}
        self._pinned_for: Epoch | None = None
        self.pinned: frozenset[str] = frozenset()  # the members as of the last look
        chain.finalized(self._committed)

    def members(self) -> dict[str, tuple[str, ...]]:
        """The others in this epoch's set and the next one's, and where they say they listen.
        Empty for a node that is in neither: it finds peers as it likes."""
        state, epoch = self._chain.state(), self._epoch()
        found: dict[str, tuple[str, ...]] = {}
        for number in (epoch, epoch + 1):
            record = state.get(r.EpochRecord, r.epoch_key(number))
            for member in record.validators.members if record is not None else ():
                announced = state.get(r.NodeRecord, r.node_key(member.account))
                found[member.node_id] = announced.addresses if announced is not None else ()
        if found.pop(self._net.peer_id, None) is None:
            return {}
        return found

    def missing(self) -> list[str]:
        """Those of them that are not connected."""
        connected = {p.peer_id for p in self._net.peers() if p.connected}
        return [name for name in self.members() if name not in connected]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Pin the members, and search for those that are missing and were not searched lately."""
        self._pin()
        members, now = self.members(), self._clock()
        self._sought = {n: at for n, at in self._sought.items() if now - at < SEEK_S}
        missing = [n for n in self.missing() if n not in self._sought]
        for name in missing[:SEEK_AT_ONCE]:
            self._sought[name] = now
        await asyncio.gather(*(self._seek(n, members[n]) for n in missing[:SEEK_AT_ONCE]))

    def metrics(self) -> Mapping[str, int]:
        return {"mesh_members": len(self.members()), "mesh_missing": len(self.missing())}

    def _pin(self) -> None:
        members = self.members()
        self.pinned = frozenset(members)
        self._net.pin(members)
        self._pinned_for = self._epoch()

    def _committed(self, *_: Any) -> None:
        """A new epoch has new members."""
        if self._pinned_for is not None and self._pinned_for != self._epoch():
            self._pin()

    async def _seek(self, name: str, addresses: tuple[str, ...]) -> None:
        try:
            await self._net.reach(name, addresses)
        except BlyanError as error:
            log.info("validator %s is not reached (it will be tried again): %s", name, error)

    def _epoch(self) -> Epoch:
        return epoch_of(self._chain.genesis, self._chain.tip.height + 1)
