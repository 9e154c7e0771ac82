"""The node's side of its worker: starts it when there is work, ends it when there is none.

One job at a time; callers wait in line. Whatever happens to the process (killed, out of memory,
stuck), the caller gets a WorkerError and the next job a fresh process. A job that finds its process
dead, killed while it was idle, gets a fresh one, too.

The process is in our own process group: what stops us (Ctrl-Z, `kill -STOP -PGID`) stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from chain import errors
from chain.errors import BlyanError, DecodeError, WorkerError
from chain.hashes import Hash32
from learning.memory import ACTIVATION_BYTES
from learning.profile import Kind, environment
from learning.spec import ModelSpec, TrainingSpec
from node.patience import Patience, RunningClock
from node.worker.protocol import LENGTH_BYTES, Message, frame_bytes, pack_frame, unpack_body
from node.worker.results import Evaluation, Measured
from node.worker.training import Closed, Closing, Replay, TrainJob, TrainOutcome, Windows

log = logging.getLogger("blyan.worker")

NICE = 10  # consensus comes first
# Without a word from a job, its process's start included: it tells of its steps or windows. Time
# in which we were stopped or paused does not count.
TIMEOUT_S = 300.0
IDLE_S = 60.0  # then the process ends and its memory is free
MAX_WAITING = 64  # jobs in line
_ROOT = str(Path(__file__).resolve().parents[2])  # where the worker finds our packages
_DEATH_S = 5.0  # for a process whose pipe has ended to say how it ended
_LOG_LINES = 20  # kept to explain a death
_PIPE_BYTES = 64 * 1024  # read at a time


class Worker:
    """A worker process and the line before it. Use within one event loop. `most_bytes`: how much a
    step that is trained or replayed may keep for its backward pass."""

    def __init__(
        self,
        *,
        nice: int = NICE,
        timeout_s: float = TIMEOUT_S,
        idle_s: float = IDLE_S,
        most_bytes: int = ACTIVATION_BYTES,
    ) -> None:
        self.most_bytes = most_bytes
        self._nice, self._timeout_s, self._idle_s = nice, timeout_s, idle_s
        self._process: asyncio.subprocess.Process | None = None
        # Of each process: of two who wait for one stream, the second may never be woken.
        self._reading = WeakKeyDictionary[asyncio.subprocess.Process, asyncio.Lock]()
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._closed = self._paused = False
        self.clock = RunningClock()  # of jobs; it stands still while they are paused

    @property
    def pid(self) -> int | None:
        """Process id while a worker runs."""
        return self._process.pid if self._process else None

    def pause(self) -> bool:
        """Hold jobs at their next event until `go_on`. Whether there is one now."""
        return self._hold(True)

    def go_on(self) -> bool:
        return self._hold(False)

    def _hold(self, paused: bool) -> bool:
        self._paused = paused
        if paused:
            self.clock.hold()
        else:
            self.clock.go_on()
        if self._process is not None:
            self._tell_pause(self._process)
        return self._lock.locked()

    def _tell_pause(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(pack_frame({"job": "pause" if self._paused else "go on"}))

    async def profile(self, kind: Kind = "native") -> str:
        """The numeric profile of that kind on this machine. Raises ConfigError if it has none."""
        return str((await self._call({"job": "ping", "profile": kind}))["profile"])

    async def evaluate(
        self,
        model: ModelSpec,
        base: Sequence[bytes],
        payload: bytes | None,
        windows: Windows,
        *,
        numerator: int = 1,
        denominator: int = 5,
    ) -> Evaluation:
        """Losses of base and of base + delta * numerator / denominator on each window.

        `windows`: uint8 [n, context + 1]. Raises DecodeError for a payload that is no delta of
        this model, WorkerError if the worker failed.
        """
        request = {
            "job": "evaluate",
            "model": model.to_json(),
            "shards": list(base),
            "payload": payload,
            "windows": windows.tobytes(),
            "numerator": numerator,
            "denominator": denominator,
        }
        result = await self._call(request)
        return Evaluation(tuple(result["base"]), tuple(result["delta"]))

    async def holdout(self, model: ModelSpec, shards: Sequence[bytes], holdout: bytes) -> int:
        """Holdout loss in nano-nats per byte (docs/spec/model.md)."""
        request = {
            "job": "holdout",
            "model": model.to_json(),
            "shards": list(shards),
            "holdout": holdout,
        }
        return int((await self._call(request))["loss"])

    async def measure(
        self, model: ModelSpec, shards: Sequence[bytes], windows: Windows
    ) -> Measured:
        """Losses and loads on windows, uint8 [n, context + 1]."""
        request = {"job": "measure", "model": model.to_json(), "shards": list(shards)}
        result = await self._call({**request, "windows": windows.tobytes()})
        return Measured(tuple(result["losses"]), tuple(result["imbalance"]))

    async def generate(
        self,
        model: ModelSpec,
        shards: Sequence[bytes],
        prompt: bytes,
        count: int,
        on_byte: Callable[[int], None],
        *,
        temperature: float,
        top_k: int,
        seed: int,
    ) -> float:
        """`count` bytes after `prompt`, each told as it comes; the seconds that it took."""
        request = {
            "job": "generate",
            "model": model.to_json(),
            "shards": list(shards),
            "prompt": prompt,
            "count": count,
            "temperature": temperature,
            "top_k": top_k,
            "seed": seed,
        }
        result = await self._call(request, lambda message: on_byte(message["byte"]))
        return float(result["seconds"])

    async def train(
        self,
        job: TrainJob,
        on_progress: Callable[[int, float], None] | None = None,
        on_checkpoint: Callable[[Hash32, bytes], None] | None = None,
    ) -> TrainOutcome:
        """Train one round. `on_progress(steps done, loss)` is called after each step,
        `on_checkpoint(state hash, state)` for each checkpoint, those of `job.done` left out."""
        last = job.done.state if job.done is not None else b""

        def on_event(message: Message) -> None:
            nonlocal last
            if message["event"] == "checkpoint":
                last = message["state"]
                if on_checkpoint is not None:
                    on_checkpoint(Hash32(message["hash"]), message["state"])
            elif on_progress is not None:
                on_progress(message["step"], message["loss"])

        began = self.clock.seconds()
        result = await self._call({**job.request(), "most_bytes": self.most_bytes}, on_event)
        hashes = tuple(Hash32(h) for h in result.pop("state_hashes"))
        for name in ("residual", "imbalance"):
            result[name] = tuple(result[name])
        return TrainOutcome(
            state_hashes=hashes,
            state=last,
            seconds=self.clock.seconds() - began,
            **result,
        )

    async def replay(
        self,
        model: ModelSpec,
        training: TrainingSpec,
        state: bytes,
        batches: Windows,
        profile: str,
        shards: Sequence[int] = (),
        mask_key: Hash32 | None = None,
        closing: Closing | None = None,
    ) -> Replay:
        """Replay the steps of `batches` (uint8 [steps, batch, context + 1]) from a checkpoint,
        under a manifest's profile and of its shards; with `closing`, compress what comes out.
        `mask_key`: as in a TrainJob.

        Raises DecodeError if `state` is no training state of this model, InputError for a profile
        that this version does not know.
        """
        request = {
            "job": "replay",
            "model": model.to_json(),
            "training": training.to_json(),
            "state": state,
            "batches": batches.tobytes(),
            "profile": profile,
            "held": list(shards),
            "closing": None if closing is None else closing.request(),
            "mask_key": mask_key,
            "most_bytes": self.most_bytes,
        }
        result = await self._call(request)
        closed = result["closed"]
        return Replay(
            Hash32(result["before"]),
            Hash32(result["after"]),
            result["profile"],
            None if closed is None else Closed(*map(Hash32, closed)),
        )

    async def close(self) -> None:
        """End the process; a running job fails with WorkerError, and so do later ones."""
        self._closed = True
        await self._kill(self._take())
        if self._idle is not None:
            self._idle.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one job -------------------------------------------------------------------

    async def _call(
        self, request: Message, on_event: Callable[[Message], None] | None = None
    ) -> Message:
        """The result of a job. Each event, of which `on_event` is told, gives it more time."""
        if self._waiting >= MAX_WAITING:
            raise WorkerError(f"{MAX_WAITING} jobs wait for the worker already; try again later")
        self._waiting += 1
        try:
            async with self._lock:
                if self._idle is not None:
                    self._idle.cancel()
                return await self._attempt(pack_frame(request), on_event)  # one copy at a time
        finally:
            self._waiting -= 1

    async def _attempt(self, frame: bytes, on_event: Callable[[Message], None] | None) -> Message:
        if self._closed:
            raise WorkerError("the worker is closed; the node is stopping")
        finished = False
        try:
            async with Patience(self._timeout_s, self.clock) as patience:

                def got_on(message: Message) -> None:
                    patience.progress()
                    if on_event is not None:
                        on_event(message)

                answer = await self._answer(frame, got_on)
            finished = True
        except TimeoutError:
            raise WorkerError(f"the worker said nothing for {self._timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, OSError, DecodeError) as error:
            words = await self._last_words(error)
            raise WorkerError(f"the worker died ({words})") from None
        finally:
            if finished:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(self._idle_s, self._retire)
            else:  # failed or cancelled: its answer must not reach the next caller
                await asyncio.shield(self._kill(self._take()))
        if "result" in answer:
            result: Message = answer["result"]
            return result
        raise _error_of(answer)

    async def _answer(self, frame: bytes, on_event: Callable[[Message], None]) -> Message:
        """Of the process that there is, or of a fresh one if that has died before it took up the
        job: nobody may have noticed yet."""
        used = self._process
        process = await self._start()
        try:
            await self._begin(process, frame)
        except (asyncio.IncompleteReadError, OSError):
            if process is not used or self._closed:
                raise
            log.warning("the worker died while it was idle; starting another")
            await self._kill(self._take())
            process = await self._start()
            await self._begin(process, frame)
        return await self._exchange(process, on_event)

    async def _begin(self, process: asyncio.subprocess.Process, frame: bytes) -> None:
        """Hand over a job, until the process says that it has taken it up."""
        if process.stdin is None:
            raise WorkerError("the worker has no pipes")
        if process.stdin.is_closing():  # uvloop would raise RuntimeError
            raise BrokenPipeError
        process.stdin.write(frame)
        await process.stdin.drain()
        await self._message(process)

    async def _message(self, process: asyncio.subprocess.Process) -> Message:
        if process.stdout is None:
            raise WorkerError("the worker has no pipes")
        async with self._reading[process]:
            prefix = await process.stdout.readexactly(LENGTH_BYTES)
            return unpack_body(await process.stdout.readexactly(frame_bytes(prefix)))

    async def _exchange(
        self,
        process: asyncio.subprocess.Process,
        on_event: Callable[[Message], None],
    ) -> Message:
        while "event" in (message := await self._message(process)):
            on_event(message)
        return message

    async def _last_words(self, error: Exception) -> str:
        """Why the process died, as far as it can be told."""
        process, words = self._process, type(error).__name__
        if process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DEATH_S):
                    code = await process.wait()
                    words = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{words}: {self._log[-1]}" if self._log else f"{words}, nothing in its log"

    # --- the process ---------------------------------------------------------------

    async def _start(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log.clear()
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "node.worker",
                str(self._nice),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **environment(), "PYTHONPATH": os.pathsep.join(paths)},
            )
        )
        try:
            self._process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._process = await starting  # it exists by now; whoever cancelled us ends it
            raise
        finally:
            if self._process is not None:
                self._reading.setdefault(self._process, asyncio.Lock())
        if self._paused:
            self._tell_pause(self._process)
        if self._process.stderr is not None:
            self._spawn(self._drain(self._process.stderr))
        return self._process

    async def _drain(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(_PIPE_BYTES):
            for line in chunk.decode(errors="replace").splitlines():
                if line.strip():
                    self._log.append(line)
                    log.info("%s", line)

    def _retire(self) -> None:
        if not self._lock.locked():
            self._spawn(self._kill(self._take()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self) -> asyncio.subprocess.Process | None:
        """The process, which from now on is nobody's; a next job starts another."""
        process, self._process = self._process, None
        return process

    async def _kill(self, process: asyncio.subprocess.Process | None) -> None:
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                process.kill()
        if process.stdout is not None:
            # A pipe with unread bytes is never at its end, and `wait` waits for the pipes, too.
            async with self._reading[process]:
                while await process.stdout.read(_PIPE_BYTES):
                    pass
        await process.wait()


def _error_of(answer: dict[str, Any]) -> BlyanError:
    """The error that the worker met, as the same class if it is one a caller can cause."""
    kind = getattr(errors, str(answer.get("error")), None)
    text = str(answer.get("text", "no reason given"))
    if kind in (errors.InputError, errors.DecodeError, errors.GenesisError, errors.ConfigError):
        found: BlyanError = kind(text)
        return found
    return WorkerError(f"the worker failed: {text}")
