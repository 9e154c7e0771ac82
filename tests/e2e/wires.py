"""The wires between nodes on one machine: each pair of nodes has its own, to be cut or slowed.

A node reaches each other one through listeners that are its own (`tests.e2e.boxed` sees to it that
it dials nothing else), so that a pair can be parted while both talk with everybody else. Bytes are
carried as they are; the wires know nothing of TLS, libp2p or links.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.kit.waiting import paused

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
MAX_CHUNKS = 64  # under way on one connection in one direction: who sends more must wait
_LINGER = struct.pack("ii", 1, 0)  # a close sends RST and drops what is unsent


@dataclass(frozen=True, slots=True)
class Fault:
    """What a wire suffers. `reset`: connections break and none is made. `stall`: nothing moves, and
    nobody is told: what was sent arrives when it is over, as TCP would have it."""

    reset: bool = False
    stall: bool = False
    delay_s: float = 0.0  # each way
    bytes_per_s: float = 0.0  # of each connection, each way; 0: no limit


@dataclass(eq=False, slots=True)
class Wire:
    """Between two nodes, both ways. Several faults at once add up to the worst of each."""

    faults: list[Fault] = field(default_factory=list)
    carried_bytes: int = 0
    _open: set[_Connection] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_reset(self) -> bool:
        return any(f.reset for f in self.faults)

    @property
    def is_stalled(self) -> bool:
        return any(f.stall for f in self.faults)

    @property
    def delay_s(self) -> float:
        return max((f.delay_s for f in self.faults), default=0.0)

    def takes_s(self, size: int) -> float:
        """How long a connection is busy with so many bytes."""
        limits = [f.bytes_per_s for f in self.faults if f.bytes_per_s]
        return size / min(limits) if limits else 0.0

    def suffer(self, fault: Fault) -> None:
        self.faults.append(fault)
        self._note()
        if fault.reset:
            for connection in list(self._open):
                connection.abort()

    def recover(self, fault: Fault) -> None:
        self.faults.remove(fault)
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_it_moves(self) -> None:
        while self.is_stalled:
            await self._changed.wait()

    async def carry(
        self, near: asyncio.StreamReader, back: asyncio.StreamWriter, port: int
    ) -> None:
        """A connection that was just accepted, to the node that listens on `port`."""
        connection = _Connection(self, back)
        self._open.add(connection)
        try:
            await self.until_it_moves()
            if not self.is_reset:
                await connection.run(near, port)
        finally:
            connection.abort()
            self._open.discard(connection)


class _Connection:
    def __init__(self, wire: Wire, back: asyncio.StreamWriter) -> None:
        self._wire, self._writers = wire, [back]
        self._is_over = False

    async def run(self, near: asyncio.StreamReader, port: int) -> None:
        try:
            far, forth = await asyncio.open_connection(LOOPBACK, port)
        except OSError:  # the node is not running: who dialled sees a connection that breaks
            return
        self._writers.append(forth)
        if self._is_over:
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await _all_or_none(self._pump(near, forth), self._pump(far, self._writers[0]))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its sender ends it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS)
        await _all_or_none(self._take(reader, queue), self._give(queue, writer))

    async def _take(
        self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        wire, clock, free_at = self._wire, asyncio.get_running_loop().time, 0.0
        while True:
            data = await reader.read(CHUNK_BYTES)
            free_at = max(free_at, clock()) + wire.takes_s(len(data))
            await queue.put((free_at + wire.delay_s, data))
            if not data:
                return

    async def _give(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await queue.get()
            if (left := due - clock()) > 0:
                await paused(left)
            await self._wire.until_it_moves()
            if not data:
                writer.write_eof()
                return
            self._wire.carried_bytes += len(data)
            writer.write(data)
            await writer.drain()

    def abort(self) -> None:
        self._is_over = True
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            writer.transport.abort()


async def _all_or_none(*works: Coroutine[Any, Any, None]) -> None:
    """Both to their ends; if one fails, the other is not waited for."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Wires:
    """All wires of a network whose nodes listen on these ports of loopback."""

    def __init__(self, ports: Sequence[Collection[int]]) -> None:
        self._ports = ports
        count = range(len(ports))
        self._wires = {frozenset((a, b)): Wire() for a in count for b in count if a < b}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.ways: list[dict[int, int]] = [{} for _ in ports]  # by node: port -> where to dial

    def between(self, one: int, other: int) -> Wire:
        return self._wires[frozenset((one, other))]

    async def open(self) -> None:
        for source in range(len(self._ports)):
            for target, ports in enumerate(self._ports):
                for port in ports if source != target else ():
                    serve = self._serve(self.between(source, target), port)
                    server = await asyncio.start_server(serve, LOOPBACK, 0)
                    self._servers.append(server)
                    self.ways[source][port] = server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(
        self, wire: Wire, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(wire.carry(reader, writer, port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accepted

    @contextmanager
    def suffering(self, fault: Fault, groups: Sequence[Collection[int]]) -> Iterator[None]:
        """A fault of every wire that leads from one of the groups to another."""
        group_of = {node: number for number, group in enumerate(groups) for node in group}
        parted = [
            wire
            for pair, wire in self._wires.items()
            if len({group_of[node] for node in pair if node in group_of}) == 2
        ]
        for wire in parted:
            wire.suffer(fault)
        try:
            yield
        finally:
            for wire in parted:
                wire.recover(fault)

    def carried(self) -> Mapping[frozenset[int], int]:
        """Bytes that each wire has carried so far."""
        return {pair: wire.carried_bytes for pair, wire in self._wires.items()}
