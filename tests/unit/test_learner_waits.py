"""What wakes a learner, and what it gives to those who replay its training."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chain.hashes import ZERO_HASH, Hash32
from chain.phases import first_round
from chain.records import RoundPhase, RoundRecord
from chain.types import ChainId, PubKey, TxId
from learning import state_parts
from learning.init import initial_shards
from learning.state import TrainState, residual_root, sections_root, serialize_state
from node import submission as module
from node.client import ServerEvent
from node.home import Home
from node.learner_files import LearnerFiles
from node.services.duty_context import InHand
from node.submission import Submission, Watch
from tests.kit.nano import TINY
from tiles.merkle import tile_root

BASE = initial_shards(TINY)
DELTA = TxId(b"d" * 32)
ROUND = replace(
    first_round(sections_root(BASE)),
    seed=Hash32(b"s" * 32),
    phase=RoundPhase.SCREEN_COMMIT,
    audited=DELTA,
    audit_segment=1,
)


class Node:
    """A chain whose events and whose round are as scripted."""

    def __init__(self, *events: str) -> None:
        self.client, self.looks, self.height = self, 0, 7
        self._events, self._read = events, asyncio.Event()

    async def events(self) -> AsyncIterator[ServerEvent]:
        for name in self._events:
            self._read.clear()
            yield ServerEvent(name, {})
            await self._read.wait() if name == "phase" else await asyncio.sleep(0)
        await asyncio.Event().wait()

    async def round(self, number: int) -> RoundRecord:
        self.looks += 1
        self._read.set()
        phases = "phase" in self._events
        ready = self.looks > 1 + phases
        return replace(ROUND, phase=RoundPhase.TRAIN if not ready else RoundPhase.REVEAL)


def looks(*events: str) -> int:
    """How often a round is read until it is revealing."""

    async def run() -> int:
        node = Node(*events)
        found = await Watch(node).round(0, lambda x: x.phase >= RoundPhase.REVEAL)  # type: ignore[arg-type]
        assert found.phase == RoundPhase.REVEAL
        return node.looks

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_a_round_is_read_when_its_phase_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 1000.0)
    assert looks("block") == 2  # what was missed before the stream was open is seen at its begin
    assert looks("block", "block", "tx", "block", "phase") == 3
    monkeypatch.setattr(module, "POLL_S", 0.01)
    assert looks("peers") == 2


# --- what is replayed ----------------------------------------------------------------------------


def files(directory: Path) -> LearnerFiles:
    return LearnerFiles(Home(directory), ChainId(b"c" * 32), PubKey(b"a" * 32))


class Learner:
    """A submission whose round stands where it is told to, before a node that takes checkpoints."""

    def __init__(self, directory: Path, round_: RoundRecord) -> None:
        self.files = files(directory)
        self.residual_before = ZERO_HASH
        self.taken: dict[Hash32, bytes] = {}
        self.lines: list[str] = []
        self.files.begin_training(round_, "native/a")
        self.states = []
        for i in range(3):
            moments = tuple(bytes([i]) * len(section) for section in BASE)
            state = TrainState(tuple(BASE), moments, moments, step=i, updates=i)
            self.files.save_checkpoint(round_, i, state.hash(), serialize_state(state))
            self.states.append(state)
        self._round = round_

    def open(self, *hashes: Hash32) -> None:
        manifest: Any = SimpleNamespace(
            round=0, state_hashes=hashes, shards=(), residual_before=self.residual_before
        )
        made: Any = object.__new__(Submission)
        made.files, made._client, made.progress = self.files, self, self
        made.reader = made.watch = self
        asyncio.run(made._open_training(manifest, DELTA))

    async def round(self, number: int, ready: Any) -> RoundRecord:
        assert ready(self._round)
        return self._round

    async def round_specs(self, number: int) -> Any:
        return SimpleNamespace(model=TINY)

    async def put_checkpoint(self, state_hash: Hash32, data: bytes) -> None:
        self.taken[state_hash] = data

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_checkpoint_that_is_drawn_is_uploaded(tmp_path: Path) -> None:
    learner = Learner(tmp_path, ROUND)
    hashes = [state.hash() for state in learner.states]
    learner.open(*hashes)
    assert learner.taken == {hashes[1]: serialize_state(learner.states[1])}
    assert learner.lines == ["segment 1 was drawn to be replayed: uploaded its checkpoint"]


def test_no_other_is(tmp_path: Path) -> None:
    others = replace(ROUND, audited=TxId(b"e" * 32))
    late = replace(ROUND, phase=RoundPhase.AGGREGATE)
    for round_ in (others, late, replace(ROUND, audited=None, phase=RoundPhase.DONE)):
        learner = Learner(tmp_path, round_)
        learner.open(*(state.hash() for state in learner.states))
        assert not learner.taken
        assert not learner.lines


def test_what_is_not_what_was_committed_to_is_kept_back(tmp_path: Path) -> None:
    """The learner's own node would look like a liar to those who fetch it."""
    learner = Learner(tmp_path, ROUND)
    hashes = [state.hash() for state in learner.states]
    learner.open(hashes[0], ZERO_HASH, hashes[2])
    (path,) = tmp_path.glob("learner/*/*/training/*/1.state")
    path.write_bytes(path.read_bytes()[:-1])
    learner.open(*hashes)
    path.unlink()
    learner.open(*hashes)
    assert not learner.taken
    assert len(learner.lines) == 3
    assert all("not here, or damaged: this delta proves nothing" in line for line in learner.lines)
    learner.files.drop_pending()
    assert not list(tmp_path.glob("learner/*/*/training/*"))


