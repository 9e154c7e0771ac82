"""Training that is stopped, paused or slow: only time in which it ran counts."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from chain.errors import DeadlineError, TxError, UnreachableError, WorkerError
from chain.records import RoundPhase
from learning.evaluate import holdout_loss, holdout_windows, windows_at_a_time
from learning.init import initial_shards
from learning.state import sections_root
from learning.windows import MAX_WINDOWS
from node import submission as module
from node.cli.progress import TerminalProgress
from node.cli.train import pausable
from node.learner import Learner
from node.patience import MOST_BETWEEN_TICKS_S, Patience, RunningClock
from node.submission import Watch
from node.worker.client import Worker
from node.worker.protocol import Message
from node.worker.training import TrainJob, TrainOutcome
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches
from tests.unit.test_learner_resume import ROUND
from tests.unit.test_worker_client import with_worker

BASE = initial_shards(TINY)
JOB = TrainJob(TINY, TINY_TRAINING, 0, sections_root(BASE), BASE, tiny_batches())
NIGHT_S = 8 * 3600.0


class Time:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


# --- the clock -----------------------------------------------------------------------------------


def test_time_in_which_we_did_not_run_does_not_count() -> None:
    time = Time()
    clock = RunningClock(time)
    for _ in range(10):
        time.at += 1.0
        clock.seconds()
    assert clock.seconds() == 10.0
    time.at += NIGHT_S  # stopped, or the lid was closed
    assert clock.seconds() == 10.0 + MOST_BETWEEN_TICKS_S
    time.at -= 5.0  # set back
    assert clock.seconds() == 10.0 + MOST_BETWEEN_TICKS_S
    clock.hold()
    for _ in range(10):
        time.at += 1.0
        assert clock.seconds() == 10.0 + MOST_BETWEEN_TICKS_S
    clock.go_on()
    time.at += 2.0
    assert clock.seconds() == 12.0 + MOST_BETWEEN_TICKS_S


def test_patience_lasts_as_long_as_there_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.patience.TICK_S", 0.0)
    time = Time()

    async def run(*moves: float, progress: bool) -> None:
        """Each move takes so long, as the clock has it."""
        async with Patience(5.0, RunningClock(time)) as patience:
            for seconds in moves:
                time.at += seconds
                for _ in range(4):  # ticks
                    await asyncio.sleep(0)
                if progress:
                    patience.progress()

    asyncio.run(run(*[2.0] * 10, progress=True))
    asyncio.run(run(1.0, NIGHT_S, progress=False))  # 1 s and what passes between two ticks
    with pytest.raises(TimeoutError):
        asyncio.run(run(*[2.0] * 10, progress=False))
    with pytest.raises(TimeoutError):
        asyncio.run(run(*[NIGHT_S] * 3, progress=False))


# --- the worker ----------------------------------------------------------------------------------


def test_a_training_is_paused_and_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one life of a process, which starts paused: paused by signal for longer than a step may
    take; longer in all than one step may take; and stuck."""
    time = Time()

    async def body(worker: Worker) -> None:
        worker.clock = RunningClock(time)
        with pausable(worker, TerminalProgress()):
            worker.pause()
            plain = asyncio.create_task(worker.train(JOB))
            while worker.pid is None:
                await asyncio.wait([plain], timeout=0.01)
            assert os.getpgid(worker.pid) == os.getpgid(0)  # Ctrl-Z stops both
            await pass_time(20, plain)
            assert not plain.done()
            worker.go_on()
            await check_pause(worker, await plain)
        await check_slow(worker)

    async def pass_time(seconds: int, over: asyncio.Task[Any]) -> None:
        for _ in range(seconds):
            time.at += 1.0
            await asyncio.wait([over], timeout=0.01)  # ticks

    async def check_pause(worker: Worker, plain: TrainOutcome) -> None:
        steps: list[int] = []

        def on_step(done: int, loss: float) -> None:
            steps.append(done)
            if done == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

        going = asyncio.create_task(worker.train(JOB, on_step))
        while len(steps) < 3:
            await asyncio.wait([going], timeout=0.01)
        await pass_time(20, going)
        assert not going.done()
        assert steps[-1] < TINY_TRAINING.steps
        assert worker.clock.seconds() == 0.0
        os.kill(os.getpid(), signal.SIGUSR2)
        paused = await going
        assert steps == list(range(1, TINY_TRAINING.steps + 1))
        assert (paused.state_hashes, paused.payload) == (plain.state_hashes, plain.payload)
        assert paused.seconds == 0.0

    async def check_slow(worker: Worker) -> None:
        def slow(done: int, loss: float) -> None:
            time.at += 2.9

        found = await worker.train(JOB, slow)
        assert found.seconds == pytest.approx(2.9 * TINY_TRAINING.steps)
        stuck = asyncio.create_task(
            worker.train(JOB, lambda done, loss: os.kill(worker.pid or 0, signal.SIGSTOP))
        )
        while not stuck.done():
            time.at += 1.0
            await asyncio.wait([stuck], timeout=0.01)
        with pytest.raises(WorkerError, match="the worker said nothing for 5 s"):
            await stuck

    monkeypatch.setattr("node.patience.TICK_S", 0.005)
    with_worker(body, timeout_s=5.0)
    told = capsys.readouterr().err
    assert "training is paused" in told
    assert "training goes on" in told


