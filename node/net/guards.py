"""py-libp2p with its crashes contained. Imported in libp2p's own thread only.

An exception in any task of py-libp2p 0.8 ends the whole host: 17 bytes of invalid protobuf on
`/meshsub/1.1.0` are enough. Here every such task is guarded: an `Exception` is logged and
counted and the stream reset; `trio.Cancelled` is a `BaseException` and passes. Two more are
mended: an inbound connection held its slot until the host stopped, also after it was closed;
and scheduling a task searched the tree of all tasks for its parent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError as Libp2pStreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader

from node.net import limits, quick, streams
from node.net.bridge import Metrics

log = logging.getLogger("blyan.net")

# Peers that come and go, or speak other protocols, are ordinary to us and errors to these.
_CHATTY = (
    "libp2p.network.swarm",
    "libp2p.stream_muxer.yamux",
    "libp2p.host.basic_host",
    "libp2p.pubsub",
    "libp2p.transport",
    "libp2p.security",
    "libp2p.protocol_muxer",
)

Blame = Callable[[str, str, float], None]  # peer, reason, points


def quiet_libp2p() -> None:
    logging.getLogger("libp2p").setLevel(logging.WARNING)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class GuardedTasks:
    """A service's task scheduler in which a failing task ends alone."""

    def __init__(self, tasks: Any, metrics: Metrics) -> None:
        self._tasks, self._metrics = tasks, metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)

    def run_task(self, fn: Callable[..., Awaitable[object]], *args: Any, **_: Any) -> None:
        nursery = self._tasks._task_nursery
        if nursery is not None and self._tasks.is_running:
            nursery.start_soon(self._run, fn, args)

    async def _run(self, fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await fn(*args)
        except Exception as error:
            self._metrics.add("contained_errors")
            log.warning("contained an error in libp2p's %s: %r", _name(fn), error)
            log.debug("the error contained", exc_info=error)


def _name(fn: Any) -> str:
    return str(getattr(fn, "__qualname__", fn))


class _GuardedService:
    """Mixin for libp2p services: `self.manager` schedules guarded tasks."""

    metrics: Metrics

    @property
    def manager(self) -> Any:
        guarded = self.__dict__.get("_guarded_tasks")
        if guarded is None or guarded._tasks is not self._manager:  # type: ignore[attr-defined]
            guarded = GuardedTasks(self._manager, self.metrics)  # type: ignore[attr-defined]
            self.__dict__["_guarded_tasks"] = guarded
        return guarded


class NoAutoConnector(AutoConnector):
    """libp2p's own dials whatever address anyone has claimed, banned peers included."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Nothing: `Dialer` decides whom we connect to."""

    async def maybe_connect(self) -> None:
        """Nothing: `Dialer` decides whom we connect to."""


class GuardedSwarm(_GuardedService, Swarm):
    def __init__(self, *args: Any, metrics: Metrics, **kwargs: Any) -> None:
        self.metrics = metrics
        super().__init__(*args, **kwargs)
        self.auto_connector = NoAutoConnector(self)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Opening a stream would dial, at addresses that anyone may have claimed."""
        connections = [c for c in self.get_connections(peer_id) if not c.is_closed]
        if not connections:
            raise SwarmException(f"not connected to {peer_id}")
        return connections

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Any) -> IMuxedConn:
        """Returns only when the connection has closed, by an exception.

        The caller holds one of the inbound slots and, after this returns, keeps it until the
        host stops; an exception makes it let go. Without this, 64 connections made and closed
        would leave a host that accepts no more.
        """
        connection = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        closed: trio.Event = connection.event_closed  # type: ignore[attr-defined]
        await closed.wait()
        raise SwarmException("the connection has closed")


class GuardedHost(BasicHost):
    def __init__(self, network: Swarm, metrics: Metrics, blame: Blame) -> None:
        self.metrics, self.blame = metrics, blame
        self._open_streams: Counter[ID] = Counter()
        super().__init__(network, disable_identify_address_discovery=True)

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        peer = net_stream.muxed_conn.peer_id
        half_closed = len(getattr(net_stream.muxed_conn, "streams", ()))
        if (
            self._open_streams[peer] >= limits.MAX_STREAMS_PER_PEER
            or half_closed >= 4 * limits.MAX_STREAMS_PER_PEER
        ):
            self.metrics.add("streams_refused")
            self.blame(str(peer), "too many streams", limits.POINTS_FLOOD)
            await streams.reset(net_stream)
            return
        self._open_streams[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
            await net_stream.close()  # libp2p's own handlers leave their half open
        except streams.StreamError as error:
            self.metrics.add("stream_violations")
            points = (
                limits.POINTS_TOO_LARGE
                if isinstance(error, streams.TooLargeError)
                else limits.POINTS_FLOOD
            )
            self.blame(str(peer), str(error), points)
            await streams.reset(net_stream)
        except Libp2pStreamError as error:  # the peer closed it or went away
            log.debug("stream of %s ended: %r", peer, error)
            await streams.reset(net_stream)
        except trio.TooSlowError:
            self.metrics.add("stream_timeouts")
            await streams.reset(net_stream)
        except Exception as error:
            self.metrics.add("contained_errors")
            log.warning("stream of %s ended by an error: %r", peer, error)
            log.debug("the error contained", exc_info=error)
            await streams.reset(net_stream)
        finally:
            self._open_streams[peer] -= 1
            if self._open_streams[peer] <= 0:
                del self._open_streams[peer]


def build_host(seed: bytes, metrics: Metrics, blame: Blame) -> GuardedHost:
    """A host with noise and yamux over TCP only, under the Ed25519 key of `seed`.

    libp2p's own `new_host` would also accept plaintext; its resource manager is left out, since
    a circuit breaker in it can refuse everyone because of one.
    """
    quick.install()
    keys = create_new_key_pair(seed)
    peer_id = ID.from_pubkey(keys.public_key)
    noise = NoiseTransport(keys, noise_privkey=create_x25519_key_pair().private_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, keys)
    swarm = GuardedSwarm(
        peer_id,
        peerstore,
        TransportUpgrader(
            secure_transports_by_protocol={TProtocol(NOISE): noise},
            muxer_transports_by_protocol={TProtocol(YAMUX): quick.QuickYamux},
        ),
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),  # redialling is ours
        connection_config=ConnectionConfig(
            max_connections=limits.MAX_CONNECTIONS + limits.MAX_PINNED,
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.MAX_CONNECTIONS + limits.MAX_PINNED,
            max_connections_per_peer=2,
            dial_timeout=limits.DIAL_TIMEOUT_S,
            inbound_upgrade_timeout=limits.DIAL_TIMEOUT_S,
            outbound_upgrade_timeout=limits.DIAL_TIMEOUT_S,
            outbound_stream_protocol_negotiation_timeout=limits.STREAM_TIMEOUT_S,
            inbound_stream_protocol_negotiation_timeout=limits.STREAM_TIMEOUT_S,
        ),
        metrics=metrics,
    )
    return GuardedHost(swarm, metrics, blame)