def residual(fill: bytes) -> tuple[bytes, ...]:
    return tuple(fill * len(section) for section in BASE)


def test_the_last_segment_is_shown_with_the_residual_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compression is replayed, too. The residual is needed when the next one has taken its
    place, and after a kill in between."""
    learner = Learner(tmp_path, ROUND)
    hashes = [state.hash() for state in learner.states]
    before, after = residual(b"b"), residual(b"a")
    learner.residual_before = root = residual_root(before)
    learner.files.save_next(b"", before)
    learner.files.promote_next()
    learner.files.save_next(b"", after)
    with monkeypatch.context() as killed:  # within the promotion
        killed.setattr(Path, "replace", stops_at("last.residual"))
        with pytest.raises(KeyboardInterrupt):
            learner.files.promote_next()
    for _ in range(2):
        learner.files = files(tmp_path)
        learner.files.promote_next()
    assert learner.files.residual_before(TINY, root) == b"".join(before)
    assert learner.files.residual_before(TINY, residual_root(after)) is None
    learner.open(*hashes)
    state = {hashes[1]: serialize_state(learner.states[1])}
    assert learner.taken == {root: b"".join(before)} | state
    assert list(learner.taken)[-1] == hashes[1]  # whoever finds it finds both
    learner.taken.clear()
    learner.open(*hashes, hashes[0])  # then it is not the last segment
    assert learner.taken == state
    learner.taken.clear()
    monkeypatch.setattr(state_parts, "PARTED_BYTES", 0)
    learner.open(*hashes)
    tiles = {tile_root(section): section for section in before}
    assert tiles.items() < learner.taken.items()
    assert learner.taken[root] == b"".join(tile_root(section) for section in before)
    learner.taken.clear()
    learner.files.drop_pending()
    assert learner.files.residual_before(TINY, root) is None
    learner = Learner(tmp_path, ROUND)
    learner.residual_before = root
    learner.open(*hashes)
    assert not learner.taken
    assert "the residual of the round before, is not here" in learner.lines[-1]


def stops_at(name: str) -> Any:
    """As if the process were killed before a file takes this name."""
    real = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if target.name == name:
            raise KeyboardInterrupt
        return real(self, target)

    return replaced


# --- what a juror sends together -----------------------------------------------------------------


def test_votes_wait_for_the_others_in_hand_but_not_for_long() -> None:
    async def run() -> None:
        screens = InHand()
        told: list[str] = []

        async def one(name: str, judged: asyncio.Event) -> None:
            with screens:
                await judged.wait()
            await screens.over(60)
            told.append(name)

        first, second = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(one(n, e)) for n, e in (("a", first), ("b", second))]
        await asyncio.sleep(0)
        first.set()
        await asyncio.wait(tasks, timeout=0.01)
        assert not told
        await screens.over(0.0)  # whoever has waited long enough
        second.set()
        await asyncio.gather(*tasks)
        assert sorted(told) == ["a", "b"]
        await asyncio.wait_for(InHand().over(60), 10)  # nothing is in hand

    asyncio.run(run())
