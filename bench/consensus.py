"""What agreement costs: finality, transfers, coming back from kill -9, elections, the VRF.

    python -m bench.consensus [--json] [--only GROUP]... [--small]

The groups are `finality`, `throughput`, `restart`, those of `bench.simulated` (`slow-links`: 31
validators; `crash`: of a leader) and those of `bench.election` (`elect`, `share`, `vrf`). The first
three run four real nodes of this machine; every row stands beside its floor where there is one.
Exit code 1 if a target is missed. `--small` does little: its figures mean nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or `consensus` would be this file

from bench import election, finality, simulated, throughput
from bench.local_net import answers, found, height, payer, running
from bench.measure import Row, at_most, quantile, run_groups
from bench.recovery import imports
from chain.address import format_address
from chain.codec import encode
from chain.errors import BlyanError
from chain.transactions import Transfer
from chain.types import Grains
from node.client import Client
from node.founding import Founded
from wallet.signing import sign_transaction

TARGET_RESTART_S = 5.0
VOTES_S = 60.0  # the longest that a node may take to be seen voting again
AWAY_S = 1.0  # between the kill and the new start
PACE_S = 0.1  # between the transfers that keep blocks coming


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    blocks: int = 300
    rate: float = 1250.0
    seconds: float = 60.0
    kills: int = 30
    simulated: simulated.Amount = field(default_factory=simulated.Amount)
    scale: election.Scale = field(default_factory=election.Scale)


SMALL = Amount(3, 50.0, 1.0, 1, simulated.SMALL, election.SMALL)


def finalities(amount: Amount) -> Iterator[Row]:
    """From a transaction accepted by one node to the event of another that it is final."""
    for row in asyncio.run(finality.measure(amount.blocks)):
        yield at_most(row["name"], row["value"], row["unit"], row["target"], row["floor"])


def transfers(amount: Amount) -> Iterator[Row]:
    """A steady load, every transfer verified on all nodes."""
    yield from asyncio.run(throughput.measure(amount.rate, amount.seconds))


def restarts(amount: Amount) -> Iterator[Row]:
    """From the start of a killed node to its first signature in a certificate that others hold, or
    its first block. Its processor time tells how much of that is other work on the machine."""
    import_s, _ = imports()
    taken, cpu = asyncio.run(_restarts(amount.kills))
    yield at_most("restart_p50", quantile(taken, 0.5), "s", None, import_s)
    yield at_most("restart_p99", quantile(taken, 0.99), "s", TARGET_RESTART_S, import_s)
    yield at_most("restart_cpu_p50", quantile(cpu, 0.5), "s", None)


async def _restarts(kills: int) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        async with running(found(Path(name), 4)) as net:
            pace = asyncio.create_task(_blocks(net.clients[0]))
            taken, cpu = [], []
            try:
                for number in range(kills):
                    victim = 1 + number % (len(net.nodes) - 1)  # node 0 takes the transfers
                    net.kill(victim)
                    await asyncio.sleep(AWAY_S)
                    began = time.perf_counter()
                    net.start(victim)
                    await answers(net.clients[victim])
                    await _voting(net.nodes[victim], net.clients[(victim + 1) % len(net.nodes)])
                    taken.append(time.perf_counter() - began)
                    cpu.append(net.cpu_s(victim))
            finally:
                pace.cancel()
    return taken, cpu


async def _blocks(client: Client) -> None:
    """Transfers that keep blocks coming, until cancelled."""
    genesis = await client.genesis()
    for nonce in count():
        tx = sign_transaction(
            payer(0),
            chain_id=genesis.chain_id,
            nonce=nonce,
            payload=Transfer(payer(0).public, Grains(1)),
            fee=Grains(genesis.params.min_fee_grains),
        )
        while True:
            with contextlib.suppress(BlyanError):  # being killed, or not there yet
                await client.post_tx(encode(tx))
                break
            await asyncio.sleep(PACE_S)
        await asyncio.sleep(PACE_S)


async def _voting(node: Founded, other: Client) -> None:
    """Until another node has a new final block that this one proposed, or whose certificate it
    signed."""
    account, last = format_address(node.keys.account.public), await height(other)
    async with asyncio.timeout(VOTES_S):
        while True:
            now = await height(other)
            for at in range(last + 1, now + 1):
                block = await other.block(at)
                certificate = block["certificate"] or {"signers": ()}
                if account in (block["proposer_account"], *certificate["signers"]):
                    return
            last = now
            await asyncio.sleep(0.02)


def _elections(group: str) -> Callable[[Amount], Iterator[Row]]:
    return lambda amount: election.GROUPS[group](amount.scale)


GROUPS: dict[str, Callable[[Amount], Iterator[Row]]] = {
    "finality": finalities,
    "throughput": transfers,
    "restart": restarts,
    "slow-links": lambda amount: simulated.finalities(amount.simulated),
    "crash": lambda amount: simulated.crashes(amount.simulated),
    **{group: _elections(group) for group in election.GROUPS},
}


if __name__ == "__main__":
    sys.exit(run_groups(__doc__, GROUPS, Amount(), SMALL))
