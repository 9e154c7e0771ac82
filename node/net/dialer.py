"""Reaching peers and staying connected: dialling with backoff, and learning of more peers.

Runs in the trio thread, for one `Host`.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from chain.codec import encode
from chain.errors import DecodeError, UnreachableError
from node.net import limits, peers
from node.net.identity import Address, is_peer_id
from node.net.kademlia import Rate

if TYPE_CHECKING:
    from node.net.host import Host

log = logging.getLogger("blyan.net")


class Dialer:
    def __init__(self, host: Host) -> None:
        self._host, self._state = host, host.state
        self._book, self._links = host.state.book, host.state.links
        self._wakers: dict[str, trio.Event] = {}  # name -> wakes its loop
        self._random = random.Random()  # jitter only
        self._leads: OrderedDict[str, tuple[Address, ...]] = OrderedDict()  # others' word
        self._visits: dict[str, float] = {}  # connections made for a question; when last used
        self._visiting: dict[str, trio.Event] = {}
        self._visit_rate = Rate(limits.VISIT_RATE, limits.VISIT_BURST)

    # --- dialling -------------------------------------------------------------------

    async def dial(self, address: Address) -> str:
        """Want this peer from now on, and wait for the first connection."""
        name = address.peer_id or ""
        known = self._book.learn(name, [address], wanted=True)
        if known is None:
            raise UnreachableError(f"{address} is this node itself")
        self.keep(name)
        self._wakers[name].set()
        with trio.move_on_after(limits.DIAL_TIMEOUT_S + limits.STREAM_TIMEOUT_S):
            while name not in self._links or not self._links[name].up:
                await self._host.changed.wait()
            return name
        raise UnreachableError(f"no answer from {address}; it will be tried again")

    def forget(self, name: str) -> None:
        if self._book.known.pop(name, None) is not None and name in self._wakers:
            self._wakers[name].set()

    def pin(self, pinned: Mapping[str, Sequence[Address]]) -> None:
        """Be connected to exactly these whatever the limits, dialling them where they are known
        to listen. Their addresses are on the chain, so a loopback one means us only if we listen
        there."""
        local = self._state.listen.is_loopback
        usable = {
            name: [a for a in addresses if a.port and not a.is_wildcard and a.is_loopback is local]
            for name, addresses in pinned.items()
            if is_peer_id(name)
        }
        self._book.pin(usable)
        for name in usable:
            if name in self._book.known:
                self.keep(name)

    def keep(self, name: str) -> None:
        """Have a loop that connects this known peer whenever it is not connected."""
        if name not in self._wakers:
            self._wakers[name] = trio.Event()
            self._host.spawn(self._keep, name)

    async def _keep(self, name: str) -> None:
        peer = ID.from_string(name)
        try:
            if self._state.name > name and not self._book.known[name].wanted:
                await self._pause(name, 0.5)  # both learn of each other: one of us dials first
            while (known := self._book.known.get(name)) is not None:
                link = self._links.get(name)
                if link is not None:
                    since = time.monotonic()
                    await link.gone.wait()
                    known.failures = 0
                    if time.monotonic() - since < limits.STEADY_S:  # it throws us out?
                        await self._pause(name, limits.BACKOFF_LOOPBACK_S)
                elif not self._may_dial(known):
                    await self._pause(name, limits.BACKOFF_MOST_S)
                elif not await self._dial_any(known, peer):
                    await self._fail(known)
        finally:
            del self._wakers[name]

    def _may_dial(self, known: peers.Known) -> bool:
        if self._book.violations.is_banned(known.name, time.monotonic()):
            return False
        return known.is_kept or self._host.unpinned() < limits.WANTED_CONNECTIONS

    async def _dial_any(self, known: peers.Known, peer: ID) -> bool:
        """Try the addresses, the newest first. `dial_addr` rather than libp2p's `dial_peer`:
        that refuses a peer for a minute after one failure."""
        for address in known.to_dial():
            if self._host.is_connected(peer):
                break
            self._host.metrics.add("dials")
            with trio.move_on_after(limits.DIAL_TIMEOUT_S):
                try:
                    await self._host.swarm.dial_addr(Multiaddr(str(address)), peer)
                except Exception as error:
                    log.debug("dialling %s failed: %r", address, error)
                else:
                    known.learn(address, sure=True)
        if not self._host.is_connected(peer):
            return False
        self._host.link_of(peer)
        return True

    async def _fail(self, known: peers.Known) -> None:
        now = time.monotonic()
        known.lost_at = known.lost_at if known.failures else now
        known.failures += 1
        if self._book.give_up(known, now):
            return
        loopback = all(address.is_loopback for address in known.addresses)
        jitter = self._random.random()
        hearsay = known.is_hearsay and not known.is_kept  # those exist: the chain names them
        delay = peers.backoff_s(known.failures, loopback=loopback, hearsay=hearsay, jitter=jitter)
        await self._pause(known.name, delay)

    async def _pause(self, name: str, seconds: float) -> None:
        """Sleep until the time is over or `dial` asks for this peer."""
        with trio.move_on_after(seconds):
            await self._wakers[name].wait()
        self._wakers[name] = trio.Event()

    # --- visits ---------------------------------------------------------------------

    def note_lead(self, name: str, addresses: tuple[Address, ...]) -> bool:
        """Where others say that a peer listens, for a later visit. False: no address is known."""
        if addresses and name != self._state.name:
            self._leads[name] = addresses
            self._leads.move_to_end(name)
            while len(self._leads) > limits.MAX_KNOWN:
                self._leads.popitem(last=False)
        return bool(addresses) or name in self._leads or name in self._book.known

    async def visit(self, name: str, addresses: tuple[Address, ...] = ()) -> None:
        """Be connected to a peer that we have a question for. UnreachableError if we are not.

        Dials are few and paced, since who is asked for may be a liar's word; a connection that
        is not used any more is closed if we have enough without it.
        """
        while (busy := self._visiting.get(name)) is not None:
            await busy.wait()
        if name in self._visits:
            self._visits[name] = time.monotonic()
        if name in self._links and self._links[name].is_usable:
            return
        done = self._visiting[name] = trio.Event()
        try:
            await self._visit(name, addresses)
        finally:
            del self._visiting[name]
            done.set()

    async def _visit(self, name: str, addresses: tuple[Address, ...]) -> None:
        now, known = time.monotonic(), self._book.known.get(name)
        where = (known.to_dial() if known else []) or list(addresses)
        where = where or list(self._leads.get(name, ()))
        if name == self._state.name or not where:
            raise UnreachableError(f"no address of {name} is known")
        if self._book.violations.is_banned(name, now):
            raise UnreachableError(f"{name} is refused for what it did")
        if not self._visit_rate.take("", now) or not self._make_visit_room():
            raise UnreachableError(f"too many peers are being dialled to visit {name}")
        peer = ID.from_string(name)
        for address in where[: limits.MAX_DOUBTFUL]:
            self._host.metrics.add("visits")
            with trio.move_on_after(limits.DIAL_TIMEOUT_S):
                try:
                    await self._host.swarm.dial_addr(Multiaddr(str(address)), peer)
                except Exception as error:
                    log.debug("visiting %s failed: %r", address, error)
            if self._host.is_connected(peer):
                break
        else:
            raise UnreachableError(f"{name} cannot be reached at {where[0]}")
        link = self._host.link_of(peer)
        self._visits[name] = now
        with trio.move_on_after(limits.STREAM_TIMEOUT_S):
            while not link.is_usable and not link.is_closed:
                await self._host.changed.wait()
        if not link.is_usable:
            raise UnreachableError(f"{name} was reached, but does not speak to us")

    def _make_visit_room(self) -> bool:
        visits = [name for name in self._visits if name in self._links]
        full = self._host.unpinned() >= limits.MAX_CONNECTIONS - 4
        if len(visits) < limits.MAX_VISITS and not full:
            return True
        if not visits:
            return False
        self._end_visit(min(visits, key=lambda name: self._visits[name]))
        return True

    def close_visits(self, now: float) -> None:
        """Those that served their purpose, while we have more connections than we want."""
        for name, used in list(self._visits.items()):
            if name not in self._links:
                del self._visits[name]
            elif now - used > limits.VISIT_S and self._host.unpinned() > limits.WANTED_CONNECTIONS:
                self._end_visit(name)

    def _end_visit(self, name: str) -> None:
        del self._visits[name]
        known = self._book.known.get(name)
        if known is None or not known.is_kept:
            self._host.drop(name)

    # --- peer exchange --------------------------------------------------------------

    async def exchange_now_and_then(self) -> None:
        while True:
            await trio.sleep(limits.EXCHANGE_INTERVAL_S * (0.5 + self._random.random()))
            up = [link.name for link in self._links.values() if link.up]
            if up:
                await self.exchange(self._random.choice(up))

    async def exchange(self, name: str) -> None:
        """Tell a connected peer where we listen, and learn whom it knows."""
        host = self._host.address_of(ID.from_string(name))
        own = peers.PeersRequest(tuple(self._state.own_addresses()))
        try:
            data = await self._host.request(
                name, peers.EXCHANGE_PROTOCOL, encode(own), 10.0, limits.MAX_EXCHANGE_BYTES
            )
            answer = peers.parse_answer(data)
        except UnreachableError as error:
            log.debug("no peer exchange with %s: %s", name, error)
            return
        except DecodeError as error:
            self._host.blame(name, f"peer exchange: {error}", limits.POINTS_GARBAGE)
            return
        if host is not None:
            self._learn(name, answer.own, host)
            told = list(answer.peers)
            self._random.shuffle(told)
            news = 0
            for one in told:
                news += one.peer_id not in self._book.known
                if one.peer_id in self._book.known or news <= limits.MAX_NEWS:
                    self._learn(one.peer_id, one.addresses, host)

    def _learn(self, name: str, texts: tuple[str, ...], host: str) -> None:
        """Addresses of `name` as told by a peer that we see at `host`."""
        addresses = peers.seen_from(texts, host)
        if addresses and is_peer_id(name) and self._book.learn(name, addresses) is not None:
            self.keep(name)

    async def answer_exchange(self, name: str, data: bytes) -> bytes:
        """Serves `/blyan/peers/1`. Raises DecodeError, UnreachableError."""
        asked = peers.parse_request(data)
        host = self._host.address_of(ID.from_string(name))
        if host is None:
            raise UnreachableError("no longer connected")
        self._learn(name, asked.addresses, host)
        connected = [
            (link.name, list(self._book.known[link.name].addresses))
            for link in self._links.values()
            if link.up and link.name in self._book.known
        ]
        return peers.answer(self._state.own_addresses(), connected, name, host)
