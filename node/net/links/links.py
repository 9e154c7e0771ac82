"""All links of a node: accepting, dialling and redialling them, one for each connected peer.

libp2p says who is connected; a link exists only as long as that. Each side tells the other
where it accepts links, and whoever can dial does. If both did, the connection that the side
with the smaller peer id dialled stays, and the other is left when nothing is under way on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chain.errors import DecodeError, UnreachableError, VerifyError
from node.net import limits as net_limits
from node.net.identity import Address, PortInUseError
from node.net.kademlia import Rate
from node.net.links import address, limits
from node.net.links.certificate import Contexts, make_contexts
from node.net.links.connection import Connection
from node.net.links.info import LinkInfo
from node.net.requests import RequestHandler, Service
from node.net.state import State

log = logging.getLogger("blyan.net")
Ask = Callable[[str, str, bytes], Awaitable[bytes]]  # peer, protocol, data: over libp2p
Blame = Callable[[str, str, float], None]
Serving = Callable[[str], tuple[Service, RequestHandler] | None]
Message = Callable[[str, bytes], None]


@dataclass(eq=False, slots=True)
class _Peer:
    """A peer that libp2p is connected to."""

    name: str
    current: Connection | None = None
    connections: list[Connection] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    has_told: bool = False  # where it accepts links, if anywhere
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    bytes_in: int = 0  # on links that have ended
    bytes_out: int = 0

    def note(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Links:
    def __init__(
        self,
        state: State,
        chain_id: bytes,
        port: int,
        ask: Ask,
        blame: Blame,
        serving: Serving,
        message: Message,
    ) -> None:
        """`port`: to listen on, 0 for a free one. The host is libp2p's."""
        self._state, self._chain_id, self._ask = state, chain_id, ask
        self.metrics = state.metrics
        self.blame, self.service, self.message = blame, serving, message
        self.port = port
        self._listener: socket.socket | None = None
        self._contexts: Contexts | None = None
        self._peers: dict[str, _Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()  # inbound, half open, by host
        self._arrived = asyncio.Event()  # a peer came; replaced
        self._handshakes = Rate(limits.HANDSHAKES_PER_S, limits.HANDSHAKE_BURST)
        self._random = random.Random()  # jitter only
        self._bytes_in = self._bytes_out = 0  # on links that have ended

    # --- life -----------------------------------------------------------------------

    def start(self) -> None:
        """Listen. Raises PortInUseError."""
        listen = self._state.listen
        family = socket.AF_INET6 if listen.kind == "ip6" else socket.AF_INET
        try:
            listener = socket.create_server((listen.host, self.port), family=family)
        except OSError as error:
            raise PortInUseError(
                f"cannot listen for links on port {self.port} of {listen.host} "
                f"({error.strerror}): stop the other program, or choose another port"
            ) from None
        listener.setblocking(False)
        self._listener, self.port = listener, listener.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Close every link, in order where the peer lets us within a second."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0)  # each task has begun, and closes what it was given when cancelled
        tasks = [*self._tasks, *(p.task for p in self._peers.values() if p.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ending = [c.ended.wait() for p in self._peers.values() for c in p.connections]
        for name in list(self._peers):
            self.peer_down(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLOSE_S):
                await asyncio.gather(*ending)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """`work` makes its coroutine here, so that none is left over when a task is cancelled
        before it begins."""
        try:
            await work()
        except Exception:
            log.exception("a task of the links failed")
            self.metrics.add("contained_errors")

    # --- what others ask --------------------------------------------------------------

    def get(self, name: str) -> Connection | None:
        """A link that takes a request to this peer now."""
        peer = self._peers.get(name)
        link = peer.current if peer is not None else None
        return link if link is not None and link.can_ask else None

    def send(self, name: str, data: bytes) -> bool:
        """Send a message to this peer; False if there is no link with it now."""
        peer = self._peers.get(name)
        link = peer.current if peer is not None else None
        if link is None or not link.is_usable:
            return False
        link.send(data)
        return True

    def info(self) -> list[LinkInfo]:
        """Of every connected peer, by peer id."""
        found = []
        for name, peer in sorted(self._peers.items()):
            link = peer.current if peer.current is not None and peer.current.is_usable else None
            by = None if link is None else "us" if link.dialled else "peer"
            found.append(
                LinkInfo(
                    name,
                    link is not None,
                    by,
                    link.rtt_ms if link is not None else None,
                    peer.bytes_in + sum(c.bytes_in for c in peer.connections),
                    peer.bytes_out + sum(c.bytes_out for c in peer.connections),
                )
            )
        return found

    def counts(self) -> dict[str, int]:
        """For the metrics: links that are up, and bytes since the start."""
        live = [c for peer in self._peers.values() for c in peer.connections]
        return {
            "tls_up": sum(1 for info in self.info() if info.up),
            "tls_bytes_in": self._bytes_in + sum(c.bytes_in for c in live),
            "tls_bytes_out": self._bytes_out + sum(c.bytes_out for c in live),
        }

    async def answer(self, name: str, data: bytes) -> bytes:
        """Serves `/blyan/link/1`: the asker tells where it accepts links, and is told."""
        self._hear(name, data)
        return self._tell()

    # --- peers of libp2p ----------------------------------------------------------------

    def peer_up(self, name: str) -> None:
        if self._listener is None or name in self._peers:
            return
        peer = self._peers[name] = _Peer(name)
        peer.task = asyncio.ensure_future(self._guard(lambda: self._keep(peer)))
        self._arrived.set()
        self._arrived = asyncio.Event()

    def peer_down(self, name: str) -> None:
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        if peer.task is not None:
            peer.task.cancel()
        for connection in list(peer.connections):
            connection.close(f"{name} is no longer connected")

    def _tell(self) -> bytes:
        state = self._state
        return address.tell(state.announce or (state.listen,), self.port)

    def _hear(self, name: str, data: bytes) -> None:
        """Raises DecodeError or UnreachableError."""
        host = self._state.hosts.get(name)
        if not host:
            raise UnreachableError("no longer connected")
        heard = address.hear(data, host)
        peer = self._peers.get(name)
        if peer is None:
            return
        is_first, peer.has_told, peer.addresses = not peer.has_told, True, heard
        if is_first:  # others wait for the next attempt: a liar would have us dial all the time
            peer.note()

    async def _keep(self, peer: _Peer) -> None:
        """Have a link with this peer for as long as libp2p is connected to it."""
        await self._learn(peer)
        failures = 0
        if self._state.name > peer.name:
            await self._pause(peer, limits.YIELD_S)
        while True:
            began = time.monotonic()
            if peer.current is not None:
                await peer.current.closed.wait()
                lasted = time.monotonic() - began > limits.SILENCE_S
                failures = 0 if lasted else failures + 1
                await self._pause(peer, self._backoff_s(failures))
            elif not await self._dial_any(peer):
                failures += 1
                await self._pause(peer, self._backoff_s(failures))

    async def _learn(self, peer: _Peer) -> None:
        """Ask where the peer accepts links, until it says so or dials us."""
        failures = 0
        while not peer.addresses and peer.current is None:
            try:
                self._hear(peer.name, await self._ask(peer.name, address.PROTOCOL, self._tell()))
                break
            except DecodeError as error:
                self.blame(peer.name, f"link addresses: {error}", net_limits.POINTS_GARBAGE)
            except UnreachableError as error:
                log.debug("%s does not say where it accepts links: %s", peer.name, error)
            failures += 1
            await self._pause(peer, self._backoff_s(failures))

    async def _pause(self, peer: _Peer, seconds: float) -> None:
        """Until the time is over, or a link came or addresses changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await peer.changed.wait()

    def _backoff_s(self, failures: int) -> float:
        delay = min(limits.BACKOFF_MOST_S, limits.BACKOFF_FIRST_S * 2.0 ** min(failures, 16))
        return delay * (0.75 + 0.25 * self._random.random())

    # --- dialling -------------------------------------------------------------------

    async def _dial_any(self, peer: _Peer) -> bool:
        for place in list(peer.addresses):
            if peer.current is not None:
                return True
            self.metrics.add("tls_dials")
            try:
                connection = await self._dial(place)
            except (OSError, TimeoutError, UnicodeError) as error:  # the last: no name of a host
                log.debug("dialling the link of %s at %s failed: %r", peer.name, place, error)
                continue
            if self._is_welcome(connection, peer):
                self._install(peer, connection)
                return True
        return False

    async def _dial(self, place: Address) -> Connection:
        loop = asyncio.get_running_loop()
        kinds = {"ip4": socket.AF_INET, "dns4": socket.AF_INET}
        kinds |= {"ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
        async with asyncio.timeout(limits.CONNECT_S):
            family = kinds.get(place.kind, socket.AF_UNSPEC)
            found = await loop.getaddrinfo(
                place.host, place.port, family=family, type=socket.SOCK_STREAM
            )
            host = str(found[0][4][0])
            if _is_loopback(host) is not place.is_loopback:  # no peer sends us there
                raise OSError(f"{place} leads to {host}")
            sock = socket.socket(found[0][0], socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, found[0][4])
                _tune(sock)
            except BaseException:
                sock.close()
                raise
        connection = Connection(self, dialled=True)
        await loop.create_connection(
            lambda: connection,
            sock=sock,
            ssl=self._tls().client,
            server_hostname="",
            ssl_handshake_timeout=limits.HANDSHAKE_S,
            ssl_shutdown_timeout=limits.CLOSE_S,
        )
        return connection

    def _is_welcome(self, connection: Connection, peer: _Peer) -> bool:
        """Whether the other end is who we dialled. If not, nobody is to blame: an address is
        hearsay."""
        reason = str(connection.refusal or "")
        if not reason and connection.peer != peer.name:
            reason = f"{connection.peer} is not {peer.name}"
        if not reason and self._peers.get(peer.name) is not peer:
            reason = f"{peer.name} is no longer connected"
        if reason:
            log.info("no link with %s: %s", peer.name, reason)
            self.metrics.add("tls_refused")
            connection.close(reason)
        return not reason

    def _tls(self) -> Contexts:
        now = datetime.now(UTC)
        if self._contexts is None or now >= self._contexts.renew_at:
            self._contexts = make_contexts(self._state.seed, self._chain_id, now)
        return self._contexts

    # --- accepting ------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        """Someone knocks. What is accepted has its task at once: were it awaited, a stop could
        come between and leave it open."""
        try:
            sock, where = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # too many open files
            log.warning("cannot accept a link: %s", error)
            self._loop.remove_reader(listener)
            self._loop.call_later(limits.ACCEPT_AGAIN_S, self._listen_again, listener)
            return
        host = _host_of(where[0])
        if not self._may_knock(host):
            self.metrics.add("tls_refused")
            sock.close()
            return
        self._strangers[host] += 1
        task = asyncio.ensure_future(self._guard(lambda: self._receive(sock, host)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _listen_again(self, listener: socket.socket) -> None:
        if self._listener is listener:
            self._loop.add_reader(listener, self._accept, listener)

    def _may_knock(self, host: str) -> bool:
        """A handshake costs us a millisecond, so nobody gets many at a time or a second; and
        those who are not connected leave room for those who are."""
        total = self._strangers.total()
        if total >= limits.HALF_OPEN or self._strangers[host] >= limits.HALF_OPEN_PER_HOST:
            return False
        if total >= limits.HALF_OPEN_UNKNOWN and host not in self._hosts():
            return False
        return self._handshakes.take(host, time.monotonic())

    def _hosts(self) -> set[str]:
        """Where libp2p sees its peers."""
        return {_host_of(host) for host in list(self._state.hosts.values()) if host}

    async def _receive(self, sock: socket.socket, host: str) -> None:
        """Find out who dialled us, and take the link if it is a peer."""
        connection = Connection(self, dialled=False)
        try:
            sock.setblocking(False)
            _tune(sock)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._tls().server,
                ssl_handshake_timeout=limits.HANDSHAKE_S,
                ssl_shutdown_timeout=limits.CLOSE_S,
            )
            await self._admit(connection)
        except (OSError, TimeoutError, VerifyError) as error:
            log.info("no link with whoever dialled from %s: %s", host, error)
            self.metrics.add("tls_refused")
            connection.close(str(error))
        except asyncio.CancelledError:
            connection.close("the node stops")
            sock.close()
            raise
        finally:
            self._strangers[host] -= 1
            if not self._strangers[host]:
                del self._strangers[host]

    async def _admit(self, connection: Connection) -> None:
        """Raises VerifyError, or TimeoutError if libp2p does not know the peer."""
        if connection.refusal is not None:
            raise connection.refusal
        name = connection.peer
        if name == self._state.name:
            raise VerifyError("it is this node itself")
        if self._state.book.violations.is_banned(name, time.monotonic()):
            raise VerifyError(f"{name} is refused for what it did")
        async with asyncio.timeout(limits.ADMIT_S):
            while name not in self._peers and not connection.is_closed:
                await self._arrived.wait()
        if not connection.is_closed:
            self._install(self._peers[name], connection)

    def _install(self, peer: _Peer, connection: Connection) -> None:
        """Of two links both sides keep the same one: that of the side with the smaller id; of
        two that one side dialled, the newer."""
        if connection.is_closed:
            return
        while len(peer.connections) >= limits.LINKS_PER_PEER:
            peer.connections[0].close("a newer link took its place")
        peer.connections.append(connection)
        connection.begin()
        old = peer.current
        ours_wins = self._state.name < peer.name
        if old is None or not old.is_usable or connection.dialled is ours_wins:
            kept, left = connection, old
        elif old.dialled is ours_wins:
            kept, left = old, connection
        else:
            kept, left = connection, old
        peer.current = kept
        if left is not None:
            left.leave()
        self.metrics.add("tls_links")
        peer.note()

    def lost(self, connection: Connection) -> None:
        self._bytes_in += connection.bytes_in
        self._bytes_out += connection.bytes_out
        peer = self._peers.get(connection.peer)
        if peer is None or connection not in peer.connections:
            return
        peer.connections.remove(connection)
        peer.bytes_in += connection.bytes_in
        peer.bytes_out += connection.bytes_out
        if peer.current is connection:
            usable = (c for c in peer.connections if c.is_usable)
            peer.current = next(usable, None)
        peer.note()


def _tune(sock: socket.socket) -> None:
    """A frame goes out at once, and the kernel takes no more than it soon sends, so that a vote
    that comes later still overtakes what we have not given it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.SOCKET_UNSENT_BYTES)


def _is_loopback(host: str) -> bool:
    found = ipaddress.ip_address(host.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _host_of(host: str) -> str:
    """What counts as one host: an IPv4 address, or the /64 that a household gets of IPv6."""
    found = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return host
