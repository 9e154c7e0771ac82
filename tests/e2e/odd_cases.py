"""Rounds in which a part of the network, or of its learners, is away (`tests.e2e.odd_rounds`)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from chain.address import format_address
from node.client import Json
from node.founding import template
from tests.e2e.fleet import Failure, Machine, deadline
from tests.e2e.odd_stage import MERGED, Stage, began, fates_of, joined_in, took_s
from tests.e2e.school import Pupil
from tests.e2e.wires import Fault
from tests.kit.waiting import paused

CUT_S = 6.0
STILL_S = 1.0  # what was under way when the quorum broke is final by then, or only later
HEAL_SLACK_S = 30.0  # for links to be made again, on a machine that does other things
TICK_S = 0.02
TRIES = 6  # rounds
SLOW_SHARE = 0.1  # of the time that a slow learner's worker runs
PERIOD_S = 0.1
TRAINS = 0.1  # of a core: a worker that uses more has work
SMOOTH = 0.05  # of a new reading
LOST_ROUNDS = 2
NEWCOMER_PATIENCE = 4  # times what the others took, or a part of the window: the protocol's
A_BLOCK_S = 3.0  # by which a phase may be longer than its time
LOST = "the round went on without us"

# --- a network in two parts -----------------------------------------------------------------------


async def partition(stage: Stage) -> None:
    """The validators are cut 2|2 in TRAIN and in SCREEN_COMMIT, then 3|1 for a round."""
    one, other = stage.pupils
    other.sit(stage.school.machines[2])
    await stage.start(one, other)
    last = await stage.settled(stage.pupils)
    for phase in ("train", "screen_commit"):
        last = await _two_and_two(stage, phase, int(last["number"]) + 1)
        last = await stage.ordinary(int(last["number"]) + 1, stage.pupils)
    last = await _three_and_one(stage, int(last["number"]) + 1)
    await stage.ordinary(int(last["number"]) + 1, stage.pupils)


async def halves(stage: Stage) -> Json:
    """The first cut of `partition` alone; the round after it."""
    one, other = stage.pupils
    other.sit(stage.school.machines[2])
    await stage.start(one, other)
    found = await stage.during("train")
    while not all(joined_in(found, p) for p in stage.pupils):  # who starts later may be late
        found = await stage.during("train", int(found["number"]) + 1)
    last = await _two_and_two(stage, "train", int(found["number"]))
    return await stage.ordinary(int(last["number"]) + 1, stage.pupils)


async def _two_and_two(stage: Stage, phase: str, number: int) -> Json:
    """No side has a quorum: nothing becomes final, and all goes on where it was."""
    held = stage.pupils[1]
    found = await stage.during(phase, number)
    number = int(found["number"])
    if phase == "train":  # one has committed, the other trains on in its half
        held.signal(signal.SIGSTOP)
        try:
            found = await _committed(stage, number, stage.pupils[0])
        finally:
            held.signal(signal.SIGCONT)
    committed = [str(d["id"]) for d in found["delta_list"]]
    fault = stage.chance.choice([Fault(reset=True), Fault(stall=True)])
    with stage.school.fleet.wires.suffering(fault, [(0, 1), (2, 3)]):
        await paused(STILL_S)
        before = await _heights(stage)
        await paused(CUT_S - STILL_S)
        after = await _heights(stage)
        at = str((await stage.now())["phase"])
    stage.book.same("a half without a quorum stands still", f"heights in {at}", after, before)
    healed, healed_ms = time.monotonic(), time.time_ns() // 10**6
    shown = await stage.finished(number, at)
    took = time.monotonic() - healed
    over = began(shown, "done")
    assert over is not None
    most_s = stage.school.left_s(at, HEAL_SLACK_S)
    late = [f"round {number}: {took:.0f} s after the heal"] if took > most_s else []
    if over["time_ms"] < healed_ms - CUT_S * 1000:
        late.append(f"round {number} was over before the cut")
    stage.book.look("a round ends within its deadlines counted from the heal", *late)
    fates = {str(d["id"]): str(d["status"]) for d in shown["delta_list"]}
    lost = [f"{d[:8]}: {fates.get(d)}" for d in committed if fates.get(d) != MERGED]
    stage.book.many("what was committed before the cut is merged", lost, len(committed))
    how = "reset" if fault.reset else "stall"
    stage.say(
        f"round {number}: cut 2|2 ({how}) in {at} with {len(committed)} deltas, for {CUT_S:g} s; "
        f"over {took:.0f} s after the heal: {stage.told(shown)}"
    )
    return shown


async def _committed(stage: Stage, number: int, pupil: Pupil) -> Json:
    """A round with this learner's delta."""
    async with deadline(stage.school.left_s("train"), f"{pupil.name} has not committed"):
        while True:
            found = await stage.school.round(number)
            if pupil.address in fates_of(found):
                return found
            await paused(TICK_S)


