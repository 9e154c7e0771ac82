"""What the scenarios of `tests.e2e.odd_rounds` play on: a network of their own, and a book of what
was looked at."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from chain.hashes import Hash32
from node.client import Json
from node.learner import patiently
from tests.e2e.fleet import Machine, deadline
from tests.e2e.school import LONG_WINDOWS, Pupil, Say, School, opened
from tests.e2e.verdict import Check, judge_logs
from tests.kit.waiting import paused

MERGED = "merged"
SETTLED_ROUNDS = 4  # until all learners that were started together are in one round
LOOK_S = 0.03


@dataclass(slots=True)
class Book:
    """Findings by the name of what was looked at: how often, and what of it was wrong."""

    looked: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def look(self, name: str, *faults: str) -> None:
        """Once more, with these faults."""
        self.many(name, faults, 1)

    def many(self, name: str, faults: Iterable[str], looked: int) -> None:
        self.looked[name] = self.looked.get(name, 0) + looked
        self.wrong.setdefault(name, []).extend(faults)

    def same(self, name: str, what: str, found: Any, expected: Any) -> None:
        self.look(name, *([] if found == expected else [f"{what}: {found}, not {expected}"]))

    def true(self, name: str, what: str, holds: bool) -> None:
        self.look(name, *([] if holds else [what]))

    def checks(self) -> list[Check]:
        return [Check(name, tuple(self.wrong[name]), n) for name, n in self.looked.items()]


class Stage:
    """A network that learns, for one scenario."""

    def __init__(self, school: School, seed: int, say: Say) -> None:
        self.school, self.say = school, say
        self.book = Book()
        self.chance = random.Random(f"odd rounds {seed}")

    @property
    def pupils(self) -> list[Pupil]:
        return self.school.pupils

    async def now(self) -> Json:
        """The round in progress."""
        return await self.school.ask(lambda c: c.round())

    async def start(self, *pupils: Pupil) -> None:
        for pupil in pupils:
            await pupil.start()

    async def during(self, phase: str, number: int = 0) -> Json:
        """A round from `number` on while it is in this phase."""
        while (found := await self.school.reach(phase, number))["phase"] != phase:
            number = int(found["number"]) + 1
        return found

    async def joined(self, number: int, pupils: Sequence[Pupil]) -> Json:
        """A round that is still open once all of these have declared."""
        wanted = {p.address for p in pupils}
        async with deadline(self.school.left_s("open"), f"not all have joined round {number}"):
            while True:
                found = await self.school.ask(lambda c: c.round(number))
                if wanted <= {one["account"] for one in found["learners"]}:
                    return found
                await paused(LOOK_S)

    async def finished(self, number: int, phase: str = "open") -> Json:
        """A round once it is over, all of whose phases ended by their deadlines. `phase`: the one
        that it is in."""
        found = await self.school.finished(number, self.school.left_s(phase))
        late, looked = await self.school.late(found)
        wrong = [f"round {number}: {one}" for one in late]
        self.book.many("phases end by their deadlines", wrong, looked)
        return found

    async def ordinary(self, number: int, pupils: Sequence[Pupil]) -> Json:
        """A round that merges what each of these has learnt, and has a loss."""
        found = await self.finished(number)
        fates = fates_of(found)
        wrong = [
            f"round {number}: {p.name} {fates.get(p.address, 'no delta')}"
            for p in pupils
            if fates.get(p.address) != MERGED
        ]
        if not found["loss_after"]:
            wrong.append(f"round {number}: no loss")
        self.book.look("ordinary rounds merge every delta", *wrong)
        self.say(f"round {number}: {self.told(found)}")
        return found

    async def settled(self, pupils: Sequence[Pupil]) -> Json:
        """The first round that merges what each of these has learnt: who has just been started may
        be late for one."""
        number = int((await self.now())["number"])
        for late in range(SETTLED_ROUNDS):
            found = await self.finished(number + late)
            fates = fates_of(found)
            if all(fates.get(p.address) == MERGED for p in pupils):
                break
        self.say(f"round {found['number']}: {self.told(found)}")
        names = " ".join(p.name for p in pupils)
        merged = all(fates.get(p.address) == MERGED for p in pupils)
        self.book.true("learners that are started merge", f"{names}: {fates}", merged)
        return found

    def told(self, found: Json) -> str:
        """A round in a few words."""
        losses = " → ".join(f"{found[f'loss_{when}'] / 1e9:.4f}" for when in ("before", "after"))
        names = {p.address: p.name for p in self.pupils}
        fates = [f"{names.get(a, a[:12])} {fate}" for a, fate in fates_of(found).items()]
        return f"{', '.join(fates) or 'no delta'}; {losses}; {spans(found)}"

    async def merit(self, pupil: Pupil) -> int:
        return int((await self.school.ask(lambda c: c.account(pupil.address)))["merit"])

    async def level(self, machine: Machine) -> None:
        """Until a node has what the others have."""
        height = await self.school.fleet.highest(self.school.machines)
        await self.school.fleet.wait_height(machine, height)

    async def model_bytes(self, machine: Machine) -> bytes:
        """All of the newest model as a node gives it, every tile verified."""
        reader = await self.school.reader(machine)

        async def whole() -> bytes:
            root = Hash32(bytes.fromhex((await machine.client.model())["root"]))
            versions = await reader.model_roots(root)
            return b"".join(await reader.shards(versions))

        return await patiently(whole)


def fates_of(found: Json) -> dict[str, str]:
    """What became of each learner's delta of a round."""
    return {str(d["sender"]): str(d["status"]) for d in found["delta_list"]}


def joined_in(found: Json, pupil: Pupil) -> bool:
    return pupil.address in {one["account"] for one in found["learners"]}


def began(found: Json, phase: str) -> Json | None:
    """The height and time at which a round came to a phase; None if it never did."""
    return next((p for p in found["phases"] if p["phase"] == phase and p["height"]), None)


def took_s(found: Json, phase: str) -> float:
    """Chain time that a round spent in a phase, 0 if it never came to it."""
    starts = [p for p in found["phases"] if p["height"] is not None]
    for now, after in pairwise(starts):
        if now["phase"] == phase:
            return float(after["time_ms"] - now["time_ms"]) / 1000
    return 0.0


def spans(found: Json) -> str:
    """Seconds of the phases that learners wait in."""
    names = ("open", "train", "screen_commit", "screen_reveal", "aggregate", "settle")
    return ", ".join(f"{name} {took_s(found, name):.1f}" for name in names) + " s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of odd round, and the network that it is played on."""

    play: Callable[[Stage], Awaitable[None]]
    pupils: int = 2
    guests: int = 0
    wired: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


async def perform(scenario: Scenario, seed: int, directory: Path, say: Say) -> list[Check]:
    """A network from its founding to its end, and what was found."""
    school = School(
        directory,
        0,
        seed,
        params={**LONG_WINDOWS, **scenario.params},
        training=scenario.training,
        pupils=scenario.pupils,
        guests=scenario.guests,
        wired=scenario.wired,
    )
    async with opened(school, say):
        stage = Stage(school, seed, say)
        await scenario.play(stage)
        await asyncio.gather(*(p.close() for p in school.pupils))
        checks = [*stage.book.checks(), await school.one_history(), *await school.judge()]
        running = [m for m in school.fleet.everyone if m.process is not None]
        codes = await school.fleet.stop()
        logs = {m.name: m.log() for m in running} | {p.name: p.told() for p in school.pupils}
        return checks + judge_logs(logs, codes)
