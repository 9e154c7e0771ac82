"""A network that learns while some of its learners lie, unattended.

    python -m tests.e2e.learning_net [--learners 7] [--liars 2] [--rounds 20] [--seed S]
                                     [--steps 20] [--keep] [--quiet]

Four validators on loopback, each a process with a home of its own, all proofs on. Learners run in
this process as `blyan train` runs them, over the API of one node each, and share a worker. A liar
trains as the others do, and sends something else: its delta's signs turned and ten times as long,
noise as long as the delta, noise that ruins the model, bytes that are no payload, nothing after
its commit, or another's commitment. The seed says which, anew each round.

Prints a line a round: holdout loss, and what became of the liars' deltas. Those that were merged
show their mean weight beside the honest ones'. Afterwards as many rounds of the honest learners
alone are simulated, without a network. Exit code 0 if the loss has fallen, and as it does there,
honest deltas were merged, no lie that could be seen was, all nodes have one state and one model,
and nobody was slashed or jailed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from chain.errors import BlyanError
from node.client import Json
from node.learner import Learner
from node.worker.client import Worker
from tests.e2e import simulated
from tests.e2e.fleet import Failure
from tests.e2e.school import Quiet, Say, School, nats, opened
from tests.e2e.verdict import Check, all_ok, judge_logs
from tests.kit.lying_learner import Lie, LyingLearner

ROUND_S = 400.0  # the longest round: all its windows, on a machine that does other things
# Noise as small as a delta is no harm that a jury must see; it counts for little when it is merged.
MAY_PASS = (Lie.NOISE,)
LEAST_FALL = 0.3  # nats a byte, of one round; any more rounds must do better still
# Two curves from the same beginning with other batches: far apart while the loss falls fast.
EARLY, NEAR_EARLY, NEAR = 5, 0.5, 0.08  # rounds; nats a byte in them, and after them


@dataclass(slots=True)
class Outcome:
    seed: int
    directory: Path
    checks: list[Check] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # before the first round, after each
    simulated: list[float] = field(default_factory=list)  # of honest learners alone
    fates: list[str] = field(default_factory=list)  # of lies, for the summary
    rounds_s: list[float] = field(default_factory=list)
    honest_weights: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        return all_ok(self.checks)

    def lines(self) -> list[str]:
        rounds = sorted(self.rounds_s) or [0.0]
        return [
            *(f"  {check.line()}" for check in self.checks),
            f"  holdout loss {_curve(self.losses)} nats a byte",
            f"  simulated    {_curve(self.simulated)}",
            f"  a round took {rounds[len(rounds) // 2]:.1f} s (median), {rounds[-1]:.1f} s at most",
            f"{'ok' if self.ok else 'FAILED'} in {self.took_s:.0f} s, seed {self.seed}",
        ]


def _curve(losses: Sequence[float]) -> str:
    return " → ".join(f"{loss:.4f}" for loss in losses)


class LearningNet:
    def __init__(self, school: School, learners: int, liars: int, outcome: Outcome) -> None:
        self._school, self._outcome = school, outcome
        self._honest, self._count = learners - liars, learners
        self._worker = Worker(nice=0)
        self._liars: dict[str, LyingLearner] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: list[str] = []  # honest deltas that were not merged
        self._passed: list[str] = []  # lies that were merged and must not be
        self._told = 0
        self._merged = 0

    async def run(self, rounds: int, say: Say) -> None:
        for index in range(self._count):
            self._tasks.append(asyncio.create_task(self._learn(index, await self._learner(index))))
        watching = asyncio.create_task(self._follow(rounds, say))
        try:
            waiting = {watching, *self._tasks}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (watching, *self._tasks):
                task.cancel()
            await asyncio.gather(watching, *self._tasks, return_exceptions=True)
            await self._worker.close()

    async def _learner(self, index: int) -> Learner:
        school = self._school
        machine = school.machines[index % len(school.machines)]
        reader = await school.reader(machine)
        parts = (reader, school.keys(index), school.files(index), self._worker, Quiet())
        if index < self._honest:
            return Learner(*parts)
        chance = random.Random(f"liar {index} of {self._outcome.seed}")
        order = chance.sample(list(Lie), len(Lie))  # each kind before any comes again
        liar = LyingLearner(*parts, lambda number: order[number % len(order)])
        self._liars[school.address(index)] = liar
        return liar

    async def _learn(self, index: int, learner: Learner) -> None:
        while True:
            try:
                await learner.train_round()
            except BlyanError as error:
                raise Failure(f"learner {index} has given up: {error.code}: {error}") from error

    async def _follow(self, rounds: int, say: Say) -> None:
        for number in range(rounds):
            began = time.monotonic()
            found = await self._school.finished(number, ROUND_S)
            self._outcome.rounds_s.append(time.monotonic() - began)
            await self._note(found, say)
        self._judge()

    async def _note(self, found: Json, say: Say) -> None:
        outcome, number = self._outcome, int(found["number"])
        before, after = nats(found["loss_before"]), nats(found["loss_after"])
        outcome.losses += [after] if outcome.losses else [before, after]
        weights = await self._school.weights(found)
        honest, fates = [], []
        for delta in found["delta_list"]:
            liar = self._liars.get(delta["sender"])
            weight = weights.get(delta["id"], 0.0)
            merged = delta["status"] == "merged"
            if liar is None:
                honest.append(weight)
                self._merged += merged
                if not merged:
                    self._lost.append(f"round {number}: {delta['id'][:8]} {delta['status']}")
                continue
            lie = liar.lies.get(number, liar.lies[max(liar.lies)])
            self._told += 1
            fate = f"{lie.value}: {delta['status']}" + (f", weight {weight:.3f}" if merged else "")
            fates.append(fate)
            if merged and lie not in MAY_PASS:
                self._passed.append(f"round {number}: {fate}")
        outcome.fates += fates
        outcome.honest_weights += honest
        usual = mean(honest) if honest else 0.0
        say(
            f"round {number} ({outcome.rounds_s[-1]:.0f} s): {before:.4f} → {after:.4f}; "
            f"{len(honest)} honest of weight {usual:.3f}; {'; '.join(fates) or 'no lie'}"
        )

    def _judge(self) -> None:
        outcome, losses = self._outcome, self._outcome.losses
        fell = losses[-1] < losses[0] - LEAST_FALL and 0.0 not in losses
        told = len(outcome.losses) - 1
        outcome.checks += [
            Check("the loss falls", () if fell else (f"{losses}",), told),
            Check("honest deltas are merged", tuple(self._lost), self._merged),
            Check("no lie that can be seen is merged", tuple(self._passed), self._told),
        ]


async def run(
    learners: int, liars: int, rounds: int, steps: int, outcome: Outcome, say: Say
) -> None:
    segment = max(1, steps // 4)
    training = {"steps": segment * max(1, steps // segment), "segment_steps": segment}
    school = School(outcome.directory, learners, outcome.seed, training=training)
    async with opened(school, say):
        await LearningNet(school, learners, liars, outcome).run(rounds, say)
        outcome.checks += await school.judge()
        specs, data = await school.lesson(0)
        codes = await school.fleet.stop()
        outcome.checks += judge_logs({m.name: m.log() for m in school.machines}, codes)
    say(f"simulating {rounds} rounds of {learners - liars} honest learners")
    outcome.simulated = simulated.losses(specs, data, learners - liars, rounds)
    gaps = [abs(a - b) for a, b in zip(outcome.losses, outcome.simulated, strict=True)]
    far = [
        f"{gap:.3f} nats after round {number - 1}"
        for number, gap in enumerate(gaps)
        if gap > (NEAR_EARLY if number <= EARLY else NEAR)
    ]
    outcome.checks.append(Check("the loss falls as simulated", tuple(far), rounds))


def learning_net(
    learners: int, liars: int, rounds: int, seed: int, directory: Path, say: Say, steps: int = 20
) -> Outcome:
    outcome = Outcome(seed, directory)
    began = time.monotonic()
    try:
        asyncio.run(run(learners, liars, rounds, steps, outcome, say))
    except Failure as failure:
        outcome.checks.append(Check("the run", (str(failure),), 1))
    outcome.took_s = time.monotonic() - began
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.learning_net",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--learners", type=int, default=7, metavar="N", help="all (default 7)")
    parser.add_argument("--liars", type=int, default=2, metavar="N", help="of them (default 2)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="(default 20)")
    parser.add_argument("--steps", type=int, default=20, metavar="H", help="local steps (20)")
    parser.add_argument("--seed", type=int, metavar="S", help="default: another each time")
    parser.add_argument("--keep", action="store_true", help="keep homes and logs")
    parser.add_argument("--quiet", action="store_true", help="only the result")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="blyan-learning-net-"))

    def say(line: str) -> None:
        if not options.quiet:
            print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    outcome = learning_net(
        options.learners, options.liars, options.rounds, seed, directory, say, options.steps
    )
    print("\n".join(outcome.lines()), flush=True)
    if outcome.ok and not options.keep:
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
    else:
        print(f"  homes and logs: {directory}; again: --seed {seed}")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
