"""A learner that is killed, comes late, or whose node is away for a while goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.errors import DeadlineError, TxError, UnreachableError, WorkerError
from chain.hashes import Hash32
from chain.phases import first_round
from chain.records import DeltaStatus, RoundPhase, RoundRecord
from chain.types import ChainId, PubKey, ShardIndex
from learning.init import initial_shards
from learning.state import TrainState, deserialize_state, sections_root, serialize_state
from node import learner as module
from node.home import Home
from node.learner import Learner
from node.learner_files import LearnerFiles
from node.patience import RunningClock
from node.submission import Submission, Summary
from node.worker import protocol
from node.worker.client import Worker
from node.worker.training import Reached, TrainJob, TrainOutcome
from tests.kit import waiting
from tests.kit.nano import TINY, TINY_TRAINING, tiny_batches
from tests.unit.test_learner_inputs import Play, mined, play

BASE = initial_shards(TINY)
ROUND = replace(first_round(sections_root(BASE)), seed=Hash32(b"s" * 32))


def files(directory: Path) -> LearnerFiles:
    return LearnerFiles(Home(directory), ChainId(b"c" * 32), PubKey(b"a" * 32))


def state(step: int, fill: int = 0) -> bytes:
    moments = tuple(bytes([fill]) * len(section) for section in BASE)
    return serialize_state(TrainState(tuple(BASE), moments, moments, step=step, updates=step))


def keep(kept: LearnerFiles, round_: RoundRecord, index: int, data: bytes) -> None:
    kept.save_checkpoint(round_, index, deserialize_state(TINY, data).hash(), data)


def gone_on_from(kept: LearnerFiles, round_: RoundRecord) -> Reached | None:
    return kept.training(TINY, TINY_TRAINING, round_, round_.base_root)


def reached(*states: bytes) -> Reached:
    """What it is, if these are the checkpoints."""
    found = [deserialize_state(TINY, data) for data in states]
    hashes = tuple(each.hash() for each in found)
    return Reached(hashes, states[-1], found[0].optimizer_root())


# --- checkpoints of a training in hand ---------------------------------------------------------


def test_checkpoints_are_kept_until_their_round_is_over(tmp_path: Path) -> None:
    kept = files(tmp_path)
    assert gone_on_from(kept, ROUND) is None
    states = [state(i * TINY_TRAINING.segment_steps) for i in range(3)]
    kept.begin_training(ROUND, "native/a")
    for i, data in enumerate(states):
        keep(kept, ROUND, i, data)
    assert gone_on_from(files(tmp_path), ROUND) == reached(*states)
    other = replace(ROUND, seed=Hash32(b"t" * 32))
    assert gone_on_from(kept, other) is None
    kept.begin_training(other, "native/a")
    keep(kept, other, 0, states[0])
    assert gone_on_from(kept, ROUND) is None
    kept.drop_training()
    assert gone_on_from(kept, other) is None


def test_a_checkpoint_that_is_none_ends_what_is_gone_on_from(tmp_path: Path) -> None:
    kept = files(tmp_path)
    good = [state(i * TINY_TRAINING.segment_steps) for i in range(3)]
    kept.begin_training(ROUND, "native/a")
    for i, data in enumerate(good):
        keep(kept, ROUND, i, data)
    (path,) = tmp_path.glob("learner/*/*/training/*/1.state")
    for damaged in (good[1][:-1], good[1][:-1] + b"!", bytes(len(good[1])), b""):
        path.write_bytes(damaged)  # as a machine that loses its power may leave it
        assert gone_on_from(kept, ROUND) == reached(good[0])
        assert kept.checkpoint(TINY, ROUND, 1) is None
    keep(kept, ROUND, 1, good[2])  # of another step
    assert gone_on_from(kept, ROUND) == reached(good[0])
    stranger = replace(ROUND, base_root=Hash32(b"x" * 32))
    assert gone_on_from(kept, stranger) is None


def test_checkpoints_of_another_profile_are_discarded(tmp_path: Path) -> None:
    """A manifest names one profile, in which any of its segments is replayed."""
    kept, made = files(tmp_path), learner(tmp_path, Dying([]))
    native, exact = "native/torch-2/avx2/threads-1/01", "exact/1"

    def begin(profile: str) -> str:
        made._progress.lines = told = [""]  # type: ignore[attr-defined]
        asyncio.run(made._begin(ROUND, profile))
        return told[-1]

    assert begin(native) == ""
    keep(kept, ROUND, 0, state(0))
    assert begin(native) == ""
    assert gone_on_from(kept, ROUND) == reached(state(0))
    assert "made in the numeric profile native/torch-2" in begin(exact)
    assert gone_on_from(kept, ROUND) is None
    assert kept.training_profile(ROUND) is None
    keep(kept, ROUND, 0, state(0))
    assert kept.training_profile(ROUND) == exact
    (path,) = tmp_path.glob("learner/*/*/training/*/profile")
    path.unlink()  # as an earlier version kept them
    assert "profile of an earlier version" in begin(exact)
    assert gone_on_from(kept, ROUND) is None


NONE = Hash32(bytes(32))
OUTCOME = TrainOutcome(b"", NONE, (), NONE, NONE, NONE, NONE, (), b"", "", 0.0, 0.0, (), 0.0)


class Dying:
    """A worker that dies after so many checkpoints, twice, and then trains to the end."""

    def __init__(self, dies_after: Sequence[int]) -> None:
        self.jobs: list[TrainJob] = []
        self.clock = RunningClock()
        self._dies_after = list(dies_after)

    async def train(self, job: TrainJob, on_progress: Any, on_checkpoint: Any) -> TrainOutcome:
        self.jobs.append(job)
        left = self._dies_after.pop(0) if self._dies_after else job.training.segments + 1
        for i in range(len(job.done.state_hashes) if job.done else 0, left):
            made = state(i * job.training.segment_steps)
            on_checkpoint(deserialize_state(TINY, made).hash(), made)
        if left <= job.training.segments:
            raise WorkerError("the worker died (signal 9)")
        return replace(OUTCOME)


class Quiet:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, done: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """Nobody watches."""


def learner(directory: Path, worker: Dying | Worker) -> Learner:
    made = object.__new__(Learner)
    made._files = files(directory)
    made._worker, made._progress = worker, Quiet()  # type: ignore[assignment]
    return made


JOB = TrainJob(TINY, TINY_TRAINING, 0, ROUND.base_root, BASE, tiny_batches())


def test_a_worker_that_dies_costs_no_more_than_a_segment(tmp_path: Path) -> None:
    worker, kept = Dying([2, 4]), files(tmp_path)
    kept.begin_training(ROUND, "native/a")
    asyncio.run(learner(tmp_path, worker)._trained(ROUND, JOB))
    states = [state(i * TINY_TRAINING.segment_steps) for i in range(5)]
    assert [job.done for job in worker.jobs] == [None, reached(*states[:2]), reached(*states[:4])]
    assert [kept.checkpoint(TINY, ROUND, i) for i in range(6)] == [*states, None]
    worker = Dying([1, 2, 3, 4])
    files(tmp_path / "again").begin_training(ROUND, "native/a")
    with pytest.raises(WorkerError):
        asyncio.run(learner(tmp_path / "again", worker)._trained(ROUND, JOB))
    assert len(worker.jobs) == module.TRAIN_TRIES


def test_losses_that_nobody_saw_are_not_told() -> None:
    """All steps were done by the run before: none has a loss or a load in this one."""
    assert module.told(OUTCOME, 50) == "all 50 steps were trained before; payload 0 bytes"
    seen = replace(OUTCOME, first_loss=2.5, last_loss=1.25, imbalance=(1.0, 1.5), seconds=3.0)
    assert module.told(seen, 50) == (
        "trained 50 steps in 3.0 s; training loss 2.500 → 1.250; busiest expert 1.50 × the mean; "
        "payload 0 bytes"
    )


def test_a_training_that_is_gone_on_with_fits_into_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `small` five checkpoints have 4.8 GB, more than a frame may. Whatever has been reached,
    one is sent, and those that are kept are not written again."""
    residual = tuple(bytes(len(section)) for section in BASE)
    most = 2 * len(state(0))  # base and residual have a third of it each
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", most)
    kept = files(tmp_path)
    kept.begin_training(ROUND, "native/a")
    written: list[int] = []

    class Killed(Worker):
        """Its process is killed in the last segment, once."""

        def __init__(self) -> None:
            super().__init__()
            self.lives = 1

        async def train(self, job: TrainJob, on_progress: Any, on_checkpoint: Any) -> TrainOutcome:
            def step_done(done: int, loss: float) -> None:
                if done == job.training.steps - 1 and self.lives:
                    self.lives = 0
                    os.kill(self.pid or 0, signal.SIGKILL)

            return await super().train(job, step_done, on_checkpoint)

    class Counting(LearnerFiles):
        def save_checkpoint(self, round_: RoundRecord, index: int, *made: Any) -> None:
            written.append(index)
            super().save_checkpoint(round_, index, *made)

    async def run() -> list[TrainOutcome]:
        worker = Killed()
        made = learner(tmp_path, worker)
        made._files.__class__ = Counting
        try:
            outcomes = [await made._trained(ROUND, replace(JOB, residual=residual))]
            whole = kept.training(TINY, TINY_TRAINING, ROUND, ROUND.base_root)
            again = replace(JOB, residual=residual, done=whole)  # killed before its commit
            return [*outcomes, await made._trained(ROUND, again)]
        finally:
            await worker.close()

    first, second = asyncio.run(run())
    assert written == [0, 1, 2, 3, 4]
    assert first.state_hashes == second.state_hashes
    assert (first.payload, first.state) == (second.payload, second.state)
    assert (first.optimizer_before, first.residual) == (second.optimizer_before, second.residual)


