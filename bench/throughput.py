"""How many transfers four real nodes of one machine make final, every one verified on all four.

    python -m bench.throughput [--json] [--rate 1250] [--seconds 60]

The load is signed before the clock starts, by many accounts, and handed in at a steady rate
through the batch call of the API, each sender's at one node. A transfer's finality is counted from
its POST to the event with which *another* node tells that its block is final. Afterwards every
node must have all of them, and one state. The generator's processor time is told apart, and a
node's stage by stage: the `cpu_` rows sum to `node_cpu`, the mean of the nodes (bench/stages.py).

Exit code 1 if a target is missed. Floor of the rate: what bare Ed25519 verification alone allows
on the same cores with four nodes and one generator.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import stages
from bench.local_net import LocalNet, found, payer, running
from bench.measure import Row, at_least, at_most, quantile
from chain.codec import encode
from chain.errors import BlyanError
from chain.hashes import TX
from chain.transactions import Transfer
from chain.types import ChainId, Grains
from node.client import Client
from node.config import load_genesis
from wallet.signing import sign_transaction

NODES, SENDERS = 4, 256
TICK_S = 0.1  # between two batches for a node
TARGET_RATE, TARGET_P99_S = 1200.0, 2.0
SPENT_S = 10.0  # a node tells its processor time within this
DRAIN_S = 60.0  # what is under way when the load ends may take so long


@dataclass(slots=True)
class Load:
    """What is sent, and what became of it."""

    txs: list[bytes]
    sent_at: dict[bytes, float] = field(default_factory=dict)  # by id
    final_at: dict[bytes, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)  # by code
    news: asyncio.Event = field(default_factory=asyncio.Event)  # something is final


def sign(chain_id: ChainId, count: int, fee: int) -> list[bytes]:
    """Transfers in the order in which they are sent: every sender in turn."""
    keys = [payer(i) for i in range(SENDERS)]
    return [
        encode(
            sign_transaction(
                keys[i % SENDERS],
                chain_id=chain_id,
                nonce=i // SENDERS,
                payload=Transfer(keys[(i + 1) % SENDERS].public, Grains(1)),
                fee=Grains(fee),
            )
        )
        for i in range(count)
    ]


async def send(load: Load, clients: Sequence[Client], rate: float) -> None:
    """Hand the load in, open loop: a tick late is made up for, nothing waits for finality."""
    per_tick, at, began, tasks = rate * TICK_S, 0, time.perf_counter(), set()
    tick = 0
    while at < len(load.txs):
        tick += 1
        end = min(len(load.txs), round(tick * per_tick))
        for node, client in enumerate(clients):
            batch = [load.txs[i] for i in range(at, end) if i % SENDERS % NODES == node]
            if batch:
                task = asyncio.create_task(hand_in(load, client, batch))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        at = end
        await asyncio.sleep(max(0.0, began + tick * TICK_S - time.perf_counter()))
    await asyncio.gather(*tasks)


async def hand_in(load: Load, client: Client, batch: list[bytes]) -> None:
    now = time.perf_counter()
    for raw in batch:
        load.sent_at[TX.hash(raw)] = now
    for row in await client.post_txs(batch):
        if row["code"] != "ok":
            load.refused[row["code"]] = load.refused.get(row["code"], 0) + 1


async def watch(load: Load, client: Client) -> None:
    """Note when each transaction is told to be final."""
    async for event in client.events():
        if event.name == "block" and event.data["tx_count"]:
            now = time.perf_counter()
            block = (await client.raw_block(event.data["height"])).block
            for raw in block.txs:
                load.final_at.setdefault(TX.hash(raw), now)
            load.news.set()


async def spent(net: LocalNet) -> list[dict[str, float]]:
    """Processor seconds of each node so far, by stage."""
    found = []
    async with asyncio.timeout(SPENT_S):
        for node, process in zip(net.nodes, net.processes, strict=True):
            logs = Path(node.home.logs)
            before = len(stages.read(logs))
            process.send_signal(signal.SIGUSR1)
            while len(lines := stages.read(logs)) == before:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            found.append(lines[-1])
    return found


async def agree(clients: Sequence[Client], load: Load) -> int:
    """Transfers missing on the node that has fewest, once all have the same final block."""
    missing = 0
    for client in clients:
        nonces = 0
        for number in range(SENDERS):
            nonces += int((await client.account(payer(number).public))["nonce"])
        missing = max(missing, len(load.txs) - nonces)
    return missing


async def measure(rate: float, seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        nodes = found(Path(name), NODES, SENDERS)
        genesis = load_genesis(nodes[0].home)
        load = Load(sign(genesis.chain_id, int(rate * seconds), genesis.params.min_fee_grains))
        async with running(nodes, "bench.stages") as net:
            clients = net.clients
            watcher = asyncio.create_task(watch(load, clients[1]))
            try:
                before = await spent(net)
                own, began = time.process_time(), time.perf_counter()
                await send(load, clients, rate)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_S):
                        while len(load.final_at) < len(load.txs) - sum(load.refused.values()):
                            load.news.clear()
                            told = asyncio.create_task(load.news.wait())
                            await asyncio.wait({told, watcher}, return_when=asyncio.FIRST_COMPLETED)
                            if watcher.done():
                                watcher.result()
                taken = max(load.final_at.values(), default=began) - began
                own = time.process_time() - own
                after = await spent(net)
                missing = await agree(clients, load)
            finally:
                watcher.cancel()
    used = Counter[str]()
    for first, last in zip(before, after, strict=True):
        used.update({stage: (last[stage] - first.get(stage, 0.0)) / NODES for stage in last})
    return rows(load, taken, used, own, missing)


def rows(load: Load, taken: float, used: Counter[str], own: float, missing: int) -> list[Row]:
    """`taken`, `own`: seconds of the whole and of the generator's processor; `used`: processor
    seconds of a node in the mean, by stage."""
    done = len(load.final_at)
    delays = [at - load.sent_at[tx] for tx, at in load.final_at.items() if tx in load.sent_at]
    each = 1e6 / max(done, 1)
    return [
        at_least("throughput", done / max(taken, 1e-9), "tx/s", TARGET_RATE),
        at_most("throughput_p50", quantile(delays, 0.5) if delays else 1e9, "s", None),
        at_most("throughput_p99", quantile(delays, 0.99) if delays else 1e9, "s", TARGET_P99_S),
        at_most("throughput_missing", float(missing), "tx", 0.0),
        at_most("throughput_refused", float(sum(load.refused.values())), "tx", 0.0),
        at_most("node_cpu", used.total() * each, "µs/tx", None),
        *(at_most(f"cpu_{_word(s)}", used[s] * each, "µs/tx", None) for s in stages.NAMES),
        at_most("generator_cpu", own * each, "µs/tx", None),
    ]


def _word(stage: str) -> str:
    return stage.replace(" ", "_")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--rate", type=float, default=1250.0, help="transfers a second [1250]")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long [60]")
    options = parser.parse_args()
    try:
        found_rows = asyncio.run(measure(options.rate, options.seconds))
    except BlyanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([row.as_json() for row in found_rows], indent=1))
    else:
        print("\n".join(row.as_text() for row in found_rows))
    return 0 if all(row.met for row in found_rows) else 1


if __name__ == "__main__":
    sys.exit(main())