async def _heights(stage: Stage) -> list[int]:
    fleet = stage.school.fleet
    return list(await asyncio.gather(*(fleet.wait_height(m, 0) for m in fleet.machines)))


async def _three_and_one(stage: Stage, number: int) -> Json:
    """Three have a quorum and go on; the fourth gets it all afterwards."""
    away = stage.school.machines[3]
    found = await stage.during("train", number)
    number = int(found["number"])
    with stage.school.fleet.wires.suffering(Fault(reset=True), [(0, 1, 2), (3,)]):
        left_at = await away.height()
        shown = await stage.finished(number, "train")
        behind = await away.height()
        ahead = await stage.school.machines[0].height()
    wrong = [] if behind <= left_at + 1 < ahead else [f"{left_at}, then {behind}; others {ahead}"]
    stage.book.look("three go on while the fourth stands still", *wrong)
    fates = fates_of(shown)
    merged = all(fates.get(p.address) == MERGED for p in stage.pupils)
    stage.book.true("three merge what was learnt", f"round {number}: {fates}", merged)
    began_s = time.monotonic()
    await stage.level(away)
    took = time.monotonic() - began_s
    stage.say(
        f"round {number}: three of four merged it, {ahead - behind} blocks ahead; "
        f"the fourth was level {took:.1f} s after the heal: {stage.told(shown)}"
    )
    await _same_bytes(stage, away)
    return shown


async def _same_bytes(stage: Stage, machine: Machine) -> None:
    """A node gives the model that the first one gives; of the two times that we look, at one no
    round may have ended in between."""
    first = stage.school.machines[0]
    for _ in range(2):
        ours, theirs = await stage.model_bytes(first), await stage.model_bytes(machine)
        if ours == theirs:
            break
    what = f"{machine.name}: {len(theirs)} bytes that differ from {first.name}'s {len(ours)}"
    stage.book.true("who was away has the same model bytes", what, ours == theirs)


# --- who comes in the middle ----------------------------------------------------------------------


async def joiner(stage: Stage) -> None:
    """A learner that begins in TRAIN, and a node that enters in AGGREGATE."""
    *first, late = stage.pupils
    await stage.start(*first)
    last = await stage.settled(first)
    number = int((await stage.during("train", int(last["number"]) + 1))["number"])
    await stage.start(late)
    shown = await stage.finished(number, "train")
    stage.book.true("who comes in TRAIN is not in that round", "it is", not joined_in(shown, late))
    shown = await stage.ordinary(number + 1, stage.pupils)
    guest = stage.school.fleet.guests[0]
    number = await _enters(stage, guest, int(shown["number"]) + 1)
    await late.kill()
    late.sit(guest)
    await stage.start(late)
    await stage.finished(number, "aggregate")
    await stage.settled(stage.pupils)
    await stage.level(guest)
    await _same_bytes(stage, guest)
    height = await guest.height()
    roots = {str((await m.client.model(height))["root"]) for m in [stage.school.machines[0], guest]}
    stage.book.true("a node that enters has the model root", f"{roots}", len(roots) == 1)


async def _enters(stage: Stage, guest: Machine, number: int) -> int:
    """Let a node begin in AGGREGATE, which lasts because a primary has been stopped; the round."""
    for _ in range(TRIES):
        number = int((await stage.during("aggregate", number))["number"])
        primary = await _primary(stage)
        primary.signal(signal.SIGSTOP)
        try:
            await paused(STILL_S)
            if (await stage.now())["phase"] != "aggregate":
                number += 1
                continue  # it had sent its update
            await stage.school.fleet.admit(guest)
            height = await stage.school.fleet.wait_height(guest, 0)
            found = await stage.now()
        finally:
            primary.signal(signal.SIGCONT)
        there = (found["phase"], int(found["number"])) == ("aggregate", number)
        what = f"{guest.name} was up in {found['phase']} of round {found['number']}, not {number}"
        stage.book.true("a node enters in AGGREGATE", what, there)
        stage.say(f"{guest.name} entered at height {height} in {found['phase']} of round {number}")
        await stage.level(guest)
        return number
    raise Failure(f"no AGGREGATE in {TRIES} rounds waited for the first tile's primary")


