"""The DHT: who provides a key, found by Kademlia over `/blyan/kad/1.0.0`. Runs in the trio thread.

Messages are libp2p's (kad-dht specification: FIND_NODE, GET_PROVIDERS, ADD_PROVIDER, PING); the
rest is ours, since py-libp2p's KadDHT serves the public IPFS protocol whatever prefix it is given,
believes and passes on whatever providers and peers a liar names, and is switched off for everyone
by a dozen silent streams (docs/adr/0013).
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from chain.errors import InputError, UnreachableError
from node.net import limits, peers, streams
from node.net.identity import Address, is_peer_id
from node.net.kademlia import Contact, Contacts, Rate, Records, position

if TYPE_CHECKING:
    from node.net.host import Host

log = logging.getLogger("blyan.net")
PROTOCOL = "/blyan/kad/1.0.0"
Addresses = tuple[Address, ...]


class Dht:
    """One node's part of the DHT. Contacts and records last as long as this trio run."""

    def __init__(self, host: Host) -> None:
        self._host, self._state, self._book = host, host.state, host.book
        self._own = position(ID.from_string(self._state.name).to_bytes())
        self.contacts = Contacts(self._own, self._is_connected)
        self.records = Records()
        self._rate = Rate(limits.DHT_RATE, limits.DHT_BURST)
        self._serving: Counter[str] = Counter()
        self._lookups = trio.CapacityLimiter(limits.MAX_DHT_LOOKUPS)
        self.wake = trio.Event()  # a key to provide, or somebody to give records to

    # --- contacts -------------------------------------------------------------------

    def met(self, name: str) -> None:
        """A peer has connected: every node takes part in the DHT."""
        known = self._book.known.get(name)
        addresses = tuple(known.addresses) if known else ()
        self.contacts.met(_contact(name, addresses))
        self.wake.set()

    def _is_connected(self, name: str) -> bool:
        link = self._host.links.get(name)
        return link is not None and link.is_usable

    def _addresses_of(self, contact: Contact) -> Addresses:
        known = self._book.known.get(contact.name)
        return tuple(known.addresses) if known and known.addresses else contact.addresses

    # --- serving ----------------------------------------------------------------------

    async def serve(self, stream: Any) -> None:
        """Handler of a peer's stream: some messages, each answered."""
        name = str(stream.muxed_conn.peer_id)
        total = sum(self._serving.values())
        if (
            self._serving[name] >= limits.MAX_DHT_AT_ONCE_PER_PEER
            or total >= limits.MAX_DHT_AT_ONCE
        ):
            self._host.metrics.add("dht_busy")
            await streams.reset(stream)
            return
        self._serving[name] += 1
        try:
            for _ in range(limits.MAX_DHT_STREAM):
                with trio.fail_after(limits.READ_TIMEOUT_S):
                    data = await _read(stream)
                if data is None:
                    return
                if not self._rate.take(name, time.monotonic()):
                    raise streams.StreamError("more DHT messages than anyone needs")
                answer = self._answer(name, data)
                with trio.fail_after(limits.READ_TIMEOUT_S):
                    await streams.write(stream, _frame(answer))
        finally:
            self._serving[name] -= 1
            if self._serving[name] <= 0:
                del self._serving[name]

    def _answer(self, name: str, data: bytes) -> Any:
        """Raises StreamError, which costs the peer points."""
        message = _parse(data)
        if message is None or not 0 < len(message.key) <= limits.MAX_DHT_KEY:
            self._host.blame(name, "not a DHT message", limits.POINTS_GARBAGE)
            raise streams.StreamError("not a DHT message")
        kinds = Message.MessageType
        host = self._host.address_of(ID.from_string(name))
        if host is None:
            raise streams.StreamError("no longer connected")
        answer = Message(type=message.type, key=message.key)
        if message.type == kinds.PING:
            return answer
        if message.type == kinds.ADD_PROVIDER:
            self._add_provider(name, message, host)
            return answer
        if message.type not in (kinds.GET_PROVIDERS, kinds.FIND_NODE):
            raise streams.StreamError("a DHT message of a kind that is not served here")
        if message.type == kinds.GET_PROVIDERS:
            for provider, addresses in self._providers_here(message.key).items():
                _put(answer.providerPeers.add(), provider, addresses, host)
        for contact in self._closest(message.key, name):
            _put(answer.closerPeers.add(), contact.name, self._addresses_of(contact), host)
        return answer

    def _closest(self, key: bytes, asker: str) -> list[Contact]:
        """Contacts close to a key, a peer that is asked for by its id first; never the asker."""
        found = [
            c
            for c in self.contacts.closest(position(key), limits.DHT_BUCKET + 1)
            if c.name != asker
        ]
        return found[: limits.DHT_BUCKET]

    def _providers_here(self, key: bytes) -> dict[str, Addresses]:
        """Ourselves, and who has told us; at most Kademlia's k."""
        found = self.records.get(key, time.monotonic())
        if key in self._state.provided:
            own = tuple(Address.parse(text) for text in self._state.own_addresses())
            found = {self._state.name: own, **found}
        return dict(list(found.items())[: limits.DHT_BUCKET])

    def _add_provider(self, name: str, message: Any, host: str) -> None:
        own = ID.from_string(name).to_bytes()
        if any(entry.id != own for entry in message.providerPeers):
            self._host.blame(name, "provides for another", limits.POINTS_INVALID_GOSSIP)
            raise streams.StreamError("a provider record of somebody else")
        for entry in message.providerPeers[:1]:  # reading addresses is slow: not the same again
            addresses = _addresses(entry.addrs, host)
            if self.records.add(message.key, name, addresses, time.monotonic()):
                self._host.metrics.add("dht_records_taken")
            else:
                self._host.metrics.add("dht_records_refused")

    # --- asking -------------------------------------------------------------------------

    async def providers(self, key: bytes) -> list[str]:
        """Peers that are said to provide `key`, those named by most first; connected ones and
        those with an address, which the dialer then knows. Nothing of it is believed further."""
        if not 0 < len(key) <= limits.MAX_DHT_KEY:
            raise InputError(f"a DHT key has 1 to {limits.MAX_DHT_KEY} bytes, not {len(key)}")
        said: Counter[str] = Counter()
        where: dict[str, Addresses] = {}
        for name, addresses in self.records.get(key, time.monotonic()).items():
            said[name] += 1
            where[name] = addresses
        async with self._lookups:
            for answer, host in (await self._lookup(key, Message.MessageType.GET_PROVIDERS))[1]:
                for entry in answer.providerPeers[: limits.DHT_BUCKET]:
                    one = _name_of(entry.id)
                    if one is not None and one != self._state.name:
                        said[one] += 1
                        where.setdefault(one, _addresses(entry.addrs, host))
        order = sorted(said, key=lambda name: (-said[name], not self._is_connected(name)))
        return [name for name in order[: limits.MAX_FOUND] if self._is_known(name, where[name])]

    def _is_known(self, name: str, addresses: Addresses) -> bool:
        return self._is_connected(name) or self._host.dialer.note_lead(name, addresses)

    async def reach(self, name: str, addresses: Addresses) -> None:
        """Be connected to a peer for a while, wherever it is. UnreachableError."""
        try:
            await self._host.dialer.visit(name, addresses)
        except UnreachableError:
            if not (found := await self.find_peer(name)):
                raise
            await self._host.dialer.visit(name, found)

    async def find_peer(self, name: str) -> Addresses:
        """Where a peer listens, as others say; empty if nobody knows it."""
        target = ID.from_string(name).to_bytes()
        known = self.contacts.get(name)
        if known is not None and known.addresses:
            return known.addresses
        async with self._lookups:
            _, answers = await self._lookup(target, Message.MessageType.FIND_NODE)
        for answer, host in answers:
            for entry in answer.closerPeers[: limits.DHT_BUCKET]:
                if entry.id == target and (addresses := _addresses(entry.addrs, host)):
                    return addresses
        return ()

    async def _lookup(self, key: bytes, kind: Any) -> tuple[list[Contact], list[tuple[Any, str]]]:
        """Ask closer and closer peers. Those that answered, the closest first; and every answer
        with the address at which its sender is seen."""
        target = position(key)
        todo = {c.name: c for c in self.contacts.closest(target)}
        asked: dict[str, Contact] = {}
        answered: list[Contact] = []
        answers: list[tuple[Any, str]] = []
        question = Message(type=kind, key=key)

        async def ask(contact: Contact) -> None:
            answer = await self._query(contact, question)
            host = self._host.address_of(ID.from_string(contact.name))
            if answer is None or host is None:
                return
            answered.append(contact)
            answers.append((answer, host))
            for entry in answer.closerPeers[: limits.DHT_BUCKET]:
                closer = _name_of(entry.id)
                if closer is None or closer == self._state.name or closer in asked:
                    continue
                todo.setdefault(closer, _contact(closer, _addresses(entry.addrs, host)))

        with trio.move_on_after(limits.DHT_LOOKUP_S):
            while len(asked) < limits.MAX_DHT_QUERIES:
                nearest = sorted(todo.values(), key=lambda c: c.position ^ target)
                batch = [c for c in nearest[: limits.DHT_WIDTH] if c.name not in asked]
                if not batch:
                    break
                async with trio.open_nursery() as nursery:
                    for contact in batch[: limits.DHT_PARALLEL]:
                        asked[contact.name] = contact
                        nursery.start_soon(ask, contact)
        self._host.metrics.add("dht_lookups")
        return sorted(answered, key=lambda c: c.position ^ target), answers

    async def _query(self, contact: Contact, question: Any) -> Any | None:
        """One peer's answer; None if it has none. Whoever answers becomes a contact."""

        async def ask(stream: Any) -> bytes | None:
            await streams.write(stream, _frame(question))
            return await _read(stream)

        name = contact.name
        if is_met := self._is_connected(name):  # its addresses may be hearsay, and are not needed
            contact = _contact(name, ())
        try:
            if not is_met:
                await self._host.dialer.visit(name, self._addresses_of(contact))
            data = await self._host.exchange(name, PROTOCOL, limits.DHT_QUERY_S, ask)
        except UnreachableError as error:
            log.debug("no DHT answer: %s", error)
            if not self._is_connected(name):
                self.contacts.lost(contact)
            return None
        if data is None:
            return None  # it ended the stream, as a node does that stops
        answer = _parse(data)
        if answer is None or answer.type != question.type:
            self._host.blame(name, "not a DHT answer", limits.POINTS_GARBAGE)
            return None
        self.contacts.met(contact)
        return answer

    # --- providing ------------------------------------------------------------------------

    async def provide_for_ever(self) -> None:
        """Give out each provided key's record when it is due, a few a second."""
        while True:
            now, self.wake = time.monotonic(), trio.Event()
            due = list(self._state.provided.items())
            key, at = min(due, key=lambda item: item[1], default=(b"", now + 3600.0))
            if at > now or not len(self.contacts):
                pause = at - now if len(self.contacts) else limits.PROVIDE_INTERVAL_S
                with trio.move_on_after(max(limits.PROVIDE_PAUSE_S, pause)):
                    await self.wake.wait()
                continue
            given = 0
            try:
                given = await self._provide(key)
            except Exception as error:
                log.warning("a record was not given out: %r", error)
                self._host.metrics.add("contained_errors")
            pause = limits.PROVIDE_INTERVAL_S if given else limits.PROVIDE_RETRY_S
            if key in self._state.provided:
                self._state.provided[key] = time.monotonic() + pause
            await trio.sleep(limits.PROVIDE_PAUSE_S)

    async def _provide(self, key: bytes) -> int:
        """Give our record of `key` to the closest peers; to how many."""
        async with self._lookups:
            closest, _ = await self._lookup(key, Message.MessageType.FIND_NODE)
            message = Message(type=Message.MessageType.ADD_PROVIDER, key=key)
            entry = message.providerPeers.add()
            entry.id = ID.from_string(self._state.name).to_bytes()
            entry.addrs.extend(_to_bytes(text) for text in self._state.own_addresses())
            given = 0
            for contact in closest[: limits.DHT_STORES]:
                given += await self._query(contact, message) is not None
        self._host.metrics.add("dht_records_given", given)
        return given


