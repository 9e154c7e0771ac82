"""kill -9 in every phase of a learning round: it costs no more than the round's own deadlines.

    python -m tests.e2e.kill_phases [--seed S] [--phases train,reveal,…] [--victims primary,…]
                                    [--keep] [--quiet]

Four validators on loopback and two learners (`blyan train`), each a process with a home of its own.
In each phase, one round after the other, a process is killed: the primary of the first tile, its
secondary, or a learner. The seed says whether it is started again at once, or only when the round
is over. Each time:

- the round ends, and each of its phases no later than the first block after its deadline;
- the tiles of a primary that is gone are aggregated by the next rank, or by the first ranks that
  the next epoch draws if it begins before they are done;
- a learner that is killed before its reveal and started again at once is in the round all the same;
- the next round ends, and merges what both learners have learnt. Where the victim came back only
  after its round, a learner beside it may be late for the next one: then the one after that. (Now
  and then twenty steps of one learner alone make this model worse by more than the guard allows,
  and that round is rolled back.)

In the end all nodes have one state and one model, and nobody was slashed. A phase may be over
before its victim is dead: the line then says in which it died. Exit code 0: all held.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chain.address import format_address
from chain.execute import epoch_of
from node.client import Json
from tests.e2e.fleet import Failure, Machine
from tests.e2e.school import LONG_WINDOWS, PHASES, Pupil, Say, School, opened
from tests.e2e.verdict import Check, all_ok

VICTIMS = ("primary", "secondary", "learner")
LEARNERS = 2
# Until here a learner that returns at once can still reveal.
IN_TIME = ("open", "seed", "train", "reveal")


@dataclass(slots=True)
class Outcome:
    seed: int
    directory: Path
    checks: list[Check] = field(default_factory=list)
    kills: int = 0
    rounds_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        return all_ok(self.checks)

    def lines(self) -> list[str]:
        return [
            *(f"  {check.line()}" for check in self.checks),
            f"  {self.kills} processes killed; the longest round with a kill took "
            f"{max(self.rounds_s, default=0.0):.0f} s",
            f"{'ok' if self.ok else 'FAILED'} in {self.took_s:.0f} s, seed {self.seed}",
        ]


class KillPhases:
    def __init__(self, school: School, outcome: Outcome, say: Say) -> None:
        self._school, self._outcome, self._say = school, outcome, say
        self._chance = random.Random(f"kill phases {outcome.seed}")
        self._late: list[str] = []
        self._lost: list[str] = []
        self._no_failover: list[str] = []
        self._poor: list[str] = []
        self._looked: dict[str, int] = {"late": 0, "lost": 0, "failover": 0, "next": 0}

    async def run(self, phases: Sequence[str], victims: Sequence[str]) -> None:
        for phase in phases:
            for victim in victims:
                returns = self._chance.random() < 0.5
                await self._one(phase, victim, returns)
        seen = self._looked
        self._outcome.checks += [
            Check("phases end by their deadlines", tuple(self._late), seen["late"]),
            Check("the next round merges all deltas", tuple(self._poor), seen["next"]),
        ]
        if seen["failover"]:
            name = "the next rank takes over"
            self._outcome.checks.append(Check(name, tuple(self._no_failover), seen["failover"]))
        if seen["lost"]:
            name = "a learner that returns in time is in its round"
            self._outcome.checks.append(Check(name, tuple(self._lost), seen["lost"]))

    async def _one(self, phase: str, victim: str, returns: bool) -> None:
        reached = await self._school.reach(phase)
        number, current = int(reached["number"]), str(reached["phase"])
        found, who, epoch = await self._victim(victim)
        began = time.monotonic()
        await self._kill(found)
        self._outcome.kills += 1
        what = f"{victim} killed in {current} of round {number}"
        self._say(what + (", started again" if returns else ", gone until the round's end"))
        if returns:
            await found.start()
        shown = await self._school.finished(number, self._school.left_s(current))
        took = time.monotonic() - began
        self._outcome.rounds_s.append(took)
        await self._judge(shown, what)
        statuses = {d["sender"]: d["status"] for d in shown["delta_list"]}
        if isinstance(found, Pupil) and returns and current in IN_TIME:
            self._looked["lost"] += 1
            if statuses.get(who) != "merged":
                self._lost.append(f"{what}: {statuses.get(who, 'no delta')}: {found.tail()}")
        if isinstance(found, Machine) and not returns:
            self._failover(shown, who, epoch, what)
        if not returns:
            await found.start()
        fates = await self._after(number + 1, what)
        alone = not returns and 0 < len(fates) < LEARNERS
        if alone and set(fates) <= {"merged", "rolled_back"}:
            fates = await self._after(number + 2, what)
        if fates != ["merged"] * LEARNERS:
            self._poor.append(f"after {what}: {fates}")
        self._say(f"  over after {took:.0f} s: {sorted(statuses.values())}; then: {fates}")

    async def _after(self, number: int, what: str) -> list[str]:
        """What became of the deltas of a round after a kill."""
        found = await self._school.finished(number, self._school.left_s("open"))
        await self._judge(found, f"after {what}")
        self._looked["next"] += 1
        if not found["loss_after"]:
            self._poor.append(f"after {what}: no loss of the model of round {number}")
        return [str(d["status"]) for d in found["delta_list"]]

    async def _victim(self, kind: str) -> tuple[Machine | Pupil, str, int]:
        """Whom to kill, its address, and the epoch in which it is what it is called."""
        elected = await self._school.ask(lambda c: c.election(0, 0))
        epoch = int(elected["epoch"])
        if kind == "learner":
            pupil = self._chance.choice(self._school.pupils)
            return pupil, pupil.address, epoch
        who = str(elected["ranks"][0 if kind == "primary" else 1]["account"])
        for machine in self._school.machines:
            if format_address(machine.founded.keys.account.public) == who:
                return machine, who, epoch
        raise Failure(f"the tile's {kind} {who} is none of the nodes")

    async def _kill(self, victim: Machine | Pupil) -> None:
        if isinstance(victim, Pupil):
            await victim.kill()
        else:
            await victim.end(signal.SIGKILL)

    # --- judging ---------------------------------------------------------------------------------

    async def _judge(self, found: Json, what: str) -> None:
        """No phase went on beyond the first block after its deadline."""
        late, looked = await self._school.late(found)
        self._late += [f"{what}: {one}" for one in late]
        self._looked["late"] += looked

    def _failover(self, found: Json, who: str, epoch: int, what: str) -> None:
        """What the one that is gone had to aggregate was done by another; or it had done it. Where
        the next epoch began first, that may be another first rank."""
        made = [u for u in found["update_list"] if u["provisional"]]
        genesis = self._school.fleet.genesis
        if any(epoch_of(genesis, u["height"]) != epoch for u in made):
            return
        self._looked["failover"] += 1
        own = any(u["primary"] == who for u in made)
        ranks = {int(u["rank"]) for u in made}
        if found["accepted"] and not own and max(ranks, default=0) == 0:
            self._no_failover.append(f"{what}: updates of ranks {sorted(ranks)}")


# --- the program ---------------------------------------------------------------------------------


async def run(phases: Sequence[str], victims: Sequence[str], outcome: Outcome, say: Say) -> None:
    school = School(outcome.directory, 0, outcome.seed, params=LONG_WINDOWS, pupils=LEARNERS)
    async with opened(school, say):
        for pupil in school.pupils:
            await pupil.start()
        # A learner that has never reached its node ends with an error, as it should.
        await school.finished(0, school.left_s("open"))
        await KillPhases(school, outcome, say).run(phases, victims)
        outcome.checks += await school.judge()


def kill_phases(
    phases: Sequence[str], victims: Sequence[str], seed: int, directory: Path, say: Say
) -> Outcome:
    outcome = Outcome(seed, directory)
    began = time.monotonic()
    try:
        asyncio.run(run(phases, victims, outcome, say))
    except Failure as failure:
        outcome.checks.append(Check("the run", (str(failure),), 1))
    outcome.took_s = time.monotonic() - began
    return outcome


def _names(of: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(of):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(of)}")
        return found

    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.kill_phases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options: dict[str, Any] = {"metavar": "A,B"}
    parser.add_argument("--phases", type=_names(PHASES), default=list(PHASES), **options)
    parser.add_argument("--victims", type=_names(VICTIMS), default=list(VICTIMS), **options)
    parser.add_argument("--seed", type=int, metavar="S", help="default: another each time")
    parser.add_argument("--keep", action="store_true", help="keep homes and logs")
    parser.add_argument("--quiet", action="store_true", help="only the result")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    directory = Path(tempfile.mkdtemp(prefix="blyan-kill-phases-"))

    def say(line: str) -> None:
        if not given.quiet:
            print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    outcome = kill_phases(given.phases, given.victims, seed, directory, say)
    print("\n".join(outcome.lines()), flush=True)
    if outcome.ok and not given.keep:
        shutil.rmtree(directory)
    else:
        print(f"  homes and logs: {directory}; again: --seed {seed}")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
