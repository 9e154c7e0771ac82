"""Validators as processes of this machine, to be killed, stopped, parted and started again.

Every node has a home, a box (`tests.e2e.boxed`) and ports of its own. A process that ends without
having been told to is noted at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from chain.errors import UnreachableError
from node.client import Client
from node.config import Config
from node.founding import (
    Founded,
    found_home,
    founding_genesis,
    set_bootstrap,
    template,
    write_genesis,
)
from node.home import Home
from tests.e2e.boxed import set_offset, write_box
from tests.e2e.manifest import Manifest
from tests.e2e.wires import LOOPBACK, Wires
from tests.kit.programs import environment
from tests.kit.waiting import paused
from wallet.keys import KeyPair

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
FIRST_PORT, LAST_PORT = 20_000, 28_000  # below those that the system gives to who dials
ASK_S = 3.0  # the longest answer of a node that runs; one that is stopped gives none
START_S, STOP_S = 90.0, 20.0
LOOK_S = 0.2
FUNDS_GRAINS = 1000 * 10**8


class Failure(AssertionError):
    """Something that must not happen in any run."""


@dataclass(eq=False, slots=True)
class Machine:
    """One validator: its home, and its process if it runs."""

    index: int
    founded: Founded
    box: Path
    clock: Path
    process: asyncio.subprocess.Process | None = None
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)  # one at a time ends or stops it
    is_told_to_end: bool = False
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.founded.config.api_url)

    @property
    def name(self) -> str:
        return f"node-{self.index}"

    @property
    def output(self) -> Path:
        return self.founded.home.logs / "out.txt"

    def log(self) -> str:
        """What it has printed since it was made; the log goes there, too."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    async def ask(self, answer: Awaitable[T], within_s: float = ASK_S) -> T | None:
        """The answer of its API to a question of `client`; None if there is none in time."""
        with suppress(UnreachableError, TimeoutError):
            async with asyncio.timeout(within_s):
                return await answer
        return None

    async def height(self) -> int:
        """-1 when it does not answer."""
        status = await self.ask(self.client.status())
        return -1 if status is None else int(status["height"])

    async def start(self) -> None:
        assert self.process is None
        self.is_told_to_end = False
        command = [sys.executable, "-m", "tests.e2e.boxed", str(self.box)]
        with self.output.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                *("start", "--home", str(self.founded.home.path)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment(),
                start_new_session=True,
            )

    async def end(self, number: signal.Signals) -> int:
        """Send it a signal that ends it; its exit code."""
        assert self.process is not None
        self.is_told_to_end = True
        self.signal(number)
        try:
            async with asyncio.timeout(STOP_S):
                code = await self.process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.process.wait()
            raise Failure(f"{self.name} did not end within {STOP_S:g} s of {number.name}") from None
        self.process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Fleet:
    """All nodes of one run. `wired`: their connections go over wires that can be cut. `guests`:
    nodes that validate nothing; whoever wants one to enter starts it with `admit`."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        payers: list[KeyPair],
        seed: str,
        *,
        training: Mapping[str, Any] | None = None,
        wired: bool = True,
        guests: int = 0,
    ) -> None:
        self.directory, self._wired = directory, wired
        count = manifest.validators + guests
        ports = free_ports(3 * count, random.Random(seed))
        found = [
            found_home(
                Home(directory / f"node-{i}"),
                Config(api_port=next(ports), p2p_port=next(ports), link_port=next(ports)),
            )
            for i in range(count)
        ]
        founders = found[: manifest.validators]
        document = template()
        document["params"] |= manifest.genesis
        document["training"] |= training or {}
        text = json.loads(founding_genesis(founders, document=document))
        text["accounts"] += [{"account": p.public.hex(), "grains": FUNDS_GRAINS} for p in payers]
        self.wires = Wires([(f.config.p2p_port, f.config.link_port) for f in found])
        made: list[Machine] = []
        for i, node in enumerate(found):
            self.genesis = write_genesis(node.home, json.dumps(text))
            whole = set_bootstrap(node, [other.address for other in founders if other is not node])
            clock = directory / f"clock-{i}"
            set_offset(clock, manifest.clock.get(i, 0.0))
            made.append(Machine(i, whole, directory / f"box-{i}.json", clock))
        self.machines, self.guests = made[: len(founders)], made[len(founders) :]

    async def start(self) -> None:
        if self._wired:
            await self.wires.open()
        for machine in self.machines:
            await self.admit(machine)
        await asyncio.gather(*(self.wait_height(m, 2) for m in self.machines))
        await asyncio.gather(*(self.wait_connected(m) for m in self.machines))
        for pair, size in self.wires.carried().items():
            if self._wired and not size and max(pair) < len(self.machines):
                raise Failure(f"nodes {sorted(pair)} are linked, but not over their wire")

    async def admit(self, machine: Machine) -> None:
        """Start a node, with ways to all others."""
        write_box(machine.box, machine.clock, self._ways(machine))
        await machine.start()

    @property
    def everyone(self) -> list[Machine]:
        """The validators, then the guests."""
        return [*self.machines, *self.guests]

    def _ways(self, machine: Machine) -> Mapping[int, int]:
        """Where a connection to a port of another node leads."""
        if self._wired:
            return self.wires.ways[machine.index]
        configs = [m.founded.config for m in self.everyone if m is not machine]
        return {port: port for c in configs for port in (c.p2p_port, c.link_port)}

    async def wait_height(self, machine: Machine, height: int) -> int:
        """Until it answers and is there; the height it has then."""
        what = f"{machine.name} has not reached height {height} within {START_S:g} s"
        async with deadline(START_S, what):
            while (found := await machine.height()) < height:
                self.check_running()
                await paused(LOOK_S)
        return found

    async def wait_connected(self, machine: Machine) -> None:
        """Until it has a connection and a link with every other node."""
        others = {m.founded.node_id for m in self.machines if m is not machine}
        async with deadline(START_S, f"{machine.name} has not linked with all others"):
            while True:
                found = await machine.ask(machine.client.peers()) or {"peers": []}
                linked = {p["peer_id"] for p in found["peers"] if p["connected"] and p["link"]}
                if others <= linked:
                    return
                await paused(LOOK_S)

    async def highest(self, machines: Collection[Machine]) -> int:
        """The height that these have reached. Each of them answers, sooner or later."""
        return max(await asyncio.gather(*(self.wait_height(m, 0) for m in machines)))

    def check_running(self) -> None:
        for m in self.everyone:
            ended = m.process is not None and m.process.returncode is not None
            if ended and not m.is_told_to_end and m.process is not None:
                raise Failure(f"{m.name} ended by itself with exit code {m.process.returncode}")

    async def watch(self) -> None:
        """Until a process ends that nobody has ended: that is a Failure."""
        while True:
            self.check_running()
            await paused(LOOK_S)

    async def stop(self) -> dict[str, int]:
        """Ask all to end; their exit codes."""

        async def one(machine: Machine) -> tuple[str, int]:
            return machine.name, await machine.end(signal.SIGTERM)

        running = [m for m in self.everyone if m.process is not None]
        return dict(await asyncio.gather(*(one(m) for m in running)))

    async def close(self) -> None:
        """Leave no process, whatever happened."""
        for machine in self.everyone:
            if machine.process is not None and machine.process.returncode is None:
                machine.signal(signal.SIGKILL)
                await machine.process.wait()
            await machine.client.close()
        await self.wires.close()


@contextlib.asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Failure, saying what has not happened, after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Failure(what) from None


def free_ports(count: int, chance: random.Random) -> Iterator[int]:
    """Ports in a row on which nobody listens, and that no connection is given by the system, even
    while their node is down."""
    for _ in range(200):
        first = chance.randrange(FIRST_PORT, LAST_PORT - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return iter(range(first, first + count))
    raise Failure(f"no {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
