"""What the network port costs: CPU and latency of a consensus message and of a gossip message.

Four processes on loopback, each connected to the three others. `send`: 50 times a second every
node sends one message to each of its peers, at the same moment in all of them, as votes follow a
proposal; `scattered`: the same with the moments spread, so that nothing is ever batched. CPU is
what all four processes used (user and system), less what they use when idle, divided by the
deliveries: it is what sender and receiver need together.

Messages go over links, as between validators; with `--streams` over libp2p, as where none can be
made.

    python -m bench.network [--json] [--nodes 4] [--seconds 4] [--streams]

Exit code 1 if a target is missed. Floors, from the same run: for a message, the same bytes at
the same pace over bare TCP between the same processes; for gossip, one signature and its
verification.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOTE_BYTES = 250
GOSSIP_BYTES = 1024
SEND_RATE = 50  # messages a second, from each node to each of its peers
PUBLISH_RATE = 10  # a second and node
TARGET_SEND_MS = 0.5
TARGET_PUBLISH_MS = 3.0  # py-libp2p as it comes takes 5
TARGET_P95_MS = 50.0


# --- one node (child process) --------------------------------------------------------


class Child:
    """One node: the network port, and bare TCP connections to the same peers."""

    def __init__(self, index: int, links: bool) -> None:
        from node.net.port import Network

        self.index, self.links = index, links
        self.delays_ns: list[int] = []
        self.network = Network(bytes([index + 1]) * 32, link_port=0 if links else None)
        self.network.on_message(self.note)
        self.network.subscribe("bench", self.judge)
        self.bare: list[asyncio.WriteTransport] = []

    def note(self, _: str, data: bytes) -> None:
        self.delays_ns.append(time.monotonic_ns() - int.from_bytes(data[:8]))

    async def judge(self, peer: str, data: bytes) -> bool:
        self.note(peer, data)
        return True

    async def run(self) -> None:
        """Takes one JSON command a line on stdin, answers with one JSON object a line."""
        await self.network.start()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Bare(self), "127.0.0.1", 0)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        say({"address": self.network.addresses()[0], "port": server.sockets[0].getsockname()[1]})
        async for line in reader:
            command = json.loads(line)
            self.delays_ns.clear()
            cpu = time.process_time()
            await getattr(self, "do_" + command.pop("do"))(**command)
            used = time.process_time() - cpu
            say({"cpu_s": used, "delays_ns": self.delays_ns})
        server.close()
        await self.network.stop()

    async def do_dial(self, address: str) -> None:
        await self.network.dial(address)

    async def do_meet(self, ports: list[int]) -> None:
        for port in ports:
            made = await asyncio.get_running_loop().create_connection(
                lambda: Bare(self), "127.0.0.1", port
            )
            self.bare.append(made[0])
        met = asyncio.Event()
        self.network.on_peer(lambda *_: met.set())
        while sum(p.connected for p in self.network.peers()) < len(ports):
            await met.wait()
            met.clear()
        await asyncio.sleep(2.5)  # gossip meshes fill at the next heartbeat, links come up
        if self.links and sum(i.up for i in self.network.link_info()) < len(ports):
            raise SystemExit("not every link is up: measure again, or with --streams")

    async def do_idle(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def ticks(self, rate: int, seconds: float, offset: float) -> AsyncIterator[bytes]:
        """Time stamps at the same moments in every process, `offset` periods apart."""
        first = int(time.monotonic() * rate) + 2
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, (first + i + offset) / rate - time.monotonic()))
            yield time.monotonic_ns().to_bytes(8)
        await asyncio.sleep(0.5)  # the last ones arrive

    async def do_send(self, seconds: float, spread: float = 0.0) -> None:
        peers = [p.peer_id for p in self.network.peers()]
        async for stamp in self.ticks(SEND_RATE, seconds, spread * self.index):
            for peer in peers:
                self.network.send(peer, stamp + bytes(VOTE_BYTES - 8))

    async def do_bare(self, seconds: float) -> None:
        async for stamp in self.ticks(SEND_RATE, seconds, 0.0):
            for transport in self.bare:
                transport.write(stamp + bytes(VOTE_BYTES - 8))

    async def do_publish(self, seconds: float) -> None:
        async for stamp in self.ticks(PUBLISH_RATE, seconds, 0.25 * self.index):
            await self.network.publish("bench", stamp + os.urandom(GOSSIP_BYTES - 8))


class Bare(asyncio.Protocol):
    """The floor: a TCP connection whose every VOTE_BYTES are a message."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= VOTE_BYTES:
            self._child.note("", bytes(self._received[:VOTE_BYTES]))
            del self._received[:VOTE_BYTES]


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


# --- the floor of gossip -------------------------------------------------------------------------


