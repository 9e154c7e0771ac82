"""Finding holders of a tile beyond the peers that are connected: its custodians, whom the chain
names, then whoever provides its group (docs/spec/placement.md, "Finding holders").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from chain import records as r
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.rules import Rules
from chain.state import State
from chain.types import ChainId, PubKey
from node.services.peers import Peers
from node.services.placement_plan import Tile, group_key, model_key
from node.services.presence import Presence

log = logging.getLogger("blyan.placement")

SEEK_S = 20.0  # a group of tiles is not searched for again within this
SEEK_MOST = 4  # custodians dialled for one tile, and providers of one key


class PlacementChain(Protocol):
    """What placement needs of the chain."""

    @property
    def rules(self) -> Rules: ...

    def state(self) -> State: ...

    def finalized(self, callback: Callable[..., None]) -> object: ...


class PlacementNet(Peers, Protocol):
    """What placement needs of the network port."""

    def on_peer(self, handler: Callable[[str, bool], object]) -> None: ...

    def provide(self, key: bytes) -> bool: ...

    def withdraw(self, key: bytes) -> None: ...

    async def providers(self, key: bytes) -> list[str]: ...

    async def reach(self, peer: str, addresses: Sequence[str] = ()) -> None: ...


class HolderSearch:
    """Searches for a few holders at a time, and never for the same all the time."""

    def __init__(
        self,
        chain_id: ChainId,
        account: PubKey,
        chain: PlacementChain,
        net: PlacementNet,
        presence: Presence,
        clock: Callable[[], float],
    ) -> None:
        self._chain_id, self._account = chain_id, account
        self._chain, self._net, self._presence, self._clock = chain, net, presence, clock
        self._sought: dict[Hash32, float] = {}

    async def seek(self, tile: Tile) -> bool:
        """Connect to others who may hold a tile, and learn what they hold. False: to nobody."""
        now, key = self._clock(), group_key(self._chain_id, tile)
        self._sought = {k: at for k, at in self._sought.items() if now - at < SEEK_S}
        if key in self._sought:
            return False
        self._sought[key] = now
        custodians = self._custodians(tile)
        met = await self._reach(custodians)
        if not met:
            met = await self._reach(dict.fromkeys(await self._providers(tile), ()))
        await self._presence.ask_all(met)
        return bool(met)

    def _custodians(self, tile: Tile) -> dict[str, tuple[str, ...]]:
        """The first in the tile's order that are not connected, and where they say they listen."""
        state = self._chain.state()
        epoch = state.epoch(state.head.epoch)
        names = {v.account: v.node_id for v in epoch.validators.members}
        known = self._connected()
        found: dict[str, tuple[str, ...]] = {}
        for account in self._chain.rules.ranks(epoch, *tile):
            if account != self._account and names[account] not in known:
                announced = state.get(r.NodeRecord, r.node_key(account))
                found[names[account]] = announced.addresses if announced else ()
            if len(found) >= SEEK_MOST:
                break
        return found

    async def _providers(self, tile: Tile) -> list[str]:
        """Who says it provides the tile's group, or the whole model."""
        found: dict[str, None] = {}
        for key in (group_key(self._chain_id, tile), model_key(self._chain_id)):
            try:
                said = await self._net.providers(key)
            except UnreachableError as error:
                log.debug("no providers: %s", error)
                continue
            known = self._connected()
            found |= dict.fromkeys([p for p in said if p not in known][:SEEK_MOST])
        return list(found)

    def _connected(self) -> set[str]:
        return {p.peer_id for p in self._net.peers() if p.connected}

    async def _reach(self, peers: dict[str, tuple[str, ...]]) -> list[str]:
        """Those of them that we are connected to afterwards."""

        async def reach(peer: str, addresses: tuple[str, ...]) -> bool:
            try:
                await self._net.reach(peer, addresses)
            except UnreachableError as error:
                log.debug("a holder cannot be reached: %s", error)
                return False
            return True

        done = await asyncio.gather(*(reach(*item) for item in peers.items()))
        return [peer for peer, is_met in zip(peers, done, strict=True) if is_met]
