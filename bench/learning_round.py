"""What a learning round takes besides its training: four real nodes, two learners, all proofs on.

    python -m bench.learning_round [--json] [--only round] [--small]

The nodes are processes of this machine with their duties' workers; the learners are `node.learner`
in this process. Times are those of blocks: from the block that has the round's last commit to the
one in which all tiles are provisional, and phase by phase. Everything stands beside its floor from
the same run: as many empty blocks as the round took, at the speed at which the chain makes blocks
while it waits for a seed. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.learning_task import library
from bench.local_net import LocalNet, found, payer, running
from bench.measure import Row, at_most, run_groups
from chain.errors import UnreachableError
from corpus.dataset import build
from corpus.ingest import Document
from node.client import Client, Json
from node.dataset_submission import submit_dataset
from node.home import Home
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.verified import VerifiedReader
from node.worker.client import Worker
from wallet.keys import Keys

NODES, LEARNERS = 4, 2
TEXT_BYTES = 400_000
POLL_S = 0.2
SEED_PHASE, TARGET_S = "jury", 3.0
PARTS = ("reveal", "jury", "screen_commit", "screen_reveal", "aggregate")


@dataclass(frozen=True, slots=True)
class Amount:
    """How many rounds are measured, after one that warms up."""

    rounds: int = 3


SMALL = Amount(1)


@dataclass(frozen=True, slots=True)
class Timed:
    """One round, in seconds and blocks."""

    whole_s: float
    blocks: int
    parts_s: dict[str, float]
    seed_block_s: float  # a block while the chain waits for a seed


class Silent:
    def say(self, text: str) -> None:
        """Nobody watches."""

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """Nobody watches."""


def whole_round(amount: Amount) -> Iterator[Row]:
    """From the last commit to a provisional update of every tile."""
    timed = asyncio.run(_rounds(amount))
    floor = median(t.blocks * t.seed_block_s for t in timed)
    yield at_most("commit_to_provisional", median(t.whole_s for t in timed), "s", TARGET_S, floor)
    for part in PARTS:
        yield at_most(f"phase_{part}", median(t.parts_s[part] for t in timed), "s", None)
    yield at_most("blocks", median(t.blocks for t in timed), "blocks", None)
    yield at_most("block_while_seeding", 1000 * median(t.seed_block_s for t in timed), "ms", None)


async def _rounds(amount: Amount) -> list[Timed]:
    with tempfile.TemporaryDirectory(prefix="blyan-bench-round-") as directory:
        nodes = found(Path(directory), NODES, payers=LEARNERS + 1)
        async with running(nodes) as net:
            return await _learn(net, Path(directory), amount)


async def _learn(net: LocalNet, directory: Path, amount: Amount) -> list[Timed]:
    worker, clients, tasks = Worker(nice=0), list[Client](), list[asyncio.Task[None]]()
    try:
        for i in range(LEARNERS + 1):
            node = net.nodes[i]
            clients.append(Client(node.config.api_url, node.home.token()))
        readers = [await VerifiedReader.connect(client) for client in clients]
        text = Document("library.py", library(TEXT_BYTES))
        dataset = build([text], "PSF-2.0", "a part of Python's library")
        await submit_dataset(readers[-1], keys_of(LEARNERS), dataset, Silent(), wait=True)
        for i in range(LEARNERS):
            tasks.append(asyncio.create_task(_always(readers[i], i, directory, worker)))
        return [await _timed(net, tasks, n) for n in range(1 + amount.rounds)][1:]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await worker.close()
        for client in clients:
            await client.close()


def keys_of(number: int) -> Keys:
    """All keys of a `payer` in one."""
    pair = payer(number)
    return Keys(pair, pair, pair, pair)


async def _always(reader: VerifiedReader, number: int, directory: Path, worker: Worker) -> None:
    keys = keys_of(number)
    home = Home(directory / f"learner-{number}")
    files = LearnerFiles(home, reader.genesis.chain_id, keys.account.public)
    learner = Learner(reader, keys, files, worker, Silent())
    while True:
        await learner.train_round()


async def _timed(net: LocalNet, learners: list[asyncio.Task[None]], number: int) -> Timed:
    """A round once it is over."""
    while int((await net.clients[0].status())["round"]) <= number:
        net.check()
        for learner in learners:
            if learner.done():
                learner.result()
        await asyncio.sleep(POLL_S)
    return _times(await net.clients[0].round(number))


def _times(found: Json) -> Timed:
    phases = found["phases"]
    if any(p["height"] is None for p in phases):
        raise UnreachableError(f"round {found['number']} skipped a phase: {phases}")
    at = {p["phase"]: (int(p["height"]), int(p["time_ms"]) / 1000) for p in phases}
    names = [p["phase"] for p in phases]

    def lasted(name: str) -> tuple[int, float]:
        after = at[names[names.index(name) + 1]]
        return after[0] - at[name][0], after[1] - at[name][1]

    parts = {name: lasted(name)[1] for name in PARTS}
    seed_blocks, seed_s = lasted(SEED_PHASE)
    blocks = at["settle"][0] - at["reveal"][0]
    return Timed(at["settle"][1] - at["reveal"][1], blocks, parts, seed_s / seed_blocks)


GROUPS: dict[str, Callable[[Amount], Iterator[Row]]] = {"round": whole_round}


if __name__ == "__main__":
    sys.exit(run_groups(__doc__, GROUPS, Amount(), SMALL))