def test_whether_checkpoints_are_kept_is_seen_without_reading_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = files(tmp_path)
    kept.begin_training(ROUND, "native/a")
    keep(kept, ROUND, 0, state(0))
    read: list[str] = []
    monkeypatch.setattr(kept, "_read", lambda name: read.append(name) or b"native/a")
    assert kept.training_profile(ROUND) == "native/a"
    kept.begin_training(ROUND, "native/a")
    assert read
    assert all(name.endswith("/profile") for name in read)


# --- what was on its way when the last run ended -------------------------------------------------


def test_a_commit_on_its_way_is_not_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it was sent and before it was final: the chain has it by the time that the next
    run sends it again."""

    async def body(play: Play) -> None:
        prepared = await play.prepare()
        first = play.submission()
        going = asyncio.create_task(first._commit(prepared))
        while not play.chain.pool.size:
            await asyncio.wait([going], timeout=0.01)
        going.cancel()
        second = play.submission()
        delta = await mined(play.chain, second._commit(prepared))
        assert [delta] == list(play.chain.state.round().deltas)
        record = play.chain.state.delta(delta)
        assert record.manifest == prepared.manifest  # came with it
        monkeypatch.setattr(second, "_send", refused("duplicate"))
        assert await second._in_time(prepared.manifest)
        monkeypatch.setattr(second, "_send", refused("wrong_phase"))
        assert not await second._in_time(prepared.manifest)
        assert "too late" in play.progress.lines[-1]
        monkeypatch.setattr(second, "_send", refused("bad_manifest"))
        with pytest.raises(TxError, match="no"):
            await second._in_time(prepared.manifest)

    play(tmp_path, monkeypatch, body)


def refused(code: str) -> Any:
    async def send(payload: Any) -> Any:
        raise TxError(code, "no")

    return send


def test_a_reveal_that_is_too_late_waits_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its commit and started again when the reveal is over: the round ends without it,
    and what it learnt is not taken for what the chain has."""

    async def body(play: Play) -> None:
        prepared = await play.prepare()
        delta = await mined(play.chain, play.submission()._commit(prepared))
        (folder,) = play.directory.glob("learner/*/*")
        (folder / "next.state").write_bytes(b"learnt")
        play.until(RoundPhase.JURY)
        going = asyncio.create_task(mined(play.chain, play.submission().resume()))
        play.chain.until(lambda s: s.head.round == 1, most=2000)
        summary = await going
        assert summary is not None
        assert (summary.delta, summary.status) == (delta.hex(), "unavailable")
        assert play.files.pending() is None
        assert not list(folder.glob("*.state"))
        assert play.chain.state.delta(delta).status == DeltaStatus.UNAVAILABLE

    play(tmp_path, monkeypatch, body)


