"""Real nodes, a dataset, and learners with keys of their own, for runs over learning rounds."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from chain.address import format_address
from chain.types import TxId
from corpus.dataset import build
from corpus.ingest import Document
from node.client import Client, Json
from node.data import RoundData, fetch_round_data
from node.dataset_submission import submit_dataset
from node.founding import FOUNDER_STAKE
from node.home import Home
from node.learner_files import LearnerFiles
from node.round_specs import RoundSpecs
from node.submission import NANO_PER_NAT
from node.verified import VerifiedReader
from tests.e2e.fleet import Failure, Fleet, Machine, deadline
from tests.e2e.manifest import Manifest
from tests.e2e.verdict import Check
from tests.kit.nano import library
from tests.kit.waiting import paused
from wallet.keys import KeyPair, Keys

NODES = 4
TEXT_BYTES = 400_000  # of Python's library: a model of 0.4 M parameters does not know it by heart
APPROVED_S = 240.0  # one dataset, from its upload to its use, on a machine that does other things
AGREE_S = 60.0
LOOK_S = 0.3
# Short enough that a round is its work and not its windows; long enough for two loaded cores.
PARAMS: Mapping[str, Any] = {
    "join": {"blocks": 3, "ms": 4_000},
    "train": {"blocks": 20, "ms": 150_000},
    "reveal": {"blocks": 4, "ms": 6_000},
    "screen": {"blocks": 10, "ms": 90_000},
    "aggregate": {"blocks": 8, "ms": 15_000},
    "settle": {"blocks": 1, "ms": 1_000},
    "custody_interval_blocks": 512,  # of no interest here
}
TRAINING: Mapping[str, Any] = {"steps": 20, "segment_steps": 5, "batch": 16}

Say = Callable[[str], None]


class Quiet:
    """Progress of a learner: its last lines, for when it fails."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines = [*self.lines[-20:], text]

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """Nobody watches."""


