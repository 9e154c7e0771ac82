"""Networks of real processes under perturbation, as manifests describe it, checked from outside.

    python -m tests.e2e.runner [--manifest NAME]... [--times N] [--seed S] [--keep] [--list]

Each run founds a network of validators on loopback, every one a process with a home of its own,
puts in transfers at a steady rate, does what the manifest says (kill, restart, pause, disconnect,
partition, slow, clock), waits until all nodes are level again, and then asks each of them for its
whole chain. What any node ever told to be final must be there on all. The manifests stand in
tests/e2e/manifests/; what is checked, in tests/e2e/verdict.py.

Prints a line for each check. After a failure the homes and logs stay, and a line says how to run
the same again: the seed decides who is hit, when, and what is sent where; the machine decides the
rest. Exit code 0: all held, 1: something did not, 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chain.errors import BlyanError
from tests.e2e import manifest as manifests
from tests.e2e.fleet import Failure, Fleet, deadline
from tests.e2e.load import PAYERS, Load, all_of, payer
from tests.e2e.manifest import Manifest, ManifestError
from tests.e2e.perturb import Perturber
from tests.e2e.verdict import Check, all_ok, judge, judge_logs, read, read_whole
from tests.kit.waiting import paused

DRAIN_S = 60.0  # from the end of the last perturbation until every transfer is final
QUIET_S = 1.0  # of load before the end, when everything has healed
MOST_SEED = 10**6


@dataclass(slots=True)
class Result:
    name: str
    seed: int
    directory: Path
    checks: list[Check] = field(default_factory=list)
    error: str = ""
    took_s: float = 0.0
    blocks: int = 0
    transfers: int = 0

    @property
    def ok(self) -> bool:
        return not self.error and all_ok(self.checks)

    def lines(self) -> list[str]:
        said = [f"  {check.line()}" for check in self.checks]
        if self.error:
            said.append(f"  WRONG {self.error}")
        if not self.ok:
            said.append(f"  homes and logs: {self.directory}")
            again = f"python -m tests.e2e.runner --manifest {self.name} --seed {self.seed}"
            said.append(f"  again: {again}")
        word = "ok" if self.ok else "FAILED"
        figures = f"{self.blocks} blocks, {self.transfers} transfers"
        said.append(f"{self.name}: {word} in {self.took_s:.1f} s, {figures}, seed {self.seed}")
        return said


def run(manifest: Manifest, seed: int, directory: Path, say: Callable[[str], None]) -> Result:
    """One network from its founding to its end. What goes wrong stands in the result."""
    result = Result(manifest.name, seed, directory)
    began = time.monotonic()
    try:
        asyncio.run(_run(manifest, result, say))
    except* (Failure, BlyanError, OSError) as group:
        result.error = "; ".join(f"{type(e).__name__}: {e}" for e in _each(group))
    except* Exception as group:
        result.error = "".join(traceback.format_exception(group))
    result.took_s = time.monotonic() - began
    return result


def _each(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in _each(inner)]
    return [error]


async def _run(manifest: Manifest, result: Result, say: Callable[[str], None]) -> None:
    seed = f"{manifest.name} {result.seed}"
    fleet = Fleet(result.directory, manifest, [payer(i) for i in range(PAYERS)], seed)
    try:
        await fleet.start()
        say(f"{manifest.validators} nodes are up and linked")
        load = Load(fleet, manifest.rate, seed)
        perturber = Perturber(fleet, manifest, load.told, seed, say)
        await _under_load(fleet, load, perturber, say)
        say("every transfer is final")
        height = max(load.told.highest, await fleet.highest(fleet.machines))
        await _level(fleet, height)
        result.blocks, result.transfers = height, len(load.sent)
        found = await asyncio.gather(*(read(m, height) for m in fleet.machines))
        seen = {m.name: s for m, s in zip(fleet.machines, found, strict=True)}
        blocks = await read_whole(fleet.machines, height)
        result.checks += judge(seen, blocks, load.told, load.sent)
        say("judged")
        codes = await fleet.stop()
        result.checks += judge_logs({m.name: m.log() for m in fleet.machines}, codes)
    finally:
        await fleet.close()


async def _under_load(
    fleet: Fleet, load: Load, perturber: Perturber, say: Callable[[str], None]
) -> None:
    """Perturb, heal, drain; nothing more is told afterwards."""
    watching = [asyncio.create_task(load.listen(m)) for m in fleet.machines]
    watching.append(asyncio.create_task(fleet.watch()))
    loading = asyncio.create_task(load.run())
    acting = asyncio.create_task(_act(fleet, load, perturber, say))
    try:
        pending = {acting, loading, *watching}
        while acting in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a load or a node that has ended early is a failure
    finally:
        await all_of([acting, loading, *watching])


async def _act(fleet: Fleet, load: Load, perturber: Perturber, say: Callable[[str], None]) -> None:
    await perturber.run()
    await _level(fleet, await fleet.highest(fleet.machines) + 1)
    say("all nodes are level again")
    await asyncio.gather(*(fleet.wait_connected(m) for m in fleet.machines))
    say("all nodes are linked again")
    await paused(QUIET_S)
    load.is_ending = True
    async with deadline(DRAIN_S, f"what was put in is not all final {DRAIN_S:g} s later"):
        while load.waiting:
            await load.told.news.wait()


async def _level(fleet: Fleet, height: int) -> None:
    await asyncio.gather(*(fleet.wait_height(m, height) for m in fleet.machines))


# --- the program --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        chosen = [manifests.load(name) for name in options.manifest or manifests.names()]
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{m.name:20} {m.summary}" for m in chosen))
        return 0
    first = random.SystemRandom().randrange(MOST_SEED) if options.seed is None else options.seed
    failed, count, began = 0, 0, time.monotonic()
    for number in range(options.times):
        for manifest in chosen:
            result = _in_a_directory(manifest, first + number, options)
            print("\n".join(result.lines()), flush=True)
            failed, count = failed + (not result.ok), count + 1
    took_s = time.monotonic() - began
    print(f"{count - failed} of {count} runs held, in {took_s:.0f} s; seed {first}")
    return 1 if failed else 0


def _in_a_directory(manifest: Manifest, seed: int, options: argparse.Namespace) -> Result:
    directory = Path(tempfile.mkdtemp(prefix=f"blyan-{manifest.name}-", dir=options.dir))

    def say(line: str) -> None:
        if not options.quiet:
            print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    print(f"{manifest.name}: {manifest.summary}", flush=True)
    result = run(manifest, seed, directory, say)
    if result.ok and not options.keep:
        shutil.rmtree(directory)
    elif result.ok:
        print(f"  homes and logs: {directory}")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.runner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--manifest", action="append", metavar="NAME", help="this one; repeatable [all]")
    add("--times", type=int, default=1, metavar="N", help="run the list so often [1]")
    add("--seed", type=int, metavar="S", help="of the first time; the next has S + 1 [drawn]")
    add("--keep", action="store_true", help="keep homes and logs of good runs, too")
    add("--dir", type=Path, help="where homes are made [the system's place for such]")
    add("--quiet", action="store_true", help="say nothing of what is being done")
    add("--list", action="store_true", help="list the manifests and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