async def _primary(stage: Stage) -> Machine:
    """Of the first tile."""
    ranks = (await stage.school.ask(lambda c: c.election(0, 0)))["ranks"]
    for machine in stage.school.machines:
        if format_address(machine.founded.keys.account.public) == str(ranks[0]["account"]):
            return machine
    raise Failure(f"the tile's primary {ranks[0]['account']} is none of the nodes")


# --- a slow learner -------------------------------------------------------------------------------


async def slow(stage: Stage) -> None:
    """A learner ten times as slow as the others holds up nobody; made fast, it is merged; with
    merit it is waited for to the deadline, once."""
    *fast, lame = stage.pupils
    await stage.start(*fast)
    last = await stage.settled(fast)
    number = int(last["number"]) + 1
    async with slowed(lame, fast, SLOW_SHARE):
        await stage.start(lame)
        waits = await _lost_rounds(stage, number, LOST_ROUNDS)
    last = await stage.settled(stage.pupils)
    name = "a slow learner made fast has merit"
    stage.book.same(name, lame.name, await stage.merit(lame), 1)

    await stage.joined(int(last["number"]) + 1, [lame])
    number = int((await stage.during("train"))["number"])
    async with slowed(lame, fast, 0.0):
        shown = await stage.ordinary(number, fast)
    async with slowed(lame, fast, SLOW_SHARE):
        name = "who has merit is waited for to the deadline, and loses it"
        took, window_s = took_s(shown, "train"), _train_window_s(stage)
        stage.book.true(name, f"TRAIN took {took:.1f} s of {window_s:g}", took >= window_s)
        stage.book.same(name, f"merit of {lame.name}", await stage.merit(lame), 0)
        waits += await _lost_rounds(stage, number + 1, 1)
    # Not each: where the others are slow, too, four times as long is long.
    what = f"TRAIN took {', '.join(f'{one:.1f}' for one in waits)} of {window_s:g} s"
    stage.book.true("a round ends long before its deadline", what, 2 * min(waits) < window_s)
    await stage.settled(stage.pupils)
    told, lost = lame.told().count(LOST), LOST_ROUNDS + 2
    what = f"{told} times {LOST!r} of {lost}: {lame.tail()}"
    stage.book.true("each lost round ends with a message", what, told >= lost)


async def _lost_rounds(stage: Stage, number: int, count: int) -> list[float]:
    """Rounds until the slow learner, without merit, has lost so many: seconds of their TRAIN."""
    *fast, lame = stage.pupils
    took: list[float] = []
    for late in range(count + TRIES):
        shown = await stage.ordinary(number + late, fast)
        if joined_in(shown, lame):
            fate = fates_of(shown).get(lame.address, "no delta")
            stage.book.same("a slow learner loses its round", lame.name, fate, "no delta")
            took.append(took_s(shown, "train"))
            theirs, all_of_it = _blocks_of_train(shown, fast)
            what = f"round {shown['number']}: {all_of_it} blocks, and the others took {theirs}"
            quarter_s = _train_window_s(stage) / NEWCOMER_PATIENCE + A_BLOCK_S
            patient = all_of_it <= NEWCOMER_PATIENCE * theirs or took[-1] <= quarter_s
            stage.book.true("a slow learner holds up nobody", what, patient)
        if len(took) == count:
            return took
    raise Failure(f"{lame.name} was in {len(took)} of {count + TRIES} rounds: {lame.tail()}")


def _blocks_of_train(shown: Json, fast: Sequence[Pupil]) -> tuple[int, int]:
    """From the phase's beginning to the latest commit of these, and to its end."""
    first, last = began(shown, "train"), began(shown, "reveal")
    assert first is not None
    assert last is not None
    known = {p.address for p in fast}
    made = max(int(d["height"]) for d in shown["delta_list"] if d["sender"] in known)
    return made - first["height"], last["height"] - first["height"]


def _train_window_s(stage: Stage) -> float:
    window = stage.school.window("train")
    assert window is not None
    return window[1] / 1000


@asynccontextmanager
async def slowed(pupil: Pupil, others: Sequence[Pupil], share: float) -> AsyncIterator[None]:
    """A learner whose worker gets this share of the processor time that the others' get while they
    train, by SIGSTOP and SIGCONT; the learner itself is as it was."""

    async def hold() -> None:
        pace = 1.0
        theirs, last = _spent(others), time.monotonic()
        ours, credit = _spent([pupil]), 0.0
        while True:
            await paused(PERIOD_S)
            elapsed, last = time.monotonic() - last, time.monotonic()
            before, theirs = theirs, _spent(others)
            speed = _growth(before, theirs) / len(others) / elapsed
            if speed > TRAINS:  # else they rest
                pace += (speed - pace) * SMOOTH
            before, ours = ours, _spent([pupil])
            credit = credit + share * pace * elapsed - _growth(before, ours) if ours else 0.0
            _signal(ours, signal.SIGCONT if credit > 0 else signal.SIGSTOP)

    holding = asyncio.create_task(hold())
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        _signal(_spent([pupil]), signal.SIGCONT)


