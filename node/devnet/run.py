"""Running a local network: `blyan-node devnet` and `scripts/run` (docs/guides/devnet.md).

Every part is real: each node is an ordinary `blyan-node start --home DIR` in a process of its
own, and the dataset, the learners and the garbage come through the ordinary `blyan` program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from chain.errors import BlyanError, DeadlineError, UnreachableError
from node.cli.output import progress
from node.client import Client
from node.config import Config
from node.devnet.homes import Layout, Plan, choose_directory, prepare
from node.devnet.lesson import LOCAL_LICENSE, Data, Lesson
from node.devnet.processes import GRACE_S, Child, ChildError, Processes
from node.devnet.summary import Summary
from node.home import exclusive

START_TIMEOUT_S = 90.0  # from the first process to the first block, on a busy machine
POLL_S = 0.1
INTERRUPTED = 130
EXPECTED = (0, 4)  # how a learner ends: its delta was accepted, or not


def run(plan: Plan) -> int:
    """Run the plan; the exit code. Ctrl-C and SIGTERM end everything within five seconds."""
    directory = choose_directory(plan)
    with exclusive(directory / "devnet.lock", f"the network in {directory}"):
        layout, configs = prepare(directory, plan)
        return asyncio.run(_Network(plan, layout, configs).run())


class _Network:
    def __init__(self, plan: Plan, layout: Layout, configs: Sequence[Config]) -> None:
        self._plan, self._layout, self._configs = plan, layout, configs
        self._processes = Processes(self._died)
        self._began = time.monotonic()
        self._stopping = False

    async def run(self) -> int:
        work = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, work)
        try:
            return await work
        except asyncio.CancelledError:
            return INTERRUPTED if self._plan.leave else 0
        finally:
            self._stopping = True
            began = time.monotonic()
            await asyncio.gather(self._processes.end(), self._end_restarted())
            progress(f"All processes have ended ({time.monotonic() - began:.1f} s).")

    def _interrupt(self, work: asyncio.Task[int]) -> None:
        if not self._stopping:
            self._stopping = True
            progress("\nStopping …")
            work.cancel()

    async def _work(self) -> int:
        for i, (home, config) in enumerate(zip(self._layout.nodes, self._configs, strict=True)):
            command = f"blyan-node start --home {home.path}"
            arguments = ["node.cli.node", "start", "--home", str(home.path)]
            log = home.logs / "stderr.log"
            await self._processes.start(f"node-{i}", command, arguments, log)
            progress(f"node-{i}  {config.api_url}/  {home.path}")
        clients = [Client(config.api_url) for config in self._configs]
        async with contextlib.AsyncExitStack() as stack:
            for client in clients:
                await stack.enter_async_context(client)
            await self._first_block(clients)
            progress(f"\n  Explorer: {self._configs[0].api_url}/\n")
            return await self._learn(clients)

    async def _first_block(self, clients: Sequence[Client]) -> None:
        """Wait until every node answers and has a block that the network made."""
        waiting = dict(enumerate(clients))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while waiting:
                    self._check_alive()
                    for i, client in list(waiting.items()):
                        with contextlib.suppress(UnreachableError):
                            if (await client.status())["height"] >= 1:
                                del waiting[i]
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            names = ", ".join(f"node-{i}" for i in waiting)
            raise DeadlineError(
                f"no block after {START_TIMEOUT_S:.0f} s at {names}; logs are in "
                f"{self._layout.directory}/node-*/logs"
            ) from None

    def _check_alive(self) -> None:
        for child in self._processes.children:
            if not child.running:
                raise ChildError(f"{child.name} ended at its start:\n{child.tail()}")

    async def _learn(self, clients: Sequence[Client]) -> int:
        plan = self._plan
        lesson = Lesson(self._layout, clients, self._processes, with_garbage=plan.leave)
        lesson.summary.explorer = f"{self._configs[0].api_url}/"
        if plan.data is not None:
            data = Data(plan.data.expanduser().absolute(), plan.license or LOCAL_LICENSE)
        else:
            data = Data.library()
        if not plan.leave:
            if plan.rounds != 0 and plan.learners:
                await lesson.learn(data, plan.rounds)
            progress("The network goes on; Ctrl-C ends it.")
            await asyncio.Event().wait()
        try:
            await lesson.learn(data, plan.rounds if plan.rounds is not None else 1)
            await lesson.compare()
            lesson.check_garbage()
        except BlyanError as error:
            lesson.summary.error = f"{error.code}: {error}"
            self._print(lesson.summary)
            raise
        self._print(lesson.summary)
        progress(f"To go on: blyan-node devnet --dir {self._layout.directory} --rounds 0")
        return 0 if lesson.summary.ok else 1

    def _print(self, summary: Summary) -> None:
        summary.seconds = round(time.monotonic() - self._began, 1)
        sys.stdout.write(json.dumps(summary.document(), indent=1) + "\n")
        sys.stdout.flush()

    # --- ends ----------------------------------------------------------------------------

    def _died(self, child: Child) -> None:
        code = child.process.returncode
        if code not in EXPECTED or child.name.startswith("node-"):
            progress(f"{child.name} has ended (code {code}); to restart it:\n  {child.command}")

    async def _end_restarted(self) -> None:
        """Nodes that somebody restarted by hand belong to this network, too."""
        ours = {child.process.pid for child in self._processes.children}
        owners = {h: o for h in self._layout.nodes if (o := h.owner()) is not None}
        deadline = time.monotonic() + GRACE_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            for owner in owners.values():
                if owner not in ours:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(owner, number)
            while owners and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
                owners = {h: o for h, o in owners.items() if h.owner() == o}
