"""Learning on a local network: a dataset, learners, and one delta of garbage to be refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chain.address import format_address
from chain.errors import DeadlineError, UnreachableError
from node.cli.output import progress
from node.client import Client
from node.config import load_config
from node.devnet.homes import Layout
from node.devnet.processes import Child, ChildError, Processes, call
from node.devnet.summary import Summary
from node.home import Home, unlock

POLL_S = 0.3
SUBMIT_TIMEOUT_S = 240.0  # one dataset, from reading its files to its approval by the auditors
ROUND_TIMEOUT_S = 240.0  # one round, all its windows with room for a busy machine
AGREE_TIMEOUT_S = 30.0  # the slowest node has the block that the fastest had
LOCAL_LICENSE = "LicenseRef-Local"  # text that somebody tries on his own machine
LIBRARY_BYTES = 8 * 1024 * 1024  # of Python's library: plenty for a small model, and soon audited
ENDLESS = 1_000_000  # rounds, until somebody stops the network

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Data:
    """What to submit. Without `limit_bytes`, all of it."""

    path: Path
    license: str = LOCAL_LICENSE
    title: str | None = None
    limit_bytes: int | None = None

    @classmethod
    def library(cls) -> Data:
        """Python's own library: text of a known licence that every machine here has."""
        title = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
        return cls(Path(sysconfig.get_paths()["stdlib"]), "PSF-2.0", title, LIBRARY_BYTES)


class Lesson:
    """Everything that learns on one network. `summary` fills as it goes."""

    def __init__(
        self, layout: Layout, clients: Sequence[Client], processes: Processes, *, with_garbage: bool
    ) -> None:
        self._layout, self._clients, self._processes = layout, clients, processes
        self._with_garbage = with_garbage
        self._learners: list[Child] = []
        self._outsider = ""  # address of who sends garbage
        self.summary = Summary(
            homes={home.path.name: str(home.path) for home in (*layout.nodes, *layout.guests)}
        )

    async def learn(self, data: Data, rounds: int | None) -> None:
        """Submit the data, and follow `rounds` rounds (None: until cancelled)."""
        status = await self._ask(lambda c: c.status())
        self.summary.height_start = status["height"]
        self.summary.dataset = await self._dataset(data)
        number = int((await self._ask(lambda c: c.status()))["round"])
        if self._with_garbage:
            await self._start_garbage()
        for home in self._layout.learners:
            many = str(rounds or ENDLESS)
            self._learners.append(await self._start(home, "train", "--rounds", many))
        end = number + (rounds or ENDLESS)
        while number < end:
            await self._follow(number, ROUND_TIMEOUT_S if rounds else None)
            number += 1

    # --- data ----------------------------------------------------------------------------

    async def _dataset(self, data: Data) -> str:
        """The id of an active dataset: one that the chain has, or `data`, submitted."""
        for known in (await self._ask(lambda c: c.datasets()))["datasets"]:
            if known["status"] == "active":
                progress(f"Dataset {known['title']!r} is on the chain already.")
                return str(known["id"])
        progress(f"Submitting {data.path}; auditors will read it …")
        home = self._layout.contributor
        arguments = ["dataset", "submit", str(data.path), "--license", data.license]
        arguments += ["--title", data.title] if data.title else []
        arguments += ["--limit-bytes", str(data.limit_bytes)] if data.limit_bytes else []
        out = await call(
            ["node.cli.blyan", *arguments, "--home", str(home.path), "--json"], SUBMIT_TIMEOUT_S
        )
        found = json.loads(out)
        progress(f"Dataset {found['title']!r} is approved: {found['size_bytes']:,} bytes.")
        return str(found["dataset"])

    # --- learners and garbage --------------------------------------------------------------

    async def _start(self, home: Home, *arguments: str) -> Child:
        """Run `blyan` in a home, its output in the home's log."""
        whole = [*arguments, "--home", str(home.path)]
        return await self._processes.start(
            home.path.name,
            f"blyan {' '.join(whole)}",
            ["node.cli.blyan", *whole],
            home.logs / "stderr.log",
        )

    async def _start_garbage(self) -> None:
        """An outsider sends noise in the form of a delta to the next round."""
        from node.devnet.garbage import write_garbage

        outsider = self._layout.outsider
        self._outsider = format_address(
            unlock(outsider, load_config(outsider).account).account.public
        )
        model = await self._ask(lambda c: c.model())
        path = outsider.path / "garbage.safetensors"
        await asyncio.to_thread(write_garbage, path, model["spec"], model["root"])
        await self._start(outsider, "delta", "submit", str(path))

    # --- following -------------------------------------------------------------------------

    async def _follow(self, number: int, timeout_s: float | None) -> None:
        """Wait for the end of a round and note what it gave."""

        async def finished() -> bool:
            self._check_learners()
            return bool((await self._ask(lambda c: c.status()))["round"] > number)

        await _until(finished, timeout_s, f"round {number} did not finish")
        record = await self._ask(lambda c: c.round(number))
        summary = self.summary
        deltas = [{**d, "round": number} for d in record["delta_list"]]
        summary.deltas += deltas
        summary.garbage = next(
            (d["id"] for d in deltas if d["sender"] == self._outsider), summary.garbage
        )
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

    def check_garbage(self) -> None:
        """Whether the noise came in time to be refused; else the run shows less than it says."""
        if self._with_garbage and self.summary.garbage is None:
            raise ChildError("the garbage delta came to no round; see outsider/logs/stderr.log")

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
            await _until(reached, AGREE_TIMEOUT_S, "")
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


async def _until(
    condition: Callable[[], Awaitable[bool]], timeout_s: float | None, what: str
) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if await condition():
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise DeadlineError(f"{what} within {timeout_s} s") from None


async def _or_none(answer: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return await answer
    except UnreachableError:
        return None
