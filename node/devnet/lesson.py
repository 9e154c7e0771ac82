"""Learning on a local network: a dataset, learners, and one delta of garbage to be refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chain.errors import BlyanError, DeadlineError, UnreachableError
from node.cli.output import progress
from node.client import Client
from node.devnet.homes import Layout
from node.devnet.processes import Child, ChildError, Processes, call
from node.devnet.summary import Summary
from node.home import Home

POLL_S = 0.3
SUBMIT_TIMEOUT_S = 120.0  # one dataset, from reading its files to finality
APPROVE_TIMEOUT_S = 120.0  # all auditors have read it, and the split seed is drawn
ROUND_TIMEOUT_S = 240.0  # one round, all its windows with room for a busy machine
AGREE_TIMEOUT_S = 30.0  # the slowest node has the block that the fastest had
LOCAL_LICENSE = "LicenseRef-Local"  # text that somebody tries on his own machine

T = TypeVar("T")


def default_data() -> tuple[Path, str | None]:
    """Python's own library: text of a known licence that every machine here has."""
    return Path(sysconfig.get_paths()["stdlib"]), "PSF-2.0"


class Lesson:
    """Everything that learns on one network. `summary` fills as it goes."""

    def __init__(
        self, layout: Layout, clients: Sequence[Client], processes: Processes, *, with_garbage: bool
    ) -> None:
        self._layout, self._clients, self._processes = layout, clients, processes
        self._with_garbage = with_garbage
        self._learners: list[Child] = []
        self.summary = Summary(
            homes={home.path.name: str(home.path) for home in (*layout.nodes, *layout.guests)}
        )

    async def learn(self, data: tuple[Path, str | None], rounds: int | None) -> None:
        """Submit the data, and follow `rounds` rounds (None: until cancelled)."""
        status = await self._ask(lambda c: c.status())
        self.summary.height_start = status["height"]
        self.summary.dataset = await self._dataset(*data)
        first = (await self._ask(lambda c: c.status()))["round"]
        for i, home in enumerate(self._layout.learners):
            self._learners.append(await self._start_learner(i, home, rounds))
        garbage = asyncio.create_task(self._garbage()) if self._with_garbage else None
        try:
            number = first
            while rounds is None or number < first + rounds:
                await self._follow(number, rounds is not None)
                number += 1
        finally:
            if garbage is not None:
                garbage.cancel()
                await asyncio.wait([garbage])

    # --- data ----------------------------------------------------------------------------

    async def _dataset(self, path: Path, license: str | None) -> str:
        """The id of an active dataset: one that the chain has, or `path`, submitted."""
        for known in (await self._ask(lambda c: c.datasets()))["datasets"]:
            if known["status"] == "active":
                return str(known["id"])
        progress(f"Submitting {path} …")
        arguments = ["dataset", "submit", str(path), "--license", license or LOCAL_LICENSE]
        found = await self._blyan(self._layout.contributor, *arguments, timeout_s=SUBMIT_TIMEOUT_S)
        dataset = str(found["id"])
        progress(f"Dataset {dataset[:16]}… is on the chain; auditors read it …")
        await self._until(
            lambda: self._active(dataset), APPROVE_TIMEOUT_S, "the dataset was not approved"
        )
        return dataset

    async def _active(self, dataset: str) -> bool:
        status = (await self._ask(lambda c: c.dataset(dataset)))["status"]
        if status == "rejected":
            raise ChildError(f"the auditors rejected dataset {dataset}; its page tells why")
        return bool(status == "active")

    # --- learners and garbage --------------------------------------------------------------

    async def _start_learner(self, number: int, home: Home, rounds: int | None) -> Child:
        arguments = ["train", "--home", str(home.path)]
        if rounds is not None:
            arguments += ["--rounds", str(rounds)]
        return await self._processes.start(
            f"learner-{number}",
            f"blyan {' '.join(arguments)}",
            ["node.cli.blyan", *arguments],
            home.logs / "stderr.log",
        )

    async def _garbage(self) -> None:
        """While the first round trains, an outsider sends noise in the form of a delta."""
        from node.devnet.garbage import write_garbage

        model = await self._ask(lambda c: c.model())
        path = self._layout.outsider.path / "garbage.safetensors"
        await asyncio.to_thread(write_garbage, path, model["spec"])
        await self._until(self._training, ROUND_TIMEOUT_S, "no round began to train")
        try:
            found = await self._blyan(
                self._layout.outsider, "delta", "submit", str(path), timeout_s=ROUND_TIMEOUT_S
            )
            self.summary.garbage = str(found["id"])
        except BlyanError as error:
            progress(f"The garbage delta was refused at once: {error}")

    async def _training(self) -> bool:
        return bool((await self._ask(lambda c: c.status()))["phase"] == "train")

    # --- following -------------------------------------------------------------------------

    async def _follow(self, number: int, bounded: bool) -> None:
        """Wait for the end of a round and note what it gave."""

        async def finished() -> bool:
            self._check_learners()
            return bool((await self._ask(lambda c: c.status()))["round"] > number)

        what = f"round {number} did not finish"
        await self._until(finished, ROUND_TIMEOUT_S if bounded else None, what)
        record = await self._ask(lambda c: c.round(number))
        summary = self.summary
        deltas = [{**d, "round": number} for d in record["delta_list"]]
        summary.deltas += deltas
        merged = [d["id"] for d in deltas if d["status"] == "merged"]
        summary.accepted += merged
        summary.rejected += [d["id"] for d in deltas if d["status"] != "merged"]
        summary.tile_updates += [u["id"] for u in record["update_list"] if u["provisional"]]
        before, after = record["loss_before"] / 1e9, record["loss_after"] / 1e9
        if summary.loss_before is None and before:
            summary.loss_before = before
        summary.loss_after = after or None
        summary.round, summary.rounds = number, summary.rounds + 1
        progress(
            f"Round {number}: holdout loss {before:.4f} → {after:.4f} nats a byte, "
            f"{len(merged)} of {len(deltas)} deltas"
        )

    def _check_learners(self) -> None:
        if self._learners and not any(c.running for c in self._learners):
            failed = [c for c in self._learners if c.process.returncode]
            if failed:
                raise ChildError(f"{failed[0].name} failed:\n{failed[0].tail()}")

    async def compare(self) -> None:
        """Everybody's roots at one height, and the heights. Fills `summary`."""
        summary = self.summary
        statuses = [await _or_none(c.status()) for c in self._clients]
        height = max((s["height"] for s in statuses if s is not None), default=0)
        names = [home.path.name for home in self._layout.nodes]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._roots_at(c, height)) for c in self._clients]
        for name, task in zip(names, asked, strict=True):
            summary.state_roots[name], summary.model_roots[name] = task.result()
        statuses = [await _or_none(c.status()) for c in self._clients]
        summary.heights = {
            n: s["height"] if s else None for n, s in zip(names, statuses, strict=True)
        }
        summary.height_end = height
        summary.model_root = next(iter(summary.model_roots.values()))

    async def _roots_at(self, client: Client, height: int) -> tuple[str | None, str | None]:
        async def reached() -> bool:
            found = await _or_none(client.status())
            return found is not None and found["height"] >= height

        try:
            await self._until(reached, AGREE_TIMEOUT_S, "")
            block = await client.block(height)
            return str(block["state_root"]), str((await client.model(height))["root"])
        except (DeadlineError, UnreachableError):
            return None, None

    # --- talking with the network ------------------------------------------------------------

    async def _ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        """Ask the first node that answers: any one of them may have been killed."""
        for client in self._clients[:-1]:
            with contextlib.suppress(UnreachableError):
                return await question(client)
        return await question(self._clients[-1])

    async def _blyan(self, home: Home, *arguments: str, timeout_s: float) -> dict[str, Any]:
        shared = ["--home", str(home.path), "--json"]
        out = await call(["node.cli.blyan", *arguments, *shared], timeout_s)
        try:
            found = json.loads(out)
        except ValueError:
            raise ChildError(f"blyan {' '.join(arguments)}: expected JSON, got {out!r}") from None
        return found if isinstance(found, dict) else {}

    async def _until(
        self, condition: Callable[[], Awaitable[bool]], timeout_s: float | None, what: str
    ) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if await condition():
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise DeadlineError(f"{what} within {timeout_s:.0f} s") from None


async def _or_none(answer: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return await answer
    except UnreachableError:
        return None
