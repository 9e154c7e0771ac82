"""`python -m tests.sim --seeds N`: run seeds; a failure prints the line that replays it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--seed", type=int, help="run this one seed, and print what happened")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--counts", action="store_true", help="print what was exercised")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # logs that are cut
    one = args.seed is not None
    seeds = [args.seed] if one else range(args.first, args.first + args.seeds)
    total: Counter[str] = Counter()
    begun, failed = time.monotonic(), 0
    for seed in seeds:
        try:
            verdict = simulate(Plan(seed))
        except (Exception, Violation) as error:
            failed += 1
            print(f"FAILED python -m tests.sim --seed {seed}  # {error}", flush=True)
            if one:
                traceback.print_exc()
            continue
        total += verdict.counts
        if one:
            print(f"heights {verdict.heights}, {verdict.seconds} s simulated, {verdict.trace}")
    if one or args.counts:
        for what, count in sorted(total.items()):
            print(f"{count:9d}  {what}")
    print(f"{len(seeds)} seeds, {failed} failed, {time.monotonic() - begun:.1f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
