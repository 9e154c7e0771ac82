"""How long until a transaction is final, on four real nodes of one machine.

Each sample signs one transfer, posts it to one node and waits for the event with which *another*
node tells that the block is final. Samples come at uneven pauses, so that they meet leaders at
every point of their waiting.

    python -m bench.finality [--json] [--blocks 300]

Exit code 1 if a target is missed. Floor, from the same run: what the path cannot do without:
three one-way messages (proposal, notarize, finalize), two synced log records and one commit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.local_net import found, height, payer, running
from chain.codec import encode
from chain.transactions import Transfer
from chain.types import Grains
from node.client import Client
from node.founding import Founded
from wallet.signing import sign_transaction

TARGET_P50_MS, TARGET_P99_MS = 150, 500
SAMPLE_S = 20.0


class Finals:
    """When each transaction was told to be final by one node's event stream."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: dict[str, asyncio.Future[float]] = {}

    async def run(self) -> None:
        async for event in self._client.events():
            if event.name == "tx":
                future = self._waiting.pop(event.data["id"], None)
                if future is not None and not future.done():
                    future.set_result(time.perf_counter())

    def expect(self, tx_id: str) -> asyncio.Future[float]:
        self._waiting[tx_id] = asyncio.get_running_loop().create_future()
        return self._waiting[tx_id]


async def sample(nodes: list[Founded], clients: list[Client], blocks: int) -> list[float]:
    """Milliseconds from POST at node 0 to the event at node 1, until `blocks` have passed."""
    finals = Finals(clients[1])
    listening = asyncio.create_task(finals.run())
    chance = random.Random(1)
    genesis = await clients[0].genesis()
    key, to = payer(0), nodes[1].keys.account.public
    nonce = int((await clients[0].account(key.public))["next_nonce"])
    first, delays = await height(clients[0]), []
    while await height(clients[0]) < first + blocks:
        await asyncio.sleep(chance.uniform(0.05, 0.9))
        tx = sign_transaction(
            key,
            chain_id=genesis.chain_id,
            nonce=nonce,
            payload=Transfer(to, Grains(1)),
            fee=Grains(genesis.params.min_fee_grains),
        )
        told = finals.expect(tx.id().hex())
        began = time.perf_counter()
        await clients[0].post_tx(encode(tx))
        async with asyncio.timeout(SAMPLE_S):
            delays.append((await told - began) * 1000)
        nonce += 1
    listening.cancel()
    return delays


async def rtt_ms(client: Client) -> float:
    found = [p["rtt_ms"] for p in (await client.peers())["peers"] if p.get("rtt_ms")]
    return median(found) if found else 0.0


def disk_ms(directory: Path) -> tuple[float, float]:
    """(synced append, synced SQLite commit), medians of 50."""
    syncs, commits = [], []
    with (directory / "probe").open("ab", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 300)
            os.fsync(file.fileno())
            syncs.append((time.perf_counter() - began) * 1000)
    db = sqlite3.connect(directory / "probe.db")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (x BLOB)")
    for _ in range(50):
        began = time.perf_counter()
        with db:
            db.executemany("INSERT INTO t VALUES (?)", [(b"x" * 200,)] * 10)
        commits.append((time.perf_counter() - began) * 1000)
    db.close()
    return median(syncs), median(commits)


async def measure(blocks: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        nodes = found(Path(name), 4)
        async with running(nodes) as net:
            delays = sorted(await sample(nodes, net.clients, blocks))
            round_trip = await rtt_ms(net.clients[0])
        synced, committed = disk_ms(Path(name))
    floor = round(1.5 * round_trip + 2 * synced + committed, 1)
    p50, p99 = delays[len(delays) // 2], delays[min(len(delays) - 1, len(delays) * 99 // 100)]
    rows = []
    for label, value, target in (
        ("finality_p50", p50, TARGET_P50_MS),
        ("finality_p99", p99, TARGET_P99_MS),
    ):
        rows.append(
            {
                "name": label,
                "value": round(value, 1),
                "unit": "ms",
                "target": target,
                "floor": floor,
                "met": value <= target,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--blocks", type=int, default=300, help="blocks to watch [300]")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.blocks))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{row['name']:14} {row['value']:8} {row['unit']}  target {row['target']}"
                f"  floor {row['floor']}  {'met' if row['met'] else 'MISSED'}"
            )
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
