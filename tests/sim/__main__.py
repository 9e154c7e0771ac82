"""`python -m tests.sim --seeds N`: run seeds; a failure prints the line that replays it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tests.sim import coverage, named
from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, Verdict, simulate

Result = TypeVar("Result")

MOST_FAILURES = 10  # then the rest would say nothing new
CHUNK = 4  # seeds that one process takes at a time


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--seed", type=int, help="run this one seed, and print what happened")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--counts", action="store_true", help="print all that was counted")
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="print how often each rule, fault and lie was reached; exit 1 if one never was",
    )
    parser.add_argument(
        "--scenario", choices=[*named.SCENARIOS, "all"], help="run a named scenario instead"
    )
    args = parser.parse_args(arguments)
    if args.scenario is not None:
        return scenarios(args.scenario)
    if args.seed is not None:
        return one(args.seed)
    return many(range(args.first, args.first + args.seeds), args)


def scenarios(wanted: str) -> int:
    failed = 0
    for name in named.SCENARIOS if wanted == "all" else (wanted,):
        begun = time.monotonic()
        try:
            print(f"{name}: {named.SCENARIOS[name]()} ({time.monotonic() - begun:.1f} s)")
        except (Exception, Violation) as error:
            failed += 1
            print(f"FAILED python -m tests.sim --scenario {name}  # {error}", flush=True)
    return 1 if failed else 0


def one(seed: int) -> int:
    try:
        verdict = simulate(Plan(seed))
    except (Exception, Violation) as error:
        print(f"FAILED python -m tests.sim --seed {seed}  # {error}")
        traceback.print_exc()
        return 1
    for what, count in sorted(verdict.counts.items()):
        print(f"{count:11,d}  {what}")
    print(f"heights {verdict.heights}, {verdict.seconds} s simulated, {verdict.trace}")
    return 0


def many(seeds: range, args: argparse.Namespace) -> int:
    total: Counter[str] = Counter()
    begun, failed = time.monotonic(), 0
    for seed, found in outcomes(seeds, args.jobs, outcome):
        if isinstance(found, str):
            failed += 1
            print(f"FAILED python -m tests.sim --seed {seed}  # {found}", flush=True)
            if failed == MOST_FAILURES:
                print("too many failures: the rest is not run", file=sys.stderr)
                break
            continue
        total += found.counts
    if args.counts:
        for what, count in sorted(total.items()):
            print(f"{count:11,d}  {what}")
    missing: list[str] = []
    if args.coverage:
        table, missing = coverage.report(total)
        print(table)
        for name in missing:
            print(f"NEVER REACHED {name}")
    print(f"{len(seeds)} seeds, {failed} failed, {time.monotonic() - begun:.1f} s", file=sys.stderr)
    return 1 if failed or missing else 0


def outcomes(
    seeds: Sequence[int], jobs: int, run: Callable[[int], Result]
) -> Iterator[tuple[int, Result]]:
    if jobs == 1:
        yield from ((seed, run(seed)) for seed in seeds)
        return
    with ProcessPoolExecutor(
        jobs, initializer=logging.disable, initargs=(logging.WARNING,)
    ) as pool:
        try:
            yield from zip(seeds, pool.map(run, seeds, chunksize=CHUNK), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def outcome(seed: int) -> Verdict | str:
    """What a seed came to, or what went wrong: both can leave a process."""
    try:
        return simulate(Plan(seed))
    except (Exception, Violation) as error:
        return str(error) or type(error).__name__


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # logs that are cut
    sys.exit(main())
