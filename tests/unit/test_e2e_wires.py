"""The wires of the end-to-end runner, which really part nodes, and the boxes that nobody leaves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e.boxed import set_offset
from tests.e2e.fleet import ROOT
from tests.e2e.wires import LOOPBACK, Fault, Wires

SOON_S = 120.0  # generous: a busy machine

# --- wires ------------------------------------------------------------------------------------


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Wires, list[Callable[[], Awaitable[Any]]]]]:
    """Three nodes: 0 answers every line with itself, and is dialled by 1 and by 2."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    wires = Wires([(port,), (), ()])
    await wires.open()
    opened = []

    def dial(node: int) -> Callable[[], Awaitable[Any]]:
        async def connect() -> Any:
            opened.append(await asyncio.open_connection(LOOPBACK, wires.ways[node][port]))
            return opened[-1]

        return connect

    try:
        async with asyncio.timeout(SOON_S):
            yield wires, [dial(1), dial(2)]
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await wires.close()
        server.close()


async def says(connection: Any, line: bytes) -> bytes:
    """What comes back; nothing if the connection is broken."""
    reader, writer = connection
    try:
        writer.write(line)
        return bytes(await reader.readline())
    except ConnectionError:
        return b""


def test_a_wire_carries_both_ways_and_ends_when_its_ends_do():
    async def scenario():
        async with wired() as (wires, (one, _)):
            reader, writer = await one()
            assert await says((reader, writer), b"hello\n") == b"hello\n"
            assert wires.carried() == {
                frozenset((0, 1)): 12,
                frozenset((0, 2)): 0,
                frozenset((1, 2)): 0,
            }
            writer.write_eof()
            assert await reader.read() == b""

    asyncio.run(scenario())


def test_a_reset_breaks_what_is_there_and_lets_nothing_through_until_it_is_over():
    async def scenario():
        async with wired() as (wires, (one, other)):
            mine, others = await one(), await other()
            assert await says(mine, b"a\n") == b"a\n"
            assert await says(others, b"b\n") == b"b\n"
            with wires.suffering(Fault(reset=True), [[1], [0]]):
                assert await says(mine, b"c\n") == b""
                assert await says(await one(), b"d\n") == b""
                assert await says(others, b"e\n") == b"e\n"
            assert await says(await one(), b"f\n") == b"f\n"

    asyncio.run(scenario())


def test_a_stall_holds_everything_back_and_loses_nothing():
    async def scenario():
        async with wired() as (wires, (one, other)):
            mine, others = await one(), await other()
            assert await says(mine, b"a\n") == b"a\n"
            before = wires.carried()[frozenset((0, 1))]
            with wires.suffering(Fault(stall=True), [[1], [0, 2]]):
                answers = [asyncio.create_task(says(mine, b"b\n"))]
                answers.append(asyncio.create_task(says(await one(), b"c\n")))
                for _ in range(50):  # it has every occasion
                    assert await says(others, b"x\n") == b"x\n"
                assert not any(a.done() for a in answers)
                assert wires.carried()[frozenset((0, 1))] == before
            assert await asyncio.gather(*answers) == [b"b\n", b"c\n"]

    asyncio.run(scenario())


def test_a_slow_wire_takes_its_time_and_keeps_the_order():
    async def scenario():
        async with wired() as (wires, (one, _)):
            mine = await one()
            with wires.suffering(Fault(delay_s=0.1, bytes_per_s=10_000), [[0], [1], [2]]):
                began = time.monotonic()
                lines = [b"%d" % i + b"." * 98 + b"\n" for i in range(10)]  # a kilobyte: 0.1 s
                mine[1].write(b"".join(lines))
                assert [await mine[0].readline() for _ in lines] == lines
                assert time.monotonic() - began >= 0.3  # delay twice, and a line's time
            assert await says(mine, b"a\n") == b"a\n"

    asyncio.run(scenario())


def test_faults_add_up_and_end_one_by_one():
    async def scenario():
        async with wired() as (wires, (one, _)):
            with wires.suffering(Fault(reset=True), [[0], [1, 2]]):
                with wires.suffering(Fault(stall=True, bytes_per_s=10), [[1], [0, 2]]):
                    wire = wires.between(0, 1)
                    assert (wire.is_reset, wire.is_stalled, wire.takes_s(20)) == (True, True, 2.0)
                assert wires.between(0, 1).faults == [Fault(reset=True)]
                assert await says(await one(), b"a\n") == b""
            assert await says(await one(), b"b\n") == b"b\n"

    asyncio.run(scenario())


def test_a_node_that_does_not_run_cannot_be_reached():
    async def scenario():
        nobody = Wires([(1,), ()])  # nobody listens on port 1
        await nobody.open()
        async with asyncio.timeout(SOON_S):
            connection = await asyncio.open_connection(LOOPBACK, nobody.ways[1][1])
            assert await says(connection, b"a\n") == b""
        connection[1].transport.abort()
        await nobody.close()

    asyncio.run(scenario())


# --- boxes ------------------------------------------------------------------------------------

IN_THE_BOX = """
import json, sys, time, socket
from pathlib import Path
from tests.e2e.boxed import divert, set_offset, shift_clock
right = time.time()
shift_clock(Path(sys.argv[1]))
first = time.time() - right
set_offset(Path(sys.argv[1]), -3600.0)
from node.clock import Clock
second = Clock().now_ms() / 1000 - right
divert({7: int(sys.argv[2])})
diverted = socket.create_connection(("127.0.0.1", 7)).getpeername()[1]
refused = socket.socket().connect_ex(("127.0.0.1", int(sys.argv[2])))
print(json.dumps([first, second, diverted, refused]))
"""


def test_a_box_has_its_own_clock_and_its_own_ways_out(tmp_path: Path):
    clock = tmp_path / "clock"
    set_offset(clock, 7200.0)
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IN_THE_BOX, str(clock), str(port)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, second, diverted, refused = json.loads(done.stdout)
    assert 7199 < first < 7200 + SOON_S  # a clock is read in whole milliseconds
    assert -3601 < second < -3600 + SOON_S
    assert (diverted, refused) == (port, errno.ECONNREFUSED)
