"""Rounds that are not as rounds are: a part of the network or of its learners is away, late or
slow, or deltas are of another kind.

    python -m tests.e2e.odd_rounds [--seed S] [--only NAME,…] [--keep] [--quiet]

Each scenario has a network of its own: four validators on loopback and learners (`blyan train`),
each a process with a home of its own.

partition  the validators are cut 2|2 in TRAIN and in SCREEN_COMMIT: nothing becomes final, and
           after the heal the round ends within its deadlines and merges what was committed. Then
           3|1 for a round: three go on, and the fourth has the same model bytes afterwards.
joiner     a learner that begins in TRAIN is in the next round, and merged; a node that enters in
           AGGREGATE has the same model, and serves a learner.
slow       a learner whose worker is ten times as slow as the others' holds up nobody, is told of
           each round that it has lost, and is merged when it is fast again; once it has merit, it
           is waited for to the deadline and loses it.
few        of three that have declared one commits, then none: both rounds end, and rewards, merit
           and model are as the specification says.
int8       rounds whose training rule has this coding: trained, screened, replayed, merged, and
lowrank    the next one begins at the result.
rebase     a delta of an old base is refused, rebased and judged as one that proves nothing; one
           that harms is not merged.

In the end of each all nodes have the same blocks, one state and one model, nobody was slashed, and
no program has printed a traceback. Exit code 0: all held.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e import odd_cases, odd_deltas
from tests.e2e.fleet import Failure
from tests.e2e.odd_stage import Scenario, Stage, perform
from tests.e2e.school import Say
from tests.e2e.verdict import Check, all_ok

SCENARIOS: Mapping[str, Scenario] = {
    "partition": Scenario(odd_cases.partition, wired=True),
    "joiner": Scenario(
        odd_cases.joiner,
        pupils=3,
        guests=1,
        params={"aggregate": {"blocks": 8, "ms": 40_000}},  # a node must have the time to start
    ),
    "slow": Scenario(
        odd_cases.slow,
        pupils=3,
        params={"train": {"blocks": 20, "ms": 120_000}, "trusted_merit": 1},
        training={"steps": 60, "segment_steps": 15},  # what a tenth of a machine takes long for
    ),
    "few": Scenario(odd_cases.few, pupils=3, params={"train": {"blocks": 15, "ms": 30_000}}),
    "int8": Scenario(odd_deltas.int8, training={"codec": "int8"}),
    "lowrank": Scenario(odd_deltas.lowrank, training={"codec": "lowrank", "rank": 4}),
    "rebase": Scenario(odd_deltas.rebase),
}


async def short(stage: Stage) -> None:
    """For the suite: a cut in TRAIN, in a network whose deltas are coded as `int8`."""
    await odd_deltas.judged(stage, await odd_cases.halves(stage), "int8")


SHORT = Scenario(
    short,
    wired=True,
    params={"join": {"blocks": 2, "ms": 4_000}},
    training={"codec": "int8", "steps": 8, "segment_steps": 2},
)


def odd_round(scenario: Scenario, seed: int, directory: Path, say: Say) -> list[Check]:
    """What was found in one scenario; a run that came to no end is a check that failed."""
    try:
        return asyncio.run(perform(scenario, seed, directory, say))
    except Failure as failure:
        return [Check("the run", (str(failure),), 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.odd_rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_names, default=list(SCENARIOS), metavar="NAME,…")
    parser.add_argument("--seed", type=int, metavar="S", help="default: another each time")
    parser.add_argument("--keep", action="store_true", help="keep homes and logs")
    parser.add_argument("--quiet", action="store_true", help="only the result")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed

    def say(line: str) -> None:
        if not given.quiet:
            print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    held = [_one(name, seed, say, keep=given.keep) for name in given.only]
    print(f"{sum(held)} of {len(held)} scenarios held; seed {seed}")
    return 0 if all(held) else 1


def _one(name: str, seed: int, say: Say, *, keep: bool) -> bool:
    directory = Path(tempfile.mkdtemp(prefix=f"blyan-odd-{name}-"))
    print(f"{name}:", flush=True)
    began = time.monotonic()
    checks = odd_round(SCENARIOS[name], seed, directory, say)
    ok = all_ok(checks)
    for check in checks:
        print(f"  {check.line()}")
    took_s = time.monotonic() - began
    print(f"{name}: {'ok' if ok else 'FAILED'} in {took_s:.0f} s, seed {seed}", flush=True)
    if ok and not keep:
        shutil.rmtree(directory)
    else:
        print(f"  homes and logs: {directory}; again: --only {name} --seed {seed}", flush=True)
    return ok


def _names(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [name for name in found if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SCENARIOS)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
