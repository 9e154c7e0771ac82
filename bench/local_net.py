"""Real nodes of this machine, for benchmarks: founded, started, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.errors import BlyanError, UnreachableError
from node.client import Client
from node.config import Config
from node.founding import Founded, found_home, founding_genesis, set_bootstrap, write_genesis
from node.home import Home
from wallet.keys import KeyPair

FIRST_PORT, LAST_PORT, P2P_OFFSET = 28645, 29545, 1000
NODE_PROGRAM = "node.cli.node"  # or a module that does the same and more
START_S, END_S = 120.0, 10.0  # on a machine that does much else
FUNDS_GRAINS = 1000 * 10**8


@dataclass(slots=True)
class LocalNet:
    """Nodes, and by the same index their processes and a client of each."""

    nodes: Sequence[Founded]
    processes: list[subprocess.Popen[bytes]]
    clients: list[Client]

    def kill(self, index: int) -> None:
        os.kill(self.processes[index].pid, signal.SIGKILL)
        self.processes[index].wait()

    def start(self, index: int) -> None:
        self.processes[index] = start(self.nodes[index])

    def cpu_s(self, index: int) -> float:
        """Processor time of a node's process so far."""
        return processor_s(self.processes[index].pid)

    def check(self) -> None:
        """Raise if a process has ended, with the last that it said."""
        for node, process in zip(self.nodes, self.processes, strict=True):
            if process.poll() is not None:
                said = (node.home.logs / "out.txt").read_text()[-2000:]
                raise BlyanError(f"{node.home.path.name} ended with {process.returncode}: {said}")


def processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def running(nodes: Sequence[Founded], program: str = NODE_PROGRAM) -> AsyncIterator[LocalNet]:
    """The nodes' processes, with blocks being made; ended on leaving."""
    net = LocalNet(nodes, [], [Client(n.config.api_url) for n in nodes])
    try:
        for node in nodes:
            net.processes.append(start(node, program))
        await ready(net.clients)
        net.check()
        yield net
    finally:
        for client in net.clients:
            await client.close()
        end(net.processes)


def payer(number: int) -> KeyPair:
    """An account of a benchmark. Validators' own accounts send duties, in between."""
    return KeyPair.from_seed(hashlib.sha256(b"bench %d" % number).digest())


def found(
    directory: Path, count: int, payers: int = 1, document: dict[str, Any] | None = None
) -> list[Founded]:
    """Homes of validators of one network, in which so many `payer`s have money. `document`: its
    genesis without founders, if it is not the local network's."""
    base = _free_ports(count)
    nodes = [
        found_home(
            Home(directory / f"node-{i}"),
            Config(
                api_port=base + i,
                p2p_port=base + P2P_OFFSET + i,
                link_port=0,
                log_level="warning",
            ),
        )
        for i in range(count)
    ]
    genesis = json.loads(founding_genesis(nodes, document=document))
    genesis["accounts"] += [
        {"account": payer(i).public.hex(), "grains": FUNDS_GRAINS} for i in range(payers)
    ]
    for node in nodes:
        write_genesis(node.home, json.dumps(genesis))
        set_bootstrap(node, [n.address for n in nodes if n is not node])
    return nodes


def _free_ports(count: int) -> int:
    """The first of so many ports that nobody uses, nor those `P2P_OFFSET` above: two benchmarks
    on one machine must not talk to each other's nodes. Where it looks first is left to chance,
    since two that start together both find the same ones free: their nodes do not listen yet."""
    bases = range(FIRST_PORT, LAST_PORT, 2 * count)
    for base in random.sample(bases, len(bases)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + count):
                for one in (port, port + P2P_OFFSET):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", one))
            return base
    raise BlyanError(f"no {count} free ports between {FIRST_PORT} and {LAST_PORT}")


def start(node: Founded, program: str = NODE_PROGRAM) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", program, "start", "--home", str(node.home.path)]
    # An installed node has its bytecode; without it each start would compile 200 modules.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (node.home.logs / "out.txt").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=env)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop, then wait; who does not stop is killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def height(client: Client) -> int:
    return int((await client.status())["height"])


async def ready(clients: Sequence[Client]) -> None:
    async with asyncio.timeout(START_S):
        for client in clients:
            while True:
                with contextlib.suppress(UnreachableError):  # not up yet
                    if await height(client) >= 2:
                        break
                await asyncio.sleep(0.2)


async def answers(client: Client) -> None:
    """Until a node that was started answers."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                await height(client)
            except UnreachableError:
                await asyncio.sleep(0.05)
                continue
            return