def test_losses_take_their_time_as_long_as_windows_get_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each word of the process comes 2.9 s after the one before, and 5 s of silence end a job."""
    time = Time()
    heard: list[str] = []

    async def body(worker: Worker) -> None:
        worker.clock, plain = RunningClock(time), worker._message

        async def slow(process: asyncio.subprocess.Process) -> Message:
            message = await plain(process)
            time.at += 2.9
            worker.clock.seconds()
            heard.append(message.get("event", "result"))
            return message

        monkeypatch.setattr(worker, "_message", slow)
        text = library(20_000)
        assert await worker.holdout(TINY, BASE, text) == holdout_loss(TINY, BASE, text)
        pieces = MAX_WINDOWS // windows_at_a_time(TINY)
        assert told() == ["begun", *["windows"] * pieces, "result"]
        windows = holdout_windows(text, TINY.context)
        measured = await worker.measure(TINY, BASE, windows)
        assert len(measured.losses) == MAX_WINDOWS
        assert told() == ["begun", *["windows"] * pieces, "result"]
        windows = windows[:128]
        payload = (await worker.train(JOB)).payload
        told()
        found = await worker.evaluate(TINY, BASE, payload, windows)
        assert found.base != found.delta
        assert told() == ["begun", *["windows"] * (2 + 1 + 2), "result"]  # base, payload, delta

    def told() -> list[str]:
        said = heard.copy()
        heard.clear()
        return said

    monkeypatch.setattr("node.patience.TICK_S", 0.005)
    with_worker(body, timeout_s=5.0)
    assert time.at > 60.0


def test_a_pause_of_nothing_says_that_it_is_one() -> None:
    class Told(TerminalProgress):
        """Hands on what is said."""

        def say(self, text: str) -> None:
            lines.put_nowait(text)

    lines: asyncio.Queue[str] = asyncio.Queue()

    async def body(worker: Worker) -> None:
        with pausable(worker, Told()):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert "nothing trains now, and nothing will; SIGUSR2" in await lines.get()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert await lines.get() == "training will not be paused"

    with_worker(body)


# --- what is shown -------------------------------------------------------------------------------


def test_speed_and_time_left_are_of_the_time_that_it_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("node.cli.progress.REFRESH_S", 0.0)
    bar = TerminalProgress()
    bar.step(21, 50, 2.0, 1000, 4.0)  # gone on from a checkpoint: the process took a while
    bar.step(26, 50, 1.5, 1000, 14.0)
    assert "26/50  loss 1.500  500 bytes/s  48 s left" in capsys.readouterr().err
    bar.step(21, 50, 2.0, 1000, 1.0)  # another worker, from the last checkpoint
    bar.step(22, 50, 2.0, 1000, 2.0)
    assert "22/50  loss 2.000  1,000 bytes/s  28 s left" in capsys.readouterr().err


# --- the round -----------------------------------------------------------------------------------


class Node:
    """A chain that stands where it is told to, or is away."""

    def __init__(self) -> None:
        self.client, self.away, self.looks, self.height = self, False, 0, 7

    async def events(self) -> Any:
        raise UnreachableError("no stream")
        yield

    async def round(self, number: int) -> Any:
        self.looks += 1
        if self.away:
            raise UnreachableError("away")
        return replace(ROUND, phase=RoundPhase.TRAIN if self.looks < 3 else RoundPhase.REVEAL)


def learner(node: Node) -> Learner:
    made = object.__new__(Learner)
    made._submission = type("Rounds", (), {"watch": Watch(node)})  # type: ignore[assignment,arg-type]
    return made


def test_a_round_that_goes_on_ends_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause there is no use in the rest; while the node is away there may be."""
    monkeypatch.setattr(module, "POLL_S", 0.0)
    ended: list[str] = []

    async def training() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("training")
        return ""

    async def quick() -> str:
        return "made"

    async def run(node: Node, work: Any) -> str:
        return await learner(node)._in_time(ROUND, work)

    with pytest.raises(TxError, match="has passed its training phase") as caught:
        asyncio.run(run(Node(), training()))
    assert caught.value.code == "wrong_phase"
    assert ended == ["training"]
    assert asyncio.run(run(Node(), quick())) == "made"
    gone = Node()
    gone.away = True
    assert asyncio.run(run(gone, quick())) == "made"


def test_a_chain_that_stands_still_is_waited_for_only_while_we_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.0)
    monkeypatch.setattr("node.patience.TICK_S", 0.0)
    time = Time()
    monkeypatch.setattr(module, "RunningClock", lambda: RunningClock(time))

    async def wait(seconds: float, looks: int) -> str:
        left = looks

        async def look() -> str | None:
            nonlocal left
            left -= 1
            time.at += seconds
            return None if left else "found"

        return await Watch(Node()).until(look)  # type: ignore[arg-type]

    assert asyncio.run(wait(NIGHT_S, 20)) == "found"
    with pytest.raises(DeadlineError, match=r"no block for 120 s \(height 7\)"):
        asyncio.run(wait(2.0, 1000))