# --- rounds that go on without ------------------------------------------------------------------


class Rounds:
    """Stands for `Submission`: each call of a round ends as scripted."""

    def __init__(self, ends: Sequence[Exception]) -> None:
        self.ends, self.waited = list(ends), 0
        self.watch = self

    async def resume(self) -> Summary | None:
        if self.ends:
            raise self.ends.pop(0)
        return Summary(3, "d", "merged", True, None, 0, 0, 0, "", None, None, True)

    async def until(self, look: Any) -> None:
        self.waited += 1
        if self.waited == 1:
            raise UnreachableError("gone for two minutes")


def test_a_missed_round_and_a_node_that_is_away_end_no_learner(tmp_path: Path) -> None:
    class Head:
        head = None

    made = object.__new__(Learner)
    away = [UnreachableError("gone"), UnreachableError("gone"), DeadlineError("no block")]
    rounds = Rounds([TxError("wrong_phase", "late"), *away, TxError("x", "y")])
    made._submission, made._files = rounds, files(tmp_path)  # type: ignore[assignment]
    made._progress, made._reader = Quiet(), Head()  # type: ignore[assignment]
    with pytest.raises(TxError, match="y"):
        asyncio.run(made.train_round())
    assert rounds.waited == 3
    assert asyncio.run(made.train_round()).round == 3


def test_a_round_without_a_place_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(play: Play) -> None:
        second: Submission = play.submission()
        monkeypatch.setattr(second, "_send", refused("no_slot"))
        assert not await second._declare(play.chain.state.round().number)
        assert "waiting for the next round" in play.progress.lines[-1]

    play(tmp_path, monkeypatch, body)


def test_a_round_declared_with_another_part_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain takes no proof of another part than the one declared before the seed was known."""

    async def body(play: Play) -> None:
        joined = await play.submission().join()
        assert joined.number == 0
        second = play.submission()
        waits = asyncio.create_task(second.join(shards=[ShardIndex(0)]))
        lines = play.progress.lines
        await waiting.reached(lambda: "another part" in "".join(lines) or None, 30, "a word")
        play.until(RoundPhase.OPEN)
        assert (await mined(play.chain, waits)).number == 1
        declared = play.chain.state.round(1)
        assert declared.joined == (second.account,)
        assert await second._declared(declared, [ShardIndex(0)])
        assert not await second._declared(declared, [])

    play(tmp_path, monkeypatch, body)