class School:
    """A network that learns. Use `opened`."""

    def __init__(
        self,
        directory: Path,
        learners: int,
        seed: int,
        *,
        params: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        funded: Sequence[KeyPair] = (),
    ) -> None:
        """`learners`: how many keys to make for them; `funded`: who has money besides."""
        manifest = Manifest("school", "", validators=NODES, genesis={**PARAMS, **(params or {})})
        self.pairs = [
            KeyPair.from_seed(hashlib.sha256(b"learner %d of %d" % (i, seed)).digest())
            for i in range(learners + 1)
        ]
        self.directory = directory
        self.fleet = Fleet(
            directory,
            manifest,
            [*self.pairs, *funded],
            f"school {seed}",
            training={**TRAINING, **(training or {})},
            wired=False,
        )
        self._clients: list[Client] = []
        self.progress = Quiet()

    @property
    def machines(self) -> list[Machine]:
        return self.fleet.machines

    def keys(self, learner: int) -> Keys:
        pair = self.pairs[learner]
        return Keys(pair, pair, pair, pair)

    def address(self, learner: int) -> str:
        return format_address(self.pairs[learner].public)

    def files(self, learner: int) -> LearnerFiles:
        home = Home(self.directory / f"learner-{learner}")
        return LearnerFiles(home, self.fleet.genesis.chain_id, self.pairs[learner].public)

    async def reader(self, machine: Machine) -> VerifiedReader:
        """What a learner reads the chain with, with the node's permission to upload."""
        founded = machine.founded
        client = Client(founded.config.api_url, founded.home.token())
        self._clients.append(client)
        return await VerifiedReader.connect(client)

    async def submit(self, say: Say) -> None:
        """A dataset, from its upload to its use."""
        document = Document("library.py", library(TEXT_BYTES))
        dataset = build([document], "PSF-2.0", "a part of Python's library")
        reader = await self.reader(self.machines[0])
        async with deadline(APPROVED_S, f"no dataset in use within {APPROVED_S:g} s"):
            await submit_dataset(reader, self.keys(-1), dataset, self.progress, wait=True)
        say(f"{dataset.manifest.size_bytes:,} bytes to learn from are approved")

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.fleet.close()

    # --- looking -------------------------------------------------------------------------------

    async def ask(self, question: Callable[[Client], Awaitable[Json]]) -> Json:
        """The answer of any node that gives one."""
        while True:
            for machine in self.machines:
                found = await machine.ask(question(machine.client))
                if found is not None:
                    return found
            await paused(LOOK_S)

    async def round(self, number: int) -> Json:
        return await self.ask(lambda c: c.round(number))

    async def finished(self, number: int, within_s: float) -> Json:
        """A round once it is over."""
        async with deadline(within_s, f"round {number} is not over within {within_s:g} s"):
            while int((await self.ask(lambda c: c.status()))["round"]) <= number:
                self.fleet.check_running()
                await paused(LOOK_S)
        return await self.round(number)

    async def weights(self, found: Json) -> dict[str, float]:
        """Of each merged delta of a round: the mean weight that its tiles gave it."""
        accepted = [str(d) for d in found["accepted"]]
        total, tiles = [0.0] * len(accepted), 0
        for update in found["update_list"]:
            if update["provisional"]:
                wanted = TxId(bytes.fromhex(update["id"]))
                shown = await self.ask(lambda c, u=wanted: c.update(u))
                for change in shown["changes"]:
                    tiles += 1
                    for i, weight in enumerate(change["weights"]):
                        total[i] += weight / change["weight_one"]
        return {d: w / max(tiles, 1) for d, w in zip(accepted, total, strict=True)}

    async def lesson(self, number: int) -> tuple[RoundSpecs, RoundData]:
        """What a round trained, how, and on what text."""
        reader = await self.reader(self.machines[0])
        record = await reader.round(number)
        datasets = [await reader.dataset(dataset) for dataset in record.datasets]
        return await reader.round_specs(number), await fetch_round_data(datasets, reader.blob)

    async def judge(self) -> list[Check]:
        """One chain and one model everywhere, and nobody punished."""
        height = await self.fleet.highest(self.machines)
        states, models = set[str](), set[str]()
        for machine in self.machines:
            await self.fleet.wait_height(machine, height)
            states.add((await _answer(machine, machine.client.block(height)))["state_root"])
            models.add((await _answer(machine, machine.client.model(height)))["root"])
        found = (await self.ask(lambda c: c.validators()))["validators"]
        bundles = sum(
            [await _figure(machine, "blyan_bundles_fetched") for machine in self.machines]
        )
        poorer = [v["account"] for v in found if int(v["stake"]) != FOUNDER_STAKE or v["jailed"]]
        return [
            Check("all nodes have one state root", tuple(states if len(states) > 1 else ()), 4),
            Check("all nodes have one model root", tuple(models if len(models) > 1 else ()), 4),
            Check("no validator was slashed or jailed", tuple(poorer), len(found)),
            Check("payloads come in bundles", () if bundles else ("none did",), int(bundles)),
        ]


async def _answer(machine: Machine, asked: Awaitable[Json]) -> Json:
    found = await machine.ask(asked, AGREE_S)
    if found is None:
        raise Failure(f"{machine.name} does not answer")
    return found


async def _figure(machine: Machine, name: str) -> float:
    """One of a node's metrics."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{machine.founded.config.api_url}/metrics")
    (line,) = [x for x in answer.text.splitlines() if x.startswith(f"{name} ")]
    return float(line.split()[1])


@asynccontextmanager
async def opened(school: School, say: Say) -> AsyncIterator[School]:
    """Started, with its dataset in use; ended whatever happens."""
    try:
        await school.fleet.start()
        say("all nodes are up and linked")
        await school.submit(say)
        yield school
    finally:
        await school.close()


def nats(nano: int) -> float:
    return nano / NANO_PER_NAT