# --- messages ---------------------------------------------------------------------------------


def _contact(name: str, addresses: Addresses) -> Contact:
    return Contact(name, position(ID.from_string(name).to_bytes()), addresses)


def _name_of(raw: bytes) -> str | None:
    """A peer id as text, if it is one of a kind that we speak to."""
    name = str(ID(raw)) if len(raw) <= 64 else ""
    return name if is_peer_id(name) else None


def _addresses(raw: Iterable[bytes], host: str) -> Addresses:
    """The usable ones of the addresses in a message from a peer seen at `host`."""
    texts = []
    for data in list(raw)[: limits.MAX_ADDRESSES]:
        try:
            texts.append(str(Multiaddr(data)))
        except Exception as error:  # whatever the parser of the library makes of garbage
            log.debug("an address that is none: %r", error)
    return tuple(peers.seen_from(tuple(texts), host))


def _put(entry: Any, name: str, addresses: Addresses, host: str) -> None:
    """Write a peer, with those of its addresses that are of use to an asker seen at `host`."""
    entry.id = ID.from_string(name).to_bytes()
    local = peers.is_loopback(host)
    fit = [a for a in addresses if a.is_loopback == local or a.is_wildcard]
    entry.addrs.extend(_to_bytes(str(a)) for a in fit[: limits.MAX_ADDRESSES])


@functools.lru_cache(maxsize=4096)  # 0.1 ms each, and an answer may have 320
def _to_bytes(address: str) -> bytes:
    return bytes(Multiaddr(address).to_bytes())


def _parse(data: bytes) -> Any | None:
    message = Message()
    try:
        message.ParseFromString(data)
    except ProtobufError:
        return None
    return message


def _frame(message: Any) -> bytes:
    data = message.SerializeToString()
    size, prefix = len(data), bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + bytes(data)


async def _read(stream: Any) -> bytes | None:
    """A varint length and as many bytes; None if the stream ended before. TooLargeError."""
    size = shift = 0
    while True:
        byte = await stream.read(1)
        if not byte:
            if shift:
                raise streams.StreamError("the stream ended within a length")
            return None
        size |= (byte[0] & 0x7F) << shift
        if size > limits.MAX_DHT_BYTES or shift > 21:
            raise streams.TooLargeError(f"a DHT message of {size} bytes or more")
        shift += 7
        if not byte[0] & 0x80:
            return await streams.read_exactly(stream, size)
