"""The trio side: connections, links, requests, gossip. One `Host` is one trio run.

Imported in libp2p's own thread only, since it imports libp2p (0.7 s, 74 MB).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import trio
from libp2p.abc import INetConn, INotifee
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from chain.errors import BlyanError, UnreachableError
from node.net import dht, limits, peers, quick, requests, streams
from node.net.dialer import Dialer
from node.net.gossip import GuardedPubsub, Verdict
from node.net.guards import GuardedHost, build_host, quiet_libp2p
from node.net.identity import Address, is_peer_id
from node.net.link import MESSAGE, PING, PONG, Frames, Link
from node.net.state import State

log = logging.getLogger("blyan.net")
LINK_PROTOCOL = TProtocol("/blyan/consensus/1")
T = TypeVar("T")
Ask = Callable[[Any], Awaitable[T]]  # what one request does with its stream
Take = Callable[[bytes], Coroutine[Any, Any, None]]  # run in the asyncio thread


class Host:
    def __init__(self, state: State) -> None:
        self.state, self.metrics, self.book = state, state.metrics, state.book
        self.links = state.links
        self._next_publish: dict[str, float] = {}  # topic -> monotonic time
        self._open: set[quick.QuickTCPStream] = set()
        self._early: list[INetConn] = []  # connected to us before we were ready

    # --- the run --------------------------------------------------------------------

    async def main(self, ready: Callable[[], object]) -> None:
        """Runs until `stop`. Raises if libp2p does: the caller restarts it."""
        quiet_libp2p()
        quick.OPEN.set(self._open)
        self._stopping = trio.Event()
        self._running = trio.Event()
        self.changed = trio.Event()  # replaced and set when a link comes up or goes
        self.dialer = Dialer(self)
        self.dht = dht.Dht(self)
        self.host: GuardedHost = build_host(self.state.seed, self.metrics, self.blame)
        self.swarm = self.host.get_network()
        self.pubsub = GuardedPubsub(self.host, self._judge, self.blame, self.metrics)
        self.swarm.register_notifee(_Notifee(self))
        self.host.set_stream_handler(LINK_PROTOCOL, self._read_link)
        self.host.set_stream_handler(TProtocol(dht.PROTOCOL), self.dht.serve)
        listen = Multiaddr(str(self.state.listen))
        async with (
            self.host.run([listen]),
            background_trio_service(self.pubsub),
            background_trio_service(self.pubsub.gossipsub),
        ):
            await self.pubsub.wait_until_ready()
            self._note_port()
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                self._running.set()
                for early in self._early:
                    self.on_connected(early)
                await self._join()
                self.state.bridge.open(nursery)
                nursery.start_soon(self._cut_in_the_end)
                nursery.start_soon(self._watch)
                nursery.start_soon(self.dialer.exchange_now_and_then)
                nursery.start_soon(self.dht.provide_for_ever)
                ready()
                await self._stopping.wait()
                nursery.cancel_scope.cancel()
            await self._close_all()

    def stop(self) -> None:
        self._stopping.set()

    def spawn(self, fn: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task whose failure is counted and ends nothing else."""
        if self._stopping.is_set():
            return

        async def guarded() -> None:
            try:
                await fn(*args)
            except Exception:
                log.exception("a network task failed: %s", getattr(fn, "__name__", fn))
                self.metrics.add("contained_errors")

        self.nursery.start_soon(guarded)

    def _note_port(self) -> None:
        bound = self.host.get_transport_addrs()
        if not bound:
            raise OSError(f"cannot listen on {self.state.listen}")
        old = self.state.listen
        port = int(bound[0].value_for_protocol("tcp"))
        self.state.listen = Address(old.kind, old.host, port)

    async def _join(self) -> None:
        """What an earlier run, or the calls before the start, asked for."""
        exchange = requests.Service(
            peers.EXCHANGE_PROTOCOL, self.dialer.answer_exchange, limits.MAX_EXCHANGE_BYTES, 16
        )
        self.serve(exchange)
        for service in list(self.state.services.values()):
            self.serve(service)
        for topic in sorted(self.state.topics):
            await self.pubsub.subscribe(topic)
        for name in list(self.book.known):
            self.dialer.keep(name)

    async def _close_all(self) -> None:
        with trio.move_on_after(limits.CLOSE_S):
            async with trio.open_nursery() as nursery:
                for peer in list(self.swarm.connections):
                    nursery.start_soon(self.swarm.close_peer, peer)

    async def _cut_in_the_end(self) -> None:
        """Once the run ends, in order or not: whoever is still writing to a peer that does not
        read would hold it up."""
        try:
            await trio.sleep_forever()
        finally:
            trio.lowlevel.spawn_system_task(self._cut)

    async def _cut(self) -> None:
        await trio.sleep(limits.CLOSE_S)
        for stream in list(self._open):
            stream.stream.socket.close()

    def abandon(self) -> None:
        """After the run, however it ended: close every socket that is still open. A listener
        left open would take half of the next run's connections."""
        for stream in self._open:
            quick.close_dead(stream.stream.socket)
        self._open.clear()
        swarm = getattr(self, "swarm", None)
        for listener in list(swarm.listeners.values()) if swarm is not None else ():
            for bound in getattr(listener, "listeners", ()):
                quick.close_dead(bound.socket)

    # --- connections ----------------------------------------------------------------

    def on_connected(self, connection: INetConn) -> None:
        if not self._running.is_set():
            self._early.append(connection)
            return
        peer = connection.muxed_conn.peer_id
        name = str(peer)
        if self.book.violations.is_banned(name, time.monotonic()):
            self.metrics.add("banned_refused")
            self.spawn(self._drop, peer)
            return
        if name not in self.links and not self._has_room_for(name):
            self.metrics.add("connections_refused")
            self.spawn(self._drop, peer)
            return
        outbound = connection.muxed_conn.is_initiator
        self.state.directions[name] = "out" if outbound else "in"
        self.state.hosts[name] = self.address_of(peer) or ""
        self.link_of(peer)
        self.pubsub.renew_stream(peer)

    def on_disconnected(self, connection: INetConn) -> None:
        peer = connection.muxed_conn.peer_id
        self.pubsub.renew_stream(peer)
        if not self.is_connected(peer) and str(peer) in self.links:
            self.links[str(peer)].close()

    def _has_room_for(self, name: str) -> bool:
        """Strangers have a limit of their own, so that they take no validator's place."""
        return self.book.is_pinned(name) or self.unpinned() < limits.MAX_CONNECTIONS

    def unpinned(self) -> int:
        """Peers with a connection that are not pinned."""
        return sum(not self.book.is_pinned(name) for name in list(self.links))

    def is_connected(self, peer: ID) -> bool:
        return any(not c.is_closed for c in self.swarm.get_connections(peer))

    def address_of(self, peer: ID) -> str | None:
        """The IP address at which we see a peer."""
        for connection in self.swarm.get_connections(peer):
            remote: Any = getattr(connection.muxed_conn, "get_remote_address", tuple)()
            if remote:
                return str(remote[0])
        return None

    async def _drop(self, peer: ID) -> None:
        """Disconnect: in order if that takes half a second at most, else by force."""

        async def force() -> None:
            await trio.sleep(0.5)
            self._abort(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(force)
            await self.swarm.close_peer(peer)
            nursery.cancel_scope.cancel()

    def drop(self, name: str) -> None:
        """Disconnect a peer that did nothing wrong."""
        if name in self.links:
            self.links[name].close()
        self.spawn(self._drop, ID.from_string(name))

    def _abort(self, peer: ID) -> None:
        for connection in self.swarm.get_connections(peer):
            socket = streams.socket_of(connection)
            if socket is not None:
                socket.socket.close()

    def blame(self, name: str, reason: str, points: float) -> None:
        """Violation points for a peer; over the limit it is disconnected and refused."""
        log.info("%s: %s (%g points)", name, reason, points)
        self.metrics.add("violations")
        if self.book.violations.add(name, points, time.monotonic()):
            log.warning("%s is refused for %g s: %s", name, limits.BAN_S, reason)
            self.metrics.add("banned")
            if is_peer_id(name):
                self.spawn(self._drop, ID.from_string(name))

    async def _watch(self) -> None:
        """Disconnect peers that have fallen silent; forgive them if it was us who slept."""
        last = time.monotonic()
        while True:
            await trio.sleep(1.0)
            now = time.monotonic()
            slept = now - last > 3.0
            last = now
            self.dialer.close_visits(now)
            for link in list(self.links.values()):
                if slept:
                    link.heard = now
                elif now - link.heard > limits.SILENCE_S:
                    log.info("%s is silent: disconnecting", link.name)
                    self.metrics.add("silent_peers")
                    link.close()
                    self._abort(ID.from_string(link.name))

    # --- links ----------------------------------------------------------------------

    def link_of(self, peer: ID) -> Link:
        name = str(peer)
        link = self.links.get(name)
        if link is None or link.is_closed:
            link = Link(name, self.state.bridge, self.metrics)
            self.links[name] = link
            self.spawn(self._run_link, link, peer)
        return link

    async def _run_link(self, link: Link, peer: ID) -> None:
        """Keep our stream to a peer open as long as it is connected."""
        try:
            with link.scope:
                failures = 0
                while failures < 10:
                    if await self._use_link(link, peer):
                        failures = 0
                        continue
                    failures += 1
                    await trio.sleep(0.1 * failures)
                log.info("%s opens no link: disconnecting", link.name)
        finally:
            self._note_gone(link)
            if link.name not in self.links:
                self.spawn(self._drop, peer)

    async def _use_link(self, link: Link, peer: ID) -> bool:
        """Open our stream and write to it until it breaks. False: it could not be opened."""
        try:
            with trio.fail_after(limits.STREAM_TIMEOUT_S):
                stream = await self.host.new_stream(peer, [LINK_PROTOCOL])
        except Exception as error:
            log.debug("no link to %s yet: %r", link.name, error)
            return False
        self._note_up(link, peer)
        try:
            await self._write_link(link, stream)
        except Exception as error:
            log.debug("link to %s broke: %r", link.name, error)
        finally:
            await streams.reset(stream)
        return True

    def _note_up(self, link: Link, peer: ID) -> None:
        if link.up:
            self.metrics.add("links_reopened")
            return
        link.up = True
        log.info("connected to %s", link.name)
        self.metrics.add("connects")
        self.state.bridge.to_loop(self.state.peer_change, link.name, True)
        self.spawn(self.dialer.exchange, link.name)
        self.dht.met(link.name)
        self._note_change()

    def _note_gone(self, link: Link) -> None:
        link.close()
        link.gone.set()
        if self.links.get(link.name) is link:
            del self.links[link.name]
            self.state.directions.pop(link.name, None)
            self.state.hosts.pop(link.name, None)
        if link.up:
            log.info("disconnected from %s", link.name)
            self.metrics.add("disconnects")
            self.state.bridge.to_loop(self.state.peer_change, link.name, False)
        self._note_change()

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _write_link(self, link: Link, stream: Any) -> None:
        next_ping = time.monotonic()
        while True:
            await quick.flush(stream)
            if time.monotonic() >= next_ping:
                next_ping = time.monotonic() + limits.PING_INTERVAL_S
                link.ping()
            if data := link.take():
                await streams.write(stream, data)
                continue
            link.write_now = functools.partial(self._write_now, link, stream)
            try:
                with trio.move_on_after(max(0.0, next_ping - time.monotonic())):
                    await link.wake.wait()
            finally:
                link.write_now = None
            link.wake = trio.Event()

    @staticmethod
    def _write_now(link: Link, stream: Any, data: bytes) -> bool:
        if not quick.write_now(stream, data):
            return False
        if quick.has_unsent(stream):
            link.wake.set()
        return True

    async def _read_link(self, stream: Any) -> None:
        """Handler of the peer's stream to us. What it raises is blamed on the peer."""
        await self._running.wait()
        peer = stream.muxed_conn.peer_id
        if self.book.violations.is_banned(str(peer), time.monotonic()):
            await streams.reset(stream)
            return
        link = self.link_of(peer)
        old, link.inbound = link.inbound, stream
        if old is not None:
            await streams.reset(old)
        frames = Frames()
        while link.inbound is stream:
            data = await stream.read(limits.WRITE_BYTES)
            if not data:
                return
            link.heard = time.monotonic()
            messages = []
            for kind, body in frames.feed(data):
                if kind == MESSAGE:
                    messages.append(body)
                elif kind == PING:
                    link.outbox.push(PONG, body)
                else:
                    link.pong(body)
            if messages:
                self.metrics.add("messages_received", len(messages))
                link.received += len(messages)
                self.state.bridge.to_loop(self.state.deliver, link, messages)
                await link.wait_for_room()

    # --- requests and gossip ----------------------------------------------------------

    def serve(self, service: requests.Service) -> None:
        server = requests.Server(service, self.metrics)

        async def handle(stream: Any) -> None:
            await server.handle(stream, str(stream.muxed_conn.peer_id))

        self.host.set_stream_handler(TProtocol(service.protocol), handle)

    async def request(
        self, name: str, protocol: str, data: bytes, timeout_s: float, most: int
    ) -> bytes:
        async def ask(stream: Any) -> bytes:
            return await requests.ask(stream, data, most)

        return await self.exchange(name, protocol, timeout_s, ask)

    async def fetch(
        self, name: str, protocol: str, data: bytes, timeout_s: float, most: int, take: Take
    ) -> int:
        async def ask(stream: Any) -> int:
            return await requests.fetch(
                stream, data, most, functools.partial(self.state.bridge.ask, take)
            )

        return await self.exchange(name, protocol, timeout_s, ask)

    async def exchange(self, name: str, protocol: str, timeout_s: float, ask: Ask[T]) -> T:
        peer = ID.from_string(name)
        if not self.is_connected(peer):
            raise UnreachableError(f"not connected to {name}")
        self.metrics.add("requests_sent")
        try:
            with trio.fail_after(timeout_s):
                return await self._ask(peer, protocol, ask)
        except trio.TooSlowError:
            self.metrics.add("requests_timeout")
            message = f"{name} did not answer {protocol} within {timeout_s:g} s"
            raise UnreachableError(message) from None

    async def _ask(self, peer: ID, protocol: str, ask: Ask[T]) -> T:
        stream = None
        try:
            stream = await self.host.new_stream(peer, [TProtocol(protocol)])
            answer = await ask(stream)
            await stream.close()
            stream = None
        except UnreachableError:
            raise
        except streams.TooLargeError as error:
            self.blame(str(peer), f"{protocol}: {error}", limits.POINTS_TOO_LARGE)
            raise UnreachableError(f"{peer} answered {protocol} with too much: {error}") from None
        except BlyanError as error:
            raise UnreachableError(f"{peer} broke off {protocol}: {error}") from None
        except Exception as error:
            raise UnreachableError(f"{protocol} to {peer} failed: {error!r}") from None
        finally:
            if stream is not None:
                await streams.reset(stream)
        return answer

    async def publish(self, topic: str, data: bytes) -> None:
        now = time.monotonic()
        at = max(now, self._next_publish.get(topic, 0.0))
        self._next_publish[topic] = at + 1.0 / limits.PUBLISH_RATE
        if at > now + 0.05:  # a burst of 25 goes out at once
            await trio.sleep(at - now)
        self.metrics.add("gossip_published")
        await self.pubsub.publish(topic, data)

    async def dial(self, address: Address) -> str:
        return await self.dialer.dial(address)

    def forget(self, name: str) -> None:
        self.dialer.forget(name)

    async def subscribe(self, topic: str) -> None:
        await self.pubsub.subscribe(topic)

    async def _judge(self, peer: str, topic: str, data: bytes) -> Verdict:
        """The application's verdict; None from it (a failure of ours) blames nobody."""
        valid = await self.state.bridge.ask(self.state.judge, peer, topic, data)
        if valid is None:
            return Verdict.IGNORE
        return Verdict.ACCEPT if valid else Verdict.REJECT


class _Notifee(INotifee):
    def __init__(self, owner: Host) -> None:
        self._owner = owner

    async def connected(self, network: Any, conn: INetConn) -> None:
        self._owner.on_connected(conn)

    async def disconnected(self, network: Any, conn: INetConn) -> None:
        self._owner.on_disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None:
        """Nothing: streams are counted where they are handled."""

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """Nothing: streams are counted where they are handled."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """Nothing: the port is read once all listeners are up."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """Nothing: listeners close only when the host stops."""
