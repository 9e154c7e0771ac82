"""kill -9 at random moments, under load: nothing that was acknowledged is lost.

    python -m tests.e2e.kill_loop [--times 100] [--seed S] [--rate 6] [--keep] [--quiet]

A network of four validators on loopback, each a process with a home of its own. Wallets hand in
transfers, several in a call and one by one, with different fees, to any node, and leave those that
are acknowledged alone. Meanwhile a node is killed, or all of them, also while they start; each is
started again on its home, as it is. In the end every transfer that was acknowledged must be in the
chain once, or the node that acknowledged it must tell why not and another with its nonce is there;
all nodes have the same chain, `blyan-node doctor` finds nothing, and no log tells of damage.

Prints a line for each check. The seed decides who is killed, when, and what is sent where; the
machine decides the rest. Exit code 0: all held, 1: something did not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chain.errors import InputError
from tests.e2e.fleet import Failure, Fleet, Machine, deadline
from tests.e2e.kill_load import PAYERS, KillLoad, Sent
from tests.e2e.load import Told, all_of, payer
from tests.e2e.manifest import Manifest
from tests.e2e.verdict import Check, Seen, all_ok, judge, judge_logs, read, read_whole
from tests.kit.programs import call
from tests.kit.waiting import paused

NODES = 4
RATE = 6.0  # calls a second
ALL_AT_ONCE, IN_START = 0.12, 0.15  # of the kills: every node; again while it starts
SETTLES = 0.5  # of the kills: the chain goes on before the next one
DRAIN_S = 150.0  # from the last kill until all that was handed in is final
_DAMAGE = re.compile(
    r"^.*(?:(?<! 0 of them )damaged|left out|is missing or empty|has lost).*$", re.M
)
# Why something that was acknowledged may not be in the chain: another of its nonce is.
_REASONS = {"replaced", "bad_nonce", "expired", "outbid"}


@dataclass(slots=True)
class Outcome:
    seed: int
    directory: Path
    checks: list[Check] = field(default_factory=list)
    kills: int = 0
    in_start: int = 0
    of_all: int = 0
    acknowledged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of those that are not in the chain
    blocks: int = 0
    took_s: float = 0.0
    wait_ms: tuple[float, float] = (0.0, 0.0)  # for an acknowledgement: half, 99 of 100

    @property
    def ok(self) -> bool:
        return all_ok(self.checks)

    def lines(self) -> list[str]:
        return [
            *(f"  {check.line()}" for check in self.checks),
            f"  {self.kills} processes killed ({self.of_all} times all, {self.in_start} while "
            f"starting), {self.blocks} blocks, {self.acknowledged} transfers acknowledged, "
            f"of which not in the chain, and told why: {dict(self.reasons) or 0}",
            f"  acknowledged after {self.wait_ms[0]:.0f} ms (median), "
            f"{self.wait_ms[1]:.0f} ms (99 of 100)",
            f"{'ok' if self.ok else 'FAILED'} in {self.took_s:.0f} s, seed {self.seed}",
        ]


async def run(times: int, rate: float, outcome: Outcome, say: Callable[[str], None]) -> None:
    """One network, `times` moments of killing. Failure, or what was found in `outcome`."""
    chance = random.Random(f"kill loop {outcome.seed}")
    manifest = Manifest("kill-loop", "", validators=NODES)
    payers = [payer(i) for i in range(PAYERS)]
    fleet = Fleet(outcome.directory, manifest, payers, f"kill loop {outcome.seed}")
    try:
        await fleet.start()
        say("all nodes are up and linked")
        load = KillLoad(fleet, rate, chance)
        tasks = [
            asyncio.create_task(load.run()),
            asyncio.create_task(load.follow()),
            asyncio.create_task(fleet.watch()),
            asyncio.create_task(_kills(fleet, load, times, chance, outcome, say)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await all_of(tasks)
        await _judge(fleet, load, outcome, say)
        codes = await fleet.stop()
        logs = {m.name: m.log() for m in fleet.machines}
        outcome.checks += [*judge_logs(logs, codes), *_judge_homes(fleet, logs)]
    finally:
        await fleet.close()


async def _kills(
    fleet: Fleet,
    load: KillLoad,
    times: int,
    chance: random.Random,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    for number in range(times):
        await paused(chance.uniform(0.0, 2.0))
        victims = [chance.choice(fleet.machines)]
        if chance.random() < ALL_AT_ONCE:
            victims, outcome.of_all = fleet.machines, outcome.of_all + 1
        await _kill(victims, outcome)
        await paused(chance.uniform(0.0, 1.0))
        await asyncio.gather(*(m.start() for m in victims))
        if chance.random() < IN_START:
            await paused(chance.uniform(0.0, 3.0))
            await _kill(victims, outcome)
            outcome.in_start += 1
            await asyncio.gather(*(m.start() for m in victims))
        if chance.random() < SETTLES:
            goal = await fleet.highest(fleet.machines) + 2
            await asyncio.gather(*(fleet.wait_height(m, goal) for m in fleet.machines))
        say(f"{number + 1} of {times}: {len(load.acknowledged)} acknowledged, {load.finals} final")
    load.is_ending = True
    async with deadline(DRAIN_S, f"not all that was handed in is final {DRAIN_S:g} s later"):
        while not load.is_done:
            await load.look_after_dropped()
            await paused(0.5)


async def _kill(victims: Sequence[Machine], outcome: Outcome) -> None:
    for code in await asyncio.gather(*(m.end(signal.SIGKILL) for m in victims)):
        if code != -signal.SIGKILL:
            raise Failure(f"a node had ended by itself with exit code {code}")
    outcome.kills += len(victims)


# --- judging ------------------------------------------------------------------------------------


async def _judge(
    fleet: Fleet, load: KillLoad, outcome: Outcome, say: Callable[[str], None]
) -> None:
    height = await fleet.highest(fleet.machines)
    await asyncio.gather(*(fleet.wait_height(m, height) for m in fleet.machines))
    found = await asyncio.gather(*(read(m, height) for m in fleet.machines))
    seen = {m.name: s for m, s in zip(fleet.machines, found, strict=True)}
    blocks = await read_whole(fleet.machines, height)
    say(f"read {height} blocks from all nodes")
    final = {tx_id for row in found[0].rows for tx_id in row.ids}
    acknowledged = load.acknowledged
    there = {s.tx_id.hex(): (s.payer, s.nonce) for s in acknowledged if s.tx_id.hex() in final}
    told = Told()
    for at, row in enumerate(found[0].rows, 1):
        told.blocks[at, row.hash].add(fleet.machines[0].name)
        for tx_id in row.ids:
            told.txs[tx_id].add((fleet.machines[0].name, at))
    outcome.checks += judge(seen, blocks, told, there)
    outcome.checks.append(await _lost(fleet, load, acknowledged, final, outcome.reasons))
    outcome.checks.append(_each_nonce_once(seen, load))
    outcome.blocks, outcome.acknowledged = height, len(acknowledged)
    waits = sorted(load.waits_s) or [0.0]
    outcome.wait_ms = (waits[len(waits) // 2] * 1e3, waits[len(waits) * 99 // 100] * 1e3)


async def _lost(
    fleet: Fleet,
    load: KillLoad,
    acknowledged: list[Sent],
    final: set[str],
    reasons: Counter[str],
) -> Check:
    """What was acknowledged is final, or was dropped for a reason, and another has its nonce."""
    taken = {(s.payer, s.nonce) for s in load.all.values() if s.tx_id.hex() in final}
    wrong: list[str] = []
    for sent in acknowledged:
        if sent.tx_id.hex() in final:
            continue
        for index in sorted(set(sent.acknowledged)):
            machine, name = fleet.machines[index], sent.tx_id.hex()[:8]
            try:
                answer = await machine.ask(machine.client.tx(sent.tx_id))
            except InputError:
                answer = {"status": "unknown"}
            status = "no answer" if answer is None else str(answer.get("code") or answer["status"])
            reasons[status] += 1
            if status not in _REASONS or (sent.payer, sent.nonce) not in taken:
                wrong.append(f"{name} of payer {sent.payer}, nonce {sent.nonce}: {status}")
    return Check("nothing acknowledged is lost", tuple(wrong), len(acknowledged))


def _each_nonce_once(seen: dict[str, Seen], load: KillLoad) -> Check:
    """Of every payer's nonces one transfer each is in the chain."""
    wrong: list[str] = []
    by_id = {s.tx_id.hex(): s for s in load.all.values()}
    for name, node in seen.items():
        nonces = [
            (by_id[i].payer, by_id[i].nonce) for row in node.rows for i in row.ids if i in by_id
        ]
        due = {(p, n) for p in range(PAYERS) for n in range(load.nonces[p])}
        wrong += [f"{name}: payer {p}, nonce {n} lacks" for p, n in sorted(due - set(nonces))]
        if len(nonces) != len(set(nonces)):
            wrong.append(f"{name}: a nonce twice")
    return Check("each nonce is there once", tuple(wrong), sum(load.nonces))


