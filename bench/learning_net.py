"""Rounds of a real network, for `bench.learning_peers`: four nodes that validate with all proofs,
a learner at each, in processes of this machine; what they took, sent and learnt."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from bench.learning_round import Silent, keys_of
from bench.learning_task import Side, Task, sources
from bench.local_net import LocalNet, found, processor_s, running
from bench.socket_bytes import SocketBytes, family
from chain.errors import BlyanError
from chain.hashes import Hash32
from chain.records import RoundRecord
from corpus.dataset import build
from node.client import Client, Json
from node.data import RoundData, fetch_round_data
from node.dataset_submission import submit_dataset
from node.founding import template
from node.home import Home
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.verified import VerifiedReader
from node.worker.client import Worker

POLL_S = 1.0  # for a round's end; when it ended, its blocks say
# Windows in which nobody waits for anybody on one machine, as the others' matchmaking is short too
WINDOWS = {
    "join": {"blocks": 1, "ms": 300},
    "settle": {"blocks": 1, "ms": 0},
    "vote": {"blocks": 8, "ms": 5000},  # of the dataset, before the clock starts
}
PHASES = (
    "open",
    "seed",
    "train",
    "reveal",
    "jury",
    "screen_commit",
    "screen_reveal",
    "aggregate",
    "settle",
)


@dataclass(frozen=True, slots=True)
class Ours:
    """What our network did, and what others need to do the same.

    `start` is the model before the first counted round, `states` the learners' checkpoints then,
    `seeds` by round. Bytes are of a learner and round: `payload`, as it leaves the learner;
    `relayed`, what of it passed between nodes; `api`, everything between learners and their nodes.
    `cpu_s`: processor time of a round, of nodes with their workers, and of learners with theirs.
    """

    side: Side
    data: RoundData
    start: bytes
    states: tuple[bytes, ...]
    seeds: dict[int, Hash32]
    cpu_s: tuple[float, float]
    phases_s: dict[str, float]  # median over rounds
    payload: float
    relayed: float
    api: float
    merged: float  # share of the deltas
    differing: int  # parameters in which any node's last model differs from the first node's


class Watching(Silent):
    """How long training took in each round, pauses left out."""

    def __init__(self) -> None:
        self.took_s: list[float] = []

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        if done == total:
            self.took_s.append(seconds)


def learn(task: Task) -> Ours:
    return asyncio.run(_learn(task))


async def _learn(task: Task) -> Ours:
    document = template()
    document |= {"model": task.model.to_json(), "training": task.training.to_json()}
    document["params"] |= WINDOWS | {"momentum_ppm": task.momentum_ppm}
    with tempfile.TemporaryDirectory(prefix="blyan-bench-peers-") as directory:
        nodes = found(Path(directory), task.learners, task.learners + 1, document)
        async with running(nodes) as net:
            return await _Rounds(task, net, Path(directory)).run()


class _Rounds:
    def __init__(self, task: Task, net: LocalNet, directory: Path) -> None:
        self._task, self._net, self._directory = task, net, directory
        self._watching = [Watching() for _ in range(task.learners)]
        self._workers = [Worker(nice=0) for _ in range(task.learners)]
        self._learners: list[asyncio.Task[None]] = []
        self._bytes = SocketBytes(lambda: family(p.pid for p in net.processes))
        self._api = {n.config.api_port for n in net.nodes}

    async def run(self) -> Ours:
        task = self._task
        clients = [Client(n.config.api_url, n.home.token()) for n in self._net.nodes]
        try:
            readers = [await VerifiedReader.connect(client) for client in clients]
            text = sources(task.text_bytes)
            dataset = build(text, "PSF-2.0", "a part of Python's library")
            keys = keys_of(task.learners)
            await submit_dataset(readers[0], keys, dataset, Silent(), wait=True)
            for number, reader in enumerate(readers):
                self._learners.append(asyncio.create_task(self._always(number, reader)))
            for number in range(task.warm):
                await self._over(number)
            states = tuple(self._state(number) for number in range(task.learners))
            start = b"".join(await _model(readers[0], await readers[0].round(task.warm - 1)))
            self._bytes.start()
            used = self._cpu_s()
            rounds = [await self._over(task.warm + n) for n in range(task.our_rounds)]
            cpu_s = [now - before for now, before in zip(self._cpu_s(), used, strict=True)]
            return await self._found(states, start, rounds, cpu_s, readers)
        finally:
            for learner in self._learners:
                learner.cancel()
            await asyncio.gather(*self._learners, return_exceptions=True)
            for worker in self._workers:
                await worker.close()
            for client in clients:
                await client.close()

    async def _always(self, number: int, reader: VerifiedReader) -> None:
        keys = keys_of(number)
        home = Home(self._directory / f"learner-{number}")
        files = LearnerFiles(home, reader.genesis.chain_id, keys.account.public)
        learner = Learner(reader, keys, files, self._workers[number], self._watching[number])
        while True:
            await learner.train_round()

    def _state(self, number: int) -> bytes:
        """A learner's checkpoint after its last revealed delta."""
        (found,) = (self._directory / f"learner-{number}").glob("learner/*/*/last.state")
        return found.read_bytes()

    async def _over(self, number: int) -> Json:
        """A round once it is over."""
        client = self._net.clients[0]
        while int((await client.status())["round"]) <= number:
            self._net.check()
            for learner in self._learners:
                if learner.done():
                    learner.result()
            await asyncio.sleep(POLL_S)
        self._bytes.look()
        return await client.round(number)

    def _cpu_s(self) -> tuple[float, float]:
        """Of nodes with their workers, and of learners, who are in this process, with theirs."""
        workers = [w.pid for w in self._workers if w.pid is not None]
        roots = ([p.pid for p in self._net.processes], workers)
        nodes, learners = (sum(map(processor_s, family(each))) for each in roots)
        return nodes, learners + time.process_time()

    async def _found(
        self,
        states: tuple[bytes, ...],
        start: bytes,
        rounds: Sequence[Json],
        cpu_s: Sequence[float],
        readers: Sequence[VerifiedReader],
    ) -> Ours:
        task, reader = self._task, readers[0]
        records = [await reader.round(task.warm + n) for n in range(task.our_rounds)]
        data = await fetch_round_data(
            [await reader.dataset(d) for d in records[0].datasets], reader.blob
        )
        deltas = [await reader.delta(d) for record in records for d in record.deltas]
        models = [b"".join(await _model(each, records[-1])) for each in readers]
        differing = max(_differing(model, models[0]) for model in models)
        share = task.learners * task.our_rounds
        times = [_times(found) for found in rounds]
        began = times[0]["open"]
        side = Side(
            "blyan",
            losses=tuple(record.loss_after / 1e9 for record in records),
            at_s=tuple(each["settle"] - began for each in times),
            train_s=median(s for w in self._watching for s in w.took_s[task.warm :]),
            bytes_sent=self._bytes.sent(self._between) / share,
            spread=0.0 if not differing else 1.0,
        )
        return Ours(
            side,
            data,
            start,
            states,
            {record.number: record.seed for record in records},
            (cpu_s[0] / task.our_rounds, cpu_s[1] / task.our_rounds),
            {phase: median(_lasted(each, phase) for each in times) for phase in PHASES},
            payload=sum(d.blob_bytes for d in deltas) / share,
            relayed=sum(d.blob_bytes * self._relays(d.blob.hex()) for d in deltas) / share,
            api=self._bytes.sent(lambda own, peer: own in self._api) / share,
            merged=sum(len(record.accepted) for record in records) / share,
            differing=differing,
        )

    def _relays(self, blob: str) -> int:
        """To how many nodes a blob has come from another."""
        return sum((n.home.blobs / "blob" / blob).exists() for n in self._net.nodes) - 1

    def _between(self, own: int, peer: int) -> bool:
        return own not in self._api and peer not in self._api


async def _model(reader: VerifiedReader, record: RoundRecord) -> list[bytes]:
    """The shards of a round's result while it is the newest model, verified."""
    return await reader.shards(await reader.model_roots(record.result_root))


def _times(found: Json) -> dict[str, float]:
    """When each phase of a round began, in seconds; BlyanError if one was skipped."""
    if any(p["height"] is None for p in found["phases"]):
        raise BlyanError(f"round {found['number']} skipped a phase: {found['phases']}")
    return {str(p["phase"]): int(p["time_ms"]) / 1000 for p in found["phases"]}


def _lasted(times: dict[str, float], phase: str) -> float:
    names = list(times)
    return times[names[names.index(phase) + 1]] - times[phase]


def _differing(one: bytes, other: bytes) -> int:
    """Parameters that are not the same bits."""
    return int((np.frombuffer(one, "<u4") != np.frombuffer(other, "<u4")).sum())
