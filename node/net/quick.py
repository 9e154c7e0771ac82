"""py-libp2p's hot path, relieved. Imported in libp2p's own thread only.

Its locks yield to the scheduler at every uncontended acquisition, it asks the socket for two
bytes at a time, grants window at every read and signs and verifies the same peer record with
every gossip message: a 250-byte message cost eight passes of the event loop. The replacements
below do the same work; `install` puts them in place of the originals.
"""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network.connection import swarm_connection
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)
from libp2p.transport.tcp import tcp

_READ_BYTES = 64 * 1024
_FRAME_BYTES = MAX_MESSAGE_SIZE - HEADER_SIZE
_WINDOW_TIMEOUT_S = 5.0  # as the original
_GRANT_BYTES = 64 * 1024  # window is granted in steps of a quarter of yamux's 256 KiB


# The connections of one trio run, so that they can be closed however it ended: libp2p leaves
# some open when it is cancelled while it closes them in order.
OPEN: trio.lowlevel.RunVar[set[QuickTCPStream] | None] = trio.lowlevel.RunVar("open_connections")


class QuickLock:
    """A lock that does not yield when it is free."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def is_held(self) -> bool:
        return self._held

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held = False
        self._waiting.unpark()

    def write_lock(self) -> QuickLock:
        """As the write side of libp2p's ReadWriteLock, whose read side yamux never takes."""
        return self


class QuickTCPStream(TrioTCPStream):
    """Reads from the socket what there is, and serves small reads from that."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._open = OPEN.get(None)
        if self._open is not None:
            self._open.add(self)
        self.read_lock = QuickLock()  # type: ignore[assignment]
        self.write_lock = QuickLock()  # type: ignore[assignment]
        self._received = bytearray()
        self.unsent = b""  # the rest of what `write_now` wrote: goes out before anything else

    async def close(self) -> None:
        if self._open is not None:
            self._open.discard(self)
        await super().close()

    async def write(self, data: bytes) -> None:
        if self.unsent:
            data, self.unsent = self.unsent + data, b""
        await super().write(data)

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if not self._received:
            data = await super().read(_READ_BYTES)
            if n is None or len(data) <= n:
                return data
            self._received += data
        if n is None:
            n = len(self._received)
        part = bytes(self._received[:n])
        del self._received[:n]
        return part


def close_dead(socket: trio.socket.SocketType) -> None:
    """Close a socket of a trio run that has ended."""
    descriptor = socket.detach()
    if descriptor >= 0:
        os.close(descriptor)


class QuickYamuxStream(YamuxStream):
    _send_window: int
    _granted: trio.Event | None = None

    def __init__(self, stream_id: int, conn: Yamux, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)
        self.rw_lock = QuickLock()  # type: ignore[assignment]
        self.window_lock = QuickLock()  # type: ignore[assignment]
        self.close_lock = QuickLock()  # type: ignore[assignment]
        self._ungranted = 0

    async def write(self, data: bytes) -> None:
        """As the original; one writer at a time, so that two messages never mix."""
        async with self.rw_lock.write_lock():
            sent = 0
            while sent < len(data):
                if self.send_closed or self.closed:
                    raise MuxedStreamError("the stream is closed for sending")
                size = min(self.send_window, _FRAME_BYTES, len(data) - sent)
                if size <= 0:
                    await self._wait_for_window()
                    continue
                self.send_window -= size
                header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, size)
                await self.conn._write_frame(header + data[sent : sent + size])
                sent += size

    async def _wait_for_window(self) -> None:
        self._granted = trio.Event()
        with trio.move_on_after(_WINDOW_TIMEOUT_S):
            await self._granted.wait()
            return
        raise MuxedStreamError("the peer granted no window in time")

    @property
    def send_window(self) -> int:
        return self._send_window

    @send_window.setter
    def send_window(self, size: int) -> None:
        """Written by yamux when the peer grants window: the writer waits for that."""
        self._send_window = size
        if self._granted is not None and size > 0:
            self._granted.set()

    async def read(self, n: int | None = -1) -> bytes:
        """As the original, without its locks; what arrived before a reset is still read."""
        conn, name = self.conn, self.stream_id
        while not (buffer := conn.stream_buffers.get(name)):
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset")
            event = conn.stream_events.get(name)
            if event is None or self.recv_closed or conn.event_shutting_down.is_set():
                raise MuxedStreamEOF("the stream ended")
            await event.wait()
            if conn.stream_events.get(name) is event:
                conn.stream_events[name] = trio.Event()
        size = len(buffer) if n is None or n < 0 else min(n, len(buffer))
        data = bytes(buffer[:size])
        del buffer[:size]
        if self.closed and not buffer:
            await conn._finalize_stream(self, fully_closed=True)
        await self._auto_tune_and_send_window_update(bytes_read=size)
        return data

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        self._ungranted += bytes_read
        if self._ungranted >= _GRANT_BYTES:
            granted, self._ungranted = self._ungranted, 0
            self.recv_window += granted
            await self.send_window_update(granted)


class QuickYamux(Yamux):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.streams_lock = QuickLock()  # type: ignore[assignment]
        self._write_lock = QuickLock()  # type: ignore[assignment]

    async def _write_frame(self, data: bytes) -> None:
        """Shielded: a frame given up half-way, or after its nonce was used, would make every
        later one of the connection undecipherable. What blocks here is a peer that does not
        read; it ends when the peer's silence is noticed and its socket closed."""
        with trio.CancelScope(shield=True):
            async with self._write_lock:
                await self.secured_conn.write(data)

    async def _read_data_body(self, length: int) -> bytes:
        """Without the timeout: a peer that falls silent is disconnected as a whole."""
        return await read_exactly(self.secured_conn, length)


