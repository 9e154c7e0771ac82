"""The worker process: the same bits in every process, and a death that harms nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvloop

from chain.errors import DecodeError, InputError, WorkerError
from chain.hashes import ZERO_HASH
from learning.compress import compress
from learning.init import initial_shards
from learning.profile import EXACT
from learning.spec import NANO_MODEL, NANO_TRAINING
from learning.state import TrainState, deserialize_state, sections_root, serialize_state
from node.worker import client
from node.worker.client import Replay, TrainJob, TrainOutcome, Worker
from node.worker.protocol import frame_bytes, unpack_body
from tests.kit.nano import TINY, TINY_TRAINING, library, tiny_batches

BASE = initial_shards(TINY)
BATCHES = tiny_batches()
JOB = TrainJob(TINY, TINY_TRAINING, 0, sections_root(BASE), BASE, BATCHES)


def with_worker(body: Callable[[Worker], Coroutine[Any, Any, None]], **options: float) -> None:
    """Run `body` as a node would, and leave no process behind."""

    async def run() -> None:
        worker = Worker(**options)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(body(worker), 100)
        finally:
            await worker.close()

    uvloop.run(run())


def test_processes_come_and_go_and_train_the_same_bits() -> None:
    """A life: trained here, cancelled there, killed in between, replayed by the survivor."""

    async def body(worker: Worker) -> None:
        steps: list[int] = []
        one, states = await trained(worker, JOB, steps)
        first = worker.pid
        assert steps == list(range(1, TINY_TRAINING.steps + 1))
        check_outcome(one, states)
        job = replace(JOB, round=1, previous=one.state, residual=one.residual)
        two = await worker.train(job)
        assert two.residual_before == one.residual_after
        assert two.optimizer_before == one.optimizer_after
        assert two.payload != one.payload

        steps.clear()
        half = replace(JOB, done=states[:3])  # interrupted after two of its segments
        rest, reached = await trained(worker, half, steps)
        assert steps == list(range(2 * TINY_TRAINING.segment_steps + 1, TINY_TRAINING.steps + 1))
        assert reached == states
        seen: dict[str, Any] = {"first_loss": 0, "imbalance": (), "seconds": 0}  # of its own steps
        assert replace(rest, **seen) == replace(one, **seen)

        task = asyncio.create_task(worker.train(JOB, lambda done, loss: task.cancel() and None))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.pid is None

        def kill(done: int, loss: float) -> None:
            os.kill(worker.pid or 0, signal.SIGKILL)

        killed = asyncio.create_task(worker.train(JOB, kill))
        behind = asyncio.create_task(replayed(worker, one, states))
        with pytest.raises(WorkerError, match="the worker died"):
            await killed
        await behind  # waited in line for a process that never came to it
        assert worker.pid not in (None, first)

        started = asyncio.Event()
        task = asyncio.create_task(worker.train(JOB, lambda done, loss: started.set()))
        await started.wait()
        await worker.close()
        with pytest.raises(WorkerError):
            await task
        with pytest.raises(WorkerError, match="closed"):
            await worker.profile()

    with_worker(body)


async def trained(
    worker: Worker, job: TrainJob, steps: list[int]
) -> tuple[TrainOutcome, list[bytes]]:
    """What a training makes, and its checkpoints; its steps are told to `steps`."""
    states: list[bytes] = []
    made = await worker.train(
        job, lambda done, loss: steps.append(done), lambda _, state: states.append(state)
    )
    return made, states


def check_outcome(outcome: TrainOutcome, checkpoints: Sequence[bytes]) -> None:
    assert outcome.profile.startswith("native/torch-")
    assert (outcome.residual_before, outcome.optimizer_before) == (ZERO_HASH, ZERO_HASH)
    states = [deserialize_state(TINY, data) for data in checkpoints]
    assert [state.step for state in states] == [0, 2, 4, 6, 8]
    assert tuple(state.hash() for state in states) == outcome.state_hashes
    assert states[0] == TrainState.fresh(BASE)
    assert outcome.state == checkpoints[-1]
    assert states[-1].optimizer_root() == outcome.optimizer_after
    after = compress(TINY, TINY_TRAINING, 0, JOB.base_root, BASE, states[-1].weights, None)
    assert (after.payload, after.residual) == (outcome.payload, outcome.residual)


async def replayed(worker: Worker, outcome: TrainOutcome, checkpoints: Sequence[bytes]) -> None:
    for segment in range(TINY_TRAINING.segments):
        start, end = TINY_TRAINING.segment_range(segment)
        state = checkpoints[segment]
        again = await worker.replay(TINY, TINY_TRAINING, state, BATCHES[start:end], outcome.profile)
        assert again.before == outcome.state_hashes[segment]
        assert again.after == outcome.state_hashes[segment + 1]
        assert again.profile == outcome.profile


async def profiles_are_kept_apart(worker: Worker, native: TrainOutcome) -> None:
    """A round trained in the exact profile is replayed in it; what is of another machine's class
    is not replayed, and what nobody knows is refused."""
    exact, states = await trained(worker, replace(JOB, profile="exact"), [])
    assert exact.profile == EXACT == await worker.profile("exact")
    assert exact.state_hashes[0] == native.state_hashes[0]
    assert not set(exact.state_hashes[1:]) & set(native.state_hashes)
    await replayed(worker, exact, states)
    rule, start, batches = TINY_TRAINING, states[0], BATCHES[:2]
    foreign = native.profile[:-1] + ("0" if native.profile[-1] != "0" else "1")
    found = await worker.replay(TINY, rule, start, batches, foreign)
    assert found == Replay(ZERO_HASH, ZERO_HASH, native.profile)
    with pytest.raises(InputError, match="the numeric profile 'exact/2' is unknown here"):
        await worker.replay(TINY, rule, start, batches, "exact/2")
    with pytest.raises(InputError, match="a worker has no profile 'fp8'"):
        await worker.train(replace(JOB, profile="fp8"))  # type: ignore[arg-type]
    half, states = await trained(worker, replace(JOB, profile="bf16"), [])
    assert half.profile.startswith("bf16/torch-")
    assert not set(half.state_hashes[1:]) & {*native.state_hashes, *exact.state_hashes}
    await replayed(worker, half, states)
    state = deserialize_state(TINY, start)
    huge = np.full(len(BASE[-2]) // 4, 3e38, "<f4").tobytes()  # of the head
    lost = serialize_state(replace(state, weights=(*state.weights[:-2], huge, state.weights[-1])))
    found = await worker.replay(TINY, rule, lost, batches, EXACT)
    assert (found.after, found.before) == (ZERO_HASH, deserialize_state(TINY, lost).hash())


def test_losses_and_what_the_caller_got_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_WAITING", 1)

    async def body(worker: Worker) -> None:
        windows = BATCHES[0]
        alone = asyncio.create_task(worker.evaluate(TINY, BASE, None, windows))
        await asyncio.sleep(0)
        with pytest.raises(WorkerError, match="wait for the worker already"):
            await worker.profile()
        assert (await alone).delta == ()
        one = await worker.train(JOB)
        found = await worker.evaluate(TINY, BASE, one.payload, windows)
        assert found.base == (await alone).base
        assert sum(found.delta) < sum(found.base)
        none = await worker.evaluate(TINY, BASE, one.payload, windows, numerator=0)
        assert none.delta == none.base
        assert 5e9 < await worker.holdout(TINY, BASE, library(5000)) < 7e9
        pid, process = worker.pid, worker._process
        with pytest.raises(DecodeError, match="delta"):
            await worker.evaluate(TINY, BASE, b"junk", windows)
        with pytest.raises(DecodeError, match="incomplete"):
            await worker.replay(TINY, TINY_TRAINING, b"\0" * 9, BATCHES[:1], one.profile)
        with pytest.raises(InputError, match="do not fill the shape"):
            await worker.train(replace(JOB, batches=BATCHES[:1]))
        with pytest.raises(InputError, match="a holdout of 3 bytes"):
            await worker.holdout(TINY, BASE, b"abc")
        await profiles_are_kept_apart(worker, one)
        assert worker.pid == pid  # none of this cost the process
        assert process is not None
        await process.wait()  # but idleness does
        assert worker.pid is None

    with_worker(body, idle_s=2)


def test_a_process_that_was_killed_while_idle_costs_no_job() -> None:
    """Out of memory takes the largest, which is often an idle worker; nobody notices at once."""

    async def body(worker: Worker) -> None:
        profile = await worker.profile()
        for _ in range(2):
            killed = worker.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert await worker.profile() == profile
            assert worker.pid not in (None, killed)

    with_worker(body)


def test_a_death_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(worker: Worker) -> None:
        monkeypatch.setattr(client.sys, "executable", "/bin/false")
        with pytest.raises(WorkerError, match=r"the worker died \(exit status 1, nothing"):
            await worker.profile()
        monkeypatch.undo()

        def kill(done: int, loss: float) -> None:
            os.kill(worker.pid or 0, signal.SIGKILL)

        with pytest.raises(WorkerError, match=r"the worker died \(signal 9"):
            await worker.train(JOB, kill)

    with_worker(body)


def test_time_runs_out() -> None:
    async def body(worker: Worker) -> None:
        with pytest.raises(WorkerError, match=r"the worker said nothing for 0\.01 s"):
            await worker.profile()
        assert worker.pid is None

    with_worker(body, timeout_s=0.01)


def test_frames_are_bounded() -> None:
    with pytest.raises(DecodeError, match="at most"):
        frame_bytes(b"\xff" * 8)
    for body in (b"", b"\xc1", b"\x01"):
        with pytest.raises(DecodeError):
            unpack_body(body)


def test_a_job_that_is_dropped_within_a_large_answer_ends_its_process() -> None:
    """asyncio's own loop stops reading a pipe whose reader has gone, and would wait for its end."""
    base = initial_shards(NANO_MODEL)
    rule = replace(NANO_TRAINING, steps=2, segment_steps=1, batch=1)
    windows = np.zeros((2, 1, NANO_MODEL.context + 1), np.uint8)
    job = TrainJob(NANO_MODEL, rule, 0, sections_root(base), base, windows)

    async def run() -> None:
        worker = Worker()

        async def drop() -> None:
            pipe: Any = worker._process and worker._process.stdout
            while len(pipe._buffer) < 1 << 18:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
            training.cancel()

        dropping: list[asyncio.Task[None]] = []

        def step_done(done: int, loss: float) -> None:
            if done == 1:  # a checkpoint follows
                dropping.append(asyncio.create_task(drop()))

        training = asyncio.create_task(worker.train(job, step_done))
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await training
            await asyncio.gather(*dropping)
            await worker.close()

    asyncio.run(run())


def test_a_worker_that_is_closed_while_it_answers_is_waited_for_to_its_end() -> None:
    """An answer arrives just as `close` begins to read, and then the pipe ends: asyncio would
    wake neither of two readers."""

    async def run() -> None:
        worker = Worker()
        pipe = asyncio.StreamReader()

        async def ended() -> int:
            return -signal.SIGKILL

        process: Any = SimpleNamespace(stdout=pipe, returncode=None, kill=lambda: None, wait=ended)
        job = asyncio.create_task(worker._message(process))
        await asyncio.sleep(0)
        closing = asyncio.create_task(worker._kill(process))
        pipe.feed_data(bytes(3))
        for _ in range(4):
            await asyncio.sleep(0)
        pipe.feed_eof()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.IncompleteReadError):
                await job
            await closing

    asyncio.run(run())
