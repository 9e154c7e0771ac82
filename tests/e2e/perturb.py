"""Doing to a network what a manifest says, and undoing it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack

from tests.e2e.boxed import set_offset
from tests.e2e.fleet import START_S, Failure, Fleet, Machine, deadline
from tests.e2e.load import Told
from tests.e2e.manifest import Manifest, Perturbation
from tests.e2e.wires import Fault
from tests.kit.waiting import paused

JITTER_S = 0.5  # a perturbation comes up to so much later than its manifest says
SETTLE_S = 1.0  # what was under way when a quorum broke is final by then, or only later
GOES_ON_S = 60.0  # the longest that the rest of a network may take for two blocks
TICK_S = 0.2


class Perturber:
    """All perturbations of one run. `say` gets a line for each beginning and end."""

    def __init__(
        self, fleet: Fleet, manifest: Manifest, told: Told, seed: str, say: Callable[[str], None]
    ) -> None:
        self._fleet, self._manifest, self._told, self._say = fleet, manifest, told, say
        chance = random.Random(seed)
        self._plans = [self._plan(p, chance) for p in manifest.perturb]

    def _plan(
        self, what: Perturbation, chance: random.Random
    ) -> tuple[Perturbation, list[int], float]:
        """What, whom and how much later: all that the seed decides."""
        drawn = sorted(chance.sample(range(self._manifest.validators), what.draw))
        return what, drawn or list(what.nodes), chance.uniform(0, JITTER_S)

    async def run(self) -> None:
        """All of them, each at its time; the first that fails ends the others."""
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            for what, nodes, late_s in self._plans:
                before = tasks[what.after - 1] if what.after else None
                tasks.append(group.create_task(self._one(what, nodes, late_s, before)))

    async def _one(
        self,
        what: Perturbation,
        nodes: list[int],
        late_s: float,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        await paused((what.at_s or 0.0) + late_s)
        if what.at_height is not None:
            async with deadline(START_S, f"the chain never came to height {what.at_height}"):
                while self._told.height < what.at_height:
                    await self._told.news.wait()
        machines = [self._fleet.machines[i] for i in nodes]
        whom = " ".join(m.name for m in machines) or " | ".join(map(str, what.groups))
        self._say(f"{what.do} {whom} at height {self._told.height}")
        async with AsyncExitStack() as stack:
            if what.do in ("kill", "restart", "pause"):
                for machine in machines:  # always in the order of their numbers: no deadlock
                    await stack.enter_async_context(machine.busy)
                await self._to_processes(what, machines)
            elif what.do == "clock":
                await self._to_clocks(what, machines)
            else:
                await self._to_wires(what, nodes)
        self._say(f"{what.do} {whom} is over at height {self._told.height}")

    # --- what is done -------------------------------------------------------------------------

    async def _to_processes(self, what: Perturbation, machines: Sequence[Machine]) -> None:
        if what.do == "pause":
            for machine in machines:
                machine.signal(signal.SIGSTOP)
            try:
                await self._meanwhile(what, machines)
            finally:
                for machine in machines:
                    machine.signal(signal.SIGCONT)
            return
        number = signal.SIGKILL if what.do == "kill" else signal.SIGTERM
        codes = await asyncio.gather(*(m.end(number) for m in machines))
        for machine, code in zip(machines, codes, strict=True):
            if code != (-signal.SIGKILL if what.do == "kill" else 0):
                raise Failure(f"{machine.name} ended with exit code {code} after {number.name}")
        await self._meanwhile(what, machines)
        for machine in machines:
            await machine.start()
        await asyncio.gather(*(self._fleet.wait_height(m, 0) for m in machines))

    async def _to_clocks(self, what: Perturbation, machines: Sequence[Machine]) -> None:
        for machine in machines:
            set_offset(machine.clock, what.offset_s)
        await self._meanwhile(what, machines)
        for machine in machines:
            set_offset(machine.clock, self._manifest.clock.get(machine.index, 0.0))

    async def _to_wires(self, what: Perturbation, nodes: Sequence[int]) -> None:
        groups: Sequence[Collection[int]] = what.groups
        if what.do != "partition":
            rest = [m.index for m in self._fleet.machines if m.index not in nodes]
            groups = [*([node] for node in nodes), *([rest] if rest else [])]
        fault = Fault(
            reset=what.do != "slow" and what.how == "reset",
            stall=what.do != "slow" and what.how == "stall",
            delay_s=what.delay_ms / 1000,
            bytes_per_s=what.bytes_per_s,
        )
        with self._fleet.wires.suffering(fault, groups):
            touched = [self._fleet.machines[i] for i in nodes]
            await self._meanwhile(what, touched)

    # --- what must hold while it lasts ----------------------------------------------------------

    async def _meanwhile(self, what: Perturbation, touched: Collection[Machine]) -> None:
        """`for_s`, and what the chain must do in it at the nodes that are not touched."""
        others = [m for m in self._fleet.machines if m not in touched]
        if what.meanwhile == "stops":
            await paused(SETTLE_S)
            before = await self._fleet.highest(others)
            await paused(what.for_s - SETTLE_S)
            after = await self._fleet.highest(others)
            if after != before:
                moved = f"the chain went from {before} to {after}"
                raise Failure(f"{what.do}: {moved} without a quorum")
        elif what.meanwhile == "goes_on":
            before = await self._fleet.highest(others)
            await paused(what.for_s)
            async with deadline(GOES_ON_S, f"{what.do}: the others did not go on from {before}"):
                while await self._fleet.highest(others) < before + 2:
                    await paused(TICK_S)
        else:
            await paused(what.for_s)