def _judge_homes(fleet: Fleet, logs: dict[str, str]) -> list[Check]:
    damage = [
        f"{name}: {found.group()[:200]}" for name in logs for found in _DAMAGE.finditer(logs[name])
    ]
    ill: list[str] = []
    for machine in fleet.machines:
        result = call("blyan-node", "doctor", "--home", machine.founded.home.path)
        if result.returncode:
            ill.append(f"{machine.name}: {result.stdout}{result.stderr}")
    return [
        Check("no log tells of damage", tuple(damage), len(logs)),
        Check("the doctor finds every home well", tuple(ill), len(fleet.machines)),
    ]


# --- the program --------------------------------------------------------------------------------


def kill_loop(
    times: int, seed: int, directory: Path, say: Callable[[str], None], rate: float = RATE
) -> Outcome:
    outcome = Outcome(seed, directory)
    began = time.monotonic()
    try:
        asyncio.run(run(times, rate, outcome, say))
    except Failure as failure:
        outcome.checks.append(Check("the run", (str(failure),), 1))
    outcome.took_s = time.monotonic() - began
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.kill_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=int, default=100, metavar="N", help="moments (default 100)")
    parser.add_argument("--seed", type=int, metavar="S", help="default: another each time")
    parser.add_argument("--rate", type=float, default=RATE, help=f"calls a second ({RATE:g})")
    parser.add_argument("--keep", action="store_true", help="keep homes and logs")
    parser.add_argument("--quiet", action="store_true", help="only the result")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="blyan-kill-loop-"))

    def say(line: str) -> None:
        if not options.quiet:
            print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    outcome = kill_loop(options.times, seed, directory, say, options.rate)
    print("\n".join(outcome.lines()), flush=True)
    if outcome.ok and not options.keep:
        shutil.rmtree(directory)
    else:
        print(f"  homes and logs: {directory}; again: --times {options.times} --seed {seed}")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
