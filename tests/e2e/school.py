"""Real nodes, a dataset, and learners with keys of their own, for runs over learning rounds.

A learner is either one of the keys `pairs`, which a program trains with in its own process, or a
`Pupil`: `blyan train` as a process with a home.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from chain.address import format_address
from chain.types import TxId
from corpus.dataset import build
from corpus.ingest import Document
from node.client import Client, Json
from node.config import Config, save_config
from node.data import RoundData, fetch_round_data
from node.dataset_submission import submit_dataset
from node.founding import FOUNDER_STAKE, found_home, write_genesis
from node.home import Home, write_private
from node.learner_files import LearnerFiles
from node.round_specs import RoundSpecs
from node.submission import NANO_PER_NAT
from node.verified import VerifiedReader
from tests.e2e.fleet import ROOT, STOP_S, Failure, Fleet, Machine, deadline
from tests.e2e.manifest import Manifest
from tests.e2e.verdict import Check, differing, read
from tests.kit.nano import library
from tests.kit.programs import environment
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
# A learner that is killed or late must have the time to start: that is what these are for.
LONG_WINDOWS: Mapping[str, Any] = {
    "train": {"blocks": 20, "ms": 60_000},
    "reveal": {"blocks": 10, "ms": 30_000},
    "screen": {"blocks": 10, "ms": 30_000},
    "aggregate": {"blocks": 8, "ms": 12_000},
}
PHASES = (
    *("open", "seed", "train", "reveal", "jury"),
    *("screen_commit", "screen_reveal", "aggregate", "settle"),
)
RANKS = 3  # times the window of AGGREGATE, as the local network has it
LOSS_PATIENCE = 10  # settle windows, as the protocol has it
SLACK_S = 120.0  # for blocks of a network that lost a node, on a machine that does other things
TICK_S = 0.02
ENDLESS = 10**6  # rounds
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


class Pupil:
    """A learner as a process, `blyan train`: its home, and its process if it runs."""

    def __init__(self, home: Home) -> None:
        self.founded = found_home(home, Config())
        self.process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return self.founded.home.path.name

    @property
    def address(self) -> str:
        return format_address(self.founded.keys.account.public)

    @property
    def log(self) -> Path:
        return self.founded.home.logs / "out.txt"

    def sit(self, machine: Machine) -> None:
        """Talk with this node from now on."""
        home, node = self.founded.home, machine.founded
        save_config(home, replace(self.founded.config, api_port=node.config.api_port))
        write_genesis(home, node.home.genesis_file.read_text())
        write_private(home.token_file, node.home.token() + "\n")

    async def start(self, rounds: int = ENDLESS) -> None:
        with self.log.open("ab") as output:
            self.process = await self._run(output, "train", "--rounds", str(rounds))

    async def call(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Another command of `blyan` with this home, to its end: exit code, stdout, stderr."""
        process = await self._run(asyncio.subprocess.PIPE, *map(str, arguments))
        out, told = await process.communicate()
        return process.returncode or 0, out.decode(), told.decode()

    async def _run(self, output: Any, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.e2e.pupil", *arguments),
            *("--home", str(self.founded.home.path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is not None:
            raise Failure(f"{self.name} ended by itself: {self.tail()}")
        self.process.kill()
        async with asyncio.timeout(STOP_S):
            await self.process.wait()
        self.process = None

    async def close(self) -> None:
        """Leave no process, not even a worker that is stopped."""
        if self.process is not None and self.process.returncode is None:
            self.signal(signal.SIGKILL)
            await self.process.wait()

    async def ended(self, within_s: float) -> int:
        """Its exit code, once it has trained its rounds."""
        assert self.process is not None
        async with deadline(within_s, f"{self.name} has not ended: {self.tail()}"):
            code = await self.process.wait()
        self.process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """To the learner and to its worker."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def told(self) -> str:
        """What it has printed since it was made."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self) -> str:
        return self.told()[-600:]


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
        pupils: int = 0,
        guests: int = 0,
        wired: bool = False,
    ) -> None:
        """`learners`: how many keys to make for them; `pupils`: how many learners with homes, which
        sit at the nodes in turn; `guests` and `wired`: of the `Fleet`."""
        self.params = {**PARAMS, **(params or {})}
        manifest = Manifest("school", "", validators=NODES, genesis=self.params)
        self.pairs = [
            KeyPair.from_seed(hashlib.sha256(b"learner %d of %d" % (i, seed)).digest())
            for i in range(learners + 1)
        ]
        self.directory = directory
        self.pupils = [Pupil(Home(directory / f"pupil-{i}")) for i in range(pupils)]
        self.fleet = Fleet(
            directory,
            manifest,
            [*self.pairs, *(p.founded.keys.account for p in self.pupils)],
            f"school {seed}",
            training={**TRAINING, **(training or {})},
            wired=wired,
            guests=guests,
        )
        for i, pupil in enumerate(self.pupils):
            pupil.sit(self.machines[i % NODES])
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
        for pupil in self.pupils:
            await pupil.close()
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

    async def reach(self, phase: str, number: int = 0) -> Json:
        """A round from `number` on that has come to this phase, or at least to the next."""
        wanted = PHASES.index(phase)
        first = await self.ask(lambda c: c.round())
        number = max(number, int(first["number"]) + (PHASES.index(first["phase"]) > wanted))
        async with deadline(2 * self.left_s("open"), f"no round has reached {phase}"):
            while True:
                found = await self.ask(lambda c: c.round())
                at = PHASES.index(found["phase"])
                number = max(number, int(found["number"]))  # a round may end without the phase
                there = int(found["number"]) == number and at >= wanted
                # An open round begins when its first learner has joined.
                if there and (phase != "open" or found["joined_count"] or at):
                    return found
                await paused(TICK_S)

    def window(self, phase: str) -> tuple[int, int] | None:
        """The longest that a phase may take: blocks and milliseconds; None if its blocks alone end
        it, or, of an open round, its first learner begins it."""
        names = {"screen_commit": "screen", "screen_reveal": "screen"}
        found = self.params.get(names.get(phase, phase))
        if phase == "open" or found is None:
            return None
        times = {"aggregate": RANKS, "settle": 1 + LOSS_PATIENCE}.get(phase, 1)
        return found["blocks"] * times, found["ms"] * times

    def left_s(self, phase: str, slack_s: float = SLACK_S) -> float:
        """All deadlines from a phase on, and some time for blocks."""
        left = [self.window(p) for p in PHASES[PHASES.index(phase) :]]
        return sum(max(w[1] / 1000, 2.0 * w[0]) for w in left if w) + slack_s

    async def late(self, found: Json) -> tuple[list[str], int]:
        """Which phases of a round went on beyond the first block after their deadline; of how
        many that have one."""
        wrong, looked = [], 0
        starts = [p for p in found["phases"] if p["height"] is not None]
        for now, after in pairwise(starts):
            window = self.window(now["phase"])
            if window is None:
                continue
            blocks, ms = window
            looked += 1
            last = int(after["height"]) - 1  # the phase was still on after this block
            block = await self.ask(lambda c, h=last: c.block(h))
            if last - now["height"] > blocks and block["time_ms"] - now["time_ms"] > ms:
                took = (block["time_ms"] - now["time_ms"]) / 1000
                wrong.append(f"{now['phase']} took {took:.1f} s")
        return wrong, looked

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

    async def one_history(self) -> Check:
        """Every block of every node that runs, beside the others'."""
        running = [m for m in self.fleet.everyone if m.process is not None]
        height = min([await self.fleet.wait_height(m, 0) for m in running])
        seen = {m.name: await read(m, height) for m in running}
        return Check("blocks are the same on all nodes", tuple(differing(seen, height)), height)

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
