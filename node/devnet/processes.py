"""Child processes of a local network: started in sessions of their own, watched, and all ended.

Nothing is restarted by itself: whoever kills a node in order to see what happens must see it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chain.errors import BlyanError, DeadlineError

GRACE_S = 4.0  # between SIGTERM and SIGKILL, so that Ctrl-C is done within five seconds
TAIL_BYTES = 2000
# -P: the current directory must not shadow our packages. One
# thread: two of torch's spin against each other.
PYTHON = (sys.executable, "-P", "-m")
_KEPT = ("BLYAN_DEBUG",)


class ChildError(BlyanError):
    """A program that this one started has failed."""

    code = "child_failed"


@dataclass(frozen=True, slots=True)
class Child:
    """A running process. `command` is what an operator would type to start it again."""

    name: str
    command: str
    log: Path
    process: asyncio.subprocess.Process

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def tail(self) -> str:
        """The end of what it said on stderr."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()


@dataclass(slots=True)
class Processes:
    """All children of one run. `on_exit` is told of each that ends before it is asked to."""

    on_exit: Callable[[Child], None]
    children: list[Child] = field(default_factory=list)
    _watchers: list[asyncio.Task[None]] = field(default_factory=list)
    _ending: set[str] = field(default_factory=set)

    async def start(self, name: str, command: str, arguments: Sequence[str], log: Path) -> Child:
        """Run one of our programs: `arguments` are a module and its arguments."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *PYTHON,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,  # a terminal's Ctrl-C reaches us alone; we pass it on
            )
        child = Child(name, command, log, process)
        self.children.append(child)
        self._watchers.append(asyncio.create_task(self._watch(child)))
        return child

    async def _watch(self, child: Child) -> None:
        await child.process.wait()
        if child.name not in self._ending:
            self.on_exit(child)

    async def end(self, children: Sequence[Child] | None = None) -> None:
        """SIGTERM, and SIGKILL for those that do not go in time. Returns when all are gone."""
        ending = [c for c in (self.children if children is None else children) if c.running]
        self._ending.update(c.name for c in ending)
        for child in ending:
            with suppress(ProcessLookupError):
                child.process.terminate()
        waits = [asyncio.create_task(c.process.wait()) for c in ending]
        if waits:
            await asyncio.wait(waits, timeout=GRACE_S)
        for child in ending:
            if child.running:
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
        await asyncio.gather(*waits)


def environment() -> dict[str, str]:
    """Ours without BLYAN_…, which is meant for this process and not for its nodes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BLYAN_") or k in _KEPT}
    return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **kept}


async def call(arguments: Sequence[str], timeout_s: float) -> bytes:
    """Run one of our programs to its end and give its stdout. ChildError, DeadlineError."""
    process = await asyncio.create_subprocess_exec(
        *PYTHON,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    shown = " ".join(arguments)
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise DeadlineError(f"`{shown}` took more than {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip()[-TAIL_BYTES:]
        raise ChildError(f"`{shown}` failed with code {process.returncode}: {said}")
    return out