class QuickNetStream(NetStream):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state_lock = QuickLock()  # type: ignore[assignment]


def _tcp_of(conn: Any) -> QuickTCPStream:
    tcp_stream: QuickTCPStream = conn.secured_conn.conn.read_writer.read_write_closer.stream
    return tcp_stream


def write_now(net_stream: Any, data: bytes) -> bool:
    """Write a whole frame of a stream without yielding. False: nothing has happened; it must
    wait for another writer, for window or for the socket.

    Encrypting and sending happen in one go while yamux's write lock is free, so nonces keep
    their order. What the socket does not take goes out first with the next write.
    """
    stream, size = net_stream.muxed_stream, len(data)
    conn = stream.conn
    if (
        net_stream._state is not StreamState.OPEN
        or stream.send_closed
        or stream.closed
        or conn.event_shutting_down.is_set()
        or stream.rw_lock.is_held
        or conn._write_lock.is_held
        or size > min(stream.send_window, _FRAME_BYTES)
    ):
        return False
    tcp_stream = _tcp_of(conn)
    if tcp_stream.unsent:
        return False
    stream.send_window -= size
    header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream.stream_id, size)
    packet = conn.secured_conn.conn.encrypt(header + data)
    packet = len(packet).to_bytes(2) + packet
    try:
        sent = os.write(tcp_stream.stream.socket.fileno(), packet)
    except BlockingIOError:
        sent = 0
    except OSError:  # broken: whoever reads from this connection takes it down
        return True
    tcp_stream.unsent = packet[sent:]
    return True


def has_unsent(net_stream: Any) -> bool:
    return bool(_tcp_of(net_stream.muxed_stream.conn).unsent)


async def flush(net_stream: Any) -> None:
    """Send what `write_now` could not."""
    conn = net_stream.muxed_stream.conn
    with trio.CancelScope(shield=True):
        async with conn._write_lock:
            if _tcp_of(conn).unsent:
                await _tcp_of(conn).write(b"")


_make_record = env_to_send_in_RPC
_consume_record = maybe_consume_signed_record


def own_record(host: Any) -> tuple[bytes, bool]:
    """The host's signed addresses, made again only when it listens elsewhere."""
    listening = tuple(host.get_network().listeners)
    made = host.__dict__.get("_own_record")
    if made is None or made[0] != listening:
        made = host.__dict__["_own_record"] = (listening, _make_record(host)[0])
    return made[1], False


def consume_record(message: Any, host: Any, peer_id: Any) -> bool:
    """Verify a peer's signed addresses, unless they are the ones it sent before."""
    if not message.HasField("senderRecord"):
        return True
    seen = host.__dict__.setdefault("_records_seen", {})
    if seen.get(peer_id) == message.senderRecord:
        return True
    if not _consume_record(message, host, peer_id):
        return False
    if len(seen) >= 256:
        seen.clear()
    seen[peer_id] = message.senderRecord
    return True


def install() -> None:
    """Put the replacements in place, once per process; doing it again changes nothing."""
    replacements: list[tuple[Any, str, Any]] = [
        (tcp, "TrioTCPStream", QuickTCPStream),
        (yamux, "YamuxStream", QuickYamuxStream),
        (muxer_multistream, "Yamux", QuickYamux),
        (swarm_connection, "NetStream", QuickNetStream),
    ]
    for module in (pubsub, gossipsub):
        replacements += [
            (module, "env_to_send_in_RPC", own_record),
            (module, "maybe_consume_signed_record", consume_record),
        ]
    for module, name, replacement in replacements:
        setattr(module, name, replacement)