def _spent(pupils: Sequence[Pupil]) -> dict[int, float]:
    """Processor seconds of each process that these learners have started (Linux)."""
    parents = {p.process.pid for p in pupils if p.process is not None}
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) in parents:
                ticks = int(fields[11]) + int(fields[12])
                found[int(file.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return found


def _growth(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    return sum(seconds - before.get(process, 0.0) for process, seconds in after.items())


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


# --- few learners ---------------------------------------------------------------------------------


async def few(stage: Stage) -> None:
    """Three declare, and one of them, then none, brings anything."""
    await stage.start(*stage.pupils)
    last = await stage.settled(stage.pupils)
    await _rewards(stage, last)
    one, *others = stage.pupils
    number = int(last["number"]) + 1
    merits = await _merits(stage)

    await stage.joined(number, stage.pupils)
    await asyncio.gather(*(p.kill() for p in others))
    shown = await _past_training(stage, number)
    await stage.start(*others)  # they wait for the next round
    shown = await stage.finished(number, str(shown["phase"]))
    stage.say(f"round {number}, in which one of three is left: {stage.told(shown)}")
    name = "a round in which one commits merges it"
    stage.book.same(name, f"round {number}", fates_of(shown), {one.address: MERGED})
    stage.book.true(name, f"round {number}: no loss", bool(shown["loss_after"]))
    await _rewards(stage, shown)
    await _merit_moved(stage, merits, [1, -1, -1])

    number += 1
    merits = await _merits(stage)
    before = await stage.joined(number, stage.pupils)
    await asyncio.gather(*(p.kill() for p in stage.pupils))
    model = await stage.school.ask(lambda c: c.model())
    began_s = time.monotonic()
    shown = await stage.finished(number, str(before["phase"]))
    took = time.monotonic() - began_s
    stage.say(f"round {number}, in which nobody is left, over after {took:.0f} s")
    name = "a round in which nobody commits ends, and changes nothing"
    phases = [p["phase"] for p in shown["phases"] if p["height"] is not None]
    gone = ["open", "seed", "train", "reveal", "jury", "done"]
    stage.book.same(name, f"round {number}", phases, gone)
    stage.book.same(name, f"round {number}", shown["delta_list"], [])
    stage.book.same(name, "its result", shown["result_root"], shown["base_root"])
    after = await stage.school.ask(lambda c: c.model())
    same = [model[k] == after[k] for k in ("root", "version")]
    stage.book.same(name, "root and version as they were", same, [True, True])
    await _merit_moved(stage, merits, [-1, -1, -1])

    await stage.start(*stage.pupils)
    last = await stage.settled(stage.pupils)
    stage.book.same(name, "the base of the next", last["base_root"], shown["result_root"])


async def _past_training(stage: Stage, number: int) -> Json:
    async with deadline(stage.school.left_s("open"), f"round {number} still trains"):
        while (found := await stage.school.round(number))["phase"] in ("open", "seed", "train"):
            await paused(TICK_S)
    return found


async def _merits(stage: Stage) -> list[int]:
    return [await stage.merit(p) for p in stage.pupils]


async def _merit_moved(stage: Stage, before: Sequence[int], by: Sequence[int]) -> None:
    expected = [max(0, m + change) for m, change in zip(before, by, strict=True)]
    found = await _merits(stage)
    stage.book.same("merit is won and lost", f"from {list(before)}", found, expected)


async def _rewards(stage: Stage, shown: Json) -> None:
    """The round's reward is shared as the merged deltas gain, rounded down."""
    pool = int(template()["params"]["round_reward_grains"])
    deltas = [
        await stage.school.ask(lambda c, i=d["id"]: c.delta(i))
        for d in shown["delta_list"]
        if d["status"] == MERGED
    ]
    gains = []
    for delta in deltas:
        measured = sorted(int(v["gain"]) for v in delta["votes"] if v["verdict"] in ("yes", "no"))
        gains.append(max(0, measured[len(measured) // 2]))
    total = sum(gains)
    expected = [pool * gain // total if gain else 0 for gain in gains]
    paid = [int(d["reward"]) for d in deltas]
    stage.book.same("rewards follow gains", f"round {shown['number']}", paid, expected)
    stage.book.true("rewards follow gains", "nobody gained", total > 0)