def signature_ms(count: int = 500) -> float:
    """One Ed25519 signature and one verification of GOSSIP_BYTES."""
    from nacl.signing import SigningKey

    key, data = SigningKey(bytes(32)), bytes(GOSSIP_BYTES)
    cpu = time.process_time()
    for _ in range(count):
        key.verify_key.verify(data, key.sign(data).signature)
    return (time.process_time() - cpu) / count * 1e3


# --- the parent ---------------------------------------------------------------------------


class Node:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, index: int, links: bool) -> Node:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.network",
            "--node",
            str(index),
            *([] if links else ["--streams"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            limit=1 << 24,
        )
        return cls(process)

    async def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self.answer()

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()


async def measure(count: int, seconds: float, links: bool) -> list[dict[str, Any]]:
    nodes = [await Node.start(i, links) for i in range(count)]

    async def all_of(**command: Any) -> list[dict[str, Any]]:
        return await asyncio.gather(*(n.ask(**command) for n in nodes))

    try:
        born = [await one.answer() for one in nodes]
        for other in nodes[1:]:
            await other.ask(do="dial", address=born[0]["address"])
        ports = [b["port"] for b in born]
        await asyncio.gather(
            *(n.ask(do="meet", ports=ports[:i] + ports[i + 1 :]) for i, n in enumerate(nodes))
        )
        idle = sum(a["cpu_s"] for a in await all_of(do="idle", seconds=seconds)) / seconds
        phases = {}
        for name, command in (
            ("send", {"do": "send"}),
            ("scattered", {"do": "send", "spread": 1 / count}),
            ("bare", {"do": "bare"}),
            ("publish", {"do": "publish"}),
        ):
            answers = await all_of(seconds=seconds, **command)
            delays = sorted(d / 1e6 for a in answers for d in a["delays_ns"])
            cpu = sum(a["cpu_s"] for a in answers) - idle * (seconds + 0.5)
            phases[name] = Phase(cpu * 1e3, delays)
    finally:
        for one in nodes:
            await one.stop()
    return report(count, seconds, idle, phases)


@dataclass
class Phase:
    cpu_ms: float  # of all nodes together, idle use taken off
    delays_ms: list[float]  # of every delivery, ascending

    @property
    def per_delivery(self) -> float:
        return self.cpu_ms / max(1, len(self.delays_ms))


def report(
    count: int, seconds: float, idle: float, phases: dict[str, Phase]
) -> list[dict[str, Any]]:
    send, gossip = phases["send"], phases["publish"]
    bare = phases["bare"].per_delivery
    sent = int(SEND_RATE * seconds) * count * (count - 1)
    published = int(PUBLISH_RATE * seconds) * count
    per_node = gossip.cpu_ms / published / count
    return [
        row("send_cpu", send.per_delivery, "ms/message", TARGET_SEND_MS, bare),
        row("send_cpu_scattered", phases["scattered"].per_delivery, "ms/message", None, bare),
        row("send_p50", quantile(send.delays_ms, 0.5), "ms", None, None),
        row("send_p95", quantile(send.delays_ms, 0.95), "ms", TARGET_P95_MS, None),
        row("send_lost", 100 * (1 - len(send.delays_ms) / sent), "%", 0.0, None),
        row("publish_cpu", per_node, "ms/message/node", TARGET_PUBLISH_MS, signature_ms()),
        row("publish_p50", quantile(gossip.delays_ms, 0.5), "ms", None, None),
        row("publish_p95", quantile(gossip.delays_ms, 0.95), "ms", TARGET_P95_MS, None),
        row(
            "publish_lost",
            100 * (1 - len(gossip.delays_ms) / (published * (count - 1))),
            "%",
            0.0,
            None,
        ),
        row("idle_cpu_per_node", idle / count * 100, "% of a core", 5.0, None),
    ]


def row(
    name: str, value: float, unit: str, target: float | None, floor: float | None
) -> dict[str, Any]:
    met = target is None or value <= target
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "target": target,
        "floor": None if floor is None else round(floor, 4),
        "met": met,
    }


def quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each phase")
    parser.add_argument(
        "--streams", action="store_true", help="messages over libp2p streams, without links"
    )
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node is not None:
        import uvloop

        uvloop.run(Child(options.node, not options.streams).run())
        return 0
    rows = asyncio.run(measure(options.nodes, options.seconds, not options.streams))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for r in rows:
            target = "" if r["target"] is None else f"target {r['target']:g}"
            floor = "" if r["floor"] is None else f"floor {r['floor']:g}"
            mark = "" if r["met"] else "  MISSED"
            print(f"{r['name']:22}{r['value']:10.3f} {r['unit']:16} {target:12} {floor}{mark}")
    return 0 if all(r["met"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
