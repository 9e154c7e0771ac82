"""The network port: everything the rest of the node knows of the network.

All methods belong to the asyncio side. Behind them py-libp2p runs in a trio thread of its own,
supervised: if it dies it is restarted on the same port under the same identity, and topics,
served protocols and wanted peers are taken up again (docs/spec/network.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from nacl.signing import SigningKey

from chain.address import peer_id_of
from chain.errors import InputError, UnreachableError
from node.net import limits
from node.net.asking import Asking, Progress
from node.net.bridge import Bridge, Metrics
from node.net.identity import Address, check_port_free, own_host
from node.net.info import PeerInfo, found_peers
from node.net.link import MESSAGE, Link
from node.net.links.info import LinkInfo
from node.net.peers import Book
from node.net.priority import Priority
from node.net.requests import Content, RequestHandler, Service
from node.net.state import State

log = logging.getLogger("blyan.net")

GossipHandler = Callable[[str, bytes], Awaitable[bool | None]]
MessageHandler = Callable[[str, bytes], object]
PeerHandler = Callable[[str, bool], object]


class Network:
    """The port. One instance is one peer; several may live in one process (in tests)."""

    def __init__(
        self,
        seed: bytes,
        *,
        listen: str = "/ip4/127.0.0.1/tcp/0",
        announce: Sequence[str] = (),
        chain_id: bytes = bytes(32),
        link_port: int | None = None,
    ) -> None:
        """`seed`: 32 bytes of the node's Ed25519 key. `announce`: addresses told to peers in
        place of the listen address. `link_port`: where links are accepted, on the host of
        `listen`, from nodes of the network `chain_id`; 0 for a free port, None for no links at
        all. Raises InputError."""
        if len(seed) != 32:
            raise InputError(f"a node key's seed has 32 bytes, not {len(seed)}")
        name = peer_id_of(bytes(SigningKey(seed).verify_key))
        self._metrics = Metrics()
        self._bridge = Bridge(self._metrics)
        self._state = State(
            seed=seed,
            name=name,
            bridge=self._bridge,
            metrics=self._metrics,
            deliver=self._deliver,
            peer_change=self._peer_change,
            judge=self._judge,
            answer=self._answer,
            announce=tuple(Address.parse(text) for text in announce),
            listen=Address.parse(listen),
            book=Book(name),
        )
        self._asking = Asking(self._bridge, self._host_method, self._metrics)
        self._link_settings = None if link_port is None else (chain_id, link_port)
        self._host: Any = None  # node.net.host.Host; its module imports libp2p
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._started: asyncio.Future[None] | None = None
        self._is_started = False
        self._gossip: dict[str, GossipHandler] = {}
        self._services: dict[str, RequestHandler] = {}
        self._on_message: list[MessageHandler] = []
        self._on_peer: list[PeerHandler] = []

    # --- life -----------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises PortInUseError (exit code 1) or UnreachableError."""
        if self._thread is not None:
            raise UnreachableError("this network was started before")
        check_port_free(self._state.listen)
        loop = asyncio.get_running_loop()
        self._bridge.attach(loop)
        self._start_links()
        self._started = loop.create_future()
        self._thread = threading.Thread(target=self._supervise, name="libp2p", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(limits.START_S):
                await asyncio.shield(self._started)
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                message = f"libp2p did not start within {limits.START_S:g} s"
                raise UnreachableError(message) from None
            raise

    def _start_links(self) -> None:
        if self._link_settings is None:
            return
        from node.net.links.address import MAX_BYTES, PROTOCOL
        from node.net.links.links import Links

        async def ask(peer: str, protocol: str, data: bytes) -> bytes:
            return await self._asking.over_stream(peer, protocol, data, 10.0, MAX_BYTES)

        chain_id, port = self._link_settings
        links = Links(self._state, chain_id, port, ask, self.report, self._serving, self._take)
        links.start()
        self._asking.links = links
        self.serve(PROTOCOL, links.answer, most=MAX_BYTES, concurrent=32)

    async def stop(self) -> None:
        """Disconnect and end the thread; returns within 2 s whatever hangs."""
        self._stopping.set()
        if self._thread is None:
            return
        if self._asking.links is not None:
            await self._asking.links.stop()
        host = self._host
        if host is not None:
            self._bridge.to_trio(host.stop)
        joined = asyncio.create_task(asyncio.to_thread(self._thread.join, limits.STOP_S))
        await self._bridge.cancel_tasks()
        await joined
        if self._thread.is_alive():
            log.warning("libp2p's thread did not end within %g s: left behind", limits.STOP_S)
        self._bridge.fail_calls()

    def _supervise(self) -> None:
        """The thread: one trio run after another until `stop`."""
        import trio

        from node.net.host import Host

        delay = limits.RESTART_FIRST_S
        while not self._stopping.is_set():
            host = self._host = Host(self._state)
            failure: BaseException | None = None
            try:
                trio.run(host.main, lambda: self._bridge.to_loop(self._note_started))
            except BaseException as error:  # whatever it was, it must not end the node
                failure = error
            host.abandon()
            self._bridge.shut()
            self._lose_links()
            if self._stopping.is_set():
                break
            log.error("libp2p's thread ended, restarting it", exc_info=failure)
            if not self._is_started:
                self._bridge.to_loop(self._note_failed, failure)
                break
            self._metrics.add("restarts")
            self._host = failure = None
            del host
            gc.collect()  # what the dead run still held open
            self._stopping.wait(delay)
            delay = min(delay * 2, limits.RESTART_MOST_S)
        self._bridge.to_loop(self._bridge.fail_calls)

    def _lose_links(self) -> None:
        for name, link in list(self._state.links.items()):
            if link.up:
                self._bridge.to_loop(self._peer_change, name, False)
        self._state.links.clear()
        self._state.directions.clear()

    def _note_started(self) -> None:
        self._is_started = True
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _note_failed(self, failure: BaseException | None) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(UnreachableError(f"libp2p cannot start: {failure!r}"))

    # --- peers ----------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        return self._state.name

    def addresses(self) -> list[str]:
        """Where others can dial this node, each with `/p2p/` and its peer id."""
        listed = self._state.announce or (self._state.listen,)
        real = (a.at(own_host(a.kind)) if a.is_wildcard else a for a in listed)
        return [str(address.with_peer(self._state.name)) for address in real]

    async def dial(self, address: str) -> str:
        """Connect to `/ip4/…/tcp/…/p2p/ID` and stay connected; returns the peer id.

        Raises InputError for an address without a peer id, UnreachableError if the peer did not
        answer in time. It stays wanted even then, and is redialled with growing pauses (at
        most 2 s on loopback, 5 s elsewhere) until `forget`.
        """
        parsed = Address.parse(address)
        if parsed.peer_id is None:
            raise InputError(f"{address!r} names no peer: expected it to end in /p2p/PEER_ID")
        if parsed.peer_id == self.peer_id:
            raise InputError(f"{address!r} is this node's own address")
        return await self._bridge.call(self._host_method("dial"), parsed)

    async def forget(self, peer: str) -> None:
        """Redial this peer no more; an open connection stays."""
        await self._bridge.call(self._do, "forget", peer)

    def pin(self, peers: Mapping[str, Sequence[str]]) -> None:
        """Be connected to exactly these peers, besides all others, until called again: dialled at
        these addresses or where they are known to listen, redialled for ever, and never refused
        for a limit on connections. Those that cannot be parsed are passed over. Without a running
        network it does nothing: call it now and then."""
        parsed: dict[str, list[Address]] = {}
        for name, texts in peers.items():
            found = parsed[name] = []
            for text in texts:
                with contextlib.suppress(InputError):
                    found.append(Address.parse(text))
        self._bridge.to_trio(self._pin, parsed)

    def peers(self) -> list[PeerInfo]:
        """Every peer that is connected, wanted or pinned, by peer id."""
        return found_peers(self._state)

    def link_info(self) -> list[LinkInfo]:
        """The link with each connected peer, up or not, by peer id; empty without links."""
        return self._asking.links.info() if self._asking.links is not None else []

    def on_peer(self, handler: PeerHandler) -> None:
        """`handler(peer_id, connected)` whenever a peer comes or goes."""
        self._on_peer.append(handler)

    def report(self, peer: str, reason: str, weight: float) -> None:
        """Count `weight` violation points against a peer. They halve every minute; at 100 the
        peer is disconnected and refused for five minutes."""
        self._bridge.to_trio(self._blame, peer, reason, weight)

    def provide(self, key: bytes) -> bool:
        """Be found by `providers(key)` of others from now on, until `withdraw`: the record is
        given out again every hour. False: too many keys are provided already."""
        if not 0 < len(key) <= limits.MAX_DHT_KEY:
            raise InputError(f"a DHT key has 1 to {limits.MAX_DHT_KEY} bytes, not {len(key)}")
        if key not in self._state.provided and len(self._state.provided) >= limits.MAX_PROVIDED:
            return False
        self._state.provided.setdefault(key, 0.0)
        self._bridge.to_trio(self._wake_dht)
        return True

    def withdraw(self, key: bytes) -> None:
        """Give out no more records of `key`; those given are forgotten within three hours."""
        self._state.provided.pop(key, None)

    async def providers(self, key: bytes) -> list[str]:
        """Peers that are said to provide `key`, those named by most first; `reach` connects to
        them. It is hearsay: ask them, and be ready for one that has nothing."""
        found: list[str] = await self._bridge.call(self._dht_method("providers"), key)
        return found

    async def reach(self, peer: str, addresses: Sequence[str] = ()) -> None:
        """Be connected to a peer for a while, dialling it where it is known to listen, else at
        `addresses`, else where the DHT says. UnreachableError if that fails."""
        parsed = []
        for text in addresses:
            with contextlib.suppress(InputError):
                parsed.append(Address.parse(text).with_peer(peer))
        await self._bridge.call(self._dht_method("reach"), peer, tuple(parsed))

    def metrics(self) -> dict[str, int]:
        """Counters since the start, and `peers_connected`."""
        counts = self._metrics.snapshot()
        counts["peers_connected"] = sum(1 for p in self.peers() if p.connected)
        if self._asking.links is not None:
            counts |= self._asking.links.counts()
        return counts

    # --- gossip ---------------------------------------------------------------------

    def subscribe(self, topic: str, handler: GossipHandler) -> None:
        """`await handler(peer, data)` judges each message of a topic before it is passed on.

        False: invalid, for any honest node; it goes no further and the peer that brought it gets
        violation points. None, an exception or more than 5 s: it goes no further and nobody is
        blamed. So judge quickly and do the work later. Own publishes are not delivered. One
        handler a topic.
        """
        if topic in self._gossip:
            raise InputError(f"topic {topic!r} has a handler already")
        self._gossip[topic] = handler
        self._state.topics.add(topic)
        self._bridge.to_trio(self._spawn, "subscribe", topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to everyone subscribed to `topic`; bursts are paced to 500 a second.

        Raises InputError above 1 MiB less 4 KiB (larger things travel by request), and
        UnreachableError while the network restarts. Without peers it goes nowhere.
        """
        if len(data) > limits.MAX_GOSSIP_BYTES:
            raise InputError(
                f"{len(data)} bytes are too many to gossip: at most {limits.MAX_GOSSIP_BYTES}"
            )
        await self._bridge.call(self._host_method("publish"), topic, data)

    # --- requests -------------------------------------------------------------------

    def serve(
        self,
        protocol: str,
        handler: RequestHandler,
        *,
        most: int,
        concurrent: int = 8,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Answer requests of at most `most` bytes with `await handler(peer, data)`, at most
        `concurrent` at a time (one peer: half of them). The answer is bytes, or a sequence of
        buffers that are sent one after another and must not change meanwhile; `priority` is the
        answer's. A BlyanError's text is sent to the asker as the reason; any other exception is
        logged and answered 'internal error'."""
        if protocol in self._services:
            raise InputError(f"protocol {protocol!r} is served already")
        self._services[protocol] = handler

        async def answer(peer: str, data: bytes) -> Content:
            return await self._bridge.ask(self._state.answer, protocol, peer, data)

        service = Service(protocol, answer, most, concurrent, priority)
        self._state.services[protocol] = service
        self._bridge.to_trio(self._serve, service)

    async def request(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        timeout_s: float,
        most: int,
        priority: Priority = Priority.NORMAL,
    ) -> bytes:
        """The peer's answer, of at most `most` bytes. Raises UnreachableError if there is none:
        not connected, too slow, too busy, refused (with its reason), or too much. `priority` is
        the request's own; the peer's service sets the answer's."""
        return await self._asking.request(peer, protocol, data, timeout_s, most, priority)

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        into: memoryview,
        progress: Progress | None = None,
        timeout_s: float,
        priority: Priority = Priority.NORMAL,
    ) -> int:
        """As `request`, with the answer written into `into` (writable, contiguous bytes) as it
        arrives; returns its length, at most `len(into)`.

        `progress(n)` is called in this thread whenever more has arrived: the first n bytes are
        there, and nothing writes to them again; what is behind them may be anything. An exception
        from it ends the transfer and is raised here. Once this returns or raises, nothing writes
        to `into` any more.
        """
        return await self._asking.fetch(peer, protocol, data, into, progress, timeout_s, priority)

    # --- consensus messages -----------------------------------------------------------

    def send(self, peer: str, data: bytes) -> bool:
        """Queue a message for a connected peer; False if it is not connected or `data` is over
        the limit of one message. It goes over the link, before whatever else waits there, or
        without one over libp2p. Fire and forget: when a peer cannot keep up, its oldest waiting
        messages are dropped."""
        if len(data) > limits.MAX_FRAME_BYTES:
            return False
        if self._asking.links is not None and self._asking.links.send(peer, data):
            self._metrics.add("tls_messages_sent")
            return True
        link = self._state.links.get(peer)
        if link is None or not link.is_usable:
            return False
        link.outbox.push(MESSAGE, data)
        return True

    def on_message(self, handler: MessageHandler) -> None:
        """`handler(peer, data)` for each message sent to us. It must not block."""
        self._on_message.append(handler)

    # --- called in the asyncio thread, on behalf of the trio side -----------------------

    def _deliver(self, link: Link, messages: list[bytes]) -> None:
        for data in messages:
            if link.is_closed:
                break  # thrown out for what came before
            self._take(link.name, data)
        link.handled += len(messages)
        if link.is_waiting:
            self._bridge.to_trio(link.make_room)

    def _take(self, peer: str, data: bytes) -> None:
        for handler in self._on_message:
            try:
                handler(peer, data)
            except Exception:
                log.exception("a message handler raised")
                self._metrics.add("handler_errors")

    def _peer_change(self, peer: str, connected: bool) -> None:
        if self._asking.links is not None:
            (self._asking.links.peer_up if connected else self._asking.links.peer_down)(peer)
        for handler in self._on_peer:
            try:
                handler(peer, connected)
            except Exception:
                log.exception("a peer handler raised")
                self._metrics.add("handler_errors")

    async def _judge(self, peer: str, topic: str, data: bytes) -> bool | None:
        handler = self._gossip.get(topic)
        if handler is None:
            return None
        try:
            return await handler(peer, data)
        except Exception:
            log.exception("the gossip handler of %s raised", topic)
            self._metrics.add("handler_errors")
            return None

    def _serving(self, protocol: str) -> tuple[Service, RequestHandler] | None:
        service = self._state.services.get(protocol)
        handler = self._services.get(protocol)
        return (service, handler) if service is not None and handler is not None else None

    async def _answer(self, protocol: str, peer: str, data: bytes) -> Content:
        return await self._services[protocol](peer, data)

    # --- called in the trio thread ------------------------------------------------------

    def _host_method(self, name: str) -> Any:
        """A coroutine function that looks the host up when it runs: it may have changed."""

        async def method(*args: Any) -> Any:
            return await getattr(self._host, name)(*args)

        return method

    def _dht_method(self, name: str) -> Any:
        async def method(*args: Any) -> Any:
            return await getattr(self._host.dht, name)(*args)

        return method

    async def _do(self, name: str, *args: Any) -> None:
        getattr(self._host, name)(*args)

    def _spawn(self, name: str, *args: Any) -> None:
        self._host.spawn(getattr(self._host, name), *args)

    def _serve(self, service: Service) -> None:
        self._host.serve(service)

    def _wake_dht(self) -> None:
        self._host.dht.wake.set()

    def _pin(self, peers: Mapping[str, Sequence[Address]]) -> None:
        self._host.dialer.pin(peers)

    def _blame(self, peer: str, reason: str, weight: float) -> None:
        self._host.blame(peer, reason, weight)
